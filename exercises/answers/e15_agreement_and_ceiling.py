import math

import torch

import compare

NAME = "agreement_and_ceiling"
RUN = None
ZH = """
15. Bradley–Terry 模型：一致率与上限

两个人给同样的两个回答排序，意见常常不同。Bradley–Terry 模型说明这有多常见。
gap 是第一个回答实际上好多少；noise 是标注的噪声，越大，判断越随意：

    p = P(一位标注者把第一个回答排在第二个之前) = sigmoid(gap / noise)

两位标注者都把第一个排在前面，或者都把第二个排在前面，才算意见一致。
上限（ceiling）是奖励模型在这种标签上能达到的最高准确率：
即使它知道哪个回答真的更好，标签也只以 max(p, 1 - p) 的概率与它相同。

两个数都是对许多配对取的平均值。gap 可以是负数。
例：只有一个配对，gap 为 1，noise 为 1，则 p = 0.731。
两位标注者的一致率是 0.731^2 + 0.269^2 = 60.7%，上限是 73.1%。
（InstructGPT 的标注者，一致率是 73%；compare.py 设定的噪声，使我们的也是 73%。）
"""


def answer(gaps, noise):
    return compare.agreement(gaps.numpy(), noise), compare.ceiling(gaps.numpy() / noise)


def cases():
    for noise in (0.5, 1.0, 2.0, 3.0):
        yield 2 * torch.randn(8, dtype=torch.float64), noise
    yield torch.tensor([1.0], dtype=torch.float64), 1.0


def written_out(gaps, noise):
    agree = best = 0
    for gap in gaps.tolist():
        p = 1 / (1 + math.exp(-gap / noise))
        agree += p * p + (1 - p) * (1 - p)
        best += max(p, 1 - p)
    return agree / len(gaps), best / len(gaps)


MISTAKES = [
    ("Your agreement is p^2. Two labelers also agree when both rank the second answer first.",
     "你的一致率是 p^2。两位标注者都把第二个回答排在前面时，也是一致的。",
     "+ (1 - p) * (1 - p) ->"),
    ("Your agreement is p: that is one labeler and the truth. Here two labelers are compared, and "
     "each has noise.",
     "你的一致率是 p：那是一位标注者与真实顺序一致的概率。这里比较的是两位，各有各的噪声。",
     "p * p + (1 - p) * (1 - p) -> p"),
    ("Your agreement is max(p, 1 - p): that is the ceiling. Two labelers with noise agree less "
     "often.",
     "你的一致率是 max(p, 1 - p)：那是上限。两位都有噪声的标注者一致的时候更少。",
     "p * p + (1 - p) * (1 - p) -> max(p, 1 - p)"),
    ("Your ceiling is the mean of p. Where the gap is negative, the second answer is better, and a "
     "perfect model says so: max(p, 1 - p).",
     "你的上限是 p 的平均值。gap 为负时第二个回答更好，完美的模型知道这一点：应为 max(p, 1 - p)。",
     "best += max(p, 1 - p) -> best += p"),
    ("Your ceiling is sigmoid of the mean |gap|. Take the mean of the probabilities, not the "
     "probability of the mean.",
     "你的上限是平均 |gap| 的 sigmoid。应当对概率取平均，而不是先对 gap 取平均。",
     "best / len(gaps) -> 1 / (1 + math.exp(-abs(gaps).mean() / noise))"),
    ("You multiply by the noise. More noise means less agreement: divide by it.",
     "你乘以了 noise。噪声越大，一致率应当越低：请除以它。", "-gap / noise -> -gap * noise"),
    ("You left out the noise: p = sigmoid(gap / noise).",
     "你漏了 noise：p = sigmoid(gap / noise)。", "-gap / noise -> -gap"),
    ("You have swapped the two numbers: the agreement comes first, then the ceiling.",
     "两个数的顺序反了：一致率在前，上限在后。",
     "agree / len(gaps), best / len(gaps) -> best / len(gaps), agree / len(gaps)"),
]
