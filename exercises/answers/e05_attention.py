import math

import torch
import torch.nn.functional as F

import model
from model import attention as answer

NAME = "attention"
COLUMNS = ["val_loss"]
ZH = """
5. 注意力

每个词元（token）提出一个查询（query）q，同时提供一个键（key）k 和一个值（value）v。
查询与键的点积，表示两者有多匹配。对所有键做 softmax，点积就变成权重，权重之和是 1；
输出是值的加权平均：

    attention = softmax(q k^T / sqrt(D) + bias) v          （Vaswani et al. 2017，式 1）

D 是一个注意力头（head）的宽度。如果不除以 sqrt(D)，点积会随 D 变大，
softmax 把权重几乎全放在一个键上，梯度也就几乎消失。

bias 是注意力掩码：可以看的地方是 0，不可以看的地方是 -inf，因为 exp(-inf) = 0。
怎样得到它，是练习 6。

形状：B 行，H 个头，T 个查询，S 个键。B x H 组乘法一次做完：@ 只乘最后两维。
例：所有的键都相同时，每个输出都是值的平均。
"""


def install(function):
    """In the place of both PyTorch's kernel and the formula, which the model chooses from."""
    def attention(q, k, v, bias=None, dropout=0.0):
        T, S = q.size(-2), k.size(-2)
        causal = torch.full((T, S), -math.inf, dtype=q.dtype).triu(S - T + 1)
        return function(q, k, v, causal if bias is None else bias)

    model.attention, model.fused_is_faster = attention, lambda q: False


RUN = "pretrain.py", install, "--steps=200 --warmup=20 --eval_every=40 --eval_rows=32"


def cases():
    def tensors(*sizes):
        return [torch.randn(sizes[0], sizes[1], n, sizes[2], requires_grad=True)
                for n in sizes[3:]]
    yield *tensors(2, 3, 4, 5, 6, 6), torch.zeros(5, 6)
    yield *tensors(2, 2, 8, 5, 5, 5), torch.full((5, 5), -math.inf).triu(1)
    padding = torch.tensor([[0.0] * 4, [-math.inf, -math.inf, 0, 0]])[:, None, None, :]
    yield *tensors(2, 2, 6, 4, 4, 4), padding.expand(2, 1, 4, 4)


def written_out(q, k, v, bias):
    H, D = q.size(1), q.size(-1)
    products = torch.matmul(q, k.mT)
    return F.softmax(products / D ** 0.5 + bias, dim=-1) @ v


MISTAKES = [
    ("You forgot to divide by sqrt(D).", "你忘了除以 sqrt(D)。", "/ D ** 0.5 ->"),
    ("You divide by D. Divide by its square root.", "你除以了 D。应当除以 D 的平方根。",
     "D ** 0.5 -> D"),
    ("You divide by the root of the whole width, H D. D is the width of one head.",
     "你除以了整个宽度 H D 的平方根。D 是一个头的宽度。", "D ** 0.5 -> (H * D) ** 0.5"),
    ("Your softmax goes over the queries. For every query, the weights of the keys add up to 1: "
     "dim=-1.",
     "你的 softmax 是对查询做的。对每个查询，各个键的权重之和为 1：dim=-1。", "dim=-1 -> dim=-2"),
    ("You do not use bias: every token sees all others, the later ones and padding, too.",
     "你没有用 bias：每个词元都能看到所有别的词元，包括后面的词元和填充。", "+ bias ->"),
    ("You hide keys after the softmax: the weights then add up to less than 1. Add bias before it.",
     "你在 softmax 之后才遮住键，权重之和就小于 1。应当在 softmax 之前加上 bias。",
     "+ bias, dim=-1) -> , dim=-1).masked_fill(bias < 0, 0)"),
    ("You divide by sqrt(D) after the softmax. Divide the products, before it.",
     "你在 softmax 之后才除以 sqrt(D)。点积应当先除以它，再做 softmax。",
     "/ D ** 0.5 -> && @ v -> @ v / D ** 0.5"),
    ("You return the weights. Multiply them by the values.",
     "你返回的是权重。还要乘以值 v。", "@ v ->"),
    ("The gradient does not reach q, k and v: no .detach() or .data on the way.",
     "梯度传不到 q、k、v：中间不要用 .detach() 或 .data。",
     "(q, k.mT) -> (q, k.mT).detach() && @ v -> @ v.detach()"),
]
