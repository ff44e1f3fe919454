"""21. PPO's clipped loss

An answer was sampled by the old policy. The ratio says how much more probable the present policy
finds a token of it:

    ratio = pi(a_t) / pi_old(a_t)          both are given as logarithms
    loss = -min(ratio A, clip(ratio, 1 - eps, 1 + eps) A)             (Schulman et al. 2017, eq. 7)

With A > 0 the loss makes the token more probable, until the ratio is 1 + eps: from there on the
gradient is 0. With A < 0 it makes it less probable, until 1 - eps. The min is pessimistic: a token
that has moved to the wrong side is always brought back, however far it is away. So the clip limits
what can be gained, not what can be lost.

Example: ratio 1.5, A 2, eps .2 -> -min(3, 2.4) = -2.4; with A -2 -> -min(-3, -2.4) = 3.
"""

import torch


def policy_loss(logp, old_logp, advantages, eps):
    """logp, old_logp, advantages (n,): one number per token; eps: a number. -> the loss of each
    token (n,)"""
    raise NotImplementedError
