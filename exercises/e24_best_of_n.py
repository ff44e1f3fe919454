"""24. Best of n, and how far it is from the model

Sample n answers, keep the one with the highest score: this needs no training, and is the measure of
all methods that do. How far is it from the model that it samples from, in nats of KL?

Suppose that there are only K different answers, sorted by score, the best first, and the model
gives answer i with probability p_i. The best of n is i, or something worse, if all n samples are i
or worse:

    W_i = p_i + p_{i+1} + ... + p_K            q_i = W_i^n - W_{i+1}^n            (W_{K+1} = 0)

q is the distribution of the best of n; its distance from the model is KL = sum q_i log(q_i / p_i).
If there are very many answers, each of which is improbable, the sum becomes an integral that does
not depend on p any more:

    KL -> log n - (n - 1) / n                                              (all logs are natural)

Stiennon et al. 2020 and Gao et al. 2022 use this number; it is never smaller than the KL. Example:
p [.5, .5], n 2 -> q [.75, .25], KL .131, the limit .193.
"""

import torch


def best_of_n(p, n):
    """p (K,): probabilities > 0 that add up to 1, the best answer first; n: how many are sampled.
    -> q (K,), its KL from p, and the limit"""
    raise NotImplementedError
