"""The whole chain at a tiny size: each stage improves what it is for; and a Ctrl-C."""

import math
import os
import signal
import time
from pathlib import Path

import pytest
import torch

from checkpoint import load_checkpoint
from tiny import CHAIN, equal, held_out, interrupted, run, start


# ---------------------------------------------------------------------------------------------
# every stage improves its own held-out figure

@pytest.mark.parametrize("stage, figure, evaluations, better", [
    ("pretrain", "val_loss", 4, -0.5), ("sft", "val_loss", 3, -0.2), ("ppo", "score", 3, 1)])
def test_a_stage_improves_its_figure_on_what_is_held_out(chain, stage, figure, evaluations,
                                                         better):
    found = held_out(chain, stage, figure)
    assert len(found) == evaluations and (found[-1] - found[0]) / better > 1


def test_pretraining_comes_no_nearer_to_the_texts_than_their_entropy(chain):
    metrics = load_checkpoint(chain / "out/pretrain.pt", "pretrain")["metrics"]
    assert 0 < metrics["entropy"] < metrics["val_loss"]


def test_the_reward_model_beats_chance_on_held_out_pairs(chain):
    metrics = load_checkpoint(chain / "out/reward.pt", "reward")["metrics"]
    assert metrics["val_accuracy"] > 0.6
    assert metrics["val_loss"] < math.log(2)          # the loss of one who gives all the same score


def test_the_checkpoints_tell_how_they_came_about(chain):
    ckpt = load_checkpoint(chain / "out/ppo.pt", "ppo")
    assert [entry["stage"] for entry in ckpt["history"]] == ["pretrain", "sft", "ppo"]
    assert ckpt["history"][0]["metrics"]["val_loss"] == held_out(chain, "pretrain", "val_loss")[-1]


def test_a_finished_stage_says_so_and_keeps_its_result(own_chain, capsys):
    before = (own_chain / "out/pretrain.pt").read_bytes()
    assert run(own_chain, "pretrain", *CHAIN["pretrain"].split())[0] == 0
    assert "out/pretrain.pt is finished" in capsys.readouterr().out
    assert (own_chain / "out/pretrain.pt").read_bytes() == before


def test_nothing_unfinished_is_left_beside_the_results(own_chain):
    left = {path.name for path in own_chain.rglob("*") if path.suffix in (".tmp", ".state")}
    assert left <= {"comparisons.state"}              # which tells whose comparisons.jsonl is


# ---------------------------------------------------------------------------------------------
# Ctrl-C, in a process of its own

def test_ctrl_c_saves_and_the_same_command_goes_on_as_if_nothing_had_happened(own_chain, capsys):
    """The run is too long for any computer to end it meanwhile, so states are compared."""
    flags = "--steps=5000 --batch_size=4 --micro_batch=2 --warmup=5 --dropout=0.1".split()
    stopped, whole = (own_chain / f"out/{name}.state" for name in ("stopped", "whole"))
    with open("printed", "w+") as out:
        process = start(own_chain, ["sft", *flags, "--out=out/stopped.pt"], dict(SAVE_SECONDS="0"),
                        out, out)
        while not stopped.exists() and not os.waitpid(process, os.WNOHANG)[0]:
            time.sleep(0.01)
        os.kill(process, signal.SIGINT)
        assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 130
    step = torch.load(stopped, weights_only=True)["step"]
    assert f"stopped after step {step}; the same command continues" in Path("printed").read_text()
    assert interrupted(own_chain, "sft", step + 2, *flags, "--out=out/stopped.pt") == 130
    assert f"resuming from step {step}" in capsys.readouterr().out
    assert interrupted(own_chain, "sft", step + 2, *flags, "--out=out/whole.pt") == 130
    assert equal(*(torch.load(state, weights_only=True)["model"] for state in (stopped, whole)))
