import io
import re
import signal
import sys
from functools import partial

import pytest
import torch

import answer
import chat
from checkpoint import load_checkpoint
from model import GPT, GPTConfig, ScalarGPT
from reward import encode_answer, score_all
from tiny import ENV, store
from tokenizer import Tokenizer

TOK = Tokenizer.train("the cat and the dog, 你好", 270)
CONFIG = GPTConfig(block_size=64, vocab_size=TOK.vocab_size, n_layer=1, n_head=1, n_kv_head=1,
                   n_embd=16, n_hidden=32, tied=False)
LONG = "a very long question " * 10


def user(text, role="user"):
    return dict(role=role, content=text)


assistant, system = partial(user, role="assistant"), partial(user, role="system")


# Checkpoints with large random weights: every token that is read changes the tokens written. They
# write only lower-case letters, and never an end, so the length of an answer is known.

def save(path, stage, seed):
    torch.manual_seed(seed)
    model = (ScalarGPT if stage == "reward" else GPT)(CONFIG)
    with torch.no_grad():
        for weights in model.parameters():
            weights.normal_(std=0.5)
        if stage != "reward":
            model.lm_head.weight *= 2
            model.lm_head.weight[[i for i in range(TOK.vocab_size) if i not in range(97, 123)]] = 0
    store(path, stage, model, TOK)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chat")
    for seed, stage in enumerate(("pretrain", "sft", "ppo")):
        save(folder / f"{stage}.pt", stage, seed)
    save(folder / "scores.pt", "reward", 3)
    return folder


@pytest.fixture
def talk(folder, monkeypatch, run_script):
    """talk(*flags, typed="…") -> exit status, lines of stdout, stderr."""
    def talk(*flags, typed=""):
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed.encode()), "utf-8"))
        code, out, errors = run_script("chat", "--dtype=float32", "--max_new_tokens=12", *flags)
        return code, out.splitlines(), errors
    return talk


# ---- the idea -------------------------------------------------------------------------------

@pytest.mark.parametrize("said, room, kept", [
    ("SABCDE", 20, "SABCDE"), ("SABCDE", 19, "SCDE"), ("SABCDE", 13, "SE"), ("ABCDE", 16, "CDE"),
    ("SA", 5, "SA"), ("ABC", 3, "C")])
def test_a_long_dialogue_loses_whole_turns_but_never_its_last_question(said, room, kept):
    # <eot> and <assistant> take 2 tokens, every message of one letter 3
    role = dict(S=system, B=assistant, D=assistant)
    dialogue = [role.get(letter, user)(letter) for letter in said]
    assert "".join(m["content"] for m in chat.as_dialogue(TOK, dialogue, room)[1]) == kept


def test_a_base_model_gets_plain_text():
    assert chat.as_text(TOK, [system("Hi"), user("you")], "?") == [TOK.eot, *TOK.encode("Hi\nyou?")]


@pytest.mark.parametrize("written, shown", [
    ("é🙂x 你\u3000می\u200cخ👩\u200d👧".encode(), [*"é🙂x 你\u3000می\u200cخ👩\u200d👧"]),
    (b"\x1b[2J\r\x07", [r"\x1b", "[", "2", "J", r"\r", r"\x07"]),
    (b"\x9b" + "\x9b\x7f\n\tend".encode(), ["\ufffd", r"\x9b", r"\x7f", "\n", "\t", *"end"])],
    ids=["a wide space and two joiners", "control characters", "0x9b alone is not UTF-8"])
def test_text_arrives_in_whole_characters_until_the_end_and_cannot_control_the_terminal(
        monkeypatch, written, shown):
    ids, said = [*written, TOK.end, 65], []
    monkeypatch.setattr(chat, "stream", lambda *_, **__: (torch.tensor([i]) for i in ids))
    assert [p for p in chat.answer(None, TOK, [0], ENV, chat.Config(), 0, said) if p] == shown
    assert said == ids[:-1]


# ---- the script -----------------------------------------------------------------------------

def test_a_dialogue_goes_on_until_quit_whatever_its_length(talk):
    typed = ["hi", "hi", "/new", "hi", "你好", LONG, *["more"] * 5, "", "/quit", "never read"]
    code, lines, errors = talk("--init=ppo.pt", "--temperature=0", typed="\n".join(typed))
    # every question is answered in order, but for the one that is too long
    assert code == 0 and len(lines) == 9
    assert all(re.fullmatch("[a-z]{12}", line) for line in lines)
    assert errors.count("please use fewer words") == 1
    # the model reads what was said before, until a reset
    first, second, after_reset = lines[:3]
    assert first != second and first == after_reset
    # 64 tokens, 12 of them for the answer: no more than two turns are remembered
    assert 3 <= errors.count("no longer sees its beginning") <= 6
    assert errors.count("\n") == errors.count("(")
    assert "\033" not in "".join(lines) + errors      # a pipe has no colours


def test_the_same_seed_gives_the_same_text_piped_or_as_a_flag(talk):
    flags = ["--init=sft.pt", "--temperature=2"]
    piped = talk(*flags, typed="你好 \nanother")      # Ctrl-D, without a line's end
    assert piped[0] == 0 and len(piped[1]) == 2
    assert talk(*flags, "--prompt=你好") == (0, piped[1][:1], "")
    assert talk(*flags, "--prompt=你好", "--seed=1")[1] != piped[1][:1]


def test_compare_shows_the_score_of_every_answer(talk, folder):
    code, lines, errors = talk("--compare=pretrain.pt,sft.pt,ppo.pt", "--reward=scores.pt",
                               "--seed=1", typed="hi\nho\n")
    assert code == 0
    assert errors.count("\n") == errors.count("pretrain.pt is a base model") == 1
    rows = [re.fullmatch(r"(\w+)\.pt +(-?\d+\.\d\d)  (.+)", line) for line in lines if line]
    assert [row[1] for row in rows] == ["pretrain", "sft", "ppo"] * 2
    assert len({row.start(3) for row in rows}) == 1                   # aligned

    reward_model = load_checkpoint(folder / "scores.pt")["model"]
    asked = ["hi"] * 3 + ["ho"] * 3
    answers = [encode_answer(TOK, [user(q)], row[3], 64) for q, row in zip(asked, rows)]
    scores = score_all(reward_model, answers, TOK, ENV)
    assert [float(row[2]) for row in rows] == pytest.approx(scores.tolist(), abs=0.006)


def test_a_base_model_continues_and_the_missing_reward_model_is_noted_once(talk):
    code, lines, errors = talk("--compare=pretrain.pt", "--temperature=0", typed="hi\nhi\n")
    assert code == 0
    assert errors.count("reward.pt is missing, so there are no scores") == 1
    assert re.fullmatch("pretrain.pt  [a-z]{12}", lines[0])
    assert lines[0] == lines[2]                                       # nothing is remembered


def test_ctrl_c_stops_the_answer_and_the_dialogue_goes_on(talk, monkeypatch):
    stream, turns = answer.stream, []

    def interrupted(*args, **kwargs):
        turns.append(0)
        for i, token in enumerate(stream(*args, **kwargs)):
            yield token
            if i == 2 and len(turns) == 1:
                signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(answer, "stream", interrupted)
    signal.signal(signal.SIGINT, signal.default_int_handler)      # a background job ignores it
    code, lines, errors = talk("--init=ppo.pt", "--temperature=0", typed="hi\nhi\n")
    assert (code, errors) == (0, "")
    assert [len(line) for line in lines] == [3, 12]


def test_a_model_of_another_stage_gives_no_scores(folder, monkeypatch, refused):
    monkeypatch.chdir(folder)
    assert "sft.pt comes from stage 'sft'" in refused("chat", "--compare=ppo.pt", "--reward=sft.pt")


@pytest.mark.parametrize("terminal, no_color, coloured", [
    (True, "", True), (True, "1", False), (False, "", False)])
def test_only_a_terminal_has_colours_unless_no_color_is_set(terminal, no_color, coloured,
                                                            monkeypatch):
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    assert chat.paint("hi", 36) == ("\033[36mhi\033[0m" if coloured else "hi")
