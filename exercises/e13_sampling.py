"""13. Sampling with top-p

To write a token, draw one from the model's probabilities. Two numbers make the choice less wild.

Temperature divides the logits. Below 1 the probable tokens become more probable, above 1 all become
more alike.

Top-p (Holtzman et al. 2019) cuts off the tail: thousands of improbable tokens, each of them rare,
but not all of them together. It keeps the fewest most probable tokens whose probabilities add up to
at least p. The token that crosses p is kept, too, so at least one is left. The probabilities after
the temperature count. The tokens that are kept are then drawn in proportion to their probabilities.

Example: probabilities [.5, .3, .15, .05], p = .7  ->  tokens 0 and 1, drawn with 5/8 and 3/8
         p = .85 -> tokens 0, 1 and 2

sort(descending=True) gives values and their places; scatter brings results back to the places.
torch.multinomial draws from probabilities. Every row of the batch has its own cut.
"""

import torch


def sample(logits, temperature, top_p):
    """logits: (B, V); temperature: float above 0; top_p: float in (0, 1]. -> (B,) ids"""
    raise NotImplementedError
