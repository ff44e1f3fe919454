import os
import random
import re
import signal

import pytest

from data.formats import DataError
from common import percent, wilson
from tools.label import example, label, parse_ranking, report_agreement
from tiny import write

# ---------------------------------------------------------------------------------------------
# rankings


@pytest.mark.parametrize("text, ranks", [
    ("2>1=4>3", [1, 0, 2, 1]), (" 3 >2> 1", [2, 1, 0]), ("1=2", [0, 0]),
    ("2＞１＝３", [1, 0, 1])])
def test_a_ranking_gives_each_answer_its_place(text, ranks):
    assert parse_ranking(text, len(ranks)) == ranks


def test_a_ranking_of_any_length_is_read():
    rng = random.Random(0)
    for n in range(2, 13):
        ranks = rng.choices(range(n), k=n)
        ranks = [sorted(set(ranks)).index(rank) for rank in ranks]
        groups = [[str(i + 1) for i in range(n) if ranks[i] == rank] for rank in range(n)]
        assert parse_ranking(">".join("=".join(g) for g in groups if g), n) == ranks


@pytest.mark.parametrize("text, reason", [
    ("2>1", "3, 4 missing"), ("1>2>2>3>4", "2 occurs twice"), ("1=1>2>3>4", "1 occurs twice"),
    ("1>2>3>5", "there is no answer 5"), ("0>1>2>3>4", "there is no answer 0"), ("", "write >"),
    ("the second", "write >"), ("1>2>3>", "write >"), ("1>>2", "write >"), ("4 3 2 1", "write >"),
    ("1<2<3<4", "write >"), ("-1>2", "write >"), ("1.0>2", "write >"), ("1>\0", "write >")])
def test_a_text_that_is_no_ranking_gets_a_short_hint(text, reason):
    with pytest.raises(ValueError, match=reason) as hint:
        parse_ranking(text, 4)
    assert len(str(hint.value)) < 150


@pytest.mark.parametrize("n", range(2, 10))
def test_the_example_is_a_ranking(n):
    assert sorted(parse_ranking(example(n), n))[0] == 0


# ---------------------------------------------------------------------------------------------
# the dialogue

def alphabetical(screen):
    """The ranking that puts the answers on the screen, which are letters, in alphabetical order."""
    shown = re.findall(r"^ +(\d+)  (\w)$", screen, re.M)
    return ">".join(number for number, _ in sorted(shown, key=lambda pair: pair[1]))


def ctrl_c(screen):
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def talk(capsys, monkeypatch):
    """Label items as a person who types `answers`: lines, or functions of the screen's text."""
    def talk(items, *answers, labels=None, name=""):
        labels, saved, screens = labels if labels is not None else [], [], []
        answers = list(answers)

        def person(question):
            screens.append(capsys.readouterr().out + question)
            if not answers:
                raise EOFError
            answer = answers.pop(0)
            return answer(screens[-1]) if callable(answer) else answer

        monkeypatch.setattr("builtins.input", person)
        done = label(len(items), lambda i: ([dict(role="user", content=f"Question {i}")], items[i]),
                     labels, lambda: saved.append(list(labels)), name)
        assert not answers
        return labels, done, screens, saved
    return talk


FOUR = [list("dbca")] * 20


def test_ranks_belong_to_the_answers_in_any_order_which_is_the_same_in_the_next_session(talk):
    labels, _, screens, _ = talk(FOUR, *[alphabetical] * 20)
    assert labels == [[3, 1, 2, 0]] * 20
    again, other = (talk(FOUR, *["s"] * 20, name=name)[2] for name in ("", "b"))
    first, again, other = ([*map(alphabetical, found)] for found in (screens, again, other))
    assert len({*first}) > 5 and first == again != other


@pytest.mark.parametrize("items, typed, expected", [
    ([["a", "b", "c"]], ["1=2=3"], [[0, 0, 0]]),
    (FOUR[:3], ["s", alphabetical, "s"], [[], [3, 1, 2, 0], []]),
    ([["a", "b"], ["a"], ["b"], ["a", "b"]], ["2=1", "u", alphabetical], [[0, 1], [], []]),
    (FOUR, ["u", "u", alphabetical], [[3, 1, 2, 0]]),
    (FOUR[:2], ["s", "s", "u", alphabetical, ""], [[], [3, 1, 2, 0]])],
    ids=["ties are kept", "a skipped item has no ranks", "undo skips items that were not shown",
         "undo at the beginning does nothing", "the very last answer can be undone"])
def test_labels_follow_what_is_typed(talk, items, typed, expected):
    labels, done, *_ = talk(items, *typed)
    assert labels == expected and done == (len(labels) == len(items))


def test_an_item_with_fewer_than_two_answers_is_not_shown(talk):
    labels, _, screens, _ = talk([["a"], [], ["a", "b"], ["b"]], alphabetical)
    assert labels == [[], [], [0, 1], []] and "3 of 4" in screens[0]


def test_after_a_hint_only_the_question_is_repeated(talk):
    labels, _, screens, _ = talk(FOUR[:1], "what?", "4=3>2>1", "q")
    assert len(labels) == 1 and screens[1].count("\n") == 1 and "write >" in screens[1]


def test_undo_asks_the_last_item_again(talk):
    labels, _, screens, _ = talk(FOUR[:3], "4>3>2>1", "s", "u", alphabetical)
    assert len(labels) == 2 and labels[1] == [3, 1, 2, 0]
    assert ["Question 1" in screen for screen in screens] == [False, True, False, True, False]


@pytest.mark.parametrize("stop", [["q"], ["Q "], [], [ctrl_c]], ids=["q", "Q", "Ctrl-D", "Ctrl-C"])
def test_labels_are_kept_when_the_person_stops(talk, stop):
    before = signal.getsignal(signal.SIGINT)
    labels, done, *_ = talk(FOUR, alphabetical, "s", *stop)
    assert labels == [[3, 1, 2, 0], []] and not done
    assert signal.getsignal(signal.SIGINT) == before


def test_the_next_session_continues_where_the_last_one_stopped(talk):
    labels, done, screens, _ = talk(FOUR[:3], alphabetical, "q")
    labels, done, screens, _ = talk(FOUR[:3], "s", alphabetical, "", labels=labels)
    assert labels == [[3, 1, 2, 0], [], [3, 1, 2, 0]] and done and "2 of 3" in screens[0]


def test_every_change_is_saved_before_the_next_question(talk):
    saved = talk(FOUR, "1>2>3>4", "nonsense", "s", "u", "s", "q")[3]
    assert [len(labels) for labels in saved] == [1, 2, 1, 2]


def test_an_answer_cannot_control_the_terminal(talk):
    screens = talk([["\033[2J", "a\nb"]], "q")[2]
    assert "\033" not in screens[0] and "\\x1b[2J" in screens[0] and "a\n      b" in screens[0]


def test_all_turns_of_a_dialogue_are_shown(capsys, monkeypatch):
    turns = [dict(role=r, content=c) for r, c in (("user", "Hi"), ("assistant", "Yes?"),
                                                  ("user", "Bye"))]
    monkeypatch.setattr("builtins.input", lambda question: "q")
    label(100, lambda i: (turns, ["a", "b"]), [[]] * 11, None)
    assert "12 of 100\nuser: Hi\nassistant: Yes?\nuser: Bye\n" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------
# two people

def row(prompt, **ranks):
    """A comparison in which answer a has rank 0, and so on."""
    responses = sorted(ranks, key=ranks.get)
    return dict(prompt=prompt, responses=responses, ranks=[ranks[r] for r in responses])


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Both files rank ab, ac and bc of prompt 1, and disagree on bc. Both rank xy and xz of prompt
    2, and disagree on both. One file has a tie or nothing for yz and for ab of prompts 3 and 4."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.jsonl", row("1", a=0, b=1, c=2), row("2", x=0, y=1, z=1),
          row("3", a=0, b=1))
    write(tmp_path / "b.jsonl", row("2", y=0, z=0, x=1), row("1", a=0, c=1, b=2),
          row("4", a=0, b=1), row("3", a=0, b=0), row("2", x=1, y=0))
    return "a.jsonl", "b.jsonl"


def test_agreement_counts_the_pairs_that_both_rank_in_any_order_of_the_files(files):
    said = report_agreement(*files)
    assert "5 pairs" in said and "prompts: 2" in said and "2 of them the same way: 40.0%" in said
    assert report_agreement(*reversed(files)) == said


def test_a_file_agrees_with_itself_on_every_pair(files):
    said = report_agreement("a.jsonl", "a.jsonl")     # bc is ranked, yz is a tie
    assert "6 pairs" in said and "6 of them the same way: 100.0%" in said


def test_two_files_without_a_common_pair_are_refused(files, tmp_path):
    write(tmp_path / "c.jsonl", row("9", a=0, b=1))
    with pytest.raises(DataError, match="a.jsonl and c.jsonl have no pair"):
        report_agreement("a.jsonl", "c.jsonl")


def test_a_share_and_its_interval_in_percent():
    assert percent(0.8, 10) == "80.0% [49.0, 94.3]"                # R: prop.test(8, 10)
    assert percent(0.0, 10) == "0.0% [0.0, 27.8]"                  # z² / (n + z²)


@pytest.mark.parametrize("share, n", [(0.5, 1), (0.0, 7), (1.0, 7), (0.73, 200)])
def test_the_ends_of_the_interval_are_two_deviations_from_the_share(share, n):
    for p in wilson(share, n):
        assert abs(share - p) == pytest.approx(1.96 * (p * (1 - p) / n) ** 0.5, abs=1e-9)
