"""The end of the page: facts of the run, notes, what was left out, and the recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dopkit.errors import count
from dopkit.report.markup import Markup, join, tag
from dopkit.report.sections.wording import code, full_name, section
from dopkit.report.tables import facts, lines, paragraph, table
from dopkit.units import show_seconds, show_size

_LISTED = 200  # names of left-out tensors that are listed


def run(done: Mapping[str, Any]) -> Markup:
    """Seconds, memory, device, versions, and what was verified."""
    made = done["run"]
    pairs = [
        ("Time", show_seconds(made["seconds"]) + (", after an interruption" if made.get("resumed") is True else "")),
        ("Device", made["device"]),
        ("Peak memory", show_size(made["peak_resident_bytes"])),
        ("Weight files", f"{len(done['shards'])}, {show_size(sum(shard['bytes'] for shard in done['shards']))}"),
        *((name, version) for name, version in done["versions"].items()),
    ]
    checks = lines([value[:1].upper() + value[1:] + "." for value in done["verified"].values()])
    return section("The run", facts(pairs), tag("h3", "Verified"), checks)


def notes(done: Mapping[str, Any]) -> Markup | None:
    """Notes of the plan and tensors left out; nothing when there are neither."""
    said = [str(note) for note in _listed(done.get("notes"))]
    dropped = [one for one in _listed(done.get("dropped")) if isinstance(one, dict)]
    if not said and not dropped:
        return None
    return section("Notes and what was left out", lines(said) if said else None, _dropped(dropped) if dropped else None)


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _dropped(dropped: list[dict[str, Any]]) -> Markup:
    groups: dict[tuple[str, str], list[str]] = {}
    for one in dropped:
        who = (full_name(str(one.get("model", ""))), str(one.get("why", "")))
        groups.setdefault(who, []).append(str(one.get("tensor", "")))
    rows = [(who, f"{len(names):,}", why) for (who, why), names in groups.items()]
    names = list(dict.fromkeys(name for names in groups.values() for name in names))
    more = f", the first {_LISTED}" if len(names) > _LISTED else ""
    return join([
        table("Tensors of the models that the merge leaves out", ["model", "tensors", "why"], rows, right=(1,)),
        tag("details", tag("summary", f"{count(len(names), 'name')}{more}"), lines(names[:_LISTED], code)),
    ])  # fmt: skip


def recipe(text: str) -> Markup | None:
    """The recipe as it lies in the folder."""
    if not text.strip():
        return None
    return section("Recipe", paragraph(code("dopkit run dopkit_recipe.yaml"), " makes this merge again."),
                   tag("pre", tag("code", text.strip()), class_="scroll", tabindex=0))  # fmt: skip
