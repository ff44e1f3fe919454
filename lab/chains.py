"""For all of the lab: finished chains, more runs on them, and tables over their seeds."""

import os
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median

from checkpoint import read_log
from common import fail, read_json


@dataclass
class Config:
    seeds: int = 3             # how many: 0, 1, …
    folder: str = "out/seed"   # the folders' names, without the number
    jobs: int = 1              # seeds at a time, each with its share of the cores
    debug: bool = False        # show tracebacks


# What a script reads of the chain, unless its flags say otherwise. The seed of what only measures
# is always 0.
READS = {
    "pretrain.py": dict(tokenizer="tokenizer.json"),
    "sft.py": dict(init="pretrain.pt", like="pretrain.pt"),
    "compare.py": dict(init="sft.pt"),
    "reward.py": dict(data="comparisons.jsonl", init="sft.pt", like="sft.pt", lm="sft.pt"),
    "evaluate.py": dict(reward="reward.pt", comparisons="comparisons.jsonl", seed=0),
    "-m lessons.few_shot": dict(base="pretrain.pt", chat="sft.pt", seed=0),
    "-m lessons.lora": dict(init="pretrain.pt"),
    "-m lessons.reason": dict(init="sft.pt"),
    "-m lessons.dpo": dict(init="sft.pt", data="comparisons.jsonl"),
} | dict.fromkeys(["rlhf_ppo.py", "-m lessons.grpo", "-m lessons.best_of_n"],
                  dict(init="sft.pt", reward="reward.pt"))


class Chain:
    """What lab/seeds.py has left of one seed. Further runs stand in its folder `experiments`;
    finished ones are not repeated."""

    def __init__(self, config, seed):
        self.seed, self.folder = seed, Path(f"{config.folder}{seed}")

    def __truediv__(self, name):
        return self.folder / name

    @cached_property
    def board(self):
        return read_json(self / "scoreboard.json")

    @property
    def models(self):
        """What the chain's own scoreboard says of pretrain, sft and ppo."""
        return [*self.board["models"].values()]

    def run(self, script, name, **flags):
        """Run python <script> --flag=value …, unless experiments/<name> is there: its path. The
        name of a file of the chain stands for that file. What it prints goes to a .txt beside."""
        out = self / "experiments" / name
        if out.exists():
            return out
        out.parent.mkdir(exist_ok=True)
        flags = {k: self / v if isinstance(v, str) and v and (self / v).exists() else v
                 for k, v in (dict(seed=self.seed) | READS[script] | flags).items()}
        command = [sys.executable, *script.split(), f"--out={out}",
                   *(f"--{k}={v}" for k, v in flags.items())]
        with open(out.with_suffix(".txt"), "w", encoding="utf-8") as printed:
            ended = subprocess.run(command, stdout=printed, stderr=printed)
        if ended.returncode:
            raise ValueError(f"{shlex.join(command[1:])} stopped: {out.with_suffix('.txt')} says "
                             f"why; the same command continues there")
        print(f"    {out}", flush=True)
        return out

    def examine(self, name, *models, **flags):
        """The scoreboard of evaluate.py for these models, on prompts about the test people; and
        what it says of each of them."""
        flags = dict(best_of=0, models=",".join(map(str, models))) | flags
        board = read_json(self.run("evaluate.py", f"{name}.json", **flags))
        return board, [*board["models"].values()]


def run_file(name, flags):
    """The file of a run has its flags, not a number: a table of runs may change."""
    return "-".join([name, *(f"{k}={v}".rpartition(":")[2] for k, v in flags.items())]) + ".pt"


def right(model, *kinds, key="right"):
    """The share of the answers, greedy or sampled, that are right, to prompts of these kinds, or of
    all."""
    found = [model["by_kind"][kind] for kind in kinds or model["by_kind"]]
    return sum(f[key] * f["n"] for f in found) / sum(f["n"] for f in found)


def evaluations(path):
    """The evaluations in PPO's log."""
    return [row for row in read_log(path.with_suffix(".jsonl")) if "split" in row]


# ---- over the seeds -------------------------------------------------------------------------

def finished(config):
    chains = [Chain(config, seed) for seed in range(config.seeds)]
    for chain in chains:
        if not (chain / "scoreboard.json").exists():
            fail(f"--folder={config.folder}: {chain.folder} has no scoreboard.json: `python -m "
                 f"lab.seeds --seeds={config.seeds}` makes it")
    return chains


def for_each(chains, function, jobs):
    """[function(chain)], some at a time."""
    if jobs > 1:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, os.cpu_count() // jobs)))
    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(function, chains))


def chosen(what, known):
    """The names in --what."""
    for name in what.split(","):
        if name not in known:
            fail(f"--what={name} is not one of {', '.join(known)}")
    return what.split(",")


def spread(values, form):
    """The median [least, most] over the seeds; a single value stands alone."""
    text = form.format(median(values))
    return text + f" [{form}, {form}]".format(min(values), max(values)) * (len(values) > 1)


def over_seeds(found, forms):
    """For each seed {label: a row of values} -> {label: [[format, the value of each seed …] …]}."""
    return {label: [list(cell) for cell in zip(forms, *(rows[label] for rows in found))]
            for label in found[0]}


def print_rows(rows, width=44):
    for label, cells in rows.items():
        print(f"{label:{width}}", *(f"{spread(v, form):>25}" for form, *v in cells), sep="")


def show(title, columns, found):
    """Print a table. columns: {name: format}; found: for each seed {label: a row of values}."""
    width = max(map(len, found[0])) + 1
    print(f"\n{title}\n{'':{width}}" + "".join(f"{name:>25}" for name in columns))
    print_rows(over_seeds(found, columns.values()), width)
