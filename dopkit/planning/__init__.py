"""The plan: everything a merge will do, decided from headers before a weight is read.

This module is the data; ``planning.building`` makes it. Knows no torch, no files, no network.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dopkit import layout
from dopkit.methods import Scale
from dopkit.planning import outputs
from dopkit.planning.buffers import BLOCK_ELEMENTS, USUAL, Buffers
from dopkit.planning.continuation import Continuation
from dopkit.planning.heads import Head
from dopkit.planning.jobs import Input, TensorJob
from dopkit.recipe import Recipe
from dopkit.refs import ModelRef

if TYPE_CHECKING:
    from dopkit.planning.matching import Model

__all__ = [
    "ARITHMETIC",
    "BLOCK_ELEMENTS",
    "Adapted",
    "Continuation",
    "Dropped",
    "Head",
    "Input",
    "Plan",
    "Source",
    "Staged",
    "TensorJob",
]

# Raised whenever the same recipe would give other bytes: an unfinished merge is then not continued.
ARITHMETIC = 1


@dataclass(frozen=True)
class Adapted:
    """What the plan knows of an input that is an adapter: the source beside it, and what is read of which."""

    base: Source
    factors: Mapping[str, int]  # bytes read of the adapter for a tensor, for those that it changes
    whole: frozenset[str]  # tensors that are the adapter's alone


@dataclass(frozen=True)
class Staged:
    """What the plan knows of an input that is merged by a recipe of its own."""

    plan: Plan
    donor: Model  # with the config of the stage
    models: tuple[Model, ...]  # that it reads, each once


@dataclass(frozen=True)
class Source:
    """One input model as the plan records it. Of an adapter, what is to be downloaded is that of the adapter alone."""

    ref: ModelRef
    identity: str  # commit, or hash of a folder's headers and samples of its bytes
    state: str  # changes when the weights may have changed
    nbytes: int  # of all its tensors
    download_bytes: int  # of what is not here: whole files, or what a streamed merge reads
    notes: tuple[str, ...] = ()  # of whoever opened it, for the reader of the plan
    complete: bool = True  # False offline: files that the cache lacks are not known
    missing: frozenset[str] = frozenset()  # the weight files that are not here
    adapted: Adapted | None = None
    gathered: frozenset[str] = frozenset()  # tensors whose rows are put in the order of another vocabulary
    staged: Staged | None = None
    remembered: bool = False  # the part that was read last is held in memory, for others that read it as well

    @property
    def parts(self) -> tuple[Source, ...]:
        """What is downloaded by itself: the source, and the base that it is an adapter of; all that a stage reads."""
        if self.staged is not None:
            plan = self.staged.plan
            return tuple(part for source in (plan.donor, *plan.models) for part in source.parts)
        return (self,) if self.adapted is None else (self, *self.adapted.base.parts)

    @property
    def refs(self) -> tuple[ModelRef, ...]:
        """The models that it comes from and that were there before: itself, or base and adapter, or those of a stage.

        Each once.
        """
        own = () if self.ref.adapter is None else (self.ref.adapter,)
        if self.staged is not None:
            plan = self.staged.plan
            found = [ref for source in (plan.donor, *plan.models) for ref in source.refs]
        elif self.adapted is not None:
            found = [*self.adapted.base.refs, *own]
        else:
            found = list(self.ref.parts)
        return tuple({ref.key: ref for ref in found}.values())


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
    memory_bytes: int  # of the process when one job is in hand: an upper estimate, the program included
    stream_bytes: int = 0  # held ahead in memory when what is not here is streamed; 0 when it is downloaded
    companions: tuple[Mapping[str, Source], ...] = ()  # what is read beside each model, by parameter; () if nothing
    keeps_steps: bool = False  # the models of earlier steps are written as well
    keeps_state: bool = False  # the state of every fold is written as well, so that `add` is exact
    continues: Continuation | None = None
    keeps_stages: bool = False  # its stages are written as well, as models of their own
    heads: tuple[Head, ...] = ()  # kept beside the merged backbone
    # For each stack that is put together from slices, the layer of the first source that each of its layers is.
    layers: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    program_bytes: int = 0  # of the memory: what the process held before
    work_bytes: int = 0  # of memory that jobs in hand may take together; one may always be; 0 where nobody has said
    scratch_bytes: int = 0  # of disk that matrices take while they are not needed: those of parked jobs
    buffers: Buffers = USUAL

    @property
    def output_bytes(self) -> int:
        """Of the merged model's weights."""
        return sum(shard.size for shard in self.shards)

    @property
    def disk_bytes(self) -> int:
        """Of everything that is written, and of what stands on the disk only while the merge goes on."""
        unscaled = sum(shard.size for shard in self.unscaled_shards) * len(self.written_steps)
        state = sum(shard.size for shard in self.state_shards)
        heads = sum(head.nbytes for head in self.heads)
        stages = sum(stage.plan.output_bytes for stage in self.stages.values()) if self.keeps_stages else 0
        return self.output_bytes * len(self.written_steps) + unscaled + state + heads + stages + self.scratch_bytes

    @cached_property
    def stages(self) -> Mapping[str, Staged]:
        """The stages that it reads, by their names, each behind those that it reads itself."""
        found: dict[str, Staged] = {}
        for source in (self.donor, *self.models):
            base = source if source.adapted is None else source.adapted.base
            if base.staged is not None and base.ref.stage is not None:
                found |= base.staged.plan.stages
                found[base.ref.stage] = base.staged
        return found

    @property
    def merged_models(self) -> tuple[Source, ...]:
        """Every model that is in the result, in merge order: also those that came in before this merge."""
        return self.models if self.continues is None else (*self.continues.earlier, *self.models[1:])

    @property
    def whole_recipe(self) -> Recipe:
        """The recipe of the whole result: that of this merge, or of all models that came in before as well."""
        if self.continues is None:
            return self.recipe
        models = (*self.continues.recipe.models, *self.recipe.models[1:])
        return self.recipe.model_copy(update={"models": models})

    @property
    def first_step(self) -> int:
        """The number of the step that takes ``models[0]``: how many models are merged after it."""
        return 1 if self.continues is None else self.continues.step

    @property
    def last_step(self) -> int:
        return self.first_step + len(self.models) - 1

    @property
    def written_steps(self) -> tuple[int, ...]:
        """The steps after which the model is written; after the last one it is the result."""
        first = self.first_step if self.continues is None else self.first_step + 1
        return tuple(range(first if self.keeps_steps else self.last_step, self.last_step + 1))

    @property
    def scale(self) -> Scale | None:
        """What the merged task vector is multiplied by at the end; None where the method says nothing of it."""
        scale = self.recipe.method.scale_of(self.recipe.parameters)
        return None if scale == 1 else scale

    @cached_property
    def unscaled_shards(self) -> tuple[layout.Shard, ...]:
        """Where results wait for the scale of the whole model, once for every written step; () where none do."""
        return outputs.unscaled_shards(self.jobs, self.max_shard_size) if self.scale == "norm" else ()

    @cached_property
    def state_shards(self) -> tuple[layout.Shard, ...]:
        """Where the state of the folds goes; () when it is not kept."""
        return outputs.state_shards(self.jobs, self.max_shard_size) if self.keeps_state else ()

    @property
    def sources(self) -> tuple[Source, ...]:
        """The base, the models and what is read beside them."""
        beside = (source for companions in self.companions for source in companions.values())
        return (self.donor, *self.models, *beside)

    @property
    def download_bytes(self) -> int:
        state = self.continues.download_bytes if self.continues else 0
        parts = (part for source in self.sources for part in source.parts)
        return state + sum({part.ref.key: part.download_bytes for part in parts}.values())

    @property
    def streamed(self) -> bool:
        """Whether what is not here is read over the network while it is merged, and never stored."""
        return self.stream_bytes > 0

    @property
    def headless(self) -> bool:
        """Whether the result is the backbone alone."""
        return self.recipe.headless

    def rules(self) -> dict[str, tuple[int, int]]:
        """Rule name to (number of tensors, bytes written), in order of first use."""
        result: dict[str, tuple[int, int]] = {}
        for job in self.jobs:
            tensors, nbytes = result.get(job.rule.name, (0, 0))
            result[job.rule.name] = (tensors + 1, nbytes + job.nbytes)
        return result

    @cached_property
    def by_name(self) -> Mapping[str, TensorJob]:
        """The jobs by the names of the tensors that they make."""
        return {job.name: job for job in self.jobs}

    @cached_property
    def identity(self) -> str:
        """Equal for two plans that merge the same weights in the same way, wherever they lie."""
        written = [[job.dtype, *job.shape] for job in self.jobs]
        facts = self._facts([source.identity for source in (self.donor, *self.models)])
        tokens = self.recipe.tokenizer and self.recipe.tokenizer.to_data(Path("/"))
        return hashlib.sha256(json.dumps([facts, written, tokens], sort_keys=True).encode()).hexdigest()

    def fingerprint(self, engine: str) -> str:
        """Equal for two plans that give the same bytes with the same ``engine`` (device kind, torch version)."""
        facts = self._facts([source.state for source in (self.donor, *self.models)]) | {
            "engine": engine,
            "shards": [[shard.file, hashlib.sha256(shard.header).hexdigest()] for shard in self.shards],
        }
        if self.companions:
            facts["companions"] = [{name: source.state for name, source in own.items()} for own in self.companions]
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def _facts(self, sources: list[str]) -> dict[str, Any]:
        """What decides the values of the result; ``sources`` are the donor and the models in their present state."""
        recipe = self.recipe
        return {
            "arithmetic": ARITHMETIC,
            "method": [recipe.merge_method, recipe.parameters.in_force()],
            "seed": (recipe.seed or 0) if recipe.method.random else None,
            "steps": [entry.parameters for entry in recipe.models],
            "donor": sources[0],
            "models": sources[1:],
            "continues": (on := self.continues) and [on.step, on.scale, on.kept, *on.norms],
            "settings": recipe.settings_data(),
            "jobs": [
                [job.name, job.role, job.rule.name, job.base, *((one.model, one.name) for one in job.inputs)]
                for job in self.jobs
            ],
            "heads": [[head.name, *(spec.name for spec in head.tensors)] for head in self.heads],
        }
