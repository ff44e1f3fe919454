"""What the report shows of the models: tokens, probabilities, scores and answers, as plain lists.

Each function gives the data of one view, or None if its files are not there (yet).
"""

from collections import Counter
from pathlib import Path

import numpy as np
import torch

from answer import answer_text, complete
from checkpoint import load, read_log
from common import note_once
from data.formats import read_comparisons, read_demonstrations, read_prompts, split
from evaluate import first_line, model_input
from reward import encode_answer, score, score_all
from sft import encode_dialogues, pack

STAGES = ["pretrain", "sft", "reward", "ppo"]


class Chain:
    """The checkpoints of a folder: models {stage: GPT}, reward, tok; and runs {stage: flags}."""

    def __init__(self, folder, rt):
        self.folder, self.rt, self.models, self.tok = Path(folder), rt, {}, None
        paths = {stage: self.folder / f"{stage}.pt" for stage in STAGES}
        for stage, path in paths.items():
            if path.exists():
                model, self.tok, _ = load(path, rt, stage, self.tok)
                self.models[stage] = model.eval()
        self.reward = self.models.pop("reward", None)
        paths["comparisons"] = self.folder / "comparisons.state"
        self.runs = {stage: found for stage, path in paths.items() if (found := flags(path))}

    def piece(self, id):
        """A token as a reader sees it; special tokens by name."""
        return self.tok.show(id)[1:-1]

    def read(self, stage, field, reader):
        """The rows that a stage read, if its checkpoint and their file are there."""
        path = self.runs.get(stage, {}).get(field)
        return reader(path) if path and all(Path(p).exists() for p in path.split(",")) else None


def first_of_kinds(rows, n=1):
    """The first n rows of each kind, in the order of the kinds."""
    kinds = {}
    for row in rows:
        kinds.setdefault(row.get("kind", "all"), []).append(row)
    return [row for found in kinds.values() for row in found[:n]]


def merges(chain):
    """What the page needs to tokenize a word as tokenizer.py does."""
    tok = chain.tok
    if not tok or sorted(tok.byte_ids) != list(range(256)):
        return None
    return dict(pattern=tok.pattern, byte_ids=tok.byte_ids,
                merges={f"{a} {b}": id for (a, b), id in tok.merges.items()},
                pieces={id: chain.piece(id) for id in tok.tokens})


def loss_mask(chain):
    """The first rows that SFT reads: [[token, 1 if learned, 1 if special]], and the padding."""
    rows = chain.read("sft", "data", read_demonstrations)
    if not rows:
        return None
    T, seed = chain.models["sft"].config.block_size, chain.runs["sft"]["seed"]
    dialogues, cut, dropped = encode_dialogues(split(rows, "messages")[0], chain.tok, T)
    packed = pack([len(ids) for ids, _ in dialogues], T, 3, np.random.default_rng(seed))
    special = set(chain.tok.specials.values())
    shown = []
    for row in packed[:3]:
        tokens = [[chain.piece(id), int(m), int(id in special)]
                  for i in row for id, m in zip(*dialogues[i])]
        shown.append(dict(tokens=tokens, padding=T + 1 - len(tokens)))
    return dict(rows=shown, T=T, cut=cut, dropped=dropped, dialogues=len(dialogues))


def greedy(chain, stage, prompts, n):
    """What a stage's model writes after each of [[ids]] when it takes the most probable token."""
    base = stage == "pretrain"
    stop = chain.tok.eot if base else chain.tok.end
    replies = complete(chain.models[stage], chain.tok, prompts, chain.rt, n, 0, stop)
    return [first_line(chain.tok, reply) if base else reply for reply in replies]


@torch.no_grad()
def next_tokens(chain, rows, n_top=10, n_tokens=24, at_least=0.005):
    """For a prompt of each kind, the last stage's greedy answer; at each of its tokens the n_top
    most probable tokens of every model, and what each would write after one of them."""
    if not rows or not chain.models:
        return None
    tok, views = chain.tok, []
    rows, *_, last = first_of_kinds(rows), *chain.models
    examples = chain.read("sft", "data", read_demonstrations) or []
    asked = {stage: model_input(model, stage == "pretrain", tok, rows, examples, n_tokens)
             for stage, model in chain.models.items()}
    for i, (row, said) in enumerate(zip(rows, greedy(chain, last, asked[last], n_tokens))):
        top = {}                                      # of each model: [[[id, p]]] by position
        for stage, model in chain.models.items():
            start, ids = len(asked[stage][i]), asked[stage][i] + said
            with chain.rt.autocast():
                logits = model(torch.tensor([ids[:-1]], device=chain.rt.device))
            p, best = logits[0, start - 1:].float().softmax(-1).topk(n_top)   # (len(said), n_top)
            top[stage] = [[[id, round(q, 4)] for id, q in zip(*both)]
                          for both in zip(best.tolist(), p.tolist())]
        places = sorted({(t, id) for tops in top.values() for t, found in enumerate(tops)
                         for id, p in found if p >= at_least})
        after = {stage: greedy(chain, stage, [asked[stage][i] + said[:t] + [id]
                                              for t, id in places], n_tokens)
                 for stage in chain.models}
        views.append(dict(
            kind=row.get("kind", "all"), prompt=row["prompt"], said=said, top=top,
            after={f"{t} {id}": {stage: "" if id == tok.end else answer_text(
                tok, replies[k], tok.eot if stage == "pretrain" else tok.end)
                for stage, replies in after.items()} for k, (t, id) in enumerate(places)}))
    ids = {id for v in views for tops in v["top"].values() for found in tops for id, _ in found}
    ids |= {id for v in views for id in v["said"]}
    return dict(views=views, pieces={id: chain.piece(id) for id in ids})


def openings(chain, rows, n=100, n_tokens=8, temperature=0.7):
    """How each model begins n answers to a prompt of each kind: [[three words, how often] …]."""
    if not rows or not chain.models:
        return None
    tok, views = chain.tok, []
    examples = chain.read("sft", "data", read_demonstrations) or []
    for row in first_of_kinds(rows):
        counts = {}
        for stage, model in chain.models.items():
            ids = model_input(model, stage == "pretrain", tok, [row], examples, n_tokens)
            replies = complete(model, tok, ids * n, chain.rt, n_tokens, temperature)
            words = [" ".join(answer_text(tok, reply).split()[:3]) for reply in replies]
            counts[stage] = Counter(words).most_common()
        views.append(dict(kind=row.get("kind", "all"), prompt=row["prompt"], counts=counts))
    return views


def rankings(chain):
    """Held-out comparisons to rank oneself: responses in a random order, the labelers' ranks, the
    true grades, the learned scores."""
    path = chain.folder / "comparisons.jsonl"
    if not chain.reward or not path.exists():
        return None
    share = chain.runs["reward"].get("held_out", 0.05)
    _, rows = split(read_comparisons(path), share=share)
    most = max(len(row["responses"]) for row in rows)
    items, T = [], chain.reward.gpt.config.block_size
    for n, row in enumerate(first_of_kinds([r for r in rows if len(r["responses"]) == most], 3)):
        ids = [encode_answer(chain.tok, row["prompt"], r, T) for r in row["responses"]]
        scores = score_all(chain.reward, ids, chain.tok, chain.rt).tolist()
        order = np.random.default_rng(n).permutation(most).tolist()
        columns = dict(responses=row["responses"], ranks=row["ranks"], scores=scores)
        if "grades" in row:
            columns["grades"] = row["grades"]
        items.append(dict(kind=row.get("kind", "all"), prompt=row["prompt"],
                          **{name: [column[i] for i in order] for name, column in columns.items()}))
    return dict(items=items, agreement=chain.runs.get("comparisons", {}).get("agreement"))


def flags(path):
    """The flags of the run that wrote a checkpoint or a state; {} if it is not there."""
    try:
        found = torch.load(path, weights_only=True) if path.exists() else dict(run={})
        return found.get("config") or found["run"]
    except Exception:                                 # broken bytes can raise anything
        note_once(f"{path} is broken and left out")
        return {}


@torch.no_grad()
def along(chain, path):
    """Right and wrong answers in the same words: the reward model's score after each token, and
    that of a textbook one (without the frozen language model) where a folder has it."""
    if not chain.reward or not Path(path).exists():
        return None
    models = dict(ours=chain.reward)
    textbook = chain.folder / "textbook.pt"
    if textbook.exists():
        models["textbook"], *_ = load(textbook, chain.rt, "reward", chain.tok)
    items, T = [], chain.reward.config.block_size
    for row in first_of_kinds(read_comparisons(path), 3):
        answers = []
        for response in row["responses"]:             # the right one comes first
            ids = encode_answer(chain.tok, row["prompt"], response, T)
            start = len(chain.tok.encode_chat(row["prompt"], reply=True)[0])
            # the model has seen only whole answers: each beginning gets an end to be scored
            parts = [ids[:n] + [chain.tok.end] for n in range(start + 1, len(ids))]
            answers.append(dict(
                tokens=[chain.piece(id) for id in ids[start:-1]],
                scores={name: [round(v, 3) for v in score(m, parts, chain.tok, chain.rt).tolist()]
                        for name, m in models.items()}))
        items.append(dict(kind=row.get("kind", "all"), prompt=row["prompt"], answers=answers))
    return dict(items=items, models=list(models))


def logs(folder):
    """The logs of all stages: {stage: rows}. Of PPO's, those with a `split` are evaluations."""
    return {stage: read_log(Path(folder, f"{stage}.jsonl")) for stage in STAGES}


def prompts(chain, path):
    """Prompts that no stage was trained on: those of a file, else held-out ones of PPO or SFT."""
    if Path(path).exists():
        return read_prompts(path)
    asked = chain.read("ppo", "data", read_prompts) or chain.read("sft", "data", read_prompts)
    return split(asked)[1] if asked else None
