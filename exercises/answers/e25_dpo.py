import torch
import torch.nn.functional as F

from lessons import dpo


def of_ranked(function):
    """The loss of K ranked answers to one prompt, as lessons/dpo.py calls it: all pairs of them."""
    def loss(logp, ref_logp, ranks, beta):
        w, l = torch.nonzero(ranks[:, None] < ranks, as_tuple=True)   # w was ranked above l
        return function(logp[w], logp[l], ref_logp[w], ref_logp[l], beta)
    return loss


NAME = "dpo_loss"
RUN = ("lessons/dpo.py", "dpo_loss", "--steps=40 --batch_size=8 --warmup=10 --eval_every=20 "
       "--n_eval=32", of_ranked)
COLUMNS = ["val_loss", "val_accuracy", "kl"]
ZH = """
25. 直接偏好优化（DPO）

PPO 需要奖励模型和采样。DPO（Rafailov et al. 2023，式 7）两者都不需要：
它直接用比较数据训练策略。PPO 要找的解是 pi = pi_ref exp(score / beta) / Z，
DPO 从这个解反推出分数：

    r = beta (log pi(回答) - log pi_ref(回答))       只差一项 beta log Z，它对两个回答都相同

用 r 代替奖励模型损失（练习 14）里的分数：

    loss = 对所有配对取平均：-log sigmoid(chosen 的 r - rejected 的 r)

chosen 是选中的回答，rejected 是落选的回答。
训练之前 pi = pi_ref，两个 r 都是 0，所以无论回答是什么，损失都是 log 2。

例：chosen -10，rejected -11，参考模型下都是 -10.5，beta 0.1
    -> r = 0.05 和 -0.05，loss = log(1 + exp(-0.1)) = 0.644。
"""


def answer(chosen, rejected, ref_chosen, ref_rejected, beta):
    pairs = zip(chosen, rejected, ref_chosen, ref_rejected)
    return torch.stack([dpo.dpo_loss(torch.stack([w, l]), torch.stack([ref_w, ref_l]),
                                     torch.tensor([0, 1]), beta)
                        for w, l, ref_w, ref_l in pairs]).mean()


def cases():
    for beta in (0.1, 0.3, 1.0):
        logp = -10 * torch.rand(2, 5) - 5
        yield *(x.requires_grad_() for x in logp.unbind()), *(-10 * torch.rand(2, 5) - 5), beta
    yield (torch.tensor([-500.0], requires_grad=True), torch.tensor([-1.0], requires_grad=True),
           torch.tensor([-1.0]), torch.tensor([-1.0]), 1.0)


def written_out(chosen, rejected, ref_chosen, ref_rejected, beta):
    better, worse = chosen - ref_chosen, rejected - ref_rejected
    return F.softplus(beta * (worse - better)).mean()


MISTAKES = [
    ("You have swapped chosen and rejected: the better answer becomes less probable.",
     "chosen 和 rejected 反了：更好的回答概率反而会减小。", "worse - better -> better - worse"),
    ("The reference is missing: nothing keeps the policy near it.",
     "漏了参考模型：没有什么能让策略留在它附近。", "- ref_chosen -> && - ref_rejected ->"),
    ("You add the reference's log p. Subtract it: r is a ratio of probabilities.",
     "你加上了参考模型的 log p。应当减去：r 是概率之比的对数。", "- ref_ -> + ref_"),
    ("beta is missing.", "漏了 beta。", "beta * ->"),
    ("beta multiplies only the policy's log p. It stands before the whole difference.",
     "beta 只乘了策略的 log p。它应当乘整个差。",
     "beta * (worse - better) -> beta * (rejected - chosen) - ref_rejected + ref_chosen"),
    ("You divide by beta. Multiply.", "你除以了 beta。应当乘以它。",
     "beta * (worse - better) -> (worse - better) / beta"),
    ("beta stands before the loss. It belongs inside the sigmoid, where it decides how sure is "
     "sure enough.",
     "你把 beta 乘在了损失上。它应当在 sigmoid 里面，决定差多少才算足够。",
     "F.softplus(beta * -> beta * F.softplus("),
    ("You add the pairs up. Take their mean.", "你把所有配对加起来了。应当取平均值。",
     ".mean() -> .sum()"),
    ("You take the mean before the logsigmoid: then one clear pair hides all others.",
     "你在 logsigmoid 之前取了平均值：这样，一个差别大的配对会掩盖其他配对。",
     "(worse - better)).mean() -> (worse - better).mean())"),
    ("You forgot the logarithm: the loss is not the probability, but its -log.",
     "你忘了取对数：损失不是概率，而是概率的 -log。",
     "F.softplus(beta * (worse - better)) -> -torch.sigmoid(beta * (better - worse))"),
    ("You take log(sigmoid(x)): for very negative x it is -inf. Use logsigmoid.",
     "你用了 log(sigmoid(x))：x 是很大的负数时，它是 -inf。请用 logsigmoid。",
     "F.softplus(beta * (worse - better)) -> -torch.sigmoid(beta * (better - worse)).log()"),
    ("You push the chosen answer up, and do not compare it with the rejected one.",
     "你只提高了 chosen 的概率，没有与 rejected 比较。", "worse - better -> -better"),
    ("The gradient does not reach the policy: no .item(), .detach() or torch.tensor(…) on the "
     "way.",
     "梯度传不到策略：中间不要用 .item()、.detach() 或 torch.tensor(…)。",
     ".mean() -> .mean().detach()"),
]
