"""Run the whole chain with several seeds; print the median, least and most of each result.

    python -m lab.seeds                # 5 seeds one after another, in out/seed0 … out/seed4
    python -m lab.seeds --seeds=3      # finished seeds are not run again

One run can be luck. A claim needs the spread over seeds.
"""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from common import fail, parse_config
from tools.report import read_log


@dataclass
class Config:
    seeds: int = 5            # how many: 0, 1, …
    out: str = "out/seed"     # the folders' names, without the number
    debug: bool = False       # show tracebacks


def kind(board, model, name, value):
    return board["models"][model]["by_kind"][name][value]


def kinds_no_worse(board):
    """How many kinds of prompt have at least the grade after PPO that they had after SFT."""
    sft, ppo = (board["models"][m]["by_kind"] for m in ("sft", "ppo"))
    return sum(ppo[name]["grade"] >= sft[name]["grade"] for name in sft)


def above_entropy(board):
    """Loss / entropy - 1 at the last evaluation in the log of pretraining."""
    last = [row for row in read_log(board["folder"] / "pretrain.jsonl") if "entropy" in row][-1]
    return last["val_loss"] / last["entropy"] - 1


# The numbers in the table: name, function of the scoreboard, format.
FIGURES = [
    ("pretraining: loss above the town's entropy", above_entropy, "{:+.1%}"),
    ("SFT: facts nobody asked about in SFT", lambda b: kind(b, "sft", "fact", "right"), "{:.1%}"),
    ("SFT: sums not seen in SFT", lambda b: kind(b, "sft", "sum", "right"), "{:.1%}"),
    ("SFT: unknown people recognised", lambda b: kind(b, "sft", "unknown", "right"), "{:.1%}"),
    ("SFT: known people called unknown", lambda b: kind(b, "sft", "fact", "unsure"), "{:.1%}"),
    ("PPO: known people called unknown", lambda b: kind(b, "ppo", "fact", "unsure"), "{:.1%}"),
    ("reward model: accuracy", lambda b: b["reward_model"]["accuracy"], "{:.3f}"),
    ("reward model: accuracy / ceiling",
     lambda b: b["reward_model"]["accuracy"] / b["reward_model"]["ceiling"], "{:.1%}"),
    ("reward model: right above wrong fact", lambda b: b["contrasts"]["fact"][0], "{:.1%}"),
    ("reward model: right above wrong sum", lambda b: b["contrasts"]["sum"][0], "{:.1%}"),
    ("grade after SFT", lambda b: b["models"]["sft"]["grade"][0], "{:.2f}"),
    ("grade after PPO", lambda b: b["models"]["ppo"]["grade"][0], "{:.2f}"),
    ("grade after PPO, 200 prompts", lambda b: b["models"]["ppo"]["grade_same"], "{:.2f}"),
    ("grade of best-of-16 from SFT, the same", lambda b: b["best_of_n"][-1]["grade"], "{:.2f}"),
    ("win rate of PPO against SFT", lambda b: b["models"]["ppo"]["win_rate"][0], "{:.1%}"),
    ("kinds of prompt no worse than after SFT", kinds_no_worse, "{:.0f} of 6"),
    ("KL of PPO from SFT, nats", lambda b: b["models"]["ppo"]["kl"], "{:.2f}"),
    ("entropy, nats per token: pretrained", lambda b: b["models"]["pretrain"]["entropy"], "{:.3f}"),
    ("entropy: SFT", lambda b: b["models"]["sft"]["entropy"], "{:.3f}"),
    ("entropy: PPO", lambda b: b["models"]["ppo"]["entropy"], "{:.3f}"),
    ("distinct word pairs: pretrained", lambda b: b["models"]["pretrain"]["distinct_2"], "{:.3f}"),
    ("distinct word pairs: SFT", lambda b: b["models"]["sft"]["distinct_2"], "{:.3f}"),
    ("distinct word pairs: PPO", lambda b: b["models"]["ppo"]["distinct_2"], "{:.3f}"),
    ("answers of PPO that end", lambda b: b["models"]["ppo"]["ended"], "{:.1%}"),
    ("loss on text, PPO / SFT - 1",
     lambda b: b["models"]["ppo"]["text_loss"] / b["models"]["sft"]["text_loss"] - 1, "{:+.1%}"),
]


if __name__ == "__main__":
    config = parse_config(Config, __doc__)
    boards = []
    for seed in range(config.seeds):
        folder = Path(f"{config.out}{seed}")
        if not (folder / "scoreboard.json").exists():
            ended = subprocess.run(["bash", "run.sh"],
                                   env=dict(os.environ, OUT=str(folder), SEED=str(seed)))
            if ended.returncode:
                fail(f"seed {seed} stopped; the same command continues there")
        boards.append(json.loads((folder / "scoreboard.json").read_text()) | dict(folder=folder))

    print(f"\n{'seeds 0 to ' + str(config.seeds - 1):44}{'median':>10}{'least':>10}{'most':>10}")
    for name, find, form in FIGURES:
        values = [find(board) for board in boards]
        print(f"{name:44}" + "".join(f"{form.format(v):>10}"
                                     for v in (median(values), min(values), max(values))))
