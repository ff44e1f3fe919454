"""lab/plan.py: its FLOPs against PyTorch's counter, against the papers and against the scripts'
defaults; its memory against the tensors of a training step."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import compare
import pretrain
import reward
import rlhf_ppo
import sft
from lab.plan import PLANS, flops, forward, in_units, memory
from model import GPT, GPTConfig
from optim import adamw
from tiny import ROOT, printed

DAY = 8.64e19                  # a petaflop/s-day


def test_a_token_costs_what_pytorch_counts_in_a_forward_and_backward_pass(monkeypatch):
    monkeypatch.setattr("model.fused_is_faster", lambda q: False)     # its kernel is not counted
    plan = PLANS["town"]
    model = GPT(GPTConfig(block_size=256))
    idx = torch.randint(1024, (2, 256))
    with FlopCounterMode(display=False) as counter:
        model(idx, idx).backward()
    predicted = 3 * forward(plan.params, plan, 256) * idx.numel()
    assert predicted == pytest.approx(counter.get_total_flops(), rel=0.03)


@pytest.mark.parametrize("stage, published, error", [
    ("pretraining", 3640, 0.04), ("SFT", 4.9, 0.05), ("PPO", 60, 0.08)])
def test_the_plan_gives_the_petaflop_days_of_gpt_3_and_instructgpt(stage, published, error):
    """Brown et al. 2020, table D.1; Ouyang et al. 2022, section 5.1. They leave out attention."""
    assert flops(PLANS["instructgpt"])[stage] / DAY == pytest.approx(published, rel=error)


def test_the_town_s_plan_is_what_the_scripts_do_by_default():
    plan, c = PLANS["town"], pretrain.Config()
    weights = sum(p.numel() for p in GPT(GPTConfig()).parameters())
    assert plan.params == pytest.approx(weights, rel=0.01)
    assert plan.tokens == c.steps * c.batch_size * c.block_size
    c = sft.Config()
    assert plan.demos == c.steps * c.batch_size * 256
    c = compare.Config()
    assert plan.answers == c.n_prompts * c.k * 31.5
    c = rlhf_ppo.Config()
    updates = c.steps * c.epochs * c.batch_size // c.minibatch
    assert plan.episodes == c.steps * c.batch_size * 31.5 and plan.epochs == c.epochs
    assert plan.ptx == updates * max(1, c.minibatch // 32) * 256
    assert plan.lm == bool(reward.Config().lm)


def test_ppo_costs_its_passes():
    """Counted one by one, with a reward model of the policy's size and without text. A backward
    pass counts twice."""
    plan = replace(PLANS["town"], ptx=0)
    passes = dict(sample=1, reference=1, policy=1, reward_model=1, critic=1, lm=1,
                  learn=3 * 2 * plan.epochs)
    assert flops(plan)["PPO"] == pytest.approx(
        sum(passes.values()) * forward(plan.params, plan, plan.row) * plan.episodes)


def test_a_trained_weight_takes_16_bytes():
    model = GPT(GPTConfig(n_layer=1, n_embd=32))
    optimizer = adamw(model, 0.1)
    idx = torch.randint(1024, (1, 8))
    model(idx, idx).backward()
    optimizer.step()
    weights = [*model.parameters()]
    held = weights + [p.grad for p in weights] + [
        x for state in optimizer.state.values() for x in state.values() if x.dim()]
    plan = PLANS["town"]
    share = sum(x.nbytes for x in held) / sum(p.numel() for p in weights)
    assert memory(plan, 1)["pretraining, DDP"] / plan.params == pytest.approx(share)
    assert memory(plan, 4)["pretraining, FSDP"] / plan.params == pytest.approx(share / 4)


def test_a_number_is_printed_with_its_unit():
    assert [in_units(x) for x in (0, 0.5, 7, 12345, 174.6e9, 3.2e14)] == [
        "0", "under 1 ", "7.0 ", "12.3 k", "175 G", "320 T"]


@pytest.mark.parametrize("flag, message", [
    ("--plan=gpt5", "--plan=gpt5 should be one of town"),
    ("--params=1e9", "--params changes a plan: add --plan=town")])
def test_what_cannot_be_planned_is_one_line(flag, message, refused):
    assert message in refused("lab/plan", flag)


def test_the_table_is_that_of_the_page():
    assert "\n".join(printed(".", "lab/plan")) in (ROOT / "docs/scale.md").read_text("utf-8")


def test_more_gpus_take_less_time_for_the_same_cost():
    row = "pretraining 3.24e+23 3.75e+03 98.13% {} days 568,225"
    for gpus, days in ((1000, 9.5), (4000, 2.4)):
        lines = printed(".", "lab/plan", "--plan=instructgpt", f"--gpus={gpus}")
        assert lines[1].split() == row.format(days).split()
