"""dopkit.loading: models that are ready to be used, and no random weight in any of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import scored
import tiny
import torch
from hubserver import TestHub, connect
from safetensors.torch import save_file

from dopkit import loading
from dopkit.errors import CheckpointError
from dopkit.loading import Head, load
from dopkit.refs import ModelRef

IMAGES = scored.pixel_values(scored.grey(4))


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone with the heads of two classifiers beside it; ``../three`` and ``../five`` are those."""
    root = tmp_path_factory.mktemp("heads")
    base = tiny.make_vit(root / "base")
    for name, labels in (("three", ["zero", "one", "two"]), ("five", list("abcde"))):
        scored.keep_head(scored.make_classifier(root / name, labels, seed=len(labels)), base, name)
    return base


@pytest.fixture
def copy(merged: Path, tmp_path: Path) -> Path:
    return tiny.edit(merged, tmp_path / "copy", dict)


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = model(IMAGES).logits
    return found


def refusal(*arguments: object, **named: object) -> list[str]:
    with pytest.raises(CheckpointError) as caught:
        load(*arguments, **named)  # type: ignore[arg-type]
    return str(caught.value).splitlines()


def test_an_adapter_on_a_base_is_not_that_base(merged: Path) -> None:
    base = ModelRef("./base", folder=merged)
    (said,) = refusal(base.with_adapter(ModelRef("./adapter", folder=merged)))
    assert said == "./base+./adapter: an adapter is not a whole model"


def test_the_folders_own_architecture(merged: Path) -> None:
    from transformers import ViTForImageClassification

    model = load(merged.parent / "three")
    assert type(model) is ViTForImageClassification and not model.training
    assert torch.equal(logits(model), logits(ViTForImageClassification.from_pretrained(merged.parent / "three").eval()))


def test_a_pooler_that_was_never_trained_is_left_out(merged: Path) -> None:
    model = load(merged)
    assert type(model).__name__ == "ViTModel" and model.pooler is None


def test_a_folder_that_names_no_class_is_a_bare_backbone(copy: Path) -> None:
    tiny.set_config(copy, architectures=None)
    assert type(load(copy)).__name__ == "ViTModel"


def test_each_head_has_its_own_labels_and_weights(merged: Path) -> None:
    """What a head answers is its weights times what the backbone makes of the image."""
    with torch.inference_mode():
        features = load(merged)(IMAGES).last_hidden_state[:, 0]
    for name, labels in (("three", ["zero", "one", "two"]), ("five", list("abcde"))):
        model = load(merged, head=name)
        weight, bias = scored.head_weights(merged / "heads" / f"{name}.safetensors")
        assert not model.training
        assert [model.config.id2label[index] for index in range(len(labels))] == labels
        assert model.config.label2id == {label: index for index, label in enumerate(labels)}
        assert torch.allclose(logits(model), features @ weight.T + bias, atol=1e-6)


def test_another_models_backbone_under_a_kept_head(merged: Path) -> None:
    """An expert's backbone, whatever head stands on it, under its kept head is the expert again."""
    three, five = merged.parent / "three", merged.parent / "five"
    assert torch.equal(logits(load(merged, "three", backbone=three)), logits(load(three)))
    other = load(merged, "three", backbone=five)
    weight, _ = scored.head_weights(merged / "heads/three.safetensors")
    assert torch.equal(other.classifier.weight, weight)
    assert torch.equal(other.vit.embeddings.cls_token, load(five).vit.embeddings.cls_token)
    with pytest.raises(ValueError, match="backbone goes with head"):
        load(merged, backbone=three)


def test_a_text_classifier_with_its_pooler(tmp_path: Path) -> None:
    """The backbone holds the pooler, as BERT's does; the head only the classifier."""
    expert = scored.make_bert(tmp_path / "expert", ["bad", "good", "so so"])
    backbone = tiny.edit(expert, tmp_path / "backbone", lambda t: {k: v for k, v in t.items() if "classifier" not in k})
    tiny.set_config(backbone, architectures=["BertModel"], id2label=None, label2id=None)
    scored.keep_head(expert, backbone, "mood")
    ids = torch.tensor([[2, 5, 6, 3]])
    with torch.inference_mode():
        assert torch.equal(load(backbone, "mood")(ids).logits, load(expert)(ids).logits)


def test_heads_and_their_labels(merged: Path, tmp_path: Path) -> None:
    assert loading.heads(merged) == {
        "five": Head(tuple("abcde"), "ViTForImageClassification"),
        "three": Head(("zero", "one", "two"), "ViTForImageClassification"),
    }
    assert loading.heads(tiny.make_vit(tmp_path / "bare")) == {}


def test_labels_that_a_config_leaves_out() -> None:
    assert loading.labels_of({}) == ("LABEL_0", "LABEL_1")
    assert loading.labels_of({"num_labels": 3}) == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert loading.labels_of({"id2label": {str(n): f"c{n}" for n in range(12)}})[10] == "c10"


# Refusals


def test_an_unknown_head(merged: Path, tmp_path: Path) -> None:
    assert refusal(merged, "four") == [f"{merged} has no head 'four'", "  its heads: five, three"]
    assert refusal(merged, "../heads/three")[1] == "  its heads: five, three"
    bare = tiny.make_vit(tmp_path / "bare")
    assert refusal(bare, "three")[1] == "  its heads: none: its heads were not kept"


@pytest.mark.parametrize(
    ("tensors", "what"),
    [
        (
            {"classifier.weight": torch.zeros(3, 24), "classifier.bias": torch.zeros(3)},
            "classifier.weight: has shape (3, 24), but ViTForImageClassification needs (3, 16)",
        ),
        (
            {"score.weight": torch.zeros(3, 16), "classifier.bias": torch.zeros(3)},
            "score.weight: ViTForImageClassification has no place for it",
        ),
    ],
)
def test_a_head_that_does_not_fit(copy: Path, tensors: dict[str, torch.Tensor], what: str) -> None:
    facts = {"architecture": "ViTForImageClassification", "config": json.dumps({"num_labels": 3})}
    save_file(tensors, copy / "heads/odd.safetensors", metadata=facts)
    assert refusal(copy, "odd")[1:] == [f"  {what}"]


def test_a_head_with_a_tensor_missing_is_not_filled_with_noise(copy: Path) -> None:
    facts = {"architecture": "ViTForImageClassification", "config": json.dumps({"num_labels": 3})}
    save_file({"classifier.weight": torch.zeros(3, 16)}, copy / "heads/half.safetensors", metadata=facts)
    assert refusal(copy, "half")[1:] == ["  classifier.bias: has no fitting weights there and would be random"]


@pytest.mark.parametrize("facts", [None, {"architecture": "ViTForImageClassification", "config": "[1"}])
def test_a_file_that_is_no_head(copy: Path, facts: dict[str, str] | None) -> None:
    save_file({"classifier.bias": torch.zeros(3)}, copy / "heads/odd.safetensors", metadata=facts)
    with pytest.raises(CheckpointError, match="is not a kept head"):
        loading.heads(copy)


def test_missing_backbone_weights_are_refused(copy: Path) -> None:
    def cut(tensors: tiny.Tensors) -> tiny.Tensors:
        return {name: tensor for name, tensor in tensors.items() if "layer.1." not in name and "layers.1." not in name}

    broken = tiny.edit(copy, copy.parent / "broken", cut)
    for head in (None, "three"):
        lines = refusal(broken, head)
        assert lines[0].startswith(f"{broken} does not hold all of ViT") and len(lines) > 10
        assert all(line.endswith("has no fitting weights there and would be random") for line in lines[1:])


def test_a_backbone_of_another_size(merged: Path, tmp_path: Path) -> None:
    wide = tiny.edit(merged, tmp_path / "wide", lambda t: {k: v.repeat_interleave(2, dim=-1) for k, v in t.items()})
    assert refusal(merged, "three", backbone=wide)[0] == f"{wide} does not hold all of ViTForImageClassification"


def test_what_is_no_model(tmp_path: Path) -> None:
    assert refusal("./nowhere") == [f"there is no folder {Path('nowhere').absolute()}"]
    assert "neither a Hub repository" in refusal("a b")[0]
    assert refusal("user/base+user/adapter") == ["user/base+user/adapter: an adapter is not a whole model"]
    (tmp_path / "config.json").write_text('{"model_type": "vit", "architectures": ["ViTModel"]}')
    assert refusal(tmp_path)[0].startswith(f"{tmp_path} cannot be loaded (OSError: ")
    with pytest.raises(CheckpointError, match="has no tokenizer that can be loaded"):
        loading.tokenizer(tmp_path)


# The Hub


def test_a_repository_with_its_heads(merged: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    files = {path.relative_to(merged).as_posix(): path.read_bytes() for path in merged.rglob("*") if path.is_file()}
    with TestHub() as server:
        connect(monkeypatch, server, tmp_path / "cache")
        commit = server.create_repo("user/merged", files)
        model = load("user/merged", head="three")
        assert torch.equal(logits(model), logits(load(merged, head="three")))
        assert loading.heads(f"user/merged@{commit}") == loading.heads(merged)
        assert not loading.is_folder("user/merged") and loading.is_folder(merged)
        assert server.crashes == []


def test_a_repository_of_pickles(merged: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    three = merged.parent / "three"
    torch.save(tiny.read(three), tmp_path / "pytorch_model.bin")
    files = {"config.json": (three / "config.json").read_bytes()}
    with TestHub() as server:
        connect(monkeypatch, server, tmp_path / "cache")
        server.create_repo("user/old", {**files, "pytorch_model.bin": (tmp_path / "pytorch_model.bin").read_bytes()})
        assert torch.equal(logits(load("user/old")), logits(load(three)))
        assert server.crashes == []
