"""What a recipe says of the tokenizer: mergekit's words, how they are written back, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from dopkit.errors import RecipeError
from dopkit.recipe import Recipe
from dopkit.recipe.dialect import differences, is_mergekits
from dopkit.recipe.reading import parse_recipe
from dopkit.recipe.tokenizer import TokenizerSettings
from dopkit.refs import ModelRef

GOOD = "base_model: u/base\nmerge_method: average\nmodels: [u/a, ./b]\n"
FULL = """\
tokenizer:
  source: u/tokens
  tokens:
    <a>: {source: u/a}
    <b>:
      source: ./b
      force: true
    <zero>: {source: {kind: zero}}
    <like>: {source: {kind: model_token, model: u/a, token: <s>}}
    <number>: {source: {kind: model_token, model: u/a, token_id: 7}, force: true}
    <new>: {}
  pad_to_multiple_of: 64
"""


def parse(more: str) -> Recipe:
    return parse_recipe(GOOD + more, folder=Path("/recipes"))


def settings(more: str) -> TokenizerSettings:
    found = parse(more).tokenizer
    assert found is not None
    return found


def problems(more: str) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        parse(more)
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize("word", ["union", "base", "first"])
def test_one_word(word: str) -> None:
    spellings = (f"tokenizer_source: {word}\n", f"tokenizer: {word}\n", f"tokenizer: {{source: {word}}}\n")
    assert {settings(text).source for text in spellings} == {word}
    assert settings("tokenizer: {pad_to_multiple_of: 8}\n").source == "union"  # as in mergekit
    assert parse(f"tokenizer_source: {word}\n").to_data(Path("/recipes"))["tokenizer"] == word


def test_a_model() -> None:
    for text in ("tokenizer_source: ./b\n", "tokenizer: ./b\n", "tokenizer: {source: ./b}\n"):
        assert settings(text).model == ModelRef("./b", folder=Path("/recipes/b"))
    assert parse("tokenizer: ./b\n").tokenizer_ref is None  # it is merged
    outside = parse("tokenizer: u/tokens\n").tokenizer_ref
    assert outside is not None and outside.repo == "u/tokens"


def test_it_is_written_as_it_was_read() -> None:
    recipe = parse(FULL)
    written = recipe.to_data(Path("/recipes"))["tokenizer"]
    assert written == yaml.safe_load(FULL)["tokenizer"]
    assert parse_recipe(recipe.to_yaml(Path("/recipes")), folder=Path("/recipes")).tokenizer == recipe.tokenizer
    elsewhere = recipe.to_data(Path("/recipes/out"))["tokenizer"]
    assert elsewhere["tokens"]["<b>"]["source"] == "../b"


def test_refs_are_pinned() -> None:
    recipe = parse(FULL)
    commit = "a" * 40
    pins = {
        ref: ref.at(commit) for ref in (*recipe.refs, *recipe.tokenizer.row_models, recipe.tokenizer.model) if ref.repo
    }
    pinned = recipe.with_refs(pins).tokenizer
    assert pinned is not None and pinned.model is not None
    assert pinned.model.revision == commit
    assert {ref.text for ref in pinned.row_models} == {f"u/a@{commit}", "./b"}


def test_none() -> None:
    assert parse("").tokenizer is None
    assert parse("tokenizer:\ntokenizer_source:\nchat_template:\n").tokenizer is None
    assert "tokenizer" not in parse("").to_data(Path())


def test_what_is_wrong() -> None:
    assert problems("tokenizer: base\ntokenizer_source: base\n") == [
        "line 5: 'tokenizer_source' and 'tokenizer' are two words for one thing: keep one"
    ]
    assert problems("tokenizer_source: {source: base}\n") == [
        "line 4: tokenizer_source: is union, base, first or a model"
    ]
    assert problems("tokenizer: 3\n") == ["line 4: tokenizer: is union, base, first or a model, or a mapping"]
    assert problems("tokenizer: {sorce: base}\n") == ["line 4: unknown key 'sorce' (did you mean 'source'?)"]
    assert problems("tokenizer: {pad_to_multiple_of: 0}\n") == [
        "line 4: pad_to_multiple_of: 0 should be greater than or equal to 1"
    ]
    assert "'u b' is neither a Hub repository" in problems("tokenizer: u b\n")[0]


def test_what_is_wrong_with_a_token() -> None:
    tokens = "tokenizer:\n  tokens:\n"
    source = "source: is a model, {kind: zero}, or {kind: model_token, model: ..., token: ...}"
    for line, what in (
        ("<a>: {source: 3}", source),
        ("<a>: {force: true}", "'force' needs a source: whose row all models are to take"),
        ("<a>: {source: {kind: zero, model: u/a}}", "'model' has no effect: a row of zeros comes from no model"),
        ("<a>: {source: {kind: model_token, model: u/a}}",
         "kind: model_token needs a 'model', and either a 'token' or a 'token_id' of it"),
        ("<a>: {source: {kind: model_token, token: b}}",
         "kind: model_token needs a 'model', and either a 'token' or a 'token_id' of it"),
        ("<a>: {source: {kind: model_token, model: u/a, token: b, token_id: 1}}",
         "kind: model_token needs a 'model', and either a 'token' or a 'token_id' of it"),
        ("<a>: {source: u/c}", "u/c is no model of the recipe, so it has no row to give"),
        ("<a>: {froce: true}", "unknown key 'froce' (did you mean 'force'?)"),
    ):  # fmt: skip
        assert problems(f"{tokens}    {line}\n") == [f"line 6: {what}"], line


def test_a_chat_template() -> None:
    for text in ("auto", "chatml", "{{ messages }}"):
        recipe = parse(f"chat_template: '{text}'\n")
        assert recipe.chat_template == recipe.to_data(Path())["chat_template"] == text
    assert problems("chat_template: chat-ml\n") == [
        "line 4: chat_template: 'chat-ml' is no template that is known here (auto, alpaca, chatml, exaone, llama3, "
        "mistral), nor a Jinja text"
    ]


def test_what_mergekit_makes_otherwise() -> None:
    linear = GOOD.replace("average", "linear") + "parameters: {weight: 1}\n"
    recipe = parse_recipe(linear + "tokenizer: union\nchat_template: llama3\n")
    assert is_mergekits(recipe)
    said = "; ".join(differences(recipe))
    assert "keeps rows beyond the tokens" in said and "come with their merges" in said and "'llama3'" in said
    padded = parse_recipe(linear + "tokenizer: {source: base, pad_to_multiple_of: 8}\nchat_template: chatml\n")
    assert list(differences(padded)) == []
    assert not is_mergekits(parse_recipe(linear + "tokenizer: first\n"))
