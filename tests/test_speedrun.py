import subprocess
import sys

import pytest

from lab.speedrun import RULE, broken
from tiny import ROOT

KEPT = {label: ("{:.2f}", middle) for label, (middle, _) in RULE.items()}


def with_grade(value):
    return KEPT | {"grade after PPO": ("{:.2f}", value)}


@pytest.mark.parametrize("grades, kept", [
    ((6.65, 6.65, 6.65), True), ((6.55, 6.65, 6.9), True), ((6.55, 6.64, 6.9), False),
    ((6.54, 6.7, 6.9), False)])
def test_the_rule_asks_for_a_median_and_for_the_worst_seed(grades, kept):
    lines = broken([with_grade(grade) for grade in grades])
    assert [line.startswith("grade after PPO: ") for line in lines] == [True] * (not kept)


def test_a_record_starts_from_nothing(tmp_path):
    (tmp_path / "run1").mkdir()
    done = subprocess.run([sys.executable, "-m", "lab.speedrun", f"--folder={tmp_path}/run"],
                          cwd=ROOT, capture_output=True, encoding="utf-8")
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "run1 is there already" in done.stderr
