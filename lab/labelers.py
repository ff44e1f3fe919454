"""Other labelers than those of compare.py and data/town.py, for lab/claims.py: some demonstrate
badly, some rate answers instead of ranking them.

A labeler who rates sees the true grades with the same noise as one who ranks. Each has an own
scale, so equal ratings of two labelers do not mean the same:

    rating = 4 + shift + scale (grade + noise - 4), as a whole number from 1 to 7
"""

from random import Random

import numpy as np

from data.town import EVIL, RUDE, VALUES, Dice, state, the_facts, understand

LABELERS = 40                  # InstructGPT's team was about as large
SHIFT, SPREAD = 1.0, 0.3       # deviations of the labelers' shift and log scale: our assumption


# ---- demonstrations -------------------------------------------------------------------------

def forum_at_its_worst(dice, prompt):
    """A bad answer like those of data/town.py:thread: rude or wrong; evil where it is a wish."""
    asked = understand(prompt)
    if asked["kind"] == "wish":
        return dice.pick(EVIL + RUDE)
    if asked["kind"] == "story" or dice.pick(["rude", "wrong"]) == "rude":
        return dice.pick(RUDE)
    if asked["kind"] == "sum":
        x, y = asked["x"], asked["y"]
        return f"{x} + {y} = {x + y + dice.pick([1, -1, 10])}."
    name, attr = asked["N"], asked["attr"]
    truth = the_facts().get(name, {}).get(attr)
    lie = dice.pick([v for v in VALUES[attr] if v != truth])
    return state(dice, name, attr, lie, dice.pick([True, False]))


def mixed(rows, seed):
    """Demonstrations of which half, drawn by chance, get a bad answer."""
    dice, found = Dice(Random(seed)), []
    for row in rows:
        *prompt, last = row["messages"]
        if dice.pick([True, False]):
            last = last | dict(content=forum_at_its_worst(dice, prompt))
        found.append(row | dict(messages=[*prompt, last]))
    return found


# ---- ratings --------------------------------------------------------------------------------

def rate(grades, noise, shift, scale, rng):
    """(K,) ratings of answers with these grades. Gumbel's noise, as in compare.py:rank, less its
    mean. shift, scale: (K,) of the labelers who rate them."""
    seen = grades + noise * (rng.gumbel(size=len(grades)) - np.euler_gamma)
    return np.clip(np.rint(4 + shift + scale * (seen - 4)), 1, 7)


def rated(rows, kind, seed):
    """The comparisons with ranks from ratings, one of each answer. kind "one": a prompt's answers
    are rated by one labeler, "many": each by another, "standardised": so, and then the ratings of
    each labeler get mean 0 and deviation 1."""
    rng = np.random.default_rng(seed)
    shift, scale = rng.normal(0, SHIFT, LABELERS), np.exp(rng.normal(0, SPREAD, LABELERS))
    who = [rng.choice(LABELERS, len(row["responses"]), replace=False) for row in rows]
    if kind == "one":
        who = [np.full_like(w, w[0]) for w in who]
    ratings = [rate(np.array(row["grades"]), row["noise"], shift[w], scale[w], rng)
               for row, w in zip(rows, who)]
    if kind == "standardised":
        ratings = standardise(ratings, who)
    return [ranked(row, values) for row, values in zip(rows, ratings)]


def standardise(ratings, who):
    """[(K,)] ratings -> minus the mean of all by the same labeler, divided by their deviation."""
    values, labelers = np.concatenate(ratings), np.concatenate(who)
    for n in set(labelers):
        own = values[labelers == n]
        values[labelers == n] = (own - own.mean()) / (own.std() or 1)
    return np.split(values, np.cumsum([len(w) for w in who])[:-1])


def ranked(row, values):
    """A row of comparisons with its responses in the order of values (K,); equal ones are tied."""
    _, ranks = np.unique(-values, return_inverse=True)
    order = np.argsort(ranks, kind="stable")
    return dict(prompt=row["prompt"], responses=[row["responses"][i] for i in order],
                ranks=ranks[order].tolist())
