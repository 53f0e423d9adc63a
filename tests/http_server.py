"""An HTTP server that answers as a test says, also with broken transfers."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Reply:
    """How to answer one request for a file."""

    body: bytes
    etag: str | None = '"one"'
    modified: str | None = None
    ranges: bool = True  #: answer Range
    if_range: bool = True  #: compare If-Range
    shift: int = 0  #: answer with another range, so many bytes on
    status: int = 0  #: if not 0, an error
    location: str | None = None  #: if not None, a redirection
    stop: int | None = None  #: send only so many bytes, and then
    hang: bool = False  #: wait instead of closing the connection
    silent: bool = False  #: do not even send a status
    length: bool = True  #: say how many bytes there are


@dataclass
class Server:
    """Answers with `script`, reply by reply, and from then on with `default`."""

    default: Reply
    url: str = ""
    script: list[Reply] = field(default_factory=list)
    requests: list[dict[str, str]] = field(default_factory=list)
    sent: int = 0
    released: threading.Event = field(default_factory=threading.Event)

    @property
    def ranges(self) -> list[str | None]:
        """The Range header of every request."""
        return [request.get("Range") for request in self.requests]


class Handler(BaseHTTPRequestHandler):
    what: Server

    def do_GET(self) -> None:
        server = self.what
        server.requests.append(dict(self.headers))
        reply = server.script.pop(0) if server.script else server.default
        if reply.silent:
            server.released.wait(20)
            return
        if reply.location is not None:
            self.send_response(302)
            self.send_header("Location", reply.location)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if reply.status:
            self.send_error(reply.status)
            return
        body, start = reply.body, self._start(reply)
        if start is not None and start >= len(body):
            self.send_error(416)
            return
        if start is None:
            self.send_response(200)
        else:
            start += reply.shift
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            body = body[start:]
        if reply.length:
            self.send_header("Content-Length", str(len(body)))
        for name, value in (("ETag", reply.etag), ("Last-Modified", reply.modified)):
            if value:
                self.send_header(name, value)
        self.end_headers()
        body = body[: reply.stop]
        self.wfile.write(body)
        server.sent += len(body)
        if reply.hang:
            self.wfile.flush()
            server.released.wait(20)

    def _start(self, reply: Reply) -> int | None:
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if not asked or not reply.ranges:
            return None
        known = self.headers.get("If-Range")
        if known and reply.if_range and known not in {reply.etag, reply.modified}:
            return None
        return int(asked[1])

    def log_message(self, format: str, *args: Any) -> None:
        pass


class QuietServer(ThreadingHTTPServer):
    daemon_threads = False  # waited for when the server closes

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # the client hung up, as it should


@contextmanager
def serving(default: Reply, path: str) -> Iterator[Server]:
    """A running server, whose `url` ends in `path`."""
    server = Server(default)
    with QuietServer(("127.0.0.1", 0), type("Bound", (Handler,), {"what": server})) as http:
        server.url = f"http://127.0.0.1:{http.server_address[1]}/{path}"
        thread = threading.Thread(target=http.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            server.released.set()
            http.shutdown()
            thread.join()
