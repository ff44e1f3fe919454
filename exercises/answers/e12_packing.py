from types import SimpleNamespace

import numpy as np

from sft import pack as answer

NAME = "pack"
RUN = "sft.py", "pack", "--steps=200 --eval_every=50 --ptx=0"
COLUMNS = ["val_loss", "val_token_accuracy"]
ZH = """
12. 打包

对话短，一行却很长。一行只放一段对话，大半行都是空的，而空位花的时间和有用的位置一样多。
所以，几段完整的对话打包（packing）成一行。一行有 T + 1 个位置：T 个输入，
以及错开一位的同样的词元（token），作为目标。

    四段对话长 40、70、55、30，T + 1 = 100  ->  两行 [0, 2]（95）和 [1, 3]（100）

要求：
- 恰好 n_rows 行，每行是一个列表，里面是 lengths 的下标；任何一行都不超过 T + 1 个词元
- 每一轮（epoch）都有新的随机次序，来自 rng.permutation(len(lengths))，每段对话各用一次；
  一轮用完了，就开始下一轮（可以有少数对话，还在没放满的行里等着）
- 不要按长度排序：每一批都应当是随机的混合
- 至少 85% 的位置有词元。如果一段对话放不下就结束这一行，大约五分之一会空着。
  请让几行（比如 8 行）同时开着：对话放进第一个放得下的行，都放不下就另开一行；
  开着的行太多时，结束其中最满的一行
"""
T, N, ROWS = 99, 200, 250     # about three epochs


def facts(function):
    """What the function does with dialogues of random lengths."""
    lengths = np.random.default_rng(0).integers(10, 60, N).tolist()
    rows, again = (function(list(lengths), T, ROWS, np.random.default_rng(seed)) for seed in (1, 2))
    halves = function([50] * 40, T, 30, np.random.default_rng(1))
    for packed, n in ((rows, N), (again, N), (halves, 40)):
        if not (isinstance(packed, list) and all(isinstance(row, list) and row for row in packed)
                and all(0 <= i < n for row in packed for i in row)):
            return None
    used = [i for row in rows for i in row]
    early = rows[:N // 4]                             # surely from the first epoch
    return SimpleNamespace(
        rows=rows, again=again, halves=halves, fill=[sum(lengths[i] for i in row) for row in rows],
        counts=np.bincount(used, minlength=N), early=[i for row in early for i in row],
        longest=[max(lengths[i] for i in row) for row in early],
        repeated=1 - len({frozenset(row) for row in rows}) / max(1, len(rows)))


def check(function, lang):
    found = facts(function)
    for english, chinese, applies in MISTAKES:
        if applies(found):
            return chinese if lang == "zh" else english
    return ""


MISTAKES = [
    ("Return a list of rows; each row is a list of indices into lengths, and none is empty.",
     "请返回一个列表，每一行又是一个列表，里面是 lengths 的下标，没有空行。", lambda f: f is None),
    ("You do not return n_rows rows. Stop when there are n_rows, not at the end of an epoch.",
     "你返回的不是 n_rows 行。凑够 n_rows 行就停，不要等一轮结束才停。",
     lambda f: (len(f.rows), len(f.again), len(f.halves)) != (ROWS, ROWS, 30)),
    ("A row has more than T + 1 tokens: look whether a dialogue fits before you add it.",
     "有的行超过了 T + 1 个词元：放进去之前，先看放不放得下。",
     lambda f: max(f.fill) > T + 1),
    ("There is one dialogue in each row: nothing is packed.",
     "每行只有一段对话：根本没有打包。", lambda f: max(map(len, f.rows)) == 1),
    ("You leave one place of each row empty: a row has T + 1 places, T inputs and one more target.",
     "你让每行空了一个位置：一行有 T + 1 个位置，T 个输入，再加最后一个目标。",
     lambda f: all(len(row) == 1 for row in f.halves)),
    ("A dialogue comes twice within an epoch: use rng.permutation, and take each index once.",
     "一轮之内，有的对话出现了两次：请用 rng.permutation，每个下标取一次。",
     lambda f: len(set(f.early)) < len(f.early)),
    ("You sort by length. The order of the dialogues must be random.",
     "你按长度排了序。对话的次序应当是随机的。",
     lambda f: abs(np.corrcoef(range(len(f.longest)), f.longest)[0, 1]) > 0.7),
    ("You do not shuffle: another rng gives the same rows.",
     "你没有打乱次序：换一个 rng，得到的行还是一样。", lambda f: f.rows == f.again),
    ("Every epoch has the same order. Draw a new permutation for each.",
     "每一轮的次序都一样。每一轮都应当重新打乱。", lambda f: f.repeated > 0.3),
    ("Some dialogues get lost: one that does not fit must wait for another row.",
     "有的对话丢掉了：放不下的，应当等别的行。", lambda f: np.ptp(f.counts) > 2),
    ("Less than 85% of the places are filled: keep several rows open.",
     "有词元的位置不到 85%：请让几行同时开着。",
     lambda f: sum(f.fill) < 0.85 * (T + 1) * len(f.rows)),
]
