"""The exercises' framework: what a student sees, whatever is in the file."""

import os
import re
import runpy
import shutil
import subprocess
import sys
import threading
import time

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
    monkeypatch.setattr(course, "SECONDS", 200)       # on a busy machine seconds say little

    def verdict(source, lang="en"):
        (tmp_path / "e14_ranking_loss.py").write_text(source, encoding="utf-8")
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


def test_an_endless_function_is_stopped(said, monkeypatch):
    monkeypatch.setattr(course, "SECONDS", 1)
    threads = threading.active_count()
    assert said(with_body("while True:", "    pass")) == (False, "it does not come to an end")
    assert said(with_body("while True:", "    pass"), "zh") == (False, "它运行不完")
    solved, line = said(with_body("while True:", "    print('on and on')"))
    assert not solved and line.startswith("it does not come to an end; it prints (")
    while threading.active_count() > threads:         # it ends, sooner or later
        time.sleep(0.1)


@pytest.mark.parametrize("line, lang, words", [
    ("raise ValueError('two\\nlines')", "en", "it raises ValueError: two lines"),
    ("raise ValueError('two\\nlines')", "zh", "它抛出异常 ValueError: two lines"),
    ("return F.softmax(ranks, dim=7).sum()", "en", "IndexError")])      # within torch
def test_an_exception_is_told_with_the_input_and_the_students_line(said, line, lang, words):
    solved, told = said(with_body(line), lang)
    assert not solved and words in told and "[0, 1]" in told
    assert told.endswith("(e14_ranking_loss.py:8)")


@pytest.mark.parametrize("source, words", [
    (RIGHT.replace("return", "retrun"), "SyntaxError"),
    (RIGHT.replace("def ranking_loss", "def loss"), "there is no function ranking_loss"),
    ("ranking_loss = 3", "there is no function ranking_loss"),
    ("import nothing_of_this_name", "ModuleNotFoundError"),
    ("exit()", "SystemExit"), ("", "there is no function"),
    (with_body("exit(3)"), "SystemExit"),
    (with_body("return ranking_loss(scores, ranks)"), "RecursionError"),
    (first("ranks.add_(1)"), "it does not leave its arguments as it should"),
    (RIGHT.replace("return", "loss =") + "    return 2 * loss - loss.detach()",
     "the values are right, the gradient is not"),
    *((with_body(f"return {junk}"), "is right") for junk in (
        "None", "'loss'", "[1, 2]", "scores", "{}", "object()", "float('nan')", "scores.numpy",
        "torch.zeros(2, 3).numpy()", "torch.tensor(True)", "torch.tensor([])", "(1, 2, 3)", "1j",
        "torch.randn(1000, 1000)"))])
def test_whatever_else_a_file_has_gets_one_line(said, source, words):
    solved, line = said(source)
    assert not solved and words in line


@pytest.mark.parametrize("source, line", [
    (RIGHT.replace("def ranking_loss", "def loss"), "没有函数 ranking_loss"), ("", "没有函数"),
    (first("ranks.add_(1)"), "传入的参数不对"), (with_body("return [1, 2]"), "应当是"),
    (RIGHT.replace("return", "loss =") + "    return 2 * loss - loss.detach()", "梯度不对")])
def test_in_chinese_no_english_sentence_is_left(said, source, line):
    solved, told = said(source, "zh")
    assert not solved and line in told and not re.search("[a-z]+ [a-z]+ [a-z]+", told)


@pytest.mark.parametrize("ending", ["_exit(0)", "kill(os.getpid(), 9)"])
def test_a_function_that_ends_the_program_has_solved_nothing(tmp_path, monkeypatch, ending):
    monkeypatch.setattr(course, "HERE", tmp_path)
    (tmp_path / "e14_ranking_loss.py").write_text(with_body("import os", f"os.{ending}"))
    assert list(course.verdicts([14], "en")) == [(False, "it ends the whole program")]


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


def test_one_exercise_shows_its_text_until_it_is_solved(school, command):
    (school / "exercises/e14_ranking_loss.py").write_text(RIGHT.replace("<", ">"))
    status, (title, *_, verdict) = command(school, "14")
    assert status == 1 and title == "14. The title of fourteen"
    assert verdict.startswith("14: You prefer the worse answer")
    (school / "exercises/e14_ranking_loss.py").write_text(RIGHT)
    assert command(school, "14") == (0, ["14: right"])


def test_the_list_shows_what_is_solved_in_spite_of_broken_files_and_without_copies(school, command):
    """In Chinese as a user starts it, in a process of its own; then in English."""
    there = school / "exercises"
    (there / "e14_ranking_loss.py").write_text(RIGHT)
    (there / "e14_ranking_loss_old.py").write_text("an old copy")
    (there / "e13_sampling.py").write_bytes("# 采样".encode("gbk"))
    (there / "e15_agreement_and_ceiling.py").write_text("")
    (there / "e16_score_normalisation.py").unlink()
    (there / "e17_reinforce.py").write_text("import os\ndef reinforce_loss(*_): os._exit(0)\n")
    (there / "e18_kl_reward.py").write_bytes("# coding: gbk\n# 采样".encode("gbk"))
    done = subprocess.run([sys.executable, "-m", "exercises", "--lang=zh"], cwd=school, timeout=300,
                          env=dict(os.environ, PYTHONIOENCODING="utf-8"), capture_output=True,
                          encoding="utf-8", check=True)
    *lines, last = done.stdout.splitlines()
    said = {int(line[2:4]): line.partition("   （")[2].rstrip("）") for line in lines}
    assert [line for line in lines if line[0] == "x"] == ["x 14. 排序损失"] and not done.stderr
    assert last == "完成 1 / 27；下一个：python -m exercises 1 --lang=zh"
    assert "还没有写" not in done.stdout
    assert said[13].endswith("e13_sampling.py：不是 UTF-8 文件，请另存为 UTF-8")
    assert said[17] == "它结束了整个程序" and said[15] == "没有函数 agreement_and_ceiling"
    assert said[16].endswith("e16_score_normalisation.py：读不了这个文件")
    status, (*lines, last) = command(school)
    assert [int(line[2:4]) for line in lines] == sorted(course.exercises())
    assert status == 0 and last == "1 of 27; next: python -m exercises 1"
    said = {int(line[2:4]): line.partition("   (")[2].rstrip(")") for line in lines}
    assert said[13].endswith("e13_sampling.py: is not UTF-8: save it as UTF-8")
    assert said[17] == "it ends the whole program"
    assert "there is no function" in said[15] and "there is no function" in said[18]
    assert said[16].endswith("e16_score_normalisation.py: No such file or directory")


@pytest.mark.parametrize("flags, words", [
    (["14", "--only=theirs"], "--only=theirs is not ours or yours"), (["--only=ours"], "no number"),
    (["99"], "no exercise 99"), (["one"], "no exercise one"), (["--lang=fr"], "not en or zh"),
    (["--run"], "needs the number"), (["23", "--run"], "exercise 23 has no run"),
    (["99", "--lang=zh"], "没有练习 99"), (["--run", "--lang=zh"], "--run 需要练习的编号"),
    (["--only=ours", "--lang=zh"], "并且需要练习的编号"),
    (["23", "--run", "--lang=zh"], "练习 23 没有对应的训练脚本")])
def test_a_wrong_command_gets_one_line(refused, monkeypatch, flags, words):
    monkeypatch.setattr(sys, "argv", ["exercises", *flags])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    assert words in refused(runpy.run_path, course.__file__, run_name="__main__")


def test_run_shows_both_curves_side_by_side(school, command, tiny_tokenizer):
    (school / "out").mkdir()
    (school / "data/town").mkdir()
    tiny.build(school / "out", tiny_tokenizer)
    shutil.move(school / "out/sft.jsonl", school / "data/town/sft.jsonl")
    (school / "exercises/e14_ranking_loss.py").write_text(RIGHT.replace("<", ">"))
    status, lines = command(school, "14", "--run")
    head, *rows = lines[-5:]
    assert status == 0 and head.split() == ["step", "val_loss", "ours", "val_loss", "yours",
                                            "val_accuracy", "ours", "val_accuracy", "yours"]
    assert [int(row.split()[0]) for row in rows] == [15, 30, 45, 60]
    ours, yours = map(float, rows[-1].split()[3:])
    assert ours > yours                               # it has learned to prefer the worse answers
