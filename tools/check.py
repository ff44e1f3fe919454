"""Check data before you train on it: its format, its errors, and how each script would use it.

    python -m tools.check data/town/sft.jsonl
    python -m tools.check train.jsonl test.jsonl          # also counts the prompts they share
    python -m tools.check book.txt --tokenizer=out/pretrain.pt

For each file, or directory of pretraining text, it prints: the format, malformed rows, lengths in
tokens, duplicates, how many rows are held out, how many would be cut or left out and why, and
examples as the model will see them. The exit status is 1 if a row is malformed, since training
would refuse the file.
"""

import io
import json
import sys
from collections import Counter
from contextlib import redirect_stderr
from dataclasses import dataclass
from itertools import combinations, groupby, islice
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

import pretrain
import reward
import rlhf_ppo
import sft
from chat import has_colours, paint, safe
from checkpoint import load_checkpoint
from common import fail, parse_config
from data.corpus import Corpus
from data.dialects import COMPARED, CONTENT, QUESTIONS, Drop, first, standard, without_gaps
from data.formats import (comparison, demonstration, held_out, is_text, list_files,
                          places_and_rows, prompt_only, read_rows, text_and_logp)
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


# ---- which format ---------------------------------------------------------------------------

def kind_of(row):
    if first(row, COMPARED):
        return "comparisons"
    if "text" in row and not first(row, QUESTIONS):
        return "text"
    return "demonstrations" if standard(row, Counter())[1] else "prompts"


def identify(path):
    """(kind, its fields): the most frequent ones among the first thousand rows."""
    files, seen = list_files(path), Counter()
    if Path(path).is_dir() or is_text(files[0]):
        return "text", f"{len(files)} file{'s' * (len(files) > 1)}"
    for _, row in islice(places_and_rows(path), 1000):
        try:
            row = without_gaps(row)
            seen[kind_of(row), ", ".join(name for name in row if name in (*CONTENT, "text"))] += 1
        except (AttributeError, Drop, ValueError):    # malformed rows are reported by read_rows()
            pass
    return seen.most_common(1)[0][0] if seen else ("prompts", "no row is sound")


# ---- what to print --------------------------------------------------------------------------

def fact(name, text):
    print(f"    {name:<14}{text}")


def show_lengths(lengths):
    """{name: numbers of tokens}: print one line for each name."""
    fact("tokens", f"{'min':>7}{'median':>8}{'mean':>9}{'p95':>8}{'max':>9}{'total':>13}")
    for name, n in lengths.items():
        n = np.array(n)
        fact(name[:13], f"{n.min():>7,}{np.median(n):>8,.0f}{n.mean():>9,.1f}"
                        f"{np.percentile(n, 95):>8,.0f}{n.max():>9,}{n.sum():>13,}")


def split(held, least=1):
    """How a script splits its rows. held: for each row, whether it is held out."""
    train, val = held.count(False), held.count(True)
    few = f" (too few: at least {least:,} and 1 are needed)" if train < least or not val else ""
    return f"{train:,} to learn from, {val:,} held out{few}"


def show_examples(kind, examples, tok):
    """Print some examples. Each is a list of (ids, mask), one for each response to the same prompt,
    the best response first. Tokens with mask 1 are green, or «so» without colours."""
    mark = paint("green", 32) if has_colours() else "between « and »"
    print(f"\n    as the model sees it; {mark}: {KINDS[kind][1]}")
    chosen = np.linspace(0, len(examples) - 1, min(EXAMPLES, len(examples)), dtype=int)
    for number, i in enumerate(chosen, 1):
        for place, (ids, mask) in enumerate(examples[i]):
            text = f"\nexample {number}{', a worse response' * (place > 0)}\n"
            for marked, run in groupby(zip(ids, mask), key=lambda pair: bool(pair[1])):
                part = safe(tok.decode([id for id, _ in run])).replace("\t", "\\t")
                text += part if not marked else paint(part, 32) if has_colours() else f"«{part}»"
            print(text.replace("\n", "\n    "))


# ---- the four kinds -------------------------------------------------------------------------

def look_at_text(path, tok, T, quiet):
    """Pretraining text, encoded in a temporary folder; returns hashes of the texts."""
    with TemporaryDirectory() as folder:
        with redirect_stderr(io.StringIO() if quiet else sys.stderr):
            corpus = Corpus(path, tok, folder, "check")
        texts = set(hashes := np.load(next(Path(folder).glob("*/docs.npz")))["hash"])
        # the first rows that `pretrain.py --seed=0` trains on
        rows = corpus.shuffle(EXAMPLES * T + 1, seed=0).rows(0, EXAMPLES, T).tolist()
    n = corpus.lengths
    lengths = {name: n[corpus.source == i] for i, name in enumerate(corpus.sources)}
    show_lengths(lengths | ({"all": n} if len(lengths) > 1 else {}))
    fact("documents", f"{len(n):,} (long ones are split at line ends); "
                      f"{len(hashes) - len(texts):,} are duplicates; "
                      f"{corpus.n_bytes.sum() / n.sum():.2f} bytes per token")
    fact("pretrain.py", split(corpus.held_out.tolist()))
    fact("", f"nothing is left out: documents are joined, and an epoch is "
             f"{n[~corpus.held_out].sum() // T:,} rows of {T} tokens")
    show_examples("text", [[(row, [0] + [1] * T)] for row in rows], tok)
    return texts


def look_at_dialogues(kind, rows, tok, T, max_new_tokens):
    """Demonstrations, comparisons or prompts. PPO reads the prompts of all three; returns these."""
    demos = kind == "demonstrations"
    prompts = [row["messages"][:-1] if demos else row["prompt"] for row in rows]
    answers = [[row["messages"][-1]["content"]] if demos else row.get("responses", [])
               for row in rows]
    asked = [tok.encode_chat(prompt, reply=True)[0] for prompt in prompts]
    said = [[tok.encode(answer) + [tok.end] for answer in group] for group in answers]
    lengths = {"prompt": [*map(len, asked)], "response": [len(s) for group in said for s in group]}
    show_lengths({name: n for name, n in lengths.items() if n})

    held, keys = held_out(prompts), {*map(json.dumps, prompts)}
    whole = {json.dumps(both) for both in zip(prompts, answers)}
    fact("rows", f"{len(rows):,}; {len(rows) - len(whole):,} are duplicates; {len(keys):,} "
                 f"different prompts")
    if demos:
        examples = look_at_demonstrations(rows, held, tok, T)
    elif kind == "comparisons":
        examples = look_at_comparisons(rows, held, said, tok, T)
    else:
        dots = tok.encode("…")
        examples = [[(ids + dots, [0] * len(ids) + [1] * len(dots))] for ids in asked]
    room = T - max_new_tokens - 1
    fits = [prompt for prompt, ids in zip(prompts, asked) if len(ids) <= room]
    fact("rlhf_ppo.py", split(held_out(fits), rlhf_ppo.Config.batch_size))
    fact("", f"{len(rows) - len(fits):,} left out, since the prompt has more than {room} tokens "
             f"({T} minus --max_new_tokens and the end)")
    show_examples(kind, examples, tok)
    return keys


def look_at_demonstrations(rows, held, tok, T):
    train, val = (sft.encode_dialogues([row for row, h in zip(rows, held) if h == side], tok, T)
                  for side in (False, True))
    fact("sft.py", split([False] * len(train[0]) + [True] * len(val[0])))
    fact("", f"{train[1] + val[1]:,} cut to {T + 1} tokens; {train[2] + val[2]:,} left out, since "
             f"nothing of the answers would remain")
    return [[pair] for pair in train[0] + val[0]]


def look_at_comparisons(rows, held, said, tok, T):
    encoded = [[reward.encode_answer(tok, row["prompt"], answer, T) for answer in row["responses"]]
               for row in rows]
    flat = [both for group in zip(encoded, said) for both in zip(*group)]
    pairs = [len(a) > len(b) for row, group in zip(rows, said) for (a, i), (b, j)
             in combinations(zip(group, row["ranks"]), 2) if i < j]
    fact("pairs", f"{len(pairs):,}; in {100 * np.mean(pairs):.0f}% the better response is longer")
    alike = [reward.encode_comparison(tok, row, T) is None for row in rows]
    fact("reward.py", split([h for h, a in zip(held, alike) if not a], reward.Config.batch_size))
    fact("", f"of {len(flat):,} responses {sum(ids[-len(s):] != s for ids, s in flat):,} lose "
             f"their end, {sum(ids[0] != tok.eot for ids, _ in flat):,} the prompt's beginning "
             f"({T} tokens)")
    fact("", f"{sum(alike):,} left out, since their responses are equal once cut")
    return [[(ids, [0] * (len(ids) - 1) + [1]) for ids in group] for group in encoded]


# ---- the files ------------------------------------------------------------------------------

def look(path, config, tok, T, malformed):
    """Print the facts about one file. Returns its prompts or texts; the errors of the rows for
    which training would refuse it are added to `malformed`."""
    kind, form = identify(path)
    print(f"\n{path}: {'pretraining ' * (kind == 'text')}{kind} ({form})\n")
    counts, sound = Counter(), len(malformed)
    rows = [row for file in list_files(path)
            for row in read_rows(file, KINDS[kind][0], counts, malformed)]
    for (what, why), count in sorted(counts.items(), key=lambda both: (both[0][0], -both[1])):
        fact(what, f"{count:,} {why}")
    if kind == "text" and len(malformed) == sound:    # else Corpus would refuse the file
        return look_at_text(path, tok, T, counts)
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
