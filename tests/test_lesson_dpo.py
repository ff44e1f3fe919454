"""DPO: its loss against eq. 7, its minimum on a bandit, and the script."""

import math
from itertools import combinations, permutations

import pytest
import torch

import tiny
from lessons.dpo import answer_logp, dpo_loss
from reward import encode_answer
from tiny import ENV, logp_by_hand

FLAGS = ("--data=comparisons.jsonl --prompts=prompts.jsonl --init=sft.pt --watch=length.py:longer "
         "--batch_size=4 --warmup=2 --eval_every=4 --n_eval=2 --max_new_tokens=6").split()


@pytest.mark.parametrize("k", [2, 4])
def test_the_loss_is_the_mean_of_equation_7_over_all_pairs(k):
    torch.manual_seed(0)
    logp, ref = -5 * torch.rand(2, k, dtype=torch.float64)
    r = [0.7 * (a - b) for a, b in zip(logp.tolist(), ref.tolist())]
    pairs = [-math.log(1 / (1 + math.exp(r[l] - r[w]))) for w, l in combinations(range(k), 2)]
    found = dpo_loss(logp, ref, torch.arange(k), 0.7).item()
    assert found == pytest.approx(sum(pairs) / len(pairs))


def test_on_a_bandit_the_minimum_is_the_policy_that_ppo_looks_for():
    """With labels from P(a above b) = sigmoid(s_a - s_b), log pi - log ref is s / beta plus what is
    the same for all answers."""
    torch.manual_seed(0)
    beta, scores = 0.5, torch.randn(5, dtype=torch.float64)
    ref_logp = torch.randn(5, dtype=torch.float64).log_softmax(0)
    logits = torch.zeros(5, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=500, tolerance_grad=1e-10,
                                  tolerance_change=1e-14, line_search_fn="strong_wolfe")

    def expected_loss():
        optimizer.zero_grad()
        logp = logits.log_softmax(0)
        loss = sum((scores[w] - scores[l]).sigmoid() * dpo_loss(
            logp[[w, l]], ref_logp[[w, l]], torch.tensor([0, 1]), beta)
            for w, l in permutations(range(5), 2))
        loss.backward()
        return loss

    optimizer.step(expected_loss)
    best = (ref_logp + scores / beta).softmax(0)
    assert logits.softmax(0).tolist() == pytest.approx(best.tolist(), abs=1e-5)


def test_the_log_probability_of_an_answer_counts_its_tokens_and_no_others(tiny_tokenizer):
    tok, model = tiny_tokenizer, tiny.model(tiny_tokenizer.vocab_size)
    prompt = [dict(role="user", content="Hi"), dict(role="assistant", content="Yes"),
              dict(role="user", content="Who lives on Mill Street?")]
    rows = [encode_answer(tok, prompt, text, 48) for text in ("Ada", "", "Ada Ashton. A cat.")]
    asked = len(tok.encode_chat(prompt, reply=True)[0])
    expected = [sum(logp_by_hand(model, ids[:asked], ids[asked:], 0.7)) for ids in rows]
    assert answer_logp(model, rows, tok, ENV, 0.7).tolist() == pytest.approx(expected, abs=1e-3)


def test_it_learns_to_order_answers_to_prompts_that_it_has_not_seen(folder):
    log = tiny.watched(folder, "dpo", *FLAGS, "--steps=60", "--lr=1e-2")
    assert log[0]["val_loss"] == pytest.approx(math.log(2), abs=1e-4) and log[0]["kl"] == 0
    assert log[-1]["val_accuracy"] > 0.9 and log[-1]["val_loss"] < 0.5
    assert log[-1]["better"] > log[-1]["worse"]
