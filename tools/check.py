"""Check data before you train on it: its format, its errors, and how each script would use it.

    python -m tools.check data/town/sft.jsonl
    python -m tools.check train.jsonl test.jsonl          # also counts the prompts they share
    python -m tools.check book.txt --tokenizer=out/pretrain.pt

For each file, or directory of pretraining text, it prints: the format, malformed rows, lengths in
tokens, duplicates, how many rows are held out, how many would be cut or left out and why, and
examples as the model will see them. The exit status is 1 if a row is malformed, since training
would refuse the file.
"""

import json
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations, groupby
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

import pretrain
import reward
import rlhf_ppo
import sft
from chat import safe
from checkpoint import load_checkpoint
from common import fail, parse_config
from data.corpus import Corpus
from data.dialects import COMPARED, CONTENT, QUESTIONS, Drop, first, standard, without_gaps
from data.formats import (comparison, demonstration, list_files, places_and_rows, prompt_only,
                          read_rows, split, text_and_logp)
from tokenizer import Tokenizer

# kind: (its reader, what is marked in the examples)
KINDS = dict(
    text=(text_and_logp, "what the model learns to predict, which is everything"),
    demonstrations=(demonstration, "what the model learns to say; the rest it only reads"),
    comparisons=(comparison, "where the score is read"),
    prompts=(prompt_only, "where the model's own answer will be"))
EXAMPLES, MALFORMED = 3, 10                # how many to show; all are counted


@dataclass
class Config:
    data: str = ""                         # files; `python -m tools.check FILE FILE` is shorter
    tokenizer: str = "out/tokenizer.json"  # or a checkpoint, which contains a tokenizer
    block_size: int = 0                    # the context in tokens; 0: the checkpoint's, or 128
    max_new_tokens: int = 64               # the part of the context that PPO needs for the answer
    debug: bool = False                    # show tracebacks


def kind_of(path):
    """What the first sound row is. A directory is pretraining text."""
    if Path(path).is_dir():
        return "text"
    for _, row in places_and_rows(path):
        with suppress(AttributeError, Drop, ValueError):
            row = without_gaps(row)
            if first(row, COMPARED):
                return "comparisons"
            if not first(row, QUESTIONS) and "text" in row:
                return "text"
            return "demonstrations" if standard(row, set())[1] else "prompts"
    return "prompts"


# ---- what to print --------------------------------------------------------------------------

def fact(name, text):
    print(f"    {name[:13]:<14}{text}")


def show_length(name, lengths):
    n = np.array(lengths)
    fact(name, f"{n.min():,} to {n.max():,} tokens, on average {n.mean():,.1f}, 95% of them at "
               f"most {np.percentile(n, 95):,.0f}; {n.sum():,} in all")


def show_split(script, train, val, more="", least=1):
    few = f" (too few: at least {least:,} and 1 are needed)" if train < least or not val else ""
    fact(script, f"{train:,} to learn from, {val:,} held out{few}; {more}")


def show_examples(kind, examples, tok):
    """Print the first ones. Each is a list of (ids, mask), one for each response to the same
    prompt, the best first. Tokens with mask 1 are «so»."""
    print(f"\n    as the model sees it; between « and »: {KINDS[kind][1]}")
    for number, example in enumerate(examples[:EXAMPLES], 1):
        for place, (ids, mask) in enumerate(example):
            text = f"\nexample {number}{', a worse response' * (place > 0)}\n"
            for marked, run in groupby(zip(ids, mask), key=lambda pair: bool(pair[1])):
                part = safe(tok.decode([id for id, _ in run])).replace("\t", "\\t")
                text += f"«{part}»" if marked else part
            print(text.replace("\n", "\n    "))


# ---- the four kinds -------------------------------------------------------------------------

def look_at_text(path, tok, T):
    """Pretraining text, encoded in a temporary folder; returns hashes of the texts."""
    with TemporaryDirectory() as folder:
        corpus = Corpus(path, tok, folder, "check")
        # the first rows that `pretrain.py --seed=0` trains on
        rows = corpus.shuffle(EXAMPLES * T + 1, seed=0).rows(0, EXAMPLES, T).tolist()
    n, texts, held = corpus.lengths, {*corpus.hashes.tolist()}, corpus.held_out
    for i, name in enumerate(corpus.sources):
        show_length(name, n[corpus.source == i])
    fact("documents", f"{len(n):,} (long ones are split at line ends); {len(n) - len(texts):,} are "
                      f"duplicates; {corpus.n_bytes.sum() / n.sum():.2f} bytes per token")
    show_split("pretrain.py", (~held).sum(), held.sum(),
               f"an epoch is {n[~held].sum() // T:,} rows of {T} tokens")
    show_examples("text", [[(row, [0] + [1] * T)] for row in rows], tok)
    return texts


def look_at_dialogues(kind, rows, tok, T, max_new_tokens):
    """Demonstrations, comparisons or prompts. PPO reads the prompts of all three; returns these."""
    demos = kind == "demonstrations"
    prompts = [row["messages"][:-1] if demos else row["prompt"] for row in rows]
    answers = [[row["messages"][-1]["content"]] if demos else row.get("responses", [])
               for row in rows]
    asked = [tok.encode_chat(prompt, reply=True)[0] for prompt in prompts]
    said = [[tok.encode_content(a) + [tok.end] for a in group] for group in answers]
    both = {json.dumps(pair) for pair in zip(prompts, answers)}
    keys, most = {*map(json.dumps, prompts)}, T + demos
    fact("rows", f"{len(rows):,}; {len(rows) - len(both):,} are duplicates; {len(keys):,} "
                 f"different prompts")
    show_length("prompt", [*map(len, asked)])
    if kind != "prompts":
        show_length("response", [len(ids) for group in said for ids in group])
        long = sum(len(q) + len(a) > most for q, group in zip(asked, said) for a in group)
        fact("", f"{long:,} are cut: with their prompts they have more than {most} tokens")
    if demos:
        (train, *_), (val, *_) = (sft.encode_dialogues(side, tok, T)
                                  for side in split(rows, "messages"))
        examples = [[pair] for pair in train + val]
        show_split("sft.py", len(train), len(val), f"{len(rows) - len(examples):,} left out, since "
                   f"nothing of their answers would remain")
    elif kind == "comparisons":
        longer = [len(a) > len(b) for row, group in zip(rows, said) for (a, i), (b, j)
                  in combinations(zip(group, row["ranks"]), 2) if i < j]
        fact("pairs", f"{len(longer):,}; in {100 * np.mean(longer):.0f}% the better response is "
                      f"longer")
        train, val = ([new for row in side if (new := reward.encode_comparison(tok, row, T))]
                      for side in split(rows))
        examples = [[(ids, [0] * (len(ids) - 1) + [1]) for ids in row["ids"]]
                    for row in train + val]
        show_split("reward.py", len(train), len(val), f"{len(rows) - len(examples):,} left out, "
                   f"since their responses are equal once cut", reward.Config.batch_size)
    else:
        dots = tok.encode("…")
        examples = [[(ids + dots, [0] * len(ids) + [1] * len(dots))] for ids in asked]
    room = T - max_new_tokens - 1
    fits = [dict(prompt=prompt) for prompt, ids in zip(prompts, asked) if len(ids) <= room]
    train, val = split(fits)
    show_split("rlhf_ppo.py", len(train), len(val), f"{len(rows) - len(fits):,} left out, since "
               f"the prompt has more than {room} tokens ({T} minus --max_new_tokens and the end)",
               rlhf_ppo.Config.batch_size)
    show_examples(kind, examples, tok)
    return keys


# ---- the files ------------------------------------------------------------------------------

def look(path, config, tok, T, malformed):
    """Print the facts about one file. Returns its prompts or texts; the errors of the rows for
    which training would refuse it are added to `malformed`."""
    files, kind, sound = list_files(path), kind_of(path), len(malformed)
    fields = Counter(name for file in files for _, row in places_and_rows(file)
                     if isinstance(row, dict) for name in without_gaps(row))
    print(f"\n{path}: {kind} ({', '.join(name for name in fields if name in CONTENT)})\n")
    if others := [f"{n:,} {name!r}" for name, n in fields.items() if name not in CONTENT]:
        fact("other fields", safe(", ".join(others)))
    rows = [row for file in files for row in read_rows(file, KINDS[kind][0], malformed)]
    if kind == "text" and len(malformed) == sound:    # else Corpus would refuse the file
        return look_at_text(path, tok, T)
    if kind != "text" and rows:
        return look_at_dialogues(kind, rows, tok, T, config.max_new_tokens)
    return set()


def main(config):
    if not config.data:
        fail("no file given: try `python -m tools.check data/town/sft.jsonl` (-h explains)")
    if config.tokenizer.endswith(".pt"):
        ckpt = load_checkpoint(config.tokenizer)
        tok, T = ckpt["tokenizer"], ckpt["model_config"]["block_size"]
    else:
        tok, T = Tokenizer.load(config.tokenizer), pretrain.Config.block_size
    T = config.block_size or T
    if T <= config.max_new_tokens:
        fail(f"--block_size={T} must be more than --max_new_tokens={config.max_new_tokens}")
    found, malformed = {}, []
    for path in config.data.split(","):
        try:
            found[path] = look(path, config, tok, T, malformed)
        except ValueError as error:                   # the whole file is bad, e.g. not UTF-8
            malformed.append(str(error))
    for (a, in_a), (b, in_b) in combinations(found.items(), 2):
        print(f"\n{len(in_a & in_b):,} prompts or texts are in both {a} and {b}")
    if len(malformed) > 1:
        print("\nmalformed:\n" + "\n".join(malformed[:MALFORMED]))
        fail(f"{len(malformed):,} errors, the first of them above: training would refuse the data")
    if malformed:
        fail(malformed[0])


if __name__ == "__main__":
    main(parse_config(Config, __doc__, words="data"))
