"""An exam on questions of your own, without a judge: multiple choice, or answers that are checked.

reads   models, and a file whose questions all have choices, or none
writes  a table, and out/exam.json with each answer

    {"question": "Who wrote Emma?", "choices": ["Austen", "Eliot"], "answer": "Austen"}    or 0
    {"question": "Who wrote Emma?", "answer": "Jane Austen"}       or any row that sft.py reads

Choices: the model takes the one with the highest log p(choice | question). Each token makes that
lower, so a long choice would lose: it is divided by the length. What counts is "per byte", since
bytes are the same for all tokenizers; "per token" and the undivided "sum" stand beside it.
Answers: the greedy one is right if it equals "answer", whatever the case, the spaces and the
punctuation around words, or if a function of yours says so. --n_samples=16 gives pass@k, too: how
probable it is that one of k samples is right. Intervals are Wilson's, 95%.

    python -m tools.exam --data=my_test.jsonl --models=out/sft.pt,out/ppo.pt
    python -m tools.exam --data=my_test.jsonl --check=my.py:right --n_samples=16
"""

from dataclasses import dataclass
from functools import partial
from itertools import chain
from math import comb
from unicodedata import normalize

import numpy as np

from answer import response_logp
from checkpoint import load
from common import (Basic, Runtime, check_writable, get_scores, load_function, parse_config,
                    percent, to_json, writing)
from data.dialects import ANSWERS, DataError, standard, string, without
from data.formats import read_all, read_demonstrations
from evaluate import answer, few_shot


@dataclass
class Config(Basic):
    data: str = "my_test.jsonl"    # questions
    models: str = "out/sft.pt,out/ppo.pt"   # one column each
    check: str = ""                # FILE.py:function(prompt, response) -> bool; "": as "answer"
    examples: str = ""             # demonstrations that a base model reads first; "": none
    out: str = "out/exam.json"
    n_samples: int = 0             # answers to each question for pass@k; 0: no pass@k
    max_new_tokens: int = 64
    temperature: float = 0.7       # of the samples


# ---- questions ------------------------------------------------------------------------------

def question(row, notes, checked):
    """A row -> {"prompt", "choices", "right": a place} or {"prompt", "right": a text}. checked:
    whether a function knows what is right."""
    if "choices" in row:
        prompt, _ = standard(without(row, ("choices", *ANSWERS)), notes)
        return dict(prompt=prompt, **choices_of(row))
    prompt, answers = standard(row, notes)
    if not answers and not checked:
        raise DataError("answer is missing: add it, or give --check=FILE.py:function")
    return dict(prompt=prompt, right="" if checked else answers[0])


def choices_of(row):
    choices, right = row["choices"], row.get("answer")
    if not isinstance(choices, list) or len(choices) < 2:
        raise DataError("choices must be a list of at least two texts")
    if len({string(choice, "a choice").strip() for choice in choices} - {""}) < len(choices):
        raise DataError("choices must be different, and not empty")
    right = choices.index(right) if right in choices else right
    if type(right) is not int or not 0 <= right < len(choices):
        raise DataError(f"answer must be one of the choices, or its number from 0 to "
                        f"{len(choices) - 1}, not {right!r:.40}")
    return dict(choices=choices, right=right)


def read_questions(path, checked):
    rows = read_all(partial(question, checked=checked), path)
    n = sum("choices" in row for row in rows)
    if n not in (0, len(rows)):
        raise DataError(f"{path}: {n:,} of {len(rows):,} questions have choices: make two files")
    if n and checked:
        raise DataError(f"{path}: the questions have choices: leave out --check")
    return rows


def asked(model, base, tok, rows, examples, sizes):
    """[[ids]]: what the model reads before each answer, which may have so many tokens. No question
    is cut: it would be another one."""
    T, found, long = model.config.block_size, [], []
    for i, (row, n) in enumerate(zip(rows, sizes)):
        found.append(few_shot(tok, row, examples, np.random.default_rng(i), T - n) if base else
                     tok.encode_chat(row["prompt"], reply=True)[0])
        if len(found[i]) + n > T or base and found[i][0] != tok.eot:   # few_shot cut its beginning
            long.append(row["prompt"][-1]["content"])
    if long:
        raise DataError(f"{len(long):,} of {len(rows):,} questions have, with their answers, more "
                        f"than the model's {T} tokens: shorten them, leave them out, or choose a "
                        f"smaller --max_new_tokens; the first is {long[0]!r:.60}")
    return found


# ---- multiple choice ------------------------------------------------------------------------

def choose(model, base, tok, rows, examples, rt):
    """{what log p is divided by: the place of the choice that the model takes, for each row}"""
    ids = [[tok.encode_content(choice) for choice in row["choices"]] for row in rows]
    prompts = asked(model, base, tok, rows, examples, [max(map(len, group)) for group in ids])
    logp, n_tokens = response_logp(model, tok, [prompt for prompt, group in zip(prompts, ids)
                                                for _ in group], [*chain(*ids)], rt)
    n_bytes = np.array([len(tok.decode_bytes(choice)) for choice in chain(*ids)])
    ends = np.cumsum([len(group) for group in ids])[:-1]
    return {name: [int(part.argmax()) for part in np.split(logp / size, ends)]
            for name, size in (("per byte", n_bytes), ("per token", n_tokens), ("sum", 1))}


# ---- answers --------------------------------------------------------------------------------

def plain(text):
    """' It is  "42". ' -> 'it is 42'"""
    words = [word.strip(".,;:!?\"'()*") for word in normalize("NFKC", text).casefold().split()]
    return " ".join(filter(None, words))


def judge(check, rows, texts, name):
    """(N,) bool: whether each text answers its row."""
    def verdicts(prompts, responses):
        found = [check(*pair) for pair in zip(prompts, responses)]
        if others := [verdict for verdict in found if verdict not in (True, False)]:
            raise ValueError(f"gave {others[0]!r:.40}, not True or False")
        return found

    if check:
        return get_scores(verdicts, [row["prompt"] for row in rows], texts, name).numpy() > 0
    return np.array([plain(text) == plain(row["right"]) for row, text in zip(rows, texts)])


def pass_at(k, n, right):
    """The probability that one of k answers is right, drawn without replacement from n of which
    `right` are (Chen et al. 2021)."""
    return 1 - comb(n - right, k) / comb(n, k)


def examine(model, base, tok, rows, check, examples, rt, config):
    """The greedy answers, and {"greedy": whether each is right, "pass@k": its value for each}."""
    ids = asked(model, base, tok, rows, examples, [config.max_new_tokens] * len(rows))
    greedy, n = answer(model, base, tok, ids, 0.0, rt, config).texts, config.n_samples
    values = {"greedy": judge(check, rows, greedy, config.check).tolist()}
    if n:
        many, ids = ([x for x in items for _ in range(n)] for items in (rows, ids))
        samples = answer(model, base, tok, ids, config.temperature, rt, config).texts
        counts = judge(check, many, samples, config.check).reshape(-1, n).sum(1).tolist()
        values |= {f"pass@{k}": [pass_at(k, n, right) for right in counts]
                   for k in sorted({n, *(2**i for i in range(n.bit_length()))})}
    return greedy, values


if __name__ == "__main__":
    config = parse_config(Config, __doc__)
    rt = Runtime(config)
    check_writable(config.out)
    check = load_function(config.check) if config.check else None
    rows, values, said = read_questions(config.data, bool(check)), {}, {}
    examples = read_demonstrations(config.examples) if config.examples else []
    for path in config.models.split(","):
        model, tok, history = load(path, rt, "sft ppo pretrain")
        base = history[-1]["stage"] == "pretrain"
        if "choices" in rows[0]:
            taken = choose(model, base, tok, rows, examples, rt)
            texts = [row["choices"][i] for row, i in zip(rows, taken["per byte"])]
            values[path] = {name: [i == row["right"] for row, i in zip(rows, places)]
                            for name, places in taken.items()}
        else:
            texts, values[path] = examine(model, base, tok, rows, check, examples, rt, config)
        first, *_ = values[path].values()
        said[path] = [dict(text=text, right=right) for text, right in zip(texts, first)]

    # ---- save, show -------------------------------------------------------------------------

    shares = {path: {name: np.mean(v) for name, v in of.items()} for path, of in values.items()}
    answers = [dict(row, said=dict(zip(said, group))) for row, *group in zip(rows, *said.values())]
    with writing(config.out) as f:
        f.write(to_json(dict(data=config.data, models=shares, answers=answers), indent=1))
    chance = "".join(f"; chance is {np.mean([1 / len(row['choices']) for row in rows]):.1%}"
                     for row in rows[:1] if "choices" in row)
    print(f"{len(rows):,} questions from {config.data}{chance}\n")
    for name in ("", *shares[path]):
        print(f"{name:10}" + "".join(f"{percent(of[name], len(rows)) if name else path:>24}"
                                     for path, of in shares.items()))
    print(f"\nsaved {config.out}")
