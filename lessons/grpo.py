"""Group relative policy optimisation: reinforcement learning without a critic.

reads   out/sft.pt, out/reward.pt, data/town/prompts.jsonl
writes  out/grpo.pt

    A_i = (score_i - mean of its group) / standard deviation of its group
    loss = -mean over answers of the mean over tokens of
           min(ratio A_i, clip(ratio, 1 +- eps) A_i) - beta k3         (Shao et al. 2024, eq. 3)
    k3 = ref / pi - log(ref / pi) - 1                                  (eq. 4)

A group is k answers to one prompt. Their mean score takes the place of the critic: it says how good
an answer to this prompt usually is. All tokens of an answer have the same advantage. The KL penalty
is a part of the loss, not of the reward. The gradient of k3 on the policy's own samples is that of
KL(reference || policy). Three models are left: policy, reference, reward. Where a program can grade
the answers, there are two: that is reinforcement learning from a verifiable reward.

laptop   python -m lessons.grpo
graded   python -m lessons.grpo --reward=data/town.py:grade --out=out/grpo_graded.pt
"""

import time
from dataclasses import dataclass

import torch

from answer import COLDEST, answer_mask, answer_text, complete, log_probs, right_pad
from checkpoint import Run, load, load_reward
from common import Common, Runtime, fail, function_file, parse_config
from data.formats import epochs, prompts_that_fit
from lessons.held_out import score, show, watch
from lessons.training import update
from optim import adamw, set_lr


# ---- config ---------------------------------------------------------------------------------

@dataclass
class Config(Common):
    data: str = "data/town/prompts.jsonl"  # prompts
    init: str = "out/sft.pt"               # the policy to start from, and the reference
    reward: str = "out/reward.pt"          # a reward model, or FILE.py:function(prompts, responses)
    watch: str = "data/town.py:grade"      # FILE.py:function, to watch, not to train on
    out: str = "out/grpo.pt"               # its log and unfinished state stand beside it
    steps: int = 24                        # iterations: rollout, then updates
    batch_size: int = 256                  # answers per iteration
    k: int = 8                             # answers per prompt: a group
    minibatch: int = 64                    # answers per update
    epochs: int = 2                        # passes over each iteration's answers
    lr: float = 1e-4                       # the peak: one iteration of warmup, then linear to 0
    max_new_tokens: int = 64
    temperature: float = 0.7               # divides the logits wherever probabilities are computed
    kl_coef: float = 0.1                   # beta: what a nat of distance from the reference costs
    normalise: bool = True                 # false: Dr. GRPO, without the two divisions
    clip: float = 0.2                      # how far an update may move a token's probability ratio
    missing_end: float = 2.0               # subtracted from the score of an answer without an end
    eval_every: int = 6                    # iterations between evaluations
    n_eval: int = 256                      # held-out prompts per evaluation


# ---- the idea -------------------------------------------------------------------------------

def group_advantages(scores, k, normalise=True):
    """scores (B,), the k answers to a prompt in a row -> (B,). [1, 3, 5, 5], k 2 -> [-1, 1, 0, 0].
    Without the division (Dr. GRPO, Liu et al. 2025) a group that differs little counts little."""
    groups = scores.view(-1, k)
    gain = groups - groups.mean(1, keepdim=True)
    if normalise:                                     # 1e-4: equal answers differ by rounding only
        gain = gain / (groups.std(1, keepdim=True, unbiased=False) + 1e-4)
    return gain.flatten()


def token_weights(mask, config):
    """(B, T) -> (B, T): what each token counts. Divided by the answer's length, a long answer
    counts as much as a short one, so its tokens count less; Dr. GRPO divides by a constant."""
    lengths = mask.sum(1, keepdim=True) if config.normalise else config.max_new_tokens
    return mask / lengths


def grpo_loss(logp, old_logp, ref_logp, advantages, config):
    """Per token, and the share of clipped ratios; all (n,)."""
    ratio = (logp - old_logp).exp()
    gain = torch.min(ratio * advantages,
                     ratio.clamp(1 - config.clip, 1 + config.clip) * advantages)
    log_ratio = ref_logp - logp
    k3 = log_ratio.exp() - log_ratio - 1              # estimates the KL, never negative
    return -(gain - config.kl_coef * k3), ((ratio - 1).abs() > config.clip).float()


def by_length(asked, replies, advantages, tok, rt):
    """Prompts and answers [[ids]] with their advantages (B,), sorted by length, since a batch costs
    what its longest row costs -> ids (B, T), the last token of each row (B,), the mask of the
    answers and the advantage of each token (B, T)."""
    order = sorted(range(len(asked)), key=lambda i: len(asked[i]) + len(replies[i]))
    asked, replies = [asked[i] for i in order], [replies[i] for i in order]
    ids, last = right_pad([a + r for a, r in zip(asked, replies)], tok.pad, rt.device)
    mask = answer_mask(asked, replies, rt.device)
    return ids, last, mask, advantages[order].to(rt.device)[:, None].expand(mask.shape)


def minibatches(n, config):
    """The first row of each minibatch of n rows, in another order in each epoch."""
    starts = torch.arange(0, n, config.minibatch)
    return torch.cat([starts[torch.randperm(len(starts))] for _ in range(config.epochs)]).tolist()


@torch.no_grad()
def token_logps(model, ids, mask, rt, config):
    """(B, T): log p of each token of the answers, elsewhere 0."""
    logps = torch.zeros(mask.shape, device=rt.device)
    for start in range(0, len(ids), config.minibatch):
        part = slice(start, start + config.minibatch)
        with rt.autocast():
            logps[part][mask[part]] = log_probs(model, ids[part], mask[part], config.temperature)[0]
    return logps


def check_groups(config):
    """A batch is made of groups, each of at least two answers, which may differ."""
    if config.k < 2 or config.batch_size % config.k or config.batch_size % config.minibatch:
        fail(f"--k={config.k} must be at least 2 and divide --batch_size={config.batch_size}; "
             f"--minibatch={config.minibatch} must divide it, too")
    if config.temperature < COLDEST:
        fail("--temperature=0 always says the same: the policy learns from answers that differ")


if __name__ == "__main__":
    # ---- setup ------------------------------------------------------------------------------

    config = parse_config(Config, __doc__)
    rt = Runtime(config)
    own_reward = function_file(config.reward)
    run = Run(config, rt, inputs=[config.data, config.init, config.reward])
    check_groups(config)
    policy, tok, history = load(config.init, rt, "sft ppo")
    reference, *_ = load(config.init, rt, frozen=True)
    reward = load_reward(config.reward, tok, rt)

    # ---- data -------------------------------------------------------------------------------

    train, val = prompts_that_fit(config.data, tok, policy.config.block_size,
                                  config.max_new_tokens)
    val, n_prompts = val[:config.n_eval], config.batch_size // config.k
    plan = epochs(len(train), config.steps * n_prompts, config.seed)

    # ---- model and optimizer ----------------------------------------------------------------

    optimizer = adamw(policy, 0.0, eps=1e-5)
    run.track(model=policy, optimizer=optimizer)

    # ---- training loop ----------------------------------------------------------------------

    for step in run.steps():
        if step % config.eval_every == 0:
            run.log(step, watch(policy, reference, val, tok, rt, config, reward).figures,
                    split="held out")
        set_lr(optimizer, config.lr * min((step + 1) / 2, 1 - step / config.steps))

        # a. rollout: k answers to each prompt
        began = time.monotonic()
        rows = [train[i] for i in plan[step * n_prompts:(step + 1) * n_prompts]
                for _ in range(config.k)]
        replies = complete(policy, tok, [row["ids"] for row in rows], rt, config.max_new_tokens,
                           config.temperature, seed=(config.seed, step))

        # b. score the answers
        texts = [answer_text(tok, reply) for reply in replies]
        scores = score(rows, replies, texts, reward, tok, rt, config)

        # c. advantages: how much better than the other answers to the same prompt
        advantages = group_advantages(scores, config.k, config.normalise)

        # d. log-probabilities under the policy that sampled, and under the reference
        asked = [row["ids"] for row in rows]
        ids, last, mask, advantages = by_length(asked, replies, advantages, tok, rt)
        old_logp, ref_logp = (token_logps(m, ids, mask, rt, config) for m in (policy, reference))
        weights = token_weights(mask, config)

        # e. epochs: several updates on these answers, in minibatches of similar length
        rt.seed(config.seed, step, "epochs")
        clipped = 0.0
        for start in minibatches(len(ids), config):
            part = slice(start, start + config.minibatch)
            T = int(last[part].max()) + 1                             # crop to the longest
            m = mask[part, :T]
            with rt.autocast():
                logp, _ = log_probs(policy, ids[part, :T], m, config.temperature)         # (n,)
            old, ref, adv, weight = (a[part, :T][m]
                                     for a in (old_logp, ref_logp, advantages, weights))
            loss, outside = grpo_loss(logp, old, ref, adv, config)
            loss = (loss * weight).sum() / config.minibatch
            loss.backward()
            grad_norm = update(run, policy, optimizer, ids=ids[part], mask=mask[part],
                               advantages=adv)
            clipped += outside.mean().item() / config.epochs / (len(ids) // config.minibatch)

        # f. what happened
        flat = scores.view(-1, config.k).std(1) < 1e-3                # these teach nothing
        # forward passes: sampling, old_logp, ref_logp, and the reward model's two networks
        passes = 3 + (0 if own_reward else 1 + (reward.lm is not None)) + 3 * config.epochs
        n_tokens = sum(map(len, asked)) + sum(map(len, replies))
        run.log(step + 1, dict(score=scores.mean().item(), grad_norm=grad_norm,
                               kl=((old_logp - ref_logp).sum() / len(ids)).item(),
                               clipfrac=clipped, equal=flat.float().mean().item(),
                               length=(mask.sum() / len(ids)).item()),
                flops=n_tokens * passes * policy.flops_per_token(ids.size(1)) / 3,
                seconds=time.monotonic() - began)

    # ---- save -------------------------------------------------------------------------------

    after = watch(policy, reference, val, tok, rt, config, reward)
    run.metrics = after.figures
    run.log(config.steps, run.metrics, split="held out")
    show({"before": watch(reference, reference, val, tok, rt, config, reward), "after GRPO": after})
    run.finish("ppo", policy, tok, history)
