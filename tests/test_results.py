"""docs/results.md is what `python -m lab.results` writes, and the other pages quote it."""

import re

import pytest

import tiny
from common import read_json
from lab.results import SHOW, renewed
from tiny import ROOT

PAGE = ROOT / "docs/results.md"
TEXT = PAGE.read_text("utf-8")
FIGURE = re.compile(r"\d+(?:[.,:]\d+)*")                    # 5.68, 1,602, 8:26
MEASURED = re.compile(r"\d+:\d\d(?!\d)|\d+\.\d+(?=%)|\d\.\d\d(?!\d)")   # 8:26, 74.9%, 5.68


def sections(name):
    """The sections of a page, by number: the opening is 0."""
    return re.split(r"^## ", (ROOT / name).read_text("utf-8"), flags=re.M)


def results_of(name):
    return next(part for part in sections(name) if part.startswith(("Results", "结果")))


def not_in_results(figures):
    return set(figures) - set(FIGURE.findall(TEXT))


def test_the_page_is_what_the_command_writes():
    assert renewed(PAGE) == TEXT


def test_every_measurement_has_a_block_on_the_page():
    names = sorted(file.stem for file in (ROOT / "docs/results").iterdir())
    assert names == sorted(SHOW) == sorted(re.findall(r"^<!-- (\w+) -->$", TEXT, re.M))


@pytest.mark.parametrize("name", ["README.md", "README.zh.md"])
def test_every_number_of_the_readmes_results_is_one_of_the_page(name):
    figures = FIGURE.findall(results_of(name))
    assert len(figures) > 60 and not not_in_results(figures)


@pytest.mark.parametrize("name", ["README.md", "README.zh.md", "docs/course.md",
                                  "docs/course.zh.md"])
def test_what_the_openings_and_the_course_quote_is_on_the_page(name):
    chosen = sections(name)[:2] if "README" in name else sections(name)[:4]
    figures = MEASURED.findall("".join(chosen))
    took = read_json(PAGE.with_suffix("") / "times.json")["bash run.sh"]
    assert took in figures and not not_in_results(figures)


@pytest.mark.parametrize("name", ["README.md", "README.zh.md"])
def test_the_readmes_scoreboard_has_lines_of_the_page(name):
    block = re.search(r"^```\n(.*?)^```", results_of(name), re.M | re.S)[1].splitlines()
    assert len(block) == 6 and set(block) <= set(TEXT.splitlines())


def test_a_number_that_nobody_measured_is_found():
    assert not_in_results(["6.71", "6.63", "8:27"]) == {"6.63", "8:27"}


def test_the_verdicts_are_those_of_the_table_of_claims():
    text = (ROOT / "docs/claims.md").read_text("utf-8")
    table = re.search(r"^claim .*?^```", text, re.M | re.S)[0]
    verdicts = re.findall("^.{62}(HOLDS|DOES NOT HOLD|MIXED.*)$", table, re.M)
    said = read_json(ROOT / "docs/results/claims.json")
    assert [*zip(re.findall(r"--what=(\w+)", table), verdicts, strict=True)] == [
        (name, verdict) for name, (_, verdict) in said.items()]


def test_a_new_measurement_changes_its_block_alone():
    tiny.write("results/times.json", {"bash run.sh": "1:23"})
    page = tiny.write("results.md", "Before.\n\n<!-- times -->\n```\nold\n```\n\nAfter.\n")
    tiny.printed(".", "lab/results", "--page=results.md")
    assert page.read_text("utf-8") == (
        f"Before.\n\n<!-- times -->\n```\nbash run.sh{'1:23':>25}\n```\n\nAfter.\n")


def test_new_chains_are_measured_first():
    board = read_json(ROOT / "docs/results/scoreboard.json")
    for seed, grade in enumerate((6.5, 7.0, 6.0)):
        board["models"]["ppo"]["grade"][0] = grade
        for file in ("scoreboard.json", "experiments/rehearsal.json"):
            tiny.write(f"seed{seed}/{file}", board)
        for i in range(5):
            tiny.write(f"seed{seed}/experiments/rehearsal_{i}.pt")
        tiny.write(f"seed{seed}/pretrain.jsonl", dict(step=9, val_loss=1.1, entropy=1.0))
    page = tiny.write("results.md", "<!-- seeds -->\n```\n```\n")
    tiny.printed(".", "lab/results", "--page=results.md", "--chains=seed", "--seeds=3")
    assert f"\ngrade after PPO{'6.50 [6.00, 7.00]':>54}\n" in page.read_text("utf-8")
    assert read_json("results/rehearsal.json")["no text"][2] == [
        "{:.2f}", 6.5, 7.0, 6.0]                      # the third model of each seed
