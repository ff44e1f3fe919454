"""Talk to a checkpoint in the terminal, or put the same questions to several.

reads   out/ppo.pt or another checkpoint; with --compare also out/reward.pt

A model remembers nothing: for every answer the whole dialogue goes in anew, as one sequence that
the model continues until it says <|end|>. A pretrained model has never seen a dialogue; it is given
plain text and continues that. /new starts over, /quit leaves, Ctrl-C cuts an answer short.

    python chat.py
    python chat.py --prompt="What is 3 + 4?"
    python chat.py --compare=out/pretrain.pt,out/sft.pt,out/ppo.pt
"""

import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import torch

from checkpoint import load_checkpoint
from common import Runtime, fail, parse_config
from model import GPT, GPTConfig, ScalarGPT
from reward import encode_answer, score_all
from tokenizer import Tokenizer


# ---------------------------------------------------------------------------------------------
# config

@dataclass
class Config:
    init: str = "out/ppo.pt"       # the checkpoint to talk to
    prompt: str = ""               # answer this and leave; "": ask at the terminal, or read a pipe
    compare: str = ""              # checkpoints, with commas between: all answer every question
    reward: str = "out/reward.pt"  # the reward model that scores what --compare shows; "": none
    system: str = ""               # a system message; "": none
    max_new_tokens: int = 64       # of one answer
    temperature: float = 0.7       # 0: always the likeliest token
    top_k: int = 0                 # sample among the k likeliest tokens; 0: among all
    top_p: float = 1.0             # sample among the likeliest that reach this probability together
    seed: int = 0                  # same seed, same text
    device: str = "auto"           # auto: cuda, else cpu; mps when asked
    dtype: str = "auto"            # auto: bfloat16 where it is fast, else float32
    debug: bool = False            # show tracebacks


# ---------------------------------------------------------------------------------------------
# the idea

def as_text(tok, messages, end=""):
    """What a base model gets: a document that begins like this, without a template."""
    return [tok.eot] + tok.encode("\n".join(m["content"] for m in messages) + end)


def as_dialogue(tok, messages, room):
    """The ids of a dialogue, at most `room`, and what is left of its messages: the oldest questions
    go, each with its answer; the system message and the last question stay, fit or not."""
    first = messages[0]["role"] == "system"
    while len(ids := tok.encode_chat(messages, reply=True)[0]) > room and len(messages) > first + 1:
        messages = messages[:first] + messages[first + 2:]
    return ids, messages


def answer(model, tok, ids, rt, config, number):
    """Yield the text that follows ids, as it arrives and in whole characters."""
    rt.seed(config.seed, number)
    tokens = model.stream(torch.tensor([ids], device=rt.device), config.max_new_tokens,
                          temperature=config.temperature, top_k=config.top_k, top_p=config.top_p)
    # a chat model ends with <|end|>, a base model with <|endoftext|>; the others are no text either
    ends = set(tok.specials.values())
    with rt.autocast():
        for text in tok.stream(takewhile(lambda id: id not in ends, (t.item() for t in tokens))):
            yield text.translate(UNSAFE)


# ---------------------------------------------------------------------------------------------
# the terminal

# a model of bytes can produce ESC, and with it whatever a terminal obeys
UNSAFE = {i: "\ufffd" for i in range(160) if not chr(i).isprintable() and chr(i) not in "\n\t"}


def questions(config):
    """--prompt, or what is typed, line by line, until /quit, Ctrl-D or Ctrl-C."""
    if config.prompt:
        yield config.prompt
        return
    person = sys.stdin.isatty() and sys.stdout.isatty()
    if person:
        with suppress(ImportError):                   # Windows has none
            import readline                           # noqa: F401 (arrow keys, a history)
        note("/new starts over, /quit leaves")
    with suppress(EOFError, KeyboardInterrupt):
        while (line := input("> " if person else "").strip()) != "/quit":
            if line:
                yield line
    if person:
        print("\nGoodbye.")


def note(text):
    """Remarks go to stderr, so that a pipe gets answers and nothing else."""
    print(f"({text})", file=sys.stderr, flush=True)


def paint(text, code):
    plain = os.environ.get("NO_COLOR") or not sys.stdout.isatty()
    return text if plain else f"\033[{code}m{text}\033[0m"


if __name__ == "__main__":
    # -----------------------------------------------------------------------------------------
    # setup

    config = parse_config(Config, __doc__)
    if config.max_new_tokens < 1 or config.temperature < 0 or not 0 < config.top_p <= 1:
        fail("--max_new_tokens must be at least 1, --temperature at least 0, --top_p in (0, 1]")
    rt = Runtime(config)
    for stream in (sys.stdin, sys.stdout):
        stream.reconfigure(errors="replace")          # a wrong byte is no reason to leave

    # -----------------------------------------------------------------------------------------
    # models

    judge = reward = None
    if config.compare and config.reward == Config.reward and not Path(config.reward).exists():
        note(f"{config.reward} is missing, so there are no scores: `python reward.py` makes it")
    elif config.compare and config.reward:
        judge = load_checkpoint(config.reward, stage="reward")
        reward = ScalarGPT.load(judge).to(rt.device)

    paths, speakers = (config.compare or config.init).split(","), []
    for path in paths:
        ckpt = load_checkpoint(path, ("ppo", "sft", "pretrain"), judge and judge["tokenizer"])
        model = GPT(GPTConfig(**ckpt["model_config"])).to(rt.device).eval()
        model.load_state_dict(ckpt["model"])
        base = ckpt["stage"] == "pretrain"
        if base:
            note(f"{path} is a base model: it doesn't answer, it continues the text it is given")
        speakers.append((path, model, Tokenizer.from_dict(ckpt["tokenizer"]), base))
    width = max(map(len, paths))

    # -----------------------------------------------------------------------------------------
    # questions and answers

    system = [dict(role="system", content=config.system)] if config.system else []
    dialogue = system
    for number, question in enumerate(questions(config)):
        if question in ("/new", "/reset"):
            dialogue = system
            continue
        asked = dialogue + [dict(role="user", content=question)]
        for path, model, tok, base in speakers:
            T = model.config.block_size
            room = T - min(config.max_new_tokens, T // 2)
            if base:                                  # a question to compare is a whole line
                ids, kept = as_text(tok, asked, "\n" if config.compare else ""), asked
            else:
                ids, kept = as_dialogue(tok, asked, room)
            if len(ids) > room:
                (fail if config.prompt else note)(f"this takes {len(ids)} tokens, and {path} has "
                                                  f"room for {room}: please say it in fewer words")
                continue
            if len(kept) < len(asked):
                note("the dialogue has grown too long: its beginning is forgotten")

            said = ""
            with suppress(KeyboardInterrupt):         # what has been said, has been said
                for text in answer(model, tok, ids, rt, config, number):
                    said += text
                    if not config.compare:
                        print(paint(text, 36), end="", flush=True)
            if not config.compare:
                print()
                # a base model starts a new text every time
                dialogue = system if base else kept + [dict(role="assistant", content=said)]
                continue

            # name, score and text in columns
            score = ""
            if reward:
                row = encode_answer(tok, asked, said, reward.gpt.config.block_size)
                score = f"{score_all(reward, [row], tok, rt).item():6.2f}  "
            said = said.strip().replace("\n", "\n" + " " * (width + 2 + len(score)))
            print(f"{paint(path.ljust(width), 1)}  {paint(score, 2)}{said}", flush=True)
        if config.compare and not config.prompt:
            print()
