"""Stage 3b of 4, the reward model: learn to score answers, from comparisons.

reads   out/sft.pt, out/comparisons.jsonl, data/town/sft.jsonl (to set the zero of the scale)
writes  out/reward.pt

    loss = -1/pairs sum over (w, l) of log sigmoid(r_w - r_l)     w was ranked above l
                                       (InstructGPT, eq. 1; mean over the pairs of each prompt)

A layer with one output, read at the last token, replaces the language model's output layer. All
answers to a prompt go through the model once and are compared within the same batch. Beside every
token the model reads how probable the frozen SFT model finds it. Without that, a network this small
learns style and can't tell a true answer from a false one (--lm="" shows it).

laptop   python reward.py
GPUs     torchrun --nproc_per_node=8 reward.py --batch_size=512
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from answer import right_pad
from checkpoint import Run, load
from common import Common, Runtime, fail, parse_config, wilson
from data.formats import check_sizes, read_comparisons, read_demonstrations, split
from model import ScalarGPT
from optim import adamw, get_lr, merge, set_lr, with_lora


# ---- config ---------------------------------------------------------------------------------

@dataclass
class Config(Common):
    data: str = "out/comparisons.jsonl"  # comparisons: ranked responses, chosen/rejected, HH, …
    demos: str = "data/town/sft.jsonl"   # demonstrations, to score 0 on average; "": the responses
    init: str = "out/sft.pt"             # the checkpoint to start from; "": random weights
    like: str = "out/sft.pt"             # with --init="": whose tokenizer and model size to take
    lm: str = "out/sft.pt"               # whose log-probabilities it reads as well; "": none
    held_out: float = 0.05               # the share of prompts to evaluate on; more for small data
    out: str = "out/reward.pt"           # its log and unfinished state stand beside it
    steps: int = 0                       # optimizer steps; 0: one epoch, since more overfits
    batch_size: int = 8                  # prompts per step, over all processes
    micro_batch: int = 8                 # prompts per forward pass; smaller needs less memory
    recompute: bool = False              # recompute activations: slower, less memory
    lora: int = 0                        # LoRA of this rank, see optim.py; 0: all weights learn
    lr: float = 1e-3                     # the peak: a linear warmup, then linear to 0
    warmup: int = 30                     # steps
    weight_decay: float = 0.1
    eval_every: int = 100                # steps between evaluations
    compile: str = "false"               # lengths vary, so it seldom pays here


# ---- the idea -------------------------------------------------------------------------------

def ranking_loss(scores, ranks):
    """scores (K,) of one prompt's responses, ranks (K,), 0 the best -> the mean over all pairs of
    -log sigmoid(score of the better - score of the worse). Tied pairs do not count.
    [1., 0.], [0, 1] -> log(1 + exp(-1)) = 0.313"""
    better = ranks[:, None] < ranks[None, :]                          # (K, K): i above j
    return -F.logsigmoid(scores[:, None] - scores[None, :])[better].mean()


def encode_answer(tok, prompt, response, T):
    """The ids of prompt, response and <|end|>, at most T. A response that is too long loses its
    end, but keeps at least half of T; a prompt that is longer than the rest loses its beginning."""
    ids = tok.encode_chat(prompt, reply=True)[0]
    answer = tok.encode_content(response)[:max(T - len(ids), T - T // 2) - 1] + [tok.end]
    return ids[-(T - len(answer)):] + answer


def encode_comparison(tok, row, T):
    """A row of comparisons as ids, ranks and, for simulated labelers, utility; None if its
    responses are equal once they are cut to T tokens."""
    ids = [encode_answer(tok, row["prompt"], response, T) for response in row["responses"]]
    kept = [i for i, answer in enumerate(ids) if answer not in ids[:i]]
    ranks = torch.tensor([row["ranks"][i] for i in kept])
    if len(ranks.unique()) < 2:
        return None
    simulated = {"grades", "noise"} <= {*row}
    utility = torch.tensor(row["grades"])[kept] / row["noise"] if simulated else None
    return dict(ids=[ids[i] for i in kept], ranks=ranks, utility=utility)


def batches(items, batch_size, n, seed):
    """At least n lists of indices: prompts of similar length, in random order, new each epoch."""
    rng, plan, per_epoch = np.random.default_rng(seed), [], len(items) // batch_size
    longest = np.array([max(map(len, item["ids"])) for item in items])
    while len(plan) < n:
        order = rng.permutation(len(items))[:per_epoch * batch_size]
        order = order[np.argsort(longest[order], kind="stable")]
        plan += rng.permutation(order.reshape(per_epoch, batch_size)).tolist()
    return plan


def score(model, rows, tok, rt):
    """[[ids]] -> (B,): the model's number at the last token of each row. Padding comes after that
    token, so it changes nothing."""
    idx, last = right_pad(rows, tok.pad, rt.device)
    with rt.autocast():
        return model(idx)[torch.arange(len(rows), device=rt.device), last]


@torch.no_grad()
def score_all(model, rows, tok, rt, batch_size=64):
    """Scores of many sequences, (N,), sorted by length so that little is padded."""
    model.eval()
    scores = torch.zeros(len(rows))
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for start in range(0, len(order), batch_size):
        chosen = order[start:start + batch_size]
        scores[chosen] = score(model, [rows[i] for i in chosen], tok, rt).cpu()
    model.train()
    return scores


def score_pairs(model, items, tok, rt):
    """For each item its scores (K,), and its pairs: i, j, where i was ranked above j."""
    scores = score_all(model, [ids for item in items for ids in item["ids"]], tok, rt)
    for item, s in zip(items, scores.split([len(item["ids"]) for item in items])):
        yield item, s, *torch.nonzero(item["ranks"][:, None] < item["ranks"], as_tuple=True)


def evaluate(model, items, tok, rt):
    """Held-out loss, accuracy over pairs, and the best accuracy that the labels' noise allows (None
    if it is unknown)."""
    items, losses, right, allowed = items[rt.rank::rt.world_size], [], [], []
    for item, scores, i, j in score_pairs(model, items, tok, rt):
        losses.append(ranking_loss(scores, item["ranks"]).item())
        right += (0.5 + 0.5 * (scores[i] - scores[j]).sign()).tolist()          # equal: a half
        if item["utility"] is not None:               # known for simulated labelers only
            allowed += (item["utility"][i] - item["utility"][j]).abs().sigmoid().tolist()
    n, loss, pairs, right, known, allowed = rt.sum(
        len(items), sum(losses), len(right), sum(right), len(allowed), sum(allowed))
    return dict(val_loss=loss / n, val_accuracy=right / pairs,
                ceiling=allowed / known if known == pairs else None)


if __name__ == "__main__":
    # ---- setup ------------------------------------------------------------------------------

    config = parse_config(Config, __doc__, several=True)
    rt = Runtime(config)
    run = Run(config, rt, inputs=[config.data, config.demos, config.lm,
                                  config.init or config.like])
    B, micro_batch = rt.rows_per_step(config)         # prompts of this process
    lora, stages = config.lora > 0, "sft pretrain ppo"
    base, tok, history = load(config.init or config.like, rt, stages, frozen=lora)
    lm = load(config.lm, rt, stages, tok, frozen=lora)[0] if config.lm else None
    if lm and lm.config != base.config:
        fail(f"{config.lm} is a model of another size than {config.init or config.like}")

    # ---- data -------------------------------------------------------------------------------

    T = base.config.block_size
    rows = read_comparisons(config.data)
    train, val = ([item for row in part if (item := encode_comparison(tok, row, T))]
                  for part in split(rows, share=config.held_out))
    check_sizes(config.data, "prompts", train, val, config.batch_size)
    scored = [r for item in train[:1000] for r in item["ids"]]        # set mean 0, deviation 1
    if config.demos:
        scored = [encode_answer(tok, r["messages"][:-1], r["messages"][-1]["content"], T)
                  for r in read_demonstrations(config.demos)[:2000]]
        if len({*map(tuple, scored)}) < 2:
            fail(f"{config.demos}: one demonstration can't set the scale of the scores, nor can "
                 f"equal ones (cut to {T} tokens); --demos= takes the responses instead")
    per_epoch = len(train) // config.batch_size
    config.steps = config.steps or per_epoch
    plan = batches(train, config.batch_size, config.steps, config.seed)
    pairs = sum(int((i["ranks"][:, None] < i["ranks"]).sum()) for i in train)
    print(f"{len(train):,} prompts with {pairs:,} pairs to learn from, {len(val)} prompts held "
          f"out ({len(rows) - len(train) - len(val)} left out, equal once cut to {T} tokens); "
          f"{config.steps / per_epoch:.1f} epochs")

    # ---- model and optimizer ----------------------------------------------------------------

    torch.manual_seed(config.seed)                    # the same weights on every rank
    model = ScalarGPT(base.config, lm=bool(lm))
    if config.init:
        model.start_from(base)
    if lm:
        model.lm = lm.requires_grad_(False)
    if lora:
        model = with_lora(model, config.lora)
    model.gpt.recompute = config.recompute
    model_ddp = rt.prepare(model, config.compile)
    optimizer = adamw(model, config.weight_decay)
    run.track(model=model, optimizer=optimizer)

    # ---- training loop ----------------------------------------------------------------------

    for step in run.steps():
        lr = get_lr(step, config)
        set_lr(optimizer, lr)

        # prompts of this step; every process takes its own
        items = [train[i] for i in plan[step][rt.rank::rt.world_size]]
        for part in rt.parts(B, micro_batch, model_ddp):
            rows = [ids for item in items[part] for ids in item["ids"]]
            scores = score(model_ddp, rows, tok, rt).split([len(i["ids"]) for i in items[part]])
            loss = sum(ranking_loss(s, item["ranks"].to(rt.device))
                       for s, item in zip(scores, items[part])) / B
            loss.backward()
            run.add(loss=loss.detach(), tokens=sum(map(len, rows)))
        grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        run.check(step, grad_norm, prompts=[item["ids"] for item in items])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

        if run.due(config.eval_every):
            averages = run.averages()
            with run.paused():
                run.metrics = evaluate(model_ddp, val, tok, rt)
            run.log(step + 1, averages | dict(lr=lr, grad_norm=grad_norm.item(), **run.metrics))

    # ---- save -------------------------------------------------------------------------------

    # shift and scale the scores, so that demonstrations have mean 0 and deviation 1
    scores = score_all(model, scored, tok, rt)
    run.metrics |= dict(score_mean=scores.mean().item(), score_std=scores.std().item())
    with torch.no_grad():                             # in the weights, every user gets it
        model.head.bias.sub_(run.metrics["score_mean"]).div_(run.metrics["score_std"])
        model.head.weight.div_(run.metrics["score_std"])
    accuracy, top = run.metrics["val_accuracy"], run.metrics["ceiling"]
    low, high = wilson(accuracy, len(val))            # pairs of a prompt are alike
    print(f"accuracy on held-out pairs {accuracy:.3f} [{low:.3f}, {high:.3f}]"
          + (f", {100 * accuracy / top:.1f}% of the ceiling {top:.3f}" if top else ""))
    run.finish("reward", merge(model), tok, history if config.init else [])
