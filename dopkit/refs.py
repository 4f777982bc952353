"""References to models: ``user/name``, ``user/name@revision``, ``./folder``, ``base+adapter``, the name of a stage.

What kind a reference is gets decided here, once, by its spelling; nobody guesses by looking at the disk or
asking the Hub. A folder starts with ``./``, ``../``, ``/`` or ``~``; anything else is a Hub repository.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

_REPO = re.compile(r"(?:\w[\w.-]*/)?\w[\w.-]*", re.ASCII)
_STAGE = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_LONGEST_NAME = 96  # characters of a repository's own name
_FOLDER_STARTS = ("./", "../", "/", "~")
# What git forbids in a branch or tag, as far as it could also lead a path astray.
_NO_REVISION = re.compile(r"[ ~^:?*\[\\]|\.\.|//|^[-./]|[./]$")


@dataclass(frozen=True)
class ModelRef:
    """One model. ``text`` is how it was written.

    ``folder`` is set for a local one, ``repo`` for one on the Hub, ``stage`` for one that the same file merges.
    """

    text: str
    repo: str | None = None
    revision: str | None = None
    folder: Path | None = None  # absolute
    adapter: ModelRef | None = None
    part: str = ""  # not the model that is there, but the tensors beside it that this parameter of a method names
    stage: str | None = None

    def __str__(self) -> str:
        return self.text

    @property
    def pinned(self) -> bool:
        """Whether the reference can only ever mean one state of the repository."""
        return self.revision is not None and _COMMIT.fullmatch(self.revision) is not None

    @property
    def local(self) -> bool:
        """Whether the model, or its adapter, is a folder that nobody else has."""
        return self.folder is not None or (self.adapter is not None and self.adapter.local)

    @property
    def key(self) -> tuple[str, ...]:
        """Equal for two spellings of one model."""
        place = str(self.folder) if self.folder is not None else f"{self.repo}@{self.revision or 'main'}"
        if self.stage is not None:
            place = f"stage {self.stage}"
        own = (place, "", self.part) if self.part else (place,)
        return own if self.adapter is None else (*own, *self.adapter.key)

    @property
    def short(self) -> str:
        """The text, with a commit cut to seven digits."""
        if self.adapter is not None:
            return f"{self.without_adapter.short}+{self.adapter.short}"
        return f"{self.repo}@{self.revision[:7]}" if self.revision is not None and self.pinned else self.text

    @property
    def name(self) -> str:
        """The repository, or the last part of the folder: enough for a reader, and no path of this machine."""
        own = self.repo or self.stage or (self.folder.name if self.folder else self.text)
        return self._with_adapter(own, "" if self.adapter is None else self.adapter.name)

    @property
    def parts(self) -> tuple[ModelRef, ...]:
        """The model, or the base and the adapter."""
        return (self,) if self.adapter is None else (self.without_adapter, self.adapter)

    @property
    def without_adapter(self) -> ModelRef:
        """The base that the adapter is applied to; the model itself where there is none."""
        if self.adapter is None:
            return self
        base = (
            f"{self.repo}@{self.revision}"
            if self.revision
            else self.repo or self.text.removesuffix(f"+{self.adapter.text}")
        )
        return replace(self, text=base, adapter=None)

    def with_adapter(self, adapter: ModelRef) -> ModelRef:
        """This model with an adapter applied. Raises ValueError when either has one already."""
        text = f"{self.text}+{adapter.text}"
        if self.adapter is not None or adapter.adapter is not None:
            raise ValueError(f"{text!r} names an adapter of an adapter")
        return replace(self, text=text, adapter=adapter)

    def at(self, commit: str) -> ModelRef:
        """The same Hub repository at one commit (40 hexadecimal digits)."""
        text = self._with_adapter(f"{self.repo}@{commit}", str(self.adapter))
        return replace(self, text=text, revision=commit)

    def written_from(self, folder: Path) -> str:
        """How a recipe that lies in ``folder`` refers to this model."""
        if self.folder is not None:
            path = os.path.relpath(self.folder, folder).replace(os.sep, "/")
            return path if path in (".", "..") or path.startswith("../") else f"./{path}"
        if self.adapter is None:
            return self.text
        return f"{self.without_adapter.text}+{self.adapter.written_from(folder)}"

    def written_in_parts(self, folder: Path) -> tuple[str, str | None]:
        """The same as a model and the adapter beside it, where one text cannot hold both: behind a folder's name."""
        if self.folder is None or self.adapter is None:
            return self.written_from(folder), None
        return self.without_adapter.written_from(folder), self.adapter.written_from(folder)

    def _with_adapter(self, base: str, adapter: str) -> str:
        return base if self.adapter is None else f"{base}+{adapter}"


def parse(text: str, root: Path, stages: Collection[str] = ()) -> ModelRef:
    """Read a reference; a relative folder is meant from ``root``. Raises ValueError with what is wrong.

    What is called like one of ``stages`` is that one, and no Hub repository.

    ``..`` is taken back by its spelling, without a look at what a symbolic link points to. A folder's name may
    hold a ``+`` or an ``@``, so an adapter can only be written behind a Hub repository; see ``with_adapter``.
    """
    text = text.strip()
    if not text.isprintable():
        raise ValueError(f"{text!r} holds characters that no model's name has")
    if text.startswith(_FOLDER_STARTS) or text in (".", ".."):
        return ModelRef(text, folder=_folder(text, root))
    base, plus, adapter = text.partition("+")
    model = ModelRef(base.rstrip(), stage=base.rstrip()) if base.rstrip() in stages else _parse_repo(base.rstrip())
    if not plus:
        return model
    applied = parse(adapter, root)
    if applied.adapter is not None:
        raise ValueError(f"{text!r} names an adapter of an adapter")
    return replace(model, text=text, adapter=applied)


def parse_stage(text: str) -> str:
    """The name of a stage, which may be that of a folder as well. Raises ValueError with what is wrong."""
    if not _STAGE.fullmatch(text) or len(text) > _LONGEST_NAME:
        raise ValueError(f"{text!r} is no name for a stage: letters and digits, behind the first also `_`, `-` and `.`")
    return text


def parse_repo_id(text: str) -> str:
    """The name of a repository to write to: ``user/name``. Raises ValueError with what is wrong."""
    ref = None if text.startswith(_FOLDER_STARTS) or "+" in text or "@" in text else _parse_repo(text)
    if ref is None or ref.repo is None or "/" not in ref.repo or len(ref.repo.split("/")[1]) > _LONGEST_NAME:
        raise ValueError(f"{text!r} is not the name of a repository to write to (user/name)")
    return ref.repo


def _folder(text: str, root: Path) -> Path:
    try:
        path = Path(text).expanduser()
    except RuntimeError:
        raise ValueError(f"{text!r}: there is no such user's home folder") from None
    return Path(os.path.normpath(root.absolute() / path))


def _parse_repo(text: str) -> ModelRef:
    repo, at, revision = text.partition("@")
    if not _REPO.fullmatch(repo) or ".." in repo or "--" in repo or repo.endswith((".", "-", ".git")):
        raise ValueError(
            f"{text!r} is neither a Hub repository (user/name or user/name@revision) nor a folder (./folder)"
        )
    if at and (not revision or _NO_REVISION.search(revision)):
        raise ValueError(f"{text!r}: {revision!r} is not a revision (a branch, tag or commit)")
    return ModelRef(text, repo=repo, revision=revision or None)
