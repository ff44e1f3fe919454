"""The commands of a page, as a reader types them: in blocks, and between backticks."""

import re
import shlex

SPANS = re.compile(r"^ *```\w*\n((?:.*\n)*?) *```|^ {4}(python .*)|`((?:[^`\n]|\n(?!\n))+)`", re.M)
LINE = re.compile(r".*<<'END'.*\n(?:.*\n)*?END$|.+", re.M)       # with what it reads, up to END


def lines(text):
    """[(line of commands, what they print), …]. In a block with "$ " all else is printed."""
    text = re.sub(r"\$\(\(.*?\)\)", "8000", text.replace("\\\n", " "))         # bash's numbers
    values = dict(re.findall(r'^(\w+)="(.*)"$', text, re.M)
                  + re.findall(r"`(\w+)=(\S+)`", text))
    found = []
    for block, line, span in SPANS.findall(text):
        typed = re.split(r"^\$ ", block, flags=re.M)[1:] or LINE.findall(block)
        for part in typed or [" ".join((line or span).split())]:
            command = LINE.search(part)[0]
            head, *body = command.split("\n", 1)
            head = re.sub(r"\$(\w+)", lambda name: values.get(name[1], "8000"), head).strip()
            found.append(("\n".join([head, *body]), part[len(command):].strip()))
    return found


def commands(line):
    """The words of its commands: "cd a && python b.py > c" -> [[cd, a], [python, b.py], [c]]."""
    lexer = shlex.shlex(line.partition("\n")[0], posix=True, punctuation_chars=True)
    lexer.whitespace_split, found = True, [[]]
    for word in lexer if re.search(r"\b(python|torchrun)\b", line) else []:
        if {*word} <= {*"();<>|&"}:
            found.append([])
        else:
            found[-1].append(word)
    return found


def script_of(words):
    """A script of ours and its arguments, ("tools/check", ["my.jsonl"]), or None."""
    for i, word in enumerate(words):
        if {"python", "torchrun"} & {*words[:i]} and (words[i - 1] == "-m" or word[-3:] == ".py"):
            name = word.removesuffix(".py").replace(".", "/")
            return (name, words[i + 1:]) if "." in word else None


def scripts(text):
    """Each script of ours that a page runs, with its arguments, in order."""
    return [found for line, _ in lines(text) for words in commands(line)
            if (found := script_of(words))]
