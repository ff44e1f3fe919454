"""What other projects call the parts of a row. Here any row becomes (prompt, responses):

    prompt      [{"role": "user", "content": "Hi"}], messages of which the last is the user's
    responses   ["Hello", "What?"], the best first; one is a demonstration, none is a prompt

The tables are the dialects: a new one is the names of its fields. formats.py says what becomes of
the rows, and counts what is mended or not used here (`notes`).
"""

import json
import re
from ast import literal_eval
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
         "human": "user", "gpt": "assistant"}         # ShareGPT's
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


def is_number(value):
    """Not NaN, infinite, or too large for a float32."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e30


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


def deserialised(value):
    """A list of turns that was written as a string, as table formats do, in JSON or in Python."""
    if isinstance(value, str) and value.lstrip().startswith("[{"):
        for read in (json.loads, literal_eval):
            with suppress(ValueError, SyntaxError, RecursionError, MemoryError):
                if is_dialogue(turns := read(value)):
                    return turns
    return value


def is_transcript(text):
    """Whether a string is a dialogue of Human and Assistant, as in HH, rm-static and BELLE."""
    return bool(re.match(r"\n\nHuman:|\s*Human:.*\n *Assistant:", text, re.DOTALL))


def transcript(text):
    r"""`\n\nHuman: Hi\n\nAssistant: Hello` -> [user: Hi, assistant: Hello]"""
    line = r"\n\n" if "\n\nAssistant:" in text else r"\n *"         # BELLE has no empty lines
    start, *parts = re.split(line + "(Human|Assistant):", "\n\n" + text.strip())
    if start.strip() or not parts:
        raise DataError("needs a prompt, or transcripts that begin with 'Human:'")
    return [message(who.lower(), said.strip()) for who, said in zip(parts[::2], parts[1::2])]


def as_messages(prompt, notes):
    """"Hi" -> [{"role": "user", "content": "Hi"}]; a transcript is cut into its turns, a list is
    checked and copied."""
    if isinstance(prompt, str):
        turns = transcript(prompt) if is_transcript(prompt) else [message("user", prompt)]
        return turns[:-1] if turns[-1] == message("assistant", "") else turns
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
    asks, prompt, responses = first(row, QUESTIONS), [], []
    if not first(row, PAIR):
        prompt, responses = asked_and_answered(row, notes)
    elif not {*PAIR} <= row.keys():
        raise DataError("chosen and rejected must come together: add the missing one")
    else:                      # answers to the row's prompt, or dialogues with other last turns
        if asks:
            prompt, _ = asked_and_answered(without(row, COMPARED), notes)
        chosen, rejected = (whole_dialogue(prompt, deserialised(row[name]), notes) for name in PAIR)
        *prompt, better = chosen
        if prompt != rejected[:-1]:
            raise Drop("whose dialogues differ before the last answer")
        responses = [better["content"], rejected[-1]["content"]]
    if asks and isinstance(row[asks], str) and is_transcript(row[asks]):
        responses = [response.strip() for response in responses]      # "Assistant: Hello"
    return ends_with_user(prompt), responses


def asked_and_answered(row, notes):
    name, answer = first(row, QUESTIONS), row.get(first(row, ANSWERS))
    if name is None:
        raise DataError(f"needs one of {', '.join(QUESTIONS)}, as in "
                        '{"prompt": "Hi", "response": "Hello"}: data/README.md lists the formats')
    prompt, pairs = as_messages(deserialised(row[name]), notes), row.get("history") or []
    for more in CONTEXTS:
        if row.get(more) and more != name and name not in DIALOGUES:
            add_to(prompt, string(row[more], more))
    if not (isinstance(pairs, list) and all(isinstance(p, list) and len(p) == 2 for p in pairs)):
        raise DataError(f"history must be a list of [question, answer], not {pairs!r:.40}")
    before = [("system", row[more]) for more in SYSTEMS if row.get(more)][:1]
    before += [turn for pair in pairs for turn in zip(("user", "assistant"), pair)]
    prompt = tidy([*(message(*turn) for turn in before), *prompt], notes)
    responses = row.get("responses", [])
    if not isinstance(responses, list):
        raise DataError("responses must be a list of strings, the best first")
    if name in DIALOGUES and prompt and prompt[-1]["role"] == "assistant":
        last = prompt.pop()
        responses = responses or [last["content"]]
    elif answer is not None and not responses:
        if is_dialogue(answer):                       # TRL: the last turns of the dialogue
            *prompt, last = tidy(prompt + as_messages(answer, notes), notes)
            if last["role"] != "assistant":
                raise DataError("an answer must end with an assistant turn")
            answer = last["content"]
        # LLaMA-Factory: a list of answers, the best first
        responses = answer if isinstance(answer, list) else [answer]
    if "rejected_response" in row:                    # ms-swift: beside a demonstration
        responses = [*responses[:1], row["rejected_response"]]
    responses = [string(response, "a response") for response in responses]
    # a row may ask or answer in two fields: the other one is told, if it says something else
    text = "\n".join([*(turn["content"] for turn in prompt), *responses])
    notes.update({("not used", repr(other)) for other in {*CONTENT} - {name, *COMPARED}
                  if isinstance(row.get(other), str) and row[other].strip() not in text})
    return ends_with_user(prompt), responses


def ends_with_user(prompt):
    if not prompt or prompt[-1]["role"] != "user":
        raise DataError("the prompt must end with a user turn, and the assistant answers next")
    if not prompt[-1]["content"].strip():
        raise Drop("with an empty question")
    return prompt


def whole_dialogue(prompt, answer, notes):
    """The prompt and an answer. The answer is text, a message, or the whole dialogue (TRL, HH)."""
    if not isinstance(answer, str):
        turns = as_messages([answer] if isinstance(answer, dict) else answer, notes)
    elif prompt and not is_transcript(answer):
        turns = [message("assistant", answer)]
    else:
        turns = transcript(answer)
        if [turn["role"] for turn in turns[-2:]] != ["user", "assistant"]:
            raise Drop("whose transcripts don't end with Human and Assistant")
    if turns[-1]["role"] != "assistant":
        raise DataError("chosen and rejected must end with an assistant turn")
    if len(turns) == 1:
        return prompt + turns
    # The dialogue may have a system message or early turns that the prompt lacks.
    if prompt and prompt[-1] not in turns:
        raise DataError("chosen and rejected must be answers to the prompt, or contain it")
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
        if len(values) == count and all(map(is_number, values)):
            yield {name, twin}, SCORES[stem], values
