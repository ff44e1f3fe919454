"""25. Direct preference optimisation (DPO)

PPO needs a reward model and samples. DPO (Rafailov et al. 2023, eq. 7) needs neither: it trains the
policy on the comparisons. It starts from what PPO looks for, pi = pi_ref exp(score / beta) / Z, and
solves for the score:

    r = beta (log pi(answer) - log pi_ref(answer))       up to beta log Z, the same for both answers

This r takes the place of the score in the reward model's loss (exercise 14):

    loss = mean over the pairs of  -log sigmoid(r of the chosen - r of the rejected)

Before the training pi = pi_ref, so both r are 0, and the loss is log 2, whatever the answers are.

Example: chosen -10, rejected -11, both -10.5 under the reference, beta .1 -> r = .05 and -.05, loss
= log(1 + exp(-.1)) = .644.
"""

import torch
import torch.nn.functional as F


def dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta):
    """log p of the answers of B pairs, summed over their tokens: under the policy chosen, rejected
    (B,), under the frozen reference ref_chosen, ref_rejected (B,); beta: a number. -> the loss, a
    tensor without dimensions"""
    raise NotImplementedError
