"""The HTTP side: OpenAI's paths, errors in OpenAI's words, limits, streams of server-sent events."""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from .. import __version__
from ..errors import PVChatError
from ..session import MAX_NEW_TOKENS, Piece
from .engine import Engine
from .schema import (
    AnswerMessage,
    ChatChunk,
    ChatCompletion,
    ChatRequest,
    Choice,
    ChunkChoice,
    Delta,
    ErrorBody,
    ErrorDetail,
    Health,
    Model,
    ModelList,
    Usage,
)
from .videos import AllowedVideos
from .worker import Busy, Worker

logger = logging.getLogger("uvicorn.error")
KINDS = {404: "not_found_error", 413: "invalid_request_error", 429: "rate_limit_error", 500: "server_error"}


@dataclass(frozen=True)
class Limits:
    """What one client may ask for.

    Args:
        tokens: of an answer. queue: requests that are not answered yet. body: bytes of a request.
    """

    tokens: int = 256
    queue: int = 32
    body: int = 1_000_000

    def __post_init__(self):
        if min(self.tokens, self.queue, self.body) < 1:
            raise PVChatError(f"Limits must be at least 1, got {self}.")


class RequestError(Exception):
    """An answer other than 200: status, message, and OpenAI's code."""

    def __init__(self, status: int, message: str, code: str | None = None):
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


def create_app(engine: Engine, videos: AllowedVideos, limits: Limits | None = None) -> FastAPI:
    """The server as an ASGI application."""
    limits = limits or Limits()
    worker = Worker(limits.queue)
    started = int(time.time())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        worker.close()

    app = FastAPI(title="pvchat", version=__version__, lifespan=lifespan)
    app.add_middleware(BodyLimit, limit=limits.body)
    _answer_errors(app)
    wrong = {status: {"model": ErrorBody} for status in (400, 404, 413, 429, 500)}

    @app.get("/health", responses={500: wrong[500]})
    async def health() -> Health:
        return Health(waiting=worker.waiting, loaded=engine.loaded)

    @app.get("/v1/models", responses={500: wrong[500]})
    async def models() -> ModelList:
        return ModelList(data=[Model(id=name, created=started) for name in engine.models])

    @app.get("/v1/models/{name:path}", responses={status: wrong[status] for status in (400, 404, 500)})
    async def model(name: str) -> Model:
        return Model(id=_known(engine, name), created=started)

    @app.post("/v1/chat/completions", response_model=ChatCompletion, responses=wrong)
    async def chat_completions(request: ChatRequest) -> Response:
        name = _known(engine, request.model)
        tokens = request.max_completion_tokens or request.max_tokens or min(MAX_NEW_TOKENS, limits.tokens)
        if tokens > limits.tokens:
            raise RequestError(400, f"max_tokens may be up to {limits.tokens} here, got {tokens}.")
        try:
            question, url = request.question_and_video()
            video = videos.find(url)
        except ValueError as error:
            raise RequestError(400, str(error)) from error
        pieces = worker.stream(lambda: engine.stream(name, video, question, tokens))
        try:
            first = await anext(pieces)  # before the status is sent: whatever is wrong shows by now
            if not request.stream:
                return _whole(name, [first, *[piece async for piece in pieces]])
        except Busy as error:
            raise RequestError(429, "The server is busy; try again in a moment.", "queue_full") from error
        except PVChatError as error:
            raise RequestError(400, str(error).replace(str(video), Path(url).name)) from error
        usage = request.stream_options is not None and request.stream_options.include_usage
        return StreamingResponse(_events(name, first, pieces, usage), media_type="text/event-stream")

    app.openapi_schema = _documented(app.openapi())
    return app


def _known(engine: Engine, name: str) -> str:
    if name not in engine.models:
        raise RequestError(404, f"There is no model {name!r}; see /v1/models.", "model_not_found")
    return name


# -- answers ----------------------------------------------------------------------------------------------------------


def _whole(name: str, pieces: Sequence[Piece]) -> Response:
    choice = Choice(message=AnswerMessage(content="".join(p.text for p in pieces)), finish_reason=pieces[-1].finish)
    answer = ChatCompletion(**_head(name), choices=[choice], usage=_usage(pieces[-1]))
    return Ascii(answer.model_dump())


async def _events(name: str, first: Piece, rest: AsyncIterator[Piece], usage: bool) -> AsyncIterator[str]:
    """Server-sent events of an answer: a role, pieces, an end, the usage if asked for, and `[DONE]`."""
    head = _head(name)

    def event(delta: Delta, finish: str | None = None) -> str:
        return _event(ChatChunk(**head, choices=[ChunkChoice(delta=delta, finish_reason=finish)]))

    yield event(Delta(role="assistant", content=""))
    piece = first
    try:
        while True:
            if piece.text:
                yield event(Delta(content=piece.text))
            if piece.finish is not None:
                break
            piece = await anext(rest)
    except PVChatError as error:
        yield f"data: {json.dumps(_error_body(400, str(error)))}\n\n"
        return
    except Exception:  # the status is sent: the client learns it here, the operator from the log
        logger.exception("The answer broke off.")
        yield f"data: {json.dumps(_error_body(500, 'The server failed; the answer is not complete.'))}\n\n"
        return
    finally:
        await rest.aclose()
    yield event(Delta(), piece.finish)
    if usage:
        yield _event(ChatChunk(**head, choices=[], usage=_usage(piece)))
    yield "data: [DONE]\n\n"


def _event(chunk: ChatChunk) -> str:
    return f"data: {json.dumps(chunk.model_dump(exclude_none=True))}\n\n"


def _head(name: str) -> dict[str, Any]:
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": name}


def _usage(last: Piece) -> Usage:
    return Usage(
        prompt_tokens=last.prompt_tokens,
        completion_tokens=last.new_tokens,
        total_tokens=last.prompt_tokens + last.new_tokens,
    )


# -- errors -----------------------------------------------------------------------------------------------------------


class Ascii(JSONResponse):
    """JSON with escapes, which can hold whatever a client wrote."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content).encode("ascii")


def _error_body(status: int, message: str, code: str | None = None) -> dict[str, Any]:
    kind = KINDS.get(status, "invalid_request_error")
    return ErrorBody(error=ErrorDetail(message=message, type=kind, code=code)).model_dump()


def _answer_errors(app: FastAPI) -> None:
    """Makes every error an `ErrorBody`, with OpenAI's 400 for what FastAPI calls 422."""

    @app.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> Response:
        headers = {"Retry-After": "1"} if error.status == 429 else None
        return Ascii(_error_body(error.status, error.message, error.code), error.status, headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        return Ascii(_error_body(400, f"{where}: {first['msg']}" if where else first["msg"]), 400)

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> Response:
        return Ascii(_error_body(error.status_code, str(error.detail)), error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        # uvicorn closes the connection after a defect; a client that is not told sends its next request into it.
        return Ascii(_error_body(500, "The server failed; its log says why."), 500, {"Connection": "close"})


def _documented(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema without FastAPI's 422, which is never answered, and with the stream (an event of it) as a second kind
    of answer."""
    for path in schema["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
    for name in ("HTTPValidationError", "ValidationError"):
        schema["components"]["schemas"].pop(name, None)
    answers = schema["paths"]["/v1/chat/completions"]["post"]["responses"]["200"]["content"]
    data = {"type": "string", "description": "a chunk as JSON, an error as JSON, or [DONE]"}
    answers["text/event-stream"] = {"schema": {"type": "object", "properties": {"data": data}, "required": ["data"]}}
    return schema


class BodyLimit:
    """ASGI middleware: a request whose body is too long is answered 413, whether or not it says its length.

    The body is read here, at most `limit` bytes of it, and handed on in one piece.
    """

    def __init__(self, app: Any, limit: int):
        self.app, self.limit = app, limit

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        said = dict(scope["headers"]).get(b"content-length", b"0")
        body, more = b"", True
        while more and len(body) <= self.limit and not (said.isdigit() and int(said) > self.limit):
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
        if more or len(body) > self.limit:
            error = _error_body(413, f"The request may have {self.limit} bytes.", "request_too_large")
            await Ascii(error, 413, {"Connection": "close"})(scope, receive, send)
            return
        whole = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def replay() -> dict[str, Any]:
            return next(whole, None) or await receive()

        await self.app(scope, replay, send)
