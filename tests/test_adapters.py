"""Whole merges of adapters: from folders and from the Hub, downloaded and streamed, named with a base and alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
import torch
from adapters import make_adapter
from click.testing import CliRunner
from hubserver import TestHub, connect
from safetensors.torch import load_file, save_file

import dopkit
from dopkit.cli import main
from dopkit.errors import PlanError
from dopkit.planning import streaming

DORA = {"use_dora": True, "modules_to_save": ["lm_head"], "r": 2}


@pytest.fixture(scope="session")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bfloat16 Llama ``base``, its adapters ``a0`` and ``a1``, and ``m0`` and ``m1``: what PEFT merges them to."""
    root = tmp_path_factory.mktemp("adapted")
    base = tiny.make_llama(root / "base")
    for number, config in enumerate(({}, DORA)):
        whole = make_adapter(base, root / f"a{number}", seed=number, **config)
        change(root / f"a{number}" / "adapter_config.json", base_model_name_or_path="org/base")
        (root / f"m{number}").mkdir()
        shutil.copy(base / "config.json", root / f"m{number}")
        save_file(whole, root / f"m{number}" / "model.safetensors", metadata={"format": "pt"})
    return root


def change(path: Path, **values: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, adapted: Path) -> Iterator[TestHub]:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with TestHub() as hub:
        connect(monkeypatch, hub, tmp_path / "cache", token=hub.token("org"))
        for name in ("base", "a0", "a1"):
            hub.create_repo(f"org/{name}", {})
            hub.add_folder(f"org/{name}", adapted / name)
        hub.clear_log()
        yield hub
        assert hub.crashes == []


def recipe(models: str, base: str | None = "org/base", method: str = "dop", folder: Path = Path()) -> dopkit.Recipe:
    base_line = f"base_model: {base}\n" if base else ""
    text = f"{base_line}merge_method: {method}\nmodels: {models}\nout_dtype: float32\n"
    return dopkit.parse_recipe(text, name="merged", folder=folder)


def close(one: Path, other: Path) -> None:
    ours, theirs = tiny.read(one), tiny.read(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-5 * float(tensor.abs().max()), msg=name)


BOTH = "[{model: ./base, adapter: ./a0}, {model: ./base, adapter: ./a1}]"


@pytest.mark.parametrize("method", ["dop", "average", "task_arithmetic"])
def test_a_merge_is_that_of_the_models_that_peft_makes(method: str, adapted: Path, tmp_path: Path) -> None:
    dopkit.run(recipe(BOTH, "./base", method, adapted), tmp_path / "ours")
    dopkit.run(recipe("[./m0, ./m1]", "./base", method, adapted), tmp_path / "theirs")
    close(tmp_path / "ours", tmp_path / "theirs")


def test_a_merge_is_the_same_by_rows(adapted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dopkit.run(recipe(BOTH, "./base", "average", adapted), tmp_path / "whole")
    monkeypatch.setattr("dopkit.planning.jobs.BLOCK_ELEMENTS", 40)
    result = dopkit.run(recipe(BOTH, "./base", "average", adapted), tmp_path / "rows")
    assert max(len(list(job.parts())) for job in result.plan.jobs) > 10
    close(tmp_path / "rows", tmp_path / "whole")


def test_an_adapter_alone_goes_on_the_base_of_the_recipe_or_its_own(hub: TestHub, tmp_path: Path) -> None:
    alone, named = dopkit.plan(recipe("[org/a0, org/a1]")), dopkit.plan(recipe("[org/base+org/a0, org/base+org/a1]"))
    assert alone.models == named.models
    assert dopkit.plan(recipe("[org/a0, org/a1]", None, "average")).models == named.models
    assert [ref.short for ref in named.recipe.refs][1].count("@") == 2  # both parts are pinned


def test_a_folder_names_a_folder(adapted: Path, tmp_path: Path) -> None:
    adapter = Path(shutil.copytree(adapted / "a0", tmp_path / "a0"))
    change(adapter / "adapter_config.json", base_model_name_or_path=str(adapted / "base"))
    plan = dopkit.plan(recipe("[./a0]", None, "average", tmp_path))
    assert plan.models[0].ref.without_adapter.folder == adapted / "base"
    change(adapter / "adapter_config.json", base_model_name_or_path=None)
    with pytest.raises(PlanError) as caught:
        dopkit.plan(recipe("[./a0]", None, "average", tmp_path))
    assert str(caught.value).splitlines() == [
        "cannot merge: 1 problem",
        "  ./a0 is an adapter: neither the recipe nor its adapter_config.json names its base",
        "    Give the recipe a base_model, or name the base before the adapter: user/base+user/adapter.",
    ]


def test_no_weights_before_the_plan_and_what_it_needs(hub: TestHub, adapted: Path, tmp_path: Path) -> None:
    plan = dopkit.plan(recipe("[org/a0, org/a1]"))
    sizes = [path.stat().st_size for path in adapted.glob("base/*.safetensors")]
    sizes += [(adapted / name / "adapter_model.safetensors").stat().st_size for name in ("a0", "a1")]
    assert plan.download_bytes == sum(sizes)  # the base counts once
    assert list((tmp_path / "cache").rglob("*.safetensors")) == []
    assert [note for note in plan.notes if "adapter of rank" in note] == [
        f"{plan.models[0].ref.short}: adapter of rank 4 on 6 of 21 tensors",
        f"{plan.models[1].ref.short}: adapter of rank 2 on 6 of 21 tensors, and 1 more changed otherwise",
    ]
    plans = [dopkit.plan(recipe(models)) for models in ("[org/a0]", "[org/base]")]
    changed, plain = (one.memory_bytes - one.program_bytes for one in plans)
    assert changed > plain


@pytest.mark.parametrize("method", ["dop", "average"])
def test_streamed_is_what_folders_give_and_the_base_comes_once(
    method: str, hub: TestHub, adapted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "LEAST_STREAM_BYTES", 0)
    dopkit.run(recipe(BOTH, "./base", method, adapted), tmp_path / "local")
    result = dopkit.run(recipe("[org/a0, org/a1]", method=method), tmp_path / "out", dopkit.Options(stream=True))
    assert tiny.weights(tmp_path / "out") == tiny.weights(tmp_path / "local")
    assert result.plan.streamed
    assert list((tmp_path / "cache").rglob("*.safetensors")) == []
    # Weights alone: a header begins at the first byte.
    fetched = [
        [int(number) for number in str(entry.range).removeprefix("bytes=").split("-")]
        for entry in hub.log
        if entry.host == "storage" and not str(entry.range).startswith("bytes=0-")
    ]
    assert sum(stop - start + 1 for start, stop in fetched) == result.plan.download_bytes
    # of the second adapter's own head no rows of the base are read, but for the first one's
    whole = sum(spec.numel() * spec.element_size() for spec in tiny.read(adapted / "base").values())
    own = [load_file(adapted / name / "adapter_model.safetensors") for name in ("a0", "a1")]
    assert result.plan.download_bytes == whole + sum(
        one.numel() * one.element_size() for two in own for one in two.values()
    )


def test_an_adapter_of_pickles_is_downloaded_before_it_is_planned(hub: TestHub, adapted: Path, tmp_path: Path) -> None:
    adapter = Path(shutil.copytree(adapted / "a0", tmp_path / "pickled"))
    torch.save(load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()
    hub.create_repo("org/pickled", {})
    hub.add_folder("org/pickled", adapter)
    with pytest.raises(PlanError, match="has no safetensors"):
        dopkit.plan(recipe("[org/pickled, org/a1]"))
    dopkit.run(recipe("[org/pickled, org/a1]"), tmp_path / "out")
    dopkit.run(recipe(BOTH, "./base", "dop", adapted), tmp_path / "local")
    assert tiny.weights(tmp_path / "out") == tiny.weights(tmp_path / "local")


def test_the_recipe_that_is_written_makes_it_again(hub: TestHub, adapted: Path, tmp_path: Path) -> None:
    for name, made in {
        "hub": recipe("[org/a0, org/a1]", None, "average"),
        "folders": recipe(BOTH, "./base", "dop", adapted),
    }.items():
        dopkit.run(made, tmp_path / name)
        again = dopkit.load_recipe(tmp_path / name / "dopkit_recipe.yaml")
        assert all(ref.adapter is not None for entry in again.models for ref in [entry.model])
        dopkit.run(again, tmp_path / f"{name}-again")
        assert tiny.weights(tmp_path / name) == tiny.weights(tmp_path / f"{name}-again")


def test_a_branch_that_moves_does_not_change_what_is_continued(hub: TestHub, tmp_path: Path) -> None:
    from dopkit.engine import Engine

    made = recipe("[org/a0, org/a1]", None, "average")
    first = dopkit.plan(made)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "run", lambda engine, jobs: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            dopkit.run(made, tmp_path / "out")
    for name in ("base", "a0"):
        hub.upload(f"org/{name}", {"NEWS.md": b"moved"})
    assert dopkit.plan(made).recipe.refs != first.recipe.refs
    assert dopkit.run(made, tmp_path / "out").plan.recipe.refs == first.recipe.refs


def test_the_card_names_base_and_adapters(hub: TestHub, tmp_path: Path) -> None:
    dopkit.run(recipe("[org/a0, org/a1]", None, "average"), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "base_model:\n- org/base\n- org/a0\n- org/a1\n" in card
    assert "| 1 | [org/base](https://huggingface.co/org/base) + [org/a0](https://huggingface.co/org/a0) |" in card
    assert "apache-2.0" in card.split("## Licences")[1]  # the base's, though it is no model of its own


def test_every_adapter_that_does_not_fit_is_told_at_once(adapted: Path, tmp_path: Path) -> None:
    for name in ("base", "a0", "a1"):
        shutil.copytree(adapted / name, tmp_path / name)
    change(tmp_path / "a0" / "adapter_config.json", peft_type="LOHA")
    change(tmp_path / "a1" / "adapter_config.json", r=3)
    with pytest.raises(PlanError) as caught:
        dopkit.plan(recipe("[./a0, ./a1, ./a2]", "./base", folder=tmp_path))
    lines = str(caught.value).splitlines()
    assert lines[0] == "cannot merge: 8 problems"
    assert lines[1] == "  ./a0 cannot be merged as a model: peft_type: LOHA is no LoRA"
    assert sum("./a1 cannot be applied to ./base: " in line and "at rank 3, in ./base" in line for line in lines) == 6
    assert lines[-1] == "  ./a2: there is no such folder: looked for " + str(tmp_path / "a2")


def test_plan_and_run_at_the_command_line(adapted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(adapted)
    text = f"base_model: ./base\nmerge_method: average\nmodels: {BOTH}\n"
    (tmp_path / "r.yaml").write_text(text.replace("./", f"{adapted}/"))
    result = CliRunner().invoke(main, ["plan", str(tmp_path / "r.yaml")])
    assert result.exit_code == 0, result.output
    assert "adapter of rank 4 on 6 of 21 tensors" in result.stdout
    assert f"{adapted}/base+{adapted}/a1" in result.stdout


def test_heads_of_other_sizes_are_kept_and_load(tmp_path: Path) -> None:
    from transformers import AutoModelForImageClassification

    tiny.make_vit(tmp_path / "base", labels=5)
    for labels in (2, 7):
        own = tiny.make_vit(tmp_path / f"own{labels}", labels=labels)
        make_adapter(
            own, tmp_path / f"a{labels}", AutoModelForImageClassification, seed=labels,
            target_modules=["q_proj"], modules_to_save=["classifier"],
        )  # fmt: skip
    text = "base_model: ./base\nmerge_method: average\nmodels: [./a2, ./a7]\nheads: {}\n"
    dopkit.run(dopkit.parse_recipe(text.format("per-task"), folder=tmp_path), tmp_path / "out")
    for labels in (2, 7):
        stored = load_file(tmp_path / f"a{labels}" / "adapter_model.safetensors")
        model = dopkit.load(tmp_path / "out", head=f"a{labels}")
        assert torch.equal(model.classifier.weight, stored["base_model.model.classifier.weight"])
        assert len(model.config.id2label) == labels
    dopkit.run(dopkit.parse_recipe(text.format("base"), folder=tmp_path), tmp_path / "kept")
    assert torch.equal(tiny.read(tmp_path / "kept")["classifier.bias"], tiny.read(tmp_path / "base")["classifier.bias"])


def test_heads_of_adapters_are_kept(tmp_path: Path) -> None:
    from transformers import AutoModelForImageClassification

    base = tiny.make_vit(tmp_path / "base", labels=3)
    for number in range(2):
        make_adapter(
            base, tmp_path / f"a{number}", AutoModelForImageClassification, seed=number,
            target_modules=["q_proj"], modules_to_save=["classifier"],
        )  # fmt: skip
    text = "base_model: ./base\nmerge_method: average\nmodels: [./a0, ./a1]\nheads: per-task\n"
    dopkit.run(dopkit.parse_recipe(text, folder=tmp_path), tmp_path / "out")
    for number in range(2):
        stored = load_file(tmp_path / f"a{number}" / "adapter_model.safetensors")
        kept = load_file(tmp_path / "out" / "heads" / f"a{number}.safetensors")
        assert torch.equal(kept["classifier.weight"], stored["base_model.model.classifier.weight"])
