"""The table of claims: its labelers against closed forms and the town's judge, its counts by hand,
its rules, and its rows on the tiny chain."""

import itertools
import math
import re
from random import Random

import numpy as np
import pytest

import tiny
from checkpoint import load_checkpoint
from data.formats import read_comparisons
from data.town import Dice, World, demonstrate, judge, make_prompt, write_jsonl
from lab import chains, claims, compare_methods, experiments


@pytest.fixture
def table(seed0, capsys):
    """table(names) runs these rows with short stages: what is printed but the names of the runs."""
    def table(names):
        status, _ = tiny.run(seed0, "lab/claims", "--seeds=1", f"--what={names}")
        assert status == 0
        return "\n".join(line for line in capsys.readouterr().out.splitlines()
                         if "experiments/" not in line)
    return table


# ---------------------------------------------------------------------------------------------
# the labelers

def test_without_noise_one_labeler_contradicts_no_grade_and_different_ones_do(tmp_path):
    """The reward model can read both, and equal ratings are tied."""
    rng, found = np.random.default_rng(0), {}
    rows = [dict(prompt=f"question {i}?", noise=0, responses=[f"answer {j}" for j in range(4)],
                 grades=rng.uniform(2, 6, 4).round(2).tolist()) for i in range(300)]
    for by_one in (True, False):
        write_jsonl(tmp_path / "ratings.jsonl", claims.rated(rows, by_one, 0))
        new = read_comparisons(tmp_path / "ratings.jsonl")
        assert all(set(row["responses"]) == {f"answer {j}" for j in range(4)} for row in new)
        found[by_one] = 0
        asked = {row["prompt"]: dict(zip(row["responses"], row["grades"])) for row in rows}
        for row in new:
            grade = asked[row["prompt"][0]["content"]]
            pairs = itertools.product(zip(row["ranks"], row["responses"]), repeat=2)
            found[by_one] += any(i < j and grade[a] < grade[b] for (i, a), (j, b) in pairs)
        assert any(len(set(row["ranks"])) < 4 for row in new)
    assert found[True] == 0 and found[False] > 60


def test_half_of_the_mixed_demonstrations_are_bad_and_the_others_stay():
    world, dice, rows = World(0), Dice(Random(0)), []
    for _ in range(1000):
        kind, prompt, asked = make_prompt(world, dice, "demos")
        answer = dict(role="assistant", content=demonstrate(world, dice, kind, asked))
        rows.append(dict(messages=[*prompt, answer], kind=kind))
    changed = [(old, new) for old, new in zip(rows, claims.mixed(rows, 1)) if old != new]
    assert 450 < len(changed) < 550
    for old, new in changed:
        assert old["messages"][:-1] == new["messages"][:-1] and old["kind"] == new["kind"]
        found = judge(new["messages"][:-1], new["messages"][-1]["content"], world.facts)
        assert not found["right"] and found["grade"] <= 2
    assert {old["kind"] for old, _ in changed} == set(
        ("fact", "follow-up", "sum", "unknown", "wish", "story"))


# ---------------------------------------------------------------------------------------------
# the figures and the rules

@pytest.fixture
def made(tmp_path, monkeypatch):
    """made(sft=…, ppo=…) is a chain whose scoreboard says this of its models; `examined` is what it
    says of others."""
    def made(*examined, **board):
        chain = chains.Chain(chains.Config(folder=str(tmp_path / "seed")), 0)
        chain.folder.mkdir()
        chain.board = board
        monkeypatch.setattr(chain, "run", lambda *args, **flags: None, raising=False)
        monkeypatch.setattr(chain, "examine", lambda *args, **flags: ({}, examined), raising=False)
        return chain
    return made


def holds(name, figures):
    return claims.CLAIMS[name][2](*figures.values())


def test_the_flops_of_training_are_those_counted_by_hand(seed0):
    chain = chains.Chain(chains.Config(folder=f"{seed0}/out/seed"), 0)
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


def test_agreement_and_ceiling_are_means_over_the_pairs(made):
    chain = made(reward_model=dict(accuracy=0.7))
    tiny.write(chain / "comparisons.jsonl",
               dict(prompt="a?", responses=["x", "y"], grades=[5.0, 4.0], noise=0.5),
               dict(prompt="b?", responses=["x", "y", "z"], grades=[6.0, 3.0, 3.5], noise=0.5))
    p = [1 / (1 + math.exp(-gap / 0.5)) for gap in (1, 3, 2.5, -0.5)]
    found = claims.agree(chain)
    assert found["two labelers"] == pytest.approx(sum(q * q + (1 - q) ** 2 for q in p) / 4)
    assert found["ceiling"] == pytest.approx(sum(max(q, 1 - q) for q in p) / 4)
    assert holds("agree", found) == (0.7 >= found["two labelers"])


@pytest.mark.parametrize("score, grade, with_penalty, held", [
    (2.0, 5.0, 5.9, True), (2.0, 5.6, 5.9, False), (0.5, 5.0, 5.9, False), (2.0, 5.0, 5.4, False)])
def test_exploited_means_a_higher_score_and_a_lower_grade_but_not_with_the_penalty(
        monkeypatch, score, grade, with_penalty, held):
    def rows(chain):
        runs = {"textbook, β = 0": [(0.0, 5.5), (1.0, 6.0), (score, grade)],
                "textbook, β = 0.1": [(0.0, 5.5), (1.1, with_penalty)],
                "ours, β = 0": [(0.0, 6.1)], "ours, β = 0.1": [(0.0, 6.2)]}
        return {f"{label}, iteration {i}": (0.3, *row)
                for label, found in runs.items() for i, row in enumerate(found)}

    monkeypatch.setattr(experiments, "overoptimise", rows)
    found = claims.constraint(None)
    assert list(found.values()) == [6.0, grade, 1.0, score, with_penalty, 6.1, 6.2]
    assert holds("constraint", found) == held


@pytest.mark.parametrize("without, shipped, held", [
    (0.60, 0.50, True), (0.60, 0.56, False), (0.49, 0.48, False)])
def test_pretraining_text_must_halve_the_tax(made, without, shipped, held):
    sft = dict(text_loss=0.5)
    chain = made(sft, dict(text_loss=without),
                 models=dict(pretrain=None, sft=sft, ppo=dict(text_loss=shipped)))
    found = claims.ptx(chain)
    assert found["--ptx_coef=0"] == pytest.approx(without / 0.5 - 1)
    assert holds("ptx", found) == held


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


# ---------------------------------------------------------------------------------------------
# the runs

def test_a_finished_run_is_not_repeated_and_a_failed_one_says_where_to_look(
        seed0, tmp_path, monkeypatch):
    script = tmp_path / "stage.py"
    script.write_text("import sys\nfor a in sys.argv[1:]: print(a)\n"
                      "open(sys.argv[1][6:], 'a').write('x')\nsys.exit('3' in sys.argv[3])\n")
    monkeypatch.setitem(chains.READS, str(script), {})
    (tmp_path / "seed7").mkdir()
    chain = chains.Chain(chains.Config(folder=str(tmp_path / "seed")), 7)
    out = chain / "experiments/new.json"
    for _ in range(2):
        assert chain.run(str(script), "new.json", steps=2) == out
    assert out.read_text() == "x"
    assert out.with_suffix(".txt").read_text().splitlines() == [
        f"--out={out}", "--seed=7", "--steps=2"]
    with pytest.raises(ValueError, match="other.txt says why"):
        chain.run(str(script), "other.json", steps=3)


def test_the_cheap_rows_on_the_tiny_chain(seed0, table):
    def made():
        runs = (seed0 / "out/seed0/experiments").iterdir()
        return {file.name: file.stat().st_mtime_ns for file in runs}

    printed = table("compute,agree,entropy,unlocks")
    shares = [float(v) for v in re.findall(r"(\S+)%$", printed.partition("Two labelers")[0], re.M)]
    assert len(shares) == 5 and sum(shares) == pytest.approx(100, abs=0.3)
    assert len(re.findall(r"HOLDS|DOES NOT HOLD", printed)) == 4
    before = made()
    assert {"scratch.pt", "scratch.json"} <= set(before)
    assert table("unlocks").partition("\n\n")[2] in printed and made() == before


@pytest.mark.slow
@pytest.mark.parametrize("name", claims.CLAIMS)
def test_each_row_on_the_tiny_chain(table, name):
    printed = table(name)
    assert printed.count(f"$ python -m lab.claims --what={name}") == 1
    assert len(re.findall(r"HOLDS|DOES NOT HOLD", printed)) == 1


@pytest.mark.slow
def test_the_reasoning_table_on_the_tiny_chain(seed0, monkeypatch):
    monkeypatch.chdir(seed0)
    (seed0 / "lessons").symlink_to(tiny.ROOT / "lessons")             # FILE.py:function
    rows = experiments.reason(chains.Chain(chains.Config(), 0))
    assert list(rows) == [*experiments.REASONED, "PPO, with a critic"]
    assert all(len(row) == 9 and all(0 <= share <= 1 for share in row[:4]) for row in rows.values())
