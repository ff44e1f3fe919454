from tokenizer import replace as answer

NAME = "replace"
RUN = None
ZH = """
2. 一次合并 merge

BPE 学到：某一对相邻的 token 要变成一个新 token。把这条合并规则用到一串 token 上，就是：凡是 left
后面紧跟着 right，就用一个 new 代替这两个。

从左往右读，每个 token 只能用一次：连续三个 a，前两个合成一个 token，第三个留下。

例：相邻对 (1, 2)，新 token 是 4：
    [1, 2, 3, 1, 2] -> [4, 3, 4]
    [2, 1]          -> [2, 1]           先后有区别
相邻对 (1, 1)，新 token 是 4：
    [1, 1, 1]       -> [4, 1]
"""


def cases():
    for ids in ([1, 2, 3, 1, 2], [2, 1], [1, 1, 2, 2, 1], [3, 1, 2, 3], [], [1], [1, 2]):
        yield ids, (1, 2), 4
    for ids in ([1, 1, 1], [1, 1, 1, 1], [1, 1, 2, 1, 1, 1], [2, 1, 1]):
        yield ids, (1, 1), 4


def joins(ids, pair, new, then=1, either=False):
    """Go on by `then` places after a merge."""
    out, i = [], 0
    while i < len(ids):
        here = tuple(ids[i:i + 2])
        merged = here == pair or either and here == pair[::-1]
        out.append(new if merged else ids[i])
        i += then if merged else 1
    return out


def reuses(ids, pair, new):
    """A token that has been merged with the one before is merged with the next one, too."""
    hits = [tuple(ids[i:i + 2]) == pair for i in range(len(ids))]
    return [new if hit else id for id, hit, after in zip(ids, hits, [False, *hits])
            if hit or not after]


def forgets_the_last(ids, pair, new):
    out = answer(ids, pair, new)
    return out if ids and out[-1] == new else out[:-1]


def first_only(ids, pair, new):
    at = next((i for i in range(len(ids)) if tuple(ids[i:i + 2]) == pair), None)
    return ids if at is None else ids[:at] + [new] + ids[at + 2:]


MISTAKES = [
    ("The right one of the two stays in the list. After a merge, go on two places further.",
     "合并之后，右边的 token 还留在列表里。合并后应当向前走两步。", joins),
    ("You go from right to left. Of three a, the first two become one token.",
     "你是从右往左合并的。三个连续的 a，应当是前两个合成一个。",
     lambda ids, pair, new: answer(ids[::-1], pair[::-1], new)[::-1]),
    ("A token is used twice: of three a, the middle one is part of two new tokens.",
     "有的 token 用了两次：三个连续的 a，中间那个进了两个新 token。", reuses),
    ("The last token gets lost when it is not part of a merge.",
     "最后一个 token 没有参与合并时，被丢掉了。", forgets_the_last),
    ("You replace only the first place. Replace the pair wherever it stands.",
     "你只替换了第一处。每一处都要替换。", first_only),
    ("You also merge right followed by left. The order matters.",
     "right 在前、left 在后时你也合并了。先后有区别。",
     lambda *a: joins(*a, then=2, either=True)),
]
