"""What stands beside the weights of the result: config, tokenizer files and chat template, all of one tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from dopkit.checkpoints import Checkpoint
from dopkit.errors import Problem
from dopkit.planning.matching import Model
from dopkit.recipe import Recipe
from dopkit.refs import ModelRef
from dopkit.vocabulary.config import with_rows, with_special_tokens
from dopkit.vocabulary.named_templates import NAMED
from dopkit.vocabulary.reading import CONFIG, Vocabulary
from dopkit.vocabulary.side_files import GENERATION, SideFiles, generation, of_other, of_united
from dopkit.vocabulary.templates import most_common, template_files, template_of
from dopkit.vocabulary.uniting import United


class Result(Protocol):
    """What is dressed: see ``Alignment``."""

    models: dict[ModelRef, Model]
    notes: list[str]
    problems: list[Problem]
    side_files: dict[ModelRef, SideFiles]


def dress(
    recipe: Recipe,
    checkpoints: Sequence[Checkpoint],
    donor: Vocabulary | None,
    united: United | None,
    rows: int | None,
    result: Result,
) -> None:
    """Give the donor, the first of the ``checkpoints``, the config and the files that go with the result's tokens.

    ``donor`` is its own vocabulary, ``united`` that of the result where the recipe asks for one, ``rows`` the length of
    its embedding where that is new. Raises CheckpointError, HubError.
    """
    own, ref = checkpoints[0], checkpoints[0].ref
    config, files = result.models[ref].config, SideFiles()
    if rows is not None and config is not None:
        config = with_rows(config, rows)
    if united is not None and donor is not None:
        if not _is_of(united.origin, own):
            files |= of_other(united.origin.files, own.side_files)
            told = _config_of(united.origin, checkpoints, result)
            translate = _translator(donor, united)
            if config is not None:
                config = with_special_tokens(config, told, translate)
            files |= _generation(united.origin, own, translate)
        files |= of_united(united)
    if recipe.chat_template is not None:
        files |= _template(recipe.chat_template, checkpoints, files, result)
    if config is not result.models[ref].config:
        result.models[ref] = replace(result.models[ref], config=config)
    if files:
        result.side_files[ref] = files


def _is_of(origin: Vocabulary, checkpoint: Checkpoint) -> bool:
    """Whether the files of the tokenizer are those that lie beside the model anyway."""
    return origin.shown == checkpoint.ref.short and origin.files.names == frozenset(checkpoint.side_files)


def _config_of(origin: Vocabulary, checkpoints: Sequence[Checkpoint], result: Result) -> Mapping[str, Any] | None:
    """The config of the model that the tokenizer is of."""
    for checkpoint in checkpoints:
        if checkpoint.ref.short == origin.shown:
            return result.models[checkpoint.ref].config
    if "config.json" not in origin.files.names:
        return None
    data = json.loads(origin.files.text("config.json"))
    return data if isinstance(data, dict) else None


def _translator(donor: Vocabulary, united: United) -> Callable[[int], int | None]:
    """From an id of the donor to that of the same token in the result."""
    tokens = {number: token for token, number in donor.ids.items()}
    return lambda number: united.ids.get(tokens.get(number, ""))


def _generation(origin: Vocabulary, own: Checkpoint, translate: Callable[[int], int | None]) -> SideFiles:
    said = origin.files.text(GENERATION) if GENERATION in origin.files.names else None
    before = own.side_file(GENERATION).read_text(encoding="utf-8") if GENERATION in own.side_files else None
    made = generation(before, said, translate)
    return SideFiles() if made is None else {GENERATION: made}


def _template(wanted: str, checkpoints: Sequence[Checkpoint], files: SideFiles, result: Result) -> SideFiles:
    own = checkpoints[0]
    text = NAMED.get(wanted, wanted)
    said = f"chat template: {wanted}" if wanted in NAMED else "chat template: that of the recipe"
    if wanted == "auto":
        templates = [template_of(checkpoint) for checkpoint in checkpoints]
        common = most_common(templates)
        if common is None:
            what = "chat_template: auto takes that of the models, and none of them has one"
            result.problems.append(Problem("", what, "Leave the key out, or give the template."))
            return SideFiles()
        text = common
        first = checkpoints[templates.index(common)].ref.short
        said = f"chat template: that of {first}, which {templates.count(common)} of {len(templates)} models have"
    result.notes.append(said)
    names = [name for name in {**dict.fromkeys(own.side_files), **files} if files.get(name, b"") is not None]
    config = None
    if CONFIG in names:
        held = files.get(CONFIG)
        if isinstance(held, bytes):
            config = held.decode()
        else:
            config = (own.side_file(CONFIG) if held is None else held()).read_text(encoding="utf-8")
    return dict(template_files(text, names, config))
