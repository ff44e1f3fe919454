"""18. The reward of each token

The reward model scores the finished answer. PPO wants a reward for every token. It has two parts:

    every token pays for its distance from the reference:   -beta (log pi(a_t) - log pi_ref(a_t))
    the last token of the answer earns the score as well

Summed over the answer, this is score - beta KL: the KL's estimate from one sample. Without the
payment the policy finds texts that the reward model likes by mistake. (Ziegler et al. 2019, eq. 2.)

A token that the policy finds more probable than the reference does costs something; a token that it
finds less probable brings something. Answers have unequal lengths: last says where each one ends.
Beyond it logp and ref_logp are 0.

Example: logp [-1, -2], ref_logp [-2, -2], score 5, last 1, beta .1 -> rewards [-.1, 5].
"""

import torch


def token_rewards(logp, ref_logp, scores, last, beta):
    """logp, ref_logp (B, T): log p of each token; scores (B,); last (B,): the position of the
    answer's last token; beta: a number. -> the rewards (B, T)"""
    raise NotImplementedError
