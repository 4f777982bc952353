"""Which tensors of a model have one row for every token of the vocabulary, asked of its class.

The class is built twice, the second time with a longer vocabulary: what has grown follows it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from dopkit.skeleton.construct import CannotBuild, construct
from dopkit.skeleton.names import Anatomy

_MORE = 64  # tokens
# For checkpoints whose class cannot be built: what such tensors are called.
_USUAL = re.compile(
    r"(^|\.)(embed_tokens|wte|word_embeddings|embed_in|tok_embeddings|tokens_embed|shared|lm_head|embed_out)\.(weight|bias)$"
)


def vocabulary_axes(config: Mapping[str, Any] | None, names: Iterable[str]) -> dict[str, int]:
    """Canonical name to the axis that counts tokens, of those ``names`` that have one.

    Tied twins are told as well. Where the class cannot be built it is a guess by name.
    """
    try:
        model, longer = construct(config), construct(config, _MORE)
    except CannotBuild:
        return {name: 0 for name in names if _USUAL.search(name)}
    anatomy = Anatomy.of(model)
    grown = {name: tuple(tensor.shape) for name, tensor in longer.state_dict().items()}
    axes = {}
    for name, shape in anatomy.shapes.items():
        pairs = zip(shape, grown.get(name, shape), strict=True)
        if changed := [axis for axis, (before, after) in enumerate(pairs) if before != after]:
            axes[anatomy.canonical(name)] = changed[0]
    return {name: axes[name] for name in names if name in axes}
