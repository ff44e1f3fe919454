"""Functions of one's own: what they may be, and how it is said what is wrong with them."""

import math

import pytest
import torch

from common import function_file, get_scores, load_function, verdicts_of
from tiny import write

MINE = """
X = 1
def length(prompts, responses): return [len(r) for r in responses]
"""
PAIR = [[dict(role="user", content="Who?")], [dict(role="user", content="Where?")]], ["Ada", "here"]


@pytest.mark.parametrize("path", ["mine.py", "a.py:b/my, file.v2.py:x.py"])
def test_a_function_is_loaded_from_a_file_whose_path_may_hold_anything(path):
    assert load_function(f"{write(path, MINE)}:length")(["", ""], ["a", "bc"]) == [1, 2]


@pytest.mark.parametrize("spec, file", [
    ("mine.py:f", "mine.py"), ("a: b/my file.py:f", "a: b/my file.py"),
    ("a.py:b.py:f", "a.py:b.py"),
    (r"C:\mine.py:f", r"C:\mine.py"), ("mine.py", "mine.py"), ("mine.py:", "mine.py"),
    ("out/reward.pt", ""), ("a.py:b/reward.pt", ""), (r"C:\a.py:b\reward.pt", ""), ("", "")])
def test_what_names_a_function_is_told_from_a_path_by_its_end(spec, file):
    assert function_file(spec) == file


@pytest.mark.parametrize("spec, reason", [
    ("mine.py:g", "mine.py has no function named g"),
    ("mine.py:X", "mine.py has no function named X"), *(
        (spec, f"{spec!r} is no function: give one as FILE.py:name, of a file that is there")
        for spec in ("missing.py:f", "mine.py", "notes.txt:f", ""))])
def test_what_is_not_a_function_in_a_file_is_refused(spec, reason, refused):
    write("mine.py", MINE), write("notes.txt", "f")
    assert reason in refused(load_function, spec)


def test_a_file_may_hold_dataclasses_with_annotations_that_are_text():
    path = write("mine.py", """from __future__ import annotations
from dataclasses import dataclass
@dataclass
class Rule:
    bonus: float = 1.0
def f(prompts, responses): return [Rule().bonus] * len(responses)""")
    assert load_function(f"{path}:f")([""], ["a"]) == [1.0]


@pytest.mark.parametrize("change", ["p.append(dict(role='user', content='x'))",
                                    "p[0]['content'] += 'x'", "p.clear()", "responses.clear()"])
def test_what_a_function_does_to_its_arguments_is_done_to_copies(change):
    """Two answers to one prompt: the lists hold the same prompt twice."""
    path = write("mine.py", f"""def f(prompts, responses):
    for p in prompts:
        {change}
    return [len(str(p)) for p in prompts]""")
    prompt = [dict(role="user", content="Hi")]
    prompts, responses, f = [prompt, prompt], ["a", "b"], load_function(f"{path}:f")
    first, second = f(prompts, responses)
    assert first == second and f(prompts, responses) == [first, second]
    assert prompts == [[dict(role="user", content="Hi")]] * 2 and responses == ["a", "b"]


def test_a_function_finds_its_neighbours():
    write("a/neighbour.py", "NAME = 'theirs'")
    path = write("a/mine.py", "import neighbour as n\ndef f(): return n.NAME")
    f = load_function(f"{path}:f")
    assert f() == f() == "theirs"


def test_a_judge_is_asked_about_each_answer():
    verdict = dict(grade=1, right=True, unsure=False, refusal=False)
    assert verdicts_of(lambda p, r: dict(verdict, grade=len(r)), *PAIR, "j") == [
        dict(verdict, grade=3), dict(verdict, grade=4)]


@pytest.mark.parametrize("judge, reason", [
    (lambda p, r: dict(grade=1, right=True), "KeyError: 'unsure'"),
    (lambda p, r: dict(grade=None, right=True, unsure=False, refusal=False), "TypeError"),
    (lambda p, r: dict(grade=1, right=True, unsure=False, refusal="no"), "ValueError"),
    (lambda p, r: dict(grade=math.nan, right=True, unsure=False, refusal=False), "gave nan"),
    (lambda p, r: None, "TypeError"), (lambda p, r: 1 / (len(r) - 3), "ZeroDivisionError")])
def test_a_judge_that_fails_is_named_with_the_answer(judge, reason):
    with pytest.raises(ValueError, match=f"mine.py:j.*{reason}.*'Who\\?'.*'Ada'"):
        verdicts_of(judge, *PAIR, "mine.py:j")


@pytest.mark.parametrize("scores, reason", [
    *((scores, "mine.py:f") for scores in (
        [1.0], 1.0, [[1.0], [2.0]], [1, 2, 3], [], None, ["a", "b"], [1.0, None], [[1.0, 2.0]])),
    (lambda p, r: [1 / (len(text) - 4) for text in r],                # fails at the second
     "mine.py:f: ZeroDivisionError.*the prompt 'Where\\?' and the response 'here'"),
    *((lambda p, r, bad=bad: [bad if text == "here" else 1.0 for text in r],
       f"mine.py:f.*gave {bad}.*'Where\\?'.*'here'") for bad in (math.nan, math.inf, -math.inf))])
def test_scores_that_are_not_one_finite_number_per_answer_are_refused(scores, reason):
    function = scores if callable(scores) else lambda prompts, responses: scores
    with pytest.raises(ValueError, match=reason):
        get_scores(function, *PAIR, "mine.py:f")


@pytest.mark.parametrize("scores", [[1, 2], (1.0, 2.0), torch.tensor([1.0, 2.0]).double()])
def test_good_scores_become_a_tensor_of_floats(scores):
    found = get_scores(lambda prompts, responses: scores, *PAIR, "mine.py:f")
    assert found.dtype == torch.float32 and found.tolist() == [1.0, 2.0]
