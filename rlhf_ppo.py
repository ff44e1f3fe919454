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

from dataclasses import dataclass, replace

import torch

from answer import COLDEST, answer_mask, answer_text, complete, log_probs, right_pad
from checkpoint import Run, load, load_reward
from common import Common, Runtime, fail, function_file, get_scores, load_function, parse_config
from data.formats import epochs, prompts_that_fit
from model import ScalarGPT
from optim import adamw, merge, set_lr, with_lora


# ---- config ---------------------------------------------------------------------------------

@dataclass
class Config(Common):
    data: str = "data/town/prompts.jsonl"  # prompts
    text: str = "data/town/rehearse"       # pretraining text to rehearse; "": none
    init: str = "out/sft.pt"               # the policy to start from
    reference: str = ""                    # the model to stay near; "": the one it starts from
    reward: str = "out/reward.pt"          # a reward model, or FILE.py:function(prompts, responses)
    critic: str = ""                       # whose trunk it takes; "": reward model, else policy
    watch: str = "data/town.py:grade"      # FILE.py:function, to watch, not to train on; "": none
    out: str = "out/ppo.pt"                # its log and unfinished state stand beside it
    steps: int = 28                        # iterations: rollout, then updates
    batch_size: int = 128                  # answers per iteration, over all processes
    minibatch: int = 32                    # answers per update, over all processes
    micro_batch: int = 32                  # answers per forward pass; smaller needs less memory
    recompute: bool = False                # recompute activations: slower, less memory
    lora: int = 0                          # LoRA of this rank, see optim.py; 0: all weights learn
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
    eval_every: int = 7                    # iterations between evaluations
    n_eval: int = 256                      # held-out prompts per evaluation


SHOWN = ("objective/score", "objective/kl", "objective/entropy", "ppo/policy/clipfrac",
         "ppo/policy/approxkl", "ppo/val/explained_var", "length", "ended")   # the log has more


# ---- the idea -------------------------------------------------------------------------------

def get_lrs(step, config):
    """Of policy and critic: one iteration of warmup (Adam's first steps are its wildest), then
    linearly to 0. The critic begins earlier: until it knows what to expect of a prompt, all answers
    to a hard prompt look bad, and the policy would unlearn them."""
    left = 1 - config.decay * step / config.steps
    policy, critic = (max(0, min((step - start + 1) / 2, left))
                      for start in (config.critic_first, 0))
    return config.lr * policy, config.lr * config.critic_lr * critic


@dataclass
class Rollout:
    """Answers to B prompts, and what the models say of them. All (B, T): index t is token t. logp,
    ref_logp, entropy, values, advantages, returns are 0 where mask is False."""
    ids: torch.Tensor          # prompt and answer, padded on the right
    mask: torch.Tensor         # True on the answer's tokens
    logp: torch.Tensor         # log p under the policy that sampled them
    ref_logp: torch.Tensor     # log p under the reference
    entropy: torch.Tensor      # of the policy, in nats
    values: torch.Tensor       # what the critic expects, before the token is known
    lm_logp: torch.Tensor      # log p under the frozen SFT model, of the prompt's tokens, too
    scores: torch.Tensor       # (B,) the reward, lower without an end
    ended: torch.Tensor        # (B,) whether the answer ended by itself
    rows: list                 # the prompts
    texts: list                # the answers
    advantages: torch.Tensor = None
    returns: torch.Tensor = None

    @property
    def last(self):
        """(B,) the position of the answer's last token."""
        return self.mask.size(1) - 1 - self.mask.int().flip(1).argmax(1)

    def __getitem__(self, part):
        """The answers `part`, an index or a slice, up to the end of the longest one."""
        T = int(self.last[part].max()) + 1
        chosen = torch.arange(len(self.rows))[part].tolist()
        cut = {name: x[part, :T] if x.dim() == 2 else x[part]
               for name, x in vars(self).items() if isinstance(x, torch.Tensor)}
        return replace(self, **cut, rows=[self.rows[i] for i in chosen],
                       texts=[self.texts[i] for i in chosen])


def token_values(critic, ids, mask, lm_logp):
    """What the critic expects before each of the n tokens where mask is True, (n,)."""
    return critic(ids[:, :-1], lm_logp[:, :-1])[mask[:, 1:]]


@torch.no_grad()
def assess(rows, answers, policy, reference, critic, reward, tok, rt, config):
    """Pass each answer [ids] once through the four models -> Rollout. reward: a ScalarGPT, or a
    function of prompts and texts."""
    policy.eval(), critic.eval()
    ended = torch.tensor([a[-1] == tok.end for a in answers], device=rt.device)
    # the reward model has seen only whole answers: an answer without an end gets one to be scored
    whole = [a if a[-1] == tok.end else a + [tok.end] for a in answers]
    ids, end = right_pad([row["ids"] + a for row, a in zip(rows, whole)], tok.pad, rt.device)
    mask = answer_mask([row["ids"] for row in rows], whole, rt.device)
    mask[range(len(rows)), end] = ended               # the policy has not sampled an added end
    logp, ref_logp, entropy, values, lm_logp = torch.zeros(5, *ids.shape, device=rt.device)
    scores = torch.zeros(len(rows), device=rt.device)
    for part in rt.parts(len(rows), config.micro_batch):
        T = int(end[part].max()) + 1                  # crop to the longest
        x, m, known = ids[part, :T], mask[part, :T], lm_logp[part, :T]
        with rt.autocast():
            if critic.lm:
                known.copy_(critic.lm.token_logp(x))
            logp[part, :T][m], p = log_probs(policy, x, m, config.temperature)      # (n,), (n, V)
            ref_logp[part, :T][m], _ = log_probs(reference, x, m, config.temperature)
            values[part, :T][m] = token_values(critic, x, m, known)
            if isinstance(reward, ScalarGPT):
                shared = known if reward.lm is critic.lm else None
                scores[part] = reward(x, shared)[range(len(x)), end[part]]
        entropy[part, :T][m] = -(p.exp() * p).sum(-1)
    texts = [answer_text(tok, a) for a in answers]
    if not isinstance(reward, ScalarGPT):
        prompts = [row["prompt"] for row in rows]
        scores = get_scores(reward, prompts, texts, config.reward).to(rt.device)
    return Rollout(ids, mask, logp, ref_logp, entropy, values, lm_logp,
                   scores - config.missing_end * ~ended, ended, rows, texts)


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
    """(B, T): every token pays for its distance from the reference, the last one earns."""
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


def ppo_loss(logp, values, r, config):
    """logp, values (n,): now, of the answers' tokens in the rollout r -> policy loss plus value
    loss, and what to watch: sums, not means, since every token counts the same; the ratios (n,)."""
    old_logp, old_values, advantages, returns = (
        x[r.mask] for x in (r.logp, r.values, r.advantages, r.returns))
    pg, ratio, clipped = policy_loss(logp, old_logp, advantages, config.clip)
    vf = value_loss(values, old_values, returns, config.clip_value)
    with torch.no_grad():
        k3 = ratio - 1 - (logp - old_logp)            # estimates the KL, never negative (Schulman)
        info = {"ppo/loss/policy": pg.sum(), "ppo/loss/value": vf.sum(),
                "ppo/policy/clipfrac": clipped.sum(), "ppo/policy/approxkl": k3.sum(),
                "ppo/val/ratio": ratio.sum()}
    return pg.sum() + vf.sum(), info, ratio.detach()


def example(r, i):
    """One prompt, its answer, and the score."""
    return f"    {r.rows[i]['prompt'][-1]['content']} -> {r.texts[i]}   ({r.scores[i].item():.2f})"


def first_of_each_kind(r, policy, tok, rt, config):
    """The first answer to each kind of prompt, token by token, for the report. new_logp is what
    the policy says now: exp(new_logp - logp) is PPO's ratio."""
    kinds, answers = [row.get("kind", "all") for row in r.rows], []
    for kind in dict.fromkeys(kinds):
        a = r[[kinds.index(kind)]]
        with rt.autocast(), torch.no_grad():
            new_logp, _ = log_probs(policy, a.ids, a.mask, config.temperature)
        answers.append(dict(
            kind=kind, prompt=a.rows[0]["prompt"], score=a.scores.item(),
            tokens=[tok.decode([id]) for id in a.ids[a.mask].tolist()], new_logp=new_logp.tolist(),
            **{name: vars(a)[name][a.mask].tolist() for name in ("logp", "ref_logp", "values")}))
    return answers


def evaluate(rows, grader, models, tok, rt, config):
    """Held-out prompts: the score, the distance from the reference, the true grade."""
    rows = rows[rt.rank::rt.world_size]
    answers = complete(models["policy"], tok, [row["ids"] for row in rows], rt,
                       config.max_new_tokens, config.temperature, seed="evaluate")
    r = assess(rows, answers, **models, tok=tok, rt=rt, config=config)
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
                                  config.reward, config.critic])
    B = config.batch_size // rt.world_size            # answers of this process
    mb = config.minibatch // rt.world_size
    if config.batch_size % config.minibatch or config.minibatch % rt.world_size:
        fail(f"--minibatch={config.minibatch} must divide --batch_size={config.batch_size} and be "
             f"a multiple of the {rt.world_size} processes")
    if config.temperature < COLDEST:
        fail("--temperature=0 always says the same: PPO learns from samples")
    # with LoRA the policy is the reference, and the critic the reward model, plus thin matrices
    lora, stages = config.lora > 0, "sft pretrain ppo"
    policy, tok, history = load(config.init, rt, stages, frozen=lora)
    reward = load_reward(config.reward, tok, rt)
    reference, critic = policy, policy if own_reward else reward
    if config.reference or not lora:
        reference, *_ = load(config.reference or config.init, rt, stages, tok, frozen=True)
    if config.critic or not lora:
        critic, *_ = load(config.critic or (config.init if own_reward else config.reward), rt,
                          tok=tok, frozen=lora)
    if not isinstance(critic, ScalarGPT):
        trunk, critic = critic, ScalarGPT(critic.config)
        critic.start_from(trunk)
    if lora:
        torch.manual_seed(config.seed)                # the same weights on every rank
        policy, critic = (with_lora(net, config.lora) for net in (policy, critic))
    # The reward model has learned to judge whole answers. What its head says in the middle of one
    # is noise, worse than no estimate. So the critic takes only its trunk, and starts by saying
    # the same number everywhere: the mean score of the first evaluation.
    torch.nn.init.zeros_(critic.head.weight)
    torch.nn.init.zeros_(critic.head.bias)
    if not own_reward and not config.critic:
        critic.lm = reward.lm                         # one frozen language model serves both
    models = dict(policy=policy, reference=reference, critic=critic, reward=reward)
    grader = load_function(config.watch) if config.watch else None

    # ---- data -------------------------------------------------------------------------------

    T = min(m.config.block_size for m in models.values() if isinstance(m, torch.nn.Module))
    train, val = prompts_that_fit(config.data, tok, T, config.max_new_tokens, config.batch_size,
                                  rt.world_size)
    val = val[:config.n_eval]
    plan = epochs(len(train), config.steps * config.batch_size, config.seed)
    print(f"{len(train):,} prompts to learn from, {len(val)} held out; "
          f"{config.steps * config.batch_size / len(train):.1f} epochs")
    if ptx:
        corpus = run.corpus(ptx, tok)
        n_updates = config.steps * config.epochs * (config.batch_size // config.minibatch)
        n_text = max(1, mb // 32)                     # rows of text per update and process
        corpus.shuffle(n_updates * n_text * rt.world_size * T + 1, config.seed)

    # ---- model and optimizer ----------------------------------------------------------------

    for gpt in (policy, critic.gpt):
        gpt.recompute = config.recompute
    policy_ddp, critic_ddp = (rt.prepare(net, "false") for net in (policy, critic))
    optimizers = [adamw(net, 0.0, eps=1e-5) for net in (policy, critic)]
    run.track(model=policy, critic=critic, policy_adamw=optimizers[0], critic_adamw=optimizers[1])

    # ---- training loop ----------------------------------------------------------------------

    for step in run.steps():
        if step % config.eval_every == 0:
            with run.paused():
                metrics, seen = evaluate(val, grader, models, tok, rt, config)
            run.log(step, metrics, split="held out")
            run.say(example(seen, step // config.eval_every % len(seen.rows)))
        if step == 0:
            torch.nn.init.constant_(critic.head.bias, metrics["score"])
        for optimizer, lr in zip(optimizers, get_lrs(step, config)):
            set_lr(optimizer, lr)

        # a. rollout: this process answers its share of the prompts
        chosen = plan[step * config.batch_size:(step + 1) * config.batch_size]
        rows = [train[i] for i in chosen[rt.rank::rt.world_size]]
        answers = complete(policy, tok, [row["ids"] for row in rows], rt, config.max_new_tokens,
                           config.temperature, seed=(config.seed, step))

        # b. score the answers, and pass them once through each of the models. They are sorted by
        # length: a batch costs what its longest row costs
        rows, answers = zip(*sorted(zip(rows, answers),
                                    key=lambda pair: len(pair[0]["ids"]) + len(pair[1])))
        r = assess(rows, answers, **models, tok=tok, rt=rt, config=config)

        # c. rewards: every token pays for its distance from the reference, the last one earns
        rewards = token_rewards(r, config.kl_coef)

        # d. advantages: how much better than the critic expected, and whitened
        r.advantages, r.returns = gae(rewards, r.values, r.mask, config.gamma, config.lam)
        if config.whiten_advantages:
            r.advantages = whiten(r.advantages, r.mask, rt)

        # e. epochs: several updates on these answers, in new minibatches each time. All sums are
        # divided by one count, the tokens of a minibatch on average: every token weighs the same
        rt.seed(config.seed, step, "epochs")
        updates = [m for _ in range(config.epochs) for m in minibatches(B, mb)]
        count, = rt.average(r.mask.sum() * mb / B)
        ratios = torch.zeros(20, device=rt.device)    # how many in each twentieth of 0.5 … 1.5
        for update, batch in enumerate(updates, start=step * len(updates)):
            for part in rt.parts(mb, config.micro_batch, policy_ddp, critic_ddp):
                a = r[batch[part]]
                with rt.autocast():
                    logp, _ = log_probs(policy_ddp, a.ids, a.mask, config.temperature)     # (n,)
                    values = token_values(critic_ddp, a.ids, a.mask, a.lm_logp)            # (n,)
                loss, info, ratio = ppo_loss(logp, values, a, config)
                (loss / count).backward()
                run.add(**{name: x / count / len(updates) for name, x in info.items()})
                ratios += ratio.clamp(0.5, 1.5).histc(20, 0.5, 1.5)
            if ptx:
                text = corpus.rows((update * rt.world_size + rt.rank) * n_text, n_text, T)
                text = text.to(rt.device)
                with rt.autocast():
                    ptx_loss = policy_ddp(text[:, :-1], text[:, 1:].contiguous())
                (config.ptx_coef * ptx_loss).backward()   # DDP averages again: no mean changes
            grad_norm = sum(torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
                            for net in (policy, critic))
            run.check(step, grad_norm, ids=r.ids[batch], mask=r.mask[batch],
                      returns=r.returns[batch])
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

        # f. what happened: per answer and, as above, per token
        error, variance = (x[r.mask].var(unbiased=False) for x in (r.returns - r.values, r.returns))
        run.add(**{
            "objective/score": r.scores.mean(), "objective/kl": (r.logp - r.ref_logp).sum() / B,
            "objective/entropy": r.entropy.sum() * mb / B / count,
            "objective/rlhf_reward": rewards.sum() / B, "length": r.mask.sum() / B,
            "ended": r.ended.float().mean(),
            "ppo/val/explained_var": 1 - error / variance.clamp(min=1e-8)})
        means = run.averages()
        run.log(step + 1, {name: means.pop(name) for name in SHOWN}, **means,
                lr=get_lrs(step, config)[0], ptx_loss=ptx_loss.item() if ptx else None,
                # for the report: short, middling and long answers; held-out ones, token by token
                ratios=ratios.tolist(), samples=[[r.rows[k]["prompt"], r.texts[k],
                                                  r.scores[k].item()] for k in (0, B // 2, -1)],
                answers=first_of_each_kind(seen, policy, tok, rt, config)
                if step % config.eval_every == 0 else None)

    # ---- save -------------------------------------------------------------------------------

    run.metrics, seen = evaluate(val, grader, models, tok, rt, config)
    run.log(config.steps, run.metrics, split="held out",
            answers=first_of_each_kind(seen, policy, tok, rt, config))
    for k in range(min(4, len(seen.rows))):
        run.say(example(seen, k))
    run.finish("ppo", merge(policy), tok, history)
