"""The exercises' framework: what a student sees, whatever is in the file."""

import importlib
import json
import math
import re
import runpy
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
import torch.nn.functional as F

import tiny
from tiny import ROOT, environment

course = importlib.import_module("exercises.__main__")

RIGHT = '''"""14. The title of fourteen

Its text."""
import torch
import torch.nn.functional as F

def ranking_loss(scores, ranks):
    better = ranks[:, None] < ranks[None, :]
    return F.softplus(scores[None, :] - scores[:, None])[better].mean()
'''


def function(n, source):
    """The function in the source of a student's file, which imports torch, F, math and re."""
    names = dict(torch=torch, F=F, math=math, re=re)
    exec(source, names)
    return names[course.ours(n).NAME]


def judged(n, source, lang="en"):
    return course.judge(function(n, source), course.ours(n), lang)


@pytest.fixture
def said(tmp_path, monkeypatch):
    """said(source, lang) -> the verdict on an exercise 14 with this source: (solved, one line)."""
    monkeypatch.setattr(course, "HERE", tmp_path)
    monkeypatch.setattr(course, "SECONDS", 200)       # on a busy machine seconds say little

    def verdict(source, lang="en"):
        (tmp_path / "e14_ranking_loss.py").write_text(source, encoding="utf-8")
        solved, line = course.verdict(14, lang)
        assert "\n" not in line
        return solved, line
    return verdict


def with_body(*lines):
    head = RIGHT[:RIGHT.index("    better")]
    return head + "".join(f"    {line}\n" for line in lines)


def test_a_right_function_is_right(said):
    assert said(RIGHT) == (True, "right") and said(RIGHT, "zh") == (True, "正确")


def test_a_function_without_a_body_is_not_written_yet(said):
    assert said(with_body("raise NotImplementedError")) == (False, "not written yet")
    assert said(with_body("raise NotImplementedError"), "zh") == (False, "还没有写")


@pytest.mark.parametrize("lang, words", [("en", "it does not come to an end"),
                                         ("zh", "它运行不完")])
def test_an_endless_function_is_stopped(said, monkeypatch, lang, words):
    monkeypatch.setattr(course, "SECONDS", 2)
    threads = threading.active_count()
    assert said(with_body("while True:", "    pass"), lang) == (False, words)
    while threading.active_count() > threads:         # it ends, sooner or later
        time.sleep(0.1)


def test_an_endless_function_that_prints_is_stopped(said, monkeypatch):
    monkeypatch.setattr(course, "SECONDS", 2)
    solved, line = said(with_body("while True:", "    print('on and on')"))
    assert not solved and line.startswith("it does not come to an end; it prints (")


def test_a_right_function_that_prints_is_told_so(said, capsys):
    solved, line = said(RIGHT.replace("    better", "    print('hello')\n    better"))
    assert solved and line == "right; it prints (7 lines, the first: hello)"
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("lang, words", [("en", "it raises ValueError: two lines"),
                                         ("zh", "它抛出异常 ValueError: two lines")])
def test_an_exception_is_told_with_the_input_and_the_line(said, lang, words):
    solved, line = said(with_body("raise ValueError('two\\nlines')"), lang)
    assert not solved and words in line and line.endswith("(e14_ranking_loss.py:8)")
    assert "[0, 1]" in line


def test_an_exception_within_torch_is_told_with_the_students_line(said):
    _, line = said(with_body("return F.softmax(ranks, dim=7).sum()"))
    assert "IndexError" in line and line.endswith("(e14_ranking_loss.py:8)")


@pytest.mark.parametrize("source, words", [
    (RIGHT.replace("return", "retrun"), "SyntaxError"),
    (RIGHT.replace("def ranking_loss", "def loss"), "there is no function ranking_loss"),
    ("ranking_loss = 3", "there is no function ranking_loss"),
    ("import nothing_of_this_name", "ModuleNotFoundError"),
    ("exit()", "SystemExit"), ("", "there is no function"),
    (with_body("exit(3)"), "SystemExit"),
    (with_body("return ranking_loss(scores, ranks)"), "RecursionError")])
def test_a_file_without_a_working_function_gets_one_line(said, source, words):
    solved, line = said(source)
    assert not solved and words in line


@pytest.mark.parametrize("junk", [
    "None", "'loss'", "[1, 2]", "scores", "{}", "object()", "float('nan')", "scores.numpy",
    "torch.zeros(2, 3).numpy()", "torch.tensor(True)", "torch.tensor([])", "(1, 2, 3)", "1j",
    "torch.randn(1000, 1000)"])
def test_junk_gets_one_line(said, junk):
    solved, line = said(with_body(f"return {junk}"))
    assert not solved and "is right" in line and len(line) < 300


def test_a_changed_argument_is_noticed(said):
    _, line = said(RIGHT.replace("    better", "    ranks.add_(1)\n    better"))
    assert "arguments" in line


def test_a_gradient_that_is_wrong_is_told_apart_from_the_value(said):
    _, line = said(RIGHT.replace("better]", "better]").replace(
        "F.softplus(scores[None, :] - scores[:, None])",
        "(2 * F.softplus(scores[None, :] - scores[:, None]) - F.softplus(scores[None, :] - "
        "scores[:, None]).detach())"))
    assert "the values are right, the gradient is not" in line


# ---- the command ----------------------------------------------------------------------------

@pytest.fixture(scope="module")
def school(tmp_path_factory):
    """A copy of the project's code, in which a student works."""
    folder = tmp_path_factory.mktemp("school")
    for file in [*ROOT.glob("*.py"), *ROOT.glob("data/*.py"), *ROOT.glob("lessons/*.py"),
                 *ROOT.glob("exercises/*.py"), *ROOT.glob("exercises/answers/*.py")]:
        (folder / file.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, folder / file.relative_to(ROOT))
    return folder


def command(folder, *flags):
    done = subprocess.run([sys.executable, "-m", "exercises", *flags], cwd=folder, timeout=300,
                          env=environment(PYTHONIOENCODING="utf-8"), capture_output=True,
                          encoding="utf-8")
    assert "Traceback" not in done.stderr
    return done


def test_the_list_shows_what_is_solved(school):
    (school / "exercises/e14_ranking_loss.py").write_text(RIGHT)
    done = command(school, "--lang=zh")
    lines = done.stdout.splitlines()
    numbers = [int(line[2:4]) for line in lines[:-1]]
    assert done.returncode == 0 and numbers == sorted(course.exercises())
    assert [line for line in lines if line[0] == "x"] == ["x 14. 排序损失 ranking loss"]
    assert lines[-1] == f"1 of {len(numbers)}; next: python -m exercises 1"
    assert "还没有写" not in done.stdout


def test_one_exercise_shows_its_text_until_it_is_solved(school):
    (school / "exercises/e14_ranking_loss.py").write_text(RIGHT.replace("<", ">"))
    done = command(school, "14")
    *text, verdict = done.stdout.splitlines()
    assert done.returncode == 1 and text[0] == "14. The title of fourteen"
    assert verdict.startswith("14: You prefer the worse answer")


@pytest.mark.parametrize("ending", ["_exit(0)", "kill(os.getpid(), 9)"])
def test_a_function_that_ends_the_program_has_solved_nothing(tmp_path, monkeypatch, ending):
    monkeypatch.setattr(course, "HERE", tmp_path)
    (tmp_path / "e14_ranking_loss.py").write_text(with_body("import os", f"os.{ending}"))
    assert list(course.verdicts([14], "en")) == [(False, "it ends the whole program")]


def test_a_broken_file_does_not_end_the_list_and_a_copy_is_not_in_it(school, capsys, monkeypatch):
    there = school / "exercises"
    kept = {path: path.read_bytes() for path in there.glob("e1*.py")}
    (there / "e14_ranking_loss_old.py").write_text("an old copy")
    (there / "e13_sampling.py").write_bytes("# 采样".encode("gbk"))
    (there / "e14_ranking_loss.py").write_text(with_body("import os", "os._exit(0)"))
    (there / "e15_agreement_and_ceiling.py").write_text("")
    (there / "e16_score_normalisation.py").unlink()
    (there / "e17_kl_reward.py").write_bytes("# coding: gbk\n# 采样".encode("gbk"))
    monkeypatch.setattr(sys, "argv", ["exercises"])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    runpy.run_path(str(there / "__main__.py"), run_name="__main__")
    for path, content in kept.items():
        path.write_bytes(content)
    (there / "e14_ranking_loss_old.py").unlink()
    *lines, last = capsys.readouterr().out.splitlines()
    assert [int(line[2:4]) for line in lines] == sorted(course.exercises())
    assert last == "0 of 26; next: python -m exercises 1"
    said = {int(line[2:4]): line.partition("   (")[2].rstrip(")") for line in lines}
    assert said[13].endswith("e13_sampling.py: is not UTF-8: save it as UTF-8")
    assert said[14] == "it ends the whole program"
    assert "there is no function" in said[15] and "there is no function" in said[17]
    assert said[16].endswith("e16_score_normalisation.py: No such file or directory")


@pytest.mark.parametrize("flags, words", [
    (["14", "--only=theirs"], "--only=theirs is not ours or yours"), (["--only=ours"], "no number"),
    (["99"], "no exercise 99"), (["one"], "no exercise one"), (["--lang=fr"], "not en or zh"),
    (["--run"], "needs the number"), (["22", "--run"], "exercise 22 has no run")])
def test_a_wrong_command_gets_one_line(refused, monkeypatch, flags, words):
    monkeypatch.setattr(sys, "argv", ["exercises", *flags])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    assert words in refused(runpy.run_path, course.__file__, run_name="__main__")


def test_run_shows_both_curves_side_by_side(school, chain):
    if not (school / "out").exists():
        shutil.copytree(chain / "out", school / "out")
        shutil.copytree(chain / "data/town", school / "data/town")
    (school / "exercises/e14_ranking_loss.py").write_text(RIGHT.replace("<", ">"))
    done = command(school, "14", "--run")
    assert done.returncode == 0, done.stderr
    head, *rows = done.stdout.splitlines()[-5:]
    assert head.split() == "step val_loss ours val_loss yours val_accuracy ours".split() + [
        "val_accuracy", "yours"]
    assert [int(row.split()[0]) for row in rows] == [15, 30, 45, 60]
    ours, yours = map(float, rows[-1].split()[3:])
    assert ours > yours                               # it has learned to prefer the worse answers


# ---- every --run, at a tiny size ------------------------------------------------------------

FLAGS = {"rlhf_ppo.py": tiny.FLAGS["rlhf_ppo"] + " --steps=2",
         "reward.py": tiny.FLAGS["reward"] + " --steps=4",
         "lessons/dpo.py": "--data=comparisons.jsonl --prompts=prompts.jsonl --init=sft.pt "
         "--watch=length.py:longer --batch_size=4 --warmup=2 --eval_every=4 --n_eval=2 "
         "--max_new_tokens=6 --steps=4"}


def log_of_a_run(n, only, source, folder, more=""):
    """The log of `--run --only=…` with tiny models: {step: {name: number}}."""
    answer, ctrl_c = course.ours(n), signal.getsignal(signal.SIGINT)
    script, place, _, *adapt = answer.RUN
    out = folder / "runs" / f"{only}.pt"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(course, "HERE", folder)
        patch.setattr(answer, "RUN", (f"{ROOT}/{script}", place, f"{FLAGS[script]} {more}", *adapt))
        patch.setattr(sys, "argv", sys.argv)
        patch.setattr(sys, "excepthook", sys.excepthook)
        (folder / f"e{n}_run.py").write_text(f"import math, re, torch\nimport torch.nn.functional "
                                             f"as F\n{source}")
        patch.setattr(course, "exercises", lambda: {n: f"e{n}_run"})
        patch.setattr(course, "ours", lambda n: answer)
        course.half(n, course.Config(only=only, out=str(out)))
    signal.signal(signal.SIGINT, ctrl_c)
    log = {}
    for line in out.with_suffix(".jsonl").read_text().splitlines():
        row = json.loads(line)
        log.setdefault(row["step"], {}).update(
            {name: v for name, v in row.items() if isinstance(v, (int, float))
             and name not in ("seconds", "tokens_per_s")})
    return log
