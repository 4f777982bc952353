"""Matrices sorted by layer, part and step: sums against sums done by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from dopkit.report import layers


def test_sums(receipt: dict[str, Any]) -> None:
    shapes = {"layers.0.attn.q_proj.weight": (4, 8), "layers.1.attn.q_proj.weight": (8, 8)}
    solved = layers.collect(receipt["tensors"], shapes)
    assert list(solved.parts) == ["q", "mlp up"] and solved.layers == [0, 1]
    q = solved.by_part["q"]
    assert (q.matrices, q.seconds) == (2, 0.5)
    assert q.sums["stability_before"] == pytest.approx(0.044) and q.sums["plasticity_after"] == pytest.approx(0.033)
    assert q.ranks_incoming == [2 / 4, 2 / 8] and q.mean("ranks_merged") == pytest.approx((4 / 4 + 4 / 8) / 2)
    assert solved.parts["q"][1].sums["objective_after"] == pytest.approx(0.01)
    assert 1 not in solved.parts["mlp up"]
    assert solved.by_part["mlp up"].unmeasured == 2 and solved.by_part["mlp up"].mean("ranks_merged") is None
    assert list(solved.by_step) == [2] and solved.by_step[2].matrices == 3
    assert solved.by_step[2].sums["objective_before"] == pytest.approx(4 * 0.111)
    assert [matrix.after for matrix in solved.matrices] == pytest.approx([1e-3, 1e-2, 1e-1])


def test_stacks_and_experts_and_what_stands_in_no_layer() -> None:
    step = {"step": 2, "objective_before": 1.0, "objective_after": 0.5}
    names = [
        "text_model.encoder.layers.0.self_attn.q_proj.weight", "vision_model.encoder.layers.0.self_attn.q_proj.weight",
        "vision_model.encoder.layers.3.mlp.experts.0.fc1.weight",
        "vision_model.encoder.layers.3.mlp.experts.1.fc1.weight", "visual_projection.weight",
    ]  # fmt: skip
    entry = {"role": "linear", "rule": "dop exact", "seconds": 1.0, "steps": [step]}
    solved = layers.collect(dict.fromkeys(names, entry), {})
    assert list(solved.parts) == ["text_model: q", "vision_model: q", "vision_model: mlp up"]
    assert solved.parts["vision_model: mlp up"][3].matrices == 2
    assert solved.layers == [0, 3]
    assert len(solved.matrices) == 5  # the projection too
    assert (
        solved.by_part["text_model: q"].weights == [] and "stability_before" not in solved.by_part["text_model: q"].sums
    )


@pytest.mark.parametrize("name", ["x.99999999999.weight", "x." + "9" * 5000 + ".weight", "weight", ""])
def test_names_that_count_no_layer(name: str) -> None:
    assert layers.located(name, "linear") is None


def test_numbers_that_are_none_are_left_out() -> None:
    assert layers.located("x.1.q_proj.weight", "no role") is None
    steps = [{"step": 2, "objective_before": math.nan, "objective_after": "3", "weight": True, "rank_merged": None}]
    solved = layers.collect(
        {"x.0.attn.q_proj.weight": {"role": "linear", "rule": "r", "seconds": math.inf, "steps": steps}}, {}
    )
    assert solved.by_part["q"].sums == {} and solved.by_part["q"].weights == [] and solved.by_part["q"].seconds == 0
