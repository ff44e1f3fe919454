import itertools
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import tiny
from answer import answer_mask, complete, log_probs, right_pad
from model import GPT, GPTConfig, ScalarGPT
from rlhf_ppo import (Config, Rollout, assess, gae, get_lrs, minibatches, policy_loss, ppo_loss,
                      token_rewards, token_values, value_loss, whiten)
from tiny import ENV, close

PROMPTS = [[3], [4, 5, 6, 7], [8, 9], [10, 11, 12]]
RESPONSES = [[5, 6, 1], [7], [9, 9, 9, 9, 1], [2, 1]]


def loud(model, seed=0):
    """At these weights all tokens are about as likely."""
    return tiny.loud(model, std=0.3, shift=1, seed=seed)


# ---- advantages -----------------------------------------------------------------------------

@pytest.fixture(scope="module")
def ragged():
    """Rewards and values with noise outside the masks, which begin and end anywhere."""
    torch.manual_seed(0)
    mask = torch.zeros(8, 11, dtype=torch.bool)
    spans = [(0, 11), (0, 1), (10, 11), (3, 4), (0, 6), (4, 11), (2, 9), (5, 7)]
    for b, (start, end) in enumerate(spans):
        mask[b, start:end] = True
    return torch.randn(8, 11), torch.randn(8, 11), mask


@pytest.mark.parametrize("gamma, lam", [(1, 0.95), (0.9, 0.8), (0.99, 0), (1, 1)])
def test_gae_is_the_weighted_mean_of_all_n_step_advantages(ragged, gamma, lam):
    """And returns are advantages plus values."""
    rewards, values, mask = ragged
    expected = torch.zeros(8, 11)
    for b, t in mask.nonzero().tolist():
        r, v = (x[b][mask[b]].tolist() for x in ragged[:2])
        start = t - int(mask[b].nonzero()[0])
        r, v = r[start:], v[start:] + [0]             # from t to the end, which is worth 0
        n_step = [sum(gamma ** k * r[k] for k in range(n)) + gamma ** n * v[n] - v[0]
                  for n in range(1, len(r) + 1)]
        weights = [(1 - lam) * lam ** n for n in range(len(r) - 1)] + [lam ** (len(r) - 1)]
        expected[b, t] = sum(w * a for w, a in zip(weights, n_step))
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    close(advantages, expected)
    close(returns, expected + values * mask)


def test_whitening_is_a_shift_and_a_scale_by_the_biased_deviation_of_real_tokens(ragged):
    x, _, mask = ragged
    white = whiten(x.masked_fill(~mask, 1e6), mask, ENV)
    close(white[mask], (x[mask] - x[mask].mean()) / x[mask].std(unbiased=False))
    assert (white[~mask] == 0).all()
    close(whiten(torch.full((2, 3), 7.0), torch.ones(2, 3).bool(), ENV), torch.zeros(2, 3))


# ---- losses ---------------------------------------------------------------------------------

@pytest.mark.parametrize("advantage, ratio, loss, slope", [
    (1, 1.0, -1.0, -1.0),     # the slope of -ratio A in log p is itself
    (1, 1.1, -1.1, -1.1),
    (1, 1.5, -1.2, 0.0),      # good, and already likelier by more than a fifth: no further
    (1, 0.5, -0.5, -0.5),     # good, but less likely than before: back
    (-1, 0.9, 0.9, 0.9),
    (-1, 0.5, 0.8, 0.0),      # bad, and already less likely by more than a fifth: no further
    (-1, 1.5, 1.5, 1.5),      # bad, but likelier than before: back
    (0, 1.5, 0.0, 0.0),
])
def test_the_policy_loss_is_clipped_where_ppo_says(advantage, ratio, loss, slope):
    logp = torch.tensor([math.log(ratio) - 2], requires_grad=True)
    old_logp, advantages = torch.tensor([-2.0]), torch.tensor([float(advantage)])
    got, got_ratio, clipped = policy_loss(logp, old_logp, advantages, 0.2)
    got.sum().backward()
    close([got.item(), logp.grad.item(), got_ratio.item()], [loss, slope, ratio])
    assert bool(clipped) == (abs(ratio - 1) > 0.2)


@pytest.mark.parametrize("value, target, loss, slope", [
    (1.1, 2.0, 0.5 * 0.9 ** 2, -0.9),     # within 0.2 of the old value, 1: half the squared error
    (1.9, 2.0, 0.5 * 0.8 ** 2, 0.0),      # moved towards the target by more than that: no further
    (0.5, 2.0, 0.5 * 1.5 ** 2, -1.5),     # moved away: back
    (2.5, 1.9, 0.5 * 0.7 ** 2, 0.0),      # beyond the target, but the clipped 1.2 is as far off
])
def test_the_value_loss_is_the_larger_of_clipped_and_unclipped(value, target, loss, slope):
    values = torch.tensor([value], requires_grad=True)
    got = value_loss(values, torch.tensor([1.0]), torch.tensor([target]), 0.2)
    got.sum().backward()
    close([got.item(), values.grad.item()], [loss, slope])


def test_values_are_clipped_around_those_of_the_rollout():
    one = torch.ones(1)
    r = SimpleNamespace(mask=one.bool(), logp=0 * one, values=one, advantages=0 * one,
                        returns=2 * one)
    loss, *_ = ppo_loss(0 * one, 1.9 * one, r, Config(clip_value=0.2))
    close(loss, 0.5 * 0.8 ** 2)


def test_the_learning_rates_warm_up_for_one_iteration_and_fall_linearly_the_critics_first():
    config = Config(lr=2.0, critic_lr=1.5, critic_first=2, steps=10)
    policy, critic = zip(*(get_lrs(step, config) for step in range(10)))
    falling = [1 - step / 10 for step in range(10)]
    assert policy == pytest.approx([2 * share for share in [0, 0, 0.5, *falling[3:]]])
    assert critic == pytest.approx([3 * share for share in [0.5, *falling[1:]]])
    assert get_lrs(5, Config(steps=10, lr=1.0, critic_lr=2.0, decay=False)) == (1, 2)


# ---- a bandit whose answer is known ---------------------------------------------------------

def test_ppo_finds_the_distribution_that_maximises_score_minus_kl():
    """It is p(answer) ~ p_ref(answer) exp(score / beta). Answers are <end>, or a token and another,
    so there are 21 of them and all probabilities can be written down."""
    vocab, end, beta, n = 5, 4, 0.5, 256
    answers = [[end]] + [[a, b] for a in range(end) for b in range(vocab)]
    config = Config(steps=60, lr=8e-3, critic_first=0, temperature=2.0, missing_end=0.0)
    torch.manual_seed(0)
    said = [tuple(t for t in a if t != end) for a in answers]
    score = dict(zip(said, torch.randn(len(answers)).tolist()))
    size = GPTConfig(block_size=4, vocab_size=vocab, n_layer=1, n_head=1, n_kv_head=1, n_embd=32,
                     n_hidden=64, tied=False)
    policy, critic, reference = GPT(size), ScalarGPT(size), loud(GPT(size))
    policy.load_state_dict(reference.state_dict())
    tok = SimpleNamespace(pad=0, end=end, decode=tuple)

    def ask(answers):
        return assess([dict(ids=[0], prompt=[])] * len(answers), answers, policy, reference, critic,
                      lambda prompts, said: [score[tuple(a)] for a in said], tok, ENV, config)

    def distance():
        r = ask(answers)
        p, p_ref = r.logp.sum(1).exp(), r.ref_logp.sum(1).exp()
        close(torch.stack([p.sum(), p_ref.sum()]), torch.ones(2))
        best = p_ref * (r.scores / beta).exp()
        return (p - best / best.sum()).abs().sum().item() / 2         # total variation

    assert distance() > 0.3
    optimizer = torch.optim.Adam([*policy.parameters(), *critic.parameters()], eps=1e-5)
    for step in range(config.steps):
        optimizer.param_groups[0]["lr"] = get_lrs(step, config)[0]
        r = ask(complete(policy, tok, [[0]] * n, ENV, 2, config.temperature, seed=(1, step)))
        rewards = token_rewards(r, beta)
        r.advantages, r.returns = gae(rewards, r.values, r.mask, config.gamma, config.lam)
        r.advantages = whiten(r.advantages, r.mask, ENV)
        for a in (r[part] for _ in range(2) for part in minibatches(n, 128)):
            logp, _ = log_probs(policy, a.ids, a.mask, config.temperature)
            values = token_values(critic, a.ids, a.mask, a.lm_logp)
            loss, *_ = ppo_loss(logp, values, a, config)
            optimizer.zero_grad()
            (loss / a.mask.sum()).backward()
            optimizer.step()
    assert distance() < 0.03                          # 0.01 to 0.02 with other seeds


# ---- the script -----------------------------------------------------------------------------

SMALL = ("--data=prompts.jsonl --init=sft.pt --watch= --text= --ptx_coef=0 --steps=2 "
         "--batch_size=16 --minibatch=8 --micro_batch=4 --max_new_tokens=20 --eval_every=1 "
         "--n_eval=4")
REWARD = "def length(prompts, responses): return [len(r) / 10 for r in responses]"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_tokenizer):
    """Prompts of many lengths, policies that end two of five answers, a reward model and a reward
    function."""
    folder = tiny.build(tmp_path_factory.mktemp("ppo"), tiny_tokenizer)
    (folder / "mine.py").write_text(REWARD)
    config = GPTConfig(block_size=64, vocab_size=tiny_tokenizer.vocab_size, n_layer=2, n_embd=32,
                       n_hidden=64, tied=False)
    for seed, name in enumerate(("sft", "other")):
        policy = loud(GPT(config), seed)
        with torch.no_grad():
            policy.lm_head.weight[tiny_tokenizer.end] *= 1.5
        tiny.store(folder / f"{name}.pt", "sft", policy, tiny_tokenizer)
    tiny.store(folder / "reward.pt", "reward", loud(ScalarGPT(config)), tiny_tokenizer)
    return folder


def run(folder, flags):
    """The log of training, that of evaluation, and the names that the script ends with."""
    status, end = tiny.run(folder, "rlhf_ppo", *f"{SMALL} {flags} --out=ppo.pt --fresh".split())
    assert status == 0
    lines = tiny.read_log(folder / "ppo.jsonl")
    return [s for s in lines if "split" not in s], [s for s in lines if "split" in s], end


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-7), ("bfloat16", 1e-4)])
@pytest.mark.parametrize("lora", [0, 2])
def test_before_an_update_all_ratios_are_1_and_the_kl_is_0(folder, dtype, tolerance, lora):
    """At --lr=0 no update changes anything. The answers are scored in batches sorted and cropped by
    length, and trained on in others. approxkl is half the mean square of log(ratio)."""
    train, held_out, _ = run(folder, f"--reward=mine.py:length --lr=0 --temperature=0.6 "
                                     f"--dtype={dtype} --lora={lora}")
    for line in train:
        assert line["ppo/policy/approxkl"] == pytest.approx(0, abs=tolerance)
        assert line["ppo/val/ratio"] == pytest.approx(1, abs=math.sqrt(2 * tolerance))
        assert line["ppo/policy/clipfrac"] == 0
    assert [line["objective/kl"] for line in train] == [0, 0]
    assert [line["kl"] for line in held_out] == [0, 0, 0]


def test_what_ppo_maximises_is_the_score_minus_beta_times_the_kl(folder):
    """And the approximate KL of its updates is never negative."""
    train, *_ = run(folder, "--reward=reward.pt --kl_coef=0.3 --lr=3e-3 --steps=4")
    assert train[-1]["objective/kl"] != 0 and train[-1]["ppo/policy/approxkl"] > 1e-7
    for line in train:
        assert line["ppo/policy/approxkl"] > -1e-7
        assert line["objective/rlhf_reward"] == pytest.approx(
            line["objective/score"] - 0.3 * line["objective/kl"], abs=1e-4)


def test_reference_and_critic_start_from_the_checkpoints_that_are_named(folder):
    """The KL to another model than the policy is not 0, and stays while nothing is learned."""
    _, held_out, end = run(folder, "--reward=reward.pt --lr=0 --dtype=float32 "
                                   "--reference=other.pt --critic=other.pt")
    assert abs(held_out[0]["kl"]) > 0.01 and held_out[0]["kl"] == held_out[2]["kl"]
    other = torch.load(folder / "other.pt", weights_only=True)["model"]
    assert tiny.equal(other, dict(end["reference"].state_dict()))
    trunk = end["critic"].gpt.state_dict()
    assert tiny.equal({name: other[name] for name in trunk}, dict(trunk))


@pytest.mark.parametrize("reward", ["reward.pt", "mine.py:length"])
def test_with_lora_the_reference_is_the_policy_that_ppo_started_from_in_the_same_memory(folder,
                                                                                       reward):
    train, _, end = run(folder, f"--lora=2 --reward={reward} --critic_first=0 --lr=0.01 "
                                "--dtype=float32")
    assert train[0]["objective/kl"] == 0 != train[1]["objective/kl"]
    before = torch.load(folder / "sft.pt", weights_only=True)["model"]
    policy, reference, critic, reward = (end["models"][name] for name in (
        "policy", "reference", "critic", "reward"))
    assert tiny.equal(before, dict(reference.state_dict()))
    assert policy.wte.weight is reference.wte.weight
    trunk = reward.gpt if isinstance(reward, ScalarGPT) else reference
    mlp, theirs = critic.gpt.blocks[1].mlp, trunk.blocks[1].mlp
    assert mlp.fc.layer.weight.data_ptr() == theirs.fc.weight.data_ptr() and mlp.fc.B.any()


def test_a_prompt_that_just_fits_may_get_an_answer_without_an_end(folder, tiny_tokenizer):
    """Together they fill the model's context; the reward model still reads an end behind them."""
    asked = (f"What is {k} + 12?" + " Ada" * (k % 25) for k in range(10 ** 6))
    fit = (dict(prompt=text) for text in asked
           if len(tiny_tokenizer.encode_chat(text, reply=True)[0]) == 64 - 30 - 1)
    tiny.write(folder / "fit.jsonl", *itertools.islice(fit, 200))
    train, *_ = run(folder, "--data=fit.jsonl --reward=reward.pt --max_new_tokens=30")
    assert train[0]["ended"] < 1


# ---- a rollout ------------------------------------------------------------------------------

@pytest.mark.parametrize("micro_batch", [1, 3, 8])
@pytest.mark.parametrize("lm", ["of both", "of the reward model", ""])
def test_assess_says_of_each_answer_what_the_models_say_of_it_alone(micro_batch, lm):
    size = GPTConfig(block_size=12, vocab_size=20, n_layer=1, n_embd=32, n_hidden=64)
    policy, reference = loud(GPT(size), 1), loud(GPT(size), 2)
    critic = loud(ScalarGPT(size, lm=lm == "of both"), 3)
    reward = loud(ScalarGPT(size, lm=lm != ""), 4)
    critic.lm = reward.lm if critic.lm else None
    tok = SimpleNamespace(pad=0, end=1, decode=lambda ids: " ".join(map(str, ids)))
    rows = [dict(ids=p, prompt=[dict(role="user", content="?")]) for p in PROMPTS]
    config = Config(micro_batch=micro_batch, temperature=0.7, missing_end=3.0)
    r = assess(rows, RESPONSES, policy, reference, critic, reward, tok, ENV, config)
    for i, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES)):
        ids, n, mask = torch.tensor([prompt + response]), len(response), r.mask[i]
        assert mask.sum() == n and r.last[i] == mask.nonzero().max()
        assert r.ids[i][mask].tolist() == response and r.ended[i] == (response[-1] == 1)
        with torch.no_grad():
            for model, found in ((policy, r.logp), (reference, r.ref_logp)):
                logp = (model(ids)[0, -n - 1:-1] / 0.7).log_softmax(-1)
                close(found[i][mask], logp[range(n), response])
                if model is policy:
                    close(r.entropy[i][mask], -(logp.exp() * logp).sum(-1))
            close(r.values[i][mask], critic(ids)[0, -n - 1:-1])
            whole = ids if r.ended[i] else F.pad(ids, (0, 1), value=1)
            close(r.scores[i], reward(whole)[0, -1] - 3.0 * (not r.ended[i]))
        assert r.texts[i] == " ".join(str(t) for t in response if t != 1)
        for values in (r.logp, r.ref_logp, r.entropy, r.values):
            assert not values[i][~mask].any()


def test_a_part_of_a_rollout_is_those_answers_up_to_the_end_of_the_longest():
    ids, _ = right_pad([p + r for p, r in zip(PROMPTS, RESPONSES)], 0, "cpu")       # (4, 7)
    mask = answer_mask(PROMPTS, RESPONSES, "cpu")
    r = Rollout(ids, mask, *torch.rand(5, *ids.shape), torch.arange(4), mask[:, 0], list("abcd"),
                list("efgh"))
    assert r.last.tolist() == [3, 4, 6, 4]
    for part, chosen, T in ((slice(0, 2), [0, 1], 5), (torch.tensor([3, 0]), [3, 0], 5),
                            ([2], [2], 7)):
        a = r[part]
        for name in ("ids", "mask", "logp", "values", "lm_logp"):
            assert torch.equal(vars(a)[name], vars(r)[name][chosen, :T])
        assert a.scores.tolist() == chosen and a.last.tolist() == r.last[chosen].tolist()
        assert a.rows == ["abcd"[i] for i in chosen] and a.texts == ["efgh"[i] for i in chosen]
