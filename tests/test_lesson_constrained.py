"""Constrained decoding: the mask against the enumeration of all strings, and the script."""

import json
from itertools import product

import pytest
import torch

import tiny
from answer import generate
from checkpoint import load_checkpoint
from data.town import VALUES, World
from lessons.constrained import allowed, check, sentence_form, trie, word_form, write
from tiny import ENV
from tokenizer import Tokenizer

FLAGS = ("--text=text.jsonl --init=sft.pt --n_demos=50 --batch_size=4 --warmup=2 --eval_every=2 "
         "--n_eval=12 --max_new_tokens=4").split()


@pytest.fixture(scope="module")
def json_tokenizer():
    """Learned from JSON, without a split into words: many tokens cross the end of a value."""
    rows = [json.dumps({"pet": pet, "colour": colour})
            for pet, colour in product(VALUES["pet"], VALUES["colour"])]
    tok = Tokenizer.train(rows * 2, 400, pattern=r"[\s\S]+")
    assert any(b'", "' in token[1:] for token in tok.tokens.values())
    assert any(token.endswith(b'"}') and len(token) > 3 for token in tok.tokens.values())
    return tok


def random_model(tok):
    return tiny.model(tok.vocab_size, block_size=80)


def two_values():
    """{"pet": PET, "colour": COLOUR} as a trie, and as the list of all such strings."""
    pets, colours = VALUES["pet"], VALUES["colour"]
    end = trie([f'{colour}"}}' for colour in colours], {})
    middle = trie([f'{pet}", "colour": "' for pet in pets], end)
    strings = [json.dumps(dict(pet=p, colour=c)) for p, c in product(pets, colours)]
    return trie(['{"pet": "'], middle), strings


def spellings(node, tok):
    """Every sequence of tokens that the mask lets through."""
    for id, after in allowed(node, tok).items():
        if id == tok.end:
            yield []
        else:
            yield from ([id, *rest] for rest in spellings(after, tok))


def cut(text, tok):
    """Every sequence of ordinary tokens whose bytes are the text."""
    if not text:
        yield []
    for n in range(1, len(text) + 1):
        if text[:n] in tok.ranks:
            yield from ([tok.ranks[text[:n]], *rest] for rest in cut(text[n:], tok))


def test_all_spellings_of_all_strings_and_nothing_else_get_through(json_tokenizer):
    """Also where a token ends a value and begins the next one."""
    ends = ['d"}', 'red"}', "né"]
    strings = [first + end for first in ('cat", "', 'cats", "', 'c", "') for end in ends]
    found = [tuple(ids) for ids in spellings(
        trie(['cat", "', 'cats", "', 'c", "'], trie(ends, {})), json_tokenizer)]
    expected = {tuple(ids) for text in strings for ids in cut(text.encode(), json_tokenizer)}
    assert len(found) == len(set(found)) and set(found) == expected
    assert len(found) > 10 * len(strings)             # each has several


def test_a_special_token_is_never_the_text_of_its_name(tiny_tokenizer):
    ways = allowed(trie(["<|end|>"], {}), tiny_tokenizer)
    assert not set(ways) & set(tiny_tokenizer.specials.values())
    assert tiny_tokenizer.ranks[b"<"] in ways


@pytest.mark.parametrize("temperature", [0.0, 1.0, 5.0])
def test_what_a_random_model_writes_under_the_mask_is_allowed(json_tokenizer, temperature):
    tok, (root, strings) = json_tokenizer, two_values()
    prompts = [tok.encode_chat(text, reply=True)[0] for text in ("Hi", "Ada", "Who are you?")] * 4
    texts = write(random_model(tok), tok, prompts, [root] * 12, ENV, 50, temperature)
    assert set(texts) <= set(strings)
    assert temperature == 0 or len(set(texts)) > 1


def test_under_the_mask_probabilities_are_the_models_divided_by_what_is_allowed(tiny_tokenizer):
    tok, model = tiny_tokenizer, random_model(tiny_tokenizer)
    root = trie(["a", "b", "c"], {})
    prompt = tok.encode_chat("Hi", reply=True)[0]
    texts = write(model, tok, [prompt] * 4000, [root] * 4000, ENV, 1, 1.0)
    logits = model(torch.tensor([prompt]))[0, -1]
    p = logits[[tok.ranks[byte] for byte in (b"a", b"b", b"c")]].softmax(0)
    shares = torch.tensor([texts.count(text) / 4000 for text in "abc"])
    assert 0.02 < p.max() < 0.999 and torch.allclose(shares, p, atol=0.04)


def test_without_a_mask_it_writes_what_generate_writes_each_row_by_itself(tiny_tokenizer):
    tok, model = tiny_tokenizer, random_model(tiny_tokenizer)
    prompts = [tok.encode_chat(text, reply=True)[0] for text in ("Hi", "Who lives here?", "Ada")]
    forms = [None, trie(["yes", "no"], {}), None]
    texts = write(model, tok, prompts, forms, ENV, 8)
    assert texts[1] in ("yes", "no")
    for i in (0, 2):
        ids = generate(model, torch.tensor([prompts[i]]), 8, temperature=0, stop=[tok.end])[0]
        reply = ids[len(prompts[i]):].tolist()
        assert texts[i] == tok.decode([id for id in reply if id != tok.end])


def test_only_what_is_in_the_form_is_valid_and_only_the_truth_is_right():
    facts = World(0).facts
    name, question = "Gus Marmore", "What is Gus Marmore's job?"
    right = facts[name]["job"]
    wrong = next(v for v in VALUES["job"] if v != right)
    form, word = sentence_form(name), word_form("job")
    for text, shape, expected in (
            (f'{{"answer": "{name} works as a {right}."}}', form, (True, True, True)),
            (f'{{"answer": "{name} works as a {wrong}."}}', form, (True, True, False)),
            (f'{{"answer": "{name} has a cat."}}', form, (True, True, False)),
            (f'{{"answer": "{name} works as a wizard."}}', form, (True, False, False)),
            (f'{{"answer":"{name} works as a {right}."}}', form, (True, False, False)),
            (f'{{"answer": "{name} works as a {right}."', form, (False, False, False)),
            (f"{name} works as a {right}.", form, (False, False, False)),
            ('"answer"', form, (True, False, False)), ("", form, (False, False, False)),
            (f'{{"job": "{right}"}}', word, (True, True, True)),
            (f'{{"job": "{wrong}"}}', word, (True, True, False)),
            (f'{{"pet": "{right}"}}', word, (True, False, False))):
        assert check(text, shape, name, "job", question, facts) == expected, text


# ---- the script -----------------------------------------------------------------------------

def test_the_mask_makes_every_answer_of_an_untrained_model_valid(folder, tiny_tokenizer, capsys):
    tiny.save(folder / "sft.pt", "sft", tiny_tokenizer, block_size=128)
    status, _ = tiny.run(folder, "lessons/constrained", *FLAGS[:-1], "--max_new_tokens=64",
                         "--steps=1", "--out=valid.pt")
    assert status == 0
    rows = load_checkpoint(folder / "valid.pt", "sft")["metrics"]["table"][1]
    for label, is_json, valid, right, _ in rows:
        assert 0 <= right <= valid <= is_json == label.startswith("constrained"), label
        assert valid == is_json
    assert "constrained, greedy              100.0% 100.0%" in capsys.readouterr().out
