"""Experiments on finished chains: what SFT rehearses, starting points of the reward model, PPO with
a perfect reward model, each detail of PPO, a second round of comparisons, and over-optimisation.

reads   the folders of lab/seeds.py, out/seed0 …
writes  its runs in a folder `experiments` in each of them, and tables on the screen

    python -m lab.seeds --seeds=3                    # first: run the chains
    python -m lab.experiments --what=bound           # one experiment
    python -m lab.experiments                        # all of them, hours on a laptop
    python -m lab.experiments --jobs=2               # two seeds at a time, half the cores each

Finished runs are not repeated. After a change of the code or the chains, delete that folder. Tables
show the median over the seeds [least, most].
"""

from dataclasses import dataclass

from checkpoint import load_checkpoint
from common import parse_config
from lab import chains
from lab.chains import chosen, evaluations, finished, for_each, run_file, show


@dataclass
class Config(chains.Config):
    what: str = "rehearsal,starts,bound,details,rounds,overoptimise,reason"   # which experiments


TABLES = {}                    # {name: (function, title, columns)}


def experiment(title, **columns):
    """The function gives the rows of this table for one chain, {label: a row of values}."""
    def add(rows):
        TABLES[rows.__name__] = rows, title, columns
        return rows
    return add


REHEARSED = {
    "as shipped": {},
    "text that is about the test people, too": dict(text="data/town/pretrain"),
    "no text": dict(ptx=0),
    "random weights instead of pretrained ones": dict(init=""),
    "AdamW's usual epsilon, 1e-8": dict(eps=1e-8),
}


@experiment("SFT, facts about the test people", **{
    "right, greedy": "{:.1%}", "right, sampled": "{:.1%}", "grade": "{:.2f}"})
def rehearsal(chain):
    """Does fine-tuning make knowledge available? SFT with one thing changed at a time."""
    models = [chain.run("sft.py", f"rehearsal_{i}.pt", **flags)
              for i, flags in enumerate(REHEARSED.values())]
    _, found = chain.examine("rehearsal", *models, reward="")
    facts = [model["by_kind"]["fact"] for model in found]
    return {label: (fact["right"], fact["right_sampled"], model["grade"][0])
            for label, fact, model in zip(REHEARSED, facts, found)}


STARTS = {"SFT": ("sft", {}), "pretrained": ("pretrained", dict(init="pretrain.pt")),
          "scratch": ("scratch", dict(init="")),
          "SFT, without log-probabilities (InstructGPT's)": ("textbook", dict(lm=""))}


@experiment("the reward model on held-out pairs, and right above wrong in the same words", **{
    "accuracy": "{:.3f}", "/ ceiling": "{:.1%}", "facts": "{:.1%}", "sums": "{:.1%}"})
def starts(chain):
    """Four starting points of the reward model, with the same comparisons and steps."""
    rows = {}
    for label, (name, flags) in STARTS.items():
        out = chain.run("reward.py", f"reward_{name}.pt", **flags)
        board, _ = chain.examine(f"reward_{name}", chain / "sft.pt", reward=out, n_prompts=100,
                                 text="")
        rm, apart = board["reward_model"], board["contrasts"]
        rows[label] = (rm["accuracy"], rm["accuracy"] / rm["ceiling"], apart["fact"][0],
                       apart["sum"][0])
    return rows


@experiment("learned reward model and true grade as PPO's reward, on the test people", **{
    "grade": "{:.2f}", "share of the gain": "{:.1%}", "better": "{:.1%}", "KL": "{:.2f}"})
def bound(chain):
    """PPO with the true grade as its reward, as if the reward model were perfect."""
    best = chain.run("rlhf_ppo.py", "bound.pt", reward="data/town.py:grade", critic="reward.pt")
    _, (sft, *found) = chain.examine("bound", chain / "sft.pt", chain / "ppo.pt", best)
    start, most = sft["grade"][0], found[1]["grade"][0]
    labels = "PPO, the learned reward model", "PPO, the true grade"
    return {label: (m["grade"][0], (m["grade"][0] - start) / (most - start), m["better"], m["kl"])
            for label, m in zip(labels, found)}


DETAILS = {
    "as shipped": {},
    "no KL penalty": dict(kl_coef=0),
    "the policy's ratio is not clipped": dict(clip=1e9),
    "values are not clipped": dict(clip_value=1e9),
    "advantages are not whitened": dict(whiten_advantages=False),
    "the critic starts from the policy": dict(critic="sft.pt"),
    "lambda 1: no bootstrapping": dict(lam=1),
    "lambda 0: the critic alone": dict(lam=0),
    "1 epoch": dict(epochs=1),
    "4 epochs": dict(epochs=4),
    "1 minibatch of 128": dict(minibatch=128),
    "learning rate does not decay": dict(decay=False),
    "no penalty for a missing end": dict(missing_end=0),
    "no pretraining text": dict(ptx_coef=0),
    "samples at temperature 1": dict(temperature=1),
}


@experiment("8 iterations of PPO, held-out prompts", **{
    "change in grade": "{:+.2f}", "grade": "{:.2f}", "score": "{:.2f}", "KL": "{:.1f}",
    "ended": "{:.0%}"})
def details(chain):
    """A short run of PPO with one detail switched off at a time."""
    last = {}
    for label, flags in DETAILS.items():
        out = chain.run("rlhf_ppo.py", run_file("detail-steps=8", flags), steps=8, eval_every=1000,
                        n_eval=400, **flags)
        last[label] = evaluations(out)[-1]
    return {label: (row["grade"] - last["as shipped"]["grade"],
                    *(row[key] for key in ("grade", "score", "kl", "ended")))
            for label, row in last.items()}


@experiment("a second round of comparisons, on the test people", **{
    "grade": "{:.2f}", "better": "{:.1%}", "KL": "{:.2f}"})
def rounds(chain):
    """Compare the answers of PPO's model, train the reward model again on both rounds, and continue
    PPO with it. For comparison: PPO continued with the old reward model."""
    more = chain.run("compare.py", "comparisons2.jsonl", init="ppo.pt")
    again = chain.run("reward.py", "reward_round2.pt", data=f"{chain / 'comparisons.jsonl'},{more}")
    paths = [chain.run("rlhf_ppo.py", f"ppo_{name}.pt", init="ppo.pt", reference="sft.pt",
                       steps=18, reward=reward)
             for name, reward in (("same_reward", "reward.pt"), ("round2", again))]
    _, (_, *found) = chain.examine("rounds", chain / "sft.pt", chain / "ppo.pt", *paths)
    labels = ("PPO, the first round", "PPO goes on, the same reward model",
              "PPO goes on, the second reward model")
    return {label: (m["grade"][0], m["better"], m["kl"]) for label, m in zip(labels, found)}


FREE = dict(ptx_coef=0, lr=2e-4, decay=False, steps=24, eval_every=4)


@experiment("PPO with a constant learning rate and no text, held-out prompts", **{
    "sqrt(KL)": "{:.2f}", "score": "{:.2f}", "grade": "{:.2f}"})
def overoptimise(chain):
    """A textbook reward model, which reads the text alone, and ours, which also reads what the SFT
    model found probable; without and with the KL penalty. The score rises, and the grade may
    fall."""
    textbook, rows = chain.run("reward.py", "reward_textbook.pt", lm=""), {}
    for name, reward in (("textbook", textbook), ("ours", "reward.pt")):
        for beta in (0, 0.1):
            out = chain.run("rlhf_ppo.py", f"over-{name}-{beta}.pt", reward=reward, kl_coef=beta,
                            **FREE)
            rows |= {f"{name}, β = {beta}, iteration {row['step']}": (
                max(row["kl"], 0) ** 0.5, row["score"], row["grade"]) for row in evaluations(out)}
    return rows


SUMS = "lessons/reason.py:correct"
REASONED = {
    "GRPO, 200 solutions shown": {},
    "100 shown": dict(shown=100),
    "30 shown": dict(shown=30),
    "none shown": dict(shown=0),
    "REINFORCE, no baseline": dict(baseline=False),
    "the group's mean, not its deviation": dict(divide=False),
    "each token weighs the same": dict(by_answer=False),
    "16 updates, clipped": dict(epochs=4, minibatch=64),
    "16 updates, not clipped": dict(epochs=4, minibatch=64, clip=1e9),
    "pays if the number stands anywhere": dict(reward="lessons/reason.py:contains"),
    "pays for three equations": dict(reward="lessons/reason.py:form"),
}


@experiment("reasoning from a checkable reward, held-out sums of 3 to 5 numbers", **{
    "right before": "{:.1%}", "right": "{:.1%}", "6 numbers": "{:.1%}", "in steps": "{:.1%}",
    "tokens": "{:.1f}", "pass@1 before": "{:.1%}", "pass@1": "{:.1%}", "pass@32 before": "{:.1%}",
    "pass@32": "{:.1%}"})
def reason(chain):
    """What the start, each part of GRPO, and the reward are worth; 60 iterations of 256 answers."""
    runs = {label: chain.run("-m lessons.reason", run_file("reason", flags), **flags)
            for label, flags in REASONED.items()}
    ppo = chain.run("rlhf_ppo.py", "reason-ppo.pt", init="experiments/reason_start.pt",
                    data="experiments/reason_prompts.jsonl", reward=SUMS, watch=SUMS, steps=60,
                    batch_size=256, minibatch=64, temperature=1, kl_coef=0, ptx_coef=0,
                    missing_end=0)
    # only to examine it: nothing is learned at a learning rate of 0
    runs["PPO, with a critic"] = chain.run("-m lessons.reason", "reason-after_ppo.pt", init=ppo,
                                           demo_steps=1, demo_lr=0, steps=1, lr=0)
    found = {label: load_checkpoint(out)["metrics"] for label, out in runs.items()}
    found["PPO, with a critic"]["before"] = found["GRPO, 200 solutions shown"]["before"]
    return {label: (m["before"]["right"], *(m["after"][key] for key in (
        "right", "longer", "in_steps", "length")), m["before"]["pass@1"], m["after"]["pass@1"],
        m["before"]["pass@32"], m["after"]["pass@32"]) for label, m in found.items()}


if __name__ == "__main__":
    config = parse_config(Config, __doc__)
    names, found = chosen(config.what, TABLES), finished(config)
    for name in names:
        rows, title, columns = TABLES[name]
        show(f"{name}: {title}", columns, for_each(found, rows, config.jobs))
