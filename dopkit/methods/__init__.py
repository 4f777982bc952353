"""The registry: which methods there are, what each needs, and where its code is.

Loads neither torch nor any method: a name is looked up, its code imported when a merge runs. Other packages
add methods through the entry point group ``dopkit.methods``; each entry is a ``Method``.
"""

from __future__ import annotations

import difflib
import math
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, EntryPoints, entry_points

from dopkit.errors import DopkitError
from dopkit.methods.fold import Fold
from dopkit.methods.parameters import AverageParameters, DopParameters, Parameters
from dopkit.roles import Role

GROUP = "dopkit.methods"  # of entry points
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
    # Rough seconds of one core to fold one model into a block of this shape: for the time left, and to share out work.
    effort: Callable[[tuple[int, ...]], float]
    float64: bool = False  # whether it factorises in float64, which not every device has

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
    # Whether the order of the models changes the result; then the first one is taken as it is.
    ordered: bool
    least_models: int = 1


def _copies(number: int) -> Callable[[tuple[int, ...]], int]:
    def working_bytes(shape: tuple[int, ...]) -> int:
        return FLOAT32 * number * math.prod(shape)

    return working_bytes


def _elementwise_effort(shape: tuple[int, ...]) -> float:
    return 2e-9 * math.prod(shape)


def _exact_effort(shape: tuple[int, ...]) -> float:
    """Eigenproblems of both sides."""
    m, n = sorted(shape[-2:])
    return 0.7e-9 * (m**3 + min(n, 2 * m) ** 3)


def _adam_effort(shape: tuple[int, ...]) -> float:
    """Six products a step, at the published number of steps."""
    m, n = sorted(shape[-2:])
    return 1.4e-8 * m * m * n


def _exact_bytes(shape: tuple[int, ...]) -> int:
    """Upper estimate for the closed form on an (m, n) matrix, m <= n: three models, and float64 factors.

    The constants were fitted to measured peaks; a fifth and 40 MB are for the allocator and the linear algebra library.
    """
    m, n = sorted(shape[-2:])
    factors = 8 * (3.5 * m * m + m * n + 4 * n * n) if n <= 2 * m else 8 * 7.5 * (2 * m) ** 2
    return int(1.2 * (3 * FLOAT32 * m * n + factors)) + 40_000_000


def _adam_bytes(shape: tuple[int, ...]) -> int:
    """Upper estimate for the published procedure: three models, gradients, Adam's moments; fitted as above."""
    m, n = sorted(shape[-2:])
    return int(1.2 * FLOAT32 * (3 + 17.5) * m * n) + 40_000_000


MEAN = Rule("mean", "dopkit.methods.average:Mean", True, False, _copies(3), _elementwise_effort)
HALF = Rule("half", "dopkit.methods.average:Half", True, False, _copies(2), _elementwise_effort)
DOP_EXACT = Rule("dop exact", "dopkit.methods.dop:Dop", False, True, _exact_bytes, _exact_effort, float64=True)
DOP_ADAM = Rule("dop adam", "dopkit.methods.dop:Dop", False, True, _adam_bytes, _adam_effort)

# Not a method's doing: what the recipe or the tensors themselves settle.
BASE = Rule(
    "base", None, True, True, _copies(1), _elementwise_effort
)  # taken from the base, because the recipe says so
EQUAL = Rule(
    "equal", None, True, True, _copies(1), _elementwise_effort
)  # not arithmetic (integers): must be equal in all models

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
    entries = _installed(tuple(sys.path))
    return {name: _only(name, entries) for name in sorted(BUILTIN.keys() | entries.names)}


def find(name: str) -> Method:
    """The method of that name; of other packages' methods no other is loaded.

    Raises DopkitError with the nearest known name, or as ``known`` does.
    """
    entries = _installed(tuple(sys.path))
    names = sorted(BUILTIN.keys() | entries.names)
    if name not in names:
        raise DopkitError(f"unknown method {name!r} ({suggestion(name, names)}known: {', '.join(names)})")
    return _only(name, entries)


@cache
def _installed(path: tuple[str, ...]) -> EntryPoints:
    """The entry points that packages on ``path`` offer; looking through them all takes a moment."""
    return entry_points(group=GROUP)


def _only(name: str, entries: EntryPoints) -> Method:
    claims = sorted({entry.value for entry in entries.select(name=name)})
    if len(claims) > 1 or (claims and name in BUILTIN):
        others = " and ".join(claims)
        what = f"dopkit's own method {name!r} is also offered by" if name in BUILTIN else f"{name!r} is offered by both"
        raise DopkitError(f"{what} {others}; uninstall one")
    return _load(name, claims[0]) if claims else BUILTIN[name]


def _load(name: str, value: str) -> Method:
    try:
        method = EntryPoint(name, value, GROUP).load()
    except Exception as error:  # another package's code: anything may happen
        raise DopkitError(
            f"the installed method {name!r} ({value}) cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(method, Method) or method.name != name:
        raise DopkitError(f"the installed method {name!r} ({value}) is not a dopkit Method of that name")
    return method


def suggestion(word: str, words: Iterable[str]) -> str:
    """``did you mean 'x'? `` or nothing, for the nearest of ``words``."""
    nearest = difflib.get_close_matches(word, list(words), n=1, cutoff=0.6)
    return f"did you mean {nearest[0]!r}? " if nearest else ""
