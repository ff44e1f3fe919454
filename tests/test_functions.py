"""Functions of one's own: what they may be, and how it is said what is wrong with them."""

import math

import pytest
import torch

from common import check_scores, get_scores, load_function, verdicts_of

MINE = """
X = 1
def length(prompts, responses): return [len(r) for r in responses]
def inverse(prompts, responses): return [1 / len(r) for r in responses]
"""
PAIR = [[dict(role="user", content="Who?")], [dict(role="user", content="Where?")]], ["Ada", "here"]


def test_a_function_is_loaded_from_a_file(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    assert load_function(f"{tmp_path}/mine.py:length")(["", ""], ["a", "bc"]) == [1, 2]


def test_a_function_that_fails_is_named_with_the_first_answer_that_makes_it_fail(tmp_path):
    (tmp_path / "mine.py").write_text(MINE)
    prompts = [[dict(role="user", content=text)] for text in ("Hi", "Who?", "Why?")]
    with pytest.raises(ValueError) as error:
        get_scores(load_function(f"{tmp_path}/mine.py:inverse"), prompts, ["Hello", "", ""], "mine")
    assert all(part in str(error.value) for part in (
        "mine: ZeroDivisionError", "the prompt 'Who?' and the response ''"))


@pytest.mark.parametrize("spec, reason", [
    ("missing.py:f", "no file missing.py"), ("mine.py:g", "no function named g"),
    ("mine.py", "FILE.py:name"), ("mine.py:X", "no function named X"),
    ("notes.txt:f", "FILE.py:name")])
def test_what_is_not_a_function_in_a_file_is_refused(spec, reason, tmp_path, monkeypatch, capsys):
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "notes.txt").write_text("f")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        load_function(spec)
    said = capsys.readouterr().err
    assert end.value.code == 1 and reason in said and said.count("\n") == 1


def test_a_file_may_hold_dataclasses_with_annotations_that_are_text(tmp_path):
    (tmp_path / "mine.py").write_text("""from __future__ import annotations
from common import check_scores, get_scores, load_function, verdicts_of
from dataclasses import dataclass
@dataclass
class Rule:
    bonus: float = 1.0
def f(prompts, responses): return [Rule().bonus] * len(responses)""")
    assert load_function(f"{tmp_path}/mine.py:f")([""], ["a"]) == [1.0]


def test_a_judge_is_asked_about_each_answer():
    verdict = dict(grade=1, right=True, unsure=False, refusal=False)
    assert verdicts_of(lambda p, r: dict(verdict, grade=len(r)), *PAIR, "j") == [
        dict(verdict, grade=3), dict(verdict, grade=4)]


@pytest.mark.parametrize("judge, reason", [
    (lambda p, r: dict(grade=1, right=True), "gave no refusal, unsure"),
    (lambda p, r: None, "TypeError"), (lambda p, r: 1 / (len(r) - 3), "ZeroDivisionError")])
def test_a_judge_that_fails_is_named_with_the_answer(judge, reason):
    with pytest.raises(ValueError, match=f"mine.py:j.*{reason}.*'Who\\?'.*'Ada'"):
        verdicts_of(judge, *PAIR, "mine.py:j")


@pytest.mark.parametrize("scores", [[1.0], 1.0, [[1.0], [2.0]], [1, 2, 3], [], None, ["a", "b"],
                                    [1.0, None], [[1.0, 2.0]]])
def test_scores_that_are_not_one_number_per_answer_are_refused(scores):
    with pytest.raises(ValueError, match="mine.py:f"):
        check_scores(scores, *PAIR, "mine.py:f")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_refused_with_its_pair(bad):
    with pytest.raises(ValueError, match="mine.py:f.*'Where\\?'.*'here'"):
        check_scores([1.0, bad], *PAIR, "mine.py:f")


@pytest.mark.parametrize("scores", [[1, 2], (1.0, 2.0), torch.tensor([1.0, 2.0]).double()])
def test_good_scores_become_a_tensor_of_floats(scores):
    found = check_scores(scores, *PAIR, "mine.py:f")
    assert found.dtype == torch.float32 and found.tolist() == [1.0, 2.0]
