import json
import re
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest

from data import formats
from data.formats import (DataError, as_messages, held_out, is_held_out, read_comparisons,
                          read_demonstrations, read_prompts, read_texts, split)

REAL = Path(__file__).parents[2] / "shared" / "real"
on_real_data = pytest.mark.skipif(not REAL.exists(), reason=f"no real data in {REAL}")


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def system(text):
    return {"role": "system", "content": text}


QA = [user("Hi"), assistant("Hello")]


@pytest.fixture
def write(tmp_path):
    """write(name, content) returns the path. Dicts become JSON lines, all else is not changed."""
    def write(name, *content):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        if isinstance(content[0], bytes):
            path.write_bytes(content[0])
        elif isinstance(content[0], str):
            path.write_text(content[0], encoding="utf-8")
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
        return path
    return write


def texts(paths, **kwargs):
    return [document.text for document in read_texts(paths, **kwargs)]


def refusal(read, path):
    with pytest.raises(DataError) as error:
        list(read(path))
    message = str(error.value)
    assert "\n" not in message
    return message


# pretraining text ------------------------------------------------------------

def test_a_text_file_is_split_at_the_separator(write):
    assert texts(write("a.txt", "one\n<|endoftext|>\ntwo\n")) == ["one", "two"]


def test_blank_documents_are_left_out(write):
    assert texts(write("a.txt", "<|endoftext|>\n \n<|endoftext|>one<|endoftext|>\n")) == ["one"]


def test_newlines_and_indentation_within_a_document_are_kept(write):
    document = "\n\n  one\n\ntwo\n"
    assert texts(write("a.txt", f"{document}<|endoftext|>{document}")) == ["  one\n\ntwo"] * 2


def test_a_separator_across_two_pieces_is_found(write):
    start = "x" * ((1 << 20) - 5)
    assert texts(write("a.txt", start + "<|endoftext|>two")) == [start, "two"]


def test_a_very_long_document_becomes_several_without_losing_a_word(write, monkeypatch):
    monkeypatch.setattr(formats, "LONGEST_DOCUMENT", 1 << 20)
    lines = "".join(f"line {i}\n" for i in range(400_000))
    parts = texts(write("a.txt", lines))
    assert len(parts) > 1 and "\n".join(parts) + "\n" == lines


def test_jsonl_text_is_unchanged_and_keeps_its_log_probability(write):
    path = write("a.jsonl", {"text": "\none ", "logp": -2.5}, {"text": "two"})
    assert list(read_texts(path)) == [("a", "\none ", -2.5), ("a", "two", None)]


def test_demonstrations_are_text_for_a_tokenizer(write):
    path = write("a.json", json.dumps([{"instruction": "Add", "input": "1 1", "output": "2"}]))
    assert texts(path) == ["Add\n\n1 1\n2"]


def test_every_file_of_a_list_and_of_a_directory_is_a_source(write):
    write("d/b.jsonl", {"text": "2"}), write("d/a.txt", "1"), write("d/c.md", "no")
    last = write("z.txt", "3")
    found = [(d.source, d.text) for d in read_texts(f"{last.parent / 'd'}, {last}")]
    assert found == [("a", "1"), ("b", "2"), ("z", "3")]


def test_reading_a_large_file_takes_little_memory(write):
    documents = [f"{i} " + "x" * 10_000 for i in range(2400)]  # 24 MB
    files = [write("a.txt", "<|endoftext|>".join(documents)),
             write("b.jsonl", *({"text": text} for text in documents))]
    for path in files:
        tracemalloc.start()
        assert sum(1 for _ in read_texts(path)) == 2400
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 8e6


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
@pytest.mark.parametrize("before", ["", "\ufeff", "é" * 7, "語" * 500_001], ids=len)
def test_a_byte_that_is_not_utf8_is_named_with_a_remedy(write, name, before):
    path = write(name, before.encode() + b"\xe9t\xe9 ")
    message = refusal(read_texts, path)
    assert f"not UTF-8 at byte {len(before.encode()):,}:" in message
    assert "--errors=replace" in message


def test_a_character_cut_off_at_the_end_of_the_file_is_named(write):
    assert "not UTF-8 at byte 3:" in refusal(read_texts, write("a.txt", "abc語".encode()[:-1]))


def test_replacing_reads_past_a_bad_byte(write):
    assert texts(write("a.txt", b"caf\xe9 au lait"), errors="replace") == ["caf\ufffd au lait"]


def test_half_an_emoji_is_refused_and_can_be_replaced(write):
    path = write("a.jsonl", {"text": "ok"}, {"text": "half \ud83d"})
    assert "line 2" in refusal(read_texts, path)
    assert texts(path, errors="replace") == ["ok", "half ?"]


def test_a_binary_file_is_refused(write):
    assert "NUL" in refusal(read_texts, write("a.txt", b"PK\x03\x04\x00\x00"))


def test_text_in_utf16_is_refused(write):
    assert "UTF-8" in refusal(read_texts, write("a.txt", "hello".encode("utf-16")))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json"])
def test_an_empty_file_is_refused(write, name):
    assert "is empty" in refusal(read_texts, write(name, "\n"))


def test_an_empty_json_list_is_refused(write):
    assert "is empty" in refusal(read_demonstrations, write("a.json", "[]"))


@pytest.mark.parametrize("paths", ["", "missing.txt", ","])
def test_a_missing_file_is_refused(paths):
    assert "no such file" in refusal(read_texts, paths)


def test_a_missing_file_is_refused_before_the_others_are_read(write):
    with pytest.raises(DataError, match="no such file"):
        next(read_texts(f"{write('a.txt', 'one')},missing.txt"))


def test_a_directory_without_text_is_refused(write):
    assert "no such file" in refusal(read_texts, write("d/c.md", "no").parent)


@pytest.mark.parametrize("row", [{"text": 1}, {"text": "a", "logp": "b"}, {"title": "a"}, ["a"]])
def test_a_row_without_proper_text_is_refused_with_its_line(write, row):
    assert "line 2: " in refusal(read_texts, write("a.jsonl", {"text": "ok"}, row))


def test_rows_of_blank_text_are_dropped_and_counted(write, capsys):
    path = write("a.jsonl", {"text": "one"}, {"text": " \n"}, {"text": ""})
    assert texts(path) == ["one"]
    assert capsys.readouterr().err == f"{path}: dropped 2 of 3 rows: 2 without text\n"


# JSON ------------------------------------------------------------------------

def test_a_byte_order_mark_windows_lines_and_blank_lines_are_accepted(write):
    path = write("a.jsonl", b'\xef\xbb\xbf{"text": "one"}\r\n\r\n{"text": "two"}\r\n')
    assert texts(path) == ["one", "two"]
    assert texts(write("a.txt", b"\xef\xbb\xbfone\r\ntwo\r\n")) == ["one\ntwo"]


def test_a_json_list_after_a_byte_order_mark_is_read(write):
    assert texts(write("a.json", b'\xef\xbb\xbf\r\n[{"text": "one"}]')) == ["one"]


def test_a_file_named_json_may_hold_json_lines(write):
    assert len(read_demonstrations(write("a.json", {"messages": QA}, {"messages": QA}))) == 2


def test_unusual_line_separators_inside_a_string_do_not_end_the_row(write):
    assert texts(write("a.jsonl", '{"text": "one\u2028two\x85three"}')) == ["one\u2028two\x85three"]


def test_broken_json_is_refused_with_its_line(write):
    path = write("a.jsonl", '{"text": "one"}\n\n{"text": "tw')
    assert f"{path}, line 3: not JSON" in refusal(read_texts, path)


def test_a_broken_json_list_is_refused_with_its_line(write):
    assert "line 2" in refusal(read_texts, write("a.json", '[{"text": "one"},\n{"text"}]'))


def test_deeply_nested_json_is_refused(write):
    bomb = "[" * 200_000
    assert "not JSON" in refusal(read_texts, write("a.jsonl", '{"text": ' + bomb))
    assert "not JSON" in refusal(read_texts, write("a.json", bomb))


def test_an_enormous_number_is_refused(write):
    assert "line 1" in refusal(read_texts, write("a.jsonl", '{"text": ' + "1" * 5000 + "}"))


def test_an_enormous_line_is_refused(write, monkeypatch):
    monkeypatch.setattr(formats, "LONGEST_LINE", 1000)
    path = write("a.jsonl", {"text": "one"}, {"text": "x" * 2000})
    assert "line 2: over 1,000" in refusal(read_texts, path)


@pytest.mark.parametrize("read", [read_demonstrations, read_comparisons, read_prompts])
def test_a_bad_row_raises_nothing_but_a_data_error(write, read):
    values = [None, True, 3, float("nan"), "", "Hi", [], [[]], ["a"], {}, [{}], [{"role": []}], QA,
              [{"role": "user", "content": 1}], [{"from": "bot", "value": "a"}], [assistant("a")]]
    names = ["messages", "conversations", "prompt", "response", "instruction", "output", "input",
             "system", "responses", "ranks", "chosen", "rejected"]
    sound = [{}, {"prompt": "Q"}, {"instruction": "Q", "output": "A"},
             {"prompt": "Q", "responses": ["a", "b"]}, {"prompt": QA[:1], "chosen": "a"}]
    rows = [{**row, name: value} for row in sound for name in names for value in values]
    for row in rows:
        try:
            assert read(write("a.jsonl", row))
        except DataError as error:
            assert "a.jsonl" in str(error) and "\n" not in str(error)


# messages --------------------------------------------------------------------

def test_a_string_is_a_user_turn():
    assert as_messages("Hi") == [user("Hi")]


def test_messages_are_copied_and_stripped_of_other_keys():
    given = [{**user("Hi"), "weight": 0}]
    assert as_messages(given) == [user("Hi")]


@pytest.mark.parametrize("prompt", [None, 3, [], {}, ["Hi"], [{"role": "tool", "content": "Hi"}],
                                    [{"role": "user"}], [{"content": "Hi"}], [user(None)]])
def test_an_invalid_prompt_is_refused(prompt):
    with pytest.raises(DataError):
        as_messages(prompt)


# demonstrations --------------------------------------------------------------

@pytest.mark.parametrize("row, messages", [
    ({"messages": [system("Be kind"), *QA, *QA]}, [system("Be kind"), *QA, *QA]),
    ({"prompt": "Hi", "response": "Hello"}, QA),
    ({"prompt": [*QA, user("How?")], "response": "So"}, [*QA, user("How?"), assistant("So")]),
    ({"instruction": "Hi", "input": "", "output": "Hello"}, QA),
    ({"instruction": "Hi", "output": "Hello"}, QA),
    ({"instruction": "Add", "input": "1 1", "output": "2"}, [user("Add\n\n1 1"), assistant("2")]),
    ({"instruction": "Hi", "output": "Hello", "system": "Be kind"}, [system("Be kind"), *QA]),
    ({"conversations": [{"from": "system", "value": "Be kind"}, {"from": "human", "value": "Hi"},
                        {"from": "gpt", "value": "Hello"}]}, [system("Be kind"), *QA]),
    ({"conversations": [{"from": "user", "value": "Hi"},
                        {"from": "assistant", "value": "Hello"}]}, QA),
    ({"prompt": "Hi", "response": "Hello", "messages": None}, QA),  # exported from a table
    ({"prompt": "Hi", "messages": [*QA, *QA]}, [*QA, *QA]),  # as UltraChat has them
    ({"instruction": "Hi", "output": "Hello", "chosen": "a", "rejected": "b"}, QA),
    ({"prompt": "Hi", "completion": "Hello"}, QA),
    ({"prompt": "Hi", "response": "Hello", "history": []}, QA),                       # ChatGLM
    ({"messages": QA, "rejected_response": "Go away"}, QA),
    ({"prompt": [user("Hi")], "completion": [assistant("Hello")]}, QA),               # TRL
    ({"question": "Hi", "answer": "Hello"}, QA),
    ({"input": "Hi", "output": "Hello"}, QA),
    ({"instruction": "Who?", "context": "Ada.", "response": "Ada"},                   # Dolly
     [user("Who?\n\nAda."), assistant("Ada")]),
    ({"instruction": "How?", "output": "So", "history": [["Hi", "Hello"]]},           # Alpaca
     [*QA, user("How?"), assistant("So")]),
    ({"messages": [{"role": "User", "content": "Hi"},
                   {"role": "ASSISTANT", "content": "Hello"}]}, QA),
    ({"messages": json.dumps(QA)}, QA),                                               # a CSV's
    ({"messages": [user([{"type": "text", "text": "Hi"}]), QA[1]]}, QA),              # OpenAI's
    ({"messages": str(QA)}, QA),                                                      # pandas'
    ({"prompt": json.dumps([*QA, user("How?")]), "response": "So"},
     [*QA, user("How?"), assistant("So")]),
    ({"prompt": "A list", "response": '[{"a": 1}]'}, [user("A list"), assistant('[{"a": 1}]')]),
    ({"prompt": "Hi", "response": "Hello", "input": float("nan")}, QA),
    ({"messages": [{"role": None, "content": None, "from": "human", "value": "Hi"},   # joined
                   {"role": None, "content": None, "from": "gpt", "value": "Hello"}]}, QA),
    ({"system_prompt": "Be kind", "question": "Hi", "response": "Hello"},             # OpenOrca
     [system("Be kind"), *QA]),
    ({"instruction": "", "input": "Hi", "output": "Hello"}, QA),                      # LIMA
    ({"prompt": [user("Hi")], "completion": [assistant("Hello"), *QA]},               # TRL
     [*QA, *QA]),
], ids=lambda value: "+".join(value) if isinstance(value, dict) else "")
def test_demonstrations_come_in_many_forms(write, row, messages):
    assert read_demonstrations(write("a.jsonl", row)) == [{"messages": messages}]
    assert read_demonstrations(write("a.json", json.dumps([row]))) == [{"messages": messages}]


@pytest.mark.parametrize("messages, mended, note", [
    ([*QA, user("And?")], QA, "ended with a user turn, which was cut"),
    ([*QA, user("And?"), user("Well?")], QA, "ended with a user turn, which was cut"),
    ([assistant("Welcome"), *QA], QA, "began with an answer, which was cut"),
    ([system("Be kind"), assistant("Welcome"), *QA], [system("Be kind"), *QA], "began with an"),
    ([user("Hi"), user("there"), assistant("Hello")], [user("Hi\n\nthere"), assistant("Hello")],
     "turns of one role in a row"),
    ([user("Hi"), assistant("Hello"), assistant("you")], [user("Hi"), assistant("Hello\n\nyou")],
     "turns of one role in a row"),
    ([user("Hi"), assistant(" "), *QA], [user("Hi"), assistant(" "), *QA], "an empty answer in")])
def test_a_dialogue_that_can_be_mended_is_mended_and_counted(write, capsys, messages, mended, note):
    path = write("a.jsonl", {"messages": messages}, {"messages": QA})
    assert [row["messages"] for row in read_demonstrations(path)] == [mended, QA]
    said = capsys.readouterr().err
    assert said.startswith(f"{path}: mended: 1 ") and note in said and said.count("\n") == 1


def test_a_question_at_the_end_of_a_dialogue_is_a_prompt(write):
    path = write("a.jsonl", {"messages": [*QA, user("And?")]})
    assert read_prompts(path) == [{"prompt": [*QA, user("And?")]}]


@pytest.mark.parametrize("text", [
    json.dumps({"data": [{"prompt": "Hi", "response": "Hello"}]}),
    json.dumps({"version": 1, "train": [{"prompt": "Hi", "response": "Hello"}]}),
    json.dumps({"prompt": "Hi", "response": "Hello"}, indent=2),
    json.dumps([{"prompt": "Hi", "response": "Hello"}], indent=2),
    json.dumps({"data": [{"prompt": "Hi", "response": "Hello"}]}, indent=4),
    json.dumps(QA), json.dumps(QA, indent=2), json.dumps([QA]),                       # nanochat
    '\ufeff{"prompt": "Hi", "response": "Hello"}'], ids=range(9))
@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a"])
def test_rows_are_found_in_every_layout_of_json(write, name, text):
    assert read_demonstrations(write(name, text)) == [{"messages": QA}]


def test_joined_files_may_have_byte_order_marks_in_the_middle(write):
    line = '\ufeff{"prompt": "Hi", "response": "Hello"}\n'
    assert len(read_demonstrations(write("a.jsonl", line * 2))) == 2
    assert texts(write("a.txt", "\ufeffOne.\n\ufeffTwo.")) == ["One.\nTwo."]


@pytest.mark.parametrize("name", ["notes.md", "README", "book.text"])
def test_a_file_whose_name_does_not_tell_is_text_unless_it_looks_like_json(write, name):
    for text in ("# Once\nupon a time", "[home](a.md), a link", "[[home]]\n", "{{ a template }}"):
        assert texts(write(name, text)) == [text.strip()]
    assert texts(write(name, '{"text": "Once"}\n')) == ["Once"]


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.yaml", "a.html"])
@pytest.mark.parametrize("read", [read_demonstrations, texts])
def test_a_file_of_another_kind_is_refused_with_the_kinds_that_are_read(write, name, read):
    said = refusal(read, write(name, "prompt,response\nHi,Hello"))
    assert f"{name[1:]} files are not read" in said and ".jsonl" in said and ".txt" in said


def test_a_file_may_have_a_dialogue_on_each_line(write):
    path = write("a.jsonl", f"{json.dumps(QA)}\n{json.dumps([*QA, *QA])}\n")
    assert [row["messages"] for row in read_demonstrations(path)] == [QA, [*QA, *QA]]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_pointer_of_git_lfs_is_no_text(write, name):
    path = write(name, "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    assert "git lfs pull" in refusal(texts, path)


@pytest.mark.parametrize("read, good, row", [
    (read_demonstrations, {"prompt": "Hi", "response": "Hello"}, row) for row in (
        {"prompt": "Hi", "response": None}, {"prompt": None, "response": "Hello"},
        {"input": float("nan"), "output": "Hello"}, {"messages": None}, {"messages": []})] + [
    (read_comparisons, {"prompt": "Hi", "chosen": "a", "rejected": "b"}, row) for row in (
        {"prompt": "Hi", "chosen": None, "rejected": "b"},
        {"prompt": "Hi", "chosen": "a", "rejected": None},
        {"prompt": "Hi", "chosen": "a", "rejected": []})])
def test_a_row_with_an_empty_cell_is_dropped_and_counted(write, capsys, read, good, row):
    path = write("a.jsonl", row, good)
    assert len(read(path)) == 1
    assert capsys.readouterr().err == f"{path}: dropped 1 of 2 rows: 1 with an empty cell\n"


def test_an_empty_text_cell_is_left_out(write):
    assert texts(write("a.jsonl", {"text": None, "id": 5}, {"text": "Ada", "id": 6})) == ["Ada"]


def test_folders_inside_a_folder_are_read_and_hidden_files_are_not(write, tmp_path):
    for name in ("texts/a.txt", "texts/deep/er/b.txt", "texts/._a.txt", "texts/.git/c.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    assert texts(str(tmp_path / "texts")) == ["texts/a.txt", "texts/deep/er/b.txt"]


def test_links_in_a_folder_are_followed_once(write, tmp_path):
    write("disk/a.txt", "Ada"), write("b.txt", "Bea"), write("texts/c.txt", "Cleo")
    for name, target in (("disk", "disk"), ("b.txt", "b.txt"), ("again", "disk"),
                         ("self", "texts")):
        (tmp_path / "texts" / name).symlink_to(tmp_path / target)
    assert sorted(texts(tmp_path / "texts")) == ["Ada", "Bea", "Cleo"]
    (tmp_path / "texts/gone.txt").symlink_to("nowhere")
    assert "gone.txt': no such file" in refusal(texts, tmp_path / "texts")


def test_other_fields_of_a_row_are_kept(write):
    row = {"prompt": "Hi", "response": "Hello", "kind": "greeting", "id": 7}
    assert read_demonstrations(write("a.jsonl", row)) == [
        {"messages": QA, "kind": "greeting", "id": 7}]


def test_chinese_dialogues_are_read_as_they_are(write):
    path = write("中文.jsonl", '{"instruction": "翻译成英文", "input": "你好", "output": "Hello"}\n'
                               '{"prompt": "中国的首都是哪里？", "response": "北京。"}\n')
    assert [row["messages"][0]["content"] for row in read_demonstrations(path)] == [
        "翻译成英文\n\n你好", "中国的首都是哪里？"]


@pytest.mark.parametrize("row, reason", [
    ({"messages": [user("Hi")]}, "must end with the assistant's answer"),
    ({"messages": [assistant("Hello")]}, "must end with a user turn"),
    ({"messages": [user("Hi"), {"role": "bot", "content": "Hello"}]}, "role must be"),
    ({"messages": [user("Hi"), assistant(["Hello"])]}, "content must be a string"),
    ({"prompt": "Hi"}, "must end with the assistant's answer"),
    ({"prompt": "Hi", "response": 3}, "must be a string"),
    ({"instruction": "Hi", "input": 3, "output": "Hello"}, "input must be a string"),
    ({"prompt": [*QA, user("How?")]}, "must end with the assistant's answer"),
    ({"ask": "Hi", "say": "Hello"}, "needs one of messages"),
    ({"ask": "Hi", "say": "Hello"}, '{"prompt": "Hi", "response": "Hello"}'),
    ({"prompt": "Hi", "response": "Hello", "history": ["Hi"]}, "history must be a list of"),
    ({"messages": "Hi, hello"}, "must end with the assistant's answer"),
    ({"messages": [user("Hi"), assistant([{"type": "image"}])]}, "content must be a string"),
    ({"messages": [user("Hi"), {**assistant("No"), "weight": 0}, *QA]}, "weight=0"),
    ({"messages": [user("Hi"), {**assistant(""), "tool_calls": [{"id": 1}]}]}, "tool_calls"),
    ({"prompt": [user("Hi")], "completion": [*QA, user("So?")]}, "end with an assistant turn"),
    ("Hi", "must be an object"),
])
def test_a_malformed_demonstration_is_refused_with_file_line_and_reason(write, row, reason):
    path = write("a.jsonl", {"messages": QA}, row)
    message = refusal(read_demonstrations, path)
    assert message.startswith(f"{path}, line 2: ") and reason in message


def test_a_malformed_element_of_a_list_is_refused_with_its_record(write):
    path = write("a.json", json.dumps([{"messages": QA}, {"messages": [5]}], indent=1))
    assert f"{path}, record 2: " in refusal(read_demonstrations, path)


def test_empty_answers_are_dropped_and_counted(write, capsys):
    path = write("a.jsonl", {"messages": QA}, {"prompt": "Hi", "response": " "})
    assert len(read_demonstrations(path)) == 1
    assert capsys.readouterr().err == f"{path}: dropped 1 of 2 rows: 1 with an empty answer\n"


@pytest.mark.parametrize("row, reason", [
    ({"instruction": "", "input": "", "output": "Hello"}, "with an empty question"),
    *(({"prompt": "Hi", "completion": "Go away", name: label}, "whose answer is labelled as bad")
      for name in ("label", "kto_tag") for label in (False, 0, "false"))])
def test_rows_that_teach_nothing_good_are_dropped_and_counted(write, capsys, row, reason):
    assert len(read_demonstrations(write("a.jsonl", row, {"messages": QA}))) == 1
    assert f"dropped 1 of 2 rows: 1 {reason}\n" in capsys.readouterr().err


def test_a_file_whose_rows_are_all_dropped_is_refused(write):
    path = write("a.jsonl", {"prompt": "Hi", "response": ""})
    assert "dropped 1 of 1 rows" in refusal(read_demonstrations, path)


# comparisons -----------------------------------------------------------------

PAIR = {"prompt": [user("Hi")], "responses": ["Hello", "Go away"], "ranks": [0, 1]}
GOOD, BAD = assistant("Hello"), assistant("Go away")


@pytest.mark.parametrize("row", [
    {"prompt": "Hi", "responses": ["Hello", "Go away"]},
    {"prompt": [user("Hi")], "responses": ["Hello", "Go away"], "ranks": [1, 2]},
    {"prompt": "Hi", "response": "x", "responses": ["Hello", "Go away"]},
    {"instruction": "Hi", "input": "", "output": ["Hello", "Go away"]},
    {"messages": [user("Hi"), GOOD], "rejected_response": "Go away"},
    {"prompt": "Hi", "chosen": "Hello", "rejected": "Go away"},
    {"prompt": "Hi", "chosen": GOOD, "rejected": BAD},
    {"prompt": "Hi", "chosen": [GOOD], "rejected": [BAD]},
    {"prompt": [user("Hi")], "chosen": [GOOD], "rejected": [BAD]},
    {"prompt": "Hi", "chosen": [user("Hi"), GOOD], "rejected": [user("Hi"), BAD]},
    {"prompt": json.dumps([user("Hi")]), "chosen": str([GOOD]), "rejected": json.dumps([BAD])},
    {"chosen": [user("Hi"), GOOD], "rejected": [user("Hi"), BAD]},
    {"prompt": "Hi", "messages": QA, "chosen": [*QA], "rejected": [user("Hi"), BAD]},
    {"messages": [user("Hi")], "chosen": "Hello", "rejected": "Go away"},
    {"instruction": "Hi", "input": "", "output": "x", "chosen": "Hello", "rejected": "Go away"},
    {"conversations": [{"from": "human", "value": "Hi"}],
     "chosen": {"from": "gpt", "value": "Hello"}, "rejected": {"from": "gpt", "value": "Go away"}},
    {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello",
     "rejected": "\n\nHuman: Hi\n\nAssistant: Go away"},
], ids=lambda row: "+".join(f"{name}:{type(value).__name__}" for name, value in row.items()))
def test_comparisons_come_in_many_forms(write, row):
    assert read_comparisons(write("a.jsonl", row)) == [PAIR]


def test_a_whole_dialogue_brings_its_own_system_message(write):
    opening = [system("Be kind"), user("Hi")]
    row = {"prompt": "Hi", "chosen": [*opening, GOOD], "rejected": [*opening, BAD]}
    assert read_comparisons(write("a.jsonl", row)) == [{**PAIR, "prompt": opening}]


def test_an_hh_transcript_becomes_turns_without_surrounding_blanks(write):
    start = "\n\nHuman: Hi \n\nAssistant:  Hello\n\nHuman: A list?\n\nAssistant:"
    row = {"chosen": f"{start} 1. a\n\n2. b \n", "rejected": start}
    comparison, = read_comparisons(write("a.jsonl", row))
    assert comparison["prompt"] == [*QA, user("A list?")]
    assert comparison["responses"] == ["1. a\n\n2. b", ""]  # an empty answer may be compared


def test_an_answer_in_json_stays_text(write):
    row = {"prompt": "A list?", "chosen": '[{"a": 1}]', "rejected": "No"}
    assert read_comparisons(write("a.jsonl", row))[0]["responses"] == ['[{"a": 1}]', "No"]


def test_many_responses_may_share_ranks(write):
    row = {"prompt": "Hi", "responses": list("abcd"), "ranks": [1, 3, 3, 9], "kind": "greeting"}
    assert read_comparisons(write("a.jsonl", row)) == [
        {"prompt": [user("Hi")], "responses": list("abcd"), "ranks": [0, 1, 1, 2],
         "kind": "greeting"}]


@pytest.mark.parametrize("row, reason", [
    ({"prompt": "Hi", "responses": ["a"]}, "needs two responses"),
    ({"prompt": "Hi", "responses": []}, "needs two responses"),
    ({"prompt": "Hi", "responses": "ab"}, "must be a list"),
    ({"prompt": "Hi", "responses": ["a", 2]}, "must be a string"),
    ({"prompt": "Hi", "responses": ["a", "b"], "ranks": [0]}, "list of 2 integers"),
    ({"prompt": "Hi", "responses": ["a", "b"], "ranks": [0, True]}, "list of 2 integers"),
    ({"prompt": "Hi", "responses": ["a", "b"], "ranks": [0.5, 1]}, "list of 2 integers"),
    ({"prompt": "Hi", "responses": ["a", "b"], "ranks": [2, 1]}, "from the best"),
    ({"prompt": QA, "responses": ["a", "b"]}, "must end with a user turn"),
    ({"prompt": "Hi", "chosen": "a"}, "come together"),
    ({"prompt": "Hi", "rejected": "a"}, "come together"),
    ({"prompt": "Hi", "chosen": user("a"), "rejected": GOOD}, "must end with an assistant turn"),
    ({"prompt": "Bye", "chosen": QA, "rejected": [user("Hi"), BAD]}, "answers to the prompt"),
    ({"chosen": "a", "rejected": "b"}, "needs a prompt"),
    ({"chosen": GOOD, "rejected": BAD}, "must end with a user turn"),
    ({"responses": ["a", "b"]}, "needs one of"),
    ({"prompt": "Hi", "response": "Hello"}, "needs two responses"),
])
def test_a_malformed_comparison_is_refused_with_file_line_and_reason(write, row, reason):
    path = write("a.jsonl", PAIR, row)
    message = refusal(read_comparisons, path)
    assert message.startswith(f"{path}, line 2: ") and reason in message


@pytest.mark.parametrize("row, reason", [
    ({"prompt": "Hi", "chosen": "a", "rejected": "a"}, "with equal responses"),
    ({"prompt": "Hi", "responses": ["a", "b"], "ranks": [3, 3]}, "with equal responses"),
    ({"chosen": "\n\nHuman: Hi\n\nAssistant: a", "rejected": "\n\nHuman: Bye\n\nAssistant: b"},
     "whose dialogues differ before the last answer"),
    ({"chosen": "\n\nHuman: Hi", "rejected": "\n\nHuman: Hi\n\nAssistant: b"},
     "whose transcripts don't end with Human and Assistant"),
])
def test_a_comparison_with_nothing_to_learn_from_is_dropped_and_counted(write, row, reason, capsys):
    path = write("a.jsonl", PAIR, row)
    assert read_comparisons(path) == [PAIR]
    assert capsys.readouterr().err == f"{path}: dropped 1 of 2 rows: 1 {reason}\n"


def test_drops_are_added_to_a_given_counter_instead_of_printed(write, capsys):
    dropped = Counter()
    row = {"prompt": "Hi", "chosen": "a", "rejected": "a"}
    read_comparisons(write("a.jsonl", PAIR, row, row), dropped)
    assert dropped == {"with equal responses": 2} and capsys.readouterr().err == ""


# what a row says of its own answers --------------------------------------------

def scored(better, worse):
    """The same two scores in the fields of UltraFeedback's, argilla's, TRL's and other sets."""
    names = ("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"), (
        "chosen-rating", "rejected-rating"), ("chosen_rating", "rejected_rating"), (
        "rating_chosen", "rating_rejected"), ("chosen_avg_rating", "rejected_avg_rating"), (
        "reward_chosen", "reward_rejected")
    pair = {"prompt": "Hi", "chosen": "Hello", "rejected": "Go away"}
    several = {"prompt": "Hi", "responses": ["Hello", "Go away"]}
    return [*(pair | {a: better, b: worse} for a, b in names),
            pair | {"margin": better - worse},
            pair | {"chosen_rank": -better, "rejected_rank": -worse},
            *(several | {name: [better, worse]} for name in ("scores", "ratings", "rewards",
                                                             "rm_scores", "score", "grades")),
            several | {"ranks": [1, 5], "scores": [better, worse]}]


@pytest.mark.parametrize("row", scored(7.5, 2), ids=", ".join)
def test_scores_that_bear_the_order_out_change_nothing_and_are_not_told(write, row, capsys):
    found, = read_comparisons(write("a.jsonl", row))
    assert (found["responses"], found["ranks"]) == (["Hello", "Go away"], [0, 1])
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("row", scored(7.5, 7.5), ids=", ".join)
def test_equal_scores_are_a_tie_which_is_left_out_and_counted(write, row, capsys):
    path = write("a.jsonl", PAIR, row)
    assert read_comparisons(path) == [PAIR]
    assert capsys.readouterr().err == f"{path}: dropped 1 of 2 rows: 1 with equal scores\n"


@pytest.mark.parametrize("row", scored(2, 7.5), ids=", ".join)
def test_scores_that_contradict_the_order_are_refused_with_their_line(write, row):
    said = refusal(read_comparisons, write("a.jsonl", PAIR, row))
    assert "a.jsonl, line 2: " in said and "contradict the order" in said
    assert [*row][-1] in said


def test_equal_scores_among_several_responses_become_equal_ranks(write, capsys):
    row = {"prompt": "Hi", "responses": list("abcd"), "scores": [9, 5, 5, 1]}
    path = write("a.jsonl", row)
    assert read_comparisons(path)[0]["ranks"] == [0, 1, 1, 2]
    assert "mended: 1 with equal scores, which became ties" in capsys.readouterr().err


def test_a_tie_stays_a_tie_whatever_the_scores_say(write):
    row = {"prompt": "Hi", "responses": list("abc"), "ranks": [0, 1, 1], "scores": [9, 3, 5]}
    assert read_comparisons(write("a.jsonl", row))[0]["ranks"] == [0, 1, 1]


def test_a_list_of_scores_beside_chosen_and_rejected_may_have_any_order_but_shows_ties(write):
    """As in argilla's distilabel-intel-orca-dpo-pairs."""
    pair = {"prompt": "Hi", "chosen": "Hello", "rejected": "Go away"}
    path = write("a.jsonl", pair | {"rating": [3, 9]}, pair | {"rating": [8, 8]})
    dropped = Counter()
    assert len(read_comparisons(path, dropped)) == 1 and dropped == {"with equal scores": 1}


def test_the_true_grades_behind_noisy_labels_may_have_another_order(write):
    row = {"prompt": "Hi", "responses": ["a", "b"], "grades": [1, 7], "noise": 2.0}
    assert read_comparisons(write("a.jsonl", row))[0]["ranks"] == [0, 1]


def test_a_prompt_loses_what_was_said_of_the_answers_that_it_had(write):
    """The answers that compare.py and tools.label write beside it are others."""
    for row in scored(7, 7):
        row |= {"noise": 1, "label": True, "labeler": "Ada", "models": [], "id": 3}
        assert read_prompts(write("a.jsonl", row)) == [{"prompt": [user("Hi")], "id": 3}]


# fields ------------------------------------------------------------------------

FIELDS = {"images": ["a.png"], "image": "a.png", "videos": ["a.mp4"], "audio": {"path": "a.wav"},
          "tools": [{"name": "add"}], "functions": "add(a, b)", "tool_calls": [{"id": 1}],
          "function_call": {"name": "add"}, "reasoning_content": "Hm.", "thinking": "Hm."}


@pytest.mark.parametrize("read", [read_demonstrations, read_comparisons, read_prompts])
@pytest.mark.parametrize("name", FIELDS)
def test_a_field_without_which_the_text_means_something_else_is_refused(write, read, name):
    more, answer, bad = {name: FIELDS[name]}, assistant("Hello"), assistant("Go away")
    for row in ({"messages": QA, "responses": ["a", "b"], **more},
                {"messages": [user("Hi"), answer | more], "rejected_response": "Go away"},
                {"messages": [user("Hi") | more, answer], "rejected_response": "Go away"},
                {"prompt": [user("Hi") | more], "completion": [answer], "responses": ["a", "b"]},
                {"prompt": "Hi", "response": "Hello", "chosen": "a", "rejected": "b", **more}):
        said = refusal(read, write("a.jsonl", PAIR | {"messages": QA}, row))
        assert f"line 2: {name} can't be used" in said
    if read is read_comparisons:
        row = {"chosen": [user("Hi"), answer], "rejected": [user("Hi"), bad | more]}
        assert f"{name} can't be used" in refusal(read, write("a.jsonl", row))


@pytest.mark.parametrize("empty", [None, "", [], {}, "[]", False])
def test_such_a_field_may_be_there_if_it_is_empty(write, empty):
    more = dict.fromkeys(FIELDS, empty)
    row = {"messages": [user("Hi") | more, assistant("Hello") | more], **more}
    assert read_demonstrations(write("a.jsonl", row))[0]["messages"] == QA


@pytest.mark.parametrize("more", [{"weight": 0}, {"weight": 0.5}, {"train": False},
                                  {"loss": False}])
def test_an_answer_that_is_not_to_be_learned_is_refused(write, more):
    name, = more
    row = {"messages": [*QA, user("So?"), assistant("No") | more]}
    assert f"an answer with {name}=" in refusal(read_demonstrations, write("a.jsonl", row))


@pytest.mark.parametrize("read, row", [
    (read_demonstrations, {"prompt": "Hi", "response": "Hello"}),
    (read_comparisons, {"prompt": "Hi", "chosen": "a", "rejected": "b"}),
    (read_prompts, {"prompt": "Hi"}), (texts, {"text": "Hi"})])
def test_a_field_that_nothing_reads_is_told_once_with_its_number(write, capsys, read, row):
    path = write("a.jsonl", row | {"hint": "Say hello", "id": 1}, row | {"hint": "Say hello"}, row)
    assert len(read(path)) == 3
    assert capsys.readouterr().err == f"{path}: not used: 2 'hint'\n"


def test_a_field_of_a_turn_that_nothing_reads_is_told_once_for_each_row(write, capsys):
    turns = [user("Hi") | {"mood": "good"}, assistant("Hello") | {"mood": "good", "id": "b"}]
    path = write("a.jsonl", {"messages": turns}, {"messages": [*turns, *turns]})
    read_demonstrations(path)
    assert capsys.readouterr().err == f"{path}: not used: 2 'mood'\n"


@pytest.mark.parametrize("row, name", [
    ({"instruction": "Translate", "question": "Hi", "answer": "Hallo"}, "question"),
    ({"messages": QA, "response": "Good day"}, "response"),
    ({"messages": QA, "context": "It is night."}, "context"),
    ({"prompt": "Hi", "response": "Hello", "answer": "Good day"}, "answer"),
    ({"prompt": "Hi", "response": "Hello", "system": "Be kind", "system_prompt": "Rhyme"},
     "system_prompt")])
def test_a_second_question_or_answer_is_told(write, capsys, row, name):
    path = write("a.jsonl", row, {"prompt": "Hi", "messages": QA, "output": "Hello"})
    read_demonstrations(path)
    assert capsys.readouterr().err == f"{path}: not used: 1 {name!r}\n"


def test_fields_that_say_nothing_about_the_text_are_not_told(write, capsys):
    names = ("id", "prompt_id", "uuid", "source", "dataset", "category", "kind", "meta", "language",
             "url", "chosen-model", "created_at_date", "timestamp")
    read_demonstrations(write("a.jsonl", {"messages": QA} | dict.fromkeys(names, "x")))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("read", [read_demonstrations, read_comparisons, read_prompts])
@pytest.mark.parametrize("more, reason", [
    ({"kind": ["math", "easy"]}, "kind must be a string"),
    ({"kind": {"topic": "math"}}, "kind must be a string")])
def test_a_kept_field_of_a_type_that_no_script_can_use_is_refused(write, read, more, reason):
    row = {"messages": QA, "rejected_response": "Go away"}
    said = refusal(read, write("a.jsonl", row, row | more))
    assert "a.jsonl, line 2: " in said and reason in said


@pytest.mark.parametrize("kind", [3, True, "3"])
def test_kinds_are_names(write, kind):
    assert read_prompts(write("a.jsonl", {"prompt": "Hi", "kind": kind}))[0]["kind"] == str(kind)


@pytest.mark.parametrize("more, reason", [
    ({"grades": value}, "grades must be a list of 3 numbers")
    for value in (5, "abc", [1, 2], [1, 2, "3"], [1, 2, None], [1, 2, float("nan")],
                  [1, 2, float("inf")], [1, 2, 10**400], [1, 2, True], {"a": 1})] + [
    ({"grades": [3, 2, 1], "noise": value}, "noise must be a number above 0")
    for value in (0, -1, "2", [2], float("inf"), True)])
def test_grades_and_noise_that_the_reward_model_could_not_use_are_refused(write, more, reason):
    row = {"prompt": "Hi", "responses": ["a", "a", "b"]}
    said = refusal(read_comparisons, write("a.jsonl", PAIR, row | more))
    assert "a.jsonl, line 2: " in said and reason in said


@pytest.mark.parametrize("logp", [True, float("inf"), 10**400, [1], "2"])
def test_a_log_probability_must_be_a_finite_number(write, logp):
    assert "logp must be a number" in refusal(texts, write("a.jsonl", {"text": "a", "logp": logp}))


# prompts ---------------------------------------------------------------------

@pytest.mark.parametrize("row", [
    {"prompt": "Hi"},
    {"prompt": [user("Hi")]},
    {"messages": [user("Hi")]},
    {"messages": QA},
    {"prompt": "Hi", "response": "Hello"},
    {"instruction": "Hi", "output": "Hello"},
    {"prompt": "Hi", "responses": ["a", "b"]},
    {"prompt": "Hi", "chosen": "same", "rejected": "same"},
    {"chosen": "\n\nHuman: Hi\n\nAssistant: a", "rejected": "\n\nHuman: Hi\n\nAssistant: b"},
], ids=lambda row: "+".join(row))
def test_every_format_has_prompts(write, row):
    assert read_prompts(write("a.jsonl", {**row, "kind": "greeting"})) == [
        {"prompt": [user("Hi")], "kind": "greeting"}]


def test_a_prompt_that_does_not_end_with_the_user_is_refused(write):
    assert "user turn" in refusal(read_prompts, write("a.jsonl", {"prompt": QA}))


def test_the_prompt_of_a_dialogue_is_all_but_its_last_answer(write):
    prompt = read_prompts(write("a.jsonl", {"messages": [*QA, *QA]}))[0]["prompt"]
    assert prompt == [*QA, user("Hi")]


START = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: How long?\n\nAssistant:"
BELLE = "Human: Hi\nAssistant: Hello\nHuman: How long?\nAssistant:"


@pytest.mark.parametrize("start", [START, START[2:], START + " ", START[:-12], BELLE,
                                   BELLE + "\n"])
@pytest.mark.parametrize("name", ["prompt", "instruction", "question", "input", "messages"])
def test_a_question_that_is_a_transcript_becomes_turns_for_every_reader(write, start, name):
    """As in Dahoas/rm-static, where the space before the answer belongs to `Assistant:`."""
    turns = [*QA, user("How long?")]
    path = write("a.jsonl", {name: start, "response": " An hour.\n", "chosen": " An hour.\n",
                             "rejected": " No."})
    assert read_prompts(path) == [{"prompt": turns}]
    assert read_demonstrations(path) == [{"messages": [*turns, assistant("An hour.")]}]
    assert read_comparisons(path) == [{"prompt": turns, "responses": ["An hour.", "No."],
                                       "ranks": [0, 1]}]
    path = write("a.jsonl", {name: start, "responses": [" An hour.", " No."]})
    assert read_comparisons(path)[0]["responses"] == ["An hour.", "No."]


@pytest.mark.parametrize("prompt", [START, "How long?", [user("How long?")]])
def test_a_prompt_may_stand_beside_whole_transcripts(write, prompt):
    row = {"prompt": prompt, "chosen": START + " An hour.", "rejected": START + " No."}
    assert read_comparisons(write("a.jsonl", row)) == [
        {"prompt": [*QA, user("How long?")], "responses": ["An hour.", "No."], "ranks": [0, 1]}]


@pytest.mark.parametrize("text", ["Human: Hi", "Is this good?\n\nHuman: Hi\n\nAssistant: Hello",
                                  "Human: Assistant: what are these?", "Humans\n\nAssistant:"])
def test_a_text_that_only_speaks_of_humans_stays_one_turn(text):
    assert as_messages(text) == [user(text)]


# the split -------------------------------------------------------------------

def opening(i):
    return as_messages(f"Question {i}?")


def test_about_the_share_asked_for_is_held_out():
    assert 900 < sum(is_held_out(opening(i), 0.1) for i in range(10_000)) < 1100


def test_the_split_never_changes():
    assert [i for i in range(60) if is_held_out(opening(i))] == [8, 38]


def test_nothing_or_everything_can_be_held_out():
    assert not any(is_held_out(opening(i), 0.0) for i in range(100))
    assert all(is_held_out(opening(i), 1.0) for i in range(100))


def test_a_larger_share_contains_the_smaller():
    assert all(is_held_out(opening(i), 0.3) for i in range(1000) if is_held_out(opening(i), 0.1))


def test_dialogues_that_begin_alike_fall_on_the_same_side():
    for i in range(200):
        assert is_held_out(opening(i), 0.5) == is_held_out([*opening(i), *QA], 0.5)


def test_the_split_depends_on_the_system_message_and_on_the_question():
    for other in range(50):
        assert {is_held_out([system(f"You are {i}"), *opening(other)], 0.5)
                for i in range(50)} == {True, False}
        assert {is_held_out([system(f"You are {other}"), *opening(i)], 0.5)
                for i in range(50)} == {True, False}


# real files, counted in another way --------------------------------------------

@on_real_data
def test_shakespeare_is_read_as_one_unchanged_document():
    assert texts(REAL / "shakespeare.txt") == [(REAL / "shakespeare.txt").read_text().strip("\n")]


@on_real_data
def test_wikipedia_and_c4_are_complete():
    rows = [json.loads(line) for line in open(REAL / "c4_demo.jsonl", encoding="utf-8")]
    found = list(read_texts(f"{REAL / 'c4_demo.jsonl'},{REAL / 'wiki_demo.txt'}"))
    assert [d.text for d in found[:-1]] == [row["text"] for row in rows] and len(rows) == 300
    assert found[-1].source == "wiki_demo" and len(found[-1].text) > 1_000_000


@on_real_data
def test_alpaca_is_complete():
    rows = json.loads((REAL / "alpaca_en_demo.json").read_text(encoding="utf-8"))
    found = read_demonstrations(REAL / "alpaca_en_demo.json")
    assert len(found) == len(rows) == 999
    assert [row["messages"][-1]["content"] for row in found] == [row["output"] for row in rows]
    with_input = [i for i, row in enumerate(rows) if row["input"]]
    assert with_input == [i for i, row in enumerate(found)
                          if row["messages"][0]["content"] != rows[i]["instruction"]]


@on_real_data
def test_the_instruction_set_with_preferences_is_read_as_all_three_kinds():
    path, dropped = REAL / "instruction-data-with-preference.json", Counter()
    rows = json.loads(path.read_text(encoding="utf-8"))
    equal = sum(row["chosen"] == row["rejected"] for row in rows)
    comparisons = read_comparisons(path, dropped)
    assert dropped == {"with equal responses": equal} and equal == 6
    assert len(comparisons) == len(rows) - equal
    assert len(read_demonstrations(path)) == len(read_prompts(path)) == len(rows) == 1100
    assert comparisons[0]["responses"] == [rows[0]["chosen"], rows[0]["rejected"]]


@on_real_data
def test_sharegpt_preferences_are_complete():
    path = REAL / "dpo_en_demo.json"
    rows = json.loads(path.read_text(encoding="utf-8"))
    found = read_comparisons(path)
    assert len(found) == len(read_prompts(path)) == len(rows) == 300
    turns = Counter(turn["from"] for row in rows for turn in row["conversations"])
    roles = Counter(turn["role"] for row in found for turn in row["prompt"])
    assert (roles["user"], roles["assistant"], roles["system"]) == (
        turns["human"], turns["gpt"], turns["system"])


@on_real_data
def test_hh_transcripts_can_be_rebuilt_from_their_turns():
    path = REAL / "hh_harmless_1100.jsonl"
    rows = [json.loads(line) for line in open(path, encoding="utf-8")]
    dropped = Counter()
    found = read_comparisons(path, dropped)
    assert len(read_prompts(path)) == len(rows) == 1100
    empty = [row for row in rows if row["chosen"].rstrip().endswith("Assistant:")]
    assert dropped == {"whose best response is empty": len(empty)} and len(empty) == 3
    rows = [row for row in rows if row not in empty]
    assert len(found) == len(rows)
    names = {"user": "Human", "assistant": "Assistant"}
    for row, comparison in zip(rows, found):
        for name, response in zip(("chosen", "rejected"), comparison["responses"]):
            turns = comparison["prompt"] + [assistant(response)]
            again = "\n\n".join(f"{names[turn['role']]}: {turn['content']}" for turn in turns)
            assert re.sub(r"\s+", " ", again).strip() == re.sub(r"\s+", " ", row[name]).strip()


def test_of_a_few_prompts_one_is_always_held_out():
    prompts = [[user(f"Question {i}")] for i in range(12)]
    for n in range(1, 12):
        held = held_out(prompts[:n])
        assert sum(held) == max(1, sum(is_held_out(p) for p in prompts[:n]))
    assert held_out(prompts[::-1]) == held_out(prompts)[::-1]
    assert held_out([prompts[0]] * 3) == [True] * 3   # copies stay together
    assert held_out([]) == [] and sum(held_out(prompts, 0.0)) == 1


def sizes_held_out(*copies):
    """Rows that ask different questions, as often as `copies` says: how often are those held out?
    Question 8 has a mark below the share (test_the_split_never_changes)."""
    rows = [opening(i) for i, n in enumerate(copies) for _ in range(n)]
    held = [row for row, h in zip(rows, held_out(rows)) if h]
    assert not [row for row, h in zip(rows, held_out(rows)) if not h and row in held]
    return sorted(Counter(json.dumps(row) for row in held).values())


def test_all_rows_of_a_question_are_on_one_side_and_both_sides_get_a_fair_share():
    assert sizes_held_out(50, 1, 1) == [1]            # not the fifty
    assert sizes_held_out(4000, 3, 300, 9) == [300]   # nearest to 5%
    assert sizes_held_out(500, 500) == [500]
    assert sizes_held_out(*[5] * 8, 900) == [5]       # question 8 alone would be most of the rows
    assert sizes_held_out(*[500] * 8, 1) == [500]     # question 8 alone would be almost nothing
    assert sizes_held_out(*[5] * 30) == [5]           # question 8


def test_a_file_with_few_questions_says_so(capsys):
    split([dict(prompt=opening(i % 2)) for i in range(9)])
    said = capsys.readouterr().err
    assert said == "9 rows begin with only 2 different questions: 4 are held out\n"
    split([dict(prompt=opening(i)) for i in range(9)])
    split([dict(prompt=opening(i % 50)) for i in range(90)])
    assert capsys.readouterr().err == ""


def test_a_question_and_the_same_with_another_space_are_on_one_side():
    assert all(is_held_out(opening(i), 0.5) == is_held_out([user(f" Question {i}?\n")], 0.5)
               for i in range(50))


def test_a_split_has_every_row_once_in_its_order():
    rows = [dict(messages=[user(f"Question {i}"), assistant("So")], i=i) for i in range(200)]
    train, val = split(rows, "messages", 0.1)
    assert train and val and sorted(train + val, key=lambda row: row["i"]) == rows
    assert all(is_held_out(row["messages"], 0.1) == (row in val) for row in rows)
    assert train == sorted(train, key=lambda row: row["i"]) and split([], "messages") == [[], []]


@pytest.mark.parametrize("row, reason", [
    ({"prompt": "Hi", "chosen": "Hello", "rejected": "Hello "}, "with equal responses"),
    ({"prompt": "Hi", "chosen": "", "rejected": "Go away"}, "whose best response is empty"),
    ({"prompt": "Hi", "responses": ["a", "a ", "a"]}, "with equal responses")])
def test_a_pair_that_teaches_nothing_is_dropped(write, capsys, row, reason):
    path = write("a.jsonl", row, {"prompt": "Hi", "chosen": "Hello", "rejected": ""})
    assert len(read_comparisons(path)) == 1 and f"1 {reason}" in capsys.readouterr().err


def test_of_equal_responses_the_best_is_kept(write):
    row = {"prompt": "Hi", "responses": ["a", "b", "a ", "c"], "ranks": [0, 1, 2, 3],
           "grades": [7, 5, 3, 1]}
    found, = read_comparisons(write("a.jsonl", row))
    assert (found["responses"], found["ranks"]) == (["a", "b", "c"], [0, 1, 2])
    assert found["grades"] == [7, 5, 1]
