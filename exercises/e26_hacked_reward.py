"""26. A reward that gets hacked, and its cure

PPO finds what the reward pays for, not what you meant. Somebody wants right and friendly answers to
sums. Friendly people say more than a bare sum. So the reward is .4 if the right number occurs in
the answer, and .03 for each word, at most .6 for all words. PPO learned from it for 12 iterations
(--run, seed 0, on an AMD EPYC in float32):

    before   score .60   grade 6.25   Can you add 5 + 4? -> Happy to help! 5 + 4 = 9.
    after    score .72   grade 5.34   Can you add 5 + 4? -> 5 + 4 = 9. One could say more about it.

The score rises, the true grade falls. (Seed 1: .70 and 5.39.) A needless sentence has more words
than a friendly opening:

    How much is 15 + 19?   ->   15 + 19 = 34. Many things are like that.     score .70, grade 5.25
                                Let me see! 15 + 19 = 34.                    score .64, grade 7

PPO finds only hacks that the model samples now and then. This one it has learned in SFT: one
demonstration in five has a needless sentence. The reward has other holes, too. With our reward the
grade rises to 7.00 (seed 1: 6.91).

Write a reward that is not fooled. The checker shows it good answers and many hacks:

    friendly and right     Happy to help! 15 + 19 = 34.     (or: Let me see! 15 + 19 = 34.)
    right                  15 + 19 = 34.                    scores less than the friendly one
    everything else        wrong, wordy, empty, torn …      scores less than the right one

All scores must be between -1 and 1, so that the KL penalty still weighs something. The prompt may
be no sum; then the score is 0. A prompt is a dialogue: prompt[-1]["content"] is the question.
With --run PPO learns from your reward, and the grade says what the town's judge thinks of the
answers. Try it with the reward above, then with yours.
"""

import re


def reward(prompts, responses):
    """prompts: a list of dialogues; responses: a string for each. -> a list of floats"""
    raise NotImplementedError
