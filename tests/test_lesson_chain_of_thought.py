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
def test_every_equation_that_is_written_is_true_and_the_last_one_gives_the_result(write):
    """In steps each is a sum of two numbers that pretraining has."""
    for numbers in some_numbers():
        for equation in write(numbers).rstrip(".").split(". "):
            left, right = equation.split(" = ")
            summands = list(map(int, left.split(" + ")))
            assert sum(summands) == int(right)
            assert write is at_once or len(summands) == 2 and {*summands} <= {*range(1, 21)}
        assert result(write(numbers)) == sum(numbers)


def test_the_steps_go_from_left_to_right():
    assert by_steps([3, 9, 14]) == "3 + 9 = 12. 12 + 14 = 26."
    assert by_steps([3, 9]) == at_once([3, 9]) == "3 + 9 = 12."


@pytest.mark.parametrize("text", ["", "I don't know.", "3 + 9 =", "3 + 9 = .", "3 + 9 = 12"])
def test_an_answer_that_breaks_off_has_no_result(text):
    assert result(text) is None


def test_no_question_of_the_test_has_the_numbers_of_a_demonstration_in_any_order():
    learned, asked = (({tuple(sorted(numbers)) for numbers in some_numbers(2000, held_out)})
                      for held_out in (False, True))
    assert len(learned) > 300 and len(asked) > 100 and not learned & asked


# ---- equal tokens ---------------------------------------------------------------------------

@pytest.mark.parametrize("write", [at_once, by_steps])
def test_a_batch_has_so_many_tokens_to_learn_from_in_order_and_only_its_last_row_is_cut(
        tiny_tokenizer, write):
    tok, first = tiny_tokenizer, 7
    for _ in range(20):
        start, (x, y, first) = first, next_batch(tok, write, CONFIG, first)
        whole = [demonstration(tok, write, CONFIG, i) for i in range(start, first)]
        learned = [[t for t, m in zip(*pair) if m] for pair in whole]
        got = [row[row >= 0].tolist() for row in y]
        assert sum(map(len, got)) == 100 and got[:-1] == learned[:-1]
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


def test_a_vote_is_for_the_most_frequent_result_and_of_equally_frequent_ones_for_the_first():
    rng = random.Random(0)
    for _ in range(300):
        results = rng.choices([None, 1, 2, 3], k=rng.randint(1, 9))
        given = [r for r in results if r is not None]
        assert vote(results) == max(given, key=given.count, default=None)
