"""What is scored: a plain model, or a merge with the steps that led to it. Knows no tasks and no data."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dopkit import receipt, refs
from dopkit.checkpoints.files import side_files
from dopkit.errors import EvaluationError, OutputError, Problem
from dopkit.evaluation.tables import digest, file_digest
from dopkit.loading import local_copy
from dopkit.planning.outputs import step_folder
from dopkit.refs import ModelRef
from dopkit.short_names import short_names
from dopkit.writer import RECEIPT

TargetKind = Literal["base", "step", "expert", "model"]
_WEIGHTS = (".safetensors", ".bin")


@dataclass(frozen=True)
class Target:
    """One row of the table of scores."""

    label: str  # ``base``, ``step 2``, ``expert mnist``, or the folder's name
    kind: TargetKind
    backbone: Path  # the folder of the weights
    heads: Path  # the folder that holds the kept heads
    step: int | None = None  # 0 for the base
    model: str | None = None  # the model that came in at this step, or that this is
    seen: tuple[str, ...] | None = None  # the models merged so far, whose tasks are scored; None: all tasks
    base: ModelRef | None = None  # whose text tower reads the prompts of zero-shot tasks


def targets(folder: Path, sources: bool = False, foreign: bool = False) -> tuple[Target, ...]:
    """The steps of a merge as far as they were kept, the merge itself last; or the one model that the folder holds.

    With ``sources`` the merge's base comes before them, and its models after; those on the Hub are downloaded. A
    ``foreign`` merge is somebody else's: folders that its recipe names are not looked at.
    Raises OutputError when the receipt is damaged, EvaluationError when the sources are not known, HubError.
    """
    if not (folder / RECEIPT).is_file():
        if sources:
            raise EvaluationError(f"{folder} is not a merge of dopkit: its sources are not known")
        return (Target(folder.resolve().name, "model", folder, folder),)
    base, models = _sources(folder, foreign)
    names = model_names(folder)
    found = []
    for step in range(1, len(names) + 1):
        last = step == len(names)
        weights = folder if last else folder / step_folder(step)
        if last or weights.is_dir():
            found.append(Target(f"step {step}", "step", weights, folder, step, names[step - 1], names[:step], base))
    if not sources:
        return tuple(found)
    if len(models) != len(names):
        raise EvaluationError(f"the models of {folder} are not known here: its recipe does not name them all")
    if adapters := [ref for ref in (base, *models) if ref is not None and ref.adapter is not None]:
        problems = [Problem(ref.short, "is an adapter, and no model that could be scored") for ref in adapters]
        raise EvaluationError(f"cannot score the sources of {folder}: leave out --sources", problems)
    before = [] if base is None else [Target("base", "base", local_copy(base), folder, 0, base=base)]
    after = [
        Target(f"expert {name}", "expert", local_copy(ref), folder, None, name, (name,), base)
        for ref, name in zip(models, names, strict=True)
    ]
    return (*before, *found, *after)


def model_names(folder: Path) -> tuple[str, ...]:
    """What the models of a merge are called, in merge order: a model whose head was kept is called as its head is."""
    done = receipt.read(folder)
    models = [source["model"] for source in done["models"]]
    heads = {head["model"]: str(head["name"]) for head in done.get("heads", [])}
    try:
        names = short_names([refs.parse(model, folder) for model in models])
    except ValueError as error:
        raise OutputError(f"the receipt of {folder} is damaged: {error}") from None
    return tuple(heads.get(model, name) for model, name in zip(models, names, strict=True))


def weights_digest(folder: Path) -> str:
    """sha256 over the weight files of a model, and the files that say how its inputs are prepared."""
    return digest([[name, file_digest(folder / name)] for name in _files(folder)])


def weights_stamp(folder: Path) -> list[tuple[object, ...]]:
    """Changes when one of these files is written to or replaced; [] when the folder is not there any more."""
    try:
        found = [(name, (folder / name).stat()) for name in _files(folder)]
    except OSError:
        return []
    return [(name, stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in found]


def _files(folder: Path) -> list[str]:
    names = [path.name for path in folder.iterdir() if path.is_file()]
    wanted = {*side_files(names), "config.json", *(name for name in names if name.endswith(_WEIGHTS))}
    return sorted(wanted & set(names))


def _sources(folder: Path, foreign: bool) -> tuple[ModelRef | None, list[ModelRef]]:
    """Base and models of a merge, as far as this machine may know them."""
    if not (folder / receipt.RECIPE_FILE).is_file():
        return None, []
    recipe = receipt.read_recipe(folder)
    models = [entry.model for entry in recipe.models if entry.model.stage is None]
    base = recipe.base_model if recipe.base_model is None or recipe.base_model.stage is None else None
    if foreign:
        models, base = [ref for ref in models if not ref.local], None if base is None or base.local else base
    return base, models
