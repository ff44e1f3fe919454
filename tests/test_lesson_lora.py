import numpy as np
import pytest
import torch

import tiny
from lessons import lora
from lessons.lora import Config, kept_for_backward, prepare, renew
from model import GPT, GPTConfig
from tiny import ENV

FLAGS = ("--steps=6 --batch_size=2 --warmup=2 --methods=all:1,last1:1,lora2:2 "
         "--test=test.jsonl").split()


def small(**changes):
    torch.manual_seed(0)
    return tiny.awake(GPT(GPTConfig(block_size=16, vocab_size=50, n_layer=2, n_embd=32, n_hidden=48,
                                    **changes)))


# ---- what is beside it ----------------------------------------------------------------------

@pytest.mark.parametrize("tied", [True, False])
def test_only_tokens_that_pretraining_never_saw_get_new_embeddings(tied):
    model, before = small(tied=tied), small(tied=tied)
    unseen = np.array([7, 30])
    renew(model, unseen)
    for name in ("wte.weight", "lm_head.weight"):
        old, new = before.state_dict()[name], model.state_dict()[name]
        changed = (old != new).any(1).nonzero().flatten().tolist()
        assert changed == [7, 30]
        length = old.norm(dim=1).mean().item()
        assert new[unseen].norm(dim=1).tolist() == pytest.approx([length / 2] * 2)
        assert abs(torch.cosine_similarity(*new[unseen], dim=0)) < 0.6


@pytest.mark.parametrize("method, trained", [
    ("all:1", ("wte", "blocks.0", "blocks.1", "norm", "lm_head")),
    ("last1:1", ("blocks.1", "norm")),
    ("last2:0.5", ("blocks.0", "blocks.1", "norm"))])
def test_a_method_trains_its_part(method, trained, monkeypatch):
    monkeypatch.setattr(lora, "load_checkpoint", lambda *_: dict(model=small()))
    model, optimizer = prepare([], method, Config(), ENV)
    for name, p in model.named_parameters():
        assert p.requires_grad == name.startswith(trained)
    listed = [p for group in optimizer.param_groups for p in group["params"]]
    assert sum(map(torch.numel, listed)) == sum(
        p.numel() for p in model.parameters() if p.requires_grad)


def test_activations_are_counted_once_and_without_weights():
    """x @ W.T, squared: for the backward pass x and the product are needed, 4 bytes a number."""
    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(5, 7, bias=False)

        def forward(self, x, y):
            return (self.layer(x) ** 2).sum()

    assert kept_for_backward(Two(), torch.randn(3, 5), None) == 4 * (3 * 5 + 3 * 7)


# ---- the far task ---------------------------------------------------------------------------

def test_far_from_the_text_answers_are_learned_and_judged_backwards(monkeypatch):
    ask = [dict(role="user", content="What is 3 + 4?")]
    row = dict(messages=[*ask, dict(role="assistant", content="3 + 4 = 7.")], kind="sum")
    [turned] = lora.backwards([row])
    assert turned["messages"][0] == ask[0] and turned["messages"][1]["content"] == "7. = 4 + 3"
    rows = [dict(prompt=ask, kind=kind) for kind in ("sum", "fact", "wish")]
    monkeypatch.setattr(lora, "respond", lambda *_, **__: [("7. = 4 + 3", True)] * 3)
    assert lora.measure(None, None, rows, ENV, far=True)[1].startswith("100.0%")
    assert lora.measure(None, None, rows, ENV, far=False)[1].startswith("0.0%")
