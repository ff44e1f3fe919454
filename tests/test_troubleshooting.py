"""docs/troubleshooting.md: its commands can be run as they stand, and its columns are our logs'."""

import ast
import importlib
import json
import os
import re
import subprocess
from pathlib import Path

import pytest

from common import parse_config
from pages import commands, lines, script_of, scripts
from tiny import FLAGS, ROOT, WORDS, build, run, write

TEXT = (ROOT / "docs/troubleshooting.md").read_text()
HEAD, *SECTIONS = re.split(r"^### ", TEXT, flags=re.M)
NUMBERS = [int(section.partition(".")[0]) for section in SECTIONS]
HELPERS = re.search(r"```bash\n(.*?)```", HEAD, re.S)[1]
STAGES = ("pretrain", "sft", "reward", "rlhf_ppo")


COMMANDS = [words for line, _ in lines(TEXT) for words in commands(line)]
RUNS = [(script, [word for word in words if word[:2] == "--"])
        for script, words in filter(None, map(script_of, COMMANDS))]
MAKERS = {Path(flag[6:]).stem: script for script, flags in RUNS for flag in flags
          if flag.startswith("--out=out/bug/")}
BUGS = [command for command in COMMANDS if command[:1] == ["bug"]]
LINES = [line for line in TEXT.splitlines() if re.search(r"step +\d+.* \| ", line)]


@pytest.fixture(scope="module")
def columns(tmp_path_factory, tiny_tokenizer):
    """{stage: the columns of its log}, from a run of every stage on tiny data."""
    folder, found = build(tmp_path_factory.mktemp("columns"), tiny_tokenizer), {}
    write(folder / "text.jsonl", *(dict(text=f"{i} {WORDS[i % 9]}", logp=-3.0) for i in range(99)))
    for stage in STAGES:
        more = ["--watch=length.py:longer"] if stage == "rlhf_ppo" else []
        status, _ = run(folder, stage, *FLAGS[stage].split(), *more, "--steps=2",
                        f"--out={stage}_log.pt")
        assert status == 0
        rows = map(json.loads, (folder / f"{stage}_log.jsonl").read_text().splitlines())
        found[stage] = {name.split("/")[-1] for row in rows for name in row}
    return found


def test_the_table_lists_every_section():
    assert NUMBERS == list(range(1, len(SECTIONS) + 1))
    assert {int(n) for n in re.findall(r"^\|.*\| (\d+) \|$", HEAD, re.M)} == set(NUMBERS)


@pytest.mark.parametrize("section", SECTIONS, ids=NUMBERS)
def test_a_section_has_a_command_causes_and_advice(section):
    assert scripts(section)
    assert "*Likely" in section and "*Do:*" in section


@pytest.mark.parametrize("script, flags", RUNS, ids=str)
def test_the_scripts_know_the_flags(script, flags):
    assert (ROOT / f"{script}.py").exists()
    parse_config(importlib.import_module(script.replace("/", ".")).Config, "", flags)


@pytest.mark.parametrize("command", BUGS, ids=lambda command: command[2])
def test_a_planted_bug_changes_one_line_of_the_code(command):
    """By sed itself: one line differs, and the file is still Python."""
    _, file, expression, *_ = command
    after = subprocess.run(["sed", expression, ROOT / file], capture_output=True, text=True,
                           check=True).stdout
    pairs = zip((ROOT / file).read_text().splitlines(), after.splitlines(), strict=True)
    assert sum(before != after for before, after in pairs) == 1
    ast.parse(after)


@pytest.mark.parametrize("line", LINES)
def test_the_log_of_the_run_has_the_columns_that_are_shown(line, columns):
    name, *cells = line.split(" | ")
    assert {cell.split()[0] for cell in cells} <= columns[MAKERS[name.split()[0]]]


def test_see_prints_the_lines_that_have_all_columns(tmp_path):
    (tmp_path / "common.py").symlink_to(ROOT / "common.py")
    (tmp_path / "data").mkdir()
    for file in (ROOT / "data").glob("*.py"):
        (tmp_path / "data" / file.name).symlink_to(file)
    write("out/bug/mine.jsonl", dict(step=3, loss=0.5, lr=1e-3),
          {"step": 4, "ppo/loss": 2.0, "grade": 1.5})
    said = subprocess.run(["bash", "-c", HELPERS + "see mine grade loss"], cwd=tmp_path,
                          capture_output=True, text=True, check=True).stdout
    assert said.split() == "mine step 4 | grade 1.500 | loss 2.000".split()


def test_a_bug_is_planted_in_a_copy(tmp_path):
    if not (ROOT / ".git").exists():
        pytest.skip("needs the repository")
    before = (ROOT / "sft.py").read_bytes()
    plant = "bug sft.py 's/^import torch$/import bug/' grep -c 'import bug' sft.py"
    said = subprocess.run(["bash", "-c", HELPERS + plant], cwd=ROOT, capture_output=True,
                          text=True, check=True,
                          env=dict(os.environ, TMPDIR=str(tmp_path))).stdout     # for mktemp
    assert said == "1\n" and (ROOT / "sft.py").read_bytes() == before
