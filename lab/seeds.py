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
    seeds: int = 5            # how many: 0, 1, …
    out: str = "out/seed"     # the folders' names, without the number
    debug: bool = False       # show tracebacks


# ---- for all of the lab ---------------------------------------------------------------------

@dataclass
class Chains:
    """The flags of what reads finished chains."""
    seeds: int = 3             # how many: 0, 1, …
    folder: str = "out/seed"   # the folders' names, without the number
    jobs: int = 1              # runs at a time
    debug: bool = False        # show tracebacks


def finished_chains(config):
    """[(seed, folder)]. Gives each of --jobs runs its share of the cores."""
    chains = [(seed, Path(f"{config.folder}{seed}")) for seed in range(config.seeds)]
    for _, folder in chains:
        if not (folder / "ppo.pt").exists():
            fail(f"--folder={config.folder}: {folder} has no ppo.pt: `python -m lab.seeds "
                 f"--seeds={config.seeds}` makes it")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // config.jobs)))
    return chains


def for_each_seed(config, function):
    """[function(seed, folder)] of the finished chains, config.jobs at a time."""
    with ThreadPoolExecutor(config.jobs) as pool:
        return list(pool.map(lambda chain: function(*chain), finished_chains(config)))


def spread(values, form):
    """The median [least, most] over the seeds; a single value stands alone."""
    text = form.format(median(values))
    return text + f" [{form}, {form}]".format(min(values), max(values)) * (len(values) > 1)


def show(title, columns, found):
    """Print a table. columns: {name: format}; found: for each seed {label: a row of values}."""
    width = max(map(len, found[0])) + 1
    print(f"\n{title}\n{'':{width}}" + "".join(f"{name:>25}" for name in columns))
    for label in found[0]:
        values = zip(*(rows[label] for rows in found))
        print(f"{label:{width}}" + "".join(f"{spread(v, form):>25}"
                                           for v, form in zip(values, columns.values())))


# ---- what a chain has reached ---------------------------------------------------------------

def figures(board, log):
    """[(name, value, format)] from a scoreboard and the log of pretraining."""
    pretrained, sft, ppo = (board["models"][name] for name in ("pretrain", "sft", "ppo"))
    rm, apart = board["reward_model"], board["contrasts"]
    before, after = sft["by_kind"], ppo["by_kind"]
    last = [row for row in log if "entropy" in row][-1]
    return [
        ("pretraining: loss above the town's entropy", last["val_loss"] / last["entropy"] - 1,
         "{:+.1%}"),
        ("SFT: facts nobody asked about in SFT", before["fact"]["right"], "{:.1%}"),
        ("SFT: the same, sampled", before["fact"]["right_sampled"], "{:.1%}"),
        ("PPO: facts nobody asked about in SFT", after["fact"]["right"], "{:.1%}"),
        ("PPO: the same, sampled", after["fact"]["right_sampled"], "{:.1%}"),
        ("SFT: sums not seen in SFT", before["sum"]["right"], "{:.1%}"),
        ("SFT: unknown people recognised", before["unknown"]["right"], "{:.1%}"),
        ("PPO: unknown people recognised", after["unknown"]["right"], "{:.1%}"),
        ("SFT: known people called unknown", before["fact"]["unsure"], "{:.1%}"),
        ("PPO: known people called unknown", after["fact"]["unsure"], "{:.1%}"),
        ("reward model: accuracy", rm["accuracy"], "{:.3f}"),
        ("reward model: ceiling", rm["ceiling"], "{:.3f}"),
        ("reward model: accuracy / ceiling", rm["accuracy"] / rm["ceiling"], "{:.1%}"),
        ("reward model: right above wrong fact", apart["fact"][0], "{:.1%}"),
        ("reward model: right above wrong sum", apart["sum"][0], "{:.1%}"),
        ("grade after pretraining", pretrained["grade"][0], "{:.2f}"),
        ("grade after SFT", sft["grade"][0], "{:.2f}"),
        ("grade after PPO", ppo["grade"][0], "{:.2f}"),
        ("grade after PPO, 200 prompts", ppo["grade_same"], "{:.2f}"),
        ("grade of best-of-16 from SFT, the same", board["best_of_n"][-1]["grade"], "{:.2f}"),
        ("PPO better than SFT", ppo["better"], "{:.1%}"),
        ("PPO equal to SFT", ppo["equal"], "{:.1%}"),
        ("PPO worse than SFT", ppo["worse"], "{:.1%}"),
        ("kinds of prompt no worse than after SFT",
         sum(after[kind]["grade"] >= before[kind]["grade"] for kind in before), "{:.0f} of 6"),
        ("KL of PPO from SFT, nats", ppo["kl"], "{:.2f}"),
        ("entropy, nats per token: pretrained", pretrained["entropy"], "{:.3f}"),
        ("entropy: SFT", sft["entropy"], "{:.3f}"),
        ("entropy: PPO", ppo["entropy"], "{:.3f}"),
        ("distinct word pairs: pretrained", pretrained["distinct_2"], "{:.3f}"),
        ("distinct word pairs: SFT", sft["distinct_2"], "{:.3f}"),
        ("distinct word pairs: PPO", ppo["distinct_2"], "{:.3f}"),
        ("answers of PPO that end", ppo["ended"], "{:.1%}"),
        ("loss on text, PPO / SFT - 1", ppo["text_loss"] / sft["text_loss"] - 1, "{:+.1%}"),
    ]


if __name__ == "__main__":
    config, found = parse_config(Config, __doc__), []
    for seed in range(config.seeds):
        folder = Path(f"{config.out}{seed}")
        if not (folder / "scoreboard.json").exists():
            ended = subprocess.run(["bash", "run.sh"],
                                   env=dict(os.environ, OUT=str(folder), SEED=str(seed)))
            if ended.returncode:
                fail(f"seed {seed} stopped; the same command continues there")
        found.append(figures(read_json(folder / "scoreboard.json"),
                             read_log(folder / "pretrain.jsonl")))
    print(f"\nseeds 0 to {config.seeds - 1}, the median [least, most]")
    for rows in zip(*found):
        (name, _, form), values = rows[0], [value for _, value, _ in rows]
        print(f"{name:44}{spread(values, form):>25}")
