"""The role of a parameter, by the module that owns it and by where that module stands.

Knows the built model; which checkpoint tensor goes into the parameter is not decided here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from dopkit.roles import Role
from dopkit.skeleton.names import answer_of, base_prefix

# Output layers of classes without a separate base model, by the first component of the name.
_HEAD = re.compile(r"(lm_head|classifier|score|qa_outputs|head|heads|fc|cls|\w+_head|\w+_classifier)$")
# What stands beside the base model, but does not lead to labels or words: into an embedding space, the final
# norm of an encoder, which a few classes keep outside, or another model.
_NO_HEAD = re.compile(
    r"((visual|text|vision|image|audio)_projection|embedding_proj_layer"
    r"|norm|layer_?norm|\w+_(model|encoder|tower))$"
)


class Parts:
    """Answers ``role`` for the parameters and persistent buffers of one model.

    ``tied`` are the twins that hold no values of their own.
    """

    def __init__(self, model: Any, tied: Mapping[str, str]) -> None:
        # Without duplicates a module that is registered twice would be missing under its second name.
        self._modules: dict[str, nn.Module] = dict(model.named_modules(remove_duplicate=False))
        self._buffers = {name for name, _ in model.named_buffers(remove_duplicate=False)}
        self._ranks = {name: tensor.dim() for name, tensor in model.state_dict().items()}
        self._tied = tied
        self._base = base_prefix(model)
        kind = type(model).__name__  # ViTModel has no head, whatever it calls its parts; GPT2LMHeadModel has
        self._headless = kind.endswith(("Model", "Backbone")) and "Head" not in kind
        output = answer_of(lambda: model.get_output_embeddings())
        if isinstance(output, nn.Embedding):  # used in both directions: still the embedding
            output = None
        self._outputs = {name for name, module in self._modules.items() if module is output is not None}

    def role(self, parameter: str, shape: tuple[int, ...]) -> Role:
        """The role of a checkpoint tensor of this shape that becomes ``parameter``, or a part of it."""
        parameter = self._tied.get(parameter, parameter)  # one storage, one role
        if parameter in self._buffers:
            return Role.BUFFER
        if self._in_head(parameter):
            return Role.HEAD
        return _as_stored(self._by_owner(parameter), shape)

    def _by_owner(self, parameter: str) -> Role:
        owner_name, _, name = parameter.rpartition(".")
        owner = self._modules[owner_name]
        if is_norm(owner):
            return Role.NORM
        if isinstance(owner, (nn.Embedding, nn.EmbeddingBag)):
            return Role.EMBEDDING
        if self._ranks[parameter] == 3 and "expert" in f"{type(owner).__name__} {parameter}".lower():
            return Role.EXPERTS_CONV1D if getattr(owner, "is_transposed", False) else Role.EXPERTS
        if is_linear(owner, name) and self._ranks[parameter] == 2:
            return Role.CONV1D if _stored_transposed(owner) else Role.LINEAR
        if isinstance(owner, nn.modules.conv._ConvNd) and name == "weight":
            return Role.CONV
        if name == "bias" or name.endswith("_bias"):
            return Role.BIAS
        return Role.PARAMETER

    def _in_head(self, parameter: str) -> bool:
        if parameter.rpartition(".")[0] in self._outputs:
            return True
        if self._headless:
            return False
        first, _, rest = parameter.partition(".")
        if self._base:
            return not parameter.startswith(self._base) and not _NO_HEAD.match(first)
        return bool(rest and _HEAD.match(first))


def is_norm(module: nn.Module) -> bool:
    """LayerNorm, RMSNorm, BatchNorm and all the classes of transformers that are named after them."""
    return any("Norm" in ancestor.__name__ for ancestor in type(module).__mro__)


def is_linear(owner: nn.Module, name: str) -> bool:
    """Whether parameter ``name`` of ``owner`` is the matrix of a linear map."""
    if isinstance(owner, nn.MultiheadAttention):
        return name.endswith("proj_weight")  # in_proj_weight stacks query, key and value
    if name != "weight":
        return False
    # Routers of mixtures of experts are linear layers that transformers writes out by hand.
    by_hand = type(owner).__name__.endswith(("Linear", "Router", "Gate"))
    return by_hand or isinstance(owner, nn.Linear) or _stored_transposed(owner)


def _stored_transposed(owner: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(owner, Conv1D)


def _as_stored(role: Role, shape: tuple[int, ...]) -> Role:
    """A tensor that is converted on loading may have another rank on disk than in the model."""
    if role in (Role.EXPERTS, Role.EXPERTS_CONV1D) and len(shape) == 2:
        return Role.LINEAR  # one expert of the stack
    if role in (Role.EXPERTS, Role.EXPERTS_CONV1D) and len(shape) < 2:
        return Role.BIAS
    if role is Role.LINEAR and len(shape) > 2:
        return Role.CONV  # a patch embedding, stored as the convolution it was
    return role
