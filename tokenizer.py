"""Byte-level byte-pair encoding (BPE): text <-> token ids, learned and applied by hand.

A text is split into chunks (roughly words), and a chunk into bytes: the tokens 0 to 255. Learning
repeats one step: the most frequent pair of neighbours becomes a new token.
Ids: the 256 bytes, then the merges in the order learned, then the special tokens. A dialogue:
<|endoftext|><|system|>Be brief.<|end|><|user|>Hi<|end|><|assistant|>Hello<|end|>

    python tokenizer.py                                     # learn from the town's text
    python tokenizer.py --data=book.txt --vocab_size=8192   # or from your own
    python tokenizer.py --show="What is 12 + 30?"           # see its words merged, and its tokens
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

from common import fail, parse_config, writing
from data.pattern import check_pattern


def bpe(words, n_merges):
    """BPE by its definition: [list(b"aaabdaaabac")], 3 -> each pair and its new id, in order:
    {(97, 97): 256, (97, 98): 257, (256, 257): 258}"""
    merges = {}
    for new in range(256, 256 + n_merges):
        counts = Counter(pair for word in words for pair in zip(word, word[1:]))
        if not counts:
            break
        # Of equally frequent pairs, the one with the smaller ids comes first.
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges[best] = new
        words = [replace(word, best, new) for word in words]
    return merges


def replace(ids, pair, new):
    """[1, 2, 3, 1, 2], (1, 2), 4 -> [4, 3, 4], from left to right"""
    out = []
    for id in ids:
        if out and id == pair[1] and out[-1] == pair[0]:
            out[-1] = new
        else:
            out.append(id)
    return out


def merge(ids, merges):
    """[97, 97, 98, 97, 97], {(97, 97): 256, (256, 98): 257} -> [257, 256]"""
    while pairs := [pair for pair in zip(ids, ids[1:]) if pair in merges]:
        pair = min(pairs, key=merges.get)  # the pair that was learned first
        ids = replace(ids, pair, merges[pair])
    return ids


def learn_merges(chunks, n_merges, progress=False):
    """The merges of bpe(), but fast: a merge visits only the words that contain its pair.
    chunks: {text: its frequency}, as {"aaabdaaabac": 1}"""
    # A word is a str with one character per token, chr(id), because str.replace is fast.
    words = [clean(chunk).encode().decode("latin-1") for chunk in chunks]
    freqs, merges = list(chunks.values()), {}
    counts, where = defaultdict(int), defaultdict(dict)  # of each pair: its frequency, its words
    for i, word in enumerate(words):
        for left, right in zip(word, word[1:]):
            counts[left + right] += freqs[i]
            where[left + right][i] = True

    # The heap gives the most frequent pair. Later merges lower some counts, so an entry may be
    # too high: then it goes back with its current count. The entry (0, "") comes last.
    heap = sorted([(0, ""), *((-n, pair) for pair, n in counts.items())])
    for new in map(chr, tqdm(range(256, 256 + n_merges), "merging", disable=not progress)):
        n, pair = heappop(heap)
        while -n > counts[pair]:
            n, pair = heappushpop(heap, (-counts[pair], pair))
        if n == 0:
            tqdm.write(f"no pairs are left after {len(merges)} of {n_merges} merges", sys.stderr)
            break
        a, b = pair
        merges[ord(a), ord(b)] = ord(new)

        # Only the neighbours' counts change. "xaby" becomes "xNy": the pairs xa and by are lost,
        # xN and Ny are created. "abab" becomes "NN": the pair ba is lost, NN is created.
        created = set()
        for i in where.pop(pair):
            if pair not in words[i]:
                continue  # an earlier merge used up one of the two tokens
            word = words[i] = words[i].replace(pair, new)
            at = word.find(new)
            while at >= 0:  # a word may be a million letters long: look only around the new token
                first = at - (at > 0 and word[at - 1] != new)
                for left, right in zip(word[first:at + 1], word[first + 1:at + 2]):
                    lost = (b if left == new else left) + (a if right == new else right)
                    counts[lost] -= freqs[i]
                    counts[left + right] += freqs[i]
                    where[left + right][i] = True
                    created.add(left + right)
                at = word.find(new, at + 1)
        for pair in created:
            heappush(heap, (-counts[pair], pair))
    return merges


# Only the program places special tokens. The same characters in a text become ordinary bytes.
SPECIALS = ["<|endoftext|>", "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]

# The chat format: what stands before and after each message, and before the first one ("start"; but
# "opening" where that is a system message). An imported model may have its own, with other tokens.
CHAT = {role: [f"<|{role}|>", "<|end|>"] for role in ("system", "user", "assistant")} | {
    "start": "<|endoftext|>", "opening": ["<|endoftext|><|system|>", "<|end|>"], "strip": False}

GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
GPT4 = "|".join([
    r"'(?i:[sdmt]|ll|ve|re)",       # the ends of I'm, you'll, THEY'RE
    r"[^\r\n\p{L}\p{N}]?+\p{L}+",   # a word, with the space or sign before it
    r"\p{N}{1,3}",                  # up to three digits
    r" ?[^\s\p{L}\p{N}]++[\r\n]*",  # punctuation, with the end of the line
    r"\s*[\r\n]+|\s+(?!\S)|\s+",    # empty lines; spaces, except the one before a word
])
# The model learns sums more easily when each digit is a token of its own.
PATTERNS = {"gpt2": GPT2, "gpt4": GPT4, "digits": GPT4.replace(r"\p{N}{1,3}", r"\p{N}")}


def clean(text):
    """A str may hold half an emoji (a lone surrogate). UTF-8 can't write it: it becomes U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class Tokenizer:
    """tok.encode("Hi") -> ids, tok.decode(ids) -> "Hi"; tok.eot, tok.pad, tok.user … are ids."""

    def __init__(self, pattern, byte_ids, merges, specials=(), chat=CHAT):
        """byte_ids: the id of each byte. merges: {(left, right): id}, with rising ids.
        specials: {name: id}. The SPECIALS that are missing there get the next free ids.
        chat: like CHAT; after an answer comes a special token, which ends it. Only CHAT needs the
        last four SPECIALS."""
        self.pattern, self.byte_ids, self.merges = pattern, byte_ids, merges
        self.split = regex.compile(pattern).finditer
        self.tokens = {id: bytes([byte]) for byte, id in enumerate(byte_ids)}
        for (left, right), id in merges.items():
            self.tokens[id] = self.tokens[left] + self.tokens[right]
        self.ranks = {token: id for id, token in self.tokens.items()}
        self.specials = dict(specials)
        for name in SPECIALS if chat == CHAT else SPECIALS[:2]:
            self.specials.setdefault(name, max(*self.tokens, *self.specials.values()) + 1)
        self.tokens |= {id: name.encode() for name, id in self.specials.items()}
        self.vocab_size = max(self.tokens) + 1  # some vocabularies have unused ids
        self.eot, self.pad, self.system, self.user, self.assistant, _ = map(
            self.specials.get, SPECIALS)
        self.chat, self.start = chat, self.marks(chat["start"])
        self.turns = {turn: [*map(self.marks, chat[turn])]  # ids before and after a message
                      for turn in ("opening", "system", "user", "assistant") if turn in chat}
        self.end = self.turns["assistant"][1][0]
        self.fingerprint = self.to_dict()["fingerprint"]

    @classmethod
    def train(cls, texts, vocab_size, pattern="gpt4", progress=False):
        """texts: a str, or an iterable of them. pattern: a name in PATTERNS, or a regex."""
        n_merges = vocab_size - 256 - len(SPECIALS)
        if n_merges < 0:
            raise ValueError(f"vocab_size={vocab_size}: the least is {256 + len(SPECIALS)}")
        if pattern not in PATTERNS:
            pattern += r"|[\s\S]"  # so that no character is lost
            check_pattern(pattern)
        pattern = PATTERNS.get(pattern, pattern)
        split, chunks = regex.compile(pattern).finditer, Counter()
        texts = [texts] if isinstance(texts, str) else texts
        for text in tqdm(texts, "splitting", disable=not progress):
            chunks.update(match[0] for match in split(text))
        return cls(pattern, list(range(256)), learn_merges(chunks, n_merges, progress))

    @lru_cache(1 << 16)  # words repeat
    def encode_chunk(self, chunk):
        token = chunk.encode()
        if token in self.ranks:  # to some of Llama 3's tokens no merges lead
            return [self.ranks[token]]
        if len(chunk) > 500:  # merge() reads the chunk once per merge: too slow for a long one
            return self.to_tiktoken()._encode_single_piece(chunk)
        return merge([self.byte_ids[byte] for byte in token], self.merges)

    def encode(self, text):
        return [id for match in self.split(clean(text)) for id in self.encode_chunk(match[0])]

    def encode_batch(self, texts):
        """The same ids as encode(), but from tiktoken: faster, and on all cores."""
        if any(regex.search(r"\s{100000}", text) for text in texts):  # tiktoken's regex would crash
            return [self.encode(text) for text in texts]
        return self.to_tiktoken().encode_ordinary_batch(texts)

    @lru_cache(8)
    def to_tiktoken(self):
        return tiktoken.Encoding(self.fingerprint, pat_str=self.pattern,
                                 mergeable_ranks=self.ranks, special_tokens=self.specials)

    def decode_bytes(self, ids):
        try:
            return b"".join([self.tokens[int(id)] for id in ids])
        except KeyError as id:
            raise ValueError(f"no token has the id {id}") from None

    def decode(self, ids):
        """Special tokens appear by name. Bytes that are not UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def stream(self, ids):
        """Yield the text while ids arrive, in whole characters: 4 tokens of one byte -> one 😊"""
        return codecs.iterdecode((self.decode_bytes([id]) for id in ids), "utf-8", "replace")

    def marks(self, text):
        """Text of the program as ids: "<|user|>Q: " -> the id of <|user|>, and those of "Q: "."""
        names = "|".join(sorted(map(regex.escape, self.specials), key=len, reverse=True))
        return [id for part in regex.split(f"({names})", text) for id in
                ([self.specials[part]] if part in self.specials else self.encode(part))]

    def encode_content(self, text):
        """A message's own ids. In some imported formats the spaces around it do not count."""
        return self.encode(text.strip() if self.chat["strip"] else text)

    def encode_chat(self, messages, reply=False):
        """[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}] ->
        ids:  <|endoftext|> <|user|> Hi <|end|> <|assistant|> Yes <|end|>
        mask: 0             0        0  0       0             1   1
        The mask is 1 where the assistant speaks. reply=True adds <|assistant|>: it speaks next."""
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        ids = [] if messages and messages[0]["role"] == "system" else [*self.start]
        mask = [0] * len(ids)
        for i, message in enumerate(messages):
            role, content = message["role"], message["content"]
            turn = "opening" if role == "system" and i == 0 else role
            if role == "opening" or turn not in self.turns:
                raise ValueError(f"this chat format has no place for a {role!r} message here: "
                                 f"leave it out, or import the model with --chat=ours")
            before, after = self.turns[turn]
            said = self.encode_content(content)
            learned = int(role == "assistant" and content.strip() != "")
            ids += [*before, *said, *after]
            mask += [0] * len(before) + [learned] * len(said)
            mask += [learned, *[0] * len(after)][:len(after)]         # after may be empty
        before = self.turns["assistant"][0] if reply else []
        return ids + before, mask + [0] * len(before)

    def to_dict(self):
        """All that from_dict() needs, in types that JSON and torch.save can store."""
        saved = {"pattern": self.pattern, "byte_ids": self.byte_ids, "specials": self.specials,
                 "merges": [[*pair, id] for pair, id in self.merges.items()]}
        saved |= {"chat": self.chat} if self.chat != CHAT else {}
        digest = sha256(json.dumps(saved, sort_keys=True).encode()).hexdigest()
        return saved | {"fingerprint": digest[:16]}

    @classmethod
    def from_dict(cls, saved):
        try:
            merges = {(left, right): id for left, right, id in saved["merges"]}
            tok = cls(saved["pattern"], saved["byte_ids"], merges, saved["specials"],
                      saved.get("chat", CHAT))
            if tok.fingerprint == saved["fingerprint"]:
                return tok
        except (AttributeError, KeyError, TypeError, ValueError, regex.error):
            pass
        raise ValueError("not a tokenizer of this project, or a damaged one")

    def save(self, path):
        """Write the file path, and a .vocab beside it for people: [the] = [th] + [e]"""
        parents = {id: f" = {self.show(a)} + {self.show(b)}" for (a, b), id in self.merges.items()}
        lines = [f"{id:>6}  {self.show(id)}{parents.get(id, '')}\n" for id in sorted(self.tokens)]
        with writing(Path(path).with_suffix(".vocab")) as f:
            f.writelines(lines)
        with writing(path) as f:
            json.dump(self.to_dict(), f)

    @classmethod
    def load(cls, path):
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except (OSError, RecursionError, ValueError) as error:
            raise ValueError(f"{path or repr(path)}: {error}; `python tokenizer.py` makes one"
                             ) from None

    def show(self, id):
        r"""[ the], [\n] for the end of a line, [\xf0] for a byte that is no whole character"""
        text = self.tokens[id].decode("utf-8", errors="backslashreplace")
        return "[" + "".join(c if c.isprintable() else repr(c)[1:-1] for c in text) + "]"


@dataclass
class Config:
    data: str = "data/town/pretrain,data/town/sft.jsonl"  # .txt, .jsonl, directories
    vocab_size: int = 1024           # bytes, merges and special tokens
    pattern: str = "digits"          # one token per digit, for sums; or gpt4, gpt2, your own regex
    out: str = "out/tokenizer.json"  # and out/tokenizer.vocab, for people
    show: str = ""                   # a text: print its merges and tokens instead of learning
    debug: bool = False              # show tracebacks


if __name__ == "__main__":
    from data.formats import read_texts

    config = parse_config(Config, __doc__)
    if config.show:
        if Path(config.out).exists():
            tok = Tokenizer.load(config.out)
        else:
            print(f"{config.out} is missing: these tokens were learned from tokenizer.py itself")
            tok = Tokenizer.train(Path(__file__).read_text(encoding="utf-8"), 768)
        for match in tok.split(clean(config.show)):
            ids = [tok.byte_ids[byte] for byte in match[0].encode()]
            print(" bytes ", *map(tok.show, ids))
            for pair, new in tok.merges.items():
                if pair in zip(ids, ids[1:]):
                    ids = replace(ids, pair, new)
                    print(f"{new:>6} ", *map(tok.show, ids))
        ids = tok.encode(config.show)
        print(*(f"\033[30;{46 - i % 2 * 3}m{tok.show(id)[1:-1]}\033[0m"
                for i, id in enumerate(ids)), sep="", end=" ")
        print(*ids)
    elif config.data == Config.data and not Path("data/town").exists():
        fail("data/town is missing: `python data/town.py` makes it")
    else:
        # The text may be larger than the memory, so it is read twice instead of kept.
        texts = (document.text for document in read_texts(config.data))
        tok = Tokenizer.train(texts, config.vocab_size, config.pattern, sys.stderr.isatty())
        tok.save(config.out)
        sample = islice(read_texts(config.data), 0, None, 10)
        sizes = [(len(text.encode()), len(tok.encode(text))) for _, text, _ in sample]
        n_bytes, n_tokens = map(sum, zip(*sizes))
        learned = map(tok.show, islice(tok.merges.values(), 10))
        print(f"vocabulary       {tok.vocab_size:,}, in {config.out}")
        print(f"bytes per token  {n_bytes / n_tokens:.2f}")
        print("first merges    ", *learned)
