"""From a parsed config.json to its model on the meta device: no weights, files, network or remote code.

Does not know what the model is wanted for.
"""

from __future__ import annotations

import copy
import logging
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

_ONE_AT_A_TIME = threading.RLock()


class CannotBuild(Exception):
    """There is no class for this configuration; the message is a clause that says why."""


def construct(config: Mapping[str, Any] | None, more_tokens: int = 0) -> Any:
    """The model of ``config``, every tensor on the meta device, its vocabulary longer by ``more_tokens``.

    Raises CannotBuild.
    """
    if config is None:
        raise CannotBuild("it has no config.json")
    with quiet():
        model_class = _named_class(config)
        parsed = _parse(config, model_class)
        model_class = model_class or headless_class(parsed)
        own = _own_part(parsed, model_class)
        if more_tokens:
            _lengthen(own, more_tokens)
        return _instantiate(model_class, own)


def _named_class(config: Mapping[str, Any]) -> Any:
    """The class that ``architectures`` names, or None if nothing is named."""
    import transformers

    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not architectures:
        if "auto_map" in config:
            raise CannotBuild("its class is custom code, which dopkit never runs")
        return None
    name = architectures[0]
    try:
        found = getattr(transformers, str(name), None)
    except Exception as error:  # the module of a class may fail on a missing dependency
        raise CannotBuild(f"{_library()} cannot import its class {name} ({first_line(error)})") from error
    if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
        return found
    if "auto_map" in config:
        raise CannotBuild(f"its class {name} is custom code, which dopkit never runs")
    raise CannotBuild(f"{_library()} has no model class {name!r}")


def _parse(config: Mapping[str, Any], model_class: Any) -> Any:
    """The configuration object."""
    import transformers

    model_type = config.get("model_type")
    if isinstance(model_type, str) and model_type in transformers.CONFIG_MAPPING:
        config_class = transformers.CONFIG_MAPPING[model_type]
    elif model_type is not None:
        raise CannotBuild(f"{_library()} does not know its model_type {model_type!r}")
    elif model_class is not None:
        config_class = model_class.config_class
    else:
        raise CannotBuild("its config.json names neither a model_type nor a class")
    try:
        # a copy: transformers takes the nested dictionaries apart
        return config_class.from_dict(_numbers(copy.deepcopy(dict(config))))
    except Exception as error:  # whatever a configuration class thinks of
        raise CannotBuild(f"{_library()} refuses its config.json ({first_line(error)})") from error


def _numbers(value: Any) -> Any:
    """What transformers 5 writes as ``{"__float__": "Infinity"}``, as the number that it is (Mamba 2)."""
    if isinstance(value, dict):
        if value.keys() == {"__float__"} and value["__float__"] in ("Infinity", "-Infinity", "NaN"):
            return float(value["__float__"])
        return {key: _numbers(one) for key, one in value.items()}
    return [_numbers(one) for one in value] if isinstance(value, list) else value


def headless_class(parsed: Any) -> Any:
    """The class that AutoModel would take. Raises CannotBuild."""
    import transformers

    found = transformers.MODEL_MAPPING.get(type(parsed), None)
    if found is None:
        raise CannotBuild(f"its config.json names no class, nor has {type(parsed).__name__} a default one")
    return found[0] if isinstance(found, (list, tuple)) else found


def _own_part(parsed: Any, model_class: Any) -> Any:
    """The text or vision part of a larger configuration, where the class is made for that part alone."""
    if isinstance(parsed, model_class.config_class):
        return parsed
    for name, config_class in parsed.sub_configs.items():
        if config_class is model_class.config_class:
            return getattr(parsed, name)
    return parsed


def _lengthen(parsed: Any, more_tokens: int) -> None:
    """Give the configuration, or its text part, a longer vocabulary; one that has none stays as it is."""
    parts = {id(part): part for part in (parsed, parsed.get_text_config(decoder=False), parsed.get_text_config())}
    for part in parts.values():
        if isinstance(getattr(part, "vocab_size", None), int):
            part.vocab_size += more_tokens


def _instantiate(model_class: Any, parsed: Any) -> Any:
    # Some classes compute with torch.linspace in their constructors, which a meta tensor cannot do.
    from transformers.initialization import meta_device_safe_creation_ops

    try:
        with torch.device("meta"), meta_device_safe_creation_ops():
            # Neither dtype nor kernels change a name or a shape, but a config may ask for what is not here.
            return model_class._from_config(parsed, dtype=torch.float32, attn_implementation="eager")
    except Exception as error:  # a constructor may raise anything on a configuration that makes no sense
        what = f"{_library()} cannot build its class {model_class.__name__}"
        raise CannotBuild(f"{what} ({first_line(error)})") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the logs, warnings and progress bars of transformers; afterwards all is as it was.

    They are global, and its loader replaces a method of all models while it is at work: one thread at a time.
    """
    from transformers.utils import logging as library

    def without_bar(factory: Any, args: Any, kwargs: Any) -> Any:
        return factory(*args, **{**kwargs, "disable": True})

    with _ONE_AT_A_TIME:
        verbosity = library.get_verbosity()
        library.set_verbosity(logging.CRITICAL)
        hook = library.set_tqdm_hook(without_bar)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            library.set_verbosity(verbosity)
            library.set_tqdm_hook(hook)


def _library() -> str:
    import transformers

    return f"transformers {transformers.__version__}"


def first_line(error: Exception) -> str:
    """What kind of error it is and what it says, short enough for a sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # A strict dataclass puts the field on the first line and what is wrong with it on the second.
    text = ": ".join([type(error).__name__, " ".join(lines[:2])])
    return text if len(text) <= 200 else text[:199] + "…"
