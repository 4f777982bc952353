"""Which tensor of the base every tensor of an adapter belongs to, and every reason why one belongs nowhere.

An adapter names the modules of the class it was trained with, in the spelling of that day's transformers; the base's
files may spell them otherwise. Both are matched by canonical name. Works on headers and configs alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from dopkit import skeleton
from dopkit.checkpoints.adapter_config import AdapterConfig
from dopkit.checkpoints.adapter_names import Parts, without_wrappers
from dopkit.checkpoints.deltas import Change, LowRank, Shape, TokenRows, Vector, layout_of
from dopkit.errors import Problem, count
from dopkit.roles import Role
from dopkit.specs import MERGEABLE, TensorSpec
from dopkit.units import show_shape


class Names:
    """The tensors of a base by canonical name. Made once for all adapters of it."""

    def __init__(self, config: Mapping[str, Any] | None, specs: Mapping[str, TensorSpec]) -> None:
        self._config = config
        self.specs = specs

    @cached_property
    def _skeleton(self) -> skeleton.Skeleton:
        return skeleton.build(self._config, {name: spec.shape for name, spec in self.specs.items()})

    @cached_property
    def _by_canonical(self) -> dict[str, str]:
        return {role.canonical: name for name, role in self._skeleton.roles.items()}

    @property
    def has_class(self) -> bool:
        return self._skeleton.fallback is None

    def role(self, name: str) -> Role:
        return self._skeleton.roles[name].role

    def canonical(self, name: str) -> str:
        return self._skeleton.roles[name].canonical

    def depth(self, name: str) -> float:
        """From 0 in the first layer to 1 in the last one."""
        return self._skeleton.roles[name].standing.depth

    def find(self, parameters: Iterable[str]) -> tuple[dict[str, str], set[str]]:
        """The base's tensor of each parameter, named as inside some class; without those that it has none for.

        Also those that it has only as the tensor of another parameter, which they are tied to.
        """
        parameters = list(dict.fromkeys(parameters))
        # A twin is told from the one it is tied to only where both are asked for.
        asked = [*parameters, *self._skeleton.tied.values()]
        roles = skeleton.build(self._config, dict.fromkeys(asked, (1, 1))).roles
        found, twins = {}, set()
        for parameter in parameters:
            canonical = roles[parameter].canonical
            if (name := self._by_canonical.get(canonical)) is None:
                name = self._by_canonical.get(self._skeleton.tied.get(canonical, ""))
                twins.add(parameter)
            if name is not None:
                found[parameter] = name
        return found, twins & found.keys()

    def twins(self, name: str) -> list[str]:
        """The base's other tensors that are tied to this one."""
        return [other for other in self._groups.get(self._group(name), ()) if other != name]

    def is_tied(self, name: str) -> bool:
        """Whether the class uses the tensor in two places."""
        return self._group(name) in self._skeleton.tied.values()

    def _group(self, name: str) -> str:
        """The canonical name of the tensor, or of the one that it is tied to."""
        canonical = self._skeleton.roles[name].canonical if name in self.specs else name
        return self._skeleton.tied.get(canonical, canonical)

    @cached_property
    def _groups(self) -> dict[str, list[str]]:
        groups: dict[str, list[str]] = {}
        for name in self.specs:
            groups.setdefault(self._group(name), []).append(name)
        return groups


@dataclass
class Placed:
    """What an adapter does to a base. Nothing of it holds when there are problems."""

    changes: dict[str, Change] = field(default_factory=dict)  # by the base's tensor
    own: dict[str, TensorSpec] = field(default_factory=dict)  # tensors that are the adapter's, under the base's names
    notes: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def place(parts: Parts, config: AdapterConfig, specs: Mapping[str, TensorSpec], base: Names, shown: str) -> Placed:
    """Match the ``parts`` of an adapter, of tensors ``specs``, with the tensors of ``base`` (called ``shown``)."""
    work = _Placing(parts, config, specs, base, shown)
    work.run()
    return work.placed


class _Placing:
    def __init__(
        self, parts: Parts, config: AdapterConfig, specs: Mapping[str, TensorSpec], base: Names, shown: str
    ) -> None:
        self._parts, self._config, self._specs, self._base, self._shown = parts, config, specs, base, shown
        self.placed = Placed(problems=list(parts.problems))
        self._lost: list[str] = []  # tensors of the adapter without a place
        self._tied: set[str] = set()
        wanted = [*parts.whole]
        for module in (*parts.factors, *parts.tokens):
            plain = without_wrappers(module)
            wanted += [f"{plain}.weight", f"{plain}.bias"]
            wanted += [f"{plain}.{parameter.rpartition('.')[2]}" for parameter in config.target_parameters]
        self._found, self._twins = base.find(wanted)

    def run(self) -> None:
        for parameter, tensor in self._parts.whole.items():
            self._place_whole(parameter, tensor)
        for module, factors in self._parts.factors.items():
            self._place_factors(module, factors)
        for module, tensor in self._parts.tokens.items():
            self._place_tokens(module, tensor)
        self._spread_to_twins()
        if self._lost:
            more = f" and {len(self._lost) - 5} more" if len(self._lost) > 5 else ""
            what = f"{count(len(self._lost), 'tensor')} without a place in {self._shown}: "
            self._problem("", what + ", ".join(sorted(self._lost)[:5]) + more)
        whole = self._parts.whole.values()
        for name, spec in self._specs.items():
            if name not in whole and spec.dtype not in MERGEABLE:
                self._problem(name, f"has dtype {spec.dtype}, which cannot be merged")
        if not self._specs:
            self._problem("", "it holds no tensors")

    def _problem(self, name: str, what: str, remedy: str = "") -> None:
        self.placed.problems.append(Problem(name, what, remedy))

    def _change(self, name: str) -> Change:
        return self.placed.changes.get(name, Change())

    def _place_whole(self, parameter: str, tensor: str) -> None:
        """A tensor that takes the base's place: of a module that was trained whole, a bias, a stored embedding."""
        name, spec = self._found.get(parameter), self._specs[tensor]
        saved = self._config.saves(parameter.rpartition(".")[0])
        if name is None and not saved:
            self._lost.append(tensor)
            return
        target = parameter if name is None else name
        there = None if name is None else self._base.specs[name]
        if there is not None and there.shape != spec.shape and not saved:
            self._misfit(tensor, spec.shape, target, there.shape)
        elif name is not None and (self._change(name).whole or self._is_twin(parameter, name)):
            what = f"{self._shown} uses one tensor in two places, the adapter trained {parameter} apart"
            self._problem(tensor, what)
        else:
            self.placed.changes[target] = Change(whole=tensor)
            self.placed.own[target] = replace(spec, name=target)

    def _is_twin(self, parameter: str, name: str) -> bool:
        """Whether the base ties the parameter to another one, and the adapter trained one of the two."""
        return parameter in self._twins or (
            self._base.is_tied(name) and self._config.saves(parameter.rpartition(".")[0])
        )

    def _place_factors(self, module: str, factors: Mapping[str, str]) -> None:
        embedding = "embedding A" in factors or "embedding B" in factors
        a, b = (factors.get(f"embedding {kind}" if embedding else kind) for kind in "AB")
        known = {"embedding A", "embedding B", "magnitude"} if embedding else {"A", "B", "B bias", "magnitude"}
        if a is None or b is None or factors.keys() - known:
            self._problem(next(iter(factors.values())), "is not a pair of factors: " + ", ".join(sorted(factors)))
            return
        magnitude = factors.get("magnitude")
        if (magnitude is None) is self._config.dora:
            self._problem(a, "use_dora says it has a magnitude, and it has none" if self._config.dora else
                          f"has a magnitude ({magnitude}), and use_dora is not set")  # fmt: skip
            return
        plain = without_wrappers(module)
        targeted = self._targeted(plain, self._specs[a].shape, self._specs[b].shape)
        name = self._found.get(targeted or f"{plain}.weight")
        if name is None:
            self._lost += factors.values()
            return
        outputs_last = embedding or (targeted is None and self._outputs_last(name))
        self._add_product(targeted or plain, name, a, b, magnitude, outputs_last)
        if bias := factors.get("B bias"):
            self._add_bias(plain, bias)

    def _targeted(self, module: str, a: Shape, b: Shape) -> str | None:
        """The parameter of a module that was targeted by its own name, if one was that the factors fit.

        Of several that were, each is a wrapper around those before; shapes tell which is which, or nothing does.
        """
        ends = {parameter.rpartition(".")[2] for parameter in self._config.target_parameters}
        names = [f"{module}.{end}" for end in ends]
        targeted = [
            name for name in names if any(f".{name}".endswith(f".{end}") for end in self._config.target_parameters)
        ]
        shapes = {name: self._base.specs[self._found[name]].shape for name in targeted if name in self._found}
        fitting = [name for name, shape in shapes.items() if layout_of(shape, a, b, self._config.rank_of(name), False)]
        return fitting[0] if len(fitting) == 1 else None

    def _add_product(self, module: str, name: str, a: str, b: str, magnitude: str | None, outputs_last: bool) -> None:
        spec, rank = self._base.specs[name], self._config.rank_of(module)
        shapes = self._specs[a].shape, self._specs[b].shape
        layout = layout_of(spec.shape, *shapes, rank, outputs_last)
        if layout is None:
            both = " and ".join(map(show_shape, shapes))
            what = f"the factors are {both} at rank {rank}, in {self._shown} {name} is {show_shape(spec.shape)}"
            self._problem(a, what)
            return
        outputs = spec.shape[-1] if layout == "columns" else spec.shape[0]
        if magnitude is not None and math.prod(self._specs[magnitude].shape) != outputs:
            self._misfit(magnitude, self._specs[magnitude].shape, name, spec.shape)
            return
        change = self._change(name)
        if change.low_rank and magnitude is not None:
            self._problem(a, f"is a second change of {name}, and DoRA cannot be added to another")
            return
        product = LowRank(a, b, self._config.scale_of(module), layout, rank, magnitude)
        self.placed.changes[name] = replace(change, low_rank=(*change.low_rank, product))
        if self._base.is_tied(name):
            self._tied.add(name)

    def _outputs_last(self, name: str) -> bool:
        role = self._base.role(name)
        return role is Role.CONV1D if self._base.has_class else self._config.fan_in_fan_out

    def _add_bias(self, module: str, tensor: str) -> None:
        name, spec = self._found.get(f"{module}.bias"), self._specs[tensor]
        if name is None:
            self._problem(tensor, f"is a bias, and {module} of {self._shown} has none to add it to")
        elif self._base.specs[name].shape != spec.shape:
            self._misfit(tensor, spec.shape, name, self._base.specs[name].shape)
        else:
            change = self._change(name)
            vector = Vector(tensor, self._config.scale_of(module))
            self.placed.changes[name] = replace(change, rest=(*change.rest, vector))

    def _place_tokens(self, module: str, tensor: str) -> None:
        name, shape = self._found.get(f"{module}.weight"), self._specs[tensor].shape
        indices = self._config.tokens_of(module)
        if name is None:
            self._lost.append(tensor)
            return
        there, change = self._base.specs[name].shape, self._change(name)
        if len(there) != 2 or shape != (len(indices), there[1]) or not all(0 <= index < there[0] for index in indices):
            what = f"is {show_shape(shape)} for {count(len(indices), 'token')}, in {self._shown} {name} is "
            self._problem(tensor, what + show_shape(there))
        elif change.low_rank:
            self._problem(tensor, f"is a second change of {name}, which has factors as well")
        else:
            self.placed.changes[name] = replace(change, rest=(*change.rest, TokenRows(tensor, indices)))

    def _spread_to_twins(self) -> None:
        """What is tied and stored twice changes in both places."""
        for name in list(self.placed.changes):
            for twin in self._base.twins(name):
                if twin not in self.placed.changes:
                    self.placed.changes[twin] = self.placed.changes[name]
                    if name in self.placed.own:
                        self.placed.own[twin] = replace(self.placed.own[name], name=twin)
        for name in sorted(self._tied):
            if self._config.ties_weights:
                self._problem(name, "ensure_weight_tying: how PEFT merges tied weights depends on its version")
            else:
                what = f"changes {name}, which {self._shown} uses in two places: merged, it changes in both"
                self.placed.notes.append(what)

    def _misfit(self, tensor: str, shape: Shape, name: str, there: Shape) -> None:
        self._problem(tensor, f"is {show_shape(shape)}, in {self._shown} {name} is {show_shape(there)}")
