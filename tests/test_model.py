"""Four models stand for all: the laptop's default, GPT-2, LLaMA with grouped queries, and one with
what Qwen and Llama 3 add: wide heads, biases of q, k and v, weights in the norm of q and k."""

import math
from collections import Counter
from itertools import product

import pytest
import torch
from torch.nn import functional as F

from answer import generate, left_pad, log_probs, sample
from checkpoint import build_model, freeze_all
from lessons.lora import kept_for_backward
from model import GPT, STYLES, GPTConfig, KVCache, ScalarGPT, rotary_turns, rotate
from optim import LoRA, adamw, merge, with_lora
from tiny import close, greedy, loud

V = 40
SIZES = {
    "laptop": dict(STYLES["laptop"], n_head=2, n_kv_head=2, n_hidden=96),
    "gpt2": dict(STYLES["gpt2"], n_head=2, n_kv_head=2, n_hidden=96),
    "llama": dict(STYLES["llama"], n_head=4, n_kv_head=2, n_hidden=48),
    "qwen": dict(STYLES["llama"], n_head=3, n_kv_head=1, head_dim=12, n_hidden=48, qk_norm=True,
                 qk_rms=True, qkv_bias=True, rope_scaling=(8.0, 1.0, 4.0, 16.0)),
}


def config(style, **changes):
    sizes = dict(block_size=24, vocab_size=V, n_layer=2, n_embd=32)
    return GPTConfig(**{**sizes, **SIZES[style], **changes})


@pytest.fixture(params=SIZES)
def style(request):
    return request.param


@pytest.fixture
def model(style):
    return loud(GPT(config(style)))


@pytest.fixture(params=["gpt", "scalar", "scalar that reads an lm"])
def net(style, request):
    """Either kind of model: one that gives logits, or one that gives scores."""
    if request.param == "gpt":
        return loud(GPT(config(style)))
    return loud(ScalarGPT(config(style), lm="lm" in request.param))


def tokens(*shape, seed=0):
    return torch.randint(0, V, shape, generator=torch.Generator().manual_seed(seed))


PROMPTS = [tokens(n, seed=n).tolist() for n in (5, 9, 1, 6)]


# ---- the forward pass -----------------------------------------------------------------------

def test_future_tokens_do_not_change_the_past(net):
    idx, changed = tokens(2, 12), tokens(2, 12)
    changed[:, 7:] = tokens(2, 5, seed=1)
    before, after = net(idx), net(changed)
    close(before[:, :7], after[:, :7], atol=0)
    assert not torch.allclose(before[:, 7:], after[:, 7:])


def test_every_past_token_and_their_order_can_change_the_present(model):
    idx = tokens(1, 8)
    last, swapped = model(idx)[0, -1], idx[:, [1, 0, 2, 3, 4, 5, 6, 7]]
    assert not torch.allclose(last, model(swapped)[0, -1], atol=1e-3)
    for t in range(8):
        changed = idx.clone()
        changed[0, t] = (idx[0, t] + 1) % V
        assert (model(changed)[0, -1] - last).abs().max() > 1e-3, f"token {t} is not seen"


@torch.no_grad()
def test_attention_equals_the_formula_head_by_head(model):
    attn, x, T = model.blocks[0].attn, torch.randn(1, 5, 32), 5
    H, K, D = model.config.n_head, model.config.n_kv_head, model.config.head_dim
    rotary = model.config.pos == "rope"

    def slower(freq):
        """Llama 3.1: how many turns were there in the old context of 16?"""
        if not model.config.rope_scaling or (turns := 16 * freq / (2 * math.pi)) > 4:
            return freq
        return freq / 8 if turns < 1 else freq / 8 + (turns - 1) / 3 * (freq - freq / 8)

    def turned(vectors, norm):
        """Each pair (2i, 2i + 1) is turned by the angle t * theta^(-2 i / D). With QK norm a vector
        has mean 0 and variance 1 before that; or mean square 1, times weights."""
        if model.config.qk_rms:
            size = (vectors.square().mean(1, keepdim=True) + 1e-5).sqrt()
            vectors = vectors / size * getattr(attn, norm).weight
        elif model.config.qk_norm:
            var, mean = torch.var_mean(vectors, 1, correction=0, keepdim=True)
            vectors = (vectors - mean) / (var + 1e-5).sqrt()
        out = vectors.clone()
        for t, i in product(range(T), range(D // 2 if rotary else 0)):
            angle, (x, y) = t * slower(10000.0 ** (-2 * i / D)), vectors[t, 2 * i:2 * i + 2]
            out[t, 2 * i] = x * math.cos(angle) - y * math.sin(angle)
            out[t, 2 * i + 1] = x * math.sin(angle) + y * math.cos(angle)
        return out

    vectors = attn.qkv(x)[0].split(D, dim=1)                          # H + 2 K times (T, D)
    causal, said = torch.full((T, T), -math.inf).triu(1), []
    for h in range(H):
        shared = H + h // (H // K)                                    # the key head of this query
        q, k = turned(vectors[h], "q_norm"), turned(vectors[shared], "k_norm")
        powers = (q @ k.T / math.sqrt(D) + causal).exp()
        said.append(powers / powers.sum(1, keepdim=True) @ vectors[shared + K])
    turns = rotary_turns(torch.arange(T), model.config) if rotary else None
    close(attn(x, turns, causal, None), attn.proj(torch.cat(said, dim=1))[None])


def test_pairs_are_turned_alike_with_and_without_the_compiler(monkeypatch):
    x, turns = torch.randn(2, 3, 24, 16), rotary_turns(torch.arange(24), config("laptop"))
    eager = rotate(x, turns)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    close(rotate(x, turns), eager)


def test_the_fused_kernel_gives_what_the_written_out_attention_gives(model, monkeypatch):
    idx, mask = left_pad(PROMPTS, 0, "cpu")
    monkeypatch.setattr("model.fused_is_faster", lambda q: True)
    fused = model(idx), model(idx, mask=mask)
    monkeypatch.setattr("model.fused_is_faster", lambda q: False)
    close(model(idx), fused[0])
    close(model(idx, mask=mask)[mask.bool()], fused[1][mask.bool()])


def test_dropout_acts_in_training_only(style):
    model = loud(GPT(config(style, dropout=0.5)))
    idx = tokens(2, 8)
    close(model(idx), model(idx), atol=0)
    model.train()
    assert not torch.allclose(model(idx), model(idx))


def test_bf16_autocast_stays_near_fp32_and_finite(model):
    idx, mask = left_pad(PROMPTS, 0, "cpu")
    exact = model(idx, mask=mask)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(idx, mask=mask).float()
    assert rough.isfinite().all()
    error = (rough - exact)[mask.bool()].pow(2).mean().sqrt()
    assert error < 0.05 * exact[mask.bool()].std()


def test_what_does_not_fit_the_block_is_a_value_error(model):
    assert model(tokens(1, 24)).shape == (1, 24, V)
    with pytest.raises(ValueError, match="25 tokens do not fit block_size=24"):
        model(tokens(1, 25))
    with pytest.raises(ValueError, match="a prompt of 24 tokens fills block_size=24"):
        generate(model, tokens(1, 24), 1)


# ---- the cache and the padding --------------------------------------------------------------

@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("sizes", [(1,) * 12, (5, 4, 1, 2)], ids=str)
def test_reading_in_pieces_with_the_cache_gives_the_same_logits(model, monkeypatch, fused, sizes):
    monkeypatch.setattr("model.fused_is_faster", lambda q: fused)
    idx = tokens(3, 12)
    cache = KVCache(model.config, 3, 20, idx.device, torch.float32)
    pieces = [model(piece, cache=cache) for piece in idx.split(sizes, dim=1)]
    close(torch.cat(pieces, dim=1), model(idx))


def test_the_cache_gives_the_logits_of_each_unpadded_row_when_prompts_differ_in_length(model):
    idx, mask = left_pad(PROMPTS, 0, "cpu")
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


def test_what_stands_in_the_padding_changes_nothing(model):
    (idx, mask), (other, _) = left_pad(PROMPTS, 0, "cpu"), left_pad(PROMPTS, 17, "cpu")
    real = mask.bool()                                # a boolean mask is as good
    close(model(other, mask=real)[real], model(idx, mask=mask)[real], atol=0)


# ---- generation -----------------------------------------------------------------------------

STOP = list(range(0, V, 7))     # several stop ids, so that rows end at different times


def test_generation_in_a_batch_equals_generating_each_row_alone(model):
    prompts = [tokens(1 + i % 5, seed=i).tolist() for i in range(24)]
    idx, mask = left_pad(prompts, 0, "cpu")
    batch = generate(model, idx, 12, mask=mask, temperature=0, stop=STOP, pad=V - 1)[:, 5:].tolist()
    alone = [greedy(model, p, 12, STOP) for p in prompts]
    assert len({len(a) for a in alone}) >= 3, "the test needs rows that end at different times"
    assert batch == [a + [V - 1] * (len(batch[0]) - len(a)) for a in alone]


@pytest.mark.parametrize("T, n, stop, length", [
    (5, 4, (), 9), (5, 0, (), 5), (5, 12, range(V), 6), (20, 100, (), 24)],
    ids=["as many as asked for", "none", "until all have stopped", "until the block is full"])
def test_what_is_generated_stands_behind_its_prompt_and_ends_in_time(model, T, n, stop, length):
    idx = tokens(3, T)
    out = generate(model, idx, n, stop=stop)
    assert out.shape == (3, length) and torch.equal(out[:, :T], idx)


def test_a_seed_fixes_the_text_and_leaves_the_global_random_numbers_alone(model):
    def text(seed):
        return generate(model, tokens(4, 3), 15, generator=torch.Generator().manual_seed(seed))

    before = torch.get_rng_state()
    assert torch.equal(text(1), text(1))
    assert not torch.equal(text(1), text(2))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("options", [dict(top_k=1), dict(top_p=1e-6)], ids=str)
def test_a_top_k_of_one_or_a_tiny_top_p_is_greedy(model, options):
    idx = tokens(4, 3)
    assert torch.equal(generate(model, idx, 15, **options), generate(model, idx, 15, temperature=0))


def kept_and_rescaled(logits, temperature=1.0, top_k=0, top_p=1.0):
    """The distribution to sample from, by the definitions: {id: probability}."""
    powers = {i: math.exp(x / temperature) for i, x in enumerate(logits)}
    order = sorted(powers, key=powers.get, reverse=True)[:top_k or None]
    p = {i: powers[i] / sum(powers[j] for j in order) for i in order}
    kept = [i for n, i in enumerate(order) if sum(p[j] for j in order[:n]) < top_p]
    return {i: p[i] / sum(p[j] for j in kept) for i in kept}


@pytest.mark.parametrize("options", [
    dict(), dict(temperature=0.5), dict(temperature=2.0), dict(top_k=3), dict(top_p=0.6),
    dict(top_p=0.9), dict(temperature=1.7, top_k=5, top_p=0.8), dict(top_k=100)],
    ids=lambda o: " ".join(f"{k}={v}" for k, v in o.items()) or "plain")
def test_sampled_frequencies_match_the_distribution_by_definition(options):
    logits, n = [0.3, -1.0, 1.4, 0.9, -2.0, 0.0, 1.1, -0.4], 40_000
    ids = sample(torch.tensor(logits).expand(n, -1), **options,
                 generator=torch.Generator().manual_seed(0))
    counts = Counter(ids.tolist())
    probs = kept_and_rescaled(logits, **options)
    assert set(counts) == set(probs)
    chi_square = sum((counts[i] - n * p) ** 2 / (n * p) for i, p in probs.items())
    assert chi_square < 25                            # seven degrees of freedom: P = 0.0008


@pytest.mark.parametrize("options", [dict(), dict(top_k=2), dict(top_p=0.9), dict(temperature=0)],
                         ids=str)
def test_rows_have_distributions_of_their_own_and_forbidden_tokens_are_never_sampled(options):
    allowed = torch.tensor([4, 0, 2]).repeat(100)
    logits = torch.full((300, 5), -math.inf)
    logits[range(300), allowed] = 0.0
    assert torch.equal(sample(logits, **options), allowed)


@pytest.mark.parametrize("temperature", [0.0, 1e-300, 1e-40, 1e-12])
def test_at_a_temperature_of_nearly_0_the_most_probable_token_has_probability_1(model, temperature):
    logits = torch.tensor([[0.3, 90.0, -7.0], [2.0, 1.0, 1.9]])
    assert sample(logits, temperature).tolist() == [1, 0]
    idx = tokens(2, 6)
    likely, mask = model(idx[:, :-1]).argmax(-1), torch.arange(6).expand(2, 6) > 0
    logp, _ = log_probs(model, idx, mask, temperature)
    assert logp.isfinite().all() and ((logp == 0) == (likely == idx[:, 1:]).flatten()).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("options", [dict(), dict(temperature=0), dict(top_k=2), dict(top_p=0.5)])
def test_logits_that_are_no_numbers_give_no_token(bad, options):
    with pytest.raises(ValueError, match="logits are no longer numbers"):
        sample(torch.tensor([[0.0, 1.0, 2.0], [0.0, bad, 2.0]]), **options)


# ---- the loss and its gradients -------------------------------------------------------------

def test_the_loss_is_the_negative_log_probability_of_the_targets_that_are_not_minus_one(model):
    idx, targets = tokens(2, 6), tokens(2, 6, seed=1)
    targets[0, 1:4] = -1
    probs = model(idx).exp() / model(idx).exp().sum(-1, keepdim=True)
    each = torch.tensor([-math.log(probs[b, t, targets[b, t]].item()) if targets[b, t] >= 0 else 0.0
                         for b in range(2) for t in range(6)])
    for reduction, expected in dict(none=each, sum=each.sum(), mean=each.sum() / 9).items():
        torch.testing.assert_close(model(idx, targets, reduction=reduction), expected, rtol=1e-5,
                                   atol=0)


def test_where_gives_the_logits_of_those_positions(model):
    idx, where = tokens(3, 7), tokens(3, 7, seed=1) % 3 == 0
    close(model(idx, where=where), model(idx)[where])


@pytest.mark.parametrize("padded", [False, True])
def test_gradients_equal_finite_differences(style, padded):
    model = loud(GPT(config(style, n_layer=1))).double()
    idx, mask = left_pad(PROMPTS, 0, "cpu") if padded else (tokens(2, 5), torch.ones(2, 5))
    targets = torch.where(mask.bool(), tokens(*idx.shape, seed=1), -1)
    names, weights = zip(*model.named_parameters())

    def loss(*weights):                               # that of forward() is in fp32: too coarse
        logits = torch.func.functional_call(model, dict(zip(names, weights)), idx,
                                            dict(mask=mask if padded else None))
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)

    torch.manual_seed(0)                              # for the directions of the differences
    assert torch.autograd.gradcheck(loss, weights, eps=1e-5, atol=1e-8, rtol=1e-5, fast_mode=True)


# ---- parameters -----------------------------------------------------------------------------

@pytest.mark.parametrize("tied", [True, False])
def test_tied_weights_are_one_tensor_and_untied_ones_two(style, tied):
    model = GPT(config(style, tied=tied))
    assert (model.lm_head.weight is model.wte.weight) == tied


def test_biases_are_there_when_asked_for_and_only_then(style):
    names = [name for name, _ in GPT(config(style)).named_parameters() if "bias" in name]
    # in each of 2 layers: two norms and four linear layers; and the last norm
    assert len(names) == {"gpt2": 2 * (2 + 4) + 1, "qwen": 2}.get(style, 0)


@pytest.mark.parametrize("frozen", [False, True])
def test_adamw_has_what_is_trained_exactly_once_and_decays_matrices_only(style, frozen):
    for model in (GPT(config(style)), ScalarGPT(config(style), lm=True)):
        next(model.parameters()).requires_grad = not frozen           # an embedding
        decayed, rest = adamw(model, 0.1).param_groups
        assert decayed["weight_decay"] == 0.1 and all(p.dim() == 2 for p in decayed["params"])
        assert rest["weight_decay"] == 0 and all(p.dim() == 1 for p in rest["params"])
        grouped = [id(p) for p in decayed["params"] + rest["params"]]
        assert sorted(grouped) == sorted({id(p) for p in model.parameters() if p.requires_grad})


def test_an_untrained_block_adds_nothing_and_other_weights_are_small():
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=8))
    for block in model.blocks:
        for layer in (model.wte, block.attn.qkv, block.mlp.fc):
            assert layer.weight.std().item() == pytest.approx(0.02, rel=0.05)
        x = torch.randn(2, 5, 128)
        assert torch.equal(block(x, rotary_turns(torch.arange(5), model.config), None, None), x)


@pytest.mark.parametrize("bad, message", [
    (dict(pos="alibi"), "pos='alibi' is not one of rope, learned"),
    (dict(norm="batch"), "norm='batch' is not one of plain, layer, rms"),
    (dict(mlp="relu"), "mlp='relu' is not one of gelu, gelu_tanh, swiglu"),
    (dict(n_embd=100, n_head=3), "n_head=3 must divide n_embd=100"),
    (dict(n_embd=96, n_head=4, n_kv_head=3), "n_kv_head=3 must divide n_head"),
    (dict(n_embd=6, n_head=2), "rotary positions need an even width per head"),
    *((dict([(name, 0)]), f"{name}=0 must be at least 1")
      for name in ("n_head", "n_kv_head", "block_size", "vocab_size"))], ids=str)
def test_a_wrong_config_is_a_value_error_that_says_what_is_wrong(bad, message):
    with pytest.raises(ValueError, match=message):
        GPTConfig(**bad)


# ---- the scalar head ------------------------------------------------------------------------

def test_scores_are_the_head_on_the_trunk_of_the_language_model_they_start_from(model):
    scalar, idx = loud(ScalarGPT(model.config), seed=5), tokens(2, 6)
    scalar.start_from(model)
    assert scalar(idx).shape == (2, 6) and scalar(idx).dtype == torch.float32
    close(scalar.gpt.hidden(idx), model.hidden(idx), atol=0)
    close(scalar(idx), model.hidden(idx) @ scalar.head.weight[0] + scalar.head.bias)


def test_a_model_comes_back_from_its_checkpoint_with_one_matrix_where_they_are_tied(net):
    stage, idx = "sft" if isinstance(net, GPT) else "reward", tokens(2, 6)
    ckpt = dict(stage=stage, model=net.state_dict(), model_config=vars(net.config))
    built = build_model(ckpt, {})
    close(built.eval()(idx), net(idx), atol=0)
    if stage == "sft":
        assert (built.lm_head.weight is built.wte.weight) == net.config.tied


def test_the_log_probability_of_each_token_is_that_given_those_before_it(model):
    idx = tokens(2, 7)
    found = model.token_logp(idx)
    assert found.shape == (2, 7) and (found[:, 0] == 0).all()
    for b in range(2):
        for t in range(1, 7):
            alone = model(idx[b:b + 1, :t])[0, -1].softmax(-1)
            assert found[b, t].item() == pytest.approx(math.log(alone[idx[b, t]].item()), abs=1e-4)


def test_what_the_language_model_finds_probable_changes_the_score_but_gives_it_no_gradient(style):
    scalar, idx = loud(ScalarGPT(config(style), lm=True)), tokens(2, 6)
    extra = scalar.surprise(scalar.lm.token_logp(idx)[..., None])
    by_hand = scalar.head(scalar.gpt.hidden(idx, extra=extra))[..., 0]
    own = scalar(idx)
    close(own, by_hand, atol=0)
    loud(scalar.lm)
    assert not torch.allclose(scalar(idx), own)
    scalar(idx).sum().backward()
    assert all(p.grad is None for p in scalar.lm.parameters())
    assert all(p.grad.abs().sum() > 0 for p in (scalar.surprise.weight, scalar.head.weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_frozen_model_in_half_the_memory_says_exactly_the_same(net, dtype):
    idx = tokens(4, 8)
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
        before = net(idx)
        assert torch.equal(before, freeze_all(net, dtype)(idx))
    assert not any(p.requires_grad for p in net.parameters())
    assert all(p.dtype == dtype for name, p in net.named_parameters()
               if "blocks." in name and p.dim() == 2)


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


# ---- memory ---------------------------------------------------------------------------------

@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("size", [1, 3 * V, 10**6])
def test_recomputing_changes_neither_loss_nor_gradients_even_with_dropout(style, reduction, size,
                                                                          monkeypatch):
    """Nor do slices of the loss, whatever their size."""
    monkeypatch.setattr(GPT.sliced_loss, "__defaults__", (size,))
    model = loud(GPT(config(style, dropout=0.2))).double()  # so that rounding is not what differs
    idx, targets, found = tokens(3, 12), tokens(3, 12, seed=1), []
    targets[0, :5] = targets[2, 7] = -1
    weight = torch.rand(36, generator=torch.Generator().manual_seed(2))
    for model.recompute in (False, True):
        torch.manual_seed(1)                          # for dropout
        loss = model.train()(idx, targets, reduction=reduction)
        total = loss @ weight if reduction == "none" else loss
        found.append((loss, torch.autograd.grad(total, [*model.parameters()])))
    torch.testing.assert_close(*found)
    model.recompute = False
    whole = model.eval()(idx, targets, reduction=reduction)
    with torch.no_grad():
        torch.testing.assert_close(model(idx, targets, reduction=reduction), whole)


def test_recomputing_keeps_less_for_the_backward_pass(style):
    def kept(recompute):
        model = GPT(config(style))
        model.recompute = recompute
        return kept_for_backward(model, tokens(8, 24), tokens(8, 24))

    assert kept(True) < 0.6 * kept(False)


def test_no_more_logits_than_a_slice_exist_at_once(model, monkeypatch):
    sizes = []
    model.lm_head.register_forward_hook(lambda *args: sizes.append(args[-1].numel()))
    monkeypatch.setattr(GPT.sliced_loss, "__defaults__", (4 * V,))
    model.recompute = True
    model(tokens(3, 12), tokens(3, 12)).backward()
    assert max(sizes) == 4 * V and len(sizes) == 2 * 9                # forward, and once more


# ---- LoRA -----------------------------------------------------------------------------------

def thin(model, rank=3, **more):
    """With thin matrices that change something: no product B A is 0."""
    torch.manual_seed(3)
    model = with_lora(model, rank, **more)
    for name, p in model.named_parameters():
        if p.requires_grad and name.endswith((".B", "wte.A", "lm_head.A")):
            torch.nn.init.normal_(p, std=0.1)
    return model


@pytest.mark.parametrize("bias", [False, True])
def test_the_layer_is_a_sum_of_outer_products_and_learns_as_such(bias):
    torch.manual_seed(0)
    linear = torch.nn.Linear(5, 7, bias=bias).double()
    x, A, B = (torch.randn(size).double() for size in [(4, 5), (2, 5), (7, 2)])
    layer = LoRA(linear, B, A, 3.0)
    weight = linear.weight + sum(3.0 * torch.outer(layer.B[:, r], layer.A[r]) for r in range(2))
    expected, said = x @ weight.T + (linear.bias if bias else 0), layer(x)
    close(said, expected)
    slopes, right = (torch.autograd.grad(y.sin().sum(), [layer.A, layer.B])
                     for y in (said, expected))
    torch.testing.assert_close(slopes, right)


def test_the_embeddings_of_chosen_tokens_alone_are_trained_and_change_both_ends(model):
    before = {name: w.clone() for name, w in model.state_dict().items()}
    changed, idx = thin(model, tokens=[4, 9, 7]), tokens(3, 12)
    idx[0, :3] = torch.tensor([4, 9, 7])
    new = [p for name, p in changed.named_parameters()
           if p.requires_grad and name.startswith(("wte", "lm_head"))]
    assert [p.shape for p in new] == [(3, 32)] * (1 if model.config.tied else 2)
    changed(idx, idx).backward()
    assert all(p.grad.abs().sum(1).all() for p in new)
    for name, p in zip(("wte", "lm_head"), new * 2):
        before[f"{name}.weight"].index_add_(0, torch.tensor([4, 9, 7]), p.detach())
    merged, by_hand = merge(changed), GPT(model.config).eval()
    assert (merged.lm_head.weight is merged.wte.weight) == model.config.tied
    for name in before:
        if "blocks" in name:
            before[name] = merged.state_dict()[name]
    by_hand.load_state_dict(before)
    close(merged(idx), by_hand(idx))
    close(thin(model, tokens=[4, 9, 7])(idx), by_hand(idx), atol=1e-4)


def test_a_model_with_thin_matrices_first_says_exactly_the_same(net):
    before, changed = net(tokens(2, 8)), with_lora(net, 3)(tokens(2, 8))
    assert torch.equal(changed, before)


def test_every_matrix_of_the_blocks_gets_two_thin_ones_and_only_they_and_a_head_are_trained(net):
    before, net = {name: w.shape for name, w in net.named_parameters()}, with_lora(net, 3)
    thin_ones = {}
    for name, shape in before.items():
        layer, _, part = name.rpartition(".")
        if "blocks" in name and part == "weight" and len(shape) == 2 and "lm." not in name:
            thin_ones |= {f"{layer}.A": (3, shape[1]), f"{layer}.B": (shape[0], 3)}
    head = {name: shape for name, shape in before.items() if name.startswith(("head", "surprise"))}
    trained = {name: p.shape for name, p in net.named_parameters() if p.requires_grad}
    assert trained == thin_ones | head and len(thin_ones) == 2 * 8


@pytest.mark.parametrize("dtype, atol", [(torch.float32, 1e-4), (torch.bfloat16, 0.1)])
@torch.no_grad()
def test_merged_is_unmerged_an_ordinary_model_in_fp32_and_a_change_of_rank_r(net, dtype, atol):
    names, idx, first = [*net.state_dict()], tokens(3, 12), net(tokens(3, 12))
    changed, said = thin(freeze_all(net, dtype)), []
    name, fc = next((name, part) for name, part in changed.named_modules()
                    if name.endswith("1.mlp.fc"))
    change = 16 / 3 * fc.B @ fc.A
    for _ in range(2):
        assert all(p.dtype == torch.float32 for p in changed.parameters() if p.requires_grad)
        with torch.autocast("cpu", dtype=dtype, enabled=dtype != torch.float32):
            said.append(changed(idx))
        merge(changed)
    close(*said, atol=atol)
    assert not torch.allclose(said[0].float(), first, atol=2 * atol)
    new, old = changed.state_dict(), net.state_dict()
    assert [*new] == names
    close(new[f"{name}.weight"], old[f"{name}.weight"].float() + change, atol=1e-6)
    assert torch.linalg.matrix_rank(change, rtol=1e-4) == 3
    assert all(torch.equal(new[name], old[name]) for name in names if "blocks" not in name)


def test_the_first_model_keeps_its_weights_which_stand_in_memory_once(net):
    before = {name: w.clone() for name, w in net.state_dict().items()}
    places = {w.data_ptr() for w in net.state_dict().values()}
    changed = with_lora(net, 3)
    optimizer = adamw(changed, 0.1)
    optimizer.param_groups[0]["lr"] = 0.1
    for _ in range(2):
        changed(tokens(2, 8)).square().mean().backward()
        optimizer.step()
    own = [p for p in changed.parameters() if p.data_ptr() not in places]
    assert {id(p) for p in own} == {id(p) for p in changed.parameters() if p.requires_grad}
    assert not torch.allclose(changed(tokens(2, 8)), net(tokens(2, 8)), atol=1e-3)
    merge(changed)
    assert all(torch.equal(w, before[name]) for name, w in net.state_dict().items())


def test_a_rank_above_the_width_is_a_value_error_that_says_what_to_do(net):
    with pytest.raises(ValueError, match="rank of 33 is more than n_embd=32"):
        with_lora(net, 33)
    with_lora(net, 32)
