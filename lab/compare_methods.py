"""Which way from comparisons to a better model? Five, from the same SFT model and comparisons.

reads   the folders of lab/seeds.py, out/seed0 …: sft.pt, comparisons.jsonl, reward.pt, ppo.pt
writes  its runs in a folder `experiments` in each of them, and tables on the screen

    best of n            no training: 16 answers, of which the reward model chooses one
    rejection sampling   lessons/best_of_n.py
    DPO                  lessons/dpo.py: the only one without a reward model
    GRPO                 lessons/grpo.py
    PPO                  rlhf_ppo.py: the only one that rehearses pretraining text
    PPO, no text         the same without

Each method that trains has equally many trials, TRIALS, with seed 0. The one with the highest grade
on prompts about the validation people is run with the other seeds, too. The tables are about the
test people, of whom no trial has heard: the median over the seeds [least, most].

    python -m lab.seeds --seeds=3                # first: run the chains
    python -m lab.compare_methods                # the same command goes on where it was interrupted
    python -m lab.compare_methods --seeds=1 --trials=1     # a quick look
"""

import math
from dataclasses import dataclass
from functools import partial

import numpy as np

from answer import answer_text, respond
from checkpoint import load, load_checkpoint, load_reward, read_log
from common import Runtime, fail, parse_config
from data.formats import prompts_that_fit, read_comparisons, split
from data.town import grade, judge
from evaluate import compared
from lab import chains
from lab.chains import finished, for_each, run_file, right, show
from lessons import best_of_n


@dataclass
class Config(chains.Config):
    trials: int = 7            # how many of TRIALS; 1: the defaults


# ---- the runs -------------------------------------------------------------------------------

SCRIPTS = {"rejection sampling": "-m lessons.best_of_n", "DPO": "-m lessons.dpo",
           "GRPO": "-m lessons.grpo", "PPO": "rlhf_ppo.py", "PPO, no text": "rlhf_ppo.py"}
TRIALS = {
    "rejection sampling": [dict(), dict(lr=5e-4), dict(lr=1e-3), dict(lr=1e-4), dict(epochs=1),
                           dict(lr=5e-4, best_of=8, steps=8), dict(best_of=8, steps=8)],
    "DPO": [dict(), dict(lr=2e-4), dict(lr=1e-4), dict(lr=2.5e-5), dict(lr=2e-4, beta=0.1),
            dict(lr=2e-4, beta=1), dict(lr=1e-4, beta=1)],
    "GRPO": [dict(), dict(lr=2e-4), dict(lr=5e-5), dict(lr=2e-4, kl_coef=0.03),
             dict(lr=2e-4, normalise=False), dict(normalise=False), dict(kl_coef=0.2)],
    "PPO": [dict(), dict(lr=1e-3), dict(lr=2.5e-4), dict(kl_coef=0.05), dict(kl_coef=0.2),
            dict(lr=2.5e-4, kl_coef=0.2), dict(lam=1)],
}


def train(chain, method, flags):
    """The checkpoint of a run, which is made unless it is there. PPO's first trial is the chain's
    own."""
    if method == "PPO" and not flags:
        return chain / "ppo.pt"
    script = SCRIPTS[method]
    name = script.removesuffix(".py").rpartition(".")[2]
    return chain.run(script, run_file(name, flags), **flags)


# ---- what the runs cost ---------------------------------------------------------------------

def flops(chain, ppo):
    """{stage: FLOPs} of a chain, with this run of PPO: 2 for each weight and token that is read, 6
    where it is trained, and attention. It leaves out the prompts whose answers were all equal."""
    ckpts = {stage: load_checkpoint(chain / f"{stage}.pt", stage)
             for stage in ("pretrain", "sft", "reward")}
    model, tok = ckpts["sft"]["model"], ckpts["sft"]["tokenizer"]
    T, found = model.config.block_size, {}
    for stage, name in (("pretrain", "pretraining"), ("sft", "SFT")):
        c = ckpts[stage]["config"]
        found[name] = c["steps"] * c["batch_size"] * T * model.flops_per_token(T)
    rows = read_comparisons(chain / "comparisons.jsonl")
    forward = model.flops_per_token(32) / 3           # the usual length of prompt and answer
    prompt = np.mean([len(tok.encode_chat(row["prompt"], reply=True)[0]) for row in rows])
    answer = np.mean([len(tok.encode(a)) + 1 for row in rows for a in row["responses"]])
    k = max(len(row["responses"]) for row in rows)
    found["comparisons"] = len(rows) * k * (prompt + answer) * forward
    ranked = sum(len(row["responses"]) for row in split(rows)[0])
    passes = 3 + bool(ckpts["reward"]["config"]["lm"])
    found["reward model"] = ranked * (prompt + answer) * passes * forward
    return found | dict(PPO=ppo_flops(ppo, prompt, forward, T))


def ppo_flops(path, prompt, forward, T):
    """Of a run of PPO, whose log has the length of the answers: a forward pass to sample, 5 to
    assess (policy, reference, critic, reward model, its language model), and a forward and backward
    one, 3, of policy and critic in each epoch. forward: of a forward pass, per token."""
    c, passes = load_checkpoint(path, "ppo")["config"], 0
    for row in read_log(path.with_suffix(".jsonl")):
        if "seconds" in row:                          # an iteration, not an evaluation
            passes += c["batch_size"] * (prompt + row["length"]) * (6 + 6 * c["epochs"])
            updates = c["epochs"] * c["batch_size"] // c["minibatch"]
            passes += (c["ptx_coef"] > 0) * updates * max(1, c["minibatch"] // 32) * T * 3
    return passes * forward


def cost(chain, method, path):
    """FLOPs of a method: its run's, and the reward model's where it needs one."""
    spent = flops(chain, path if "PPO" in method else chain / "ppo.pt")
    own = spent["PPO"] if "PPO" in method else sum(
        row.get("flops", 0) for row in read_log(path.with_suffix(".jsonl")))
    return own + (method not in ("SFT", "DPO")) * spent["reward model"]


# ---- what their answers are worth -----------------------------------------------------------

def best_answers(chain):
    """What the scoreboard would say of the best of 16 answers of the SFT model."""
    config = best_of_n.Config()
    rt, n = Runtime(config), config.best_of
    policy, tok, _ = load(chain / "sft.pt", rt, "sft")
    reward = load_reward(str(chain / "reward.pt"), tok, rt)
    rows = sum(prompts_that_fit("data/town/test.jsonl", tok, policy.config.block_size,
                                config.max_new_tokens), [])
    prompts = [row["prompt"] for row in rows]
    replies, *_ = best_of_n.best_answers(policy, reward, rows, 0, tok, rt, config)
    texts = [answer_text(tok, reply) for reply in replies]
    once = [text for text, _ in respond(policy, tok, prompts, rt, config.max_new_tokens,
                                        config.temperature)]
    verdicts = [judge(prompt, text) for prompt, text in zip(prompts, texts)]
    grades = [verdict["grade"] for verdict in verdicts]
    shares = dict(right_sampled=np.mean([v["right"] for v in verdicts]), n=len(verdicts))
    return dict(compared(grades, grade(prompts, once)), by_kind=dict(all=shares),
                grade=[np.mean(grades)], kl=math.log(n) - (n - 1) / n,
                length=np.mean([len(tok.encode(text)) for text in texts]))


def compare(best, chain):
    """The rows of the tables: {method: (grade, better, right, KL, length, loss on text, TFLOP)}.
    best: {method: flags}."""
    sft = chain / "sft.pt"
    paths = {method: train(chain, method, flags) for method, flags in best.items()}
    found = {method: chain.examine(f"{path.stem}.test", sft, path, reward="")[1]
             for method, path in paths.items()}
    start = found["PPO"][0]
    models = {"SFT": start, "best of n": start | best_answers(chain),
              **{method: model for method, (_, model) in found.items()}}
    return {method: (m["grade"][0], m.get("better", 0), right(m, key="right_sampled"),
                     m.get("kl", 0), m["length"], m["text_loss"],
                     cost(chain, method, paths.get(method, sft)) / 1e12)
            for method, m in models.items()}


TABLES = {
    "answers to prompts about the test people": {
        "grade": "{:.2f}", "better than SFT": "{:.1%}", "right": "{:.1%}", "KL": "{:.2f}"},
    "and the rest; the cost includes the reward model's training where one is needed": {
        "length, tokens": "{:.1f}", "loss on text": "{:.3f}", "TFLOP": "{:.1f}"},
}


if __name__ == "__main__":
    config = parse_config(Config, __doc__)
    most = min(map(len, TRIALS.values()))
    if not 1 <= config.trials <= most:
        fail(f"--trials must be 1 to {most}")
    found = finished(config)

    # ---- the trials, with seed 0, judged by the validation people ----------------------------

    jobs = [(method, flags) for method in TRIALS for flags in TRIALS[method][:config.trials]]
    paths = for_each(jobs, lambda job: train(found[0], *job), config.jobs)
    print("\ntrials: the grade on prompts about the validation people, seed 0")
    highest, best = dict.fromkeys(TRIALS, 0), {}
    for (method, flags), path in zip(jobs, paths):
        _, (_, model) = found[0].examine(f"{path.stem}.val", found[0] / "sft.pt", path, reward="",
                                         text="", data="data/town/val.jsonl")
        value, shown = model["grade"][0], " ".join(f"{k}={v}" for k, v in flags.items())
        print(f"    {method:20} {value:.3f}  KL {model['kl']:.2f}  {shown or 'as shipped'}",
              flush=True)
        if value > highest[method]:
            highest[method], best[method] = value, flags

    # ---- the best of each, with all seeds -----------------------------------------------------

    best["PPO, no text"] = best["PPO"] | dict(ptx_coef=0)
    rows, place = for_each(found, partial(compare, best), config.jobs), 0
    for title, columns in TABLES.items():
        part = slice(place, place := place + len(columns))
        show(f"{title}, seeds 0 to {config.seeds - 1}", columns, [
            {method: row[part] for method, row in seed.items()} for seed in rows])
