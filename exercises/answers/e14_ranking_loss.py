import itertools

import torch
import torch.nn.functional as F

from reward import ranking_loss as answer

NAME = "ranking_loss"
RUN = "reward.py", "ranking_loss", "--steps=60 --batch_size=16 --micro_batch=16 --eval_every=15"
COLUMNS = ["val_loss", "val_accuracy"]
ZH = """
14. 排序损失

标注者给同一个提示（prompt）的 K 个回答排了序。奖励模型给每个回答一个数，即分数（score）。
训练要使每个配对中，较好的回答分数更高：

    loss = 对所有配对取平均：-log sigmoid(较好者的分数 - 较差者的分数)

K 个回答组成 K (K - 1) / 2 个配对。名次（rank）相同的两个回答是并列的，不组成配对，也不计数。
（InstructGPT，式 1。）
例：分数 [1, 0]，名次 [0, 1] -> log(1 + exp(-1))。

请用 torch.nn.functional 里的 logsigmoid：x 是很大的负数时，log(sigmoid(x)) 会变成 -inf。
"""


def cases():
    for ranks in ([0, 1], [1, 0, 2], [2, 0, 1, 3], [0, 1, 1, 2], [0, 0, 1], [3, 1, 0, 2, 4]):
        yield torch.randn(len(ranks), requires_grad=True), torch.tensor(ranks)
    yield torch.tensor([-200.0, 0.0], requires_grad=True), torch.tensor([0, 1])


def written_out(scores, ranks):
    losses = []
    for i, j in itertools.product(range(len(ranks)), repeat=2):
        if ranks[i] < ranks[j]:
            losses.append(-F.logsigmoid(scores[i] - scores[j]))
    return sum(losses) / len(losses)


MISTAKES = [
    ("You prefer the worse answer: rank 0 is the best, so its score must be the higher one.",
     "你偏爱了较差的回答：名次 0 最好，它的分数应当更高。",
     "scores[i] - scores[j] -> scores[j] - scores[i]"),
    ("You add the pairs up. Take their mean: prompts with many answers must not weigh more.",
     "你把所有配对加起来了。应当取平均值，否则回答多的提示权重更大。", "/ len(losses) ->"),
    ("You divide by K, the number of answers. Divide by the number of pairs.",
     "你除以了回答的个数 K。应当除以配对的个数。", "/ len(losses) -> / len(scores)"),
    ("You divide by K (K - 1) / 2 even when answers are tied. Tied answers make no pair.",
     "有并列时，你仍然除以 K (K - 1) / 2。并列的回答不组成配对。",
     "/ len(losses) -> / (len(scores) * (len(scores) - 1) / 2)"),
    ("You divide by K (K - 1): that counts each pair twice.",
     "你除以了 K (K - 1)：每个配对数了两次。",
     "/ len(losses) -> / (len(scores) * (len(scores) - 1))"),
    ("You compare with <=: then tied answers, and each answer with itself, make a pair.",
     "你用了 <=：这样，并列的回答，甚至每个回答与自己，都成了配对。",
     "ranks[i] < ranks[j] -> ranks[i] <= ranks[j]"),
    ("You use only the best and the worst answer. Every pair teaches something.",
     "你只用了最好和最差的回答。每个配对都有用。",
     "ranks[i] < ranks[j] -> i == ranks.argmin() and j == ranks.argmax()"),
    ("You take log(sigmoid(x)): for very negative x it is -inf. Use logsigmoid.",
     "你用了 log(sigmoid(x))：x 是很大的负数时，它是 -inf。请用 logsigmoid。",
     "F.logsigmoid( -> torch.log(F.sigmoid( && [j])) -> [j])))"),
    ("You forgot the logarithm: the loss is not the probability, but its -log.",
     "你忘了取对数：损失不是概率，而是概率的 -log。", "F.logsigmoid( -> torch.sigmoid("),
    ("The gradient does not reach the scores: no .item(), .detach() or torch.tensor(…) on the way.",
     "梯度传不到分数：中间不要用 .item()、.detach() 或 torch.tensor(…)。",
     "losses = [] -> losses, scores = [], torch.tensor(scores.tolist())"),
]
