"""The scoreboard: what each stage gained, on prompts that no stage was trained on.

reads   out/pretrain.pt, out/sft.pt, out/ppo.pt, out/reward.pt, data/town/test.jsonl
writes  a table, out/scoreboard.json

Every model answers every prompt twice. The greedy answer shows what the model knows (right). The
sampled answer is what a user gets (grade, better or worse than SFT's, length). The pretrained model
has never seen a chat, so a few examples stand in front of each question, as for GPT-3. Intervals
are 95% bootstrap intervals over the people, sums and tales that the prompts are about.

laptop                            python evaluate.py
while tuning: validation prompts  python evaluate.py --data=data/town/val.jsonl
"""

import math
import re
from collections import defaultdict, namedtuple
from dataclasses import dataclass
from itertools import pairwise, repeat
from pathlib import Path

import numpy as np
import torch

from answer import answer_text, complete, prompt_ids, respond, response_logp
from checkpoint import fingerprint, load
from common import (Basic, Runtime, check_writable, load_function, parse_config, to_json,
                    verdicts_of, writing)
from compare import ceiling
from data.corpus import Corpus
from data.formats import read_comparisons, read_demonstrations, read_prompts, split
from pretrain import evaluate as text_loss
from reward import encode_answer, encode_comparison, score_all, score_pairs


# ---- config ---------------------------------------------------------------------------------

@dataclass
class Config(Basic):
    data: str = "data/town/test.jsonl"   # held-out prompts
    models: str = "out/pretrain.pt,out/sft.pt,out/ppo.pt"   # one column each
    reward: str = "out/reward.pt"        # the reward model to examine; "": none
    comparisons: str = "out/comparisons.jsonl"   # to examine the reward model; "": none
    contrasts: str = "data/town/contrasts.jsonl"   # right and wrong answers in the same words
    examples: str = "data/town/sft.jsonl"   # the pretrained model's examples
    text: str = "data/town/pretrain"     # text: how much of it was forgotten? "": none
    judge: str = "data/town.py:judge"    # FILE.py:function(prompt, response) -> verdict; "": none
    out: str = "out/scoreboard.json"
    n_prompts: int = 800
    best_of: int = 16                    # samples per prompt for best-of-n; 0: none
    max_new_tokens: int = 64
    temperature: float = 0.7             # of the sampled answers; PPO's is the same


# ---- the answers ----------------------------------------------------------------------------

# One model's answers, a list each: the ids that it read before each of them, the ids that it wrote,
# these as text, and whether it ended the answer itself.
Answers = namedtuple("Answers", "ids replies texts ended")


# What the pretraining text writes before a question and before an answer.
NAMES = dict(user="Ida Holton asks:\n", assistant="Answer to Ida Holton:\n", system="")


def few_shot(tok, row, examples, rng, room):
    """ids: up to four examples of the prompt's kind, then the prompt. All have the form of the
    pretraining text, and each example is a document. At most `room` tokens."""
    def write(messages):                              # at once: "?\n" can be one token
        return [tok.eot] + tok.encode("\n".join(NAMES[m["role"]] + m["content"] for m in messages))

    ids = write([*row["prompt"], dict(role="assistant", content="")])
    same = [e for e in examples if e.get("kind") == row.get("kind", "all")] or examples
    for i in rng.permutation(len(same))[:4]:
        shot = write(same[i]["messages"])
        if len(shot) + len(ids) > room:
            break
        ids = shot + ids
    return ids[-room:]


def model_input(model, base, tok, rows, examples, max_new_tokens):
    """[[ids]]: what the model reads before each answer. base: whether it is a pretrained model."""
    T = model.config.block_size
    if not base:
        return [prompt_ids(tok, row["prompt"], T, max_new_tokens) for row in rows]
    return [few_shot(tok, row, examples, np.random.default_rng(i), T - min(max_new_tokens, T // 3))
            for i, row in enumerate(rows)]


def first_line(tok, ids):
    """A base model's answer ends at the first line break: the tokens up to and with that one."""
    breaks = [n for n, id in enumerate(ids) if b"\n" in tok.tokens[id]]
    return ids[:breaks[0] + 1] if breaks else ids


def answer(model, base, tok, ids, temperature, rt, config):
    """The model's Answers after each of [[ids]]. A chat model ends with <|end|>; a base model with
    <|endoftext|> or a line break."""
    stop = tok.eot if base else tok.end
    replies = complete(model, tok, ids, rt, config.max_new_tokens, temperature, stop,
                       seed=config.seed)
    if base:
        replies = [first_line(tok, reply) for reply in replies]
    texts = [answer_text(tok, reply, stop) for reply in replies]
    ended = [reply[-1] == stop or base and "\n" in text for reply, text in zip(replies, texts)]
    return Answers(ids, replies, [t.split("\n")[0] for t in texts] if base else texts, ended)


# ---- what can be measured without a judge ---------------------------------------------------

def distinct(texts):
    """Different pairs of words / all pairs: 1 means that no pair occurs twice."""
    pairs = [pair for text in texts for pair in pairwise(text.split())]
    return len(set(pairs)) / max(1, len(pairs))


def measure(model, ref_model, tok, answers, rt, config):
    """Length, diversity, entropy; with a ref_model also the KL divergence from it."""
    written = tok, answers.ids, answers.replies, rt, config.temperature
    logp, count = response_logp(model, *written)
    result = dict(ended=np.mean(answers.ended), distinct_2=distinct(answers.texts),
                  length=np.mean([len(tok.encode(text)) for text in answers.texts]),
                  entropy=-logp.sum() / max(1, count.sum()))
    if ref_model:
        ref_logp, _ = response_logp(ref_model, *written)
        result["kl"] = (logp - ref_logp).mean()
    return result


# ---- what the judge says --------------------------------------------------------------------

def interval(values, groups, rng, n=1000):
    """Mean and 95% bootstrap interval: (mean, low, high). Values of one group (answers about one
    person) are alike, so whole groups are drawn: as single values they would seem too certain."""
    _, group = np.unique(groups, return_inverse=True)
    total, count = np.bincount(group, np.asarray(values, dtype=float)), np.bincount(group)
    drawn = rng.integers(len(count), size=(n, len(count)))
    means = total[drawn].sum(1) / count[drawn].sum(1)
    return total.sum() / count.sum(), *np.percentile(means, [2.5, 97.5])


def groups_of(rows):
    """What each prompt is about; without that field, equal prompts are one group."""
    return [str(row.get("about", row["prompt"])) for row in rows]


def by_kind(rows, greedy, sampled):
    """{kind of prompt: the means of its verdicts}. greedy, sampled: the verdicts on the answers."""
    names, found = ("right", "right_sampled", "grade", "unsure", "refusal"), defaultdict(list)
    for row, g, s in zip(rows, greedy, sampled):
        found[row.get("kind", "all")].append(
            (g["right"], s["right"], s["grade"], g["unsure"], g["refusal"]))
    return {kind: dict(zip(names, np.mean(values, axis=0).tolist()), n=len(values))
            for kind, values in found.items()}


def compared(ours, theirs):
    """For how many prompts our grade is better, equal and worse: three shares."""
    sign = np.sign(np.subtract(ours, theirs))
    return dict(better=np.mean(sign > 0), equal=np.mean(sign == 0), worse=np.mean(sign < 0))


# ---- the reward model -----------------------------------------------------------------------

def examine_reward(model, tok, comparisons, rt, std=1.0):
    """A reward model on held-out comparisons: accuracy, by margin (calibration), length, kind. std:
    what its scores were divided by after the training; the loss saw margins times std."""
    T, pairs = model.config.block_size, []
    items = [item | dict(kind=row.get("kind", "all"))
             for row in comparisons if (item := encode_comparison(tok, row, T))]
    for item, score, i, j in score_pairs(model, items, tok, rt):
        n_tokens = torch.tensor([len(ids) for ids in item["ids"]])
        utility = score * math.nan if item["utility"] is None else item["utility"]
        better_minus_worse = [(x[i] - x[j]).tolist() for x in (score, n_tokens, utility)]
        pairs += zip(*better_minus_worse, repeat(item["kind"]))
    margin, longer, gap, kind = map(np.array, zip(*pairs))
    right, p = 0.5 + 0.5 * np.sign(margin), 1 / (1 + np.exp(-np.abs(margin) * std))
    lengths = {"longer was preferred": longer > 0, "equal": longer == 0,
               "shorter was preferred": longer < 0}
    return dict(
        pairs=len(right), accuracy=right.mean(),
        **{} if np.isnan(gap).any() else dict(ceiling=ceiling(gap)),
        by_margin=[dict(margin=[low, high], accuracy=right[m].mean(), predicted=p[m].mean())
                   for low, high in pairwise(np.quantile(np.abs(margin), [0, .25, .5, .75, 1]))
                   if (m := (np.abs(margin) >= low) & (np.abs(margin) <= high)).any()],
        by_length={name: right[m].mean() for name, m in lengths.items() if m.any()},
        by_kind={str(name): (right[kind == name].mean(), int((kind == name).sum()))
                 for name in np.unique(kind)})


def score_texts(reward, tok, prompts, texts, rt):
    """The learned score of each answer, (N,)."""
    T = reward.config.block_size
    return score_all(reward, [encode_answer(tok, p, t, T) for p, t in zip(prompts, texts)], tok, rt)


def best_of(scores, grades, sizes):
    """scores, grades (N, n): for each k in sizes, the best by score of the first k answers. Its KL
    from the model is at most log k - (k - 1)/k: less where equal answers are drawn."""
    out, each = [], np.arange(len(scores))
    for k in sizes:
        best = scores[:, :k].argmax(1)
        out.append(dict(n=k, kl=math.log(k) - (k - 1) / k, score=scores[each, best].mean(),
                        grade=None if grades is None else grades[each, best].mean()))
    return out


def sample_best_of(model, reward, judge, tok, prompts, rt, config):
    """Sample config.best_of answers to each prompt and keep the best of 1, 2, 4, … by score."""
    repeated = [prompt for prompt in prompts for _ in range(config.best_of)]
    texts = [text for text, _ in respond(model, tok, repeated, rt, config.max_new_tokens,
                                         config.temperature, seed=config.seed + 1)]
    scores, grades = score_texts(reward, tok, repeated, texts, rt).view(len(prompts), -1), None
    if judge:
        verdicts = verdicts_of(judge, repeated, texts, config.judge)
        grades = np.array([v["grade"] for v in verdicts]).reshape(scores.shape)
    return best_of(scores.numpy(), grades, [2**i for i in range(config.best_of.bit_length())])


# ---- the table ------------------------------------------------------------------------------

def cell(value, form="{:.2f}", interval="{} [{}, {}]", missing="-"):
    """A number, or a mean with its interval; missing if there is none."""
    values = value if isinstance(value, (list, tuple)) else [value]
    if None in values:
        return missing
    texts = [form.format(v) for v in values]
    return re.sub(r"\b0\.", ".", interval.format(*texts)) if len(texts) > 1 else texts[0]


# {name in the scoreboard: (what it is called, how it is printed)}; "{}" is the reference.
ROWS = dict(
    grade=("grade, 1 to 7", "{:.2f}"), better=("better than {}", "{:.1%}"),
    equal=("equal", "{:.1%}"), worse=("worse", "{:.1%}"), score=("learned score", "{:.2f}"),
    kl=("KL from SFT (nats)", "{:.2f}"), entropy=("entropy (nats per token)", "{:.2f}"),
    distinct_2=("distinct word pairs", "{:.3f}"), length=("length (tokens)", "{:.1f}"),
    ended=("ended by itself", "{:.1%}"), text_loss=("loss on held-out text", "{:.3f}"))


def show(board):
    """Print the scoreboard: a column for each model, then the reward model and best of n."""
    models, columns = board["models"], board["models"].values()
    kinds = {kind: [m["by_kind"][kind] for m in columns]
             for kind in next(iter(columns)).get("by_kind", ())}
    lines = [(f"{kind} ({found[0]['n']}): right greedy / sampled",
              [f"{100 * f['right']:.1f} / {100 * f['right_sampled']:.1f}%" for f in found])
             for kind, found in kinds.items()]
    lines += [(f"{kind}: grade", [cell(f["grade"]) for f in found])
              for kind, found in kinds.items()]
    if "fact" in kinds:
        lines.append(("known people called unknown",
                      [cell(f["unsure"], "{:.1%}") for f in kinds["fact"]]))
    lines += [(label.format(board["reference"]), [cell(m.get(key), form) for m in columns])
              for key, (label, form) in ROWS.items() if any(key in m for m in columns)]
    width, column = max(len(label) for label, _ in lines) + 1, max(17, *map(len, models)) + 1
    print(f"\n{board['prompts']} prompts from {board['data']}, sampled at temperature "
          f"{board['temperature']}\n")
    for label, cells in [("", models), *lines]:
        print(f"{label:{width}}" + "".join(f"{c:>{column}}" for c in cells))
    show_reward(board)


def show_reward(board):
    def shares(by_name):
        return ", ".join(f"{name} {cell(share)}" for name, share in by_name)

    if r := board.get("reward_model"):
        known = r["accuracy"] and r.get("ceiling")    # None: was not finite
        top = f", {r['accuracy'] / known:.1%} of the ceiling {known:.3f}" if known else ""
        print(f"\nreward model: accuracy {cell(r['accuracy'], '{:.3f}')} on {r['pairs']:,} "
              f"held-out pairs{top}\n    predicted and observed preference, by quarter of margin: "
              + shares((cell(b["predicted"]), b["accuracy"]) for b in r["by_margin"]))
        print("    accuracy by length: " + shares(r["by_length"].items()))
        print("    accuracy by kind: " + shares((kind, v[0]) for kind, v in r["by_kind"].items()))
    if "contrasts" in board:
        print("reward model: the right above the wrong answer in the same words: " + ", ".join(
            f"{kind} {100 * share:.1f}% of {n}" for kind, (share, n) in board["contrasts"].items()))
    for b in board.get("best_of_n", ()):
        grade = "" if b["grade"] is None else f", grade {b['grade']:.2f}"
        print(f"best of {b['n']:>2} from {board['reference']}: KL at most {cell(b['kl'])}, "
              f"score {cell(b['score'])}{grade}")
    same = [(name, m["grade_same"]) for name, m in board["models"].items() if "grade_same" in m]
    if same:
        print("on the same prompts: " + shares(same))


if __name__ == "__main__":
    config = parse_config(Config, __doc__)
    rt, rng = Runtime(config), np.random.default_rng(config.seed)
    check_writable(config.out)
    judge = load_function(config.judge) if config.judge else None
    rows = read_prompts(config.data)[:config.n_prompts]
    prompts = [row["prompt"] for row in rows]
    models, stages, tok, paths = {}, {}, None, config.models.split(",")
    short = [Path(path).stem for path in paths]       # sft, ppo; paths where two would be equal
    for path, name in zip(paths, short if len(set(short)) == len(paths) else paths):
        models[name], tok, history = load(path, rt, "pretrain sft ppo", tok)
        stages[name] = history[-1]["stage"]
    reference = next((name for name, stage in stages.items() if stage == "sft"), None)
    reward, unseen, contrasts, examples = None, [], [], []
    if config.reward:
        reward, _, (*_, trained) = load(config.reward, rt, "reward", tok)
        if config.comparisons and Path(config.comparisons).exists():
            share = trained["config"].get("held_out", 0.05)
            _, unseen = split(read_comparisons(config.comparisons), share=share)
        if Path(config.contrasts).is_file():
            contrasts = read_comparisons(config.contrasts)
    if config.examples and "pretrain" in stages.values():
        examples, _ = split(read_demonstrations(config.examples), "messages")
    if config.text:
        corpus = Corpus(config.text, tok, Path(config.out).parent / "cache",
                        fingerprint(config.text))
        T = min(model.config.block_size for model in models.values())
        *val_rows, _ = corpus.held_out_rows(T, 64)

    # ---- each model: its answers, and what the judge says about them ------------------------

    results, grades, groups = {}, {}, groups_of(rows)
    for name, model in models.items():
        base = stages[name] == "pretrain"
        asked = model_input(model, base, tok, rows, examples, config.max_new_tokens)
        greedy, sampled = (answer(model, base, tok, asked, temperature, rt, config)
                           for temperature in (0.0, config.temperature))
        ref_model = None if base or name == reference else models.get(reference)
        result = results[name] = measure(model, ref_model, tok, sampled, rt, config)
        if reward:
            result["score"] = score_texts(reward, tok, prompts, sampled.texts, rt).mean().item()
        if judge:
            verdicts = [verdicts_of(judge, prompts, answers.texts, config.judge)
                        for answers in (greedy, sampled)]
            grades[name] = [v["grade"] for v in verdicts[1]]
            result["grade"] = interval(grades[name], groups, rng)
            result["by_kind"] = by_kind(rows, *verdicts)
        if config.text:                               # what has a later stage forgotten?
            loss, _ = text_loss(model, val_rows, len(corpus.sources), 16, rt)
            result["text_loss"] = loss.item()
        print(f"{name}: answered {len(prompts)} prompts twice")

    # ---- better or worse, the reward model, best of n ----------------------------------------

    board = dict(data=config.data, prompts=len(rows), temperature=config.temperature,
                 reference=reference, models=results)
    for name in grades:
        if reference and name != reference:
            results[name] |= compared(grades[name], grades[reference])
    if unseen:
        board["reward_model"] = examine_reward(reward, tok, unseen, rt,
                                               trained["metrics"]["score_std"])
    if contrasts:
        board["contrasts"] = examine_reward(reward, tok, contrasts, rt)["by_kind"]
    if reward and reference and config.best_of:
        few = 200                                     # prompts, since each gets many answers
        board["best_of_n"] = sample_best_of(models[reference], reward, judge, tok, prompts[:few],
                                            rt, config)
        for name in grades:                           # to compare with best of n
            results[name]["grade_same"] = np.mean(grades[name][:few])

    # ---- save, show -------------------------------------------------------------------------

    with writing(config.out) as f:
        f.write(to_json(board, indent=1))
    show(board)
    print(f"\nsaved {Path(config.out)}")
