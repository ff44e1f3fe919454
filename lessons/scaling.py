"""Lesson: scaling laws on a laptop. Small runs tell what a larger one will reach.

reads   data/town/pretrain, out/pretrain.pt (the tokenizer, and a run to predict)
writes  out/scaling.json, the runs and the law; out/scaling.svg, a picture; and a table

    L(N, D) = E + A / N^a + B / D^b                 N weights, D tokens of training
    C = 6 N D                                       FLOPs of a run
    N_opt = G (C/6)^(b/(a+b)),  D_opt = (C/6)^(a/(a+b)) / G,  G = (a A / (b B))^(1/(a+b))

Twelve models are trained, each with its own learning-rate schedule: the loss in the middle of a
longer run is too high, since its rate has not yet come down. The law has three parts: what no model
can foresee, what a model of N weights can't store, what D tokens can't teach (Hoffmann et al. 2022,
eq. 2 and 4). For text of the world nobody knows the first. Here the generator tells its entropy.

N counts all weights. One matrix is both embedding and output layer here: it multiplies like every
other, and in the smallest model it is half of the weights. Kaplan et al. (2020) left it out and
found other exponents; Pearce and Song (2024) show that this is the most of the difference.

laptop   python -m lessons.scaling
"""

import math
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from itertools import accumulate, combinations, product
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from checkpoint import Run, load
from common import Runtime, fail, parse_config, to_json, writing
from lessons.training import Laptop, begin, read_on
from optim import get_lr
from pretrain import evaluate


# ---- config ---------------------------------------------------------------------------------

@dataclass
class Config(Laptop):
    data: str = "data/town/pretrain"     # text
    unseen: str = "out/pretrain.pt"      # a run that is not in the grid: its loss is predicted
    out: str = "out/scaling.json"        # picture, log and unfinished state stand beside it
    widths: str = "24,40,72,128"         # n_embd of the models
    lengths: str = "200,400,800"         # steps of their runs; pretrain.py has 1,600
    eval_rows: int = 128                 # held-out rows


# ---- the idea -------------------------------------------------------------------------------

def solve(x, y):
    """The w >= 0 with the smallest |x w - y|^2, exactly: x (n, k), y (n,). Where a part would be
    negative, it or another is 0: try which. Gives (the square, w)."""
    found = []
    for size in range(x.shape[1], -1, -1):
        for kept in map(list, combinations(range(x.shape[1]), size)):
            w = np.zeros(x.shape[1])
            w[kept] = np.linalg.lstsq(x[:, kept], y, rcond=None)[0]
            if w.min() >= 0:
                found.append((((x @ w - y) ** 2).sum(), w))
        if size == x.shape[1] and found:              # nothing is negative: none can be better
            break
    return min(found, key=lambda pair: pair[0])


def fit(N, D, L):
    """(E, A, a, B, b) with the smallest squares of the relative errors. For given exponents the law
    is linear: so try exponents on a grid, and again on a finer one around the best."""
    centre, width, best = np.log([0.5, 0.5]), math.log(8), (math.inf,)
    n, d = np.exp(np.log(N).mean()), np.exp(np.log(D).mean())         # columns of like size
    for _ in range(20):
        tries = centre[:, None] + width * np.linspace(-1, 1, 11)
        for a, b in product(*np.exp(tries.clip(math.log(1 / 16), math.log(4)))):
            columns = np.stack([np.ones(len(L)), (N / n) ** -a, (D / d) ** -b], axis=1)
            error, (E, A, B) = solve(columns / L[:, None], np.ones(len(L)))
            if error < best[0]:
                best = error, a, b, (E, A * n**a, a, B * d**b, b)
        centre, width = np.log(best[1:3]), width * 0.6
    return tuple(map(float, best[3]))


def numbers(flag, config):
    """"4,2,8" -> [2, 4, 8]. Two points lie on a power law with any E, so there must be three."""
    words = getattr(config, flag).split(",")
    found = sorted({int(word) for word in words if word.isdecimal()} - {0})
    if len(found) < max(3, len(words)):
        fail(f"--{flag}={getattr(config, flag)!r} must be three different numbers or more, as in "
             f"--{flag}={getattr(Config, flag)}")
    return found


def loss_at(law, N, D):
    E, A, a, B, b = law
    return E + A / N**a + B / D**b


def optimum(law, C):
    """(N, D) with 6 N D = C and the lowest loss: there dL/dlog N = dL/dlog D."""
    _, A, a, B, b = law
    G = (a * A / (b * B)) ** (1 / (a + b))
    return G * (C / 6) ** (b / (a + b)), (C / 6) ** (a / (a + b)) / G


def picture(law, runs, unseen, entropy):
    """The SVG: loss over tokens, both on log axes; dots are runs, a curve per size is the law."""
    N, D, L = np.array([*runs, unseen]).T
    x0, x1, y1 = D.min() / 1.2, D.max() * 1.2, max(L.max(), loss_at(law, N.min(), D.min())) * 1.05
    y0 = 0.95 * min(L.min(), *[entropy] * math.isfinite(entropy), loss_at(law, N.max(), x1))

    def at(tokens, loss):
        return (70 + 580 * math.log(tokens / x0) / math.log(x1 / x0),
                390 - 360 * math.log(loss / y0) / math.log(y1 / y0))

    def text(x, y, words, anchor="start"):
        return f'<text x="{x:.1f}" y="{y + 5:.1f}" text-anchor="{anchor}">{words}</text>'

    def line(points, more=""):
        where = " ".join("{:.1f},{:.1f}".format(*at(*point)) for point in points)
        return f'<polyline points="{where}" fill="none" stroke="var(--line)" {more}/>'

    parts = [text(650, 430, "tokens of training", "end"), text(10, 15, "loss, nats per token")]
    parts += [text(at(t, y0)[0], 405, f"{t / 1e6:.2g}M", "middle") for t in sorted({*D})]
    parts += [text(60, at(x0, loss)[1], f"{loss:.3g}", "end")
              for loss in np.geomspace(y0, y1, 6)[1:-1]]
    if math.isfinite(entropy):
        parts += [line([(x0, entropy), (x1, entropy)], 'stroke-dasharray="6 5"'),
                  text(655, at(x1, entropy)[1], "entropy")]
    for n in sorted({*N}):
        curve = [(t, loss_at(law, n, t)) for t in np.geomspace(x0, x1, 50)]
        parts += [line(curve), text(655, at(*curve[-1])[1], f"N = {n / 1e3:.0f}k")]
    parts += ['<circle cx="{:.1f}" cy="{:.1f}" r="5" fill="{}" stroke="var(--line)"/>'.format(
        *at(d, loss), "none" if i == len(runs) else "var(--line)")
        for i, (d, loss) in enumerate(zip(D, L))]
    return ('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 440" role="img"><title>Loss '
            "over tokens</title><style>svg{--line:#0065a3;color:#1d2329;background:#fff}"
            "text{font:14px system-ui,sans-serif;fill:currentColor}@media(prefers-color-scheme:"
            "dark){svg{--line:#56b4e9;color:#e4e8ec;background:#14181c}}</style>\n"
            + "\n".join(parts) + "</svg>\n")


if __name__ == "__main__":
    # ---- setup ------------------------------------------------------------------------------

    config = parse_config(Config, __doc__)
    rt, T, B = Runtime(config), config.block_size, config.batch_size
    widths, lengths = numbers("widths", config), numbers("lengths", config)
    run = Run(config, rt, inputs=[config.data, config.unseen])
    model, tok, history = load(config.unseen, rt, "pretrain")
    unseen = [sum(p.numel() for p in model.parameters()),
              sum(c["steps"] * c["batch_size"] * c["block_size"]
                  for c in (entry["config"] for entry in history) if "steps" in c)]
    if not unseen[1]:
        fail(f"{config.unseen} does not say what it has read: --unseen= a run of pretrain.py")
    if T > model.config.block_size:
        fail(f"--block_size={T}, but {config.unseen} reads {model.config.block_size} tokens at "
             f"most")
    grid = [*product(widths, lengths)]
    ends = [*accumulate(steps for _, steps in grid)]  # the runs' steps follow one another

    # ---- data -------------------------------------------------------------------------------

    corpus = run.corpus(config.data, tok)
    corpus.shuffle(lengths[-1] * B * T + 1, config.seed)
    *val_rows, val_docs = corpus.held_out_rows(T, config.eval_rows)
    share = corpus.shares(val_docs)
    entropy = float((share * corpus.entropy(val_docs))[share > 0].sum())       # NaN: unknown
    unseen.append(evaluate(model, val_rows, len(corpus.sources), B, rt)[0].item())

    # ---- model and optimizer ----------------------------------------------------------------

    def prepare(i):
        """Run i: its model with random weights, its optimizers, its schedule (see optim.get_lr)."""
        width, steps = grid[i]
        model, optimizers = begin(config, rt, tok.vocab_size, width)
        run.track(model=model, **optimizers, runs=runs)
        return model, optimizers, SimpleNamespace(lr=config.lr, steps=steps, warmup=steps // 16)

    runs = []                                         # (N, D, loss) of those that are finished
    model, optimizers, schedule = prepare(bisect_left(ends, run.start or 1))

    # ---- training loop: one run after the other ---------------------------------------------

    for step in run.steps(ends[-1]):
        i = bisect_right(ends, step)
        s = step - (ends[i] - grid[i][1])             # of this run
        if s == 0:
            model, optimizers, schedule = prepare(i)
        read_on(run, model, optimizers, corpus.rows(s * B, B, T), get_lr(s, schedule))
        if step + 1 == ends[i]:
            val, _ = evaluate(model, val_rows, len(corpus.sources), B, rt)
            runs.append([sum(p.numel() for p in model.parameters()), schedule.steps * B * T,
                         val.item()])
            run.log(step + 1, dict(zip(("weights", "tokens", "val_loss"), runs[-1])))

    # ---- the law ----------------------------------------------------------------------------

    N, D, L = np.array(runs).T
    law = fit(N, D, L)
    E, A, a, B, b = law
    without = [fit(*np.delete([N, D, L], i, axis=1))[0] for i in range(len(runs))]
    errors = loss_at(law, N, D) / L - 1

    print(f"\nloss of each run (and how far the law is from it)\n{'weights':>9}"
          + "".join(f"{f'{t / 1e6:.3g}M tokens':>18}" for t in D[:len(lengths)]))
    for i in range(0, len(runs), len(lengths)):
        print(f"{N[i]:9,.0f}" + "".join(f"{f'{loss:.3f} ({off:+.1%})':>18}" for loss, off in
                                        zip(L[i:i + len(lengths)], errors[i:i + len(lengths)])))
    print(f"\nL(N, D) = {E:.3f} + {A:.3g} / N^{a:.2f} + {B:.3g} / D^{b:.2f}     largest error "
          f"{abs(errors).max():.1%}")
    print(f"E        fitted {E:.3f}, without one of the runs {min(without):.3f} to "
          f"{max(without):.3f}; the text's entropy is {entropy:.3f}")
    n, d, loss = unseen
    print(f"unseen   {n:,} weights, {d:,} tokens: predicted {loss_at(law, n, d):.3f}, measured "
          f"{loss:.3f}")
    if A * B == 0:
        print("optimum  none: by this law the weights or the tokens do not matter")
    else:
        C, p = 6 * n * d, b / (a + b)
        best = optimum(law, C)
        print(f"optimum  N = {best[0] / C**p:.3g} C^{p:.2f}, D = {best[1] / C**(1 - p):.3g} "
              f"C^{1 - p:.2f}; for this C, {C:.2g} FLOPs: {best[0]:,.0f} weights and "
              f"{best[1]:,.0f} tokens, with the loss {loss_at(law, *best):.3f}")

    # ---- save -------------------------------------------------------------------------------

    with writing(Path(config.out).with_suffix(".svg")) as f:
        f.write(picture(law, runs, unseen, entropy))
    with writing(config.out) as f:
        f.write(to_json(dict(runs=runs, law=law, without=without, unseen=unseen, entropy=entropy)))
    run.finish()
