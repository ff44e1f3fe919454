"""Whoever follows a page runs its commands one after the other, in one folder. So do these tests,
with few steps: they find a command that is refused because another one has written its --out, or
that reads what none has made."""

import io
import re
import shlex
import shutil
import sys

import pytest

import tiny
from tiny import ROOT

RUN_SH = "bash run.sh"
SHORT = {script.removesuffix(".py").removeprefix("-m ").replace(".", "/"): flags
         for script, flags in tiny.SHORT.items()} | {
    "data/town": dict(n_docs=1500, n_demos=200, n_prompts=200, n_eval=20),
    "tokenizer": dict(vocab_size=384), "chat": dict(max_new_tokens=8),
    "tools/label": dict(n_prompts=1, max_new_tokens=8), "tools/check": {}, "view/report": {}}


def commands(page):
    """[script, word …] of each command of Python that stands in `…` or in a block, in order."""
    text = (ROOT / page).read_text("utf-8").replace("\\\n", " ")
    for block, line in re.findall(r"^ *```\w*\n(.*?)^ *```|`([^`]+)`", text, re.M | re.S):
        for part in re.split(r"\n|&&|;", block or " ".join(line.split())):
            if re.match(r"(\$ )?python (-[mi] )?[\w./]+", part.strip()):
                words = shlex.split(part.strip().removeprefix("$ "), comments=True)[1:]
                script, *flags = [word for word in words if word not in ("-m", "-i")]
                yield script.removesuffix(".py").replace(".", "/"), flags


# What is not run: what takes a night, a network, a GPU, or files of the reader's own.
ELSEWHERE = ("my.", "my_", "gpt2", "out/gpu", "text/", "out/assistant", "NEW.pt")


def walk(page):
    return [(script, flags) for script, flags in commands(page)
            if script in SHORT and not any(word in flag for flag in flags for word in ELSEWHERE)]


@pytest.mark.parametrize("page, first", [
    ("README.md", RUN_SH), ("docs/stages.md", ""), ("docs/course.md", RUN_SH),
    ("docs/exercises.md", RUN_SH)])
def test_the_commands_of_a_page_run_one_after_the_other(page, first, chain, tmp_path, monkeypatch,
                                                        capsys):
    folder = tmp_path / "reader"
    if first == RUN_SH:
        shutil.copytree(chain, folder)
        shutil.copy(folder / "out/comparisons.jsonl", folder / "out/class.jsonl")   # as if ranked
    else:
        folder.mkdir()
    for file in ("data/town.py", "lessons/reason.py"):                # FILE.py:function
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).symlink_to(ROOT / file)
    for script, flags in walk(page):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
        short = [f"--{name}={value}" for name, value in SHORT[script].items()]
        status, _ = tiny.run(folder, script, *flags, *short)
        assert status == 0, f"{script} {' '.join(flags)}: {capsys.readouterr().err[-300:]}"


def test_commands_are_found_in_lines_and_blocks_and_with_all_their_words():
    found = walk("docs/course.md")
    assert ("tools/check", ["out/comparisons.jsonl"]) in found
    assert ("pretrain", ["--steps=600", "--out=out/short/pretrain.pt"]) in found
    assert [script for script, _ in walk("docs/stages.md")][:4] == [
        "data/town", "tokenizer", "pretrain", "sft"] and len(found) > 12
