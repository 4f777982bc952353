"""`TestHub`: a hub on two loopback ports, and the words a test has for it.

The hub is at `endpoint`, the bytes of large files at `storage_endpoint`. It keeps no state
beyond its own life, and has no TLS, no web pages and no organisations to join.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from hubserver import push
from hubserver.faults import Fault, Faults, Match, RateLimit
from hubserver.listener import Entry, Listener
from hubserver.routes import dispatch
from hubserver.site import Settings, Site
from hubserver.store import Commit, Repo, Source
from hubserver.wire import Answer, Host, Refusal, User


class TestHub:
    """`with TestHub() as hub:`; the settings of `site.Settings` are keyword arguments."""

    __test__ = False  # not a test, whatever pytest thinks of the name

    def __init__(self, **settings: Any) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="hubserver-"))
        self.site = Site(self.folder, Settings(**settings))
        self.faults = Faults()
        self._log: list[Entry] = []
        answer = partial(dispatch, self.site)
        self._hub = Listener("hub", answer, self.faults, self._log)
        self._storage = Listener("storage", answer, self.faults, self._log)
        self.endpoint = self.site.endpoint = self._hub.endpoint
        self.storage_endpoint = self.site.storage_endpoint = self._storage.endpoint

    def __enter__(self) -> TestHub:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._hub.close()
        self._storage.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def settings(self) -> Settings:
        return self.site.settings

    @property
    def crashes(self) -> list[str]:
        """Tracebacks of the server's own mistakes; each was also a 500."""
        return self._hub.crashes + self._storage.crashes

    # people

    def token(self, name: str, role: str = "write", orgs: tuple[str, ...] = ()) -> str:
        """A token for this user. The user owns the repos under their name and under their orgs."""
        token = f"hf_{role}_{'_'.join((name, *orgs))}"
        self.site.users[token] = User(name, role, orgs)
        return token

    def grant(self, repo_id: str, name: str, kind: str = "models") -> None:
        """Let a user into a private or gated repo."""
        self._repo(repo_id, kind).granted.add(name)

    # repos

    def create_repo(
        self,
        repo_id: str,
        files: Mapping[str, Source] | None = None,
        *,
        private: bool = False,
        gated: bool | str = False,
        kind: str = "models",
    ) -> str:
        """A repo with these files and nothing else; its first commit id. A Path is used in place."""
        if self.site.store.repo(kind, repo_id):
            raise ValueError(f"{repo_id} exists already; upload() adds a commit to it")
        repo = Repo(repo_id, kind, private=private, gated="auto" if gated is True else gated)
        blobs = {path: self.site.blob(path, source) for path, source in (files or {}).items()}
        return self.site.store.create(repo, blobs, author=repo.namespace).sha

    def upload(
        self,
        repo_id: str,
        files: Mapping[str, Source | None],
        branch: str = "main",
        *,
        title: str = "Upload",
        kind: str = "models",
    ) -> str:
        """A new commit on `branch`, which begins at main if it is new. None as content deletes the file."""
        repo, store = self._repo(repo_id, kind), self.site.store
        blobs = {path: self.site.blob(path, source) for path, source in files.items() if source is not None}
        with store.lock:
            ref = branch if branch.startswith("refs/") else f"refs/heads/{branch}"
            repo.refs.setdefault(ref, repo.refs["refs/heads/main"])
            table = {p: b for p, b in repo.commits[repo.refs[ref]].files.items() if p not in files}
            return store.commit(repo, ref, table | blobs, title, repo.namespace).sha

    def add_folder(self, repo_id: str, folder: Path, branch: str = "main") -> str:
        """Everything under `folder` in one commit; makes the repo if need be. Large files stay in place."""
        paths = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        files = {path.relative_to(folder).as_posix(): path for path in paths}
        if self.site.store.repo("models", repo_id) is None:
            return self.create_repo(repo_id, files)
        return self.upload(repo_id, files, branch)

    def tag(self, repo_id: str, name: str, revision: str = "main", kind: str = "models") -> str:
        repo = self._repo(repo_id, kind)
        with self.site.store.lock:
            repo.refs[f"refs/tags/{name}"] = repo.find(revision).sha
            return repo.refs[f"refs/tags/{name}"]

    def rename(self, old: str, new: str, kind: str = "models") -> None:
        """The old id answers with a redirect to the new one from now on."""
        self.site.store.move(kind, old, new)

    def delete(self, repo_id: str, kind: str = "models") -> None:
        with self.site.store.lock:
            del self.site.store.repos[kind, repo_id]

    def set(self, repo_id: str, kind: str = "models", **values: Any) -> None:
        """likes=, downloads=, private=, gated=, modified= (a datetime with a zone), created=."""
        repo = self._repo(repo_id, kind)
        for name, value in values.items():
            if not hasattr(repo, name):
                raise AttributeError(f"a repo has no {name!r}")
            if isinstance(value, datetime) and value.tzinfo is None:
                raise ValueError(f"{name} needs a time zone")
            setattr(repo, name, "auto" if name == "gated" and value is True else value)

    def files(self, repo_id: str, revision: str = "main", kind: str = "models") -> dict[str, bytes]:
        """Every file's content, read whole. For sizes and hashes of large files see `commit`."""
        return {path: blob.read() for path, blob in self.commit(repo_id, revision, kind).files.items()}

    def commit(self, repo_id: str, revision: str = "main", kind: str = "models") -> Commit:
        return self._repo(repo_id, kind).find(revision)

    def merge(self, repo_id: str, num: int, kind: str = "models") -> str:
        """Merge a pull request, by taking its files as they are."""
        repo = self._repo(repo_id, kind)
        with self.site.store.lock:
            pull = repo.pulls[num]
            files = repo.find(f"refs/pr/{num}").files
            pull.status = "merged"
            return self.site.store.commit(repo, pull.base, files, f"Merge #{num}", repo.namespace).sha

    def open_pull_request(self, repo_id: str, title: str, author: str, kind: str = "models") -> int:
        repo = self._repo(repo_id, kind)
        with self.site.store.lock:
            return push.open_pull_request(repo, title, "", author, "refs/heads/main")

    def _repo(self, repo_id: str, kind: str) -> Repo:
        repo = self.site.store.repo(kind, repo_id)
        if repo is None:
            raise KeyError(f"no repo {repo_id} among the {kind}")
        return repo

    # the log

    @property
    def log(self) -> list[Entry]:
        return list(self._log)

    def clear_log(self) -> None:
        self._log.clear()

    def requests(self, match: str = "* ", host: Host | None = None) -> list[Entry]:
        """The entries that `match`, written as for a fault."""
        wanted = Match(match)
        return [e for e in self.log if wanted(e.method, e.target) and host in (None, e.host)]

    # misfortunes; `times=None` is for ever, `skip` lets so many matching requests pass first

    def fail(
        self,
        match: str,
        status: int = 503,
        *,
        times: int | None = 1,
        skip: int = 0,
        retry_after: int | None = None,
        message: str = "Service unavailable",
        code: str = "",
    ) -> None:
        """Answer with this status, and do nothing else."""
        headers = {"Retry-After": str(retry_after)} if retry_after is not None else {}
        answer = Refusal(status, message, code, headers).answer()
        self.faults.add(Fault("status", Match(match), times, skip, answer=answer))

    def cut(self, match: str, after_bytes: int = 0, *, times: int | None = 1, skip: int = 0) -> None:
        """Close the connection after so many bytes: of the request's body, or if it has none the answer's."""
        self.faults.add(Fault("cut", Match(match), times, skip, amount=after_bytes))

    def wrong_length(self, match: str, by: int = -1, *, times: int | None = 1, skip: int = 0) -> None:
        """A well-formed answer of the wrong length: shorter if `by` is negative, else zeros follow."""
        self.faults.add(Fault("length", Match(match), times, skip, amount=by))

    def whole(self, match: str, *, times: int | None = 1, skip: int = 0) -> None:
        """Ignore the Range that was asked for: 200 and the whole file."""
        self.faults.add(Fault("whole", Match(match), times, skip))

    def slow(
        self,
        match: str,
        seconds: float,
        *,
        every: int = 0,
        times: int | None = 1,
        skip: int = 0,
    ) -> None:
        """Wait before the answer, or with `every` before each so many bytes of it."""
        self.faults.add(Fault("slow", Match(match), times, skip, amount=every, seconds=seconds))

    def lose_answer(self, match: str, *, times: int | None = 1, skip: int = 0) -> None:
        """Do the work, then drop the connection without a word."""
        self.faults.add(Fault("lose", Match(match), times, skip))

    def conflict(self, match: str = r"POST /commit/", *, times: int | None = 1, skip: int = 0) -> None:
        """412 whatever the parent. A true mismatch of parent_commit gives 412 without this."""
        message = "A commit has happened since. Please refresh and try again."
        self.fail(match, 412, times=times, skip=skip, message=message)

    def rate_limit(self, requests: int, window: float = 300, match: str = "* ") -> None:
        """So many matching requests to the hub (not to storage) per window, from now on; then 429."""
        self._hub.limit = RateLimit(requests, window, Match(match))

    def expire_links(self) -> None:
        """Every signed storage address given out so far answers 403."""
        self.site.signer.expire()

    def clear_faults(self) -> None:
        self.faults.clear()
        self._hub.limit = None

    @contextmanager
    def down(self, status: int = 503) -> Iterator[None]:
        """Nothing works inside this block."""
        fault = Fault("status", Match("* "), None, answer=Answer(status, b"down"))
        self.faults.add(fault)
        try:
            yield
        finally:
            self.faults.remove(fault)
