"""What people reported about other projects, tried on this one. Each test says where."""

import os
import signal
import subprocess
import sys

import pytest
import torch

import tiny
from checkpoint import Run
from data.corpus import Corpus


@pytest.fixture
def folder(tmp_path, tiny_tokenizer):
    return tiny.build(tmp_path, tiny_tokenizer)


# ---- signals: NVIDIA-NeMo/Automodel 405, pytorch-lightning 1455 -------------------------------

def train(folder, *flags):
    return tiny.run(folder, "pretrain", *tiny.FLAGS["pretrain"].split(), "--steps=8", *flags)[0]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_run_that_is_told_to_go_saves_its_step_and_goes_on_later(folder, monkeypatch, name):
    save_state = Run.save_state

    def told(self, step, **state):
        if step == 5:                                 # twice, as a terminal and its shell do
            [os.kill(os.getpid(), getattr(signal, name)) for _ in range(2)]
        save_state(self, step, **state)

    assert train(folder, "--out=whole.pt") == 0
    with monkeypatch.context() as patch:
        patch.setattr(Run, "save_state", told)
        assert train(folder, "--out=a.pt") == 130
    assert torch.load(folder / "a.state", weights_only=True)["step"] == 5
    assert train(folder, "--out=a.pt") == 0
    a, whole = (torch.load(folder / f, weights_only=True)["model"] for f in ("a.pt", "whole.pt"))
    assert all(torch.equal(a[k], whole[k]) for k in whole)


def test_a_run_under_nohup_stays_when_the_terminal_closes(folder):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert train(folder, "--out=a.pt") == 0
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


# ---- a cache that is cut off: open-lm-engine/lm-engine 53, osaurus-ai/vmlx-swift 217 ----------

@pytest.mark.parametrize("name", ["tokens.bin", "docs.npz", "sources.json"])
@pytest.mark.parametrize("share", [0, 0.5])
def test_a_cache_that_was_cut_off_is_made_again(tmp_path, tiny_tokenizer, name, share):
    tiny.write(tmp_path / "text.jsonl", *(dict(text=f"{i} cats") for i in range(30)))
    whole = Corpus(tmp_path / "text.jsonl", tiny_tokenizer, tmp_path / "cache", "print")
    tokens, file = whole.tokens.tolist(), next(tmp_path.glob(f"cache/*/{name}"))
    os.truncate(file, int(share * file.stat().st_size))
    again = Corpus(tmp_path / "text.jsonl", tiny_tokenizer, tmp_path / "cache", "print")
    assert again.tokens.tolist() == tokens and again.sources == ["text"]
