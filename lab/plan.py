"""Plan a run before you pay for it: FLOPs, time, cost and memory of each stage, from a formula.

    python -m lab.plan                                  # the town beside models of the world
    python -m lab.plan --plan=instructgpt --gpus=1000   # one of them, stage by stage
    python -m lab.plan --plan=instructgpt --params=1.3e9 --n_layer=24 --n_embd=2048 --tokens=300e9

A token costs 2 FLOPs for each weight in a forward pass and 4 in a backward pass; attention adds 4
and 8 for each layer, dimension of the model, and token of the row (Kaplan et al. 2020; PaLM,
appendix B). docs/scale.md compares the result with what the papers say, and with our own runs.
"""

from dataclasses import dataclass, fields, replace

from common import fail, parse_config


@dataclass
class Config:
    plan: str = ""            # one of PLANS; without one, all of them side by side
    params: float = 0.0       # what is not 0 replaces the plan's: weights of the model
    n_layer: int = 0
    n_embd: int = 0
    tokens: float = 0.0       # that pretraining reads
    judge: float = 0.0        # weights of the reward model, and of the critic
    gpus: int = 1             # their number
    peak: float = 989e12      # FLOP/s of one: an H100's in bfloat16
    mfu: float = 0.4          # the share of it that training reaches
    price: float = 2.5        # of one for an hour
    debug: bool = False       # show tracebacks


@dataclass
class Plan:
    """A chain in numbers. What is read or written counts in tokens."""
    params: float
    n_layer: int
    n_embd: int
    context: int              # tokens in a row of pretraining and SFT
    row: int                  # in a prompt with its answer
    tokens: float             # pretraining
    demos: float              # SFT, with its epochs
    answers: float = 0        # prompts and answers, sampled and compared
    judge: float = 0          # weights of reward model and critic
    ranked: float = 0         # the reward model, with its epochs
    pairs: float = 0          # DPO, with its epochs
    episodes: float = 0       # PPO: prompts and answers
    epochs: float = 1         # how often each of them is learned from
    ptx: float = 0            # pretraining text in PPO
    lm: bool = False          # critic and reward model read log-probabilities of the SFT model


# Town: the defaults of the stages, and the mean length of a prompt with its answer. The others are
# as published; rows count at full length. GPT-3 and InstructGPT (appendices A, C): 12,725
# demonstrations, 16 epochs; 33,207 ranked prompts, about 6 answers each; 256k episodes, with 8
# times as many rows of text. SmolLM2-135M: about 460k dialogues, 2 epochs, and 60k pairs. Llama 3.1
# 8B with Tülu 3: 939k dialogues, 2 epochs; 272k pairs; 100k episodes with a checker, 4 epochs.
PLANS = {
    "town": Plan(0.918e6, 4, 128, 256, 32, 1600 * 8 * 256, 400 * 8 * 256, 3000 * 4 * 31.5, 0.918e6,
                 347 * 8 * 3.4 * 31.5, 0, 28 * 128 * 31.5, 2, 28 * 8 * 256, True),
    "smollm2": Plan(135e6, 30, 576, 2048, 2048, 2e12, 460e3 * 2 * 2048, pairs=60e3 * 2 * 1024),
    "tulu": Plan(8.03e9, 32, 4096, 8192, 4096, 15e12, 939e3 * 2 * 4096, judge=7.5e9,
                 ranked=272e3 * 2 * 2048, pairs=272e3 * 2 * 2048, episodes=100e3 * 4096, epochs=4),
    "instructgpt": Plan(175e9, 96, 12288, 2048, 2000, 300e9, 12725 * 16 * 2000, 33207 * 6 * 2000,
                        6e9, 33207 * 6 * 2000, 0, 256e3 * 2000, 1, 8 * 256e3 * 2000),
}


def forward(params, plan, T):
    """FLOPs a token of a forward pass over rows of T tokens. A smaller model (the reward model) is
    as flat as the plan's: its layers times its width shrink like the root of the weights."""
    small = min(1, params / plan.params) ** (2 / 3)
    return 2 * params + 4 * plan.n_layer * plan.n_embd * T * small


def flops(plan):
    """{stage: FLOPs}. A backward pass costs two forward passes. PPO samples an answer, passes it
    through reference, policy, critic and reward model, and trains policy and critic on it."""
    long = forward(plan.params, plan, plan.context)
    policy, judge = (forward(n, plan, plan.row) for n in (plan.params, plan.judge))
    lm = plan.lm * policy
    return {
        "pretraining": 3 * long * plan.tokens, "SFT": 3 * long * plan.demos,
        "comparisons": policy * plan.answers, "reward model": (3 * judge + lm) * plan.ranked,
        "DPO": (3 + 1) * policy * plan.pairs,
        "PPO": (3 * policy + 2 * judge + lm + 3 * plan.epochs * (policy + judge)) * plan.episodes
               + 3 * long * plan.ptx}


def memory(plan, gpus):
    """{what: bytes a GPU}. A weight that is trained takes 16: itself, its gradient, and Adam's two
    means, 4 each; a frozen one 4. A row's activations are for 16 bits and a fused attention, 34
    bytes for each token, layer and dimension (Korthikanti et al. 2022)."""
    trained, frozen = plan.params + plan.judge, plan.params * (1 + plan.lm) + plan.judge
    return {
        "pretraining, DDP": 16 * plan.params, "pretraining, FSDP": 16 * plan.params / gpus,
        "PPO, DDP": (16 * trained + 4 * frozen) * (plan.episodes > 0),
        "PPO, FSDP": (16 * trained + 4 * frozen) / gpus * (plan.episodes > 0),
        "and for each row": 34 * plan.n_layer * plan.n_embd * plan.context}


UNITS = {1e12: " T", 1e9: " G", 1e6: " M", 1e3: " k", 1: " "}
TIMES = {86400: " days", 3600: " hours", 60: " minutes", 1: " seconds"}


def in_units(number, units=UNITS):
    """12345 -> 12.3 k"""
    for size, unit in units.items():
        if number >= size:
            return f"{number / size:,.{0 if number >= 100 * size else 1}f}{unit}"
    return "0" if not number else f"under 1{units[1]}"


def show(plan, config):
    """Stage by stage."""
    spent = {stage: n for stage, n in flops(plan).items() if n}
    print(f"{'':20}{'FLOPs':>10}{'petaflop/s-days':>18}{'share':>9}{'time':>18}{'cost':>12}")
    for stage, n in [*spent.items(), ("all", sum(spent.values()))]:
        seconds = n / (config.gpus * config.peak * config.mfu)
        print(f"{stage:20}{n:10.3g}{n / 8.64e19:18.3g}{n / sum(spent.values()):9.2%}"
              f"{in_units(seconds, TIMES):>18}{seconds / 3600 * config.gpus * config.price:12,.0f}")
    print("\nmemory of a GPU")
    for what, size in memory(plan, config.gpus).items():
        if size:
            print(f"{what:20}{in_units(size)}B")


def compare(plans):
    """Side by side: what grows with the size, and what it changes."""
    rows = {"weights": lambda p: in_units(p.params),
            "tokens of pretraining": lambda p: in_units(p.tokens),
            "tokens for each weight": lambda p: f"{p.tokens / p.params:,.1f}",
            "reward model's weights": lambda p: in_units(p.judge) if p.judge else "-",
            "FLOPs of all stages": lambda p: f"{sum(flops(p).values()):.2g}"}
    rows |= {f"  {stage}": lambda p, stage=stage: f"{flops(p)[stage] / sum(flops(p).values()):.2%}"
             for stage in flops(PLANS["town"])}
    rows |= {f"memory, {what}": lambda p, what=what: in_units(memory(p, 1)[what]) + "B"
             for what in ("pretraining, DDP", "PPO, DDP")}
    print(f"{'':26}" + "".join(f"{name:>14}" for name in plans))
    for label, cell in rows.items():
        print(f"{label:26}" + "".join(f"{cell(plan):>14}" for plan in plans.values()))


if __name__ == "__main__":
    config = parse_config(Config, __doc__)
    if config.plan not in ("", *PLANS):
        fail(f"--plan={config.plan} should be one of {', '.join(PLANS)}")
    own = {field.name: value for field in fields(Plan)
           if (value := getattr(config, field.name, None))}
    if config.plan:
        show(replace(PLANS[config.plan], **own), config)
    elif own:
        fail(f"--{next(iter(own))} changes a plan: add --plan=town, or another of "
             f"{', '.join(PLANS)}")
    else:
        compare(PLANS)
