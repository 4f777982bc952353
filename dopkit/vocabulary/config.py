"""The configs of the result, in step with its tokenizer: how many rows, and which ids the special tokens have.

Works on the data of config.json and generation_config.json.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

SIZE = "vocab_size"
# Parts of a model that have another vocabulary, or none.
_OTHERS = re.compile(r"vision|audio|image|video|vq|codec|quantization")
_IDS = re.compile(r"(_token_(id|ids|index)|suppress_tokens)$")

Data = Mapping[str, Any]


def with_rows(config: Data, rows: int) -> dict[str, Any]:
    """``config`` with so many rows in the embedding, wherever it says how many there are."""
    changed, known = _with_rows(config, rows)
    if not known:  # it leaves out what is the default of its class
        text = config.get("text_config")
        nested = {"text_config": {**text, SIZE: rows}} if isinstance(text, Mapping) else {SIZE: rows}
        changed = {**config, **nested}
    return changed


def _with_rows(config: Data, rows: int) -> tuple[dict[str, Any], bool]:
    changed, known = dict(config), SIZE in config
    if known:
        changed[SIZE] = rows
    for key, value in config.items():
        if isinstance(value, Mapping) and not _OTHERS.search(key):
            changed[key], inside = _with_rows(value, rows)
            known = known or inside
    return changed, known


def with_special_tokens(config: Data, own: Data | None, translate: Callable[[int], int | None]) -> dict[str, Any]:
    """``config`` with the ids of another tokenizer.

    ``own`` is the config of the model that the tokenizer is of: what it says counts. Ids that it says nothing of are
    put through ``translate``; a token that the tokenizer lacks becomes None.
    """
    changed: dict[str, Any] = {}
    for key, value in config.items():
        said = own.get(key) if own is not None else None
        if _IDS.search(key):
            changed[key] = said if said is not None else _translated(value, translate)
        elif isinstance(value, Mapping) and not _OTHERS.search(key):
            changed[key] = with_special_tokens(value, said if isinstance(said, Mapping) else own, translate)
        else:
            changed[key] = value
    return changed


def _translated(value: Any, translate: Callable[[int], int | None]) -> Any:
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return translate(value) if value >= 0 else value
    if isinstance(value, list):
        found = [_translated(one, translate) for one in value]
        return [one for one in found if one is not None]
    return value
