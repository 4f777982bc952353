"""``--max-memory``: the most memory that a run may come to, on the host and on a device.

Knows sizes and the names of the kinds of device, not which of them are there.
"""

from __future__ import annotations

from dataclasses import dataclass

from dopkit.units import parse_size

HOST, DEVICES = "cpu", ("cuda", "mps")


@dataclass(frozen=True)
class MemoryLimit:
    """Bytes, each None where nothing is said: then it is what is free."""

    host: int | None = None  # of all processes on this machine, each as a whole
    device: int | None = None  # of what tensors take on the device of each process
    kind: str | None = None  # of the device: "cuda" or "mps"

    @classmethod
    def of(cls, given: int | MemoryLimit | None) -> MemoryLimit:
        """A plain number is the host's."""
        return given if isinstance(given, MemoryLimit) else cls(host=given)


def parse_limit(text: str) -> MemoryLimit:
    """``"8GB"``, or ``"cpu=8GB,cuda=16GB"`` with either of the two left out. Raises ValueError."""
    if "=" not in text:
        return MemoryLimit(host=parse_size(text))
    sizes: dict[str, int] = {}
    for entry in text.split(","):
        kind, _, size = (part.strip().lower() for part in entry.partition("="))
        if kind not in (HOST, *DEVICES):
            raise ValueError(f"{entry.strip()!r} names none of cpu, cuda, mps; write it like cpu=8GB,cuda=16GB")
        if kind in sizes:
            raise ValueError(f"{kind} is given twice")
        sizes[kind] = parse_size(size)
    devices = [kind for kind in DEVICES if kind in sizes]
    if len(devices) > 1:
        raise ValueError("a run has one kind of device: give cuda or mps, not both")
    device = devices[0] if devices else ""
    return MemoryLimit(sizes.get(HOST), sizes.get(device), device or None)
