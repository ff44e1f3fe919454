"""The curves of the report and of the live page."""

import re

import pytest

import tiny
from view import curves


def lines(svg):
    """The points of each line, as they are drawn."""
    return [[tuple(map(float, point.split(","))) for point in found.split()]
            for found in re.findall(r'<polyline points="([^"]*)"', svg)]


def panels(folder):
    return {title[0]: {name[0]: points for name, _, _, points in found}
            for _, title, found in curves.lines_of(folder, {})}


def test_the_logs_that_exist_are_drawn(tmp_path):
    (tmp_path / "sft.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 2, "lo')    # cut off
    (tmp_path / "ppo.jsonl").write_text(
        '{"step": 0, "score": 0.1, "kl": -0.01, "split": "held out"}\n')
    shown = curves.curves(tmp_path, {}, dict(sft="python sft.py"))
    assert shown.count("<figure>") == shown.count("</svg>") == 3    # SFT, PPO, PPO against the KL
    sft = shown.partition("</figure>")[0]
    assert "Supervised fine-tuning" in sft and "training" in sft and "held out" not in sft
    assert sft.count("<circle") == 1                  # a single point is seen, too
    assert shown.count("<code>python sft.py</code>") == 1


def test_a_number_that_is_not_finite_is_left_out(tmp_path):
    (tmp_path / "ppo.jsonl").write_text(
        '{"step": 1, "split": "held out", "score": NaN, "kl": 1.0}\n\0\0\n[]\n'
        '{"step": 2, "split": "held out", "score": 0.5, "kl": null}\n')
    found = panels(tmp_path)["4 PPO: held-out prompts"]
    assert found == {"learned score": [(2, 0.5)], "true grade": [], "KL from SFT": [(1, 1)]}


def test_a_long_curve_keeps_its_last_point_and_few_others(tmp_path):
    tiny.write(tmp_path / "sft.jsonl", *(dict(step=s, loss=s) for s in range(1, 5002)))
    points = panels(tmp_path)["2 Supervised fine-tuning: loss"]["training"]
    assert 300 < len(points) <= 400 and points[-1] == (5001, 5001)


def test_a_line_fills_the_panel_and_keeps_its_proportions():
    (a, b, c), (d, e) = lines(curves.draw([("", "red", "-", [(1, 5), (2, 4), (3, 1)]),
                                           ("", "blue", ":", [(1, 1), (3, 5)])], W=440, H=260))
    assert (a, c) == ((52, 8), (416, 234)) and (d, e) == ((52, 234), (416, 8))
    assert b == (234, 64.5)                           # half of the way, and a quarter


@pytest.mark.parametrize("style, drawn", [
    ("-", ["none", 0]), ("--", ["7 4", 0]), (":", ["2 3", 0]), ("o-", ["none", 2]),
    ("x--", ["7 4", 2]), (".", [None, 2])])
def test_a_style_is_a_line_points_or_both(style, drawn):
    svg = curves.draw([("", "red", style, [(1, 5), (2, 4)])])
    dash = re.search(r'stroke-dasharray="([^"]*)"', svg)
    assert [dash and dash[1], svg.count("<circle")] == drawn


@pytest.mark.parametrize("low, high, expected", [
    (1, 8, [2, 4, 6, 8]), (0.3, 4.7, [1, 2, 3, 4]), (0, 0.3, [0, 0.1, 0.2, 0.3]),
    (-0.05, 0, [-0.05, -0.04, -0.03, -0.02, -0.01, 0]), (0, 3000, [0, 1000, 2000, 3000])])
def test_the_marks_of_an_axis_are_round_numbers(low, high, expected):
    assert curves.ticks(low, high) == pytest.approx(expected)
