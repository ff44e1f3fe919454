"""26. A reward that gets hacked, and its cure

PPO finds what the reward pays for, not what you meant. Somebody wants right and friendly answers to
sums, and pays .6 if the right number occurs in the answer, and .05 for each "!":

    How much is 15 + 19?   ->   31 32 33 34 35 36!!!!          scores .80
                                Let me see! 15 + 19 = 34.      scores .65

Write a reward that is not fooled. The checker shows it good answers and many hacks:

    friendly and right     Happy to help! 15 + 19 = 34.     (or: Let me see! 15 + 19 = 34.)
    right                  15 + 19 = 34.                    scores less than the friendly one
    everything else        wrong, empty, endless, torn …    scores less than the right one

All scores must be between -1 and 1, so that the KL penalty still weighs something. The prompt may
be no sum; then the score is 0. A prompt is a dialogue: prompt[-1]["content"] is the question.
With --run PPO learns from your reward, and the grade says what the town's judge thinks of it.
"""

import re


def reward(prompts, responses):
    """prompts: a list of dialogues; responses: a string for each. -> a list of floats"""
    raise NotImplementedError
