"""Readers for every file format of the chain.

    read_texts("wiki.txt,web.jsonl")   Document(source, text, logp), one at a time
    read_demonstrations("sft.jsonl")   [{"messages": [{"role": "user", "content": "Hi"}, ...]}, ...]
    read_comparisons("pairs.jsonl")    [{"prompt": messages, "responses": [...], "ranks": [0, 1]}]
    read_prompts("prompts.jsonl")      [{"prompt": messages, the last of them the user's}, ...]

Rows are JSON lines, a JSON list, or a JSON object with one list. They keep their other fields (a
kind, an id). A malformed row raises a DataError with its place and the reason. A well-formed row
with nothing to learn from is dropped, and a row that can be mended is mended (turns of one role in
a row are joined, a user turn at the end is cut). Fields are used, or known to say nothing about the
text (an id), or they are named. All this is counted; the numbers are printed, or added to the
Counters `dropped` and `notes`.
"""

import functools
import hashlib
import json
import os
import re
import sys
from ast import literal_eval
from collections import Counter
from contextlib import contextmanager, suppress
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common import fail, note_once

SEPARATOR = "<|endoftext|>"
BLANK = b"\xef\xbb\xbf \t\r\n"  # what may stand before JSON: a BOM, white space
LONGEST_DOCUMENT = 1 << 20  # characters; the rest of a longer document becomes the next one
LONGEST_LINE = 1 << 26  # characters; a longer line could fill the memory, and is refused
ROLES = {"system": "system", "user": "user", "assistant": "assistant",
         "human": "user", "gpt": "assistant"}  # ShareGPT's names for them
# A row asks in the first of these fields that it has, and answers in the first of those.
QUESTIONS = ("messages", "conversations", "prompt", "instruction", "question", "input")
ANSWERS = ("response", "completion", "output", "answer")
EXTRA = ("input", "context", "system", "system_prompt", "history")  # added to the question
COMPARED = ("responses", "ranks", "chosen", "rejected", "rejected_response")
# the fields that the readers convert; all other fields of a row are kept
CONTENT = (*QUESTIONS, *ANSWERS, *EXTRA, *COMPARED)
# Without these a turn or a row of a dialogue means something else: it is refused.
MEANINGFUL = ("image", "images", "video", "videos", "audio", "audios", "tools", "functions",
              "tool_calls", "function_call", "reasoning", "reasoning_content", "thinking")
# What a row says of its responses: score_chosen and score_rejected, chosen-rating, scores: [7, 5].
# 1: the highest is the best.
SCORES = {"score": 1, "rating": 1, "reward": 1, "grade": 1, "quality": 1, "avg_rating": 1,
          "overall_score": 1, "reward_score": 1, "rm_score": 1, "rank": -1, "margin": 1}
LABELS = ("label", "kto_tag")  # false: the answer is bad (TRL's and LLaMA-Factory's KTO)
OPINIONS = (*LABELS, "noise", "labeler", "models")  # more of what belongs to given responses
# These say nothing about the text. All other fields that nothing reads are counted and told.
HARMLESS = re.compile(r"(.*[-_])?(id|uuid|idx|index|source|origin|dataset|subset|split|url|path|"
                      r"domain|category|kind|about|topic|type|tag|language|lang|model|generator|"
                      r"metadata|meta|info|date|time|timestamp|license|version|hash|length|"
                      r"count)s?")
TURN = ("role", "from", "content", "value", "weight", "train", "loss")


class DataError(ValueError):
    """Why a file can't be used, in one line: where, what is wrong and, if possible, what to do."""


class Drop(Exception):
    """A well-formed row with nothing to learn from. The text follows a number: "2 without text"."""


class Document(NamedTuple):
    source: str  # the file's name without its suffix
    text: str
    logp: float | None  # the text's exact log-probability in nats, if its generator knows it


# ---- files -> rows --------------------------------------------------------------------------

@contextmanager
def open_text(path, errors):
    """Open a UTF-8 file; BOM and Windows line endings disappear. A bad file raises a DataError."""
    try:
        with open(path, buffering=2**20, encoding="utf-8-sig", errors=errors) as file:
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
                raise DataError(f"{path}: not UTF-8 at byte {byte:,}: save it as UTF-8 (only "
                                "tokenizer.py can replace bad bytes: --errors=replace)") from None
    except OSError as error:
        raise DataError(f"{path or repr(path)}: {error.strerror}") from None


def parse(text):
    """The JSON value, or a DataError, which read_rows raises or collects."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # RecursionError: [[[[[[...
        return DataError(f"not JSON: {error}".replace("line 1 column", "column"))


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
    first, _, rest = map(bytes.strip, start.lstrip(BLANK).partition(b"\n"))
    if first.startswith(b"["):
        return not rest or not first.endswith(b"]")
    return rest and first.startswith(b"{") and first.endswith((b"{", b"[", b":", b","))


def list_of(value):
    """The rows in a JSON value: a list, or an object with one list, such as {"data": […]}."""
    if isinstance(value, dict) and not any(name in CONTENT or name == "text" for name in value):
        lists = [v for v in value.values() if isinstance(v, list)]
        value = lists[0] if len(lists) == 1 else value
    rows = value if isinstance(value, list) and not is_dialogue(value) else [value]
    return [{"messages": row} if is_dialogue(row) else row for row in rows]


def is_dialogue(value):
    """Whether it is a list of turns. nanochat's files have one per line, without a name."""
    return isinstance(value, list) and bool(value) and all(
        isinstance(turn, dict) and (turn.keys() & {"role", "from"}) for turn in value)


def places_and_rows(path, errors):
    """Yield (place, row) for each document of a text, item of a JSON list or line of a JSONL."""
    with open_text(path, errors) as file:
        if is_text(path):
            for number, text in enumerate(split_documents(file), 1):
                yield f"{path}, document {number:,}", {"text": text}
        elif is_one_value(file.buffer.peek()):
            value = parse(file.read())
            if isinstance(value, DataError):
                raise DataError(f"{path}: {value}")
            for number, row in enumerate(list_of(value), 1):
                yield f"{path}, record {number:,}", row
        else:
            for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE), ""), 1):
                if len(line) == LONGEST_LINE:
                    raise DataError(f"{path}, line {number:,}: over {LONGEST_LINE:,} characters: "
                                    "write one row per line")
                if line := line.strip("\ufeff \t\r\n"):  # joined files have a BOM in the middle
                    for row in list_of(parse(line)):
                        yield f"{path}, line {number:,}", row


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


def read_rows(path, convert, dropped=None, errors="strict", malformed=None, notes=None):
    """Yield convert(row, changes) for every row; it counts in changes what it mends ("mended", how)
    and which fields it leaves ("not used", name). A Drop is counted. A malformed row raises a
    DataError, or is added to the list `malformed` (tools/check.py)."""
    total, reasons, found = 0, Counter(), Counter()
    for total, (place, row) in enumerate(places_and_rows(path, errors), 1):
        try:
            if isinstance(row, DataError):
                raise row
            if not isinstance(row, dict):
                raise DataError(f"a row must be an object {{...}}, not {row!r:.40}")
            filled = without_gaps(row)
            if "text" in row and not any(name in filled for name in QUESTIONS):
                filled.setdefault("text", "")
            changes = Counter()
            converted = convert(filled, changes)
            found.update(set(changes))                # rows, not changes
            yield converted
        except Drop as reason:
            reasons[str(reason)] += 1
        except ValueError as reason:
            if isinstance(row, dict) and has_gap(row, filled):
                reasons["with an empty cell"] += 1
                continue
            if malformed is None:
                raise DataError(f"{place}: {reason}") from None
            malformed.append(f"{place}: {reason}")

    report = f"{path}: dropped {reasons.total():,} of {total:,} rows: {listed(reasons)}"
    if reasons.total() == total:
        raise DataError(report if total else f"{path}: is empty")
    if dropped is not None:
        dropped.update(reasons)
    elif reasons:
        print(report, file=sys.stderr)
    if notes is not None:
        notes.update(found)
    elif dropped is None:
        for what in sorted({what for what, _ in found}):
            counts = Counter({text: n for (kind, text), n in found.items() if kind == what})
            print(f"{path}: {what}: {listed(counts)}", file=sys.stderr)


def without_gaps(row):
    """Exporters write null, NaN or [] for an empty cell."""
    return {k: v for k, v in row.items() if v is not None and v == v and v != []}


def listed(counts):
    return ", ".join(f"{count:,} {what}" for what, count in counts.most_common())


def has_gap(row, filled):
    """Whether the row lacks what it should ask or answer, since the cell is null."""
    return any(row.keys() & names and not filled.keys() & names
               for names in (set(QUESTIONS), set(ANSWERS), {"chosen"}, {"rejected"}))


# ---- pretraining text -----------------------------------------------------------------------

def read_texts(paths, errors="strict", dropped=None):
    """Yield the documents of comma-separated files and directories (their .txt and .jsonl files).

    A JSON row has a `text`, or is a demonstration: a tokenizer learns from its messages as well.
    """
    for path in list_files(paths):
        for text, logp in read_rows(path, lambda row, notes: text_and_logp(row, errors, notes),
                                    dropped, errors):
            yield Document(path.stem, text, logp)
    tell_others(str(paths))


def text_files(folder, others=False):
    """The .txt and .jsonl files in a folder and its subfolders, or the others, without hidden ones,
    such as macOS's ._book.txt. Links are followed, but no folder is read twice."""
    files, seen = [], set()
    for place, folders, names in os.walk(folder, followlinks=True):
        if os.path.realpath(place) in seen:
            folders.clear()
            continue
        seen.add(os.path.realpath(place))
        folders[:] = sorted(name for name in folders if name[0] != ".")
        files += [Path(place, name) for name in names
                  if name[0] != "."
                  and (Path(name).suffix.lower() not in (".txt", ".jsonl")) == others]
    return sorted(files)


@functools.cache
def tell_others(paths):
    """Say once what is not read in folders: it could be most of the text."""
    for folder in filter(os.path.isdir, map(str.strip, paths.split(","))):
        if others := Counter(f.suffix or f.name for f in text_files(folder, others=True)):
            print(f"{folder}: only .txt and .jsonl are read, not {listed(others)}", file=sys.stderr)


def list_files(paths):
    """All files. A wrong name is reported before the first file is read, not an hour later."""
    files = []
    for name in str(paths).split(","):
        name = name.strip()
        found = text_files(name) if os.path.isdir(name) else []
        for file in found or [name]:
            if os.path.isdir(file) or not os.path.exists(file):       # also a link to nowhere
                raise DataError(f"'{file}': no such file, or no directory with .txt or .jsonl "
                                "files")
        files += found or [Path(name)]
    return files


def text_and_logp(row, errors, notes):
    if "text" not in row:
        return "\n".join(turn["content"] for turn in demonstration(row, notes)["messages"]), None
    if not is_number(row.get("logp", 0.0)):
        raise DataError(f"logp must be a number, not {row['logp']!r:.40}")
    text = string(row["text"], "text", errors)
    if not text.strip():
        raise Drop("without text")
    kept(row, notes)
    return text, row.get("logp")


# ---- rows -> messages -----------------------------------------------------------------------

def is_number(value):
    """Not NaN, infinite, or too large for a float32."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e30


def string(value, name, errors="strict"):
    """The value, if it is a string that UTF-8 can encode: not half an emoji, JSON's "\\ud83d"."""
    if not isinstance(value, str):
        raise DataError(f"{name} must be a string, not {value!r:.40}")
    return value.encode("utf-8", errors).decode()


def message(role, content):
    role = role.lower() if isinstance(role, str) else role
    if str(role) not in ROLES:
        raise DataError(f"a role must be system, user or assistant, not {role!r:.40}")
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text"
                                         for part in content):
        content = "".join(string(part.get("text"), "text") for part in content)
    return {"role": ROLES[role], "content": string(content, "content")}


def deserialised(value):
    """A list of turns that was written as a string, as table formats do, in JSON or in Python."""
    if isinstance(value, str) and value.lstrip().startswith("[{"):
        for read in (json.loads, literal_eval):
            with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
                if is_dialogue(turns := read(value)):
                    return turns
    return value


def refuse_meaningful(fields):
    for name in MEANINGFUL:
        if fields.get(name) and fields[name] not in ("[]", "{}", "null"):
            raise DataError(f"{name} can't be used, and the text means something else without: "
                            "leave such rows out, or remove the field")


def unknown(fields):
    """What nothing reads, as it is counted in notes."""
    return {("not used", repr(name)[:40]) for name in fields
            if not HARMLESS.fullmatch(str(name).lower())}


def as_messages(prompt, notes=None):
    """"Hi" -> [{"role": "user", "content": "Hi"}]; a transcript is cut into its turns, a list is
    checked and copied."""
    if isinstance(prompt, str):
        turns = transcript(prompt) if is_transcript(prompt) else [message("user", prompt)]
        return turns[:-1] if turns[-1] == message("assistant", "") else turns
    if not (isinstance(prompt, list) and prompt and all(isinstance(turn, dict) for turn in prompt)):
        raise DataError(f"expected a string or a list of messages, not {prompt!r:.40}")
    messages = []
    for turn in map(without_gaps, prompt):
        refuse_meaningful(turn)
        messages.append(message(turn.get("role", turn.get("from")),
                                turn.get("content", turn.get("value"))))
        for name in ("weight", "train", "loss"):
            if messages[-1]["role"] == "assistant" and turn.get(name, 1) != 1:     # True == 1
                raise DataError(f"an answer with {name}={turn[name]!r:.40} can't be learned as it "
                                "is meant: leave such rows out")
        if notes is not None:
            notes.update(unknown(without(turn, TURN)))
    return messages


def join(*texts):
    return "\n\n".join(text for text in texts if text.strip())


def tidy(turns, notes):
    """Join neighbours of one role, and remove the assistant's turns before the first question."""
    joined = []
    for turn in turns:
        if joined and joined[-1]["role"] == turn["role"]:
            joined[-1]["content"] = join(joined[-1]["content"], turn["content"])
            notes["mended", "with turns of one role in a row, which were joined"] += 1
        elif turn["role"] == "assistant" and not any(t["role"] == "user" for t in joined):
            notes["mended", "that began with an answer, which was cut"] += 1
        else:
            joined.append(turn)
    return joined


def prompt_and_responses(row, notes):
    """Any row as (prompt, responses): one response is a demonstration, several are a comparison."""
    refuse_meaningful(row)
    pair = "chosen" in row or "rejected" in row
    prompt, responses = (prompt_and_pair if pair else prompt_and_answers)(row, notes)
    question = row.get(question_of(row))
    if isinstance(question, str) and is_transcript(question):
        responses = [response.strip() for response in responses]      # "Assistant: Hello"
    return prompt, responses


def question_of(row):
    return next((name for name in QUESTIONS if name in row), None)


def prompt_and_answers(row, notes):
    name = question_of(row)
    if name is None:
        raise DataError(f"needs one of {', '.join(QUESTIONS)}, as in "
                        '{"prompt": "Hi", "response": "Hello"}: data/README.md lists the formats')
    dialogue = name in ("messages", "conversations")
    prompt = as_messages(deserialised(row[name]), notes)
    for extra in ("input", "context"):
        if row.get(extra) and extra != name and not dialogue:
            prompt[-1]["content"] = join(prompt[-1]["content"], string(row[extra], extra))
    if row.get("history"):
        prompt = as_history(row["history"]) + prompt
    if rules := row.get("system") or row.get("system_prompt"):
        prompt.insert(0, message("system", rules))
    prompt, responses = tidy(prompt, notes), row.get("responses", [])
    if not isinstance(responses, list):
        raise DataError("responses must be a list of strings, the best first")
    # The answer is the last turn of the dialogue, or has its own field.
    answer = next((row[name] for name in ANSWERS if name in row), None)
    if dialogue and prompt and prompt[-1]["role"] == "assistant":
        *prompt, last = prompt
        responses = responses or [last["content"]]
    elif answer is not None and not responses:
        if is_dialogue(answer):                       # TRL: the last turns of the dialogue
            *prompt, last = tidy(prompt + as_messages(answer, notes), notes)
            if last["role"] != "assistant":
                raise DataError("an answer must end with an assistant turn")
            answer = [last["content"]]
        # LLaMA-Factory: a list of answers, the best first
        responses = answer if isinstance(answer, list) else [answer]
    if "rejected_response" in row:                    # ms-swift: beside a demonstration
        responses = [*responses[:1], row["rejected_response"]]
    responses = [string(response, "a response") for response in responses]
    # a row may ask or answer in two fields: the other one is told, if it says something else
    text = "\n".join([*(turn["content"] for turn in prompt), *responses])
    notes.update({("not used", repr(other)) for other in {*QUESTIONS, *ANSWERS, *EXTRA} - {name}
                  if isinstance(row.get(other), str) and row[other].strip() not in text})
    return ends_with_user(prompt), responses


def as_history(pairs):
    """Alpaca's earlier turns, [[question, answer], …] -> messages."""
    if not (isinstance(pairs, list) and all(isinstance(p, list) and len(p) == 2 for p in pairs)):
        raise DataError(f"history must be a list of [question, answer], not {pairs!r:.40}")
    return [message(role, text) for pair in pairs
            for role, text in zip(("user", "assistant"), pair)]


def ends_with_user(prompt):
    if not prompt or prompt[-1]["role"] != "user":
        raise DataError("the prompt must end with a user turn, and the assistant answers next")
    if not prompt[-1]["content"].strip():
        raise Drop("with an empty question")
    return prompt


def without(row, names):
    return {name: value for name, value in row.items() if name not in names}


def prompt_and_pair(row, notes):
    """Chosen and rejected: answers to the row's prompt, or dialogues with different last turns."""
    if not {"chosen", "rejected"} <= row.keys():
        raise DataError("chosen and rejected must come together: add the missing one")
    prompt = []
    if any(name in row for name in QUESTIONS):
        prompt, _ = prompt_and_responses(without(row, COMPARED), notes)
    chosen, rejected = (whole_dialogue(prompt, deserialised(row[name]), notes)
                        for name in ("chosen", "rejected"))
    if chosen[:-1] != rejected[:-1]:
        raise Drop("whose dialogues differ before the last answer")
    return ends_with_user(chosen[:-1]), [chosen[-1]["content"], rejected[-1]["content"]]


def whole_dialogue(prompt, answer, notes):
    """The prompt and an answer. The answer is text, a message, or the whole dialogue (TRL, HH)."""
    if not isinstance(answer, str):
        turns = as_messages([answer] if isinstance(answer, dict) else answer, notes)
    elif prompt and not is_transcript(answer):
        turns = [message("assistant", answer)]
    else:
        turns = transcript(answer)
        if [turn["role"] for turn in turns[-2:]] != ["user", "assistant"]:
            raise Drop("whose transcripts don't end with Human and Assistant")
    if turns[-1]["role"] != "assistant":
        raise DataError("chosen and rejected must end with an assistant turn")
    if len(turns) == 1:
        return prompt + turns
    # The dialogue may have a system message or early turns that the prompt lacks.
    if prompt and prompt[-1] not in turns:
        raise DataError("chosen and rejected must be answers to the prompt, or contain it")
    return turns


def is_transcript(text):
    """Whether a string is a dialogue of Human and Assistant, as in HH, rm-static and BELLE."""
    return bool(re.match(r"\n\nHuman:|\s*Human:.*\n *Assistant:", text, re.DOTALL))


def transcript(text):
    r"""`\n\nHuman: Hi\n\nAssistant: Hello` -> [user: Hi, assistant: Hello]"""
    line = r"\n\n" if "\n\nAssistant:" in text else r"\n *"         # BELLE has no empty lines
    start, *parts = re.split(line + "(Human|Assistant):", "\n\n" + text.strip())
    if start.strip() or not parts:
        raise DataError("needs a prompt, or transcripts that begin with 'Human:'")
    return [message(who.lower(), said.strip()) for who, said in zip(parts[::2], parts[1::2])]


# ---- demonstrations, comparisons, prompts, from files separated by commas -------------------

def read_all(paths, convert, dropped):
    return [row for path in str(paths).split(",")
            for row in read_rows(path.strip(), convert, dropped)]


def read_demonstrations(paths, dropped=None):
    """From messages, ShareGPT's conversations, prompt and response, or Alpaca's three fields."""
    return read_all(paths, demonstration, dropped)


def demonstration(row, notes):
    prompt, responses = prompt_and_responses(without(row, COMPARED), notes)
    if not responses and ("messages" in row or "conversations" in row):
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
        if isinstance(rest["kind"], (list, dict)):
            raise DataError(f"kind must be a string, not {rest['kind']!r:.40}")
        rest["kind"] = str(rest["kind"])
    notes.update(unknown(without(rest, used)))
    return rest


def read_comparisons(paths, dropped=None):
    """From responses, the best first (with `ranks` if some are equal), or chosen and rejected."""
    return read_all(paths, comparison, dropped)


def comparison(row, notes):
    prompt, responses = prompt_and_responses(row, notes)
    if len(responses) < 2:
        raise DataError("a comparison needs two responses, or chosen and rejected")
    ranks = dense_ranks(row.get("ranks", list(range(len(responses)))), len(responses))
    check_grades(row, len(responses))
    places = distinct(responses)
    if len(places) < 2 or len({ranks[i] for i in places}) == 1:
        raise Drop("with equal responses")
    if not responses[0].strip():
        raise Drop("whose best response is empty")
    scores, strict = [*scores_of(row, len(responses))], max(ranks)
    for each in scores:
        ranks = with_ties(ranks, each)
    if len({ranks[i] for i in places}) == 1:
        raise Drop("with equal scores")
    if max(ranks) < strict:
        notes["mended", "with equal scores, which became ties"] += 1
    if len(places) < len(responses):
        notes["mended", "with equal responses, of which the best was kept"] += 1
        responses = [responses[i] for i in places]
        ranks = dense_ranks([ranks[i] for i in places], len(places))
        if "grades" in row:
            row = row | {"grades": [row["grades"][i] for i in places]}
    used = {"grades", "noise", "labeler", "models"}.union(*(names for names, *_ in scores))
    return {"prompt": prompt, "responses": responses, "ranks": ranks, **kept(row, notes, used)}


def distinct(responses):
    """The places of the different responses, the first of equal ones. The same answer with another
    space at its end is the same answer."""
    return sorted({text.strip(): i for i, text in reversed([*enumerate(responses)])}.values())


def check_grades(row, count):
    """compare.py's: a true grade for each response, and the noise of the labelers."""
    grades, noise = row.get("grades", [0] * count), row.get("noise", 1)
    if not isinstance(grades, list) or len(grades) != count or not all(map(is_number, grades)):
        raise DataError(f"grades must be a list of {count} numbers, not {grades!r:.40}")
    if not is_number(noise) or noise <= 0:
        raise DataError(f"noise must be a number above 0, not {noise!r:.40}")


def stem_of(name):
    """"chosen-rating" -> "rating", "scores" -> "score" """
    return re.sub("[-_]?(chosen|rejected)[-_]?|s$", "", name.lower())


def unjudged(row):
    """The row without what was said of its responses, so that it can have others."""
    return {name: value for name, value in row.items()
            if stem_of(name) not in SCORES and name not in OPINIONS}


def scores_of(row, count):
    """Yield ({names of fields}, which way, scores) for all that the row says of its responses."""
    for name, value in without(row, CONTENT).items():
        stem, twin, values = stem_of(name), name.replace("chosen", "rejected"), []
        if stem not in SCORES or name == "grades" and "noise" in row:  # labelers differ from these
            continue
        if twin != name:
            values = [value, row.get(twin)]
        elif stem == "margin":                        # TRL's: chosen minus rejected
            values = [value, 0]
        # a list beside chosen and rejected may have another order: of these only ties are clear
        elif isinstance(value, list) and ("responses" in row or value == value[:1] * count):
            values = value
        if len(values) == count and all(map(is_number, values)):
            yield {name, twin}, SCORES[stem], values


def with_ties(ranks, scores):
    """The ranks, without a difference where the scores have none. They must not contradict."""
    names, way, values = scores
    for i, j in combinations(range(len(ranks)), 2):
        if ranks[i] < ranks[j] and way * values[i] < way * values[j]:
            raise DataError(f"{' and '.join(sorted(names))} contradict the order, {values[i]} for "
                            f"the better response, {values[j]} for the worse: swap these, or leave "
                            "the row out")
    tied = [0]
    for i in range(1, len(ranks)):
        tied.append(tied[-1] + (ranks[i] != ranks[i - 1] and values[i] != values[i - 1]))
    return tied


def dense_ranks(ranks, count):
    """[1, 2, 2, 5] -> [0, 1, 1, 2]: 0 is the best, ties share a rank."""
    if not isinstance(ranks, list) or len(ranks) != count or {type(r) for r in ranks} != {int}:
        raise DataError(f"ranks must be a list of {count} integers")
    if ranks != sorted(ranks):  # perhaps these are scores, where the highest is the best
        raise DataError("responses must be ordered from the best (the lowest rank) to the worst")
    return [sorted(set(ranks)).index(rank) for rank in ranks]


def read_prompts(paths, dropped=None):
    """From rows with a prompt, and from any demonstrations or comparisons."""
    return read_all(paths, prompt_only, dropped)


def prompt_only(row, notes):
    return {"prompt": prompt_and_responses(row, notes)[0], **kept(unjudged(row), notes)}


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
    held, asked = held_out([row[field] for row in rows], share), {mark(row[field]) for row in rows}
    if share * len(asked) < 1 and len(asked) < len(rows):
        print(f"{len(rows):,} rows begin with only {len(asked):,} different questions: "
              f"{sum(held):,} are held out", file=sys.stderr)
    return [[row for row, h in zip(rows, held) if h == side] for side in (False, True)]


def prompts_that_fit(path, tok, T, max_new_tokens, n_train=1, n_val=1):
    """Rows of prompts, with their ids, that leave room for an answer and its end: (to train on,
    held out), at least n_train and n_val."""
    room = T - max_new_tokens - 1
    if room < 8:
        fail(f"--max_new_tokens={max_new_tokens} leaves {room} of the models' {T} tokens for the "
             f"prompt")
    rows = [dict(row, ids=tok.encode_chat(row["prompt"], reply=True)[0])
            for row in read_prompts(path)]
    short = [row for row in rows if len(row["ids"]) <= room]
    train, val = split(short)
    if len(train) < n_train or len(val) < n_val:
        fail(f"{path}: {len(train)} prompts of at most {room} tokens to train on and {len(val)} "
             f"held out; at least {n_train} and {n_val} are needed")
    if len(short) < len(rows):
        note_once(f"{path}: {len(rows) - len(short)} prompts are left out, longer than {room} "
                  f"tokens")
    return train, val


def epochs(n, total, seed):
    """At least `total` indices of n rows: all of them in random order, then in another one, …"""
    rng, order = np.random.default_rng(seed), []
    while len(order) < total:
        order += rng.permutation(n).tolist()
    return order
