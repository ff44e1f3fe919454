import json
from collections import defaultdict

import pytest
import torch

from model import GPT, GPTConfig
from optim import Muon, get_lr
from pretrain import Config, evaluate, show_sample
from tiny import ENV, FLAGS, run, write



@pytest.fixture(scope="module")
def model(tiny_tokenizer):
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=64, vocab_size=tiny_tokenizer.vocab_size, n_layer=1,
                          n_embd=32))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    return model


@pytest.mark.parametrize("warmup, steps, expected", [
    (10, 110, [0.2 * step for step in range(1, 11)] + [0.02 * k for k in range(100, -1, -1)]),
    (0, 10, [0.2 * left for left in range(10, -1, -1)]), (100, 2, [0.02, 0.04])],
    ids=["with a warmup", "without", "of a run that ends in its warmup"])
def test_the_learning_rate_rises_linearly_to_its_peak_then_falls_by_equal_steps_to_0(
        warmup, steps, expected):
    config = Config(lr=2.0, warmup=warmup, steps=steps)
    assert [get_lr(step, config) for step in range(len(expected))] == pytest.approx(expected)


def matrices():
    torch.manual_seed(3)
    return [torch.nn.Parameter(torch.randn(shape)) for shape in ((8, 12), (12, 8), (8, 12), (5, 5))]


def walk(params, optimizer, steps=4):
    torch.manual_seed(4)
    for group in optimizer.param_groups:
        group["lr"] = 0.05
    for _ in range(steps):
        for p in params:
            p.grad = torch.randn_like(p)
        optimizer.step()
    return params


def test_muon_takes_the_steps_of_pytorchs_which_rounds_to_bf16():
    ours, theirs = matrices(), matrices()
    walk(ours, Muon(ours, weight_decay=0.1))
    walk(theirs, torch.optim.Muon(theirs, weight_decay=0.1, ns_steps=3))
    for a, b, start in zip(ours, theirs, matrices()):
        assert (a - b).norm() < 0.01 * (b - start).norm()


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
    loss, by_source = evaluate(model, rows, 3, micro_batch, ENV)
    every = sum(nats.values(), [])
    assert loss.item() == pytest.approx(sum(every) / len(every), rel=1e-5)
    means = [sum(nats[s]) / len(nats[s]) for s in range(3)]
    assert by_source.tolist() == pytest.approx(means, rel=1e-5)


def test_evaluation_switches_dropout_off_and_on_again(rows, tiny_tokenizer):
    model = GPT(GPTConfig(block_size=64, vocab_size=tiny_tokenizer.vocab_size, n_layer=1, n_embd=32,
                          dropout=0.5)).train()
    first, second = (evaluate(model, rows, 3, 4, ENV)[0].item() for _ in range(2))
    assert first == second and model.training


def test_a_sample_is_the_same_whatever_random_numbers_came_before(model, tiny_tokenizer):
    torch.manual_seed(5)
    first = show_sample(model, tiny_tokenizer, ENV)
    torch.rand(7)
    assert show_sample(model, tiny_tokenizer, ENV) == first and model.training


@pytest.mark.parametrize("flag, known", [("--seed=0", ["entropy"]), ("--mix=wiki=1", [])])
def test_a_source_without_held_out_rows_is_left_out(tmp_path, tiny_tokenizer, flag, known, capsys):
    tiny_tokenizer.save(tmp_path / "tok.json")
    write(tmp_path / "forum.jsonl", *(dict(text=f"{i} Ada", logp=-9.0) for i in range(200)))
    write(tmp_path / "wiki.jsonl", dict(text="Ada", logp=-1.0))       # is for training
    status, _ = run(tmp_path, "pretrain", *FLAGS["pretrain"].split(), "--steps=1", flag,
                    "--data=forum.jsonl,wiki.jsonl", "--out=new.pt")
    said = capsys.readouterr().out
    assert status == 0 and "nan" not in said and "inf" not in said
    last = json.loads((tmp_path / "new.jsonl").read_text().splitlines()[-1])
    assert list(last["by_source"]) == ["forum"] and [k for k in last if k == "entropy"] == known
    assert "\nforum " in said and "\nwiki " not in said
