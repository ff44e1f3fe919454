"""The Chinese pages keep what the English ones say: commands, figures, tables; and all Chinese
texts, also those of the report and of the exercises, use the words of docs/glossary.md.

Only digits count as figures ("two" may become 两). A Chinese file ends with one checksum for each
section of the English text that it follows, so that no change of the English goes unnoticed.
"""

import ast
import re
import zlib
from collections import Counter
from functools import cache
from itertools import zip_longest
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = ["README", "docs/stages", "docs/course", "docs/lessons", "docs/troubleshooting",
         "data/README"]
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


def figures(text):
    """The numbers; English may leave out the 0 of 0.5."""
    return [re.sub(r"^-?(?=\.)", r"\g<0>0", figure) for figure in FIGURE.findall(text)]


@cache
def facts(text):
    """What a translation keeps: {name: list} where the order counts, else {name: Counter}."""
    blocks, prose = FENCED.findall(text), FENCED.sub("", text)
    bash = [line for language, code in blocks if language for line in code.splitlines()]
    plain = [line for language, code in blocks if not language for line in code.splitlines()]
    rows = [line for line in prose.splitlines() if line.startswith("|")]
    return {
        "command": [re.sub(r"(^|\s)#\s.*", "", line).rstrip() for line in bash],
        "line of output or formulas": plain + INDENTED.findall(prose),
        "table row": [(row.count("|") - 1, *sorted(figures(row))) for row in rows],
        "figures": Counter(figures(text)),
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


# ---- the comparison itself ------------------------------------------------------------------

# English, Chinese, what is said of them. The project's pages are the faithful ones.
PAIRS = [
    ("5.9 of 7", "满分 7 分，得 6.9 分", "figures: only in English 5.9; only in Chinese 6.9"),
    ("`chat.py`", "`page.py`", "in `backticks`: only in English chat.py; only in Chinese page.py"),
    ("[a](ppo.svg)", "[图](a.zh.svg)", "links: only in English ppo.svg; only in Chinese a.svg"),
    ("```bash\nls -l\n```\n", "```bash\nls\n```\n",
     "command 1: 'ls -l' in English, 'ls' in Chinese"),
    ("```\nloss\n```\n", "```\nlosses\n```\n",
     "line of output or formulas 1: 'loss' in English, 'losses' in Chinese"),
    ("```\nlearn\n```\n", "```\n学\n多余\n```\n",
     "line of output or formulas 2: '' in English, '多余' in Chinese"),
    ("    -mean log p  on it", "    -sum log p  在它上",
     "line of output or formulas 1: '    -mean log p  on it' in English, "
     "'    -sum log p  在它上' in Chinese"),
    ("| loss | 4.1 |\n| x | 8.2 |\n", "| 损失 | 8.2 |\n| x | 4.1 |\n",
     "table row 1: (2, '4.1') in English, (2, '8.2') in Chinese; "
     "table row 2: (2, '8.2') in English, (2, '4.1') in Chinese"),
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


# ---- one Chinese word for each thing: docs/glossary.md --------------------------------------

@cache
def glossary():
    """For each row: English names, meaning in Chinese, Chinese names, words not to use."""
    rows = re.findall(r"^\| \*\*.*", (ROOT / "docs/glossary.md").read_text("utf-8"), re.M)
    cells = ([cell.strip(" *") for cell in row.split("|")[1:-1]] for row in rows)
    return [(re.sub(r" \(.*", "", english).split(", "), meaning, chinese.split("；"),
             [word for word in bad.split("、") if word])
            for english, _, meaning, chinese, bad in cells]


def texts(file):
    """The Chinese in a file: lines of a page without `code`; strings; what stands between tags."""
    text = (ROOT / file).read_text("utf-8")
    if file.endswith(".py"):
        found = [node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)]
    elif file.endswith("glossary.md"):
        found = [part for _, meaning, chinese, _ in glossary() for part in (meaning, *chinese)]
    elif file.endswith(".md"):
        text = re.sub(r"(?<=\])\([^)]*\)", "", text)                         # of links
        text = re.sub(r"^```bash$.*?^```$", lambda block: re.sub(r'"[^"]*"', '"1"', block[0]), text,
                      flags=re.M | re.S)                                     # strings of commands
        found = re.sub(r"`[^`\n]+`", "`1`", text).splitlines()
    else:
        found = re.split(r'["`<>]', re.sub(r"\$\{[^}]*\}", "1", text))
    return [part for part in found if isinstance(part, str) and re.search(HAN, part)]


FORMULA = re.compile(r"^ {4}.*|(?<=[A-Za-z])\([^()]*\)")           # an indented line; p(回答)
PAGES = sorted(file.relative_to(ROOT).as_posix() for pattern in (
    "*.zh.md", "d*/*.zh.md", "docs/img/*.zh.svg", "docs/glossary.md", "view/*.html", "view/*.js",
    "exercises/*.py", "exercises/answers/*.py") for file in ROOT.glob(pattern))


def faults(part):
    """What a Chinese text must not have: the places in a list."""
    plain = FORMULA.sub("", part)
    found = re.findall(r"(?<![\w.=)])\.\d+", part)                                # .7
    found += re.findall(rf"{HAN}[,;:?!.()\"]|[,;:?!] ?{HAN}|[()\"]{HAN}", plain)   # half-width
    found += re.findall(rf"{HAN}[A-Za-z0-9`]|[A-Za-z0-9%`]{HAN}", part)            # no space
    for english, _, chinese, bad in glossary():
        found += [f"{zh} {en}" for zh in chinese for en in english
                  if zh != en and re.search(rf"{zh} ?{en}s?(?![\w(\[])", part, re.I)]
        found += [word for word in bad if re.search(
            word if re.match(HAN, word) else rf"(?<![\w（<|.-]){word}(?![\w(])", part)]
    return found


@pytest.mark.parametrize("file", PAGES)
def test_chinese_texts_use_the_words_of_the_glossary_and_wide_punctuation(file):
    assert not [(found, part) for part in texts(file) if (found := faults(part))]


@pytest.mark.parametrize("file", PAGES)
def test_a_page_gives_the_english_word_in_brackets_once_at_most(file):
    text = "\n".join(texts(file))
    names = [en for english, *_ in glossary() for en in english if file != "docs/glossary.md"]
    assert not [en for en in names if len(re.findall(rf"（{en}s?）", text, re.I)) > 1]


@pytest.mark.parametrize("part, found", [
    ("给每个提示（prompt）采样，温度 0.7，“好”。", []), ("按 p(回答) 加权，1.5 倍", []),
    ("给每个提示 prompt 采样", ["提示 prompt"]), ("KV 缓存 KV cache 存什么", ["KV 缓存 KV cache"]),
    ("每个 token 的奖励", ["token"]), ("截断到 1 ± .2", [".2", "截断到"]), ("一个批次", ["批次"]),
    ("约 -.5", [".5"]), ("对了,梯度不对", ["了,"]), ("正确; 它", ["确;"]),
    ("第2题", ["第2"]), ("5%是", ["%是"]), ("KL 很大(而且", ["大("])])
def test_a_fault_in_a_chinese_text_is_found(part, found):
    assert faults(part) == found
