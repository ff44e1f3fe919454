"""Lesson: why labelers rank. Reward models from rankings, ratings, and pairs read together.

reads   out/sft.pt, out/comparisons.jsonl (the answers and their true grades)
writes  out/ratings.pt, the last of the reward models, and a table

    ranking   -log sigmoid(r_w - r_l) over the pairs: only the order counts         (reward.py)
    rating    (r - rating)^2, ratings from 1 to 7
    centred   the same, each labeler's ratings with mean 0 and deviation 1
    pair      both answers are read in one row: -log p(the first is better)

Twelve simulated labelers judge the same answers, one labeler for each prompt. Each has an own idea
of what a 7 is, and half of them look four times less carefully. `screened` leaves this half out, as
InstructGPT did (appendix B): before they begin, all rank the answers to the same 40 prompts, and
those stay who agree most with a researcher. A model is measured by the true grades, which no
labeler and no model sees.

laptop   python -m lessons.ratings
"""

import copy
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
import torch.nn.functional as F

from checkpoint import Run, load
from common import Common, Runtime, fail, parse_config, percent
from data.formats import check_sizes, read_comparisons, split
from lessons.training import update
from model import ScalarGPT
from optim import adamw, get_lr, set_lr
from reward import batches, encode_answer, ranking_loss, score, score_all


# ---- config ---------------------------------------------------------------------------------

@dataclass
class Config(Common):
    data: str = "out/comparisons.jsonl"  # compare.py's, with grades
    init: str = "out/sft.pt"             # where the reward models start, and whose log p they read
    methods: str = ("ranking:all,rating:all,centred:all,pair:all,"
                    "ranking:screened,rating:screened")
    out: str = "out/ratings.pt"          # its log and unfinished state stand beside it
    steps: int = 300                     # of each method; like the next ones as in reward.py
    batch_size: int = 8                  # prompts per step
    lr: float = 1e-3
    warmup: int = 30
    weight_decay: float = 0.1
    n_screen: int = 40                   # prompts on which the labelers are screened


# ---- the idea -------------------------------------------------------------------------------

LABELERS, CARELESS = 12, 4.0             # their number; the noise of every second one, times


def rate(grades, noise, shift, scale, rng):
    """Ratings of answers with these true grades, seen with Gumbel's noise, as in compare.py:rank,
    less its mean. Each labeler has an own scale, so equal ratings do not mean the same."""
    seen = grades + noise * (rng.gumbel(size=len(grades)) - np.euler_gamma)
    return np.clip(np.rint(4 + shift + scale * (seen - 4)), 1, 7), seen


def label(rows, people, seed):
    """What one of these people, drawn for each row, says of its answers: [(who, ratings,
    ranks)]."""
    rng, taste, found = np.random.default_rng(seed), np.random.default_rng(0), []
    shift, scale = taste.normal(0, 1, LABELERS), np.exp(taste.normal(0, 0.3, LABELERS))
    for row in rows:
        who = rng.choice(people)
        noise = row["noise"] * (CARELESS if who % 2 else 1)
        ratings, seen = rate(np.array(row["grades"]), noise, shift[who], scale[who], rng)
        found.append((who, ratings, (-seen).argsort().argsort()))
    return found


def agreement(ranks, others):
    """The share of pairs of answers that two rankings of each row put in the same order."""
    return np.mean([(a[i] < a[j]) == (b[i] < b[j]) for a, b in zip(ranks, others)
                    for i, j in combinations(range(len(a)), 2)])


def screen(rows, seed):
    """The half of the labelers who agree most with a researcher, who is careful, on these rows."""
    ranks = {who: [ranks for *_, ranks in label(rows, [who], (seed, who))]
             for who in range(LABELERS)}
    careful = [ranks for *_, ranks in label(rows, [0], (seed, LABELERS))]
    return sorted(ranks, key=lambda who: -agreement(ranks[who], careful))[:LABELERS // 2]


def centre(labels):
    """The ratings, each labeler's with mean 0 and deviation 1."""
    by = {who: np.concatenate([r for w, r, _ in labels if w == who]) for who, *_ in labels}
    return [(who, (r - by[who].mean()) / by[who].std().clip(min=1e-3), ranks)
            for who, r, ranks in labels]


def pairs_of(item, both=True):
    """Two answers in one row: the rows, and which answers i, j they have. Each pair in both orders,
    or in one of them."""
    K = len(item["ids"])
    order = [(i, j) for i in range(K) for j in range(K)
             if i != j and (both or (i < j) == (i + j) % 2)]
    return [item["ids"][i] + item["ids"][j] for i, j in order], torch.tensor(order).T


def method_loss(method, model, items, tok, rt):
    """The mean over the prompts of their answers' loss."""
    rows = [pairs_of(item, both=False)[0] if method == "pair" else item["ids"] for item in items]
    scores, losses = score(model, sum(rows, []), tok, rt).split([*map(len, rows)]), []
    for s, item in zip(scores, items):
        ranks = item["ranks"].to(rt.device)
        if method == "pair":
            _, (i, j) = pairs_of(item, both=False)
            losses.append(-F.logsigmoid(s * (ranks[j] - ranks[i]).sign()).mean())
        elif method == "ranking":
            losses.append(ranking_loss(s, ranks))
        else:
            losses.append(F.mse_loss(s, item["ratings"].to(rt.device)))
    return torch.stack(losses).mean()


def preferences(method, model, items, tok, rt):
    """For each item the (K, K) matrix by how much answer i is better than j."""
    rows = [pairs_of(item)[0] if method == "pair" else item["ids"] for item in items]
    scores = score_all(model, sum(rows, []), tok, rt).split([*map(len, rows)])
    if method != "pair":
        return [s[:, None] - s for s in scores]
    found = []
    for s, item in zip(scores, items):
        logits, (i, j) = torch.zeros(2 * [len(item["ids"])]), pairs_of(item)[1]
        logits[i, j] = s
        found.append(logits - logits.T)               # read in both orders
    return found


def accuracy(better, items):
    """The share of the pairs with different grades that are in the order of the grades, and n."""
    right = [0.5 + 0.5 * np.sign(b[i, j].item() * (item["grades"][i] - item["grades"][j]))
             for b, item in zip(better, items) for i, j in combinations(range(len(b)), 2)
             if item["grades"][i] != item["grades"][j]]
    return np.mean(right).item(), len(items)


if __name__ == "__main__":
    # ---- setup ------------------------------------------------------------------------------

    config = parse_config(Config, __doc__)
    rt = Runtime(config)
    methods = [method.split(":") for method in config.methods.split(",")]
    for method in methods:
        if len(method) != 2 or method[0] not in ("ranking", "rating", "centred", "pair") \
                or method[1] not in ("all", "screened"):
            fail(f"--methods: {':'.join(method)!r} is not like ranking:all or pair:screened")
    run = Run(config, rt, inputs=[config.data, config.init])
    base, tok, history = load(config.init, rt, "sft ppo")

    # ---- data -------------------------------------------------------------------------------

    T, rows = base.config.block_size // 2, read_comparisons(config.data)
    if not all({"grades", "noise"} <= {*row} for row in rows):
        fail(f"--data={config.data} has no true grades: this lesson needs compare.py's file")
    items = [dict(row, ids=[encode_answer(tok, row["prompt"], r, T) for r in row["responses"]])
             for row in rows]
    train, val = split(items)
    check_sizes(config.data, "prompts", train, val, max(config.batch_size, config.n_screen))
    plan = batches(train, config.batch_size, config.steps, config.seed)
    people = dict(all=[*range(LABELERS)], screened=screen(train[:config.n_screen], config.seed))
    print(f"{len(train):,} prompts to learn from, {len(val)} held out; screened labelers: "
          f"{', '.join(map(str, sorted(people['screened'])))} (the careful ones are even)")

    # ---- model and optimizer ----------------------------------------------------------------

    def prepare(method, who):
        """A new reward model, its optimizer, and the items with these people's labels."""
        torch.manual_seed(config.seed)
        model = ScalarGPT(base.config, lm=True)
        model.start_from(copy.deepcopy(base))
        model.lm.load_state_dict(base.state_dict())
        labels = label(train, people[who], config.seed)
        labels = centre(labels) if method == "centred" else labels
        data = [dict(item, ratings=torch.tensor(r - 4 * (method == "rating")).float(),
                     ranks=torch.tensor(ranks)) for item, (_, r, ranks) in zip(train, labels)]
        model = model.to(rt.device)
        return model, adamw(model, config.weight_decay), data

    done = dict(found=[])                             # the table so far
    model, optimizer, data = prepare(*methods[max(run.start - 1, 0) // config.steps])
    run.track(model=model, optimizer=optimizer, done=done)

    # ---- training loop: one method after the other ------------------------------------------

    for step in run.steps(config.steps * len(methods)):
        (method, who), s = methods[step // config.steps], step % config.steps
        if s == 0:
            model, optimizer, data = prepare(method, who)
            run.track(model=model, optimizer=optimizer, done=done)
        set_lr(optimizer, get_lr(s, config))
        chosen = [data[i] for i in plan[s]]
        loss = method_loss(method, model, chosen, tok, rt)
        loss.backward()
        update(run, model, optimizer, prompts=[item["ids"] for item in chosen])

        if (s + 1) % 100 == 0 or s + 1 == config.steps:
            run.log(step + 1, dict(method=f"{method}:{who}", loss=loss.item()))
        if s + 1 == config.steps:
            found = accuracy(preferences(method, model, val, tok, rt), val)
            done["found"].append((method, who, *found))
            run.say(f"    {method}, {who}: {percent(*found)}")

    # ---- save -------------------------------------------------------------------------------

    run.metrics = dict(table=done["found"])
    print(f"\n{'':12}{'labelers':12}held-out pairs in the order of the true grades")
    for method, who, *found in done["found"]:
        print(f"{method:12}{who:12}{percent(*found)}")
    run.finish("reward", model, tok, history)
