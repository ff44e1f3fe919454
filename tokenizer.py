"""Byte-level byte-pair encoding (BPE): text <-> token ids, learned and applied by hand.

A text is cut into chunks (roughly words), a chunk into bytes, and the bytes are tokens 0 to 255.
Learning repeats one step: the most frequent pair of neighbours becomes a new token. Of equally
frequent pairs the one with the smaller ids goes first, so the order of the texts doesn't matter.
Ids: the 256 bytes, the merges in the order learned, the special tokens. A dialogue looks like
<|endoftext|><|system|>Be brief.<|end|><|user|>Hi<|end|><|assistant|>Hello<|end|>

    python tokenizer.py                                     # learn from the town's text
    python tokenizer.py --data=book.txt --vocab_size=8192   # or from yours
    python tokenizer.py --show="What is 12 + 30?"           # see its tokens
    python tokenizer.py --explain=" tokenizer"              # see how a word is merged
"""

import codecs
import json
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from heapq import heappop, heappush, heappushpop
from itertools import islice
from pathlib import Path

import regex
import tiktoken
from tqdm import tqdm

# Only the program places these: the same characters in a text are encoded as ordinary bytes.
SPECIALS = ["<|endoftext|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]

GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
GPT4 = "|".join([
    r"'(?i:[sdmt]|ll|ve|re)",       # the ends of I'm, you'll, THEY'RE
    r"[^\r\n\p{L}\p{N}]?+\p{L}+",   # a word, with the space or sign before it
    r"\p{N}{1,3}",                  # up to three digits
    r" ?[^\s\p{L}\p{N}]++[\r\n]*",  # punctuation, with the line's end
    r"\s*[\r\n]+|\s+(?!\S)|\s+",    # empty lines; spaces, but a word keeps the one before it
])
# Sums can be learned from single digits, hardly from a thousand numbers that all look different.
PATTERNS = {"gpt2": GPT2, "gpt4": GPT4, "digits": GPT4.replace(r"\p{N}{1,3}", r"\p{N}")}

# GPT-2's and Hugging Face's files write a byte as one printable character: 97 as "a", 32 as "Ġ".
others = iter(range(256, 324))
BYTE_CHARS = [chr(b if 33 <= b < 127 or 161 <= b != 173 else next(others)) for b in range(256)]


def clean(text):
    """A str may hold half an emoji, a lone surrogate, which UTF-8 can't: it becomes U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def learn_merges(chunks, n_merges, progress=False):
    """Chunks and their frequencies -> pairs and the ids they merge into, in the order learned:
    {"aaabdaaabac": 1}, 3 -> {(97, 97): 256, (97, 98): 257, (256, 257): 258}"""
    # A word is a str with one character per token, chr(id), so that a merge is a str.replace.
    words = [clean(chunk).encode().decode("latin-1") for chunk in chunks]
    freqs = list(chunks.values())
    counts, where = defaultdict(int), defaultdict(list)  # how often a pair occurs, in which words
    for i, word in enumerate(words):
        for left, right in zip(word, word[1:]):
            counts[left + right] += freqs[i]
            where[left + right].append(i)

    # A heap gives the most frequent pair (a sorted list is a heap; (0, "") ends it). The count of a
    # pair in it can only fall, so an entry may be too high: then it goes back with today's count.
    heap, merges = sorted([(0, ""), *((-n, pair) for pair, n in counts.items())]), {}
    for new in map(chr, tqdm(range(256, 256 + n_merges), "merging", disable=not progress)):
        n, pair = heappop(heap)
        while -n > counts[pair]:
            n, pair = heappushpop(heap, (-counts[pair], pair))
        if n == 0:
            tqdm.write(f"nothing to merge after {len(merges)} of {n_merges} merges", sys.stderr)
            break
        a, b = pair
        merges[ord(a), ord(b)] = ord(new)

        # To count all pairs anew would take hours, but few change: from "xaby" to "xNy", xa and by
        # lose what xN and Ny gain. (In "NN", which was "abab", it is the pair ba that is lost.)
        gained = defaultdict(int)
        for i in where.pop(pair):
            if pair not in words[i]:
                continue  # other merges took it apart
            word = words[i] = words[i].replace(pair, new)
            for left, right in zip(word, word[1:]):
                if left == new or right == new:
                    lost = (b if left == new else left) + (a if right == new else right)
                    counts[lost] -= freqs[i]
                    gained[left + right] += freqs[i]
                    where[left + right].append(i)
        counts[pair] = 0
        for pair, n in gained.items():
            counts[pair] = n
            heappush(heap, (-n, pair))
    return merges


def merge(ids, merges):
    """[97, 97, 98, 97, 97], {(97, 97): 256, (256, 98): 257} -> [257, 256]
    Merges apply in the order learned, which their ids tell, each from left to right; a heap keeps
    that order. The tokens are linked to their neighbours, since cutting one out of a list would
    move all that follow: n tokens take n log n steps, even a hundred thousand "a"."""
    n = len(ids)
    ids = [*ids, None]  # a ring that None closes; it also stands where a token is used up
    before, after = [n, *range(n)], [*range(1, n + 1), 0]
    heap = sorted((merges[pair], i) for i, pair in enumerate(zip(ids, ids[1:])) if pair in merges)
    while heap:
        new, i = heappop(heap)
        j = after[i]
        if merges.get((ids[i], ids[j])) != new:
            continue  # another merge used up one of the two
        ids[i], ids[j] = new, None
        after[i], before[after[j]] = after[j], i
        for left in (before[i], i):
            pair = ids[left], ids[after[left]]
            if pair in merges:
                heappush(heap, (merges[pair], left))
    return [id for id in ids if id is not None]


class Tokenizer:
    """tok.encode("Hi") -> ids, tok.decode(ids) -> "Hi"; tok.eot, tok.pad, tok.user … are ids."""

    def __init__(self, pattern, byte_ids, merges, specials=()):
        """byte_ids: the id of each byte; merges: {(left, right): id}, by rising id; specials:
        {name: id}, to which those of SPECIALS that it lacks are added, after all other ids."""
        self.pattern, self.byte_ids, self.merges = pattern, byte_ids, merges
        self.split = regex.compile(pattern).finditer
        self.tokens = {id: bytes([byte]) for byte, id in enumerate(byte_ids)}
        for (left, right), id in merges.items():
            self.tokens[id] = self.tokens[left] + self.tokens[right]
        self.ranks = {token: id for id, token in self.tokens.items()}
        self.specials = dict(specials)
        for name in SPECIALS:
            self.specials.setdefault(name, max(*self.tokens, *self.specials.values()) + 1)
        self.tokens |= {id: name.encode() for name, id in self.specials.items()}
        self.vocab_size = max(self.tokens) + 1  # some of tiktoken's vocabularies have unused ids
        self.eot, self.pad, self.system, self.user, self.assistant, self.end = (
            self.specials[name] for name in SPECIALS)
        self.fingerprint = self.to_dict()["fingerprint"]

    @classmethod
    def train(cls, texts, vocab_size, pattern="gpt4", progress=False):
        """texts: a str, or an iterable of them; pattern: one of PATTERNS, or your own regex."""
        n_merges = vocab_size - 256 - len(SPECIALS)
        if n_merges < 0:
            raise ValueError(f"vocab_size={vocab_size}: the least is {256 + len(SPECIALS)}")
        pattern = PATTERNS.get(pattern) or pattern + r"|[\s\S]"  # so that no character is lost
        try:
            split, chunks = regex.compile(pattern).finditer, Counter()
        except regex.error as error:
            raise ValueError(f"pattern={pattern}: {error}") from None
        texts = [texts] if isinstance(texts, str) else texts
        for text in tqdm(texts, "splitting", disable=not progress):
            chunks.update(match[0] for match in split(text))
        return cls(pattern, list(range(256)), learn_merges(chunks, n_merges, progress))

    @lru_cache(1 << 16)  # words repeat
    def encode_chunk(self, chunk):
        return merge([self.byte_ids[byte] for byte in chunk.encode()], self.merges)

    def encode(self, text):
        return [id for match in self.split(clean(text)) for id in self.encode_chunk(match[0])]

    def encode_batch(self, texts):
        """The ids that encode() gives, but by tiktoken: faster, and on all cores."""
        if any(regex.search(r"\s{100000}", text) for text in texts):  # its regex would panic
            return [self.encode(text) for text in texts]
        return self.to_tiktoken().encode_ordinary_batch(texts)

    def decode_bytes(self, ids):
        try:
            return b"".join([self.tokens[int(id)] for id in ids])
        except KeyError as id:
            raise ValueError(f"no token has the id {id}") from None

    def decode(self, ids):
        """Special tokens appear by name; bytes that aren't UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def stream(self, ids):
        """The text of ids as they arrive, in whole characters: 4 tokens of one byte -> one 😊"""
        return codecs.iterdecode((self.decode_bytes([id]) for id in ids), "utf-8", "replace")

    def encode_chat(self, messages, reply=False):
        """[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}] ->
        ids:  <|endoftext|> <|user|> Hi <|end|> <|assistant|> Yes <|end|>
        mask: 0             0        0  0       0             1   1
        The mask is 1 on what the assistant has to produce. reply=True opens its next turn."""
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        ids, mask = [self.eot], [0]
        for message in messages:
            role, turn = message["role"], [*self.encode(message["content"]), self.end]
            if role not in ("system", "user", "assistant"):
                raise ValueError(f"a role must be system, user or assistant, not {role!r}")
            ids += [self.specials[f"<|{role}|>"], *turn]
            mask += [0] + [int(role == "assistant")] * len(turn)
        return (ids + [self.assistant], mask + [0]) if reply else (ids, mask)

    def to_dict(self):
        """All it takes to rebuild the tokenizer, in types that JSON and torch.save keep."""
        saved = {"pattern": self.pattern, "byte_ids": self.byte_ids, "specials": self.specials,
                 "merges": [[*pair, id] for pair, id in self.merges.items()]}
        digest = sha256(json.dumps(saved, sort_keys=True).encode()).hexdigest()
        return saved | {"fingerprint": digest[:16]}

    @classmethod
    def from_dict(cls, saved):
        try:
            merges = {(left, right): id for left, right, id in saved["merges"]}
            tok = cls(saved["pattern"], saved["byte_ids"], merges, saved["specials"])
            if tok.fingerprint == saved["fingerprint"]:
                return tok
        except (AttributeError, KeyError, TypeError, ValueError, regex.error):
            pass
        raise ValueError("not a tokenizer of this project, or a damaged one")

    def save(self, path):
        """Write path (whole, or not at all) and beside it a .vocab to read: [the] = [th] + [e]"""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        parents = {id: f" = {self.show(a)} + {self.show(b)}" for (a, b), id in self.merges.items()}
        lines = [f"{id:>6}  {self.show(id)}{parents.get(id, '')}\n" for id in sorted(self.tokens)]
        path.with_suffix(".vocab").write_text("".join(lines), encoding="utf-8")
        Path(f"{path}.tmp").write_text(json.dumps(self.to_dict()), encoding="utf-8")
        Path(f"{path}.tmp").replace(path)

    @classmethod
    def load(cls, path):
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, RecursionError, ValueError) as error:
            raise ValueError(f"{path}: {error}; `python tokenizer.py` makes one") from None

    def show(self, id):
        r"""[ the], [\n] for a line's end, [\xf0] for a byte that is no character of its own"""
        text = self.tokens[id].decode("utf-8", errors="backslashreplace")
        return "[" + "".join(c if c.isprintable() else repr(c)[1:-1] for c in text) + "]"

    @lru_cache(8)
    def to_tiktoken(self):
        return tiktoken.Encoding(self.fingerprint, pat_str=self.pattern,
                                 mergeable_ranks=self.ranks, special_tokens=self.specials)

    @classmethod
    def from_tiktoken(cls, encoding):
        """It keeps no pairs; a token's pair is what the merges before it make of its bytes."""
        ranks, merges = encoding._mergeable_ranks, {}
        byte_ids = [ranks[bytes([byte])] for byte in range(256)]
        for token in sorted(ranks, key=ranks.get):
            if len(token) > 1:
                left, right = merge([byte_ids[byte] for byte in token], merges)
                merges[left, right] = ranks[token]
        return cls(encoding._pat_str, byte_ids, merges, encoding._special_tokens)

    @classmethod
    def from_gpt2(cls, encoder_json, vocab_bpe):
        """The files that OpenAI published; <|endoftext|> is 50256, our other specials follow."""
        ids = json.loads(Path(encoder_json).read_text(encoding="utf-8"))
        lines = Path(vocab_bpe).read_text(encoding="utf-8").splitlines()[1:]
        merges = {(ids[a], ids[b]): ids[a + b] for a, b in (line.split() for line in lines)}
        return cls(GPT2, [ids[c] for c in BYTE_CHARS], merges, {SPECIALS[0]: ids[SPECIALS[0]]})

    def to_hf(self, path):
        """A tokenizer.json for Hugging Face's tokenizers, which finds special tokens in text."""
        names = {id: "".join(BYTE_CHARS[b] for b in token) for token, id in self.ranks.items()}
        off = dict(single_word=False, lstrip=False, rstrip=False, normalized=False)
        level = dict(type="ByteLevel", add_prefix_space=False, trim_offsets=True, use_regex=False)
        cut = dict(type="Split", pattern={"Regex": self.pattern}, behavior="Isolated", invert=False)
        Path(path).write_text(json.dumps({
            "model": {"type": "BPE", "vocab": {n: id for id, n in names.items()} | self.specials,
                      "merges": [f"{names[left]} {names[right]}" for left, right in self.merges]},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [cut, level]}, "decoder": level,
            "added_tokens": [dict(id=id, content=name, special=True, **off)
                             for name, id in self.specials.items()]}), encoding="utf-8")


@dataclass
class Config:
    data: str = "data/town/pretrain,data/town/sft.jsonl"  # .txt, .jsonl, directories
    vocab_size: int = 1024           # bytes, merges and special tokens
    pattern: str = "digits"          # digits one by one, for sums; or gpt4, gpt2, your own regex
    out: str = "out/tokenizer.json"  # and out/tokenizer.vocab, for people
    errors: str = "strict"           # replace: let U+FFFD stand for what isn't UTF-8
    show: str = ""                   # a text: print its tokens instead of learning
    explain: str = ""                # a word: print its merges instead of learning
    debug: bool = False              # show tracebacks


if __name__ == "__main__":
    from common import fail, parse_config
    from data.formats import read_texts

    config = parse_config(Config, __doc__)
    if config.errors not in ("strict", "replace"):
        fail(f"--errors={config.errors} is not strict or replace")
    if config.show or config.explain:
        if Path(config.out).exists():
            tok = Tokenizer.load(config.out)
        else:
            print(f"{config.out} is missing: these tokens were learned from tokenizer.py itself")
            tok = Tokenizer.train(Path(__file__).read_text(encoding="utf-8"), 768)
        if ids := tok.encode(config.show):
            for i, id in enumerate(ids):
                print(f"\033[30;{46 - i % 2 * 3}m{tok.show(id)[1:-1]}\033[0m", end="")
            print("", *ids)
        for match in tok.split(clean(config.explain)):
            ids = [tok.byte_ids[byte] for byte in match[0].encode()]
            print(" bytes ", *map(tok.show, ids))
            while pairs := [pair for pair in zip(ids, ids[1:]) if pair in tok.merges]:
                pair = min(pairs, key=tok.merges.get)  # the pair learned first
                ids = merge(ids, {pair: tok.merges[pair]})
                print(f"{tok.merges[pair]:>6} ", *map(tok.show, ids))
    elif config.data == Config.data and not Path("data/town").exists():
        fail("data/town is missing: `python data/town.py` makes it")
    else:
        # The text is read twice rather than kept: it may be larger than the memory.
        texts = (document.text for document in read_texts(config.data, config.errors))
        tok = Tokenizer.train(texts, config.vocab_size, config.pattern, sys.stderr.isatty())
        tok.save(config.out)
        sample = islice(read_texts(config.data, config.errors, Counter()), 0, None, 10)
        sizes = [(len(text.encode()), len(tok.encode(text))) for _, text, _ in sample]
        n_bytes, n_tokens = map(sum, zip(*sizes))
        learned = [tok.show(id) for id in tok.merges.values()]
        print(f"vocabulary       {tok.vocab_size:,}, in {config.out}")
        print(f"bytes per token  {n_bytes / n_tokens:.2f}")
        print("first merges    ", *learned[:10])
        print("longest tokens  ", *sorted(learned, key=len)[:-11:-1])
