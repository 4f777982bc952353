"""What an adapter does to one tensor of its base: the arithmetic of LoRA and DoRA, in place, on rows of it.

LoRA (Hu et al. 2021, arXiv:2106.09685) adds ``scale * B A``. DoRA (Liu et al. 2024, arXiv:2402.09353) then gives every
output's weights the norm that was learned for it. Which axis holds what depends on the layer. Knows no files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Shape = tuple[int, ...]
Rows = tuple[int, int]

# How the factors lie to the weight. `rows`: outputs first (Linear, convolutions). `columns`: outputs last (Conv1D,
# embeddings). `experts` and `experts transposed`: a stack of matrices, outputs first or last in each.
Layout = Literal["rows", "columns", "experts", "experts transposed"]


@dataclass(frozen=True)
class LowRank:
    """A product of two factors that is added. The names are those of the adapter's tensors."""

    a: str
    b: str
    scale: float
    layout: Layout
    rank: int
    magnitude: str | None = None  # of DoRA: a norm for every output

    @property
    def tensors(self) -> tuple[str, ...]:
        return (self.a, self.b) if self.magnitude is None else (self.a, self.b, self.magnitude)

    @property
    def norms_span_rows(self) -> bool:
        """Whether the norms of DoRA need the whole tensor: an output is one column of it."""
        return self.magnitude is not None and self.layout == "columns"

    def apply(
        self, part: torch.Tensor, rows: Rows, factors: Mapping[str, torch.Tensor], norms: torch.Tensor | None = None
    ) -> None:
        """Change ``part``, the base's rows ``rows`` in the working dtype and in memory of its own.

        ``norms`` are those of ``square_sums``'s columns, needed where ``norms_span_rows``.
        """
        self.add(part, rows, factors)
        if self.magnitude is None:
            return
        wanted = factors[self.magnitude].to(part.dtype).reshape(-1)
        if norms is not None:
            part.mul_(wanted / norms)
        else:
            matrix = part.reshape(len(part), -1)
            matrix.mul_((wanted[slice(*rows)] / matrix.norm(dim=1)).unsqueeze(1))

    def add(self, part: torch.Tensor, rows: Rows, factors: Mapping[str, torch.Tensor]) -> None:
        """Add the product alone."""
        a, b = (factors[name].to(part.dtype) for name in (self.a, self.b))
        if self.layout.startswith("experts"):
            left, right = self._stacked(a, b)
            part.baddbmm_(left[slice(*rows)], right[slice(*rows)], alpha=self.scale)
            return
        left, right = (b, a) if self.layout == "rows" else (a.T, b.T)
        rank = len(a)
        part.reshape(len(part), -1).addmm_(
            left.reshape(-1, rank)[slice(*rows)], right.reshape(rank, -1), alpha=self.scale
        )

    def _stacked(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The factors of each expert; PEFT stacks A by (expert, rank) and B by (rank, expert)."""
        a = a.reshape(-1, self.rank, a.shape[1])
        b = b.reshape(len(b), self.rank, -1)
        if self.layout == "experts":
            return b.permute(2, 0, 1), a
        return a.transpose(1, 2), b.permute(2, 1, 0)


@dataclass(frozen=True)
class Vector:
    """A bias of B that is added, scaled like the product (``lora_bias``)."""

    vector: str
    scale: float

    @property
    def tensors(self) -> tuple[str, ...]:
        return (self.vector,)

    def apply(self, part: torch.Tensor, rows: Rows, factors: Mapping[str, torch.Tensor]) -> None:
        part.add_(factors[self.vector].to(part.dtype)[slice(*rows)], alpha=self.scale)


@dataclass(frozen=True)
class TokenRows:
    """Rows that take the place of the base's (``trainable_token_indices``)."""

    values: str
    indices: tuple[int, ...]

    @property
    def tensors(self) -> tuple[str, ...]:
        return (self.values,)

    def apply(self, part: torch.Tensor, rows: Rows, factors: Mapping[str, torch.Tensor]) -> None:
        values = factors[self.values]
        for place, index in enumerate(self.indices):
            if rows[0] <= index < rows[1]:
                part[index - rows[0]] = values[place].to(part.dtype)


@dataclass(frozen=True)
class Change:
    """Everything an adapter does to one tensor, in this order."""

    whole: str | None = None  # the adapter's tensor that takes the base's place
    low_rank: tuple[LowRank, ...] = ()
    rest: tuple[Vector | TokenRows, ...] = ()

    @property
    def tensors(self) -> tuple[str, ...]:
        """What is read of the adapter beside ``whole``, which can be read in parts."""
        return tuple(name for one in (*self.low_rank, *self.rest) for name in one.tensors)

    @property
    def needs_base(self) -> bool:
        return self.whole is None


def layout_of(weight: Shape, a: Shape, b: Shape, rank: int, outputs_last: bool) -> Layout | None:
    """How factors of these shapes make a weight of that shape; None when they do not.

    ``outputs_last`` says so of a matrix, whose shape need not tell.
    """
    if len(weight) == 2:
        outputs, inputs = reversed(weight) if outputs_last else weight
        fits = a == (rank, inputs) and b == (outputs, rank)
        return ("columns" if outputs_last else "rows") if fits else None
    if len(weight) == 3 and len(a) == 2:
        experts, one, other = weight
        rows = a == (rank * experts, other) and b == (one, rank * experts)
        columns = a == (rank * experts, one) and b == (other, rank * experts)
        if rows and columns:
            return None  # square: the shapes do not tell, and nothing else does
        return "experts" if rows else "experts transposed" if columns else None
    if len(weight) > 2:  # a convolution without groups
        fits = a == (rank, *weight[1:]) and len(b) == len(weight) and b[:2] == (weight[0], rank)
        return "rows" if fits and math.prod(b[2:]) == 1 else None
    return None
