"""Read and write GGUF, the file format of llama.cpp and Ollama. tools/hf.py does the rest.

A GGUF file has settings, a tokenizer and tensors. The tensors are those of Hugging Face under other
names, with two differences (source: convert_hf_to_gguf.py of llama.cpp). GPT-2's matrices are
transposed. In LLaMA's queries and keys, the two rows that RoPE rotates together are neighbours.
The functions raise ValueError for what the other side lacks. They need: pip install gguf
"""

import math
import re
from pathlib import Path

import numpy as np
import torch

from model import STYLES, GPTConfig
from tokenizer import GPT2, PATTERNS

ARCHS = {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM", "gptneox": "GPTNeoXForCausalLM"}
ROWS = [line.split() for line in """
    token_embd     transformer.wte   model.embed_tokens        gpt_neox.embed_in
    position_embd  transformer.wpe   -                         -
    output_norm    transformer.ln_f  model.norm                gpt_neox.final_layer_norm
    output         lm_head           lm_head                   embed_out
    blk            transformer.h     model.layers              gpt_neox.layers
    attn_norm      ln_1              input_layernorm           input_layernorm
    ffn_norm       ln_2              post_attention_layernorm  post_attention_layernorm
    attn_qkv       attn.c_attn       -                         attention.query_key_value
    attn_q         -                 self_attn.q_proj          -
    attn_k         -                 self_attn.k_proj          -
    attn_v         -                 self_attn.v_proj          -
    attn_output    attn.c_proj       self_attn.o_proj          attention.dense
    ffn_gate       -                 mlp.gate_proj             -
    ffn_up         mlp.c_fc          mlp.up_proj               mlp.dense_h_to_4h
    ffn_down       mlp.c_proj        mlp.down_proj             mlp.dense_4h_to_h
""".strip().split("\n")]
NAMES = {arch: {row[0]: row[i] for row in ROWS} for i, arch in enumerate(ARCHS, start=1)}
FIELDS = dict(
    block_size="context_length", vocab_size="vocab_size", n_layer="block_count",
    n_embd="embedding_length", n_hidden="feed_forward_length", n_head="attention.head_count",
    n_kv_head="attention.head_count_kv", rope_theta="rope.freq_base")
EPS = dict(layer="attention.layer_norm_epsilon", rms="attention.layer_norm_rms_epsilon")

# SmolLM splits digits off first. So GPT-2's regex sees the end of a text before each digit.
SMOLLM = GPT2.replace(r" ?\p{N}+", r"\p{N}").replace(r"(?!\S)", r"(?![^\s\p{N}])")
# A file does not hold its split pattern, only llama.cpp's name for it.
PRE = {"gpt-2": GPT2, "smollm": SMOLLM, "dbrx": PATTERNS["gpt4"], "qwen2": PATTERNS["digits"]}
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5    # llama.cpp's kinds of tokens


def check_kinds(values, names):
    """Raise ValueError if a setting is no whole number where our GPTConfig has one, and so on.
    values: by our names; names: {ours: theirs}, to tell which it is"""
    for name, value in values.items():
        kind = type(getattr(GPTConfig, name))
        like = (int, float) if kind is float else (kind,)             # 10000 is 10000.0, too
        if type(value) not in like or kind is float and not 0 < value < math.inf:
            raise ValueError(f"{names[name]}={value!r} should be a {kind.__name__}")


def rename(name, names):
    """blk.0.ffn_up.weight -> model.layers.0.mlp.up_proj.weight, if names is {GGUF's: theirs}"""
    try:
        block, number, module, kind = re.fullmatch(r"(?:(.+)\.(\d+)\.)?(.+)\.(\w+)", name).groups()
        return (f"{names[block]}.{number}." if block else "") + f"{names[module]}.{kind}"
    except (AttributeError, KeyError):
        raise ValueError(f"the tensor {name} is unknown") from None


def turn(arch, config, name, w, back=False):
    """A tensor as Hugging Face has it, from GGUF's; back: the inverse. The rows of a LLaMA head
    are D/2 pairs of neighbours in GGUF, and 2 halves of D/2 there."""
    if arch == "gpt2" and name.startswith("blk."):
        return w.t()                                  # of a bias, it is the same
    if arch == "llama" and (".attn_q." in name or ".attn_k." in name):
        heads = config.n_head if ".attn_q." in name else config.n_kv_head
        groups = (heads, 2, -1) if back else (heads, -1, 2)
        return w.unflatten(0, groups).transpose(1, 2).flatten(0, 2)
    if arch == "gptneox" and ".attn_qkv." in name:    # q, k, v of head 0, then of 1
        return w.unflatten(0, (config.n_head, 3, -1)).transpose(0, 1).flatten(0, 2)
    return w


# ---- read -----------------------------------------------------------------------------------

def open_gguf(path):
    """-> the file's settings, {name: value}, and its tensors by name, which are not read yet."""
    import gguf
    size = Path(path).stat().st_size

    class Reader(gguf.GGUFReader):
        """A few bytes can ask for an array of billions of values; the library would keep each."""
        left = min(size, 2_000_000)                   # the largest vocabularies need 1.3 million

        def _get_field_parts(self, *place):
            self.left -= 1
            if self.left < 0:
                raise ValueError("its header has too many values")
            return super()._get_field_parts(*place)

    try:
        file = Reader(path)
        settings = {name: field.contents() for name, field in file.fields.items()}
    except Exception as error:                        # broken bytes raise many kinds of errors
        raise ValueError(f"damaged, or no GGUF file: {error}") from None
    if sum(int(tensor.n_bytes) for tensor in file.tensors) > size:
        raise ValueError("damaged: its tensors are larger than the file")
    return settings, {tensor.name: tensor for tensor in file.tensors}


def read_config(settings, tensors):
    """-> GGUF's name of the architecture, and our GPTConfig"""
    arch = settings.get("general.architecture")
    if arch not in STYLES:
        raise ValueError(f"the architecture {arch} is not supported, only gpt2 and llama are")
    style = STYLES[arch]
    given = {name.partition(".")[2]: value for name, value in settings.items()
             if name.startswith(f"{arch}.")}
    try:
        wte = tensors["token_embd.weight"]
        given = {"attention.head_count_kv": given["attention.head_count"], "rope.freq_base": 1e4,
                 "vocab_size": int(wte.shape[1])} | given
        values = {ours: given.pop(name) for ours, name in FIELDS.items()}
        values["norm_eps"] = given.pop(EPS[style["norm"]])
    except KeyError as name:
        raise ValueError(f"damaged: it lacks {name}") from None
    for name in ("rope_theta", "norm_eps"):           # 1e-5 in 32 bits is 0.00000999…: 1e-5 again
        values[name] = float(str(np.float32(values[name])))
    check_kinds(values, FIELDS | dict(norm_eps=EPS[style["norm"]]))
    head = tensors.get("output.weight", wte)
    config = GPTConfig(**style | values | dict(tied=np.array_equal(head.data, wte.data)))
    D = config.n_embd // config.n_head
    known = {"rope.dimension_count": D, "attention.key_length": D, "attention.value_length": D,
             "rope.scaling.type": "none"}
    for name, value in given.items():
        if value != known.get(name):
            raise ValueError(f"{arch}.{name}={value} is not supported")
    return arch, config


def read_tokenizer(settings):
    """-> what tokenizer.json would hold"""
    kind, pre, tokens, merges = (settings.get(f"tokenizer.ggml.{name}")
                                 for name in ("model", "pre", "tokens", "merges"))
    if kind != "gpt2":
        raise ValueError(f"the tokenizer {kind} is not supported, only gpt2, byte-level BPE, is")
    if pre not in PRE:
        raise ValueError(f"the pre-tokenizer {pre} is not supported, only {', '.join(PRE)} are")
    kinds = settings.get("tokenizer.ggml.token_type", [NORMAL] * len(tokens))
    split = dict(type="Split", pattern={"Regex": PRE[pre]}, behavior="Isolated")
    level = dict(type="ByteLevel", add_prefix_space=False, use_regex=False)
    return dict(
        model=dict(type="BPE", merges=merges, vocab={
            token: id for id, token in enumerate(tokens) if kinds[id] != UNUSED}),
        pre_tokenizer=dict(type="Sequence", pretokenizers=[split, level]),
        added_tokens=[dict(id=id, content=token, special=kinds[id] == CONTROL)
                      for id, token in enumerate(tokens) if kinds[id] in (CONTROL, USER_DEFINED)])


def read_weights(arch, config, tensors):
    """-> {Hugging Face's name: tensor in fp32}"""
    from gguf.quants import dequantize
    weights = {}
    for name, tensor in tensors.items():
        try:
            w = torch.tensor(dequantize(tensor.data, tensor.tensor_type), dtype=torch.float32)
        except NotImplementedError:
            raise ValueError(f"{name} is stored as {tensor.tensor_type.name}, which the library "
                             f"gguf can't read") from None
        weights[rename(name, NAMES[arch])] = turn(arch, config, name, w)
    if config.tied:
        weights.pop("lm_head.weight", None)
    return weights


# ---- write ----------------------------------------------------------------------------------

def write_gguf(path, arch, config, weights, tok, names, ids, chat, f16):
    """arch, weights: the architecture and the tensors, by Hugging Face's names. tok: our Tokenizer;
    names: {id: its printable characters}, without the special tokens. ids: {"eos_token_id": …},
    chat: {"chat_template": …} or {}. f16: the matrices in 16 bits instead of 32."""
    import gguf
    arch = next(ours for ours, theirs in ARCHS.items() if theirs == arch)
    pre = next((pre for pre, pattern in PRE.items() if pattern == tok.pattern), None)
    if pre is None:
        raise ValueError("llama.cpp can't split texts by the pattern of this tokenizer, only by "
                         f"those of {', '.join(PRE)}")
    file = gguf.GGUFWriter(path, arch)
    settings = {FIELDS[name]: value for name, value in vars(config).items() if name in FIELDS} | {
        EPS[config.norm]: config.norm_eps, "rope.dimension_count": config.n_embd // config.n_head}
    if arch != "llama":
        settings["attention.head_count_kv"] = config.n_head      # hf.py has repeated shared keys
    if arch == "gptneox":
        file.add_parallel_residual(False)
    for name, value in settings.items():
        add = file.add_float32 if isinstance(value, float) else file.add_uint32
        add(f"{arch}.{name}", value)
    file.add_file_type(gguf.LlamaFileType.MOSTLY_F16 if f16 else gguf.LlamaFileType.ALL_F32)

    # Some vocabularies have unused ids.
    tokens = {id: (f"[PAD{id}]", UNUSED) for id in range(tok.vocab_size)}
    tokens |= {id: (name, CONTROL) for name, id in tok.specials.items()}
    tokens |= {id: (name, NORMAL) for id, name in names.items()}
    file.add_tokenizer_model("gpt2")
    file.add_tokenizer_pre(pre)
    file.add_token_list([name for name, _ in tokens.values()])
    file.add_token_types([kind for _, kind in tokens.values()])
    file.add_token_merges([f"{names[left]} {names[right]}" for left, right in tok.merges])
    file.add_bos_token_id(ids["bos_token_id"])
    file.add_eos_token_id(ids["eos_token_id"])
    file.add_pad_token_id(ids["pad_token_id"])
    file.add_add_bos_token(False)                     # the chat template begins with it
    if chat:
        file.add_chat_template(chat["chat_template"])

    ours = {theirs: ours for ours, theirs in NAMES[arch].items()}
    if arch == "gptneox" and config.tied:             # llama.cpp has no tied GPT-NeoX
        weights = weights | {"embed_out.weight": weights["gpt_neox.embed_in.weight"]}
    for theirs, w in weights.items():
        name = rename(theirs, ours)
        half = f16 and w.dim() > 1 and name != "position_embd.weight"
        w = turn(arch, config, name, w, back=True)
        file.add_tensor(name, w.to(torch.float16 if half else torch.float32).contiguous().numpy())
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
