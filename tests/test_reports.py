"""What people reported about other projects, tried on this one. Each test says where."""

import errno
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import Mock

import pytest

import tiny
from common import parse_config, writing
from data.formats import read_texts


@pytest.fixture
def folder(tmp_path, tiny_tokenizer):
    return tiny.build(tmp_path, tiny_tokenizer)


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
    ("--prompt=a ~/b", "a ~/b"), ("--data=~a/b", "~a/b")])
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
