"""Data as named columns that are read in batches: npz, parquet, a folder of class folders, a data set on the Hub.

Knows no task: what the columns hold is judged elsewhere. What is not installed is asked for when it is needed.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from itertools import zip_longest
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from dopkit import hub
from dopkit.errors import EvaluationError, Problem
from dopkit.refs import ModelRef

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")
_CHUNK = 1 << 24

Batch = Mapping[str, Any]  # column to a sequence of values, which may be an array


class Table(ABC):
    """Named columns of some rows."""

    names: tuple[str, ...]

    @abstractmethod
    def rows(self, name: str) -> int:
        """How many values the column has."""

    @abstractmethod
    def chunks(self, columns: Sequence[str], size: int) -> Iterator[Batch]:
        """The columns from the first row on, in parts of ``size`` or whole; they must be of one length."""

    @abstractmethod
    def identity(self) -> str:
        """What tells this data from any other; independent of where it lies."""

    def batches(self, columns: Sequence[str], size: int, rows: int) -> Iterator[Batch]:
        """The first ``rows`` rows, at most ``size`` at a time."""
        for chunk in self.chunks(columns, size):
            length = min(len(chunk[columns[0]]), rows)
            for start in range(0, length, size):
                yield {name: values[start : min(start + size, length)] for name, values in chunk.items()}
            rows -= length
            if rows == 0:
                return


def optional(module: str, what: str) -> Any:
    """A module that only evaluation needs. Raises EvaluationError with the command that brings it."""
    try:
        return import_module(module)
    except ImportError:
        package = {"PIL": "Pillow"}.get(module.partition(".")[0], module.partition(".")[0])
        raise EvaluationError(f"{what} needs {package}", [Problem("", "", "pip install 'dopkit[eval]'")]) from None


class Arrays(Table):
    """An npz file: one array a column. An array is decompressed whole when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._open() as arrays:
            self.names = tuple(arrays.files)

    def rows(self, name: str) -> int:
        array = self._array(name)
        return int(array.shape[0]) if array.ndim else 0

    def chunks(self, columns: Sequence[str], size: int) -> Iterator[Batch]:
        yield {name: self._array(name) for name in columns}

    def identity(self) -> str:
        return file_digest(self.path)

    @contextmanager
    def _open(self) -> Iterator[Any]:
        try:
            with self.path.open("rb") as stream, zipfile.ZipFile(stream), np.load(_rewound(stream)) as arrays:
                yield arrays
        except _UNREADABLE as error:
            raise EvaluationError(f"cannot read {self.path}: {error}") from None

    def _array(self, name: str) -> np.ndarray[Any, Any]:
        with self._open() as arrays:
            array = arrays[name]
        if not isinstance(array, np.ndarray):  # the bytes of a member that is something else
            raise EvaluationError(f"cannot read {self.path}: {name} is no array")
        return array


# Python objects, which may be code (ValueError), broken archives, and those in a form that zipfile does not know.
_UNREADABLE = (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


def _rewound(stream: BinaryIO) -> BinaryIO:
    stream.seek(0)
    return stream


class Parquet(Table):
    """A parquet file, read some row groups at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._parquet = optional("pyarrow.parquet", f"{path.name}, a parquet file,")
        with self._open() as file:
            self.names = tuple(file.schema_arrow.names)
            self._rows = int(file.metadata.num_rows)

    def _open(self) -> Any:
        try:
            return self._parquet.ParquetFile(self.path)
        except (OSError, ValueError) as error:  # pyarrow's own errors are among these
            raise EvaluationError(f"cannot read {self.path}: {error}") from None

    def rows(self, name: str) -> int:
        return self._rows

    def chunks(self, columns: Sequence[str], size: int) -> Iterator[Batch]:
        with self._open() as file:
            batches = file.iter_batches(batch_size=size, columns=list(columns))
            while batch := self._next(batches):
                yield batch

    def _next(self, batches: Iterator[Any]) -> Batch:
        """The next batch, empty behind the last."""
        try:
            batch: Batch = next(batches).to_pydict()
        except StopIteration:
            return {}
        except (OSError, ValueError) as error:  # a page that is damaged
            raise EvaluationError(f"cannot read {self.path}: {error}") from None
        return batch

    def identity(self) -> str:
        return file_digest(self.path)


class ClassFolders(Table):
    """A folder with one folder of images for each class; columns ``image`` (paths) and ``label`` (folder names).

    The classes take turns, so that the first rows hold some of each.
    """

    names = ("image", "label")

    def __init__(self, path: Path) -> None:
        self.path = path
        classes = sorted(folder for folder in path.iterdir() if folder.is_dir() and not folder.name.startswith("."))
        files = [sorted(filter(_is_image, folder.rglob("*"))) for folder in classes]
        self._found = [
            (file, classes[index].name)
            for turn in zip_longest(*files)
            for index, file in enumerate(turn)
            if file is not None
        ]

    def rows(self, name: str) -> int:
        return len(self._found)

    def chunks(self, columns: Sequence[str], size: int) -> Iterator[Batch]:
        yield {name: [row[self.names.index(name)] for row in self._found] for name in columns}

    def identity(self) -> str:
        try:
            facts = [[file.relative_to(self.path).as_posix(), file_digest(file)] for file, _ in self._found]
        except OSError as error:  # a link that leads nowhere, say
            raise EvaluationError(f"cannot read {error.filename}: {error.strerror}") from None
        return digest(facts)


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGES and not path.is_dir()


class HubDataset(Table):
    """One split of a data set on the Hub, through the ``datasets`` package and its cache."""

    def __init__(self, ref: ModelRef, config: str | None, split: str) -> None:
        datasets = optional("datasets", f"{ref}, a data set on the Hub,")
        self._pinned = hub.pin_dataset(ref)
        self._facts = [config, split]
        try:
            self._data = datasets.load_dataset(ref.repo, config, split=split, revision=self._pinned.revision)
        except Exception as error:  # of several libraries
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise EvaluationError(f"cannot load the data set {ref}", [Problem("", first)]) from error
        self.names = tuple(self._data.column_names)

    def rows(self, name: str) -> int:
        return len(self._data)

    def chunks(self, columns: Sequence[str], size: int) -> Iterator[Batch]:
        wanted = self._data.select_columns(list(columns))
        for start in range(0, len(wanted), size):
            yield wanted[start : start + size]

    def identity(self) -> str:
        return digest([self._pinned.text, *self._facts])


def file_digest(path: Path) -> str:
    """sha256 of a file, as hexadecimal digits."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def digest(facts: Any) -> str:
    """sha256 of data, as hexadecimal digits."""
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
