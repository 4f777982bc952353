"""What inputs that are adapters need beyond others: memory to make their tensors in. Pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence

from dopkit.methods import FLOAT32
from dopkit.planning.jobs import TensorJob
from dopkit.planning.matching import Model
from dopkit.specs import DTYPES


def adapter_bytes(models: Sequence[Model], job: TensorJob) -> int:
    """An upper estimate of the memory that one part of a job needs where ``models`` (in merge order) are adapters.

    The base's part as it lies on disk, the part that is being made of it, and the factors of every adapter.
    """
    pairs = [(models[one.model].source.adapted, one.name) for one in job.inputs]
    factors = [adapted.factors.get(name, 0) for adapted, name in pairs if adapted is not None]
    if not factors:
        return 0
    part = math.prod(job.part_shape) * (DTYPES[job.dtype].size + FLOAT32)
    return part + sum(factors) + FLOAT32 * max(factors)  # one adapter's are converted at a time
