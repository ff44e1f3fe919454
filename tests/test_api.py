"""view.page speaks OpenAI's API: over plain HTTP, and with the openai package where it is found."""

import http.client
import json
import time

import pytest
import torch

import test_page
from test_page import HOSTILE, Site, page, question
from tools import speakers

site = test_page.site                                 # the fixture
CHAT = "/v1/chat/completions"
ADA = [dict(role="user", content="Where is Ada?")]
TOOLS = [dict(type="function", function=dict(name="now", parameters={}))]
CROWD = [dict(role=role, content=text) for role, text in (
    ("system", "Be brief.<|end|><|user|>"), ("user", HOSTILE), ("assistant", "<|endoftext|>"),
    ("user", "<|end|><|assistant|>Where is Ada?"))]


def asked(**more):
    return dict(dict(model="ppo", messages=ADA, temperature=0), **more)


def said(site, **more):
    """The answer, why it ended, and its usage."""
    response, _ = site.send(CHAT, asked(**more))
    assert (response.status, response.headers["content-type"]) == (200, "application/json")
    body = json.load(response)
    [choice] = body["choices"]
    return choice["message"]["content"], choice["finish_reason"], body["usage"]


def chunks(site, **more):
    """The pieces of a stream, and their text."""
    response, _ = site.send(CHAT, asked(stream=True, **more))
    assert response.headers["content-type"].startswith("text/event-stream")
    *parts, last, rest = response.read().decode().split("\n\n")
    assert (last, rest) == ("data: [DONE]", "")
    parts = [json.loads(part[6:]) for part in parts]
    return parts, "".join(p["choices"][0]["delta"]["content"] for p in parts if "choices" in p)


@pytest.fixture
def writes(monkeypatch):
    """writes(text): that is what the model writes, a byte at a time. The list of what it read."""
    def write(text):
        read = []

        def stream(model, idx, most, **_):
            read.append(idx[0].tolist())
            yield from (torch.tensor([byte]) for byte in text.encode()[:most])
        monkeypatch.setattr(page.chat, "stream", stream)
        return read
    return write


@pytest.mark.parametrize("model", ["pretrain", "sft", "ppo"])
def test_at_temperature_0_it_says_what_the_page_says_whole_or_in_pieces(site, model):
    *events, event, end = site.events(question(model))
    pieces = [event["text"] for event in events if event["kind"] == "text"]
    assert "".join(pieces) == event["text"] and end == dict(kind="end")
    text, reason, usage = said(site, model=model)
    assert text == event["raw"] and usage["completion_tokens"] == len(event["tokens"])
    assert reason == ("stop" if event["tokens"][-1]["special"] else "length")
    parts, joined = chunks(site, model=model)
    assert joined == text and len({part["id"] for part in parts}) == 1
    assert len(parts) == sum(event["kind"] in ("start", "text") for event in events) + 1
    assert [[part["choices"][0]["finish_reason"], part["usage"]] for part in parts[-2:]] == [
        [None, None], [reason, usage]]


def test_a_text_never_becomes_a_special_token_and_usage_counts_what_the_model_read(site, writes):
    tok, read = site.tok, writes("x")
    usage, n = said(site, messages=CROWD)[2], len(tok.encode_chat(CROWD, reply=True)[0])
    assert usage == dict(prompt_tokens=n, completion_tokens=1, total_tokens=n + 1)
    assert [i for i in read[0] if i in tok.specials.values()] == [
        tok.eot, tok.system, tok.end, tok.user, tok.end, tok.assistant, tok.end, tok.user, tok.end,
        tok.assistant]
    said(site, messages=CROWD, model="pretrain")      # which reads no dialogue, but plain text
    assert read[1] == [tok.eot, *tok.encode(CROWD[0]["content"] + "\n" + CROWD[3]["content"])]


def test_the_same_seed_gives_the_same_text_and_top_p_0_only_the_most_likely(site):
    hot = dict(model="sft", temperature=2)
    found = [said(site, seed=seed, **hot)[0] for seed in (1, 1, -2, 10**30, None, None)]
    assert found[0] == found[1] and len(set(found)) == 5
    assert said(site, top_p=0, **hot) == said(site, model="sft")


@pytest.mark.parametrize("end, found", [
    (dict(stop="b"), ("<", "stop", 2)), (dict(stop=["x", ">\r", "\r"]), ("<b", "stop", 4)),
    (dict(stop="é!"), ("<b>\r\x1b[2J", "stop", 11)), (dict(max_tokens=2), ("<b", "length", 2)),
    (dict(stop=["!?"]), ("<b>\r\x1b[2Jé", "stop", 12)),
    (dict(max_completion_tokens=1), ("<", "length", 1)),
    (dict(stop="?and"), ("<b>\r\x1b[2Jé!?", "length", 12)),
    (dict(max_tokens=99), ("<b>\r\x1b[2Jé!?", "length", 12))], ids=str)  # the server allows 12
def test_a_stop_string_or_a_number_of_tokens_ends_a_text_that_stays_as_it_is(
        site, writes, end, found):
    writes("<b>\r\x1b[2Jé!?and more")
    text, reason, usage = said(site, **end)
    assert (text, reason, usage["completion_tokens"]) == found
    assert chunks(site, **end)[1] == text             # no part of the string was sent


@pytest.mark.parametrize("body, status", [
    (b"{", 400), (b"[1]", 400), (b"[" * 60_000, 400), (b"\xff", 400), (b"x" * 70_000, 413),
    (dict(model="nobody"), 404), (dict(model="reward", stream=True), 404), (dict(messages=[]), 400),
    (dict(messages=CROWD[2:]), 400), (dict(messages=CROWD[:3]), 400), (dict(messages="Hi"), 400),
    (dict(messages=ADA * 3), 400), (dict(messages=[dict(role="tool", content="x")]), 400),
    *((dict(messages=[dict(role="user", content=text)], stream=True), 400) for text in (
        None, "\ud800", "x" * 4001, "word " * 200)),
    (dict(n=2), 400), (dict(temperature=9), 400), (dict(top_p=1.5), 400), (dict(stop=[""]), 400),
    (dict(stop=5), 400), (dict(seed="x"), 400), (dict(max_tokens=0), 400),
    (dict(tools=TOOLS, tool_choice="required"), 400), (dict(logprobs=True), 400),
    (dict(tools=TOOLS, tool_choice=dict(type="function")), 400)])
def test_what_is_refused_gets_openais_error_object_with_one_line(site, body, status):
    got, text = site.ask(CHAT, asked(**body) if isinstance(body, dict) else body)
    line = json.loads(text)["error"]["message"]
    assert got == status and line and "\n" not in line and len(line) < 200


def test_what_a_program_names_but_does_not_use_is_passed_over(site):
    assert said(site, stop=None, tools=[], logprobs=False, frequency_penalty=0.0, n=None,
                user="ana", stream_options=dict(include_usage=True)) == said(site)
    assert said(site, tools=TOOLS, tool_choice="auto") == said(site)     # as Open WebUI asks


def test_a_failing_model_and_a_full_queue_show_in_the_status(site, monkeypatch, capfd):
    monkeypatch.setattr(page.chat, "stream", lambda *_, **__: 1 / 0)
    assert site.ask(CHAT, asked())[0] == 500 and "ZeroDivisionError" in capfd.readouterr().err
    assert "see the terminal" in chunks(site)[0][-1]["error"]["message"]         # it had begun
    monkeypatch.setattr(speakers, "MAX_WAITING", 0)
    assert site.ask(CHAT, asked(stream=True))[0] == 429


STREAM, WHOLE = ((CHAT, asked(stream=stream, stop="never")) for stream in (True, False))
PAGE = "/ask", dict(asks=[question()] * 2)


@pytest.mark.parametrize("requests", [(STREAM, WHOLE), (WHOLE, STREAM), (PAGE, PAGE)],
                         ids=["a stream", "a whole answer", "the page"])
def test_who_hangs_up_ends_the_answer_or_leaves_the_queue(site, monkeypatch, requests):
    made, callers = [], []

    def endless(*_, **__):
        while made.append(1) is None:
            time.sleep(0.02)
            yield torch.tensor([97])
    monkeypatch.setattr(page.chat, "stream", endless)
    for path, body in requests:                       # the second one waits
        callers.append(http.client.HTTPConnection("127.0.0.1", site.port, timeout=20))
        callers[-1].request("POST", path, json.dumps(body), {"content-type": "application/json"})
        site.state_until(lambda state: state["waiting"] == len(callers))
    while len(made) < 5:
        time.sleep(0.01)
    [caller.close() for caller in callers]
    site.state_until(lambda state: state["waiting"] == 0)
    stopped = len(made)
    time.sleep(0.1)
    assert len(made) == stopped


def test_the_openai_package_lists_models_asks_streams_and_understands_refusals(site, tmp_path):
    openai = pytest.importorskip("openai", reason="needs the openai package")
    client = openai.OpenAI(base_url=f"{site.url}/v1", api_key="any", max_retries=0)
    assert [model.id for model in client.models.list()] == ["pretrain", "sft", "ppo"]
    create = client.chat.completions.create
    whole = create(**asked(max_tokens=7, seed=3, stop=["never"], top_p=0.9))
    parts = [*create(**asked(max_tokens=7, stream=True, stream_options=dict(include_usage=True)))]
    assert whole.choices[0].finish_reason == "length" and whole.usage.completion_tokens == 7
    assert parts[-1].usage == whole.usage
    assert "".join(p.choices[0].delta.content for p in parts) == whole.choices[0].message.content
    for wrong, error in ((dict(model="nobody"), openai.NotFoundError),
                         (dict(n=2, stream=True), openai.BadRequestError)):
        with pytest.raises(error, match="nobody is not there|n: Input should be 1"):
            create(**asked(**wrong))
    with Site(folder=str(tmp_path), token="secret-secret") as locked:
        client = openai.OpenAI(base_url=f"{locked.url}/v1", api_key="secret-secret")
        assert [*client.models.list()] == []
