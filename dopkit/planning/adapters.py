"""What inputs need beyond others whose tensors are made: by an adapter, or of the rows of several models."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dopkit.methods import FLOAT32
from dopkit.planning import Source
from dopkit.planning.buffers import BLOCK_ELEMENTS
from dopkit.planning.jobs import TensorJob
from dopkit.specs import DTYPES


def making_bytes(donor: Source, models: Sequence[Source], job: TensorJob) -> int:
    """The memory that one part of a job takes beside the arithmetic; ``models`` stand in merge order."""
    return adapter_bytes(models, job) + gathering_bytes((donor, *models), job)


def adapter_bytes(models: Sequence[Source], job: TensorJob) -> int:
    """An upper estimate of the memory that one part of a job needs where ``models`` (in merge order) are adapters.

    The base's part as it lies on disk, the part that is being made of it, and the factors of every adapter.
    """
    pairs = [(models[one.model].adapted, one.name) for one in job.inputs]
    factors = [adapted.factors.get(name, 0) for adapted, name in pairs if adapted is not None]
    if not factors:
        return 0
    part = math.prod(job.part_shape) * (DTYPES[job.dtype].size + FLOAT32)
    return part + sum(factors) + FLOAT32 * max(factors)  # one adapter's are converted at a time


def gathering_bytes(models: Sequence[Source], job: TensorJob) -> int:
    """An upper estimate of the memory that it takes to put a tensor together, block by block, out of rows of models."""
    names = {job.donor, *(one.name for one in job.inputs)}
    if not any(names & model.gathered for model in models):
        return 0
    return 3 * FLOAT32 * min(job.numel, BLOCK_ELEMENTS)  # what is read, in float32, and their sum
