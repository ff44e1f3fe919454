import itertools

import torch

import model
from model import positions

NAME = "may_look"
COLUMNS = ["val_loss"]
ZH = """
6. 因果掩码与填充

语言模型预测下一个词元（token）。所以一个词元可以看自己和前面的词元，绝不能看后面的：
那等于偷看答案。这就是因果掩码（causal mask）。

一批提示（prompt）有长有短。短的在前面填充（padding），于是所有提示都在同一处结束，
回答从那里开始。任何词元都不能看填充。位置也只数真正的词元：
同一个提示，前面有没有填充，回答都一样。

例：一行是填充、a、b、c：mask [0, 1, 1, 1]

    look    填充  a  b  c         positions  [0, 0, 1, 2]
    填充      0   0  0  0
    a         0   1  0  0
    b         0   1  1  0
    c         0   1  1  1

这个注意力掩码的第 t 行，说明第 t 个词元可以看哪里。填充的位置是几都无所谓；
请写 0，因为嵌入（embedding）没有第 -1 行。
"""


def answer(mask):
    pos, bias = positions(0, mask.size(1), mask, mask.device, torch.float32)
    return bias[:, 0] == 0, pos


def install(function):
    """Where a text is read from its first token on; in training nothing is padded."""
    def all_positions(past, T, mask, device, dtype):
        if past:
            return positions(past, T, mask, device, dtype)
        look, pos = function(torch.ones(1, T, dtype=torch.long) if mask is None else mask)
        bias = torch.zeros(look.shape, dtype=dtype).masked_fill_(~look.bool(),
                                                                 torch.finfo(dtype).min)
        return pos[0] if mask is None else pos, bias[:, None]

    model.positions = all_positions


RUN = "pretrain.py", install, "--steps=200 --warmup=20 --eval_every=40 --eval_rows=32"


def cases():
    yield torch.tensor([[0, 1, 1, 1]]),
    yield torch.tensor([[1, 1, 1, 1, 1]]),
    yield torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1]]),


def written_out(mask):
    look = torch.zeros(*mask.shape, mask.size(1), dtype=torch.bool)
    for b, t, s in itertools.product(*map(range, look.shape)):
        look[b, t, s] = s <= t and mask[b, s] == 1
    pos = mask.cumsum(1) - 1
    return look, pos.clamp(min=0)


MISTAKES = [
    ("Your tokens look into the future: row t is the token that looks, tril() is the past.",
     "你的词元在看后面：第 t 行是正在看的词元，前面的部分是 tril()。", "s <= t -> s >= t"),
    ("A token does not see itself. It may: it predicts the next token, not itself.",
     "词元看不到自己。它可以看自己：它预测的是下一个词元，不是自己。", "s <= t -> s < t"),
    ("A token sees the next one, too: that is the answer. It may see itself, but nothing later.",
     "词元还看到了下一个词元，那正是答案。最多只能看到自己。", "s <= t -> s <= t + 1"),
    ("The causal mask is missing: all tokens see the later ones.",
     "缺了因果掩码：每个词元都能看到后面的词元。", "s <= t and ->"),
    ("Padding can be seen. Combine the causal mask with mask[:, None, :].",
     "填充被看到了。请把因果掩码和 mask[:, None, :] 合在一起。", "and mask[b, s] == 1 ->"),
    ("You close the rows of padding, not its columns. Columns are what is looked at, and padding "
     "must not be seen.",
     "你遮住的是填充所在的行，不是列。列才是被看的词元，填充不能被看到。",
     "mask[b, s] -> mask[b, t]"),
    ("Your positions count padding: the first real token has the position 0.",
     "你的位置把填充也数进去了：第一个真正的词元，位置是 0。",
     "mask.cumsum(1) - 1 -> torch.arange(mask.size(1)).expand_as(mask)"),
    ("Your positions begin at 1. Count from 0.", "你的位置从 1 开始。应当从 0 开始。",
     "mask.cumsum(1) - 1 -> mask.cumsum(1)"),
    ("The positions of padding are -1, a row that an embedding does not have. Make them 0.",
     "填充的位置成了 -1，嵌入里没有这一行。请改成 0。", ".clamp(min=0) ->"),
]
