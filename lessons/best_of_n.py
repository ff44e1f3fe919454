"""Rejection sampling: answer each prompt n times, keep the best by the reward model, learn it.

reads   out/sft.pt, out/reward.pt, data/town/prompts.jsonl
writes  out/best_of_n.pt

    loss = -1/N sum_t log p(y_t | x, y_<t)     y: of n samples from the policy, the one with the
                                               highest score (RAFT, Dong et al. 2023; Llama 2)

The loss is that of supervised fine-tuning; the demonstrations are the model's own best answers.
Nothing is computed from a score, only which one is higher. The best of n answers is worth more
than one answer, but costs n times as much. Training makes that the price of one answer. Then the
next round begins from a better model. The best of n is never far away: its KL divergence from the
policy is at most log n - (n - 1) / n, 1.84 nats for 16. But the rounds add up, and no KL penalty
holds them back: a hole in the reward model is found and learned (docs/lessons.md shows one).

laptop   python -m lessons.best_of_n
"""

import math
import time
from dataclasses import dataclass

import numpy as np
import torch

from answer import COLDEST, answer_text, complete, sum_logp
from checkpoint import Run, load, load_reward
from common import Common, Runtime, fail, function_file, get_scores, load_function, parse_config
from data.formats import epochs, prompts_that_fit
from evaluate import groups_of
from lessons.held_out import Watched, score, show, watch
from lessons.training import update
from optim import adamw, set_lr


# ---- config ---------------------------------------------------------------------------------

@dataclass
class Config(Common):
    data: str = "data/town/prompts.jsonl"  # prompts
    init: str = "out/sft.pt"               # the policy to start from, and the reference
    reward: str = "out/reward.pt"          # a reward model, or FILE.py:function(prompts, responses)
    watch: str = "data/town.py:grade"      # FILE.py:function, to watch, not to train on
    out: str = "out/best_of_n.pt"          # its log and unfinished state stand beside it
    steps: int = 4                         # rounds: sample, keep the best, learn them
    batch_size: int = 256                  # prompts per round
    best_of: int = 16                      # n: answers per prompt
    minibatch: int = 32                    # answers per update
    epochs: int = 2                        # passes over each round's best answers
    lr: float = 2e-4                       # the first round's; then linear to 0
    max_new_tokens: int = 64
    temperature: float = 0.7               # divides the logits wherever probabilities are computed
    missing_end: float = 2.0               # subtracted from the score of an answer without an end
    n_eval: int = 256                      # held-out prompts per evaluation, one before each round


# ---- the idea -------------------------------------------------------------------------------

def best_answers(policy, reward, rows, seed, tok, rt, config):
    """Answer each prompt config.best_of times -> the replies with the highest score, [[ids]]; the
    scores of all, (prompts, n); the number of tokens that were read and written."""
    n = config.best_of
    rows = [row for row in rows for _ in range(n)]
    replies = complete(policy, tok, [row["ids"] for row in rows], rt, config.max_new_tokens,
                       config.temperature, seed=seed)
    texts = [answer_text(tok, reply) for reply in replies]
    scores = score(rows, replies, texts, reward, tok, rt, config).view(-1, n)
    best = [replies[i * n + k] for i, k in enumerate(scores.argmax(1).tolist())]
    return best, scores, sum(len(row["ids"]) + len(reply) for row, reply in zip(rows, replies))


if __name__ == "__main__":
    # ---- setup ------------------------------------------------------------------------------

    config = parse_config(Config, __doc__)
    rt = Runtime(config)
    own_reward = function_file(config.reward)
    run = Run(config, rt, inputs=[config.data, config.init, config.reward])
    if config.best_of < 2 or config.temperature < COLDEST or config.batch_size % config.minibatch:
        fail("--best_of must be at least 2, --temperature more than 0, and --minibatch must divide "
             "--batch_size")
    policy, tok, history = load(config.init, rt, "sft ppo")
    reference, *_ = load(config.init, rt, frozen=True)
    reward = load_reward(config.reward, tok, rt)

    # ---- data -------------------------------------------------------------------------------

    train, val = prompts_that_fit(config.data, tok, policy.config.block_size,
                                  config.max_new_tokens)
    val = val[:config.n_eval]
    plan = epochs(len(train), config.steps * config.batch_size, config.seed)

    # ---- model and optimizer ----------------------------------------------------------------

    optimizer = adamw(policy, 0.0)
    run.track(model=policy, optimizer=optimizer)

    # ---- training loop ----------------------------------------------------------------------

    for step in run.steps(unit="round"):
        now = watch(policy, reference, val, tok, rt, config, reward)
        run.log(step, now.figures, split="held out")
        set_lr(optimizer, config.lr * (1 - step / config.steps))

        # a. n answers to each prompt of this round, of which the best is kept
        began = time.monotonic()
        rows = [train[i] for i in plan[step * config.batch_size:(step + 1) * config.batch_size]]
        best, scores, n_tokens = best_answers(policy, reward, rows, (config.seed, step), tok, rt,
                                              config)
        # forward passes of all samples: sampling, and the reward model's two networks
        passes = n_tokens * (1 if own_reward else 2 + (reward.lm is not None))

        # b. fine-tuning on the best, at the temperature that they were sampled at
        rt.seed(config.seed, step, "epochs")
        order, losses = [torch.randperm(len(best)) for _ in range(config.epochs)], []
        for part in torch.cat(order).split(config.minibatch):
            ids, said = [rows[i]["ids"] for i in part.tolist()], [best[i] for i in part.tolist()]
            logp = sum_logp(policy, tok, ids, said, rt, config.temperature)
            loss = -logp.sum() / sum(map(len, said))
            loss.backward()
            grad_norm = update(run, policy, optimizer, ids=ids, said=said)
            losses.append(loss.item())
            passes += 3 * sum(map(len, ids + said))   # a backward pass is two forward ones

        # c. what happened
        run.log(step + 1, dict(score=scores.mean().item(), best=scores.amax(1).mean().item(),
                               loss=np.mean(losses), grad_norm=grad_norm),
                flops=passes * policy.flops_per_token(n_tokens // scores.numel()) / 3,
                seconds=time.monotonic() - began)

    # ---- save -------------------------------------------------------------------------------

    after = watch(policy, reference, val, tok, rt, config, reward)
    run.metrics = after.figures
    run.log(config.steps, run.metrics, split="held out")
    n = config.best_of
    best, scores, _ = best_answers(reference, reward, val, (config.seed, "best"), tok, rt, config)
    texts = [answer_text(tok, reply) for reply in best]
    grades = get_scores(load_function(config.watch), [r["prompt"] for r in val], texts,
                        config.watch)
    chosen = dict(score=scores.amax(1).mean().item(), kl=math.log(n) - (n - 1) / n,
                  length=np.mean([len(tok.encode(text)) for text in texts]))
    show({"before": watch(reference, reference, val, tok, rt, config, reward),
          f"its best of {n}": Watched(chosen, grades, groups_of(val)), "after": after},
         [("answers to write for one", ["1", str(n), "1"])])
    run.finish("ppo", policy, tok, history)
