"""A merge that dopkit made earlier, as something to go on from: its recipe, its state, and where its files are.

Reads the small files alone; of weights it knows the headers of a kept state.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from dopkit import hub, hub_recipes, receipt, state
from dopkit.card import CARD_FILE
from dopkit.checkpoints import Checkpoint
from dopkit.checkpoints.adapter_config import CONFIG
from dopkit.checkpoints.files import side_files
from dopkit.checkpoints.folder import open_folder
from dopkit.errors import CheckpointError, HubError, OutputError, Problem, count
from dopkit.layout import INDEX_FILE
from dopkit.planning import Plan
from dopkit.planning.heads import FOLDER
from dopkit.planning.outputs import STAGES, STATE, STEPS, state_shards
from dopkit.receipt import RECIPE_FILE, Receipt
from dopkit.recipe import Recipe
from dopkit.refs import ModelRef
from dopkit.state import STATE_FILE, State
from dopkit.writer import JOURNAL, LOCK, RECEIPT, REPORT

_NOT_OURS = "`dopkit add` extends a model that dopkit merged; make one with `dopkit run`."
_STATE_REMEDY = "Bring the kept state back, or read the earlier models again with --from-experts."


# Of its folder, what is its own by the beginning of its name; and what the Hub, its downloads and desktops leave there.
_OURS = ("dopkit_", *(f"{own}/" for own in (FOLDER, STATE, STEPS, STAGES)), ".gitattributes", ".cache/", ".DS_Store")


@dataclass(frozen=True)
class EarlierMerge:
    """``folder`` holds its files: all of them, or of a Hub repository those that were fetched."""

    ref: ModelRef
    folder: Path
    recipe: Recipe
    state: State
    receipt: Receipt
    sizes: Mapping[str, int] = field(default_factory=dict)  # bytes of a repository's files

    @property
    def local(self) -> bool:
        return self.ref.folder is not None

    @property
    def is_adapter(self) -> bool:
        return self.recipe.output == "adapter"

    @property
    def merged(self) -> ModelRef:
        """What was merged, as a model: of an adapter, that on its base."""
        if not self.is_adapter:
            return self.ref
        return self.recipe.models[0].model.without_adapter.with_adapter(self.ref)

    @property
    def state_download_bytes(self) -> int:
        """Of the kept state, what is not here."""
        if self.local:
            return 0
        return sum(self.sizes.get(file, 0) for file in self.state.kept if hub.cached(self.ref, file) is None)

    def open_state(self, plan: Plan) -> Checkpoint:
        """The kept state of its folds, as tensors to read; downloaded if it is not here.

        Raises CheckpointError when it is not what the folds of ``plan`` go on from, HubError.
        """
        if not self.local:
            for file in self.state.kept:
                hub.fetch(self.ref, file)
        place, shown = self.folder / STATE, f"{self.ref.short}/{STATE}"
        try:
            opened = open_folder(ModelRef(shown, folder=place), place)
        except CheckpointError as error:
            raise CheckpointError(error.headline, [*error.problems, Problem("", _STATE_REMEDY)]) from error
        shards = state_shards(plan.jobs, plan.max_shard_size)
        wanted = {tensor.name: (tensor.dtype, tensor.shape) for shard in shards for tensor in shard.tensors}
        wrong = [name for name in wanted if not self._as_wanted(opened, name, wanted[name])]
        if wrong:
            opened.close()
            what = f"{count(len(wrong), 'tensor')} missing, or of another shape: {', '.join(wrong[:3])}"
            raise CheckpointError(f"{shown} is not the state of this merge", [Problem("", what, _STATE_REMEDY)])
        return opened

    @staticmethod
    def _as_wanted(opened: Checkpoint, name: str, wanted: tuple[str, tuple[int, ...]]) -> bool:
        spec = opened.specs.get(name)
        return spec is not None and (spec.dtype, spec.shape) == wanted

    def strangers(self, brought: Collection[str] | None = None) -> list[str]:
        """The files in its folder that are no part of it: they would go when it is replaced.

        ``brought`` are the side files that its successor brings along; None while that is not known.
        """
        found = (path.relative_to(self.folder) for path in self.folder.rglob("*") if _is_file(path))
        names = sorted(path.as_posix() for path in found)
        ours = {CONFIG if self.is_adapter else "config.json", CARD_FILE, REPORT, INDEX_FILE, JOURNAL, LOCK}
        ours |= {shard["file"] for shard in self.receipt["shards"]}
        ours |= set(side_files(names) if brought is None else brought)
        return [name for name in names if name not in ours and not name.startswith(_OURS)]


def look(merged: str | Path) -> EarlierMerge:
    """The merge in a folder, or in the Hub repository ``user/name`` or ``user/name@revision``.

    Raises OutputError when dopkit did not make it or its files are damaged, RecipeError, HubError.
    """
    folder = Path(merged)
    if isinstance(merged, Path) or folder.is_dir():
        return _in_folder(folder)
    ref = hub_recipes.named(str(merged))
    if ref is None:
        raise OutputError(f"there is no folder {merged}", [Problem("", "nor is that the name of a Hub repository")])
    return _on_the_hub(hub.pin(ref))


def _in_folder(folder: Path) -> EarlierMerge:
    if not folder.is_dir():
        raise OutputError(f"there is no folder {folder}")
    for file in (RECEIPT, RECIPE_FILE, STATE_FILE):
        if not (folder / file).is_file():
            raise _not_ours(str(folder), file)
    shown, folder = str(folder), folder.resolve() if folder.is_symlink() else Path(os.path.abspath(folder))
    state_text = (folder / STATE_FILE).read_text(encoding="utf-8", errors="replace")
    recipe = receipt.read_recipe(folder)
    # Folders in it are written as seen from this folder; the result may lie elsewhere.
    recipe = recipe.with_refs({ref: _absolute(ref) for ref in recipe.real_refs})
    found = state.parse(state_text, f"{shown}/{STATE_FILE}")
    return EarlierMerge(ModelRef(shown, folder=folder), folder, recipe, found, receipt.read(folder))


def _is_file(path: Path) -> bool:
    """A file, or a link whatever it leads to."""
    return path.is_symlink() or path.is_file()


def _absolute(ref: ModelRef) -> ModelRef:
    """The same model, whose folders are told by their whole path."""
    own = ref.without_adapter if ref.folder is None else replace(ref, text=str(ref.folder), adapter=None)
    return own if ref.adapter is None else own.with_adapter(_absolute(ref.adapter))


def _on_the_hub(ref: ModelRef) -> EarlierMerge:
    listing = hub.listing(ref)
    for file in (RECEIPT, RECIPE_FILE, STATE_FILE):
        if file not in listing.sizes:
            raise _not_ours(ref.short, file)
    if listing.sizes[STATE_FILE] > state.MOST_BYTES:
        raise HubError(f"{ref.short}: {STATE_FILE} is too large to be one")
    path = hub.fetch(ref, STATE_FILE)
    state_text = path.read_text(encoding="utf-8", errors="replace")
    published = hub_recipes.read(ref)
    assert published.receipt is not None, "it is among the repository's files"
    recipe = hub_recipes.foreign(published.text, ref)
    found = state.parse(state_text, f"{ref.short}/{STATE_FILE}")
    return EarlierMerge(ref, path.parent, recipe, found, published.receipt, listing.sizes)


def _not_ours(shown: str, file: str) -> OutputError:
    return OutputError(f"{shown} is not a merge that can grow", [Problem("", f"it holds no {file}", _NOT_OURS)])
