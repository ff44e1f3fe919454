"""A local server stands in for the hosts: it serves small files in the real formats, or fails."""

import gzip
import importlib
import json
import shlex
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from common import parse_config
from tools import prepare
from data.formats import read_comparisons, read_demonstrations, read_prompts, read_texts

ROOT = Path(prepare.__file__).parents[1]
BOOK = bytes(i * 7 % 251 for i in range(300_000))
URL = "https://example.org/some/where/book.bin"


class Host(BaseHTTPRequestHandler):
    """Does what the test has set in server.play."""

    def do_GET(self):
        play, asked = self.server.play, self.headers.get("Range")
        play.asked.append((self.path, asked))
        if self.path in play.moved:
            self.send_response(302)
            self.send_header("Location", play.moved[self.path])
            return self.end_headers()
        if play.status != 200 or self.path not in play.files:
            return self.send_error(play.status if play.status != 200 else 404)
        body = play.files[self.path]
        first, last = 0, len(body) - 1
        if asked and play.ranges:
            first, _, end = asked.removeprefix("bytes=").partition("-")
            first, last = int(first), min(int(end), last) if end else last
            if int(first) >= len(body):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(body)}")
                self.send_header("Content-Length", "0")
                return self.end_headers()
        self.send_response(206 if asked and play.ranges else 200)
        if asked and play.ranges:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(body) + play.lie}")
        if play.length:
            self.send_header("Content-Length", str(last + 1 - first + play.lie))
        self.end_headers()
        self.send(body[first:last + 1])

    def send(self, body):
        play = self.server.play
        body = body[:play.cuts.pop(0)] if play.cuts else body
        play.sent += len(body)
        self.wfile.write(body)                # HTTP/1.0: then the connection is closed

    def log_message(self, *_):
        pass


@pytest.fixture
def host(monkeypatch):
    """host.files: {path: bytes}; host.cuts: after how many bytes each connection breaks."""
    monkeypatch.setattr(prepare, "WAIT", 0)
    monkeypatch.setenv("no_proxy", "*")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Host)
    server.play = SimpleNamespace(files={"/some/where/book.bin": BOOK}, cuts=[], ranges=True, lie=0,
                                  length=True, status=200, moved={}, asked=[], sent=0)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    server.play.address = f"http://127.0.0.1:{server.server_port}"
    yield server.play
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def book(host, tmp_path):
    """Fetches BOOK; returns the path."""
    def fetch(**how):
        return prepare.fetch(tmp_path / "download", host.address, URL, **how)
    fetch.path = tmp_path / "download" / "book.bin"
    fetch.part = tmp_path / "download" / "book.bin.part"
    return fetch


@pytest.fixture
def run(host, tmp_path, capsys):
    """run("alpaca", limit=3) -> what it printed; its files are in tmp_path/alpaca."""
    def run(name, **flags):
        flags = dict(mirror=host.address, out=str(tmp_path)) | flags
        prepare.main(prepare.Config(name, **flags))
        return capsys.readouterr().out
    return run


def refusal(capsys, function, *args, **kwargs):
    """The one line on stderr with which it stops."""
    with pytest.raises(SystemExit) as stop:
        function(*args, **kwargs)
    error = capsys.readouterr().err
    assert stop.value.code == 1 and error.count("\n") == 1
    return error


# downloading -----------------------------------------------------------------

def test_a_file_arrives_byte_for_byte(book):
    assert book() == book.path and book.path.read_bytes() == BOOK


def test_no_part_is_left_beside_a_complete_file(book):
    book()
    assert [p.name for p in book.path.parent.iterdir()] == ["book.bin"]


def test_a_broken_download_continues_where_it_broke(book, host):
    host.cuts = [100_000, 50_000]
    assert book().read_bytes() == BOOK
    assert host.sent == len(BOOK)
    assert [asked for _, asked in host.asked] == ["bytes=0-", "bytes=100000-", "bytes=150000-"]


def test_a_later_run_continues_where_the_download_broke(book, host, capsys):
    host.cuts = [10_000] * prepare.TRIES
    assert "same command continues" in refusal(capsys, book)
    assert book.part.read_bytes() == BOOK[:50_000] and not book.path.exists()
    assert book().read_bytes() == BOOK
    assert host.sent == len(BOOK)


def test_a_server_without_ranges_is_asked_for_the_whole_file_again(book, host):
    host.ranges, host.cuts = False, [100_000]
    assert book().read_bytes() == BOOK


def test_a_file_of_unknown_length_is_complete_when_the_connection_ends(book, host):
    host.ranges, host.length = False, False
    assert book().read_bytes() == BOOK


def test_a_file_shorter_than_announced_is_never_complete(book, host, capsys):
    host.ranges, host.lie = False, 10
    assert "the connection broke 5 times" in refusal(capsys, book)
    assert not book.path.exists()


def test_a_complete_part_is_renamed_and_not_downloaded_again(book, host):
    book.part.parent.mkdir()
    book.part.write_bytes(BOOK)
    assert book().read_bytes() == BOOK and host.sent == 0


def test_a_part_longer_than_the_file_is_deleted(book, host):
    book.part.parent.mkdir()
    book.part.write_bytes(BOOK + b"more")
    assert book().read_bytes() == BOOK


def test_a_redirected_request_still_asks_for_the_rest(book, host):
    host.files["/cdn/1"], host.moved = BOOK, {"/some/where/book.bin": "/cdn/1"}
    host.cuts = [100_000]
    assert book().read_bytes() == BOOK and host.sent == len(BOOK)


def test_a_file_placed_by_hand_is_used_as_it_is(book, host):
    book.path.parent.mkdir()
    book.path.write_bytes(b"mine")
    assert book().read_bytes() == b"mine" and host.asked == []


def test_the_first_bytes_can_be_downloaded_alone(book, host):
    assert book(first=1000).read_bytes() == BOOK[:1000] and host.sent == 1000
    assert not book.path.exists()


def test_a_later_download_continues_the_first_bytes(book, host):
    book(first=1000)
    assert book(first=5000).read_bytes() == BOOK[:5000] and host.sent == 5000


def test_more_first_bytes_than_the_file_has_are_the_whole_file(book):
    assert book(first=10**9) == book.path and book.path.read_bytes() == BOOK


def test_first_bytes_from_a_server_without_ranges_end_the_download_early(book, host):
    host.ranges = False
    got = book(first=1000).read_bytes()
    assert len(got) < len(BOOK) and got == BOOK[:len(got)] and len(got) >= 1000


@pytest.mark.parametrize("status", [403, 404, 500, 503])
def test_an_error_of_the_server_is_one_line(book, host, status, capsys):
    host.status = status
    message = refusal(capsys, book)
    assert f"/some/where/book.bin: the server says {status} " in message


def test_without_a_network_the_line_says_where_to_put_the_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("no_proxy", "*")
    with socket.create_server(("127.0.0.1", 0)) as closed:
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
    message = refusal(capsys, prepare.fetch, tmp_path / "download", address, URL)
    assert f"{address}/some/where/book.bin: no connection" in message
    assert f"put the file at {tmp_path / 'download' / 'book.bin'}" in message


# the data sets ---------------------------------------------------------------

HF = "/datasets"
STORIES = [f"Once there was a fox named {name}.\nIt slept." for name in "ABCDEFGH"]


def jsonl(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(rows):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def texts(path):
    return [document.text for document in read_texts(path)]


def test_shakespeare_is_not_changed(run, host, tmp_path):
    play = "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n"
    host.files["/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"] = play.encode()
    run("shakespeare")
    assert (tmp_path / "shakespeare" / "shakespeare.txt").read_text() == play
    assert texts(tmp_path / "shakespeare") == [play.rstrip("\n")]


@pytest.fixture
def tinystories(host):
    path = f"{HF}/roneneldan/TinyStories/resolve/main/TinyStoriesV2-GPT4-train.txt"
    host.files[path] = "\n<|endoftext|>\n".join(STORIES).encode()


def test_tiny_stories_are_one_document_each(run, tinystories, tmp_path):
    run("tinystories")
    assert texts(tmp_path / "tinystories") == STORIES


def test_a_limit_takes_whole_stories_and_downloads_no_more_bytes(run, host, tinystories, tmp_path):
    run("tinystories", limit=150)
    assert texts(tmp_path / "tinystories") == STORIES[:2] and host.sent == 150


def test_fineweb_is_read_shard_by_shard_up_to_the_limit(run, host, tmp_path):
    shards = [[{"text": f"Page {i} of shard {s}. <|endoftext|> é", "score": 4.5} for i in range(3)]
              for s in range(3)]
    for s, rows in enumerate(shards):
        host.files[f"{HF}/karpathy/fineweb-edu-100b-shuffle/resolve/main/shard_0000{s}.parquet"] = \
            parquet(rows)
    run("fineweb", limit=130)
    assert texts(tmp_path / "fineweb") == [r["text"] for r in shards[0]] + [shards[1][0]["text"]]
    assert not any("shard_00002" in path for path, _ in host.asked)


def test_the_lines_of_wikitext_become_articles(run, host, tmp_path):
    lines = ["", " = Ada Lovelace = \n", "", " She was 1 @,@ 815 's well @-@ known child . \n",
             " = = Life = = \n", " She wrote . \n", " = Fox = \n", " A fox = an animal . \n"]
    for i, part in enumerate((lines[:5], lines[5:])):
        host.files[f"{HF}/Salesforce/wikitext/resolve/main/wikitext-103-raw-v1/"
                   f"train-0000{i}-of-00002.parquet"] = parquet([{"text": line} for line in part])
    assert "wikitext.jsonl: 2 rows" in run("wikitext")
    assert texts(tmp_path / "wikitext") == [
        " = Ada Lovelace = \n She was 1,815 's well-known child . \n"
        " = = Life = = \n She wrote . \n",
        " = Fox = \n A fox = an animal . \n"]


ALPACA = [{"instruction": "Add.", "input": "1 1", "output": "2"},
          {"instruction": "Greet me.", "input": "", "output": "Hello \ud83d\ude0a"}]


@pytest.fixture
def alpaca(host):
    host.files["/tatsu-lab/stanford_alpaca/main/alpaca_data.json"] = json.dumps(ALPACA).encode()


def test_alpaca_becomes_demonstrations(run, alpaca, tmp_path):
    run("alpaca")
    assert [row["messages"] for row in read_demonstrations(tmp_path / "alpaca" / "sft.jsonl")] == [
        [user("Add.\n\n1 1"), assistant("2")], [user("Greet me."), assistant("Hello 😊")]]


def test_a_limit_takes_the_first_rows(run, alpaca, tmp_path):
    run("alpaca", limit=1)
    assert len(read_demonstrations(tmp_path / "alpaca" / "sft.jsonl")) == 1


def test_dolly_becomes_demonstrations_with_their_kinds(run, host, tmp_path):
    host.files[f"{HF}/databricks/databricks-dolly-15k/resolve/main/databricks-dolly-15k.jsonl"] = \
        jsonl({"instruction": "Who?", "context": "Ada sat.", "response": "Ada", "category": "qa"},
              {"instruction": "Why?", "context": "", "response": "So.", "category": "open"})
    run("dolly")
    assert read_demonstrations(tmp_path / "dolly" / "sft.jsonl") == [
        {"messages": [user("Who?\n\nAda sat."), assistant("Ada")], "kind": "qa"},
        {"messages": [user("Why?"), assistant("So.")], "kind": "open"}]


def test_smoltalk_keeps_its_dialogues(run, host, tmp_path):
    dialogue = [user("Hi"), assistant("Hello"), user("Bye"), assistant("See you")]
    host.files[f"{HF}/HuggingFaceTB/smoltalk/resolve/main/data/everyday-conversations/"
               "train-00000-of-00001.parquet"] = parquet([{"full_topic": "", "messages": dialogue}])
    run("smoltalk")
    assert read_demonstrations(tmp_path / "smoltalk" / "sft.jsonl") == [{"messages": dialogue}]


def node(role, text, *replies, rank=None, lang="en"):
    return dict(role=role, text=text, replies=list(replies), rank=rank, lang=lang)


@pytest.fixture
def oasst(run, host, tmp_path):
    """Two English trees and a Spanish one, prepared."""
    tree = node("prompter", "Hi",
                node("assistant", "bad", rank=2),
                node("assistant", "good",
                     node("prompter", "And?", node("assistant", "So.", rank=None)), rank=0),
                node("assistant", "unranked"),
                node("assistant", "middling", rank=1))
    other = node("prompter", "Who?", node("assistant", "Ada", node("prompter", "Thanks")))
    trees = [tree, node("prompter", "Hola", node("assistant", "Buenas"), lang="es"), other]
    host.files[f"{HF}/OpenAssistant/oasst1/resolve/main/2023-04-12_oasst_ready.trees.jsonl.gz"] = \
        gzip.compress(jsonl(*({"message_tree_id": "x", "prompt": tree} for tree in trees)))
    run("oasst")
    return tmp_path / "oasst"


def test_oasst_gives_the_best_dialogue_of_each_english_tree(oasst):
    assert [row["messages"] for row in read_demonstrations(oasst / "sft.jsonl")] == [
        [user("Hi"), assistant("good"), user("And?"), assistant("So.")],
        [user("Who?"), assistant("Ada")]]


def test_oasst_gives_ranked_answers_best_first(oasst):
    assert read_comparisons(oasst / "comparisons.jsonl") == [
        {"prompt": [user("Hi")], "responses": ["good", "middling", "bad"], "ranks": [0, 1, 2]}]


@pytest.fixture
def hh(host):
    def row(kind, i):
        start = f"\n\nHuman: {kind} {i}?\n\nAssistant: "
        return {"chosen": start + "Gladly.", "rejected": start + "No."}
    for kind, n in (("helpful", 3), ("harmless", 2)):
        host.files[f"{HF}/Anthropic/hh-rlhf/resolve/main/{kind}-base/train.jsonl.gz"] = \
            gzip.compress(jsonl(*(row(kind, i) for i in range(n))))


def test_hh_alternates_help_and_harmlessness(run, hh, tmp_path):
    run("hh")
    rows = read_comparisons(tmp_path / "hh" / "comparisons.jsonl")
    assert [row["prompt"][0]["content"] for row in rows] == [
        "helpful 0?", "harmless 0?", "helpful 1?", "harmless 1?", "helpful 2?"]
    assert rows[0]["responses"] == ["Gladly.", "No."] and rows[0]["kind"] == "helpful-base"


@pytest.mark.parametrize("limit", [1, 2, 3])
def test_hh_takes_as_many_rows_as_asked(run, hh, tmp_path, limit):
    run("hh", limit=limit)
    assert len(read_prompts(tmp_path / "hh" / "comparisons.jsonl")) == limit


def test_ultrafeedback_becomes_comparisons(run, host, tmp_path):
    host.files[f"{HF}/HuggingFaceH4/ultrafeedback_binarized/resolve/main/data/"
               "train_prefs-00000-of-00001.parquet"] = parquet([
                   dict(prompt="Hi", prompt_id="1", score_chosen=8.0, score_rejected=3.0,
                        messages=[user("Hi"), assistant("Hello")],
                        chosen=[user("Hi"), assistant("Hello")],
                        rejected=[user("Hi"), assistant("Go away")])])
    run("ultrafeedback")
    assert read_comparisons(tmp_path / "ultrafeedback" / "comparisons.jsonl") == [
        {"prompt": [user("Hi")], "responses": ["Hello", "Go away"], "ranks": [0, 1]}]


# the command -----------------------------------------------------------------

def test_without_a_name_all_are_listed_with_size_and_licence(capsys):
    prepare.main(prepare.Config())
    lines = capsys.readouterr().out.splitlines()
    for name in prepare.DATASETS:
        line, = (line for line in lines if line.split()[:1] == [name])
        assert " MB" in line and line.rpartition("; ")[2] and len(line) <= 100


def test_help_lists_them_too(capsys):
    with pytest.raises(SystemExit):
        parse_config(prepare.Config, f"{prepare.__doc__}\n{prepare.LIST}", ["-h"], words="name")
    printed = capsys.readouterr().out
    assert all(name in printed for name in prepare.DATASETS) and "--field=value" in printed


def test_names_and_flags_can_have_any_order():
    for argv in (["alpaca", "--limit=2e3"], ["--limit", "2e3", "alpaca"]):
        config = parse_config(prepare.Config, "", argv, words="name")
        assert (config.name, config.limit) == ("alpaca", 2000)


def test_several_names_are_prepared_one_after_another(run, host, alpaca, tmp_path):
    host.files["/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"] = b"Speak.\n"
    run("alpaca,shakespeare")
    assert (tmp_path / "alpaca" / "sft.jsonl").exists()
    assert (tmp_path / "shakespeare" / "shakespeare.txt").exists()


def test_an_unknown_name_is_refused_with_the_most_similar_one(run, capsys):
    assert "did you mean alpaca?" in refusal(capsys, run, "alpacca")


@pytest.mark.parametrize("flags", [dict(limit=-1), dict(mirror="file:///etc"), dict(mirror="x")])
def test_a_wrong_flag_is_refused(run, flags, capsys):
    assert f"--{[*flags][0]}" in refusal(capsys, run, "alpaca", **flags)


@pytest.mark.parametrize("body", [b"<html>Sign in</html>", b'[{"instruction": ', b"\xff\xfe", b"5"])
def test_a_download_that_is_something_else_is_one_line(run, host, tmp_path, capsys, body):
    host.files["/tatsu-lab/stanford_alpaca/main/alpaca_data.json"] = body
    message = refusal(capsys, run, "alpaca")
    assert str(tmp_path / "download" / "alpaca") in message and "delete it" in message


def test_a_damaged_archive_is_one_line(run, host, capsys):
    path = f"{HF}/OpenAssistant/oasst1/resolve/main/2023-04-12_oasst_ready.trees.jsonl.gz"
    host.files[path] = gzip.compress(jsonl({"prompt": node("prompter", "Hi" * 999)}))[:-20]
    assert "delete it" in refusal(capsys, run, "oasst")


def test_a_damaged_parquet_file_is_one_line(run, host, capsys):
    pytest.importorskip("pyarrow")
    host.files[f"{HF}/HuggingFaceTB/smoltalk/resolve/main/data/everyday-conversations/"
               "train-00000-of-00001.parquet"] = b"PAR1 but not really"
    assert "delete it" in refusal(capsys, run, "smoltalk")


def test_an_interrupted_conversion_leaves_the_old_file(run, host, alpaca, tmp_path, capsys):
    run("alpaca")
    before = (tmp_path / "alpaca" / "sft.jsonl").read_bytes()
    (tmp_path / "download" / "alpaca" / "alpaca_data.json").write_text("[")
    refusal(capsys, run, "alpaca")
    assert (tmp_path / "alpaca" / "sft.jsonl").read_bytes() == before


def test_ctrl_c_is_one_line(run, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt
    monkeypatch.setitem(prepare.DATASETS, "alpaca", interrupted)
    assert "the same command continues" in refusal(capsys, run, "alpaca")


def test_half_an_emoji_does_not_stop_it(run, host, tmp_path):
    host.files["/tatsu-lab/stanford_alpaca/main/alpaca_data.json"] = \
        b'[{"instruction": "Hi", "input": "", "output": "half \\ud83d"}]'
    run("alpaca")
    row, = read_demonstrations(tmp_path / "alpaca" / "sft.jsonl")
    assert row["messages"][-1]["content"] == "half ?"


def test_without_pyarrow_one_line_names_the_command_before_any_download(
        run, host, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert "`pip install pyarrow`" in refusal(capsys, run, "fineweb") and host.asked == []


def test_names_in_the_data_cannot_choose_a_path(run, host, tmp_path):
    host.files[f"{HF}/databricks/databricks-dolly-15k/resolve/main/databricks-dolly-15k.jsonl"] = \
        jsonl({"instruction": "/etc/x", "context": "../x", "response": "y", "category": "../z"})
    run("dolly")
    written = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert written == {"dolly/sft.jsonl", "download/dolly/databricks-dolly-15k.jsonl"}


@pytest.mark.parametrize("name", ["shakespeare", "alpaca", "hh"])
def test_the_commands_it_prints_next_have_files_and_flags_that_exist(
        run, host, alpaca, hh, tmp_path, monkeypatch, name):
    host.files["/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"] = b"Speak.\n"
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)      # parse_config sets it
    commands = run(name, out=str(tmp_path / "my data")).partition("next:\n")[2].splitlines()
    assert len(commands) > 1
    for command in commands:
        _, script, *flags = shlex.split(command.replace("-m ", ""))
        module = importlib.import_module(script.removesuffix(".py"))
        config = parse_config(module.Config, "", flags, words="data")
        assert Path(config.data).exists()
