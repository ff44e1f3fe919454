import math

import torch

import evaluate

NAME = "best_of_n"
RUN = None
ZH = """
24. n 选优（best of n），以及它离模型有多远

采样 n 个回答，留下分数最高的一个。这不需要训练，是衡量各种训练方法的标尺。
它离采样所用的模型有多远，即 KL 是多少奈特（nat）？

假设一共只有 K 个不同的回答，按分数从高到低排好，模型给出第 i 个的概率是 p_i。
如果 n 个样本都是第 i 个或更差的，其中最好的也就是第 i 个或更差的：

    W_i = p_i + p_{i+1} + ... + p_K            q_i = W_i^n - W_{i+1}^n            (W_{K+1} = 0)

q 是 n 选优的分布；它离模型的距离是 KL = sum q_i log(q_i / p_i)。
如果回答非常多，每一个的概率都很小，求和就变成积分，而且不再与 p 有关：

    KL -> log n - (n - 1) / n                                               （log 都是自然对数）

Stiennon et al. 2020 和 Gao et al. 2022 用的就是这个数；它不会小于真正的 KL。
例：p [0.5, 0.5]，n 2 -> q [0.75, 0.25]，KL 0.131，极限 0.193。
"""


def answer(p, n):
    """The limit is evaluate.py's. A test counts q in all K^n outcomes."""
    worse = p.flip(0).cumsum(0).flip(0)                               # this answer or a worse one
    q = worse**n - (worse - p).clamp(min=0)**n
    limit, = evaluate.best_of(torch.zeros(1, n), None, [n])
    return q, (q * (q / p).log()).sum(), limit["kl"]


def cases():
    for K, n in ((2, 2), (4, 3), (6, 4), (3, 16), (5, 1)):
        yield torch.rand(K, dtype=torch.float64).add(0.2).softmax(0), n


MISTAKES = [
    ("You keep the worst of n: the best answer comes first in p, so add up from the other end.",
     "你留下的是最差的一个：p 里最好的在前，请从另一端累加。",
     "p.flip(0).cumsum(0).flip(0) -> p.cumsum(0)"),
    ("Your q is the chance that answer i is among the n samples. It must also be the best of them.",
     "你的 q 是第 i 个回答出现在 n 个样本里的概率。它还必须是其中最好的。",
     "worse**n - (worse - p).clamp(min=0)**n -> 1 - (1 - p)**n"),
    ("Your q is W_i^n: the chance that the best is i or worse. Subtract W_{i+1}^n.",
     "你的 q 是 W_i^n：那是最好的为第 i 个或更差的概率。还要减去 W_{i+1}^n。",
     "- (worse - p).clamp(min=0)**n ->"),
    ("Your q is p_i^n, scaled: the chance that all samples are equal.",
     "你的 q 是归一化之后的 p_i^n：那是所有样本都相同的概率。",
     "worse**n - (worse - p).clamp(min=0)**n -> p**n / (p**n).sum()"),
    ("Your KL has the two distributions swapped: the samples come from q, so it is sum q log(q / "
     "p).",
     "KL 里的两个分布反了：样本来自 q，所以是 sum q log(q / p)。", "q * (q / p) -> p * (p / q)"),
    ("Your KL weighs the logarithms by p. The samples come from q.",
     "你用 p 给对数加权。样本来自 q。", "q * (q / p) -> p * (q / p)"),
    ("Your KL is in bits. Use the natural logarithm.", "你的 KL 以比特为单位。请用自然对数。",
     ".log()).sum() -> .log2()).sum()"),
    ("Your limit is log n. Subtract (n - 1) / n.", "你的极限是 log n。还要减去 (n - 1) / n。",
     'limit["kl"] -> math.log(n)'),
    ("Your limit subtracts 1 / n. It is (n - 1) / n: for n = 1 the KL is 0.",
     "你的极限减的是 1 / n。应为 (n - 1) / n：n = 1 时 KL 为 0。",
     'limit["kl"] -> math.log(n) - 1 / n'),
]
