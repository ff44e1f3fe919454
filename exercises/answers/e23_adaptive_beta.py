NAME = "adapt"
RUN = None                            # rlhf_ppo.py keeps beta fixed: docs/ppo-details.md says why
ZH = """
23. 自适应的 beta

beta 是一个 nat 的 KL 的价格。价格定多少很难猜，KL 应当是多少却容易说。所以 Ziegler et al. 2019（2.2
节）给 KL 定一个目标 target，让控制器 controller 去找 beta。每一轮之后：

    error = clip(KL / target - 1, -0.2, 0.2)
    beta  <- beta (1 + error n / horizon)

n 是这一轮的回答个数，horizon 表示控制器在多少个回答之内慢慢调整（他们的代码中为 10000）。KL 高于目
标，偏离就变贵，否则变便宜。用乘法更新，beta 无论大小，每次变化的比例都相同；截断 clip 则避免一轮异
常的结果把它打乱。

例：beta .1，KL 9，target 6，n 500，horizon 10000 -> error .2（被截断），beta .101。
"""


def answer(beta, kl, target, n, horizon):
    """A test lets it steer a KL that falls with beta, until the target is reached."""
    error = min(max(kl / target - 1, -0.2), 0.2)
    return beta * (1 + error * n / horizon)


def cases():
    for kl in (6.6, 5.7, 9.0, 1.0, -0.1, 6.0):
        yield 0.1, kl, 6.0, 500, 10000
    yield 2.0, 2.1, 2.0, 64, 1000
    yield 0.05, 40.0, 2.0, 256, 1000


MISTAKES = [
    ("The wrong direction: above its target the KL must become more expensive, so beta must grow. "
     "This controller runs away.",
     "方向反了：KL 高于目标时偏离应当变贵，beta 应当增大。你的控制器会越走越远。",
     "1 + error -> 1 - error"),
    ("The error is not clipped: one iteration with a very large KL throws beta over.",
     "误差没有截断：一轮里 KL 特别大，就会把 beta 打乱。",
     "min(max(kl / target - 1, -0.2), 0.2) -> kl / target - 1"),
    ("You clip KL / target to ±0.2. Subtract 1 first: at the target the error is 0.",
     "你把 KL / target 截断到 ±0.2。应当先减 1：在目标处误差为 0。",
     "kl / target - 1 -> kl / target"),
    ("Your error is KL - target, in nats. Divide by the target: the error is a share.",
     "你的误差是 KL - target，单位是 nat。应当再除以 target：误差是比例。",
     "kl / target - 1 -> kl - target"),
    ("You add to beta. Multiply: else a small beta becomes negative, and a large one hardly moves.",
     "你用的是加法。应当用乘法：否则小的 beta 会变成负数，大的几乎不动。",
     "beta * (1 + error -> beta + (error"),
    ("You left out n / horizon: beta changes far too fast, and swings around the target.",
     "你漏了 n / horizon：beta 变得太快，会在目标附近来回摆动。", "* n / horizon ->"),
    ("You left out n: iterations with many answers count more.",
     "你漏了 n：回答多的一轮应当起更大的作用。", "* n / horizon -> / horizon"),
    ("You return the factor. Multiply beta by it.", "你返回的是系数，还要乘以 beta。",
     "beta * (1 -> (1"),
    ("You clip after the multiplication with n / horizon. Clip the error itself.",
     "你在乘 n / horizon 之后才截断。应当截断误差本身。",
     "kl / target - 1 -> (kl / target - 1) * n / horizon && error * n / horizon -> error"),
]
