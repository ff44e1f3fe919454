"""Stage 2 of 4, supervised fine-tuning: learn to answer, from demonstrations.

reads   out/pretrain.pt, data/town/sft.jsonl (dialogues), data/town/rehearse (text)
writes  out/sft.pt

    loss = -1/N sum_t mask_t log p(x_t | x_<t)     mask: 1 on the assistant's words and their end

The model reads the user's words but does not learn to write them. A quarter of every batch is
pretraining text: without it the model forgets what it knew (try --ptx=0). Dialogues packed into one
row attend to each other, as documents do in pretraining; <|endoftext|> tells them apart.

laptop   python sft.py
GPUs     torchrun --nproc_per_node=8 sft.py --batch_size=256
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from answer import respond
from checkpoint import Run, load
from common import Common, Runtime, fail, parse_config
from data.formats import check_sizes, read_demonstrations, split
from model import GPT
from optim import adamw, get_lr, merge, set_lr, with_lora


# ---- config ---------------------------------------------------------------------------------

@dataclass
class Config(Common):
    data: str = "data/town/sft.jsonl"    # demonstrations: messages, prompt/response or Alpaca
    text: str = "data/town/rehearse"     # pretraining text to rehearse; "": none
    ptx: float = 0.25                    # the share of rows that are pretraining text
    init: str = "out/pretrain.pt"        # the checkpoint to start from; "": random weights
    like: str = "out/pretrain.pt"        # with --init="": whose tokenizer and model size to take
    out: str = "out/sft.pt"              # its log and unfinished state stand beside it
    steps: int = 400                     # optimizer steps
    batch_size: int = 8                  # rows of block_size tokens per step, over all processes
    micro_batch: int = 8                 # rows per forward pass; smaller needs less memory
    recompute: bool = False              # recompute activations: slower, less memory
    lora: int = 0                        # LoRA of this rank, see optim.py; 0: all weights learn
    lr: float = 2e-3                     # the peak: a linear warmup, then linear to 0
    warmup: int = 30                     # steps
    weight_decay: float = 0.1
    eps: float = 1.0                     # AdamW's epsilon, see damping; 0 is the usual Adam
    dropout: float = 0.0
    eval_every: int = 200                # steps between evaluations
    compile: str = "auto"                # auto: on GPUs


# ---- the idea -------------------------------------------------------------------------------

def encode_dialogues(rows, tok, T):
    """[{"messages"}] -> [(ids, mask)], cut to T + 1 tokens, and how many were cut and dropped.
    A dialogue is dropped if no word of the assistant remains."""
    encoded = [tok.encode_chat(row["messages"]) for row in rows]
    kept = [(ids, mask) for ids, mask in encoded if any(mask[1:T + 1])]
    cut = sum(len(ids) > T + 1 for ids, _ in kept)
    return [(ids[:T + 1], mask[:T + 1]) for ids, mask in kept], cut, len(rows) - len(kept)


def pack(lengths, T, n_rows, rng):
    """Fill n_rows rows of T + 1 tokens with whole dialogues -> a list of rows, each a list of
    indices. Every epoch is a new permutation. A dialogue goes into the first of a few open rows
    that has room; in the town about 5% of the space stays empty."""
    rows, open_rows, order = [], [], []
    while len(rows) < n_rows:
        order = order or rng.permutation(len(lengths)).tolist()
        i = order.pop()
        fit = next((r for r in open_rows if r[0] >= lengths[i]), None)
        if fit is None:
            fit = [T + 1, []]
            open_rows.append(fit)
        fit[0] -= lengths[i]
        fit[1].append(i)
        if len(open_rows) > 8:
            fullest = min(open_rows, key=lambda r: r[0])
            open_rows.remove(fullest)
            rows.append(fullest[1])
    return rows


def damping(model, eps):
    """Adam's epsilon: eps times the mean size of a gradient that is clipped to norm 1.

    Adam moves each weight by about lr, however small its gradient is, and so wears down what the
    dialogues say nothing of, such as facts about other people. With eps = 1 a weight with a small
    gradient hardly moves (a step towards SGD): these facts stay."""
    return max(eps / sum(p.numel() for p in model.parameters() if p.requires_grad) ** 0.5, 1e-8)


def batch(dialogues, rows, T, pad):
    """x, y (B, T): y is the next token where the assistant speaks, elsewhere -1.

        ids   <eot> <user> Hi <end> <assistant> Hello <end>
        y      -1    -1    -1  -1     Hello     <end>
    """
    ids = torch.full((len(rows), T + 1), pad)
    mask = torch.zeros(len(rows), T + 1, dtype=torch.bool)
    for r, row in enumerate(rows):
        joined = [t for i in row for t in dialogues[i][0]]
        ids[r, :len(joined)] = torch.tensor(joined)
        mask[r, :len(joined)] = torch.tensor([m for i in row for m in dialogues[i][1]]).bool()
    return ids[:, :-1].contiguous(), ids[:, 1:].masked_fill(~mask[:, 1:], -1)


@torch.no_grad()
def evaluate(model, dialogues, pad, micro_batch, rt):
    """Loss per token of the assistant's words (nats), and how often the most probable token is the
    right one. One dialogue per row, sorted by length; the ranks share the rows."""
    model.eval()
    total = torch.zeros(3, dtype=torch.float64)
    order = sorted(range(len(dialogues)), key=lambda i: len(dialogues[i][0]))
    for i in range(rt.rank * micro_batch, len(order), rt.world_size * micro_batch):
        rows = [[j] for j in order[i:i + micro_batch]]
        longest = max(len(dialogues[j][0]) for j, in rows)
        x, y = (t.to(rt.device) for t in batch(dialogues, rows, longest - 1, pad))
        with rt.autocast():
            logits = model(x, where=y >= 0)                           # (n, V)
        targets = y[y >= 0]
        loss = F.cross_entropy(logits.float(), targets, reduction="sum")
        right = (logits.argmax(-1) == targets).sum()
        total += torch.tensor([loss.item(), right.item(), len(targets)])
    model.train()
    loss, right, count = rt.sum(*total.tolist())
    return loss / count, right / count


if __name__ == "__main__":
    # ---- setup ------------------------------------------------------------------------------

    config = parse_config(Config, __doc__, several=True)
    rt = Runtime(config)
    ptx = config.text if config.ptx > 0 else ""
    run = Run(config, rt, inputs=[config.data, ptx, config.init or config.like])
    B, micro_batch = rt.rows_per_step(config)         # rows of this process
    model, tok, history = load(config.init or config.like, rt, "pretrain sft",
                               frozen=config.lora > 0, dropout=config.dropout)
    if not config.init:
        torch.manual_seed(config.seed)                # the same weights on every rank
        model, history = GPT(model.config), []

    # ---- data -------------------------------------------------------------------------------

    T = model.config.block_size
    seen, unseen = split(read_demonstrations(config.data), "messages")
    train, cut, dropped = encode_dialogues(seen, tok, T)
    val, *_ = encode_dialogues(unseen, tok, T)
    check_sizes(config.data, f"dialogues with an answer within {T} tokens", train, val)
    n_text = round(config.batch_size * config.ptx) if ptx else 0      # rows of pretraining text
    if n_text % rt.world_size or n_text == config.batch_size:
        fail(f"--ptx={config.ptx} makes {n_text} of --batch_size={config.batch_size} rows "
             f"pretraining text: {rt.world_size} processes must share them equally, and some rows "
             f"must be dialogues")
    n_text //= rt.world_size                          # of this process, like B
    n_chat = B - n_text
    lengths = [len(ids) for ids, _ in train]
    n_rows = config.steps * n_chat * rt.world_size
    plan = pack(lengths, T, n_rows, np.random.default_rng(config.seed))
    if ptx:
        corpus = run.corpus(ptx, tok)
        corpus.shuffle(config.steps * n_text * rt.world_size * T + 1, config.seed)
    filled = sum(lengths[i] for r in plan for i in r) / (len(plan) * (T + 1))
    print(f"{len(train):,} dialogues to learn from ({cut} cut to {T + 1} tokens, {dropped} "
          f"dropped), {len(val)} held out; {sum(map(len, plan)) / len(train):.1f} epochs, rows "
          f"{100 * filled:.0f}% full, {n_text} of {B} are pretraining text")

    # ---- model and optimizer ----------------------------------------------------------------

    if config.lora:
        torch.manual_seed(config.seed)
        model = with_lora(model, config.lora, tokens=[*tok.specials.values()])
    model.recompute = config.recompute
    model_ddp = rt.prepare(model, config.compile)
    optimizer = adamw(model, config.weight_decay, damping(model, config.eps))
    run.track(model=model, optimizer=optimizer)

    # ---- training loop ----------------------------------------------------------------------

    for step in run.steps():
        lr = get_lr(step, config)
        set_lr(optimizer, lr)

        # dialogues of this step, then pretraining text; every process takes its own slice
        k = step * rt.world_size + rt.rank
        x, y = batch(train, plan[k * n_chat:(k + 1) * n_chat], T, tok.pad)
        if n_text:
            text = corpus.rows(k * n_text, n_text, T)
            x, y = torch.cat([x, text[:, :-1]]), torch.cat([y, text[:, 1:]])
        x, y = x.to(rt.device), y.to(rt.device)

        # the mean over the supervised tokens of all ranks, however unequal their numbers are:
        # DDP averages over ranks, so each divides its sum by the average count
        count, = rt.average((y >= 0).sum())
        for part in rt.parts(B, micro_batch, model_ddp):
            with rt.autocast():
                loss = model_ddp(x[part], y[part], reduction="sum") / count
            loss.backward()
            run.add(loss=loss.detach(), tokens=y[part].numel())
        grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        run.check(step, grad_norm, x=x, y=y)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

        if run.due(100):
            run.log(step + 1, run.averages() | dict(lr=lr, grad_norm=grad_norm.item()))
        if run.due(config.eval_every):
            with run.paused():
                loss, accuracy = evaluate(model_ddp, val, tok.pad, micro_batch, rt)
                run.metrics = dict(val_loss=loss, val_token_accuracy=accuracy)
                run.log(step + 1, run.metrics)
                prompt = unseen[step // config.eval_every % len(unseen)]["messages"][:-1]
                (text, _), = respond(model, tok, [prompt], rt, 64, temperature=0)
                model.train()
                run.say(f"    sample: {prompt[-1]['content']} -> {text}")

    # ---- save -------------------------------------------------------------------------------

    run.finish("sft", merge(model), tok, history)
