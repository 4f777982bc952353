"""Writing to a server that is busy or does not answer: what is tried again, and what is said. Part of ``hub``.

Knows nothing of what is written.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

from dopkit.errors import HubError, Problem
from dopkit.hub import explain
from dopkit.refs import ModelRef

PAUSES = (1.0, 2.0, 4.0, 8.0)  # seconds between tries, unless the server asks for more
_LONGEST = 300.0  # seconds; the Hub counts requests in windows of five minutes
_MEANINGS = {
    401: ("there is no valid token", "`hf auth login` with a token that may write, or set HF_TOKEN."),
    403: ("the token may not write there", "Use a token of its owner that may write, or --create-pr."),
}

Answer = TypeVar("Answer")


def patiently(call: Callable[[], Answer]) -> Answer:
    """``call``, again and again while what goes wrong may pass. Only for calls that may happen twice."""
    for pause in PAUSES:
        try:
            return call()
        except Exception as error:
            if not may_pass(error):
                raise
            wait(pause, error)
    return call()


def wait(pause: float, error: Exception) -> None:
    """Wait before the next try: as long as the server asks for, if it does."""
    response = getattr(_cause(error), "response", None)
    asked = response.headers.get("Retry-After", "") if response is not None else ""
    time.sleep(min(_LONGEST, max(pause, float(asked) if asked.isdigit() else 0.0)))


def may_pass(error: Exception) -> bool:
    """Whether the same request may well succeed a little later."""
    error = _cause(error)
    if isinstance(error, OfflineModeIsEnabled):
        return False
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in (408, 429) or error.response.status_code >= 500
    # JSON: the client reads some answers before it looks at their status.
    return isinstance(error, HTTPError | ConnectionError | TimeoutError | json.JSONDecodeError)


@contextmanager
def explained(repo: str) -> Iterator[None]:
    """Turn what the client raises while writing into one HubError."""
    try:
        yield
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        cause = _cause(error)
        if known := explain.known(ModelRef(repo, repo=repo), cause):
            raise known from error
        status = cause.response.status_code if isinstance(cause, HfHubHTTPError) else 0
        what, remedy = _MEANINGS.get(status, (explain.first_line(cause), explain.AGAIN))
        raise HubError(f"cannot push to {repo}", [Problem("", what, remedy)]) from error


def _cause(error: Exception) -> Exception:
    """What the client wrapped: ``Error while uploading ...`` says nothing of why."""
    inner = error.__cause__
    return inner if isinstance(error, RuntimeError) and isinstance(inner, Exception) else error
