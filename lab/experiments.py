"""Experiments on finished chains: what SFT rehearses, starting points of the reward model, PPO with
a perfect reward model, each detail of PPO, a second round of comparisons, and over-optimisation.

reads   the folders of lab/seeds.py, out/seed0 …
writes  its runs in a folder `experiments` in each of them, and tables on the screen

    python -m lab.seeds --seeds=3                    # first: run the chains
    python -m lab.experiments --what=bound           # one experiment
    python -m lab.experiments                        # all of them, hours on a laptop
    python -m lab.experiments --jobs=2               # two seeds at a time, half the cores each

Finished runs are not repeated. After a change of the code or the chains, delete that folder. Tables
show the median over the seeds [least, most].
"""

import shlex
import subprocess
import sys
from dataclasses import dataclass

import numpy as np

from checkpoint import read_log
from common import fail, parse_config, read_json
from lab.seeds import Chains, for_each_seed, show
from view.views import held_out


@dataclass
class Config(Chains):
    what: str = "rehearsal,starts,bound,details,rounds,overoptimise"   # which experiments


# ---- running the stages ---------------------------------------------------------------------

def chosen(what, known):
    """The names in --what."""
    for name in what.split(","):
        if name not in known:
            fail(f"--what={name} is not one of {', '.join(known)}")
    return what.split(",")


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


def sft(folder, name, seed, *, within="experiments", **flags):
    """SFT; by default from the folder's pretrained model."""
    flags = dict(init=folder / "pretrain.pt", like=folder / "pretrain.pt", seed=seed) | flags
    return run("sft.py", folder / within / f"{name}.pt", **flags)


def reward_model(folder, name, seed, *, within="experiments", **flags):
    """A reward model; by default from the folder's SFT model and comparisons."""
    sft = folder / "sft.pt"
    flags = dict(data=folder / "comparisons.jsonl", init=sft, like=sft, lm=sft, seed=seed) | flags
    return run("reward.py", folder / within / f"{name}.pt", **flags)


def ppo(folder, name, seed, *, within="experiments", **flags):
    """PPO; by default from the folder's SFT model, with the folder's reward model."""
    flags = dict(init=folder / "sft.pt", reward=folder / "reward.pt", seed=seed) | flags
    return run("rlhf_ppo.py", folder / within / f"{name}.pt", **flags)


def scoreboard(folder, name, *models, within="experiments", **flags):
    """The scoreboard of evaluate.py, on prompts about the test people."""
    flags = dict(models=",".join(map(str, models)), reward=folder / "reward.pt", best_of=0,
                 comparisons=folder / "comparisons.jsonl") | flags
    return read_json(run("evaluate.py", folder / within / f"{name}.json", **flags))


def evaluations(path):
    """The evaluations in PPO's log."""
    return held_out(read_log(path.with_suffix(".jsonl")))


# ---- the experiments: (seed, folder) -> {label: a row of the table} -------------------------

REHEARSED = {
    "as shipped": {},
    "text that is about the test people, too": dict(text="data/town/pretrain"),
    "no text": dict(ptx=0),
    "random weights instead of pretrained ones": dict(init=""),
    "AdamW's usual epsilon, 1e-8": dict(eps=1e-8),
}


def rehearsal(seed, folder):
    """Does fine-tuning make knowledge available? SFT with one thing changed at a time."""
    models = [sft(folder, f"rehearsal_{i}", seed, **flags)
              for i, flags in enumerate(REHEARSED.values())]
    return rehearsed(scoreboard(folder, "rehearsal", *models, reward=""))


def rehearsed(board):
    return {label: (m["by_kind"]["fact"]["right"], m["by_kind"]["fact"]["right_sampled"],
                    m["grade"][0]) for label, m in zip(REHEARSED, board["models"].values())}


STARTS = {"SFT": ("sft", {}), "pretrained": ("pretrained", dict(init="pretrain.pt")),
          "scratch": ("scratch", dict(init="")),
          "SFT, without log-probabilities (InstructGPT's)": ("textbook", dict(lm=""))}


def starts(seed, folder):
    """Four starting points of the reward model, with the same comparisons and steps."""
    rows = {}
    for label, (name, flags) in STARTS.items():
        flags = {flag: file and folder / file for flag, file in flags.items()}
        out = reward_model(folder, f"reward_{name}", seed, **flags)
        board = scoreboard(folder, f"reward_{name}", folder / "sft.pt", reward=out, n_prompts=100,
                           text="")
        rm, apart = board["reward_model"], board["contrasts"]
        rows[label] = (rm["accuracy"], rm["accuracy"] / rm["ceiling"], apart["fact"][0],
                       apart["sum"][0])
    return rows


def bound(seed, folder):
    """PPO with the true grade as its reward, as if the reward model were perfect."""
    best = ppo(folder, "bound", seed, reward="data/town.py:grade", critic=folder / "reward.pt")
    models = scoreboard(folder, "bound", folder / "sft.pt", folder / "ppo.pt", best)["models"]
    start, most = (models[m]["grade"][0] for m in ("sft", "bound"))
    return {f"PPO, the {reward}": (m["grade"][0], (m["grade"][0] - start) / (most - start),
                                   m["better"], m["kl"])
            for reward, m in (("learned reward model", models["ppo"]),
                              ("true grade", models["bound"]))}


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


def detail(seed, folder, flags):
    """A short run of PPO. Its name has its flags, not a number: DETAILS may change."""
    name = "-".join(["detail-steps=8", *(f"{k}={v}" for k, v in flags.items())])
    there = {k: folder / v if k == "critic" else v for k, v in flags.items()}
    return ppo(folder, name, seed, steps=8, eval_every=1000, n_eval=400, **there)


def details(seed, folder):
    """PPO with one detail switched off at a time."""
    last = {label: evaluations(detail(seed, folder, flags))[-1] for label, flags in DETAILS.items()}
    return {label: (row["grade"] - last["as shipped"]["grade"],
                    *(row[key] for key in ("grade", "score", "kl", "ended")))
            for label, row in last.items()}


def forgotten(seed, folder):
    """The change of the loss on held-out pretraining text, with and without it in PPO."""
    labels = "as shipped", "no pretraining text"
    paths = [detail(seed, folder, DETAILS[label]) for label in labels]
    before, *after = scoreboard(folder, "forgotten", folder / "sft.pt", *paths,
                                n_prompts=100)["models"].values()
    return {label: (m["text_loss"] / before["text_loss"] - 1,) for label, m in zip(labels, after)}


def rounds(seed, folder):
    """Compare the answers of PPO's model, train the reward model again on both rounds, and continue
    PPO with it. For comparison: PPO continued with the old reward model."""
    first, again = folder / "comparisons.jsonl", folder / "ppo.pt"
    second = run("compare.py", folder / "experiments/comparisons2.jsonl", init=again, seed=seed)
    new = reward_model(folder, "reward_round2", seed, data=f"{first},{second}")
    flags = dict(init=again, reference=folder / "sft.pt", steps=18)
    paths = (again, ppo(folder, "ppo_same_reward", seed, **flags),
             ppo(folder, "ppo_round2", seed, reward=new, **flags))
    _, *found = scoreboard(folder, "rounds", folder / "sft.pt", *paths)["models"].values()
    labels = ("PPO, the first round", "PPO goes on, the same reward model",
              "PPO goes on, the second reward model")
    return {label: (m["grade"][0], m["better"], m["kl"]) for label, m in zip(labels, found)}


def free(seed, folder):
    """The evaluations of a long PPO run without KL penalty."""
    return evaluations(ppo(folder, "free", seed, kl_coef=0, steps=60, eval_every=4, lr=2e-4,
                           decay=False, ptx_coef=0))


def fit(distance, gain, form):
    """Fit gain = d (alpha - beta log d) or d (alpha - beta d) by least squares, where d is the
    square root of the KL (Gao et al. 2022). Returns alpha, beta and the share of the variance that
    this explains."""
    d, gain = np.array(distance), np.array(gain)
    columns = np.stack([d, -d * (np.log(d) if form == "log" else d)], 1)
    (alpha, beta), *_ = np.linalg.lstsq(columns, gain, rcond=None)
    residual = gain - columns @ [alpha, beta]
    return alpha, beta, 1 - residual.var() / gain.var()


def overoptimise(seed, folder):
    """PPO without KL penalty, where the score rises and the grade falls; best of n. As text."""
    long = free(seed, folder)
    best = scoreboard(folder, "best_of", folder / "sft.pt", best_of=64)["best_of_n"]
    lines = [f"\noveroptimise: seed {seed}, PPO without KL penalty",
             f"{'iteration':>10} {'sqrt(KL)':>10} {'score':>10} {'grade':>10}"]
    lines += [f"{r['step']:10} {max(r['kl'], 0) ** .5:10.2f} {r['score']:10.2f} {r['grade']:10.2f}"
              for r in long]
    for name, points, form in (("PPO", long, "log"), ("best of n", best, "linear")):
        start, points = points[0], [r for r in points[1:] if r["kl"] > 0]
        d = [r["kl"] ** .5 for r in points]
        for key in ("score", "grade"):
            alpha, beta, share = fit(d, [r[key] - start[key] for r in points], form)
            law = f"d ({alpha:.2f} - {beta:.2f} {'log d' if form == 'log' else 'd'})"
            lines.append(f"    {name:10} {key}: {law:28} explains {100 * share:.0f}% of the "
                         f"variance")
    return "\n".join(lines)


TABLES = {                                            # {name: [(function, title, columns)]}
    "rehearsal": [(rehearsal, "SFT, facts about the test people", {
        "right, greedy": "{:.1%}", "right, sampled": "{:.1%}", "grade": "{:.2f}"})],
    "starts": [(starts, "the reward model on held-out pairs, and right above wrong in the same "
                "words", {"accuracy": "{:.3f}", "/ ceiling": "{:.1%}", "facts": "{:.1%}",
                          "sums": "{:.1%}"})],
    "bound": [(bound, "learned reward model and true grade as PPO's reward, on the test people", {
        "grade": "{:.2f}", "share of the gain": "{:.1%}", "better": "{:.1%}", "KL": "{:.2f}"})],
    "details": [(details, "8 iterations of PPO, held-out prompts", {
        "change in grade": "{:+.2f}", "grade": "{:.2f}", "score": "{:.2f}", "KL": "{:.1f}",
        "ended": "{:.0%}"}),
        (forgotten, "loss on pretraining text, against after SFT", {"change": "{:+.1%}"})],
    "rounds": [(rounds, "a second round of comparisons, on the test people", {
        "grade": "{:.2f}", "better": "{:.1%}", "KL": "{:.2f}"})],
}


if __name__ == "__main__":
    config = parse_config(Config, __doc__)
    for name in chosen(config.what, [*TABLES, "overoptimise"]):
        for function, title, columns in TABLES.get(name, ()):
            show(f"{name}: {title}", columns, for_each_seed(config, function))
        if name == "overoptimise":
            print(*for_each_seed(config, overoptimise), sep="\n")
