"""Which output heads are kept beside the merged backbone (``heads: per-task``), and what they are called.

Pure functions of headers, roles and configs; ``dopkit.heads`` copies the tensors.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from dopkit.errors import Problem
from dopkit.refs import ModelRef
from dopkit.roles import Role
from dopkit.short_names import short_names
from dopkit.specs import DTYPES, TensorSpec

if TYPE_CHECKING:
    from dopkit.planning.matching import Model

FOLDER = "heads"  # in the merged folder

# What a config says of labels; a backbone alone has none.
LABEL_KEYS = ("id2label", "label2id", "num_labels", "_num_labels", "problem_type")
# What else belongs to the head: how it pools what the backbone gives it, and which token ends a sentence.
_HEAD_KEYS = (*LABEL_KEYS, "pad_token_id", "classifier_*", "summary_*", "use_mean_pooling")
_DEFAULT_LABELS = 2  # of transformers' configs, which leave out what is as by default


@dataclass(frozen=True)
class Head:
    """The output head of one model: what stands on its backbone."""

    name: str  # unique in the merged folder
    ref: ModelRef
    architecture: str  # the class it belongs to (``ViTForImageClassification``)
    tensors: tuple[TensorSpec, ...]  # as the model's own checkpoint has them; wider dtypes first, as in the file
    config: Mapping[str, Any]  # the entries of the model's config that go with it

    @property
    def file(self) -> str:
        """Where it lies, as a posix path in the merged folder."""
        return head_file(self.name)

    @property
    def nbytes(self) -> int:
        return sum(spec.nbytes for spec in self.tensors)

    @property
    def labels(self) -> int | None:
        """How many classes it tells apart; None where that is not what it does."""
        return labels(self.config, self.architecture)


def head_file(name: str) -> str:
    """Where the head of this name lies, as a posix path in the merged folder."""
    return f"{FOLDER}/{name}.safetensors"


def labels(config: Mapping[str, Any], architecture: str) -> int | None:
    """How many classes a head of this config and class tells apart; None where that is not what it does."""
    names = config.get("id2label")
    if isinstance(names, Mapping):
        return len(names)
    stated = config.get("num_labels", config.get("_num_labels"))
    if isinstance(stated, int):
        return stated
    return _DEFAULT_LABELS if architecture.endswith("Classification") else None


def first_labels(config: Mapping[str, Any], number: int) -> list[str]:
    """What the first ``number`` classes are called; empty when they have no names of their own."""
    named = config.get("id2label")
    names = [str(name) for name in named.values()][:number] if isinstance(named, Mapping) else []
    return [] if any(name.startswith("LABEL_") for name in names) else names


def kept_heads(
    donor: Model, models: Sequence[Model], earlier: Sequence[ModelRef] = (), beside: Collection[str] = ()
) -> tuple[Head, ...]:
    """The heads of the models that have one, in merge order.

    When a merge goes on, ``earlier`` are the models that ``models[0]`` was merged from, and ``beside`` is what their
    heads are called that lie beside it: a new one gets another name.
    """
    new = models[1:] if earlier else models
    names = short_names([*earlier, *(model.source.ref for model in new)])
    found: list[Head] = []
    used = {name.casefold() for name in (*short_names(earlier), *beside)}
    for model, name in zip(new, names[len(earlier) :], strict=True):
        if tensors := _tensors(donor, model):
            own = _free(name, used)
            used.add(own.casefold())
            found.append(Head(own, model.source.ref, _architecture(model), tensors, _config(model)))
    return tuple(found)


def problems(heads: Iterable[Head], donor: Model, models: Iterable[Model]) -> Iterable[Problem]:
    """Why heads cannot be kept: a class that would not load one, or none to keep."""
    remedy = "Merge the backbones alone with `heads: drop`."
    keys = {head.ref.key for head in heads}
    strange = [model for model in models if model.source.ref.key not in keys and _strange(donor, model)]
    for model in strange:
        kind = model.skeleton.class_name
        why = f"{kind} has no place for {', '.join(_strange(donor, model))}" if kind else "its class is not known"
        what = f"its output head could not be loaded again: {why}"
        yield Problem(
            model.source.ref.short, what, f"Name its class under `architectures` in its config.json. {remedy}"
        )
    if not keys and not strange:
        yield Problem("", "`heads: per-task` keeps the models' output heads, and none of the models has one", remedy)


def _tensors(donor: Model, model: Model) -> tuple[TensorSpec, ...]:
    """What stands on the backbone, in file order.

    That is the tensors of the head, and a pooler that the donor has none of: it came with the head and was trained
    with it. What the donor holds as part of its backbone is merged instead.
    """
    names = [name for canonical, name in model.names.items() if _on_top(donor, model, canonical, name)]
    skip = model.skeleton.unknown | model.skeleton.unread
    found = [model.specs[name] for name in names if name not in skip]
    if not _architecture(model) or all(model.role(spec.name) is not Role.HEAD for spec in found):
        return ()
    return tuple(sorted(found, key=lambda spec: (-DTYPES[spec.dtype].size, spec.file, spec.offset, spec.name)))


def _on_top(donor: Model, model: Model, canonical: str, name: str) -> bool:
    twin = donor.names.get(canonical)
    if model.role(name) is Role.HEAD:
        return twin is None or donor.role(twin) is Role.HEAD
    return twin is None and canonical.startswith("pooler.")


def _strange(donor: Model, model: Model) -> list[str]:
    """Tensors that look like a head, in a model of which none is kept."""
    names = [name for canonical, name in model.names.items() if _on_top(donor, model, canonical, name)]
    return [name for name in names if model.role(name) is Role.HEAD]


def _architecture(model: Model) -> str:
    """The class that the config names, since what is built in its place may be the donor's; empty if there is none."""
    stated = (model.config or {}).get("architectures")
    return str(stated[0]) if isinstance(stated, list) and stated else model.skeleton.class_name or ""


def _config(model: Model) -> dict[str, Any]:
    config = model.config or {}
    return {key: value for key, value in config.items() if any(fnmatchcase(key, pattern) for pattern in _HEAD_KEYS)}


def _free(name: str, used: Collection[str]) -> str:
    """The name, or with a number behind it. Not every file system tells upper case from lower; none shows dot files."""
    own = name = name.lstrip(".") or "model"
    number = 1
    while own.casefold() in used:
        number += 1
        own = f"{name}-{number}"
    return own
