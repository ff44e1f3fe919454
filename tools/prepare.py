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
import re
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice, zip_longest
from pathlib import Path
from shlex import quote
from urllib.request import urlopen

from common import fail, parse_config, writing
from data.formats import split_documents
from tools.hf import brief, need

GITHUB = "https://raw.githubusercontent.com"


@dataclass
class Config:
    name: str = ""        # the data set; `python -m tools.prepare NAME` is shorter
    limit: int = 0        # bytes of text, or rows of dialogues (2e7 is allowed); 0: see the list
    out: str = "data"     # the folder for the data sets' folders
    debug: bool = False   # show tracebacks


# ---- downloading ----------------------------------------------------------------------------

def hub():
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")                # no line for every retry
    return need("huggingface_hub", "this data set is on huggingface.co")


@contextmanager
def downloading(repo, path):
    try:
        yield
    except Exception as error:                        # of the library, or of those that it uses
        fail(f"{repo} could not be downloaded ({brief(error)}): the same command tries again, or "
             f"put the file at {path}")


def fetch(folder, repo, file):
    """The path of a file of huggingface.co or, if repo begins with https:, of that URL. It is
    downloaded if it is missing."""
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
    path = folder / file
    with downloading(repo, path):
        where, opened = (path, open) if path.exists() else (
            f"datasets/{repo}/{file}", hub().HfFileSystem().open)
        with opened(where, mode="r", encoding="utf-8", errors="replace") as f:
            yield from split_documents(f)


# ---- reading what was downloaded, and writing -----------------------------------------------

def read_jsonl(path):
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)


def read_parquet(folder, repo, files, columns):
    """The rows of several files. Each file is downloaded only when it is needed."""
    parquet = need("pyarrow.parquet", "this data set has Parquet files")
    for file in files:
        for batch in parquet.ParquetFile(fetch(folder, repo, file)).iter_batches(
                1000, columns=columns):
            yield from batch.to_pylist()


def up_to(texts, limit):
    """Rows of text until they have `limit` bytes. The last document stays whole."""
    for text in texts:
        limit -= len(text.encode())
        yield {"text": text}
        if limit <= 0:
            return


def write(path, rows):
    """Write JSON lines, or plain text to a .txt. The file gets its name when it is complete."""
    n = 0
    with writing(path, "wb") as file:
        for n, row in enumerate(rows, 1):
            text = row if path.suffix == ".txt" else json.dumps(row, ensure_ascii=False) + "\n"
            file.write(text.encode("utf-8", "replace"))
        if not n:
            fail(f"nothing to write to {path}: the download is empty, or --limit is too small")
    print(f"{path}: {n:,} row{'s' * (n > 1)}, {path.stat().st_size / 1e6:.2f} MB")


# ---- the data sets: (the folder of downloads, --limit) -> {file to write: rows} --------------

def shakespeare(folder, limit):
    """text: Shakespeare's plays, in one file; 1 MB; public domain"""
    path = fetch(folder, f"{GITHUB}/karpathy/char-rnn/master/data/tinyshakespeare", "input.txt")
    return {"shakespeare.txt": [path.read_text(encoding="utf-8")[:limit]]}


def tinystories(folder, limit):
    """text: stories in a small child's words; 100 MB of 2.2 GB; CDLA-Sharing-1.0"""
    stories = stream(folder, "roneneldan/TinyStories", "TinyStoriesV2-GPT4-train.txt")
    return {"tinystories.jsonl": up_to(stories, limit or 100_000_000)}


def fineweb(folder, limit):
    """text: educational web pages; 200 MB, from files of 100 MB; ODC-By 1.0"""
    shards = (f"shard_{i:05d}.parquet" for i in range(1823))
    rows = read_parquet(folder, "karpathy/fineweb-edu-100b-shuffle", shards, ["text"])
    texts = (row["text"] for row in rows)
    return {"fineweb.jsonl": up_to(texts, limit or 200_000_000)}


def wikitext(folder, limit):
    """text: WikiText-103, Wikipedia's good articles; 310 MB; CC BY-SA 3.0 and GFDL"""
    shards = (f"wikitext-103-raw-v1/train-0000{i}-of-00002.parquet" for i in range(2))

    def articles():
        article = ""
        for row in read_parquet(folder, "Salesforce/wikitext", shards, ["text"]):
            if re.fullmatch(r" = [^=]+ = \n?", row["text"]) and article.strip():
                yield article
                article = ""
            article += re.sub(r" @(.)@ ", r"\1", row["text"])        # 1 @,@ 000 -> 1,000
        yield article
    return {"wikitext.jsonl": up_to(articles(), limit or math.inf)}


def alpaca(folder, limit):
    """demonstrations: 52,000 instructions, answered by GPT-3; 23 MB; CC BY-NC 4.0"""
    path = fetch(folder, f"{GITHUB}/tatsu-lab/stanford_alpaca/main", "alpaca_data.json")
    return {"sft.jsonl": islice(json.loads(path.read_text(encoding="utf-8")), limit)}


def dolly(folder, limit):
    """demonstrations: 15,000 instructions, answered by people; 13 MB; CC BY-SA 3.0"""
    path = fetch(folder, "databricks/databricks-dolly-15k", "databricks-dolly-15k.jsonl")
    return {"sft.jsonl": (dict(instruction=row["instruction"], input=row["context"],
                               output=row["response"], kind=row["category"])
                          for row in islice(read_jsonl(path), limit))}


def smoltalk(folder, limit):
    """demonstrations: SmolTalk's 2,000 everyday conversations; 1 MB; Apache 2.0"""
    file = "data/everyday-conversations/train-00000-of-00001.parquet"
    rows = read_parquet(folder, "HuggingFaceTB/smoltalk", [file], ["messages"])
    return {"sft.jsonl": islice(rows, limit)}


def oasst(folder, limit):
    """demonstrations and comparisons: OASST1, volunteers' dialogues; 34 MB; Apache 2.0"""
    path = fetch(folder, "OpenAssistant/oasst1", "2023-04-12_oasst_ready.trees.jsonl.gz")
    trees = (row["prompt"] for row in read_jsonl(path) if row["prompt"]["lang"] == "en")
    demos, comparisons = [], []
    for tree in islice(trees, limit):
        parts = [*dialogues(tree)]
        best = next(messages for messages, replies in parts if not replies)
        best = best[:-1] if best[-1]["role"] == "user" else best
        demos += [{"messages": best}] if best else []
        for messages, replies in parts:
            ranked = [reply for reply in replies if reply.get("rank") is not None]
            if messages[-1]["role"] == "user" and len(ranked) > 1:
                comparisons.append(dict(prompt=messages, ranks=[reply["rank"] for reply in ranked],
                                        responses=[reply["text"] for reply in ranked]))
    return {"sft.jsonl": demos, "comparisons.jsonl": comparisons}


def dialogues(node, before=()):
    """Yield (messages, replies) for each turn of a tree: the dialogue up to it, and what follows,
    the best first, unranked ones last. The first one without replies always takes the best."""
    role = "user" if node["role"] == "prompter" else "assistant"
    messages = [*before, dict(role=role, content=node["text"])]
    replies = sorted(node["replies"], key=lambda r: (r.get("rank") is None, r.get("rank")))
    yield messages, replies
    for reply in replies:
        yield from dialogues(reply, messages)


def hh(folder, limit):
    """comparisons: Anthropic's 86,000 dialogues, partly offensive; 30 MB; MIT"""
    def part(kind):
        for row in read_jsonl(fetch(folder, "Anthropic/hh-rlhf", f"{kind}/train.jsonl.gz")):
            yield dict(chosen=row["chosen"], rejected=row["rejected"], kind=kind)
    rows = chain.from_iterable(zip_longest(part("helpful-base"), part("harmless-base")))
    return {"comparisons.jsonl": islice(filter(None, rows), limit)}


def ultrafeedback(folder, limit):
    """comparisons: 61,000 pairs of models' answers, graded by GPT-4; 230 MB; MIT"""
    rows = read_parquet(folder, "HuggingFaceH4/ultrafeedback_binarized",
                        ["data/train_prefs-00000-of-00001.parquet"], ["chosen", "rejected"])
    return {"comparisons.jsonl": islice(rows, limit)}


DATASETS = {function.__name__: function for function in (
    shakespeare, tinystories, fineweb, wikitext, alpaca, dolly, smoltalk, oasst, hh, ultrafeedback)}
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


# ---- one data set ---------------------------------------------------------------------------

def prepare(name, config):
    folder = Path(config.out) / name
    download = Path(config.out) / "download" / name   # not inside: a folder of text is read whole
    try:
        files = DATASETS[name](download, config.limit or None)
        for file, rows in files.items():
            write(folder / file, rows)
    except (ValueError, LookupError, TypeError, AttributeError, EOFError, gzip.BadGzipFile,
            zlib.error) as error:
        fail(f"a file in {download} is damaged or has another format ({error!r:.80}); "
             f"delete it and try again")
    print("data/README.md has complete chains on real data; for this data set, next:")
    for file in files:
        for command in NEXT.get(file, NEXT["text"]):
            print("   ", command.format(quote(str(folder / file)), name))


def main(config):
    if not config.name:
        print("NAME: what it is; the download; the licence\n")
        for name, function in DATASETS.items():
            print(f"    {name:15}{function.__doc__}")
        print("\nnext:\n    python -m tools.prepare NAME      (-h explains)")
    for name in filter(None, config.name.split(",")):
        if name not in DATASETS:
            fail(f"no data set {name}: `python -m tools.prepare` lists them")
        prepare(name, config)


if __name__ == "__main__":
    main(parse_config(Config, __doc__, words="name"))
