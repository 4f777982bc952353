"""``output: adapter``: adapters of one base merged into one adapter, without a byte of the base's weights.

A weighted sum of low-rank products is a low-rank product, so a method that is such a sum needs nothing else. What it
makes is a plain LoRA that PEFT loads.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import yaml

from dopkit import card, layout, pinning, publishing, receipt
from dopkit.checkpoints import AdapterCheckpoint
from dopkit.checkpoints.adapter import open_adapter
from dopkit.checkpoints.adapter_config import CONFIG
from dopkit.checkpoints.files import ADAPTER
from dopkit.checkpoints.joining import Joined, adapter_config, factors, join
from dopkit.checkpoints.reading import bytes_of, torch_dtype
from dopkit.errors import CheckpointError, MergeError, PlanError, Problem, VerificationError, count
from dopkit.measure import available_bytes, peak_resident_bytes, resident_bytes
from dopkit.methods import Cut, Rule
from dopkit.methods.coefficients import coefficients
from dopkit.methods.costs import copies, elementwise_effort
from dopkit.opening import merged_twice, open_all, source_of
from dopkit.planning import Plan, TensorJob
from dopkit.planning.building import OVERHEAD_BYTES
from dopkit.preparing import Options
from dopkit.progress import Progress
from dopkit.recipe import Recipe
from dopkit.refs import ModelRef
from dopkit.roles import Role
from dopkit.specs import DTYPES
from dopkit.units import show_size
from dopkit.writer import RECEIPT, Journal, OutputFolder, ShardWriter, write_text

JOINED = Rule("factors joined", None, Cut.WHOLE, False, copies(4), elementwise_effort)
CUT = Rule("factors cut", None, Cut.WHOLE, False, copies(12), elementwise_effort, float64=True)

_NAMES = {dtype.torch: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class _Prepared:
    plan: Plan
    adapters: Sequence[AdapterCheckpoint]
    weights: Sequence[float]  # of every adapter's task vector
    modules: Sequence[Joined]


def plan(recipe: Recipe, output: OutputFolder, options: Options, progress: Progress) -> Plan:
    """What ``run`` would do, from headers alone. Raises PlanError, OutputError."""
    with _prepared(recipe, output, options, progress) as prepared:
        output.finished(_fingerprint(prepared.plan))
        return prepared.plan


def run(
    recipe: Recipe, output: OutputFolder, options: Options, progress: Progress
) -> tuple[Path, Plan, receipt.Receipt, bool]:
    """Make the adapter, or finish it: the folder, the plan, the receipt, and whether it was there already.

    Raises PlanError before anything is written, MergeError, OutputError, HubError and VerificationError later.
    """
    with _prepared(recipe, output, options, progress, download=True) as prepared:
        made, fingerprint = prepared.plan, _fingerprint(prepared.plan)
        if output.finished(fingerprint):
            return output.path, made, receipt.read(output.path), True
        progress.stage("downloading" if made.download_bytes else "merging")
        for adapter in prepared.adapters:
            adapter.adapter.fetch()
        done = _merge(recipe, prepared, output, fingerprint, progress)
        output.publish()
        return output.path, made, done, False


def _fingerprint(made: Plan) -> str:
    return made.fingerprint(f"cpu, torch {torch.__version__}")


@contextmanager
def _prepared(
    recipe: Recipe, output: OutputFolder, options: Options, progress: Progress, download: bool = False
) -> Iterator[_Prepared]:
    seed = (recipe.seed or 0) if recipe.order == "shuffle" else None
    recipe = recipe.drawn()
    pins = pinning.remembered(recipe, output)
    with ExitStack() as stack:
        opened, problems = open_all(recipe, pins, progress, download)
        problems += _without_effect(recipe, options)
        if options.push is not None:
            problems += publishing.obstacles(recipe.refs, options.push.by_default(recipe.repo_id))
        problems += [obstacle] if (obstacle := output.obstacle()) else []
        for checkpoint in opened.values():
            stack.callback(checkpoint.close)
        if len(opened) == len(recipe.refs):
            recipe = recipe.with_refs({ref: checkpoint.ref for ref, checkpoint in opened.items()})
            problems += merged_twice(recipe)
        by_key = {checkpoint.ref.key: checkpoint for checkpoint in opened.values()}
        models = [by_key[entry.model.key] for entry in recipe.models if entry.model.key in by_key]
        adapters = [model for model in models if isinstance(model, AdapterCheckpoint)]
        problems += [Problem(model.ref.short, "is no adapter") for model in models if model not in adapters]
        problems += _other_base(recipe, adapters)
        weights: list[float] = []
        try:
            weights = coefficients(recipe.merge_method, [recipe.parameters_for(at) for at in range(len(recipe.models))])
        except ValueError as error:
            problems.append(Problem("output: adapter", str(error), "Leave it out: the result is then a whole model."))
        modules: list[Joined] = []
        if not problems:
            modules, problems = join(adapters, recipe.rank)
        if problems:
            raise PlanError(f"cannot merge: {count(len(problems), 'problem')}", problems)
        made = _planned(recipe, adapters, modules, seed)
        memory = min(available_bytes(), options.max_memory or available_bytes())
        room = (("disk space", made.disk_bytes, output.free_bytes()), ("memory", made.memory_bytes, memory))
        short = [
            Problem("", f"too little {what}: {show_size(need)} needed, {show_size(have)} there")
            for what, need, have in room
            if need > have
        ]
        if short:
            raise PlanError(f"cannot merge: {count(len(short), 'problem')}", short)
        yield _Prepared(made, adapters, weights, modules)


def _without_effect(recipe: Recipe, options: Options) -> Iterator[Problem]:
    """What is asked for that goes with whole models alone."""
    asked = {
        "heads": recipe.heads is not None,
        "copy": bool(recipe.copied),
        "--stream": options.stream,
        "--device": options.device not in ("auto", "cpu"),
        "--save-steps": options.save_steps,
        "--keep-state": options.keep_state,
        "--tasks": options.tasks is not None,
    }
    for name, given in asked.items():
        if given:
            yield Problem(name, "does not go with `output: adapter`", "Leave it out.")


def _other_base(recipe: Recipe, adapters: Sequence[AdapterCheckpoint]) -> Iterator[Problem]:
    for adapter in adapters:
        if recipe.base_model is not None and adapter.base.ref.key != recipe.base_model.key:
            yield Problem(adapter.ref.short, f"stands on another base than {recipe.base_model.short}")


def _planned(
    recipe: Recipe, adapters: Sequence[AdapterCheckpoint], modules: Sequence[Joined], seed: int | None
) -> Plan:
    dtype = _NAMES[recipe.out_dtype or recipe.dtype or "float32"]
    base = adapters[0].base
    jobs = {}
    for joined in modules:
        rule = CUT if joined.rank < joined.together else JOINED
        role = Role.EMBEDDING if joined.embedding else Role.CONV1D if joined.outputs_last else Role.LINEAR
        for name, shape in ((joined.a, joined.a_shape), (joined.b, joined.b_shape)):
            jobs[name] = TensorJob(name, joined.tensor, role, rule, dtype, shape, (), None, name)
    tensors = [(job.name, job.dtype, job.shape) for job in jobs.values()]
    # PEFT reads one file, whatever its size
    whole = max(1, sum(job.nbytes for job in jobs.values()))
    shards = [replace(shard, file=ADAPTER[0][0]) for shard in layout.lay_out(tensors, whole)]
    sources = tuple(replace(source_of(adapter), adapted=None) for adapter in adapters)
    return Plan(
        recipe=recipe,
        seed=seed,
        donor=replace(source_of(base), download_bytes=0, missing=frozenset()),  # nothing of it is read
        models=sources,
        jobs=tuple(jobs[tensor.name] for shard in shards for tensor in shard.tensors),
        shards=tuple(shards),
        dropped=(),
        notes=tuple(dict.fromkeys(note for source in sources for note in source.notes)),
        max_shard_size=whole,
        memory_bytes=max(job.working_bytes for job in jobs.values()) + OVERHEAD_BYTES,
    )


def _merge(
    recipe: Recipe, prepared: _Prepared, output: OutputFolder, fingerprint: str, progress: Progress
) -> receipt.Receipt:
    """All that stands in the folder. ``recipe`` is as it was given."""
    before, made = resident_bytes(), prepared.plan
    folder = output.prepare()
    pins = pinning.to_remember(recipe.drawn(), made.recipe)
    with ExitStack() as stack:
        journal = Journal(folder, fingerprint, output.overwrite, pins)
        stack.callback(journal.close)
        writer = ShardWriter(folder, made.shards, journal)
        stack.callback(writer.close)
        for joined in prepared.modules:
            if not {joined.a, joined.b} <= writer.done:
                _write(joined, prepared, writer)
        shards = writer.finish()
        own = prepared.adapters[0]
        tasks = {adapter.lora.task for adapter in prepared.adapters}
        named = own.lora.base if len({adapter.lora.base for adapter in prepared.adapters}) == 1 else None
        task = tasks.pop() if len(tasks) == 1 else None
        text = json.dumps(adapter_config(prepared.modules, own.base.ref, named, task), indent=2)
        write_text(folder / CONFIG, text + "\n")
        progress.stage("verifying")
        verified = {"applies": _verify(folder, prepared)}
        if lost := _lost(journal):
            verified["rank"] = lost
        measured = {
            "device": "cpu",
            "seconds": round(journal.seconds, 3),
            "peak_resident_bytes": max(peak_resident_bytes(), journal.peak_before),
            "resident_bytes_before": before,
            "resumed": journal.resumed,
        }
        done = receipt.make(made, fingerprint, journal.entries, shards, measured, verified)
        text = made.recipe.to_yaml(output.path.absolute())
        write_text(folder / receipt.RECIPE_FILE, text)
        write_text(folder / card.CARD_FILE, _card(prepared, text))
        write_text(folder / RECEIPT, receipt.to_json(done))
    return done


def _write(joined: Joined, prepared: _Prepared, writer: ShardWriter) -> None:
    started = time.monotonic()
    a, b, cut = factors(joined, prepared.adapters, prepared.weights)
    rule = JOINED if cut is None else CUT
    record = {"rule": rule.name, "device": "cpu", "seconds": round(time.monotonic() - started, 4)}
    ranks = {"rank": joined.together, "kept": joined.rank}
    steps = {} if cut is None else {"steps": [{**ranks, "energy": cut.energy, "lost": cut.lost}]}
    for name, tensor, said in ((joined.a, a, {}), (joined.b, b, steps)):
        tensor = tensor.to(torch_dtype(prepared.plan.jobs[0].dtype))
        if not bool(torch.isfinite(tensor).all()):
            raise MergeError(f"{name} would hold values that are NaN or infinite")
        writer.write(name, 0, bytes_of(tensor.contiguous()))
        writer.complete(name, {**record, **said})


def _verify(folder: Path, prepared: _Prepared) -> str:
    """Whether what was written applies to the base as it should, as a clause. Raises VerificationError."""
    base = prepared.adapters[0].base
    written = ModelRef(str(folder), folder=folder.absolute())
    try:
        opened = open_adapter(base.ref.with_adapter(written), base)
    except CheckpointError as error:
        raise VerificationError("the adapter does not apply to its base", error.problems) from None
    ranks = {
        product.a: (product.rank, product.scale) for change in opened.changes.values() for product in change.low_rank
    }
    opened.adapter.close()
    if ranks != {joined.a: (joined.rank, 1.0) for joined in prepared.modules}:
        raise VerificationError("the adapter does not apply to its base as planned")
    return f"applies to {count(len(prepared.modules), 'module')} of {base.ref.name}, every value finite"


def _lost(journal: Journal) -> str:
    """What the cut to a rank cost, as a clause; "" without a cut."""
    steps = [step for entry in journal.entries.values() for step in entry.get("steps", [])]
    energy = sum(step["energy"] for step in steps)
    share = sum(step["lost"] for step in steps) / energy if energy else 0.0
    return f"{share:.2%} of the energy cut off in {count(len(steps), 'module')}" if steps else ""


def _card(prepared: _Prepared, recipe_yaml: str) -> str:
    """The README.md of the adapter."""
    made, base = prepared.plan, prepared.adapters[0].base.ref
    parts = [part for source in made.models for part in source.ref.parts]
    own = {part.ref.key: part for adapter in prepared.adapters for part in adapter.sources}
    sources = [card.source_card(part) for part in own.values()]
    repos = [part.repo for part in parts if part.repo]
    data = {
        **({"base_model": list(dict.fromkeys(repos))} if repos else {}),
        "library_name": "peft",
        "tags": ["lora", "merge", "dopkit"],
        "dopkit": {"merge_method": made.recipe.merge_method},
        **card.common_licence(sources),
    }
    ranks = sorted({joined.rank for joined in prepared.modules})
    rank = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
    opening = (
        f"A LoRA adapter of rank {rank} for {base.name}, merged from {count(len(made.models), 'adapter')} with dopkit, "
        f"by **{made.recipe.merge_method}**: {made.recipe.method.summary}."
    )
    front = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    recipe = f"## Recipe\n\n```yaml\n{recipe_yaml.strip()}\n```"
    licences = f"## Licences\n\n{card.licences(sources)}"
    return "\n\n".join([f"---\n{front}---", f"# {made.recipe.name}", opening, recipe, licences]) + "\n"
