"""Scaling laws: the fit, the best size for given compute, the picture, and the script."""

import json
from xml.etree import ElementTree

import numpy as np
import pytest

import tiny
from lessons.scaling import fit, loss_at, optimum, picture, solve

FLAGS = ("--widths=8,12,16 --lengths=2,4,6 --batch_size=2 --block_size=32 --n_layer=1 "
         "--eval_rows=4").split()
N, D = (axis.ravel() for axis in np.meshgrid([5e4, 1e5, 3e5, 9e5], [4e5, 8e5, 1.6e6],
                                             indexing="ij"))
LAWS = [(0.58, 300.0, 0.6, 5e5, 1.1), (0.3, 40.0, 0.4, 1e3, 0.5), (1.0, 1e4, 0.9, 1e2, 0.35)]


# ---- the fit --------------------------------------------------------------------------------

@pytest.mark.parametrize("law", LAWS)
def test_the_law_of_losses_without_noise_is_found_again(law):
    assert fit(N, D, loss_at(law, N, D)) == pytest.approx(law, rel=1e-3)


@pytest.mark.parametrize("law", LAWS)
def test_no_law_near_the_one_that_was_found_is_nearer_to_noisy_losses(law):
    rng = np.random.default_rng(0)
    losses = loss_at(law, N, D) * rng.normal(1, 0.01, len(N))
    found = fit(N, D, losses)

    def error(law):
        return ((loss_at(law, N, D) / losses - 1) ** 2).sum()

    assert error(found) <= error(law)
    for size in (1e-1, 1e-2, 1e-3):
        for change in rng.normal(0, size, (300, 5)):
            assert error(found) < error(found * np.exp(change)) + 1e-9


def test_losses_that_depend_on_the_tokens_only_have_no_part_for_the_weights():
    E, A, a, B, b = fit(N, D, 0.5 + 1e3 / D**0.6)
    assert A / N.min() ** a < 1e-6 and (E, B, b) == pytest.approx((0.5, 1e3, 0.6), rel=1e-3)


def test_the_best_that_is_not_negative_fulfils_the_conditions_of_kuhn_and_tucker():
    """No part can be changed for the better: the gradient is 0 where a part is positive, and not
    negative where it is 0."""
    rng, zeros = np.random.default_rng(0), 0
    for _ in range(200):
        x, y = rng.normal(size=(6, 3)), rng.normal(size=6)
        square, w = solve(x, y)
        gradient = x.T @ (x @ w - y)
        assert (w >= 0).all() and square == pytest.approx(((x @ w - y) ** 2).sum())
        assert abs(gradient[w > 0]).max(initial=0) < 1e-9 and gradient.min() > -1e-9
        zeros += (w == 0).any()
    assert 50 < zeros < 200


# ---- the best size --------------------------------------------------------------------------

@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("C", [1e10, 1e13, 1e16])
def test_no_other_size_has_a_lower_loss_with_the_same_compute(law, C):
    n, d = optimum(law, C)
    assert 6 * n * d == pytest.approx(C)
    sizes = n * np.geomspace(1 / 50, 50, 200_001)
    assert sizes[loss_at(law, sizes, C / 6 / sizes).argmin()] == pytest.approx(n, rel=1e-3)


# ---- the picture ----------------------------------------------------------------------------

def test_a_run_whose_loss_is_the_entropy_lies_on_its_line_and_longer_runs_lie_further_right():
    law, runs = LAWS[0], [[5e4, 4e5, 0.9], [5e4, 8e5, 0.7], [9e5, 4e5, 0.8], [9e5, 8e5, 0.65]]
    root = ElementTree.fromstring(picture(law, runs, [9e5, 1.6e6, 0.6], 0.6))
    dots = [(float(dot.get("cx")), float(dot.get("cy"))) for dot in root.findall("{*}circle")]
    lines = [[tuple(map(float, point.split(","))) for point in line.get("points").split()]
             for line in root.findall("{*}polyline")]
    entropy, small, large = lines
    assert len(dots) == 5 and dots[4][1] == entropy[0][1] == entropy[1][1]
    assert dots[0][0] == dots[2][0] < dots[1][0] == dots[3][0] < dots[4][0]
    assert dots[1][0] - dots[0][0] == pytest.approx(dots[4][0] - dots[1][0], abs=0.11)    # log axis
    assert dots[0][1] < dots[2][1] < dots[1][1] < dots[3][1] < dots[4][1]                # y is down
    assert all(a[1] > b[1] for a, b in zip(large, small)) and len(small) == 50
    assert all(0 < x < 760 and 0 < y < 440 for x, y in dots + sum(lines, []))


def test_without_a_known_entropy_there_is_no_line_for_it():
    runs = [[5e4, 4e5, 0.9], [9e5, 8e5, 0.65]]
    text = picture(LAWS[0], runs, [9e5, 1.6e6, 0.6], float("nan"))
    assert "entropy" not in text and "nan" not in text


# ---- the script -----------------------------------------------------------------------------

GRID = [*FLAGS, "--data=text.jsonl", "--lengths=2,3,32", "--unseen=one.pt"]


@pytest.fixture(scope="module")
def here(tmp_path_factory, tiny_tokenizer):
    """Text whose entropy is known, a run of pretrain.py, and a grid of which it is the largest."""
    folder = tiny.build(tmp_path_factory.mktemp("scaling"), tiny_tokenizer)
    tiny.write(folder / "text.jsonl", *(row | dict(logp=-9.0)
                                        for row in tiny.read_log(folder / "text.jsonl")))
    flags = ("--data=text.jsonl --tokenizer=tok.json --steps=32 --n_embd=16 --micro_batch=2 "
             "--warmup=2 --out=one.pt").split()
    assert tiny.run(folder, "pretrain", *FLAGS[2:], *flags)[0] == 0
    (folder / "said").write_text("\n".join(
        tiny.printed(folder, "lessons/scaling", *GRID, "--out=whole.json")))
    return folder


def test_a_run_of_the_grid_is_one_of_pretrain_py(here):
    found = json.loads((here / "whole.json").read_text())
    assert found["runs"][-1] == found["unseen"]       # weights, tokens and loss
    assert tiny.read_log(here / "one.jsonl")[-1]["val_loss"] == found["unseen"][2]


def test_the_table_shows_the_runs_and_the_law(here):
    found, said = json.loads((here / "whole.json").read_text()), (here / "said").read_text()
    n, d, loss = np.array(found["runs"]).T
    assert len(found["without"]) == 9 and found["law"] == pytest.approx(fit(n, d, loss))
    table = [line for line in said.splitlines() if "%" in line or line.startswith("E ")]
    assert len(table) == 5 and f"the text's entropy is {found['entropy']:.3f}" in table[-1]
    shown = [float(cell) for line in table[:3] for cell in line.split()[1::2]]
    assert shown == pytest.approx(loss, abs=6e-4)


def test_an_interrupted_grid_ends_with_the_same_files_and_table(here):
    """Within a run, and where one ends."""
    with tiny.ctrl_c_in(1, 2, 12, 37) as done:
        ends = [tiny.run(here, "lessons/scaling", *GRID, "--out=parts.json")[0] for _ in range(4)]
        parts = tiny.printed(here, "lessons/scaling", *GRID, "--out=parts.json")
    assert ends == [130] * 4 and max(done.values()) == 1 and len(done) == 111
    for end in ("json", "svg"):
        assert (here / f"whole.{end}").read_bytes() == (here / f"parts.{end}").read_bytes()
    whole = (here / "said").read_text().splitlines()
    assert [line for line in parts if "saved" not in line][-12:] == [
        line for line in whole if "saved" not in line][-12:]


@pytest.mark.parametrize("flag", ["--widths=8,12", "--widths=8,8,8", "--lengths=2,4,x",
                                  "--lengths=0,2,4", "--widths=8,12,15", "--block_size=64"])
def test_a_grid_that_can_not_be_fitted_is_refused_before_the_first_run(here, refused, monkeypatch,
                                                                       flag):
    monkeypatch.chdir(here)
    said = refused("lessons/scaling", *GRID, flag, "--out=no.json")
    assert flag.partition("=")[0] in said or flag.partition(",15")[1] and "n_embd=15" in said
    assert not (here / "no.json").exists() and not (here / "no.state").exists()
