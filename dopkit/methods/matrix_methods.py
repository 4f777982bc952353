"""The methods that merge weight matrices in their own way, and treat all other tensors by a simpler rule."""

from __future__ import annotations

from dopkit.methods import spectral_parameters as spectral
from dopkit.methods.choices import OTHER, is_matrix
from dopkit.methods.continual_parameters import MatrixParameters, NullspaceParameters, OpcmParameters, WudiParameters
from dopkit.methods.dop_terms import sides_of
from dopkit.methods.entry_methods import RuleFor
from dopkit.methods.mergekit_rules import ACE, ISO_C, ISO_CTS, TSV
from dopkit.methods.parameters import DopParameters, Parameters
from dopkit.methods.rule import Method, Rule, Scale, Shape
from dopkit.methods.rules import DOP_ADAM, DOP_ALL, DOP_EXACT, NULLSPACE, OPCM, SUM, WUDI
from dopkit.roles import Role

CONTINUAL, SPECTRA = "one after another", "matrices, all at once"


def _rule_for_dop(parameters: Parameters, name: str, role: Role, shape: Shape) -> Rule:
    assert isinstance(parameters, DopParameters)
    if not is_matrix(name, role, shape, parameters.exclude):
        return OTHER[parameters.other]
    if parameters.history == "all":
        return DOP_ALL[sides_of(parameters.svd_proj_space, role)]
    return DOP_EXACT if parameters.solver == "exact" else DOP_ADAM


def _rule_for_wudi(parameters: Parameters, name: str, role: Role, shape: Shape) -> Rule:
    assert isinstance(parameters, WudiParameters)
    if not is_matrix(name, role, shape, parameters.exclude):
        return OTHER[parameters.other]
    return WUDI[sides_of("v", role)]


def _rule_for_opcm(parameters: Parameters, name: str, role: Role, shape: Shape) -> Rule:
    return OPCM if is_matrix(name, role, shape) else SUM


def _rule_for_nullspace(parameters: Parameters, name: str, role: Role, shape: Shape) -> Rule:
    assert isinstance(parameters, NullspaceParameters)
    return NULLSPACE if is_matrix(name, role, shape, parameters.exclude) else OTHER[parameters.other]


def _matrices(rule: Rule) -> RuleFor:
    """This rule for matrices, and what ``other`` says for the rest."""

    def rule_for(parameters: Parameters, name: str, role: Role, shape: Shape) -> Rule:
        assert isinstance(parameters, MatrixParameters)
        return rule if is_matrix(name, role, shape, parameters.exclude) else OTHER[parameters.other]

    return rule_for


def _rule_for_ace(parameters: Parameters, name: str, role: Role, shape: Shape) -> Rule:
    assert isinstance(parameters, MatrixParameters)
    matrix = is_matrix(name, role, shape, parameters.exclude)
    return ACE[sides_of("v", role)] if matrix else OTHER[parameters.other]


def _given_scale(parameters: Parameters) -> Scale | None:
    assert isinstance(parameters, DopParameters | WudiParameters)
    return None if parameters.scale == 1 else parameters.scale


_ISO = ("Marczak et al., No Task Left Behind: Isotropic Model Merging with Common and Task-Specific Subspaces, "
        "ICML 2025, https://arxiv.org/abs/2502.04959")  # fmt: skip

METHODS = (
    Method(
        name="dop",
        summary="continual merging with dual orthogonal projections",
        parameters=DopParameters,
        rule_for=_rule_for_dop,
        paper="Yang et al., Continual Model Merging without Data: Dual Projections for Balancing Stability and "
        "Plasticity, NeurIPS 2025, https://openreview.net/forum?id=zD5cUX67b9",
        needs_base=True,
        ordered=True,
        scale_of=_given_scale,
        family=CONTINUAL,
    ),
    Method(
        name="opcm",
        summary="the incoming task vector without the directions of the merged one, scaled to the mean norm",
        parameters=OpcmParameters,
        rule_for=_rule_for_opcm,
        paper="Tang et al., Merging Models on the Fly Without Retraining: A Sequential Approach to Scalable Continual "
        "Model Merging, NeurIPS 2025, https://arxiv.org/abs/2501.09522",
        needs_base=True,
        ordered=True,
        scale_of=lambda parameters: "norm",
        family=CONTINUAL,
    ),
    Method(
        name="wudi",
        summary="least interference on the task vectors' own inputs, over all tasks at once",
        parameters=WudiParameters,
        rule_for=_rule_for_wudi,
        paper="Cheng et al., Whoever Started the Interference Should End It: Guiding Data-Free Model Merging via Task "
        "Vectors, ICML 2025, https://arxiv.org/abs/2503.08099",
        needs_base=True,
        ordered=False,  # but for what `other: half` does
        scale_of=_given_scale,
        family=SPECTRA,
    ),
    Method(
        name="nullspace",
        summary="the incoming task vector on inputs that the merged one does not use",
        parameters=NullspaceParameters,
        rule_for=_rule_for_nullspace,
        paper="Qiu et al., Null-Space Filtering for Data-Free Continual Model Merging, ICLR 2026, "
        "https://arxiv.org/abs/2509.21413 (its ablation without optimisation)",
        needs_base=True,
        ordered=True,
        family=CONTINUAL,
    ),
    Method(
        name="ace",
        summary="task vectors weighted by the covariance of their rows, over all tasks at once",
        parameters=spectral.AceParameters,
        rule_for=_rule_for_ace,
        paper="Xu et al., ACE-Merging: Data-Free Model Merging with Adaptive Covariance Estimation, CVPR 2026, "
        "https://arxiv.org/abs/2603.02945",
        needs_base=True,
        ordered=False,
        family=SPECTRA,
    ),
    Method(
        name="tsv",
        summary="the leading singular vectors of every task, made orthogonal to each other",
        parameters=spectral.TsvParameters,
        rule_for=_matrices(TSV),
        paper="Gargiulo et al., Task Singular Vectors: Reducing Task Interference in Model Merging, CVPR 2025, "
        "https://arxiv.org/abs/2412.00081",
        needs_base=True,
        ordered=False,
        family=SPECTRA,
        grows=False,
    ),
    Method(
        name="iso_c",
        summary="the sum of the task vectors with equal singular values",
        parameters=spectral.IsoCParameters,
        rule_for=_matrices(ISO_C),
        paper=_ISO,
        needs_base=True,
        ordered=False,
        family=SPECTRA,
    ),
    Method(
        name="iso_cts",
        summary="as iso_c, with a share of the directions left to the single tasks",
        parameters=spectral.IsoCtsParameters,
        rule_for=_matrices(ISO_CTS),
        paper=_ISO,
        needs_base=True,
        ordered=False,
        family=SPECTRA,
        grows=False,
    ),
)
