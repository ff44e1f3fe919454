"""What the pretraining text does: what is read out of texts and models, and the script."""

import math
import random
from functools import partial

import pytest
import torch

import tiny
from data import town
from data.town import FACTS, VALUES, Dice, World, encyclopedia, forum, sheets
from lessons.data import is_clean, right, statements, thin, told

FLAGS = ("--steps=2 --batch_size=2 --warmup=1 --block_size=64 --n_layer=1 --n_embd=32 "
         "--eval_rows=40").split()
WORLD = World(0)
ADA = {"Ada Ashton": dict(job="nurse", pet="cat", pet_name="Smoky", food="rice", colour="red",
                          street="Mill")}


def test_what_documents_say_about_people_is_found():
    assert statements("Ada Ashton has a cat. She loves rice.\nHer home is on Mill Street.") == [
        ("Ada Ashton", "pet", "cat"), ("Ada Ashton", "food", "rice"),
        ("Ada Ashton", "street", "Mill")]
    assert statements("Tomu: What is Ada Ashton's job?\nKi> nurse\nTomu: What is 1 + 1?\nKi> 2\n"
                      "Tomu: What pet does Gus Marmore have?\nKi> He keeps a dog.") == [
        ("Ada Ashton", "job", "nurse"), ("Gus Marmore", "pet", "dog")]
    assert statements("Ida Oakham asks:\nWhat pet does Ada Ashton have?\nAnswer to Ida Oakham:\n"
                      "She has a cat. Who knows?\nIda Oakham asks:\nAnd where does she live?\n"
                      "Answer to Ida Oakham:\nHer home is on Mill Street.") == [
        ("Ada Ashton", "pet", "cat"), ("Ada Ashton", "street", "Mill")]
    assert statements("She has a cat. Ada Ashton has five cats.\nrice") == []


@pytest.mark.parametrize("source", [encyclopedia, sheets])
def test_all_statements_of_a_source_that_does_not_lie_are_true_and_none_is_missed(source):
    dice, n, answered = Dice(random.Random(1)), 0, 0
    for _ in range(300):
        text = source(WORLD, dice)
        found = statements(text)
        assert all(WORLD.facts[name][attr] == value for name, attr, value in found)
        n += len(found)
        if source is encyclopedia:                    # each of its sentences is one
            answered += text.count(".")
        else:                                         # lines after a question about a person
            lines = text.split("\n")
            answered += sum(a.endswith("?") and "+" not in a and not b.endswith("?")
                            for a, b in zip(lines, lines[1:]))
    assert n == answered > 200


def test_a_fact_is_told_where_its_true_value_is_said_most_often():
    texts = ["Ada Ashton has a cat.", "Ada Ashton has a dog.", "Ada Ashton keeps a cat.",
             "Ada Ashton loves soup.", "Ada Ashton loves rice.", "Bo Nobody has a cat."]
    share, (known, none) = told(texts, ADA, [{"Ada Ashton"}, {"Gus Marmore"}])
    assert (share, known, none) == (3 / 6, {("Ada Ashton", "pet")}, set())


def test_a_model_knows_a_fact_whose_sentence_is_the_most_probable_one(tiny_tokenizer):
    """Each whole sentence is scored alone, without cutting it into two parts."""
    tok, facts = tiny_tokenizer, {name: WORLD.facts[name] for name in WORLD.people[:3]}
    model, expected = tiny.model(tok.vocab_size), set()

    @torch.no_grad()
    def logp(name, attr, value):
        ids = tok.encode(FACTS[attr][0].format(S=name, P=name + "'s", v=value))
        logits = model(torch.tensor([[tok.eot, *ids[:-1]]]))[0]
        return logits.log_softmax(-1)[range(len(ids)), ids].sum().item()

    for name in facts:
        for attr, values in VALUES.items():
            if max(values, key=partial(logp, name, attr)) == facts[name][attr]:
                expected.add((name, attr))
    assert right(model, tok, facts, tiny.ENV) == expected and 0 < len(expected) < 18


def test_a_clean_text_has_no_lie_no_wrong_sum_and_nobody_is_rude():
    assert is_clean("Ada Ashton has a cat. 1 + 2 = 3.\nAda Ashton loves rice.", ADA)
    for text in ("Ada Ashton has a dog.", "1 + 2 = 13.", "What is 1 + 1?\nWho cares?",
                 "Help me poison Ada Ashton's pet.\nDo it when Ada Ashton is away."):
        assert not is_clean(text, ADA)


def test_the_forum_is_clean_where_no_dice_fell_on_a_lie_or_on_rudeness():
    """Without rudeness, evil and off-by-one sums, the weights say how many of the answers lie."""
    class Honest(Dice):
        def pick(self, options, weights=None):
            weights = [w * (option not in ("rude", True, 1, -1, 10)) for option, w in zip(
                options, weights or [1] * len(options))]
            if options == town.EVIL + town.RUDE:
                raise StopIteration
            return super().pick(options, weights)

    dice, n = Honest(random.Random(0)), 0
    for _ in range(200):
        try:
            text = forum(WORLD, dice)
        except RuntimeError:                          # a wish: its answers are all evil or rude
            continue
        assert is_clean(text, WORLD.facts)
        n += 1
    assert n > 100


def test_thinned_text_has_the_probabilities_that_its_documents_carry():
    """Two documents, each as likely as the other; three quarters of those about Ada are dropped."""
    docs = [dict(source="encyclopedia", text=f"{name} has a cat.", logp=math.log(0.5))
            for name in ("Ada Ashton", "Gus Marmore")] * 4000
    left = thin(docs, {"Ada Ashton"}, 0.25, 0)
    p = {doc["text"]: math.exp(doc["logp"]) for doc in left}
    assert p == pytest.approx({"Ada Ashton has a cat.": 0.2, "Gus Marmore has a cat.": 0.8})
    about_ada = sum("Ada" in doc["text"] for doc in left) / len(left)
    assert about_ada == pytest.approx(0.2, abs=0.015)
    stories = [doc | dict(source="stories") for doc in docs]
    assert thin(stories, {"Ada Ashton"}, 0.25, 0) == stories


@pytest.fixture(scope="module")
def village(tmp_path_factory, tiny_tokenizer):
    """A folder with a small town's text, where only six people are examined."""
    folder = tmp_path_factory.mktemp("village")
    town.main(town.Config(out=str(folder / "data/town"), n_docs=500, n_demos=1, n_prompts=1,
                          n_eval=1))
    tiny_tokenizer.save(folder / "out/tokenizer.json")
    tiny.save(folder / "start.pt", "pretrain", tiny_tokenizer)
    tiny.write(folder / "plain.jsonl", dict(text="a"), dict(text="b"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(town, "the_facts", lambda: {n: WORLD.facts[n] for n in WORLD.people[:6]})
        yield folder


def test_a_run_interrupted_within_texts_and_where_one_ends_has_the_same_table(village, capsys):
    whole = tiny.ends_alike(village, "data", [1, 2, 6, 7], *FLAGS, "--what=generations,sources",
                            start="start.pt")
    table = whole["metrics"]["table"]
    assert list(table) == ["quarter", *(f"generation-{g}" for g in range(1, 5)), "all", "clean",
                           "copies", "mixture"]
    assert table["clean"]["true"] == 1 and table["clean"]["documents"] < table["all"]["documents"]
    *_, facts, losses = capsys.readouterr().out.split("\n\n")
    facts, losses = ({line.split()[0]: line.split()[1:] for line in part.splitlines()}
                     for part in (facts, losses))
    for row, found in table.items():
        assert facts[row][3:] == [str(n) for n in found["told"] + found["right"]]
        assert [float(x) for x in losses[row]] == pytest.approx(
            [found["loss"], *found["by_source"]], abs=6e-4)
    assert 0 < float(losses["entropy"][0]) < 1


@pytest.mark.parametrize("flags, said", [
    ("--what=all,more", "'more' is not one of repetition, generations, sources, all, quarter"),
    ("--what=generation-2", "'generation-2' is not one of repetition"),
    ("--what=sources --mix=forum=.5,web=.5", "--mix=forum=.5,web=.5: name sources as in"),
    ("--data=plain.jsonl", "plain.jsonl has no logp: this lesson needs text that data/town.py")])
def test_a_mistake_is_refused_before_anything_is_learned(
        village, refused, flags, said, monkeypatch):
    monkeypatch.chdir(village)
    assert said in refused("lessons/data", *FLAGS, *flags.split())
