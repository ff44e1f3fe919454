"""9. Cross-entropy by hand

The model gives every token of the vocabulary a number, its logit. The softmax makes probabilities
of them. The loss of one position is -log of the probability of the token that really came next:

    loss = -log softmax(logits)[target] = log(sum_v exp(logits_v)) - logits[target]

It is measured in nats. The loss of a batch is the mean over the positions that count. Positions
with the target -1 do not count: padding, or the words of the user. They are neither in the sum nor
in the number by which it is divided.

Example: logits [0, 0], target 1 -> log 2 = .693. A third position with target -1 changes nothing.

exp of a logit of 100 is too large for float32. Use torch.logsumexp or log_softmax, which subtract
the largest logit first. F.cross_entropy would be the whole solution: write it yourself.
"""

import torch


def cross_entropy(logits, targets):
    """logits: (N, V) floats; targets: (N,) int, -1 where nothing counts. -> the mean loss"""
    raise NotImplementedError
