"""Every model of a recipe, opened at its commit and held against its class, ready to be planned with.

What cannot be opened becomes a problem, so that all problems are told together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from dopkit import hub, refs
from dopkit.checkpoints import (
    Checkpoint,
    IsAdapter,
    OnlyPickles,
    Shelf,
    base_named,
    open_beside,
)
from dopkit.engine.stage import StageCheckpoint
from dopkit.errors import CheckpointError, DopkitError, Problem
from dopkit.progress import Progress
from dopkit.recipe import Recipe
from dopkit.refs import ModelRef
from dopkit.units import show_size


def open_all(
    recipe: Recipe,
    pins: Mapping[ModelRef, ModelRef],
    progress: Progress,
    download: bool,
    shelf: RecipeShelf | None = None,
) -> tuple[dict[ModelRef, Checkpoint], list[Problem]]:
    """Pin each model, but for those that ``pins`` has, and open it; the models that could be, and the problems.

    A model that must be downloaded before it can be opened is, with ``download``, if nothing else is wrong. Of several
    documents in one file all are opened with one ``shelf``; a stage that is not on it is left out without a problem.
    """
    shelf = shelf or RecipeShelf(recipe, pins)
    shelf.recipe = recipe
    opened: dict[ModelRef, Checkpoint] = {}
    problems: list[Problem] = []
    pickled: dict[ModelRef, OnlyPickles] = {}
    for ref in recipe.refs:
        if shelf.lacks(ref):
            continue
        try:
            opened[ref] = shelf.open(ref)
        except OnlyPickles as found:
            pickled[ref] = found
        except DopkitError as error:
            problems += error.as_problems()
    problems += _no_room(pickled)
    if problems or not download:
        problems += [unread.as_problem() for unread in pickled.values()]
        pickled = {}
    for ref, unread in pickled.items():
        try:
            opened[ref] = shelf.open_with_pickles(ref, unread, progress)
        except DopkitError as error:
            problems += error.as_problems()
    return {ref: shelf.latest(checkpoint) for ref, checkpoint in opened.items()}, problems


def open_companions(
    recipe: Recipe,
    pins: Mapping[ModelRef, ModelRef],
    models: Mapping[ModelRef, Checkpoint],
    progress: Progress,
    download: bool,
) -> tuple[dict[ModelRef, Checkpoint], list[Problem]]:
    """The same for what is read beside the models, of which those in ``models`` are open."""
    opened: dict[ModelRef, Checkpoint] = {}
    problems: list[Problem] = []
    by_key = {ref.key: checkpoint for ref, checkpoint in models.items()}
    for entry in recipe.models:
        model = by_key.get(entry.model.key)
        for ref in entry.companions.values():
            if ref in opened:
                continue
            try:
                opened[ref] = _open_companion(pins.get(ref) or hub.pin(ref), model, progress, download)
            except DopkitError as error:
                problems += error.as_problems()
    return opened, problems


def _open_companion(ref: ModelRef, model: Checkpoint | None, progress: Progress, download: bool) -> Checkpoint:
    config = model.config if model else None
    try:
        return open_beside(ref, config)
    except OnlyPickles as unread:
        if not download or _no_room({ref: unread}):
            raise
        progress.note(f"{ref.short}: downloading {unread.size} before it can be planned")
        unread.fetch()
        return open_beside(ref, config)


class RecipeShelf(Shelf):
    """Opens what a recipe names: pinned, and an adapter that stands alone on the base of the recipe or on its own.

    ``recipe`` is the document in hand, one of ``whole`` and its stages.
    """

    def __init__(self, whole: Recipe, pins: Mapping[ModelRef, ModelRef]) -> None:
        super().__init__()
        self.recipe = whole
        self._pins = pins
        self._pinned: dict[ModelRef, ModelRef] = {}  # one commit for all who name the model
        readers = Counter(ref.key for document in whole.documents for ref in document.refs if ref.adapter is None)
        self._common = {key for key, number in readers.items() if number > 1}

    def open(self, ref: ModelRef) -> Checkpoint:
        pinned = self._pin(ref)
        try:
            opened = super().open(pinned)
            return self.shared(opened) if ref.key in self._common and ref.stage is None else opened
        except IsAdapter:
            if ref == self.recipe.base_model:
                raise
        base = self.recipe.base_model or _named_base(pinned)
        return super().open(self._pin(base).with_adapter(pinned))

    def add_stage(self, stage: StageCheckpoint) -> None:
        """Have a stage at hand for those who refer to it."""
        self._plain[stage.ref.key] = stage

    def lacks(self, ref: ModelRef) -> bool:
        """Whether the model is a stage, or an adapter on one, that is not here."""
        base = ref.without_adapter
        return base.stage is not None and base.key not in self._plain

    def _pin(self, ref: ModelRef) -> ModelRef:
        if ref not in self._pinned:
            self._pinned[ref] = self._pins.get(ref) or hub.pin(ref)
        return self._pinned[ref]

    def open_with_pickles(self, ref: ModelRef, unread: OnlyPickles, progress: Progress) -> Checkpoint:
        """The model, with the files downloaded that it cannot be opened without: of an adapter and of its base."""
        while True:
            what = f"{unread.ref.short} has no safetensors: downloading {unread.size} before it can be planned"
            progress.note(what)
            unread.fetch()
            try:
                return self.open(ref)
            except OnlyPickles as another:
                unread = another


def pin_tokenizer(recipe: Recipe, pins: Mapping[ModelRef, ModelRef]) -> dict[ModelRef, ModelRef]:
    """The model that only the tokenizer is of, pinned as the others are. Raises HubError."""
    ref = recipe.tokenizer_ref
    return {} if ref is None else {ref: pins.get(ref) or hub.pin(ref)}


def _named_base(adapter: ModelRef) -> ModelRef:
    """The model that an adapter says it was trained on; of a folder of our own that may be a folder as well.

    Raises CheckpointError when it says nothing that can be gone by.
    """
    name, revision = base_named(adapter)
    remedy = "Give the recipe a base_model, or name the base before the adapter: user/base+user/adapter."
    if name is None:
        what = "neither the recipe nor its adapter_config.json names its base"
        raise CheckpointError(f"{adapter.short} is an adapter", [Problem("", what, remedy)])
    try:
        base = refs.parse(f"{name}@{revision}" if revision else name, Path())
    except ValueError:
        base = None
    local = adapter.folder is not None and Path(name).is_absolute()
    if base is None or base.adapter is not None or (base.repo is None and not local):
        what = f"the base that it names is no repository of the Hub: {name!r}"
        raise CheckpointError(f"{adapter.short} is an adapter", [Problem("", what, remedy)])
    return base


def _no_room(pickled: Mapping[ModelRef, OnlyPickles]) -> list[Problem]:
    need, have = sum(unread.nbytes for unread in pickled.values()), hub.cache_disk(Path.cwd())[0]
    if need <= have:
        return []
    what = f"too little disk space for downloads: {show_size(need)} needed, {show_size(have)} there"
    return [Problem("", what, "Free some, or set HF_HOME.")]


def merged_twice(recipe: Recipe) -> Iterator[Problem]:
    """Two refs that look different and mean one commit; the recipe alone cannot tell."""
    seen = set()
    for entry in recipe.models:
        if entry.model.key in seen:
            yield Problem(entry.model.short, "is listed twice, under two revisions that are one commit")
        seen.add(entry.model.key)
