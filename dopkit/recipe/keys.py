"""The keys of a recipe file: which there are, what may stand behind each, and what an unknown one was meant to be.

Values of parameters are left to the method, references to ``refs``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import ErrorDetails

from dopkit import refs
from dopkit.recipe import Dtype
from dopkit.recipe.document import Path as YamlPath
from dopkit.recipe.tokenizer import known_template
from dopkit.recipe.wording import unknown_key, wrong_value

# Keys that mergekit reads and dopkit does not: refused by name, so that nobody thinks they took effect.
MERGEKIT_ONLY = {
    "experts": "it builds a mixture of experts, which dopkit does not", "gate_mode": "",
    "residual_weight": "mergekit declares it and reads it nowhere",
}  # fmt: skip

# Keys taken as they are.
PLAIN = ("dtype", "out_dtype", "order", "seed", "heads", "chat_template", "output", "rank", "repo_id")


def entry(value: Any) -> Any:
    """``models`` may hold plain strings."""
    return {"model": value} if isinstance(value, str) else value


def as_list(value: Any) -> list[Any]:
    """A list, or nothing where the file holds something else there."""
    return value if isinstance(value, list) else []


def _list(value: Any) -> Any:
    return [value] if isinstance(value, str) else _or_nothing([])(value)


def _or_nothing(nothing: Any) -> Callable[[Any], Any]:
    """A key with nothing behind it (its lines may be commented out) holds ``nothing``."""
    return lambda value: nothing if value is None else value


_Settings = Annotated[dict[str, Any], BeforeValidator(_or_nothing({}))]


class _Keys(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, defer_build=True)


class Entry(_Keys):
    model: str
    adapter: str | None = None
    parameters: _Settings = Field(default_factory=dict)


class SourceKeys(Entry):
    layer_range: Annotated[list[int], Field(min_length=2, max_length=2)] | None = None


class SliceKeys(_Keys):
    sources: list[Annotated[SourceKeys, BeforeValidator(entry)]] = Field(min_length=1)
    base_model: str | None = None
    parameters: _Settings = Field(default_factory=dict)


_Models = list[Annotated[Entry, BeforeValidator(entry)]]


class ModuleKeys(_Keys):
    models: Annotated[_Models, Field(min_length=1)] | None = None
    slices: Annotated[list[SliceKeys], Field(min_length=1)] | None = None
    parameters: _Settings = Field(default_factory=dict)


class MethodKeys(_Keys):
    filter: str
    merge_method: str
    parameters: _Settings = Field(default_factory=dict)


class File(_Keys):
    """The keys of a recipe file."""

    base_model: str | None = None
    merge_method: str
    models: Annotated[_Models, Field(min_length=1)] | None = None
    slices: Annotated[list[SliceKeys], Field(min_length=1)] | None = None
    modules: Annotated[dict[str, ModuleKeys], Field(min_length=1)] | None = None
    methods: Annotated[list[MethodKeys], BeforeValidator(_or_nothing([]))] = Field(default_factory=list)
    parameters: _Settings = Field(default_factory=dict)
    dtype: Dtype | None = None
    out_dtype: Dtype | None = None
    order: Literal["given", "shuffle"] = "given"
    seed: int | None = Field(None, ge=0)
    heads: Literal["base", "drop", "per-task"] | None = None
    copied: Annotated[list[str], BeforeValidator(_list)] = Field(default_factory=list, alias="copy")
    output: Literal["model", "adapter"] = "model"
    rank: int | None = Field(None, ge=1)
    tokenizer_source: Any = None  # see ``recipe.tokenizer``
    tokenizer: Any = None
    chat_template: Annotated[str, AfterValidator(known_template)] | None = None
    repo_id: Annotated[str, AfterValidator(refs.parse_repo_id)] | None = None
    name: str | None = None


def known_keys(path: YamlPath) -> list[str]:
    """The keys there are where ``path`` stands."""
    model: type[BaseModel] = File
    for part in path[:-1]:
        if part in _INSIDE and isinstance(part, str):
            model = _INSIDE[part]
    return [field.alias or name for name, field in model.model_fields.items()]


_INSIDE: dict[str | int, type[BaseModel]] = {
    "models": Entry, "slices": SliceKeys, "sources": SourceKeys, "modules": ModuleKeys, "methods": MethodKeys,
}  # fmt: skip


def unknown(key: str, known: Sequence[str]) -> str:
    """A key that is none, in a sentence."""
    if key in MERGEKIT_ONLY:
        why = MERGEKIT_ONLY[key]
        return f"{key!r} is a mergekit key that dopkit does not support" + (f": {why}" if why else "")
    return unknown_key(key, known)


def wrong(detail: ErrorDetails) -> str:
    """A value that is none for its key, in a sentence."""
    where = detail["loc"]
    if len(where) >= 2 and where[-2] in ("models", "sources"):
        return "a model is a reference (user/name or ./folder), or a mapping with the key 'model'"
    if "layer_range" in where:
        return "layer_range: two whole numbers, the first layer and the one behind the last: [0, 16]"
    return wrong_value(detail)
