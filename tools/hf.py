"""Convert to and from the Hugging Face format: start from GPT-2, or serve your model elsewhere.

import  reads a folder with config.json, model.safetensors and the tokenizer's files, or downloads
        a model from huggingface.co by its name; writes a checkpoint, as pretrain.py does
        or reads a GGUF file of the LLaMA or GPT-2 family, the format of llama.cpp and Ollama
export  reads a checkpoint; writes such a folder, or a GGUF file if the name ends in .gguf

Both formats hold the same numbers. Only the names of the tensors differ, and some tensors are
transposed, stacked or in another order. GPT2LMHeadModel and LlamaForCausalLM can be imported.
The style laptop is exported as GPTNeoXForCausalLM, with biases of 0.
Needs: pip install safetensors; for models from huggingface.co also huggingface_hub, for GGUF gguf

    python -m tools.hf import gpt2 out/gpt2.pt --block_size=256
    python -m tools.hf import HuggingFaceTB/SmolLM2-135M out/smol.pt --block_size=256
    python -m tools.hf import SmolLM2-135M-Instruct.Q4_1.gguf out/smol.pt --block_size=256
    python -m tools.hf export out/sft.pt out/assistant
    python -m tools.hf export out/sft.pt out/assistant.gguf --f16
"""

import dataclasses
import json
import re
import sys
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from itertools import takewhile
from pathlib import Path
from shlex import quote
from tempfile import TemporaryDirectory

import torch

from checkpoint import check_room, load_checkpoint, plain, save_checkpoint, size_of
from common import fail, named, parse_config
from data.pattern import check_pattern
from model import GPT, GPTConfig
from tokenizer import GPT2, Tokenizer
from tools import gguf_file


@dataclass
class Config:
    init: str = ""        # what to read: the second word of the command
    out: str = ""         # what to write: the third word
    block_size: int = 0   # import: shorten the context to so many tokens; 0: keep all of it
    fresh: bool = False   # import: replace an existing checkpoint
    f16: bool = False     # export to GGUF: the matrices in 16 bits, not 32
    debug: bool = False   # show tracebacks


# ---- our names and theirs -------------------------------------------------------------------

def dictionary(table):
    """-> {architecture: {our name: their name}}"""
    head, *rows = (line.split() for line in table.strip().split("\n"))
    return {arch: {row[0]: row[i] for row in rows if row[i] != "-"}
            for i, arch in enumerate(head[1:], start=1)}


MODULES = dictionary("""
    ours        GPT2LMHeadModel      LlamaForCausalLM          GPTNeoXForCausalLM
    wte         transformer.wte      model.embed_tokens        gpt_neox.embed_in
    wpe         transformer.wpe      -                         -
    norm        transformer.ln_f     model.norm                gpt_neox.final_layer_norm
    lm_head     lm_head              lm_head                   embed_out
    blocks      transformer.h        model.layers              gpt_neox.layers
    norm_1      ln_1                 input_layernorm           input_layernorm
    norm_2      ln_2                 post_attention_layernorm  post_attention_layernorm
    attn.qkv    attn.c_attn          self_attn.[q,k,v]_proj    attention.query_key_value
    attn.proj   attn.c_proj          self_attn.o_proj          attention.dense
    mlp.fc      mlp.c_fc             mlp.[gate,up]_proj        mlp.dense_h_to_4h
    mlp.proj    mlp.c_proj           mlp.down_proj             mlp.dense_4h_to_h
""")
FIELDS = dictionary("""
    ours        GPT2LMHeadModel      LlamaForCausalLM          GPTNeoXForCausalLM
    block_size  n_positions          max_position_embeddings   max_position_embeddings
    vocab_size  vocab_size           vocab_size                vocab_size
    n_layer     n_layer              num_hidden_layers         num_hidden_layers
    n_head      n_head               num_attention_heads       num_attention_heads
    n_kv_head   -                    num_key_value_heads       -
    n_embd      n_embd               hidden_size               hidden_size
    n_hidden    n_inner              intermediate_size         intermediate_size
    mlp         activation_function  hidden_act                hidden_act
    tied        tie_word_embeddings  tie_word_embeddings       tie_word_embeddings
    rope_theta  -                    rope_theta                rotary_emb_base
    norm_eps    layer_norm_epsilon   rms_norm_eps              layer_norm_eps
""")
GPT_2, LLAMA, NEOX = FIELDS
MLPS = {GPT_2: {"gelu_tanh": "gelu_new", "gelu": "gelu"}, LLAMA: {"swiglu": "silu"}}
MLPS[NEOX] = MLPS[GPT_2]
PARTS = {GPT_2: dict(pos="learned", norm="layer"), NEOX: dict(pos="rope", norm="layer"),
         LLAMA: dict(pos="rope", norm="rms", bias=False)}
# These settings make their models compute what ours computes.
FIXED = {GPT_2: dict(model_type="gpt2", scale_attn_weights=True, add_cross_attention=False,
                     scale_attn_by_inverse_layer_idx=False),
         LLAMA: dict(model_type="llama", rope_scaling=None, attention_bias=False, mlp_bias=False),
         NEOX: dict(model_type="gpt_neox", rotary_pct=1.0, use_parallel_residual=False)}


def their_names(arch, name):
    """blocks.0.mlp.fc.weight -> model.layers.0.mlp.gate_proj.weight, ….up_proj.weight"""
    module, kind = name.rsplit(".", 1)
    layer = ""
    if module.startswith("blocks."):
        _, number, module = module.split(".", 2)
        layer = f"{MODULES[arch]['blocks']}.{number}."
    start, some, end = re.fullmatch(r"([^[]*)\[?([^]]*)]?(.*)", MODULES[arch][module]).groups()
    return [f"{layer}{start}{part}{end}.{kind}" for part in some.split(",")]


def turn(arch, name, w):
    """GPT-2 stores the matrices of its linear layers transposed."""
    return w.t() if arch == GPT_2 and name.startswith("blocks.") else w


def swap(heads, a, b):
    """(heads, a * b, …) -> (heads, b * a, …). RoPE rotates rows in pairs: our pairs are the rows
    2i and 2i + 1 (D/2 groups of 2), their pairs are i and i + D/2 (2 groups of D/2)."""
    return heads.unflatten(1, (a, b)).transpose(1, 2).flatten(1, 2)


def split_heads(arch, config, w):
    """Our attn.qkv: the rows of all queries, then all keys, then all values -> their tensors."""
    G, K, D = config.n_head // config.n_kv_head, config.n_kv_head, config.n_embd // config.n_head
    q, k, v = w.unflatten(0, (-1, D)).split((G * K, K, K))            # (heads, D, C) or (heads, D)
    if arch != GPT_2:
        q, k = (swap(t, D // 2, 2) for t in (q, k))
    if arch == LLAMA:
        return [t.flatten(0, 1) for t in (q, k, v)]
    k, v = (t.repeat_interleave(G, dim=0) for t in (k, v))            # no shared keys there
    if arch == GPT_2:
        return [torch.cat((q, k, v)).flatten(0, 1)]
    return [torch.stack((q, k, v), dim=1).flatten(0, 2)]              # q, k, v of head 0, then of 1


def to_theirs(arch, config, weights):
    """{our name: tensor} -> {their name: tensor}"""
    theirs = {}
    for name, w in weights.items():
        if config.tied and name == "lm_head.weight":
            continue
        parts = split_heads(arch, config, w) if ".attn.qkv." in name else [w]
        if arch == LLAMA and ".mlp.fc." in name:
            parts = w.chunk(2)
        theirs |= zip(their_names(arch, name), (turn(arch, name, part) for part in parts))
    return theirs


def from_theirs(arch, config, theirs, folder):
    """The inverse of to_theirs(), for GPT-2 and LLaMA. Fails if a tensor is missing, unknown, of
    another shape, or holds no numbers."""
    # a config may ask for millions of layers: the first that the file lacks is enough to refuse it
    start = re.escape(MODULES[arch]["blocks"])
    layers = {found[1] for name in theirs if (found := re.match(rf"{start}\.(\d+)\.", name))}
    size = dataclasses.replace(config, n_layer=min(config.n_layer, len(layers) + 1))
    with naming(folder), torch.device("meta"):        # only shapes, no memory
        blank = GPT(size).state_dict()
    expected = to_theirs(arch, config, blank)
    for name in [*expected, *theirs]:
        if name not in theirs or name not in expected:
            fail(f"{folder}: the tensor {name} is {'missing' if name in expected else 'unknown'}")
        there, here = tuple(theirs[name].shape), tuple(expected[name].shape)
        if there != here:
            fail(f"{folder}: the tensor {name} is {there}, but {here} expected")
        if not theirs[name].is_floating_point():
            fail(f"{folder}: the tensor {name} holds {theirs[name].dtype}, but floats expected")
        if not theirs[name].float().isfinite().all():
            fail(f"{folder}: the tensor {name} holds NaN or infinity")
    ours = {}
    for name in blank:
        source = "wte.weight" if config.tied and name == "lm_head.weight" else name
        parts = [turn(arch, name, theirs[n].float()) for n in their_names(arch, source)]
        if arch == LLAMA and ".attn.qkv." in name:
            D = config.n_embd // config.n_head
            parts[:2] = [swap(p.unflatten(0, (-1, D)), 2, D // 2).flatten(0, 1) for p in parts[:2]]
        ours[name] = torch.cat(parts)
    return ours


# ---- their files ----------------------------------------------------------------------------

def need(module, purpose):
    """Import an optional library, or say how to install it."""
    try:
        return import_module(module)
    except ImportError:
        fail(f"{purpose}: pip install {module.split('.')[0]}")


def brief(error):
    return " ".join(str(error).split())[:200]


@contextmanager
def naming(path):
    """Errors inside say that the file path is their reason."""
    try:
        yield
    except ValueError as error:
        fail(f"{path}: {error}")
    except Exception as error:                        # damaged files raise many kinds of errors
        fail(f"{path} is damaged: {brief(repr(error))}")


def find(source):
    """-> the folder `source`, or a folder with the model of that name from huggingface.co."""
    if Path(source).is_dir():
        return Path(source)
    hub = need("huggingface_hub", f"{source} is no folder; to download it from huggingface.co")
    files = ["config.json", "tokenizer.json", "vocab.json", "merges.txt"]
    try:
        there = hub.list_repo_files(source)           # the weights once, not in every format
        safe = any(name.endswith(".safetensors") for name in there)
        files.append("model*.safetensors*" if safe else "pytorch_model*.bin*")
        return Path(hub.snapshot_download(source, allow_patterns=files))
    except Exception as error:                        # a wrong name, or no network
        fail(f"{source} is no folder, and the download from huggingface.co failed: {brief(error)}")


def read_json(path):
    if not path.is_file():
        fail(f"{path} is missing")
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (RecursionError, TypeError, ValueError) as error:
        fail(f"{path} is damaged: {brief(error)}")


def read_config(path):
    """config.json -> the architecture and our GPTConfig. Fails for settings that model.py lacks."""
    theirs = {key: value for key, value in read_json(path).items() if value is not None}
    given = theirs.get("architectures") or ["a model without architecture"]
    if not isinstance(given, list):
        fail(f"{path}: architectures={given!r} is not a list, as [{LLAMA!r}] is")
    arch = given[0]
    if arch not in (GPT_2, LLAMA):
        fail(f"{path}: {arch} is not supported, only {GPT_2} and {LLAMA} are")
    try:
        # Missing settings have defaults. Newer files keep the settings of RoPE in a dict.
        rope = theirs.get("rope_parameters") or theirs.get("rope_scaling") or {}
        if not isinstance(rope, dict):
            raise ValueError(f"rope_parameters={rope!r} is not a dict")
        rope, wide = dict(rope), theirs.get("n_embd")
        theirs = dict(
            tie_word_embeddings=arch == GPT_2, n_inner=wide and 4 * wide, rope_theta=1e4,
            num_key_value_heads=theirs.get("num_attention_heads"),
            activation_function="gelu_new", hidden_act="silu") | theirs
        theirs["rope_theta"] = rope.pop("rope_theta", theirs["rope_theta"])
        theirs["rope_scaling"] = None if rope in ({}, {"rope_type": "default"}) else rope
        values = {ours: theirs[key] for ours, key in FIELDS[arch].items()}
        values["mlp"] = next((ours for ours, act in MLPS[arch].items() if act == values["mlp"]),
                             *MLPS[LLAMA])
        gguf_file.check_kinds(values, FIELDS[arch])
        config = GPTConfig(**dict(n_kv_head=values["n_head"], bias=True) | values | PARTS[arch])
    except KeyError as key:
        fail(f"{path} lacks {key}")
    except (TypeError, ValueError) as error:
        fail(f"{path}: {brief(error)}")
    choices = {key: [value] for key, value in FIXED[arch].items()} | {
        FIELDS[arch]["mlp"]: [*MLPS[arch].values()], "partial_rotary_factor": [1.0],
        "head_dim": [config.n_embd // config.n_head], "quantization_config": [None]}
    for key, known in choices.items():
        if theirs.get(key, known[0]) not in known:
            fail(f"{path}: {key}={theirs[key]!r} is not supported, only "
                 f"{' and '.join(map(repr, known))}")
    return arch, config


def read_weights(folder, arch, config):
    """-> {name: tensor} from all files, without constants and without a second copy of wte."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{name}.index.json"
        if index.is_file() or (folder / name).is_file():
            break
    else:
        fail(f"{folder} has neither model.safetensors nor pytorch_model.bin")
    weights = {}
    with naming(index):
        files = {*read_json(index)["weight_map"].values()} if index.is_file() else {name}
        paths = [folder / file for file in files]
    for path in paths:
        weights |= {plain(name): w for name, w in read_tensors(path).items()}

    if arch == GPT_2:                                 # OpenAI's own files lack "transformer."
        weights = {n if n.startswith(("transformer.", "lm_head.")) else f"transformer.{n}": w
                   for n, w in weights.items()}
    constants = re.compile(r".*(\.attn\.(masked_)?bias|\.rotary_emb\.inv_freq)")
    weights = {n: w for n, w in weights.items() if not constants.fullmatch(n)}
    wte, head = f"{MODULES[arch]['wte']}.weight", weights.get("lm_head.weight")
    if config.tied and head is not None and torch.equal(weights.get(wte, head), head):
        weights[wte] = weights.pop("lm_head.weight")  # one matrix, saved under either name or both
    return weights


def read_tensors(path):
    if not path.is_file():
        fail(f"{path} is missing")
    try:
        if path.suffix == ".bin":
            weights = torch.load(path, map_location="cpu", weights_only=True)
        else:
            weights = need("safetensors.torch", f"to read {path}").load_file(path)
    except Exception as error:                        # damaged files raise many kinds of errors
        fail(f"{path} is damaged: {brief(error)}")
    if not isinstance(weights, dict) or not all(
            isinstance(name, str) and isinstance(w, torch.Tensor) for name, w in weights.items()):
        fail(f"{path} is damaged: it should hold tensors by their names")
    if any(w.nbytes > path.stat().st_size for w in weights.values()):
        fail(f"{path} is damaged: a tensor is larger than the file")
    return weights


# ---- tokenizers -----------------------------------------------------------------------------

# GPT-2's and Hugging Face's files write a byte as one printable character: 97 as "a", 32 as "Ġ".
others = map(chr, range(256, 324))
BYTE_CHARS = [chr(b) if 33 <= b < 127 or 161 <= b != 173 else next(others) for b in range(256)]


def read_tokenizer(folder):
    """-> our Tokenizer with their ids, and the number of their ids. Our new ids follow them."""
    path = folder / "tokenizer.json"
    if path.is_file():
        with naming(path):
            return tokenizer_from_hf(read_json(path))
    path = folder / "merges.txt"
    if path.is_file():
        with naming(path):
            return tokenizer_from_gpt2(folder / "vocab.json", path)
    fail(f"{folder} has neither tokenizer.json nor GPT-2's vocab.json and merges.txt")


def tokenizer_from_gpt2(encoder_json, vocab_bpe):
    """The two files that OpenAI published -> as read_tokenizer(). <|endoftext|> is 50256."""
    lines = Path(vocab_bpe).read_text(encoding="utf-8").split("\n")
    lines = [line for line in lines if line and not line.startswith("#version")]
    return tokenizer_from_hf(dict(
        model=dict(type="BPE", vocab=read_json(Path(encoder_json)), merges=lines),
        pre_tokenizer=dict(type="ByteLevel", add_prefix_space=False)))


def tokenizer_from_hf(saved):
    """The content of a tokenizer.json -> our Tokenizer and the number of their ids.
    Raises ValueError if ours would give other ids for some texts."""
    model, added, merges = saved["model"], saved.get("added_tokens") or [], {}
    vocab = model["vocab"]
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        raise ValueError("only byte-level BPE is supported, not SentencePiece (LLaMA 2, TinyLlama) "
                         "or other tokenizers")
    for pair in model["merges"]:
        a, b = pair.split(" ") if isinstance(pair, str) else pair
        merges[vocab[a], vocab[b]] = vocab[a + b]

    given = [*vocab.values(), *(token["id"] for token in added)]
    if any(type(id) is not int or id < 0 for id in given) or len({*vocab.values()}) < len(vocab):
        raise ValueError("its ids are not different whole numbers")

    # SmolLM has no tokens for some rare bytes and drops them. Here they get new ids.
    names = vocab | {token["content"]: token["id"] for token in added}
    known = max(names.values()) + 1
    lacking = [char for char in BYTE_CHARS if char not in vocab]
    ids = vocab | {char: known + i for i, char in enumerate(lacking)}
    byte_ids = [ids[char] for char in BYTE_CHARS]
    made = {*byte_ids, *merges.values()}              # the ids in a text; all others are special

    odd = [key for key in ("ignore_merges", "dropout", "continuing_subword_prefix",
                           "end_of_word_suffix") if model.get(key)]
    odd += ["normalizer"] if saved.get("normalizer") else []
    odd += [f"the added token {token['content']!r}, which is also an ordinary one,"
            for token in added if token["id"] in made]
    inside = [repr(token["content"]) for token in added if not token.get("special")]
    if len(merges) < len(model["merges"]) or [*merges.values()] != sorted({*merges.values()}):
        odd.append("an order of merges that differs from the order of their ids,")
    if odd:
        raise ValueError(f"{odd[0]} is not supported")
    if inside:
        raise ValueError(f"added tokens inside plain text ({', '.join(inside)}) are not supported; "
                         'if your texts contain none of them, set "special": true for each of '
                         "these in a copy of the folder, and import the copy")
    # chat models end a message with <|im_end|>; under our name for it they know when to stop
    ours = {} if "<|end|>" in names else {"<|im_end|>": "<|end|>"}
    specials = {ours.get(name, name): id for name, id in names.items() if id not in made}
    return Tokenizer(split_pattern(saved.get("pre_tokenizer")), byte_ids, merges, specials), known


def split_pattern(steps):
    """-> one regex that splits a text into words as their pre_tokenizer does."""
    if not steps:                                     # null: such models don't split at all
        raise ValueError("to have no pre_tokenizer is not supported")
    *cuts, level = steps.get("pretokenizers", [steps])
    kinds, gpt2 = [cut["type"] for cut in cuts], level.get("use_regex", True)
    if level["type"] == "ByteLevel" and not level["add_prefix_space"]:
        if gpt2 and not cuts:
            return GPT2
        if gpt2 and kinds == ["Digits"] and cuts[0]["individual_digits"]:
            return gguf_file.SMOLLM
        cut = dict(cuts[0]) if kinds == ["Split"] else {}
        if not gpt2 and cut.get("behavior") == "Isolated" and not cut.get("invert"):
            with suppress(ValueError):
                check_pattern(pattern := cut["pattern"].get("Regex", ""))
                return pattern
    raise ValueError(f"the pre_tokenizer {' + '.join([*kinds, level['type']])} is not supported")


def printable(tok):
    """-> {id: its printable characters}, without the special tokens"""
    return {id: "".join(BYTE_CHARS[b] for b in token) for token, id in tok.ranks.items()}


def tokenizer_to_hf(tok, path):
    """Write a tokenizer.json for Hugging Face. Unlike ours, it finds special tokens in a text."""
    names = printable(tok)
    off = dict(single_word=False, lstrip=False, rstrip=False, normalized=False)
    level = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=False)
    split = dict(type="Split", pattern={"Regex": tok.pattern}, behavior="Isolated", invert=False)
    Path(path).write_text(json.dumps({
        "model": {"type": "BPE", "vocab": {n: id for id, n in names.items()} | tok.specials,
                  "merges": [f"{names[left]} {names[right]}" for left, right in tok.merges]},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]}, "decoder": level,
        "added_tokens": [dict(id=id, content=name, special=True, **off)
                         for name, id in tok.specials.items()]}), encoding="utf-8")


# ---- import ---------------------------------------------------------------------------------

def new_rows(w, known, size):
    """w (V, C) -> (size, C): the first `known` rows, then rows for new tokens.

    A random row in the output layer could give a new token the highest logit. The mean of all
    rows gives it an average logit. A little noise makes the new rows differ.
    """
    noise = torch.randn(size - known, w.size(1), generator=torch.Generator().manual_seed(0))
    return torch.cat((w[:known], w[:known].mean(0) + 0.1 * w[:known].std(0) * noise))


def read_folder(source):
    """-> the folder; the architecture, our GPTConfig, our Tokenizer and the number of their ids;
    and a function that reads the weights"""
    folder = find(source)
    arch, config = read_config(folder / "config.json")
    return folder, arch, config, *read_tokenizer(folder), lambda: read_weights(folder, arch, config)


def read_gguf(path):
    """The same of a GGUF file"""
    if not Path(path).is_file():
        fail(f"{path} is missing")
    need("gguf", f"to read {path}")
    with naming(path):
        settings, tensors = gguf_file.open_gguf(path)
        arch, config = gguf_file.read_config(settings, tensors)
        tok, known = tokenizer_from_hf(gguf_file.read_tokenizer(settings))
    def weights():
        with naming(path):
            return gguf_file.read_weights(arch, config, tensors)
    return path, gguf_file.ARCHS[arch], config, tok, known, weights


def import_model(config):
    if Path(config.out).exists() and not config.fresh:
        fail(f"{config.out} is there already: add --fresh to replace it")
    read = read_gguf if config.init.endswith(".gguf") else read_folder
    folder, arch, theirs, tok, known, read_all = read(config.init)
    T = config.block_size or theirs.block_size
    if not 0 < T <= theirs.block_size:
        fail(f"--block_size={T} must be between 1 and {theirs.block_size}, the model's context")
    if known > theirs.vocab_size:
        fail(f"{folder}: the tokenizer has {known} ids, but the embedding {theirs.vocab_size} rows")

    weights = from_theirs(arch, theirs, read_all(), folder)
    for name in ("wte.weight", "lm_head.weight"):     # rows without a token are dropped
        weights[name] = new_rows(weights[name], known, tok.vocab_size)
    if theirs.tied:
        weights["lm_head.weight"] = weights["wte.weight"]
    if arch == GPT_2:
        weights["wpe.weight"] = weights["wpe.weight"][:T].clone()
    ours = dataclasses.replace(theirs, vocab_size=tok.vocab_size, block_size=T)
    save_checkpoint(config.out, stage="pretrain", step=0, metrics={}, model=weights, history=[],
                    model_config=ours, tokenizer=tok, config=config)
    n_params = sum(w.numel() for w in set(weights.values()))
    print(f"{config.out}: {arch}, {n_params / 1e6:.2f}M parameters, a context of {T} tokens, "
          f"{known:,} tokens and {tok.vocab_size - known} new ones")
    print(f"next: python sft.py --init={quote(config.out)} --lr=5e-5")


# ---- export ---------------------------------------------------------------------------------

# encode_chat() as a template: the same ids. But there a special token that a user types counts.
CHAT = ("{{ '<|endoftext|>' }}{% for message in messages %}{{ '<|' + message['role'] + '|>' + "
        "message['content'] + '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}")


def export_model(config):
    out, gguf = Path(config.out), config.out.endswith(".gguf")
    if out.exists() and (gguf or not out.is_dir() or any(out.iterdir())):
        fail(f"{out} is there already: choose a new {'name' if gguf else 'or an empty folder'}")
    if config.f16 and not gguf:
        fail(f"--f16 is for GGUF files: choose a name like {out}.gguf")
    ckpt = load_checkpoint(config.init)
    if ckpt["stage"] == "reward":
        fail(f"{config.init} is a reward model: export a model that writes text, as out/sft.pt")
    ours, tok, mine = ckpt["model"].config, ckpt["tokenizer"], ckpt["model"].state_dict()
    arch = next((arch for arch in FIELDS if PARTS[arch].items() <= vars(ours).items()
                 and ours.mlp in MLPS[arch]), None)
    if arch is None:
        fail(f"{config.init}: no supported architecture has pos={ours.pos}, norm={ours.norm}, "
             f"mlp={ours.mlp} and bias={ours.bias}")
    need("gguf" if gguf else "safetensors.torch", f"to write {out}")

    with torch.device("meta"):                        # only shapes
        blank = GPT(dataclasses.replace(ours, bias=arch != LLAMA)).state_dict()
    # Where we have no biases, theirs are 0.
    filled = {name: mine.get(name, torch.zeros(w.shape)) for name, w in blank.items()}
    weights = to_theirs(arch, ours, filled)
    ids = dict(bos_token_id=tok.eot, eos_token_id=tok.eot, pad_token_id=tok.pad)
    chat = {}
    if ckpt["stage"] != "pretrain":
        ids["eos_token_id"], chat = tok.end, dict(chat_template=CHAT)
    out.parent.mkdir(parents=True, exist_ok=True)
    check_room(out.parent, size_of(weights) // (1 + config.f16))
    with named(out), TemporaryDirectory(dir=out.parent, prefix=f"{out.name}.") as tmp:
        whole = Path(tmp, "whole")                    # renamed when it is complete
        if gguf:
            with naming(config.init):
                gguf_file.write_gguf(whole, arch, ours, weights, tok, printable(tok), ids, chat,
                                     config.f16)
        else:
            write_folder(whole, arch, ours, weights, tok, ids, chat)
        if out.exists():
            out.rmdir()
        whole.rename(out)
    print(f"{out}: {arch}, {sum(w.numel() for w in weights.values()) / 1e6:.2f}M parameters")
    print(f"next: llama-cli -m {quote(config.out)}" if gguf else
          f"next: transformers.AutoModelForCausalLM.from_pretrained({config.out!r})")


def write_folder(folder, arch, config, weights, tok, ids, chat):
    """ids, chat: settings for the files about the tokenizer"""
    files = {
        "config.json": {theirs: getattr(config, name) for name, theirs in FIELDS[arch].items()} | {
            FIELDS[arch]["mlp"]: MLPS[arch][config.mlp], **FIXED[arch], **ids,
            "architectures": [arch], "torch_dtype": "float32"},
        "generation_config.json": ids,
        "tokenizer_config.json": {name[:-3]: tok.decode([id]) for name, id in ids.items()} | dict(
            tokenizer_class="PreTrainedTokenizerFast", model_max_length=config.block_size,
            clean_up_tokenization_spaces=False, **chat)}
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    tokenizer_to_hf(tok, folder / "tokenizer.json")
    save_file = import_module("safetensors.torch").save_file
    save_file({name: w.contiguous() for name, w in weights.items()}, folder / "model.safetensors",
              metadata={"format": "pt"})


if __name__ == "__main__":
    flags = list(takewhile(lambda word: word.startswith("-"), sys.argv[1:]))
    rest = sys.argv[1 + len(flags):]                  # --f16 export … is export … --f16
    words = list(takewhile(lambda word: not word.startswith("-"), rest))
    config = parse_config(Config, __doc__, rest[len(words):] + flags)
    if len(words) != 3 or words[0] not in ("import", "export"):
        fail("usage: python -m tools.hf import FOLDER_OR_NAME out/pretrain.pt, or python -m "
             "tools.hf export out/sft.pt FOLDER; each FOLDER may be a FILE.gguf (-h tells more)")
    action, config.init, config.out = words
    {"import": import_model, "export": export_model}[action](config)
