"""Whether transformers can load a checkpoint without a missing or unexpected key, before a weight is read.

transformers' own loader is run on the meta device with empty tensors of the checkpoint's names and shapes:
what it says is what it will say about the files. It reads none of them.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from dopkit.errors import Problem
from dopkit.skeleton.answers import LoadCheck
from dopkit.skeleton.construct import CannotBuild, construct, first_line, quiet
from dopkit.skeleton.names import Anatomy, Place, place_tensors


def check_loads(config: Mapping[str, Any] | None, tensors: Mapping[str, tuple[int, ...]]) -> LoadCheck:
    """See ``skeleton.check_loads``."""
    try:
        model = construct(config)
    except CannotBuild as error:
        return LoadCheck(unchecked=str(error))
    places = place_tensors(Anatomy.of(model), model, tensors)
    try:
        report = _load_nothing(type(model), model.config, tensors)
    except Exception as error:  # the loader raises what its conversions raise
        whole = Problem("", f"transformers cannot load it ({first_line(error)})")
        return LoadCheck(tuple(_uneven(places)) or (whole,))
    return LoadCheck(tuple(_problems(report, places, type(model).__name__)))


def _load_nothing(model_class: Any, parsed: Any, tensors: Mapping[str, tuple[int, ...]]) -> Mapping[str, Any]:
    from transformers import PreTrainedModel

    # The common loader: a few classes extend it to fetch further files, voices for example.
    loader: Any = PreTrainedModel.from_pretrained
    empty = {name: torch.empty(shape, dtype=torch.float32, device="meta") for name, shape in tensors.items()}
    with quiet():
        _, report = loader.__func__(
            model_class,
            None,
            config=parsed,
            state_dict=empty,
            device_map={"": "meta"},
            dtype=torch.float32,
            attn_implementation="eager",
            ignore_mismatched_sizes=True,  # they are in the report
            output_loading_info=True,
            local_files_only=True,
            trust_remote_code=False,
        )
    loading_info: Mapping[str, Any] = report
    return loading_info


def _problems(report: Mapping[str, Any], places: Mapping[str, Place], class_name: str) -> Iterator[Problem]:
    sources: dict[str, list[str]] = defaultdict(list)
    for name, place in places.items():
        sources[place.parameter or place.renamed].append(name)
    for parameter in sorted(report["missing_keys"]):
        yield Problem(parameter, f"is missing: {class_name} would be loaded with random values there")
    for key in sorted(report["unexpected_keys"]):
        yield Problem(_spelled(sources, key), f"is unexpected: {class_name} has no place for it")
    for parameter, found, wanted in sorted(report["mismatched_keys"]):
        what = f"has shape {_times(found)}, but {class_name} needs {_times(wanted)}"
        yield Problem(_spelled(sources, parameter), what)


def _spelled(sources: Mapping[str, list[str]], key: str) -> str:
    """The name on disk, where one tensor stands behind the key."""
    names = sources.get(key, [])
    return names[0] if len(names) == 1 else key


def _uneven(places: Mapping[str, Place]) -> Iterator[Problem]:
    """Parameters that are put together from several tensors of which some are missing."""
    groups: dict[str, Counter[str]] = defaultdict(Counter)
    for place in places.values():
        if place.fused and place.parameter:
            groups[place.parameter][re.sub(r"(?<=\.)\d+(?=\.)", "*", place.renamed)] += 1
    for parameter, numbers in sorted(groups.items()):
        if len(set(numbers.values())) > 1:
            listed = ", ".join(f"{number} of {part}" for part, number in sorted(numbers.items()))
            what = f"is put together from several tensors, of which some are missing: {listed}"
            yield Problem(parameter, what)


def _times(shape: Iterable[int]) -> str:
    return "x".join(str(length) for length in shape) or "scalar"
