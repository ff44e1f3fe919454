import json
import math
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import checkpoint
import tiny
from checkpoint import Run, fingerprint
from model import GPT, GPTConfig


# ---- fingerprints ---------------------------------------------------------------------------

@pytest.mark.parametrize("change, same", [
    (lambda f: (f / "a.txt").write_text("uno\n" * 10), False),
    (lambda f: (f / "b.txt").write_text("two\n" * 11), False),
    (lambda f: (f / "c.txt").write_text("three"), False),
    (lambda f: (f / "b.txt").unlink(), False),
    (lambda f: (f / "b.txt").rename(f / "z.txt"), False),
    (lambda f: (f / "notes.md").write_bytes(b"\0"), True),
    pytest.param(lambda f: (f / os.fsdecode(b"caf\xe9.txt")).write_text("not UTF-8"), False,
                 marks=pytest.mark.skipif(sys.platform != "linux", reason="has no such names"))],
    ids="content size new gone renamed unread not-utf8".split())
def test_the_fingerprint_of_a_folder_changes_with_the_files_that_are_read(tmp_path, change, same):
    for name, text in (("a.txt", "one\n"), ("b.txt", "two\n")):
        (tmp_path / name).write_text(text * 10)
    before = fingerprint(tmp_path)
    change(tmp_path)
    assert (fingerprint(tmp_path) == before) == same


def test_a_files_fingerprint_changes_with_any_of_its_bytes_and_not_with_its_place():
    found, content = [], bytearray(3_000_000)
    for n, place in enumerate((0, 1_500_000, 2_999_999)):
        content[place] = 1
        found += [fingerprint(tiny.write(f"{n}{folder}/a.txt", bytes(content))) for folder in "ab"]
    assert found[::2] == found[1::2] and len(set(found)) == 3


def test_every_one_of_several_files_counts():
    tiny.write("a.txt", "one"), tiny.write("b.txt", "two")
    before = fingerprint("a.txt,b.txt")
    assert fingerprint("a.txt, b.txt") == before
    tiny.write("b.txt", "uno")
    assert fingerprint("a.txt,b.txt") != before


# ---- runs -----------------------------------------------------------------------------------

@dataclass
class Config:
    out: str = "here/out/sft.pt"
    init: str = "here/base.pt"
    reward: str = "here/mine.py:f"
    steps: int = 10
    lr: float = 1e-3
    dropout: float = 0.1
    seed: int = 0
    dtype: str = "auto"
    fresh: bool = False
    debug: bool = False


LOG = Path("here/out/sft.jsonl")


def env(**changes):
    """A Runtime without ranks and devices."""
    return SimpleNamespace(**dict(
        main=True, world_size=1, dtype=torch.float32, barrier=lambda: None, sharded=False,
        sum=lambda *values: values, close=lambda: None, peak_memory=lambda: 0,
        seed=lambda *numbers: None) | changes)


def start(config=Config(), env=env()):
    folder = Path(config.out).parents[1]
    return Run(config, env, inputs=[f"{folder}/demos.jsonl", config.init, config.reward])


@pytest.fixture(autouse=True)
def inputs(monkeypatch):
    monkeypatch.setenv("SAVE_SECONDS", "0")
    for name in ("demos.jsonl", "base.pt", "mine.py"):
        tiny.write(f"here/{name}", "{}")


@pytest.fixture
def interrupted():
    """A run that left its state at step 4: a model, a number, a log."""
    torch.manual_seed(0)
    run, model, seen = start(), torch.nn.Linear(2, 2), []
    run.track(model=model, seen=seen)
    for step in (2, 4):
        run.log(step, dict(loss=1 / step))
        seen.append(step)
        run.save_state(step)
    run.log(6, dict(loss=1 / 6))
    return model


def test_an_interrupted_run_goes_on_with_its_state_and_a_fresh_one_starts_over(interrupted, capsys):
    run, model, seen = start(), torch.nn.Linear(2, 2), []
    run.track(model=model, seen=seen)
    assert run.start == 4 and seen == [2, 4] and torch.equal(model.weight, interrupted.weight)
    assert "resuming from step 4" in capsys.readouterr().out
    run = start(Config(fresh=True))
    assert run.state == {} and next(run.steps()) == 0
    run.log(2, dict(loss=0.5))
    assert LOG.read_text() == '{"step": 2, "loss": 0.5}\n'


@pytest.mark.parametrize("log, steps", [
    ('{"step": 2}\n{"step": 4}\n{"step": 6}\n{"step": 4, "lo', [2, 4]),   # 6 will be done again
    ('{"step": 2}\n\0\0\0\0\n{"step": 3, "l\n{"step": 4}\n', [2, 4]), ("\0" * 99, []),
    ("\0" * 99 + "\n", []), ('{"step": 2, "lo', []), ('ep": 1}\n{"step": 2}\n', [2]),
    ('{"step": 2}\n[]\n3\n{"loss": 1}\n"step"\n{"step": 4, "loss": 1', [2])])
def test_a_log_that_a_power_cut_has_damaged_keeps_its_sound_lines(interrupted, log, steps):
    LOG.write_text(log)
    run = start()
    assert LOG.read_text() == log                     # a run that is refused changes nothing
    assert next(run.steps()) == 4
    run.log(6, dict(loss=1.0))
    assert [row["step"] for row in checkpoint.read_log(LOG)] == [*steps, 6]
    json.loads(LOG.read_text().splitlines()[-1])


def test_the_broken_lines_of_a_log_are_named_once(capsys):
    log = tiny.write("sft.jsonl", '{"step": 2}\n\0\n{"step": 3, "l\n{"step": 4}\n{"ste')
    for _ in range(2):
        assert len(checkpoint.read_log(log)) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "sft.jsonl: 2 broken lines are skipped" in said


@pytest.mark.parametrize("text", ['{"prompt": "Hi"}\n', "Once upon a time", '{"steps": 1}\n'])
def test_a_file_of_the_users_is_no_log(text, refused):
    tiny.write(LOG, text)
    assert "is no log" in refused(start) and LOG.read_text() == text


def test_a_figure_that_is_not_finite_is_told_without_guessing_why(refused):
    said = refused(start().log, 2, dict(loss=1.0, val_loss=math.nan))
    assert "val_loss is nan at step 2; the same command goes on" in said and "smaller" not in said


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a full disk")
def test_a_disk_that_is_full_when_a_line_is_logged_is_named(monkeypatch):
    run = start()
    run.log(1, dict(loss=1.0))
    monkeypatch.setattr(checkpoint, "open", lambda *_, **how: open("/dev/full", "a", **how),
                        raising=False)
    with pytest.raises(OSError, match="sft.jsonl could not be written .No space left on device.: "
                                      "make room"):
        run.log(2, dict(loss=1.0))


def test_saves_are_as_rare_as_asked_and_cost_a_fiftieth_of_the_time_at_most(monkeypatch):
    monkeypatch.setenv("SAVE_SECONDS", "20")
    now, saves = [0.0], []

    def slow(*_):
        now[0] += 4
        saves.append(now[0])

    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(checkpoint, "atomic_save", slow)
    run = start()
    while now[0] < 2000:
        now[0] += 1
        run.save_state(1)
    assert 20 < saves[0] < 30 and 0.015 < 4 * len(saves) / now[0] < 0.025


# ---- other flags, other files, another folder -----------------------------------------------

def moved():
    """Move all files of a run to another folder; the flags that name them there."""
    Path("here").rename("there")
    return Config(out="there/out/sft.pt", init="there/base.pt", reward="there/mine.py:f")


def test_a_finished_run_removes_its_state_and_is_finished_in_any_folder_with_the_same_flags(
        capsys, tiny_tokenizer, refused):
    run = start()
    for _ in run.steps():
        pass
    size = GPTConfig(block_size=8, vocab_size=tiny_tokenizer.vocab_size, n_layer=1, n_embd=16)
    run.finish("sft", GPT(size), tiny_tokenizer)
    assert sorted(os.listdir("here/out")) == [".sft.lock", "sft.jsonl", "sft.pt"]
    before = Path("here/out/sft.pt").read_bytes()
    assert "--lr=0.001 there, 0.5 here" in refused(start, Config(lr=0.5))
    assert Path("here/out/sft.pt").read_bytes() == before
    for config in (lambda: Config(debug=True), moved):
        with pytest.raises(SystemExit) as end:
            start(config())
        said = capsys.readouterr().out
        assert end.value.code == 0 and "is finished; --fresh makes it again" in said


def hashed(path):
    return f"{Path(path).name} {fingerprint(path)}"


@pytest.mark.parametrize("change, world, said", [
    (dict(lr=0.5), {}, "--lr=0.001 there, 0.5 here"),
    (dict(steps=20), {}, "--steps=10 there, 20 here"),
    (dict(dropout=0.0), {}, "--dropout=0.1 there, 0.0 here"),
    (dict(dtype="bfloat16"), dict(dtype=torch.bfloat16), "--dtype=float32 there, bfloat16 here"),
    ({}, dict(world_size=2), "--processes=1 there, 2 here"),
    (dict(init=""), {}, "--init={base.pt} there,  here"),
    (dict(init="here/demos.jsonl"), {}, "--init={base.pt} there, {demos.jsonl} here"),
    (dict(reward="here/mine.py:g"), {}, "--reward={mine.py:f} there, {mine.py:g} here")], ids=str)
def test_a_run_with_other_flags_files_or_processes_is_refused(interrupted, refused, change, world,
                                                              said):
    for name in ("base.pt", "demos.jsonl", "mine.py:f", "mine.py:g"):
        said = said.replace(f"{{{name}}}", hashed(f"here/{name}"))
    line = refused(start, Config(**change), env(**world))
    assert said in line and "--fresh starts over, --out=... keeps both" in line


@pytest.mark.parametrize("flag, name", [("init", "base.pt"), ("reward", "mine.py:f")])
def test_an_interrupted_run_goes_on_in_another_folder_but_not_when_a_file_has_changed(
        interrupted, refused, flag, name):
    before, there = hashed(f"here/{name}"), moved()
    assert start(there).start == 4
    tiny.write(f"there/{name.removesuffix(':f')}", "others")
    after = hashed(f"there/{name}")
    assert f"--{flag}={before} there, {after} here" in refused(start, there)


@pytest.mark.parametrize("dtype, auto", [("auto", torch.bfloat16), ("float32", torch.float32)])
def test_a_run_goes_on_in_the_dtype_that_it_started_in_whatever_auto_is_here(interrupted, dtype,
                                                                             auto):
    elsewhere = env(dtype=auto)
    run = start(Config(dtype=dtype), elsewhere)
    assert run.start == 4 and elsewhere.dtype == torch.float32
    assert run.flags["dtype"] == "float32"


def test_other_ranks_write_nothing():
    run = start(env=env(main=False, world_size=2))
    run.log(1, dict(loss=1.0))
    run.save_state(1)
    assert not list(Path("here/out").glob("*"))


# ---- Ctrl-C ---------------------------------------------------------------------------------

def test_ctrl_c_saves_after_the_step_and_ends_with_130(monkeypatch, capsys):
    monkeypatch.setenv("SAVE_SECONDS", "1000")
    run, done = start(), []
    run.track(done=done)
    with pytest.raises(SystemExit) as end:
        for step in run.steps():
            done.append(step)
            if step == 2:
                signal.raise_signal(signal.SIGINT)
    assert end.value.code == 130 and "stopped after step 3" in capsys.readouterr().out
    again, found = start(), []
    again.track(done=found)
    assert found == [0, 1, 2] and next(again.steps()) == 3
    again.config = Config(fresh=True)                 # --fresh would start over
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(SystemExit):
        again.save_state(3)
    assert "without --fresh" in capsys.readouterr().out


def test_a_second_ctrl_c_does_not_wait():
    start()
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("stage", ["sft", "reward", "rlhf_ppo"])
def test_a_stopped_stage_with_lora_keeps_what_it_trains_alone_and_ends_with_the_same_bits(
        folder, stage):
    flags = [*tiny.FLAGS[stage].split(), "--steps=3", "--lora=2"]
    assert tiny.run(folder, stage, *flags, f"--out=whole_{stage}.pt")[0] == 0
    flags.append(f"--out=parts_{stage}.pt")
    assert tiny.interrupted(folder, stage, 2, *flags) == 130
    state = torch.load(folder / f"parts_{stage}.state", weights_only=True)
    for name in state["model"] | state.get("critic", {}):
        assert name.endswith((".A", ".B")) or name.startswith(("head.", "surprise.")), name
    assert tiny.run(folder, stage, *flags)[0] == 0
    whole, parts = (torch.load(folder / f"{name}_{stage}.pt", weights_only=True)["model"]
                    for name in ("whole", "parts"))
    matrix = "gpt." * (stage == "reward") + "blocks.0.mlp.fc.weight"
    assert tiny.equal(whole, parts) and whole[matrix].any()


# ---- what a training loop asks of its run ---------------------------------------------------

def test_the_steps_are_all_that_are_left_each_with_its_own_seed():
    seeds = []
    run = start(env=env(seed=lambda *numbers: seeds.append(numbers)))
    run.start = 7
    assert list(run.steps()) == [7, 8, 9]
    assert seeds == [(0, 7), (0, 8), (0, 9)]


def test_steps_of_several_things_end_where_the_things_end():
    run = start()
    ends = [(begin, run.step) for begin in run.steps(total=10, by=4)]
    assert ends == [(0, 4), (4, 8), (8, 10)]


def test_a_step_is_due_every_so_often_and_at_the_end():
    run = start()
    assert [step + 1 for step in run.steps() if run.due(4)] == [4, 8, 10]


TWO_RANKS = dict(world_size=2, sum=lambda *values: [2 * float(v) for v in values])    # that agree


def test_what_was_added_is_averaged_over_steps_and_ranks_and_then_forgotten():
    run, found = start(env=env(**TWO_RANKS)), []
    for step in run.steps():
        for part in (1.0, 3.0):                       # two micro-batches
            run.add(loss=torch.tensor(part * (step + 1)), tokens=5)
        if run.due(5):
            found.append(run.averages())
    assert [row["loss"] for row in found] == [4 * 3, 4 * 8]           # 1 to 5, 6 to 10 on average


@pytest.mark.parametrize("passed", [2, 0])            # a coarse clock stands still
def test_tokens_are_counted_per_second_that_is_not_paused_and_the_rest_takes_as_long_as_this_half(
        monkeypatch, capsys, passed):
    run = start(env=env(**TWO_RANKS))
    now = SimpleNamespace(time=run.clock)
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: now.time)
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
    run.log(5, row)                                   # of 10
    assert f"eta 1:{40 + passed}" in capsys.readouterr().out
