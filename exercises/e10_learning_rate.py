"""10. The learning-rate schedule

The learning rate is small at first: the optimizer's averages of the gradients are still rough. It
rises linearly over `warmup` steps and reaches its peak at the last of them. Then it falls in a
straight line, and would be 0 at step = steps: small steps at the end average out the noise of the
batches.

    step < warmup:   lr * (step + 1) / warmup
    then:            lr * (1 - done)
                     done = (step - warmup) / (steps - warmup), from 0 to 1

Steps are counted from 0. The + 1 makes the very first step greater than 0: with a rate of 0 it
would learn nothing.

Example: lr 1, warmup 2, steps 6  ->  .5, 1, 1, .75, .5, .25 for the steps 0 to 5
"""


def get_lr(step, config):
    """step: int; config has lr (the peak), warmup and steps. -> the learning rate of this step"""
    raise NotImplementedError
