"""17. REINFORCE with a baseline

A model samples answers, and each gets a score. Which loss makes the mean score rise? The score has
no gradient: it is a number that somebody gives. But the probability of an answer has one, and

    gradient of E[score] = E[ score x gradient of log p(answer) ]           (Williams 1992)

So each answer pushes its own log p up, as hard as its score is high; log p is the sum over its
tokens. If all scores are positive, each push is upwards, and only the differences teach anything.
A baseline b, subtracted from the score, changes nothing on average and takes most of the noise
away, as long as it does not depend on the answer itself. With k answers to one prompt, take the
mean score of the other k - 1 (Ahmadian et al. 2024, RLOO):

    b_i = mean of the scores of the others          loss = -mean over i of (score_i - b_i) log p_i

GRPO's baseline is the mean of all k; PPO's is the critic, which has one for every token.

Example: scores [1, 0, 0] -> b [0, .5, .5]; with log p [-2, -1, -3] the loss is 0: -(-2 + .5 + 1.5)/3.
"""

import torch


def reinforce_loss(logp, mask, scores):
    """logp (k, T): log p of each token of k answers to one prompt, and of what stands around them;
    mask (k, T): True on the answers' tokens; scores (k,). -> the loss, one number"""
    raise NotImplementedError
