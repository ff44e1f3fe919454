"""Plumbing of the lessons: what they read, and how a policy answers held-out prompts."""

from dataclasses import dataclass

import numpy as np
import torch

from common import fail, get_scores, load_function
from data.town import World, the_facts
from evaluate import answer, cell, groups_of, interval, measure
from model import ScalarGPT
from reward import score_all


@dataclass
class Watched:
    """A policy's answers to held-out prompts. figures: grade, kl, length, ended, and score where
    there is a reward; grades: the true grade of each, (N,); groups: what each prompt is about."""
    figures: dict
    grades: torch.Tensor
    groups: list


def score(rows, replies, texts, reward, tok, rt, config):
    """(N,): what a ScalarGPT, or a function of prompts and texts, thinks of the answers; less where
    one has no end."""
    endless = [reply[-1] != tok.end for reply in replies]
    if isinstance(reward, ScalarGPT):                 # it has read only answers that end
        scores = score_all(reward, [row["ids"] + reply + [tok.end] * e
                                    for row, reply, e in zip(rows, replies, endless)], tok, rt)
    else:
        scores = get_scores(reward, [row["prompt"] for row in rows], texts, config.reward)
    return scores - config.missing_end * torch.tensor(endless)


def watch(policy, reference, rows, tok, rt, config, reward=None):
    """Answer the rows' prompts -> Watched."""
    said = answer(policy, False, tok, [row["ids"] for row in rows], config.temperature, rt, config)
    found = measure(policy, reference, tok, said, rt, config)
    prompts = [row["prompt"] for row in rows]
    grades = get_scores(load_function(config.watch), prompts, said.texts, config.watch)
    figures = {name: float(found[name]) for name in ("kl", "length", "ended")}
    if reward is not None:
        scores = score(rows, said.replies, said.texts, reward, tok, rt, config)
        figures["score"] = scores.mean().item()
    return Watched(dict(grade=grades.mean().item(), **figures), grades, groups_of(rows))


def of_the_town(rows, kinds, place):
    """The rows of these kinds, of each at least one. Only files of the town name a row's kind."""
    rows = [row for row in rows if row.get("kind") in kinds]
    for kind in kinds:
        if not any(row["kind"] == kind for row in rows):
            fail(f"{place} has no row of the kind {kind}: this lesson needs {', '.join(kinds)}, as "
                 f"in the files that data/town.py writes")
    return rows


def load_world(seed):
    """The town of a seed, if it is the one in data/town: the judge and the text know no other."""
    world = World(seed)
    if world.facts != the_facts():
        fail(f"--town={seed} is not the town in data/town: give the seed that made it")
    return world


def check_room(tok, prompts, T, max_new_tokens, place):
    """The longest of the prompts and an answer must fit: one that is cut is another question."""
    longest = max(len(tok.encode_chat(prompt, reply=True)[0]) for prompt in prompts)
    if longest + max_new_tokens > T:
        fail(f"{place} reads {T} tokens, but this lesson needs {longest + max_new_tokens}: for a "
             f"question {longest}, for its answer {max_new_tokens}")


def show(columns, more=()):
    """Print what was watched, {name: Watched}, in columns; more: [(label, [a cell of each])]."""
    rng, labels = np.random.default_rng(0), dict(score="reward", kl="KL from the reference (nats)",
                                                 length="length (tokens)")
    lines = [("true grade, 1 to 7", [cell(interval(w.grades, w.groups, rng))
                                      for w in columns.values()])]
    for name, label in labels.items():
        found = [w.figures.get(name) for w in columns.values()]
        if found[-1] is not None:
            lines.append((label, [cell(value) for value in found]))
    print(f"\n{len(next(iter(columns.values())).grades)} held-out prompts")
    for label, cells in [("", columns), *lines, *more]:
        print(f"{label:46}" + "".join(f"{c:>19}" for c in cells))
