"""The receipt: everything a reader or a later merge needs, as data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest

import dopkit
from dopkit import receipt
from dopkit.errors import OutputError

MakeRecipe = Callable[..., dopkit.Recipe]


def test_what_it_says_is_what_happened(llama: Path, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(llama, ["e0", "e1", "e2"], parameters={"solver": "adam", "num_steps": 3})
    result = dopkit.run(recipe, tmp_path / "out", dopkit.Options(max_shard_size=9000))
    done = receipt.read(tmp_path / "out")
    assert done == result.receipt == json.loads(receipt.to_json(result.receipt))
    assert done["parameters"]["num_steps"] == 3 and done["parameters"]["alpha"] == 0.8
    assert [Path(model["model"]).name for model in done["models"]] == ["e0", "e1", "e2"]
    assert len({source["identity"] for source in [done["base"], *done["models"]]}) == 4  # tells models apart
    for shard in done["shards"]:
        raw = (tmp_path / "out" / shard["file"]).read_bytes()
        assert (shard["bytes"], shard["sha256"]) == (len(raw), hashlib.sha256(raw).hexdigest())
    assert list(done["tensors"]) == [job.name for job in result.plan.jobs]
    matrix = done["tensors"]["model.layers.0.mlp.up_proj.weight"]
    assert (matrix["role"], matrix["rule"], matrix["device"]) == ("linear", "dop adam", "cpu")
    assert [step["step"] for step in matrix["steps"]] == [2, 3]
    assert {"stability_before", "stability_after", "plasticity_before", "plasticity_after", "rank_merged",
            "rank_incoming", "weight"} <= matrix["steps"][0].keys()  # fmt: skip
    assert done["tensors"]["model.norm.weight"].keys() == {"role", "rule", "device", "seconds"}
    assert {"torch", "transformers", "dopkit", "python"} <= done["versions"].keys()
    assert done["run"]["peak_resident_bytes"] > done["run"]["resident_bytes_before"] > 10**7
    assert done["run"]["seconds"] > 0


def test_objective_adds_up_the_steps() -> None:
    steps = [{"objective_before": 3.0, "objective_after": 1.0}, {"objective_before": 2.0, "objective_after": 0.5}]
    pairs = {"parameters": {"history": "last"}}
    done = {**pairs, "tensors": {"a": {"steps": steps}, "b": {"steps": steps[:1]}, "c": {}}}
    clause = "the objective over 2 matrices: 31.2% of what it is at the mean of each pair"
    assert receipt.objective(done) == clause
    at_once = {"parameters": {"history": "all"}, "tensors": {"a": {"steps": [{"step": 1}, *steps]}}}
    assert receipt.objective(at_once) == "the objective over 1 matrix: 25.0% of what it is at the mean of the models"
    still = {"tensors": {"a": {"steps": [{"objective_before": 0.0, "objective_after": 0.0}]}}}
    assert "no more than what it is" in str(receipt.objective(still))
    assert receipt.objective({"tensors": {"c": {}}}) is None


def test_reading_what_is_no_receipt(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is not a merged model"):
        receipt.read(tmp_path)
    path = tmp_path / "dopkit_receipt.json"
    path.write_text("{")
    with pytest.raises(OutputError, match="is damaged"):
        receipt.read(tmp_path)
    path.write_text('{"layout": 99}')
    with pytest.raises(OutputError, match="another version of dopkit"):
        receipt.read(tmp_path)


@pytest.mark.parametrize("parameters", [3, "alpha", [0.8], None])
def test_parameters_that_are_none(vit: Path, tmp_path: Path, make_recipe: MakeRecipe, parameters: object) -> None:
    dopkit.run(make_recipe(vit, ["e0"], "average"), tmp_path / "out")
    path = tmp_path / "out" / "dopkit_receipt.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "parameters": parameters}))
    with pytest.raises(OutputError, match="is damaged: parameters"):
        receipt.read(tmp_path / "out")


@pytest.mark.parametrize(
    "damage",
    [
        {"rows": [{"label": "x", "kind": "step", "model": None, "scores": {"a": 0.5}}]},
        {"rows": "none"},
        {"acc": "high"},
        {"definitions": {}},
        {"tasks": [{"name": 7, "metric": "accuracy"}]},
    ],
)
def test_scores_that_are_none(vit: Path, tmp_path: Path, make_recipe: MakeRecipe, damage: dict[str, object]) -> None:
    """A receipt may be somebody else's: scores in it are shown only when they are scores."""
    dopkit.run(make_recipe(vit, ["e0"], "average"), tmp_path / "out")
    path = tmp_path / "out" / "dopkit_receipt.json"
    done = json.loads(path.read_text())
    row = {"label": "step 1", "kind": "step", "model": "e0", "scores": {"a": {"value": 0.5}}}
    good = {"tasks": [{"name": "a", "metric": "accuracy"}], "rows": [row], "acc": 0.5, "bwt": None}
    evaluation = {**good, "definitions": {"acc": "ACC: the mean."}}
    path.write_text(json.dumps({**done, "evaluation": evaluation}))
    assert receipt.read(tmp_path / "out")["evaluation"] == evaluation
    path.write_text(json.dumps({**done, "evaluation": {**evaluation, **damage}}))
    with pytest.raises(OutputError, match="is damaged: evaluation"):
        receipt.read(tmp_path / "out")
