"""What the lecture State of GPT (Karpathy 2023) and InstructGPT (Ouyang et al. 2022) say, and which
of it holds in the town: a table with a row for each claim.

reads   the folders of lab/seeds.py, out/seed0 …
writes  its runs in a folder `experiments` in each of them, and the table on the screen

    python -m lab.seeds --seeds=3               # first: run the chains
    python -m lab.claims --what=compute,agree   # some rows
    python -m lab.claims                        # all but those below, hours on a laptop
    python -m lab.claims --what=size,strength   # these train models up to ten times as large

Each row has the claim with its source, when it holds in a seed, and our figures: the median over
the seeds [least, most]. A claim holds if it holds in every seed. Finished runs are not repeated;
after a change of the code or the chains, delete the folders.
"""

from dataclasses import dataclass
from itertools import combinations, pairwise, zip_longest
from random import Random
from textwrap import wrap

import numpy as np

from checkpoint import load_checkpoint
from common import Common, Runtime, parse_config, read_json
from compare import agreement, ceiling
from data.formats import read_comparisons, read_demonstrations, read_prompts
from data.town import RUDE, write_jsonl
from lab import chains, experiments
from lab.chains import chosen, finished, for_each, right, spread
from lab.compare_methods import flops
from lessons.ratings import rate
from view import views


@dataclass
class Config(chains.Config):
    what: str = ("compute,completes,few_shot,unlocks,labels,few_good,rating,ranks,agree,"
                 "comparisons,starts,stages,constraint,entropy,openings,ptx,part,far")  # which rows


CLAIMS = {}                    # {name: (function, format, rule)}


def claim(form, rule):
    """The docstring is the claim. The function gives its figures for one chain, {label: figure};
    rule(*figures) says whether it holds there."""
    def add(figures):
        CLAIMS[figures.__name__] = figures, form, rule
        return figures
    return add


# ---- what the claims share ------------------------------------------------------------------

def fine_tune(chain, name, **flags):
    """SFT from the pretrained model: what the scoreboard says of experiments/<name>.pt."""
    return answers(chain, name, chain.run("sft.py", f"{name}.pt", **flags))[0]


def answers(chain, name, *models):
    """What the scoreboard says of models, without reward model and text."""
    return chain.examine(name, *models, reward="", text="")[1]


def accuracy(chain, name, **data):
    """Train a reward model, with all comparisons unless `data` has others. Its accuracy on the
    chain's held-out pairs. (Not the chain's own: rows compare what one machine has trained.)"""
    out = chain.run("reward.py", f"{name}.pt", **data)
    board, _ = chain.examine(name, chain / "sft.pt", reward=out, n_prompts=1, text="", contrasts="")
    return board["reward_model"]["accuracy"]


def grades(models):
    """{label: model} -> {label: its grade}"""
    return {label: model["grade"][0] for label, model in models.items()}


def stored(chain, name, rows):
    """A file with these rows among the runs: its path."""
    path = chain / "experiments" / f"{name}.jsonl"
    write_jsonl(path, rows)
    return path


# ---- other labelers -------------------------------------------------------------------------

def mixed(rows, seed):
    """Demonstrations of which half, drawn by chance, get a rude answer like the forum's."""
    rng, found = Random(seed), []
    for row in rows:
        *prompt, last = row["messages"]
        if rng.random() < 0.5:
            last = dict(last, content=rng.choice(RUDE))
        found.append(dict(row, messages=[*prompt, last]))
    return found


LABELERS = 40                  # InstructGPT's team was about as large


def rated(rows, by_one, seed):
    """The comparisons with ranks from ratings, one of each answer; equal ratings are tied. All
    answers to a prompt are rated by one labeler, or each by another."""
    rng, found = np.random.default_rng(seed), []
    shift, scale = rng.normal(0, 1, LABELERS), np.exp(rng.normal(0, 0.3, LABELERS))
    for row in rows:
        who = rng.permutation(LABELERS)[:len(row["responses"])]
        who = who[:1] if by_one else who
        ratings, _ = rate(np.array(row["grades"]), row["noise"], shift[who], scale[who], rng)
        _, ranks = np.unique(-ratings, return_inverse=True)
        order = np.argsort(ranks, kind="stable")
        found.append(dict(prompt=row["prompt"], ranks=ranks[order].tolist(),
                          responses=[row["responses"][i] for i in order]))
    return found


# ---- the claims -----------------------------------------------------------------------------

@claim("{:.1%}", lambda pretraining, *others: pretraining >= 0.98)
def compute(chain):
    """Pretraining is 98 to 99% of the compute (State of GPT; InstructGPT, 5.1: GPT-3 took 3,640
    petaflop/s-days, SFT 4.9, PPO 60). Shares of all FLOPs. Holds from 98% on."""
    spent = flops(chain, chain / "ppo.pt")
    return {stage: n / sum(spent.values()) for stage, n in spent.items()}


def prompted(chain):
    """The table of lessons/few_shot.py, facts and sums: {form: (share right, share right)}."""
    out = chain.run("-m lessons.few_shot", "few_shot.json")
    return {form: (shares["fact"][0], shares["sum"][0]) for form, shares in read_json(out).items()}


@claim("{:.1%}", lambda fact, add, sft: max(fact, add) <= 0.05 and sft > 0.9)
def completes(chain):
    """A base model completes documents, it does not answer (State of GPT). Greedy answers to bare
    questions that are right. Holds if these are at most 5%, and facts after SFT above 90%."""
    found = prompted(chain)
    fact, add = found["bare, 0 examples"]
    return {"pretrained, facts": fact, "pretrained, sums": add,
            "SFT, facts": found["SFT, no examples"][0]}


@claim("{:.1%}", lambda *found: all(
    few >= 0.7 > none and many > few - 0.05 for none, few, many in (found[:3], found[3:])))
def few_shot(chain):
    """Examples in the prompt make a base model do a task (State of GPT; Brown et al. 2020). Greedy
    answers that are right, facts or sums, whichever are fewer; bare, and with the marks "Item:" and
    "Solution:", which stand nowhere in its text. Holds if none are too few, four give 70% or more,
    and eight at most 5 points less than four."""
    found = prompted(chain)
    return {f"{form}, {n} examples": min(found[f"{form}, {n} examples"])
            for form in ("bare", "Item, Solution") for n in (0, 4, 8)}


@claim("{:.1%}", lambda knows, guesses: knows > 0.9 and guesses < 0.1)
def unlocks(chain):
    """Fine-tuning unlocks what pretraining has learned (State of GPT; Zhou et al. 2023). Facts
    about people of whom no demonstration speaks, greedy answers that are right. Holds if SFT is
    above 90%, and SFT from random weights below 10%."""
    return {"pretraining, then SFT": right(chain.models[1], "fact"),
            "SFT from random weights": right(fine_tune(chain, "scratch", init=""), "fact")}


@claim("{:.1%}", lambda *found: found[2] >= 0.9 * found[4] and found[2] > found[-1])
def labels(chain):
    """Thanks to pretraining few labels are enough (InstructGPT, 3.2: 13 thousand; Zhou et al. 2023:
    one thousand). Facts and sums, greedy answers that are right, by the number of demonstrations.
    Holds if 300 give nine tenths of what all 3,000 give, and more than 3,000 without
    pretraining."""
    rows, kinds = read_demonstrations("data/town/sft.jsonl"), ("fact", "sum")
    data = {n: stored(chain, f"demos_{n}", rows[:n]) for n in (30, 100, 300, 1000)}
    models = {f"{n:,} demonstrations": fine_tune(chain, f"sft_{n}", data=path)
              for n, path in data.items()} | {
        "3,000 demonstrations": chain.models[1],
        "300, random weights": fine_tune(chain, "scratch_300", init="", data=data[300]),
        "3,000, random weights": fine_tune(chain, "scratch", init="")}
    return {label: right(model, *kinds) for label, model in models.items()}


@claim("{:.2f}", lambda few, mixed, good: few > mixed)
def few_good(chain):
    """Few good demonstrations beat many mixed ones (State of GPT; Zhou et al. 2023). The grade of
    sampled answers after SFT. Holds if 500 of the labelers' are better than all 3,000 with half of
    the answers as bad as the forum's worst."""
    rows = read_demonstrations("data/town/sft.jsonl")
    few = stored(chain, "demos_good", rows[:500])
    many = stored(chain, "demos_mixed", mixed(rows, chain.seed))
    return grades({"500 good": fine_tune(chain, "sft_good", data=few),
                   "3,000 mixed": fine_tune(chain, "sft_mixed", data=many),
                   "3,000 good": chain.models[1]})


@claim("{:.3f}", lambda rankings, one, many: rankings > many)
def rating(chain):
    """Comparing is easier than rating (Christiano et al. 2017; State of GPT: than writing). Each of
    the same answers is judged once, with the same noise. Ratings from 1 to 7 are by 40 labelers
    with own shifts (deviation 1) and scales (from .6 to 1.8), and become ranks. The reward model's
    accuracy on held-out rankings. Holds if rankings beat ratings by different labelers."""
    rows = read_comparisons(chain / "comparisons.jsonl")
    one, many = (stored(chain, f"ratings_{by}", rated(rows, by == "one", chain.seed))
                 for by in ("one", "many"))
    return {"rankings": accuracy(chain, "reward_all"),
            "ratings, one labeler a prompt": accuracy(chain, "reward_one", data=one),
            "ratings, one labeler an answer": accuracy(chain, "reward_many", data=many)}


@claim("{:.3f}", lambda two, four, nine: two < four < nine)
def ranks(chain):
    """K answers ranked at once give K (K - 1) / 2 pairs (InstructGPT, 3.5: K = 4 to 9). The reward
    model's accuracy after 1,500 labeled prompts. Holds if each larger K gives more."""
    data = {k: chain.run("compare.py", f"compared_{k}.jsonl", k=k, n_prompts=1500)
            for k in (2, 4, 9)}
    return {f"K = {k}": accuracy(chain, f"reward_k{k}", data=path) for k, path in data.items()}


@claim("{:.3f}", lambda labelers, model, ceiling: model >= labelers)
def agree(chain):
    """Two labelers agree on 73% of the pairs (InstructGPT, 3.4; here the noise is set so), and the
    reward model agrees with them as often (4.1: 72.4%). Holds if it does so at least as often. A
    perfect reward model reaches the ceiling."""
    gaps = np.array([(a - b) / row["noise"] for row in read_comparisons(chain / "comparisons.jsonl")
                     for a, b in combinations(row["grades"], 2)])
    return {"two labelers": agreement(gaps, 1),
            "reward model": chain.board["reward_model"]["accuracy"], "ceiling": ceiling(gaps)}


@claim("{:.3f}", lambda *found: all(b - a >= 0.01 for a, b in pairwise(found)))
def comparisons(chain):
    """More comparisons make a better reward model (Stiennon et al. 2020, 4.3: +1.1 points each time
    they double). Accuracy, by the number of prompts. Holds if each doubling adds .01 or more: the
    same training on another CPU differs by up to .007."""
    rows = read_comparisons(chain / "comparisons.jsonl")
    data = {part: stored(chain, f"comparisons_{part}", rows[:len(rows) // part])
            for part in (8, 4, 2)}
    return {f"1/{part} of the prompts": accuracy(chain, f"reward_{part}", data=path)
            for part, path in data.items()} | {
                "all of the prompts": accuracy(chain, "reward_all")}


@claim("{:.3f}", lambda sft, pretrained, *others: abs(sft - pretrained) <= 0.02)
def starts(chain):
    """It matters little whether the reward model starts from the pretrained or from the SFT model
    (InstructGPT, C.2). Accuracy. Holds if they are at most .02 apart."""
    labels = "SFT", "pretrained", "random weights", "SFT, no log-probabilities"
    return {label: row[0] for label, row in zip(labels, experiments.starts(chain).values())}


@claim("{:.2f}", lambda *found: found[-1] > max(found[:-1]))
def stages(chain):
    """Any stage can be skipped, all three do best (State of GPT: RLHF is preferred to SFT, and SFT
    to base models). The grade of sampled answers; the pretrained model has 4 examples before the
    question. Holds if all three beat every other combination."""
    # a learning rate of 0 leaves random weights
    nothing = fine_tune(chain, "random", init="", ptx=0, lr=0, steps=1)
    only_sft = fine_tune(chain, "scratch", init="")
    only_ppo, no_pretraining, no_sft = answers(chain, "stages", *(
        chain.run("rlhf_ppo.py", f"ppo_{name}.pt", init=init) for name, init in (
            ("random", "experiments/random.pt"), ("scratch", "experiments/scratch.pt"),
            ("base", "pretrain.pt"))))
    base, sft, all_three = chain.models
    return grades({
        "none": nothing, "PPO": only_ppo, "SFT": only_sft, "SFT, PPO": no_pretraining,
        "pretraining": base, "pretraining, PPO": no_sft, "pretraining, SFT": sft,
        "all three": all_three})


@claim("{:.2f}", lambda best, end, score, last_score, with_penalty, *ours: (
    end <= best - 0.5 and last_score > score and with_penalty > best - 0.5))
def constraint(chain):
    """Without the KL penalty the policy exploits the reward model (InstructGPT, 3.5; Gao et al.
    2022). 24 iterations with a textbook reward model, held-out prompts. Holds if without the
    penalty the grade ends .5 or more below its best and the score higher than there, and with it
    (β = .1) the grade does not fall so far."""
    runs = {}
    for label, (_, score, grade) in experiments.overoptimise(chain).items():
        runs.setdefault(label.rpartition(",")[0], []).append((grade, score))
    free = runs["textbook, β = 0"]
    (grade, score), (last_grade, last_score) = max(free), free[-1]
    return {"β = 0: best grade": grade, "β = 0: grade at the end": last_grade,
            "β = 0: score at the best grade": score, "β = 0: score at the end": last_score,
            "β = .1: grade at the end": runs["textbook, β = 0.1"][-1][0],
            "our reward model, β = 0": runs["ours, β = 0"][-1][0],
            "our reward model, β = .1": runs["ours, β = 0.1"][-1][0]}


@claim("{:.3f}", lambda pretrained, sft, ppo: pretrained > sft > ppo)
def entropy(chain):
    """RLHF loses entropy, base models are more diverse (State of GPT). Answers at temperature .7,
    nats per token. Holds if it falls from the pretrained to the SFT model, and again with PPO."""
    return {label: model["entropy"]
            for label, model in zip(("pretrained", "SFT", "PPO"), chain.models)}


@claim("{:.1f}", lambda pretrained, sft, ppo: pretrained > sft > ppo)
def openings(chain):
    """RLHF makes answers alike (mode collapse; State of GPT: use a base model where diversity
    counts). Different first three words among 100 answers to one prompt at temperature .7, the mean
    over a prompt of each kind; the pretrained model has examples before the question. Holds if they
    become fewer from the pretrained to the SFT model, and again with PPO."""
    found = views.openings(views.Chain(chain.folder, Runtime(Common())),
                           read_prompts("data/town/test.jsonl"))
    return {stage: float(np.mean([len(view["counts"][stage]) for view in found]))
            for stage in ("pretrain", "sft", "ppo")}


SIZES = {"a quarter": dict(n_embd=64, n_head=1), "equal": dict(),
         "four times": dict(n_embd=256, n_head=4, lr=4e-3)}


@claim("{:.2f}", lambda a, b, c, x, y, z: a < b < c and x < y < z)
def strength(chain):
    """The reward model should be at least as strong as the policy (Huyen 2023 on InstructGPT, whose
    reward model has 6B weights for a policy of up to 175B). Textbook reward models from pretrained
    models of a quarter, one and four times the weights: the grade after PPO, and right above wrong
    answers in the same words. Holds if both rise with the size."""
    grade, apart = {}, {}
    for i, (label, shape) in enumerate(SIZES.items()):
        base = chain.run("pretrain.py", f"pretrain_size{i}.pt", **shape) if shape else "pretrain.pt"
        reward = chain.run("reward.py", f"reward_size{i}.pt", init=base, lm="")
        out = chain.run("rlhf_ppo.py", f"ppo_size{i}.pt", reward=reward)
        board, (model,) = chain.examine(f"size{i}", out, reward=reward, text="")
        grade[f"grade, {label}"] = model["grade"][0]
        apart[f"right > wrong, {label}"] = board["contrasts"]["fact"][0]
    return grade | apart


@claim("{:.2f}", lambda large, base, ppo: ppo > large > base)
def size(chain):
    """A small model with RLHF is preferred to a larger base model (InstructGPT, 4.1: 1.3B to 175B).
    The grade of sampled answers. The larger one has ten times the weights, 4 examples before the
    question, and half of the learning rate (not tuned). Holds if PPO's grade is higher, and the
    larger base model better than the small one: else its size says nothing."""
    path = chain.run("pretrain.py", "big.pt", n_layer=7, n_head=5, n_embd=320, lr=4e-3)
    base, _, ppo = chain.models
    large, = answers(chain, "big", path)
    return grades({"base, ten times as large": large, "base": base, "PPO": ppo})


@claim("{:+.1%}", lambda without, shipped: 0 < without and shipped < without / 2)
def ptx(chain):
    """Pretraining text in PPO undoes the alignment tax (InstructGPT, 4.2 and eq. 2). The change of
    the loss on held-out text, against SFT. Holds if it rises without that text, and less than half
    as much with it."""
    out = chain.run("rlhf_ppo.py", "no_ptx.pt", ptx_coef=0)
    _, (before, without) = chain.examine("no_ptx", chain / "sft.pt", out, n_prompts=100, reward="",
                                         text="data/town/pretrain")
    _, sft, shipped = chain.models
    return {"--ptx_coef=0": without["text_loss"] / before["text_loss"] - 1,
            "as shipped": shipped["text_loss"] / sft["text_loss"] - 1}


@claim("{:.1%}", lambda full, last, lora: lora >= full - 0.05)
def part(chain):
    """A small part of the weights learns nearly as well as all (State of GPT; Hu et al. 2021). 200
    steps of SFT, greedy answers that are right, all kinds of prompt. Holds if LoRA of rank 4 is at
    most 5 points below all weights."""
    found = {}
    for label, method in {"all weights": "all:0.5", "last layer": "last1:1",
                          "LoRA": "lora4:4"}.items():
        out = chain.run("-m lessons.lora", f"part_{method.partition(':')[0]}.pt", methods=method)
        found[label] = right(*answers(chain, out.stem, out))
    return found


@claim("{:.1%}", lambda full, lora, sums, lora_sums: min(full - lora, sums - lora_sums) >= 0.05)
def far(chain):
    """All weights are needed when the task is far from the text (Biderman et al. 2024: LoRA learns
    less and forgets less). Answers with their words in reverse order, 600 steps of SFT, greedy
    answers that are right. Holds if all weights are at least 5 points above LoRA of rank 4."""
    out = chain.run("-m lessons.lora", "part_far.pt", far=True, steps=600,
                    methods="all:0.5,lora4:4")
    table = load_checkpoint(out)["metrics"]["table"]
    return {f"{label}, {what}": float(row[column].partition("%")[0]) / 100
            for what, column in (("facts", 2), ("sums", 3))
            for label, row in zip(("all weights", "LoRA"), table)}


# ---- the table ------------------------------------------------------------------------------

def show(name, found):
    """Print a row. found: for each seed, {label: figure}."""
    claim, form, rule = CLAIMS[name]
    left = [*wrap(" ".join(claim.__doc__.split()), 60), f"$ python -m lab.claims --what={name}"]
    cells = [f"{label:32}{spread([figures[label] for figures in found], form)}"
             for label in found[0]]
    held = [bool(rule(*figures.values())) for figures in found]
    verdict = ("HOLDS" if all(held) else "DOES NOT HOLD" if not any(held) else
               f"MIXED: in {sum(held)} of {len(held)} seeds")
    for a, b in zip_longest(left, [*cells, verdict], fillvalue=""):
        print(f"{a:62}{b}".rstrip())
    print(flush=True)


if __name__ == "__main__":
    config = parse_config(Config, __doc__)
    names, found = chosen(config.what, CLAIMS), finished(config)
    print(f"{'claim':62}{'figure':32}median [least, most]\n")
    for name in names:
        show(name, for_each(found, CLAIMS[name][0], config.jobs))
