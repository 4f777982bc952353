"""``dopkit plan``: everything that ``run`` would do, and what it needs."""

from __future__ import annotations

from typing import Any

import click

from dopkit.cli.output import cut_as_published, json_option, keep_stages_option, merge_options, show_json, table
from dopkit.errors import count
from dopkit.units import show_seconds, show_shape, show_size


@click.command(short_help="Show what a merge would do and need.")
@click.argument("recipe", metavar="RECIPE")
@merge_options
@keep_stages_option
@click.option("--processes", metavar="N", type=click.IntRange(1), default=1, help="Show what each of N would do.")
@json_option
@click.option("-v", "--verbose", is_flag=True, help="List every tensor: role, rule, place.")
def plan(recipe: str, out: str | None, processes: int, as_json: bool, verbose: bool, **how: Any) -> None:
    """Show what merging RECIPE (a file, or user/name on the Hub) would do and need.

    Downloads no weights, writes nothing.
    """
    from dopkit import hub_recipes, pipeline
    from dopkit.processes import Processes

    origin = hub_recipes.pinned(recipe)
    loaded = hub_recipes.load_recipe(origin or recipe)
    cut_as_published(origin, how)
    made = pipeline.plan(loaded, out, pipeline.Options(processes=Processes(here=processes), **how))
    show(made, as_json, verbose, processes)


def show(made: Any, as_json: bool, verbose: bool, processes: int = 1) -> None:
    """Print a plan, and how so many ``processes`` on this machine would share it."""
    if as_json:
        shared = {"processes": _shares(made, processes)} if processes > 1 else {}
        show_json(as_data(made) | shared)
        return
    _stages(made)
    _sources(made)
    _layers(made.recipe.parts)
    _rules(made)
    if verbose:
        _tensors(made)
    for note in made.notes:
        click.echo(f"note: {note}")
    way = "streamed" if made.streamed else "of download"
    click.echo(f"memory: {_memory(made)}" + (", in each process" if processes > 1 else ""))
    click.echo(f"needs {show_size(made.download_bytes)} {way}, {_disk(made)}")
    if processes > 1:
        rows = [(str(rank), str(len(own["tensors"])), show_size(own["bytes"]), show_seconds(own["seconds"]))
                for rank, own in enumerate(_shares(made, processes))]  # fmt: skip
        click.echo("\n" + table([("process", "tensors", "written", "roughly"), *rows], right=(0, 1, 2, 3)))


def _memory(made: Any) -> str:
    """What the process comes to with the largest tensor in hand, and for how many of them there is room."""
    largest = max((job.held_bytes for job in made.jobs), default=0)
    at_once = max(1, made.work_bytes // max(1, largest))
    several = f", room for {at_once} such tensors at once" if 1 < at_once < 100 else ""
    whole, program = show_size(made.memory_bytes), show_size(made.program_bytes)
    return f"about {whole} with the largest tensor in hand, {program} of it the program itself{several}"


def _shares(made: Any, processes: int) -> list[dict[str, Any]]:
    """What each of so many processes would do, in rough seconds of one core."""
    from dopkit.planning.sharing import merging_cost, shares

    return [
        {"tensors": [job.name for job in own], "bytes": sum(job.nbytes for job in own)}
        | {"seconds": sum(map(merging_cost, own))}
        for own in shares(made.jobs, processes, merging_cost)
    ]


def _disk(made: Any) -> str:
    """What is written: the model, and what stands beside it."""
    model = f"{show_size(made.output_bytes)} of disk in {count(len(made.shards), 'file')}"
    steps, state = made.output_bytes * (len(made.written_steps) - 1), sum(shard.size for shard in made.state_shards)
    meanwhile = sum(shard.size for shard in made.unscaled_shards) * len(made.written_steps) + made.scratch_bytes
    stages = sum(stage.plan.output_bytes for stage in made.stages.values()) if made.keeps_stages else 0
    parts = {"for the stages": stages, "for earlier steps": steps, "for the state": state, "while it merges": meanwhile}
    return ", ".join([model, *(f"{show_size(nbytes)} {what}" for what, nbytes in parts.items() if nbytes)])


def _stages(made: Any) -> None:
    """What is merged on the way."""
    for name, stage in made.stages.items():
        click.echo(f"stage {name}:")
        _sources(stage.plan)
        _layers(stage.plan.recipe.parts)


def _sources(made: Any) -> None:
    rows = [("base", made.donor.ref.short, show_size(made.donor.nbytes))] if made.recipe.base_model else []
    for step, source in enumerate(made.models, made.first_step):
        label = f"1-{step}" if made.continues and 1 < step == made.first_step else str(step)
        rows.append((label, source.ref.short, show_size(source.nbytes)))
        for parameter, beside in made.companions[step - made.first_step].items() if made.companions else ():
            rows.append(("", f"  {parameter}: {beside.ref.short}", show_size(beside.nbytes)))
    click.echo(f"{made.recipe.merge_method}: {made.recipe.method.summary}")
    click.echo(table(rows, right=(2,)) + "\n")
    if made.continues:
        click.echo(_going_on(made) + "\n")


def _layers(parts: Any) -> None:
    """Which layers come from where."""
    rows = []
    for part in parts:
        start = 0
        for piece in part.slices:
            first = piece.sources[0].layers
            stop = start + (first[1] - first[0]) if first else None
            taken = [f"{one.model.name} {_range(*one.layers)}" if one.layers else one.model.name
                     for one in piece.sources]  # fmt: skip
            rows.append((part.module or "layers", "all" if stop is None else _range(start, stop), " + ".join(taken)))
            start = stop or 0
    if rows:
        click.echo(table([("part", "layers", "from"), *rows]) + "\n")


def _range(start: int, stop: int) -> str:
    return f"{start}-{stop - 1}" if stop - start > 1 else str(start)


def _going_on(made: Any) -> str:
    """Where a merge begins that goes on from an earlier one, and what it lost of that."""
    before = made.continues
    models, where = count(before.step, "model"), made.models[0].ref.short
    how = "the kept state of its folds is read" if before.kept else "from its weights"
    lost = f"\nnot what merging all {made.last_step} at once gives: {before.inexact}" if before.inexact else ""
    return f"goes on from {where} after {models} ({', '.join(one.ref.name for one in before.earlier)}): {how}{lost}"


def _rules(made: Any) -> None:
    counts: dict[tuple[str, str], list[int]] = {}
    for job in made.jobs:
        entry = counts.setdefault((str(job.role), job.rule.name), [0, 0])
        entry[0] += 1
        entry[1] += job.nbytes
    rows = [("role", "rule", "tensors", "written")]
    rows += [(role, rule, str(number), show_size(nbytes)) for (role, rule), (number, nbytes) in counts.items()]
    click.echo(table(rows, right=(2, 3)) + "\n")
    left: dict[str, int] = {}
    for dropped in made.dropped:
        left[dropped.why] = left.get(dropped.why, 0) + 1
    for why, number in left.items():
        click.echo(f"left out ({why}): {number} tensor{'s' if number > 1 else ''}")
    if made.heads:
        heads = ", ".join(f"{head.name} ({_of_head(head)})" for head in made.heads)
        click.echo(f"kept as heads/NAME.safetensors: {heads}")


def _of_head(head: Any) -> str:
    labels = "" if head.labels is None else f", {count(head.labels, 'label')}"
    return f"{head.architecture}, {count(len(head.tensors), 'tensor')}{labels}"


def _tensors(made: Any) -> None:
    place = {tensor.name: (shard.file, tensor.offset) for shard in made.shards for tensor in shard.tensors}
    rows = [("tensor", "shape", "dtype", "role", "rule", "file", "offset", *_varying(made))]
    for job in made.jobs:
        file, offset = place[job.name]
        row = (job.name, show_shape(job.shape), job.dtype, str(job.role), job.rule.name, file, str(offset))
        rows.append((*row, *(_in_force(job, name) for name in _varying(made))))
    click.echo(table(rows, right=(6,)) + "\n")
    for head in made.heads:
        for spec in head.tensors:
            click.echo(f"kept: {spec.name} of {head.ref.short}, {show_shape(spec.shape)} {spec.dtype}, in {head.file}")
    for one in made.dropped:
        click.echo(f"left out: {one.name} of {one.ref.short} ({one.why})")


def _varying(made: Any) -> list[str]:
    """The parameters that are not the same for every tensor, or not for every model."""
    if made.recipe.settled:
        return []
    own = [one.given() for job in made.jobs for one in job.parameters]
    return sorted({name for given in own for name in given if any(given[name] != one.get(name) for one in own)})


def _in_force(job: Any, name: str) -> str:
    """A parameter's value for one tensor, or that of every model where they differ."""
    values = [one.in_force().get(name) for one in job.parameters]
    shown = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in values if value is not None]
    return shown[0] if len(set(shown)) == 1 else ", ".join(shown)


def _continues(before: Any) -> dict[str, Any]:
    earlier = [source.ref.text for source in before.earlier]
    return {"after": before.step, "models": earlier, "reads_state": before.kept, "inexact": before.inexact}


def as_data(made: Any) -> dict[str, Any]:
    """The plan as JSON data."""
    return {
        "method": made.recipe.merge_method,
        "base": made.donor.ref.text if made.recipe.base_model else None,
        "models": [source.ref.text for source in made.models],
        "companions": [{name: beside.ref.text for name, beside in own.items()} for own in made.companions],
        "stages": [
            {"name": name, "method": stage.plan.recipe.merge_method}
            | {"base": stage.plan.donor.ref.text if stage.plan.recipe.base_model else None}
            | {"models": [source.ref.text for source in stage.plan.models]}
            for name, stage in made.stages.items()
        ],
        "continues": made.continues and _continues(made.continues),
        "tensors": [
            {"name": job.name, "canonical": job.canonical, "shape": list(job.shape), "dtype": job.dtype}
            | {"role": str(job.role), "rule": job.rule.name}
            for job in made.jobs
        ],
        "files": [
            {
                "file": shard.file,
                "bytes": shard.size,
                "offsets": {tensor.name: tensor.offset for tensor in shard.tensors},
            }
            for shard in made.shards
        ],
        "heads": [
            {"name": head.name, "model": head.ref.text, "architecture": head.architecture, "labels": head.labels}
            | {"file": head.file, "tensors": {spec.name: list(spec.shape) for spec in head.tensors}}
            for head in made.heads
        ],
        "left_out": [{"model": one.ref.text, "tensor": one.name, "why": one.why} for one in made.dropped],
        "notes": list(made.notes),
        "streamed": made.streamed,
        "needs": {"download": made.download_bytes, "disk": made.disk_bytes, "memory": made.memory_bytes},
        "memory": {"program": made.program_bytes, "tensors_in_hand": made.work_bytes, "ahead": made.buffers.ahead}
        | {"behind": made.buffers.behind},
    }
