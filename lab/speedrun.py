"""A record to beat: `bash run.sh`, timed, over a few seeds, and what came out of it.

    python -m lab.speedrun --what="fewer steps"    # what you have changed, in a few words

Runs the chain from nothing, as a new user does, with seeds 0, 1, 2 in out/speedrun0, …1, …2.
Prints whether the results keep the rule of docs/speedrun.md, and a row for the table there.
"""

import datetime
import os
import platform
import subprocess
import time
from dataclasses import dataclass
from statistics import median

import torch

from common import clock, fail, parse_config, pick_dtype
from lab.chains import Chain, spread
from lab.compare_methods import flops
from lab.seeds import figures, run_chain


@dataclass
class Config:
    seeds: int = 3                  # how many: 0, 1, …
    folder: str = "out/speedrun"    # the folders' names, without the number; there must be none yet
    what: str = "as it is"          # what is new, for the table
    debug: bool = False             # show tracebacks


# What the seeds must reach: at least so much by their median, and by the worst of them.
RULE = {"grade after PPO": (6.65, 6.55), "SFT: facts nobody asked about in SFT": (0.95, 0.90),
        "SFT: sums not seen in SFT": (0.98, 0.95),
        "reward model: accuracy / ceiling": (0.92, 0.85)}


def broken(found):
    """The lines to print where a rule is broken. found: for each seed {label: (format, value)}."""
    values = {label: [rows[label][1] for rows in found] for label in RULE}
    return [f"{label}: {spread(values[label], found[0][label][0])}, but the rule is a median of at "
            f"least {middle} and no seed below {least}" for label, (middle, least) in RULE.items()
            if median(values[label]) < middle or min(values[label]) < least]


def cpu():
    """The name of the CPU, and the dtype that it computes in."""
    names = [platform.processor() or platform.machine()]
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as f:
            names = [line.partition(":")[2].strip() for line in f if line.startswith("model name")]
    dtype = str(pick_dtype("auto", torch.device("cpu")))[6:]
    return f"{torch.get_num_threads()} cores, {names[0]}, {dtype}"


if __name__ == "__main__":
    config = parse_config(Config, __doc__)
    chains = [Chain(config, seed) for seed in range(config.seeds)]
    for chain in chains:
        if chain.folder.exists():
            fail(f"{chain.folder} is there already, and a record starts from nothing: remove it, "
                 f"or choose another --folder")
    seconds = []
    for chain in chains:
        began = time.monotonic()
        run_chain(chain)
        seconds.append(time.monotonic() - began)
    found = [figures(chain) for chain in chains]
    spent = [sum(flops(chain, chain / "ppo.pt").values()) / 1e12 for chain in chains]
    grades = [rows["grade after PPO"][1] for rows in found]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True,
                            encoding="utf-8")
    print(*(broken(found) or ["the rule is kept"]), sep="\n")
    print(f"| {datetime.date.today()} | {clock(median(seconds))} | {median(spent):.0f} | "
          f"{spread(grades, '{:.2f}')} | {config.what} | {commit.stdout.strip()} | {cpu()} |")
