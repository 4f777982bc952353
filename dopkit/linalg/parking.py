"""What an algorithm says of its large matrices when memory may be short: which ones it has no use for at the moment.

By itself that is only said. Whoever runs the algorithm may hand it a ``Park`` that lays such matrices elsewhere. Loads
no torch, and knows no files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class Park:
    """Leaves everything where it is.

    A tensor that is away may be dropped or asked for its shape, and nothing else; so may every view of it. Neither call
    changes a value. None stands for no tensor.
    """

    def away(self, *tensors: Tensor | None) -> None:
        """These are not needed until they are asked back; one that is away already stays so."""

    def here(self, *tensors: Tensor | None) -> None:
        """These are needed from now on; one that is not away stays as it is."""

    def forget(self) -> None:
        """What is away now is not asked back any more."""


KEPT = Park()
