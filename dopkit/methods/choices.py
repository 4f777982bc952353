"""Which rule a tensor gets: what the methods' own choices are made of. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from dopkit.methods.rule import Shape
from dopkit.methods.rules import BASE, HALF, MEAN
from dopkit.roles import Role

MATRICES = (Role.LINEAR, Role.CONV1D, Role.EXPERTS, Role.EXPERTS_CONV1D)
OTHER = {"mean": MEAN, "half": HALF, "base": BASE}  # the values of ``other``


def is_matrix(name: str, role: Role, shape: Shape, exclude: Iterable[str] = ()) -> bool:
    """Whether a method for matrices merges this tensor its own way."""
    # An output head is a linear layer too; its bias and every other vector is not a matrix.
    matrix = len(shape) >= 2 and (role in MATRICES or role is Role.HEAD)
    return matrix and not any(fnmatchcase(name, pattern) for pattern in exclude)
