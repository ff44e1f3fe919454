"""2. One merge

BPE has learned that a pair of tokens becomes one new token. Applying this merge to a list of tokens
means: wherever `left` is followed by `right`, write `new` instead of both.

The list is read from left to right, and a token can be used only once: of three a in a row, the
first two become one token and the third stays.

Examples, with the pair (1, 2) and the new token 4:
    [1, 2, 3, 1, 2] -> [4, 3, 4]
    [2, 1]          -> [2, 1]           the order matters
With the pair (1, 1) and the new token 4:
    [1, 1, 1]       -> [4, 1]
"""


def replace(ids, pair, new):
    """ids: list of int; pair: (left, right); new: int. -> a new list; `ids` stays as it is"""
    raise NotImplementedError
