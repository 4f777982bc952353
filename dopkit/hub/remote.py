"""A repository on the Hub as the place a push goes to: what it holds, and who may write there. Part of ``hub``.

Knows names, sizes and digests of files, not what they mean.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

from huggingface_hub import constants
from huggingface_hub.errors import LocalTokenNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

from dopkit.errors import HubError, Problem
from dopkit.hub import explain
from dopkit.hub.patience import explained, patiently
from dopkit.hub.reading import TIMEOUT, api

_CHUNK = 1 << 24
_LOGIN = "`hf auth login` with a token that may write, or set HF_TOKEN."


@dataclass(frozen=True)
class Target:
    """Where a push goes."""

    repo: str  # user/name
    private: bool  # if the repository is still to be made
    branch: str
    create_pr: bool
    message: str  # of the commit or the pull request: a title, and what may follow it


@dataclass(frozen=True)
class Remote:
    """What is there now: names to sizes and digests (sha256 of a large file, git's own hash of a small one)."""

    commit: str | None = None  # the head of the branch, or of main if there is no such branch; None: no repository
    branch_exists: bool = False
    files: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    private: bool = False


@dataclass(frozen=True)
class Outgoing:
    """A file to push."""

    name: str  # in the repository
    source: Path | bytes | None  # None: its bytes are no longer here, only on the server
    known_sha256: str | None = None  # hashed before
    known_size: int = 0  # of a file without source

    @cached_property
    def size(self) -> int:
        if self.source is None:
            return self.known_size
        return len(self.source) if isinstance(self.source, bytes) else self.source.stat().st_size

    @cached_property
    def sha256(self) -> str:
        return self.known_sha256 or self._digest("sha256", b"")

    @cached_property
    def git_oid(self) -> str:
        return self._digest("sha1", b"blob %d\0" % self.size) if self.source is not None else ""

    def is_at(self, remote: Remote) -> bool:
        """Whether the repository holds this very file."""
        size, digest = remote.files.get(self.name, (-1, ""))
        return size == self.size and digest == (self.sha256 if len(digest) == 64 else self.git_oid)

    def open(self) -> BinaryIO:
        assert self.source is not None, f"the bytes of {self.name} are no longer here"
        return io.BytesIO(self.source) if isinstance(self.source, bytes) else self.source.open("rb")

    def _digest(self, kind: str, prefix: bytes) -> str:
        digest = hashlib.new(kind, prefix, usedforsecurity=False)
        with self.open() as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
        return digest.hexdigest()


def look(target: Target) -> Remote:
    """The state of the repository that a push would meet. Raises HubError."""
    if constants.is_offline_mode():
        raise HubError(f"cannot push to {target.repo}: HF_HUB_OFFLINE is set", [Problem("", "", explain.ONLINE)])
    with explained(target.repo):
        try:
            return _read(target.repo, target.branch, branch_exists=True)
        except RepositoryNotFoundError:
            return Remote()
        except RevisionNotFoundError:
            return _read(target.repo, constants.DEFAULT_REVISION, branch_exists=False)


def look_at(target: Target, revision: str) -> Remote:
    """The repository at a commit, or at the branch of a pull request. Raises HubError."""
    with explained(target.repo):
        return _read(target.repo, revision, branch_exists=True)


def _read(repo: str, revision: str, branch_exists: bool) -> Remote:
    info = patiently(lambda: api().model_info(repo, revision=revision, files_metadata=True, timeout=TIMEOUT))
    if info.id != repo:
        raise HubError(f"{repo} has been renamed", [Problem("", "", f"Push to {info.id}.")])
    files = {
        file.rfilename: (file.size or 0, file.lfs.sha256 if file.lfs else file.blob_id or "")
        for file in info.siblings or []
    }
    return Remote(info.sha, branch_exists, files, bool(info.private))


def holds(remote: Remote, files: Iterable[Outgoing], stale: Collection[str] = ()) -> bool:
    """Whether every one of the files is there, and none of the ``stale`` names."""
    return remote.files.keys().isdisjoint(stale) and all(file.is_at(remote) for file in files)


def require_access(target: Target, remote: Remote) -> None:
    """Raise HubError unless the user's token may make this push, as far as it can be told before it is made."""
    repo = target.repo
    with explained(repo):
        try:
            who = patiently(lambda: api().whoami())
        except LocalTokenNotFoundError:
            raise HubError(f"cannot push to {repo}: there is no token", [Problem("", "", _LOGIN)]) from None
    if who.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise HubError(f"cannot push to {repo}: the token may only read", [Problem("", "", _LOGIN)])
    own = [who["name"], *(org["name"] for org in who.get("orgs", []))]
    if repo.split("/")[0].lower() not in [name.lower() for name in own]:
        if remote.commit is None:
            remedy = f"Choose a name under {' or '.join(own)}, or a token of its owner."
            raise HubError(f"cannot make {repo}: it is not under {who['name']}'s names", [Problem("", "", remedy)])
        if not target.create_pr:
            remedy = "--create-pr proposes the merge to its owner."
            raise HubError(f"cannot push to {repo}: it belongs to somebody else", [Problem("", "", remedy)])
    if target.private and remote.commit is not None and not remote.private:
        remedy = "Make it private in its settings on the Hub, or choose another name."
        raise HubError(f"cannot push to {repo}: it is public, and --private was asked for", [Problem("", "", remedy)])
