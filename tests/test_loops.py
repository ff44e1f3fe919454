"""Each stage's first steps against a loop in the plainest form: no micro-batches, no padding, no
autocast; a sum over answers, a sum over tokens, and the formula of the docstring.

The oracles take the models, PyTorch's AdamW and the plan (which rows stand in which step) from the
project. Losses, gradients' length, learning rates, rewards and advantages are written out here."""

import json
from contextlib import nullcontext
from itertools import combinations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import common
from answer import complete
from checkpoint import fingerprint, load
from common import Runtime
from data.corpus import Corpus
from data.formats import read_comparisons, read_demonstrations, read_prompts, split
from model import GPT, GPTConfig, ScalarGPT
from pretrain import Config
from reward import batches, encode_answer, encode_comparison
from sft import pack
from tiny import FLAGS, build, interrupted, run, store, write

SHARES = [0.5, 1, 1, 0.5]      # of the peak: the warmup, then a straight line
STEPS, SEED = len(SHARES), 3
SHORT = (f"--steps={STEPS} --warmup=2 --eval_every=9 --lr=0.01 --weight_decay=0.3 --dropout=0 "
         f"--seed={SEED} --dtype=float64")


@pytest.fixture(autouse=True)
def precise(monkeypatch):
    """All numbers have 64 bits. Adam divides a gradient by its size: where it is nearly 0, the
    rounding errors of 32 bits would grow to a whole step."""
    monkeypatch.setitem(common.DTYPES, "float64", torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    monkeypatch.setattr(Runtime, "autocast", lambda self: nullcontext())
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_tokenizer):
    """Models with weights such that some gradients are longer than 1. Some of ppo.pt's answers
    end."""
    folder = build(tmp_path_factory.mktemp("loops"), tiny_tokenizer)
    config = GPTConfig(block_size=32, vocab_size=tiny_tokenizer.vocab_size, n_layer=2, n_embd=16,
                       n_hidden=32, tied=False)
    for seed, stage in enumerate(("pretrain", "sft", "reward", "ppo")):
        torch.manual_seed(seed)
        model = ScalarGPT(config, lm=True) if stage == "reward" else GPT(config)
        for p in model.parameters():
            torch.nn.init.normal_(p, mean=p.dim() == 1,
                                  std=0.2 if stage in ("reward", "ppo") else 0.05)
        if stage == "ppo":
            with torch.no_grad():
                model.lm_head.weight[tiny_tokenizer.end] *= 3
        store(folder / f"{stage}.pt", stage, model, tiny_tokenizer)
    return folder


def halves(folder, script, flags, step=1):
    """Run a script that is stopped after its first step, and continued: what it ends with."""
    flags = flags.split()
    assert interrupted(folder, script, step, *flags) == 130
    status, names = run(folder, script, *flags)
    assert status == 0
    return names


def log_p(model, ids, temperature=1.0):
    """log p of each of ids[1:], given the tokens before it."""
    logits = model(torch.tensor([ids[:-1]]))
    return (logits[0] / temperature).log_softmax(-1)[range(len(ids) - 1), ids[1:]]


def value(model, ids):
    """What a ScalarGPT says at each token. Beside a token it reads its log-probability."""
    with torch.no_grad():
        beside = F.pad(log_p(model.lm, ids), (1, 0))
    return model(torch.tensor([ids]), beside[None])[0]


def adamw(*models, decay, eps=1e-8, without=()):
    """Only matrices are decayed."""
    params = [p for m in models for p in m.parameters() if p.requires_grad
              and not any(p is other for other in without)]
    return torch.optim.AdamW([dict(params=[p for p in params if p.dim() == 2], weight_decay=decay),
                              dict(params=[p for p in params if p.dim() == 1], weight_decay=0)],
                             betas=(0.9, 0.95), eps=eps)


def descend(loss, lr, optimizer, *models):
    """One step. The gradient of each model is made as short as 1 where it is longer. Returns how
    long they were. Several models may have an optimizer and a learning rate each, in lists."""
    for p in (p for model in models for p in model.parameters()):
        p.grad = None
    loss.backward()
    lengths = []
    for model in models:
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        norm = sum((g ** 2).sum() for g in grads) ** 0.5
        for g in grads:
            g.mul_(min(1, 1 / (norm + 1e-6)))
        lengths.append(norm.item())
    for one, rate in zip(optimizer, lr) if isinstance(lr, list) else [(optimizer, lr)]:
        for group in one.param_groups:
            group["lr"] = rate
        one.step()
    return lengths


def assert_same(found, expected, start, lengths):
    """The weights of two models are equal, and not those that they started from. Some gradients,
    but not all, were clipped: else a loss times a number would lead to the same weights."""
    assert min(lengths) < 1 < max(lengths)
    found, expected = found.state_dict(), expected.state_dict()
    for name, w in expected.items():
        torch.testing.assert_close(found[name], w, rtol=0, atol=1e-8, msg=name)
    assert any((w - start[name]).abs().max() > 0.001 for name, w in expected.items())


def text_rows(folder, tok, T, n):
    """The first n rows of pretraining text, each [ids] of T + 1 tokens."""
    path = folder / "text.jsonl"
    corpus = Corpus(path, tok, folder / "cache", fingerprint(path))
    return corpus.shuffle(n * T + 1, SEED).rows(0, n, T).tolist()


# ---- pretraining ----------------------------------------------------------------------------

def newton_schulz(x):
    x = x / (x.norm() + 1e-7)
    for _ in range(3):
        x = 3.4445 * x - 4.7750 * x @ x.T @ x + 2.0315 * x @ x.T @ x @ x.T @ x
    return x


@torch.no_grad()
def muon(matrices, memory, lr, decay):
    for p in matrices:
        memory[p] = 0.95 * memory.get(p, 0) + 0.05 * p.grad
        step = 0.05 * p.grad + 0.95 * memory[p]
        p *= 1 - lr * decay
        p -= lr * max(1, p.size(0) / p.size(1)) ** 0.5 * newton_schulz(step)


@pytest.mark.parametrize("times", [0, 2])
def test_pretraining_follows_the_mean_loss_of_its_rows(folder, times):
    names = halves(folder, "pretrain", f"{FLAGS['pretrain']} {SHORT} --init=pretrain.pt "
                                       f"--muon={times} --out=text{times}.pt")
    (model, *_), (start, *_) = (load(folder / "pretrain.pt", names["rt"]) for _ in range(2))
    rows = text_rows(folder, names["tok"], 32, STEPS * 4)
    matrices = [p for p in model.blocks.parameters() if p.dim() == 2] if times else []
    optimizer, memory, lengths = adamw(model, decay=0.3, without=matrices), {}, []
    for step, share in enumerate(SHARES):
        losses = [-log_p(model, ids).mean() for ids in rows[step * 4:step * 4 + 4]]
        lengths += descend(sum(losses) / 4, 0.01 * share, optimizer, model)
        muon(matrices, memory, 0.01 * share * times, 0.3)
    assert_same(names["model"], model, start.state_dict(), lengths)


# ---- supervised fine-tuning -----------------------------------------------------------------

def test_sft_follows_the_mean_loss_of_the_assistants_tokens_and_of_text(folder):
    names = halves(folder, "sft", f"{FLAGS['sft']} {SHORT} --ptx=0.25 --out=chat.pt")
    (model, tok, _), (start, *_) = (load(folder / "pretrain.pt", names["rt"]) for _ in range(2))
    text = text_rows(folder, tok, 32, STEPS)
    # epsilon is the mean size of a gradient of norm 1
    eps = sum(p.numel() for p in model.parameters()) ** -0.5
    optimizer, lengths = adamw(model, decay=0.3, eps=eps), []
    rows, _ = split(read_demonstrations(folder / "sft.jsonl"), "messages")
    dialogues = [tok.encode_chat(row["messages"]) for row in rows]
    dialogues = [(ids[:33], mask[:33]) for ids, mask in dialogues if sum(mask[:33])]
    plan = pack([len(ids) for ids, _ in dialogues], 32, STEPS * 3, np.random.default_rng(SEED))
    assert max(map(len, plan)) > 1                    # some rows hold several dialogues
    for step, share in enumerate(SHARES):
        loss, count = -log_p(model, text[step]).sum(), 32
        for row in plan[step * 3:step * 3 + 3]:
            ids, mask = (sum((dialogues[i][k] for i in row), []) for k in (0, 1))
            for logp, learned in zip(log_p(model, ids), mask[1:]):
                loss, count = loss - logp * learned, count + learned
        lengths += descend(loss / count, 0.01 * share, optimizer, model)
    assert_same(names["model"], model, start.state_dict(), lengths)


# ---- comparisons ----------------------------------------------------------------------------

def test_comparisons_are_samples_ordered_by_their_grades_and_noise(folder, capsys):
    halves(folder, "compare", f"{FLAGS['compare']} --init=ppo.pt --temperature=0.3 --seed={SEED} "
                              "--dtype=float64 --out=compared.jsonl", step=8)
    said, (model, tok, _) = capsys.readouterr().out, load(folder / "ppo.pt", Runtime(Config()))
    rows = [json.loads(line) for line in open(folder / "compared.jsonl")]
    noise, rng, gaps, equal = rows[0]["noise"], np.random.default_rng(SEED), [], 0
    asked = [row["prompt"] for row in read_prompts(folder / "prompts.jsonl")[:32] for _ in "123"]
    ids, texts = [tok.encode_chat(prompt, reply=True)[0] for prompt in asked], []
    for start in range(0, 96, 8):                     # 8 answers share their random numbers
        said_now = complete(model, tok, ids[start:start + 8], Runtime(Config()), 6, 0.3,
                            seed=(SEED, start))
        texts += [tok.decode([i for i in answer if i != tok.end]) for answer in said_now]
    expected = []
    for k in range(0, 96, 3):
        found = [text for text in texts[k:k + 3] if text.strip()]
        equal += len(found) - len(set(found))
        found = list(dict.fromkeys(found))
        if len(found) > 1:
            grades = np.array([len(text) / 9 for text in found])
            heard = [-(grades / noise + rng.gumbel(size=len(found))) for _ in range(2)][0]
            gaps += [abs(a - b) / noise for a, b in combinations(grades, 2)]
            expected.append((asked[k], [found[i] for i in np.argsort(heard)]))
    assert [(row["prompt"], row["responses"]) for row in rows] == expected and equal
    assert all(row["grades"] == pytest.approx([len(t) / 9 for t in row["responses"]])
               for row in rows)
    p = 1 / (1 + np.exp(-np.array(gaps)))             # that the better one is put first
    assert np.mean(p ** 2 + (1 - p) ** 2) == pytest.approx(0.73)
    assert f"accuracy on such labels is {100 * np.mean(p):.1f}%" in said


# ---- the reward model -----------------------------------------------------------------------

def test_the_reward_model_follows_the_mean_loss_of_each_prompts_pairs(folder):
    rows = [dict(prompt=row["prompt"], responses=row["responses"],
                 ranks=[0, 1, 1] if i % 4 == 3 else list(range(len(row["responses"]))))
            for i, row in enumerate(read_comparisons(folder / "comparisons.jsonl"))]
    write(folder / "tied.jsonl", *rows)
    names = halves(folder, "reward", f"{FLAGS['reward']} {SHORT.replace('--dropout=0', '')} "
                                     "--data=tied.jsonl --out=scores.pt")
    sft, tok, _ = load(folder / "sft.pt", names["rt"])
    torch.manual_seed(SEED)
    model = ScalarGPT(sft.config, lm=True)
    model.gpt.load_state_dict(sft.state_dict(), strict=False)
    model.lm.load_state_dict(sft.state_dict())
    start = {name: w.clone() for name, w in model.state_dict().items()}
    optimizer, lengths = adamw(model, decay=0.3), []
    items = [encode_comparison(tok, row, 32) for row in split(rows)[0]]
    items = [item for item in items if item]
    for chosen, share in zip(batches(items, 4, STEPS, SEED), SHARES):
        loss = 0
        for ids, ranks in ((items[i]["ids"], items[i]["ranks"].tolist()) for i in chosen):
            scores, pairs = [value(model, answer)[-1] for answer in ids], []
            for a in range(len(ids)):
                pairs += [(a, b) for b in range(len(ids)) if ranks[a] < ranks[b]]
            loss += sum((1 + (scores[b] - scores[a]).exp()).log() for a, b in pairs) / len(pairs)
        lengths += descend(loss / 4, 0.01 * share, optimizer, model)
    # the demonstrations' scores get mean 0 and deviation 1
    with torch.no_grad():
        shown = [row["messages"] for row in read_demonstrations(folder / "sft.jsonl")]
        scores = torch.stack([value(model, encode_answer(tok, asked, said["content"], 32))[-1]
                              for *asked, said in shown])
        deviation = ((scores - scores.mean()) ** 2).sum().div(len(scores) - 1).sqrt()
        model.head.weight /= deviation
        model.head.bias.copy_((model.head.bias - scores.mean()) / deviation)
    assert_same(names["model"], model, start, lengths)


# ---- what both ways of reinforcement learning do --------------------------------------------

def score(reward, tok, ids, missing_end):
    """The number at the last token; less where the answer has no end, which is then added."""
    with torch.no_grad():
        if ids[-1] == tok.end:
            return value(reward, ids)[-1].item()
        return value(reward, ids + [tok.end])[-1].item() - missing_end


def prompts_that_fit(folder, tok, most):
    """[ids] of the prompts to train on, and of those held out."""
    rows = [dict(row, ids=tok.encode_chat(row["prompt"], reply=True)[0])
            for row in read_prompts(folder / "prompts.jsonl")]
    return [[row["ids"] for row in part]
            for part in split([row for row in rows if len(row["ids"]) <= most])]


def clipped(ratio, advantage, near=0.2):
    return torch.min(ratio * advantage, ratio.clamp(1 - near, 1 + near) * advantage)


# ---- GRPO -----------------------------------------------------------------------------------

GRPO = ("--data=prompts.jsonl --init=ppo.pt --reward=reward.pt --watch=length.py:longer "
        "--batch_size=16 --k=4 --minibatch=4 --max_new_tokens=6 --eval_every=9 --n_eval=1 "
        "--epochs=2 --steps=3 --lr=0.01 --temperature=0.8 --kl_coef=0.3 --missing_end=0.5 "
        f"--seed={SEED} --dtype=float64")


@pytest.mark.parametrize("normalise", [True, False])
def test_grpo_follows_its_formula_answer_by_answer_and_token_by_token(folder, normalise):
    names = halves(folder, "lessons/grpo", f"{GRPO} --normalise={normalise} "
                                           f"--out=groups_{normalise}.pt")
    tok, rt = names["tok"], names["rt"]
    (policy, *_), (reference, *_), (reward, *_) = (
        load(folder / f"{name}.pt", rt) for name in ("ppo", "ppo", "reward"))
    optimizer, lengths = adamw(policy, decay=0, eps=1e-5), []
    prompts, _ = prompts_that_fit(folder, tok, 32 - 6 - 1)
    plan = np.random.default_rng(SEED).permutation(len(prompts))         # 12 of them are asked
    ended = 0
    for step, share in enumerate([1 / 2, 2 / 3, 1 / 3]):
        asked = [prompts[i] for i in plan[step * 4:step * 4 + 4] for _ in range(4)]
        said = complete(policy, tok, asked, rt, 6, 0.8, seed=(SEED, step))
        ended += sum(answer[-1] == tok.end for answer in said)
        scores = [score(reward, tok, a + b, 0.5) for a, b in zip(asked, said)]
        rollout = []
        for i in sorted(range(16), key=lambda i: len(asked[i]) + len(said[i])):
            group, ids = scores[i // 4 * 4:i // 4 * 4 + 4], asked[i] + said[i]
            gain = scores[i] - sum(group) / 4
            if normalise:
                gain /= (sum((s - sum(group) / 4) ** 2 for s in group) / 4) ** 0.5 + 1e-4
            with torch.no_grad():
                old, ref = (log_p(m, ids, 0.8)[len(asked[i]) - 1:] for m in (policy, reference))
            rollout.append((ids, len(asked[i]), gain, old, ref))
        rt.seed(SEED, step, "epochs")
        for k in [k for _ in range(2) for k in torch.randperm(4).tolist()]:
            loss = 0
            for ids, start, gain, old, ref in rollout[k * 4:k * 4 + 4]:
                new = log_p(policy, ids, 0.8)[start - 1:]
                for n, o, r in zip(new, old, ref):
                    k3 = (r - n).exp() - (r - n) - 1
                    loss -= ((clipped((n - o).exp(), gain) - 0.3 * k3)
                             / (len(new) if normalise else 6) / 4)
            lengths += descend(loss, 0.01 * share, optimizer, policy)
    assert 0 < ended < 48
    assert_same(names["policy"], policy, reference.state_dict(), lengths)


# ---- PPO ------------------------------------------------------------------------------------

PPO = (f"{FLAGS['rlhf_ppo']} --init=ppo.pt --batch_size=12 --minibatch=4 --micro_batch=3 "
       "--epochs=2 --steps=3 --n_eval=3 --eval_every=9 --lr=0.01 --temperature=0.8 --kl_coef=0.3 "
       f"--gamma=0.9 --lam=0.8 --ptx_coef=0.2 --missing_end=0.5 --seed={SEED} "
       "--critic_lr=2 --critic_first=1 --dtype=float64 --out=answers.pt")


def test_ppo_follows_its_formulas_answer_by_answer_and_token_by_token(folder):
    names = halves(folder, "rlhf_ppo", PPO)
    tok, rt = names["tok"], names["rt"]
    (policy, *_), (reference, *_), (critic, *_), (reward, *_) = (
        load(folder / f"{name}.pt", rt) for name in ("ppo", "ppo", "reward", "reward"))
    start = {name: w.clone() for name, w in critic.state_dict().items()}
    optimizers, lengths = [adamw(net, decay=0, eps=1e-5) for net in (policy, critic)], []
    (prompts, held_out), text = prompts_that_fit(folder, tok, 32 - 6 - 1), text_rows(
        folder, tok, 32, 3 * 2 * 3)
    # the critic begins with the mean score of answers to held-out prompts
    said = complete(policy, tok, held_out[:3], rt, 6, 0.8, seed="evaluate")
    scores = [score(reward, tok, a + b, 0.5) for a, b in zip(held_out, said)]
    torch.nn.init.zeros_(critic.head.weight)
    torch.nn.init.constant_(critic.head.bias, sum(scores) / 3)
    plan, ended = np.random.default_rng(SEED).permutation(len(prompts)), 0
    for step, (share, critics) in enumerate([(0, 1 / 2), (1 / 2, 2 / 3), (1 / 3, 1 / 3)]):
        asked = [prompts[i] for i in plan[step * 12:step * 12 + 12]]
        said = complete(policy, tok, asked, rt, 6, 0.8, seed=(SEED, step))
        ended += sum(answer[-1] == tok.end for answer in said)
        rollout = []                                  # an answer: what each of its tokens needs
        for a, b in sorted(zip(asked, said), key=lambda pair: len(pair[0]) + len(pair[1])):
            with torch.no_grad():
                old, ref = (log_p(m, a + b, 0.8)[len(a) - 1:] for m in (policy, reference))
                values = value(critic, a + b)[len(a) - 1:-1]
            rewards = -0.3 * (old - ref)
            rewards[-1] += score(reward, tok, a + b, 0.5)
            errors = rewards + 0.9 * F.pad(values[1:], (0, 1)) - values
            gains = torch.stack([sum((0.9 * 0.8) ** (k - t) * errors[k] for k in range(t, len(b)))
                                 for t in range(len(b))])
            rollout.append([a + b, len(a) - 1, old, values, gains, gains + values])
        every = torch.cat([answer[4] for answer in rollout])
        for answer in rollout:                        # mean 0 and deviation 1
            answer[4] = (answer[4] - every.mean()) / (every.var(unbiased=False) + 1e-8).sqrt()
        rt.seed(SEED, step, "epochs")
        # a minibatch has one of every three answers of similar length, and counts as a third of all
        places = [torch.rand(4, 3).argsort(1) for _ in range(2)]
        batches = [[rollout[3 * i + p[i, k]] for i in range(4)] for p in places for k in range(3)]
        for minibatch, row in zip(batches, text[step * 6:step * 6 + 6]):
            loss, count = 0, len(every) / 3
            for ids, first, old, old_values, gains, returns in minibatch:
                ratio = (log_p(policy, ids, 0.8)[first:] - old).exp()
                values = value(critic, ids)[first:-1]
                near = torch.max(torch.min(values, old_values + 0.2), old_values - 0.2)
                wrong = torch.max((values - returns) ** 2, (near - returns) ** 2)
                loss += (wrong / 2 - clipped(ratio, gains)).sum()
            lengths += descend(loss / count - 0.2 * log_p(policy, row).mean(),
                               [0.01 * share, 0.02 * critics], optimizers, policy, critic)
    assert 0 < ended < 36
    assert_same(names["policy"], policy, reference.state_dict(), lengths[::2])
    assert_same(names["critic"], critic, start, lengths[1::2])
