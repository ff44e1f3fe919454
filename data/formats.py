"""Readers for every file format of the chain.

    read_texts("wiki.txt,web.jsonl")   Document(source, text, logp), one at a time
    read_demonstrations("sft.jsonl")   [{"messages": [{"role": "user", "content": "Hi"}, ...]}, ...]
    read_comparisons("pairs.jsonl")    [{"prompt": messages, "responses": [...], "ranks": [0, 1]}]
    read_prompts("prompts.jsonl")      [{"prompt": messages, the last of them the user's}, ...]

Rows are JSON lines, a JSON list, or a JSON object with one list; dialects.py knows their fields.
All others (a kind, an id) are kept. A malformed row raises a DataError with its place and reason. A
row with nothing to learn from is dropped, one that can be mended is mended, a field that nothing
reads is named: this is counted, and printed or added to `counts`, {("dropped", why): rows, …}.
"""

import hashlib
import json
import os
import re
import sys
from collections import Counter, namedtuple
from contextlib import contextmanager
from functools import partial
from itertools import accumulate, combinations, pairwise
from pathlib import Path

import numpy as np

from common import note_once
from data.dialects import (ANSWERS, COMPARED, CONTENT, DIALOGUES, LABELS, PAIR, QUESTIONS,
                           DataError, Drop, are_numbers, first, is_dialogue, message, scores_of,
                           standard, string, unjudged, unknown, without, without_gaps)

SEPARATOR = "<|endoftext|>"
BLANK = b"\xef\xbb\xbf \t\r\n"  # what may stand before JSON: a BOM, white space
LONGEST_DOCUMENT = 1 << 20  # characters; the rest of a longer document becomes the next one
# source: the file's name without its suffix; logp: the text's exact log-probability in nats, or
# None if its generator doesn't know it
Document = namedtuple("Document", "source text logp")


# ---- files -> rows --------------------------------------------------------------------------

@contextmanager
def open_text(path):
    """Open a UTF-8 file; BOM and Windows line endings disappear. A bad file raises a DataError."""
    try:
        with open(path, buffering=2**20, encoding="utf-8-sig") as file:
            if not file.seekable():
                raise DataError(f"{path}: is a pipe, but is read more than once: save it as a file")
            start = file.buffer.peek()
            if b"\0" in start:
                raise DataError(f"{path}: has NUL bytes: unpack it, or save it as UTF-8 text")
            if start.startswith(b"version https://git-lfs"):
                raise DataError(f"{path}: is a pointer of Git LFS: `git lfs pull` gets the file")
            try:
                yield file
            except UnicodeDecodeError as error:  # error.start counts within the last piece read
                byte = file.buffer.tell() - len(error.object) + error.start
                raise DataError(f"{path}: not UTF-8 at byte {byte:,}: save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"{path or repr(path)}: {error.strerror}") from None


def is_text(path):
    """Whether a file is plain text. notes.md, or a name without a suffix, is text unless it begins
    like JSON."""
    suffix = Path(path).suffix.lower()
    if suffix in (".txt", ".json", ".jsonl"):
        return suffix == ".txt"
    with open(path, "rb") as file:                    # not a link: [home](…), [[home]]
        json_like = re.match(rb'[\s\[]*{\s*"', file.read(4096).lstrip(BLANK))
    if not json_like and suffix not in ("", ".md", ".text"):
        raise DataError(f"{path}: {suffix} files are not read: save it as text (.txt, .md) or as "
                        'rows (.jsonl: {"prompt": "Hi", "response": "Hello"})')
    return not json_like


def is_one_value(start):
    """Whether a file that begins so is one JSON value: a list, or an object over several lines,
    such as {"data": [. In JSONL each line is an object, or a list in nanochat's files."""
    line, _, rest = map(bytes.strip, start.lstrip(BLANK).partition(b"\n"))
    if line.startswith(b"["):
        return not rest or not line.endswith(b"]")
    return rest and line.startswith(b"{") and line.endswith((b"{", b"[", b":", b","))


def rows_of(text):
    """The rows in a JSON text: one, a list, or an object with one list, such as {"data": [...]}.
    Text that is not JSON is a DataError among them, which read_rows raises or collects."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:     # RecursionError: [[[[[[...
        return [DataError(f"not JSON: {error}".replace("line 1 column", "column"))]
    if isinstance(value, dict) and not first(value, (*CONTENT, "text")):
        lists = [v for v in value.values() if isinstance(v, list)]
        value = lists[0] if len(lists) == 1 else value
    rows = value if isinstance(value, list) and not is_dialogue(value) else [value]
    return [{"messages": row} if is_dialogue(row) else row for row in rows]


def places_and_rows(path):
    """Yield (place, row) for each document of a text, item of a JSON list or line of a JSONL."""
    with open_text(path) as file:
        if is_text(path):
            for number, text in enumerate(split_documents(file), 1):
                yield f"{path}, document {number:,}", {"text": text}
        elif is_one_value(file.buffer.peek()):
            for number, row in enumerate(rows_of(file.read()), 1):
                yield f"{path}, record {number:,}", row
        else:
            for number, line in enumerate(file, 1):
                if line := line.strip("\ufeff \t\r\n"):  # joined files have a BOM in the middle
                    yield from ((f"{path}, line {number:,}", row) for row in rows_of(line))


def split_documents(file):
    """Yield the documents between the separators. Reads a megabyte at a time."""
    rest = ""
    while piece := file.read(1 << 20):
        *documents, rest = (rest + piece.replace("\ufeff", "")).split(SEPARATOR)
        if len(rest) > LONGEST_DOCUMENT:
            head, _, rest = rest.rpartition("\n")  # no separator contains a line's end
            documents.append(head)
        yield from (text.strip("\n") for text in documents if text.strip())
    if rest.strip():
        yield rest.strip("\n")


def read_rows(path, convert, counts=None, malformed=None):
    """Yield convert(row, notes) for every row; it counts in notes what it mends ("mended", how) and
    which fields it leaves ("not used", name). A Drop is counted, too. A malformed row raises a
    DataError, or is added to the list `malformed` (tools/check.py)."""
    total, found = 0, Counter()                       # found: rows, not changes
    for total, (place, row) in enumerate(places_and_rows(path), 1):
        notes, sound = Counter(), isinstance(row, dict)
        try:
            if not sound:
                raise row if isinstance(row, DataError) else DataError(
                    f"a row must be an object {{...}}, not {row!r:.40}")
            converted = convert(without_gaps(row), notes)
        except Drop as reason:
            found["dropped", str(reason)] += 1
        except ValueError as reason:
            if sound and lacks_a_cell(row):
                found["dropped", "with an empty cell"] += 1
            elif malformed is None:
                raise DataError(f"{place}: {reason}") from None
            else:
                malformed.append(f"{place}: {reason}")
        else:
            found.update({*notes})
            yield converted
    if not total:
        raise DataError(f"{path}: is empty")
    told = []
    for what in sorted({what for what, _ in found}):
        rows = Counter({text: n for (kind, text), n in found.items() if kind == what})
        of = f" {rows.total():,} of {total:,} rows" if what == "dropped" else ""
        told.append(f"{path}: {what}{of}: {listed(rows)}")
        if of and rows.total() == total:
            raise DataError(told[0])
    if counts is not None:
        counts.update(found)
    elif told:
        print("\n".join(told), file=sys.stderr)


def lacks_a_cell(row):
    """Whether a row lacks its text, or what it should ask or answer, since the cell is empty."""
    full = without_gaps(row)
    return any(first(row, names) and not first(full, names)
               for names in (QUESTIONS, ANSWERS, *zip(PAIR), ("text",)))


def listed(counts):
    return ", ".join(f"{count:,} {what}" for what, count in counts.most_common())


# ---- pretraining text -----------------------------------------------------------------------

def read_texts(paths, counts=None):
    """Yield the documents of comma-separated files and directories (their .txt and .jsonl files).

    A JSON row has a `text`, or is a demonstration: a tokenizer learns from its messages as well.
    """
    for path in list_files(paths):
        for text, logp in read_rows(path, text_and_logp, counts):
            yield Document(path.stem, text, logp)
    for folder in map(str.strip, str(paths).split(",")):
        if others := Counter(f.suffix or f.name for f in text_files(folder, others=True)):
            note_once(f"{folder}: only .txt and .jsonl are read, not {listed(others)}")


def text_files(folder, others=False):
    """The .txt and .jsonl files in a folder and its subfolders, or the others, without hidden ones,
    such as macOS's ._book.txt. Links are followed, but no folder is read twice."""
    files, seen = [], set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        folders[:] = sorted(name for name in folders if name[0] != "." and real not in seen)
        files += [Path(place, name) for name in names if name[0] != "." and real not in seen
                  and (Path(name).suffix.lower() not in (".txt", ".jsonl")) == others]
        seen.add(real)
    return sorted(files)


def list_files(paths):
    """All files. A wrong name is reported before the first file is read, not an hour later."""
    files = []
    for name in map(str.strip, str(paths).split(",")):
        found = text_files(name) or [name]
        for file in found:
            if os.path.isdir(file) or not os.path.exists(file):       # also a link to nowhere
                raise DataError(f"'{file}': no such file, or no directory with .txt or .jsonl "
                                "files")
        files += map(Path, found)
    return files


def text_and_logp(row, notes):
    if "text" not in row:
        return "\n".join(turn["content"] for turn in demonstration(row, notes)["messages"]), None
    if not are_numbers([row.get("logp", 0)], 1):
        raise DataError(f"logp must be a number, not {row['logp']!r:.40}")
    text = string(row["text"], "text")
    if not text.strip():
        raise Drop("without text")
    kept(row, notes)
    return text, row.get("logp")


# ---- demonstrations, comparisons, prompts, from files separated by commas -------------------

def read_all(convert, paths, counts=None):
    return [row for path in str(paths).split(",")
            for row in read_rows(path.strip(), convert, counts)]


def demonstration(row, notes):
    prompt, responses = standard(without(row, COMPARED), notes)
    if not responses and first(row, DIALOGUES):
        # a dialogue whose last question nobody has answered
        while prompt and prompt[-1]["role"] != "assistant":
            prompt.pop()
        if prompt:
            notes["mended", "that ended with a user turn, which was cut"] += 1
            responses = [prompt.pop()["content"]]
    if not responses:
        raise DataError("a demonstration must end with the assistant's answer")
    if not responses[0].strip():
        raise Drop("with an empty answer")
    if any(row.get(name) in (False, "false", "False") for name in LABELS):       # also 0
        raise Drop("whose answer is labelled as bad")
    messages = prompt + [message("assistant", responses[0])]
    if any(t["role"] == "assistant" and not t["content"].strip() for t in messages):
        notes["mended", "with an empty answer in the middle, which is not learned"] += 1
    return {"messages": messages, **kept(row, notes, LABELS)}


def kept(row, notes, used=()):
    """The fields beside the content and the text. What nothing reads is counted."""
    rest = without(row, (*CONTENT, "text", "logp"))
    if "kind" in rest:                                # a name in reports
        rest["kind"] = str(rest["kind"])
    notes.update(unknown(without(rest, used)))
    return rest


def comparison(row, notes):
    prompt, responses = standard(row, notes)
    count = len(responses)
    if count < 2:
        raise DataError("a comparison needs two responses, or chosen and rejected")
    order = ranks = dense_ranks(row.get("ranks", [*range(count)]), count)
    grades, noise = row.get("grades", [0] * count), row.get("noise", 1)       # compare.py's
    if not are_numbers(grades, count):
        raise DataError(f"grades must be a list of {count} numbers, not {grades!r:.40}")
    if not are_numbers([noise], 1) or noise <= 0:
        raise DataError(f"noise must be a number above 0, not {noise!r:.40}")
    places = distinct(responses)
    if len({ranks[i] for i in places}) < 2:
        raise Drop("with equal responses")
    if not responses[0].strip():
        raise Drop("whose best response is empty")
    scores = [*scores_of(row, count)]
    for names, way, values in scores:
        ranks = with_ties(ranks, names, way, values)
    if len({ranks[i] for i in places}) < 2:
        raise Drop("with equal scores")
    if ranks != order:
        notes["mended", "with equal scores, which became ties"] += 1
    if len(places) < count:
        notes["mended", "with equal responses, of which the best was kept"] += 1
        responses, ranks = ([part[i] for i in places] for part in (responses, ranks))
        if "grades" in row:
            row = row | {"grades": [grades[i] for i in places]}
    used = {"grades", "noise", "labeler", "models"}.union(*(names for names, *_ in scores))
    return {"prompt": prompt, "responses": responses, "ranks": dense_ranks(ranks, len(ranks)),
            **kept(row, notes, used)}


def distinct(responses):
    """The places of the different responses, the first of equal ones. The same answer with another
    space at its end is the same answer."""
    return sorted({text.strip(): i for i, text in reversed([*enumerate(responses)])}.values())


def with_ties(ranks, names, way, scores):
    """The ranks, without a difference where the scores have none. They must not contradict."""
    for i, j in combinations(range(len(ranks)), 2):
        if ranks[i] < ranks[j] and way * scores[i] < way * scores[j]:
            raise DataError(f"{' and '.join(sorted(names))} contradict the order, {scores[i]} for "
                            f"the better response, {scores[j]} for the worse: swap these, or leave "
                            "the row out")
    return [*accumulate((a != b and x != y for (a, x), (b, y) in pairwise(zip(ranks, scores))),
                        initial=0)]


def dense_ranks(ranks, count):
    """[1, 2, 2, 5] -> [0, 1, 1, 2]: 0 is the best, ties share a rank."""
    if not isinstance(ranks, list) or len(ranks) != count or {type(r) for r in ranks} != {int}:
        raise DataError(f"ranks must be a list of {count} integers")
    if ranks != sorted(ranks):  # perhaps these are scores, where the highest is the best
        raise DataError("responses must be ordered from the best (the lowest rank) to the worst")
    return [sorted(set(ranks)).index(rank) for rank in ranks]


def prompt_only(row, notes):
    return {"prompt": standard(row, notes)[0], **kept(unjudged(row), notes)}


read_demonstrations = partial(read_all, demonstration)
read_comparisons = partial(read_all, comparison)
read_prompts = partial(read_all, prompt_only)


# ---- the split ------------------------------------------------------------------------------

def mark(messages):
    """A number in [0, 1) that follows from the text up to the first user turn."""
    opening = []
    for turn in messages:
        opening.append(turn["content"].strip())
        if turn["role"] == "user":
            break
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


def held_out(prompts, share=0.05):
    """For each prompt, whether it is held out: is_held_out, but for files with few questions."""
    if not prompts:
        return []
    return hold_out([mark(prompt) for prompt in prompts], share, [1] * len(prompts)).tolist()


def split(rows, field="prompt", share=0.05):
    """(rows to train on, rows held out). field: where the messages of a row are."""
    held = held_out([row[field] for row in rows], share)
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
