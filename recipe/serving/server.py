"""The HTTP server: routes, refusals as JSON, streams, and the page. Nothing that is asked or answered is logged."""

import asyncio
import base64
import contextlib
import errno
import hashlib
import json
import re
import signal
import socket
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

from aiohttp import web

from recipe.core.errors import RecipeError
from recipe.core.text import say
from recipe.serving import openai_api
from recipe.serving.access import Access
from recipe.serving.engine import Engine, Piece
from recipe.serving.fields import BadRequest
from recipe.serving.openai_api import Answer, Call
from recipe.serving.worker import Busy, Worker

BODY_BYTES = 1_000_000
BODY_SECONDS = 20.0
IDLE_SECONDS = 30.0  # until a connection without a request in progress is closed
PAGE = Path(__file__).with_name("page.html")
OPEN = {"/", "/health"}  # without the key: they tell nothing, and the page asks for the key
HEADERS = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Server:
    """The handlers around one engine and its worker."""

    def __init__(self, engine: Engine, access: Access, worker: Worker | None = None) -> None:
        self.engine, self.access, self.worker = engine, access, worker or Worker()
        self.page = PAGE.read_text(encoding="utf-8")
        self.policy = content_security_policy(self.page)

    def app(self) -> web.Application:
        """The aiohttp application. Its cleanup ends the worker."""
        app = web.Application(client_max_size=BODY_BYTES, middlewares=[self.guard])
        app.router.add_get("/", self.get_page)
        app.router.add_get("/health", self.get_health)
        app.router.add_get("/v1/models", self.get_models)
        app.router.add_post("/v1/chat/completions", self.post(openai_api.parse_chat))
        app.router.add_post("/v1/completions", self.post(openai_api.parse_completion))
        app.on_response_prepare.append(add_headers)
        app.on_cleanup.append(self._close)
        return app

    async def _close(self, app: web.Application) -> None:
        await asyncio.to_thread(self.worker.close)

    @web.middleware
    async def guard(self, request: web.Request, handler: Any) -> web.StreamResponse:
        """Refuse what is not allowed, and answer every failure with one sentence as JSON."""
        host = request.headers.get("Host", "")
        if not self.access.host_allowed(host):
            return refusal(403, "the Host header does not name this server; use the address that it printed")
        if not self.access.origin_allowed(request.headers.get("Origin"), host):
            return refusal(403, "requests from pages of other origins are refused; use this server's own page")
        if request.path not in OPEN and not self.access.key_allowed(request.headers.get("Authorization", "")):
            return refusal(401, "the API key is missing or wrong; send it as `Authorization: Bearer KEY`")
        try:
            return await handler(request)
        except BadRequest as error:
            return refusal(error.status, str(error), error.param, error.code)
        except Busy:
            return refusal(503, "too many requests are waiting already; try again in a moment", retry=True)
        except web.HTTPRequestEntityTooLarge:
            return refusal(413, f"the body is longer than {BODY_BYTES} bytes; send a shorter one")
        except web.HTTPException as error:
            paths = "/, /health, /v1/models, /v1/chat/completions and /v1/completions"
            return refusal(error.status, f"the request failed ({error.reason}); this server has {paths}")
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception as error:
            say(f"error: a request failed with {type(error).__name__}; the server keeps serving")  # not its text
            return refusal(500, "the request failed inside the server; its log names the kind of error")

    async def get_page(self, request: web.Request) -> web.Response:
        """The page with its two columns."""
        return web.Response(text=self.page, content_type="text/html", headers={"Content-Security-Policy": self.policy})

    async def get_health(self, request: web.Request) -> web.Response:
        """Whether the server answers, and how much it has to do."""
        active, waiting = self.worker.load
        return web.json_response({"status": "ok", "active": active, "waiting": waiting})

    async def get_models(self, request: web.Request) -> web.Response:
        """The models by name."""
        models = [{"id": name, "object": "model", "created": 0, "owned_by": "recipe"} for name in self.engine.models]
        return web.json_response({"object": "list", "data": models})

    def post(self, parse: Callable[[Engine, Any], Call]) -> Callable[[web.Request], Any]:
        """The handler that generates what `parse` makes of the body."""

        async def handle(request: web.Request) -> web.StreamResponse:
            body = await read_json(request)
            # tokenizing a long prompt takes a moment, in which the other connections must go on
            call = await asyncio.to_thread(parse, self.engine, body)
            answers = [Answer(self.engine, call, index) for index in range(len(call.prompts))]
            async with contextlib.aclosing(self.pieces(call)) as pieces:
                if call.stream:
                    return await stream(request, call, answers, pieces)
                async for index, piece in pieces:
                    answers[index].add(piece)
            choices = [answer.choice() for answer in answers]
            return web.json_response({**call.base(chunk=False), "choices": choices, "usage": openai_api.usage(answers)})

        return handle

    async def pieces(self, call: Call) -> AsyncGenerator[tuple[int, Piece], None]:
        """What the worker generates. Closing this iterator stops the generation within one token."""
        loop, items = asyncio.get_running_loop(), asyncio.Queue[Any]()

        def deliver(item: Any) -> None:
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(items.put_nowait, item)

        job = self.worker.submit(lambda cancelled: openai_api.generate(self.engine, call, cancelled), deliver)
        try:
            while (item := await items.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            job.cancelled.set()


async def read_json(request: web.Request) -> Any:
    """The body as JSON. Raises BadRequest where it is something else, or does not arrive in time."""
    if request.content_type != "application/json":
        raise BadRequest("the Content-Type must be application/json", status=415)
    try:
        async with asyncio.timeout(BODY_SECONDS):
            data = await request.read()
    except TimeoutError:
        message = f"the body did not arrive within {BODY_SECONDS:g} seconds; send it faster"
        raise BadRequest(message, status=408) from None
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise BadRequest("the body is not JSON; send one JSON object in UTF-8") from None


async def stream(
    request: web.Request, call: Call, answers: list[Answer], pieces: AsyncGenerator[tuple[int, Piece], None]
) -> web.StreamResponse:
    """Server-sent events as OpenAI sends them, `[DONE]` last. An error after the first piece is an event too."""
    first = await anext(pieces)  # a full queue is still a 503
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"})
    await response.prepare(request)
    head = call.base(chunk=True)
    if call.chat:
        opening = {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        await response.write(event({**head, "choices": [opening]}))
    try:
        index, piece = first
        while True:
            if piece.text or piece.tokens or piece.finish:
                await response.write(event({**head, "choices": [answers[index].add(piece)]}))
            index, piece = await anext(pieces)
    except StopAsyncIteration:
        if call.include_usage:
            await response.write(event({**head, "choices": [], "usage": openai_api.usage(answers)}))
        await response.write(b"data: [DONE]\n\n")
    except ConnectionError:
        raise
    except Exception as error:
        say(f"error: a stream failed with {type(error).__name__}; the server keeps serving")
        await response.write(event(error_body(500, "the answer broke off inside the server")))
    await response.write_eof()
    return response


def event(value: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n".encode()


def error_body(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """An error as OpenAI's clients read it."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def refusal(
    status: int, message: str, param: str | None = None, code: str | None = None, retry: bool = False
) -> web.Response:
    """An error as a response."""
    headers = {"Retry-After": "1"} if retry else {}
    return web.json_response(error_body(status, message, param, code), status=status, headers=headers)


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """The security headers of every response, and no version of the server."""
    response.headers.update(HEADERS)
    response.headers["Server"] = "recipe"


def content_security_policy(page: str) -> str:
    """A policy that allows the page's own script and style by their hashes, requests to this server, nothing else."""

    def sources(tag: str) -> str:
        blocks = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digests = (base64.b64encode(hashlib.sha256(block.encode()).digest()).decode() for block in blocks)
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    return (
        f"default-src 'none'; script-src {sources('script')}; style-src {sources('style')}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def bind(host: str, port: int) -> socket.socket:
    """A socket at the address, before the model is loaded. Raises RecipeError where the address cannot be used."""
    try:
        kind, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(kind, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        raise RecipeError(refused_address(host, port, error)) from None
    return bound


async def serve(server: Server, bound: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM."""
    runner = web.AppRunner(
        server.app(), access_log=None, handler_cancellation=True, shutdown_timeout=2.0, keepalive_timeout=IDLE_SECONDS
    )
    stopped, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    await runner.setup()
    try:
        host, port = bound.getsockname()[:2]
        try:
            await web.SockSite(runner, bound).start()
        except OSError as error:
            raise RecipeError(refused_address(host, port, error)) from None
        address = f"[{host}]" if ":" in host else host
        say(f"serving {' and '.join(server.engine.models)} at http://{address}:{port}/ (Ctrl-C ends)")
        await stopped.wait()
        say("stopping")
    finally:
        server.worker.cancel()
        await runner.cleanup()


def refused_address(host: str, port: int, error: OSError) -> str:
    """Why the server cannot listen there, as one sentence."""
    if error.errno == errno.EADDRINUSE:
        return f"port {port} is in use; stop the program that uses it or pass another --port"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"port {port} is not allowed for this user; pass a --port above 1023"
    return f"{host} port {port} cannot be used ({error.strerror or error}); pass another --host or --port"
