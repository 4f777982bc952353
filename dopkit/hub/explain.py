"""The client's exceptions as one sentence each. Part of ``hub``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
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
        raise known(ref, error, file) or error from error
    except (HTTPError, OSError, RuntimeError) as error:  # RuntimeError: what Xet's storage has said
        raise HubError(f"{ref.short} cannot be read", [Problem("", first_line(error), AGAIN)]) from error


def known(ref: ModelRef, error: Exception, file: str = "a file") -> HubError | None:
    """The sentence there is for this exception of the client, if there is one."""
    for kind, what, remedy in _EXPLANATIONS:
        if isinstance(error, kind):
            problems = [Problem("", "", remedy.format(repo=ref.repo))] if remedy else []
            return HubError(f"{ref.short} {what.format(file=file)}", problems)
    return None


def first_line(error: Exception) -> str:
    return without_query((str(error).strip() or type(error).__name__).splitlines()[0])


def without_query(text: str) -> str:
    """The text with every address cut at its question mark: the query of a storage address is a signature."""
    return re.sub(r"\?[^\s'\"]*", "", text)


@contextmanager
def asking(what: str) -> Iterator[None]:
    """Turn the client's exceptions into one sentence: ``cannot <what>``, and why. For all that is no reading."""
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise HubError(f"cannot {what}", [Problem("", "HF_HUB_OFFLINE is set", ONLINE)]) from error
    except HFValidationError as error:
        raise HubError(f"cannot {what}", [Problem("", first_line(error))]) from error
    except (HTTPError, OSError) as error:
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
        raise HubError(f"cannot {what}", [_REFUSALS.get(status) or Problem("", first_line(error), AGAIN)]) from error


_LOGIN = "`hf auth login` with a token that may write there, or set HF_TOKEN."
_REFUSALS = {
    401: Problem("", "the Hub does not know who you are", _LOGIN),
    403: Problem("", "the Hub does not allow it", _LOGIN),
    404: Problem("", "it does not exist, or you may not see it", _LOGIN),
    409: Problem("", "that name is taken", "Choose another name."),
    412: Problem("", "somebody else has written there meanwhile", "Look at it, and run the same command again."),
}
