"""What all lessons promise: they go on after a Ctrl-C, and refuse what can't work."""

import importlib
from pathlib import Path

import pytest

import tiny
from checkpoint import load_checkpoint


def flags_of(lesson):
    return importlib.import_module(f"test_lesson_{lesson}").FLAGS


# lesson | context of sft.pt | flags | its stage | what it prints | what is true of its figures
ALIKE = [
    ("best_of_n", 32, "--reward=reward.pt --steps=3", "ppo", "", lambda found: True),
    ("calculator", 128, "", "sft", "calls, computed by the program",
     lambda found: all(list(right) == [2, 3, 4] for right in found["table"].values())),
    ("constrained", 128, "--steps=3", "sft", "", lambda found: list(found["table"]) == [0, 2, 3]),
    ("dpo", 32, "--steps=6", "ppo", "", lambda found: True),
    ("grpo", 32, "--reward=reward.pt --steps=4", "ppo", "", lambda found: True),
    ("look_up", 512, "", "sft", "BM25 finds the right article for",
     lambda found: list(found["tables"]) == ["before", "after"])]


@pytest.mark.parametrize("lesson, T, flags, stage, words, true", ALIKE, ids=[a[0] for a in ALIKE])
def test_an_interrupted_lesson_ends_with_the_same_weights_and_figures(
        tmp_path, tiny_tokenizer, capsys, lesson, T, flags, stage, words, true):
    folder = tiny.build(tmp_path, tiny_tokenizer)
    tiny.save(folder / "sft.pt", "sft", tiny_tokenizer, block_size=T)
    whole = tiny.ends_alike(folder, lesson, [2], *flags_of(lesson), *flags.split())
    assert whole["stage"] == stage and true(whole["metrics"]) and words in capsys.readouterr().out


@pytest.mark.parametrize("lesson, start, steps, question, stages, table", [
    ("chain_of_thought", "sft", (3, 6, 10, 12), "What is 2 + 3 + 4?", "pretrain sft sft",
     lambda lines: [line.count("[") for line in lines[-8:-1]] == [2] * 7),
    ("reason", "sft", (1, 2, 4), "What is 2 + 3 + 4?", "pretrain sft ppo",
     lambda lines: [len(line[28:].split()) for line in lines[-12:-1]] == [2] * 11),
    ("lora", "pretrain", (3, 6, 16, 18), "What is 2 + 3?", "pretrain sft",
     lambda lines: [sum(method in line and "[" in line for line in lines[-5:])
                    for method in ("all:1", "last1:1", "lora2:2")] == [1, 1, 1])],
    ids=["chain of thought", "reason", "lora"])
def test_a_lesson_of_several_models_is_interrupted_within_one_and_where_one_ends(
        chain, tmp_path, lesson, start, steps, question, stages, table):
    """It ends with a table, and with a checkpoint that chat.py takes."""
    for name in ("data", "out"):
        (tmp_path / name).symlink_to(chain / name)
    lines = (chain / "data/town/test.jsonl").read_text().splitlines(True)
    tiny.write(tmp_path / "test.jsonl", *lines[:20])
    flags = flags_of(lesson)
    assert table(tiny.printed(tmp_path, f"lessons/{lesson}", *flags, "--out=whole.pt"))
    tiny.ends_alike(tmp_path, lesson, steps, *flags, start=f"out/{start}.pt")
    ckpt = load_checkpoint(tmp_path / "whole.pt", stages.split()[-1])
    assert [entry["stage"] for entry in ckpt["history"]] == stages.split()
    assert tiny.run(tmp_path, "chat", "--temperature=0", f"--prompt={question}",
                    "--compare=whole.pt")[0] == 0


OWN = "--reward=length.py:longer"
RAISED = {"a group's advantages": "grpo --batch_size=64 --k=8 --steps=15 --lr=1e-2 --kl_coef=0.01",
          "without the division": "grpo --batch_size=64 --k=8 --steps=15 --lr=1e-2 --kl_coef=0.01 "
                                  "--normalise=false",
          "the best of n": "best_of_n --batch_size=32 --best_of=8 --steps=10 --lr=2e-2"}


@pytest.mark.parametrize("command", RAISED.values(), ids=RAISED)
def test_a_reward_of_ones_own_rises_on_held_out_prompts(folder, command):
    lesson, *flags = command.split()
    log = tiny.watched(folder, lesson, *flags_of(lesson), OWN, *flags)
    assert log[0]["kl"] == 0 and log[-1]["kl"] > 0
    assert log[-1]["score"] > log[0]["score"] + 0.5


REFUSED = {
    f"best_of_n {OWN}": "--best_of=1 --minibatch=3 --temperature=0 --reward=sft.pt",
    "dpo": "--beta=0 --temperature=0 --batch_size=400",
    "look_up": "--only=embedding",
    f"grpo {OWN}": "--k=1 --k=5 --minibatch=5 --temperature=0 --max_new_tokens=30 --reward=sft.pt",
    "reason --init=sft.pt": "--k=1 --k=5 --minibatch=5 --temperature=0 --max_new_tokens=30",
    "lora --data=sft.jsonl --text=text.jsonl --init=pretrain.pt": "--methods=lora "
    "--methods=first2:1 --methods=all --methods=lora0:1 --methods=last:1 --methods=lora4:x"}


@pytest.mark.parametrize("command, flag", [
    (command, flag) for command, flags in REFUSED.items() for flag in flags.split()])
def test_a_flag_that_can_not_work_is_refused(folder, monkeypatch, refused, command, flag):
    monkeypatch.chdir(folder)
    lesson, *flags = command.split()
    said, (name, value) = refused(f"lessons/{lesson}", *flags_of(lesson), *flags, flag,
                                  "--out=refused.pt"), flag[2:].split("=")
    assert name in said or value in said
    assert not Path("refused.pt").exists()
