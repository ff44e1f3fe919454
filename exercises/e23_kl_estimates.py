"""23. Three estimates of the KL divergence

How far is the policy pi from the reference? KL = E[log pi(x) - log pi_ref(x)], the mean over texts
x that pi writes. All texts can't be listed, so the mean is taken over samples. Schulman
("Approximating KL divergence", 2020) compares three numbers per sample, with r = pi_ref(x) / pi(x):

    k1 = -log r             its mean is the KL, but one sample may be negative, and it scatters
    k2 = (log r)^2 / 2      never negative, scatters less, its mean is a little off
    k3 = r - 1 - log r      its mean is the KL, and it is never negative

Why is the mean of k3 right? The mean of r over samples of pi is 1, so r - 1 adds 0 on average. PPO
pays with k1 (exercise 18); rlhf_ppo.py shows k3 as approxkl.

Example: logp -1, ref_logp -2 -> r = e^-1, k1 = 1, k2 = .5, k3 = .368 - 1 + 1 = .368.
"""

import torch


def kl_estimates(logp, ref_logp):
    """logp, ref_logp (n,): log p of samples of pi, under pi and under the reference. -> k1, k2, k3,
    each (n,)"""
    raise NotImplementedError
