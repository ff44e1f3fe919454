"""The tests compare with the libraries transformers and tokenizers if they are installed. Without
them, they compare with tiktoken, GPT-2's published ids, and files that the tests write."""

import json
import math
import os
import random
import sys
from dataclasses import replace
from functools import partial, reduce
from importlib import import_module
from operator import getitem
from pathlib import Path
from types import SimpleNamespace

import pytest
import regex
import tiktoken
import torch

from checkpoint import load_checkpoint
from model import GPT, STYLES, GPTConfig
from tiny import loud, store
from tokenizer import CHAT, GPT2, PATTERNS, SPECIALS, Tokenizer
from tools import gguf_file, hf
from tools.hf import BYTE_CHARS, tokenizer_from_hf, tokenizer_to_hf

ROOT = Path(hf.__file__).resolve().parents[1]
TEXT = (ROOT / "tokenizer.py").read_text(encoding="utf-8")
LEARNED = Tokenizer.train(TEXT, 400, "gpt2")
GPT2_FILES = [ROOT.parent / "shared" / "gpt2" / name for name in ("encoder.json", "vocab.bpe")]
PARTS = ["a", "it", " the", "'s", "'S", " ", "  ", "\n", "\t", "\r\n", "\xa0", "\x85", "\x1c",
         "1", "42", "½", "Ⅷ", "٣", "-", "!", "é", "漢字", "😊", "\0", "return ", "self.", "\u2028",
         "b", "aa", "aaa", "ab ", "then ", "'ll", "👩‍👩‍👧", "한국어", "ไทย", "\u200b"]


def texts(n, seed=0, most=12):
    rng = random.Random(seed)
    return ["".join(rng.choices(PARTS, k=rng.randrange(most))) for _ in range(n)]


@pytest.fixture(autouse=True)
def safetensors(monkeypatch):
    """The library; where it is not installed, torch's own format stands in for it."""
    try:
        return import_module("safetensors.torch")
    except ImportError:
        stand_in = SimpleNamespace(
            load_file=lambda path: torch.load(open(path, "rb"), weights_only=True),
            save_file=lambda weights, path, metadata=None: torch.save(weights, path))
        monkeypatch.setitem(sys.modules, "safetensors.torch", stand_in)
        return stand_in


@pytest.fixture
def run(run_script):
    """run("import", …) -> exit status, stdout, stderr of that command"""
    return partial(run_script, "tools/hf")


@pytest.fixture
def refused(refused):
    """refused("import", …) -> the one line with the error"""
    return partial(refused, "tools/hf")


@pytest.fixture
def take(run):
    """take(folder) -> the model and the tokenizer that the import makes of it"""
    def take(source, *flags):
        status, _, err = run("import", source, "p.pt", "--fresh", *flags)
        assert status == 0, err
        ckpt = load_checkpoint("p.pt", "pretrain")
        return ckpt["model"].eval(), ckpt["tokenizer"]
    return take


def same(ours, model, tok):
    """Whether a model came back as it was."""
    assert model.config == ours.config and tok.to_dict() == LEARNED.to_dict()
    assert all(model.state_dict()[name].equal(w) for name, w in ours.state_dict().items())


def close(ours, theirs):
    """Ours and transformers' give the same logits, and so the same most probable tokens."""
    idx = torch.randint(0, 394, (2, 32))
    mine, yours = ours(idx)[..., :394], theirs.eval()(idx).logits[..., :394]
    torch.testing.assert_close(mine, yours, rtol=0, atol=1e-4)
    assert mine.argmax(-1).equal(yours.argmax(-1))


# ---- a tiny GPT-2, written by hand: 395 tokens in 400 rows ----------------------------------

C, V, KNOWN = 16, 400, 395
GPT2_CONFIG = dict(architectures=["GPT2LMHeadModel"], model_type="gpt2", n_positions=32, n_embd=C,
                   n_layer=2, n_head=2, vocab_size=V, layer_norm_epsilon=1e-5,
                   activation_function="gelu_new")
LLAMA_CONFIG = dict(architectures=["LlamaForCausalLM"], model_type="llama", vocab_size=V,
                    max_position_embeddings=32, num_hidden_layers=2, num_attention_heads=4,
                    num_key_value_heads=2, hidden_size=C, intermediate_size=24, hidden_act="silu",
                    rms_norm_eps=1e-6)
QWEN_CONFIG = LLAMA_CONFIG | dict(architectures=["Qwen2ForCausalLM"], model_type="qwen2")
LLAMA_3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
               original_max_position_embeddings=8192)


def gpt2_weights():
    shapes = {"wte.weight": (V, C), "wpe.weight": (32, C), "ln_f.weight": (C,), "ln_f.bias": (C,)}
    for i in range(2):
        for name, wide in (("ln_1", ()), ("attn.c_attn", (3 * C,)), ("attn.c_proj", (C,)),
                           ("ln_2", ()), ("mlp.c_fc", (4 * C,)), ("mlp.c_proj", (C,))):
            rows = 4 * C if name == "mlp.c_proj" else C
            shapes[f"h.{i}.{name}.weight"] = (rows, *wide)
            shapes[f"h.{i}.{name}.bias"] = wide or (C,)
    torch.manual_seed(0)
    return {f"transformer.{name}": torch.randn(shape) for name, shape in shapes.items()}


def tokenizer_json(tok=LEARNED, specials=None, **changes):
    names = {id: "".join(BYTE_CHARS[b] for b in token) for token, id in tok.ranks.items()}
    merges = [f"{names[a]} {names[b]}" for a, b in tok.merges]
    specials = {"<|endoftext|>": 394} if specials is None else specials
    off = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [dict(id=id, content=name, special=True, **off) for name, id in specials.items()]
    vocab = {name: id for id, name in names.items()} | specials
    return dict(model=dict(type="BPE", vocab=vocab, merges=merges), normalizer=None,
                pre_tokenizer=level(), added_tokens=added) | changes


def level(**options):
    return dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True) | options


def write(folder, config=GPT2_CONFIG, weights=None, tokenizer=None, parts=1):
    """parts: in how many files the weights are"""
    folder, weights = Path(folder), gpt2_weights() if weights is None else weights
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer or tokenizer_json()))
    for i in range(parts):
        file = "model.safetensors" if parts == 1 else f"model-{i}-of-{parts}.safetensors"
        import_module("safetensors.torch").save_file(
            {name: weights[name].clone() for name in [*weights][i::parts]}, folder / file)
    return folder


@pytest.fixture
def folder():
    return write("gpt2")


@pytest.mark.parametrize("files", ["one", "two", "that of 2019"])
def test_each_tensor_of_gpt2_is_copied_to_the_right_place(files, take):
    theirs = gpt2_weights()
    saved = theirs
    if files == "that of 2019":
        saved = {name.removeprefix("transformer."): w for name, w in theirs.items()} | {
            "h.0.attn.bias": torch.ones(1, 1, 32, 32).tril(),
            "h.1.attn.masked_bias": torch.tensor(-1e4),
            "lm_head.weight": theirs["transformer.wte.weight"].clone()}
    ours = take(write("gpt2", weights=saved, parts=1 + (files == "two")))[0].state_dict()
    for mine, yours in (("attn.qkv", "attn.c_attn"), ("attn.proj", "attn.c_proj"),
                        ("mlp.fc", "mlp.c_fc"), ("mlp.proj", "mlp.c_proj")):
        assert ours[f"blocks.1.{mine}.weight"].equal(theirs[f"transformer.h.1.{yours}.weight"].T)
        assert ours[f"blocks.1.{mine}.bias"].equal(theirs[f"transformer.h.1.{yours}.bias"])
    for mine, yours in (("blocks.0.norm_1", "h.0.ln_1"), ("blocks.0.norm_2", "h.0.ln_2"),
                        ("norm", "ln_f"), ("wpe", "wpe")):
        assert ours[f"{mine}.weight"].equal(theirs[f"transformer.{yours}.weight"])
    assert ours["wte.weight"][:KNOWN].equal(theirs["transformer.wte.weight"][:KNOWN])


@pytest.mark.parametrize("names", [["model.embed_tokens"], ["lm_head"],
                                   ["model.embed_tokens", "lm_head"]], ids=str)
def test_a_tied_llama_in_bf16_and_in_parts_may_have_its_matrix_under_either_name(names, take):
    tied = LLAMA_CONFIG | dict(tie_word_embeddings=True)
    _, config = hf.read_config(tied)
    ours = loud(GPT(config)).bfloat16()
    theirs = hf.to_theirs(hf.LLAMA, config, ours.state_dict())
    matrix = theirs.pop("model.embed_tokens.weight")
    theirs |= {f"{name}.weight": matrix.clone() for name in names}
    back = take(write("llama", tied, theirs, parts=3))[0].state_dict()
    for name, w in ours.float().state_dict().items():
        rows = KNOWN if name in ("wte.weight", "lm_head.weight") else None
        assert back[name][:rows].equal(w[:rows])


def test_the_import_prints_a_summary_and_the_next_command(folder, run):
    status, out, err = run("import", folder, "out/p.pt", "--block_size=8")
    assert "GPT2LMHeadModel" in out and "context of 8 " in out and "395 tokens and 5 new" in out
    assert "python sft.py --init=out/p.pt" in out and (status, err) == (0, "")
    entry, = load_checkpoint("out/p.pt", "pretrain")["history"]
    assert entry["stage"] == "pretrain" and entry["config"]["init"] == str(folder)
    _, out, _ = run("import", folder, "my out/p.pt", "--block_size=8")
    assert "python sft.py --init='my out/p.pt'" in out


# ---- new rows in the embedding, shorter contexts --------------------------------------------

def test_rows_without_a_token_are_dropped(take):
    weights = gpt2_weights()
    weights["transformer.wte.weight"] = torch.cat((weights["transformer.wte.weight"],
                                                   torch.full((600, C), 1e9)))
    model, tok = take(write("wide", GPT2_CONFIG | dict(vocab_size=1000), weights))
    assert model.config.vocab_size == tok.vocab_size == 400 == KNOWN + len(SPECIALS) - 1
    assert model.wte.weight.abs().max() < 1e3


def test_a_new_row_starts_near_the_mean_of_the_old_rows(folder, take):
    wte = take(folder)[0].wte.weight
    old, new = wte[:KNOWN], wte[KNOWN:]
    assert (new - old.mean(0)).abs().max() < 0.5 * old.std()
    assert len(new.unique(dim=0)) == 5


@pytest.mark.parametrize("same", [False, True])
def test_an_untied_output_layer_gets_new_rows_and_stays_untied_even_if_it_is_the_same(same, take):
    weights = gpt2_weights()
    head = weights["transformer.wte.weight"] if same else torch.randn(V, C)
    folder = write("untied", GPT2_CONFIG | dict(tie_word_embeddings=False),
                   weights | {"lm_head.weight": head})
    model, _ = take(folder)
    assert not model.config.tied and model.lm_head.weight[:KNOWN].equal(head[:KNOWN])
    assert model.lm_head.weight.equal(model.wte.weight) == same


def test_a_shorter_context_gives_the_same_logits(folder, take):
    long, short, idx = take(folder)[0], take(folder, "--block_size=8")[0], torch.arange(8)[None]
    assert short.config.block_size == 8 and long(idx).equal(short(idx))


@pytest.mark.parametrize("flag, reason", [
    ("--block_size=33", "must be between 1 and 32"), ("--chat=7", "is neither ours nor own")])
def test_a_flag_with_a_wrong_value_is_named(flag, reason, folder, refused):
    assert f"{flag} {reason}" in refused("import", folder, "p.pt", flag)
    assert not Path("p.pt").exists()


# ---- the tokenizer --------------------------------------------------------------------------

def imported(saved):
    return tokenizer_from_hf(json.loads(json.dumps(saved)))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_an_exported_tokenizer_comes_back_unchanged(pattern):
    tok = Tokenizer.train(TEXT, 350, pattern)
    back, known = imported(tokenizer_to_hf(tok))
    assert back.to_dict() == tok.to_dict() and known == 350


def gpt2s_files():
    if not all(path.exists() for path in GPT2_FILES):
        pytest.skip("GPT-2's files are not at ../shared/gpt2")
    vocab, merges = (path.read_text(encoding="utf-8") for path in GPT2_FILES)
    model = dict(type="BPE", vocab=json.loads(vocab), merges=merges.strip().split("\n")[1:])
    return dict(model=model, pre_tokenizer=level())


def test_gpt2_encodes_as_tiktoken_does_with_gpt2s_ranks():
    saved = gpt2s_files()
    gpt2, _ = imported(saved)
    ranks = {bytes(BYTE_CHARS.index(c) for c in name): id
             for name, id in saved["model"]["vocab"].items() if not name.startswith("<|")}
    theirs = tiktoken.Encoding("gpt2", pat_str=GPT2, mergeable_ranks=ranks,
                               special_tokens={"<|endoftext|>": 50256})
    for text in [TEXT, *texts(100, seed=6, most=40), "<|end|>"]:
        assert gpt2.encode(text) == theirs.encode_ordinary(text)
    assert [gpt2.specials[name] for name in SPECIALS] == [*range(50256, 50262)]


def smollm():
    """As SmolLM's: special tokens come first, digits are split off, some bytes have no token."""
    tok = Tokenizer(GPT2, [id + 17 for id in LEARNED.byte_ids],
                    {(a + 17, b + 17): id + 17 for (a, b), id in LEARNED.merges.items()})
    steps = [dict(type="Digits", individual_digits=True), level()]
    saved = tokenizer_json(tok, {"<|endoftext|>": 0, "<|im_end|>": 2},
                           pre_tokenizer=dict(type="Sequence", pretokenizers=steps))
    saved["model"]["merges"] = [merge.split(" ") for merge in saved["model"]["merges"]]
    for byte in (0xF1, 0xF2):
        del saved["model"]["vocab"][BYTE_CHARS[byte]]
    return saved


def test_smollms_ids_are_kept_its_digits_stand_alone_and_lacking_bytes_get_new_ids():
    tok, known = imported(smollm())
    assert tok.eot == 0 and tok.end == 2 and tok.chat == CHAT         # <|im_end|> is our <|end|>
    assert "<|im_end|>" not in tok.specials and tok.end not in tok.encode("<|im_end|>")
    assert known == tok.byte_ids[0xF1] == 394 + 17 and tok.byte_ids[0xF2] == known + 1
    assert [tok.pad, tok.system, tok.user, tok.assistant] == [*range(known + 2, known + 6)]
    assert tok.decode(tok.encode("\U00040000\U00080000")) == "\U00040000\U00080000"
    for text in texts(3000):
        words = [word for piece in regex.split(r"(\p{N})", text)
                 for word in regex.findall(GPT2, piece)]
        assert [match[0] for match in tok.split(text)] == words
        assert tok.encode(text) == [id + 17 for word in words for id in LEARNED.encode_chunk(word)]


def split(**options):
    cut = dict(type="Split", pattern={"Regex": r"\w+|\W+"}, behavior="Isolated", invert=False)
    return dict(type="Sequence", pretokenizers=[cut | options, level(use_regex=False)])


def model(**changes):
    saved = tokenizer_json()
    return saved | dict(model=saved["model"] | changes)


def added(*tokens):
    return tokenizer_json(added_tokens=[dict(id=id, content=name, special=special)
                                        for id, name, special in tokens])


MERGES = tokenizer_json()["model"]["merges"]


def several_merges(ignore_merges):
    """As Llama 3's: made of tiktoken's ranks, so a token has a merge for each way to cut it in two.
    "bc" comes first: the merges never lead to "abcd"."""
    vocab = [*BYTE_CHARS, "bc", "ab", "aba", "bab", "abab", "cd", "abcd"]
    ids = {name: id for id, name in enumerate(vocab)}
    splits = [(name[:k], name[k:]) for name in vocab for k in range(1, len(name))]
    merges = [pair for pair in splits if all(part in ids for part in pair)
              and max(ids[part] for part in pair) < ids["".join(pair)]]
    return dict(model=dict(type="BPE", vocab=ids, merges=merges, ignore_merges=ignore_merges),
                pre_tokenizer=split(pattern={"Regex": r"\p{L}+|\P{L}+"}), added_tokens=[])


@pytest.mark.parametrize("saved, reason", [
    (model(type="Unigram"), "only byte-level BPE"), (model(byte_fallback=True), "SentencePiece"),
    *((model(**{name: value}), f"{name} is not supported") for name, value in (
        ("dropout", 0.1), ("continuing_subword_prefix", "##"), ("end_of_word_suffix", "</w>"))),
    (tokenizer_json(normalizer=dict(type="NFC")), r"normalizer NFC \(--loose does without NFC\)"),
    (several_merges(False), r"token \[abcd\], to which the merges of its bytes do not lead, is"),
    (model(merges=MERGES[::-1]), "order of merges"),
    (model(merges=MERGES + MERGES[:1]), "order of merges"),
    (added((97, "a", True)), "the added token 'a', which is also an ordinary one, is not suppo"),
    # all of them, and a way that works
    (added((500, "<think>", False), (501, "</think>", False)),
     "'<think>', '</think>'.*add --loose"),
    *((tokenizer_json(pre_tokenizer=steps), regex.escape(f"the pre_tokenizer {reason}"))
      for steps, reason in (
          (level(add_prefix_space=True), "ByteLevel"), (level(use_regex=False), "ByteLevel"),
          (dict(type="Metaspace"), "Metaspace"), (split(behavior="MergedWithNext"), "Split"),
          (split(pattern={"Regex": r"\w+"}), "Split"), (split(pattern={"String": " "}), "Split"),
          (split(invert=True), "Split"), (split(type="Whitespace"), "Whitespace + ByteLevel"),
          (dict(type="Sequence", pretokenizers=[dict(type="Digits", individual_digits=False),
                                                level()]), "Digits")))])
def test_a_tokenizer_that_gives_other_ids_than_ours_would_is_refused_by_name(saved, reason):
    with pytest.raises(ValueError, match=reason):
        imported(saved)


@pytest.mark.parametrize("make", [
    gpt2s_files, smollm, partial(several_merges, True),
    lambda: tokenizer_to_hf(Tokenizer.train(TEXT, 600))], ids="GPT-2 SmolLM Llama-3 ours".split())
def test_ids_are_those_of_the_library_tokenizers_also_after_an_export(make):
    lib = pytest.importorskip("tokenizers", reason="the tokenizers library is not installed")
    saved, rng = make(), random.Random(8)
    ours, _ = imported(saved)
    theirs, again = (lib.Tokenizer.from_str(json.dumps(found))
                     for found in (saved, tokenizer_to_hf(ours)))
    some = [TEXT.replace("<|", "< |"), *texts(300, seed=7, most=40), *(
        "".join(rng.choices(["a", "b", "c", "d", "bc", " ", "!"], k=9)) for _ in range(999))]
    for text, ids in zip(some, ours.encode_batch(some), strict=True):
        assert ids == ours.encode(text) == theirs.encode(text).ids == again.encode(text).ids
        assert again.decode(ids) == text
    assert all(again.token_to_id(name) == id for name, id in ours.specials.items())


def test_the_patterns_of_llama_3_and_qwen_are_ours_in_another_spelling():
    for theirs, ours in gguf_file.SPELLED.items():
        assert hf.split_pattern(split(pattern={"Regex": theirs})) == ours
        for text in texts(1000, seed=9):
            assert regex.findall(theirs, text) == regex.findall(ours, text)
    assert hf.split_pattern(split()) == r"\w+|\W+"    # one of their own is kept


def test_nfc_and_added_tokens_in_plain_text_are_accepted_with_loose_only(take, refused):
    saved = added((395, "<think>", False)) | dict(normalizer=dict(type="NFC"))
    place = write("nfc", tokenizer=saved)
    assert "--loose" in refused("import", place, "p.pt")
    _, tok = take(place, "--loose")
    assert tok.decode([395]) == "<think>" and 395 not in tok.encode("<think>")
    saved["normalizer"]["type"] = "Lowercase"
    write("nfc", tokenizer=saved)
    assert "the normalizer Lowercase" in refused("import", place, "q.pt", "--loose")


# ---- errors of the import: one line that names the cause ------------------------------------

WTE, WPE = "transformer.wte.weight", "transformer.wpe.weight"


def settings(more, *wrong, base=GPT2_CONFIG):
    """A case for each setting that is wrong: the line has its name and its value."""
    return [(f"{name}={value!r}{more}", base | {name: value}, {})
            for settings in wrong for name, value in settings.items()]


@pytest.mark.parametrize("reason, config, weights", [
    *settings(" is not supported, only", dict(architectures=["GPT2Model"]),
              dict(architectures="GPT2LMHeadModel"), dict(architectures=None)),
    *settings("", dict(model_type="qwen2", activation_function="relu", scale_attn_weights=False,
                       scale_attn_by_inverse_layer_idx=True, add_cross_attention=True,
                       quantization_config={"bits": 4})),
    *settings(" should be a int", dict(n_layer=2.0), dict(n_layer=True)),
    *settings(" should be a float", dict(layer_norm_epsilon=math.nan)),
    *settings(" should be a bool", dict(tie_word_embeddings="no")),
    *settings(" must divide", dict(n_head=3)),
    ("lacks 'n_layer'", dict(n_layer=None), {}), ("config.json", dict(n_embd="wide"), {}),
    # before a model of that size is built
    ("the tensor transformer.h.2.ln_1.weight is missing", dict(n_layer=10**7), {}),
    ("wte.weight is (400, 16), but (400, 1000000) expected", dict(n_embd=10**6), {}),
    ("odd is damaged", dict(n_positions=10**30), {}),
    *settings("", dict(hidden_act="gelu_new", attention_bias=True, mlp_bias=True,
                       partial_rotary_factor=0.5, rope_scaling={"type": "linear", "factor": 2.0}),
              dict(rope_scaling={"rope_type": "llama3", "factor": 8.0}),
              *(dict(rope_scaling=LLAMA_3 | change) for change in (
                  dict(rope_type="yarn"), dict(factor=0.5), dict(low_freq_factor=4.0),
                  dict(original_max_position_embeddings=-1), dict(attention_factor=2.0))),
              base=LLAMA_CONFIG),
    *settings("", dict(use_sliding_window=True, model_type="llama",
                       layer_types=["full_attention", "sliding_attention"]), base=QWEN_CONFIG),
    *settings("", dict(attention_bias=True), base=QWEN_CONFIG | dict(
        architectures=["Qwen3ForCausalLM"], model_type="qwen3")),
    ("head_dim=-2 must be at least 1", LLAMA_CONFIG | dict(head_dim=-2), {}),
    ("rope_scaling", LLAMA_CONFIG | dict(rope_parameters={"rope_theta": 1e4, "rope_type": "yarn"}),
     {}),
    ("lacks 'rms_norm_eps'", LLAMA_CONFIG | dict(rms_norm_eps=None), {}),
    ("n_kv_head=3 must divide", LLAMA_CONFIG | dict(num_key_value_heads=3), {}),
    # weights
    ("transformer.h.1.ln_2.bias is missing", {}, {"transformer.h.1.ln_2.bias": None}),
    ("transformer.extra is (1,), but none expected", {}, dict(extra=torch.ones(1))),
    ("transformer.wpe.weight is (31, 16), but (32, 16)", {}, {WPE: torch.ones(31, C)}),
    ("lm_head.weight is (400, 16), but none expected", {}, {"lm_head.weight": torch.ones(V, C)}),
    ("395 ids, but the embedding 390 rows", dict(vocab_size=390), {WTE: torch.ones(390, C)}),
    *(("wte.weight must hold finite floats", {}, {WTE: wrong}) for wrong in (
        torch.full((V, C), math.nan), torch.ones(V, C).int(), torch.ones(V, C).double() * 1e300))],
    ids=lambda value: value if isinstance(value, str) else "")
def test_what_does_not_fit_our_model_is_refused_by_name(reason, config, weights, refused):
    weights = {name: w for name, w in (gpt2_weights() | weights).items() if w is not None}
    folder = write("odd", GPT2_CONFIG | config, weights)
    assert reason in refused("import", folder, "p.pt") and not Path("p.pt").exists()


def parts_of(saved, *before):
    """The place of each part of a JSON file, ("model", "merges", 0) …, but for single tokens."""
    places = saved if isinstance(saved, dict) else range(min(len(saved), 1))
    for place in places:
        yield *before, place
        if isinstance(saved[place], (dict, list)) and place != "vocab":
            yield from parts_of(saved[place], *before, place)


@pytest.mark.parametrize("name, saved", [("config.json", GPT2_CONFIG),
                                         ("config.json", LLAMA_CONFIG | dict(rope_scaling={})),
                                         ("tokenizer.json", tokenizer_json())])
def test_whatever_is_missing_or_of_a_wrong_kind_is_refused_in_one_line(name, saved, folder, run):
    """Or does no harm: a name that nobody reads may be missing."""
    for *way, last in parts_of(saved):
        for wrong in ("missing", None, "x", -1, [], {"a": [1]}):
            changed = json.loads(json.dumps(saved))
            part = reduce(getitem, way, changed)
            part[last] = wrong
            if wrong == "missing":
                del part[last]
            (folder / name).write_text(json.dumps(changed))
            status, _, said = run("import", folder, "p.pt", "--fresh")
            assert (status, said) == (0, "") or (
                status == 1 and said.count("\n") == 1 and "--debug" not in said), (way, last, wrong)


@pytest.mark.parametrize("name, missing", [
    ("config.json", "config.json is missing"), ("tokenizer.json", "tokenizer.json is missing"),
    ("model.safetensors", "has no model.safetensors")])
def test_a_damaged_or_a_missing_file_is_named(name, missing, folder, refused):
    for content in (b"", b"{", b"[1]", b"\xff\0", b'{"model": {"vocab": 5}}', b"\xff" * 100):
        (folder / name).write_bytes(content)
        assert name in refused("import", folder, "p.pt") and os.listdir() == ["gpt2"]
    (folder / name).unlink()
    assert missing in refused("import", folder, "p.pt")


def test_an_existing_checkpoint_is_replaced_only_with_fresh(folder, refused, run):
    Path("p.pt").write_text("weeks of work")
    assert "p.pt is there already" in refused("import", folder, "p.pt")
    assert Path("p.pt").read_text() == "weeks of work"
    assert run("import", folder, "p.pt", "--fresh")[0] == 0 and load_checkpoint("p.pt", "pretrain")


# ---- the command line, and missing libraries ------------------------------------------------

@pytest.mark.parametrize("words", [
    [], ["import"], ["import", "a"], ["copy", "a", "b"], ["import", "a", "b", "c"]], ids=str)
def test_a_wrong_command_prints_the_usage(words, refused):
    assert "python -m tools.hf import FOLDER_OR_NAME" in refused(*words)


@pytest.mark.parametrize("library, words", [
    ("huggingface_hub", ("import", "no/where", "p.pt")),
    ("safetensors", ("import", "gpt2", "p.pt")),
    ("safetensors", ("export", "sft.pt", "there")),
    ("gguf", ("import", "gpt2.gguf", "p.pt")), ("gguf", ("export", "sft.pt", "there.gguf"))])
def test_without_a_library_the_error_names_the_command_that_installs_it(library, words, folder,
                                                                        refused, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.setitem(sys.modules, f"{library}.torch", None)
    save("sft.pt", "gpt2")
    assert f"pip install {library}" in refused(*words)
    assert sorted(os.listdir()) == ["gpt2", "sft.pt"]


def test_a_model_is_downloaded_by_its_name(folder, take, refused, monkeypatch):
    def snapshot_download(name, allow_patterns):
        return {"someone/gpt2": str(folder)}[name]
    monkeypatch.setitem(sys.modules, "huggingface_hub",
                        SimpleNamespace(snapshot_download=snapshot_download))
    assert take("someone/gpt2")
    assert "no/where is no folder" in refused("import", "no/where", "p2.pt")


# ---- export ---------------------------------------------------------------------------------

SIZES = dict(block_size=32, n_layer=2, n_embd=32, n_head=4, n_kv_head=4, n_hidden=48)
VARIANTS = {
    "laptop": STYLES["laptop"], "laptop, untied, biases": dict(tied=False, bias=True),
    "laptop, tanh, shared keys": dict(mlp="gelu_tanh", n_kv_head=2),
    "laptop, long waves": dict(rope_theta=5e5, norm_eps=1e-3), "gpt2": STYLES["gpt2"],
    "gpt2, no biases, untied": dict(STYLES["gpt2"], bias=False, tied=False),
    "gpt2, exact gelu, shared keys": dict(STYLES["gpt2"], mlp="gelu", n_kv_head=1),
    "llama": STYLES["llama"],
    "llama, shared keys, tied": dict(STYLES["llama"], n_kv_head=2, tied=True, rope_theta=5e5,
                                     norm_eps=1e-3),
    "llama, 3": dict(STYLES["llama"], n_kv_head=2, rope_theta=5e5,
                     rope_scaling=(8.0, 1.0, 4.0, 8192)),
    "llama, 3, short": dict(STYLES["llama"], n_kv_head=1, rope_scaling=(8.0, 1.0, 4.0, 16)),
    "llama, wide heads": dict(STYLES["llama"], head_dim=12),
    "qwen2": dict(STYLES["llama"], qkv_bias=True, n_kv_head=2, tied=True),
    "qwen3": dict(STYLES["llama"], qk_norm=True, qk_rms=True, n_kv_head=2, head_dim=16)}
CLASSES = dict(laptop="PersimmonForCausalLM", gpt2="GPT2LMHeadModel", llama="LlamaForCausalLM",
               qwen2="Qwen2ForCausalLM", qwen3="Qwen3ForCausalLM")
SHARED = [name for name in VARIANTS if "shared" in name and "llama" not in name]


def save(path, variant, stage="sft", **changes):
    config = GPTConfig(vocab_size=LEARNED.vocab_size, **SIZES | VARIANTS[variant] | changes)
    model = loud(GPT(config))
    store(path, stage, model, LEARNED)
    return model


@pytest.fixture
def export(run):
    """export("laptop") saves a model, and exports it to the folder `there`: the model."""
    def export(variant, out="there", *flags, **changes):
        ours = save("sft.pt", variant, **changes)
        status, said, err = run("export", "sft.pt", out, *flags)
        assert (status, err) == (0, "") and out in said
        return ours
    return export


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_the_logits_are_the_same_in_transformers_and_when_it_has_saved_the_model(variant, export,
                                                                                 take):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    ours = export(variant)
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained("there",
                                                                     output_loading_info=True)
    assert type(theirs).__name__ == CLASSES[variant.partition(",")[0]]
    assert not any(info.values())                     # no missing and no unknown tensors
    close(ours, theirs)
    if "laptop" not in variant:                       # Persimmon is not imported
        theirs.save_pretrained("back", max_shard_size="20KB")
        assert Path("back/model.safetensors.index.json").exists()     # in several files
        Path("back/tokenizer.json").write_bytes(Path("there/tokenizer.json").read_bytes())
        close(take("back")[0], theirs)


@pytest.mark.parametrize("variant", [v for v in VARIANTS if "laptop" not in v and v not in SHARED])
def test_an_exported_model_comes_back_bit_for_bit(variant, export, take):
    # GPT-2 always has biases
    ours = export(variant, **dict(bias=True) if "gpt2" in variant else {})
    same(ours, *take("there"))


@pytest.mark.parametrize("stage, end", [("pretrain", "<|endoftext|>"), ("sft", "<|end|>"),
                                        ("ppo", "<|end|>")])
def test_the_exported_end_token_is_that_of_the_stage(stage, end, export):
    export("laptop", stage=stage)
    assert len(os.listdir("there")) == 5
    config, generation, tokenizer = (json.loads(Path("there", f"{name}.json").read_text()) for name
                                     in ("config", "generation_config", "tokenizer_config"))
    assert generation["eos_token_id"] == config["eos_token_id"] == LEARNED.specials[end]
    assert tokenizer["eos_token"] == end and generation["pad_token_id"] == LEARNED.pad
    assert ("chat_template" in tokenizer) == (stage != "pretrain")


def test_an_export_that_fails_leaves_nothing(run, safetensors, monkeypatch):
    save("sft.pt", "laptop")
    monkeypatch.setattr(safetensors, "save_file", lambda *_, **__: 1 / 0)
    assert run("export", "sft.pt", "there")[0] == 1 and os.listdir() == ["sft.pt"]


@pytest.mark.parametrize("parts", [
    dict(norm="rms"), dict(mlp="swiglu"), dict(qk_norm=False), dict(qk_rms=True), dict(head_dim=10),
    dict(rope_scaling=(8.0, 1.0, 4.0, 16)), dict(pos="learned", norm="rms")], ids=str)
def test_what_can_not_be_exported_is_refused_and_its_parts_are_named(parts, refused):
    save("sft.pt", "laptop", **parts)
    line = refused("export", "sft.pt", "there")
    assert all(f"{name}={value}" in line for name, value in parts.items())
    assert os.listdir() == ["sft.pt"]


def test_settings_that_are_missing_or_older_have_the_same_meaning():
    def read(config, **changes):
        return hf.read_config(config | changes)[1]

    llama, newer = read(LLAMA_CONFIG), dict(rope_theta=5e5, rope_type="default")
    assert read(GPT2_CONFIG).tied and not llama.tied
    assert llama.rope_theta == 1e4
    assert read(LLAMA_CONFIG, rope_parameters=newer) == replace(llama, rope_theta=5e5)
    assert read(LLAMA_CONFIG, rope_theta=5e5, rope_scaling=None) == replace(llama, rope_theta=5e5)
    # as many key heads as query heads
    assert read(LLAMA_CONFIG, num_key_value_heads=None) == replace(llama, n_kv_head=4)
