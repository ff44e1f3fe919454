"""Is a regex of your own fit to split text for the tokenizer? Tried before it is used."""

from itertools import chain, product

import regex
import tiktoken


def check_pattern(pattern):
    """Raise ValueError if the regex loses characters, or if tiktoken, which reads some regexes in
    another way, splits differently. Tried on each pair of many characters, each triple of a few,
    and long texts of these. There each of our chunks is one token of tiktoken's."""
    many = "".join(map(chr, [*range(9, 14), *range(28, 127)])) + "\x85\xa0é\u0301ßſKİı中한א१²Ⅷ😊\u200d"
    pairs, triples = product(many, repeat=2), product("abZ1 \n\r-'é中", repeat=3)
    texts = ["".join(characters) for characters in chain(pairs, triples)]
    texts += ["".join(texts), "".join(c * n for n in range(3, 9) for c in many)]
    try:
        ours = [[match[0] for match in regex.finditer(pattern, text)] for text in texts]
        ranks = {bytes([byte]): byte for byte in range(256)}
        for chunk in chain(texts, *ours):
            ranks.setdefault(chunk.encode(), len(ranks))
        theirs = tiktoken.Encoding("", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    except (ValueError, regex.error) as error:
        raise ValueError(f"--pattern={pattern} is not a valid regex: {error}") from None
    for text, chunks in zip(texts, ours):
        if "".join(chunks) != text or "" in chunks:
            raise ValueError(f"--pattern={pattern} loses characters or finds nothing in "
                             f"{text!r:.40}")
        if [ranks[chunk.encode()] for chunk in chunks] != theirs.encode_ordinary(text):
            raise ValueError(f"--pattern={pattern} means something else to tiktoken in "
                             f"{text!r:.40}")
