"""A loopback HTTP server that serves one file, misbehaves as told, and remembers the requests."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Request:
    """A request that came in, and how many bytes of the file were sent in answer."""

    headers: dict[str, str]
    sent: int = 0


@dataclass
class Behaviour:
    """How the server answers; the attributes may be changed while it runs."""

    content: bytes
    url: str = ""
    etag: str | None = '"1"'
    last_modified: str | None = None
    ranges: bool = True
    """Answer Range requests with the rest, not with everything."""
    if_range: bool = True
    """Heed If-Range; without it, a Range request gets a range of whatever is there now."""
    length: bool = True
    """Announce the length; otherwise the end of the connection is the end of the file."""
    status: list[int] = field(default_factory=list)
    """Status of the next answers, used up one by one; 200 or 206 when none is left."""
    cuts: list[int] = field(default_factory=list)
    """After how many bytes to cut the connection, for the next answers, used up one by one."""
    stalls: list[int] = field(default_factory=list)
    """After how many bytes to fall silent, for the next answers, used up one by one."""
    requests: list[Request] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)


@contextmanager
def serve(content: bytes, **behaviour: object) -> Iterator[Behaviour]:
    """Serve ``content`` at the yielded behaviour's ``url`` until the block ends."""
    shared = Behaviour(content, **behaviour)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            _answer(self, shared)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    shared.url = f"http://127.0.0.1:{server.server_port}/data.zip"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield shared
    finally:
        shared.stopped.set()
        server.shutdown()
        server.server_close()
        thread.join()


def unused_url() -> str:
    """Return a URL of this machine where no server listens."""
    with serve(b"") as shared:
        return shared.url


def _answer(handler: BaseHTTPRequestHandler, behaviour: Behaviour) -> None:
    request = Request(dict(handler.headers.items()))
    behaviour.requests.append(request)
    status = behaviour.status.pop(0) if behaviour.status else HTTPStatus.OK
    content = behaviour.content
    start = _start(handler, behaviour) if status == HTTPStatus.OK else None
    if start is not None:
        total = len(content)
        if start >= total:
            status, content = HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, b""
        else:
            status, content = HTTPStatus.PARTIAL_CONTENT, content[start:]
    elif status != HTTPStatus.OK:
        content = b"no"
    handler.send_response(status)
    if status == HTTPStatus.PARTIAL_CONTENT:
        handler.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
    if behaviour.length:
        handler.send_header("Content-Length", str(len(content)))
    for name, value in (("ETag", behaviour.etag), ("Last-Modified", behaviour.last_modified)):
        if value is not None and status < 400:
            handler.send_header(name, value)
    handler.end_headers()
    cut = behaviour.cuts.pop(0) if behaviour.cuts else len(content)
    stall = behaviour.stalls.pop(0) if behaviour.stalls else None
    content = content[:cut] if stall is None else content[:stall]
    handler.wfile.write(content)
    handler.wfile.flush()
    if status in (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT):
        request.sent = len(content)
    if stall is not None:
        behaviour.stopped.wait(10)


def _start(handler: BaseHTTPRequestHandler, behaviour: Behaviour) -> int | None:
    """Return the first byte asked for; None for everything."""
    asked = handler.headers.get("Range")
    validator = handler.headers.get("If-Range")
    if asked is None or not behaviour.ranges:
        return None
    if behaviour.if_range and validator is not None:
        # A weak tag never matches (RFC 9110, 13.1.5).
        weak = validator.startswith("W/")
        if weak or validator not in (behaviour.etag, behaviour.last_modified):
            return None
    return int(asked.removeprefix("bytes=").removesuffix("-"))
