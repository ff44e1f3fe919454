"""The live page: its server over HTTP, and the page in a real browser."""

import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from urllib.parse import quote

import pytest
import torch

import chat
import tiny
from checkpoint import load_checkpoint
from common import Runtime, wilson
from data.formats import read_comparisons
from reward import encode_answer, score_all
from tools import rankings, speakers

pytest.importorskip("fastapi", reason="needs FastAPI and uvicorn")
page = pytest.importorskip("view.page")

HOSTILE = "<script>hacked = 1</script><img src=x onerror='hacked = 1'> \u202eabc <|end|> \x1b[31m"
SHOWN = "<script>hacked = 1</script><img src=x onerror='hacked = 1'> \\u202eabc <|end|> \\u001b[31m"


def random_model(path, stage, tok, seed, block_size=160):
    """A checkpoint with large random weights, so that each token depends on all before it."""
    tiny.save(path, stage, tok, block_size, weights=lambda m: tiny.loud(m, std=0.3, seed=seed))


class Site:
    """A server in a thread of this process."""

    def __init__(self, **flags):
        config = page.Config(**dict(dict(port=0, device="cpu", max_new_tokens=12), **flags))
        self.server, listening = page.make_server(config)
        self.port = listening.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.thread = threading.Thread(target=self.server.run, args=([listening],))
        self.thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.should_exit = True
        self.thread.join(10)

    def send(self, path, body=None, **headers):
        """The response, and the connection it comes through."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        if body is not None:
            headers = {"content-type": "application/json"} | headers
            body = json.dumps(body).encode() if isinstance(body, dict) else body
        connection.request("GET" if body is None else "POST", path, body,
                           {name.replace("_", "-"): value for name, value in headers.items()})
        return connection.getresponse(), connection

    def ask(self, path, body=None, **headers):
        """(status, text)"""
        response, _ = self.send(path, body, **headers)
        return response.status, response.read().decode()

    def get(self, path):
        status, text = self.ask(path)
        assert status == 200, text
        return json.loads(text)

    def events(self, *asks, **settings):
        status, text = self.ask("/ask", dict(asks=asks, temperature=0, **settings))
        assert status == 200, text
        return [json.loads(part[6:]) for part in text.split("\n\n") if part]

    def done(self, *asks, **settings):
        return [e for e in self.events(*asks, **settings) if e["kind"] == "done"]

    def state_until(self, true):
        end = time.monotonic() + 10
        while not true(state := self.get("/state")):
            assert time.monotonic() < end, state
            time.sleep(0.05)
        return state


def question(model="ppo", *texts, **more):
    return dict(model=model, texts=list(texts) or ["Where is Ada?"], **more)


@pytest.fixture(scope="module")
def site(tmp_path_factory, tiny_tokenizer):
    folder = tiny.build(tmp_path_factory.mktemp("page"), tiny_tokenizer)
    for seed, stage in enumerate(("pretrain", "sft", "reward", "ppo")):
        random_model(folder / f"{stage}.pt", stage, tiny_tokenizer, seed)
    tiny.write(folder / "pretrain.jsonl", *(dict(step=s, loss=5 / s, lr=0.1) for s in (1, 2, 3)))
    graded = [row | dict(grades=[3.0, 2.0, 1.0][:len(row["responses"])])
              for row in tiny.read_log(folder / "comparisons.jsonl")]
    tiny.write(folder / "comparisons.jsonl", *graded)
    # in the folder itself "sft.jsonl" would be the log of sft.py
    (folder / "data/town").mkdir(parents=True)
    (folder / "sft.jsonl").rename(folder / "data/town/sft.jsonl")
    with Site(folder=str(folder)) as site:
        site.folder, site.tok = folder, tiny_tokenizer
        yield site


@pytest.fixture
def class_file(site):
    """Where the class's rankings are, without any yet."""
    path = site.folder / "class.jsonl"
    path.unlink(missing_ok=True)
    yield path
    path.unlink(missing_ok=True)


@pytest.fixture
def slow(monkeypatch):
    """Each token takes a while."""
    stream = chat.stream

    def slowly(*args, **kwargs):
        for token in stream(*args, **kwargs):
            time.sleep(0.05)
            yield token
    monkeypatch.setattr(chat, "stream", slowly)


# ---------------------------------------------------------------------------------------------
# answers

def load(site, stage):
    return load_checkpoint(site.folder / f"{stage}.pt")["model"].eval()


@pytest.mark.parametrize("begun", ["", "It is"])
def test_each_model_goes_on_with_the_dialogue_and_a_base_model_with_the_text(site, begun):
    prefix = site.tok.encode(begun)                   # of the answer
    texts = ["Hi <|end|>", "Yes?", "Where is Ada?<|endoftext|>"]
    chat = site.tok.encode_chat([dict(role=r, content=c) for r, c in zip(
        ("user", "assistant", "user"), texts)], reply=True)[0]
    plain = [site.tok.eot] + site.tok.encode(texts[2] + "\n")
    stages, ends = ("pretrain", "sft", "ppo"), site.tok.specials.values()
    done = site.done(*(question(stage, *texts, prefix=prefix) for stage in stages))
    for event, stage, ids in zip(done, stages, (plain, chat, chat), strict=True):
        said = tiny.greedy(load(site, stage), ids + prefix, 12 - len(prefix), ends)
        assert [t["id"] for t in event["tokens"]] == prefix + said
    assert len({e["raw"] for e in done}) == 3         # the models differ


def test_the_numbers_of_a_token_are_those_of_the_models(site):
    [event] = site.done(question())
    prompt = [dict(role="user", content="Where is Ada?")]
    ids, said = site.tok.encode_chat(prompt, reply=True)[0], [t["id"] for t in event["tokens"]]
    p, q = (load(site, stage)(torch.tensor([ids + said]))[0].double().softmax(-1).detach()
            for stage in ("ppo", "sft"))
    for t, token in enumerate(event["tokens"], len(ids) - 1):
        assert token["p"] == pytest.approx(p[t, token["id"]].item(), abs=1e-3)
        assert token["entropy"] == pytest.approx(-(p[t] * p[t].log()).sum().item(), abs=1e-3)
        assert token["kl"] == pytest.approx((p[t] * (p[t] / q[t]).log()).sum().item(), abs=1e-3)
        assert [a["id"] for a in token["top"]] == p[t].topk(8).indices.tolist()
    row = encode_answer(site.tok, prompt, event["raw"], 160)
    score = score_all(load(site, "reward"), [row], site.tok, Runtime(page.Config(device="cpu")))
    assert event["score"] == pytest.approx(score.item(), abs=1e-4)


def test_what_can_not_be_answered_or_continued_gets_one_line(site):
    for id in (-1, 10**4, site.tok.end):
        assert "another tokenizer" in site.events(question(prefix=[id]))[1]["text"]
    assert "please use fewer words" in site.events(question("ppo", "word " * 200))[1]["text"]
    for name in ("nobody", "reward"):
        assert f"{name} is not there" in site.events(question(name))[1]["text"]


def test_thirty_people_at_once_are_all_answered_and_know_their_place(site):
    def person(i):
        return site.events(question("sft", f"{i}?"), top_k=5)
    with ThreadPoolExecutor(30) as people:
        found = [*people.map(person, range(30))]
    assert all([e["kind"] for e in events][-2:] == ["done", "end"] for events in found)
    places = [[e["ahead"] for e in events if e["kind"] == "queue"] for events in found]
    assert max(map(max, places)) > 5
    assert all(p == sorted(p, reverse=True) for p in places)          # nobody is overtaken


def test_without_an_sft_model_of_its_size_an_answer_has_no_distance_from_it(site):
    random_model(site.folder / "larger.pt", "ppo", site.tok, 0, block_size=200)
    [event] = site.done(question("larger"))
    assert event["tokens"] and all(token["kl"] is None for token in event["tokens"])
    (site.folder / "larger.pt").unlink()


def test_a_model_that_is_replaced_is_loaded_whole_or_not_at_all(site, capfd):
    before, path = site.done(question("ppo"))[0]["raw"], site.folder / "ppo.pt"
    whole = path.read_bytes()
    path.write_bytes(whole[:len(whole) // 2])         # somebody copies a file slowly
    assert site.done(question("ppo"))[0]["raw"] == before
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and "ppo.pt is damaged" in said
    random_model(path, "ppo", site.tok, 9)
    assert site.done(question("ppo"))[0]["raw"] != before
    os.rename(path, site.folder / "other.pt")
    site.state_until(lambda state: [m["name"] for m in state["models"]] == [
        "pretrain", "sft", "other"])
    os.rename(site.folder / "other.pt", path)
    path.write_bytes(whole)
    assert site.done(question("ppo"))[0]["raw"] == before


def test_a_file_that_changes_while_it_is_read_is_read_again(site, tmp_path, monkeypatch):
    path, load = shutil.copy(site.folder / "sft.pt", tmp_path), speakers.Shelf.load
    shelf = speakers.Shelf(tmp_path, Runtime(page.Config(device="cpu")))

    def disturbed(self, path):
        found = load(self, path)
        random_model(path, "sft", site.tok, 9)
        return found
    monkeypatch.setattr(speakers.Shelf, "load", disturbed)
    shelf.refresh()
    monkeypatch.undo()
    shelf.refresh()
    new = torch.load(path, weights_only=True)["model"]["wte.weight"]
    assert torch.equal(shelf.models["sft"].model.wte.weight, new)


# ---------------------------------------------------------------------------------------------
# who may ask what

@pytest.mark.parametrize("status, headers", [
    (403, dict(host="evil.example")), (403, dict(host="evil.example:{port}")), (403, dict(host="")),
    (403, dict(host="127.0.0.1.evil.example")), (403, dict(host="[::1")),
    (403, dict(host="192.168.1.5")), (200, dict(host="localhost:{port}")),
    (200, dict(host="[::1]:{port}")), (403, dict(origin="http://evil.example")),
    (403, dict(origin="null")), (403, dict(origin="http://localhost:{port}")),
    (403, dict(origin="http://127.0.0.1")), (200, dict(origin="http://127.0.0.1:{port}")),
    (403, dict(sec_fetch_site="cross-site")), (200, dict(sec_fetch_site="same-origin")),
    (200, dict(authorization="Bearer whatever"))])
def test_another_origin_cannot_drive_it(site, status, headers):
    headers = {name: value.format(port=site.port) for name, value in headers.items()}
    assert site.ask("/state", **headers)[0] == site.ask("/v1/models", **headers)[0] == status
    assert site.ask("/ask", dict(asks=[question()]), **headers)[0] == status


def test_with_a_token_every_request_needs_it(tmp_path):
    with Site(folder=str(tmp_path), token="secret-secret") as site:
        for path in ("/state", "/state?token=", "/state?token=secret-secreT", "/?token=%ff", "/",
                     "/state?token=secret-secre", "/v1/models"):
            assert site.ask(path)[0] == 401, path
            for key in ("", "secret-secreT"):
                assert site.ask(path, authorization=f"Bearer {key}")[0] == 401, path
        assert site.ask("/v1/chat/completions", {})[0] == 401
        for path, headers in (("/state?token=secret-secret", {}), ("/?token=secret-secret", {}),
                              ("/state", dict(authorization="Bearer secret-secret")),
                              ("/v1/models", dict(authorization="Bearer secret-secret"))):
            assert site.ask(path, **headers)[0] == 200


def test_other_computers_reach_it_by_address_but_not_by_a_strange_name():
    config = page.Config(host="0.0.0.0")
    found = [page.is_ours(host, config) for host in (
        "192.168.1.5:8000", "localhost", socket.gethostname(), "evil.example:8000", "")]
    assert found == [True, True, True, False, False]


def test_the_page_asks_for_relative_paths_which_a_prefix_does_not_break(site):
    html = site.ask("/")[1]
    asked = re.findall(r"""await (?:get|request)\(["`]([^"`?]*)""", html)
    assert set(asked) == {"state", "curves", "items", "rank", "agreement", "ask"}


def silent(site, begin=b""):
    """A connection that has sent only that."""
    other = socket.create_connection(("127.0.0.1", site.port), timeout=10)
    other.sendall(begin)
    return other


@pytest.mark.parametrize("begin", [
    b"", b"GET /state HTTP/1.1\r\nhost: localhost\r\n",
    b"GET /state HTTP/1.1\r\nhost: localhost\r\n\r\nGET /st",
    b"POST /ask HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99\r\n\r\n{"])
def test_half_a_request_keeps_no_connection(site, monkeypatch, begin):
    monkeypatch.setattr(page, "PATIENCE", 0.2)
    other = silent(site, begin)
    while other.recv(9999):
        pass                                          # until the server closes it
    assert site.ask("/state")[0] == 200


def test_an_answer_that_takes_longer_than_a_request_may_is_not_cut_off(site, monkeypatch, slow):
    monkeypatch.setattr(page, "PATIENCE", 0.1)
    assert [e["kind"] for e in site.events(question())][-2:] == ["done", "end"]


def test_one_address_may_not_take_all_connections_unless_it_is_this_computer(site, monkeypatch):
    monkeypatch.setattr(page, "MAX_CONNECTIONS", len(site.server.server_state.connections) + 1)
    mine = [silent(site) for _ in range(3)]
    assert site.ask("/state")[0] == 200
    monkeypatch.setattr(page.ipaddress, "ip_address", lambda _: SimpleNamespace(is_loopback=False))
    assert silent(site).recv(1) == b""
    [other.close() for other in mine]


@pytest.mark.parametrize("body, status", [
    (b"{", 422), (b"x" * 70_000, 413), (dict(asks=[]), 422), (dict(asks=[question()] * 9), 422),
    (dict(asks=[question("ppo", "x" * 4001)]), 422), (dict(asks=[question("ppo", "a", "b")]), 422),
    (dict(asks=[question("ppo", *["a"] * 101)]), 422),
    (dict(asks=[question(prefix=[1] * 5000)]), 422),
    (dict(asks=[question()], temperature=-1), 422), (dict(asks=[question()], temperature=9), 422),
    (b'{"asks": [{"model": "ppo", "texts": ["a"]}], "temperature": NaN}', 422),
    (iter([b"x" * 30_000] * 3), 413)])                # in chunks, without a length
def test_a_request_that_is_wrong_or_too_large_gets_one_line(site, body, status):
    got, text = site.ask("/ask", body)
    assert got == status and text and "\n" not in text and len(text) < 200


def test_the_page_may_load_and_run_only_what_is_its_own(site):
    response, _ = site.send("/")
    policy, html = response.headers["content-security-policy"], response.read().decode()
    nonce = policy.partition("script-src 'nonce-")[2].partition("'")[0]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
    assert html.count("<script") == html.count(f'nonce="{nonce}"') == 2
    assert site.send("/")[0].headers["content-security-policy"] != policy
    assert response.headers["referrer-policy"] == "no-referrer"       # else it would tell the token


@pytest.mark.parametrize("flags, said", {
    "--host=0.0.0.0": "needs a secret, such as --token=", "--token=short": "--token must be 8 to",
    "--folder=nowhere": "--folder=nowhere is not there",
    "--port=99999": "can't be used"}.items())
def test_a_wrong_flag_gets_one_line(site, flags, said, refused, monkeypatch):
    monkeypatch.setattr("uvicorn.Server.run", lambda *_: pytest.fail("the server starts"))
    assert said in refused("view/page", f"--folder={site.folder}", "--port=0", flags)


def test_ctrl_c_ends_it_at_once_even_while_it_answers(site):
    process = subprocess.Popen(
        [sys.executable, "-m", "view.page", "--folder=.", "--port=0", "--max_new_tokens=140",
         "--token=secret-secret"], cwd=site.folder, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env=dict(os.environ, PYTHONPATH=str(tiny.ROOT)))
    line = process.stdout.readline()
    address, _, token = line.split()[0].partition("/?token=")
    assert token == "secret-secret"
    other = SimpleNamespace(port=int(address.rpartition(":")[2]))
    response, _ = Site.send(other, f"/ask?token={token}", dict(asks=[question()] * 8))
    assert response.readline().startswith(b"data: ")
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 130 and err == "" and time.monotonic() - began < 2


# ---------------------------------------------------------------------------------------------
# curves and rankings

def test_a_score_that_is_not_finite_arrives_as_null(site, monkeypatch):
    monkeypatch.setattr(speakers, "score_all", lambda *_: torch.tensor([torch.nan]))
    assert site.done(question())[0]["score"] is None


def in_order(item):
    return [*range(len(item["responses"]))]


def rank(site, name, item, ranks=None, **said):
    """Rank an item, by default in the order in which it is shown: (status, text)."""
    n = len(item["responses"])
    said = dict(ratings=[4] * n, boxes=[[]] * n) | said
    return site.ask("/rank", dict(said, name=name, key=item["key"], ranks=ranks or in_order(item)))


def items_of(site, name):
    return site.get(f"/items?name={quote(name)}")["items"]


def test_people_see_the_same_items_with_the_answers_in_orders_of_their_own(site, class_file):
    ana, ben = items_of(site, "Ana"), items_of(site, "Ben")
    assert [i["key"] for i in ana] == [i["key"] for i in ben] and ana == items_of(site, "Ana")
    answers = [(a["responses"], b["responses"]) for a, b in zip(ana, ben)]
    assert all(sorted(a) == sorted(b) for a, b in answers) and any(a != b for a, b in answers)
    assert "grades" not in ana[0]


def test_what_each_person_says_of_an_item_is_in_the_file_and_comes_back(site, class_file):
    """What each answer got, who said it, when, and where it stood on the page."""
    item = next(i for i in items_of(site, "Ana") if len(i["responses"]) == 3)
    same = next(i for i in items_of(site, "Ben") if i["key"] == item["key"])
    assert rank(site, "Ana", item, [1, 0, 0])[0] == rank(site, "Ben", same, [2, 0, 1])[0] == 200
    ana, ben = read_comparisons(class_file)
    assert ana["prompt"] == item["prompt"] and (ana["labeler"], ben["labeler"]) == ("Ana", "Ben")
    assert ana["responses"][2] == item["responses"][0] and ana["ranks"] == [0, 0, 1]
    assert ben["responses"] == [same["responses"][i] for i in (1, 2, 0)]
    # Ana changes her mind; the page shows it when she comes back
    began = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    said = dict(ratings=[1, 7, 4], boxes=[["wrong", "invents"], [], ["breaks off"]])
    assert rank(site, "Ana", item, [2, 0, 1], **said)[0] == 200
    rows, (a, b, c) = read_comparisons(class_file), item["responses"]
    [row] = [row for row in rows if row["labeler"] == "Ana"]
    assert len(rows) == 2 and row["responses"] == [b, c, a] and row["ranks"] == [0, 1, 2]
    assert "grades" not in row                        # they belong to another order
    assert row["ratings"] == [7, 4, 1] and row["places"] == [1, 2, 0]
    assert row["boxes"] == [[], ["breaks off"], ["wrong", "invents"]]
    assert began <= row["time"] <= time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    again = next(i for i in items_of(site, "Ana") if i["key"] == item["key"])
    assert {name: again[name] for name in said} == said and again["ranks"] == [2, 0, 1]


@pytest.mark.parametrize("said", [
    *(dict(ranks=ranks) for ranks in ([0], [0, 2, 3], [1, 2, 2], [0, 1, 2, 3], [0, -1, 1],
                                      ["a"] * 3, [0, 1, 99], [0.5, 1, 2])),
    *(dict(name=name) for name in ("", " \n ", "x" * 41, "Ben")),
    *(dict(ratings=ratings) for ratings in ([4, 4], [4, 4, 8], [0, 4, 4], [])),
    dict(boxes=[[]]), dict(boxes=[[], [], ["rude"]])], ids=str)
def test_no_ranking_no_name_and_no_rating_from_1_to_7_are_refused_and_nothing_is_saved(
        site, class_file, said, monkeypatch):
    monkeypatch.setattr(rankings, "MAX_PEOPLE", int("Ben" not in said.values()))   # it has an end
    item = next(i for i in items_of(site, "Ana") if len(i["responses"]) == 3)
    status, text = rank(site, **dict(name="Ana", item=item, ranks=[0, 0, 0]) | said)
    assert status == 422 and "\n" not in text and not class_file.exists()


def test_the_habits_of_a_person_are_counted_over_the_pairs_that_are_not_tied():
    """Ana ranks by length alone; Ben always likes best what stands first, which is the worst."""
    rows = [dict(prompt=f"{i}?", responses=["long enough", "short", "mid one"], ranks=[0, 2, 1],
                 places=[2, 0, 1], grades=[3.0, 5.0, 5.0]) for i in range(4)]
    items = {rankings.key_of(row): row for row in rows}

    def habits(order, ranks):
        return rankings.habits([dict(row, ranks=ranks, **{
            name: [row[name][i] for i in order] for name in ("responses", "places")})
            for row in rows], items)

    found = habits([0, 2, 1], [0, 1, 2])
    assert found["longer"]["share"] == 1 and found["longer"]["pairs"] == 12
    assert found["first"]["share"] == 0 and found["judge"]["share"] == 0
    assert found["judge"]["pairs"] == 8               # two answers have the same grade
    assert (found["longer"]["low"], found["longer"]["high"]) == wilson(1, 4)      # four prompts
    found = habits([1, 2, 0], [0, 1, 1])              # the last two are tied
    assert found["first"] == found["judge"] | dict(pairs=8) and found["first"]["share"] == 1
    assert habits([1, 2, 0], [0, 0, 0]) == dict(judge=None, longer=None, first=None)


def test_the_command_on_the_page_trains_the_reward_model(site, class_file, capsys):
    for name in ("Ana", "Ben"):
        for item in items_of(site, name)[:30]:
            assert rank(site, name, item)[0] == 200
    words = site.get("/agreement")["command"].split()
    assert words[:2] == ["python", "reward.py"]
    assert tiny.run(site.folder, "reward", *words[2:])[0] == 0, capsys.readouterr().err
    (site.folder / "class_reward.pt").unlink()


def test_what_another_program_adds_to_the_file_is_not_lost(site, class_file):
    first, second = items_of(site, "Ana")[:2]
    rank(site, "Ana", first)
    row = dict(json.loads(class_file.read_text()), labeler="Zoe")
    class_file.write_text(class_file.read_text() + json.dumps(row) + "\n" + '{"prompt": "half\n')
    assert items_of(site, "Ana")[0]["ranks"] == in_order(first)       # in spite of a torn line
    rank(site, "Ana", second)
    assert [r["labeler"] for r in read_comparisons(class_file)] == ["Ana", "Zoe", "Ana"]
    class_file.write_text("not ours\n")
    status, text = rank(site, "Ana", first)
    assert status == 422 and "class.jsonl has other rows than rankings: move it away" in text
    assert class_file.read_text() == "not ours\n"


# ---------------------------------------------------------------------------------------------
# in a browser

# The page asks the server every two seconds; here it asks sooner.
HURRY = "(wait => { setTimeout = (act, ms) => wait(act, Math.min(ms, 100)) })(setTimeout)"


class Tab:
    """The page in the browser."""

    def __init__(self, browser, site):
        self.script, self.log = browser.execute_script, lambda: browser.get_log("browser")
        browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", dict(source=HURRY))
        browser.get(site.url)
        self.script("localStorage.clear()")
        browser.get(site.url)
        self.until("document.querySelectorAll('#chat .bar[role=group] button').length === 3")

    def until(self, condition):
        end = time.monotonic() + 10
        while not (found := self.script(f"return {condition}")):
            assert time.monotonic() < end, f"{condition}\n{self.text('main')}"
            time.sleep(0.02)
        return found

    def text(self, selector):
        return self.script("return document.querySelector(arguments[0]).innerText", selector)

    def tokens(self, n):
        """The probabilities below the tokens of the n-th answer, as the page shows them."""
        return self.script("""return [...[...document.querySelectorAll('.answer')].at(arguments[0])
            .querySelectorAll('.tokens .tok small')].map(t => t.innerText)""", n)

    def press(self, selector, n=0):
        self.script("document.querySelectorAll(arguments[0])[arguments[1]].click()", selector, n)

    def set(self, selector, value):
        self.script("document.querySelector(arguments[0]).value = arguments[1]", selector, value)

    def send(self, text, temperature=0):
        self.set("#question", text), self.set("#temperature", temperature)
        self.press("#ask")

    def join(self, name):
        self.set("#name", name)
        self.script("document.querySelector('#done')?.remove()")      # that of the last person
        self.press("#join")
        self.until("document.querySelector('#done') !== null")

    def rank(self, order, done=None):
        """Rate all answers 4, click them in this order, and wait until so many items are ranked."""
        for i in order:
            self.press(".rate", 7 * i + 3)
        for i in order:
            self.press(".rank", i)
        if done:
            self.until(f"document.querySelector('#done').innerText.startsWith('{done} of')")

    def answered(self, n):
        self.until(f"document.querySelectorAll('.answer .score').length === {n}")


def shown(event):
    return [f"{token['p']:.2f}" for token in event["tokens"]]


@pytest.fixture
def tab(browser, site, class_file):
    tab = Tab(browser, site)
    yield tab
    assert tab.log() == []


def test_the_page_streams_answers_and_shows_their_tokens(tab, site, slow):
    tab.send("Where is Ada?")
    tab.until("document.querySelector('.answer .said').innerText.length > 2")
    assert not tab.script("return document.querySelector('.answer .tok')")    # still being written
    tab.answered(3)
    done = site.done(*(question(m) for m in ("pretrain", "sft", "ppo")))
    for n, event in enumerate(done):
        assert tab.tokens(n) == shown(event)
        said = tab.script("return document.querySelectorAll('.answer')[arguments[0]].innerText", n)
        assert f"score {event['score']:.2f}" in said
    assert "continues your text" in tab.text(".answer")


def test_a_token_shows_its_alternatives_and_the_answer_goes_on_with_one(tab, site):
    tab.send("Where is Ada?")
    tab.answered(3)
    [event] = site.done(question())
    tab.press(".answer:last-child .tokens .tok", 2)
    shares = tab.script("return [...document.querySelectorAll('.top .n')].map(c => c.innerText)")
    assert shares == [f"{100 * a['p']:.1f}%" for a in event["tokens"][2]["top"]]
    at = next(i for i, a in enumerate(event["tokens"][2]["top"]) if i and not a["special"])
    tab.press(".top .tok", at)
    prefix = [t["id"] for t in event["tokens"][:2]] + [event["tokens"][2]["top"][at]["id"]]
    [again] = site.done(question(prefix=prefix))
    tab.until("document.querySelectorAll('.answer .score').length === 3 && "
              "!document.querySelector('.top')")
    assert tab.tokens(-1) == shown(again)


def test_a_dialogue_goes_on_and_can_be_stopped_and_begun_anew(tab, site, slow):
    tab.press("#chat .bar[role=group] button", 0)     # without the base model
    tab.press("#chat .bar[role=group] button", 1)
    tab.send("Where is Ada?")
    tab.answered(1)
    tab.send("And Ben?")
    tab.answered(2)
    first = site.done(question())[0]["raw"]
    second = site.done(question("ppo", "Where is Ada?", first, "And Ben?"))[0]
    assert tab.tokens(0) == shown(second)
    tab.send("And Cem?")
    tab.until("document.querySelector('.answer .said').innerText.length > 1")
    tab.press("#ask")
    tab.until("document.querySelector('.answer').innerText.includes('stopped')")
    tab.press("#fresh")
    assert tab.text("#log") == ""


def test_answers_are_ranked_when_all_are_rated_and_boxes_may_be_ticked(tab, site, class_file):
    tab.join("Ana")
    ready = "return !document.querySelector('.rank').disabled"
    item = items_of(site, "Ana")[0]
    for i in in_order(item):
        assert not tab.script(ready)
        tab.press(".rate", 7 * i + i)
    tab.script("document.querySelectorAll('.box')[6].focus()")
    tab.press(".box", 4 * 1 + 2)
    assert tab.script("return document.activeElement.innerText") == "breaks off"
    assert tab.script(ready) and tab.text(".box:nth-child(10)") == "breaks off"
    for i in in_order(item):
        tab.press(".rank", i)
    tab.until("document.querySelector('#done').innerText.startsWith('1 of')")
    [row] = read_comparisons(class_file)
    assert row["ratings"] == [i + 1 for i in in_order(item)]
    assert row["boxes"] == [["breaks off"] if i == 1 else [] for i in in_order(item)]


def test_the_table_shows_how_often_two_people_agree_and_the_habits_of_each(tab, site, class_file):
    for name in ("Ana", "Ben"):
        tab.join(name)
        for n, item in enumerate(items_of(site, name)[:6], 1):
            tab.rank(in_order(item), n)
    assert [row["labeler"] for row in read_comparisons(class_file)] == ["Ana"] * 6 + ["Ben"] * 6
    same, pairs = (site.get("/agreement")[name] for name in ("same", "pairs"))
    tab.until(f"document.querySelector('#agreement')?.innerText.includes('{same} of {pairs} ')")
    assert f"{100 * same / pairs:.1f}%" in tab.text("#agreement")
    cells = tab.script("return [...document.querySelectorAll('#class td')].map(x => x.innerText)")
    assert cells[0::5] == ["Ana", "Ben"] and cells[1::5] == ["6", "6"] and "%" in cells[2]
    assert all(cell.startswith("100%") for cell in cells[4::5])       # what stood first was best
    assert tab.text("#command").startswith(f"python reward.py --data={class_file} ")


def test_equal_answers_share_a_rank_and_back_takes_a_click_back(tab, site, class_file):
    tab.join("Ana")
    for item in items_of(site, "Ana"):
        if len(item["responses"]) == 3:
            break
        tab.press("#moves button:nth-child(3)")                       # skip
    for i in (1, 2):
        tab.press(".rate", 7 * i)
    tab.rank([0])
    tab.press("#moves button:nth-child(2)")           # back
    tab.rank([2])
    tab.press("#moves button:nth-child(1)")           # the next is equally good
    tab.rank([1, 0], 1)
    [row] = read_comparisons(class_file)
    assert row["ranks"] == [0, 0, 1] and row["responses"][2] == item["responses"][0]


def test_a_ranking_that_is_not_saved_stays_on_the_screen_and_is_sent_again(
        tab, site, class_file, capfd):
    class_file.touch(0o444)
    class_file.chmod(0o444)
    tab.join("Ana")
    item = items_of(site, "Ana")[0]
    tab.rank(in_order(item))
    tab.until("document.querySelector('#again') !== null")
    assert "class.jsonl is read-only" in capfd.readouterr().err
    assert "can't be written" in tab.text("#class [role=alert]")
    assert tab.text("#done").startswith("0 of") and item["responses"][0] in tab.text("#class .rank")
    assert [e["message"] for e in tab.log() if "507" not in e["message"]] == []
    class_file.chmod(0o644)
    tab.press("#again")
    tab.rank([], 1)
    [row] = read_comparisons(class_file)
    assert row["responses"] == item["responses"] and tab.text("#class [role=alert]") == ""


def test_the_page_draws_the_curves_and_they_grow(tab, site):
    points = "document.querySelector('#curves polyline')?.getAttribute('points').split(' ').length"
    tab.until(f"{points} === 3")
    path = site.folder / "pretrain.jsonl"
    before = path.read_text()
    path.write_text(before + '{"step": 4, "loss": 1.0}\n{"step": 5, "lo')     # being written
    tab.until(f"{points} === 4")
    path.write_text(before)


def test_text_stays_text(browser, site, class_file, tmp_path):
    """Hostile questions, answers, names and file names show as what they are."""
    evil = "<b id='hacked'>.pt"
    for name in (evil, "ppo.pt", "sft.pt"):
        shutil.copy(site.folder / "sft.pt", tmp_path / name)
    tiny.write(tmp_path / "comparisons.jsonl", dict(prompt=HOSTILE, responses=[HOSTILE, "b"]))
    with Site(folder=str(tmp_path), token="secret-secret") as other:
        other.url += "/?token=secret-secret"          # the page asks with the token of its link
        tab = Tab(browser, other)
        tab.send(HOSTILE)
        tab.until("document.querySelectorAll('.answer .tokens').length === 3")
        assert tab.text("#log .asked") == SHOWN and evil[:-3] in tab.text("#chat .bar")
        tab.join(HOSTILE[:34])
        assert SHOWN in tab.text("#class .asked") and SHOWN in tab.text("#class .view")
        tab.rank([0, 1], 1)
        named = json.dumps(HOSTILE[:34])
        tab.until("document.querySelector('#class td')?.innerText === " + named)
        found = tab.script("return [typeof hacked, document.images.length]")
        assert found == ["undefined", 0] and tab.log() == []
        browser.get("about:blank")                    # it must not ask a server that has gone


def test_the_page_speaks_both_languages(tab):
    assert tab.text("h1") == "From text to assistant: live"
    tab.until("document.querySelector('#command') !== null")          # nobody has ranked yet
    assert "null" not in tab.text("#class") and "people have ranked" in tab.text("#class")
    tab.press("#switch")
    assert tab.text("h1") == "从文本到助手：实时网页" and "温度" in tab.text("#chat")
    assert "temperature" not in tab.text("#chat")
