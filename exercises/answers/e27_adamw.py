from types import SimpleNamespace

import torch

NAME = "adamw"
COLUMNS = ["val_loss", "val_token_accuracy"]
ZH = """
27. AdamW 的一步

普通的梯度下降从每个权重里减去 lr x 梯度。这样，梯度大的权重一步走得很远，梯度小的几乎不动。
AdamW 把每个梯度除以它平常的大小。它为每个权重保存两个滑动平均：m 是梯度 g 的平均，
v 是 g 的平方的平均：

    m = beta1 m + (1 - beta1) g           v = beta2 v + (1 - beta2) g^2

两者都从 0 开始，所以最初偏小：t 步之后，总权重里只有 1 - beta^t 属于梯度。除以它就能补回来
（Kingma and Ba 2015）：

    weight = weight - lr (m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps) + decay weight)

权重衰减（weight decay）把每个权重拉向 0。它不属于 g，否则也会被除以 sqrt(v)
（Loshchilov and Hutter 2019：名字里的 W 就是它）。sft.py、reward.py 和 rlhf_ppo.py 都这样训练；
pretrain.py 的矩阵用 Muon。

例：第一步里 m / (1 - beta1) 就是 g，v / (1 - beta2) 就是 g^2，所以 eps 和 decay 为 0 时，
每个权重都移动 lr，与梯度大小无关。
"""


def install(function):
    """In the place of PyTorch's step."""
    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            config = SimpleNamespace(lr=group["lr"], beta1=group["betas"][0],
                                     beta2=group["betas"][1], eps=group["eps"],
                                     decay=group["weight_decay"])
            for p in (p for p in group["params"] if p.grad is not None):
                m, v, t = self.state.get(p, {}).values() or (
                    torch.zeros_like(p), torch.zeros_like(p), torch.tensor(0.0))
                weight, m, v = function(p.clone(), p.grad.clone(), m, v, int(t) + 1, config)
                self.state[p] = dict(exp_avg=m, exp_avg_sq=v, step=t + 1)
                p.copy_(weight)

    torch.optim.AdamW.step = step


RUN = "sft.py", install, "--steps=200 --eval_every=50 --ptx=0"


def answer(weight, grad, m, v, t, config):
    """A test compares it with torch.optim.AdamW."""
    b1, b2 = config.beta1, config.beta2
    m = b1 * m + (1 - b1) * grad
    v = b2 * v + (1 - b2) * grad ** 2
    mean, square = m / (1 - b1 ** t), v / (1 - b2 ** t)
    step = mean / (square.sqrt() + config.eps) + config.decay * weight
    return weight - config.lr * step, m, v


def cases():
    for t, eps in ((1, 0.1), (2, 1e-8), (9, 0.3)):
        config = SimpleNamespace(lr=0.1, beta1=0.9, beta2=0.95, eps=eps, decay=0.5)
        past = float(t > 1)                           # before the first step both means are 0
        yield (torch.randn(3, 2), torch.randn(3, 2), past * torch.randn(3, 2),
               past * torch.rand(3, 2), t, config)


MISTAKES = [
    ("You do not correct the means: divide them by 1 - beta^t.",
     "你没有修正两个平均：应当分别除以 1 - beta^t。",
     "m / (1 - b1 ** t), v / (1 - b2 ** t) -> m, v"),
    ("You correct m, but not v.", "你修正了 m，但没有修正 v。", "v / (1 - b2 ** t) -> v"),
    ("You correct v, but not m.", "你修正了 v，但没有修正 m。", "m / (1 - b1 ** t) -> m"),
    ("You divide by 1 - beta in every step: it is beta to the power t.",
     "你每一步都除以 1 - beta：应当是 beta 的 t 次方。", "b1 ** t -> b1 && b2 ** t -> b2"),
    ("You count one step too many: t is 1 in the first step already.",
     "你多数了一步：第一步的 t 已经是 1。",
     "b1 ** t -> b1 ** (t + 1) && b2 ** t -> b2 ** (t + 1)"),
    ("You return the corrected means. Return m and v themselves, else they are corrected again.",
     "你返回的是修正后的平均。应当返回 m 和 v 本身，否则下一步会再修正一次。",
     "step, m, v -> step, mean, square"),
    ("You divide by v. Divide by its square root: v has the size of g squared.",
     "你除以了 v。应当除以它的平方根：v 的大小是 g 的平方。", "square.sqrt() -> square"),
    ("Your eps stands under the root. Add it to the root.",
     "你把 eps 放进了根号里。应当加在根号外面。",
     "square.sqrt() + config.eps -> (square + config.eps).sqrt()"),
    ("You left out eps.", "你漏了 eps。", "+ config.eps) -> )"),
    ("You add the decay to the gradient: that is Adam with L2. There sqrt(v) divides it, too.",
     "你把权重衰减加进了梯度：那是带 L2 的 Adam。这样它也会被除以 sqrt(v)。",
     "+ config.eps) + config.decay * weight -> + config.eps) && "
     "config.beta2 -> config.beta2; grad = grad + config.decay * weight"),
    ("There is no weight decay.", "没有权重衰减。", "+ config.decay * weight ->"),
    ("Your decay is not multiplied by lr.", "你的权重衰减没有乘以 lr。",
     "config.decay * weight -> config.decay * weight / config.lr"),
    ("You decay the weight after its step: take the old weight.",
     "你在走完这一步之后才衰减：应当用原来的权重。",
     "+ config.decay * weight -> && return weight - config.lr * step -> "
     "return (weight - config.lr * step) * (1 - config.lr * config.decay)"),
    ("You have swapped beta1 and beta2.", "你把 beta1 和 beta2 弄反了。",
     "b1, b2 = config.beta1, config.beta2 -> b2, b1 = config.beta1, config.beta2"),
    ("Your m adds the whole gradient: multiply it by 1 - beta1.",
     "你的 m 加上了整个梯度：应当乘以 1 - beta1。", "(1 - b1) * grad -> grad"),
    ("Your v adds the whole square: multiply it by 1 - beta2.",
     "你的 v 加上了整个平方：应当乘以 1 - beta2。", "(1 - b2) * grad ** 2 -> grad ** 2"),
    ("Your v is the mean of the gradient. Square it.", "你的 v 是梯度的平均。应当取平方。",
     "grad ** 2 -> grad"),
    ("Your v is the mean of m squared. Take the gradient's square.",
     "你的 v 是 m 平方的平均。应当用梯度的平方。", "grad ** 2 -> m ** 2"),
    ("You use the gradient itself for the step. Use m, its mean.",
     "这一步你用了梯度本身。应当用它的平均 m。", "m / (1 - b1 ** t) -> grad"),
    ("The sign is wrong: the step goes down the gradient.", "符号反了：应当沿梯度下降。",
     "weight - config.lr * step -> weight + config.lr * step"),
]
