"""A few small text files as a repository of their own, in one commit. Part of ``hub``.

Knows nothing of what the texts say. A repository that was not made this way is never written to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from huggingface_hub import CommitOperationAdd, ModelInfo
from huggingface_hub.errors import RepositoryNotFoundError

from dopkit.errors import HubError, Problem
from dopkit.hub.explain import asking, explained
from dopkit.hub.reading import TIMEOUT, api, fetch
from dopkit.refs import ModelRef

_GIT = ".gitattributes"  # a new repository on the Hub holds this file


@dataclass(frozen=True)
class Shared:
    """Where the texts are now."""

    url: str
    commit: str
    changed: bool  # False: they were there already


def share(ref: ModelRef, texts: Mapping[str, str], tag: str, message: str, private: bool = False) -> Shared:
    """Put ``texts``, by file name, into the model repository ``ref``, which is made if it is not there.

    A repository may be written to again when its card carries ``tag`` and it holds no other files. Raises HubError.
    """
    assert ref.repo is not None
    with asking(f"write to {ref.repo}"):
        there = _info(ref.repo)
        if there is None:
            api().create_repo(ref.repo, private=private)
            there = api().model_info(ref.repo, timeout=TIMEOUT)
    _judge(ref.repo, there, texts, tag, private)
    url = f"{api().endpoint}/{ref.repo}"
    commit = str(there.sha)
    if _same(ref.at(commit), there, texts):
        return Shared(url, commit, changed=False)
    operations = [CommitOperationAdd(name, text.encode()) for name, text in texts.items()]
    with asking(f"write to {ref.repo}"):
        done = api().create_commit(ref.repo, operations, commit_message=message, parent_commit=commit)
    return Shared(url, str(done.oid), changed=True)


def _info(repo: str) -> ModelInfo | None:
    try:
        return api().model_info(repo, timeout=TIMEOUT)
    except RepositoryNotFoundError:
        return None


def _names(info: ModelInfo) -> set[str]:
    return {sibling.rfilename for sibling in info.siblings or []} - {_GIT}


def _judge(repo: str, there: ModelInfo, texts: Mapping[str, str], tag: str, private: bool) -> None:
    names = _names(there)
    if names - texts.keys() or (names and tag not in (there.tags or [])):
        what = f"it holds {min(names - texts.keys(), default=min(names))}, which is not from `dopkit recipes share`"
        raise HubError(f"{repo} is in the way", [Problem("", what, "Choose another name.")])
    if private and not there.private:
        remedy = "Choose another name, or make it private on its page first."
        raise HubError(f"{repo} exists already and is public", [Problem("", remedy)])


def _same(ref: ModelRef, there: ModelInfo, texts: Mapping[str, str]) -> bool:
    if _names(there) != texts.keys():
        return False
    with explained(ref):
        return all(fetch(ref, name).read_bytes() == text.encode() for name, text in texts.items())
