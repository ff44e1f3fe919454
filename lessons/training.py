"""Plumbing of the lessons: an update of the weights; steps of fine-tuning, as in sft.py; and the
laptop's model and steps of pretraining, as in pretrain.py."""

from dataclasses import dataclass

import numpy as np
import torch

from common import Common, fail
from model import GPT, STYLES, GPTConfig
from optim import Muon, adamw, set_lr
from sft import batch, pack


def update(run, model, *optimizers, **batch):
    """After backward(): a step of the optimizers, with a gradient that is 1 long at most. Gives its
    length before. batch: what is stored if that is not finite."""
    grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    run.check(run.step - 1, grad_norm, **batch)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return grad_norm.item()


# ---- fine-tuning ----------------------------------------------------------------------------

def learn(run, model, optimizer, x, y, lr):
    """A step on x, y (B, T): their mean loss, and the length of its gradient."""
    set_lr(optimizer, lr)
    x, y = x.to(run.rt.device), y.to(run.rt.device)
    with run.rt.autocast():
        loss = model(x, y)
    loss.backward()
    return loss.item(), update(run, model, optimizer, x=x, y=y)


class Rows:
    """rows[step]: x, y (batch_size, T) of that step, config.ptx of them pretraining text; plan says
    which of the dialogues [(ids, learned)] stand in which row."""

    def __init__(self, dialogues, tok, T, run, config):
        self.dialogues, self.pad, self.T = dialogues, tok.pad, T
        self.n_text = round(config.batch_size * config.ptx)
        self.n_chat = config.batch_size - self.n_text
        if not self.n_chat or not dialogues:
            fail(f"--ptx={config.ptx} and --n_demos={config.n_demos} leave no dialogues to learn "
                 f"from")
        if (longest := max(len(ids) for ids, _ in dialogues)) > T + 1:
            fail(f"--init={config.init} reads {T} tokens, but a demonstration of this lesson has "
                 f"{longest}")
        self.plan = pack([len(ids) for ids, _ in dialogues], T, config.steps * self.n_chat,
                         np.random.default_rng(config.seed))
        self.corpus = run.corpus(config.text, tok)
        self.corpus.shuffle(config.steps * self.n_text * T + 1, config.seed)

    def __getitem__(self, step):
        plan = self.plan[step * self.n_chat:(step + 1) * self.n_chat]
        x, y = batch(self.dialogues, plan, self.T, self.pad)
        text = self.corpus.rows(step * self.n_text, self.n_text, self.T)
        return torch.cat([x, text[:, :-1]]), torch.cat([y, text[:, 1:]])


# ---- pretraining ----------------------------------------------------------------------------

@dataclass
class Laptop(Common):
    """The flags of pretrain.py, with its values."""
    batch_size: int = 8
    lr: float = 8e-3
    weight_decay: float = 0.1
    muon: float = 2.0
    block_size: int = 256
    n_layer: int = 4
    n_head: int = 2


def begin(config, rt, vocab_size, n_embd):
    """A model with random weights, the same ones each time, and its optimizers by name."""
    torch.manual_seed(config.seed)
    model = GPT(GPTConfig(
        block_size=config.block_size, vocab_size=vocab_size, n_layer=config.n_layer,
        n_head=config.n_head, n_kv_head=config.n_head, n_embd=n_embd, n_hidden=4 * n_embd,
        **STYLES["laptop"])).to(rt.device)
    matrices = [p for p in model.blocks.parameters() if p.dim() == 2]
    return model, dict(adamw=adamw(model, config.weight_decay, without=matrices),
                       muon=Muon(matrices, config.weight_decay, dtype=rt.dtype))


def read_on(run, model, optimizers, rows, lr):
    """A step on rows (B, T + 1): their mean loss. Muon learns config.muon times as fast."""
    for name, optimizer in optimizers.items():
        set_lr(optimizer, lr * run.config.muon if name == "muon" else lr)
    rows = rows.to(run.rt.device)
    with run.rt.autocast():
        loss = model(rows[:, :-1].contiguous(), rows[:, 1:].contiguous())
    loss.backward()
    update(run, model, *optimizers.values(), rows=rows)
    return loss.item()
