"""The server's routes."""

import asyncio
import hmac
import itertools
import json
import logging
import time
from contextlib import asynccontextmanager
from typing import Any, AsyncIterator, Callable, Dict, Optional

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from longmem_fairseq.api.hub_interface import LongMem
from longmem_fairseq.serving.completion import Chunk, complete
from longmem_fairseq.serving.documents import Documents
from longmem_fairseq.serving.errors import RequestError
from longmem_fairseq.serving.model_queue import Canceled, ModelQueue
from longmem_fairseq.serving.requests import Completion, chat_of, completion_of
from longmem_fairseq.serving.responses import Format
from longmem_fairseq.utils.text_files import parse_json

logger = logging.getLogger(__name__)

BODY_SECONDS = 30.0  # that a client may take to send its request


class Service:
    """A model, its memory, and the line before them.

    Args:
        lm: the model
        name: of the model, for clients
        memory_path: file in which the memory is saved after each change
        timeout: seconds for a request
        max_body: bytes of a request
    """

    def __init__(
        self, lm: LongMem, name: str, memory_path: Optional[str], timeout: float, max_body: int
    ):
        self.lm, self.name, self.max_body = lm, name, max_body
        self.documents, self.queue = Documents(lm, memory_path), ModelQueue(timeout)
        self.created, self.numbers = int(time.time()), itertools.count(1)

    # --- routes ---

    async def models(self, request: Request) -> Response:
        """GET /v1/models: the one model."""
        entry = {"id": self.name, "object": "model", "created": self.created}
        return JSONResponse({"object": "list", "data": [{**entry, "owned_by": "longmem-fairseq"}]})

    async def completions(self, request: Request) -> Response:
        """POST /v1/completions."""
        return await self._complete(request, completion_of, chat=False)

    async def chat(self, request: Request) -> Response:
        """POST /v1/chat/completions."""
        return await self._complete(request, chat_of, chat=True)

    async def list_documents(self, request: Request) -> Response:
        """GET /memory: names and sizes of the documents, and of the memory."""
        listed = await self.queue.run(lambda _: (self.documents.listed(), self.documents.size()))
        return JSONResponse({"object": "list", "data": listed[0], **listed[1]})

    async def add_document(self, request: Request) -> Response:
        """POST /memory: memorizes a document.

        Raises:
            RequestError: a field is missing, unknown, or no text; or see :meth:`Documents.add`
        """
        body = await self._body(request)
        for field in body:
            if field not in ("name", "text"):
                raise RequestError(f"{field[:60]!r} is no field of a document: expected name, text")
        for field in ("name", "text"):
            value = body.get(field)
            if not isinstance(value, str) or not value:
                raise RequestError(f"{field} must be a text that is not empty", param=field)
            try:
                value.encode()
            except UnicodeEncodeError:
                message = f"{field} holds half of a surrogate pair, which is no text"
                raise RequestError(message, param=field) from None
        added = await self.queue.run(lambda _: self.documents.add(body["name"], body["text"]))
        return JSONResponse(added, status_code=201)

    async def forget_document(self, request: Request) -> Response:
        """DELETE /memory/NAME: forgets a document."""
        name = request.path_params["name"]
        await self.queue.run(lambda _: self.documents.forget(name))
        return JSONResponse({"name": name, "deleted": True})

    # --- answers ---

    async def _complete(
        self, request: Request, read: Callable[[LongMem, Dict], Completion], chat: bool
    ) -> Response:
        body = await self._body(request)
        if body.get("model") not in (None, self.name):
            message = f"model ({body['model']!r:.60}) is not served here: this is {self.name}"
            raise RequestError(message, 404, param="model", code="model_not_found")
        completion = await asyncio.to_thread(read, self.lm, body)  # a long prompt takes time
        answer = Format(chat, self.name, next(self.numbers))
        chunks = self.queue.stream(
            lambda ticket, emit: complete(self.lm, completion, ticket.check, emit)
        )
        if not completion.stream:
            whole = await _unless_gone(request, _collected(chunks))
            return (
                Response(status_code=499) if whole is None else JSONResponse(answer.answer(whole))
            )
        first = await _unless_gone(request, anext(chunks))  # an error before it has a status
        if first is None:
            return Response(status_code=499)
        events = _events(answer, first, chunks, completion.include_usage)
        return StreamingResponse(events, media_type="text/event-stream")

    async def _body(self, request: Request) -> Dict[str, Any]:
        """The JSON object that a request brings.

        Raises:
            RequestError: there is none, or it is too large or too slow
        """
        kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
        if kind != "application/json":  # any page that a browser shows could send others
            raise RequestError(f"Content-Type ({kind[:60]}) must be application/json", 415)
        try:
            async with asyncio.timeout(BODY_SECONDS):
                parts, size = [], 0
                async for part in request.stream():
                    size += len(part)
                    if size > self.max_body:
                        message = f"a request may have {self.max_body:,} bytes (--max-body)"
                        raise RequestError(message, 413, code="too_large")
                    parts.append(part)
        except TimeoutError:
            raise RequestError(f"no request within {BODY_SECONDS:g} seconds", 408) from None
        try:
            body = parse_json(b"".join(parts))
        except ValueError as error:
            raise RequestError(f"the request is not JSON ({error})") from None
        if not isinstance(body, dict):
            raise RequestError("the request must be a JSON object")
        return body


async def _collected(chunks: AsyncIterator[Chunk]) -> list:
    return [chunk async for chunk in chunks]


async def _unless_gone(request: Request, answer) -> Any:
    """Its result; None if the client goes before."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.ensure_future(answer), asyncio.ensure_future(gone())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        return tasks[0].result() if tasks[0].done() else None
    finally:
        for task in tasks:
            task.cancel()


async def _events(
    answer: Format, first: Chunk, chunks: AsyncIterator[Chunk], include_usage: bool
) -> AsyncIterator[str]:
    """Server-sent events of a stream."""
    seen = [first]
    try:
        yield _event(answer.piece(first))
        async for chunk in chunks:
            seen.append(chunk)
            yield _event(answer.piece(chunk))
        if include_usage:
            yield _event(answer.usage_piece(seen))
        yield "data: [DONE]\n\n"
    except RequestError as error:
        yield _event(error.body())
    finally:
        await chunks.aclose()


def _event(content: Dict) -> str:
    return f"data: {json.dumps(content)}\n\n"


class _Guard:
    """Asks every request for the key."""

    def __init__(self, app, api_key: str):
        self.app, self.expected = app, f"Bearer {api_key}".encode()

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] == "http":
            given = dict(scope["headers"]).get(b"authorization", b"")
            if not hmac.compare_digest(given, self.expected):
                error = RequestError("the API key is missing or wrong", 401, code="invalid_api_key")
                await JSONResponse(error.body(), error.status)(scope, receive, send)
                return
        await self.app(scope, receive, send)


def _on_request_error(request: Request, error: RequestError) -> Response:
    return JSONResponse(error.body(), status_code=error.status)


def _on_http_error(request: Request, error: HTTPException) -> Response:
    message = f"{request.method} {request.url.path[:60]}: {error.detail}"
    return _on_request_error(request, RequestError(message, error.status_code))


def _on_gone(request: Request, error: Exception) -> Response:
    return Response(status_code=499)  # nobody reads it


def _on_fault(request: Request, error: Exception) -> Response:
    logger.error("a request failed", exc_info=error)
    return _on_request_error(request, RequestError("a fault of the server: see its output", 500))


def make_app(service: Service, api_key: Optional[str]) -> Starlette:
    """The server of a model.

    Args:
        api_key: a key that every request has to bring (default: none; then only requests to this
            machine by one of its own names are answered)
    """

    @asynccontextmanager
    async def lifespan(app: Starlette):
        yield
        await asyncio.to_thread(service.queue.close)

    if api_key is None:
        # a page in a browser may make its own name one of this machine
        hosts = ["127.0.0.1", "localhost", "::1", "[::1]"]
        guard = Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False)
    else:
        guard = Middleware(_Guard, api_key=api_key)
    routes = [
        Route("/v1/models", service.models),
        Route("/v1/completions", service.completions, methods=["POST"]),
        Route("/v1/chat/completions", service.chat, methods=["POST"]),
        Route("/memory", service.list_documents, methods=["GET"]),
        Route("/memory", service.add_document, methods=["POST"]),
        Route("/memory/{name:path}", service.forget_document, methods=["DELETE"]),
    ]
    handlers = {
        RequestError: _on_request_error,
        HTTPException: _on_http_error,
        ClientDisconnect: _on_gone,
        Canceled: _on_gone,
        Exception: _on_fault,
    }
    return Starlette(
        routes=routes, middleware=[guard], exception_handlers=handlers, lifespan=lifespan
    )
