"""Stage 3a of 4, collecting comparisons: sample several answers to each prompt and rank them.

reads   out/sft.pt, data/town/prompts.jsonl
writes  out/comparisons.jsonl, a line per prompt: prompt, responses (best first), ranks

The labelers are simulated: each ranks by the town's true grade (data/town.py:grade) plus noise.
With noise from Gumbel's distribution, the preference between two answers follows Bradley and Terry:

    P(a is ranked above b) = sigmoid((grade(a) - grade(b)) / noise)

`noise` is set so that two labelers agree on 73% of pairs, as InstructGPT's did. So even a perfect
reward model agrees with only some of the labels. This share, the ceiling, is printed.

laptop   python compare.py
a second round, from PPO's model   python compare.py --init=out/ppo.pt --out=out/round2.jsonl
rank the answers yourself          python -m tools.label
"""

import json
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from answer import respond
from checkpoint import Run, load
from common import (Common, Runtime, fail, get_scores, load_function, parse_config, say,
                    writing)
from data.formats import distinct, read_prompts


# ---- config ---------------------------------------------------------------------------------

@dataclass
class Config(Common):
    data: str = "data/town/prompts.jsonl"    # prompts
    init: str = "out/sft.pt"                 # the model that answers
    out: str = "out/comparisons.jsonl"
    n_prompts: int = 3000                    # how many of the prompts to use
    k: int = 4                               # answers per prompt; equal ones count once
    max_new_tokens: int = 64
    temperature: float = 0.8
    labeler: str = "data/town.py:grade"      # FILE.py:function(prompts, responses) -> grades
    agreement: float = 0.73                  # how often two labelers agree on a pair
    batch_size: int = 512                    # answers sampled at a time


# ---- the idea -------------------------------------------------------------------------------

def different(answers):
    """[(text, ended)] -> the different texts, without empty ones."""
    texts = [text for text, _ in answers if text.strip()]
    return [texts[i] for i in distinct(texts)]


def agreement(differences, noise):
    """How often two labelers give a pair the same order: mean of p^2 + (1 - p)^2."""
    p = 1 / (1 + np.exp(-np.clip(differences / noise, -50, 50)))
    return np.mean(p * p + (1 - p) * (1 - p))


def ceiling(differences):
    """How often a labeler ranks a pair in the true order: the best accuracy that such labels allow.
    differences: of the true grades, divided by the noise."""
    return np.mean(1 / (1 + np.exp(-np.abs(differences))))


def find_noise(differences, target):
    """The noise at which two labelers agree on `target` of the pairs, by bisection."""
    low, high = 1e-3, 1e3
    for _ in range(60):
        noise = (low * high) ** 0.5
        low, high = (noise, high) if agreement(differences, noise) > target else (low, noise)
    return noise


def rank(grades, noise, rng):
    """One labeler's order of the responses, best first: sort by grade + Gumbel noise."""
    utility = np.array(grades) / noise + rng.gumbel(size=len(grades))
    return np.argsort(-utility).tolist()


if __name__ == "__main__":
    # ---- setup ------------------------------------------------------------------------------

    config = parse_config(Config, __doc__)
    rt = Runtime(config)
    run = Run(config, rt, inputs=[config.data, config.init, config.labeler])
    labeler = load_function(config.labeler)
    model, tok, _ = load(config.init, rt, "sft ppo pretrain")

    # ---- sample k answers to each prompt ----------------------------------------------------

    rows, answers = read_prompts(config.data)[:config.n_prompts], []
    prompts, tried = [r["prompt"] for r in rows for _ in range(config.k)], None
    run.track(answers=answers)
    for start in run.steps(len(prompts), by=config.batch_size, unit="answer"):
        answers += respond(model, tok, prompts[start:start + config.batch_size], rt,
                           config.max_new_tokens, config.temperature, config.batch_size,
                           seed=(config.seed, start))
        texts = different(answers[:config.k])
        if texts and tried is None:                   # a labeler that fails is told now, not later
            tried = get_scores(labeler, prompts[:1] * len(texts), texts, config.labeler)

    # ---- the labelers rank them -------------------------------------------------------------

    for i, row in enumerate(rows):
        row["responses"] = different(answers[i * config.k:(i + 1) * config.k])
    ended = sum(e for _, e in answers) / len(answers)
    few = sum(len(r["responses"]) < 2 for r in rows)
    rows = [r for r in rows if len(r["responses"]) > 1]
    if not rows:
        fail(f"{config.init} gave no two different answers to any prompt: nothing to compare (--k="
             f"{config.k} at --temperature={config.temperature})")
    flat = [(r["prompt"], text) for r in rows for text in r["responses"]]
    scores = iter(get_scores(labeler, *map(list, zip(*flat)), config.labeler).tolist())
    for row in rows:
        row["grades"] = [next(scores) for _ in row["responses"]]
    gaps = np.array([a - b for r in rows for a, b in combinations(r["grades"], 2)])
    noise = find_noise(gaps, config.agreement)
    rng, agreed = np.random.default_rng(config.seed), []
    for row in rows:
        first, second = (rank(row["grades"], noise, rng) for _ in range(2))
        agreed += [(first.index(a) < first.index(b)) == (second.index(a) < second.index(b))
                   for a, b in combinations(range(len(first)), 2)]
        row["responses"] = [row["responses"][i] for i in first]
        # for the analysis only; the reward model never reads them
        row["grades"] = [row["grades"][i] for i in first]
        row.update(ranks=list(range(len(first))), noise=noise)

    # ---- save -------------------------------------------------------------------------------

    with writing(run.out) as f:
        f.writelines(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)
    print(f"{len(rows):,} prompts, {len(flat):,} different answers, {len(gaps):,} pairs; "
          f"{few:,} prompts left out, all answers being equal; {100 * ended:.1f}% ended by "
          f"themselves")
    print(f"two labelers agreed on {100 * np.mean(agreed):.1f}% of pairs; the best possible "
          f"accuracy on such labels is {100 * ceiling(gaps / noise):.1f}%")
    print(f"mean grade {np.mean([g for r in rows for g in r['grades']]):.2f}; for example:")
    row = next((r for r in rows if len(r["responses"]) == config.k), rows[0])
    say(f"    {row['prompt'][-1]['content']}")
    for place, (text, g) in enumerate(zip(row["responses"], row["grades"])):
        say(f"    {place + 1}. {text}   ({g:.1f})")
    run.finish()
