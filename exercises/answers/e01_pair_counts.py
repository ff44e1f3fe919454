from tokenizer import learn_merges

NAME = "best_pair"
RUN = None
ZH = """
1. 统计相邻对：先合并哪一对

字节对编码（BPE）从字节开始：最初的词元（token）是 0 到 255。学习就是反复做同一步：
找出最常见的一对相邻词元，把它变成一个新词元。本题只做第一步：找出这一对。

文本已经切成片段（chunk），大致是单词，相同的片段也已经数好。只数片段内部的相邻对，
所以词元不会跨过单词的边界。出现 n 次的片段，要算 n 次。（Sennrich et al. 2016，算法 1。）

次数相同时，取编号较小的一对：(97, 98) 先于 (98, 97)。有了这条规则，每台电脑的结果都一样。

例：{"aaab": 2, "ba": 3}
    aa 在 "aaab" 里出现 2 次，共 4 次；ab 共 2 次；ba 共 3 次  -> (97, 97)

"text".encode() 得到文本的字节，list() 再把它变成一串整数。
"""


def answer(chunks):
    return next(iter(learn_merges(chunks, 1)))


def cases():
    yield {"aaab": 2, "ba": 3},                       # overlapping pairs; between the chunks
    yield {"xyz": 1, "xy": 1, "zq": 5},               # frequencies
    yield {"ab": 2, "ba": 2, "cd": 3},                # the order within a pair
    yield {"zy": 2, "ab": 2},                         # ties
    yield {"ab": 2, "zy": 2, "q": 9},
    yield {"é": 3, "ab": 2},                          # one character, two bytes
    yield {"hm": 2, "m": 9, "mm": 1},
    yield {"kkkk": 2, "lm": 5},


def written_out(chunks):
    counts = {}
    for text, times in chunks.items():
        data = text.encode()
        for pair in zip(data, data[1:]):
            counts[pair] = counts.get(pair, 0) + times
    return min(counts, key=lambda pair: (-counts[pair], pair))


MISTAKES = [
    ("You count each chunk once. A chunk that occurs n times counts n times.",
     "每个片段你只算了一次。出现 n 次的片段，要算 n 次。", "+ times -> + 1"),
    ("You count pairs across the border of two chunks. Only pairs inside a chunk count.",
     "你把跨越两个片段边界的相邻对也数进去了。只数片段内部的。",
     'chunks.items() -> [("".join(text * n for text, n in chunks.items()), 1)]'),
    ("Overlapping pairs are missing: aaa has the pair (a, a) twice. str.count does not see that.",
     "你漏数了重叠的相邻对：aaa 里 (a, a) 出现两次。str.count 数不出来。",
     "zip(data, data[1:]) -> {*zip(data, data[1:])} && "
     "+ times -> + times * data.count(bytes(pair))"),
    ("You count characters instead of bytes: é is two bytes. Use text.encode().",
     "你数的是字符，不是字节：é 有两个字节。请用 text.encode()。",
     "text.encode() -> [*map(ord, text)]"),
    ("The order within a pair matters: (a, b) and (b, a) are different pairs.",
     "一对之内的先后有区别：(a, b) 和 (b, a) 是不同的两对。",
     "zip(data, data[1:]) -> map(tuple, map(sorted, zip(data, data[1:])))"),
    ("Of equally frequent pairs you take the one that was seen first. Take the smaller ids.",
     "次数相同时，你取了最先遇到的一对。应当取编号较小的。",
     "(-counts[pair], pair) -> -counts[pair]"),
    ("Of equally frequent pairs you take the largest ids. Take the smallest.",
     "次数相同时，你取了编号较大的一对。应当取较小的。", "min( -> max( && -counts -> counts"),
    ("You take the rarest pair. The most frequent one is merged first.",
     "你取了次数最少的一对。应当先合并次数最多的。", "-counts -> counts"),
]
