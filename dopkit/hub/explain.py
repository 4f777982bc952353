"""The client's exceptions as one sentence each. Part of ``hub``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)

from dopkit.errors import HubError, Problem
from dopkit.refs import ModelRef

MISSING = "is not in the cache, and HF_HUB_OFFLINE is set"
ONLINE = "Unset HF_HUB_OFFLINE for this run."
AGAIN = "Running the same command again continues."
_UNREACHED = ("is not in the cache, and the Hub cannot be reached", "Check the network and HF_HUB_OFFLINE.")
_NAME = "Check the name, or `hf auth login`; a folder would be written ./{repo}"

# Exception, what the model is or does, remedy. Subclasses stand before their parents.
_EXPLANATIONS: tuple[tuple[type[Exception], str, str], ...] = (
    (GatedRepoError, "is gated", "Accept its terms on its page on the Hub, then `hf auth login`."),
    (RepositoryNotFoundError, "does not exist on the Hub, or is private", _NAME),
    (DisabledRepoError, "has been disabled on the Hub", ""),
    (RevisionNotFoundError, "has no such revision", "Check the branch, tag or commit."),
    (LocalEntryNotFoundError, *_UNREACHED),
    (RevisionResolutionError, *_UNREACHED),
    (OfflineModeIsEnabled, *_UNREACHED),
    (EntryNotFoundError, "lacks {file}", ""),
    (HFValidationError, "is not a valid repository name", ""),
)
_KNOWN = tuple(kind for kind, _, _ in _EXPLANATIONS)


@contextmanager
def explained(ref: ModelRef, file: str = "a file") -> Iterator[None]:
    """Turn the client's exceptions into one sentence each; of those it has no sentence for, keep the first line."""
    try:
        yield
    except _KNOWN as error:
        what, remedy = next((what, remedy) for kind, what, remedy in _EXPLANATIONS if isinstance(error, kind))
        problems = [Problem("", "", remedy.format(repo=ref.repo))] if remedy else []
        raise HubError(f"{ref.short} {what.format(file=file)}", problems) from error
    except (HTTPError, OSError) as error:
        raise HubError(f"{ref.short} cannot be read", [Problem("", _first_line(error), AGAIN)]) from error


def _first_line(error: Exception) -> str:
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return re.sub(r"\?[^\s'\"]*", "", line)  # the query of a storage address is a signature
