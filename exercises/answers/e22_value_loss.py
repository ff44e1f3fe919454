import torch

from rlhf_ppo import value_loss as answer

NAME = "value_loss"
RUN = ("rlhf_ppo.py", "value_loss", "--steps=10 --batch_size=128 --minibatch=32 --n_eval=128 "
       "--eval_every=5 --ptx_coef=0 --critic_first=0 --critic_lr=1 --lr=5e-4")
COLUMNS = ["ppo/val/explained_var", "ppo/loss/value", "objective/score"]
ZH = """
22. 价值损失

评论家（critic）学习预测每个词元（token）的回报（return），用平方误差。
与策略一样，它在一次迭代里不应移动太远，所以 V 也要裁剪（clip）到 V_old 附近。
V_old 是写下回答时评论家给出的价值。

    near = V_old + clip(V - V_old, -eps, eps)
    loss = 1/2 max((V - R)^2, (near - R)^2)

取 max 与策略取 min 一样，是悲观的选择。如果 V 朝 R 移动超过了 eps，near 就离 R 更远，
误差更大，而且没有梯度：这个词元在这次迭代里已经学够了。
如果 V 离 R 越来越远，原来的误差更大，会把它拉回来。
（见 Ziegler et al. 2019 的实现，系数 1/2 也来自那里。）

例：V 1，V_old 0，R 2，eps 0.2 -> near 0.2，loss = 1/2 max(1, 3.24) = 1.62。
"""


def cases():
    for eps in (0.2, 0.5, 0.1):
        old = torch.randn(12)
        yield (old + 0.8 * torch.randn(12)).requires_grad_(), old, torch.randn(12), eps


def written_out(values, old_values, returns, eps):
    low, high = old_values - eps, old_values + eps
    near = values.clamp(low, high)
    plain, clipped = (values - returns) ** 2, (near - returns) ** 2
    return torch.maximum(plain, clipped) / 2


MISTAKES = [
    ("You take the min. The critic's clip takes the max: the loss is an error, so the pessimistic "
     "choice is the larger one.",
     "你取了 min。评论家的裁剪要取 max：损失是误差，悲观的选择是较大的那个。",
     "maximum -> minimum"),
    ("The factor 1/2 is missing.", "漏了系数 1/2。", "/ 2 ->"),
    ("Nothing is clipped: this is the plain squared error.", "你没有裁剪：这只是普通的平方误差。",
     "torch.maximum(plain, clipped) -> plain"),
    ("The max is missing: you always use the clipped value. A value that has gone away from R then "
     "gets no gradient and never comes back.",
     "漏了 max：你总是用裁剪之后的价值。离 R 越来越远的价值就没有梯度，再也回不来。",
     "torch.maximum(plain, clipped) -> clipped"),
    ("You clip V itself to ±eps. Clip its distance from V_old.",
     "你把 V 本身裁剪到 ±eps。应当裁剪它与 V_old 之差。",
     "values.clamp(low, high) -> values.clamp(-eps, eps)"),
    ("You clip the ratio V / V_old to 1 ± eps, as the policy does. A value may be 0 or negative: "
     "clip the difference.",
     "你像策略那样，把 V / V_old 裁剪到 1 ± eps。价值可能为 0 或为负：应当裁剪两者之差。",
     "values.clamp(low, high) -> old_values * (values / old_values).clamp(1 - eps, 1 + eps)"),
    ("You forgot to add V_old again after the clip: near = V_old + clip(V - V_old, -eps, eps).",
     "裁剪之后，你忘了加回 V_old：near = V_old + clip(V - V_old, -eps, eps)。",
     "values.clamp(low, high) -> (values - old_values).clamp(-eps, eps)"),
    ("You take the absolute error. Square it.", "你用了绝对误差。应当取平方。", "** 2 -> .abs()"),
    ("You return one number, the mean. The stage averages itself, over all micro-batches: return a "
     "loss for each token.",
     "你返回了一个平均值。训练脚本自己会对所有微批取平均：请返回每个词元的损失。",
     "/ 2 -> .mean() / 2"),
    ("The values are right, but no gradient reaches them: no .detach() and no torch.no_grad().",
     "数值对了，但梯度传不到 values：不要用 .detach() 或 torch.no_grad()。",
     "(plain, clipped) -> (plain, clipped).detach()"),
]
