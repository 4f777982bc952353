"""One port: reads requests, lets the faults have their way, sends answers, writes the log.

Knows nothing of repos. HTTP/1.1 with kept-open connections, one thread for each.
"""

from __future__ import annotations

import socket
import socketserver
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, BinaryIO, cast
from urllib.parse import parse_qs, unquote, urlsplit

from hubserver.faults import Fault, Faults, RateLimit
from hubserver.wire import Answer, Host, Piece, Refusal, Request

CHUNK = 1 << 18


@dataclass
class Entry:
    """One request in the log. Written when it arrives; status and counts follow as they happen."""

    host: Host
    method: str
    path: str  # decoded, without the query
    query: str
    range: str | None
    auth: bool  # an Authorization header came with it
    user_agent: str
    status: int = 0
    sent: int = 0  # bytes of body handed to the socket
    received: int = 0  # bytes of body read from it
    faults: tuple[str, ...] = ()

    @property
    def target(self) -> str:
        return f"{self.path}?{self.query}" if self.query else self.path


class Dropped(Exception):
    """The connection is to be closed now, whatever was promised."""


class Body:
    """A request's body, by Content-Length or in chunks."""

    def __init__(self, stream: BinaryIO, length: int, chunked: bool, entry: Entry, limit: int | None) -> None:
        self.stream = stream
        self.left = length
        self.chunked = chunked
        self.entry = entry
        self.limit = limit  # drop the connection after so many bytes

    def read(self, size: int) -> bytes:
        if self.limit is not None:
            if self.entry.received >= self.limit:
                raise Dropped
            size = min(size, self.limit - self.entry.received)
        if self.chunked and self.left == 0:
            self._next_chunk()
        data = self.stream.read(min(size, self.left))
        if len(data) < min(size, self.left):
            raise Dropped  # the client went away
        self.left -= len(data)
        self.entry.received += len(data)
        if self.chunked and self.left == 0 and data:
            self.stream.readline()
        return data

    def _next_chunk(self) -> None:
        self.left = int(self.stream.readline().split(b";")[0] or b"0", 16)
        if self.left == 0:
            self.stream.readline()
            self.chunked = False

    def drain(self) -> None:
        while self.read(CHUNK):
            pass


class Listener(ThreadingHTTPServer):
    daemon_threads = False  # joined by server_close, so that no socket outlives the hub
    request_queue_size = 128

    def __init__(
        self,
        host: Host,
        dispatch: Callable[[Request], Answer],
        faults: Faults,
        log: list[Entry],
    ) -> None:
        self.host = host
        self.dispatch = dispatch
        self.faults = faults
        self.log = log
        self.limit: RateLimit | None = None
        self.crashes: list[str] = []
        self.closing = threading.Event()
        self.open: set[socket.socket] = set()
        self.open_lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), Connection)
        self.thread = threading.Thread(target=self.serve_forever, args=(0.01,), name=f"hub-{host}")
        self.thread.start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # without the name look-up that HTTPServer adds
        self.server_name, self.server_port = "127.0.0.1", self.socket.getsockname()[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        with self.open_lock:
            self.open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self.open_lock:
            self.open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError | Dropped):
            self.crashes.append(traceback.format_exc())

    def close(self) -> None:
        self.closing.set()
        self.shutdown()
        with self.open_lock:
            for connection in self.open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        self.server_close()
        self.thread.join()


class Connection(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes; do not wait between them
    server_version = "hubserver"
    server: Listener

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def serve(self) -> None:
        target = urlsplit(self.path)
        faults = self.server.faults.take(self.command, self.path)
        entry = Entry(
            host=self.server.host,
            method=self.command,
            path=unquote(target.path),
            query=unquote(target.query),
            range=self.headers.get("Range"),
            auth="Authorization" in self.headers,
            user_agent=self.headers.get("User-Agent", ""),
            faults=tuple(faults),
        )
        self.server.log.append(entry)
        try:
            answer = self.answered(entry, target.path, target.query, faults)
            if "lose" in faults:
                raise Dropped
            self.send(entry, answer, faults)
        except (Dropped, ConnectionError):
            self.close_connection = True
            with suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = serve

    def answered(self, entry: Entry, path: str, query: str, faults: dict[str, Fault]) -> Answer:
        """The answer, after whatever stands before it: pauses, errors, the rate limit."""
        body = self.body(entry, faults.get("cut"))
        if "slow" in faults and not faults["slow"].amount:
            self.pause(faults["slow"])
        if "whole" in faults:
            del self.headers["Range"]
        headers: dict[str, str] = {}
        try:
            if "status" in faults:
                answer = faults["status"].answer
            else:
                if self.server.limit is not None:
                    headers = self.server.limit.take(self.command, self.path)
                answer = self.server.dispatch(
                    Request(self.command, path, parse_qs(query), self.headers, self.server.host, body.read)
                )
        except Refusal as refusal:
            answer = refusal.answer()
        except (Dropped, ConnectionError):
            raise
        except Exception:
            self.server.crashes.append(traceback.format_exc())
            answer = Answer(500, traceback.format_exc().encode())
        body.drain()
        return Answer(answer.status, answer.content, headers | answer.headers)

    def body(self, entry: Entry, cut: Fault | None) -> Body:
        chunked = "chunked" in self.headers.get("Transfer-Encoding", "").lower()
        length = int(self.headers.get("Content-Length") or 0)
        # a cut meets whichever body is the large one: the upload's, or the answer's
        limit = cut.amount if cut is not None and (chunked or length) else None
        return Body(cast(BinaryIO, self.rfile), length, chunked, entry, limit)

    def send(self, entry: Entry, answer: Answer, faults: dict[str, Fault]) -> None:
        entry.status = answer.status
        length = answer.length
        if "length" in faults:
            length = max(length + faults["length"].amount, 0)
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command == "HEAD":
            return
        if "cut" in faults:
            self.send_content(entry, answer, min(length, faults["cut"].amount), faults)
            raise Dropped
        self.send_content(entry, answer, length, faults)

    def pause(self, fault: Fault) -> None:
        if self.server.closing.wait(fault.seconds):
            raise Dropped

    def send_content(self, entry: Entry, answer: Answer, length: int, faults: dict[str, Fault]) -> None:
        """`length` bytes: of the answer while it lasts, then zeros."""
        slow = faults.get("slow")
        stride = slow.amount if slow is not None and slow.amount else CHUNK
        for start in range(0, length, stride):
            size = min(stride, length - start)
            if slow is not None and slow.amount:
                self.pause(slow)
            entry.sent += size  # first, so that a client that has it all also finds it in the log
            own = max(min(size, answer.length - start), 0)
            self.send_stretch(answer, start, own)
            self.wfile.write(bytes(size - own))

    def send_stretch(self, answer: Answer, start: int, size: int) -> None:
        content = answer.content
        if size == 0:
            return
        if isinstance(content, Piece):
            with content.path.open("rb") as stream:
                self.connection.sendfile(stream, content.start + start, size)
        else:
            self.wfile.write(content[start : start + size])
