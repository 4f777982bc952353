"""Pushing to the Hub: files are sent one after another, then one commit shows them all. Part of ``hub``.

Knows nothing of models. What was sent stays with the server for a while, so a push that broke is continued by
doing it again: of large files only those are sent that are not there yet.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, constants
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.lfs import UploadInfo, post_lfs_batch_info
from huggingface_hub.utils import (
    are_progress_bars_disabled,
    build_hf_headers,
    disable_progress_bars,
    enable_progress_bars,
)
from huggingface_hub.utils._runtime import is_xet_available

from dopkit import __version__
from dopkit.errors import HubError, Problem
from dopkit.hub.patience import PAUSES, explained, may_pass, patiently, wait
from dopkit.hub.reading import api
from dopkit.hub.remote import Outgoing, Remote, Target, holds, look, look_at

_PULLS_TO_LOOK_AT = 20  # the newest ones
_LOOK = "Look at what is there now, then run the same command again."


@dataclass(frozen=True)
class Pushed:
    """How the repository stands after a push."""

    commit: str
    url: str
    files: int  # sent or deleted by this push; 0 when everything was there already


def prepare(target: Target, remote: Remote) -> Remote:
    """Make the repository and the branch, as far as they are missing; the state that the push then starts from."""
    repo = target.repo
    if remote.commit is not None and remote.branch_exists:
        return remote
    with explained(repo):
        if remote.commit is None:
            private = True if target.private else None  # None: as the user's or organisation's settings say
            patiently(lambda: api().create_repo(repo, private=private, exist_ok=True))
            remote = look(target)
        if not remote.branch_exists:
            patiently(lambda: api().create_branch(repo, branch=target.branch, revision=remote.commit, exist_ok=True))
            remote = look(target)
    if remote.commit is None:  # somebody else's, and private
        raise HubError(f"cannot push to {repo}: the name is taken", [Problem("", "", "Choose another name.")])
    return remote


def not_stored(target: Target, files: Sequence[Outgoing]) -> list[Outgoing]:
    """Those of these large files whose bytes the server does not have, in the repository or waiting for a commit.

    Nobody can be asked about what was sent by Xet: there the commit itself tells.
    """
    if not files or is_xet_available():
        return []
    infos = [_upload_info(file) for file in files]
    headers = build_hf_headers(library_name="dopkit", library_version=__version__)
    with explained(target.repo):
        actions, errors, _ = patiently(
            lambda: post_lfs_batch_info(infos, None, constants.REPO_TYPE_MODEL, target.repo, headers=headers)
        )
    wanted = {item["oid"] for item in (*actions, *errors) if item.get("actions") or item.get("error")}
    return [file for file in files if file.sha256 in wanted]


class Push:
    """One push to a prepared repository: any number of ``send``, then ``commit``."""

    def __init__(self, target: Target, remote: Remote) -> None:
        self._target = target
        self._remote = remote
        self._files: list[Outgoing] = []
        self._additions: list[CommitOperationAdd] = []

    def send(self, files: Sequence[Outgoing]) -> None:
        """Upload what the repository lacks of these files. Nobody sees them before ``commit``. Raises HubError."""
        self._files += files
        missing = [file for file in files if not file.is_at(self._remote)]
        if missing:
            with explained(self._target.repo), _no_bars():
                self._additions += patiently(lambda: self._upload(missing))

    def commit(self, stale: Sequence[str] = ()) -> Pushed:
        """Show everything sent, and drop the ``stale`` names, in one commit; then look whether it is all there.

        Raises HubError; when the repository moved meanwhile, nothing of it is changed.
        """
        operations = [*self._additions, *(CommitOperationDelete(name, is_folder=False) for name in stale)]
        if not operations:
            assert self._remote.commit is not None
            return Pushed(self._remote.commit, self._address(), 0)
        if self._target.create_pr and (there := self._pull_request(stale)):
            return Pushed(*there, 0)
        with explained(self._target.repo), _no_bars():
            commit, url = self._commit(operations, stale)
        self._verify(commit, stale)
        return Pushed(commit, url, len(operations))

    def _upload(self, files: Sequence[Outgoing]) -> list[CommitOperationAdd]:
        """The bytes of large files; those of small ones travel with the commit."""
        additions = [_addition(file) for file in files]
        try:
            self._preupload(additions)
        except ConnectionError as error:
            if "xet-write-token" not in str(error) or "404" not in str(error):
                raise
            # A Hub without Xet, and a client with it, which sends open files in the older way.
            with ExitStack() as stack:
                additions = [CommitOperationAdd(file.name, stack.enter_context(file.open())) for file in files]
                self._preupload(additions)
            for addition, file in zip(additions, files, strict=True):
                assert file.source is not None
                if addition.path_or_fileobj != b"":  # a small file, which travels with the commit; its stream is closed
                    addition.path_or_fileobj = file.source
        return additions

    def _preupload(self, additions: Sequence[CommitOperationAdd]) -> None:
        api().preupload_lfs_files(
            self._target.repo, additions, revision=self._target.branch, create_pr=self._target.create_pr
        )

    def _commit(
        self, operations: Sequence[CommitOperationAdd | CommitOperationDelete], stale: Sequence[str]
    ) -> tuple[str, str]:
        """The commit's id and address. An answer that got lost is looked for before it is asked for again."""
        title, _, description = self._target.message.partition("\n")
        for pause in (*PAUSES, None):
            try:
                made = api().create_commit(
                    self._target.repo,
                    operations,
                    commit_message=title,
                    commit_description=description.strip(),
                    revision=self._target.branch,
                    create_pr=self._target.create_pr,
                    parent_commit=self._remote.commit,
                )
                return made.oid, made.pr_url or self._address()
            except Exception as error:
                moved = isinstance(error, HfHubHTTPError) and error.response.status_code == 412
                if not moved and not may_pass(error):
                    raise
                if there := self._landed(stale):
                    return there
                if moved or look(self._target).commit != self._remote.commit:
                    what = f"{self._target.repo} was changed by somebody else meanwhile; nothing was overwritten"
                    raise HubError(what, [Problem("", "", _LOOK)]) from error
                if pause is None:
                    raise
                wait(pause, error)
        raise AssertionError("the last try returns or raises")

    def _landed(self, stale: Sequence[str]) -> tuple[str, str] | None:
        """Commit and address, if a commit whose answer was lost has been made after all."""
        if self._target.create_pr:
            return self._pull_request(stale)
        now = look(self._target)
        if now.commit is None or now.commit == self._remote.commit or not holds(now, self._files, stale):
            return None
        return now.commit, self._address()

    def _pull_request(self, stale: Sequence[str]) -> tuple[str, str] | None:
        """An open pull request of the same title that holds just this."""
        repo = self._target.repo
        with explained(repo):
            pulls = patiently(
                lambda: list(
                    islice(
                        api().get_repo_discussions(repo, discussion_type="pull_request", discussion_status="open"),
                        _PULLS_TO_LOOK_AT,
                    )
                )
            )
            for pull in pulls:
                if pull.title == self._target.message.partition("\n")[0]:
                    there = look_at(self._target, pull.git_reference)
                    if there.commit is not None and holds(there, self._files, stale):
                        return there.commit, pull.url
        return None

    def _verify(self, commit: str, stale: Sequence[str]) -> None:
        there = look_at(self._target, commit)
        problems = [Problem(name, "is still there") for name in stale if name in there.files]
        for file in self._files:
            if not file.is_at(there):
                what = "is not what was sent" if file.name in there.files else "is missing"
                problems.append(Problem(file.name, what))
        if problems:
            raise HubError(f"{self._target.repo} does not hold what was pushed, in commit {commit[:12]}", problems)

    def _address(self) -> str:
        branch = "" if self._target.branch == constants.DEFAULT_REVISION else f"/tree/{self._target.branch}"
        return f"{api().endpoint}/{self._target.repo}{branch}"


def _addition(file: Outgoing) -> CommitOperationAdd:
    if file.source is None:  # what the client's own preupload leaves behind, made again
        addition = CommitOperationAdd(file.name, b"")
        addition.upload_info = _upload_info(file)
        addition._upload_mode, addition._should_ignore, addition._is_uploaded = "lfs", False, True
        return addition
    addition = CommitOperationAdd(file.name, file.source)
    addition.upload_info.sha256 = bytes.fromhex(file.sha256)  # read once, not by the client again
    return addition


def _upload_info(file: Outgoing) -> UploadInfo:
    return UploadInfo(size=file.size, sample=b"", sha256=bytes.fromhex(file.sha256))


@contextmanager
def _no_bars() -> Iterator[None]:
    """The client draws bars of its own, which a caller who asked for silence would see."""
    if are_progress_bars_disabled() or constants.HF_HUB_DISABLE_PROGRESS_BARS is False:  # False: the user wants them
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
