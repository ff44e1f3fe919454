from types import SimpleNamespace

import torch

import rlhf_ppo

NAME = "whiten"
RUN = ("rlhf_ppo.py", "whiten", "--steps=10 --batch_size=128 --minibatch=32 --n_eval=128 "
       "--eval_every=5 --ptx_coef=0 --critic_first=0 --critic_lr=1 --lr=5e-4",
       lambda function: lambda x, mask, rt: function(x, mask))
COLUMNS = ["objective/score", "objective/kl", "ppo/policy/clipfrac"]
ZH = """
20. 白化

优势（advantage）在这次迭代里可能很大，在下次迭代里可能很小，而学习率不变。
所以 PPO 把一次迭代的所有回答放在一起，平移并缩放优势，使平均值为 0，标准差为 1：

    (x - mean) / sqrt(variance + 1e-8)

各个回答长度不同；mask 在回答的词元上为 1。填充（padding）不是数据：
平均值和方差都不算它，结果在那里是 0。方差用有偏的估计，即除以词元的个数。
（Ziegler et al. 2019；“有偏，1e-8”是复现这篇论文的人列出的细节之一。）

例：[[1, 3, 7]]，mask 为 [[1, 1, 0]] -> [[-1, 1, 0]]。
"""


def answer(x, mask):
    one_process = SimpleNamespace(sum=lambda *values: [float(v) for v in values])
    return rlhf_ppo.whiten(x, mask, one_process)


def cases():
    for scale, shift in ((1.0, 0.0), (5.0, 2.0), (0.1, -1.0)):
        mask = torch.zeros(3, 6, dtype=torch.bool)
        mask[0, 1:5] = mask[1, 2:] = mask[2, 0:2] = True
        yield scale * torch.randn(3, 6) + shift, mask
    yield torch.full((2, 3), 2.0), torch.tensor([[1, 1, 0], [1, 1, 1]], dtype=torch.bool)


def written_out(x, mask):
    real = [v for row, kept in zip(x.tolist(), mask.tolist()) for v, k in zip(row, kept) if k]
    mean = sum(real) / len(real)
    variance = sum((v - mean) ** 2 for v in real) / len(real)
    white = (x - mean) / (variance + 1e-8) ** 0.5
    return torch.where(mask, white, 0.0)


MISTAKES = [
    ("Padding counts in your mean and variance. Take both over x[mask].",
     "你的平均值和方差把填充也算进去了。两者都应当只取 x[mask]。", "if k ->"),
    ("You set the padding to 0, and then it counts as zeros in your mean and variance. Divide by "
     "the number of real tokens.",
     "你把填充设成了 0，但它们仍然作为 0 计入了平均值和方差。应当除以真正的词元的个数。",
     "if k -> && zip(x.tolist(), -> zip((x * mask).tolist(),"),
    ("Your result is not 0 where mask is 0.", "在 mask 为 0 的地方，你的结果不是 0。",
     "torch.where(mask, white, 0.0) -> white"),
    ("Your variance is the unbiased one (n - 1), torch's default. Divide by n: unbiased=False.",
     "你的方差是无偏的（除以 n - 1），那是 torch 的默认值。应当除以 n：unbiased=False。",
     "in real) / len(real) -> in real) / (len(real) - 1)"),
    ("You divide by the variance. Divide by its root.", "你除以了方差。应当除以它的平方根。",
     "** 0.5 ->"),
    ("You do not subtract the mean. (So Ziegler et al. whiten rewards, but not advantages.)",
     "你没有减去平均值。（Ziegler et al. 对奖励是这样做的，对优势不是。）", "x - mean -> x"),
    ("You only subtract the mean. Divide by the deviation, too.",
     "你只减了平均值，还要除以标准差。", "/ (variance + 1e-8) ** 0.5 ->"),
    ("You whiten each answer by itself. A bad answer must stay worse than a good one: take all "
     "answers together.",
     "你对每个回答单独做了白化。差的回答应当仍然比好的差：请把所有回答放在一起算。",
     "return -> "
     "return torch.cat([*map(written_out, x.split(1), mask.split(1))]) if len(x) > 1 else"),
    ("You divide by 0 when all advantages are equal: add 1e-8 to the variance.",
     "所有优势都相等时，你除以了 0：请给方差加上 1e-8。", "+ 1e-8 ->"),
    ("You divide by 0 when all advantages are equal: add 1e-8 to the variance.",
     "所有优势都相等时，你除以了 0：请给方差加上 1e-8。",
     "+ 1e-8 -> && torch.where(mask, white, 0.0) -> white * mask"),
]
