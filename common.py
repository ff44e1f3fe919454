"""Plumbing that the scripts share: flags, errors, devices and ranks, threads, files.

Nothing here would be on a slide. Every loop, loss, batch and mask stands in its script.
"""

import argparse
import atexit
import configparser
import ctypes
import dataclasses
import difflib
import errno
import hashlib
import inspect
import io
import json
import math
import os
import platform
import re
import runpy
import sys
import time
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from functools import cache, partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP
from tqdm import tqdm


# ---- flags: each field of a script's Config is --field=value --------------------------------

@dataclasses.dataclass
class Basic:
    """The flags of every script that runs a model."""
    seed: int = 0
    device: str = "auto"     # auto: cuda, else cpu; mps when asked
    dtype: str = "auto"      # auto: bfloat16 where it is fast, else float32
    debug: bool = False      # show tracebacks


@dataclasses.dataclass
class Common(Basic):
    """The flags of every script that can be interrupted."""
    fresh: bool = False      # start over


def parse_config(Config, doc, argv=None, words="", several=False):
    """Build Config from the command line; -h prints `doc` and the source of Config. words: the
    field that takes other words, joined by commas. several: whether torchrun may start it."""
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):      # no character that a terminal lacks, and no
            stream.reconfigure(errors="replace")      # wrong byte, stops a run
    atexit.register(flush)
    sys.excepthook = one_line
    argv = list(sys.argv[1:] if argv is None else argv)
    if "-h" in argv or "--help" in argv:
        print(doc.strip() + "\n\nFlags are the fields of Config, as --field=value:\n")
        print("\n\n".join(inspect.getsource(part).rstrip() for part in Config.__mro__[:-1]))
        raise SystemExit(0)
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False,
                                     argument_default=argparse.SUPPRESS)
    parser.error = lambda message: fail(f"{message} (-h lists the flags)")
    flags = {f"--{field.name}": field for field in dataclasses.fields(Config)}
    for flag, field in flags.items():
        alone = dict(nargs="?", const=True) if isinstance(field.default, bool) else {}
        parser.add_argument(flag, type=partial(parse_value, field), **alone)
    found, others = parser.parse_known_args(argv)
    unknown = [word for word in others if not words or word.startswith("-")]
    if unknown:
        flag = unknown[0].partition("=")[0]
        near = difflib.get_close_matches(flag, flags, 1)
        fail(f"unknown flag {flag}" + (f"; did you mean {near[0]}?" if near else "")
             + " (-h lists them)")
    config = Config(**vars(found) | ({words: ",".join(others)} if others else {}))
    if "--out" in flags:
        check_out(config)
    if config.debug:
        sys.excepthook = sys.__excepthook__
    if ranks()[1] > 1 and not several:                # it would write its files once for each
        fail("this script is made for one process: start it with python, not with torchrun")
    return config


def check_out(config):
    """--out must be of its default's kind, and neither it nor what a run writes beside it may be
    read, or lie in a folder that is."""
    out, default = Path(config.out), type(config).out
    if default and not config.out or Path(default).suffix not in ("", out.suffix):
        fail(f"--out={config.out} should end in {Path(default).suffix or 'the name of a folder'}")
    written = [out] + [out.with_suffix(end) for end in (".jsonl", ".state") if out.suffix == ".pt"]
    read = [value.split(",") for name, value in vars(config).items()
            if isinstance(value, str) and name not in ("out", "folder", "agree")]
    for part in filter(None, map(str.strip, sum(read, []))):
        for file in written:
            if file.resolve().is_relative_to(Path(part).resolve()):
                fail(f"--out={out} would write {file}, but {part} is read here: choose another "
                     f"--out")


# The smallest and largest value of a flag, in every script. Its default is always allowed.
BOUNDS = [
    (1, math.inf, "steps batch_size micro_batch minibatch epochs eval_every eval_rows block_size "
                  "n_layer n_head n_embd n_prompts n_eval max_new_tokens k seeds jobs "
                  "runs n_test n_tokens n_screen n_sheets n_questions n_samples votes demos"),
    (0, math.inf, "lr critic_lr critic_first eps warmup weight_decay muon temperature kl_coef clip "
                  "clip_value ptx_coef best_of top_k n_docs n_demos lora max_calls limit "
                  "demo_steps demo_lr shown"),
    (0, 1, "dropout gamma lam top_p ptx held_out wrong"), (0.5, 1, "agreement"),
    (0, 2**63 - 1, "seed")]


def parse_value(field, text):
    """The text as the field's str, bool, int (2e3 is one, too) or float."""
    kind, name = type(field.default), field.name
    if kind is str:                                   # shells know --out ~/a.pt, not --out=~/a.pt
        return ",".join(map(os.path.expanduser, text.split(",")))
    try:
        if kind is bool:
            return configparser.ConfigParser.BOOLEAN_STATES[text.lower()]
        value = int(text) if kind is int and "e" not in text else float(text)
        if not math.isfinite(value) or kind(value) != value:
            raise ValueError
    except (KeyError, ValueError, OverflowError):
        fail(f"--{name}={text} is not {'true or false' if kind is bool else kind.__name__}")
    value = kind(value)
    for low, high, names in BOUNDS:
        if name in names.split() and not low <= value <= high and value != field.default:
            fail(f"--{name}={value} must be "
                 + (f"at least {low}" if value < low else f"at most {high}"))
    return value


# ---- errors, and what is printed -------------------------------------------------------------

def fail(message):
    """Stop with one line on stderr and exit status 1."""
    tell(message)
    raise SystemExit(1)


def tell(message, second_hand=False):
    """Print the last line of a run that fails. Under torchrun, rank 0 prints at once. The others
    wait: if rank 0 fails for the same reason, torchrun ends them before they repeat it. A process
    that only lost its peer (second_hand) waits, too: it is never the cause."""
    rank, _ = ranks()
    if rank or second_hand:
        time.sleep(5)
    flush()
    print(f"{Path(sys.argv[0]).name}: {f'process {rank}: ' if rank else ''}{message}",
          file=sys.stderr, flush=True)


def safe(text):
    """Make control characters visible, since a terminal would obey them: ESC becomes \\x1b. Data
    and models of bytes can contain any. Line breaks and tabs stay."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", lambda found: repr(found[0])[1:-1], text)


def say(text):
    """Print what may come from data or a model, without tearing the progress bar. A full disk or a
    lost terminal stops no run."""
    with suppress(OSError):
        tqdm.write(safe(text))


@cache
def note_once(text):
    """Print a line on stderr, but never the same one twice."""
    print(text, file=sys.stderr)


def flush():
    """Write out what is printed. A reader that has gone, as in `… | head`, is no error."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def one_line(kind, error, trace):
    """Print an uncaught exception as one line, unless --debug=true."""
    if kind is BrokenPipeError:
        return
    text = " ".join(str(error).split()) or kind.__name__
    if isinstance(error, OSError) and error.filename:
        text = f"{error.filename}: {error.strerror}"
    known = isinstance(error, (ValueError, OSError))
    gone = isinstance(error, RuntimeError) and re.search("gloo|NCCL|peer", text)
    tell(text if known else f"{kind.__name__}: {text} (--debug=true shows where)", bool(gone))


# ---- devices and ranks ----------------------------------------------------------------------

def ranks():
    """(rank, world_size). RANK alone may be left over in an environment."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Runtime:
    """Where this process runs: rank, world_size, device, precision."""
    cores = None                                      # chosen once for the whole process

    def __init__(self, config):
        self.rank, self.world_size = ranks()
        self.ddp, self.main, self.sharded = self.world_size > 1, self.rank == 0, False
        self.local_main = not self.ddp or os.environ["LOCAL_RANK"] == "0"     # of this machine
        device = config.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if self.ddp and device == "cuda":
            device = f"cuda:{os.environ['LOCAL_RANK']}"
        try:
            torch.zeros(1, device=device)
        except (AssertionError, RuntimeError):
            fail(f"--device={config.device}: this machine has no {device or 'such device'}; try "
                 f"--device=cpu, or start one process for each of its "
                 f"{torch.cuda.device_count()} GPUs (--nproc_per_node)")
        if device.startswith("cuda:"):
            torch.cuda.set_device(device)
        if self.ddp:
            hook = sys.excepthook                     # torch wraps it and would repeat the rank
            # gloo carries tensors on the CPU, such as those of sum(). The timeout is long because
            # rank 0 may need hours to encode a large corpus, while the others wait
            dist.init_process_group("cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo",
                                    timeout=timedelta(hours=6))
            sys.excepthook = sys.excepthook if config.debug else hook
        if sys.platform == "linux" and device == "cpu":
            with suppress(AttributeError):            # only glibc has mallopt
                # keep freed memory: asking the system for it again takes a tenth of a training step
                libc = ctypes.CDLL(None)
                libc.mallopt(-3, 2**25), libc.mallopt(-1, 2**28)      # mmap and trim thresholds
        self.device = torch.device(device)
        self.dtype = pick_dtype(config.dtype, self.device)
        if device == "cpu" and not self.ddp:
            Runtime.cores = Runtime.cores or Cores()
        if not self.main:
            sys.stdout = open(os.devnull, "w", encoding="utf-8")      # only rank 0 prints

    def autocast(self):
        """Run the matrix multiplications in self.dtype; weights and losses stay in fp32. Every
        forward pass begins here: the time to leave cores to others."""
        if self.cores:
            self.cores.share()
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def prepare(self, model, compile="auto", fsdp=False):
        """Put the model on its device; what the loop calls is compiled, and shared with the other
        ranks: each has it whole (DDP) or a part of it (FSDP2: its weights are collected layer by
        layer, while they compute)."""
        model.to(self.device)
        n_params = sum(p.numel() for p in model.parameters() if p.requires_grad)
        print(f"{n_params / 1e6:.2f}M parameters to train, on {self.device} in "
              f"{str(self.dtype)[6:]}")
        if fsdp:
            if not self.ddp:
                fail("--fsdp=true needs torchrun with several processes")
            from torch.distributed.fsdp import fully_shard
            for part in (*model.blocks, model):
                fully_shard(part)
            self.sharded = True
        model = self.compile(model, compile)
        return DDP(model) if self.ddp and not fsdp else model

    def compile(self, model, wanted):
        """torch.compile; auto means only on GPUs. On a laptop it takes half a minute, about as long
        as what it saves. It needs a C++ compiler, and on GPUs Triton: a tiny function shows whether
        they are there."""
        if wanted not in ("auto", "true", "false"):
            fail(f"--compile={wanted} is not auto, true or false")
        if wanted == "false" or (wanted == "auto" and self.device.type != "cuda"):
            return model
        try:
            torch.compile(torch.neg)(torch.ones(1, device=self.device))
        except Exception:
            print("no C++ compiler or no Triton found: running without torch.compile")
            return model
        return torch.compile(model)

    def parts(self, n, size, *models):
        """Cut n rows into micro-batches: slices of `size` rows. With the last one, the gradients of
        the models are averaged over the ranks; with each would cost as much every time."""
        for start in range(0, n, size):
            last = start + size >= n
            for model in models:
                if self.sharded:
                    model.set_requires_gradient_sync(last)
                elif self.ddp:
                    model.require_backward_grad_sync = last
            yield slice(start, start + size)

    def peak_memory(self):
        """The most bytes that this process has held, on its GPU if it has one."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        if sys.platform == "win32":                   # it does not tell
            return 0
        import resource
        size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return size if sys.platform == "darwin" else size * 1024

    def rows_per_step(self, config):
        """How many rows this process takes in every step, and in every forward pass."""
        rows = config.batch_size // self.world_size
        micro_batch = min(config.micro_batch, rows)
        if config.batch_size % self.world_size or rows % micro_batch:
            fail(f"--batch_size={config.batch_size} must be a multiple of {self.world_size} "
                 f"processes times --micro_batch={micro_batch}")
        return rows, micro_batch

    def sum(self, *values):
        """The sums over all ranks of some numbers, as floats. (Every rank must call it.)"""
        t = torch.tensor([float(v) for v in values], dtype=torch.float64)
        if self.ddp:
            dist.all_reduce(t)
        return t.tolist()

    def average(self, *values):
        """The means over all ranks of some numbers. (Every rank must call it.)"""
        return [v / self.world_size for v in self.sum(*values)]

    def seed(self, *numbers):
        """Seed torch from (seed, step, …) and the rank. Every step does this: a resumed run draws
        the same random numbers as an uninterrupted one."""
        key = repr((*numbers, self.rank)).encode()
        torch.manual_seed(int.from_bytes(hashlib.sha256(key).digest()[:8], "little") >> 1)

    def barrier(self):
        if self.ddp:
            dist.barrier()

    def close(self):
        if self.ddp:
            dist.destroy_process_group()


def pick_dtype(name, device):
    """auto: bf16 if the chip multiplies it natively, else fp32, since emulated bf16 takes 1.5 times
    as long (measured). The environment variable DTYPE overrides auto: DTYPE=float32 bash run.sh"""
    if name == "auto":
        name = os.environ.get("DTYPE") or ("bfloat16" if native_bf16(device) else "float32")
    if name not in DTYPES:
        fail(f"--dtype={name} is not one of auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def native_bf16(device):
    """GPUs since Ampere; x86 with AMX or AVX512_BF16; ARM with BF16."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    x86 = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    arm = platform.machine() == "aarch64" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return device.type == "cpu" and (x86 or arm)


# ---- threads ---------------------------------------------------------------------------------

def cpu_seconds():
    """Summed over the cores that this process may use, since some time in the past: the seconds
    that passed, and those that other programs computed."""
    cores = {f"cpu{n}" for n in os.sched_getaffinity(0)}
    with open("/proc/stat", encoding="utf-8") as f:   # of each core: user nice system idle …
        rows = [[int(n) for n in line.split()[1:9]] for line in f if line.split()[0] in cores]
    busy = sum(sum(row) - row[3] - row[4] for row in rows)
    ticks = os.sysconf("SC_CLK_TCK")
    return sum(map(sum, rows)) / ticks, busy / ticks - time.process_time()


class Cores:
    """Takes as many threads as there are cores that no other program needs (on Linux).

    PyTorch's threads meet after every operation, and wait there in a loop. One that has lost its
    core to another program holds up all of them: beside a busy program two threads on two cores
    are slower than one. Their number changed no bit of the default model's weights where we tried
    it; where norms have weights, it changes the rounding of these weights' gradients."""

    def __init__(self):
        self.most = torch.get_num_threads() if sys.platform == "linux" else 1
        with suppress(OSError, ValueError):           # a container's share, as of docker --cpus=2
            quota, period = Path("/sys/fs/cgroup/cpu.max").read_text("utf-8").split()
            self.most = min(self.most, math.ceil(int(quota) / int(period)))
            torch.set_num_threads(self.most)
        self.looks, self.again = 0, 0.0
        self.before = cpu_seconds() if self.most > 1 else None

    def share(self):
        """Choose again, once a second."""
        if self.most == 1 or time.monotonic() < self.again:
            return
        now = cpu_seconds()
        passed, others = now[0] - self.before[0], now[1] - self.before[1]
        self.looks, self.again, self.before = self.looks + 1, time.monotonic() + 1, now
        free = len(os.sched_getaffinity(0)) * (1 - others / max(passed, 1e-9))
        n = max(1, min(self.most, round(free)))
        if n < self.most:
            note_once(f"other programs are busy: computing with {n} of {self.most} threads until "
                      f"they end")
        # a program of low priority is busy only where we leave it a core: see what it takes then
        torch.set_num_threads(self.most if self.looks % 20 == 0 else n)


# ---- files ----------------------------------------------------------------------------------

def check_writable(path):
    """Make its folder, and fail now, not after an hour, where the result can't be written. (The
    system would replace a file that is marked as read-only.)"""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fail(f"--out={path}: {error.filename} can't be used ({error.strerror}): choose another "
             f"--out")
    if path.is_dir():
        fail(f"{path} is a folder: choose another --out")
    for place in (path.parent, path):
        if place.exists() and not (os.access(place, os.W_OK) and place.stat().st_mode & 0o222):
            fail(f"{place} is read-only: allow writing (chmod u+w), or choose another --out")


@contextmanager
def named(path):
    """with named(path): a write that fails names the file, and the way out."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        # torch.save replaces the system's error by its own; __context__ still has the first one
        reason = error if isinstance(error, OSError) else error.__context__
        if not isinstance(reason, OSError) or reason.filename:        # it names a file already
            raise
        why = reason.strerror or reason
        raise OSError(f"{path} could not be written ({why}): make room if the disk is full, or "
                      f"choose another --out; the same command goes on") from error


@contextmanager
def writing(path, mode="w"):
    """with writing(path) as f: write a temporary file, then rename it. So path is always complete:
    the old file or the new one. A write that fails says why and leaves nothing behind. Two
    processes may write one file at a time."""
    path = Path(path)
    check_writable(path)
    tmp = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with named(path):
        try:
            with open(tmp, mode, encoding=None if "b" in mode else "utf-8") as f:
                yield f
                f.flush()
                try:
                    os.fsync(f.fileno())              # else its name may be on the disk first
                except OSError as error:              # some network disks can't tell
                    if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
                        raise
            os.replace(tmp, path)
        except BaseException:
            tmp.unlink(missing_ok=True)
            raise


def to_json(value, **options):
    """JSON as browsers read it: numbers that are not finite become null, NumPy's become floats."""
    return json.dumps(from_json(json.dumps(value, default=float)), **options)


def from_json(text):
    """What to_json wrote, or json.dumps: NaN and Infinity become None."""
    return json.loads(text, parse_constant=lambda name: None)


def read_json(path):
    """What a script of this project wrote to a file of its own."""
    try:
        return from_json(Path(path).read_text(encoding="utf-8"))
    except (RecursionError, ValueError) as error:
        fail(f"{path} is damaged ({error}): remove it, and the same command makes it again")


# ---- what people read -----------------------------------------------------------------------

def number(value):
    """A number in five or six characters: 1234567 -> 1.23M, 0.00123 -> 1.2e-03."""
    if isinstance(value, str) or value is None:
        return str(value)
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size * (10 if letter == "k" else 1):
            return f"{value / size:.{1 if letter == 'k' else 2}f}{letter}"
    if isinstance(value, int):
        return f"{value:5d}"
    return f"{value:.1e}" if 0 < abs(value) < 0.01 else f"{value:6.3f}"


def clock(seconds):
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def wilson(share, n, z=1.96):
    """The 95% interval of a share seen in n independent draws (Wilson 1927)."""
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    return max(middle - half, 0.0), min(middle + half, 1.0)


def percent(share, n):
    """A share seen in n draws, with its interval: percent(0.925, 200) -> "92.5% [88.0, 95.4]"."""
    low, high = wilson(share, n)
    return f"{share:.1%} [{100 * low:.1f}, {100 * high:.1f}]"


# ---- functions of your own, given as FILE.py:name: a labeler, a reward, a judge -------------

def function_file(spec):
    """"FILE.py:name" -> "FILE.py"; "" where spec names another kind of thing, as a checkpoint."""
    found = re.fullmatch(r"(.+\.py)(:[^/\\]*)?", spec, re.DOTALL)
    return found[1] if found else ""


def load_function(spec):
    """"FILE.py:name" -> the function. Whatever it does to its arguments, it does to copies: no two
    prompts of a copy are the same object."""
    file = function_file(spec)
    path, name = Path(file).resolve(), spec[len(file) + 1:]
    if not name or not path.is_file():
        fail(f"{spec!r} is no function: give one as FILE.py:name, of a file that is there")
    sys.path.insert(0, str(path.parent))              # it may import what stands beside it
    function = runpy.run_path(str(path), run_name=path.stem).get(name)
    sys.path.remove(str(path.parent))
    if not callable(function):
        fail(f"{file} has no function named {name}")
    return lambda *arguments: function(*json.loads(json.dumps(arguments)))


def get_scores(function, prompts, responses, name):
    """Call a user's function -> (N,): one finite number per answer. If it fails, the error names
    the first answer it fails on."""
    try:
        scores = torch.as_tensor(function(prompts, responses), dtype=torch.float32).cpu()
        if scores.shape != (len(responses),):
            raise ValueError(f"gave {tuple(scores.shape)} scores for {len(responses)} responses")
        if not scores.isfinite().all():
            raise ValueError(f"gave {scores[~scores.isfinite()][0].item()}")
        return scores
    except Exception as error:
        if len(responses) > 1:                        # one by one, until it fails again
            for prompt, response in zip(prompts, responses):
                get_scores(function, [prompt], [response], name)
        prompt, response = prompts[0][-1]["content"], responses[0]
        where = f" for the prompt {prompt!r} and the response {response!r}"
        raise ValueError(f"{name}: {type(error).__name__}: {error}{where * (len(responses) == 1)} "
                         f"(--debug=true shows where)") from error


def verdicts_of(judge, prompts, responses, name):
    """Call a judge on each pair: [{"grade", "right", "unsure", "refusal"}]."""
    verdicts = []

    def grades(prompts, responses):
        verdicts[:] = map(judge, prompts, responses)
        numbers = [[float(v[key]) for key in ("grade", "right", "unsure", "refusal")]
                   for v in verdicts]
        return [grade for grade, *_ in numbers]

    get_scores(grades, prompts, responses, name)
    return verdicts
