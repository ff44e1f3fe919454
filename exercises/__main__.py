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
import ctypes
import importlib
import inspect
import io
import math
import multiprocessing
import os
import runpy
import shlex
import subprocess
import sys
import threading
import tokenize
import traceback
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from checkpoint import read_log
from common import fail, number, parse_config
from data.formats import DataError

HERE = Path(__file__).parent
SECONDS = 20              # after which a function counts as endless


@dataclass
class Config:
    exercise: str = ""    # its number; `python -m exercises 14` is shorter
    run: bool = False     # a short run of the real script with your function, beside one with ours
    lang: str = "en"      # en or zh: the language of explanations and hints
    only: str = ""        # ours or yours: half of --run, which starts this itself
    out: str = ""         # where that half writes
    debug: bool = False   # show tracebacks


def exercises():
    """{number: name of the file}, in order: of those with an answer, not of a student's copies."""
    names = sorted(path.stem for path in Path(__file__).parent.glob("answers/e[0-9][0-9]_*.py"))
    return {int(name[1:3]): name for name in names}


def ours(n):
    """The module with our function, its cases and its mistakes."""
    return importlib.import_module(f"exercises.answers.{exercises()[n]}")


def source(n):
    """The text of the student's file, in UTF-8 or as its "coding" line says."""
    path = HERE / f"{exercises()[n]}.py"
    try:
        with tokenize.open(path) as file:
            return file.read()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from None
    except (SyntaxError, UnicodeDecodeError):
        raise DataError(f"{path}: is not UTF-8: save it as UTF-8") from None


def yours(n):
    """The function that the student has written."""
    source(n)                                         # is it there, and UTF-8?
    names = runpy.run_path(HERE / f"{exercises()[n]}.py")
    if not callable(names.get(ours(n).NAME)):
        raise NameError(f"there is no function {ours(n).NAME}")
    return names[ours(n).NAME]


WORDS = {
    "en": dict(
        right="right", undone="not written yet", file="write it in {}", case="for {} ",
        changed="it does not leave its arguments as it should: most functions must work on a copy",
        gradient="the values are right, the gradient is not: {}", raised="it raises {}",
        ended="it does not come to an end", quit="it ends the whole program",
        printed="it prints ({} lines, the first: {})",
        returns="it returns {}, but {} is right", shape="its shape is {}, but {} is right",
        length="it returns {} values, but {} are right",
        tensor="it returns {}, but a tensor of shape {} is right"),
    "zh": dict(
        right="正确", undone="还没有写", file="请写在 {}", case="输入 {} 时，",
        changed="调用之后传入的参数不对：一般应当在副本上计算", gradient="数值对了，梯度不对：{}",
        raised="它抛出异常 {}", ended="它运行不完", quit="它结束了整个程序",
        printed="它打印了 {} 行，第一行是：{}",
        returns="它返回 {}，应当是 {}", shape="它的形状是 {}，应当是 {}",
        length="它返回 {} 个值，应当是 {} 个", tensor="它返回 {}，应当是形状为 {} 的张量")}


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
    gradients = torch.autograd.grad(sum(differentiable), leaves, allow_unused=True) if (
        leaves and differentiable) else [None] * len(leaves)
    gradients = [torch.zeros_like(a) if g is None else g for a, g in zip(leaves, gradients)]
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
            where = words["case"].format(shown(args))
            results.append((args, call(function, args), call(answer.answer, args)))
    except NotImplementedError:
        return words["undone"]
    except Exception as error:
        line = [line for line in traceback.extract_tb(error.__traceback__)
                if "site-packages" not in line.filename][-1]          # of the student's file
        place = f" ({Path(line.filename).name}:{line.lineno})"
        return where + words["raised"].format(in_one_line(error) + place)
    if all(same(got, want) for _, got, want in results):
        return ""
    for english, chinese, edits in answer.MISTAKES:
        with suppress(Exception):                     # a mistake may fail on inputs of some shape
            wrong = mistaken(student(answer), edits)
            if all(same(got, call(wrong, args)) for args, got, _ in results):
                return chinese if lang == "zh" else english
    for args, (result, gradients, after), (right, slopes, right_after) in results:
        where = words["case"].format(shown(args))
        if found := difference(result, right, lang):
            return where + found
        if found := difference(gradients, slopes, lang):
            return where + words["gradient"].format(found)
        if difference(after, right_after):
            return where + words["changed"]


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


def shown(args):
    return brief(args)[1:-1].rstrip(",")


def in_one_line(error):
    return " ".join(f"{type(error).__name__}: {error}".split())


def verdict(n, lang):
    """(solved, one line) for the student's function; hints are in the language lang."""
    words, answer, said, printed = WORDS[lang], ours(n), [], io.StringIO()

    def work():
        try:
            said.append(judge(yours(n), answer, lang))
        except DataError as error:
            said.append(str(error))
        except BaseException as error:                # a syntax error, exit(), no such function
            said.append(words["raised"].format(in_one_line(error)))

    thread = threading.Thread(target=work, daemon=True)
    with redirect_stdout(printed):
        thread.start()
        thread.join(SECONDS)
        found = said[0] if said else words["ended"]
        if thread.is_alive():                         # ends at its next line of Python, if any
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))
            thread.join(SECONDS)
    line = found or words["right"]
    if lines := printed.getvalue().splitlines():
        line += "; " + words["printed"].format(len(lines), lines[0][:60])
    return not found, line


def report(pipe, numbers, lang):
    for n in numbers:
        pipe.send(verdict(n, lang))
    os._exit(0)                                       # an endless function can't be stopped


def verdicts(numbers, lang):
    """Yield verdict(n, lang) of each. A process of its own judges: a function that ends it, as
    os._exit(0) does, is not solved, and the next process goes on behind it."""
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    while numbers:
        here, there = context.Pipe(duplex=False)
        context.Process(target=report, args=(there, numbers, lang), daemon=True).start()
        there.close()
        with suppress(EOFError):
            while numbers:
                yield here.recv()
                numbers = numbers[1:]
        if numbers:
            yield False, WORDS[lang]["quit"]
            numbers = numbers[1:]


# ---- --run: the function in the real script -------------------------------------------------

def run_script(path, name, function, flags):
    """Run a stage with `function` in the place of `name`, if there is one. The functions of a stage
    stand before `if __name__ == "__main__":`, what uses them comes after. Instead of a name there
    may be a function that puts the student's in its place."""
    head, line, main = Path(path).read_text("utf-8").partition('if __name__ == "__main__":')
    space = {"__name__": "__main__", "__file__": path}
    sys.argv = [path, *flags]
    if function and callable(name):
        name(function)
    exec(compile(head, path, "exec"), space)
    if function and not callable(name):
        space[name] = function
    exec(compile("\n" * head.count("\n") + line + main, path, "exec"), space)


def half(n, config):
    """One of the two runs, in a process of its own. Where the stage calls its function in another
    way, RUN has a fourth part, which turns the student's function into one of that kind."""
    script, place, flags, *adapt = ours(n).RUN
    function = yours(n) if config.only == "yours" else None
    if function and adapt:
        function = adapt[0](function)
    # the tensors that a student's function makes are on the CPU
    run_script(script, place, function,
               [*shlex.split(flags), "--device=cpu", f"--out={config.out}"])


def side_by_side(n):
    """Both runs, then their logs as one table. An exercise whose runs read data of their own has a
    function `prepare`, which writes it."""
    if not ours(n).RUN:
        fail(f"exercise {n} has no run")
    if hasattr(ours(n), "prepare"):
        ours(n).prepare()
    logs, (script, _, flags, *_) = {}, ours(n).RUN
    with TemporaryDirectory() as folder:
        for only in ("ours", "yours"):
            out = Path(folder) / f"{only}.pt"
            print(f"\n--- {only}: {script} {flags}", flush=True)
            done = subprocess.run([sys.executable, "-m", "exercises", str(n),
                                   f"--only={only}", f"--out={out}"])
            log = out.with_suffix(".jsonl")
            if not log.exists():                      # it has said why, if it has failed
                raise SystemExit(done.returncode or f"the run with {only} ended without a log")
            logs[only] = read_log(log)
    table(logs, ours(n).COLUMNS)


def table(logs, columns):
    """Ours beside yours: a row for each step that both have logged."""
    print(f"\n{'step':>6}" + "".join(f"{c.split('/')[-1] + ' ' + who:>24}"
                                     for c in columns for who in logs))
    rows = {who: {} for who in logs}
    for who, lines in logs.items():
        for line in lines:
            rows[who].setdefault(line["step"], {}).update(line)
    for step in sorted(set.intersection(*(set(r) for r in rows.values()))):
        cells = [rows[who][step].get(column) for column in columns for who in logs]
        if any(cell is not None for cell in cells):
            print(f"{step:>6}" + "".join(f"{'-' if c is None else number(c):>24}" for c in cells))


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
    if config.exercise and (not config.exercise.isdecimal() or int(config.exercise) not in there):
        fail(f"no exercise {config.exercise}: `python -m exercises` lists them")
    n = int(config.exercise or 0)
    if config.run and not n:
        fail("--run needs the number of an exercise")
    if config.only not in ("", "ours", "yours") or config.only and not n:
        fail(f"--only={config.only} is not ours or yours, or has no number of an exercise")
    if config.only:
        half(n, config)
    elif config.run:
        side_by_side(n)
    elif n:
        (solved, said), = verdicts([n], config.lang)
        if not solved:
            print(explain(n, config.lang) + "\n")
        print(f"{n}: {said}" if not said == WORDS[config.lang]["undone"] else
              WORDS[config.lang]["file"].format(f"exercises/{there[n]}.py"))
        raise SystemExit(not solved)
    else:
        undone = []
        for i, (solved, said) in zip(there, verdicts([*there], config.lang)):
            title = explain(i, config.lang).split("\n")[0].removeprefix(f"{i}. ")
            wrong = "" if solved or said == WORDS[config.lang]["undone"] else f"   ({said})"
            print(f"{'x' if solved else ' '} {i:>2}. {title}{wrong}", flush=True)
            undone += [] if solved else [i]
        print(f"{len(there) - len(undone)} of {len(there)}"
              + (f"; next: python -m exercises {undone[0]}" if undone else ""))
