"""What other projects call the parts of a row. Here any row becomes (prompt, responses):

    prompt      [{"role": "user", "content": "Hi"}], messages of which the last is the user's
    responses   ["Hello", "What?"], the best first; one is a demonstration, none is a prompt

The tables are the dialects: a new one is the names of its fields. formats.py says what becomes of
the rows, and counts what is mended or not used here (`notes`).
"""

import json
import re
from contextlib import suppress

# The question is the first of QUESTIONS that is present, the answer the last turn of the dialogue,
# or the first of ANSWERS.
DIALOGUES = ("messages", "conversations")             # OpenAI, UltraChat, ms-swift; ShareGPT
QUESTIONS = (*DIALOGUES, "prompt",                    # TRL
             "instruction", "question", "input")      # Alpaca, Dolly; GSM8K, OpenOrca; LIMA
ANSWERS = ("response", "completion", "output", "answer")       # Dolly; TRL; Alpaca; GSM8K
# Beside a question stands more of it (Alpaca; Dolly), or what comes first (Alpaca; OpenOrca).
CONTEXTS, SYSTEMS = ("input", "context"), ("system", "system_prompt")
PAIR = ("chosen", "rejected")                         # TRL, Anthropic's HH, LLaMA-Factory
COMPARED = ("responses", "ranks", *PAIR, "rejected_response")  # compare.py's; ms-swift
# the fields that become prompt and responses; all other fields of a row are kept
CONTENT = (*QUESTIONS, *ANSWERS, *CONTEXTS, *SYSTEMS, "history", *COMPARED)

ROLES = {"system": "system", "user": "user", "assistant": "assistant",
         "human": "user", "gpt": "assistant"}         # ShareGPT's, HH's
TURN = (("role", "from"), ("content", "value"))       # OpenAI's, ShareGPT's
LEARNED = ("weight", "train", "loss")                 # whether, and how much, a turn is learned

# What a row says of its responses: score_chosen and score_rejected, chosen-rating, scores: [7, 5].
# 1: the highest is the best.
SCORES = {"score": 1, "rating": 1, "reward": 1, "grade": 1, "quality": 1, "avg_rating": 1,
          "overall_score": 1, "reward_score": 1, "rm_score": 1, "rank": -1, "margin": 1}
LABELS = ("label", "kto_tag")  # false: the answer is bad (TRL's and LLaMA-Factory's KTO)
OPINIONS = (*LABELS, "noise", "labeler", "models")    # more of what belongs to given responses

# All other fields: without these the text means something else, and the row is refused …
MEANINGFUL = ("image", "images", "video", "videos", "audio", "audios", "tools", "functions",
              "tool_calls", "function_call", "reasoning", "reasoning_content", "thinking")
# … these say nothing about the text, and what is not here either is counted and told.
HARMLESS = re.compile(r"(.*[-_])?(id|uuid|idx|index|source|origin|dataset|subset|split|url|path|"
                      r"domain|category|kind|about|topic|type|tag|language|lang|model|generator|"
                      r"metadata|meta|info|date|time|timestamp|license|version|hash|length|"
                      r"count)s?")


class DataError(ValueError):
    """Why a file can't be used, in one line: where, what is wrong and, if possible, what to do."""


class Drop(Exception):
    """A well-formed row with nothing to learn from. The text follows a number: "2 without text"."""


# ---- fields ---------------------------------------------------------------------------------

def first(row, names):
    """The first of the names that the row has, or None."""
    return next((name for name in names if name in row), None)


def without(row, names):
    return {name: value for name, value in row.items() if name not in names}


def without_gaps(row):
    """Exporters write null, NaN or [] for an empty cell."""
    return {k: v for k, v in row.items() if v is not None and v == v and v != []}


def refuse_meaningful(fields):
    for name in MEANINGFUL:
        if fields.get(name) and fields[name] not in ("[]", "{}", "null"):
            raise DataError(f"{name} can't be used, and the text means something else without: "
                            "leave such rows out, or remove the field")


def unknown(fields):
    """What nothing reads, as it is counted in notes."""
    return {("not used", repr(name)[:40]) for name in fields
            if not HARMLESS.fullmatch(str(name).lower())}


def string(value, name):
    """The value, if it is a string that UTF-8 can encode: not half an emoji, JSON's "\\ud83d"."""
    if not isinstance(value, str):
        raise DataError(f"{name} must be a string, not {value!r:.40}")
    return value.encode().decode()


def are_numbers(values, count):
    """Whether it is a list of so many numbers: not NaN, infinite, or too large for a float32."""
    return isinstance(values, list) and len(values) == count and all(
        type(value) in (int, float) and abs(value) < 1e30 for value in values)


# ---- messages -------------------------------------------------------------------------------

def message(role, content):
    role = role.lower() if isinstance(role, str) else role
    if str(role) not in ROLES:
        raise DataError(f"a role must be system, user or assistant, not {role!r:.40}")
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text"
                                         for part in content):       # OpenAI's
        content = "".join(string(part.get("text"), "text") for part in content)
    return {"role": ROLES[role], "content": string(content, "content")}


def is_dialogue(value):
    """Whether it is a list of turns. nanochat's files have one per line, without a name."""
    return isinstance(value, list) and bool(value) and all(
        isinstance(turn, dict) and first(turn, TURN[0]) for turn in value)


def is_transcript(text):
    """Whether a text is a dialogue of Human and Assistant, as in HH, rm-static and BELLE."""
    return isinstance(text, str) and bool(re.match(
        r"\n\n(Human|Assistant):|\s*Human:.*\n *Assistant:", text, re.DOTALL))


def deserialised(value):
    r"""A dialogue that was written as a string: in JSON, as tables have it, or as a transcript.
    "\n\nHuman: Hi\n\nAssistant: Hello" -> [user: Hi, assistant: Hello]. Other values stay."""
    if is_transcript(value):
        line = r"\n\n" if "\n\nAssistant:" in value else r"\n *"      # BELLE has no empty lines
        _, *parts = re.split(line + "(Human|Assistant):", "\n\n" + value.strip())
        return [message(who, said.strip()) for who, said in zip(parts[::2], parts[1::2])]
    if isinstance(value, str) and value.lstrip().startswith("[{"):
        with suppress(ValueError, RecursionError):
            if is_dialogue(turns := json.loads(value)):
                return turns
    return value


def as_messages(prompt, notes):
    """"Hi" -> [{"role": "user", "content": "Hi"}]; a list is checked and copied."""
    if isinstance(prompt, str):
        return [message("user", prompt)]
    if not (isinstance(prompt, list) and prompt and all(isinstance(turn, dict) for turn in prompt)):
        raise DataError(f"expected a string or a list of messages, not {prompt!r:.40}")
    messages = []
    for turn in map(without_gaps, prompt):
        refuse_meaningful(turn)
        messages.append(message(*(turn.get(first(turn, names)) for names in TURN)))
        for name in LEARNED:
            if messages[-1]["role"] == "assistant" and turn.get(name, 1) != 1:     # True == 1
                raise DataError(f"an answer with {name}={turn[name]!r:.40} can't be learned as it "
                                "is meant: leave such rows out")
        notes.update(unknown(without(turn, (*sum(TURN, ()), *LEARNED))))
    return messages


def add_to(turns, text):
    turns[-1]["content"] = "\n\n".join(filter(str.strip, (turns[-1]["content"], text)))


def tidy(turns, notes):
    """Join neighbours of one role, and remove the assistant's turns before the first question."""
    joined = []
    for turn in turns:
        if joined and joined[-1]["role"] == turn["role"]:
            add_to(joined, turn["content"])
            notes["mended", "with turns of one role in a row, which were joined"] += 1
        elif turn["role"] == "assistant" and not any(t["role"] == "user" for t in joined):
            notes["mended", "that began with an answer, which was cut"] += 1
        else:
            joined.append(turn)
    return joined


# ---- rows -----------------------------------------------------------------------------------

def standard(row, notes):
    """Any row as (prompt, responses)."""
    refuse_meaningful(row)
    asks, pair, prompt = first(row, QUESTIONS), [row[name] for name in PAIR if name in row], []
    if len(pair) == 1:
        raise DataError("chosen and rejected must come together: add the missing one")
    if not asks and not pair:
        raise DataError(f"needs one of {', '.join(QUESTIONS)}, as in "
                        '{"prompt": "Hi", "response": "Hello"}: data/README.md lists the formats')
    answers = row.get("responses") or row.get(first(row, ANSWERS), [])
    if asks:
        prompt = question(row, asks, notes)
        if asks in DIALOGUES and prompt and prompt[-1]["role"] == "assistant":
            last = prompt.pop()["content"]
            answers = row.get("responses") or [last]
    if not isinstance(answers, list) or is_dialogue(answers):        # a list: LLaMA-Factory's
        answers = [answers]
    if "rejected_response" in row:                    # ms-swift: beside a demonstration
        answers = [*answers[:1], row["rejected_response"]]
    dialogues = [whole_dialogue(prompt, answer, notes) for answer in
                 (map(deserialised, pair) if pair else answers)]
    if any(dialogue[:-1] != dialogues[0][:-1] for dialogue in dialogues):
        raise Drop("whose dialogues differ before the last answer")
    prompt = dialogues[0][:-1] if dialogues else prompt
    responses = [dialogue[-1]["content"] for dialogue in dialogues]
    if is_transcript(row.get(asks)):
        responses = [response.strip() for response in responses]      # "Assistant: Hello"
    # a row may ask or answer in two fields: the other one is told, if it says something else
    text = "\n".join([*(turn["content"] for turn in prompt), *responses])
    others = {*CONTENT} - {asks, *COMPARED, *(ANSWERS if first(row, COMPARED) else ())}
    notes.update({("not used", repr(name)) for name in others
                  if isinstance(row.get(name), str) and row[name].strip() not in text})
    return ends_with_user(prompt), responses


def question(row, name, notes):
    """The dialogue in the field of this name, with what stands before it or belongs to it."""
    turns, pairs = as_messages(deserialised(row[name]), notes), row.get("history") or []
    if turns[1:] and is_transcript(row[name]) and turns[-1] == message("assistant", ""):
        turns.pop()                                   # "Assistant:", where the answer follows
    for more in CONTEXTS:
        if row.get(more) and more != name and name not in DIALOGUES:
            add_to(turns, string(row[more], more))
    if not (isinstance(pairs, list) and all(isinstance(p, list) and len(p) == 2 for p in pairs)):
        raise DataError(f"history must be a list of [question, answer], not {pairs!r:.40}")
    before = [("system", row[more]) for more in SYSTEMS if row.get(more)][:1]
    before += [turn for pair in pairs for turn in zip(("user", "assistant"), pair)]
    return tidy([*(message(*turn) for turn in before), *turns], notes)


def ends_with_user(prompt):
    if not prompt or prompt[-1]["role"] != "user":
        raise DataError("the prompt must end with a user turn, and the assistant answers next")
    if not prompt[-1]["content"].strip():
        raise Drop("with an empty question")
    return prompt


def whole_dialogue(prompt, answer, notes):
    """The prompt and an answer: text, a message, more turns, or the whole dialogue (TRL, HH)."""
    if not isinstance(answer, (list, dict)):
        return [*ends_with_user(prompt), message("assistant", string(answer, "a response"))]
    turns = as_messages([answer] if isinstance(answer, dict) else answer, notes)
    if turns[-1]["role"] != "assistant":
        raise Drop("whose dialogues don't end with an answer")
    if turns[0]["role"] == "assistant":
        return ends_with_user(prompt) + turns
    if prompt and prompt[-1]["role"] != "user":
        return prompt + turns
    # the dialogue may have a system message or early turns that the prompt lacks
    if prompt and prompt[-1] not in turns:
        raise DataError("an answer of several turns must go on from the prompt, or contain it")
    return turns


# ---- scores ---------------------------------------------------------------------------------

def stem_of(name):
    """"chosen-rating" -> "rating", "scores" -> "score" """
    return re.sub("[-_]?(chosen|rejected)[-_]?|s$", "", name.lower())


def unjudged(row):
    """The row without what was said of its responses, so that it can have others."""
    return without(row, [name for name in row if stem_of(name) in SCORES or name in OPINIONS])


def scores_of(row, count):
    """Yield ({names of fields}, which way, scores) for all that the row says of its responses."""
    for name, value in without(row, CONTENT).items():
        stem, twin, values = stem_of(name), name.replace("chosen", "rejected"), []
        if stem not in SCORES or name == "grades" and "noise" in row:  # labelers differ from these
            continue
        if twin != name:
            values = [value, row.get(twin)]
        elif stem == "margin":                        # TRL's: chosen minus rejected
            values = [value, 0]
        # a list beside chosen and rejected may have another order: of these only ties are clear
        elif isinstance(value, list) and ("responses" in row or value == value[:1] * count):
            values = value
        if are_numbers(values, count):
            yield {name, twin}, SCORES[stem], values
