"""Unit tests for dopkit.evaluation.tasks."""

from __future__ import annotations

from pathlib import Path

import pytest

from dopkit.errors import RecipeError
from dopkit.evaluation.tasks import Task, load_tasks, parse_tasks


def problems(text: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        parse_tasks(text)
    return [line.strip() for line in str(caught.value).splitlines()[1:]]


def test_a_task_and_its_defaults() -> None:
    (task,) = parse_tasks("tasks: [{name: mnist, kind: image-classification, data: ./heldout.npz}]", "/here")
    assert task == Task("mnist", "image-classification", "./heldout.npz", Path("/here/heldout.npz"), None)
    assert (task.metric, task.shown_data, task.batch_size, task.split) == ("accuracy", "heldout.npz", 64, "test")


def test_everything_that_a_task_may_say() -> None:
    (one, two) = parse_tasks(
        """
        tasks:
          - name: digits
            kind: image-classification
            data: user/mnist@v1
            split: validation
            config: plain
            image: picture
            label: digit
            zero_shot:
              classes: [zero, one]
              templates: ["a photo of the number {}."]
              base: user/clip
            model: user/vit
            limit: 10
            batch_size: 2
          - {name: prose, kind: perplexity, data: ./prose.parquet, text: body, max_length: 64}
        """
    )
    assert one.dataset is not None and (one.dataset.repo, one.dataset.revision) == ("user/mnist", "v1")
    assert one.columns == {"image": "picture", "label": "digit"}
    assert one.zero_shot is not None and one.zero_shot.classes == ["zero", "one"]
    assert one.base is not None and one.base.repo == "user/clip"
    assert (one.path, one.split, one.config, one.model, one.limit, one.batch_size) == (
        None, "validation", "plain", "user/vit", 10, 2,
    )  # fmt: skip
    assert (two.metric, two.columns, two.max_length) == ("perplexity", {"text": "body"}, 64)


@pytest.mark.parametrize(
    ("data", "path"),
    [
        ("a.npz", "/here/a.npz"), ("../b/a.parquet", "/b/a.parquet"), ("./images", "/here/images"),
        ("/x/images", "/x/images"), ("user/images", None), ("mnist", None),
    ],
)  # fmt: skip
def test_what_data_means_is_told_by_its_spelling(data: str, path: str | None) -> None:
    (task,) = parse_tasks(f"tasks: [{{name: a, kind: image-classification, data: {data}}}]", "/here")
    assert task.path == (None if path is None else Path(path))


def test_the_batch_size_and_the_name_do_not_change_a_result() -> None:
    def settings(more: str) -> object:
        return parse_tasks(f"tasks: [{{kind: image-classification, data: a.npz, {more}}}]")[0].settings

    assert settings("name: a, batch_size: 2") == settings("name: b, batch_size: 3, model: x")
    assert settings("name: a") != settings("name: a, limit: 5")


def test_all_problems_at_once_with_their_lines() -> None:
    text = """
tasks:
  - name: a
    kind: image-classification
    data: a b
    imge: x
  - name: a
    kind: guessing
    data: ./x.npz
    limit: 0
    split: train
  - kind: perplexity
    data: ./x.npz
    label: y
  - name: b
    kind: image-classification
    data: user/x
    head: b
    zero_shot: {classes: [0, one], template: ["a {}"], templates: [photo]}
  - nothing
  - {name: "a\\nb", kind: perplexity, data: ./x.npz}
task: 1
"""
    assert problems(text) == [
        "line 5: 'a b' is neither a file or folder (./images) nor a data set on the Hub (user/name)",
        "line 6: unknown key 'imge' (did you mean 'image'?)",
        "line 7: the name 'a' stands twice (first in line 3)",
        "line 8: kind: 'guessing' should be 'image-classification', 'text-classification' or 'perplexity'",
        "line 10: limit: 0 should be greater than 0",
        "line 11: 'split' is for data sets on the Hub",
        "line 12: 'name' is missing",
        "line 14: 'label' has no effect with kind perplexity",
        "line 19: unknown key 'template' (did you mean 'templates'?)",
        "line 19: classes: 0 should be a string",
        "line 19: the template 'photo' needs one {} where the class name goes",
        "line 19: a task has a head or is zero-shot, not both",
        "line 20: a task is a mapping of keys",
        "line 21: 'a\\nb' is no name that fits into a line of a table",
        "line 22: unknown key 'task' (did you mean 'tasks'?)",
    ]


@pytest.mark.parametrize(("classes", "said"), [("[]", "is empty"), ("[one]", "needs 2 entries at least")])
def test_too_few_classes(classes: str, said: str) -> None:
    keys = "name: a, kind: image-classification, data: ./x.npz"
    assert problems(f"tasks: [{{{keys}, zero_shot: {{classes: {classes}}}}}]") == [f"line 1: 'classes' {said}"]


@pytest.mark.parametrize("text", ["", "[]", "tasks:", "tasks: []", "tasks: {}", "tusks: []"])
def test_a_file_without_tasks(text: str) -> None:
    assert problems(text) == ["line 1: a task file is a mapping with a list of 'tasks'; docs/evaluation.md shows one"]


def test_a_file_that_is_no_yaml_or_not_there(tmp_path: Path) -> None:
    assert problems("tasks: [") == ["line 1: not valid YAML: expected the node content, but found '<stream end>'"]
    with pytest.raises(RecipeError, match="there is no task file"):
        load_tasks(tmp_path / "tasks.yaml")


def test_relative_paths_are_meant_from_the_files_folder(tmp_path: Path) -> None:
    (tmp_path / "tasks.yaml").write_text("tasks: [{name: a, kind: perplexity, data: a.parquet}]")
    assert load_tasks(tmp_path / "tasks.yaml")[0].path == tmp_path / "a.parquet"
