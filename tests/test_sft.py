import json
import random
from collections import Counter

import numpy as np
import pytest
import torch

import tiny
from checkpoint import load_checkpoint
from data.formats import is_held_out, read_demonstrations
from model import GPT, GPTConfig
from sft import batch, encode_dialogues, evaluate, pack
from tiny import ENV

T = 48


def say(role, words, rng):
    bag = "Ada lives on Mill Street . 12 + 30 = 42 <|end|> <|assistant|> a fox".split()
    return dict(role=role, content=" ".join(rng.choices(bag, k=rng.randint(1, words))))


def small(tok, block_size):
    torch.manual_seed(0)
    return tiny.awake(GPT(GPTConfig(block_size=block_size, vocab_size=tok.vocab_size, n_layer=1,
                                    n_embd=32)))


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


@pytest.fixture(scope="module")
def loaded(dialogues, tmp_path_factory, tiny_tokenizer):
    """What the real loader makes of them: a file, read, encoded, packed into batches of 10 rows."""
    path = tmp_path_factory.mktemp("sft") / "demos.jsonl"
    path.write_text("".join(json.dumps(dict(messages=turns)) + "\n" for turns in dialogues))
    encoded, cut, dropped = encode_dialogues(read_demonstrations(path), tiny_tokenizer, 1000)
    assert cut == dropped == 0
    length = max(len(ids) for ids, _ in encoded)
    plan = pack([len(ids) for ids, _ in encoded], length, 40, np.random.default_rng(0))
    return [(rows, *batch(encoded, rows, length, tiny_tokenizer.pad))
            for rows in (plan[i:i + 10] for i in range(0, 40, 10))]


# ---- the mask -------------------------------------------------------------------------------

def test_what_is_learned_is_what_the_assistants_say_and_their_ends(loaded, dialogues,
                                                                   tiny_tokenizer):
    for plan, _, y in loaded:
        for row, targets in zip(plan, y):
            expected = [t for i in row for turn in dialogues[i] if turn["role"] == "assistant"
                        for t in tiny_tokenizer.encode(turn["content"]) + [tiny_tokenizer.end]]
            assert targets[targets >= 0].tolist() == expected


def test_every_target_is_the_token_that_follows(loaded, tiny_tokenizer):
    for _, x, y in loaded:
        known = y[:, :-1] >= 0
        assert torch.equal(y[:, :-1][known], x[:, 1:][known])


def test_rows_are_the_dialogues_one_after_the_other_then_padding(loaded, dialogues, tiny_tokenizer):
    for plan, x, _ in loaded:
        for row, ids in zip(plan, x.tolist()):
            joined = [t for i in row for t in tiny_tokenizer.encode_chat(dialogues[i])[0]]
            padding = [tiny_tokenizer.pad] * (len(ids) - len(joined))
            assert ids == (joined + padding)[:len(ids)]


@pytest.mark.parametrize("room", range(-1, 3))
def test_a_dialogue_is_cut_and_counted_or_dropped_where_no_token_of_an_answer_fits(tiny_tokenizer,
                                                                                    room):
    turns = [dict(role="user", content="Hi"), dict(role="assistant", content="Ada has a cat.")]
    asked = len(tiny_tokenizer.encode_chat(turns[:1], reply=True)[0])
    whole, mask = (part[:asked + room] for part in tiny_tokenizer.encode_chat(turns))
    found = encode_dialogues([dict(messages=turns)], tiny_tokenizer, asked - 1 + room)
    assert found == (([(whole, mask)], 1, 0) if room > 0 else ([], 0, 1))


# ---- packing --------------------------------------------------------------------------------

LENGTHS = random.Random(1).choices(range(5, T + 2), k=70)


class Remember:
    """A random generator that keeps count of the permutations it gave: one each epoch."""

    def __init__(self):
        self.rng, self.epochs = np.random.default_rng(0), 0

    def permutation(self, n):
        self.epochs += 1
        return self.rng.permutation(n)


@pytest.fixture(scope="module")
def packed():
    rng = Remember()
    return pack(LENGTHS, T, 300, rng), rng.epochs


def test_there_are_as_many_rows_as_asked_for_none_is_empty_and_none_holds_more_than_fits(packed):
    assert len(packed[0]) == 300 and all(packed[0])
    assert max(sum(LENGTHS[i] for i in row) for row in packed[0]) <= T + 1


def test_every_dialogue_comes_once_in_each_epoch(packed):
    """Apart from the last few, which still wait in open rows."""
    rows, epochs = packed
    counts = Counter(i for row in rows for i in row)
    assert epochs > 3 and max(counts.values()) <= epochs
    missing = sum((epochs - counts[i]) for i in range(len(LENGTHS)))
    assert missing < len(LENGTHS) + 9 * (T + 1) / min(LENGTHS)


def test_rows_are_full_to_nine_tenths():
    lengths = random.Random(2).choices(range(10, 61), k=500)
    rows = pack(lengths, 128, 100, np.random.default_rng(0))
    assert sum(lengths[i] for row in rows for i in row) > 0.9 * 100 * 129


def test_the_same_seed_packs_the_same_rows():
    first, second, other = (pack(LENGTHS, T, 50, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert first == second != other


# ---- evaluation -----------------------------------------------------------------------------

def test_evaluation_equals_a_loop_over_tokens(dialogues, tiny_tokenizer):
    encoded, _, _ = encode_dialogues([dict(messages=turns) for turns in dialogues[:11]],
                                     tiny_tokenizer, 1000)
    model, nats, right = small(tiny_tokenizer, 200).eval(), [], []
    for ids, mask in encoded:
        with torch.no_grad():
            logits = model(torch.tensor([ids]))[0]
        for t in range(1, len(ids)):
            if mask[t]:
                nats.append(-logits[t - 1].log_softmax(0)[ids[t]].item())
                right.append(logits[t - 1].argmax().item() == ids[t])
    got = evaluate(model, encoded, tiny_tokenizer.pad, 4, ENV)
    assert got == pytest.approx((np.mean(nats), np.mean(right)), rel=1e-5)


# ---- the script -----------------------------------------------------------------------------

@pytest.fixture
def script(tmp_path, tiny_tokenizer, capsys):
    """script(rows, flags) fine-tunes a random model of context 48: what it prints."""
    tiny.store(tmp_path / "pretrain.pt", "pretrain", small(tiny_tokenizer, T), tiny_tokenizer)

    def script(rows, flags):
        tiny.write(tmp_path / "demos.jsonl",
                   *(dict(prompt=q, response="Happy to help!") for q in rows))
        assert tiny.run(tmp_path, "sft", *"--data=demos.jsonl --init=pretrain.pt --text= "
                        f"--out=sft.pt {flags}".split())[0] == 0
        return capsys.readouterr().out
    return script


def questions(n, held_out, tail=""):
    found = (f"What is {k} + 30?{tail}" for k in range(10 ** 6))
    mine = (q for q in found if is_held_out([dict(role="user", content=q)]) == held_out)
    return [next(mine) for _ in range(n)]


def test_held_out_prompts_longer_than_the_context_do_not_stop_the_run(script):
    rows = questions(20, False) + questions(1, True) + questions(3, True, " Please!" * 40)
    assert script(rows, "--steps=4 --eval_every=1").count("sample:") == 4


def test_without_pretraining_it_starts_from_random_weights_of_the_same_size(script):
    script(questions(20, False) + questions(1, True), "--steps=1 --init= --like=pretrain.pt")
    ckpt = load_checkpoint("sft.pt", "sft")
    assert [entry["stage"] for entry in ckpt["history"]] == ["sft"]
    assert ckpt["model_config"]["n_embd"] == 32
