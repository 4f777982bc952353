"""From the tokenizers of all models to one vocabulary, or to every reason why there is none."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from dopkit.checkpoints import Checkpoint
from dopkit.errors import DopkitError, Problem
from dopkit.planning.matching import Model
from dopkit.recipe import Recipe
from dopkit.recipe.tokenizer import TokenizerSettings
from dopkit.refs import ModelRef
from dopkit.roles import Role
from dopkit.vocabulary import tensors as found_tensors
from dopkit.vocabulary.checkpoint import Names, VocabularyCheckpoint, gathered_specs
from dopkit.vocabulary.comparing import difference
from dopkit.vocabulary.describing import left_out, row_notes, summary
from dopkit.vocabulary.dressing import dress
from dopkit.vocabulary.reading import Reader, TokenizerFiles, Vocabulary, files_of, tokenizer_files
from dopkit.vocabulary.rows import Member, Piece, Setting, Target, pieces, unchanged
from dopkit.vocabulary.side_files import SideFiles
from dopkit.vocabulary.tensors import Tensors
from dopkit.vocabulary.uniting import United, unite

_KEYS = "Say whose tokens the result gets: `tokenizer: base`, `tokenizer: union`, or a model's name there."
_RESAVE = "Save it with transformers' AutoTokenizer, which writes a tokenizer.json."


@dataclass
class Alignment:
    """The models as the plan sees them, and how to make them so."""

    models: dict[ModelRef, Model]
    notes: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    order: Sequence[ModelRef] = ()
    pieces: dict[ModelRef, Sequence[Piece]] = field(default_factory=dict)
    names: dict[ModelRef, Mapping[str, Names]] = field(default_factory=dict)
    side_files: dict[ModelRef, SideFiles] = field(default_factory=dict)

    def wrap(self, checkpoints: Mapping[ModelRef, Checkpoint]) -> dict[ModelRef, Checkpoint]:
        """Opened models with the rows and files of the common vocabulary; those that have them stay as they are."""
        members = [checkpoints[ref] for ref in self.order]
        wrapped: dict[ModelRef, Checkpoint] = {}
        for ref in {**self.pieces, **self.side_files}:
            own, names = self.pieces.get(ref, ()), self.names.get(ref, {})
            wrapped[ref] = VocabularyCheckpoint(checkpoints[ref], members, own, names, self.side_files.get(ref, {}))
        return {**checkpoints, **wrapped}


def align(recipe: Recipe, checkpoints: Mapping[ModelRef, Checkpoint], models: Mapping[ModelRef, Model]) -> Alignment:
    """Bring the models of a pinned recipe to one vocabulary, the one that it asks for or the one that they have.

    Nothing is fetched of tokenizers that are known to be equal. Problems are in the result.
    """
    result = Alignment(dict(models))
    order = [ref for ref in recipe.refs if ref in models]
    work = _Aligning(recipe, [checkpoints[ref] for ref in order], [models[ref] for ref in order], result)
    result.order = order
    try:
        work.run()
        if not result.problems:
            dress(recipe, work.checkpoints, work.donor, work.united, work.rows, result)
    except DopkitError as error:
        result.problems += error.as_problems()
    return result


class _Aligning:
    """One alignment in the making. Models are counted, the donor first."""

    def __init__(
        self, recipe: Recipe, checkpoints: Sequence[Checkpoint], models: Sequence[Model], result: Alignment
    ) -> None:
        self.recipe, self.checkpoints, self.models, self.result = recipe, checkpoints, models, result
        self.reader = Reader()
        self.files = [tokenizer_files(checkpoint) for checkpoint in checkpoints]
        self.donor: Vocabulary | None = None
        self.united: United | None = None
        self.rows: int | None = None  # of the result, where they are not the donor's own

    def run(self) -> None:
        settings = self.recipe.tokenizer
        for checkpoint, files in zip(self.checkpoints, self.files, strict=True):
            if files is None and not checkpoint.complete and any(self.files):
                what = "offline, and its tokenizer is not in the cache: taken to have the same tokens"
                self.result.notes.append(f"{checkpoint.ref.short}: {what}")
        if settings is not None:
            self._as_asked(settings)
        elif any(self.files) and not (self._same_bytes() and self._same_rows()):
            self._as_they_are()

    def _same_bytes(self) -> bool:
        there = [one for one in self.files if one is not None]
        return all(one.equal(there[0]) for one in there[1:])

    def _same_rows(self) -> bool:
        """Whether no embedding or head is longer in one model than in another. Position embeddings count as well."""
        lengths: dict[str, set[int]] = {}
        for model in self.models:
            for canonical, name in model.names.items():
                if model.role(name) in (Role.EMBEDDING, Role.HEAD):
                    lengths.setdefault(canonical, set()).add(model.specs[name].rows)
        return all(len(found) == 1 for found in lengths.values())

    def _as_they_are(self) -> None:
        """No word of the recipe: the tokens must be the same; rows beyond them may differ."""
        tensors = found_tensors.find(self.models)
        if not tensors.names[0] or not tensors.merged(self.recipe):
            return
        known = self._vocabularies(_KEYS)
        if self.result.problems or known is None:
            return
        base = known[0]
        for model, own in zip(self.models[1:], known[1:], strict=True):
            if what := difference(base, own):
                self.result.problems.append(Problem(model.source.ref.short, what, _KEYS))
        rows = [tensors.rows(index) for index in range(len(self.models))]
        if self.result.problems or len({one for one in rows if one is not None}) < 2:
            return
        self._all_have_rows(base, tensors)
        if not self.result.problems:
            self._gather(Target(base.ids, rows[0] or 0), known, tensors, {})

    def _all_have_rows(self, base: Vocabulary, tensors: Tensors) -> None:
        """That the models which are shorter than others lack no token's row."""
        by_id = sorted(base.ids, key=lambda token: base.ids[token])
        for index, model in enumerate(self.models):
            rows = tensors.rows(index)
            if rows is not None and rows < base.length:
                token = next(token for token in by_id if base.ids[token] >= rows)
                what = f"has no row for its token {token!r} (id {base.ids[token]}): its embedding has {rows:,} rows"
                self.result.problems.append(Problem(model.source.ref.short, what, _KEYS))

    def _as_asked(self, settings: TokenizerSettings) -> None:
        tensors = found_tensors.find(self.models)
        if not tensors.names[0]:
            what = f"tokenizer: nothing in {self.models[0].source.ref.short} has a row for every token"
            self.result.problems.append(Problem("", what, "Leave the key out."))
            return
        known = self._vocabularies(_RESAVE)
        if self.result.problems:
            return
        if known is None:
            self._unreadable(settings)
            return
        self.donor = known[0]
        origin, at = self._origin(settings, known)
        if origin is None:
            return
        others = known if settings.source == "union" else []
        self.united = unite(origin, others, settings.tokens, known)
        self.result.problems += self.united.problems
        rows = _row_settings(settings, self.recipe, known, self.united, self.result.problems, tensors)
        if self.result.problems:
            return
        length = self.united.length
        if settings.pad_to_multiple_of is not None:
            total = -(-length // settings.pad_to_multiple_of) * settings.pad_to_multiple_of
        else:
            total = max(length, (tensors.rows(at) or 0) if at is not None else 0)
        self.result.notes.append(summary(settings, self.united, len(self.models), total))
        self._gather(Target(self.united.ids, total), known, tensors, rows)
        if settings.source != "union":
            self.result.notes += left_out(self.models, known, self.united.ids)

    def _unreadable(self, settings: TokenizerSettings) -> None:
        """Tokenizers that nobody can look into, but all the same."""
        main = next(one.main for one in self.files if one is not None) if any(self.files) else None
        if main is None:
            self.result.problems.append(Problem("", "tokenizer: no model of the recipe has one", "Leave the key out."))
        elif settings.model is not None or settings.tokens or settings.pad_to_multiple_of or not self._same_rows():
            shown = self.models[0].source.ref.short
            what = f"its vocabulary is in {main} alone, which cannot be read here"
            self.result.problems.append(Problem(shown, what, _RESAVE))

    def _origin(self, settings: TokenizerSettings, known: Sequence[Vocabulary]) -> tuple[Vocabulary | None, int | None]:
        """Whose tokenizer is written, and which of the models that is, if it is one of them."""
        at: int | None = 0
        if settings.source == "first":
            first = self.recipe.models[0].model.key
            at = next(index for index, model in enumerate(self.models) if model.source.ref.key == first)
        elif settings.model is not None:
            key = settings.model.key
            at = next((index for index, model in enumerate(self.models) if model.source.ref.key == key), None)
        if at is not None:
            return known[at], at
        assert settings.model is not None
        files = files_of(settings.model)
        origin = self.reader.read(files)
        if origin is None:
            what = f"its vocabulary is in {files.main} alone, which cannot be read here"
            self.result.problems.append(Problem(files.shown, what, _RESAVE))
        return origin, None

    def _vocabularies(self, remedy: str) -> list[Vocabulary] | None:
        """Of every model, one without a tokenizer counted as having the first's; None when they are all of one
        kind that cannot be read, and equal."""
        base = next((one for one in self.files if one is not None), None)
        if base is None:
            return None
        read: dict[int, Vocabulary | None] = {}
        by_kind = sorted(range(len(self.files)), key=lambda index: (_unreadable(self.files[index]), index))
        for index in by_kind:
            if (files := self.files[index]) is not None:
                read[index] = self.reader.read(files)
        opaque = [index for index, one in read.items() if one is None]
        for index in opaque:
            files = self.files[index]
            if files is not None and not (len(opaque) == len(read) and files.equal(base)):
                what = f"its tokens cannot be compared: they are in {files.main} alone, which cannot be read here"
                self.result.problems.append(Problem(self.models[index].source.ref.short, what, _RESAVE + " " + remedy))
        if opaque or self.result.problems:
            return None
        first = next(one for _, one in sorted(read.items()) if one is not None)
        return [read.get(index) or first for index in range(len(self.files))]

    def _gather(
        self, target: Target, known: Sequence[Vocabulary], tensors: Tensors, settings: Mapping[str, Setting]
    ) -> None:
        """Put every model's rows in the order of the target."""
        lengths = [tensors.rows(index) for index in range(len(self.models))]
        members = [Member(own.ids, rows or 0) for own, rows in zip(known, lengths, strict=True)]
        base = 0 if self.recipe.base_model is not None else None
        if target.rows != lengths[0]:
            self.rows = target.rows
        for index, model in enumerate(self.models):
            if lengths[index] is None:
                continue
            found = pieces(target, members, index, base, 0, settings)
            if unchanged(index, members[index].rows, found):
                continue
            if tensors.problems:
                self.result.problems += tensors.problems
                return
            names = tensors.of(index)
            self.result.notes += row_notes(self.models, index, members, target, found)
            ref = next(ref for ref, one in self.result.models.items() if one is model)
            self.result.pieces[ref], self.result.names[ref] = found, names
            self.result.models[ref] = _as_planned(model, names, found)


def _unreadable(files: TokenizerFiles | None) -> bool:
    return files is not None and not str(files.main).endswith((".json", ".txt"))


def _as_planned(model: Model, names: Mapping[str, Names], found: Sequence[Piece]) -> Model:
    """The model with its rows as they will be."""
    facts = hashlib.sha256(repr((sorted(names.items()), found)).encode()).hexdigest()
    source = replace(model.source, state=f"{model.source.state}:rows {facts}", gathered=frozenset(names))
    return replace(model, source=source, specs={**model.specs, **gathered_specs(model.specs, names, found)})


def _row_settings(
    settings: TokenizerSettings,
    recipe: Recipe,
    known: Sequence[Vocabulary],
    united: United,
    problems: list[Problem],
    tensors: Tensors,
) -> dict[str, Setting]:
    """Where the recipe says that single tokens take their rows from; what cannot be is added to ``problems``."""
    result: dict[str, Setting] = {}
    keys = [model.source.ref.key for model in tensors.models]
    for token, own in settings.tokens.items():
        if own.source is None:
            continue
        if own.source.model is None:
            result[token] = Setting(None, own.force)
            continue
        shown_ref, key = own.source.model.short, own.source.model.key
        at = keys.index(key)
        named = own.source.token if own.source.token is not None else token
        row = own.source.token_id if own.source.token_id is not None else known[at].ids.get(named)
        if row is None or row >= (tensors.rows(at) or 0):
            where = f"row {row}" if own.source.token_id is not None else f"a row for {named!r}"
            problems.append(Problem("", f"tokenizer: {token!r} is to have {where} of {shown_ref}, which has none"))
            continue
        result[token] = Setting((at, row), own.force)
    return result
