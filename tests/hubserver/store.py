"""Repos, commits, refs, files and LFS objects, held in memory; large objects are files in one folder.

Knows nothing of HTTP, users or access. A commit holds the whole table of its files, so
reading any revision is one look-up and a branch is one name.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from hubserver.wire import Content, Piece, Refusal

Source = bytes | Path


@dataclass(frozen=True)
class Blob:
    """One file's content. `oid` is git's name for what the repo holds: the bytes, or the LFS pointer."""

    size: int
    oid: str
    sha256: str | None = None  # set if and only if the file is LFS
    data: bytes | None = None
    path: Path | None = None
    xet: str | None = None  # the file's Xet hash, if it came that way

    def cut(self, start: int, stop: int) -> Content:
        if self.data is not None:
            return self.data[start:stop]
        assert self.path is not None
        return Piece(self.path, start, stop - start)

    def read(self) -> bytes:
        if self.data is not None:
            return self.data
        assert self.path is not None
        return self.path.read_bytes()

    @property
    def pointer_size(self) -> int:
        return len(lfs_pointer(self.sha256, self.size)) if self.sha256 else 0


@dataclass(frozen=True)
class Commit:
    sha: str
    parent: str | None
    title: str
    message: str
    author: str
    date: datetime
    files: Mapping[str, Blob]


@dataclass
class PullRequest:
    num: int
    title: str
    description: str
    author: str
    created: datetime
    base: str = "refs/heads/main"
    is_pull_request: bool = True
    status: str = "open"


@dataclass
class Repo:
    id: str
    kind: str = "models"  # or "datasets", "spaces"
    private: bool = False
    gated: str | bool = False  # False, "auto" or "manual"
    refs: dict[str, str] = field(default_factory=dict)  # full name -> sha
    commits: dict[str, Commit] = field(default_factory=dict)
    pulls: dict[int, PullRequest] = field(default_factory=dict)
    objects: dict[str, Blob] = field(default_factory=dict)  # every LFS object pushed here, by sha256
    granted: set[str] = field(default_factory=set)
    created: datetime = field(default_factory=lambda: datetime.now(UTC))
    modified: datetime | None = None  # set by a test; else the date of the last commit
    likes: int = 0
    downloads: int = 0

    @property
    def namespace(self) -> str:
        return self.id.split("/")[0]

    def find(self, revision: str) -> Commit:
        """A branch, a tag, a full ref or a full commit id. Short ids are not commits here."""
        for name in (f"refs/heads/{revision}", f"refs/tags/{revision}", revision):
            if name in self.refs:
                return self.commits[self.refs[name]]
        if revision in self.commits:
            return self.commits[revision]
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def branch(self, revision: str) -> str:
        """The full name of the ref that a commit to `revision` moves."""
        for name in (f"refs/heads/{revision}", revision):
            if name in self.refs and not name.startswith("refs/tags/"):
                return name
        raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def last_modified(self) -> datetime:
        return self.modified or self.commits[self.refs["refs/heads/main"]].date


def lfs_pointer(sha256: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def git_oid(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def regular_blob(data: bytes) -> Blob:
    return Blob(size=len(data), oid=git_oid(data), data=data)


def lfs_blob(source: Source, sha256: str | None = None, xet: str | None = None) -> Blob:
    """`source` as a path is used in place, so nobody may change that file afterwards."""
    if isinstance(source, bytes):
        digest, size = sha256 or hashlib.sha256(source).hexdigest(), len(source)
        return Blob(size, git_oid(lfs_pointer(digest, size)), digest, data=source)
    if sha256 is None:
        with source.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    size = source.stat().st_size
    return Blob(size, git_oid(lfs_pointer(sha256, size)), sha256, path=source, xet=xet)


class Store:
    """Every repo and object of one hub. Hold `lock` while reading and writing together."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lock = threading.RLock()
        self.repos: dict[tuple[str, str], Repo] = {}
        self.moved: dict[tuple[str, str], str] = {}

    def repo(self, kind: str, repo_id: str) -> Repo | None:
        return self.repos.get((kind, repo_id))

    def create(self, repo: Repo, files: Mapping[str, Blob], author: str) -> Commit:
        with self.lock:
            self.repos[repo.kind, repo.id] = repo
            self.moved.pop((repo.kind, repo.id), None)
            return self.commit(repo, "refs/heads/main", files, "initial commit", author)

    def move(self, kind: str, old: str, new: str) -> None:
        with self.lock:
            repo = self.repos.pop((kind, old))
            repo.id = new
            self.repos[kind, new] = repo
            self.moved = {k: new if v == old else v for k, v in self.moved.items()} | {(kind, old): new}

    def commit(
        self,
        repo: Repo,
        ref: str,
        files: Mapping[str, Blob],
        title: str,
        author: str,
        message: str = "",
    ) -> Commit:
        """Move `ref` to a new commit whose complete table of files is `files`."""
        with self.lock:
            parent = repo.refs.get(ref)
            listing = sorted((path, blob.oid) for path, blob in files.items())
            # no clock in the id: the same pushes in the same order give the same commits
            seed = repr((repo.kind, repo.id, ref, parent, title, listing, len(repo.commits)))
            sha = hashlib.sha1(seed.encode()).hexdigest()
            now = datetime.now(UTC)
            commit = Commit(sha, parent, title, message, author, now, dict(files))
            for blob in files.values():
                if blob.sha256:
                    repo.objects.setdefault(blob.sha256, blob)
            repo.commits[sha] = commit
            repo.refs[ref] = sha
            return commit
