"""Whoever follows a page runs its commands one after the other, in one folder. So do these tests,
with few steps: they find a command that is refused because another one has written its --out, or
that reads what none has made."""

import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import tiny
from pages import commands, lines, script_of
from tiny import ROOT

SHORT = {script.removesuffix(".py").removeprefix("-m ").replace(".", "/"): flags
         for script, flags in tiny.SHORT.items()} | {
    "data/town": dict(n_docs=1500, n_demos=200, n_prompts=200, n_eval=20),
    "tokenizer": dict(vocab_size=384), "chat": dict(max_new_tokens=8),
    "view/report": dict(prompts="one.jsonl"),
    "tools/label": dict(n_prompts=2, max_new_tokens=8), "tools/check": {},
    "tools/exam": dict(max_new_tokens=8),
    "rlhf_ppo": dict(steps=2, batch_size=8, minibatch=8, micro_batch=8, max_new_tokens=8, n_eval=4,
                     eval_every=1),
    "lessons/ratings": dict(steps=1, n_screen=8),
    "lessons/data": dict(steps=1, batch_size=2, block_size=32, n_layer=1, n_embd=16, eval_rows=9),
    "lessons/few_shot": dict(n_prompts=24, max_new_tokens=8, block_size=999),
    "lessons/in_context": dict(steps=1, batch_size=2, n_layer=1, n_sheets=2, n_questions=2),
    "lessons/chain_of_thought": dict(steps=1, n_tokens=60, n_test=2, votes=2, most=3),
    "lessons/calculator": dict(steps=1, n_demos=60, n_eval=2, max_new_tokens=8),
    "lessons/look_up": dict(steps=1, n_demos=40, n_eval=2, max_new_tokens=8),
    "lessons/constrained": dict(steps=1, n_demos=50, n_eval=4, max_new_tokens=4)}

# What is not run: what needs a GPU, little memory, two processes, the lab's seeds or a planted bug.
# (Nor are scripts that SHORT lacks: the lab, what needs a network or other packages, and
# lessons/scaling, the fit of whose law takes too long.)
ELSEWHERE = ("out/gpu", "ulimit", "torchrun", "out/seed1", "bug ", "FILE")

# A reader's own files, and what a network brings: here they come from the town.
OWN = {
    "data/town/sft.jsonl": "my.jsonl train.jsonl alpaca.json data/smoltalk/sft.jsonl",
    "data/town/test.jsonl": "my_test.jsonl test.jsonl",
    "data/town/pretrain/stories.jsonl": "book.txt wiki.txt c4.jsonl data/shakespeare/all.txt "
                                        "data/tinystories/all.jsonl",
    "out/comparisons.jsonl": "out/class.jsonl preferences.json data/hh/comparisons.jsonl",
    "out/pretrain.pt": "out/gpt2.pt out/smol.pt", "out/ppo.pt": "NEW.pt"}
TYPED = "1>2\n1>2>3\n1>2>3>4\n" * 2                   # to rank, or to chat


def prepare(folder, chain):
    """The reader's folder, when the chain has run."""
    shutil.copytree(chain, folder)
    for source, files in OWN.items():
        for file in map(folder.joinpath, files.split()):
            file.parent.mkdir(parents=True, exist_ok=True)
            if file.suffix == ".pt":
                shutil.copy(folder / source, file)
                continue
            rows = tiny.read_log(folder / source)[:150]
            if file.suffix == ".txt":
                file.write_text("<|endoftext|>".join(row["text"] for row in rows))
            else:
                tiny.write(file, *rows)
    (folder / "my.py").write_text("def score(prompts, said): return [0.5 for _ in said]\n")
    ckpt = torch.load(folder / "out/sft.pt")          # the default's context, which lessons need
    ckpt["model_config"]["block_size"] = 256
    torch.save(ckpt, folder / "out/sft.pt")
    assert follow(folder, "tools/label", ["--out=out/yours.jsonl"]) == 0


def walk(page):
    """(line, script or "" for bash, its arguments, what the page prints below) of what is run."""
    for line, printed in lines((ROOT / page).read_text("utf-8")):
        if any(word in line for word in ELSEWHERE):
            continue
        if re.match(r"(cat|echo|python -) ", line):
            yield line, "", [], printed
        for script, words in filter(None, map(script_of, commands(line))):
            if script in SHORT:
                yield line, script, words, printed


def follow(folder, script, words):
    """Run it shortly: the exit status."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TYPED.encode())))
        short = [f"--{name}={value}" for name, value in SHORT[script].items()]
        return tiny.run(folder, script, *words, *short)[0] or 0


@pytest.mark.parametrize("page", [
    "README.md", "docs/stages.md", "docs/course.md", "docs/exercises.md", "docs/lessons.md",
    "data/README.md", "docs/experiments.md", "docs/troubleshooting.md", "docs/your-data.md"])
def test_the_commands_of_a_page_run_one_after_the_other(page, chain, hamlet, tmp_path, capsys):
    folder = tmp_path / "reader"
    if page == "docs/stages.md":                      # it is the chain
        folder.mkdir()
    else:
        prepare(folder, chain)
    tiny.write(folder / "one.jsonl", dict(prompt="Who are you?"))     # for the report's views
    for file in ("data/town.py", "lessons/reason.py"):                # FILE.py:function
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).symlink_to(ROOT / file)
    for line, script, words, printed in walk(page):
        if not script:
            subprocess.run(["bash", "-c", line], cwd=folder, check=True,
                           env=dict(os.environ, PYTHONPATH=str(ROOT)))
            continue
        status, said = follow(folder, script, words), capsys.readouterr().err
        shown = printed.startswith(f"{Path(script).name}.py: ")       # that it fails
        assert status == shown, f"{line}: {said[-300:]}"


def test_commands_are_found_in_lines_and_blocks_and_with_all_their_words():
    found = [(script, words) for _, script, words, _ in walk("docs/course.md")]
    assert ("tools/check", ["out/comparisons.jsonl"]) in found
    assert ("pretrain", ["--steps=600", "--out=out/short/pretrain.pt"]) in found
    stages = [script for _, script, *_ in walk("docs/stages.md")]
    assert stages[:4] == ["data/town", "tokenizer", "pretrain", "sft"] and len(stages) > 12
    assert {script for _, script, *_ in walk("docs/lessons.md")} >= {
        f"lessons/{path.stem}" for path in (ROOT / "lessons").glob("*.py")
        if "parse_config" in path.read_text("utf-8")} - {"lessons/scaling"}
