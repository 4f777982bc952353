"""The model card: metadata that the Hub understands, and prose that says only what the run measured.

A pure function of receipt, recipe and what the sources say of themselves. Metadata is data, never formatted text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from dopkit import receipt
from dopkit.checkpoints import Checkpoint
from dopkit.errors import count
from dopkit.planning import Plan
from dopkit.receipt import Receipt
from dopkit.refs import ModelRef
from dopkit.units import show_seconds, show_size

# What a class is for: the end of its name, the Hub's task, the Auto class that loads it.
_TASKS = (
    ("ForCausalLM", "text-generation", "AutoModelForCausalLM"),
    ("LMHeadModel", "text-generation", "AutoModelForCausalLM"),
    ("ForImageClassification", "image-classification", "AutoModelForImageClassification"),
    ("ForSequenceClassification", "text-classification", "AutoModelForSequenceClassification"),
    ("ForTokenClassification", "token-classification", "AutoModelForTokenClassification"),
    ("ForQuestionAnswering", "question-answering", "AutoModelForQuestionAnswering"),
    ("ForMaskedLM", "fill-mask", "AutoModelForMaskedLM"),
    ("ForSpeechSeq2Seq", "automatic-speech-recognition", "AutoModelForSpeechSeq2Seq"),
    ("WhisperForConditionalGeneration", "automatic-speech-recognition", "AutoModelForSpeechSeq2Seq"),
    ("T5ForConditionalGeneration", "text2text-generation", "AutoModelForSeq2SeqLM"),
    ("CLIPModel", "zero-shot-image-classification", "AutoModel"),
    ("SiglipModel", "zero-shot-image-classification", "AutoModel"),
    ("ViTModel", "image-feature-extraction", "AutoModel"),
    ("Dinov2Model", "image-feature-extraction", "AutoModel"),
    ("BertModel", "feature-extraction", "AutoModel"),
)

CARD_FILE = "README.md"
_LONGEST_LABEL = 40  # characters
_ELSEWHERE = "  # or the folder or repository it is in"


@dataclass(frozen=True)
class SourceCard:
    """What a source's own card says that matters here."""

    model: str
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    datasets: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()


def source_card(checkpoint: Checkpoint) -> SourceCard:
    """What the card of an opened model says."""
    try:
        text = checkpoint.side_file(CARD_FILE).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        text = None
    return read_source_card(checkpoint.ref.name, text)


def read_source_card(model: str, readme: str | None) -> SourceCard:
    """The metadata block of a README; a card that cannot be read says nothing."""
    if not readme or not readme.startswith("---"):
        return SourceCard(model)
    try:
        data = yaml.safe_load(readme[3:].split("\n---", 1)[0])
    except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: a date that is none
        return SourceCard(model)
    if not isinstance(data, dict):
        return SourceCard(model)
    fields = ("license", "license_name", "license_link")
    licence = {key: data[key] for key in fields if isinstance(data.get(key), str)}
    return SourceCard(model, **licence, datasets=_listed(data.get("datasets")), languages=_listed(data.get("language")))


def _listed(value: Any) -> tuple[str, ...]:
    """A card may state one thing or a list. An unquoted ``no``, Norwegian, is False in YAML."""
    values = value if isinstance(value, list) else [value]
    return tuple("no" if item is False else item for item in values if item is False or isinstance(item, str))


def render(plan: Plan, done: Receipt, sources: Sequence[SourceCard], class_name: str | None, recipe_yaml: str) -> str:
    """The whole README.md. ``class_name`` is the model class, if it is known."""
    name = plan.recipe.name
    parts = [
        "---\n" + yaml.safe_dump(_metadata(plan, sources, class_name), sort_keys=False, allow_unicode=True) + "---",
        f"# {name}",
        _opening(plan),
        "## Models merged\n\n" + models_table(plan),
        "## Use\n\n" + _usage(name, class_name, headless=plan.headless, heads=done["heads"]),
        f"## Recipe\n\n```yaml\n{recipe_yaml.strip()}\n```\n\n" + again(plan),
        "## What the run measured\n\n" + measured(plan, done),
        "## Licences\n\n" + licences(sources),
    ]
    return "\n\n".join(parts) + "\n"


def _metadata(plan: Plan, sources: Sequence[SourceCard], class_name: str | None) -> dict[str, Any]:
    refs = [ref for source in (plan.donor, *plan.merged_models) for ref in source.refs]
    repos = dict.fromkeys(ref.repo for ref in refs if ref.repo)
    data: dict[str, Any] = {}
    if repos:
        data["base_model"] = list(repos)
        data["base_model_relation"] = "merge"
    data["library_name"] = "transformers"
    data["tags"] = ["merge", "dopkit"]
    data["dopkit"] = {"merge_method": plan.recipe.merge_method}  # `dopkit recipes search` shows it
    task = _task(class_name)
    if task:
        data["pipeline_tag"] = task[1]
    data |= common_licence(sources)
    if languages := _shared([source.languages for source in sources]):
        data["language"] = languages
    if datasets := _shared([source.datasets for source in sources]):
        data["datasets"] = datasets
    return data


def _shared(stated: Sequence[Sequence[str]]) -> list[str]:
    """What every source states, in the order of the first."""
    return [item for item in dict.fromkeys(stated[0] if stated else ()) if all(item in other for other in stated)]


def common_licence(sources: Sequence[SourceCard]) -> dict[str, str]:
    """The licence that every source states, as metadata; nothing when one differs or is silent."""
    stated = {(source.license, source.license_name, source.license_link) for source in sources}
    if len(stated) != 1:
        return {}
    keys = ("license", "license_name", "license_link")
    found = {key: value for key, value in zip(keys, stated.pop(), strict=True) if value}
    # `other` names a licence only together with its name and link.
    return found if "license" in found and (found["license"] != "other" or len(found) == len(keys)) else {}


def _task(class_name: str | None) -> tuple[str, str, str] | None:
    return next((task for task in _TASKS if class_name and class_name.endswith(task[0])), None)


def _opening(plan: Plan) -> str:
    method = plan.recipe.method
    models = len(plan.merged_models)
    how = f"**{method.name}**: {method.summary} ({method.paper})"
    return f"This model was merged from {models} model{'s' if models > 1 else ''} with dopkit, by {how}."


def models_table(plan: Plan) -> str:
    """The models that were merged, and those of every stage."""
    stages = (
        f"The stage `{name}` was merged on the way, by **{stage.plan.recipe.merge_method}**:\n\n{_table(stage.plan)}"
        for name, stage in plan.stages.items()
    )
    return "\n\n".join([_table(plan), *stages])


def _table(plan: Plan) -> str:
    rows = ["| | model | commit |", "|---|---|---|"]
    base = [("base", plan.donor)] if plan.recipe.base_model is not None else []
    for label, source in [*base, *((str(step), source) for step, source in enumerate(plan.merged_models, start=1))]:
        places, commits = zip(*map(_place, source.ref.parts), strict=True)
        rows.append(f"| {label} | {' + '.join(places)} | {' + '.join(filter(None, commits))} |")
    order = "" if plan.seed is None else f"\n\nThe order was drawn with seed {plan.seed}."
    return "\n".join(rows) + order


def _place(ref: ModelRef) -> tuple[str, str]:
    """Where a model, a base or an adapter is, and at which commit."""
    if ref.stage is not None:
        return f"the stage `{ref.stage}`", ""
    if ref.repo:
        return f"[{ref.repo}](https://huggingface.co/{ref.repo})", f"`{(ref.revision or '')[:12]}`"
    return f"a local folder, `{ref.name}`", ""


def addressed(text: str, repo_id: str) -> str:
    """The card for a repository: its snippets load the model from there. Whatever else was edited stays."""
    line = re.compile(rf'(from_pretrained|dopkit\.load)\("[^"\n]*"([^\n]*\)){re.escape(_ELSEWHERE)}')
    return line.sub(rf'\1("{repo_id}"\2', text)


def _usage(name: str, class_name: str | None, headless: bool, heads: Sequence[Mapping[str, Any]]) -> str:
    task = _task(class_name)
    auto = "AutoModel" if headless or task is None else task[2]
    load = f'model = {auto}.from_pretrained("{name}"){_ELSEWHERE}'
    text = f"```python\nfrom transformers import {auto}\n\n{load}\n```"
    if heads:
        return f"{text}\n\nThis is the backbone alone. {_heads(name, heads)}"
    return text + ("\n\nThis is the backbone alone: the models' output heads were left out." if headless else "")


def _heads(name: str, heads: Sequence[Mapping[str, Any]]) -> str:
    """How to load what was kept of each model beside the backbone."""
    load = f'model = dopkit.load("{name}", head="{heads[0]["name"]}"){_ELSEWHERE}'
    rows = ["| head | class | labels |", "|---|---|---|"]
    rows += [f"| `{head['name']}` | {head['architecture']} | {_labels(head)} |" for head in heads]
    snippet = f"```python\nimport dopkit\n\n{load}\n```"
    return "With the output head of a model it is that model's class:\n\n" + snippet + "\n\n" + "\n".join(rows)


def _labels(head: Mapping[str, Any]) -> str:
    """How many, and what the first of them are called; a card is no place for a thousand."""
    if not head["labels"]:
        return ""
    first = ", ".join(re.sub(r"[|`\s]+", " ", name)[:_LONGEST_LABEL] for name in head["first_labels"])
    more = ", ..." if len(head["first_labels"]) < head["labels"] else ""
    return f"{head['labels']}: {first}{more}" if first else str(head["labels"])


def again(plan: Plan) -> str:
    if plan.continues and plan.continues.inexact:
        return f"It was made in several merges, and the recipe in one gives something else: {plan.continues.inexact}."
    named = (ref for source in (*plan.sources, *plan.merged_models) for ref in source.refs)
    if not any(ref.local for ref in (*named, *plan.recipe.real_refs)):
        return f"Every model is named at the commit that was merged: `dopkit run {receipt.RECIPE_FILE}` makes it again."
    return "Some of the sources are local folders: only who has them can make it again."


def measured(plan: Plan, done: Receipt) -> str:
    run, lines = done["run"], []
    rules = ", ".join(f"{tensors} by `{rule}`" for rule, (tensors, _) in plan.rules().items())
    if plan.continues:
        lines.append(f"- the last of several merges, which added {count(len(plan.models) - 1, 'model')}:")
    lines.append(f"- {len(plan.jobs)} tensors, {show_size(plan.output_bytes)}: {rules}")
    left = len({(one.ref, one.name) for one in plan.dropped})
    if left:
        lines.append(f"- {left} input tensors left out; `dopkit_receipt.json` names each with the reason")
    if objective := receipt.objective(done):
        lines.append(f"- {objective}")
    lines.append(
        f"- {show_seconds(run['seconds'])} on {run['device']}, peak memory {show_size(run['peak_resident_bytes'])}"
    )
    lines.append(f"- verified: {'; '.join(done['verified'].values())}")
    lines += [f"- note: {note}" for note in plan.notes]
    return "\n".join(lines)


def licences(sources: Sequence[SourceCard]) -> str:
    if licence := common_licence(sources):
        return f"All sources state the same licence: {licence.get('license_name', licence['license'])}."
    stated = "\n".join(
        f"- {source.model}: {source.license_name or source.license or 'states none'}" for source in sources
    )
    return (
        "The sources do not all state one licence; which terms hold for the merge is for its user to judge.\n\n"
        + stated
    )
