"""docs/benchmarks/continual: rows are recipes, orders and shortcuts dopkit's own, tables tell what the lines hold."""

from __future__ import annotations

import shutil
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import scored
import tiny
import torch
import yaml

import dopkit
from dopkit import methods

ROOT = Path(__file__).parent.parent
NAMES = {"three": ["zero", "one", "two"], "five": ["a", "b", "c", "d", "e"], "four": ["n", "e", "s", "w"]}
FOLDER = ROOT / "docs" / "benchmarks" / "continual"


def scripts(*names: str) -> list[ModuleType]:
    """The benchmark's modules, which import each other by their bare names; nobody else finds them by these."""
    sys.path.insert(0, str(FOLDER))
    found = [import_module(name) for name in names]
    del sys.path[0]
    for name in names:
        del sys.modules[name]
    return found


rows, results, tables, merger, recombine, harness, scale_rules = scripts(
    "rows", "results", "tables", "merger", "recombine", "harness", "scale_rules"
)


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, three classifiers that share nothing but its shape, and twenty images."""
    root = tmp_path_factory.mktemp("continual") / "suite"
    tiny.make_vit(root / "base")
    for seed, (name, labels) in enumerate(NAMES.items(), start=1):
        scored.make_classifier(root / name, labels, seed)
    shutil.copyfile(root / "three" / "preprocessor_config.json", root / "base" / "preprocessor_config.json")
    labels = {name: np.arange(20) % len(classes) for name, classes in NAMES.items()}
    np.savez(root / "data.npz", images=scored.grey(20), **labels)
    tasks = [{"name": n, "kind": "image-classification", "data": "./data.npz", "label": n, "model": n} for n in NAMES]
    (root / "tasks.yaml").write_text(yaml.safe_dump({"tasks": tasks}))
    return root


def recipe(suite: Path, order: list[str], method: str, parameters: dict[str, Any]) -> dopkit.Recipe:
    data = {"base_model": "./base", "merge_method": method, "models": [f"./{name}" for name in order]}
    return dopkit.parse_recipe(yaml.safe_dump(data | {"parameters": parameters, "heads": "per-task"}), folder=suite)


def test_every_row_is_a_recipe(tmp_path: Path) -> None:
    read = {
        (merge.method, str(recipe(tmp_path, list(NAMES), merge.method, results.given(merge, row)).parameters))
        for merge in rows.MERGES
        for row in merge.rows
    }
    assert len(read) == len(results.every_key()) == len(set(results.every_key()))  # no two are the same merge


def test_every_continual_method_has_its_default_in_the_tables() -> None:
    """But for `ties`, which is run at the density of its paper; its default is mergekit's, which trims nothing."""
    merges = {merge.name: merge for merge in rows.MERGES}
    defaults = [merges[name].method for name, _, _ in results.defaults()]
    assert sorted(defaults) == sorted({merge.method for merge in rows.MERGES} - {"ties"})
    assert ("dop exact, last", "mean", "1") in results.defaults()
    assert all(merge.ordered >= methods.find(merge.method).ordered for merge in rows.MERGES if merge.method != "dop")


def test_orders_are_those_of_a_recipe() -> None:
    suite = harness.Suite(ROOT / "recipes" / "quickstart")
    names = sorted(suite.names)
    orders = [suite.order(seed) for seed in range(10)]
    for seed, order in enumerate(orders):
        data = {"merge_method": "average", "models": [f"./{name}" for name in suite.names]}
        drawn = dopkit.parse_recipe(yaml.safe_dump(data | {"order": "shuffle", "seed": seed})).drawn()
        assert [Path(entry.model.text).name for entry in drawn.models] == order and sorted(order) == names
    assert len(set(map(tuple, orders))) > 5


@pytest.mark.parametrize("merge", ["dop exact, last", "wudi", "nullspace"])
def test_what_is_put_together_is_what_dopkit_makes(merge: str, suite: Path, tmp_path: Path) -> None:
    made = next(found for found in rows.MERGES if found.name == merge)
    order, kept = list(NAMES), dopkit.Options(save_steps=True)
    dopkit.run(recipe(suite, order, made.method, made.parameters), tmp_path / "made", kept)
    seen = []
    for row in made.rows[1:]:
        folders = recombine.models(
            tmp_path / "made", suite / "base", [suite / name for name in order], row, tmp_path / f"{row}"
        )
        dopkit.run(recipe(suite, order, made.method, results.given(made, row)), tmp_path / f"own {row}", kept)
        own = [tmp_path / f"own {row}" / "steps" / step for step in ("01", "02")] + [tmp_path / f"own {row}"]
        for one, other in zip(folders, own, strict=True):
            torch.testing.assert_close(tiny.read(one), dict(tiny.read(other)), rtol=1e-5, atol=1e-6)
        assert (folders[-1] / "config.json").read_bytes() == (own[-1] / "config.json").read_bytes()
        seen.append(torch.cat([tensor.flatten() for tensor in tiny.read(folders[-1]).values()]))
    # Each setting is another model, so the comparison was one.
    assert all(not torch.allclose(one, other) for at, one in enumerate(seen) for other in seen[:at])


def test_a_line_holds_what_dopkit_would_report(suite: Path, tmp_path: Path) -> None:
    merging = merger.Merger(in_process=True)
    found = harness.Results(tmp_path / "lines.jsonl")
    average = rows.Merge("average", "average", {})
    for _ in range(2):  # the second time there is nothing left to do
        harness.run(harness.Suite(suite, None, merging), average, 3, found)
    merging.close()
    (line,) = results.read(tmp_path / "lines.jsonl")
    order = harness.Suite(suite).order(3)
    options = dopkit.Options(tasks=suite / "tasks.yaml")
    done = dopkit.run(recipe(suite, order, "average", {}), tmp_path / "own", options).assessment
    assert done is not None
    assert line["acc"] == pytest.approx(done.evaluation["acc"]) and line["bwt"] == pytest.approx(done.evaluation["bwt"])
    assert list(line["scores"]) == list(NAMES) and line["seconds"] > 0 and line["peak"] is None


def line(merge: str, seed: int, acc: float, other: str | None = None, scale: str | None = None) -> dict[str, Any]:
    scores = {"one": acc + 0.01, "two": acc - 0.01 if seed else acc - 0.03}
    place = {"merge": merge, "other": other, "scale": scale, "seed": seed}
    return place | {
        "acc": acc,
        "bwt": -0.02 * seed - 0.01,
        "scores": scores,
        "seconds": 1.0 + seed,
        "peak": None if seed else 5e6,
    }


LINES = [{"merge": "base", "acc": 0.5, "scores": {}}, line("average", 0, 0.6)]


def test_the_table_of_all_rows() -> None:
    pairs = [line("dop exact, last", seed, 0.70 + 0.02 * seed, "mean", "1") for seed in (0, 1, 2)]
    full = [line("dop exact, last, alpha 0.5", seed, 0.71, "mean", "1") for seed in range(10)]
    assert tables.table([*LINES, *full, *pairs]).splitlines() == [
        "| method | `other` | `scale` | ACC | BWT | merge, s | peak, MB |",
        "|---|---|---|---|---|---|---|",
        "| base | | | 50.0 | | | |",
        "| average (default) | | | 60.0 (n = 1) | -1.0 | 1.0 | 5 |",
        "| dop exact, last (default) | mean | 1 | **72.0** ± 2.0 (n = 3) | -3.0 ± 2.0 | 2.0 | 5 |",
        # 1 below the best over the orders of both, with a standard error of 2 / sqrt(3) = 1.15
        "| dop exact, last, alpha 0.5 | mean | 1 | **71.0** ± 0.0 | -10.0 ± 6.1 | 5.5 | 5 |",
    ]


def test_differences_are_of_the_same_orders() -> None:
    key, other = ("dop exact, last, alpha 0.5", "mean", "1"), ("dop exact, last", "mean", "1")
    lines = [line(other[0], seed, 0.70, "mean", "1") for seed in (0, 1)]
    lines += [line(key[0], seed, acc, "mean", "1") for seed, acc in ((0, 0.71), (1, 0.73), (5, 0.99))]
    found = results.difference(lines, key, other)
    assert found.mean == pytest.approx(0.02) and found.orders == 2
    assert found.over_orders == pytest.approx(0.01)  # 0.01 and 0.03
    assert found.over_tasks == pytest.approx(0.0) and not found.clear  # 0.02 is not more than twice 0.01
    assert results.difference(lines, key, ("wudi", "mean", "1")) is None
    shown = tables.comparison({"a": lines, "b": LINES}).splitlines()
    assert shown[0] == "| choice | with | a | b |"
    assert shown[2:] == ["| `alpha: 0.5`, not 0.8 | scale 1 | +2.0 (1.0; 0.0), n = 2 | |"]


def test_tables_go_between_their_marks() -> None:
    page = "before\n<!-- a -->\nold\n<!-- /a -->\nafter\n"
    once = tables.put(page, "a", "| new |")
    assert once == "before\n<!-- a -->\n\n| new |\n\n<!-- /a -->\nafter\n" == tables.put(once, "a", "| new |")
    with pytest.raises(SystemExit, match="the page needs one <!-- b -->"):
        tables.put(page, "b", "")


def test_scale_rules_on_four_orthogonal_tasks() -> None:
    """tau_t = 2 e_t e_t^T and D their mean, I / 2: of norm 1, with singular values 1/2."""
    tasks = [{"w": 2 * torch.outer(axis, axis)} for axis in torch.eye(4)]
    found = scale_rules.scales({"w": torch.eye(4) / 2}, tasks)
    assert {rule: chosen["w"] for rule, chosen in found.items()} == pytest.approx(
        {
            "1": 1, "sqrt(T)": 2, "norm": 2, "nearest": 1, "sum": 4, "match": 4, "interference": 4,
            "norm, each tensor": 2, "spectral, each tensor": 4, "interference, each tensor": 4,
        }
    )  # fmt: skip
    nothing = scale_rules.scales({"w": torch.zeros(4, 4)}, [{"w": torch.zeros(4, 4)}])
    assert {chosen["w"] for chosen in nothing.values()} == {1.0}
