"""What other projects call the parts of a row. Here any row becomes (prompt, responses):

    prompt      [{"role": "user", "content": "Hi"}], messages of which the last is the user's
    responses   ["Hello", "What?"], the best first; one is a demonstration, none is a prompt

The tables are the dialects: a new one is the names of its fields. formats.py says what becomes of
the rows; it counts the sentences in `notes`, a set, which say what was mended.
"""

import json
import re
from contextlib import suppress

# A row asks in the first of QUESTIONS that it has. It answers in the last turn of its dialogue, or
# in the first of ANSWERS.
DIALOGUES = ("messages", "conversations")             # OpenAI, UltraChat, ms-swift; ShareGPT
QUESTIONS = (*DIALOGUES, "prompt",                    # TRL
             "instruction", "question", "input")      # Alpaca, Dolly; GSM8K, OpenOrca; LIMA
CONTEXTS = ("input", "context")                       # more of the question: Alpaca; Dolly
SYSTEMS = ("system", "system_prompt")                 # what comes first: Alpaca; OpenOrca
ANSWERS = ("response", "completion", "output", "answer")       # Dolly; TRL; Alpaca; GSM8K
WORSE = ("rejected", "rejected_response")             # beside `chosen`, or an answer (ms-swift)
COMPARED = ("responses", "ranks", "chosen", *WORSE)   # compare.py's; TRL, HH, LLaMA-Factory
CONTENT = (*QUESTIONS, *CONTEXTS, *SYSTEMS, "history", *ANSWERS, *COMPARED, "text", "logp")

TURN = (("role", "from"), ("content", "value"))       # OpenAI's, ShareGPT's
ROLES = {"system": "system", "user": "user", "assistant": "assistant",
         "human": "user", "gpt": "assistant"}         # ShareGPT's, HH's

# Without these the text means something else; and a turn whose answer is not to be learned.
MEANINGFUL = ("image", "images", "video", "videos", "audio", "audios", "tools", "functions",
              "tool_calls", "function_call", "reasoning", "reasoning_content", "thinking")
LEARNED = ("weight", "train", "loss")

# What a row says of its responses: score_chosen, rejected-rating, scores, …; false labels are bad
# answers (TRL's and LLaMA-Factory's KTO).
SCORE = re.compile(r"(.*[-_])?(score|rating|reward)s?([-_](chosen|rejected))?")
LABELS = ("label", "kto_tag")
OPINIONS = (*LABELS, "grades", "noise", "labeler", "models", "ratings", "boxes", "places", "time")


class DataError(ValueError):
    """Why a file can't be used, in one line: where, what is wrong and, if possible, what to do."""


class Drop(Exception):
    """A well-formed row with nothing to learn from: "with an empty answer"."""


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
    if str(role).lower() not in ROLES:
        raise DataError(f"a role must be system, user or assistant, not {role!r:.40}")
    return {"role": ROLES[role.lower()], "content": string(content, "content")}


def is_dialogue(value):
    """Whether it is a list of turns. nanochat's files have one per line, without a name."""
    return isinstance(value, list) and bool(value) and all(
        isinstance(turn, dict) and first(turn, TURN[0]) for turn in value)


def is_transcript(value):
    """Whether it is a text such as Anthropic's: "\\n\\nHuman: Hi\\n\\nAssistant: Hello"."""
    return isinstance(value, str) and value.startswith("\n\nHuman:")


def deserialised(value):
    """The turns of a transcript, or of a dialogue in a JSON string; other values stay."""
    if is_transcript(value):
        _, *parts = re.split(r"\n\n(Human|Assistant):", value)
        return [message(who, said.strip()) for who, said in zip(parts[::2], parts[1::2])]
    if isinstance(value, str) and value.startswith("[{"):
        with suppress(ValueError, RecursionError):
            if is_dialogue(turns := json.loads(value)):
                return turns
    return value


def as_messages(value):
    """"Hi" -> [{"role": "user", "content": "Hi"}]; a list is checked and copied."""
    if isinstance(value, str):
        return [message("user", value)]
    if not is_dialogue(value):
        raise DataError(f"expected a string or a list of messages, not {value!r:.40}")
    messages = []
    for turn in map(without_gaps, value):
        refuse_meaningful(turn)
        messages.append(message(*(turn.get(first(turn, names)) for names in TURN)))
        for name in LEARNED:
            if messages[-1]["role"] == "assistant" and turn.get(name, 1) != 1:     # True == 1
                raise DataError(f"an answer with {name}={turn[name]!r:.40} can't be learned as it "
                                "is meant: leave such rows out")
    return messages


def add_to(turns, text):
    turns[-1]["content"] = "\n\n".join(filter(str.strip, (turns[-1]["content"], text)))


def tidy(turns, notes):
    """Join neighbours of one role, and remove the assistant's turns before the first question."""
    joined = []
    for turn in turns:
        if joined and joined[-1]["role"] == turn["role"]:
            add_to(joined, turn["content"])
            notes.add("mended: turns of one role in a row were joined")
        elif turn["role"] == "assistant" and not any(t["role"] == "user" for t in joined):
            notes.add("mended: an answer before the first question was cut")
        else:
            joined.append(turn)
    return joined


# ---- rows -----------------------------------------------------------------------------------

def standard(row, notes):
    """Any row as (prompt, responses)."""
    refuse_meaningful(row)
    asks, answers, worse = (first(row, names) for names in (QUESTIONS, ANSWERS, WORSE))
    if not asks and "chosen" not in row:
        raise DataError(f"needs one of {', '.join(QUESTIONS)}, as in "
                        '{"prompt": "Hi", "response": "Hello"}: data/README.md lists the formats')
    prompt = question(row, asks, notes) if asks else []
    responses = [row[answers]] if answers else []
    if asks in DIALOGUES and prompt and prompt[-1]["role"] == "assistant":
        responses = [prompt.pop()["content"]]
    if "chosen" in row or worse:
        better = [row["chosen"]] if "chosen" in row else responses
        if not better or not worse:
            raise DataError("chosen and rejected must come together: add the missing one")
        responses = [deserialised(answer) for answer in (*better, row[worse])]
    elif not isinstance(responses := row.get("responses", responses), list):
        raise DataError(f"responses must be a list, not {responses!r:.40}")
    dialogues = [whole_dialogue(prompt, response) for response in responses]
    if any(dialogue[:-1] != dialogues[0][:-1] for dialogue in dialogues):
        raise Drop("whose dialogues differ before the last answer")
    prompt = dialogues[0][:-1] if dialogues else prompt
    if not prompt or prompt[-1]["role"] != "user":
        raise DataError("the prompt must end with a user turn, and the assistant answers next")
    if not prompt[-1]["content"].strip():
        raise Drop("with an empty question")
    responses = [dialogue[-1]["content"] for dialogue in dialogues]
    if is_transcript(row.get(asks)):                  # the space in "Assistant: Hello"
        responses = [response.strip() for response in responses]
    return prompt, responses


def question(row, name, notes):
    """The dialogue in the field of this name, with what stands before it or belongs to it."""
    turns, pairs = as_messages(deserialised(row[name])), row.get("history") or []
    if is_transcript(row[name]) and turns[-1] == message("assistant", ""):
        turns.pop()                                   # "Assistant:", where the answer follows
    for more in CONTEXTS:
        if row.get(more) and more != name and name not in DIALOGUES:
            add_to(turns, string(row[more], more))
    if not (isinstance(pairs, list) and all(isinstance(p, list) and len(p) == 2 for p in pairs)):
        raise DataError(f"history must be a list of [question, answer], not {pairs!r:.40}")
    before = [("system", row[more]) for more in SYSTEMS if row.get(more)][:1]
    before += [turn for pair in pairs for turn in zip(("user", "assistant"), pair)]
    return tidy([*(message(*turn) for turn in before), *turns], notes)


def whole_dialogue(prompt, answer):
    """The prompt and an answer: text, a message, more turns, or the whole dialogue (TRL, HH)."""
    if isinstance(answer, (list, dict)):
        turns = as_messages([answer] if isinstance(answer, dict) else answer)
    else:
        turns = [message("assistant", answer)]
    if turns[-1]["role"] != "assistant":
        raise Drop("whose dialogues don't end with an answer")
    if turns[0]["role"] == "assistant" or not prompt or prompt[-1]["role"] == "system":
        return prompt + turns
    if prompt[-1] not in turns:
        raise DataError("an answer of several turns must go on from the prompt, or contain it")
    return turns                                      # perhaps with turns that the prompt lacks


# ---- scores ---------------------------------------------------------------------------------

def unjudged(row):
    """The row without what was said of its responses, so that it can have others."""
    return {name: value for name, value in row.items()
            if name not in OPINIONS and not SCORE.fullmatch(name.lower())}


def scores_of(row):
    """Yield (name, score of chosen, score of rejected); the higher the better."""
    for name, score in row.items():
        other = row.get(name.replace("chosen", "rejected"))
        if "chosen" in name and SCORE.fullmatch(name.lower()) and are_numbers([score, other], 2):
            yield name, score, other
