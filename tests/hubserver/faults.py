"""Faults on demand: which request meets which misfortune, and how often.

Knows only the request line; the listener carries the misfortune out.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil
from urllib.parse import unquote

from hubserver.wire import Answer, Refusal


@dataclass(frozen=True)
class Match:
    """`GET /api/models/.*`: a method (or several, `GET|HEAD`, or `*`) and a pattern.

    The pattern is searched in the decoded path and query. Without a space it stands for the
    path alone, and any method matches.
    """

    text: str

    def __call__(self, method: str, target: str) -> bool:
        methods, space, pattern = self.text.partition(" ")
        if not space:
            methods, pattern = "*", self.text
        if methods != "*" and method not in methods.split("|"):
            return False
        return re.search(pattern, unquote(target)) is not None


@dataclass
class Fault:
    kind: str  # status, cut, length, slow, lose or whole
    match: Match
    times: int | None = 1  # None: for ever
    skip: int = 0  # let so many pass first
    answer: Answer = field(default_factory=Answer)
    amount: int = 0  # bytes: where to cut, how much too long, how much per pause
    seconds: float = 0.0


class Faults:
    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.waiting: list[Fault] = []

    def add(self, fault: Fault) -> None:
        with self.lock:
            self.waiting.append(fault)

    def remove(self, fault: Fault) -> None:
        with self.lock:
            self.waiting = [other for other in self.waiting if other is not fault]

    def clear(self) -> None:
        with self.lock:
            self.waiting.clear()

    def take(self, method: str, target: str) -> dict[str, Fault]:
        """The faults this request meets, at most one of a kind, each counted down."""
        met: dict[str, Fault] = {}
        with self.lock:
            for fault in self.waiting:
                if fault.kind in met or not fault.match(method, target):
                    continue
                if fault.skip > 0:
                    fault.skip -= 1
                    continue
                met[fault.kind] = fault
                if fault.times is not None:
                    fault.times -= 1
            self.waiting = [fault for fault in self.waiting if fault.times is None or fault.times > 0]
        return met


class RateLimit:
    """So many requests in a window of seconds, then 429 until the window is over."""

    def __init__(
        self,
        requests: int,
        window: float,
        match: Match,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.requests = requests
        self.window = window
        self.match = match
        self.clock = clock
        self.lock = threading.Lock()
        self.count = 0
        self.began = clock()

    def take(self, method: str, target: str) -> dict[str, str]:
        """Count this request; its RateLimit headers. Raises the 429 when none is left."""
        if not self.match(method, target):
            return {}
        with self.lock:
            now = self.clock()
            if now - self.began >= self.window:
                self.began, self.count = now, 0
            self.count += 1
            left = self.requests - self.count
            reset = ceil(self.began + self.window - now)
        bucket = "resolvers" if "/resolve/" in target else "api"
        headers = {
            "RateLimit": f'"{bucket}";r={max(left, 0)};t={reset}',
            "RateLimit-Policy": f'"fixed window";"{bucket}";q={self.requests};w={ceil(self.window)}',
        }
        if left < 0:
            refusal = Refusal(429, "We had to rate limit you.", headers={"Retry-After": str(reset)} | headers)
            raise refusal
        return headers
