"""Download a public data set and write it in a format that the scripts read.

    python -m tools.prepare                              # lists the data sets
    python -m tools.prepare shakespeare
    python -m tools.prepare tinystories --limit=2e7      # its first 20 MB
    python -m tools.prepare alpaca --mirror=https://mirror.example

The files go to data/NAME, the downloads to data/download/NAME. An interrupted download continues
where it stopped. A file that you put there yourself is used as it is.
"""

import difflib
import gzip
import http.client
import json
import math
import re
import ssl
import time
import zlib
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice, pairwise, zip_longest
from pathlib import Path
from shlex import quote
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from tqdm import tqdm

from common import fail, named, parse_config
from data.formats import split_documents

HF, GITHUB = "https://huggingface.co/datasets", "https://raw.githubusercontent.com"
TRIES, WAIT = 5, 1.0      # connections per file; the n-th retry waits n times WAIT seconds


@dataclass
class Config:
    name: str = ""        # the data set; `python -m tools.prepare NAME` is shorter
    limit: int = 0        # bytes of text, or rows of dialogues (2e7 is allowed); 0: see the list
    mirror: str = ""      # another host with the same paths, as https://…
    out: str = "data"     # the folder for the data sets' folders
    debug: bool = False   # show tracebacks


# ---- downloading ----------------------------------------------------------------------------

def fetch(folder, mirror, url, name="", first=math.inf):
    """The path of the file at url, downloaded if missing. first: how many bytes are needed."""
    path = folder / (name or url.rpartition("/")[2])
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    url = mirror.rstrip("/") + urlsplit(url).path if mirror else url
    for attempt in range(TRIES):
        if path.exists():
            return path
        time.sleep(WAIT * attempt)
        try:
            return part.replace(path) if append(url, part, first) else part
        except HTTPError as error:
            fail(f"{url}: the server says {error.code} {error.reason}")
        except URLError as error:
            fail(f"{url}: no connection ({error.reason}); try again, or put the file at {path}")
        except (http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError):
            pass                                      # the next attempt continues from there
    fail(f"{url}: the connection broke {TRIES} times, now after {part.stat().st_size:,} bytes; the "
         f"same command continues from there")


def append(url, part, first):
    """Request once the bytes that `part` lacks. Returns whether it is now the complete file; if
    not, it has the `first` bytes."""
    part.touch()
    have = part.stat().st_size
    if have >= first:
        return False
    last = "" if first == math.inf else first - 1
    try:
        response = urlopen(Request(url, headers={"Range": f"bytes={have}-{last}"}), timeout=30)
    except HTTPError as error:
        if error.code != 416:                         # 416: the file has no more than `have` bytes
            raise
        if error.headers.get("Content-Range") == f"bytes */{have}":
            return True
        part.unlink()                                 # these bytes belong to another file
        raise ConnectionError from None
    found = re.match(rf"bytes {have}-\d+/(\d+)", response.headers.get("Content-Range", ""))
    if response.status == 206 and not found:
        raise http.client.HTTPException
    # a server without range requests sends the whole file, from byte 0
    start, total = (have, int(found[1])) if found else (0, response.length or 0)
    with response, open(part, "ab") as file, tqdm.wrapattr(
            response, "read", desc=part.stem, total=min(total or math.inf, first), initial=start,
            leave=False, disable=None) as body:
        file.truncate(start)
        while file.tell() < first and (block := body.read(1 << 16)):
            file.write(block)
        got = file.tell()
    if got < min(total, first):
        raise ConnectionError
    return got == total or not total


# ---- reading what was downloaded, and writing -----------------------------------------------

def read_jsonl(path):
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)


def read_parquet(get, urls, columns):
    """The rows of several files. Each file is downloaded only when it is needed."""
    try:
        import pyarrow.parquet
    except ImportError:
        fail("this data set has Parquet files, which need pyarrow: `pip install pyarrow`")
    for url in urls:
        for batch in pyarrow.parquet.ParquetFile(get(url)).iter_batches(1000, columns=columns):
            yield from batch.to_pylist()


def up_to(texts, limit):
    """Rows of text until they have `limit` bytes. The last document stays whole."""
    for text in texts:
        if limit <= 0:
            return
        limit -= len(text.encode())
        yield {"text": text}


def write(path, rows):
    """Write JSON lines, or plain text to a .txt. The file gets its name when it is complete."""
    n, tmp = 0, path.with_name(path.name + ".tmp")
    path.parent.mkdir(parents=True, exist_ok=True)
    with named(path), open(tmp, "w", encoding="utf-8", errors="replace", newline="\n") as file:
        for n, row in enumerate(rows, 1):
            file.write(row if path.suffix == ".txt" else json.dumps(row, ensure_ascii=False) + "\n")
    if not n:
        fail(f"nothing to write to {path}: the download is empty, or --limit is too small")
    tmp.replace(path)
    print(f"{path}: {n:,} row{'s' * (n > 1)}, {path.stat().st_size / 1e6:.2f} MB")


# ---- the data sets: get(url) downloads a file; the result is {file to write: rows} ----------

def shakespeare(get, limit):
    """text: Shakespeare's plays, in one file; 1 MB; public domain"""
    path = get(f"{GITHUB}/karpathy/char-rnn/master/data/tinyshakespeare/input.txt")
    return {"shakespeare.txt": [path.read_text(encoding="utf-8")[:limit]]}


def tinystories(get, limit):
    """text: stories in a small child's words; 100 MB of 2.2 GB; CDLA-Sharing-1.0"""
    url, limit = f"{HF}/roneneldan/TinyStories/resolve/main/", limit or 100_000_000
    path = get(url + "TinyStoriesV2-GPT4-train.txt", first=limit)

    def stories():
        with open(path, encoding="utf-8", errors="replace") as file:
            # the last story of an incomplete file is incomplete: leave it out
            for story, _ in pairwise(chain(split_documents(file), [""] * (path.suffix == ".txt"))):
                yield story
    return {"tinystories.jsonl": up_to(stories(), limit)}


def fineweb(get, limit):
    """text: educational web pages; 200 MB, from files of 100 MB; ODC-By 1.0"""
    shards = (f"{HF}/karpathy/fineweb-edu-100b-shuffle/resolve/main/shard_{i:05d}.parquet"
              for i in range(1823))
    texts = (row["text"] for row in read_parquet(get, shards, ["text"]))
    return {"fineweb.jsonl": up_to(texts, limit or 200_000_000)}


def wikitext(get, limit):
    """text: WikiText-103, Wikipedia's good articles; 310 MB; CC BY-SA 3.0 and GFDL"""
    shards = (f"{HF}/Salesforce/wikitext/resolve/main/wikitext-103-raw-v1/train-0000{i}-of-00002"
              f".parquet" for i in range(2))

    def articles():
        article = ""
        for row in read_parquet(get, shards, ["text"]):
            if re.fullmatch(r" = [^=]+ = \n?", row["text"]) and article.strip():
                yield article
                article = ""
            article += re.sub(r" @(.)@ ", r"\1", row["text"])        # 1 @,@ 000 -> 1,000
        yield article
    return {"wikitext.jsonl": up_to(articles(), limit or math.inf)}


def alpaca(get, limit):
    """demonstrations: 52,000 instructions, answered by GPT-3; 23 MB; CC BY-NC 4.0"""
    path = get(f"{GITHUB}/tatsu-lab/stanford_alpaca/main/alpaca_data.json")
    return {"sft.jsonl": islice(json.loads(path.read_text(encoding="utf-8")), limit)}


def dolly(get, limit):
    """demonstrations: 15,000 instructions, answered by people; 13 MB; CC BY-SA 3.0"""
    path = get(f"{HF}/databricks/databricks-dolly-15k/resolve/main/databricks-dolly-15k.jsonl")
    return {"sft.jsonl": (dict(instruction=row["instruction"], input=row["context"],
                               output=row["response"], kind=row["category"])
                          for row in islice(read_jsonl(path), limit))}


def smoltalk(get, limit):
    """demonstrations: SmolTalk's 2,000 everyday conversations; 1 MB; Apache 2.0"""
    url = f"{HF}/HuggingFaceTB/smoltalk/resolve/main/data/everyday-conversations/" \
          f"train-00000-of-00001.parquet"
    return {"sft.jsonl": islice(read_parquet(get, [url], ["messages"]), limit)}


def oasst(get, limit):
    """demonstrations and comparisons: OASST1, volunteers' dialogues; 34 MB; Apache 2.0"""
    path = get(f"{HF}/OpenAssistant/oasst1/resolve/main/2023-04-12_oasst_ready.trees.jsonl.gz")
    trees = (row["prompt"] for row in read_jsonl(path) if row["prompt"]["lang"] == "en")
    trees = [*islice(trees, limit)]
    demos = ({"messages": best_dialogue(tree)} for tree in trees if tree["replies"])
    return {"sft.jsonl": demos, "comparisons.jsonl": chain(*(comparisons(t) for t in trees))}


def turn(node):
    return dict(role="user" if node["role"] == "prompter" else "assistant", content=node["text"])


def replies(node):
    """A node's replies: the best first, unranked ones last."""
    return sorted(node["replies"], key=lambda reply: (reply.get("rank") is None, reply.get("rank")))


def best_dialogue(node):
    """The dialogue that always takes the best reply. It ends with the assistant's last turn."""
    turns = [turn(node)]
    while node["replies"]:
        node = replies(node)[0]
        turns.append(turn(node))
    return turns[:-1] if node["role"] == "prompter" else turns


def comparisons(node, before=()):
    """A comparison for each turn of the user that has more than one ranked reply."""
    turns = [*before, turn(node)]
    ranked = [reply for reply in replies(node) if reply.get("rank") is not None]
    if node["role"] == "prompter" and len(ranked) > 1:
        yield dict(prompt=turns, responses=[reply["text"] for reply in ranked],
                   ranks=[reply["rank"] for reply in ranked])
    for reply in node["replies"]:
        yield from comparisons(reply, turns)


def hh(get, limit):
    """comparisons: Anthropic's 86,000 dialogues, partly offensive; 30 MB; MIT"""
    def part(kind):
        url = f"{HF}/Anthropic/hh-rlhf/resolve/main/{kind}/train.jsonl.gz"
        for row in read_jsonl(get(url, name=f"{kind}.jsonl.gz")):
            yield dict(chosen=row["chosen"], rejected=row["rejected"], kind=kind)
    rows = chain.from_iterable(zip_longest(part("helpful-base"), part("harmless-base")))
    return {"comparisons.jsonl": islice(filter(None, rows), limit)}


def ultrafeedback(get, limit):
    """comparisons: 61,000 pairs of models' answers, graded by GPT-4; 230 MB; MIT"""
    url = f"{HF}/HuggingFaceH4/ultrafeedback_binarized/resolve/main/data/" \
          f"train_prefs-00000-of-00001.parquet"
    rows = read_parquet(get, [url], ["chosen", "rejected"])
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
        files = DATASETS[name](partial(fetch, download, config.mirror), config.limit or None)
        for file, rows in files.items():
            write(folder / file, rows)
    except (ValueError, LookupError, TypeError, AttributeError, EOFError, zlib.error,
            gzip.BadGzipFile) as error:
        fail(f"a file in {download} is damaged or has another format ({error!r:.80}); "
             f"delete it and try again")
    except KeyboardInterrupt:
        fail("stopped; the same command continues from there")
    print("data/README.md has complete chains on real data; for this data set, next:")
    for file in files:
        for command in NEXT.get(file, NEXT["text"]):
            print("   ", command.format(quote(str(folder / file)), name))


def main(config):
    if not config.name:
        print(f"{LIST}\n\nnext:\n    python -m tools.prepare NAME      (-h explains)")
    if config.limit < 0:
        fail(f"--limit={config.limit} must be at least 0")
    if not re.fullmatch(r"(https?://\S+)?", config.mirror):
        fail(f"--mirror={config.mirror} must begin with https://")
    for name in filter(None, config.name.split(",")):
        if name not in DATASETS:
            near = difflib.get_close_matches(name, DATASETS, 1)
            fail(f"no data set {name}" + (f"; did you mean {near[0]}?" if near else "")
                 + " (`python -m tools.prepare` lists them)")
        prepare(name, config)


LIST = "\n".join(["NAME: what it is; the download; the licence", ""] + [
    f"    {name:15}{function.__doc__}" for name, function in DATASETS.items()])

if __name__ == "__main__":
    main(parse_config(Config, f"{__doc__}\n{LIST}", words="name"))
