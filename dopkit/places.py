"""Where in its network a tensor stands: which layer, and which part of it. Read from the canonical name and the role.

For tables only: nothing is decided by what is found here.
"""

from __future__ import annotations

from dataclasses import dataclass

from dopkit.roles import Role

OTHER = "other"
_ATTENTION = {
    "q": ("q", "q_proj", "q_lin", "query", "wq"),
    "k": ("k", "k_proj", "k_lin", "key", "wk"),
    "v": ("v", "v_proj", "v_lin", "value", "wv"),
    "qkv": ("qkv", "qkv_proj", "c_attn", "in_proj", "in_proj_weight", "query_key_value", "Wqkv"),
    "o": ("o", "o_proj", "out_proj", "out_lin", "c_proj", "dense", "proj", "wo"),
}
_MLP = {
    "mlp gate": ("gate_proj", "w1", "wi_0"),
    "mlp up": ("up_proj", "fc1", "c_fc", "lin1", "wi", "wi_1", "w3", "dense_h_to_4h"),
    "mlp gate+up": ("gate_up_proj", "weights_in"),
    "mlp down": ("down_proj", "fc2", "c_proj", "lin2", "wo", "w2", "dense_4h_to_h", "weights_out"),
}
_PARTS = {
    attention: {word: part for part, words in (_ATTENTION if attention else _MLP).items() for word in words}
    for attention in (True, False)
}
_ORDER = (*_ATTENTION, *_MLP)


@dataclass(frozen=True)
class Place:
    """A part of one layer of one stack of layers; the stack is empty and the layer None outside of them."""

    stack: str  # ``model.layers``, ``vision_model.encoder.layers``
    layer: int | None
    part: str  # ``q``, ``o``, ``mlp down`` ...; ``other`` for norms, biases and single parameters


def place_of(canonical: str, role: Role) -> Place:
    """The place of a tensor. The first number of a name counts the layer; later ones (experts) are one part."""
    words = canonical.split(".")
    at = next((position for position, word in enumerate(words) if word.isdecimal()), None)
    if at is None:
        return Place("", None, _part(words, role))
    return Place(".".join(words[:at]), int(words[at]), _part(words[at + 1 :], role))


def part_order(part: str) -> tuple[int, str]:
    """Sorts parts along the way through a layer: known ones first, ``other`` last."""
    if part in _ORDER:
        return _ORDER.index(part), ""
    return len(_ORDER) + (part == OTHER), part


def _part(words: list[str], role: Role) -> str:
    if role in (Role.EMBEDDING, Role.HEAD, Role.CONV):
        return str(role)
    if role not in (Role.LINEAR, Role.CONV1D, Role.EXPERTS, Role.EXPERTS_CONV1D):
        return OTHER
    words = [word for word in words if not word.isdecimal() and word != "weight"]
    if not words:
        return "matrix"
    last, path = words[-1], [word.lower() for word in words[:-1]]
    attention = any("att" in word for word in path)
    if last in _PARTS[attention]:
        return _PARTS[attention][last]
    if last == "dense" and path and path[-1] in ("intermediate", "output"):  # BERT and its kin
        return "mlp up" if path[-1] == "intermediate" else "mlp down"
    return last
