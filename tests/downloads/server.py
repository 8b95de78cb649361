"""A file server on loopback that does wrong what servers do wrong, as a list of faults per path says."""

import contextlib
import hashlib
import http.server
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

Fault = Callable[[Any, bytes], None]


@dataclass
class Server:
    """`files`: path -> content; `faults`: path -> what to do wrong with its next requests; `seen`: every request."""

    port: int = 0
    files: dict[str, bytes] = field(default_factory=dict)
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    seen: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    etags: bool = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def requests(self, path: str) -> list[dict[str, str]]:
        """The headers of all requests for a path."""
        return [headers for seen, headers in self.seen if seen == path]


class Handler(http.server.BaseHTTPRequestHandler):
    server: Any
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        place: Server = self.server.place
        path = self.path.partition("?")[0]
        place.seen.append((path, dict(self.headers.items())))
        queue = place.faults.get(path) or place.faults.get("*")
        if queue:
            queue.pop(0)(self, place.files.get(path, b""))
        elif path in place.files:
            self.serve(place.files[path])
        else:
            self.answer(404)

    def serve(self, content: bytes) -> None:
        """The file, or the range of it that was asked for, if the file is still the one that If-Range names."""
        tag = f'"{hashlib.sha256(content).hexdigest()}"'
        start = self.range_start(tag)
        if start is None:
            self.answer(200, content, ETag=tag)
        elif start >= len(content):
            self.answer(416, Content_Range=f"bytes */{len(content)}")
        else:
            part = content[start : start + 1] if self.headers["Range"] == "bytes=0-0" else content[start:]
            place = f"bytes {start}-{start + len(part) - 1}/{len(content)}"
            self.answer(206, part, ETag=tag, Content_Range=place)

    def range_start(self, tag: str) -> int | None:
        if "Range" not in self.headers or self.headers.get("If-Range", tag) != tag:
            return None
        return int(self.headers["Range"].removeprefix("bytes=").partition("-")[0])

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        if not self.server.place.etags:
            headers.pop("ETag", None)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


def status(number: int, **headers: str) -> Fault:
    return lambda handler, content: handler.answer(number, **headers)


def truncate(size: int) -> Fault:
    """The headers of the whole file, `size` bytes, and a closed connection."""

    def fault(handler: Any, content: bytes) -> None:
        handler.answer(200, content[:size], Content_Length=str(len(content)), ETag=tag_of(content))
        handler.close_connection = True

    return fault


def stall(seconds: float, size: int = 0) -> Fault:
    def fault(handler: Any, content: bytes) -> None:
        handler.answer(200, content[:size], Content_Length=str(len(content)), ETag=tag_of(content))
        time.sleep(seconds)
        handler.close_connection = True

    return fault


def close() -> Fault:
    def fault(handler: Any, content: bytes) -> None:
        handler.close_connection = True

    return fault


def wrong_part(handler: Any, content: bytes) -> None:
    """A part of the file that was not asked for."""
    handler.answer(206, content[1:], Content_Range=f"bytes 1-{len(content) - 1}/{len(content)}", ETag=tag_of(content))


def redirect(url: str) -> Fault:
    return status(302, Location=url)


def tag_of(content: bytes) -> str:
    return f'"{hashlib.sha256(content).hexdigest()}"'


@contextlib.contextmanager
def serve(handler: type = Handler) -> Iterator[Server]:
    http_server: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    http_server.daemon_threads = True
    place = http_server.place = Server(http_server.server_port)
    threading.Thread(target=http_server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield place
    http_server.shutdown()
    http_server.server_close()
