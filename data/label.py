"""Labels by hand: the terminal shows answers and takes a ranking, and two people are compared.

`python compare.py --labeler=human` and `--agree=FILE,FILE` come here. All input is lines and all
output is text, so that a pipe can play the person.
"""

import json
import os
import random
import signal
import sys
from collections import Counter
from itertools import combinations
from unicodedata import normalize

from data.formats import DataError, read_comparisons

Z = 1.96  # deviations on either side that hold 95% of a normal distribution


def example(n):
    """A ranking of n answers, for those who ask how: 2>1=3>4."""
    return "2>1" + "".join(f"{'=' if i == 3 else '>'}{i}" for i in range(3, n + 1))


def parse_ranking(text, n):
    """The rank of each of n answers, 0 the best: "2>1=4>3", 4 -> [1, 0, 2, 1]. A ValueError says
    in a few words what is wrong."""
    # NFKC: a Chinese or Japanese keyboard writes ＞, ＝ and ２
    groups = [group.split("=") for group in normalize("NFKC", text).split(">")]
    names = [name.strip() for group in groups for name in group]
    if not all(name.isdecimal() for name in names):
        raise ValueError(f"please write > for better and = for as good, like {example(n)}")
    ranks = {}
    for rank, group in enumerate(groups):
        for number in map(int, group):
            if not 1 <= number <= n:
                raise ValueError(f"there is no answer {number}, only 1 to {n}")
            if number in ranks:
                raise ValueError(f"{number} is there twice")
            ranks[number] = rank
    missing = [str(number) for number in range(1, n + 1) if number not in ranks]
    if missing:
        raise ValueError(f"{', '.join(missing)} missing: all {n} answers need a place")
    return [ranks[number] for number in range(1, n + 1)]


# -----------------------------------------------------------------------------
# the terminal

def ask(question):
    """A line. The end of the input and Ctrl-C are "q"; Ctrl-C counts only while we wait, so that it
    can't fall between an answer and its saving."""
    before = signal.getsignal(signal.SIGINT)
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        return input(question).strip().lower()
    except (EOFError, KeyboardInterrupt):
        print()
        return "q"
    finally:
        signal.signal(signal.SIGINT, before)


def visible(text, indent):
    """A model of bytes can write ESC, and with it whatever a terminal obeys: it becomes \\x1b."""
    text = "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)
    return text.replace("\n", "\n" + " " * indent)


def show(title, prompt, responses):
    plain = os.environ.get("NO_COLOR") or not sys.stdout.isatty()
    bold = "{}" if plain else "\033[1m{}\033[0m"
    print("\n" + bold.format(title))
    for turn in prompt:
        print(f"{turn['role']}: {visible(turn['content'], 4)}")
    print()
    for number, response in enumerate(responses, 1):
        print(f"{bold.format(f'{number:4d}')}  {visible(response, 6)}")


def ask_ranks(question, n):
    """The ranks of n answers, [] if the item is skipped; or "u" or "q"."""
    while (line := ask(question)) not in ("u", "q"):
        try:
            return [] if line == "s" else parse_ranking(line, n)
        except ValueError as hint:
            print(hint)
    return line


def label(n, item, labels, save, name=""):
    """Ask a person about the items that have no label yet, len(labels) to n - 1; item(i) gives a
    prompt and its responses. labels grows by the responses' ranks, or [] for an item that was
    skipped or leaves no choice; save() is called whenever it has changed. Returns whether all is
    done. The order on the screen hangs on `name`: two people with two files see two orders."""
    while True:
        while len(labels) < n and len(item(len(labels))[1]) < 2:
            labels.append([])
        i = len(labels)
        if i < n:
            prompt, responses = item(i)
            order = random.Random(f"{name} {i}").sample(range(len(responses)), len(responses))
            show(f"{i + 1:,} of {n:,}", prompt, [responses[j] for j in order])
            answer = ask_ranks(f"best first, like {example(len(order))}; s skip, u undo, q stop: ",
                               len(order))
        else:
            answer = ask("\nThat was the last one. Enter to finish, u to undo: ")
        if answer == "u":
            shown = [j for j in range(i) if len(item(j)[1]) > 1]
            del labels[shown[-1] if shown else 0:]
        elif i == n or answer == "q":
            return i == n
        else:
            labels.append([answer[order.index(j)] for j in range(len(answer))])
        save()


# -----------------------------------------------------------------------------
# two people

def verdicts(path):
    """{(prompt, a, b): whether a is better than b}, for all pairs of answers that are not tied."""
    found = {}
    for row in read_comparisons(path, dropped=Counter()):
        ranked = sorted(zip(row["responses"], row["ranks"]))
        found |= {(json.dumps(row["prompt"]), a, b): i < j
                  for (a, i), (b, j) in combinations(ranked, 2) if i != j}
    return found


def wilson(share, n):
    """95% interval of a share that was seen in n independent draws (Wilson 1927)."""
    middle = (share + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * (share * (1 - share) / n + Z * Z / (4 * n * n)) ** 0.5
    return max(middle - half, 0.0), min(middle + half, 1.0)


def report_agreement(first, second):
    """A line on how often two files rank a pair the same way. The pairs of one prompt are not
    independent draws, so the interval counts prompts: wide, but never too narrow."""
    a, b = verdicts(first), verdicts(second)
    both = a.keys() & b.keys()
    if not both:
        raise DataError(f"{first} and {second} have no pair of answers that both rank")
    same, prompts = sum(a[pair] == b[pair] for pair in both), len({prompt for prompt, *_ in both})
    low, high = wilson(same / len(both), prompts)
    return (f"both rank {len(both):,} pairs of answers (prompts: {prompts:,}), {same:,} of them "
            f"the same way: {same / len(both):.1%} [{low:.1%}, {high:.1%}]; chance is 50%")
