"""The Hugging Face Hub: revisions, file lists, headers and files. The only importer of huggingface_hub.

Knows nothing of tensors or recipes. Tokens, endpoint, cache and offline mode are huggingface_hub's own business
(HF_TOKEN, HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE); no token passes through here.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import (
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
from huggingface_hub.utils import build_hf_headers, http_stream_backoff

from dopkit import __version__
from dopkit.errors import HubError, Problem
from dopkit.refs import ModelRef

TIMEOUT = 30.0  # seconds without an answer


def pin(ref: ModelRef) -> ModelRef:
    """The same repository at the commit its revision means now (or meant when it was cached, offline).

    Raises HubError when there is no such repository or revision, or no access to it.
    """
    if ref.repo is None or ref.pinned:
        return ref
    with _explained(ref):
        return ref.at(str(_api().resolve_revision(ref.repo, revision=ref.revision).resolved))


def files(ref: ModelRef) -> dict[str, int]:
    """Names and sizes in bytes of the repository's files at a pinned ref; offline, of those in the cache."""
    assert ref.repo is not None
    with _explained(ref):
        try:
            info = _api().model_info(ref.repo, revision=ref.revision, files_metadata=True, timeout=TIMEOUT)
        except OfflineModeIsEnabled:
            return _cached_files(ref)
    return {sibling.rfilename: sibling.size or 0 for sibling in info.siblings or []}


def fetch(ref: ModelRef, file: str) -> Path:
    """The file in huggingface_hub's cache, downloaded if it is not there yet."""
    assert ref.repo is not None
    with _explained(ref):
        return Path(_api().hf_hub_download(ref.repo, file, revision=ref.revision))


def cached(ref: ModelRef, file: str) -> Path | None:
    """The file if the cache has it; no network."""
    assert ref.repo is not None
    found = try_to_load_from_cache(ref.repo, file, revision=ref.revision)
    return Path(found) if isinstance(found, str) else None


def cache_disk(beside: Path) -> tuple[int, bool]:
    """Free bytes where downloads go, and whether that is the disk that ``beside`` is on."""
    cache = Path(constants.HF_HUB_CACHE).absolute()
    there = next(folder for folder in (cache, *cache.parents) if folder.is_dir())
    return shutil.disk_usage(there).free, there.stat().st_dev == beside.stat().st_dev


def read_range(ref: ModelRef, file: str, start: int, stop: int) -> bytes:
    """Bytes ``start`` to ``stop`` (exclusive) of a file, by one ranged request. Raises HubError."""
    assert ref.repo is not None
    if constants.is_offline_mode():
        raise HubError(f"{ref.short}: {file} is not in the cache, and HF_HUB_OFFLINE is set")
    headers = build_hf_headers(library_name="dopkit", library_version=__version__)
    headers["Range"] = f"bytes={start}-{stop - 1}"
    url = hf_hub_url(ref.repo, file, revision=ref.revision)
    with _explained(ref), http_stream_backoff("GET", url, headers=headers, timeout=TIMEOUT) as answer:
        if answer.status_code != 206:
            raise HubError(f"{ref.short}: asked for a part of {file}, the server answered {answer.status_code}")
        data = b"".join(answer.iter_bytes())
    if len(data) != stop - start:
        raise HubError(f"{ref.short}: asked for {stop - start} bytes of {file}, got {len(data)}; try again")
    return data


def _api() -> HfApi:
    return HfApi(library_name="dopkit", library_version=__version__)


def _cached_files(ref: ModelRef) -> dict[str, int]:
    """What the cache holds of a commit; offline there is nobody to ask what else there is."""
    assert ref.repo is not None
    folder = Path(constants.HF_HUB_CACHE, f"models--{ref.repo.replace('/', '--')}", "snapshots", ref.revision or "")
    found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    if not found:
        raise HubError(f"{ref.short} is not in the cache, and HF_HUB_OFFLINE is set")
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in found}


_OFFLINE = ("is not in the cache, and the Hub cannot be reached", "Check the network and HF_HUB_OFFLINE.")

# Subclasses stand before their parents.
_EXPLANATIONS: tuple[tuple[type[Exception], str, str], ...] = (
    (GatedRepoError, "is gated", "Accept its terms on its page on the Hub, then `hf auth login`."),
    (RepositoryNotFoundError, "does not exist on the Hub, or is private", "Check the name, or `hf auth login`."),
    (RevisionNotFoundError, "has no such revision", "Check the branch, tag or commit."),
    (LocalEntryNotFoundError, *_OFFLINE),
    (RevisionResolutionError, *_OFFLINE),
    (OfflineModeIsEnabled, *_OFFLINE),
    (EntryNotFoundError, "lacks a file", ""),
    (HFValidationError, "is not a valid repository name", ""),
    (HTTPError, "cannot be read", "Running the same command again continues."),
    (OSError, "cannot be read", "Running the same command again continues."),
)


@contextmanager
def _explained(ref: ModelRef) -> Iterator[None]:
    """Turn the client's exceptions into one sentence each."""
    try:
        yield
    except tuple(kind for kind, _, _ in _EXPLANATIONS) as error:
        what, remedy = next((what, remedy) for kind, what, remedy in _EXPLANATIONS if isinstance(error, kind))
        raise HubError(f"{ref.short} {what}", [Problem("", _first_line(error), remedy)]) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
