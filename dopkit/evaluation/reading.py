"""How a task is to be read from a model: with a kept head, the model's own, prompts, or as a language model.

Decided from configs and heads, before any weight is loaded. Knows no data.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dopkit import loading
from dopkit.checkpoints.folder import read_config
from dopkit.errors import EvaluationError, Problem
from dopkit.evaluation.targets import Target
from dopkit.evaluation.tasks import Task
from dopkit.evaluation.zero_shot import TEXT_TOWERS, VISION_TOWERS
from dopkit.loading import Head
from dopkit.refs import ModelRef

_CLASSIFIERS = {
    "image-classification": "ForImageClassification",
    "text-classification": "ForSequenceClassification",
}
_LANGUAGE_MODELS = ("ForCausalLM", "LMHeadModel")
_PROCESSOR = ("preprocessor_config.json", "processor_config.json")
_TOKENIZER = ("tokenizer_config.json", "tokenizer.json", "vocab.txt", "vocab.json")


@dataclass(frozen=True)
class Reading:
    """What turns a target into something that answers a task."""

    kind: Literal["head", "own", "prompts", "language"]
    prepared_in: Path  # the folder whose tokenizer or image processor the inputs go through
    classes: tuple[str, ...] = ()
    shown: str = ""  # whose classes they are
    head: str | None = None
    base: Path | None = None  # whose text tower reads the prompts


def head_of(task: Task, heads: Collection[str]) -> str | None:
    """The kept head that reads a task: the one it names, or the one of its own name."""
    if task.zero_shot is not None or task.kind == "perplexity":
        return None
    return task.head or (task.name if task.name in heads else None)


def find_reading(task: Task, target: Target, heads: Mapping[str, Head], copy: Callable[[ModelRef], Path]) -> Reading:
    """How ``target`` can be read for ``task``; ``heads`` are those kept beside it, ``copy`` gives a model's folder.

    Raises EvaluationError, and what ``copy`` raises.
    """
    prepared = _prepared(task, target)
    own = _architecture(target.backbone)
    if task.kind == "perplexity":
        if not own.endswith(_LANGUAGE_MODELS):
            raise _cannot(task, target, f"it is {own}, no language model", "")
        return Reading("language", prepared)
    if task.zero_shot is not None:
        if own not in VISION_TOWERS:
            raise _cannot(task, target, f"it is {own}; zero_shot reads CLIP", "")
        shown = "its zero_shot classes"
        return Reading("prompts", prepared, tuple(task.zero_shot.classes), shown, base=_base(task, target, copy))
    name = head_of(task, heads)
    ending = _CLASSIFIERS[task.kind]
    known = f"Kept heads: {', '.join(heads) or 'none'}."
    if name is None:
        if own.endswith(ending):
            labels = loading.labels_of(read_config(target.backbone, str(target.backbone)) or {})
            return Reading("own", prepared, labels, f"the classifier of {target.label}")
        raise _cannot(task, target, f"it is {own}, which has no classifier of its own", f"Name a `head`. {known}")
    if name not in heads:
        raise _cannot(task, target, f"there is no head {name!r}", known)
    if not heads[name].architecture.endswith(ending):
        raise _cannot(task, target, f"the head {name!r} is of {heads[name].architecture}", known)
    return Reading("head", prepared, heads[name].labels, f"the head {name!r}", head=name)


def _cannot(task: Task, target: Target, what: str, remedy: str) -> EvaluationError:
    return EvaluationError("", [Problem(task.name, f"{target.label} cannot be read: {what}", remedy)])


def _architecture(folder: Path) -> str:
    named = (read_config(folder, str(folder)) or {}).get("architectures")
    return str(named[0]) if isinstance(named, list) and named else "a model without a named class"


def _prepared(task: Task, target: Target) -> Path:
    """A model's own folder, or where its own lacks the files, that of the merge."""
    images = task.kind == "image-classification"
    what, names = ("image processor", _PROCESSOR) if images else ("tokenizer", _TOKENIZER)
    for folder in (target.backbone, target.heads):
        if any((folder / name).is_file() for name in names):
            return folder
    raise _cannot(task, target, f"it has no {what} ({' or '.join(names[:2])})", "")


def _base(task: Task, target: Target, copy: Callable[[ModelRef], Path]) -> Path:
    """Whose text tower reads the prompts: the base that the task names, that of the merge, or the model itself."""
    ref = task.base or target.base
    remedy = "Name a whole CLIP model: `zero_shot: {base: openai/clip-vit-base-patch32, ...}`."
    if ref is None and target.kind != "model":
        raise _cannot(task, target, "the base that would read the prompts is not known here", remedy)
    folder = target.backbone if ref is None else copy(ref)
    own = _architecture(folder)
    if own not in TEXT_TOWERS:
        raise _cannot(task, target, f"the prompts would be read by {own}, which reads no text", remedy)
    return folder
