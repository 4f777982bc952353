"""Models added to a merged model: the merge prepared, and what of the earlier one it takes over."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from dopkit import heads, receipt, steps
from dopkit.adding.wanted import Addition, refuse_other_models, refuse_strangers
from dopkit.earlier import EarlierMerge
from dopkit.errors import OutputError, Problem
from dopkit.evaluation import results
from dopkit.merging import Earlier
from dopkit.planning.outputs import STAGES
from dopkit.preparing import Prepared, prepare
from dopkit.progress import Progress
from dopkit.writer import EVALUATION, copy_file, write_text


@contextmanager
def prepared_addition(wanted: Addition, progress: Progress, download: bool) -> Iterator[Prepared]:
    """Every model opened, the plan made. Raises PlanError, OutputError, HubError."""
    recipe, before = (wanted.whole, None) if wanted.from_experts else wanted.on_top()
    wanted.tell(before, progress)
    with prepare(recipe, wanted.output, wanted.options, progress, download, continues=before) as prepared:
        refuse_other_models(wanted, prepared.plan)
        refuse_strangers(wanted.old, wanted.output, prepared.sources.donor.side_files)
        if before and before.kept and wanted.old.local:
            wanted.old.open_state(prepared.plan).close()  # to know before anything is written
        yield prepared


def taken_over(wanted: Addition, prepared: Prepared) -> Earlier | None:
    """What the merge takes over; nothing when every model is read again."""
    before = prepared.plan.continues
    if before is None:
        return None
    state = partial(wanted.old.open_state, prepared.plan) if before.kept else None
    return Earlier(wanted.old.receipt, state, _take_along(wanted, prepared))


def _refuse_another(old: EarlierMerge, working: Path) -> None:
    """Another command may have replaced the folder while this one read it: what was made is good for nothing.

    Raises OutputError.
    """
    if old.local and receipt.read(old.folder).get("fingerprint") != old.receipt.get("fingerprint"):
        shutil.rmtree(working, ignore_errors=True)
        what = "another merge took its place meanwhile, and would be lost or half read"
        raise OutputError(f"{old.ref.short} has changed", [Problem("", what, "Add again.")])


def _take_along(wanted: Addition, prepared: Prepared) -> Callable[[Path], None]:
    """Puts what belongs to the earlier models into the working folder: heads, steps, what was measured of them."""
    old, merged = wanted.old, prepared.sources.models[0]

    def take_along(folder: Path) -> None:
        _refuse_another(old, folder)
        heads.carry_over(merged, old.receipt.get("heads", []), folder)
        if wanted.options.keeps_steps:
            merged.fetch()
            for name in merged.side_files:
                merged.side_file(name)  # a repository's files come into the cache one by one
            steps.carry_over(old.folder, folder, len(old.recipe.models))
        if (old.folder / STAGES).is_dir():
            shutil.copytree(old.folder / STAGES, folder / STAGES, copy_function=_copy, dirs_exist_ok=True)
        with suppress(FileNotFoundError):
            measured = merged.side_file(EVALUATION).read_text(encoding="utf-8", errors="replace")
            write_text(folder / EVALUATION, results.outgrown(measured))

    return take_along


def _copy(source: str, target: str) -> None:
    copy_file(Path(source), Path(target))
