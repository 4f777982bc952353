"""The methods that add up models or task vectors, whole or trimmed, whatever a tensor's role."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dopkit.methods import delta_parameters as deltas
from dopkit.methods.continual_parameters import MagMaxParameters
from dopkit.methods.fisher_parameters import FisherParameters
from dopkit.methods.interpolation_parameters import LinearParameters
from dopkit.methods.mergekit_rules import (
    BREADCRUMBS,
    DARE,
    DELLA,
    DELLA_VECTOR,
    FISHER,
    LINEAR,
    LINEAR_SUM,
    RAM,
    TASK_MEAN,
)
from dopkit.methods.parameters import AverageParameters, Parameters
from dopkit.methods.rule import Method, Rule, Shape
from dopkit.methods.rules import MAGMAX, MEAN, TASK_ARITHMETIC, TIES
from dopkit.roles import Role

RuleFor = Callable[[Parameters, str, Role, Shape], Rule]
SUMS, TASKS = "means and sums of models", "sums of task vectors"


def always(rule: Rule) -> RuleFor:
    """The same rule for every tensor."""
    return lambda parameters, name, role, shape: rule


def _linear(parameters: Parameters, name: str, role: Role, shape: Shape) -> Rule:
    assert isinstance(parameters, LinearParameters)
    return LINEAR if parameters.normalize else LINEAR_SUM


def _normalized(parameters: Parameters) -> bool:
    assert isinstance(parameters, FisherParameters)
    return parameters.normalize


def _sum_of(rules: Mapping[str, Rule], vectors: Mapping[str, Rule] | None = None) -> RuleFor:
    """The sum or the mean, as ``normalize`` says; tensors of less than two axes by ``vectors``."""

    def rule_for(parameters: Parameters, name: str, role: Role, shape: Shape) -> Rule:
        assert isinstance(parameters, deltas.SumParameters)
        chosen = vectors if vectors and len(shape) < 2 else rules
        return chosen["mean" if parameters.normalize else "sum"]

    return rule_for


def _della(parameters: Parameters, name: str, role: Role, shape: Shape) -> Rule:
    return (DELLA_VECTOR if len(shape) < 2 else DELLA)["election"]


def _on_tasks(
    name: str, summary: str, parameters: type[Parameters], rule_for: RuleFor, paper: str, **how: Any
) -> Method:
    how = {"needs_base": True, "ordered": False, "family": TASKS, "skips_base": True, **how}
    return Method(name=name, summary=summary, parameters=parameters, rule_for=rule_for, paper=paper, **how)


_DARE = ("Yu et al., Language Models are Super Mario: Absorbing Abilities from Homologous Models as a Free Lunch, "
         "ICML 2024, https://arxiv.org/abs/2311.03099")  # fmt: skip
_DELLA = ("Deep et al., DELLA-Merging: Reducing Interference in Model Merging through Magnitude-Based Sampling, 2024, "
          "https://arxiv.org/abs/2406.11617")  # fmt: skip
_BREADCRUMBS = ("Davari and Belilovsky, Model Breadcrumbs: Scaling Multi-Task Model Merging with Sparse Masks, "
                "ECCV 2024, https://arxiv.org/abs/2312.06795")  # fmt: skip
_TIES = ("Yadav et al., TIES-Merging: Resolving Interference When Merging Models, NeurIPS 2023, "
         "https://arxiv.org/abs/2306.01708")  # fmt: skip

METHODS = (
    Method(
        name="average",
        summary="running mean of the models",
        parameters=AverageParameters,
        rule_for=always(MEAN),
        paper="Wortsman et al., Model soups, ICML 2022, https://arxiv.org/abs/2203.05482",
        needs_base=False,
        ordered=False,
        family=SUMS,
    ),
    Method(
        name="linear",
        summary="weighted mean or sum of the models",
        parameters=LinearParameters,
        rule_for=_linear,
        paper="Wortsman et al., Model soups, ICML 2022, https://arxiv.org/abs/2203.05482",
        needs_base=False,
        ordered=False,
        family=SUMS,
    ),
    Method(
        name="fisher",
        summary="the mean of the models, every weight counted as much as it matters to its model",
        parameters=FisherParameters,
        rule_for=always(FISHER),
        paper="Matena and Raffel, Merging Models with Fisher-Weighted Averaging, NeurIPS 2022, "
        "https://arxiv.org/abs/2111.09832",
        needs_base=False,
        ordered=False,
        family=SUMS,
        needs_state=True,
        measures=_normalized,
    ),
    _on_tasks(
        "task_arithmetic", "the base plus the weighted sum of the task vectors", deltas.TaskArithmeticParameters,
        _sum_of({"sum": TASK_ARITHMETIC, "mean": TASK_MEAN}),
        "Ilharco et al., Editing Models with Task Arithmetic, ICLR 2023, https://arxiv.org/abs/2212.04089",
    ),
    _on_tasks(
        "ties", "trimmed task vectors, a sign elected for every entry, the mean of those that agree",
        deltas.TiesParameters, always(TIES), _TIES,
    ),
    _on_tasks(
        "dare_linear", "the sum of task vectors whose entries are dropped by chance", deltas.DareParameters,
        _sum_of(DARE), _DARE, random=True,
    ),
    _on_tasks(
        "dare_ties", "entries dropped by chance, then an elected sign", deltas.DareTiesParameters,
        always(DARE["election"]), f"{_DARE}; {_TIES}", random=True,
    ),
    _on_tasks(
        "della_linear", "the sum of task vectors whose smaller entries are dropped with a greater chance",
        deltas.DellaLinearParameters, _sum_of(DELLA, DELLA_VECTOR), _DELLA, random=True,
    ),
    _on_tasks(
        "della", "smaller entries dropped with a greater chance, then an elected sign", deltas.DellaParameters, _della,
        _DELLA, random=True,
    ),
    _on_tasks(
        "breadcrumbs", "the sum of task vectors without their largest and smallest entries",
        deltas.BreadcrumbsParameters, _sum_of(BREADCRUMBS), _BREADCRUMBS,
    ),
    _on_tasks(
        "breadcrumbs_ties", "neither the largest nor the smallest entries, then an elected sign",
        deltas.BreadcrumbsTiesParameters, always(BREADCRUMBS["election"]), f"{_BREADCRUMBS}; {_TIES}",
    ),
    _on_tasks(
        "magmax", "of all task vectors the entry of largest magnitude", MagMaxParameters, always(MAGMAX),
        "Marczak et al., MagMax: Leveraging Model Merging for Seamless Continual Learning, ECCV 2024, "
        "https://arxiv.org/abs/2407.06322",
        ordered=True,  # of equal magnitudes the later one wins
        skips_base=False,
    ),
    _on_tasks(
        "ram", "the mean task vector of those models that changed the entry", deltas.RamParameters, always(RAM),
        "Yuan et al., Behavior Knowledge Merge in Reinforced Agentic Models, 2026, https://arxiv.org/abs/2601.13572",
    ),
)  # fmt: skip
