import json
import os
import re
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import pytest

from checkpoint import save_checkpoint
from common import parse_config
from tools import check
from data.formats import is_held_out
from model import GPT, GPTConfig

ROOT = Path(check.__file__).parents[1]
QA = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
# test_formats.py tests this split
TRAIN, HELD_OUT = ([q for q in (f"Question {i}?" for i in range(400))
                    if is_held_out([{"role": "user", "content": q}]) == side]
                   for side in (False, True))


@pytest.fixture
def write(tmp_path):
    """write(name, row, row, …) -> the path, as a string; a str is written as it is."""
    def write(name, *rows):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n"
                                for row in rows), encoding="utf-8")
        return str(path)
    return write


@pytest.fixture
def report(tmp_path, tiny_tokenizer, capsys):
    """report(path, …) -> what check.py prints about the files; with stops=True it must refuse them:
    (what it prints, the line on stderr)."""
    tiny_tokenizer.save(tmp_path / "tokenizer.json")

    def report(*paths, stops=False, **flags):
        flags = dict(tokenizer=str(tmp_path / "tokenizer.json")) | flags
        try:
            check.main(check.Config(data=",".join(paths), **flags))
            status = 0
        except SystemExit as stop:
            status = stop.code
        out, err = capsys.readouterr()
        assert status == stops and err.count("\n") == stops, err
        return (out, err) if stops else out
    return report


def demo(question, answer="Yes."):
    return {"prompt": question, "response": answer}


def pair(question, chosen="Yes.", rejected="No."):
    return {"prompt": question, "chosen": chosen, "rejected": rejected}


def length(tok, text):
    return len(tok.encode(text))


def line(printed, name):
    """The words that follow `name` at the beginning of a line."""
    found, = (words.split() for words in printed.splitlines() if words.split()[:1] == [name])
    return found[1:]


def after(printed, name):
    """The line that begins with name, and the unnamed one below it, as one text."""
    lines = printed.splitlines()
    i, = (i for i, text in enumerate(lines) if text.split()[:1] == [name])
    return " ".join(" ".join(lines[i:i + 2]).split())


# which format ----------------------------------------------------------------

@pytest.mark.parametrize("row, said", [
    ({"text": "Ada"}, "text (text)"),
    ({"messages": QA}, "demonstrations (messages)"),
    ({"prompt": "Hi", "response": "Hello"}, "demonstrations (prompt, response)"),
    ({"prompt": "Hi", "response": "Hello", "messages": None}, "demonstrations (prompt, response)"),
    ({"instruction": "Hi", "input": "", "output": "Hello"},
     "demonstrations (Alpaca: instruction, input, output)"),
    ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}]},
     "demonstrations (ShareGPT: conversations)"),
    ({"prompt": "Hi", "responses": ["a", "b"], "ranks": [0, 1]},
     "comparisons (prompt, responses, ranks)"),
    ({"prompt": "Hi", "chosen": "a", "rejected": "b"},
     "comparisons (prompt, chosen, rejected as text)"),
    ({"chosen": QA, "rejected": [QA[0], {"role": "assistant", "content": "No"}]},
     "comparisons (chosen, rejected as messages)"),
    ({"chosen": "\n\nHuman: Hi\n\nAssistant: a", "rejected": "\n\nHuman: Hi\n\nAssistant: b"},
     "comparisons (chosen, rejected as HH transcripts)"),
    ({"instruction": "Hi", "output": "a", "chosen": "a", "rejected": "b"},
     "comparisons (Alpaca: instruction, output, chosen, rejected as text)"),
    ({"conversations": [{"from": "human", "value": "Hi"}],
      "chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"}},
     "comparisons (ShareGPT: conversations, chosen, rejected as messages)"),
    ({"prompt": "Hi"}, "prompts (prompt)"),
    ({"messages": QA[:1], "id": 3}, "prompts (messages)"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_every_format_is_recognised(write, row, said):
    kind, form = check.identify(write("a.jsonl", row))
    assert f"{kind} ({form})" == said


def test_the_format_of_most_rows_is_the_format_of_the_file(write):
    path = write("a.jsonl", {"prompt": "Hi"}, ["odd"], demo("a"), demo("b"), "no json\n")
    assert check.identify(path)[0] == "demonstrations"


def test_a_text_file_and_a_directory_are_pretraining_text(write, tmp_path):
    write("d/a.txt", "one"), write("d/b.jsonl", {"text": "two"})
    assert check.identify(write("a.txt", "{}")) == ("text", "1 file")
    assert check.identify(str(tmp_path / "d")) == ("text", "2 files")


def test_the_kind_can_be_given(write, report):
    path = write("a.jsonl", {"instruction": "Hi", "output": "x", "chosen": "x", "rejected": "y"})
    assert ": comparisons (" in report(path)
    assert ": demonstrations (" in report(path, kind="demonstrations")
    assert ": prompts (" in report(path, kind="prompts")


# lengths and losses ----------------------------------------------------------

def test_lengths_count_the_template_and_the_end(write, report, tiny_tokenizer):
    rows = [demo("What is 12 + 30?", "42"), demo("Ada", "a baker"), demo("Hi", "x" * 40)]
    printed = report(write("a.jsonl", *rows))
    # <|endoftext|><|user|> … <|end|><|assistant|>, then … <|end|>
    for name, field, more in (("prompt", "prompt", 4), ("response", "response", 1)):
        n = sorted(length(tiny_tokenizer, row[field]) + more for row in rows)
        assert line(printed, name) == [f"{n[0]}", f"{n[1]}", f"{sum(n) / 3:.1f}",
                                       f"{n[1] + 0.9 * (n[2] - n[1]):.0f}", f"{n[2]}", f"{sum(n)}"]


def test_cut_and_dropped_demonstrations_are_counted_as_sft_does(write, report):
    rows = [demo(TRAIN[0], "a"), demo(TRAIN[1], "b" * 99), demo(TRAIN[2] + "c" * 99, "d"),
            demo(HELD_OUT[0], "a")]
    printed = report(write("a.jsonl", *rows), block_size=70)
    assert "sft.py 2 to learn from, 1 held out" in after(printed, "sft.py")
    assert "1 cut to 71 tokens; 1 left out" in after(printed, "sft.py")


def test_cut_comparisons_are_counted_as_the_reward_model_does(write, report):
    rows = [pair(TRAIN[0]), pair(TRAIN[1], "a" * 150, "b"), pair("c" * 150, "d", "e")]
    printed = report(write("a.jsonl", *rows), block_size=100)
    assert after(printed, "reward.py").endswith(
        "of 6 responses 1 lose their end, 2 the prompt's beginning (100 tokens)")
    assert "0 left out, since their responses are equal once cut" in printed


def test_pairs_that_are_equal_once_cut_are_counted(write, report):
    rows = [pair(TRAIN[0]), pair(TRAIN[1], "a" * 150 + "b", "a" * 150 + "c")]
    printed = report(write("a.jsonl", *rows), block_size=100)
    assert "1 left out, since their responses are equal once cut" in printed


def test_prompts_too_long_for_ppo_are_counted(write, report, tiny_tokenizer):
    fits = length(tiny_tokenizer, TRAIN[0]) + 4
    path = write("a.jsonl", {"prompt": TRAIN[0]}, {"prompt": TRAIN[0] + " x"})
    printed = report(path, block_size=fits + 65)
    assert f"1 left out, since the prompt has more than {fits} tokens" in after(printed,
                                                                                "rlhf_ppo.py")
    assert "0 left out" in after(report(path, block_size=fits + 74), "rlhf_ppo.py")
    assert "0 left out" in after(report(path, block_size=fits + 64, max_new_tokens=50),
                                 "rlhf_ppo.py")


def test_too_few_rows_are_reported_with_the_number_that_is_needed(write, report):
    printed = report(write("a.jsonl", *map(pair, TRAIN[:15]), pair(HELD_OUT[0])))
    assert "15 to learn from, 1 held out (too few: at least 16 and 1 are needed)" in printed
    printed = report(write("a.jsonl", *map(pair, TRAIN[:16]), pair(HELD_OUT[0])))
    assert "reward.py 16 to learn from, 1 held out of" in after(printed, "reward.py")


def test_pairs_and_the_preference_for_length_are_shown(write, report):
    rows = [{"prompt": "Hi", "responses": ["a b c", "a b", "a"], "ranks": [0, 1, 1]},
            pair("Ho", "a", "b c")]
    assert "3; in 67% the better response is longer" in report(write("a.jsonl", *rows))


def test_duplicates_and_different_prompts_are_counted(write, report):
    rows = [demo("a", "1"), demo("a", "1"), demo("a", "2"), demo("b", "1"), demo("a", "1")]
    printed = report(write("a.jsonl", *rows))
    assert "5; 2 are duplicates; 2 different prompts, 0 on both sides" in printed


def test_prompts_in_two_files_are_counted(write, report):
    a = write("a.jsonl", demo("x"), demo("y"), demo("y", "z"), demo("z"))
    b = write("b.jsonl", {"prompt": "y"}, {"prompt": "z"}, {"prompt": "v"})
    assert f"2 prompts are in both {a} and {b}" in report(a, b)


def test_text_and_dialogues_are_not_compared(write, report):
    a = write("a.jsonl", demo("x"))
    b = write("b.txt", "<|endoftext|>".join(DOCUMENTS))
    assert "in both" not in report(a, b)


# pretraining text ------------------------------------------------------------

DOCUMENTS = [f"Ada has {i} cats. What is {i} + 1? {i + 1}.\n" for i in range(60)]


def test_text_is_measured_in_documents_that_begin_with_a_token(write, report, tiny_tokenizer):
    printed = report(write("d.jsonl", *({"text": text} for text in DOCUMENTS)))
    n = [length(tiny_tokenizer, text) + 1 for text in DOCUMENTS]
    min_, _, mean, _, max_, total = line(printed, "d")
    assert (min_, mean, max_) == (f"{min(n)}", f"{sum(n) / 60:.1f}", f"{max(n)}")
    assert total == f"{sum(n):,}"
    size = sum(len(text.encode()) for text in DOCUMENTS)
    assert f"{size / sum(n):.2f} bytes per token" in printed


def test_an_epoch_of_text_is_what_is_not_held_out(write, report, tiny_tokenizer):
    place = [int.from_bytes(sha256(text.encode()).digest()[:6], "little") / 2**48
             for text in DOCUMENTS]
    train = [text for text, p in zip(DOCUMENTS, place) if p >= 0.05]
    n = sum(length(tiny_tokenizer, text) + 1 for text in train)
    printed = report(write("d.jsonl", *({"text": text} for text in DOCUMENTS)))
    assert f"{len(train)} to learn from, {60 - len(train)} held out" in printed
    assert f"an epoch is {n // 128} rows of 128" in printed


def test_every_source_of_a_directory_has_a_line(write, report, tmp_path):
    write("d/one.txt", "<|endoftext|>".join(DOCUMENTS[:30]))
    write("d/two.jsonl", *({"text": text} for text in DOCUMENTS[30:]))
    printed = report(str(tmp_path / "d"))
    n = [int(line(printed, name)[-1].replace(",", "")) for name in ("one", "two", "all")]
    assert n[0] + n[1] == n[2]


def test_repeated_texts_are_counted(write, report):
    printed = report(write("a.jsonl", *({"text": text} for text in DOCUMENTS + DOCUMENTS[:4])))
    assert "64 (long ones are split at line ends); 4 are duplicates" in printed


def test_texts_in_two_files_are_counted(write, report):
    more = [text.replace("cats", "dogs") for text in DOCUMENTS]
    a = write("a.jsonl", *({"text": text} for text in DOCUMENTS))
    b = write("b.jsonl", *({"text": text} for text in DOCUMENTS[50:] + more))
    assert f"10 texts are in both {a} and {b}" in report(a, b)


def test_a_text_of_one_short_document_is_refused_as_pretraining_would(write, report):
    out, err = report(write("a.txt", "one"), stops=True)
    assert "too few" in out and "a single short document can't be split" in err


def test_no_file_is_left_beside_the_text(write, report, tmp_path):
    path = write("a.jsonl", *({"text": text} for text in DOCUMENTS))
    before = sorted(tmp_path.rglob("*"))
    report(path)
    assert sorted(tmp_path.rglob("*")) == before


# malformed rows --------------------------------------------------------------

def test_every_malformed_row_is_named_with_file_line_and_reason(write, report):
    path = write("a.jsonl", demo("a"), demo("b", 3), "\n", '{"prompt": "c\n', demo("d"), ["e"])
    out, err = report(path, stops=True)
    assert f"{path}, line 2: a response must be a string, not 3" in out
    assert f"{path}, line 4: not JSON" in out
    assert f"{path}, line 6: a row must be an object" in out
    assert "3 malformed rows" in err


def test_a_single_malformed_row_is_also_the_last_line(write, report):
    path = write("a.jsonl", demo("a"), demo("b", 3))
    assert f"{path}, line 2: a response must be a string" in report(path, stops=True)[1]


def test_well_formed_rows_beside_malformed_ones_are_reported(write, report):
    out, _ = report(write("a.jsonl", demo("a"), demo("b", 3), demo("c")), stops=True)
    assert "2; 0 are duplicates" in out


def test_read_malformed_and_dropped_rows_add_up(write):
    path = write("a.jsonl", *[demo("a")] * 4, *[demo("b", 3)] * 3, *[demo("c", " ")] * 2)
    rows, malformed, dropped, _ = check.read(path, "demonstrations")
    assert (len(rows), len(malformed), dropped) == (4, 3, {"with an empty answer": 2})


def test_dropped_rows_are_counted_and_are_no_error(write, report):
    printed = report(write("a.jsonl", demo("a"), demo("b", "")))
    assert "dropped       1 with an empty answer" in printed


def test_what_is_mended_or_not_used_is_counted_and_is_no_error(write, report):
    rows = [demo("a") | {"hint": "b"}, {"messages": [*QA, QA[0]], "hint": "b"}]
    printed = report(write("a.jsonl", *rows))
    assert "not used      2 'hint'" in printed
    assert "mended        1 that ended with a user turn, which was cut" in printed


def test_fields_of_texts_that_nothing_reads_are_counted_once(write, report):
    rows = [{"text": text, "title": "Cats"} for text in DOCUMENTS]
    assert report(write("a.jsonl", *rows)).count("60 'title'") == 1


def test_scores_that_tie_are_counted_and_those_that_contradict_are_listed(write, report):
    scores = lambda a, b: dict(score_chosen=a, score_rejected=b)
    path = write("a.jsonl", pair("a") | scores(2, 1), pair("b") | scores(3, 3),
                 pair("c") | scores(1, 2))
    out, err = report(path, stops=True)
    assert "dropped       1 with equal scores" in out
    assert f"{path}, line 3: score_chosen and score_rejected contradict" in out and "line 3" in err


def test_a_transcript_in_a_prompt_is_shown_as_turns(write, report):
    printed = report(write("a.jsonl", demo("\n\nHuman: Hi\n\nAssistant: Ho\n\nHuman: So?\n\n"
                                           "Assistant:", " Yes.")))
    turns = "<|user|>Hi<|end|><|assistant|>«Ho<|end|>»<|user|>So?<|end|>"
    assert turns in printed.replace("\n", "")
    assert "«Yes.<|end|>»" in printed and "Human" not in printed


def test_prompts_are_split_as_ppo_splits_them_after_the_long_ones_are_out(write, report):
    """The only prompt of a hash below the share is too long: another one is held out."""
    printed = report(write("a.jsonl", {"prompt": TRAIN[0]}, {"prompt": TRAIN[1]},
                           {"prompt": HELD_OUT[0] + " x" * 99}, {"prompt": TRAIN[2]}))
    assert "rlhf_ppo.py 2 to learn from, 1 held out" in after(printed, "rlhf_ppo.py")


def test_the_copies_of_a_single_text_are_refused_as_pretraining_would(write, report):
    out, err = report(write("a.jsonl", *[{"text": "The same licence."}] * 50), stops=True)
    assert "too few" in out and "a single short document, 50 times, can't be split" in err


def test_dropped_texts_are_counted_and_reported_once(write, report):
    rows = [{"text": text} for text in DOCUMENTS] + [{"text": " "}]
    assert report(write("a.jsonl", *rows)).count("1 without text") == 1


def test_a_long_list_of_errors_is_cut_and_says_so(write, report):
    path = write("a.jsonl", demo("a"), *[demo("b", 3)] * 13)
    out, err = report(path, stops=True, malformed=5)
    assert out.count("a response must be") == 5 and "and 8 more (--malformed=13)" in out
    assert "13 malformed rows" in err
    assert report(path, stops=True, malformed=13)[0].count("a response must be") == 13


def test_malformed_text_rows_are_named(write, report):
    path = write("a.jsonl", {"text": "a"}, {"text": 3}, {"text": "half \ud83d"})
    out, err = report(path, stops=True)
    assert f"{path}, line 2: text must be a string" in out and f"{path}, line 3: " in out


@pytest.mark.parametrize("name, content, reason", [
    ("a.jsonl", "", "is empty"),
    ("a.txt", "\0", "NUL"),
    ("a.json", '[{"prompt": "Hi"},\n{]', "line 2"),
    ("a.jsonl", json.dumps({"prompt": "Hi", "chosen": "a", "rejected": "a"}), "dropped 1 of 1"),
])
def test_a_file_that_cannot_be_used_is_one_line(write, report, name, content, reason):
    path = write(name, content)
    _, err = report(path, stops=True)
    assert path in err and reason in err


def test_a_missing_file_is_reported_after_the_others_were_checked(write, report):
    out, err = report("missing.jsonl", write("a.jsonl", demo("a")), stops=True)
    assert "'missing.jsonl': no such file" in err and "demonstrations" in out


# examples --------------------------------------------------------------------

def test_what_is_learned_is_between_marks(write, report):
    turn = "<|user|>Hi<|end|><|assistant|>«Hello<|end|>»"
    assert f"    <|endoftext|>{turn}{turn}\n" in report(write("a.jsonl", {"messages": QA * 2}))


def test_an_example_is_cut_where_training_cuts_it(write, report, tiny_tokenizer):
    printed = report(write("a.jsonl", demo("Hi", "x" * 200)), block_size=70)
    prompt = len(tiny_tokenizer.encode_chat(QA[:1], reply=True)[0])
    shown = re.search("«(x+)»", printed)[1]
    assert length(tiny_tokenizer, shown) == 71 - prompt


def test_in_a_comparison_the_place_of_the_score_is_marked(write, report):
    printed = report(write("a.jsonl", pair("Hi")))
    first, worse = "<|assistant|>Yes.«<|end|>»", "<|assistant|>No.«<|end|>»"
    assert printed.index(first) < printed.index("a worse response") < printed.index(worse)


def test_in_a_prompt_the_place_of_the_answer_is_marked(write, report):
    assert "<|user|>Hi<|end|><|assistant|>«…»\n" in report(write("a.jsonl", {"prompt": "Hi"}))


def test_examples_of_text_are_the_first_rows_of_pretraining(write, report, tmp_path,
                                                            tiny_tokenizer):
    from data.corpus import Corpus
    path = write("a.jsonl", *({"text": text.replace("\n", " ")} for text in DOCUMENTS))
    corpus = Corpus(path, tiny_tokenizer, tmp_path / "cache", "print").shuffle(9999, seed=0)
    for row in corpus.rows(0, 3, 128).tolist():
        head, rest = tiny_tokenizer.decode(row[:1]), tiny_tokenizer.decode(row[1:])
        assert f"    {head}«{rest}»\n" in report(path)


def test_three_examples_are_spread_over_the_file(write, report):
    printed = report(write("a.jsonl", *({"prompt": f"[{i}]"} for i in range(9))))
    assert re.findall(r"\[(\d)\]", printed) == ["0", "4", "8"]


@pytest.mark.parametrize("wanted, shown", [(0, 0), (1, 1), (2, 2), (5, 2)])
def test_the_number_of_examples_is_the_flag_or_all_there_are(write, report, wanted, shown):
    path = write("a.jsonl", demo("a"), demo("b"))
    assert report(path, examples=wanted).count("\n    example ") == shown


def test_colours_replace_the_marks(write, report):
    printed = report(write("a.jsonl", demo("Hi", "Hello")), colour="true")
    assert "\033[32mHello\033[0m\033[1;32m<|end|>\033[0m" in printed and "«" not in printed


def test_without_a_terminal_there_are_no_colours(write, report):
    assert "\033" not in report(write("a.jsonl", demo("Hi")))


def test_data_cannot_control_the_terminal(write, report):
    printed = report(write("a.jsonl", demo("\033[31mred\a\r", "tab\t")))
    assert not set("\033\a\r\t") & set(printed) and r"\x1b[31mred" in printed


def test_special_tokens_spelled_in_the_data_stay_text(write, report, tiny_tokenizer):
    """Bold is what the model sees as one token; the same characters in a text are many."""
    printed = report(write("a.jsonl", demo("<|end|>")), colour="true")
    assert "\033[0m<|end|>\033[0m\033[1;36m<|end|><|assistant|>\033[0m" in printed


# the command -----------------------------------------------------------------

def test_a_checkpoint_sets_the_tokenizer_and_the_context(write, report, tmp_path, tiny_tokenizer):
    config = GPTConfig(vocab_size=tiny_tokenizer.vocab_size, block_size=96, n_layer=1, n_head=2,
                       n_embd=8)
    path = str(tmp_path / "model.pt")
    save_checkpoint(path, stage="pretrain", step=1, metrics={}, model=GPT(config), history=[],
                    model_config=config, tokenizer=tiny_tokenizer, config=check.Config())
    printed = report(write("a.jsonl", demo("Hi")), tokenizer=path)
    assert "cut to 97 tokens" in printed and "more than 31 tokens (96 minus" in printed


@pytest.mark.parametrize("flags, reason", [
    (dict(kind="poems"), "--kind=poems is not one of auto, text"),
    (dict(colour="red"), "--colour=red is not one of auto"),
    (dict(block_size=64), "--block_size=64 must be more than --max_new_tokens=64"),
])
def test_a_wrong_flag_is_refused(write, report, flags, reason):
    assert reason in report(write("a.jsonl", demo("a")), stops=True, **flags)[1]


def test_without_a_file_it_says_so(report):
    assert "no file given" in report(stops=True)[1]


@pytest.mark.parametrize("argv", [["a", "b", "--examples=1"], ["--examples=1", "a", "b"],
                                  ["a", "--examples", "1", "b"], ["--data=a,b", "--examples=1"]])
def test_files_and_flags_can_have_any_order(argv):
    config = parse_config(check.Config, "", argv, words="data")
    assert (config.data, config.examples) == ("a,b", 1)


def test_without_a_tokenizer_the_line_says_how_to_make_one(write, report):
    with pytest.raises(ValueError, match="none.json.*`python tokenizer.py` makes one"):
        report(write("a.jsonl", demo("a")), tokenizer="none.json")


def test_the_exit_status_says_that_the_data_is_broken(write, tmp_path, tiny_tokenizer):
    tiny_tokenizer.save(tmp_path / "out" / "tokenizer.json")
    path = write("a.jsonl", demo("a"), "{")
    done = subprocess.run([sys.executable, check.__file__, path, "--examples=1"], cwd=tmp_path,
                          env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1",
                               "PYTHONPATH": str(ROOT)},
                          timeout=60, capture_output=True, text=True)
    assert "demonstrations (prompt, response)" in done.stdout and done.returncode == 1
    assert done.stderr.startswith(f"check.py: {path}, line 2: not JSON")
