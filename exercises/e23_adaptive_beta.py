"""23. Adaptive beta

beta is the price of one nat of KL. Which price is right is hard to guess; which KL is right is
easier to say. So Ziegler et al. 2019 (section 2.2) set a target for the KL and let a controller
find beta. After every iteration:

    error = clip(KL / target - 1, -0.2, 0.2)
    beta  <- beta (1 + error n / horizon)

n is the number of answers in the iteration, horizon how many answers the controller takes its time
for (10,000 in their code). If the KL is above its target, the distance becomes more expensive, else
cheaper. The factor makes beta change by the same share whether it is large or small; the clip keeps
one strange iteration from throwing it over.

Example: beta .1, KL 9, target 6, n 500, horizon 10,000 -> error .2 (clipped), beta .101.
"""


def adapt(beta, kl, target, n, horizon):
    """Five numbers. -> the beta of the next iteration"""
    raise NotImplementedError
