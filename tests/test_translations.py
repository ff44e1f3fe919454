"""The Chinese README, stages and course keep what the English ones say: commands, figures, tables.

Only digits count as figures ("two" may become 两). A Chinese file ends with one checksum for each
section of the English text that it follows, so that no change of the English goes unnoticed.
"""

import re
import zlib
from collections import Counter
from itertools import zip_longest
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = ["README", "docs/stages", "docs/course"]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
INDENTED = re.compile(r"^    .+$", re.M)
FIGURE = re.compile(r"-?(?:\d+(?:[.,:]\d+)*|\.\d+)%?")     # -1, 36,000, 4:34, .75, 90%
LINK = re.compile(r"!?\[[^\]]*\]\(([^)]+)\)")
HAN = "[\u3400-\u9fff]"


def read(name):
    return tuple((ROOT / (name + end)).read_text("utf-8") for end in (".md", ".zh.md"))


def sections(text):
    """[(heading, text with its heading), …], without the checksums at the end."""
    parts = re.split(r"^(?=##)", text.rpartition("\n<!--")[0] or text, flags=re.M)
    return [(part.partition("\n")[0].lstrip("# "), part) for part in parts]


def facts(text):
    """What a translation keeps: {name: list} where the order counts, else {name: Counter}."""
    blocks, prose = FENCED.findall(text), FENCED.sub("", text)
    bash = [line for language, code in blocks if language for line in code.splitlines()]
    plain = [line for language, code in blocks if not language for line in code.splitlines()]
    rows = [line for line in prose.splitlines() if line.startswith("|")]
    return {
        "command": [re.sub(r"(^|\s)#\s.*", "", line).rstrip() for line in bash],
        "line of output or formulas": plain + INDENTED.findall(prose),
        "table row": [(row.count("|") - 1, *sorted(FIGURE.findall(row))) for row in rows],
        "figures": Counter(FIGURE.findall(text)),
        "in `backticks`": Counter(" ".join(code.split()).replace(".zh.", ".")
                                  for code in re.findall(r"`([^`]+)`", prose)),
        "links": Counter(target.replace(".zh.", ".") for target in LINK.findall(text)),
        "heading's level": [len(text) - len(text.lstrip("#"))]}


def same(english, chinese):
    """Equal; of a line that has been translated, the words left in Latin letters are in both."""
    if english == chinese or not english or not re.search(HAN, str(chinese)):
        return english == chinese
    return all(word in english for word in re.findall(r"[A-Za-z][\w./-]+", chinese, re.A))


def checksums(english):
    """A line for each section; wrapping it anew does not change it."""
    return [f"{zlib.crc32(' '.join(text.split()).encode()):08x} {heading}"
            for heading, text in sections(english)]


def section_differences(english, chinese):
    """A message for each difference: what differs, both values."""
    ours, theirs = facts(english), facts(chinese)
    for name, a in ours.items():
        b = theirs[name]
        if type(a) is list:
            for i, (x, y) in enumerate(zip_longest(a, b, fillvalue=""), 1):
                if not same(x, y):
                    yield f"{name} {i}: {x!r} in English, {y!r} in Chinese"
        elif a != b:
            more, less = (", ".join(extra.elements()) or "-" for extra in (a - b, b - a))
            yield f"{name}: only in English {more}; only in Chinese {less}"


def differences(english, chinese):
    """All messages for two texts, each with the section's English heading."""
    ours, theirs = sections(english), sections(chinese)
    if len(ours) != len(theirs):
        return [f"{len(ours)} sections in English, {len(theirs)} in Chinese"]
    found = [f"{heading}: {message}" for (heading, a), (_, b) in zip(ours, theirs)
             for message in section_differences(a, b)]
    known = chinese.rpartition("\n<!--")[2].splitlines()
    return found + [f"{line[9:]}: the English has changed. When the Chinese says the same, put "
                    f"this line into the comment at its end: {line}"
                    for line in checksums(english) if line not in known]


@pytest.mark.parametrize("name", FILES)
def test_the_chinese_text_keeps_what_the_english_says(name):
    found = differences(*read(name))
    assert not found, f"{name}.md and {name}.zh.md differ:\n" + "\n".join(found)


@pytest.mark.parametrize("name", FILES)
def test_every_wrong_figure_in_the_chinese_text_is_reported(name):
    for (_, english), (_, chinese) in zip(*map(sections, read(name))):
        for figure in FIGURE.finditer(chinese):
            wrong = chinese[:figure.start()] + "7" + chinese[figure.start():]
            assert "figures" in "".join(section_differences(english, wrong)), figure


@pytest.mark.parametrize("name", FILES)
def test_chinese_text_has_spaces_around_latin_words_and_wide_punctuation(name):
    text = FENCED.sub("", read(name)[1])
    found = re.findall(f".*(?:{HAN}[A-Za-z0-9`]|[A-Za-z0-9%`]{HAN}|{HAN}[,;:?!.(]).*", text)
    assert not found


# ---- the comparison itself, on a text in which one thing is changed ---------------------------

ENGLISH = """# A town

A hundred people, 5.9 of 7. See [the course](course.md) and `python chat.py`.

```bash
python sft.py --steps=1     # 3,000 demonstrations
```

## Results

![a picture](docs/ppo.svg)

    loss = -mean log p    on the answer

```
arithmetic   loss 0.458
sft.py       learn to answer
```

| what | before | after |
|---|---|---|
| loss | 1.89 | 1.63 |
| grade | 4.1 | 8.2 |
"""
CHINESE = """# 小镇

一百个人，满分 7 分，得 5.9 分。见[课程](course.zh.md)和 `python chat.py`。

```bash
python sft.py --steps=1     # 3,000 段示范
```

## 结果

![一幅图](docs/ppo.zh.svg)

    loss = -mean log p    在回答上

```
arithmetic   loss 0.458
sft.py       学会回答
```

| 内容 | 之前 | 之后 |
|---|---|---|
| 损失 | 1.89 | 1.63 |
| 评分 | 4.1 | 8.2 |

<!-- checksums
CHECKSUMS
-->
""".replace("CHECKSUMS", "\n".join(checksums(ENGLISH)))


def test_a_faithful_text_has_no_differences():
    assert differences(ENGLISH, CHINESE) == []


def test_wrapping_the_english_anew_is_no_difference():
    assert differences(ENGLISH.replace("people, 5.9", "people,\n5.9"), CHINESE) == []


@pytest.mark.parametrize("right, wrong, message", [
    ("得 5.9 分", "得 6.9 分", "A town: figures: only in English 5.9; only in Chinese 6.9"),
    ("# 3,000", "# 300", "A town: figures: only in English 3,000; only in Chinese 300"),
    ("python sft.py", "python pretrain.py", "A town: command 1: 'python sft.py --steps=1' in "
     "English, 'python pretrain.py --steps=1' in Chinese"),
    ("chat.py`", "page.py`", "A town: in `backticks`: only in English python chat.py; "
     "only in Chinese python page.py"),
    ("ppo.zh.svg", "chain.zh.svg", "Results: links: only in English docs/ppo.svg; "
     "only in Chinese docs/chain.svg"),
    ("-mean log p ", "-sum log p ", "Results: line of output or formulas 3: "
     "'    loss = -mean log p    on the answer' in English, '    loss = -sum log p    在回答上' in "
     "Chinese"),
    ("arithmetic ", "arithmetics ", "Results: line of output or formulas 1: 'arithmetic   loss "
     "0.458' in English, 'arithmetics   loss 0.458' in Chinese"),
    ("sft.py       学", "ppo.py       学", "Results: line of output or formulas 2: 'sft.py       "
     "learn to answer' in English, 'ppo.py       学会回答' in Chinese"),
    ("| 评分 | 4.1 | 8.2 |\n", "", "Results: table row 4: (3, '4.1', '8.2') in English, '' in "
     "Chinese"),
    ("学会回答", "学会回答\n多余", "Results: line of output or formulas 4: '' in English, "
     "'    loss = -mean log p    在回答上' in Chinese"),
    ("1.63 |\n| 评分 | 4.1", "4.1 |\n| 评分 | 1.63", "Results: table row 3: (3, '1.63', '1.89') in "
     "English, (3, '1.89', '4.1') in Chinese"),
    ("## 结果", "### 结果", "Results: heading's level 1: 2 in English, 3 in Chinese"),
    ("## 结果", "结果", "2 sections in English, 1 in Chinese")])
def test_a_difference_is_reported_with_its_section(right, wrong, message):
    assert right in CHINESE
    assert message in differences(ENGLISH, CHINESE.replace(right, wrong))


def test_new_english_words_are_reported_with_the_checksum_to_write():
    changed = ENGLISH.replace("on the answer", "on the assistant's words")
    message, = differences(changed, CHINESE)
    assert message.startswith("Results: the English has changed")
    line = message.partition("comment at its end: ")[2]
    assert differences(changed, CHINESE.replace(checksums(ENGLISH)[1], line)) == []
