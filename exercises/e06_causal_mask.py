"""6. The causal mask, and padding

A language model predicts the next token. So a token may look at itself and at the tokens before it,
never at later ones: they would tell the answer. That is the causal mask.

Prompts of unequal lengths share a batch. Padding fills the row in front, so that all prompts end at
the same place, where the answer begins. No token may look at padding. And positions count real
tokens only: a prompt gives the same answer with and without padding in front.

Example: one row of padding, a, b, c:  mask [0, 1, 1, 1]

    look    padding  a  b  c         positions  [0, 0, 1, 2]
    padding    0     0  0  0
    a          0     1  0  0
    b          0     1  1  0
    c          0     1  1  1

Row t of this matrix says where token t may look. The position of padding does not matter; write 0,
because an embedding has no row -1.
"""

import torch


def may_look(mask):
    """mask: (B, T), 1 on real tokens, 0 on the padding in front of them.
    -> look (B, T, T): bool, look[b, t, s]: may token t see token s; and positions (B, T): int"""
    raise NotImplementedError
