"""Looking up: BM25 against its formula, the newcomers and their articles, and the script."""

import math
import random
import re
from collections import Counter

import pytest
import torch

import lessons.look_up
import tiny
from data.town import SAYS, VALUES, Dice, World, ask, find, judge, sentences, understand
from lessons.look_up import (Library, bm25, demonstrations, examine, held_out, newcomers, words,
                             write)

WORLD = World(0)
NEW = newcomers(WORLD, 1)
FLAGS = ("--data=sft.jsonl --text=text.jsonl --ptx=0.25 --init=sft.pt --n_demos=40 --n_eval=6 "
         "--batch_size=4 --warmup=2 --max_new_tokens=8 --steps=4").split()


def read(turn):
    """(article, question) of a user's turn."""
    article, _, question = turn["content"].rpartition("\n")
    return article, question


def written(article):
    """{attribute: value}: what the sentences of an article say."""
    found = [find(SAYS, sentence) for sentence in sentences(article)]
    return {attr: slots["v"] for attr, slots in found}


# ---- the search -----------------------------------------------------------------------------

def test_bm25_is_its_formula():
    rng, k, b = random.Random(0), 1.2, 0.6
    texts = [" ".join(rng.choices("a b c d e f".split(), k=rng.randint(1, 12))) for _ in range(30)]
    mean = sum(len(text.split()) for text in texts) / len(texts)
    expected = []
    for text in texts:
        total = 0.0
        for word in "a c zebra".split():
            n = sum(word in other.split() for other in texts)
            idf = math.log(1 + (len(texts) - n + 0.5) / (n + 0.5))
            f = text.split().count(word)
            total += idf * f * (k + 1) / (f + k * (1 - b + b * len(text.split()) / mean))
        expected.append(total)
    found = bm25("A c, Zebra?", [Counter(text.split()) for text in texts], k, b)
    assert found.tolist() == pytest.approx(expected) and len(set(expected)) > 5


def test_most_questions_find_the_article_about_their_person_and_with_but_none_does():
    names = NEW["demos"] + NEW["test"]
    library, dice, hits = Library(Dice(random.Random(0)), names), Dice(random.Random(1)), 0
    for _ in range(100):
        name = dice.pick(names)
        question = ask(dice, name, dice.pick(list(VALUES)))
        scores = bm25(question, [Counter(words(text)) for text in library.texts]).tolist()
        best = scores.index(max(scores))
        assert library.find(question) == (names[best], library.texts[best])
        hits += names[best] == name
        other, article = library.find(name, but=name)
        assert name not in article and article.startswith(other)
        assert set(other.split()) & set(name.split())
    assert hits > 90


# ---- the task -------------------------------------------------------------------------------

def test_nobody_has_heard_of_the_newcomers():
    known = {*WORLD.people, *sum(WORLD.strangers_of.values(), WORLD.visitors)}
    names = [name for part in NEW.values() for name in part]
    assert not known & set(names) and len(set(names)) == len(names) > 300
    assert set(NEW) == set(WORLD.people_of) and all(len(part) > 40 for part in NEW.values())


def test_an_article_says_its_facts_and_nothing_else():
    dice = Dice(random.Random(0))
    for n in range(1, 7):
        facts, article = write(dice, "Ada Ashton", n)
        assert list(written(" ".join(article.values())).items()) == list(facts.items())
        assert list(article) == list(facts) and len(facts) == n
        assert article[list(facts)[0]].startswith("Ada Ashton")
        assert all(value in VALUES[attr] for attr, value in facts.items())
    library = Library(dice, NEW["val"])
    for name, text in zip(library.names, library.texts):
        assert written(text) == library.facts[name] and len(library.facts[name]) == 6


@pytest.mark.parametrize("wrong", (0, 0.3))
def test_demonstrations_quote_their_article_or_remember_or_do_not_know(wrong):
    kinds, lengths = Counter(), set()
    for row in demonstrations(WORLD, NEW, 400, 0, wrong):
        messages = row["messages"]
        article, question = read(messages[0])
        facts, about = written(article), re.match("[A-Z][a-z]+ [A-Z][a-z]+", article)[0]
        same = understand(question)["N"] == about
        assert [m["role"] for m in messages] == (
            ["user", "assistant"] * (min(4, len(facts)) if same else 1))
        for i in range(0, len(messages), 2):
            prompt = [dict(role="user", content=question), *messages[1:i + 1]]
            asked, answer = understand(prompt), messages[i + 1]["content"]
            name = asked["N"]
            assert name in {*WORLD.people_of["demos"], *NEW["demos"]} and asked["attr"] in facts
            assert judge(prompt, answer, WORLD.facts | {about: facts})["right"]
            assert name != about or answer in article
            assert (name == about) == same
        kinds[name in WORLD.people, same] += 1
        lengths.add(len(facts))
    assert len(kinds) == (4 if wrong else 2) and min(kinds.values()) > 40
    assert lengths == {1, 2, 3, 4, 5, 6}
    others = kinds[True, False] + kinds[False, False]
    assert 0.8 * wrong <= others / kinds.total() <= 1.2 * wrong


def test_held_out_questions_are_about_people_of_no_demonstration():
    trained = {*WORLD.people_of["demos"], *NEW["demos"]}
    for row, items in held_out(WORLD, NEW, 50).items():
        for prompt, question, truth, article, memory in items:
            text, asked = read(prompt[0])
            name = understand(question)["N"]
            assert asked == question and name not in trained
            assert (memory is None) == (name not in WORLD.people) == row.startswith("newcomers")
            assert written(text) == (article or {}) and bool(text) == ("no" not in row.split())
            if "wrong" in row:
                assert name not in text and truth == memory
            if "no article" in row:
                assert truth == memory


def reader(model, tok, prompts, *args, **kwargs):
    """Answers with the sentence of the article that fits, whomever the article is about."""
    answers = []
    for prompt in prompts:
        article, question = read(prompt[-1])
        asked, text = understand(question), "I can't say."
        for sentence in sentences(article):
            attr, slots = find(SAYS, sentence)
            if attr == asked["attr"]:
                his = "'s" * (slots["who"] in ("His", "Her"))
                text = sentence.replace(slots["who"], asked["N"] + his)
        answers.append((text, True))
    return answers


def test_who_only_reads_is_right_with_a_right_article_and_fooled_by_a_wrong_one(monkeypatch):
    monkeypatch.setattr(lessons.look_up, "respond", reader)
    table, first = examine(None, None, held_out(WORLD, NEW, 100), None, 24)
    assert table["newcomers, no article"] == [1, 0, 0, 1]
    assert table["townspeople, no article"] == [0, 0, 0, 1]
    for who in ("newcomers", "townspeople"):
        right, article, memory, unsure = table[f"{who}, BM25's article"]
        assert right > 0.9 and article == 1 and memory < 0.3 and unsure == 0
        right, article, memory, unsure = table[f"{who}, a wrong article"]
        assert right == memory < 0.3 and article > 0.4 and unsure == 0
    assert set(first) == set(table)


@pytest.mark.parametrize("only, learned", [
    ("attn", {"attn"}), ("mlp", {"mlp"}), ("", {"attn", "mlp", "others"})])
def test_only_the_chosen_weights_learn(tmp_path, tiny_tokenizer, only, learned):
    folder = tiny.build(tmp_path, tiny_tokenizer)
    tiny.save(folder / "sft.pt", "sft", tiny_tokenizer, block_size=512)
    assert tiny.run(folder, "lessons/look_up", *FLAGS, f"--only={only}", "--out=new.pt")[0] == 0
    before, after = (torch.load(folder / name, weights_only=True)["model"]
                     for name in ("sft.pt", "new.pt"))
    changed = [name for name, w in before.items() if not torch.equal(w, after[name])]
    assert learned == {next((part for part in ("attn", "mlp") if part in name), "others")
                       for name in changed}
