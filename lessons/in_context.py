"""Lesson: when does a model begin to read its examples? Pretraining once more, watched.

reads   data/town/pretrain, out/tokenizer.json, data/town/sft.jsonl and test.jsonl (questions)
writes  out/in_context.pt, a pretrained model, and a table: what it can do at which step

    Tomu: What is 4 + 9?         the marks of a sheet are drawn once: nobody can guess the first
    Ki> 13                       two, and the lines above tell all that follow
    Tomu: What is 7 + 2?
    Ki> 9

The loss on a mark tells whether the model looks at the lines above: on the first line it hardly
falls, on later ones it does. With it comes the use of examples, in marks that stand nowhere in the
text. Olsson et al. 2022 saw the same in large models, and found the heads of attention that do it:
they look for where the present token stood before, and copy what came next ("induction heads").

laptop   python -m lessons.in_context
"""

import random
import re
from collections import defaultdict
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch

from checkpoint import Run
from common import Runtime, parse_config
from data.formats import read_demonstrations, read_prompts
from data.town import MARK_ENDS, Dice, World, judge, sheets
from evaluate import answer
from lessons.few_shot import choose, document
from lessons.held_out import of_the_town
from lessons.training import Laptop, begin, read_on
from optim import get_lr
from tokenizer import Tokenizer


# ---- config ---------------------------------------------------------------------------------

@dataclass
class Config(Laptop):
    data: str = "data/town/pretrain"     # text
    tokenizer: str = "out/tokenizer.json"
    examples: str = "data/town/sft.jsonl"   # the examples before the questions
    questions: str = "data/town/test.jsonl"
    out: str = "out/in_context.pt"       # its log and unfinished state stand beside it
    steps: int = 1600                    # as in pretrain.py, like the next two and Laptop's
    warmup: int = 100
    n_embd: int = 128
    n_sheets: int = 200                  # new sheets on which the loss is measured
    n_questions: int = 60                # about people, asked with 0 and 4 examples
    max_new_tokens: int = 24             # of an answer
    eval_every: int = 100                # steps between two rows of the table


# ---- the idea -------------------------------------------------------------------------------

MARK = re.compile("[A-Z][a-z]+(?:" + "|".join(re.escape(end.rstrip()) for end in MARK_ENDS) + ")")
LINES = {1: "1st", 3: "3rd", 5: "5th"}   # of a sheet: those of its questions


def marked_sheets(world, n, seed):
    """n sheets with marks and five lines or more, drawn anew."""
    dice, found = Dice(random.Random(f"in context {seed}")), []
    while len(found) < n:
        text = sheets(world, dice)
        if MARK.match(text) and text.count("\n") >= max(LINES) - 1:
            found.append(text)
    return found


def in_marks(text, tok):
    """ids, and for each of them the number of the line if it belongs to the line's mark, else 0."""
    ids, spans, start = tok.encode(text), [], 0
    for number, line in enumerate(text.split("\n"), 1):
        spans.append((start, start + MARK.match(line).end(), number))
        start += len(line) + 1
    ends = accumulate(len(tok.tokens[i]) for i in ids)                # the town's text is ASCII
    return ids, [next((number for low, high, number in spans if low < end <= high), 0)
                 for end in ends]


@torch.no_grad()
def mark_loss(model, texts, tok, rt):
    """{line: the mean loss of its mark's tokens, in nats}"""
    model.eval()
    found = defaultdict(list)
    for text in texts:
        ids, line = in_marks(text, tok)
        ids = torch.tensor([[tok.eot, *ids][:model.config.block_size + 1]], device=rt.device)
        with rt.autocast():
            loss = model(ids[:, :-1], ids[:, 1:].contiguous(), reduction="none")
        for number, nats in zip(line, loss.flatten().tolist()):
            found[number].append(nats)
    model.train()
    return {name: np.mean(found[number]).item() for number, name in LINES.items()}


def right(model, tok, rows, examples, n, rt, config):
    """The share of right greedy answers after n examples, in the marks of lessons/few_shot.py."""
    ids, room = [], config.block_size - config.max_new_tokens
    for i, row in enumerate(rows):
        question = row["prompt"][0]["content"]
        some = choose(examples, n, question, np.random.default_rng((config.seed, i)))
        form = "Item, Solution" if n else "bare"
        ids.append(([tok.eot] + tok.encode(document(form, some, question)))[-room:])
    texts = answer(model, True, tok, ids, 0.0, rt, config).texts
    model.train()
    return np.mean([judge(row["prompt"], text)["right"] for row, text in zip(rows, texts)]).item()


if __name__ == "__main__":
    # ---- setup ------------------------------------------------------------------------------

    config = parse_config(Config, __doc__)
    rt = Runtime(config)
    run = Run(config, rt, inputs=[config.data, config.tokenizer])
    tok, T = Tokenizer.load(config.tokenizer), config.block_size

    # ---- data -------------------------------------------------------------------------------

    corpus = run.corpus(config.data, tok)
    corpus.shuffle(config.steps * config.batch_size * T + 1, config.seed)
    texts = marked_sheets(World(0), config.n_sheets, config.seed)
    rows = of_the_town(read_prompts(config.questions), ["fact"], config.questions)
    demos = of_the_town(read_demonstrations(config.examples), ["fact"], config.examples)
    rows = rows[:config.n_questions]
    examples = [tuple(m["content"] for m in row["messages"]) for row in demos]

    # ---- model and optimizer ----------------------------------------------------------------

    model, optimizers = begin(config, rt, tok.vocab_size, config.n_embd)
    table = {}                                        # {step: its row}
    run.track(model=model, **optimizers, table=table)

    # ---- training loop ----------------------------------------------------------------------

    for step in run.steps():
        batch = corpus.rows(step * config.batch_size, config.batch_size, T)
        loss = read_on(run, model, optimizers, batch, get_lr(step, config))
        if run.due(config.eval_every):
            with run.paused():
                shares = {f"{n} examples": right(model, tok, rows, examples, n, rt, config)
                          for n in (0, 4)}
                nats = mark_loss(model, texts, tok, rt)
                table[step + 1] = dict(loss=loss, **nats, **shares)
                run.log(step + 1, table[step + 1])

    # ---- save -------------------------------------------------------------------------------

    print(f"\n{'':6}{'':>8}{'loss of the mark in a':>24}{'':6}{'facts right after':>24}\n"
          f"{'step':>6}{'loss':>8}" + "".join(f"{f'{name} line':>10}" for name in LINES.values())
          + f"{'0 examples':>13}{'4 examples':>13}")
    for step, row in table.items():
        print(f"{step:6}{row['loss']:8.3f}" + "".join(f"{row[n]:10.2f}" for n in LINES.values())
              + "".join(f"{row[f'{n} examples']:13.1%}" for n in (0, 4)))
    run.metrics = dict(table={str(step): row for step, row in table.items()})
    run.finish("pretrain", model, tok, [])
