"""Plumbing of in_context.py, data.py and scaling.py: the laptop's model, its optimizers, and a step
of pretraining, as in pretrain.py."""

import torch

from model import GPT, STYLES, GPTConfig
from optim import Muon, adamw, set_lr


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


def learn(model, optimizers, rows, lr, step, run, rt, config):
    """A step on rows (B, T + 1): their mean loss. Muon learns config.muon times as fast."""
    for name, optimizer in optimizers.items():
        set_lr(optimizer, lr * config.muon if name == "muon" else lr)
    with rt.autocast():
        loss = model(rows[:, :-1].contiguous(), rows[:, 1:].contiguous())
    loss.backward()
    grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    run.check(step, grad_norm, rows=rows)
    for optimizer in optimizers.values():
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return loss
