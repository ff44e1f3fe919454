"""A folder with tiny data and tiny random models of every stage, for the tests that run scripts."""

import io
import json
import os
import random
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import pytest
import torch
from tqdm import tqdm

from checkpoint import Run, save_checkpoint
from common import Runtime
from data.formats import is_held_out
from model import GPT, GPTConfig, ScalarGPT
from pretrain import Config

ROOT = Path(__file__).resolve().parents[1]
ENV = Runtime(Config(device="cpu", dtype="float32"))
WORDS = "Ada Ashton lives on Mill Street and has a cat. 12 + 30 = 42 A fox by the river.".split()

# The shortest run of each stage that has more than one of everything.
FLAGS = {
    "pretrain": "--data=text.jsonl --tokenizer=tok.json --block_size=32 --n_layer=2 --n_head=2 "
                "--n_embd=16 --batch_size=4 --micro_batch=2 --warmup=2 --eval_rows=4 "
                "--eval_every=4 --dropout=0.1",
    "sft": "--data=sft.jsonl --text=text.jsonl --init=pretrain.pt --batch_size=4 --micro_batch=2 "
           "--warmup=2 --eval_every=4 --dropout=0.1",
    "compare": "--data=prompts.jsonl --init=sft.pt --n_prompts=32 --k=3 --batch_size=8 "
               "--max_new_tokens=6 --labeler=length.py:longer",
    "reward": "--data=comparisons.jsonl --demos=sft.jsonl --init=sft.pt --lm=sft.pt --batch_size=4 "
              "--micro_batch=2 --warmup=2 --eval_every=4",
    "rlhf_ppo": "--data=prompts.jsonl --text=text.jsonl --init=sft.pt --reward=reward.pt --watch= "
                "--batch_size=8 --minibatch=4 --micro_batch=2 --max_new_tokens=6 --eval_every=2 "
                "--n_eval=2 --ptx_coef=0.2 --critic_first=0 --critic_lr=1 --lr=5e-4",
}


# The whole chain at a tiny size, for the tests that need models which have learned something.
GRADE = f"{ROOT}/data/town.py:grade"
MODEL = "--n_layer=2 --n_embd=64 --block_size=128"
CHAIN = {
    "data/town": "--n_docs=1500 --n_demos=600 --n_prompts=1200 --n_eval=20",
    "tokenizer": "--vocab_size=384",
    "pretrain": f"{MODEL} --steps=240 --batch_size=4 --micro_batch=4 --warmup=20 --eval_every=60 "
                "--eval_rows=12",
    "sft": "--steps=270 --batch_size=4 --micro_batch=4 --warmup=10 --eval_every=90",
    "compare": f"--n_prompts=400 --temperature=1 --max_new_tokens=24 --labeler={GRADE}",
    "reward": "--batch_size=8 --micro_batch=8 --warmup=5 --eval_every=20",
    "rlhf_ppo": "--steps=8 --batch_size=64 --minibatch=32 --micro_batch=32 --max_new_tokens=24 "
                "--lr=1e-3 --critic_first=0 --critic_lr=1 --ptx_coef=0.2 --n_eval=64 "
                f"--eval_every=4 --watch={GRADE}",
}

# What makes the lab's runs on this chain short.
SHORT = {
    "pretrain.py": dict(steps=2, batch_size=2, micro_batch=2, block_size=128, eval_rows=4),
    "sft.py": dict(steps=2, batch_size=2, micro_batch=2),
    "compare.py": dict(n_prompts=24, max_new_tokens=16),
    "reward.py": dict(steps=2, batch_size=8, micro_batch=8),
    "rlhf_ppo.py": dict(steps=2, batch_size=32, minibatch=32, micro_batch=32, max_new_tokens=8,
                        n_eval=8, eval_every=1),
    "evaluate.py": dict(n_prompts=24, max_new_tokens=16, best_of=0),
    "-m lessons.few_shot": dict(n_prompts=24, max_new_tokens=8),
    "-m lessons.lora": dict(steps=2),
    "-m lessons.reason": dict(demos=4, shown=2, demo_steps=1, steps=1, batch_size=8, k=2,
                              minibatch=8, max_new_tokens=8, n_eval=1, n_samples=32),
} | {f"-m lessons.{name}": dict(steps=1, batch_size=64, max_new_tokens=12, n_eval=8)
     for name in ("dpo", "grpo", "best_of_n")}


def equal(a, b):
    """Bit for bit, in tensors, dicts and plain values."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[k], b[k]) for k in a)
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def read_log(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def held_out(folder, stage, name):
    """A figure at every evaluation of a stage, the first to the last."""
    return [row[name] for row in read_log(folder / f"out/{stage}.jsonl") if name in row]


def words(rng, most):
    return " ".join(rng.choices(WORDS, k=rng.randint(1, most)))


def questions(rng, n, held_out, most=4):
    """n different prompts, all of them held out or none."""
    asked = {}
    while len(asked) < n:
        text = words(rng, most) + "?"
        if is_held_out([dict(role="user", content=text)]) == held_out:
            asked[text] = None
    return list(asked)


def write(name, *parts):
    """A file of rows, or of text or bytes as they are -> its path, from the root on."""
    path = Path(name).absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [part if isinstance(part, str | bytes) else json.dumps(part) + "\n" for part in parts]
    path.write_bytes(b"".join(x if isinstance(x, bytes) else x.encode() for x in lines))
    return path


def store(path, stage, model, tok, **metrics):
    save_checkpoint(path, stage=stage, step=1, metrics=metrics, model=model,
                    model_config=model.config, tokenizer=tok, config=Config(), history=[])


def loud(model, std=0.2, shift=0.5, seed=0):
    """Random weights, far from their initial values, so that each of them changes the logits."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=std if p.dim() > 1 else 0.1).add_(0 if p.dim() > 1 else shift)
    return model.eval()


def awake(model):
    """Give weights to the layers that start at 0: without them a block adds nothing."""
    for name, p in model.named_parameters():
        if name.endswith("proj.weight"):
            torch.nn.init.normal_(p, std=0.05)
    return model


def save(path, stage, tok, block_size=32, n_embd=16, weights=awake):
    torch.manual_seed(0)
    config = GPTConfig(block_size=block_size, vocab_size=tok.vocab_size, n_layer=2, n_embd=n_embd,
                       n_hidden=32)
    scores = dict(score_mean=0.0, score_std=1.0) if stage == "reward" else {}
    store(path, stage, weights((ScalarGPT if scores else GPT)(config)), tok, **scores)


def build(folder, tok):
    rng = random.Random(0)
    train, val = questions(rng, 40, False), questions(rng, 4, True)
    asked = train + val
    write(folder / "text.jsonl", *(dict(text=f"{i} {words(rng, 9)}") for i in range(100)))
    write(folder / "sft.jsonl", *(dict(prompt=q, response=words(rng, 9)) for q in asked))
    write(folder / "prompts.jsonl", *(dict(prompt=q) for q in asked))
    write(folder / "comparisons.jsonl", *(
        dict(prompt=q, responses=[f"{k} {words(rng, 5)}" for k in range(2 + i % 2)])
        for i, q in enumerate(asked)))
    write(folder / "graded.jsonl", *(
        dict(prompt=q, responses=[words(rng, 4), words(rng, 5)], grades=[3.5, 2.0], noise=0.5)
        for q in asked))
    (folder / "length.py").write_text("def longer(prompts, responses):\n"
                                      "    return [len(r) / 9 for r in responses]\n")
    tok.save(folder / "tok.json")
    for stage in ("pretrain", "sft", "reward", "ppo"):
        save(folder / f"{stage}.pt", stage, tok)
    return folder


def run(folder, script, *flags, **environment):
    """Run a script of ours, or a file, within this process, which saves seconds: its exit status
    and the names that it ends with. What nothing catches goes where Python would take it."""
    ctrl_c, names = signal.getsignal(signal.SIGINT), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, value in environment.items():
            patch.setenv(name, value)
        script = script if script.endswith(".py") else f"{ROOT}/{script}.py"
        patch.setattr(sys, "argv", [script, *flags])
        patch.setattr(sys, "excepthook", sys.excepthook)
        try:
            names, status = runpy.run_path(sys.argv[0], run_name="__main__"), 0
        except SystemExit as end:
            status = end.code
        except Exception as error:
            sys.excepthook(type(error), error, error.__traceback__)
            status = 1
        finally:
            signal.signal(signal.SIGINT, ctrl_c)
    return status, names


def printed(folder, script, *flags):
    """The lines that a script prints which ends well."""
    with redirect_stdout(io.StringIO()) as out:
        assert run(folder, script, *flags)[0] == 0
    return out.getvalue().splitlines()


def model(vocab_size, kind=GPT, **sizes):
    """A small model with random weights: every token that it reads matters."""
    sizes = dict(block_size=48, n_layer=2, n_embd=32, vocab_size=vocab_size) | sizes
    return loud(kind(GPTConfig(**sizes)), std=0.3)


# ---- what a model says, without cache, padding and batches ----------------------------------

def greedy(model, ids, n, stop=()):
    """The n likeliest tokens after ids, or as many as end with one of `stop`."""
    said = []
    while len(said) < n and not {*said} & {*stop}:
        said.append(model(torch.tensor([ids + said]))[0, -1].argmax().item())
    return said


@torch.no_grad()
def logp_by_hand(model, ids, said, temperature=1.0):
    """log p of each token that was said after ids."""
    logits = [model(torch.tensor([ids + said[:t]]))[0, -1] / temperature for t in range(len(said))]
    return [row.log_softmax(0)[token].item() for row, token in zip(logits, said)]


def close(a, b, atol=1e-5):
    torch.testing.assert_close(torch.as_tensor(a), torch.as_tensor(b), rtol=0, atol=atol)


def watched(folder, lesson, *flags):
    """The rows about held-out prompts in the log of a lesson's run."""
    assert run(folder, f"lessons/{lesson}", *flags, "--out=watched.pt", "--fresh")[0] == 0
    return [row for row in read_log(folder / "watched.jsonl") if "split" in row]


# ---- runs that are interrupted --------------------------------------------------------------

@contextmanager
def ctrl_c_in(*steps):
    """Runs get a Ctrl-C in each of these steps. Gives {step: how often it was done}."""
    done, save_state = Counter(), Run.save_state

    def stop(self, step):
        self.interrupted = step in steps
        done[step] += 1
        save_state(self, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Run, "save_state", stop)
        yield done


def interrupted(folder, script, step, *flags):
    """Like run, with a Ctrl-C in the given step: its exit status."""
    with ctrl_c_in(step):
        return run(folder, script, *flags)[0]


def ends_alike(folder, lesson, steps, *flags, start="sft.pt"):
    """A lesson that gets a Ctrl-C in each of the steps ends with the weights and figures of
    whole.pt, which is made where it is missing, and does no step twice. The weights are not those
    of the start. Gives whole.pt."""
    script, whole, parts = f"lessons/{lesson}", folder / "whole.pt", folder / "parts.pt"
    if not whole.exists():
        assert run(folder, script, *flags, "--out=whole.pt")[0] == 0
    with ctrl_c_in(*steps) as done:
        ends = [run(folder, script, *flags, "--out=parts.pt")[0] for _ in (*steps, "the rest")]
    assert ends == [130] * len(steps) + [0] and max(done.values()) == 1
    whole, parts, start = (torch.load(path, weights_only=True)
                           for path in (whole, parts, folder / start))
    assert equal(whole["model"], parts["model"]) and equal(whole["metrics"], parts["metrics"])
    assert not equal(whole["model"], start["model"])
    return whole


def torchrun(folder, *arguments, **environment):
    """Run a script on two processes, which end within minutes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
               *arguments]
    process = subprocess.Popen(command, cwd=folder, text=True,
                               env=dict(os.environ, **environment),
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        out, err = process.communicate(timeout=150)
    except subprocess.TimeoutExpired:
        process.terminate()                           # torchrun then ends its workers
        pytest.fail("\n".join(["two processes hang:", *process.communicate()]))
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def start(folder, arguments, environment, out, err):
    """Run a script in a copy of this process, which has imported torch already: its number."""
    child, status = os.fork(), 1
    if child:
        return child
    try:
        tqdm.set_lock(threading.RLock())              # the copies share the first: a killed one
        sys.stdout, sys.stderr = out, err             # would keep it for ever
        status, _ = run(folder, *arguments, **environment)
    finally:
        sys.stdout.flush(), err.flush()
        os._exit(status or 0)


def as_copy(command, stdout, stderr):
    """subprocess.run(command) for a script of ours."""
    arguments = [str(word) for word in command[1:]]
    if arguments[0] == "-m":
        arguments[:2] = [f"{ROOT}/{arguments[1].replace('.', '/')}.py"]
    _, status = os.waitpid(start(".", arguments, {}, stdout, stderr), 0)
    return subprocess.CompletedProcess(command, status)


def two_ranks(folder, *arguments, **environment):
    """What torchrun does, with two copies of this process."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        rank = dict(MASTER_ADDR="localhost", MASTER_PORT=str(free.getsockname()[1]), WORLD_SIZE="2",
                    TORCHELASTIC_RUN_ID="tests")
    ends, until = [], time.time() + 150
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        ranks = [start(folder, arguments, environment | rank | dict(RANK=str(i), LOCAL_RANK=str(i)),
                       out, err) for i in range(2)]
        for child in ranks:                           # the first waits for the second, not so the
            if any(ends):                             # second, which only repeats why both failed
                os.kill(child, signal.SIGTERM)
            while not (ended := os.waitpid(child, os.WNOHANG))[0]:
                if time.time() > until:
                    os.kill(child, signal.SIGKILL)
                time.sleep(0.01)
            ends.append(ended[1])
        out.seek(0), err.seek(0)
        return subprocess.CompletedProcess(arguments, max(ends), out.read(), err.read())
