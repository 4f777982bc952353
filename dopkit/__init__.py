"""dopkit merges fine-tuned models from the Hugging Face Hub.

    import dopkit

    recipe = dopkit.load_recipe("recipe.yaml")
    print(dopkit.plan(recipe).memory_bytes)
    result = dopkit.run(recipe, "merged")

Everything here is loaded when it is first used: importing dopkit costs next to nothing.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

# OpenMP reads this once, when torch is first loaded. Threads that wait in a loop for each other make an eigen-
# decomposition
# a hundred times slower as soon as anything else runs on the machine; sleeping ones cost nothing measurable.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"

if TYPE_CHECKING:
    from dopkit.adding import add
    from dopkit.errors import DopkitError
    from dopkit.evaluation import evaluate_model
    from dopkit.hub_recipes import load_recipe
    from dopkit.inspection import inspect
    from dopkit.loading import load
    from dopkit.pipeline import Options, Result, plan, run
    from dopkit.planning import Plan
    from dopkit.progress import Progress
    from dopkit.publishing import Pushed, PushOptions, push
    from dopkit.recipe import Recipe
    from dopkit.recipe.reading import parse_recipe

__all__ = [
    "DopkitError",
    "Options",
    "Plan",
    "Progress",
    "PushOptions",
    "Pushed",
    "Recipe",
    "Result",
    "__version__",
    "add",
    "evaluate_model",
    "inspect",
    "load",
    "load_recipe",
    "parse_recipe",
    "plan",
    "push",
    "run",
]

_HOMES = {
    "DopkitError": "errors",
    "Options": "pipeline",
    "Plan": "planning",
    "Progress": "progress",
    "PushOptions": "publishing",
    "Pushed": "publishing",
    "Recipe": "recipe",
    "Result": "pipeline",
    "add": "adding",
    "evaluate_model": "evaluation",
    "inspect": "inspection",
    "load": "loading",
    "load_recipe": "hub_recipes",
    "parse_recipe": "recipe.reading",
    "plan": "pipeline",
    "push": "publishing",
    "run": "pipeline",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dopkit' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"dopkit.{_HOMES[name]}"), name)
