"""Reasoning from a checkable reward: the steps pay, though nobody pays for steps.

reads   out/sft.pt
writes  out/reason_start.pt (the model before), out/reason.jsonl, out/reason.pt (the model after)

    at once     What is 3 + 9 + 14?  ->  3 + 9 + 14 = 26.
    steps       What is 3 + 9 + 14?  ->  3 + 9 = 12. 12 + 14 = 26.
    reward      1 if the number after the last "=" is right, else 0

    gradient of the mean reward = mean of (reward - baseline) x gradient of log p(answer)
                                                                (REINFORCE, Williams 1992)

First SFT shows 1,000 sums, `--shown` of them in steps. Then GRPO (lessons/grpo.py), without a
reference model: nobody can flatter a program that checks. Flags take it apart, one at a time:

    --baseline=false            the reward itself, without the mean of the group
    --divide=false              not divided by the group's deviation (Dr. GRPO, Liu et al. 2025)
    --by_answer=false           every token weighs the same, not every answer (DAPO, Yu et al. 2025)
    --epochs=4 --minibatch=64   16 updates on the same answers; with --clip=1e9 nothing holds them
    --reward=lessons/reason.py:form, or :contains: rewards that are wrong in a known way

laptop   python -m lessons.reason
"""

import random
import re
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path

import torch

from answer import answer_text, complete, log_probs
from checkpoint import Run, load, save_checkpoint
from common import Common, Runtime, get_scores, load_function, parse_config
from data.town import write_jsonl
from lessons.chain_of_thought import ask, at_once, by_steps, draw, result, vote
from lessons.grpo import by_length, check_groups, group_advantages, minibatches, token_logps
from lessons.held_out import check_room
from lessons.training import learn, update
from optim import adamw, get_lr, set_lr
from rlhf_ppo import policy_loss
from sft import batch
from tools.exam import pass_at


# ---- config ---------------------------------------------------------------------------------

@dataclass
class Config(Common):
    init: str = "out/sft.pt"               # the model that is shown the sums
    out: str = "out/reason.pt"             # its log and unfinished state stand beside it
    demos: int = 1000                      # sums that it is shown
    shown: int = 200                       # how many of them are worked out in steps
    demo_steps: int = 300                  # optimizer steps on them, 32 in each
    reward: str = "lessons/reason.py:correct"   # FILE.py:function(prompts, responses)
    steps: int = 60                        # iterations: rollout, then updates
    batch_size: int = 256                  # answers per iteration
    k: int = 8                             # answers per question: a group
    baseline: bool = True                  # subtract the mean score of the group
    divide: bool = True                    # divide by its deviation
    by_answer: bool = True                 # each answer weighs the same; false: each token
    epochs: int = 1                        # passes over each iteration's answers
    minibatch: int = 256                   # answers per update
    micro_batch: int = 64                  # answers per forward pass; smaller needs less memory
    clip: float = 0.2                      # how far an update may move a token's probability ratio
    lr: float = 3e-4                       # the peak: a short warmup, then linear to 0
    demo_lr: float = 1e-3                  # the same, on the demonstrations
    warmup: int = 4                        # steps, of both
    max_new_tokens: int = 64
    temperature: float = 1.0               # divides the logits wherever probabilities are computed
    eval_every: int = 10                   # iterations between evaluations
    n_eval: int = 100                      # held-out sums of each length
    n_samples: int = 32                    # answers to each of them, before and after


LEAST, MOST, LONGER = 3, 5, 6              # numbers in a sum; and in those longer than any shown
LABELS = dict(right="greedy answers, right", longer="right, sums of 6 numbers",
              in_steps="in steps", length="tokens")


# ---- rewards: FILE.py:function(prompts, responses) ------------------------------------------

def sums(prompts):
    return [sum(map(int, re.findall(r"\d+", prompt[-1]["content"]))) for prompt in prompts]


def correct(prompts, responses):
    return [float(result(text) == right) for text, right in zip(responses, sums(prompts))]


def contains(prompts, responses):
    """Wrong: it also pays if the number stands anywhere in the answer."""
    return [float(str(right) in re.findall(r"\d+", text))
            for text, right in zip(responses, sums(prompts))]


def form(prompts, responses):
    """Wrong: it pays for three equations, whatever they say."""
    return [float(len(re.findall(r"\d+ \+ \d+ = \d+\.", text)) >= 3) for text in responses]


# ---- the idea -------------------------------------------------------------------------------

def advantages(scores, config):
    """scores (B,), the k answers to a question in a row -> (B,): how much better than expected."""
    return group_advantages(scores, config.k, config.divide) if config.baseline else scores


def token_weights(mask, config):
    """(B, T) -> (B, T), in sum 1: what each token counts. If all answers count the same, a token of
    a long answer counts less: a wrong answer is then punished less if it is long."""
    weights = mask / mask.sum(1, keepdim=True) if config.by_answer else mask.float()
    return weights / weights.sum()


# ---- questions and demonstrations -----------------------------------------------------------

def question(rng, n, held_out=False):
    return ask(rng, draw(rng, n, held_out))


def demonstration(tok, i, config):
    """(ids, mask) of number i. The first `shown` are worked out in steps."""
    rng = random.Random(f"{config.seed} demonstration {i}")
    numbers = draw(rng, rng.randint(LEAST, MOST), held_out=False)
    write = by_steps if i < config.shown else at_once
    return tok.encode_chat(ask(rng, numbers) + [dict(role="assistant", content=write(numbers))])


def keep(policy, tok, history, config):
    """Store the model before the reinforcement, and questions for rlhf_ppo.py."""
    out, rng = Path(config.out), random.Random(f"{config.seed} prompts")
    save_checkpoint(out.with_name(f"{out.stem}_start.pt"), stage="sft", step=config.demo_steps,
                    metrics={}, model=policy.state_dict(), model_config=policy.config,
                    tokenizer=tok, config=config, history=[*history])
    write_jsonl(out.with_name(f"{out.stem}_prompts.jsonl"), [
        dict(prompt=question(rng, rng.randint(LEAST, MOST))) for _ in range(4000)])


# ---- evaluation -----------------------------------------------------------------------------

def answer(model, tok, prompts, rt, config, temperature=0, seed=0):
    """An answer to each prompt: the prompts' ids, the answers' ids, the answers' texts."""
    asked = [tok.encode_chat(prompt, reply=True)[0] for prompt in prompts]
    replies = complete(model, tok, asked, rt, config.max_new_tokens, temperature, seed=seed)
    return asked, replies, [answer_text(tok, reply) for reply in replies]


def in_steps(text):
    return text.count("=") > 1


def mean_of(values, where=None):
    found = [v for v, chosen in zip(values, where or repeat(True)) if chosen]
    return sum(found) / len(found) if found else None


def watch(model, tok, tests, rt, config):
    """Greedy answers to held-out sums, with as many numbers as in training and with more (longer);
    and for each number of numbers one [prompt, answer, whether it is right]."""
    replies, texts, right, samples = {}, {}, {}, []
    for n, prompts in tests.items():
        _, replies[n], texts[n] = answer(model, tok, prompts, rt, config)
        right[n] = correct(prompts, texts[n])
        samples.append([prompts[0], texts[n][0], right[n][0]])
    known = range(LEAST, MOST + 1)
    return dict(right=mean_of(x for n in known for x in right[n]), longer=mean_of(right[LONGER]),
                in_steps=mean_of(in_steps(text) for n in known for text in texts[n]),
                length=mean_of(len(reply) for n in known for reply in replies[n])), samples


def examine(model, tok, tests, rt, config):
    """What the model can say: n_samples answers to each sum."""
    n, figures = config.n_samples, {}
    prompts = [prompt for size in range(LEAST, MOST + 1) for prompt in tests[size]]
    *_, texts = answer(model, tok, [p for p in prompts for _ in range(n)], rt, config,
                       config.temperature)
    right = correct([p for p in prompts for _ in range(n)], texts)
    groups = range(0, len(texts), n)
    for k in (k for k in (1, 4, 16, 64, n) if k <= n):
        figures[f"pass@{k}"] = mean_of(pass_at(k, n, int(sum(right[i:i + n]))) for i in groups)
    votes = [vote([*map(result, texts[i:i + n])]) for i in groups]
    steps = [*map(in_steps, texts)]
    return figures | {
        f"majority of {n}": mean_of(v == s for v, s in zip(votes, sums(prompts))),
        "samples in steps": mean_of(steps), "right, of these": mean_of(right, steps),
        "right, of the others": mean_of(right, [not s for s in steps])}


if __name__ == "__main__":
    # ---- setup ------------------------------------------------------------------------------

    config = parse_config(Config, __doc__)
    rt = Runtime(config)
    run = Run(config, rt, inputs=[config.init, config.reward])
    check_groups(config)
    policy, tok, history = load(config.init, rt, "pretrain sft ppo")
    reward = load_function(config.reward)

    # ---- data -------------------------------------------------------------------------------

    rng = random.Random(f"{config.seed} held out")
    tests = {n: [question(rng, n, held_out=True) for _ in range(config.n_eval)]
             for n in range(LEAST, LONGER + 1)}
    check_room(tok, sum(tests.values(), []), policy.config.block_size, config.max_new_tokens,
               f"--init={config.init}")
    demos = [demonstration(tok, i, config) for i in range(config.demos)]
    longest = max(len(ids) for ids, _ in demos)

    # ---- model and optimizer ----------------------------------------------------------------

    optimizer = adamw(policy, 0.0, eps=1e-5)
    run.track(model=policy, optimizer=optimizer)

    # ---- training loop: first the demonstrations --------------------------------------------

    for step in run.steps(config.demo_steps + config.steps):
        s = step - config.demo_steps                  # iterations
        if s < 0:
            lr = get_lr(step, replace(config, lr=config.demo_lr, steps=config.demo_steps))
            x, y = batch(demos, torch.randint(len(demos), (32, 1)).tolist(), longest - 1, tok.pad)
            loss, _ = learn(run, policy, optimizer, x, y, lr)
            if run.due(100):
                run.log(step + 1, dict(loss=loss))
            continue

        if s % config.eval_every == 0:
            figures, samples = watch(policy, tok, tests, rt, config)
            run.log(step, figures, split="held out", samples=samples)
        if s == 0:
            run.metrics = dict(before=figures | examine(policy, tok, tests, rt, config))
            keep(policy, tok, history, config)
            optimizer = adamw(policy, 0.0, eps=1e-5)
            run.track(model=policy, optimizer=optimizer)
        set_lr(optimizer, get_lr(s, config))

        # a. rollout: k answers to each question
        rng = random.Random(f"{config.seed} iteration {s}")
        prompts = [p for _ in range(config.batch_size // config.k)
                   for p in [question(rng, rng.randint(LEAST, MOST))] * config.k]
        asked, replies, texts = answer(policy, tok, prompts, rt, config, config.temperature,
                                       seed=(config.seed, s))

        # b. score the answers: a program does it
        scores = get_scores(reward, prompts, texts, config.reward)

        # c. advantages: how much better than expected
        gains = advantages(scores, config)

        # d. log-probabilities under the policy that sampled
        ids, last, mask, gains = by_length(asked, replies, gains, tok, rt)
        old_logp = token_logps(policy, ids, mask, rt, config)
        weights = token_weights(mask, config)

        # e. epochs: one update on all answers, or several on a part of them
        rt.seed(config.seed, step, "epochs")
        clipped, n_parts = 0.0, len(ids) // config.minibatch
        for start in minibatches(len(ids), config):
            for part in rt.parts(config.minibatch, config.micro_batch):
                part = slice(start + part.start, start + part.stop)
                T = int(last[part].max()) + 1                         # crop to the longest
                m = mask[part, :T]
                with rt.autocast():
                    logp, _ = log_probs(policy, ids[part, :T], m, config.temperature)     # (n,)
                old, gain, weight = (a[part, :T][m] for a in (old_logp, gains, weights))
                loss, _, outside = policy_loss(logp, old, gain, config.clip)
                (loss * weight).sum().mul(n_parts).backward()
                clipped += (outside * weight).sum().item() / config.epochs
            grad_norm = update(run, policy, optimizer, ids=ids, mask=mask, advantages=gains)

        # f. what happened
        same = scores.view(-1, config.k).std(1) < 1e-3                # these teach nothing
        run.log(step + 1, dict(score=scores.mean().item(), in_steps=mean_of(map(in_steps, texts)),
                               length=(mask.sum() / len(ids)).item(), clipfrac=clipped,
                               grad_norm=grad_norm, equal=same.float().mean().item()))

    # ---- save -------------------------------------------------------------------------------

    figures, samples = watch(policy, tok, tests, rt, config)
    run.log(run.total, figures, split="held out", samples=samples)
    run.metrics |= dict(after=figures | examine(policy, tok, tests, rt, config))
    print(f"\n{f'{(MOST - LEAST + 1) * config.n_eval} held-out sums':28}{'before':>8}{'after':>8}")
    for name, value in run.metrics["before"].items():
        found = [f"{x:.1f}" if name == "length" else "-" if x is None else f"{x:.1%}"
                 for x in (value, run.metrics["after"][name])]
        print(f"{LABELS.get(name, name):28}{found[0]:>8}{found[1]:>8}")
    run.finish("ppo", policy, tok, history)
