"""A whole model that holds others as its towers, as CLIP holds a vision tower. Told by their configs alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# What a config states once for all of its parts.
_OF_THE_WHOLE = ("dtype", "torch_dtype", "quantization_config", "tie_word_embeddings")


def tower_config(whole: Mapping[str, Any] | None, part: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """What the config of ``whole`` says of the tower that ``part`` is the config of; None where it has no such tower.

    That is its ``vision_config``, ``text_config`` or the like, with the class of ``part``. Sizes are not compared.
    """
    whole, part = whole or {}, part or {}
    kind = part.get("model_type")
    towers = [value for key, value in whole.items() if key.endswith("_config") and isinstance(value, Mapping)]
    found = [tower for tower in towers if tower.get("model_type") == kind]
    if kind is None or kind == whole.get("model_type") or len(found) != 1:
        return None
    stated = {key: whole[key] for key in _OF_THE_WHOLE if whole.get(key) is not None and found[0].get(key) is None}
    classes = {"architectures": part["architectures"]} if part.get("architectures") else {}
    return {**found[0], **stated, **classes}


def class_of(config: Mapping[str, Any] | None) -> str:
    """The class that a config names, for a sentence."""
    named = (config or {}).get("architectures")
    return str(named[0]) if isinstance(named, list) and named else "model without a named class"
