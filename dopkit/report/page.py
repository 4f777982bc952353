"""The page: sections in reading order, with the style sheet inside. Knows what is on it, not how it is drawn."""

from __future__ import annotations

from dopkit import __version__
from dopkit.report import layers, relations, scores
from dopkit.report.data import FolderData
from dopkit.report.factors import as_matrices
from dopkit.report.markup import Markup, join, tag
from dopkit.report.sections import ending, evaluation, opening
from dopkit.report.sections import layers as layer_section
from dopkit.report.sections import relations as relation_section
from dopkit.report.style import style_sheet

DOCTYPE = Markup("<!doctype html>\n")


def render(folder: FolderData) -> str:
    """One HTML page that loads nothing. Raises OutputError when the evaluation or the relations are damaged."""
    done = folder.receipt
    scored = scores.read(done.get("evaluation"))
    related = relations.read(done.get("relations"))
    solved = layers.collect(*as_matrices(done["tensors"], folder.shapes))
    body = tag(
        "main",
        opening.opening(folder.name, done, scored),
        opening.merged(done, related),
        evaluation.evaluation(scored),
        relation_section.relations(related),
        layer_section.layers(solved, done),
        ending.run(done),
        ending.notes(done),
        ending.recipe(folder.recipe),
        tag("footer", tag("p", f"Made by dopkit {__version__} from the folder's receipt.")),
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{folder.name}: merge report"),
        tag("style", style_sheet()),
    )
    return join([DOCTYPE, tag("html", head, tag("body", body), lang="en"), "\n"])
