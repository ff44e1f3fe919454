"""Lesson: tools. The model writes a call, the program computes, and the model goes on.

reads   out/sft.pt, data/town/sft.jsonl and data/town/rehearse (text)
writes  out/calculator.pt, the model with calls, and a table: how many sums are right

    the model writes     <call>123+456=
    the program adds               579</call>        not learned: mask 0
    the model goes on                         123 + 456 = 579.

The SFT model knows sums up to 20 + 20. Two copies of it learn longer ones with equal tokens, one
from plain answers, the other from answers with calls (Schick et al. 2023, Toolformer). A call is
plain text, of which the program understands one form only: two numbers of at most 9 digits and a +.
Nothing else is ever evaluated. What looks different, or comes too often, stays text. (chat.py has
no calculator: there the model that has learned calls must go on alone, the table's last row.)

laptop   python -m lessons.calculator
"""

import random
import re
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import ModuleDict

from answer import answer_text, generate, left_pad, prompt_ids
from checkpoint import Run, load
from common import Common, Runtime, parse_config, percent
from data.formats import read_demonstrations
from data.town import SUMS, judge
from lessons.held_out import check_room
from lessons.training import Rows, learn
from optim import adamw, get_lr
from sft import encode_dialogues


# ---- config ---------------------------------------------------------------------------------

@dataclass
class Config(Common):
    data: str = "data/town/sft.jsonl"    # demonstrations to rehearse, those without sums
    text: str = "data/town/rehearse"     # pretraining text to rehearse
    ptx: float = 0.25                    # the share of rows that are pretraining text
    init: str = "out/sft.pt"             # the checkpoint to start from
    out: str = "out/calculator.pt"       # its log and unfinished state stand beside it
    n_demos: int = 8000                  # demonstrations with sums, of numbers of 1 to 3 digits
    n_eval: int = 200                    # held-out sums of each length, 2 to 4 digits
    steps: int = 600                     # optimizer steps
    batch_size: int = 4                  # rows of block_size tokens per step and model
    lr: float = 1e-3                     # the peak: a linear warmup, then linear to 0
    warmup: int = 30                     # steps
    weight_decay: float = 0.1
    max_new_tokens: int = 60             # of one answer, with what the program adds
    max_calls: int = 2                   # in one answer


# ---- the idea -------------------------------------------------------------------------------

# [0-9], not \d: that would take the digits of every script
CALL = re.compile(r"<call>([0-9]{1,9})\+([0-9]{1,9})=")


def result(text):
    """What the program adds to a text that ends with a call; "" if it does not. Only a call that
    the model has just finished counts, so the text is what the model wrote, not the user.

        "<call>12+30=" -> "42</call>"
    """
    start = text.rfind("<call>")
    call = CALL.fullmatch(text, start) if start >= 0 else None
    return f"{int(call[1]) + int(call[2])}</call>" if call else ""


@torch.no_grad()
def answer(model, tok, prompts, rt, max_new_tokens, max_calls):
    """The greedy text after each of the prompts [[ids]], with the results of its calls. The model
    stops at every =. If that ends a call, the program adds the result. After max_calls such stops
    it is no longer interrupted."""
    model.eval()
    equals, = tok.encode("=")
    replies, open_rows = [[] for _ in prompts], list(range(len(prompts)))
    for turn in range(max_calls + 1):
        stops = [tok.end, equals] if turn < max_calls else [tok.end]
        idx, mask = left_pad([prompts[i] + replies[i] for i in open_rows], tok.pad, rt.device)
        with rt.autocast():
            out = generate(model, idx, max_new_tokens, mask=mask, temperature=0, stop=stops,
                           pad=tok.pad)[:, idx.size(1):].tolist()
        for i, ids in zip(open_rows, out):
            cut = next((n + 1 for n, id in enumerate(ids) if id in stops), len(ids))
            replies[i] += ids[:cut]
            replies[i] += tok.encode(result(tok.decode(replies[i])))
        open_rows = [i for i in open_rows if tok.end not in replies[i]
                     and len(replies[i]) < max_new_tokens]
        if not open_rows:
            break
    model.train()
    return [answer_text(tok, reply[:max_new_tokens]) for reply in replies]


def encode_call(tok, question, x, y):
    """(ids, mask) of a demonstration with a call: the mask is 0 where the program speaks."""
    ids = tok.encode_chat(question, reply=True)[0]
    mask = [0] * len(ids)
    call = f"<call>{x}+{y}="
    for text, learned in ((call, 1), (result(call), 0), (f" {x} + {y} = {x + y}.", 1)):
        piece = tok.encode(text)
        ids, mask = ids + piece, mask + [learned] * len(piece)
    return ids + [tok.end], mask + [1]


# ---- the task: longer sums than the town has --------------------------------------------------

def draw(rng, digits):
    """A number with so many digits."""
    return rng.randrange(10 ** (digits - 1), 10 ** digits)


def held_out_sums(n):
    """{digits: n pairs}: sums that no demonstration asks for, in this order or the other."""
    rng = random.Random("held-out sums")
    return {d: [(draw(rng, d), draw(rng, d)) for _ in range(n)] for d in (2, 3, 4)}


def demonstrations(n, seed, held_out):
    """n sums of numbers of one to three digits: [(question, x, y)]."""
    rng, found = random.Random(f"{seed} sums"), []
    never = {frozenset(pair) for pairs in held_out.values() for pair in pairs}
    while len(found) < n:
        x, y = draw(rng, rng.randint(1, 3)), draw(rng, rng.randint(1, 3))
        if frozenset((x, y)) not in never:
            found.append((rng.choice(SUMS).format(x=x, y=y), x, y))
    return found


def examine(model, tok, held_out, rt, max_new_tokens, max_calls):
    """{digits: share right}, and the first answer to a sum of three digits."""
    right, first = {}, ""
    for digits, pairs in held_out.items():
        asked = [SUMS[i % len(SUMS)].format(x=x, y=y) for i, (x, y) in enumerate(pairs)]
        prompts = [prompt_ids(tok, text, model.config.block_size, max_new_tokens)
                   for text in asked]
        texts = answer(model, tok, prompts, rt, max_new_tokens, max_calls)
        spoken = [re.sub("<call>.*?</call>", "", text) for text in texts]
        right[digits] = np.mean([judge(*pair)["right"] for pair in zip(asked, spoken)]).item()
        first = texts[0] if digits == 3 else first
    return right, first


if __name__ == "__main__":
    # ---- setup ------------------------------------------------------------------------------

    config = parse_config(Config, __doc__)
    rt = Runtime(config)
    run = Run(config, rt, inputs=[config.data, config.text, config.init])
    sft, tok, history = load(config.init, rt, "sft")

    # ---- data -------------------------------------------------------------------------------

    T, held_out = sft.config.block_size, held_out_sums(config.n_eval)
    check_room(tok, [text.format(x=1000, y=1000) for text in SUMS], T, config.max_new_tokens,
               f"--init={config.init}")
    sums = demonstrations(config.n_demos, config.seed, held_out)
    rest = [row for row in read_demonstrations(config.data) if row.get("kind") != "sum"]
    rest, *_ = encode_dialogues(rest, tok, T)
    train = {
        "plain": [tok.encode_chat([dict(role="user", content=question),
                                   dict(role="assistant", content=f"{x} + {y} = {x + y}.")])
                  for question, x, y in sums] + rest,
        "calls": [encode_call(tok, *row) for row in sums] + rest}
    rows = {name: Rows(train[name], tok, T, run, config) for name in train}

    # ---- model and optimizer ----------------------------------------------------------------

    models = ModuleDict({name: load(config.init, rt)[0] for name in train})
    optimizer = adamw(models, config.weight_decay)
    run.track(models=models, optimizer=optimizer)

    # ---- training loop ----------------------------------------------------------------------

    for step in run.steps():
        lr, losses = get_lr(step, config), {}
        for name, model in models.items():            # as many tokens for each
            losses[f"loss_{name}"], _ = learn(run, model, optimizer, *rows[name][step], lr)
        if run.due(50):
            run.log(step + 1, dict(losses, lr=lr))

    # ---- save -------------------------------------------------------------------------------

    table = {}
    for label, model, max_calls in (
            ("out/sft.pt as it is", sft, 0),
            ("plain answers", models["plain"], 0),
            ("calls, computed by the program", models["calls"], config.max_calls),
            ("calls, the model has to go on alone", models["calls"], 0)):
        table[label], text = examine(model, tok, held_out, rt, config.max_new_tokens, max_calls)
        run.say(f"{label}: {text}")
    run.metrics = dict(table=table)
    print(f"\nright, of {config.n_eval} held-out sums each; four digits are more than any "
          f"demonstration had\n{'':36}" + "".join(f"{f'{d} digits':>22}" for d in held_out))
    for label, right in table.items():
        print(f"{label:36}" + "".join(f"{percent(share, config.n_eval):>22}"
                                      for share in right.values()))
    run.finish("sft", models["calls"], tok, history)
