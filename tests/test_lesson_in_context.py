"""When a model begins to read its examples: which tokens are a mark, their loss, and the script."""

import re

import pytest
import torch

import tiny
from data.town import World
from lessons.in_context import in_marks, mark_loss, marked_sheets
from model import GPTConfig

FLAGS = ("--steps=6 --batch_size=2 --warmup=2 --block_size=256 --n_layer=1 --n_embd=32 "
         "--n_sheets=3 --n_questions=2 --eval_every=3").split()
SHEET = "Tomu: What is 4 + 9?\nKi> 13\nTomu: What is 1 + 1?\nKi> 2\nTomu: What is 2 + 5?\nKi> 7"


def test_the_tokens_of_each_line_s_mark_are_found(tiny_tokenizer):
    ids, line = in_marks(SHEET, tiny_tokenizer)
    marks = [tiny_tokenizer.decode([i for i, at in zip(ids, line) if at == number])
             for number in range(1, 7)]
    assert ids == tiny_tokenizer.encode(SHEET) and marks == ["Tomu:", "Ki>"] * 3


def test_the_loss_of_a_mark_is_the_mean_over_its_tokens(tiny_tokenizer):
    """A model whose loss at token t is t."""
    class Counts(torch.nn.Module):
        config = GPTConfig(block_size=256)

        def forward(self, x, y, reduction):
            assert x.shape == y.shape and reduction == "none"
            return torch.arange(y.numel()).float()

    ids, line = in_marks(SHEET, tiny_tokenizer)
    expected = {}
    for name, number in {"1st": 1, "3rd": 3, "5th": 5}.items():
        at = [t for t in range(len(ids)) if line[t] == number]
        expected[name] = sum(at) / len(at)
    assert mark_loss(Counts(), [SHEET, SHEET], tiny_tokenizer, tiny.ENV) == expected


def test_the_sheets_have_the_same_two_marks_in_all_their_lines():
    for text in marked_sheets(World(0), 50, 0):
        marks = [re.match(r"[A-Z][a-z]+\W", line)[0] for line in text.split("\n")]
        assert len(marks) >= 5 and len({*marks[::2]}) == 1 and len({*marks[1::2]}) == 1


def test_an_interrupted_run_ends_with_the_same_weights_and_the_same_table(chain, tmp_path, capsys):
    for name in ("data", "out"):
        (tmp_path / name).symlink_to(chain / name)
    whole = tiny.ends_alike(tmp_path, "in_context", [2, 4], *FLAGS, start="out/pretrain.pt")
    assert whole["stage"] == "pretrain" and list(whole["metrics"]["table"]) == ["3", "6"]
    table = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in table if re.match(r" +[36] ", line)]
    for (step, *cells), row in zip(rows, whole["metrics"]["table"].values()):
        shown = [float(cell.rstrip("%")) / (100 if "%" in cell else 1) for cell in cells]
        assert shown == pytest.approx(list(row.values()), abs=6e-3)
