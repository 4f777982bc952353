"""How task vectors relate: against the naive computation in memory, and what must hold for any model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import save_file

import dopkit
from dopkit.checkpoints.folder import FolderCheckpoint
from dopkit.engine import relating
from dopkit.errors import CheckpointError
from dopkit.inspection import inspect
from dopkit.linalg.spectra import energy_rank

MakeRecipe = Callable[..., dopkit.Recipe]
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}  # a pool of them would not live on in a fork


def task_vectors(root: Path, models: list[str]) -> dict[str, list[torch.Tensor]]:
    base = tiny.read(root / "base")
    read = [tiny.read(root / model) for model in models]
    return {name: [model[name].double() - base[name].double() for model in read] for name in base}


def naive(taus: list[torch.Tensor]) -> tuple[list[float], list[list[float]]]:
    norms = [float(tau.norm()) for tau in taus]
    inner = [[float((one * other).sum()) for other in taus] for one in taus]
    size = range(len(taus))
    return norms, [[inner[i][j] / norms[i] / norms[j] for j in size] for i in size]


def save(folder: Path, **tensors: torch.Tensor) -> None:
    folder.mkdir()
    save_file({name.replace("__", "."): tensor for name, tensor in tensors.items()}, folder / "model.safetensors")


@pytest.mark.parametrize("method", ["dop", "average"])
@pytest.mark.parametrize("family", ["llama", "vit"])
def test_numbers_are_those_of_the_naive_computation(
    family: str, method: str, make_recipe: MakeRecipe, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bfloat16 in shards and float32; blocks so small that every matrix is cut. The merge method does not matter."""
    monkeypatch.setattr(relating, "BLOCK_ELEMENTS", 200)
    monkeypatch.setattr(relating, "CHUNK_ELEMENTS", 28)
    root, models = request.getfixturevalue(family), ["e0", "e1", "e2"]
    data = inspect(make_recipe(root, models, method), energy=0.8).as_data()
    taus = task_vectors(root, models)
    base = tiny.read(root / "base")
    assert data["models"] == models
    assert data["tensors"].keys() == taus.keys()
    matrices = 0
    for name, found in data["tensors"].items():
        norms, cosines = naive(taus[name])
        assert found["norms"] == pytest.approx(norms, rel=1e-12)
        assert found["base_norm"] == pytest.approx(float(base[name].double().norm()), rel=1e-12)
        assert torch.allclose(torch.tensor(found["cosines"]), torch.tensor(cosines), rtol=0, atol=1e-7)
        if found["ranks"] is not None:
            matrices += 1
            assert found["ranks"] == [energy_rank(torch.linalg.svdvals(tau), 0.8) for tau in taus[name]]
            assert found["full_rank"] == min(base[name].shape)
    assert matrices == {"llama": 15, "vit": 12}[family]
    norms, cosines = naive([torch.cat([one[i].flatten() for one in taus.values()]) for i in range(3)])
    assert data["norms"] == pytest.approx(norms, rel=1e-12)
    assert torch.allclose(torch.tensor(data["cosines"]), torch.tensor(cosines), rtol=0, atol=1e-7)


def test_matrices_stored_transposed_have_ranks(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    tiny.make_gpt2(tmp_path / "base")
    tiny.make_expert(tmp_path / "base", tmp_path / "e0", seed=1)
    found = inspect(make_recipe(tmp_path, ["e0"]), energy=0.5).as_data()["tensors"]
    (tau,) = task_vectors(tmp_path, ["e0"])[name := "transformer.h.1.attn.c_attn.weight"]
    assert found[name]["ranks"] == [energy_rank(torch.linalg.svdvals(tau), 0.5)]
    assert found["transformer.wte.weight"]["ranks"] is None  # an embedding is no map


def test_the_rank_of_fused_experts_is_the_mean_of_their_slices(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    tau = torch.zeros(2, 3, 5)
    tau[0, 0, 0] = 1.0
    tau[1] = torch.eye(3, 5)
    save(tmp_path / "base", layers__0__experts__up=torch.ones(2, 3, 5))
    save(tmp_path / "e0", layers__0__experts__up=torch.ones(2, 3, 5) + tau)
    (found,) = inspect(make_recipe(tmp_path, ["e0"], "average"), energy=1.0).as_data()["tensors"].values()
    assert found["ranks"] == [2]
    assert found["full_rank"] == 3
    assert found["norms"] == [2.0]


def test_a_zero_task_vector_has_no_cosine_and_equal_models_have_one(
    llama: Path, tmp_path: Path, make_recipe: MakeRecipe
) -> None:
    for name, source in (("base", "base"), ("same", "base"), ("e0", "e0"), ("twin", "e0")):
        tiny.edit(llama / source, tmp_path / name, dict)
    relations = inspect(make_recipe(tmp_path, ["same", "e0", "twin"]))
    data = relations.as_data()
    for found in (data, *data["tensors"].values()):
        assert found["norms"][0] == 0
        assert found["cosines"][0] == [None, None, None]
        assert [row[0] for row in found["cosines"]] == [None, None, None]
        assert found["cosines"][1][2] == pytest.approx(1, abs=1e-12)
        assert found["cosines"] == [list(row) for row in zip(*found["cosines"], strict=True)]
    assert all(found["ranks"] is None or found["ranks"][0] == 0 for found in data["tensors"].values())
    json.dumps(data, allow_nan=False)


def test_scalars_empty_tensors_and_a_base_of_zeros(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    for name, value in (("base", 0.0), ("e0", 3.0), ("e1", -4.0)):
        save(tmp_path / name, scale=torch.tensor(value), layers__0__nothing__weight=torch.zeros(0, 4))
    relations = inspect(make_recipe(tmp_path, ["e0", "e1"], "average"))
    assert relations.products.norms == [3.0, 4.0]
    assert relations.products.cosines == [[1.0, -1.0], [-1.0, 1.0]]
    assert relations.products.relative == [None, None]
    assert relations.rank_shares is None


def test_what_is_copied_is_not_compared(llama: Path, make_recipe: MakeRecipe) -> None:
    relations = inspect(make_recipe(llama, ["e0", "e1"], copy=["*mlp*"]), ranks=False)
    names = [tensor.name for tensor in relations.tensors]
    assert len(names) == 15
    assert not [name for name in names if "mlp" in name]
    assert relations.energy is None
    assert all(tensor.ranks is None for tensor in relations.tensors)


def test_nan_is_traced_to_the_model(vit: Path, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    def spoil(value: float) -> Callable[[tiny.Tensors], tiny.Tensors]:
        def change(tensors: tiny.Tensors) -> tiny.Tensors:
            tensors["layernorm.weight"][1] = value
            return tensors

        return change

    tiny.edit(vit / "base", tmp_path / "base", dict)
    tiny.edit(vit / "e0", tmp_path / "e0", spoil(float("inf")))
    tiny.edit(vit / "e1", tmp_path / "e1", dict)
    tiny.edit(vit / "base", tmp_path / "bad", spoil(float("nan")))
    with pytest.raises(CheckpointError) as caught:
        inspect(make_recipe(tmp_path, ["e0", "e1"]))
    assert [(problem.place, problem.what) for problem in caught.value.problems] == [
        ("./e0", "layernorm.weight holds values that are NaN or infinite")
    ]
    with pytest.raises(CheckpointError) as caught:
        inspect(make_recipe(tmp_path, ["e0", "e1"], base="bad"))
    assert [problem.place for problem in caught.value.problems] == ["./bad"]


def test_each_weight_is_read_once_and_matrices_once_more(
    llama: Path, make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And all versions of a block together are no larger than a block, however many models there are."""
    read: list[tuple[str, int]] = []
    original = FolderCheckpoint.read

    def count(self: FolderCheckpoint, name: str, rows: tuple[int, int] | None = None) -> torch.Tensor:
        tensor = original(self, name, rows)
        read.append((name, tensor.numel()))
        return tensor

    monkeypatch.setattr(FolderCheckpoint, "read", count)
    monkeypatch.setattr(relating, "BLOCK_ELEMENTS", 256)
    models = ["e0", "e1", "e2", "e3"]
    weights = sum(tensor.numel() for tensor in tiny.read(llama / "base").values()) * (len(models) + 1)
    relations = inspect(make_recipe(llama, models), ranks=False)
    assert sum(numel for _, numel in read) == weights
    assert max(numel for _, numel in read) * (len(models) + 1) <= 256
    read.clear()
    inspect(make_recipe(llama, models))
    matrices = {job.name for job in relations.tensors if len(job.shape) == 2} - {"model.embed_tokens.weight"}
    again = sum(tensor.numel() for name, tensor in tiny.read(llama / "base").items() if name in matrices)
    assert sum(numel for _, numel in read) == weights + again * (len(models) + 1)


# The imports are made once; each measurement has a fork of its own, which begins with nothing held.
CHILD = """
import os, sys
from pathlib import Path
import dopkit
from dopkit import inspection
from dopkit.measure import peak_resident_bytes, resident_bytes

folder, ranks = Path(sys.argv[1]), sys.argv[2] == "ranks"

def look(models):
    text = f"base_model: ./{models[0]}\\nmerge_method: average\\nmodels: {['./' + name for name in models[1:]]}"
    inspection.inspect(dopkit.parse_recipe(text, folder=folder), ranks=ranks)

estimates = []
estimate = inspection.memory_bytes
inspection.memory_bytes = lambda *given: estimates.append(estimate(*given)) or estimates[-1]
look(["small0", "small1"])  # imports everything
for count in map(int, sys.argv[3:]):
    if os.fork() == 0:
        look(["small0", "small1"])  # maps the pages of code that a fork begins without
        before = resident_bytes()
        Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
        look([f"m{number}" for number in range(count + 1)])
        print(peak_resident_bytes() - before, estimates[-1], flush=True)
        os._exit(0)
    if os.wait()[1]:
        sys.exit(f"no look at {count} models")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="resets the kernel's peak through /proc")
@pytest.mark.parametrize("ranks", ["ranks", "no ranks"])
def test_memory_is_what_was_estimated_and_does_not_grow_with_the_number_of_models(tmp_path: Path, ranks: str) -> None:
    rows, columns = 512, 32768  # 64 MiB in float32
    for number in range(3):
        generator = torch.Generator().manual_seed(number)
        save(tmp_path / f"m{number}", layer__weight=torch.randn(rows, columns, generator=generator))
    for number in range(3, 13):
        (tmp_path / f"m{number}").mkdir()
        (tmp_path / f"m{number}" / "model.safetensors").hardlink_to(tmp_path / f"m{number % 2 + 1}/model.safetensors")
    for number in range(2):
        save(tmp_path / f"small{number}", layer__weight=torch.full((4, 4), float(number)))
    tensor_bytes = 4 * rows * columns
    call = [sys.executable, "-c", CHILD, tmp_path, ranks, "3", "12"]
    lines = subprocess.run(call, env=ONE_THREAD, capture_output=True, check=True, text=True).stdout.splitlines()
    assert len(lines) == 2
    peaks = []
    for peak, estimate in (map(int, line.split()) for line in lines):
        # On a machine short of memory the kernel takes back pages of code, which are counted when they come again.
        assert peak < estimate + (32 << 20)
        assert estimate < (8 if ranks == "ranks" else 4) * tensor_bytes
        peaks.append(peak)
    assert peaks[1] < peaks[0] + 1.5 * tensor_bytes, peaks  # nine more models would be nine more
