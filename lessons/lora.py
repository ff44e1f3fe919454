"""Lesson: a part of the weights. Fine-tuning of all layers, of the last ones, and with LoRA.

reads   out/pretrain.pt, data/town/sft.jsonl; to measure: data/town/test.jsonl, data/town/pretrain
writes  out/lora.pt, the model of the last method, with B A added to W: chat.py takes it

    y = W x + (alpha / r) B A x     W (out, in) is frozen, A (r, in) random, B (out, r) at first 0

LoRA (Hu et al. 2021, eq. 3) trains A and B of every matrix in the blocks: r (in + out) weights
instead of in * out. Afterwards W + (alpha / r) B A takes the place of W: answering costs nothing
more. Gradient and AdamW's two averages are kept for the trained weights only. No pretraining text
is rehearsed here, so the loss on it shows what each method forgets.

laptop        python -m lessons.lora
one of them   python -m lessons.lora --methods=lora8:8 --out=out/lora8.pt
far           python -m lessons.lora --far --steps=600 --out=out/far.pt
"""

import re
import time
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from answer import respond
from checkpoint import Run, load, load_checkpoint
from common import Common, Runtime, fail, parse_config, percent
from data.formats import read_demonstrations, read_prompts
from data.town import judge
from lessons.held_out import check_room, of_the_town
from lessons.training import learn
from optim import adamw, get_lr, merge, with_lora
from pretrain import evaluate as text_loss
from sft import batch, encode_dialogues, pack


# ---- config ---------------------------------------------------------------------------------

@dataclass
class Config(Common):
    # all, lastN (N blocks) or loraR (rank R), and how many times --lr it learns with: what answered
    # most questions about the validation people (docs/lessons.md); all:0.12 shows what a rate does
    methods: str = "all:0.12,all:0.5,last2:1,last1:1,lora1:4,lora4:4,lora16:4"
    data: str = "data/town/sft.jsonl"    # demonstrations
    test: str = "data/town/test.jsonl"   # questions about people that no demonstration asks about
    text: str = "data/town/pretrain"     # pretraining text, to measure what is forgotten
    init: str = "out/pretrain.pt"        # the checkpoint to start from
    out: str = "out/lora.pt"             # its log and unfinished state stand beside it
    far: bool = False                    # answers have their words in reverse: no text is like that
    steps: int = 200                     # optimizer steps of each method
    batch_size: int = 2                  # rows of block_size tokens per step
    alpha: float = 16.0                  # LoRA's scale
    lr: float = 2e-3                     # the peak: a linear warmup, then linear to 0
    warmup: int = 30                     # steps
    weight_decay: float = 0.1


METHOD = r"(all|last(?=[1-9])|lora(?=[1-9]))(\d*):(\d*\.?\d+)"
GROUPS = dict(fact=0, sum=1, unknown=2, wish=2)       # of questions, by their kinds
COLUMNS = ("method", "trained", "facts right", "sums right", "unknown, wishes", "text loss",
           "seconds", "optimizer", "activations")


# ---- the idea -------------------------------------------------------------------------------

@torch.no_grad()
def renew(model, ids):
    """Give new tokens random embeddings. Pretraining makes all tokens that it never sees improbable
    and alike (cosine 1): those of the chat template, and some of the labelers' words. As long as
    embeddings are frozen like that, <|end|> is hard to learn. Half as long as the others, random
    ones hardly change the probabilities of the old tokens."""
    for weight in dict.fromkeys((model.wte.weight, model.lm_head.weight)):     # one, if tied
        directions = F.normalize(torch.randn(len(ids), weight.size(1)), dim=1)
        weight[ids] = directions * weight.norm(dim=1).mean() / 2


def prepare(new, method, config, rt):
    """"lora4:2" -> a model that trains these weights, and its optimizer. new: the new tokens."""
    kind, n, _ = re.fullmatch(METHOD, method).groups()
    model = load_checkpoint(config.init)["model"]     # on the CPU: the same random numbers anywhere
    torch.manual_seed(config.seed)
    renew(model, new)
    if kind == "last":
        model.requires_grad_(False)
        for part in (*model.blocks[-int(n):], model.norm):
            part.requires_grad_(True)
    elif kind == "lora":
        model = with_lora(model, int(n), config.alpha)
    return model, adamw(model.to(rt.device), config.weight_decay)


def kept_for_backward(model, x, y):
    """Bytes of the activations that wait for the backward pass, without the weights."""
    weights, kept = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def keep(tensor):
        part = tensor.untyped_storage()
        if part.data_ptr() not in weights:
            kept[part.data_ptr()] = part.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(x, y)
    return sum(kept.values())


def reverse(text):
    """The words of a text in reverse order; twice gives the text again."""
    return " ".join(text.split(" ")[::-1])


def backwards(rows):
    """The demonstrations with the words of all answers in reverse order."""
    def turned(m):
        return dict(m, content=reverse(m["content"])) if m["role"] == "assistant" else m
    return [dict(row, messages=[*map(turned, row["messages"])]) for row in rows]


def measure(model, tok, rows, rt, far):
    """The shares of greedy answers that are right: facts, sums, and unknown people and wishes."""
    verdicts = defaultdict(list)
    answers = respond(model, tok, [row["prompt"] for row in rows], rt, 64, temperature=0)
    for row, (text, ended) in zip(rows, answers):
        text = reverse(text) if far else text
        verdicts[GROUPS[row["kind"]]].append(ended and judge(row["prompt"], text)["right"])
    return [percent(np.mean(v), len(v)) for _, v in sorted(verdicts.items())]


if __name__ == "__main__":
    # ---- setup ------------------------------------------------------------------------------

    config = parse_config(Config, __doc__)
    rt = Runtime(config)
    methods = config.methods.split(",")
    if wrong := [method for method in methods if not re.fullmatch(METHOD, method)]:
        fail(f"--methods: {wrong[0]!r} is not like all:1, last2:1 or lora8:4")
    run = Run(config, rt, inputs=[config.data, config.test, config.text, config.init])
    model, tok, history = load(config.init, rt, "pretrain")

    # ---- data -------------------------------------------------------------------------------

    T, B = model.config.block_size, config.batch_size
    demos = read_demonstrations(config.data)
    train, *_ = encode_dialogues(backwards(demos) if config.far else demos, tok, T)
    if not train:
        fail(f"--data={config.data}: no answer is within the first {T} tokens, which "
             f"{config.init} reads")
    plan = pack([len(ids) for ids, _ in train], T, config.steps * B,
                np.random.default_rng(config.seed))
    questions = of_the_town(read_prompts(config.test), GROUPS, f"--test={config.test}")
    check_room(tok, [row["prompt"] for row in questions], T, 64, f"--init={config.init}")
    corpus = run.corpus(config.text, tok)
    *val_rows, _ = corpus.held_out_rows(T, 64)
    new = sorted({id for ids, _ in train for id in ids} - set(np.unique(corpus.tokens).tolist()))

    # ---- model and optimizer ----------------------------------------------------------------

    method = methods[max(run.start - 1, 0) // config.steps]           # the last one at work
    model, optimizer = prepare(new, method, config, rt)
    before, _ = text_loss(model, val_rows, len(corpus.sources), 16, rt)
    done = dict(seconds=0.0, found=[])                # of this method; the table so far
    run.track(model=model, optimizer=optimizer, done=done)
    print(f"loss on text before: {before:.3f}; {len(new)} tokens are new")

    # ---- training loop: one method after the other ------------------------------------------

    for step in run.steps(config.steps * len(methods)):
        method, s = methods[step // config.steps], step % config.steps
        if s == 0:
            (model, optimizer), done["seconds"] = prepare(new, method, config, rt), 0.0
            run.track(model=model, optimizer=optimizer, done=done)
        lr = get_lr(s, config) * float(method.partition(":")[2])
        x, y = (t.to(rt.device) for t in batch(train, plan[s * B:(s + 1) * B], T, tok.pad))
        began = time.process_time()                   # other programs do not count
        loss, _ = learn(run, model, optimizer, x, y, lr)
        done["seconds"] += time.process_time() - began

        if (s + 1) % 100 == 0 or s + 1 == config.steps:
            run.log(step + 1, dict(method=method, loss=loss, seconds=done["seconds"]))
        if s + 1 == config.steps:                     # what this method has learned, and its cost
            trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
            after, _ = text_loss(model, val_rows, len(corpus.sources), 16, rt)
            megabytes = (12 * trained / 1e6, kept_for_backward(model, x, y) / 1e6)
            done["found"].append((
                method, f"{trained:,}", *measure(model, tok, questions, rt, config.far),
                f"{after:.3f}", f"{done['seconds']:.0f}", *(f"{m:.1f} MB" for m in megabytes)))
            run.say("    " + "   ".join(done["found"][-1]))

    # ---- save -------------------------------------------------------------------------------

    run.metrics = dict(table=done["found"])
    for row in [COLUMNS, *done["found"]]:
        print(f"{row[0]:12}{row[1]:>9}" + "".join(f"{text:>22}" for text in row[2:5])
              + "".join(f"{text:>13}" for text in row[5:]))
    run.finish("sft", merge(model), tok, history)
