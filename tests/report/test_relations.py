"""Relations of task vectors: by layer against vectors put together by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest

from dopkit.errors import OutputError
from dopkit.report import relations as known_relations


def test_by_layer(relations: dict[str, Any]) -> None:
    known = known_relations.read(relations)
    assert known is not None
    layers = known.by_layer()
    norms, cosine = layers[0]
    assert norms == pytest.approx([5 / 10, math.sqrt(2) / 10])  # 3 and 4 are 5; one base is not known
    assert cosine == pytest.approx((0.5 * 3 * 1 + 0.0) / (5 * math.sqrt(2)))
    assert layers[1] == ([1 / 20, 2 / 20], pytest.approx(-0.5))


def test_most_changed_and_ranks(relations: dict[str, Any]) -> None:
    known = known_relations.read(relations)
    assert known is not None
    assert [name for name, _ in known.most_changed(8)] == ["layers.0.attn.q_proj.weight", "layers.1.attn.q_proj.weight"]
    assert len(known.most_changed(1)) == 1
    assert [known.rank_share(index) for index in (0, 1)] == [(2 / 4 + 1 / 4) / 2, (4 / 4 + 3 / 4) / 2]


def test_zero_vectors_have_no_cosine(relations: dict[str, Any]) -> None:
    relations["tensors"] = {"x.0.weight": {"norms": [0.0, 1.0], "base_norm": 1.0, "cosines": [[None] * 2, [None, 1.0]]}}
    known = known_relations.read(relations)
    assert known is not None and known.by_layer() == {0: ([0.0, 1.0], None)}


@pytest.mark.parametrize("damage", [{"norms": [1.0]}, {"cosines": [[1.0]]}, {"tensors": {"a": {"norms": [1, 2, 3]}}}])
def test_damage_is_named(relations: dict[str, Any], damage: dict[str, Any]) -> None:
    with pytest.raises(OutputError, match="the relations of the task vectors"):
        known_relations.read(relations | damage)
