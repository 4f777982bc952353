"""Layer and part of a tensor, by the names that transformers gives them."""

from __future__ import annotations

import pytest

from dopkit.places import Place, part_order, place_of
from dopkit.roles import Role


@pytest.mark.parametrize(
    ("name", "role", "place"),
    [
        ("layers.11.self_attn.q_proj.weight", Role.LINEAR, Place("layers", 11, "q")),
        ("layers.11.self_attn.q_proj.bias", Role.BIAS, Place("layers", 11, "other")),
        ("layers.11.mlp.gate_proj.weight", Role.LINEAR, Place("layers", 11, "mlp gate")),
        ("layers.3.mlp.experts.7.down_proj.weight", Role.LINEAR, Place("layers", 3, "mlp down")),
        ("layers.3.mlp.experts.gate_up_proj", Role.EXPERTS, Place("layers", 3, "mlp gate+up")),
        ("layers.3.mlp.gate.weight", Role.LINEAR, Place("layers", 3, "gate")),
        ("vision_model.encoder.layers.0.mlp.fc1.weight", Role.LINEAR,
         Place("vision_model.encoder.layers", 0, "mlp up")),
        ("vision_model.encoder.layers.0.self_attn.out_proj.weight", Role.LINEAR,
         Place("vision_model.encoder.layers", 0, "o")),
        ("encoder.layer.2.attention.attention.value.weight", Role.LINEAR, Place("encoder.layer", 2, "v")),
        ("encoder.layer.2.attention.output.dense.weight", Role.LINEAR, Place("encoder.layer", 2, "o")),
        ("encoder.layer.2.intermediate.dense.weight", Role.LINEAR, Place("encoder.layer", 2, "mlp up")),
        ("encoder.layer.2.output.dense.weight", Role.LINEAR, Place("encoder.layer", 2, "mlp down")),
        ("h.5.attn.c_attn.weight", Role.CONV1D, Place("h", 5, "qkv")),
        ("h.5.attn.c_proj.weight", Role.CONV1D, Place("h", 5, "o")),
        ("h.5.mlp.c_proj.weight", Role.CONV1D, Place("h", 5, "mlp down")),
        ("decoder.block.1.layer.2.DenseReluDense.wo.weight", Role.LINEAR, Place("decoder.block", 1, "mlp down")),
        ("decoder.block.1.layer.0.SelfAttention.o.weight", Role.LINEAR, Place("decoder.block", 1, "o")),
        ("embed_tokens.weight", Role.EMBEDDING, Place("", None, "embedding")),
        ("visual_projection.weight", Role.LINEAR, Place("", None, "visual_projection")),
        ("lm_head.weight", Role.HEAD, Place("", None, "head")),
        ("3.weight", Role.LINEAR, Place("", 3, "matrix")),
    ],
)  # fmt: skip
def test_places(name: str, role: Role, place: Place) -> None:
    assert place_of(name, role) == place


def test_parts_are_sorted_along_the_layer() -> None:
    parts = ["other", "mlp down", "gate", "q", "mlp up", "o", "embedding"]
    assert sorted(parts, key=part_order) == ["q", "o", "mlp up", "mlp down", "embedding", "gate", "other"]
