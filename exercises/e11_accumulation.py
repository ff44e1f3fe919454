"""11. Gradient accumulation

A large batch does not fit into memory. So it is split into K micro-batches. Each gets its own
forward and backward pass, and the gradients add up in the weights before the optimizer's one step.
The sum must be the gradient of the whole batch, whose loss is the mean over all tokens that count:

    loss = sum of the losses of all counted tokens / number of counted tokens

Micro-batches have unequal numbers of counted tokens, because answers have unequal lengths. The mean
of their means is a different number: there a token in a small micro-batch weighs more.

Write the loss of each micro-batch. backward() is called on each in turn; their sum is the loss
above.

Example: the losses [1, 2, 3] in one micro-batch and [4] in the other (the rest does not count)
    -> [1.5, 1.0], together 2.5. The mean of the means would be (2 + 4) / 2 = 3.
"""

import torch


def micro_losses(nats, mask):
    """nats: (K, B, T), the loss of each token of K micro-batches; mask: (K, B, T) bool, 1 where it
    counts. -> (K,), the losses on which backward() is called"""
    raise NotImplementedError
