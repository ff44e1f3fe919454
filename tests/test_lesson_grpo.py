"""GRPO: advantages and loss against brute force and exact expectations, and the script."""

import statistics

import pytest
import torch

import tiny
from answer import answer_mask, right_pad
from lessons.grpo import Config, group_advantages, grpo_loss, token_logps, token_weights
from tiny import ENV, close, logp_by_hand

FLAGS = ("--data=prompts.jsonl --init=sft.pt --watch=length.py:longer --batch_size=16 --k=4 "
         "--minibatch=8 --max_new_tokens=6 --eval_every=2 --n_eval=4").split()


# ---- advantages -----------------------------------------------------------------------------

def test_an_advantage_is_the_distance_from_the_mean_of_the_group_in_standard_deviations():
    torch.manual_seed(0)
    scores = torch.randn(12)
    found = group_advantages(scores, 4).tolist()
    for g in range(0, 12, 4):
        group = scores[g:g + 4].tolist()
        mean, spread = statistics.mean(group), statistics.pstdev(group)
        assert found[g:g + 4] == pytest.approx([(s - mean) / spread for s in group], abs=1e-3)


def test_rounding_among_equal_answers_teaches_nothing():
    assert group_advantages(torch.tensor([1., 1 + 1e-6, 1, 1]), 4).abs().max() < 0.02


def test_without_the_division_a_group_counts_as_much_as_it_differs():
    found = group_advantages(torch.tensor([1., 3, 10, 30]), 2, normalise=False)
    assert found.tolist() == [-1, 1, -10, 10]


@pytest.mark.parametrize("normalise, sums", [(True, [1, 1]), (False, [0.5, 0.125])])
def test_the_weights_of_an_answers_tokens(normalise, sums):
    mask = torch.tensor([[0, 1, 1, 1, 1], [1, 0, 0, 0, 0]]).bool()
    weights = token_weights(mask, Config(normalise=normalise, max_new_tokens=8))
    assert weights.sum(1).tolist() == sums and not weights[~mask].any()


# ---- the loss -------------------------------------------------------------------------------

def test_the_gradient_is_that_of_finite_differences():
    torch.manual_seed(0)
    old, ref, advantages = torch.randn(3, 40, dtype=torch.float64)
    logp = old + 0.5 * torch.randn(40, dtype=torch.float64)           # some are clipped
    loss, clipped = grpo_loss(logp, old, ref, advantages, Config())
    assert 5 < clipped.sum() < 35
    assert torch.autograd.gradcheck(lambda x: grpo_loss(x, old, ref, advantages, Config())[0],
                                    logp.requires_grad_())


@pytest.fixture
def bandit():
    """Six answers of one token: logits of the policy, log p of the reference, scores."""
    torch.manual_seed(0)
    logits, ref, scores = torch.randn(3, 6, dtype=torch.float64)
    return logits.requires_grad_(), ref.log_softmax(0), scores


def test_the_expected_penalty_is_the_kl_divergence_from_the_reference(bandit):
    logits, ref, _ = bandit
    logp = logits.detach().log_softmax(0)
    loss, _ = grpo_loss(logp, logp, ref, torch.zeros(6), Config(kl_coef=1.0))
    assert (loss >= 0).all()
    assert (logp.exp() * loss).sum().item() == pytest.approx(
        (logp.exp() * (logp - ref)).sum().item())


def test_the_expected_gradient_raises_the_score_and_lowers_the_kl_of_the_reference_from_it(bandit):
    """The gradient of k3 on the policy's own samples is that of KL(reference || policy)."""
    logits, ref, scores = bandit
    logp = logits.log_softmax(0)
    old, mean = logp.detach(), (logp.exp() * scores).sum().detach()
    loss, _ = grpo_loss(logp, old, ref, scores - mean, Config(kl_coef=0.3))
    found, = torch.autograd.grad((old.exp() * loss).sum(), logits)
    logp = logits.log_softmax(0)
    objective = (logp.exp() * scores).sum() - 0.3 * (ref.exp() * (ref - logp)).sum()
    wanted, = torch.autograd.grad(-objective, logits)
    torch.testing.assert_close(found, wanted)


def test_log_probabilities_do_not_depend_on_padding_or_minibatches():
    model = tiny.model(20, block_size=12)
    prompts, replies = [[3], [4, 5, 6], [8, 9]], [[7], [5, 6, 1], [9, 9, 9, 9, 1]]
    ids, _ = right_pad([p + r for p, r in zip(prompts, replies)], 0, "cpu")
    mask = answer_mask(prompts, replies, "cpu")
    found = token_logps(model, ids, mask, ENV, Config(minibatch=2, temperature=0.7))
    assert not found[~mask].any()
    for row, p, r in zip(found, prompts, replies):
        close(row[len(p):len(p) + len(r)], logp_by_hand(model, p, r, 0.7), atol=1e-4)


# ---- the script -----------------------------------------------------------------------------

@pytest.mark.parametrize("normalise", ["true", "false"])
def test_it_raises_a_reward_of_ones_own_on_held_out_prompts(folder, normalise):
    log = tiny.watched(folder, "grpo", *FLAGS, "--reward=length.py:longer", "--batch_size=64",
                       "--k=8", "--steps=15", "--lr=1e-2", "--kl_coef=0.01",
                       f"--normalise={normalise}")
    assert log[0]["kl"] == 0 and log[-1]["kl"] > 0
    assert log[-1]["score"] > log[0]["score"] + 0.5
