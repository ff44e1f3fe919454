import math
import random
from itertools import permutations
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from model import GPTConfig, ScalarGPT
from reward import encode_answer, evaluate, ranking_loss, score, score_all
from tiny import ENV, loud


@pytest.fixture(scope="module", params=[False, True], ids=["alone", "with a language model"])
def model(request, tiny_tokenizer):
    """As it is, and with the log-probabilities of a frozen language model beside the text."""
    return loud(ScalarGPT(GPTConfig(block_size=24, vocab_size=tiny_tokenizer.vocab_size, n_layer=2,
                                    n_embd=32, n_hidden=64), lm=request.param),
                std=0.3, shift=1)


# ---- the loss -------------------------------------------------------------------------------

@pytest.mark.parametrize("ranks", [
    [0, 1], [0, 1, 2], [0, 1, 2, 3, 4], [0, 0, 1], [0, 1, 1, 2], [0, 0, 1, 1, 1], [2, 0, 1]])
def test_the_loss_is_the_mean_over_all_pairs_of_a_prompt_with_its_gradient(ranks):
    scores = torch.randn(len(ranks), generator=torch.Generator().manual_seed(0)) * 3
    losses = [math.log(1 + math.exp(scores[j] - scores[i]))           # tied answers are no pair
              for i, j in permutations(range(len(ranks)), 2) if ranks[i] < ranks[j]]
    ranks = torch.tensor(ranks)
    assert ranking_loss(scores, ranks).item() == pytest.approx(np.mean(losses), rel=1e-5)
    assert torch.autograd.gradcheck(ranking_loss, (scores.double().requires_grad_(), ranks))


def test_scores_that_are_far_apart_the_wrong_way_cost_their_distance_and_no_more():
    scores = torch.tensor([-500.0, 500.0], requires_grad=True)       # log(sigmoid(x)) is -inf here
    loss = ranking_loss(scores, torch.tensor([0, 1]))
    loss.backward()
    assert loss.item() == 1000 and scores.grad.tolist() == [-1, 1]


# ---- scores ---------------------------------------------------------------------------------

@pytest.mark.parametrize("pad", [256, 65])
def test_scores_are_those_of_each_row_alone_at_its_last_token_whatever_pads(model, pad):
    rng = random.Random(0)
    rows = [rng.choices(range(256), k=k % 24 + 1) for k in range(70)]
    with torch.no_grad():
        expected = torch.stack([model(torch.tensor([row]))[0, -1] for row in rows])
    found = score_all(model, rows, SimpleNamespace(pad=pad), ENV, batch_size=5)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


# ---- the sequence that is scored ------------------------------------------------------------

@pytest.mark.parametrize("words", [0, 1, 5, 20, 100])
@pytest.mark.parametrize("asked", [1, 5, 20, 100])
@pytest.mark.parametrize("T", [8, 16, 33])
def test_whatever_is_cut_the_answers_start_and_the_end_remain(tiny_tokenizer, asked, words, T):
    prompt, response = [dict(role="user", content="What? " * asked)], "Ada has a cat. " * words
    ids = encode_answer(tiny_tokenizer, prompt, response, T)
    question, _ = tiny_tokenizer.encode_chat(prompt, reply=True)
    answer = tiny_tokenizer.encode(response)
    opened = len(ids) - 1 - ids[::-1].index(tiny_tokenizer.assistant)
    kept = ids[opened + 1:-1]
    assert len(ids) <= T and ids[-1] == tiny_tokenizer.end
    assert kept == answer[:len(kept)] and ids[:opened + 1] == question[-opened - 1:]
    assert len(kept) == len(answer) or len(kept) >= T // 2 - 1
    assert opened + 1 == len(question) or len(kept) < T - T // 2     # it gives way to half of T
    if len(question) + len(answer) + 1 <= T:
        assert ids == question + answer + [tiny_tokenizer.end]
    else:
        assert len(ids) == T                          # no more is cut than has to be


# ---- evaluation -----------------------------------------------------------------------------

def items(rng, graded):
    """Prompts with two to four answers; the labeler's grades, if they are known."""
    found = []
    for k in (2, 3, 4, 2, 4):
        grades = [rng.choice([1.0, 2.5, 4.0, 6.0]) for _ in range(k)]
        found.append(dict(ids=[rng.choices(range(256), k=rng.randint(2, 20)) for _ in range(k)],
                          ranks=torch.tensor(sorted(rng.choices(range(3), k=k - 1)) + [3]),
                          utility=torch.tensor(grades) / 1.5 if graded else None))
    return found


@pytest.mark.parametrize("n_graded, n_others", [(5, 0), (5, 5), (0, 5)])
def test_evaluation_equals_a_loop_over_prompts_and_pairs(model, tiny_tokenizer, n_graded, n_others):
    """Where grades are missing no ceiling is claimed."""
    data = items(random.Random(0), graded=True)[:n_graded]
    data += items(random.Random(1), graded=False)[:n_others]
    losses, right, allowed = [], [], []
    for item in data:
        with torch.no_grad():
            scores = [score(model, [ids], tiny_tokenizer, ENV).item() for ids in item["ids"]]
        mine, ranks, utility = [], item["ranks"].tolist(), item["utility"]
        for i, j in permutations(range(len(ranks)), 2):
            if ranks[i] < ranks[j]:
                mine.append(math.log(1 + math.exp(scores[j] - scores[i])))
                right.append(scores[i] > scores[j])
                if utility is not None:
                    allowed.append(1 / (1 + math.exp(-abs(utility[i] - utility[j]))))
        losses.append(np.mean(mine))
    assert evaluate(model, data, tiny_tokenizer, ENV) == pytest.approx(
        dict(val_loss=np.mean(losses), val_accuracy=np.mean(right),
             ceiling=None if n_others else np.mean(allowed)), rel=1e-4)


def test_a_model_that_gives_equal_scores_is_right_half_of_the_time(tiny_tokenizer):
    class Constant(torch.nn.Module):
        def forward(self, idx):
            return torch.ones(idx.shape)
    got = evaluate(Constant(), items(random.Random(0), graded=False), tiny_tokenizer, ENV)
    assert got["val_accuracy"] == 0.5 and got["val_loss"] == pytest.approx(math.log(2))
