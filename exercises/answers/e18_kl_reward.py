from types import SimpleNamespace

import torch

import rlhf_ppo

NAME = "token_rewards"
RUN = ("rlhf_ppo.py", "token_rewards", "--steps=10 --batch_size=128 --minibatch=32 --n_eval=128 "
       "--eval_every=5 --ptx_coef=0 --critic_first=0 --critic_lr=1 --lr=5e-4",
       lambda function: lambda r, beta: function(r.logp, r.ref_logp, r.scores, r.last, beta))
COLUMNS = ["objective/score", "objective/kl", "objective/rlhf_reward"]
ZH = """
18. 每个词元的奖励

奖励模型给整个回答打分，PPO 却要求每个词元（token）都有奖励。它由两部分组成：

    每个词元，按它离参考模型的距离扣分：   -beta (log pi(a_t) - log pi_ref(a_t))
    回答的最后一个词元，另外得到整个回答的分数

对整个回答求和，就是 score - beta KL，其中的 KL 由这一个样本估计。
如果不扣分，策略（policy）会找到奖励模型误以为好的文本。（Ziegler et al. 2019，式 2。）

策略给某个词元的概率比参考模型高，这个词元就扣分；比参考模型低，就加分。
各个回答长度不同：last 指出它在哪里结束。结尾之后，logp 和 ref_logp 都是 0。

例：logp [-1, -2]，ref_logp [-2, -2]，score 5，last 1，beta 0.1 -> 奖励 [-0.1, 5]。
"""


def answer(logp, ref_logp, scores, last, beta):
    rollout = SimpleNamespace(logp=logp, ref_logp=ref_logp, scores=scores, last=last)
    return rlhf_ppo.token_rewards(rollout, beta)


def cases():
    for beta in (0.1, 0.5, 2.0):
        last = torch.tensor([2, 4, 1])
        mask = torch.arange(6) <= last[:, None]
        yield -torch.rand(3, 6) * mask, -torch.rand(3, 6) * mask, torch.randn(3), last, beta


def written_out(logp, ref_logp, scores, last, beta):
    gap = logp - ref_logp
    rewards = -beta * gap
    for b, t in enumerate(last.tolist()):
        rewards[b, t] += scores[b]
    return rewards


MISTAKES = [
    ("Your KL has the wrong sign: it rewards the distance from the reference. Subtract it.",
     "KL 的符号反了：你在奖励离参考模型远的词元。应当减去它。", "-beta -> beta"),
    ("You left out beta: a nat of distance costs beta.",
     "你漏了 beta：它是每奈特 KL 的惩罚系数。", "beta * gap -> gap"),
    ("The KL is missing: then nothing keeps the policy near the reference.",
     "漏了 KL：这样，没有什么能让策略留在参考模型附近。", "beta * gap -> 0 * gap"),
    ("You give the score to every token. Only the last one earns it.",
     "你把分数给了每个词元。只有最后一个词元得到分数。", "rewards[b, t] -> rewards[b]"),
    ("You put the score into the last column. That is padding for a short answer: last says where "
     "it ends.",
     "你把分数放在最后一列。短的回答在那里是填充：last 才是它结束的位置。",
     "rewards[b, t] -> rewards[b, -1]"),
    ("You put the score one place after the last token. last is already the position of that "
     "token.",
     "你把分数放在最后一个词元的后一位。last 就是最后一个词元的位置。",
     "rewards[b, t] -> rewards[b, t + 1]"),
    ("The score replaces the KL of the last token. Add it: the last token pays, too.",
     "分数盖掉了最后一个词元的 KL。应当相加：最后一个词元也要扣分。",
     "+= scores -> = scores"),
    ("You put the KL of the whole answer on the last token. Every token pays for itself.",
     "你把整个回答的 KL 都放在最后一个词元上。每个词元应当各扣各的。",
     "-beta * gap -> 0 * gap; scores = scores - beta * gap.sum(1)"),
    ("You use |log-ratio|. A token that is less probable than under the reference brings "
     "something: only so is the mean the KL.",
     "你取了绝对值。概率比参考模型低的词元应当加分：这样，期望才等于 KL。",
     "beta * gap -> beta * gap.abs()"),
    ("You subtract probabilities. The KL needs the difference of their logarithms, as given.",
     "你减的是概率。KL 要的是对数概率之差，也就是给出的 logp 之差。",
     "logp - ref_logp -> logp.exp() - ref_logp.exp()"),
    ("You multiply the score by beta as well. Only the distance is weighed by beta.",
     "你把分数也乘了 beta。beta 只乘距离。", "scores[b] -> beta * scores[b]"),
]
