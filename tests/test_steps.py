"""What a training loop asks of its run: steps, times to log, means of what was added, a clock."""

from types import SimpleNamespace

import pytest
import torch

import checkpoint
from checkpoint import Run
from test_resume import Config, env


@pytest.fixture
def run(tmp_path):
    return Run(Config(out=str(tmp_path / "sft.pt")), env())


def test_the_steps_are_all_that_are_left_each_with_its_own_seed(run):
    seeds = []
    run.rt.seed = lambda *numbers: seeds.append(numbers)
    run.start = 7
    assert list(run.steps()) == [7, 8, 9]
    assert seeds == [(0, 7), (0, 8), (0, 9)]


def test_steps_of_several_things_end_where_the_things_end(run):
    ends = []
    for start in run.steps(total=10, by=4):
        ends.append((start, run.step))
    assert ends == [(0, 4), (4, 8), (8, 10)]


def test_a_step_is_due_every_so_often_and_at_the_end(run):
    assert [step + 1 for step in run.steps() if run.due(4)] == [4, 8, 10]


def test_what_was_added_is_averaged_over_steps_and_ranks_and_then_forgotten(run):
    """Two ranks that say the same; each step has two micro-batches."""
    run.rt.world_size, run.rt.sum = 2, lambda *values: [2 * float(v) for v in values]
    found = []
    for step in run.steps():
        for part in (1.0, 3.0):
            run.add(loss=torch.tensor(part * (step + 1)), tokens=5)
        if run.due(5):
            found.append(run.averages())
    assert [row["loss"] for row in found] == [4 * 3, 4 * 8]           # 1 to 5, 6 to 10 on average


@pytest.mark.parametrize("passed", [2, 0])            # a coarse clock stands still
def test_tokens_are_counted_on_all_ranks_per_second_that_is_not_paused(run, monkeypatch, passed):
    now = SimpleNamespace(time=run.clock)
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now.time)
    run.rt.world_size, run.rt.sum = 2, lambda *values: [2 * float(v) for v in values]
    for _ in run.steps():
        run.add(tokens=30)
        if run.step == 5:
            break
    now.time += passed
    with run.paused():
        now.time += 100
    row = run.averages()
    assert row["tokens_per_s"] == (150 if passed else 300_000)
    assert row["seconds"] == max(passed, 0.001)
