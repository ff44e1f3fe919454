import torch

import model
from model import GPTConfig, rotary_turns, rotate

NAME = "rope"
COLUMNS = ["val_loss"]
ZH = """
7. 旋转位置编码（RoPE）

注意力本身不知道词元（token）的先后。RoPE（Su et al. 2021，式 34）旋转查询和键，
把位置告诉注意力。一个注意力头的 D 个数，分成 D/2 对相邻的数：(x[0], x[1])、(x[2], x[3])……
每一对是平面上的一个点。在位置 m，第 i 对转过的角度 angle 是

    angle = m * theta ** (-2 i / D)                           i = 0, 1, … D/2 - 1
    (a, b) -> (a cos(angle) - b sin(angle),  a sin(angle) + b cos(angle))

第一对转得快，最后一对转得慢，就像钟表的指针。于是，位置 m 的查询与位置 n 的键，
点积只取决于 m - n：只看距离，不看在哪里。

例：D = 2，位置 0：不转。位置 1：x = [1, 0] -> [cos 1, sin 1] = [0.54, 0.84]。

x[..., 0::2] 是各对的第一个数。torch.stack(…, dim=-1).flatten(-2) 让各对回到原来的次序。
"""


def answer(x, pos, theta):
    config = GPTConfig(n_embd=x.size(-1), n_head=1, n_kv_head=1, rope_theta=theta)
    return rotate(x, rotary_turns(pos, config))


def install(function):
    model.rotary_turns = lambda pos, config: (pos, config.rope_theta)
    model.rotate = lambda x, turns: function(x, *turns)


RUN = "pretrain.py", install, "--steps=200 --warmup=20 --eval_every=40 --eval_rows=32"


def cases():
    for D, theta in ((2, 10.0), (4, 10.0), (6, 20.0)):
        yield torch.randn(2, 2, 4, D, requires_grad=True), torch.arange(4), theta
    yield torch.randn(1, 2, 3, 4), torch.tensor([5, 1, 3]), 10.0


def written_out(x, pos, theta):
    D, out = x.size(-1), torch.empty_like(x)
    for i in range(D // 2):
        a, b = 2 * i, 2 * i + 1
        turn = pos * theta ** (-2 * i / D)
        out[..., a] = x[..., a] * turn.cos() - x[..., b] * turn.sin()
        out[..., b] = x[..., a] * turn.sin() + x[..., b] * turn.cos()
    return out


MISTAKES = [
    ("You pair x[i] with x[i + D/2], as LLaMA on Hugging Face does. Here neighbours are pairs. "
     "Both learn well, but a model trained with one does not work with the other.",
     "你把 x[i] 和 x[i + D/2] 配成一对，Hugging Face 上的 LLaMA 就是这样。"
     "这里是相邻的两个数配成一对。两种都能学好，但用一种训练的模型，不能换用另一种。",
     "2 * i, 2 * i + 1 -> i, i + D // 2"),
    ("You turn in the other direction: a cos - b sin, a sin + b cos.",
     "你转的方向反了：a cos - b sin，a sin + b cos。", "pos * -> -pos *"),
    ("This is no rotation: exactly one of the four products has a minus.",
     "这不是旋转：四个乘积里恰好有一个带负号。", "- x[..., b] -> + x[..., b]"),
    ("The 2 is missing in the exponent: -2 i / D.", "指数里漏了 2：-2 i / D。", "-2 * i -> -i"),
    ("The minus is missing in the exponent: later pairs must turn more slowly.",
     "指数里漏了负号：越往后的对应当转得越慢。", "-2 * i -> 2 * i"),
    ("All pairs turn equally fast. Pair i turns by theta ** (-2 i / D) per position.",
     "所有的对转得一样快。第 i 对每走一个位置转 theta ** (-2 i / D)。",
     "theta ** (-2 * i / D) -> 1.0"),
    ("You count pairs from 1. The first pair is i = 0: it turns by 1 per position.",
     "你从 1 开始数对。第一对是 i = 0：每走一个位置转 1。", "-2 * i -> -2 * (i + 1)"),
    ("You put all first numbers before all second ones. Bring the pairs back into their order.",
     "你把所有对的第一个数排在了所有第二个数的前面。应当让各对回到原来的次序。",
     "out[..., a] -> out[..., i] && out[..., b] -> out[..., i + D // 2]"),
    ("You use 0, 1, 2, … instead of pos. A token may stand anywhere.",
     "你用了 0, 1, 2, …，没有用 pos。词元可以在任何位置。", "pos * -> torch.arange(len(pos)) *"),
]
