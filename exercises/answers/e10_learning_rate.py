import math
from types import SimpleNamespace

from optim import get_lr as answer

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


def written_out(step, config):
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    start, end = config.warmup, config.steps
    x = (step - start) / (end - start)
    return config.lr * (0.01 + 0.99 * (1 + math.cos(math.pi * x)) / 2)


MISTAKES = [
    ("Your first step has the learning rate 0: it learns nothing. Use step + 1 in the warmup.",
     "你的第一步学习率是 0：什么也学不到。预热 warmup 里请用 step + 1。", "step + 1 -> step"),
    ("There is no warmup: the first steps are as large as the peak.",
     "没有预热：最初几步就和峰值一样大。", "(step + 1) / config.warmup -> 1"),
    ("In the warmup your learning rate does not follow the peak: multiply by lr.",
     "预热里，你的学习率与峰值无关：要乘以 lr。", "config.lr * (step + 1) -> (step + 1)"),
    ("Your cosine counts from step 0: it must begin where the warmup ends.",
     "你的余弦从第 0 步算起：应当从预热结束处算起。",
     "start, end = config.warmup, config.steps -> start, end = 0, config.steps"),
    ("You divide by steps. The cosine has steps - warmup steps, else it ends too early.",
     "你除以了 steps。余弦只有 steps - warmup 步，否则还没降到底就结束了。",
     "(end - start) -> end"),
    ("Your learning rate falls to 0. It ends at a hundredth of the peak.",
     "你的学习率降到了 0。应当降到峰值的百分之一。", "0.01 + 0.99 * ->"),
    ("You add a hundredth on top of the cosine: it then begins above the peak. Use 0.01 + 0.99 *.",
     "你在余弦上又加了百分之一：一开始就超过了峰值。应当是 0.01 + 0.99 *。", "0.99 * ->"),
    ("Your learning rate falls in a straight line. It is half a cosine: slow, fast, slow.",
     "你的学习率沿直线下降。应当是半个余弦：先慢，再快，再慢。",
     "(1 + math.cos(math.pi * x)) / 2 -> (1 - x)"),
    ("Your cosine goes through a whole turn: at the end it is back at the peak. Use pi, not 2 pi.",
     "你的余弦走了整整一圈：最后又回到峰值。应当是 pi，不是 2 pi。", "math.pi -> 2 * math.pi"),
    ("Your learning rate rises after the warmup: 1 + cos, not 1 - cos.",
     "预热之后，你的学习率反而上升：应当是 1 + cos，不是 1 - cos。",
     "1 + math.cos -> 1 - math.cos"),
]
