"""Convert to and from the Hugging Face format: start from GPT-2, or serve your model elsewhere.

import  reads a folder with config.json, model.safetensors and tokenizer.json, the name of such a
        model on huggingface.co, or a GGUF file, as of llama.cpp and Ollama; writes a checkpoint
export  reads a checkpoint; writes such a folder, or a GGUF file if the name ends in .gguf

All hold the same numbers. Only the names of the tensors differ, and some tensors are transposed,
stacked or in another order. GPT2LMHeadModel, LlamaForCausalLM (Llama 3 and SmolLM2, too),
Qwen2ForCausalLM (2.5, too) and Qwen3ForCausalLM can be imported. The style laptop is exported as
PersimmonForCausalLM, the one family with LayerNorm, GELU and normalised queries and keys, with
biases of 0; llama.cpp can't compute it.
Needs: pip install safetensors; for models from huggingface.co also huggingface_hub, for GGUF gguf

    python -m tools.hf import gpt2 out/gpt2.pt --block_size=256
    python -m tools.hf import HuggingFaceTB/SmolLM2-135M out/smol.pt --block_size=256
    python -m tools.hf import SmolLM2-135M-Instruct.Q4_1.gguf out/smol.pt --chat=own
    python -m tools.hf export out/sft.pt out/assistant
    python -m tools.hf export out/sft.pt out/assistant.gguf --f16
"""

import dataclasses
import json
import math
import re
import sys
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from itertools import takewhile
from pathlib import Path
from shlex import quote
from tempfile import TemporaryDirectory

import torch

from checkpoint import load_checkpoint, save_checkpoint
from common import fail, named, parse_config
from data.pattern import check_pattern
from model import GPT, GPTConfig
from tokenizer import GPT2, Tokenizer, merge
from tools import gguf_file
from tools.chat_format import check_format, find_format, renderer, template_of


@dataclass
class Config:
    init: str = ""        # what to read: the second word of the command
    out: str = ""         # what to write: the third word
    block_size: int = 0   # import: shorten the context to so many tokens; 0: keep all of it
    chat: str = "ours"    # import: our chat format, which SFT must teach; own: that of the model
    loose: bool = False   # import: allow other ids for rare texts: Unicode's NFC, added tokens
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
    ours        GPT2LMHeadModel      LlamaForCausalLM          PersimmonForCausalLM
    wte         transformer.wte      model.embed_tokens        model.embed_tokens
    wpe         transformer.wpe      -                         -
    norm        transformer.ln_f     model.norm                model.final_layernorm
    lm_head     lm_head              lm_head                   lm_head
    blocks      transformer.h        model.layers              model.layers
    norm_1      ln_1                 input_layernorm           input_layernorm
    norm_2      ln_2                 post_attention_layernorm  post_attention_layernorm
    attn.qkv    attn.c_attn          self_attn.[q,k,v]_proj    self_attn.query_key_value
    attn.q_norm -                    self_attn.q_norm          -
    attn.k_norm -                    self_attn.k_norm          -
    attn.proj   attn.c_proj          self_attn.o_proj          self_attn.dense
    mlp.fc      mlp.c_fc             mlp.[gate,up]_proj        mlp.dense_h_to_4h
    mlp.proj    mlp.c_proj           mlp.down_proj             mlp.dense_4h_to_h
""")
FIELDS = dictionary("""
    ours        GPT2LMHeadModel      LlamaForCausalLM          PersimmonForCausalLM
    block_size  n_positions          max_position_embeddings   max_position_embeddings
    vocab_size  vocab_size           vocab_size                vocab_size
    n_layer     n_layer              num_hidden_layers         num_hidden_layers
    n_head      n_head               num_attention_heads       num_attention_heads
    n_kv_head   -                    num_key_value_heads       -
    n_embd      n_embd               hidden_size               hidden_size
    head_dim    -                    head_dim                  -
    n_hidden    n_inner              intermediate_size         intermediate_size
    mlp         activation_function  hidden_act                hidden_act
    tied        tie_word_embeddings  tie_word_embeddings       tie_word_embeddings
    rope_theta  -                    rope_theta                rope_theta
    rope_scaling -                   rope_scaling              -
    norm_eps    layer_norm_epsilon   rms_norm_eps              layer_norm_eps
""")
GPT_2, LLAMA, PERSIMMON = FIELDS
QWEN_2, QWEN_3 = "Qwen2ForCausalLM", "Qwen3ForCausalLM"
LLAMAS = LLAMA, QWEN_2, QWEN_3                        # different biases, and norms of q and k
for qwen in (QWEN_2, QWEN_3):
    MODULES[qwen], FIELDS[qwen] = MODULES[LLAMA], FIELDS[LLAMA]
MLPS = {arch: {"swiglu": "silu"} if arch in LLAMAS else {"gelu_tanh": "gelu_new", "gelu": "gelu"}
        for arch in FIELDS}
LIKE_LLAMA = dict(pos="rope", norm="rms", qk_norm=False, qk_rms=False, bias=False, qkv_bias=False)
PARTS = {GPT_2: dict(pos="learned", norm="layer", qk_norm=False, qk_rms=False, rope_scaling=()),
         LLAMA: LIKE_LLAMA, QWEN_2: LIKE_LLAMA | dict(qkv_bias=True),
         QWEN_3: LIKE_LLAMA | dict(qk_norm=True, qk_rms=True),
         PERSIMMON: dict(pos="rope", norm="plain", qk_norm=True, qk_rms=False, rope_scaling=())}
# These settings make their models compute what ours computes.
FIXED = {GPT_2: dict(model_type="gpt2", scale_attn_weights=True, add_cross_attention=False,
                     scale_attn_by_inverse_layer_idx=False),
         LLAMA: dict(model_type="llama", attention_bias=False, mlp_bias=False),
         QWEN_2: dict(model_type="qwen2", use_sliding_window=False),
         QWEN_3: dict(model_type="qwen3", use_sliding_window=False, attention_bias=False),
         PERSIMMON: dict(model_type="persimmon", partial_rotary_factor=1.0, qk_layernorm=True)}
# The four numbers of GPTConfig.rope_scaling, as config.json has them beside rope_type="llama3".
SCALING = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def their_names(arch, name, names=None):
    """blocks.0.mlp.fc.weight -> model.layers.0.mlp.gate_proj.weight, ….up_proj.weight
    or, with GGUF's table of names, blk.0.ffn_gate.weight, blk.0.ffn_up.weight"""
    module, kind = name.rsplit(".", 1)
    layer = ""
    if module.startswith("blocks."):
        _, number, module = module.split(".", 2)
        layer = f"{MODULES[arch]['blocks']}.{number}."
    start, some, end = re.fullmatch(r"([^[]*)\[?([^]]*)]?(.*)", MODULES[arch][module]).groups()
    found = [f"{layer}{start}{part}{end}.{kind}" for part in some.split(",")]
    return [names.get_name(name, (".weight", ".bias")) for name in found] if names else found


def halves(w, dim):
    """RoPE rotates rows in pairs: ours are 2i, 2i + 1, as in GGUF's LLaMA; theirs i, i + D/2."""
    return w.unflatten(dim, (-1, 2)).transpose(dim, dim + 1).flatten(dim, dim + 1)


def split_heads(arch, config, w, turn):
    """Our attn.qkv: the rows of all queries, then all keys, then all values -> their tensors."""
    G, K, D = config.n_head // config.n_kv_head, config.n_kv_head, config.head_dim
    q, k, v = w.unflatten(0, (-1, D)).split((G * K, K, K))            # (heads, D, C) or (heads, D)
    if turn:
        q, k = halves(q, 1), halves(k, 1)
    if arch in LLAMAS:
        return [t.flatten(0, 1) for t in (q, k, v)]
    k, v = (t.repeat_interleave(G, dim=0) for t in (k, v))            # no shared keys there
    by_head = arch == PERSIMMON                                       # q, k, v of head 0, then of 1
    return [torch.stack((q, k, v), dim=int(by_head)).flatten(0, 2)]


def to_theirs(arch, config, weights, names=None):
    """{our name: tensor} -> {their name: tensor}; names: GGUF's table of names, for its tensors"""
    theirs, turn = {}, arch != GPT_2 and not (names and arch == LLAMA)
    for name, w in weights.items():
        if name == "lm_head.weight" and config.tied:
            continue
        parts = split_heads(arch, config, w, turn) if ".attn.qkv." in name else [w]
        if turn and re.search(r"\.[qk]_norm\.", name):
            parts = [halves(w, 0)]
        if arch in LLAMAS and ".mlp.fc." in name:
            parts = w.chunk(2)
        if arch == GPT_2 and not names and name.startswith("blocks."):
            parts = [part.t() for part in parts]      # so they stand in OpenAI's files
        theirs |= zip(their_names(arch, name, names), parts)
    return theirs


def from_theirs(arch, config, theirs, path, gguf=False):
    """The inverse of to_theirs(). Fails if a tensor is missing, unknown, of another shape, or holds
    no numbers."""
    # a config may ask for millions of layers: one more than the tensors is enough to refuse it
    size = dataclasses.replace(config, n_layer=min(config.n_layer, len(theirs) + 1))
    names = gguf_file.names_of(arch, size.n_layer) if gguf else None
    with naming(path), torch.device("meta"):          # only shapes, no memory
        blank = GPT(size).state_dict()
    expected = to_theirs(arch, size, blank, names)
    wte, head = (their_names(arch, f"{part}.weight", names)[0] for part in ("wte", "lm_head"))
    if config.tied and head in theirs and torch.equal(theirs.get(wte, theirs[head]), theirs[head]):
        theirs[wte] = theirs.pop(head)                # one matrix, saved under either name or both
    there, here = ({name: tuple(w.shape) for name, w in of.items()} for of in (theirs, expected))
    for name in [*expected, *theirs]:
        if there.get(name) != here.get(name):
            fail(f"{path}: the tensor {name} is {there.get(name, 'missing')}, but "
                 f"{here.get(name, 'none')} expected")
        if not (theirs[name].is_floating_point() and theirs[name].float().isfinite().all()):
            fail(f"{path}: the tensor {name} must hold finite floats")
    ours = {name: torch.zeros(w.shape) for name, w in blank.items()}
    for name, w in ours.items():                      # to_theirs() shows where each number stands
        places = torch.arange(w.numel()).view(w.shape)
        for there, place in to_theirs(arch, config, {name: places}, names).items():
            w.view(-1)[place] = theirs[there].float()
    return ours


def our_config(arch, theirs, names, fixed):
    """What a file says -> our GPTConfig. names: {our setting: theirs}. fixed: {their setting: the
    value that it must have, if it is there, or ... for the width of a head}."""
    values = {ours: theirs[name] for ours, name in names.items()}
    for name, value in values.items():
        kind = type(getattr(GPTConfig, name))
        like = (int, float) if kind is float else (kind,)             # 10000 is 10000.0, too
        if type(value) not in like or kind is float and not 0 < value < math.inf:
            raise ValueError(f"{names[name]}={value!r} should be a {kind.__name__}")
    config = GPTConfig(**dict(n_kv_head=values["n_head"], bias=True, mlp=next(iter(MLPS[arch])))
                       | values | PARTS[arch])
    for name, known in fixed.items():
        known = config.head_dim if known is ... else known
        if theirs.get(name, known) != known:
            raise ValueError(f"{name}={theirs[name]!r} is not supported, only {known!r} is")
    return config


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
    """Errors inside end the program with one line, which names the file path."""
    try:
        yield
    except FileNotFoundError:
        fail(f"{path} is missing")
    except KeyError as key:
        fail(f"{path} lacks {key}")
    except (NotImplementedError, ValueError) as error:
        fail(f"{path}: {error}")
    except Exception as error:                        # damaged files raise many kinds of errors
        fail(f"{path} is damaged: {brief(repr(error))}")


def find(source):
    """-> the folder `source`, or a folder with the model of that name from huggingface.co."""
    if Path(source).is_dir():
        return Path(source)
    hub = need("huggingface_hub", f"{source} is no folder; to download it from huggingface.co")
    try:
        return Path(hub.snapshot_download(source, allow_patterns=[
            "config.json", "tokenizer*.json", "chat_template.jinja", "model*.safetensors"]))
    except Exception as error:                        # a wrong name, or no network
        fail(f"{source} is no folder, and the download from huggingface.co failed: {brief(error)}")


def read_config(theirs):
    """What config.json says -> the architecture and our GPTConfig. Raises errors for settings that
    model.py lacks."""
    theirs = {key: value for key, value in theirs.items() if value is not None}
    known = [GPT_2, *LLAMAS]
    arch = next((arch for arch in known if theirs.get("architectures") == [arch]), None)
    if arch is None:
        raise ValueError(f"architectures={theirs.get('architectures')!r} is not supported, only "
                         f"[{'], ['.join(map(repr, known))}] are")
    # Missing settings have defaults. Newer files keep the settings of RoPE in a dict.
    rope = dict(theirs.get("rope_parameters") or theirs.get("rope_scaling") or {})
    wide, mlp = theirs.get("n_embd"), FIELDS[arch]["mlp"]
    theirs = dict(tie_word_embeddings=arch == GPT_2, n_inner=wide and 4 * wide, rope_theta=1e4,
                  num_key_value_heads=theirs.get("num_attention_heads"), head_dim=0,
                  activation_function="gelu_new", hidden_act="silu") | theirs
    theirs["rope_theta"] = rope.pop("rope_theta", theirs["rope_theta"])
    theirs["rope_scaling"] = our_scaling(rope)
    if set(theirs.get("layer_types", ())) == {"full_attention"}:
        del theirs["layer_types"]
    ours = {act: name for name, act in MLPS[arch].items()}
    if theirs[mlp] not in ours:
        raise ValueError(f"{mlp}={theirs[mlp]!r} is not supported, only {' and '.join(ours)}")
    theirs[mlp] = ours[theirs[mlp]]
    return arch, our_config(arch, theirs, FIELDS[arch], FIXED[arch] | dict(
        partial_rotary_factor=1.0, quantization_config=None, layer_types=None))


def our_scaling(rope):
    """What config.json says of RoPE -> GPTConfig.rope_scaling"""
    if rope in ({}, {"rope_type": "default"}):
        return ()
    factor, low, high, old = four = tuple(rope.get(name, math.nan) for name in SCALING)
    if rope.get("rope_type") == "llama3" and len(rope) == 5 and type(old) is int and (
            1 <= factor < math.inf and 0 < low < high < math.inf and 0 < old):
        return four
    raise ValueError(f"rope_scaling={rope!r} is not supported, only none, and rope_type 'llama3' "
                     f"with {', '.join(SCALING)}")


def read_weights(folder, arch):
    """-> {name: tensor} from all files, without constants"""
    lib = need("safetensors.torch", f"to read the weights in {folder}")
    paths, weights = sorted(folder.glob("model*.safetensors")), {}
    if not paths:
        fail(f"{folder} has no model.safetensors")
    for path in paths:                                # large models are in several
        with naming(path):
            weights |= lib.load_file(path)
    if arch == GPT_2:                                 # OpenAI's own files lack "transformer."
        weights = {n if n.startswith(("transformer.", "lm_head.")) else f"transformer.{n}": w
                   for n, w in weights.items()}
    constants = re.compile(r".*(\.attn\.(masked_)?bias|\.rotary_emb\.inv_freq)")
    return {n: w for n, w in weights.items() if not constants.fullmatch(n)}


# ---- tokenizers -----------------------------------------------------------------------------

# GPT-2's and Hugging Face's files write a byte as one printable character: 97 as "a", 32 as "Ġ".
others = map(chr, range(256, 324))
BYTE_CHARS = [chr(b) if 33 <= b < 127 or 161 <= b != 173 else next(others) for b in range(256)]


def tokenizer_from_hf(saved, own=None, loose=False):
    """The content of a tokenizer.json -> our Tokenizer and the number of their ids: our new ids
    follow them. own: the arguments of renderer(), where the model's own chat format is kept.
    Raises ValueError if ours would give other ids for some texts; with loose, not for those with
    letters that are not in Unicode's form NFC, or with tokens that were added to plain text."""
    model, added = saved["model"], saved.get("added_tokens") or []
    vocab = model["vocab"]
    if model.get("type") != "BPE" or model.get("byte_fallback"):
        raise ValueError("only byte-level BPE is supported, not SentencePiece (LLaMA 2, TinyLlama) "
                         "or other tokenizers")
    pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    merges = {(vocab[a], vocab[b]): vocab[a + b] for a, b in pairs}
    given = [*vocab.values(), *(token["id"] for token in added)]
    if any(type(id) is not int or id < 0 for id in given) or len({*vocab.values()}) < len(vocab):
        raise ValueError("its ids are not different whole numbers")

    # SmolLM has no tokens for some rare bytes and drops them. Here they get new ids.
    known, lacking = max(given) + 1, [char for char in BYTE_CHARS if char not in vocab]
    ids = vocab | {char: known + i for i, char in enumerate(lacking)}
    byte_ids = [ids[char] for char in BYTE_CHARS]
    made = {*byte_ids, *merges.values()}              # the ids in a text; all others are special

    odd = [key for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix")
           if model.get(key)]
    if saved.get("normalizer") and not (loose and saved["normalizer"] == dict(type="NFC")):
        odd.append(f"the normalizer {saved['normalizer'].get('type')} (--loose does without NFC)")
    odd += [f"the added token {token['content']!r}, which is also an ordinary one,"
            for token in added if token["id"] in made]
    if len(merges) < len(pairs) or [*merges.values()] != sorted(merges.values()):
        odd.append("an order of merges that differs from the order of their ids,")
    if odd:
        raise ValueError(f"{odd[0]} is not supported")
    inside = [token["content"] for token in added if not token.get("special")]
    if inside and not loose:
        raise ValueError(f"added tokens inside plain text {inside} are not supported; if your "
                         "texts contain none of them, add --loose")
    # chat models end a message with <|im_end|>; under our name for it they know when to stop
    names = vocab | {token["content"]: token["id"] for token in added}
    ours = {} if own or "<|end|>" in names else {"<|im_end|>": "<|end|>"}
    specials = {ours.get(name, name): id for name, id in names.items() if id not in made}
    make = partial(Tokenizer, split_pattern(saved.get("pre_tokenizer")), byte_ids, merges, specials)
    tok = with_own_format(make, own, specials) if own else make()
    if not model.get("ignore_merges"):                # the Tokenizer takes a word that is a token
        for token, id in tok.ranks.items():
            if merge([byte_ids[byte] for byte in token], merges) != [id]:
                raise ValueError(f"the token {tok.show(id)}, to which the merges of its bytes do "
                                 f"not lead, is not supported")
    return tok, known


def with_own_format(make, own, specials):
    try:
        render = renderer(*own)
        tok = make(find_format(render, specials))
        check_format(render, tok)
    except ValueError as error:
        raise ValueError(f"the chat template is more than a text around each message: "
                         f"{brief(error)}; with --chat=ours the model learns our format") from None
    return tok


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
        if not gpt2 and kinds == ["Split"] and cuts[0].get("behavior") == "Isolated" and (
                not cuts[0].get("invert")):
            with suppress(ValueError):
                check_pattern(pattern := cuts[0]["pattern"].get("Regex", ""))
                return gguf_file.SPELLED.get(pattern, pattern)
    raise ValueError(f"the pre_tokenizer {' + '.join([*kinds, level['type']])} is not supported")


def tokenizer_to_hf(tok):
    """-> the content of a tokenizer.json. Unlike ours, theirs finds special tokens in a text."""
    names = {id: "".join(BYTE_CHARS[b] for b in token) for token, id in tok.ranks.items()}
    off = dict(single_word=False, lstrip=False, rstrip=False, normalized=False)
    level = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=False)
    split = dict(type="Split", pattern={"Regex": tok.pattern}, behavior="Isolated", invert=False)
    return {"model": {"type": "BPE", "ignore_merges": True,
                      "vocab": {n: id for id, n in names.items()} | tok.specials,
                      "merges": [f"{names[left]} {names[right]}" for left, right in tok.merges]},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]},
            "decoder": level, "added_tokens": [dict(id=id, content=name, special=True, **off)
                                               for name, id in tok.specials.items()]}


# ---- import ---------------------------------------------------------------------------------

def new_rows(w, known, size):
    """w (V, C) -> (size, C): the first `known` rows, then rows for new tokens.

    A random row in the output layer could give a new token the highest logit. The mean of all
    rows gives it an average logit. A little noise makes the new rows differ.
    """
    noise = torch.randn(size - known, w.size(1), generator=torch.Generator().manual_seed(0))
    return torch.cat((w[:known], w[:known].mean(0) + 0.1 * w[:known].std(0) * noise))


def template_in(settings, folder=None):
    """What tokenizer_config.json says, and its folder -> the arguments of renderer()"""
    template = settings.get("chat_template")
    if folder and (folder / "chat_template.jinja").exists():
        template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
    if isinstance(template, list):                    # several, by name
        template = {named["name"]: named["template"] for named in template}.get("default")
    if not template:
        raise ValueError("the model has no chat template: import it without --chat=own")
    ends = [settings.get(f"{end}_token") or "" for end in ("bos", "eos")]
    return template, *(end["content"] if isinstance(end, dict) else end for end in ends)


def read(path, understand):
    """understand(what the JSON file says). Errors name the file."""
    with naming(path):
        return understand(dict(json.loads(path.read_text(encoding="utf-8"))))


def read_folder(source, own, loose):
    """-> the architecture, our GPTConfig, our Tokenizer, the number of their ids, our weights.
    own: whether the model's chat format is kept"""
    folder = find(source)
    arch, config = read(folder / "config.json", read_config)
    own = own and read(folder / "tokenizer_config.json", partial(template_in, folder=folder))
    tokenizer = read(folder / "tokenizer.json", partial(tokenizer_from_hf, own=own, loose=loose))
    weights = from_theirs(arch, config, read_weights(folder, arch), folder)
    return arch, config, *tokenizer, weights


def read_gguf(path, own, loose):
    """The same of a GGUF file"""
    need("gguf", f"to read {path}")
    with naming(path):
        settings, tensors = gguf_file.open_gguf(path)
        arch, *said = gguf_file.read_config(settings, tensors)
        config = our_config(arch, *said)
        own = own and template_in(gguf_file.read_template(settings))
        tokenizer = tokenizer_from_hf(gguf_file.read_tokenizer(settings), own, loose)
        weights = gguf_file.read_weights(tensors)
    return arch, config, *tokenizer, from_theirs(arch, config, weights, path, gguf=True)


def import_model(config):
    if Path(config.out).exists() and not config.fresh:
        fail(f"{config.out} is there already: add --fresh to replace it")
    if config.chat not in ("ours", "own"):
        fail(f"--chat={config.chat} is neither ours nor own")
    own = config.chat == "own"
    read_from = read_gguf if config.init.endswith(".gguf") else read_folder
    arch, theirs, tok, known, weights = read_from(config.init, own, config.loose)
    T = config.block_size or theirs.block_size
    if T > theirs.block_size:
        fail(f"--block_size={T} must be between 1 and {theirs.block_size}, the model's context")
    if known > theirs.vocab_size:
        fail(f"{config.init}: the tokenizer has {known} ids, but the embedding "
             f"{theirs.vocab_size} rows")

    for name in ("wte.weight", "lm_head.weight"):     # rows without a token are dropped
        weights[name] = new_rows(weights[name], known, tok.vocab_size)
    if theirs.tied:
        weights["lm_head.weight"] = weights["wte.weight"]
    if arch == GPT_2:
        weights["wpe.weight"] = weights["wpe.weight"][:T].clone()
    ours = dataclasses.replace(theirs, vocab_size=tok.vocab_size, block_size=T)
    # with its own format it can answer, so it counts as a model after SFT
    save_checkpoint(config.out, stage="sft" if own else "pretrain", step=0, metrics={},
                    model=weights, history=[], model_config=ours, tokenizer=tok, config=config)
    n_params = sum(w.numel() for w in set(weights.values()))
    print(f"{config.out}: {arch}, {n_params / 1e6:.2f}M parameters, a context of {T} tokens, "
          f"{known:,} tokens and {tok.vocab_size - known} new ones")
    print(f"next: python {'chat' if own else 'sft'}.py --init={quote(config.out)}"
          f"{'' if own else ' --lr=5e-5'}")


# ---- export ---------------------------------------------------------------------------------

def export_model(config):
    out, gguf = Path(config.out), config.out.endswith(".gguf")
    if out.exists():
        fail(f"{out} is there already: choose a new name")
    if config.f16 and not gguf:
        fail(f"--f16 is for GGUF files: choose a name like {out}.gguf")
    ckpt = load_checkpoint(config.init)
    if ckpt["stage"] == "reward":
        fail(f"{config.init} is a reward model: export a model that writes text, as out/sft.pt")
    ours, tok, mine = ckpt["model"].config, ckpt["tokenizer"], ckpt["model"].state_dict()
    square = ours.head_dim * ours.n_head == ours.n_embd
    arch = next((arch for arch in FIELDS if PARTS[arch].items() <= vars(ours).items()
                 and ours.mlp in MLPS[arch] and (square or arch in LLAMAS)), None)
    if arch is None:
        names = "pos norm qk_norm qk_rms mlp bias qkv_bias head_dim rope_scaling".split()
        fail(f"{config.init}: no supported architecture has "
             f"{', '.join(f'{name}={getattr(ours, name)}' for name in names)}")
    if gguf and arch not in gguf_file.ARCHS:
        fail(f"{config.init}: llama.cpp can't compute the style laptop: export it to a folder, or "
             f"pretrain with --style=llama")
    need("gguf" if gguf else "safetensors.torch", f"to write {out}")

    with torch.device("meta"):                        # only shapes
        norm = "layer" if ours.norm == "plain" else ours.norm
        blank = GPT(dataclasses.replace(ours, bias=arch not in LLAMAS, norm=norm)).state_dict()
    # Where we have no biases, theirs are 0; where our norms have no weights, theirs are 1.
    filled = {name: mine.get(name, torch.full(w.shape, float(name.endswith("weight"))))
              for name, w in blank.items()}
    weights = to_theirs(arch, ours, filled,
                        gguf_file.names_of(arch, ours.n_layer) if gguf else None)
    if arch == PERSIMMON:
        D = ours.head_dim
        for part in (f"model.layers.{i}.self_attn.{t}_layernorm" for i in range(ours.n_layer)
                     for t in "qk"):
            weights |= {f"{part}.weight": torch.ones(D), f"{part}.bias": torch.zeros(D)}
    talks = ckpt["stage"] != "pretrain"
    ids = dict(bos_token_id=tok.eot, eos_token_id=tok.end if talks else tok.eot,
               pad_token_id=tok.pad)
    chat = dict(chat_template=template_of(tok.chat)) if talks else {}
    out.parent.mkdir(parents=True, exist_ok=True)
    with named(out), TemporaryDirectory(dir=out.parent, prefix=f"{out.name}.") as tmp:
        whole = Path(tmp, "whole")                    # renamed when it is complete
        write = partial(gguf_file.write_gguf, f16=config.f16) if gguf else write_folder
        write(whole, arch, ours, weights, tokenizer_to_hf(tok), ids, chat)
        whole.rename(out)
    print(f"{out}: {arch}, {sum(w.numel() for w in weights.values()) / 1e6:.2f}M parameters")
    print(f"next: llama-cli -m {quote(config.out)}" if gguf else
          f"next: transformers.AutoModelForCausalLM.from_pretrained({config.out!r})")


def write_folder(folder, arch, config, weights, tokenizer, ids, chat):
    """tokenizer: what tokenizer.json will hold; ids, chat: settings for the files about it"""
    special = {token["id"]: token["content"] for token in tokenizer["added_tokens"]}
    four = config.rope_scaling
    said = vars(config) | dict(
        mlp=MLPS[arch][config.mlp],
        rope_scaling=dict(zip(SCALING, four), rope_type="llama3") if four else None)
    files = {
        "config.json": {theirs: said[name] for name, theirs in FIELDS[arch].items()} | FIXED[arch]
        | ids | dict(architectures=[arch], torch_dtype="float32"),
        "generation_config.json": ids,
        "tokenizer_config.json": {name[:-3]: special[id] for name, id in ids.items()} | dict(
            tokenizer_class="PreTrainedTokenizerFast", model_max_length=config.block_size,
            clean_up_tokenization_spaces=False, **chat),
        "tokenizer.json": tokenizer}
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    save_file = import_module("safetensors.torch").save_file
    save_file({name: w.contiguous() for name, w in weights.items()}, folder / "model.safetensors",
              metadata={"format": "pt"})


if __name__ == "__main__":
    words = list(takewhile(lambda word: not word.startswith("-"), sys.argv[1:]))
    config = parse_config(Config, __doc__, sys.argv[1 + len(words):])
    if len(words) != 3 or words[0] not in ("import", "export"):
        fail("usage: python -m tools.hf import FOLDER_OR_NAME out/pretrain.pt, or python -m "
             "tools.hf export out/sft.pt FOLDER; each FOLDER may be a FILE.gguf (-h tells more)")
    action, config.init, config.out = words
    {"import": import_model, "export": export_model}[action](config)
