"""The chain learns Chinese from a few Chinese files. No flag or code mentions the language."""

import io
import math
import random
import sys

import pytest

from tiny import held_out, run, write
from tokenizer import Tokenizer

NAMES = [a + b for a in "王李张刘陈杨赵黄周吴" for b in ["芳", "伟", "秀英", "明", "小红", "建国"]]
JOBS = ["医生", "老师", "面包师", "画家", "园丁", "律师"]
CITIES = ["北京", "上海", "成都", "桂林"]
FOODS = ["饺子", "米饭", "苹果", "豆腐", "面条"]
FLAGS = {
    "tokenizer": "--data=text.txt,sft.jsonl --vocab_size=420",
    "pretrain": "--data=text.txt --block_size=64 --n_layer=2 --n_head=2 --n_embd=64 --steps=60 "
                "--batch_size=8 --warmup=10 --eval_every=30 --eval_rows=8",
    "sft": "--data=sft.jsonl --text=text.txt --steps=150 --batch_size=8 --warmup=10 "
           "--eval_every=75",
    "reward": "--data=comparisons.jsonl --demos=sft.jsonl --batch_size=8 --micro_batch=8 "
              "--steps=16 --warmup=5 --eval_every=8",
    "rlhf_ppo": "--data=prompts.jsonl --text=text.txt --watch= --steps=2 --batch_size=16 "
                "--minibatch=8 --micro_batch=8 --max_new_tokens=24 --eval_every=1 --n_eval=4",
}


def documents(rng, n):
    for _ in range(n):
        name, job, city, food = map(rng.choice, (NAMES, JOBS, CITIES, FOODS))
        yield f"{name}住在{city}。{name}是一位{job}，喜欢吃{food}。{city}很美，有很多{job}。"


def dialogues(rng):
    """Each person is asked about twice: a question, a good answer and a bad one."""
    for name in NAMES:
        job, food = rng.choice(JOBS), rng.choice(FOODS)
        yield f"{name}是做什么工作的？", f"{name}是一位{job}。", "不知道，别问我！"
        yield f"{name}喜欢吃什么？", f"您好！{name}喜欢吃{food}。", "我很忙，走开！"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in which the whole chain has run, and the variables at the end of PPO."""
    folder, rng = tmp_path_factory.mktemp("chinese"), random.Random(0)
    asked = list(dialogues(rng))
    (folder / "text.txt").write_text("<|endoftext|>".join(documents(rng, 300)), encoding="utf-8")
    write(folder / "sft.jsonl", *(dict(instruction=q, output=good) for q, good, _ in asked))
    write(folder / "comparisons.jsonl", *(dict(prompt=q, chosen=good, rejected=bad)
                                          for q, good, bad in asked))
    write(folder / "prompts.jsonl", *(dict(prompt=q) for q, *_ in asked))
    for script, flags in FLAGS.items():
        status, names = run(folder, script, *flags.split())
        assert not status, script
    return folder, names


def test_the_tokenizer_learns_words_of_several_characters(folder):
    tok = Tokenizer.load(folder[0] / "out/tokenizer.json")
    texts = (folder[0] / "text.txt").read_text(encoding="utf-8").split("<|endoftext|>")
    ids = [tok.encode(text) for text in texts]
    assert [*map(tok.decode, ids)] == texts
    assert sum(map(len, ids)) < 0.7 * sum(map(len, texts))            # a character takes 3 bytes
    assert {"医生", "喜欢吃"} < {tok.decode([i]) for i in range(tok.vocab_size)}


@pytest.mark.parametrize("stage, most", [("pretrain", 2), ("sft", math.inf),
                                         ("reward", 0.5 * math.log(2))])
def test_each_stage_lowers_the_loss_on_what_is_held_out(folder, stage, most):
    first, *_, last = held_out(folder[0], stage, "val_loss")
    assert last < min(first, math.log(420), most)


def test_the_reward_model_knows_a_good_answer_to_a_held_out_question(folder):
    assert held_out(folder[0], "reward", "val_accuracy")[-1] > 0.9


def test_ppo_counts_lengths_in_tokens(folder):
    lengths, names = held_out(folder[0], "ppo", "length"), folder[1]
    answers, tok = names["answers"], names["tok"]                 # of the last iteration
    assert lengths[-2] == sum(map(len, answers)) / len(answers) <= 24
    assert lengths[-2] != sum(len(tok.decode(a[:-1])) for a in answers) / len(answers)


def test_a_chinese_question_gets_a_chinese_answer(folder, capsys, monkeypatch):
    typed = io.BytesIO("王芳喜欢吃什么？\n刘明是做什么工作的？\n".encode())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(typed, encoding="utf-8"))
    status, _ = run(folder[0], "chat", "--temperature=0")
    answers = capsys.readouterr().out.splitlines()
    assert not status and len(answers) == 2 and "\ufffd" not in "".join(answers)
    assert "喜欢吃" in answers[0] and "是一位" in answers[1]
