"""Lesson: chain of thought. Sums of several numbers, answered at once and by steps; then voting.

reads   out/sft.pt
writes  out/chain_of_thought.pt, the model that was shown the steps: chat.py takes it

    at once   What is 3 + 9 + 14?  ->  3 + 9 + 14 = 26.
    steps     What is 3 + 9 + 14?  ->  3 + 9 = 12. 12 + 14 = 26.
    voting    the most frequent result of several samples

A model does a fixed amount of work per token, so a hard question needs more tokens (Wei et al.
2022). Voting (Wang et al. 2022) needs no training: chains that err disagree with each other. The
town has sums of two numbers only, so the lesson makes longer ones. Every sum before the last is at
most 20: each step alone is known from pretraining. Both models learn from the same number of
tokens, in the same number of steps; the short answers then cover more questions. Questions of the
test have numbers that occur together in no demonstration, in any order.

laptop   python -m lessons.chain_of_thought
"""

import random
import re
from collections import Counter
from dataclasses import dataclass
from itertools import accumulate

from answer import respond
from checkpoint import Run, load
from common import Common, Runtime, fail, parse_config, percent
from data.formats import is_held_out
from data.town import SUMS
from lessons.held_out import check_room
from lessons.training import learn
from optim import adamw, get_lr
from sft import batch


# ---- config ---------------------------------------------------------------------------------

@dataclass
class Config(Common):
    init: str = "out/sft.pt"                # the model to start from
    out: str = "out/chain_of_thought.pt"    # its log and unfinished state stand beside it
    least: int = 2                          # numbers in a demonstration, 2 to 6
    most: int = 4
    n_test: int = 300                       # questions for each number of numbers
    steps: int = 400                        # optimizer steps of each model
    n_tokens: int = 256                     # tokens of answers to learn from, in every step
    lr: float = 1e-3                        # the peak: a linear warmup, then linear to 0
    warmup: int = 30                        # steps
    weight_decay: float = 0.1
    votes: int = 16                         # samples per question
    temperature: float = 1.0                # of the samples


# ---- the idea -------------------------------------------------------------------------------

def at_once(numbers):
    return f"{' + '.join(map(str, numbers))} = {sum(numbers)}."


def by_steps(numbers):
    """[3, 9, 14] -> "3 + 9 = 12. 12 + 14 = 26." """
    before = list(accumulate(numbers))
    return " ".join(f"{x} + {y} = {x + y}." for x, y in zip(before, numbers[1:]))


ARMS = {"at once": at_once, "steps": by_steps}


def result(text):
    """The number after the last "=", or None."""
    found = re.findall(r"= (\d+)\.", text)
    return int(found[-1]) if found else None


def vote(results):
    """The most frequent result; of equally frequent ones, the first. None if there is none."""
    counts = Counter(r for r in results if r is not None).most_common(1)
    return counts[0][0] if counts else None


def draw(rng, n, held_out):
    """n numbers from 1 to 20, whose sum without the last is at most 20. A hash of the numbers,
    whatever their order, decides whether they are held out."""
    while True:
        numbers = [rng.randint(1, 20) for _ in range(n)]
        mark = [dict(role="user", content=str(sorted(numbers)))]
        if sum(numbers[:-1]) <= 20 and is_held_out(mark, share=0.2) == held_out:
            return numbers


def ask(rng, numbers):
    question = rng.choice(SUMS).format(x=" + ".join(map(str, numbers[:-1])), y=numbers[-1])
    return [dict(role="user", content=question)]


def demonstration(tok, answer, config, i):
    """(ids, mask) of number i. The question depends on the seed and i, not on `answer`."""
    rng = random.Random(f"{config.seed} {i}")
    numbers = draw(rng, rng.randint(config.least, config.most), held_out=False)
    messages = ask(rng, numbers) + [dict(role="assistant", content=answer(numbers))]
    return tok.encode_chat(messages)


def next_batch(tok, answer, config, first):
    """x, y (B, T) with exactly config.n_tokens targets, from demonstration number `first` on, and
    the number of the demonstration after them. The last one may be cut."""
    dialogues, count = [], 0
    while count < config.n_tokens:
        dialogues.append(demonstration(tok, answer, config, first + len(dialogues)))
        count += sum(dialogues[-1][1])
    longest = max(len(ids) for ids, _ in dialogues)
    x, y = batch(dialogues, [[i] for i in range(len(dialogues))], longest - 1, tok.pad)
    late = (y >= 0).flatten().cumsum(0).view(y.shape) > config.n_tokens
    return x, y.masked_fill(late, -1), first + len(dialogues)


def start(config, rt):
    """The model of the checkpoint, and its optimizer."""
    model, *_ = load(config.init, rt)
    return model, adamw(model, config.weight_decay)


def shares(model, tok, questions, rt, config, votes=0):
    """{number of numbers: the share right}, and the mean number of tokens in an answer. votes:
    sample so many answers and take the most frequent result; 0: the greedy answer."""
    prompts = [prompt for prompt, _ in questions for _ in range(max(1, votes))]
    texts = [text for text, _ in respond(model, tok, prompts, rt, 64,
                                         config.temperature if votes else 0, seed=config.seed)]
    results, right = [result(text) for text in texts], {}
    for i, (_, numbers) in enumerate(questions):
        said = vote(results[i * votes:(i + 1) * votes]) if votes else results[i]
        right.setdefault(len(numbers), []).append(said == sum(numbers))
    return ({n: sum(r) / len(r) for n, r in right.items()},
            sum(len(tok.encode(text)) for text in texts) / len(texts))


if __name__ == "__main__":
    # ---- setup ------------------------------------------------------------------------------

    config = parse_config(Config, __doc__)
    if not 2 <= config.least <= config.most <= 6:     # seven such numbers are rare: see draw()
        fail(f"--least={config.least} and --most={config.most} must rise, from 2 to 6 at most")
    rt = Runtime(config)
    run = Run(config, rt, inputs=[config.init])
    model, tok, history = load(config.init, rt, "sft ppo")

    # ---- data -------------------------------------------------------------------------------

    rng, questions = random.Random(f"{config.seed} test"), {}
    for n in range(config.least, config.most + 1):
        for _ in range(config.n_test):
            numbers = draw(rng, n, held_out=True)
            questions[tuple(numbers)] = ask(rng, numbers), numbers    # each sum once
    questions = list(questions.values())
    check_room(tok, [prompt for prompt, _ in questions], model.config.block_size, 64,
               f"--init={config.init}")

    # ---- model and optimizer ----------------------------------------------------------------

    model, optimizer = start(config, rt)
    done = dict(demonstrations=0, found=[])           # of this model; the table so far
    run.track(model=model, optimizer=optimizer, done=done)
    if not done["found"]:
        done["found"].append(("before", shares(model, tok, questions, rt, config)))

    # ---- training loop: one model after the other -------------------------------------------

    for step in run.steps(config.steps * len(ARMS)):
        arm, s = list(ARMS)[step // config.steps], step % config.steps
        if s == 0:
            (model, optimizer), done["demonstrations"] = start(config, rt), 0
            run.track(model=model, optimizer=optimizer, done=done)
        x, y, done["demonstrations"] = next_batch(tok, ARMS[arm], config, done["demonstrations"])
        loss, _ = learn(run, model, optimizer, x, y, get_lr(s, config))
        if (s + 1) % 100 == 0 or s + 1 == config.steps:
            run.log(step + 1, dict(arm=arm, loss=loss,
                                   demonstrations=done["demonstrations"]))
        if s + 1 == config.steps:
            for votes in (0, 1, config.votes):
                how = f"vote of {votes}" if votes > 1 else "one sample" if votes else "greedy"
                done["found"].append((f"{arm}, {how}",
                                      shares(model, tok, questions, rt, config, votes)))
            model.train()

    # ---- save -------------------------------------------------------------------------------

    run.metrics = {name: {str(n): share for n, share in right.items()}
                   for name, (right, _) in done["found"]}
    asked = Counter(len(numbers) for _, numbers in questions)
    print(f"{'right':22}" + "".join(f"{f'{n} numbers':>22}" for n in asked) + f"{'tokens':>10}")
    for name, (right, length) in done["found"]:
        print(f"{name:22}" + "".join(f"{percent(right[n], asked[n]):>22}" for n in asked)
              + f"{length:10.1f}")
    run.finish("sft", model, tok, history)
