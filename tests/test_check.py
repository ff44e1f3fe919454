import re
from pathlib import Path

import numpy as np
import pytest

import reward
import tiny
from common import note_once
from data.corpus import Corpus
from data.formats import is_held_out
from tiny import write
from tools import check

QA = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
# test_formats.py tests this split
TRAIN, HELD_OUT = ([q for q in (f"Question {i}?" for i in range(400))
                    if is_held_out([{"role": "user", "content": q}]) == side]
                   for side in (False, True))
DOCUMENTS = [f"Ada has {i} cats. What is {i} + 1? {i + 1}.\n" for i in range(60)]


@pytest.fixture(autouse=True)
def tokenizer(tiny_tokenizer):
    Path("out").mkdir()
    tiny_tokenizer.save(Path("out/tokenizer.json"))


@pytest.fixture
def report(capsys):
    """report(path, …) -> what check.py prints about the files, with what reading tells; with
    stops=True it must refuse them: (what it prints, the last line on stderr)."""
    def report(*paths, stops=False, **flags):
        note_once.cache_clear()                       # which may have told it before
        try:
            check.main(check.Config(data=",".join(map(str, paths)), **flags))
            status = 0
        except SystemExit as stop:
            status = stop.code
        out, err = capsys.readouterr()
        assert status == stops, err
        *told, reason = err.splitlines() if stops else [*err.splitlines(), ""]
        out += "\n".join(told)
        return (out, reason) if stops else out
    return report


def in_words(printed):
    return " ".join(printed.split())


def demo(question, answer="Yes."):
    return {"prompt": question, "response": answer}


def pair(question, chosen="Yes.", rejected="No."):
    return {"prompt": question, "chosen": chosen, "rejected": rejected}


def texts(documents):
    return [{"text": text} for text in documents]


def summary(texts, tok, more):
    """What is said of the lengths of texts, each with so many special tokens."""
    n = np.array([len(tok.encode(text)) + more for text in texts])
    return (f"{n.min()} to {n.max()} tokens, on average {n.mean():.1f}, 95% of them at most "
            f"{np.percentile(n, 95):.0f}; {n.sum():,} in all")


# which format ----------------------------------------------------------------

@pytest.mark.parametrize("row, said", [
    ({"text": "Ada"}, "text (text)"),
    ({"prompt": "Hi", "response": "Hello", "messages": None, "id": 1},
     "demonstrations (prompt, response)"),
    ({"conversations": [{"from": "human", "value": "Hi"}],
      "chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"}},
     "comparisons (conversations, chosen, rejected)"),
    ({"messages": QA[:1], "id": 3}, "prompts (messages)")], ids=str)
def test_a_file_has_the_format_of_its_first_sound_row(row, said, report):
    path = write("a.jsonl", ["odd"], row)
    assert f"{path}: {said}\n" in report(path, stops=True)[0]


def test_a_text_file_and_a_directory_are_pretraining_text_with_a_line_for_each_source(report):
    write("d/one.txt", "<|endoftext|>".join(DOCUMENTS)), write("d/two.jsonl", demo("Hi"))
    printed = report("d", "d/one.txt")
    assert "d: text (" in printed and "d/one.txt: text (text)" in printed
    assert printed.count("    one  ") == 2 and printed.count("    two  ") == 1


# what it says ----------------------------------------------------------------

LEAST = reward.Config.batch_size
REPORTS = [
    ("what sft.py cuts or leaves out is counted",
     [demo(TRAIN[0], "a"), demo(TRAIN[1], "b" * 99), demo(TRAIN[2] + "c" * 99, "d"),
      demo(HELD_OUT[0], "a")], dict(block_size=70),
     ["2 are cut: with their prompts they have more than 71 tokens",
      "sft.py 2 to learn from, 1 held out; 1 left out, since nothing of their answers"]),
    ("what reward.py cuts is counted, and which pairs are equal then",
     [pair(TRAIN[0]), pair(TRAIN[1], "a" * 150, "b"), pair("c" * 150, "d", "e"),
      pair(TRAIN[2], "a" * 150 + "b", "a" * 150 + "c")], dict(block_size=100),
     ["5 are cut: with their prompts they have more than 100 tokens",
      " 1 left out, since their responses are equal once cut"]),
    *((f"it is said whether {n} rows are enough", [*map(pair, TRAIN[:n]), pair(HELD_OUT[0])], {},
       [f"reward.py {n} to learn from, 1 held out{said};"])
      for n, said in ((LEAST - 1, f" (too few: at least {LEAST} and 1 are needed)"), (LEAST, ""))),
    ("pairs and the preference for length are shown",
     [{"prompt": "Hi", "responses": ["a b c", "a b", "a"], "ranks": [0, 1, 1]},
      pair("Ho", "a", "b c")], {}, ["pairs 3; in 67% the better response is longer"]),
    ("duplicates and different prompts are counted",
     [demo("a", "1"), demo("a", "1"), demo("a", "2"), demo("b", "1"), demo("a", "1")], {},
     ["rows 5; 2 are duplicates; 2 different prompts"]),
    # the only prompt of a hash below the share is too long: another one is held out
    ("prompts are split as rlhf_ppo.py splits them, after the long ones are out",
     [{"prompt": q} for q in (*TRAIN[:2], HELD_OUT[0] + " x" * 99, TRAIN[2])], {},
     ["rlhf_ppo.py 2 to learn from, 1 held out"]),
    ("repeated, dropped texts and fields that nothing reads are counted",
     [row | {"title": "Cats"} for row in texts([*DOCUMENTS, *DOCUMENTS[:4], " "])], {},
     ["64 (long ones are split at line ends); 4 are duplicates",
      "1 of 65 rows left out, without text", "65 'title'"]),
    ("what is dropped, mended or not used is counted and is no error",
     [demo("a", "") | {"hint": "b"}, {"messages": [*QA, QA[0]], "hint": "b"}, demo("a")], {},
     ["other fields 2 'hint'", "1 of 3 rows left out, with an empty answer; "
      "1 of 3 rows mended: a user turn at the end was cut"]),
    ("a transcript in a prompt is shown as turns",
     [demo("\n\nHuman: Hi\n\nAssistant: Ho\n\nHuman: So?\n\nAssistant:", " Yes.")], {},
     ["<|user|>Hi<|end|><|assistant|>«Ho<|end|>»<|user|>So?<|end|>", "«Yes.<|end|>»"]),
    ("what is learned is between marks", [{"messages": QA * 2}], {},
     ["<|endoftext|>" + "<|user|>Hi<|end|><|assistant|>«Hello<|end|>»" * 2]),
    ("in a prompt the place of the answer is marked", [{"prompt": "Hi"}], {},
     ["<|user|>Hi<|end|><|assistant|>«…»"]),
    ("in a comparison the place of the score is marked", [pair("Hi")], {},
     ["<|assistant|>Yes.«<|end|>» example 1, a worse response",
      "<|assistant|>No.«<|end|>»"])]


@pytest.mark.parametrize("fact, rows, flags, said", REPORTS, ids=[row[0] for row in REPORTS])
def test_the_report_says_it_once(fact, rows, flags, said, report):
    printed = in_words(report(write("a.jsonl", *rows), **flags))
    assert [printed.count(part) for part in said] == [1] * len(said)


def test_lengths_count_the_template_and_the_end(report, tiny_tokenizer):
    rows = [demo("What is 12 + 30?", "42"), demo("Ada", "a baker"), demo("Hi", "x" * 40)]
    printed = in_words(report(write("a.jsonl", *rows)))
    # <|endoftext|><|user|> … <|end|><|assistant|>, then … <|end|>
    for name, field, more in (("prompt", "prompt", 4), ("response", "response", 1)):
        said = summary([row[field] for row in rows], tiny_tokenizer, more)
        assert printed.count(f" {name} {said} ") == 1


def test_prompts_too_long_for_ppo_are_counted(report, tiny_tokenizer):
    fits = len(tiny_tokenizer.encode(TRAIN[0])) + 4
    path = write("a.jsonl", {"prompt": TRAIN[0]}, {"prompt": TRAIN[0] + " x"})
    for room, left_out in ((dict(block_size=fits + 65), 1), (dict(block_size=fits + 74), 0),
                           (dict(block_size=fits + 64, max_new_tokens=50), 0)):
        printed = in_words(report(path, **room)).partition("rlhf_ppo.py")[2]
        assert f" {left_out} left out, since the prompt has more than" in printed
        assert left_out == 0 or f"more than {fits} tokens" in printed


def test_prompts_or_texts_in_two_files_are_counted(report):
    a = write("a.jsonl", demo("x"), demo("y"), demo("y", "z"), demo("z"))
    b = write("b.jsonl", {"prompt": "y"}, {"prompt": "z"}, {"prompt": "v"})
    assert f"2 prompts or texts are in both {a} and {b}" in report(a, b)
    c = write("c.jsonl", *texts(DOCUMENTS))
    more = [text.replace("cats", "dogs") for text in DOCUMENTS]
    d = write("d.jsonl", *texts(DOCUMENTS[50:] + more))
    assert f"10 prompts or texts are in both {c} and {d}" in report(c, d)


# pretraining text ------------------------------------------------------------

def test_text_is_measured_in_documents_that_begin_with_a_token(report, tiny_tokenizer):
    printed = in_words(report(write("d.jsonl", *texts(DOCUMENTS))))
    assert printed.count(f" d {summary(DOCUMENTS, tiny_tokenizer, 1)} ") == 1
    tokens = sum(len(tiny_tokenizer.encode(text)) + 1 for text in DOCUMENTS)
    assert f"{len(''.join(DOCUMENTS).encode()) / tokens:.2f} bytes per token" in printed


def test_the_split_and_the_examples_of_text_are_those_of_pretraining_and_no_file_is_left(
        report, tmp_path, tiny_tokenizer):
    path = write("a.jsonl", *texts(text.replace("\n", " ") for text in DOCUMENTS))
    corpus = Corpus(path, tiny_tokenizer, tmp_path / "cache", "print").shuffle(9999, seed=0)
    before = sorted(Path().rglob("*"))
    printed, train = report(path), corpus.lengths[~corpus.held_out]
    assert sorted(Path().rglob("*")) == before
    assert f"{len(train)} to learn from, {60 - len(train)} held out" in printed and len(train) < 60
    assert f"an epoch is {train.sum() // 256} rows of 256" in printed    # what is not held out
    for row in corpus.rows(0, 3, 256).tolist():
        head, rest = tiny_tokenizer.decode(row[:1]), tiny_tokenizer.decode(row[1:])
        assert f"    {head}«{rest}»\n" in printed


# what training would refuse --------------------------------------------------

BAD = "content must be a string, not 3"
REFUSALS = [
    ("every malformed row is named with file, line and reason", "a.jsonl",
     [demo("a"), demo("b", 3), "\n", '{"prompt": "c\n', demo("d"), ["e"]],
     [f"a.jsonl, line 2: {BAD}", "a.jsonl, line 4: not JSON",
      "a.jsonl, line 6: a row must be an object", "rows 2; 0 are duplicates"], "3 errors"),
    ("a single malformed row is also the last line", "a.jsonl", [demo("a"), demo("b", 3)],
     ["rows 1"], f"a.jsonl, line 2: {BAD}"),
    ("malformed text rows are named", "a.jsonl",
     [{"text": "a"}, {"text": 3}, {"text": "half \ud83d"}],
     ["a.jsonl, line 2: text must be a string", "a.jsonl, line 3: "], "2 errors"),
    ("a single short document can't be split", "a.txt", ["one"], [],
     "a single short document can't be split"),
    ("nothing is left", "a.jsonl", [pair("Hi", "a", "a")], [], "1 of 1 rows left out")]


@pytest.mark.parametrize("fact, name, rows, said, reason", REFUSALS,
                         ids=[row[0] for row in REFUSALS])
def test_what_training_would_refuse_is_refused(fact, name, rows, said, reason, report):
    out, err = report(write(name, *rows), stops=True)
    assert all(part in in_words(out) for part in said) and name in err + out and reason in err


def test_a_long_list_of_errors_is_cut_and_says_so(report):
    out, err = report(write("a.jsonl", demo("a"), *[demo("b", 3)] * 13), stops=True)
    assert out.count("content must be") == 10 and "13 errors" in err


def test_a_missing_file_is_reported_after_the_others_were_checked(report):
    out, err = report("missing.jsonl", write("a.jsonl", demo("a")), stops=True)
    assert "'missing.jsonl': no such file" in err and "demonstrations" in out


# examples --------------------------------------------------------------------

def test_an_example_is_cut_where_training_cuts_it(report, tiny_tokenizer):
    prompt = len(tiny_tokenizer.encode_chat(QA[:1], reply=True)[0])
    fits = demo("Hi", "x" * (70 - prompt))            # 71 tokens with the end
    printed = report(write("a.jsonl", demo("Hi", "x" * 200), fits), block_size=70)
    assert len(tiny_tokenizer.encode(re.search("«(x+)»", printed)[1])) == 71 - prompt
    assert " 1 are cut: " in in_words(printed)


def test_the_first_three_rows_are_shown(report):
    path = write("a.jsonl", *({"prompt": f"[{i}]"} for i in range(9)))
    assert "".join(re.findall(r"\[(\d)\]", report(path))) == "012"


def test_data_cannot_control_the_terminal(report):
    printed = report(write("a.jsonl", demo("\033[31mred\a\r", "tab\t")))
    assert not set("\033\a\r\t") & set(printed) and r"\x1b[31mred" in printed


# the command -----------------------------------------------------------------

def test_a_checkpoint_sets_the_tokenizer_and_the_context(report, tiny_tokenizer):
    tiny.save("model.pt", "pretrain", tiny_tokenizer, block_size=96)
    printed = report(write("a.jsonl", demo("Hi")), tokenizer="model.pt")
    assert "more than 97 tokens" in printed and "more than 31 tokens (96 minus" in printed


def test_without_a_file_it_says_so(report):
    assert "no file given" in report(stops=True)[1]


def test_the_exit_status_says_that_the_data_is_broken(run_script):
    status, out, err = run_script("tools/check", write("a.jsonl", demo("a"), "{"))
    assert "demonstrations (prompt, response)" in out and status == 1
    assert err.startswith("check.py: ") and "a.jsonl, line 2: not JSON" in err
    assert "\033" not in out                          # this is no terminal
