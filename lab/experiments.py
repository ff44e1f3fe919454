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

from checkpoint import read_log
from common import fail, parse_config, read_json
from lab.seeds import Chains, check_finished, for_each_seed, show


@dataclass
class Config(Chains):
    what: str = "rehearsal,starts,bound,details,rounds,overoptimise"   # which experiments


# ---- running the scripts --------------------------------------------------------------------

def chosen(what, known):
    """The names in --what."""
    for name in what.split(","):
        if name not in known:
            fail(f"--what={name} is not one of {', '.join(known)}")
    return what.split(",")


# What a script reads of the chain, unless its flags say otherwise.
READS = {
    "pretrain.py": dict(tokenizer="tokenizer.json"),
    "sft.py": dict(init="pretrain.pt", like="pretrain.pt"),
    "compare.py": dict(init="sft.pt"),
    "reward.py": dict(data="comparisons.jsonl", init="sft.pt", like="sft.pt", lm="sft.pt"),
    "evaluate.py": dict(reward="reward.pt", comparisons="comparisons.jsonl"),
    "-m lessons.few_shot": dict(base="pretrain.pt", chat="sft.pt"),
    "-m lessons.lora": dict(init="pretrain.pt"),
    "-m lessons.dpo": dict(init="sft.pt", data="comparisons.jsonl"),
} | dict.fromkeys(["rlhf_ppo.py", "-m lessons.grpo", "-m lessons.best_of_n"],
                  dict(init="sft.pt", reward="reward.pt"))


def run(script, folder, name, **flags):
    """Run python <script> --out=<folder>/experiments/<name> --flag=value …, unless that file is
    there: its path. The name of a file of the chain stands for that file. What the script prints
    goes to a .txt beside the result."""
    out = folder / "experiments" / name
    if out.exists():
        return out
    out.parent.mkdir(exist_ok=True)
    flags = {k: folder / v if isinstance(v, str) and v and (folder / v).exists() else v
             for k, v in (READS[script] | flags).items()}
    command = [sys.executable, *script.split(), f"--out={out}",
               *(f"--{k}={v}" for k, v in flags.items())]
    with open(out.with_suffix(".txt"), "w", encoding="utf-8") as printed:
        ended = subprocess.run(command, stdout=printed, stderr=printed)
    if ended.returncode:
        raise ValueError(f"{shlex.join(command[1:])} stopped: {out.with_suffix('.txt')} says why; "
                         f"the same command continues there")
    print(f"    {out}", flush=True)
    return out


def scoreboard(folder, name, *models, **flags):
    """The scoreboard of evaluate.py, on prompts about the test people."""
    flags = dict(best_of=0, models=",".join(map(str, models))) | flags
    return read_json(run("evaluate.py", folder, f"{name}.json", **flags))


def examined(folder, name, *models, **flags):
    """What the scoreboard says of each of the models."""
    return [*scoreboard(folder, name, *models, **flags)["models"].values()]


def right(model, *kinds, key="right"):
    """The share of the answers, greedy or sampled, that are right, to prompts of these kinds, or of
    all."""
    found = [model["by_kind"][kind] for kind in kinds or model["by_kind"]]
    return sum(f[key] * f["n"] for f in found) / sum(f["n"] for f in found)


def evaluations(path):
    """The evaluations in PPO's log."""
    return [row for row in read_log(path.with_suffix(".jsonl")) if "split" in row]


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
    models = [run("sft.py", folder, f"rehearsal_{i}.pt", seed=seed, **flags)
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
        out = run("reward.py", folder, f"reward_{name}.pt", seed=seed, **flags)
        board = scoreboard(folder, f"reward_{name}", folder / "sft.pt", reward=out, n_prompts=100,
                           text="")
        rm, apart = board["reward_model"], board["contrasts"]
        rows[label] = (rm["accuracy"], rm["accuracy"] / rm["ceiling"], apart["fact"][0],
                       apart["sum"][0])
    return rows


def bound(seed, folder):
    """PPO with the true grade as its reward, as if the reward model were perfect."""
    best = run("rlhf_ppo.py", folder, "bound.pt", seed=seed, reward="data/town.py:grade",
               critic="reward.pt")
    sft, *found = examined(folder, "bound", folder / "sft.pt", folder / "ppo.pt", best)
    start, most = sft["grade"][0], found[1]["grade"][0]
    labels = "PPO, the learned reward model", "PPO, the true grade"
    return {label: (m["grade"][0], (m["grade"][0] - start) / (most - start), m["better"], m["kl"])
            for label, m in zip(labels, found)}


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


def details(seed, folder):
    """A short run of PPO with one detail switched off at a time. The name of a run has its flags,
    not a number: DETAILS may change."""
    last = {}
    for label, flags in DETAILS.items():
        name = "-".join(["detail-steps=8", *(f"{k}={v}" for k, v in flags.items())])
        out = run("rlhf_ppo.py", folder, f"{name}.pt", seed=seed, steps=8, eval_every=1000,
                  n_eval=400, **flags)
        last[label] = evaluations(out)[-1]
    return {label: (row["grade"] - last["as shipped"]["grade"],
                    *(row[key] for key in ("grade", "score", "kl", "ended")))
            for label, row in last.items()}


def rounds(seed, folder):
    """Compare the answers of PPO's model, train the reward model again on both rounds, and continue
    PPO with it. For comparison: PPO continued with the old reward model."""
    first, again = folder / "comparisons.jsonl", folder / "ppo.pt"
    second = run("compare.py", folder, "comparisons2.jsonl", init="ppo.pt", seed=seed)
    rewards = dict(same_reward="reward.pt", round2=run(
        "reward.py", folder, "reward_round2.pt", data=f"{first},{second}", seed=seed))
    paths = [run("rlhf_ppo.py", folder, f"ppo_{name}.pt", init="ppo.pt", reference="sft.pt",
                 steps=18, reward=reward, seed=seed) for name, reward in rewards.items()]
    _, *found = examined(folder, "rounds", folder / "sft.pt", again, *paths)
    labels = ("PPO, the first round", "PPO goes on, the same reward model",
              "PPO goes on, the second reward model")
    return {label: (m["grade"][0], m["better"], m["kl"]) for label, m in zip(labels, found)}


def free(seed, folder):
    """The evaluations of a long PPO run without KL penalty."""
    return evaluations(run("rlhf_ppo.py", folder, "free.pt", seed=seed, kl_coef=0, steps=60,
                           eval_every=4, lr=2e-4, decay=False, ptx_coef=0))


def overoptimise(seed, folder):
    """PPO without KL penalty: the score rises, and the grade may fall."""
    return {f"iteration {row['step']}": (max(row["kl"], 0) ** 0.5, row["score"], row["grade"])
            for row in free(seed, folder)}


TABLES = {                                            # {name: (function, title, columns)}
    "rehearsal": (rehearsal, "SFT, facts about the test people", {
        "right, greedy": "{:.1%}", "right, sampled": "{:.1%}", "grade": "{:.2f}"}),
    "starts": (starts, "the reward model on held-out pairs, and right above wrong in the same "
                "words", {"accuracy": "{:.3f}", "/ ceiling": "{:.1%}", "facts": "{:.1%}",
                          "sums": "{:.1%}"}),
    "bound": (bound, "learned reward model and true grade as PPO's reward, on the test people", {
        "grade": "{:.2f}", "share of the gain": "{:.1%}", "better": "{:.1%}", "KL": "{:.2f}"}),
    "details": (details, "8 iterations of PPO, held-out prompts", {
        "change in grade": "{:+.2f}", "grade": "{:.2f}", "score": "{:.2f}", "KL": "{:.1f}",
        "ended": "{:.0%}"}),
    "rounds": (rounds, "a second round of comparisons, on the test people", {
        "grade": "{:.2f}", "better": "{:.1%}", "KL": "{:.2f}"}),
    "overoptimise": (overoptimise, "PPO without KL penalty, held-out prompts", {
        "sqrt(KL)": "{:.2f}", "score": "{:.2f}", "grade": "{:.2f}"}),
}


if __name__ == "__main__":
    config = parse_config(Config, __doc__)
    check_finished(config)
    for name in chosen(config.what, TABLES):
        function, title, columns = TABLES[name]
        show(f"{name}: {title}", columns, for_each_seed(config, function))
