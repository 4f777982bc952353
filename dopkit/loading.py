"""From a folder or repository to a model that is ready to be used; never one with random weights in it.

A merge with ``heads: per-task`` holds a backbone and, in ``heads/NAME.safetensors``, the output head of each model that
had one. The file holds the head's tensors under the names of the model's own checkpoint; its metadata holds the
``architecture``, the ``model`` it came from and, as JSON, the keys of its ``config`` that belong to the head.
Knows no task and no data.
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Collection, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import torch

from dopkit import hub, refs
from dopkit.checkpoints import OnlyPickles, open_checkpoint
from dopkit.checkpoints.files import is_plain, side_files
from dopkit.checkpoints.folder import read_config
from dopkit.checkpoints.reading import SafetensorsFiles, read_header
from dopkit.errors import CheckpointError, Problem
from dopkit.planning.heads import FOLDER, LABEL_KEYS, head_file
from dopkit.refs import ModelRef
from dopkit.skeleton.construct import CannotBuild, construct, first_line, quiet
from dopkit.skeleton.names import Anatomy, place_tensors

_SUFFIX = ".safetensors"
_LABELS_BY_DEFAULT = 2  # transformers leaves them out of a config.json


class Head(NamedTuple):
    """What a kept head is for."""

    labels: tuple[str, ...]
    architecture: str  # ``ViTForImageClassification``


def load(model: str | Path | ModelRef, head: str | None = None, backbone: str | Path | ModelRef | None = None) -> Any:
    """A transformers model in eval mode, from a folder or a repository (``user/name``, ``user/name@revision``).

    Without ``head`` it is the folder's own architecture. With ``head`` it is that head's architecture with its labels,
    on the folder's backbone, or on that of ``backbone``, another model of the same kind.

    Raises CheckpointError when there is no such head, when it does not fit, or when a weight is missing.
    """
    folder = local_copy(model)
    if head is None:
        if backbone is not None:
            raise ValueError("backbone goes with head: the backbone of another model under a head of this one")
        return _own(folder)
    return _with_head(folder, head, folder if backbone is None else local_copy(backbone))


def heads(model: str | Path | ModelRef) -> dict[str, Head]:
    """The heads kept in a folder or repository, by name. Raises CheckpointError when one cannot be read."""
    folder = local_copy(model)
    found = {}
    for path in sorted((folder / FOLDER).glob(f"*{_SUFFIX}")):
        facts = _metadata(path)
        found[path.name.removesuffix(_SUFFIX)] = Head(labels_of(facts[1]), facts[0])
    return found


def labels_of(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of a classifier's outputs, in their order."""
    named = config.get("id2label")
    if isinstance(named, Mapping) and named:
        return tuple(str(named[key]) for key in sorted(named, key=int))
    number = config.get("num_labels") or _LABELS_BY_DEFAULT
    return tuple(f"LABEL_{index}" for index in range(int(number)))


def local_copy(model: str | Path | ModelRef, also: Collection[str] = ()) -> Path:
    """The folder of a model; a repository is downloaded, its heads and the files ``also`` included.

    What is a folder here is not looked for on the Hub. Raises CheckpointError, HubError.
    """
    ref = _ref(model)
    if ref.folder is not None:
        if not ref.folder.is_dir():
            raise CheckpointError(f"there is no folder {ref.folder}")
        return ref.folder
    pinned = hub.pin(ref)
    try:
        with closing(open_checkpoint(pinned)) as checkpoint:
            checkpoint.fetch()
    except OnlyPickles as unread:
        unread.fetch()
    there = hub.files(pinned)
    wanted = [name for name in there if name in also or _is_head(name)]
    for name in [*side_files(there), *wanted]:
        hub.fetch(pinned, name)
    return hub.fetch(pinned, "config.json").parent


def is_folder(model: str | Path | ModelRef) -> bool:
    """Whether a model lies in a folder of its own, and not in a cache. Raises CheckpointError when it is no model."""
    return _ref(model).folder is not None


def tokenizer(folder: Path) -> Any:
    """The tokenizer that lies in a folder. Raises CheckpointError."""
    from transformers import AutoTokenizer

    return _prepared("tokenizer", AutoTokenizer, folder)


def image_processor(folder: Path) -> Any:
    """The image processor that lies in a folder, always the one that computes with Pillow: the same everywhere.

    Raises CheckpointError.
    """
    from transformers import AutoImageProcessor

    return _prepared("image processor", AutoImageProcessor, folder, backend="pil")


def _ref(model: str | Path | ModelRef) -> ModelRef:
    if not isinstance(model, ModelRef) and (isinstance(model, Path) or os.path.isdir(model)):
        return ModelRef(str(model), folder=Path(model).absolute())
    try:
        ref = model if isinstance(model, ModelRef) else refs.parse(model, Path())
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    if ref.adapter is not None:
        raise CheckpointError(f"{ref.short}: an adapter is not a whole model")
    return ref


def _is_head(name: str) -> bool:
    folder, _, file = name.partition("/")
    return folder == FOLDER and is_plain(file) and file.endswith(_SUFFIX)


def _metadata(path: Path) -> tuple[str, dict[str, Any]]:
    """The architecture and the configuration keys of a kept head. Raises CheckpointError."""
    raw, _ = read_header(path, path.name)
    facts = json.loads(raw).get("__metadata__") or {}
    try:
        config = json.loads(facts.get("config", "{}"))
    except ValueError:
        config = None
    if not isinstance(config, dict) or not facts.get("architecture"):
        raise CheckpointError(f"{path} is not a kept head: its metadata names no architecture or no config")
    try:
        labels_of(config)
    except (TypeError, ValueError):
        raise CheckpointError(f"{path}: its labels are not numbered") from None
    return str(facts["architecture"]), config


def _own(folder: Path) -> Any:
    config = read_config(folder, str(folder))
    model_class = _class(config, folder)
    model, missing = _load(model_class, folder, {})
    # A pooler that was never trained is left out by `add_pooling_layer=False`, which config.json does not tell.
    if missing and all(key.startswith("pooler.") for key in missing) and _may_lack_pooler(model_class):
        model, missing = _load(model_class, folder, {"add_pooling_layer": False})
    if missing:
        raise _lacking(folder, model_class, missing)
    return model.eval()


def _with_head(folder: Path, name: str, backbone: Path) -> Any:
    path = folder / head_file(name)
    if not is_plain(name) or not path.is_file():
        known = ", ".join(sorted(heads(folder))) or "none: its heads were not kept"
        raise CheckpointError(f"{folder} has no head {name!r}", [Problem("", f"its heads: {known}")])
    architecture, own_config = _metadata(path)
    kept = {key: value for key, value in (read_config(folder, str(folder)) or {}).items() if key not in LABEL_KEYS}
    config = {**kept, **own_config, "architectures": [architecture]}
    model_class = _class(config, path)
    # The architecture as it will be: which of its parameters do the tensors of the head go to?
    specs = read_header(path, path.name)[1]
    skeleton = construct(config)
    places = place_tensors(Anatomy.of(skeleton), skeleton, specs)
    shapes = {key: tuple(tensor.shape) for key, tensor in skeleton.state_dict().items()}
    unfit = [
        Problem(tensor, _misfit(spec.shape, shapes.get(places[tensor].parameter or ""), architecture))
        for tensor, spec in specs.items()
        if shapes.get(places[tensor].parameter or "") != spec.shape
    ]
    if unfit:
        raise CheckpointError(f"the head {path} does not fit {architecture} on {backbone}", unfit)
    model, missing = _load(model_class, backbone, {"config": type(skeleton.config).from_dict(config)})
    parameters = {str(place.parameter): tensor for tensor, place in places.items()}
    if lacking := missing - parameters.keys():
        raise _lacking(backbone, model_class, lacking)
    _fill(model, path, parameters)
    return model.eval()


def _fill(model: Any, path: Path, parameters: Mapping[str, str]) -> None:
    """Put the tensors of a head into the model's parameters (parameter to tensor)."""
    specs, own = read_header(path, path.name)[1], model.state_dict()
    files = SafetensorsFiles({path.name: path})
    try:
        with torch.no_grad():
            for parameter, tensor in parameters.items():
                own[parameter].copy_(files.read(specs[tensor], None))
    finally:
        files.close()


def _class(config: Mapping[str, Any] | None, shown: Path) -> Any:
    try:
        return type(construct(config))
    except CannotBuild as error:
        raise CheckpointError(f"{shown} cannot be loaded: {error}") from None


def _load(model_class: Any, folder: Path, how: Mapping[str, Any]) -> tuple[Any, set[str]]:
    """The model and the parameters that the folder has no fitting weights for. Raises CheckpointError."""
    try:
        with quiet():
            model, report = model_class.from_pretrained(
                folder,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are in the report
                local_files_only=True,
                trust_remote_code=False,
                **how,
            )
    except Exception as error:  # the loader raises what its conversions and the files' readers raise
        raise CheckpointError(f"{folder} cannot be loaded ({first_line(error)})") from error
    return model, {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}


def _may_lack_pooler(model_class: Any) -> bool:
    return "add_pooling_layer" in inspect.signature(model_class.__init__).parameters


def _lacking(folder: Path, model_class: Any, missing: Collection[str]) -> CheckpointError:
    problems = [Problem(key, "has no fitting weights there and would be random") for key in sorted(missing)]
    return CheckpointError(f"{folder} does not hold all of {model_class.__name__}", problems)


def _misfit(found: tuple[int, ...], wanted: tuple[int, ...] | None, architecture: str) -> str:
    if wanted is None:
        return f"{architecture} has no place for it"
    return f"has shape {tuple(found)}, but {architecture} needs {wanted}"


def _prepared(what: str, factory: Any, folder: Path, **how: Any) -> Any:
    try:
        with quiet():
            return factory.from_pretrained(folder, local_files_only=True, trust_remote_code=False, **how)
    except Exception as error:  # whatever a broken or missing file leads to
        raise CheckpointError(f"{folder} has no {what} that can be loaded ({first_line(error)})") from error
