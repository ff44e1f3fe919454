import math
from types import SimpleNamespace

from optim import get_lr as answer

NAME = "get_lr"
RUN = "pretrain.py", "get_lr", "--steps=200 --warmup=20 --eval_every=40 --eval_rows=32"
COLUMNS = ["lr", "val_loss"]
ZH = """
10. 学习率调度

学习率（learning rate）开始时要小，因为优化器对梯度的平均还很粗略。
学习率在 warmup 步里线性上升，到最后一步达到峰值，这叫预热。然后沿直线下降，到 step = steps
时为 0：最后的步子很小，各批之间的噪声就互相抵消。

    step < warmup：  lr * (step + 1) / warmup
    之后：           lr * (1 - done)
                     done = (step - warmup) / (steps - warmup)，从 0 到 1

步数从 0 数起。+ 1 使第一步的学习率大于 0：如果是 0，这一步什么也学不到。

例：lr 1，warmup 2，steps 6  ->  第 0 到第 5 步：0.5, 1, 1, 0.75, 0.5, 0.25
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
    return config.lr * (1 - x)


MISTAKES = [
    ("Your first step has the learning rate 0: it learns nothing. Use step + 1 in the warmup.",
     "你的第一步学习率是 0，什么也学不到。预热时请用 step + 1。", "step + 1 -> step"),
    ("There is no warmup: the first steps are as large as the peak.",
     "没有预热：最初几步的学习率就是峰值。", "(step + 1) / config.warmup -> 1"),
    ("In the warmup your learning rate does not follow the peak: multiply by lr.",
     "预热时，你的学习率与峰值无关：要乘以 lr。", "config.lr * (step + 1) -> (step + 1)"),
    ("Your line counts from step 0: it must begin where the warmup ends.",
     "你的直线从第 0 步算起：应当从预热结束处算起。",
     "start, end = config.warmup, config.steps -> start, end = 0, config.steps"),
    ("You divide by steps. The line has steps - warmup steps, else it ends above 0.",
     "你除以了 steps。直线只有 steps - warmup 步，否则还没降到 0 就结束了。",
     "(end - start) -> end"),
    ("Your learning rate stays at its peak after the warmup: multiply by 1 - done.",
     "预热之后，你的学习率停在峰值：要乘以 1 - done。", "(1 - x) -> 1"),
    ("Your learning rate rises from 0 after the warmup: 1 - done, not done.",
     "预热之后，你的学习率又从 0 上升：应当是 1 - done，不是 done。", "(1 - x) -> x"),
    ("Your learning rate falls along half a cosine. Here it is a straight line.",
     "你的学习率沿半个余弦下降。这里应当是一条直线。",
     "(1 - x) -> (1 + math.cos(math.pi * x)) / 2"),
]
