"""What a tensor is to its model. Plain names, so that rules can be chosen without loading torch.

Which tensor has which role is found out by ``skeleton``; this module only names them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Role(StrEnum):
    """The part a tensor plays in its model."""

    LINEAR = "linear"  # weight of nn.Linear, (out, in)
    CONV1D = "conv1d"  # weight of GPT-2's Conv1D, a linear layer stored transposed, (in, out)
    EXPERTS = "experts"  # fused mixture-of-experts weight, (experts, out, in)
    EXPERTS_CONV1D = "experts conv1d"  # the same stored transposed, (experts, in, out): gpt-oss, Aria
    EMBEDDING = "embedding"
    NORM = "norm"  # weight or bias of a normalisation
    CONV = "conv"
    BIAS = "bias"  # of a linear layer or a convolution
    HEAD = "head"  # weight or bias of what stands on the backbone: classifier, untied language-model head
    PARAMETER = "parameter"  # class token, position embedding as a bare parameter, scale
    BUFFER = "buffer"  # not trained: running statistics, position ids, frequencies


# Whose matrices have their input side first.
TRANSPOSED = (Role.CONV1D, Role.EXPERTS_CONV1D)


@dataclass(frozen=True)
class Standing:
    """Where a tensor stands among the layers of its model."""

    stack: str = ""  # canonical name of the stack of layers that it belongs to, or is nearest to
    layer: int | None = None  # its number in that stack; None for what is in no layer
    depth: float = 0.0  # from 0 in the first layer to 1 in the last one; 0 for what is in no layer, as in mergekit
    behind: bool = False  # comes after the stack, and is no part of it


@dataclass(frozen=True)
class TensorRole:
    """One checkpoint tensor as its model sees it."""

    # The name inside the model class of the installed transformers, without the prefix of the backbone.
    canonical: str
    role: Role
    # Set when several checkpoint tensors are fused into one parameter on loading (experts of a
    # mixture): the tensor is still merged as it lies on disk.
    fused: bool = False
    standing: Standing = Standing()
