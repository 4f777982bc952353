"""What every room of the hub shares: the store, the tokens, the settings, and who may do what.

Knows nothing of sockets.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

from hubserver.store import Blob, Commit, Repo, Source, Store, lfs_blob, regular_blob
from hubserver.wire import Refusal, Request, User


@dataclass
class Settings:
    lfs_over: int = 1_000_000  # files of more bytes are LFS
    lfs_suffixes: tuple[str, ...] = (".safetensors", ".bin", ".pt", ".gguf", ".onnx")
    multipart_over: int = 5_000_000_000  # LFS uploads of more bytes are multipart
    part_size: int = 16_000_000
    page_size: int = 1000
    link_seconds: float = 3600
    resolve_cache: bool = False  # small files by a same-origin redirect, as huggingface.co does
    xet: bool = False  # see the module of that name

    def is_lfs(self, path: str, size: int) -> bool:
        return size > 0 and (size > self.lfs_over or path.endswith(self.lfs_suffixes))


class Signer:
    """Signed, expiring storage addresses. The signature covers the path and the expiry."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.secret = secrets.token_bytes(16)

    def sign(self, path: str, filename: str = "") -> str:
        """`path?expires=…&signature=…`, and the file's name for whoever reads the request log."""
        expires = f"{time.time() + self.settings.link_seconds:.3f}"
        query = {"expires": expires, "signature": self._signature(path, expires)}
        if filename:
            query["filename"] = filename
        return f"{path}?{urlencode(query, safe='/')}"

    def check(self, request: Request) -> None:
        expires, given = request.first("expires", "0"), request.first("signature")
        if not hmac.compare_digest(given, self._signature(request.path, expires)):
            raise Refusal(403, "SignatureDoesNotMatch")
        if time.time() > float(expires):
            raise Refusal(403, "Request has expired")

    def expire(self) -> None:
        """Every address given out so far answers 403 from now on."""
        self.secret = secrets.token_bytes(16)

    def _signature(self, path: str, expires: str) -> str:
        return hmac.new(self.secret, f"{path} {expires}".encode(), hashlib.sha256).hexdigest()


@dataclass
class Upload:
    """A multipart upload under way: its parts are written into one file, each at its place."""

    repo: Repo
    sha256: str
    size: int
    part_size: int
    path: Path
    etags: dict[int, str]


class Site:
    def __init__(self, folder: Path, settings: Settings) -> None:
        self.settings = settings
        self.store = Store(folder)
        self.xet_folder = folder / "xet-store"
        self.signer = Signer(settings)
        self.users: dict[str, User] = {}  # token -> user
        self.uploads: dict[str, Upload] = {}
        self.endpoint = ""
        self.storage_endpoint = ""

    def blob(self, path: str, source: Source) -> Blob:
        """The file as this hub would keep it: regular or LFS, by the settings."""
        size = len(source) if isinstance(source, bytes) else source.stat().st_size
        if self.settings.is_lfs(path, size):
            return lfs_blob(source)
        return regular_blob(source if isinstance(source, bytes) else source.read_bytes())

    def authenticate(self, request: Request) -> None:
        header = request.headers.get("Authorization")
        if header is None:
            return
        request.user = self.users.get(header.removeprefix("Bearer "))
        if request.user is None:
            raise Refusal(401, "Invalid credentials in Authorization header")

    def repo(self, request: Request, kind: str, repo_id: str) -> Repo:
        """The repo if the caller may know of it; the same refusal if it is missing or hidden."""
        repo = self.store.repo(kind, repo_id)
        if repo is not None and (not repo.private or may_read(repo, request.user)):
            return repo
        status = 404 if request.user else 401
        raise Refusal(status, "Repository not found", "RepoNotFound")

    def revision(self, request: Request, kind: str, repo_id: str, revision: str) -> tuple[Repo, Commit]:
        repo = self.repo(request, kind, repo_id)
        return repo, repo.find(revision)

    def open_files(self, request: Request, repo: Repo) -> None:
        """Refuse the content of a gated repo to whoever was not let in. Its card and listing stay open."""
        if repo.gated and not may_read(repo, request.user):
            status = 403 if request.user else 401
            message = f"Access to model {repo.id} is restricted. You must have access to it."
            raise Refusal(status, message, "GatedRepo")

    def writable(self, request: Request, kind: str, repo_id: str, as_pull_request: bool = False) -> Repo:
        repo = self.repo(request, kind, repo_id)
        may_write(request.user, "" if as_pull_request else repo.namespace)
        return repo


def may_read(repo: Repo, user: User | None) -> bool:
    return user is not None and (user.owns(repo.namespace) or user.name in repo.granted)


def may_write(user: User | None, namespace: str) -> User:
    """`namespace` empty: anybody with a write token, as for a pull request."""
    if user is None:
        raise Refusal(401, "Invalid username or password.")
    if user.role != "write" or (namespace and not user.owns(namespace)):
        raise Refusal(403, f"You don't have the rights to write in the namespace {namespace or user.name!r}")
    return user
