"""The models of a recipe, opened and planned with: what every verb begins with that reads weights.

Knows no output folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

from dopkit import assembly, skeleton, vocabulary
from dopkit.checkpoints import Checkpoint
from dopkit.device import Devices
from dopkit.engine.stage import StageCheckpoint
from dopkit.errors import PlanError, Problem, count
from dopkit.looking import look_at_all, look_at_companions
from dopkit.measure import resident_bytes
from dopkit.opening import RecipeShelf, merged_twice, open_all, open_companions, pin_tokenizer
from dopkit.planning import Plan, Staged
from dopkit.planning.building import Wanted, build
from dopkit.planning.matching import Model
from dopkit.planning.room import Room
from dopkit.progress import Progress
from dopkit.recipe import Recipe, Stage
from dopkit.refs import ModelRef

_UNLIMITED = 1 << 62  # bytes
_NO_LIMIT = Room(_UNLIMITED, _UNLIMITED, _UNLIMITED)  # nothing of a stage is written; the result counts its memory


@dataclass(frozen=True)
class Sources:
    """Opened models and the plan made from them."""

    plan: Plan
    donor: Checkpoint
    models: Sequence[Checkpoint]  # in merge order
    companions: Sequence[Mapping[str, Checkpoint]]  # what is read beside each model, by parameter
    donor_model: Model  # with the config of the result where slices give that other layers
    stages: Sequence[StageCheckpoint] = ()  # each behind those that it reads

    @property
    def distinct(self) -> list[Checkpoint]:
        """Each model once, the donor first."""
        return list(dict.fromkeys([self.donor, *self.models]))

    @property
    def read(self) -> list[Checkpoint]:
        """Those, and what is read beside them."""
        beside = (checkpoint for companions in self.companions for checkpoint in companions.values())
        return list(dict.fromkeys([*self.distinct, *beside]))


@contextmanager
def open_sources(
    recipe: Recipe,
    room: Callable[[int], Room],
    progress: Progress,
    max_shard_size: int,
    devices: Devices,
    stream: bool = False,
    download: bool = False,
    pins: Mapping[ModelRef, ModelRef] | None = None,
    obstacles: Sequence[Problem] = (),
    wanted: Wanted | None = None,
) -> Iterator[Sources]:
    """Open every model of a recipe and plan its merge; closed at the end.

    ``room`` is asked once the models are opened, with the bytes that the program takes by then. ``wanted`` is what the
    merge writes besides, and goes on from; ``download`` fetches what cannot be planned without; ``obstacles`` are
    problems found elsewhere, to be told with those found here. Raises PlanError with all of them.
    """
    seed = _seed(recipe)
    seeds = {stage.name: _seed(stage.recipe) for stage in recipe.stages}
    recipe = recipe.drawn()
    progress.stage("reading headers")
    with ExitStack() as stack:
        desk = _Desk(recipe, pins or {}, progress, download and not obstacles, max_shard_size, devices, stack)
        stages = [desk.stage(stage, seeds[stage.name]) for stage in recipe.needed(recipe.stages)]
        found = desk.look(recipe, obstacles)
        if desk.problems or found is None:
            every = [*desk.problems, *(found.problems if found else ())]
            raise PlanError(f"cannot merge: {count(len(every), 'problem')}", every)
        made = [stage for stage in stages if stage is not None]
        planned = {stage.name: stage for stage in desk.planned}
        named = tuple(planned.get(stage.name, stage) for stage in recipe.stages)
        pinned = found.recipe.model_copy(update={"stages": named})
        notes = (*desk.notes, *found.aligned.notes)
        beside = look_at_companions(found.checkpoints, found.aligned.models, found.recipe)
        models, problems, size = found.models, found.problems, max_shard_size
        here = room(_program_bytes(found.donor, models))
        plan = build(pinned, found.donor, models, here, size, seed, problems, stream, wanted, notes, beside)
        donor = _with_layers(found.donor, plan)
        checkpoints = found.checkpoints
        if plan.streamed:
            checkpoints = {ref: checkpoint.streamed() for ref, checkpoint in checkpoints.items()}
            made = [stage.streamed() for stage in made]
            for checkpoint in (*checkpoints.values(), *made):
                stack.callback(checkpoint.close)
        checkpoints = found.aligned.wrap(checkpoints)
        for checkpoint in checkpoints.values():
            stack.callback(checkpoint.close)
        in_hand = [checkpoints[entry.model] for entry in found.recipe.models]
        also = [{name: checkpoints[ref] for name, ref in entry.companions.items()} for entry in found.recipe.models]
        yield Sources(plan, checkpoints[found.recipe.donor], in_hand, also, donor, made)


def _program_bytes(donor: Model, models: Sequence[Model]) -> int:
    """What the process holds, and what it takes to ask transformers whether the result will load."""
    return resident_bytes() + skeleton.bytes_to_come([donor.skeleton, *(model.skeleton for model in models)])


def _seed(recipe: Recipe) -> int | None:
    """What the order of the models is drawn with."""
    return (recipe.seed or 0) if recipe.order == "shuffle" else None


@dataclass(frozen=True)
class _Found:
    """One document with its models opened; ``problems`` are those of the models."""

    recipe: Recipe  # pinned
    checkpoints: Mapping[ModelRef, Checkpoint]
    aligned: vocabulary.Alignment
    problems: Sequence[Problem]

    @property
    def donor(self) -> Model:
        return self.aligned.models[self.recipe.donor]

    @property
    def models(self) -> list[Model]:
        """In merge order."""
        return [self.aligned.models[entry.model] for entry in self.recipe.models]


class _Desk:
    """Opens the documents of a recipe, its stages one after another. ``problems`` are those of the stages so far."""

    def __init__(
        self,
        recipe: Recipe,
        pins: Mapping[ModelRef, ModelRef],
        progress: Progress,
        download: bool,
        max_shard_size: int,
        devices: Devices,
        stack: ExitStack,
    ) -> None:
        self._shelf = RecipeShelf(recipe, pins)
        self._pins, self._progress, self._download = pins, progress, download
        self._max_shard_size, self._devices, self._stack = max_shard_size, devices, stack
        self.problems: list[Problem] = []
        self.notes: list[str] = []
        self.planned: tuple[Stage, ...] = ()  # pinned

    def look(self, recipe: Recipe, obstacles: Sequence[Problem] = ()) -> _Found | None:
        """Open the models of a document; None, and problems, where one is missing: there is nothing to compare then."""
        download = self._download and not self.problems
        opened, problems = open_all(recipe, self._pins, self._progress, download, self._shelf)
        download = download and not (problems or obstacles)
        beside, more = open_companions(recipe, self._pins, opened, self._progress, download)
        problems += [*more, *obstacles]
        for checkpoint in (*opened.values(), *beside.values()):
            self._stack.callback(checkpoint.close)
        if len(opened) < len(recipe.refs) or len(beside) < len(recipe.companions):
            self.problems += problems
            return None
        refs = {ref: checkpoint.ref for ref, checkpoint in (opened | beside).items()}
        recipe = recipe.with_refs({**refs, **pin_tokenizer(recipe, self._pins)})
        problems += merged_twice(recipe)
        checkpoints = {checkpoint.ref: checkpoint for checkpoint in opened.values()}
        aligned = vocabulary.align(recipe, checkpoints, look_at_all(checkpoints, recipe))
        checkpoints |= {checkpoint.ref: checkpoint for checkpoint in beside.values()}
        return _Found(recipe, checkpoints, aligned, [*problems, *aligned.problems])

    def stage(self, stage: Stage, seed: int | None) -> StageCheckpoint | None:
        """Plan a stage and put it on the shelf; None, and problems, where that cannot be."""
        before, name = len(self.problems), stage.name
        try:
            found = self.look(stage.recipe)
            if found is not None:
                return self._made(name, found, seed)
        except PlanError as error:
            self.problems += error.problems
        own = self.problems[before:]
        self.problems[before:] = [
            replace(one, place=": ".join(filter(None, (f"stage {name}", one.place)))) for one in own
        ]
        return None

    def _made(self, name: str, found: _Found, seed: int | None) -> StageCheckpoint:
        recipe = found.recipe.model_copy(update={"stages": found.recipe.needed(self.planned)})
        size, notes = self._max_shard_size, found.aligned.notes
        plan = build(recipe, found.donor, found.models, _NO_LIMIT, size, seed, found.problems, notes=notes)
        donor = _with_layers(found.donor, plan)
        config = donor.config and assembly.corrected_config(donor.config, plan, _backbone(donor, plan))
        read = {model.source.ref.key: model for model in (found.donor, *found.models)}
        staged = Staged(plan, donor, tuple(read.values()))
        of = found.aligned.wrap(found.checkpoints)
        models = [of[entry.model] for entry in plan.recipe.models]
        made = StageCheckpoint(name, staged, of[plan.recipe.donor], models, config, self._devices)
        self._shelf.add_stage(made)
        self.planned += (Stage(name=name, recipe=plan.recipe),)
        self.notes += [f"stage {name}: {note}" for note in plan.notes]
        return made


def _backbone(donor: Model, plan: Plan) -> str | None:
    return skeleton.backbone_class(donor.config) if plan.headless else None


def _with_layers(donor: Model, plan: Plan) -> Model:
    """The donor with the config of the result, where that has other layers. Raises PlanError when none would load."""
    if not plan.layers or donor.config is None:
        return donor
    config = skeleton.resized(donor.config, plan.layers)
    shown = donor.source.ref.short
    if config is None:
        what = f"no entry of its config.json sets the number of layers in {', '.join(plan.layers)}"
        raise PlanError("cannot merge: 1 problem", [Problem(shown, what)])
    check = skeleton.check_loads(config, {job.name: job.shape for job in plan.jobs})
    if check.problems:
        headline = f"cannot merge: the layers do not make a {donor.skeleton.class_name}"
        raise PlanError(headline, list(check.problems))
    return replace(donor, config=config)
