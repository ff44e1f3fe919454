"""Stage 4 of 4, reinforcement learning: learn to write answers that the reward model likes (PPO).

reads   out/sft.pt, out/reward.pt, data/town/prompts.jsonl, data/town/pretrain (to rehearse)
writes  out/ppo.pt

    model      starts from     is         it says
    policy     out/sft.pt      trained    what to write next
    critic     out/reward.pt   trained    how good the answer is going to be, at every token
    reference  out/sft.pt      frozen     what the policy would have written before
    reward     out/reward.pt   frozen     how good the finished answer is

    objective = E[ score(answer) - beta KL(policy || reference) ] + ptx E[ log p(pretraining text) ]
                                                              (InstructGPT, eq. 2)

laptop   python rlhf_ppo.py
GPUs     torchrun --nproc_per_node=8 rlhf_ppo.py --batch_size=512
a reward of one's own    python rlhf_ppo.py --reward=data/town.py:grade --out=out/gold.pt
"""

import time
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel as DDP

from checkpoint import Run, load_checkpoint, save_checkpoint
from common import Runtime, fail, get_scores, load_function, parse_config
from compare import left_pad
from data.corpus import Corpus
from data.formats import is_held_out, read_prompts
from model import GPT, GPTConfig, ScalarGPT, optimizer_groups, token_logp
from reward import right_pad
from tokenizer import Tokenizer


# ---------------------------------------------------------------------------------------------
# config

@dataclass
class Config:
    data: str = "data/town/prompts.jsonl"  # prompts
    text: str = "data/town/pretrain"       # pretraining text to rehearse; "": none
    init: str = "out/sft.pt"               # the policy to start from
    reference: str = ""                    # the model to stay near; "": the one it starts from
    reward: str = "out/reward.pt"          # a reward model, or FILE.py:function(prompts, responses)
    critic: str = ""                       # where its trunk is from; "": reward model, else policy
    watch: str = "data/town.py:grade"      # a judge that is shown, never trained on; "": none
    out: str = "out/ppo.pt"                # its log and unfinished state stand beside it
    steps: int = 36                        # iterations: rollout, then updates
    batch_size: int = 256                  # answers per iteration, over all processes
    minibatch: int = 64                    # answers per update, over all processes
    micro_batch: int = 64                  # answers per forward pass; smaller needs less memory
    epochs: int = 2                        # passes over each iteration's answers
    lr: float = 5e-4                       # the peak: one iteration of warmup, then linear to 0
    decay: bool = True                     # false: the learning rate stays at its peak
    max_new_tokens: int = 64
    temperature: float = 0.7               # divides the logits wherever probabilities are computed
    kl_coef: float = 0.1                   # beta: what a nat of distance from the reference costs
    kl_target: float = 0.0                 # adapt beta to keep the KL near this; 0: beta is fixed
    whiten_rewards: bool = False           # divide them by their deviation: for scores of any size
    whiten_advantages: bool = True         # mean 0 and deviation 1 in every iteration
    gamma: float = 1.0                     # discount
    lam: float = 0.95                      # GAE: 0 trusts the critic, 1 the returns alone
    clip: float = 0.2                      # how far an update may move a token's probability ratio
    clip_value: float = 0.2                # likewise for the critic's values
    max_kl: float = 0.1                    # end the epochs early when the policy has moved this far
    ptx_coef: float = 1.0                  # weight of the loss on pretraining text
    missing_end: float = 2.0               # subtracted from the score of an answer without an end
    eval_every: int = 6                    # iterations between evaluations
    n_eval: int = 256                      # held-out prompts per evaluation
    seed: int = 0
    device: str = "auto"                   # auto: cuda, else cpu; mps when asked
    dtype: str = "auto"                    # auto: bfloat16 where it is fast, else float32
    fresh: bool = False                    # start over
    debug: bool = False                    # show tracebacks


# ---------------------------------------------------------------------------------------------
# the idea

def get_lr(step, config):
    """One iteration of warmup (Adam's first steps are its wildest), then linearly to 0."""
    return config.lr * min((step + 1) / 2, 1 - config.decay * step / config.steps)


@torch.no_grad()
def rollout(model, tok, prompts, rt, config):
    """Sample an answer to each prompt ([ids]): a list of ids, <|end|> included if it came."""
    model.eval()
    idx, mask = left_pad(prompts, tok.pad, rt.device)
    with rt.autocast():
        out = model.generate(idx, config.max_new_tokens, mask=mask, stop=[tok.end], pad=tok.pad,
                             temperature=config.temperature)[:, idx.size(1):].tolist()
    return [r[:r.index(tok.end) + 1] if tok.end in r else r for r in out]


def response_mask(prompts, responses, device):
    """(B, T - 1): 1 at position t if token t + 1 belongs to the response. Everything that is kept
    per token - log-probabilities, values, rewards - stands at the position that predicts it."""
    T = max(len(p) + len(r) for p, r in zip(prompts, responses))
    return torch.tensor([[0] * (len(p) - 1) + [1] * len(r) + [0] * (T - len(p) - len(r))
                         for p, r in zip(prompts, responses)], dtype=torch.bool, device=device)


def log_probs(model, idx, mask, temperature):
    """log p(token) of the response tokens, and the entropy of the distribution they came from:
    both (n,), for the n places where mask (B, T - 1) is 1."""
    logits, _ = model(idx[:, :-1], where=mask)                        # (n, V)
    logp_all = F.log_softmax(logits.float() / temperature, dim=-1)
    entropy = -(logp_all.exp() * logp_all).sum(-1)
    return logp_all.gather(-1, idx[:, 1:][mask].unsqueeze(-1)).squeeze(-1), entropy


def gae(rewards, values, mask, gamma, lam):
    """Generalised advantage estimation (Schulman et al. 2015, eq. 16); all (B, T).

        delta_t = r_t + gamma V_{t+1} - V_t         A_t = delta_t + gamma lam A_{t+1}

    mask marks the response; what follows it is worth 0. Returns (advantages, advantages + values).
    """
    advantages, last = torch.zeros_like(rewards), torch.zeros_like(rewards[:, 0])
    next_value = torch.zeros_like(last)
    for t in reversed(range(rewards.size(1))):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        last = torch.where(mask[:, t].bool(), delta + gamma * lam * last, 0.0)
        next_value = torch.where(mask[:, t].bool(), values[:, t], 0.0)
        advantages[:, t] = last
    return advantages, (advantages + values) * mask


def whiten(x, mask, rt, shift=True):
    """Mean 0 (if shifted) and deviation 1 over the real tokens of all ranks; 0 elsewhere."""
    count, total, squares = rt.average(mask.sum().item(), x[mask].sum().item(),
                                        (x[mask] ** 2).sum().item())
    mean = total / count
    var = max(squares / count - mean ** 2, 0.0)
    return (x - mean * shift) * (var + 1e-8) ** -0.5 * mask


def policy_loss(logp, old_logp, advantages, clip):
    """-min(ratio A, clip(ratio) A) per token (PPO, eq. 7), and what to watch; all (n,)."""
    ratio = (logp - old_logp).exp()
    loss = -torch.min(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
    clipped = ((ratio - 1).abs() > clip).float()
    return loss, ratio, clipped


def value_loss(values, old_values, returns, clip):
    """Half the squared error, or that of the values clipped near the old ones if it is larger."""
    near = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * torch.max((values - returns) ** 2, (near - returns) ** 2)


def adapt(kl_coef, kl, target, n, horizon=10000):
    """Ziegler et al. 2019: raise beta where the KL is above its target; n answers were seen."""
    error = min(max(kl / target - 1, -0.2), 0.2)
    return kl_coef * (1 + error * n / horizon)


def answer_text(tok, response):
    return tok.decode([i for i in response if i != tok.end])


if __name__ == "__main__":
    # -----------------------------------------------------------------------------------------
    # setup

    config = parse_config(Config, __doc__)
    rt = Runtime(config)
    ptx = config.text if config.ptx_coef > 0 else ""
    own_reward = ".py:" in config.reward
    run = Run(config, rt, inputs=[config.data, ptx, config.init, config.reference,
                                   config.reward.split(":")[0], config.critic])
    if config.batch_size % config.minibatch or config.minibatch % rt.world_size:
        fail(f"--minibatch={config.minibatch} must divide --batch_size={config.batch_size} and be "
             f"a multiple of the {rt.world_size} processes")
    ckpt = load_checkpoint(config.init, stage=("sft", "pretrain", "ppo"))
    ref_ckpt = load_checkpoint(config.reference or config.init, stage=("sft", "pretrain", "ppo"),
                               tokenizer=ckpt["tokenizer"])
    r_ckpt = None if own_reward else load_checkpoint(config.reward, stage="reward",
                                                     tokenizer=ckpt["tokenizer"])
    c_ckpt = r_ckpt or ckpt
    if config.critic:
        c_ckpt = load_checkpoint(config.critic, tokenizer=ckpt["tokenizer"])
    tok = Tokenizer.from_dict(ckpt["tokenizer"])
    model_config = GPTConfig(**ckpt["model_config"] | dict(dropout=0.0))

    # -----------------------------------------------------------------------------------------
    # data

    T = min(c["model_config"]["block_size"] for c in (ckpt, ref_ckpt, r_ckpt, c_ckpt) if c)
    B = config.batch_size // rt.world_size            # answers of this process
    mb = config.minibatch // rt.world_size
    room = T - config.max_new_tokens - 1              # one for the end
    if config.temperature == 0:
        fail("--temperature=0 always says the same: PPO learns from samples")
    if room < 8:
        fail(f"--max_new_tokens={config.max_new_tokens} leaves {room} of the models' {T} tokens "
             f"for the prompt")
    rows = [dict(row, ids=tok.encode_chat(row["prompt"], reply=True)[0])
            for row in read_prompts(config.data)]
    n_all = len(rows)
    rows = [row for row in rows if len(row["ids"]) <= room]
    train, val = ([r for r in rows if is_held_out(r["prompt"]) == side] for side in (False, True))
    val = val[:config.n_eval]
    if len(train) < config.batch_size or len(val) < rt.world_size:
        fail(f"{config.data}: {len(train)} prompts of at most {room} tokens to train on and "
             f"{len(val)} held out; at least {config.batch_size} and "
             f"{rt.world_size} are needed")
    rng, plan = np.random.default_rng(config.seed), []
    while len(plan) < config.steps * config.batch_size:
        plan += rng.permutation(len(train)).tolist()
    if ptx:
        corpus = Corpus(ptx, tok, run.out.parent / "cache", run.inputs[ptx], main=rt.main,
                        wait=rt.barrier)
        n_updates = config.steps * config.epochs * (config.batch_size // config.minibatch)
        n_text = max(1, mb // 16)                     # rows of text per update and process
        corpus.shuffle(n_updates * n_text * rt.world_size * T + 1, config.seed)
    print(f"{len(train):,} prompts ({n_all - len(rows)} left out, longer than {room} tokens), "
          f"{len(val)} held out; {config.steps * config.batch_size / len(train):.1f} epochs")

    # -----------------------------------------------------------------------------------------
    # model and optimizer

    torch.manual_seed(config.seed)                    # the same weights on every rank
    policy = GPT(model_config).to(rt.device)
    reference = GPT(GPTConfig(**ref_ckpt["model_config"] | dict(dropout=0.0))).to(rt.device)
    policy.load_state_dict(ckpt["model"])
    reference.load_state_dict(ref_ckpt["model"])
    if own_reward:
        reward, reward_function = None, load_function(config.reward)
    else:
        reward = ScalarGPT.load(r_ckpt).to(rt.device).requires_grad_(False)
    if c_ckpt["stage"] == "reward":
        critic = ScalarGPT.load(c_ckpt)
    else:
        critic = ScalarGPT(GPTConfig(**c_ckpt["model_config"] | dict(dropout=0.0)))
        critic.start_from(c_ckpt["model"])
    # The reward model has learned to judge whole answers; what its head says in the middle of one
    # is noise, worse than no estimate. So the critic starts from its trunk only, and says the same
    # number everywhere: the mean score, as soon as it is known.
    torch.nn.init.zeros_(critic.head.weight)
    torch.nn.init.zeros_(critic.head.bias)
    if reward and not config.critic:
        critic.lm = reward.lm                     # frozen in both: its numbers serve both
    critic.to(rt.device)
    reference.requires_grad_(False)
    judge = load_function(config.watch) if config.watch else None
    policy_ddp, critic_ddp = (DDP(m) if rt.ddp else m for m in (policy, critic))
    groups = optimizer_groups(policy, 0.0) + optimizer_groups(critic, 0.0)
    optimizer = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.95), eps=1e-5,
                                  fused=rt.device.type != "mps")
    kl_coef = config.kl_coef
    if run.state:
        policy.load_state_dict(run.state["model"])
        critic.load_state_dict(run.state["critic"])
        optimizer.load_state_dict(run.state["optimizer"])
        kl_coef = run.state["kl_coef"]
    history = ckpt["history"]
    ckpt = ref_ckpt = r_ckpt = c_ckpt = None          # the models have these weights now
    print(f"4 models of about {sum(p.numel() for p in policy.parameters()) / 1e6:.2f}M parameters on "
          f"{rt.device} in {str(rt.dtype)[6:]}; reward: {config.reward}")

    @torch.no_grad()
    def assess(rows, responses):
        """One pass each of policy, reference, critic and reward model. Scores and whether an answer
        ended, (B,); what the frozen language model in critic and reward model says of each token,
        (B, T); per token, (B, T - 1): log-probabilities under policy and reference, entropy, and
        values."""
        policy.eval(), critic.eval()
        ended = torch.tensor([r[-1] == tok.end for r in responses])
        # the reward model has seen whole answers only: what did not end is scored as if it had
        idx, last = right_pad([row["ids"] + r + [tok.end] * (r[-1] != tok.end)
                               for row, r in zip(rows, responses)], tok.pad, rt.device)
        mask = response_mask([row["ids"] for row in rows], responses, rt.device)
        mask = F.pad(mask, (0, idx.size(1) - 1 - mask.size(1)))
        lm, lm_logp = critic.lm, torch.zeros(idx.shape, device=rt.device)
        scores, found = torch.zeros(len(rows), device=rt.device), []
        for i in range(0, len(rows), config.micro_batch):
            part = slice(i, i + config.micro_batch)
            t = int(last[part].max()) + 1                             # crop to the longest
            x, m = idx[part, :t], mask[part, :t - 1]
            with rt.autocast():
                logp, entropy = log_probs(policy, x, m, config.temperature)          # (n,) each
                ref_logp, _ = log_probs(reference, x, m, config.temperature)
                if lm:
                    lm_logp[part, :t] = token_logp(lm, x)
                values = critic(x[:, :-1], lm_logp[part, :t - 1])[m]
                found.append((logp, ref_logp, entropy, values))
                if not own_reward:
                    known = lm_logp[part, :t] if reward.lm is lm else None
                    scores[part] = reward(x, known)[range(len(x)), last[part]]
        # back to where each token stands, (B, T - 1)
        per_token = [torch.zeros(mask.shape, device=rt.device).masked_scatter(mask, torch.cat(v))
                     for v in zip(*found)]
        if own_reward:
            prompts = [row["prompt"] for row in rows]
            texts = [answer_text(tok, r) for r in responses]
            scores = get_scores(reward_function, prompts, texts, config.reward)
        scores = scores.float().cpu() - config.missing_end * ~ended
        return scores, ended, idx, mask, lm_logp, *per_token

    def evaluate():
        """Held-out prompts: the score, the distance from the reference, the judge's grade."""
        rt.seed("evaluate")
        rows = val[rt.rank::rt.world_size]
        responses = rollout(policy, tok, [row["ids"] for row in rows], rt, config)
        scores, ended, _, mask, _, logp, ref_logp, *_ = assess(rows, responses)
        sums = [scores.sum().item(), (logp - ref_logp).sum().item(), ended.sum().item(),
                mask.sum().item(), len(rows)]
        texts = [answer_text(tok, r) for r in responses]
        if judge:
            prompts = [row["prompt"] for row in rows]
            sums.append(get_scores(judge, prompts, texts, config.watch).sum().item())
        score, kl, ended, length, n, *grade = rt.average(*sums)
        out = dict(score=score / n, kl=kl / n, ended=ended / n, length=length / n)
        return out | ({"grade": grade[0] / n} if judge else {}), rows, texts, scores

    # -----------------------------------------------------------------------------------------
    # training loop

    for step in range(run.start, config.steps):
        if step % config.eval_every == 0:
            metrics, rows, texts, scores = evaluate()
            run.log(step, metrics, split="held out")
            if step == 0:
                torch.nn.init.constant_(critic.head.bias, metrics["score"])
            k = step // config.eval_every % len(rows)
            run.say(f"    {rows[k]['prompt'][-1]['content']} -> {texts[k]}   ({scores[k]:.2f})")
        for group in optimizer.param_groups:
            group["lr"] = get_lr(step, config)

        # a. rollout: this process answers its share of the prompts
        rt.seed(config.seed, step)
        began = time.time()
        chosen = plan[step * config.batch_size:(step + 1) * config.batch_size]
        rows = [train[i] for i in chosen[rt.rank::rt.world_size]]
        responses = rollout(policy, tok, [row["ids"] for row in rows], rt, config)

        # b. score the finished answers, and pass them once through each of the four models; sorted
        # by length, since a batch costs what its longest row costs
        rows, responses = zip(*sorted(zip(rows, responses),
                                      key=lambda pair: len(pair[0]["ids"]) + len(pair[1])))
        (scores, ended, idx, mask, lm_logp, old_logp, ref_logp, entropy,
         old_values) = assess(rows, responses)

        # c. rewards: every token pays for its distance from the reference, the last one earns
        kl = old_logp - ref_logp
        rewards = -kl_coef * kl
        last = mask.size(1) - 1 - mask.flip(1).float().argmax(1)      # (B,)
        rewards[torch.arange(B, device=rt.device), last] += scores.to(rt.device)
        reward_sum = rewards.sum().item()
        if config.whiten_rewards:                     # the mean stays: it tells good from bad
            rewards = whiten(rewards, mask, rt, shift=False)

        # d. advantages: how much better than the critic expected, and whitened
        advantages, returns = gae(rewards, old_values, mask, config.gamma, config.lam)
        if config.whiten_advantages:
            advantages = whiten(advantages, mask, rt)

        # e. epochs: several updates on these answers, as long as the policy stays near
        stats, parts = [], []
        for epoch in range(config.epochs):
            order = torch.randperm(B // mb, generator=torch.Generator().manual_seed(
                config.seed + 1000 * step + epoch)).tolist()
            parts += [list(range(k * mb, (k + 1) * mb)) for k in order]   # of similar length
        for updates, part in enumerate(parts, start=1):
            count, = rt.average(mask[part].sum().item())
            before = len(stats)
            for i in range(0, mb, config.micro_batch):
                mb_rows = part[i:i + config.micro_batch]
                t = int(last[mb_rows].max()) + 2                      # crop to the longest
                x, m = idx[mb_rows, :t], mask[mb_rows, :t - 1]
                mb_logp, mb_values, mb_advantages, mb_returns = (     # (n,) each
                    a[mb_rows, :t - 1][m] for a in (old_logp, old_values, advantages, returns))
                if rt.ddp:                                            # reduced once per update
                    final = i + config.micro_batch >= mb
                    policy_ddp.require_backward_grad_sync = final and not ptx
                    critic_ddp.require_backward_grad_sync = final
                with rt.autocast():
                    logp, _ = log_probs(policy_ddp, x, m, config.temperature)
                    values = critic_ddp(x[:, :-1], lm_logp[mb_rows, :t - 1])[m]
                pg, ratio, clipped = policy_loss(logp, mb_logp, mb_advantages, config.clip)
                vf = value_loss(values, mb_values, mb_returns, config.clip_value)
                ((pg.sum() + vf.sum()) / count).backward()
                with torch.no_grad():
                    k3 = ratio - 1 - (logp - mb_logp)                 # never negative (Schulman)
                    stats.append(torch.stack([pg.sum(), vf.sum(), clipped.sum(), k3.sum(),
                                              ratio.sum(), m.sum()]))
            if ptx:
                k = step * len(parts) + updates - 1
                text = corpus.rows((k * rt.world_size + rt.rank) * n_text, n_text, T)
                text = text.to(rt.device)
                if rt.ddp:
                    policy_ddp.require_backward_grad_sync = True
                with rt.autocast():
                    _, ptx_loss = policy_ddp(text[:, :-1], text[:, 1:].contiguous())
                (config.ptx_coef * ptx_loss).backward()
            grad_norm = sum(torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
                            for net in (policy, critic))
            run.check(step, grad_norm, idx=idx[part], mask=mask[part], returns=returns[part])
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            recent = torch.stack(stats[before:]).sum(0).tolist()
            moved, n = rt.average(recent[3], recent[5])
            if moved / n > config.max_kl:
                break

        # f. what happened, averaged over all ranks
        pg, vf, clipped, k3, ratio, n = rt.average(*torch.stack(stats).sum(0).tolist())
        n_responses, reward_sum, tokens, kl_sum, entropy_sum, score_sum, end_sum = rt.average(
            B, reward_sum, *(t.sum().item() for t in (mask, kl, entropy, scores, ended)))
        var_error, var_return = ((t[mask].var(unbiased=False).item())
                                 for t in (returns - old_values, returns))
        explained, = rt.average(1 - var_error / max(var_return, 1e-8))
        mean_kl = kl_sum / n_responses
        if config.kl_target:
            kl_coef = adapt(kl_coef, mean_kl, config.kl_target, config.batch_size)
        run.log(step + 1, {
            "objective/score": score_sum / n_responses, "objective/kl": mean_kl,
            "objective/entropy": entropy_sum / tokens,
            "ppo/policy/clipfrac": clipped / n, "ppo/policy/approxkl": k3 / n,
            "ppo/val/explained_var": explained, "length": tokens / n_responses,
            "ended": end_sum / n_responses}, **{
            "objective/rlhf_reward": reward_sum / n_responses, "ppo/loss/policy": pg / n,
            "ppo/loss/value": vf / n, "ppo/val/ratio": ratio / n, "kl_coef": kl_coef,
            "ptx_loss": ptx_loss.item() if ptx else None, "updates": updates,
            "lr": get_lr(step, config), "seconds": time.time() - began})
        run.save_state(step + 1, model=policy, critic=critic, optimizer=optimizer,
                       kl_coef=kl_coef)

    # -----------------------------------------------------------------------------------------
    # save

    metrics, rows, texts, scores = evaluate()
    run.log(config.steps, metrics, split="held out")
    for k in range(min(4, len(rows))):
        run.say(f"    {rows[k]['prompt'][-1]['content']} -> {texts[k]}   ({scores[k]:.2f})")
    if rt.main:
        save_checkpoint(config.out, stage="ppo", step=config.steps, metrics=metrics, model=policy,
                        model_config=model_config, tokenizer=tok, config=config,
                        history=history, run=run.identity())

    # -----------------------------------------------------------------------------------------
    # cleanup

    run.finish()
