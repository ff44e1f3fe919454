"""27. One step of AdamW

Plain gradient descent takes lr x gradient from every weight. Then weights with large gradients make
large steps, and those with small gradients hardly move. AdamW divides each gradient by its usual
size. For every weight it keeps two running means, m of the gradient g and v of its square:

    m = beta1 m + (1 - beta1) g           v = beta2 v + (1 - beta2) g^2

Both start at 0, so they are too small at first: after t steps only the part 1 - beta^t of their
weights is on gradients. Dividing by it makes up for that (Kingma and Ba 2015):

    weight = weight - lr (m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps) + decay weight)

The decay pulls every weight towards 0. It is not part of g: there it would be divided by sqrt(v),
too (Loshchilov and Hutter 2019: the W in the name). sft.py, reward.py and rlhf_ppo.py train like
this; pretrain.py has Muon for matrices.

Example: in the first step m / (1 - beta1) is g and v / (1 - beta2) is g^2, so with eps 0 and decay
0 every weight moves by lr, whatever the size of its gradient.
"""


def adamw(weight, grad, m, v, t, config):
    """All tensors have one shape; t = 1 in the first step; config has lr, beta1, beta2, eps, decay.
    -> the new weight, m and v; the old ones stay as they are"""
    raise NotImplementedError
