import torch

NAME = "normalise"
RUN = None                            # in reward.py these lines stand after the training
ZH = """
16. 分数的归一化

排序损失只看分数之差：给所有分数都加 100 的奖励模型，损失完全相同。
PPO 却需要固定的尺度：KL 惩罚要与分数权衡，所以 1 分在每个奖励模型那里都应当是同样的意思。
因此，训练结束后要平移并缩放分数，使一组已知的回答，即示范（demonstration），
分数的平均值为 0，标准差为 1。

分数是模型最后一层的输出，这一层叫输出头（head）。新的尺度应当写进输出头的权重：
这样，每个加载检查点的人都会用到它，谁也不会忘记。

    score = h . weight + bias      求新的权重：  h . weight' + bias' = (score - mean) / std

例：weight [2, 4]，bias 1，分数的平均值 3，标准差 2  -> weight [1, 2]，bias -1。
（Ziegler et al. 2019 设定平均值和标准差，Stiennon et al. 2020 和 InstructGPT 只设定平均值。）

标准差请用 scores.std()。
"""


def answer(weight, bias, scores):
    """As reward.py does it in place: a test compares the two."""
    mean, std = scores.mean(), scores.std()
    return weight / std, (bias - mean) / std


def cases():
    for shift, scale in ((3.0, 2.0), (-30.0, 5.0), (0.5, 0.3)):
        hidden, weight, bias = torch.randn(7, 4), scale * torch.randn(4), torch.tensor(shift)
        yield weight, bias, hidden @ weight + bias


MISTAKES = [
    ("Your bias is not divided by the deviation: it is (bias - mean) / std.",
     "bias 没有除以标准差：应为 (bias - mean) / std。", "(bias - mean) / std -> bias - mean"),
    ("You divide the bias first and subtract the mean then: it is (bias - mean) / std.",
     "你先除以标准差，再减平均值。应为 (bias - mean) / std。",
     "(bias - mean) / std -> bias / std - mean"),
    ("You only shift: the deviation of the scores is not 1 yet. Divide weight and bias by it.",
     "你只做了平移：分数的标准差还不是 1。weight 和 bias 都要除以标准差。",
     "weight / std, (bias - mean) / std -> weight, bias - mean"),
    ("You only scale: the mean of the scores is not 0 yet. Subtract it from the bias.",
     "你只做了缩放：分数的平均值还不是 0。请从 bias 里减去它。",
     "(bias - mean) / std -> bias / std"),
    ("You do not scale the weight: then only the constant part of the score is divided.",
     "weight 没有缩放：这样，只有分数里的常数部分做了除法。", "weight / std -> weight"),
    ("You subtract the mean from the weight, too. It is the same for all answers: it belongs into "
     "the bias alone.",
     "你从 weight 里也减了平均值。对每个回答，平均值都一样，只应从 bias 里减。",
     "weight / std -> (weight - mean) / std"),
    ("You divide by the variance. Divide by its root, the standard deviation.",
     "你除以了方差。应当除以它的平方根，即标准差。", "scores.std() -> scores.var()"),
    ("Your deviation divides by N, scores.std() by N - 1. For 2,000 scores it makes no difference, "
     "here it does.",
     "你的标准差除以 N，scores.std() 除以 N - 1。有 2000 个分数时没有差别，这里有。",
     "scores.std() -> scores.std(unbiased=False)"),
    ("You multiply by the deviation instead of dividing by it.",
     "你乘以了标准差，应当除以它。", "/ std -> * std"),
]
