"""The scoreboard as a table, and the curves of all stages in one picture. It shows what exists so
far, so you can run it while the stages run.

reads   out/pretrain.jsonl, sft.jsonl, reward.jsonl, ppo.jsonl, scoreboard.json: those that exist
writes  the table on the screen, out/report.png

    python -m tools.report
    python -m tools.report --folder=out/seed1
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common import fail, parse_config
from evaluate import show


@dataclass
class Config:
    folder: str = "out"       # where the stages write
    out: str = ""             # the picture; "": report.png in that folder
    debug: bool = False       # show tracebacks


def read_log(path):
    """The rows of out/<stage>.jsonl, without a last line that is still being written."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def held_out(log):
    """The rows of PPO's log that are evaluations; the others are iterations."""
    return [row for row in log if row.get("split") == "held out"]


# ---- the picture ----------------------------------------------------------------------------

def curve(ax, rows, key, x="step", **style):
    """Plot row[key] against row[x], for the rows that have the key."""
    points = [(row[x], row[key]) for row in rows if row.get(key) is not None]
    if points:
        ax.plot(*zip(*points), **style)


def draw(folder, board, path):
    """Six panels: the four training curves, grade and score against the square root of the KL
    (Gao et al. 2022), and the grade by kind of prompt."""
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(15, 8.5))
    logs = {s: read_log(folder / f"{s}.jsonl") for s in ("pretrain", "sft", "reward", "ppo")}
    for ax, name, title in ((axes[0, 0], "pretrain", "1 pretraining: loss (nats per token)"),
                            (axes[0, 1], "sft", "2 supervised fine-tuning: loss")):
        curve(ax, logs[name], "loss", label="training" + " (text too)" * (name == "sft"))
        curve(ax, logs[name], "val_loss", label="held out", marker="o")
        curve(ax, logs[name], "entropy", label="entropy of the text", linestyle="--", color="gray")
        ax.set(title=title, xlabel="step", yscale="log")

    ax = axes[0, 2]
    curve(ax, logs["reward"], "val_accuracy", label="accuracy, held out", marker="o")
    curve(ax, logs["reward"], "ceiling", label="ceiling", linestyle="--", color="gray")
    ax.set(title="3 reward model: accuracy on pairs", xlabel="step")

    seen = [dict(r, distance=max(r["kl"], 0) ** 0.5) for r in held_out(logs["ppo"])]
    ax = axes[1, 0]
    curve(ax, seen, "score", label="learned score", marker="o")
    curve(ax, seen, "grade", label="true grade", marker="s")
    curve(ax, seen, "kl", label="KL from SFT (nats)", linestyle=":")
    ax.set(title="4 PPO: held-out prompts", xlabel="iteration")

    ax = axes[1, 1]
    best_of_n = [dict(r, distance=r["kl"] ** 0.5) for r in board.get("best_of_n", [])]
    for key, colour in (("score", "C0"), ("grade", "C1")):
        curve(ax, seen, key, "distance", color=colour, marker="o", label=f"PPO: {key}")
        curve(ax, best_of_n, key, "distance", color=colour, marker="x", linestyle="--",
              label=f"best of n: {key}")
    ax.set(title="grade and score against distance", xlabel="sqrt(KL) from SFT")

    ax = axes[1, 2]
    judged = {name: m["by_kind"] for name, m in board.get("models", {}).items() if "by_kind" in m}
    for i, (name, kinds) in enumerate(judged.items()):
        ax.bar(np.arange(len(kinds)) + 0.27 * (i - 1), [k["grade"] for k in kinds.values()],
               width=0.26, label=name)
        ax.set_xticks(range(len(kinds)), list(kinds), rotation=20)
    ax.set(title="true grade by kind of prompt", ylim=(1, 7.8))

    for ax in axes.flat:
        ax.grid(alpha=0.3)
        if ax.get_legend_handles_labels()[0]:
            ax.legend(ncols=3 if ax is axes[1, 2] else 1)
    figure.tight_layout()
    figure.savefig(path, dpi=90)
    plt.close(figure)


if __name__ == "__main__":
    config = parse_config(Config, __doc__)
    folder = Path(config.folder)
    if not any(folder.glob("*.jsonl")):
        fail(f"--folder={folder} has no logs yet: run a stage, or choose another --folder")
    scoreboard = folder / "scoreboard.json"
    board = json.loads(scoreboard.read_text()) if scoreboard.exists() else {}
    path = config.out or folder / "report.png"
    if board:
        show(board)
    draw(folder, board, path)
    print(f"saved {path}")
