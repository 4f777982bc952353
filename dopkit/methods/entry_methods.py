"""The methods that work entry by entry, or tensor by tensor, whatever a tensor's role."""

from __future__ import annotations

from collections.abc import Callable

from dopkit.methods.continual_parameters import MagMaxParameters, TaskArithmeticParameters, TiesParameters
from dopkit.methods.parameters import AverageParameters, Parameters
from dopkit.methods.rule import Method, Rule, Shape
from dopkit.methods.rules import MAGMAX, MEAN, TASK_ARITHMETIC, TIES
from dopkit.roles import Role


def _always(rule: Rule) -> Callable[[Parameters, str, Role, Shape], Rule]:
    def rule_for(parameters: Parameters, name: str, role: Role, shape: Shape) -> Rule:
        return rule

    return rule_for


METHODS = (
    Method(
        name="average",
        summary="running mean of the models",
        parameters=AverageParameters,
        rule_for=_always(MEAN),
        paper="Wortsman et al., Model soups, ICML 2022, https://arxiv.org/abs/2203.05482",
        needs_base=False,
        ordered=False,
    ),
    Method(
        name="task_arithmetic",
        summary="the base plus the weighted sum of the task vectors",
        parameters=TaskArithmeticParameters,
        rule_for=_always(TASK_ARITHMETIC),
        paper="Ilharco et al., Editing Models with Task Arithmetic, ICLR 2023, https://arxiv.org/abs/2212.04089",
        needs_base=True,
        ordered=False,
    ),
    Method(
        name="ties",
        summary="trimmed task vectors, a sign elected for every entry, the mean of those that agree",
        parameters=TiesParameters,
        rule_for=_always(TIES),
        paper="Yadav et al., TIES-Merging: Resolving Interference When Merging Models, NeurIPS 2023, "
        "https://arxiv.org/abs/2306.01708",
        needs_base=True,
        ordered=False,
    ),
    Method(
        name="magmax",
        summary="of all task vectors the entry of largest magnitude",
        parameters=MagMaxParameters,
        rule_for=_always(MAGMAX),
        paper="Marczak et al., MagMax: Leveraging Model Merging for Seamless Continual Learning, ECCV 2024, "
        "https://arxiv.org/abs/2407.06322",
        needs_base=True,
        ordered=True,  # of equal magnitudes the later one wins
    ),
)
