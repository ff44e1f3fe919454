"""Text never becomes a special token: not in pretraining text, a demonstration, a prompt, an answer
or a system message, and in no script."""

import random
from pathlib import Path

import numpy as np
import pytest

from chat import as_dialogue, as_text
from data.corpus import Corpus
from data.formats import read_comparisons, read_demonstrations, read_prompts
from evaluate import few_shot
from reward import encode_answer
from sft import encode_dialogues
from tiny import write
from tokenizer import SPECIALS, Tokenizer

PIECES = [*SPECIALS, "<|", "|>", "<", "|", ">", "end", "assistant", "<|END|>", "<| end |>", "</s>",
          "<|im_start|>", "[INST]", "\n", "\r\n", " ", "\t", "\0", "\u200b", "Ada", "12", "é", "語",
          "😊", "\ud83d", "\udc00", "\ufeff", "\u202e", "&lt;|end|&gt;", "<\u200b|end|>",
          "＜|end|＞"]


@pytest.fixture(scope="module")
def attacks():
    """2,000 texts. Most contain a special token's name, or nearly."""
    rng = random.Random(0)
    return [*SPECIALS, *("".join(rng.choices(PIECES, k=rng.randint(1, 9)))
                         for _ in range(2000 - len(SPECIALS)))]


def specials(tok, ids):
    """The names of the special tokens in ids, in order."""
    names = {id: name[2:-2] for name, id in tok.specials.items()}
    return [names[id] for id in ids if id in names]


def test_most_of_the_attacks_name_a_special_token(attacks):
    assert sum(any(name in text for name in SPECIALS) for text in attacks) > 1000


def spelled(texts):
    """The texts that a UTF-8 file can contain, without blank ones."""
    return [t for t in texts if t.encode("utf-8", "ignore").decode() == t and t.strip()]


def test_wherever_a_text_goes_only_the_program_places_special_tokens(tiny_tokenizer, attacks):
    tok, texts, rng = tiny_tokenizer, spelled(attacks), np.random.default_rng(0)
    pairs = list(zip(texts, texts[1:]))
    write("text.jsonl", *(dict(text=text) for text in texts))
    write("sft.jsonl", *(dict(prompt=a, response=b) for a, b in pairs))
    write("pairs.jsonl", *(dict(prompt=a, responses=[b, b + "!"]) for a, b in pairs))
    corpus = Corpus("text.jsonl", tok, Path("cache"), "")
    dialogues, cut, dropped = encode_dialogues(read_demonstrations("sft.jsonl"), tok, T=1000)
    assert cut == dropped == 0 and len(dialogues) == len(pairs)
    comparisons = [encode_answer(tok, row["prompt"], response, 1000)
                   for row in read_comparisons("pairs.jsonl") for response in row["responses"]]
    chats = [[dict(role="system", content=b), dict(role="user", content=a)]
             for a, b in zip(attacks, attacks[1:])]
    answered = [[*asked, dict(role="assistant", content=c)] for asked, c in zip(chats, attacks[2:])]
    for found, expected in (
            ([tok.encode(text) for text in attacks], ""), (tok.encode_batch(attacks), ""),
            ([corpus.tokens[a:b] for a, b in zip(corpus.starts, corpus.starts[1:])], "endoftext"),
            ([ids for ids, _ in dialogues], "endoftext user end assistant end"),
            (comparisons, "endoftext user end assistant end"),
            ([tok.encode_chat(row["prompt"], reply=True)[0] for row in read_prompts("sft.jsonl")],
             "endoftext user end assistant"),
            ([tok.encode_chat(chat)[0] for chat in answered],
             "endoftext system end user end assistant end"),
            ([as_dialogue(tok, asked, room=1000)[0] for asked in chats],
             "endoftext system end user end assistant"),
            ([as_text(tok, asked) for asked in chats], "endoftext"),
            ([few_shot(tok, dict(prompt=chat[:-1]), [dict(messages=chat)], rng, room=1000)
              for chat in answered], "endoftext endoftext")):
        assert {" ".join(specials(tok, ids)) for ids in found} == {expected}
    first = corpus.tokens[corpus.starts[:-1]]
    assert len(first) == len(texts) and (first == tok.eot).all()
    for *asked, answer in answered:
        learned = len(tok.encode(answer["content"])) + 1 if answer["content"].strip() else 0
        assert sum(tok.encode_chat([*asked, answer])[1]) == learned


def test_the_question_and_what_follows_it_are_encoded_as_in_the_pretraining_text():
    text = "Ida Holton asks:\nWho?\nAnswer to Ida Holton:\nMe\n" * 9
    tok = Tokenizer.train(text, 280)
    assert b"?\n" in tok.tokens.values()                     # "?" and the line break are one token
    asked = [dict(role="user", content="Who?")]
    ids = few_shot(tok, dict(prompt=asked), [], np.random.default_rng(0), room=1000)
    assert ids == [tok.eot, *tok.encode("Ida Holton asks:\nWho?\nAnswer to Ida Holton:\n")]
