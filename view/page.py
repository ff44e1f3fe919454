"""The live page: talk to several checkpoints side by side, watch the curves of a stage grow, and
rank answers with a class. It serves this computer only, unless you give --host and --token.

reads   the checkpoints and logs in a folder, and its comparisons.jsonl for answers to rank
writes  class.jsonl in that folder: the rankings of all people, in the format of compare.py

One thread generates, and all questions wait in one queue. Stop with Ctrl-C.

    python -m view.page              # programs find OpenAI's API at http://127.0.0.1:8000/v1
    python -m view.page --folder=out/seed1 --port=9000
    python -m view.page --host=0.0.0.0 --token=SECRET     # for a class; the first line is the link
"""

import hmac
import ipaddress
import os
import re
import secrets
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import chat
from common import Runtime, fail, parse_config, to_json
from tools.rankings import BOXES, Rankings, stamp
from tools.speakers import Job, Shelf, Worker
from view.report import render
from view.views import STAGES, logs

try:
    import uvicorn
    from fastapi import FastAPI, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import (HTMLResponse, JSONResponse, PlainTextResponse,
                                   StreamingResponse)
    from pydantic import BaseModel, Field, StringConstraints
    from starlette.exceptions import HTTPException
    from uvicorn.protocols.http.h11_impl import H11Protocol

    from view import api
except ImportError as error:
    fail(f"{error}: `pip install -r requirements.txt` brings FastAPI and uvicorn")


@dataclass
class Config:
    folder: str = "out"            # where the stages write
    host: str = "127.0.0.1"        # another one lets other computers in, and needs --token
    port: int = 8000
    token: str = ""                # a secret of at least 8 letters and digits, part of the link
    max_new_tokens: int = 64       # of one answer
    device: str = "auto"           # auto: cuda, else cpu; mps when asked
    dtype: str = "float32"         # small models: speed does not matter here
    debug: bool = False            # show tracebacks


MAX_BODY = 64 * 1024      # bytes of one request
MAX_MODELS = 8            # that answer one question
MAX_CONNECTIONS = 200     # of one address; a class may share one
PATIENCE = 10             # seconds in which a request must arrive


# ---- who may ask what -----------------------------------------------------------------------

def is_local(host):
    return host in ("localhost", "127.0.0.1", "::1")


def is_ours(host, config):
    """Whether a Host is one of this server's. DNS rebinding gives a strange page's name the address
    of this computer, so only names that we know will do. An address is no name."""
    anywhere = not is_local(config.host)
    try:
        name = urlsplit(f"//{host}").hostname or ""
        if name == "localhost" or anywhere and name in (config.host, socket.gethostname().lower()):
            return True
        return ipaddress.ip_address(name).is_loopback or anywhere
    except ValueError:
        return False


def check(request, config):
    """Let through only what our own page asks, and with a --token only who knows it."""
    get = request.headers.get
    host, origin = get("host", ""), get("origin")
    given = request.query_params.get("token") or get("authorization", "").removeprefix("Bearer ")
    if not is_ours(host, config):
        raise HTTPException(403, "wrong Host: this is not an address of view.page")
    # the page itself may be opened by a link elsewhere; only our page may do more
    if (origin is not None and origin.partition("://")[2] != host
            or get("sec-fetch-site") == "cross-site" and request.url.path != "/"):
        raise HTTPException(403, "wrong Origin")
    if config.token and not hmac.compare_digest(given.encode(), config.token.encode()):
        raise HTTPException(401, "the link must end in ?token=..., which is also a program's key")
    if "transfer-encoding" in request.headers or int(get("content-length", 0)) > MAX_BODY:
        raise HTTPException(413, "this is too long")


class Connection(H11Protocol):
    """Closes a connection that asks nothing, or only half a request, and what is too much from one
    address. (From this computer a proxy may come, with the requests of many.)"""

    def connection_made(self, transport):
        super().connection_made(transport)
        address = self.client and self.client[0]
        same = sum(other.client is not None and other.client[0] == address
                   for other in self.connections)
        if same > MAX_CONNECTIONS and not ipaddress.ip_address(address).is_loopback:
            transport.close()
        self.loop.call_later(PATIENCE, self.look, None)

    def look(self, before):
        """before: the request at the last look."""
        if self.cycle is before and (before is None or before.response_complete
                                     or before.more_body):
            self.transport.close()
        elif not self.transport.is_closing():
            self.loop.call_later(PATIENCE, self.look, self.cycle)


class Json(JSONResponse):
    def render(self, content):
        return to_json(content).encode()


def headers(nonce):
    return {
        "content-security-policy": f"default-src 'none'; script-src 'nonce-{nonce}'; "
        "style-src 'unsafe-inline'; img-src data:; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'",
        "cross-origin-resource-policy": "same-origin", "cross-origin-opener-policy": "same-origin",
        "x-content-type-options": "nosniff", "referrer-policy": "no-referrer",
        "cache-control": "no-store"}


# ---- what can be asked ----------------------------------------------------------------------

Name = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=40)]


class Ask(BaseModel):
    """A question to one model. Its texts are by turns the person's and the model's; prefix: the ids
    with which the answer begins."""
    model: Annotated[str, Field(max_length=200)]
    texts: Annotated[list[api.Text], Field(min_length=1, max_length=99)]
    prefix: Annotated[list[int], Field(max_length=4096)] = []

    @property
    def messages(self):
        return [dict(role=("user", "assistant")[i % 2], content=text)
                for i, text in enumerate(self.texts)]


class Question(BaseModel):
    asks: Annotated[list[Ask], Field(min_length=1, max_length=MAX_MODELS)]
    temperature: api.Heat = 0.7
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] = 0


class Ranking(BaseModel):
    name: Name
    key: Annotated[str, Field(max_length=12)]
    ranks: Annotated[list[Annotated[int, Field(ge=0, lt=100)]], Field(min_length=2, max_length=100)]
    ratings: Annotated[list[Annotated[int, Field(ge=1, le=7)]], Field(max_length=100)]
    boxes: Annotated[list[Annotated[list[BOXES], Field(max_length=4)]], Field(max_length=100)]


# ---- the server -----------------------------------------------------------------------------

def make_app(config):
    folder = Path(config.folder)
    rankings, worker = Rankings(folder), Worker(Shelf(folder, Runtime(config)))
    worker.shelf.refresh()
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, default_response_class=Json)

    @app.exception_handler(HTTPException)
    @app.exception_handler(RequestValidationError)
    @app.exception_handler(ValueError)
    @app.exception_handler(OSError)
    def refused(request, error):
        if isinstance(error, HTTPException):
            status, text = error.status_code, error.detail
        elif isinstance(error, RequestValidationError):
            first, status = error.errors()[0], 422
            text = f"{first['loc'][-1]}: {first['msg']}"
        else:
            status, text = 507 if isinstance(error, OSError) else 422, str(error)
        if request.url.path.startswith("/v1/"):       # a program, which expects OpenAI's form
            return Json(api.refusal(text), 400 if status == 422 else status)
        return PlainTextResponse(text, status)        # a person

    @app.middleware("http")
    async def guard(request, call_next):
        request.state.nonce = secrets.token_urlsafe(16)
        try:
            check(request, config)
            response = await call_next(request)
        except HTTPException as error:
            response = refused(request, error)
        response.headers.update(headers(request.state.nonce))
        return response

    @app.get("/")
    def page(request: Request):
        parts = dict(nonce=request.state.nonce)
        return HTMLResponse(render("page.html", parts, dict(folder=str(folder))))

    @app.get("/state")
    async def state():
        """What there is; the page asks every two seconds, and for more when something changed."""
        return dict(models=await worker.names(), waiting=len(worker.waiting),
                    curves=[stamp(folder / f"{stage}.jsonl") for stage in STAGES],
                    rankings=stamp(rankings.out))

    @app.get("/curves")
    def curves():
        """The logs without what is not drawn, such as samples."""
        return {stage: [{name: value for name, value in row.items() if not isinstance(value, list)}
                        for row in rows] for stage, rows in logs(folder).items()}

    @app.get("/items")
    def items(name: Name):
        return dict(name=name, items=rankings.of(name))

    @app.get("/agreement")
    def agreement():
        return rankings.summary()

    @app.post("/rank")
    def rank(answer: Ranking):
        try:
            rankings.add(**answer.model_dump())
        except SystemExit:                            # common.fail has said it on the terminal
            raise OSError(f"{rankings.out} can't be written: the terminal says why") from None
        return dict(saved=True)

    @app.post("/ask")
    async def ask(question: Question):
        if any(len(a.texts) % 2 == 0 for a in question.asks):
            raise ValueError("the last text must be a question")
        job = Job(question.asks, chat.Config(temperature=question.temperature, top_k=question.top_k,
                                             max_new_tokens=config.max_new_tokens))
        events = (f"data: {to_json(event)}\n\n" async for event in worker.events(job))
        return StreamingResponse(events, media_type="text/event-stream")

    @app.get("/v1/models")
    async def models():
        return dict(object="list", data=[
            dict(id=model["name"], object="model", created=0, owned_by=model["stage"])
            for model in await worker.names()])

    @app.post("/v1/chat/completions")
    async def completions(asked: api.Dialogue):
        most = min(asked.max_tokens, asked.max_completion_tokens, config.max_new_tokens)
        job = Job([asked], chat.Config(temperature=asked.temperature, top_p=asked.top_p,
                                       max_new_tokens=most), True, asked.seed, asked.stop)
        return api.Late(api.pieces(asked, worker.events(job)))

    return app


def make_server(config):
    """A uvicorn server that listens already, on a socket of its own."""
    if not is_local(config.host) and not config.token:
        fail(f"--host={config.host} lets other computers in, so it needs a secret, such as "
             f"--token={secrets.token_urlsafe(12)}")
    if config.token and not re.fullmatch(r"[\w-]{8,100}", config.token, re.ASCII):
        fail("--token must be 8 to 100 letters, digits, - or _")
    if not Path(config.folder).is_dir():
        fail(f"--folder={config.folder} is not there: run a stage, or choose another --folder")
    try:
        family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
        listening = socket.create_server((config.host, config.port), family=family)
    except (OSError, OverflowError) as error:
        fail(f"--host={config.host} --port={config.port} can't be used "
             f"({getattr(error, 'strerror', None) or error}): choose another")
    return uvicorn.Server(uvicorn.Config(
        make_app(config), http=Connection, ws="none", lifespan="off", limit_concurrency=1000,
        server_header=False, log_level="error" if config.debug else "critical",
        timeout_graceful_shutdown=0)), listening


def link(config, listening):
    """What to open in a browser."""
    host = config.host
    if host in ("0.0.0.0", "::"):                     # all addresses: print one that others see
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, suppress(OSError):
            probe.connect(("192.0.2.1", 9))           # sends nothing, but chooses the address
            host = probe.getsockname()[0]
    host = f"[{host}]" if ":" in host else host
    secret = f"?token={config.token}" if config.token else ""
    return f"http://{host}:{listening.getsockname()[1]}/{secret}"


if __name__ == "__main__":
    config = parse_config(Config, __doc__)
    server, listening = make_server(config)
    print(f"{link(config, listening)}   (Ctrl-C ends it)", flush=True)
    try:
        server.run([listening])
    except KeyboardInterrupt:
        print()
    sys.stdout.flush()
    os._exit(130)                                     # without waiting for what is being generated
