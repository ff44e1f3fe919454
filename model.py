"""The whole model in one file: a GPT that can also be read as a LLaMA.

Plain config fields choose the parts. The default is GPT-2 with rotary positions, normalised queries
and keys, and no biases: it learns the most in the time of a CPU, where LayerNorm and GELU are one
fast kernel each. STYLES below has GPT-2 and LLaMA proper.

    GPT         token ids -> logits over the next token, and the loss       pretrain.py, sft.py
    ScalarGPT   the same trunk -> one number per token                      reward model and critic

Shapes: B batch, T time, C = n_embd, H heads, D = head_dim per head, V vocabulary.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn as nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint


@dataclass
class GPTConfig:
    block_size: int = 128      # the longest sequence, in tokens
    vocab_size: int = 1024     # special tokens included
    n_layer: int = 4
    n_head: int = 2
    n_kv_head: int = 2         # fewer than n_head: grouped-query attention; 1: multi-query
    n_embd: int = 128
    head_dim: int = 0          # width of a head; 0: n_embd / n_head
    n_hidden: int = 512        # width of the MLP: usually 4 * n_embd for gelu, 8/3 of it for swiglu
    pos: str = "rope"          # rope | learned
    norm: str = "plain"        # plain: LayerNorm without weights | layer | rms
    qk_norm: bool = True       # normalise queries and keys, so that no attention grows too sharp
    qk_rms: bool = False       # normalise them by RMSNorm with weights instead, as in Qwen3
    mlp: str = "gelu"          # gelu | gelu_tanh, GPT-2's approximation, half as fast | swiglu
    bias: bool = False         # biases in the linear layers, as in GPT-2
    qkv_bias: bool = False     # biases for queries, keys and values only, as in Qwen2
    tied: bool = True          # one matrix is both token embedding and output layer
    dropout: float = 0.0
    rope_theta: float = 10000.0
    rope_scaling: tuple = ()   # Llama 3.1's (factor, low, high, old context), see rotary_turns
    norm_eps: float = 1e-5

    def __post_init__(self):
        for name, known in (("pos", ("rope", "learned")), ("norm", ("plain", "layer", "rms")),
                            ("mlp", ("gelu", "gelu_tanh", "swiglu"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {', '.join(known)}")
        for name, value in vars(self).items():
            if type(value) is int and value < (name != "head_dim"):
                raise ValueError(f"{name}={value} must be at least 1")
        if not self.head_dim and self.n_embd % self.n_head or self.n_head % self.n_kv_head:
            raise ValueError(f"n_head={self.n_head} must divide n_embd={self.n_embd}, and "
                             f"n_kv_head={self.n_kv_head} must divide n_head")
        self.head_dim = self.head_dim or self.n_embd // self.n_head
        if self.pos == "rope" and self.head_dim % 2:
            raise ValueError(f"rotary positions need an even width per head, not {self.head_dim}")


STYLES = {
    "laptop": dict(),
    "gpt2": dict(pos="learned", norm="layer", qk_norm=False, mlp="gelu_tanh", bias=True),
    "llama": dict(norm="rms", qk_norm=False, mlp="swiglu", tied=False),
}


def make_norm(config):
    if config.norm == "rms":
        return nn.RMSNorm(config.n_embd, eps=config.norm_eps)
    return nn.LayerNorm(config.n_embd, eps=config.norm_eps, bias=config.bias,
                        elementwise_affine=config.norm == "layer")


def rotary_turns(pos, config):
    """cos and sin, (…, D/2, 2), of the rotation angles at positions (…): D/2 frequencies.

    Llama 3.1 lengthens its context: a pair that turns fewer than `low` times in the old context now
    turns `factor` times as slowly, one that turns more than `high` times as before."""
    D = config.head_dim
    freqs = config.rope_theta ** (-torch.arange(0, D, 2, device=pos.device).float() / D)
    if config.rope_scaling:
        factor, low, high, old = config.rope_scaling
        same = ((old * freqs / (2 * math.pi) - low) / (high - low)).clamp(0, 1)
        freqs = freqs * (same + (1 - same) / factor)
    angles = pos[..., None] * freqs
    return torch.stack((angles.cos(), angles.sin()), dim=-1)


def rotate(x, turns):
    """Turn the pairs (x[2i], x[2i + 1]) by position-dependent angles (RoFormer, eq. 34).

    x: (B, H, T, D); turns: (T, D/2, 2) or (B, 1, T, D/2, 2). The dot product of a query at m and a
    key at n then depends only on m - n. That is how attention learns relative positions.
    """
    pairs = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(-1, (-1, 2))
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        # (a + ib)(cos + i sin) takes one pass over memory: 7 to 8% of a training step (measured)
        turned = torch.view_as_complex(pairs) * torch.view_as_complex(turns)
        return torch.view_as_real(turned).flatten(-2).type_as(x)
    (a, b), (cos, sin) = pairs.unbind(-1), turns.unbind(-1)           # (B, H, T, D/2) each
    turned = torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1)
    return turned.flatten(-2).type_as(x)


def fused_is_faster(q):
    """Whether to take PyTorch's kernel, which never writes the (T, T) matrix to memory. On a CPU in
    bf16 it takes twice as long as the formula at T = 1 and T = 128, and as long at 1,024."""
    return not (q.device.type == "cpu" and q.dtype == torch.bfloat16 and q.size(-2) <= 512)


def attention(q, k, v, bias=None, dropout=0.0):
    """softmax(q k^T / sqrt(D)) v (Vaswani et al. 2017, eq. 1). q: (B, H, T, D); k, v: (B, H, S, D).

    bias: (T, S) or (B, 1, T, S), 0 where a query may look and very negative where it may not;
    without it, a query sees itself and what came before.
    """
    T, D = q.shape[-2:]
    att = (q / math.sqrt(D)) @ k.transpose(-2, -1)                    # (B, H, T, S)
    if bias is None and T > 1:
        bias = torch.full((T, T), -math.inf, device=q.device, dtype=att.dtype).triu(1)
    att = F.softmax(att if bias is None else att + bias, dim=-1)
    return F.dropout(att, dropout) @ v                                # (B, H, T, D)


def positions(past, T, mask, device, dtype):
    """The positions of T tokens that follow `past` others, and the bias for `attention`: 0 where a
    query may look (at itself and the past, not at padding). mask as in GPT.hidden."""
    pos = torch.arange(past, past + T, device=device)                 # (T,)
    if mask is None and (not past or T == 1):
        return pos, None                                              # the causal mask is enough
    seen = torch.arange(past + T, device=device) <= pos[:, None]      # (T, past + T)
    if mask is not None:
        seen = seen & mask[:, None, None, :].bool()                   # (B, 1, T, past + T)
        pos = (mask.cumsum(-1) - 1).clamp(min=0)[:, past:]            # (B, T)
    # a row of padding sees nothing: the lowest finite number, not -inf, avoids NaN in its softmax
    bias = torch.zeros(seen.shape, device=device, dtype=dtype)
    return pos, bias.masked_fill_(~seen, torch.finfo(dtype).min)


class KVCache:
    """Keys and values of the tokens read so far, so that a new token costs one step, not T."""

    def __init__(self, config, batch, length, device, dtype):
        shape = (batch, config.n_kv_head, length, config.head_dim)
        self.k = [torch.empty(shape, device=device, dtype=dtype) for _ in range(config.n_layer)]
        self.v = [torch.empty(shape, device=device, dtype=dtype) for _ in range(config.n_layer)]
        self.length = 0

    def append(self, layer, k, v):
        """Store k, v (B, H, T, D) behind what is there; return all of it."""
        end = self.length + k.size(2)
        self.k[layer][:, :, self.length:end] = k
        self.v[layer][:, :, self.length:end] = v
        return self.k[layer][:, :, :end], self.v[layer][:, :, :end]

    def keep(self, rows):
        """Forget the other sequences; rows: (n,) indices."""
        self.k, self.v = [k[rows] for k in self.k], [v[rows] for v in self.v]


class Attention(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.config, self.layer = config, layer
        if config.qk_rms:
            self.q_norm, self.k_norm = nn.RMSNorm(config.head_dim), nn.RMSNorm(config.head_dim)
        # queries, keys and values of all heads in one matrix multiplication
        width = (config.n_head + 2 * config.n_kv_head) * config.head_dim
        self.qkv = nn.Linear(config.n_embd, width, bias=config.bias or config.qkv_bias)
        self.proj = nn.Linear(config.n_head * config.head_dim, config.n_embd, bias=config.bias)

    def forward(self, x, turns, bias, cache):
        config, (B, T, _) = self.config, x.shape
        heads = (config.n_head, config.n_kv_head, config.n_kv_head)
        D, eps = config.head_dim, config.norm_eps
        qkv = self.qkv(x).view(B, T, sum(heads), D).transpose(1, 2)
        q, k, v = qkv.split(heads, dim=1)                             # (B, H, T, D) each
        if config.qk_rms:                                             # Qwen3
            q, k = (F.rms_norm(t, (D,), norm.weight.type_as(t), eps)
                    for t, norm in ((q, self.q_norm), (k, self.k_norm)))
        elif config.qk_norm:                                          # Henry et al. 2020
            q, k = (F.layer_norm(t, (D,), eps=eps) for t in (q, k))
        if turns is not None:
            q, k = rotate(q, turns), rotate(k, turns)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
        if config.n_kv_head < config.n_head:                          # share keys among queries
            k, v = (t.repeat_interleave(config.n_head // config.n_kv_head, dim=1) for t in (k, v))

        dropout = config.dropout if self.training else 0.0
        if fused_is_faster(q):
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, dropout_p=dropout,
                                               is_causal=bias is None and T > 1)
        else:
            y = attention(q, k, v, bias, dropout)
        y = y.transpose(1, 2).flatten(2)                              # (B, T, H D)
        return F.dropout(self.proj(y), dropout)


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.dropout, self.gated = config.dropout, config.mlp == "swiglu"
        self.approximate = "tanh" if config.mlp == "gelu_tanh" else "none"
        self.fc = nn.Linear(config.n_embd, config.n_hidden * (1 + self.gated), bias=config.bias)
        self.proj = nn.Linear(config.n_hidden, config.n_embd, bias=config.bias)

    def forward(self, x):
        if self.gated:                                                # Shazeer 2020, eq. 6
            gate, x = self.fc(x).chunk(2, dim=-1)
            x = F.silu(gate) * x
        else:
            x = F.gelu(self.fc(x), approximate=self.approximate)
        return F.dropout(self.proj(x), self.dropout, self.training)


class Block(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.norm_1, self.attn = make_norm(config), Attention(config, layer)
        self.norm_2, self.mlp = make_norm(config), MLP(config)

    def forward(self, x, turns, bias, cache):
        x = x + self.attn(self.norm_1(x), turns, bias, cache)         # positions exchange data
        return x + self.mlp(self.norm_2(x))                           # each is processed alone


class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config, self.recompute = config, False
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        if config.pos == "learned":
            self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.n_layer))
        self.norm = make_norm(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.tie_weights()
        self.apply(self.init_weights)

    def tie_weights(self):
        if self.config.tied and self.lm_head:
            self.lm_head.weight = self.wte.weight

    def init_weights(self, module):
        """Normal(0, 0.02), as in GPT-2. Layers that write into the residual stream start at 0: an
        untrained block adds nothing."""
        if isinstance(module, (nn.Linear, nn.Embedding)):
            nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
        if isinstance(module, (Attention, MLP)):                      # comes after its children
            nn.init.zeros_(module.proj.weight)

    def flops_per_token(self, T):
        """Of a forward and a backward pass: 6 for each weight that multiplies, and attention's
        12 T H D per layer (PaLM, appendix B). Looking up an embedding multiplies nothing."""
        multiply = sum(p.numel() for name, p in self.named_parameters() if "wpe" not in name)
        multiply -= 0 if self.config.tied else self.wte.weight.numel()
        config = self.config
        return 6 * multiply + 12 * config.n_layer * config.n_head * config.head_dim * T

    def hidden(self, idx, mask=None, cache=None, extra=None):
        """The last layer's normalised state: idx (B, T) -> (B, T, C).

        mask: (B, past + T), 1 on real tokens, needed only when sequences are padded on the left;
        positions then count real tokens, so that padding changes nothing.
        extra: (B, T, C), added to the embeddings."""
        B, T = idx.shape
        past = 0 if cache is None else cache.length
        if past + T > self.config.block_size:
            raise ValueError(f"{past + T} tokens do not fit block_size={self.config.block_size}")

        pos, bias = positions(past, T, mask, idx.device, self.work_dtype(idx))
        x, turns = self.wte(idx), None                                # (B, T, C)
        x = x if extra is None else x + extra
        if self.config.pos == "learned":
            x = x + self.wpe(pos)
        else:
            turns = rotary_turns(pos if mask is None else pos[:, None], self.config)
        x = F.dropout(x, self.config.dropout, self.training)
        for block in self.blocks:
            if self.recompute and torch.is_grad_enabled():            # keep only the block's input
                x = checkpoint(block, x, turns, bias, cache, use_reentrant=False)
            else:
                x = block(x, turns, bias, cache)
        if cache is not None:
            cache.length += T
        return self.norm(x)

    def work_dtype(self, x):
        """The precision of the activations: autocast's where it is on, else the weights'."""
        device = x.device.type
        on = torch.is_autocast_enabled(device)
        return torch.get_autocast_dtype(device) if on else next(self.parameters()).dtype

    def forward(self, idx, targets=None, mask=None, cache=None, where=..., reduction="mean"):
        """idx (B, T) -> logits (B, T, V); `where`, an index of (B, T), asks for some of them.
        With targets (B, T) -> the cross-entropy in nats. Targets of -1 do not count; reduction is
        mean | sum | none, as in torch."""
        x = self.hidden(idx, mask, cache)
        if targets is None:
            return self.lm_head(x[where])
        if self.recompute or not torch.is_grad_enabled():
            return self.sliced_loss(x.flatten(0, 1), targets.flatten(), reduction)
        logits = self.lm_head(x)
        return F.cross_entropy(logits.view(-1, logits.size(-1)).float(), targets.flatten(),
                               ignore_index=-1, reduction=reduction)

    def sliced_loss(self, x, targets, reduction, size=2**24):
        """The loss of x (N, C), `size` logits at a time, which the backward pass computes again.
        With a vocabulary of 50,000, (N, V) would need gigabytes. All slices are equally large, also
        where few targets count: pieces of many sizes would fill the memory with holes."""
        def nats(x, targets):
            return F.cross_entropy(self.lm_head(x).float(), targets, ignore_index=-1,
                                   reduction="none")

        rows = max(1, size // self.config.vocab_size)
        slices = zip(x.split(rows), targets.split(rows))
        loss = torch.cat([checkpoint(nats, *part, use_reentrant=False) for part in slices])
        if reduction == "mean":
            return loss[targets >= 0].mean()
        return loss.sum() if reduction == "sum" else loss                 # 0 where none counts

    @torch.no_grad()
    def token_logp(self, idx):
        """log p of every token in idx (B, T), in nats; 0 for the first, which nothing predicts."""
        nats = self(idx[:, :-1], idx[:, 1:], reduction="none")
        return F.pad(-nats.view(len(idx), -1), (1, 0))


class ScalarGPT(nn.Module):
    """A GPT whose output layer is one number per token: reward model and critic.

    With lm it reads, beside every token, how probable the frozen language model lm found that
    token. A small network can't fit both its knowledge and the comparison with what was said into
    one pass; the language model has the knowledge already."""

    def __init__(self, config, lm=False):
        super().__init__()
        self.config, self.gpt = config, GPT(config)
        self.gpt.lm_head = None
        self.head = nn.Linear(config.n_embd, 1)
        # Normal(0, 1 / sqrt(d + 1)), bias 0 (Stiennon et al. 2020): scores of about unit size
        nn.init.normal_(self.head.weight, std=(config.n_embd + 1) ** -0.5)
        nn.init.zeros_(self.head.bias)
        self.lm = GPT(config).requires_grad_(False) if lm else None
        if lm:
            self.surprise = nn.Linear(1, config.n_embd, bias=False)
            nn.init.normal_(self.surprise.weight, std=0.02)

    def start_from(self, gpt):
        """Take the trunk of a language model, not a copy of it. The output layer has no place."""
        weights = {k: v for k, v in gpt.state_dict().items() if "lm_head" not in k}
        self.gpt.load_state_dict(weights, assign=True)

    def forward(self, idx, lm_logp=None):
        """idx (B, T) -> (B, T). lm_logp: self.lm.token_logp(idx), where it is known."""
        extra = None
        if self.lm is not None:
            lm_logp = self.lm.token_logp(idx) if lm_logp is None else lm_logp
            extra = self.surprise(lm_logp.unsqueeze(-1))                          # (B, T, C)
        x = self.gpt.hidden(idx, extra=extra)
        # bf16 would round scores to steps of 0.008
        with torch.autocast(idx.device.type, enabled=False):
            return self.head(x.type_as(self.head.weight)).squeeze(-1)
