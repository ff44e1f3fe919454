"""16. Score normalisation

The ranking loss knows only differences: a reward model that adds 100 to every score has the same
loss. But PPO needs a scale: the KL penalty is weighed against the score, so "1" must mean the same
for every reward model. So the scores are shifted and scaled after the training, until a set of
known answers (the demonstrations) has mean 0 and standard deviation 1.

The score is the output of the model's last layer, its head. The new scale belongs into the weights
of the head: then everyone who loads the checkpoint gets it, and nobody can forget it.

    score = h . weight + bias      wanted:  h . weight' + bias' = (score - mean) / std

Example: weight [2, 4], bias 1, and scores with mean 3 and std 2 -> weight [1, 2], bias -1. (Ziegler
et al. 2019 set mean and deviation, Stiennon et al. 2020 and InstructGPT the mean alone.)

Take scores.std() for the deviation.
"""

import torch


def normalise(weight, bias, scores):
    """weight (D,) and bias, without dimensions: of the head. scores (N,): what it gives for the N
    demonstrations. -> the new weight (D,) and the new bias; the old ones stay as they are"""
    raise NotImplementedError
