"""Stage 4 of 4, reinforcement learning: learn to write answers that the reward model likes (PPO).

reads   out/sft.pt, out/reward.pt, data/town/prompts.jsonl, data/town/rehearse (text)
writes  out/ppo.pt

    model      starts from     is         it says
    policy     out/sft.pt      trained    what to write next
    critic     out/reward.pt   trained    how good the answer is going to be, at every token
    reference  out/sft.pt      frozen     what the policy would have written before the training
    reward     out/reward.pt   frozen     how good the finished answer is

Critic and reward model also read how probable the frozen SFT model finds each token. It is one more
network, which both share, and it is asked once for each answer.

    objective = E[ score(answer) - beta KL(policy || reference) ] + ptx E[ log p(pretraining text) ]
                                                              (InstructGPT, eq. 2)

laptop   python rlhf_ppo.py
GPUs     torchrun --nproc_per_node=8 rlhf_ppo.py --batch_size=512
your own reward   python rlhf_ppo.py --reward=data/town.py:grade --out=out/gold.pt
"""

import time
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel as DDP

from checkpoint import Run, load_checkpoint, save_checkpoint
from common import Runtime, fail, function_file, get_scores, load_function, parse_config
from data.corpus import Corpus
from data.formats import read_prompts, split
from model import (COLDEST, GPT, GPTConfig, ScalarGPT, answer_text, complete, frozen, log_probs,
                   optimizer_groups, right_pad, token_logp)
from tokenizer import Tokenizer


# ---- config ---------------------------------------------------------------------------------

@dataclass
class Config:
    data: str = "data/town/prompts.jsonl"  # prompts
    text: str = "data/town/rehearse"       # pretraining text to rehearse; "": none
    init: str = "out/sft.pt"               # the policy to start from
    reference: str = ""                    # the model to stay near; "": the one it starts from
    reward: str = "out/reward.pt"          # a reward model, or FILE.py:function(prompts, responses)
    critic: str = ""                       # where its trunk is from; "": reward model, else policy
    watch: str = "data/town.py:grade"      # FILE.py:function, to watch, not to train on; "": none
    out: str = "out/ppo.pt"                # its log and unfinished state stand beside it
    steps: int = 36                        # iterations: rollout, then updates
    batch_size: int = 256                  # answers per iteration, over all processes
    minibatch: int = 64                    # answers per update, over all processes
    micro_batch: int = 64                  # answers per forward pass; smaller needs less memory
    recompute: bool = False                # activations, again in the backward pass: less memory
    freeze: int = 0                        # embeddings and so many lower layers stay as they are
    epochs: int = 2                        # passes over each iteration's answers
    lr: float = 1.5e-4                     # the policy's peak: a short warmup, then linear to 0
    critic_lr: float = 8.0                 # the critic's, as a multiple of lr
    critic_first: int = 2                  # iterations in which only the critic learns
    decay: bool = True                     # false: the learning rate stays at its peak
    max_new_tokens: int = 64
    temperature: float = 0.7               # divides the logits wherever probabilities are computed
    kl_coef: float = 0.1                   # beta: what a nat of distance from the reference costs
    whiten_advantages: bool = True         # mean 0 and deviation 1 in every iteration
    gamma: float = 1.0                     # discount
    lam: float = 0.95                      # GAE: 0 trusts the critic, 1 the returns alone
    clip: float = 0.2                      # how far an update may move a token's probability ratio
    clip_value: float = 0.2                # likewise for the critic's values
    ptx_coef: float = 0.1                  # weight of the loss on pretraining text
    missing_end: float = 2.0               # subtracted from the score of an answer without an end
    eval_every: int = 6                    # iterations between evaluations
    n_eval: int = 256                      # held-out prompts per evaluation
    seed: int = 0
    device: str = "auto"                   # auto: cuda, else cpu; mps when asked
    dtype: str = "auto"                    # auto: bfloat16 where it is fast, else float32
    fresh: bool = False                    # start over
    debug: bool = False                    # show tracebacks


# ---- the idea -------------------------------------------------------------------------------

def get_lr(step, config):
    """Of policy and critic: one iteration of warmup (Adam's first steps are its wildest), then
    linearly to 0. The critic begins earlier: until it knows what to expect of a prompt, all answers
    to a hard prompt look bad, and the policy would unlearn them."""
    left = 1 - config.decay * step / config.steps
    policy, critic = (max(0, min((step - start + 1) / 2, left))
                      for start in (config.critic_first, 0))
    return config.lr * policy, config.lr * config.critic_lr * critic


@dataclass
class Rollout:
    """Answers to B prompts, and what the models say of them. Values per token, (B, T - 1), stand at
    the position that predicts the token: position t belongs to token t + 1."""
    rows: list                 # the prompts
    texts: list                # the answers
    ids: torch.Tensor          # (B, T) prompt and answer, padded on the right
    mask: torch.Tensor         # (B, T - 1) 1 on the answer's tokens, elsewhere the next four are 0
    logp: torch.Tensor         # (B, T - 1) log p under the policy that sampled them
    ref_logp: torch.Tensor     # (B, T - 1) log p under the reference
    entropy: torch.Tensor      # (B, T - 1) of the policy, in nats
    values: torch.Tensor       # (B, T - 1) the critic's estimates
    lm_logp: torch.Tensor      # (B, T) what critic and reward model read beside each token
    last: torch.Tensor         # (B,) the position of the answer's last token, in (B, T - 1)
    ended: torch.Tensor        # (B,) whether the answer ended by itself
    scores: torch.Tensor       # (B,) the reward, lower without an end


def response_mask(prompts, responses, device):
    """(B, T - 1): 1 at position t if token t + 1 belongs to the response."""
    T = max(len(p) + len(r) for p, r in zip(prompts, responses))
    return torch.tensor([[0] * (len(p) - 1) + [1] * len(r) + [0] * (T - len(p) - len(r))
                         for p, r in zip(prompts, responses)], dtype=torch.bool, device=device)


@torch.no_grad()
def assess(rows, responses, policy, reference, critic, reward, tok, rt, config):
    """Pass each answer [ids] once through the four models -> Rollout. reward: a ScalarGPT, or a
    function of prompts and texts."""
    policy.eval(), critic.eval()
    ended = torch.tensor([r[-1] == tok.end for r in responses], device=rt.device)
    # the reward model has seen only whole answers: an answer without an end gets one to be scored
    whole = [r if r[-1] == tok.end else r + [tok.end] for r in responses]
    ids, end = right_pad([row["ids"] + r for row, r in zip(rows, whole)], tok.pad, rt.device)
    mask = response_mask([row["ids"] for row in rows], whole, rt.device)
    last = end - 2 + ended.long()
    mask[range(len(rows)), end - 1] = ended           # the policy has not sampled an added end
    lm, lm_logp = critic.lm, torch.zeros(ids.shape, device=rt.device)
    per_token = torch.zeros(4, *mask.shape, device=rt.device)
    scores = torch.zeros(len(rows), device=rt.device)
    for start in range(0, len(rows), config.micro_batch):
        part = slice(start, start + config.micro_batch)
        t = int(end[part].max()) + 1                  # crop to the longest
        x, m = ids[part, :t], mask[part, :t - 1]
        with rt.autocast():
            if lm:
                lm_logp[part, :t] = token_logp(lm, x)
            logp, logp_all = log_probs(policy, x, m, config.temperature)          # (n,), (n, V)
            ref_logp, _ = log_probs(reference, x, m, config.temperature)
            values = critic(x[:, :-1], lm_logp[part, :t - 1])[m]
            if isinstance(reward, ScalarGPT):
                known = lm_logp[part, :t] if reward.lm is lm else None
                scores[part] = reward(x, known)[range(len(x)), end[part]]
        entropy = -(logp_all.exp() * logp_all).sum(-1)
        for kept, found in zip(per_token, (logp, ref_logp, entropy, values)):
            kept[part, :t - 1][m] = found
    texts = [answer_text(tok, r) for r in responses]
    if not isinstance(reward, ScalarGPT):
        prompts = [row["prompt"] for row in rows]
        scores = get_scores(reward, prompts, texts, config.reward).to(rt.device)
    return Rollout(rows, texts, ids, mask, *per_token, lm_logp, last, ended,
                   scores - config.missing_end * ~ended)


def gae(rewards, values, mask, gamma, lam):
    """Generalised advantage estimation (Schulman et al. 2015, eq. 16); all (B, T).

        delta_t = r_t + gamma V_{t+1} - V_t         A_t = delta_t + gamma lam A_{t+1}

    mask marks the response; what follows it is worth 0. Returns (advantages, advantages + values).
    """
    advantages = torch.zeros_like(rewards)
    next_advantage = next_value = torch.zeros_like(rewards[:, 0])     # (B,)
    for t in reversed(range(rewards.size(1))):
        here = mask[:, t].bool()
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        next_advantage = torch.where(here, delta + gamma * lam * next_advantage, 0.0)
        next_value = torch.where(here, values[:, t], 0.0)
        advantages[:, t] = next_advantage
    return advantages, (advantages + values) * mask


def token_rewards(r, kl_coef):
    """(B, T - 1): every token pays for its distance from the reference, the last one earns."""
    rewards = -kl_coef * (r.logp - r.ref_logp)
    rewards[range(len(rewards)), r.last] += r.scores
    return rewards


def whiten(x, mask, rt):
    """Mean 0 and deviation 1 over the real tokens of all ranks; 0 elsewhere."""
    count, total, squares = rt.sum(mask.sum(), x[mask].sum(), (x[mask] ** 2).sum())
    mean = total / count
    var = max(squares / count - mean ** 2, 0.0)
    return (x - mean) * (var + 1e-8) ** -0.5 * mask


def minibatches(n, size):
    """Shuffle n answers, sorted by length, into minibatches: a list of index tensors (size,). Each
    takes one of every n / size answers of similar length, so all are alike, and again sorted."""
    k = n // size
    return [*(torch.rand(size, k).argsort(1) + k * torch.arange(size)[:, None]).T]


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


def ppo_loss(logp, values, old_logp, old_values, advantages, returns, config):
    """Policy loss plus value loss, and what to watch; all (n,) per token. Sums, not means: tokens
    are averaged over micro-batches and ranks."""
    pg, ratio, clipped = policy_loss(logp, old_logp, advantages, config.clip)
    vf = value_loss(values, old_values, returns, config.clip_value)
    with torch.no_grad():
        k3 = ratio - 1 - (logp - old_logp)            # estimates the KL, never negative (Schulman)
        info = dict(policy_loss=pg.sum(), value_loss=vf.sum(), clipfrac=clipped.sum(),
                    approxkl=k3.sum(), ratio=ratio.sum(), tokens=torch.tensor(len(logp)))
    return pg.sum() + vf.sum(), info


def total(infos, rt):
    """The sums of ppo_loss over micro-batches and ranks, divided by the tokens: means."""
    sums = rt.sum(*(sum(info[name] for info in infos) for name in infos[0]))
    return {name: value / sums[-1] for name, value in zip(infos[0], sums)}


def example(r, i):
    """One prompt, its answer, and the score."""
    return f"    {r.rows[i]['prompt'][-1]['content']} -> {r.texts[i]}   ({r.scores[i].item():.2f})"


@torch.no_grad()
def token_by_token(r, policy, tok, rt, config):
    """The first answer of each kind of prompt, for the report: lists with a number per token.
    new_logp comes after the updates of this iteration: the ratio is exp(new_logp - logp)."""
    rewards, answers = token_rewards(r, config.kl_coef), {}
    advantages, returns = gae(rewards, r.values, r.mask, config.gamma, config.lam)
    for i, row in enumerate(r.rows):
        kind, mask = row.get("kind", "all"), r.mask[i]
        if kind not in answers:
            with rt.autocast():
                new_logp, _ = log_probs(policy, r.ids[i:i + 1], mask[None], config.temperature)
            numbers = dict(logp=r.logp[i], ref_logp=r.ref_logp[i], reward=rewards[i],
                           value=r.values[i], advantage=advantages[i], returns=returns[i])
            numbers = {name: v[mask] for name, v in numbers.items()} | dict(new_logp=new_logp)
            answers[kind] = dict(
                kind=kind, prompt=row["prompt"], score=r.scores[i].item(),
                tokens=[tok.decode([id]) for id in r.ids[i, 1:][mask].tolist()],
                **{name: [round(v, 4) for v in vs.tolist()] for name, vs in numbers.items()})
    return list(answers.values())


def evaluate(rows, grader, models, tok, rt, config):
    """Held-out prompts: the score, the distance from the reference, the true grade."""
    rows = rows[rt.rank::rt.world_size]
    responses = complete(models["policy"], tok, [row["ids"] for row in rows], rt,
                         config.max_new_tokens, config.temperature, seed="evaluate")
    r = assess(rows, responses, **models, tok=tok, rt=rt, config=config)
    found = dict(score=r.scores, kl=r.logp - r.ref_logp, ended=r.ended, length=r.mask)
    if grader:
        prompts = [row["prompt"] for row in rows]
        found["grade"] = get_scores(grader, prompts, r.texts, config.watch)
    n, *sums = rt.sum(len(rows), *(values.sum() for values in found.values()))
    return {name: value / n for name, value in zip(found, sums)}, r


if __name__ == "__main__":
    # ---- setup ------------------------------------------------------------------------------

    config = parse_config(Config, __doc__, several=True)
    rt = Runtime(config)
    ptx = config.text if config.ptx_coef > 0 else ""
    own_reward = function_file(config.reward)
    run = Run(config, rt, inputs=[config.data, ptx, config.init, config.reference,
                                  own_reward or config.reward, config.critic])
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

    # ---- data -------------------------------------------------------------------------------

    T = min(c["model_config"]["block_size"] for c in (ckpt, ref_ckpt, r_ckpt, c_ckpt) if c)
    B = config.batch_size // rt.world_size            # answers of this process
    mb = config.minibatch // rt.world_size
    room = T - config.max_new_tokens - 1              # one for the end
    if config.temperature < COLDEST:
        fail("--temperature=0 always says the same: PPO learns from samples")
    if room < 8:
        fail(f"--max_new_tokens={config.max_new_tokens} leaves {room} of the models' {T} tokens "
             f"for the prompt")
    prompts = [dict(row, ids=tok.encode_chat(row["prompt"], reply=True)[0])
               for row in read_prompts(config.data)]
    short = [p for p in prompts if len(p["ids"]) <= room]
    train, val = split(short)
    val = val[:config.n_eval]
    if len(train) < config.batch_size or len(val) < rt.world_size:
        fail(f"{config.data}: {len(train)} prompts of at most {room} tokens to train on and "
             f"{len(val)} held out; at least {config.batch_size} and {rt.world_size} are needed")
    rng, plan = np.random.default_rng(config.seed), []
    while len(plan) < config.steps * config.batch_size:
        plan += rng.permutation(len(train)).tolist()
    if ptx:
        corpus = Corpus(ptx, tok, run.out.parent / "cache", run.inputs[ptx], main=rt.local_main,
                        wait=rt.barrier)
        n_updates = config.steps * config.epochs * (config.batch_size // config.minibatch)
        n_text = max(1, mb // 16)                     # rows of text per update and process
        corpus.shuffle(n_updates * n_text * rt.world_size * T + 1, config.seed)
    print(f"{len(train):,} prompts ({len(prompts) - len(short)} left out, longer than {room} "
          f"tokens), {len(val)} held out; "
          f"{config.steps * config.batch_size / len(train):.1f} epochs")

    # ---- model and optimizer ----------------------------------------------------------------

    torch.manual_seed(config.seed)                    # the same weights on every rank
    policy = GPT.load(ckpt, dropout=0.0).to(rt.device)
    reference = frozen(GPT.load(ref_ckpt, dropout=0.0), rt)
    reward = load_function(config.reward) if own_reward else frozen(ScalarGPT.load(r_ckpt), rt)
    if c_ckpt["stage"] == "reward":
        critic = ScalarGPT.load(c_ckpt)
    else:
        critic = ScalarGPT(GPTConfig(**c_ckpt["model_config"] | dict(dropout=0.0)))
        critic.start_from(c_ckpt["model"])
    # The reward model has learned to judge whole answers. What its head says in the middle of one
    # is noise, worse than no estimate. So the critic takes only its trunk, and starts by saying
    # the same number everywhere: the mean score of the first evaluation.
    torch.nn.init.zeros_(critic.head.weight)
    torch.nn.init.zeros_(critic.head.bias)
    if not own_reward and not config.critic:
        critic.lm = reward.lm                         # one frozen language model serves both
    critic.to(rt.device)
    for net in (policy, critic.gpt):
        net.save_memory(config.recompute, config.freeze)
    models = dict(policy=policy, reference=reference, critic=critic, reward=reward)
    grader = load_function(config.watch) if config.watch else None
    policy_ddp, critic_ddp = (DDP(m) if rt.ddp else m for m in (policy, critic))
    groups = [dict(group, net=i) for i, net in enumerate((policy, critic))
              for group in optimizer_groups(net, 0.0)]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-5,
                                  fused=rt.device.type != "mps")
    if run.state:
        policy.load_state_dict(run.state["model"])
        critic.load_state_dict(run.state["critic"])
        optimizer.load_state_dict(run.state["optimizer"])
    history = ckpt["history"]
    ckpt = ref_ckpt = r_ckpt = c_ckpt = None          # frees the memory: the models have copies
    print(f"4 models; the policy has {rt.describe(policy)}; reward: {config.reward}")

    # ---- training loop ----------------------------------------------------------------------

    for step in range(run.start, config.steps):
        if step % config.eval_every == 0:
            metrics, seen = evaluate(val, grader, models, tok, rt, config)
            run.log(step, metrics, split="held out")
            run.say(example(seen, step // config.eval_every % len(seen.rows)))
        if step == 0:
            torch.nn.init.constant_(critic.head.bias, metrics["score"])
        for group in optimizer.param_groups:
            group["lr"] = get_lr(step, config)[group["net"]]

        # a. rollout: this process answers its share of the prompts
        began = time.monotonic()
        chosen = plan[step * config.batch_size:(step + 1) * config.batch_size]
        rows = [train[i] for i in chosen[rt.rank::rt.world_size]]
        responses = complete(policy, tok, [row["ids"] for row in rows], rt, config.max_new_tokens,
                             config.temperature, seed=(config.seed, step))

        # b. score the answers, and pass them once through each of the models. They are sorted by
        # length: a batch costs what its longest row costs
        rows, responses = zip(*sorted(zip(rows, responses),
                                      key=lambda pair: len(pair[0]["ids"]) + len(pair[1])))
        r = assess(rows, responses, **models, tok=tok, rt=rt, config=config)

        # c. rewards: every token pays for its distance from the reference, the last one earns
        rewards = token_rewards(r, config.kl_coef)

        # d. advantages: how much better than the critic expected, and whitened
        advantages, returns = gae(rewards, r.values, r.mask, config.gamma, config.lam)
        if config.whiten_advantages:
            advantages = whiten(advantages, r.mask, rt)

        # e. epochs: several updates on these answers, in new minibatches each time. All sums are
        # divided by one count, the tokens of a minibatch on average: every token weighs the same
        rt.seed(config.seed, step, "epochs")
        batches = [m for _ in range(config.epochs) for m in minibatches(B, mb)]
        count, = rt.average(r.mask.sum() * mb / B)
        infos, ratios = [], []
        for update, batch in enumerate(batches, start=step * len(batches)):
            for start in range(0, mb, config.micro_batch):
                part = batch[start:start + config.micro_batch]
                t = int(r.last[part].max()) + 2                       # crop to the longest
                x, m = r.ids[part, :t], r.mask[part, :t - 1]
                old = [a[part, :t - 1][m] for a in (r.logp, r.values, advantages, returns)]
                if rt.ddp:                                            # reduced once per update
                    final = start + config.micro_batch >= mb
                    policy_ddp.require_backward_grad_sync = final and not ptx
                    critic_ddp.require_backward_grad_sync = final
                with rt.autocast():
                    logp, _ = log_probs(policy_ddp, x, m, config.temperature)     # (n,)
                    values = critic_ddp(x[:, :-1], r.lm_logp[part, :t - 1])[m]
                loss, info = ppo_loss(logp, values, *old, config)
                (loss / count).backward()
                infos.append(info)
                ratios.append((logp.detach() - old[0]).exp())
            if ptx:
                text = corpus.rows((update * rt.world_size + rt.rank) * n_text, n_text, T)
                text = text.to(rt.device)
                if rt.ddp:
                    policy_ddp.require_backward_grad_sync = True
                with rt.autocast():
                    _, ptx_loss = policy_ddp(text[:, :-1], text[:, 1:].contiguous())
                (config.ptx_coef * ptx_loss).backward()
            grad_norm = sum(torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
                            for net in (policy, critic))
            run.check(step, grad_norm, ids=r.ids[batch], mask=r.mask[batch], returns=returns[batch])
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        # f. what happened, over all ranks
        n, tokens, rlhf_reward, kl, entropy, score, ended = rt.sum(B, *(
            t.sum() for t in (r.mask, rewards, r.logp - r.ref_logp, r.entropy, r.scores, r.ended)))
        error, spread = (t[r.mask].var(unbiased=False) for t in (returns - r.values, returns))
        explained, = rt.average(1 - error / max(spread, 1e-8))
        means = total(infos, rt)
        shown = {"objective/score": score / n, "objective/kl": kl / n,
                 "objective/entropy": entropy / tokens, "ppo/policy/clipfrac": means["clipfrac"],
                 "ppo/policy/approxkl": means["approxkl"], "ppo/val/explained_var": explained,
                 "length": tokens / n, "ended": ended / n}
        run.log(step + 1, shown, **{
            "objective/rlhf_reward": rlhf_reward / n, "ppo/loss/policy": means["policy_loss"],
            "ppo/loss/value": means["value_loss"], "ppo/val/ratio": means["ratio"],
            "ptx_loss": ptx_loss.item() if ptx else None, "lr": get_lr(step, config)[0],
            "seconds": time.monotonic() - began,
            # for the report: short, middling and long answers; held-out ones, token by token
            "ratios": torch.cat(ratios).clamp(0.5, 1.5).histc(20, 0.5, 1.5).tolist(),
            "samples": [[rows[k]["prompt"], r.texts[k], r.scores[k].item()]
                        for k in (0, B // 2, -1)],
            "answers": token_by_token(seen, policy, tok, rt, config)
            if step % config.eval_every == 0 else None})
        run.save_state(step + 1, model=policy, critic=critic, optimizer=optimizer)

    # ---- save -------------------------------------------------------------------------------

    metrics, seen = evaluate(val, grader, models, tok, rt, config)
    run.log(config.steps, metrics, split="held out",
            answers=token_by_token(seen, policy, tok, rt, config))
    for k in range(min(4, len(seen.rows))):
        run.say(example(seen, k))
    if rt.main:
        save_checkpoint(config.out, stage="ppo", step=config.steps, metrics=metrics, model=policy,
                        model_config=policy.config, tokenizer=tok, config=config,
                        history=history, run=run.identity())

    # ---- cleanup ----------------------------------------------------------------------------

    run.finish()
