"""Several documents in one file: how they refer to each other, and every way in which they cannot."""

from __future__ import annotations

from pathlib import Path

import pytest

from dopkit.errors import RecipeError
from dopkit.recipe.dialect import differences, is_mergekits
from dopkit.recipe.document import MOST_DOCUMENTS, read_all
from dopkit.recipe.reading import parse_recipe

A = "name: a\nmerge_method: linear\nmodels: [org/x, org/y]\nparameters: {weight: 1}\n"
B = "name: b\nmerge_method: task_arithmetic\nbase_model: org/base\nmodels: [a, org/z]\nparameters: {weight: 1}\n"
LAST = "merge_method: linear\nmodels: [a, b]\nparameters: {weight: 1}\n"


def problems(*documents: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        parse_recipe("---\n".join(documents))
    return list(map(str, caught.value.problems))


def test_names_are_stages_and_the_document_without_one_is_the_result() -> None:
    recipe = parse_recipe(f"---\n{LAST}---\n{B}---\n{A}---\n", name="file")
    assert [stage.name for stage in recipe.stages] == ["a", "b"]  # whatever their order in the file
    assert [one.model.stage for one in recipe.models] == ["a", "b"] and recipe.name == "file"
    a, b = (stage.recipe for stage in recipe.stages)
    assert (a.name, a.stages) == ("a", ()) and [stage.name for stage in b.stages] == ["a"]
    assert [ref.repo for ref in recipe.real_refs] == ["org/x", "org/y", "org/base", "org/z"]
    assert parse_recipe(recipe.to_yaml(Path("/")), name="file") == recipe


def test_of_named_documents_the_result_is_the_one_that_nobody_refers_to() -> None:
    recipe = parse_recipe(f"{A}---\n{B}", name="file")
    assert recipe.merge_method == "task_arithmetic" and [stage.name for stage in recipe.stages] == ["a"]


def test_a_name_in_a_file_of_one_document_is_left_alone() -> None:
    recipe = parse_recipe("name: My model!\nmerge_method: average\nmodels: [gpt2, org/y]")
    assert recipe.stages == () and recipe.models[0].model.repo == "gpt2"


def test_a_stage_goes_before_a_repository_of_its_name() -> None:
    text = A.replace("name: a", "name: gpt2") + "---\nmerge_method: average\nmodels: [gpt2, gpt2@main, ./gpt2]"
    first, second, third = (entry.model for entry in parse_recipe(text).models)
    assert (first.stage, second.repo, third.folder) == ("gpt2", "gpt2", Path("gpt2").absolute())
    assert len({first.key, second.key, third.key}) == 3 and not first.local


def test_an_adapter_on_a_stage() -> None:
    recipe = parse_recipe(f"{A}---\nmerge_method: average\nmodels: [a+org/lora, {{model: a, adapter: ./lora}}]")
    one, two = (entry.model for entry in recipe.models)
    assert (one.stage, one.adapter and one.adapter.repo) == ("a", "org/lora")
    assert two.local and two.adapter is not None and two.adapter.folder == Path("lora").absolute()
    assert [ref.text for ref in recipe.real_refs] == ["org/x", "org/y", "org/lora", "./lora"]
    assert parse_recipe(recipe.to_yaml(Path.cwd())).refs[1].key == two.key


def test_stages_everywhere_where_a_model_may_stand() -> None:
    text = """merge_method: linear
base_model: a
parameters: {weight: 1}
slices:
  - sources: [{model: a, layer_range: [0, 1]}, {model: b, layer_range: [1, 2]}]
"""
    recipe = parse_recipe(f"{A}---\n{B}---\n{text}")
    assert recipe.base_model is not None and recipe.base_model.stage == "a"
    assert [source.model.stage for part in recipe.parts for source in part.sources()] == ["a", "b"]


# What is refused


def test_problems_of_all_documents_are_told_together_with_the_lines_of_the_file() -> None:
    first, second = A.replace("linear", "linaer"), B.replace("models", "modles")
    found = problems(first, second, LAST.replace("weight", "wieght"))
    assert [problem.partition(" (")[0] for problem in found] == [
        "line 2: unknown method 'linaer'",
        "line 9: unknown key 'modles'",
        "line 13: 'weight' is missing: linear needs one for every model, here or for all of them",
        "line 14: unknown parameter 'wieght'",
    ]


@pytest.mark.parametrize(
    ("documents", "expected"),
    [
        ((A, A.replace("org/x", "org/w"), LAST.replace(", b", "")), [
            "line 6: another document is called 'a' (line 1)"
        ]),
        ((A, LAST.replace("b", "c")), [
            "line 7: no document is called 'c' (but a); write c@main for the Hub repository"
        ]),
        ((A.replace("org/x", "a"), LAST.replace(", b", "")), ["line 3: the stages need each other: a needs a"]),
        ((A.replace("org/x", "b"), B, LAST), ["line 3: the stages need each other: a needs b, b needs a"]),
        ((A, LAST.replace(", b", ""), LAST.replace(", b", "")), [
            "line 10: another document without a name (the first begins in line 6): the result is the document without "
            "a name, or the only one that nobody refers to"
        ]),
        ((A, B.replace("[a, ", "[org/k, ")), [
            "line 6: two results: nobody refers to it, nor to a (line 1): the result is the document without a name, "
            "or the only one that nobody refers to"
        ]),
        ((A, B, LAST.replace("[a, b]", "[org/m, org/n]")), [
            "line 1: the result does not need a",
            "line 6: the result does not need b",
        ]),
        ((A.replace("name: a", "name: ../a"), LAST.replace("[a, b]", "[org/m, org/n]")), [
            "line 1: '../a' is no name for a stage: letters and digits, behind the first also `_`, `-` and `.`"
        ]),
        ((A + "heads: per-task\nrepo_id: org/out\n", LAST.replace(", b", "")), [
            "line 5: a is a stage, and `heads: per-task` keeps heads beside a result alone",
            "line 6: 'repo_id' has no effect: a is a stage, and the result is published",
        ]),
        ((A, LAST.replace(", b", "") + "output: adapter\n"), [
            "line 9: 'output': an adapter is merged from adapters alone, so it neither is a stage nor has any"
        ]),
        (("name: a\nmerge_method: dop\nbase_model: org/b\nmodels: [org/x, org/y]\nparameters: {scale: norm}\n",
          LAST.replace(", b", "")), [
            "line 5: a is a stage, and `scale: norm` cannot be in one: its scale takes a second pass over the whole "
            "model; give `scale` a number"
        ]),
        (("name: a\nmerge_method: opcm\nbase_model: org/b\nmodels: [org/x, org/y]\n", LAST.replace(", b", "")), [
            "line 2: a is a stage, and `scale: norm` cannot be in one: its scale takes a second pass over the whole "
            "model; give `scale` a number"
        ]),
        (("name: a\nmerge_method: fisher\nmodels: [{model: org/x, parameters: {fisher: org/f}}, "
          "{model: org/y, parameters: {fisher: org/g}}]\n", LAST.replace(", b", "")), [
            "line 2: a is a stage, and fisher cannot be in one: it reads a file beside every model"
        ]),
        ((A, B, LAST.replace("[a, b]", "[b, org/z]") + "tokenizer: a\n"), [
            "line 15: a is a stage and none of the models that are merged here"
        ]),
        ((A, "- a\n- b\n"), ["line 6: a recipe is a mapping of keys; `dopkit init` writes one to start from"]),
        ((A, "a: [1\n"), ["line 7: not valid YAML: expected ',' or ']', but got '<stream end>'"]),
    ],
)  # fmt: skip
def test_documents_that_do_not_go_together(documents: tuple[str, ...], expected: list[str]) -> None:
    assert problems(*documents) == expected


def test_a_longer_way_round_is_told_once() -> None:
    link = "name: s{}\nmerge_method: average\nmodels: [s{}, org/y]\n"
    documents = [link.format(index, (index + 1) % 4) for index in range(4)]
    (found,) = problems(*documents, LAST.replace("[a, b]", "[s0, s1]"))
    assert found == "line 3: the stages need each other: s0 needs s1, s1 needs s2, s2 needs s3, s3 needs s0"


def test_many_documents_are_read_in_no_time_and_too_many_are_refused() -> None:
    """Each refers to all before it: ways through them are as many as grains of sand."""
    documents = [A.replace("name: a", "name: s0")]
    for index in range(1, MOST_DOCUMENTS - 1):
        models = ", ".join(f"s{before}" for before in range(index))
        documents.append(f"name: s{index}\nmerge_method: average\nmodels: [{models}]\n")
    assert len(parse_recipe("---\n".join(documents)).stages) == len(documents) - 1
    (problem,) = read_all("---\n".join(["a: 1\n"] * (MOST_DOCUMENTS + 1)))[0].problems
    assert "too large" in problem.what


def test_aliases_count_over_all_documents() -> None:
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a]\nc: [*b, *b, *b, *b, *b, *b]\n"
    assert read_all(bomb)[0].problems == []
    (problem,) = read_all("---\n".join([bomb] * 60))[0].problems
    assert "too large" in problem.what


def test_what_mergekit_makes_otherwise_is_told_of_every_document() -> None:
    recipe = parse_recipe(f"{A}dtype: bfloat16\n---\n{LAST.replace(', b', '')}")
    assert is_mergekits(recipe)
    told = list(differences(recipe))
    assert told[0].startswith("stage a: the arithmetic is in float32") and len(told) == 3
    ours = "name: a\nmerge_method: dop\nbase_model: org/b\nmodels: [org/x, org/y]\n"
    assert not is_mergekits(parse_recipe(f"{ours}---\n{LAST.replace(', b', '')}"))
