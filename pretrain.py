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
from dataclasses import dataclass

import torch

from answer import generate
from checkpoint import Run, load
from common import Common, Runtime, fail, parse_config
from model import GPT, STYLES, GPTConfig
from optim import Muon, adamw, get_lr, set_lr
from tokenizer import Tokenizer


# ---- config ---------------------------------------------------------------------------------

@dataclass
class Config(Common):
    data: str = "data/town/pretrain"     # text: files and folders, separated by commas
    mix: str = ""                        # shares of the sources, "forum=0.3,web=0.7"; "": by size
    tokenizer: str = "out/tokenizer.json"
    init: str = ""                       # a checkpoint to continue from; "": random weights
    out: str = "out/pretrain.pt"         # its log and unfinished state stand beside it
    steps: int = 1600                    # optimizer steps
    batch_size: int = 8                  # rows of block_size tokens per step, over all processes
    micro_batch: int = 8                 # rows per forward pass; smaller needs less memory
    recompute: bool = False              # recompute activations: slower, less memory
    lr: float = 8e-3                     # the peak: a linear warmup, then linear to 0
    warmup: int = 100                    # steps
    weight_decay: float = 0.1
    muon: float = 2.0                    # Muon for the layers' matrices, at lr times this; 0: AdamW
    style: str = "laptop"                # laptop | gpt2 | llama: the model's parts (without --init)
    block_size: int = 256                # the context, in tokens
    n_layer: int = 4
    n_head: int = 2
    n_embd: int = 128
    dropout: float = 0.0
    eval_every: int = 400                # steps between evaluations
    eval_rows: int = 128                 # held-out rows per evaluation
    compile: str = "auto"                # auto: on GPUs
    fsdp: bool = False                   # split weights and optimizer state among the processes


# ---- the idea -------------------------------------------------------------------------------

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
            loss = model(x.to(rt.device), y.to(rt.device), reduction="none")
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
        ids = generate(model, idx, n_tokens, temperature=0.8, stop=[tok.eot],
                       generator=same.manual_seed(0))[0, 1:].tolist()
    model.train()
    return " ".join(tok.decode([i for i in ids if i != tok.eot]).split())


if __name__ == "__main__":
    # ---- setup ------------------------------------------------------------------------------

    config = parse_config(Config, __doc__, several=True)
    rt = Runtime(config)
    run = Run(config, rt, inputs=[config.data, config.tokenizer, config.init])
    B, micro_batch = rt.rows_per_step(config)         # rows of this process
    if config.style not in STYLES:
        fail(f"--style={config.style} is not one of {', '.join(STYLES)}")
    torch.manual_seed(config.seed)                    # the same weights on every rank
    T, history = config.block_size, []
    if config.init:
        model, tok, history = load(config.init, rt, "pretrain", dropout=config.dropout)
        if T > model.config.block_size:
            fail(f"--block_size={T}, but {config.init} reads {model.config.block_size} tokens at "
                 f"most")
    else:
        tok, n_hidden = Tokenizer.load(config.tokenizer), 4 * config.n_embd
        if config.style == "llama":                   # its MLP has three matrices instead of two
            n_hidden = -(-8 * config.n_embd // 3 // 32) * 32
        model = GPT(GPTConfig(
            block_size=T, vocab_size=tok.vocab_size, n_layer=config.n_layer, n_head=config.n_head,
            n_kv_head=config.n_head, n_embd=config.n_embd, n_hidden=n_hidden,
            dropout=config.dropout, **STYLES[config.style]))

    # ---- data -------------------------------------------------------------------------------

    corpus = run.corpus(config.data, tok)
    corpus.shuffle(config.steps * config.batch_size * T + 1, config.seed, config.mix)
    *val_rows, val_docs = corpus.held_out_rows(T, config.eval_rows)
    share, floor = corpus.shares(val_docs), corpus.entropy(val_docs, config.mix)
    tested = share.nonzero()[0]                       # a small source may have no held-out rows
    n_tokens, bytes_per_token = corpus.tokens.size, corpus.n_bytes.sum() / corpus.tokens.size
    print(f"{len(corpus.source):,} documents from {', '.join(corpus.sources)}: {n_tokens:,} tokens "
          f"of {bytes_per_token:.2f} bytes; this run reads "
          f"{config.steps * config.batch_size * T / n_tokens:.2f} epochs")

    # ---- model and optimizer ----------------------------------------------------------------

    model.recompute = config.recompute
    model_ddp = rt.prepare(model, config.compile, config.fsdp)
    matrices = [p for p in model.blocks.parameters() if p.dim() == 2] if config.muon else []
    optimizers = dict(adamw=adamw(model, config.weight_decay, without=matrices))
    if config.muon:
        optimizers["muon"] = Muon(matrices, config.weight_decay, dtype=rt.dtype)
    run.track(model=model, **optimizers)

    # ---- training loop ----------------------------------------------------------------------

    for step in run.steps():
        lr = get_lr(step, config)
        for name, optimizer in optimizers.items():
            set_lr(optimizer, lr * config.muon if name == "muon" else lr)

        # rows of this step: every process takes its own slice of the stream
        rows = corpus.rows(step * config.batch_size + rt.rank * B, B, T).to(rt.device)
        x, y = rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
        for part in rt.parts(B, micro_batch, model_ddp):
            with rt.autocast():
                loss = model_ddp(x[part], y[part]) * micro_batch / B
            loss.backward()
            run.add(loss=loss.detach(), tokens=y[part].numel())
        grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        run.check(step, grad_norm, rows=rows)
        for optimizer in optimizers.values():
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        if run.due(100):
            run.log(step + 1, run.averages() | dict(lr=lr, grad_norm=grad_norm.item()))
        if run.due(config.eval_every):
            with run.paused():
                val, by_source = evaluate(model_ddp, val_rows, len(corpus.sources), micro_batch, rt)
                metrics = dict(val_loss=val.item(),
                               bits_per_byte=val.item() / math.log(2) / float(bytes_per_token))
                if math.isfinite(floor[tested].sum()):
                    metrics["entropy"] = float(floor[tested] @ share[tested])
                by_source = {corpus.sources[i]: by_source[i].item() for i in tested}
                run.metrics = dict(metrics, by_source=by_source)
                run.log(step + 1, metrics, by_source=by_source)
                run.say(f"    sample: {show_sample(model, tok, rt)}")

    # ---- save -------------------------------------------------------------------------------

    for (source, value), low in zip(run.metrics["by_source"].items(), floor[tested]):
        known = f"   entropy {low:.3f}   {100 * (value / low - 1):+.1f}%"
        print(f"{source:16} loss {value:.3f}{known if math.isfinite(low) else ''}")
    run.finish("pretrain", model, tok, history)
