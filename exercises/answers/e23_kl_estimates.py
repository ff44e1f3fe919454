import torch

NAME = "kl_estimates"
RUN = None
ZH = """
23. KL 散度的三种估计

策略 pi 离参考模型有多远？KL = E[log pi(x) - log pi_ref(x)]，即对 pi 写出的文本 x 求期望。
所有文本无法一一列出，所以只能对样本取平均。
Schulman（“Approximating KL divergence”，2020）比较了每个样本的三个数，
其中 r = pi_ref(x) / pi(x)：

    k1 = -log r             期望就是 KL，但单个样本可能为负，方差也大
    k2 = (log r)^2 / 2      从不为负，方差较小，期望略有偏差
    k3 = r - 1 - log r      期望就是 KL，而且从不为负

为什么 k3 的期望是对的？对 pi 的样本，r 的期望是 1，所以 r - 1 的期望为 0。
PPO 的惩罚用 k1（练习 18），beta 是每奈特 KL 的惩罚系数；rlhf_ppo.py 显示的 approxkl 是 k3。

例：logp -1，ref_logp -2 -> r = e^-1，k1 = 1，k2 = 0.5，k3 = 0.368 - 1 + 1 = 0.368。
"""


def answer(logp, ref_logp):
    """Their sums are those of rlhf_ppo.py: a test compares them."""
    log_r = ref_logp - logp
    return -log_r, log_r**2 / 2, log_r.exp() - 1 - log_r


def cases():
    for far in (0.2, 1.0, 3.0):
        yield -3 * torch.rand(8), -3 * torch.rand(8) * far


MISTAKES = [
    ("Your r is upside down: pi_ref above, pi below, because the samples are pi's.",
     "你的 r 上下颠倒了：pi_ref 在上，pi 在下，因为样本来自 pi。",
     "ref_logp - logp -> logp - ref_logp"),
    ("Your k1 has the wrong sign: it is log pi - log pi_ref, whose mean is not negative.",
     "k1 的符号反了：应为 log pi - log pi_ref，它的期望不为负。",
     "return -log_r -> return log_r"),
    ("Your k1 is |log r|. It must be allowed to be negative: otherwise its mean is too large.",
     "你的 k1 取了绝对值。它应当可以为负，否则期望偏大。", "return -log_r -> return log_r.abs()"),
    ("Your k2 lacks the factor 1/2.", "k2 漏了系数 1/2。", "log_r**2 / 2 -> log_r**2"),
    ("Your k3 has r upside down: exp(ref_logp - logp), because the samples are pi's.",
     "k3 里的 r 上下颠倒了：应为 exp(ref_logp - logp)，因为样本来自 pi。",
     "log_r.exp() - 1 - log_r -> (-log_r).exp() - 1 + log_r"),
    ("Your k3 has r upside down, but not log r: then it can be negative.",
     "k3 里的 r 上下颠倒了，log r 却没有：这样，它可能为负。", "log_r.exp() -> (-log_r).exp()"),
    ("Your k3 adds log r. It is r - 1 - log r.", "k3 里应当减去 log r：r - 1 - log r。",
     "- 1 - log_r -> - 1 + log_r"),
    ("Your k3 lacks the -1: then its mean is 1 + KL.", "k3 漏了 -1：这样，它的期望是 1 + KL。",
     "- 1 - log_r -> - log_r"),
    ("You return the means. Return the numbers of each sample.",
     "你返回了平均值。请返回每个样本的数。",
     "return -> return tuple(k.mean() for k in ( && - 1 - log_r -> - 1 - log_r))"),
]
