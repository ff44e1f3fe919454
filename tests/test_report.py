"""The report, in a real browser: every view shows the data of the run, and text stays text."""

import json
import math
import shutil
from itertools import combinations

import numpy as np
import pytest
import torch

import sft
from checkpoint import load_checkpoint
from common import Runtime
from data.formats import read_comparisons, read_demonstrations, read_prompts, split
from evaluate import Config, score_texts
from rlhf_ppo import gae
from sft import batch, encode_dialogues, pack
from test_lesson_reason import FLAGS as REASON
from tiny import ROOT, read_log, run, write
from view import report

HOSTILE = "<script>hacked = 1</script><img src=x onerror='hacked = 1'> \u202eabc <|end|> \x1b[31m"


@pytest.fixture(scope="module")
def folder(own_chain):
    """The tiny chain with its scoreboard, a long run of PPO, and the report of all that, with a
    prompt of each of three kinds."""
    assert run(own_chain, "evaluate", "--n_prompts=16", "--best_of=2", "--max_new_tokens=24",
               f"--judge={ROOT}/data/town.py:judge")[0] == 0
    for end in ("pt", "jsonl"):
        shutil.copy(own_chain / f"out/ppo.{end}", own_chain / f"out/free.{end}")
    assert run(own_chain, "lessons/reason", *REASON)[0] == 0
    rows = {row["kind"]: row for row in read_prompts(own_chain / "data/town/test.jsonl")}
    write(own_chain / "three.jsonl", *(rows[kind] for kind in ("fact", "sum", "wish")))
    assert run(own_chain, "view/report", "--prompts=three.jsonl")[0] == 0
    return own_chain


@pytest.fixture(scope="module")
def page(browser, folder):
    """The report, opened: page(script) -> what the script returns."""
    browser.get((folder / "out/report.html").as_uri())
    assert browser.get_log("browser") == []
    return browser.execute_script


def text_of(page, section):
    return page(f"return document.querySelector('#{section}, {section}').innerText")


def press(page, selector, n=0):
    page(f"document.querySelectorAll({json.dumps(selector)})[{n}].click()")


def slide(page, section, to):
    page(f"""const slider = document.querySelector('#{section} input');
             slider.value = {to}; slider.dispatchEvent(new Event('input'))""")


def log(folder):
    return read_log(folder / "out/ppo.jsonl")


# ---------------------------------------------------------------------------------------------
# each view shows its data

def test_every_view_is_filled_and_none_is_missing(page):
    views = page("""return [...document.querySelectorAll('.view')].map(view =>
        [view.closest('section').id, view.innerText.length,
         view.querySelector(':scope > .note.card') === null])""")
    assert len(views) == 13
    assert [view["kind"] for view in page("return data.next.views")] == ["fact", "sum", "wish"]
    assert all(length > 20 and there for _, length, there in views), views
    made = page("return [...document.querySelectorAll('code')].map(code => code.textContent)")
    assert sum(line.startswith("python rlhf_ppo.py") for line in made) > 5    # as in each figure


def test_the_mask_is_that_of_the_training(page, folder):
    ckpt = load_checkpoint(folder / "out/sft.pt", "sft")
    tok, T = ckpt["tokenizer"], ckpt["model_config"]["block_size"]
    train, _ = split(read_demonstrations(folder / "data/town/sft.jsonl"), "messages")
    dialogues, *_ = encode_dialogues(train, tok, T)
    rng = np.random.default_rng(ckpt["config"]["seed"])
    _, y = batch(dialogues, pack([len(ids) for ids, _ in dialogues], T, 3, rng)[:3], T, tok.pad)
    shown = page("""return [...document.querySelectorAll('#mask .tokens')].map(row =>
        row.querySelectorAll('.learned').length)""")
    assert shown == (y >= 0).sum(1).tolist() and min(shown) > 0


def test_the_page_tokenizes_as_the_tokenizer_does(page, folder):
    tok = load_checkpoint(folder / "out/sft.pt", "sft")["tokenizer"]
    for text in (" parrot", "What is 12 + 30?", "THEY'RE  here\n\n ok", "naïve 你好 😊", "", "  ",
                 "'S don'T we'Ll", "x=1;\r\n\ty", "I'ſ", "a" * 50, "<|end|>"):
        assert page("return steps(arguments[0]).at(-1)", text) == tok.encode(text), text
    assert page("return steps('é')[0].length") == 2   # first come the bytes


def test_probabilities_at_a_token_are_those_of_the_model(page, folder):
    data = page("return data.next")
    ckpt = load_checkpoint(folder / "out/sft.pt", "sft")
    tok, model = ckpt["tokenizer"], ckpt["model"].eval()
    view = data["views"][0]
    ids = tok.encode_chat(view["prompt"], reply=True)[0] + view["said"]
    with torch.no_grad():
        p = model(torch.tensor([ids[:-1]])).softmax(-1)[0, -len(view["said"]):]
    for t, found in enumerate(view["top"]["sft"]):
        assert [id for id, _ in found] == p[t].topk(10).indices.tolist()
        assert [q for _, q in found] == pytest.approx(p[t].topk(10).values.tolist(), abs=1e-4)


def test_choosing_another_token_shows_how_each_model_goes_on(page):
    press(page, "#next .tokens button", 1)
    press(page, "#next .cols button:enabled")
    view, said = page("return data.next.views[0]"), text_of(page, "next")
    chosen = next(id for id, _ in view["top"]["pretrain"][1] if f"1 {id}" in view["after"])
    for stage, name in (("pretrain", "pretrained: "), ("sft", "SFT: "), ("ppo", "PPO: ")):
        after = view["after"][f"1 {chosen}"][stage]
        assert name in said and " ".join(after.split()) in " ".join(said.split())


def test_ranking_gives_the_agreement_computed_by_hand(page, folder):
    _, rows = split(read_comparisons(folder / "out/comparisons.jsonl"))
    agreed = pairs = 0
    for _ in range(3):
        number = page("return parseInt(document.querySelector('#rank .view .note').innerText)")
        item = page("return data.rank.items[arguments[0] - 1]", number)
        n = len(item["responses"])
        for i in range(n - 1):                        # the last one follows
            press(page, "#rank .rank", i)
        row = next(r for r in rows if r["prompt"] == item["prompt"]
                   and sorted(r["responses"]) == sorted(item["responses"]))
        rank = dict(zip(row["responses"], row["ranks"]))
        for a, b in combinations([rank[response] for response in item["responses"]], 2):
            pairs, agreed = pairs + (a != b), agreed + (a < b)
        said = text_of(page, "agreement")
        assert f"on {round(100 * agreed / pairs)}% of {pairs} pairs" in said
        press(page, "#rank .view .bar button")
    assert "Two labelers agree on 73%" in said


def test_scores_along_an_answer_end_with_the_score_of_the_whole_one(page, folder):
    data = page("return data.along")
    item = data["items"][0]
    ckpt = load_checkpoint(folder / "out/reward.pt", "reward")
    row = read_comparisons(folder / "data/town/contrasts.jsonl")[0]
    scores = score_texts(ckpt["model"], ckpt["tokenizer"],
                         [row["prompt"]] * 2, row["responses"], Runtime(Config(device="cpu")))
    last = [answer["scores"]["ours"][-1] for answer in item["answers"]]
    assert last == pytest.approx(scores.tolist(), abs=2e-3)
    assert "--out=out/textbook.pt" in text_of(page, "along")


def test_the_sum_of_gae_is_that_of_ppo(page, folder):
    [*_, last] = [r for r in log(folder) if r.get("answers")]
    a = last["answers"][0]
    press(page, "#tokens .bar button")                # the first kind, at the last iteration
    # each token pays for its distance, and the last one earns the score
    reward = -0.1 * (torch.tensor([a["logp"]]) - torch.tensor([a["ref_logp"]]))
    reward[0, -1] += a["score"]
    advantages, returns = gae(reward, torch.tensor([a["values"]]), torch.ones_like(reward), 1, 0.95)
    for i in (0, len(a["tokens"]) - 1):
        press(page, "#tokens .tokens button", i)
        shown = page("""return [...document.querySelectorAll('#tokens .cols .card:first-child .n')]
            .map(cell => +cell.innerText)""")
        expected = [x[0, i].item() for x in (reward, advantages, returns)]
        assert [shown[5], *shown[7:]] == pytest.approx(expected, abs=1e-3)
        assert text_of(page, "tokens .sum").startswith(f"A = {expected[1]:.3f}"[:7])


def test_the_log_has_answers_at_every_evaluation_and_ratios_at_every_iteration(folder):
    rows = log(folder)
    assert [r["step"] for r in rows if r.get("answers")] == [1, 5, 8]
    for row in (r for r in rows if "split" not in r):
        assert len(row["ratios"]) == 20 and sum(row["ratios"]) > 100 and len(row["samples"]) == 3
    first, last = rows[1]["answers"], rows[-1]["answers"]
    assert [a["kind"] for a in first] == [a["kind"] for a in last]
    assert first[0]["logp"] == first[0]["ref_logp"]   # the policy starts as its reference
    assert first[0]["logp"] != first[0]["new_logp"]
    assert last[0]["logp"] == pytest.approx(last[0]["new_logp"], abs=1e-3)   # no updates follow


def test_the_timeline_shows_each_iteration(page, folder):
    row = [r for r in log(folder) if "split" not in r][2]
    slide(page, "time", 2)
    said = text_of(page, "time")
    assert "iteration 3" in said and f"{row['objective/score']:.2f}" in said
    assert row["samples"][0][0][-1]["content"] in said
    heights = page("""return [...document.querySelectorAll('#time svg rect')].slice(1)
        .map(bar => +bar.getAttribute('height'))""")
    assert [h > 0 for h in heights] == [n > 0 for n in row["ratios"]]


def test_a_hundred_openings_are_counted_for_each_model(page):
    found = page("return data.openings")
    assert [v["kind"] for v in found] == [v["kind"] for v in page("return data.next.views")]
    for v in found:
        assert {*v["counts"]} == {"pretrain", "sft", "ppo"}
        assert all(sum(n for _, n in counts) == 100 for counts in v["counts"].values())
    words, n = found[0]["counts"]["sft"][0]
    said = text_of(page, "openings")
    assert words in said and f"{len(found[0]['counts']['sft'])} different openings" in said


def test_over_optimisation_shows_score_grade_and_answers(page, folder):
    row = [r for r in log(folder) if r.get("split")][0]
    said = text_of(page, "over")
    assert f"{row['score']:.2f}" in said and f"{row['grade']:.2f}" in said
    assert log(folder)[1]["answers"][0]["prompt"][-1]["content"] in said
    slide(page, "over", 99)                           # the last one
    assert log(folder)[-1]["answers"][0]["prompt"][-1]["content"] in text_of(page, "over")


def test_reasoning_shows_curves_and_answers(page, folder):
    rows = [r for r in read_log(folder / "out/reason.jsonl") if r.get("split")]
    said = text_of(page, "reason")
    assert f"in steps {rows[-1]['in_steps']:.3f}" in said and "iteration 0" in said
    assert all(prompt[-1]["content"] in said for prompt, *_ in rows[0]["samples"])
    slide(page, "reason", 99)
    assert "iteration 4" in text_of(page, "reason")
    assert len(page("return [...document.querySelectorAll('#reason figure')]")) == 2


def test_the_table_shows_the_scoreboard_and_each_command_only_what_is_no_default(page, folder):
    board = json.loads((folder / "out/scoreboard.json").read_text())
    mean, low, high = board["models"]["ppo"]["grade"]
    assert f"{mean:.2f}\n{low:.2f}–{high:.2f}" in text_of(page, "board")
    assert f"{mean:.2f} after PPO" in text_of(page, "headline")
    line = page("return data.commands.ppo")
    assert {"--steps=8", "--batch_size=64", "--lr=0.001"} <= set(line.split())
    assert "--gamma" not in line and line in text_of(page, "settings")
    assert len(page("return [...document.querySelectorAll('#curves figure')]")) == 8


# ---------------------------------------------------------------------------------------------
# safety, languages, half-way

def test_text_stays_text(browser, folder, tmp_path):
    """Hostile prompts, answers and tokens show as what they are; none runs or turns the writing."""
    asked = [dict(role="user", content=HOSTILE)]
    for name in ("ppo.jsonl", "free.jsonl"):
        rows = read_log(folder / "out" / name)
        for row in rows:
            row["samples"] = [[asked, HOSTILE, 1.0]]
            for answer in row.get("answers") or []:
                answer["prompt"], answer["tokens"][0] = asked, HOSTILE
        write(tmp_path / name, *rows)
    board = json.loads((folder / "out/scoreboard.json").read_text())
    board["models"][HOSTILE] = board["models"]["ppo"]
    write(tmp_path / "scoreboard.json", board)
    assert run(folder, "view/report", f"--folder={tmp_path}")[0] == 0
    browser.get((tmp_path / "report.html").as_uri())
    assert browser.get_log("browser") == []
    found = browser.execute_script("return [typeof hacked, document.images.length]")
    assert found == ["undefined", 0]
    for section in ("tokens", "time", "over", "board"):
        said = text_of(browser.execute_script, section)
        assert "<script>hacked = 1</script>" in said and "<|end|>" in said
        assert section == "board" or "\\u202eabc" in said and "\\u001b[31m" in said


def test_the_page_asks_nothing_of_the_network(folder):
    html = (folder / "out/report.html").read_text()
    assert "default-src 'none'" in html and len(html) < 3e6
    rest = html.replace("http://www.w3.org/", "").replace("https://www.w3.org/", "")
    for word in ("http:", "https:", "@import", " src=", "url(h"):
        assert word not in rest.partition('id="data"')[0], word


@pytest.mark.parametrize("speaks, first", [("en-US", 0), ("zh-CN", 1)])
def test_both_languages_are_there_and_that_of_the_browser_is_shown(speaks, first, browser, folder):
    browser.execute_cdp_cmd("Emulation.setUserAgentOverride",
                            dict(userAgent="", acceptLanguage=speaks))
    browser.get((folder / "out/report.html").as_uri())
    shown = ["From text to assistant: what the models have learned", "从文本到助手：模型学到了什么"]
    assert text_of(browser.execute_script, "h1") == shown[first]
    press(browser.execute_script, "#switch")
    assert text_of(browser.execute_script, "h1") == shown[1 - first]
    found = browser.execute_script("""return ['en', 'zh'].map(lang =>
        document.querySelectorAll(`:is(header, main, nav, footer) :lang(${lang})[lang]`).length)""")
    assert found[0] == found[1] > 100


def test_a_run_that_is_half_way_has_a_page_too(browser, folder, tmp_path):
    shutil.copy(folder / "out/pretrain.jsonl", tmp_path)
    write(tmp_path / "one.jsonl", (folder / "three.jsonl").read_text().splitlines()[0])
    for names in ([], ["pretrain.pt"], ["sft.pt", "sft.jsonl"], ["comparisons.jsonl", "reward.pt"]):
        for name in names:
            shutil.copy(folder / "out" / name, tmp_path)
        assert run(folder, "view/report", f"--folder={tmp_path}",
                   f"--prompts={tmp_path / 'one.jsonl'}")[0] == 0
        browser.get((tmp_path / "report.html").as_uri())
        assert browser.get_log("browser") == []
        assert "python rlhf_ppo.py" in text_of(browser.execute_script, "tokens")
        said = text_of(browser.execute_script, "next")
        assert ("python pretrain.py" in said) == (not (tmp_path / "pretrain.pt").exists())


def embedded(file):
    """The data in a page, as a browser reads it: JSON without NaN."""
    text = file.read_text("utf-8").partition('id="data">')[2].partition("</script>")[0]
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_what_is_broken_or_not_finite_costs_the_report_only_that(tmp_path, capsys):
    (tmp_path / "ppo.jsonl").write_text(
        '{"step": 1, "objective/score": NaN, "ratios": [1, Infinity]}\n{"step": 2, "lo\n\0\n'
        '{"step": 2, "split": "held out", "score": 0.5, "grade": NaN, "kl": NaN}\n'
        '{"step": 3, "split": "held out", "score": 0.6, "kl": 0.25}\n')
    (tmp_path / "comparisons.state").write_bytes(b"\0" * 99)
    model = dict(grade=[math.nan] * 3, better=0.5, worse=0.5, kl=math.nan, length=3.0)
    board = dict(models=dict(sft=model, ppo=model), reference="sft", prompts=2, data="a.jsonl",
                 temperature=1.0, best_of_n=[dict(n=1, kl=0.0, score=math.inf, grade=None)])
    for text in (json.dumps(board), "", "\0" * 99, "[1]", '{"models'):
        (tmp_path / "scoreboard.json").write_text(text)
        assert run(tmp_path, "view/report", "--folder=.")[0] == 0
        data = embedded(tmp_path / "report.html")
        first, *others = data["logs"]["ppo"]
        assert first == {"step": 1, "objective/score": None, "ratios": [1, None]}
        assert [row["kl"] for row in others] == [None, 0.25]
        assert "nan" not in str([data["board"], data["commands"]])
    said = capsys.readouterr().err
    for file in ("ppo.jsonl: 2 broken lines", "comparisons.state is", "scoreboard.json is broken"):
        assert said.count(file) == 1


@pytest.mark.parametrize("flags, line", [
    (dict(steps=7, data="a.jsonl"), "python sft.py --data=a.jsonl --steps=7"),
    (dict(data="my $(file).jsonl"), "python sft.py '--data=my $(file).jsonl'")])
def test_a_command_can_be_pasted_into_a_shell(flags, line):
    assert report.command("sft", vars(sft.Config(**flags))) == line


# ---------------------------------------------------------------------------------------------
# curves

LOGS = dict.fromkeys(("pretrain", "sft", "reward", "ppo"), [])


def figures(page, **logs):
    """The texts of the panels that have a line."""
    return page("""return curves(arguments[0], [], {sft: "python sft.py"}).flat().map(figure =>
        [figure.textContent, figure.querySelectorAll("circle").length])""", LOGS | logs)


def test_the_logs_that_exist_are_drawn(page):
    sft, ppo, distance = figures(page, sft=[dict(step=1, loss=2)], ppo=[
        dict(step=0, score=0.1, kl=-0.01, split="held out")])
    assert "Supervised fine-tuning" in sft[0] and "training" in sft[0] and "held out" not in sft[0]
    assert sft[1] == 1                                # a single point is seen, too
    assert "python sft.py" in sft[0] and "python" not in ppo[0] + distance[0]


def test_a_number_that_is_not_finite_is_left_out(page):
    rows = [dict(step=1, split="held out", score=None, kl=1), dict(step=2, split="held out",
                                                                    score=0.5, kl=None)]
    panel, *others = figures(page, ppo=rows)
    assert "奖励模型的分数 0.500" in panel[0] and "与 SFT 的 KL 1.000" in panel[0]
    assert "true grade" not in panel[0] and not others


def draw(page, *lines):
    """The points of each line on a panel of 440 by 260, their dashes, and the number of dots."""
    return page("""const svg = document.body.appendChild(draw(arguments[0]));
        const found = [[...svg.querySelectorAll("polyline")].map(line => [
            line.getAttribute("points").split(" ").map(point => point.split(",").map(Number)),
            getComputedStyle(line).strokeDasharray]), svg.querySelectorAll("circle").length];
        svg.remove();
        return found;""", lines)


def test_a_line_fills_the_panel_and_keeps_its_proportions(page):
    [[(a, b, c), _], [(d, e), _]], _ = draw(page, [[[1, 5], [2, 4], [3, 1]], "loss", ""],
                                            [[[1, 1], [3, 5]], "text", ""])
    assert (a, c) == ([52, 8], [416, 234]) and (d, e) == ([52, 234], [416, 8])
    assert b == [234, 64.5]                           # half of the way, and a quarter


@pytest.mark.parametrize("style, dashes, dots", [
    ("", "none", 0), ("dashed", "7px, 4px", 0), ("dotted", "2px, 3px", 0), ("dots", "none", 2),
    ("dashed dots", "7px, 4px", 2)])
def test_a_style_is_a_line_with_or_without_dashes_and_dots(page, style, dashes, dots):
    [[_, dash]], n = draw(page, [[[1, 5], [2, 4]], "loss", style])
    assert (dash, n) == (dashes, dots)


@pytest.mark.parametrize("low, high, expected", [
    (1, 8, [2, 4, 6, 8]), (0.3, 4.7, [1, 2, 3, 4]), (0, 0.3, [0, 0.1, 0.2, 0.3]),
    (-0.05, 0, [-0.05, -0.04, -0.03, -0.02, -0.01, 0]), (0, 3000, [0, 1000, 2000, 3000])])
def test_the_marks_of_an_axis_are_round_numbers(page, low, high, expected):
    assert page("return ticks(...arguments)", low, high) == expected
