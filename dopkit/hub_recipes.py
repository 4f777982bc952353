"""Recipes and receipts that live on the Hub: found, read, put there.

Decides whether a RECIPE is a file or a repository. What comes from the Hub is somebody else's: it is read as data,
and may not name a folder of this machine. What only the Hub's recipes need is loaded with the first of them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from dopkit import refs
from dopkit.errors import DopkitError, HubError, OutputError, Problem, RecipeError, count
from dopkit.recipe import Recipe, reading
from dopkit.refs import ModelRef

if TYPE_CHECKING:
    from dopkit import hub, receipt

TAG, RECIPE_TAG = "dopkit", "dopkit-recipe"  # of everything with a recipe; of recipes without weights
MOST_RECIPE_BYTES, MOST_RECEIPT_BYTES = 1_000_000, 100_000_000
_LONGEST_NAME = 150


@dataclass(frozen=True)
class Published:
    """What a repository says of the merge it holds. ``receipt`` is None for a recipe without weights."""

    ref: ModelRef
    text: str
    receipt: receipt.Receipt | None


def repository(source: str | Path) -> ModelRef | None:
    """The Hub repository that ``source`` means, or None when it is a file or folder.

    A file is what exists as one, ends like one (.yaml, .yml), or begins like a path (``./ ../ / ~``).
    """
    if isinstance(source, Path) or source.endswith((".yaml", ".yml")) or os.path.isfile(source):
        return None
    return named(source)


def named(text: str) -> ModelRef | None:
    """``user/name`` or ``user/name@revision`` as a reference; None when the text is neither."""
    try:
        ref = refs.parse(text, Path())
    except ValueError:
        return None
    return ref if ref.adapter is None and ref.repo is not None and "/" in ref.repo else None


def pinned(source: str | Path) -> ModelRef | None:
    """Like ``repository``, at the commit its revision means now. Raises HubError."""
    from dopkit import hub

    ref = repository(source)
    return None if ref is None else hub.pin(ref)


def load_recipe(source: str | Path | ModelRef) -> Recipe:
    """A checked recipe: from a file, or from the Hub repository ``user/name`` or ``user/name@revision``.

    Of a file nothing else is opened, and relative folders in it are meant from its own folder. A recipe from the Hub
    that names folders is refused. Raises RecipeError with all problems, HubError.
    """
    if not isinstance(source, ModelRef):
        ref = repository(source)
        if ref is None:
            return reading.load_recipe(source)
        source = ref
    from dopkit import hub

    source = hub.pin(source)
    return foreign(recipe_text(source), source)


def recipe_text(ref: ModelRef) -> str:
    """The recipe file of a pinned repository as it is. Raises HubError."""
    from dopkit import hub

    return _recipe_text(ref, hub.listing(ref))


def _recipe_text(ref: ModelRef, listing: hub.Listing) -> str:
    from dopkit import receipt

    text = _text(ref, listing, receipt.RECIPE_FILE, MOST_RECIPE_BYTES)
    if text is None:
        problem = Problem("", f"it holds no {receipt.RECIPE_FILE}", "`dopkit recipes search` lists what does.")
        raise HubError(f"{ref.short} carries no dopkit recipe", [problem])
    return text


def foreign(text: str, ref: ModelRef) -> Recipe:
    """Check a recipe that came from ``ref``. Raises RecipeError, also when it names folders.

    Where its author publishes the result is not where we do: ``repo_id`` is left out.
    """
    assert ref.repo is not None
    shown = f"the recipe of {ref.short}"
    recipe = reading.parse_recipe(text, name=ref.repo.rpartition("/")[2], shown=shown)
    if local := local_refs(recipe):
        problems = [Problem("", str(one)) for one in local]
        raise RecipeError(f"{shown} names {count(len(local), 'folder')} of its author's machine", problems)
    return recipe.model_copy(update={"repo_id": None})


def local_refs(recipe: Recipe) -> list[ModelRef]:
    """What the recipe refers to that nobody else has."""
    return [ref for ref in recipe.real_refs if ref.local]


def read(ref: ModelRef) -> Published:
    """Recipe and receipt of a repository, checked but not trusted. Raises HubError, OutputError."""
    from dopkit import hub, receipt
    from dopkit.writer import RECEIPT

    ref = hub.pin(ref)
    listing = hub.listing(ref)
    text = _recipe_text(ref, listing)
    found = _text(ref, listing, RECEIPT, MOST_RECEIPT_BYTES)
    return Published(ref, text, None if found is None else receipt.parse(found, f"the receipt of {ref.short}"))


def max_shard_size(ref: ModelRef) -> int | None:
    """How large the files of the merge published at ``ref`` were allowed to be, if it says. Raises HubError."""
    try:
        published = read(ref).receipt
    except OutputError:  # a receipt that cannot be read says nothing
        return None
    return None if published is None else published.get("max_shard_size")


def comparison(ref: ModelRef, made: receipt.Receipt) -> str:
    """Whether a merge made again from ``ref`` is what was published there, in one sentence."""
    try:
        published = read(ref).receipt
    except DopkitError as error:  # the merge itself is made, and good
        return f"cannot be compared with {ref.short}: {error.headline}"
    if published is None:
        return f"{ref.short} is a recipe without weights: there is nothing to compare with"
    theirs, ours = ({shard["file"]: shard["sha256"] for shard in one["shards"]} for one in (published, made))
    if theirs == ours:
        return f"the same bytes as {ref.short}"
    if theirs.keys() != ours.keys():
        return f"{ref.short} was cut into {count(len(theirs), 'file')}, this one into {len(ours)}: see --max-shard-size"
    then, now = ({"device": one["run"]["device"], **one["versions"]} for one in (published, made))
    changed = ", ".join(f"{name} {then[name]}" for name in then if name in now and then[name] != now[name])
    return f"not the same bytes as {ref.short}" + (f", which was made with {changed}" if changed else "")


def share(recipe: Recipe, to: str, message: str | None = None, private: bool = False) -> hub.Shared:
    """Publish a recipe, its models pinned, as a small repository with a card.

    Raises RecipeError when the recipe names folders; HubError when a model or the repository cannot be reached, or
    the repository was not made this way.
    """
    from dopkit import hub, receipt

    ref = named(to)
    if ref is None or ref.revision is not None:
        raise HubError(f"{to!r} is not a name for a repository", [Problem("", "", "Write it like user/name.")])
    if local := local_refs(recipe):
        problems = [Problem("", str(one)) for one in local]
        remedy = Problem("", "Publish these models first, and name them as user/name.")
        raise RecipeError(f"the recipe names {count(len(local), 'folder')} of this machine", [*problems, remedy])
    recipe = recipe.with_refs({one: hub.pin(one) for document in recipe.documents for one in document.all_refs})
    text = recipe.to_yaml(Path())
    texts = {receipt.RECIPE_FILE: text, "README.md": _card(recipe, str(ref.repo), text)}
    return hub.share(ref, texts, RECIPE_TAG, message or "Share a dopkit recipe", private)


def describe(card: Mapping[str, Any]) -> tuple[str, str]:
    """Base model and method, as far as a card's metadata names them; "" for what it does not."""
    own = card.get("dopkit")
    own = own if isinstance(own, dict) else {}
    base = own.get("base_model") or card.get("base_model")
    base = base[0] if isinstance(base, list) and base else base
    method = own.get("merge_method")
    return _name(base), _name(method)


def _name(value: Any) -> str:
    """The value if it could be the name of something, as it stands on one line of a table."""
    return value if isinstance(value, str) and value.isprintable() and len(value) <= _LONGEST_NAME else ""


def _card(recipe: Recipe, repo: str, text: str) -> str:
    """The README of a shared recipe. Its models stand in the text: ``base_model`` would claim weights of its own."""
    donor = next(one.donor for one in reversed(recipe.documents) if one.donor.stage is None)
    own = {"base_model": donor.repo, "merge_method": recipe.merge_method}
    metadata = yaml.safe_dump({"tags": [TAG, RECIPE_TAG], TAG: own}, sort_keys=False)
    method, models = (
        recipe.method,
        "\n".join(
            f"- [{ref.repo}](https://huggingface.co/{ref.repo}) at `{(ref.revision or '')[:12]}`"
            for ref in recipe.real_refs
        ),
    )
    return (
        f"---\n{metadata}---\n\n# {repo.rpartition('/')[2]}\n\n"
        f"A recipe for a merge by **{method.name}**: {method.summary} ({method.paper}). It holds no weights.\n\n"
        f"## Models\n\n{models}\n\n"
        f"## Use\n\n    dopkit plan {repo}\n    dopkit run {repo}\n    dopkit recipes get {repo}\n\n"
        f"## Recipe\n\n```yaml\n{text.strip()}\n```\n"
    )


def _text(ref: ModelRef, listing: hub.Listing, file: str, most: int) -> str | None:
    """A text file of a pinned repository, None when it has none. Raises HubError, offline also when nobody can tell."""
    from dopkit import hub

    size = listing.sizes.get(file)
    if size is None and listing.complete:
        return None
    path = None if size is not None and size > most else hub.fetch(ref, file)
    if path is None or path.stat().st_size > most:
        raise HubError(f"{ref.short}: {file} is too large to be one")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise HubError(f"{ref.short}: {file} is not UTF-8 text") from None
