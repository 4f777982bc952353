"""dopkit against mergekit 0.1.5: the same recipes on the same tiny Llamas, from recipe to file.

golden/mergekit holds mergekit's results; make.py there says how they were made. What differs on purpose has a test of
its own: random draws, whose generator differs, and Model Stock where task vectors point away from each other.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
import yaml
from safetensors.torch import load_file

import dopkit

GOLDEN = Path(__file__).parent / "golden" / "mergekit"
INPUTS = GOLDEN / "inputs"
METHODS = yaml.safe_load((GOLDEN / "cases.yaml").read_text())
DIALECT = yaml.safe_load((GOLDEN / "dialect.yaml").read_text())  # slices, gradients, filters
CASES = METHODS | DIALECT
DIFFERENT = ["dare_linear-half", "della_linear-half", "model_stock-rows"]

Merged = tuple[tiny.Tensors, tiny.Tensors]


@pytest.fixture
def merge(tmp_path: Path) -> Callable[[str], Merged]:
    """What dopkit and what mergekit made of the recipe of that name."""

    def run(name: str) -> Merged:
        recipe = dopkit.parse_recipe(yaml.safe_dump(CASES[name]), folder=INPUTS)
        dopkit.run(recipe, tmp_path / name)
        return tiny.read(tmp_path / name), load_file(GOLDEN / f"{name}.safetensors")

    return run


@pytest.fixture(scope="module")
def base() -> tiny.Tensors:
    return tiny.read(INPUTS / "base")


def agrees(found: torch.Tensor, golden: torch.Tensor, base: torch.Tensor) -> bool:
    """Up to float32 rounding, of the numbers and of a task vector that is a small difference of them."""
    rounding = 2e-7 * float(golden.norm()) + 1e-5 * float((golden - base).norm())
    return float((found - golden).norm()) <= rounding


@pytest.mark.parametrize("name", [name for name in CASES if name not in DIFFERENT])
def test_the_same_model(name: str, merge: Callable[[str], Merged], base: tiny.Tensors) -> None:
    found, golden = merge(name)
    assert found.keys() == golden.keys()
    like = base if name in METHODS else golden  # of other layers than the base's: up to the rounding of the numbers
    assert found.keys() == like.keys()
    assert [key for key in like if not agrees(found[key], golden[key], like[key])] == []


def test_every_method_of_mergekits_is_compared() -> None:
    """The twenty methods that mergekit 0.1.5 has."""
    assert {case["merge_method"] for case in METHODS.values()} == {
        "linear", "slerp", "nuslerp", "multislerp", "karcher", "task_arithmetic", "ties", "dare_linear", "dare_ties",
        "della", "della_linear", "breadcrumbs", "breadcrumbs_ties", "sce", "model_stock", "nearswap", "arcee_fusion",
        "ram", "ramplus_tl", "passthrough",
    }  # fmt: skip


def test_dare_drops_as_many_and_keeps_the_expectation(merge: Callable[[str], Merged], base: tiny.Tensors) -> None:
    """Half of the entries stay in both. dopkit doubles them, as the paper does; mergekit multiplies all by
    what restores the sum of their magnitudes, which is not unbiased, and overflows in half precision on a GPU.
    """
    found, golden = merge("dare_linear-half")
    expert = tiny.read(INPUTS / "e2")
    kept = []
    for key in base:
        delta = expert[key] - base[key]
        ours, theirs = found[key] - base[key], golden[key] - base[key]
        # Of what was dropped exactly zero is left; a kept entry of a norm's weight may be lost to rounding.
        kept.append(torch.stack([(ours != 0).float().flatten(), (theirs != 0).float().flatten()]))
        there = ours.abs() > 1e-5
        assert torch.allclose(ours[there], 2 * delta[there], rtol=1e-2)
        assert float(theirs.abs().sum()) == pytest.approx(float(delta.abs().sum()), rel=1e-3)
    shares = torch.cat(kept, 1).mean(1)
    assert shares.tolist() == pytest.approx([0.5, 0.5], abs=0.02)  # of 6736 entries; the deviation is 0.006


def test_della_drops_by_rank_in_a_row(merge: Callable[[str], Merged], base: tiny.Tensors) -> None:
    """Chances grow from 0.35 to 0.65 with the rank in a row, in both. dopkit divides each entry by its own, as the
    paper does; mergekit multiplies all of a tensor's by one number.
    """
    found, golden = merge("della_linear-half")
    expert = tiny.read(INPUTS / "e2")
    kept: list[torch.Tensor] = []
    for key in base:
        if base[key].dim() < 2:
            continue
        delta = expert[key] - base[key]
        ranks = delta.abs().argsort(1).argsort(1)
        chances = 0.35 + 0.3 * ranks / (delta.shape[1] - 1)
        ours, theirs = found[key] - base[key], golden[key] - base[key]
        assert torch.allclose(ours[ours != 0], (delta / chances)[ours != 0], rtol=1e-2, atol=1e-6)
        kept.append(torch.stack([*(part.flatten() for part in (chances, (ours != 0).float(), (theirs != 0).float()))]))
    chances, ours, theirs = torch.cat(kept, 1)
    for low in (0.35, 0.45, 0.55):
        inside = (chances >= low) & (chances <= low + 0.1)
        want = float(chances[inside].mean())
        assert float(ours[inside].mean()) == pytest.approx(want, abs=0.04)
        assert float(theirs[inside].mean()) == pytest.approx(want, abs=0.04)


def test_model_stock_goes_no_further_back_than_to_the_base(merge: Callable[[str], Merged], base: tiny.Tensors) -> None:
    """Row by row: the same, but where the mean cosine is negative. mergekit then moves away from the models, without
    bounds as they come to cancel out; dopkit stays at the base. The paper's angles are below 90 degrees.
    """
    found, golden = merge("model_stock-rows")
    experts = [tiny.read(INPUTS / f"e{index}") for index in range(3)]
    away = 0
    for key in base:
        mean = sum(expert[key] - base[key] for expert in experts) / 3
        rows = (golden[key] - base[key]).reshape(len(base[key]) if base[key].dim() > 1 else 1, -1)
        back = (rows * mean.view_as(rows)).sum(1) < 0
        away += int(back.sum())
        ours, theirs, stays = (model[key].view_as(rows) for model in (found, golden, base))
        assert torch.equal(ours[back], stays[back])
        assert agrees(ours[~back], theirs[~back], stays[~back])
    assert 0 < away < 60  # of 405 rows


def test_the_result_of_arcee_fusion_has_the_dtype_of_the_base(tmp_path: Path) -> None:
    """mergekit writes float32 whatever the recipe and the models say."""

    def half(tensors: tiny.Tensors) -> tiny.Tensors:
        return {name: tensor.bfloat16() for name, tensor in tensors.items()}

    for name in ("base", "e2"):
        tiny.edit(INPUTS / name, tmp_path / name, half)
    recipe = dopkit.parse_recipe(yaml.safe_dump(CASES["arcee_fusion"]), folder=tmp_path)
    dopkit.run(recipe, tmp_path / "out")
    assert {tensor.dtype for tensor in tiny.read(tmp_path / "out").values()} == {torch.bfloat16}
