"""Unit tests for dopkit.recipe.reading: every message a wrong recipe gets, whole and with its line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dopkit.errors import RecipeError
from dopkit.recipe.reading import load_recipe, parse_recipe

GOOD = "base_model: u/base\nmerge_method: dop\nmodels:\n  - u/a\n  - u/b\n"  # five lines
KEYS = (
    "base_model, merge_method, models, slices, modules, methods, parameters, dtype, out_dtype, order, seed, heads, "
    "copy, output, rank, tokenizer_source, tokenizer, chat_template, repo_id, name"
)
EXACT = "solver: exact solves in closed form for a fixed alpha"


def problems(text: str) -> list[str]:
    """The problems of a recipe, one a line; the headline must count them."""
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text, folder="/data", shown="x.yaml")
    headline, *lines = str(caught.value).splitlines()
    assert headline == f"x.yaml has {len(lines)} problem{'s' if len(lines) > 1 else ''}"
    return [line.removeprefix("  ") for line in lines]


def test_a_good_recipe_has_none() -> None:
    assert [str(entry.model) for entry in parse_recipe(GOOD).models] == ["u/a", "u/b"]


# The document as a whole


@pytest.mark.parametrize("text", ["", "# nothing\n", "- u/a\n- u/b\n", "just words", "5", "~"])
def test_what_is_no_mapping(text: str) -> None:
    assert problems(text) == ["line 1: a recipe is a mapping of keys; `dopkit init` writes one to start from"]


def test_a_key_that_stands_twice() -> None:
    assert problems(GOOD + "merge_method: average\nmodels: []\n") == [
        "line 6: the key 'merge_method' stands twice (first in line 2)",
        "line 7: the key 'models' stands twice (first in line 3)",
    ]


def test_yaml_that_is_none() -> None:
    assert problems("models:\n  - u/a\n bad: 1\n") == [
        "line 3: not valid YAML: expected <block end>, but found '<block mapping start>'"
    ]


def test_an_alias_bomb() -> None:
    bomb = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
        f"{k}: &{k} [{','.join(['*' + j] * 10)}]\n" for j, k in ["ab", "bc", "cd", "de"]
    )
    assert problems(bomb) == [
        "line 1: the file is too large or too deeply nested for a recipe (aliases count each time)"
    ]


def test_aliases_are_fine() -> None:
    models = "models: [u/a, {model: u/b, parameters: &p {alpha: 0.5}}]\n"
    text = "base_model: u/base\nmerge_method: dop\n" + models + "parameters: *p\n"
    assert parse_recipe(text).parameters.model_dump()["alpha"] == 0.5


# Keys


def test_misspelt_keys_at_each_level() -> None:
    text = (
        "base_modle: u/base\n"
        "merge_mthod: dop\n"
        "models:\n"
        "  - modle: u/a\n"
        "  - model: u/b\n"
        "    paramters: {alpha: 0.5}\n"
        "paremeters:\n"
        "  alpha: 1\n"
        "zzz: 1\n"
    )
    assert problems(text) == [
        "line 1: unknown key 'base_modle' (did you mean 'base_model'?)",
        "line 2: unknown key 'merge_mthod' (did you mean 'merge_method'?)",
        "line 4: unknown key 'modle' (did you mean 'model'?)",
        "line 6: unknown key 'paramters' (did you mean 'parameters'?)",
        "line 7: unknown key 'paremeters' (did you mean 'parameters'?)",
        f"line 9: unknown key 'zzz' (known: {KEYS})",
    ]


def test_misspelt_parameters() -> None:
    names = "solver, history, alpha, svd_epsilon, svd_proj_space, rank_rule, scale, other, exclude"
    assert problems(GOOD + "parameters:\n  alhpa: 0.5\n  weight: 1\n") == [
        "line 7: unknown parameter 'alhpa' (did you mean 'alpha'?)",
        f"line 8: unknown parameter 'weight' (known: {names})",
    ]
    assert problems("merge_method: average\nmodels: [u/a]\nparameters: {weight: 1}") == [
        "line 3: unknown parameter 'weight' (known: none)"
    ]
    both = GOOD.replace("- u/b", "- {model: u/b, parameters: {aplha: 1}}")
    assert len(problems(both + "parameters: {alhpa: 0.5}\n")) == 2


def test_keys_of_mergekit_are_refused_by_name() -> None:
    assert problems(f"{GOOD}gate_mode: x\n") == ["line 6: 'gate_mode' is a mergekit key that dopkit does not support"]


def test_missing_keys() -> None:
    assert problems("dtype: float32\n") == ["line 1: 'merge_method' is missing", "line 1: 'models' is missing"]
    assert problems("merge_method: average\nmodels:\n  - u/a\n  - parameters: {}\n") == ["line 4: 'model' is missing"]


def test_keys_without_a_value() -> None:
    assert problems("base_model:\nmerge_method:\nmodels:\ndtype:\n") == [
        "line 2: 'merge_method' has no value",
        "line 3: 'models' has no value",
    ]
    assert problems("merge_method: average\nmodels: []\n") == ["line 2: 'models' is empty"]
    # lines that are commented out leave these behind
    recipe = parse_recipe(GOOD + "  - model: u/c\n    parameters:\nparameters:\ncopy:\ndtype:\nseed:\n")
    assert (recipe.parameters.model_fields_set, recipe.copied, recipe.models[2].parameters) == (set(), (), {})


# Values


def test_values_of_the_wrong_type() -> None:
    text = (
        "base_model: 5\n"
        "merge_method: [dop]\n"
        "models: u/a\n"
        "parameters: [alpha]\n"
        "dtype: int8\n"
        "out_dtype: 16\n"
        "order: random\n"
        "seed: true\n"
        "heads: keep\n"
        "copy: [a, 1]\n"
    )
    floats = "should be 'float32', 'float16', 'bfloat16' or 'float64'"
    assert problems(text) == [
        "line 1: base_model: 5 should be a string",
        "line 2: merge_method: a list should be a string",
        "line 3: models: 'u/a' should be a list",
        "line 4: parameters: a list should be a mapping",
        f"line 5: dtype: 'int8' {floats}",
        f"line 6: out_dtype: 16 {floats}",
        "line 7: order: 'random' should be 'given' or 'shuffle'",
        "line 8: seed: true should be a whole number",
        "line 8: 'seed' has no effect without `order: shuffle`",
        "line 9: heads: 'keep' should be 'base', 'drop' or 'per-task'",
        "line 10: copy: 1 should be a string",
    ]


def test_models_of_the_wrong_type() -> None:
    text = "merge_method: average\nmodels:\n- 5\n-\n- [u/a]\n- model: [u/b]\n- model:\n- model: u/c\n  parameters: 3\n"
    a_model = "a model is a reference (user/name or ./folder), or a mapping with the key 'model'"
    assert problems(text) == [
        f"line 3: {a_model}",
        f"line 4: {a_model}",
        f"line 5: {a_model}",
        "line 6: model: a list should be a string",
        "line 7: 'model' has no value",
        "line 9: parameters: 3 should be a mapping",
    ]


def test_parameters_out_of_bounds() -> None:
    text = (
        "parameters:\n"
        "  solver: adam\n"
        "  alpha: 1.5\n"
        "  lr: 0\n"
        "  num_steps: 1.5\n"
        "  svd_epsilon: yes\n"
        "  svd_proj_space: w\n"
        "  exclude: {a: b}\n"
        "  ema_beta: .nan\n"
        "  mgda:\n"
    )
    assert problems(GOOD + text) == [
        "line 8: alpha: 1.5 is not between 0 and 1",
        "line 9: lr: 0 should be greater than 0",
        "line 10: num_steps: 1.5 should be a whole number",
        "line 11: svd_epsilon: true should be a number",
        "line 12: svd_proj_space: 'w' should be 'uv', 'u' or 'v'",
        "line 13: exclude: a mapping should be a list",
        "line 14: ema_beta: nan should be a finite number",
        "line 15: 'mgda' has no value",
    ]


@pytest.mark.parametrize(("text", "alpha"), [("0.5", 0.5), ("1", 1.0), ("5e-1", 0.5), ("by-count", "by-count")])
def test_alpha_as_it_is_written(text: str, alpha: float | str) -> None:
    assert parse_recipe(GOOD + f"parameters: {{alpha: {text}}}").parameters.model_dump()["alpha"] == alpha


def test_1e_4_is_a_number() -> None:
    recipe = parse_recipe(GOOD + "parameters: {solver: adam, lr: 1e-4, svd_epsilon: 9e-1}")
    values = recipe.parameters.model_dump()
    assert (values["lr"], values["svd_epsilon"]) == (1e-4, 0.9)


def test_a_long_value_is_cut() -> None:
    (problem,) = problems(GOOD + f"dtype: {'x' * 200}\n")
    assert problem == "line 6: dtype: '" + "x" * 49 + "... should be 'float32', 'float16', 'bfloat16' or 'float64'"


# Methods and parameters together


def test_an_unknown_method() -> None:
    (problem,) = problems(GOOD.replace("dop", "dop-2") + "parameters: {anything: 1}\n")
    assert problem.startswith("line 2: unknown method 'dop-2' (did you mean 'dop'? known: ace, arcee_fusion, average")


def test_a_base_that_is_missing() -> None:
    what = "'base_model' is missing: dop works on task vectors, the differences from the base"
    assert problems("merge_method: dop\nmodels: [u/a]\n") == [f"line 1: {what}"]
    assert problems("models: [u/a]\nmerge_method: dop\nbase_model:\n") == [f"line 3: {what}"]
    assert problems("merge_method: dop\nbase_modl: u/b\nmodels: [u/a]\n") == [
        "line 2: unknown key 'base_modl' (did you mean 'base_model'?)"
    ]


def test_parameters_that_the_solver_does_not_read() -> None:
    assert problems(GOOD + "parameters:\n  lr: 1e-3\n  mgda: nonsense\n") == [
        f"line 7: 'lr' has no effect: {EXACT}; remove it",
        f"line 8: 'mgda' has no effect: {EXACT}; remove it",
    ]
    assert problems(GOOD + "parameters:\n  solver: adam\n  mgda: false\n  ema: true\n  ema_beta: 0.5\n") == [
        "line 9: 'ema' has no effect: with mgda: false the weight stays at alpha; remove it",
        "line 10: 'ema_beta' has no effect: with mgda: false the weight stays at alpha; remove it",
    ]


def test_parameters_of_a_single_model() -> None:
    text = (
        "base_model: u/base\nmerge_method: dop\nparameters: {lr: 1}\nmodels:\n"
        "  - model: u/a\n"
        "    parameters: {alpha: 0.5}\n"
        "  - model: u/b\n"
        "    parameters:\n"
        "      alpha: 2\n"
        "  - model: u/c\n"
        "    parameters:\n"
        "      weight: 1\n"
        "      svd_epsilon: 1\n"
        "  - model: u/d\n"
        "    parameters: {alpha: by-count}\n"
    )
    assert problems(text) == [
        f"line 3: 'lr' has no effect: {EXACT}; remove it",
        "line 6: the first model is taken as it is, so parameters for it have no effect",
        "line 9: alpha: 2 is not between 0 and 1",
        "line 12: unknown parameter 'weight' for a single model (those of dop: alpha)",
        "line 13: 'svd_epsilon' cannot be set per model with dop; set it under the recipe's own 'parameters'",
    ]
    assert problems("merge_method: average\nmodels: [{model: u/a, parameters: {weight: 1}}]") == [
        "line 2: unknown parameter 'weight' for a single model (those of average: none)"
    ]


def test_a_model_that_may_come_first_has_no_parameters_of_its_own() -> None:
    text = GOOD + "  - model: u/c\n    parameters: {alpha: 0.5}\norder: shuffle\n"
    assert problems(text) == ["line 7: with `order: shuffle` a model has no parameters of its own: it may come first"]


def test_a_seed_without_a_shuffle() -> None:
    assert problems(GOOD + "seed: 0\n") == ["line 6: 'seed' has no effect without `order: shuffle`"]
    assert problems(GOOD + "order: shuffle\nseed: -1\n") == ["line 7: seed: -1 should be greater than or equal to 0"]
    assert parse_recipe(GOOD + "order: shuffle\nseed: 3\n").seed == 3


# References


def test_what_is_no_reference() -> None:
    text = "base_model: u//b\nmerge_method: dop\nmodels:\n- u/a@b c\n- model: ''\n- ./fine\n"
    neither = "is neither a Hub repository (user/name or user/name@revision) nor a folder (./folder)"
    assert problems(text) == [
        f"line 1: 'u//b' {neither}",
        "line 4: 'u/a@b c': 'b c' is not a revision (a branch, tag or commit)",
        f"line 5: '' {neither}",
    ]


def test_a_model_that_is_listed_twice() -> None:
    text = GOOD + "  - u/a@main\n  - ./m\n  - model: ./x/../m/\n  - /data/m\n  - u/a@v1\n"
    assert problems(text) == [
        "line 6: u/a@main is listed twice (first in line 4); each model is merged once",
        "line 8: ./x/../m/ is listed twice (first in line 7); each model is merged once",
        "line 9: /data/m is listed twice (first in line 7); each model is merged once",
    ]


def test_the_base_may_be_one_of_the_models() -> None:
    assert len(parse_recipe(GOOD + "  - u/base\n").models) == 3


# Many at once, in the order of the lines, on every run

MANY = (
    "seed: 1\nbase_model: u/base\nmerge_method: dop\nmodels:\n  - u/a\n  - u/a\n  - u b\nfoo: 1\ndtype: half\n"
    "parameters: {alpha: 7, lr: 1, mgda: true, zzz: 1, other: x}\n"
)


def test_all_problems_are_told_at_once() -> None:
    names = "solver, history, alpha, svd_epsilon, svd_proj_space, rank_rule, scale, other, exclude"
    assert problems(MANY) == [
        "line 1: 'seed' has no effect without `order: shuffle`",
        "line 6: u/a is listed twice (first in line 5); each model is merged once",
        "line 7: 'u b' is neither a Hub repository (user/name or user/name@revision) nor a folder (./folder)",
        f"line 8: unknown key 'foo' (known: {KEYS})",
        "line 9: dtype: 'half' should be 'float32', 'float16', 'bfloat16' or 'float64'",
        f"line 10: 'lr' has no effect: {EXACT}; remove it",
        f"line 10: 'mgda' has no effect: {EXACT}; remove it",
        "line 10: alpha: 7 is not between 0 and 1",
        "line 10: other: 'x' should be 'mean', 'half' or 'base'",
        f"line 10: unknown parameter 'zzz' (known: {names})",
    ]


SCRIPT = """
import sys
from dopkit import DopkitError, load_recipe
try:
    load_recipe(sys.argv[1])
except DopkitError as error:
    print(error)
heavy = ("torch", "transformers", "huggingface_hub", "accelerate", "dopkit.receipt", "dopkit.planning")
print([name for name in heavy if name in sys.modules])
"""


def run(path: Path, hash_seed: str) -> list[str]:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    command = [sys.executable, "-c", SCRIPT, str(path)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()


def test_a_recipe_is_read_without_torch_or_the_hub(tmp_path: Path) -> None:
    (tmp_path / "good.yaml").write_text(GOOD)
    assert run(tmp_path / "good.yaml", "0") == ["[]"]


def test_problems_stand_in_one_order_whatever_the_hash_seed(tmp_path: Path) -> None:
    (tmp_path / "many.yaml").write_text(MANY)
    first, second, third = (run(tmp_path / "many.yaml", seed) for seed in "123")
    assert first == second == third
    assert len(first) == 12


# Files


def test_a_file_is_read_from_its_own_folder(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "mine.v2.yaml"
    path.parent.mkdir()
    path.write_bytes(b"\xef\xbb\xbf" + GOOD.replace("u/a", "../a").replace("\n", "\r\n").encode())
    recipe = load_recipe(path)
    assert recipe.name == "mine.v2"
    assert recipe.models[0].model.folder == tmp_path / "a"
    assert load_recipe(str(path)) == recipe


def test_a_file_with_problems_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text("")
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "x.yaml")
    assert caught.value.headline == f"{tmp_path / 'x.yaml'} has 1 problem"


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    def refusal(path: Path) -> list[str]:
        with pytest.raises(RecipeError) as caught:
            load_recipe(path)
        return str(caught.value).splitlines()

    binary = tmp_path / "model.bin"
    binary.write_bytes(b"\x80\x02\xff\xfe")
    assert refusal(tmp_path / "no.yaml") == [
        f"there is no recipe {tmp_path / 'no.yaml'}",
        "  `dopkit init` writes one to start from",
    ]
    assert refusal(binary) == [f"cannot read the recipe {binary}: it is not UTF-8 text"]
    assert refusal(tmp_path) == [f"cannot read the recipe {tmp_path}: Is a directory"]
    assert refusal(tmp_path / "a\0b") == [f"cannot read the recipe {tmp_path}/a\0b: embedded null byte"]


def test_a_file_of_zeros_is_no_recipe(tmp_path: Path) -> None:
    path = tmp_path / "zeros.yaml"
    path.write_bytes(bytes(100))
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert str(caught.value).splitlines()[1:] == ["  line 1: not valid YAML: the character '\\x00' is not allowed"]


def test_an_adapter_stands_beside_a_model() -> None:
    text = "merge_method: average\nmodels:\n- model: ./a+b\n  adapter: user/x\n- model: user/b\n  adapter: ./y\n"
    recipe = parse_recipe(text, folder="/r")
    first, second = (entry.model for entry in recipe.models)
    assert (first.folder, str(first.adapter)) == (Path("/r/a+b"), "user/x")
    assert (second.repo, second.adapter and second.adapter.folder) == ("user/b", Path("/r/y"))
    assert recipe.to_data(Path("/"))["models"] == [{"model": "./r/a+b", "adapter": "user/x"}, "user/b+./r/y"]
    assert parse_recipe(recipe.to_yaml(Path("/r")), name=recipe.name, folder="/r").models[0] == recipe.models[0]
    for adapter, said in (("user/c+user/d", "names an adapter of an adapter"), ("c:d", "is neither a Hub repository")):
        with pytest.raises(RecipeError, match=f"line 4: .*{said}"):
            parse_recipe(text.replace("user/x", adapter))


def test_a_rank_goes_with_an_adapter_as_the_output() -> None:
    text = "merge_method: average\nmodels: [u/a]\noutput: adapter\nrank: 8\n"
    recipe = parse_recipe(text)
    assert (recipe.output, recipe.rank) == ("adapter", 8)
    assert parse_recipe(recipe.to_yaml(Path())) == recipe
    for wrong, said in (
        (text.replace("output: adapter\n", ""), "line 3: 'rank' has no effect without `output: adapter`"),
        (text.replace("8", "0"), "line 4: "),
        (text.replace("adapter", "lora"), "line 3: "),
    ):
        with pytest.raises(RecipeError) as caught:
            parse_recipe(wrong)
        assert said in str(caught.value)
