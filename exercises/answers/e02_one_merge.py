from tokenizer import replace as answer

NAME = "replace"
RUN = None
ZH = """
2. 做一次合并

BPE 学到了一条合并规则（merge）：某一对相邻的词元（token），要变成一个新词元。
把规则用到一串词元上：凡是 left 后面紧跟着 right，就用一个 new 代替这两个。

从左往右读，每个词元只用一次：三个连续的 a，前两个合成一个词元，第三个留下。

例：相邻对 (1, 2)，新词元 4：
    [1, 2, 3, 1, 2] -> [4, 3, 4]
    [2, 1]          -> [2, 1]           先后有区别
相邻对 (1, 1)，新词元 4：
    [1, 1, 1]       -> [4, 1]
"""


def cases():
    for ids in ([1, 2, 3, 1, 2], [2, 1], [1, 1, 2, 2, 1], [3, 1, 2, 3], [], [1], [1, 2]):
        yield ids, (1, 2), 4
    for ids in ([1, 1, 1], [1, 1, 1, 1], [1, 1, 2, 1, 1, 1], [2, 1, 1]):
        yield ids, (1, 1), 4


def written_out(ids, pair, new):
    out = []
    while ids:
        hit = tuple(ids[:2]) == pair
        out.append(new if hit else ids[0])
        ids = ids[1 + hit:]
    return out


MISTAKES = [
    ("The right one of the two stays in the list. After a merge, go on two places further.",
     "合并之后，右边的词元还留在列表里。合并之后应当向前走两步。", "1 + hit -> 1"),
    ("You go from right to left. Of three a, the first two become one token.",
     "你是从右往左合并的。三个连续的 a，应当是前两个合成一个。",
     "[:2] -> [-2:] && append( -> insert(0, && ids[0] -> ids[-1] && [1 + hit:] -> [:-1 - hit]"),
    ("A token is used twice: of three a, the middle one is part of two new tokens.",
     "有的词元用了两次：三个连续的 a，中间那个进了两个新词元。",
     "1 + hit -> 1 + (hit and tuple(ids[1:3]) != pair)"),
    ("The last token gets lost when it is not part of a merge.",
     "最后一个词元没有参与合并时，被你丢掉了。", "while ids -> while ids[1:]"),
    ("You replace only the first place. Replace the pair wherever it stands.",
     "你只替换了第一处。每一处都要替换。", "== pair -> == pair and new not in out"),
    ("You also merge right followed by left. The order matters.",
     "right 在前、left 在后时你也合并了。先后有区别。", "== pair -> in (pair, pair[::-1])"),
]
