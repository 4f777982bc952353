"""The second moments of a training run as Fisher information: `optimizer.pt` of transformers' Trainer and of torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import yaml
from hubserver import CLIENT_WARNING, TestHub, connect
from safetensors.torch import save_file

import dopkit
from dopkit import refs
from dopkit.checkpoints import open_beside
from dopkit.errors import CheckpointError, DopkitError, PlanError

Model = Any


def make_llama(folder: Path) -> Path:
    return tiny.make_llama(folder, tied=True, dtype=torch.float32, shards=False)


def make_classifier(folder: Path) -> Path:
    return tiny.make_bert(folder, labels=3)


def make_vit(folder: Path) -> Path:
    return tiny.make_vit(folder, labels=3)


MAKERS: dict[str, Callable[[Path], Path]] = {"llama": make_llama, "bert": make_classifier, "vit": make_vit}


def load(folder: Path) -> Model:
    return dopkit.load(folder)


def examples(kind: str, seed: int) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 48, (8, 6), generator=generator)
    if kind == "vit":
        return [{"pixel_values": image, "labels": n % 3}
                for n, image in enumerate(torch.randn(8, 3, 8, 8, generator=generator))]  # fmt: skip
    return [{"input_ids": row, "labels": row if kind == "llama" else n % 3} for n, row in enumerate(tokens)]


def train(kind: str, base: Path, folder: Path, seed: int = 0) -> tuple[Path, tiny.Tensors]:
    """A checkpoint of transformers' Trainer after three steps of AdamW; and the second moments, by runtime name."""
    from transformers import Trainer, TrainingArguments

    model = load(base)
    how = TrainingArguments(
        output_dir=str(folder), max_steps=3, save_steps=3, per_device_train_batch_size=4, weight_decay=0.01, seed=seed,
        learning_rate=1e-2, report_to=[], use_cpu=True, disable_tqdm=True, logging_strategy="no",
    )  # fmt: skip
    trainer = Trainer(model=model, args=how, train_dataset=examples(kind, seed))
    trainer.train()
    state = trainer.optimizer.state
    return folder / "checkpoint-3", {name: state[one]["exp_avg_sq"] for name, one in model.named_parameters()}


def opened(path: Path, model: Path | None = None) -> tiny.Tensors:
    """The second moments in a file or folder, by the names that dopkit gives them."""
    from dopkit.checkpoints import open_checkpoint

    config = open_checkpoint(refs.parse(str(model), Path())).config if model else None
    found = open_beside(replace(refs.parse(str(path), Path()), part="fisher"), config)
    return {name: found.read(name) for name in found.specs}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, tiny.Tensors]]:
    root = tmp_path_factory.mktemp("trained")
    return {kind: train(kind, make(root / kind), root / f"{kind}-run") for kind, make in MAKERS.items()}


@pytest.mark.parametrize("kind", MAKERS)
def test_numbers_become_the_names_of_the_class(trained: dict[str, tuple[Path, tiny.Tensors]], kind: str) -> None:
    """Two groups, with weight decay and without, each in the order of the class."""
    checkpoint, moments = trained[kind]
    assert tiny.same(opened(checkpoint, checkpoint), moments)
    assert tiny.same(opened(checkpoint / "optimizer.pt", checkpoint), moments)
    groups = torch.load(checkpoint / "optimizer.pt", weights_only=True)["param_groups"]
    assert len(groups) == 2 and all(group["params"] for group in groups)


@pytest.mark.parametrize("kind", MAKERS)
def test_a_merge_of_checkpoints_of_trainer(
    trained: dict[str, tuple[Path, tiny.Tensors]], tmp_path: Path, kind: str
) -> None:
    """Each checkpoint is a model and its Fisher at once; the same as with files of the moments."""
    first, moments = trained[kind]
    second, others = train(kind, first.parent.parent / kind, tmp_path / "training", seed=1)
    merged = {}
    for name, beside in {
        "run": (first, second),
        "files": (tmp_path / "1.safetensors", tmp_path / "2.safetensors"),
    }.items():
        for tensors, file in zip((moments, others), beside, strict=True):
            if name == "files":
                save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, file)
        entries = [{"model": str(model), "parameters": {"fisher": str(file)}}
                   for model, file in zip((first, second), beside, strict=True)]  # fmt: skip
        dopkit.run(dopkit.parse_recipe(yaml.safe_dump({"merge_method": "fisher", "models": entries})), tmp_path / name)
        merged[name] = tiny.read(tmp_path / name)
    assert tiny.same(merged["run"], merged["files"])
    one, two = load(first), load(second)
    sizes = [torch.cat([tensor.double().flatten() for tensor in each.values()]).square().mean().sqrt()
             for each in (moments, others)]  # fmt: skip
    found = dict(load(tmp_path / "run").named_parameters())
    for (name, ours), theirs in zip(one.named_parameters(), two.parameters(), strict=True):
        own, other = ((each[name].double() / size).clamp(min=1e-6)
                      for each, size in zip((moments, others), sizes, strict=True))  # fmt: skip
        want = (own * ours.detach() + other * theirs.detach()) / (own + other)
        assert torch.allclose(found[name].detach().double(), want, atol=1e-6), name


def step(model: Model, optimizer: torch.optim.Optimizer) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.rand_like(parameter)
    optimizer.step()


def saved(tmp_path: Path, make: Callable[[Model], torch.optim.Optimizer]) -> tuple[Path, Path, Model, Any]:
    """A model, and the state of an optimizer after a step with random gradients."""
    folder = make_vit(tmp_path / "vit")
    model = load(folder)
    optimizer = make(model)
    step(model, optimizer)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    return folder, tmp_path / "state.pt", model, optimizer


def test_one_group_is_all_parameters_in_their_order(tmp_path: Path) -> None:
    folder, state, model, optimizer = saved(tmp_path, lambda model: torch.optim.AdamW(model.parameters()))
    want = {name: optimizer.state[one]["exp_avg_sq"] for name, one in model.named_parameters()}
    assert tiny.same(opened(state, folder), want)


def test_earlier_versions_of_trainer_decayed_norms_of_other_classes(tmp_path: Path) -> None:
    """The weights of a Llama's RMS norms stand among the others there."""
    folder = make_llama(tmp_path / "llama")
    model = load(folder)
    optimizer = torch.optim.AdamW([{"params": list(model.parameters())}, {"params": [], "weight_decay": 0.0}])
    step(model, optimizer)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    want = {name: optimizer.state[one]["exp_avg_sq"] for name, one in model.named_parameters()}
    assert tiny.same(opened(tmp_path / "optimizer.pt", folder), want)


def test_names_that_the_file_holds_are_taken(tmp_path: Path) -> None:
    """In whatever order and groups, and without a class."""

    def backwards(model: Model) -> torch.optim.Optimizer:
        named = list(model.named_parameters())[::-1]
        return torch.optim.AdamW([{"params": named[:3]}, {"params": named[3:10]}, {"params": named[10:]}])

    _, state, model, optimizer = saved(tmp_path, backwards)
    want = {name: optimizer.state[one]["exp_avg_sq"] for name, one in model.named_parameters()}
    assert tiny.same(opened(state), want)


def test_a_parameter_that_was_never_trained_is_missing(tmp_path: Path) -> None:
    """It has its number, and no second moment."""
    folder, state, _, _ = saved(tmp_path, lambda model: torch.optim.AdamW(model.parameters()))
    data = torch.load(state, weights_only=True)
    del data["state"][0]
    torch.save(data, state)
    names = [name for name, _ in load(folder).named_parameters()]
    assert list(opened(state, folder)) == names[1:]
    text = yaml.safe_dump(
        {"merge_method": "fisher", "models": [{"model": str(folder), "parameters": {"fisher": str(state)}}]}
    )
    with pytest.raises(PlanError) as caught:
        dopkit.plan(dopkit.parse_recipe(text), tmp_path / "out")
    assert "lacks 1 tensor" in str(caught.value) and "embeddings.cls_token" in str(caught.value)


def some_frozen(model: Model) -> torch.optim.Optimizer:
    return torch.optim.AdamW(list(model.parameters())[3:])


def three_groups(model: Model) -> torch.optim.Optimizer:
    own = list(model.parameters())
    return torch.optim.AdamW([{"params": own[:2]}, {"params": own[2:5]}, {"params": own[5:]}])


def mixed_up(model: Model) -> torch.optim.Optimizer:
    return torch.optim.AdamW(list(model.parameters())[::-1])


def momentum(model: Model) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), momentum=0.9)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (some_frozen, "the 37 of them in 1 groups are not the 40 of ViTForImageClassification"),
        (three_groups, "in 3 groups"),
        (mixed_up, "are not the 40 of"),
        (momentum, "it holds no exp_avg_sq, which AdamW keeps"),
    ],
)
def test_what_cannot_be_told_apart_is_refused(
    tmp_path: Path, make: Callable[[Model], torch.optim.Optimizer], message: str
) -> None:
    folder, state, _, _ = saved(tmp_path, make)
    with pytest.raises(CheckpointError) as caught:
        opened(state, folder)
    assert message in str(caught.value) and "docs/methods.md" in str(caught.value)


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('code was run')",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"weights": torch.ones(3)}, "it is not the state of an optimizer"),
        ([1, 2], "it is not the state of an optimizer"),
        ({"state": {}, "param_groups": []}, "it holds no exp_avg_sq"),
        ({"state": {0: {"exp_avg_sq": torch.ones(3)}}, "param_groups": [3]}, "'param_groups' are damaged"),
        ({"state": Harmful(), "param_groups": []}, "it holds more than tensors"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    folder = make_vit(tmp_path / "vit")
    torch.save(content, tmp_path / "optimizer.pt")
    with pytest.raises(CheckpointError, match=message):
        opened(tmp_path / "optimizer.pt", folder)


def test_without_a_class_numbers_have_no_names(tmp_path: Path) -> None:
    _, state, _, _ = saved(tmp_path, lambda model: torch.optim.AdamW(model.parameters()))
    with pytest.raises(CheckpointError, match="the class of the model is not known"):
        opened(state)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[TestHub]:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with TestHub() as server:
        connect(monkeypatch, server, tmp_path / "cache", token=server.token("org"))
        yield server
        assert server.crashes == []


@pytest.mark.filterwarnings(CLIENT_WARNING)
def test_on_the_hub_it_is_downloaded_before_it_can_be_planned(
    hub: TestHub, trained: dict[str, tuple[Path, tiny.Tensors]], tmp_path: Path
) -> None:
    checkpoint, _ = trained["vit"]
    hub.add_folder("org/run", checkpoint)
    text = "merge_method: fisher\nmodels: [{model: org/run, parameters: {fisher: org/run}}]\n"
    with pytest.raises(DopkitError, match="must be downloaded before it can be planned"):
        dopkit.plan(dopkit.parse_recipe(text), tmp_path / "out")
    dopkit.run(dopkit.parse_recipe(text), tmp_path / "out")
    assert tiny.same(tiny.read(tmp_path / "out"), tiny.read(checkpoint))
