"""What a reward model must beat: simple rules on the same held-out comparisons.

    shorter      prefers the shorter response
    longer       prefers the longer response
    words        logistic regression on the words of both responses; it does not see the prompt

Each row of the table has the share of held-out pairs that are ranked as the labelers ranked them,
and a 95% interval. (Pairs of one prompt are alike, so the interval counts prompts.)

    python -m tools.baseline out/comparisons.jsonl
    python -m tools.baseline my.jsonl --held_out=0.25 --reward=out/my_reward.pt
"""

from dataclasses import dataclass
from itertools import permutations

import numpy as np

from checkpoint import load_checkpoint
from common import Runtime, fail, parse_config, wilson
from data.formats import read_comparisons, split
from evaluate import score_texts
from model import ScalarGPT
from tokenizer import Tokenizer


@dataclass
class Config:
    data: str = ""             # comparisons, as for reward.py
    held_out: float = 0.05     # the share of prompts to evaluate on, as in reward.py
    reward: str = ""           # a reward model to put beside the rules; "": none
    device: str = "auto"       # auto: cuda, else cpu; mps when asked
    dtype: str = "auto"        # auto: bfloat16 where it is fast, else float32
    debug: bool = False        # show tracebacks


def pairs_of(rows):
    """[(prompt, better response, worse response)] for all pairs that are not tied."""
    return [(row["prompt"], row["responses"][i], row["responses"][j]) for row in rows
            for i, j in permutations(range(len(row["ranks"])), 2)
            if row["ranks"][i] < row["ranks"][j]]


def accuracy(margins):
    """The share of pairs in which the better response wins; a tie counts half."""
    return (0.5 + 0.5 * np.sign(margins)).mean()


def words(train, val):
    """Margins of val by a logistic regression on the differences of word counts in train. Its
    strength is chosen by cross-validation over prompts."""
    try:
        from sklearn.feature_extraction.text import CountVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import GridSearchCV, GroupKFold
    except ImportError:
        fail("the regression on words needs scikit-learn: pip install scikit-learn")
    counts = CountVectorizer(min_df=2, binary=True, token_pattern=r"\w+|[^\w\s]")
    counts.fit([text for _, *both in train for text in both])

    def difference(pairs):
        better, worse = (counts.transform([pair[k] for pair in pairs]) for k in (1, 2))
        return (better - worse).astype(float)

    flip = np.where(np.arange(len(train)) % 2, 1.0, -1.0)             # half of them the other way
    _, groups = np.unique([str(prompt) for prompt, *_ in train], return_inverse=True)
    model = GridSearchCV(LogisticRegression(fit_intercept=False, max_iter=2000),
                         dict(C=np.logspace(-3, 2, 11)), cv=GroupKFold(5))
    model.fit(difference(train).multiply(flip[:, None]).tocsr(), flip > 0, groups=groups)
    return model.decision_function(difference(val))


if __name__ == "__main__":
    config = parse_config(Config, __doc__, words="data")
    if not config.data:
        fail("no file given: try `python -m tools.baseline out/comparisons.jsonl`")
    rows = read_comparisons(config.data)
    train_rows, val_rows = split(rows, share=config.held_out)
    train, val = pairs_of(train_rows), pairs_of(val_rows)
    if len(train_rows) < 5 or not val:
        fail(f"{config.data}: {len(train_rows)} prompts to learn from and {len(val_rows)} held "
             f"out; at least 5 and 1 are needed (--held_out sets the share)")
    shorter = np.array([len(worse) - len(better) for _, better, worse in val])
    table = dict(shorter=shorter, longer=-shorter, words=words(train, val))
    if config.reward:
        rt, ckpt = Runtime(config), load_checkpoint(config.reward, stage="reward")
        tok, model = Tokenizer.from_dict(ckpt["tokenizer"]), ScalarGPT.load(ckpt).to(rt.device)
        better, worse = (score_texts(model, tok, [p for p, *_ in val], [pair[k] for pair in val],
                                     rt).numpy() for k in (1, 2))
        table[config.reward] = better - worse
    print(f"{len(train):,} pairs to learn from, {len(val):,} held-out pairs of {len(val_rows)} "
          f"prompts")
    for name, margins in table.items():
        share = accuracy(margins)
        print(f"{name:20} {share:.3f} [{{:.3f}}, {{:.3f}}]".format(*wilson(share, len(val_rows))))
