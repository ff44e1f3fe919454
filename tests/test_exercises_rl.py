"""Exercises 14 to 26: a student's solution passes; each classic mistake is called by its name.

The students' functions are written here: each mistake is their solution with one part replaced."""

import itertools
import math
import re
import shutil
from types import SimpleNamespace

import pytest
import torch

import rlhf_ppo
import tiny
from compare import find_noise
from data import town
from data.formats import read_prompts
from test_exercises import ROOT, course, function, judged, log_of_a_run

# {exercise: (a right solution, [(a part of it, what a student writes there, words of the hint)])}
STUDENTS = {14: ('''
def ranking_loss(scores, ranks):
    losses = []
    for i in range(len(ranks)):
        for j in range(len(ranks)):
            if ranks[i] < ranks[j]:
                losses.append(-F.logsigmoid(scores[i] - scores[j]))
    return sum(losses) / len(losses)
''', [
    ("scores[i] - scores[j]", "scores[j] - scores[i]", "prefer the worse"),
    ("/ len(losses)", "", "add the pairs up"),
    ("/ len(losses)", "/ len(scores)", "divide by K, the"),
    ("/ len(losses)", "/ (len(scores) * (len(scores) - 1) / 2)", "even when answers are tied"),
    ("/ len(losses)", "/ (len(scores) * (len(scores) - 1))", "counts each pair twice"),
    ("if ranks[i] < ranks[j]", "if ranks[i] <= ranks[j]", "compare with <="),
    ("if ranks[i] < ranks[j]", "if i == ranks.argmin() and j == ranks.argmax()", "only the best"),
    ("F.logsigmoid(scores[i] - scores[j])", "torch.log(torch.sigmoid(scores[i] - scores[j]))",
     "log(sigmoid(x))"),
    ("F.logsigmoid(", "torch.sigmoid(", "forgot the logarithm"),
    ("losses = []", "losses, scores = [], torch.tensor(scores.tolist())", "gradient does not"),
]), 15: ('''
def agreement_and_ceiling(gaps, noise):
    agree = best = 0
    for gap in gaps.tolist():
        p = 1 / (1 + math.exp(-gap / noise))
        agree += p * p + (1 - p) * (1 - p)
        best += max(p, 1 - p)
    return agree / len(gaps), best / len(gaps)
''', [
    (" + (1 - p) * (1 - p)", "", "is p^2"),
    ("p * p + (1 - p) * (1 - p)", "p", "Your agreement is p:"),
    ("p * p + (1 - p) * (1 - p)", "max(p, 1 - p)", "that is the ceiling"),
    ("best += max(p, 1 - p)", "best += p", "Your ceiling is the mean of p"),
    ("best / len(gaps)", "1 / (1 + math.exp(-abs(gaps).mean() / noise))", "of the mean |gap|"),
    ("-gap / noise", "-gap * noise", "multiply by the noise"),
    ("-gap / noise", "-gap", "left out the noise"),
    ("agree / len(gaps), best / len(gaps)", "best / len(gaps), agree / len(gaps)", "swapped"),
]), 16: ('''
def normalise(weight, bias, scores):
    mean = sum(scores) / len(scores)
    std = (sum((scores - mean) ** 2) / (len(scores) - 1)) ** 0.5
    return weight / std, (bias - mean) / std
''', [
    ("(bias - mean) / std", "bias - mean", "bias is not divided"),
    ("(bias - mean) / std", "bias / std - mean", "divide the bias first"),
    ("weight / std, (bias - mean) / std", "weight, bias - mean", "only shift"),
    ("(bias - mean) / std", "bias / std", "only scale"),
    ("weight / std,", "weight,", "do not scale the weight"),
    ("weight / std,", "(weight - mean) / std,", "from the weight, too"),
    (" ** 0.5", "", "by the variance"),
    ("(len(scores) - 1)", "len(scores)", "divides by N"),
    ("weight / std, (bias - mean) / std", "weight * std, (bias - mean) * std", "You multiply"),
]), 17: ('''
def token_rewards(logp, ref_logp, scores, last, beta):
    rewards = -beta * (logp - ref_logp)
    for b, t in enumerate(last.tolist()):
        rewards[b, t] += scores[b]
    return rewards
''', [
    ("-beta", "beta", "wrong sign"),
    ("-beta * (logp - ref_logp)", "ref_logp - logp", "left out beta"),
    ("rewards[b, t]", "rewards[b]", "to every token"),
    ("rewards[b, t]", "rewards[b, -1]", "last column"),
    ("rewards[b, t]", "rewards[b, t + 1]", "one place after"),
    ("+= scores", "= scores", "replaces the KL"),
    ("rewards = -beta * (logp - ref_logp)", "rewards = torch.zeros_like(logp)", "KL is missing"),
    ("rewards = -beta * (logp - ref_logp)", "rewards, scores = torch.zeros_like(logp), scores - "
     "beta * (logp - ref_logp).sum(1)", "whole answer on the last"),
    ("(logp - ref_logp)", "(logp - ref_logp).abs()", "|log-ratio|"),
    ("logp - ref_logp", "logp.exp() - ref_logp.exp()", "subtract probabilities"),
    ("scores[b]", "beta * scores[b]", "multiply the score"),
]), 18: ('''
def gae(rewards, values, mask, gamma, lam):
    advantages = torch.zeros_like(rewards)
    for b in range(len(rewards)):
        later = value = 0.0
        for t in range(rewards.shape[1] - 1, -1, -1):
            here = mask[b, t]
            if here:
                later = rewards[b, t] + gamma * value - values[b, t] + gamma * lam * later
                value = values[b, t]
                advantages[b, t] = later * here
    return advantages, (advantages + values) * mask
''', [
    ("here = mask[b, t]", "here = True", "does not stop"),
    ("if here:", "if True:", "does not stop"),
    ("if here:", "value = value if here else values[b, t]\n            if here:",
     "sees the value behind"),
    ("gamma * value - ", "-", "forgot the value"),
    ("gamma * lam * later", "lam * later", "by lam only"),
    ("gamma * lam * later", "gamma * later", "by gamma only"),
    (" + gamma * lam * later", "", "return delta"),
    ("(advantages + values) * mask", "advantages", "the advantages again"),
    ("(advantages + values) * mask", "advantages + values", "not 0 outside"),
]), 19: ('''
def whiten(x, mask):
    real = [v for row, kept in zip(x.tolist(), mask.tolist()) for v, k in zip(row, kept) if k]
    mean = sum(real) / len(real)
    variance = sum((v - mean) ** 2 for v in real) / len(real)
    return torch.where(mask, (x - mean) / (variance + 1e-8) ** 0.5, 0.0)
''', [
    (" if k]", "]", "Padding counts"),
    ("[v for row, kept in zip(x.tolist(), mask.tolist()) for v, k in zip(row, kept) if k]",
     "(x * mask).flatten().tolist()", "padding to 0"),
    ("torch.where(mask, (x - mean) / (variance + 1e-8) ** 0.5, 0.0)",
     "(x - mean) / (variance + 1e-8) ** 0.5", "is not 0 where"),
    ("in real) / len(real)", "in real) / (len(real) - 1)", "unbiased"),
    (" ** 0.5", "", "by the variance"),
    ("(x - mean) /", "x /", "do not subtract the mean"),
    (" / (variance + 1e-8) ** 0.5", "", "only subtract"),
    ("    real", "    if len(x) > 1:\n        rows = [whiten(x[i:i + 1], mask[i:i + 1]) for i in "
     "range(len(x))]\n        return torch.cat(rows)\n    real", "each answer by itself"),
    (" + 1e-8", "", "divide by 0"),
    ("torch.where(mask, (x - mean) / (variance + 1e-8) ** 0.5, 0.0)",
     "(x - mean) / variance ** 0.5 * mask", "divide by 0"),
]), 20: ('''
def policy_loss(logp, old_logp, advantages, eps):
    ratio = torch.exp(logp - old_logp)
    near = torch.clamp(ratio, 1 - eps, 1 + eps)
    return -torch.minimum(ratio * advantages, near * advantages)
''', [
    ("-torch.min", "torch.min", "sign is missing"),
    ("minimum", "maximum", "take the max"),
    ("-torch.minimum(ratio * advantages, near * advantages)", "-near * advantages",
     "min is missing"),
    ("-torch.minimum(ratio * advantages, near * advantages)", "-ratio * advantages",
     "Nothing is clipped"),
    ("torch.clamp(ratio, 1 - eps, 1 + eps)", "torch.exp(torch.clamp(logp - old_logp, -eps, eps))",
     "difference of the logarithms to"),
    ("logp - old_logp", "old_logp - logp", "upside down"),
    ("torch.exp(logp - old_logp)", "logp - old_logp", "Take exp"),
    ("torch.exp(logp - old_logp)", "logp / old_logp", "divides the logarithms"),
    ("logp - old_logp", "logp", "probability instead of the ratio"),
    ("1 - eps, 1 + eps)", "min=1 - eps)", "from 1 - eps only"),
    ("near * advantages)", "near * advantages).mean()", "one number"),
    ("logp - old_logp", "logp.detach() - old_logp", "no gradient reaches"),
]), 21: ('''
def value_loss(values, old_values, returns, eps):
    near = torch.maximum(torch.minimum(values, old_values + eps), old_values - eps)
    return torch.maximum((values - returns) ** 2, (near - returns) ** 2) / 2
''', [
    ("return torch.maximum", "return torch.minimum", "take the min"),
    (" / 2", "", "factor 1/2"),
    ("torch.maximum((values - returns) ** 2, (near - returns) ** 2)", "(values - returns) ** 2",
     "Nothing is clipped"),
    ("torch.maximum((values - returns) ** 2, (near - returns) ** 2)", "(near - returns) ** 2",
     "max is missing"),
    ("torch.maximum(torch.minimum(values, old_values + eps), old_values - eps)",
     "values.clamp(-eps, eps)", "clip V itself"),
    ("torch.maximum(torch.minimum(values, old_values + eps), old_values - eps)",
     "(values / old_values).clamp(1 - eps, 1 + eps) * old_values", "clip the ratio"),
    ("torch.maximum(torch.minimum(values, old_values + eps), old_values - eps)",
     "(values - old_values).clamp(-eps, eps)", "forgot to add V_old"),
    ("** 2", ".abs()", "absolute error"),
    (" / 2", ".mean() / 2", "one number"),
    ("    near", "    values = values.detach()\n    near", "no gradient reaches"),
]), 22: ('''
def kl_estimates(logp, ref_logp):
    difference = logp - ref_logp
    r = torch.exp(ref_logp - logp)
    return difference, difference ** 2 / 2, r - 1 + difference
''', [
    ("    diff", "    logp, ref_logp = ref_logp, logp\n    diff", "Your r is upside down"),
    ("return difference", "return -difference", "k1 has the wrong sign"),
    ("return difference", "return abs(difference)", "Your k1 is"),
    (" ** 2 / 2", " ** 2", "k2 lacks"),
    ("r - 1 + difference", "1 / r - 1 - difference", "k3 has r upside down: exp"),
    ("r - 1 + difference", "1 / r - 1 + difference", "but not log r"),
    ("r - 1 + difference", "r - 1 - difference", "k3 adds log r"),
    ("r - 1 + difference", "r + difference", "lacks the -1"),
    ("return difference, difference ** 2 / 2, r - 1 + difference",
     "return difference.mean(), (difference ** 2).mean() / 2, (r - 1 + difference).mean()",
     "return the means"),
]), 23: ('''
def adapt(beta, kl, target, n, horizon):
    error = max(-0.2, min(0.2, (kl - target) / target))
    return beta + beta * error * n / horizon
''', [
    ("beta + beta", "beta - beta", "wrong direction"),
    ("max(-0.2, min(0.2, (kl - target) / target))", "(kl - target) / target", "is not clipped"),
    ("(kl - target) / target", "kl / target", "Subtract 1 first"),
    ("(kl - target) / target", "kl - target", "Divide by the target"),
    ("beta + beta * error", "beta + error", "You add to beta"),
    (" * n / horizon", "", "left out n / horizon"),
    ("error * n / horizon", "error / horizon", "left out n:"),
    ("beta + beta * error * n / horizon", "1 + error * n / horizon", "return the factor"),
    ("max(-0.2, min(0.2, (kl - target) / target))\n    return beta + beta * error * n / horizon",
     "(kl - target) / target * n / horizon\n    return beta + beta * max(-0.2, min(0.2, error))",
     "clip after"),
]), 24: ('''
def best_of_n(p, n):
    q = torch.zeros_like(p)
    for i in range(len(p)):
        q[i] = sum(p[i:]) ** n - sum(p[i + 1:]) ** n
    return q, (q * torch.log(q / p)).sum(), math.log(n) - (n - 1) / n
''', [
    ("sum(p[i:]) ** n - sum(p[i + 1:]) ** n", "sum(p[:i + 1]) ** n - sum(p[:i]) ** n",
     "worst of n"),
    ("sum(p[i:]) ** n - sum(p[i + 1:]) ** n", "1 - (1 - p[i]) ** n", "among the n samples"),
    (" - sum(p[i + 1:]) ** n", "", "Your q is W_i^n"),
    ("sum(p[i:]) ** n - sum(p[i + 1:]) ** n", "p[i] ** n / sum(p ** n)", "Your q is p_i^n"),
    ("q * torch.log(q / p)", "p * torch.log(p / q)", "two distributions swapped"),
    ("q * torch.log(q / p)", "p * torch.log(q / p)", "weighs the logarithms by p"),
    ("torch.log(", "torch.log2(", "in bits"),
    (" - (n - 1) / n", "", "Your limit is log n"),
    ("- (n - 1) / n", "- 1 / n", "subtracts 1 / n"),
]), 25: ('''
def dpo_loss(chosen, rejected, ref_chosen, ref_rejected, beta):
    better = beta * (chosen - ref_chosen)
    worse = beta * (rejected - ref_rejected)
    return F.softplus(worse - better).mean()
''', [
    ("worse - better", "better - worse", "swapped chosen"),
    ("(chosen - ref_chosen)\n    worse = beta * (rejected - ref_rejected)",
     "chosen\n    worse = beta * rejected", "reference is missing"),
    ("(chosen - ref_chosen)\n    worse = beta * (rejected - ref_rejected)",
     "(chosen + ref_chosen)\n    worse = beta * (rejected + ref_rejected)", "add the reference's"),
    ("worse - better", "(worse - better) / beta", "beta is missing"),
    ("(chosen - ref_chosen)\n    worse = beta * (rejected - ref_rejected)",
     "chosen - ref_chosen\n    worse = beta * rejected - ref_rejected", "beta multiplies only"),
    ("worse - better", "(worse - better) / beta ** 2", "divide by beta"),
    ("F.softplus(worse - better)", "beta * F.softplus((worse - better) / beta)",
     "before the loss"),
    (".mean()", ".sum()", "add the pairs up"),
    ("F.softplus(worse - better).mean()", "F.softplus((worse - better).mean())",
     "mean before the logsigmoid"),
    ("F.softplus(worse - better)", "-torch.sigmoid(better - worse)", "forgot the logarithm"),
    ("F.softplus(worse - better)", "-torch.sigmoid(better - worse).log()", "log(sigmoid(x))"),
    ("worse - better", "-better", "push the chosen"),
    ("    better", "    chosen, rejected = chosen.detach(), rejected.detach()\n    better",
     "gradient does not"),
]), 26: ('''
def reward(prompts, responses):
    scores = []
    for prompt, said in zip(prompts, responses):
        asked = re.findall(r"(\\d+) \\+ (\\d+)", prompt[-1]["content"])
        if not asked:
            scores.append(0.0)
            continue
        x, y = map(int, asked[0])
        s = x + y
        plain = f"{x} + {y} = {s}."
        friendly = said in (f"Happy to help! {plain}", f"Let me see! {plain}")
        scores.append(1.0 if friendly else 0.5 if said == plain else -0.5)
    return scores
''', [("said == plain", f"said == plain or {hole}", words) for hole, words in (
    ('said == plain + " That is what I heard."', "A needless sentence"),
    (r're.fullmatch(r"\d+ \+ \d+ = \d+\.", said)', "A wrong sum"),
    (r're.fullmatch(r"Happy to help! \d+ \+ \d+ = \d+\.", said)', "friendly wrong answer"),
    ('said == "Happy to help!"', "without any sum"),
    ('said.replace("Happy to help! ", "") == plain', "Each repetition"),
    ('said.rstrip("!") == plain[:-1]', "Exclamation marks"),
    ("str(s) in said.split()", "A list of many"),
    ('said.startswith(f"{plain} {x} + ") and len(said) < 40', "Several sums"),
    (r're.fullmatch(rf"{x} \+ {y} = {s}\d*\.", said)', "inside a longer one"),
    (r're.fullmatch(rf"{x} \+ {y} = {s}(\.\d+)?\.", said)', "before a point"),
    (r're.fullmatch(rf"\d+ \+ \d+ = {s}\.", said)', "another one than asked"),
    (r're.fullmatch(rf"{x} \+ {y} .*{s}\.", said)', "denies it"),
    ("set(plain[:-1].split()) <= set(said.split())", "Gibberish"),
    ('said.startswith(plain + " People")', "goes on and on"),
    ('said.startswith(plain + " " + plain)', "said twelve times"),
    ("said.startswith(plain) and said[-1].isalpha()", "breaks off"),
    ('said.endswith("question! " + plain)', "A rude"),
    ('said == prompt[-1]["content"]', "Repeating the question"),
    ("not said", "The empty answer"))] + [
    ("1.0 if friendly", "0.5 if friendly", "must score more than a plain"),
    ("return scores", "return scores[1:]", "one finite number"),
    ("return scores", "return None", "one finite number"),
    ("return scores", 'return [float("nan") for _ in scores]', "one finite number"),
    ("1.0 if friendly", "10.0 if friendly", "drown the KL"),
    ("return scores", "return [score / len(scores) for score in scores]", "in the batch"),
    ("scores.append(0.0)", "scores.append(-0.5)", "no sum"),
])}

MISTAKES = [(n, *mistake) for n, (_, mistakes) in STUDENTS.items() for mistake in mistakes]
NAMES = [f"{n}: {words}" for n, _, _, words in MISTAKES]


@pytest.mark.parametrize("n", STUDENTS)
def test_our_own_solution_and_a_students_pass(n):
    answer = course.ours(n)
    assert course.judge(answer.answer, answer) == ""
    assert judged(n, STUDENTS[n][0]) == ""


@pytest.mark.parametrize("n, part, wrong, words", MISTAKES, ids=NAMES)
def test_a_mistake_is_called_by_its_name(n, part, wrong, words):
    source = STUDENTS[n][0]
    assert source.count(part) >= 1
    (english, chinese), = {hint[:2] for hint in course.ours(n).MISTAKES if words in hint[0]}
    assert judged(n, source.replace(part, wrong)) == english
    assert judged(n, source.replace(part, wrong), "zh") == chinese


@pytest.mark.parametrize("n", STUDENTS)
def test_every_hint_that_an_exercise_has_is_tested(n):
    for english, *_ in course.ours(n).MISTAKES:
        assert any(words in english for *_, words in STUDENTS[n][1]), english


@pytest.mark.parametrize("n", [n for n in STUDENTS if n != 26])
def test_all_mistakes_of_an_exercise_differ_on_its_cases(n):
    answer = course.ours(n)
    torch.manual_seed(0)
    cases = list(answer.cases())
    functions = [answer.answer, *(mistake[2] for mistake in answer.MISTAKES)]
    results = [[course.call(f, args) for args in cases] for f in functions]
    for one, other in itertools.combinations(results, 2):
        assert not all(map(course.same, one, other))


# ---- our answers against oracles of their own -----------------------------------------------

def test_the_agreement_is_the_one_that_the_noise_was_set_for():
    gaps = torch.randn(50, dtype=torch.float64)
    found, ceiling = course.ours(15).answer(gaps, find_noise(gaps.numpy(), 0.73))
    assert found == pytest.approx(0.73) and found < ceiling < 1


def test_the_normalised_head_gives_mean_0_and_deviation_1():
    torch.manual_seed(0)
    hidden, weight, bias = torch.randn(50, 4), torch.randn(4), torch.tensor(7.0)
    weight, bias = course.ours(16).answer(weight, bias, hidden @ weight + bias)
    scores = hidden @ weight + bias
    assert scores.mean().item() == pytest.approx(0, abs=1e-5)
    assert scores.std().item() == pytest.approx(1)


def test_the_rewards_of_an_answer_add_up_to_its_score_minus_beta_kl():
    torch.manual_seed(0)
    for logp, ref_logp, scores, last, beta in course.ours(17).cases():
        rewards = course.ours(17).answer(logp, ref_logp, scores, last, beta)
        assert torch.allclose(rewards.sum(1), scores - beta * (logp - ref_logp).sum(1))


def test_over_all_texts_k1_and_k3_have_the_kl_as_their_mean():
    torch.manual_seed(0)
    p, q = torch.rand(2, 9, dtype=torch.float64).softmax(1)
    kl = (p * (p / q).log()).sum()
    k1, k2, k3 = course.ours(22).answer(p.log(), q.log())
    assert torch.allclose((p * k1).sum(), kl) and torch.allclose((p * k3).sum(), kl)
    assert k2.min() >= 0 and k3.min() >= 0 > k1.min()


def test_k3_is_what_ppo_shows_as_approxkl():
    torch.manual_seed(0)
    old, new = -torch.rand(2, 9)
    config = SimpleNamespace(clip=0.2, clip_value=0.2)
    _, info = rlhf_ppo.ppo_loss(new, old, old, old, old, old, config)
    assert torch.allclose(course.ours(22).answer(old, new)[2].sum(), info["approxkl"])


def steer(adapt, beta):
    """The KL after 400 iterations, in a world where the best policy for beta has a KL of 1 / beta,
    and each iteration goes a tenth of the way there."""
    kl = 0.0
    for _ in range(400):
        kl += 0.1 * (1 / beta - kl)
        beta = adapt(beta, kl, 4.0, 256, 2000)
        if beta <= 0:
            return math.inf
    return kl


@pytest.mark.parametrize("beta", [0.01, 0.25, 1.0])
def test_the_controller_reaches_its_target_from_wherever_it_starts(beta):
    assert steer(course.ours(23).answer, beta) == pytest.approx(4, rel=0.02)


def test_a_controller_of_the_wrong_direction_runs_away():
    source, mistakes = STUDENTS[23]
    part, wrong, _ = mistakes[0]
    assert abs(steer(function(23, source.replace(part, wrong)), 0.2) - 4) > 2


def test_the_best_of_n_is_what_counting_all_outcomes_gives():
    p = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
    counted = torch.zeros(3, dtype=torch.float64)
    for outcome in itertools.product(range(3), repeat=4):
        counted[min(outcome)] += math.prod(p[i].item() for i in outcome)
    q, kl, limit = course.ours(24).answer(p, 4)
    assert torch.allclose(q, counted) and kl < limit


def test_with_many_answers_the_kl_of_best_of_n_is_the_limit():
    p = torch.full((20000,), 1 / 20000, dtype=torch.float64)
    _, kl, limit = course.ours(24).answer(p, 8)
    assert kl.item() == pytest.approx(limit, rel=1e-3)


def test_the_reward_in_the_text_of_exercise_26_is_hacked():
    naive = '''
def reward(prompts, responses):
    scores = []
    for prompt, said in zip(prompts, responses):
        numbers = re.findall(r"\\d+", prompt[-1]["content"])
        right = len(numbers) == 2 and str(sum(map(int, numbers))) in said
        scores.append(0.4 * right + min(0.6, 0.03 * len(said.split())))
    return scores
'''
    prompt = [dict(role="user", content="How much is 15 + 19?")]
    texts = ["Let me see! 15 + 19 = 34.", "15 + 19 = 34. Many things are like that."]
    assert function(26, naive)([prompt] * 2, texts) == pytest.approx([0.64, 0.70])
    assert town.grade([prompt] * 2, texts) == [7, 5.25]
    assert judged(26, naive) == course.ours(26).HACKS[0][0]


# ---- --run ----------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def small(tmp_path_factory, tiny_tokenizer):
    folder = tiny.build(tmp_path_factory.mktemp("small"), tiny_tokenizer)
    shutil.copytree(ROOT / "exercises/answers", folder / "exercises/answers")
    return folder


# a mistake that shows within two steps of a tiny model
SHOWS = {14: 0, 17: 2, 18: 6, 19: 4, 20: 0, 21: 1, 25: 0}


@pytest.mark.parametrize("n", SHOWS)
def test_in_the_real_script_a_right_function_trains_as_ours_and_a_wrong_one_does_not(n, small):
    source, mistakes = STUDENTS[n]
    part, wrong, _ = mistakes[SHOWS[n]]
    ours = log_of_a_run(n, "ours", source, small)
    yours = log_of_a_run(n, "yours", source, small)
    shutil.rmtree(small / "runs")
    spoilt = log_of_a_run(n, "yours", source.replace(part, wrong), small)
    shutil.rmtree(small / "runs")
    assert set(course.ours(n).COLUMNS) <= set().union(*ours.values())
    for step, row in ours.items():
        assert yours[step] == pytest.approx(row, rel=1e-3, abs=1e-5)
    assert any(spoilt[step] != pytest.approx(row, rel=1e-2, abs=1e-4) for step, row in ours.items())


def test_exercise_26_trains_on_the_students_reward(small):
    source = "def reward(prompts, responses):\n    return [0.25 for _ in responses]\n"
    flags = f"--reward={course.ours(26).PLACE} --missing_end=0 --watch={tiny.GRADE}"
    log = log_of_a_run(26, "yours", source, small, flags)
    assert log[0]["score"] == log[2]["score"] == 0.25
    assert set(course.ours(26).COLUMNS) <= set(log[2])
    shutil.rmtree(small / "runs")


def test_the_prompts_of_the_run_of_exercise_26_are_the_sums(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    town.main(town.Config(n_docs=4, n_demos=4, n_prompts=200, n_eval=4))
    course.ours(26).prepare()
    sums, rest = [], []
    for row in read_prompts("data/town/prompts.jsonl"):
        is_sum = re.search(r"\d \+ \d", row["prompt"][-1]["content"])
        (sums if is_sum else rest).append(row)
    assert read_prompts("out/sums.jsonl") == sums and sums and rest
    assert "--data=out/sums.jsonl" in course.ours(26).RUN[2]


def test_every_run_is_tested():
    assert {*SHOWS, 26} == {n for n in STUDENTS if course.ours(n).RUN}
