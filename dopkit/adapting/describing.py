"""The model card of an adapter that was merged."""

from __future__ import annotations

import yaml

from dopkit import card
from dopkit.adapting.preparing import Prepared
from dopkit.errors import count
from dopkit.receipt import Receipt


def render(prepared: Prepared, done: Receipt, recipe_yaml: str) -> str:
    """The README.md of the adapter."""
    made, base = prepared.plan, prepared.adapters[0].base.ref
    parts = [part for source in made.merged_models for part in source.ref.parts]
    own = {part.ref.key: part for adapter in prepared.adapters for part in adapter.sources}
    sources = [card.source_card(part) for part in own.values()]
    repos = [part.repo for part in parts if part.repo]
    data = {
        **({"base_model": list(dict.fromkeys(repos))} if repos else {}),
        "library_name": "peft",
        "tags": ["lora", "merge", "dopkit"],
        "dopkit": {"merge_method": made.recipe.merge_method},
        **card.common_licence(sources),
    }
    ranks = sorted({joined.rank for joined in prepared.modules})
    rank = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
    merged = count(len(made.merged_models), "adapter")
    opening = (
        f"A LoRA adapter of rank {rank} for {base.name}, merged from {merged} with dopkit, "
        f"by **{made.recipe.merge_method}**: {made.recipe.method.summary}."
    )
    front = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    return "\n\n".join([
        f"---\n{front}---",
        f"# {made.recipe.name}",
        opening,
        f"## Adapters merged\n\n{card.models_table(made)}",
        f"## Recipe\n\n```yaml\n{recipe_yaml.strip()}\n```\n\n{card.again(made)}",
        f"## What the run measured\n\n{card.measured(made, done)}",
        f"## Licences\n\n{card.licences(sources)}",
    ]) + "\n"  # fmt: skip
