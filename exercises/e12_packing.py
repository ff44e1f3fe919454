"""12. Packing

Dialogues are short, rows are long. One dialogue per row would leave most of a row empty, and empty
places cost as much time as full ones. So several whole dialogues share a row. A row has T + 1
places: T inputs, and the same tokens one place further as targets.

    dialogues of 40, 70, 55 and 30 tokens, T + 1 = 100  ->  rows [0, 2] (95) and [1, 3] (100)

What is asked for:
- exactly n_rows rows, each a list of indices into `lengths`; no row has more than T + 1 tokens
- every epoch has a new random order, from rng.permutation(len(lengths)), and uses each dialogue
  once; begin the next epoch when one is used up (a few dialogues may wait in unfinished rows)
- no sorting by length: a batch must be a random mixture
- at least 85% of the places are filled. If a row is closed as soon as one dialogue does not fit,
  about a fifth stays empty. Keep a few rows open, say 8: a dialogue goes into the first that has
  room, else it opens a new row; if there are too many open rows, the fullest is finished.
"""


def pack(lengths, T, n_rows, rng):
    """lengths: [int], the dialogues' numbers of tokens, each at most T + 1; rng: a NumPy generator.
    -> n_rows lists of indices"""
    raise NotImplementedError
