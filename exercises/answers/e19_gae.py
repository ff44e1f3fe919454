import torch

from rlhf_ppo import gae as answer

NAME = "gae"
RUN = ("rlhf_ppo.py", "gae", "--steps=6 --batch_size=64 --minibatch=32 --n_eval=64 --eval_every=3 "
       "--ptx_coef=0 --critic_first=0 --critic_lr=1 --lr=5e-4")
COLUMNS = ["objective/score", "ppo/val/explained_var"]
ZH = """
19. 广义优势估计（GAE）

评论家（critic）在每个词元（token）处估计回答最终有多好：V_t。
优势（advantage）表示这个词元之后的结果，比评论家预期的好多少。只向前看一步，就是

    delta_t = r_t + gamma V_{t+1} - V_t

GAE（Schulman et al. 2015，式 16）还要加上后面各步的 delta，每远一步，多乘一个 gamma lam：

    A_t = delta_t + gamma lam A_{t+1}

回答结束之后，一切都是 0：在最后一个词元处，V_{t+1} = 0，A_{t+1} = 0。
请从最后一个词元往前算。mask 在回答的词元上为 1；各行长度不同。
例：rewards [0, 1]，values [0.5, 0.8]，gamma = lam = 1 -> advantages [0.5, 0.2]。
"""


def cases():
    for gamma, lam in ((1.0, 0.95), (0.9, 0.8), (1.0, 0.0), (0.9, 1.0)):
        mask = torch.zeros(3, 6, dtype=torch.bool)
        mask[0, 1:5] = mask[1, 2:] = mask[2, 0:1] = True
        values = torch.randn(3, 6)                    # not 0 beyond the answer
        yield torch.randn(3, 6) * mask, values, mask, gamma, lam


def written_out(rewards, values, mask, gamma, lam):
    advantages = torch.zeros_like(rewards)
    for b in range(len(rewards)):
        later = value = 0.0
        for t in range(rewards.shape[1] - 1, -1, -1):
            here = mask[b, t]
            if here:
                later = rewards[b, t] + gamma * value - values[b, t] + gamma * lam * later
                value = values[b, t]
                advantages[b, t] = later * here
    return advantages, (advantages + values) * mask


STOP = ("GAE does not stop at the end of the answer: what stands behind it gets in. There V and A "
        "are 0.", "GAE 没有在回答的结尾停下：结尾之后的数混了进来。那里 V 和 A 都是 0。")
MISTAKES = [
    (*STOP, "here = mask[b, t] -> here = True"),
    (*STOP, "if here -> if True"),
    ("The last token of an answer sees the value behind the answer: its V_{t+1} is 0.",
     "回答的最后一个词元用到了结尾之后的价值：那里 V_{t+1} 是 0。",
     "= mask[b, t] -> = mask[b, t]; value = value if here else values[b, t]"),
    ("You forgot the value of the next token in delta: r_t + gamma V_{t+1} - V_t.",
     "delta 里漏了下一个词元的价值：r_t + gamma V_{t+1} - V_t。", "gamma * value - -> -"),
    ("You discount the next advantage by lam only. It is gamma times lam.",
     "你只用 lam 折扣后一步的优势。应当是 gamma 乘 lam。", "gamma * lam -> lam"),
    ("You discount the next advantage by gamma only. It is gamma times lam.",
     "你只用 gamma 折扣后一步的优势。应当是 gamma 乘 lam。", "gamma * lam -> gamma"),
    ("You return delta: the later surprises are missing. Go from the last token to the first.",
     "你返回的是 delta：后面各步的没有加上。请从最后一个词元往前算。",
     "+ gamma * lam * later ->"),
    ("Your returns are the advantages again. They are advantages + values, inside the answer.",
     "你的 returns 还是优势。在回答之内，它应当是 advantages + values。",
     "(advantages + values) * mask -> advantages"),
    ("Your returns are not 0 outside the answer.", "在回答之外，你的 returns 不是 0。",
     "(advantages + values) * mask -> advantages + values"),
]
