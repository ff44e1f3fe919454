"""The comparison of methods: its counts against PyTorch's own, and the script."""

import io
import json
import random
import re
from contextlib import redirect_stdout

import numpy as np
import pytest
from torch.utils.flop_counter import FlopCounterMode

import tiny
from checkpoint import load_checkpoint
from data.formats import read_prompts
from data.town import grade
from lab import chains, compare_methods
from lab.compare_methods import cost, ppo_flops

RL = ("--data=prompts.jsonl --init=out/seed0/sft.pt --reward=out/seed0/reward.pt "
      "--batch_size=64 --minibatch=32 --max_new_tokens=12 --n_eval=1").split()


@pytest.fixture(scope="module")
def compared(seed0):
    """Run the comparison twice: what it printed first, the files then, what it printed again."""
    printed, files = [], []
    for _ in range(2):
        with redirect_stdout(io.StringIO()) as out:
            assert tiny.run(seed0, "lab/compare_methods", "--seeds=1", "--trials=1",
                            "--jobs=2")[0] == 0
        printed.append(out.getvalue())
        made = (seed0 / "out/seed0/experiments").iterdir()
        files.append({file.name: file.stat().st_mtime_ns for file in made})
    return printed, files


def table(printed, title):
    """{method: [its figures]} of a table about one seed."""
    lines = (re.split(r"\s{2,}", line) for line in printed.partition(title)[2].splitlines()[2:9])
    return {method: [float(v.rstrip("%")) for v in figures] for method, *figures in lines}


def test_every_method_has_its_row_and_sft_ties_with_itself(compared):
    rows = table(compared[0][0], "about the test people")
    assert list(rows) == ["SFT", "best of n", "rejection sampling", "DPO", "GRPO", "PPO",
                          "PPO, no text"]
    assert rows["SFT"][1] == 0 and rows["SFT"][3] == 0
    assert all(1 <= row[0] <= 7 for row in rows.values())


def test_the_best_of_16_by_the_true_grade_is_better_than_one_answer(seed0, monkeypatch):
    monkeypatch.chdir(seed0)
    monkeypatch.setattr(compare_methods, "load_reward", lambda *_: grade)
    found = compare_methods.best_answers(chains.Chain(chains.Config(), 0))
    once = json.loads((seed0 / "out/seed0/scoreboard.json").read_text())["models"]["sft"]
    assert found["grade"][0] > once["grade"][0] + 0.3 and found["better"] > found["worse"]
    assert found["kl"] == pytest.approx(1.84, abs=0.005)              # log 16 - 15/16


def test_the_same_command_again_runs_nothing_and_prints_the_same(compared):
    (first, again), (before, after) = compared
    assert before == after
    titles = "trials:", "answers to prompts about the test people"
    assert all(first.count(title) == 1 for title in titles)
    made = "    out/seed0/experiments/"                    # the runs, in the first only
    assert made in first and made not in again
    assert [line for line in first.splitlines() if not line.startswith(made)] == (
        again.splitlines())


@pytest.fixture(scope="module")
def prompts(seed0):
    """Short ones of similar lengths: PyTorch counts the padding, too."""
    rng = random.Random(1)
    asked = tiny.questions(rng, 100, False) + tiny.questions(rng, 20, True)
    tiny.write(seed0 / "prompts.jsonl", *(dict(prompt=q) for q in asked))
    return read_prompts(seed0 / "prompts.jsonl")


def counted(folder, script, *flags):
    """The FLOPs that PyTorch counts in a run of a script."""
    with FlopCounterMode(display=False) as counter:
        assert tiny.run(folder, script, *flags)[0] == 0
    return counter.get_total_flops()


@pytest.mark.parametrize("script", ["rlhf_ppo", "lessons/dpo", "lessons/grpo", "lessons/best_of_n"])
def test_the_flops_are_about_those_that_pytorch_counts(seed0, prompts, script):
    """Two runs that differ in one step. Ours count no padding, but the logits at every token, which
    are computed for answers only."""
    flags = RL + {"lessons/best_of_n": ["--best_of=4"], "rlhf_ppo": ["--eval_every=100"]}.get(
        script, [])
    if script == "lessons/dpo":
        flags = ["--data=out/seed0/comparisons.jsonl", "--prompts=prompts.jsonl",
                 "--init=out/seed0/sft.pt", "--batch_size=32", "--max_new_tokens=12", "--n_eval=1"]
    paths = [seed0 / f"out/{script.rpartition('/')[2]}{n}.pt" for n in (1, 2)]
    one, more = (counted(seed0, script, *flags, f"--steps={n}", f"--out={path}")
                 for n, path in enumerate(paths, start=1))
    if script == "rlhf_ppo":
        sft = load_checkpoint(seed0 / "out/seed0/sft.pt")
        n = [len(sft["tokenizer"].encode_chat(row["prompt"], reply=True)[0]) for row in prompts]
        ours = [ppo_flops(path, np.mean(n), sft["model"].flops_per_token(32) / 3, 128)
                for path in paths]
    else:
        ours = [sum(row.get("flops", 0) for row in tiny.read_log(path.with_suffix(".jsonl")))
                for path in paths]
    if script == "lessons/dpo":    # the reference reads all answers once, however few steps follow
        ours = [n * 3 / 4 for n in ours]
    assert ours[1] - ours[0] == pytest.approx(more - one, rel=0.25)


def test_only_dpo_and_sft_do_without_the_reward_models_cost(tmp_path, monkeypatch):
    monkeypatch.setattr(compare_methods, "flops", lambda *_: {"reward model": 100, "PPO": 7})
    tiny.write(tmp_path / "run.jsonl", *(dict(step=i, flops=10) for i in range(3)))
    tiny.write(tmp_path / "sft.jsonl", dict(step=1, loss=2))
    spent = {m: cost(tmp_path, m, tmp_path / name) for m, name in {
        "SFT": "sft.pt", "best of n": "sft.pt", "rejection sampling": "run.pt", "DPO": "run.pt",
        "GRPO": "run.pt", "PPO, no text": "run.pt"}.items()}
    assert spent == {"SFT": 0, "best of n": 100, "rejection sampling": 130, "DPO": 30,
                     "GRPO": 130, "PPO, no text": 107}
