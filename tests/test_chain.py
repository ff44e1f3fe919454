"""The whole chain at a tiny size: each stage improves what it is for; and a Ctrl-C."""

import math
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from checkpoint import load_checkpoint
from common import Runtime
from data.formats import read_demonstrations
from reward import Config as RewardConfig
from reward import encode_answer, score_all
from tiny import CHAIN, ROOT, equal, held_out, interrupted, run


@pytest.fixture(scope="module")
def folder(own_chain):
    return own_chain


# ---------------------------------------------------------------------------------------------
# every stage improves its own held-out figure

def test_pretraining_lowers_the_loss_on_held_out_text(folder):
    losses = held_out(folder, "pretrain", "val_loss")
    assert len(losses) == 4 and losses[-1] < losses[0] - 0.5


def test_pretraining_comes_no_nearer_to_the_texts_than_their_entropy(folder):
    metrics = load_checkpoint(folder / "out/pretrain.pt", "pretrain")["metrics"]
    assert 0 < metrics["entropy"] < metrics["val_loss"]


def test_fine_tuning_lowers_the_loss_on_held_out_answers(folder):
    losses = held_out(folder, "sft", "val_loss")
    assert len(losses) == 3 and losses[-1] < losses[0] - 0.2


def test_the_reward_model_beats_chance_on_held_out_pairs(folder):
    metrics = load_checkpoint(folder / "out/reward.pt", "reward")["metrics"]
    assert metrics["val_accuracy"] > 0.6
    assert metrics["val_loss"] < math.log(2)          # the loss of one who gives all the same score


def test_ppo_raises_the_score_of_answers_to_held_out_prompts(folder):
    scores = held_out(folder, "ppo", "score")
    assert len(scores) == 3 and scores[-1] > scores[0] + 1


def test_the_checkpoints_tell_how_they_came_about(folder):
    ckpt = load_checkpoint(folder / "out/ppo.pt", "ppo")
    assert [entry["stage"] for entry in ckpt["history"]] == ["pretrain", "sft", "ppo"]
    assert ckpt["history"][0]["metrics"]["val_loss"] == held_out(folder, "pretrain", "val_loss")[-1]


def test_the_demonstrations_score_0_on_average_with_deviation_1(folder):
    ckpt = load_checkpoint(folder / "out/reward.pt", "reward")
    tok, model = ckpt["tokenizer"], ckpt["model"]
    rows = [encode_answer(tok, r["messages"][:-1], r["messages"][-1]["content"], 128)
            for r in read_demonstrations(folder / "data/town/sft.jsonl")]
    scores = score_all(model, rows, tok, Runtime(RewardConfig(device="cpu")))   # as reward.py does
    assert scores.mean().item() == pytest.approx(0, abs=1e-4)
    assert scores.std().item() == pytest.approx(1, abs=1e-4)


def test_a_finished_stage_says_so_and_keeps_its_result(folder, capsys):
    before = (folder / "out/pretrain.pt").read_bytes()
    assert run(folder, "pretrain", *CHAIN["pretrain"].split())[0] == 0
    assert "out/pretrain.pt is finished" in capsys.readouterr().out
    assert (folder / "out/pretrain.pt").read_bytes() == before


def test_nothing_unfinished_is_left_beside_the_results(folder):
    left = {path.name for path in folder.rglob("*") if path.suffix in (".tmp", ".state")}
    assert left <= {"comparisons.state"}              # which tells whose comparisons.jsonl is


# ---------------------------------------------------------------------------------------------
# Ctrl-C, in a process as a user has it

def test_ctrl_c_saves_and_the_same_command_goes_on_as_if_nothing_had_happened(folder, capsys):
    """The run is too long for any computer to end it meanwhile, so states are compared."""
    flags = "--steps=5000 --batch_size=4 --micro_batch=2 --warmup=5 --dropout=0.1".split()
    stopped, whole = (folder / f"out/{name}.state" for name in ("stopped", "whole"))
    process = subprocess.Popen(
        [sys.executable, f"{ROOT}/sft.py", *flags, "--out=out/stopped.pt"], cwd=folder, text=True,
        env=dict(os.environ, SAVE_SECONDS="0"), stdout=subprocess.PIPE)
    while process.poll() is None and not stopped.exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    step = torch.load(stopped, weights_only=True)["step"]
    assert process.returncode == 130
    assert f"stopped after step {step}; the same command continues" in printed
    assert interrupted(folder, "sft", step + 2, *flags, "--out=out/stopped.pt") == 130
    assert f"resuming from step {step}" in capsys.readouterr().out
    assert interrupted(folder, "sft", step + 2, *flags, "--out=out/whole.pt") == 130
    assert equal(*(torch.load(state, weights_only=True)["model"] for state in (stopped, whole)))
