"""dopkit against the published procedure: what FusionBench 0.2.33 made of three tiny CLIP vision models on the CPU.

The folders in golden/clip-tiny are its outputs; cases.json holds the parameters. Whole runs here, from recipe to file;
tests/methods/test_dop.py holds the same numbers against the fold alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch

import dopkit
from dopkit.methods.parameters import DopParameters
from dopkit.roles import Role

GOLDEN = Path(__file__).parent / "golden" / "clip-tiny"
CASES = json.loads((GOLDEN / "cases.json").read_text())
MakeRecipe = Callable[..., dopkit.Recipe]


@pytest.mark.parametrize("case", CASES["dop"])
def test_a_run_meets_the_published_procedure(case: str, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    given = {key: value for key, value in CASES["dop"][case].items() if key in DopParameters.model_fields}
    given |= {"solver": "adam", "rank_rule": "below", "other": "half"}
    parameters = {key: value for key, value in given.items() if key not in DopParameters.unread(given)}
    result = dopkit.run(make_recipe(GOLDEN, CASES["order"], "dop", parameters=parameters), tmp_path / "out")
    base, last, golden, found = (
        tiny.read(folder) for folder in (GOLDEN / "base", GOLDEN / "expert2", GOLDEN / case, tmp_path / "out")
    )
    matrices = 0
    for job in result.plan.jobs:
        error = float((found[job.name] - golden[job.name]).norm())
        if job.role is Role.LINEAR:
            matrices += 1
            assert error < 1e-5 * float((last[job.name] - base[job.name]).norm()), job.name
        elif not job.name.endswith("class_embedding"):  # which the reference leaves at the base's value
            assert torch.allclose(found[job.name], golden[job.name], rtol=3e-7, atol=1e-9), job.name
    assert matrices == 12


def test_a_run_meets_published_opcm(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    """Every tensor's merged task vector is the reference's times one number, which is nearly 1.

    The reference adds up norms over the class embedding too, which it does not merge: its scale of the whole model is
    not quite that of what it merged. tests/methods/test_opcm.py repeats that sum, and meets the scale as well.
    """
    parameters = {"alpha": CASES["opcm"]["alpha"], "rank_rule": "below"}
    dopkit.run(make_recipe(GOLDEN, CASES["order"], "opcm", parameters=parameters), tmp_path / "out")
    base, golden, found = (tiny.read(folder) for folder in (GOLDEN / "base", GOLDEN / "opcm_alpha50", tmp_path / "out"))
    names = [name for name in base if not name.endswith("class_embedding")]
    ours, theirs = ({name: (model[name] - base[name]).double() for name in names} for model in (found, golden))
    factor = sum(float((ours[name] * theirs[name]).sum()) for name in names)
    factor /= sum(float(theirs[name].square().sum()) for name in names)
    assert factor == pytest.approx(1, abs=2e-3)
    for name in names:
        error = float((ours[name] - factor * theirs[name]).norm())
        assert error < 1e-5 * float(theirs[name].norm()) + 6e-8 * float(base[name].norm()), name
