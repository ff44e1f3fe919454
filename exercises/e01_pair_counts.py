"""1. Pair counts: which pair is merged first

Byte-pair encoding (BPE) starts from bytes: the tokens 0 to 255. Learning repeats one step: the most
frequent pair of neighbours becomes a new token. This exercise finds that pair for the first step.

The text has been split into chunks (roughly words), and equal chunks have been counted. Pairs are
counted inside chunks only, so that no token reaches over the end of a word. A chunk that occurs n
times counts n times. (Sennrich et al. 2016, algorithm 1.)

Of equally frequent pairs, the one with the smaller ids comes first: (97, 98) before (98, 97). Such
a rule makes the result the same on every computer.

Example: {"aaab": 2, "ba": 3}
    aa occurs 2 times in "aaab", so 4 times;  ab 2 times;  ba 3 times  -> (97, 97)

"text".encode() gives the bytes of a text; list() of that gives numbers.
"""


def best_pair(chunks):
    """chunks: {text: how often it occurs}. -> (left, right), the ids of two bytes"""
    raise NotImplementedError
