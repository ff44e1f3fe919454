"""docs/troubleshooting.md: its commands can be run as they stand, and its columns are our logs'."""

import ast
import os
import re
import subprocess
from pathlib import Path

import pytest

from pages import commands, lines, script_of, scripts
from tiny import ROOT, read_log, write

TEXT = (ROOT / "docs/troubleshooting.md").read_text()
HEAD, *SECTIONS = re.split(r"^### ", TEXT, flags=re.M)
NUMBERS = [int(section.partition(".")[0]) for section in SECTIONS]
HELPERS = re.search(r"```bash\n(.*?)```", HEAD, re.S)[1]
COMMANDS = [words for line, _ in lines(TEXT) for words in commands(line)]
MAKERS = {Path(word[6:]).stem: script for script, words in filter(None, map(script_of, COMMANDS))
          for word in words if word.startswith("--out=out/bug/")}
BUGS = [command for command in COMMANDS if command[:1] == ["bug"]]
LINES = [line for line in TEXT.splitlines() if re.search(r"step +\d+.* \| ", line)]


def test_the_table_lists_every_section():
    assert NUMBERS == list(range(1, len(SECTIONS) + 1))
    assert {int(n) for n in re.findall(r"^\|.*\| (\d+) \|$", HEAD, re.M)} == set(NUMBERS)


@pytest.mark.parametrize("section", SECTIONS, ids=NUMBERS)
def test_a_section_has_a_command_causes_and_advice(section):
    assert scripts(section)
    assert "*Likely" in section and "*Do:*" in section


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
def test_the_log_of_the_run_has_the_columns_that_are_shown(line, chain):
    name, *cells = line.split(" | ")
    stage = MAKERS[name.split()[0]].removeprefix("rlhf_")
    known = {key.split("/")[-1] for row in read_log(chain / f"out/{stage}.jsonl") for key in row}
    assert {cell.split()[0] for cell in cells} <= known


def helped(command, folder, **environment):
    """What bash prints for a command that uses the page's helpers."""
    return subprocess.check_output(["bash", "-c", HELPERS + command], cwd=folder, text=True,
                                   env=dict(os.environ, **environment))


def test_see_prints_the_lines_that_have_all_columns():
    write("out/bug/mine.jsonl", dict(step=3, loss=0.5, lr=1e-3),
          {"step": 4, "ppo/loss": 2.0, "grade": 1.5})
    said = helped("see mine grade loss", ".", PYTHONPATH=str(ROOT))
    assert said.split() == "mine step 4 | grade 1.500 | loss 2.000".split()


def test_a_bug_is_planted_in_a_copy(tmp_path):
    if not (ROOT / ".git").exists():
        pytest.skip("needs the repository")
    before = (ROOT / "sft.py").read_bytes()
    said = helped("bug sft.py 's/^import torch$/import bug/' grep -c 'import bug' sft.py", ROOT,
                  TMPDIR=str(tmp_path))               # for mktemp
    assert said == "1\n" and (ROOT / "sft.py").read_bytes() == before
