import random

import pytest

from lessons.chain_of_thought import (Config, at_once, by_steps, demonstration, draw, next_batch,
                                      result, vote)

CONFIG = Config(n_tokens=100)
FLAGS = "--steps=6 --n_tokens=60 --warmup=2 --n_test=4 --votes=3 --most=3".split()


def some_numbers(n=200, held_out=False):
    rng = random.Random(0)
    return [draw(rng, 2 + i % 4, held_out) for i in range(n)]


# ---- questions and answers ------------------------------------------------------------------

@pytest.mark.parametrize("write", [at_once, by_steps])
def test_every_equation_that_is_written_is_true(write):
    for numbers in some_numbers():
        for equation in write(numbers).rstrip(".").split(". "):
            left, right = equation.split(" = ")
            assert sum(map(int, left.split(" + "))) == int(right)


def test_the_steps_go_from_left_to_right():
    assert by_steps([3, 9, 14]) == "3 + 9 = 12. 12 + 14 = 26."
    assert by_steps([3, 9]) == at_once([3, 9]) == "3 + 9 = 12."


def test_each_step_is_a_sum_of_two_numbers_that_pretraining_has():
    for numbers in some_numbers():
        for step in by_steps(numbers).split(". "):
            assert all(1 <= int(x) <= 20 for x in step.split(" = ")[0].split(" + "))


@pytest.mark.parametrize("write", [at_once, by_steps])
def test_the_result_is_what_the_answer_ends_with(write):
    for numbers in some_numbers():
        assert result(write(numbers)) == sum(numbers)


@pytest.mark.parametrize("text", ["", "I don't know.", "3 + 9 =", "3 + 9 = .", "3 + 9 = 12"])
def test_an_answer_that_breaks_off_has_no_result(text):
    assert result(text) is None


def test_no_question_of_the_test_has_the_numbers_of_a_demonstration_in_any_order():
    learned, asked = (({tuple(sorted(numbers)) for numbers in some_numbers(2000, held_out)})
                      for held_out in (False, True))
    assert len(learned) > 300 and len(asked) > 100 and not learned & asked


# ---- equal tokens ---------------------------------------------------------------------------

@pytest.mark.parametrize("write", [at_once, by_steps])
def test_every_batch_has_exactly_so_many_tokens_to_learn_from(tiny_tokenizer, write):
    first = 0
    for _ in range(20):
        x, y, first = next_batch(tiny_tokenizer, write, CONFIG, first)
        assert (y >= 0).sum() == 100
    assert first > 20


def test_a_batch_has_the_demonstrations_in_order_and_only_the_last_is_cut(tiny_tokenizer):
    tok, config = tiny_tokenizer, CONFIG
    x, y, end = next_batch(tok, by_steps, config, 7)
    whole = [demonstration(tok, by_steps, config, i) for i in range(7, end)]
    learned = [[t for t, m in zip(*pair) if m] for pair in whole]
    got = [row[row >= 0].tolist() for row in y]
    assert got[:-1] == learned[:-1]
    assert got[-1] == learned[-1][:len(got[-1])] and got[-1]
    assert [row[:len(ids) - 1].tolist() for row, (ids, _) in zip(x, whole)] == [
        ids[:-1] for ids, _ in whole]


def test_both_models_are_asked_the_same(tiny_tokenizer):
    def question(write, i):
        ids, mask = demonstration(tiny_tokenizer, write, CONFIG, i)
        return ids[:mask.index(1)]

    questions = [question(by_steps, i) for i in range(50)]
    assert questions == [question(at_once, i) for i in range(50)]
    assert len(set(map(tuple, questions))) > 40


# ---- voting ---------------------------------------------------------------------------------

def test_a_vote_equals_counting():
    rng = random.Random(0)
    for _ in range(300):
        results = rng.choices([None, 1, 2, 3], k=rng.randint(1, 9))
        got = vote(results)
        counts = {r: sum(r == other for other in results) for r in results if r is not None}
        assert counts.get(got, 0) == max(counts.values(), default=0)
        assert (got is None) == (not counts)


def test_of_equally_frequent_results_the_first_wins():
    assert vote([None, 5, 4, 4, 5, None, None]) == 5
