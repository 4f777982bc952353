"""A merge by several processes: who does which jobs, and how the first learns what the others have done.

Every pass over jobs goes the same way: the first process deals out what is left, each does its share and hands over its
journal's entries, the first looks at the bytes and goes on alone. Knows jobs, journals and writers; no arithmetic, and
not how the processes were started.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dopkit.engine.outputs import Outputs
from dopkit.planning import Plan, TensorJob
from dopkit.planning.sharing import Cost, merging_cost, moving_cost, shares
from dopkit.processes import Processes
from dopkit.progress import Progress
from dopkit.writer import GuestJournal, Journal, ShardWriter, TensorWriter, guest_journal, parse_lines

Entry = dict[str, Any]  # of a journal
Run = Callable[[Sequence[TensorJob]], None]  # does jobs in this process
_LOOK_EVERY = 0.5  # seconds between looks at what the others have done


@dataclass(frozen=True)
class Pass:
    """Jobs that are to be done by all processes together."""

    jobs: Sequence[TensorJob]
    key: Callable[[TensorJob], str]  # under which a job is journaled when it is done
    cost: Cost  # for dealing them out
    effort: Cost  # as the watcher is told
    message: Any = None  # what the other processes must know
    recorded: Callable[[TensorJob], Entry] | None = None  # and of each job: what the pass before has recorded

    @property
    def reads_output(self) -> bool:
        """Whether it reads what the pass before has written."""
        return self.recorded is not None

    def told(self, jobs: Sequence[TensorJob]) -> Any:
        """What must be known to do these jobs."""
        return (self.message, [self.recorded(job) for job in jobs]) if self.recorded else self.message


class Executor(Protocol):
    """Who does the jobs of a merge, as the process that leads it sees them. Entered for the time of the passes."""

    progress: Progress  # for the jobs that are done here

    @property
    def number(self) -> int:
        """Of processes, or workers."""

    def do(self, work: Pass, run: Run) -> None:
        """Have all jobs of the pass done, by ``run`` those that fall to this process."""

    def __enter__(self) -> Executor: ...

    def __exit__(self, *_: object) -> None: ...


def folding(outputs: Outputs[TensorWriter]) -> Pass:
    """The first pass: everything that is not folded yet."""
    last = outputs.plan.last_step
    jobs = outputs.to_fold()
    return Pass(jobs, lambda job: outputs.folded(job)[last].key(job.name), merging_cost, lambda job: job.effort)


def scaling(outputs: Outputs[TensorWriter], norms: object) -> Pass:
    """The second pass, where there is one. The others must know ``norms``, and what was recorded in the first."""
    last, jobs = outputs.plan.last_step, outputs.to_scale()
    recorded, key = outputs.unscaled[last].entry, outputs.models[last].key
    return Pass(jobs, lambda job: key(job.name), moving_cost, moving_cost, norms, lambda job: recorded(job.name))


class Host:
    """The part of the first process. Alone, it has every job for itself."""

    def __init__(
        self, processes: Processes, folder: Path, journal: Journal, writers: Sequence[ShardWriter], progress: Progress
    ) -> None:
        self._processes, self._journal, self._writers = processes, journal, writers
        self._met = False
        self._overall = _Overall(progress, [folder / guest_journal(rank) for rank in range(1, processes.number)])
        self.progress: Progress = self._overall if processes.number > 1 else progress

    @property
    def number(self) -> int:
        return self._processes.number

    def __enter__(self) -> Host:
        return self

    def __exit__(self, *_: object) -> None:
        """The processes part later."""

    def do(self, work: Pass, run: Run) -> None:
        """``run`` gets the jobs of this process; at the end all are done.

        Raises OutputError when what another process wrote is not there, MergeError when one has ended.
        """
        if self._processes.number == 1:
            run(work.jobs)
            return
        for writer in self._writers:
            writer.preallocate()
        if not self._met:
            self._processes.tell()  # they open their journals now that ours has taken over what an earlier run left
            self._met = True
        dealt = shares(work.jobs, self._processes.number, work.cost)
        self._processes.tell(([[job.name for job in own] for own in dealt], work.told(work.jobs)))
        with self._overall.watching(work, {work.key(job): job for own in dealt[1:] for job in own}):
            run(dealt[0])
            nothing: list[Entry] = []
            entries = [entry for own in self._processes.gather(nothing) for entry in own]
        self._journal.take_over(entries)
        for writer in self._writers:
            writer.take_over({entry["name"] for entry in entries})


class Guest:
    """The part of any other process."""

    def __init__(
        self, processes: Processes, plan: Plan, journal: GuestJournal, writers: Sequence[TensorWriter]
    ) -> None:
        self._processes, self._plan, self._journal, self._writers = processes, plan, journal, writers

    @contextmanager
    def sharing(self) -> Iterator[tuple[Sequence[TensorJob], Any]]:
        """The jobs of this process and the pass's message; at the end the first process is told what is done."""
        dealt, message = self._processes.tell()
        yield [self._plan.by_name[name] for name in dealt[self._processes.rank]], message
        for writer in self._writers:
            writer.close()
        self._processes.gather(self._journal.handed_over())


class _Overall(Progress):
    """Tells a watcher of the work of all processes: of its own as it goes, of the others' by what they journal."""

    def __init__(self, inner: Progress, journals: Sequence[Path]) -> None:
        self._inner = inner
        self._read = dict.fromkeys(journals, 0)  # bytes of each journal that were looked at
        self._lock = threading.Lock()
        self._work: Pass | None = None

    @contextmanager
    def watching(self, work: Pass, expected: Mapping[str, TensorJob]) -> Iterator[None]:
        """Look at the others' journals now and then; ``expected`` are their jobs, by the names in the journals."""
        self._work = work
        left, over = dict(expected), threading.Event()

        def look() -> None:
            while not over.wait(_LOOK_EVERY):
                self._look(left)

        thread = threading.Thread(target=look, name="dopkit-watch", daemon=True)
        thread.start()
        try:
            yield
            over.set()
            thread.join()
            self._look(left)
        finally:
            over.set()

    def _look(self, left: dict[str, TensorJob]) -> None:
        for path, start in self._read.items():
            if not path.exists():
                continue
            with path.open("rb") as stream:
                stream.seek(start)
                text = stream.read()
            whole = text[: text.rfind(b"\n") + 1]
            self._read[path] = start + len(whole)
            for line in parse_lines(whole):
                job = left.pop(line.get("name", ""), None)
                if job is not None:
                    self._done(job)

    def _done(self, job: TensorJob) -> None:
        assert self._work is not None
        self.advance(job.nbytes, self._work.effort(job))
        self.tensor_done(job.name)

    def stage(self, text: str) -> None:
        self._inner.stage(text)

    def note(self, text: str) -> None:
        self._inner.note(text)

    def begin(self, tensors: int, nbytes: int, effort: float) -> None:
        assert self._work is not None
        jobs = self._work.jobs
        self._inner.begin(len(jobs), sum(job.nbytes for job in jobs), sum(map(self._work.effort, jobs)))

    def tensor(self, name: str) -> None:
        self._inner.tensor(name)

    def advance(self, nbytes: int, effort: float) -> None:
        with self._lock:
            self._inner.advance(nbytes, effort)

    def tensor_done(self, name: str) -> None:
        with self._lock:
            self._inner.tensor_done(name)
