"""Rank answers yourself: the terminal shows a model's answers, you type an order like 2>1=3.

reads   out/sft.pt, data/town/prompts.jsonl
writes  out/mine.jsonl, one line per prompt, in the format of compare.py

Every label is saved at once. You can stop at any time; the same command continues there.

    python -m tools.label
    python -m tools.label --agree=out/mine.jsonl,out/yours.jsonl     # do two people agree?
    python -m tools.label --init=out/sft.pt,out/ppo.pt --k=1 --out=out/blind.jsonl

The last command is a blind test: all the models answer each prompt, the screen does not show which
answer is whose, and the end tells how often each model was preferred, and how many prompts would be
enough to tell that from half of them. Where all say the same, nobody is asked.
"""

import json
import math
from collections import Counter
from dataclasses import dataclass, replace
from itertools import chain, permutations
from pathlib import Path
from unicodedata import normalize

from chat import paint, safe
from checkpoint import load
from common import Runtime, check_writable, fail, parse_config, percent
from compare import different
from data.formats import DataError, read_comparisons, read_prompts
from evaluate import answer, model_input
from tools.rankings import agreement, key_of, ranked, read_rankings, save, shown


@dataclass
class Config:
    data: str = "data/town/prompts.jsonl"    # prompts
    init: str = "out/sft.pt"                 # the model that answers, or several, with commas
    out: str = "out/mine.jsonl"              # your labels
    agree: str = ""                          # FILE,FILE: only print how often two people agree
    n_prompts: int = 3000                    # how many of the prompts to use
    k: int = 4                               # answers per prompt and model; equal ones count once
    max_new_tokens: int = 64
    temperature: float = 1.0
    seed: int = 0
    device: str = "auto"                     # auto: cuda, else cpu; mps when asked
    dtype: str = "auto"                      # auto: bfloat16 where it is fast, else float32
    debug: bool = False                      # show tracebacks


# ---- rankings -------------------------------------------------------------------------------

def parse_ranking(text, n):
    """The rank of each of n answers, 0 is the best: "2>1=4>3", 4 -> [1, 0, 2, 1]. Raises a
    ValueError with a short hint if the text is not a ranking."""
    # NFKC turns ＞, ＝ and ２, which Chinese and Japanese keyboards write, into >, = and 2
    groups = [group.split("=") for group in normalize("NFKC", text).split(">")]
    ranks = {name.strip(): rank for rank, group in enumerate(groups) for name in group}
    wanted = [str(number) for number in range(1, n + 1)]
    if ranks.keys() != {*wanted} or sum(map(len, groups)) != n:
        raise ValueError(f"rank all answers from 1 to {n}, each once: > for better, = for equally "
                         f"good, like 2>1=3")
    return [ranks[number] for number in wanted]


# ---- the terminal ---------------------------------------------------------------------------

def show(title, prompt, responses):
    texts = [f"{turn['role']}: {turn['content']}" for turn in prompt] + [""]
    texts += [f"{number:4d}  {response}" for number, response in enumerate(responses, 1)]
    print("\n" + paint(title, 1))
    for text in texts:
        print(safe(text).replace("\n", "\n      "))


def ask_ranks(n):
    """The ranks of n answers that the user types; [] for a skipped item; "u" for undo, "q" for
    quit, which the end of the input and Ctrl-C are, too."""
    short = {"1": "1>2", "2": "2>1", "=": "1=2"} if n == 2 else {}
    how = "the better one, 1 or 2, or =" if short else "best first, like 2>1=3"
    while True:
        try:
            line = input(f"{how}; s skip, u undo, q quit: ").strip().lower()
            line = short.get(line, line)
            return line if line in ("u", "q") else [] if line == "s" else parse_ranking(line, n)
        except ValueError as hint:
            print(hint)
        except (EOFError, KeyboardInterrupt):
            print()
            return "q"


def label(items, out):
    """Ask a person about each of the items: (title, row), whose answers are in no order yet. Each
    ranking is added to the file at once; a skipped item is asked again by the next command. The
    order on the screen depends on `out`: two people with two files see different ones."""
    past, todo = [], []           # items of this session, and those of them to be asked again
    while item := todo.pop() if todo else next(items, None):
        title, row = item
        responses = shown(out, key_of(row), row)
        show(title, row["prompt"], responses)
        answer = ask_ranks(len(responses))
        if answer == "q":
            return
        if answer == "u":
            todo += [item, *past[-1:]]
            undone = out.stem, key_of(todo[-1][1])
            past = past[:-1]
            save(out, {key: row for key, row in read_rankings(out).items() if key != undone})
        else:
            past.append(item)
            if answer:
                ranking = ranked(row, responses, answer, out.stem)
                save(out, read_rankings(out) | {(out.stem, key_of(row)): ranking})


# ---- two people -----------------------------------------------------------------------------

def report_agreement(first, second):
    """One line: how often two files rank a pair the same way."""
    found = agreement(dict(enumerate(map(read_comparisons, (first, second)))))
    pairs, same, prompts = found["pairs"], found["same"], found["prompts"]
    if not pairs:
        raise DataError(f"{first} and {second} have no pair of answers that both have ranked")
    return (f"both rank {pairs:,} pairs of answers (prompts: {prompts:,}), {same:,} of them the "
            f"same way: {percent(same / pairs, prompts)}; chance is 50%")


def report_wins(rows):
    """One line per model: how often its answer was preferred to another model's; a tie, or an
    answer that both have given, counts half. rows: with `models`, {answer: who has given it}."""
    wins, counts = Counter(), Counter()
    for row in rows:
        ranked = [(name, rank) for text, rank in zip(row["responses"], row["ranks"])
                  for name in row["models"][text]]
        for (a, i), (b, j) in permutations(ranked, 2):
            if a != b:
                wins[a] += 0.5 + 0.5 * ((i < j) - (i > j))
                counts[a] += 1
    lines = [f"{name}: preferred {percent(wins[name] / n, len(rows))} of {n:,} times"
             for name, n in counts.items()]
    shares = {abs(wins[name] / n - 0.5) for name, n in counts.items()}
    if len(counts) == 2 and max(shares):
        lines.append(f"to tell this from 50%, about {enough(0.5 + max(shares)):,} prompts are "
                     f"enough in four of five such tests; you have {len(rows):,}")
    return "\n".join(lines)


def enough(share):
    """So many prompts that the interval of a win rate leaves out 50% in 80% of all tests, if the
    true rate is this one: the two deviations of a test at 5% (1.96) and of its power (0.84)."""
    sigma = math.sqrt(share * (1 - share))
    return math.ceil(((1.96 * 0.5 + 0.84 * sigma) / (share - 0.5)) ** 2)


# ---- the models' answers --------------------------------------------------------------------

def answered(rows, done, models, rt, config):
    """Yield (title, row) for each prompt that is not done, with the different answers of the
    models: the same ones in every session."""
    for i, row in enumerate(rows):
        if (key := json.dumps(row["prompt"])) in done:
            continue
        done.add(key)                                 # the file may have it twice
        said = {}
        for name, (model, tok, base) in models.items():
            ids = model_input(model, base, tok, [row] * config.k, [], config.max_new_tokens)
            found = answer(model, base, tok, ids, config.temperature, rt,
                           replace(config, seed=(config.seed, i)))
            said[name] = [*zip(found.texts, found.ended)]
        row = dict(row, responses=different(chain(*said.values())))
        if len(models) > 1:                           # whose answer is it? equal ones have several
            row["models"] = {text: [name for name, theirs in said.items()
                                    if text.strip() in (other.strip() for other, _ in theirs)]
                             for text in row["responses"]}
        if len(row["responses"]) > 1:
            yield f"{i + 1:,} of {len(rows):,}", row


if __name__ == "__main__":
    config = parse_config(Config, __doc__)
    if config.agree:
        if config.agree.count(",") != 1:
            fail(f"--agree={config.agree} must be two files, FILE,FILE")
        print(report_agreement(*config.agree.split(",")))
        raise SystemExit
    rt, out = Runtime(config), Path(config.out)
    rows = read_prompts(config.data)[:config.n_prompts]
    check_writable(out)
    done = {json.dumps(row["prompt"]) for (name, _), row in read_rankings(out).items()
            if name == out.stem}
    models = {}
    for name in config.init.split(","):
        model, tok, history = load(name, rt, "sft ppo pretrain")
        models[name] = model, tok, history[-1]["stage"] == "pretrain"
    label(answered(rows, done, models, rt, config), out)
    rankings = read_rankings(out).values()
    print(f"{out}: {len(rankings):,} labeled; the same command continues from here")
    if len(models) > 1:
        print(report_wins([row for row in rankings if "models" in row]))
