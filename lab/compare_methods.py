"""Which way from comparisons to a better model? Five, from the same SFT model and comparisons.

reads   the folders of lab/seeds.py, out/seed0 …: sft.pt, comparisons.jsonl, reward.pt, ppo.pt
writes  its runs in a folder `methods` in each of them, tables, out/methods.svg

    best of n            no training: 16 answers, of which the reward model chooses one
    rejection sampling   lessons/best_of_n.py
    DPO                  lessons/dpo.py: the only one without a reward model
    GRPO                 lessons/grpo.py
    PPO                  rlhf_ppo.py: the only one that rehearses pretraining text
    PPO, no text         the same without

Each method that trains has equally many trials, TRIALS, with seed 0. The one with the highest grade
on prompts about the validation people is run with the other seeds, too. The tables are about the
test people, of whom no trial has heard: the median over the seeds [least, most].

    python -m lab.seeds --seeds=3                # first: run the chains
    python -m lab.compare_methods                # the same command goes on where it was interrupted
    python -m lab.compare_methods --seeds=1 --trials=1 --more=steps=4     # a quick look
"""

import json
import math
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from answer import answer_text
from checkpoint import fingerprint, load, load_checkpoint, load_reward, read_log
from common import (Runtime, fail, load_function, parse_config, read_json, verdicts_of,
                    writing)
from data.corpus import Corpus
from data.formats import list_files, prompts_that_fit, read_comparisons, split
from evaluate import Answers, answer, compared, measure, sample_best_of
from lab.experiments import run
from lab.seeds import Chains, finished_chains, show
from lessons.best_of_n import best_answers
from pretrain import evaluate as text_loss
from reward import encode_comparison
from view.curves import draw
from view.views import held_out


@dataclass
class Config(Chains):
    trials: int = 7            # how many of TRIALS; 1: the defaults
    more: str = ""             # flags for every run, such as "steps=4,n_eval=64"
    prompts: str = "data/town/prompts.jsonl"   # the methods' prompts; the picture's, held out
    val: str = "data/town/val.jsonl"   # prompts that choose among the trials
    test: str = "data/town/test.jsonl"   # prompts for the tables
    text: str = "data/town/pretrain"   # pretraining text: how much of it was forgotten?
    judge: str = "data/town.py:judge"  # FILE.py:function(prompt, response) -> verdict
    out: str = "out/methods.svg"
    n_prompts: int = 800       # of val and of test, at most
    best_of: int = 16
    max_new_tokens: int = 64
    temperature: float = 0.7
    missing_end: float = 2.0   # subtracted from the score of an answer without an end
    seed: int = 0              # of the sampled answers
    device: str = "auto"
    dtype: str = "auto"


# ---- the runs -------------------------------------------------------------------------------

SCRIPTS = {"rejection sampling": "lessons.best_of_n", "DPO": "lessons.dpo",
           "GRPO": "lessons.grpo", "PPO": "rlhf_ppo", "PPO, no text": "rlhf_ppo"}
TRIALS = {
    "rejection sampling": [dict(), dict(lr=5e-4), dict(lr=1e-3), dict(lr=1e-4), dict(epochs=1),
                           dict(lr=5e-4, best_of=8, steps=8), dict(best_of=8, steps=8)],
    "DPO": [dict(), dict(lr=2e-4), dict(lr=1e-4), dict(lr=2.5e-5), dict(lr=2e-4, beta=0.1),
            dict(lr=2e-4, beta=1), dict(lr=1e-4, beta=1)],
    "GRPO": [dict(), dict(lr=2e-4), dict(lr=5e-5), dict(lr=2e-4, kl_coef=0.03),
             dict(lr=2e-4, normalise=False), dict(normalise=False), dict(kl_coef=0.2)],
    "PPO": [dict(), dict(lr=1e-3), dict(lr=2.5e-4), dict(kl_coef=0.05), dict(kl_coef=0.2),
            dict(lr=2.5e-4, kl_coef=0.2), dict(lam=1)],
}


def train(method, flags, seed, config):
    """The checkpoint of a run, which is made unless it is there. PPO's first trial is the chain's
    own."""
    folder = Path(f"{config.folder}{seed}")
    if method == "PPO" and not flags:
        return folder / "ppo.pt"
    script, more = SCRIPTS[method], dict(pair.split("=") for pair in config.more.split(",") if pair)
    flags = flags | more
    name = "-".join([script.rpartition(".")[2], *(f"{k}={v}" for k, v in flags.items())])
    out = folder / "methods" / f"{name}.pt"
    read = (dict(data=folder / "comparisons.jsonl", prompts=config.prompts) if method == "DPO" else
            dict(data=config.prompts, reward=folder / "reward.pt"))
    return run(f"-m {script}", out, **dict(init=folder / "sft.pt", seed=seed, **read) | flags)


def cached(file, model, data, config, make):
    """What make() finds out about a model on some prompts, from the JSON file if it is there and
    was made of the same model, with the same prompts and flags."""
    flags = [getattr(config, name) for name in ("n_prompts", "best_of", "max_new_tokens", "judge",
                                                "temperature", "missing_end", "text", "seed")]
    made = [fingerprint(model), fingerprint(data), *flags]
    if not file.exists() or (found := read_json(file))["made"] != made:
        found = dict(made=made, found=make())
        file.parent.mkdir(exist_ok=True)
        with writing(file) as f:
            json.dump(found, f)
    return found["found"]


# ---- what a method's answers are worth ------------------------------------------------------

class Examiner:
    """The SFT and the reward model of one seed, and what other models are compared with them."""

    def __init__(self, seed, rt, config):
        self.folder, self.rt, self.config = Path(f"{config.folder}{seed}"), rt, config
        self.sft, self.tok, _ = load(self.folder / "sft.pt", rt, "sft", frozen=True)
        self.reward = load_reward(f"{self.folder}/reward.pt", self.tok, rt)
        self.judge = load_function(config.judge)

    def rows(self, path):
        """All prompts of a file, whichever side of the split by hash they are on."""
        train, val = prompts_that_fit(path, self.tok, self.sft.config.block_size,
                                      self.config.max_new_tokens)
        return (train + val)[:self.config.n_prompts]

    def examine(self, path, data, best_of=0):
        """The grade of each answer to the prompts in data, and means."""
        tok, rt, config, rows = self.tok, self.rt, self.config, self.rows(data)
        policy, *_ = load(path, rt, "sft ppo", tok)
        ids = [row["ids"] for row in rows]
        if best_of:
            replies, *_ = best_answers(policy, self.reward, rows, config.seed, tok, rt, config)
            said = Answers(ids, replies, [answer_text(tok, r) for r in replies],
                           [r[-1] == tok.end for r in replies])
        else:
            said = answer(policy, False, tok, ids, config.temperature, rt, config)
        verdicts = verdicts_of(self.judge, [r["prompt"] for r in rows], said.texts, config.judge)
        found = measure(policy, self.sft, tok, said, rt, config)
        if best_of:
            found["kl"] = math.log(best_of) - (best_of - 1) / best_of
        corpus = Corpus(config.text, tok, self.folder / "cache", fingerprint(config.text))
        *text, _ = corpus.held_out_rows(policy.config.block_size, 128)
        loss, _ = text_loss(policy, text, len(corpus.sources), 16, rt)
        return dict(grades=[v["grade"] for v in verdicts], kl=float(found["kl"]),
                    right=float(np.mean([v["right"] for v in verdicts])),
                    length=float(found["length"]), text_loss=loss.item())

    def best_of_curve(self):
        """[[KL, grade], …] of the best of 1, 2, 4, … answers to the held-out prompts."""
        _, rows = prompts_that_fit(self.config.prompts, self.tok, self.sft.config.block_size,
                                   self.config.max_new_tokens)
        points = sample_best_of(self.sft, self.reward, self.judge, self.tok,
                                [r["prompt"] for r in rows[:256]], self.rt, self.config)
        return [[p["kl"], p["grade"]] for p in points]

    def reward_cost(self):
        """(FLOPs, seconds) of the reward model's training: forward and backward, and its language
        model forward. Its log has tokens per second."""
        rows, _ = split(read_comparisons(self.folder / "comparisons.jsonl"))
        T = self.sft.config.block_size
        n = sum(len(ids) for row in rows if (item := encode_comparison(self.tok, row, T))
                for ids in item["ids"])
        speed = [r["tokens_per_s"] for r in read_log(self.folder / "reward.jsonl")]
        passes = 3 + (self.reward.lm is not None)
        return n * passes * self.flops(), n / np.mean(speed)

    def flops(self):
        """Of a forward pass, per token, at the usual length of 32 tokens."""
        return self.sft.flops_per_token(32) / 3


def ppo_cost(path, prompt_tokens, flops, T):
    """(FLOPs, seconds) of a run of PPO, whose log has the length of the answers: a forward pass to
    sample, 5 to assess (policy, reference, critic, reward model, its language model), and a forward
    and backward one, 3, of policy and critic in each epoch. flops: of a forward pass, per token."""
    c, passes, seconds = load_checkpoint(path, "ppo")["config"], 0, 0.0
    for row in read_log(path.with_suffix(".jsonl")):
        if "seconds" in row:
            passes += c["batch_size"] * (prompt_tokens + row["length"]) * (6 + 6 * c["epochs"])
            updates = c["epochs"] * c["batch_size"] // c["minibatch"]
            passes += (c["ptx_coef"] > 0) * updates * max(1, c["minibatch"] // 16) * T * 3
            seconds += row["seconds"]
    return passes * flops, seconds


def cost(method, path, reward_cost, prompt_tokens, flops, T):
    """(FLOPs, seconds) of a method: its run's, and the reward model's where it needs one."""
    if SCRIPTS.get(method) == "rlhf_ppo":
        own = ppo_cost(path, prompt_tokens, flops, T)
    else:
        log = read_log(path.with_suffix(".jsonl")) if method in SCRIPTS else []
        own = (sum(row.get(name, 0) for row in log) for name in ("flops", "seconds"))
    shared = (0, 0) if method in ("SFT", "DPO") else reward_cost
    return tuple(a + b for a, b in zip(own, shared))


# ---- what people read -----------------------------------------------------------------------

COLOURS = "#5b6470", "#8a6100", "#0065a3", "#00795a", "#c24a00"


def lines_of(curves):
    """{method: for each seed [(KL, grade), …]} -> what is drawn: grade against the square root of
    the KL divergence, a line through the medians over the seeds and a dot for each seed."""
    for (method, seeds), colour in zip(curves.items(), COLOURS):
        seeds = [[(max(kl, 0) ** 0.5, grade) for kl, grade in curve] for curve in seeds]
        yield method, colour, "-", [tuple(median(values) for values in zip(*at_once))
                                    for at_once in zip(*seeds)]
        yield method, colour, ".", [point for curve in seeds for point in curve]


def picture(curves):
    """An SVG of the lines, whose names stand beside them."""
    lines = [*lines_of(curves)]
    names = "".join(f'<text x="60" y="{24 + 18 * n}" fill="{colour}">{method}</text>'
                    for n, (method, colour, *_) in enumerate(lines[::2]))
    axes = '<text x="260" y="420">true grade, held-out prompts, against √KL from SFT (nats)</text>'
    return draw(lines, 800, 440).replace("</svg>", f"{names}{axes}</svg>")


if __name__ == "__main__":
    config = parse_config(Config, __doc__)
    most = min(map(len, TRIALS.values()))
    if not 1 <= config.trials <= most or config.best_of < 2:
        fail(f"--trials must be 1 to {most}, and --best_of at least 2")
    if not re.fullmatch(r"(\w+=[^,=]+(,|$))*", config.more):
        fail(f"--more={config.more} is not like steps=4,n_eval=64")
    rt, seeds = Runtime(config), range(config.seeds)
    finished_chains(config)
    pool = ThreadPoolExecutor(config.jobs)
    list_files(config.text)                           # a wrong name is told now, not after hours

    # ---- the trials, with seed 0, judged by the validation people ----------------------------

    first, best = Examiner(0, rt, config), {}
    for path in (config.prompts, config.val, config.test):
        first.rows(path)
    jobs = [(m, flags, 0, config) for m in TRIALS for flags in TRIALS[m][:config.trials]]
    paths = list(pool.map(train, *zip(*jobs)))
    print("\ntrials: the grade on prompts about the validation people, seed 0")
    for (method, flags, *_), path in zip(jobs, paths):
        found = cached(first.folder / "methods" / f"{path.stem}.val.json", path, config.val, config,
                       lambda: first.examine(path, config.val))
        grade = np.mean(found["grades"])
        print(f"    {method:20} {grade:.3f}  KL {found['kl']:.2f}  "
              + (" ".join(f"{k}={v}" for k, v in flags.items()) or "as shipped"), flush=True)
        best[method] = max(best.get(method, (0, None)), (grade, flags), key=lambda pair: pair[0])

    # ---- the best of each, with all seeds -----------------------------------------------------

    best["PPO, no text"] = None, best["PPO"][1] | dict(ptx_coef=0)
    jobs = [(m, best[m][1], seed, config) for m in SCRIPTS for seed in seeds]
    paths = {job[::2]: path for job, path in zip(jobs, pool.map(train, *zip(*jobs)))}
    quality, costs, curves = [{} for _ in seeds], [{} for _ in seeds], {}
    for seed in seeds:
        seen = Examiner(seed, rt, config)
        more, T = seen.folder / "methods", seen.sft.config.block_size
        sft, flops, reward_cost = seen.folder / "sft.pt", seen.flops(), seen.reward_cost()
        prompt = np.mean([len(row["ids"]) for row in seen.rows(config.prompts)])
        for method in ("SFT", "best of n", *SCRIPTS):
            path, n = paths.get((method, seed), sft), config.best_of * (method == "best of n")
            name = f"best_of_{n}" if n else path.stem
            one = cached(more / f"{name}.test.json", path, config.test, config,
                         lambda: seen.examine(path, config.test, n))
            grades, sfts = one["grades"], one["grades"] if method == "SFT" else sfts
            quality[seed][method] = (np.mean(grades), compared(grades, sfts)["better"],
                                     one["right"], one["kl"])
            spent, seconds = cost(method, path, reward_cost, prompt, flops, T)
            # one forward pass writes an answer; each of n is also read by the reward model's two
            costs[seed][method] = (one["length"], one["text_loss"], spent / 1e12, seconds,
                                   n * 3 or 1)
            if method in TRIALS:
                log = held_out(read_log(path.with_suffix(".jsonl")))
                curves.setdefault(method, []).append([(row["kl"], row["grade"]) for row in log])
            elif n:
                curves.setdefault(method, []).append(
                    cached(more / "best_of_curve.json", sft, config.prompts, config,
                           seen.best_of_curve))
        print(f"seed {seed} is examined", flush=True)

    # ---- save, show ---------------------------------------------------------------------------

    show(f"answers to prompts about the test people, seeds 0 to {config.seeds - 1}",
         {"grade": "{:.2f}", "better than SFT": "{:.1%}", "right": "{:.1%}", "KL": "{:.2f}"},
         quality)
    show("and the rest; the cost includes the reward model's training where one is needed",
         {"length, tokens": "{:.1f}", "loss on text": "{:.3f}", "TFLOP": "{:.1f}",
          "seconds": "{:.0f}", "passes per answer": "{:.0f}"}, costs)
    with writing(config.out) as f:
        f.write(picture(curves))
    print(f"\nsaved {config.out}")
