"""What people reported about other projects, tried on this one. Each test says where."""

import errno
import os
import shutil
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

import tiny
from checkpoint import Run, load_checkpoint, save_checkpoint
from common import parse_config, writing
from data.formats import read_texts
from model import GPT, GPTConfig


@pytest.fixture
def folder(tmp_path, tiny_tokenizer):
    return tiny.build(tmp_path, tiny_tokenizer)


# ---- signals: NVIDIA-NeMo/Automodel 405, pytorch-lightning 1455 -------------------------------

def train(folder, *flags):
    return tiny.run(folder, "pretrain", *tiny.FLAGS["pretrain"].split(), "--steps=8", *flags)[0]


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_run_that_is_told_to_go_saves_its_step_as_with_ctrl_c(folder, monkeypatch, name):
    save_state = Run.save_state

    def told(self, step):
        if step == 5:                                 # twice, as a terminal and its shell do
            [os.kill(os.getpid(), getattr(signal, name)) for _ in range(2)]
        save_state(self, step)

    signal.signal(getattr(signal, name), signal.SIG_DFL)              # these tests may run in nohup
    monkeypatch.setattr(Run, "save_state", told)
    assert train(folder, "--out=a.pt") == 130
    assert torch.load(folder / "a.state", weights_only=True)["step"] == 5


def test_a_run_under_nohup_stays_when_the_terminal_closes(folder):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert train(folder, "--out=a.pt") == 0
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


# ---- disks on which fsync fails: ArchiveBox 456, pytorch 144752 --------------------------------

def test_a_disk_that_cannot_tell_when_a_file_is_written_is_no_reason_to_stop(monkeypatch):
    error = OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    monkeypatch.setattr(os, "fsync", Mock(side_effect=error))
    with writing("a.txt") as f:
        f.write("Ada")
    assert Path("a.txt").read_text() == "Ada"


# ---- a clone on Windows, used from WSL: meta-llama/llama 493, codellama 44 ---------------------

@pytest.mark.skipif(not shutil.which("git"), reason="needs git")
def test_a_clone_that_windows_made_has_line_ends_that_bash_reads(tmp_path):
    git = ["git", "-c", "core.autocrlf=true"]
    for name in (".gitattributes", "run.sh"):
        shutil.copy(tiny.ROOT / name, tmp_path)
    for command in ("init", "add .", "checkout-index -a --prefix=clone/"):
        subprocess.run(git + command.split(), check=True, capture_output=True)
    assert Path("clone/run.sh").read_bytes() == (tiny.ROOT / "run.sh").read_bytes()


# ---- ~ that the shell leaves in --out=~/a.pt: choosehappy/HistoQC 198, OPM/opm-simulators 5063 -

@dataclass
class Config:
    data: str = ""
    out: str = "a.pt"
    prompt: str = ""
    debug: bool = False


@pytest.mark.parametrize("flag, value", [
    ("--out=~/a.pt", "/home/ada/a.pt"),
    ("--data=~/a.txt,b~/c,~/d", "/home/ada/a.txt,b~/c,/home/ada/d"),
    ("--prompt=~/a", "~/a"), ("--data=~a/b", "~a/b")])
def test_a_tilde_leads_home_wherever_a_file_is_named(monkeypatch, flag, value):
    monkeypatch.setenv("HOME", "/home/ada")
    assert value in vars(parse_config(Config, "", [flag])).values()


# ---- terminals that obey what a model or a file says: dcdpr/jp 856, jamie8johnson/cqs 1400 -----

@pytest.mark.parametrize("script, flags", [("sft", "--out=a.pt --steps=4"),
                                           ("compare", "--out=a.jsonl")])
def test_a_question_in_the_data_cannot_control_the_terminal(folder, capsys, script, flags):
    for file in folder.glob("*.jsonl"):
        file.write_text(file.read_text().replace('"prompt": "', '"prompt": "\\u001b[2J'))
    assert tiny.run(folder, script, *f"{tiny.FLAGS[script]} {flags}".split())[0] == 0
    said = capsys.readouterr().out
    assert r"\x1b[2J" in said and "\x1b" not in said


# ---- files of a folder that are left out: nashsu/llm_wiki 675 ----------------------------------

def test_what_is_not_read_in_a_folder_is_told_once(tmp_path, capsys):
    for name in ("a.txt", "b.md", "c.md", "d.jsonl.gz", "sub/README", ".DS_Store", ".git/HEAD"):
        tiny.write(name, "Ada lives on Mill Street.")
    for _ in range(2):
        assert [doc.source for doc in read_texts(tmp_path)] == ["a"]
    assert capsys.readouterr().err == (f"{tmp_path}: only .txt and .jsonl are read, not 2 .md, "
                                       "1 .gz, 1 README\n")


# ---- names that torch.compile and DDP change: nanoGPT 325, rasbt/LLMs-from-scratch 580 ---------

def test_weights_of_a_compiled_or_ddp_model_are_saved_by_their_plain_names(tiny_tokenizer):
    config = GPTConfig(block_size=8, vocab_size=tiny_tokenizer.vocab_size, n_layer=1, n_embd=16)
    weights = GPT(config).state_dict()
    for prefix in ("_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module."):
        save_checkpoint("a.pt", stage="sft", step=1, metrics={}, model_config=config, history=[],
                        model={prefix + name: w for name, w in weights.items()},
                        tokenizer=tiny_tokenizer, config=Config())
        assert load_checkpoint("a.pt")["model"].state_dict().keys() == weights.keys()
