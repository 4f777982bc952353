"""Which tensor of one model is which tensor of another, and every reason why two models do not go together.

Models are matched by canonical name. Works on headers and roles alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import TYPE_CHECKING, Any

from dopkit import methods
from dopkit.errors import Problem, count
from dopkit.planning import Dropped, Source
from dopkit.planning.towers import class_of, tower_config
from dopkit.recipe import settings
from dopkit.roles import Role
from dopkit.specs import MERGEABLE, TensorSpec
from dopkit.units import show_shape

if TYPE_CHECKING:
    from dopkit.recipe import Recipe
    from dopkit.skeleton import Skeleton

_SHOWN = 5  # tensors named before "and 93 more"

# What two fine-tunings of one base agree on. Vocabularies may grow, and have a message of their own.
_SIZES = (
    "model_type", "hidden_size", "num_hidden_layers", "intermediate_size", "num_attention_heads",
    "num_key_value_heads", "n_embd", "n_layer", "d_model", "num_layers", "image_size", "patch_size",
)  # fmt: skip


@dataclass(frozen=True)
class Model:
    """One opened input: its record, its headers, its config, and how its class sees it."""

    source: Source
    specs: Mapping[str, TensorSpec]
    config: Mapping[str, Any] | None
    skeleton: Skeleton
    # Of a whole model that is read as one of its towers, and described as that: the tensors of the rest.
    beside: tuple[str, ...] = ()

    @cached_property
    def names(self) -> dict[str, str]:
        """Canonical name to checkpoint name, of the tensors that its class reads and that are no tied twin."""
        skip = self.skeleton.ignored | {name for name in self.specs if self._tied_to(name)}
        return {self.skeleton.roles[name].canonical: name for name in self.specs if name not in skip}

    def holder(self, canonical: str) -> str | None:
        """The tensor that holds these values: the one of that name or, where the class ties it to another, its twin."""
        return self.names.get(canonical) or self.names.get(self.skeleton.tied.get(canonical, ""))

    def role(self, name: str) -> Role:
        return self.skeleton.roles[name].role

    def left_out(self) -> Iterable[Dropped]:
        """The tensors that no merge needs: tied twins, and what the class ignores on loading."""
        for name in self.specs:
            if twin := self._tied_to(name):
                yield Dropped(self.source.ref, name, f"tied to {twin}", self.names[twin])
            elif name in self.skeleton.ignored:
                yield Dropped(self.source.ref, name, f"{self.skeleton.class_name} does not read it")
        for name in self.beside:
            yield Dropped(self.source.ref, name, f"not part of {self.skeleton.class_name}, which the models are")

    def _tied_to(self, name: str) -> str | None:
        """The canonical name this tensor is a second copy of, if its class ties the two and holds the first."""
        twin = self.skeleton.tied.get(self.skeleton.roles[name].canonical)
        return twin if twin in {role.canonical for role in self.skeleton.roles.values()} else None


def own_problems(model: Model) -> Iterable[Problem]:
    """What keeps a model from being merged with anything: quantised weights."""
    shown = model.source.ref.short
    config = model.config or {}
    nested = [config, *(value for value in config.values() if isinstance(value, Mapping))]
    quantised = next((part["quantization_config"] for part in nested if part.get("quantization_config")), None)
    if quantised is not None:
        kind = quantised.get("quant_method", "unknown") if isinstance(quantised, Mapping) else "unknown"
        yield Problem(shown, f"is quantised ({kind})", "Merge the original weights, then quantise the result.")
        return
    packed = [name for name, spec in model.specs.items() if spec.dtype.startswith("F8_") or spec.dtype == "C64"]
    if packed:
        what = f"{some(packed)} has dtype {model.specs[packed[0]].dtype}, which cannot be merged"
        yield Problem(shown, what, "Use a version in float32, float16 or bfloat16.")


def stranger_problem(base: Model, model: Model) -> Problem | None:
    """Two models of other sizes, by their configs: no fine-tuning leads from one to the other."""
    different = _differences(base, model, _SIZES)
    if not different:
        return None
    one = f"{base.source.ref.short} ({class_of(base.config)})"
    if tower_config(base.config, model.config):
        remedy = "A base is read as its tower when every model is that tower, and the tensors have the same names."
        return Problem(model.source.ref.short, f"is a {class_of(model.config)}, only one tower of {one}", remedy)
    if tower_config(model.config, base.config):
        what = f"is a whole {class_of(model.config)}, and {one} is only one tower of it"
        return Problem(model.source.ref.short, what, "Take a whole model as `base_model`, or merge towers only.")
    return Problem(model.source.ref.short, f"was not fine-tuned from {base.source.ref.short}: {different}")


def twin_notes(model: Model, wanted: Iterable[str]) -> Iterable[str]:
    """That the model ties to another tensor what the base has as one of its own; ``wanted`` are canonical names."""
    for canonical in wanted:
        if canonical not in model.names and model.holder(canonical):
            source = model.skeleton.tied[canonical]
            yield f"{model.source.ref.short}: {source} stands for its {canonical}, which its config ties to it"


def other_layout(base: Model, model: Model, missing: Iterable[str], extra: Iterable[str]) -> list[tuple[str, str]]:
    """Which of the base's ``missing`` and the model's ``extra`` tensors are the same weights, cut up differently.

    Pairs of names: every expert by itself and their stack, a fused projection and each part of it.
    """
    canonical = {name: base.skeleton.roles[name].canonical for name in missing}
    own = {model.skeleton.roles[name].canonical: name for name in extra}
    pairs = [(one, own[part]) for one in canonical for part in base.skeleton.converted.get(one, ()) if part in own]
    theirs = {value: name for name, value in canonical.items()}
    converted = [(part, name) for name in own.values() for part in model.skeleton.converted.get(name, ())]
    return pairs + [(theirs[part], name) for part, name in converted if part in theirs]


def layout_problems(base: Model, model: Model, pairs: Sequence[tuple[str, str]]) -> Iterable[Problem]:
    """``pairs`` of tensors of the base and of the model hold the same weights in other layouts."""
    if pairs:
        one, two = pairs[0]
        what = f"stores weights in another layout: {two}, where {base.source.ref.short} has {one}"
        # The other way round transformers keeps what it found.
        again = base if one in base.skeleton.converted else model
        how = "`model.save_pretrained(folder, save_original_format=False)`"
        remedy = f"Load {again.source.ref.short} with transformers and save it again with {how}, which fits both."
        yield Problem(model.source.ref.short, what, remedy)


def missing_problems(base: Model, model: Model, missing: list[str]) -> Iterable[Problem]:
    """``missing`` are tensors of the base that the model lacks."""
    if missing:
        headless = all(base.role(name) is Role.HEAD for name in missing)
        remedy = "Keep the base's head with `heads: base`." if headless else ""
        remedy = remedy or f"Take them from the base with `{_copy(base, missing)}`."
        what = f"lacks {count(len(missing), 'tensor')} of {base.source.ref.short}: {some(missing)}"
        yield Problem(model.source.ref.short, what, _ties(base, model) or remedy)


def extra_problems(base: Model, model: Model, extra: list[str]) -> Iterable[Problem]:
    """``extra`` are tensors of the model that the base has no place for."""
    shown, other = model.source.ref.short, base.source.ref.short
    if not extra:
        return
    if all(model.role(name) is Role.HEAD for name in extra):
        what = f"has an output head that {other} lacks: {some(extra)}"
        remedy = "Keep every model's head with `heads: per-task` in the recipe, or none with `heads: drop`."
    else:
        what = f"holds {count(len(extra), 'tensor')} that {other} lacks: {some(extra)}"
        remedy = f"Leave them out with `{_copy(model, extra)}`."
    yield Problem(shown, what, _ties(base, model) or remedy)


def needed_problems(base: Model, model: Model, needed: list[str]) -> Iterable[Problem]:
    """``needed`` are tensors under a head that is kept: without a base's to take in their place it would not load."""
    if needed:
        what = f"its output head stands on {some(needed)}, which {base.source.ref.short} has none of to copy"
        yield Problem(model.source.ref.short, what, "Merge the backbones alone with `heads: drop`.")


def shape_problems(base: Model, model: Model, pairs: Mapping[str, str]) -> Iterable[Problem]:
    """``pairs`` maps the base's tensor names to the model's; heads are told apart from the rest."""
    different = [(one, two) for one, two in pairs.items() if base.specs[one].shape != model.specs[two].shape]
    heads = [pair for pair in different if base.role(pair[0]) is Role.HEAD]
    rest = [pair for pair in different if base.role(pair[0]) is not Role.HEAD]
    rows = [pair for pair in rest if base.role(pair[0]) is Role.EMBEDDING]
    if heads and not rest:
        remedy = "Keep every model's head with `heads: per-task`, the base's with `heads: base`, or none with `drop`."
        yield _shapes(base, model, heads, "output head differs in shape", remedy)
    elif rest and len(rows) == len(rest):
        keys = f"`{_copy(base, [name for name, _ in rows])}`" + (" and `heads: base`" if heads else "")
        remedy = f"The vocabularies differ. Keep the base's with {keys}."
        yield _shapes(base, model, rows + heads, "embedding differs in shape", remedy)
    elif rest:
        yield _shapes(base, model, rest + heads, f"{count(len(rest + heads), 'tensor')} of other shape", "")


def dtype_problems(base: Model, model: Model, pairs: Mapping[str, str]) -> Iterable[Problem]:
    """A tensor that is a number here and an index there."""
    for one, two in pairs.items():
        kinds = (base.specs[one].dtype, model.specs[two].dtype)
        if kinds[0] != kinds[1] and not set(kinds) <= set(MERGEABLE):
            yield Problem(model.source.ref.short, f"{two} is {kinds[1]}, in {base.source.ref.short} it is {kinds[0]}")


def idle_patterns(recipe: Recipe, models: Iterable[Model]) -> Iterable[Problem]:
    """The recipe's name patterns that no tensor falls under: misspelt, or written for another architecture."""
    models = list(models)
    known = {role.canonical for model in models for role in model.skeleton.roles.values()}
    spelled = {name for model in models for name in model.specs}
    tied = {twin for model in models for twin in model.skeleton.tied}  # nothing to merge there, but no mistake either
    return idle_among(recipe, known, (*spelled, *tied))


def idle_among(recipe: Recipe, canonical: Iterable[str], other: Iterable[str]) -> Iterable[Problem]:
    """The same, for tensors of these canonical names and the other names that they have."""
    known = sorted(canonical)
    names = (*known, *other)
    for key, pattern in dict.fromkeys(recipe.patterns()):
        if key in ("copy", "exclude"):
            used = any(fnmatchcase(name, pattern) for name in known)
        else:
            used = settings.matches(pattern, names)
        if used or not known:
            continue
        if key in ("copy", "exclude"):
            what, words = f"{key}: no tensor is called {pattern!r}", known
        else:
            words = sorted({part for name in known for part in name.split(".") if not part.isdigit()})
            what = f"{key}: the filter {pattern!r} takes in no tensor"
        hint = methods.suggestion(pattern.strip("*."), words).strip()
        yield Problem("", what, f"Patterns are held against canonical names ({hint or f'such as {known[0]}'}).")


def matches(canonical: str, patterns: Iterable[str]) -> bool:
    """Whether a canonical name falls under one of the recipe's patterns."""
    return any(fnmatchcase(canonical, pattern) for pattern in patterns)


def _shapes(base: Model, model: Model, pairs: list[tuple[str, str]], what: str, remedy: str) -> Problem:
    one, two = pairs[0]
    shapes = f"{one} is {show_shape(model.specs[two].shape)}, in {base.source.ref.short} "
    shapes += show_shape(base.specs[one].shape)
    more = f" (and {len(pairs) - 1} more)" if len(pairs) > 1 else ""
    return Problem(model.source.ref.short, f"{what}: {shapes}{more}", remedy)


def _differences(base: Model, model: Model, keys: Iterable[str]) -> str:
    """Config entries that both state, and differently, as a clause."""
    one, two = base.config or {}, model.config or {}
    different = [key for key in keys if key in one and key in two and one[key] != two[key]]
    return ", ".join(f"{key} is {two[key]}, there {one[key]}" for key in different)


def _ties(base: Model, model: Model) -> str:
    """One model ties its head to its embedding and the other does not: then a head is missing or too many."""
    different = _differences(base, model, ["tie_word_embeddings"])
    return f"In its config {different}: make both alike, or take the untied one as base." if different else ""


def _copy(model: Model, names: list[str]) -> str:
    """The recipe key that settles these tensors."""
    more = ", ..." if len(names) > _SHOWN else ""
    return f"copy: [{', '.join(model.skeleton.roles[name].canonical for name in names[:_SHOWN])}{more}]"


def some(names: list[str]) -> str:
    """The first few, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
