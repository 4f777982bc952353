"""docs/examples/fisher.py: a Fisher file as the documentation says to make it, and a merge with it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import scored
import tiny
import torch
from safetensors.torch import load_file, save_file

import dopkit

SCRIPT = Path(__file__).parent.parent / "docs" / "examples" / "fisher.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fisher_example", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Logits:
    def __init__(self, logits: torch.Tensor) -> None:
        self.logits = logits


class Logistic(torch.nn.Module):
    """Two classes, whose Fisher is known: sum over classes of p (gradient of log p)^2."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([[0.3, -0.2], [-0.5, 0.4]]))

    def forward(self, x: torch.Tensor) -> Logits:
        return Logits(x @ self.weight.T)


def test_drawn_labels_give_the_fisher_of_the_definition(script: ModuleType) -> None:
    """For logits W x it is p (1 - p) x^2 in every row, whatever the data's labels."""
    x = torch.tensor([[1.0, 2.0]])
    model, draws = Logistic(), torch.Generator().manual_seed(0)
    p = model(x).logits.softmax(-1)[0].detach()
    want = (p * (1 - p))[:, None] * x.square()
    found = script.fisher(model, ({"x": x} for _ in range(3000)), draws)
    assert torch.allclose(found["weight"], want, rtol=0.06)


def test_labels_of_the_data_give_the_empirical_one(script: ModuleType) -> None:
    """The mean of squared gradients, each example's own: not the square of their mean."""
    x, labels = torch.tensor([[1.0, 2.0], [0.5, -1.0], [2.0, 0.0]]), torch.tensor([0, 1, 1])
    model = Logistic()
    p = model(x).logits.softmax(-1).detach()
    errors = p - torch.eye(2)[labels]
    want = (errors[:, :, None] * x[:, None, :]).square().mean(0)
    examples = ({"x": one[None], "labels": label[None]} for one, label in zip(x, labels, strict=True))
    assert torch.allclose(script.fisher(model, examples)["weight"], want)


def test_nothing_to_go_by_is_told(script: ModuleType) -> None:
    with pytest.raises(ValueError, match="no examples"):
        script.fisher(Logistic(), [])
    with pytest.raises(ValueError, match="no label"):
        script.fisher(Logistic(), [{"x": torch.ones(1, 2)}])


def texts(folder: Path, labelled: bool) -> Path:
    lines = [{"text": " ".join(scored.WORDS[index : index + 4])} for index in range(6)]
    lines = [{**line, "label": index % 2} if labelled else line for index, line in enumerate(lines)]
    (folder / "texts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder / "texts.jsonl"


@pytest.mark.parametrize("labelled", [False, True])
def test_from_a_file_of_texts_to_a_merge(script: ModuleType, tmp_path: Path, labelled: bool) -> None:
    base = tiny.make_bert(tmp_path / "base", labels=2) if labelled else tiny.make_llama(tmp_path / "base")
    models = [tiny.make_expert(base, tmp_path / name, seed=seed) for seed, name in enumerate("ab")]
    for model in models:
        scored.make_tokenizer(model)
        data, out = texts(tmp_path, labelled), model / "fisher.safetensors"
        script.main([str(model), str(data), "-o", str(out), "--examples", "5"])
        first = out.read_bytes()
        script.main([str(model), str(data), "-o", str(out), "--examples", "5"])
        assert out.read_bytes() == first, "the same draws"
        script.main([str(model), str(data), "-o", str(tmp_path / "other"), "--examples", "5", "--labels", "data"])
        assert not tiny.same(load_file(tmp_path / "other"), load_file(out))
    text = "merge_method: fisher\nmodels:\n- {model: ./a, parameters: {fisher: ./a}}\n"
    text += "- {model: ./b, parameters: {fisher: ./b, weight: 2.0}}\n"
    made = dopkit.run(dopkit.parse_recipe(text, folder=tmp_path), tmp_path / "merged")
    assert set(made.plan.rules()) == {"fisher"}
    one, two, merged = (tiny.read(tmp_path / name) for name in ("a", "b", "merged"))
    assert not tiny.same(merged, one) and not tiny.same(merged, two)


def test_a_model_for_images(script: ModuleType, tmp_path: Path) -> None:
    """As the script's own text says; its names are those inside the class."""
    model = tiny.make_vit(tmp_path / "vit", labels=3)
    inputs = ({"pixel_values": torch.rand(1, 3, 8, 8), "labels": torch.tensor([index % 3])} for index in range(4))
    save_file(script.fisher(dopkit.load(model), inputs), model / "fisher.safetensors")
    text = "merge_method: fisher\nmodels: [{model: ./vit, parameters: {fisher: ./vit}}]\n"
    dopkit.run(dopkit.parse_recipe(text, folder=tmp_path), tmp_path / "merged")
    assert tiny.same(tiny.read(tmp_path / "merged"), {
        name: tensor for name, tensor in load_file(model / "model.safetensors").items()
    })  # fmt: skip
