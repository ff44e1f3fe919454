"""Exercises 1 to 13, as a class would solve them: each function below is one student's. Its teacher
must say the line whose beginning stands in the decorator; "" is a right solution."""

import importlib
import itertools
import math

import pytest
import torch
import torch.nn.functional as F

import model
from exercises.__main__ import WORDS, call, exercises, explain, judge, run_script, same, yours
from model import GPT, GPTConfig, KVCache
from tokenizer import Tokenizer

STUDENTS = []


def student(n, line):
    return lambda function: STUDENTS.append((n, line, function))


def answers(n):
    return importlib.import_module(f"exercises.answers.{exercises()[n]}")


# ---- 1: pair counts -------------------------------------------------------------------------

def winner(counts):
    top = max(counts.values())
    return sorted(pair for pair in counts if counts[pair] == top)[0]


@student(1, "")
def _(chunks):
    counts = {}
    for text, times in chunks.items():
        data = list(text.encode("utf-8"))
        for i in range(1, len(data)):
            key = data[i - 1], data[i]
            counts[key] = counts.get(key, 0) + times
    return winner(counts)


@student(1, "You count each chunk once")
def _(chunks):
    counts = {}
    for text in chunks:
        for key in zip(text.encode(), text.encode()[1:]):
            counts[key] = counts.get(key, 0) + 1
    return winner(counts)


@student(1, "You count pairs across the border")
def _(chunks):
    data, counts = b"", {}
    for text, times in chunks.items():
        for _ in range(times):
            data += text.encode()
    for i in range(len(data) - 1):
        counts[data[i], data[i + 1]] = counts.get((data[i], data[i + 1]), 0) + 1
    return winner(counts)


@student(1, "Overlapping pairs are missing")
def _(chunks):
    counts = {}
    for text, times in chunks.items():
        data = text.encode()
        for pair in {data[i:i + 2] for i in range(len(data) - 1)}:
            counts[tuple(pair)] = counts.get(tuple(pair), 0) + data.count(pair) * times
    return winner(counts)


@student(1, "You count characters instead of bytes")
def _(chunks):
    counts = {}
    for text, times in chunks.items():
        for a, b in zip(text, text[1:]):
            counts[ord(a), ord(b)] = counts.get((ord(a), ord(b)), 0) + times
    return winner(counts)


@student(1, "The order within a pair matters")
def _(chunks):
    counts = {}
    for text, times in chunks.items():
        for a, b in zip(text.encode(), text.encode()[1:]):
            key = (min(a, b), max(a, b))
            counts[key] = counts.get(key, 0) + times
    return winner(counts)


def counted(chunks):
    counts = {}
    for text, times in chunks.items():
        for key in zip(text.encode(), text.encode()[1:]):
            counts[key] = counts.get(key, 0) + times
    return counts


@student(1, "Of equally frequent pairs you take the one that was seen first")
def _(chunks):
    counts = counted(chunks)
    return max(counts, key=lambda pair: counts[pair])


@student(1, "Of equally frequent pairs you take the largest")
def _(chunks):
    return sorted((times, pair) for pair, times in counted(chunks).items())[-1][1]


@student(1, "You take the rarest pair")
def _(chunks):
    return sorted((times, pair) for pair, times in counted(chunks).items())[0][1]


# ---- 2: one merge ---------------------------------------------------------------------------

@student(2, "")
def _(ids, pair, new):
    out, i = [], 0
    while i < len(ids):
        if i + 1 < len(ids) and (ids[i], ids[i + 1]) == pair:
            out.append(new)
            i += 2
        else:
            out.append(ids[i])
            i += 1
    return out


@student(2, "The right one of the two stays")
def _(ids, pair, new):
    out = []
    for i, id in enumerate(ids):
        if i + 1 < len(ids) and id == pair[0] and ids[i + 1] == pair[1]:
            out.append(new)
        else:
            out.append(id)
    return out


@student(2, "You go from right to left")
def _(ids, pair, new):
    out, i = [], len(ids) - 1
    while i >= 0:
        if i > 0 and (ids[i - 1], ids[i]) == pair:
            out.insert(0, new)
            i -= 1
        else:
            out.insert(0, ids[i])
        i -= 1
    return out


@student(2, "A token is used twice")
def _(ids, pair, new):
    out = []
    for i in range(len(ids)):
        if list(pair) == ids[i:i + 2]:
            out.append(new)
        elif i == 0 or list(pair) != ids[i - 1:i + 1]:
            out.append(ids[i])
    return out


@student(2, "The last token gets lost")
def _(ids, pair, new):
    out, i = [], 0
    while i < len(ids) - 1:
        if (ids[i], ids[i + 1]) == pair:
            out.append(new)
            i += 2
        else:
            out.append(ids[i])
            i += 1
    return out


@student(2, "You replace only the first place")
def _(ids, pair, new):
    for i in range(len(ids) - 1):
        if (ids[i], ids[i + 1]) == pair:
            return ids[:i] + [new] + ids[i + 2:]
    return list(ids)


@student(2, "You also merge right followed by left")
def _(ids, pair, new):
    out, i = [], 0
    while i < len(ids):
        if i + 1 < len(ids) and {ids[i], ids[i + 1]} == set(pair):
            out.append(new)
            i += 2
        else:
            out.append(ids[i])
            i += 1
    return out


# ---- 3: encode ------------------------------------------------------------------------------

def apply(ids, i, new):
    return ids[:i] + [new] + ids[i + 2:]


def places(ids, merges):
    return [i for i in range(len(ids) - 1) if (ids[i], ids[i + 1]) in merges]


@student(3, "")
def _(ids, merges):
    for (a, b), new in merges.items():                # in the order of learning
        i = 0
        while i < len(ids) - 1:
            ids = apply(ids, i, new) if (ids[i], ids[i + 1]) == (a, b) else ids
            i += 1
    return list(ids)


@student(3, "You merge the leftmost pair first")
def _(ids, merges):
    while found := places(ids, merges):
        ids = apply(ids, found[0], merges[ids[found[0]], ids[found[0] + 1]])
    return ids


def everywhere(ids, a, b, new):
    i = 0
    while i < len(ids) - 1:
        ids = apply(ids, i, new) if (ids[i], ids[i + 1]) == (a, b) else ids
        i += 1
    return ids


@student(3, "You merge the pair first that is most frequent")
def _(ids, merges):
    while found := [(ids[i], ids[i + 1]) for i in places(ids, merges)]:
        pair = max(dict.fromkeys(found), key=found.count)
        ids = everywhere(ids, *pair, merges[pair])
    return ids


@student(3, "You merge the pair that was learned last")
def _(ids, merges):
    while found := places(ids, merges):
        new = max(merges[ids[i], ids[i + 1]] for i in found)
        pair, = [pair for pair in merges if merges[pair] == new]
        ids = everywhere(ids, *pair, new)
    return ids


@student(3, "You merge one pair and stop")
def _(ids, merges):
    for pair, new in merges.items():
        if pair in zip(ids, ids[1:]):
            return everywhere(ids, *pair, new)
    return ids


@student(3, "You go through the word once")
def _(ids, merges):
    i, out = 0, []
    while i < len(ids):
        if i + 1 < len(ids) and (ids[i], ids[i + 1]) in merges:
            out.append(merges[ids[i], ids[i + 1]])
            i += 1
        else:
            out.append(ids[i])
        i += 1
    return out


@student(3, "You take the longest token that fits")
def _(ids, merges):
    text = {new: None for new in merges.values()}

    def spell(id):
        for pair, new in merges.items():
            if new == id:
                return spell(pair[0]) + spell(pair[1])
        return [id]

    text, out = {id: spell(id) for id in [*text, *ids]}, []
    while ids:
        best = max((id for id in text if ids[:len(text[id])] == text[id]),
                   key=lambda id: (len(text[id]), -id))
        out.append(best)
        ids = ids[len(text[best]):]
    return out


# ---- 4: the chat mask -----------------------------------------------------------------------

def dialogue(tok, messages, reply, user=0, marker=0, words=1, end=1, user_end=None, empty=0,
             start=0):
    """The ids, and a mask that is 1 where the flags say so."""
    ids, mask = [tok.eot], [start]
    for turn in messages:
        text, speaks = tok.encode(turn["content"]), turn["role"] == "assistant"
        learn = int(bool(turn["content"].strip())) or empty
        ids += [tok.specials["<|" + turn["role"] + "|>"]] + text + [tok.end]
        if speaks:
            mask += [marker and learn] + [words and learn] * len(text) + [end and learn]
        else:
            mask += [start] + [user] * len(text) + [user if user_end is None else user_end]
    return (ids + [tok.assistant], mask + [start]) if reply else (ids, mask)


@student(4, "")
def _(tok, messages, reply=False):
    return dialogue(tok, messages, reply)


@student(4, "Your mask is 1 everywhere")
def _(tok, messages, reply=False):
    ids, _ = dialogue(tok, messages, reply)
    return ids, [1] * len(ids)


@student(4, "Your mask also counts the prompt")
def _(tok, messages, reply=False):
    return dialogue(tok, messages, reply, user=1)


@student(4, "Your mask is 1 on the user's words")
def _(tok, messages, reply=False):
    swapped = dict(user="assistant", assistant="user", system="system")
    ids, _ = dialogue(tok, messages, reply)
    turns = [dict(role=swapped[turn["role"]], content=turn["content"]) for turn in messages]
    return ids, dialogue(tok, turns, reply)[1]


@student(4, "<|end|> after the user's words is not learned")
def _(tok, messages, reply=False):
    return dialogue(tok, messages, reply, user_end=1)


@student(4, "Your mask leaves out <|end|>")
def _(tok, messages, reply=False):
    return dialogue(tok, messages, reply, end=0)


@student(4, "Your mask also counts <|assistant|>")
def _(tok, messages, reply=False):
    return dialogue(tok, messages, reply, marker=1)


@student(4, "You learn only the last answer")
def _(tok, messages, reply=False):
    before, _ = dialogue(tok, messages[:-1], False)
    ids, mask = dialogue(tok, messages, reply)
    return ids, [0] * len(before) + mask[len(before):]


@student(4, "An empty answer is read, not learned")
def _(tok, messages, reply=False):
    return dialogue(tok, messages, reply, empty=1)


@student(4, "Your mask stands one place too early")
def _(tok, messages, reply=False):
    ids, mask = dialogue(tok, messages, reply)
    return ids, [*mask, 0][1:]


@student(4, "<|endoftext|> is missing")
def _(tok, messages, reply=False):
    ids, mask = dialogue(tok, messages, reply)
    return ids[1:], mask[1:]


@student(4, "reply=True must end with")
def _(tok, messages, reply=False):
    return dialogue(tok, messages, False)


# ---- 5: attention ---------------------------------------------------------------------------

@student(5, "")
def _(q, k, v, bias):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


@student(5, "You forgot to divide")
def _(q, k, v, bias):
    weights = torch.exp(torch.einsum("bhtd,bhsd->bhts", q, k) + bias)
    return torch.einsum("bhts,bhsd->bhtd", weights / weights.sum(-1, keepdim=True), v)


@student(5, "You divide by D. ")
def _(q, k, v, bias):
    return torch.softmax(torch.matmul(q, k.permute(0, 1, 3, 2)) / q.shape[3] + bias, dim=3) @ v


@student(5, "You divide by the root of the whole width")
def _(q, k, v, bias):
    B, H, T, D = q.shape
    return torch.softmax(q @ k.permute(0, 1, 3, 2) / math.sqrt(H * D) + bias, dim=3) @ v


@student(5, "Your softmax goes over the queries")
def _(q, k, v, bias):
    return torch.softmax(q @ k.permute(0, 1, 3, 2) / math.sqrt(q.shape[3]) + bias, dim=2) @ v


@student(5, "You do not use bias")
def _(q, k, v, bias):
    return F.scaled_dot_product_attention(q, k, v)


@student(5, "You hide keys after the softmax")
def _(q, k, v, bias):
    weights = torch.softmax(q @ k.permute(0, 1, 3, 2) / math.sqrt(q.shape[3]), dim=3)
    return weights.masked_fill(bias < 0, 0.0) @ v


@student(5, "You divide by sqrt(D) after the softmax")
def _(q, k, v, bias):
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0) / q.shape[3]**.5


@student(5, "You return the weights")
def _(q, k, v, bias):
    return torch.softmax(torch.einsum("bhtd,bhsd->bhts", q, k) / q.shape[3]**.5 + bias, dim=3)


@student(5, "The gradient does not reach")
def _(q, k, v, bias):
    with torch.no_grad():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


# ---- 6: the causal mask ---------------------------------------------------------------------

def table(mask, rule):
    """look[b, t, s] = rule(t, s) for real tokens s, and the right positions."""
    B, T = mask.shape
    look = torch.zeros(B, T, T, dtype=torch.bool)
    for b, t, s in itertools.product(range(B), range(T), range(T)):
        look[b, t, s] = rule(t, s) and mask[b, s] == 1
    return look, places_of(mask)


def places_of(mask):
    return torch.tensor([[max(0, sum(row[:t + 1]) - 1) for t in range(len(row))]
                         for row in mask.tolist()])


@student(6, "")
def _(mask):
    return table(mask, lambda t, s: s <= t)


@student(6, "Your tokens look into the future")
def _(mask):
    return table(mask, lambda t, s: s >= t)


@student(6, "A token does not see itself")
def _(mask):
    return table(mask, lambda t, s: s < t)


@student(6, "A token sees the next one")
def _(mask):
    return table(mask, lambda t, s: s <= t + 1)


@student(6, "The causal mask is missing")
def _(mask):
    return table(mask, lambda t, s: True)


@student(6, "Padding can be seen")
def _(mask):
    return torch.ones(len(mask), mask.size(1), mask.size(1)).tril().bool(), places_of(mask)


@student(6, "You close the rows of padding")
def _(mask):
    causal = torch.ones(mask.size(1), mask.size(1)).tril().bool()
    return causal & (mask == 1).unsqueeze(-1), places_of(mask)


@student(6, "Your positions count padding")
def _(mask):
    return table(mask, lambda t, s: s <= t)[0], torch.arange(mask.size(1)).repeat(len(mask), 1)


@student(6, "Your positions begin at 1")
def _(mask):
    return table(mask, lambda t, s: s <= t)[0], torch.cumsum(mask, dim=1)


@student(6, "The positions of padding are -1")
def _(mask):
    return table(mask, lambda t, s: s <= t)[0], torch.cumsum(mask, dim=1) - 1


# ---- 7: RoPE --------------------------------------------------------------------------------

def by_hand(x, pos, theta, speed=lambda i, D, theta: theta ** (-2 * i / D),
            place=lambda i, D: (2 * i, 2 * i + 1), out=None, angle=1.0):
    """One pair after the other, with the matrix of a rotation."""
    D, columns = x.size(-1), {}
    for i in range(D // 2):
        a, b = place(i, D)
        turn = angle * pos * speed(i, D, theta)
        to = out(i, D) if out else (a, b)
        columns[to[0]] = x[..., a] * torch.cos(turn) - x[..., b] * torch.sin(turn)
        columns[to[1]] = x[..., a] * torch.sin(turn) + x[..., b] * torch.cos(turn)
    return torch.stack([columns[d] for d in range(D)], dim=-1)


@student(7, "")
def _(x, pos, theta):
    return by_hand(x, pos, theta)


@student(7, "You pair x[i] with x[i + D/2]")
def _(x, pos, theta):
    return by_hand(x, pos, theta, place=lambda i, D: (i, i + D // 2))


@student(7, "You turn in the other direction")
def _(x, pos, theta):
    return by_hand(x, pos, theta, angle=-1.0)


@student(7, "This is no rotation")
def _(x, pos, theta):
    freqs = theta ** (-torch.arange(0, x.size(-1), 2) / x.size(-1))
    cos, sin = torch.cos(torch.outer(pos, freqs)), torch.sin(torch.outer(pos, freqs))
    out = torch.empty_like(x)
    out[..., ::2] = x[..., ::2] * cos + x[..., 1::2] * sin
    out[..., 1::2] = x[..., ::2] * sin + x[..., 1::2] * cos
    return out


@student(7, "The 2 is missing")
def _(x, pos, theta):
    return by_hand(x, pos, theta, speed=lambda i, D, theta: 1 / theta ** (i / D))


@student(7, "The minus is missing in the exponent")
def _(x, pos, theta):
    return by_hand(x, pos, theta, speed=lambda i, D, theta: theta ** (2 * i / D))


@student(7, "All pairs turn equally fast")
def _(x, pos, theta):
    return by_hand(x, pos, theta, speed=lambda i, D, theta: 1.0)


@student(7, "You count pairs from 1")
def _(x, pos, theta):
    return by_hand(x, pos, theta, speed=lambda i, D, theta: theta ** (-2 * (i + 1) / D))


@student(7, "You put all first numbers before")
def _(x, pos, theta):
    return by_hand(x, pos, theta, out=lambda i, D: (i, i + D // 2))


@student(7, "You use 0, 1, 2")
def _(x, pos, theta):
    return by_hand(x, torch.arange(x.size(2)), theta)


# ---- 8: the KV cache ------------------------------------------------------------------------

@student(8, "")
def _(keys, values, length, k, v):
    for t in range(k.size(2)):
        keys[:, :, length + t] = k[:, :, t]
        values[:, :, length + t] = v[:, :, t]
    return keys.narrow(2, 0, length + t + 1), values.narrow(2, 0, length + t + 1)


@student(8, "You return only the new keys")
def _(keys, values, length, k, v):
    keys[:, :, length:length + k.shape[2]] = k
    values[:, :, length:length + k.shape[2]] = v
    return k, v


@student(8, "You return the whole memory")
def _(keys, values, length, k, v):
    keys[:, :, length:length + k.shape[2]] = k
    values[:, :, length:length + k.shape[2]] = v
    return keys, values


@student(8, "You write at the front")
def _(keys, values, length, k, v):
    keys[:, :, :k.shape[2]] = k
    values[:, :, :k.shape[2]] = v
    return keys[:, :, :length + k.shape[2]], values[:, :, :length + k.shape[2]]


@student(8, "You store nothing")
def _(keys, values, length, k, v):
    return torch.cat((keys[:, :, :length], k), 2), torch.cat((values[:, :, :length], v), 2)


@student(8, "You store a single token")
def _(keys, values, length, k, v):
    keys[:, :, length], values[:, :, length] = k[:, :, -1], v[:, :, -1]
    return keys[:, :, :length + 1], values[:, :, :length + 1]


@student(8, "You put the new keys before")
def _(keys, values, length, k, v):
    out = torch.cat((k, keys[:, :, :length]), 2), torch.cat((v, values[:, :, :length]), 2)
    keys[:, :, length:length + k.shape[2]] = k
    values[:, :, length:length + k.shape[2]] = v
    return out


# ---- 9: cross-entropy -----------------------------------------------------------------------

def each(logits, targets):
    """-log p of each counted target, in a list."""
    return [torch.logsumexp(row, 0) - row[t] for row, t in zip(logits, targets.tolist()) if t >= 0]


@student(9, "")
def _(logits, targets):
    return sum(each(logits, targets)) / len(each(logits, targets))


@student(9, "You divide by all positions")
def _(logits, targets):
    return sum(each(logits, targets)) / len(targets)


@student(9, "Positions with target -1 count")
def _(logits, targets):
    return torch.stack([row.logsumexp(0) - row[t] for row, t in zip(logits, targets)]).mean()


@student(9, "Targets of 0 count")
def _(logits, targets):
    counted = targets > 0
    return F.cross_entropy(logits[counted], targets[counted])


@student(9, "You add the losses up")
def _(logits, targets):
    return sum(each(logits, targets))


@student(9, "The minus is missing")
def _(logits, targets):
    return -sum(each(logits, targets)) / len(each(logits, targets))


@student(9, "Your loss is in bits")
def _(logits, targets):
    return torch.stack(each(logits, targets)).mean() * math.log2(math.e)


@student(9, "The softmax is missing")
def _(logits, targets):
    return -torch.stack([row[t] for row, t in zip(logits, targets) if t >= 0]).mean()


@student(9, "You take the softmax twice")
def _(logits, targets):
    return F.cross_entropy(F.softmax(logits, dim=1), targets, ignore_index=-1)


@student(9, "The logarithm is missing")
def _(logits, targets):
    return F.nll_loss(F.softmax(logits, dim=1), targets, ignore_index=-1)


@student(9, "exp of a large logit is infinite")
def _(logits, targets):
    return torch.stack([torch.log(torch.exp(row).sum()) - row[t]
                        for row, t in zip(logits, targets) if t >= 0]).mean()


@student(9, "log(softmax(x)) is -inf")
def _(logits, targets):
    return F.nll_loss(torch.log(torch.softmax(logits, 1)), targets, ignore_index=-1)


# ---- 10: the learning rate ------------------------------------------------------------------

def schedule(step, c, first=1, peak=None, start=None, length=None, low=0.01, high=1.0, turns=0.5,
             shape=None):
    """Warmup from `first` steps; then from high to low times the peak, over `length` steps."""
    if step < c.warmup:
        return (c.lr if peak is None else peak) * (step + first) / c.warmup
    x = (step - (c.warmup if start is None else start)) / (length or c.steps - c.warmup)
    share = shape(x) if shape else 0.5 + 0.5 * math.cos(2 * math.pi * turns * x)
    return c.lr * (low + (high - low) * share)


@student(10, "")
def _(step, config):
    return schedule(step, config)


@student(10, "Your first step has the learning rate 0")
def _(step, config):
    return schedule(step, config, first=0)


@student(10, "There is no warmup")
def _(step, config):
    return config.lr if step < config.warmup else schedule(step, config)


@student(10, "In the warmup your learning rate does not follow")
def _(step, config):
    return schedule(step, config, peak=1.0)


@student(10, "Your cosine counts from step 0")
def _(step, config):
    return schedule(step, config, start=0, length=config.steps)


@student(10, "You divide by steps")
def _(step, config):
    return schedule(step, config, length=config.steps)


@student(10, "Your learning rate falls to 0")
def _(step, config):
    return schedule(step, config, low=0.0)


@student(10, "You add a hundredth on top")
def _(step, config):
    return schedule(step, config, high=1.01)


@student(10, "Your learning rate falls in a straight line")
def _(step, config):
    return schedule(step, config, shape=lambda x: 1 - x)


@student(10, "Your cosine goes through a whole turn")
def _(step, config):
    return schedule(step, config, turns=1)


@student(10, "Your learning rate rises after the warmup")
def _(step, config):
    return schedule(step, config, low=1.0, high=0.01)


# ---- 11: gradient accumulation --------------------------------------------------------------

@student(11, "")
def _(nats, mask):
    counted = sum(int(m.sum()) for m in mask)
    return torch.stack([part[m].sum() / counted for part, m in zip(nats, mask)])


@student(11, "You take the mean of the means")
def _(nats, mask):
    return torch.stack([part[m].mean() / len(mask) for part, m in zip(nats, mask)])


@student(11, "Your gradient is K times too large")
def _(nats, mask):
    return torch.stack([part[m].mean() for part, m in zip(nats, mask)])


@student(11, "You divide by K as well")
def _(nats, mask):
    counted = sum(int(m.sum()) for m in mask)
    return torch.stack([part[m].sum() / counted / len(mask) for part, m in zip(nats, mask)])


@student(11, "You divide by all tokens")
def _(nats, mask):
    K, B, T = nats.shape
    return torch.stack([part[m].sum() / (K * B * T) for part, m in zip(nats, mask)])


@student(11, "The tokens where mask is 0 are in your sum")
def _(nats, mask):
    return torch.stack([part.sum() for part in nats]) / int(mask.sum())


@student(11, "You do not use the mask at all")
def _(nats, mask):
    return torch.stack([part.mean() / len(nats) for part in nats])


@student(11, "You do not divide")
def _(nats, mask):
    return torch.stack([part[m].sum() for part, m in zip(nats, mask)])


@student(11, "The gradient does not reach nats")
def _(nats, mask):
    return torch.tensor([part[m].sum().item() for part, m in zip(nats, mask)]) / int(mask.sum())


# ---- 12: packing ----------------------------------------------------------------------------

def packer(room=1, opened=6, redraw=True, by_length=False, wait=True, shuffled=True):
    """The oldest open row is closed, not the fullest: another right solution."""
    def pack(lengths, T, n_rows, rng):
        full, rows, order, n = [], [], [], len(lengths)
        fixed = [int(i) for i in rng.permutation(n)]
        while len(full) < n_rows:
            if not order:
                order = [int(i) for i in rng.permutation(n)] if redraw else list(fixed)
                order = order if shuffled else list(range(n))
                order = sorted(order, key=lambda i: -lengths[i]) if by_length else order
            i = order.pop(0)
            for row in rows:
                if sum(lengths[j] for j in row) + lengths[i] <= T + room:
                    row.append(i)
                    break
            else:
                if wait or len(rows) < opened:
                    rows.append([i])
                elif opened:                          # the dialogue is forgotten
                    full.append(rows.pop(0))
            if len(rows) > opened:
                full.append(rows.pop(0))
        return full
    return pack


student(12, "")(packer())
student(12, "A row has more than T + 1 tokens")(packer(room=10))
student(12, "You leave one place of each row empty")(packer(room=0))
student(12, "You sort by length")(packer(by_length=True))
student(12, "You do not shuffle")(packer(shuffled=False))
student(12, "Every epoch has the same order")(packer(redraw=False))
student(12, "Some dialogues get lost")(packer(wait=False))
student(12, "Less than 85%")(packer(opened=1))


@student(12, "Return a list of rows")
def _(lengths, T, n_rows, rng):
    return rng.permutation(len(lengths))


@student(12, "You do not return n_rows rows")
def _(lengths, T, n_rows, rng):
    return packer()(lengths, T, n_rows + 3, rng)


@student(12, "There is one dialogue in each row")
def _(lengths, T, n_rows, rng):
    return [[int(i)] for _ in range(9) for i in rng.permutation(len(lengths))][:n_rows]


@student(12, "A dialogue comes twice")
def _(lengths, T, n_rows, rng):
    rows = [[]]
    while len(rows) <= n_rows:
        i = int(rng.integers(len(lengths)))
        if sum(lengths[j] for j in rows[-1]) + lengths[i] > T + 1:
            rows.append([])
        rows[-1].append(i)
    return rows[:n_rows]


# ---- 13: sampling ---------------------------------------------------------------------------

def nucleus(logits, temperature, top_p, extra=0, down=True, flat=False, cross=True,
            cut_temperature=None):
    """Each different row with Python's lists."""
    rows, which = torch.unique(logits, dim=0, return_inverse=True)
    weights = torch.zeros_like(rows)
    for row, weight in zip(rows, weights):
        probs = torch.softmax(row / temperature, 0)
        cut = torch.softmax(row / (cut_temperature or temperature), 0).tolist()
        order = sorted(range(len(row)), key=lambda i: cut[i], reverse=down)
        chosen, total = [], 0.0
        for i in order:
            if chosen and not cross and total + cut[i] > top_p:
                break
            chosen.append(i)
            total += cut[i]
            if total >= top_p:
                chosen += order[len(chosen):len(chosen) + extra]
                break
        weight[chosen] = 1.0 if flat else probs[chosen]
    return torch.multinomial(weights[which], 1)[:, 0]


@student(13, "")
def _(logits, temperature, top_p):
    return nucleus(logits, temperature, top_p)


@student(13, "Return the ids in one tensor")
def _(logits, temperature, top_p):
    return nucleus(logits, temperature, top_p).unsqueeze(1)


@student(13, "You drop the token that crosses p")
def _(logits, temperature, top_p):
    return nucleus(logits, temperature, top_p, cross=False)


@student(13, "You keep one token too many")
def _(logits, temperature, top_p):
    return nucleus(logits, temperature, top_p, extra=1)


@student(13, "You keep the tokens whose own probability")
def _(logits, temperature, top_p):
    probs = torch.softmax(logits / temperature, 1)
    probs[(probs < top_p) & (probs < probs.max(1, keepdim=True).values)] = 0
    return torch.multinomial(probs, 1)[:, 0]


@student(13, "You compare sorted probabilities, but cut unsorted ones")
def _(logits, temperature, top_p):
    probs = torch.softmax(logits / temperature, 1)
    ordered = torch.sort(probs, descending=True).values
    before = torch.cumsum(ordered, 1) - ordered
    return torch.multinomial(torch.where(before >= top_p, 0.0, probs), 1)[:, 0]


@student(13, "You cut off the probable tokens")
def _(logits, temperature, top_p):
    return nucleus(logits, temperature, top_p, down=False)


@student(13, "You choose the tokens before the temperature")
def _(logits, temperature, top_p):
    return nucleus(logits, temperature, top_p, cut_temperature=1.0)


@student(13, "You multiply by the temperature")
def _(logits, temperature, top_p):
    return nucleus(logits, 1 / temperature, top_p)


@student(13, "You do not use the temperature")
def _(logits, temperature, top_p):
    return nucleus(logits, 1.0, top_p)


@student(13, "You do not use top_p")
def _(logits, temperature, top_p):
    return torch.distributions.Categorical(logits=logits / temperature).sample()


@student(13, "You always take the most probable")
def _(logits, temperature, top_p):
    return torch.argmax(logits, 1)


@student(13, "All tokens that are left are equally probable")
def _(logits, temperature, top_p):
    return nucleus(logits, temperature, top_p, flat=True)


# ---- the tests ------------------------------------------------------------------------------

NUMBERS = sorted({n for n, *_ in STUDENTS})


def hints(n):
    lines = [hint for hint, *_ in answers(n).MISTAKES]
    return lines + [answers(n).FORM[0]] if n == 13 else lines


@pytest.mark.parametrize("n, line, function", STUDENTS,
                         ids=[f"{n}-{line[:40] or 'right'}" for n, line, _ in STUDENTS])
def test_the_teacher_names_the_mistake(n, line, function):
    said = judge(function, answers(n))
    if line:
        assert said in hints(n) and said.startswith(line)
    else:
        assert said == ""


@pytest.mark.parametrize("n", NUMBERS)
def test_every_hint_is_given_to_exactly_one_student(n):
    lines = [line for number, line, _ in STUDENTS if number == n and line]
    assert sorted(hints(n)) == sorted(
        hint for line in lines for hint in hints(n) if hint.startswith(line))


@pytest.mark.parametrize("n", NUMBERS)
def test_our_own_function_is_right(n):
    assert judge(answers(n).answer, answers(n)) == ""


@pytest.mark.parametrize("n", [n for n in NUMBERS if n not in (12, 13)])
def test_no_mistake_looks_like_another_or_like_the_right_answer(n):
    torch.manual_seed(0)
    cases = list(answers(n).cases())
    functions = [answers(n).answer, *(wrong for *_, wrong in answers(n).MISTAKES)]
    results = [[call(function, args) for args in cases] for function in functions]
    for one, other in itertools.combinations(results, 2):
        assert not all(map(same, one, other))


def test_no_way_to_sample_looks_like_another():
    exercise = answers(13)
    results = [[exercise.frequencies(exercise.answer, *case) for case in exercise.cases()]]
    results += [[wrong(*case) for case in exercise.cases()] for *_, wrong in exercise.MISTAKES]
    for one, other in itertools.combinations(results, 2):
        assert max((a - b).abs().max() for a, b in zip(one, other)) > 0.06


@pytest.mark.parametrize("n", NUMBERS)
def test_what_the_student_gets_has_a_text_in_both_languages_and_no_body(n):
    assert all(explain(n, lang).startswith(f"{n}. ") for lang in WORDS)
    assert judge(yours(n), answers(n)) == "not written yet"


@pytest.mark.parametrize("n", NUMBERS)
def test_hints_are_given_in_chinese(n):
    function = next(f for number, line, f in STUDENTS if number == n and line)
    english, chinese = judge(function, answers(n)), judge(function, answers(n), "zh")
    assert (english, chinese) in [hints[:2] for hints in [
        *answers(n).MISTAKES, *([answers(n).FORM] if n == 13 else [])]]


def test_accumulated_gradients_are_those_of_the_whole_batch():
    gpt, targets = GPT(GPTConfig(block_size=8, vocab_size=9, n_layer=1, n_embd=8, n_hidden=8)), []
    for count in (8, 1, 3):                           # counted tokens of each micro-batch
        targets += [[1] * count + [-1] * (8 - count)]
    x, y = torch.randint(9, (3, 8)), torch.tensor(targets)
    whole, = torch.autograd.grad(gpt(x, y)[1], gpt.wte.weight)
    nats = F.cross_entropy(gpt(x)[0].transpose(1, 2), y, ignore_index=-1, reduction="none")
    for loss in answers(11).answer(nats[:, None], y[:, None] >= 0):
        loss.backward(retain_graph=True)
    torch.testing.assert_close(gpt.wte.weight.grad, whole)


# ---- what --run puts into the real script ---------------------------------------------------

@pytest.fixture
def put_back(monkeypatch):
    """What the exercises replace is as before after the test."""
    for place, name in ((model, "attention"), (model, "fused_is_faster"), (model, "positions"),
                        (model, "rotary_turns"), (model, "rotate"), (model, "sample"),
                        (model.F, "cross_entropy"), (KVCache, "append"),
                        (Tokenizer, "encode_chat")):
        monkeypatch.setattr(place, name, getattr(place, name))


def outputs(tok):
    """What a small model does with all parts that the exercises replace."""
    torch.manual_seed(0)
    gpt = GPT(GPTConfig(block_size=16, vocab_size=64, n_layer=2, n_embd=16, n_hidden=32)).eval()
    torch.nn.init.normal_(gpt.wte.weight)             # so that tokens matter
    idx, mask = torch.randint(64, (2, 6)), torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])
    logits, loss = gpt(idx, torch.tensor([[3, -1, 2, 5, -1, 1]] * 2))
    loss.backward()
    greedy = gpt.generate(idx, 6, mask=mask, temperature=0)
    chat = tok.encode_chat([dict(role="user", content="Hi")], reply=True)
    return logits.detach(), loss.item(), gpt.wte.weight.grad, greedy, chat


@pytest.mark.parametrize("n", [4, 5, 6, 7, 8, 9, 13])
def test_a_right_function_in_its_place_changes_nothing(n, put_back, tiny_tokenizer):
    before = outputs(tiny_tokenizer)
    used = []
    right = next(f for number, line, f in STUDENTS if number == n and not line)
    answers(n).RUN[1](lambda *args, **more: (used.append(n), right(*args, **more))[1])
    assert same([before], [outputs(tiny_tokenizer)])
    assert used or n == 13                            # greedy answers are not sampled


def test_a_function_for_sampling_is_used_and_keeps_the_temperature(put_back):
    seen = []
    answers(13).install(lambda logits, *numbers: seen.append(numbers) or logits.argmax(-1))
    assert model.sample(torch.eye(3), 0.7, top_p=0.9).tolist() == [0, 1, 2]
    assert seen == [(0.7, 0.9)]


@pytest.mark.parametrize("n", [10, 12])
def test_a_function_of_the_script_is_replaced_by_its_name(n, tmp_path, monkeypatch):
    script, name, _ = answers(n).RUN
    copied = tmp_path / script
    copied.write_text(f'def {name}():\n    return "ours"\n\n\nif __name__ == "__main__":\n'
                      f'    open("said", "w").write({name}())\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [])
    for function, said in ((None, "ours"), (lambda: "yours", "yours")):
        run_script(str(copied), name, function, [])
        assert (tmp_path / "said").read_text() == said
