"""5. Attention

Every token asks a question, its query q. Every token offers a key k and a value v. The dot product
of a query and a key says how well they fit. The softmax over the keys turns these numbers into
weights that add up to 1, and the output is the weighted mean of the values:

    attention = softmax(q k^T / sqrt(D) + bias) v             (Vaswani et al. 2017, eq. 1)

D is the width of one head. Without sqrt(D) the products grow with D, and the softmax puts nearly
all weight on one key: then there is nearly no gradient.

bias is 0 where a query may look, and -inf where it may not: exp(-inf) = 0. Exercise 6 makes it.

Shapes: B rows, H heads, T queries, S keys. All B x H products are computed at once: @ multiplies
the last two dimensions.  Example: if all keys are equal, every output is the mean of the values.
"""

import math
import torch


def attention(q, k, v, bias):
    """q: (B, H, T, D); k, v: (B, H, S, D); bias: (T, S) or (B, 1, T, S). -> (B, H, T, D)"""
    raise NotImplementedError
