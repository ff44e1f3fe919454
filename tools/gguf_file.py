"""Read and write GGUF, the file format of llama.cpp and Ollama. tools/hf.py does the rest.

A GGUF file has settings, a tokenizer and tensors. The tensors are those of Hugging Face under other
names, and nearer to ours (source: convert_hf_to_gguf.py of llama.cpp): GPT-2's matrices are not
transposed, and in LLaMA's queries and keys the two rows that RoPE rotates together are neighbours
(in Qwen's they are not). Llama 3's rotary scaling is a tensor of what divides each frequency.
The functions raise errors for what the other side lacks. They need: pip install gguf
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from model import GPTConfig, rotary_turns
from tokenizer import GPT2, PATTERNS

ARCHS = {"GPT2LMHeadModel": "gpt2", "LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2",
         "Qwen3ForCausalLM": "qwen3"}
FIELDS = dict(
    block_size="context_length", vocab_size="vocab_size", n_layer="block_count",
    n_embd="embedding_length", n_hidden="feed_forward_length", n_head="attention.head_count",
    n_kv_head="attention.head_count_kv", head_dim="attention.key_length",
    rope_theta="rope.freq_base")

# SmolLM splits digits off first. So GPT-2's regex sees the end of a text before each digit.
SMOLLM = GPT2.replace(r" ?\p{N}+", r"\p{N}").replace(r"(?!\S)", r"(?![^\s\p{N}])")
# A file does not hold its split pattern, only llama.cpp's name for it.
PRE = {"gpt-2": GPT2, "smollm": SMOLLM, "llama-bpe": PATTERNS["gpt4"], "dbrx": PATTERNS["gpt4"],
       "qwen2": PATTERNS["digits"]}
# Llama 3's and Qwen's patterns, as their tokenizer.json spells them -> as we spell them
LLAMA_3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
           r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
SPELLED = {LLAMA_3: PATTERNS["gpt4"], LLAMA_3.replace("{1,3}", ""): PATTERNS["digits"]}
ROPE = "rope_freqs.weight"
NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5    # llama.cpp's kinds of tokens


def fields_of(arch):
    """{our name of a setting: theirs}"""
    eps = f"attention.layer_norm_{'' if arch == 'gpt2' else 'rms_'}epsilon"
    return {ours: f"{arch}.{name}" for ours, name in (FIELDS | dict(norm_eps=eps)).items()}


def names_of(arch, n_layer):
    """The library's table: its get_name() turns Hugging Face's name of a tensor into GGUF's."""
    import gguf
    return gguf.get_tensor_name_map(gguf.MODEL_ARCH[ARCHS[arch].upper()], n_layer)


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
    """-> Hugging Face's name of the architecture, and the arguments of hf.our_config()"""
    kind = settings.get("general.architecture")
    arch = next((arch for arch, name in ARCHS.items() if name == kind), None)
    if arch is None:
        raise ValueError(f"the architecture {kind} is not supported, only "
                         f"{', '.join(ARCHS.values())} are")
    names, wte = fields_of(kind), tensors["token_embd.weight"]
    # 1e-5 in 32 bits is 0.00000999…: 1e-5 again
    said = {name: float(str(np.float32(value))) if isinstance(value, float) else value
            for name, value in settings.items() if name.startswith(f"{kind}.")}
    said = {names["n_kv_head"]: said[names["n_head"]], names["rope_theta"]: 1e4,
            names["head_dim"]: 0, names["vocab_size"]: int(wte.shape[1])} | said
    head = ("rope.dimension_count", "attention.value_length")
    fixed = (dict.fromkeys(said.keys() - names.values()) | {f"{kind}.rope.scaling.type": "none"}
             | {f"{kind}.{name}": ... for name in head})
    said["tied"] = np.array_equal(tensors.get("output.weight", wte).data, wte.data)
    said["rope_scaling"] = scaling_of(said[names["rope_theta"]],
                                      tensors.pop(ROPE, None) if kind == "llama" else None)
    return arch, said, names | dict(tied="tied", rope_scaling="rope_scaling"), fixed


def slowed(theta, scaling, D):
    """By what the D/2 frequencies, the angles of model.rotary_turns at position 1, are divided"""
    turns = [rotary_turns(torch.tensor(1), GPTConfig(head_dim=D, rope_theta=theta, rope_scaling=s))
             for s in ((), scaling)]
    return torch.div(*(torch.atan2(sin, cos) for cos, sin in (t.unbind(-1) for t in turns)))


def scaling_of(theta, tensor):
    """The tensor that divides the frequencies -> GPTConfig.rope_scaling. Of its four numbers it
    shows the first; the others are the same in all of Llama 3.1, 3.2 and 3.3."""
    if tensor is None:
        return ()
    scaling = (round(float(max(tensor.data)), 3), 1.0, 4.0, 8192)
    if not np.allclose(tensor.data, slowed(theta, scaling, 2 * len(tensor.data)), rtol=1e-3):
        raise ValueError(f"the tensor {ROPE} is not supported, only that of Llama 3.1 to 3.3 is")
    return scaling


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
        model=dict(type="BPE", merges=merges, ignore_merges=pre == "llama-bpe", vocab={
            token: id for id, token in enumerate(tokens) if kinds[id] != UNUSED}),
        pre_tokenizer=dict(type="Sequence", pretokenizers=[split, level]),
        added_tokens=[dict(id=id, content=token, special=kinds[id] == CONTROL)
                      for id, token in enumerate(tokens) if kinds[id] in (CONTROL, USER_DEFINED)])


def read_template(settings):
    """-> what tokenizer_config.json would hold of the chat format"""
    tokens = dict(enumerate(settings["tokenizer.ggml.tokens"]))
    return {"chat_template": settings.get("tokenizer.chat_template")} | {
        f"{end}_token": tokens.get(settings.get(f"tokenizer.ggml.{end}_token_id"))
        for end in ("bos", "eos")}


def read_weights(tensors):
    from gguf.quants import dequantize
    return {name: torch.tensor(dequantize(tensor.data, tensor.tensor_type), dtype=torch.float32)
            for name, tensor in tensors.items()}


# ---- write ----------------------------------------------------------------------------------

def write_gguf(path, arch, config, weights, tokenizer, ids, chat, f16):
    """tokenizer: what tokenizer.json would hold; ids: {"eos_token_id": …}; chat: {"chat_template":
    …} or {}. f16: the matrices in 16 bits instead of 32."""
    import gguf
    arch, (split, _) = ARCHS[arch], tokenizer["pre_tokenizer"]["pretokenizers"]
    pre = next((pre for pre, pattern in PRE.items() if pattern == split["pattern"]["Regex"]), None)
    if pre is None:
        raise ValueError("llama.cpp can't split texts by the pattern of this tokenizer, only by "
                         f"those of {', '.join(PRE)}")
    file = gguf.GGUFWriter(path, arch)
    if arch == "gpt2":                                # hf.py has repeated shared keys
        config = replace(config, n_kv_head=config.n_head)
    settings = {name: getattr(config, ours) for ours, name in fields_of(arch).items()}
    settings |= dict.fromkeys((f"{arch}.rope.dimension_count", f"{arch}.attention.value_length"),
                              config.head_dim)
    if config.rope_scaling and arch != "llama":
        raise ValueError(f"llama.cpp has no rotary scaling as Llama 3's in models like {arch}")
    if config.rope_scaling:
        weights = weights | {ROPE: slowed(config.rope_theta, config.rope_scaling, config.head_dim)}
    for name, value in settings.items():
        add = file.add_float32 if isinstance(value, float) else file.add_uint32
        add(name, value)
    file.add_file_type(gguf.LlamaFileType.MOSTLY_F16 if f16 else gguf.LlamaFileType.ALL_F32)

    # Some vocabularies have unused ids.
    tokens = {id: (f"[PAD{id}]", UNUSED) for id in range(config.vocab_size)}
    tokens |= {id: (name, NORMAL) for name, id in tokenizer["model"]["vocab"].items()}
    tokens |= {token["id"]: (token["content"], CONTROL) for token in tokenizer["added_tokens"]}
    file.add_tokenizer_model("gpt2")
    file.add_tokenizer_pre(pre)
    file.add_token_list([name for name, _ in tokens.values()])
    file.add_token_types([kind for _, kind in tokens.values()])
    file.add_token_merges(tokenizer["model"]["merges"])
    file.add_add_bos_token(False)                     # the chat template begins with it
    for name, value in (ids | chat).items():
        getattr(file, f"add_{name}")(value)

    for name, w in weights.items():
        half = f16 and w.dim() > 1 and name != "position_embd.weight"
        file.add_tensor(name, w.to(torch.float16 if half else torch.float32).contiguous().numpy())
    file.write_header_to_file()
    file.write_kv_data_to_file()
    file.write_tensors_to_file()
    file.close()
