"""How the weights change: the learning rate's schedule, AdamW, and Muon for pretraining."""

import torch


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
