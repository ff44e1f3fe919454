"""What people have ranked, on view.page or with tools.label, and how often they agree."""

import hashlib
import json
import math
import os
import random
import shlex
import threading
import time
from collections import Counter
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import Literal

from checkpoint import read_rows
from common import wilson, writing
from data.dialects import string, unjudged
from data.formats import dense_ranks, read_comparisons

MAX_PEOPLE, MAX_ITEMS = 200, 100
SAID = "ranks", "ratings", "boxes"                    # of each answer to an item
BOXES = Literal["wrong", "unfriendly", "breaks off", "invents"]


def stamp(path):
    """Changes when a file is written or replaced; None while there is none."""
    try:
        found = os.stat(path)
        return found.st_mtime_ns, found.st_size, found.st_ino
    except FileNotFoundError:
        return None


def key_of(row):
    """The same for the same prompt and answers, in whatever order they stand."""
    text = json.dumps([row["prompt"], sorted(row["responses"])])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def verdicts(rows):
    """{(prompt, a, b): whether a is better than b} for all pairs of answers that are not tied."""
    found = {}
    for row in rows:
        ranked = sorted(zip(row["responses"], row["ranks"]))
        found |= {(json.dumps(row["prompt"]), a, b): i < j
                  for (a, i), (b, j) in combinations(ranked, 2) if i != j}
    return found


def agreement(by):
    """How often two people rank a pair of answers the same way. by: {name: rows}. Pairs of one
    prompt are not independent, so the interval counts prompts: it may be too wide, but never too
    narrow."""
    votes = {}                                        # {pair: how many have it in which order}
    for rows in by.values():
        for pair, first in verdicts(rows).items():
            votes.setdefault(pair, Counter())[first] += 1
    pairs = sum(math.comb(seen.total(), 2) for seen in votes.values())
    same = sum(math.comb(n, 2) for seen in votes.values() for n in seen.values())
    prompts = len({prompt for (prompt, *_), seen in votes.items() if seen.total() > 1})
    return dict(people={who: len(rows) for who, rows in by.items()}, pairs=pairs, same=same,
                prompts=prompts, interval=wilson(same / pairs, prompts) if pairs else None)


def habits(rows, items):
    """How one person ranks: of the pairs that are not tied, how often the better one has the higher
    true grade (judge), is longer, was shown first, with the interval of each share; None without
    such a pair. items: {key: row}, with grades or without."""
    seen = dict(judge=[], longer=[], first=[])
    for row in rows:
        item, texts = items.get(key_of(row), {}), row["responses"]
        grade = dict(zip(item.get("responses", []), item.get("grades", [])))
        values = dict(judge=[grade.get(text, 0) for text in texts], longer=[*map(len, texts)],
                      first=[-place for place in row.get("places", [0] * len(texts))])
        for a, b in combinations(range(len(texts)), 2):               # the best stands first
            for what, value in values.items():
                if row["ranks"][a] < row["ranks"][b] and value[a] != value[b]:
                    seen[what].append((value[a] > value[b], key_of(row)))
    result = dict.fromkeys(seen)
    for what, found in seen.items():
        if found:
            share, prompts = sum(yes for yes, _ in found) / len(found), {key for _, key in found}
            low, high = wilson(share, len(prompts))   # as in `agreement`
            result[what] = dict(share=share, low=low, high=high, pairs=len(found))
    return result


def unless_known(read):
    """read(path), which is done again only when the file has changed."""
    cached = lru_cache(maxsize=2)(lambda path, version: read(path))
    return lambda path: cached(path, stamp(path))


@unless_known
def read_items(path):
    """{key: row}"""
    rows = read_comparisons(path)[:MAX_ITEMS] if path.exists() else []
    return {key_of(row): row for row in rows}


@unless_known
def read_rankings(path):
    """{(name, key): row}"""
    try:
        found = {}
        for row in read_rows(path):                   # a person may find all answers equal
            dense_ranks(row["ranks"], len([string(r, "a response") for r in row["responses"]]))
            found[string(row["labeler"], "labeler"), key_of(row)] = row
    except (KeyError, TypeError, ValueError):
        found = {}
    if not found and path.exists() and path.stat().st_size:
        raise ValueError(f"{path} has other rows than rankings: move it away")
    return found


def shown(name, key, item):
    """The answers of an item in the order in which this person sees them."""
    return random.Random(f"{name} {key}").sample(item["responses"], len(item["responses"]))


def ranked(item, responses, ranks, labeler, **columns):
    """The item with its answers from the best to the worst. ranks, and what else was said, in the
    order of these responses. places: where each of them stood when it was ranked."""
    order = sorted(range(len(ranks)), key=ranks.__getitem__)
    columns = dict(columns, responses=responses, ranks=ranks)
    return dict(item, labeler=labeler, time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                places=order, **{name: [x[i] for i in order] for name, x in columns.items()})


def save(path, rankings):
    with writing(path) as f:
        f.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rankings.values())


class Rankings:
    """The first comparisons of a folder, whose answers people rank, and the file with all rankings,
    which is the truth: what another program adds to it is not lost. What is wrong raises a
    ValueError with one line."""

    def __init__(self, folder):
        self.folder, self.lock = Path(folder), threading.Lock()
        self.source, self.out = self.folder / "comparisons.jsonl", self.folder / "class.jsonl"
        read_items(self.source), read_rankings(self.out)

    def of(self, name):
        """All items, each with its answers in this person's order, and what they got."""
        rows, found = read_rankings(self.out), []
        for key, item in read_items(self.source).items():
            row, responses = rows.get((name, key), {}), shown(name, key, item)
            at = [row["responses"].index(text) for text in responses] if row else []
            said = {what: [row[what][i] for i in at] for what in SAID if what in row}
            found.append(dict(key=key, prompt=item["prompt"], responses=responses, **said))
        return found

    def add(self, name, key, ranks, ratings, boxes):
        """Save at once what this person says of the answers to an item, as they see them: for each
        a rank, a rating from 1 to 7, and the boxes that they tick."""
        item = read_items(self.source).get(key)
        if not item:
            raise ValueError("this item is no longer there: please reload the page")
        n = len(item["responses"])
        if len(ranks) != n or {*ranks} != {*range(max(ranks) + 1)}:
            raise ValueError(f"{n} ranks from 0 are needed, without gaps")
        if len(ratings) != n or len(boxes) != n:
            raise ValueError(f"{n} ratings and lists of boxes are needed")
        row = ranked(unjudged(item), shown(name, key, item), ranks, name, ratings=ratings,
                     boxes=boxes)
        with self.lock:
            rows = read_rankings(self.out) | {(name, key): row}
            if len({name for name, _ in rows}) > MAX_PEOPLE:
                raise ValueError(f"there are {MAX_PEOPLE} people already")
            save(self.out, rows)

    def summary(self):
        """How often people agree, the habits of each, and the command that learns from them."""
        by, items = {}, read_items(self.source)
        for (who, _), row in read_rankings(self.out).items():
            by.setdefault(who, []).append(row)
        return agreement(by) | dict(command=self.command(), habits={
            who: habits(rows, items) for who, rows in by.items()})

    def command(self):
        """The command that trains a reward model on the file."""
        words = ["python", "reward.py", f"--data={self.out}", "--held_out=0.2",
                 f"--out={self.out.with_name('class_reward.pt')}"]
        if str(self.folder) != "out":
            words += [f"--init={self.folder}/sft.pt", f"--lm={self.folder}/sft.pt"]
        if len(read_rankings(self.out)) < 64:         # fewer than the default batch needs
            words += ["--batch_size=4", "--micro_batch=4"]
        return shlex.join(words)
