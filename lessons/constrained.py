"""Lesson: constrained decoding. The program allows only answers of a given form, here JSON.

reads   out/sft.pt, data/town/rehearse (text), the people of data/town.py
writes  out/constrained.pt, and a table: how many answers are valid, and how many are right

    p'(token | text) = p(token | text) allowed(token) / sum of the same over all tokens
    allowed(token): 1 if text + token is the beginning of an allowed answer, else 0

A form is a trie over bytes. A token is allowed if all its bytes lead from the current node to
another one: it may end a value, close the quote and more. The SFT model has never seen JSON. The
mask makes its answers valid at once; a few demonstrations teach it the form, too.

laptop   python -m lessons.constrained
"""

import json
import random
from dataclasses import dataclass
from functools import cache
from itertools import takewhile

import numpy as np
import torch
import torch.nn.functional as F

from answer import LAST, answer_text, left_pad, prompt_ids, sample
from checkpoint import Run, load
from common import Common, Runtime, parse_config, percent
from data.town import FACTS, VALUES, Dice, ask, judge, pronouns, state
from lessons.held_out import check_room, load_world
from lessons.training import Rows, learn
from model import KVCache
from optim import adamw, get_lr
from sft import encode_dialogues


# ---- config ---------------------------------------------------------------------------------

@dataclass
class Config(Common):
    text: str = "data/town/rehearse"     # pretraining text to rehearse
    ptx: float = 0.25                    # the share of rows that are pretraining text
    init: str = "out/sft.pt"             # the checkpoint to start from
    out: str = "out/constrained.pt"      # its log and unfinished state stand beside it
    n_demos: int = 1500                  # demonstrations that answer in JSON
    town: int = 0                        # the seed of data/town.py
    steps: int = 150                     # optimizer steps
    batch_size: int = 4                  # rows of block_size tokens per step
    lr: float = 1e-3                     # the peak: a linear warmup, then linear to 0
    warmup: int = 10                     # steps
    weight_decay: float = 0.1
    max_new_tokens: int = 48             # of one answer
    temperature: float = 0.7             # of the sampled answers
    eval_every: int = 50                 # steps between evaluations
    n_eval: int = 210                    # held-out questions per evaluation, 210 at most


# ---- the idea -------------------------------------------------------------------------------

def trie(strings, after):
    """A node is {byte: next node}; the last byte of each string leads to the node `after`, where
    another trie may go on. {} is the end. No string may begin with another one.

        trie(["ab", "ac"], {}) -> {a: {b: {}, c: {}}}
    """
    root = {}
    for string in strings:
        *path, last = string.encode()
        node = root
        for byte in path:
            node = node.setdefault(byte, {})
        node[last] = after
    return root


def walk(node, token):
    """The node that the bytes of a token lead to; None if they leave the trie."""
    for byte in token:
        if (node := node.get(byte)) is None:
            return None
    return node


def allowed(node, tok):
    """{id: the node after it}: all tokens that may come next. At the end that is <|end|> alone. A
    special token is no text, whatever its name."""
    if not node:
        return {tok.end: node}
    special = set(tok.specials.values())
    after = {id: walk(node, token) for id, token in tok.tokens.items() if id not in special}
    return {id: then for id, then in after.items() if then is not None}


@torch.no_grad()
def write(model, tok, prompts, forms, rt, max_new_tokens, temperature=0.0, seed=0):
    """A text after each of the prompts [[ids]]. forms: the trie of each answer, or None for a free
    one. What the mask forbids has probability 0 before anything is chosen."""
    model.eval()
    rt.seed(seed)
    idx, mask = left_pad(prompts, tok.pad, rt.device)
    steps = min(max_new_tokens, model.config.block_size - idx.size(1))
    kv = KVCache(model.config, len(idx), idx.size(1) + steps, rt.device, torch.float32)
    nodes, replies = list(forms), [[] for _ in prompts]
    for _ in range(steps):
        logits = model(idx, mask=mask, cache=kv, where=LAST).float()  # (B, V)
        ways = [None if node is None else allowed(node, tok) for node in nodes]
        for row, way in zip(logits, ways):
            if way is not None:
                forbidden = torch.ones_like(row, dtype=torch.bool)
                forbidden[list(way)] = False
                row.masked_fill_(forbidden, -torch.inf)
        new = sample(logits, temperature)
        for reply, id in zip(replies, new.tolist()):
            reply.append(id)
        if all(tok.end in reply for reply in replies):
            break
        nodes = [None if way is None else way[reply[-1]] for way, reply in zip(ways, replies)]
        idx, mask = new[:, None], F.pad(mask, (0, 1), value=1)
    model.train()
    return [answer_text(tok, takewhile(lambda id: id != tok.end, reply)) for reply in replies]


# ---- the task: a fact about a person --------------------------------------------------------

@cache
def sentence_form(name):
    """{"answer": "Gus Marmore works as a doctor."}: all wordings of all facts that may be."""
    said = [text.format(S=name, P=f"{name}'s", p=pronouns(name)[1], v=value)
            for attr, wordings in FACTS.items() for text in wordings for value in VALUES[attr]]
    return trie(['{"answer": "'], trie([text + '"}' for text in said], {}))


@cache
def word_form(attr):
    """{"job": "doctor"}: all values of one attribute."""
    return trie([f'{{"{attr}": "'], trie([value + '"}' for value in VALUES[attr]], {}))


def demonstrations(world, n, seed):
    """n dialogues, about the people that sft.py's demonstrations ask about."""
    dice, rows = Dice(random.Random(f"{seed} json")), []
    for _ in range(n):
        name, attr = dice.pick(world.people_of["demos"]), dice.pick(list(VALUES))
        said = state(dice, name, attr, world.facts[name][attr], True)
        rows.append(dict(messages=[dict(role="user", content=ask(dice, name, attr)),
                                   dict(role="assistant", content=json.dumps(dict(answer=said)))]))
    return rows


def questions(world, n):
    """n of [(name, attribute, question)]: facts about people whom sft.py never asked about."""
    dice = Dice(random.Random("held out"))
    people = world.people_of["prompts"] + world.people_of["test"]
    facts = dice.subset([(name, attr) for name in people for attr in VALUES], n)
    return [(name, attr, ask(dice, name, attr)) for name, attr in facts]


def check(text, form, name, attr, question, facts):
    """(is it JSON, is it valid: in the form, is it right: valid and true)."""
    try:
        found = json.loads(text)
    except ValueError:
        return False, False, False
    if walk(form, text.encode()) != {}:
        return True, False, False
    if "answer" in found:
        return True, True, judge(question, found["answer"], facts)["right"]
    return True, True, found == {attr: facts[name][attr]}


def examine(model, tok, asked, facts, rt, config):
    """[(what was tried, the shares of JSON, valid and right, the first answer)]"""
    rows = []
    sentences = [sentence_form(name) for name, *_ in asked]
    words = [word_form(attr) for _, attr, _ in asked]
    prompts = [prompt_ids(tok, [dict(role="user", content=question)], model.config.block_size,
                          config.max_new_tokens) for *_, question in asked]
    for label, form, masks, temperature in (
            ("free, greedy", sentences, [None] * len(asked), 0),
            ("free, sampled", sentences, [None] * len(asked), config.temperature),
            ("constrained, greedy", sentences, sentences, 0),
            ("constrained, sampled", sentences, sentences, config.temperature),
            ("constrained to one word, greedy", words, words, 0)):
        texts = write(model, tok, prompts, masks, rt, config.max_new_tokens, temperature,
                      config.seed)
        found = [check(text, f, *row, facts) for text, f, row in zip(texts, form, asked)]
        rows.append((label, *np.mean(found, axis=0).tolist(), texts[0]))
    return rows


if __name__ == "__main__":
    # ---- setup ------------------------------------------------------------------------------

    config = parse_config(Config, __doc__)
    rt = Runtime(config)
    run = Run(config, rt, inputs=[config.text, config.init])
    model, tok, history = load(config.init, rt, "sft")

    # ---- data -------------------------------------------------------------------------------

    T, world = model.config.block_size, load_world(config.town)
    asked = questions(world, config.n_eval)
    check_room(tok, [question for *_, question in asked], T, config.max_new_tokens,
               f"--init={config.init}")
    train, *_ = encode_dialogues(demonstrations(world, config.n_demos, config.seed), tok, T)
    rows = Rows(train, tok, T, run, config)

    # ---- model and optimizer ----------------------------------------------------------------

    optimizer, table = adamw(model, config.weight_decay), {}          # {step: examine()'s rows}
    run.track(model=model, optimizer=optimizer, table=table)

    # ---- training loop ----------------------------------------------------------------------

    def look(step):
        table[step] = examine(model, tok, asked, world.facts, rt, config)
        for label, *_, text in table[step]:
            run.say(f"step {step}, {label}: {text}")

    for step in run.steps():
        if step % config.eval_every == 0:
            look(step)
        loss, grad_norm = learn(run, model, optimizer, *rows[step], get_lr(step, config))
        if run.due(25):
            run.log(step + 1, dict(loss=loss, grad_norm=grad_norm))
    look(config.steps)

    # ---- save -------------------------------------------------------------------------------

    run.metrics = dict(table=table)
    print(f"\n{len(asked)} questions about people that no demonstration asks about\n"
          f"{'steps':>5}  {'':32}{'JSON':>7}{'valid':>7}{'right':>22}")
    for step, rows in table.items():
        for label, is_json, valid, right, _ in rows:
            print(f"{step:5}  {label:32}{is_json:7.1%}{valid:7.1%}"
                  f"{percent(right, len(asked)):>22}")
    run.finish("sft", model, tok, history)
