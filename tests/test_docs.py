"""Every command in README and docs runs a script that exists, with flags that it has; every link
leads somewhere, and every page is in the index."""

import importlib
import re

import pytest
import torch
import torch.nn.functional as F

from common import parse_config
from pages import lines, scripts
from rlhf_ppo import Config, gae
from tiny import ROOT, close

DOCS = [*ROOT.glob("README*.md"), *ROOT.glob("data/*.md"), *sorted((ROOT / "docs").glob("*.md"))]
CASES = [(path.relative_to(ROOT).as_posix(), script, [word for word in words if word[:2] == "--"])
         for path in DOCS for script, words in scripts(path.read_text(encoding="utf-8"))
         if not script.startswith(("data/real", "data/zh", "out/"))]  # the page writes them


@pytest.mark.parametrize("page, script, flags", CASES, ids=str)
def test_a_command_of_the_docs_has_a_script_and_its_flags(page, script, flags):
    assert (ROOT / f"{script}.py").exists()
    parse_config(importlib.import_module(script.replace("/", ".")).Config, "", flags)


def test_commands_are_found_in_blocks_and_in_lines():
    text = ("`sft.py` is `python sft.py --lr=1\n--out=a.pt` or\n    python -m pytest tests/a.py\n"
            "```bash\nTWO=\"--steps=3\"\ncd out && torchrun --nproc_per_node=2 pretrain.py \\\n"
            "    $TWO   # --no\npython -m tools.hf import a b --block_size=8 > c --no\n```\n"
            "```\n$ python chat.py --prompt=\"Who; me?\"\nNot python sft.py\n```\n")
    assert scripts(text) == [
        ("sft", ["--lr=1", "--out=a.pt"]), ("pretrain", ["--steps=3"]),
        ("tools/hf", ["import", "a", "b", "--block_size=8"]), ("chat", ["--prompt=Who; me?"])]


def test_what_a_command_reads_and_prints_belongs_to_it():
    assert lines("```\n$ cat > a.py <<'END'\nx = 1\nEND\n$ python a.py\n1\n```\n") == [
        ("cat > a.py <<'END'\nx = 1\nEND", ""), ("python a.py", "1")]


def test_there_are_commands_in_every_page_that_should_have_some():
    assert {"README.md", "docs/real.md", "docs/course.md"} <= {page for page, *_ in CASES}
    assert len(CASES) > 100


@pytest.mark.parametrize("page", DOCS, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_index_lists_every_page():
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    assert [page.name for page in (ROOT / "docs").glob("*.md")
            if page.name != "README.md" and f"({page.name})" not in index] == []


def test_the_flags_of_ppos_details_are_the_defaults():
    table = (ROOT / "docs/ppo-details.md").read_text(encoding="utf-8").partition("## With a")[2]
    rows = [row.split("|")[2] for row in table.partition("\n## ")[0].splitlines() if "| `--" in row]
    config = parse_config(Config, "", re.findall(r"--\w+=[^\s`]*", " ".join(rows)))
    assert len(rows) > 9 and config == Config()


def test_the_values_worked_out_by_hand_are_those_of_gae():
    text = (ROOT / "docs/questions.md").read_text(encoding="utf-8")
    rows = re.findall(r"^.{12,18}" + 5 * r" +([-+]?\d\.\d{3})" + "$", text, re.M)
    log_ratio, r, v, delta, a = torch.tensor([[*map(float, row)] for row in rows]).T[:, None]
    found, _ = gae(r, v, torch.ones_like(v).bool(), gamma=1, lam=0.95)
    close(found, a, atol=2e-3)
    close(r + F.pad(v[:, 1:], (0, 1)) - v, delta, atol=1.5e-3)
    close(r[0, :-1], -0.1 * log_ratio[0, :-1], atol=1e-3)
    assert len(rows) == 11


@pytest.mark.parametrize("name", ["README.md", "README.zh.md"])
def test_the_readme_is_an_entrance_not_a_manual(name):
    assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) <= 170
