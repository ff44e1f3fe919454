"""Download a public data set and write it in a format that the scripts read.

    python -m tools.prepare                              # lists the data sets
    python -m tools.prepare shakespeare
    python -m tools.prepare tinystories --limit=2e7      # its first 20 MB

The files go to data/NAME, the downloads to data/download/NAME. A file that you put there yourself
is used as it is. Most need `pip install huggingface_hub`, which continues an interrupted download.
The environment variable HF_ENDPOINT names another host.
"""

import gzip
import json
import math
import os
from collections import namedtuple
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from urllib.request import urlopen
from zlib import error as ZlibError

from common import fail, parse_config, writing
from data.formats import split_documents
from tools.hf import brief, need


@dataclass
class Config:
    name: str = ""        # the data set; `python -m tools.prepare NAME` is shorter
    limit: int = 0        # bytes of text, or rows of dialogues (2e7 is allowed); 0: see the list
    out: str = "data"     # the folder for the data sets' folders
    debug: bool = False   # show tracebacks


# repo: of huggingface.co, or a URL; fields: of each row; writes: a file, a .txt has the text alone
Source = namedtuple("Source", "about repo files fields writes limit", defaults=[math.inf])
GITHUB = "https://raw.githubusercontent.com"
DATASETS = {
    "shakespeare": Source(
        "text: Shakespeare's plays, in one file; 1 MB; public domain",
        f"{GITHUB}/karpathy/char-rnn/master/data/tinyshakespeare", ["input.txt"], ["text"],
        "shakespeare.txt"),
    "tinystories": Source(
        "text: stories in a small child's words; 100 MB of 2.2 GB; CDLA-Sharing-1.0",
        "roneneldan/TinyStories", ["TinyStoriesV2-GPT4-train.txt"], ["text"],
        "tinystories.jsonl", 100_000_000),
    "fineweb": Source(
        "text: educational web pages; 200 MB, from files of 100 MB; ODC-By 1.0",
        "karpathy/fineweb-edu-100b-shuffle", [f"shard_{i:05d}.parquet" for i in range(1823)],
        ["text"], "fineweb.jsonl", 200_000_000),
    "alpaca": Source(
        "demonstrations: 52,000 instructions, answered by GPT-3; 23 MB; CC BY-NC 4.0",
        f"{GITHUB}/tatsu-lab/stanford_alpaca/main", ["alpaca_data.json"],
        ["instruction", "input", "output"], "sft.jsonl"),
    "dolly": Source(
        "demonstrations: 15,000 instructions, answered by people; 13 MB; CC BY-SA 3.0",
        "databricks/databricks-dolly-15k", ["databricks-dolly-15k.jsonl"],
        ["instruction", "context", "response", "category"], "sft.jsonl"),
    "smoltalk": Source(
        "demonstrations: SmolTalk's 2,000 everyday conversations; 1 MB; Apache 2.0",
        "HuggingFaceTB/smoltalk", ["data/everyday-conversations/train-00000-of-00001.parquet"],
        ["messages"], "sft.jsonl"),
    "hh": Source(
        "comparisons: Anthropic's 86,000 dialogues, partly offensive; 30 MB; MIT",
        "Anthropic/hh-rlhf", ["helpful-base/train.jsonl.gz", "harmless-base/train.jsonl.gz"],
        ["chosen", "rejected"], "comparisons.jsonl"),
    "ultrafeedback": Source(
        "comparisons: 61,000 pairs of models' answers, graded by GPT-4; 230 MB; MIT",
        "HuggingFaceH4/ultrafeedback_binarized", ["data/train_prefs-00000-of-00001.parquet"],
        ["chosen", "rejected"], "comparisons.jsonl")}
NEXT = {
    "sft.jsonl": ["python -m tools.check {0}", "python sft.py --data={0} --out=out/{1}/sft.pt"],
    "comparisons.jsonl": [
        "python -m tools.check {0}",
        "python reward.py --data={0} --demos= --out=out/{1}/reward.pt",
        "python rlhf_ppo.py --data={0} --reward=out/{1}/reward.pt --watch= --out=out/{1}/ppo.pt"],
    "text": ["python tokenizer.py --data={0} --vocab_size=4096 --out=out/{1}/tokenizer.json",
             "python -m tools.check {0} --tokenizer=out/{1}/tokenizer.json",
             "python pretrain.py --data={0} --tokenizer=out/{1}/tokenizer.json "
             "--out=out/{1}/pretrain.pt"]}


# ---- downloading ----------------------------------------------------------------------------

@contextmanager
def downloading(repo, path):
    try:
        yield
    except Exception as error:                        # of the library, or of those that it uses
        fail(f"{repo} could not be downloaded ({brief(error)}): the same command tries again, or "
             f"put the file at {path}")


def hub():
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")                # no line for every retry
    return need("huggingface_hub", "this data set is on huggingface.co")


def fetch(folder, repo, file):
    """The path of a file, which is downloaded if it is missing."""
    path = folder / file
    if not path.exists():
        with downloading(repo, path):
            if repo.startswith("https:"):             # small files
                with urlopen(f"{repo}/{file}", timeout=30) as body, writing(path, "wb") as f:
                    f.write(body.read())
            else:
                hub().hf_hub_download(repo, file, repo_type="dataset", local_dir=folder)
    return path


def stream(folder, repo, file):
    """The documents of a large text file, of which no more is downloaded than is read."""
    path = fetch(folder, repo, file) if repo.startswith("https:") else folder / file
    with downloading(repo, path):
        where, opened = (path, open) if path.exists() else (
            f"datasets/{repo}/{file}", hub().HfFileSystem().open)
        with opened(where, mode="r", encoding="utf-8", errors="replace") as f:
            yield from split_documents(f)


# ---- reading what was downloaded, and writing -----------------------------------------------

def read(folder, repo, file, fields):
    if file.endswith(".txt"):
        yield from ({"text": text} for text in stream(folder, repo, file))
    elif file.endswith(".parquet"):
        parquet = need("pyarrow.parquet", "this data set has Parquet files")
        table = parquet.ParquetFile(fetch(folder, repo, file))
        for batch in table.iter_batches(1000, columns=fields):
            yield from batch.to_pylist()
    else:
        path = fetch(folder, repo, file)
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as f:
            yield from json.load(f) if path.suffix == ".json" else map(json.loads, f)


def rows_of(folder, source):
    try:
        for file in source.files:
            for row in read(folder, source.repo, file, source.fields):
                yield {field: row[field] for field in source.fields}
    except (ValueError, LookupError, TypeError, EOFError, gzip.BadGzipFile, ZlibError) as error:
        fail(f"a file in {folder} is damaged or has another format ({error!r:.80}); delete it and "
             f"try again")


def up_to(rows, limit):
    """The first `limit` rows, or rows of text until they have so many bytes: the last stays whole.
    """
    for row in rows:
        limit -= len(row["text"].encode()) if "text" in row else 1
        yield row
        if limit <= 0:
            return


def prepare(name, config):
    source = DATASETS[name]
    path = Path(config.out) / name / source.writes
    folder = Path(config.out) / "download" / name     # not inside: a folder of text is read whole
    rows, n = rows_of(folder, source), 0
    with writing(path, "wb") as f:                    # it gets its name when it is complete
        for n, row in enumerate(up_to(rows, config.limit or source.limit), 1):
            text = row["text"] if path.suffix == ".txt" else json.dumps(
                row, ensure_ascii=False) + "\n"
            f.write(text.encode("utf-8", "replace"))
        if not n:
            fail(f"nothing to write to {path}: the download is empty")
    print(f"{path}: {n:,} rows, {path.stat().st_size / 1e6:.2f} MB")
    print("data/README.md has complete chains on real data; for this data set, next:")
    for command in NEXT.get(source.writes, NEXT["text"]):
        print("   ", command.format(quote(str(path)), name))


def main(config):
    if not config.name:
        print("NAME: what it is; the download; the licence\n")
        for name, source in DATASETS.items():
            print(f"    {name:15}{source.about}")
        print("\nnext:\n    python -m tools.prepare NAME      (-h explains)")
    for name in filter(None, config.name.split(",")):
        if name not in DATASETS:
            fail(f"no data set {name}: `python -m tools.prepare` lists them")
        prepare(name, config)


if __name__ == "__main__":
    main(parse_config(Config, __doc__, words="name"))
