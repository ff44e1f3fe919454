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
from checkpoint import read_log
from common import Runtime, fail, from_json, note_once, parse_config, to_json, writing
from evaluate import ROWS, cell, show
from view import views


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


def scoreboard(board):
    """The rows of the table: [name in the scoreboard, what evaluate.py calls it, cells], and for a
    kind of prompt its name."""
    models = board.get("models", {}).values()
    rows = [[key, label, [cell(m.get(key), form, "{} {}–{}", "–") for m in models]]
            for key, (label, form) in ROWS.items()
            if key != "equal" and any(key in m for m in models)]
    kinds = dict.fromkeys(kind for m in models for kind in m.get("by_kind", {}))
    return rows + [["right", "{}: right", [f"{m['by_kind'][kind]['right']:.1%}" if "by_kind" in m
                                           else "–" for m in models], kind] for kind in kinds]


def command(stage, flags):
    """The command line that gives these flags: those that are not the defaults."""
    script, Config = SCRIPTS[stage]
    words = [f"--{f.name}={flags[f.name]}" for f in dataclasses.fields(Config)
             if f.name in flags and flags[f.name] != f.default]
    return shlex.join(["python", script, *words])


# ---- the page -------------------------------------------------------------------------------

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
    logs, runs, asked = views.logs(folder), chain.runs, views.prompts(chain, config.prompts)
    commands = {stage: command(stage, flags) for stage, flags in runs.items()}
    commands |= dict(tokenizer="python tokenizer.py", board="python evaluate.py",
                     reason="python -m lessons.reason")
    rules = vars(rlhf_ppo.Config()) | (runs.get("ppo") or views.flags(folder / "ppo.state"))
    over = read_log(folder / "free.jsonl")
    if over:
        commands["over"] = command("ppo", views.flags(folder / "free.pt"))
    elif rules["kl_coef"] == 0:
        over = logs["ppo"]
    data = dict(
        scoreboard=board, board=scoreboard(board), logs=logs, bpe=views.merges(chain),
        mask=views.loss_mask(chain), rank=views.rankings(chain), over=over, settings=runs,
        next=views.next_tokens(chain, asked), openings=views.openings(chain, asked),
        along=views.along(chain, config.contrasts), commands=commands, rules=rules,
        reason=[row for row in read_log(folder / "reason.jsonl") if "loss" not in row])
    parts = {name: diagram(name) for name in ("chain", "ppo")}
    parts["folder"] = escape(shlex.quote(str(folder)))
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
