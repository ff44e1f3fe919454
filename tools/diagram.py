"""Two pictures as SVG: the chain (what each stage reads, learns and writes), and PPO's models with
the data between them. They stand in the README and on the report's first screen.

writes  docs/chain.svg, docs/ppo.svg; with --lang=zh docs/chain.zh.svg, docs/ppo.zh.svg

    python -m tools.diagram
    python -m tools.diagram --lang=zh
"""

from dataclasses import dataclass
from html import escape
from pathlib import Path

from common import fail, parse_config, writing


@dataclass
class Config:
    lang: str = "en"         # en or zh
    out: str = "docs"        # the folder to write to
    debug: bool = False      # show tracebacks


# The same thing has the same colour in the diagrams, in the report and on the page:
# (on a light background, on a dark one). They differ for colour-blind people, too (Okabe and Ito).
COLOURS = dict(text=("#5b6470", "#aab4c0"), model=("#0065a3", "#56b4e9"),
               loss=("#c24a00", "#ff8f4d"), reward=("#00795a", "#3ccf9f"),
               checkpoint=("#8a6100", "#e8b93e"))

STYLE = "text{font:14px system-ui,sans-serif;fill:currentColor}.b{font-weight:600}" \
        ".box{fill:var(--c);fill-opacity:.1;stroke:var(--c);stroke-width:1.5}" \
        ".to{fill:none;stroke:var(--c);stroke-width:2}.head{fill:var(--c)}"


def palette(dark):
    """The colours as CSS variables."""
    return "".join(f"--{name}:{pair[dark]};" for name, pair in COLOURS.items())


class Drawing:
    """Boxes, arrows and text, in the order in which they were added."""

    def __init__(self, width, height, title):
        self.size, self.title, self.parts = (width, height), title, []

    def text(self, x, y, words, kind="", bold=False, anchor="middle"):
        colour = f' style="fill:var(--{kind})"' if kind else ""
        weight = ' class="b"' if bold else ""
        self.parts.append(f'<text x="{x}" y="{y}" text-anchor="{anchor}"{colour}{weight}>'
                          f'{escape(words)}</text>')

    def box(self, x, y, width, height, kind, lines):
        """A box with its lines of text; the first one is bold."""
        self.parts.append(f'<rect class="box" style="--c:var(--{kind})" x="{x}" y="{y}" '
                          f'width="{width}" height="{height}" rx="7"/>')
        top = y + height / 2 - 9 * (len(lines) - 1) + 5
        for i, line in enumerate(lines):
            colour = "loss" if line.startswith("−") else ""           # a loss has its own colour
            self.text(x + width / 2, top + 18 * i, line, colour, bold=i == 0)

    def arrow(self, kind, *points):
        """A line through the points (x, y), horizontal or vertical at its end, with a head."""
        (x0, y0), (x, y) = points[-2:]
        dx, dy = (x > x0) - (x < x0), (y > y0) - (y < y0)
        path = "M" + " L".join(f"{px},{py}" for px, py in points[:-1])
        head = f"{x},{y} {x - 9 * dx - 5 * dy},{y - 9 * dy - 5 * dx} " \
               f"{x - 9 * dx + 5 * dy},{y - 9 * dy + 5 * dx}"
        self.parts.append(f'<g style="--c:var(--{kind})"><path class="to" d="{path} '
                          f'L{x - 6 * dx},{y - 6 * dy}"/>'
                          f'<polygon class="head" points="{head}"/></g>')

    def svg(self, colours=True):
        """colours: with its own colours, for a file; without: the page around it has them."""
        width, height = self.size
        style = STYLE
        if colours:
            style += f"svg{{{palette(0)}color:#1d2329;background:#fff}}" \
                     f"@media(prefers-color-scheme:dark){{svg{{{palette(1)}color:#e4e8ec;" \
                     f"background:#14181c}}}}"
        return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" ' \
               f'role="img"><title>{escape(self.title)}</title><style>{style}</style>' \
               + "\n".join(self.parts) + "</svg>\n"


def chain(lang):
    """What each stage reads (top), learns (middle) and writes (bottom)."""
    def t(en, zh):
        return zh if lang == "zh" else en

    d = Drawing(1000, 340, t("The chain of training", "训练流程"))
    stages = [
        (t("text", "文本"), ["pretrain.py", t("continue text", "续写文本"), "−log p(x)"],
         "pretrain.pt", "checkpoint"),
        (t("demonstrations", "示范对话"), ["sft.py", t("answer", "学会回答"),
                                       t("−log p(answer)", "−log p(回答)")],
         "sft.pt", "checkpoint"),
        (t("prompts", "提问"), ["compare.py", t("sample 4 answers,", "每问采样 4 个回答，"),
                              t("rank them", "由标注者排序")], "comparisons.jsonl", "text"),
        ("", ["reward.py", t("score answers", "给回答打分"), "−log σ(r₁ − r₂)"],
         "reward.pt", "checkpoint"),
        (t("prompts", "提问"), ["rlhf_ppo.py", t("write what scores well", "写出高分的回答"),
                                              t("−clipped gain, + KL", "−截断的收益，+ KL")],
         "ppo.pt", "checkpoint"),
    ]
    for i, (reads, script, writes, kind) in enumerate(stages):
        x = 10 + 200 * i
        if reads:
            d.box(x + 15, 20, 150, 36, "text", [reads])
            d.arrow("text", (x + 90, 56), (x + 90, 100))
        d.box(x, 100, 180, 84, "model", script)
        d.arrow(kind, (x + 90, 184), (x + 90, 228))
        d.box(x + 8, 228, 164, 36, kind, [writes])
    # each stage reads results of earlier ones: along the bottom and up between the columns
    for i in range(3):
        x = 182 + 200 * i
        d.arrow(stages[i][3], (x, 246), (x + 25, 246), (x + 25, 142), (x + 35, 142))
    d.arrow("checkpoint", (782, 246), (800, 246), (800, 142), (810, 142))
    for x, y in ((600, 166), (800, 166)):             # sft.pt also goes to the last two stages
        d.arrow("checkpoint", (300, 264), (300, 292), (x - 8, 292), (x - 8, y), (x + 10, y))
    d.text(30, 326, t("text", "文本"), "text", True, "start")
    d.text(90, 326, t("a model in training", "正在训练的模型"), "model", True, "start")
    d.text(270, 326, t("its loss", "损失"), "loss", True, "start")
    d.text(360, 326, t("a checkpoint", "检查点"), "checkpoint", True, "start")
    return d


def ppo(lang):
    """One iteration of PPO: from the prompt to the two losses."""
    def t(en, zh):
        return zh if lang == "zh" else en

    d = Drawing(1000, 400, t("One iteration of PPO", "PPO 的一次迭代"))
    d.box(10, 160, 110, 50, "text", [t("prompt", "提问")])
    d.box(165, 145, 150, 80, "model", [t("policy", "策略"), t("trained", "训练"), "← sft.pt"])
    d.box(360, 160, 110, 50, "text", [t("answer", "回答")])
    d.box(520, 20, 170, 60, "model", [t("reference", "参考模型"),
                                      t("frozen ← sft.pt", "冻结 ← sft.pt")])
    d.box(520, 155, 170, 60, "model", [t("reward model", "奖励模型"),
                                       t("frozen ← reward.pt", "冻结 ← reward.pt")])
    d.box(520, 290, 170, 60, "model", [t("critic", "评论家"), t("trained ← reward.pt",
                                                             "训练 ← reward.pt")])
    d.box(740, 70, 120, 70, "reward", [t("rewards", "奖励"), t("score − β KL", "分数 − β KL")])
    d.box(740, 200, 120, 70, "reward", [t("advantages", "优势"), "GAE"])
    d.box(890, 200, 100, 70, "loss", [t("losses", "损失"), t("policy", "策略"), t("value", "价值")])
    d.arrow("text", (120, 185), (165, 185))
    d.arrow("text", (315, 185), (360, 185))
    d.arrow("text", (470, 185), (520, 185))
    d.arrow("text", (495, 185), (495, 50), (520, 50))
    d.arrow("text", (495, 185), (495, 320), (520, 320))
    d.arrow("reward", (690, 50), (800, 50), (800, 70))
    d.text(705, 42, t("KL of each token", "每个词元的 KL"), "reward", anchor="start")
    d.arrow("reward", (690, 185), (715, 185), (715, 105), (740, 105))
    d.text(722, 178, t("score", "分数"), "reward", anchor="start")
    d.arrow("reward", (690, 320), (800, 320), (800, 270))
    d.text(705, 340, t("value of each token", "每个词元的价值"), "reward", anchor="start")
    d.arrow("reward", (800, 140), (800, 200))
    d.arrow("loss", (860, 235), (890, 235))
    d.arrow("loss", (940, 270), (940, 380), (240, 380), (240, 225))
    d.arrow("loss", (605, 380), (605, 350))
    d.text(255, 372, t("gradients change policy and critic", "梯度更新策略和评论家"), "loss",
           anchor="start")
    return d


DIAGRAMS = dict(chain=chain, ppo=ppo)


if __name__ == "__main__":
    config = parse_config(Config, __doc__)
    if config.lang not in ("en", "zh"):
        fail(f"--lang={config.lang} is not en or zh")
    for name, draw in DIAGRAMS.items():
        path = Path(config.out) / f"{name}{'.zh' if config.lang == 'zh' else ''}.svg"
        with writing(path) as f:
            f.write(draw(config.lang).svg())
        print(f"saved {path}")
