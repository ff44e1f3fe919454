"""All scripts on a pretended GPU, where no tensor may meet one that is still on the CPU."""

import io
import json
import sys

import pytest
import torch

from common import Runtime
from checkpoint import Run
from pretend_gpu import pretend_gpu
from tiny import FLAGS, build, run


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_tokenizer):
    return build(tmp_path_factory.mktemp("gpu"), tiny_tokenizer)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(Runtime, "peak_flops", lambda env: 1e12)      # a GPU's takes a CPU a minute


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


@pytest.mark.parametrize("stage", FLAGS)
def test_a_stage_that_is_interrupted_ends_as_on_the_cpu(stage, folder, monkeypatch):
    ending, save_state = "jsonl" if stage == "compare" else "pt", Run.save_state
    flags = FLAGS[stage].split() + ["--steps=4"] * (stage != "compare")
    cpu, gpu = (f"{device}_{stage}.{ending}" for device in ("cpu", "gpu"))
    assert go(folder, "cpu", stage, [*flags, f"--out={cpu}"]) == 0

    def stop(self, step, **state):
        save_state(self, step, **state)
        if step >= 2:
            raise SystemExit(130)

    with pretend_gpu():
        monkeypatch.setattr(Run, "save_state", stop)
        assert go(folder, "cuda:0", stage, [*flags, f"--out={gpu}"]) == 130
        monkeypatch.setattr(Run, "save_state", save_state)
        assert go(folder, "cuda:0", stage, [*flags, f"--out={gpu}"]) == 0
    if stage == "compare":
        assert (folder / cpu).read_text() == (folder / gpu).read_text()
        return
    cpu, gpu = (torch.load(folder / name, weights_only=True)["model"] for name in (cpu, gpu))
    assert cpu.keys() == gpu.keys()
    for name in cpu:
        torch.testing.assert_close(gpu[name], cpu[name], rtol=1e-3, atol=1e-5)


def test_the_scoreboard_is_that_of_the_cpu(folder):
    flags = ["--data=prompts.jsonl", "--models=pretrain.pt,sft.pt,ppo.pt", "--reward=reward.pt",
             "--comparisons=comparisons.jsonl", "--examples=sft.jsonl", "--text=text.jsonl",
             "--judge=", "--max_new_tokens=6", "--best_of=2", "--n_prompts=8"]
    assert go(folder, "cpu", "evaluate", [*flags, "--out=cpu.json"]) == 0
    with pretend_gpu():
        assert go(folder, "cuda:0", "evaluate", [*flags, "--out=gpu.json"]) == 0
    cpu, gpu = (json.loads((folder / f"{device}.json").read_text()) for device in ("cpu", "gpu"))
    assert cpu.keys() == gpu.keys() and "best_of_n" in cpu and "reward_model" in cpu
    for name, found in cpu["models"].items():
        assert gpu["models"][name] == pytest.approx(found, rel=1e-3)


def test_chat_says_the_same(folder, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO()))
    flags = ["--compare=pretrain.pt,ppo.pt", "--reward=reward.pt", "--prompt=Who?", "--top_k=9",
             "--top_p=0.9", "--max_new_tokens=6"]
    assert go(folder, "cpu", "chat", flags) == 0
    said = capsys.readouterr().out
    with pretend_gpu():
        assert go(folder, "cuda:0", "chat", flags) == 0
    assert capsys.readouterr().out == said and said.count("\n") >= 2
