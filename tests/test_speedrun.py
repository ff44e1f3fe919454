from pathlib import Path

import pytest

from lab.speedrun import RULE, broken

KEPT = {label: ("{:.2f}", middle) for label, (middle, _) in RULE.items()}


@pytest.mark.parametrize("grades, kept", [
    ((6.65, 6.65, 6.65), True), ((6.55, 6.65, 6.9), True), ((6.55, 6.64, 6.9), False),
    ((6.54, 6.7, 6.9), False)])
def test_the_rule_asks_for_a_median_and_for_the_worst_seed(grades, kept):
    lines = broken([KEPT | {"grade after PPO": ("{:.2f}", grade)} for grade in grades])
    assert [line.startswith("grade after PPO: ") for line in lines] == [True] * (not kept)


def test_a_record_starts_from_nothing(refused, monkeypatch):
    monkeypatch.setattr("subprocess.run", lambda *_, **__: pytest.fail("it runs something"))
    Path("run1").mkdir()
    assert "run1 is there already" in refused("lab/speedrun", "--folder=run")
