"""22. The value loss

The critic learns to predict the return of every token, by the squared error. Like the policy it
shall not move far in one iteration: V is also clipped near V_old, the value that it gave when the
answer was written.

    near = V_old + clip(V - V_old, -eps, eps)
    loss = 1/2 max((V - R)^2, (near - R)^2)

The max is pessimistic like the policy's min: if V has gone towards R by more than eps, near is
further from R, its error is larger, and it has no gradient: this token has learned enough for now.
If V has gone away from R, the plain error is larger, and brings it back. (The implementation of
Ziegler et al. 2019; the factor 1/2 is theirs, too.)

Example: V 1, V_old 0, R 2, eps .2 -> near .2, loss 1/2 max(1, 3.24) = 1.62.
"""

import torch


def value_loss(values, old_values, returns, eps):
    """values, old_values, returns (n,): one number per token; eps: a number. -> the loss of each
    token (n,)"""
    raise NotImplementedError
