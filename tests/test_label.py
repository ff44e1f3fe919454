import random
import re
from itertools import combinations, permutations
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest

from data.formats import DataError
from common import percent, wilson
from tools.label import enough, label, parse_ranking, report_agreement, report_wins
from tools.rankings import agreement, read_rankings
from tiny import write

# ---------------------------------------------------------------------------------------------
# rankings


@pytest.mark.parametrize("text, ranks", [
    ("2>1=4>3", [1, 0, 2, 1]), (" 3 >2> 1", [2, 1, 0]), ("1=2", [0, 0]), ("2＞１＝３", [1, 0, 1]),
    ("11>1>2=3>4>5>6>7>8>9>10", [1, 2, 2, 3, 4, 5, 6, 7, 8, 9, 0])])
def test_a_ranking_gives_each_answer_its_place(text, ranks):
    assert parse_ranking(text, len(ranks)) == ranks


@pytest.mark.parametrize("text", [
    "2>1", "1>2>2>3>4", "1=1>2>3>4", "1>2>3>5", "0>1>2>3>4", "", "the second", "1>2>3>", "1>>2",
    "4 3 2 1", "1<2<3<4", "-1>2", "1.0>2>3>4", "1>\0"])
def test_a_text_that_is_no_ranking_gets_a_short_hint(text):
    with pytest.raises(ValueError, match="rank all answers from 1 to 4, each once.*like 2>1=3"):
        parse_ranking(text, 4)


# ---------------------------------------------------------------------------------------------
# the dialogue

def alphabetical(screen):
    """The ranking that puts the answers on the screen, which are letters, in alphabetical order."""
    shown = re.findall(r"^ +(\d+)  (\w)$", screen, re.M)
    return ">".join(number for number, _ in sorted(shown, key=lambda pair: pair[1]))


@pytest.fixture
def talk(capsys, monkeypatch):
    """Label items as a person who types `answers`: lines, or functions of the screen's text. Gives
    {item: its ranks}, the screens, and how many rankings were saved at each."""
    def talk(items, *answers, out="mine.jsonl"):
        screens, saved, answers = [], [], [*answers]
        rows = [dict(prompt=[dict(role="user", content=f"Question {i}")], responses=item)
                for i, item in enumerate(items)]

        def person(question):
            screens.append(capsys.readouterr().out + question)
            saved.append(len(read_rankings(Path(out))))
            if not answers:
                raise EOFError
            answer = answers.pop(0)
            last = [screen for screen in screens if "Question" in screen][-1]
            return answer(last) if callable(answer) else answer

        monkeypatch.setattr("builtins.input", person)
        label(((f"item {i}", row) for i, row in enumerate(rows)), Path(out))
        assert not answers
        found = {}
        for row in read_rankings(Path(out)).values():
            i = int(row["prompt"][0]["content"].split()[1])
            ranks = dict(zip(row["responses"], row["ranks"]))
            found[i] = [ranks[response] for response in items[i]]
        return found, screens, saved
    return talk


FOUR, CTRL_C = [list("dbca")] * 20, Mock(side_effect=KeyboardInterrupt)


def test_ranks_belong_to_the_answers_in_any_order_which_is_the_same_in_the_next_session(talk):
    labels, screens, _ = talk(FOUR, *[alphabetical] * 20)
    assert labels == dict.fromkeys(range(20), [3, 1, 2, 0])
    again, other = (talk(FOUR, *["s"] * 20, out=out)[1] for out in ("mine.jsonl", "b.jsonl"))
    first, again, other = ([*map(alphabetical, found)] for found in (screens, again, other))
    assert len({*first}) > 5 and first == again != other


RANKS = {alphabetical: [3, 1, 2, 0], "1=2=3=4": [0, 0, 0, 0]}         # what d, b, c and a get


@pytest.mark.parametrize("seed", range(10))
def test_whatever_is_typed_each_item_has_what_was_said_last_and_it_is_saved_at_once(talk, seed):
    """s goes on without a ranking, u goes back and takes one away, a hint changes nothing."""
    typed = random.Random(seed).choices([*RANKS, "s", "u", "what?"], k=15)
    at, expected, asked, saved = 0, {}, [["0"]], [0]
    for word in typed:
        if word == "u":
            at = max(at - 1, 0)
            expected.pop(at, None)
        elif word != "what?":
            expected |= {at: RANKS[word]} if word in RANKS else {}
            at += 1
        asked.append([f"{at}"] * (word != "what?"))   # a hint does not show the item again
        saved.append(len(expected))
    labels, screens, found = talk(FOUR, *typed)
    assert labels == expected and found == saved
    assert [re.findall(r"Question (\d+)", screen) for screen in screens] == asked
    assert ["each once" in screen for screen in screens] == [not number for number in asked]


@pytest.mark.parametrize("stop", [["q"], ["Q "], [], [CTRL_C]], ids=["q", "Q", "Ctrl-D", "Ctrl-C"])
def test_who_stops_keeps_what_is_saved(talk, stop):
    assert talk(FOUR, alphabetical, "s", *stop)[0] == {0: [3, 1, 2, 0]}


@pytest.mark.parametrize("typed, ranks", [("1", "12"), ("2", "21"), ("=", "11"), ("2>1", "21")])
def test_of_two_answers_the_better_one_is_enough(talk, typed, ranks):
    labels, screens, _ = talk([["a", "b"]], typed)
    shown = re.findall(r"^   [12]  (\w)$", screens[0], re.M)
    assert "the better one, 1 or 2, or =;" in screens[0]
    assert "".join(str(1 + labels[0]["ab".index(text)]) for text in shown) == ranks


def test_of_three_answers_the_best_one_is_not_enough(talk):
    assert talk([["a", "b", "c"]], "1")[0] == {}


def test_rankings_of_others_in_the_file_stay_there(talk):
    write(Path("mine.jsonl"), dict(row([dict(role="user", content="Question 0")], a=0, b=1),
                                   labeler="Zoe"))
    before = Path("mine.jsonl").read_text()
    talk([["a", "b"], ["c", "d"]], "1>2", "u", "2>1")
    assert Path("mine.jsonl").read_text().startswith(before)


def test_an_answer_cannot_control_the_terminal(talk):
    screens = talk([["\033[2J", "a\nb"]], "q")[1]
    assert "\033" not in screens[0] and "\\x1b[2J" in screens[0] and "a\n      b" in screens[0]


def test_all_turns_of_a_dialogue_are_shown(capsys, monkeypatch):
    turns = [dict(role=r, content=c) for r, c in (("user", "Hi"), ("assistant", "Yes?"),
                                                  ("user", "Bye"))]
    monkeypatch.setattr("builtins.input", lambda question: "q")
    label(iter([("12 of 100", dict(prompt=turns, responses=["a", "b"]))]), Path("mine.jsonl"))
    assert "12 of 100\nuser: Hi\nassistant: Yes?\nuser: Bye\n" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------
# two people

def row(prompt, **ranks):
    """A comparison in which answer a has rank 0, and so on."""
    responses = sorted(ranks, key=ranks.get)
    return dict(prompt=prompt, responses=responses, ranks=[ranks[r] for r in responses])


@pytest.mark.parametrize("seed", range(5))
def test_agreement_counts_the_pairs_that_two_people_have_ranked_without_a_tie(seed):
    rng = random.Random(seed)
    given = {name: [row(f"{i}", **{answer: rng.randint(0, 2) for answer in "abc"})
                    for i in rng.sample(range(9), 6)] for name in ("Ana", "Ben", "Cem")}
    better = [{(row["prompt"], a, b): x < y for row in rows for (a, x), (b, y) in permutations(
        zip(row["responses"], row["ranks"]), 2) if x != y} for rows in given.values()]
    both = [(pair[0], one[pair] == two[pair]) for one, two in combinations(better, 2)
            for pair in one.keys() & two.keys()]      # ab and ba are two of them
    found, share = agreement(given), sum(same for _, same in both) / len(both)
    assert (2 * found["pairs"], 2 * found["same"]) == (len(both), share * len(both))
    assert found["prompts"] == len({prompt for prompt, _ in both})
    assert found["interval"] == wilson(share, found["prompts"])
    assert found["people"] == dict(Ana=6, Ben=6, Cem=6)


def test_two_files_agree_on_the_pairs_that_both_rank():
    write(Path("a.jsonl"), row("1", a=0, b=1, c=2))
    write(Path("b.jsonl"), row("2", a=0, b=1), row("1", a=0, c=1, b=2))
    write(Path("c.jsonl"), row("3", a=0, b=1))
    assert report_agreement("a.jsonl", "b.jsonl") == (
        "both rank 3 pairs of answers (prompts: 1), 2 of them the same way: "
        f"{percent(2 / 3, 1)}; chance is 50%")
    with pytest.raises(DataError, match="b.jsonl and c.jsonl have no pair"):
        report_agreement("b.jsonl", "c.jsonl")


def test_a_share_and_its_interval_in_percent():
    assert percent(0.8, 10) == "80.0% [49.0, 94.3]"                # R: prop.test(8, 10)
    assert percent(0.0, 10) == "0.0% [0.0, 27.8]"                  # z² / (n + z²)


@pytest.mark.parametrize("share, n", [(0.5, 1), (0.0, 7), (1.0, 7), (0.73, 200)])
def test_the_ends_of_the_interval_are_two_deviations_from_the_share(share, n):
    for p in wilson(share, n):
        assert abs(share - p) == pytest.approx(1.96 * (p * (1 - p) / n) ** 0.5, abs=1e-9)


# ---------------------------------------------------------------------------------------------
# two models

@pytest.mark.parametrize("rate", [0.2, 0.45, 0.6, 0.75])
def test_enough_prompts_show_a_win_rate_in_four_of_five_tests(rate):
    n = enough(rate)
    wins = np.random.default_rng(0).binomial(n, rate, size=20_000)
    shown = np.mean([not low < 0.5 < high for low, high in (wilson(w / n, n) for w in wins)])
    assert shown == pytest.approx(0.8, abs=0.04)


def won(*outcomes):
    """Rows in which model A is better (1), worse (-1) or equal (0)."""
    return [dict(responses=["a", "b"][::won or 1], ranks=[0, abs(won)],
                 models=dict(a=["A"], b=["B"])) for won in outcomes]


def test_a_win_rate_has_its_interval_and_how_many_prompts_would_show_it():
    first, second, last = report_wins(won(*[1] * 11, *[0] * 2, *[-1] * 7)).splitlines()
    assert first == f"A: preferred {percent(0.6, 20)} of 20 times"    # 11 + 2 / 2
    assert second == f"B: preferred {percent(0.4, 20)} of 20 times"
    assert f"about {enough(0.6)} prompts" in last and "you have 20" in last


def test_no_number_of_prompts_shows_that_two_models_are_equal():
    assert len(report_wins(won(1, -1, 0)).splitlines()) == 2
