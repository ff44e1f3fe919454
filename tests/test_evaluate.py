"""The scoreboard's arithmetic against brute force, and its commands on tiny models."""

import json
import math
import random
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

import evaluate
import tiny
from answer import complete, response_logp
from common import load_function
from data import town
from data.formats import is_held_out, read_comparisons, read_prompts
from evaluate import best_of, compared, distinct, examine_reward, first_line, groups_of, interval
from lab.chains import show
from model import ScalarGPT
from reward import encode_answer, score
from tiny import ENV, logp_by_hand
from tokenizer import Tokenizer


def test_the_interval_of_groups_is_that_of_a_bootstrap_written_out():
    rng, drawn = np.random.default_rng(0), random.Random(1)
    values, groups = rng.normal(size=60), rng.integers(7, size=60).tolist()
    means = []
    for _ in range(20_000):
        some = [v for g in drawn.choices(range(7), k=7) for v, of in zip(values, groups) if of == g]
        means.append(sum(some) / len(some))
    found = interval(values, groups, rng, n=20_000)
    assert found == pytest.approx((values.mean(), *np.percentile(means, [2.5, 97.5])), abs=0.02)


def test_prompts_are_grouped_by_what_they_are_about_else_by_their_text():
    hi, there = [[dict(role="user", content=text)] for text in ("Hi", "There")]
    rows = [dict(prompt=hi), dict(prompt=there), dict(prompt=hi, kind="fact"),
            dict(prompt=hi, about="Ada"), dict(prompt=there, about="Ada")]
    a, b, c, d, e = groups_of(rows)
    assert a == c != b and d == e == "Ada"


def test_better_equal_and_worse_are_three_shares():
    assert compared([3, 1, 2, 5], [1, 3, 2, 4]) == dict(better=0.5, equal=0.25, worse=0.25)


def test_distinct_is_the_share_of_different_pairs_of_words():
    assert distinct(["a b a b", "b a"]) == 2 / 4      # ab ba ab, ba
    assert distinct(["alone"]) == 0


def test_the_best_of_k_is_the_one_with_the_highest_score():
    rng = np.random.default_rng(0)
    scores, grades = rng.normal(size=(50, 8)), rng.normal(size=(50, 8))
    for found, k in zip(best_of(scores, grades, [1, 2, 8]), [1, 2, 8]):
        chosen = [max(range(k), key=lambda j: row[j]) for row in scores]
        assert found["grade"] == pytest.approx(np.mean([g[j] for g, j in zip(grades, chosen)]))
        assert found["score"] == pytest.approx(np.mean([max(row[:k]) for row in scores]))


def test_the_kl_of_best_of_n_is_that_of_its_distribution():
    """Summed over a million equally likely answers, of which the best of 4 is kept."""
    n, N = 4, 10**6
    p = (np.arange(1, N + 1) / N) ** n - (np.arange(N) / N) ** n      # the k-th best is chosen
    assert best_of(np.zeros((1, n)), None, [n])[0]["kl"] == pytest.approx(
        (p * np.log(p * N)).sum(), abs=1e-4)


def test_log_probabilities_of_answers_equal_a_loop_over_tokens(tiny_tokenizer):
    tok, model = tiny_tokenizer, tiny.model(tiny_tokenizer.vocab_size, block_size=64)
    prompts = [[dict(role="user", content=t)] for t in ("Who?", "What is 12 + 30?", "Ada lives")]
    # tokens as sampled, which encoding their text may not give: 42 as two tokens, half an emoji
    replies = [tok.encode("Ada Ashton") + [tok.end], list(b"42"), [0xf0, 0x9f], [tok.end], []]
    ids = [tok.encode_chat(p, reply=True)[0] for p in prompts + prompts[:2]]
    total, count = response_logp(model, tok, ids, replies, ENV, temperature=0.7, batch_size=2)
    expected = [sum(logp_by_hand(model, *pair, 0.7)) for pair in zip(ids, replies)]
    assert total == pytest.approx(expected, abs=1e-4) and count.tolist() == [*map(len, replies)]


def test_a_base_models_answer_ends_at_the_first_line_break(tiny_tokenizer):
    tok = Tokenizer.train("says.\n" * 9, 270)         # has a token for ".\n"
    ids = tok.encode("She says.\nAnd then")
    assert b".\n" in tok.ranks and tok.decode(first_line(tok, ids)) == "She says.\n"
    assert first_line(tok, ids[:3]) == ids[:3]


def test_the_reward_model_is_examined_pair_by_pair(tiny_tokenizer):
    rng, rows = random.Random(0), []
    reward_model = tiny.model(tiny_tokenizer.vocab_size, ScalarGPT, block_size=64)
    for i, noise in enumerate((0.5, 2.0) * 10):       # two rounds of comparisons
        texts = [*dict.fromkeys(tiny.words(rng, 6) for _ in range(4))]
        rows.append(dict(prompt=[dict(role="user", content="Who?")], responses=texts, noise=noise,
                         kind="fact" if i < 7 else "sum", ranks=list(range(len(texts))),
                         grades=[rng.random() * 6 for _ in texts]))
    pairs = []
    for row in rows:
        ids = [encode_answer(tiny_tokenizer, row["prompt"], t, 64) for t in row["responses"]]
        scores = [score(reward_model, [i], tiny_tokenizer, ENV).item() for i in ids]
        for a, b in combinations(range(len(ids)), 2):
            gap = abs(row["grades"][a] - row["grades"][b]) / row["noise"]
            pairs.append((scores[a] - scores[b], len(ids[a]) - len(ids[b]), row["kind"],
                          1 / (1 + math.exp(-gap))))
    pairs.sort(key=lambda pair: abs(pair[0]))
    margin, longer, kinds, allowed = map(np.array, zip(*pairs))
    right, margin, last = margin > 0, abs(margin), len(pairs) - 1
    found = examine_reward(reward_model, tiny_tokenizer, rows, ENV, std=0.6)
    assert 0.2 < right.mean() < 0.8 and found["pairs"] == len(right)
    assert found["accuracy"] == pytest.approx(right.mean())
    assert found["ceiling"] == pytest.approx(allowed.mean())
    assert found["by_length"] == pytest.approx({
        "longer was preferred": right[longer > 0].mean(), "equal": right[longer == 0].mean(),
        "shorter was preferred": right[longer < 0].mean()})
    assert found["by_kind"] == {kind: (pytest.approx(right[kinds == kind].mean()),
                                       (kinds == kind).sum()) for kind in ("fact", "sum")}
    for i, quarter in enumerate(found["by_margin"]):
        part = slice(math.ceil(last * i / 4), last * (i + 1) // 4 + 1)
        low, high = quarter["margin"]
        assert low - 1e-5 < margin[part].min() and margin[part].max() < high + 1e-5
        assert quarter["accuracy"] == pytest.approx(right[part].mean())
        assert quarter["predicted"] == pytest.approx(
            np.mean(1 / (1 + np.exp(-0.6 * margin[part]))), rel=1e-4)
    assert i == 3


JUDGE = """
def judge(prompt, response):
    return dict(grade=1 + len(response) % 7, right=len(response) % 2, unsure=response < "h",
                refusal=response > "n")
"""


def test_the_scoreboard_is_what_each_models_answers_say(tmp_path, tiny_tokenizer):
    tok, folder = tiny_tokenizer, tiny.build(tmp_path, tiny_tokenizer)
    judge = load_function(f"{tiny.write('judge.py', JUDGE)}:judge")
    prompts = [row["prompt"] for row in read_prompts(folder / "prompts.jsonl")[:12]]
    tiny.write(folder / "asked.jsonl",
               *(dict(prompt=p, kind="ab"[i % 2]) for i, p in enumerate(prompts)))
    tiny.store("ppo.pt", "ppo", tiny.model(tok.vocab_size, block_size=32), tok)   # unlike sft.pt
    ckpt = torch.load(folder / "reward.pt", weights_only=True)
    ckpt["history"][-1] |= dict(config=dict(held_out=0.3), metrics=dict(score_std=0.5))
    torch.save(ckpt, folder / "reward.pt")
    status, names = tiny.run(
        folder, "evaluate", "--data=asked.jsonl", "--models=pretrain.pt,sft.pt,ppo.pt",
        "--reward=reward.pt", "--comparisons=comparisons.jsonl", "--contrasts=none",
        "--examples=sft.jsonl", "--text=text.jsonl", "--judge=judge.py:judge", "--best_of=2",
        "--max_new_tokens=6", "--temperature=0.9", "--dtype=float32", "--out=board.json")
    board, found = json.loads((folder / "board.json").read_text()), {}
    assert status == 0 and board["reference"] == "sft"
    ids = [tok.encode_chat(p, reply=True)[0] for p in prompts]
    models, reward = names["models"], names["reward"]
    for name in ("sft", "ppo"):
        greedy, sampled = (complete(models[name], tok, ids, ENV, 6, t) for t in (0, 0.9))
        texts = [[tok.decode([i for i in reply if i != tok.end]) for reply in replies]
                 for replies in (greedy, sampled)]
        logp, ref_logp = (response_logp(models[m], tok, ids, sampled, ENV, 0.9)[0]
                          for m in (name, "sft"))
        first, second = ([judge(p, t) for p, t in zip(prompts, said)] for said in texts)
        got, grades = board["models"][name], [v["grade"] for v in second]
        found[name] = grades
        assert got["grade"][0] == pytest.approx(np.mean(grades))
        assert got.get("kl", 0) == pytest.approx(np.mean(logp - ref_logp), abs=1e-4)
        assert got["entropy"] == pytest.approx(-logp.sum() / sum(map(len, sampled)), rel=1e-4)
        assert got["score"] == pytest.approx(np.mean(
            [score(reward, [encode_answer(tok, p, t, 32)], tok, ENV).item()
             for p, t in zip(prompts, texts[1])]), abs=1e-4)
        for k, kind in enumerate("ab"):
            assert got["by_kind"][kind] == pytest.approx(dict(
                right=np.mean([v["right"] for v in first[k::2]]),
                right_sampled=np.mean([v["right"] for v in second[k::2]]),
                grade=np.mean(grades[k::2]), unsure=np.mean([v["unsure"] for v in first[k::2]]),
                refusal=np.mean([v["refusal"] for v in first[k::2]]), n=6))
    assert board["models"]["ppo"]["kl"] > 0.1
    assert board["models"]["ppo"]["better"] == np.mean(np.array(found["ppo"]) > found["sft"])
    unseen = [row for row in read_comparisons(folder / "comparisons.jsonl")
              if is_held_out(row["prompt"], 0.3)]
    assert 5 < len(unseen) < 40
    assert board["reward_model"] == json.loads(json.dumps(examine_reward(
        reward, tok, unseen, ENV, 0.5), default=float))


@pytest.mark.parametrize("flag", ["--text=none", "--comparisons=length.py", "--contrasts=length.py",
                                  "--out=tok.json"])
def test_a_file_that_cannot_be_used_is_named_before_the_first_answer(tmp_path, tiny_tokenizer,
                                                                    run_script, flag):
    tiny.build(tmp_path, tiny_tokenizer)
    Path("tok.json").chmod(0o444)
    status, out, err = run_script(
        "evaluate", "--data=prompts.jsonl", "--models=sft.pt", "--judge=", "--reward=reward.pt",
        "--comparisons=", "--contrasts=", "--text=", "--out=board.json", flag)
    assert status == 1 and flag.partition("=")[2] in err and "answered" not in out


def test_intervals_lose_only_their_leading_zeros():
    assert evaluate.cell([0.5, 0.25, 10.0]) == ".50 [.25, 10.00]" and evaluate.cell(0.5) == "0.50"


def test_the_table_has_a_column_for_each_model_and_a_dash_where_a_value_is_missing(capsys):
    sft = dict(grade=(5.5, 5.0, 6.0), ended=0.987, by_kind={
        "sum": dict(n=3, right=1.0, right_sampled=0.5, grade=4.25, unsure=0.0)})
    board = dict(data="test.jsonl", prompts=3, temperature=0.7, reference="sft",
                 models=dict(sft=sft, ppo=dict(sft, kl=1.234)))
    evaluate.show(json.loads(json.dumps(board)))        # as it comes from out/scoreboard.json
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines == ["", "3 prompts from test.jsonl, sampled at temperature 0.7", "", "sft ppo",
                     "sum (3): right greedy / sampled 100.0 / 50.0% 100.0 / 50.0%",
                     "sum: grade 4.25 4.25", "grade, 1 to 7 5.50 [5.00, 6.00] 5.50 [5.00, 6.00]",
                     "KL from SFT (nats) - 1.23", "ended by itself 98.7% 98.7%"]


def test_contrasts_differ_only_in_their_value_and_are_held_out():
    world, rng = town.World(0), random.Random(0)
    for row in (town.contrast(world, rng, "test") for _ in range(300)):
        right, wrong = (town.judge(row["prompt"], r, world.facts) for r in row["responses"])
        assert right["right"] and not wrong["right"]
        first, second = (r.split() for r in row["responses"])
        assert len(first) == len(second) and sum(a != b for a, b in zip(first, second)) == 1
        asked = town.understand(row["prompt"])
        assert asked.get("N") in world.people_of["test"] + [None]
        assert row["kind"] == "fact" or tuple(sorted((asked["x"], asked["y"]))) in \
            world.sums_of["test"]


def test_tables_show_the_median_the_least_and_the_most(capsys):
    show("title", {"grade": "{:.1f}"}, [{"a row": [v]} for v in (3.0, 1.0, 2.0)])
    assert capsys.readouterr().out.splitlines()[-1].split() == ["a", "row", "2.0", "[1.0,", "3.0]"]
