"""Rank answers yourself: the terminal shows a model's answers, you type an order like 2>1=3.

reads   out/sft.pt, data/town/prompts.jsonl
writes  out/mine.jsonl, one line per prompt, in the format of compare.py

Every label is saved at once. You can stop at any time; the same command continues there.

    python -m tools.label
    python -m tools.label --agree=out/mine.jsonl,out/yours.jsonl     # do two people agree?
    python -m tools.label --init=out/sft.pt,out/ppo.pt --k=1 --out=out/blind.jsonl

The last command is a blind test: all the models answer each prompt, the screen does not show which
answer is whose, and the end tells how often each model was preferred.
"""

import json
import math
import random
import signal
from collections import Counter
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from unicodedata import normalize

from answer import respond
from chat import paint, safe
from checkpoint import Run, load
from common import Common, Runtime, fail, parse_config, wilson, writing
from compare import different
from data.formats import DataError, read_comparisons, read_prompts
from tools.rankings import agreement


@dataclass
class Config(Common):
    data: str = "data/town/prompts.jsonl"    # prompts
    init: str = "out/sft.pt"                 # the model that answers, or several, with commas
    out: str = "out/mine.jsonl"              # your labels; the unfinished state is saved beside it
    agree: str = ""                          # FILE,FILE: only print how often two people agree
    n_prompts: int = 6000                    # how many of the prompts to use
    k: int = 4                               # answers per prompt and model; equal ones count once
    max_new_tokens: int = 64
    temperature: float = 1.0
    batch_size: int = 512                    # answers sampled at a time


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

def ask(question):
    """The line that the user types. The end of the input and Ctrl-C count as "q". Ctrl-C works only
    during the question, so it cannot come between an answer and saving it."""
    before = signal.getsignal(signal.SIGINT)
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        return input(question).strip().lower()
    except (EOFError, KeyboardInterrupt):
        print()
        return "q"
    finally:
        signal.signal(signal.SIGINT, before)


def show(title, prompt, responses):
    texts = [f"{turn['role']}: {turn['content']}" for turn in prompt] + [""]
    texts += [f"{number:4d}  {response}" for number, response in enumerate(responses, 1)]
    print("\n" + paint(title, 1))
    for text in texts:
        print(safe(text).replace("\n", "\n      "))


def ask_ranks(question, n):
    """The ranks of n answers; [] for a skipped item; "u" for undo, "q" for quit."""
    while (line := ask(question)) not in ("u", "q"):
        try:
            return [] if line == "s" else parse_ranking(line, n)
        except ValueError as hint:
            print(hint)
    return line


def label(n, item, labels, save, name=""):
    """Ask a person about the items without a label, len(labels) to n - 1. item(i) gives a prompt
    and its responses. Their ranks are appended to labels, or [] if the item was skipped or has only
    one response; save() is called after every change. Returns whether all items are done. The order
    on the screen depends on `name`, so two people with two files see different orders."""
    while True:
        while len(labels) < n and len(item(len(labels))[1]) < 2:
            labels.append([])
        i = len(labels)
        if i < n:
            prompt, responses = item(i)
            order = random.Random(f"{name} {i}").sample(range(len(responses)), len(responses))
            show(f"{i + 1:,} of {n:,}", prompt, [responses[j] for j in order])
            answer = ask_ranks("best first, like 2>1=3; s skip, u undo, q quit: ", len(order))
        else:
            answer = ask("\nThat was the last item. Enter to finish, u to undo: ")
        if answer == "u":
            shown = [j for j in range(i) if len(item(j)[1]) > 1]
            del labels[shown[-1] if shown else 0:]
        elif i == n or answer == "q":
            return i == n
        else:
            labels.append([answer[order.index(j)] for j in range(len(answer))])
        save()


# ---- two people -----------------------------------------------------------------------------

def report_agreement(first, second):
    """One line: how often two files rank a pair the same way."""
    files = (read_comparisons(path, counts=Counter()) for path in (first, second))
    found = agreement(dict(enumerate(files)))
    pairs, same, interval = found["pairs"], found["same"], found["interval"]
    if not pairs:
        raise DataError(f"{first} and {second} have no pair of answers that both have ranked")
    return (f"both rank {pairs:,} pairs of answers (prompts: {found['prompts']:,}), {same:,} of "
            f"them the same way: {same / pairs:.1%} [{interval[0]:.1%}, {interval[1]:.1%}]; chance "
            f"is 50%")


def report_wins(rows):
    """One line per model: how often its answer was preferred to another model's; a tie, or an
    answer that both have given, counts half. rows: with `models`, the names behind each answer."""
    wins, counts = Counter(), Counter()
    for row in rows:
        ranked = [(name, rank) for names, rank in zip(row["models"], row["ranks"])
                  for name in names]
        for (a, i), (b, j) in permutations(ranked, 2):
            if a != b:
                wins[a] += 0.5 + 0.5 * ((i < j) - (i > j))
                counts[a] += 1
    return "\n".join(
        f"{name}: preferred {wins[name] / n:.1%} [{{:.1%}}, {{:.1%}}] of {n:,} times".format(
            *wilson(wins[name] / n, len(rows))) for name, n in counts.items())


if __name__ == "__main__":
    config = parse_config(Config, __doc__)
    if config.agree:
        if config.agree.count(",") != 1:
            fail(f"--agree={config.agree} must be two files, FILE,FILE")
        print(report_agreement(*config.agree.split(",")))
        raise SystemExit
    if config.fresh and Path(config.out).exists():
        fail(f"{config.out} exists, and --fresh does not delete labels: continue without --fresh, "
             f"or choose another --out")
    rt, rows = Runtime(config), read_prompts(config.data)[:config.n_prompts]
    names, prompts = config.init.split(","), [r["prompt"] for r in rows]
    run = Run(config, rt, inputs=[config.data, *names])
    run.seconds = -math.inf                           # save after every label
    models = [load(name, rt, "sft ppo pretrain")[:2] for name in names]
    answers, labels = [], []      # answers: for each prompt, k of the first model, k of the second
    run.track(answers=answers, labels=labels)
    per_prompt, block = config.k * len(models), max(1, config.batch_size // config.k)

    def item(i):
        """Prompt i and its answers, which are sampled when first needed, batch_size at a time."""
        while len(answers) < (i + 1) * per_prompt:
            print(f"{config.init} answers the next prompts ...", flush=True)
            start = len(answers) // per_prompt
            asked = [p for p in prompts[start:start + block] for _ in range(config.k)]
            theirs = [respond(*model, asked, rt, config.max_new_tokens, config.temperature,
                              config.batch_size, seed=(config.seed, start * config.k))
                      for model in models]
            for j in range(0, len(asked), config.k):
                answers.extend(answer for mine in theirs for answer in mine[j:j + config.k])
            run.save_state(len(labels))
        return rows[i]["prompt"], different(answers[i * per_prompt:(i + 1) * per_prompt])

    def behind(i, text):
        """The names of the models that gave this answer to prompt i."""
        mine = answers[i * per_prompt:(i + 1) * per_prompt]
        return sorted({names[j // config.k] for j, (said, _) in enumerate(mine)
                       if said.strip() == text.strip()})

    def save():
        """Write the state, which the next run continues from, then the file."""
        run.save_state(len(labels))
        with writing(run.out) as f:
            f.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in labeled())

    def labeled():
        for i, ranks in enumerate(labels):
            order = sorted(range(len(ranks)), key=lambda j: ranks[j])
            texts = [item(i)[1][j] for j in order]
            row = dict(rows[i], ranks=sorted(ranks), responses=texts)
            if len(names) > 1:
                row["models"] = [behind(i, text) for text in texts]
            if ranks:
                yield row

    if labels:
        save()                                        # the last run may have ended before the file
    done = label(len(rows), item, labels, save, name=config.out)
    print(f"{run.out}: {sum(map(bool, labels)):,} labeled, {labels.count([]):,} left out")
    if len(names) > 1:
        print(report_wins(list(labeled())))
    run.finish() if done else print("the same command continues from here")
