"""Refusing matrices that hold NaN or infinity, before a factorisation fails on them or a comparison hides them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dopkit.errors import MergeError

OWNERS = {"base": "base model", "merged": "model merged so far", "incoming": "incoming model"}


def refuse_not_finite(**tensors: Tensor) -> None:
    """Raise MergeError when one of the tensors, named by its owner, holds a value that is not finite."""
    for owner, tensor in tensors.items():
        if tensor.numel() == 0:
            continue
        # Both ends are NaN if any value is; no mask of the tensor's size is made.
        if not all(math.isfinite(float(end)) for end in torch.aminmax(tensor)):
            raise MergeError(f"the {OWNERS[owner]} holds a value that is not finite (NaN or infinity)")
