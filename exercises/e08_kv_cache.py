"""8. The KV cache

To write one more token, attention needs the keys and values of all tokens before it. They do not
change when a token is added, because no token looks at later ones. So they are kept: a new token
then costs one step, instead of reading the whole text again.

The memory is reserved once, for S tokens. The first `length` places are filled; what stands behind
is old rubbish. A step brings T new keys and values (the whole prompt at first, then one token at a
time). Store them behind the filled places, in the tensors themselves, and return all keys and
values that are filled now: attention continues with those.

Example, with length = 2, T = 1 and single letters for vectors:
    keys [a, b, ?, ?], k [c]  ->  keys is now [a, b, c, ?], and [a, b, c] is returned

`length` is a plain number that the caller raises afterwards: all layers share it.
"""

import torch


def append(keys, values, length, k, v):
    """keys, values: (B, H, S, D), to be written into; length: int; k, v: (B, H, T, D).
    -> the filled keys and the filled values, (B, H, length + T, D) each"""
    raise NotImplementedError
