"""Plumbing that the stages share: flags, devices and ranks, checkpoints, resuming, the log.

Nothing here would be on a slide. Every loop, loss, batch and mask stands in its script.
"""

import atexit
import dataclasses
import difflib
import glob
import hashlib
import inspect
import json
import math
import os
import re
import signal
import sys
import time
import warnings
import zipfile
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import state_dict as whole_state
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from tqdm import tqdm

try:
    from fcntl import LOCK_EX, LOCK_NB, lockf
except ImportError:                                   # Windows, where runs are not locked
    lockf = None


def fail(message):
    """Stop with one line on stderr and exit status 1."""
    tell(message)
    raise SystemExit(1)


def tell(message, second_hand=False):
    """The last line of a run that fails. Under torchrun rank 0 speaks at once. The others wait: if
    it fails for the same reason, torchrun ends them before they say it again. So does who only
    hears that another process is gone, which is never the cause."""
    rank = int(os.environ.get("RANK", 0))
    if rank or second_hand:
        time.sleep(5)
    sys.stdout.flush()
    print(f"{Path(sys.argv[0]).name}: {f'process {rank}: ' if rank else ''}{message}",
          file=sys.stderr, flush=True)


# ---------------------------------------------------------------------------------------------
# flags: every field of a script's Config is --field=value, and the class itself is the help

def parse_config(Config, doc, argv=None, words=""):
    """Build Config from the command line; -h prints `doc` and the source of Config. words: the
    field that takes what is no flag, joined by commas; otherwise such words are refused."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if "-h" in argv or "--help" in argv:
        print(doc.strip() + "\n\nFlags are the fields of this class, as --field=value:\n")
        print(inspect.getsource(Config).rstrip())
        raise SystemExit(0)
    fields, values = {f.name: f for f in dataclasses.fields(Config)}, {}
    while argv:
        if words and not argv[0].startswith("-"):
            values[words] = ",".join(filter(None, [values.get(words), argv.pop(0)]))
            continue
        flag, equals, text = argv.pop(0).partition("=")
        name = flag[2:].replace("-", "_")
        if not flag.startswith("--") or name not in fields:
            near = difflib.get_close_matches(name, fields, 1)
            fail(f"unknown flag {flag}" + (f"; did you mean --{near[0]}?" if near else "")
                 + " (-h lists them)")
        kind = type(fields[name].default)
        if not equals:                                # --lr 1e-3, and --fresh alone for true
            following = argv and not argv[0].startswith("--")
            if kind is not bool and not following:
                fail(f"--{name} needs a value, as in --{name}={fields[name].default}")
            text = argv.pop(0) if following else "true"
        try:
            values[name] = parse_value(kind, text)
        except (ValueError, OverflowError):
            fail(f"--{name}={text} is not {'true or false' if kind is bool else kind.__name__}")
    for name, value in values.items():
        low, high = BOUNDS.get(name, (-math.inf, math.inf))
        if name in BOUNDS and not low <= value <= high and value != fields[name].default:
            fail(f"--{name}={value} must be " + (f"at least {low}" if value < low else
                                                 f"at most {high}"))
    config = Config(**values)
    sys.excepthook = sys.__excepthook__ if config.debug else one_line
    return config


# The least and the most that a flag can be, wherever it occurs; its default is always allowed.
BOUNDS = {name: (1, math.inf) for name in (
    "steps", "batch_size", "micro_batch", "minibatch", "epochs", "eval_every", "eval_rows",
    "block_size", "n_layer", "n_head", "n_embd", "n_prompts", "n_eval", "max_new_tokens", "k")}
BOUNDS |= {name: (0, math.inf) for name in (
    "lr", "warmup", "weight_decay", "muon", "temperature", "kl_coef", "kl_target", "clip",
    "clip_value", "max_kl", "ptx_coef", "best_of", "top_k", "n_docs", "n_demos")}
BOUNDS |= {name: (0, 1) for name in ("dropout", "gamma", "lam", "top_p", "ptx")}
BOUNDS |= {"agreement": (0.5, 1), "seed": (0, 2**63 - 1)}


def parse_value(kind, text):
    if kind is bool:
        if text.lower() not in ("true", "false", "1", "0", "yes", "no"):
            raise ValueError
        return text.lower() in ("true", "1", "yes")
    if kind is int and "e" in text:                   # --steps=2e3
        if not float(text).is_integer():
            raise ValueError
        return int(float(text))
    value = kind(text)
    if kind is float and not math.isfinite(value):
        raise ValueError
    return value


def one_line(kind, error, trace):
    """What is shown of an uncaught exception, unless --debug=true."""
    text = " ".join(str(error).split()) or kind.__name__
    if isinstance(error, OSError) and error.filename:
        text = f"{error.filename}: {error.strerror}"
    known = isinstance(error, (ValueError, OSError))
    gone = isinstance(error, RuntimeError) and re.search("gloo|NCCL|peer", text)
    tell(text if known else f"{kind.__name__}: {text} (--debug=true shows where)", bool(gone))


# ---------------------------------------------------------------------------------------------
# devices and ranks

class Setup:
    """Where this process runs: rank, world_size, device, precision."""

    def __init__(self, config):
        self.rank = int(os.environ.get("RANK", 0))
        self.world_size = int(os.environ.get("WORLD_SIZE", 1))
        self.ddp, self.main = "RANK" in os.environ, self.rank == 0
        device = config.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device.startswith("cuda") and not torch.cuda.is_available():
            fail("--device=cuda, but this machine has no CUDA device; try --device=cpu")
        if device == "mps" and not torch.backends.mps.is_available():
            fail("--device=mps, but this machine has no MPS device; try --device=cpu")
        if self.ddp:
            if device == "cuda":
                device = f"cuda:{os.environ['LOCAL_RANK']}"
                torch.cuda.set_device(device)
            # tensors on the CPU, such as a flag to stop, travel by gloo
            hook = sys.excepthook                     # which torch wraps, to name the rank again
            dist.init_process_group("cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo")
            sys.excepthook = sys.excepthook if config.debug else hook
        if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", device):
            fail(f"--device={config.device} is not one of auto, cpu, cuda, mps")
        self.device = torch.device(device)
        self.dtype = pick_dtype(config.dtype, self.device)
        if not self.main:
            sys.stdout = open(os.devnull, "w")        # rank 0 speaks for all

    def autocast(self):
        """Run the matrix multiplications in self.dtype; weights and losses stay in fp32."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def compile(self, model, wanted):
        """torch.compile where it pays: by itself on GPUs only, since on a laptop the half minute
        it takes is about what it saves."""
        if wanted not in ("auto", "true", "false"):
            fail(f"--compile={wanted} is not auto, true or false")
        if wanted == "false" or (wanted == "auto" and self.device.type != "cuda"):
            return model
        try:
            import torch._inductor.cpp_builder as builder
            if self.device.type == "cpu":
                builder.get_cpp_compiler()
        except Exception:
            print("no C++ compiler found: running without torch.compile")
            return model
        return torch.compile(model)

    def shard(self, model):
        """FSDP2: split the weights, and with them gradients and optimizer state, among the ranks;
        a layer's weights come together only while it computes."""
        if not self.ddp:
            fail("--fsdp=true needs torchrun")
        for block in model.blocks:
            fully_shard(block)
        fully_shard(model)
        register_fsdp_forward_method(model, "generate")

    def peak_flops(self):
        """Floating-point operations a second in a large matrix product, measured: MFU's 100%."""
        n = 8192 if self.device.type == "cuda" else 2048
        a, seconds = torch.randn(n, n, device=self.device, dtype=self.dtype), []
        for _ in range(8):
            start = time.perf_counter()
            (a @ a)[0, 0].item()                      # waits for the GPU
            seconds.append(time.perf_counter() - start)
        return 2 * n**3 / min(seconds)

    def any(self, *flags):
        """Is a flag set on any rank? (Every rank must call it.)"""
        if not self.ddp:
            return flags
        t = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(t, op=dist.ReduceOp.MAX)
        return t.bool().tolist()

    def average(self, *values):
        """The mean over ranks of some numbers (every rank must call it)."""
        if not self.ddp:
            return [float(v) for v in values]
        t = torch.tensor(values, dtype=torch.float64)
        t = t.to(torch.float32) if self.device.type == "mps" else t.to(self.device)
        dist.all_reduce(t)
        return (t / self.world_size).tolist()

    def seed(self, *numbers):
        """Seed torch from (seed, step, …) and the rank. Every step does it anew, so that an
        interrupted run continues with the random numbers it would have had."""
        key = repr((*numbers, self.rank)).encode()
        torch.manual_seed(int.from_bytes(hashlib.sha256(key).digest()[:8], "little") >> 1)

    def barrier(self):
        if self.ddp:
            dist.barrier()

    def close(self):
        if self.ddp:
            dist.destroy_process_group()


class Whole:
    """Saves and loads, as if it were in one piece, what Setup.shard has split: the model, or its
    optimizer if that is given. (Every rank must call it.)"""

    def __init__(self, model, optimizer=None):
        self.model, self.optimizer = model, optimizer
        self.options = whole_state.StateDictOptions(full_state_dict=True, cpu_offload=True)

    def state_dict(self):
        if self.optimizer is None:
            return whole_state.get_model_state_dict(self.model, options=self.options)
        return whole_state.get_optimizer_state_dict(self.model, self.optimizer,
                                                    options=self.options)

    def load_state_dict(self, state):
        options = whole_state.StateDictOptions(full_state_dict=True)
        if self.optimizer is None:
            whole_state.set_model_state_dict(self.model, state, options=options)
        else:
            whole_state.set_optimizer_state_dict(self.model, self.optimizer, state, options=options)


def pick_dtype(name, device):
    """auto is bf16 where the chip multiplies it natively: GPUs since Ampere, CPUs with AMX
    (measured: without AMX a bf16 product takes 1.5 times as long as fp32)."""
    dtypes = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    if name in dtypes:
        return dtypes[name]
    if name != "auto":
        fail(f"--dtype={name} is not one of auto, {', '.join(dtypes)}")
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    amx = device.type == "cpu" and torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if amx else torch.float32


# ---------------------------------------------------------------------------------------------
# checkpoints: one dict of tensors and plain Python, loaded with weights_only=True

MAKERS = {"pretrain": "pretrain.py", "sft": "sft.py", "reward": "reward.py", "ppo": "rlhf_ppo.py"}


def make_folder(out):
    """The folder that --out stands in: if it can't be had, better now than after an hour."""
    try:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        if not os.access(Path(out).parent, os.W_OK):
            raise PermissionError(0, "no permission to write", str(Path(out).parent))
    except OSError as error:
        fail(f"--out={out}: {error.filename} can't be used ({error.strerror}): choose another "
             f"--out")


@contextmanager
def writing(path, mode="w"):
    """with writing(path) as f: the file at every moment is whole, old or new, or not there: it is
    written beside the target, then renamed. A write that fails says why and leaves no trace."""
    path = Path(path)
    tmp = path.with_name(path.name + ".tmp")
    make_folder(path)
    try:
        with open(tmp, mode, encoding=None if "b" in mode else "utf-8") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())                      # else the name may reach the disk first
        os.replace(tmp, path)
    except BaseException as error:
        with suppress(OSError):
            tmp.unlink()
        # torch.save turns what the disk said into something about positions
        reason = error if isinstance(error, OSError) else error.__context__
        if not isinstance(reason, OSError):
            raise
        raise OSError(f"{path} could not be written ({reason.strerror or reason}) and is as it "
                      f"was: make room there, or choose another --out; the same command goes on"
                      ) from error


def atomic_save(obj, path):
    for part in ("model", "critic"):
        if not all(w.isfinite().all() for w in obj.get(part, {}).values()):
            fail(f"weights of the {part} are no longer finite, so {path} was not written: start "
                 f"over with a smaller --lr and --fresh")
    with writing(path, "wb") as f:
        torch.save(obj, f)


def save_checkpoint(path, *, stage, step, metrics, model, model_config, tokenizer, config, history,
                    **extra):
    """model: a module or its state_dict; tokenizer: a Tokenizer; history: that of the checkpoint we
    started from."""
    config = {k: v for k, v in dataclasses.asdict(config).items() if k not in ("fresh", "debug")}
    weights = model if isinstance(model, dict) else model.state_dict()
    atomic_save({
        "stage": stage, "step": step, "metrics": metrics,
        "model": {k: v.detach().float().cpu() for k, v in weights.items()},
        "model_config": dataclasses.asdict(model_config), "tokenizer": tokenizer.to_dict(),
        "config": config, "history": history + [dict(stage=stage, config=config, metrics=metrics)],
        **extra}, path)


def load_checkpoint(path, stage=None, tokenizer=None):
    """The dict that save_checkpoint wrote. stage: a name or several; tokenizer: the one it must
    have. Stops with one line that names the remedy if the file is not what was asked for."""
    stages = (stage,) if isinstance(stage, str) else stage or tuple(MAKERS)
    ckpt = load_dict(path, f"python {MAKERS[stages[0]]}")
    if not {"stage", "model", "model_config", "tokenizer", "history"} <= ckpt.keys():
        fail(f"{path} is not a checkpoint of this project; `python {MAKERS[stages[0]]}` makes one")
    if ckpt["stage"] not in stages:
        fail(f"{path} comes from stage '{ckpt['stage']}', but {' or '.join(stages)} is needed here:"
             f" `python {MAKERS[stages[0]]}` makes one")
    if not is_sound(ckpt):
        fail(f"{path} is damaged: its weights are not those of the model that it describes; run "
             f"`python {MAKERS[ckpt['stage']]} --fresh` again")
    if tokenizer is not None and ckpt["tokenizer"] != tokenizer:
        fail(f"{path} was trained with another tokenizer than the checkpoint it is used with; "
             f"run the stages again from the same pretrained model")
    return ckpt


def is_sound(ckpt):
    """Whether the weights are numbers, and of the shapes that a model of its config has."""
    from model import GPT, GPTConfig, ScalarGPT       # here, for they import the other way round
    from tokenizer import Tokenizer
    try:
        with torch.device("meta"):                    # shapes without memory
            config = GPTConfig(**ckpt["model_config"])
            scalar = ckpt["stage"] == "reward"
            model = ScalarGPT(config, lm=ckpt.get("lm", False)) if scalar else GPT(config)
        return (Tokenizer.from_dict(ckpt["tokenizer"]).vocab_size <= config.vocab_size
                and all(w.isfinite().all() for w in ckpt["model"].values())
                and {name: w.shape for name, w in model.state_dict().items()}
                == {name: w.shape for name, w in ckpt["model"].items()})
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError):
        return False


def load_dict(path, maker):
    if not Path(path).is_file():
        fail(f"{path or 'a file without a name'} is missing: `{maker}` makes it")
    try:
        with zipfile.ZipFile(path) as parts, warnings.catch_warnings():
            if parts.testzip():                       # torch doesn't look at the checksums
                raise ValueError
            warnings.simplefilter("ignore")
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:          # torch raises whatever the broken bytes lead it to
        fail(f"{path} is damaged or not a checkpoint: delete it and run `{maker}` again")
    if not isinstance(loaded, dict):
        fail(f"{path} is not a checkpoint of this project; `{maker}` makes one")
    return loaded


# ---------------------------------------------------------------------------------------------
# a run: its log, and its state, from which the same command continues

def fingerprint(path):
    """Tells whether an input has changed: a hash of the files' names and bytes."""
    digest = hashlib.sha256()
    for part in str(path).split(","):
        part = Path(part.strip())
        files = sorted(p for p in part.rglob("*") if p.is_file()) if part.is_dir() else [part]
        for file in (f for f in files if f.is_file()):
            digest.update(f"{file.name} {file.stat().st_size} ".encode())
            with open(file, "rb") as f:
                while block := f.read(2**20):
                    digest.update(block)
    return digest.hexdigest()[:16]


class Run:
    """One run of one stage: `state` is what an interrupted run left, or None.

    The state stands beside the result (out/sft.state beside out/sft.pt), is written every
    20 seconds and on Ctrl-C, and is deleted when the result is saved. out/sft.lock keeps a second
    run away; out/sft.nan.pt is the batch that broke a run. Random numbers and data order
    follow from (seed, step), so weights, optimizer and step are all that it needs.
    """

    def __init__(self, config, env, inputs=(), total=None, unit="step"):
        self.config, self.env, self.total = config, env, total or config.steps
        self.seconds = float(os.environ.get("SAVE_SECONDS", 20))      # the tests save at every step
        self.out, ending = Path(config.out), Path(type(config).out).suffix
        if self.out.suffix != ending:
            fail(f"--out={config.out} should end in {ending}")
        self.state_file, self.log_file, self.nan_file = (
            self.out.with_suffix(s) for s in (".state", ".jsonl", ".nan.pt"))
        for read in (part.strip() for i in inputs for part in str(i).split(",") if part.strip()):
            for file in (self.out, self.log_file, self.state_file):
                if file.resolve().is_relative_to(Path(read).resolve()):
                    fail(f"--out={config.out} would write {file}, but {read} is read here: choose "
                         f"another --out")
        if self.log_file != self.out and not is_log(self.log_file):
            fail(f"{self.log_file} is there already and is no log: choose another --out")
        flags = dataclasses.asdict(config)
        self.flags = {k: v for k, v in flags.items() if k not in ("fresh", "debug")}
        self.flags["processes"] = env.world_size
        if env.main:
            self.lock()
        self.inputs = {i: fingerprint(i) for i in inputs if i}
        self.state = self.resume()
        self.start = self.last = self.state["step"] if self.state else 0
        self.saved = self.began = time.time()
        self.cost = 0                                 # seconds that the last save took
        self.interrupted = self.trimmed = False
        signal.signal(signal.SIGINT, self.interrupt)
        self.bar = tqdm(total=self.total, initial=self.start, unit=unit, leave=False,
                        dynamic_ncols=True, disable=not (env.main and sys.stderr.isatty()))

    def lock(self):
        """Two runs must not write the same files. The lock is the system's, which frees it when
        this process ends, in whatever way; the file that carries it means nothing by itself."""
        make_folder(self.out)
        self.locked = open(self.out.with_suffix(".lock"), "a")
        try:
            if lockf:
                lockf(self.locked, LOCK_EX | LOCK_NB)
        except (BlockingIOError, PermissionError):
            fail(f"another run is writing {self.out}: wait for it, or choose another --out")
        except OSError:                               # some network disks have no locks
            pass
        atexit.register(self.unlock)

    def unlock(self):
        if not self.locked.closed:
            self.locked.close()
            Path(self.locked.name).unlink(missing_ok=True)

    def resume(self):
        """The state to go on from, or None. A finished run, or one with other flags, ends here."""
        path = next((p for p in (self.state_file, self.out) if p.exists()), None)
        if path is None or self.config.fresh:
            return None
        again = f"python {Path(sys.argv[0]).name} --fresh"
        if path == self.out != self.out.with_suffix(".pt"):
            fail(f"{path} is there already, but not from this script; --fresh replaces it")
        state = load_dict(path, again)
        if state.get("finished") and not self.out.exists():
            return None
        before = state.get("run", dict(flags={}, inputs={}))
        changed = [f"--{k}={before['flags'].get(k)} there, {v} here"
                   for k, v in self.flags.items() if before["flags"].get(k) != v
                   and not (k == "lr" and path == self.state_file and self.nan_file.exists())]
        changed += [f"{k} has changed since" for k, v in self.inputs.items()
                    if before["inputs"].get(k) != v]
        if changed:
            fail(f"{path} is from another run ({'; '.join(changed[:3])}): --fresh starts over, "
                 f"--out=... keeps both")
        if path == self.state_file and not state.get("finished"):
            print(f"resuming from {state['step']} of {self.total} ({path})")
            return state
        print(f"{self.out} is finished; --fresh makes it again")
        self.env.close()
        raise SystemExit(0)

    def identity(self):
        """Goes into the state and the result, so that a later run knows whose they are."""
        return dict(flags=self.flags, inputs=self.inputs)

    def check(self, step, grad_norm, **batch):
        """Call before the optimizer's step: a gradient that is not finite never reaches weights or
        state. Its norm is the same on all ranks. (A GPU is waited for, once a step.)"""
        if math.isfinite(grad_norm):
            return
        name = self.nan_file if self.env.main else f"{self.nan_file}.{self.env.rank}"
        atomic_save(dict(step=step, grad_norm=float(grad_norm), **batch), name)
        self.env.barrier()                            # until all have saved theirs
        self.bar.close()
        fail(f"the loss or its gradient is {float(grad_norm)} at step {step + 1} (its batch: "
             f"{self.nan_file}); with a smaller --lr the same command goes on from step "
             f"{self.last}, with --fresh from the beginning")

    def interrupt(self, *_):
        if self.interrupted:                          # a second Ctrl-C does not wait
            raise KeyboardInterrupt
        self.interrupted = True

    def save_state(self, step, **state):
        """Call after every step: writes every 20 seconds, and after Ctrl-C, then stops."""
        self.bar.update(step - self.bar.n)
        self.trim_log()
        # a large model takes seconds to write: then less often, so that it costs 2% of the time
        pause = self.seconds * max(1, 2.5 * self.cost)
        due = self.env.main and time.time() - self.saved > pause
        due, self.interrupted = self.env.any(due, self.interrupted)   # all stop at the same step
        if due or self.interrupted:
            began = time.time()
            state = {k: v.state_dict() if hasattr(v, "state_dict") else v for k, v in state.items()}
            if self.env.main:
                atomic_save(dict(step=step, run=self.identity(), **state), self.state_file)
            self.saved, self.last = time.time(), step
            self.cost = self.saved - began
        if self.interrupted:
            self.bar.close()
            again = ", without --fresh," if self.config.fresh else ""
            print(f"\nstopped after step {step}; the same command{again} continues from here")
            raise SystemExit(130)

    def finish(self):
        """The result is saved. A checkpoint knows whose it is; beside other files the emptied state
        stays, to know it."""
        self.bar.close()
        if self.env.main:
            if self.out.suffix == ".pt":
                self.state_file.unlink(missing_ok=True)
            else:
                atomic_save(dict(run=self.identity(), finished=True), self.state_file)
            for file in self.out.parent.glob(f"{glob.escape(self.nan_file.name)}*"):
                file.unlink()
            self.unlock()
            print(f"saved {self.out} after {clock(time.time() - self.began)}")
        self.env.close()

    def trim_log(self):
        """Drop the lines that the resumed run is going to write again: those of later steps, and
        PPO's evaluation of held-out prompts at this one, which comes before the step. Not before
        there is something to write: a run that is refused has touched nothing."""
        if self.trimmed or not self.env.main or self.log_file == self.out:
            return
        self.trimmed, kept = True, []
        if self.start and self.log_file.exists():
            lines = self.log_file.read_text().splitlines()
            rows = [(s, json.loads(s)) for s in lines if s.endswith("}")]
            kept = [s for s, r in rows if r["step"] + ("split" in r) <= self.start]
        with writing(self.log_file) as f:
            f.write("".join(line + "\n" for line in kept))

    def log(self, step, values, **more):
        """values: one aligned line on the screen; with `more`, one line of out/<stage>.jsonl."""
        if not self.env.main:
            return
        self.trim_log()
        with open(self.log_file, "a") as f:
            f.write(json.dumps(dict(step=step, **values, **more)) + "\n")
        done = max(step - self.start, 1)
        left = (time.time() - self.began) / done * (self.total - step)
        cells = [f"step {step:>{len(str(self.total))}}/{self.total}"]
        cells += [f"{name.split('/')[-1]} {number(v)}" for name, v in values.items()]
        tqdm.write(" | ".join(cells + [f"eta {clock(left)}"]))

    def say(self, text):
        """Print without tearing the progress bar."""
        if self.env.main:
            tqdm.write(text)


def is_log(path):
    """Whether Run wrote this file, or nobody: out/sft.jsonl could be somebody's demonstrations."""
    with suppress(FileNotFoundError, NotADirectoryError), open(path, "rb") as f:
        return f.readline(100)[:9] in (b"", b'{"step": ')
    return True


def number(value):
    """Five or six characters, whatever the size: 1234567 -> 1.23M, 0.00123 -> 1.2e-03."""
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
