"""What will be read, said beforehand: a streamed model then fetches neighbouring bytes together, ahead of time."""

from __future__ import annotations

from collections.abc import Iterable

from dopkit.checkpoints import Checkpoint

Rows = tuple[int, int]
Read = tuple[Checkpoint, str, Rows | None]  # no rows: the whole tensor


def announce(reads: Iterable[Read], budget: int) -> None:
    """Tell the models that are streamed what will be read of them, and what each may hold of it ahead of time."""
    expected: dict[Checkpoint, list[tuple[str, Rows | None]]] = {}
    for checkpoint, name, rows in reads:
        if checkpoint.streams:
            expected.setdefault(checkpoint, []).append((name, rows))
    for checkpoint, own in expected.items():
        checkpoint.expect(own, budget // len(expected))
