"""The methods that dopkit brings: parameters, papers, and which rule a tensor gets by its role and shape."""

from __future__ import annotations

from fnmatch import fnmatchcase

from dopkit.methods.parameters import AverageParameters, DopParameters, Parameters
from dopkit.methods.rule import Method, Rule
from dopkit.methods.rules import DOP_ADAM, DOP_EXACT, HALF, MEAN
from dopkit.roles import Role

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
