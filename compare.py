"""Stage 3a of 4, collecting comparisons: sample several answers to each prompt and rank them.

reads   out/sft.pt, data/town/prompts.jsonl
writes  out/comparisons.jsonl, a line per prompt: prompt, responses (best first), ranks

The labelers are simulated: each likes what the town likes (data/town.py:grade), with noise. Noise
that follows Gumbel's distribution makes the preference between two answers the Bradley-Terry model,

    P(a is ranked above b) = sigmoid((grade(a) - grade(b)) / noise)

and `noise` is set so that two labelers agree on 73% of pairs, as InstructGPT's did. So even a
perfect reward model is right on some share of labels only: the ceiling, which is printed.

laptop   python compare.py
by hand  python compare.py --labeler=human --out=out/mine.jsonl
do two people agree?   python compare.py --agree=out/mine.jsonl,out/yours.jsonl
a second round, from what PPO made   python compare.py --init=out/ppo.pt --out=out/round2.jsonl
"""

import json
import math
import sys
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import torch

from checkpoint import load_checkpoint
from common import Setup, fail, parse_config, writing
from data.formats import read_prompts, without
from data.label import label, report_agreement
from functions import get_scores, load_function
from model import GPT, GPTConfig
from resume import Run
from tokenizer import Tokenizer


# ---------------------------------------------------------------------------------------------
# config

@dataclass
class Config:
    data: str = "data/town/prompts.jsonl"    # prompts
    init: str = "out/sft.pt"                 # the model that answers
    out: str = "out/comparisons.jsonl"
    n_prompts: int = 6000                    # how many of the prompts to use
    k: int = 4                               # answers per prompt; equal ones count once
    max_new_tokens: int = 64
    temperature: float = 1.0
    labeler: str = "data/town.py:grade"      # human, or FILE.py:function(prompts, responses)
    agree: str = ""                          # FILE,FILE: only tell how well two people agree
    agreement: float = 0.73                  # how often two labelers agree on a pair
    batch_size: int = 512                    # answers sampled at a time
    seed: int = 0
    device: str = "auto"                     # auto: cuda, else cpu; mps when asked
    dtype: str = "auto"                      # auto: bfloat16 where it is fast, else float32
    fresh: bool = False                      # start over
    debug: bool = False                      # show tracebacks


# ---------------------------------------------------------------------------------------------
# the idea

def left_pad(rows, pad, device):
    """[[ids]] of unequal lengths -> idx, mask (B, T): padding stands in front, mask is 0 there."""
    T = max(map(len, rows))
    idx = torch.tensor([[pad] * (T - len(r)) + r for r in rows], device=device)
    mask = torch.tensor([[0] * (T - len(r)) + [1] * len(r) for r in rows], device=device)
    return idx, mask


def chat_ids(model, tok, prompts, max_new_tokens):
    """Prompts (lists of messages) -> [[ids]], ready to be answered. What is too long for the model
    loses its beginning."""
    room = model.config.block_size - 1
    longest = max(room - max_new_tokens, room // 2)
    return [tok.encode_chat(p, reply=True)[0][-longest:] for p in prompts]


@torch.no_grad()
def continue_ids(model, tok, ids, env, max_new_tokens, temperature, stop, batch_size=512, seed=0):
    """What the model writes after each of [[ids]]: [[ids]], the token `stop` at the end if it came.
    Those of similar length share a batch."""
    model.eval()
    order, replies = sorted(range(len(ids)), key=lambda i: len(ids[i])), [None] * len(ids)
    for start in range(0, len(order), batch_size):
        chosen = order[start:start + batch_size]
        idx, mask = left_pad([ids[i] for i in chosen], tok.pad, env.device)
        env.seed(seed, start)
        with env.autocast():
            out = model.generate(idx, max_new_tokens, mask=mask, temperature=temperature,
                                 stop=[stop], pad=tok.pad)[:, idx.size(1):].tolist()
        for i, row in zip(chosen, out):
            replies[i] = row[:row.index(stop) + 1] if stop in row else row
    return replies


def respond(model, tok, prompts, env, max_new_tokens, temperature=1.0, batch_size=512, seed=0):
    """Answer each prompt: [(text, ended)], ended: it produced <|end|>."""
    ids = chat_ids(model, tok, prompts, max_new_tokens)
    replies = continue_ids(model, tok, ids, env, max_new_tokens, temperature, tok.end, batch_size,
                           seed)
    return [(tok.decode([i for i in r if i != tok.end]), r[-1] == tok.end) for r in replies]


def agreement(differences, noise):
    """How often two labelers give a pair the same order: mean of p^2 + (1 - p)^2."""
    p = 1 / (1 + np.exp(-np.clip(differences / noise, -50, 50)))
    return np.mean(p * p + (1 - p) * (1 - p))


def ceiling(differences):
    """How often a labeler's order is the true one, the best accuracy that labels allow, for the
    differences of the true grades, divided by the noise."""
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
    felt = np.array(grades) / noise + rng.gumbel(size=len(grades))
    return np.argsort(-felt).tolist()


if __name__ == "__main__":
    # -----------------------------------------------------------------------------------------
    # setup

    config = parse_config(Config, __doc__)
    if config.agree:
        if config.agree.count(",") != 1:
            fail(f"--agree={config.agree} should be two files, FILE,FILE")
        print(report_agreement(*config.agree.split(",")))
        raise SystemExit
    env, human = Setup(config), config.labeler == "human"
    rows = read_prompts(config.data)[:config.n_prompts]
    prompts = [r["prompt"] for r in rows for _ in range(config.k)]
    if human and config.fresh and Path(config.out).exists():
        fail(f"{config.out} is there already, and --fresh deletes nothing that a person may have "
             f"written: go on without it, or choose another --out")
    read = [config.data, config.init] + [config.labeler.split(":")[0]] * (not human)
    run = Run(config, env, inputs=read, total=len(rows if human else prompts),
              unit="prompt" if human else "answer")
    labeler = None if human else load_function(config.labeler)
    ckpt = load_checkpoint(config.init, stage=("sft", "ppo", "pretrain"))
    tok = Tokenizer.from_dict(ckpt["tokenizer"])
    model = GPT(GPTConfig(**ckpt["model_config"]))
    model.load_state_dict(ckpt["model"])
    model.to(env.device)

    # -----------------------------------------------------------------------------------------
    # data: k samples of each prompt, once each

    answers, labels = (run.state["answers"], run.state["labels"]) if run.state else ([], [])

    def save():
        run.save_state(len(labels if human else answers), answers=answers, labels=labels)

    def item(i):
        """Prompt i and its answers, sampled when they are first asked for, many at a time."""
        while len(answers) < (i + 1) * config.k:
            if human:
                print(f"{config.init} answers the next prompts ...", flush=True)
            start = len(answers)
            answers.extend(respond(model, tok, prompts[start:start + config.batch_size], env,
                                   config.max_new_tokens, config.temperature, config.batch_size,
                                   seed=(config.seed, start)))
            save()
        texts = (text for text, _ in answers[i * config.k:(i + 1) * config.k])
        return rows[i]["prompt"], list(dict.fromkeys(t for t in texts if t.strip()))

    # -----------------------------------------------------------------------------------------
    # label by hand: every answer is saved at once, first in the state, whence we go on

    def save_labels():
        save()
        with writing(run.out) as f:
            for i, ranks in enumerate(labels):
                order = sorted(range(len(ranks)), key=lambda j: ranks[j])
                row = dict(without(rows[i], ("grades", "noise")), ranks=sorted(ranks),
                           responses=[item(i)[1][j] for j in order])
                f.write(json.dumps(row, ensure_ascii=False) + "\n" if ranks else "")

    if human:
        run.bar.close()
        run.seconds = -math.inf
        for stream in (sys.stdin, sys.stdout):
            stream.reconfigure(errors="replace")      # a wrong byte is no reason to stop
        if labels:
            save_labels()                             # the last one may have been cut off
        done = label(len(rows), item, labels, save_labels, name=config.out)
        print(f"{run.out}: {sum(map(bool, labels)):,} labeled, {labels.count([]):,} left out")
        run.finish() if done else print("the same command goes on from here")
        raise SystemExit

    # -----------------------------------------------------------------------------------------
    # or by simulated labelers

    for i, row in enumerate(rows):
        _, row["responses"] = item(i)
    ended = sum(e for _, e in answers) / len(answers)
    few = sum(len(r["responses"]) < 2 for r in rows)
    rows = [r for r in rows if len(r["responses"]) > 1]
    if not rows:
        fail(f"{config.init} gave no two different answers to any prompt: nothing to compare")
    flat = [(r["prompt"], text) for r in rows for text in r["responses"]]
    texts = [text for _, text in flat]
    scores = get_scores(labeler, [prompt for prompt, _ in flat], texts, config.labeler)
    scores = iter(scores.tolist())
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
        # for the analysis only: what the labeler truly felt, and how loud the noise was
        row["grades"] = [row["grades"][i] for i in first]
        row.update(ranks=list(range(len(first))), noise=noise)

    # -----------------------------------------------------------------------------------------
    # save

    with writing(run.out) as f:
        f.writelines(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)
    print(f"{len(rows):,} prompts, {len(flat):,} different answers, {len(gaps):,} pairs; "
          f"{few:,} prompts left out, all answers being equal; {100 * ended:.1f}% ended by "
          f"themselves")
    print(f"two labelers agreed on {100 * np.mean(agreed):.1f}% of pairs; the best possible "
          f"accuracy on such labels is {100 * ceiling(gaps / noise):.1f}%")
    print(f"mean grade {np.mean([g for r in rows for g in r['grades']]):.2f}; for example:")
    row = next((r for r in rows if len(r["responses"]) == config.k), rows[0])
    print(f"    {row['prompt'][-1]['content']}")
    for place, (text, g) in enumerate(zip(row["responses"], row["grades"])):
        print(f"    {place + 1}. {text}   ({g:.1f})")
    run.finish()
