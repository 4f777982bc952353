"""The files beside the weights that say what the tokens are, in step with each other.

They are those of one model, the origin of the tokenizer, with what the recipe changes in them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

from dopkit.vocabulary.checkpoint import SideFile
from dopkit.vocabulary.config import with_special_tokens
from dopkit.vocabulary.reading import ADDED, CONFIG, FAST, TokenizerFiles
from dopkit.vocabulary.uniting import United

GENERATION = "generation_config.json"
_OF_TOKENIZER = (
    "tokenizer*", "special_tokens_map.json", ADDED, "vocab.json", "vocab.txt", "merges.txt", "*.model", "*.tiktoken",
    "tekken.json", "normalizer.json", "chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja",
)  # fmt: skip
# What holds the tokens of the model without those that were added: of no use beside a union.
_OLD_VOCABULARIES = ("vocab.json", "vocab.txt", "merges.txt", "*.model", "*.tiktoken", "tekken.json")

SideFiles = dict[str, SideFile | None]


def of_other(origin: TokenizerFiles, names: list[str]) -> SideFiles:
    """The tokenizer files of ``origin`` in place of those among ``names``."""
    own: SideFiles = {name: None for name in names if _is_any(name, _OF_TOKENIZER)}
    return own | {name: partial(origin.path, name) for name in origin.names if _is_any(name, _OF_TOKENIZER)}


def of_united(united: United) -> SideFiles:
    """The files of the origin that change where the tokenizer has taken in more tokens."""
    if united.text is None:
        return {}
    names, files = united.origin.files.names, united.origin.files
    changed: SideFiles = {FAST: united.text}
    if united.ordinary:
        changed |= {name: None for name in names if _is_any(name, _OLD_VOCABULARIES)}
    entries = {**united.origin.added, **united.added}
    if CONFIG in names:
        data = json.loads(files.text(CONFIG))
        if isinstance(data.get("added_tokens_decoder"), dict):
            new = {
                str(one["id"]): {key: value for key, value in one.items() if key != "id"}
                for one in united.added.values()
            }
            changed[CONFIG] = as_json({**data, "added_tokens_decoder": {**data["added_tokens_decoder"], **new}})
    if ADDED in names:
        changed[ADDED] = as_json({token: united.ids[token] for token in entries if token in united.ids})
    return changed


def generation(text: str | None, own: str | None, translate: Callable[[int], int | None]) -> bytes | None:
    """The text of generation_config.json for another tokenizer: that of its model, else the donor's, translated."""
    if own is not None:
        return own.encode()
    return None if text is None else as_json(with_special_tokens(json.loads(text), None, translate))


def as_json(data: Mapping[str, Any]) -> bytes:
    return (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode()


def _is_any(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
