import io
import math
import random
import re
import shutil
import sys
from collections import Counter
from functools import partial
from itertools import combinations

import numpy as np
import pytest
import torch

import compare
import tiny
from answer import respond
from checkpoint import load
from common import safe
from compare import agreement, find_noise, rank
from data.formats import read_comparisons
from model import GPT, GPTConfig
from tiny import ENV

loud = partial(tiny.loud, std=0.3, shift=1)           # every token that is read matters


# ---- labelers -------------------------------------------------------------------------------

def places(grades, noise, labelers, seed=0):
    """The place that each of many labelers gives each answer: (labelers, answers)."""
    rng = np.random.default_rng(seed)
    return np.argsort([rank(grades, noise, rng) for _ in range(labelers)], axis=1)


def test_pairs_are_ordered_as_bradley_and_terry_say():
    """P(i above j) = sigmoid((grade_i - grade_j) / noise), for each pair; equal ones by chance."""
    grades, noise, n = [6.5, 4.0, 3.5, 3.5, 1.0], 2.0, 4000
    place = places(grades, noise, n)
    for i, j in combinations(range(len(grades)), 2):
        expected = 1 / (1 + math.exp(-(grades[i] - grades[j]) / noise))
        spread = (expected * (1 - expected) / n) ** 0.5
        assert np.mean(place[:, i] < place[:, j]) == pytest.approx(expected, abs=4 * spread)


@pytest.mark.parametrize("target", [0.6, 0.73, 0.8])
def test_with_the_noise_found_two_labelers_agree_as_often_as_asked(target):
    rng, same = random.Random(0), []
    graded = [rng.choices([1.5, 3.0, 5.5, 6.0, 7.0], k=4) for _ in range(60)]
    gaps = np.array([a - b for grades in graded for a, b in combinations(grades, 2)])
    noise = find_noise(gaps, target)
    for grades in graded:
        first, second = (places(grades, noise, 200, seed) for seed in (1, 2))
        same += [np.mean((first[:, i] < first[:, j]) == (second[:, i] < second[:, j]))
                 for i, j in combinations(range(4), 2)]
    assert np.mean(same) == pytest.approx(target, abs=0.01)
    assert agreement(gaps, noise) == pytest.approx(target, abs=1e-6)


# ---- answers --------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def model(tiny_tokenizer):
    model = loud(GPT(GPTConfig(block_size=64, vocab_size=tiny_tokenizer.vocab_size, n_layer=2,
                               n_embd=32, n_hidden=64, tied=False)), seed=2)
    with torch.no_grad():
        model.lm_head.weight[tiny_tokenizer.end] *= 1.5            # so that some answers end
    return model


@pytest.fixture(scope="module")
def prompts():
    rng, bag = random.Random(0), "What is Ada 's cat ?".split()
    return [[dict(role="user", content=" ".join(rng.choices(bag, k=k % 9 + 1)))] for k in range(24)]


def test_greedy_answers_are_those_of_one_prompt_at_a_time(model, tiny_tokenizer, prompts):
    tok, expected = tiny_tokenizer, []
    for prompt in prompts:
        said = tiny.greedy(model, tok.encode_chat(prompt, reply=True)[0], 12, [tok.end])
        expected.append((tok.decode(said).removesuffix("<|end|>"), tok.end in said))
    assert len(set(expected)) > 4 and {ended for _, ended in expected} == {True, False}
    assert respond(model, tok, prompts, ENV, 12, temperature=0, batch_size=7) == expected


def test_one_prompt_is_answered_in_many_ways_which_the_seed_fixes(model, tiny_tokenizer, prompts):
    first, again, other = (respond(model, tiny_tokenizer, [prompts[3]] * 20, ENV, 12, batch_size=5,
                                   seed=seed) for seed in (0, 0, 1))
    assert first == again != other and len(set(first)) > 10


def test_of_a_prompt_that_is_too_long_the_end_is_read(model, tiny_tokenizer):
    short = "Where does Ada live? " * 2
    long, longer = ([dict(role="user", content=start + short * 8)]
                    for start in ("Hello! ", "Bye, fox! "))
    first, second = respond(model, tiny_tokenizer, [long, longer], ENV, 12, temperature=0)
    assert first == second and first[0]


# ---- the script -----------------------------------------------------------------------------

def test_answers_that_differ_by_a_space_are_one_answer():
    """As for the reader of what compare.py writes, which therefore drops none of its rows."""
    answers = [("a", True), (" a", False), ("", True), ("b", True), ("a\n", True), (" ", False)]
    assert compare.different(answers) == ["a", "b"]


@pytest.fixture
def folder(tmp_path, model, tiny_tokenizer, prompts):
    tiny.write(tmp_path / "prompts.jsonl", *(dict(prompt=prompt, kind=str(k))
                                             for k, prompt in enumerate(prompts)))
    tiny.store(tmp_path / "sft.pt", "sft", model, tiny_tokenizer)
    return tmp_path


def test_every_line_is_a_prompt_with_different_answers_and_the_grades_that_led_to_their_ranks(
        folder, prompts):
    (folder / "mine.py").write_text("def length(prompts, responses): return [*map(len, responses)]")
    tiny.printed(folder, "compare", *"--data=prompts.jsonl --init=sft.pt --k=3 --out=out.jsonl "
                 "--max_new_tokens=8 --labeler=mine.py:length".split())
    for line in tiny.read_log(folder / "out.jsonl"):
        texts = line["responses"]
        assert line["prompt"] == prompts[int(line["kind"])]
        assert len({*texts}) == len(texts) > 1 and line["ranks"] == [*range(len(texts))]
        assert line["grades"] == [*map(len, texts)]


def test_a_labeler_that_fails_is_told_after_the_first_answers_not_after_all(
        tmp_path, tiny_tokenizer, refused, monkeypatch):
    monkeypatch.setenv("SAVE_SECONDS", "0")
    folder = tiny.build(tmp_path, tiny_tokenizer)
    (folder / "length.py").write_text("def longer(prompts, responses):\n    return 1 / 0\n")
    said = refused("compare", *tiny.FLAGS["compare"].split(), "--out=a.jsonl")
    assert "length.py:longer: ZeroDivisionError" in said
    assert not (folder / "a.state").exists()          # it is saved after 8 of 96 answers


# ---- labels by hand: with --k=2 the answers are two, or nobody is asked ---------------------

HUMAN = ("--data=prompts.jsonl --init=sft.pt --k=2 --max_new_tokens=8 --out=mine.jsonl "
         "--dtype=float32").split()


def person(folder, typed, *more):
    """Run tools.label in this process with a person who types this, then Ctrl-D: the status."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed)))
        return tiny.run(folder, "tools/label", *HUMAN, *more)[0]


def labeled(folder):
    return read_comparisons(folder / "mine.jsonl")


def test_what_a_person_ranks_is_a_comparison_whose_first_answer_is_the_better_one(folder, prompts,
                                                                                  capsys):
    assert not person(folder, b"2>1\n1>2\ns\n1>2\n")
    first, *others = labeled(folder)
    assert len(others) == 2 and first["prompt"] in prompts and "grades" not in first
    assert all(len(row["responses"]) == 2 and row["ranks"] == [0, 1] for row in [first, *others])
    shown = re.findall(r"^   [12]  (.*)$", capsys.readouterr().out, re.M)[:2]
    assert [safe(text).replace("\n", "\n      ") for text in first["responses"]] == shown[::-1]


def test_who_stops_now_and_then_ends_with_the_same_labels(folder, tmp_path_factory):
    lines = b"1>2\n2>1\n1=2\n" * 7
    other = shutil.copytree(folder, tmp_path_factory.mktemp("other") / "folder")
    person(folder, lines)
    for i in range(0, len(lines), 24):
        person(other, lines[i:i + 24] + b"q\n" * (i % 48 == 0))
    mine, theirs = ([row | dict(time=None) for row in tiny.read_log(place / "mine.jsonl")]
                    for place in (folder, other))
    assert mine == theirs and len(mine) == 21


def test_two_people_are_compared_without_a_model(folder, capsys):
    person(folder, b"1>2\n")
    flags = "--agree=mine.jsonl,mine.jsonl", "--init=missing.pt"
    assert not tiny.run(folder, "tools/label", *flags)[0]
    assert "1 of them the same way: 100.0%" in capsys.readouterr().out


BLIND = "--init=sft.pt,other.pt", "--k=1", "--temperature=0"


def test_a_blind_test_names_no_model_and_tells_how_often_each_was_preferred(folder, capsys):
    """Each of them is shown first at times, and so preferred by who always takes the first."""
    (sft, tok, _), (other, *_) = (load(folder / "sft.pt", ENV) for _ in range(2))
    models = {"sft.pt": sft, "other.pt": loud(other, seed=9)}
    tiny.store(folder / "other.pt", "sft", other, tok)
    person(folder, b"1=2\ns\n" + b"1>2\n" * 11, *BLIND)
    wins = Counter()
    for row in tiny.read_log(folder / "mine.jsonl"):
        said = {name: respond(model, tok, [row["prompt"]], ENV, 8, 0)[0][0]
                for name, model in models.items()}
        assert said["sft.pt"] != said["other.pt"] and {*said.values()} == {*row["responses"]}
        for name in models:
            wins[name] += 0.5 if row["ranks"] == [0, 0] else said[name] == row["responses"][0]
    shown, _, told = capsys.readouterr().out.partition("labeled")
    assert "12 of 24" in shown and "other" not in shown.replace("sft.pt,other.pt answers", "")
    for name in models:
        assert 1 < wins[name] and f"{name}: preferred {wins[name] / 12:.1%} [" in told
    assert "of 12 times" in told


def test_a_base_model_is_asked_in_its_own_words(folder, tiny_tokenizer):
    tok = tiny_tokenizer
    base = tiny.model(tok.vocab_size, block_size=96)
    tiny.store(folder / "base.pt", "pretrain", base, tok)
    person(folder, b"1\n2\n1\n", "--init=sft.pt,base.pt", *BLIND[1:])
    for row in labeled(folder):
        ids = [tok.eot] + tok.encode(f"Ida Holton asks:\n{row['prompt'][-1]['content']}\n"
                                     "Answer to Ida Holton:\n")
        said = tok.decode(tiny.greedy(base, ids, 8, [tok.eot])).split("\n")[0]
        assert "base.pt" in row["models"][said]
    assert len(labeled(folder)) == 3


@pytest.mark.parametrize("files, reason", [
    ("mine.jsonl", "FILE,FILE"), ("a,b,c", "FILE,FILE"), ("missing.jsonl,sft.pt", "missing.jsonl")])
def test_what_is_not_two_files_is_not_compared(folder, files, reason, refused):
    assert reason in refused("tools/label", f"--agree={files}")
