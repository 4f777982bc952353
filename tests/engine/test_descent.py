"""Whether a model was fine-tuned from the base, judged by a sample of its weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch

import dopkit
from dopkit.engine import descent
from dopkit.errors import Problem
from dopkit.preparing import Options, prepare
from dopkit.progress import Progress
from dopkit.writer import OutputFolder

MakeRecipe = Callable[..., dopkit.Recipe]


def judged(recipe: dopkit.Recipe, out: Path) -> list[Problem]:
    with prepare(recipe, OutputFolder(out), Options(), Progress()) as prepared:
        return descent.check_descent(prepared.plan, prepared.sources.donor, prepared.sources.models)


def stranger(base: Path, folder: Path) -> Path:
    """Another training from scratch: the same shapes, other numbers."""
    generator = torch.Generator().manual_seed(7)

    def fresh(tensors: tiny.Tensors) -> tiny.Tensors:
        return {
            name: (0.02 * torch.randn(tensor.shape, generator=generator)).to(tensor.dtype)
            for name, tensor in tensors.items()
        }

    return tiny.edit(base, folder, fresh)


def test_fine_tuned_models_pass(llama: Path, vit: Path, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    assert judged(make_recipe(llama, ["e0", "e1", "e2"]), tmp_path / "out") == []
    assert judged(make_recipe(vit, ["e0", "e1"]), tmp_path / "out") == []


def test_strangers_are_named(vit: Path, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    for name in ("base", "e0"):
        tiny.edit(vit / name, tmp_path / name, dict)
    stranger(vit / "base", tmp_path / "other")
    found = judged(make_recipe(tmp_path, ["e0", "other"]), tmp_path / "out")
    assert [problem.place for problem in found] == ["./other"]
    assert "was not fine-tuned from ./base: its weights are others (cosine " in found[0].what
    cosine = float(found[0].what.rpartition(" ")[2].rstrip(")"))
    assert abs(cosine) < 0.2


@pytest.mark.parametrize(("share", "refused"), [(0.0, False), (0.4, False), (0.6, True)])
def test_half_of_the_way_is_the_limit(
    vit: Path, tmp_path: Path, make_recipe: MakeRecipe, share: float, refused: bool
) -> None:
    """Weights turned away from the base: the cosine is 1, 0.56 and 0.34."""
    generator = torch.Generator().manual_seed(3)
    tiny.edit(vit / "base", tmp_path / "base", dict)

    def turned(tensors: tiny.Tensors) -> tiny.Tensors:
        cosine = 1 - 1.1 * share  # 1, 0.56, 0.34
        return {
            name: cosine * tensor
            + (1 - cosine**2) ** 0.5
            * torch.randn(tensor.shape, generator=generator)
            * float(tensor.square().mean() ** 0.5)
            for name, tensor in tensors.items()
        }

    tiny.edit(vit / "base", tmp_path / "model", turned)
    assert bool(judged(make_recipe(tmp_path, ["model"]), tmp_path / "out")) is refused


def test_a_zero_model_is_not_judged(vit: Path, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    """There is no angle to nothing."""
    tiny.edit(vit / "base", tmp_path / "base", dict)
    tiny.edit(vit / "base", tmp_path / "zero", lambda tensors: {name: 0 * tensor for name, tensor in tensors.items()})
    assert judged(make_recipe(tmp_path, ["zero"]), tmp_path / "out") == []


def test_without_a_base_there_is_nothing_to_compare_with(vit: Path, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    tiny.edit(vit / "e0", tmp_path / "e0", dict)
    stranger(vit / "base", tmp_path / "other")
    assert judged(make_recipe(tmp_path, ["e0", "other"], "average", base=None), tmp_path / "out") == []


def test_only_a_sample_is_read(
    vit: Path, tmp_path: Path, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most so many matrices, and of each so many elements, whatever the model's size."""
    monkeypatch.setattr(descent, "_MATRICES", 3)
    monkeypatch.setattr(descent, "_ELEMENTS", 64)
    read = []
    with prepare(make_recipe(vit, ["e0"]), OutputFolder(tmp_path / "out"), Options(), Progress()) as prepared:
        model = prepared.sources.models[0]
        whole = model.read

        def watched(name: str, rows: tuple[int, int] | None = None) -> torch.Tensor:
            tensor = whole(name, rows)
            read.append(tensor.numel())
            return tensor

        monkeypatch.setattr(model, "read", watched)
        assert descent.check_descent(prepared.plan, prepared.sources.donor, [model]) == []
    assert len(read) == 3 and max(read) <= 64
