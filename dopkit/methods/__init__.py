"""The registry: which methods there are, what each needs, and where its code is.

Loads neither torch nor any method: a name is looked up, its code imported when a merge runs. Other packages
add methods through the entry point group ``dopkit.methods``; each entry is a ``Method``.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from importlib import import_module
from importlib.metadata import entry_points

from dopkit.errors import DopkitError
from dopkit.methods.fold import Fold
from dopkit.methods.parameters import AverageParameters, DopParameters, Parameters
from dopkit.roles import Role

FLOAT32 = 4  # bytes


@dataclass(frozen=True)
class Rule:
    """What is done with one tensor."""

    name: str  # as the plan and the receipt print it
    fold: str | None  # "package.module:Class" of a Fold without arguments; None copies the base's tensor
    elementwise: bool  # may be fed block by block
    needs_base: bool
    # Bytes at work for one block of this shape beyond the block being read: an upper estimate.
    working_bytes: Callable[[tuple[int, ...]], int]

    def load(self) -> Fold:
        """Import the code and make the fold."""
        assert self.fold is not None, f"{self.name} copies"
        module, _, attribute = self.fold.partition(":")
        fold: Fold = getattr(import_module(module), attribute)()
        return fold


@dataclass(frozen=True)
class Method:
    """A merge method as recipes name it."""

    name: str
    summary: str
    parameters: type[Parameters]
    # (parameters, canonical name, role, shape) -> what is done with that floating-point tensor
    rule_for: Callable[[Parameters, str, Role, tuple[int, ...]], Rule]
    paper: str
    needs_base: bool
    ordered: bool  # whether the order of the models changes the result
    least_models: int = 1


def _copies(number: int) -> Callable[[tuple[int, ...]], int]:
    def working_bytes(shape: tuple[int, ...]) -> int:
        total = FLOAT32 * number
        for length in shape:
            total *= length
        return total

    return working_bytes


def dop_working_bytes(shape: tuple[int, ...]) -> int:
    """Upper estimate for one DOP matrix (m, n): some copies of it, and square factors of each side."""
    m, n = sorted(shape[-2:])
    inner = min(n, 2 * m)
    return FLOAT32 * (8 * m * n) + 2 * FLOAT32 * (3 * m * m + 3 * inner * inner)


MEAN = Rule("mean", "dopkit.methods.average:Mean", True, False, _copies(3))
HALF = Rule("half", "dopkit.methods.average:Half", True, False, _copies(2))
DOP_EXACT = Rule("dop exact", "dopkit.methods.dop:Dop", False, True, dop_working_bytes)
DOP_ADAM = Rule("dop adam", "dopkit.methods.dop:Dop", False, True, dop_working_bytes)

# Not a method's doing: what the recipe or the tensors themselves settle.
BASE = Rule("base", None, True, True, _copies(1))  # taken from the base, because the recipe says so
EQUAL = Rule("equal", None, True, True, _copies(1))  # not arithmetic (integers): must be equal in all models

MATRICES = (Role.LINEAR, Role.CONV1D, Role.EXPERTS)


def _rule_for_average(parameters: Parameters, name: str, role: Role, shape: tuple[int, ...]) -> Rule:
    return MEAN


def _rule_for_dop(parameters: Parameters, name: str, role: Role, shape: tuple[int, ...]) -> Rule:
    assert isinstance(parameters, DopParameters)
    # An output head is a linear layer too; its bias and every other vector is not a matrix.
    matrix = len(shape) >= 2 and (role in MATRICES or role is Role.HEAD)
    if matrix and not any(fnmatchcase(name, pattern) for pattern in parameters.exclude):
        return DOP_EXACT if parameters.solver == "exact" else DOP_ADAM
    return MEAN if parameters.other == "mean" else HALF


BUILTIN: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            name="average",
            summary="running mean of the models",
            parameters=AverageParameters,
            rule_for=_rule_for_average,
            paper="Wortsman et al., Model soups, ICML 2022, https://arxiv.org/abs/2203.05482",
            needs_base=False,
            ordered=False,
        ),
        Method(
            name="dop",
            summary="continual merging with dual orthogonal projections",
            parameters=DopParameters,
            rule_for=_rule_for_dop,
            paper="Yang et al., Continual Model Merging without Data: Dual Projections for Balancing Stability and "
            "Plasticity, NeurIPS 2025, https://openreview.net/forum?id=zD5cUX67b9",
            needs_base=True,
            ordered=True,
        ),
    )
}


def known() -> dict[str, Method]:
    """All methods by name: the built-in ones and those of installed packages, sorted.

    Raises DopkitError when two of them claim one name, or an entry point is not a Method.
    """
    methods = dict(BUILTIN)
    for entry in sorted(entry_points(group="dopkit.methods"), key=lambda entry: (entry.name, entry.value)):
        method = entry.load()
        if not isinstance(method, Method) or method.name != entry.name:
            raise DopkitError(
                f"the installed method {entry.name!r} ({entry.value}) is not a dopkit Method of that name"
            )
        if method.name in methods:
            raise DopkitError(f"two installed packages offer a method {method.name!r}; uninstall one ({entry.value})")
        methods[method.name] = method
    return dict(sorted(methods.items()))


def find(name: str) -> Method:
    """The method of that name. Raises DopkitError with the nearest known name."""
    if name in BUILTIN:
        return BUILTIN[name]
    methods = known()
    if name in methods:
        return methods[name]
    raise DopkitError(f"unknown method {name!r} ({suggestion(name, methods)}known: {', '.join(methods)})")


def suggestion(word: str, words: object) -> str:
    """``did you mean 'x'? `` or nothing, for the nearest of ``words``."""
    nearest = difflib.get_close_matches(word, [str(other) for other in words], n=1, cutoff=0.6)  # type: ignore[attr-defined]
    return f"did you mean {nearest[0]!r}? " if nearest else ""
