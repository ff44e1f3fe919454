"""The house: what may import what, and how much there is of it."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CHAIN = ["pretrain", "sft", "compare", "reward", "rlhf_ppo", "evaluate", "chat"]
PLUMBING = ["common", "checkpoint", "model", "optim", "answer", "tokenizer"]
ABOVE = ["tools", "view", "lessons", "lab"]            # the chain; each may read those before it
FOLDERS = ["data", *ABOVE, "exercises", "exercises/answers"]
FILES = sorted(file for folder in (".", *FOLDERS) for file in (ROOT / folder).glob("*.py"))


def imports(file):
    """The project's modules that a file imports, anywhere in it: "model", "data.corpus" …"""
    ours, found = {*CHAIN, *PLUMBING, *FOLDERS}, []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found.append(node.module)
    return {name for name in found if name.partition(".")[0] in ours}


OTHERS = "os.open", "tokenize.open"                   # bytes; Python's own way to read a source


def without_encoding(tree):
    """The lines that open text in whatever encoding this computer prefers: GBK on some."""
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = getattr(call.func, "attr", getattr(call.func, "id", ""))
        said = {k.arg: getattr(k.value, "value", "") for k in call.keywords}
        modes = [a.value for a in call.args[:2] if isinstance(a, ast.Constant)]
        binary = any("b" in str(mode) for mode in [*modes[-1:], said.get("mode", "")])
        if (name == "open" and ast.unparse(call.func) not in OTHERS and not binary
                or name in ("read_text", "write_text") and "utf-8" not in modes
                or name in ("run", "Popen", "check_output") and said.get("text")
                or name in ("NamedTemporaryFile", "fdopen") and "b" not in str(modes)):
            if "encoding" not in said:
                yield call.lineno


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_text_is_read_and_written_in_utf8_wherever(file):
    assert list(without_encoding(ast.parse(file.read_text("utf-8")))) == []


def test_a_text_without_encoding_is_found():
    code = """open(a); open(a, "w"); open(a, mode="a"); a.read_text(); a.write_text(t)
run(c, text=True); a.open("r")
open(a, "rb"); open(a, encoding="utf-8"); a.read_text("utf-8"); a.write_text(t, encoding="utf-8")
run(c, text=True, encoding="utf-8"); run(c); open(fd, mode="wb"); a.open("rb")"""
    assert list(without_encoding(ast.parse(code))) == [1, 1, 1, 1, 1, 2, 2]


def allowed(file):
    """The modules and folders that a file may import."""
    folder, name = file.parent.relative_to(ROOT).name, file.stem
    if folder == "exercises" and name != "__main__":
        return set()                                  # a student's file gives nothing away
    if folder == "data":
        return {"data", "common", "tokenizer"}
    if folder in ABOVE:
        return {*CHAIN, *PLUMBING, "data", *ABOVE[:ABOVE.index(folder) + 1]}
    if folder:
        return {*CHAIN, *PLUMBING, "data", "lessons", "exercises"}
    return {"model": set(), "optim": {"model"}, "common": set(), "tokenizer": {"common", "data"},
            "answer": {"common", "data", "model"},
            "checkpoint": {"common", "data", "model", "tokenizer"}}.get(
        name, {*PLUMBING, "data", *CHAIN[:CHAIN.index(name)]} if name in CHAIN else set())


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_go_one_way(file):
    """model <- checkpoint <- the stages, each of which may read earlier ones <- tools <- view <-
    lessons <- lab."""
    assert {name.partition(".")[0] for name in imports(file)} <= allowed(file)


@pytest.mark.parametrize("file, above", [
    ("data/town.py", "model"), ("model.py", "common"), ("sft.py", "reward"), ("chat.py", "tools"),
    ("tools/label.py", "view"), ("view/page.py", "lessons"), ("lessons/dpo.py", "lab")])
def test_an_arrow_up_is_found_wherever_it_stands(file, above, tmp_path):
    (tmp_path / "a.py").write_text(f"import json\ndef f():\n    from {above}.x import y\n")
    assert imports(tmp_path / "a.py") == {f"{above}.x"}
    assert above not in allowed(ROOT / file)


def test_the_root_holds_the_chain_and_little_else():
    names = {file.stem for file in ROOT.glob("*.py")}
    assert {*CHAIN, *PLUMBING} <= names and len(names) <= 13


STAGES = dict(pretrain="pretrain", sft="sft", reward="reward", rlhf_ppo="ppo")
HEADINGS = ["config", "the idea", "setup", "data", "model and optimizer", "training loop", "save"]
ONCE = ["config = parse_config(Config, __doc__, several=True)", "rt = Runtime(config)",
        "run = Run(config, rt, inputs=", "run.track(model=", "for step in run.steps():",
        "rt.parts(", "run.check(step, grad_norm, ", "optimizer.step()",
        "optimizer.zero_grad(set_to_none=True)"]
NEVER = ("state_dict()[", "torch.save", "torch.load", "dist.", "DistributedDataParallel",
         "import time")


@pytest.mark.parametrize("stage", STAGES)
def test_the_stages_read_alike(stage):
    """The same headings in the same order, the same names for the same things. How a run resumes,
    how long it takes and how processes share it is not the script's business."""
    text = (ROOT / f"{stage}.py").read_text("utf-8")
    main = text.partition('if __name__ == "__main__":')[2]
    assert re.findall(r"^ *# ---- (.+?) -+$", text, re.M) == HEADINGS
    assert [line for line in ONCE if main.count(line) != 1] == []
    assert f'run.finish("{STAGES[stage]}", ' in main
    assert [word for word in NEVER if word in text] == []
