"""The table of claims: its labelers against closed forms and the town's judge, its counts by hand,
its rules, and its rows on the tiny chain."""

import itertools
import math
import re
from pathlib import Path
from random import Random

import numpy as np
import pytest

import tiny
from checkpoint import load_checkpoint
from data.formats import read_comparisons
from data.town import Dice, World, demonstrate, judge, make_prompt
from lab import chains, claims, compare_methods, experiments
from lab.chains import Chain


def table(folder, names):
    """Run these rows with short stages: what is printed but the names of the runs."""
    lines = tiny.printed(folder, "lab/claims", "--seeds=1", f"--what={names}")
    return "\n".join(line for line in lines if "experiments/" not in line)


# ---- the labelers ---------------------------------------------------------------------------

def test_without_noise_one_labeler_contradicts_no_grade_and_different_ones_do():
    """The reward model can read both, and equal ratings are tied."""
    rng, texts, wrong = np.random.default_rng(0), [f"answer {j}" for j in range(4)], {}
    rows = [dict(prompt=f"question {i}?", noise=0, responses=texts,
                 grades=rng.uniform(2, 6, 4).round(2).tolist()) for i in range(300)]
    grades = {row["prompt"]: dict(zip(texts, row["grades"])) for row in rows}
    for by_one in (True, False):
        new = read_comparisons(tiny.write("ratings.jsonl", *claims.rated(rows, by_one, 0)))
        wrong[by_one] = 0
        for row in new:
            grade = grades[row["prompt"][0]["content"]]
            pairs = itertools.permutations(zip(row["ranks"], row["responses"], strict=True), 2)
            wrong[by_one] += any(i < j and grade[a] < grade[b] for (i, a), (j, b) in pairs)
            assert sorted(row["responses"]) == texts
        assert any(len(set(row["ranks"])) < 4 for row in new)
    assert wrong[True] == 0 and wrong[False] > 60


def test_half_of_the_mixed_demonstrations_are_bad_and_the_others_stay():
    world, dice, rows = World(0), Dice(Random(0)), []
    for kind, prompt, asked in (make_prompt(world, dice, "demos") for _ in range(1000)):
        answer = dict(role="assistant", content=demonstrate(world, dice, kind, asked))
        rows.append(dict(messages=[*prompt, answer], kind=kind))
    changed = [(old, new) for old, new in zip(rows, claims.mixed(rows, 1)) if old != new]
    assert 450 < len(changed) < 550
    for old, new in changed:
        assert old["messages"][:-1] == new["messages"][:-1] and old["kind"] == new["kind"]
        found = judge(new["messages"][:-1], new["messages"][-1]["content"], world.facts)
        assert not found["right"] and found["grade"] <= 2
    assert {old["kind"] for old, _ in changed} == {row["kind"] for row in rows}


# ---- the figures and the rules --------------------------------------------------------------

def test_the_flops_of_training_are_those_counted_by_hand(seed0):
    chain = Chain(chains.Config(folder=f"{seed0}/out/seed"), 0)
    found = compare_methods.flops(chain, chain / "ppo.pt")
    c = load_checkpoint(chain / "pretrain.pt")["model_config"]
    L, C, V, T = 2, 64, c["vocab_size"], 128
    weights = L * 12 * C * C + V * C                  # the embedding is the output layer
    token = 6 * weights + 12 * L * C * T              # attention: q k^T and the sum over values
    assert found["pretraining"] == 240 * 4 * T * token
    assert found["SFT"] == 270 * 4 * T * token
    # of each answer, a forward pass at about 32 tokens to sample, and 4 to train the reward model
    rows = read_comparisons(chain / "comparisons.jsonl")
    longest = max(len(r) for row in rows for r in row["responses"])
    answers = found["comparisons"] / ((6 * weights + 12 * L * C * 32) / 3) / len(rows) / 4
    assert 4 < answers < longest + 40 and len(rows) > 300
    assert 2 < found["reward model"] / found["comparisons"] <= 4


def test_the_share_of_right_answers_counts_prompts_not_kinds():
    model = dict(by_kind=dict(fact=dict(right=1.0, n=30), sum=dict(right=0.5, n=10),
                              wish=dict(right=0.0, n=10)))
    assert chains.right(model) == 35 / 50
    assert chains.right(model, "sum", "wish") == 5 / 20
    assert chains.right(model, "fact") == 1


def test_agreement_and_ceiling_are_means_over_the_pairs():
    chain = Chain(chains.Config(), 0)
    chain.board = dict(reward_model=dict(accuracy=0.7))
    tiny.write(chain / "comparisons.jsonl",
               dict(prompt="a?", responses=["x", "y"], grades=[5.0, 4.0], noise=0.5),
               dict(prompt="b?", responses=["x", "y", "z"], grades=[6.0, 3.0, 3.5], noise=0.5))
    p = [1 / (1 + math.exp(-gap / 0.5)) for gap in (1, 3, 2.5, -0.5)]
    found = claims.agree(chain)
    assert found["two labelers"] == pytest.approx(sum(q * q + (1 - q) ** 2 for q in p) / 4)
    assert found["ceiling"] == pytest.approx(sum(max(q, 1 - q) for q in p) / 4)


def test_exploitation_is_seen_from_the_best_grade_to_the_end(monkeypatch):
    runs = {"textbook, β = 0": [(0.0, 5.5), (1.0, 6.0), (2.0, 5.0)],
            "textbook, β = 0.1": [(0.0, 5.5), (1.1, 5.9)],
            "ours, β = 0": [(0.0, 6.1)], "ours, β = 0.1": [(0.0, 6.2)]}
    monkeypatch.setattr(experiments, "overoptimise", lambda chain: {
        f"{label}, iteration {i}": (0.3, *row)
        for label, found in runs.items() for i, row in enumerate(found)})
    assert [*claims.constraint(None).values()] == [6.0, 5.0, 1.0, 2.0, 5.9, 6.1, 6.2]


def test_the_tax_is_the_rise_of_the_loss_on_text_after_sft(monkeypatch):
    chain, (sft, without, shipped) = Chain(chains.Config(), 0), (
        dict(text_loss=loss) for loss in (0.5, 0.6, 0.55))
    chain.board = dict(models=dict(pretrain=None, sft=sft, ppo=shipped))
    monkeypatch.setattr(Chain, "run", lambda *_, **__: None)
    monkeypatch.setattr(Chain, "examine", lambda *_, **__: ({}, [sft, without]))
    assert [*claims.ptx(chain).values()] == pytest.approx([0.2, 0.1])


@pytest.mark.parametrize("name, figures, held", [
    ("agree", (0.7, 0.7, 0.8), True), ("agree", (0.7, 0.69, 0.8), False),
    ("constraint", (6.0, 5.5, 1.0, 2.0, 5.6, 0, 0), True),
    ("constraint", (6.0, 5.6, 1.0, 2.0, 5.9, 0, 0), False),            # the grade does not fall
    ("constraint", (6.0, 5.0, 1.0, 1.0, 5.9, 0, 0), False),            # nor does the score rise
    ("constraint", (6.0, 5.0, 1.0, 2.0, 5.4, 0, 0), False),            # with the penalty it does
    ("few_shot", (0.6, 0.7, 0.66, 0.1, 1.0, 1.0), True),
    ("few_shot", (0.6, 0.7, 0.64, 0.1, 1.0, 1.0), False),
    ("few_shot", (0.0, 0.9, 0.9, 0.7, 1.0, 1.0), False),
    ("strength", (5.9, 6.0, 6.1, 0.6, 0.7, 0.8), True),
    ("strength", (5.9, 6.0, 6.1, 0.6, 0.8, 0.8), False),
    ("ptx", (0.2, 0.0), True), ("ptx", (0.2, 0.1), False), ("ptx", (-0.02, -0.04), False)])
def test_a_rule_says_whether_its_claim_holds(name, figures, held):
    assert claims.CLAIMS[name][2](*figures) == held


@pytest.mark.parametrize("figures, verdict", [
    ((3.0, 4.0, 5.0), "HOLDS"), ((1.0, 0.0, 0.5), "DOES NOT HOLD"),
    ((3.0, 1.0, 2.0), "MIXED: in 2 of 3 seeds")])
def test_a_row_has_the_claim_the_medians_and_whether_it_holds_in_every_seed(
        capsys, monkeypatch, figures, verdict):
    def name(chain):
        """A claim of somebody
        (2023)."""

    monkeypatch.setitem(claims.CLAIMS, "name", (name, "{:.1f}", lambda v: v > 1))
    claims.show("name", [{"a figure": v} for v in figures])
    low, middle, high = sorted(figures)
    assert [re.split(r"\s{2,}", row) for row in capsys.readouterr().out.strip().splitlines()] == [
        ["A claim of somebody (2023).", "a figure", f"{middle} [{low}, {high}]"],
        ["$ python -m lab.claims --what=name", verdict]]


def test_every_claim_names_its_source_and_says_when_it_holds():
    for claim, *_ in claims.CLAIMS.values():
        assert re.search(r"State of GPT|InstructGPT|et al\.", claim.__doc__)
        assert "Holds" in claim.__doc__


# ---- the runs -------------------------------------------------------------------------------

def test_a_finished_run_is_not_repeated_and_a_failed_one_says_where_to_look(monkeypatch):
    tiny.write("stage.py", "import sys\nfor a in sys.argv[1:]: print(a)\n"
                           "open(sys.argv[1][6:], 'a').write('x')\nsys.exit('3' in sys.argv[3])\n")
    tiny.write("out/seed7/data.jsonl")
    monkeypatch.setitem(chains.READS, "stage.py", dict(seed=0))
    chain = Chain(chains.Config(), 7)
    for _ in range(2):
        out = chain.run("stage.py", "new.json", steps=2, data="data.jsonl", init="")
    assert out == Path("out/seed7/experiments/new.json") and out.read_text() == "x"
    assert out.with_suffix(".txt").read_text().splitlines() == [
        f"--out={out}", "--seed=0", "--steps=2", "--data=out/seed7/data.jsonl", "--init="]
    with pytest.raises(ValueError, match="other.txt says why"):
        chain.run("stage.py", "other.json", steps=3)


def test_the_cheap_rows_on_the_tiny_chain(seed0):
    printed = table(seed0, "compute,agree,entropy,unlocks")
    shares = [float(v) for v in re.findall(r"(\S+)%$", printed.partition("Two labelers")[0], re.M)]
    assert len(shares) == 5 and sum(shares) == pytest.approx(100, abs=0.3)
    assert len(re.findall(r"HOLDS|DOES NOT HOLD", printed)) == 4
    assert {"scratch.pt", "scratch.json"} <= {
        file.name for file in (seed0 / "out/seed0/experiments").iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("name", claims.CLAIMS)
def test_each_row_on_the_tiny_chain(seed0, name):
    printed = table(seed0, name)
    assert printed.count(f"$ python -m lab.claims --what={name}") == 1
    assert len(re.findall(r"HOLDS|DOES NOT HOLD", printed)) == 1


@pytest.mark.slow
def test_the_reasoning_table_on_the_tiny_chain(seed0, monkeypatch):
    monkeypatch.chdir(seed0)
    (seed0 / "lessons").symlink_to(tiny.ROOT / "lessons")             # FILE.py:function
    rows = experiments.reason(Chain(chains.Config(), 0))
    assert list(rows) == [*experiments.REASONED, "PPO, with a critic"]
    assert all(len(row) == 9 and all(0 <= share <= 1 for share in row[:4]) for row in rows.values())
