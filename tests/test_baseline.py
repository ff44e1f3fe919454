import numpy as np
import pytest

from tiny import run, write
from tools import baseline


def row(i, *responses, ranks=None):
    return dict(prompt=[dict(role="user", content=f"question {i}?")], responses=list(responses),
                ranks=ranks or list(range(len(responses))))


def test_all_pairs_without_a_tie_are_taken_the_better_first():
    pairs = baseline.pairs_of([row(0, "a", "b", "c", ranks=[0, 1, 1]), row(1, "d", "e")])
    assert [pair[1:] for pair in pairs] == [("a", "b"), ("a", "c"), ("d", "e")]


def test_a_tie_counts_half():
    assert baseline.accuracy(np.array([1.5, -2, 0, 0.1])) == 2.5 / 4


def test_words_learn_which_word_is_liked_and_generalise():
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(0)

    def pairs(n):
        filler = [" ".join(rng.choice(list("abcdefgh"), 6)) for _ in range(2 * n)]
        return [(str(i), f"{filler[i]} please", filler[n + i]) for i in range(n)]

    assert baseline.accuracy(baseline.words(pairs(200), pairs(50))) > 0.95


def test_words_that_say_nothing_are_near_chance():
    pytest.importorskip("sklearn")
    rng = np.random.default_rng(1)
    pairs = [(str(i), *(" ".join(rng.choice(list("abcdefgh"), 6)) for _ in "ab"))
             for i in range(1200)]
    assert abs(baseline.accuracy(baseline.words(pairs[:800], pairs[800:])) - 0.5) < 0.1


def test_the_table_on_a_file(tmp_path, capsys):
    pytest.importorskip("sklearn")
    write(tmp_path / "c.jsonl", *(row(i, "yes please", "no, never, not at all")
                                  for i in range(60)))
    assert run(tmp_path, "tools/baseline", "c.jsonl", "--held_out=0.3")[0] == 0
    printed = capsys.readouterr().out
    for name, share in (("shorter", "1.000"), ("longer", "0.000"), ("words", "1.000")):
        assert f"{name:20} {share} [" in printed
