"""Find the chat format of a model in its chat template, and write a template of a chat format.

A template is a program in Jinja that writes a dialogue as text. Most only put some text around each
message: that is a table, like tokenizer.CHAT. find_format() renders dialogues with marks in place
of the messages, and reads off what stands between the marks. check_format() compares the table with
the template on random dialogues. (jinja2 comes with torch.)
"""

import json
import random

from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tokenizer import clean

HOSTILE = ["Hi", "", " ", " two  spaces ", "\n\na\n\n", "<think>a</think>b", "</think>", "{{ 7 }}",
           "{% if %}", "<|im_end|>", "</s> [/INST]", '{"name": "f"}', "é 漢 😊", "it's", "a\\n\tb"]


def renderer(template, bos, eos):
    """-> a function: (messages, reply) -> text. It raises ValueError where the template fails. A
    template is a stranger's program: in the sandbox it can only write."""
    def refuse(reason):
        raise ValueError(f"it says {reason!r}")

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                        extensions=[loopcontrols])
    env.globals |= dict(raise_exception=refuse, strftime_now=lambda _: refuse("today's date"),
                        bos_token=bos, eos_token=eos)
    compiled = attempt(env.from_string, template)
    return lambda messages, reply=False: attempt(compiled.render, messages=messages,
                                                 add_generation_prompt=reply)


def attempt(call, *args, **kwargs):
    try:
        return call(*args, **kwargs)
    except Exception as error:                        # whatever a program can do wrong
        raise ValueError(str(error)) from None


def gaps(render, *roles, reply=False):
    """What stands before, between and after the messages of these roles: len(roles) + 1 texts"""
    marks = [f"Mark{i}Mark" for i in range(len(roles))]
    text, found = render([dict(role=r, content=m) for r, m in zip(roles, marks)], reply), []
    for mark in marks:
        before, there, text = text.partition(mark)
        found.append(before)
        if not there or mark in text:
            raise ValueError(f"it does not write each message of {', '.join(roles)} once, in order")
    return [*found, text]


def without(whole, start="", end=""):
    if not (whole.startswith(start) and whole.endswith(end)):
        raise ValueError(f"around a message it writes now {start + end!r}, now {whole!r}")
    return whole[len(start):len(whole) - len(end)]


def find_format(render, specials):
    """-> the chat format, like tokenizer.CHAT. specials: the names of the special tokens. Raises
    ValueError, which says what the template does that a table can't say."""
    first, after_user = gaps(render, "user")
    _, between, after_answer = gaps(render, "user", "assistant")
    before_user = without(gaps(render, "user", "assistant", "user")[2], start=after_answer)
    before_answer = without(between, start=after_user)
    reply = without(gaps(render, "user", reply=True)[1], start=after_user)
    if reply != before_answer:
        raise ValueError(f"before an answer it writes {before_answer!r}, or, to ask for one, "
                         f"{reply!r}")
    if not any(after_answer.startswith(name) for name in specials):
        raise ValueError(f"after an answer it writes {after_answer!r}, which is no special token")
    chat = {"start": without(first, end=before_user), "user": [before_user, after_user],
            "assistant": [before_answer, after_answer],
            "strip": " Hi " not in render([dict(role="user", content=" Hi ")])}
    try:                                              # some refuse system messages, some later ones
        before, after, _ = gaps(render, "system", "user")
        chat["opening"] = [before, without(after, end=before_user)]
        _, _, before, after, _ = gaps(render, "user", "assistant", "system", "user")
        chat["system"] = [without(before, start=after_answer), without(after, end=before_user)]
    except ValueError:
        pass
    return chat


def check_format(render, tok, n=200, seed=0):
    """Raise ValueError if the template writes a dialogue in another way than the tokenizer does."""
    rng, chat = random.Random(seed), tok.chat
    texts = HOSTILE + chat["user"] + chat["assistant"]
    for _ in range(n):
        roles = ["system"] * rng.randrange(2) if "opening" in chat else []
        for _ in range(rng.randint(1, 4)):
            late = "system" in chat and len(roles) > 1 and rng.random() < 0.2
            roles += ["system"] * late + ["user", "assistant"]
        reply = rng.random() < 0.5
        messages = [dict(role=role, content="".join(rng.choices(texts, k=rng.randint(1, 3))))
                    for role in roles[:-1 if reply else None]]
        if tok.decode(tok.encode_chat(messages, reply)[0]) != clean(render(messages, reply)):
            raise ValueError(f"it changes the messages, or what is around them, in {messages}")


def template_of(chat):
    """The format as a chat template. Unlike encode_chat() it finds special tokens in messages."""
    said = {turn: [json.dumps(text, ensure_ascii=False) for text in chat[turn]]
            for turn in ("opening", "user", "assistant", "system") if turn in chat}
    content = "message['content'] | trim" if chat["strip"] else "message['content']"
    turns = ""
    for turn, (before, after) in said.items():
        role = "system' and loop.first" if turn == "opening" else f"{turn}'"
        turns += (f"{{% {'el' * bool(turns)}if message['role'] == '{role} %}}"
                  f"{{{{ {before} + {content} + {after} }}}}")
    start = json.dumps(chat["start"], ensure_ascii=False)
    return ("{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
            "{{ " + start + " }}{% endif %}" + turns + "{% else %}{{ raise_exception('no place for "
            "the role ' + message['role']) }}{% endif %}{% endfor %}"
            "{% if add_generation_prompt %}{{ " + said["assistant"][0] + " }}{% endif %}")
