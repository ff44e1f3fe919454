"""How a trained model is used: sampling tokens, answering prompts, log-probabilities of answers.

    stream      one token after the other, with a cache      chat.py, the live page
    generate    prompts as a tensor -> tokens                pretrain.py
    complete    many prompts as ids -> the ids of answers    rlhf_ppo.py
    respond     many dialogues -> the texts of answers       compare.py
"""

import math

import numpy as np
import torch
from torch.nn import functional as F

from model import KVCache

COLDEST = 1e-6             # temperatures below count as 0: divided by them, logits would overflow
LAST = (slice(None), -1)   # the last position of every row


# ---- sampling -------------------------------------------------------------------------------

def sample(logits, temperature=1.0, top_k=0, top_p=1.0, generator=None):
    """logits (B, V) -> (B,) ids. temperature 0 takes the most probable token."""
    if not logits.amax(-1).isfinite().all():          # of a row that allows nothing, too
        raise ValueError("the model's logits are no longer numbers: its weights are damaged, or "
                         "its training went wrong")
    if temperature < COLDEST:
        return logits.argmax(-1)
    logits = logits / temperature
    if 0 < top_k < logits.size(-1):
        logits = logits.masked_fill(logits < logits.topk(top_k).values[:, -1:], -math.inf)
    if top_p < 1:
        # keep the fewest tokens whose probabilities reach top_p (Holtzman et al. 2019)
        probs, order = F.softmax(logits, dim=-1).sort(descending=True)
        late = probs.cumsum(-1) - probs >= max(top_p, 1e-9)
        logits = logits.masked_fill(late.scatter(1, order, late), -math.inf)
    # where does a uniform number fall among the running totals of p? One random number per row:
    # torch.multinomial draws V of them, which takes longer than the model
    totals = F.softmax(logits, dim=-1).cumsum(-1)
    uniform = torch.rand(len(totals), 1, device=totals.device, generator=generator)
    return torch.searchsorted(totals, uniform * totals[:, -1:], right=True).squeeze(-1)


@torch.no_grad()
def stream(model, idx, max_new_tokens, mask=None, temperature=1.0, top_k=0, top_p=1.0, stop=(),
           pad=0, generator=None):
    """Yield the next token of every sequence, (B,), until all have stopped.

    idx (B, T): prompts, padded on the left where mask is 0. A sequence that has produced one of the
    ids in `stop` yields `pad` from then on. When a quarter of the batch is finished it is dropped;
    to drop each at once would copy the cache at nearly every step.
    """
    B, T = idx.shape
    room = model.config.block_size - T
    if room < 1:
        raise ValueError(f"a prompt of {T} tokens fills block_size={model.config.block_size}")
    steps = min(max_new_tokens, room)
    cache = KVCache(model.config, B, T + steps, idx.device, model.work_dtype(idx))
    alive = torch.arange(B, device=idx.device)                        # the rows in the batch
    done = torch.zeros(B, device=idx.device, dtype=torch.bool)        # which of them are finished
    stop = torch.tensor(list(stop), device=idx.device, dtype=torch.long)
    for _ in range(steps):
        logits = model(idx, mask=mask, cache=cache, where=LAST)       # (B, V)
        new = sample(logits.float(), temperature, top_k, top_p, generator).masked_fill(done, pad)
        out = torch.full((B,), pad, device=idx.device)
        out[alive] = new
        yield out

        done = done | torch.isin(new, stop)
        n_left = len(done) - int(done.sum())
        if n_left == 0:
            return
        if n_left <= 0.75 * len(done):
            rows = (~done).nonzero().squeeze(1)
            alive, new, done = alive[rows], new[rows], done[rows]
            mask = None if mask is None else mask[rows]
            cache.keep(rows)
        idx = new[:, None]
        if mask is not None:
            mask = F.pad(mask, (0, 1), value=1)


def generate(model, idx, max_new_tokens, **options):
    """idx (B, T) -> (B, T + up to max_new_tokens); options: as in `stream`."""
    new = [tokens[:, None] for tokens in stream(model, idx, max_new_tokens, **options)]
    return torch.cat([idx, *new], dim=1)


# ---- answering ------------------------------------------------------------------------------

def prompt_room(T, max_new_tokens):
    """How many of the T tokens of the context a prompt may have: an answer gets max_new_tokens, but
    at most half of them."""
    return T - min(max_new_tokens, T // 2)


def prompt_ids(tok, messages, T, max_new_tokens):
    """The ids of a dialogue, ready to be answered. One that is too long loses its beginning."""
    return tok.encode_chat(messages, reply=True)[0][-prompt_room(T, max_new_tokens):]


def left_pad(rows, pad, device):
    """[[ids]] of unequal lengths -> idx, mask (B, T): padding stands in front, mask is 0 there."""
    T = max(map(len, rows))
    idx = torch.tensor([[pad] * (T - len(r)) + r for r in rows], device=device)
    mask = torch.tensor([[0] * (T - len(r)) + [1] * len(r) for r in rows], device=device)
    return idx, mask


def right_pad(rows, pad, device):
    """[[ids]] -> idx (B, T), and the position of the last real token of each row, (B,)."""
    T = max(map(len, rows))
    idx = torch.tensor([r + [pad] * (T - len(r)) for r in rows], device=device)
    return idx, torch.tensor([len(r) - 1 for r in rows], device=device)


@torch.no_grad()
def complete(model, tok, prompts, rt, max_new_tokens, temperature=1.0, stop=None, batch_size=512,
             seed=0):
    """What the model writes after each of the prompts [[ids]]: [[ids]]. The token `stop`, by
    default <|end|>, is the last one if it came. Prompts of similar length share a batch."""
    model.eval()
    stop = tok.end if stop is None else stop
    replies = [None] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), batch_size):
        chosen = order[start:start + batch_size]
        idx, mask = left_pad([prompts[i] for i in chosen], tok.pad, rt.device)
        rt.seed(seed, start)
        with rt.autocast():
            out = generate(model, idx, max_new_tokens, mask=mask, temperature=temperature,
                           stop=[stop], pad=tok.pad)[:, idx.size(1):].tolist()
        for i, ids in zip(chosen, out):
            replies[i] = ids[:ids.index(stop) + 1] if stop in ids else ids
    return replies


def answer_text(tok, ids, stop=None):
    """The text of an answer, without the token that ends it: `stop`, by default <|end|>."""
    stop = tok.end if stop is None else stop
    return tok.decode([i for i in ids if i != stop])


def respond(model, tok, prompts, rt, max_new_tokens, temperature=1.0, batch_size=512, seed=0):
    """Answer each prompt: [(text, ended)]; ended: the model produced <|end|>."""
    ids = [prompt_ids(tok, p, model.config.block_size, max_new_tokens) for p in prompts]
    replies = complete(model, tok, ids, rt, max_new_tokens, temperature, tok.end, batch_size, seed)
    return [(answer_text(tok, r), r[-1] == tok.end) for r in replies]


# ---- log-probabilities of answers -----------------------------------------------------------

def answer_mask(prompts, answers, device):
    """[[ids]], [[ids]] -> (B, T) bool: which tokens of prompt + answer, padded on the right, belong
    to the answer."""
    rows = [[0] * len(p) + [1] * len(a) for p, a in zip(prompts, answers)]
    return right_pad(rows, 0, device)[0].bool()


def log_probs(model, idx, mask, temperature=1.0):
    """log p(token | the tokens before it) of the n tokens of idx (B, T) where mask is True, (n,),
    and the distributions that they are read from, (n, V). The first token of a row has none."""
    logits = model(idx[:, :-1], where=mask[:, 1:])                    # (n, V)
    logp_all = F.log_softmax(logits.float() / max(temperature, COLDEST), dim=-1)
    return logp_all.gather(-1, idx[mask].unsqueeze(-1)).squeeze(-1), logp_all


def sum_logp(model, tok, ids, replies, rt, temperature=1.0):
    """log p(reply | ids) in nats, (B,), with its gradient."""
    idx, _ = right_pad([i + r for i, r in zip(ids, replies)], tok.pad, rt.device)
    mask = answer_mask(ids, replies, rt.device)
    with rt.autocast():
        logp, _ = log_probs(model, idx, mask, temperature)            # (n,) all replies' tokens
    owner = torch.nonzero(mask)[:, 0]                 # the reply that each token belongs to
    return torch.zeros(len(ids), device=rt.device).index_add(0, owner, logp)


@torch.no_grad()
def response_logp(model, tok, ids, replies, rt, temperature=1.0, batch_size=64):
    """log p(reply | ids) in nats, and the number of tokens of each reply: two (N,) arrays."""
    model.eval()
    total, count = np.zeros(len(ids)), np.array([len(r) for r in replies])
    written = np.flatnonzero(count)
    for start in range(0, len(written), batch_size):
        chosen = written[start:start + batch_size]
        logp = sum_logp(model, tok, [ids[i] for i in chosen], [replies[i] for i in chosen], rt,
                        temperature)
        total[chosen] = logp.cpu().numpy()
    return total, count
