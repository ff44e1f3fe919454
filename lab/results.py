"""Write every figure of docs/results.md anew, from the measurements in docs/results/.

    cp out/scoreboard.json docs/results/      # of a new `bash run.sh`
    cp out/seeds.json docs/results/           # of a new `python -m lab.seeds`
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
from common import parse_config, read_json, writing
from lab import experiments, seeds


@dataclass
class Config:
    page: str = "docs/results.md"      # the page; its figures are in a folder of that name
    debug: bool = False                # show tracebacks


def times(minutes):
    for what, took in minutes.items():
        print(f"{what:30}{took:>6}")


def pretraining(found):
    for source, (loss, entropy) in found.items():
        print(f"{source:17}loss {loss:.3f}   entropy {entropy:.3f}   {loss / entropy - 1:+.1%}")


def rehearsal(rows):
    experiments.show("SFT: facts about the test people", experiments.REHEARSAL, rows,
                     zip(*rows.values()))


def claims(verdicts):
    for name, (claim, verdict) in verdicts.items():
        print(f"{name:14}{claim:62}{verdict}")


def bench(lines):
    print("\n".join(lines))


SHOW = dict(scoreboard=evaluate.show, seeds=seeds.show, times=times, pretraining=pretraining,
            rehearsal=rehearsal, claims=claims, bench=bench, bench_gpu=bench)


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
    text = renewed(Path(config.page))
    with writing(config.page) as f:
        f.write(text)
    print(f"wrote {config.page}")
