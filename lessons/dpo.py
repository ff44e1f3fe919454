"""Direct preference optimisation: learn from comparisons without reward model and without sampling.

reads   out/sft.pt, out/comparisons.jsonl, data/town/prompts.jsonl (held-out ones, to watch)
writes  out/dpo.pt

    loss = -log sigmoid(r_w - r_l),   r = beta (log pi(answer) - log pi_ref(answer))
                                                              (Rafailov et al. 2023, eq. 7)

The policy that maximises E[score] - beta KL(policy || reference) is pi_ref exp(score / beta) / Z.
Solved for the score, this is r plus beta log Z, which both answers to a prompt share. So r can take
the place of the score in the reward model's loss: the policy is its own reward model. The reference
is the frozen SFT model. It reads each answer once, before the training.

laptop   python -m lessons.dpo
"""

import time
from dataclasses import dataclass

import numpy as np
import torch

from answer import sum_logp
from checkpoint import Run, load
from common import Common, Runtime, fail, parse_config, wilson
from data.formats import check_sizes, prompts_that_fit, read_comparisons, split
from evaluate import cell
from lessons.held_out import show, watch
from lessons.training import update
from optim import adamw, get_lr, set_lr
from reward import batches, encode_comparison, ranking_loss


# ---- config ---------------------------------------------------------------------------------

@dataclass
class Config(Common):
    data: str = "out/comparisons.jsonl"     # comparisons: ranked responses, chosen/rejected, …
    prompts: str = "data/town/prompts.jsonl"   # the held-out ones are answered, to watch
    init: str = "out/sft.pt"                # the policy to start from, and the reference
    watch: str = "data/town.py:grade"       # FILE.py:function(prompts, responses), to watch
    out: str = "out/dpo.pt"                 # its log and unfinished state stand beside it
    steps: int = 0                          # optimizer steps; 0: one epoch
    batch_size: int = 16                    # prompts per step, each with all its answers
    lr: float = 5e-5                        # the peak: a linear warmup, then linear to 0
    warmup: int = 30                        # steps
    beta: float = 0.3                       # what a nat of distance from the reference is worth
    temperature: float = 0.7                # divides the logits wherever probabilities are computed
    max_new_tokens: int = 64
    eval_every: int = 50                    # steps between evaluations
    n_eval: int = 256                       # held-out prompts per evaluation


# ---- the idea -------------------------------------------------------------------------------

def answer_logp(model, rows, tok, rt, temperature):
    """[[ids]] of prompt and answer -> (B,): log p(answer | prompt), the sum over its tokens."""
    starts = [len(ids) - ids[::-1].index(tok.assistant) for ids in rows]          # of the answers
    return sum_logp(model, tok, [ids[:n] for ids, n in zip(rows, starts)],
                    [ids[n:] for ids, n in zip(rows, starts)], rt, temperature)


def dpo_loss(logp, ref_logp, ranks, beta):
    """log p of one prompt's K answers under policy and reference, ranks 0 the best; all (K,). With
    K = 2 it is eq. 7. More answers make K (K - 1) / 2 pairs, weighted as the reward model's."""
    return ranking_loss(beta * (logp - ref_logp), ranks)


@torch.no_grad()
def add_reference(items, reference, tok, rt, config):
    """Give each item ref_logp (K,). Items of similar length share a batch."""
    order = sorted(items, key=lambda item: max(map(len, item["ids"])))
    for start in range(0, len(order), 64):
        part = order[start:start + 64]
        logp = answer_logp(reference, [ids for item in part for ids in item["ids"]], tok, rt,
                           config.temperature)
        for item, ref_logp in zip(part, logp.split([len(item["ids"]) for item in part])):
            item["ref_logp"] = ref_logp


@torch.no_grad()
def evaluate(model, items, tok, rt, config):
    """Held-out comparisons: the loss, how often the better answer has the higher r, and how much
    more probable than before the better and the worse answer are, in nats."""
    found = []
    for item in items:
        logp = answer_logp(model, item["ids"], tok, rt, config.temperature)
        gain, ranks = logp - item["ref_logp"], item["ranks"].to(rt.device)
        w, l = torch.nonzero(ranks[:, None] < ranks, as_tuple=True)   # w was ranked above l
        right = 0.5 + 0.5 * (gain[w] - gain[l]).sign()                # equal: a half
        loss = dpo_loss(logp, item["ref_logp"], ranks, config.beta)
        found.append(torch.stack([loss, right.mean(), gain[w].mean(), gain[l].mean()]))
    names = ("val_loss", "val_accuracy", "better", "worse")
    return dict(zip(names, torch.stack(found).mean(0).tolist()))      # means over the prompts


if __name__ == "__main__":
    # ---- setup ------------------------------------------------------------------------------

    config = parse_config(Config, __doc__)
    rt = Runtime(config)
    run = Run(config, rt, inputs=[config.data, config.prompts, config.init])
    model, tok, history = load(config.init, rt, "sft ppo")
    reference, *_ = load(config.init, rt, frozen=True)
    if config.beta <= 0 or config.temperature == 0:
        fail("--beta and --temperature must be more than 0")

    # ---- data -------------------------------------------------------------------------------

    T = model.config.block_size
    train, val = ([item for row in part if (item := encode_comparison(tok, row, T))]
                  for part in split(read_comparisons(config.data)))
    _, asked = prompts_that_fit(config.prompts, tok, T, config.max_new_tokens)
    check_sizes(config.data, "prompts", train, val, config.batch_size)
    per_epoch = len(train) // config.batch_size
    config.steps = config.steps or per_epoch
    plan = batches(train, config.batch_size, config.steps, config.seed)
    print(f"{len(train):,} prompts to learn from, {len(val)} held out; "
          f"{config.steps / per_epoch:.1f} epochs")

    # ---- model and optimizer ----------------------------------------------------------------

    optimizer = adamw(model, 0.0)
    run.track(model=model, optimizer=optimizer)
    began, flops = time.monotonic(), 0
    add_reference(train + val, reference, tok, rt, config)

    # ---- training loop ----------------------------------------------------------------------

    losses = []
    for step in run.steps():
        if step % config.eval_every == 0:
            paused = time.monotonic()
            now = watch(model, reference, asked[:config.n_eval], tok, rt, config)
            run.log(step, now.figures | evaluate(model, val, tok, rt, config), split="held out")
            began += time.monotonic() - paused        # evaluation is not training
        set_lr(optimizer, get_lr(step, config))
        chosen = [train[i] for i in plan[step]]
        rows = [ids for item in chosen for ids in item["ids"]]
        logp = answer_logp(model, rows, tok, rt, config.temperature)
        logp = logp.split([len(item["ids"]) for item in chosen])
        loss = torch.stack([dpo_loss(own, item["ref_logp"], item["ranks"].to(rt.device),
                                     config.beta) for own, item in zip(logp, chosen)]).mean()
        loss.backward()
        grad_norm = update(run, model, optimizer, prompts=[item["ids"] for item in chosen])
        losses.append(loss.item())
        # the policy reads forward and backward, the reference has read forward: 4/3
        flops += sum(map(len, rows)) * model.flops_per_token(max(map(len, rows))) * 4 / 3
        if run.due(50):
            run.log(step + 1, dict(loss=np.mean(losses), lr=get_lr(step, config),
                                   grad_norm=grad_norm),
                    flops=flops, seconds=time.monotonic() - began)
            began, flops, losses = time.monotonic(), 0, []

    # ---- save -------------------------------------------------------------------------------

    before, after = (watch(m, reference, asked[:config.n_eval], tok, rt, config)
                     for m in (reference, model))
    run.metrics = after.figures | evaluate(model, val, tok, rt, config)
    run.log(config.steps, run.metrics, split="held out")
    right = run.metrics["val_accuracy"]
    show({"before": before, "after DPO": after}, [
        (f"the better answer has the higher r, of {len(val)}",
         ["-", cell((right, *wilson(right, len(val))))]),
        *((f"log p of the {name} answer, change (nats)", ["-", cell(run.metrics[name])])
          for name in ("better", "worse"))])
    run.finish("ppo", model, tok, history)
