"""The curves of all stages as SVG, for the report and for the live page."""

import math
from html import escape

from checkpoint import read_log
from view.views import held_out


def both(en, zh):
    """A text in two languages; the page shows one of them."""
    return f'<span lang="en">{escape(en)}</span><span lang="zh">{escape(zh)}</span>'


def made_by(command):
    """The note under a figure."""
    if not command:
        return ""
    return f"<p class=note>{both('made by', '生成命令')} <code>{escape(command)}</code></p>"


def lines_of(folder, board):
    """Six panels: stage, title, and lines (name, colour, style, points); texts in two languages."""
    logs = {s: read_log(folder / f"{s}.jsonl") for s in ("pretrain", "sft", "reward", "ppo")}
    seen, best = ([r if r.get("kl") is None else dict(r, distance=max(r["kl"], 0) ** 0.5)
                   for r in rows] for rows in (held_out(logs["ppo"]), board.get("best_of_n", [])))

    def line(rows, key, en, zh, colour, style="-", x="step"):
        points = [(r.get(x), r.get(key)) for r in rows]
        points = [point for point in points if None not in point]     # None: was not finite
        every = -(-len(points) // 400) or 1           # the last one is always there
        return (en, zh), f"var(--{colour})", style, points[::-every][::-1]

    def losses(name):
        return [line(logs[name], "loss", "training", "训练", "loss", ":"),
                line(logs[name], "val_loss", "held out", "留出", "loss", "o-"),
                line(logs[name], "entropy", "floor: the text's entropy", "下限：文本的熵", "text",
                     "--")]

    steps = logs["ppo"]
    return [
        ("pretrain", ("1 Pretraining: loss (nats per token)", "1 预训练：损失（每词元奈特）"),
         losses("pretrain")),
        ("sft", ("2 Supervised fine-tuning: loss", "2 监督微调：损失"), losses("sft")),
        ("reward", ("3 Reward model: accuracy on pairs", "3 奖励模型：配对准确率"), [
            line(logs["reward"], "val_accuracy", "held out", "留出", "reward", "o-"),
            line(logs["reward"], "ceiling", "ceiling: the labels' noise", "上限：标注噪声", "text",
                 "--")]),
        ("ppo", ("4 PPO: held-out prompts", "4 PPO：留出的提问"), [
            line(seen, "score", "learned score", "学到的分数", "reward", "o-"),
            line(seen, "grade", "true grade", "真实评分", "checkpoint", "s-"),
            line(seen, "kl", "KL from SFT", "与 SFT 的 KL", "text", ":")]),
        ("ppo", ("PPO and best of n against √KL", "PPO 与 best-of-n，横轴 √KL"), [
            line(seen, "score", "PPO: score", "PPO：分数", "reward", "o-", "distance"),
            line(seen, "grade", "PPO: grade", "PPO：评分", "checkpoint", "s-", "distance"),
            line(best, "score", "best of n: score", "best-of-n：分数", "reward", "x--", "distance"),
            line(best, "grade", "best of n: grade", "best-of-n：评分", "checkpoint", "x--",
                 "distance")]),
        ("ppo", ("PPO, each iteration", "PPO，每次迭代"), [
            line(steps, "ppo/val/explained_var", "variance that the critic explains",
                 "评论家解释的方差", "model", "-"),
            line(steps, "ppo/policy/clipfrac", "clipped tokens", "被截断的词元", "loss", "-")])]


def dashes(style):
    return "dashed" if "--" in style else "dotted" if ":" in style else "solid"


def ticks(low, high):
    """About five round numbers between low and high."""
    size = 10 ** math.floor(math.log10((high - low) / 5))
    step = size * next(k for k in (1, 2, 5, 10) if k * size >= (high - low) / 5)
    return [i * step for i in range(math.ceil(low / step), math.floor(high / step + 1e-6) + 1)]


def draw(lines, W=440, H=260):
    """Lines (name, colour, style, points) as SVG. In a style, "-" stands for a line, "--" for a
    dashed and ":" for a dotted one; any other character for a dot at each point."""
    ends = []
    for values in zip(*(point for *_, points in lines for point in points)):
        low, high = min(values), max(values)
        ends.append((low, high) if low < high else (low - 0.5, high + 0.5))
    (x0, x1), (y0, y1) = ends

    def place(x, y):
        return 52 + (x - x0) / (x1 - x0) * (W - 76), H - 26 - (y - y0) / (y1 - y0) * (H - 34)

    def text(x, y, anchor, value):
        return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="13" ' \
               f'fill="currentColor">{value:g}</text>'

    parts = [text(place(v, y0)[0], H - 6, "middle", v) for v in ticks(x0, x1)]
    for v in ticks(y0, y1):
        y = place(x0, v)[1]
        parts += [text(46, y + 4, "end", v),
                  f'<path d="M52,{y:.1f}H{W - 24}" stroke="currentColor" opacity=".2"/>']
    for _, colour, style, points in lines:
        at = [place(*point) for point in points]
        if "-" in style or ":" in style:
            dash = {"dashed": "7 4", "dotted": "2 3", "solid": "none"}[dashes(style)]
            parts.append(f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in at)}" '
                         f'fill="none" stroke="{colour}" stroke-width="2" '
                         f'stroke-dasharray="{dash}"/>')
        if style.strip("-:") or len(points) == 1:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>'
                      for x, y in at]
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {W} {H}" role="img">' \
           f'{"".join(parts)}</svg>'


def curves(folder, board, commands):
    """The panels that have a line. commands: {stage: the command that made it}"""
    figures = []
    for stage, title, lines in lines_of(folder, board):
        lines = [line for line in lines if line[3]]
        if lines:
            legend = "".join(f'<li style="--c:{colour}" class={dashes(style)}>{both(*name)} '
                             f"{points[-1][1]:.3f}</li>" for name, colour, style, points in lines)
            figures.append(f"<figure>{draw(lines)}<figcaption><b>{both(*title)}</b>"
                           f"<ul class=legend>{legend}</ul>{made_by(commands.get(stage))}"
                           f"</figcaption></figure>")
    return "".join(figures)
