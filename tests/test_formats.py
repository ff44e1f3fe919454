import json
import math
import os
import random
import re
import tracemalloc
from collections import Counter
from hashlib import sha256

import pytest

from data.dialects import DataError
from data.formats import (check_sizes, hold_out, is_held_out, read_comparisons,
                          read_demonstrations, read_prompts, read_rows, read_texts, split)
from tiny import write


def turn(role):
    return lambda text: {"role": role, "content": text}


user, assistant, system = map(turn, ("user", "assistant", "system"))


def sharegpt(*turns):
    """sharegpt("human", "Hi", "gpt", "Hello")"""
    return [{"from": who, "value": said} for who, said in zip(turns[::2], turns[1::2])]


def row_of(prompt, *responses):
    """{"prompt": prompt, "response": "Hello"}, or with two responses chosen and rejected."""
    names = ["response"] if len(responses) == 1 else ["chosen", "rejected"]
    return {"prompt": prompt} | dict(zip(names, responses))


QA = [user("Hi"), assistant("Hello")]
GOOD, BAD = assistant("Hello"), assistant("Go away")
DEMO = {"messages": QA}
PAIR = {"prompt": [user("Hi")], "responses": ["Hello", "Go away"], "ranks": [0, 1]}
SOUND = {read_demonstrations: DEMO, read_comparisons: PAIR, read_prompts: {"prompt": [user("Hi")]}}
readers = pytest.mark.parametrize("read", SOUND)


def texts(paths):
    return [document.text for document in read_texts(paths)]


def demonstrations(path):
    return [row["messages"] for row in read_demonstrations(path)]


def refusal(read, path):
    with pytest.raises(DataError) as error:
        list(read(path))
    message = str(error.value)
    assert "\n" not in message
    return message


def cases(names, table):
    """The table's first column is a sentence, which names the case."""
    return pytest.mark.parametrize(names, [row[1:] for row in table], ids=[row[0] for row in table])


# files -----------------------------------------------------------------------

START = "x" * ((1 << 20) - 5)


@cases("name, content, found", [
    ("documents are split at the separator",
     "a.txt", "one\n<|endoftext|>\ntwo\n", ["one", "two"]),
    ("a separator across two pieces is found", "a.txt", START + "<|endoftext|>two", [START, "two"]),
    ("blank documents are left out",
     "a.txt", "<|endoftext|>\n \n<|endoftext|>one<|endoftext|>\n", ["one"]),
    ("line breaks and indentation within a document are kept",
     "a.txt", "\n\n  one\n\ntwo\n<|endoftext|>\n\n  one\n\ntwo\n", ["  one\n\ntwo"] * 2),
    ("the text of a row is unchanged", "a.jsonl", '{"text": "\\none "}', ["\none "]),
    ("a demonstration is text for a tokenizer", "a.json",
     '[{"instruction": "Add", "input": "1 1", "output": "2"}]', ["Add\n\n1 1\n2"]),
    ("a byte order mark, Windows' line ends and blank lines are accepted", "a.jsonl",
     b'\xef\xbb\xbf{"text": "one"}\r\n\r\n{"text": "two"}\r\n', ["one", "two"]),
    ("also in a text", "a.txt", b"\xef\xbb\xbfone\r\ntwo\r\n", ["one\ntwo"]),
    ("and before a list", "a.json", b'\xef\xbb\xbf\r\n[{"text": "one"}]', ["one"]),
    ("joined files have byte order marks in the middle", "a.jsonl",
     '\ufeff{"text": "one"}\n' * 2, ["one", "one"]),
    ("a file named json may hold JSON lines", "a.json", '{"text": "one"}\n' * 2, ["one", "one"]),
    ("unusual line separators inside a string do not end the row", "a.jsonl",
     '{"text": "one\u2028two\x85three"}', ["one\u2028two\x85three"]),
    ("an empty text cell is left out", "a.jsonl",
     '{"text": null, "id": 5}\n{"text": "Ada", "id": 6}', ["Ada"]),
    *((f"{name} is text", name, "[[home]]\n", ["[[home]]"]) for name in ("notes.md", "README"))])
def test_a_file_holds_documents(name, content, found):
    assert texts(write(name, content)) == found


@pytest.mark.parametrize("text", [
    *(json.dumps(value, indent=indent) for indent in (None, 2) for value in (
        {"data": [row_of("Hi", "Hello")]}, row_of("Hi", "Hello"), [row_of("Hi", "Hello")],
        {"version": 1, "train": [row_of("Hi", "Hello")]}, QA, [QA])),                 # nanochat
    '\ufeff{"prompt": "Hi", "response": "Hello"}'], ids=range(13))
def test_rows_are_found_in_every_layout_of_json(text):
    for name in ("a.json", "a.jsonl")[:1 + ("\n" not in text)]:
        assert demonstrations(write(name, text)) == [QA]
    assert demonstrations(write("a.jsonl", QA, [*QA, *QA])) == [QA, [*QA, *QA]]


BOMB = "[" * 200_000
ONE = '{"text": "one"}\n'


@cases("name, content, reason", [
    ("broken JSON", "a.jsonl", ONE + '\n{"text": "tw', "a.jsonl, line 3: not JSON"),
    ("a broken list", "a.json", '[{"text": "one"},\n{"text"}]', "a.json, record 1: not JSON: "),
    ("a broken list's line", "a.json", '[{"text": "one"},\n{"text"}]', "line 2"),
    ("a row that is nested without end", "a.jsonl", '{"text": ' + BOMB, "line 1: not JSON"),
    ("a list that is nested without end", "a.json", BOMB, "record 1: not JSON"),
    ("an enormous number", "a.jsonl", '{"text": ' + "1" * 5000 + "}", "line 1"),
    ("half an emoji", "a.jsonl", ONE + r'{"text": "half \ud83d"}', "line 2"),
    ("a malformed element of a list", "a.json", '[\n{"text": "one"}, {"text": 5}]', "record 2: "),
    ("UTF-16", "a.txt", "hello".encode("utf-16"), "a.txt: not UTF-8 (invalid start byte): save it"),
    ("a character that is cut off", "a.txt", "abc語".encode()[:-1], "not UTF-8"),
    ("Latin-1 after a megabyte", "a.txt", ("語" * 500_001).encode() + b"\xe9t\xe9 ", "not UTF-8"),
    ("Latin-1 in a row", "a.jsonl", b'{"text": "one"}\n{"text": "\xe9t\xe9"}', "a.jsonl, line 2: "),
    *((f"an empty file {name}", name, "\n", "is empty") for name in ("a.txt", "a.jsonl", "a.json")),
    ("an empty list", "a.json", "[]", "is empty"),
    *((f"another kind of file, .{kind}", f"a.{kind}", "prompt,response\nHi,Hello",
       f".{kind} files are not read: save it as text (.txt, .md) or as rows (.jsonl")
      for kind in ("csv", "parquet")),
    *((f"a row without proper text, {row}", "a.jsonl", ONE + row, "a.jsonl, line 2: ")
      for row in ('{"text": 1}', '{"text": "a", "logp": "b"}', '{"title": "a"}', '["a"]', '"a"')),
    *((f"a log-probability that is {logp}", "a.jsonl", '{"text": "a", "logp": %s}' % logp,
       "logp must be a number") for logp in ("true", "Infinity", "1" + "0" * 400, "[1]", '"2"'))])
def test_a_file_is_refused_with_the_place(name, content, reason):
    path = write(name, content)
    assert reason in refusal(texts, path)
    assert refusal(read_demonstrations, path).startswith(str(path))


@pytest.mark.parametrize("paths", ["", "missing.txt", ",", "a.txt,missing.txt", "d", "pipe"])
def test_what_is_no_file_is_refused_before_the_others_are_read(paths):
    write("a.txt", "one"), write("d/c.md", "no")      # d has neither .txt nor .jsonl
    os.mkfifo("pipe")
    for read in (read_texts, read_demonstrations):
        with pytest.raises(DataError, match="no such file"):
            next(iter(read(paths)))


def test_a_very_long_document_becomes_several_without_losing_a_word():
    lines = "".join(f"line {i}\n" for i in range(400_000))
    parts = texts(write("a.txt", lines))
    assert len(parts) > 1 and "\n".join(parts) + "\n" == lines


def test_every_file_of_a_list_and_of_a_directory_is_a_source_unless_it_is_hidden(tmp_path):
    write("d/b.jsonl", {"text": "2", "logp": -2.5}), write("d/a.txt", "1"), write("d/c.md", "no")
    write("d/deep/e.txt", "4"), write("d/._c.txt", "no"), write("d/.git/e.txt", "no")
    (tmp_path / "d/c.txt").symlink_to(write("z.txt", "3"))
    assert list(read_texts(f"{tmp_path}/d, z.txt")) == [
        ("a", "1", None), ("b", "2", -2.5), ("c", "3", None), ("e", "4", None), ("z", "3", None)]
    (tmp_path / "d/gone.txt").symlink_to("nowhere")
    assert "gone.txt': no such file" in refusal(texts, tmp_path / "d")


def test_reading_a_large_file_takes_little_memory():
    documents = [f"{i} " + "x" * 10_000 for i in range(1600)]  # 16 MB
    files = [write("a.txt", "<|endoftext|>".join(documents)),
             write("b.jsonl", *({"text": text} for text in documents))]
    for path in files:
        tracemalloc.start()
        assert sum(1 for _ in read_texts(path)) == 1600
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 8e6


# dialects --------------------------------------------------------------------

@pytest.mark.parametrize("row, messages", [
    ({"messages": [system("Be kind"), *QA, *QA]}, [system("Be kind"), *QA, *QA]),     # OpenAI
    ({"messages": [{"role": "User", "content": "Hi"},
                   {"role": "ASSISTANT", "content": "Hello"}]}, QA),
    ({"messages": [QA[0] | {"weight": 0}, QA[1] | {"weight": 1, "id": 5}]}, QA),
    ({"messages": json.dumps(QA)}, QA),                                               # a CSV's
    ({"messages": [a | dict.fromkeys(["role", "content"]) for a in                    # joined
                   sharegpt("human", "Hi", "gpt", "Hello")]}, QA),
    ({"prompt": "Hi", "messages": [*QA, *QA]}, [*QA, *QA]),                           # UltraChat
    ({"conversations": sharegpt("system", "Be kind", "human", "Hi", "gpt", "Hello")},
     [system("Be kind"), *QA]),
    *(({ask: "Hi", say: "Hello"}, QA) for ask in ("prompt", "instruction", "question", "input")
      for say in ("response", "completion", "output", "answer")),   # TRL, GSM8K, LIMA …
    (row_of([*QA, user("How?")], "So"), [*QA, user("How?"), assistant("So")]),
    (row_of(json.dumps([*QA, user("How?")]), "So"), [*QA, user("How?"), assistant("So")]),
    (row_of("A list", '[{"a": 1}]'), [user("A list"), assistant('[{"a": 1}]')]),
    (row_of("Hi", "Hello") | {"messages": None}, QA),               # exported from a table
    (row_of("Hi", "Hello") | {"input": float("nan")}, QA),
    (row_of("Hi", "Hello") | {"history": []}, QA),                                    # ChatGLM
    ({"prompt": [user("Hi")], "completion": [assistant("Hello"), *QA]}, [*QA, *QA]),
    ({"prompt": [system("Be kind")], "completion": QA}, [system("Be kind"), *QA]),
    ({"instruction": "Hi", "input": "", "output": "Hello"}, QA),                      # Alpaca
    ({"instruction": "翻译", "input": "好", "output": "Hi"}, [user("翻译\n\n好"), assistant("Hi")]),
    ({"instruction": "Hi", "output": "Hello", "system": "Be kind"}, [system("Be kind"), *QA]),
    ({"instruction": "How?", "output": "So", "history": [["Hi", "Hello"]]},
     [*QA, user("How?"), assistant("So")]),
    ({"instruction": "Hi", "output": "Hello", "chosen": "a", "rejected": "b"}, QA),
    ({"instruction": "Who?", "context": "Ada.", "response": "Ada"},                   # Dolly
     [user("Who?\n\nAda."), assistant("Ada")]),
    ({"messages": QA, "rejected_response": "Go away"}, QA),                           # ms-swift
    ({"system_prompt": "Be kind", "question": "Hi", "response": "Hello"},             # OpenOrca
     [system("Be kind"), *QA]),
    ({"instruction": "", "input": "Hi", "output": "Hello"}, QA),                      # LIMA
], ids=lambda value: "+".join(value) if isinstance(value, dict) else "")
def test_demonstrations_come_in_many_forms(row, messages):
    for path in write("a.jsonl", row), write("a.json", [row]):
        assert read_demonstrations(path) == [{"messages": messages}]
        assert read_prompts(path) == [{"prompt": messages[:-1]}]


@pytest.mark.parametrize("row", [
    {"prompt": "Hi", "responses": ["Hello", "Go away"]},
    {"prompt": [user("Hi")], "responses": ["Hello", "Go away"], "ranks": [1, 2]},
    {"prompt": "Hi", "response": "x", "responses": ["Hello", "Go away"]},
    {"messages": [user("Hi"), GOOD], "rejected_response": "Go away"},                 # ms-swift
    row_of("Hi", "Hello", "Go away"),
    row_of("Hi", GOOD, BAD),
    row_of([user("Hi")], [GOOD], [BAD]),
    row_of("Hi", [user("Hi"), GOOD], [user("Hi"), BAD]),                              # TRL
    row_of(json.dumps([user("Hi")]), json.dumps([GOOD]), json.dumps([BAD])),
    {"chosen": [user("Hi"), GOOD], "rejected": [user("Hi"), BAD]},
    row_of("Hi", [*QA], [user("Hi"), BAD]) | {"messages": QA},
    {"messages": [user("Hi")], "chosen": "Hello", "rejected": "Go away"},
    {"instruction": "Hi", "input": "", "output": "x", "chosen": "Hello", "rejected": "Go away"},
    {"conversations": sharegpt("human", "Hi"), "chosen": sharegpt("gpt", "Hello")[0],
     "rejected": sharegpt("gpt", "Go away")[0]},
    {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello",                                   # Anthropic
     "rejected": "\n\nHuman: Hi\n\nAssistant: Go away"},
], ids=lambda row: "+".join(f"{name}:{type(value).__name__}" for name, value in row.items()))
def test_comparisons_come_in_many_forms(row):
    path = write("a.jsonl", row)
    assert read_comparisons(path) == [PAIR] and read_prompts(path) == [{"prompt": [user("Hi")]}]


TURNS, LIST = [*QA, user("A list?")], [system("Be kind"), user("Hi")]
HH = "\n\nHuman: Hi \n\nAssistant:  Hello\n\nHuman: A list?\n\nAssistant:"


def compared(prompt, *responses, **more):
    return {"prompt": prompt, "responses": [*responses], "ranks": [*range(len(responses))]} | more


@cases("row, found", [
    ("a whole dialogue brings its own system message",
     row_of("Hi", [*LIST, GOOD], [*LIST, BAD]), compared(LIST, "Hello", "Go away")),
    ("a transcript becomes turns without surrounding blanks, and an empty answer may be compared",
     {"chosen": f"{HH} 1. a\n\n2. b \n", "rejected": HH}, compared(TURNS, "1. a\n\n2. b", "")),
    ("an answer in JSON stays text",
     row_of("A list?", '[{"a": 1}]', "No"), compared(TURNS[2:], '[{"a": 1}]', "No")),
    ("responses may share ranks, and other fields are kept",
     {"prompt": "Hi", "responses": [*"abcd"], "ranks": [1, 3, 3, 9], "kind": "easy", "id": 7},
     compared(QA[:1], *"abcd", ranks=[0, 1, 1, 2], kind="easy", id=7)),
    ("of equal responses the best is kept",
     {"prompt": "Hi", "responses": ["a", "b", "a ", "c"], "grades": [7, 5, 3, 1]},
     compared(QA[:1], *"abc", grades=[7, 5, 1])),
    ("the true grades behind noisy labels may have another order",
     {"prompt": "Hi", "responses": ["a", "b"], "grades": [1, 7], "noise": 2.0},
     compared(QA[:1], *"ab", grades=[1, 7], noise=2.0)),
    *((f"a prompt, {str(prompt)[:9]!r}, may stand beside whole transcripts",
       row_of(prompt, HH + " An hour.", HH + " No."), compared(TURNS, "An hour.", "No."))
      for prompt in (HH, "A list?", [user("A list?")]))])
def test_a_comparison_is_read(row, found):
    assert read_comparisons(write("a.jsonl", row)) == [found]


@pytest.mark.parametrize("row, prompt", [
    ({"prompt": "Hi"}, QA[:1]), ({"messages": TURNS}, TURNS), (row_of("Hi", "a", "a"), QA[:1]),
    *(({"prompt": text}, [user(text)]) for text in (  # a text that only speaks of humans
        "Human: Hi", "Is this good?\n\nHuman: Hi\n\nAssistant: Hello",
        "Human: Assistant: what are these?", "Humans\n\nAssistant:"))], ids=str)
def test_a_prompt_needs_no_answer_or_a_different_one(row, prompt):
    assert read_prompts(write("a.jsonl", row)) == [{"prompt": prompt}]


@pytest.mark.parametrize("start", [HH, HH + " ", HH[:-12]])
@pytest.mark.parametrize("name", ["prompt", "instruction", "question", "input", "messages"])
def test_a_question_that_is_a_transcript_becomes_turns_for_every_reader(start, name):
    """As in Dahoas/rm-static, where the space before the answer belongs to `Assistant:`."""
    row = {name: start, "response": " An hour.\n", "chosen": " An hour.\n", "rejected": " No."}
    path = write("a.jsonl", row)
    assert read_prompts(path) == [{"prompt": TURNS}]
    assert demonstrations(path) == [[*TURNS, assistant("An hour.")]]
    for row in (row, {name: start, "responses": [" An hour.", " No."]}):
        assert read_comparisons(write("a.jsonl", row)) == [compared(TURNS, "An hour.", "No.")]


# what is refused, dropped, mended, told ----------------------------------------

FIELDS = ("images image videos audio tools functions tool_calls function_call reasoning_content "
          "thinking").split()
AB = {"prompt": "Hi", "responses": ["a", "b"]}
MORE = [{"grades": [1, 2, odd]} for odd in ("3", float("nan"), 10**400, True)] + [
    {"noise": odd} for odd in (0, -1, "2", float("inf"), True)]
REFUSED = {
    read_demonstrations: {
        "must end with the assistant's answer": [
            {"messages": QA[:1]}, {"messages": "Hi, hello"}, {"prompt": "Hi"}, {"prompt": TURNS}],
        "must end with a user turn": [{"messages": QA[1:]}],
        "role must be": [{"messages": [user("Hi"), turn("bot")("Hello")]}],
        "content must be a string": [{"messages": [user("Hi"), assistant(["a"])]}, row_of("Hi", 3)],
        "input must be a string": [{"instruction": "Hi", "input": 3, "output": "Hello"}],
        "tool_calls": [{"messages": [user("Hi"), assistant("") | {"tool_calls": [{"id": 1}]}]}],
        "history must be a list of": [row_of("Hi", "Hello") | {"history": ["Hi"]}],
        'as in {"prompt": "Hi", "response": "Hello"}': [{"ask": "Hi", "say": "Hello"}],
        "must be an object": ['"Hi"', "[5]"],
        **{f"an answer with {name}={value}": [
            {"messages": [*QA, user("So?"), assistant("No") | {name: value}, *QA]}]
           for name, value in (("weight", 0), ("weight", 0.5), ("train", False), ("loss", False))}},
    read_comparisons: {
        "needs two responses": [{"prompt": "Hi", "responses": ["a"]}, row_of("Hi", "Hello")],
        "responses must be a list": [DEMO | {"responses": "ab"}],
        "must be a string": [{"prompt": "Hi", "responses": ["a", 2]}],
        "list of 2 integers": [AB | {"ranks": ranks} for ranks in ([0], [0, True], [0.5, 1])],
        "from the best": [AB | {"ranks": [2, 1]}],
        "must end with a user turn": [AB | {"prompt": QA}, {"chosen": "a", "rejected": "b"},
                                      {"chosen": GOOD, "rejected": BAD}],
        "needs one of": [{"responses": ["a", "b"]}],
        "come together": [{"prompt": "Hi", "chosen": "a"}, {"prompt": "Hi", "rejected": "a"}],
        "must go on from the prompt, or contain it": [row_of("Bye", QA, [user("Hi"), BAD])],
        "grades must be a list of 3 numbers, and noise a number above 0": [
            {"prompt": "Hi", "responses": ["a", "a", "b"], "grades": [3, 2, 1], **more}
            for more in (*MORE, {"grades": 5}, {"grades": [1, 2]})],
        "tools": [row_of("Hi", QA, [user("Hi"), BAD | {"tools": "a"}])]},
    read_prompts: {
        "user turn": [{"prompt": QA}],
        "a list of messages": [{"prompt": odd} for odd in (3, {"a": 1}, ["Hi"], [{"content": ""}])],
        "must be": [{"prompt": [{"role": "user"}]}, {"prompt": [turn("tool")("Hi")]}]}}
EVERYWHERE = {                                        # what all three refuse
    f"{name} can't be used": [
        {"messages": QA, "responses": ["a", "b"], **more},
        {"messages": [user("Hi"), GOOD | more], "rejected_response": "Go away"},
        {"messages": [user("Hi") | more, GOOD], "rejected_response": "Go away"},
        {"prompt": [user("Hi") | more], "completion": [GOOD], "responses": ["a", "b"]},
        row_of("Hi", "a", "b") | {"response": "Hello", **more}]
    for name, more in ((name, {name: [{"id": 1}]}) for name in FIELDS)}


@readers
def test_a_malformed_row_is_refused_with_file_line_and_reason(read):
    for reason, rows in (REFUSED[read] | EVERYWHERE).items():
        for row in rows:
            path = write("a.jsonl", SOUND[read], row)
            said = refusal(read, path)
            assert said.startswith(f"{path}, line 2: ") and reason in said, row


@readers
def test_a_bad_row_raises_nothing_but_a_data_error(capsys, read):
    values = [None, True, 3, float("nan"), "", "Hi", [], [[]], ["a"], {}, [{}], [{"role": []}], QA,
              [{"role": "user", "content": 1}], [{"from": "bot", "value": "a"}], [assistant("a")]]
    names = ["messages", "conversations", "prompt", "response", "instruction", "output", "input",
             "system", "responses", "ranks", "chosen", "rejected"]
    sound = [{}, {"prompt": "Q"}, {"instruction": "Q", "output": "A"},
             {"prompt": "Q", "responses": ["a", "b"]}, {"prompt": QA[:1], "chosen": "a"}]
    rows = [{**row, name: value} for row in sound for name in names for value in values]
    malformed, path = [], write("a.jsonl", *rows)
    found = list(read_rows(path, read.args[0], malformed))
    dropped = sum(map(int, re.findall(r"(\d+) of \d+ rows left out", capsys.readouterr().err)))
    assert len(found) + len(malformed) + dropped == len(rows) and found and malformed and dropped
    assert all(said.startswith(f"{path}, line ") and "\n" not in said for said in malformed)


@pytest.mark.parametrize("empty", [None, "", [], {}, "[]", False])
def test_a_meaningful_field_may_be_there_if_it_is_empty(empty):
    more = dict.fromkeys(FIELDS, empty)
    path = write("a.jsonl", {"messages": [user("Hi") | more, GOOD | more], **more})
    assert demonstrations(path) == [QA]


@pytest.mark.parametrize("read, reason, rows", [
    (read_demonstrations, "with an empty cell", [
        row_of("Hi", None), row_of(None, "Hello"), {"input": float("nan"), "output": "Hello"},
        {"messages": None}, {"messages": []}]),
    (read_comparisons, "with an empty cell", [
        row_of("Hi", None, "b"), row_of("Hi", "a", None), row_of("Hi", "a", [])]),
    (read_demonstrations, "with an empty answer", [row_of("Hi", " ")]),
    (read_demonstrations, "with an empty question", [
        {"instruction": "", "input": "", "output": "Hello"}]),
    (read_demonstrations, "whose answer is labelled as bad", [
        row_of("Hi", "Go away") | {name: label} for name in ("label", "kto_tag")
        for label in (False, 0, "false")]),
    (read_comparisons, "with equal responses", [
        row_of("Hi", "a", "a"), row_of("Hi", "Hello", "Hello "), AB | {"ranks": [3, 3]},
        {"prompt": "Hi", "responses": ["a", "a ", "a"]}]),
    (read_comparisons, "whose best response is empty", [row_of("Hi", "", "Go away")]),
    (read_comparisons, "whose dialogues differ before the last answer", [
        {"chosen": HH + " a", "rejected": "\n\nHuman: Bye\n\nAssistant: b"}]),
    (read_comparisons, "whose dialogues don't end with an answer", [
        {"chosen": HH + " a\n\nHuman: b", "rejected": HH + " a"}, row_of("Hi", user("a"), GOOD)]),
    (read_demonstrations, "whose dialogues don't end with an answer", [
        {"prompt": "Hi", "completion": [*QA, user("So?")]}]),
    (texts, "without text", [{"text": " \n"}, {"text": ""}])])
def test_rows_with_nothing_to_learn_from_are_dropped_and_counted(capsys, read, reason, rows):
    path, n = write("a.jsonl", SOUND.get(read, {"text": "one"}), *rows), len(rows)
    assert len(read(path)) == 1
    assert capsys.readouterr().err == f"{path}: {n} of {n + 1} rows left out, {reason}\n"
    only = write("b.jsonl", *rows)
    assert refusal(read, only) == f"{only}: {n} of {n} rows left out, {reason}"


@pytest.mark.parametrize("messages, mended, note", [
    ([*QA, user("And?")], QA, "a user turn at the end was cut"),
    ([*QA, user("And?"), user("Well?")], QA, "a user turn at the end was cut"),
    ([GOOD, *QA], QA, "an answer before the first question was cut"),
    ([system("Be kind"), GOOD, *QA], [system("Be kind"), *QA], "an answer before the first"),
    ([*QA[:1], *QA], [user("Hi\n\nHi"), GOOD], "turns of one role in a row were joined"),
    ([*QA, BAD], [QA[0], assistant("Hello\n\nGo away")], "turns of one role in a row were joined"),
    ([user("Hi"), assistant(" "), *QA], [user("Hi"), assistant(" "), *QA], "an empty answer in")])
def test_a_dialogue_that_can_be_mended_is_mended_and_counted(capsys, messages, mended, note):
    path = write("a.jsonl", {"messages": messages}, DEMO)
    assert demonstrations(path) == [mended, QA]
    said = capsys.readouterr().err
    assert said.startswith(f"{path}: 1 of 2 rows mended: {note}") and said.count("\n") == 1


@pytest.mark.parametrize("kind", [3, True, "3", ["math", "easy"]])
def test_kinds_are_names_and_other_fields_are_kept(kind):
    for read, row in SOUND.items():
        assert read(write("a.jsonl", row | {"kind": kind, "id": 7})) == [
            row | {"kind": str(kind), "id": 7}]


# what a row says of its own answers --------------------------------------------

PAIRS = [("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"),
         ("chosen-rating", "rejected-rating"), ("rating_chosen", "rating_rejected"),
         ("chosen_avg_rating", "rejected_avg_rating"), ("reward_chosen", "reward_rejected")]


@pytest.mark.parametrize("names", PAIRS, ids="+".join)
def test_scores_agree_tie_or_contradict_the_order(capsys, names):
    """The fields of UltraFeedback's, argilla's and other sets."""
    agree, tie, contradict = (row_of("Hi", "Hello", "Go away") | dict(zip(names, scores))
                              for scores in ((7.5, 2), (7.5, 7.5), (2, 7.5)))
    path = write("a.jsonl", agree, tie)
    assert read_comparisons(path) == [PAIR | dict(zip(names, (7.5, 2)))]
    assert capsys.readouterr().err == f"{path}: 1 of 2 rows left out, with equal scores\n"
    assert refusal(read_comparisons, write("a.jsonl", PAIR, contradict)) == (
        f"{path}, line 2: {names[0]} contradicts the order, 2 for the better response, 7.5 for the "
        "worse: swap these, or leave the row out")


def test_a_prompt_loses_what_was_said_of_the_answers_that_it_had():
    """The answers that compare.py and tools.label write beside it are others."""
    judged = {"noise": 1, "label": True, "labeler": "Ada", "models": [], "grades": [2, 1],
              "scores": [2, 1], "id": 3, **dict.fromkeys(sum(PAIRS, ()), 7)}
    path = write("a.jsonl", {"prompt": "Hi", "responses": ["a", "b"]} | judged)
    assert read_prompts(path) == [{"prompt": [user("Hi")], "id": 3}]


# the split -------------------------------------------------------------------

def opening(i):
    return [user(f"Question {i}?")]


def test_the_split_never_changes():
    assert [i for i in range(60) if is_held_out(opening(i))] == [8, 38]


def test_a_hash_of_the_system_message_and_the_first_question_decides():
    for i in range(200):
        digest = sha256(json.dumps(["Be kind", f"Question {i}?"]).encode()).hexdigest()
        mark = int(digest[:16], 16) / 2**64
        plain, spaced = f"Question {i}?", f" Question {i}?\n"
        for dialogue in ([user(plain)], [user(plain), *QA], [user(spaced)]):
            dialogue = [system("Be kind"), *dialogue]
            assert is_held_out(dialogue, mark + 1e-9) and not is_held_out(dialogue, mark)


def test_of_a_few_prompts_one_is_always_held_out():
    rows = [{"prompt": [user(f"Question {i}")]} for i in range(12)]
    for n in range(1, 12):
        expected = max(1, sum(is_held_out(row["prompt"]) for row in rows[:n]))
        assert len(split(rows[:n])[1]) == expected
    assert split(rows[::-1]) == [side[::-1] for side in split(rows)]
    assert split(rows[:1] * 3) == [[], rows[:1] * 3] and len(split(rows, share=0.0)[1]) == 1


@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 1.0])
def test_copies_are_on_one_side_and_both_sides_get_a_fair_share(share):
    rng = random.Random(0)
    for _ in range(500):
        marks = [rng.random() for _ in range(rng.randint(1, 9))]
        rows = [(rng.choice(marks), rng.choice([1, 5, 50, 3000])) for _ in range(rng.randint(1, 9))]
        held = hold_out([mark for mark, _ in rows], share, [size for _, size in rows]).tolist()
        sizes, chosen = Counter(), {mark for (mark, _), h in zip(rows, held) if h}
        for mark, size in rows:
            sizes[mark] += size
        assert held == [mark in chosen for mark, _ in rows]
        wanted, half = max(1, share * sizes.total()), sizes.total() / 2
        below = {mark for mark in sizes if mark < share}
        if share == 1 and len(sizes) > 1:             # all but the largest
            left, = sizes.keys() - chosen
            assert sizes[left] == max(sizes.values())
        elif wanted / 10 <= sum(sizes[mark] for mark in below) <= max(wanted, half):
            assert chosen == below
        else:                                         # the nearest that is not most of all
            nearest = min((size for size in sizes.values() if size <= half or len(sizes) == 1),
                          key=lambda size: abs(math.log(size / wanted)))
            assert [sizes[mark] for mark in chosen] == [nearest]


def test_a_split_has_every_row_once_in_its_order():
    rows = [dict(messages=[user(f"Question {i}"), assistant("So")], i=i) for i in range(200)]
    train, val = split(rows, "messages", 0.1)
    assert train and val and sorted(train + val, key=lambda row: row["i"]) == rows
    assert all(is_held_out(row["messages"], 0.1) == (row in val) for row in rows)
    assert train == sorted(train, key=lambda row: row["i"]) and split([], "messages") == [[], []]


def test_too_few_rows_on_a_side_are_refused_with_the_numbers():
    check_sizes("a.jsonl", "prompts", [1] * 4, [1], 4)
    for train, val in (([1] * 3, [1]), ([1] * 4, [])):
        with pytest.raises(DataError, match=f"^a.jsonl: {len(train)} prompts to train on and "
                                            f"{len(val)} held out; at least 4 and 1 are needed$"):
            check_sizes("a.jsonl", "prompts", train, val, 4)
