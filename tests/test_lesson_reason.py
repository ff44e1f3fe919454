"""Reasoning from a checkable reward: rewards and weights against counting, and the script."""

import itertools
import random

import pytest
import torch

import lessons.reason as lesson
import tiny
from answer import answer_text, sum_logp
from lessons.chain_of_thought import at_once, by_steps, draw
from lessons.reason import (Config, advantages, contains, correct, demonstration, form, question,
                            token_weights)
from rlhf_ppo import policy_loss

FLAGS = ("--demos=8 --shown=4 --demo_steps=2 --steps=4 --batch_size=16 --k=4 --minibatch=8 "
         "--micro_batch=4 --max_new_tokens=6 --eval_every=2 --n_eval=2 --n_samples=4 "
         f"--reward={tiny.GRADE}").split()
ASKED = [[dict(role="user", content="How much is 3 + 9 + 14?")]]


# ---- rewards --------------------------------------------------------------------------------

@pytest.mark.parametrize("text, last, anywhere, shape", [
    ("3 + 9 + 14 = 26.", 1, 1, 0), ("3 + 9 = 12. 12 + 14 = 26.", 1, 1, 0),
    ("3 + 9 = 13. 13 + 14 = 26.", 1, 1, 0),           # nobody looks at the steps
    ("3 + 9 = 12. 12 + 14 = 26. 26 + 1 = 27.", 0, 1, 1),
    ("1 + 1 = 1. 1 + 1 = 1. 1 + 1 = 1.", 0, 0, 1),
    ("24. 25. 26. 27.", 0, 1, 0), ("3 + 9 + 14 = 260.", 0, 0, 0), ("3 + 9 + 14 = 26", 0, 1, 0),
    ("", 0, 0, 0)])
def test_what_each_reward_pays_for(text, last, anywhere, shape):
    assert correct(ASKED, [text]) == [last]
    assert contains(ASKED, [text]) == [anywhere] and form(ASKED, [text]) == [shape]


@pytest.mark.parametrize("write", [at_once, by_steps])
def test_every_demonstrated_answer_is_correct(write):
    rng = random.Random(0)
    for n in [3, 4, 5, 6] * 20:
        state = rng.getstate()
        prompt = question(rng, n)
        rng.setstate(state)
        assert correct([prompt], [write(draw(rng, n, held_out=False))]) == [1]


# ---- the idea -------------------------------------------------------------------------------

def test_without_a_baseline_the_scores_themselves_are_reinforced():
    scores = torch.tensor([1., 0, 0, 0, 1, 1, 1, 1])
    assert advantages(scores, Config(k=4, baseline=False)).tolist() == scores.tolist()
    centred = advantages(scores, Config(k=4, divide=False))
    assert centred.tolist() == [0.75, -0.25, -0.25, -0.25, 0, 0, 0, 0]
    assert advantages(scores, Config(k=4))[:4].tolist() == pytest.approx(
        [3 ** 0.5, *[-3 ** -0.5] * 3], rel=1e-3)


@pytest.mark.parametrize("by_answer, wanted", [
    (True, [[0, 0.25, 0.25], [0.5, 0, 0]]), (False, [[0, 1 / 3, 1 / 3], [1 / 3, 0, 0]])])
def test_each_answer_or_each_token_weighs_the_same(by_answer, wanted):
    mask = torch.tensor([[0, 1, 1], [1, 0, 0]]).bool()
    tiny.close(token_weights(mask, Config(by_answer=by_answer)), torch.tensor(wanted))


@pytest.mark.parametrize("baseline", [True, False])
def test_on_policy_the_mean_gradient_is_that_of_the_expected_score(baseline):
    """Over all pairs of one-token answers of a bandit. With the group's own mean it is half."""
    torch.manual_seed(0)
    logits, values = torch.randn(2, 4, dtype=torch.float64)
    logits.requires_grad_()
    wanted, = torch.autograd.grad(-logits.softmax(0) @ values, logits)
    config, found = Config(k=2, baseline=baseline, divide=False), 0
    for said in itertools.product(range(4), repeat=2):
        logp = logits.log_softmax(0)[[*said]]
        gains = advantages(values[[*said]], config)
        loss, *_ = policy_loss(logp, logp.detach(), gains, config.clip)
        loss = (loss * token_weights(torch.ones(2, 1), config)[:, 0]).sum()
        found = found + logp.sum().exp().detach() * torch.autograd.grad(loss, logits)[0]
    tiny.close(found * (2 if baseline else 1), wanted)


def test_the_first_demonstrations_are_worked_out_and_none_is_held_out(tiny_tokenizer):
    tok, config = tiny_tokenizer, Config(shown=10)
    said = [tok.decode([t for t, m in zip(*demonstration(tok, i, config)) if m])
            for i in range(30)]
    assert [text.count("=") > 1 for text in said] == [i < 10 for i in range(30)]
    learned = {str(question(random.Random(i), 3)) for i in range(300)}
    asked = {str(question(random.Random(i), 3, held_out=True)) for i in range(300)}
    assert not learned & asked


# ---- the script -----------------------------------------------------------------------------

@pytest.mark.parametrize("flags", ["", "--by_answer=false --divide=false", "--epochs=2"])
def test_it_raises_a_reward_of_ones_own(folder, tiny_tokenizer, flags):
    tiny.save(folder / "sft.pt", "sft", tiny_tokenizer, block_size=128)
    flags += (" --init=sft.pt --k=8 --lr=3e-2 --reward=length.py:longer --batch_size=64 "
              "--minibatch=16 --micro_batch=16 --steps=8 --n_samples=1 --out=reason.pt --fresh")
    assert tiny.run(folder, "lessons/reason", *FLAGS, *flags.split())[0] == 0
    scores = [row["score"] for row in tiny.read_log(folder / "reason.jsonl") if "score" in row]
    assert scores[-1] > scores[0] + 0.5
    assert {"reason_start.pt", "reason_prompts.jsonl"} <= {path.name for path in folder.iterdir()}


def test_the_six_lines_of_the_page_follow_the_policy_gradient(tiny_tokenizer):
    """With SGD at a rate of 1 the weights move by the gradient, which is taken by hand."""
    page = (tiny.ROOT / "docs/lessons.md").read_text("utf-8")
    code = page.partition("### Reasoning")[2].partition("```python\n")[2].partition("```")[0]
    tok, rt = tiny_tokenizer, tiny.ENV
    policy = tiny.model(tok.vocab_size, block_size=160)
    before = [p.detach().clone() for p in policy.parameters()]
    optimizer = torch.optim.SGD(policy.parameters(), lr=1.0)
    prompts = [[dict(role="user", content=f"What is {i} + 1?")] for i in range(6)]
    space = dict(vars(lesson), policy=policy, tok=tok, rt=rt, optimizer=optimizer, prompts=prompts,
                 asked=[tok.encode_chat(p, reply=True)[0] for p in prompts], sum_logp=sum_logp,
                 correct=lambda prompts, texts: [float(len(t)) for t in texts])
    exec(code, space)
    moved = [a - b.detach() for a, b in zip(before, policy.parameters())]
    for p, b in zip(policy.parameters(), before):
        p.data.copy_(b)
    scores = [len(answer_text(tok, a)) for a in space["answers"]]
    loss = 0
    for s, ids, said in zip(scores, space["asked"], space["answers"]):
        logits = policy(torch.tensor([ids + said[:-1]]))[0, len(ids) - 1:]
        logp = logits.log_softmax(-1)[range(len(said)), said].sum()
        loss = loss - (s - sum(scores) / 6) * logp / 6
    for m, g in zip(moved, torch.autograd.grad(loss, [*policy.parameters()])):
        tiny.close(m, g, atol=1e-4)
