"""The calculator: calls against Python's own sum on hostile strings, the mask, and the script."""

import ast
import random
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


HOSTILE = """* ** / . - _ e9 0x10 1j True a ² ２ ٣ ( ) ; exit() open('x') <CALL> < call> </call>
__import__('os').system('true') <call> =""".split() + ["\x00", "\n", " ", "9" * 5000]


def test_a_call_gives_pythons_sum_and_whatever_else_is_written_stays_text():
    """With leading zeros, and of the largest numbers, too."""
    rng, calls = random.Random(0), 0
    for _ in range(20000):
        x, y = ("0" * rng.randint(0, 2) + str(rng.randrange(10 ** rng.randint(1, 9))) for _ in "xy")
        parts = [*rng.choices(["Let me see! ", ""]), "<call>", x, "+", y, "="]
        for _ in range(rng.randint(0, 2)):            # add a piece, or put it in the place of one
            at = rng.randint(0, len(parts))
            parts[at:at + rng.randint(0, 1)] = [rng.choice(HOSTILE)]
        text = "".join(parts)
        assert result(text) == by_hand(text), text
        calls += result(text) != ""
    assert 5000 < calls < 15000
    assert result("<call>999999999+999999999=") == "1999999998</call>"


def test_the_lesson_evaluates_no_code():
    tree = ast.parse(Path(calculator.__file__).read_text())
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert not names & {"eval", "exec", "compile", "__import__", "literal_eval", "getattr"}


# ---- a model that follows a script ----------------------------------------------------------

@pytest.fixture
def reply(tiny_tokenizer, monkeypatch):
    """reply(says, question, …): the answer of a model that writes the ids which says(what stands
    there so far) gives, or <|end|>; and the ids that it has read, each time it was asked."""
    def call(says, question="What is 1 + 2?", max_new_tokens=60, max_calls=2):
        tok, asked = tiny_tokenizer, []
        prompt = tok.encode_chat(question, reply=True)[0]

        def generate(model, idx, max_new_tokens, stop, **_):
            asked.append(idx[0].tolist())
            new = []
            while len(new) < max_new_tokens and not (new and new[-1] in stop):
                new += [*says(asked[-1][len(prompt):] + new), tok.end][:1]
            return torch.cat([idx, torch.tensor([new])], dim=1)

        monkeypatch.setattr(calculator, "generate", generate)
        return answer(torch.nn.Identity(), tok, [prompt], ENV, max_new_tokens, max_calls)[0], asked
    return call


def script(tok, *parts):
    """Write the first part; after what the program has added, the next part …"""
    def says(ids):
        done = tok.decode(ids)
        for part in parts:
            if not done.startswith(part):
                return tok.encode(part[len(done):]) if part.startswith(done) else []
            done = done[len(part):]
            added, closed, later = done.partition("</call>")
            done = later if closed else done
        return []
    return says


@pytest.mark.parametrize("parts, calls, expected", [
    (["<call>12+30=", " 12 + 30 = 42."], 2, "<call>12+30=42</call> 12 + 30 = 42."),
    (["<call>1+2=", "<call>3+4=", "<call>5+6="], 3,
     "<call>1+2=3</call><call>3+4=7</call><call>5+6="),
    *(([said], None, said) for said in ("<call>1-2=3.", "<call>1+2 = 3", "No call = no result.",
                                        "<call>1+2", "a=b=c=d"))],
    ids=lambda value: value if isinstance(value, str) else "")
def test_the_model_goes_on_after_two_results_and_what_is_no_call_or_a_third_stays_text(
        tiny_tokenizer, reply, parts, calls, expected):
    text, asked = reply(script(tiny_tokenizer, *parts))
    assert text == expected and len(asked) == (calls or len(asked))


@pytest.mark.parametrize("max_calls", [0, 1, 3])
def test_a_model_that_calls_without_end_is_cut_like_any_other(tiny_tokenizer, reply, max_calls):
    text, asked = reply(script(tiny_tokenizer, *["<call>1+1="] * 99), max_new_tokens=80,
                        max_calls=max_calls)
    assert len(tiny_tokenizer.encode(text)) <= 80 and len(asked) <= max_calls + 1
    assert text.count("2</call>") == max_calls


def test_a_call_that_the_user_wrote_is_not_computed(tiny_tokenizer, reply):
    assert reply(script(tiny_tokenizer, "=3."), question="<call>1+2")[0] == "=3."


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


def test_a_model_that_has_learned_a_demonstration_repeats_its_tokens(tiny_tokenizer, reply):
    """What the model and the program write together is what the demonstration had, id for id."""
    ids, _ = encode_call(tiny_tokenizer, "What is 7 + 88?", 7, 88)
    start = len(tiny_tokenizer.encode_chat("What is 7 + 88?", reply=True)[0])
    text, asked = reply(lambda done: ids[start + len(done):], "What is 7 + 88?")
    assert text == "<call>7+88=95</call> 7 + 88 = 95."
    assert len(asked) > 1 and all(ids[:len(seen)] == seen for seen in asked)


def test_no_held_out_sum_is_demonstrated_in_either_order():
    held_out = held_out_sums(200)
    pairs = {pair for part in held_out.values() for pair in part}
    found = demonstrations(5000, 0, held_out)
    assert len(found) == 5000
    assert not {(x, y) for _, x, y in found} & (pairs | {(y, x) for x, y in pairs})
    assert all(f"{x} + {y}" in question and x < 1000 > y for question, x, y in found)
    assert all(len(str(n)) == digits for digits, part in held_out.items() for p in part for n in p)
