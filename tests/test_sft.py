import random

import numpy as np
import pytest
import torch

import tiny
from checkpoint import load_checkpoint
from data.formats import read_demonstrations
from sft import batch, encode_dialogues, evaluate, pack
from tiny import ENV


def say(role, words, rng):
    bag = "Ada lives on Mill Street . 12 + 30 = 42 <|end|> <|assistant|> a fox".split()
    return dict(role=role, content=" ".join(rng.choices(bag, k=rng.randint(1, words))))


@pytest.fixture(scope="module")
def dialogues():
    """Of one to three turns, some with a system message; users type special tokens, too."""
    rng, found = random.Random(0), []
    for i in range(60):
        turns = [say("system", 3, rng)] if i % 3 == 0 else []
        for _ in range(1 + i % 3):
            turns += [say("user", 4, rng), say("assistant", 4, rng)]
        found.append(turns)
    return found


# ---- the mask -------------------------------------------------------------------------------

def test_rows_are_dialogues_then_padding_and_what_is_learned_the_assistants_words_and_their_ends(
        dialogues, tiny_tokenizer):
    """From a file, as it is read, encoded and packed."""
    tok = tiny_tokenizer
    path = tiny.write("demos.jsonl", *(dict(messages=turns) for turns in dialogues))
    encoded, cut, dropped = encode_dialogues(read_demonstrations(path), tok, 1000)
    assert cut == dropped == 0
    longest = max(len(ids) for ids, _ in encoded)
    plan = pack([len(ids) for ids, _ in encoded], longest, 40, np.random.default_rng(0))
    assert max(map(len, plan)) > 1
    for row, ids, targets in zip(plan, *batch(encoded, plan, longest, tok.pad)):
        joined = [t for i in row for t in tok.encode_chat(dialogues[i])[0]]
        assert ids.tolist() == (joined + [tok.pad] * longest)[:longest]
        said = [t for i in row for turn in dialogues[i] if turn["role"] == "assistant"
                for t in tok.encode(turn["content"]) + [tok.end]]
        assert targets[targets >= 0].tolist() == said
        known = targets[:-1] >= 0                     # a target is the token that follows
        assert torch.equal(targets[:-1][known], ids[1:][known])


@pytest.mark.parametrize("room", range(-1, 20))
def test_a_dialogue_is_cut_and_counted_or_dropped_where_no_token_of_an_answer_fits(tiny_tokenizer,
                                                                                    room):
    turns = [dict(role="user", content="Hi"), dict(role="assistant", content="Ada has a cat.")]
    asked = len(tiny_tokenizer.encode_chat(turns[:1], reply=True)[0])
    whole, mask = tiny_tokenizer.encode_chat(turns)
    found = encode_dialogues([dict(messages=turns)], tiny_tokenizer, asked - 1 + room)
    end = asked + room
    assert len(whole) < asked + 19                    # it fits into the last rooms
    assert found == (([(whole[:end], mask[:end])], len(whole) > end, 0) if room > 0 else ([], 0, 1))


# ---- packing --------------------------------------------------------------------------------

def test_rows_are_full_to_nine_tenths_and_every_dialogue_comes_once_in_each_epoch():
    """Apart from the last few, which wait in open rows. Exercise 12 judges more of it."""
    lengths = random.Random(2).choices(range(10, 61), k=500)
    rows = pack(lengths, 128, 1000, np.random.default_rng(0))
    filled = [sum(lengths[i] for i in row) for row in rows]
    assert len(rows) == 1000 and all(rows) and max(filled) <= 129
    assert sum(filled) > 0.9 * 1000 * 129
    first, times = sum(rows[:120], []), np.bincount(sum(rows, []))
    assert len({*first}) == len(first) and np.ptp(times) <= 2 < times.min()


# ---- evaluation -----------------------------------------------------------------------------

def test_evaluation_equals_a_loop_over_tokens(dialogues, tiny_tokenizer):
    encoded, _, _ = encode_dialogues([dict(messages=turns) for turns in dialogues[:11]],
                                     tiny_tokenizer, 1000)
    model, nats, right = tiny.model(tiny_tokenizer.vocab_size, block_size=200), [], []
    with torch.no_grad():                             # it says <|end|> at times, and is right
        model.lm_head.weight[tiny_tokenizer.end] *= 2
    for ids, mask in encoded:
        with torch.no_grad():
            logits = model(torch.tensor([ids]))[0]
        for t in range(1, len(ids)):
            if mask[t]:
                nats.append(-logits[t - 1].log_softmax(0)[ids[t]].item())
                right.append(logits[t - 1].argmax().item() == ids[t])
    got = evaluate(model, encoded, tiny_tokenizer.pad, 4, ENV)
    assert 0 < np.mean(right) < 0.5
    assert got == pytest.approx((np.mean(nats), np.mean(right)), rel=1e-5)


# ---- the script -----------------------------------------------------------------------------

def test_held_out_prompts_longer_than_the_context_do_not_stop_the_run(folder):
    asked = (f"What is {k} + 30?{tail}" for tail in (" Please!" * 40, "") for k in range(150))
    tiny.write(folder / "asked.jsonl", *(dict(prompt=q, response="Happy to help!") for q in asked))
    said = tiny.printed(folder, "sft", *tiny.FLAGS["sft"].split(), "--data=asked.jsonl",
                        "--steps=2", "--eval_every=1", "--out=long.pt")
    assert sum("sample:" in line and "Please" in line for line in said) == 2


def test_without_pretraining_it_starts_from_random_weights_of_the_same_size(folder):
    tiny.printed(folder, "sft", *tiny.FLAGS["sft"].split(), "--steps=1", "--text=", "--init=",
                 "--like=pretrain.pt", "--out=new.pt")
    start, ckpt = (load_checkpoint(folder / f"{name}.pt") for name in ("pretrain", "new"))
    assert [entry["stage"] for entry in ckpt["history"]] == ["sft"]
    assert ckpt["model_config"] == start["model_config"] | dict(dropout=0.1)
    assert not tiny.equal(ckpt["model"].state_dict(), start["model"].state_dict())
