"""Lesson: retrieval. The program finds an article and puts it in front of the question.

reads   out/sft.pt, data/town/sft.jsonl and data/town/rehearse (text)
writes  out/look_up.pt, and a table: what the answers say, with and without an article

    score(q, d) = sum over words w of q:  idf(w) f (k + 1) / (f + k (1 - b + b |d| / mean |d|))
    f: how often w stands in d    idf(w) = log(1 + (N - n + 0.5) / (n + 0.5)), n documents have w

That is BM25 (Robertson et al. 1994; this idf is never negative). Newcomers moved to town after
pretraining, so no weight knows them. Townspeople have changed, so their articles contradict what
the model remembers. The answer shall quote the article; if that is about somebody else, the model
shall remember, or say that it does not know.

Copying has to be learned first: in the town's text no document says a fact twice. So a dialogue
asks several questions about one article, and short articles stand among the long ones. Only
attention learns: it moves words from the article to the answer. The facts stay where most of them
are, in the MLPs (Geva et al. 2021); with --only= all weights learn, and most facts are lost. (It
learns to read, but is still fooled by most wrong articles: docs/lessons.md.)

laptop   python -m lessons.look_up
"""

import math
import random
import re
from collections import Counter
from dataclasses import dataclass
from itertools import product

import numpy as np

from answer import respond
from checkpoint import Run, load
from common import Common, Runtime, fail, parse_config, percent
from data.formats import read_demonstrations
from data.town import (FOLLOW_UPS, UNKNOWN, VALUES, Dice, World, ask, judge, pronouns, state,
                       understand)
from lessons.held_out import check_room, load_world
from lessons.training import Rows, learn
from optim import adamw, get_lr
from sft import encode_dialogues


# ---- config ---------------------------------------------------------------------------------

@dataclass
class Config(Common):
    data: str = "data/town/sft.jsonl"    # demonstrations to rehearse
    text: str = "data/town/rehearse"     # pretraining text to rehearse
    ptx: float = 0.25                    # the share of rows that are pretraining text
    init: str = "out/sft.pt"             # the checkpoint to start from
    out: str = "out/look_up.pt"          # its log and unfinished state stand beside it
    n_demos: int = 6000                  # demonstrations with articles
    wrong: float = 0.3                   # the share of these whose article is about somebody else
    town: int = 0                        # the seed of data/town.py
    n_eval: int = 200                    # held-out questions of each row of the table
    only: str = "attn"                   # the weights that learn: attn | mlp; "": all
    steps: int = 1600                    # optimizer steps
    batch_size: int = 4                  # rows of block_size tokens per step
    lr: float = 2e-3                     # the peak: a linear warmup, then linear to 0
    warmup: int = 30                     # steps
    weight_decay: float = 0.1
    max_new_tokens: int = 24             # of one answer
    eval_every: int = 100                # steps between looks at two rows of the table


# ---- the idea -------------------------------------------------------------------------------

def words(text):
    return re.findall(r"\w+", text.lower())


def bm25(query, documents, k=1.5, b=0.75):
    """The score of each of the documents [{word: how often}], (N,)."""
    lengths = np.array([sum(document.values()) for document in documents])
    scores = np.zeros(len(documents))
    for word in words(query):
        f = np.array([document[word] for document in documents])
        n = (f > 0).sum()
        idf = math.log(1 + (len(documents) - n + 0.5) / (n + 0.5))
        scores += idf * f * (k + 1) / (f + k * (1 - b + b * lengths / lengths.mean()))
    return scores


class Library:
    """An article about each of the people; facts is what it says, {name: {attribute: value}}."""

    def __init__(self, dice, names):
        self.names, self.facts, self.texts = names, {}, []
        for name in names:
            self.facts[name], article = write(dice, name, len(VALUES))
            self.texts.append(" ".join(article.values()))
        self.counts = [Counter(words(text)) for text in self.texts]

    def find(self, question, but=""):
        """The program's search: (whose article fits best, its text). The article about `but` is
        left out, so that a wrong one is found."""
        best = (bm25(question, self.counts) * [name != but for name in self.names]).argmax()
        return self.names[best], self.texts[best]


# ---- the task: people who moved to town after pretraining -----------------------------------

def newcomers(world, seed):
    """{split: names} of people of whom no text of the town has ever spoken."""
    strangers = sum(world.strangers_of.values(), world.visitors)
    seen = {*world.people, *strangers}
    return {split: [name for name in names if name not in seen]
            for split, names in World(seed, n_people=1500).people_of.items()}


def write(dice, name, n_facts):
    """New facts about a person, {attribute: value} in random order, and an article that says them,
    {attribute: sentence}."""
    facts = {attr: dice.pick(VALUES[attr]) for attr in dice.subset(VALUES, n_facts)}
    return facts, {attr: state(dice, name, attr, value, i == 0 or dice.pick([True, False]))
                   for i, (attr, value) in enumerate(facts.items())}


def demonstrations(world, new, n, seed, wrong):
    """n dialogues of up to four questions about a person, with an article in front. If it is about
    the same person, the answers quote it. A share `wrong` has an article about somebody else,
    often a namesake, and one question: the answer is what the town's text said, or "I don't know".
    Every article has new facts, so no weight can learn them."""
    dice, rows = Dice(random.Random(f"{seed} look up")), []
    groups = [new["demos"], world.people_of["demos"]]
    for _ in range(n):
        about = name = dice.pick(dice.pick(groups))
        _, article = write(dice, about, dice.pick(range(1, len(VALUES) + 1)))
        attrs = dice.subset(article, min(len(article), 4))
        if dice.pick([True, False], [wrong, 1 - wrong]):
            others = [other for other in dice.pick(groups) if other != about]
            alike = [other for other in others if set(other.split()) & set(about.split())]
            name, attrs = dice.pick(dice.pick([alike, others]) or others), attrs[:1]
        (s, p), messages = pronouns(name), []
        for attr in attrs:
            question = FOLLOW_UPS[attr].format(s=s, p=p)
            if not messages:
                question = f"{' '.join(article.values())}\n{ask(dice, name, attr)}"
            if name == about:
                answer = article[attr]
            elif name in world.facts:
                answer = state(dice, name, attr, world.facts[name][attr], True)
            else:
                answer = dice.pick(UNKNOWN).format(N=name)
            messages += [dict(role="user", content=question),
                         dict(role="assistant", content=answer)]
        rows.append(dict(messages=messages))
    return rows


def held_out(world, new, n):
    """{row of the table: n times (prompt, question, and three {attribute: value} or None: the truth
    as far as it can be known, what the article says, what the town's text said)}"""
    dice, rows = Dice(random.Random("held out")), {}
    people = {"newcomers": new["test"], "townspeople": world.people_of["test"]}
    library = Library(dice, sum([*new.values(), *world.people_of.values()], []))
    for who, how in product(people, ("no article", "BM25's article", "a wrong article")):
        items = rows[f"{who}, {how}"] = []
        for _ in range(n):
            name = dice.pick(people[who])
            question = ask(dice, name, dice.pick(list(VALUES)))
            memory, article, written = world.facts.get(name), "", None
            if how != "no article":
                found, article = library.find(question, but=name if "wrong" in how else "")
                written = library.facts[found]
            truth = library.facts[name] if "BM25" in how else memory
            prompt = [dict(role="user", content=f"{article}\n{question}".strip())]
            items.append((prompt, question, truth, written, memory))
    return rows


def says(question, text, facts):
    """Whether an answer gives this fact about the person; if facts is None, whether it says that
    it does not know."""
    name = understand(question)["N"]
    return judge(question, text, {name: facts} if facts else {})["right"]


def examine(model, tok, asked, rt, max_new_tokens):
    """{row: the shares of answers that are right, that say what the article says, what the town's
    text said, that they do not know}, and the first question of each row with its answer."""
    table, first = {}, {}
    for row, items in asked.items():
        texts = [text for text, _ in respond(model, tok, [item[0] for item in items], rt,
                                             max_new_tokens, temperature=0)]
        table[row] = np.mean([
            [says(question, text, truth), bool(written) and says(question, text, written),
             bool(memory) and says(question, text, memory), says(question, text, None)]
            for text, (_, question, truth, written, memory) in zip(texts, items)], 0).tolist()
        first[row] = f"{items[0][0][0]['content']} -> {texts[0]}".replace("\n", " / ")
    return table, first


if __name__ == "__main__":
    # ---- setup ------------------------------------------------------------------------------

    config = parse_config(Config, __doc__)
    if config.only not in ("attn", "mlp", ""):
        fail(f"--only={config.only} is not attn, mlp or empty")
    rt = Runtime(config)
    run = Run(config, rt, inputs=[config.data, config.text, config.init])
    model, tok, history = load(config.init, rt, "sft")

    # ---- data -------------------------------------------------------------------------------

    T, world = model.config.block_size, load_world(config.town)
    new = newcomers(world, config.town + 1)
    asked = held_out(world, new, config.n_eval)
    check_room(tok, [prompt for items in asked.values() for prompt, *_ in items], T,
               config.max_new_tokens, f"--init={config.init}")
    watched = dict(list(asked.items())[1:3])          # newcomers with an article
    demos = demonstrations(world, new, config.n_demos, config.seed, config.wrong)
    train, *_ = encode_dialogues(demos + read_demonstrations(config.data), tok, T)
    rows = Rows(train, tok, T, run, config)
    print(f"{len(train):,} dialogues to learn from, {sum(map(len, rows.plan)) / len(train):.1f} "
          f"epochs")

    # ---- model and optimizer ----------------------------------------------------------------

    for name, p in model.named_parameters():
        p.requires_grad_(config.only in name)         # "" is in every name
    optimizer = adamw(model, config.weight_decay)
    tables = {}                                       # {model: what examine() found}
    run.track(model=model, optimizer=optimizer, tables=tables)
    if not tables:
        tables["before"], _ = examine(model, tok, asked, rt, config.max_new_tokens)

    # ---- training loop ----------------------------------------------------------------------

    for step in run.steps():
        model.train()
        loss, _ = learn(run, model, optimizer, *rows[step], get_lr(step, config))
        if run.due(config.eval_every):
            found, _ = examine(model, tok, watched, rt, config.max_new_tokens)
            run.log(step + 1, dict(loss=loss) | {row: found[row][0] for row in watched})

    # ---- save -------------------------------------------------------------------------------

    tables["after"], first = examine(model, tok, asked, rt, config.max_new_tokens)
    run.metrics = dict(tables=tables)
    run.say("\n".join(first.values()))
    hits = np.mean([item[3] == item[2] for row, items in asked.items() if "BM25" in row
                    for item in items])
    print(f"\n{config.n_eval} held-out questions a row, BM25 finds the right article for {hits:.1%}"
          f"; what the answers say:\n{'':37}{'right':>22}{'as in the':>13}{'as in the':>13}"
          f"{'I do not':>13}\n{'':59}{'article':>13}{'town':>13}{'know':>13}")
    for name, table in tables.items():
        for row, (right, *others) in table.items():
            print(f"{name:7} {row:29}{percent(right, config.n_eval):>22}"
                  + "".join(f"{share:>13.1%}" for share in others))
    run.finish("sft", model, tok, history)
