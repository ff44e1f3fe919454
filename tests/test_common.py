import errno
import io
import math
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch

import common
from common import (Cores, Runtime, clock, fail, from_json, number, one_line, parse_config,
                    pick_dtype, read_json, say, to_json, writing)

ROOT = Path(common.__file__).parent


@dataclass
class Config:
    out: str = "out/sft"       # the file to write
    init: str = "a.pt"         # may be empty
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


# ---- flags ----------------------------------------------------------------------------------

@pytest.mark.parametrize("line, name, value", [
    ("--steps=3", "steps", 3), ("--steps 3", "steps", 3), ("--steps=2e3", "steps", 2000),
    ("--lr=1e-4", "lr", 1e-4), ("--lr 1e-4", "lr", 1e-4), ("--floor -1", "floor", -1.0),
    ("--dropout=0", "dropout", 0.0), ("--dropout 0", "dropout", 0.0), ("--lr=3", "lr", 3.0),
    ("--out=a=b.pt", "out", "a=b.pt"), ("--init=", "init", ""),
    ("--compile=false", "compile", "false"),
    ("--fresh", "fresh", True), ("--fresh --steps=10", "fresh", True),
    ("--fresh=true", "fresh", True), ("--fresh true", "fresh", True), ("--fresh=1", "fresh", True),
    ("--fresh=False", "fresh", False), ("--fresh=no", "fresh", False),
    ("--fresh=0", "fresh", False), ("--fresh false", "fresh", False),
    ("--steps=1 --steps=2", "steps", 2), ("", "steps", 10)])
def test_a_flag_sets_its_field_alone_and_keeps_its_type(line, name, value):
    config = parse_config(Config, "", line.split())
    assert config == replace(Config(), **{name: value})
    assert type(getattr(config, name)) is type(value)


@pytest.mark.parametrize("line, fresh, out", [
    ("14 --fresh", True, "14"), ("a.jsonl --fresh=no b", False, "a.jsonl,b"),
    ("--fresh --steps 3 a", True, "a")])
def test_words_stand_among_flags_where_a_command_takes_words(line, fresh, out):
    config = parse_config(Config, "", line.split(), words="out")
    assert (config.fresh, config.out) == (fresh, out)


@pytest.mark.parametrize("line, reason", [
    ("--step=3", "did you mean --steps"), ("--warmup=3", "unknown flag --warmup"),
    ("steps=3", "unknown flag steps"), ("3", "unknown flag 3"), ("--=3", "unknown flag"),
    ("--steps=three", "--steps=three is not int"), ("--steps=1.5", "--steps=1.5 is not int"),
    ("--steps=15e-1", "--steps=15e-1"), ("--steps=1e999", "--steps=1e999"), ("--steps=", "--steps"),
    ("--lr=fast", "--lr=fast is not float"), ("--lr=nan", "--lr=nan"),
    ("--fresh=maybe", "--fresh=maybe is not true or false"),
    ("--steps", "--steps: expected one argument"),
    ("--steps --lr=1", "--steps: expected one argument")])
def test_a_wrong_flag_ends_in_one_line_that_names_it(line, reason, refused):
    assert reason in refused(parse_config, Config, "", line.split())


STAGES = {"pretrain", "sft", "reward", "rlhf_ppo"}
SCRIPTS = sorted(str(file.relative_to(ROOT).with_suffix(""))
                 for file in ROOT.glob("**/*.py") if "tests" not in file.parts
                 and 'if __name__ == "__main__"' in (text := file.read_text("utf-8"))
                 and "parse_config(" in text)


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_starts_and_its_help_is_its_docstring_and_its_flags_with_their_comments(
        script, run_script):
    status, said, _ = run_script(script, "-h")
    first = (ROOT / f"{script}.py").read_text("utf-8").partition("\n")[0].strip('"')
    assert status == 0 and first in said and "class Config" in said
    assert re.search("debug: bool = False +# show tracebacks", said)


@pytest.mark.parametrize("error, said", [
    (ValueError("line 3:\n  not JSON"), "line 3: not JSON"), (OSError("disk full"), "disk full"),
    (KeyError("model"), "KeyError: 'model' (--debug=true shows where)"),
    (OSError(errno.ENOSPC, "full", "a.txt"), "a.txt: full"),
    (OSError(errno.EIO, "broken", "a.txt"), "a.txt: broken"),
    (KeyboardInterrupt(), "KeyboardInterrupt (--debug=true shows where)")])
def test_an_uncaught_error_is_shown_in_one_line(error, said, capsys):
    one_line(type(error), error, None)
    shown = capsys.readouterr().err
    assert shown.endswith(f"{said}\n") and shown.count("\n") == 1


def test_debug_shows_tracebacks_again():
    parse_config(Config, "", ["--steps=3"])
    assert sys.excepthook is one_line
    parse_config(Config, "", ["--debug=true"])
    assert sys.excepthook is sys.__excepthook__


# ---- devices and ranks ----------------------------------------------------------------------

@pytest.mark.parametrize("machine, amx, avx512_bf16, arm, native", [
    ("x86_64", True, True, False, True), ("AMD64", False, True, False, True),
    ("x86_64", False, False, True, False), ("aarch64", False, False, True, True)])
def test_auto_is_bf16_where_the_cpu_multiplies_it(monkeypatch, machine, amx, avx512_bf16, arm,
                                                  native):
    monkeypatch.delenv("DTYPE", raising=False)
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr("torch.cpu._is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr("torch.ops.mkldnn._is_mkldnn_bf16_supported", lambda: arm)
    picked = pick_dtype("auto", torch.device("cpu"))
    assert picked == (torch.bfloat16 if native else torch.float32)


@pytest.mark.parametrize("variable, flag, dtype", [
    ("float32", "auto", torch.float32), ("bfloat16", "auto", torch.bfloat16),
    ("bfloat16", "float32", torch.float32), ("float32", "float16", None), ("float8", "auto", None)])
def test_the_environment_says_what_auto_is(monkeypatch, refused, variable, flag, dtype):
    monkeypatch.setenv("DTYPE", variable)
    if dtype:
        assert pick_dtype(flag, torch.device("cpu")) == dtype
    else:
        assert "is not one of auto, float32, bf" in refused(pick_dtype, flag, torch.device("cpu"))


RANK_3 = dict(RANK="3", WORLD_SIZE="4", LOCAL_RANK="3", TORCHELASTIC_RUN_ID="a")


@pytest.mark.parametrize("device, variables, missing", [
    ("cuda", RANK_3, "cuda:3"), ("cuda:2", {}, "cuda:2"), ("abacus", {}, "abacus")])
def test_a_device_that_is_not_there_is_refused(monkeypatch, refused, device, variables, missing):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(common.time, "sleep", lambda seconds: None)
    said = refused(Runtime, Config(device=device))
    assert f"no {missing}; try --device=cpu" in said and "each of its 2 GPUs" in said


def test_variables_that_another_run_left_start_no_second_process(monkeypatch):
    for name, value in dict(RANK="3", WORLD_SIZE="4", LOCAL_RANK="3").items():
        monkeypatch.setenv(name, value)
    rt = Runtime(Config())
    assert (rt.rank, rt.world_size, rt.ddp, rt.main) == (0, 1, False, True)


def test_random_numbers_follow_from_seed_step_and_rank_alone():
    rt, found = Runtime(Config()), []
    for rt.rank, numbers in [(0, (0, 7)), (0, (0, 8)), (0, (1, 7)), (1, (0, 7)), (0, (7, 0)),
                             (0, ("evaluate",)), (0, (0, 7))]:
        rt.seed(*numbers)
        found.append(tuple(torch.rand(4).tolist()))
    assert found[0] == found[-1] and len({*found}) == 6


# ---- files and streams ----------------------------------------------------------------------

def test_two_processes_may_write_one_file_at_the_same_time(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: 1)
    with writing(tmp_path / "result") as first:
        monkeypatch.setattr(os, "getpid", lambda: 2)
        with writing(tmp_path / "result") as second:
            second.write("second")
            first.write("first")
            first.flush()
        assert (tmp_path / "result").read_text() == "second"
    assert (tmp_path / "result").read_text() == "first" and os.listdir(tmp_path) == ["result"]


def test_a_file_that_is_read_only_is_not_replaced(refused):
    Path("result").touch(0o444)
    assert "result is read-only" in refused(writing("result").__enter__)
    assert os.listdir() == ["result"]


def test_an_error_of_another_file_meanwhile_keeps_its_name(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"), writing(tmp_path / "a"):
        open("nowhere")


def test_json_has_null_where_a_number_is_not_finite():
    value = dict(a=[math.nan, (1, -math.inf)], b=np.float32(0.5), c=torch.tensor(math.inf), d=None,
                 e=True, f="NaN", g={1: np.int64(3)})
    text = to_json(value)
    assert text == ('{"a": [null, [1, null]], "b": 0.5, "c": null, "d": null, "e": true, '
                    '"f": "NaN", "g": {"1": 3.0}}')
    assert from_json("[NaN, -Infinity, 1.5]") == [None, None, 1.5]


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_a_character_that_the_terminal_lacks_stops_nothing(encoding, monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding)
    monkeypatch.setattr(sys, "stdout", terminal)
    parse_config(Config, "", [])
    print("\ufffd caf\xe9 \u4f60", flush=True)
    assert b"caf" in terminal.buffer.getvalue()


def test_a_full_disk_for_the_output_stops_no_run_and_hides_no_reason(monkeypatch, refused):
    full = Mock(side_effect=OSError(errno.ENOSPC, "full"))
    with open("spare", "w") as spare:
        monkeypatch.setattr(sys, "stdout", Mock(write=full, flush=full, fileno=spare.fileno))
        say("step 1")
        assert full.called and refused(fail, "the reason").endswith("the reason\n")


@pytest.mark.skipif(sys.platform == "win32", reason="needs bash")
def test_a_reader_that_has_gone_is_no_error():
    done = subprocess.run(["bash", "-c", f"{sys.executable} sft.py -h | head -1"], cwd=ROOT,
                          capture_output=True)
    assert done.stderr == b"" and done.stdout.count(b"\n") == 1


# ---- what people read -----------------------------------------------------------------------

@pytest.mark.parametrize("value, text", [
    (1234567, "1.23M"), (0.00123, "1.2e-03"), (0.5, "0.500"), (12, "12"), (None, "None"),
    (0.0, "0.000"), (-2.25, "-2.250"), (123456, "123.5k"), (math.nan, "nan")])
def test_a_number_is_short_whatever_its_size(value, text):
    assert number(value).strip() == text


@pytest.mark.parametrize("seconds, text", [(0, "0:00"), (61.7, "1:01"), (3600, "60:00")])
def test_a_time_is_shown_in_minutes_and_seconds(seconds, text):
    assert clock(seconds) == text


# ---- scripts under torchrun -----------------------------------------------------------------

@pytest.mark.parametrize("script", SCRIPTS)
def test_only_the_stages_may_run_in_several_processes(script, tmp_path, refused, monkeypatch):
    # a stage misses MASTER_ADDR, and says so instead of waiting for the other processes
    for name, value in RANK_3.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(common.time, "sleep", lambda seconds: None)
    said = refused(script)
    assert ("not with torchrun" in said) == (script not in STAGES)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["", '{"a": [1, ', "[" * 100_000])
def test_a_broken_file_of_ours_is_named(content, refused):
    Path("a.json").write_text(content)
    said = refused(read_json, "a.json")
    assert "a.json is damaged" in said and "remove it, and the same command makes it again" in said


# ---- threads and other programs -------------------------------------------------------------

@pytest.fixture
def machine(monkeypatch):
    """One of 4 cores, at a certain second; other programs use some of the cores."""
    machine = SimpleNamespace(second=0.0, others=0.0, threads=4)
    monkeypatch.setattr(common.sys, "platform", "linux")
    monkeypatch.setattr(common.os, "sched_getaffinity", lambda _: range(4), raising=False)
    monkeypatch.setattr(common.torch, "get_num_threads", lambda: machine.threads)
    monkeypatch.setattr(common.torch, "set_num_threads", lambda n: vars(machine).update(threads=n))
    monkeypatch.setattr(common.time, "monotonic", lambda: machine.second)
    monkeypatch.setattr(common, "cpu_seconds", lambda: (
        4 * machine.second, machine.others * machine.second))
    return machine


def threads(machine, cores, second, others):
    """How many there are at that second, if others have used so many cores until then."""
    machine.second, machine.others, cores.before = second, others, (0, 0)
    cores.share()
    return machine.threads


def test_threads_leave_the_cores_that_others_use(machine, capsys):
    cores, others = Cores(), (0, 0.4, 0.6, 1, 2.1, 3, 9)
    found = [threads(machine, cores, second, n) for second, n in enumerate(others, 1)]
    assert found == [4, 4, 3, 3, 2, 1, 1]
    assert capsys.readouterr().err == "".join(
        f"other programs are busy: computing with {n} of 4 threads until they end\n"
        for n in (3, 2, 1))


def test_threads_are_chosen_once_a_second_and_every_20_seconds_all_are_tried(machine):
    cores = Cores()
    assert [threads(machine, cores, *at) for at in ((1, 3), (1.5, 0), (2, 0))] == [1, 1, 4]
    found = [threads(machine, cores, second, 3) for second in range(3, 43)]
    assert [second for second, n in enumerate(found, 3) if n == 4] == [20, 40]


@pytest.mark.parametrize("limit, most", [
    ("150000 100000\n", 2), ("max 100000\n", 4), ("50000 100000\n", 1)])
def test_a_container_gives_no_more_threads_than_its_share(machine, monkeypatch, limit, most):
    files = {"/sys/fs/cgroup/cpu.max": limit}
    monkeypatch.setattr(common.Path, "read_text", lambda path, _: files[str(path)])
    assert Cores().most == machine.threads == most


def test_one_thread_stays_one(machine, monkeypatch):
    machine.threads = 1
    monkeypatch.setattr(common, "cpu_seconds", lambda: pytest.fail("it looks"))
    Cores().share()


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc/stat")
def test_seconds_of_the_cores_grow_and_do_not_contain_ours():
    before, done = common.cpu_seconds(), time.process_time()
    while time.process_time() < done + 0.1:
        pass
    passed, others = (b - a for a, b in zip(before, common.cpu_seconds()))
    assert passed >= 0 and others <= passed
