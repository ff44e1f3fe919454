import json
import math
import os
import pickle
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import common
from common import (Run, Setup, atomic_save, clock, fingerprint, load_checkpoint, number, one_line,
                    parse_config, pick_dtype, save_checkpoint)
from model import GPT, GPTConfig

ROOT = Path(common.__file__).parent


@dataclass
class Config:
    out: str = "out/sft.pt"    # the file to write
    steps: int = 10            # optimizer steps
    batch_size: int = 8
    lr: float = 1e-3
    dropout: float = 0.1       # a share
    floor: float = 0.0
    compile: str = "auto"
    device: str = "cpu"
    dtype: str = "float32"
    fresh: bool = False
    debug: bool = False        # show tracebacks


@pytest.fixture(autouse=True)
def undo(monkeypatch):
    """What parse_config and Run change in the whole process."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    ctrl_c = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, ctrl_c)


@pytest.fixture
def refused(capsys):
    """refused(f, …) calls f, which must end with status 1 and one line on stderr: that line."""
    def call(f, *args, **kwargs):
        with pytest.raises(SystemExit) as end:
            f(*args, **kwargs)
        said = capsys.readouterr().err
        assert end.value.code == 1 and said.count("\n") == 1
        return said
    return call


# ---------------------------------------------------------------------------------------------
# flags

@pytest.mark.parametrize("line, name, value", [
    ("--steps=3", "steps", 3), ("--steps 3", "steps", 3), ("--steps=2e3", "steps", 2000),
    ("--lr=1e-4", "lr", 1e-4), ("--lr 1e-4", "lr", 1e-4), ("--floor -1", "floor", -1.0),
    ("--dropout=0", "dropout", 0.0), ("--dropout 0", "dropout", 0.0), ("--lr=3", "lr", 3.0),
    ("--out=a=b.pt", "out", "a=b.pt"), ("--out=", "out", ""),
    ("--compile=false", "compile", "false"),
    ("--fresh", "fresh", True), ("--fresh --steps=3", "fresh", True),
    ("--fresh=true", "fresh", True), ("--fresh true", "fresh", True), ("--fresh=1", "fresh", True),
    ("--fresh=False", "fresh", False), ("--fresh=no", "fresh", False),
    ("--fresh=0", "fresh", False), ("--fresh false", "fresh", False),
    ("--batch-size=4", "batch_size", 4), ("--batch_size=4", "batch_size", 4),
    ("--steps=1 --steps=2", "steps", 2), ("", "steps", 10)])
def test_a_flag_sets_its_field_and_keeps_its_type(line, name, value):
    got = getattr(parse_config(Config, "", line.split()), name)
    assert got == value and type(got) is type(value)


def test_fields_without_a_flag_keep_their_defaults():
    assert parse_config(Config, "", ["--steps=3"]) == Config(steps=3)


@pytest.mark.parametrize("line, reason", [
    ("--step=3", "did you mean --steps"), ("--warmup=3", "unknown flag --warmup"),
    ("steps=3", "unknown flag steps"), ("3", "unknown flag 3"), ("--=3", "unknown flag"),
    ("--steps=three", "--steps=three is not int"), ("--steps=1.5", "--steps=1.5 is not int"),
    ("--steps=15e-1", "--steps=15e-1"), ("--steps=1e999", "--steps=1e999"), ("--steps=", "--steps"),
    ("--lr=fast", "--lr=fast is not float"), ("--lr=nan", "--lr=nan"),
    ("--fresh=maybe", "--fresh=maybe is not true or false"),
    ("--steps", "--steps needs a value"), ("--steps --lr=1", "--steps needs a value")])
def test_a_wrong_flag_ends_in_one_line_that_names_it(line, reason, refused):
    assert reason in refused(parse_config, Config, "", line.split())


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_is_the_docstring_and_the_class_with_its_comments(flag, capsys):
    with pytest.raises(SystemExit) as end:
        parse_config(Config, "Stage 9 of 4.", [flag])
    said = capsys.readouterr().out
    assert end.value.code == 0 and "Stage 9 of 4." in said
    assert "steps: int = 10            # optimizer steps" in said


@pytest.mark.parametrize("error, said", [
    (ValueError("line 3:\n  not JSON"), "line 3: not JSON"), (OSError("disk full"), "disk full"),
    (KeyError("model"), "KeyError: 'model' (--debug=true shows where)"),
    (KeyboardInterrupt(), "KeyboardInterrupt")])
def test_an_uncaught_error_is_shown_in_one_line(error, said, capsys):
    one_line(type(error), error, None)
    shown = capsys.readouterr().err
    assert said in shown and shown.count("\n") == 1


def test_debug_shows_tracebacks_again():
    parse_config(Config, "", ["--steps=3"])
    assert sys.excepthook is one_line
    parse_config(Config, "", ["--debug=true"])
    assert sys.excepthook is sys.__excepthook__


def test_a_script_without_its_checkpoint_says_what_makes_it(tmp_path):
    done = subprocess.run([sys.executable, f"{ROOT}/sft.py"], cwd=tmp_path, capture_output=True,
                          text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "out/pretrain.pt is missing: `python pretrain.py` makes it" in done.stderr


# ---------------------------------------------------------------------------------------------
# devices and ranks

@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_where_there_is_none_is_refused(refused):
    assert "--device=cpu" in refused(Setup, Config(device="cuda"))


def test_an_unknown_precision_is_refused(refused):
    assert "float16" in refused(pick_dtype, "float16", torch.device("cpu"))


def test_random_numbers_follow_from_seed_step_and_rank_alone():
    def draw(*numbers, rank=0):
        env.rank = rank
        env.seed(*numbers)
        return torch.rand(4).tolist()

    env = Setup(Config())
    first = draw(0, 7)
    others = [draw(0, 8), draw(1, 7), draw(0, 7, rank=1), draw(7, 0), draw("evaluate")]
    assert draw(0, 7) == first and first not in others
    assert len({tuple(numbers) for numbers in others}) == 5


def test_without_other_ranks_an_average_is_the_value():
    assert Setup(Config()).average(1, torch.tensor(2.5)) == [1.0, 2.5]


# ---------------------------------------------------------------------------------------------
# checkpoints

@pytest.fixture
def saved(tmp_path, tiny_tokenizer):
    """A checkpoint of stage sft; its path."""
    torch.manual_seed(0)
    config = GPTConfig(block_size=8, vocab_size=tiny_tokenizer.vocab_size, n_layer=1, n_embd=16)
    path = tmp_path / "new folder/sft.pt"
    save_checkpoint(path, stage="sft", step=3, metrics=dict(val_loss=1.5), extra=[1, 2],
                    model=GPT(config).bfloat16(), model_config=config, tokenizer=tiny_tokenizer,
                    config=Config(fresh=True),
                    history=[dict(stage="pretrain", config={}, metrics={})])
    return path


def test_a_checkpoint_holds_all_that_is_needed_to_go_on(saved, tiny_tokenizer):
    ckpt = load_checkpoint(saved, "sft", tokenizer=tiny_tokenizer.to_dict())
    assert (ckpt["stage"], ckpt["step"], ckpt["metrics"]) == ("sft", 3, dict(val_loss=1.5))
    assert [entry["stage"] for entry in ckpt["history"]] == ["pretrain", "sft"]
    assert ckpt["config"]["steps"] == 10 and not {"fresh", "debug"} & ckpt["config"].keys()
    assert ckpt["extra"] == [1, 2]
    GPT(GPTConfig(**ckpt["model_config"])).load_state_dict(ckpt["model"])


def test_weights_are_saved_in_full_precision(saved):
    assert {w.dtype for w in load_checkpoint(saved)["model"].values()} == {torch.float32}


@pytest.mark.parametrize("stage", ["sft", ("pretrain", "sft"), None])
def test_a_checkpoint_of_a_stage_that_is_wanted_is_loaded(saved, stage):
    assert load_checkpoint(saved, stage)["stage"] == "sft"


def test_a_missing_checkpoint_is_named_with_what_makes_it(tmp_path, refused):
    said = refused(load_checkpoint, tmp_path / "reward.pt", "reward")
    assert "reward.pt is missing: `python reward.py`" in said


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
def test_a_truncated_checkpoint_is_called_damaged(saved, share, refused):
    saved.write_bytes(saved.read_bytes()[:int(share * saved.stat().st_size)])
    said = refused(load_checkpoint, saved, "sft")
    assert f"{saved} is damaged" in said and "`python sft.py`" in said


@pytest.mark.parametrize("foreign", [
    {"weight": torch.ones(3)}, [1, 2], torch.ones(3), {"stage": "sft"}, {"model_config": {}}])
def test_a_file_of_another_project_is_refused(tmp_path, foreign, refused):
    torch.save(foreign, tmp_path / "theirs.pt")
    said = refused(load_checkpoint, tmp_path / "theirs.pt", "sft")
    assert "theirs.pt is not a checkpoint of this project" in said and "`python sft.py`" in said


@pytest.mark.parametrize("content", [b"", b"\0" * 1000, b"Once upon a time\n",
                                     b"PK\3\4" + b"x" * 99])
def test_a_file_of_another_kind_is_refused(tmp_path, content, refused):
    (tmp_path / "notes.pt").write_bytes(content)
    assert "`python pretrain.py`" in refused(load_checkpoint, tmp_path / "notes.pt", "pretrain")


def test_a_checkpoint_of_the_wrong_stage_is_refused_with_the_one_that_is_needed(saved, refused):
    said = refused(load_checkpoint, saved, "reward")
    assert "'sft'" in said and "`python reward.py`" in said


def test_a_checkpoint_with_another_tokenizer_is_refused(saved, refused):
    from tokenizer import Tokenizer
    other = Tokenizer.train("another text", 262).to_dict()
    assert "another tokenizer" in refused(load_checkpoint, saved, "sft", tokenizer=other)


class Bomb:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("kind", ["torch", "pickle"])
def test_a_checkpoint_that_would_run_code_is_refused_and_runs_none(tmp_path, kind, refused,
                                                                    recwarn):
    path, bomb = tmp_path / "bomb.pt", dict(stage="sft", model=Bomb(tmp_path / "exploded"))
    torch.save(bomb, path) if kind == "torch" else path.write_bytes(pickle.dumps(bomb))
    assert "bomb.pt" in refused(load_checkpoint, path, "sft")
    assert not (tmp_path / "exploded").exists()
    assert not recwarn.list                           # warnings would be further lines


@pytest.mark.parametrize("moment", ["write", "rename"])
def test_a_save_that_fails_half_way_leaves_the_old_file(tmp_path, monkeypatch, moment):
    def full(*args):
        if moment == "write":
            args[1].write(b"half")
        raise OSError("No space left on device")

    path = tmp_path / "sft.pt"
    atomic_save(dict(step=1), path)
    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(*{"write": (torch, "save"), "rename": (os, "replace")}[moment], full)
        atomic_save(dict(step=2), path)
    assert torch.load(path) == dict(step=1)
    atomic_save(dict(step=3), path)
    assert torch.load(path) == dict(step=3)
    assert os.listdir(tmp_path) == ["sft.pt"]


# ---------------------------------------------------------------------------------------------
# fingerprints

@pytest.fixture
def texts(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("one\n" * 10)
    (folder / "b.txt").write_text("two\n" * 10)
    return folder


@pytest.mark.parametrize("change", [
    lambda f: (f / "a.txt").write_text("uno\n" * 10),
    lambda f: (f / "b.txt").write_text("two\n" * 11),
    lambda f: (f / "c.txt").write_text("three"), lambda f: (f / "b.txt").unlink(),
    lambda f: (f / "b.txt").rename(f / "z.txt")], ids=["content", "size", "new", "gone", "renamed"])
def test_a_folders_fingerprint_changes_with_its_files(texts, change):
    before = fingerprint(texts), fingerprint(f"{texts}/a.txt, {texts}/b.txt")
    change(texts)
    assert fingerprint(texts) != before[0]


@pytest.mark.parametrize("place", [0, 1_500_000, 2_999_999])
def test_a_files_fingerprint_changes_with_any_of_its_bytes(tmp_path, place):
    content = bytearray(3_000_000)
    (tmp_path / "a.txt").write_bytes(content)
    before = fingerprint(tmp_path / "a.txt")
    content[place] = 1
    (tmp_path / "a.txt").write_bytes(content)
    assert fingerprint(tmp_path / "a.txt") != before


def test_every_one_of_several_files_counts(texts):
    both = f"{texts}/a.txt,{texts}/b.txt"
    before = fingerprint(both)
    assert fingerprint(f"{texts}/a.txt, {texts}/b.txt") == before
    (texts / "b.txt").write_text("two, but otherwise")
    assert fingerprint(both) != before


def test_a_copy_elsewhere_has_the_same_fingerprint(texts, tmp_path):
    shutil.copytree(texts, tmp_path / "copy")
    assert fingerprint(tmp_path / "copy") == fingerprint(texts)


# ---------------------------------------------------------------------------------------------
# runs

ENV = SimpleNamespace(main=True, world_size=1, any=lambda *flags: flags, close=lambda: None)


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("SAVE_SECONDS", "0")
    (tmp_path / "demos.jsonl").write_text("{}")
    return Config(out=str(tmp_path / "out/sft.pt"))


def start(config, env=ENV):
    return Run(config, env, inputs=[f"{Path(config.out).parents[1]}/demos.jsonl", ""])


@pytest.fixture
def interrupted(config):
    """A run that left its state at step 4: a model, a number, a log."""
    torch.manual_seed(0)
    run, model = start(config), torch.nn.Linear(2, 2)
    for step in (2, 4):
        run.log(step, dict(loss=1 / step))
        run.save_state(step, model=model, beta=0.1 * step)
    run.log(6, dict(loss=1 / 6))
    return model


def test_a_first_run_starts_at_the_beginning(config):
    run = start(config)
    assert run.state is None and run.start == 0


def test_an_interrupted_run_goes_on_with_its_state(config, interrupted, capsys):
    run = start(config)
    assert run.start == 4 and run.state["beta"] == 0.4
    assert torch.equal(run.state["model"]["weight"], interrupted.weight)
    assert "resuming from 4 of 10" in capsys.readouterr().out


def test_its_log_loses_the_lines_that_will_be_written_again(config, interrupted):
    log = Path(config.out).with_suffix(".jsonl")
    with open(log, "a") as f:
        f.write('{"step": 4, "lo')                    # the power went
    start(config).log(6, dict(loss=1 / 7))
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [2, 4, 6]


def test_the_state_is_not_written_more_often_than_asked(config, monkeypatch):
    monkeypatch.setenv("SAVE_SECONDS", "1000")
    run = start(config)
    run.save_state(1, beta=0.1)
    assert not Path(config.out).with_suffix(".state").exists()


def test_saving_costs_a_fiftieth_of_the_time_at_most(config, monkeypatch):
    monkeypatch.setenv("SAVE_SECONDS", "20")
    now, saves = [0.0], []

    def slow(*_):
        now[0] += 4
        saves.append(now[0])

    monkeypatch.setattr(common.time, "time", lambda: now[0])
    monkeypatch.setattr(common, "atomic_save", slow)
    run = start(config)
    while now[0] < 2000:
        now[0] += 1
        run.save_state(1)
    assert saves[0] < 30 and 0.015 < 4 * len(saves) / now[0] < 0.025


def finish(config, run, tokenizer):
    size = GPTConfig(block_size=8, vocab_size=tokenizer.vocab_size, n_layer=1, n_embd=16)
    save_checkpoint(config.out, stage="sft", step=10, metrics={}, model=GPT(size),
                    model_config=size, tokenizer=tokenizer, config=config, history=[],
                    run=run.identity())
    run.finish()


def test_a_finished_run_removes_its_state_and_says_so_when_started_again(config, capsys,
                                                                         tiny_tokenizer):
    run = start(config)
    run.save_state(10, beta=1)
    finish(config, run, tiny_tokenizer)
    assert sorted(os.listdir(Path(config.out).parent)) == ["sft.jsonl", "sft.pt"]
    with pytest.raises(SystemExit) as end:
        start(replace(config, debug=True))
    assert end.value.code == 0 and "is finished; --fresh makes it again" in capsys.readouterr().out


@pytest.mark.parametrize("change", [dict(lr=0.5), dict(steps=20), dict(dropout=0.0)])
def test_a_run_with_other_flags_is_refused(config, interrupted, change, refused):
    (name, value), = change.items()
    said = refused(start, replace(config, **change))
    assert f"--{name}={getattr(config, name)} there, {value} here" in said and "--fresh" in said


def test_a_finished_run_with_other_flags_is_refused(config, tiny_tokenizer, refused):
    finish(config, start(config), tiny_tokenizer)
    before = Path(config.out).read_bytes()
    assert "--lr=0.001 there, 0.5 here" in refused(start, replace(config, lr=0.5))
    assert Path(config.out).read_bytes() == before


def test_a_run_on_other_data_is_refused(config, interrupted, tmp_path, refused):
    (tmp_path / "demos.jsonl").write_text("{...}")
    assert "demos.jsonl has changed" in refused(start, config)


def test_a_run_on_another_number_of_processes_is_refused(config, interrupted, refused):
    assert "processes" in refused(start, config, SimpleNamespace(main=True, world_size=2))


def test_a_result_that_this_script_did_not_make_is_not_replaced(config, saved, refused):
    Path(config.out).parent.mkdir()
    shutil.copy(saved, config.out)
    assert "--fresh" in refused(start, config)


def test_a_damaged_state_is_refused_with_the_remedy(config, interrupted, refused):
    state = Path(config.out).with_suffix(".state")
    state.write_bytes(state.read_bytes()[:-100])
    said = refused(start, config)
    assert f"{state} is damaged" in said and "--fresh" in said


def test_fresh_starts_over(config, interrupted):
    run = start(replace(config, fresh=True))
    assert run.state is None and run.start == 0
    run.log(2, dict(loss=0.5))
    assert Path(config.out).with_suffix(".jsonl").read_text() == '{"step": 2, "loss": 0.5}\n'


def test_the_name_of_the_result_must_be_that_of_a_checkpoint(config, refused):
    assert "should end in .pt" in refused(start, replace(config, out="out/sft.jsonl"))


def test_other_ranks_write_nothing(config):
    run = start(config, SimpleNamespace(**{**vars(ENV), "main": False, "world_size": 2}))
    run.log(1, dict(loss=1.0))
    run.save_state(1, beta=0.1)
    assert not list(Path(config.out).parent.glob("*"))


def test_ctrl_c_saves_after_the_step_and_ends_with_130(config, monkeypatch, capsys):
    monkeypatch.setenv("SAVE_SECONDS", "1000")
    run = start(config)
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(SystemExit) as end:
        run.save_state(3, beta=0.3)
    assert end.value.code == 130 and "stopped after step 3" in capsys.readouterr().out
    assert start(config).state["beta"] == 0.3


def test_ctrl_c_in_a_fresh_run_says_that_it_goes_on_without_fresh(config, capsys):
    run = start(replace(config, fresh=True))
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(SystemExit):
        run.save_state(3, beta=0.3)
    assert "without --fresh" in capsys.readouterr().out


def test_a_second_ctrl_c_does_not_wait(config):
    start(config)
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


# ---------------------------------------------------------------------------------------------
# what people read

@pytest.mark.parametrize("value, text", [
    (1234567, "1.23M"), (0.00123, "1.2e-03"), (0.5, "0.500"), (12, "12"), (None, "None"),
    (0.0, "0.000"), (-2.25, "-2.250"), (123456, "123.5k"), (math.nan, "nan")])
def test_a_number_is_short_whatever_its_size(value, text):
    assert number(value).strip() == text


@pytest.mark.parametrize("seconds, text", [(0, "0:00"), (61.7, "1:01"), (3600, "60:00")])
def test_a_time_is_shown_in_minutes_and_seconds(seconds, text):
    assert clock(seconds) == text
