"""What the tensors of a PEFT adapter are, by their names: factors of a module, or tensors that take another's place.

Knows no model: whether there is such a module is for others to say.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from dopkit.errors import Problem

# PEFT's model holds the base as `base_model`, and that holds it as `model`.
_WRAPPERS = ("base_model.model.", "base_model.")
_FACTOR = re.compile(
    r"(?P<module>.+)\.(?P<kind>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)"
    r"(?:\.(?P<adapter>(?!weight$|bias$)[^.]+))?(?:\.(?P<leaf>weight|bias))?"
)
_TOKENS = re.compile(r"(?P<module>.+)\.token_adapter\.trainable_tokens_delta(?:\.(?P<adapter>[^.]+))?")
_WHOLE = re.compile(r"(?P<module>.+)\.modules_to_save(?:\.(?P<adapter>[^.]+))?\.(?P<leaf>[^.]+)")
_ORIGINAL = re.compile(r".+\.original_module\.[^.]+")
_HOLDERS = re.compile(r"\.(?:base_layer|token_adapter)(?=\.|$)")


@dataclass
class Parts:
    """The tensors of one adapter, sorted. Every name that was given is in one of these, or in a problem."""

    # Module -> "A", "B", "A bias" ... -> tensor. A parameter trained apart is a wrapper around its module, several are
    # wrappers around each other: the module's name then ends in as many `.base_layer`.
    factors: dict[str, dict[str, str]] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)  # module -> rows of its weight that take the base's place
    whole: dict[str, str] = field(default_factory=dict)  # parameter -> tensor that takes its place
    copies: list[str] = field(default_factory=list)  # of what the base or the adapter holds elsewhere
    problems: list[Problem] = field(default_factory=list)


_KINDS = {
    "lora_A": "A", "lora_B": "B", "lora_embedding_A": "embedding A", "lora_embedding_B": "embedding B",
    "lora_magnitude_vector": "magnitude",
}  # fmt: skip


def sort_tensors(names: Iterable[str]) -> Parts:
    """Tell what each tensor is; those that are for two adapters, or twice for one place, are problems."""
    parts = Parts()
    adapters: dict[str, str] = {}
    saved: dict[str, str] = {}
    for name in names:
        inside = next((name.removeprefix(wrapper) for wrapper in _WRAPPERS if name.startswith(wrapper)), name)
        found = _sort(parts, saved, name, inside)
        if found is not None:
            adapters.setdefault(found, name)
    for parameter, name in saved.items():  # PEFT stores one under both names with `bias: all`, and reads the plain one
        if parts.whole.setdefault(parameter, name) != name:
            parts.copies.append(name)
    if len(adapters) > 1:
        both = " and ".join(sorted(adapters)[:2])
        parts.problems.append(Problem("", f"the file holds more than one adapter: {both}"))
    return parts


def _sort(parts: Parts, saved: dict[str, str], name: str, inside: str) -> str | None:
    """Put one tensor where it belongs; the name of its adapter, if the tensor's name holds it."""
    if match := _FACTOR.fullmatch(inside):
        kind = _KINDS[match["kind"]] + (" bias" if match["leaf"] == "bias" else "")
        _put(parts, parts.factors.setdefault(match["module"], {}), kind, name)
        return match["adapter"]
    if match := _TOKENS.fullmatch(inside):
        _put(parts, parts.tokens, without_wrappers(match["module"]), name)
        return match["adapter"]
    if match := _WHOLE.fullmatch(inside):
        _put(parts, saved, f"{match['module']}.{match['leaf']}", name)
        return match["adapter"]
    if _ORIGINAL.fullmatch(inside):
        parts.copies.append(name)
    else:
        _put(parts, parts.whole, without_wrappers(inside), name)
    return None


def _put(parts: Parts, place: dict[str, str], key: str, name: str) -> None:
    if key in place:
        parts.problems.append(Problem(name, f"is for the same place as {place[key]}"))
    place.setdefault(key, name)


def module_of(factor: str) -> str:
    """The module that a factor belongs to, by the factor's name."""
    inside = next((factor.removeprefix(wrapper) for wrapper in _WRAPPERS if factor.startswith(wrapper)), factor)
    match = _FACTOR.fullmatch(inside)
    assert match is not None, f"{factor} is no factor"
    return without_wrappers(match["module"])


def is_embedding(factor: str) -> bool:
    """Whether a factor is one of an embedding, by its name."""
    return ".lora_embedding_" in factor


def without_wrappers(name: str) -> str:
    """A module or parameter by the name it has without the adapter around it."""
    return _HOLDERS.sub("", name)
