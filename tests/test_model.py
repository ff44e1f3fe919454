"""Three models stand for all: the laptop's default, GPT-2, and LLaMA with grouped queries."""

import math
from collections import Counter

import pytest
import torch
from torch.nn import functional as F

from answer import generate, log_probs, sample
from checkpoint import build_model, freeze
from model import GPT, STYLES, GPTConfig, KVCache, ScalarGPT, rotary_turns, rotate
from optim import adamw

V = 40
SIZES = {
    "laptop": dict(STYLES["laptop"], n_head=2, n_kv_head=2, n_hidden=96),
    "gpt2": dict(STYLES["gpt2"], n_head=2, n_kv_head=2, n_hidden=96),
    "llama": dict(STYLES["llama"], n_head=4, n_kv_head=2, n_hidden=48),
}


def config(style, **changes):
    sizes = dict(block_size=24, vocab_size=V, n_layer=2, n_embd=32)
    return GPTConfig(**{**sizes, **SIZES[style], **changes})


def loud(model, seed=0):
    """Random weights far from their initial values. At those, attention is all but uniform and
    norms and biases do nothing, so that many a bug would not show."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.2 if p.dim() > 1 else 0.1).add_(0 if p.dim() > 1 else 0.5)
    return model.eval()


@pytest.fixture(params=SIZES)
def style(request):
    return request.param


@pytest.fixture
def model(style):
    return loud(GPT(config(style)))


@pytest.fixture(params=[False, True], ids=["", "reads an lm"])
def scalar(style, request):
    return loud(ScalarGPT(config(style), lm=request.param))


def tokens(*shape, seed=0):
    return torch.randint(0, V, shape, generator=torch.Generator().manual_seed(seed))


def pad_left(prompts, pad=0):
    """Lists of ids -> ids (B, T) and mask (B, T), 1 on real tokens."""
    T = max(map(len, prompts))
    idx = torch.tensor([[pad] * (T - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (T - len(p)) + [1] * len(p) for p in prompts])
    return idx, mask


PROMPTS = [tokens(n, seed=n).tolist() for n in (5, 9, 1, 6)]


def close(a, b, atol=1e-5):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


# ---------------------------------------------------------------------------------------------
# the forward pass

def test_future_tokens_do_not_change_the_past(model):
    idx, changed = tokens(2, 12), tokens(2, 12)
    changed[:, 7:] = tokens(2, 5, seed=1)
    before, after = model(idx), model(changed)
    close(before[:, :7], after[:, :7], atol=0)
    assert not torch.allclose(before[:, 7:], after[:, 7:])


def test_every_past_token_can_change_the_present(model):
    idx = tokens(1, 8)
    last = model(idx)[0, -1]
    for t in range(8):
        changed = idx.clone()
        changed[0, t] = (idx[0, t] + 1) % V
        assert (model(changed)[0, -1] - last).abs().max() > 1e-3, f"token {t} is not seen"


def test_the_order_of_the_past_matters(model):
    idx = tokens(1, 8)
    swapped = idx[:, [1, 0, 2, 3, 4, 5, 6, 7]]
    assert not torch.allclose(model(idx)[0, -1], model(swapped)[0, -1], atol=1e-3)


def test_attention_equals_the_formula_written_as_loops(model):
    attn, x = model.blocks[0].attn, torch.randn(1, 5, 32)
    H, K, T = attn.n_head, attn.n_kv_head, 5
    D = 32 // H
    qkv = attn.qkv(x)[0].detach()                                     # (T, (H + 2 K) D)
    rotary = model.config.pos == "rope"

    def turned(vector, t):
        """Each pair (2i, 2i + 1) is turned by the angle t * theta^(-2 i / D)."""
        if not rotary:
            return vector.tolist()
        out = []
        for i in range(D // 2):
            angle, (x, y) = t * 10000.0 ** (-2 * i / D), vector[2 * i:2 * i + 2].tolist()
            out += [x * math.cos(angle) - y * math.sin(angle),
                    x * math.sin(angle) + y * math.cos(angle)]
        return out

    y = torch.zeros(1, T, 32)
    for h in range(H):
        shared = h // (H // K)                                        # the key head of this query
        for t in range(T):
            q = turned(qkv[t, h * D:(h + 1) * D], t)
            scores, values = [], []
            for s in range(t + 1):
                k = turned(qkv[s, (H + shared) * D:(H + shared + 1) * D], s)
                scores.append(sum(a * b for a, b in zip(q, k)) / math.sqrt(D))
                values.append(qkv[s, (H + K + shared) * D:(H + K + shared + 1) * D])
            total = sum(math.exp(score) for score in scores)
            y[0, t, h * D:(h + 1) * D] = sum(math.exp(score) / total * value
                                             for score, value in zip(scores, values))

    turns = rotary_turns(torch.arange(T), model.config) if rotary else None
    causal = torch.full((T, T), -math.inf).triu(1)
    close(attn(x, turns, causal, None), attn.proj(y))


def test_rope_depends_on_relative_distance_only():
    q, k = torch.randn(2, 1, 1, 1, 16)
    turns = rotary_turns(torch.arange(24), config("laptop"))

    def score(m, n):
        return (rotate(q, turns[m]) * rotate(k, turns[n])).sum()

    close(score(3, 1), score(19, 17))
    assert abs(score(3, 1) - score(3, 2)) > 1e-3


def test_rope_keeps_lengths_and_leaves_position_zero_alone():
    x = torch.randn(1, 1, 24, 16)
    turned = rotate(x, rotary_turns(torch.arange(24), config("laptop")))
    close(turned.norm(dim=-1), x.norm(dim=-1))
    close(turned[:, :, 0], x[:, :, 0], atol=0)


def test_pairs_are_turned_alike_with_and_without_the_compiler(monkeypatch):
    x, turns = torch.randn(2, 3, 24, 16), rotary_turns(torch.arange(24), config("laptop"))
    eager = rotate(x, turns)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    close(rotate(x, turns), eager)


def test_the_fused_kernel_gives_what_the_written_out_attention_gives(model, monkeypatch):
    idx, mask = pad_left(PROMPTS)
    monkeypatch.setattr("model.fused_is_faster", lambda q: True)
    fused = model(idx), model(idx, mask=mask)
    monkeypatch.setattr("model.fused_is_faster", lambda q: False)
    close(model(idx), fused[0])
    close(model(idx, mask=mask)[mask.bool()], fused[1][mask.bool()])


@pytest.mark.parametrize("fused", [True, False])
def test_either_attention_continues_from_the_cache(model, monkeypatch, fused):
    monkeypatch.setattr("model.fused_is_faster", lambda q: fused)
    idx = tokens(2, 12)
    cache = KVCache(model.config, 2, 12, idx.device, torch.float32)
    pieces = [model(piece, cache=cache) for piece in idx.split((5, 4, 1, 2), dim=1)]
    close(torch.cat(pieces, dim=1), model(idx))


def test_dropout_acts_in_training_only(style):
    model = loud(GPT(config(style, dropout=0.5)))
    idx = tokens(2, 8)
    close(model(idx), model(idx), atol=0)
    model.train()
    assert not torch.allclose(model(idx), model(idx))


def test_bf16_autocast_stays_near_fp32_and_finite(model):
    idx, mask = pad_left(PROMPTS)
    exact = model(idx, mask=mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(idx, mask=mask).float()
    assert rough.isfinite().all()
    error = (rough - exact)[mask.bool()].pow(2).mean().sqrt()
    assert error < 0.05 * exact[mask.bool()].std()


def test_too_long_input_is_a_value_error(model):
    assert model(tokens(1, 24)).shape == (1, 24, V)
    with pytest.raises(ValueError, match="25 tokens do not fit block_size=24"):
        model(tokens(1, 25))


# ---------------------------------------------------------------------------------------------
# the cache and the padding

def test_reading_token_by_token_with_the_cache_gives_the_same_logits(model):
    idx = tokens(3, 12)
    cache = KVCache(model.config, 3, 12, idx.device, torch.float32)
    steps = [model(idx[:, t:t + 1], cache=cache) for t in range(12)]
    close(torch.cat(steps, dim=1), model(idx))


def test_reading_in_pieces_with_the_cache_gives_the_same_logits(model):
    idx = tokens(3, 12)
    cache = KVCache(model.config, 3, 20, idx.device, torch.float32)
    pieces = [model(piece, cache=cache) for piece in idx.split((5, 4, 1, 2), dim=1)]
    close(torch.cat(pieces, dim=1), model(idx))


def test_the_cache_gives_the_logits_of_each_unpadded_row_when_prompts_differ_in_length(model):
    idx, mask = pad_left(PROMPTS)
    more = tokens(4, 6, seed=7)
    cache = KVCache(model.config, 4, 15, idx.device, torch.float32)
    logits = [model(idx, mask=mask, cache=cache)]
    for t in range(6):
        mask = F.pad(mask, (0, 1), value=1)
        logits.append(model(more[:, t:t + 1], mask=mask, cache=cache))
    logits = torch.cat(logits, dim=1)
    for i, prompt in enumerate(PROMPTS):
        alone = model(torch.tensor([prompt + more[i].tolist()]))[0]
        close(logits[i, 9 - len(prompt):], alone)


def test_the_cache_forgets_finished_rows(model):
    idx = tokens(4, 6)
    cache = KVCache(model.config, 4, 8, idx.device, torch.float32)
    model(idx, cache=cache)
    rows = torch.tensor([0, 3])
    cache.keep(rows)
    new = tokens(2, 1, seed=1)
    close(model(new, cache=cache), model(torch.cat([idx[rows], new], dim=1))[:, -1:])


def test_left_padding_changes_nothing(model):
    idx, mask = pad_left(PROMPTS)
    padded = model(idx, mask=mask)
    for i, prompt in enumerate(PROMPTS):
        close(padded[i, 9 - len(prompt):], model(torch.tensor([prompt]))[0])


def test_what_stands_in_the_padding_changes_nothing(model):
    (idx, mask), (other, _) = pad_left(PROMPTS), pad_left(PROMPTS, pad=17)
    real = mask.bool()
    close(model(idx, mask=mask)[real], model(other, mask=mask)[real], atol=0)


def test_a_boolean_mask_is_as_good_as_ones_and_zeros(model):
    idx, mask = pad_left(PROMPTS)
    close(model(idx, mask=mask), model(idx, mask=mask.bool()), atol=0)


def test_what_else_is_in_the_batch_changes_nothing(model):
    idx = tokens(4, 10)
    together = model(idx)
    for i in range(4):
        close(together[i:i + 1], model(idx[i:i + 1]))


# ---------------------------------------------------------------------------------------------
# generation

STOP = list(range(0, V, 7))     # several stop ids, so that rows end at different times


def greedy_by_hand(model, prompt, n, stop=()):
    """One row, no cache, no padding: the answer without the prompt."""
    ids = list(prompt)
    for _ in range(n):
        ids.append(model(torch.tensor([ids]))[0, -1].argmax().item())
        if ids[-1] in stop:
            break
    return ids[len(prompt):]


def test_generation_in_a_batch_equals_generating_each_row_alone(model):
    prompts = [tokens(1 + i % 5, seed=i).tolist() for i in range(24)]
    idx, mask = pad_left(prompts)
    batch = generate(model, idx, 12, mask=mask, temperature=0, stop=STOP, pad=V - 1)[:, 5:].tolist()
    alone = [greedy_by_hand(model, p, 12, STOP) for p in prompts]
    assert len({len(a) for a in alone}) >= 3, "the test needs rows that end at different times"
    assert batch == [a + [V - 1] * (len(batch[0]) - len(a)) for a in alone]


def test_the_prompt_stands_before_what_is_generated(model):
    idx = tokens(2, 5)
    out = generate(model, idx, 4)
    assert out.shape == (2, 9) and torch.equal(out[:, :5], idx)


def test_after_the_stop_id_only_padding_comes(model):
    out = generate(model, tokens(20, 3), 20, stop=STOP, pad=V - 1)[:, 3:].tolist()
    ended = [next((t for t, id in enumerate(row) if id in STOP), None) for row in out]
    assert len(set(ended)) > 3
    for row, end in zip(out, ended):
        assert end is None or set(row[end + 1:]) <= {V - 1}


def test_generation_ends_when_all_rows_have_stopped(model):
    out = generate(model, tokens(3, 5), 12, stop=range(V), pad=0)
    assert out.shape == (3, 6)


def test_generation_goes_as_far_as_the_block_allows(model):
    assert generate(model, tokens(1, 20), 100).shape == (1, 24)


def test_a_prompt_that_fills_the_block_is_a_value_error(model):
    with pytest.raises(ValueError, match="a prompt of 24 tokens fills block_size=24"):
        generate(model, tokens(1, 24), 1)


def test_no_new_tokens_means_the_prompt_alone(model):
    idx = tokens(2, 5)
    assert torch.equal(generate(model, idx, 0), idx)


def test_a_seed_fixes_the_text(model):
    def text(seed):
        return generate(model, tokens(4, 3), 15, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(text(1), text(1))
    assert not torch.equal(text(1), text(2))


def test_a_generator_leaves_the_global_random_numbers_alone(model):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    generate(model, tokens(1, 3), 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.rand(1), expected)


def test_top_k_of_one_is_greedy(model):
    idx = tokens(4, 3)
    assert torch.equal(generate(model, idx, 15, top_k=1), generate(model, idx, 15, temperature=0))


def test_a_tiny_top_p_is_greedy(model):
    idx = tokens(4, 3)
    assert torch.equal(generate(model, idx, 15, top_p=1e-6), generate(model, idx, 15, temperature=0))


def kept_and_rescaled(logits, temperature, top_k, top_p):
    """The distribution to sample from, by the definitions: {id: probability}."""
    powers = {i: math.exp(x / temperature) for i, x in enumerate(logits)}
    order = sorted(powers, key=powers.get, reverse=True)
    if top_k:
        order = order[:top_k]
    total, kept, reached = sum(powers[i] for i in order), [], 0.0
    for i in order:
        if reached >= top_p:
            break
        kept.append(i)
        reached += powers[i] / total
    total = sum(powers[i] for i in kept)
    return {i: powers[i] / total for i in kept}


@pytest.mark.parametrize("options", [
    dict(), dict(temperature=0.5), dict(temperature=2.0), dict(top_k=3), dict(top_p=0.6),
    dict(top_p=0.9), dict(temperature=1.7, top_k=5, top_p=0.8), dict(top_k=100)],
    ids=lambda o: " ".join(f"{k}={v}" for k, v in o.items()) or "plain")
def test_sampled_frequencies_match_the_distribution_by_definition(options):
    logits, n = [0.3, -1.0, 1.4, 0.9, -2.0, 0.0, 1.1, -0.4], 40_000
    ids = sample(torch.tensor(logits).expand(n, -1), **options,
                 generator=torch.Generator().manual_seed(0))
    counts = Counter(ids.tolist())
    probs = kept_and_rescaled(logits, **dict(dict(temperature=1.0, top_k=0, top_p=1.0), **options))
    assert set(counts) == set(probs)
    chi_square = sum((counts[i] - n * p) ** 2 / (n * p) for i, p in probs.items())
    assert chi_square < 25                            # seven degrees of freedom: P = 0.0008


def test_rows_are_sampled_by_their_own_distributions():
    logits = torch.full((3, 5), -50.0)
    logits[[0, 1, 2], [4, 0, 2]] = 50.0
    for options in (dict(), dict(top_k=2), dict(top_p=0.9)):
        assert sample(logits, **options).tolist() == [4, 0, 2]


@pytest.mark.parametrize("temperature", [0.0, 1e-300, 1e-40, 1e-12])
def test_a_temperature_of_nearly_0_takes_the_most_probable_token(temperature):
    logits = torch.tensor([[0.3, 90.0, -7.0], [2.0, 1.0, 1.9]])
    assert sample(logits, temperature).tolist() == [1, 0]


def test_at_a_temperature_of_nearly_0_the_most_probable_tokens_have_probability_1(model):
    idx = tokens(2, 6)
    likely, mask = model(idx[:, :-1]).argmax(-1), torch.arange(6).expand(2, 6) > 0
    for temperature in (0.0, 1e-40):
        logp, _ = log_probs(model, idx, mask, temperature)
        assert logp.isfinite().all() and ((logp == 0) == (likely == idx[:, 1:]).flatten()).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("options", [dict(), dict(temperature=0), dict(top_k=2), dict(top_p=0.5)])
def test_logits_that_are_no_numbers_give_no_token(bad, options):
    with pytest.raises(ValueError, match="logits are no longer numbers"):
        sample(torch.tensor([[0.0, 1.0, 2.0], [0.0, bad, 2.0]]), **options)


def test_forbidden_tokens_are_never_sampled():
    logits = torch.tensor([[-math.inf, 0.0, -math.inf]]).expand(100, -1)
    assert {*sample(logits).tolist(), *sample(logits, 0).tolist()} == {1}


# ---------------------------------------------------------------------------------------------
# the loss and its gradients

def test_the_loss_at_the_start_is_about_that_of_guessing(style):
    torch.manual_seed(0)
    model = GPT(config(style))
    loss = model(tokens(8, 24), tokens(8, 24, seed=1))
    assert abs(loss.item() - math.log(V)) < 0.05


def test_the_loss_is_the_mean_negative_log_probability_of_the_targets(model):
    idx, targets = tokens(2, 6), tokens(2, 6, seed=1)
    logits, loss = model(idx), model(idx, targets)
    probs = logits.exp() / logits.exp().sum(-1, keepdim=True)
    by_hand = [-math.log(probs[b, t, targets[b, t]].item()) for b in range(2) for t in range(6)]
    assert loss.item() == pytest.approx(sum(by_hand) / 12, rel=1e-5)


def test_targets_of_minus_one_do_not_count(model):
    idx, targets = tokens(2, 6), tokens(2, 6, seed=1)
    each = model(idx, targets, reduction="none").view(2, 6)
    targets[0, 1:4] = -1
    keep = (targets != -1).float()
    close(model(idx, targets), (each * keep).sum() / keep.sum())
    close(model(idx, targets, reduction="sum"), (each * keep).sum(), atol=1e-4)


def test_where_gives_the_logits_of_those_positions(model):
    idx, where = tokens(3, 7), tokens(3, 7, seed=1) % 3 == 0
    close(model(idx, where=where), model(idx)[where])


def test_one_batch_can_be_learned_by_heart(style):
    torch.manual_seed(0)
    model = GPT(config(style))
    idx, targets = tokens(4, 16), tokens(4, 16, seed=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(80):
        loss = model(idx, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05


def check_gradients(model, compute_loss):
    """Every parameter's gradient against central differences, at three random entries each."""
    compute_loss().backward()
    rng, step = torch.Generator().manual_seed(0), 1e-5
    for name, p in model.named_parameters():
        flat = p.data.view(-1)
        for i in torch.randint(flat.numel(), (3,), generator=rng).tolist():
            value, sides = flat[i].item(), []
            for shift in (step, -step):
                flat[i] = value + shift
                sides.append(compute_loss().item())
            flat[i] = value
            slope = (sides[0] - sides[1]) / (2 * step)
            assert p.grad.view(-1)[i].item() == pytest.approx(slope, rel=1e-5, abs=1e-8), name


def test_gradients_equal_finite_differences(style):
    model = loud(GPT(config(style, n_layer=1))).double()
    idx, targets = tokens(2, 5), tokens(2, 5, seed=1)
    # the loss of forward() is in fp32: too coarse for differences
    check_gradients(model, lambda: F.cross_entropy(model(idx).flatten(0, 1), targets.flatten()))


def test_gradients_with_left_padding_equal_finite_differences(style):
    model = loud(GPT(config(style, n_layer=1))).double()
    idx, mask = pad_left(PROMPTS)
    targets = torch.where(mask.bool(), tokens(4, 9, seed=1), -1)
    check_gradients(model, lambda: F.cross_entropy(model(idx, mask=mask).flatten(0, 1),
                                                   targets.flatten(), ignore_index=-1))


def test_padding_gets_no_gradient(model):
    idx, mask = pad_left(PROMPTS, pad=V - 1)
    idx[mask.bool()] %= V - 1                                  # the pad id occurs as padding alone
    targets = torch.where(mask.bool(), tokens(4, 9, seed=1), -1)
    # asked of the embeddings, apart from the output layer's gradient where the two are tied
    x = model.wte(idx).detach().requires_grad_()
    model.wte.forward = lambda _: x
    model(idx, targets, mask=mask).backward()
    assert x.grad[~mask.bool()].abs().max() == 0
    assert (x.grad[mask.bool()].abs().amax(dim=-1) > 0).all()


# ---------------------------------------------------------------------------------------------
# parameters

def test_tied_weights_are_one_tensor(style):
    model = GPT(config(style, tied=True))
    assert model.lm_head.weight is model.wte.weight


def test_untied_weights_are_two_tensors(style):
    model = GPT(config(style, tied=False))
    assert model.lm_head.weight.data_ptr() != model.wte.weight.data_ptr()


def test_biases_are_there_when_asked_for_and_only_then(style):
    names = [name for name, _ in GPT(config(style)).named_parameters() if "bias" in name]
    # in each of 2 layers: two norms and four linear layers; and the last norm
    assert len(names) == (2 * (2 + 4) + 1 if style == "gpt2" else 0)


def test_adamw_has_each_parameter_exactly_once(style):
    for model in (GPT(config(style)), ScalarGPT(config(style))):
        grouped = [id(p) for group in adamw(model, 0.1).param_groups for p in group["params"]]
        assert sorted(grouped) == sorted({id(p) for p in model.parameters()})


def test_adamw_decays_matrices_only(style):
    decayed, rest = adamw(GPT(config(style)), 0.1).param_groups
    assert decayed["weight_decay"] == 0.1 and all(p.dim() == 2 for p in decayed["params"])
    assert rest["weight_decay"] == 0 and all(p.dim() == 1 for p in rest["params"])


def test_adamw_leaves_out_what_is_frozen(style):
    model = GPT(config(style))
    model.wte.weight.requires_grad = False
    grouped = [id(p) for group in adamw(model, 0.1).param_groups for p in group["params"]]
    assert id(model.wte.weight) not in grouped


def test_what_writes_into_the_residual_stream_starts_smaller():
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=8))
    for block in model.blocks:
        for layer, std in ((block.attn.qkv, 0.02), (block.attn.proj, 0.02 / 4),
                           (block.mlp.fc, 0.02), (block.mlp.proj, 0.02 / 4)):
            assert layer.weight.std().item() == pytest.approx(std, rel=0.05)


def test_a_state_dict_carries_the_model(style, model):
    other = loud(GPT(config(style)), seed=5)
    idx = tokens(2, 6)
    assert not torch.allclose(model(idx), other(idx))
    other.load_state_dict(model.state_dict())
    close(model(idx), other(idx), atol=0)


@pytest.mark.parametrize("bad, message", [
    (dict(pos="alibi"), "pos='alibi' is not one of rope, learned"),
    (dict(norm="batch"), "norm='batch' is not one of rms, layer"),
    (dict(mlp="relu"), "mlp='relu' is not one of gelu, gelu_tanh, swiglu"),
    (dict(n_embd=100, n_head=3), "n_head=3 must divide n_embd=100"),
    (dict(n_embd=96, n_head=4, n_kv_head=3), "n_kv_head=3 must divide n_head"),
])
def test_a_wrong_config_is_a_value_error_that_says_what_is_wrong(bad, message):
    with pytest.raises(ValueError, match=message):
        GPTConfig(**bad)


@pytest.mark.parametrize("bad", [dict(n_head=0), dict(n_kv_head=0), dict(n_embd=6, n_head=2),
                                 dict(block_size=0), dict(vocab_size=0)], ids=str)
def test_a_size_that_no_model_can_have_is_a_value_error(bad):
    with pytest.raises(ValueError):                   # 6 / 2: rotary positions need an even width
        GPTConfig(**bad)


# ---------------------------------------------------------------------------------------------
# the scalar head

def test_a_score_at_the_last_real_token_ignores_the_right_padding(scalar):
    short, long = tokens(1, 6), tokens(1, 14)
    long[:, :6] = short
    close(scalar(long)[:, 5], scalar(short)[:, -1])


def test_later_tokens_do_not_change_earlier_scores(scalar):
    idx, changed = tokens(2, 12), tokens(2, 12)
    changed[:, 7:] = tokens(2, 5, seed=1)
    before, after = scalar(idx), scalar(changed)
    close(before[:, :7], after[:, :7], atol=0)
    assert not torch.allclose(before[:, 7:], after[:, 7:])


def test_what_else_is_in_the_batch_does_not_change_a_score(scalar):
    idx = tokens(4, 10)
    together = scalar(idx)
    for i in range(4):
        close(together[i:i + 1], scalar(idx[i:i + 1]))


def test_scores_are_the_head_on_the_trunk_of_the_language_model(style):
    scalar, idx = loud(ScalarGPT(config(style))), tokens(2, 6)
    assert scalar(idx).shape == (2, 6) and scalar(idx).dtype == torch.float32
    trunk = GPT(config(style)).eval()
    missing = trunk.load_state_dict(scalar.gpt.state_dict(), strict=False)
    assert missing == (["lm_head.weight"], [])
    close(scalar(idx), trunk.hidden(idx) @ scalar.head.weight[0] + scalar.head.bias)


def test_a_scalar_model_starts_from_the_trunk_of_a_language_model(style, model):
    scalar, idx = ScalarGPT(config(style)).eval(), tokens(2, 6)
    scalar.start_from(model)
    close(scalar.gpt.hidden(idx), model.hidden(idx), atol=0)


def test_a_scalar_model_comes_back_from_its_checkpoint(style, scalar):
    ckpt = dict(stage="reward", model=scalar.state_dict(), model_config=vars(config(style)))
    idx = tokens(2, 6)
    close(build_model(ckpt, {}).eval()(idx), scalar(idx), atol=0)


def test_a_model_from_a_checkpoint_has_one_matrix_where_they_are_tied(style, model):
    ckpt = dict(stage="sft", model=model.state_dict(), model_config=vars(config(style)))
    built = build_model(ckpt, {})
    assert (built.lm_head.weight is built.wte.weight) == model.config.tied


def test_the_log_probability_of_each_token_is_that_given_those_before_it(model):
    idx = tokens(2, 7)
    found = model.token_logp(idx)
    assert found.shape == (2, 7) and (found[:, 0] == 0).all()
    for b in range(2):
        for t in range(1, 7):
            alone = model(idx[b:b + 1, :t])[0, -1].softmax(-1)
            assert found[b, t].item() == pytest.approx(math.log(alone[idx[b, t]].item()), abs=1e-4)


def test_what_the_frozen_language_model_finds_probable_changes_the_score(style):
    scalar, idx = loud(ScalarGPT(config(style), lm=True)), tokens(2, 6)
    extra = scalar.surprise(scalar.lm.token_logp(idx)[..., None])
    by_hand = scalar.head(scalar.gpt.hidden(idx, extra=extra))[..., 0]
    own = scalar(idx)
    close(own, by_hand, atol=0)
    loud(scalar.lm)
    assert not torch.allclose(scalar(idx), own)


def test_the_language_model_that_is_read_gets_no_gradient(style):
    scalar = loud(ScalarGPT(config(style), lm=True))
    scalar(tokens(2, 6)).sum().backward()
    assert all(p.grad is None for p in scalar.lm.parameters())
    assert all(p.grad.abs().sum() > 0 for p in (scalar.surprise.weight, scalar.head.weight))
    grouped = [p for group in adamw(scalar, 0.1).param_groups for p in group["params"]]
    assert not {id(p) for p in grouped} & {id(p) for p in scalar.lm.parameters()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_frozen_model_in_half_the_memory_says_exactly_the_same(model, scalar, dtype):
    idx = tokens(4, 8)
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        before = model(idx), scalar(idx)
        after = freeze(model, dtype)(idx), freeze(scalar, dtype)(idx)
    assert all(map(torch.equal, before, after))
    parameters = [p for net in (model, scalar) for p in net.parameters()]
    assert not any(p.requires_grad for p in parameters)
    in_blocks = [p for block in model.blocks for p in block.parameters()]
    assert all(p.dtype == dtype for p in in_blocks if p.dim() == 2)


def test_scores_are_not_rounded_to_bf16(style):
    scalar = loud(ScalarGPT(config(style)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = scalar(tokens(4, 8))
    assert scores.dtype == torch.float32 and (scores.bfloat16() != scores).float().mean() > 0.9


def test_the_scalar_head_starts_with_scores_of_about_unit_size():
    torch.manual_seed(0)
    model = ScalarGPT(GPTConfig(n_layer=1, n_embd=1023, n_head=1, n_kv_head=1, n_hidden=8,
                                pos="learned"))
    assert model.head.weight.std().item() == pytest.approx(1 / 32, rel=0.1)
    assert model.head.bias.item() == 0
    with torch.no_grad():
        assert 0.5 < model(tokens(16, 8)).std() < 2


# ---------------------------------------------------------------------------------------------
# the same weights in transformers, where it is installed

def copy_gpt2(theirs, ours):
    """Its linear layers are stored transposed ("Conv1D"); queries, keys, values side by side."""
    weights = theirs.state_dict()
    pairs = [("wte.weight", "wte.weight"), ("wpe.weight", "wpe.weight"),
             ("norm.weight", "ln_f.weight"), ("norm.bias", "ln_f.bias")]
    for i in range(ours.config.n_layer):
        for mine, yours in (("norm_1", "ln_1"), ("norm_2", "ln_2"), ("attn.qkv", "attn.c_attn"),
                            ("attn.proj", "attn.c_proj"), ("mlp.fc", "mlp.c_fc"),
                            ("mlp.proj", "mlp.c_proj")):
            pairs += [(f"blocks.{i}.{mine}.{kind}", f"h.{i}.{yours}.{kind}")
                      for kind in ("weight", "bias")]
    for mine, yours in pairs:
        value = weights[f"transformer.{yours}"]
        turn = value.dim() == 2 and not mine.startswith("w")
        ours.get_parameter(mine).data.copy_(value.T if turn else value)
    return ours.eval()


def copy_llama(theirs, ours):
    """Its rotary pairs are the rows i and i + D/2 of a head of queries or keys, ours 2i, 2i + 1."""
    weights = theirs.state_dict()
    D = ours.config.n_embd // ours.config.n_head
    order = [i + half for i in range(D // 2) for half in (0, D // 2)]
    for name, w in weights.items():
        if "q_proj" in name or "k_proj" in name:
            weights[name] = torch.cat([head[order] for head in w.split(D)])
    pairs = {"wte.weight": ["model.embed_tokens"], "norm.weight": ["model.norm"],
             "lm_head.weight": ["lm_head"]}
    for i in range(ours.config.n_layer):
        names = {"norm_1": ["input_layernorm"], "norm_2": ["post_attention_layernorm"],
                 "attn.qkv": [f"self_attn.{x}_proj" for x in "qkv"],
                 "attn.proj": ["self_attn.o_proj"], "mlp.fc": ["mlp.gate_proj", "mlp.up_proj"],
                 "mlp.proj": ["mlp.down_proj"]}
        pairs |= {f"blocks.{i}.{mine}.weight": [f"model.layers.{i}.{y}" for y in yours]
                  for mine, yours in names.items()}
    for mine, yours in pairs.items():
        value = torch.cat([weights[f"{y}.weight"] for y in yours])
        ours.get_parameter(mine).data.copy_(value)
    return ours.eval()


def gpt2_twins(n_layer, n_head, n_embd):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=97, n_positions=64, n_layer=n_layer, n_head=n_head, n_embd=n_embd))
    ours = GPT(GPTConfig(**STYLES["gpt2"], vocab_size=97, block_size=64, n_layer=n_layer,
                         n_head=n_head, n_kv_head=n_head, n_embd=n_embd, n_hidden=4 * n_embd))
    return copy_gpt2(loud(theirs), ours), theirs


def llama_twins(n_layer, n_head, n_kv_head, n_embd):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=97, max_position_embeddings=64, num_hidden_layers=n_layer, hidden_size=n_embd,
        num_attention_heads=n_head, num_key_value_heads=n_kv_head, intermediate_size=3 * n_embd,
        rms_norm_eps=1e-5))
    ours = GPT(GPTConfig(**STYLES["llama"], vocab_size=97, block_size=64, n_layer=n_layer,
                         n_head=n_head, n_kv_head=n_kv_head, n_embd=n_embd, n_hidden=3 * n_embd))
    return copy_llama(loud(theirs), ours), theirs


TWINS = [(gpt2_twins, (1, 1, 16)), (gpt2_twins, (3, 4, 64)), (llama_twins, (2, 4, 4, 64)),
         (llama_twins, (3, 4, 2, 32)), (llama_twins, (1, 8, 1, 64))]


@pytest.fixture(params=TWINS, ids=lambda twin: f"{twin[0].__name__}{twin[1]}")
def twins(request):
    make, sizes = request.param
    return make(*sizes)


@torch.no_grad()
def test_logits_equal_those_of_transformers(twins):
    ours, theirs = twins
    idx = torch.randint(0, 97, (2, 64))
    close(ours(idx), theirs(idx).logits, atol=1e-4)


@torch.no_grad()
def test_logits_of_left_padded_rows_equal_those_of_transformers(twins):
    ours, theirs = twins
    idx, mask = pad_left(PROMPTS)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    expected = theirs(idx, attention_mask=mask, position_ids=positions).logits
    close(ours(idx, mask=mask)[mask.bool()], expected[mask.bool()], atol=1e-4)


@torch.no_grad()
def test_greedy_generation_equals_that_of_transformers(twins):
    ours, theirs = twins
    idx = torch.randint(0, 97, (3, 8))
    expected = theirs.generate(idx, attention_mask=torch.ones_like(idx), max_new_tokens=40,
                               do_sample=False, eos_token_id=None, pad_token_id=0)
    assert generate(ours, idx, 40, temperature=0).tolist() == expected.tolist()


# ---------------------------------------------------------------------------------------------
# memory

def gradients(model, recompute, n_frozen=0):
    model = loud(GPT(model.config)).double().train()  # so that rounding is not what differs
    model.recompute = recompute
    model.freeze(n_frozen)
    torch.manual_seed(1)                              # for dropout
    loss = model(tokens(3, 12), tokens(3, 12, seed=1))
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters()}


def test_recomputing_activations_changes_no_gradient_even_with_dropout(style):
    model = GPT(config(style, dropout=0.2))
    loss, kept = gradients(model, False)
    again, recomputed = gradients(model, True)
    torch.testing.assert_close(again, loss)
    torch.testing.assert_close(recomputed, kept)      # in double precision: to 1e-7


def test_recomputing_keeps_less_for_the_backward_pass(style):
    """Counted: the bytes that autograd saves."""
    def saved(recompute):
        model, total = GPT(config(style)), Counter()
        model.recompute = recompute
        weights = {p.data_ptr() for p in model.parameters()}

        def count(tensor):
            total["bytes"] += tensor.nbytes * (tensor.data_ptr() not in weights)
            return tensor
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            model(tokens(8, 24), tokens(8, 24))
        return total["bytes"]

    assert saved(True) < 0.6 * saved(False)


def test_frozen_layers_get_no_gradient_and_the_others_the_same_as_before(style):
    model = GPT(config(style))
    _, all_of_them = gradients(model, False)
    _, upper = gradients(model, False, n_frozen=1)
    frozen = {name for name, gradient in upper.items() if gradient is None}
    assert frozen == {name for name in upper if name.startswith(("wte", "wpe", "blocks.0."))}
    for name in upper.keys() - frozen:
        assert torch.equal(upper[name], all_of_them[name])


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("size", [1, 3 * V, 10**6])
def test_the_loss_in_slices_is_the_loss(model, reduction, size, monkeypatch):
    """And so are its gradients, whatever the size of a slice."""
    targets = tokens(3, 12, seed=1)
    targets[0, :5] = targets[2, 7] = -1
    weight = torch.rand(36, generator=torch.Generator().manual_seed(2))
    found = []
    for recompute in (False, True):
        monkeypatch.setattr(model, "recompute", recompute)
        monkeypatch.setattr(GPT.sliced_loss, "__defaults__", (size,))
        model.zero_grad(set_to_none=True)
        loss = model(tokens(3, 12), targets, reduction=reduction)
        (loss * weight if reduction == "none" else loss).sum().backward()
        found.append((loss.detach(), [p.grad for p in model.parameters()]))
    (whole, gradients), (sliced, again) = found
    near = torch.testing.assert_close                 # relative to the size: a sum is large
    near(whole, sliced)
    near(gradients, again)
    with torch.no_grad():
        near(model(tokens(3, 12), targets, reduction=reduction), whole)


def test_no_more_logits_than_a_slice_exist_at_once(model, monkeypatch):
    sizes = []
    model.lm_head.register_forward_hook(lambda *args: sizes.append(args[-1].numel()))
    monkeypatch.setattr(GPT.sliced_loss, "__defaults__", (4 * V,))
    model.recompute = True
    model(tokens(3, 12), tokens(3, 12)).backward()
    assert max(sizes) == 4 * V and len(sizes) == 2 * 9                # forward, and once more
