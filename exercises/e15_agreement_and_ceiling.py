"""15. Bradley and Terry: agreement and ceiling

Two people rank the same two answers, and often they disagree. Bradley and Terry's model says how
often. gap is how much better the first answer really is; noise is how carelessly people judge:

    p = P(a labeler ranks the first answer above the second) = sigmoid(gap / noise)

Two labelers agree on a pair if both rank the first answer above the second, or both the second
above the first. The ceiling is the best accuracy that a reward model can reach on such labels: it
knows which answer is truly better, and still the label says so only with probability max(p, 1 - p).

Both are means over many pairs. A gap may be negative. Example: one pair with gap 1 and noise 1 has
p = .731: two labelers agree on .731^2 + .269^2 = 60.7%, and the ceiling is 73.1%. (InstructGPT's
labelers agreed on 73%; compare.py sets the noise so that ours do, too.)
"""

import torch


def agreement_and_ceiling(gaps, noise):
    """gaps (N,): floats; noise: a number > 0. -> how often two labelers agree, and the ceiling,
    two numbers from 0.5 to 1"""
    raise NotImplementedError
