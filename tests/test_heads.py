"""Heads beside the merged backbone, from recipe to file: bit for bit what the models had, and ready to be loaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from click.testing import CliRunner
from hubserver import CLIENT_WARNING, TestHub, connect
from safetensors import safe_open
from safetensors.torch import load_file

import dopkit
from dopkit import PushOptions, heads
from dopkit.checkpoints import open_checkpoint
from dopkit.cli import main
from dopkit.errors import CheckpointError, OutputError
from dopkit.evaluation.targets import model_names
from dopkit.loading import load
from dopkit.refs import ModelRef

pytestmark = pytest.mark.filterwarnings(CLIENT_WARNING)

MakeRecipe = Callable[..., dopkit.Recipe]
MAKERS: dict[str, Callable[..., Path]] = {"vit": tiny.make_vit, "bert": tiny.make_bert}
NAMES = {"0": "cat", "1": "dog", "2": "hen"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[TestHub]:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with TestHub() as hub:
        connect(monkeypatch, hub, tmp_path / "cache", token=hub.token("org"))
        yield hub
        assert hub.crashes == []


def make_models(folder: Path, kind: str = "vit", base: int | None = None) -> Path:
    """A base, experts ``e0`` of three named classes and ``e1`` of five, all different, under ``folder``."""
    make = MAKERS[kind]
    make(folder / "base", base)
    for seed, (name, number) in enumerate((("e0", 3), ("e1", 5)), 1):
        tiny.make_expert(make(folder / f"{name}-plain", number), folder / name, seed)
    tiny.set_config(folder / "e0", id2label=NAMES, label2id={name: int(key) for key, name in NAMES.items()})
    return folder


def head_of(folder: Path) -> tiny.Tensors:
    return {name: tensor for name, tensor in tiny.read(folder).items() if name.startswith("classifier")}


def metadata(file: Path) -> dict[str, Any]:
    with safe_open(file, "pt") as opened:
        return dict(opened.metadata())


def inputs(kind: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    if kind == "vit":
        return {"pixel_values": torch.randn(2, 3, 8, 8, generator=generator)}
    return {"input_ids": torch.randint(0, 48, (2, 7), generator=generator)}


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("base", [None, 4], ids=["bare", "headed"])
def test_from_recipe_to_a_classifier(tmp_path: Path, make_recipe: MakeRecipe, kind: str, base: int | None) -> None:
    make_models(tmp_path, kind, base)
    out = tmp_path / "out"
    result = dopkit.run(make_recipe(tmp_path, ["e0", "e1"], heads="per-task"), out)
    assert sorted(path.name for path in (out / "heads").iterdir()) == ["e0.safetensors", "e1.safetensors"]
    bare = dopkit.run(make_recipe(tmp_path, ["e0", "e1"], heads="drop"), tmp_path / "bare").folder
    assert tiny.weights(bare) == tiny.weights(out)  # the backbone is that of `heads: drop`
    assert (out / "config.json").read_text() == (bare / "config.json").read_text()
    for name, number in (("e0", 3), ("e1", 5)):
        own = head_of(tmp_path / name)
        assert tiny.same(load_file(out / "heads" / f"{name}.safetensors"), own)
        model = load(out, name)
        assert model.config.num_labels == number
        with torch.no_grad():
            backbone = load(bare)(**inputs(kind))
            pooled = backbone.last_hidden_state[:, 0] if kind == "vit" else backbone.pooler_output
            expected = pooled @ own["classifier.weight"].T + own["classifier.bias"]
            assert torch.allclose(model(**inputs(kind)).logits, expected, atol=1e-6)
    assert load(out, "e0").config.id2label == {int(key): name for key, name in NAMES.items()}
    assert result.receipt["verified"]["heads"] == "2 heads kept bit for bit, each loading on the merged backbone"


def test_a_pooler_that_the_base_lacks_is_the_models_own(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    make_models(tmp_path, "bert")
    tiny.make_bert(tmp_path / "poolless", pooler=False)
    out = dopkit.run(make_recipe(tmp_path, ["e0", "e1"], base="poolless", heads="per-task"), tmp_path / "out").folder
    for name in ("e0", "e1"):
        own = tiny.read(tmp_path / name)
        assert torch.equal(load(out, name).bert.pooler.dense.weight, own["bert.pooler.dense.weight"])


@pytest.mark.parametrize("kept", ["per-task", "drop"])
def test_classifiers_on_the_base_of_a_masked_language_model(tmp_path: Path, make_recipe: MakeRecipe, kept: str) -> None:
    """Its own head is left out, and with it the bias that is tied to another of the head."""
    from transformers import BertConfig, BertForMaskedLM

    make_models(tmp_path, "bert")
    config = BertConfig.from_pretrained(tmp_path / "base")
    BertForMaskedLM(config).save_pretrained(tmp_path / "words")
    copied = [] if kept == "per-task" else ["pooler.*"]  # which the base lacks
    out = dopkit.run(
        make_recipe(tmp_path, ["e0", "e1"], base="words", heads=kept, copy=copied), tmp_path / "out"
    ).folder
    assert not any(name.startswith(("cls", "classifier", "pooler")) for name in tiny.read(out))


def test_what_a_head_says_of_itself(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    make_models(tmp_path)
    tiny.set_config(tmp_path / "e1", problem_type="single_label_classification", pad_token_id=3, layer_norm_eps=1e-5)
    result = dopkit.run(make_recipe(tmp_path, ["e0", "e1"], heads="per-task"), tmp_path / "out")
    found = metadata(tmp_path / "out" / "heads" / "e0.safetensors")
    config = json.loads(found.pop("config"))
    assert found == {"format": "pt", "architecture": "ViTForImageClassification", "model": "./e0"}
    assert config == {"id2label": NAMES, "label2id": {"cat": 0, "dog": 1, "hen": 2}}
    other = json.loads(metadata(tmp_path / "out" / "heads" / "e1.safetensors")["config"])
    assert other.keys() == {"id2label", "label2id", "problem_type", "pad_token_id"}  # and nothing of the backbone
    for record in result.receipt["heads"]:
        raw = (tmp_path / "out" / record["file"]).read_bytes()
        assert (record["bytes"], record["sha256"]) == (len(raw), hashlib.sha256(raw).hexdigest())
    assert [(one["name"], one["model"], one["labels"], one["first_labels"]) for one in result.receipt["heads"]] == [
        ("e0", "./e0", 3, ["cat", "dog", "hen"]), ("e1", "./e1", 5, [])
    ]  # fmt: skip
    assert dopkit.receipt.read(tmp_path / "out") == result.receipt


def test_a_head_keeps_its_own_dtype(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    make_models(tmp_path)

    def mixed(tensors: tiny.Tensors) -> tiny.Tensors:
        return {**tensors, "classifier.bias": tensors["classifier.bias"].bfloat16()}  # three of two bytes, before F32

    tiny.edit(tmp_path / "e0", tmp_path / "mixed", mixed)
    out = dopkit.run(make_recipe(tmp_path, ["mixed", "e1"], heads="per-task", dtype="float16"), tmp_path / "out").folder
    assert {tensor.dtype for tensor in tiny.read(out).values()} == {torch.float16}
    kept = load_file(out / "heads" / "mixed.safetensors")
    assert kept["classifier.bias"].dtype == torch.bfloat16
    assert tiny.same(kept, head_of(tmp_path / "mixed"))


def test_models_of_one_name(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    make_models(tmp_path / "ann")
    make_models(tmp_path / "bob")
    recipe = make_recipe(tmp_path, ["ann/e0", "bob/e1", "bob/e0"], base="ann/base", heads="per-task")
    tiny.make_expert(tmp_path / "bob" / "e0-plain", tmp_path / "other", 9)
    (tmp_path / "bob" / "e0" / "model.safetensors").write_bytes((tmp_path / "other" / "model.safetensors").read_bytes())
    out = dopkit.run(recipe, tmp_path / "out").folder
    assert {path.stem for path in (out / "heads").iterdir()} == {"ann--e0", "bob--e0", "e1"}
    for user in ("ann", "bob"):
        assert tiny.same(load_file(out / "heads" / f"{user}--e0.safetensors"), head_of(tmp_path / user / "e0"))


def test_an_earlier_model_keeps_its_name_beside_a_new_one_of_the_same(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    """Two trainers both call their result ``final``: the first goes on being called as its head is."""
    root = make_models(tmp_path / "models")
    for user, name in (("ann", "e0"), ("bob", "e1")):
        (root / user).mkdir()
        (root / name).rename(root / user / "final")
    (root / "recipe.yaml").write_text(
        "base_model: ./base\nmerge_method: average\nmodels: [./ann/final]\nheads: per-task\n"
    )
    out = dopkit.run(dopkit.load_recipe(root / "recipe.yaml"), tmp_path / "out").folder
    assert model_names(out) == ("final",)
    done = dopkit.add(out, [str(root / "bob" / "final")])
    assert [head["name"] for head in done.receipt["heads"]] == ["final", "bob--final"]
    assert model_names(out) == ("final", "bob--final")


def test_an_earlier_head_is_not_written_over(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    make_models(tmp_path)
    (tmp_path / "e0").rename(tmp_path / ".e1")  # whose head is called e1: what is hidden is not published
    out = dopkit.run(make_recipe(tmp_path, [".e1"], "average", heads="per-task"), tmp_path / "out").folder
    dopkit.add(out, [str(tmp_path / "e1")])
    assert tiny.same(load_file(out / "heads" / "e1.safetensors"), head_of(tmp_path / ".e1"))
    assert tiny.same(load_file(out / "heads" / "e1-2.safetensors"), head_of(tmp_path / "e1"))


def test_a_head_that_is_gone_is_made_again(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    make_models(tmp_path)
    recipe = make_recipe(tmp_path, ["e0", "e1"], heads="per-task")
    out = dopkit.run(recipe, tmp_path / "out").folder
    assert dopkit.run(recipe, out).already_there
    (out / "heads" / "e0.safetensors").unlink()
    assert not dopkit.run(recipe, out).already_there
    assert tiny.same(load_file(out / "heads" / "e0.safetensors"), head_of(tmp_path / "e0"))


def test_plan_card_and_show_name_the_heads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_models(tmp_path)
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text("base_model: ./base\nmerge_method: dop\nmodels: [./e0, ./e1]\nheads: per-task\n")

    def say(*arguments: str) -> str:
        result = CliRunner().invoke(main, list(arguments))
        assert result.exit_code == 0, result.output
        return str(result.stdout)

    kind = "ViTForImageClassification"
    line = f"kept as heads/NAME.safetensors: e0 ({kind}, 2 tensors, 3 labels), e1 ({kind}, 2 tensors, 5 labels)"
    assert line in say("plan", "r.yaml").splitlines()
    assert "kept: classifier.weight of ./e1, 5x16 F32, in heads/e1.safetensors" in say("plan", "r.yaml", "--verbose")
    assert json.loads(say("plan", "r.yaml", "--json"))["heads"][0] == {
        "name": "e0", "model": "./e0", "architecture": kind, "labels": 3, "file": "heads/e0.safetensors",
        "tensors": {"classifier.bias": [3], "classifier.weight": [3, 16]},
    }  # fmt: skip
    say("run", "r.yaml", "-o", "out")
    card = Path("out/README.md").read_text()
    assert 'model = dopkit.load("r", head="e0")  # or the folder or repository it is in' in card
    assert f"| `e0` | {kind} | 3: cat, dog, hen |" in card
    assert f"| `e1` | {kind} | 5 |" in card
    assert 'dopkit.load("ann/m", head="e0")\n' in dopkit.card.addressed(card, "ann/m")
    assert f"e1    {kind}  ./e1" in say("show", "out")


def test_heads_are_carried_over_as_they_are(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    make_models(tmp_path)
    done = dopkit.run(make_recipe(tmp_path, ["e0", "e1"], heads="per-task"), tmp_path / "out")
    merged = open_checkpoint(ModelRef("./out", folder=done.folder))
    target = tmp_path / "target"
    target.mkdir()
    heads.carry_over(merged, done.receipt["heads"], target)
    for name in ("e0.safetensors", "e1.safetensors"):
        assert (target / "heads" / name).read_bytes() == (done.folder / "heads" / name).read_bytes()
    assert heads.records(target, done.plan) == done.receipt["heads"]
    raw = bytearray((done.folder / "heads" / "e1.safetensors").read_bytes())
    raw[-1] ^= 1
    (done.folder / "heads" / "e1.safetensors").write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"heads/e1\.safetensors: is not what was merged"):
        heads.carry_over(merged, done.receipt["heads"], target)
    (done.folder / "heads" / "e0.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"heads/e0\.safetensors: is missing"):
        heads.carry_over(merged, done.receipt["heads"], target)


def test_a_receipt_names_no_file_elsewhere(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    make_models(tmp_path)
    done = dopkit.run(make_recipe(tmp_path, ["e0", "e1"], heads="per-task"), tmp_path / "out").receipt
    for file in ("heads/../../x.safetensors", "x.safetensors", "heads/a/b.safetensors"):
        text = json.dumps({**done, "heads": [{**done["heads"][0], "file": file}]})
        with pytest.raises(OutputError, match=r"heads\.0\.file"):
            dopkit.receipt.parse(text, "it")


def test_both_ways_over_the_hub(hub: TestHub, tmp_path: Path) -> None:
    """Streamed, so that nothing is stored, and published with its heads; those of an earlier push go."""
    make_models(tmp_path)
    for name in ("base", "e0", "e1"):
        hub.create_repo(f"org/{name}", {})
        hub.add_folder(f"org/{name}", tmp_path / name)
    text = "base_model: org/base\nmerge_method: dop\nmodels: [org/e0, org/e1]\nheads: per-task\n"
    push = PushOptions(repo_id="org/merged")
    result = dopkit.run(
        dopkit.parse_recipe(text, "m"), tmp_path / "out", dopkit.Options(stream=True, push=push, max_shard_size=5000)
    )
    published = hub.files("org/merged")
    assert {name for name in published if name.startswith("heads/")} == {
        "heads/e0.safetensors", "heads/e1.safetensors"
    }  # fmt: skip
    for name in ("e0", "e1"):
        (tmp_path / "one").write_bytes(published[f"heads/{name}.safetensors"])
        assert tiny.same(load_file(tmp_path / "one"), head_of(tmp_path / name))
        assert metadata(tmp_path / "one")["model"] == f"org/{name}@{hub.commit(f'org/{name}').sha}"
    assert result.plan.streamed and result.pushed is not None
    fewer = dopkit.run(dopkit.parse_recipe(text.replace("org/e0, ", ""), "n"), tmp_path / "fewer").folder
    dopkit.push(fewer, "org/merged")
    assert {name for name in hub.files("org/merged") if name.startswith("heads/")} == {"heads/e1.safetensors"}


def test_a_head_that_was_changed_is_not_published(hub: TestHub, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    make_models(tmp_path)
    out = dopkit.run(make_recipe(tmp_path, ["e0", "e1"], heads="per-task"), tmp_path / "out").folder
    options = PushOptions(allow_local_sources=True)
    file = out / "heads" / "e0.safetensors"
    good = file.read_bytes()
    (out / "heads" / "own.safetensors").write_bytes(good)
    with pytest.raises(OutputError, match=r"own\.safetensors: holds weights that are not of this merge"):
        dopkit.push(out, "org/m", options)
    (out / "heads" / "own.safetensors").unlink()
    file.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(OutputError, match=r"heads/e0\.safetensors: is not what was merged"):
        dopkit.push(out, "org/m", options)
    file.write_bytes(good)
    assert dopkit.push(out, "org/m", options).files > 2
