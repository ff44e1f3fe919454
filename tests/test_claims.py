"""The table of claims: its labelers against closed forms and the town's judge, its counts by hand,
its rules, and its rows on the tiny chain."""

import itertools
import math
import re
import shutil
from random import Random
from types import SimpleNamespace

import numpy as np
import pytest

import tiny
from checkpoint import load_checkpoint
from data.formats import read_comparisons
from data.town import Dice, World, demonstrate, judge, make_prompt, write_jsonl
from lab import claims, experiments
from lab.labelers import LABELERS, mixed, ranked, rate, rated, standardise

# What makes the stages short enough for a test.
SHORT = {
    "pretrain.py": dict(steps=2, batch_size=2, micro_batch=2, block_size=128, eval_rows=4),
    "sft.py": dict(steps=2, batch_size=2, micro_batch=2),
    "compare.py": dict(n_prompts=24, max_new_tokens=16),
    "reward.py": dict(steps=2, batch_size=8, micro_batch=8),
    "rlhf_ppo.py": dict(steps=2, batch_size=32, minibatch=32, micro_batch=32, max_new_tokens=8,
                        n_eval=8, eval_every=1),
    "evaluate.py": dict(n_prompts=24, max_new_tokens=16, best_of=0),
    "-m lessons.lora": dict(steps=2),
    "-m lessons.few_shot": dict(n_prompts=24, max_new_tokens=8),
}


@pytest.fixture(scope="module")
def folder(chain, tmp_path_factory):
    """What lab/seeds.py leaves of one seed, from the tiny chain."""
    folder = tmp_path_factory.mktemp("claims")
    shutil.copytree(chain / "out", folder / "out/seed0")
    (folder / "data").mkdir()
    (folder / "data/town").symlink_to(chain / "data/town")
    for script in ("data/town.py", *(script.name for script in tiny.ROOT.glob("*.py"))):
        (folder / script).symlink_to(tiny.ROOT / script)
    return folder


@pytest.fixture
def table(folder, capsys, monkeypatch):
    """table(names) runs these rows with short stages: what is printed but the names of the runs."""
    def table(names):
        status, _ = tiny.run(folder, "lab/claims", "--seeds=1", f"--what={names}")
        assert status == 0
        return "\n".join(line for line in capsys.readouterr().out.splitlines()
                         if "claims/" not in line and "experiments/" not in line)

    monkeypatch.setattr(experiments, "subprocess", SimpleNamespace(run=tiny.as_copy))
    real = experiments.run
    monkeypatch.setattr(experiments, "run", lambda script, out, **flags: real(
        script, out, **flags | SHORT[script]))
    return table


def comparison_rows(n, noise, seed=0, k=4):
    rng = np.random.default_rng(seed)
    return [dict(prompt=[dict(role="user", content=f"question {i}?")], noise=noise,
                 responses=[f"answer {j}" for j in range(k)],
                 grades=rng.uniform(2, 6, k).round(2).tolist()) for i in range(n)]


# ---------------------------------------------------------------------------------------------
# the labelers

def test_a_rating_without_noise_minus_shift_and_scale_is_the_grade():
    rng = np.random.default_rng(0)
    grades, shift, scale = (rng.uniform(low, high, 1000) for low, high in
                            ((3, 5), (-1, 1), (0.5, 1.5)))
    ratings = rate(grades, 0, shift, scale, rng)
    back = (ratings - 4 - shift) / scale + 4
    assert set(ratings) <= set(range(1, 8))
    assert (np.abs(back - grades) <= 0.5 / scale + 1e-9).all()        # rounded to whole points


def test_ratings_are_as_frequent_as_gumbels_distribution_says():
    """P(noise <= z) = exp(-exp(-z)), whose mean is Euler's constant."""
    grade, noise, shift, scale, n = 4.6, 0.6, -0.4, 1.3, 200_000
    found = rate(np.full(n, grade), noise, shift, scale, np.random.default_rng(0))
    z = ((np.arange(1, 7) + 0.5 - 4 - shift) / scale + 4 - grade) / noise + 0.5772156649
    expected = np.diff([0, *np.exp(-np.exp(-z)), 1])
    assert np.bincount(found.astype(int), minlength=8)[1:] / n == pytest.approx(expected, abs=0.005)


def test_standardised_ratings_do_not_depend_on_shift_and_scale():
    rng = np.random.default_rng(0)
    who = [rng.permutation(4) for _ in range(50)]
    ratings = [rng.normal(size=4) for _ in range(50)]
    shift, scale = rng.normal(size=4), rng.uniform(0.5, 2, size=4)
    once = standardise(ratings, who)
    again = standardise([shift[w] + scale[w] * r for r, w in zip(ratings, who)], who)
    assert np.concatenate(once) == pytest.approx(np.concatenate(again))
    own = np.concatenate(once)[np.concatenate(who) == 2]
    assert (own.mean(), own.std()) == pytest.approx((0, 1))


def test_a_labeler_who_gives_equal_ratings_only_does_no_harm():
    found = standardise(np.array([[3.0, 5.0], [3.0, 6.0]]), np.array([[0, 1], [0, 1]]))
    assert np.concatenate(found).tolist() == [0, -1, 0, 1]


def test_responses_are_ordered_by_their_ratings_and_equal_ones_are_tied():
    row = dict(prompt="p", responses=list("abcd"))
    assert ranked(row, np.array([3.0, 5.0, 1.0, 3.0])) == dict(
        prompt="p", responses=["b", "a", "d", "c"], ranks=[0, 1, 1, 2])


def inversions(rows, new):
    """In how many of the new rows is a response above one with a higher grade?"""
    def wrong(row, other):
        grade = dict(zip(row["responses"], row["grades"]))
        pairs = itertools.product(zip(other["ranks"], other["responses"]), repeat=2)
        return any(i < j and grade[a] < grade[b] - 1e-9 for (i, a), (j, b) in pairs)
    return sum(map(wrong, rows, new))


def test_without_noise_one_labeler_contradicts_no_grade_and_different_ones_do():
    rows = comparison_rows(300, noise=0)
    assert inversions(rows, rated(rows, "one", 0)) == 0
    assert inversions(rows, rated(rows, "many", 0)) > 60


def test_the_reward_model_can_read_the_ratings(tmp_path):
    rows = comparison_rows(50, noise=0.6, k=LABELERS)
    write_jsonl(tmp_path / "ratings.jsonl", rated(rows, "many", 0))
    found = read_comparisons(tmp_path / "ratings.jsonl")
    assert [sorted(row["responses"]) for row in found] == [sorted(r["responses"]) for r in rows]


def test_half_of_the_mixed_demonstrations_are_bad_and_the_others_stay():
    world, dice, rows = World(0), Dice(Random(0)), []
    for _ in range(1000):
        kind, prompt, asked = make_prompt(world, dice, "demos")
        answer = dict(role="assistant", content=demonstrate(world, dice, kind, asked))
        rows.append(dict(messages=[*prompt, answer], kind=kind))
    changed = [(old, new) for old, new in zip(rows, mixed(rows, 1)) if old != new]
    assert 450 < len(changed) < 550
    for old, new in changed:
        assert old["messages"][:-1] == new["messages"][:-1] and old["kind"] == new["kind"]
        found = judge(new["messages"][:-1], new["messages"][-1]["content"], world.facts)
        assert not found["right"] and found["grade"] <= 2
    assert {old["kind"] for old, _ in changed} == set(
        ("fact", "follow-up", "sum", "unknown", "wish", "story"))


# ---------------------------------------------------------------------------------------------
# the figures and the rules

def test_the_flops_of_training_are_those_counted_by_hand(folder, monkeypatch):
    monkeypatch.chdir(folder)
    found = claims.flops(folder / "out/seed0")
    c = load_checkpoint("out/seed0/pretrain.pt")["model_config"]
    L, C, V, T = 2, 64, c["vocab_size"], 128
    # 12 C^2 in a layer and its two norms, the last norm, the embedding that is the output layer
    weights = L * (12 * C * C + 2 * C) + C + V * C
    token = 6 * weights + 12 * L * C * T              # attention: q k^T and the sum over values
    assert found["pretraining"] == 160 * 4 * T * token
    assert found["SFT"] == 90 * 4 * T * token
    # four answers to each of 400 prompts are sampled: a forward pass, at about 32 tokens
    rows = read_comparisons("out/seed0/comparisons.jsonl")
    longest = max(len(r) for row in rows for r in row["responses"])
    answers = found["comparisons"] / ((6 * weights + 12 * L * C * 32) / 3) / 1600
    assert 4 < answers < longest + 40
    monkeypatch.setattr(claims, "comparing", lambda folder: {})       # the file with its flags
    with pytest.raises(ValueError, match="comparisons.state is missing"):
        claims.flops(folder / "out/seed0")


def test_the_share_of_right_answers_counts_prompts_not_kinds():
    model = dict(by_kind=dict(fact=dict(right=1.0, n=30), sum=dict(right=0.5, n=10),
                              wish=dict(right=0.0, n=10)))
    assert claims.right(model) == 35 / 50
    assert claims.right(model, "sum", "wish") == 5 / 20
    assert claims.right(model, "fact") == 1


def test_agreement_and_ceiling_are_means_over_the_pairs(tmp_path, monkeypatch):
    rows = [dict(prompt="a?", responses=["x", "y"], grades=[5.0, 4.0], noise=0.5),
            dict(prompt="b?", responses=["x", "y", "z"], grades=[6.0, 3.0, 3.5], noise=0.5)]
    tiny.write(tmp_path / "comparisons.jsonl", *rows)
    monkeypatch.setattr(claims, "board_of", lambda folder: [dict(reward_model=dict(accuracy=0.7))])
    p = [1 / (1 + math.exp(-gap / 0.5)) for gap in (1, 3, 2.5, -0.5)]
    found, _, held = claims.agree(0, tmp_path)
    assert found["two labelers"] == pytest.approx(sum(q * q + (1 - q) ** 2 for q in p) / 4)
    assert found["ceiling"] == pytest.approx(sum(max(q, 1 - q) for q in p) / 4)
    assert held == (0.7 >= found["two labelers"])


def test_a_claim_holds_if_it_does_in_every_seed():
    assert claims.verdict([True] * 3) == "HOLDS" and claims.verdict([False]) == "DOES NOT HOLD"
    assert claims.verdict([False] * 3) == "DOES NOT HOLD"
    assert claims.verdict([True, False, True]) == "MIXED: in 2 of 3 seeds"


@pytest.mark.parametrize("score, grade, holds", [
    (2.0, 5.0, True), (2.0, 5.9, False), (0.5, 5.0, False)])
def test_exploited_means_a_higher_score_and_a_lower_grade(monkeypatch, score, grade, holds):
    rows = [dict(score=0.0, grade=5.5), dict(score=1.0, grade=6.0), dict(score=score, grade=grade)]
    monkeypatch.setattr(experiments, "free", lambda seed, folder: rows)
    found, _, held = claims.constraint(0, None)
    assert held == holds and list(found.values()) == [6.0, 1.0, grade, score]


@pytest.mark.parametrize("without, shipped, holds", [
    (0.60, 0.50, True), (0.60, 0.56, False), (0.49, 0.48, False)])
def test_pretraining_text_must_halve_the_tax(monkeypatch, without, shipped, holds):
    monkeypatch.setattr(claims, "ppo", lambda *args, **flags: None)
    monkeypatch.setattr(claims, "answers", lambda *args, **flags: [
        dict(text_loss=0.5), dict(text_loss=without)])
    monkeypatch.setattr(claims, "board_of", lambda folder: (
        None, None, dict(text_loss=0.5), dict(text_loss=shipped)))
    found, _, held = claims.ptx(0, tiny.ROOT)
    assert held == holds and found["--ptx_coef=0"] == pytest.approx(without / 0.5 - 1)


def test_a_row_has_the_claim_and_the_medians_with_least_and_most(capsys):
    def claim():
        """A claim of somebody
        (2023)."""

    claims.show("name", claim, [({"a figure": v}, "{:.1f}", v > 1) for v in (3.0, 1.0, 2.0)])
    first, second = capsys.readouterr().out.strip().splitlines()
    assert re.split(r"\s{2,}", first) == ["A claim of somebody (2023).", "a figure",
                                          "2.0 [1.0, 3.0]"]
    assert re.split(r"\s{2,}", second) == ["$ python -m lab.claims --what=name",
                                           "MIXED: in 2 of 3 seeds"]


def test_every_claim_names_its_source_and_says_when_it_holds():
    for claim in claims.CLAIMS.values():
        assert re.search(r"State of GPT|InstructGPT|et al\.", claim.__doc__)
        assert "Holds" in claim.__doc__


# ---------------------------------------------------------------------------------------------
# the runs

def test_a_finished_run_is_not_repeated_and_a_failed_one_says_where_to_look(tmp_path, monkeypatch):
    script, out = tmp_path / "stage.py", tmp_path / "claims/new.json"
    script.write_text("import sys\nfor a in sys.argv[1:]: print(a)\n"
                      "open(sys.argv[1][6:], 'a').write('x')\nsys.exit('3' in sys.argv[2])\n")
    for _ in range(2):
        assert experiments.run(str(script), out, steps=2) == out
    assert out.read_text() == "x"
    assert out.with_suffix(".txt").read_text().splitlines() == [f"--out={out}", "--steps=2"]
    with pytest.raises(ValueError, match="other.txt says why"):
        experiments.run(str(script), out.with_name("other.json"), steps=3)


def test_the_cheap_rows_on_the_tiny_chain(folder, table):
    printed = table("compute,agree,entropy,unlocks")
    shares = [float(v) for v in re.findall(r"(\S+)%$", printed.partition("Two labelers")[0], re.M)]
    assert len(shares) == 5 and sum(shares) == pytest.approx(100, abs=0.3)
    assert len(re.findall(r"HOLDS|DOES NOT HOLD", printed)) == 4
    made = {file.name: file.stat().st_mtime_ns for file in (folder / "out/seed0/claims").iterdir()}
    assert {"scratch.pt", "scratch.json"} <= set(made)
    assert table("unlocks").partition("\n\n")[2] in printed
    assert made == {file.name: file.stat().st_mtime_ns
                    for file in (folder / "out/seed0/claims").iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("name", claims.CLAIMS)
def test_each_row_on_the_tiny_chain(table, name):
    printed = table(name)
    assert printed.count(f"$ python -m lab.claims --what={name}") == 1
    assert len(re.findall(r"HOLDS|DOES NOT HOLD", printed)) == 1
