"""How the weights change: the learning rate's schedule, AdamW, Muon for pretraining, and LoRA."""

import copy

import torch
import torch.nn as nn
from torch.nn import functional as F

from model import GPT, ScalarGPT


def get_lr(step, config):
    """Linear warmup, then in a straight line down to 0 (Bergsma et al. 2025)."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    return config.lr * (config.steps - step) / max(1, config.steps - config.warmup)


def set_lr(optimizer, lr):
    for group in optimizer.param_groups:
        group["lr"] = lr


def adamw(model, weight_decay, eps=1e-8, without=()):
    """AdamW for the weights that are trained. Matrices are decayed; norms and biases, which only
    scale and shift, are not. without: parameters that another optimizer has."""
    others = {id(p) for p in without}
    params = [p for p in model.parameters() if p.requires_grad and id(p) not in others]
    groups = [dict(params=[p for p in params if p.dim() >= 2], weight_decay=weight_decay),
              dict(params=[p for p in params if p.dim() < 2], weight_decay=0.0)]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=eps,
                             fused=params[0].device.type != "mps")


def orthogonalize(x, rounds=3):
    """x (n, R, C), R <= C -> about U V^T for each x = U S V^T: large singular values come near 1.
    With 3 rounds small ones do not: of a trained model's momentum 43% stay below .5.

    Newton-Schulz: the polynomial f(s) = 3.4445 s - 4.7750 s^3 + 2.0315 s^5 is applied to the
    singular values again and again. It takes only matrix products (Jordan et al. 2024).
    """
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)                 # singular values below 1
    for _ in range(rounds):
        a = x @ x.mT                                                  # (n, R, R)
        x = torch.baddbmm(x, torch.baddbmm(a, a, a, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x


class Muon(torch.optim.Optimizer):
    """SGD with momentum that orthogonalises each matrix's update (Jordan et al. 2024): it needs
    half as many steps as AdamW here. Matrices of one shape are stacked, since a few large products
    are faster than many small ones. Embedding, output layer and norms are AdamW's."""

    def __init__(self, matrices, weight_decay=0.1, momentum=0.95, dtype=torch.float32):
        super().__init__(matrices, dict(lr=0.0, weight_decay=weight_decay, momentum=momentum))
        self.dtype = dtype                            # of the products

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            alike, momentum = {}, group["momentum"]   # {(short side, long side): [(matrix, step)]}
            for p in (p for p in group["params"] if p.grad is not None):
                m = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                m.lerp_(p.grad, 1 - momentum)
                step = p.grad.lerp(m, momentum)       # Nesterov's
                alike.setdefault((min(p.shape), max(p.shape)), []).append((p, step))
            for same in alike.values():
                steps = torch.stack([s.mT if s.size(0) > s.size(1) else s for _, s in same])
                for (p, _), s in zip(same, orthogonalize(steps.to(self.dtype))):
                    s = s.mT if p.size(0) > p.size(1) else s
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.sub_(s, alpha=group["lr"] * max(1, p.size(0) / p.size(1)) ** 0.5)


# ---- LoRA: train a small change of the weights ----------------------------------------------

class LoRA(nn.Module):
    """W x + s B A x: a layer whose W stays as it is, plus a trained product of two thin matrices,
    B (out, r) and A (r, in) (Hu et al. 2021, eq. 3). For an embedding x is a token's unit vector:
    its row of W, and its row of B A."""

    def __init__(self, layer, B, A, scale=1.0):
        super().__init__()
        self.layer, self.scale = layer, scale
        self.B, self.A = nn.Parameter(B), nn.Parameter(A)

    def forward(self, x):
        if isinstance(self.layer, nn.Embedding):
            return self.layer(x) + self.scale * F.embedding(x, self.B) @ self.A
        return self.layer(x) + self.scale * F.linear(F.linear(x, self.A), self.B)

    @torch.no_grad()
    def merged(self):
        """A layer that computes the same without them. W may be shared, so it is not written to."""
        self.layer.weight = nn.Parameter(self.layer.weight + self.scale * self.B @ self.A)
        return self.layer


def with_lora(model, rank, alpha=16.0, tokens=()):
    """A model that computes the same, with thin matrices to train beside those of its blocks. It
    shares the weights of `model`, which are frozen; the head of a ScalarGPT is copied, and trained.
    tokens: ids whose embeddings are trained, too, such as those that pretraining has never seen."""
    width, vocab_size = model.config.n_embd, model.config.vocab_size
    if rank > width:
        raise ValueError(f"a rank of {rank} is more than n_embd={width}, the most that a matrix "
                         f"here can have: try 8, or train all weights")
    shared = [p for gpt in model.modules() if isinstance(gpt, GPT) for p in gpt.parameters()]
    model = copy.deepcopy(model, {id(p): p for p in shared}).requires_grad_(True)
    for p in shared:
        p.requires_grad_(False)
    gpt = model.gpt if isinstance(model, ScalarGPT) else model
    for part in [*gpt.blocks.modules()]:
        for name, layer in part.named_children():
            if isinstance(layer, nn.Linear):
                n_out, n_in = layer.weight.shape
                A = torch.randn(rank, n_in) / n_in**0.5
                setattr(part, name, LoRA(layer, torch.zeros(n_out, rank), A, alpha / rank))
    if tokens:                                        # B picks their rows, A is what they change by
        B = F.one_hot(torch.tensor(tokens), vocab_size).T.float()
        gpt.wte, gpt.lm_head = (LoRA(layer, B, torch.zeros(len(tokens), width))
                                for layer in (gpt.wte, gpt.lm_head))
        gpt.wte.B.requires_grad_(False), gpt.lm_head.B.requires_grad_(False)
        if model.config.tied:
            gpt.lm_head.A = gpt.wte.A
    return model


def merge(model):
    """An ordinary model that computes the same: answering costs nothing more."""
    for part in [*model.modules()]:
        for name, layer in part.named_children():
            if isinstance(layer, LoRA):
                setattr(part, name, layer.merged())
    if isinstance(model, GPT):
        model.tie_weights()
    return model
