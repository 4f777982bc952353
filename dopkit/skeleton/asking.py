"""What a model class has to say about tensors, asked of it anew: the class is built on the meta device.

Does not know that answers are kept, nor what is done with them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dopkit.roles import TensorRole
from dopkit.skeleton.answers import Skeleton
from dopkit.skeleton.construct import CannotBuild, construct, headless_class
from dopkit.skeleton.guess import guess_role
from dopkit.skeleton.names import Anatomy, Place, base_prefix, place_tensors
from dopkit.skeleton.parts import Parts
from dopkit.skeleton.stacks import Stacks
from dopkit.skeleton.towers import inner_names


def build(config: Mapping[str, Any] | None, tensors: Mapping[str, tuple[int, ...]], headless: bool = False) -> Skeleton:
    """See ``skeleton.build``."""
    found = _build(config, tensors)
    if not headless or not found.unknown | found.ignored:
        return found
    backbone = backbone_class(config)
    if backbone in (None, found.class_name):
        return found
    return _with_backbone(found, _build({**(config or {}), "architectures": [backbone]}, tensors))


def build_tower(
    whole: Mapping[str, Any] | None,
    tower: Mapping[str, Any],
    tensors: Mapping[str, tuple[int, ...]],
    headless: bool = False,
) -> Skeleton:
    """See ``skeleton.build_tower``."""
    direct = build(tower, tensors, headless)
    if direct.expected is None or not direct.unknown:
        return direct
    full = {name: role.canonical for name, role in _build(whole, tensors).roles.items()}
    inner = inner_names(full, direct.expected)
    if inner is None:
        return direct
    found = build(tower, {inner[name]: shape for name, shape in tensors.items()}, headless)
    return _renamed(found, inner) if len(found.unknown) < len(direct.unknown) else direct


def _renamed(found: Skeleton, names: Mapping[str, str]) -> Skeleton:
    """The same with other checkpoint names: ``names`` maps those to the ones that were asked about."""

    def those(few: frozenset[str]) -> frozenset[str]:
        return frozenset(name for name, asked in names.items() if asked in few)

    return replace(
        found,
        roles={name: found.roles[asked] for name, asked in names.items()},
        ignored=those(found.ignored),
        unknown=those(found.unknown),
        unread=those(found.unread),
        converted={name: found.converted[asked] for name, asked in names.items() if asked in found.converted},
    )


def _with_backbone(found: Skeleton, backbone: Skeleton) -> Skeleton:
    """Give what the class has no place for the place it has in the class without a head."""
    lost = found.unknown | found.ignored
    taken = {role.canonical for name, role in found.roles.items() if name not in lost}
    known = lost - backbone.unknown - backbone.ignored
    unread = frozenset(name for name in known if backbone.roles[name].canonical not in taken)
    roles = {name: backbone.roles[name] if name in unread else role for name, role in found.roles.items()}
    return replace(found, roles=roles, ignored=found.ignored - unread, unknown=found.unknown - unread, unread=unread)


def _build(config: Mapping[str, Any] | None, tensors: Mapping[str, tuple[int, ...]]) -> Skeleton:
    try:
        model = construct(config)
    except CannotBuild as error:
        return _without_class(tensors, str(error))
    anatomy = Anatomy.of(model)
    places = place_tensors(anatomy, model, tensors)
    tied = _twins(anatomy, places, config or {})
    parts, stacks = Parts(model, tied), Stacks.of(model, anatomy)
    roles = {}
    for name, shape in tensors.items():
        place = places[name]
        role = parts.role(place.parameter, shape) if place.parameter else guess_role(name, shape)
        standing = stacks.standing(place.canonical, place.parameter and anatomy.canonical(place.parameter))
        roles[name] = TensorRole(place.canonical, role, place.fused, standing)
    lost = [name for name in tensors if places[name].parameter is None]
    ignored = frozenset(name for name in lost if places[name].ignored)
    return Skeleton(
        roles=roles,
        tied={anatomy.canonical(twin): anatomy.canonical(source) for twin, source in tied.items()},
        expected=frozenset(anatomy.canonical(name) for name in anatomy.shapes if name not in tied),
        ignored=ignored,
        unknown=frozenset(lost) - ignored,
        unread=frozenset(),
        converted={
            name: tuple(map(anatomy.canonical, place.becomes)) for name, place in places.items() if place.becomes
        },
        stacks=stacks.sizes,
        class_name=type(model).__name__,
        fallback=None,
    )


def backbone_class(config: Mapping[str, Any] | None) -> str | None:
    """See ``skeleton.backbone_class``."""
    try:
        model = construct(config)
        if base_prefix(model):
            return type(model.base_model).__name__
        return str(headless_class(model.config).__name__)
    except CannotBuild:
        return None


def _twins(anatomy: Anatomy, places: Mapping[str, Place], config: Mapping[str, Any]) -> dict[str, str]:
    """The tied parameters of the class, except those that this checkpoint holds untied.

    T5 1.1 says ``tie_word_embeddings: false`` and has an output layer of its own; transformers ties the class
    all the same, and unties it when it meets both tensors with different values.
    """
    if config.get("tie_word_embeddings") is not False:
        return dict(anatomy.tied)
    present = {place.parameter for place in places.values()}
    return {twin: source for twin, source in anatomy.tied.items() if not {twin, source} <= present}


def _without_class(tensors: Mapping[str, tuple[int, ...]], reason: str) -> Skeleton:
    stacks = Stacks.guessed(tensors)
    roles = {
        name: TensorRole(name, guess_role(name, shape), standing=stacks.standing(name))
        for name, shape in tensors.items()
    }
    nothing: frozenset[str] = frozenset()
    return Skeleton(roles, {}, None, nothing, nothing, nothing, {}, stacks.sizes, None, reason)
