"""14. The ranking loss

A labeler has ranked K answers to one prompt. The reward model gives each answer one number, its
score. Training raises the score of the better answer of every pair above that of the worse one:

    loss = mean over all pairs of  -log sigmoid(score of the better - score of the worse)

K answers make K (K - 1) / 2 pairs. Answers with the same rank are tied: they make no pair, and are
not counted. (InstructGPT, eq. 1.)  Example: scores [1, 0] with ranks [0, 1] -> log(1 + exp(-1)).

torch.nn.functional has logsigmoid: log(sigmoid(x)) is -inf for very negative x.
"""

import torch
import torch.nn.functional as F


def ranking_loss(scores, ranks):
    """scores (K,): floats. ranks (K,): 0 is the best. -> the loss, a tensor without dimensions"""
    raise NotImplementedError
