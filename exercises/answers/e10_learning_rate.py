import math
from types import SimpleNamespace

from pretrain import get_lr as answer

NAME = "get_lr"
RUN = "pretrain.py", "get_lr", "--steps=200 --warmup=20 --eval_every=40 --eval_rows=32"
COLUMNS = ["lr", "val_loss"]
ZH = """
10. 学习率调度 learning-rate schedule

学习率 learning rate 开始时要小：优化器对梯度的平均还很粗略。它在 warmup 步里线性上升，到其中最后
一步达到峰值。然后沿半个余弦下降，到 step = steps 时是峰值的百分之一：

    step < warmup：  lr * (step + 1) / warmup
    之后：           lr * (0.01 + 0.99 * (1 + cos(pi * done)) / 2)
                     done = (step - warmup) / (steps - warmup)，从 0 到 1

步数从 0 数起。+ 1 使最初一步的学习率大于 0：如果是 0，这一步就什么也学不到。

例：lr 1，warmup 2，steps 6  ->  第 0 到第 5 步：.5, 1, 1, .855, .505, .155
"""


def cases():
    for lr, warmup, steps in ((1.0, 2, 6), (0.02, 10, 50), (0.5, 1, 9)):
        config = SimpleNamespace(lr=lr, warmup=warmup, steps=steps)
        for step in sorted({0, warmup // 2, warmup - 1, warmup, (warmup + steps) // 2, steps - 2,
                            steps - 1, steps}):
            yield step, config


def done(step, config):
    return (step - config.warmup) / (config.steps - config.warmup)


def falling(shape):
    """The right warmup; then shape(step, config) times the peak."""
    def get_lr(step, config):
        if step < config.warmup:
            return answer(step, config)
        return config.lr * shape(step, config)
    return get_lr


def rising(shape):
    def get_lr(step, config):
        return config.lr * shape(step, config) if step < config.warmup else answer(step, config)
    return get_lr


def cosine(x):
    return 0.01 + 0.99 * (1 + math.cos(math.pi * x)) / 2


MISTAKES = [
    ("Your first step has the learning rate 0: it learns nothing. Use step + 1 in the warmup.",
     "你的第一步学习率是 0：什么也学不到。预热 warmup 里请用 step + 1。",
     rising(lambda step, config: step / config.warmup)),
    ("There is no warmup: the first steps are as large as the peak.",
     "没有预热：最初几步就和峰值一样大。", rising(lambda step, config: 1.0)),
    ("In the warmup your learning rate does not follow the peak: multiply by lr.",
     "预热里，你的学习率与峰值无关：要乘以 lr。",
     lambda step, config: (step + 1) / config.warmup if step < config.warmup
     else answer(step, config)),
    ("Your cosine counts from step 0: it must begin where the warmup ends.",
     "你的余弦从第 0 步算起：应当从预热结束处算起。",
     falling(lambda step, config: cosine(step / config.steps))),
    ("You divide by steps. The cosine has steps - warmup steps, else it ends too early.",
     "你除以了 steps。余弦只有 steps - warmup 步，否则还没降到底就结束了。",
     falling(lambda step, config: cosine((step - config.warmup) / config.steps))),
    ("Your learning rate falls to 0. It ends at a hundredth of the peak.",
     "你的学习率降到了 0。应当降到峰值的百分之一。",
     falling(lambda *a: (1 + math.cos(math.pi * done(*a))) / 2)),
    ("You add a hundredth on top of the cosine: it then begins above the peak. Use 0.01 + 0.99 *.",
     "你在余弦上又加了百分之一：一开始就超过了峰值。应当是 0.01 + 0.99 *。",
     falling(lambda *a: 0.01 + (1 + math.cos(math.pi * done(*a))) / 2)),
    ("Your learning rate falls in a straight line. It is half a cosine: slow, fast, slow.",
     "你的学习率沿直线下降。应当是半个余弦：先慢，再快，再慢。",
     falling(lambda *a: 0.01 + 0.99 * (1 - done(*a)))),
    ("Your cosine goes through a whole turn: at the end it is back at the peak. Use pi, not 2 pi.",
     "你的余弦走了整整一圈：最后又回到峰值。应当是 pi，不是 2 pi。",
     falling(lambda *a: cosine(2 * done(*a)))),
    ("Your learning rate rises after the warmup: 1 + cos, not 1 - cos.",
     "预热之后，你的学习率反而上升：应当是 1 + cos，不是 1 - cos。",
     falling(lambda *a: cosine(1 - done(*a)))),
]
