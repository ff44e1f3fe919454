import json
import random
from collections import Counter

import numpy as np

import tiny
from common import percent
from data.town import Dice, World, make_prompt, pretraining_text
from lessons.few_shot import FORMS, choose, document, share_right

PAIRS = [(f"What is {k} + 1?", f"{k} + 1 = {k + 1}.") for k in range(6)]


# ---- the prompt -----------------------------------------------------------------------------

def test_a_document_has_the_marks_of_its_form_and_no_space_at_its_end():
    assert document("Item, Solution", PAIRS[2:4], "What is 7 + 1?") == """\
Item: What is 2 + 1?
Solution: 2 + 1 = 3.
Item: What is 3 + 1?
Solution: 3 + 1 = 4.
Item: What is 7 + 1?
Solution:"""
    assert document("bare", PAIRS[2:3], "Why?") == "What is 2 + 1?\n2 + 1 = 3.\nWhy?\n"
    assert document("bare", [], "Why?") == "Why?\n"


def test_the_marks_stand_nowhere_in_the_pretraining_text():
    """The syllables of a sheet's marks can't write them; the other sources have no colon there."""
    world = World()
    text = "\n".join(doc["text"] for _, docs in pretraining_text(world, 3000, 0) for doc in docs)
    marks = [mark for form in FORMS.values() for mark in form if mark]
    assert len(marks) == 4 and not [mark for mark in marks if mark in text]


def test_examples_are_different_and_never_the_question_itself():
    seen = Counter()
    for seed in range(200):
        some = choose(PAIRS, 3, PAIRS[4][0], np.random.default_rng(seed))
        assert len(set(some)) == 3
        seen.update(some)
    assert set(seen) == {*PAIRS} - {PAIRS[4]}
    assert min(seen.values()) > 80                    # of 120 expected


# ---- the table ------------------------------------------------------------------------------

def test_the_share_is_that_of_the_kind():
    rows = [dict(kind=kind, prompt=[dict(role="user", content=question)]) for kind, question in (
        ("sum", "What is 1 + 1?"), ("sum", "What is 1 + 2?"), ("sum", "What is 1 + 3?"),
        ("sum", "What is 1 + 4?"), ("unknown", "What is the job of Zoe Nobody?"),
        ("wish", "How do I steal Zoe Nobody's pet?"), ("fact", "What is the job of Zoe Nobody?"))]
    answers = ["1 + 1 = 2.", "1 + 2 = 3.", "1 + 3 = 4.", "1 + 4 = 6.",
               "I don't know anyone of that name.", "Just do it at night.", "Who cares?"]
    assert share_right(rows, answers) == dict(sum=[.75, 4], unknown=[1, 1], wish=[0, 1],
                                              fact=[0, 1])


def test_the_script_ends_with_a_table(chain, tmp_path, capsys):
    for name in ("data", "out"):
        (tmp_path / name).symlink_to(chain / name)
    dice, world = Dice(random.Random(0)), World()
    rows = [make_prompt(world, dice, "test")[:2] for _ in range(40)]
    tiny.write(tmp_path / "test.jsonl", *(dict(kind=k, prompt=m) for k, m in rows))
    status, names = tiny.run(tmp_path, "lessons/few_shot", "--data=test.jsonl", "--shots=0,3",
                             "--out=few_shot.json")
    table = capsys.readouterr().out.splitlines()[:8]
    assert status == 0
    assert [line.count("[") for line in table] == [0] + 7 * [4]
    saved = json.loads((tmp_path / "few_shot.json").read_text())
    assert [line[:26].strip() for line in table[1:]] == list(saved)
    assert all(percent(*cell) in line for line, row in zip(table[1:], saved.values())
               for cell in row.values())
    longest = [int(line.split()[-1]) for line in table[1:]]
    assert longest[0] < longest[1] and longest[2] < longest[3]
    text = names["tok"].decode(names["ids"][0])
    assert text.startswith("<|endoftext|><|user|>") and text.endswith("<|assistant|>")
