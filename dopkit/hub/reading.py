"""Reading from the Hub: revisions, file lists, files, and their first bytes. Part of ``hub``.

Knows nothing of tensors or recipes. Tokens, endpoint, cache and offline mode are huggingface_hub's own business
(HF_TOKEN, HF_ENDPOINT, HF_HOME, HF_HUB_OFFLINE); no token passes through here.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import HfApi, constants, try_to_load_from_cache
from huggingface_hub.errors import OfflineModeIsEnabled

from dopkit import __version__
from dopkit.errors import HubError, Problem
from dopkit.hub.explain import MISSING, ONLINE, explained
from dopkit.hub.ranges import RemoteFile
from dopkit.refs import ModelRef

TIMEOUT = 30.0  # seconds without an answer


def pin(ref: ModelRef) -> ModelRef:
    """The same repository at the commit its revision means now (or meant when it was cached, offline).

    An adapter and its base both are. Raises HubError when there is no such repository or revision, or no access to it.
    """
    if ref.adapter is not None:
        return _pin(ref.without_adapter, "model").with_adapter(_pin(ref.adapter, "model"))
    return _pin(ref, "model")


def pin_dataset(ref: ModelRef) -> ModelRef:
    """The same for a data set's repository. Raises HubError."""
    return _pin(ref, "dataset")


def _pin(ref: ModelRef, kind: str) -> ModelRef:
    if ref.repo is None or ref.pinned:
        return ref
    offline = constants.is_offline_mode()  # told so, the client does not warn that it is
    with explained(ref):
        found = api().resolve_revision(ref.repo, repo_type=kind, revision=ref.revision, local_files_only=offline)
        pinned = ref.at(str(found.resolved))
    if not pinned.pinned:
        raise HubError(f"{ref.short}: the server gave {pinned.revision!r} as its commit")
    return pinned


@dataclass(frozen=True)
class Listing:
    """What a repository holds at a commit."""

    sizes: dict[str, int]  # bytes, by file name
    repo: str  # what the Hub calls the repository today: another name than the ref's when it was renamed
    complete: bool = True  # False offline: only what the cache holds
    hashes: Mapping[str, str] = field(default_factory=dict)  # of the content, by file name: of git, or SHA-256 of LFS


def listing(ref: ModelRef) -> Listing:
    """The repository's files at a pinned ref; offline, those in the cache. Raises HubError."""
    assert ref.repo is not None
    with explained(ref):
        try:
            info = api().model_info(ref.repo, revision=ref.revision, files_metadata=True, timeout=TIMEOUT)
        except OfflineModeIsEnabled:
            return Listing(_cached_files(ref), ref.repo, complete=False)
    siblings = info.siblings or []
    sizes = {sibling.rfilename: sibling.size or 0 for sibling in siblings}
    hashes = {one.rfilename: one.lfs.sha256 if one.lfs else one.blob_id for one in siblings}
    return Listing(sizes, info.id or ref.repo, hashes={name: known for name, known in hashes.items() if known})


def files(ref: ModelRef) -> dict[str, int]:
    """Names and sizes in bytes of the repository's files at a pinned ref; see ``listing``. Raises HubError."""
    return listing(ref).sizes


def fetch(ref: ModelRef, file: str) -> Path:
    """The file in huggingface_hub's cache, downloaded if it is not there yet. Raises HubError."""
    assert ref.repo is not None
    with explained(ref, file):
        return Path(api().hf_hub_download(ref.repo, file, revision=ref.revision))


def cached(ref: ModelRef, file: str) -> Path | None:
    """The file at a pinned ref if the cache has it; no network."""
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
    return RemoteFile(ref, file).read(start, stop)


def api() -> HfApi:
    return HfApi(library_name="dopkit", library_version=__version__)


def _cached_files(ref: ModelRef) -> dict[str, int]:
    """What the cache holds of a commit; offline there is nobody to ask what else there is."""
    assert ref.repo is not None
    folder = Path(constants.HF_HUB_CACHE, f"models--{ref.repo.replace('/', '--')}", "snapshots", ref.revision or "")
    found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    if not found:
        raise HubError(f"{ref.short} {MISSING}", [Problem("", "", ONLINE)])
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in found}
