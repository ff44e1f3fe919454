"""The lesson on ratings: labelers against closed forms, losses against formulas, the script."""

import itertools
import math

import numpy as np
import pytest
import torch

import tiny
from lessons import ratings
from lessons.ratings import (CARELESS, LABELERS, accuracy, agreement, centre, label, method_loss,
                             pairs_of, preferences, rate, screen)

FLAGS = "--steps=4 --warmup=2 --n_screen=8 --methods=rating:all,pair:screened".split()
ROWS = [dict(grades=np.random.default_rng(i).uniform(2, 6, 4).round(2).tolist(), noise=0.4)
        for i in range(400)]


@pytest.fixture
def scores(monkeypatch):
    """scores(f): a model's score of a row is f(the row's ids)."""
    def call(f):
        for name in ("score", "score_all"):
            monkeypatch.setattr(ratings, name, lambda model, rows, tok, rt: torch.tensor(
                [f(row) for row in rows]))
    return call


def test_ratings_are_as_frequent_as_gumbels_distribution_says():
    """P(noise <= z) = exp(-exp(-z)), whose mean is Euler's constant."""
    grade, noise, shift, scale, n = 4.6, 0.6, -0.4, 1.3, 200_000
    found, seen = rate(np.full(n, grade), noise, shift, scale, np.random.default_rng(0))
    z = ((np.arange(1, 7) + 0.5 - 4 - shift) / scale + 4 - grade) / noise + 0.5772156649
    expected = np.diff([0, *np.exp(-np.exp(-z)), 1])
    assert np.bincount(found.astype(int), minlength=8)[1:] / n == pytest.approx(expected, abs=0.005)
    assert seen.mean() == pytest.approx(grade, abs=0.01)


def test_a_labeler_is_right_about_a_pair_with_the_probability_of_a_logistic_choice():
    """The difference of two Gumbel variables is logistic; the careless see four times the noise."""
    rows = [dict(grades=[4.0, 4.5], noise=0.5)] * 20_000
    for who, noise in ((0, 0.5), (1, 0.5 * CARELESS)):
        right = np.mean([ranks[1] < ranks[0] for *_, ranks in label(rows, [who], 0)])
        assert right == pytest.approx(1 / (1 + math.exp(-0.5 / noise)), abs=0.01)


def test_one_labeler_judges_a_row_and_ranks_and_ratings_come_from_the_same_look():
    labels = label(ROWS, [2, 5, 7], 1)
    assert {who for who, *_ in labels} == {2, 5, 7}
    for _, given, ranks in labels:
        order = ranks.argsort()
        assert sorted(ranks) == [0, 1, 2, 3] and (np.diff(given[order]) <= 0).all()


def test_screening_keeps_the_careful_half():
    kept = screen(ROWS[:60], 0)
    assert len(kept) == LABELERS // 2 and sum(who % 2 == 0 for who in kept) >= 5


def test_the_agreement_of_two_rankings_is_counted_by_hand():
    one, two = [np.array([0, 1, 2]), np.array([1, 0])], [np.array([0, 2, 1]), np.array([1, 0])]
    assert agreement(one, two) == 3 / 4


def test_centred_ratings_of_each_labeler_have_mean_0_and_deviation_1():
    labels = label(ROWS, [*range(LABELERS)], 3)
    for who in range(LABELERS):
        mine = np.concatenate([r for w, r, _ in centre(labels) if w == who])
        assert mine.mean() == pytest.approx(0, abs=1e-9) and mine.std() == pytest.approx(1)


def test_a_pair_is_read_in_one_order_to_learn_and_in_both_to_judge():
    item = dict(ids=[[1], [2], [3], [4]])
    rows, order = pairs_of(item)
    assert {tuple(row) for row in rows} == set(itertools.permutations([1, 2, 3, 4], 2))
    once, (i, j) = pairs_of(item, both=False)
    assert {frozenset(row) for row in once} == {*map(frozenset, itertools.combinations(
        [1, 2, 3, 4], 2))} and len(once) == 6
    assert 0 < (i < j).sum() < 6                      # the first answer is not always the earlier


def softplus(*values):
    """-log sigmoid(-value), in the mean."""
    return sum(math.log1p(math.exp(value)) for value in values) / len(values)


@pytest.mark.parametrize("method, expected", [
    ("ranking", softplus(-1.5, -1.5, -3)), ("rating", (2.5 ** 2 + 3 ** 2 + 3 ** 2) / 3),
    # read: (0, 1), (1, 2), (2, 0); the score shall be above 0 where the first one is better
    ("pair", softplus(0.5, -2, -1))])
def test_the_losses_are_those_of_the_docstring(scores, method, expected):
    scores(lambda ids: [0.5, 2.0, -1.0][ids[0]])
    item = dict(ids=[[0], [1], [2]], ranks=torch.tensor([1, 0, 2]),
                ratings=torch.tensor([3.0, 5, 2]))
    loss = method_loss(method, None, [item, item], None, tiny.ENV)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_a_pair_reader_that_likes_what_stands_first_has_no_preference(scores):
    items = [dict(ids=[[1], [2], [3]], grades=[2.0, 4.0, 4.0])] * 2
    scores(lambda row: 5.0)
    assert accuracy(preferences("pair", None, items, None, tiny.ENV), items) == (0.5, 2)
    scores(lambda row: 5.0 + (row[0] - row[-1]))         # and knows the order
    assert accuracy(preferences("pair", None, items, None, tiny.ENV), items) == (1, 2)
    scores(lambda row: -float(row[0]))
    assert accuracy(preferences("ranking", None, items, None, tiny.ENV), items) == (0, 2)


def test_an_interrupted_run_ends_with_the_same_weights_and_the_same_table(chain, tmp_path):
    (tmp_path / "out").symlink_to(chain / "out")
    whole = tiny.ends_alike(tmp_path, "ratings", [2, 5], *FLAGS, start="out/sft.pt")
    assert whole["stage"] == "reward"
    assert [row[:2] for row in whole["metrics"]["table"]] == [("rating", "all"),
                                                              ("pair", "screened")]


@pytest.mark.parametrize("flags, said", [
    ("--methods=voting:all", "'voting:all' is not like ranking:all"),
    ("--data=plain.jsonl", "has no true grades")])
def test_a_wrong_flag_gets_one_line(chain, tmp_path, refused, flags, said):
    tiny.write(tmp_path / "plain.jsonl", dict(prompt="a?", responses=["x", "y"]))
    (tmp_path / "out").symlink_to(chain / "out")
    assert said in refused("lessons/ratings", flags)
