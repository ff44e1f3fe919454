import errno
import json
import math
import os
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from checkpoint import fingerprint
from data import corpus as corpus_module
from data.corpus import PIECE, Corpus, id_type, pieces


def sentences(n, words, seed):
    """n different texts, each with a made-up log-probability."""
    rng = random.Random(seed)
    bag = "Ada Ashton lives on Mill Street and has a cat . 12 + 30 = 42 fox river".split()
    return [(f"{seed}.{i} " + " ".join(rng.choices(bag, k=rng.randrange(1, 2 * words))),
             -rng.uniform(5, 50)) for i in range(n)]


SHORT, LONG = sentences(150, 6, seed=1), sentences(60, 30, seed=2)
TEXTS = [text for text, _ in SHORT + LONG]
LOGPS = [logp for _, logp in SHORT + LONG]
IS_LONG = np.array([False] * 150 + [True] * 60)


def write(path, docs):
    path.write_text("".join(json.dumps(dict(text=t, logp=p)) + "\n" for t, p in docs))


@pytest.fixture
def data(tmp_path):
    write(tmp_path / "a_short.jsonl", SHORT)
    write(tmp_path / "b_long.jsonl", LONG)
    return f"{tmp_path}/a_short.jsonl,{tmp_path}/b_long.jsonl"


@pytest.fixture
def corpus(data, tmp_path, tiny_tokenizer):
    return Corpus(data, tiny_tokenizer, tmp_path / "cache", "print", val_share=0.2)


@pytest.fixture
def ids(tiny_tokenizer):
    """The expected ids of every document."""
    return [[tiny_tokenizer.eot] + tiny_tokenizer.encode(text) for text in TEXTS]


# ---------------------------------------------------------------------------------------------
# the cache

def test_tokens_holds_all_documents_in_order(corpus, ids):
    assert corpus.tokens.tolist() == sum(ids, [])
    assert corpus.starts.tolist() == np.cumsum([0] + [len(i) for i in ids]).tolist()


def test_each_document_knows_its_source_bytes_and_log_probability(corpus):
    assert corpus.sources == ["a_short", "b_long"]
    assert corpus.source.tolist() == IS_LONG.astype(int).tolist()
    assert corpus.n_bytes.tolist() == [len(text.encode()) for text in TEXTS]
    assert corpus.logp.tolist() == LOGPS


def test_endoftext_typed_in_a_text_is_not_the_special_token(tmp_path, tiny_tokenizer):
    docs = [(f"{i} a <|endoftext|> that somebody typed", None) for i in range(30)]
    write(tmp_path / "typed.jsonl", docs)
    corpus = Corpus(tmp_path / "typed.jsonl", tiny_tokenizer, tmp_path / "cache", "print", 0.5)
    assert (corpus.tokens == tiny_tokenizer.eot).sum() == 30


def test_a_text_file_has_no_log_probabilities(tmp_path, tiny_tokenizer):
    (tmp_path / "book.txt").write_text("<|endoftext|>".join(TEXTS[:40]))
    corpus = Corpus(tmp_path / "book.txt", tiny_tokenizer, tmp_path / "cache", "print", 0.5)
    assert len(corpus.logp) == 40 and np.isnan(corpus.logp).all()
    assert np.isnan(corpus.entropy(np.arange(40))).all()


@pytest.fixture
def encodings(monkeypatch):
    """Counts how often a text is encoded."""
    calls, encode = [], corpus_module.encode
    monkeypatch.setattr(corpus_module, "encode", lambda *args: (calls.append(1), encode(*args)))
    return calls


def test_the_cache_is_reused(data, tmp_path, tiny_tokenizer, encodings):
    first, second = (Corpus(data, tiny_tokenizer, tmp_path / "cache", fingerprint(data), 0.2)
                     for _ in range(2))
    assert len(encodings) == 1
    assert np.array_equal(first.tokens, second.tokens)
    assert np.array_equal(first.held_out, second.held_out)


def test_the_cache_is_made_anew_when_the_text_has_changed(data, tmp_path, tiny_tokenizer,
                                                          encodings):
    Corpus(data, tiny_tokenizer, tmp_path / "cache", fingerprint(data), 0.2)
    changed = [SHORT[0], ("Something else.", -1.0)] + SHORT[2:]
    write(tmp_path / "a_short.jsonl", changed)
    corpus = Corpus(data, tiny_tokenizer, tmp_path / "cache", fingerprint(data), 0.2)
    assert len(encodings) == 2
    second = corpus.tokens[corpus.starts[1]:corpus.starts[2]]
    assert tiny_tokenizer.decode(second[1:]) == "Something else."


def test_another_tokenizer_has_a_cache_of_its_own(data, tmp_path, tiny_tokenizer, encodings):
    other = type(tiny_tokenizer).train("another text, another text", 265)
    for tok in (tiny_tokenizer, other):
        corpus = Corpus(data, tok, tmp_path / "cache", "print", 0.2)
        assert tok.decode(corpus.tokens[1:corpus.starts[1]]) == TEXTS[0]
    assert len(encodings) == 2


@pytest.mark.parametrize("ending", ["", ".8_hex3kb"])
def test_an_unfinished_cache_is_not_used(data, tmp_path, tiny_tokenizer, ids, ending):
    left = tmp_path / "cache" / f"{tiny_tokenizer.fingerprint}-print{ending}"
    left.mkdir(parents=True)
    (left / "tokens.bin").write_bytes(b"half a file")
    corpus = Corpus(data, tiny_tokenizer, tmp_path / "cache", "print", 0.2)
    assert corpus.tokens.tolist() == sum(ids, [])


@pytest.mark.parametrize("reason, room", [(errno.ENOSPC, True), (errno.EIO, False)])
def test_a_disk_that_fails_is_told_with_its_place_and_reason(data, tmp_path, tiny_tokenizer,
                                                             monkeypatch, reason, room):
    def fails(*_):
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(corpus_module, "write", fails)
    with pytest.raises(OSError, match=f"{tmp_path}.*{os.strerror(reason)}") as error:
        Corpus(data, tiny_tokenizer, tmp_path / "cache", "print", 0.2)
    assert ("make room there" in str(error.value)) == room
    assert not list((tmp_path / "cache").iterdir())


def test_the_other_ranks_wait_and_do_not_encode(data, tmp_path, tiny_tokenizer, encodings):
    def wait():                                       # meanwhile rank 0 writes the cache
        Corpus(data, tiny_tokenizer, tmp_path / "cache", "print", 0.2)
        encodings.append("rank 0 is done")

    Corpus(data, tiny_tokenizer, tmp_path / "cache", "print", 0.2, main=False, wait=wait)
    assert encodings == [1, "rank 0 is done"]


def test_ids_of_a_large_vocabulary_take_four_bytes(data, tmp_path):
    wide = SimpleNamespace(vocab_size=70_000, eot=69_999, pad=69_998, fingerprint="wide",
                           encode_batch=lambda texts: [[65_535, 65_536, 69_997] for _ in texts])
    corpus = Corpus(data, wide, tmp_path / "cache", "print", 0.2)
    assert corpus.tokens.dtype == np.uint32
    assert corpus.tokens[:8].tolist() == [69_999, 65_535, 65_536, 69_997] * 2
    row = corpus.shuffle(100, seed=0).rows(0, 1, 7)
    assert row.tolist() == [[69_999, 65_535, 65_536, 69_997] * 2]


def test_two_bytes_hold_a_vocabulary_of_65536():
    assert id_type(SimpleNamespace(vocab_size=65_536)) == np.uint16
    assert id_type(SimpleNamespace(vocab_size=65_537)) == np.uint32


def test_a_long_text_is_cut_at_line_ends_and_nothing_is_lost():
    rng = random.Random(0)
    text = "".join("word " * rng.randrange(200) + "\n" for _ in range(200))
    parts = list(pieces(text))
    assert len(parts) > 3 and "".join(parts) == text
    assert all(len(part) <= PIECE and part.endswith("\n") for part in parts)


@pytest.mark.parametrize("text", ["", "x" * PIECE, "x" * (2 * PIECE + 1), "\n" + "x" * PIECE,
                                  "\n" * (PIECE + 1)], ids=lambda t: f"{len(t)} {t[:2]!r}")
def test_a_text_without_line_ends_is_cut_too(text):
    parts = list(pieces(text))
    assert "".join(parts) == text and all(1 <= len(part) <= PIECE for part in parts)


def test_pieces_of_a_long_text_have_no_log_probability(tmp_path, tiny_tokenizer):
    text = "".join(f"line {i} of many\n" for i in range(8000))
    write(tmp_path / "long.jsonl", [(text, -5.0)])
    corpus = Corpus(tmp_path / "long.jsonl", tiny_tokenizer, tmp_path / "cache", "print", 0.5)
    assert len(corpus.logp) > 3 and np.isnan(corpus.logp).all()


# ---------------------------------------------------------------------------------------------
# the split

def test_about_the_wanted_share_is_held_out(data, tmp_path, tiny_tokenizer):
    for share in (0.1, 0.5):
        corpus = Corpus(data, tiny_tokenizer, tmp_path / "cache", "print", share)
        assert abs(corpus.held_out.mean() - share) < 0.1


def test_two_copies_of_a_text_are_on_the_same_side_of_the_split(tmp_path, tiny_tokenizer):
    write(tmp_path / "a.jsonl", SHORT + SHORT)
    write(tmp_path / "b.jsonl", SHORT)
    corpus = Corpus(tmp_path, tiny_tokenizer, tmp_path / "cache", "print", 0.3)
    first, second, third = corpus.held_out.reshape(3, -1)
    assert first.any() and not first.all()
    assert np.array_equal(first, second) and np.array_equal(first, third)


@pytest.mark.parametrize("docs", [
    [text for text, _ in SHORT[:4] for _ in range(3)],        # none has a hash below the share
    [SHORT[4][0]] * 40 + [text for text, _ in SHORT[:8]],     # the one that has is most of the text
    ["One text. " * 30] * 20 + ["Another. " * 30] * 20,
    [text + end for text, _ in SHORT[:12] for end in ("", " ", "\n")]], ids=len)
def test_all_copies_of_a_text_are_on_one_side_and_both_sides_get_a_fair_share(docs, tmp_path,
                                                                             tiny_tokenizer):
    write(tmp_path / "a.jsonl", [(text, None) for text in docs])
    corpus = Corpus(tmp_path / "a.jsonl", tiny_tokenizer, tmp_path / "cache", "print")
    train, held = ({docs[i].strip() for i in np.flatnonzero(corpus.held_out == side)}
                   for side in (False, True))
    assert train and held and not train & held
    assert 0.01 < corpus.lengths[corpus.held_out].sum() / corpus.lengths.sum() <= 0.5


def test_a_text_with_few_different_documents_says_so(tmp_path, tiny_tokenizer, capsys):
    write(tmp_path / "a.jsonl", [("One text.", None), ("Another.", None)] * 4)
    corpus = Corpus(tmp_path / "a.jsonl", tiny_tokenizer, tmp_path / "cache", "print")
    share = corpus.lengths[corpus.held_out].sum() / corpus.lengths.sum()
    assert capsys.readouterr().err == (f"{tmp_path / 'a.jsonl'}: 8 documents, 2 of them different: "
                                       f"{share:.1%} of the tokens are held out\n")


def test_copies_of_a_single_text_are_refused(tmp_path, tiny_tokenizer):
    write(tmp_path / "a.jsonl", [("The same licence in every file. " * 9, None)] * 50)
    with pytest.raises(ValueError, match="a single short document, 50 times, can't be split"):
        Corpus(tmp_path / "a.jsonl", tiny_tokenizer, tmp_path / "cache", "print")


def test_of_a_single_book_the_last_tenth_is_held_out_whatever_its_hash(tmp_path, tiny_tokenizer):
    for i in range(30):                               # some first parts have a hash below 5%
        (tmp_path / "a.txt").write_text(f"Book {i}. " + "One more line.\n" * 60)
        corpus = Corpus(tmp_path / "a.txt", tiny_tokenizer, tmp_path / "cache", str(i))
        assert corpus.held_out.tolist() == [False, True]


@pytest.mark.parametrize("share, n_held_out", [(0.0, 1), (1.0, -1)])
def test_neither_side_of_the_split_is_empty(share, n_held_out, data, tmp_path, tiny_tokenizer):
    corpus = Corpus(data, tiny_tokenizer, tmp_path / "cache", "print", share)
    assert corpus.held_out.sum() == n_held_out % len(corpus.source)
    chosen, = corpus.lengths[corpus.held_out == (n_held_out > 0)]
    assert chosen == (corpus.lengths.min() if n_held_out > 0 else corpus.lengths.max())


def test_a_single_book_is_cut_into_text_to_learn_from_and_text_to_evaluate_on(tmp_path,
                                                                              tiny_tokenizer):
    book = "".join(f"Line {i} of the book.\n" for i in range(300))   # 6 kB
    (tmp_path / "book.txt").write_text(book)
    corpus = Corpus(tmp_path / "book.txt", tiny_tokenizer, tmp_path / "cache", "print")
    assert corpus.held_out.tolist() == [False, True]
    first, second = (tiny_tokenizer.decode(corpus.tokens[a + 1:b].tolist())
                     for a, b in zip(corpus.starts, corpus.starts[1:]))
    assert first + second == book.strip("\n") and 0.85 < len(first) / len(book) < 0.95
    assert first.endswith("\n")


def test_a_text_too_short_to_be_cut_is_refused(tmp_path, tiny_tokenizer):
    (tmp_path / "a.txt").write_text("H")
    with pytest.raises(ValueError, match="a single short document can't be split"):
        Corpus(tmp_path / "a.txt", tiny_tokenizer, tmp_path / "cache", "print")


# ---------------------------------------------------------------------------------------------
# the stream of training rows

@pytest.mark.parametrize("T", [1, 7, 64, 500])
@pytest.mark.parametrize("mix", ["", "a_short=0.5,b_long=0.5"])
def test_rows_are_slices_of_the_documents_in_shuffled_order(corpus, ids, T, mix):
    corpus.shuffle(6 * T + 1, seed=3, mix=mix)
    line = sum((ids[d] for d in corpus.order), [])
    assert corpus.rows(0, 6, T).tolist() == [line[i * T:(i + 1) * T + 1] for i in range(6)]


def test_rows_do_not_depend_on_how_many_are_asked_for_at_once(corpus):
    corpus.shuffle(1000, seed=3)
    parts = [corpus.rows(0, 3, 32), corpus.rows(3, 1, 32), corpus.rows(4, 6, 32)]
    assert torch.equal(torch.cat(parts), corpus.rows(0, 10, 32))


def test_the_seed_determines_the_order(corpus):
    first, again, other = (corpus.shuffle(1000, seed).rows(0, 10, 32) for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_an_epoch_holds_each_training_document_exactly_once(corpus):
    train = np.flatnonzero(~corpus.held_out).tolist()
    order = corpus.shuffle(3 * corpus.lengths.sum(), seed=3).order.tolist()
    first, second = order[:len(train)], order[len(train):2 * len(train)]
    assert sorted(first) == train and sorted(second) == train
    assert first != second


def test_an_epoch_of_a_source_in_a_mixture_holds_each_document_once(corpus):
    order = corpus.shuffle(3 * corpus.lengths.sum(), seed=3, mix="a_short=0.5,b_long=0.5").order
    for source in (0, 1):
        train = np.flatnonzero(~corpus.held_out & (corpus.source == source)).tolist()
        mine = [d for d in order.tolist() if corpus.source[d] == source]
        assert len(mine) > len(train) and sorted(mine[:len(train)]) == train


def test_held_out_documents_never_occur_in_training_rows(corpus, tiny_tokenizer):
    corpus.shuffle(2 * corpus.lengths.sum(), seed=3)
    n = int(2 * corpus.lengths.sum()) // 50
    seen = "".join(tiny_tokenizer.decode(row) for row in corpus.rows(0, n, 50)[:, :-1])
    seen = set(seen.split("<|endoftext|>"))
    held_out = {TEXTS[d] for d in np.flatnonzero(corpus.held_out)}
    assert not held_out & seen
    assert len(seen & set(TEXTS)) == len(TEXTS) - len(held_out)


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


@pytest.mark.parametrize("mix", ["stories=0.5", "a_short=0.5,stories=0.5"])
def test_a_mixture_of_unknown_sources_is_a_value_error(corpus, mix):
    with pytest.raises(ValueError, match="the text has a_short, b_long"):
        corpus.shuffle(100, seed=0, mix=mix)


@pytest.mark.filterwarnings("ignore:invalid value")
@pytest.mark.parametrize("mix", ["a_short=much", "a_short=0", "a_short=-1,b_long=2", "a_short=nan",
                                 "a_short=0.5,b_long"])
def test_a_mixture_that_makes_no_sense_is_a_value_error(corpus, mix):
    with pytest.raises(ValueError, match="--mix="):
        corpus.shuffle(100, seed=0, mix=mix)


def test_the_order_is_long_enough_if_a_few_documents_hold_most_of_the_text(tmp_path,
                                                                           tiny_tokenizer):
    docs = [(f"{i}", None) for i in range(3000)]
    docs += [(f"{i} " + "x y " * 3900, None) for i in range(9)]
    write(tmp_path / "skewed.jsonl", docs)
    corpus = Corpus(tmp_path / "skewed.jsonl", tiny_tokenizer, tmp_path / "cache", "print", 0.1)
    for seed in range(20):
        corpus.shuffle(20 * 64 + 1, seed).rows(0, 20, 64)


# ---------------------------------------------------------------------------------------------
# the held-out rows

@pytest.mark.parametrize("T", [4, 50, 300])
def test_each_token_of_a_held_out_document_is_predicted_exactly_once(corpus, ids, T):
    _, y, _, docs = corpus.held_out_rows(T, 2000)
    assert sorted(docs) == np.flatnonzero(corpus.held_out).tolist()
    expected = [ids[d][1:] + [corpus.tok.eot] for d in docs]          # the text, and its end
    assert y[y != -1].tolist() == sum(expected, [])


@pytest.mark.parametrize("T", [4, 50, 300])
def test_within_a_held_out_document_y_is_x_shifted_by_one(corpus, T):
    x, y, _, _ = corpus.held_out_rows(T, 2000)
    inner = (y[:, :-1] != -1) & (y[:, :-1] != corpus.tok.eot)
    assert inner.any() and torch.equal(x[:, 1:][inner], y[:, :-1][inner])


def test_a_held_out_document_that_fits_a_row_is_not_cut(corpus):
    x, y, _, docs = corpus.held_out_rows(300, 2000)
    assert (corpus.lengths[docs] <= 300).all()
    starts, ends = (x == corpus.tok.eot).sum(1), (y == corpus.tok.eot).sum(1)
    assert torch.equal(starts, ends) and starts.sum() == len(docs)
    assert (x[:, 0] == corpus.tok.eot).all()


def test_held_out_rows_name_the_source_of_each_prediction(corpus, ids):
    _, y, source, docs = corpus.held_out_rows(50, 2000)
    expected = [corpus.source[d] for d in docs for _ in ids[d]]
    assert source[y != -1].tolist() == expected


def test_there_are_at_most_n_rows_held_out_rows(corpus):
    for n_rows in (1, 2, 5):
        x, y, source, docs = corpus.held_out_rows(100, n_rows)
        assert x.shape == y.shape == source.shape and len(x) <= n_rows
        assert (y != -1).sum() == corpus.lengths[docs].sum()


def test_padding_is_not_predicted(corpus):
    x, y, _, _ = corpus.held_out_rows(100, 50)
    assert ((x == corpus.tok.pad) == (y == -1)).all()


def test_too_few_rows_for_any_held_out_document_is_a_value_error(corpus):
    with pytest.raises(ValueError, match="1 rows of 1 tokens are too few .* raise --eval_rows"):
        corpus.held_out_rows(1, 1)


# ---------------------------------------------------------------------------------------------
# the lowest loss possible

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
