"""Experiments on finished chains: what SFT rehearses, starting points of the reward model, PPO with
a perfect reward model, each detail of PPO, a second round of comparisons, and over-optimisation.

reads   the folders of lab/seeds.py, out/seed0 …
writes  its runs in a folder `experiments` in each of them, and tables on the screen

    python -m lab.seeds --seeds=3                    # first: run the chains
    python -m lab.experiments --what=bound           # one experiment
    python -m lab.experiments                        # all of them, hours on a laptop
    python -m lab.experiments --jobs=2               # two runs at a time, half the cores each

Finished runs are not repeated. After a change of the code or the chains, delete that folder. Tables
show the median over the seeds [least, most].
"""

import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from checkpoint import read_log
from common import fail, parse_config, read_json
from view.views import held_out


@dataclass
class Config:
    what: str = "rehearsal,starts,bound,details,rounds,overoptimise"   # which experiments
    seeds: int = 3             # how many: 0, 1, …
    folder: str = "out/seed"   # the folders' names, without the number
    jobs: int = 1              # runs at a time
    details_steps: int = 8     # iterations of PPO in `details`
    debug: bool = False        # show tracebacks


# ---- running the stages ---------------------------------------------------------------------

def chosen(what, known):
    """The names in --what."""
    for name in what.split(","):
        if name not in known:
            fail(f"--what={name} is not one of {', '.join(known)}")
    return what.split(",")


def finished_chains(config):
    """[(seed, folder)] of lab/seeds.py. Gives each of --jobs runs its share of the cores."""
    chains = [(seed, Path(f"{config.folder}{seed}")) for seed in range(config.seeds)]
    for _, folder in chains:
        if not (folder / "ppo.pt").exists():
            fail(f"--folder={config.folder}: {folder} has no ppo.pt: `python -m lab.seeds "
                 f"--seeds={config.seeds}` makes it")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // config.jobs)))
    return chains


def run(script, out, **flags):
    """Run python <script> --out=<out> --flag=value …, unless `out` exists. What the script prints
    goes to a .txt beside the result."""
    out.parent.mkdir(exist_ok=True)
    command = [sys.executable, *script.split(), f"--out={out}",
               *(f"--{k}={v}" for k, v in flags.items())]
    if out.exists():
        return out
    with open(out.with_suffix(".txt"), "w", encoding="utf-8") as printed:
        ended = subprocess.run(command, stdout=printed, stderr=printed)
    if ended.returncode:
        raise ValueError(f"{shlex.join(command[1:])} stopped: {out.with_suffix('.txt')} says why; "
                         f"the same command continues there")
    print(f"    {out}", flush=True)
    return out


def ppo(folder, name, seed, *, within="experiments", **flags):
    """PPO; by default from the folder's SFT model, with the folder's reward model."""
    flags = dict(init=folder / "sft.pt", reward=folder / "reward.pt", seed=seed) | flags
    return run("rlhf_ppo.py", folder / within / f"{name}.pt", **flags)


def scoreboard(folder, name, *models, within="experiments", **flags):
    """The scoreboard of evaluate.py, on prompts about the test people."""
    flags = dict(models=",".join(map(str, models)), reward=folder / "reward.pt", best_of=0,
                 comparisons=folder / "comparisons.jsonl") | flags
    out = run("evaluate.py", folder / within / f"{name}.json", **flags)
    return read_json(out)


def evaluations(path):
    """The evaluations in PPO's log."""
    return held_out(read_log(path.with_suffix(".jsonl")))


def each(jobs, function):
    """Call function(*job) for each job, config.jobs at a time. Returns the results in order."""
    with ThreadPoolExecutor(config.jobs) as pool:
        return list(pool.map(lambda job: function(*job), jobs))


def show(title, columns, labels, found):
    """Print a table of medians. columns: [(name, format)]; found: for each seed, one row of values
    for each label."""
    print(f"\n{title}\n" + " " * 44 + "".join(f"{name:>25}" for name, _ in columns))
    for label, *rows in zip(labels, *found):
        print(f"{label:44}" + "".join(
            f"{form.format(median(v)) + f' [{form}, {form}]'.format(min(v), max(v)):>25}"
            for v, (_, form) in zip(zip(*rows), columns)))


# ---- the experiments; chains: [(seed, folder)] ----------------------------------------------

REHEARSED = {
    "as shipped": {},
    "text that is about the test people, too": dict(text="data/town/pretrain"),
    "no text": dict(ptx=0),
    "random weights instead of pretrained ones": dict(init=""),
    "AdamW's usual epsilon, 1e-8": dict(eps=1e-8),
}


def rehearsal(chains):
    """Does fine-tuning make knowledge available? SFT with one thing changed at a time."""
    def one(seed, folder):
        models = [run("sft.py", folder / f"experiments/rehearsal_{i}.pt", seed=seed,
                      **dict(init=folder / "pretrain.pt", like=folder / "pretrain.pt") | flags)
                  for i, flags in enumerate(REHEARSED.values())]
        board = scoreboard(folder, "rehearsal", *models, reward="")["models"]
        return [(m["by_kind"]["fact"]["right"], m["by_kind"]["fact"]["right_sampled"],
                 m["grade"][0]) for m in board.values()]

    show("rehearsal: SFT, facts about the test people",
         [("right, greedy", "{:.1%}"), ("right, sampled", "{:.1%}"), ("grade", "{:.2f}")],
         REHEARSED, each(chains, one))


STARTS = {"SFT": ("sft", "sft.pt", True), "pretrained": ("pretrained", "pretrain.pt", True),
          "scratch": ("scratch", "", True),
          "SFT, without log-probabilities (InstructGPT's)": ("textbook", "sft.pt", False)}


def reward_starts(seed, folder):
    """For each of STARTS, what its reward model gets right of: pairs, pairs / ceiling, facts,
    sums."""
    rows, sft = [], folder / "sft.pt"
    for name, init, lm in STARTS.values():
        out = run("reward.py", folder / "experiments" / f"reward_{name}.pt", like=sft,
                  init=folder / init if init else "", lm=sft if lm else "", seed=seed,
                  data=folder / "comparisons.jsonl")
        board = scoreboard(folder, f"reward_{name}", sft, reward=out, n_prompts=100, text="")
        rm, apart = board["reward_model"], board["contrasts"]
        rows.append((rm["accuracy"], rm["accuracy"] / rm["ceiling"], apart["fact"][0],
                     apart["sum"][0]))
    return rows


def starts(chains):
    """Four starting points of the reward model, with the same comparisons and steps."""
    show("starts: the reward model on held-out pairs, and right above wrong in the same words",
         [("accuracy", "{:.3f}"), ("/ ceiling", "{:.1%}"), ("facts", "{:.1%}"), ("sums", "{:.1%}")],
         STARTS, each(chains, reward_starts))


def bound(chains):
    """PPO with the true grade as its reward, as if the reward model were perfect."""
    def one(seed, folder):
        best = ppo(folder, "bound", seed, reward="data/town.py:grade", critic=folder / "reward.pt")
        models = scoreboard(folder, "bound", folder / "sft.pt", folder / "ppo.pt", best)["models"]
        sft, most = (models[m]["grade"][0] for m in ("sft", "bound"))
        return [(m["grade"][0], (m["grade"][0] - sft) / (most - sft), m["better"], m["kl"])
                for m in (models["ppo"], models["bound"])]

    show("bound: learned reward model and true grade as PPO's reward, on the test people",
         [("grade", "{:.2f}"), ("share of the gain", "{:.1%}"), ("better", "{:.1%}"),
          ("KL", "{:.2f}")],
         ("PPO, the learned reward model", "PPO, the true grade"), each(chains, one))


DETAILS = {
    "as shipped": {},
    "no KL penalty": dict(kl_coef=0),
    "the policy's ratio is not clipped": dict(clip=1e9),
    "values are not clipped": dict(clip_value=1e9),
    "advantages are not whitened": dict(whiten_advantages=False),
    "the critic starts from the policy": dict(critic="sft.pt"),
    "lambda 1: no bootstrapping": dict(lam=1),
    "lambda 0: the critic alone": dict(lam=0),
    "1 epoch": dict(epochs=1),
    "4 epochs": dict(epochs=4),
    "1 minibatch of 256": dict(minibatch=256),
    "learning rate does not decay": dict(decay=False),
    "no penalty for a missing end": dict(missing_end=0),
    "no pretraining text": dict(ptx_coef=0),
    "samples at temperature 1": dict(temperature=1),
}


def details(chains):
    """PPO with one detail switched off at a time, in short runs."""
    def name(flags):                                  # flags, not a number: DETAILS may change
        return "-".join([f"detail-steps={config.details_steps}",
                         *(f"{k}={v}" for k, v in flags.items())])

    def one(flags, seed, folder):
        there = {k: folder / v if k == "critic" else v for k, v in flags.items()}
        out = ppo(folder, name(flags), seed, steps=config.details_steps, eval_every=1000,
                  n_eval=400, **there)
        row = evaluations(out)[-1]
        return row["grade"], row["score"], row["kl"], row["ended"]

    found = each([(flags, *chain) for flags in DETAILS.values() for chain in chains], one)
    found = [found[i::len(chains)] for i in range(len(chains))]       # by seed
    show(f"details: {config.details_steps} iterations of PPO, held-out prompts",
         [("change in grade", "{:+.2f}"), ("grade", "{:.2f}"), ("score", "{:.2f}"),
          ("KL", "{:.1f}"), ("ended", "{:.0%}")], DETAILS,
         [[(row[0] - rows[0][0], *row) for row in rows] for rows in found])

    def forgotten(seed, folder):
        """The change of the loss on held-out pretraining text, with and without it in PPO."""
        names = [name({}), name(dict(ptx_coef=0))]
        models = scoreboard(folder, "forgotten", folder / "sft.pt", n_prompts=100, *(
            folder / "experiments" / f"{n}.pt" for n in names))["models"]
        return [(models[n]["text_loss"] / models["sft"]["text_loss"] - 1,) for n in names]

    show("details: loss on pretraining text, against after SFT", [("change", "{:+.1%}")],
         ("as shipped", "no pretraining text"), each(chains, forgotten))


def rounds(chains):
    """Compare the answers of PPO's model, train the reward model again on both rounds, and continue
    PPO with it. For comparison: PPO continued with the old reward model."""
    def one(seed, folder):
        more = folder / "experiments"
        sft, first = folder / "sft.pt", folder / "comparisons.jsonl"
        second = run("compare.py", more / "comparisons2.jsonl", init=folder / "ppo.pt", seed=seed)
        reward = run("reward.py", more / "reward_round2.pt", data=f"{first},{second}", init=sft,
                     lm=sft, seed=seed)
        flags = dict(init=folder / "ppo.pt", reference=sft, steps=18)
        same, new = (ppo(folder, "ppo_same_reward", seed, **flags),
                     ppo(folder, "ppo_round2", seed, reward=reward, **flags))
        models = scoreboard(folder, "rounds", sft, folder / "ppo.pt", same, new)["models"]
        return [(m["grade"][0], m["better"], m["kl"])
                for m in (models[n] for n in ("ppo", "ppo_same_reward", "ppo_round2"))]

    show("rounds: a second round of comparisons, on the test people",
         [("grade", "{:.2f}"), ("better", "{:.1%}"), ("KL", "{:.2f}")],
         ("PPO, the first round", "PPO goes on, the same reward model",
          "PPO goes on, the second reward model"), each(chains, one))


def fit(distance, gain, form):
    """Fit gain = d (alpha - beta log d) or d (alpha - beta d) by least squares, where d is the
    square root of the KL (Gao et al. 2022). Returns alpha, beta and the share of the variance that
    this explains."""
    d, gain = np.array(distance), np.array(gain)
    columns = np.stack([d, -d * (np.log(d) if form == "log" else d)], 1)
    (alpha, beta), *_ = np.linalg.lstsq(columns, gain, rcond=None)
    residual = gain - columns @ [alpha, beta]
    return alpha, beta, 1 - residual.var() / gain.var()


def free(seed, folder):
    """The evaluations of a long PPO run without KL penalty."""
    return evaluations(ppo(folder, "free", seed, kl_coef=0, steps=60, eval_every=4, lr=2e-4,
                           decay=False, ptx_coef=0))


def overoptimise(chains):
    """PPO without KL penalty, where the score rises and the grade falls; best of n."""
    def one(seed, folder):
        best = scoreboard(folder, "best_of", folder / "sft.pt", best_of=64)["best_of_n"]
        return free(seed, folder), best

    for (seed, _), (long, best) in zip(chains, each(chains, one)):
        print(f"\noveroptimise: seed {seed}, PPO without KL penalty\n"
              + " ".join(f"{name:>10}" for name in ("iteration", "sqrt(KL)", "score", "grade")))
        for r in long:
            print(f"{r['step']:10} {max(r['kl'], 0) ** .5:10.2f} {r['score']:10.2f} "
                  f"{r['grade']:10.2f}")
        for name, points, form in (("PPO", long, "log"), ("best of n", best, "linear")):
            start, points = points[0], [r for r in points[1:] if r["kl"] > 0]
            d = [r["kl"] ** .5 for r in points]
            for key in ("score", "grade"):
                alpha, beta, share = fit(d, [r[key] - start[key] for r in points], form)
                law = f"d ({alpha:.2f} - {beta:.2f} {'log d' if form == 'log' else 'd'})"
                print(f"    {name:10} {key}: {law:28} explains {100 * share:.0f}% of the variance")


if __name__ == "__main__":
    config = parse_config(Config, __doc__)
    experiments = dict(rehearsal=rehearsal, starts=starts, bound=bound, details=details,
                       rounds=rounds, overoptimise=overoptimise)
    names, chains = chosen(config.what, experiments), finished_chains(config)
    for name in names:
        experiments[name](chains)
