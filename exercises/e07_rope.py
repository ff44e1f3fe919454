"""7. Rotary positions (RoPE)

Attention does not know the order of the tokens. RoPE (Su et al. 2021, eq. 34) tells it by turning
queries and keys. The D numbers of a head are D/2 pairs of neighbours, (x[0], x[1]), (x[2], x[3]), …
Each pair is a point in the plane. At position m, pair i is turned by the angle

    angle = m * theta ** (-2 i / D)                           i = 0, 1, … D/2 - 1
    (a, b) -> (a cos(angle) - b sin(angle),  a sin(angle) + b cos(angle))

The first pair turns fast, the last one slowly, like the hands of a clock. The dot product of a
query at position m and a key at position n then depends only on m - n: distance, not place.

Example: D = 2, position 0: nothing turns. x = [1, 0] at position 1 -> [cos 1, sin 1] = [.54, .84].

x[..., 0::2] is the first number of all pairs. torch.stack(…, dim=-1).flatten(-2) brings pairs back
into their order.
"""

import torch


def rope(x, pos, theta):
    """x: (B, H, T, D), D even; pos: (T,) int; theta: float, often 10000. -> (B, H, T, D)"""
    raise NotImplementedError
