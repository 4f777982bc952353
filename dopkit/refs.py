"""References to models: ``user/name``, ``user/name@revision``, ``./folder``, ``base+adapter``.

What kind a reference is gets decided here, once, by its spelling; nobody guesses by looking at the disk or
asking the Hub. A folder starts with ``./``, ``../``, ``/`` or ``~``; anything else is a Hub repository.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

_REPO = re.compile(r"(?:[A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_FOLDER_STARTS = ("./", "../", "/", "~")


@dataclass(frozen=True)
class ModelRef:
    """One model. ``text`` is how it was written; ``folder`` is set for a local one, ``repo`` for one on the Hub."""

    text: str
    repo: str | None = None
    revision: str | None = None
    folder: Path | None = None
    adapter: ModelRef | None = None

    def __str__(self) -> str:
        return self.text

    @property
    def pinned(self) -> bool:
        """Whether the reference can only ever mean one state of the repository."""
        return self.revision is not None and _COMMIT.fullmatch(self.revision) is not None

    @property
    def key(self) -> tuple[str, str]:
        """Equal for two spellings of one model."""
        place = str(self.folder) if self.folder is not None else f"{self.repo}@{self.revision or ''}"
        return place, "" if self.adapter is None else self.adapter.text

    @property
    def short(self) -> str:
        """The text, with a commit cut to seven digits."""
        return f"{self.repo}@{self.revision[:7]}" if self.pinned and self.revision else self.text

    @property
    def name(self) -> str:
        """The repository, or the last part of the folder: enough for a reader, and no path of this machine."""
        return self.repo or (self.folder.name if self.folder else self.text)

    def at(self, commit: str) -> ModelRef:
        """The same Hub repository at one commit."""
        return replace(self, text=f"{self.repo}@{commit}", revision=commit)

    def written_from(self, folder: Path) -> str:
        """How a recipe that lies in ``folder`` refers to this model."""
        if self.folder is None:
            return self.text
        path = os.path.relpath(self.folder, folder).replace(os.sep, "/")
        return path if path.startswith("../") else f"./{path}"


def parse(text: str, root: Path) -> ModelRef:
    """Read a reference; a relative folder is meant from ``root``. Raises ValueError with what is wrong."""
    text = text.strip()
    if text.startswith(_FOLDER_STARTS) or text in (".", ".."):
        folder = Path(os.path.normpath(root.absolute() / Path(text).expanduser()))
        return ModelRef(text, folder=folder)
    if "+" in text:
        base, _, adapter = text.partition("+")
        return replace(parse(base, root), text=text, adapter=parse(adapter, root))
    repo, at, revision = text.partition("@")
    if not _REPO.fullmatch(repo) or ".." in repo or "--" in repo:
        raise ValueError(
            f"{text!r} is neither a Hub repository (user/name or user/name@revision) nor a folder (./folder)"
        )
    if at and (not revision or any(mark in revision for mark in " \t~^:?*[\\") or ".." in revision):
        raise ValueError(f"{text!r}: {revision!r} is not a revision (a branch, tag or commit)")
    return ModelRef(text, repo=repo, revision=revision or None)
