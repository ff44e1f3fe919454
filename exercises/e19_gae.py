"""19. Generalised advantage estimation (GAE)

The critic says at every token how good the answer is going to be: V_t. The advantage of a token
says how much better things went than the critic expected. One step ahead, that is

    delta_t = r_t + gamma V_{t+1} - V_t

GAE (Schulman et al. 2015, eq. 16) adds the later surprises, each discounted by gamma lam once more:

    A_t = delta_t + gamma lam A_{t+1}

What follows the last token of the answer is worth 0: there V_{t+1} = 0 and A_{t+1} = 0. Compute it
from the last token to the first. mask is 1 on the answer's tokens; the rows have unequal lengths.
Example: rewards [0, 1], values [.5, .8], gamma = lam = 1 -> advantages [.5, .2].
"""

import torch


def gae(rewards, values, mask, gamma, lam):
    """rewards, values (B, T): floats; mask (B, T): bool. -> advantages (B, T), 0 where mask is 0,
    and returns (B, T): advantages + values where mask is 1, else 0"""
    raise NotImplementedError
