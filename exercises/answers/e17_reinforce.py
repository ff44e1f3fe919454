import torch

NAME = "reinforce_loss"
RUN = None
ZH = """
17. 带基线的 REINFORCE

模型采样出几个回答，每个回答得到一个分数（score）。怎样的损失能使平均分数上升？
分数没有梯度：它只是别人给的一个数。但回答的概率有梯度，而且

    E[score] 的梯度 = E[ score x log p(回答) 的梯度 ]                  （Williams 1992）

所以，每个回答都把自己的 log p 往上推，分数越高，推得越用力；log p 是各个词元（token）之和。
如果分数全是正的，每次都往上推，真正有用的只是分数之间的差别。
从分数中减去一个基线（baseline）b，期望不变，噪声却小得多，条件是 b 与这个回答自己无关。
同一个提示有 k 个回答时，基线取其他 k - 1 个的平均分数（Ahmadian et al. 2024，RLOO）：

    b_i = 其他回答的平均分数          loss = -对 i 取平均：(score_i - b_i) log p_i

GRPO 的基线是全部 k 个的平均值；PPO 的基线由评论家给出，每个词元都有一个。

例：scores [1, 0, 0] -> b [0, 0.5, 0.5]；log p 为 [-2, -1, -3] 时，
    损失为 0：-(-2 + 0.5 + 1.5) / 3。
"""


def answer(logp, mask, scores):
    """A test compares its mean over all samples with the gradient of the expected score."""
    baseline = (scores.sum() - scores) / (len(scores) - 1)
    return -((scores - baseline) * (logp * mask).sum(1)).mean()


def cases():
    for k, T, shift in ((4, 6, 0.0), (2, 3, 3.0), (5, 8, -1.0)):
        first, last = torch.randint(1, T, (2, k, 1)).sort(0)[0]
        place = torch.arange(T)
        mask = (place >= first) & (place <= last)
        yield (-torch.rand(k, T) - 0.1).requires_grad_(), mask, torch.randn(k) + shift


MISTAKES = [
    ("The sign is missing: the optimizer makes the loss small, and the mean score must rise.",
     "漏了负号：优化器使损失变小，而平均分数应当上升。", "return -( -> return ("),
    ("There is no baseline: if all scores are high, every answer is pushed up.",
     "没有基线：分数都很高时，每个回答都被往上推。", "scores - baseline -> scores"),
    ("Your baseline is the mean of all scores, with the answer's own (GRPO's). Then the gradient is "
     "too small by (k - 1) / k: leave the own score out.",
     "你的基线是全部分数的平均值，包含了这个回答自己的（GRPO 的做法）。"
     "这样梯度只有应有的 (k - 1) / k：应当去掉自己的分数。",
     "(scores.sum() - scores) / (len(scores) - 1) -> scores.mean()"),
    ("Your baseline divides by k. It is the mean of k - 1 scores.",
     "你的基线除以了 k。它是 k - 1 个分数的平均值。", "(len(scores) - 1) -> len(scores)"),
    ("You subtract the sum of the others' scores. Divide it by k - 1.",
     "你减去的是其他分数之和。应当再除以 k - 1。", "/ (len(scores) - 1) ->"),
    ("You divide by the deviation, too, as GRPO does. Here only subtract.",
     "你还除以了标准差，那是 GRPO 的做法。这里只减去基线。",
     "(scores - baseline) -> ((scores - baseline) / scores.std())"),
    ("You do not use the mask: the prompt and the padding count, too.",
     "你没有用 mask：提示和填充也被算进去了。", "logp * mask -> logp"),
    ("You take the mean over an answer's tokens. log p of an answer is the sum.",
     "你对回答的词元取了平均。回答的 log p 是各个词元之和。",
     "(logp * mask).sum(1) -> (logp * mask).sum(1) / mask.sum(1)"),
    ("You use the probability. The gradient of log p is right: with p, improbable answers would "
     "teach nothing.",
     "你用的是概率 p。应当用 log p：如果用 p，概率小的回答几乎不起作用。",
     "(logp * mask).sum(1) -> (logp * mask).sum(1).exp()"),
    ("You add up over the answers. Take the mean.", "你对各个回答求了和。应当取平均值。",
     ".mean() -> .sum()"),
    ("You divide by all tokens. Each answer counts the same: divide by k.",
     "你除以了全部词元的个数。每个回答的权重相同：应当除以 k。", ".mean() -> .sum() / mask.sum()"),
    ("The values are right, but no gradient reaches logp: no .detach() and no torch.no_grad().",
     "数值对了，但梯度传不到 logp：不要用 .detach() 或 torch.no_grad()。",
     "(logp * mask) -> (logp * mask).detach()"),
]
