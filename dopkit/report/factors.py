"""The receipt of a merged adapter as one of matrices: what was merged is B A, its factors are how that is kept."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

_PREFIX = "base_model.model."  # of the names that dopkit writes, as PEFT does
_A_OF = {".lora_B.weight": ".lora_A.weight", ".lora_embedding_B": ".lora_embedding_A"}
Tensors = Mapping[str, Mapping[str, Any]]
Shapes = Mapping[str, Sequence[int]]


def as_matrices(tensors: Tensors, shapes: Shapes) -> tuple[Tensors, Shapes]:
    """Each module in the place of its two factors, with the shape of its matrix; all other tensors as they are."""
    pairs = {name: name.removesuffix(end) + a for name in tensors for end, a in _A_OF.items() if name.endswith(end)}
    if not pairs:
        return tensors, shapes
    second = set(pairs.values())
    found, sides = {}, dict(shapes)
    for name, tensor in tensors.items():
        if name in second:
            continue
        called = f"{name.removeprefix(_PREFIX).rpartition('.lora_')[0]}.weight" if name in pairs else name
        found[called] = tensor
        if name in shapes and pairs.get(name) in shapes:
            sides[called] = (shapes[name][0], math.prod(shapes[pairs[name]][1:]))
    return found, sides
