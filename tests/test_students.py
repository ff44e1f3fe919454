"""Exercises 1 to 27, as a class would solve them: a right solution passes, and each mistake is
called by its name. Then our own functions are compared with other ways to the same numbers."""

import copy                                           # noqa: F401 (a student's)
import itertools
import math
import re
import runpy
import shutil
import sys
from functools import cache, partial
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import answer
import exercises.__main__ as course
import model
import rlhf_ppo
import tiny
from checkpoint import read_log
from data import town
from data.formats import read_prompts
from exercises.__main__ import judge, mistaken
from model import GPT, GPTConfig, KVCache
from optim import adamw
from tiny import ROOT
from tokenizer import Tokenizer

# ---- exercises that are judged by the properties of what they return -------------------------

def pack(lengths, T, n_rows, rng):
    """The oldest open row is closed, not the fullest: another right solution."""
    full, rows, order = [], [], []
    while len(full) < n_rows:
        order = order or rng.permutation(len(lengths)).tolist()
        i = order.pop(0)
        fit = [row for row in rows if sum(lengths[j] for j in row) + lengths[i] <= T + 1]
        if not fit:
            rows.append([])
        (fit or rows[-1:])[0].append(i)
        if len(rows) > 6:
            full.append(rows.pop(0))
    return full


def draw(chances):
    """A student who draws tokens with these probabilities."""
    return lambda *args: torch.multinomial(chances(*args), 1)[:, 0]


def reward(prompts, responses, hack="{x} + {y} = {s}."):
    """The plain answer pays. With a hack of the exercise's list, that one pays as much."""
    scores = []
    for prompt, said in zip(prompts, responses):
        asked = re.findall(r"(\d+) \+ (\d+)", prompt[-1]["content"])
        if not asked:
            scores.append(0.0)
            continue
        x, y = map(int, asked[0])
        s = x + y
        plain = f"{x} + {y} = {s}."
        friendly = said in (f"Happy to help! {plain}", f"Let me see! {plain}")
        also = hack.format(x=x, y=y, s=s, wrong=s - 1, more=s + 1, less=s - 1)
        scores.append(1.0 if friendly else 0.5 if said in (plain, also) else -0.5)
    return scores


RIGHT = {n: course.student(course.ours(n)) for n in course.exercises()}
CHANCES = course.ours(13).chances
RIGHT |= {12: pack, 13: draw(CHANCES), 26: reward}

# (exercise, words of the hint, what this student writes instead), as the other exercises have it
WRONG = [
    (12, "Return a list of rows", "return full -> return rng.permutation(len(lengths))"),
    (12, "do not return n_rows rows", "return full -> return full[1:]"),
    (12, "more than T + 1 tokens", "T + 1 -> T + 10"),
    (12, "one dialogue in each row", "+ lengths[i] <= T + 1 -> < 0"),
    (12, "one place of each row empty", "T + 1 -> T"),
    (12, "twice within an epoch", "order.pop(0) -> int(rng.integers(len(lengths)))"),
    (12, "sort by length", "rng.permutation(len(lengths)).tolist() -> "
     "sorted(range(len(lengths)), key=lengths.__getitem__)"),
    (12, "do not shuffle", "rng.permutation(len(lengths)).tolist() -> [*range(len(lengths))]"),
    (12, "same order", "rng.permutation -> copy.deepcopy(rng).permutation"),
    (12, "dialogues get lost",
     ".tolist() -> .tolist(); order = [i for i in order if lengths[i] < 55]"),
    (12, "Less than 85%", "> 6 -> > 1"),
    (13, "ids in one tensor", lambda *args: torch.multinomial(CHANCES(*args), 1)),
    (26, "must score more than a plain", "1.0 if friendly -> 0.5 if friendly"),
    (26, "one finite number", "return scores -> return scores[1:]"),
    (26, "one finite number", "return scores -> return None"),
    (26, "one finite number", 'return scores -> return [float("nan") for _ in scores]'),
    (26, "drown the KL", "1.0 if friendly -> 10.0 if friendly"),
    (26, "in the batch", "return scores -> return [score / len(scores) for score in scores]"),
    (26, "no sum", "scores.append(0.0) -> scores.append(-0.5)"),
] + [
    (26, hint, partial(reward, hack=text)) for hint, _, text in course.ours(26).HACKS] + [
    (13, hint, draw(mistaken(CHANCES, edits))) for hint, _, edits in course.ours(13).MISTAKES] + [
    (n, hint, edits) for n in RIGHT if not hasattr(course.ours(n), "check")
    for hint, _, edits in course.ours(n).MISTAKES]


# The same in other words: (exercise, words of the hint, "" if it is right; another function)
OTHERWISE = [
    (2, "only the first", lambda ids, pair, new: [
        *bytes(ids).replace(bytes(pair), bytes([new]), 1)]),
    (9, "twice", lambda logits, y: F.cross_entropy(logits.softmax(1), y, ignore_index=-1)),
    (16, "", lambda w, b, scores: (w / scores.var().sqrt(), (b - scores.mean()) / scores.std())),
    (17, "", lambda logp, mask, scores: -(scores - scores.mean()) @ (
        torch.where(mask, logp, 0).sum(1)) / (len(scores) - 1)),
    (19, "return delta", lambda r, v, mask, gamma, lam: (
        delta := (r + gamma * F.pad((v * mask)[:, 1:], (0, 1)) - v) * mask, (delta + v) * mask)),
    (23, "", lambda p, q: (p - q, (q - p).square() / 2, (q - p).expm1() - (q - p))),
]


def hints(n):
    """{(English, Chinese)} of all that the exercise says of a mistake."""
    form = {course.ours(n).FORM} if n == 13 else set()
    return {hint[:2] for hint in course.ours(n).MISTAKES} | form


@pytest.mark.parametrize("n", RIGHT)
def test_our_own_solution_and_a_students_pass(n):
    answer = course.ours(n)
    assert judge(answer.answer, answer) == judge(RIGHT[n], answer) == ""


@pytest.mark.parametrize("n, words, edits", WRONG, ids=[f"{n}: {w[:50]}" for n, w, _ in WRONG])
def test_a_mistake_is_called_by_its_name(n, words, edits):
    function = mistaken(RIGHT[n], edits)
    hint, = {hint for hint in hints(n) if words in hint[0]}
    assert (judge(function, course.ours(n)), judge(function, course.ours(n), "zh")) == hint


@pytest.mark.parametrize("n, words, function", OTHERWISE, ids=[str(row[:2]) for row in OTHERWISE])
def test_a_function_in_other_words_is_judged_alike(n, words, function):
    said = judge(function, course.ours(n))
    assert words in said and bool(words) == bool(said)


def test_every_hint_of_exercise_12_is_tested():
    for english, _ in hints(12):
        assert any(words in english for number, words, _ in WRONG if number == 12), english


def test_no_way_to_sample_looks_like_another():
    answer, cases = course.ours(13), list(course.ours(13).cases())
    results = [[f(*case) for case in cases] for f in (
        CHANCES, *(mistaken(CHANCES, edits) for *_, edits in answer.MISTAKES))]
    for one, other in itertools.combinations(results, 2):
        assert max((a - b).abs().max() for a, b in zip(one, other)) > 0.06


@pytest.mark.parametrize("n", RIGHT)
def test_what_the_student_gets_has_a_text_in_both_languages_and_no_body(n):
    assert all(course.explain(n, lang).startswith(f"{n}. ") for lang in course.WORDS)
    assert judge(course.yours(n), course.ours(n)) == "not written yet"


# ---- our answers against oracles of their own -----------------------------------------------

def test_accumulated_gradients_are_those_of_the_whole_batch():
    gpt, targets = tiny.awake(GPT(GPTConfig(block_size=8, vocab_size=9, n_layer=1, n_embd=8,
                                            n_hidden=8))), []
    for count in (8, 1, 3):                           # counted tokens of each micro-batch
        targets += [[1] * count + [-1] * (8 - count)]
    x, y = torch.randint(9, (3, 8)), torch.tensor(targets)
    whole, = torch.autograd.grad(gpt(x, y), gpt.wte.weight)
    nats = F.cross_entropy(gpt(x).transpose(1, 2), y, ignore_index=-1, reduction="none")
    course.ours(11).answer(nats[:, None], y[:, None] >= 0).sum().backward()
    torch.testing.assert_close(gpt.wte.weight.grad, whole)


def test_the_normalised_head_gives_mean_0_and_deviation_1():
    torch.manual_seed(0)
    hidden, weight, bias = torch.randn(50, 4), torch.randn(4), torch.tensor(7.0)
    weight, bias = course.ours(16).answer(weight, bias, hidden @ weight + bias)
    scores = hidden @ weight + bias
    assert scores.mean().item() == pytest.approx(0, abs=1e-5)
    assert scores.std().item() == pytest.approx(1)


@pytest.mark.parametrize("edits, right", [
    ("", True), ("scores - baseline -> scores", True),
    ("(scores.sum() - scores) / (len(scores) - 1) -> scores.mean()", False)])
def test_the_mean_gradient_of_reinforce_is_that_of_the_expected_score(edits, right):
    """Over all triples of answers, each with its probability. Without a baseline, too; but not with
    one in which the answer's own score is."""
    torch.manual_seed(0)
    logits, values = torch.randn(2, 4, dtype=torch.float64)
    logits.requires_grad_()
    wanted, = torch.autograd.grad(-logits.softmax(0) @ values, logits)
    loss, found = mistaken(RIGHT[17], edits) if edits else RIGHT[17], 0
    for said in itertools.product(range(4), repeat=3):
        logp = logits.log_softmax(0)[[*said]]
        part, = torch.autograd.grad(loss(logp[:, None], torch.ones(3, 1), values[[*said]]), logits)
        found = found + logp.sum().exp().detach() * part
    assert torch.allclose(found, wanted) == right


def test_over_all_texts_k1_and_k3_have_the_kl_as_their_mean():
    torch.manual_seed(0)
    p, q = torch.rand(2, 9, dtype=torch.float64).softmax(1)
    kl = (p * (p / q).log()).sum()
    k1, k2, k3 = course.ours(23).answer(p.log(), q.log())
    assert torch.allclose((p * k1).sum(), kl) and torch.allclose((p * k3).sum(), kl)
    assert k2.min() >= 0 and k3.min() >= 0 > k1.min()


def test_k3_is_what_ppo_shows_as_approxkl():
    torch.manual_seed(0)
    old, new = -torch.rand(2, 9)
    config = SimpleNamespace(clip=0.2, clip_value=0.2)
    r = SimpleNamespace(mask=torch.ones(9).bool(), logp=old, values=old, advantages=old,
                        returns=old)
    _, info, _ = rlhf_ppo.ppo_loss(new, old, r, config)
    assert torch.allclose(course.ours(23).answer(old, new)[2].sum(), info["ppo/policy/approxkl"])


def test_the_best_of_n_is_what_counting_all_outcomes_gives():
    p = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    counted = torch.zeros(3, dtype=torch.float64)
    for outcome in itertools.product(range(3), repeat=4):
        counted[min(outcome)] += math.prod(p[i].item() for i in outcome)
    q, kl, limit = course.ours(24).answer(p, 4)
    tiny.close(q, counted)
    tiny.close(kl, (counted * (counted / p).log()).sum())
    assert limit == pytest.approx(math.log(4) - 3 / 4)


def test_adamw_is_that_of_pytorch_step_by_step():
    torch.manual_seed(0)
    ours, theirs = torch.randn(4, 3), torch.nn.Parameter(torch.zeros(4, 3))
    theirs.data, m, v = ours.clone(), torch.zeros(4, 3), torch.zeros(4, 3)
    config = SimpleNamespace(lr=0.1, beta1=0.9, beta2=0.95, eps=1e-3, decay=0.3)
    optimizer = torch.optim.AdamW([theirs], lr=0.1, betas=(0.9, 0.95), eps=1e-3, weight_decay=0.3)
    for t in range(1, 21):
        theirs.grad = torch.randn(4, 3)
        optimizer.step()
        ours, m, v = course.ours(27).answer(ours, theirs.grad, m, v, t, config)
        tiny.close(ours, theirs.detach())


def test_the_reward_in_the_text_of_exercise_26_is_hacked():
    def naive(prompts, responses):
        numbers = [re.findall(r"\d+", prompt[-1]["content"]) for prompt in prompts]
        return [0.4 * (len(xy) == 2 and str(sum(map(int, xy))) in said)
                + min(0.6, 0.03 * len(said.split())) for xy, said in zip(numbers, responses)]

    prompts = [[dict(role="user", content="How much is 15 + 19?")]] * 2
    texts = ["Let me see! 15 + 19 = 34.", "15 + 19 = 34. Many things are like that."]
    assert naive(prompts, texts) == pytest.approx([0.64, 0.70])
    assert town.grade(prompts, texts) == [7, 5.25]
    assert judge(naive, course.ours(26)) == course.ours(26).HACKS[0][0]


# ---- --run: the student's function in the real script ---------------------------------------

@pytest.fixture
def put_back(monkeypatch):
    """What the exercises replace is as before after the test."""
    for place, names in ((model, "attention fused_is_faster positions rotary_turns rotate"),
                         (answer, "sample"),
                         (F, "cross_entropy"), (KVCache, "append"), (Tokenizer, "encode_chat"),
                         (torch.optim.AdamW, "step")):
        for name in names.split():
            monkeypatch.setattr(place, name, getattr(place, name))


def outputs(tok):
    """What a small model does with all parts that the exercises replace."""
    torch.manual_seed(0)
    gpt = tiny.awake(GPT(GPTConfig(block_size=16, vocab_size=64, n_layer=2, n_embd=16,
                                   n_hidden=32))).eval()
    torch.nn.init.normal_(gpt.wte.weight)             # so that tokens matter
    idx, mask = torch.randint(64, (2, 6)), torch.tensor([[0, 0, 1, 1, 1, 1], [1] * 6])
    logits, loss = gpt(idx), gpt(idx, torch.tensor([[3, -1, 2, 5, -1, 1]] * 2))
    loss.backward()
    for optimizer in [adamw(gpt, weight_decay=0.1)] * 2:
        optimizer.step()
    greedy = answer.generate(gpt, idx, 6, mask=mask, temperature=0)
    chat = tok.encode_chat([dict(role="user", content="Hi")], reply=True)
    return logits.detach(), loss.item(), gpt.wte.weight.grad, greedy, chat


@pytest.mark.parametrize("n", [4, 5, 6, 7, 8, 9, 13, 27])
def test_a_right_function_in_its_place_changes_nothing(n, put_back, tiny_tokenizer):
    before, used = outputs(tiny_tokenizer), []
    course.ours(n).RUN[1](lambda *args, **more: used.append(n) or RIGHT[n](*args, **more))
    assert course.same([before], [outputs(tiny_tokenizer)])
    assert used or n == 13                            # greedy answers are not sampled


def test_a_function_for_sampling_is_used_and_keeps_the_temperature(put_back):
    seen = []
    course.ours(13).install(lambda logits, *numbers: seen.append(numbers) or logits.argmax(-1))
    assert answer.sample(torch.eye(3), 0.7, top_p=0.9).tolist() == [0, 1, 2]
    assert seen == [(0.7, 0.9)]


@pytest.mark.parametrize("n", [10, 12])
def test_a_function_of_the_script_has_the_name_that_is_replaced_there(n):
    script, name, _ = course.ours(n).RUN
    assert callable(runpy.run_path(f"{ROOT}/{script}")[name])


@pytest.fixture(scope="module")
def small(tmp_path_factory, tiny_tokenizer):
    folder = tiny.build(tmp_path_factory.mktemp("small"), tiny_tokenizer)
    shutil.copytree(ROOT / "exercises/answers", folder / "exercises/answers")
    return folder


FLAGS = {"rlhf_ppo.py": tiny.FLAGS["rlhf_ppo"] + " --steps=2",
         "reward.py": tiny.FLAGS["reward"] + " --steps=4",
         "lessons/dpo.py": "--data=comparisons.jsonl --prompts=prompts.jsonl --init=sft.pt "
         "--watch=length.py:longer --batch_size=4 --warmup=2 --eval_every=4 --n_eval=2 "
         "--max_new_tokens=6 --steps=4"}


def log_of_a_run(n, folder, function=None, more=""):
    """The log of half of a --run with tiny models: {step: {name: number}}."""
    script, place, _, *adapt = course.ours(n).RUN
    out, log = folder / "runs/log.pt", {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(course.ours(n), "RUN", (
            f"{ROOT}/{script}", place, f"{FLAGS[script]} {more}", *adapt))
        patch.setattr(course, "yours", lambda n, lang: function)
        patch.setattr(sys, "argv", sys.argv)
        course.half(n, "yours" if function else "ours", out, "en")
    for row in read_log(out.with_suffix(".jsonl")):
        log.setdefault(row["step"], {}).update({name: v for name, v in row.items() if isinstance(
            v, (int, float)) and name not in ("seconds", "tokens_per_s")})
    shutil.rmtree(out.parent)
    return log


# a mistake that shows within two steps of a tiny model
SHOWS = {14: "prefer the worse", 18: "to every token", 19: "return delta", 20: "by the variance",
         21: "sign is missing", 22: "factor 1/2", 25: "swapped chosen"}


@pytest.fixture(scope="module")
def as_it_is(small):
    """as_it_is(n) -> the log of the exercise's script with our function, which several share."""
    @cache
    def log(script):
        return log_of_a_run(next(n for n in SHOWS if course.ours(n).RUN[0] == script), small)
    return lambda n: log(course.ours(n).RUN[0])


@pytest.mark.parametrize("n", SHOWS)
def test_in_the_real_script_a_right_function_trains_as_ours_and_a_wrong_one_does_not(n, small,
                                                                                     as_it_is):
    edits, = [edits for number, words, edits in WRONG if number == n and SHOWS[n] in words]
    ours, yours, spoilt = as_it_is(n), *(log_of_a_run(n, small, function) for function in (
        RIGHT[n], mistaken(RIGHT[n], edits)))
    assert {*course.ours(n).COLUMNS} <= set().union(*ours.values())
    for step, row in ours.items():
        assert yours[step] == pytest.approx(row, rel=1e-3, abs=1e-5)
    assert any(spoilt[step] != pytest.approx(row, rel=1e-2, abs=1e-4) for step, row in ours.items())


def test_exercise_26_trains_on_the_students_reward(small):
    flags = f"--reward={course.ours(26).PLACE} --missing_end=0 --watch={tiny.GRADE}"
    log = log_of_a_run(26, small, lambda prompts, said: [0.25] * len(said), flags)
    assert log[0]["score"] == log[2]["score"] == 0.25 and {*course.ours(26).COLUMNS} <= {*log[2]}


def test_the_prompts_of_the_run_of_exercise_26_are_the_sums():
    town.main(town.Config(n_docs=4, n_demos=4, n_prompts=200, n_eval=4))
    course.ours(26).prepare()
    rows = read_prompts("data/town/prompts.jsonl")
    sums = [row for row in rows if re.search(r"\d \+ \d", row["prompt"][-1]["content"])]
    assert read_prompts("out/sums.jsonl") == sums and 0 < len(sums) < len(rows)
    assert "--data=out/sums.jsonl" in course.ours(26).RUN[2]


def test_every_run_is_tested():
    tested = {4, 5, 6, 7, 8, 9, 10, 12, 13, *SHOWS, 26, 27}
    assert tested == {n for n in RIGHT if course.ours(n).RUN}
