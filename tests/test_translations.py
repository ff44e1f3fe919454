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


# ---- the comparison itself ------------------------------------------------------------------

# English, Chinese, what is said of them; "" where they are faithful
PAIRS = [
    ("5.9 of 7", "满分 7 分，得 5.9 分", ""),
    ("5.9 of 7", "满分 7 分，得 6.9 分", "figures: only in English 5.9; only in Chinese 6.9"),
    ("`chat.py`", "`page.py`", "in `backticks`: only in English chat.py; only in Chinese page.py"),
    ("[a](ppo.svg)", "[图](ppo.zh.svg)", ""),
    ("[a](ppo.svg)", "[图](a.zh.svg)", "links: only in English ppo.svg; only in Chinese a.svg"),
    ("```bash\nls  # 3,000\n```\n", "```bash\nls  # 3,000 个\n```\n", ""),
    ("```bash\nls  # 3,000\n```\n", "```bash\nls  # 300 个\n```\n",
     "figures: only in English 3,000; only in Chinese 300"),
    ("```bash\nls -l\n```\n", "```bash\nls\n```\n",
     "command 1: 'ls -l' in English, 'ls' in Chinese"),
    ("```\nsft.py  learn\n```\n", "```\nsft.py  学\n```\n", ""),
    ("```\nsft.py  learn\n```\n", "```\nppo.py  学\n```\n",
     "line of output or formulas 1: 'sft.py  learn' in English, 'ppo.py  学' in Chinese"),
    ("```\nloss\n```\n", "```\nlosses\n```\n",
     "line of output or formulas 1: 'loss' in English, 'losses' in Chinese"),
    ("```\nlearn\n```\n", "```\n学\n多余\n```\n",
     "line of output or formulas 2: '' in English, '多余' in Chinese"),
    ("    -mean log p  on it", "    -sum log p  在它上",
     "line of output or formulas 1: '    -mean log p  on it' in English, "
     "'    -sum log p  在它上' in Chinese"),
    ("| loss | 4.1 | 8.2 |\n", "| 损失 | 4.1 | 8.2 |\n", ""),
    ("| loss | 4.1 |\n| x | 8.2 |\n", "| 损失 | 8.2 |\n| x | 4.1 |\n",
     "table row 1: (2, '4.1') in English, (2, '8.2') in Chinese; "
     "table row 2: (2, '8.2') in English, (2, '4.1') in Chinese"),
    ("| a | b |\n", "", "table row 1: (2,) in English, '' in Chinese"),
    ("## Results", "### 结果", "heading's level 1: 2 in English, 3 in Chinese")]


@pytest.mark.parametrize("english, chinese, message", PAIRS)
def test_what_differs_is_reported_with_both_values(english, chinese, message):
    assert "; ".join(section_differences(english, chinese)) == message


ENGLISH = "# A town\n\nA hundred people.\n\n## Results\n\nThe `loss` is\nlow.\n"
CHINESE = "# 小镇\n\n一百个人。\n\n## 结果\n\n`loss` 很低。\n\n<!-- checksums\n{}\n-->\n".format(
    "\n".join(checksums(ENGLISH)))


def test_a_difference_is_reported_with_its_section_and_a_missing_section():
    assert differences(ENGLISH, CHINESE.replace("`loss`", "`lr`")) == [
        "Results: in `backticks`: only in English loss; only in Chinese lr"]
    assert differences(ENGLISH, "# 小镇\n") == ["2 sections in English, 1 in Chinese"]


def test_new_english_words_are_reported_with_the_checksum_to_write_but_no_other_wrapping():
    assert differences(ENGLISH.replace("is\nlow", "is low"), CHINESE) == []
    changed = ENGLISH.replace("low", "very low")
    message, = differences(changed, CHINESE)
    assert message.startswith("Results: the English has changed")
    line = message.partition("comment at its end: ")[2]
    assert differences(changed, CHINESE.replace(checksums(ENGLISH)[1], line)) == []
