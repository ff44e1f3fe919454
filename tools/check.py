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
from collections import Counter
from contextlib import nullcontext, redirect_stderr
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
from data.dialects import (COMPARED, CONTENT, QUESTIONS, DataError, Drop, first, standard,
                           without_gaps)
from data.formats import (comparison, demonstration, held_out, is_text, list_files,
                          places_and_rows, prompt_only, read_rows, text_and_logp)
from tokenizer import Tokenizer

READERS = dict(text=text_and_logp, demonstrations=demonstration, comparisons=comparison,
               prompts=prompt_only)
MARKED = dict(text="what the model learns to predict, which is everything",
              demonstrations="what the model learns to say; the rest it only reads",
              comparisons="where the score is read",
              prompts="where the model's own answer will be")


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


def form_of(row):
    """{"instruction": "Hi", "output": "Hello", "id": 1} -> "Alpaca: instruction, output" """
    form = "Alpaca: " if "instruction" in row else "ShareGPT: " if "conversations" in row else ""
    form += ", ".join(name for name in row if name in (*CONTENT, "text"))
    if not isinstance(row.get("chosen"), str):
        return form + " as messages" * ("chosen" in row)
    return form + (" as text" if first(row, QUESTIONS) else " as HH transcripts")


def identify(path):
    """(kind, form): the most frequent ones among the first thousand rows."""
    files, seen = list_files(path), Counter()
    if Path(path).is_dir() or is_text(files[0]):
        return "text", f"{len(files)} file{'s' * (len(files) > 1)}"
    for _, row in islice(places_and_rows(path), 1000):
        try:
            row = without_gaps(row)
            seen[kind_of(row), form_of(row)] += 1
        except (AttributeError, Drop, ValueError):    # malformed rows are reported by read()
            pass
    return seen.most_common(1)[0][0] if seen else ("unknown", "no row is sound")


def read(path, kind):
    """(rows, malformed, counts): the rows that training would read, the errors of those it would
    refuse, and how many it would leave out, mend, or not use a field of."""
    rows, malformed, counts = [], [], Counter()
    try:
        for file in list_files(path) if kind == "text" else [path]:
            rows += read_rows(file, READERS.get(kind, prompt_only), counts, malformed)
    except DataError as error:                        # the whole file is bad, e.g. not UTF-8
        malformed.append(str(error))
    return rows, malformed, counts


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


def render(tok, ids, mask, colour):
    """The tokens as text: those with mask 1 green, or «so» without colours; special ones bold."""
    text = ""
    for marked, run in groupby(zip(ids, mask), key=lambda pair: bool(pair[1])):
        part = ""
        for special, same in groupby(run, key=lambda pair: pair[0] in tok.specials.values()):
            piece = safe(tok.decode([id for id, _ in same])).replace("\t", "\\t")
            code = ("1;" if special else "") + ("32" if marked else "36" if special else "0")
            part += paint(piece, code, colour)
        text += f"«{part}»" if marked and not colour else part
    return "    " + text.replace("\n", "\n    ")


def show_examples(kind, examples, tok, colour):
    """Print some examples. Each is a list of (ids, mask), one for each response to the same prompt,
    the best response first."""
    mark = paint("green", 32, colour) if colour else "between « and »"
    print(f"\n    as the model sees it; {mark}: {MARKED[kind]}")
    chosen = np.linspace(0, len(examples) - 1, min(EXAMPLES, len(examples)), dtype=int)
    for number, i in enumerate(chosen, 1):
        for place, (ids, mask) in enumerate(examples[i]):
            print(f"\n    example {number}" + ", a worse response" * (place > 0))
            print(render(tok, ids, mask, colour))


# ---- the four kinds -------------------------------------------------------------------------

def look_at_text(path, tok, T, colour, quiet):
    """Pretraining text, encoded in a temporary folder; returns hashes of the texts."""
    with TemporaryDirectory() as folder:
        with redirect_stderr(io.StringIO()) if quiet else nullcontext():
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
    show_examples("text", [[(row, [0] + [1] * T)] for row in rows], tok, colour)
    return texts


def look_at_dialogues(kind, rows, tok, T, config, colour):
    """Demonstrations, comparisons or prompts. PPO reads the prompts of all three; returns these."""
    demos = kind == "demonstrations"
    prompts = [row["messages"][:-1] if demos else row["prompt"] for row in rows]
    answers = [[row["messages"][-1]["content"]] if demos else row.get("responses", [])
               for row in rows]
    asked = [tok.encode_chat(prompt, reply=True)[0] for prompt in prompts]
    said = [[tok.encode(answer) + [tok.end] for answer in group] for group in answers]
    lengths = {"prompt": [*map(len, asked)], "response": [len(s) for group in said for s in group]}
    show_lengths({name: n for name, n in lengths.items() if n})

    held, keys = held_out(prompts), [*map(json.dumps, prompts)]
    both = {k for k, h in zip(keys, held) if h} & {k for k, h in zip(keys, held) if not h}
    whole = {json.dumps([prompt, group]) for prompt, group in zip(prompts, answers)}
    fact("rows", f"{len(rows):,}; {len(rows) - len(whole):,} are duplicates; {len(set(keys)):,} "
                 f"different prompts, {len(both):,} on both sides of the split")
    if demos:
        examples = look_at_demonstrations(rows, held, tok, T)
    elif kind == "comparisons":
        examples = look_at_comparisons(rows, held, said, tok, T)
    else:
        dots = tok.encode("…")
        examples = [[(ids + dots, [0] * len(ids) + [1] * len(dots))] for ids in asked]
    room = T - config.max_new_tokens - 1
    fits = [prompt for prompt, ids in zip(prompts, asked) if len(ids) <= room]
    fact("rlhf_ppo.py", split(held_out(fits), rlhf_ppo.Config.batch_size))
    fact("", f"{len(rows) - len(fits):,} left out, since the prompt has more than {room} tokens "
             f"({T} minus --max_new_tokens and the end)")
    show_examples(kind, examples, tok, colour)
    return set(keys)


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


# ---- one file -------------------------------------------------------------------------------

def look(path, config, tok, T, colour):
    """Print the facts about one file. Returns its kind, the errors for which training would refuse
    it, and its prompts or texts."""
    try:
        kind, form = identify(path)
    except DataError as error:
        return "", [str(error)], set()
    print(f"\n{path}: {'pretraining ' * (kind == 'text')}{kind} ({form})\n")
    rows, malformed, counts = read(path, kind)
    for reason in malformed[:MALFORMED]:
        fact("malformed", reason)
    if len(malformed) > MALFORMED:
        fact("", f"and {len(malformed) - MALFORMED:,} more")
    for (what, why), count in sorted(counts.items(), key=lambda both: (both[0][0], -both[1])):
        fact(what, f"{count:,} {why}")
    if not rows or kind == "text" and malformed:      # Corpus would refuse the file
        return kind, malformed, set()
    if kind != "text":
        return kind, malformed, look_at_dialogues(kind, rows, tok, T, config, colour)
    try:
        return kind, malformed, look_at_text(path, tok, T, colour, counts)
    except ValueError as error:                       # too few documents to hold one out
        fact("too few", error)
        return kind, [str(error)], set()


def main(config):
    if not config.data:
        fail("no file given: try `python -m tools.check data/town/sft.jsonl` (-h explains)")
    T = pretrain.Config.block_size
    if config.tokenizer.endswith(".pt"):
        ckpt = load_checkpoint(config.tokenizer)
        tok, T = ckpt["tokenizer"], ckpt["model_config"]["block_size"]
    else:
        tok = Tokenizer.load(config.tokenizer)
    T = config.block_size or T
    if T <= config.max_new_tokens:
        fail(f"--block_size={T} must be more than --max_new_tokens={config.max_new_tokens}")
    seen = {path: look(path, config, tok, T, has_colours()) for path in config.data.split(",")}
    for (a, (kind, _, in_a)), (b, (other, _, in_b)) in combinations(seen.items(), 2):
        if (kind == "text") == (other == "text") and (len(seen) == 2 or in_a & in_b):
            print(f"\n{len(in_a & in_b):,} {'texts' if kind == 'text' else 'prompts'} are in both "
                  f"{a} and {b}")
    refused = [reason for _, reasons, _ in seen.values() for reason in reasons]
    if refused:
        fail(refused[0] if len(refused) == 1 else
             f"{len(refused):,} malformed rows (listed above): training would refuse the data")


if __name__ == "__main__":
    main(parse_config(Config, __doc__, words="data"))
