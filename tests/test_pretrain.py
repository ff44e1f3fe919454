from collections import defaultdict

import pytest
import torch

import tiny
from optim import Muon, get_lr, set_lr
from pretrain import Config, evaluate, show_sample
from tiny import ENV, FLAGS


@pytest.fixture(scope="module")
def model(tiny_tokenizer):
    """With dropout: whoever evaluates it must switch that off, and on again."""
    return tiny.model(tiny_tokenizer.vocab_size, dropout=0.5).train()


@pytest.mark.parametrize("warmup, steps, expected", [
    (10, 110, [0.2 * step for step in range(1, 11)] + [0.02 * k for k in range(100, -1, -1)]),
    (0, 10, [0.2 * left for left in range(10, -1, -1)]), (100, 2, [0.02, 0.04])],
    ids=["with a warmup", "without", "of a run that ends in its warmup"])
def test_the_learning_rate_rises_linearly_to_its_peak_then_falls_by_equal_steps_to_0(
        warmup, steps, expected):
    config = Config(lr=2.0, warmup=warmup, steps=steps)
    assert [get_lr(step, config) for step in range(len(expected))] == pytest.approx(expected)


def test_muon_takes_the_steps_of_pytorchs_which_rounds_to_bf16():
    torch.manual_seed(0)
    start = [torch.randn(shape) for shape in ((8, 12), (12, 8), (8, 12), (5, 5))]
    ours, theirs = ([torch.nn.Parameter(x.clone()) for x in start] for _ in range(2))
    optimizers = [Muon(ours, weight_decay=0.1),
                  torch.optim.Muon(theirs, weight_decay=0.1, ns_steps=3)]
    for _ in range(4):
        for a, b in zip(ours, theirs):
            a.grad = b.grad = torch.randn_like(a)
        for optimizer in optimizers:
            set_lr(optimizer, 0.05)
            optimizer.step()
    for a, b, x in zip(ours, theirs, start):
        assert (a - b).norm() < 0.01 * (b - x).norm()


@pytest.fixture(scope="module")
def rows(tiny_tokenizer):
    """Seven rows of random tokens from three sources; a third of the targets do not count."""
    torch.manual_seed(1)
    x, y = torch.randint(0, tiny_tokenizer.vocab_size, (2, 7, 20))
    source = torch.randint(0, 3, (7, 20))
    return x, y.masked_fill(torch.rand(7, 20) < 0.3, -1), source


@pytest.mark.parametrize("micro_batch", [1, 3, 7, 50])
def test_evaluation_equals_a_loop_over_tokens(model, rows, micro_batch):
    nats = defaultdict(list)
    for x, y, source in zip(*rows):
        with torch.no_grad():
            logp = model.eval()(x[None])[0].log_softmax(-1)
        for t in range(20):
            if y[t] >= 0:
                nats[source[t].item()].append(-logp[t, y[t]].item())
    loss, by_source = evaluate(model.train(), rows, 3, micro_batch, ENV)
    assert model.training
    every = sum(nats.values(), [])
    assert loss.item() == pytest.approx(sum(every) / len(every), rel=1e-5)
    means = [sum(nats[s]) / len(nats[s]) for s in range(3)]
    assert by_source.tolist() == pytest.approx(means, rel=1e-5)


def test_a_sample_is_the_same_whatever_random_numbers_came_before(model, tiny_tokenizer):
    torch.manual_seed(5)
    first = show_sample(model, tiny_tokenizer, ENV)
    torch.rand(7)
    assert show_sample(model, tiny_tokenizer, ENV) == first and model.training


@pytest.mark.parametrize("flag, known", [("--seed=0", True), ("--mix=wiki=1", False)])
def test_a_source_without_held_out_rows_is_left_out(tmp_path, tiny_tokenizer, flag, known):
    tiny_tokenizer.save(tmp_path / "tok.json")
    tiny.write("forum.jsonl", *(dict(text=f"{i} Ada", logp=-9.0) for i in range(200)))
    tiny.write("wiki.jsonl", dict(text="Ada", logp=-1.0))             # is for training
    said = "\n".join(tiny.printed(".", "pretrain", *FLAGS["pretrain"].split(), "--steps=1", flag,
                                  "--data=forum.jsonl,wiki.jsonl", "--out=new.pt"))
    last = tiny.read_log(tmp_path / "new.jsonl")[-1]
    assert list(last["by_source"]) == ["forum"] and ("entropy" in last) == known
    assert "nan" not in said and "inf" not in said
    assert "\nforum " in said and "\nwiki " not in said
