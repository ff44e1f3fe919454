import json
import math
import os
import shutil
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import checkpoint
import tiny
from checkpoint import Run, fingerprint
from model import GPT, GPTConfig


@dataclass
class Config:
    out: str = "out/sft.pt"
    init: str = ""
    steps: int = 10
    lr: float = 1e-3
    dropout: float = 0.1
    seed: int = 0
    dtype: str = "auto"
    fresh: bool = False
    debug: bool = False


# ---- fingerprints ---------------------------------------------------------------------------

@pytest.fixture
def texts(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("one\n" * 10)
    (folder / "b.txt").write_text("two\n" * 10)
    return folder


@pytest.mark.parametrize("change, same", [
    (lambda f: (f / "a.txt").write_text("uno\n" * 10), False),
    (lambda f: (f / "b.txt").write_text("two\n" * 11), False),
    (lambda f: (f / "c.txt").write_text("three"), False),
    (lambda f: (f / "b.txt").unlink(), False),
    (lambda f: (f / "b.txt").rename(f / "z.txt"), False),
    (lambda f: (f / ".DS_Store").write_bytes(b"\0"), True),
    (lambda f: (f / "._a.txt").write_bytes(b"\0"), True),
    (lambda f: (f / "notes.md").write_bytes(b"\0"), True),
    (lambda f: shutil.copytree(f, f / ".cache"), True),
    pytest.param(lambda f: (f / os.fsdecode(b"caf\xe9.txt")).write_text("not UTF-8"), False,
                 marks=pytest.mark.skipif(sys.platform != "linux", reason="has no such names"))],
    ids="content size new gone renamed .DS_Store ._a.txt unread .cache not-utf8".split())
def test_a_folders_fingerprint_changes_with_the_files_that_are_read(texts, change, same):
    before = fingerprint(texts)
    change(texts)
    assert (fingerprint(texts) == before) == same


def test_a_files_fingerprint_changes_with_any_of_its_bytes_and_not_with_its_place(tmp_path):
    found, content = [], bytearray(3_000_000)
    for n, place in enumerate((0, 1_500_000, 2_999_999)):
        content[place] = 1
        for folder in (f"{n}", f"{n}b"):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / "a.txt").write_bytes(content)
            found.append(fingerprint(tmp_path / folder / "a.txt"))
    assert found[::2] == found[1::2] and len(set(found)) == 3


def test_every_one_of_several_files_counts(texts):
    both = f"{texts}/a.txt,{texts}/b.txt"
    before = fingerprint(both)
    assert fingerprint(f"{texts}/a.txt, {texts}/b.txt") == before
    (texts / "b.txt").write_text("two, but otherwise")
    assert fingerprint(both) != before


# ---- runs -----------------------------------------------------------------------------------

ENV = SimpleNamespace(main=True, world_size=1, dtype=torch.float32, barrier=lambda: None,
                      sum=lambda *values: values, close=lambda: None, peak_memory=lambda: 0,
                      sharded=False, seed=lambda *numbers: None)


def env(**changes):
    return SimpleNamespace(**vars(ENV) | changes)


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("SAVE_SECONDS", "0")
    (tmp_path / "demos.jsonl").write_text("{}")
    return Config(out=str(tmp_path / "out/sft.pt"))


def start(config, env=ENV):
    return Run(config, env, inputs=[f"{Path(config.out).parents[1]}/demos.jsonl", config.init])


@pytest.fixture
def interrupted(config):
    """A run that left its state at step 4: a model, a number, a log."""
    torch.manual_seed(0)
    run, model, seen = start(config), torch.nn.Linear(2, 2), []
    run.track(model=model, seen=seen)
    for step in (2, 4):
        run.log(step, dict(loss=1 / step))
        seen.append(step)
        run.save_state(step)
    run.log(6, dict(loss=1 / 6))
    return model


def test_an_interrupted_run_goes_on_with_its_state_and_a_fresh_one_starts_over(config, interrupted,
                                                                               capsys):
    run, model, seen = start(config), torch.nn.Linear(2, 2), []
    run.track(model=model, seen=seen)
    assert run.start == 4 and seen == [2, 4] and torch.equal(model.weight, interrupted.weight)
    assert "resuming from step 4" in capsys.readouterr().out
    run = start(replace(config, fresh=True))
    assert run.state is None and next(run.steps()) == 0
    run.log(2, dict(loss=0.5))
    assert Path(config.out).with_suffix(".jsonl").read_text() == '{"step": 2, "loss": 0.5}\n'


@pytest.mark.parametrize("log, steps", [
    ('{"step": 2}\n{"step": 4}\n{"step": 6}\n{"step": 4, "lo', [2, 4]),   # 6 will be done again
    ('{"step": 2}\n\0\0\0\0\n{"step": 3, "l\n{"step": 4}\n', [2, 4]), ("\0" * 99, []),
    ("\0" * 99 + "\n", []), ('{"step": 2, "lo', []), ('ep": 1}\n{"step": 2}\n', [2]),
    ('{"step": 2}\n[]\n3\n{"loss": 1}\n"step"\n{"step": 4, "loss": 1', [2])])
def test_a_log_that_a_power_cut_has_damaged_keeps_its_sound_lines(config, interrupted, log, steps):
    path = Path(config.out).with_suffix(".jsonl")
    path.write_text(log)
    run = start(config)
    assert path.read_text() == log                    # a run that is refused changes nothing
    assert next(run.steps()) == 4
    run.log(6, dict(loss=1.0))
    assert [row["step"] for row in checkpoint.read_log(path)] == [*steps, 6]
    json.loads(path.read_text().splitlines()[-1])


def test_the_broken_lines_of_a_log_are_named_once(tmp_path, capsys):
    (tmp_path / "sft.jsonl").write_text('{"step": 2}\n\0\n{"step": 3, "l\n{"step": 4}\n{"ste')
    for _ in range(2):
        assert len(checkpoint.read_log(tmp_path / "sft.jsonl")) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "sft.jsonl: 2 broken lines are skipped" in said


def test_a_file_of_the_users_is_no_log(config, refused):
    log = Path(config.out).with_suffix(".jsonl")
    log.parent.mkdir()
    for text in ('{"prompt": "Hi"}\n', "Once upon a time", '{"steps": 1}\n', "a,b\n1,2\n"):
        log.write_text(text)
        assert "is no log" in refused(start, config) and log.read_text() == text


def test_a_figure_that_is_not_finite_is_told_without_guessing_why(config, refused):
    run = start(config)
    said = refused(run.log, 2, dict(loss=1.0, val_loss=math.nan))
    assert "val_loss is nan at step 2; the same command goes on" in said and "smaller" not in said


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a full disk")
def test_a_disk_that_is_full_when_a_line_is_logged_is_named(config, monkeypatch):
    run = start(config)
    run.log(1, dict(loss=1.0))
    monkeypatch.setattr(checkpoint, "open", lambda *_, **how: open("/dev/full", "a", **how),
                        raising=False)
    with pytest.raises(OSError, match="sft.jsonl could not be written .No space left on device.: "
                                      "make room"):
        run.log(2, dict(loss=1.0))


def test_saves_are_as_rare_as_asked_and_cost_a_fiftieth_of_the_time_at_most(config, monkeypatch):
    monkeypatch.setenv("SAVE_SECONDS", "20")
    now, saves = [0.0], []

    def slow(*_):
        now[0] += 4
        saves.append(now[0])

    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(checkpoint, "atomic_save", slow)
    run = start(config)
    while now[0] < 2000:
        now[0] += 1
        run.save_state(1)
    assert 20 < saves[0] < 30 and 0.015 < 4 * len(saves) / now[0] < 0.025


def moved(config, folder, **changes):
    """Move all files of a run to another folder, and name them there."""
    old = Path(config.out).parents[1]
    folder.mkdir()
    for file in ("out", "demos.jsonl", "base.pt"):
        (old / file).rename(folder / file)
    return replace(config, out=f"{folder}/out/sft.pt", init=f"{folder}/base.pt", **changes)


@pytest.fixture
def based(config, tmp_path):
    (tmp_path / "base.pt").write_bytes(b"weights")
    return replace(config, init=f"{tmp_path}/base.pt")


def test_a_finished_run_removes_its_state_and_is_finished_in_any_folder_with_the_same_flags(
        based, tmp_path, capsys, tiny_tokenizer, refused):
    run = start(based)
    for _ in run.steps():
        pass
    size = GPTConfig(block_size=8, vocab_size=tiny_tokenizer.vocab_size, n_layer=1, n_embd=16)
    run.finish("sft", GPT(size), tiny_tokenizer)
    assert sorted(os.listdir(Path(based.out).parent)) == [".sft.lock", "sft.jsonl", "sft.pt"]
    before = Path(based.out).read_bytes()
    assert "--lr=0.001 there, 0.5 here" in refused(start, replace(based, lr=0.5))
    assert Path(based.out).read_bytes() == before
    for there in (False, True):
        with pytest.raises(SystemExit) as end:
            start(moved(based, tmp_path / "there") if there else replace(based, debug=True))
        said = capsys.readouterr().out
        assert end.value.code == 0 and "is finished; --fresh makes it again" in said


@pytest.mark.parametrize("change, world, said", [
    (dict(lr=0.5), {}, "--lr=0.001 there, 0.5 here"),
    (dict(steps=20), {}, "--steps=10 there, 20 here"),
    (dict(dropout=0.0), {}, "--dropout=0.1 there, 0.0 here"),
    (dict(dtype="bfloat16"), dict(dtype=torch.bfloat16), "--dtype=float32 there, bfloat16 here"),
    ({}, dict(world_size=2), "--processes=1 there, 2 here")], ids=str)
def test_a_run_with_other_flags_or_processes_is_refused(config, interrupted, refused, change, world,
                                                        said):
    line = refused(start, replace(config, **change), env(**world))
    assert said in line and "--fresh starts over, --out=... keeps both" in line


def test_an_interrupted_run_goes_on_in_another_folder_but_not_with_other_files_or_flags(
        based, tmp_path, refused):
    start(based).save_state(4)
    there = moved(based, tmp_path / "there")
    assert start(there).start == 4
    assert "--lr=0.001 there" in refused(start, replace(there, lr=0.5))
    was = f"--init=base.pt {fingerprint(there.init)} there, "
    assert f"{was} here" in refused(start, replace(there, init=""))
    Path(there.init).write_bytes(b"others")
    assert f"{was}base.pt {fingerprint(there.init)} here" in refused(start, there)


@pytest.mark.parametrize("old, new, same", [
    ("a/x.py:f", "b/x.py:f", True), ("a/x.py:f", "b/x.py:g", False), ("a/x.py", "b/x.py", True),
    ("a/x.py", "b/y.py", False), ("a/x.py", "", False), ("a/x.py", "b/x", False), (1, 1, True)])
def test_a_flag_that_names_files_counts_by_what_is_in_them(old, new, same):
    before, here = (Run.known(SimpleNamespace(inputs={f"{a}/x.py": "1", f"{a}/y.py": "2"}), value)
                    for a, value in (("a", old), ("b", new)))
    assert (before == here) == same


@pytest.mark.parametrize("dtype, auto", [("auto", torch.bfloat16), ("float32", torch.float32)])
def test_a_run_goes_on_in_the_dtype_that_it_started_in_whatever_auto_is_here(config, interrupted,
                                                                             dtype, auto):
    elsewhere = env(dtype=auto)
    run = start(replace(config, dtype=dtype), elsewhere)
    assert run.start == 4 and elsewhere.dtype == torch.float32
    assert run.flags["dtype"] == "float32"


def test_other_ranks_write_nothing(config):
    run = start(config, env(main=False, world_size=2))
    run.log(1, dict(loss=1.0))
    run.save_state(1)
    assert not list(Path(config.out).parent.glob("*"))


def test_ctrl_c_saves_after_the_step_and_ends_with_130(config, monkeypatch, capsys):
    monkeypatch.setenv("SAVE_SECONDS", "1000")
    run, done = start(config), []
    run.track(done=done)
    with pytest.raises(SystemExit) as end:
        for step in run.steps():
            done.append(step)
            if step == 2:
                signal.raise_signal(signal.SIGINT)
    assert end.value.code == 130 and "stopped after step 3" in capsys.readouterr().out
    again, found = start(config), []
    again.track(done=found)
    assert found == [0, 1, 2] and next(again.steps()) == 3
    again.config = replace(config, fresh=True)        # --fresh would start over
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(SystemExit):
        again.save_state(3)
    assert "without --fresh" in capsys.readouterr().out


def test_a_second_ctrl_c_does_not_wait(config):
    start(config)
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


# ---- what a state holds ---------------------------------------------------------------------

@pytest.mark.parametrize("stage", ["sft", "reward", "rlhf_ppo"])
def test_a_stopped_stage_with_lora_keeps_what_it_trains_alone_and_ends_with_the_same_bits(
        tmp_path, tiny_tokenizer, stage):
    folder = tiny.build(tmp_path, tiny_tokenizer)
    flags = [*tiny.FLAGS[stage].split(), "--steps=3", "--lora=2"]
    assert tiny.run(folder, stage, *flags, "--out=whole.pt")[0] == 0
    assert tiny.interrupted(folder, stage, 2, *flags, "--out=parts.pt") == 130
    state = torch.load(folder / "parts.state", weights_only=True)
    for name in state["model"] | state.get("critic", {}):
        assert name.endswith((".A", ".B")) or name.startswith(("head.", "surprise.")), name
    assert tiny.run(folder, stage, *flags, "--out=parts.pt")[0] == 0
    whole, parts = (torch.load(folder / f"{name}.pt", weights_only=True)["model"]
                    for name in ("whole", "parts"))
    assert tiny.equal(whole, parts) and whole["blocks.0.mlp.fc.weight" if stage != "reward" else
                                              "gpt.blocks.0.mlp.fc.weight"].any()
