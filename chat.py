"""Talk to a checkpoint in the terminal, or put the same questions to several.

reads   out/ppo.pt or another checkpoint; with --compare also out/reward.pt

A model has no memory. For every answer it reads the whole dialogue again, as one sequence, and
continues that until it writes <|end|>. A pretrained model has never seen a dialogue: it gets plain
text and continues it. /new starts a new dialogue, /quit ends the program, Ctrl-C stops an answer.

    python chat.py
    python chat.py --prompt="What is 3 + 4?"
    python chat.py --compare=out/pretrain.pt,out/sft.pt,out/ppo.pt
"""

import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from answer import prompt_room, stream
from checkpoint import load
from common import Basic, Runtime, fail, parse_config, safe
from reward import encode_answer, score_all


# ---- config ---------------------------------------------------------------------------------

@dataclass
class Config(Basic):
    init: str = "out/ppo.pt"       # the checkpoint to talk to
    prompt: str = ""               # one question; "": read questions from the terminal or a pipe
    compare: str = ""              # checkpoints, separated by commas: all answer every question
    reward: str = "out/reward.pt"  # the reward model that scores the answers of --compare; "": none
    system: str = ""               # a system message; "": none
    max_new_tokens: int = 64       # of one answer
    temperature: float = 0.7       # 0: always the most likely token
    top_k: int = 0                 # sample from the k most likely tokens; 0: from all
    top_p: float = 1.0             # sample from the most likely tokens with this total probability


# ---- the idea -------------------------------------------------------------------------------

def as_text(tok, messages, end=""):
    """The ids that a base model reads: the beginning of a document, without a template."""
    return [tok.eot] + tok.encode("\n".join(m["content"] for m in messages) + end)


def as_dialogue(tok, messages, room):
    """The ids of a dialogue, and the messages that are in them. If there are more than `room` ids,
    the oldest questions are dropped, with their answers. The system message and the last question
    always stay, even if they are too long."""
    first = messages[0]["role"] == "system"
    while len(ids := tok.encode_chat(messages, reply=True)[0]) > room and len(messages) > first + 1:
        messages = messages[:first] + messages[first + 2:]
    return ids, messages


def answer(model, tok, ids, rt, config, number, said, show=safe):
    """Yield the text that follows ids, piece by piece, in whole characters. The list `said` gets
    its ids. A chat model ends with <|end|>, a base model with <|endoftext|>."""
    def tokens():
        for token in stream(model, torch.tensor([ids], device=rt.device), config.max_new_tokens,
                            temperature=config.temperature, top_k=config.top_k,
                            top_p=config.top_p):
            said.append(token.item())
            if said[-1] in tok.specials.values():     # no special token is text
                return
            yield said[-1]

    rt.seed(config.seed, number)
    with rt.autocast():
        for text in tok.stream(tokens()):
            yield show(text)


# ---- the terminal ---------------------------------------------------------------------------

def paint(text, code):
    """The text in bold (code 1), dim (2) or cyan (36), in a terminal, unless NO_COLOR is set."""
    colours = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    return f"\033[{code}m{text}\033[0m" if colours else text


def note(text):
    """Remarks go to stderr, so that a pipe gets only the answers."""
    print(f"({text})", file=sys.stderr, flush=True)


def questions(config):
    """--prompt, or the lines that a user types, until /quit, Ctrl-D or Ctrl-C."""
    if config.prompt:
        yield config.prompt
        return
    person = sys.stdin.isatty() and sys.stdout.isatty()
    if person:
        with suppress(ImportError):                   # Windows has no readline
            import readline                           # noqa: F401 (arrow keys and a history)
        note("/new starts a new dialogue, /quit ends the program")
    with suppress(EOFError, KeyboardInterrupt):
        while (line := input("> " if person else "").strip()) != "/quit":
            if line:
                yield line
    if person:
        print("\nGoodbye.")


if __name__ == "__main__":
    # ---- setup ------------------------------------------------------------------------------

    config = parse_config(Config, __doc__)
    rt = Runtime(config)

    # ---- models -----------------------------------------------------------------------------

    reward = tok = None
    if config.compare and config.reward == Config.reward and not Path(config.reward).exists():
        note(f"{config.reward} is missing, so there are no scores: `python reward.py` makes it")
    elif config.compare and config.reward:
        reward, tok, _ = load(config.reward, rt, "reward")

    paths, speakers = (config.compare or config.init).split(","), []
    for path in paths:
        model, own_tok, history = load(path, rt, "ppo sft pretrain", tok)
        base = history[-1]["stage"] == "pretrain"
        if base:
            note(f"{path} is a base model: it does not answer, it continues your text")
        speakers.append((path, model.eval(), own_tok, base))
    width = max(map(len, paths))

    # ---- questions and answers --------------------------------------------------------------

    system = [dict(role="system", content=config.system)] if config.system else []
    dialogue = system
    for number, question in enumerate(questions(config)):
        if question == "/new":
            dialogue = system
            continue
        asked = dialogue + [dict(role="user", content=question)]
        for path, model, tok, base in speakers:
            T = model.config.block_size
            room = prompt_room(T, config.max_new_tokens)
            if base:                                  # with --compare, it continues on a new line
                ids, kept = as_text(tok, asked, "\n" if config.compare else ""), asked
            else:
                ids, kept = as_dialogue(tok, asked, room)
            if len(ids) > room:
                (fail if config.prompt else note)(f"this has {len(ids)} tokens, but {path} has "
                                                  f"room for {room}: please use fewer words")
                continue
            if len(kept) < len(asked):
                note("the dialogue is too long: the model no longer sees its beginning")

            said = ""
            with suppress(KeyboardInterrupt):         # the text so far counts as the answer
                for text in answer(model, tok, ids, rt, config, number, []):
                    said += text
                    if not config.compare:
                        print(paint(text, 36), end="", flush=True)
            if not config.compare:
                print()
                # a base model starts from an empty text every time
                dialogue = system if base else kept + [dict(role="assistant", content=said)]
                continue

            # columns: the name, the score, the text
            score = ""
            if reward:
                row = encode_answer(tok, asked, said, reward.config.block_size)
                score = f"{score_all(reward, [row], tok, rt).item():6.2f}  "
            said = said.strip().replace("\n", "\n" + " " * (width + 2 + len(score)))
            print(f"{paint(path.ljust(width), 1)}  {paint(score, 2)}{said}", flush=True)
        if config.compare and not config.prompt:
            print()
