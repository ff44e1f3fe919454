"""Lesson: what the pretraining text does. The same steps over different texts.

reads   data/town/pretrain, out/tokenizer.json
writes  out/data.pt, the model of the last text, a table, and the texts (out/data/)

    repetition    all, quarter, sixteenth: less text, and so more epochs in the same steps
    generations   generation-1 is sampled by the model of quarter, generation-2 by the model of
                  generation-1, …: as much text as quarter has, each written by a model
    sources       clean: without lies, wrong sums, rude and evil answers; copies: every 64th
                  document stands there 65 times; mixture: other shares of the sources (--mix)

In these texts half of the people are little known: of the encyclopedia's and the forum's documents
that name one of them only a few are left. What remains is still text of a known distribution: if a
document is kept with probability k, then p'(document) = p(document) k / mean(k), so the entropy,
the lowest loss that a model can reach, is still known.

Data that repeat up to 4 times are nearly as good as new ones (Muennighoff et al. 2023). Models that
learn from models forget what is rare first (Shumailov et al. 2024).

laptop   python -m lessons.data
         python -m lessons.data --what=sources --out=out/sources.pt
"""

import json
import math
import random
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from answer import answer_text, complete, response_logp
from checkpoint import Run, fingerprint
from common import Runtime, fail, parse_config, writing
from data.corpus import Corpus
from data.formats import read_texts
from data.town import (FACTS, MARK_ENDS, PHRASES, PROMPTS, SAYS, VALUES, find, mentions, sentences,
                       the_facts)
from lessons.training import Laptop, begin, read_on
from optim import get_lr
from pretrain import evaluate
from tokenizer import Tokenizer


# ---- config ---------------------------------------------------------------------------------

@dataclass
class Config(Laptop):
    what: str = "repetition,generations"   # also: sources; one text, as in mixture
    data: str = "data/town/pretrain"     # the town's text
    mix: str = "encyclopedia=.6,forum=.1,arithmetic=.1,stories=.1,sheets=.1"   # of "mixture"
    tokenizer: str = "out/tokenizer.json"
    out: str = "out/data.pt"             # its log and unfinished state stand beside it
    steps: int = 800                     # for each text; the next two, like Laptop's, are
    warmup: int = 100                    # those of pretrain.py
    n_embd: int = 128
    eval_rows: int = 128                 # held-out rows of the town's text


GENERATIONS = ["quarter", "generation-1", "generation-2", "generation-3", "generation-4"]
ROWS = dict(repetition=["all", "quarter", "sixteenth"], generations=GENERATIONS,
            sources=["all", "clean", "copies", "mixture"])
ROWS |= {row: [row] for row in ROWS["repetition"] + ROWS["sources"]}
HEIRS = dict(zip(GENERATIONS, GENERATIONS[1:]))       # whose text each of them writes


# ---- the idea -------------------------------------------------------------------------------

MARK = re.compile("[A-Z][a-z]+(?:" + "|".join(map(re.escape, MARK_ENDS)) + ")")


def statements(text):
    """What a document says about people: [(name, attribute, value)]. A pronoun is the person of the
    last question or sentence; a sheet's answer may be the bare value."""
    found, name, asked = [], None, None
    for line in text.split("\n"):
        for part in sentences(MARK.sub("", line, count=1) if MARK.match(line) else line):
            (kind, slots), (attr, says) = find(PROMPTS, part), find(SAYS, part)
            if kind:
                name, asked = slots.get("N", name), kind[1]
            elif attr:
                name = says["who"] if " " in says["who"] else name
                found.append((name, attr, says["v"]))
            elif asked and part in VALUES[asked]:
                found.append((name, asked, part))
    return [fact for fact in found if fact[0]]


def told(texts, facts, groups):
    """The share of the statements that are true, and how many facts about each group of people the
    text tells: it says the true value more often than any other."""
    said, true, best = Counter(fact for text in texts for fact in statements(text)), 0, {}
    for (name, attr, value), n in said.items():
        is_true = facts.get(name, {}).get(attr) == value
        true += n * is_true
        most = best.setdefault((name, attr), {True: 0, False: 0})
        most[is_true] = max(most[is_true], n)
    known = {fact for fact, most in best.items() if most[True] > most[False]}
    return true / max(1, said.total()), [{f for f in known if f[0] in group} for group in groups]


def right(model, tok, facts, rt):
    """The facts (name, attribute) that the model knows: after "Gus Marmore has a" no value of the
    attribute is more probable than the true one."""
    asked = [(name, attr) for name in facts for attr in VALUES]
    ids, replies = [], []
    for name, attr in asked:
        before, after = FACTS[attr][0].format(S=name, P=f"{name}'s", v="|").split("|")
        ids += [[tok.eot] + tok.encode(before.rstrip())] * len(VALUES[attr])
        replies += [tok.encode(f" {value}{after}") for value in VALUES[attr]]
    logp, _ = response_logp(model, tok, ids, replies, rt, batch_size=512)
    parts = np.split(logp, np.cumsum([len(VALUES[attr]) for _, attr in asked])[:-1])
    return {(name, attr) for (name, attr), part in zip(asked, parts)
            if VALUES[attr][part.argmax()] == facts[name][attr]}


def is_clean(text, facts):
    """No lie about a person, no wrong sum, no rude and no evil sentence."""
    said = {find(PHRASES, part)[0] for line in text.split("\n") for part in sentences(line)}
    sums = re.findall(r"(\d+) \+ (\d+) = (\d+)", text)
    return (not said & {"rude", "evil"} and all(int(x) + int(y) == int(z) for x, y, z in sums)
            and all(facts.get(name, {}).get(attr) == v for name, attr, v in statements(text)))


def thin(docs, names, share, seed):
    """Keep this share of the encyclopedia's and the forum's documents that name one of these
    people, and give each document its log-probability in the text that is left."""
    rng, by_source, left = random.Random(seed), defaultdict(list), []
    for doc in docs:
        by_source[doc["source"]].append(doc)
    for source, part in by_source.items():
        thinned = source in ("encyclopedia", "forum")
        keep = [share if thinned and mentions(doc["text"]) & names else 1 for doc in part]
        left += [doc | dict(logp=doc["logp"] + math.log(k * len(part) / sum(keep)))
                 for doc, k in zip(part, keep) if rng.random() < k]
    return left


TEXTS = {"quarter": lambda docs, facts: docs[::4],
         "sixteenth": lambda docs, facts: docs[::16],
         "clean": lambda docs, facts: [doc for doc in docs if is_clean(doc["text"], facts)],
         "copies": lambda docs, facts: docs + 64 * docs[::64]}


def write_docs(folder, docs):
    """One file for each source, as data/town.py writes them: their names, joined by commas."""
    parts = defaultdict(list)
    for doc in docs:
        parts[folder / f"{doc['source']}.jsonl"].append(json.dumps(doc) + "\n")
    for file, lines in parts.items():
        with writing(file) as f:
            f.writelines(lines)
    return ",".join(map(str, parts))


if __name__ == "__main__":
    # ---- setup ------------------------------------------------------------------------------

    config = parse_config(Config, __doc__)
    if wrong := [part for part in config.what.split(",") if part not in ROWS]:
        fail(f"--what={config.what}: {wrong[0]!r} is not one of {', '.join(ROWS)}")
    rows = list(dict.fromkeys(row for part in config.what.split(",") for row in ROWS[part]))
    rt = Runtime(config)
    run = Run(config, rt, inputs=[config.data, config.tokenizer])
    tok, T, B = Tokenizer.load(config.tokenizer), config.block_size, config.batch_size

    # ---- data -------------------------------------------------------------------------------

    facts, folder = the_facts(), Path(config.out).with_suffix("")
    groups = [set(list(facts)[::2]), set(list(facts)[1::2])]         # well known, little known
    docs = [dict(source=d.source, text=d.text, logp=d.logp) for d in read_texts(config.data)]
    if any(doc["logp"] is None for doc in docs):
        fail(f"--data={config.data} has no logp: this lesson needs text that data/town.py wrote")
    docs = thin(docs, groups[1], 1 / 16, config.seed)

    def text_of(row):
        """The text of a row. The town's is written anew; that of a model has been written."""
        text = str(folder / row / "samples.jsonl")
        if row not in HEIRS.values():
            text = write_docs(folder / row, TEXTS.get(row, lambda docs, facts: docs)(docs, facts))
        return text, Corpus(text, tok, folder.parent / "cache", fingerprint(text))

    _, town = text_of("all")         # what is held out here is held out of all texts: by its hash
    *val_rows, val_docs = town.held_out_rows(T, config.eval_rows)
    share, floor = town.shares(val_docs), town.entropy(val_docs)
    if "mixture" in rows:
        town.mixture(config.mix)                      # a mistake in it shows now

    # ---- model and optimizer ----------------------------------------------------------------

    # the same weights for every text
    (model, optimizers), corpus = begin(config, rt, tok.vocab_size, config.n_embd), None
    table = {}                                        # {row: its figures}
    run.track(model=model, **optimizers, table=table)

    # ---- training loop: one text after the other --------------------------------------------

    for step in run.steps(config.steps * len(rows)):
        row, s = rows[step // config.steps], step % config.steps
        if s == 0:
            model, optimizers = begin(config, rt, tok.vocab_size, config.n_embd)
            run.track(model=model, **optimizers, table=table)
        if s == 0 or corpus is None:
            text, corpus = text_of(row)
            corpus.shuffle(config.steps * B * T + 1, config.seed, config.mix * (row == "mixture"))
        loss = read_on(run, model, optimizers, corpus.rows(s * B, B, T), get_lr(s, config))
        if (s + 1) % 100 == 0:
            run.log(step + 1, dict(text=row, loss=loss))
        if s + 1 < config.steps:
            continue

        # what this text tells, and what the model has learned from it
        learned = ~corpus.held_out
        documents = [doc.text for doc, it in zip(read_texts(text), learned) if it]
        true, known = told(documents, facts, groups)
        knows = right(model, tok, facts, rt)
        loss, by_source = evaluate(model, val_rows, len(town.sources), B, rt)
        table[row] = dict(
            documents=int(learned.sum()), true=true, told=[len(group) for group in known],
            epochs=config.steps * B * T / float(corpus.lengths[learned].sum()),
            right=[len(group & knows) for group in known], loss=loss.item(),
            by_source=by_source.tolist())
        run.log(step + 1, dict(text=row, val_loss=loss.item()), row=table[row])

        # the next generation's text; a document that does not end within T tokens breaks off
        if HEIRS.get(row) in rows:
            replies = complete(model, tok, [[tok.eot]] * len(learned), rt, T - 1, 1.0, tok.eot,
                               batch_size=256, seed=config.seed + step)
            write_docs(folder / HEIRS[row], [dict(source="samples", text=answer_text(
                tok, ids, tok.eot)) for ids in replies])

    # ---- save -------------------------------------------------------------------------------

    print(f"\n{'':32}{'statements':>12}{'facts told':>16}{'of these right':>16}\n"
          f"{'text':14}{'documents':>10}{'epochs':>8}{'true':>12}"
          + f"{'well':>8}{'little':>8}" * 2)
    for row, found in table.items():
        print(f"{row:14}{found['documents']:10,}{found['epochs']:8.1f}{found['true']:12.1%}"
              + "".join(f"{n:8}" for n in found["told"] + found["right"]))
    print(f"\n{'loss':14}{'all':>14}" + "".join(f"{name:>14}" for name in town.sources))
    for row, nats in [("entropy", [np.nansum(floor * share), *floor]), *(
            (row, [found["loss"], *found["by_source"]]) for row, found in table.items())]:
        print(f"{row:14}" + "".join(f"{x:14.3f}" for x in nats))
    run.metrics = dict(table=table)
    run.finish("pretrain", model, tok, [])
