"""Experiments on finished chains: the bound, the reward model's starts, what each detail of PPO is
worth, a second round of comparisons, and over-optimisation.

reads   the folders of seeds.py, out/seed0 …
writes  its runs in a folder `experiments` in each of them, and tables on the screen

    python seeds.py --seeds=3                    # the chains come first
    python experiments.py --what=bound           # one experiment
    python experiments.py                        # all of them, hours on a laptop
    python experiments.py --jobs=2               # two runs side by side, half the cores each

What is finished is not run again. Tables show the median over the seeds [least, most].
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from common import fail, parse_config
from report import read_log


@dataclass
class Config:
    what: str = "starts,bound,details,rounds,overoptimise"   # which experiments
    seeds: int = 3             # 0, 1, … of them
    folder: str = "out/seed"   # the folders' names, before the number
    jobs: int = 1              # runs side by side
    details_steps: int = 8     # iterations of PPO in `details`
    debug: bool = False        # show tracebacks


# ---------------------------------------------------------------------------------------------
# running the stages

def run(script, out, **flags):
    """python <script> --out=<out> --flag=value …, unless that is finished. Its words go to a .txt
    beside the result."""
    out.parent.mkdir(exist_ok=True)
    command = [sys.executable, script, f"--out={out}"] + [f"--{k}={v}" for k, v in flags.items()]
    if out.exists():
        return out
    threads = max(1, (os.cpu_count() or 1) // config.jobs)
    with open(out.with_suffix(".txt"), "w") as words:
        ended = subprocess.run(command, stdout=words, stderr=words,
                               env=dict(os.environ, OMP_NUM_THREADS=str(threads)))
    if ended.returncode:
        raise ValueError(f"{' '.join(command[1:])} stopped: {out.with_suffix('.txt')} says why, "
                         f"and the same command goes on there")
    print(f"    {out}", flush=True)
    return out


def ppo(folder, name, seed, **flags):
    """PPO from the folder's SFT model under its reward model, unless told otherwise."""
    flags = dict(init=folder / "sft.pt", reward=folder / "reward.pt", seed=seed) | flags
    return run("rlhf_ppo.py", folder / "experiments" / f"{name}.pt", **flags)


def scoreboard(folder, name, *models, **flags):
    """evaluate.py's, on the test people."""
    flags = dict(models=",".join(map(str, models)), reward=folder / "reward.pt", best_of=0,
                 comparisons=folder / "comparisons.jsonl", report="") | flags
    out = run("evaluate.py", folder / "experiments" / f"{name}.json", **flags)
    return json.loads(out.read_text())


def held_out(path):
    """The evaluations in PPO's log."""
    return [r for r in read_log(path.with_suffix(".jsonl")) if r.get("split") == "held out"]


def each(seeds, function):
    """function(seed, folder) for each, config.jobs at a time: the results, in order."""
    with ThreadPoolExecutor(config.jobs) as pool:
        return list(pool.map(lambda s: function(s, Path(f"{config.folder}{s}")), seeds))


def show(title, columns, rows):
    """rows: (label, [values over the seeds of each column]); columns: (name, format)."""
    print(f"\n{title}\n" + " " * 44 + "".join(f"{name:>25}" for name, _ in columns))
    for label, cells in rows:
        print(f"{label:44}" + "".join(
            f"{form.format(median(v)) + f' [{form}, {form}]'.format(min(v), max(v)):>25}"
            for v, (_, form) in zip(cells, columns)))


# ---------------------------------------------------------------------------------------------
# the experiments

def starts(seeds):
    """Where the reward model starts from, the same comparisons and steps for all."""
    kinds = [("SFT", "sft.pt", True), ("pretrained", "pretrain.pt", True), ("scratch", "", True),
             ("SFT, without log-probabilities (InstructGPT's)", "sft.pt", False)]

    def one(seed, folder):
        found = []
        for i, (_, start, lm) in enumerate(kinds):
            name, sft = f"reward{i}", folder / "sft.pt"
            out = run("reward.py", folder / "experiments" / f"{name}.pt", like=sft, seed=seed,
                      init=folder / start if start else "", lm=sft if lm else "",
                      data=folder / "comparisons.jsonl")
            board = scoreboard(folder, name, sft, reward=out, n_prompts=100, text="")
            rm, apart = board["reward_model"], board["contrasts"]
            found.append((rm["accuracy"], rm["accuracy"] / rm["ceiling"], apart["fact"][0],
                          apart["sum"][0]))
        return found

    found = each(seeds, one)
    show("starts: the reward model on held-out pairs, and right above wrong in the same words",
         [("accuracy", "{:.3f}"), ("/ ceiling", "{:.1%}"), ("facts", "{:.1%}"), ("sums", "{:.1%}")],
         [(kind[0], list(zip(*(f[i] for f in found)))) for i, kind in enumerate(kinds)])


def bound(seeds):
    """PPO with the true grade as its reward: as far as a perfect reward model would bring it."""
    def one(seed, folder):
        best = ppo(folder, "bound", seed, reward="data/town.py:grade", critic=folder / "reward.pt")
        models = scoreboard(folder, "bound", folder / "sft.pt", folder / "ppo.pt", best)["models"]
        return [models[m] for m in ("sft", "ppo", "bound")]

    found = each(seeds, one)
    show("bound: learned reward model and true grade as PPO's reward, on the test people",
         [("grade", "{:.2f}"), ("share of the gain", "{:.1%}"), ("win rate", "{:.1%}"),
          ("KL", "{:.2f}")],
         [(label, list(zip(*((f[i]["grade"][0], (f[i]["grade"][0] - f[0]["grade"][0])
                              / (f[2]["grade"][0] - f[0]["grade"][0]),
                              f[i]["win_rate"][0], f[i]["kl"]) for f in found))))
          for i, label in ((1, "PPO, the learned reward model"), (2, "PPO, the true grade"))])


DETAILS = [
    ("as shipped", {}),
    ("no KL penalty", dict(kl_coef=0)),
    ("adaptive KL penalty, target 2 nats", dict(kl_target=2)),
    ("the policy's ratio is not clipped", dict(clip=1e9)),
    ("values are not clipped", dict(clip_value=1e9)),
    ("no limit on the KL within an iteration", dict(max_kl=1e9)),
    ("advantages are not whitened", dict(whiten_advantages=False)),
    ("rewards are whitened", dict(whiten_rewards=True)),
    ("the critic starts from the policy", dict(critic="sft.pt")),
    ("lambda 1: no bootstrapping", dict(lam=1)),
    ("lambda 0: the critic alone", dict(lam=0)),
    ("1 epoch", dict(epochs=1)),
    ("4 epochs", dict(epochs=4)),
    ("1 minibatch of 256", dict(minibatch=256)),
    ("learning rate does not decay", dict(decay=False)),
    ("no penalty for a missing end", dict(missing_end=0)),
    ("no pretraining text", dict(ptx_coef=0)),
    ("samples at temperature 1", dict(temperature=1)),
]


def details(seeds):
    """PPO with one detail switched off at a time, in short runs."""
    def one(job):
        i, seed = job
        folder, flags = Path(f"{config.folder}{seed}"), dict(DETAILS[i][1])
        if "critic" in flags:
            flags["critic"] = folder / flags["critic"]
        out = ppo(folder, f"detail{i}", seed, steps=config.details_steps, eval_every=1000,
                  n_eval=400, **flags)
        row = held_out(out)[-1]
        return row["grade"], row["score"], row["kl"], row["ended"]

    with ThreadPoolExecutor(config.jobs) as pool:
        found = list(pool.map(one, [(i, s) for i in range(len(DETAILS)) for s in seeds]))
    n, rows = len(seeds), []
    for i, (label, _) in enumerate(DETAILS):
        grade, score, kl, ended = zip(*found[i * n:(i + 1) * n])
        change = [g - shipped[0] for g, shipped in zip(grade, found)]
        rows.append((label, [change, grade, score, kl, ended]))
    show(f"details: {config.details_steps} iterations of PPO, held-out prompts",
         [("change in grade", "{:+.2f}"), ("grade", "{:.2f}"), ("score", "{:.2f}"),
          ("KL", "{:.1f}"), ("ended", "{:.0%}")], rows)

    def forgotten(seed, folder):
        """The loss on held-out pretraining text, with and without rehearsal, against SFT's."""
        index = [next(i for i, (_, flags) in enumerate(DETAILS) if flags == f)
                 for f in ({}, dict(ptx_coef=0))]
        names = [f"detail{i}" for i in index]
        models = scoreboard(folder, "forgotten", folder / "sft.pt", n_prompts=100, *(
            folder / "experiments" / f"{name}.pt" for name in names))["models"]
        return [models[name]["text_loss"] / models["sft"]["text_loss"] - 1 for name in names]

    show("details: loss on pretraining text, against after SFT", [("change", "{:+.1%}")],
         [(label, [values]) for label, values in zip(
             ("as shipped", "no pretraining text"), zip(*each(seeds, forgotten)))])


def rounds(seeds):
    """Comparisons of what PPO writes now, the reward model trained anew on both rounds, and PPO
    goes on from where it was; beside it, PPO that goes on under the old reward model."""
    def one(seed, folder):
        more = folder / "experiments"
        sft, first = folder / "sft.pt", folder / "comparisons.jsonl"
        second = run("compare.py", more / "comparisons2.jsonl", init=folder / "ppo.pt", seed=seed)
        reward = run("reward.py", more / "reward_round2.pt", data=f"{first},{second}", init=sft,
                     lm=sft, seed=seed)
        on = dict(init=folder / "ppo.pt", reference=sft, steps=18)
        same, new = (ppo(folder, "ppo_same_reward", seed, **on),
                     ppo(folder, "ppo_round2", seed, reward=reward, **on))
        models = scoreboard(folder, "rounds", sft, folder / "ppo.pt", same, new)["models"]
        return [(m["grade"][0], m["win_rate"][0], m["kl"])
                for m in (models[n] for n in ("ppo", "ppo_same_reward", "ppo_round2"))]

    found = each(seeds, one)
    labels = ("PPO, the first round", "PPO goes on, the same reward model",
              "PPO goes on, the second reward model")
    show("rounds: a second round of comparisons, on the test people",
         [("grade", "{:.2f}"), ("win rate", "{:.1%}"), ("KL", "{:.2f}")],
         [(label, list(zip(*(f[i] for f in found)))) for i, label in enumerate(labels)])


def fit(distance, gain, form):
    """Gao et al. 2022: alpha and beta of d (alpha - beta log d), or of d (alpha - beta d), d the
    square root of the KL, by least squares; and the share of the variance that it explains."""
    d, gain = np.array(distance), np.array(gain)
    columns = np.stack([d, -d * (np.log(d) if form == "log" else d)], 1)
    (alpha, beta), *_ = np.linalg.lstsq(columns, gain, rcond=None)
    left = gain - columns @ [alpha, beta]
    return alpha, beta, 1 - left.var() / gain.var()


def overoptimise(seeds):
    """PPO without a KL penalty, for long: the score rises, the grade falls. And best of n."""
    def one(seed, folder):
        free = held_out(ppo(folder, "free", seed, kl_coef=0, steps=60, eval_every=4, lr=2e-4,
                            decay=False, ptx_coef=0))
        best = scoreboard(folder, "best_of", folder / "sft.pt", best_of=64)["best_of_n"]
        return free, best

    found = each(seeds, one)
    for seed, (free, best) in zip(seeds, found):
        print(f"\noveroptimise: seed {seed}, PPO without KL penalty\n"
              + " ".join(f"{name:>10}" for name in ("iteration", "sqrt(KL)", "score", "grade")))
        for r in free:
            print(f"{r['step']:10} {max(r['kl'], 0) ** .5:10.2f} {r['score']:10.2f} "
                  f"{r['grade']:10.2f}")
        for name, points, form in (("PPO", free, "log"), ("best of n", best, "linear")):
            start, points = points[0], [r for r in points[1:] if r["kl"] > 0]
            d = [r["kl"] ** .5 for r in points]
            for key in ("score", "grade"):
                alpha, beta, share = fit(d, [r[key] - start[key] for r in points], form)
                law = f"d ({alpha:.2f} - {beta:.2f} {'log d' if form == 'log' else 'd'})"
                print(f"    {name:10} {key}: {law:28} explains {100 * share:.0f}% of the variance")


if __name__ == "__main__":
    config = parse_config(Config, __doc__)
    experiments = dict(starts=starts, bound=bound, details=details, rounds=rounds,
                       overoptimise=overoptimise)
    for name in config.what.split(","):
        if name not in experiments:
            fail(f"--what={name} is not one of {', '.join(experiments)}")
    seeds = list(range(config.seeds))
    for seed in seeds:
        if not Path(f"{config.folder}{seed}", "ppo.pt").exists():
            fail(f"{config.folder}{seed} has no ppo.pt: `python seeds.py --seeds={config.seeds}` "
                 f"makes it")
    for name in config.what.split(","):
        experiments[name](seeds)
