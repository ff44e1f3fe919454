import torch

NAME = "micro_losses"
RUN = None
ZH = """
11. 梯度累积

一大批数据放不进内存，就分成 K 个微批（micro-batch）。每个微批各做一次前向和反向传播，
梯度在权重里累加，然后优化器才走一步。累加的结果必须等于整批的梯度。
整批的损失，是所有计入的词元（token）的平均值：

    loss = 所有计入的词元的损失之和 / 计入的词元的个数

回答有长有短，所以各个微批里计入的词元有多有少。“平均值的平均值”是另一个数：
在小的微批里，一个词元的权重会更大。

请写出每个微批的损失。程序依次对它们调用 backward()；它们的总和就是上面的 loss。

例：一个微批的损失是 [1, 2, 3]，另一个是 [4]（其余不计入）
    -> [1.5, 1.0]，总和 2.5。“平均值的平均值”则是 (2 + 4) / 2 = 3。
"""


def answer(nats, mask):
    """As in sft.py's loop: the sum of a micro-batch, divided by the count of the whole batch."""
    return torch.stack([(part * counts).sum() for part, counts in zip(nats, mask)]) / mask.sum()


def cases():
    for K, B, T in ((2, 1, 4), (3, 2, 5), (4, 2, 3)):
        mask = torch.rand(K, B, T) < 0.5
        mask[:, 0, 0] = True                          # every micro-batch has a counted token
        mask[0] = True
        mask[1, :, 1:] = False
        yield torch.rand(K, B, T, requires_grad=True), mask


MISTAKES = [
    ("You take the mean of the means: a token in a small micro-batch then weighs more. Divide each "
     "sum by the number of counted tokens in the whole batch.",
     "你取的是平均值的平均值：在小的微批里，一个词元的权重更大。"
     "每个总和都应当除以整批中计入的词元的个数。",
     ".sum() for -> .sum() / counts.sum() for && / mask.sum() -> / len(mask)"),
    ("Your gradient is K times too large: the means of K micro-batches add up to K means.",
     "你的梯度是应有的 K 倍左右：你把 K 个微批的平均值加了起来。",
     ".sum() for -> .sum() / counts.sum() for && / mask.sum() ->"),
    ("You divide by K as well. The count of the whole batch is enough.",
     "你还多除了一个 K。除以整批中计入的词元的个数就够了。",
     "/ mask.sum() -> / mask.sum() / len(mask)"),
    ("You divide by all tokens. Only those where mask is 1 are counted.",
     "你除以了全部词元的个数。只数 mask 为 1 的。", "mask.sum() -> mask.numel()"),
    ("The tokens where mask is 0 are in your sum.", "mask 为 0 的词元也进了你的总和。",
     "part * counts -> part"),
    ("You do not use the mask at all: padding and prompts count.",
     "你完全没有用 mask：填充和提示也算进去了。",
     "part * counts -> part && mask.sum() -> mask.numel()"),
    ("You do not divide: the gradient grows with the batch.",
     "你没有做除法：一批越大，梯度就越大。", "/ mask.sum() ->"),
    ("The gradient does not reach nats: no .item(), .detach() or torch.tensor(…) on the way.",
     "梯度传不回输入：中间不要用 .item()、.detach() 或 torch.tensor(…)。",
     "part * counts -> part.detach() * counts"),
]
