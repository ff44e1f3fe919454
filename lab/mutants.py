"""Would the tests see it? Puts one fault at a time into a copy of the project and runs the tests of
that file. A fault that no test finds survives: a test is missing.

    python -m lab.mutants                       # all of them, each with some tests: hours
    python -m lab.mutants --only=sft.py         # those with "sft.py" in their file or sentence
    python -m lab.mutants --only=rehearse --jobs=2

A fault is found if a quick test fails; the whole suite may find more. First the tests run on a copy
without a fault: tests that fail anyway find nothing.
"""

import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from common import fail, parse_config

ROOT = Path(__file__).resolve().parents[1]

# The quick tests of each file, in the order in which they run.
LOOPS = "tests/test_loops.py -k "
RANKS = "tests/test_ddp.py::test_two_ranks_end_where_one_process_on_the_joined_batch_ends"
TESTS = {
    "pretrain.py": [LOOPS + "pretraining", "tests/test_pretrain.py"],
    "sft.py": [LOOPS + "sft", "tests/test_sft.py"],
    "reward.py": [LOOPS + "reward", "tests/test_reward.py"],
    "rlhf_ppo.py": [LOOPS + "ppo", "tests/test_ppo.py"],
    "compare.py": [LOOPS + "comparisons", "tests/test_compare.py"],
    "evaluate.py": ["tests/test_evaluate.py"],
    "model.py": ["tests/test_model.py", LOOPS + "ppo"],
    "optim.py": [LOOPS + "pretraining", "tests/test_pretrain.py",
                 "tests/test_model.py -k 'adamw or outer or first_model'"],
    "answer.py": ["tests/test_model.py", "tests/test_ppo.py", "tests/test_evaluate.py",
                  "tests/test_compare.py", LOOPS + "'ppo or comparisons'"],
    "tokenizer.py": ["tests/test_tokenizer.py"],
    "common.py": ["tests/test_common.py", RANKS + "[sft]"],
    "checkpoint.py": ["tests/test_resume.py tests/test_checkpoint.py tests/test_steps.py",
                      LOOPS + "sft", "tests/test_model.py -k checkpoint", "tests/test_ppo.py"],
    "data/corpus.py": ["tests/test_corpus.py"],
    "data/formats.py": ["tests/test_formats.py"],
}

# What goes wrong: where, «this → by that». The text around it makes the place the only one in the
# file. What goes wrong with several processes stands under "file, ranks".
MUTANTS = """
pretrain.py
    no gradient is clipped: parameters(), «1.0 → 1e9»)
    small passes add up to a larger gradient: model_ddp(x[part], y[part])« * micro_batch / B → »
    the learning rate stays at its peak: lr = «get_lr(step, config) → config.lr»
    a token is predicted from itself: x, y = rows[:, «:-1 → 1:»]
    every step reads the same rows: corpus.rows(«step * config.batch_size + → » rt
    gradients of earlier steps are added: «optimizer.zero_grad(set_to_none=True) → pass»
    a resumed run forgets Muon's momentum: model=model, «**optimizers → adamw=optimizers["adamw"]»
    Muon's rate is not a multiple of AdamW's: «lr * config.muon → lr» if name == "muon"
    every seed reads the same rows: * T + 1, «config.seed → 0»,
    some held-out rows count twice: «y = y.masked_fill((at >= len(rows[1]))[:, None], -1) → »
pretrain.py, ranks
    all processes read the same rows: config.batch_size« + rt.rank * B → », B, T)
sft.py
    the mean is over padding and the users' words, too: rt.average(«(y >= 0).sum → y.numel»())
    it learns to say padding where users speak: ~mask[:, 1:], «-1 → pad»)
    the first word of an answer is not learned: ~mask[:, «1: → :-1»], -1)
    no gradient is clipped: parameters(), «1.0 → 1e9»)
    the learning rate stays at its peak: lr = «get_lr(step, config) → config.lr»
    tiny gradients become whole steps: weight_decay«, damping(model, config.eps) → »)
    no pretraining text is rehearsed: if «n_text → False»:
    every step rehearses the same text: corpus.rows(«k * n_text → 0»,
    every step reads the same dialogues: plan[«k * n_chat:(k + 1) * → :» n_chat]
    every seed packs the same rows: default_rng(«config.seed → 0»))
    it is trained on what is held out: «seen, unseen → unseen, seen» = split(
    a resumed run forgets Adam's means: track(model=model«, optimizer=optimizer → »)
    a long dialogue loses one token too many: (ids[:«T + 1], mask[:T + 1 → T], mask[:T»])
    the accuracy is that of the least probable token: logits.«argmax → argmin»(-1)
sft.py, ranks
    a process with few tokens counts as much: «, = rt.average((y >= 0).sum() →  = (y >= 0).sum(»)
    all processes read the same dialogues: k = step * rt.world_size« + rt.rank → »
reward.py
    worse answers get higher scores: return «-F → F».logsigmoid(scores
    tied answers are pairs, and each answer is one with itself: ranks[:, None] «< → <=» ranks[None
    prompts are added instead of averaged: items[part]))« / B → »
    the score is read before the last token: device=rt.device), last« →  - 1»]
    no gradient is clipped: parameters(), «1.0 → 1e9»)
    the learning rate stays at its peak: lr = «get_lr(step, config) → config.lr»
    every step compares answers to the same prompts: plan[«step → 0»][rt.rank
    demonstrations do not score 0 on average: bias.«sub_(run.metrics["score_mean"]). → »div_(
    their scores do not have deviation 1: «model.head.weight.div_(run.metrics["score_std"]) → pass»
    the model inside is random: model.lm = «lm → model.lm».requires_grad_(False)
    it is trained on what is held out: split(rows, share=config.held_out)« → [::-1]»)
    a resumed run forgets Adam's means: track(model=model«, optimizer=optimizer → »)
    every seed reads the prompts in the same order: config.steps, «config.seed → 0»)
    the ceiling falls where labels are wrong: item["utility"][j])«.abs() → »
reward.py, ranks
    all processes compare the same answers: plan[step][«rt.rank::rt.world_size → :B»]
rlhf_ppo.py
    pretraining text is unlearned: («config → -config».ptx_coef * ptx_loss)
    the weight of the pretraining text is ignored: («config.ptx_coef * → » ptx_loss)
    every update rehearses the same text: corpus.rows(«(update * rt.world_size + rt.rank) → rt.rank»
    every iteration rehearses the same text: enumerate(updates«, start=step * len(updates) → »)
    a token of a minibatch with few tokens weighs more: (loss / «count → r.mask[batch].sum()»)
    a minibatch has answers of one length: for m in «minibatches(B,  → torch.arange(B).split(»mb)]
    values are clipped around the returns: x in (r.logp, r.«values → returns», r.advantages
    ratios are those to the reference: x in (r.«logp → ref_logp», r.values
    the critic learns advantages: r.values, r.advantages, r.«returns → advantages»))
    no gradient is clipped: parameters(), «1.0 → 1e9»)
    advantages are not whitened: if «config.whiten_advantages → False»:
    padding is whitened, too: = rt.sum(mask.sum(), «x[mask].sum(), (x[mask] → x.sum(), (x»
    every iteration answers the same prompts: plan[«step * config.batch_size:(step + 1) * → :» config
    every iteration draws the same numbers: seed=«(config.seed, step) → config.seed»)
    the learning rates stay: zip(optimizers, get_lrs(«step → config.critic_first», config)
    the critic learns as slowly as the policy: zip(optimizers, get_lrs(step, config)« → [:1] * 2»)
    the policy learns from an ignorant critic: for start in («config.critic_first → 0», 0)
    distance from the reference is rewarded: rewards = «-kl_coef → kl_coef» *
    the first token earns the score: rewards[range(len(rewards)), r.«last → mask.int().argmax(1)»]
    answers without an end earn more: scores «- → +» config.missing_end
    the reward model reads answers without an end: else a «+ [tok.end] → » for a in
    lambda is ignored: gamma * «lam * → » next_advantage
    gamma is ignored where values follow: rewards[:, t] + «gamma * → » next_value
    what follows an answer has a value: next_value = torch.where(«here → here | True», values[:, t]
    the larger of the two policy losses is not taken: -torch.«min → max»(ratio *
    the smaller of the two value losses is taken: 0.5 * torch.«max → min»((values
    the critic does not begin with the mean score: bias, «metrics["score"] → 0.0»)
    the reference is the policy itself: policy=policy, reference=«reference → policy»,
    the reference's temperature is 1: log_probs(reference, x, m«, config.temperature → »)
    ratios are not 1 before an update: (policy_ddp, a.ids, a.mask«, config.temperature → »)
    a resumed run starts with a new critic: track(model=policy, «critic=critic, → »
    it is trained on prompts that are held out: «train, val → val, train» = prompts_that_fit(
    a token's value is what is expected when it is known: lm_logp[:, :-1])[mask[:, «1: → :-1»]]
    the score is earned before the last token: self.mask.size(1) - «1 → 2» - self
rlhf_ppo.py, ranks
    a process counts its tokens alone: «, = rt.average(r.mask.sum() →  = (r.mask.sum()» * mb / B)
    all processes rehearse the same text: (update * rt.world_size« + rt.rank → »)
    each process whitens its own advantages: squares = «rt.sum → »(
    all processes answer the same prompts: chosen[«rt.rank::rt.world_size → :B»]
compare.py
    the worst answer stands first: np.argsort(«- → »utility)
    more noise makes labelers surer: np.array(grades) «/ → *» noise
    two labelers' agreement is one's with the truth: p« * p + (1 - p) * (1 - p) → »
    the ceiling falls where labels are wrong: np.exp(-«np.abs(differences) → differences»)
    grades belong to other answers: «[row["grades"][i] for i in first] → list(row["grades"])»
    answers and grades are ordered by two labelers: [row["responses"][i] for i in «first → second»]
    answers belong to other prompts: answers[i« * config.k:(i + 1) * → :i +» config.k]
    every batch draws the same numbers: seed=«(config.seed, start) → config.seed»)
    equal answers are compared: return «[texts[i] for i in distinct(texts)] → texts»
    every seed hears the same noise: np.random.default_rng(«config.seed → 0»), []
evaluate.py
    only pairs that are right count: (np.«abs(margin) >= low → positive(margin) >= low»)
    the ceiling is the model's own: ceiling(«gap → margin»)
    what is predicted depends on the scale of the scores: np.abs(margin)« * std → »)
    equal grades are wins: better=np.mean(sign «> → >=» 0)
    copies of a prompt make an interval narrow: np.unique(«groups → np.arange(len(values))»
    the divergence is negative: («logp - ref_logp → ref_logp - logp»).mean()
    the worst answer is kept: scores[:, :k].«argmax → argmin»(1)
    the best of n is always that of all: scores«[:, :k] → ».argmax(1)
    intervals hold half of the means: [«2.5, 97.5 → 25, 75»]
    it is examined on some of what it was trained on: config.comparisons)«, share=share → »)
    it is examined on what it was trained on: «_, unseen → unseen, _» = split(
model.py
    a token sees the next one: .triu(«1 → 2»)
    a token does not see itself: «<= → <» pos[:, None]
    padding moves the positions: (mask.«cumsum(-1) → size(1) + 0 * mask»
    positions are not relative: q, k = rotate(q, turns), «rotate(k, turns) → k»
    all clocks turn equally fast: «config.rope_theta → 1.0» ** (
    targets of -1 count: ignore_index=«-1 → -100», reduction=reduction
    beside a token stands the next one's: F.pad(-nats.view(len(idx), -1), («1, 0 → 0, 1»))
optim.py
    the first step learns nothing: config.lr * «(step + 1) → step» / config.warmup
    Muon's matrices do not decay: p.mul_(1« - group["lr"] * group["weight_decay"] → »)
    Muon forgets the gradients before: step = p.grad«.lerp(m, momentum) → »
    tall matrices take too short steps: «max(1, p.size(0) / p.size(1)) ** 0.5 → 1»
    norms and biases decay: weight_decay=«0.0 → weight_decay»)]
    LoRA's change is not scaled: self.layer(x) + «self.scale → 1.0» * F.linear
    LoRA trains the first model's weights, too: deepcopy(model, «{id(p): p for p in shared} → {}»)
answer.py
    a high temperature makes answers surer: logits = logits «/ → *» temperature
    log-probabilities are those at temperature 1: logits.float()« / max(temperature, COLDEST) → »
    the token that reaches top_p is left out: probs.cumsum(-1) «- probs → » >= max
    a finished answer goes on: done = «done | → » torch.isin
    all batches draw the same numbers: rt.seed(seed«, start → »)
    the sum of a reply is a mean: «index_add(0, owner, logp → index_reduce(0, owner, logp, "mean"»)
    a reply's temperature is ignored: log_probs(model, idx, mask«, temperature → »)
    an answer's temperature is ignored: max_new_tokens, «temperature → 1.0», tok.end
    the prompt counts as part of the answer: [[«0 → 1»] * len(p)
tokenizer.py
    answers do not learn to end: mask += [«learned → 0», *[0] * len(after)]
    <|assistant|> is learned: mask += [«0 → learned»] * len(before)
common.py
    only the first micro-batch is averaged over the processes: last = start «+ size >= n → == 0»
    all processes draw the same numbers: repr(«(*numbers, self.rank) → numbers»)
checkpoint.py
    a run goes on with other flags and data: if «changed → False»:
    a resumed run does its steps again: dict(step=«step → 0», run=self.flags
    a resumed run does its first steps again: in range(«self.start → 0», self.total
    embedding and output layer are trained apart after loading: «gpt.tie_weights() → pass»
    frozen models keep gradients: «freeze_all(model, rt.dtype) if frozen else → » model
    the log has sums over its steps: value / «n_steps / → » self.rt.world_size
    weights are rounded when they are saved: v.detach().«float → half»().cpu()
data/corpus.py
    held-out copies are learned: hold_out(«self.hashes → np.arange(len(self.lengths)) / 1e4»,
    one token in T is never predicted: np.arange(count)[:, None]) * «T → (T + 1)»
    the documents are not shuffled: np.append(left[s], «rng.permutation(pool) → pool»)
    it is trained on what is held out: train = np.flatnonzero(«~self.held_out → self.held_out >= 0»)
    the lowest possible loss is too low: nats = -(« → 0 * »np.log
data/formats.py
    each run holds out others: «int.from_bytes(digest[:8], "big") → hash(str(opening)) % 2**64»
    it is trained on what is held out: for side in («False, True → True, False»)
    answers of equal scores are ordered: if «better == worse → False»:
"""


def faults():
    """-> (file, what goes wrong, text, another text), the runs of pytest that should find it"""
    for line in MUTANTS.strip().splitlines():
        if not line.startswith(" "):
            file, _, ranks = line.partition(", ")
            tests = [f"{RANKS}[{Path(file).stem}]"] * bool(ranks) + TESTS[file]
            continue
        name, place = line.strip().split(": ", 1)
        before, old, new, after = re.fullmatch("(.*)«(.*) → (.*)»(.*)", place).groups()
        yield (file, name, before + old + after, before + new + after), tests


@dataclass
class Config:
    only: str = ""            # faults with this in their sentence or file; "": all
    jobs: int = 1             # copies that are tested at a time
    debug: bool = False       # show tracebacks


def first_failure(commands, file="", old="", new=""):
    """The first test that fails on a copy of the tracked files in which old became new, or ""."""
    with tempfile.TemporaryDirectory(prefix="mutant.") as copy:
        listed = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, encoding="utf-8")
        for name in filter(None, listed.split("\0")):
            Path(copy, name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, Path(copy, name))
        if file:
            text = Path(copy, file).read_text("utf-8")
            Path(copy, file).write_text(text.replace(old, new), "utf-8")
        for command in commands:
            pytest = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
            try:
                ended = subprocess.run([*pytest, *shlex.split(command)], cwd=copy, timeout=600,
                                       capture_output=True, encoding="utf-8")
            except subprocess.TimeoutExpired:
                return f"pytest {command} (no end)"
            if ended.returncode:
                failed = re.search(r"^(?:FAILED|ERROR) (?:.*?::)?(\S+)", ended.stdout, re.M)
                return failed[1] if failed else f"pytest {command}"
    return ""


if __name__ == "__main__":
    config = parse_config(Config, __doc__)
    chosen = [(fault, tests) for fault, tests in faults()
              if config.only in fault[0] or config.only in fault[1]]
    if not chosen:
        fail(f"--only={config.only} is in no fault's sentence or file")
    survived = 0
    with ThreadPoolExecutor(config.jobs) as pool:
        commands = sorted({command for _, tests in chosen for command in tests})
        for command, found in zip(commands, pool.map(first_failure, ([c] for c in commands))):
            if found:
                fail(f"without any fault {found} fails: `python -m pytest {command}` shows why")
        found = pool.map(lambda job: first_failure(job[1], job[0][0], *job[0][2:]), chosen)
        for ((file, name, _, _), _), test in zip(chosen, found):
            print(f"{file:16}{name:62}{test or 'NOT FOUND'}", flush=True)
            survived += not test
    print(f"\n{survived} of {len(chosen)} faults were not found")
