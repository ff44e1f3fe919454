"""The tests compare with the libraries transformers and tokenizers if they are installed. Without
them, they compare with tiktoken, GPT-2's published ids, and files that the tests write."""

import json
import math
import os
import random
import runpy
import subprocess
import sys
from dataclasses import replace
from functools import reduce
from operator import getitem
from pathlib import Path
from types import SimpleNamespace

import pytest
import regex
import tiktoken
import torch

from checkpoint import load_checkpoint, save_checkpoint
from model import GPT, STYLES, GPTConfig, ScalarGPT
from tokenizer import GPT2, PATTERNS, SPECIALS, Tokenizer
from tools import hf
from tools.hf import (BYTE_CHARS, tokenizer_from_gpt2, tokenizer_from_hf, tokenizer_from_tiktoken,
                      tokenizer_to_hf)

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


def loud(model, seed=0):
    """Random weights, far from their initial values, so that each of them changes the logits."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.2 if p.dim() > 1 else 0.1).add_(0 if p.dim() > 1 else 0.5)
    return model.eval()


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """run("import", …) -> exit status, stdout, stderr of that command"""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["tools/hf.py", *map(str, words)])
        monkeypatch.setattr(sys, "excepthook", sys.excepthook)
        status = 0
        try:
            runpy.run_path(str(ROOT / "tools/hf.py"), run_name="__main__")
        except SystemExit as stop:
            status = stop.code
        out, err = capsys.readouterr()
        return status, out, err
    return run


@pytest.fixture
def refused(run):
    """refused("import", …) -> the one line with the error"""
    def refused(*words):
        status, _, err = run(*words)
        assert status == 1 and err.startswith("hf.py: ") and err.count("\n") == 1
        return err
    return refused


def load(path):
    ckpt = load_checkpoint(path, stage="pretrain")
    model = GPT(GPTConfig(**ckpt["model_config"])).eval()
    model.load_state_dict(ckpt["model"])
    return model, Tokenizer.from_dict(ckpt["tokenizer"])


# ---------------------------------------------------------------------------------------------
# a tiny GPT-2, written by hand: 395 tokens in 400 rows

C, V, KNOWN = 16, 400, 395
GPT2_CONFIG = dict(architectures=["GPT2LMHeadModel"], model_type="gpt2", n_positions=32, n_embd=C,
                   n_layer=2, n_head=2, vocab_size=V, layer_norm_epsilon=1e-5,
                   activation_function="gelu_new")
LLAMA_CONFIG = dict(architectures=["LlamaForCausalLM"], model_type="llama", vocab_size=V,
                    max_position_embeddings=32, num_hidden_layers=2, num_attention_heads=4,
                    num_key_value_heads=2, hidden_size=C, intermediate_size=24, hidden_act="silu",
                    rms_norm_eps=1e-6)


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


def vocabulary(tok, specials):
    """GPT-2's two files: {token: id}, and the pairs in the order of their merges."""
    names = {id: "".join(BYTE_CHARS[b] for b in token) for token, id in tok.ranks.items()}
    return ({name: id for id, name in names.items()} | specials,
            [f"{names[a]} {names[b]}" for a, b in tok.merges])


def tokenizer_json(tok=LEARNED, specials=None, **changes):
    specials = {"<|endoftext|>": 394} if specials is None else specials
    vocab, merges = vocabulary(tok, {})
    level = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=True)
    added = [dict(id=id, content=name, special=True) for name, id in specials.items()]
    return dict(model=dict(type="BPE", vocab=vocab | specials, merges=merges), normalizer=None,
                pre_tokenizer=level, added_tokens=added) | changes


def write(folder, config=GPT2_CONFIG, weights=None, tokenizer=None):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer or tokenizer_json()))
    torch.save(gpt2_weights() if weights is None else weights, folder / "pytorch_model.bin")
    return folder


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "gpt2")


def test_each_tensor_of_gpt2_is_copied_to_the_right_place(folder, run):
    assert run("import", folder, "out/pretrain.pt")[0] == 0
    ours, theirs = load("out/pretrain.pt")[0].state_dict(), gpt2_weights()
    for mine, yours in (("attn.qkv", "attn.c_attn"), ("attn.proj", "attn.c_proj"),
                        ("mlp.fc", "mlp.c_fc"), ("mlp.proj", "mlp.c_proj")):
        assert ours[f"blocks.1.{mine}.weight"].equal(theirs[f"transformer.h.1.{yours}.weight"].T)
        assert ours[f"blocks.1.{mine}.bias"].equal(theirs[f"transformer.h.1.{yours}.bias"])
    for mine, yours in (("blocks.0.norm_1", "h.0.ln_1"), ("blocks.0.norm_2", "h.0.ln_2"),
                        ("norm", "ln_f"), ("wpe", "wpe")):
        assert ours[f"{mine}.weight"].equal(theirs[f"transformer.{yours}.weight"])
    assert ours["wte.weight"][:KNOWN].equal(theirs["transformer.wte.weight"][:KNOWN])


def test_the_files_of_2019_give_the_same_model(folder, tmp_path, run):
    weights = {name.removeprefix("transformer."): w for name, w in gpt2_weights().items()}
    weights |= {"h.0.attn.bias": torch.ones(1, 1, 32, 32).tril(),
                "h.1.attn.masked_bias": torch.tensor(-1e4), "lm_head.weight": weights["wte.weight"]}
    run("import", folder, "new.pt")
    assert run("import", write(tmp_path / "old", weights=weights), "old.pt")[0] == 0
    new, old = (load(path)[0].state_dict() for path in ("new.pt", "old.pt"))
    assert all(new[name].equal(old[name]) for name in new)


def test_weights_in_half_precision_become_fp32(tmp_path, run):
    half = {name: w.bfloat16() for name, w in gpt2_weights().items()}
    assert run("import", write(tmp_path / "half", weights=half), "p.pt")[0] == 0
    wpe = load_checkpoint("p.pt")["model"]["wpe.weight"]
    assert wpe.dtype == torch.float32 and wpe.equal(half["transformer.wpe.weight"].float())


def test_a_checkpoint_in_several_files_is_read_whole(folder, tmp_path, run):
    run("import", folder, "one.pt")
    weights = gpt2_weights()
    shards = {name: f"pytorch_model-{i % 2 + 1}-of-2.bin" for i, name in enumerate(weights)}
    for file in set(shards.values()):
        torch.save({n: weights[n] for n in weights if shards[n] == file}, folder / file)
    (folder / "pytorch_model.bin").unlink()
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(dict(weight_map=shards)))
    assert run("import", folder, "two.pt")[0] == 0
    one, two = (load(path)[0].state_dict() for path in ("one.pt", "two.pt"))
    assert all(one[name].equal(two[name]) for name in one)


@pytest.mark.parametrize("names", [["model.embed_tokens"], ["lm_head"],
                                   ["model.embed_tokens", "lm_head"]], ids=str)
@pytest.mark.parametrize("kind", ["bin", "safetensors"])
def test_a_tied_llama_in_bf16_and_in_parts_may_have_its_matrix_under_either_name(names, kind, run,
                                                                                 tmp_path):
    save_file = torch.save
    if kind == "safetensors":
        lib = pytest.importorskip("safetensors.torch", reason="safetensors is not installed")
        save_file = lib.save_file
    config = GPTConfig(block_size=32, vocab_size=V, n_layer=2, n_head=4, n_kv_head=2, n_embd=C,
                       n_hidden=24, norm_eps=1e-6, **STYLES["llama"] | dict(tied=True))
    ours = loud(GPT(config)).bfloat16()
    theirs = hf.to_theirs(hf.LLAMA, config, ours.state_dict())
    matrix = theirs.pop("model.embed_tokens.weight")
    theirs |= {f"{name}.weight": matrix.clone() for name in names}
    folder = write(tmp_path / "llama", LLAMA_CONFIG | dict(tie_word_embeddings=True), weights={})
    (folder / "pytorch_model.bin").unlink()
    parts = {name: f"part-{i % 3}.{kind}" for i, name in enumerate(theirs)}
    for file in set(parts.values()):
        save_file({n: theirs[n].contiguous() for n in theirs if parts[n] == file}, folder / file)
    index = f"{'pytorch_model' if kind == 'bin' else 'model'}.{kind}.index.json"
    (folder / index).write_text(json.dumps(dict(weight_map=parts)))
    status, _, err = run("import", folder, "p.pt")
    back, expected = load("p.pt")[0].state_dict(), ours.float().state_dict()
    assert status == 0 and back["wte.weight"][:KNOWN].equal(expected["wte.weight"][:KNOWN])
    assert all(back[name].equal(w) for name, w in expected.items() if "wte" not in name
               and "lm_head" not in name)


def test_fine_tuning_starts_from_an_imported_model(folder, run, tmp_path):
    run("import", folder, "out/pretrain.pt")
    rows = [dict(prompt=f"{i}?", response=f"{i}.") for i in range(60)]
    Path("demos.jsonl").write_text("\n".join(map(json.dumps, rows)))
    done = subprocess.run([sys.executable, ROOT / "sft.py", "--data=demos.jsonl", "--text=",
                           "--steps=1", "--eval_every=1"], capture_output=True, cwd=tmp_path,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    history = load_checkpoint("out/sft.pt", stage="sft")["history"]
    assert [entry["stage"] for entry in history] == ["pretrain", "sft"]
    assert history[0]["config"]["init"] == str(folder)


def test_the_import_prints_a_summary_and_the_next_command(folder, run):
    status, out, err = run("import", folder, "out/p.pt", "--block_size=8")
    assert "GPT2LMHeadModel" in out and "context of 8 " in out and "395 tokens and 5 new" in out
    assert "python sft.py --init=out/p.pt" in out and (status, err) == (0, "")
    _, out, _ = run("import", folder, "my out/p.pt", "--block_size=8")
    assert "python sft.py --init='my out/p.pt'" in out


# ---------------------------------------------------------------------------------------------
# new rows in the embedding, shorter contexts

def test_rows_without_a_token_are_dropped(tmp_path, run):
    weights = gpt2_weights()
    weights["transformer.wte.weight"] = torch.cat((weights["transformer.wte.weight"],
                                                   torch.full((600, C), 1e9)))
    run("import", write(tmp_path / "wide", GPT2_CONFIG | dict(vocab_size=1000), weights), "p.pt")
    model, tok = load("p.pt")
    assert model.config.vocab_size == tok.vocab_size == 400 == KNOWN + len(SPECIALS) - 1
    assert model.wte.weight.abs().max() < 1e3


def test_a_new_row_starts_near_the_mean_of_the_old_rows(folder, run):
    run("import", folder, "p.pt")
    model, tok = load("p.pt")
    old, new = model.wte.weight[:KNOWN], model.wte.weight[KNOWN:]
    assert (new - old.mean(0)).abs().max() < 0.5 * old.std()
    assert len(new.unique(dim=0)) == 5


def test_an_untied_output_layer_gets_new_rows_too(tmp_path, run):
    weights = gpt2_weights() | {"lm_head.weight": torch.randn(V, C)}
    untied = GPT2_CONFIG | dict(tie_word_embeddings=False)
    assert run("import", write(tmp_path / "untied", untied, weights), "p.pt")[0] == 0
    model, _ = load("p.pt")
    assert model.lm_head.weight[:KNOWN].equal(weights["lm_head.weight"][:KNOWN])
    assert not model.lm_head.weight.equal(model.wte.weight)


def test_an_untied_output_layer_stays_untied_even_if_it_equals_the_embedding(tmp_path, run):
    weights = gpt2_weights()
    weights["lm_head.weight"] = weights["transformer.wte.weight"]
    untied = GPT2_CONFIG | dict(tie_word_embeddings=False)
    assert run("import", write(tmp_path / "untied", untied, weights), "p.pt")[0] == 0
    assert not load("p.pt")[0].config.tied


def test_a_shorter_context_gives_the_same_logits(folder, run):
    run("import", folder, "long.pt")
    run("import", folder, "short.pt", "--block_size=8")
    (long, _), (short, _) = load("long.pt"), load("short.pt")
    idx = torch.arange(8)[None]
    assert short.config.block_size == 8 and long(idx)[0].equal(short(idx)[0])


@pytest.mark.parametrize("size", [33, -1])
def test_a_context_longer_than_the_models_or_negative_is_refused(folder, refused, size):
    line = refused("import", folder, "p.pt", f"--block_size={size}")
    assert f"--block_size={size} must be " in line and not Path("p.pt").exists()


def test_a_tokenizer_with_more_ids_than_rows_is_refused(tmp_path, refused):
    weights = gpt2_weights()
    weights["transformer.wte.weight"] = weights["transformer.wte.weight"][:390]
    small = write(tmp_path / "small", GPT2_CONFIG | dict(vocab_size=390), weights)
    assert "395 ids, but the embedding 390 rows" in refused("import", small, "p.pt")


# ---------------------------------------------------------------------------------------------
# the tokenizer

def imported(saved):
    return tokenizer_from_hf(json.loads(json.dumps(saved)))


def test_gpt2s_two_files_give_the_tokenizer_they_were_written_from(folder, run):
    (folder / "tokenizer.json").unlink()
    vocab, merges = vocabulary(LEARNED, {"<|endoftext|>": 394})
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    assert run("import", folder, "p.pt")[0] == 0
    expected = Tokenizer(GPT2, LEARNED.byte_ids, LEARNED.merges, {"<|endoftext|>": 394})
    assert load("p.pt")[1].to_dict() == expected.to_dict()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_an_exported_tokenizer_comes_back_unchanged(pattern, tmp_path):
    tok = Tokenizer.train(TEXT, 350, pattern)
    tokenizer_to_hf(tok, tmp_path / "tokenizer.json")
    back, known = hf.read_tokenizer(tmp_path)
    assert back.to_dict() == tok.to_dict() and known == 350


@pytest.fixture(scope="module")
def gpt2():
    if not all(path.exists() for path in GPT2_FILES):
        pytest.skip("GPT-2's files are not at ../shared/gpt2")
    return tokenizer_from_gpt2(*GPT2_FILES)[0]


@pytest.mark.parametrize("text, ids", [
    ("hello world", [31373, 995]), ("Hello, world!", [15496, 11, 995, 0]), (" the", [262]),
    ("The quick brown fox jumps over the lazy dog",
     [464, 2068, 7586, 21831, 18045, 625, 262, 16931, 3290])])
def test_gpt2s_vocabulary_gives_gpt2s_ids(gpt2, text, ids):
    assert gpt2.encode(text) == ids and gpt2.decode(ids) == text


def test_gpt2s_end_of_text_keeps_its_id_and_the_other_special_tokens_follow(gpt2):
    ids = [gpt2.eot, gpt2.pad, gpt2.system, gpt2.user, gpt2.assistant, gpt2.end]
    assert ids == list(range(50256, 50262)) and gpt2.vocab_size == 50262


def test_gpt2_encodes_as_tiktoken_does_with_gpt2s_ranks(gpt2):
    encoder = json.loads(GPT2_FILES[0].read_text(encoding="utf-8"))
    ranks = {bytes(BYTE_CHARS.index(c) for c in name): id for name, id in encoder.items()
             if not name.startswith("<|")}
    theirs = tiktoken.Encoding("gpt2", pat_str=GPT2, mergeable_ranks=ranks,
                               special_tokens={"<|endoftext|>": 50256})
    for text in [TEXT, *texts(100, seed=6, most=40), "<|end|>"]:
        assert gpt2.encode(text) == theirs.encode_ordinary(text)


@pytest.fixture(scope="module")
def tok():
    return Tokenizer.train(TEXT, 600)


@pytest.mark.parametrize("name", ["tok", "gpt2"])
def test_a_tokenizer_comes_back_from_tiktoken_unchanged(name, request):
    tok = request.getfixturevalue(name)
    back = tokenizer_from_tiktoken(tok.to_tiktoken())
    assert vars(back) | {"split": 0} == vars(tok) | {"split": 0}


def test_an_encoding_of_tiktoken_keeps_its_ids_its_unused_ids_and_its_special_tokens():
    ranks = {bytes([byte]): 255 - byte for byte in range(256)} | {b"ab": 300, b"abc": 310}
    special = {"<|fim|>": 305, "<|endoftext|>": 320}
    theirs = tiktoken.Encoding("x", pat_str=r"\w+|\W+", mergeable_ranks=ranks,
                               special_tokens=special)
    ours = tokenizer_from_tiktoken(theirs)
    assert ours.encode("abc cab") == theirs.encode_ordinary("abc cab")
    assert (ours.eot, ours.pad, ours.end, ours.vocab_size) == (320, 321, 325, 326)
    assert ours.decode([310, 305]) == "abc<|fim|>"
    with pytest.raises(ValueError, match="315"):
        ours.decode([315])


@pytest.mark.parametrize("name", ["tok", "gpt2"])
def test_the_export_to_hugging_face_gives_the_same_ids(name, request, tmp_path):
    tokenizers = pytest.importorskip("tokenizers", reason="the tokenizers library is not installed")
    ours = request.getfixturevalue(name)
    tokenizer_to_hf(ours, tmp_path / "tokenizer.json")
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in [TEXT.replace("<|", "< |"), *texts(200, seed=7, most=40)]:
        assert theirs.encode(text).ids == ours.encode(text)
        assert theirs.decode(ours.encode(text)) == text
    assert all(theirs.token_to_id(name) == id for name, id in ours.specials.items())


def test_merges_may_be_lists():
    saved = tokenizer_json()
    saved["model"]["merges"] = [merge.split(" ") for merge in saved["model"]["merges"]]
    assert imported(saved)[0].to_dict() == imported(tokenizer_json())[0].to_dict()


def test_their_special_tokens_keep_their_ids_and_ours_follow():
    tok, known = imported(tokenizer_json(specials={"<|im_start|>": 394, "<|endoftext|>": 500}))
    assert known == 501 and tok.decode([394]) == "<|im_start|>" and tok.eot == 500
    assert [tok.pad, tok.system, tok.user, tok.assistant, tok.end] == list(range(501, 506))


def test_ids_may_begin_with_the_special_tokens():
    shifted = Tokenizer(GPT2, [id + 17 for id in LEARNED.byte_ids],
                        {(a + 17, b + 17): id + 17 for (a, b), id in LEARNED.merges.items()})
    tok, _ = imported(tokenizer_json(shifted, {"<|endoftext|>": 0, "<|im_end|>": 2}))
    assert tok.eot == 0 and tok.pad == 394 + 17
    for text in texts(50):
        assert tok.encode(text) == [id + 17 for id in LEARNED.encode(text)]


def test_a_byte_without_a_token_gets_a_new_id():
    saved = tokenizer_json()
    for byte in (0xF1, 0x00):
        del saved["model"]["vocab"][BYTE_CHARS[byte]]
    tok, known = imported(saved)
    assert known == 395 and tok.byte_ids[0x00] == 395 and tok.byte_ids[0xF1] == 396
    assert tok.pad == 397 and tok.decode(tok.encode("a\0\U00040000")) == "a\0\U00040000"


def test_splitting_at_digits_and_then_by_gpt2s_regex_is_done_by_one_regex():
    steps = [dict(type="Digits", individual_digits=True),
             dict(type="ByteLevel", add_prefix_space=False, use_regex=True)]
    pattern = hf.split_pattern(dict(type="Sequence", pretokenizers=steps))
    for text in texts(3000):
        two_steps = [word for piece in regex.split(r"(\p{N})", text)
                     for word in regex.findall(GPT2, piece)]
        assert regex.findall(pattern, text) == two_steps


@pytest.mark.parametrize("change, reason", [
    (dict(type="Unigram"), "only byte-level BPE"), (dict(byte_fallback=True), "SentencePiece"),
    (dict(ignore_merges=True), "ignore_merges"), (dict(dropout=0.1), "dropout"),
    (dict(continuing_subword_prefix="##"), "continuing_subword_prefix"),
    (dict(end_of_word_suffix="</w>"), "end_of_word_suffix")], ids=str)
def test_another_kind_of_tokenizer_is_refused_by_name(change, reason, tmp_path, refused):
    saved = tokenizer_json()
    saved["model"] |= change
    line = refused("import", write(tmp_path / "odd", tokenizer=saved), "p.pt")
    assert reason in line and "tokenizer.json" in line


def level(**options):
    return dict(type="ByteLevel", add_prefix_space=False) | options


def split(**options):
    cut = dict(type="Split", pattern={"Regex": r"\w+|\W+"}, behavior="Isolated", invert=False)
    return dict(type="Sequence", pretokenizers=[cut | options, level(use_regex=False)])


@pytest.mark.parametrize("steps, reason", [
    (level(add_prefix_space=True), "ByteLevel"), (level(use_regex=False), "ByteLevel"),
    (dict(type="Metaspace"), "Metaspace"), (split(behavior="MergedWithNext"), "Split"),
    (split(pattern={"Regex": r"\w+"}), "Split"), (split(pattern={"String": " "}), "Split"),
    (split(invert=True), "Split"),
    (dict(type="Sequence", pretokenizers=[dict(type="Digits", individual_digits=False), level()]),
     "Digits"), (split(type="Whitespace"), "Whitespace + ByteLevel")])
def test_an_unsupported_pre_tokenizer_is_refused_by_name(steps, reason):
    with pytest.raises(ValueError, match=regex.escape(f"the pre_tokenizer {reason}")):
        imported(tokenizer_json(pre_tokenizer=steps))


def test_a_custom_regex_is_kept():
    assert imported(tokenizer_json(pre_tokenizer=split()))[0].pattern == r"\w+|\W+"


def test_a_normalizer_is_refused():
    with pytest.raises(ValueError, match="normalizer"):
        imported(tokenizer_json(normalizer=dict(type="NFC")))


@pytest.mark.parametrize("token", [dict(id=500, content="<think>", special=False),
                                   dict(id=97, content="a", special=True)], ids=str)
def test_an_added_token_that_matches_inside_plain_text_is_refused(token):
    with pytest.raises(ValueError, match=token["content"]):
        imported(tokenizer_json(added_tokens=[token]))


def test_the_refusal_of_added_tokens_names_all_of_them_and_a_way_that_works():
    added = [dict(id=id, content=name, special=False)                 # as minimind has them
             for id, name in ((500, "<think>"), (501, "</think>"))]
    with pytest.raises(ValueError, match="'<think>', '</think>'.*\"special\": true"):
        imported(tokenizer_json(added_tokens=added))
    tok, _ = imported(tokenizer_json(added_tokens=[token | dict(special=True) for token in added]))
    assert tok.specials["<think>"] == 500 and tok.encode("Ada") == LEARNED.encode("Ada")
    with pytest.raises(ValueError) as error:          # there it would not help
        imported(tokenizer_json(added_tokens=[dict(id=97, content="a", special=True)]))
    assert "special" not in str(error.value)


@pytest.mark.parametrize("disorder", [list.reverse, lambda merges: merges.append(merges[0])])
def test_merges_that_are_not_in_the_order_of_their_ids_are_refused(disorder):
    saved = tokenizer_json()
    disorder(saved["model"]["merges"])
    with pytest.raises(ValueError, match="order of merges"):
        imported(saved)


def test_tokens_from_the_library_tokenizers_keep_their_ids():
    """As in SmolLM: the special tokens come first, digits are split, some bytes have no token."""
    lib = pytest.importorskip("tokenizers", reason="the tokenizers library is not installed")
    theirs = lib.Tokenizer(lib.models.BPE())
    theirs.pre_tokenizer = lib.pre_tokenizers.Sequence(
        [lib.pre_tokenizers.Digits(individual_digits=True),
         lib.pre_tokenizers.ByteLevel(add_prefix_space=False)])
    theirs.train_from_iterator([TEXT, "".join(PARTS)], lib.trainers.BpeTrainer(
        vocab_size=900, special_tokens=["<|endoftext|>", "<|im_start|>"], show_progress=False))
    ours, known = imported(json.loads(theirs.to_str()))
    assert known == 900 and ours.vocab_size > 906     # bytes that the texts do not contain
    for text in [TEXT.replace("<|", "< |"), *texts(500)]:
        assert ours.encode(text) == theirs.encode(text).ids


# ---------------------------------------------------------------------------------------------
# errors of the import: one line that names the cause

@pytest.mark.parametrize("config, reason", [
    (dict(architectures=["BertModel"]), "BertModel is not supported"),
    (dict(architectures=["GPT2Model"]), "GPT2Model is not supported"),
    (dict(architectures=None), "without architecture is not supported"),
    (dict(model_type="qwen2"), "model_type='qwen2'"),
    (dict(activation_function="relu"), "activation_function='relu'"),
    (dict(scale_attn_weights=False), "scale_attn_weights=False"),
    (dict(scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx=True"),
    (dict(add_cross_attention=True), "add_cross_attention=True"),
    (dict(quantization_config={"bits": 4}), "quantization_config"),
    (dict(n_layer=None), "lacks 'n_layer'"), (dict(n_head=3), "n_head=3 must divide"),
    (dict(n_embd="wide"), "config.json")], ids=str)
def test_an_unsupported_gpt2_is_refused_by_name(config, reason, tmp_path, refused):
    line = refused("import", write(tmp_path / "odd", GPT2_CONFIG | config), "p.pt")
    assert reason in line and not Path("p.pt").exists()


@pytest.mark.parametrize("config, reason", [
    (dict(hidden_act="gelu_new"), "hidden_act='gelu_new'"),
    (dict(rope_scaling={"rope_type": "llama3", "factor": 8.0}), "rope_scaling={'rope_type'"),
    (dict(rope_scaling={"type": "linear", "factor": 2.0}), "rope_scaling={'type': 'linear'"),
    (dict(rope_parameters={"rope_theta": 1e4, "rope_type": "yarn"}), "rope_scaling"),
    (dict(attention_bias=True), "attention_bias=True"), (dict(mlp_bias=True), "mlp_bias=True"),
    (dict(partial_rotary_factor=0.5), "partial_rotary_factor=0.5"),
    (dict(head_dim=8), "head_dim=8 is not supported, only 4"),
    (dict(rms_norm_eps=None), "lacks 'rms_norm_eps'"),
    (dict(num_key_value_heads=3), "n_kv_head=3 must divide")], ids=str)
def test_an_unsupported_llama_is_refused_by_name(config, reason, tmp_path, refused):
    line = refused("import", write(tmp_path / "odd", LLAMA_CONFIG | config), "p.pt")
    assert reason in line


@pytest.mark.parametrize("change, reason", [
    (lambda w: w.pop("transformer.h.1.ln_2.bias"), "transformer.h.1.ln_2.bias is missing"),
    (lambda w: w.update(extra=torch.ones(1)), "transformer.extra is unknown"),
    (lambda w: w.update({"transformer.wpe.weight": torch.ones(31, C)}),
     "transformer.wpe.weight is (31, 16), but (32, 16)"),
    (lambda w: w.update({"lm_head.weight": torch.ones(V, C)}), "lm_head.weight is unknown")])
def test_a_tensor_that_does_not_fit_is_refused_by_name(change, reason, tmp_path, refused):
    weights = gpt2_weights()
    change(weights)
    assert reason in refused("import", write(tmp_path / "odd", weights=weights), "p.pt")


@pytest.mark.parametrize("config, reason", [
    (dict(n_layer=10**7), "the tensor transformer.h.2.ln_1.weight is missing"),
    (dict(n_embd=10**6), "wte.weight is (400, 16), but (400, 1000000) expected"),
    (dict(n_positions=10**30), "gpt2 is damaged"),
    (dict(n_layer=2.0), "n_layer=2.0 should be a int"),
    (dict(n_layer=True), "n_layer=True should be a int"),
    (dict(layer_norm_epsilon=math.nan), "layer_norm_epsilon=nan should be a float"),
    (dict(tie_word_embeddings="no"), "tie_word_embeddings='no' should be a bool"),
    (dict(architectures="GPT2LMHeadModel"), "architectures='GPT2LMHeadModel' is not")], ids=str)
def test_a_config_that_lies_is_refused_before_its_model_is_built(config, reason, tmp_path, refused):
    assert reason in refused("import", write(tmp_path / "gpt2", GPT2_CONFIG | config), "p.pt")


@pytest.mark.parametrize("w, reason", [
    (torch.full((V, C), math.nan), "wte.weight holds NaN or infinity"),
    (torch.ones(V, C).int(), "wte.weight holds torch.int32"),
    (torch.ones(V, C).double() * 1e300, "holds NaN or infinity"), (5, "tensors by their names"),
    (torch.ones(1).expand(V * 2000, C), "a tensor is larger than the file")])
def test_weights_that_are_no_numbers_are_refused_by_name(w, reason, tmp_path, refused):
    weights = gpt2_weights() | {"transformer.wte.weight": w}
    assert reason in refused("import", write(tmp_path / "odd", weights=weights), "p.pt")


@pytest.mark.parametrize("index", [
    {}, {"weight_map": None}, {"weight_map": {"x": 5}}, {"weight_map": []}], ids=str)
def test_a_damaged_index_is_named(index, folder, refused):
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert "pytorch_model.bin.index.json is damaged" in refused("import", folder, "p.pt")


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


@pytest.mark.parametrize("name, reason", [
    ("config.json", "config.json is missing"), ("tokenizer.json", "neither tokenizer.json nor"),
    ("pytorch_model.bin", "neither model.safetensors nor pytorch_model.bin")])
def test_a_missing_file_is_named(name, reason, folder, refused):
    (folder / name).unlink()
    assert reason in refused("import", folder, "p.pt")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "pytorch_model.bin"])
@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\0", b'{"model": {"vocab": 5}}'])
def test_a_damaged_file_is_named(name, content, folder, refused):
    (folder / name).write_bytes(content)
    line = refused("import", folder, "p.pt")
    assert name in line and os.listdir() == ["gpt2"]


def test_a_missing_part_of_the_weights_is_named(folder, refused):
    (folder / "pytorch_model.bin.index.json").write_text('{"weight_map": {"x": "part-1.bin"}}')
    assert "part-1.bin is missing" in refused("import", folder, "p.pt")


def test_an_existing_checkpoint_is_not_replaced(folder, refused):
    Path("p.pt").write_text("weeks of work")
    assert "p.pt is there already" in refused("import", folder, "p.pt")
    assert Path("p.pt").read_text() == "weeks of work"


def test_with_fresh_an_existing_checkpoint_is_replaced(folder, run):
    Path("p.pt").write_text("old")
    assert run("import", folder, "p.pt", "--fresh")[0] == 0 and load("p.pt")


# ---------------------------------------------------------------------------------------------
# the command line, and missing libraries

@pytest.mark.parametrize("words", [
    [], ["import"], ["import", "a"], ["copy", "a", "b"], ["import", "a", "b", "c"]], ids=str)
def test_a_wrong_command_prints_the_usage(words, refused):
    assert "python -m tools.hf import FOLDER_OR_NAME" in refused(*words)


def test_help_shows_the_commands_and_the_flags(run):
    status, out, _ = run("-h")
    assert status == 0 and "python -m tools.hf export out/sft.pt" in out
    assert "block_size: int" in out


def test_without_huggingface_hub_the_error_names_the_command_that_installs_it(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    line = refused("import", "no/where", "p.pt")
    assert "no/where is no folder" in line and "pip install huggingface_hub" in line


@pytest.mark.parametrize("files, weights", [
    (["model.safetensors", "pytorch_model.bin"], "model*.safetensors*"),
    (["pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json"], "pytorch_model*.bin*")])
def test_a_model_is_downloaded_by_its_name(folder, run, monkeypatch, files, weights):
    def snapshot_download(name, allow_patterns):
        assert name == "someone/gpt2" and {"config.json", weights} <= {*allow_patterns}
        assert sum("*" in pattern for pattern in allow_patterns) == 1
        return str(folder)
    hub = SimpleNamespace(snapshot_download=snapshot_download, list_repo_files=lambda name: files)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert run("import", "someone/gpt2", "p.pt")[0] == 0 and load("p.pt")


def test_a_name_that_huggingface_does_not_know_is_refused(refused, monkeypatch):
    def list_repo_files(name):
        raise RuntimeError("404\nnot found")
    hub = SimpleNamespace(list_repo_files=list_repo_files)
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    assert "no/where is no folder" in refused("import", "no/where", "p.pt")


def test_without_safetensors_the_error_names_the_command_that_installs_it(folder, refused,
                                                                          monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    save("sft.pt", "laptop")
    (folder / "model.safetensors").write_bytes(b"")
    for words in (("import", folder, "p.pt"), ("export", "sft.pt", "there")):
        assert "pip install safetensors" in refused(*words)
    assert not Path("there").exists()


# ---------------------------------------------------------------------------------------------
# export

SIZES = dict(block_size=32, n_layer=2, n_embd=32, n_head=4, n_kv_head=4, n_hidden=48)
VARIANTS = {
    "laptop": (STYLES["laptop"], "GPTNeoXForCausalLM"),
    "laptop, untied, biases": (dict(tied=False, bias=True), "GPTNeoXForCausalLM"),
    "laptop, tanh, shared keys": (dict(mlp="gelu_tanh", n_kv_head=2), "GPTNeoXForCausalLM"),
    "laptop, long waves": (dict(rope_theta=5e5, norm_eps=1e-3), "GPTNeoXForCausalLM"),
    "gpt2": (STYLES["gpt2"], "GPT2LMHeadModel"),
    "gpt2, no biases, untied": (dict(STYLES["gpt2"], bias=False, tied=False), "GPT2LMHeadModel"),
    "gpt2, exact gelu, shared keys": (dict(STYLES["gpt2"], mlp="gelu", n_kv_head=1),
                                      "GPT2LMHeadModel"),
    "llama": (STYLES["llama"], "LlamaForCausalLM"),
    "llama, shared keys, tied": (dict(STYLES["llama"], n_kv_head=2, tied=True, rope_theta=5e5,
                                      norm_eps=1e-3), "LlamaForCausalLM")}
SHARED = [name for name in VARIANTS if "shared" in name and "llama" not in name]


def save(path, variant, stage="sft", **changes):
    config = GPTConfig(vocab_size=LEARNED.vocab_size, **SIZES | VARIANTS[variant][0] | changes)
    model = loud((ScalarGPT if stage == "reward" else GPT)(config))
    save_checkpoint(path, stage=stage, step=1, metrics={}, model=model, model_config=config,
                    tokenizer=LEARNED, config=hf.Config(), history=[])
    return model


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_the_exported_model_gives_the_same_logits_in_transformers(variant, run):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    ours = save("sft.pt", variant)
    status, out, _ = run("export", "sft.pt", "there")
    theirs, info = transformers.AutoModelForCausalLM.from_pretrained("there",
                                                                     output_loading_info=True)
    assert status == 0 and VARIANTS[variant][1] == type(theirs).__name__ and "there" in out
    assert not any(info.values())                     # no missing and no unknown tensors
    theirs.eval()
    idx = torch.randint(0, LEARNED.vocab_size, (2, 32))
    torch.testing.assert_close(ours(idx)[0], theirs(idx).logits, rtol=0, atol=1e-4)


@pytest.mark.parametrize("variant", [v for v in VARIANTS if "laptop" not in v and v not in SHARED])
def test_an_exported_model_comes_back_bit_for_bit(variant, run):
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    # GPT-2 always has biases
    ours = save("sft.pt", variant, **dict(bias=True) if "gpt2" in variant else {})
    run("export", "sft.pt", "there")
    assert run("import", "there", "back.pt")[0] == 0
    model, tok = load("back.pt")
    assert model.config == ours.config and tok.to_dict() == LEARNED.to_dict()
    assert all(model.state_dict()[name].equal(w) for name, w in ours.state_dict().items())


@pytest.fixture
def assistant(run):
    """The exported tokenizer, as transformers loads it."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    save("sft.pt", "laptop")
    assert run("export", "sft.pt", "there")[0] == 0
    return transformers.AutoTokenizer.from_pretrained("there")


def test_the_exported_tokenizer_gives_the_same_ids_in_transformers(assistant):
    for text in texts(200):
        assert assistant(text).input_ids == LEARNED.encode(text)
        assert assistant.decode(LEARNED.encode(text)) == text


@pytest.mark.parametrize("reply", [False, True])
def test_the_chat_template_gives_the_ids_of_encode_chat(assistant, reply):
    messages = [dict(role="system", content=" Be brief. "), dict(role="user", content="Hi\n"),
                dict(role="assistant", content=""), dict(role="user", content="12 + 3 > {{ 4 }}?")]
    ids = assistant.apply_chat_template(messages, add_generation_prompt=reply, return_dict=True)
    assert ids["input_ids"] == LEARNED.encode_chat(messages, reply=reply)[0]


@pytest.mark.parametrize("stage, end", [("pretrain", "<|endoftext|>"), ("sft", "<|end|>"),
                                        ("ppo", "<|end|>")])
def test_the_exported_end_token_is_that_of_the_stage(stage, end, run):
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    save("x.pt", "laptop", stage)
    run("export", "x.pt", "there")
    there = {name: json.loads(Path("there", name).read_text()) for name in
             ("config.json", "generation_config.json", "tokenizer_config.json")}
    assert there["generation_config.json"]["eos_token_id"] == LEARNED.specials[end]
    assert there["config.json"]["eos_token_id"] == LEARNED.specials[end]
    assert there["tokenizer_config.json"]["eos_token"] == end
    assert there["generation_config.json"]["pad_token_id"] == LEARNED.pad
    assert ("chat_template" in there["tokenizer_config.json"]) == (stage != "pretrain")


def test_an_empty_folder_is_filled(run):
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    save("sft.pt", "laptop")
    Path("there").mkdir()
    assert run("export", "sft.pt", "there/")[0] == 0
    assert sorted(os.listdir("there")) == ["config.json", "generation_config.json",
                                           "model.safetensors", "tokenizer.json",
                                           "tokenizer_config.json"]


def test_a_folder_with_files_is_not_overwritten(refused):
    save("sft.pt", "laptop")
    Path("there").mkdir()
    Path("there", "notes.txt").touch()
    assert "there is there already" in refused("export", "sft.pt", "there")
    assert os.listdir("there") == ["notes.txt"]


def test_an_export_that_fails_leaves_nothing(run, monkeypatch):
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    save("sft.pt", "laptop")
    monkeypatch.setattr("safetensors.torch.save_file", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("export", "sft.pt", "there")
    assert os.listdir() == ["sft.pt"]


def test_a_reward_model_is_refused(refused):
    save("reward.pt", "laptop", "reward")
    assert "reward.pt is a reward model" in refused("export", "reward.pt", "there")


@pytest.mark.parametrize("parts", [dict(norm="rms"), dict(mlp="swiglu"), dict(pos="learned",
                                                                              norm="rms")])
def test_a_model_that_fits_no_architecture_is_refused_and_its_parts_are_named(parts, refused):
    save("sft.pt", "laptop", **parts)
    line = refused("export", "sft.pt", "there")
    assert all(f"{name}={value}" in line for name, value in parts.items())


def test_for_a_missing_checkpoint_the_error_names_the_command_that_makes_it(refused):
    assert "python sft.py" in refused("export", "out/sft.pt", "there")


# ---------------------------------------------------------------------------------------------
# import from transformers

def from_transformers(style, **sizes):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    if style == "gpt2":
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(
            vocab_size=V, n_positions=32, **sizes))
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(
        vocab_size=V, max_position_embeddings=32, **sizes))


THEIRS = {
    "gpt2": ("gpt2", dict(n_layer=1, n_head=1, n_embd=16)),
    "gpt2, deeper": ("gpt2", dict(n_layer=3, n_head=4, n_embd=64, n_inner=80)),
    "llama": ("llama", dict(num_hidden_layers=2, num_attention_heads=4, hidden_size=64,
                            intermediate_size=96)),
    "llama, shared keys": ("llama", dict(
        num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, hidden_size=32,
        intermediate_size=80, rms_norm_eps=1e-3, rope_parameters=dict(rope_type="default",
                                                                      rope_theta=5e5))),
    "llama, one key, tied": ("llama", dict(
        num_hidden_layers=1, num_attention_heads=8, num_key_value_heads=1, hidden_size=64,
        intermediate_size=32, tie_word_embeddings=True))}


@pytest.mark.parametrize("size", ["50GB", "20KB"])
@pytest.mark.parametrize("name", THEIRS)
@torch.no_grad()
def test_the_imported_model_gives_the_logits_of_transformers(name, size, run, tmp_path):
    style, sizes = THEIRS[name]
    theirs = loud(from_transformers(style, **sizes))
    theirs.save_pretrained("there", max_shard_size=size)
    Path("there", "tokenizer.json").write_text(json.dumps(tokenizer_json()))
    assert Path("there/model.safetensors.index.json").exists() == (size == "20KB")
    status, _, err = run("import", "there", "p.pt")
    assert status == 0, err
    idx = torch.randint(0, KNOWN, (2, 32))
    torch.testing.assert_close(load("p.pt")[0](idx)[0][..., :KNOWN],
                               theirs(idx).logits[..., :KNOWN], rtol=0, atol=1e-4)


def test_the_older_and_the_newer_settings_of_rope_give_the_same_config(tmp_path):
    def read(**rope):
        (tmp_path / "config.json").write_text(json.dumps(LLAMA_CONFIG | rope))
        return hf.read_config(tmp_path / "config.json")[1]
    old = read(rope_theta=5e5, rope_scaling=None)
    assert old.rope_theta == 5e5 and read().rope_theta == 1e4
    assert old == read(rope_parameters=dict(rope_theta=5e5, rope_type="default"))


def test_without_a_setting_gpt2_is_tied_and_llama_is_not(tmp_path):
    for config, tied in ((GPT2_CONFIG, True), (LLAMA_CONFIG, False)):
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert hf.read_config(tmp_path / "config.json")[1].tied == tied


def test_without_a_setting_there_are_as_many_key_heads_as_query_heads(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_CONFIG | dict(num_key_value_heads=None)))
    assert hf.read_config(tmp_path / "config.json")[1] == replace(
        hf.read_config(write(tmp_path / "same", LLAMA_CONFIG) / "config.json")[1], n_kv_head=4)


def test_damaged_safetensors_are_named(folder, refused):
    pytest.importorskip("safetensors", reason="safetensors is not installed")
    (folder / "model.safetensors").write_bytes(b"\xff" * 100)
    assert "model.safetensors is damaged" in refused("import", folder, "p.pt")
