"""Run the whole chain with several seeds; print the median [least, most] of each result.

    python -m lab.seeds                # 5 seeds one after another, in out/seed0 … out/seed4
    python -m lab.seeds --seeds=3      # finished seeds are not run again

One run can be luck. A claim needs the spread over seeds.
"""

import os
import subprocess
from dataclasses import dataclass

from checkpoint import read_log
from common import fail, parse_config
from lab.chains import Chain, print_rows


@dataclass
class Config:
    seeds: int = 5             # how many: 0, 1, …
    folder: str = "out/seed"   # the folders' names, without the number
    debug: bool = False        # show tracebacks


def figures(chain):
    """{label: (format, value)} from a chain's scoreboard and its log of pretraining."""
    board, log = chain.board, read_log(chain / "pretrain.jsonl")
    pretrained, sft, ppo = chain.models
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


def over_chains(chains):
    """{label: [[format, the value of each seed …]]}"""
    found = [figures(chain) for chain in chains]
    return {label: [[form, *(rows[label][1] for rows in found)]]
            for label, (form, _) in found[0].items()}


def run_chain(chain):
    flags = dict(os.environ, OUT=str(chain.folder), SEED=str(chain.seed))
    if subprocess.run(["bash", "run.sh"], env=flags).returncode:
        fail(f"seed {chain.seed} stopped: `OUT={chain.folder} SEED={chain.seed} bash run.sh` "
             f"continues there")


if __name__ == "__main__":
    config = parse_config(Config, __doc__)
    found = [Chain(config, seed) for seed in range(config.seeds)]
    for chain in found:
        if not (chain / "scoreboard.json").exists():
            run_chain(chain)
    print(f"\nseeds 0 to {config.seeds - 1}, the median [least, most]")
    print_rows(over_chains(found))
