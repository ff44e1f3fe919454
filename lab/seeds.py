"""Run the whole chain with several seeds; print the median [least, most] of each result.

    python -m lab.seeds                # 5 seeds one after another, in out/seed0 … out/seed4
    python -m lab.seeds --seeds=3      # finished seeds are not run again

One run can be luck. A claim needs the spread over seeds.
"""

import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from checkpoint import read_log
from common import fail, parse_config, read_json


@dataclass
class Config:
    seeds: int = 5             # how many: 0, 1, …
    folder: str = "out/seed"   # the folders' names, without the number
    debug: bool = False        # show tracebacks


@dataclass
class Chains(Config):
    """The flags of all that reads finished chains."""
    seeds: int = 3
    jobs: int = 1              # runs at a time, each with its share of the cores


# ---- for all of the lab ---------------------------------------------------------------------

def folders(config):
    return [Path(f"{config.folder}{seed}") for seed in range(config.seeds)]


def check_finished(config):
    for folder in folders(config):
        if not (folder / "scoreboard.json").exists():
            fail(f"--folder={config.folder}: {folder} has no scoreboard.json: `python -m "
                 f"lab.seeds --seeds={config.seeds}` makes it")


def for_each_seed(config, function):
    """[function(seed, folder)], config.jobs at a time."""
    if config.jobs > 1:
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, os.cpu_count() // config.jobs)))
    with ThreadPoolExecutor(config.jobs) as pool:
        return list(pool.map(function, range(config.seeds), folders(config)))


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


# ---- what a chain has reached ---------------------------------------------------------------

def figures(folder):
    """{label: (format, value)} from a chain's scoreboard and its log of pretraining."""
    board, log = read_json(folder / "scoreboard.json"), read_log(folder / "pretrain.jsonl")
    pretrained, sft, ppo = (board["models"][name] for name in ("pretrain", "sft", "ppo"))
    rm, apart = board["reward_model"], board["contrasts"]
    before, after = sft["by_kind"], ppo["by_kind"]
    no_worse = sum(after[kind]["grade"] >= before[kind]["grade"] for kind in before)
    last = [row for row in log if "entropy" in row][-1]
    return {
        "pretraining: loss above the town's entropy": (
            "{:+.1%}", last["val_loss"] / last["entropy"] - 1),
        "SFT: facts nobody asked about in SFT": ("{:.1%}", before["fact"]["right"]),
        "SFT: the same, sampled": ("{:.1%}", before["fact"]["right_sampled"]),
        "PPO: facts nobody asked about in SFT": ("{:.1%}", after["fact"]["right"]),
        "PPO: the same, sampled": ("{:.1%}", after["fact"]["right_sampled"]),
        "SFT: sums not seen in SFT": ("{:.1%}", before["sum"]["right"]),
        "SFT: unknown people recognised": ("{:.1%}", before["unknown"]["right"]),
        "PPO: unknown people recognised": ("{:.1%}", after["unknown"]["right"]),
        "SFT: known people called unknown": ("{:.1%}", before["fact"]["unsure"]),
        "PPO: known people called unknown": ("{:.1%}", after["fact"]["unsure"]),
        "reward model: accuracy": ("{:.3f}", rm["accuracy"]),
        "reward model: ceiling": ("{:.3f}", rm["ceiling"]),
        "reward model: accuracy / ceiling": ("{:.1%}", rm["accuracy"] / rm["ceiling"]),
        "reward model: right above wrong fact": ("{:.1%}", apart["fact"][0]),
        "reward model: right above wrong sum": ("{:.1%}", apart["sum"][0]),
        "grade after pretraining": ("{:.2f}", pretrained["grade"][0]),
        "grade after SFT": ("{:.2f}", sft["grade"][0]),
        "grade after PPO": ("{:.2f}", ppo["grade"][0]),
        "grade after PPO, 200 prompts": ("{:.2f}", ppo["grade_same"]),
        "grade of best-of-16 from SFT, the same": ("{:.2f}", board["best_of_n"][-1]["grade"]),
        "PPO better than SFT": ("{:.1%}", ppo["better"]),
        "PPO equal to SFT": ("{:.1%}", ppo["equal"]),
        "PPO worse than SFT": ("{:.1%}", ppo["worse"]),
        "kinds of prompt no worse than after SFT": ("{:.0f} of 6", no_worse),
        "KL of PPO from SFT, nats": ("{:.2f}", ppo["kl"]),
        "entropy, nats per token: pretrained": ("{:.3f}", pretrained["entropy"]),
        "entropy: SFT": ("{:.3f}", sft["entropy"]),
        "entropy: PPO": ("{:.3f}", ppo["entropy"]),
        "distinct word pairs: pretrained": ("{:.3f}", pretrained["distinct_2"]),
        "distinct word pairs: SFT": ("{:.3f}", sft["distinct_2"]),
        "distinct word pairs: PPO": ("{:.3f}", ppo["distinct_2"]),
        "answers of PPO that end": ("{:.1%}", ppo["ended"]),
        "loss on text, PPO / SFT - 1": ("{:+.1%}", ppo["text_loss"] / sft["text_loss"] - 1),
    }


def over_chains(folders):
    """{label: [[format, the value of each seed …]]}"""
    found = [figures(folder) for folder in folders]
    return {label: [[form, *(rows[label][1] for rows in found)]]
            for label, (form, _) in found[0].items()}


if __name__ == "__main__":
    config = parse_config(Config, __doc__)
    for seed, folder in enumerate(folders(config)):
        flags = dict(os.environ, OUT=str(folder), SEED=str(seed))
        if not (folder / "scoreboard.json").exists():
            if subprocess.run(["bash", "run.sh"], env=flags).returncode:
                fail(f"seed {seed} stopped; the same command continues there")
    print(f"\nseeds 0 to {config.seeds - 1}, the median [least, most]")
    print_rows(over_chains(folders(config)))
