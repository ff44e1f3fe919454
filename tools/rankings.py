"""What people have ranked, on view.page or with tools.label, and how often they agree."""

import hashlib
import json
import os
import random
import shlex
import threading
from collections import Counter
from itertools import combinations
from pathlib import Path

from checkpoint import read_rows
from common import wilson, writing
from data.dialects import string, unjudged
from data.formats import dense_ranks, read_comparisons

MAX_PEOPLE, MAX_ITEMS = 200, 100


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
    """How often two people rank a pair of answers the same way: all together, and each person with
    all others. by: {name: rows}. Pairs of one prompt are not independent, so the interval counts
    prompts: it may be too wide, but never too narrow."""
    given, votes = {who: verdicts(rows) for who, rows in by.items()}, {}
    for found in given.values():
        for pair, first in found.items():
            votes.setdefault(pair, Counter())[first] += 1
    people = [dict(name=who, items=len(by[who]),
                   pairs=sum(votes[pair].total() - 1 for pair in found),
                   same=sum(votes[pair][first] - 1 for pair, first in found.items()))
              for who, found in given.items()]
    pairs, same = (sum(p[name] for p in people) // 2 for name in ("pairs", "same"))
    prompts = len({prompt for (prompt, *_), seen in votes.items() if seen.total() > 1})
    return dict(people=people, pairs=pairs, same=same, prompts=prompts,
                interval=wilson(same / pairs, prompts) if pairs else None)


class Rankings:
    """The items, and the file with all rankings: {(name, key): row}. The file is the truth: it is
    read again when it has changed. What is wrong raises a ValueError with one line."""

    def __init__(self, folder):
        """People rank the answers of its first comparisons."""
        self.folder = Path(folder)
        self.source, self.out = self.folder / "comparisons.jsonl", self.folder / "class.jsonl"
        self.lock, self.cached = threading.Lock(), {}
        self.items(), self.rows()

    def latest(self, name, path, read):
        """What read() makes of a file; it is called again only when the file has changed."""
        now = stamp(path)
        if name not in self.cached or self.cached[name][0] != now:
            self.cached[name] = now, read()
        return self.cached[name][1]

    def items(self):
        """{key: row}, without what others thought of the answers."""
        return self.latest("items", self.source, self.read_items)

    def rows(self):
        return self.latest("rows", self.out, self.read_rows)

    def agreement(self):
        return self.latest("agreement", self.out, self.count)

    def read_items(self):
        if not self.source.exists():
            return {}
        rows = read_comparisons(self.source, counts=Counter())[:MAX_ITEMS]
        return {key_of(row): unjudged(row) for row in rows}

    def read_rows(self):
        try:
            found = {}
            for row in read_rows(self.out):           # a person may find all answers equal
                dense_ranks(row["ranks"], len([string(r, "a response") for r in row["responses"]]))
                found[string(row["labeler"], "labeler"), key_of(row)] = row
        except (KeyError, TypeError, ValueError):
            found = {}
        if not found and self.out.exists() and self.out.stat().st_size:
            raise ValueError(f"{self.out} is not a file of this page: move it away")
        return found

    def shown(self, name, key):
        """The answers of an item in the order in which this person sees them."""
        responses = self.items()[key]["responses"]
        return random.Random(f"{name} {key}").sample(responses, len(responses))

    def of(self, name):
        """All items in this person's order, with the ranks that the person gave. Every ten are
        shuffled among themselves: people who stop early have ranked the same ones nevertheless."""
        items, rows, found = self.items(), self.rows(), []
        places = {key: (i // 10, random.Random(f"{name} {i}").random())
                  for i, key in enumerate(items)}
        for key in sorted(places, key=places.get):
            row, shown = rows.get((name, key)), self.shown(name, key)
            ranks = row and dict(zip(row["responses"], row["ranks"]))
            found.append(dict(key=key, prompt=items[key]["prompt"], responses=shown,
                              ranks=ranks and [ranks[r] for r in shown]))
        return found

    def add(self, name, key, ranks):
        """Save one ranking at once. ranks: one for each answer, as this person sees them."""
        if key not in self.items():
            raise ValueError("this item is no longer there: please reload the page")
        shown = self.shown(name, key)
        if len(ranks) != len(shown) or {*ranks} != {*range(max(ranks) + 1)}:
            raise ValueError(f"{len(shown)} ranks from 0 are needed, without gaps")
        order = sorted(range(len(ranks)), key=lambda j: ranks[j])
        row = dict(self.items()[key], responses=[shown[j] for j in order], ranks=sorted(ranks),
                   labeler=name)
        with self.lock:
            rows = self.rows() | {(name, key): row}
            if len({name for name, _ in rows}) > MAX_PEOPLE:
                raise ValueError(f"there are {MAX_PEOPLE} people already")
            with writing(self.out) as f:
                f.writelines(json.dumps(r, ensure_ascii=False) + "\n" for r in rows.values())

    def count(self):
        by = {}
        for (who, _), row in self.rows().items():
            by.setdefault(who, []).append(row)
        return agreement(by)

    def command(self):
        """The command that trains a reward model on the file."""
        words = ["python", "reward.py", f"--data={self.out}", "--held_out=0.2",
                 f"--out={self.out.with_name('class_reward.pt')}"]
        if str(self.folder) != "out":
            words += [f"--init={self.folder}/sft.pt", f"--lm={self.folder}/sft.pt"]
        if len(self.rows()) < 64:                     # fewer than the default batch needs
            words += ["--batch_size=4", "--micro_batch=4"]
        return shlex.join(words)
