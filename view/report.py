"""The report: one page, out/report.html, on which one sees what the stages have learned. It shows
what exists so far, so you can make it while the stages run. It needs no server and no network.

reads   the checkpoints, logs and results in a folder: those that exist
writes  the scoreboard on the screen, out/report.html

    python -m view.report
    python -m view.report --folder=out/seed1
"""

import dataclasses
import re
import shlex
from dataclasses import dataclass
from html import escape
from pathlib import Path

import compare
import pretrain
import reward
import rlhf_ppo
import sft
from common import Runtime, fail, from_json, note_once, parse_config, to_json, writing
from evaluate import ROWS, cell, show
from view import views
from view.curves import both, curves, made_by


@dataclass
class Config:
    folder: str = "out"                          # where the stages write
    out: str = ""                                # the page; "": report.html in that folder
    prompts: str = "data/town/test.jsonl"        # prompts that no stage was trained on
    contrasts: str = "data/town/contrasts.jsonl"   # right and wrong answers in the same words
    device: str = "auto"                         # auto: cuda, else cpu; mps when asked
    dtype: str = "float32"                       # small models: speed does not matter here
    debug: bool = False                          # show tracebacks


IMAGES = Path(__file__).resolve().parents[1] / "docs/img"
SCRIPTS = dict(pretrain=("pretrain.py", pretrain.Config), sft=("sft.py", sft.Config),
               comparisons=("compare.py", compare.Config), reward=("reward.py", reward.Config),
               ppo=("rlhf_ppo.py", rlhf_ppo.Config))

# What the rows of the scoreboard say: evaluate.py's name of a row, its Chinese name, a sentence.
MEANINGS = dict(
    grade=("真实评分，1 到 7",
           "What the town's judge, which knows the truth, gives the sampled answers on average. No "
           "stage ever sees it.", "小镇的裁判知道真相，这是它给采样回答的平均分。任何训练阶段都看不到它。"),
    better=("比 {} 更好", "For how many prompts the answer has a better grade.",
            "有多少提问的回答评分更高。"),
    worse=("更差", "And for how many a worse one; the others are equal.", "有多少更低；其余相等。"),
    score=("学到的分数",
           "What the reward model gives. PPO raises this number; the grade shows whether that "
           "helped.", "奖励模型给的分数。PPO 提高的是这个数；真实评分说明这样做是否有用。"),
    kl=("与 SFT 的 KL(奈特)",
        "How far the answers have moved from those of SFT; PPO pays for it.",
        "回答离 SFT 有多远；PPO 要为这个距离付费。"),
    entropy=("熵（每词元奈特）",
             "How undecided the model is at each token; 0 means it always says the same.",
             "模型在每个词元上有多犹豫；0 表示它总说同样的话。"),
    distinct_2=("不同的词对",
                "Different pairs of words among all pairs; it falls when answers become alike, or "
                "longer.", "不同词对占全部词对的比例；回答越雷同或越长，它越小。"),
    length=("长度（词元）", "Tokens of a sampled answer on average.", "采样回答的平均词元数。"),
    ended=("自己结束的比例", "Answers with an end of their own, not cut off by the limit.",
           "自己写出结尾、没有被长度限制截断的回答。"),
    text_loss=("留出文本的损失",
               "What was forgotten: the loss on text as in pretraining, in nats per token.",
               "忘记了多少：在预训练那种文本上的损失，每词元奈特。"))


# ---- the scoreboard and the settings --------------------------------------------------------

def scoreboard(board):
    models = board.get("models", {})
    kinds = dict.fromkeys(k for m in models.values() for k in m.get("by_kind", {}))
    rows = [(both(*(name.format(board.get("reference")) for name in (ROWS[key][0], zh))),
             both(*says), [cell(m.get(key), ROWS[key][1], "{} <small>{}–{}</small>", "–")
                           for m in models.values()])
            for key, (zh, *says) in MEANINGS.items() if any(key in m for m in models.values())]
    rows += [(both(f"{kind}: right", f"{kind}：正确"),
              both("Greedy answers to this kind of prompt that are right.",
                   "这类提问的贪心回答中正确的比例。"),
              [f"{m['by_kind'][kind]['right']:.1%}" if "by_kind" in m else "–"
               for m in models.values()]) for kind in kinds]
    if not rows:
        return ""
    head = "".join(f"<th scope=col>{escape(name)}</th>" for name in models)
    body = "".join(f"<tr><th scope=row>{label}<p>{says}</p></th>"
                   + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
                   for label, says, cells in rows)
    return f"<table class=board><thead><tr><td></td>{head}</tr></thead><tbody>{body}" \
           f"</tbody></table>"


def command(script, Config, config):
    """The command line that gives this config: the flags that are not the defaults."""
    words = [f"--{f.name}={config[f.name]}" for f in dataclasses.fields(Config)
             if f.name in config and config[f.name] != f.default]
    return shlex.join(["python", script, *words])


def settings(chain):
    """{stage: (the command that made it, its settings)} for what is there."""
    configs = {stage: ckpt["config"] for stage, ckpt in chain.ckpts.items()}
    if flags := views.comparing(chain.folder):
        configs["comparisons"] = flags
    return {stage: (command(*SCRIPTS[stage], configs[stage]), configs[stage])
            for stage in SCRIPTS if stage in configs}


def settings_html(found):
    return "".join(
        f"<details><summary><code>{escape(line)}</code></summary><table class=flags>"
        + "".join(f"<tr><td>{escape(k)}</td><td>{escape(str(v))}</td></tr>"
                  for k, v in config.items()) + "</table></details>"
        for line, config in found.values())


# ---- the page -------------------------------------------------------------------------------

def headline(board):
    """The one sentence for which one opens the page."""
    models = board.get("models", {})
    if not {"sft", "ppo"} <= models.keys() or "grade" not in models["ppo"]:
        return ""
    before, after = (models[name]["grade"][0] for name in ("sft", "ppo"))
    better, worse = models["ppo"]["better"], models["ppo"]["worse"]
    if None in (before, after):
        return ""
    return both(f"True grade {before:.2f} of 7 after fine-tuning, {after:.2f} after PPO; PPO's "
                f"answer is better for {better:.0%} of the prompts and worse for {worse:.0%}.",
                f"真实评分（满分 7）：监督微调后 {before:.2f}，PPO 后 {after:.2f}；"
                f"对 {better:.0%} 的提问，PPO 的回答更好，对 {worse:.0%} 更差。")


def diagram(name):
    """A picture of docs/, in both languages. As a part of the page it takes the page's colours."""
    return "".join(f'<div class=wide lang="{lang}">{(IMAGES / file).read_text("utf-8")}</div>'
                   for lang, file in (("en", f"{name}.svg"), ("zh", f"{name}.zh.svg")))


def render(file, parts, data):
    """Fill the {{parts}} of a template; {{style}} and {{helpers}} are those of the report and of
    view.page. Data is JSON in a script element: no `<` in it can end that element."""
    page, style, helpers = (Path(__file__).with_name(name).read_text("utf-8")
                            for name in (file, "common.css", "common.js"))
    parts |= dict(style=style, helpers=helpers,
                  data=to_json(data, ensure_ascii=False).replace("<", "\\u003c"))
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], page)


def read_board(path):
    """The scoreboard; {} if it is missing or broken."""
    try:
        return dict(from_json(path.read_text(encoding="utf-8"))) if path.exists() else {}
    except (RecursionError, TypeError, ValueError):
        note_once(f"{path} is broken and left out: `python evaluate.py` makes it")
        return {}


def make(config, rt):
    """The page as a str, and the scoreboard."""
    folder = Path(config.folder)
    board = read_board(folder / "scoreboard.json")
    chain = views.Chain(folder, rt)
    made = settings(chain)
    commands = {stage: line for stage, (line, _) in made.items()} | dict(
        tokenizer="python tokenizer.py")
    ppo, over = views.iterations(folder), views.iterations(folder / "experiments", "free")
    if over:
        commands["over"] = "python -m lab.experiments --what=overoptimise"
    elif "ppo" in made and made["ppo"][1].get("kl_coef") == 0:
        over = ppo
    data = dict(
        bpe=views.merges(chain), mask=views.loss_mask(chain),
        next=views.next_tokens(chain, views.prompts(chain, config.prompts)),
        rank=views.rankings(chain), along=views.along(chain, config.contrasts),
        ppo=ppo, over=over, commands=commands,
        settings={stage: config for stage, (_, config) in made.items()})
    parts = dict(
        headline=headline(board), chain=diagram("chain"), ppo=diagram("ppo"),
        made_board=made_by("python evaluate.py" if board else ""),
        curves=curves(folder, board, commands), scoreboard=scoreboard(board),
        settings=settings_html(made), folder=escape(shlex.quote(str(folder))))
    return render("report.html", parts, data), board


if __name__ == "__main__":
    config = parse_config(Config, __doc__)
    folder = Path(config.folder)
    if not any(folder.glob("*.jsonl")):
        fail(f"--folder={folder} has no logs yet: run a stage, or choose another --folder")
    path = config.out or folder / "report.html"
    if Path(path).is_file() and Path(path).suffix != ".html":
        fail(f"{path} is there already and is no .html: choose another --out")
    page, board = make(config, Runtime(config))
    if board:
        show(board)
    with writing(path) as f:
        f.write(page)
    print(f"saved {path} ({len(page) / 1e6:.1f} MB): open it in a browser")
