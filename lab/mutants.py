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

# A file and its quick tests; then what goes wrong, and where: «this → by that». The text around it
# makes the place the only one in the file. Each fault is of another kind.
MUTANTS = """
pretrain.py: tests/test_loops.py tests/test_pretrain.py -k pretrain
    no gradient is clipped: parameters(), «1.0 → 1e9»)
    small passes add up to a larger gradient: model_ddp(x[part], y[part])« * micro_batch / B → »
    the learning rate stays at its peak: lr = «get_lr(step, config) → config.lr»
    a token is predicted from itself: x, y = rows[:, «:-1 → 1:»]
    a resumed run forgets Muon's momentum: model=model, «**optimizers → adamw=optimizers["adamw"]»
    every seed reads the same rows: * T + 1, «config.seed → 0»,
pretrain.py: tests/test_ddp.py -k 'joined and pretrain'
    all processes read the same rows: config.batch_size« + rt.rank * B → », B, T)
sft.py: tests/test_loops.py tests/test_sft.py -k sft
    the mean is over padding and the users' words, too: rt.average(«(y >= 0).sum → y.numel»())
    the first word of an answer is not learned: ~mask[:, «1: → :-1»], -1)
    tiny gradients become whole steps: weight_decay«, damping(model, config.eps) → »)
    every step rehearses the same text: corpus.rows(«k * n_text → 0»,
    it is trained on what is held out: «seen, unseen → unseen, seen» = split(
    the accuracy is that of the least probable token: logits.«argmax → argmin»(-1)
    a long dialogue loses one token too many: (ids[:«T + 1], mask[:T + 1 → T], mask[:T»])
sft.py: tests/test_ddp.py -k 'joined and sft'
    a process with few tokens counts as much: «, = rt.average((y >= 0).sum() →  = (y >= 0).sum(»)
reward.py: tests/test_loops.py tests/test_reward.py -k reward
    worse answers get higher scores: return «-F → F».logsigmoid(scores
    tied answers are pairs, and each answer is one with itself: ranks[:, None] «< → <=» ranks[None
    the score is read before the last token: device=rt.device), last« →  - 1»]
    demonstrations do not score 0 on average: bias.«sub_(run.metrics["score_mean"]). → »div_(
    the model inside is random: model.lm = «lm → model.lm».requires_grad_(False)
rlhf_ppo.py: tests/test_loops.py tests/test_ppo.py -k ppo
    the critic learns advantages: r.values, r.advantages, r.«returns → advantages»))
    every iteration draws the same numbers: seed=«(config.seed, step) → config.seed»)
    the policy learns from an ignorant critic: for start in («config.critic_first → 0», 0)
    distance from the reference is rewarded: rewards = «-kl_coef → kl_coef» *
    the first token earns the score: rewards[range(len(rewards)), r.«last → mask.int().argmax(1)»]
    values are clipped around the returns: x in (r.logp, r.«values → returns», r.advantages
    lambda is ignored: gamma * «lam * → » next_advantage
    what follows an answer has a value: next_value = torch.where(«here → here | True», values[:, t]
    the larger of the two policy losses is not taken: -torch.«min → max»(ratio *
    the critic does not begin with the mean score: bias, «metrics["score"] → 0.0»)
    the reference is the policy itself: policy=policy, reference=«reference → policy»,
    ratios are not 1 before an update: (policy_ddp, a.ids, a.mask«, config.temperature → »)
    a token's value is what is expected when it is known: lm_logp[:, :-1])[mask[:, «1: → :-1»]]
rlhf_ppo.py: tests/test_ddp.py -k 'joined and ppo'
    each process whitens its own advantages: squares = «rt.sum → »(
compare.py: tests/test_loops.py tests/test_compare.py -k compar
    two labelers' agreement is one's with the truth: p« * p + (1 - p) * (1 - p) → »
    grades belong to other answers: «[row["grades"][i] for i in first] → list(row["grades"])»
evaluate.py: tests/test_evaluate.py
    only pairs that are right count: (np.«abs(margin) >= low → positive(margin) >= low»)
    equal grades are wins: better=np.mean(sign «> → >=» 0)
    copies of a prompt make an interval narrow: np.unique(«groups → np.arange(len(values))»
    the best of n is always that of all: scores«[:, :k] → ».argmax(1)
model.py: tests/test_model.py
    a token sees the next one: .triu(«1 → 2»)
    padding moves the positions: (mask.«cumsum(-1) → size(1) + 0 * mask»
    targets of -1 count: ignore_index=«-1 → -100», reduction=reduction
optim.py: tests/test_pretrain.py tests/test_model.py -k 'pretrain or matrix'
    Muon forgets the gradients before: step = p.grad«.lerp(m, momentum) → »
    LoRA trains the first model's weights, too: deepcopy(model, «{id(p): p for p in shared} → {}»)
answer.py: tests/test_model.py tests/test_ppo.py tests/test_evaluate.py tests/test_compare.py
    the token that reaches top_p is left out: probs.cumsum(-1) «- probs → » >= max
    a finished answer goes on: done = «done | → » torch.isin
tokenizer.py: tests/test_tokenizer.py
    answers do not learn to end: mask += [«learned → 0», *[0] * len(after)]
common.py: tests/test_ddp.py -k 'joined and sft'
    only the first micro-batch is averaged over the processes: last = start «+ size >= n → == 0»
checkpoint.py: tests/test_resume.py tests/test_checkpoint.py tests/test_model.py tests/test_ppo.py
    a run goes on with other flags and data: if «changed → False»:
    a resumed run does its steps again: dict(step=«step → 0», run=self.flags
    embedding and output layer are trained apart after loading: «gpt.tie_weights() → pass»
    frozen models keep gradients: «freeze_all(model, rt.dtype) if frozen else → » model
    the log has sums over its steps: value / «n_steps / → » self.rt.world_size
    weights are rounded when they are saved: w.detach().«float → half»().cpu()
data/corpus.py: tests/test_corpus.py
    held-out copies are learned: hold_out(«self.hashes → np.arange(len(self.lengths)) / 1e4»,
    one token in T is never predicted: np.arange(count)[:, None]) * «T → (T + 1)»
data/formats.py: tests/test_formats.py
    each run holds out others: «int.from_bytes(digest[:8], "big") → hash(str(opening)) % 2**64»
    answers of equal scores are ordered: if «better == worse → False»:
"""


def faults():
    """-> file, what goes wrong, text, another text, the arguments of the pytest that finds it"""
    for line in MUTANTS.strip().splitlines():
        name, place = line.strip().split(": ", 1)
        if not line.startswith(" "):
            file, tests = name, place
            continue
        before, old, new, after = re.fullmatch("(.*)«(.*) → (.*)»(.*)", place).groups()
        yield file, name, before + old + after, before + new + after, tests


@dataclass
class Config:
    only: str = ""            # faults with this in their sentence or file; "": all
    jobs: int = 1             # copies that are tested at a time
    debug: bool = False       # show tracebacks


def first_failure(tests, file="", old="", new=""):
    """The first test that fails on a copy of the tracked files in which old became new, or ""."""
    with tempfile.TemporaryDirectory(prefix="mutant.") as copy:
        listed = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, encoding="utf-8")
        for name in filter(None, listed.split("\0")):
            Path(copy, name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, Path(copy, name))
        if file:
            text = Path(copy, file).read_text("utf-8")
            Path(copy, file).write_text(text.replace(old, new), "utf-8")
        pytest = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
        try:
            ended = subprocess.run([*pytest, *shlex.split(tests)], cwd=copy, timeout=900,
                                   capture_output=True, encoding="utf-8")
        except subprocess.TimeoutExpired:
            return f"pytest {tests} (no end)"
        failed = re.search(r"^(?:FAILED|ERROR) (?:.*?::)?(\S+)", ended.stdout, re.M)
        return (failed[1] if failed else f"pytest {tests}") if ended.returncode else ""


if __name__ == "__main__":
    config = parse_config(Config, __doc__)
    chosen = [fault for fault in faults() if config.only in fault[0] or config.only in fault[1]]
    if not chosen:
        fail(f"--only={config.only} is in no fault's sentence or file")
    survived = 0
    with ThreadPoolExecutor(config.jobs) as pool:
        commands = sorted({tests for *_, tests in chosen})
        for tests, found in zip(commands, pool.map(first_failure, commands)):
            if found:
                fail(f"without any fault {found} fails: `python -m pytest {tests}` shows why")
        found = pool.map(lambda fault: first_failure(fault[4], fault[0], *fault[2:4]), chosen)
        for (file, name, *_), test in zip(chosen, found):
            print(f"{file:16}{name:62}{test or 'NOT FOUND'}", flush=True)
            survived += not test
    print(f"\n{survived} of {len(chosen)} faults were not found")
