"""The calculator: calls against Python's own sum on hostile strings, the mask, and the script."""

import ast
import random
from functools import partial
from pathlib import Path

import pytest
import torch

from lessons import calculator
from lessons.calculator import answer, demonstrations, encode_call, held_out_sums, result
from tiny import ENV

FLAGS = ("--data=sft.jsonl --text=text.jsonl --ptx=0.25 --init=sft.pt --n_demos=60 --n_eval=4 "
         "--batch_size=4 --warmup=2 --max_new_tokens=30 --steps=4").split()


def by_hand(text):
    """What a call gives, read without a regular expression; "" if the text does not end in one."""
    _, opened, inside = text.rpartition("<call>")
    numbers = inside[:-1].split("+")
    if opened and inside.endswith("=") and len(numbers) == 2 and all(
            1 <= len(n) <= 9 and set(n) <= set("0123456789") for n in numbers):
        return f"{sum(map(int, numbers))}</call>"
    return ""


def test_every_call_gives_pythons_sum():
    """With leading zeros, and of the largest numbers, too."""
    rng = random.Random(0)
    numbers = [[str(rng.randrange(10 ** rng.randint(1, 9))) for _ in "xy"] for _ in range(500)]
    for x, y in [*numbers, ("007", "08"), ("9" * 9, "9" * 9)]:
        assert result(f"Let me see! <call>{x}+{y}=") == f"{int(x) + int(y)}</call>"


# The pieces of the next test make the other forms.
HOSTILE = [
    "<call>1*2=", "<call>1/0=", "<call>2**9=", "<call>1.5+2=", "<call>1e9+1=", "<call>0x10+1=",
    "<call>1_0+1=", "<call>1j+1=", "<call>" + "9" * 5000 + "+1=", "<call>True+1=", "<call>a+b=",
    "<call>__import__('os').system('true')+1=", "<call>open('x')+1=", "<call>exit()+1=",
    "<call>1+２=", "<call>²+1=", "<CALL>1+2=", "< call>1+2=", "<call>1+2=" * 2 + "3",
    "<call>\x001+2=", "<call>1+2=\x00", "<call>1+2;import os="]


@pytest.mark.parametrize("text", HOSTILE)
def test_what_is_not_a_call_stays_text(text):
    assert result(text) == by_hand(text) == ""


def test_random_pieces_of_calls_are_read_as_by_hand():
    rng, calls = random.Random(0), 0
    pieces = ["+", "1", "23"] * 4 + ["<call>", "</call>", "=", "٣", "-", " ", "(", "9" * 8, "\n"]
    for _ in range(20000):
        text = "<call>" * rng.randint(0, 1) + "".join(rng.choices(pieces, k=rng.randint(0, 5)))
        text += "=" * rng.randint(0, 1)
        assert result(text) == by_hand(text), text
        calls += result(text) != ""
    assert calls > 50


def test_the_lesson_evaluates_no_code():
    tree = ast.parse(Path(calculator.__file__).read_text())
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert not names & {"eval", "exec", "compile", "__import__", "literal_eval", "getattr"}


# ---- a model that follows a script ----------------------------------------------------------

class Scripted:
    """Continues each reply as says(reply so far) tells, token by token, then <|end|>."""

    def __init__(self, tok, prompt, says):
        self.tok, self.start, self.says, self.calls = tok, len(prompt), says, 0

    def eval(self):
        pass

    train = eval

    def generate(self, idx, max_new_tokens, stop, **_):
        self.calls += 1
        new = []
        while len(new) < max_new_tokens and not (new and new[-1] in stop):
            done = idx[0, self.start:].tolist() + new
            rest = self.tok.encode(self.says(self.tok.decode(done)))
            new.append(rest[0] if rest else self.tok.end)
        return torch.cat([idx, torch.tensor([new])], dim=1)


@pytest.fixture(autouse=True)
def scripted(monkeypatch):
    """What such a model writes is up to its script."""
    real = calculator.generate
    monkeypatch.setattr(calculator, "generate", lambda model, *args, **more: (
        model.generate if isinstance(model, Scripted) else partial(real, model))(*args, **more))


def reply(tok, says, question="What is 1 + 2?", max_new_tokens=60, max_calls=2):
    prompt = tok.encode_chat(question, reply=True)[0]
    model = Scripted(tok, prompt, says)
    text, = answer(model, tok, [prompt], ENV, max_new_tokens, max_calls)
    return text, model


def script(*parts):
    """Write the first part; after what the program has added, the next part …"""
    def says(done):
        for part in parts:
            if not done.startswith(part):
                return part[len(done):] if part.startswith(done) else ""
            done = done[len(part):]
            added, closed, later = done.partition("</call>")
            done = later if closed else done
        return ""
    return says


@pytest.mark.parametrize("parts, calls, expected", [
    (["<call>12+30=", " 12 + 30 = 42."], 2, "<call>12+30=42</call> 12 + 30 = 42."),
    (["<call>1+2=", "<call>3+4=", "<call>5+6="], 3,
     "<call>1+2=3</call><call>3+4=7</call><call>5+6="),
    *(([said], None, said) for said in ("<call>1-2=3.", "<call>1+2 = 3", "No call = no result.",
                                        "<call>1+2", "a=b=c=d"))],
    ids=lambda value: value if isinstance(value, str) else "")
def test_the_model_goes_on_after_two_results_and_what_is_no_call_or_a_third_stays_text(
        tiny_tokenizer, parts, calls, expected):
    text, model = reply(tiny_tokenizer, script(*parts))
    assert text == expected and model.calls == (calls or model.calls)


@pytest.mark.parametrize("max_calls", [0, 1, 3])
def test_a_model_that_calls_without_end_is_cut_like_any_other(tiny_tokenizer, max_calls):
    def forever(done):
        return "<call>1+1="[len(done.split("</call>")[-1]):] or "<call>1+1="

    text, model = reply(tiny_tokenizer, forever, max_new_tokens=80, max_calls=max_calls)
    assert len(tiny_tokenizer.encode(text)) <= 80 and model.calls <= max_calls + 1
    assert text.count("2</call>") == max_calls


def test_a_call_that_the_user_wrote_is_not_computed(tiny_tokenizer):
    text, _ = reply(tiny_tokenizer, lambda done: "=3."[len(done):], question="<call>1+2")
    assert text == "=3."


# ---- what is learned ------------------------------------------------------------------------

def test_the_mask_is_0_on_the_question_and_on_what_the_program_adds(tiny_tokenizer):
    tok = tiny_tokenizer
    ids, mask = encode_call(tok, "What is 123 + 456?", 123, 456)
    asked = tok.encode_chat("What is 123 + 456?", reply=True)[0]
    assert ids[:len(asked)] == asked and not any(mask[:len(asked)])
    said = list(zip(ids, mask))[len(asked):]
    assert tok.decode([id for id, _ in said[:-1]]) == "<call>123+456=579</call> 123 + 456 = 579."
    assert tok.decode([id for id, learned in said if not learned]) == "579</call>"
    assert said[-1] == (tok.end, 1)


def test_a_model_that_has_learned_a_demonstration_repeats_its_tokens(tiny_tokenizer):
    """What the model and the program write together is what the demonstration had, id for id."""
    tok = tiny_tokenizer
    ids, _ = encode_call(tok, "What is 7 + 88?", 7, 88)
    prompt = tok.encode_chat("What is 7 + 88?", reply=True)[0]

    class Learned(Scripted):
        def generate(self, idx, max_new_tokens, stop, **_):
            seen = idx[0].tolist()
            assert seen == ids[:len(seen)]
            end = next(i for i in range(len(seen), len(ids)) if ids[i] in stop)
            return torch.tensor([ids[:end + 1]])

    text, = answer(Learned(tok, prompt, None), tok, [prompt], ENV, 60, 2)
    assert text == "<call>7+88=95</call> 7 + 88 = 95."


def test_no_held_out_sum_is_demonstrated_in_either_order():
    held_out = held_out_sums(200)
    pairs = {pair for part in held_out.values() for pair in part}
    found = demonstrations(5000, 0, held_out)
    assert len(found) == 5000
    assert not {(x, y) for _, x, y in found} & (pairs | {(y, x) for x, y in pairs})
    assert all(f"{x} + {y}" in question and x < 1000 > y for question, x, y in found)
    assert all(len(str(n)) == digits for digits, part in held_out.items() for p in part for n in p)
