import torch

from model import KVCache

NAME = "append"
COLUMNS = ["objective/score", "ppo/policy/approxkl"]     # large if sampling and scoring disagree
ZH = """
8. KV 缓存

要再写一个词元（token），注意力需要前面所有词元的键（key）和值（value）。
词元增加时，它们不变，因为没有词元会看后面的。所以把它们存起来：
每个新词元只需一步，不必把全文重读一遍。

内存一次预留好，能放 S 个词元。前 length 个位置已经填好，后面是旧的、没有用的数。
每一步带来 T 个新的键和值（先是整个提示，然后一次一个词元）。
把它们写进张量本身，紧接在已填好的位置后面；再返回到此为止填好的全部键和值，供注意力使用。

例：length = 2，T = 1，一个字母代表一个向量：
    keys [a, b, ?, ?]，k [c]  ->  keys 现在是 [a, b, c, ?]，返回 [a, b, c]

length 是普通的整数，之后由调用者增加：各层共用一个 length。
"""


def answer(keys, values, length, k, v):
    cache = KVCache.__new__(KVCache)                  # without reserving memory
    cache.k, cache.v, cache.length = [keys], [values], length
    return cache.append(0, k, v)


def install(function):
    """In a memory of zeros: what a mistake leaves unwritten must not be NaN by chance."""
    def append(cache, layer, k, v):
        if cache.length == 0:
            cache.k[layer].zero_(), cache.v[layer].zero_()
        return function(cache.k[layer], cache.v[layer], cache.length, k, v)

    KVCache.append = append


RUN = ("rlhf_ppo.py", install, "--steps=6 --batch_size=64 --minibatch=32 --n_eval=64 "
       "--eval_every=3 --ptx_coef=0 --critic_first=0 --critic_lr=1 --lr=5e-4")


def cases():
    for length, T in ((0, 4), (4, 1), (3, 2), (7, 1)):
        yield (torch.randn(2, 2, 8, 4), torch.randn(2, 2, 8, 4), length,
               torch.randn(2, 2, T, 4), torch.randn(2, 2, T, 4))


def written_out(keys, values, length, k, v):
    end = length + k.size(2)
    keys[:, :, length:end], values[:, :, length:end] = k, v
    return keys[:, :, :end], values[:, :, :end]


MISTAKES = [
    ("You return only the new keys and values. Attention needs the earlier ones, too.",
     "你只返回了新的键和值。注意力还需要前面的。",
     "return keys[:, :, :end], values[:, :, :end] -> return k, v"),
    ("You return the whole memory: the rubbish behind the filled places gets in.",
     "你返回了整块内存，后面没有用的数也混了进来。", ", :end] -> ]"),
    ("You write at the front and destroy the earlier keys. Write at `length`.",
     "你从头写起，盖掉了前面的键。应当从 length 处写起。", "length:end -> :k.size(2)"),
    ("You store nothing: at the next step these keys and values are lost. Write into the tensors.",
     "你什么也没存，到了下一步，这些键和值就没有了。请写进张量本身。",
     "end = -> keys, values, end = keys.clone(), values.clone(),"),
    ("You store a single token. The first step brings the whole prompt: T tokens.",
     "你只存了一个词元。第一步带来的是整个提示：T 个词元。",
     "k.size(2) -> 1 && = k, v -> = k[:, :, -1:], v[:, :, -1:]"),
    ("You put the new keys before the old ones. They come last.",
     "你把新的键放在了旧的前面。应当接在后面。", ", :end] -> , :end].roll(end - length, 2)"),
]
