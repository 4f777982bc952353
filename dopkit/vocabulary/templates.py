"""The chat templates of models: which one most of them have, and the files that hold one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from dopkit.checkpoints import AdapterCheckpoint, Checkpoint
from dopkit.checkpoints.files import read_text
from dopkit.vocabulary.reading import CONFIG

FILE = "chat_template.jinja"
_OLD_FILE = "chat_template.json"
_KEY = "chat_template"


def template_of(checkpoint: Checkpoint) -> str | None:
    """The chat template of a model; None when it has none. Raises CheckpointError, HubError."""
    if isinstance(checkpoint, AdapterCheckpoint):
        return template_of(checkpoint.adapter) or template_of(checkpoint.base)
    names = checkpoint.side_files
    if FILE in names:
        return read_text(checkpoint.side_file(FILE), checkpoint.ref.short)
    for name in (_OLD_FILE, CONFIG):
        if name in names:
            found = _data(read_text(checkpoint.side_file(name), checkpoint.ref.short)).get(_KEY)
            if isinstance(found, list):  # of several, each with a name
                found = next((one.get("template") for one in found if one.get("name") == "default"), None)
            if isinstance(found, str):
                return found
    return None


def most_common(templates: Sequence[str | None]) -> str | None:
    """The template that most models have, the first of those that as many have; None when none has any."""
    there = [one for one in templates if one is not None]
    counts = Counter(there)
    return max(there, key=lambda one: counts[one]) if there else None  # max keeps the first


def template_files(text: str, names: Sequence[str], config: str | None) -> Mapping[str, bytes | None]:
    """The side files that hold a chat template, to be put in place of those of ``names``.

    ``config`` is the text of tokenizer_config.json: a template in there gives way, so that there is one.
    """
    changed: dict[str, bytes | None] = {FILE: text.encode()}
    if _OLD_FILE in names:
        changed[_OLD_FILE] = None
    data = _data(config) if config is not None else {}
    if _KEY in data:
        kept = {key: value for key, value in data.items() if key != _KEY}
        changed[CONFIG] = (json.dumps(kept, indent=2, ensure_ascii=False) + "\n").encode()
    return changed


def _data(text: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return data if isinstance(data, dict) else {}
