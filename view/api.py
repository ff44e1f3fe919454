"""OpenAI's chat completions, as far as view.page speaks them: what a program may ask for, and what
it gets. Source: https://platform.openai.com/docs/api-reference/chat"""

import re
import secrets
import time
from typing import Annotated, Any, Literal

from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field, field_validator, model_validator

from common import to_json

Text = Annotated[str, Field(max_length=4000)]
Heat = Annotated[float, Field(ge=0, le=5, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class Message(BaseModel):
    role: Literal["system", "user", "assistant"]
    content: Text


class Dialogue(BaseModel, extra="forbid"):
    model: Annotated[str, Field(max_length=200)]
    messages: Annotated[list[Message], Field(min_length=1, max_length=100)]
    temperature: Heat = 0.7                           # as on the page
    top_p: Annotated[float, Field(ge=0, le=1)] = 1.0
    max_tokens: Count = 10**9                         # the server has a limit of its own
    max_completion_tokens: Count = 10**9              # the new name of max_tokens
    stop: Annotated[list[Annotated[Text, Field(min_length=1)]], Field(max_length=16)] = []
    seed: int | None = None
    stream: bool = False
    n: Literal[1] = 1
    tools: Any = None                                 # our models call none, which "auto" allows
    tool_choice: Literal["auto", "none"] = "auto"
    user: Any = None                                  # this one and the next two change no answer
    metadata: Any = None
    stream_options: Any = None
    prefix = property(lambda self: [])                # as in an Ask of the page

    @model_validator(mode="before")
    def tidy(body):
        """Programs also send what they do not use, as null, 0 or []. One stop needs no list."""
        if not isinstance(body, dict):
            return body
        used = {name: value for name, value in body.items()
                if value is not None and (value or name in Dialogue.model_fields)}
        return used | (dict(stop=[body["stop"]]) if isinstance(body.get("stop"), str) else {})

    @field_validator("messages")
    def by_turns(messages):
        if not re.fullmatch("s?(ua)*u", "".join(message.role[0] for message in messages)):
            raise ValueError("after a system message, if any, user and assistant take turns, and "
                             "the user has the last word")
        return [message.model_dump() for message in messages]


def refusal(text):
    return dict(error=dict(message=text, type="invalid_request_error", param=None, code=None))


async def pieces(dialogue, events):
    """The events of an answer -> the pieces of a response. First come its status and type: until
    the model begins to answer, or has answered if no stream was asked for, the worker may refuse.
    """
    stream, begun, said = dialogue.stream, False, ""
    head = dict(id=f"chatcmpl-{secrets.token_hex(12)}", created=int(time.time()),
                model=dialogue.model, object="chat.completion" + ".chunk" * stream)

    def answer(text, reason=None, usage=None):
        message = dict(role="assistant", content=text)
        choice = {"index": 0, "delta" if stream else "message": message, "finish_reason": reason}
        return head | dict(choices=[choice], usage=usage)

    async for event in events:
        body, status = None, 200
        if event["kind"] == "error":
            body, status = refusal(event["text"]), event.get("status", 500)
        elif event["kind"] == "done":
            n, m = event["counts"]
            body = answer("" if stream else said, event["reason"], dict(
                prompt_tokens=n, completion_tokens=m, total_tokens=n + m))
        elif event["kind"] in ("start", "text"):
            said += event["text"]
            body = answer(event["text"]) if stream else None
        if body and not begun:
            begun, stream = True, stream and status == 200
            yield status, "text/event-stream" if stream else "application/json"
        if body:
            yield f"data: {to_json(body)}\n\n" if stream else to_json(body)
    if stream:
        yield "data: [DONE]\n\n"


class Late(StreamingResponse):
    """Its content yields status and type first. Who hangs up before that is noticed, too."""

    async def stream_response(self, send):
        self.status_code, self.headers["content-type"] = await anext(self.body_iterator)
        await super().stream_response(send)
