"""The repository a merge goes to: what the user asks for, and what may stand in the way. Part of ``publishing``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from dopkit import card, hub, refs
from dopkit.errors import HubError, Problem
from dopkit.refs import ModelRef
from dopkit.writer import RECEIPT

_MESSAGE = "Upload a merge made with dopkit"
# What a repository may hold and still count as free: the Hub makes these by itself, or its page offers to.
_FREE = {".gitattributes", card.CARD_FILE, "LICENSE"}


@dataclass(frozen=True)
class PushOptions:
    """Where and how to publish."""

    repo_id: str | None = None  # user/name; None is what the recipe says
    private: bool = False  # if the repository is still to be made
    create_pr: bool = False  # propose a pull request
    revision: str = "main"  # branch, made if it is missing
    message: str = ""  # of the commit
    overwrite: bool = False  # replace a model that dopkit did not make
    allow_local_sources: bool = False  # publish a recipe that names folders of this machine

    def by_default(self, repo_id: str | None) -> PushOptions:
        """The same, to this repository unless another is named."""
        return self if self.repo_id else replace(self, repo_id=repo_id)


def obstacles(sources: Iterable[ModelRef], options: PushOptions) -> list[Problem]:
    """Why a merge of these sources could not be pushed once it is made; nothing is changed."""
    if options.repo_id is None:
        what = "there is no repository to push to"
        return [Problem("", what, "Give --repo-id user/name, or `repo_id: user/name` in the recipe.")]
    problems = []
    if problem := local_sources(sources, options):
        problems.append(problem)
    try:
        look(target_of(options.repo_id, options), options)
    except HubError as error:
        problems.append(error.as_problem())
    return problems


def target_of(repo_id: str, options: PushOptions) -> hub.Target:
    try:
        refs.parse_repo_id(repo_id)
    except ValueError as error:
        raise HubError(str(error)) from None
    if options.create_pr and options.revision != "main":
        raise HubError("a pull request is made against main; leave out the revision, or the pull request")
    message = options.message.strip() or _MESSAGE
    return hub.Target(repo_id, options.private, options.revision, options.create_pr, message)


def look(target: hub.Target, options: PushOptions) -> hub.Remote:
    remote = hub.look(target)
    hub.require_access(target, remote)
    require_free(target, remote, options)
    return remote


def require_free(target: hub.Target, remote: hub.Remote, options: PushOptions) -> None:
    """A pull request overwrites nothing: its owner judges it."""
    if options.overwrite or target.create_pr or RECEIPT in remote.files or remote.files.keys() <= _FREE:
        return
    remedy = "Choose another name, or replace what is there with --overwrite."
    raise HubError(f"{target.repo} holds files that dopkit did not make", [Problem("", "", remedy)])


def local_sources(sources: Iterable[ModelRef], options: PushOptions) -> Problem | None:
    local = [ref.text for ref in sources if ref.local]
    if not local or options.allow_local_sources:
        return None
    what = f"the recipe names local folders, so nobody else can make the merge again: {', '.join(local)}"
    return Problem("", what, "Push the sources first, or publish their paths with --allow-local-sources.")
