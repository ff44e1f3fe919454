"""10. The learning-rate schedule

The learning rate is small at first: the optimizer's averages of the gradients are still rough. It
rises linearly over `warmup` steps and reaches its peak at the last of them. Then it falls along
half a cosine, to a hundredth of the peak when step = steps:

    step < warmup:   lr * (step + 1) / warmup
    then:            lr * (0.01 + 0.99 * (1 + cos(pi * done)) / 2)
                     done = (step - warmup) / (steps - warmup), from 0 to 1

Steps are counted from 0. The + 1 makes the very first step greater than 0: with a rate of 0 it
would learn nothing.

Example: lr 1, warmup 2, steps 6  ->  .5, 1, 1, .855, .505, .155 for the steps 0 to 5
"""

import math


def get_lr(step, config):
    """step: int; config has lr (the peak), warmup and steps. -> the learning rate of this step"""
    raise NotImplementedError
