"""The scoreboard: what each stage gained, on prompts that no stage was trained on.

reads   out/pretrain.pt, out/sft.pt, out/ppo.pt, out/reward.pt, data/town/test.jsonl
writes  a table, out/scoreboard.json

Every model answers every prompt twice: greedily, which shows what it knows (right), and sampled,
which is how it is used (grade, win rate, length). The pretrained model can't be asked; it gets a
few examples in front of each question, as GPT-3 did. Intervals are 95% bootstrap intervals.

laptop   python evaluate.py
while you tune, use the validation people   python evaluate.py --data=data/town/val.jsonl
"""

import json
import math
import re
from collections import defaultdict
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import torch

from checkpoint import fingerprint, load_checkpoint
from common import Runtime, load_function, make_folder, parse_config, verdicts_of, writing
from compare import ceiling, chat_ids, continue_ids, respond
from data.corpus import Corpus
from data.formats import is_held_out, read_comparisons, read_demonstrations, read_prompts
from model import GPT, GPTConfig, ScalarGPT
from pretrain import evaluate as text_loss
from reward import encode_answer, right_pad, score_all
from rlhf_ppo import log_probs, response_mask
from tokenizer import Tokenizer


# ---------------------------------------------------------------------------------------------
# config

@dataclass
class Config:
    data: str = "data/town/test.jsonl"   # held-out prompts
    models: str = "out/pretrain.pt,out/sft.pt,out/ppo.pt"   # columns
    reward: str = "out/reward.pt"        # the reward model to examine; "": none
    comparisons: str = "out/comparisons.jsonl"
    contrasts: str = "data/town/contrasts.jsonl"   # right and wrong answers in the same words
    examples: str = "data/town/sft.jsonl"   # what the pretrained model is shown
    text: str = "data/town/pretrain"     # held-out text, for the alignment tax; "": none
    judge: str = "data/town.py:judge"    # FILE.py:function(prompt, response) -> {"grade", "right",
    #                                      "unsure", "refusal"}; "": none
    out: str = "out/scoreboard.json"
    n_prompts: int = 800
    best_of: int = 16                    # samples per prompt for best-of-n; 0: none
    ask: str = "sparrow asks:\n"         # how the pretraining text marks a question, and an answer:
    say: str = "mossy says:\n"           # so prompted, the pretrained model has a fair chance
    max_new_tokens: int = 64
    temperature: float = 0.7             # of the sampled answers, as in PPO
    seed: int = 0
    device: str = "auto"                 # auto: cuda, else cpu; mps when asked
    dtype: str = "auto"                  # auto: bfloat16 where it is fast, else float32
    debug: bool = False                  # show tracebacks


# ---------------------------------------------------------------------------------------------
# the idea

def interval(values, rng, n=1000):
    """Mean and 95% bootstrap interval: (mean, low, high)."""
    values = np.asarray(values, dtype=float)
    means = values[rng.integers(len(values), size=(n, len(values)))].mean(1)
    return values.mean(), *np.percentile(means, [2.5, 97.5])


def few_shot(tok, prompt, kind, examples, config, rng, room):
    """ids: a few dialogues of the same kind, each a document, then the prompt, ready to be answered
    in the form that the pretraining text has for that."""
    def write(messages):
        names = dict(user=config.ask, assistant=config.say, system="")
        return [tok.eot] + tok.encode("\n".join(names[m["role"]] + m["content"] for m in messages))

    ids = write(prompt) + tok.encode("\n" + config.say)
    same = [e for e in examples if e.get("kind") == kind] or examples
    for i in rng.permutation(len(same))[:4]:
        shot = write(same[i]["messages"])
        if len(shot) + len(ids) > room:
            break
        ids = shot + ids
    return ids[-room:]


def first_line(tok, ids):
    """A base model's answer ends with its line: the tokens up to the one that breaks it."""
    breaks = [n for n, id in enumerate(ids) if b"\n" in tok.tokens[id]]
    return ids[:breaks[0] + 1] if breaks else ids


@torch.no_grad()
def response_logp(model, tok, ids, replies, rt, temperature=1.0, batch_size=64):
    """log p(reply | ids) in nats, and how many tokens that is: two (N,) arrays. ids, replies:
    [[ids]], what the model read, and what it wrote."""
    model.eval()
    total, count = np.zeros(len(ids)), np.array([len(r) for r in replies])
    written = np.flatnonzero(count)
    for start in range(0, len(written), batch_size):
        part = written[start:start + batch_size]
        idx, _ = right_pad([ids[i] + replies[i] for i in part], tok.pad, rt.device)
        mask = response_mask([ids[i] for i in part], [replies[i] for i in part], rt.device)
        with rt.autocast():
            logp, _ = log_probs(model, idx, mask, temperature)
        rows = torch.nonzero(mask)[:, 0].cpu()
        total[part] = torch.zeros(len(part)).index_add(0, rows, logp.cpu()).numpy()
    return total, count


def distinct(texts, n=2):
    """Different n-grams of words / all n-grams: 1 means that nothing is said twice."""
    grams = [tuple(w[i:i + n]) for w in (t.split() for t in texts) for i in range(len(w) - n + 1)]
    return len(set(grams)) / max(1, len(grams))


def wins(ours, theirs):
    """Per prompt: 1 if ours has the better grade, 0.5 if equal."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    return (ours > theirs) + 0.5 * (ours == theirs)


def examine_reward(model, tok, rows, rt):
    """A reward model on held-out comparisons: accuracy, by margin (calibration), length, kind."""
    T = model.gpt.config.block_size
    flat = [encode_answer(tok, r["prompt"], text, T) for r in rows for text in r["responses"]]
    scores, lengths = iter(score_all(model, flat, tok, rt).tolist()), iter(map(len, flat))
    margin, longer, gaps, noise, kinds = [], [], [], [], []
    for r in rows:
        s, n = ([next(it) for _ in r["responses"]] for it in (scores, lengths))
        for a, b in combinations(range(len(s)), 2):
            if r["ranks"][a] != r["ranks"][b]:
                margin.append(s[a] - s[b])
                longer.append(n[a] - n[b])
                gaps.append(r["grades"][a] - r["grades"][b] if "grades" in r else math.nan)
                noise.append(r.get("noise", math.nan))
                kinds.append(r.get("kind", "all"))
    margin, longer, gaps, noise, kinds = map(np.array, (margin, longer, gaps, noise, kinds))
    right, p = (margin > 0) + 0.5 * (margin == 0), 1 / (1 + np.exp(-np.abs(margin)))
    out = dict(pairs=len(right), accuracy=right.mean())
    if not np.isnan(gaps).any():
        out["ceiling"] = ceiling(gaps / noise)
        clear = np.abs(gaps) >= 2
        if clear.any():
            out["clear_pairs"] = float(((margin * gaps)[clear] > 0).mean())
    bins = np.quantile(np.abs(margin), [0, .25, .5, .75, 1])
    out["by_margin"] = [dict(margin=[lo, hi], accuracy=right[m].mean(), predicted=p[m].mean())
                        for lo, hi in zip(bins, bins[1:])
                        if (m := (np.abs(margin) >= lo) & (np.abs(margin) <= hi)).any()]
    out["by_length"] = {name: right[m].mean() for name, m in
                        (("longer was preferred", longer > 0), ("equal", longer == 0),
                         ("shorter was preferred", longer < 0)) if m.any()}
    out["by_kind"] = {str(kind): (right[kinds == kind].mean(), int((kinds == kind).sum()))
                      for kind in np.unique(kinds)}
    return out


def best_of(scores, grades, sizes):
    """scores, grades (N, n): take the best of the first k by score. KL is log k - (k - 1)/k."""
    out = []
    for k in sizes:
        best = scores[:, :k].argmax(1)
        rows = np.arange(len(best))
        out.append(dict(n=k, kl=math.log(k) - (k - 1) / k, score=scores[rows, best].mean(),
                        grade=None if grades is None else grades[rows, best].mean()))
    return out


# ---------------------------------------------------------------------------------------------
# the table

def cell(value, form="{:.2f}"):
    """A number, or a mean with its interval; "-" where there is none."""
    if isinstance(value, (list, tuple)):
        return re.sub(r"\b0\.", ".", f"{form} [{form}, {form}]".format(*value))
    return "-" if value is None else form.format(value)


def show(board):
    """What evaluate.py found: a column for each model, then the reward model and best of n."""
    models, reference = board["models"], board["reference"]
    lines = []                                        # (label, [cells])
    judged = [m["by_kind"] for m in models.values() if "by_kind" in m]
    for kind in judged[0] if judged else ():
        found = [by_kind[kind] for by_kind in judged]
        lines.append((f"{kind} ({found[0]['n']}): right greedy / sampled",
                      [f"{100 * f['right']:.1f} / {100 * f['right_sampled']:.1f}%" for f in found]))
    for kind in judged[0] if judged else ():
        lines.append((f"{kind}: grade", [cell(by_kind[kind]["grade"]) for by_kind in judged]))
    if judged and "fact" in judged[0]:
        lines.append(("known people called unknown",
                      [cell(by_kind["fact"]["unsure"], "{:.1%}") for by_kind in judged]))
    for label, key, form in (("grade, 1 to 7", "grade", "{:.2f}"),
                             (f"win rate against {reference}", "win_rate", "{:.2f}"),
                             ("learned score", "score", "{:.2f}"),
                             ("KL from SFT (nats)", "kl", "{:.2f}"),
                             ("entropy (nats per token)", "entropy", "{:.2f}"),
                             ("distinct word pairs", "distinct_2", "{:.3f}"),
                             ("length (tokens)", "length", "{:.1f}"),
                             ("ended by itself", "ended", "{:.1%}"),
                             ("loss on held-out text", "text_loss", "{:.3f}")):
        if any(key in m for m in models.values()):
            lines.append((label, [cell(m.get(key), form) for m in models.values()]))
    width, column = max(len(label) for label, _ in lines) + 1, max(17, *map(len, models)) + 1
    print(f"\n{board['prompts']} prompts from {board['data']}, sampled at temperature "
          f"{board['temperature']}\n")
    for label, cells in [("", models), *lines]:
        print(f"{label:{width}}" + "".join(f"{c:>{column}}" for c in cells))

    if "reward_model" in board:
        r, top = board["reward_model"], ""
        if "ceiling" in r:
            top = f", {r['accuracy'] / r['ceiling']:.1%} of the ceiling {r['ceiling']:.3f}"
        if "clear_pairs" in r:
            top += f"; {100 * r['clear_pairs']:.1f}% right on pairs 2 grades apart"
        print(f"\nreward model: accuracy {r['accuracy']:.3f} on {r['pairs']:,} held-out pairs{top}")
        print("    predicted and observed preference, by quarter of margin: "
              + ", ".join(f"{b['predicted']:.2f} {b['accuracy']:.2f}" for b in r["by_margin"]))
        print("    accuracy by length: " + ", ".join(
            f"{k} {v:.2f}" for k, v in r["by_length"].items()))
        print("    accuracy by kind: " + ", ".join(
            f"{k} {share:.2f}" for k, (share, _) in r["by_kind"].items()))
    if "contrasts" in board:
        print("reward model: the right above the wrong answer in the same words: " + ", ".join(
            f"{k} {100 * share:.1f}% of {n}" for k, (share, n) in board["contrasts"].items()))
    for b in board.get("best_of_n", []):
        print(f"best of {b['n']:>2} from {reference}: KL {b['kl']:.2f}, score {b['score']:.2f}"
              + (f", grade {b['grade']:.2f}" if judged else ""))
    if judged and "best_of_n" in board:
        print("on the same prompts: " + ", ".join(
            f"{name} {m['grade_same']:.2f}" for name, m in models.items()))


if __name__ == "__main__":
    # -----------------------------------------------------------------------------------------
    # setup

    config = parse_config(Config, __doc__)
    rt, rng = Runtime(config), np.random.default_rng(config.seed)
    make_folder(config.out)
    judge = load_function(config.judge) if config.judge else None
    rows = read_prompts(config.data)[:config.n_prompts]
    prompts, kinds = [r["prompt"] for r in rows], [r.get("kind", "all") for r in rows]
    models, tok, paths = {}, None, config.models.split(",")
    names = {path: Path(path).stem for path in paths}
    if len(set(names.values())) < len(names):         # out/seed0/ppo.pt and out/seed1/ppo.pt
        names = {path: path for path in paths}
    for path in paths:
        ckpt = load_checkpoint(path, stage=("pretrain", "sft", "ppo"),
                               tokenizer=tok and tok.to_dict())
        tok = tok or Tokenizer.from_dict(ckpt["tokenizer"])
        model = GPT(GPTConfig(**ckpt["model_config"])).to(rt.device)
        model.load_state_dict(ckpt["model"])
        models[names[path]] = (model, ckpt["stage"])
    reference = next((n for n, (_, stage) in models.items() if stage == "sft"), None)
    reward = None
    if config.reward:
        ckpt = load_checkpoint(config.reward, stage="reward", tokenizer=tok.to_dict())
        reward = ScalarGPT.load(ckpt).to(rt.device)
        unseen = ckpt["config"].get("held_out", 0.05)             # of its comparisons

    # -----------------------------------------------------------------------------------------
    # the answers, greedy and sampled, and what the judge makes of them

    board = dict(data=config.data, prompts=len(rows), temperature=config.temperature,
                 reference=reference, models={})
    verdicts, has_base = {}, any(stage == "pretrain" for _, stage in models.values())
    examples = read_demonstrations(config.examples) if config.examples and has_base else []
    examples = [e for e in examples if not is_held_out(e["messages"])]
    for name, (model, stage) in models.items():
        base = stage == "pretrain"
        asked, stop = chat_ids(model, tok, prompts, config.max_new_tokens), tok.end
        if base:
            T, stop = model.config.block_size, tok.eot
            room = T - min(config.max_new_tokens, T // 3)
            asked = [few_shot(tok, p, k, examples, config, np.random.default_rng(i), room)
                     for i, (p, k) in enumerate(zip(prompts, kinds))]
        found = {}                                    # the sampled ones last: they are used below
        for way, heat in (("greedy", 0.0), ("sampled", config.temperature)):
            replies = continue_ids(model, tok, asked, rt, config.max_new_tokens, heat, stop,
                                   seed=config.seed)
            if base:
                replies = [first_line(tok, r) for r in replies]
            texts = [tok.decode([i for i in r if i != stop]) for r in replies]
            ended = [r[-1] == stop or base and "\n" in t for r, t in zip(replies, texts)]
            if base:
                texts = [t.split("\n")[0] for t in texts]
            if judge:
                found[way] = verdicts_of(judge, prompts, texts, config.judge)
        result = dict(ended=np.mean(ended), length=np.mean([len(tok.encode(t)) for t in texts]),
                      distinct_2=distinct(texts))
        logp, count = response_logp(model, tok, asked, replies, rt, config.temperature)
        result["entropy"] = -logp.sum() / max(1, count.sum())
        if reference and name != reference and not base:
            ref, _ = response_logp(models[reference][0], tok, asked, replies, rt,
                                   config.temperature)
            result["kl"] = (logp - ref).mean()
        if reward is not None:
            T = reward.gpt.config.block_size
            ids = [encode_answer(tok, p, t, T) for p, t in zip(prompts, texts)]
            result["score"] = score_all(reward, ids, tok, rt).mean().item()
        if judge:
            verdicts[name] = found
            result["grade"] = interval([v["grade"] for v in found["sampled"]], rng)
            by_kind = defaultdict(list)
            for kind, greedy, sampled in zip(kinds, found["greedy"], found["sampled"]):
                by_kind[kind].append((greedy["right"], sampled["right"], sampled["grade"],
                                      greedy["unsure"], greedy["refusal"]))
            result["by_kind"] = {
                kind: dict(zip(("right", "right_sampled", "grade", "unsure", "refusal"),
                               np.mean(by_kind[kind], axis=0).tolist()), n=len(by_kind[kind]))
                for kind in dict.fromkeys(kinds)}
        board["models"][name] = result
        print(f"{name}: answered {len(prompts)} prompts twice")

    # -----------------------------------------------------------------------------------------
    # win rates, the alignment tax, the reward model, best of n

    if judge and reference:
        base = [v["grade"] for v in verdicts[reference]["sampled"]]
        for name in models:
            if name != reference:
                ours = [v["grade"] for v in verdicts[name]["sampled"]]
                board["models"][name]["win_rate"] = interval(wins(ours, base), rng)
    if config.text:
        corpus = Corpus(config.text, tok, Path(config.out).parent / "cache",
                        fingerprint(config.text))
        T = min(m.config.block_size for m, _ in models.values())
        *val_rows, _ = corpus.held_out_rows(T, 128)
        for name, (model, _) in models.items():
            loss, _ = text_loss(model, val_rows, len(corpus.sources), 16, rt)
            board["models"][name]["text_loss"] = loss.item()
    if reward is not None and Path(config.comparisons).exists():
        held_out = [r for r in read_comparisons(config.comparisons)
                    if is_held_out(r["prompt"], unseen)]
        if held_out:
            board["reward_model"] = examine_reward(reward, tok, held_out, rt)
    if reward is not None and Path(config.contrasts).is_file():
        board["contrasts"] = examine_reward(reward, tok, read_comparisons(config.contrasts),
                                            rt)["by_kind"]
    if reward is not None and reference and config.best_of:
        model, some = models[reference][0], prompts[:200]
        many = [p for p in some for _ in range(config.best_of)]
        texts = [t for t, _ in respond(model, tok, many, rt, config.max_new_tokens,
                                       config.temperature, seed=config.seed + 1)]
        T = reward.gpt.config.block_size
        ids = [encode_answer(tok, p, t, T) for p, t in zip(many, texts)]
        scores = score_all(reward, ids, tok, rt).numpy().reshape(len(some), -1)
        grades = None
        if judge:
            grades = np.array([v["grade"] for v in verdicts_of(judge, many, texts, config.judge)])
            grades = grades.reshape(len(some), -1)
            for name in models:                       # so that they can be compared with best-of-n
                same = [v["grade"] for v in verdicts[name]["sampled"][:len(some)]]
                board["models"][name]["grade_same"] = np.mean(same)
        sizes = [2**i for i in range(config.best_of.bit_length())]    # 1, 2, 4, … up to it
        board["best_of_n"] = best_of(scores, grades, sizes)

    # -----------------------------------------------------------------------------------------
    # save, show

    out = Path(config.out)
    with writing(out) as f:
        json.dump(board, f, indent=1, default=float)
    show(board)
    print(f"\nsaved {out}")
