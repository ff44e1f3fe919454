"""Would the tests see it? Puts one fault at a time into a copy of the project and runs the tests of
that file. A fault that no test finds survives: a test is missing.

    python -m lab.mutants                       # all of them: 164, each with some tests
    python -m lab.mutants --only=ptx            # those with "ptx" in their name or file
    python -m lab.mutants --only=sft.py --jobs=2

A fault is one line with another text. It is found if a quick test fails; the whole suite may find
more. First the tests run on a copy without a fault: tests that fail anyway find nothing.
"""

import io
import multiprocessing
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch.distributed                              # the copies need not import it again

from common import fail, parse_config

ROOT = Path(__file__).resolve().parents[1]

# The quick tests of each file, in the order in which they run.
LOOPS = "tests/test_loops.py -k "
RANKS = "tests/test_ddp.py::test_two_ranks_end_where_one_process_on_the_joined_batch_ends"
TESTS = {
    "pretrain.py": [LOOPS + "pretraining", "tests/test_pretrain.py"],
    "sft.py": [LOOPS + "sft", "tests/test_sft.py"],
    "reward.py": [LOOPS + "reward", "tests/test_reward.py"],
    "rlhf_ppo.py": [LOOPS + "ppo", "tests/test_ppo.py"],
    "lessons/grpo.py": [LOOPS + "grpo", "tests/test_lesson_grpo.py"],
    "compare.py": [LOOPS + "comparisons", "tests/test_compare.py"],
    "evaluate.py": ["tests/test_evaluate.py"],
    "model.py": ["tests/test_model.py", LOOPS + "ppo"],
    "optim.py": [LOOPS + "pretraining", "tests/test_pretrain.py", "tests/test_model.py -k adamw"],
    "answer.py": ["tests/test_model.py", "tests/test_ppo.py", "tests/test_evaluate.py",
                  "tests/test_compare.py", LOOPS + "'ppo or comparisons'"],
    "tokenizer.py": ["tests/test_tokenizer.py"],
    "common.py": ["tests/test_common.py", RANKS + "[sft]"],
    "checkpoint.py": ["tests/test_resume.py tests/test_checkpoint.py tests/test_steps.py",
                      LOOPS + "sft", "tests/test_model.py -k checkpoint", "tests/test_ppo.py"],
    "data/corpus.py": ["tests/test_corpus.py"],
    "data/formats.py": ["tests/test_formats.py"],
    "data/dialects.py": ["tests/test_formats.py"],
}

# {file: [(name, text, another text, what goes wrong)]}. The text stands in the file once. Faults
# of runs with several processes are named rank_…
MUTANTS = {
    "pretrain.py": [
        ("no_clipping", "clip_grad_norm_(model.parameters(), 1.0)",
         "clip_grad_norm_(model.parameters(), 1e9)", "no gradient is clipped"),
        ("micro_batches_summed", "loss = model_ddp(x[part], y[part]) * micro_batch / B",
         "loss = model_ddp(x[part], y[part])",
         "small passes add up to a larger gradient"),
        ("no_schedule", "lr = get_lr(step, config)", "lr = config.lr",
         "the learning rate stays at its peak"),
        ("sees_its_target", "x, y = rows[:, :-1].contiguous()", "x, y = rows[:, 1:].contiguous()",
         "a token is predicted from itself"),
        ("same_rows", "corpus.rows(step * config.batch_size + rt.rank * B, B, T)",
         "corpus.rows(rt.rank * B, B, T)", "every step reads the same rows"),
        ("rank_same_rows", "corpus.rows(step * config.batch_size + rt.rank * B, B, T)",
         "corpus.rows(step * config.batch_size, B, T)", "all processes read the same rows"),
        ("gradients_kept", "            optimizer.zero_grad(set_to_none=True)", "            pass",
         "gradients of earlier steps are added"),
        ("muon_not_saved", "run.track(model=model, **optimizers)",
         'run.track(model=model, adamw=optimizers["adamw"])',
         "a resumed run forgets Muon's momentum"),
        ("muon_as_slow", 'lr * config.muon if name == "muon" else lr', "lr",
         "Muon's rate is not a multiple of AdamW's"),
        ("seed_of_the_order", "* T + 1, config.seed, config.mix)", "* T + 1, 0, config.mix)",
         "every seed reads the same rows"),
        ("validation_rows_twice", "y = y.masked_fill((at >= len(rows[1]))[:, None], -1)", "",
         "some held-out rows count twice"),
    ],
    "sft.py": [
        ("mean_over_padding", "rt.average((y >= 0).sum())", "rt.average(y.numel())",
         "the mean is over padding and the users' words, too"),
        ("users_words", "masked_fill(~mask[:, 1:], -1)", "masked_fill(~mask[:, 1:], pad)",
         "it learns to say padding where users speak"),
        ("mask_shifted", "masked_fill(~mask[:, 1:], -1)", "masked_fill(~mask[:, :-1], -1)",
         "the first word of an answer is not learned"),
        ("no_clipping", "clip_grad_norm_(model.parameters(), 1.0)",
         "clip_grad_norm_(model.parameters(), 1e9)", "no gradient is clipped"),
        ("no_schedule", "lr = get_lr(step, config)", "lr = config.lr",
         "the learning rate stays at its peak"),
        ("no_damping", "config.weight_decay, damping(model, config.eps))", "config.weight_decay)",
         "tiny gradients become whole steps"),
        ("no_text", "        if n_text:\n", "        if False:\n",
         "no pretraining text is rehearsed"),
        ("same_text", "corpus.rows(k * n_text, n_text, T)", "corpus.rows(0, n_text, T)",
         "every step rehearses the same text"),
        ("same_dialogues", "plan[k * n_chat:(k + 1) * n_chat]", "plan[:n_chat]",
         "every step reads the same dialogues"),
        ("rank_mean_of_means", "count, = rt.average((y >= 0).sum())",
         "count = (y >= 0).sum()", "a process with few tokens counts as much as the others"),
        ("rank_same_dialogues", "k = step * rt.world_size + rt.rank", "k = step * rt.world_size",
         "all processes read the same dialogues"),
        ("seed_of_the_order", "np.random.default_rng(config.seed))", "np.random.default_rng(0))",
         "every seed packs the same rows"),
        ("held_out_learned", 'seen, unseen = split(', 'unseen, seen = split(',
         "it is trained on what is held out"),
        ("optimizer_not_resumed", "run.track(model=model, optimizer=optimizer)",
         "run.track(model=model)",
         "a resumed run forgets Adam's means"),
        ("dialogues_cut_short", "[(ids[:T + 1], mask[:T + 1])", "[(ids[:T], mask[:T])",
         "a long dialogue loses one token too many"),
        ("accuracy_of_the_least", "logits.argmax(-1)", "logits.argmin(-1)",
         "the accuracy is that of the least probable token"),
    ],
    "reward.py": [
        ("sign", "logsigmoid(scores[:, None] - scores[None, :])",
         "logsigmoid(scores[None, :] - scores[:, None])", "worse answers get higher scores"),
        ("ties", "ranks[:, None] < ranks[None, :]", "ranks[:, None] <= ranks[None, :]",
         "tied answers are pairs, and each answer is one with itself"),
        ("prompts_summed", "for s, item in zip(scores, items[part])) / B",
         "for s, item in zip(scores, items[part]))", "prompts are added instead of averaged"),
        ("score_one_early", "[torch.arange(len(rows), device=rt.device), last]",
         "[torch.arange(len(rows), device=rt.device), last - 1]",
         "the score is read before the last token"),
        ("no_clipping", "clip_grad_norm_(model.parameters(), 1.0)",
         "clip_grad_norm_(model.parameters(), 1e9)", "no gradient is clipped"),
        ("no_schedule", "lr = get_lr(step, config)", "lr = config.lr",
         "the learning rate stays at its peak"),
        ("same_prompts", "plan[step][rt.rank::rt.world_size]", "plan[0][rt.rank::rt.world_size]",
         "every step compares answers to the same prompts"),
        ("rank_same_prompts", "plan[step][rt.rank::rt.world_size]", "plan[step][:B]",
         "all processes compare the same answers"),
        ("zero_not_set", 'model.head.bias.sub_(run.metrics["score_mean"]).div_(',
         "model.head.bias.div_(", "demonstrations do not score 0 on average"),
        ("unit_not_set", 'model.head.weight.div_(run.metrics["score_std"])', "pass",
         "the deviation of the demonstrations' scores is not 1"),
        ("no_language_model", "model.lm.load_state_dict(lm.state_dict())", "pass",
         "it reads the log-probabilities of a random model"),
        ("held_out_learned", "for part in split(rows, share=config.held_out))",
         "for part in split(rows, share=config.held_out)[::-1])",
         "it is trained on what is held out"),
        ("optimizer_not_resumed", "run.track(model=model, optimizer=optimizer)",
         "run.track(model=model)",
         "a resumed run forgets Adam's means"),
        ("seed_of_the_order", "batch_size, config.steps, config.seed)",
         "batch_size, config.steps, 0)", "every seed reads the prompts in the same order"),
        ("accuracy_of_ties", "0.5 + 0.5 * (scores[i] - scores[j]).sign()",
         "(scores[i] >= scores[j]).float()", "equal scores count as right"),
        ("ceiling_by_sign", '(item["utility"][i] - item["utility"][j]).abs()',
         '(item["utility"][i] - item["utility"][j])', "the ceiling falls where labels are wrong"),
    ],
    "rlhf_ppo.py": [
        ("ptx_sign", "(config.ptx_coef * ptx_loss).backward()",
         "(-config.ptx_coef * ptx_loss).backward()", "pretraining text is unlearned"),
        ("ptx_coef", "(config.ptx_coef * ptx_loss).backward()", "ptx_loss.backward()",
         "the weight of the pretraining text is ignored"),
        ("ptx_never", "            if ptx:\n                text = ", "            if False:\n"
         "                text = ", "no pretraining text is rehearsed"),
        ("ptx_same_rows", "corpus.rows((update * rt.world_size + rt.rank) * n_text, n_text, T)",
         "corpus.rows(rt.rank * n_text, n_text, T)", "every update rehearses the same text"),
        ("ptx_same_rows_each_iteration", "enumerate(updates, start=step * len(updates))",
         "enumerate(updates)", "every iteration rehearses the same text"),
        ("count_of_the_minibatch", "(loss / count).backward()",
         "(loss / r.mask[batch].sum()).backward()",
         "a token of a minibatch with few tokens weighs more"),
        ("minibatches_by_length", "for m in minibatches(B, mb)]",
         "for m in torch.arange(B).split(mb)]",
         "a minibatch has answers of one length"),
        ("rank_count_of_its_own", "count, = rt.average(r.mask.sum() * mb / B)",
         "count = r.mask.sum() * mb / B", "a process with few tokens counts as much as the others"),
        ("rank_ptx_same_rows",
         "corpus.rows((update * rt.world_size + rt.rank) * n_text, n_text, T)",
         "corpus.rows(update * rt.world_size * n_text, n_text, T)",
         "all processes rehearse the same text"),
        ("old_values", "x in (r.logp, r.values, r.advantages, r.returns))",
         "x in (r.logp, r.returns, r.advantages, r.returns))",
         "values are clipped around something else than the rollout's"),
        ("old_logp", "x in (r.logp, r.values, r.advantages, r.returns))",
         "x in (r.ref_logp, r.values, r.advantages, r.returns))",
         "ratios are those to the reference"),
        ("no_clipping", "clip_grad_norm_(net.parameters(), 1.0)",
         "clip_grad_norm_(net.parameters(), 1e9)", "no gradient is clipped"),
        ("no_whitening", "if config.whiten_advantages:", "if False:",
         "advantages are not whitened"),
        ("whitened_with_padding", "mask.sum(), x[mask].sum(), (x[mask] ** 2).sum())",
         "torch.tensor(x.numel()), x.sum(), (x ** 2).sum())",
         "padding counts when advantages are whitened"),
        ("rank_whitens_alone", "count, total, squares = rt.sum(",
         "count, total, squares = (", "each process whitens its own advantages"),
        ("same_prompts", "plan[step * config.batch_size:(step + 1) * config.batch_size]",
         "plan[:config.batch_size]", "every iteration answers the same prompts"),
        ("same_random_numbers", "config.temperature, seed=(config.seed, step))",
         "config.temperature, seed=config.seed)", "every iteration draws the same numbers"),
        ("rank_same_prompts", "chosen[rt.rank::rt.world_size]", "chosen[:B]",
         "all processes answer the same prompts"),
        ("no_schedule", "zip(optimizers, get_lrs(step, config))",
         "zip(optimizers, (config.lr, config.lr * config.critic_lr))",
         "the learning rates stay at their peaks"),
        ("one_rate", "zip(optimizers, get_lrs(step, config))",
         "zip(optimizers, get_lrs(step, config)[:1] * 2)",
         "the critic learns as slowly as the policy"),
        ("critic_not_first", "for start in (config.critic_first, 0))", "for start in (0, 0))",
         "the policy learns from a critic that knows nothing yet"),
        ("kl_sign", "rewards = -kl_coef * (r.logp - r.ref_logp)",
         "rewards = kl_coef * (r.logp - r.ref_logp)", "distance from the reference is rewarded"),
        ("score_at_the_first_token", "rewards[range(len(rewards)), r.last] += r.scores",
         "rewards[range(len(rewards)), r.mask.int().argmax(1)] += r.scores",
         "the first token earns the score"),
        ("missing_end", "scores - config.missing_end * ~ended,",
         "scores + config.missing_end * ~ended,", "answers without an end earn more"),
        ("end_not_added", "else a + [tok.end] for a in answers]", "else a for a in answers]",
         "the reward model reads answers without an end"),
        ("gae_without_lambda", "delta + gamma * lam * next_advantage",
         "delta + gamma * next_advantage", "lambda is ignored"),
        ("gae_without_gamma", "rewards[:, t] + gamma * next_value", "rewards[:, t] + next_value",
         "gamma is ignored where values follow"),
        ("gae_beyond_the_end", "next_value = torch.where(here, values[:, t], 0.0)",
         "next_value = values[:, t]", "what follows an answer has a value"),
        ("returns_whitened", "            r.advantages = whiten(r.advantages, r.mask, rt)",
         "            r.advantages = whiten(r.advantages, r.mask, rt)\n"
         "            r.returns = (r.advantages + r.values) * r.mask",
         "the critic learns whitened returns"),
        ("policy_clip", "-torch.min(ratio * advantages,", "-torch.max(ratio * advantages,",
         "the larger of the two policy losses is not taken"),
        ("value_clip", "0.5 * torch.max((values", "0.5 * torch.min((values",
         "the smaller of the two value losses is taken"),
        ("critic_from_0", 'constant_(critic.head.bias, metrics["score"])',
         "constant_(critic.head.bias, 0.0)", "the critic does not begin with the mean score"),
        ("reference_moves", "dict(policy=policy, reference=reference,",
         "dict(policy=policy, reference=policy,", "the reference is the policy itself"),
        ("temperature_of_the_reference", "log_probs(reference, x, m, config.temperature)",
         "log_probs(reference, x, m)", "policy and reference have different temperatures"),
        ("temperature_of_the_update", "log_probs(policy_ddp, a.ids, a.mask, config.temperature)",
         "log_probs(policy_ddp, a.ids, a.mask)", "ratios are not 1 before an update"),
        ("critic_not_resumed", "run.track(model=policy, critic=critic,", "run.track(model=policy,",
         "a resumed run starts with a new critic"),
        ("held_out_learned", "train, val = prompts_that_fit(", "val, train = prompts_that_fit(",
         "it is trained on prompts that are held out"),
        ("value_of_another_token", "lm_logp[:, :-1])[mask[:, 1:]]",
         "lm_logp[:, :-1])[mask[:, :-1]]",
         "a token's value is what is expected when it is known"),
        ("last_token", "self.mask.size(1) - 1 - self", "self.mask.size(1) - 2 - self",
         "the score is earned before the last token"),
    ],
    "lessons/grpo.py": [
        ("divided_twice", "(loss * weight).sum() / config.minibatch",
         "(loss * weight).mean() / config.minibatch", "the tokens divide the loss twice"),
        ("kl_sign", "-(gain - config.kl_coef * k3)", "-(gain + config.kl_coef * k3)",
         "distance from the reference is rewarded"),
        ("k3_reversed", "log_ratio = ref_logp - logp", "log_ratio = logp - ref_logp",
         "the penalty is another divergence"),
        ("mean_of_the_batch", "groups - groups.mean(1, keepdim=True)", "groups - groups.mean()",
         "answers to easy prompts seem good"),
        ("advantages_unsorted", "advantages = advantages[order]", "advantages = advantages",
         "each answer gets another one's advantage"),
        ("old_logp", "for m in (policy, reference))", "for m in (reference, reference))",
         "ratios are those to the reference"),
        ("no_clipping", "clip_grad_norm_(policy.parameters(), 1.0)",
         "clip_grad_norm_(policy.parameters(), 1e9)", "no gradient is clipped"),
        ("no_schedule", 'config.lr * min((step + 1) / 2, 1 - step / config.steps)', "config.lr",
         "the learning rate stays at its peak"),
        ("same_prompts", "plan[step * n_prompts:(step + 1) * n_prompts]", "plan[:n_prompts]",
         "every iteration answers the same prompts"),
        ("same_random_numbers", "config.temperature, seed=(config.seed, step))",
         "config.temperature, seed=config.seed)", "every iteration draws the same numbers"),
        ("temperature_of_the_update", "ids[part, :T], m, config.temperature)",
         "ids[part, :T], m)", "ratios are not 1 before an update"),
        ("clip_ignored", "ratio.clamp(1 - config.clip, 1 + config.clip) * advantages)",
         "ratio * advantages)", "ratios are not clipped"),
        ("optimizer_not_resumed", "run.track(model=policy, optimizer=optimizer)",
         "run.track(model=policy)",
         "a resumed run forgets Adam's means"),
    ],
    "compare.py": [
        ("order", "np.argsort(-utility)", "np.argsort(utility)", "the worst answer stands first"),
        ("noise", "np.array(grades) / noise", "np.array(grades) * noise",
         "more noise makes labelers surer"),
        ("agreement", "p * p + (1 - p) * (1 - p)", "p",
         "two labelers' agreement is one's with the truth"),
        ("ceiling_by_sign", "np.exp(-np.abs(differences))", "np.exp(-differences)",
         "the ceiling falls where labels are wrong"),
        ("grades_unsorted", '[row["grades"][i] for i in first]', 'list(row["grades"])',
         "grades belong to other answers"),
        ("order_of_another", '[row["responses"][i] for i in first]',
         '[row["responses"][i] for i in second]', "answers and grades are ordered by two labelers"),
        ("answers_of_others", "answers[i * config.k:(i + 1) * config.k]",
         "answers[i:i + config.k]", "answers belong to other prompts"),
        ("same_random_numbers", "seed=(config.seed, start))", "seed=config.seed)",
         "every batch draws the same numbers"),
        ("equal_answers", "return [texts[i] for i in distinct(texts)]", "return texts",
         "equal answers are compared"),
        ("seed_of_the_labelers", "np.random.default_rng(config.seed), []",
         "np.random.default_rng(0), []", "every seed hears the same noise"),
    ],
    "evaluate.py": [
        ("calibration", "predicted=p[m].mean()", "predicted=right[m].mean()",
         "what is predicted is what was observed"),
        ("bins_by_sign", "(m := (np.abs(margin) >= low) & (np.abs(margin) <= high)).any()",
         "(m := (margin >= low) & (margin <= high)).any()", "only pairs that are right count"),
        ("ceiling_of_nothing", 'out["ceiling"] = ceiling(gap)', 'out["ceiling"] = ceiling(margin)',
         "the ceiling is the model's own"),
        ("calibration_of_scaled_scores", "np.exp(-np.abs(margin) * std)", "np.exp(-np.abs(margin))",
         "what is predicted depends on the scale of the scores"),
        ("ties_are_wins", "better=np.mean(sign > 0)", "better=np.mean(sign >= 0)",
         "equal grades are wins"),
        ("interval_of_copies", "_, group = np.unique(groups, return_inverse=True)",
         "group = np.arange(len(values))", "copies of a prompt make an interval narrow"),
        ("kl_sign", "(logp - ref_logp).mean()", "(ref_logp - logp).mean()",
         "the divergence is negative"),
        ("worst_of_n", "scores[:, :k].argmax(1)", "scores[:, :k].argmin(1)",
         "the worst answer is kept"),
        ("best_of_all", "scores[:, :k].argmax(1)", "scores.argmax(1)",
         "the best of n is always that of all"),
        ("interval", "[2.5, 97.5]", "[25, 75]", "intervals hold half of the means"),
        ("length_reversed", '("longer was preferred", longer > 0)',
         '("longer was preferred", longer < 0)', "long and short answers are confused"),
        ("greedy_and_sampled", 'g["right"], s["right"], s["grade"]',
         's["right"], g["right"], s["grade"]', "greedy and sampled answers are confused"),
        ("score_of_greedy_answers", "prompts, sampled.texts, rt).mean()",
         "prompts, greedy.texts, rt).mean()", "the score is that of other answers than the grade"),
        ("another_split", "config.comparisons), share=share)", "config.comparisons))",
         "the reward model is examined on some of what it was trained on"),
        ("examined_on_training", "_, unseen = split(", "unseen, _ = split(",
         "the reward model is examined on what it was trained on"),
    ],
    "model.py": [
        ("causal_mask", ".triu(1)", ".triu(2)", "a token sees the next one"),
        ("cached_mask", "<= pos[:, None]", "< pos[:, None]", "a token does not see itself"),
        ("left_padding", "(mask.cumsum(-1) - 1).clamp(min=0)[:, past:]",
         "torch.arange(mask.size(1), device=device).expand(mask.shape)[:, past:]",
         "padding moves the positions"),
        ("rope_of_keys", "q, k = rotate(q, turns), rotate(k, turns)", "q = rotate(q, turns)",
         "positions are not relative"),
        ("rope_theta", "config.rope_theta ** (", "1.0 ** (", "all clocks turn equally fast"),
        ("padding_learned", "ignore_index=-1", "ignore_index=-100",
         "targets of -1 count (or crash)"),
        ("lm_one_late", "F.pad(-nats.view(len(idx), -1), (1, 0))",
         "F.pad(-nats.view(len(idx), -1), (0, 1))", "beside a token stands the next one's"),
    ],
    "optim.py": [
        ("late_warmup", "config.lr * (step + 1) / config.warmup",
         "config.lr * step / config.warmup", "the first step learns nothing"),
        ("muon_without_decay", 'p.mul_(1 - group["lr"] * group["weight_decay"])', "p.mul_(1)",
         "Muon's matrices do not decay"),
        ("muon_without_momentum", "step = p.grad.lerp(m, momentum)", "step = p.grad",
         "Muon forgets the gradients before"),
        ("muon_of_tall_matrices", "max(1, p.size(0) / p.size(1)) ** 0.5", "1",
         "tall matrices take too short steps"),
        ("no_decay_of_norms", "weight_decay=0.0)]", "weight_decay=weight_decay)]",
         "norms and biases decay"),
    ],
    "answer.py": [
        ("temperature", "logits = logits / temperature", "logits = logits * temperature",
         "a high temperature makes answers surer"),
        ("log_probs_temperature", "logits.float() / max(temperature, COLDEST)", "logits.float()",
         "log-probabilities are those at temperature 1"),
        ("top_p", "probs.cumsum(-1) - probs >= max", "probs.cumsum(-1) >= max",
         "the token that reaches top_p is left out"),
        ("stop", "done = done | torch.isin(new, stop)", "done = torch.isin(new, stop)",
         "a finished answer goes on"),
        ("seed_of_the_answers", "rt.seed(seed, start)", "rt.seed(seed)",
         "all batches draw the same numbers"),
        ("mean_of_a_reply", "index_add(0, owner, logp)", "index_reduce(0, owner, logp, 'mean')",
         "the log-probability of an answer is that of a token"),
        ("temperature_of_a_reply", "logp, _ = log_probs(model, idx, mask, temperature)",
         "logp, _ = log_probs(model, idx, mask)", "the temperature is ignored"),
        ("temperature_of_an_answer", "max_new_tokens, temperature, tok.end",
         "max_new_tokens, 1.0, tok.end", "the temperature is ignored"),
        ("mask_of_the_prompt", "[[0] * len(p) + [1] * len(a)", "[[1] * len(p) + [1] * len(a)",
         "the prompt counts as part of the answer"),
    ],
    "tokenizer.py": [
        ("end_not_learned", "mask += [0] + [int(learned)] * len(turn)",
         "mask += [0] + [int(learned)] * (len(turn) - 1) + [0]", "answers do not learn to end"),
        ("role_learned", "mask += [0] + [int(learned)] * len(turn)",
         "mask += [int(learned)] * (len(turn) + 1)", "<|assistant|> is learned"),
    ],
    "common.py": [
        ("reduced_too_early", "last = start + size >= n", "last = start == 0",
         "only the first micro-batch is averaged over the processes"),
        ("seed_without_rank", "repr((*numbers, self.rank))", "repr(numbers)",
         "all processes draw the same numbers"),
    ],
    "checkpoint.py": [
        ("another_run", "        if changed:\n", "        if False:\n",
         "a run goes on with other flags and data"),
        ("step_not_kept", "dict(step=step, run=self.flags, metrics",
         "dict(step=0, run=self.flags, metrics", "a resumed run does its steps again"),
        ("resumed_from_0", "for step in range(self.start, self.total, by):",
         "for step in range(0, self.total, by):", "a resumed run does its first steps again"),
        ("not_tied", "        gpt.tie_weights()\n", "        pass\n",
         "embedding and output layer are trained apart after loading"),
        ("frozen_forgotten", "freeze_all(model, rt.dtype) if frozen else model", "model",
         "frozen models keep gradients and full precision"),
        ("averages", "value / n_steps / self.rt.world_size", "value / self.rt.world_size",
         "the log has sums over its steps"),
        ("half_precision", "v.detach().float().cpu()", "v.detach().half().cpu()",
         "weights are rounded when they are saved"),
    ],
    "data/corpus.py": [
        ("split", 'hold_out(docs["hash"], ', "hold_out(np.arange(len(self.starts) - 1) / 1e4, ",
         "copies of held-out text are learned"),
        ("rows_overlap", "(first + np.arange(count)[:, None]) * T",
         "(first + np.arange(count)[:, None]) * (T + 1)", "one token in T is never predicted"),
        ("one_order", "left[s] = np.append(left[s], rng.permutation(pool))",
         "left[s] = np.append(left[s], pool)", "the documents are not shuffled"),
        ("held_out_learned", "train = np.flatnonzero(~self.held_out)",
         "train = np.arange(len(self.held_out))", "it is trained on what is held out"),
        ("entropy", "nats = -(np.log(self.mixture(mix))", "nats = -(0 * np.log(self.mixture(mix))",
         "the lowest possible loss is too low"),
    ],
    "data/formats.py": [
        ("split_by_dialogue", '        if turn["role"] == "user":\n            break\n', "",
         "dialogues that begin alike are split"),
        ("split_by_chance", "int.from_bytes(digest[:8], \"big\") / 2**64",
         "hash(str(opening)) % 2**32 / 2**32", "each run holds out others"),
        ("sides", "for side in (False, True)]", "for side in (True, False)]",
         "it is trained on what is held out"),
        ("ties", "a != b and x != y", "a != b", "answers of equal scores are ordered"),
    ],
    "data/dialects.py": [
        ("worse_is_better", "for name in PAIR if name", "for name in PAIR[::-1] if name",
         "the rejected answer counts as the better one"),
        ("other_dialogue", "dialogue[:-1] != dialogues[0][:-1] for", "False for",
         "answers to different questions are compared"),
        ("tools", "        refuse_meaningful(turn)\n", "", "a dialogue loses its images and tools"),
    ],
}


@dataclass
class Config:
    only: str = ""            # faults with this in their name or file; "": all
    jobs: int = 1             # copies that are tested at a time
    debug: bool = False       # show tracebacks


def tests_of(file, name):
    """The arguments of pytest, for each of its runs."""
    ranks = [f"{RANKS}[{Path(file).stem}]"] if name.startswith("rank") else []
    return ranks + TESTS[file]


class FirstFailure:
    """For pytest: keeps the name of the first test, or file of tests, that fails."""
    found = ""

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.found = self.found or report.nodeid

    pytest_collectreport = pytest_runtest_logreport


def first_failure(commands, file="", old="", new=""):
    """The first test that fails on a copy of the tracked files in which old became new, or "". Runs
    in a process of its own, which forgets the project's modules."""
    watch = FirstFailure()
    with tempfile.TemporaryDirectory(prefix="mutant.") as copy:
        listed = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT,
                                         encoding="utf-8")
        for name in filter(None, listed.split("\0")):
            Path(copy, name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, Path(copy, name))
        if file:
            text = Path(copy, file).read_text("utf-8")
            Path(copy, file).write_text(text.replace(old, new), "utf-8")
        for name, module in [*sys.modules.items()]:
            there = str(getattr(module, "__file__", None))
            if there.startswith(f"{ROOT}{os.sep}") and not there.startswith(sys.prefix):   # .venv
                del sys.modules[name]
        sys.path[:] = [copy, *(path for path in sys.path if path not in ("", str(ROOT)))]
        os.chdir(copy)
        for command in commands:
            signal.alarm(600)                         # ends a test that would never end
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                status = pytest.main(["-x", "-q", "-p", "no:cacheprovider", *shlex.split(command)],
                                     plugins=[watch])
            if status:
                return watch.found.rpartition("::")[2] or f"pytest {command}"
        os.chdir(ROOT)
    return ""


def judge(mutant):
    file, name, old, new, breaks = mutant
    return first_failure(tests_of(file, name), file, old, new)


if __name__ == "__main__":
    config = parse_config(Config, __doc__)
    chosen = [(file, *mutant) for file, mutants in MUTANTS.items() for mutant in mutants
              if config.only in file or config.only in mutant[0]]
    if not chosen:
        fail(f"--only={config.only} is in no fault's name or file")
    survived = 0
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    with multiprocessing.get_context("fork").Pool(config.jobs, maxtasksperchild=1) as pool:
        commands = sorted({c for file, name, *_ in chosen for c in tests_of(file, name)})
        for command, found in zip(commands, pool.imap(first_failure, ([c] for c in commands))):
            if found:
                fail(f"without any fault {found} fails: `python -m pytest {command}` shows why")
        print(f"{'file':16} {'fault':28} {'found by':76} what goes wrong")
        for (file, name, _, _, breaks), found in zip(chosen, pool.imap(judge, chosen)):
            print(f"{file:16} {name:28} {found or 'NOT FOUND':76} {breaks}", flush=True)
            survived += not found
    print(f"\n{survived} of {len(chosen)} faults were not found")
