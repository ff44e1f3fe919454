"""Readers for every file format of the chain.

    read_texts("wiki.txt,web.jsonl")   Document(source, text, logp), one at a time
    read_demonstrations("sft.jsonl")   [{"messages": [{"role": "user", "content": "Hi"}, ...]}, ...]
    read_comparisons("pairs.jsonl")    [{"prompt": messages, "responses": [...], "ranks": [0, 1]}]
    read_prompts("prompts.jsonl")      [{"prompt": messages, the last of them the user's}, ...]

Rows are JSON lines, a JSON list, or a JSON object with one list; dialects.py knows their fields,
and all others (a kind, an id) are kept. A malformed row raises a DataError with its place and
reason. A row with nothing to learn from is left out, one that can be mended is mended; both are
counted, and told once.
"""

import hashlib
import json
import os
from collections import Counter, namedtuple
from functools import partial
from pathlib import Path

import numpy as np

from common import note_once
from data.dialects import (ANSWERS, COMPARED, CONTENT, DIALOGUES, LABELS, QUESTIONS, WORSE,
                           DataError, Drop, are_numbers, first, is_dialogue, message, scores_of,
                           standard, string, unjudged, without, without_gaps)

SEPARATOR = "<|endoftext|>"
LONGEST_DOCUMENT = 1 << 20  # characters; the rest of a longer document becomes the next one
# source: the file's name without its suffix; logp: the text's exact log-probability in nats, or
# None if its generator doesn't know it
Document = namedtuple("Document", "source text logp")


# ---- files ----------------------------------------------------------------------------------

def list_files(paths):
    """The files of comma-separated names and folders. A wrong name is reported before the first
    file is read, not an hour later."""
    files = []
    for name in map(str.strip, str(paths).split(",")):
        files += name and text_files(name) or [name]
    for file in files:
        if not os.path.isfile(file):                  # a pipe can't be read again
            raise DataError(f"'{file}': no such file, or no folder with .txt or .jsonl files")
    return [*map(Path, files)]


def text_files(folder, others=False):
    """The .txt and .jsonl files in a folder and its subfolders, or the others, without hidden ones,
    such as macOS's ._book.txt."""
    return [file for file in sorted(Path(folder).rglob("*"))
            if (file.suffix.lower() in (".txt", ".jsonl")) != others
            and (file.is_symlink() or not file.is_dir())
            and not any(part.startswith(".") for part in file.relative_to(folder).parts)]


# ---- files -> rows --------------------------------------------------------------------------

def parsed(text):
    """The JSON value in a text, or a DataError, which read_rows raises or collects."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:     # RecursionError: [[[[[[...
        return DataError(f"not JSON: {error}".replace("line 1 column", "column"))


def rows_of(value):
    """The rows in a JSON value: one, a list, or an object with one list, such as {"data": [...]}.
    A dialogue may stand alone, as in nanochat's files. What is no row becomes a DataError."""
    if isinstance(value, dict) and not first(value, CONTENT):
        lists = [v for v in value.values() if isinstance(v, list)]
        value = lists[0] if len(lists) == 1 else value
    rows = value if isinstance(value, list) and not is_dialogue(value) else [value]
    rows = [{"messages": row} if is_dialogue(row) else row for row in rows]
    return [row if isinstance(row, (dict, DataError)) else
            DataError(f"a row must be an object {{...}}, not {row!r:.40}") for row in rows]


def places_and_rows(path):
    """Yield (place, row) for each document of a text, each line of a .jsonl, and each record of a
    .json, unless its first line is a row by itself."""
    kind = Path(path).suffix.lower()
    if kind in (".txt", ".md", ""):
        try:
            with open(path, encoding="utf-8-sig") as file:
                for number, text in enumerate(split_documents(file), 1):
                    yield f"{path}, document {number:,}", {"text": text}
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: not UTF-8 ({error.reason}): save it as UTF-8") from None
    elif kind in (".json", ".jsonl"):
        with open(path, "rb") as file:
            whole = kind == ".json" and not isinstance(parsed(file.readline()), dict)
            file.seek(0)
            for line, text in enumerate([file.read()] if whole else file, 1):
                for record, row in enumerate(rows_of(parsed(text)) if text.strip() else (), 1):
                    yield f"{path}, {f'record {record:,}' if whole else f'line {line:,}'}", row
    else:
        raise DataError(f"{path}: {kind} files are not read: save it as text (.txt, .md) or as "
                        'rows (.jsonl: {"prompt": "Hi", "response": "Hello"})')


def split_documents(file):
    """Yield the documents between the separators. Reads a megabyte at a time."""
    rest = ""
    while piece := file.read(1 << 20):
        *documents, rest = (rest + piece).split(SEPARATOR)
        if len(rest) > LONGEST_DOCUMENT:
            head, _, rest = rest.rpartition("\n")  # no separator contains a line's end
            documents.append(head)
        yield from (text.strip("\n") for text in documents if text.strip())
    if rest.strip():
        yield rest.strip("\n")


def read_rows(path, convert, malformed=None):
    """Yield convert(row, notes) for every row. A malformed row raises a DataError, or is added to
    the list `malformed` (tools/check.py)."""
    total, dropped, mended = 0, Counter(), Counter()  # of rows
    for total, (place, row) in enumerate(places_and_rows(path), 1):
        notes = set()
        try:
            if isinstance(row, DataError):
                raise row
            converted = convert(without_gaps(row), notes)
        except Drop as reason:
            dropped[f"left out, {reason}"] += 1
        except ValueError as reason:
            if isinstance(row, dict) and lacks_a_cell(row):
                dropped["left out, with an empty cell"] += 1
            elif malformed is None:
                raise DataError(f"{place}: {reason}") from None
            else:
                malformed.append(f"{place}: {reason}")
        else:
            mended.update(sorted(notes))              # a set has another order in every process
            yield converted
    if not total:
        raise DataError(f"{path}: is empty")
    found = dropped + mended
    told = f"{path}: " + "; ".join(f"{n:,} of {total:,} rows {what}" for what, n in found.items())
    if dropped.total() == total:
        raise DataError(told)
    if found:
        note_once(told)


def lacks_a_cell(row):
    """Whether a row lacks its text, or what it should ask or answer, since the cell is empty."""
    full = without_gaps(row)
    return any(first(row, names) and not first(full, names)
               for names in (QUESTIONS, ANSWERS, ("chosen",), WORSE, ("text",)))


# ---- rows -> what a script reads ------------------------------------------------------------

def read_all(convert, paths):
    return [row for path in list_files(paths) for row in read_rows(path, convert)]


def read_texts(paths):
    """Yield the documents of files and folders. A JSON row has a `text`, or is a demonstration: a
    tokenizer learns from its messages as well."""
    for path in list_files(paths):
        for text, logp in read_rows(path, text_and_logp):
            yield Document(path.stem, text, logp)
    for folder in map(str.strip, str(paths).split(",")):
        if others := Counter(file.suffix or file.name for file in text_files(folder, others=True)):
            others = ", ".join(f"{count:,} {name}" for name, count in others.most_common())
            note_once(f"{folder}: only .txt and .jsonl are read, not {others}")


def text_and_logp(row, notes):
    if "text" not in row:
        return "\n".join(turn["content"] for turn in demonstration(row, notes)["messages"]), None
    if not are_numbers([row.get("logp", 0)], 1):
        raise DataError(f"logp must be a number, not {row['logp']!r:.40}")
    if not string(row["text"], "text").strip():
        raise Drop("without text")
    return row["text"], row.get("logp")


def kept(row):
    """The fields beside the content. A kind is a name in reports."""
    rest = without(row, CONTENT)
    return rest | {"kind": str(rest["kind"])} if "kind" in rest else rest


def demonstration(row, notes):
    prompt, responses = standard(without(row, COMPARED), notes)
    if not responses and first(row, DIALOGUES) and prompt[:-1] and prompt[-2]["role"] != "system":
        *prompt, last, _ = prompt
        responses = [last["content"]]
        notes.add("mended: a user turn at the end was cut")
    if not responses:
        raise DataError("a demonstration must end with the assistant's answer")
    if not responses[0].strip():
        raise Drop("with an empty answer")
    if any(row.get(name) in (False, "false", "False") for name in LABELS):       # also 0
        raise Drop("whose answer is labelled as bad")
    messages = prompt + [message("assistant", responses[0])]
    if any(t["role"] == "assistant" and not t["content"].strip() for t in messages):
        notes.add("mended: an empty answer in the middle is not learned")
    return {"messages": messages, **kept(row)}


def comparison(row, notes):
    prompt, responses = standard(row, notes)
    count, places, rest = len(responses), distinct(responses), kept(row)
    if count < 2:
        raise DataError("a comparison needs two responses, or chosen and rejected")
    ranks = dense_ranks(row.get("ranks", [*range(count)]), count)
    grades, noise = row.get("grades", [0] * count), row.get("noise", 1)       # compare.py's
    if not are_numbers(grades, count) or not are_numbers([noise], 1) or noise <= 0:
        raise DataError(f"grades must be a list of {count} numbers, and noise a number above 0")
    if len(places) < count:
        notes.add("mended: of equal responses the best was kept")
        responses, ranks = ([part[i] for i in places] for part in (responses, ranks))
        if "grades" in row:
            rest["grades"] = [grades[i] for i in places]
    if len({*ranks}) < 2:
        raise Drop("with equal responses")
    if not responses[0].strip():
        raise Drop("whose best response is empty")
    for name, better, worse in scores_of(row):
        if better == worse:
            raise Drop("with equal scores")
        if better < worse:
            raise DataError(f"{name} contradicts the order, {better} for the better response, "
                            f"{worse} for the worse: swap these, or leave the row out")
    return {"prompt": prompt, "responses": responses, "ranks": dense_ranks(ranks, len(ranks)),
            **rest}


def prompt_only(row, notes):
    return {"prompt": standard(row, notes)[0], **kept(unjudged(row))}


read_demonstrations = partial(read_all, demonstration)
read_comparisons = partial(read_all, comparison)
read_prompts = partial(read_all, prompt_only)


def distinct(responses):
    """The places of the different responses, the first of equal ones. The same answer with another
    space at its end is the same answer."""
    return sorted({text.strip(): i for i, text in reversed([*enumerate(responses)])}.values())


def dense_ranks(ranks, count):
    """[1, 2, 2, 5] -> [0, 1, 1, 2]: 0 is the best, ties share a rank."""
    if not isinstance(ranks, list) or len(ranks) != count or {type(r) for r in ranks} != {int}:
        raise DataError(f"ranks must be a list of {count} integers")
    if ranks != sorted(ranks):  # perhaps these are scores, where the highest is the best
        raise DataError("responses must be ordered from the best (the lowest rank) to the worst")
    return [sorted(set(ranks)).index(rank) for rank in ranks]


# ---- the split ------------------------------------------------------------------------------

def mark(messages):
    """A number in [0, 1) that follows from the text up to the first user turn."""
    first_user = [turn["role"] for turn in messages].index("user")
    opening = [turn["content"].strip() for turn in messages[:first_user + 1]]
    digest = hashlib.sha256(json.dumps(opening).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def is_held_out(messages, share=0.05):
    """Whether a prompt or dialogue belongs to the held-out share. A hash decides, so the answer is
    the same in every file and run, and dialogues that begin alike are never split."""
    return mark(messages) < share


def hold_out(marks, share, sizes):
    """Which texts are held out, (N,) bool: those with a mark below the share. Copies have one mark.
    If that is next to nothing, or most of all, as with few texts, the one is held out whose copies
    come nearest to the share. So both sides have something, unless all are copies."""
    marks, copies = np.unique(marks, return_inverse=True)
    size = np.bincount(copies, sizes)                 # of each text with its copies
    held, wanted, half = marks < share, max(1, share * size.sum()), size.sum() / 2
    if not wanted / 10 <= size[held].sum() <= max(wanted, half):
        times = np.where(size <= half, np.abs(np.log(size / wanted)), np.inf)
        held = np.arange(len(size)) == times.argmin()
    if held.all() and len(held) > 1:                  # share = 1
        held[size.argmax()] = False
    return held[copies]


def split(rows, field="prompt", share=0.05):
    """(rows to train on, rows held out), by is_held_out where there are many questions. field:
    where the messages of a row are."""
    held = hold_out([mark(row[field]) for row in rows], share, [1] * len(rows)) if rows else []
    return [[row for row, h in zip(rows, held) if h == side] for side in (False, True)]


def check_sizes(place, what, train, val, n_train=1, n_val=1):
    """Refuse a split that leaves a script too little: some rows may be too long for its model."""
    if len(train) < n_train or len(val) < n_val:
        raise DataError(f"{place}: {len(train):,} {what} to train on and {len(val):,} held out; at "
                        f"least {n_train:,} and {n_val:,} are needed")


def prompts_that_fit(path, tok, T, max_new_tokens, n_train=1, n_val=1):
    """Rows of prompts, with their ids, that leave room for an answer and its end: (to train on,
    held out), at least n_train and n_val."""
    room = T - max_new_tokens - 1
    if room < 8:
        raise DataError(f"--max_new_tokens={max_new_tokens} leaves {room} of the models' {T} "
                        "tokens for the prompt")
    rows = [dict(row, ids=tok.encode_chat(row["prompt"], reply=True)[0])
            for row in read_prompts(path)]
    short = [row for row in rows if len(row["ids"]) <= room]
    train, val = split(short)
    check_sizes(path, f"prompts of at most {room} tokens", train, val, n_train, n_val)
    if len(short) < len(rows):
        note_once(f"{path}: {len(rows) - len(short)} prompts are left out, longer than {room} "
                  "tokens")
    return train, val


def epochs(n, total, seed):
    """At least `total` indices of n rows: all of them in random order, then in another one, …"""
    rng, order = np.random.default_rng(seed), []
    while len(order) < total:
        order += rng.permutation(n).tolist()
    return order
