"""The comparison of methods: its counts against PyTorch's own, its picture, and the script."""

import io
import json
import random
import re
from contextlib import redirect_stdout
from types import SimpleNamespace

import pytest
from torch.utils.flop_counter import FlopCounterMode

import tiny
from checkpoint import save_checkpoint
from data.formats import read_prompts
from lab import experiments
from lab.compare_methods import Config, cached, cost, lines_of, picture, ppo_cost
from model import GPT, GPTConfig, ScalarGPT


SIZE = GPTConfig(block_size=64, vocab_size=300, n_layer=4, n_embd=64, n_hidden=256)
PPO = ("--init=out/seed0/sft.pt --reward=out/seed0/reward.pt --data=prompts.jsonl "
       "--text=text.jsonl --batch_size=64 --minibatch=32 --micro_batch=32 --max_new_tokens=12 "
       "--n_eval=1 --eval_every=100").split()
FLAGS = ("--seeds=1 --trials=1 --jobs=2 --n_prompts=16 --best_of=4 --max_new_tokens=12 "
         "--prompts=prompts.jsonl --val=prompts.jsonl --test=prompts.jsonl --text=text.jsonl "
         "--more=steps=1,n_eval=8,max_new_tokens=12,batch_size=64").split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_tokenizer):
    """What lab/seeds.py leaves of one seed, from models that have learned nothing."""
    folder = tiny.build(tmp_path_factory.mktemp("methods"), tiny_tokenizer)
    (folder / "data").mkdir()
    (folder / "data/town.py").symlink_to(tiny.ROOT / "data/town.py")
    seed0, rng = folder / "out/seed0", random.Random(1)
    seed0.mkdir(parents=True)
    asked = tiny.questions(rng, 100, False) + tiny.questions(rng, 20, True)
    tiny.write(folder / "prompts.jsonl", *(dict(prompt=q) for q in asked))
    tiny.write(seed0 / "comparisons.jsonl", *(
        dict(prompt=q, responses=["0 Ada", "1 cat"]) for q in asked))
    for stage, model in (("sft", GPT(SIZE)), ("reward", ScalarGPT(SIZE, lm=True))):
        save_checkpoint(seed0 / f"{stage}.pt", stage=stage, step=1, metrics={}, model=model,
                        model_config=SIZE, tokenizer=tiny_tokenizer, config=Config(), history=[],
                        lm=True)
    tiny.write(seed0 / "reward.jsonl", dict(step=1, tokens_per_s=1000))
    assert tiny.run(folder, "rlhf_ppo", *PPO, "--steps=2", "--out=out/seed0/ppo.pt")[0] == 0
    return folder


@pytest.fixture(scope="module")
def compared(folder):
    """Run the comparison twice: what it printed first, the files then, what it printed again."""
    printed, files = [], []
    for _ in range(2):
        with redirect_stdout(io.StringIO()) as out, pytest.MonkeyPatch.context() as patch:
            patch.setattr(experiments, "subprocess", SimpleNamespace(run=tiny.as_copy))
            assert tiny.run(folder, "lab/compare_methods", *FLAGS)[0] == 0
        printed.append(out.getvalue())
        made = (folder / "out/seed0/methods").iterdir()
        files.append({file.name: file.stat().st_mtime_ns for file in made})
    return printed, files


def table(printed, title):
    """{method: [its figures]} of a table about one seed."""
    lines = (re.split(r"\s{2,}", line) for line in printed.partition(title)[2].splitlines()[2:9])
    return {method: [float(v.rstrip("%")) for v in figures] for method, *figures in lines}


def test_every_method_has_its_row_and_sft_ties_with_itself(compared):
    rows = table(compared[0][0], "about the test people")
    assert list(rows) == ["SFT", "best of n", "rejection sampling", "DPO", "GRPO", "PPO",
                          "PPO, no text"]
    assert rows["SFT"][1] == 0 and rows["SFT"][3] == 0
    assert all(1 <= row[0] <= 7 for row in rows.values())


def test_the_best_of_4_costs_4_answers_and_the_reward_models_two_readings_of_each(compared):
    rows = table(compared[0][0], "and the rest")
    assert rows["best of n"][4] == 12 and rows["SFT"][4] == 1


def test_the_same_command_again_runs_nothing_and_prints_the_same(compared):
    (first, again), (before, after) = compared
    assert before == after
    titles = "trials:", "answers to prompts about the test people"
    assert all(first.count(title) == 1 for title in titles)
    made = "    out/seed0/methods/"                        # the runs, in the first only
    assert made in first and made not in again
    assert [line for line in first.splitlines() if not line.startswith(made)] == (
        again.splitlines())


def test_the_loss_on_text_is_the_scoreboards(folder, compared):
    assert tiny.run(folder, "evaluate", "--models=out/seed0/sft.pt,out/seed0/ppo.pt", "--reward=",
                    "--data=prompts.jsonl", "--n_prompts=2", "--max_new_tokens=4", "--judge=",
                    "--text=text.jsonl", "--out=out/board.json")[0] == 0
    board = json.loads((folder / "out/board.json").read_text())["models"]
    for name in ("sft", "ppo"):
        found = json.loads((folder / f"out/seed0/methods/{name}.test.json").read_text())["found"]
        assert len(found["grades"]) == 16
        assert found["text_loss"] == pytest.approx(board[name]["text_loss"], rel=1e-4)


def test_what_was_found_with_other_prompts_or_flags_is_not_used(tmp_path):
    model, data, made = tmp_path / "m.pt", tmp_path / "p.jsonl", []
    model.write_text("weights"), data.write_text("prompts")

    def found(**flags):
        return cached(tmp_path / "found" / "m.json", model, data, Config(**flags),
                      lambda: made.append(flags) or dict(n=len(made)))

    assert [found()["n"], found()["n"]] == [1, 1]
    assert found(n_prompts=5)["n"] == 2
    data.write_text("other prompts")
    assert [found(n_prompts=5)["n"], found(n_prompts=5)["n"]] == [3, 3]
    model.write_text("other weights")
    assert found(n_prompts=5)["n"] == 4


def counted(folder, script, *flags):
    """The FLOPs that PyTorch counts in a run of a script."""
    with FlopCounterMode(display=False) as counter:
        assert tiny.run(folder, script, *flags)[0] == 0
    return counter.get_total_flops()


def test_the_flops_of_ppo_are_about_those_that_pytorch_counts(folder, tiny_tokenizer):
    """Two runs that differ in one iteration. Ours count no padding, but the logits at every token,
    which are computed for answers only."""
    one, two = (counted(folder, "rlhf_ppo", *PPO, f"--steps={n}", f"--out=out/ppo{n}.pt")
                for n in (1, 2))
    n = [len(tiny_tokenizer.encode_chat(row["prompt"], reply=True)[0])
         for row in read_prompts(folder / "prompts.jsonl")]
    ours = [ppo_cost(folder / f"out/ppo{i}.pt", sum(n) / len(n), GPT(SIZE).flops_per_token(32) / 3,
                     64)[0] for i in (1, 2)]
    assert ours[1] - ours[0] == pytest.approx(two - one, rel=0.25)


@pytest.mark.parametrize("lesson", ["dpo", "grpo", "best_of_n"])
def test_the_flops_in_a_lessons_log_are_about_those_that_pytorch_counts(folder, lesson):
    data = (["--data=out/seed0/comparisons.jsonl", "--prompts=prompts.jsonl", "--batch_size=32"]
            if lesson == "dpo" else
            ["--data=prompts.jsonl", "--reward=out/seed0/reward.pt", "--batch_size=64",
             "--minibatch=32"])
    data += ["--best_of=4"] * (lesson == "best_of_n")
    flags = "--init=out/seed0/sft.pt", "--max_new_tokens=12", "--n_eval=1", *data
    one, more = (counted(folder, f"lessons/{lesson}", *flags, f"--steps={n}",
                         f"--out=out/{lesson}{n}.pt") for n in (1, 2))
    ours = [sum(row.get("flops", 0) for row in tiny.read_log(folder / f"out/{lesson}{n}.jsonl"))
            for n in (1, 2)]
    if lesson == "dpo":        # the reference reads all answers once, however few steps follow
        ours = [n * 3 / 4 for n in ours]
    assert ours[1] - ours[0] == pytest.approx(more - one, rel=0.25)


def test_only_dpo_and_sft_do_without_the_reward_models_cost(tmp_path):
    (tmp_path / "run.jsonl").write_text(
        "".join(json.dumps(dict(step=i, flops=10, seconds=2)) + "\n" for i in range(3)))
    spent = {m: cost(m, tmp_path / "run.pt", (100, 50), 0, 0, 0)
             for m in ("SFT", "best of n", "rejection sampling", "DPO", "GRPO")}
    assert spent == {"SFT": (0, 0), "best of n": (100, 50), "rejection sampling": (130, 56),
                     "DPO": (30, 6), "GRPO": (130, 56)}


def test_the_line_of_a_method_goes_through_the_medians():
    seeds = [[(0, 6.0), (1, 6.5)], [(0, 6.0), (4, 6.6)], [(0, 6.0), (2.25, 7.0)]]
    (_, _, _, line), (_, _, _, dots) = lines_of({"DPO": seeds})
    assert line == [(0, 6), (1.5, 6.6)]               # KL 2.25 of the third, 6.6 of the second
    assert dots == [(0, 6), (1, 6.5), (0, 6), (2, 6.6), (0, 6), (1.5, 7)]
    svg = picture({"DPO": seeds})
    assert svg.count("<polyline") == 1 and svg.count("<circle") == 6 and ">DPO</text>" in svg
