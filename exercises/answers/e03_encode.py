import random

from tokenizer import bpe
from tokenizer import merge as answer

NAME = "encode"
RUN = None
ZH = """
3. 用合并规则编码

分词器（tokenizer）就是一串合并规则。给一个单词编码：从它的字节开始，不断合并，
直到没有可以合并的相邻对。先后很重要：在单词的所有相邻对里，先合并最早学到的那一对，
和训练时一样。最早学到的规则，用得也最多。换一种先后，得到的词元（token）就不同，
而模型从没在这个位置见过它们。

    只要有相邻对在 merges 里：
        取最早学到的那一对
        从左往右，把每一处都换掉（练习 2）

新词元的编号按学习的先后递增：编号最小的，学得最早。

例：merges = {(98, 99): 256, (97, 98): 257, (256, 100): 258}，单词 "abcd" 的字节是
    [97, 98, 99, 100] -> [97, 256, 100] -> [97, 258]
相邻对 (97, 98) 在单词里更靠前，但 (98, 99) 学得更早。
"""


def cases():
    rng = random.Random(0)
    yield [97, 98, 99, 100], {(98, 99): 256, (97, 98): 257, (256, 100): 258}
    yield [97, 98], {}
    yield [], {(97, 98): 256}
    for _ in range(12):
        words = [[rng.choice([97, 97, 98, 99]) for _ in range(rng.randint(3, 9))] for _ in "123456"]
        yield [rng.choice([97, 97, 98, 99]) for _ in range(12)], bpe(words, 8)


def written_out(ids, merges):
    while known := [pair for pair in zip(ids, ids[1:]) if pair in merges]:
        pair = min(known, key=merges.get)
        for i in range(len(ids)):
            if tuple(ids[i:i + 2]) == pair:
                ids = ids[:i] + [merges[pair]] + ids[i + 2:]
    return ids


def longest(ids, merges):
    parts = {id: (id,) for id in ids}
    for (left, right), new in merges.items():
        parts[new] = parts.get(left, (left,)) + parts.get(right, (right,))
    whole, out, i = {part: id for id, part in parts.items()}, [], 0
    while i < len(ids):
        part = next(tuple(ids[i:j]) for j in range(len(ids), i, -1) if tuple(ids[i:j]) in whole)
        out.append(whole[part])
        i += len(part)
    return out


MISTAKES = [
    ("You merge the leftmost pair first. Take the pair that was learned first.",
     "你先合并了最左边的一对。应当先合并最早学到的一对。",
     "min(known, key=merges.get) -> known[0] && "
     "range(len(ids)) -> [[*zip(ids, ids[1:])].index(pair)]"),
    ("You merge the pair first that is most frequent in this word. Frequencies count in training; "
     "here take the pair that was learned first.",
     "你先合并了在这个单词里次数最多的一对。次数只在训练时有用；这里应当取最早学到的一对。",
     "min(known, key=merges.get) -> max(dict.fromkeys(known), key=known.count)"),
    ("You merge the pair that was learned last. The smallest new id was learned first.",
     "你先合并了最晚学到的一对。新编号最小的，学得最早。", "min(known -> max(known"),
    ("You merge one pair and stop. Go on until no known pair is left.",
     "你合并了一对就停了。应当继续，直到没有可以合并的相邻对。", "while known -> if known"),
    ("You go through the word once. New tokens can be merged, too: go on until nothing changes.",
     "你只从头到尾走了一遍。新词元还可以再合并，直到没有变化为止。",
     "while known -> if known && == pair -> in merges && merges[pair] -> merges[*ids[i:i + 2],]"),
    ("You take the longest token that fits, as WordPiece does. BPE repeats the merges in the order "
     "in which they were learned.",
     "你取了能匹配的最长的词元，那是 WordPiece 的做法。BPE 按学到的先后合并。", longest),
]
