"""GRPO's loss against exact expectations. test_loops.py follows its formulas step by step."""

import torch

from lessons.grpo import Config, grpo_loss

FLAGS = ("--data=prompts.jsonl --init=sft.pt --watch=length.py:longer --batch_size=16 --k=4 "
         "--minibatch=8 --max_new_tokens=6 --eval_every=2 --n_eval=4").split()


def test_the_expected_gradient_raises_the_score_and_lowers_the_kl_of_the_reference_from_it():
    """Six answers of one token. The gradient of k3 on the policy's own samples is that of
    KL(reference || policy)."""
    torch.manual_seed(0)
    logits, ref, scores = torch.randn(3, 6, dtype=torch.float64)
    logits, ref = logits.requires_grad_(), ref.log_softmax(0)
    logp = logits.log_softmax(0)
    old, mean = logp.detach(), (logp.exp() * scores).sum().detach()
    loss, _ = grpo_loss(logp, old, ref, scores - mean, Config(kl_coef=0.3))
    found, = torch.autograd.grad((old.exp() * loss).sum(), logits)
    logp = logits.log_softmax(0)
    objective = (logp.exp() * scores).sum() - 0.3 * (ref.exp() * (ref - logp)).sum()
    wanted, = torch.autograd.grad(-objective, logits)
    torch.testing.assert_close(found, wanted)
