"""Publishing a finished folder: what of it goes there, what it replaces. Part of ``publishing``."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from dopkit import card, hub, receipt, refs
from dopkit.checkpoints import files
from dopkit.checkpoints.adapter_config import CONFIG
from dopkit.checkpoints.files import ADAPTER
from dopkit.errors import HubError, OutputError, Problem
from dopkit.planning.heads import FOLDER
from dopkit.planning.outputs import STAGES, STATE, STEPS
from dopkit.progress import Progress
from dopkit.publishing.place import PushOptions, local_sources, look, require_free, target_of
from dopkit.refs import ModelRef
from dopkit.units import show_size
from dopkit.writer import EVALUATION, JOURNAL, RECEIPT, REPORT

_WEIGHTS = (
    "*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model.bin.index.json",
    "adapter_config.json", "adapter_model.bin",
)  # fmt: skip
_NOT_LOADED = ("LICENSE*", "LICENCE*", "NOTICE*", "*.py")  # what travels with a model and does not change another
_LARGEST_FILE = 500_000_000_000  # bytes; more the Hub does not take
_REMAKE = "make the merge again (dopkit run, with --overwrite)."
_MANY_FILES = 100  # in one commit; the Hub advises to stay below


@dataclass(frozen=True)
class Pushed:
    """A published merge."""

    repo_id: str
    commit: str
    url: str  # of the repository, the branch or the pull request
    files: int  # that this push changed; 0 when everything was there already


def push(
    folder: str | Path, repo_id: str, options: PushOptions | None = None, progress: Progress | None = None
) -> Pushed:
    """Publish a folder that dopkit made as the model repository ``repo_id``, or finish a push that broke.

    The repository shows the whole merge at once, after everything is there. Raises OutputError when the folder is no
    finished merge, HubError when the Hub or the repository is in the way.
    """
    folder, options, progress = Path(folder), options or PushOptions(), progress or Progress()
    target = target_of(repo_id, options)
    progress.stage("looking at the folder and the repository")
    outgoing = _outgoing(folder, repo_id)
    if problem := local_sources(_sources(folder), options):
        raise OutputError(f"cannot push {folder}", [problem])
    remote = look(target, options)
    _require_bytes(folder, target, remote, outgoing)
    if len(outgoing) > _MANY_FILES:
        progress.note(f"{len(outgoing)} files in one commit; the Hub advises less than {_MANY_FILES}: larger shards?")
    if not remote.branch_exists or not hub.holds(remote, outgoing, _stale(remote, outgoing)):
        _same_weights(folder, outgoing)
        remote = hub.prepare(target, remote)
        require_free(target, remote, options)  # it may have been made by somebody else since
    stale = _stale(remote, outgoing)
    sending = hub.Push(target, remote)
    weights = [file for file in outgoing if _is_weight(file.name) and not file.name.endswith(".json")]
    for number, file in enumerate(weights, start=1):
        if file.source is not None and not file.is_at(remote):
            progress.stage(f"uploading {file.name}, {show_size(file.size)} ({number} of {len(weights)})")
        sending.send([file])
    progress.stage("publishing")
    sending.send([file for file in outgoing if file not in weights])
    try:
        done = sending.commit(stale)
    except HubError as error:
        if all(file.source is not None for file in outgoing):
            raise
        hint = Problem("", "weights were uploaded before and are not here any more", f"If it lost them: {_REMAKE}")
        raise HubError(error.headline, [*error.problems, hint]) from error
    return Pushed(repo_id, done.commit, done.url, done.files)


def _sources(folder: Path) -> list[ModelRef]:
    done = receipt.read(folder)
    stages = done.get("stages", [])
    listed = [source for one in (done, *stages) for source in (one["base"], *one["models"]) if source]
    names = [stage["name"] for stage in stages]
    return [refs.parse(source["model"], folder, names) for source in (*listed, *done.get("companions", []))]


def _outgoing(folder: Path, repo_id: str) -> list[hub.Outgoing]:
    """Every file of the folder but hidden ones and earlier steps, and the shards that have left it.

    Raises OutputError unless the weights are those of its receipt.
    """
    done = receipt.read(folder)
    listed = done["shards"]
    ours = {file["file"]: file["bytes"] for file in (*listed, *done.get("heads", []))}
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    paths = {name: path for name, path in paths.items() if not _stays(name)}
    problems = []
    for name, path in paths.items():
        if name in ours and path.stat().st_size != ours[name]:
            problems.append(Problem(name, f"has {path.stat().st_size:,} bytes, the receipt says {ours[name]:,}"))
        elif path.stat().st_size > _LARGEST_FILE:
            problems.append(Problem(name, "is larger than the Hub takes", "Merge again with --max-shard-size 50GB."))
        elif (_is_weight(name) or _is_head(name)) and name not in ours and not _goes_with(name, ours):
            problems.append(Problem(name, "holds weights that are not of this merge"))
    if problems:
        raise OutputError(f"{folder} is not the merge that its {RECEIPT} describes", problems)
    gone = [shard for shard in listed if shard["file"] not in paths]
    return [
        *(hub.Outgoing(shard["file"], None, shard["sha256"], shard["bytes"]) for shard in gone),
        *(
            hub.Outgoing(name, path if name != card.CARD_FILE else _addressed(path, repo_id))
            for name, path in paths.items()
        ),
    ]


def _require_bytes(folder: Path, target: hub.Target, remote: hub.Remote, outgoing: Iterable[hub.Outgoing]) -> None:
    """Shards that are not in the folder must be on the Hub: in the repository, or waiting there for their commit."""
    gone = [file for file in outgoing if file.source is None and not file.is_at(remote)]
    if lost := hub.not_stored(target, gone) if remote.commit else gone:
        problems = [Problem(file.name, "is missing", _REMAKE if file is lost[-1] else "") for file in lost]
        raise OutputError(f"{folder} lacks weights, and {target.repo} does not have them", problems)


def _addressed(path: Path, repo_id: str) -> bytes:
    return card.addressed(path.read_text(encoding="utf-8"), repo_id).encode()


def _same_weights(folder: Path, outgoing: Iterable[hub.Outgoing]) -> None:
    """Read what is to be sent: a file may have changed since it was merged."""
    done = receipt.read(folder)
    promised = {file["file"]: file["sha256"] for file in (*done["shards"], *done.get("heads", []))}
    changed = [file.name for file in outgoing if promised.get(file.name, file.sha256) != file.sha256]
    if changed:
        problems = [Problem(name, "is not what was merged: its sha256 differs from the receipt's") for name in changed]
        raise OutputError(f"{folder} has changed since it was made", problems)


def _stale(remote: hub.Remote, outgoing: Iterable[hub.Outgoing]) -> list[str]:
    """What an earlier model left that would be taken for this one's: weights, heads, state, tokenizer, scores."""
    loaded = {name for name in remote.files if _is_weight(name) or _is_head(name) or _is_about_it(name)}
    loaded |= set(files.side_files(remote.files))
    kept = {name for name in loaded if any(fnmatchcase(name, pattern) for pattern in _NOT_LOADED)}
    return sorted(loaded - kept - {file.name for file in outgoing})


def _stays(name: str) -> bool:
    """Whether a file is for this machine alone: hidden ones, the models of earlier steps and of stages."""
    return name.startswith((f"{STEPS}/", f"{STAGES}/", JOURNAL)) or any(
        part.startswith(".") for part in name.split("/")
    )


def _goes_with(name: str, ours: Collection[str]) -> bool:
    """Whether a file tells how weights of ours are loaded."""
    return name.endswith(".index.json") or (name == CONFIG and ADAPTER[0][0] in ours)


def _is_about_it(name: str) -> bool:
    """The state of a merge, and what was measured of it."""
    return name.startswith(f"{STATE}/") or name in (EVALUATION, REPORT)


def _is_head(name: str) -> bool:
    return fnmatchcase(name, f"{FOLDER}/*.safetensors")


def _is_weight(name: str) -> bool:
    return "/" not in name and any(fnmatchcase(name, pattern) for pattern in _WEIGHTS)
