import errno
import math
import os
import random
import shutil
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from checkpoint import fingerprint
from data import corpus as corpus_module
from data.corpus import PIECE, Corpus, id_type, pieces
from tiny import write


def sentences(n, words, seed):
    """n different texts, each with a made-up log-probability."""
    rng = random.Random(seed)
    bag = "Ada Ashton lives on Mill Street and has a cat . 12 + 30 = 42 fox river".split()
    return [dict(text=f"{seed}.{i} " + " ".join(rng.choices(bag, k=rng.randrange(1, 2 * words))),
                 logp=-rng.uniform(5, 50)) for i in range(n)]


SHORT, LONG = sentences(150, 6, seed=1), sentences(60, 30, seed=2)
TEXTS, LOGPS = ([row[name] for row in SHORT + LONG] for name in ("text", "logp"))
IS_LONG = np.array([False] * 150 + [True] * 60)


@pytest.fixture
def data(tmp_path):
    write(tmp_path / "a_short.jsonl", *SHORT)
    write(tmp_path / "b_long.jsonl", *LONG)
    return f"{tmp_path}/a_short.jsonl,{tmp_path}/b_long.jsonl"


@pytest.fixture
def read(tmp_path, tiny_tokenizer):
    """read(text of a book, texts of documents, or files, …) -> the corpus."""
    def read(data, share=0.05, tok=tiny_tokenizer, print="print", **more):
        if isinstance(data, list):
            data = write(tmp_path / "docs.jsonl", *(dict(text=text) for text in data))
        elif not str(data).startswith("/"):
            data = write(tmp_path / "book.txt", data)
        return Corpus(data, tok, tmp_path / "cache", print, share, **more)
    return read


@pytest.fixture
def corpus(read, data):
    return read(data, 0.2)


@pytest.fixture
def ids(tiny_tokenizer):
    """The expected ids of every document."""
    return [[tiny_tokenizer.eot] + tiny_tokenizer.encode(text) for text in TEXTS]


# ---- the cache ------------------------------------------------------------------------------

def test_tokens_holds_all_documents_in_order_with_source_bytes_and_log_probability(corpus, ids):
    assert corpus.tokens.tolist() == sum(ids, [])
    assert corpus.starts.tolist() == np.cumsum([0] + [len(i) for i in ids]).tolist()
    assert corpus.sources == ["a_short", "b_long"]
    assert corpus.source.tolist() == IS_LONG.astype(int).tolist()
    assert corpus.n_bytes.tolist() == [len(text.encode()) for text in TEXTS]
    assert corpus.logp.tolist() == LOGPS


def test_a_text_file_and_pieces_of_a_long_text_have_no_log_probabilities(read, tmp_path):
    lines = "".join(f"line {i} of many\n" for i in range(8000))
    write(tmp_path / "long.jsonl", dict(text=lines, logp=-5.0))
    for data in ("<|endoftext|>".join(TEXTS[:40]), tmp_path / "long.jsonl"):
        corpus = read(data, 0.5, print=str(data)[-5:])
        assert len(corpus.logp) > 3 and np.isnan(corpus.logp).all()
        assert np.isnan(corpus.entropy(np.arange(len(corpus.logp)))).all()


@pytest.fixture
def encode(monkeypatch):
    """Counts how often a text is encoded."""
    monkeypatch.setattr(corpus_module, "encode", Mock(wraps=corpus_module.encode))
    return corpus_module.encode


def test_the_cache_is_reused_until_the_text_or_the_tokenizer_changes(
        data, read, tmp_path, tiny_tokenizer, encode):
    first, second = (read(data, 0.2, print=fingerprint(data)) for _ in range(2))
    assert encode.call_count == 1
    assert np.array_equal(first.tokens, second.tokens)
    assert np.array_equal(first.held_out, second.held_out)
    write(tmp_path / "a_short.jsonl", SHORT[0], dict(text="Something else."), *SHORT[2:])
    other = type(tiny_tokenizer).train("another text, another text", 265)
    for n, tok in ((2, tiny_tokenizer), (3, other)):
        corpus = read(data, tok=tok, print=fingerprint(data))
        changed = corpus.tokens[corpus.starts[1] + 1:corpus.starts[2]]
        assert encode.call_count == n and tok.decode(changed) == "Something else."


@pytest.mark.parametrize("name", ["tokens.bin", "docs.npz"])
@pytest.mark.parametrize("damage", [Path.unlink, lambda file: os.truncate(file, 0),
                                    lambda file: os.truncate(file, file.stat().st_size // 2)])
def test_a_cache_that_lacks_something_is_made_again(data, read, tmp_path, ids, name, damage):
    """As in open-lm-engine/lm-engine 53 and osaurus-ai/vmlx-swift 217."""
    read(data)
    cache, = (tmp_path / "cache").iterdir()
    damage(cache / name)
    shutil.copytree(cache, f"{cache}.8_hex3kb")       # of a run that was killed
    again = read(data)
    assert again.tokens.tolist() == sum(ids, []) and again.sources == ["a_short", "b_long"]


def test_a_disk_that_fails_is_told_with_its_place_and_leaves_nothing(
        data, read, tmp_path, monkeypatch):
    error = OSError(errno.EIO, os.strerror(errno.EIO))
    monkeypatch.setattr(corpus_module, "write", Mock(side_effect=error))
    with pytest.raises(OSError, match=f"{tmp_path}.*{os.strerror(errno.EIO)}.*another --out"):
        read(data)
    assert not list((tmp_path / "cache").iterdir())


def test_the_other_ranks_wait_and_do_not_encode(data, read, encode):
    def wait():                                       # meanwhile rank 0 writes the cache
        assert not encode.called
        read(data)

    read(data, main=False, wait=wait)
    assert encode.call_count == 1


def test_two_bytes_hold_a_vocabulary_of_65536_and_a_larger_one_takes_four(data, read):
    wide = SimpleNamespace(vocab_size=65_537, eot=65_536, pad=65_535, fingerprint="wide",
                           encode_batch=lambda texts: [[65_534, 65_533] for _ in texts])
    corpus, document = read(data, tok=wide), [65_536, 65_534, 65_533]
    assert id_type(SimpleNamespace(vocab_size=65_536)) == np.uint16
    assert corpus.tokens.dtype == np.uint32 and corpus.tokens[:6].tolist() == document * 2
    assert corpus.shuffle(100, seed=0).rows(0, 1, 5).tolist() == [document * 2]


LINES = "".join("word " * (37 * i % 200) + "\n" for i in range(200))


@pytest.mark.parametrize("text", [LINES, "", "x" * PIECE, "x" * (2 * PIECE + 1), "\n" + "x" * PIECE,
                                  "\n" * (PIECE + 1)], ids=lambda t: f"{len(t)} {t[:2]!r}")
def test_a_long_text_is_cut_at_line_ends_if_there_are_any_and_nothing_is_lost(text):
    parts = list(pieces(text))
    assert "".join(parts) == text and all(1 <= len(part) <= PIECE for part in parts)
    assert text != LINES or len(parts) > 3 and all(part.endswith("\n") for part in parts)


# ---- the split ------------------------------------------------------------------------------

@pytest.mark.parametrize("share", [0.1, 0.5])
def test_a_hash_of_the_text_without_surrounding_blanks_decides_whether_it_is_held_out(read, share):
    digests = [sha256(text.encode()).digest() for text in TEXTS]
    for name, texts in (("plain", TEXTS), ("spaced", [f" {text}\n" for text in TEXTS])):
        assert read(texts, share, print=name).held_out.tolist() == [
            int.from_bytes(digest[:6], "little") / 2**48 < share for digest in digests]


@pytest.mark.parametrize("data, reason", [
    (["The same licence. " * 9] * 2, "a single short document, 2 times, can't be split"),
    ("H", "a single short document can't be split")])
def test_a_text_that_cannot_be_split_is_refused(read, data, reason):
    with pytest.raises(ValueError, match=reason):
        read(data)


@pytest.mark.parametrize("share, held, extreme", [(0.0, True, min), (1.0, False, max)])
def test_neither_side_of_the_split_is_empty(read, data, share, held, extreme):
    corpus = read(data, share)
    chosen, = corpus.lengths[corpus.held_out == held]
    assert chosen == extreme(corpus.lengths)


def test_of_a_single_book_the_last_tenth_is_held_out_whatever_its_hash(read):
    for i in range(30):                               # some first parts have a hash below 5%
        book = "".join(f"Book {i}, line {n}.\n" for n in range(60))
        corpus = read(book, print=str(i))
        assert corpus.held_out.tolist() == [False, True]
    first, second = (corpus.tok.decode(corpus.tokens[a + 1:b].tolist())
                     for a, b in zip(corpus.starts, corpus.starts[1:]))
    assert first + second == book.strip("\n") and 0.85 < len(first) / len(book) < 0.95
    assert first.endswith("\n")


# ---- the stream of training rows ------------------------------------------------------------

@pytest.mark.parametrize("T", [1, 7, 64, 500])
@pytest.mark.parametrize("mix", ["", "a_short=0.5,b_long=0.5"])
def test_rows_are_slices_of_the_documents_in_shuffled_order(corpus, ids, T, mix):
    n = int(corpus.lengths.sum()) // T                # more than an epoch
    corpus.shuffle(n * T + 1, seed=3, mix=mix)
    line = sum((ids[d] for d in corpus.order), [])
    rows = torch.cat([corpus.rows(0, 3, T), corpus.rows(3, 1, T), corpus.rows(4, n - 4, T)])
    assert rows.tolist() == [line[i * T:(i + 1) * T + 1] for i in range(n)]


def test_the_seed_determines_the_order(corpus):
    order, again, other = (corpus.shuffle(1000, seed).order.tolist() for seed in (3, 3, 4))
    assert order == again != other


@pytest.mark.parametrize("mix", ["", "a_short=0.5,b_long=0.5"])
def test_an_epoch_of_all_or_of_a_source_in_a_mixture_holds_each_document_once(corpus, mix):
    order = corpus.shuffle(3 * corpus.lengths.sum(), seed=3, mix=mix).order
    for source in (0, 1) if mix else [(0, 1)]:
        train = np.flatnonzero(~corpus.held_out & np.isin(corpus.source, source)).tolist()
        mine = order[np.isin(corpus.source[order], source)].tolist()
        first, second = mine[:len(train)], mine[len(train):2 * len(train)]
        assert sorted(first) == train and second and first[:len(second)] != second
        assert mix or sorted(second) == train


@pytest.mark.parametrize("mix, short", [("a_short=0.7,b_long=0.3", 0.7), ("b_long=1", 0.0),
                                        ("a_short=1,b_long=3", 0.25), ("", None)])
def test_each_source_has_its_share_of_the_tokens(corpus, mix, short):
    n = 400_000
    corpus.shuffle(n, seed=3, mix=mix)
    lengths = np.where(corpus.ends <= n, corpus.lengths[corpus.order], 0)
    share = lengths[~IS_LONG[corpus.order]].sum() / lengths.sum()
    if short is None:                                 # by default: the sources' sizes
        train = corpus.lengths * ~corpus.held_out
        short = train[~IS_LONG].sum() / train.sum()
    assert share == pytest.approx(short, abs=0.02)


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("mix, reason", [
    *((mix, "the text has a_short, b_long") for mix in ("stories=0.5", "a_short=0.5,stories=0.5")),
    *((mix, "--mix=") for mix in ("a_short=much", "a_short=0", "a_short=-1,b_long=2",
                                  "a_short=nan", "a_short=0.5,b_long"))])
def test_a_mixture_that_makes_no_sense_is_a_value_error(corpus, mix, reason):
    with pytest.raises(ValueError, match=reason):
        corpus.shuffle(100, seed=0, mix=mix)


def test_the_order_is_long_enough_if_a_few_documents_hold_most_of_the_text(read):
    docs = [f"{i}" for i in range(3000)] + [f"{i} " + "x y " * 3900 for i in range(9)]
    corpus = read(docs, 0.1)
    for seed in range(20):
        corpus.shuffle(20 * 64 + 1, seed).rows(0, 20, 64)


# ---- the held-out rows ----------------------------------------------------------------------

@pytest.mark.parametrize("T, n_rows", [(4, 2000), (50, 2000), (300, 2000), (100, 1), (100, 5)])
def test_held_out_documents_fill_rows_and_only_one_longer_than_a_row_is_cut(corpus, ids, T, n_rows):
    *found, docs = corpus.held_out_rows(T, n_rows)
    packed, padding = [], [(corpus.tok.pad, -1, 0)]   # input, what is predicted, source
    for d in docs:
        if len(packed) % T + len(ids[d]) > T:
            packed += padding * (-len(packed) % T)
        packed += zip(ids[d], [*ids[d][1:], corpus.tok.eot], [corpus.source[d]] * len(ids[d]))
    packed += padding * (-len(packed) % T)
    for tensor, expected in zip(found, zip(*packed), strict=True):
        assert len(tensor) <= n_rows and tensor.tolist() == np.reshape(expected, (-1, T)).tolist()
    held_out = np.flatnonzero(corpus.held_out).tolist()
    assert sorted(docs) == held_out if n_rows == 2000 else {*docs} < {*held_out}


def test_too_few_rows_for_a_held_out_document_are_refused(corpus):
    with pytest.raises(ValueError, match="1 rows of 1 tokens are too few .* raise --eval_rows"):
        corpus.held_out_rows(1, 1)


# ---- the lowest loss possible ---------------------------------------------------------------

@pytest.mark.parametrize("mix", ["", "a_short=0.7,b_long=0.3"])
def test_entropy_is_minus_the_log_probability_of_source_and_text_per_token(corpus, ids, mix):
    train = [[d for d in range(210) if not corpus.held_out[d] and IS_LONG[d] == s] for s in (0, 1)]
    tokens = [sum(len(ids[d]) for d in docs) for docs in train]
    if mix:                       # how many documents of each make 70% and 30% of the tokens?
        often = [0.7 / (tokens[0] / len(train[0])), 0.3 / (tokens[1] / len(train[1]))]
    else:
        often = [len(docs) for docs in train]
    found, docs = corpus.entropy(np.arange(0, 210, 3), mix), range(0, 210, 3)
    for s in (0, 1):
        mine = [d for d in docs if IS_LONG[d] == s]
        nats = sum(-math.log(often[s] / sum(often)) - LOGPS[d] for d in mine)
        assert found[s] == pytest.approx(nats / sum(len(ids[d]) for d in mine))


def test_shares_are_the_sources_parts_of_the_tokens(corpus, ids):
    docs = np.array([0, 5, 160, 170])
    short, long = len(ids[0]) + len(ids[5]), len(ids[160]) + len(ids[170])
    assert corpus.shares(docs) == pytest.approx([short / (short + long), long / (short + long)])
