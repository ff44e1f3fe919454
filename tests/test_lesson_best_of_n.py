"""Rejection sampling: the best of n against its closed form, and the script."""

import pytest
import torch

import tiny
from answer import answer_text
from lessons.best_of_n import Config, best_answers
from tiny import ENV

FLAGS = ("--data=prompts.jsonl --init=sft.pt --watch=length.py:longer --batch_size=8 --best_of=4 "
         "--minibatch=4 --max_new_tokens=6 --n_eval=4").split()


@pytest.fixture(scope="module")
def policy(tiny_tokenizer):
    return tiny.model(tiny_tokenizer.vocab_size)


def letters(prompts, texts):
    """A reward that differs from text to text."""
    return [sum(map(ord, text)) / 100 + len(prompt[0]["content"])
            for prompt, text in zip(prompts, texts)]


def rows(tok, n):
    asked = [[dict(role="user", content="Ada"[:1 + i % 3])] for i in range(n)]
    return [dict(prompt=p, ids=tok.encode_chat(p, reply=True)[0]) for p in asked]


def test_the_kept_answer_is_the_one_with_the_highest_score(policy, tiny_tokenizer):
    asked = rows(tiny_tokenizer, 9)
    config = Config(best_of=5, max_new_tokens=4, missing_end=0)
    best, scores, _ = best_answers(policy, letters, asked, 0, tiny_tokenizer, ENV, config)
    texts = [answer_text(tiny_tokenizer, reply) for reply in best]
    assert scores.shape == (9, 5) and len(scores.unique()) > 20
    assert letters([r["prompt"] for r in asked], texts) == pytest.approx(scores.amax(1).tolist())


def test_the_score_of_the_best_of_n_is_that_of_the_closed_form(policy, tiny_tokenizer):
    """P(best score <= s) = P(score <= s)^n; answers of one token, so that all are known."""
    tok, n, many = tiny_tokenizer, 3, 3000
    asked = rows(tok, 1) * many
    config = Config(best_of=n, max_new_tokens=1, missing_end=0, temperature=0.7)
    with torch.no_grad():
        logits = policy(torch.tensor([asked[0]["ids"]]))
    p = (logits[0, -1] / 0.7).softmax(0)
    values = torch.tensor(letters([asked[0]["prompt"]] * len(p),
                                  [answer_text(tok, [i]) for i in range(len(p))]))
    values, order = values.sort()
    below = torch.cat([torch.zeros(1), p[order].cumsum(0).clamp(max=1)])
    chance = (below ** n).diff()
    mean = (chance * values).sum()
    error = ((chance * (values - mean) ** 2).sum() / many).sqrt()
    _, scores, _ = best_answers(policy, letters, asked, 0, tok, ENV, config)
    assert abs(scores.amax(1).mean() - mean) < 4 * error
    assert mean - (p[order] * values).sum() > 8 * error                # not one sample's
