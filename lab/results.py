"""Print every figure of docs/results.md anew, from the measurements in docs/results/.

    cp out/scoreboard.json docs/results/       # first: a new `bash run.sh`
    python -m lab.results --chains=out/seed    # or new chains of lab.seeds, and their rehearsal
    python -m lab.results

In docs/results.md a line <!-- seeds --> stands before the block that is made from seeds.json; the
sentences around it, with machine and date, are yours. README and the other pages quote that page.
"""

import io
import re
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import evaluate
from common import parse_config, read_json, to_json, writing
from lab import chains
from lab.chains import finished, over_seeds, print_rows
from lab.experiments import TABLES
from lab.seeds import over_chains


@dataclass
class Config:
    page: str = "docs/results.md"      # the page; its figures are in a folder of that name
    chains: str = ""                   # finished chains to measure first: out/seed0, out/seed1 …
    seeds: int = 5                     # how many of them
    debug: bool = False                # show tracebacks


def measured(found):
    """{file: {label: cells}} of finished chains; a cell is [format, the value of each seed …]."""
    rehearsal, _, columns = TABLES["rehearsal"]
    return dict(seeds=over_chains(found),
                rehearsal=over_seeds([rehearsal(chain) for chain in found], columns.values()))


def times(minutes):
    for what, took in minutes.items():
        print(f"{what:30}{took:>6}")


def pretraining(losses):
    for source, (loss, entropy) in losses.items():
        print(f"{source:17}loss {loss:.3f}   entropy {entropy:.3f}   {loss / entropy - 1:+.1%}")


def claims(verdicts):
    for name, (claim, verdict) in verdicts.items():
        print(f"{name:14}{claim:62}{verdict}")


def bench(lines):
    print("\n".join(lines))


SHOW = dict(scoreboard=evaluate.show, times=times, pretraining=pretraining, seeds=print_rows,
            rehearsal=print_rows, claims=claims, bench=bench, bench_gpu=bench, busy=bench,
            llama=bench)


def renewed(page):
    """The text of the page, with every block printed from its file."""
    def block(found):
        with redirect_stdout(io.StringIO()) as printed:
            SHOW[found[1]](read_json(page.with_suffix("") / f"{found[1]}.json"))
        return f"<!-- {found[1]} -->\n```\n{printed.getvalue().strip()}\n```\n"

    return re.sub(r"<!-- (\w+) -->\n```\n.*?^```\n", block, page.read_text("utf-8"),
                  flags=re.M | re.S)


if __name__ == "__main__":
    config = parse_config(Config, __doc__)
    page = Path(config.page)
    if config.chains:
        found = finished(chains.Config(seeds=config.seeds, folder=config.chains))
        for name, rows in measured(found).items():
            with writing(page.with_suffix("") / f"{name}.json") as f:
                f.write(to_json(rows).replace("]], ", "]],\n ") + "\n")
    text = renewed(page)
    with writing(page) as f:
        f.write(text)
    print(f"wrote {page}")
