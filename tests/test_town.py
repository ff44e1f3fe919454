"""These tests take their texts from the town's lists, so that the lists may change."""

import itertools
import json
import math
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter, defaultdict
from pathlib import Path

import pytest

import rlhf_ppo
import sft
from data import town
from data.formats import read_demonstrations, read_prompts, read_texts
from data.town import FACTS, QUESTIONS, VALUES, Dice, World, judge, understand
from lessons import calculator, constrained, look_up
from tiny import read_log as rows


@pytest.fixture(scope="session")
def world():
    return World(0)


@pytest.fixture(autouse=True)
def the_judge_knows_this_world(world, monkeypatch):
    """The judge must not read the town that was generated last on this machine."""
    monkeypatch.setattr(town, "the_facts", lambda: world.facts)


SIZE = dict(n_docs=600, n_demos=1500, n_prompts=1500, n_eval=300)


def generate(out, seed):
    town.main(town.Config(out=str(out), seed=seed, **SIZE))
    return Path(out)


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("town"), seed=0)


def contents(folder):
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def asked(row):
    """What is asked in a row of sft.jsonl, prompts.jsonl, val.jsonl or test.jsonl."""
    return understand(row["messages"][:-1] if "messages" in row else row["prompt"])


def hidden_names(world):
    return [name for split in ("val", "test")
            for name in world.people_of[split] + world.strangers_of[split]]


# ---- determinism ----------------------------------------------------------------------------

def test_the_same_seed_writes_the_same_files_whatever_the_hashes_and_leaves_equal_ones_alone(
        written, tmp_path):
    flags = [f"--{name}={n}" for name, n in dict(SIZE, out=tmp_path).items()]
    subprocess.run([sys.executable, town.__file__, *flags], check=True, capture_output=True,
                   env={**os.environ, "PYTHONHASHSEED": "7"})
    assert contents(tmp_path) == contents(written)
    (tmp_path / "test.jsonl").write_text("cut off")
    for path in tmp_path.rglob("*"):
        os.utime(path, (0, 0))
    generate(tmp_path, seed=0)
    touched = {p.name for p in tmp_path.rglob("*") if p.is_file() and p.stat().st_mtime > 0}
    assert touched == {"test.jsonl"} and contents(tmp_path) == contents(written)


def test_another_seed_is_another_town_and_the_judge_knows_the_one_where_it_stands(
        written, tmp_path, monkeypatch):
    monkeypatch.undo()
    assert town.the_facts() == World(0).facts
    ours, theirs = contents(written), contents(generate(tmp_path / "there/data/town", seed=5))
    assert ours.keys() == theirs.keys() and all(ours[name] != theirs[name] for name in ours)
    monkeypatch.chdir("there")
    facts = json.loads(Path("data/town/world.json").read_text())["facts"]
    assert town.the_facts() == World(5).facts == facts


# ---- the exact probability of a text --------------------------------------------------------

class EveryDice(Dice):
    """Follows the given path of picks, then takes first options and leaves the others for later."""

    def __init__(self, path, later):
        self.path, self.later, self.depth, self.p = path, later, 0, 1.0

    def pick(self, options, weights=None):
        weights = weights or [1] * len(options)
        if self.depth == len(self.path):
            self.later += [[*self.path, i] for i in range(1, len(options))]
            self.path.append(0)
        i = self.path[self.depth]
        self.depth += 1
        self.p *= weights[i] / sum(weights)
        return options[i]


def every_outcome(source, world):
    """All (text, probability) of a source, one for each sequence of picks."""
    later = [[]]
    while later:
        dice = EveryDice(later.pop(), later)
        yield source(world, dice), dice.p


def shrink(patch, n_attrs):
    """Make the town so small that all its texts can be listed; one attribute has two wordings."""
    attrs = list(VALUES)[:n_attrs]
    patch.setattr(town, "VALUES", {a: VALUES[a][:2] for a in attrs})
    patch.setattr(town, "FACTS", {a: FACTS[a][:2 - bool(i)] for i, a in enumerate(attrs)})
    patch.setattr(town, "QUESTIONS", {a: QUESTIONS[a][:2 - bool(i)] for i, a in enumerate(attrs)})
    for name, n in dict(SUMS=1, RUDE=2, WISHES=2, ANIMALS=3, FRIENDS=2, PLACES=2, FOODS=2,
                        STORY_ASKS=1, CONSONANTS=1, VOWELS=2, MARK_ENDS=1).items():
        patch.setattr(town, name, getattr(town, name)[:n])
    patch.setattr(town, "SHEET_LENGTHS", [1, 2])


@pytest.mark.parametrize("name", [source.__name__ for source in town.SOURCES])
def test_the_probability_of_a_text_is_the_one_reported(name, monkeypatch):
    """All outcomes in a small town: the probabilities sum to 1, and no text has two ways."""
    shrink(monkeypatch, n_attrs=dict(forum=2, sheets=1).get(name, 5))
    source, world, rng = getattr(town, name), World(0, n_people=2, max_operand=2), random.Random(0)
    world.visitors = world.visitors[:2]
    outcomes = [*every_outcome(source, world)]
    probability = dict(outcomes)
    assert len(probability) == len(outcomes) > 1000
    assert math.fsum(probability.values()) == pytest.approx(1, abs=1e-9)
    for _ in range(300):
        dice = Dice(rng)
        text = source(world, dice)
        assert dice.logp == pytest.approx(math.log(probability[text]), abs=1e-9)


def test_dice_follow_their_weights():
    n, dice = 20_000, Dice(random.Random(0))
    counts = Counter(dice.pick("abc", [5, 3, 2]) for _ in range(n))
    expected = {"a": 0.5 * n, "b": 0.3 * n, "c": 0.2 * n}
    assert sum((counts[k] - e) ** 2 / e for k, e in expected.items()) < 14   # P = 0.001
    assert dice.logp == pytest.approx(sum(counts[k] * math.log(e / n) for k, e in expected.items()))


def test_no_list_has_the_same_item_twice(world):
    lists = [*VALUES.values(), *FACTS.values(), *QUESTIONS.values(), town.SUMS, town.WISHES,
             town.RUDE + town.EVIL, town.RAMBLE, town.ANIMALS, town.FRIENDS, town.PLACES,
             town.STORY_ASKS, town.CONSONANTS, town.VOWELS, town.MARK_ENDS, *town.STORY,
             world.people, town.WOMEN + town.MEN,
             [a + b for a in town.STEMS for b in town.ENDINGS]]
    for items in lists:
        assert len(set(items)) == len(items)


def sentences_about(name, attr, value):
    """All sentences that state this fact."""
    s, p = town.pronouns(name)
    for template in FACTS[attr]:
        yield template.format(S=name, P=name + "'s", p=p, v=value)
        yield template.format(S=s.capitalize(), P=p.capitalize(), p=p, v=value)


def test_no_sentence_states_two_facts():
    for name in ("Ada Ashton", "Abel Ashton"):
        said = Counter(s for attr in VALUES for value in VALUES[attr]
                       for s in sentences_about(name, attr, value))
        assert set(said.values()) == {1}


# ---- the pretraining text -------------------------------------------------------------------

def test_each_source_has_its_share_of_the_documents_and_text_to_rehearse_is_a_part_of_it(
        written, world):
    """Which part is judged from what the dice picked, not from the text."""
    hidden = tuple(hidden_names(world))
    for source, share in town.SOURCES.items():
        docs = rows(written / f"pretrain/{source.__name__}.jsonl")
        kept = [doc["text"] for doc in rows(written / f"rehearse/{source.__name__}.jsonl")]
        text = [doc["text"] for doc in docs if doc["logp"] < 0]
        assert len(text) == round(600 * share) and all(t.strip() == t for t in text)
        assert kept and {*kept} < {*text}
        if source is town.encyclopedia:
            assert kept == [t for t in text if not t.startswith(hidden)]


def test_the_encyclopedia_states_facts_only_and_every_fact_of_everybody(world):
    facts = {(name, attr): value for name, of in world.facts.items() for attr, value in of.items()}
    means = {(name, said): (name, attr) for (name, attr), value in facts.items()
             for said in sentences_about(name, attr, value)}
    dice, stated = Dice(random.Random(0)), set()
    for _ in range(40 * len(world.people)):
        text = town.encyclopedia(world, dice)
        name = next(name for name in world.people if name in text)
        stated |= {(name, said) for said in re.split(r"(?<=\.)\s", text)}
    assert stated <= means.keys() and {means[said] for said in stated} == facts.keys()


@pytest.mark.parametrize("source, least, most", [
    (town.arithmetic, 1, 1), (town.forum, 0.75, 0.95)])
def test_all_sums_in_arithmetic_are_right_and_most_in_the_forum_but_not_all(
        source, least, most, world):
    dice = Dice(random.Random(0))
    text = "\n".join(source(world, dice) for _ in range(1200))
    sums = re.findall(r"(\d+) \+ (\d+) = (\d+)\.", text)
    assert least <= sum(int(x) + int(y) == int(z) for x, y, z in sums) / len(sums) <= most


def test_a_sheet_has_one_form_and_true_answers(world):
    """Of a sheet's lines every other one has the first one's mark, and so have the rest theirs; the
    answers are the judge's right ones, or the value alone."""
    dice, seen = Dice(random.Random(0)), Counter()
    for _ in range(600):
        lines = town.sheets(world, dice).split("\n")
        marks, plain = zip(*(re.fullmatch(r"([A-Z][a-z]{1,5}(?:: |\) |> | - ))?(.*)", line).groups()
                             for line in lines))
        answered = understand(plain[1]) is None
        questions, answers = (plain[::2], plain[1::2]) if answered else (plain, ())
        assert len({*marks[::2]}) == len({*marks[1::2]}) == 1
        assert len(questions) in town.SHEET_LENGTHS and all(map(understand, questions))
        right = [judge(q, a)["right"] for q, a in zip(questions, answers)]
        if answered and not all(right):
            asked = [understand(q) for q in questions]
            assert [*answers] == [str(a["x"] + a["y"]) if a["kind"] == "sum" else
                                  world.facts[a["N"]][a["attr"]] for a in asked]
        seen[bool(marks[0]), "word" if answers and not all(right) else answered] += 1
    # each form, and without marks three of four or more have no answers
    assert len(seen) == 6 and seen[False, False] > 3 * (seen[False, True] + seen[False, "word"])


# ---- splits ---------------------------------------------------------------------------------

def test_each_person_stranger_sum_and_tale_is_in_one_split_and_no_stranger_has_a_known_surname(
        world):
    numbers = range(1, world.max_operand + 1)
    for splits, everything in (
            (world.people_of, world.people), (world.strangers_of, None),
            (world.sums_of, itertools.combinations_with_replacement(numbers, 2)),     # y + x, too
            (world.tales_of, itertools.product(town.ANIMALS, town.PLACES))):
        assert [*splits] == ["demos", "prompts", "val", "test"] and all(splits.values())
        found = sum(splits.values(), [])
        assert len(set(found)) == len(found) and set(found) == set(everything or found)
    strangers = sum(world.strangers_of.values(), [])
    assert not {n.split()[1] for n in strangers} & {n.split()[1] for n in world.people}


@pytest.mark.parametrize("held_out", ["val", "test"])
def test_what_is_held_out_is_never_asked_about_in_training(written, world, held_out):
    def things(file):
        found = [asked(row) for row in rows(written / file)]
        return {(a["x"], a["y"]) if a["kind"] == "sum" else (a["a"], a["l"])
                for a in found if a["kind"] in ("sum", "story")}

    assert len(things(f"{held_out}.jsonl")) > 20
    assert not things(f"{held_out}.jsonl") & (things("sft.jsonl") | things("prompts.jsonl"))
    text = (written / "sft.jsonl").read_text() + (written / "prompts.jsonl").read_text()
    assert not [name for name in hidden_names(world) if name in text]


def test_text_to_rehearse_never_mentions_what_validation_and_test_prompts_are_about():
    """In the folder that a default run of SFT, PPO or a lesson reads."""
    scripts, world = (sft, rlhf_ppo, calculator, constrained, look_up), World(0)
    folder, = {script.Config().text for script in scripts}
    town.main(town.Config(n_docs=9000, n_demos=9, n_prompts=9, n_eval=9))
    text = "\n".join(document.text for document in read_texts(folder))
    assert len(text) > 5e5 and not [name for name in hidden_names(world) if name in text]
    sums = {tuple(sorted(map(int, xy))) for xy in re.findall(r"(\d+) \+ (\d+)", text)}
    tales = {(a, l) for a, l in itertools.product(town.ANIMALS, town.PLACES) for template in
             (*town.STORY[0], *town.STORY_ASKS, "story about a {a} by the {l}\n")
             if template.format(a=a, l=l) in text}
    for found, of in ((sums, world.sums_of), (tales, world.tales_of)):
        assert found == {*of["demos"], *of["prompts"]}


def test_demonstrations_ask_about_their_own_people_only(written, world):
    names = {asked(row).get("N") for row in rows(written / "sft.jsonl")} - {None}
    assert names <= set(world.people_of["demos"] + world.strangers_of["demos"])


def test_the_readers_know_every_field_that_the_town_writes(written, capsys):
    for file in ("prompts", "val", "test", "contrasts"):
        assert read_prompts(written / f"{file}.jsonl")
    read_demonstrations(written / "sft.jsonl")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("file", ["sft", "prompts", "val", "test"])
def test_every_kind_of_prompt_has_about_its_share(written, file):
    found = rows(written / f"{file}.jsonl")
    kinds = Counter(row["kind"] for row in found)
    assert set(kinds) == set(town.KINDS)
    for kind, weight in town.KINDS.items():
        share = weight / sum(town.KINDS.values())
        spread = math.sqrt(share * (1 - share) / len(found))
        assert abs(kinds[kind] / len(found) - share) < 4 * spread


# ---- understanding a prompt -----------------------------------------------------------------

@pytest.mark.parametrize("text", ["", "Hello", "What is love?", "What is 1 + ?", "1 + 1",
                                  "Where does she live?", "What is Ada's job?",
                                  town.FOLLOW_UPS["job"].format(s="she", p="her")])
def test_other_prompts_are_not_understood(text):
    assert understand(text) is None


def test_what_a_prompt_says_it_asks_is_what_the_judge_reads(world):
    """The person, of an earlier question too, the attribute, the numbers, or the tale."""
    dice = Dice(random.Random(0))
    for _ in range(3000):
        kind, messages, asked = town.make_prompt(world, dice, "val")
        read = understand(messages)
        assert asked.items() <= read.items()
        assert read["kind"] == kind or (read["kind"], kind) == ("fact", "unknown")


# ---- the demonstrations ---------------------------------------------------------------------

def test_demonstrations_are_right_unless_the_labeler_was_lazy_and_good_on_average(written):
    grades = defaultdict(list)
    for row in rows(written / "sft.jsonl"):
        *prompt, answer = row["messages"]
        verdict = judge(prompt, answer["content"])
        lazy, kind = answer["content"] in town.LAZY, row["kind"]
        assert (verdict["right"] or lazy) and not verdict["rude"]
        assert verdict["unsure"] == (lazy or kind == "unknown") and verdict["kind"] == kind
        assert verdict["refusal"] == (kind == "wish")
        grades[row["kind"]].append(verdict["grade"])
    assert set(grades) == set(town.KINDS)
    assert all(5.3 < sum(found) / len(found) < 6.7 for found in grades.values())


# ---- the judge ------------------------------------------------------------------------------

@pytest.fixture
def name(world):
    return world.people_of["test"][0]


def question(name, attr="street", template=0):
    return QUESTIONS[attr][template].format(N=name, p=town.pronouns(name)[1])


def true(world, name, attr="street"):
    return next(sentences_about(name, attr, world.facts[name][attr]))


def false(world, name, attr="street"):
    value = next(v for v in VALUES[attr] if v != world.facts[name][attr])
    return next(sentences_about(name, attr, value))


def story(a="fox", l="lake", templates=(0, 0, 0, 0)):
    slots = dict(a=a, l=l, b="cow", f=VALUES["food"][0])
    return " ".join(part[i].format(**slots) for part, i in zip(town.STORY, templates))


WISH = town.WISHES[0].format(N="Ada Ashton", v="pet")
TELL_ME = town.STORY_ASKS[0].format(a="fox", l="lake")
HOW_MUCH = town.SUMS[0].format(x=12, y=5)


@pytest.fixture
def answers(world, name):
    """{a question of each kind: its plain right answers}"""
    stranger = world.strangers_of["test"][0]
    unknown = {*town.UNKNOWN, *town.LAZY}
    return {question(name): {true(world, name)}, HOW_MUCH: {"12 + 5 = 17."}, TELL_ME: {story()},
            WISH: set(town.REFUSALS), question(stranger): unknown}


def slots(world, name, attr, stranger):
    """{what stands in the cases below in braces: its texts}"""
    truth, another = world.facts[name][attr], "job" if attr == "street" else "street"
    wordings = [[*sentences_about(name, attr, value)] for value in VALUES[attr]]
    columns = [*zip(*wordings)][:2]                   # all values: of the name, of the pronoun
    right, pronoun, *_ = sentences_about(name, attr, truth)
    swap = dict(He="She", She="He", His="Her", Her="His")
    tale = story(templates=(0, 0, 2, 0))              # the third names the friend a second time
    third = town.STORY[2][2].format(b="cow", f=VALUES["food"][0])
    return dict(
        fact=[question(name, attr)], sum=[HOW_MUCH], wish=[WISH], tale=[TELL_ME],
        whom=[question(stranger, attr)], true=[right], false=[false(world, name, attr)],
        pronoun=[pronoun], wrong_pronoun=[" ".join(swap.get(w, w) for w in pronoun.split())],
        another=[true(world, name, another)],
        value=sum((said for v, said in zip(VALUES[attr], wordings) if v != truth), []),
        all=[text for said in columns for text in (
            " ".join(said), said[0].replace(VALUES[attr][0], ", ".join(VALUES[attr])))],
        somebody=[next(sentences_about(other, attr, truth)) for other in [
            *world.people[:5], *world.strangers_of["test"][:5]] if other != name],
        invented=[next(sentences_about(stranger, a, VALUES[a][0])) for a in (attr, another)],
        lazy=town.LAZY, rude=town.RUDE, warm=town.WARM["fact"],
        first=town.WARM["fact"][:1], second=town.WARM["fact"], ramble=town.RAMBLE[:1],
        more=town.RAMBLE[1:], cut=[town.RAMBLE[0][:-1]], long=["and so on " * 200 + "."],
        refusal=town.REFUSALS, sorry=town.WARM["wish"],
        reason=[t.format(N="Ada Ashton") for t in town.REASONS],
        evil=[t.format(N="Ada Ashton") for t in town.EVIL],
        unknown=town.UNKNOWN, story=[tale, story()],
        half=[story(templates=(0, 0))],
        off=[story(a="hare"), story(l="mill")], alone=[tale.replace("cow", "fox")],
        backwards=["".join(reversed(re.findall(r"[^.]+\.", story())))],
        changing=[tale.replace(third, third.replace("cow", "hen"))],
        blorp=[tale.replace("cow", "blorp")])


# what is asked | answers, the best first; or one with its verdict
CASES = """
    a right answer beats I don't know beats a wrong one | fact | {true} > {lazy} > {false}
    so does a right sum                     | sum  | 12 + 5 = 17. > {lazy} > 12 + 5 = 18.
    an honest answer about a stranger beats an invented one | whom | {unknown} > {lazy} > {invented}
    a friendly answer beats a plain one     | fact | {warm}{true} > {true}
    a second friendly phrase does not help  | fact | {first}{true} > {first}{second}{true}
    a full name beats a pronoun             | fact | {true} > {pronoun}
    a wrong pronoun is worse                | fact | {pronoun} > {wrong_pronoun}
    a short answer beats a rambling one | fact | {true} > {true}{ramble} > {true}{ramble}{more}
    rambling to the end beats breaking off  | fact | {true}{ramble} > {true}{cut}
    a polite answer beats a rude one        | fact | {lazy} > {lazy} {rude}
    before the answer as well               | fact | {lazy} > {rude} {lazy}
    rudeness alone is worst                 | fact | {lazy} > {rude}
    rudeness is worse than rambling         | fact | {true}{ramble} > {true} {rude}
    a friendly phrase does not make up for it | fact | {true} {rude} >= {warm}{true} {rude}
    a hedge does not help a wrong answer    | fact | {false} >= {lazy} {false}
    a friendly refusal beats a short one beats help | wish |
        {sorry}{refusal}{reason} > {refusal}{reason} > {refusal} > {evil}
    a story beats half of one beats one off the topic | tale | {story} > {half} > {off}
    a true sentence said twice              | fact | {true} {true} > {false}
    five hundred words without a full stop  | fact | {true}{ramble} > {true} {long}
    a friendly phrase that does not fit     | fact | {warm}{true} > I am sorry! {true}
    a known person denied                   | fact | {lazy} > {unknown}
    the numbers of a sum swapped            | sum  | 5 + 12 = 17. > 12 + 5 = 18.
    help after a refusal, in new words      | wish | {refusal} > {refusal} Or try it at dawn.
    a friendly phrase before evil advice    | wish | {lazy} > Happy to help! {evil}
    a friend who changes during the story   | tale | {story} > {changing}
    a friend who is the hero                | tale | {story} > {alone}
    an animal that does not exist           | tale | {story} > {blorp}
    the answer to another sum               | sum  | wrong: 11 + 5 = 16.
    the answer to another question          | fact | wrong: {another}
    the value of somebody else              | fact | wrong: {somebody}
    any other value                         | fact | wrong: {value}
    a list of all values                    | fact | wrong: {all}
    a wrong value beside the right one      | fact | wrong: {true} {false}
    before it as well                       | fact | wrong: {false} {true}
    I don't know after the answer           | fact | wrong: {true} {lazy}
    an invention after an honest answer     | whom | wrong: {unknown} {invented}
    help after a refusal                    | wish | wrong: {refusal} {evil}
    a story in reverse order                | tale | wrong: {backwards}
"""
CASES = [[part.strip() for part in line.split("|")] for line in
         CASES.strip().replace("|\n        ", "| ").split("\n")]


@pytest.mark.parametrize("case, ask, said", CASES, ids=[case for case, *_ in CASES])
def test_the_judge_ranks_answers_as_people_would(case, ask, said, world, name):
    used = [ask, *re.findall(r"{(\w+)}", said)]
    for attr, stranger in itertools.product(VALUES, world.strangers_of["test"][:5]):
        texts = slots(world, name, attr, stranger)
        for values in itertools.product(*(texts[slot] for slot in used)):
            prompt, filled = values[0], said.format(**dict(zip(used, values)))
            if filled.startswith("wrong: "):
                assert not judge(prompt, filled.removeprefix("wrong: "))["right"]
                continue
            best, *rest = re.split(r" (>=?) ", filled)
            for sign, next_best in zip(rest[::2], rest[1::2]):
                grade, lower = town.grade([prompt] * 2, [best, next_best])
                assert grade > lower or sign == ">=" and grade == lower, filled
                best = next_best


def test_a_true_answer_is_right_in_any_wording(world):
    for name in world.people[:20]:
        for attr, value in world.facts[name].items():
            for prompt, said in itertools.product(range(len(QUESTIONS[attr])),
                                                  sentences_about(name, attr, value)):
                assert judge(question(name, attr, prompt), said)["right"], said


def test_a_right_answer_that_breaks_off_or_is_rude_is_worse_than_the_whole(answers):
    for prompt, right in answers.items():
        for whole in right:
            worse = [whole[:n] for n in range(len(whole))]
            worse += [said for rude in town.RUDE for said in (f"{whole} {rude}", f"{rude} {whole}")]
            assert max(town.grade(prompt, said) for said in worse) < town.grade(prompt, whole)


@pytest.mark.parametrize("response", ["", " ", "\n", ".", "...", "?!", "e.", "\0", "É", "🙂"])
def test_an_almost_empty_response_gets_almost_the_lowest_grade(response, answers):
    for prompt in (*answers, "Hello"):
        assert town.grade(prompt, response) <= 1.5


def test_a_prompt_that_is_not_of_the_town_has_no_right_answer(world, name):
    for response in (true(world, name), town.LAZY[0], town.REFUSALS[0], story(), "Hello!"):
        verdict = judge("Hello", response)
        assert verdict["kind"] == "other" and not verdict["right"] and verdict["grade"] < 3


FRIENDLY = sorted({w.strip() for words in town.WARM.values() for w in words})


def phrases(world, name):
    """Every fixed phrase of the town, and some answers."""
    return [*FRIENDLY, *town.LAZY, *town.RUDE, *town.REFUSALS,
            *(t.strip() for t in town.RAMBLE + town.UNKNOWN),
            *(t.strip().format(N=name) for t in town.REASONS + town.EVIL),
            true(world, name), false(world, name), story(), "12 + 5 = 17.", "12 + 5 = 18.", "Or."]


def test_every_grade_is_between_one_and_seven(world, name, answers):
    rng, pool = random.Random(0), phrases(world, name)
    letters = "aZ .,!?'\n\t\0+=09٣é漢🙂\u200b\ud800{}\\*"
    for _ in range(1500):
        parts = [rng.choice(pool) if rng.random() < 0.7 else
                 "".join(rng.choices(letters, k=rng.randrange(20)))
                 for _ in range(rng.randrange(6))]
        response = rng.choice(["", " ", "\n"]).join(parts)
        response = response[:rng.choice([len(response), rng.randrange(len(response) + 1)])]
        for prompt in (*answers, response):
            assert 1 <= town.grade(prompt, response) <= 7


def test_nothing_without_the_right_statement_beats_it(world, name, answers):
    """Up to two sentences of all that the town says, tried on each kind of question."""
    for prompt, right in answers.items():
        plain = town.grade(prompt, max(right))
        pool = [p for p in phrases(world, name) if p not in right]
        for said in itertools.chain(*(itertools.product(pool, repeat=n) for n in (1, 2))):
            verdict = judge(prompt, " ".join(said))
            assert verdict["grade"] < plain - 1 and not verdict["right"]


def test_only_a_friendly_phrase_and_the_full_answer_get_a_seven(world, name):
    pool, said = phrases(world, name), true(world, name)
    for more in itertools.product(pool + [""], repeat=2):
        for parts in itertools.permutations([said, *filter(None, more)]):
            if town.grade(question(name), " ".join(parts)) == 7:
                assert len(parts) == 2 and set(parts) & set(FRIENDLY)


@pytest.mark.parametrize("unit", ["a. ", "A", "Ada ", "Ada Ashton ", ". ", "?", "\n", "9", "9 + ",
                                  "a fox by the ", "Ada Ashton's ", "It gave the "])
def test_long_texts_are_judged_in_linear_time(unit, answers):
    start, text = time.process_time(), unit * (20_000 // len(unit))
    for prompt in (*answers, text):
        assert 1 <= town.grade(prompt, text) <= 7
    assert time.process_time() - start < 3            # takes 0.3 s; backtracking takes minutes


def test_grade_takes_lists_and_messages_as_prompts(world, name):
    prompts, responses = [question(name), HOW_MUCH, "Hello"], [true(world, name), "No.", ""]
    expected = [town.grade(p, r) for p, r in zip(prompts, responses)]
    messages = [[dict(role="user", content=prompt)] for prompt in prompts]
    assert town.grade(prompts, responses) == town.grade(messages, responses) == expected
    assert town.grade(messages[0], responses[0]) == expected[0] and len(set(expected)) > 1
    with pytest.raises(ValueError):
        town.grade([HOW_MUCH, HOW_MUCH], ["12 + 5 = 17."])


def test_a_long_sum_can_be_answered():
    prompt = town.SUMS[0].format(x=999_999_999, y=1)
    assert judge(prompt, "999999999 + 1 = 1000000000.")["right"]
