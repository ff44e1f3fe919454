"""The house: what may import what, and how much there is of it."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CHAIN = ["pretrain", "sft", "compare", "reward", "rlhf_ppo", "evaluate", "chat"]
PLUMBING = ["common", "checkpoint", "model", "tokenizer"]
FOLDERS = ["data", "tools", "lab", "lessons", "exercises", "exercises/answers"]
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


def allowed(file):
    """The modules and folders that a file may import."""
    folder, name = file.parent.relative_to(ROOT).name, file.stem
    if folder == "exercises" and name != "__main__":
        return set()                                  # a student's file gives nothing away
    if folder == "data":
        return {"data", "common", "tokenizer"}
    if folder:
        return {*CHAIN, *PLUMBING, *FOLDERS}
    return {"model": set(), "common": set(), "tokenizer": {"common", "data"},
            "checkpoint": {"common", "data", "model", "tokenizer"}}.get(
        name, {*PLUMBING, "data", *CHAIN[:CHAIN.index(name)]} if name in CHAIN else set())


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_go_one_way(file):
    """model <- checkpoint <- the stages, each of which may read earlier ones <- tools and lab."""
    assert {name.partition(".")[0] for name in imports(file)} <= allowed(file)


def test_the_root_holds_the_chain_and_little_else():
    names = {file.stem for file in ROOT.glob("*.py")}
    assert {*CHAIN, *PLUMBING} <= names and len(names) <= 12
