"""What a recipe says of the tokenizer: whose it is, where single tokens take their rows from, how long it gets.

mergekit's words. Knows no tokens and no files; what is in a tokenizer is read by ``vocabulary``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dopkit import refs
from dopkit.recipe.document import Path as YamlPath
from dopkit.recipe.wording import judge, wrong_value
from dopkit.refs import ModelRef

Whose = Literal["union", "base", "first"] | ModelRef
_WHOSE: Mapping[str, Whose] = {"union": "union", "base": "base", "first": "first"}


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class RowSource(_Frozen):
    """Where the row of a token comes from: the token itself, or another one, of a model; without a model it is zero."""

    model: ModelRef | None = None
    token: str | None = None
    token_id: int | None = None

    def to_data(self, folder: Path) -> str | dict[str, Any]:
        if self.model is None:
            return {"kind": "zero"}
        model = self.model.written_from(folder)
        if self.token is not None:
            return {"kind": "model_token", "model": model, "token": self.token}
        if self.token_id is not None:
            return {"kind": "model_token", "model": model, "token_id": self.token_id}
        return model


class TokenSettings(_Frozen):
    """One token: where its row comes from in models that lack it; with ``force`` in all of them."""

    source: RowSource | None = None
    force: bool = False

    def to_data(self, folder: Path) -> dict[str, Any]:
        source = {} if self.source is None else {"source": self.source.to_data(folder)}
        return {**source, "force": True} if self.force else source


class TokenizerSettings(_Frozen):
    """The tokenizer of the result: of ``union``, ``base``, ``first``, or of a model."""

    source: Whose = "union"
    tokens: dict[str, TokenSettings] = Field(default_factory=dict)
    pad_to_multiple_of: int | None = None

    @property
    def model(self) -> ModelRef | None:
        """The model that is named as the source."""
        return self.source if isinstance(self.source, ModelRef) else None

    @property
    def row_models(self) -> Iterator[ModelRef]:
        """The models that rows of single tokens are taken from."""
        for token in self.tokens.values():
            if token.source is not None and token.source.model is not None:
                yield token.source.model

    def with_refs(self, pinned: Callable[[ModelRef], ModelRef]) -> TokenizerSettings:
        """The same with every reference as ``pinned`` gives it."""
        tokens = {}
        for name, token in self.tokens.items():
            own = token.source
            if own is not None and own.model is not None:
                own = own.model_copy(update={"model": pinned(own.model)})
            tokens[name] = token.model_copy(update={"source": own})
        source = pinned(self.source) if isinstance(self.source, ModelRef) else self.source
        return self.model_copy(update={"source": source, "tokens": tokens})

    def to_data(self, folder: Path) -> str | dict[str, Any]:
        """As YAML data for a recipe that lies in ``folder``: one word where it says nothing more."""
        source = self.source.written_from(folder) if isinstance(self.source, ModelRef) else self.source
        if not self.tokens and self.pad_to_multiple_of is None:
            return source
        data: dict[str, Any] = {"source": source}
        if self.tokens:
            data["tokens"] = {name: token.to_data(folder) for name, token in self.tokens.items()}
        if self.pad_to_multiple_of is not None:
            data["pad_to_multiple_of"] = self.pad_to_multiple_of
        return data


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _SourceFile(_Strict):
    kind: Literal["zero", "model_token"]
    model: str | None = None
    token: str | None = None
    token_id: int | None = Field(None, ge=0)


class _TokenFile(_Strict):
    source: str | _SourceFile | None = None
    force: bool = False


class _TokenizerFile(_Strict):
    source: str = "union"
    tokens: dict[str, _TokenFile] | None = None
    pad_to_multiple_of: int | None = Field(None, ge=1)


def read_tokenizer(
    data: Mapping[str, Any],
    folder: Path,
    known: Sequence[tuple[str, ...]],
    add: Callable[[YamlPath, str], None],
    stages: Collection[str] = (),
) -> TokenizerSettings | None:
    """The settings in a recipe's ``data``, relative folders meant from ``folder``; None when it has none, or is wrong.

    ``known`` are the keys of the models that it merges, and ``stages`` the names of other documents. Every problem goes
    to ``add`` with its place.
    """
    old, new = data.get("tokenizer_source"), data.get("tokenizer")
    if old is not None and new is not None:
        add(("tokenizer_source",), "'tokenizer_source' and 'tokenizer' are two words for one thing: keep one")
        return None
    key, value = ("tokenizer_source", old) if new is None else ("tokenizer", new)
    if value is None:
        return None
    if isinstance(value, str):
        return _Reading(folder, known, lambda where, what: add((key,), what), stages).settings({"source": value})
    if key == "tokenizer_source" or not isinstance(value, dict):
        more = ", or a mapping" if key == "tokenizer" else ""
        add((key,), f"{key}: is union, base, first or a model{more}")
        return None
    return _Reading(folder, known, lambda where, what: add((key, *where), what), stages).settings(value)


class _Reading:
    """One reading of the mapping, its problems told as they are found."""

    def __init__(
        self,
        folder: Path,
        known: Sequence[tuple[str, ...]],
        add: Callable[[YamlPath, str], None],
        stages: Collection[str],
    ) -> None:
        self._folder, self._known, self._add, self._fine = folder, known, add, True
        self._stages = stages

    def settings(self, value: Mapping[str, Any]) -> TokenizerSettings | None:
        try:
            file = _TokenizerFile.model_validate(value)
        except ValidationError as error:
            for path, what in judge(error, _keys, set(), wrong=_wrong):
                self._add(_without_kinds(path), what)
            return None
        source = self._whose(file.source)
        tokens = {}
        for name, token in (file.tokens or {}).items():
            own = self._row_source(token.source, ("tokens", name, "source"))
            if token.force and token.source is None:
                self._problem(("tokens", name, "force"), "'force' needs a source: whose row all models are to take")
            tokens[name] = TokenSettings(source=own, force=token.force)
        if not self._fine or source is None:
            return None
        return TokenizerSettings(source=source, tokens=tokens, pad_to_multiple_of=file.pad_to_multiple_of)

    def _whose(self, value: str) -> Whose | None:
        if value in _WHOSE:
            return _WHOSE[value]
        return self._ref(value, ("source",))

    def _row_source(self, value: str | _SourceFile | None, path: YamlPath) -> RowSource | None:
        if value is None:
            return None
        if isinstance(value, str):
            return RowSource(model=self._merged(value, path))
        given = [key for key in ("model", "token", "token_id") if getattr(value, key) is not None]
        if value.kind == "zero":
            if given:
                self._problem(path, f"{given[0]!r} has no effect: a row of zeros comes from no model")
            return RowSource()
        if value.model is None or len(given) != 2:
            self._problem(path, "kind: model_token needs a 'model', and either a 'token' or a 'token_id' of it")
            return None
        return RowSource(model=self._merged(value.model, path), token=value.token, token_id=value.token_id)

    def _merged(self, text: str, path: YamlPath) -> ModelRef | None:
        ref = self._ref(text, path)
        if ref is not None and ref.key not in self._known:
            self._problem(path, f"{ref} is no model of the recipe, so it has no row to give")
        return ref

    def _ref(self, text: str, path: YamlPath) -> ModelRef | None:
        try:
            ref = refs.parse(text, self._folder, self._stages)
        except ValueError as error:
            self._problem(path, str(error))
            return None
        if ref.stage is not None and ref.key not in self._known:
            self._problem(path, f"{ref} is a stage and none of the models that are merged here")
        return ref

    def _problem(self, path: YamlPath, what: str) -> None:
        self._fine = False
        self._add(path, what)


def _keys(path: YamlPath) -> list[str]:
    """The keys there are where ``path`` stands."""
    model: type[BaseModel] = _TokenizerFile
    if path[0] == "tokens":
        model = _SourceFile if "source" in path[2:-1] else _TokenFile
    return list(model.model_fields)


def _without_kinds(path: YamlPath) -> YamlPath:
    """Without the names of the kinds that pydantic tried where there are several."""
    return tuple(part for part in path if part not in ("str", "_SourceFile"))


def _wrong(detail: Any) -> str:
    if "source" in detail["loc"][2:] and detail["type"] in ("string_type", "model_type", "dataclass_type"):
        return "source: is a model, {kind: zero}, or {kind: model_token, model: ..., token: ...}"
    return wrong_value(detail)


# What `chat_template` may name; anything else is the template itself.
TEMPLATES = (
    "auto",
    "alpaca",
    "chatml",
    "exaone",
    "llama3",
    "mistral",
)


def known_template(text: str) -> str:
    """The value of ``chat_template``. Raises ValueError for what is neither a known name nor a template."""
    if text not in TEMPLATES and "{{" not in text and "{%" not in text:
        known = ", ".join(TEMPLATES)
        raise ValueError(f"chat_template: {text!r} is no template that is known here ({known}), nor a Jinja text")
    return text
