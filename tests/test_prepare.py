"""The hosts are dictionaries: a module of the test stands in for huggingface_hub, a function for
urlopen. No test asks the network."""

import gzip
import importlib
import io
import json
import os
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from common import parse_config
from data.formats import read_comparisons, read_demonstrations, read_prompts, read_texts
from tools import prepare

SHAKESPEARE = f"{prepare.GITHUB}/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
HH = "Anthropic/hh-rlhf/helpful-base/train.jsonl.gz"
ALPACA = f"{prepare.GITHUB}/tatsu-lab/stanford_alpaca/main/alpaca_data.json"


class ParquetFile:
    """Stands in for that of pyarrow where it is not installed: its files are JSON."""

    def __init__(self, path):
        self.rows = json.loads(Path(path).read_text())

    def iter_batches(self, size, columns):
        for row in self.rows:
            yield SimpleNamespace(to_pylist=lambda: [{name: row[name] for name in columns}])


try:
    import pyarrow.parquet
except ImportError:
    pyarrow = None


class Hosts(dict):
    """{name of a data set and a file in it, or URL: its bytes}; `asked`: what was asked for."""

    def __init__(self):
        self.asked = []

    def __missing__(self, name):
        raise ConnectionError(f"no route to\n{name}")

    def get(self, name):
        self.asked.append(name)
        return self[name]

    def hf_hub_download(self, repo, file, repo_type, local_dir):
        assert repo_type == "dataset"
        body, path = self.get(f"{repo}/{file}"), Path(local_dir, file)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
        return str(path)

    def HfFileSystem(self):
        return SimpleNamespace(open=lambda path, mode, **how: io.TextIOWrapper(
            io.BytesIO(self.get(path.removeprefix("datasets/"))), **how))


@pytest.fixture
def hosts(monkeypatch):
    hosts = Hosts()
    monkeypatch.setitem(sys.modules, "huggingface_hub", hosts)
    if not pyarrow:
        fake = SimpleNamespace(ParquetFile=ParquetFile)
        monkeypatch.setitem(sys.modules, "pyarrow.parquet", fake)
    monkeypatch.setattr(prepare, "urlopen", lambda url, timeout: io.BytesIO(hosts.get(url)))
    return hosts


@pytest.fixture
def run(hosts, capsys):
    """run("alpaca", limit=3) -> what it printed; its files are in data/alpaca."""
    def run(name, **flags):
        prepare.main(prepare.Config(name, **flags))
        return capsys.readouterr().out
    return run


# downloading -----------------------------------------------------------------

def test_a_file_that_is_there_is_used_as_it_is(hosts, tmp_path):
    for repo in ("someone/books", "https://example.org/books"):
        (tmp_path / "book.txt").write_bytes(b"mine")
        assert prepare.fetch(tmp_path, repo, "book.txt").read_bytes() == b"mine"
    assert [*prepare.stream(tmp_path, "someone/books", "book.txt")] == ["mine"]
    assert hosts.asked == []


@pytest.mark.parametrize("name, repo, file", [
    ("alpaca", "tatsu-lab/stanford_alpaca", "alpaca_data.json"),
    ("hh", "Anthropic/hh-rlhf", "helpful-base/train.jsonl.gz"),
    ("tinystories", "roneneldan/TinyStories", "TinyStoriesV2-GPT4-train.txt")])
def test_without_a_network_one_line_says_where_to_put_the_file(run, refused, name, repo, file):
    said = refused(run, name)
    assert f"{repo}" in said and "could not be downloaded (no route to " in said
    assert said.endswith(f"put the file at data/download/{name}/{file}\n")
    assert not [path for path in Path("data").rglob("*") if path.is_file()]


@pytest.mark.parametrize("name, library", [
    ("dolly", "huggingface_hub"), ("tinystories", "huggingface_hub"), ("hh", "huggingface_hub"),
    ("fineweb", "pyarrow")])
def test_without_a_library_one_line_names_the_command_before_any_download(
        name, library, run, hosts, refused, monkeypatch):
    for module in (library, f"{library}.parquet"):
        monkeypatch.setitem(sys.modules, module, None)
    assert f"pip install {library}" in refused(run, name) and hosts.asked == []


# the data sets ---------------------------------------------------------------

def jsonl(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(*rows):
    if not pyarrow:
        return json.dumps(rows).encode()
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


def turns(*contents):
    return [dict(role=("user", "assistant")[i % 2], content=content)
            for i, content in enumerate(contents)]


def demos(*dialogues):
    return [dict(messages=turns(*dialogue)) for dialogue in dialogues]


def texts(path):
    return [document.text for document in read_texts(path)]


def hh(kind, n):
    return gzip.compress(jsonl(*(
        dict(chosen=f"\n\nHuman: {kind} {i}?\n\nAssistant: Gladly.",
             rejected=f"\n\nHuman: {kind} {i}?\n\nAssistant: No.") for i in range(n))))


PLAY = "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak."
STORIES = [f"Once there was a fox named {name}.\nIt slept." for name in "ABCDEFGH"]
FILES = {
    SHAKESPEARE: f"{PLAY}\n".encode(),
    "roneneldan/TinyStories/TinyStoriesV2-GPT4-train.txt":
        "\n<|endoftext|>\n".join(STORIES).encode(),
    **{f"karpathy/fineweb-edu-100b-shuffle/shard_0000{s}.parquet": parquet(*(
        dict(text=f"Page {i} of shard {s}. <|endoftext|> é", score=4.5) for i in range(3)))
       for s in range(3)},
    ALPACA: json.dumps([dict(instruction="Add.", input="1 1", output="2"),
                        dict(instruction="Hi", input="", output="Hello 😊"),
                        dict(instruction="Half", input="", output="an emoji \ud83d")]).encode(),
    "databricks/databricks-dolly-15k/databricks-dolly-15k.jsonl": jsonl(
        dict(instruction="Who?", context="Ada sat.", response="Ada", category="qa"),
        dict(instruction="/etc/x", context="../x", response="y", category="../z")),
    "HuggingFaceTB/smoltalk/data/everyday-conversations/train-00000-of-00001.parquet": parquet(
        dict(full_topic="", messages=turns("Hi", "Hello", "Bye", "See you"))),
    HH: hh("helpful", 3),
    "Anthropic/hh-rlhf/harmless-base/train.jsonl.gz": hh("harmless", 2),
    "HuggingFaceH4/ultrafeedback_binarized/data/train_prefs-00000-of-00001.parquet": parquet(dict(
        prompt="Hi", prompt_id="1", score_chosen=8.0, score_rejected=3.0,
        messages=turns("Hi", "Hello"), chosen=turns("Hi", "Hello"),
        rejected=turns("Hi", "Go away")))}


@pytest.mark.parametrize("name, limit, file, read, expected", [
    ("shakespeare", 0, "", texts, [PLAY]),
    ("tinystories", 0, "", texts, STORIES), ("tinystories", 45, "", texts, STORIES[:2]),
    ("fineweb", 130, "", texts, [f"Page {i} of shard {s}. <|endoftext|> é"
                                 for i, s in ((0, 0), (1, 0), (2, 0), (0, 1))]),
    ("alpaca", 0, "sft.jsonl", read_demonstrations,
     demos(["Add.\n\n1 1", "2"], ["Hi", "Hello 😊"], ["Half", "an emoji ?"])),
    ("alpaca", 1, "sft.jsonl", read_demonstrations, demos(["Add.\n\n1 1", "2"])),
    ("dolly", 0, "sft.jsonl", read_demonstrations, [
        row | dict(category=name) for name, row in zip(("qa", "../z"), demos(
            ["Who?\n\nAda sat.", "Ada"], ["/etc/x\n\n../x", "y"]))]),
    ("smoltalk", 0, "sft.jsonl", read_demonstrations, demos(["Hi", "Hello", "Bye", "See you"])),
    ("hh", 0, "comparisons.jsonl", read_comparisons, [
        dict(prompt=turns(f"{kind} {i}?"), responses=["Gladly.", "No."], ranks=[0, 1])
        for kind, n in (("helpful", 3), ("harmless", 2)) for i in range(n)]),
    *(("hh", n, "comparisons.jsonl", lambda path: len(read_prompts(path)), n) for n in (1, 2, 3)),
    ("ultrafeedback", 0, "comparisons.jsonl", read_comparisons, [
        dict(prompt=turns("Hi"), responses=["Hello", "Go away"], ranks=[0, 1])])])
def test_a_data_set_becomes_what_the_scripts_read(run, hosts, name, limit, file, read, expected):
    hosts |= FILES
    assert f"data/{name}/" in run(name, limit=limit)
    assert read(f"data/{name}/{file}") == expected
    # no name in the data has chosen a path
    assert os.listdir() == ["data"] and {*os.listdir("data")} <= {name, "download"}
    assert not any("shard_00002" in file for file in hosts.asked)


# the command -----------------------------------------------------------------

def test_without_a_name_all_are_listed_with_size_and_licence(run):
    lines = run("").splitlines()
    for name in prepare.DATASETS:
        line, = (line for line in lines if line.split()[:1] == [name])
        assert " MB" in line and line.rpartition("; ")[2] and len(line) <= 100


@pytest.mark.parametrize("name, file, body", [
    ("alpaca", ALPACA, b"<html>Sign in</html>"), ("alpaca", ALPACA, b'[{"instruction": '),
    ("alpaca", ALPACA, b"\xff\xfe"), ("alpaca", ALPACA, b"5"), ("hh", HH, b"no gzip"),
    ("hh", HH, FILES[HH][:-20]), ("ultrafeedback", [*FILES][-1], b"PAR1 but not really")],
    ids=["a page", "cut off", "no text", "no list", "no gzip", "half", "no table"])
def test_a_download_that_is_damaged_or_something_else_is_one_line(run, hosts, refused, name, file,
                                                                  body):
    hosts[file] = body
    said = refused(run, name)
    assert f"data/download/{name} is damaged" in said and "delete it" in said


@pytest.mark.parametrize("name", ["shakespeare,alpaca", "hh"])
def test_the_commands_it_prints_next_have_files_and_flags_that_exist(run, hosts, name):
    hosts |= FILES
    printed = run(name, out="my data").splitlines()
    commands = [line for line in printed if line.startswith("    ")]
    assert len(commands) == {"hh": 3}.get(name, 5)
    for command in commands:
        _, script, *flags = shlex.split(command.replace("-m ", ""))
        module = importlib.import_module(script.removesuffix(".py"))
        config = parse_config(module.Config, "", flags, words="data")
        assert Path(config.data).exists()
