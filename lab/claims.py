"""What the lecture State of GPT (Karpathy 2023) and InstructGPT (Ouyang et al. 2022) say, and which
of it holds in the town: a table with a row for each claim.

reads   the folders of lab/seeds.py, out/seed0 …
writes  its runs in a folder `experiments` in each of them, and the table on the screen

    python -m lab.seeds --seeds=3               # first: run the chains
    python -m lab.claims --what=compute,agree   # some rows
    python -m lab.claims                        # all of them but `size`, hours on a laptop
    python -m lab.claims --what=size            # first trains a model ten times as large

Each row has the claim with its source, when it holds in a seed, and our figures: the median over
the seeds [least, most]. A claim holds if it holds in every seed. Finished runs are not repeated;
after a change of the code or the chains, delete the folders.
"""

from dataclasses import dataclass
from itertools import combinations, pairwise, zip_longest
from random import Random
from textwrap import wrap

import numpy as np

from common import parse_config, read_json
from compare import agreement, ceiling
from data.formats import read_comparisons, read_demonstrations
from data.town import RUDE, write_jsonl
from lab import experiments
from lab.compare_methods import flops
from lab.experiments import chosen, examined, right, run, scoreboard
from lab.seeds import Chains, check_finished, for_each_seed, spread


@dataclass
class Config(Chains):
    what: str = ("compute,completes,few_shot,unlocks,few_good,rating,ranks,agree,comparisons,"
                 "starts,stages,constraint,entropy,ptx,part")         # which rows


# ---- what the claims share ------------------------------------------------------------------

def board_of(folder):
    """The chain's own scoreboard, and what it says of pretrain, sft and ppo."""
    board = read_json(folder / "scoreboard.json")
    return board, *board["models"].values()


def answers(folder, name, *models, **flags):
    """What the scoreboard says of other models: a list."""
    return examined(folder, name, *models, **dict(reward="", text="") | flags)


def fine_tune(seed, folder, name, **flags):
    """SFT from the pretrained model: the checkpoint, and what the scoreboard says of it."""
    out = run("sft.py", folder, f"{name}.pt", seed=seed, **flags)
    return out, *answers(folder, name, out)


def accuracy(seed, folder, name, **data):
    """Train a reward model, with all comparisons unless `data` has others. Its accuracy on the
    chain's held-out pairs. (Not the chain's own: rows compare what one machine has trained.)"""
    out = run("reward.py", folder, f"{name}.pt", seed=seed, **data)
    board = scoreboard(folder, name, folder / "sft.pt", reward=out, n_prompts=1, text="",
                       contrasts="")
    return board["reward_model"]["accuracy"]


def grades(models):
    """{label: model} -> {label: its grade}"""
    return {label: model["grade"][0] for label, model in models.items()}


def stored(folder, name, rows):
    """A file with these rows among the runs: its path."""
    path = folder / "experiments" / f"{name}.jsonl"
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


def rate(grades, noise, shift, scale, rng):
    """Ratings of answers with these true grades, seen with Gumbel's noise, as in compare.py:rank,
    less its mean. Each labeler has an own scale, so equal ratings do not mean the same."""
    seen = grades + noise * (rng.gumbel(size=len(grades)) - np.euler_gamma)
    return np.clip(np.rint(4 + shift + scale * (seen - 4)), 1, 7)


def rated(rows, by_one, seed):
    """The comparisons with ranks from ratings, one of each answer; equal ratings are tied. All
    answers to a prompt are rated by one labeler, or each by another."""
    rng, found = np.random.default_rng(seed), []
    shift, scale = rng.normal(0, 1, LABELERS), np.exp(rng.normal(0, 0.3, LABELERS))
    for row in rows:
        who = rng.permutation(LABELERS)[:len(row["responses"])]
        who = who[:1] if by_one else who
        ratings = rate(np.array(row["grades"]), row["noise"], shift[who], scale[who], rng)
        _, ranks = np.unique(-ratings, return_inverse=True)
        order = np.argsort(ranks, kind="stable")
        found.append(dict(prompt=row["prompt"], ranks=ranks[order].tolist(),
                          responses=[row["responses"][i] for i in order]))
    return found


# ---- the claims: (seed, folder) -> {label: figure}, their format, whether it holds ----------

def compute(seed, folder):
    """Pretraining is 98 to 99% of the compute (State of GPT; InstructGPT, 5.1: GPT-3 took 3,640
    petaflop/s-days, SFT 4.9, PPO 60). Shares of all FLOPs. Holds from 98% on."""
    spent = flops(folder, folder / "ppo.pt")
    shares = {stage: n / sum(spent.values()) for stage, n in spent.items()}
    return shares, "{:.1%}", shares["pretraining"] >= 0.98


def prompted(folder):
    """The table of lessons/few_shot.py: {form of the prompt: {kind: the share that is right}}."""
    out = run("-m lessons.few_shot", folder, "few_shot.json", shots="0,4")
    return {form: {kind: share for kind, (share, _) in shares.items()}
            for form, shares in read_json(out).items()}


def completes(seed, folder):
    """A base model completes documents, it does not answer (State of GPT). Questions about people,
    greedy answers that are right. Holds if these are below 10%, and after SFT above 90%."""
    found = prompted(folder)
    base, sft = (found[form]["fact"] for form in ("bare, 0 examples", "SFT, no examples"))
    return {"pretrained, the bare question": base, "SFT": sft}, "{:.1%}", base < 0.1 and sft > 0.9


def few_shot(seed, folder):
    """Examples in the prompt make a base model answer (State of GPT; Brown et al. 2020). Facts,
    sums, unknown people and wishes, greedy answers that are right, the mean of the four shares.
    Holds if examples help both the bare question and the one in the form of a forum's thread."""
    found = {form: np.mean(list(shares.values())) for form, shares in prompted(folder).items()}
    return found, "{:.1%}", all(found[f"{form}, 4 examples"] > found[f"{form}, 0 examples"]
                                for form in ("bare", "thread"))


def unlocks(seed, folder):
    """Fine-tuning unlocks what pretraining has learned (State of GPT; Zhou et al. 2023). Facts
    about people of whom no demonstration speaks, greedy answers that are right. Holds if SFT is
    above 90%, and SFT from random weights below 10%."""
    _, scratch = fine_tune(seed, folder, "scratch", init="")
    knows, guesses = right(board_of(folder)[2], "fact"), right(scratch, "fact")
    found = {"pretraining, then SFT": knows, "SFT from random weights": guesses}
    return found, "{:.1%}", knows > 0.9 and guesses < 0.1


def few_good(seed, folder):
    """Few good demonstrations beat many mixed ones (State of GPT; Zhou et al. 2023). The grade of
    sampled answers after 800 steps of SFT. Holds if 500 of the labelers' are better than all 3,000
    with half of the answers as bad as the forum's worst."""
    rows = read_demonstrations("data/town/sft.jsonl")
    few = stored(folder, "demos_good", rows[:500])
    many = stored(folder, "demos_mixed", mixed(rows, seed))
    found = grades({"500 good": fine_tune(seed, folder, "sft_good", data=few)[1],
                    "3,000 mixed": fine_tune(seed, folder, "sft_mixed", data=many)[1],
                    "3,000 good": board_of(folder)[2]})
    return found, "{:.2f}", found["500 good"] > found["3,000 mixed"]


def rating(seed, folder):
    """Comparing is easier than rating (Christiano et al. 2017; State of GPT: than writing). Each of
    the same answers is judged once, with the same noise. Ratings from 1 to 7 are by 40 labelers
    with own shifts (deviation 1) and scales (from .6 to 1.8), and become ranks. The reward model's
    accuracy on held-out rankings. Holds if rankings beat ratings by different labelers."""
    rows = read_comparisons(folder / "comparisons.jsonl")
    found = {"rankings": accuracy(seed, folder, "reward_all")}
    for by, each in (("one", "a prompt"), ("many", "an answer")):
        data = stored(folder, f"ratings_{by}", rated(rows, by == "one", seed))
        found[f"ratings, one labeler {each}"] = accuracy(seed, folder, f"reward_{by}", data=data)
    return found, "{:.3f}", found["rankings"] > found["ratings, one labeler an answer"]


def ranks(seed, folder):
    """K answers ranked at once give K (K - 1) / 2 pairs (InstructGPT, 3.5: K = 4 to 9). The reward
    model's accuracy after 1,500 labeled prompts. Holds if each larger K gives more."""
    found = {}
    for k in (2, 4, 9):
        data = run("compare.py", folder, f"compared_{k}.jsonl", k=k, n_prompts=1500, seed=seed)
        found[f"K = {k}"] = accuracy(seed, folder, f"reward_k{k}", data=data)
    return found, "{:.3f}", all(a < b for a, b in pairwise(found.values()))


def agree(seed, folder):
    """Two labelers agree on 73% of the pairs (InstructGPT, 3.4; here the noise is set so), and the
    reward model agrees with them as often (4.1: 72.4%). Holds if it does so at least as often. A
    perfect reward model reaches the ceiling."""
    rows = read_comparisons(folder / "comparisons.jsonl")
    gaps = np.array([(a - b) / row["noise"] for row in rows
                     for a, b in combinations(row["grades"], 2)])
    found = {"two labelers": agreement(gaps, 1),
             "reward model": board_of(folder)[0]["reward_model"]["accuracy"],
             "ceiling": ceiling(gaps)}
    return found, "{:.3f}", found["reward model"] >= found["two labelers"]


def comparisons(seed, folder):
    """More comparisons make a better reward model (Stiennon et al. 2020, 4.3: +1.1 points each time
    they double). Accuracy, by the number of prompts. Holds if each doubling adds .01 or more: the
    same training on another CPU differs by up to .007."""
    rows, found = read_comparisons(folder / "comparisons.jsonl"), {}
    for part in (8, 4, 2):
        data = stored(folder, f"comparisons_{part}", rows[:len(rows) // part])
        found[f"1/{part} of the prompts"] = accuracy(seed, folder, f"reward_{part}", data=data)
    found["all of the prompts"] = accuracy(seed, folder, "reward_all")
    return found, "{:.3f}", all(b - a >= 0.01 for a, b in pairwise(found.values()))


def starts(seed, folder):
    """It matters little whether the reward model starts from the pretrained or from the SFT model
    (InstructGPT, C.2). Accuracy. Holds if they are at most .02 apart."""
    labels = "SFT", "pretrained", "random weights", "SFT, no log-probabilities"
    rows = experiments.starts(seed, folder).values()
    found = {label: row[0] for label, row in zip(labels, rows)}
    return found, "{:.3f}", abs(found["SFT"] - found["pretrained"]) <= 0.02


def stages(seed, folder):
    """Any stage can be skipped, all three do best (State of GPT: RLHF is preferred to SFT, and SFT
    to base models). The grade of sampled answers; the pretrained model has 4 examples before the
    question. Holds if all three beat every other combination."""
    # a learning rate of 0 leaves random weights
    random, nothing = fine_tune(seed, folder, "random", init="", ptx=0, lr=0, steps=1)
    raw, only_sft = fine_tune(seed, folder, "scratch", init="")
    policies = dict(random=random, scratch=raw, base="pretrain.pt")
    trained = [run("rlhf_ppo.py", folder, f"ppo_{name}.pt", init=init, seed=seed)
               for name, init in policies.items()]
    only_ppo, no_pretraining, no_sft = answers(folder, "stages", *trained)
    _, base, sft, all_three = board_of(folder)
    found = grades({
        "none": nothing, "PPO": only_ppo, "SFT": only_sft, "SFT, PPO": no_pretraining,
        "pretraining": base, "pretraining, PPO": no_sft, "pretraining, SFT": sft,
        "all three": all_three})
    return found, "{:.2f}", max(found, key=found.get) == "all three"


def constraint(seed, folder):
    """Without the KL penalty the policy exploits the reward model (InstructGPT, 3.5; Gao et al.
    2022). 60 iterations with --kl_coef=0, held-out prompts. Holds if at the end the score is higher
    than where the grade was best, and the grade at least .2 lower."""
    rows = experiments.free(seed, folder)
    best, last = max(rows, key=lambda row: row["grade"]), rows[-1]
    found = {"grade, at its best": best["grade"], "score, then": best["score"],
             "grade, at the end": last["grade"], "score, at the end": last["score"]}
    return found, "{:.2f}", last["score"] > best["score"] and last["grade"] <= best["grade"] - 0.2


def entropy(seed, folder):
    """RLHF loses entropy, base models are more diverse (State of GPT). Answers at temperature .7,
    nats per token. Holds if it falls from the pretrained to the SFT model, and again with PPO."""
    pretrained, sft, ppo = (model["entropy"] for model in board_of(folder)[1:])
    return dict(pretrained=pretrained, SFT=sft, PPO=ppo), "{:.3f}", pretrained > sft > ppo


def size(seed, folder):
    """A small model with RLHF is preferred to a larger base model (InstructGPT, 4.1: 1.3B to 175B).
    The grade of sampled answers. The larger one has ten times the weights, 4 examples before the
    question, and half of the learning rate (not tuned). Holds if PPO's grade is higher, and the
    larger base model better than the small one: else its size says nothing."""
    big = run("pretrain.py", folder, "big.pt", n_layer=7, n_head=5, n_embd=320, lr=4e-3, seed=seed)
    _, base, _, small = board_of(folder)
    large = "base, ten times as large"
    found = grades({large: answers(folder, "big", big)[0], "base": base, "PPO": small})
    return found, "{:.2f}", found["PPO"] > found[large] > found["base"]


def ptx(seed, folder):
    """Pretraining text in PPO undoes the alignment tax (InstructGPT, 4.2 and eq. 2). The change of
    the loss on held-out text, against SFT. Holds if it rises without that text, and less than half
    as much with it."""
    out = run("rlhf_ppo.py", folder, "no_ptx.pt", ptx_coef=0, seed=seed)
    before, without = answers(folder, "no_ptx", folder / "sft.pt", out, n_prompts=100,
                              text="data/town/pretrain")
    _, _, sft, shipped = board_of(folder)
    found = {"--ptx_coef=0": without["text_loss"] / before["text_loss"] - 1,
             "--ptx_coef=1": shipped["text_loss"] / sft["text_loss"] - 1}
    tax, left = found.values()
    return found, "{:+.1%}", 0 < tax and left < tax / 2


def part(seed, folder):
    """A small part of the weights learns nearly as well as all (State of GPT; Hu et al. 2021). 200
    steps of SFT, greedy answers that are right, all kinds of prompt. Holds if LoRA of rank 4 is at
    most 5 points below all weights."""
    methods, found = {"all weights": "all:0.5", "last layer": "last1:1", "LoRA": "lora4:4"}, {}
    for label, method in methods.items():
        out = run("-m lessons.lora", folder, f"part_{method.partition(':')[0]}.pt", seed=seed,
                  methods=method)
        found[label] = right(*answers(folder, out.stem, out))
    return found, "{:.1%}", found["LoRA"] >= found["all weights"] - 0.05


CLAIMS = {claim.__name__: claim for claim in (
    compute, completes, few_shot, unlocks, few_good, rating, ranks, agree, comparisons, starts,
    stages, constraint, entropy, size, ptx, part)}


# ---- the table ------------------------------------------------------------------------------

def verdict(held):
    """held: for each seed, whether the claim holds."""
    return ("HOLDS" if all(held) else "DOES NOT HOLD" if not any(held) else
            f"MIXED: in {sum(held)} of {len(held)} seeds")


def show(name, claim, found):
    """Print a row. found: for each seed, what the claim returned."""
    figures, forms, held = zip(*found)
    cells = [f"{label:32}{spread([f[label] for f in figures], forms[0])}" for label in figures[0]]
    left = [*wrap(" ".join(claim.__doc__.split()), 60), f"$ python -m lab.claims --what={name}"]
    for a, b in zip_longest(left, [*cells, verdict([bool(h) for h in held])], fillvalue=""):
        print(f"{a:62}{b}".rstrip())
    print(flush=True)


if __name__ == "__main__":
    config = parse_config(Config, __doc__)
    names = chosen(config.what, CLAIMS)
    check_finished(config)
    print(f"{'claim':62}{'figure':32}median [least, most]\n")
    for name in names:
        show(name, CLAIMS[name], for_each_seed(config, CLAIMS[name]))
