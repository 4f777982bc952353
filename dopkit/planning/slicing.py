"""A result put together from slices of layers, and from parts that are merged each for itself: which tensor of which
model goes where.

Layers are counted in the stack that the model class has. What stands before a stack goes with its first slice, what
stands behind it with the last one. Pure functions of headers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from dopkit.errors import Problem
from dopkit.planning import Dropped, Input, matching
from dopkit.planning.matching import Model
from dopkit.planning.targets import Making, Settings, Target
from dopkit.recipe.layers import LayerSource, Part, Slice

# mergekit's name for a part, where no part of the model is called that: the prefixes of what it means.
_MEANT = {"text_decoder": ("language_model", "lm_head")}
_NOT_TAKEN = "no slice takes it"


@dataclass(frozen=True)
class _Cut:
    """A slice of a part with its sources."""

    part: Part
    piece: Slice
    sources: Sequence[_Source]

    @property
    def length(self) -> int:
        return len(self.sources[0].layers)


@dataclass(frozen=True)
class _Layer:
    """One layer of the result."""

    prefix: str  # of its stack
    step: int  # in its slice
    number: int  # in the result
    depth: float


@dataclass(frozen=True)
class _Source:
    """One source of a slice, looked up."""

    source: LayerSource
    model: Model
    index: int | None  # among the plan's models; None for a base that is no model to merge
    layers: range

    def named(self, name: str, layer: _Layer | None) -> str | None:
        """The canonical name of a tensor in this model, if it has it there; in a layer ``name`` is its name inside."""
        own = name if layer is None else f"{layer.prefix}{self.layers[layer.step]}.{name}"
        return own if own in self.model.names else None


def sliced_targets(work: Making) -> list[Target]:
    """Every tensor of the result; problems where models lack layers or tensors of a slice."""
    targets: list[Target] = []
    covered: set[str] = set()
    for part in work.recipe.parts:
        inside = _inside(work, part)
        if not inside:
            continue  # told
        if twice := sorted(covered & inside):
            work.problems.append(Problem("", f"modules: {part.module} takes {twice[0]}, which another part takes too"))
        covered |= inside
        targets += _part(work, part, inside)
    if not work.problems:
        targets += _rest(work, covered)
    if not work.problems:
        _account(work, targets)
    return targets


def layers_taken(work: Making) -> dict[str, tuple[int, ...]]:
    """For each stack that is put together from slices, the layer of the first source that each of its layers is."""
    found = {}
    for part in work.recipe.parts:
        if stack := _stack(work, part, _inside(work, part)):
            slices = [_sources(work, piece, stack) for piece in part.slices]
            found[stack] = tuple(layer for sources in slices for layer in sources[0].layers)
    return found


def _inside(work: Making, part: Part) -> set[str]:
    """Canonical names of the donor's tensors that belong to a part; none and a problem when there is no such part."""
    names = set(work.donor.names)
    if part.module in (None, "default"):
        return names
    prefixes = [part.module] if any(_under(name, str(part.module)) for name in names) else []
    prefixes = prefixes or list(_MEANT.get(str(part.module), ()))
    found = {name for name in names if any(_under(name, prefix) for prefix in prefixes)}
    if not found:
        known = ", ".join(dict.fromkeys(name.partition(".")[0] for name in names))
        work.problems.append(Problem("", f"modules: the model has no part {part.module!r}", f"Its parts are: {known}."))
    return found


def _under(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(f"{prefix}.")


def _stack(work: Making, part: Part, inside: set[str]) -> str:
    """The stack whose layers the part's slices count; "" where it has none, and with a problem where it is unclear."""
    if all(source.layers is None for source in part.sources()) and len(part.slices) == 1:
        return ""
    stacks = [stack for stack in work.donor.skeleton.stacks if any(_under(name, stack) for name in inside)]
    if len(stacks) == 1:
        return stacks[0]
    shown = work.donor.source.ref.short
    if not stacks:
        work.problems.append(Problem(shown, "has no layers to take slices of"))
    else:
        what = f"has several stacks of layers ({', '.join(stacks)}), and slices count the layers of one"
        work.problems.append(Problem(shown, what, "Name its parts under `modules`, each with `models` or `slices`."))
    return ""


def _part(work: Making, part: Part, inside: set[str]) -> Iterator[Target]:
    before = len(work.problems)
    stack = _stack(work, part, inside)
    cuts = [_Cut(part, piece, _sources(work, piece, stack)) for piece in part.slices]
    if len(work.problems) > before:
        return
    standing = {name: work.donor.skeleton.roles[work.donor.names[name]].standing for name in inside}
    around = [name for name in work.donor.names if name in inside and not (stack and _under(name, stack))]
    for name in around:
        if not (stack and standing[name].behind):
            yield from _target(work, cuts[0], name, None, standing[name].depth)
    number = 0
    for cut in cuts if stack else ():
        for step in range(cut.length):
            depth = step / (cut.length - 1) if cut.length > 1 else 1.0
            yield from _layer(work, cut, _Layer(f"{stack}.", step, number, depth))
            number += 1
    for name in around if stack else ():
        if standing[name].behind:
            yield from _target(work, cuts[-1], name, None, 0.0)


def _sources(work: Making, piece: Slice, stack: str) -> list[_Source]:
    """The sources of a slice; problems for layers that a model does not have."""
    found = []
    indices = {model.source.ref.key: index for index, model in enumerate(work.models)}
    for source in piece.sources:
        index = indices.get(source.model.key)
        model = work.donor if index is None else work.models[index]
        size = model.skeleton.stacks.get(stack, 0)
        start, stop = source.layers or (0, size)
        if stop > size and stack:
            what = f"has {size} layers in {stack}, so there is no layer {stop - 1}"
            work.problems.append(Problem(model.source.ref.short, what, f"layer_range: [{start}, {stop}] goes too far."))
        found.append(_Source(source, model, index, range(start, stop)))
    return found


def _layer(work: Making, cut: _Cut, layer: _Layer) -> Iterator[Target]:
    """The tensors of one layer of the result."""
    like, *others = cut.sources
    own = f"{layer.prefix}{like.layers[layer.step]}."
    for canonical in [name for name in like.model.names if name.startswith(own)]:
        yield from _target(work, cut, canonical.removeprefix(own), layer, layer.depth)
    for source in others:  # what only a later source has would be lost
        theirs = f"{layer.prefix}{source.layers[layer.step]}."
        inner = [name.removeprefix(theirs) for name in source.model.names if name.startswith(theirs)]
        if extra := [name for name in inner if like.named(name, layer) is None]:
            what = f"{theirs}{extra[0]} has no counterpart in {own[:-1]} of {like.model.source.ref.short}"
            work.problems.append(Problem(source.model.source.ref.short, what))


def _target(work: Making, cut: _Cut, name: str, layer: _Layer | None, depth: float) -> Iterator[Target]:
    """One tensor of the result; of a layer ``name`` is the name inside it."""
    shown = name if layer is None else f"{layer.prefix}{layer.number}.{name}"
    found = [(source, own) for source in cut.sources if (own := source.named(name, layer))]
    if lacking := [source for source in cut.sources if source not in [one for one, _ in found]]:
        what = f"lacks the tensor for {shown} of the result"
        work.problems.append(Problem(lacking[0].model.source.ref.short, what))
        return
    (first, own), *others = found
    pattern = first.model.names[own]
    for source, other in others:
        pair = {pattern: source.model.names[other]}
        work.problems += matching.shape_problems(first.model, source.model, pair)
        work.problems += matching.dtype_problems(first.model, source.model, pair)
    inputs: list[tuple[Input, tuple[Settings, ...]]] = []
    base = work.donor.names.get(name) if layer is None else None
    for source, other in found:
        if source.model.source.ref.key == work.donor.source.ref.key:
            base = work.donor.names[other]
        if source.index is not None:
            settings = (cut.part.parameters, cut.piece.parameters, source.source.parameters)
            inputs.append((Input(source.index, source.model.names[other]), settings))
    spelled = pattern if layer is None else _renumbered(pattern, first.layers[layer.step], layer.number)
    yield Target(spelled, shown, (first.model, pattern), depth, base, tuple(inputs))


def _renumbered(name: str, layer: int, number: int) -> str:
    """A tensor's name on disk with another number of its layer: the first number in it."""
    parts = name.split(".")
    parts[parts.index(str(layer))] = str(number)
    return ".".join(parts)


def _rest(work: Making, covered: set[str]) -> Iterable[Target]:
    """What no part takes: it must be copied on purpose."""
    left = [name for name in work.donor.names if name not in covered]
    copied = [name for name in left if matching.matches(name, work.recipe.copied)]
    if more := [name for name in left if name not in copied]:
        firsts = dict.fromkeys(name.partition(".")[0] for name in more)
        what = f"no part under `modules` takes {', '.join(firsts)}"
        patterns = ", ".join(f'"{first}*"' for first in firsts)
        work.problems.append(Problem("", what, f"Name them as well, or keep the base's with `copy: [{patterns}]`."))
    for name in copied:
        own = work.donor.names[name]
        yield Target(own, name, (work.donor, own), 0.0, own, ())


def _account(work: Making, targets: Iterable[Target]) -> None:
    """What is in the models and in no slice."""
    used: Mapping[int, set[str]] = {index: set() for index in range(len(work.models))}
    for target in targets:
        for one, _ in target.inputs:
            used[one.model].add(one.name)
    for index, model in enumerate(work.models):
        work.dropped += model.left_out()
        names = (name for name in model.names.values() if name not in used[index])
        work.dropped += [Dropped(model.source.ref, name, _NOT_TAKEN) for name in names]
    if all(model.source.ref.key != work.donor.source.ref.key for model in work.models):
        work.dropped += work.donor.left_out()
