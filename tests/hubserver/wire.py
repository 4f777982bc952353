"""What goes over the wire: a request as the rooms see it, an answer as they give it.

Knows nothing of sockets, repos or faults.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import Any, Literal

Host = Literal["hub", "storage"]


@dataclass(frozen=True)
class User:
    """Whoever owns a token. `role` is "write" or "read"."""

    name: str
    role: str = "write"
    orgs: tuple[str, ...] = ()

    def owns(self, namespace: str) -> bool:
        return namespace == self.name or namespace in self.orgs


@dataclass(frozen=True)
class Piece:
    """A stretch of a file on disk, sent without being read whole."""

    path: Path
    start: int
    length: int


Content = bytes | Piece


@dataclass
class Answer:
    status: int = 200
    content: Content = b""
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def length(self) -> int:
        return self.content.length if isinstance(self.content, Piece) else len(self.content)


@dataclass
class Request:
    method: str
    path: str  # as sent: percent-encoded, without the query
    query: dict[str, list[str]]
    headers: Message
    host: Host
    read: Callable[[int], bytes]  # the body, at most so many bytes at a time; b"" at its end
    user: User | None = None

    def first(self, name: str, default: str = "") -> str:
        return self.query.get(name, [default])[0]

    def flag(self, name: str) -> bool:
        return self.first(name).lower() in ("1", "true")

    def body(self) -> bytes:
        return b"".join(iter(lambda: self.read(1 << 20), b""))

    def json(self) -> Any:
        try:
            return json.loads(self.body() or b"{}")
        except ValueError as error:
            raise Refusal(400, f"The body is not JSON: {error}") from error


class Refusal(Exception):
    """An answer of 4xx, raised from anywhere below the routing table.

    `code` becomes X-Error-Code, which is what the client maps to its exception classes.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str = "",
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.headers = dict(headers or {})

    def answer(self) -> Answer:
        answer = json_answer({"error": self.message}, status=self.status)
        answer.headers.update(self.headers)
        answer.headers["X-Error-Message"] = self.message
        if self.code:
            answer.headers["X-Error-Code"] = self.code
        return answer


def json_answer(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
    content = json.dumps(value, default=str).encode()
    return Answer(status, content, {"Content-Type": "application/json; charset=utf-8"} | (headers or {}))


def redirect(status: int, location: str, headers: dict[str, str] | None = None) -> Answer:
    named = {"Content-Type": "text/plain; charset=utf-8", "Location": location}
    return Answer(status, f"Redirecting to {location}".encode(), named | (headers or {}))
