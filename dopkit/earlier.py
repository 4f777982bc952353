"""A merge that dopkit made earlier, as something to go on from: its recipe, its state, and where its files are.

Reads the small files alone. Knows neither plans nor weights.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from dopkit import hub, hub_recipes, receipt, state
from dopkit.checkpoints import Checkpoint
from dopkit.checkpoints.folder import open_folder
from dopkit.errors import HubError, OutputError, Problem
from dopkit.planning.outputs import STATE
from dopkit.receipt import RECIPE_FILE, Receipt
from dopkit.recipe import Recipe, reading
from dopkit.refs import ModelRef
from dopkit.state import STATE_FILE, State
from dopkit.writer import RECEIPT

_NOT_OURS = "`dopkit add` extends a model that dopkit merged; make one with `dopkit run`."


@dataclass(frozen=True)
class EarlierMerge:
    """``folder`` holds its files: all of them, or of a Hub repository those that were fetched."""

    ref: ModelRef
    folder: Path
    recipe: Recipe
    state: State
    receipt: Receipt

    @property
    def local(self) -> bool:
        return self.ref.folder is not None

    def open_state(self) -> Checkpoint:
        """The kept state of its folds, as tensors to read. Raises CheckpointError, HubError."""
        if not self.local:
            for file in self.state.kept:
                hub.fetch(self.ref, file)
        place = self.folder / STATE
        return open_folder(ModelRef(f"{self.ref.short}/{STATE}", folder=place), place)


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
    for file in (RECEIPT, RECIPE_FILE, STATE_FILE):
        if not (folder / file).is_file():
            raise _not_ours(str(folder), file)
    state_text = (folder / STATE_FILE).read_text(encoding="utf-8", errors="replace")
    recipe = reading.load_recipe(folder / RECIPE_FILE)
    # Folders in it are written as seen from this folder; the result may lie elsewhere.
    recipe = recipe.with_refs({ref: replace(ref, text=str(ref.folder)) for ref in recipe.refs if ref.folder})
    ref = ModelRef(str(folder), folder=folder.absolute())
    found = state.parse(state_text, str(folder / STATE_FILE))
    return EarlierMerge(ref, folder.absolute(), recipe, found, receipt.read(folder))


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
    return EarlierMerge(ref, path.parent, recipe, found, published.receipt)


def _not_ours(shown: str, file: str) -> OutputError:
    return OutputError(f"{shown} is not a merge that can grow", [Problem("", f"it holds no {file}", _NOT_OURS)])
