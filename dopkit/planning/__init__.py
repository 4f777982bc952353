"""The plan: everything a merge will do, decided from headers before a weight is read.

This module is the data; ``planning.building`` makes it. Knows no torch, no files, no network.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass

from dopkit import layout
from dopkit.methods import FLOAT32, Cut, Rule
from dopkit.recipe import Recipe
from dopkit.refs import ModelRef
from dopkit.roles import Role
from dopkit.specs import Sized

# Raised whenever the same recipe would give other bytes: an unfinished merge is then not continued.
ARITHMETIC = 1

# Of an elementwise merge: 4 MiB in float32. Larger blocks are no faster, and the allocator keeps more of them.
BLOCK_ELEMENTS = 1 << 20


@dataclass(frozen=True)
class Source:
    """One input model as the plan records it."""

    ref: ModelRef
    identity: str  # commit, or hash of a folder's headers and samples of its bytes
    state: str  # changes when the weights may have changed
    nbytes: int  # of all its tensors
    download_bytes: int  # of what is not here: whole files, or what a streamed merge reads
    notes: tuple[str, ...] = ()  # of whoever opened it, for the reader of the plan
    complete: bool = True  # False offline: files that the cache lacks are not known
    missing: frozenset[str] = frozenset()  # the weight files that are not here


@dataclass(frozen=True)
class TensorJob(Sized):
    """One output tensor: what it is, what is done, and where the inputs are."""

    name: str  # as written: the donor's own spelling
    canonical: str
    role: Role
    rule: Rule
    dtype: str  # as written
    shape: tuple[int, ...]
    names: tuple[str, ...]  # in each model's spelling, in merge order; () for a copy
    base: str | None  # in the donor's spelling, when the rule reads it

    @property
    def part_rows(self) -> int:
        """How many rows of the first axis are merged at a time."""
        if self.rule.cut is Cut.BLOCKS:
            per_row = max(1, self.numel // max(1, self.rows))
            return max(1, min(self.rows, BLOCK_ELEMENTS // per_row))
        return 1 if self.slices else self.rows

    @property
    def slices(self) -> bool:
        """Whether each slice along the first axis is a matrix of its own (fused experts)."""
        return self.rule.cut is Cut.MATRICES and len(self.shape) > 2

    def parts(self) -> Iterator[tuple[int, int]]:
        """The row ranges to merge one after another; an empty tensor has none."""
        for start in range(0, self.rows if self.numel else 0, self.part_rows):
            yield start, min(self.rows, start + self.part_rows)

    @property
    def part_shape(self) -> tuple[int, ...]:
        """The shape of one part, as the method sees it."""
        if self.slices:
            return self.shape[1:]
        return (self.part_rows, *self.shape[1:]) if self.shape else ()

    @property
    def working_bytes(self) -> int:
        """Upper estimate of memory at work for one part: the method's tensors and the one coming in."""
        in_float32 = self.rule.working_bytes(self.part_shape) + FLOAT32 * math.prod(self.part_shape)
        return 2 * in_float32 if self.dtype == "F64" else in_float32  # which keeps its precision

    @property
    def effort(self) -> float:
        """Rough seconds of one core for the whole job: what it takes beside other jobs."""
        parts = self.numel / max(1, math.prod(self.part_shape))
        return self.rule.effort(self.part_shape) * parts * max(1, len(self.names))


@dataclass(frozen=True)
class Dropped:
    """An input tensor that is not merged, and the rule that says so."""

    ref: ModelRef
    name: str
    why: str
    twin: str | None = None  # the tensor of the same model that it must be equal to


@dataclass(frozen=True)
class Plan:
    """Jobs in writing order, where their bytes go, and what it all needs."""

    recipe: Recipe  # pinned, its models in merge order
    seed: int | None  # of the shuffle that drew the order, if one did
    donor: Source
    models: tuple[Source, ...]
    jobs: tuple[TensorJob, ...]
    shards: tuple[layout.Shard, ...]
    dropped: tuple[Dropped, ...]
    notes: tuple[str, ...]
    max_shard_size: int
    memory_bytes: int
    stream_bytes: int = 0  # held ahead in memory when what is not here is streamed; 0 when it is downloaded

    @property
    def output_bytes(self) -> int:
        return sum(shard.size for shard in self.shards)

    @property
    def download_bytes(self) -> int:
        return sum({source.ref.key: source.download_bytes for source in (self.donor, *self.models)}.values())

    @property
    def streamed(self) -> bool:
        """Whether what is not here is read over the network while it is merged, and never stored."""
        return self.stream_bytes > 0

    @property
    def headless(self) -> bool:
        """Whether the result is the backbone alone."""
        return self.recipe.heads == "drop"

    def rules(self) -> dict[str, tuple[int, int]]:
        """Rule name to (number of tensors, bytes written), in order of first use."""
        result: dict[str, tuple[int, int]] = {}
        for job in self.jobs:
            tensors, nbytes = result.get(job.rule.name, (0, 0))
            result[job.rule.name] = (tensors + 1, nbytes + job.nbytes)
        return result

    def fingerprint(self, engine: str) -> str:
        """Equal for two plans that give the same bytes with the same ``engine`` (device kind, torch version)."""
        recipe = self.recipe
        facts = {
            "arithmetic": ARITHMETIC,
            "engine": engine,
            "method": [recipe.merge_method, recipe.parameters.in_force()],
            "steps": [entry.parameters for entry in recipe.models],
            "donor": self.donor.state,
            "models": [source.state for source in self.models],
            "jobs": [[job.name, job.role, job.rule.name, job.base, *job.names] for job in self.jobs],
            "shards": [[shard.file, hashlib.sha256(shard.header).hexdigest()] for shard in self.shards],
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
