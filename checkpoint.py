"""What a stage writes: its checkpoint, its log, and the state from which it can go on.

A checkpoint is one dict of tensors and plain Python values, loaded with weights_only=True.
"""

import dataclasses
import glob
import hashlib
import math
import os
import signal
import sys
import time
import warnings
import zipfile
from contextlib import contextmanager, suppress
from pathlib import Path
from unittest.mock import patch

import torch
from tqdm import tqdm

from common import (DTYPES, check_writable, clock, fail, from_json, function_file, load_function,
                    named, note_once, number, say, to_json, writing)
from data.corpus import Corpus
from data.formats import text_files
from model import GPT, MLP, Attention, GPTConfig, ScalarGPT
from tokenizer import Tokenizer

try:
    from fcntl import LOCK_EX, LOCK_NB, lockf
except ImportError:                                   # Windows, where runs are not locked
    lockf = None

MAKERS = {"pretrain": "pretrain.py", "sft": "sft.py", "reward": "reward.py", "ppo": "rlhf_ppo.py"}


def atomic_save(obj, path):
    for part in ("model", "critic"):
        for name, w in obj.get(part, {}).items():
            if not w.isfinite().all():
                fail(f"weights of the {part} are not finite ({name}), so {path} was not written")
    with writing(path, "wb") as f:
        torch.save(obj, f)


def save_checkpoint(path, *, stage, step, metrics, model, model_config, tokenizer, config, history,
                    **run):
    """model: a module or its state_dict; history: that of the checkpoint that this stage started
    from."""
    config = flags_of(config)
    weights = model if isinstance(model, dict) else model.state_dict()
    atomic_save({
        "stage": stage, "step": step, "metrics": metrics,
        "model": {name: w.detach().float().cpu() for name, w in weights.items()},
        "model_config": dataclasses.asdict(model_config), "tokenizer": tokenizer.to_dict(),
        "config": config, "history": history + [dict(stage=stage, config=config, metrics=metrics)],
        **run}, path)


def flags_of(config):
    """The flags on which the result depends."""
    return {k: v for k, v in dataclasses.asdict(config).items() if k not in ("fresh", "debug")}


def load(path, rt, stages=None, tok=None, frozen=False, **changes):
    """(model, tokenizer, history) from a checkpoint. stages: the names of the stages that it may
    come from; tok: the tokenizer that it must have; frozen: it is not trained; changes: to the
    model's config."""
    ckpt = load_checkpoint(path, stages, tok, **changes)
    model = ckpt["model"].to(rt.device)
    return freeze_all(model, rt.dtype) if frozen else model, ckpt["tokenizer"], ckpt["history"]


def freeze_all(model, dtype):
    """The model, not to be trained. Its blocks' matrices are stored in this dtype: autocast rounds
    them to it in every product, so this halves them and changes no output."""
    for module in model.requires_grad_(False).modules():
        if isinstance(module, (Attention, MLP)):
            module.to(dtype)
    return model


def load_reward(name, tok, rt):
    """A frozen reward model for a policy with this tokenizer, or the function FILE.py:function."""
    if function_file(name):
        return load_function(name)
    return load(name, rt, "reward", tok, frozen=True)[0]


def load_checkpoint(path, stages=None, tok=None, **changes):
    """The dict that save_checkpoint wrote, with the model and the tokenizer as objects."""
    stages = (stages or " ".join(MAKERS)).split()
    named_after = Path(path).stem                     # out/ppo.pt is what rlhf_ppo.py makes
    maker = f"python {MAKERS[named_after if named_after in stages else stages[0]]}"
    ckpt = load_dict(path, maker, {"stage", "model", "model_config", "tokenizer", "history"})
    if ckpt["stage"] not in stages:
        fail(f"{path} comes from stage '{ckpt['stage']}', but {' or '.join(stages)} is needed here:"
             f" `{maker}` makes one")
    try:
        ckpt["model"] = build_model(ckpt, changes)
        ckpt["tokenizer"] = Tokenizer.from_dict(ckpt["tokenizer"])
        sound = ckpt["tokenizer"].vocab_size <= ckpt["model_config"]["vocab_size"]
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError):
        sound = False
    if not sound:
        fail(f"{path} is damaged: its weights are not finite, or not those of the model that it "
             f"describes; run `python {MAKERS[ckpt['stage']]} --fresh` again")
    if tok is not None and ckpt["tokenizer"].fingerprint != tok.fingerprint:
        fail(f"{path} was trained with another tokenizer than the checkpoint it is used with; "
             f"run the stages again from the same pretrained model")
    return ckpt


def build_model(ckpt, changes):
    """A checkpoint's model: built without memory, then filled with the weights from the file."""
    weights = {name: w.to(torch.get_default_dtype()) for name, w in ckpt["model"].items()}
    if not all(w.isfinite().all() for w in weights.values()):
        raise ValueError
    # nothing is drawn: on `meta` the first random number would import the compiler, a second
    with torch.device("meta"), patch.object(torch.Tensor, "normal_", lambda w, *_, **__: w):
        config = GPTConfig(**ckpt["model_config"] | dict(dropout=0.0) | changes)
        scalar = ckpt["stage"] == "reward"
        model = ScalarGPT(config, lm="surprise.weight" in weights) if scalar else GPT(config)
    model.load_state_dict(weights, assign=True)
    for gpt in (m for m in model.modules() if isinstance(m, GPT)):
        gpt.tie_weights()
    return model


def load_dict(path, maker, keys=set()):
    """What torch.save wrote: a dict with these keys and maybe more. maker: the command to run if
    it isn't."""
    if not Path(path).is_file():
        fail(f"{path or 'a file without a name'} is missing: `{maker}` makes it")
    try:
        with zipfile.ZipFile(path) as parts, warnings.catch_warnings():
            if parts.testzip():                       # torch doesn't look at the checksums
                raise ValueError
            warnings.simplefilter("ignore")
            loaded = torch.load(path, map_location="cpu", weights_only=True)
        if keys <= loaded.keys():
            return loaded
    except Exception as error:                        # broken bytes can raise anything
        if isinstance(error, OSError) or "not enough memory" in str(error):
            raise
    fail(f"{path} is damaged or not a checkpoint: run `{maker}` again")


class FullStateDict:
    """Saves and loads a model that FSDP has split, or its optimizer, as if it were in one piece.
    (Every rank must call it.)"""

    def __init__(self, model, part):
        from torch.distributed.checkpoint import state_dict as lib
        self.parts, kind = ([model], "model") if part is model else ([model, part], "optimizer")
        self.get, self.set = (getattr(lib, f"{do}_{kind}_state_dict") for do in ("get", "set"))
        self.options = lib.StateDictOptions(full_state_dict=True, cpu_offload=True)

    def state_dict(self):
        return self.get(*self.parts, options=self.options)

    def load_state_dict(self, state):
        self.set(*self.parts, state, options=self.options)


# ---- a run of one stage: its log, and its state, from which the same command goes on --------

def fingerprint(path):
    """A hash of the files' names and bytes, which tells whether an input has changed; of a function
    FILE.py:name that of its file."""
    digest = hashlib.sha256()
    for part in (function_file(str(path)) or str(path)).split(","):
        part = Path(part.strip())
        files = text_files(part) if part.is_dir() else [part]
        for file in (f for f in files if f.is_file()):
            digest.update(os.fsencode(f"{file.name} {file.stat().st_size} "))
            with open(file, "rb") as f:
                while block := f.read(2**20):
                    digest.update(block)
    return digest.hexdigest()[:16]


def state_of(part):
    """Of an optimizer all, of a model the weights that are trained."""
    if not isinstance(part, torch.nn.Module):
        return part.state_dict()
    return {name: p.detach() for name, p in part.named_parameters() if p.requires_grad}


class Run:
    """One run of one stage: its loop is `for step in run.steps()`.

    `state` is what an interrupted run left, or {}; track() takes it. It is a file beside the
    result (out/sft.state beside out/sft.pt), written every 20 seconds and on Ctrl-C, and deleted
    when the result is saved. It holds weights, optimizer and step; random numbers and the order of
    the data follow from (seed, step). out/.sft.lock keeps a second run away, and out/sft.nan.pt is
    the batch that led to a loss that is not finite.
    """

    def __init__(self, config, rt, inputs=()):
        self.config, self.rt, self.total = config, rt, vars(config).get("steps")
        self.out = Path(config.out)
        self.state_file, self.log_file, self.nan_file = (
            self.out.with_suffix(s) for s in (".state", ".jsonl", ".nan.pt"))
        for file in (self.out, self.log_file, self.state_file):
            check_writable(file)
        with suppress(FileNotFoundError), open(self.log_file, "rb") as f:
            start = f.read(2**20).strip(b"\0\n")      # a power cut leaves zeros
            if start and self.log_file != self.out and b'{"step": ' not in start:
                fail(f"{self.log_file} is there already and is no log: choose another --out")
        if rt.main:
            self.lock()
        self.inputs = {i: fingerprint(i) for i in inputs if i}
        # runs are compared by these: a file that is read counts by its name and by what is in it
        self.flags = {name: f"{Path(value).name} {self.inputs[value]}" if value in self.inputs
                      else value for name, value in flags_of(config).items()}
        self.flags |= dict(out="", dtype=str(rt.dtype)[6:], processes=rt.world_size)
        self.state = self.resume()
        self.start = self.step = self.last = self.logged = self.state.get("step", 0)
        if rt.sum(self.start)[0] != self.start * rt.world_size:
            fail(f"the processes do not continue from the same step, since their machines have "
                 f"different files: copy {self.out.parent} from the first to the others, or use "
                 f"--fresh on all")
        if self.start < 0:
            print(f"{self.out} is finished; --fresh makes it again")
            rt.close()
            raise SystemExit(0)
        self.saved = self.began = self.clock = time.monotonic()
        self.cost = 0                                 # seconds that the last save took
        self.interrupted = False
        self.bar = tqdm(disable=True)
        self.sums, self.tracked = {}, {}
        self.metrics = self.state.get("metrics", {})
        signal.signal(signal.SIGINT, self.interrupt)

    def lock(self):
        """Two runs must not write the same files. The operating system frees the lock when this
        process ends, even if it is killed; the empty file that stays blocks nobody."""
        self.locked = open(self.out.with_name(f".{self.out.stem}.lock"), "ab")
        try:
            if lockf:
                lockf(self.locked, LOCK_EX | LOCK_NB)
        except OSError as error:                      # some network disks have no locks
            if isinstance(error, (BlockingIOError, PermissionError)):
                fail(f"another run is writing {self.out}: wait for it, or choose another --out")

    def resume(self):
        """The state to continue from, {} at the start; its step is -1 if the run is finished.
        Refuses a run with other flags or inputs."""
        path = self.state_file if self.state_file.exists() else self.out
        if self.config.fresh or not path.exists():
            return {}
        if path == self.out and path.suffix != ".pt":
            fail(f"{path} is there already, but not from this script; --fresh replaces it")
        state = load_dict(path, f"python {Path(sys.argv[0]).name} --fresh")
        finished, before = path == self.out or "finished" in state, state.get("run", {})
        if finished and not self.out.exists():
            return {}
        dtype = before.get("dtype")
        if self.config.dtype == "auto" and dtype in DTYPES:           # continue in the same dtype
            self.flags["dtype"], self.rt.dtype = dtype, DTYPES[dtype]
        # after a loss that was not finite --lr may change
        free = "lr" if self.nan_file.exists() and not finished else ""
        changed = [f"--{name}={before.get(name)} there, {value} here"
                   for name, value in self.flags.items()
                   if name != free and before.get(name) != value]
        if changed:
            fail(f"{path} is from another run ({'; '.join(changed[:3])}): --fresh starts over, "
                 f"--out=... keeps both")
        if finished:
            return dict(step=-1)
        print(f"resuming from step {state['step']} ({path})")
        return state

    def track(self, **parts):
        """What the state is made of: modules, optimizers, lists, dicts. They take what is there."""
        if self.rt.sharded:
            parts = {name: FullStateDict(parts["model"], part) for name, part in parts.items()}
        for name, part in parts.items() if self.state else ():
            if isinstance(part, list):
                part[:] = self.state[name]
            elif isinstance(part, dict):
                part.update(self.state[name])
            else:                                     # what is not trained is there already
                part.load_state_dict(part.state_dict() | self.state[name])
        self.tracked, self.state = parts, {}          # frees the memory

    def corpus(self, text, tok):
        """The text as token ids, in a cache beside the result."""
        return Corpus(text, tok, self.out.parent / "cache", self.inputs.get(text),
                      main=self.rt.local_main, wait=self.rt.barrier)

    def steps(self, total=None, by=1, unit="step"):
        """Yield the steps that are left. Each begins with its own random numbers; after each the
        state is saved if it is time, and Ctrl-C ends the run."""
        self.total = total or self.config.steps
        self.bar = tqdm(total=self.total, initial=self.start, unit=unit, leave=False,
                        dynamic_ncols=True, disable=not (self.rt.main and sys.stderr.isatty()))
        if self.rt.main and self.log_file != self.out:
            # drop the lines that will be written again: those of later steps, and PPO's evaluation
            # at this step, which comes before it
            rows = read_log(self.log_file) if self.start else []
            with writing(self.log_file) as f:
                f.writelines(to_json(row) + "\n" for row in rows
                             if row["step"] + ("split" in row) <= self.start)
        for step in range(self.start, self.total, by):
            self.step = min(step + by, self.total)    # so many are done when this one is
            self.rt.seed(self.config.seed, step)
            yield step
            self.bar.update(self.step - self.bar.n)
            self.save_state(self.step)
        self.bar.close()

    def due(self, every):
        """Whether this step is one of every so many, or the last."""
        return self.step % every == 0 or self.step == self.total

    def add(self, **values):
        """Sum up, since the last line of the log: numbers of this rank, per step."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0) + value

    def averages(self):
        """What was added, per step, averaged over the ranks; tokens: per second, on all of them."""
        n_steps, seconds = self.step - self.logged, max(time.monotonic() - self.clock, 1e-3)
        found = dict(zip(self.sums, self.rt.sum(*self.sums.values())))
        found = {name: value / n_steps / self.rt.world_size for name, value in found.items()}
        if "tokens" in found:
            tokens = found.pop("tokens") * n_steps * self.rt.world_size
            found["tokens_per_s"] = int(tokens / seconds)
        self.sums, self.logged, self.clock = {}, self.step, time.monotonic()
        return dict(found, seconds=round(seconds, 3))

    @contextmanager
    def paused(self):
        """Inside, the clock of tokens_per_s stands still: evaluation is not training."""
        began = time.monotonic()
        yield
        self.clock += time.monotonic() - began

    def check(self, step, grad_norm, what="the loss or its gradient", **batch):
        """Call before the optimizer's step, so that a gradient that is not finite never reaches the
        weights. Its norm is the same on all ranks. (On a GPU this waits for it, once a step.)"""
        if math.isfinite(grad_norm):
            return
        name = self.nan_file if self.rt.main else f"{self.nan_file}.{self.rt.rank}"
        atomic_save(dict(step=step, grad_norm=float(grad_norm), **batch), name)
        self.rt.barrier()                             # until all have saved theirs
        self.bar.close()
        # what led to a figure that is not finite is unknown without a batch
        cause = f" (its batch: {self.nan_file}); with a smaller --lr" if batch else ";"
        fail(f"{what} is {float(grad_norm)} at step {step + 1}{cause} the same command goes on "
             f"from step {self.last}, with --fresh from the beginning")

    def interrupt(self, *_):
        if self.interrupted:                          # a second Ctrl-C does not wait
            raise KeyboardInterrupt
        self.interrupted = True

    def save_state(self, step):
        """Called after every step: saves every 20 seconds, and after Ctrl-C, which ends the run."""
        # a large model takes seconds to write: saving less often keeps this at 2% of the time
        pause = float(os.environ.get("SAVE_SECONDS", 20)) * max(1, 2.5 * self.cost)
        due = self.rt.main and time.monotonic() - self.saved > pause
        due, self.interrupted = map(bool, self.rt.sum(due, self.interrupted))     # on any rank
        if due or self.interrupted:
            began = time.monotonic()
            state = {name: part if isinstance(part, (list, dict)) else state_of(part)
                     for name, part in self.tracked.items()}
            if self.rt.main:
                atomic_save(dict(step=step, run=self.flags, metrics=self.metrics, **state),
                            self.state_file)
            self.saved, self.last = time.monotonic(), step
            self.cost = self.saved - began
        if self.interrupted:
            self.bar.close()
            again = ", without --fresh," if self.config.fresh else ""
            print(f"\nstopped after step {step}; the same command{again} continues from here")
            raise SystemExit(130)

    def finish(self, stage="", model=None, tok=None, history=()):
        """Save the model as a checkpoint of this stage; without a stage, the result is written
        already, and the state file stays, with the run's flags only."""
        self.bar.close()
        weights = FullStateDict(model, model) if self.rt.sharded else model
        weights = weights.state_dict() if stage else {}
        if self.rt.main:
            if stage:
                save_checkpoint(self.out, stage=stage, step=self.step, metrics=self.metrics,
                                model=weights, model_config=model.config, tokenizer=tok,
                                config=self.config, history=[*history], run=self.flags)
                self.state_file.unlink(missing_ok=True)
            else:
                atomic_save(dict(run=self.flags, finished=True), self.state_file)
            for file in self.out.parent.glob(f"{glob.escape(self.nan_file.name)}*"):
                file.unlink()
            self.locked.close()
            print(f"saved {self.out} after {clock(time.monotonic() - self.began)}"
                  f", peak memory {self.rt.peak_memory() / 1e9:.1f} GB")
        self.rt.close()

    def log(self, step, values, **more):
        """Print values as one line; write them and `more` as one line of out/<stage>.jsonl. If one
        is not finite, the run ends: what an evaluation finds is the same on all ranks."""
        for name, value in values.items():
            if isinstance(value, float):
                self.check(step - 1, value, name)
        if not self.rt.main:
            return
        with named(self.log_file), open(self.log_file, "a", encoding="utf-8") as f:
            f.write(to_json(dict(step=step, **values, **more)) + "\n")
        done = max(step - self.start, 1)
        left = (time.monotonic() - self.began) / done * (self.total - step)
        cells = [f"step {step:>{len(str(self.total))}}/{self.total}"]
        cells += [f"{name.split('/')[-1]} {number(v)}" for name, v in values.items()
                  if v is not None and name != "seconds"]
        say(" | ".join(cells + [f"eta {clock(left)}"]))

    say = staticmethod(say)                           # the other ranks' stdout is closed


def read_rows(path):
    """The JSON objects in a file with one in each line; [] if it is missing. Other lines, such as a
    power cut leaves, are named once and skipped. A last line without its end is being written."""
    rows, broken = [], []
    with suppress(FileNotFoundError, NotADirectoryError), open(path, "rb") as f:
        for n, line in enumerate(f, 1):
            try:
                rows.append(dict(from_json(line.decode())))
            except (RecursionError, TypeError, ValueError):
                broken += [n] * line.endswith(b"\n")
    if broken:
        note_once(f"{path}: {len(broken)} broken lines are skipped, the first is line {broken[0]}")
    return rows


def read_log(path):
    """The rows of out/<stage>.jsonl."""
    return [row for row in read_rows(path) if isinstance(row.get("step"), int)]
