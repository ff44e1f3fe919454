"""A batch split between two processes, or into small passes, against one that is taken whole. The
processes use gloo, as on a laptop. Some are torchrun's; the others are copies of this one."""

import json
import random
import runpy
import shutil
import signal
import sys
from functools import partial

import pytest
import torch

from answer import sample
from checkpoint import save_checkpoint
from model import GPT, GPTConfig, ScalarGPT
from pretrain import Config
from tiny import ROOT, questions, torchrun, two_ranks, words, write

# Runs a stage, then keeps what this process ended with, and the last batch that it trained on.
# Sampling takes the likeliest token, so that PPO's answers don't depend on who gives them. STILL:
# updates change no weight; their gradients, which are not clipped, add up to those that are kept.
WRAPPER = """
import os, runpy, sys, torch
out, sys.argv = sys.argv[1], sys.argv[2:]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
import answer
answer.sample = lambda logits, *options: logits.argmax(-1)
summed = {}
def add(optimizer):
    grads = [p.grad for group in optimizer.param_groups for p in group["params"]]
    summed[optimizer] = [a + b for a, b in zip(summed.get(optimizer, [0] * len(grads)), grads)]
if "STILL" in os.environ:
    torch.optim.AdamW.step = add
    torch.nn.utils.clip_grad_norm_ = lambda parameters, most: torch.zeros(())
end = runpy.run_path(sys.argv[0], run_name="__main__")
weights = {f"{name} {key}": tensor for name in ("model", "policy", "critic") if name in end
           for key, tensor in end[name].state_dict().items()}
weights |= {f"gradient {k} {i}": tensor for k, found in enumerate(summed.values())
            for i, tensor in enumerate(found)}
batch = {name: end.get(name) for name in ("x", "y", "items")}
batch["mask"] = end["r"].mask if "r" in end else None
torch.save((weights, batch), out + os.environ.get("RANK", "0"))
"""
# Runs a stage that is stopped, as by Ctrl-C, after its second step.
STOPPED = """
import os, runpy, sys
del sys.argv[:2]
sys.path.insert(0, os.path.dirname(sys.argv[0]))
import checkpoint
save_state = checkpoint.Run.save_state
def stopping(run, step):
    run.interrupted = step == 2 and run.rt.main       # one process alone hears it
    save_state(run, step)
checkpoint.Run.save_state = stopping
runpy.run_path(sys.argv[0], run_name="__main__")
"""
COMMON = "--steps=3 --lr=1e-3 --dtype=float32 --debug=true"
PPO = ("--data=prompts.jsonl --init=init_sft.pt --reward=init_reward.pt --watch= --batch_size=64 "
       "--minibatch=64 --micro_batch=2 --max_new_tokens=12 --critic_first=0 --critic_lr=1")
FLAGS = {
    # so few held-out rows, or prompts, that rank 1 has none of them to evaluate
    "pretrain": "--data=text.jsonl --tokenizer=tok.json --block_size=48 --n_layer=2 --n_embd=32 "
                "--batch_size=8 --micro_batch=2 --warmup=1 --eval_rows=2",
    "sft": "--data=sft.jsonl --text=text.jsonl --init=init_sft.pt --batch_size=8 --micro_batch=2 "
           "--warmup=1",
    "reward": "--data=comparisons.jsonl --demos=sft.jsonl --init=init_sft.pt --lm=init_sft.pt "
              "--batch_size=8 --micro_batch=2 --warmup=1",
    "rlhf_ppo": f"{PPO} --text=text.jsonl",
    "rlhf_ppo_without_text": f"{PPO} --ptx_coef=0",
}
FLAGS |= {f"{stage}_lora": f"{FLAGS[stage]} --lora=2" for stage in ("sft", "reward", "rlhf_ppo")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_tokenizer):
    """Data and random models. Answers are of very unequal lengths: people's, and the model's."""
    folder, rng = tmp_path_factory.mktemp("ddp"), random.Random(0)
    train, val = (questions(rng, n, held_out, most=5)
                  for n, held_out in ((48, False), (3, True)))
    write(folder / "text.jsonl", *(dict(text=f"{i} {words(rng, 9)}") for i in range(200)))
    write(folder / "sft.jsonl", *(dict(prompt=q, response=words(rng, 2 if i % 3 else 15))
                                  for i, q in enumerate(train + val[:1])))
    write(folder / "comparisons.jsonl", *(
        dict(prompt=q, responses=[f"{k} {words(rng, 8)}" for k in range(2 + i % 3)])
        for i, q in enumerate(train + val[:1])))
    more = questions(rng, 16, False, most=5)
    write(folder / "prompts.jsonl", *(dict(prompt=q) for q in train + more + val))

    tiny_tokenizer.save(folder / "tok.json")
    torch.manual_seed(0)
    config = GPTConfig(block_size=48, vocab_size=tiny_tokenizer.vocab_size, n_layer=2, n_embd=32,
                       n_hidden=64, tied=False)
    policy, judge = GPT(config), ScalarGPT(config)
    with torch.no_grad():
        for p in [*policy.parameters(), *judge.parameters()]:
            p.normal_(std=0.3 if p.dim() > 1 else 0.1).add_(0 if p.dim() > 1 else 1)
        policy.lm_head.weight[tiny_tokenizer.end] *= 4
    for stage, model in (("sft", policy), ("reward", judge)):
        save_checkpoint(folder / f"init_{stage}.pt", stage=stage, step=1, metrics={}, model=model,
                        model_config=config, tokenizer=tiny_tokenizer, config=Config(), history=[],
                        lm=False)
    (folder / "wrapper.py").write_text(WRAPPER)
    (folder / "stopped.py").write_text(STOPPED)
    return folder


def arguments(stage, out):
    script = ROOT / f"{stage.removesuffix('_without_text').removesuffix('_lora')}.py"
    return [out, str(script), *f"{FLAGS[stage]} {COMMON} --out={out}.pt".split()]


def both(folder, script, *flags, start=two_ranks, **environment):
    """Two processes that end well: what they print."""
    done = start(folder, script, *flags, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def close(found, expected):
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module", params=FLAGS)
def stage(request):
    return request.param


@pytest.fixture(scope="module")
def ranks(folder, stage):
    """For each of two processes: its final weights, its last batch."""
    both(folder, "wrapper.py", *arguments(stage, f"two_{stage}"))
    return [torch.load(folder / f"two_{stage}{rank}") for rank in range(2)]


def alone(folder, stage, out, *more):
    """The same of one process that takes the joined batch; more: further flags."""
    ctrl_c = signal.getsignal(signal.SIGINT)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["wrapper.py", *arguments(stage, out), *more])
        patch.setattr(sys, "excepthook", sys.excepthook)             # both are put back afterwards
        patch.setattr("answer.sample", sample)
        runpy.run_path("wrapper.py")
    signal.signal(signal.SIGINT, ctrl_c)
    return torch.load(folder / f"{out}0")


@pytest.fixture(scope="module")
def one(folder, stage):
    return alone(folder, stage, f"one_{stage}")


def test_both_ranks_end_with_equal_parameters(ranks):
    (first, _), (second, _) = ranks
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_ranks_trained_on_different_data(ranks):
    (_, first), (_, second) = ranks
    assert repr(first) != repr(second)


@pytest.mark.parametrize("stage", ["sft", "rlhf_ppo"], indirect=True)
def test_the_ranks_held_different_numbers_of_tokens_that_count(ranks):
    first, second = ((batch["y"] >= 0) if batch["mask"] is None else batch["mask"]
                     for _, batch in ranks)
    assert first.sum() != second.sum()


def test_two_ranks_end_where_one_process_on_the_joined_batch_ends(ranks, one):
    close(ranks[0][0], one[0])


def test_the_minibatches_of_two_ranks_add_up_to_those_of_one_process(folder):
    """Of several in each epoch: whichever answers share one, each token counts the same."""
    several = "rlhf_ppo_without_text", "still"
    more = ["--minibatch=8", "--epochs=2", "--steps=1"]
    both(folder, "wrapper.py", *arguments(*several), *more, "--out=two.pt", STILL="1")
    two = torch.load(folder / "still0")[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STILL", "1")
        patch.setattr("torch.optim.AdamW.step", torch.optim.AdamW.step)
        patch.setattr("torch.nn.utils.clip_grad_norm_", torch.nn.utils.clip_grad_norm_)
        one, _ = alone(folder, *several, *more)
    assert sum("gradient" in name for name in one) > 20
    close(two, one)


def test_many_small_passes_end_where_one_big_pass_ends(folder, stage, one):
    close(alone(folder, stage, f"big_{stage}", "--micro_batch=8")[0], one[0])


def weights(path):
    return torch.load(path, weights_only=True)["model"]


@pytest.mark.parametrize("fsdp, start", [("--fsdp=false", torchrun), ("--fsdp=true", two_ranks)])
def test_two_processes_that_are_stopped_and_continued_end_with_the_same_bits(folder, fsdp, start):
    whole, cut = (["ignored", *arguments("pretrain", f"{name}{fsdp}")[1:], fsdp]
                  for name in ("whole", "cut"))
    both(folder, "wrapper.py", *whole)
    done = two_ranks(folder, "stopped.py", *cut)
    assert done.returncode != 0 and "stopped after step 2" in done.stdout
    assert "resuming from step 2" in both(folder, "wrapper.py", *cut, start=start)
    whole, cut = (weights(folder / f"{name}{fsdp}.pt") for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


@pytest.mark.parametrize("muon", ["0", "2"])
def test_fsdp_ends_where_one_process_ends(folder, muon):
    name = f"fsdp_muon_{muon}"
    both(folder, "wrapper.py", *arguments("pretrain", name), "--fsdp=true", f"--muon={muon}")
    alone(folder, "pretrain", f"{name}_one", f"--muon={muon}")
    close(*(weights(folder / f"{n}.pt") for n in (name, f"{name}_one")))
    split, one = ([json.loads(line)["loss"] for line in open(folder / f"{n}.jsonl")
                   if '"loss"' in line] for n in (name, f"{name}_one"))
    assert split == pytest.approx(one, rel=1e-4) and split


def test_fsdp_keeps_a_part_of_the_optimizer_on_each_process(folder):
    """Half of every matrix's rows: that is what it is for."""
    count = ("sum(v.to_local().numel() for s in end['optimizer'].state.values() "
             "for v in s.values() if v.dim())")
    (folder / "parts.py").write_text(WRAPPER.replace("weights = {",
                                                     f"weights = {{0: {count}}}; _ = {{"))
    both(folder, "parts.py", *arguments("pretrain", "parts"), "--fsdp=true")
    n_weights = sum(w.numel() for w in weights(folder / "parts.pt").values())
    parts = [torch.load(folder / f"parts{rank}")[0][0] for rank in range(2)]
    assert sum(parts) >= 2 * (n_weights - 1000 * 32) and max(parts) < 0.6 * sum(parts)


# ---------------------------------------------------------------------------------------------
# two machines without a common disk: two copies of a folder

MACHINES = """
import os
os.chdir(f"machine{os.environ['RANK']}")
os.environ["LOCAL_RANK"] = "0"
"""


@pytest.fixture
def machines(folder, tmp_path):
    """A folder with two copies of the data, and scripts in which each process works in its own."""
    for rank in range(2):
        (tmp_path / f"machine{rank}").mkdir()
        for name in ("text.jsonl", "tok.json"):
            (tmp_path / f"machine{rank}" / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "whole.py").write_text(MACHINES + WRAPPER)
    (tmp_path / "stopped.py").write_text(MACHINES + STOPPED)
    return tmp_path


def test_each_machine_makes_its_own_cache(machines):
    both(machines, "whole.py", *arguments("pretrain", "new"))
    assert all(list((machines / f"machine{rank}").rglob("docs.npz")) for rank in range(2))
    assert (machines / "machine0/new.pt").exists() and not (machines / "machine1/new.pt").exists()


def test_machines_that_do_not_all_have_the_state_are_refused(machines):
    run = partial(two_ranks, machines, "whole.py", *arguments("pretrain", "new"))
    refusal = "do not continue from the same step"
    assert "stopped after step 2" in two_ranks(machines, "stopped.py", *run.args[2:]).stdout
    done = run()
    assert done.returncode != 0 and refusal in done.stderr
    shutil.copy(machines / "machine0/new.state", machines / "machine1/new.state")
    done = run()
    assert done.returncode == 0 and "resuming from step 2" in done.stdout
    done = run()
    assert done.returncode != 0 and refusal in done.stderr
