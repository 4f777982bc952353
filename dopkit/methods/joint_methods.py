"""The methods that interpolate between models, or choose entries of theirs: most must see all of them at once."""

from __future__ import annotations

from typing import Any

from dopkit.methods import delta_parameters as deltas
from dopkit.methods import interpolation_parameters as own
from dopkit.methods.entry_methods import SUMS, TASKS, RuleFor, always
from dopkit.methods.mergekit_rules import (
    ARCEE_FUSION,
    KARCHER,
    MODEL_STOCK,
    MODEL_STOCK_ROWS,
    MULTISLERP,
    NEARSWAP,
    NUSLERP,
    PASSTHROUGH,
    RAM_PLUS,
    SCE,
    SLERP,
)
from dopkit.methods.parameters import Parameters
from dopkit.methods.rule import Method, Rule, Shape
from dopkit.roles import Role

ARCS, CHOICES = "interpolation", "selection of entries"


def _stock(parameters: Parameters, name: str, role: Role, shape: Shape) -> Rule:
    assert isinstance(parameters, own.ModelStockParameters)
    return MODEL_STOCK_ROWS if parameters.filter_wise and len(shape) > 1 else MODEL_STOCK


def _joint(
    name: str, family: str, summary: str, parameters: type[Parameters], rule_for: RuleFor, paper: str, **how: Any
) -> Method:
    how = {"needs_base": True, "ordered": False, "skips_base": True, "grows": False, **how}
    return Method(
        name=name, family=family, summary=summary, parameters=parameters, rule_for=rule_for, paper=paper, **how
    )


_SLERP = "Shoemake, Animating Rotation with Quaternion Curves, SIGGRAPH 1985"

METHODS = (
    _joint(
        "passthrough", SUMS, "one model as it is, or multiplied by a number", own.PassthroughParameters,
        always(PASSTHROUGH), "no paper", needs_base=False, skips_base=False, most_models=1,
    ),
    _joint(
        "slerp", ARCS, "along the great circle from the base to one model", own.SlerpParameters, always(SLERP), _SLERP,
        most_models=1,
    ),
    _joint(
        "nuslerp", ARCS, "along the great circle between two models or their task vectors", own.NuslerpParameters,
        always(NUSLERP), _SLERP, needs_base=False, least_models=2, most_models=2,
    ),
    _joint(
        "multislerp", ARCS, "mean direction of the models or their task vectors, at their mean length",
        own.MultislerpParameters, always(MULTISLERP), "no paper", needs_base=False, least_models=2, grows=True,
    ),
    _joint(
        "karcher", ARCS, "the Riemannian mean of the models' directions, at their mean length", own.KarcherParameters,
        always(KARCHER), "Karcher, Riemannian Center of Mass and Mollifier Smoothing, CPAM 1977; Buss and Fillmore, "
        "Spherical Averages and Applications to Spherical Splines and Interpolation, ACM TOG 2001",
        needs_base=False, skips_base=False, least_models=2,
    ),
    _joint(
        "model_stock", ARCS, "from the base to the mean of the models, as far as their angle says",
        own.ModelStockParameters, _stock, "Jang et al., Model Stock: All we need is just a few fine-tuned models, "
        "ECCV 2024, https://arxiv.org/abs/2403.19522", least_models=2, grows=True,
    ),
    _joint(
        "nearswap", CHOICES, "the base, each entry moved towards one model by at most t", own.NearswapParameters,
        always(NEARSWAP), "no paper", most_models=1,
    ),
    _joint(
        "arcee_fusion", CHOICES, "one model's entries where they matter, the base's elsewhere",
        own.ArceeFusionParameters, always(ARCEE_FUSION), "no paper", most_models=1,
    ),
    _joint(
        "sce", CHOICES, "task vectors' entries that vary most, weighted by energy, where they agree in sign",
        deltas.SceParameters, always(SCE), "Wan et al., FuseChat: Knowledge Fusion of Chat Models, 2024, "
        "https://arxiv.org/abs/2408.07990",
    ),
    _joint(
        "ramplus_tl", TASKS, "ram, with the entries that one model alone changed made larger", deltas.RamPlusParameters,
        always(RAM_PLUS), "Yuan et al., Behavior Knowledge Merge in Reinforced Agentic Models, 2026, "
        "https://arxiv.org/abs/2601.13572",
    ),
)  # fmt: skip
