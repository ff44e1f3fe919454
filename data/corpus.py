"""Pretraining text as token ids in one memory-mapped file, and the order in which it is read.

The text is encoded once, into a cache folder named after the text and the tokenizer. For training,
the documents are shuffled and joined to one long stream of tokens, which is cut into rows. Every
epoch has a new order and holds each document once. Row i depends only on the seed and on i, so an
interrupted run can continue where it stopped.
"""

import hashlib
import os
from contextlib import suppress
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import BadZipFile

import numpy as np
import torch
from tqdm import tqdm

from common import named
from data.formats import hold_out, read_texts

PIECE = 16_000     # characters; longer documents are cut, so that even one book can be split


class Corpus:
    """Documents and their split. A document's ids begin with <|endoftext|>.

    tokens (N,) the ids of all documents; starts (n_docs + 1,) where each begins; source (n_docs,)
    an index into sources; logp (n_docs,) the generator's log-probability, NaN where unknown;
    n_bytes (n_docs,); held_out (n_docs,) bool.
    """

    def __init__(self, paths, tok, folder, fingerprint, val_share=0.05, main=True,
                 wait=lambda: None):
        self.tok = tok
        cache = Path(folder) / f"{tok.fingerprint}-{fingerprint}"
        docs = load(cache, tok) if main else None
        if main and not docs:
            encode(paths, tok, cache)
        wait()                                        # the other processes wait for the files
        docs = docs or load(cache, tok)
        if not docs:
            raise OSError(f"the tokens in {cache} are not complete, or can't be read: choose "
                          f"another --out")
        self.sources, self.starts, self.source = docs["sources"], docs["starts"], docs["source"]
        self.logp, self.n_bytes, self.hashes = docs["logp"], docs["n_bytes"], docs["hash"]
        self.tokens = np.memmap(cache / "tokens.bin", dtype=id_type(tok), mode="r")
        self.lengths = np.diff(self.starts)
        if len({*self.hashes.tolist()}) < 2:
            copies = f", {len(self.lengths):,} times," * (len(self.lengths) > 1)
            raise ValueError(f"{paths}: a single short document{copies} can't be split into text "
                             f"to learn from and text to evaluate on: use more text")
        # the split goes by the text's hash, so two copies of a text are on the same side
        self.held_out = hold_out(self.hashes, val_share, self.lengths)

    def mixture(self, mix=""):
        """The probability that a document comes from each source, (n_sources,). mix "a=0.5,b=0.2"
        sets the sources' shares of the tokens; by default they are the sources' sizes."""
        tokens = self.per_source(self.lengths * ~self.held_out)
        docs = self.per_source(~self.held_out)
        weights = tokens / tokens.sum()
        if mix:
            shares, parts = {}, [part.partition("=") for part in mix.split(",")]
            with suppress(ValueError):
                shares = {name.strip(): float(weight) for name, _, weight in parts}
            weights = np.array([shares.pop(s, 0) for s in self.sources])
            if shares or not (0 <= weights.min() and 0 < weights.sum() < np.inf):
                raise ValueError(f"--mix={mix}: name sources as in {self.sources[0]}=0.5; the text "
                                 f"has {', '.join(self.sources)}; the shares must be numbers of at "
                                 "least 0, and not all 0")
        # from shares of tokens to shares of documents: divide by the source's mean length
        share = np.where(docs > 0, weights / np.maximum(tokens / np.maximum(docs, 1), 1e-9), 0)
        return share / share.sum()

    def shuffle(self, n_tokens, seed, mix=""):
        """Shuffle the training documents, enough epochs for n_tokens tokens; rows() cuts them."""
        rng = np.random.default_rng(seed)
        train = np.flatnonzero(~self.held_out)
        pools, share = [train], [1.0]                 # all documents form one pool …
        if mix:                                       # … or each source is shuffled by itself
            pools = [train[self.source[train] == s] for s in range(len(self.sources))]
            share = self.mixture(mix)
        order, length = [], 0
        left = [np.array([], dtype=np.int64) for _ in pools]         # the rest of each pool's epoch
        while length < n_tokens:
            which = rng.choice(len(pools), size=len(train), p=share)
            some = np.empty(len(train), dtype=np.int64)
            for s, pool in enumerate(pools):
                slots = np.flatnonzero(which == s)
                while len(left[s]) < len(slots):
                    left[s] = np.append(left[s], rng.permutation(pool))
                some[slots], left[s] = left[s][:len(slots)], left[s][len(slots):]
            order.append(some)
            length += self.lengths[some].sum()
        self.order = np.concatenate(order)
        self.ends = np.cumsum(self.lengths[self.order])
        return self

    def rows(self, first, count, T):
        """Rows first … first + count - 1 of the stream, (count, T + 1): the inputs are [:, :-1],
        the targets [:, 1:]. The last token of a row is the first of the next.

        Documents in one row attend to each other: a token sees all tokens before it in the row,
        also those of other documents. This does little harm: <|endoftext|> separates documents, and
        the model learns to ignore what stands before it. GPT-2, GPT-3 (Brown et al. 2020, appendix
        B) and nanoGPT do the same. Masking across documents is possible, but costs speed."""
        places = (first + np.arange(count)[:, None]) * T + np.arange(T + 1)      # in the stream
        nth = np.searchsorted(self.ends, places, side="right")        # which document of the order
        before_end = self.ends[nth] - places
        tokens = self.tokens[self.starts[self.order[nth] + 1] - before_end]
        return torch.from_numpy(tokens.astype(np.int64))

    def held_out_rows(self, T, n_rows):
        """Whole held-out documents packed into rows: x, y, source (R, T) with R <= n_rows, and the
        documents' numbers. y is -1 where nothing is predicted. A document that doesn't fit starts a
        new row; one longer than T continues in the next. Documents attend to each other here, too.
        """
        docs = np.random.default_rng(0).permutation(np.flatnonzero(self.held_out))
        # in one long row first, since a long document continues at the beginning of the next row
        row = np.tile([[self.tok.pad], [-1], [0]], n_rows * T)           # x, y and source
        at, used = 0, []
        for d in docs:
            ids = np.append(self.tokens[self.starts[d]:self.starts[d + 1]], self.tok.eot)
            n = len(ids) - 1
            if at % T + n > T:
                at += -at % T                         # a new row
            if at + n > n_rows * T:
                break
            row[:, at:at + n] = ids[:-1], ids[1:], np.full(n, self.source[d])
            at += n
            used.append(d)
        if not used:
            raise ValueError(f"{n_rows} rows of {T} tokens are too few for a held-out document: "
                             f"raise --eval_rows")
        rows = row[:, :at + -at % T].reshape(3, -1, T)
        return *torch.from_numpy(rows), np.array(used)

    def entropy(self, docs, mix=""):
        """The lowest possible loss on these documents, (n_sources,) in nats per token; NaN where
        the generator is unknown. Even a perfect model must guess which source comes next and what
        the dice chose: -(log share + logp)."""
        with np.errstate(divide="ignore", invalid="ignore"):
            nats = -(np.log(self.mixture(mix))[self.source[docs]] + self.logp[docs])
            return self.per_source(nats, docs) / self.per_source(self.lengths[docs], docs)

    def shares(self, docs):
        """Each source's share of the tokens of these documents, (n_sources,)."""
        tokens = self.per_source(self.lengths[docs], docs)
        return tokens / tokens.sum()

    def per_source(self, values, docs=slice(None)):
        """The sum of these documents' values in each source, (n_sources,)."""
        return np.bincount(self.source[docs], values, len(self.sources))


def id_type(tok):
    return np.uint16 if tok.vocab_size <= 2**16 else np.uint32


def pieces(text):
    """Cut a long text, if possible at line ends, into parts of at most PIECE characters."""
    while len(text) > PIECE:
        cut = text.rfind("\n", 1, PIECE) + 1 or PIECE
        yield text[:cut]
        text = text[cut:]
    if text:
        yield text


def load(cache, tok):
    """What describes the tokens in the cache; None if they are not there, or fewer, as after a copy
    that broke off: rows of too few tokens would be random numbers."""
    with suppress(EOFError, KeyError, OSError, ValueError, BadZipFile):
        docs = dict(np.load(cache / "docs.npz"))
        docs["sources"] = docs["sources"].tolist()
        size = docs["starts"][-1] * np.dtype(id_type(tok)).itemsize
        if (cache / "tokens.bin").stat().st_size == size:
            return docs


def encode(paths, tok, cache):
    """Make the cache. docs.npz is moved last: if it exists, the cache is complete. Two runs may do
    this at the same time, because both write the same files."""
    cache.parent.mkdir(parents=True, exist_ok=True)
    with named(cache.parent), TemporaryDirectory(dir=cache.parent, prefix=f"{cache.name}.") as tmp:
        write(paths, tok, Path(tmp))
        cache.mkdir(exist_ok=True)
        for name in ("tokens.bin", "docs.npz"):
            with open(Path(tmp, name), "rb+") as f:
                os.fsync(f.fileno())
            with suppress(PermissionError):           # Windows: another run reads its own copy
                Path(tmp, name).replace(cache / name)


def documents(paths, sources):
    """Yield (source, text, logp): source is an index into `sources`, to which new names are added.
    A long text comes in pieces. logp is NaN where it is unknown."""
    for name, text, logp in read_texts(paths):
        if name not in sources:
            sources.append(name)
        known = logp is not None and len(text) <= PIECE
        for piece in pieces(text):
            yield sources.index(name), piece, logp if known else float("nan")


def write(paths, tok, folder):
    """Write tokens.bin and docs.npz."""
    sources, rows = [], []
    docs = documents(paths, sources)
    with open(folder / "tokens.bin", "wb") as f, tqdm(unit="doc", desc="encoding", leave=False,
                                                      disable=None) as bar:
        while batch := list(islice(docs, 1000)):
            (source, text, _), *others = batch
            if not others and not rows and len(text) >= 200:
                # one document: learn from its first nine tenths
                cut = text.rfind("\n", 1, len(text) * 9 // 10) + 1 or len(text) * 9 // 10
                batch = [(source, part, float("nan")) for part in (text[:cut], text[cut:])]
            encoded = tok.encode_batch([text for _, text, _ in batch])
            for (source, text, logp), ids in zip(batch, encoded):
                f.write(np.array([tok.eot] + ids, dtype=id_type(tok)))
                digest = hashlib.sha256(text.strip().encode()).digest()
                h = int.from_bytes(digest[:6], "little") / 2**48
                rows.append((1 + len(ids), source, logp, len(text.encode()), h))
            bar.update(len(batch))
    lengths, source, logp, n_bytes, h = map(np.array, zip(*rows))
    np.savez(folder / "docs.npz", starts=np.concatenate([[0], np.cumsum(lengths)]), source=source,
             logp=logp, n_bytes=n_bytes, hash=h, sources=sources)
