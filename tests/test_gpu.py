"""All scripts on a fake CUDA device, where no tensor may meet one that is still on the CPU; and the
stages on a real one, where there is one."""

import importlib
import io
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils._pytree import tree_leaves

import chat
import answer
from common import Runtime
from data.formats import read_prompts
from data.town import Dice, World, make_prompt, pretraining_text
from lab import compare_methods
from pretend_gpu import pretend_gpu
from tiny import FLAGS, ROOT, build, ctrl_c_in, run, save, write
from tools import speakers
from view import views

# Beside the flags of a lesson's own test.
SCRIPTS = {
    "lessons/best_of_n": "--reward=reward.pt",
    "lessons/calculator": "--n_demos=20",
    "lessons/chain_of_thought": "--init=sft.pt --n_test=2 --votes=2",
    "lessons/constrained": "--n_eval=4",
    "lessons/data": "--what=generations --data=web.jsonl --tokenizer=tok.json",
    "lessons/dpo": "",
    "lessons/grpo": "--reward=reward.pt",
    "lessons/in_context": "--data=text.jsonl --tokenizer=tok.json --examples=demos.jsonl "
                          "--questions=test.jsonl",
    "lessons/look_up": "--n_eval=2",
    "lessons/ratings": "--data=graded.jsonl --init=sft.pt --n_screen=2",
    "lessons/lora": "--data=sft.jsonl --text=text.jsonl --init=pretrain.pt "
                    "--methods=last1:1,lora2:2",
    "lessons/reason": "--init=sft.pt",
    "lessons/scaling": "--data=text.jsonl --unseen=pretrain.pt",
    "lessons/few_shot": "--data=test.jsonl --examples=demos.jsonl --base=pretrain.pt --chat=sft.pt "
                        "--shots=1",
    "tools/exam": "--data=choices.jsonl --models=pretrain.pt,sft.pt",
    "evaluate": "--data=prompts.jsonl --models=pretrain.pt,sft.pt,ppo.pt --judge= "
                "--reward=reward.pt --comparisons=comparisons.jsonl --examples=sft.jsonl "
                "--text=text.jsonl --max_new_tokens=6 --best_of=2 --n_prompts=8"}


@pytest.fixture(scope="module")
def town(tmp_path_factory, tiny_tokenizer):
    """What the lessons and the tools read: models of a longer context, questions of every kind."""
    folder, dice = build(tmp_path_factory.mktemp("town"), tiny_tokenizer), Dice(random.Random(0))
    for stage in ("pretrain", "sft", "reward", "ppo"):
        save(folder / f"{stage}.pt", stage, tiny_tokenizer, block_size=256)
    world = World()
    asked = [make_prompt(world, dice, "test")[:2] for _ in range(200)]
    write(folder / "web.jsonl", *(
        doc for _, docs in pretraining_text(world, 200, 0) for doc in docs))
    write(folder / "test.jsonl", *(dict(kind=kind, prompt=prompt) for kind, prompt in asked[:40]))
    write(folder / "demos.jsonl", *(dict(kind=kind, prompt=prompt, response="Ada")
                                    for kind, prompt in asked))
    write(folder / "choices.jsonl", *(dict(question=prompt, choices=["Ada", "a cat"], answer=i % 2)
                                      for i, (_, prompt) in enumerate(asked[:20])))
    write(folder / "reward.jsonl", dict(step=1, tokens_per_s=1000))
    torch.save(dict(run=dict(n_prompts=9, k=2)), folder / "comparisons.state")
    return folder


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(Runtime, "compile", lambda env, model, wanted: model)


@pytest.fixture
def short(monkeypatch):
    """Whatever a script asks for, answers end after 3 tokens."""
    generate = answer.generate
    monkeypatch.setattr(answer, "generate", lambda model, idx, n, **more:
                        generate(model, idx, min(n, 3), **more))


def go(folder, device, script, flags):
    status, _ = run(folder, script, *flags, f"--device={device}", "--dtype=float32",
                    SAVE_SECONDS="0")
    return status


def test_tensors_of_two_devices_do_not_meet():
    with pretend_gpu():
        there = torch.ones(2, 2, device="cuda:0")
        assert there.device.type == "cuda" and (there + there.cpu().cuda("cuda:0")).sum() == 8
        for wrong in (lambda: there + torch.ones(2), lambda: torch.ones(3)[there[0].long()],
                      lambda: torch.rand(2, device="cuda:0", generator=torch.Generator())):
            with pytest.raises(RuntimeError):
                wrong()
        with pytest.raises(TypeError):
            there.numpy()


@pytest.mark.parametrize("stage, more", [
    *((stage, "") for stage in FLAGS),
    *((stage, " --lora=2") for stage in ("sft", "reward", "rlhf_ppo"))])
def test_a_stage_that_is_interrupted_ends_as_on_the_cpu(stage, more, folder):
    ending = "jsonl" if stage == "compare" else "pt"
    flags = (FLAGS[stage] + more).split() + ["--steps=3"] * (stage != "compare")
    cpu, gpu = (f"{device}_{stage}{more[1:]}.{ending}" for device in ("cpu", "gpu"))
    assert go(folder, "cpu", stage, [*flags, f"--out={cpu}"]) == 0

    with pretend_gpu():
        with ctrl_c_in(8 if stage == "compare" else 2):
            assert go(folder, "cuda:0", stage, [*flags, f"--out={gpu}"]) == 130
        assert go(folder, "cuda:0", stage, [*flags, f"--out={gpu}"]) == 0
    if stage == "compare":
        assert (folder / cpu).read_text() == (folder / gpu).read_text()
        return
    cpu, gpu = (torch.load(folder / name, weights_only=True)["model"] for name in (cpu, gpu))
    assert cpu.keys() == gpu.keys()
    for name in cpu:
        torch.testing.assert_close(gpu[name], cpu[name], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("stage", FLAGS)
def test_a_stage_asks_for_nothing_that_apples_gpu_does_not_have(stage, folder):
    out = f"mps_{stage}.{'jsonl' if stage == 'compare' else 'pt'}"
    with pretend_gpu("mps"):
        assert go(folder, "mps", stage, [*FLAGS[stage].split(), f"--out={out}"] + (
            ["--steps=1"] if stage != "compare" else [])) == 0


def test_what_apples_gpu_does_not_have_is_refused():
    with pretend_gpu("mps"):
        there = torch.ones(2, 2, device="mps")
        assert there.device.type == "mps" and (there @ there).sum() == 8
        for wrong in (there.double, lambda: torch.view_as_complex(there), there.geqrf):
            with pytest.raises(TypeError, match="mps does not have"):
                wrong()


def test_chat_says_the_same(folder, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    flags = ["--compare=pretrain.pt,ppo.pt", "--reward=reward.pt", "--prompt=Who?", "--top_k=9",
             "--top_p=0.9", "--max_new_tokens=6"]
    assert go(folder, "cpu", "chat", flags) == 0
    said = capsys.readouterr().out
    with pretend_gpu():
        assert go(folder, "cuda:0", "chat", flags) == 0
    assert capsys.readouterr().out == said and said.count("\n") >= 2


def same(f):
    """f(device) returns the same on the CPU and on the fake device, up to rounding."""
    cpu = tree_leaves(f("cpu"))
    with pretend_gpu():
        assert tree_leaves(f("cuda:0")) == pytest.approx(cpu, rel=1e-3, abs=1e-4)
    assert len(cpu) > 3


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_learns_or_measures_the_same(script, town, short, hamlet):
    measures = script in ("lessons/few_shot", "lessons/scaling", "evaluate", "tools/exam")
    parts = {"evaluate": ("models", "best_of_n", "reward_model"), "tools/exam": ("models",),
             "lessons/scaling": ("runs", "unseen")}    # rounding may lead to a law far away
    lesson = script.replace("lessons/", "test_lesson_").replace("/", ".")
    flags = getattr(importlib.import_module(lesson), "FLAGS", []) + SCRIPTS[script].split()

    def found(device):
        out = town / f"{device[:3]}_{Path(script).name}.{'json' if measures else 'pt'}"
        assert go(town, device, script, [*flags, *["--steps=1"] * (not measures),
                                         f"--out={out.name}"]) == 0
        if measures:
            found = json.loads(out.read_text())
            return [found[part] for part in parts.get(script, found)]
        ckpt = torch.load(out, weights_only=True)
        if script == "lessons/lora":                  # its table has the memory of attention
            del ckpt["metrics"]
        return {name: w.tolist() for name, w in ckpt["model"].items()}, ckpt.get("metrics")

    same(found)


def test_the_best_answers_are_found_alike(town, short, monkeypatch):
    (town / "data/town").mkdir(parents=True)
    (town / "data/town/test.jsonl").symlink_to(town / "test.jsonl")
    monkeypatch.chdir(town)
    real = compare_methods.best_of_n.Config

    def found(device):
        monkeypatch.setattr(compare_methods.best_of_n, "Config", lambda: real(
            device=device, dtype="float32", best_of=2))
        return compare_methods.best_answers(Path())

    same(found)


def test_the_reports_views_show_the_same(town, short):
    def shown(device):
        chain = views.Chain(town, Runtime(chat.Config(device=device, dtype="float32")))
        return (views.next_tokens(chain, read_prompts(town / "test.jsonl")[:1], n_tokens=3),
                views.rankings(chain), views.along(chain, town / "comparisons.jsonl"))

    same(shown)


def test_the_page_answers_and_explains_the_same(town):
    def said(device):
        shelf = speakers.Shelf(town, Runtime(chat.Config(device=device, dtype="float32")))
        shelf.models = {name: shelf.load(town / f"{name}.pt") for name in ("sft", "reward", "ppo")}
        ask = SimpleNamespace(model="ppo", messages=[dict(role="user", content="Who?")], prefix=[])
        job = speakers.Job([ask], chat.Config(temperature=0, max_new_tokens=3))
        return [*speakers.Worker(shelf).answer(job, ask)]

    same(said)


# ---- a real GPU -----------------------------------------------------------------------------

# Runs a script up to a Ctrl-C in the given step, then to its end. A GPU has other random numbers
# than a CPU, so these are the CPU's.
TWICE = """
import sys
import torch
from tiny import interrupted, run
rand, (_, script, step, *flags) = torch.rand, sys.argv
torch.rand = lambda *size, device, generator: rand(*size).to(device)
assert interrupted(".", script, int(step), *flags) == 130
assert run(".", script, *flags)[0] == 0
"""


@pytest.fixture(scope="module")
def real_gpu():
    """The environment of a process that sees the user's GPU."""
    there = dict(os.environ, CUDA_VISIBLE_DEVICES=os.environ["TEST_GPUS"],
                 PYTHONPATH=os.pathsep.join([str(ROOT), f"{ROOT}/tests"]))
    look = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    if not torch.backends.cuda.is_built() or subprocess.run([sys.executable, "-c", look],
                                                            env=there).returncode:
        pytest.skip("needs a GPU")
    return there


def distance(a, b, names):
    return sum((a[name] - b[name]).square().sum() for name in names).sqrt()


@pytest.mark.parametrize("stage", FLAGS)
def test_a_stage_that_is_interrupted_on_a_real_gpu_ends_near_the_cpu(stage, folder, real_gpu):
    """In float32. A GPU adds in another order, and AdamW makes that larger where a gradient is near
    0. Measured on a CPU, in parts of the way that training goes: weights that are changed by 1e-6
    at the start end up to 2e-4 apart, bfloat16 and float32 at least 7e-3."""
    start = "pretrain.pt" if stage in ("pretrain", "sft") else "sft.pt"
    ending = "jsonl" if stage == "compare" else "pt"
    more = dict(pretrain="--steps=2 --init=pretrain.pt --dropout=0 --compile=false",
                sft="--steps=2 --dropout=0 --compile=false", compare="").get(stage, "--steps=2")
    flags = [*FLAGS[stage].split(), *more.split()]
    cpu, gpu = (folder / f"{name}_{stage}.{ending}" for name in ("near", "real"))
    assert go(folder, "cpu", stage, [*flags, f"--out={cpu.name}"]) == 0
    done = subprocess.run([sys.executable, "-c", TWICE, stage, "8" if stage == "compare" else "1",
                           *flags, "--device=cuda", "--dtype=float32", f"--out={gpu.name}"],
                          cwd=folder, env=real_gpu, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "resuming from" in done.stdout
    if stage == "compare":
        rows, others = (path.read_text().splitlines() for path in (cpu, gpu))
        assert sum(a != b for a, b in zip(rows, others)) <= 1         # numbers at a boundary
        return
    start, cpu, gpu = (
        {name.removeprefix("gpt."): w for name, w in torch.load(path, weights_only=True)["model"]
         .items()} for path in (folder / start, cpu, gpu))
    names = start.keys() & cpu.keys()                 # not the reward model's head, which is new
    assert distance(cpu, gpu, names) < 0.005 * distance(start, cpu, names)
