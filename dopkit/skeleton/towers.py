"""The language model inside a vision-language model, described as the model that it is by itself.

There it has a place of its own, such as ``model.language_model``; its head may stand beside that. Knows names only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping


def inner_names(canonical: Mapping[str, str], own: Collection[str]) -> dict[str, str] | None:
    """What each tensor of a whole model is called in the tower that has ``own`` names; None where there is no such.

    ``canonical`` maps the tensors to their names in the whole. Names under the prefix that most of the tower is found
    under lose it; the others stay as they are.
    """
    prefix = _prefix(canonical.values(), own)
    if prefix is None:
        return None
    inner = {name: full.removeprefix(prefix) for name, full in canonical.items()}
    return inner if len(set(inner.values())) == len(inner) else None


def _prefix(names: Iterable[str], own: Collection[str]) -> str | None:
    found: Counter[str] = Counter()
    for name in names:
        first, dot, rest = name.partition(".")
        if rest in own:
            found[first + dot] += 1
    return found.most_common(1)[0][0] if found else None
