"""Speed and memory, side by side with other implementations, in one run.

Times on a shared machine mean little, ratios within one run mean something: the entrants of a race
take turns, and the medians are compared. An entrant whose package or clone is missing is left out,
with the reason.

    python bench.py                                  # every race, against what is installed
    python bench.py --what=tokenizer --data=books/   # one of them, on your text
    python bench.py --peers=../peers                 # ../peers has clones of nanoGPT, minbpe, trl
"""

import gc
import importlib
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from common import fail, parse_config
from data.formats import read_texts
from tokenizer import GPT4, Tokenizer


@dataclass
class Config:
    what: str = "tokenizer"          # tokenizer: which races, separated by commas
    peers: str = ""                  # a folder with clones of the peers, under their own names
    runs: int = 5                    # turns of each entrant
    data: str = "data/town/pretrain" # text for the tokenizers, repeated to 5 MB
    debug: bool = False              # show tracebacks


# ---------------------------------------------------------------------------------------------
# how to measure

def race(title, entrants, runs, amount=None, unit="s"):
    """Let the entrants, {name: function}, take turns; the first is ours. A string instead of a
    function is the reason why it is missing. With an amount, speeds are shown instead of times."""
    print(f"\n{title}")
    times = {name: [] for name, run in entrants.items() if callable(run)}
    for _ in range(runs):
        for name in times:
            gc.collect()
            start = time.perf_counter()
            entrants[name]()
            times[name].append(time.perf_counter() - start)
    ours = median(next(iter(times.values())))
    for name, run in entrants.items():
        if not callable(run):
            print(f"    {name:34} left out: {run}")
            continue
        middle, low, high = median(times[name]), min(times[name]), max(times[name])
        values = [amount / t for t in (middle, high, low)] if amount else [middle, low, high]
        digits = 2 if values[0] < 100 else 0
        shown = "{:8,.{d}f} {} [{:,.{d}f}, {:,.{d}f}]".format(values[0], unit, *values[1:], d=digits)
        print(f"    {name:34} {shown:34} {middle / ours:6.2f} x our time")
    return {name: median(t) for name, t in times.items()}


def optional(package):
    """A package that may be missing, or the reason."""
    try:
        return importlib.import_module(package)
    except ImportError:
        return f"needs `pip install {package}`"


def peak_memory(command):
    """The largest resident memory of a Python command, in bytes."""
    code = ("import resource, subprocess, sys; p = subprocess.run([sys.executable] + sys.argv[1:], "
            "capture_output=True, text=True); print(p.stderr[-300:] if p.returncode else "
            "resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)")
    out = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True)
    unit = 1 if sys.platform == "darwin" else 1024
    return int(out.stdout) * unit if out.stdout.strip().isdigit() else fail(out.stdout.strip())


# ---------------------------------------------------------------------------------------------
# the tokenizer

def tokenizer(config):
    """Learn 8,192 tokens from 5 MB; encode; and the memory that learning from 100 MB takes."""
    lines = "\n".join(document.text for document in read_texts(config.data)).split("\n")
    text, copy = "\n".join(lines), 0
    while len(text.encode()) < 5e6:                   # repeated with changes: new words appear
        copy += 1
        text += "\n".join(line.replace("e", "eaiou"[copy % 5] * (1 + copy // 5)) for line in lines)
    text = text.encode()[:5_000_000].decode(errors="ignore")
    size = len(text.encode()) / 1e6
    hf, rustbpe = optional("tokenizers"), optional("rustbpe")

    def learn_hf():
        tok = hf.Tokenizer(hf.models.BPE())
        byte_level = hf.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        split = hf.pre_tokenizers.Split(hf.Regex(GPT4), "isolated")
        tok.pre_tokenizer = hf.pre_tokenizers.Sequence([split, byte_level])
        alphabet = hf.pre_tokenizers.ByteLevel.alphabet()
        trainer = hf.trainers.BpeTrainer(vocab_size=8192 - 6, show_progress=False,
                                         initial_alphabet=alphabet)
        tok.train_from_iterator([text], trainer)

    def learn_rust():
        rustbpe.Tokenizer().train_from_iterator([text], 8192 - 6, pattern=GPT4)

    race(f"learning 8,192 tokens from {size:.1f} MB", {
        "tokenizer.py": lambda: Tokenizer.train(text, 8192),
        "tokenizers (Rust)": hf if isinstance(hf, str) else learn_hf,
        "rustbpe (Rust)": rustbpe if isinstance(rustbpe, str) else learn_rust}, config.runs)

    # minbpe counts all pairs anew for each merge: 16 merges show what 8,000 would take
    minbpe = Path(config.peers) / "minbpe"
    if found := config.peers and minbpe.is_dir():
        sys.path.insert(0, str(minbpe))
        regex_tokenizer = importlib.import_module("minbpe").RegexTokenizer
    race(f"the first 16 merges from {size:.1f} MB", {
        "tokenizer.py": lambda: Tokenizer.train(text, 262 + 16),
        "minbpe": (lambda: regex_tokenizer().train(text, 256 + 16)) if found
        else "needs --peers=DIR with a clone of minbpe"}, 1)

    tok = Tokenizer.train(text, 8192)
    bulk = tok.to_tiktoken()

    def encode():
        tok.encode_chunk.cache_clear()                # every run starts with an empty memory
        tok.encode(text)

    race(f"encoding {size:.1f} MB on one core", {
        "tokenizer.py": encode,
        "tiktoken (Rust), the same merges": lambda: bulk.encode_ordinary(text)},
         config.runs, size, "MB/s")

    with tempfile.TemporaryDirectory() as folder:
        big = Path(folder) / "big.txt"
        with open(big, "w", encoding="utf-8") as file:
            for i in range(round(100 / size)):        # new words all the time, and wide characters
                file.write(text.replace("th", f"t{chr(0x4e00 + i)}h") + " 😊\n")
        peak = peak_memory(["tokenizer.py", f"--data={big}", "--vocab_size=8192",
                            "--pattern=gpt4", f"--out={folder}/tokenizer.json"])
        print(f"\npython tokenizer.py on {big.stat().st_size / 1e6:.0f} MB: {peak / 1e6:.0f} MB of "
              f"memory at the peak, {peak / big.stat().st_size:.1f} x the text")


if __name__ == "__main__":
    config = parse_config(Config, __doc__)
    races = {"tokenizer": tokenizer}
    for name in config.what.split(","):
        if name not in races:
            fail(f"--what={name} is not one of {', '.join(races)}")
        races[name](config)
