"""A merge that dies at a chosen moment, for the tests of what a rerun makes of it."""

from __future__ import annotations

from typing import Any

import pytest

from dopkit.writer import ShardWriter


class Stopped(BaseException):
    """Stands in for a kill at a chosen moment."""


def stop_after(monkeypatch: pytest.MonkeyPatch, tensors: int) -> None:
    """Let the writer complete so many tensors, then die."""
    complete = ShardWriter.complete
    left = [tensors]

    def dying(self: ShardWriter, name: str, record: dict[str, Any]) -> None:
        if left[0] == 0:
            raise Stopped
        left[0] -= 1
        complete(self, name, record)

    monkeypatch.setattr(ShardWriter, "complete", dying)
