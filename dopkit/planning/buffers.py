"""How much a merge holds beside the tensors in hand, and the steps in which that shrinks when memory is short. Data.

None of it changes a byte of a result: what is cut into smaller blocks is merged element by element.
"""

from __future__ import annotations

from dataclasses import dataclass

READ_AHEAD_BYTES = 32_000_000  # raw tensors waiting for their turn, besides the one in hand
WRITE_BEHIND_BYTES = 32_000_000  # finished blocks waiting for the disk
# Of an elementwise merge: 4 MiB in float32. Larger blocks are no faster, and the allocator keeps more of them.
BLOCK_ELEMENTS = 1 << 20
# What the program takes besides when it starts to merge: code pages, buffers of libraries. Measured, not derived.
OVERHEAD_BYTES = 80_000_000


@dataclass(frozen=True)
class Buffers:
    """``ahead`` and ``behind`` bound what waits to be merged and to be written, in bytes; one tensor may always wait.

    Where they are 0 nothing does: each read, and each write, is waited for.
    """

    ahead: int = READ_AHEAD_BYTES
    behind: int = WRITE_BEHIND_BYTES
    block_elements: int = 0  # of an elementwise merge; 0 is the usual number

    def read(self, largest: int) -> int:
        """The most that is held of what was read before its turn, ``largest`` being one read."""
        return max(self.ahead, largest) if self.ahead else 0

    def written(self, largest: int) -> int:
        """The most that is held of what is not on the disk yet, ``largest`` being one write."""
        return max(self.behind, largest) if self.behind else 0


USUAL = Buffers()
# The first that fits is taken.
STEPS = (USUAL, Buffers(8_000_000, 8_000_000, BLOCK_ELEMENTS >> 2), Buffers(0, 0, BLOCK_ELEMENTS >> 4))
