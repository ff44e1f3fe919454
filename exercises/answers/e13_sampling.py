import torch

import answer as sampling
from answer import sample as ours

NAME = "sample"
COLUMNS = ["objective/score", "ppo/policy/approxkl"]     # large if sampling and scoring disagree
ZH = """
13. 采样与 top-p（核采样）

写一个词元（token），就是按模型的概率抽一个。有两个数，可以让选择不那么随意。

温度（temperature）：logits 要除以它。小于 1 时，概率大的词元更容易抽到；
大于 1 时，各个词元的概率更接近。

top-p（Holtzman et al. 2019）切掉尾巴：那里有成千上万个概率很小的词元，
单个很少见，合起来却不少。它只留下概率最大的几个词元，越少越好，但概率之和至少是 p。
使总和达到 p 的那个词元也留下，所以至少留一个。这里的概率，是除以温度之后的概率。
然后在留下的词元里，按各自的概率抽一个。

例：概率 [0.5, 0.3, 0.15, 0.05]，p = 0.7  ->  留下词元 0 和 1，抽到的概率是 5/8 和 3/8
    p = 0.85 -> 词元 0、1、2

sort(descending=True) 给出排好的值和原来的位置；scatter 把结果放回原来的位置。
torch.multinomial 按概率抽取。每一行各有自己的切点。
"""


def answer(logits, temperature, top_p):
    return ours(logits, temperature, top_p=top_p)


def install(function):
    sampling.sample = lambda logits, temperature=1.0, top_k=0, top_p=1.0, generator=None: function(
        logits, temperature, top_p) if temperature else logits.argmax(-1)


RUN = ("rlhf_ppo.py", install, "--steps=6 --batch_size=64 --minibatch=32 --n_eval=64 "
       "--eval_every=3 --ptx_coef=0 --critic_first=0 --critic_lr=1 --lr=5e-4")
TRIES = 10_000     # a frequency is then right to .02


def cases():
    """logits (n, V), temperature, top_p."""
    logits = torch.tensor([[0.4, 0.3, 0.16, 0.1, 0.04], [0.05, 0.15, 0.1, 0.5, 0.2]]).log()
    yield logits, 1.0, 0.999                          # all of them: 1 would be a matter of rounding
    yield logits, 0.5, 0.999
    yield logits, 1.0, 0.6
    yield logits, 2.0, 0.6
    yield logits, 0.5, 0.9
    yield logits, 1.0, 0.2                            # the first token crosses p


def frequencies(function, logits, temperature, top_p):
    """How often each token comes, (n, V); None if the result has not the right form."""
    n, V = logits.shape
    ids = function(logits.repeat(TRIES, 1), temperature, top_p)
    if not isinstance(ids, torch.Tensor) or ids.shape != (n * TRIES,) or ids.is_floating_point():
        return None
    return torch.stack([torch.bincount(row, minlength=V) for row in ids.view(TRIES, n).T]) / TRIES


def close(found, right):
    return all((f - r).abs().max() < 0.03 for f, r in zip(found, right))


def check(function, lang):
    from exercises.__main__ import mistaken           # which reads this file
    found = [frequencies(function, *case) for case in cases()]
    hint = None
    if any(f is None for f in found):
        hint = FORM
    elif not close(found, [chances(*case) for case in cases()]):
        hint = next((hints for *hints, edits in MISTAKES if close(
            found, [mistaken(chances, edits)(*case) for case in cases()])), OTHER)
    return hint[lang == "zh"] if hint else ""


FORM = ("Return the ids in one tensor of shape (B,): torch.multinomial gives (B, 1), squeeze it.",
        "请把 ids 放在形状为 (B,) 的张量里返回：torch.multinomial 给出 (B, 1)，要用 squeeze。")
OTHER = ("The tokens do not come as often as they should: try logits = log [.4, .3, .16, .1, .04].",
         "各个词元出现的次数不对：请用 logits = log [0.4, 0.3, 0.16, 0.1, 0.04] 试一试。")


def chances(logits, temperature, top_p):
    """The probabilities with which tokens are drawn, (n, V)."""
    probs = (logits / temperature).softmax(-1)
    down, order = probs.sort(descending=True)
    before = down.cumsum(-1) - down
    down = down * (before < top_p)
    return probs.scatter(1, order, down / down.sum(-1, keepdim=True))


MISTAKES = [
    ("You drop the token that crosses p. It is kept: the sum must reach p.",
     "你去掉了使总和达到 p 的那个词元。它应当留下：总和要达到 p。",
     "before < top_p -> (before + down <= top_p) | (before == 0)"),
    ("You keep one token too many: stop as soon as the sum has reached p.",
     "你多留了一个词元：总和一达到 p，就该停。", "before < -> before - down.roll(1, 1) <"),
    ("You keep the tokens whose own probability is at least p. The sum from the top counts.",
     "你留下的是自身概率不小于 p 的词元。要看的是从大到小的累加和。",
     "before < top_p -> (down >= top_p) | (before == 0)"),
    ("You compare sorted probabilities, but cut unsorted ones: bring the mask back with scatter.",
     "你比较的是排好的概率，切的却是没排的：请用 scatter 把掩码放回原来的位置。",
     "= down * -> = probs * && probs.scatter(1, order, -> ("),
    ("You cut off the probable tokens and keep the tail: sort in descending order.",
     "你切掉了概率大的词元，留下了尾巴：请从大到小排序。", "descending=True -> descending=False"),
    ("You choose the tokens before the temperature. Divide the logits first.",
     "你在除以温度之前就选了词元。应当先除以温度。",
     "= down.cumsum(-1) - down -> = (cut := logits.softmax(1).gather(1, order)).cumsum(1) - cut"),
    ("You multiply by the temperature. Divide by it: below 1 it makes differences larger.",
     "你乘以了温度。应当除以它：小于 1 时，差别要变大。", "logits / -> logits *"),
    ("You do not use the temperature.", "你没有用温度。", "logits / temperature -> logits"),
    ("You do not use top_p: the tail can still be drawn.", "你没有用 top_p：尾巴还会被抽到。",
     "before < top_p -> before < 2"),
    ("You always take the most probable token. Draw one.",
     "你总是取概率最大的词元。应当按概率抽一个。",
     "before < top_p -> before == 0"),
    ("All tokens that are left are equally probable. Draw in proportion to their probabilities.",
     "留下的词元，抽到的机会都一样。应当按各自的概率来抽。",
     "down * (before < top_p) -> (before < top_p).float()"),
]
