"""What a report makes of a merged adapter's receipt."""

from __future__ import annotations

from dopkit.report.factors import as_matrices

Q = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"
E = "base_model.model.model.embed_tokens.lora_embedding_{}"


def test_a_module_stands_for_its_factors() -> None:
    b = {"role": "linear", "steps": [{"rank_merged": 3}]}
    tensors = {
        E.format("A"): {},
        E.format("B"): {"role": "embedding"},
        Q.format("A"): {"role": "linear"},
        Q.format("B"): b,
    }
    shapes = {Q.format("A"): (4, 32), Q.format("B"): (16, 4), E.format("A"): (4, 100)}
    found, sides = as_matrices(tensors, shapes)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert found == {"model.embed_tokens.weight": {"role": "embedding"}, name: b}
    assert sides[name] == (16, 32)
    assert "model.embed_tokens.weight" not in sides


def test_a_model_stays_as_it_is() -> None:
    tensors, shapes = {"layers.0.q.weight": {"role": "linear"}}, {"layers.0.q.weight": (2, 3)}
    assert as_matrices(tensors, shapes) == (tensors, shapes)
