"""How the task vectors of a planned merge relate, measured from the weights alone, before anything is merged.

Inner products come from row blocks of all versions at once, ranks from one matrix at a time. Both in float64: the
difference of two float32 numbers is exact there. Knows no method and no file.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dopkit.checkpoints import Checkpoint
from dopkit.device import Devices
from dopkit.engine.announcing import Read, Rows, announce, requests
from dopkit.engine.pipes import ReadAhead
from dopkit.errors import CheckpointError, Problem
from dopkit.linalg import spectra
from dopkit.places import place_of
from dopkit.planning import Plan, TensorJob
from dopkit.planning.buffers import OVERHEAD_BYTES, READ_AHEAD_BYTES
from dopkit.planning.staging import reading_bytes
from dopkit.progress import Progress
from dopkit.relations import Products, Relations, TensorRelations
from dopkit.roles import Role
from dopkit.short_names import short_names

# All versions together: 16 MiB of float32 as read. What is in float64 at a time is a fourth of them.
BLOCK_ELEMENTS = 1 << 22
CHUNK_ELEMENTS = 1 << 20

_MATRICES = (Role.LINEAR, Role.CONV1D, Role.HEAD)


def relate(
    plan: Plan,
    donor: Checkpoint,
    models: Sequence[Checkpoint],
    devices: Devices,
    progress: Progress,
    energy: float | None = 0.9,
) -> Relations:
    """Norms and cosines of the task vectors of everything that the plan merges, against the base ``donor``.

    ``energy`` is the share of the plain sum of singular values that a rank stands for; None leaves the ranks out.
    Raises CheckpointError when a weight is NaN or infinite.
    """
    work = _all_work(plan, donor, models, energy)
    progress.begin(len(work), sum(one.nbytes for one in work), sum(one.effort for one in work))
    announce((read for one in work for read in one.reads()), plan.stream_bytes)
    ahead = ReadAhead(requests(read for one in work for read in one.reads()), READ_AHEAD_BYTES)
    try:
        tensors = []
        for one in work:
            progress.tensor(one.job.name)
            tensors.append(one.relate(ahead, devices))
            progress.advance(one.nbytes, one.effort)
            progress.tensor_done(one.job.name)
    except BaseException:
        for checkpoint in (donor, *models):
            checkpoint.close()  # a read under way must not hold us up
        raise
    finally:
        ahead.close()
    names = short_names([model.ref for model in models])
    return Relations(names, tuple(tensors), energy)


def memory_bytes(plan: Plan, donor: Checkpoint, models: Sequence[Checkpoint], ranks: bool) -> int:
    """Upper estimate of the memory that ``relate`` takes, beside the program itself."""
    work = _all_work(plan, donor, models, 1.0 if ranks else None)
    largest = max((one.working_bytes for one in work), default=0)
    # One read is always ahead, however large: with ranks, a whole matrix.
    ahead = max((one.donor.specs[one.job.donor].nbytes for one in work if one.has_ranks), default=0)
    reading = max((reading_bytes(plan.donor, plan.models, one.job) for one in work), default=0)
    return largest + reading + max(READ_AHEAD_BYTES, ahead) + OVERHEAD_BYTES + plan.stream_bytes


def _all_work(plan: Plan, donor: Checkpoint, models: Sequence[Checkpoint], energy: float | None) -> list[_Work]:
    return [_Work(job, donor, models, energy) for job in plan.jobs if job.rule.fold is not None]


@dataclass(frozen=True)
class _Work:
    """One merged tensor: what is read of it, and what is made of that."""

    job: TensorJob
    donor: Checkpoint
    models: Sequence[Checkpoint]
    energy: float | None

    @property
    def versions(self) -> list[tuple[Checkpoint, str]]:
        """The base and each model, and what the tensor is called there."""
        return [(self.donor, self.job.donor), *((self.models[one.model], one.name) for one in self.job.inputs)]

    @property
    def has_ranks(self) -> bool:
        axes = {Role.EXPERTS: 3, Role.EXPERTS_CONV1D: 3} | dict.fromkeys(_MATRICES, 2)
        return self.energy is not None and len(self.job.shape) == axes.get(self.job.role) and self.job.numel > 0

    def blocks(self) -> Iterator[Rows]:
        """Runs of rows of which all versions together are one block. A slice of fused experts is one row."""
        job = self.job
        per_row = len(self.versions) * (job.numel // max(1, job.rows))
        return _runs(job.rows if job.numel else 0, max(1, BLOCK_ELEMENTS // max(1, per_row)))

    def matrices(self) -> Iterator[Rows]:
        """The rows of each matrix whose rank is asked for."""
        if not self.has_ranks:
            return iter(())
        return _runs(self.job.rows, self.job.rows if len(self.job.shape) == 2 else 1)

    def reads(self) -> Iterator[Read]:
        """All that is read, in order: blocks for the inner products, then whole matrices for the ranks."""
        for rows in (*self.blocks(), *self.matrices()):
            yield from ((checkpoint, name, rows) for checkpoint, name in self.versions)

    @property
    def nbytes(self) -> int:
        once = sum(checkpoint.specs[name].nbytes for checkpoint, name in self.versions)
        return once * (2 if self.has_ranks else 1)

    @property
    def effort(self) -> float:
        """Rough seconds of one core; the factors were measured."""
        seconds = 2e-9 * self.job.numel * len(self.versions)
        if self.has_ranks:
            m, n = sorted(self.job.shape[-2:])
            slices = self.job.numel / (m * n)
            seconds += slices * len(self.job.inputs) * (4e-11 * m * m * n + 7e-11 * m**3)
        return seconds

    @property
    def working_bytes(self) -> int:
        """Upper estimate: one block of all versions and its float64; for a rank three matrices and the Gram matrix.

        The allowance for the allocator and the linear algebra library is that of the methods' factorisations.
        """
        size = max((checkpoint.specs[name].nbytes for checkpoint, name in self.versions), default=0)
        rows = max((stop - start for start, stop in self.blocks()), default=0)
        block = len(self.versions) * size * rows // max(1, self.job.rows) + 3 * 8 * CHUNK_ELEMENTS
        return max(block, self._rank_bytes)

    @property
    def _rank_bytes(self) -> int:
        if not self.has_ranks:
            return 0
        m, n = sorted(self.job.shape[-2:])
        size = max(checkpoint.specs[name].nbytes for checkpoint, name in self.versions)
        matrix = size * m * n // self.job.numel
        return int(1.2 * (3 * matrix + 8 * (3 * m * m + 3 * spectra.BLOCK_ELEMENTS))) + 40_000_000

    def relate(self, ahead: ReadAhead, devices: Devices) -> TensorRelations:
        device = devices.place(self.working_bytes, float64=True)
        products = self._products(ahead, device)
        ranks = self._ranks(ahead, device) if self.has_ranks else None
        return TensorRelations(
            self.job.name, place_of(self.job.canonical, self.job.role), self.job.shape, products, ranks
        )

    def _products(self, ahead: ReadAhead, device: torch.device) -> Products:
        size = len(self.versions)
        total = torch.zeros(size, size, dtype=torch.float64)
        for _ in self.blocks():
            block = [next(ahead).flatten() for _ in self.versions]
            width = max(1, CHUNK_ELEMENTS // size)
            for start in range(0, block[0].numel(), width):
                parts = [one[start : start + width].to(device, torch.float64) for one in block]
                total += _inner(parts).cpu()
        self._check_finite(total.diagonal().isfinite().tolist())
        inner: list[list[float]] = total.tolist()
        return Products([row[1:] for row in inner[1:]], inner[0][0])

    def _check_finite(self, finite: Sequence[bool]) -> None:
        """``finite`` tells of the base and of each task vector whether its norm is."""
        bad = [index for index, good in enumerate(finite) if not good]
        if bad and bad[0] == 0:  # the base spoils every task vector
            bad = [0]
        problems = []
        for index in bad:
            checkpoint, name = self.versions[index]
            what = f"{name} holds values that are NaN or infinite"
            problems.append(Problem(checkpoint.ref.short, what, "Fetch the model again, or leave it out."))
        if problems:
            raise CheckpointError(f"cannot compare {self.job.name}", problems)

    def _ranks(self, ahead: ReadAhead, device: torch.device) -> list[float]:
        """Per model the rank of its task vector; the mean over the slices of fused experts."""
        assert self.energy is not None
        ranks = torch.zeros(len(self.job.inputs), dtype=torch.float64)
        slices = 0
        for _ in self.matrices():
            slices += 1
            base = _matrix(next(ahead), device)
            for index in range(len(self.job.inputs)):
                gram = _gram(base, _matrix(next(ahead), device))
                values = spectra.singular_values(gram)
                ranks[index] += spectra.energy_rank(values, self.energy)
        means = (ranks / slices).tolist()
        return [int(mean) if mean.is_integer() else mean for mean in means]


def _runs(rows: int, step: int) -> Iterator[Rows]:
    for start in range(0, rows, step):
        yield start, min(rows, start + step)


def _inner(parts: list[Tensor]) -> Tensor:
    """Inner products of flat float64 tensors [base, models ...]: of the task vectors, and of the base with itself.

    The base's row and column hold nothing else that is meant to be used.
    """
    together = torch.stack(parts)
    together[1:] -= parts[0]
    return together @ together.mT


def _matrix(raw: Tensor, device: torch.device) -> Tensor:
    """One matrix (m, n), m <= n, in its own dtype; of a slice of experts without the first axis."""
    matrix = (raw[0] if raw.dim() == 3 else raw).to(device)
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT


def _gram(base: Tensor, model: Tensor) -> Tensor:
    """tau tau^T, (m, m) float64, of the task vector tau = model - base, (m, n) with m <= n."""
    rows, columns = base.shape
    gram = torch.zeros(rows, rows, dtype=torch.float64, device=base.device)
    for block in spectra.column_blocks(rows, columns):
        tau = model[:, block].to(torch.float64, copy=True).sub_(base[:, block])
        gram.addmm_(tau, tau.mT)
    return gram
