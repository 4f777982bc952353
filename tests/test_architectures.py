"""Merges of real model classes as they lie on disk, against the same arithmetic on the loaded models.

Every architecture is merged from three spellings and formats at once; see ``published.write``.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import tiny
import torch
from architectures import ARCHITECTURES
from published import Architecture, words, write
from safetensors.torch import save_file
from torch import nn

import dopkit
from dopkit.errors import PlanError
from dopkit.methods.dop import Dop
from dopkit.methods.fold import Context
from dopkit.methods.parameters import DopParameters
from dopkit.roles import Role

MakeRecipe = Callable[..., dopkit.Recipe]
Folder = Callable[[str], Path]
MODELS = ("base", "e0", "e1")

# A kind of matrix each: plain, fused projections, GPT-2's transposed ones, experts one by one, fused and transposed.
DOP = ("llama", "llama, tied", "phi3", "gpt2", "mixtral", "gpt-oss", "qwen2-vl", "t5", "bert", "clip", "vit")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """The folder with the models of an architecture, made once."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = write(ARCHITECTURES[name], tmp_path_factory.mktemp("architecture"))
        return made[name]

    return get


def answer(model: nn.Module, architecture: Architecture) -> list[torch.Tensor]:
    with torch.no_grad():
        output = model(**architecture.inputs()).to_tuple()
    return [part for part in output if isinstance(part, torch.Tensor)]


def assert_same(architecture: Architecture, merged: nn.Module, naive: nn.Module) -> None:
    """Equal tensors and equal answers, to float32 rounding."""
    found, wanted = merged.state_dict(), naive.state_dict()
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert torch.allclose(found[name], tensor, rtol=1e-5, atol=1e-5), name
    answers = list(zip(answer(merged, architecture), answer(naive, architecture), strict=True))
    assert answers
    for one, other in answers:
        assert one.isfinite().all()
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def with_tensors(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> nn.Module:
    changed = copy.deepcopy(model)
    changed.load_state_dict(tensors)
    return changed


def task_arithmetic(base: nn.Module, *models: nn.Module) -> nn.Module:
    """The base and half of every task vector."""
    states = [model.state_dict() for model in models]
    wanted = {
        name: tensor + 0.5 * sum(state[name] - tensor for state in states) if tensor.is_floating_point() else tensor
        for name, tensor in base.state_dict().items()
    }
    return with_tensors(base, wanted)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_task_arithmetic(name: str, folder: Folder, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    architecture, root = ARCHITECTURES[name], folder(name)
    recipe = make_recipe(root, ["e0", "e1"], "task_arithmetic", parameters={"lambda": 0.5})
    result = dopkit.run(recipe, tmp_path / "out")
    assert result.receipt["verified"]["loads"] == f"loads as {architecture.model} with no missing or unexpected key"
    base, *experts = (architecture.load(root / model) for model in MODELS)
    assert_same(architecture, architecture.load(tmp_path / "out"), task_arithmetic(base, *experts))
    written, published = tiny.read(tmp_path / "out").keys(), tiny.read(root / "base").keys()
    assert written <= published  # the base's own spelling, less what no class reads


def test_the_page_names_them_all() -> None:
    page = (Path(__file__).parent.parent / "docs" / "architectures.md").read_text()
    rows = [line.split("|")[1:-1] for line in page.splitlines() if line.startswith("| ")][1:]
    shown = {name.strip(): row[3].strip() for row in rows for name in _names(row[0])}
    assert shown.keys() == ARCHITECTURES.keys()
    assert {name for name, dop in shown.items() if dop == "yes"} == set(DOP)


def _names(cell: str) -> list[str]:
    """One name with a comma in it, or several."""
    return [cell] if cell.strip() in ARCHITECTURES else cell.split(",")


# --- DOP ----------------------------------------------------------------------------------------------------


def dop(base: torch.Tensor, one: torch.Tensor, two: torch.Tensor, role: Role) -> torch.Tensor:
    fold, parameters = Dop(), DopParameters()
    state = fold.start(base, one.clone(), Context(parameters, role, 1))
    last = Context(parameters, role, 2)
    return fold.finish(fold.step(state, two.clone(), last), last).clone()


def matrices(model: nn.Module) -> dict[str, Role]:
    """The parameters that DOP takes for matrices, by the modules of the loaded class alone."""
    from transformers.pytorch_utils import Conv1D

    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    found = {}
    for path, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter) and id(weight) not in embeddings:
            if isinstance(module, Conv1D):
                found[f"{path}.weight"] = Role.CONV1D
            elif isinstance(module, nn.Linear) or path.endswith((".gate", ".router")):
                found[f"{path}.weight"] = Role.LINEAR
    return found


def naive_dop(base: nn.Module, one: nn.Module, two: nn.Module) -> nn.Module:
    """DOP on every matrix, the mean of the rest; of a stack of experts on each, and on gate and up apart."""
    roles = matrices(base)
    wanted = {}
    for name, own in base.state_dict().items():
        three = (own, one.state_dict()[name], two.state_dict()[name])
        if name in roles:
            wanted[name] = dop(*three, roles[name])
        elif ".experts." in name and own.dim() == 3:
            wanted[name] = dop_experts(name, three, transposed=type(base).__name__.startswith("GptOss"))
        else:
            wanted[name] = (three[1] + three[2]) / 2 if own.is_floating_point() else own
    return with_tensors(base, wanted)


def dop_experts(name: str, three: tuple[torch.Tensor, ...], transposed: bool) -> torch.Tensor:
    """As the files have them: gpt-oss' stacks slice by slice, the others' experts and their halves by themselves."""
    if transposed:
        return torch.stack([dop(*slices, Role.CONV1D) for slices in zip(*three, strict=True)])
    halves = 2 if "gate_up" in name else 1
    return torch.stack(
        [
            torch.cat([dop(*parts, Role.LINEAR) for parts in zip(*(one.chunk(halves) for one in slices), strict=True)])
            for slices in zip(*three, strict=True)
        ]
    )


@pytest.mark.parametrize("name", DOP)
def test_dop(name: str, folder: Folder, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    architecture, root = ARCHITECTURES[name], folder(name)
    dopkit.run(make_recipe(root, ["e0", "e1"]), tmp_path / "out")
    wanted = naive_dop(*(architecture.load(root / model) for model in MODELS))
    assert_same(architecture, architecture.load(tmp_path / "out"), wanted)


# --- tied and untied ----------------------------------------------------------------------------------------


def beside(root: Path, others: Path, prefix: str) -> None:
    """Make the models of another folder models of this one."""
    for model in MODELS:
        (root / f"{prefix}-{model}").symlink_to(others / model)


def test_a_tied_model_on_an_untied_base(folder: Folder, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    """Its embedding is its head too. One of the two stores it twice, the other once."""
    architecture = ARCHITECTURES["llama"]
    beside(tmp_path, folder("llama"), "untied")
    beside(tmp_path, folder("llama, tied"), "tied")
    assert "lm_head.weight" in tiny.read(tmp_path / "tied-base")
    assert "lm_head.weight" not in tiny.read(tmp_path / "tied-e0")
    models = ["untied-e0", "tied-base", "tied-e0"]
    recipe = make_recipe(tmp_path, models, "task_arithmetic", base="untied-base", parameters={"lambda": 0.5})
    plan = dopkit.plan(recipe)
    said = "embed_tokens.weight stands for its lm_head.weight, which its config ties to it"
    assert [note for note in plan.notes if "lm_head" in note] == [f"./tied-base: {said}", f"./tied-e0: {said}"]
    dopkit.run(recipe, tmp_path / "out")
    base, *experts = (architecture.load(tmp_path / model) for model in ("untied-base", *models))
    assert_same(architecture, architecture.load(tmp_path / "out"), task_arithmetic(base, *experts))


def test_an_untied_model_on_a_tied_base_is_refused(folder: Folder, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    beside(tmp_path, folder("llama"), "untied")
    beside(tmp_path, folder("llama, tied"), "tied")
    with pytest.raises(PlanError) as caught:
        dopkit.plan(make_recipe(tmp_path, ["untied-e0"], base="tied-base"))
    assert "./untied-e0: has an output head that ./tied-base lacks: lm_head.weight" in str(caught.value)
    assert "tie_word_embeddings is False, there True: make both alike, or take the untied" in str(caught.value)


# --- what no class reads, and what only counts --------------------------------------------------------------


def test_what_the_bases_class_does_not_read_is_kept(folder: Folder, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    """As bert-base-uncased holds the pooler and the second head of its pre-training beside its masked-word head."""
    root, architecture = folder("bert, masked"), ARCHITECTURES["bert, masked"]
    more = {"bert.pooler.dense.weight": torch.ones(16, 16), "cls.seq_relationship.bias": torch.ones(2)}
    tiny.edit(root / "base", tmp_path / "base", lambda tensors: tensors | more)
    for model in ("e0", "e1"):
        (tmp_path / model).symlink_to(root / model)
    recipe = make_recipe(tmp_path, ["e0", "e1"], "task_arithmetic", parameters={"lambda": 0.5})
    what = f"no model holds {', '.join(more)} and its class does not read them: kept as in the base, as with `copy`"
    assert f"./base: {what}" in dopkit.plan(recipe).notes
    dopkit.run(recipe, tmp_path / "out")
    written = tiny.read(tmp_path / "out")
    assert all(torch.equal(written[name], tensor) for name, tensor in more.items())
    base, *experts = (architecture.load(root / model) for model in MODELS)
    assert_same(architecture, architecture.load(tmp_path / "out"), task_arithmetic(base, *experts))


def test_counters_of_batch_norms_are_the_bases(folder: Folder, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    root, architecture = folder("resnet"), ARCHITECTURES["resnet"]

    def count_on(tensors: tiny.Tensors) -> tiny.Tensors:
        return {name: tensor + 7 if name.endswith("_tracked") else tensor for name, tensor in tensors.items()}

    (tmp_path / "base").symlink_to(root / "base")
    (tmp_path / "e1").symlink_to(root / "e1")
    tiny.edit(root / "e0", tmp_path / "e0", count_on)
    recipe = make_recipe(tmp_path, ["e0", "e1"], "task_arithmetic", parameters={"lambda": 0.5})
    plan = dopkit.plan(recipe)
    what = "6 counters of batches (num_batches_tracked) taken from it: nothing is computed with them"
    assert f"./base: {what}" in plan.notes
    assert [one.why for one in plan.dropped] == ["counts the batches of training"] * 12  # of two models
    dopkit.run(recipe, tmp_path / "out")
    base, *experts = (architecture.load(root / model) for model in MODELS)
    assert_same(architecture, architecture.load(tmp_path / "out"), task_arithmetic(base, *experts))


def test_a_dense_layer_behind_a_sentence_embedder_is_the_bases(
    folder: Folder, tmp_path: Path, make_recipe: MakeRecipe
) -> None:
    """A module of sentence-transformers, in a folder of its own: without it the result would not load there."""
    root, file = folder("bert"), Path("2_Dense") / "model.safetensors"
    for number, model in enumerate(MODELS):
        shutil.copytree(root / model, tmp_path / model)
        (tmp_path / model / file).parent.mkdir()
        save_file({"linear.weight": torch.full((4, 16), float(number))}, tmp_path / model / file)
    recipe = make_recipe(tmp_path, ["e0", "e1"], "average")
    what = "modules of sentence-transformers with weights of their own are not merged, the base's are taken (2_Dense)"
    assert dopkit.plan(recipe).notes == tuple(f"./{model}: {what}" for model in MODELS)
    dopkit.run(recipe, tmp_path / "out")
    assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "base" / file).read_bytes()


# --- parts of a model ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["llava", "gemma3, whole", "qwen2-vl"])
def test_the_language_model_alone(name: str, folder: Folder, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    """The rest by pattern, whatever the models hold there: here one of them holds another shape."""
    root, architecture = folder(name), ARCHITECTURES[name]
    patterns = ["visual.*"] if name == "qwen2-vl" else ["vision_tower.*", "multi_modal_projector.*"]

    def another_eye(tensors: tiny.Tensors) -> tiny.Tensors:
        seen = ("visual.blocks.0.norm1.weight", "vision_tower.post_layernorm.weight")
        return {name: torch.ones(3) if name in seen else tensor for name, tensor in tensors.items()}

    (tmp_path / "base").symlink_to(root / "base")
    (tmp_path / "e1").symlink_to(root / "e1")
    tiny.edit(root / "e0", tmp_path / "e0", another_eye)
    options = {"parameters": {"lambda": 0.5}}
    with pytest.raises(PlanError, match="of other shape"):
        dopkit.plan(make_recipe(tmp_path, ["e0", "e1"], "task_arithmetic", **options))
    recipe = make_recipe(tmp_path, ["e0", "e1"], "task_arithmetic", copy=patterns, **options)
    plan = dopkit.plan(recipe)
    language = {job.canonical for job in plan.jobs if job.rule.name != "base"}
    assert {canonical.partition(".")[0] for canonical in language} <= {"language_model", "lm_head"}
    dopkit.run(recipe, tmp_path / "out")

    base, *experts = (architecture.load(root / model) for model in MODELS)
    whole, own = task_arithmetic(base, *experts).state_dict(), base.state_dict()
    spoken = {key: whole[key] if "language_model" in key or "lm_head" in key else own[key] for key in own}
    assert_same(architecture, architecture.load(tmp_path / "out"), with_tensors(base, spoken))


@pytest.mark.parametrize(
    ("name", "text"),
    [("llava", "LlamaForCausalLM"), ("idefics3", "LlamaForCausalLM"), ("gemma3, whole", "Gemma3ForCausalLM")],
)
def test_language_models_on_a_whole_base(
    name: str, text: str, folder: Folder, tmp_path: Path, make_recipe: MakeRecipe
) -> None:
    """Fine-tuned and saved without the eyes; the base is read as the language model in it."""
    import transformers

    root, spoken = folder(name), []
    (tmp_path / "base").symlink_to(root / "base")
    for model in MODELS:
        whole = ARCHITECTURES[name].load(root / model)
        alone = getattr(transformers, text)(whole.config.text_config)
        inner = whole.model.text_model if name == "idefics3" else whole.model.language_model
        alone.model.load_state_dict(inner.state_dict())
        alone.lm_head.load_state_dict(whole.lm_head.state_dict())
        spoken.append(alone.eval())
        if model != "base":
            alone.save_pretrained(tmp_path / model)
    recipe = make_recipe(tmp_path, ["e0", "e1"], "task_arithmetic", parameters={"lambda": 0.5})
    plan = dopkit.plan(recipe)
    assert plan.notes == (f"./base: read as the {text} in it",)
    assert {one.why for one in plan.dropped} == {f"not part of {text}, which the models are"}
    result = dopkit.run(recipe, tmp_path / "out")
    assert result.receipt["verified"]["loads"] == f"loads as {text} with no missing or unexpected key"
    architecture = Architecture(text, "", {}, words)
    assert_same(architecture, architecture.load(tmp_path / "out"), task_arithmetic(*spoken))


# --- the same weights in another layout ---------------------------------------------------------------------


@pytest.mark.parametrize("fused", ["e0", "base"])
def test_experts_fused_in_one_and_apart_in_another(
    fused: str, folder: Folder, tmp_path: Path, make_recipe: MakeRecipe
) -> None:
    """Refused, with a remedy that is one: `copy` would lose what was trained."""
    architecture, root = ARCHITECTURES["qwen3-moe"], folder("qwen3-moe")
    for name in ("base", "e0"):
        architecture.load(root / name).save_pretrained(tmp_path / name, save_original_format=name != fused)
    with pytest.raises(PlanError) as caught:
        dopkit.plan(make_recipe(tmp_path, ["e0"]))
    stack, one = "model.layers.0.mlp.experts.down_proj", "model.layers.0.mlp.experts.0.down_proj.weight"
    theirs, ours = (stack, one) if fused == "e0" else (one, stack)
    apart = "base" if fused == "e0" else "e0"
    how = "`model.save_pretrained(folder, save_original_format=False)`"
    assert str(caught.value).splitlines()[1:] == [
        f"  ./e0: stores weights in another layout: {theirs}, where ./base has {ours}",
        f"    Load ./{apart} with transformers and save it again with {how}, which fits both.",
    ]
    architecture.load(tmp_path / apart).save_pretrained(tmp_path / "again", save_original_format=False)
    pair = {"base": "again", "models": ["e0"]} if apart == "base" else {"base": "base", "models": ["again"]}
    dopkit.run(make_recipe(tmp_path, method="average", **pair), tmp_path / "out")
    assert_same(architecture, architecture.load(tmp_path / "out"), architecture.load(root / "e0"))


def test_experts_that_are_fused_everywhere(folder: Folder, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    architecture, root = ARCHITECTURES["mixtral"], folder("mixtral")
    for model in MODELS:
        architecture.load(root / model).save_pretrained(tmp_path / model, save_original_format=False)
    assert tiny.read(tmp_path / "base")["model.layers.0.mlp.experts.gate_up_proj"].shape == (3, 64, 16)
    recipe = make_recipe(tmp_path, ["e0", "e1"], "task_arithmetic", parameters={"lambda": 0.5})
    dopkit.run(recipe, tmp_path / "out")
    base, *experts = (architecture.load(root / model) for model in MODELS)
    assert_same(architecture, architecture.load(tmp_path / "out"), task_arithmetic(base, *experts))
