"""Results on the card and in the receipt: what is replaced, and what stays."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from dopkit.errors import CheckpointError
from dopkit.evaluation import results
from dopkit.evaluation.recording import BEGIN, END, model_index, record, with_section
from dopkit.writer import EVALUATION

TASKS: list[dict[str, Any]] = [
    {"name": "mnist", "kind": "image-classification", "metric": "accuracy", "samples": 400, "model": "mnist",
     "data": "user/mnist", "split": "test", "config": "plain", "digest": "d1"},
    {"name": "signs", "kind": "image-classification", "metric": "accuracy", "samples": 40, "model": "signs",
     "data": "signs.npz", "zero_shot": True, "digest": "d2"},
    {"name": "prose", "kind": "perplexity", "metric": "perplexity", "samples": 9, "model": None,
     "data": "prose.parquet", "digest": "d3"},
]  # fmt: skip


def score(value: float) -> dict[str, Any]:
    return {"value": value, "samples": 400, "seconds": 1.0}


def evaluation(final: float = 0.75) -> dict[str, Any]:
    rows = [
        {"label": "step 1", "kind": "step", "step": 1, "model": "mnist", "weights": "w1",
         "scores": {"mnist": score(0.8), "prose": score(31.25)}},
        {"label": "step 2", "kind": "step", "step": 2, "model": "signs", "weights": "w2",
         "scores": {"mnist": score(final), "signs": score(0.5), "prose": score(30.0)}},
    ]  # fmt: skip
    return results.make(TASKS, rows, "cpu", {"torch": "2.13.0"})


CARD = """---
library_name: transformers  # a comment
tags:
- merge
---

# my merge

Text of mine.

## Licences

None.
"""


def test_the_table() -> None:
    assert results.matrix(evaluation()) == [
        ["", "model", "mnist", "signs", "prose"],
        ["step 1", "mnist", "80.0", "-", "31.25"],
        ["step 2", "signs", "75.0", "50.0", "30"],
    ]


def test_the_numbers_and_what_they_mean() -> None:
    acc, bwt, perplexity = results.sentences(evaluation())
    assert acc == "62.5% ACC: the mean accuracy of the final model over all classification tasks."
    assert bwt.startswith("-5.0% BWT (backward transfer): ")
    assert perplexity.startswith("Perplexity: exp of")


def test_the_section_and_the_metadata() -> None:
    card = with_section(CARD, evaluation(), "folder")
    assert card.startswith("---\nlibrary_name: transformers  # a comment\ntags:\n- merge\nmodel-index:\n")
    section = card.partition(BEGIN)[2].partition(END)[0]
    assert section.startswith(
        "\n## Evaluation\n\n|  | model | mnist | signs | prose |\n| --- | --- | --- | --- | --- |"
    )
    assert "| step 2 | signs | 75.0 | 50.0 | 30 |" in section
    assert "- 62.5% ACC: " in section and "- -5.0% BWT" in section
    assert card.index(END) < card.index("## Licences")


def test_the_hub_reads_the_metadata() -> None:
    """huggingface_hub's own reader finds every score of the final model."""
    data = ModelCard(with_section(CARD, evaluation(), "folder")).data
    assert data.model_name == "my merge"
    assert [
        (one.task_type, one.dataset_type, one.dataset_name, one.dataset_config, one.dataset_split, one.metric_type,
         one.metric_value)
        for one in data.eval_results
    ] == [
        ("image-classification", "user/mnist", "mnist", "plain", "test", "accuracy", 0.75),
        ("zero-shot-image-classification", "signs", "signs", None, None, "accuracy", 0.5),
        ("text-generation", "prose", "prose", None, None, "perplexity", 30.0),
    ]  # fmt: skip


def test_a_second_time_replaces_the_first_and_nothing_else() -> None:
    once = with_section(CARD, evaluation(0.6), "folder")
    edited = once.replace("Text of mine.", "Other text of mine.").replace("tags:\n- merge", "tags:\n- merge\n- vit")
    again = with_section(edited, evaluation(0.75), "folder")
    fresh = with_section(CARD, evaluation(0.75), "folder")
    assert again == fresh.replace("Text of mine.", "Other text of mine.").replace("- merge\n", "- merge\n- vit\n", 1)
    assert with_section(fresh, evaluation(0.75), "folder") == fresh


def test_metadata_below_an_older_index_stays() -> None:
    card = CARD.replace("tags:", "model-index:\n- name: old\n  results:\n  - task: {type: x}\n\n  # old\ntags:")
    data = yaml.safe_load(with_section(card, evaluation(), "folder")[4:].partition("\n---")[0])
    assert list(data) == ["library_name", "tags", "model-index"]
    assert data["model-index"] == model_index(evaluation(), "my merge")


@pytest.mark.parametrize("card", ["", "No metadata, no heading.\n", "---\n---\nEmpty metadata.\n"])
def test_a_card_with_little_in_it(card: str) -> None:
    done = with_section(card, evaluation(), "folder")
    assert done.count(BEGIN) == 1
    assert ModelCard(done).data.model_name == "folder"
    assert card.replace("---\n", "").strip() in done
    assert with_section(done, evaluation(), "folder") == done


def test_a_name_with_a_bar_does_not_break_the_table() -> None:
    odd = evaluation()
    odd["rows"][0]["model"] = "a|b"
    assert "| step 1 | a\\|b |" in with_section(CARD, odd, "folder")


def test_a_merge_gets_file_receipt_and_card(root: Path) -> None:
    merged = root / "merged"
    before = json.loads((merged / "dopkit_receipt.json").read_text())
    record(merged, evaluation())
    assert json.loads((merged / EVALUATION).read_text()) == evaluation()
    after = json.loads((merged / "dopkit_receipt.json").read_text())
    assert after.pop("evaluation") == evaluation()
    before.pop("evaluation", None)
    assert after == before
    assert BEGIN in (merged / "README.md").read_text()


def test_a_card_that_cannot_be_read(root: Path) -> None:
    (root / "merged/README.md").write_bytes(b"# caf\xe9\n")
    with pytest.raises(CheckpointError, match="README.md is not UTF-8 text"):
        record(root / "merged", evaluation())
    assert (root / "merged/dopkit_evaluation.json").is_file()


def test_a_plain_model_gets_the_file_alone(made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    shutil.copytree(made / "three", folder)
    (folder / "README.md").write_text(CARD)
    record(folder, evaluation())
    assert (folder / EVALUATION).is_file()
    assert (folder / "README.md").read_text() == CARD
