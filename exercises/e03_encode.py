"""3. Encode with the merges

A tokenizer is its list of merges. To encode a word, start from its bytes and merge pairs until no
known pair is left. The order matters: of all pairs in the word, take the one that was learned
first, as in training. The first merges are the most frequent ones. A different order gives
different tokens, which the model has never seen in this place.

    while some pair of neighbours is in merges:
        take the pair that was learned first
        replace it wherever it stands, from left to right (exercise 2)

The ids of the new tokens rise in the order of learning: the smallest id was learned first.

Example, with merges = {(98, 99): 256, (97, 98): 257, (256, 100): 258} and the bytes of "abcd":
    [97, 98, 99, 100] -> [97, 256, 100] -> [97, 258]
The pair (97, 98) stands first in the word, but (98, 99) was learned first.
"""


def encode(ids, merges):
    """ids: list of int, the bytes of a word; merges: {(left, right): new id}. -> list of int"""
    raise NotImplementedError
