"""Runs that are killed, at any moment and in the middle of a save, end where a run ends that
nothing disturbed, bit for bit; what a full or faulty disk does to them is said in one line.

    pytest tests/test_kill.py              two kills per stage, and one in each moment of a save
    pytest tests/test_kill.py -m slow      forty per stage, and two processes
"""

import errno
import os
import random
import signal
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

import checkpoint
from checkpoint import atomic_save
from tiny import FLAGS, build, equal, read_log, run, two_ranks

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills copies of this process")
STEPS = dict(pretrain=12, sft=12, reward=12, rlhf_ppo=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_tokenizer):
    folder = build(tmp_path_factory.mktemp("kill"), tiny_tokenizer)
    assert run(folder, *arguments("rlhf_ppo", "warm_up"))[0] == 0     # all modules are imported
    return folder


def arguments(stage, name):
    steps = [f"--steps={STEPS[stage]}"] if stage in STEPS else []
    ending = "jsonl" if stage == "compare" else "pt"
    return [stage, *FLAGS[stage].split(), *steps, "--dtype=float32", f"--out={name}.{ending}"]


def result(folder, stage, name):
    """What the stage is for: the weights, what was measured and which lines the log has; or the
    comparisons."""
    if stage == "compare":
        return (folder / f"{name}.jsonl").read_text()
    ckpt, log = torch.load(folder / f"{name}.pt", weights_only=True), folder / f"{name}.jsonl"
    return {"model": ckpt["model"], "metrics": repr(ckpt["metrics"]),   # NaN is not equal to NaN
            "log": [(line["step"], list(line)) for line in read_log(log)]}


@pytest.fixture(scope="module", params=FLAGS)
def stage(request):
    return request.param


@pytest.fixture(scope="module")
def whole(folder, stage):
    """What a run gives that nothing disturbed, and how many of the CPU's seconds it takes."""
    began = time.process_time()
    assert run(folder, *arguments(stage, f"whole_{stage}"), SAVE_SECONDS="0")[0] == 0
    return result(folder, stage, f"whole_{stage}"), time.process_time() - began


def killed(folder, command, prepare=lambda: None, seconds=0):
    """Run a script in a copy of this process, which the kernel kills after some seconds of the CPU,
    or which dies of what prepare() has set up: whether it was killed before its end."""
    child = os.fork()
    if child == 0:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1), os.dup2(silence, 2)
        prepare()
        signal.setitimer(signal.ITIMER_PROF, seconds)             # no Python code runs at its end
        status, _ = run(folder, *command, SAVE_SECONDS="0")
        os._exit(status)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGKILL, signal.SIGPROF)


def finish(folder, stage, expected):
    assert run(folder, *arguments(stage, f"killed_{stage}"), SAVE_SECONDS="0")[0] == 0
    assert equal(result(folder, stage, f"killed_{stage}"), expected)
    for file in folder.glob(f"killed_{stage}.*"):
        file.unlink()


@pytest.mark.parametrize("seed, n_kills", [
    ("", 2), *(pytest.param(seed, 4, marks=pytest.mark.slow) for seed in range(10))])
def test_a_run_that_is_killed_again_and_again_ends_as_if_nothing_had_happened(
        folder, stage, whole, seed, n_kills):
    (expected, seconds), rng = whole, random.Random(f"{stage} {seed}")
    command = arguments(stage, f"killed_{stage}")
    for _ in range(n_kills):
        while not killed(folder, command, seconds=rng.uniform(0, seconds)):
            finish(folder, stage, expected)           # it ended too early: start anew
    finish(folder, stage, expected)


def test_another_seed_ends_elsewhere(folder, stage, whole):
    assert run(folder, *arguments(stage, f"other_{stage}"), "--seed=1")[0] == 0
    found = result(folder, stage, f"other_{stage}"), whole[0]
    assert not equal(*(r if stage == "compare" else r["model"] for r in found))


# ---- killed in the middle of a save ---------------------------------------------------------

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)


def half(obj, f, save=torch.save):
    save(obj, f)
    f.truncate(f.tell() // 2)
    die()


def replace_and_die(*arguments, replace=os.replace):
    replace(*arguments)
    die()


MOMENTS = {"half of it written": (torch, "save", half), "all written": (os, "fsync", die),
           "before it has its name": (os, "replace", die),
           "just after that": (os, "replace", replace_and_die),
           "before the state goes": (Path, "unlink", die)}


def nth_time(n, owner, name, fatal):
    """From its n-th call on, owner.name is deadly."""
    harmless, left = getattr(owner, name), [n]

    def count(*arguments, **named):
        left[0] -= 1
        return (harmless if left[0] else fatal)(*arguments, **named)

    setattr(owner, name, count)


def test_a_run_that_is_killed_in_each_moment_of_a_save_loses_nothing(folder, stage, whole):
    """After each kill it goes on, up to its second save, and has all its steps at the last one."""
    for moment, deadly in MOMENTS.items():
        n = 1 if "state" in moment else 2
        if n == 2 or stage != "compare":              # whose state stays
            assert killed(folder, arguments(stage, f"killed_{stage}"),
                          prepare=lambda: nth_time(n, *deadly)), moment
    finish(folder, stage, whole[0])


@pytest.mark.slow
def test_ppo_goes_on_when_one_of_two_processes_was_killed(folder, monkeypatch):
    def go(name):
        return two_ranks(folder, *arguments("rlhf_ppo", name), SAVE_SECONDS="0")

    def doomed(run, step, save_state=checkpoint.Run.save_state):
        save_state(run, step)
        run.rt.barrier()                              # until process 0 has written
        if step == 2 and run.rt.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)

    assert go("whole_two").returncode == 0
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Run, "save_state", doomed)
        assert go("killed_two").returncode != 0
    again = go("killed_two")
    assert again.returncode == 0 and "resuming from step 2" in again.stdout
    whole, cut = (result(folder, "rlhf_ppo", f"{name}_two") for name in ("whole", "killed"))
    assert equal(whole, cut)


# ---- faulty disks ---------------------------------------------------------------------------

@pytest.fixture
def full_disk():
    """Files hold 100,000 bytes from now on; this is what Python sees of a full disk as well."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("size", [24_900, 30_000, 90_000])            # floats, of 4 bytes
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, size, full_disk):
    atomic_save(dict(step=1), tmp_path / "sft.state")
    with pytest.raises(OSError, match="sft.state could not be written .File too large.: make room"):
        atomic_save(dict(step=2, model={"w": torch.zeros(size)}), tmp_path / "sft.state")
    assert torch.load(tmp_path / "sft.state") == dict(step=1)
    assert os.listdir(tmp_path) == ["sft.state"]


def test_a_disk_that_is_full_at_the_end_is_told_in_one_line_and_the_result_can_be_saved_later(
        folder, stage, whole, monkeypatch, capsys):
    if stage == "compare":
        pytest.skip("its result grows line by line")
    save_checkpoint = checkpoint.save_checkpoint
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def save(*arguments, **named):
        patch.setattr(os, "fsync", Mock(side_effect=full))
        save_checkpoint(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_checkpoint", save)
        assert run(folder, *arguments(stage, f"killed_{stage}"), SAVE_SECONDS="0")[0] == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.endswith(
        f"killed_{stage}.pt could not be written (No space left on device): make room if the disk "
        "is full, or choose another --out; the same command goes on\n")
    assert not list(folder.glob("*.tmp"))
    finish(folder, stage, whole[0])
