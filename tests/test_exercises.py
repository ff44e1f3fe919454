"""The exercises' framework: what a student sees, whatever is in the file."""

import multiprocessing
import os
import re
import runpy
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import exercises.__main__ as course
import tiny
from tiny import ROOT

RIGHT = '''"""14. The title of fourteen

Its text."""
import torch
import torch.nn.functional as F

def ranking_loss(scores, ranks):
    better = ranks[:, None] < ranks[None, :]
    return F.softplus(scores[None, :] - scores[:, None])[better].mean()
'''


def with_body(*lines):
    head = RIGHT[:RIGHT.index("    better")]
    return head + "".join(f"    {line}\n" for line in lines)


def first(line):
    return RIGHT.replace("    better", f"    {line}\n    better")


@pytest.fixture
def said(tmp_path, monkeypatch):
    """said(source, lang) -> the verdict on an exercise 14 with this source: (solved, one line)."""
    monkeypatch.setattr(course, "HERE", tmp_path)

    def verdict(source, lang="en"):
        if source is not None:
            tiny.write(tmp_path / "e14_ranking_loss.py", source)
        solved, line = course.verdict(14, lang)
        assert "\n" not in line and len(line) < 300
        return solved, line
    return verdict


@pytest.mark.parametrize("source, solved, english, chinese", [
    (RIGHT, True, "right", "正确"),
    (with_body("raise NotImplementedError"), False, "not written yet", "还没有写"),
    (first("print('hello')"), True, "right; it prints (7 lines, the first: hello)",
     "正确；它打印了 7 行，第一行是：hello")])
def test_what_is_said_of_a_function(said, capsys, source, solved, english, chinese):
    assert said(source) == (solved, english) and said(source, "zh") == (solved, chinese)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("line, words", [
    ("raise ValueError('two\\nlines')", "ValueError: two lines"),
    ("return F.softmax(ranks, dim=7).sum()", "IndexError")])          # within torch
def test_an_exception_is_told_with_the_input_and_the_students_line(said, line, words):
    for lang, raised in (("en", "it raises "), ("zh", "它抛出异常 ")):
        solved, told = said(with_body(line), lang)
        assert not solved and raised + words in told and "[0, 1]" in told
        assert told.endswith("(e14_ranking_loss.py:8)")


@pytest.mark.parametrize("junk", [
    "None", "'loss'", "scores", "{}", "object()", "float('nan')", "scores.numpy", "(1, 2, 3)", "1j",
    "torch.zeros(2, 3).numpy()", "torch.tensor(True)", "torch.tensor([])",
    "torch.randn(1000, 1000)"])
def test_whatever_a_function_returns_gets_one_line(said, junk):
    solved, line = said(with_body(f"return {junk}"))
    assert not solved and "is right" in line


@pytest.mark.parametrize("source, english, chinese", [
    (None, "e14_ranking_loss.py: No such file or directory", "e14_ranking_loss.py：读不了这个文件"),
    ("# 采样".encode("gbk"), "loss.py: is not UTF-8: save it as UTF-8",
     "loss.py：不是 UTF-8 文件，请另存为 UTF-8"),
    (RIGHT.replace("return", "retrun"), "it raises SyntaxError", "它抛出异常 SyntaxError"),
    ("import nothing_of_this_name", "it raises ModuleNotFound", "它抛出异常 ModuleNotFound"),
    ("exit()", "it raises SystemExit", "它抛出异常 SystemExit"),
    (with_body("exit(3)"), "it raises SystemExit: 3", "它抛出异常 SystemExit: 3"),
    (with_body("return ranking_loss(scores, ranks)"), "RecursionError", "RecursionError"),
    *((source, "there is no function ranking_loss", "没有函数 ranking_loss") for source in (
        RIGHT.replace("def ranking_loss", "def loss"), "ranking_loss = 3", "",
        "# coding: gbk\n# 采样".encode("gbk"))),
    (first("ranks.add_(1)"), "it does not leave its arguments as it should", "传入的参数不对"),
    (RIGHT.replace("return", "loss =") + "    return 2 * loss - loss.detach()",
     "the values are right, the gradient is not", "梯度不对"),
    (with_body("return [1, 2]"), "is right", "应当是")])
def test_whatever_else_a_file_has_gets_one_line_in_both_languages(said, source, english, chinese):
    solved, told = said(source)
    assert not solved and english in told
    solved, told = said(source, "zh")
    assert not solved and chinese in told
    assert "Error" in told or not re.search("[a-z]+ [a-z]+ [a-z]+", told)      # no English sentence


@pytest.mark.parametrize("body, english, chinese", [
    ("os._exit(0)", "it ends the whole program", "它结束了整个程序"),
    ("os.kill(os.getpid(), 9)", "it ends the whole program", "它结束了整个程序"),
    ("while True: print('on and on')", "it does not come to an end", "它运行不完")])
def test_a_function_that_ends_the_program_or_never_ends_is_stopped_and_the_next_one_is_judged(
        tmp_path, monkeypatch, body, english, chinese):
    monkeypatch.setattr(course, "HERE", tmp_path)
    monkeypatch.setattr(course, "SECONDS", 1)
    (tmp_path / "e14_ranking_loss.py").write_text(with_body("import os", body))
    for lang, words in (("en", english), ("zh", chinese)):
        unsolved, (_, missing) = course.verdicts([14, 15], lang)
        assert unsolved == (False, words) and "e15_agreement_and_ceiling.py" in missing
    while multiprocessing.active_children():          # they end
        time.sleep(0.01)


# ---- the command ----------------------------------------------------------------------------

@pytest.fixture(scope="module")
def school(tmp_path_factory):
    """A copy of the project's code, in which a student works."""
    folder = tmp_path_factory.mktemp("school")
    for file in (file for place in ("", "data/", "lessons/", "exercises/", "exercises/answers/")
                 for file in ROOT.glob(place + "*.py")):
        (folder / file.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, folder / file.relative_to(ROOT))
    return folder


@pytest.fixture
def command(capfd, monkeypatch):
    """command(…) -> the exit status and lines of `python -m exercises …`, within this process."""
    def run(folder, *flags):
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["exercises", *flags])
        monkeypatch.setattr(sys, "excepthook", sys.excepthook)
        status = 0
        try:
            runpy.run_path("exercises/__main__.py", run_name="__main__")
        except SystemExit as end:
            status = end.code
        return status, capfd.readouterr().out.splitlines()
    return run


def test_an_exercise_shows_its_text_until_it_is_solved_and_has_a_cross_in_the_list(school, command):
    (school / "exercises/e14_ranking_loss.py").write_text(RIGHT.replace("<", ">"))
    status, (title, *_, verdict) = command(school, "14")
    assert status == 1 and title == "14. The title of fourteen"
    assert verdict.startswith("14: You prefer the worse answer")
    (school / "exercises/e14_ranking_loss.py").write_text(RIGHT)
    assert command(school, "14") == (0, ["14: right"])
    status, (*lines, last) = command(school)
    assert status == 0 and last == "1 of 27; next: python -m exercises 1"
    assert [line for line in lines if line[0] == "x"] == ["x 14. The title of fourteen"]


def test_the_list_shows_what_is_solved_in_spite_of_broken_files_and_without_copies(school, command):
    there = school / "exercises"
    (there / "e14_ranking_loss.py").write_text(RIGHT)
    (there / "e14_ranking_loss_old.py").write_text("an old copy")
    (there / "e15_agreement_and_ceiling.py").write_bytes("# 采样".encode("gbk"))
    (there / "e16_score_normalisation.py").unlink()
    (there / "e17_reinforce.py").write_text("import os\ndef reinforce_loss(*_): os._exit(0)\n")
    status, (*lines, last) = command(school, "--lang=zh")
    assert [int(line[2:4]) for line in lines] == [*course.exercises()] and status == 0
    assert last == "完成 1 / 27；下一个：python -m exercises 1 --lang=zh"
    assert [line for line in lines if line[0] == "x"] == ["x 14. 排序损失"]
    told = [line[2:].partition("   ")[2] for line in lines if "   " in line[2:]]
    assert len(told) == 3 and "不是 UTF-8" in told[0] and "读不了" in told[1]
    assert told[2] == "（它结束了整个程序）"


def test_where_processes_are_not_forked_they_find_the_function_that_judges(school):
    """As on Windows and macOS: started by a user, in a process of its own."""
    (school / "exercises/e14_ranking_loss.py").write_text(RIGHT)
    there = shutil.copytree(school, "there")
    main = Path("there/exercises/__main__.py")
    main.write_text(main.read_text("utf-8").replace('_context("fork" if', '_context("spawn" if'))
    done = subprocess.run([sys.executable, "-m", "exercises", "14", "--lang=zh"], cwd=there,
                          env=dict(os.environ, PYTHONIOENCODING="utf-8"), capture_output=True,
                          encoding="utf-8", timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "14: 正确\n", "")


@pytest.mark.parametrize("flags, words", [
    (["99"], "no exercise 99"), (["one"], "no exercise one"), (["--lang=fr"], "not en or zh"),
    (["--run"], "needs the number"), (["23", "--run"], "exercise 23 has no run"),
    (["99", "--lang=zh"], "没有练习 99"), (["--run", "--lang=zh"], "--run 需要练习的编号"),
    (["23", "--run", "--lang=zh"], "练习 23 没有对应的训练脚本")])
def test_a_wrong_command_gets_one_line(refused, monkeypatch, flags, words):
    monkeypatch.setattr(sys, "argv", ["exercises", *flags])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    assert words in refused(runpy.run_path, course.__file__, run_name="__main__")


def test_run_shows_both_curves_side_by_side(school, command, tiny_tokenizer, monkeypatch):
    script, place, flags = course.ours(14).RUN
    short = flags.replace("--steps=60", "--steps=24").replace("--eval_every=15", "--eval_every=6")
    monkeypatch.setattr(course.ours(14), "RUN", (script, place, short))
    (school / "out").mkdir()
    (school / "data/town").mkdir()
    tiny.build(school / "out", tiny_tokenizer)
    shutil.move(school / "out/sft.jsonl", school / "data/town/sft.jsonl")
    (school / "exercises/e14_ranking_loss.py").write_text(RIGHT.replace("<", ">"))
    status, lines = command(school, "14", "--run")
    head, *rows = lines[-5:]
    assert status == 0 and head.split() == ["step", "val_loss", "ours", "val_loss", "yours",
                                            "val_accuracy", "ours", "val_accuracy", "yours"]
    assert [int(row.split()[0]) for row in rows] == [6, 12, 18, 24]
    ours, yours = map(float, rows[-1].split()[3:])
    assert ours > yours                               # it has learned to prefer the worse answers


def test_a_run_that_fails_after_its_first_log_shows_no_table(school, command, monkeypatch):
    (school / "stage.py").write_text("""import sys
def ranking_loss(*_): pass
if __name__ == "__main__":
    open(sys.argv[-1].removeprefix("--out=").replace(".pt", ".jsonl"), "w").close()
    ranking_loss(0, 0)""")
    monkeypatch.setattr(course.ours(14), "RUN", ("stage.py", "ranking_loss", ""))
    (school / "exercises/e14_ranking_loss.py").write_text(with_body("return 1 / 0"))
    status, lines = command(school, "14", "--run")
    assert status == 1 and lines[-1] == "--- yours: stage.py "
