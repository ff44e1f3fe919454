"""The whole chain at a tiny size, by subprocess, as a user runs it; and what interrupts it."""

import io
import json
import math
import re
import runpy
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout

import pytest
import torch

import checkpoint
from checkpoint import load_checkpoint
from common import Runtime
from data.formats import read_demonstrations
from reward import Config as RewardConfig
from reward import encode_answer, score_all
from tiny import CHAIN, GRADE, MODEL, command, environment

@pytest.fixture(scope="session")
def folder(chain):
    return chain


def read_log(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def held_out(folder, stage, name):
    """A figure at every evaluation, the first to the last."""
    return [line[name] for line in read_log(folder / f"out/{stage}.jsonl") if name in line]


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


def test_a_finished_stage_says_so_and_keeps_its_result(folder):
    before = (folder / "out/pretrain.pt").read_bytes()
    assert "out/pretrain.pt is finished" in run(folder, "pretrain", CHAIN["pretrain"])
    assert (folder / "out/pretrain.pt").read_bytes() == before


def test_nothing_unfinished_is_left_beside_the_results(folder):
    left = {path.name for path in folder.rglob("*") if path.suffix in (".tmp", ".state")}
    assert left <= {"comparisons.state"}              # which tells whose comparisons.jsonl is


# ---------------------------------------------------------------------------------------------
# interrupted runs

SHORT = {
    "pretrain": f"{MODEL} --steps=40 --batch_size=4 --micro_batch=2 --warmup=5 --eval_every=10 "
                "--eval_rows=8 --dropout=0.1",
    "sft": "--steps=40 --batch_size=4 --micro_batch=2 --warmup=5 --eval_every=10 --dropout=0.1",
    "reward": "--steps=24 --batch_size=4 --micro_batch=2 --warmup=5 --eval_every=10",
    "rlhf_ppo": "--steps=5 --batch_size=16 --minibatch=8 --micro_batch=8 --max_new_tokens=16 "
                f"--n_eval=8 --eval_every=1 --watch={GRADE}",
}
COMPARE = f"--n_prompts=60 --batch_size=16 --max_new_tokens=16 --labeler={GRADE}"


def run(folder, script, flags):
    """Run a script to its end within this process, which saves seconds: what it printed."""
    printed, ctrl_c = io.StringIO(), signal.getsignal(signal.SIGINT)
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed):
        patch.chdir(folder)
        patch.setenv("SAVE_SECONDS", "0")             # the state is saved after every step
        patch.setattr(sys, "argv", command(script, flags)[1:])
        patch.setattr(sys, "excepthook", sys.excepthook)
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as end:
            assert end.code == 0
        finally:
            signal.signal(signal.SIGINT, ctrl_c)
    return printed.getvalue()


def interrupt(folder, script, flags, number, ready):
    """Start a script and send it a signal once ready(): its exit status and what it printed."""
    process = subprocess.Popen(command(script, flags), env=environment(SAVE_SECONDS="0"),
                               cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               text=True)
    until = time.time() + 60
    while not ready() and process.poll() is None and time.time() < until:
        time.sleep(0.002)
    process.send_signal(number)
    printed, _ = process.communicate(timeout=60)
    return process.returncode, printed


def steps_done(state):
    return torch.load(state, weights_only=True)["step"] if state.exists() else 0


def last_line(log):
    return log.read_text()[:-1].rpartition("\n")[2] if log.exists() else ""


def equal(a, b):
    """Bit for bit, in tensors, dicts and plain values."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.fixture(scope="module", params=SHORT)
def stage(request):
    return request.param


def contents(path):
    return torch.load(path, weights_only=True)


@pytest.fixture(scope="module")
def whole(folder, stage):
    """The checkpoint and the log of a run that nothing interrupted."""
    run(folder, stage, f"{SHORT[stage]} --out=out/whole_{stage}.pt")
    return (contents(folder / f"out/whole_{stage}.pt"),
            read_log(folder / f"out/whole_{stage}.jsonl"))


@pytest.fixture(scope="module")
def killed(folder, stage):
    """The same of one that was killed half-way and started again, and what it printed then. PPO is
    killed when it has evaluated the policy that is in the state, and so will do it again."""
    out, half = folder / f"out/killed_{stage}.pt", 2 if stage == "rlhf_ppo" else 8
    state, log = out.with_suffix(".state"), out.with_suffix(".jsonl")
    flags = f"{SHORT[stage]} --out=out/{out.name}"
    evaluated = (lambda: "held out" in last_line(log)) if stage == "rlhf_ppo" else lambda: True
    status, _ = interrupt(folder, stage, flags, signal.SIGKILL,
                          lambda: steps_done(state) >= half and evaluated())
    assert status == -signal.SIGKILL and state.exists() and not out.exists()
    printed = run(folder, stage, flags)
    return contents(out), read_log(log), printed


def test_a_killed_run_says_that_it_resumes(killed):
    assert re.search(r"resuming from \d+ of \d+", killed[2])


def test_a_killed_run_ends_with_the_weights_it_would_have_had(killed, whole):
    assert equal(killed[0]["model"], whole[0]["model"])


def test_a_killed_run_ends_with_the_metrics_it_would_have_had(killed, whole):
    assert equal(killed[0]["metrics"], whole[0]["metrics"])


def test_the_log_of_a_killed_run_has_every_line_once(killed, whole):
    assert [(line["step"], list(line)) for line in killed[1]] == \
        [(line["step"], list(line)) for line in whole[1]]


def test_a_run_that_could_not_save_its_result_can_do_so_later(folder, stage, whole, monkeypatch):
    def full(*args, **kwargs):
        raise OSError("No space left on device")

    flags = f"{SHORT[stage]} --out=out/full_{stage}.pt"
    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(checkpoint, "save_checkpoint", full)
        run(folder, stage, flags)
    run(folder, stage, flags)
    ckpt = contents(folder / f"out/full_{stage}.pt")
    assert equal(ckpt["model"], whole[0]["model"]) and equal(ckpt["metrics"], whole[0]["metrics"])


@pytest.mark.parametrize("stage", ["pretrain"], indirect=True)
def test_ctrl_c_saves_and_says_how_to_go_on(folder, stage, whole):
    flags, state = f"{SHORT[stage]} --out=out/stopped.pt", folder / "out/stopped.state"
    status, printed = interrupt(folder, stage, flags, signal.SIGINT, lambda: steps_done(state) >= 5)
    step = steps_done(state)
    assert status == 130
    assert f"stopped after step {step}; the same command continues" in printed
    assert f"resuming from {step} of 40" in run(folder, stage, flags)
    assert equal(contents(folder / "out/stopped.pt")["model"], whole[0]["model"])


def test_killed_comparisons_go_on_with_the_same_answers(folder):
    state = folder / "out/killed.state"
    interrupt(folder, "compare", f"{COMPARE} --out=out/killed.jsonl", signal.SIGKILL,
              lambda: steps_done(state) >= 64)
    assert "resuming from" in run(folder, "compare", f"{COMPARE} --out=out/killed.jsonl")
    run(folder, "compare", f"{COMPARE} --out=out/whole.jsonl")
    assert (folder / "out/killed.jsonl").read_text() == (folder / "out/whole.jsonl").read_text()
