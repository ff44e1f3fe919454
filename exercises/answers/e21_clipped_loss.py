import torch

import rlhf_ppo

NAME = "policy_loss"
RUN = ("rlhf_ppo.py", "policy_loss", "--steps=10 --batch_size=128 --minibatch=32 --n_eval=128 "
       "--eval_every=5 --ptx_coef=0 --critic_first=0 --critic_lr=1 --lr=5e-4",
       lambda function: lambda *args: (function(*args), *rlhf_ppo.policy_loss(*args)[1:]))
COLUMNS = ["objective/score", "objective/kl", "ppo/policy/clipfrac"]
ZH = """
21. PPO 的裁剪损失

回答由旧策略采样得到。概率比（ratio）表示：现在的策略给某个词元（token）的概率，
是旧策略的多少倍。

    ratio = pi(a_t) / pi_old(a_t)          给出的是两者的对数
    loss = -min(ratio A, clip(ratio, 1 - eps, 1 + eps) A)        （Schulman et al. 2017，式 7）

优势 A > 0 时，损失使这个词元的概率增大，直到 ratio 等于 1 + eps，此后梯度为 0。
A < 0 时，损失使它减小，直到 1 - eps。取 min 是悲观的选择：如果概率朝错误的方向移动，
无论走了多远，都会被拉回来。所以裁剪（clip）只限制能赢多少，不限制会输多少。

例：ratio 1.5，A 2，eps 0.2 -> -min(3, 2.4) = -2.4；A 为 -2 时 -> -min(-3, -2.4) = 3。
"""


def answer(*args):
    return rlhf_ppo.policy_loss(*args)[0]


def cases():
    for eps in (0.2, 0.1, 0.3):
        old = -torch.rand(12) - 0.5
        move = torch.linspace(-0.6, 0.6, 12)[torch.randperm(12)]
        yield (old + move).requires_grad_(), old, torch.randn(12), eps


def written_out(logp, old_logp, advantages, eps):
    ratio = torch.exp(logp - old_logp)
    near = ratio.clamp(1 - eps, 1 + eps)
    return -torch.minimum(ratio * advantages, near * advantages)


MISTAKES = [
    ("The sign is missing: the optimizer makes the loss small, and A > 0 must become more "
     "probable.",
     "漏了负号：优化器使损失变小，而 A > 0 的词元，概率应当增大。", "-torch.min -> torch.min"),
    ("You take the max inside the minus. It is -min(…), or max(-…, -…).",
     "你在负号里面取了 max。应为 -min(…)，或者 max(-…, -…)。", "minimum -> maximum"),
    ("The min is missing: you always use the clipped ratio. A token that has moved to the wrong "
     "side then gets no gradient and never comes back.",
     "漏了 min：你总是用裁剪之后的 ratio。朝错误方向移动的词元就没有梯度，再也回不来。",
     "torch.minimum(ratio * advantages, near * advantages) -> near * advantages"),
    ("Nothing is clipped.", "你没有裁剪。",
     "torch.minimum(ratio * advantages, near * advantages) -> ratio * advantages"),
    ("You clip the difference of the logarithms to ±eps. Clip the ratio, to 1 ± eps.",
     "你把对数之差裁剪到 ±eps。应当把 ratio 裁剪到 1 ± eps。",
     "ratio.clamp(1 - eps, 1 + eps) -> (logp - old_logp).clamp(-eps, eps).exp()"),
    ("Your ratio is upside down: the present policy is above, the old one below.",
     "ratio 上下颠倒了：现在的策略在上，旧策略在下。", "logp - old_logp -> old_logp - logp"),
    ("Your ratio is the difference of the logarithms. Take exp of it.",
     "你的 ratio 是对数之差。还要取 exp。", "torch.exp(logp - old_logp) -> logp - old_logp"),
    ("Your ratio divides the logarithms. The ratio of two probabilities is exp(logp - old_logp).",
     "你用对数相除。两个概率之比是 exp(logp - old_logp)。",
     "torch.exp(logp - old_logp) -> logp / old_logp"),
    ("You use the probability instead of the ratio: exp(logp - old_logp).",
     "你用的是概率，不是概率比：exp(logp - old_logp)。", "logp - old_logp -> logp"),
    ("You clip from 1 - eps only; the ratio must not exceed 1 + eps either.",
     "你只裁剪了下界 1 - eps；ratio 也不能超过 1 + eps。", "1 - eps, 1 + eps) -> min=1 - eps)"),
    ("You return one number, the mean. The stage averages itself, over all micro-batches: return a "
     "loss for each token.",
     "你返回了一个平均值。训练脚本自己会对所有微批取平均：请返回每个词元的损失。",
     "near * advantages) -> near * advantages).mean()"),
    ("The values are right, but no gradient reaches logp: no .detach() and no torch.no_grad().",
     "数值对了，但梯度传不到 logp：不要用 .detach() 或 torch.no_grad()。",
     "logp - old_logp -> logp.detach() - old_logp"),
]
