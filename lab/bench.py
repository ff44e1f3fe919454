"""Speed, side by side with other implementations, in one run.

On a shared machine absolute times mean little, so the entrants of a race take turns and the ratios
of their medians are printed. An entrant whose package or clone is missing is left out, with the
reason.

    python -m lab.bench                                  # all races, with the installed packages
    python -m lab.bench --what=tokenizer --data=books/   # one race, on your text
    python -m lab.bench --peers=../peers                 # clones of nanoGPT, minbpe, trl are there
    python -m lab.bench --what=busy --runs=3             # the stages beside other busy programs
    python -m lab.bench --what=llama                     # llama.cpp, with SmolLM2 of docs/real.md
"""

import gc
import importlib
import io
import json
import random
import subprocess
import sys
import tempfile
import time
import timeit
import warnings
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, product
from pathlib import Path
from statistics import median

import torch

from answer import generate
from checkpoint import load, load_checkpoint, read_log, save_checkpoint
from common import DTYPES, Runtime, parse_config
from data.formats import read_texts
from lab.chains import chosen
from model import GPT, STYLES, GPTConfig, ScalarGPT
from optim import adamw
from tokenizer import GPT4, Tokenizer


@dataclass
class Config:
    what: str = "tokenizer,train,sample,ppo"   # which races; also busy, after `bash run.sh`, llama
    peers: str = ""                    # a folder with clones of nanoGPT, minbpe and trl
    model: str = "out/smol.pt"         # of the race llama: a LLaMA
    runs: int = 5                      # turns of each entrant
    data: str = "data/town/pretrain"   # text for the tokenizers
    device: str = "auto"               # auto: cuda, else cpu
    dtype: str = "auto"                # auto: bfloat16 where it is fast, else float32
    debug: bool = False                # show tracebacks


# ---- how to measure -------------------------------------------------------------------------

def race(title, entrants, runs, amount=None, unit="s", warmup=True):
    """Let the entrants, {name: function}, take turns. The first entrant is ours; the first turn is
    a warmup. A function that returns a float has timed itself. With an amount, speeds are printed
    instead of times. Returns the median times."""
    print(f"\n{title}", flush=True)
    times = {name: [] for name in entrants}
    for turn in range(-warmup, runs):
        for name, run in entrants.items():
            gc.collect()
            start = time.perf_counter()
            seconds = run()
            if not isinstance(seconds, float):
                seconds = time.perf_counter() - start
            if turn >= 0:
                times[name].append(seconds)
    ours = median(next(iter(times.values())))
    for name, t in times.items():
        values = median(t), min(t), max(t)
        if amount:
            values = amount / median(t), amount / max(t), amount / min(t)
        center, *ends = (f"{v:,.{2 if values[0] < 100 else 0}f}" for v in values)
        shown = f"{center:>8} {unit} [{', '.join(ends)}]"
        print(f"    {name:34} {shown:34} {median(t) / ours:6.2f} x our time")
    return {name: median(t) for name, t in times.items()}


def peak_flops(rt):
    """Floating-point operations a second in a large matrix product, measured. It grows until a
    product takes 20 ms: emulated bf16 can be a thousand times slower than a GPU."""
    n, seconds, largest = 128, 0, 8192 if rt.device.type == "cuda" else 2048
    while n < largest and seconds < 0.02:
        n *= 2
        a = torch.randn(n, n, device=rt.device, dtype=rt.dtype)
        # .item() waits for the GPU
        seconds = min(timeit.repeat(lambda: (a @ a)[0, 0].item(), number=1, repeat=8))
    return 2 * n**3 / max(seconds, 1e-9)


def in_each_dtype(config, device):
    return {dtype: Runtime(replace(config, device=device, dtype=dtype)) for dtype in DTYPES}


@contextmanager
def optional(name):
    """Go on without an entrant whose package or clone is missing, and print the reason."""
    try:
        yield
    except ImportError as error:
        reason = f"`pip install {error.name}`" if error.name else error
        print(f"\n{name} is left out: it needs {reason}")


def peer(config, clone, module):
    """A module of a clone. nanoGPT's has the name of ours, which stays what others import."""
    folder = Path(config.peers) / clone
    if not config.peers or not folder.is_dir():
        raise ImportError(f"--peers=DIR with a clone of {clone}")
    ours = sys.modules.pop(module, None)
    sys.path.insert(0, str(folder))
    theirs = importlib.import_module(module)
    sys.path.remove(str(folder))
    if ours:
        sys.modules[module] = ours
    return theirs


# ---- the tokenizer --------------------------------------------------------------------------

def tokenizer(config):
    """Learn 8,192 tokens from 5 MB; encode 5 MB."""
    lines = "\n".join(document.text for document in read_texts(config.data)).split("\n")
    text, copy = "\n".join(lines), 0
    while len(text.encode()) < 5e6:                   # repeat it with changes, for new words
        copy += 1
        text += "\n".join(line.replace("e", "eaiou"[copy % 5] * (1 + copy // 5)) for line in lines)
    text = text.encode()[:5_000_000].decode(errors="ignore")
    size = len(text.encode()) / 1e6
    entrants = {"tokenizer.py": lambda: Tokenizer.train(text, 8192)}
    with optional("tokenizers (Rust)"):
        import tokenizers as hf

        def learn():
            byte_level = hf.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
            split = hf.pre_tokenizers.Split(hf.Regex(GPT4), "isolated")
            tok = hf.Tokenizer(hf.models.BPE())
            tok.pre_tokenizer = hf.pre_tokenizers.Sequence([split, byte_level])
            tok.train_from_iterator([text], hf.trainers.BpeTrainer(
                vocab_size=8192 - 6, show_progress=False,
                initial_alphabet=hf.pre_tokenizers.ByteLevel.alphabet()))

        entrants["tokenizers (Rust)"] = learn
    with optional("rustbpe (Rust)"):
        import rustbpe
        entrants["rustbpe (Rust)"] = lambda: rustbpe.Tokenizer().train_from_iterator(
            [text], 8192 - 6, pattern=GPT4)
    race(f"learning 8,192 tokens from {size:.1f} MB", entrants, config.runs)

    letters = "".join(random.Random(0).choices("acgt", k=1_000_000))
    race("learning 1,024 tokens from one word of a million letters", {
        "tokenizer.py": lambda: Tokenizer.train(letters, 1024)}, 1, warmup=False)

    # minbpe counts all pairs again for each merge, so 16 merges are enough to compare
    entrants = {"tokenizer.py": lambda: Tokenizer.train(text, 262 + 16)}
    with optional("minbpe"):
        minbpe = peer(config, "minbpe", "minbpe")
        entrants["minbpe"] = lambda: minbpe.RegexTokenizer().train(text, 256 + 16)
    race(f"the first 16 merges from {size:.1f} MB", entrants, 1, warmup=False)

    tok = Tokenizer.train(text, 8192)
    bulk = tok.to_tiktoken()

    def encode():
        tok.encode_chunk.cache_clear()                # every run starts with an empty cache
        tok.encode(text)

    race(f"encoding {size:.1f} MB on one core", {
        "tokenizer.py": encode,
        "tiktoken (Rust), the same merges": lambda: bulk.encode_ordinary(text)
    }, config.runs, size, "MB/s")


# ---- training -------------------------------------------------------------------------------

def train(config):
    """A training step with 16 rows. CPU: the laptop's model, rows of 256 tokens, in each dtype;
    nanoGPT in float32, the default of its train.py. GPU: GPT-2 (124M parameters) without biases,
    nanoGPT's default, rows of 1,024 tokens; all entrants are compiled and in bf16."""
    gpu = Runtime(config).device.type == "cuda"
    V, T, n_layer, n_embd, style = (
        (50304, 1024, 12, 768, STYLES["gpt2"] | dict(bias=False)) if gpu else
        (1024, 256, 4, 128, STYLES["laptop"]))
    setups = in_each_dtype(config, config.device)
    device, entrants = setups["float32"].device, {}
    x, y = torch.randint(V, (2, 16, T), device=device)

    def enter(name, dtype, compile, model, optimizer):
        rt, model = setups[dtype], setups[dtype].compile(model, compile)

        def step():
            with rt.autocast():
                out = model(x, y)                     # nanoGPT's gives logits and loss
            (out[1] if isinstance(out, tuple) else out).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if gpu:
                torch.cuda.synchronize()
        entrants[name] = step

    for dtype, compile in ((("bfloat16", "true"),) if gpu else
                           (("float32", "false"), ("bfloat16", "false"), ("float32", "true"))):
        model = GPT(GPTConfig(vocab_size=V, block_size=T, n_layer=n_layer, n_embd=n_embd,
                              n_hidden=4 * n_embd, n_head=n_embd // 64, n_kv_head=n_embd // 64,
                              **style)).to(device)
        work = model.flops_per_token(T) * x.numel()
        enter(f"model.py, {dtype}" + ", compiled" * (compile == "true"), dtype, compile, model,
              adamw(model, 0.1))
    with optional("nanoGPT"), redirect_stdout(io.StringIO()):         # built as in its train.py
        nano, dtype = peer(config, "nanoGPT", "model"), "bfloat16" if gpu else "float32"
        model = nano.GPT(nano.GPTConfig(
            block_size=T, vocab_size=V, n_layer=n_layer, n_head=n_embd // 64, n_embd=n_embd,
            dropout=0.0, bias=False)).to(device)
        optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), device.type)
        enter(f"nanoGPT, {dtype}", dtype, str(gpu).lower(), model, optimizer)
    seconds = race("training, thousands of tokens a second", entrants, config.runs,
                   x.numel() / 1e3, "k/s")
    peak = {dtype: peak_flops(rt) for dtype, rt in setups.items()}
    for dtype, rate in peak.items():
        print(f"    the matrix products alone: {rate / work * x.numel() / 1e3:.1f} k/s at the "
              f"{rate / 1e9:.0f} GFLOP/s that a large product reaches here in {dtype}")
    for name, time_ in seconds.items():
        rate = peak["bfloat16" if "bfloat16" in name else "float32"]
        print(f"    {name:34} {work / time_ / rate:8.1%} of that: its MFU")


# ---- sampling -------------------------------------------------------------------------------

def ours(rt, model, idx, n):
    with rt.autocast():                               # as compare.py and rlhf_ppo.py do
        generate(model, idx, n)


def sample(config):
    """One batch of 128 sequences: 48 tokens after a prompt of 16."""
    model, idx = GPT(GPTConfig()).eval(), torch.randint(1024, (128, 16))       # the laptop's
    entrants = {f"model.py, {dtype}": partial(ours, rt, model, idx, 48)
                for dtype, rt in in_each_dtype(config, "cpu").items()}
    with optional("transformers, GPT-2"):
        import transformers
        gpt2 = transformers.GPT2LMHeadModel(transformers.GPT2Config(
            vocab_size=1024, n_positions=128, n_embd=128, n_layer=4, n_head=2,
            bos_token_id=0, eos_token_id=None)).eval()
        options = dict(max_new_tokens=48, do_sample=True, top_k=0, pad_token_id=0)
        entrants["transformers, GPT-2"] = lambda: gpt2.generate(
            idx, attention_mask=torch.ones_like(idx), **options)
    race("sampling, thousands of tokens a second", entrants, config.runs, 128 * 48 / 1e3, "k/s")


def llama(config):
    """One answer of 64 tokens to a short prompt, as in a chat, from SmolLM2-135M: llama.cpp reads
    what tools/hf.py exports. Every token reads all weights once."""
    n, tok = 64, load_checkpoint(config.model)["tokenizer"]
    idx = torch.tensor([tok.encode("The town of")])
    entrants = {f"answer.py, {dtype}": partial(
        ours, rt, load(config.model, rt, frozen=True)[0], idx, n)
        for dtype, rt in in_each_dtype(config, "cpu").items()}

    def theirs(server):
        clock = server.handle_completions(dict(
            prompt="The town of", n_predict=n, ignore_eos=True, cache_prompt=False))["timings"]
        return (clock["prompt_ms"] + clock["predicted_ms"]) / 1000

    with optional("llama.cpp"), tempfile.TemporaryDirectory() as folder:
        import xllamacpp as lib
        for name, flags in (("float32", []), ("float16", ["--f16"])):
            path, params = f"{folder}/{name}.gguf", lib.CommonParams()
            subprocess.run([sys.executable, "-m", "tools.hf", "export", config.model, path, *flags],
                           check=True, stdout=subprocess.DEVNULL)
            params.model.path, params.n_ctx, params.n_parallel = path, 512, 1
            params.verbosity, params.cpuparams.poll = -1, 0           # its threads wait asleep
            params.cpuparams.n_threads = torch.get_num_threads()
            entrants[f"llama.cpp, {name}"] = partial(theirs, lib.Server(params))
    race("one answer from SmolLM2, tokens a second", entrants, config.runs, n, "/s")


# ---- PPO ------------------------------------------------------------------------------------

def ppo(config):
    """Iterations of 128 episodes on the CPU: prompts of 24 tokens, answers of 48, then 4 epochs of
    4 minibatches. A turn is 4 iterations; the last 3 are timed. In ours, one answer in 22 ends
    early by chance, but a batch takes as long as its longest answer."""
    pairs = islice(product(range(65, 123), repeat=2), 762)            # no digits: 1 digit = 1 token
    tok = Tokenizer(GPT4, list(range(256)), {pair: 256 + i for i, pair in enumerate(pairs)})
    shape = GPTConfig(vocab_size=tok.vocab_size, block_size=128)
    prompts = (json.dumps({"prompt": f"{i:020}"}) for i in range(300))
    with tempfile.TemporaryDirectory() as folder:
        for stage, model in (("sft", GPT(shape)), ("reward", ScalarGPT(shape))):
            save_checkpoint(f"{folder}/{stage}.pt", stage=stage, step=0, metrics={}, model=model,
                            model_config=shape, tokenizer=tok, config=config, history=[])
        Path(folder, "prompts.jsonl").write_text("\n".join(prompts), encoding="utf-8")

        def ours(dtype):
            subprocess.run([
                sys.executable, "rlhf_ppo.py", f"--data={folder}/prompts.jsonl", "--watch=",
                f"--init={folder}/sft.pt", f"--reward={folder}/reward.pt", f"--out={folder}/ppo.pt",
                "--fresh", "--device=cpu", f"--dtype={dtype}", "--batch_size=128", "--minibatch=32",
                "--micro_batch=32", "--epochs=4", "--max_new_tokens=48", "--ptx_coef=0",
                "--lr=3e-6", "--steps=4", "--n_eval=1"], check=True, stdout=subprocess.DEVNULL)
            log = read_log(Path(folder, "ppo.jsonl"))
            return median([row["seconds"] for row in log if "seconds" in row][1:])

        entrants = {f"rlhf_ppo.py, {dtype}": partial(ours, dtype) for dtype in DTYPES}
        with optional("TRL's PPOTrainer"), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trl = peer(config, "trl", "trl.experimental.ppo")
            entrants |= {f"TRL's PPOTrainer, {dtype}": partial(trl_ppo, trl, folder, dtype)
                         for dtype in DTYPES}
        race("PPO, episodes a second", entrants, config.runs, 128, "/s", warmup=False)


def trl_ppo(trl, folder, dtype):
    """The same with TRL and a GPT-2 of our size. Where TRL's defaults are slower, it gets our
    setting: exact GELU, which is faster than GPT-2's approximation, and one batch of rollouts."""
    import datasets
    import tokenizers
    import transformers as hf
    hf.logging.set_verbosity_error()
    ends = []

    class Clock(hf.TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            ends.append(time.perf_counter())

    words = tokenizers.models.WordLevel({"<pad>": 0, "<eos>": 1}, unk_token="<eos>")
    tok = hf.PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(words),
                                     pad_token="<pad>", eos_token="<eos>")
    shape = hf.GPT2Config(vocab_size=1024, n_positions=128, n_embd=128, n_layer=4, n_head=2,
                          activation_function="gelu", num_labels=1, pad_token_id=0,
                          bos_token_id=None, eos_token_id=None)
    reward, value = (hf.GPT2ForSequenceClassification(shape) for _ in range(2))
    prompts = datasets.Dataset.from_dict({"input_ids": torch.randint(2, 1024, (256, 24)).tolist()})
    with redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        args = trl.PPOConfig(
            output_dir=folder, total_episodes=4 * 128, per_device_train_batch_size=128,
            num_mini_batches=4, num_ppo_epochs=4, response_length=48, temperature=0.7,
            local_rollout_forward_batch_size=128, num_sample_generations=0, report_to="none",
            save_strategy="no", disable_tqdm=True, bf16=dtype == "bfloat16", use_cpu=True)
        trl.PPOTrainer(args, tok, hf.GPT2LMHeadModel(shape), None, reward, prompts, value,
                       callbacks=[Clock()]).train()
    return median(end - start for start, end in zip(ends, ends[1:]))


# ---- beside other programs ------------------------------------------------------------------

SHORT = {"pretrain.py": "--steps=200 --eval_every=200", "sft.py": "--steps=100 --eval_every=100",
         "reward.py": "--steps=60 --eval_every=60", "rlhf_ppo.py": "--steps=3 --n_eval=64"}
FIXED = """import runpy, sys, common
common.Cores.share = lambda cores: None
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")"""


def busy(config):
    """Short stages, alone and beside one and two programs that each keep a core busy: with threads
    for the free cores, and with PyTorch's number. Shared fairly, n threads keep n / (n + programs)
    of the time of n cores."""
    n, alone = torch.get_num_threads(), 0.0
    ways = {"free cores": [], f"{n} threads": ["-c", FIXED]}
    print(f"\n{'short stages, seconds':24}" + "".join(f"{way:>30}" for way in ways)
          + f"{'the lost share':>26}")
    for script, others in product(SHORT, range(3)):
        with tempfile.TemporaryDirectory() as folder, ExitStack() as programs:
            def seconds(start):
                return timeit.timeit(number=1, stmt=lambda: subprocess.run(
                    [sys.executable, *start, script, f"--out={folder}/new.pt", "--fresh=true",
                     *SHORT[script].split()], check=True, stdout=subprocess.DEVNULL))

            if not others:
                seconds([])                           # the first one fills caches
            for _ in range(others):
                other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
                programs.callback(other.kill)
            turns = [[*map(seconds, ways.values())] for _ in range(config.runs)]
        times = [median(t) for t in zip(*turns)]
        alone = alone if others else min(times)       # both ways do the same there
        print(f"{f'{script} beside {others}':24}"
              + "".join(f"{t:20.1f} s {t / alone:6.2f} x" for t in times)
              + f"{(n + others) / n:17.2f} x", flush=True)


if __name__ == "__main__":
    config = parse_config(Config, __doc__)
    races = dict(tokenizer=tokenizer, train=train, sample=sample, ppo=ppo, busy=busy, llama=llama)
    for name in chosen(config.what, races):
        races[name](config)
