"""The physical floor of a merge: its inputs read once and its output written once, with plain reads and writes.

    python floor.py OUTPUT SIZE INPUT...

One input after the other is read through a buffer of 4 MB; the first SIZE bytes of what is read are written to OUTPUT.
No clever copy inside the file system, no memory map, no arithmetic, no flush to the disk at the end: merges make none
either. Imports nothing but the interpreter's own modules.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

BUFFER = 4_000_000


def copy(output: Path, size: int, inputs: Sequence[Path]) -> int:
    """Read all inputs, write ``size`` bytes. Returns how many bytes were read."""
    buffer = memoryview(bytearray(BUFFER))
    total = left = 0
    left = size
    target = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for path in inputs:
        source = os.open(path, os.O_RDONLY)
        while got := os.readv(source, [buffer]):
            total += got
            left -= _write(target, buffer[: min(got, left)])
        os.close(source)
    os.close(target)
    return total


def _write(target: int, data: memoryview) -> int:
    done = 0
    while done < len(data):
        done += os.write(target, data[done:])
    return done


if __name__ == "__main__":
    copy(Path(sys.argv[1]), int(sys.argv[2]), [Path(name) for name in sys.argv[3:]])
