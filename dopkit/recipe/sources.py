"""The models that a recipe file names, one by one or as slices of layers. What is wrong becomes a problem."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from dopkit import refs
from dopkit.methods import suggestion
from dopkit.recipe.document import Path as YamlPath
from dopkit.recipe.judging import Given, Level
from dopkit.recipe.keys import as_list, entry
from dopkit.recipe.layers import LayerSource, Part, Slice

_FILES = (".safetensors", ".pt", ".bin", ".json")  # how no repository's name ends, and files' do
KEYS = ("models", "slices", "modules")  # exactly one of them says what is merged


class SourceReading:
    """Reads the models of one document; those that can be read. ``unread`` tells whether there are others.

    ``stages`` are the names of the documents that it may refer to, and ``uses`` where it does. Beside ``others`` a bare
    name is that of one.
    """

    def __init__(
        self,
        data: dict[str, Any],
        folder: Path,
        add: Callable[[YamlPath, str], None],
        stages: frozenset[str] = frozenset(),
        others: bool = False,
    ) -> None:
        self._data, self._folder, self._add = data, folder, add
        self._stages, self._others = stages, others
        self.uses: list[tuple[str, YamlPath]] = []
        self.unread = False
        self.parts: tuple[Part, ...] = ()
        self.given = list(self._all())

    def ref(self, value: Any, path: YamlPath) -> refs.ModelRef | None:
        """A reference, or a problem."""
        if not isinstance(value, str):
            return None
        try:
            ref = refs.parse(value, self._folder, self._stages)
        except ValueError as error:
            self._add(path, str(error))
            return None
        if ref.stage is not None:
            self.uses.append((ref.stage, path))
        elif self._others and ref.repo is not None and "/" not in ref.repo and ref.revision is None:
            hint = suggestion(ref.repo, sorted(self._stages)).strip()
            what = f"no document is called {ref.repo!r} ({hint or 'but ' + ', '.join(sorted(self._stages))})"
            self._add(path, f"{what}; write {ref.repo}@main for the Hub repository")
        return ref

    def beside(self, given: Given, parameter: str) -> refs.ModelRef | None:
        """What a parameter of a model names that is read beside it: a file, a folder or a repository."""
        level = given.levels[-1]
        if level.settings.get(parameter) is None:
            return None
        path, value = (*level.path, parameter), level.settings[parameter]
        ref = self.ref(value, path)
        if ref is None:
            return None
        if ref.adapter is not None:
            self._add(path, f"{value!r} names an adapter; {parameter} is one file, folder or repository")
        elif ref.repo is not None and ref.repo.endswith(_FILES):
            self._add(path, f"{value!r} is read as a repository of the Hub; write ./{value} for a file")
        return replace(ref, part=parameter)

    def distinct(self) -> list[Given]:
        """Every model once, where it is named first."""
        first: dict[tuple[str, ...], Given] = {}
        for given in self.given:
            first.setdefault(given.ref.key, given)
        return list(first.values())

    def _all(self) -> Iterator[Given]:
        if "modules" in self._data:
            modules = self._data["modules"]
            for name, module in (modules if isinstance(modules, dict) else {}).items():
                yield from self._part(str(name), module, ("modules", name))
        elif "slices" in self._data:
            yield from self._part(None, {"slices": self._data["slices"]}, ())
        else:
            yield from self._models(self._data.get("models"), ("models",), ())

    def _part(self, module: str | None, data: Any, path: YamlPath) -> Iterator[Given]:
        data = data if isinstance(data, dict) else {}
        own = _settings(data)
        around = (Level((*path, "parameters"), own, single=False),) if own else ()
        slices = []
        if data.get("slices") is None:
            given = list(self._models(data.get("models"), (*path, "models"), around))
            slices.append(Slice(sources=tuple(map(_source, given))))
            yield from given
        for number, piece in enumerate(as_list(data.get("slices"))):
            where = (*path, "slices", number)
            settings = _settings(piece)
            levels = (*around, Level((*where, "parameters"), settings, single=False)) if settings else around
            sources = piece.get("sources") if isinstance(piece, dict) else None
            given = list(self._models(sources, (*where, "sources"), levels))
            lengths = {one.layers and one.layers[1] - one.layers[0] for one in given}
            if len(lengths) > 1:
                self._add(where, "its sources have different numbers of layers")
            slices.append(Slice(sources=tuple(map(_source, given)), parameters=settings))
            yield from given
        self.parts += (Part(module=module, slices=tuple(slices), parameters=own),)

    def _models(self, models: Any, path: YamlPath, around: tuple[Level, ...]) -> Iterator[Given]:
        for index, value in enumerate(as_list(models)):
            data = entry(value)
            ref = self._model(data, (*path, index)) if isinstance(data, dict) else None
            if ref is None:
                self.unread = True  # told by whoever read the keys, or above
                continue
            levels = (*around, Level((*path, index, "parameters"), _settings(data)))
            yield Given((*path, index), index, ref, levels, self._range(data, (*path, index)))

    def _model(self, data: dict[str, Any], path: YamlPath) -> refs.ModelRef | None:
        """The model of an entry, with the adapter that stands beside it."""
        ref, adapter = self.ref(data.get("model"), path), self.ref(data.get("adapter"), (*path, "adapter"))
        if ref is None or adapter is None:
            return ref
        try:
            return ref.with_adapter(adapter)
        except ValueError as error:
            self._add((*path, "adapter"), str(error))
            return None

    def _range(self, source: dict[str, Any], path: YamlPath) -> tuple[int, int] | None:
        layers = source.get("layer_range")
        if not isinstance(layers, list) or len(layers) != 2 or not all(isinstance(layer, int) for layer in layers):
            return None
        start, stop = layers
        if not 0 <= start < stop:
            what = f"layer_range: [{start}, {stop}] holds no layers; it names the first and the one behind the last"
            self._add((*path, "layer_range"), what)
        return start, stop


def _source(given: Given) -> LayerSource:
    return LayerSource(model=given.ref, layers=given.layers, parameters=given.levels[-1].settings)


def _settings(data: Any) -> dict[str, Any]:
    own = data.get("parameters") if isinstance(data, dict) else None
    return own if isinstance(own, dict) else {}
