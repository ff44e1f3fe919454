"""Stage 1 of 4, pretraining: learn to continue text.

reads   data/town/pretrain (or any text: --data=a.txt,b.jsonl,folder), out/tokenizer.json
writes  out/pretrain.pt

    loss = -1/N sum_t log p(x_t | x_<t)          cross-entropy of the next token, in nats

In the town the lowest possible loss is known: the entropy of the generator. The difference is what
the model has not learned. The assistant knows only what is in this text: the later stages teach it
how to behave, not what is true.

laptop   python pretrain.py
GPUs     torchrun --nproc_per_node=8 pretrain.py --batch_size=512 --micro_batch=32 --muon=0 \
             --lr=6e-4 --block_size=1024 --n_layer=12 --n_head=12 --n_embd=768
"""

import math
import time
from dataclasses import dataclass

import torch
from torch.nn.parallel import DistributedDataParallel as DDP

from checkpoint import Run, Whole, load_checkpoint, save_checkpoint
from common import Runtime, fail, parse_config, per_second
from data.corpus import Corpus
from model import GPT, STYLES, GPTConfig, optimizer_groups
from tokenizer import Tokenizer


# ---- config ---------------------------------------------------------------------------------

@dataclass
class Config:
    data: str = "data/town/pretrain"     # text: files and folders, separated by commas
    mix: str = ""                        # shares of the sources, "forum=0.3,web=0.7"; "": by size
    tokenizer: str = "out/tokenizer.json"
    init: str = ""                       # a checkpoint to continue from; "": random weights
    out: str = "out/pretrain.pt"         # its log and unfinished state stand beside it
    steps: int = 3000                    # optimizer steps
    batch_size: int = 8                  # rows of block_size tokens per step, over all processes
    micro_batch: int = 8                 # rows per forward pass; smaller needs less memory
    recompute: bool = False              # keep no activations for the backward pass, as sft.py
    lr: float = 8e-3                     # the peak: warmed up linearly, then a cosine to nearly 0
    warmup: int = 100                    # steps
    weight_decay: float = 0.1
    muon: float = 2.0                    # Muon for the layers' matrices, at lr times this; 0: AdamW
    style: str = "laptop"                # laptop | gpt2 | llama: the model's parts (without --init)
    block_size: int = 128                # the context, in tokens
    n_layer: int = 4
    n_head: int = 2
    n_embd: int = 128
    dropout: float = 0.0
    eval_every: int = 600                # steps between evaluations
    eval_rows: int = 256                 # held-out rows per evaluation
    seed: int = 0
    device: str = "auto"                 # auto: cuda, else cpu; mps when asked
    dtype: str = "auto"                  # auto: bfloat16 where it is fast, else float32
    compile: str = "auto"                # auto: on GPUs
    fsdp: bool = False                   # split weights and optimizer state among the processes
    fresh: bool = False                  # start over
    debug: bool = False                  # show tracebacks


# ---- the idea -------------------------------------------------------------------------------

def get_lr(step, config):
    """Linear warmup, then a cosine down to a hundredth of the peak."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.lr * (0.01 + 0.495 * (1 + math.cos(math.pi * done)))


def orthogonalize(x, rounds=3):
    """x (n, R, C), R <= C -> about U V^T for each x = U S V^T: large singular values come near 1.
    With 3 rounds small ones do not: of a trained model's momentum 43% stay below .5.

    Newton-Schulz: the polynomial f(s) = 3.4445 s - 4.7750 s^3 + 2.0315 s^5 is applied to the
    singular values again and again. It takes only matrix products (Jordan et al. 2024).
    """
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)                 # singular values below 1
    for _ in range(rounds):
        a = x @ x.mT                                                  # (n, R, R)
        x = torch.baddbmm(x, torch.baddbmm(a, a, a, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x


class Muon(torch.optim.Optimizer):
    """Makes the step of a matrix equally long in all directions (Jordan et al. 2024): half of the
    steps do. Matrices of one shape are stacked: a few large products are faster than many small
    ones. Embedding, output layer and norms are AdamW's."""

    def __init__(self, params, weight_decay=0.1, momentum=0.95, dtype=torch.float32):
        super().__init__(params, dict(lr=0.0, weight_decay=weight_decay, momentum=momentum))
        self.dtype = dtype                            # of the products

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            alike, momentum = {}, group["momentum"]   # {(short side, long side): [(matrix, step)]}
            for p in (p for p in group["params"] if p.grad is not None):
                m = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                m.lerp_(p.grad, 1 - momentum)
                step = p.grad.lerp(m, momentum)       # Nesterov's
                alike.setdefault((min(p.shape), max(p.shape)), []).append((p, step))
            for same in alike.values():
                steps = torch.stack([s.mT if s.size(0) > s.size(1) else s for _, s in same])
                for (p, _), s in zip(same, orthogonalize(steps.to(self.dtype))):
                    s = s.mT if p.size(0) > p.size(1) else s
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.sub_(s, alpha=group["lr"] * max(1, p.size(0) / p.size(1)) ** 0.5)


@torch.no_grad()
def evaluate(model, rows, n_sources, micro_batch, rt):
    """Held-out loss per source (nats per token): rows = x, y, source, each (R, T)."""
    model.eval()
    total = torch.zeros(2, n_sources, dtype=torch.float64)
    for i in range(0, len(rows[0]), rt.world_size * micro_batch):
        # every process takes equally many turns, as FSDP needs; rows past the end don't count
        at = torch.arange(i + rt.rank * micro_batch, i + (rt.rank + 1) * micro_batch)
        x, y, source = (r[at % len(r)] for r in rows)
        y = y.masked_fill((at >= len(rows[1]))[:, None], -1)
        with rt.autocast():
            _, loss = model(x.to(rt.device), y.to(rt.device), reduction="none")
        counted = y.flatten() >= 0
        source, loss = source.flatten()[counted], loss.cpu().double()[counted]
        total[0] += torch.bincount(source, loss, minlength=n_sources)
        total[1] += torch.bincount(source, minlength=n_sources)
    model.train()
    total = torch.tensor(rt.average(*total.flatten().tolist())).view(2, n_sources)
    return total[0].sum() / total[1].sum(), total[0] / total[1]


def show_sample(model, tok, rt, n_tokens=48):
    """What the model writes by itself, starting from <|endoftext|>."""
    model.eval()
    idx, same = torch.tensor([[tok.eot]], device=rt.device), torch.Generator(rt.device)
    with rt.autocast():                               # every process draws the same tokens
        ids = model.generate(idx, n_tokens, temperature=0.8, stop=[tok.eot],
                             generator=same.manual_seed(0))[0, 1:].tolist()
    model.train()
    return " ".join(tok.decode([i for i in ids if i != tok.eot]).split())


if __name__ == "__main__":
    # ---- setup ------------------------------------------------------------------------------

    config = parse_config(Config, __doc__, several=True)
    rt = Runtime(config)
    run = Run(config, rt, inputs=[config.data, config.tokenizer, config.init])
    B, micro_batch = rt.split(config)                 # rows of this process
    if config.style not in STYLES:
        fail(f"--style={config.style} is not one of {', '.join(STYLES)}")

    # ---- data -------------------------------------------------------------------------------

    ckpt = load_checkpoint(config.init, stage="pretrain") if config.init else None
    tok = Tokenizer.from_dict(ckpt["tokenizer"]) if ckpt else Tokenizer.load(config.tokenizer)
    corpus = Corpus(config.data, tok, run.out.parent / "cache", run.inputs.get(config.data),
                    main=rt.local_main, wait=rt.barrier)
    T = config.block_size
    if ckpt and T > ckpt["model_config"]["block_size"]:
        fail(f"--block_size={T}, but {config.init} reads {ckpt['model_config']['block_size']} "
             f"tokens at most")
    corpus.shuffle(config.steps * config.batch_size * T + 1, config.seed, config.mix)
    *val_rows, val_docs = corpus.held_out_rows(T, config.eval_rows)
    share, floor = corpus.shares(val_docs), corpus.entropy(val_docs, config.mix)
    tested = share.nonzero()[0]                       # a small source may have no held-out rows
    n_tokens, bytes_per_token = corpus.tokens.size, corpus.n_bytes.sum() / corpus.tokens.size
    print(f"{len(corpus.source):,} documents from {', '.join(corpus.sources)}: {n_tokens:,} tokens "
          f"of {bytes_per_token:.2f} bytes; this run reads "
          f"{config.steps * config.batch_size * T / n_tokens:.2f} epochs")

    # ---- model and optimizer ----------------------------------------------------------------

    torch.manual_seed(config.seed)                    # the same weights on every rank
    if ckpt:
        model = GPT.load(ckpt, dropout=config.dropout)
    else:
        n_hidden = 4 * config.n_embd
        if config.style == "llama":                   # its MLP has three matrices instead of two
            n_hidden = -(-8 * config.n_embd // 3 // 32) * 32
        model = GPT(GPTConfig(
            block_size=T, vocab_size=tok.vocab_size, n_layer=config.n_layer, n_head=config.n_head,
            n_kv_head=config.n_head, n_embd=config.n_embd, n_hidden=n_hidden,
            dropout=config.dropout, **STYLES[config.style]))
    model.save_memory(config.recompute)
    model.to(rt.device)
    if config.fsdp:
        rt.shard(model)
    compiled = rt.compile(model, config.compile)
    model_ddp = DDP(compiled) if rt.ddp and not config.fsdp else compiled
    matrices = [p for p in model.blocks.parameters() if p.dim() == 2] if config.muon else []
    adamw = torch.optim.AdamW(optimizer_groups(model, config.weight_decay, without=matrices),
                              betas=(0.9, 0.95), fused=rt.device.type != "mps")
    optimizers = dict(adamw=adamw)
    if config.muon:
        optimizers["muon"] = Muon(matrices, config.weight_decay, dtype=rt.dtype)
    saved = dict(model=model, **optimizers)
    if config.fsdp:                                   # saved as if they were not split
        saved = {name: Whole(model, optimizers.get(name)) for name in saved}
    if run.state:
        for name, part in saved.items():
            part.load_state_dict(run.state[name])
    print(rt.describe(model))

    # ---- training loop ----------------------------------------------------------------------

    micro_steps = B // micro_batch
    clock, losses = time.monotonic(), []
    metrics = run.state["metrics"] if run.state else {}
    for step in range(run.start, config.steps):
        for name, optimizer in optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = get_lr(step, config) * (config.muon if name == "muon" else 1)

        # rows of this step: every process takes its own slice of the stream
        rt.seed(config.seed, step)
        rows = corpus.rows(step * config.batch_size + rt.rank * B, B, T).to(rt.device)
        x, y = rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
        for i in range(micro_steps):
            part = slice(i * micro_batch, (i + 1) * micro_batch)
            if config.fsdp:                           # gradients are reduced once per step
                model.set_requires_gradient_sync(i == micro_steps - 1)
            elif rt.ddp:
                model_ddp.require_backward_grad_sync = i == micro_steps - 1
            with rt.autocast():
                _, loss = model_ddp(x[part], y[part])
            (loss / micro_steps).backward()
            losses.append(loss.detach())
        grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        grad_norm = grad_norm.full_tensor() if config.fsdp else grad_norm
        run.check(step, grad_norm, rows=rows)
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        if (step + 1) % 100 == 0 or step + 1 == config.steps:
            loss, = rt.average(torch.stack(losses).mean().item())
            speed = per_second(len(losses) * micro_batch * T * rt.world_size, clock)
            run.log(step + 1, dict(loss=loss, lr=get_lr(step, config), grad_norm=grad_norm.item(),
                                   tokens_per_s=speed))
            clock, losses = time.monotonic(), []
        if (step + 1) % config.eval_every == 0 or step + 1 == config.steps:
            paused = time.monotonic()
            val, by_source = evaluate(compiled, val_rows, len(corpus.sources), micro_batch, rt)
            metrics = dict(val_loss=val.item(),
                           bits_per_byte=val.item() / math.log(2) / float(bytes_per_token))
            if math.isfinite(floor[tested].sum()):
                metrics["entropy"] = float(floor[tested] @ share[tested])
            by_source = {corpus.sources[i]: by_source[i].item() for i in tested}
            run.log(step + 1, metrics, by_source=by_source)
            metrics = dict(metrics, by_source=by_source)
            run.say(f"    sample: {show_sample(model, tok, rt)}")
            clock += time.monotonic() - paused             # evaluation is not training
        run.save_state(step + 1, **saved, metrics=metrics)

    # ---- save -------------------------------------------------------------------------------

    weights = saved["model"].state_dict()             # with FSDP, every process has a part of them
    if rt.main:
        save_checkpoint(config.out, stage="pretrain", step=config.steps, metrics=metrics,
                        model=weights, model_config=model.config, tokenizer=tok, config=config,
                        history=ckpt["history"] if ckpt else [], run=run.identity())

    # ---- cleanup ----------------------------------------------------------------------------

    for (source, value), low in zip(metrics["by_source"].items(), floor[tested]):
        known = f"   entropy {low:.3f}   {100 * (value / low - 1):+.1f}%"
        print(f"{source:16} loss {value:.3f}{known if math.isfinite(low) else ''}")
    run.finish()
