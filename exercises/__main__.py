"""Exercises that check themselves. Each file in exercises/ explains one idea and has a function
without a body, which you write.

    python -m exercises                # the list: what is solved, what comes next
    python -m exercises 14             # its text, or what is wrong with your function
    python -m exercises 14 --run       # a minute of the real script with your function, beside ours
    python -m exercises 14 --lang=zh   # in Chinese

Your function is compared with the project's own, on random inputs. exercises/answers/ has the
inputs, a solution and the mistakes that are recognised: reading it spoils the exercise.
"""

import copy
import importlib
import inspect
import io
import math
import multiprocessing
import runpy
import shlex
import sys
import tokenize
import traceback
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from checkpoint import read_log
from common import fail, number, parse_config
from data.formats import DataError

HERE = Path(__file__).parent
SECONDS = 20              # after which a function counts as endless
PROCESSES = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")


@dataclass
class Config:
    exercise: str = ""    # its number; `python -m exercises 14` is shorter
    run: bool = False     # a short run of the real script with your function, beside one with ours
    lang: str = "en"      # en or zh: the language of explanations and hints
    debug: bool = False   # show tracebacks


def exercises():
    """{number: name of the file}, in order: of those with an answer, not of a student's copies."""
    names = sorted(path.stem for path in Path(__file__).parent.glob("answers/e[0-9][0-9]_*.py"))
    return {int(name[1:3]): name for name in names}


def ours(n):
    """The module with our function, its cases and its mistakes."""
    return importlib.import_module(f"exercises.answers.{exercises()[n]}")


def source(n, lang="en"):
    """The text of the student's file, in UTF-8 or as its "coding" line says."""
    path = HERE / f"{exercises()[n]}.py"
    try:
        with tokenize.open(path) as file:
            return file.read()
    except OSError as error:
        raise DataError(WORDS[lang]["no_file"].format(path, error.strerror)) from None
    except (SyntaxError, UnicodeDecodeError):
        raise DataError(WORDS[lang]["not_utf8"].format(path)) from None


def yours(n, lang="en"):
    """The function that the student has written."""
    source(n, lang)                                   # is it there, and UTF-8?
    names = runpy.run_path(HERE / f"{exercises()[n]}.py")
    if not callable(names.get(ours(n).NAME)):
        raise DataError(WORDS[lang]["no_function"].format(ours(n).NAME))
    return names[ours(n).NAME]


WORDS = {
    "en": dict(
        right="right", undone="not written yet", file="write it in {}", case="for {} ",
        changed="it does not leave its arguments as it should: most functions must work on a copy",
        gradient="the values are right, the gradient is not: {}", raised="it raises {}",
        ended="it does not come to an end", quit="it ends the whole program",
        printed="; it prints ({} lines, the first: {})",
        returns="it returns {}, but {} is right", shape="its shape is {}, but {} is right",
        length="it returns {} values, but {} are right",
        tensor="it returns {}, but a tensor of shape {} is right",
        no_function="there is no function {}", no_file="{}: {}",
        not_utf8="{}: is not UTF-8: save it as UTF-8", wrong="   ({})", progress="{} of {}",
        next="; next: python -m exercises {}",
        no_exercise="no exercise {}: `python -m exercises` lists them",
        no_number="--run needs the number of an exercise", no_run="exercise {} has no run",
        starts="\n--- {}: {} {}", no_log="the run with {} ended without a log",
        step="step", ours="ours", yours="yours"),
    "zh": dict(
        right="正确", undone="还没有写", file="请写在 {}", case="输入 {} 时，",
        changed="调用之后，传入的参数不对：一般应当在副本上计算", gradient="数值对了，梯度不对：{}",
        raised="它抛出异常 {}", ended="它运行不完", quit="它结束了整个程序",
        printed="；它打印了 {} 行，第一行是：{}",
        returns="它返回 {}，应当是 {}", shape="它的形状是 {}，应当是 {}",
        length="它返回 {} 个值，应当是 {} 个", tensor="它返回 {}，应当是形状为 {} 的张量",
        no_function="没有函数 {}", no_file="{}：读不了这个文件",
        not_utf8="{}：不是 UTF-8 文件，请另存为 UTF-8", wrong="   （{}）", progress="完成 {} / {}",
        next="；下一个：python -m exercises {} --lang=zh",
        no_exercise="没有练习 {}：`python -m exercises --lang=zh` 列出全部练习",
        no_number="--run 需要练习的编号", no_run="练习 {} 没有对应的训练脚本",
        starts="\n--- {}：{} {}", no_log="用{}运行之后，没有日志",
        step="步", ours="我们的函数", yours="你的函数")}


# ---- comparing two results ------------------------------------------------------------------

def difference(got, want, lang="en"):
    """What is wrong with `got`, in a few words; "" if it equals `want` up to rounding."""
    words = WORDS[lang]
    if isinstance(want, tuple | list) and isinstance(got, tuple | list):
        if len(got) != len(want):
            return words["length"].format(len(got), len(want))
        return next(filter(None, (difference(g, w, lang) for g, w in zip(got, want))), "")
    if isinstance(want, torch.Tensor) and want.dim():
        if not isinstance(got, torch.Tensor):
            return words["tensor"].format(brief(got), tuple(want.shape))
        if got.shape != want.shape:
            return words["shape"].format(tuple(got.shape), tuple(want.shape))
        if torch.allclose(got.double(), want.double(), rtol=1e-4, atol=1e-5, equal_nan=True):
            return ""
    elif isinstance(want, (float, torch.Tensor)) and not isinstance(got, (str, type(None))):
        try:
            got, want = (x.item() if isinstance(x, torch.Tensor) else float(x) for x in (got, want))
            if math.isclose(got, want, rel_tol=1e-4, abs_tol=1e-5) or got != got and want != want:
                return ""
        except (TypeError, ValueError, RuntimeError):
            pass
    elif type(got) is type(want) and got == want:
        return ""
    return words["returns"].format(brief(got), brief(want))


def brief(value):
    """A value in at most 80 characters."""
    def rounded(v):
        if isinstance(v, torch.Tensor):
            v = (v if v.numel() < 100 else v.flatten()[:100]).detach().tolist()
        if isinstance(v, (list, tuple)):
            return tuple(map(rounded, v)) if isinstance(v, tuple) else list(map(rounded, v))
        return round(v, 4) if isinstance(v, float) else v
    text = " ".join(repr(rounded(value)).split())
    return text if len(text) <= 80 else text[:77] + "..."


def call(function, args):
    """The result of function(*args); then the gradient, in each argument that wants one, of the sum
    of what it returns; then the arguments as it leaves them. Random numbers start anew."""
    args = copy.deepcopy(args)
    torch.manual_seed(0)
    result = function(*args)
    parts = result if isinstance(result, (tuple, list)) else [result]
    leaves = [a for a in args if isinstance(a, torch.Tensor) and a.requires_grad]
    differentiable = [p.sum() for p in parts if isinstance(p, torch.Tensor) and p.requires_grad]
    if leaves and differentiable:
        gradients = torch.autograd.grad(sum(differentiable), leaves, materialize_grads=True)
    else:
        gradients = [torch.zeros_like(a) for a in leaves]
    return result, gradients, args


# ---- judging a function ---------------------------------------------------------------------

def judge(function, answer, lang="en"):
    """What is wrong with a student's function, in one line; "" if nothing is. An exercise whose
    results can't be compared value by value has a function `check`, which judges their properties.
    """
    words, results, where = WORDS[lang], [], ""
    torch.manual_seed(0)
    try:
        if hasattr(answer, "check"):
            return answer.check(function, lang)
        for args in list(answer.cases()):
            where = words["case"].format(brief(args)[1:-1].rstrip(","))
            results.append((where, args, call(function, args), call(answer.answer, args)))
    except NotImplementedError:
        return words["undone"]
    except Exception as error:
        line = [line for line in traceback.extract_tb(error.__traceback__)
                if "site-packages" not in line.filename][-1]          # of the student's file
        place = f" ({Path(line.filename).name}:{line.lineno})"
        return where + words["raised"].format(in_one_line(error) + place)
    if all(same(got, want) for *_, got, want in results):
        return ""
    for english, chinese, edits in answer.MISTAKES:
        with suppress(Exception):                     # a mistake may fail on inputs of some shape
            wrong = mistaken(student(answer), edits)
            if all(same(got, call(wrong, args)) for _, args, got, _ in results):
                return chinese if lang == "zh" else english
    for where, _, got, want in results:
        for text, one, other in zip(("{}", words["gradient"], words["changed"]), got, want):
            if found := difference(one, other, lang):
                return where + text.format(found)


def student(answer):
    """A right solution in full. Where ours comes from a stage, `written_out` is the same again."""
    return getattr(answer, "written_out", answer.answer)


def mistaken(function, edits):
    """The function with a mistake in it: "text -> what stands there instead", joined by " && ". A
    mistake that is no such edit is a function itself."""
    if callable(edits):
        return edits
    source, names = inspect.getsource(function), dict(function.__globals__)
    for edit in edits.split(" && "):
        old, new = map(str.strip, edit.split("->"))
        assert old in source, f"there is no {old}"
        source = source.replace(old, new)
    exec(source, names)
    return names[function.__name__]


def same(one, other):
    return not any(map(difference, one, other))


def in_one_line(error):
    return " ".join(f"{type(error).__name__}: {error}".split())


def verdict(n, lang):
    """(solved, one line) for the student's function; hints are in the language lang."""
    words, printed = WORDS[lang], io.StringIO()
    with redirect_stdout(printed):
        try:
            found = judge(yours(n, lang), ours(n), lang)
        except DataError as error:
            found = str(error)
        except BaseException as error:                # a syntax error, exit(), no such function
            found = words["raised"].format(in_one_line(error))
    line = found or words["right"]
    if lines := printed.getvalue().splitlines():
        line += words["printed"].format(len(lines), lines[0][:60])
    return not found, line


def start(function, *args):
    """Run a function of this file in a process of its own. A process that is not forked imports the
    function by its name, and can't from `__main__`, which is what `python -m exercises` calls us.
    """
    if PROCESSES.get_start_method() == "spawn":
        function = getattr(importlib.import_module("exercises.__main__"), function.__name__)
    process = PROCESSES.Process(target=function, args=args, daemon=True)
    process.start()
    return process


def report(pipe, numbers, lang):
    pipe.send("started")
    for n in numbers:
        pipe.send(verdict(n, lang))


def verdicts(numbers, lang):
    """Yield verdict(n, lang) of each. A process of its own judges: a function that ends it, as
    os._exit(0) does, or that is endless is not solved, and the next process goes on behind it."""
    while numbers:
        here, there = PROCESSES.Pipe(duplex=False)
        process = start(report, there, numbers, lang)
        there.close()
        here.recv()                                   # it may have to import torch first
        try:
            while numbers and here.poll(SECONDS):
                yield here.recv()
                numbers = numbers[1:]
            problem = "ended"
        except EOFError:
            problem = "quit"
        process.kill()
        if numbers:
            yield False, WORDS[lang][problem]
            numbers = numbers[1:]


# ---- --run: the function in the real script -------------------------------------------------

def half(n, only, out, lang):
    """One of the two runs, in a process of its own. The functions of a stage stand before
    `if __name__ == "__main__":`, what uses them comes after; in between, the student's takes the
    place of ours: a name in RUN, or a function that puts it there. Where the stage calls its
    function in another way, RUN has a fourth part, which turns the student's into one of that kind.
    """
    path, place, flags, *adapt = ours(n).RUN
    head, line, main = Path(path).read_text("utf-8").partition('if __name__ == "__main__":')
    space = {"__name__": "__main__", "__file__": path}
    # the tensors that a student's function makes are on the CPU
    sys.argv = [path, *shlex.split(flags), "--device=cpu", f"--out={out}"]
    try:
        exec(compile(head, path, "exec"), space)
        if only == "yours":
            function = yours(n, lang)
            for change in adapt:
                function = change(function)
            install = place if callable(place) else partial(space.__setitem__, place)
            install(function)
        exec(compile("\n" * head.count("\n") + line + main, path, "exec"), space)
    except Exception as error:                        # in one line: multiprocessing shows them all
        sys.excepthook(type(error), error, error.__traceback__)
        raise SystemExit(1) from None


def side_by_side(n, lang):
    """Both runs, then their logs as one table. An exercise whose runs read data of their own has a
    function `prepare`, which writes it."""
    words = WORDS[lang]
    if not ours(n).RUN:
        fail(words["no_run"].format(n))
    yours(n, lang)                                    # what is wrong with the file is said at once
    if hasattr(ours(n), "prepare"):
        ours(n).prepare()
    logs, (script, _, flags, *_) = {}, ours(n).RUN
    with TemporaryDirectory() as folder:
        for only in ("ours", "yours"):
            out = Path(folder) / f"{only}.pt"
            print(words["starts"].format(words[only], script, flags), flush=True)
            process = start(half, n, only, out, lang)
            process.join()
            log = out.with_suffix(".jsonl")
            if process.exitcode or not log.exists():  # it has said why, if it has failed
                raise SystemExit(process.exitcode or words["no_log"].format(words[only]))
            logs[only] = read_log(log)
    table(logs, ours(n).COLUMNS, words)


def table(logs, columns, words):
    """Ours beside yours: a row for each step that both have logged."""
    print("\n" + right(words["step"], 6) + "".join(
        right(f"{c.split('/')[-1]} {words[who]}", 24) for c in columns for who in logs))
    rows = {who: {} for who in logs}
    for who, lines in logs.items():
        for line in lines:
            rows[who].setdefault(line["step"], {}).update(line)
    for step in sorted(set.intersection(*(set(r) for r in rows.values()))):
        cells = [rows[who][step].get(column) for column in columns for who in logs]
        if any(cell is not None for cell in cells):
            print(f"{step:>6}" + "".join(f"{'-' if c is None else number(c):>24}" for c in cells))


def right(text, width):
    """Text at the right end of so many columns; a Chinese character takes two."""
    return text.rjust(width - sum(c > "\u2e80" for c in text))


def explain(n, lang):
    """The text of an exercise: its docstring, or the Chinese one."""
    if lang == "zh":
        return ours(n).ZH.strip()
    with suppress(DataError):
        if len(parts := source(n).split('"""')) > 1:  # also of a file with a syntax error
            return parts[1].strip()
    return exercises()[n]


if __name__ == "__main__":
    config = parse_config(Config, __doc__, words="exercise")
    there = exercises()
    if config.lang not in WORDS:
        fail(f"--lang={config.lang} is not en or zh")
    words = WORDS[config.lang]
    if config.exercise and (not config.exercise.isdecimal() or int(config.exercise) not in there):
        fail(words["no_exercise"].format(config.exercise))
    n = int(config.exercise or 0)
    if config.run and not n:
        fail(words["no_number"])
    if config.run:
        side_by_side(n, config.lang)
    elif n:
        (solved, said), = verdicts([n], config.lang)
        if not solved:
            print(explain(n, config.lang) + "\n")
        print(f"{n}: {said}" if not said == words["undone"] else
              words["file"].format(f"exercises/{there[n]}.py"))
        raise SystemExit(not solved)
    else:
        undone = []
        for i, (solved, said) in zip(there, verdicts([*there], config.lang)):
            title = explain(i, config.lang).split("\n")[0].removeprefix(f"{i}. ")
            wrong = "" if solved or said == words["undone"] else words["wrong"].format(said)
            print(f"{'x' if solved else ' '} {i:>2}. {title}{wrong}", flush=True)
            undone += [] if solved else [i]
        print(words["progress"].format(len(there) - len(undone), len(there))
              + (words["next"].format(undone[0]) if undone else ""))
