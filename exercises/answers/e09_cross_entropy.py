import math

import torch
from torch.nn import functional as F

NAME = "cross_entropy"
COLUMNS = ["loss", "val_loss"]
ZH = """
9. 手写交叉熵

模型给词表（vocabulary）里的每个词元（token）一个数，叫 logit。softmax 把它们变成概率。
一个位置的损失，是接下来真正出现的词元的概率，取 -log：

    loss = -log softmax(logits)[target] = log(sum_v exp(logits_v)) - logits[target]

单位是奈特（nat）。整批的损失，是所有计入的位置的平均值。
目标（target）为 -1 的位置不计入：那是填充，或者用户的话。
它们既不在总和里，也不在除数里。

例：logits [0, 0]，target 1 -> log 2 = 0.693。再加一个 target 为 -1 的位置，结果不变。

logit 为 100 时，exp 超出 float32 的范围。请用 torch.logsumexp 或 log_softmax，
它们先减去最大的 logit。直接用 F.cross_entropy 等于抄答案：请自己写。
"""


def answer(logits, targets):
    return F.cross_entropy(logits, targets, ignore_index=-1)


def install(function):
    """In training; the held-out loss stays ours."""
    ours = F.cross_entropy

    def cross_entropy(logits, targets, reduction="mean", **more):
        if reduction == "mean":
            return function(logits, targets)
        return ours(logits, targets, reduction=reduction, **more)

    F.cross_entropy = cross_entropy


RUN = "pretrain.py", install, "--steps=200 --warmup=20 --eval_every=50 --eval_rows=32"


def cases():
    for targets in ([1, 0, 2], [3, -1, 0, -1, 4], [-1, 2], [0, 3]):
        yield torch.randn(len(targets), 5, requires_grad=True), torch.tensor(targets)
    yield torch.tensor([[0.0, 200.0, 30.0], [500.0, 0.0, 1.0]], requires_grad=True), torch.tensor(
        [2, 1])


def written_out(logits, targets):
    losses = [row.logsumexp(0) - row[t] for row, t in zip(logits, targets) if t >= 0]
    return sum(losses) / len(losses)


MISTAKES = [
    ("You divide by all positions. Those with target -1 count neither in the sum nor below.",
     "你除以了全部位置的个数。target 为 -1 的位置，总和与个数里都不算。",
     "/ len(losses) -> / len(targets)"),
    ("Positions with target -1 count: in Python, index -1 is the last token of the vocabulary.",
     "target 为 -1 的位置也算进去了：Python 里，下标 -1 是词表的最后一个词元。", "if t >= 0 ->"),
    ("Targets of 0 count, too: 0 is a token. Only -1 does not count.",
     "target 为 0 也要算：0 是一个词元。只有 -1 不算。", "t >= 0 -> t > 0"),
    ("You add the losses up. Take their mean.", "你把损失加起来了。应当取平均值。",
     "/ len(losses) ->"),
    ("The minus is missing: the loss is -log p.", "漏了负号：损失是 -log p。",
     "row.logsumexp(0) - row[t] -> row[t] - row.logsumexp(0)"),
    ("Your loss is in bits. Nats come from the natural logarithm.",
     "你的损失以比特为单位。用自然对数才是奈特。",
     "sum(losses) -> math.log2(math.e) * sum(losses)"),
    ("The softmax is missing: logits are not log-probabilities.",
     "漏了 softmax：logit 不是对数概率。", "row.logsumexp(0) - row[t] -> -row[t]"),
    ("You take the softmax twice: log_softmax wants logits, not probabilities.",
     "你做了两次 softmax：log_softmax 要的是 logit，不是概率。",
     "zip(logits, -> zip(logits.softmax(1),"),
    ("The logarithm is missing: you return -p, not -log p.",
     "漏了对数：你返回的是 -p，不是 -log p。", "row.logsumexp(0) - row[t] -> -row.softmax(0)[t]"),
    ("exp of a large logit is infinite. Use logsumexp or log_softmax.",
     "logit 很大时，exp 是无穷大。请用 logsumexp 或 log_softmax。",
     "row.logsumexp(0) -> row.exp().sum().log()"),
    ("log(softmax(x)) is -inf when a probability is rounded to 0. Use log_softmax.",
     "概率被舍入成 0 时，log(softmax(x)) 是 -inf。请用 log_softmax。",
     "row.logsumexp(0) - row[t] -> -row.softmax(0)[t].log()"),
]
