"""Exams against log-probabilities token by token, answers by hand, and counting."""

import itertools
import json
import random
from pathlib import Path
from types import SimpleNamespace

import pytest

import tiny
from answer import answer_text
from checkpoint import load
from data.formats import DataError
from model import GPT
from tiny import ENV, greedy, logp_by_hand, write
from tokenizer import Tokenizer
from tools import exam
from tools.exam import choose, judge, pass_at, plain, read_questions


T = 96


@pytest.fixture
def models(tiny_tokenizer):
    """A chat model and a base model, which read T tokens: their tokenizer."""
    for stage in ("sft", "pretrain"):
        tiny.save(Path(f"{stage}.pt"), stage, tiny_tokenizer, block_size=T)
    return tiny_tokenizer


def rows_of(*rows, checked=False):
    write(Path("exam.jsonl"), *rows)
    return read_questions("exam.jsonl", checked)


# ---- multiple choice ------------------------------------------------------------------------

def random_questions(n):
    rng, found = random.Random(0), []
    for i in range(n):
        choices = {tiny.words(rng, 5) for _ in range(9)}
        found.append(dict(question=f"{i} {tiny.words(rng, 3)}?", answer=0,
                          choices=sorted(choices)[:rng.randint(2, 5)]))
    return found


@pytest.mark.parametrize("base", [False, True], ids=["chat", "base"])
def test_the_choice_is_the_one_with_the_highest_log_probability_by_hand(tiny_tokenizer, base):
    tok, taken = tiny_tokenizer, dict(zip(("per byte", "per token", "sum"), ([], [], [])))
    model, rows = tiny.model(tok.vocab_size, GPT, block_size=96), random_questions(24)
    for row in rows:
        text = f"Ida Holton asks:\n{row['question']}\nAnswer to Ida Holton:\n"
        ids = ([tok.eot] + tok.encode(text) if base else
               tok.encode_chat([dict(role="user", content=row["question"])], reply=True)[0])
        logp = {c: sum(logp_by_hand(model, ids, tok.encode(c))) for c in row["choices"]}
        for name, size in (("per byte", lambda c: len(c.encode())), ("sum", lambda c: 1),
                           ("per token", lambda c: len(tok.encode(c)))):
            taken[name].append(row["choices"].index(max(logp, key=lambda c: logp[c] / size(c))))
    assert choose(model, base, tok, rows_of(*rows), [], ENV) == taken
    assert taken["per byte"] != taken["sum"] != taken["per token"]


def test_the_spaces_around_a_choice_do_not_count_where_the_chat_format_strips_them(models):
    model, tok, _ = load("sft.pt", ENV)
    strips = Tokenizer(tok.pattern, tok.byte_ids, tok.merges, tok.specials,
                       tok.chat | dict(strip=True))
    rows = random_questions(20)
    spaced = [row | dict(choices=[f"  {choice}\n" * (i % 2) or choice
                                  for i, choice in enumerate(row["choices"])]) for row in rows]
    rows, spaced = rows_of(*rows), rows_of(*spaced)
    first, same = (choose(model, False, strips, of, [], ENV) for of in (rows, spaced))
    assert first == same != choose(model, False, tok, spaced, [], ENV)


def test_a_right_choice_may_be_its_text_or_its_number():
    rows = rows_of(*(dict(question="2 + 2?", choices=["3", "4", "0"], answer=answer)
                     for answer in ("4", 1, "0", 0, 2)))
    assert [row["right"] for row in rows] == [1, 1, 2, 0, 2]
    assert rows[0]["prompt"] == [dict(role="user", content="2 + 2?")]


def test_an_exam_of_choices_prints_chance_and_the_share_of_right_ones(models, run_script):
    rows = [dict(question="Who?", choices=["Ada", "cat", "a fox"], answer=i) for i in (0, 1, 2, 2)]
    rows[3]["choices"].append("42")
    write(Path("exam.jsonl"), *rows)
    status, out, _ = run_script("tools/exam", "--data=exam.jsonl", "--models=sft.pt,pretrain.pt",
                                "--out=exam.json")
    saved = json.loads(Path("exam.json").read_text())
    assert status == 0 and "4 questions from exam.jsonl; chance is 31.2%" in out  # (3/3 + 1/4) / 4
    for name in ("sft.pt", "pretrain.pt"):
        said = [row["said"][name] for row in saved["answers"]]
        right = [one["text"] == row["choices"][row["answer"]] for one, row in zip(said, rows)]
        assert [one["right"] for one in said] == right
        assert saved["models"][name]["per byte"] == sum(right) / 4
        assert f"{sum(right) / 4:.1%} [" in out.split("per byte")[1].splitlines()[0]


# ---- answers --------------------------------------------------------------------------------

@pytest.mark.parametrize("said, right, same", [
    ("Paris.", "paris", True), (" \"Paris\" \n", "Paris", True), ("the  cat", "The Cat", True),
    ("４２", "42", True), ("Paris - no", "Paris no", False), ("-5", "5", False),
    ("3.5", "35", False), ("3.5.", "3.5", True), ("1,000", "1000", False), ("don't", "dont", False),
    ("", "Paris", False), ("It is Paris", "Paris", False), ("C++", "C", False)])
def test_case_spaces_and_punctuation_around_words_do_not_count(said, right, same):
    assert (plain(said) == plain(right)) == same


def test_greedy_answers_are_the_models_likeliest_tokens_and_are_judged_by_the_answer(
        models, run_script):
    model, tok, _ = load("sft.pt", ENV)
    asks, rows = ["Ada?", "Who has a cat?", "12 + 30?"], []
    for i, ask in enumerate(asks):
        ids = tok.encode_chat([dict(role="user", content=ask)], reply=True)[0]
        said = answer_text(tok, greedy(model, ids, 6, [tok.end]))
        rows.append(dict(prompt=ask, response=said if i else f"not {said}"))
    write(Path("exam.jsonl"), *rows)
    status, out, _ = run_script("tools/exam", "--data=exam.jsonl", "--models=sft.pt",
                                "--max_new_tokens=6", "--out=exam.json")
    said = [row["said"]["sft.pt"] for row in json.loads(Path("exam.json").read_text())["answers"]]
    assert status == 0 and [one["right"] for one in said] == [False, True, True]
    assert "greedy" in out and "66.7% [20.8, 93.9]" in out and "pass@" not in out


def test_a_function_of_ones_own_decides_what_is_right():
    asked = []

    def long(prompt, response):
        asked.append(prompt[-1]["content"])
        return len(response) > 3

    rows = rows_of(dict(prompt="Who?"), dict(prompt="Why?"), checked=True)
    assert judge(long, rows, ["Ada!", "No"], "my.py:long").tolist() == [True, False]
    assert asked == ["Who?", "Why?"]


@pytest.mark.parametrize("verdict", [None, "yes", 0.5, dict(right=True)])
def test_a_function_that_gives_no_verdict_is_named_with_the_answer(verdict):
    rows = rows_of(dict(prompt="Who?"), checked=True)
    with pytest.raises(ValueError, match="my.py:f: .*not True or False for the prompt 'Who?"):
        judge(lambda prompt, response: verdict, rows, ["Ada"], "my.py:f")


# ---- pass@k ---------------------------------------------------------------------------------

def test_pass_at_k_is_the_share_of_subsets_with_a_right_answer():
    for n, right in ((5, 0), (5, 2), (6, 6), (6, 1)):
        for k in range(1, n + 1):
            subsets = [*itertools.combinations([1] * right + [0] * (n - right), k)]
            assert pass_at(k, n, right) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_the_samples_of_a_question_are_counted_together(monkeypatch):
    rows = rows_of(dict(prompt="A?", answer="a"), dict(prompt="B?", answer="b"))
    texts = iter([["a", "b"], list("abacab") + list("aacbaa")])       # greedy, then six for each
    monkeypatch.setattr(exam, "asked", lambda *_: [[1], [2]])
    monkeypatch.setattr(exam, "answer", lambda *_: SimpleNamespace(texts=next(texts)))
    config = exam.Config(n_samples=6)
    greedy, values = exam.examine(None, False, None, rows, None, [], ENV, config)
    assert greedy == ["a", "b"] and values.pop("greedy") == [True, True]
    assert [*values] == ["pass@1", "pass@2", "pass@4", "pass@6"]
    for k in (1, 2, 4, 6):
        assert values[f"pass@{k}"] == [pass_at(k, 6, 3), pass_at(k, 6, 1)]


# ---- what is refused ------------------------------------------------------------------------

CHOICES = dict(question="2 + 2?", choices=["3", "4"], answer="4")


@pytest.mark.parametrize("row, reason", [
    (dict(CHOICES, answer="5"), "line 2: answer must be one of the choices.* 0 to 1, not '5'"),
    (dict(CHOICES, answer=2), "line 2: answer must be one of the choices.* 0 to 1, not 2"),
    (dict(CHOICES, answer=-1), "line 2: answer must be one of"),
    (dict(CHOICES, answer=True), "line 2: answer must be one of"),
    (dict(CHOICES, answer=["4"]), "line 2: answer must be one of"),
    (dict(question="2 + 2?", choices=["3", "4"]), "line 2: answer must be one of .* not None"),
    (dict(CHOICES, choices=["4"]), "line 2: choices must be a list of at least two"),
    (dict(CHOICES, choices="34"), "line 2: choices must be a list of at least two"),
    (dict(CHOICES, choices=["4", "4 "]), "line 2: choices must be different"),
    (dict(CHOICES, choices=["4", ""]), "line 2: choices must be different, and not empty"),
    (dict(CHOICES, choices=["4", 3]), "line 2: a choice must be a string, not 3"),
    (dict(choices=["3", "4"], answer="4"), "line 2: needs one of .*question"),
    (dict(question="2 + 2?", answer="4"), "1 of 2 questions have choices: make two files"),
    (dict(question="2 + 2?"), "line 2: answer is missing: add it, or give --check"),
    (["2 + 2?"], "line 2: a row must be an object")])
def test_a_row_that_is_no_question_is_refused_with_its_place_and_reason(row, reason):
    with pytest.raises(DataError, match=f"exam.jsonl.*{reason}"):
        rows_of(CHOICES, row)


def test_choices_need_no_function():
    with pytest.raises(DataError, match="have choices: leave out --check"):
        rows_of(CHOICES, checked=True)


@pytest.mark.parametrize("base", [False, True], ids=["chat", "base"])
def test_a_question_is_asked_as_a_whole_or_refused(models, base):
    tok, model = models, tiny.model(models.vocab_size, block_size=T)
    around = ([tok.eot] + tok.encode("Ida Holton asks:\n?\nAnswer to Ida Holton:\n") if base else
              tok.encode_chat([dict(role="user", content="?")], reply=True)[0])
    room = T - len(around) - len(tok.encode("a cat"))
    fits, long = ("x" * n + "?" for n in (room, room + 1))
    assert len(tok.encode(long)) == room + 2
    rows = [dict(question=fits, choices=["a", "a cat"], answer=0), CHOICES]
    choose(model, base, tok, rows_of(*rows), [], ENV)
    with pytest.raises(DataError, match="1 of 2 .* answers, more than the model's 96 tokens.*'xxx"):
        choose(model, base, tok, rows_of(rows[0] | dict(question=long), CHOICES), [], ENV)
