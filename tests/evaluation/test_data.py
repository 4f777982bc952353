"""The samples of a task: found, understood, and refused before a model runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scored

from dopkit.errors import EvaluationError
from dopkit.evaluation.data import label_problem, open_samples
from dopkit.evaluation.tasks import Task, parse_tasks


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    np.savez(
        tmp_path / "a.npz", images=scored.grey(6), label=[0, 1, 2, 2, 1, 0], few=[0, 1],
        names=["zero", "one", "two", "two", "one", "zero"], odd=[0, 1, 2, 3, 9, 1], shares=np.linspace(0, 1, 6),
        text=["a cat", "", "a dog", "x", "y", "z"], blank=[" ", "\n"], floats=scored.grey(6).astype(np.float32),
        nothing=np.zeros((0, 8, 8), np.uint8), none=np.zeros(0, np.int64), rows=np.zeros((6, 99, 2)),
    )  # fmt: skip
    return tmp_path


def task(folder: Path, keys: str = "", kind: str = "image-classification", data: str = "a.npz") -> Task:
    return parse_tasks(f"tasks: [{{name: t, kind: {kind}, data: {data}, {keys}}}]", folder)[0]


def refusal(*arguments: Any, **named: Any) -> list[str]:
    with pytest.raises(EvaluationError) as caught:
        open_samples(task(*arguments, **named))
    return str(caught.value).splitlines()


def test_the_usual_columns(folder: Path) -> None:
    samples = open_samples(task(folder))
    assert (samples.columns, samples.rows) == ({"image": "images", "label": "label"}, 6)
    images = [image for batch in samples.images(4) for image in batch]
    assert np.array_equal(np.stack(images)[..., 1], scored.grey(6))


def test_a_limit_takes_the_first(folder: Path) -> None:
    samples = open_samples(task(folder, "limit: 2"))
    assert samples.rows == 2 and samples.labels("abc") == [0, 1]
    assert sum(map(len, samples.images(5))) == 2


@pytest.mark.parametrize("column", ["label", "names"])
def test_labels_are_numbers_or_names(folder: Path, column: str) -> None:
    samples = open_samples(task(folder, f"label: {column}"))
    assert samples.labels(["zero", "one", "two"]) == [0, 1, 2, 2, 1, 0]


def test_text(folder: Path) -> None:
    samples = open_samples(task(folder, kind="perplexity"))
    assert list(samples.texts(4)) == [["a cat", "", "a dog", "x"], ["y", "z"]]


@pytest.mark.parametrize(
    ("column", "classes", "problem"),
    [
        ("odd", "abc", "t: the label 3 is outside of what the head 'h' tells apart: 0 to 2"),
        ("names", ["zeros", "one", "two"],
         "t: the label 'zero' is no class of the head 'h' (did you mean 'zeros'?)"),
        ("names", "abcdefg", "t: the label 'zero' is no class of the head 'h' (its classes: a, b, c, d, e, ...)"),
        ("shares", "abc", "t: a label is a whole number or a name, but there is 0.0"),
        ("rows", "abc",
         "t: a label is a whole number or a name, but there is array([[0., 0.], [0., 0.], [0., 0.], [0., 0.], [0...."),
        ("label", "abc", None),
    ],
)  # fmt: skip
def test_labels_that_a_head_does_not_know(folder: Path, column: str, classes: list[str], problem: str | None) -> None:
    found = label_problem(open_samples(task(folder, f"label: {column}")), list(classes), "the head 'h'")
    assert (str(found) if found else None) == problem


def test_columns_that_are_not_there(folder: Path) -> None:
    lines = refusal(folder, "image: pictures, label: digit")
    assert lines[0] == "t: the data does not fit the task"
    assert lines[1].startswith("  t: a.npz holds no 'pictures'; it holds images, label, few, ")
    assert lines[2] == "    Name the column with `image:`."
    assert lines[3].startswith("  t: a.npz holds no 'digit'; ")


def test_what_cannot_be_scored(folder: Path) -> None:
    assert refusal(folder, "label: few") == ["t: a.npz holds 6 of images and 2 of few"]
    assert refusal(folder, "image: nothing, label: none") == ["t: a.npz is empty"]
    assert refusal(folder, "image: floats")[0].endswith("an image is uint8 from 0 to 255, but this one is float32")
    assert refusal(folder, "text: blank", kind="perplexity") == ["t: a.npz holds no word"]
    assert refusal(folder, "text: label", kind="perplexity") == ["t: label holds int64, no text"]
    assert refusal(folder, data="b.npz") == [f"t: there is no file or folder {folder}/b.npz"]
    (folder / "notes.txt").touch()
    assert "is neither an .npz nor a .parquet file" in refusal(folder, data="./notes.txt")[0]
    (folder / "empty").mkdir()
    assert refusal(folder, data="./empty") == ["t: empty is empty"]
