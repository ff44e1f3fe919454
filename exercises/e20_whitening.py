"""20. Whitening

Advantages may be large in one iteration and small in the next, and the learning rate stays the
same. So PPO shifts and scales them, over all answers of the iteration, to mean 0 and standard
deviation 1:

    (x - mean) / sqrt(variance + 1e-8)

The answers have unequal lengths; mask is 1 on their tokens. Padding is not data: it counts neither
in the mean nor in the variance, and stays 0. The variance is the biased one, which divides by the
number of tokens. (Ziegler et al. 2019; "biased, 1e-8" is one of the details that its reproduction
lists.)

Example: [[1, 3, 7]] with mask [[1, 1, 0]] -> [[-1, 1, 0]].
"""

import torch


def whiten(x, mask):
    """x (B, T): floats, anything where mask is 0; mask (B, T): bool. -> (B, T), 0 where mask is
    0"""
    raise NotImplementedError
