"""The model card: metadata the Hub understands, and no word that the run did not measure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import yaml

import dopkit
from dopkit import card
from dopkit.card import SourceCard, common_licence, read_source_card

MakeRecipe = Callable[..., dopkit.Recipe]


def test_licence_only_when_all_sources_agree() -> None:
    mit, apache, silent = SourceCard("a", "mit"), SourceCard("b", "apache-2.0"), SourceCard("c")
    assert common_licence([mit, SourceCard("d", "mit")]) == {"license": "mit"}
    assert common_licence([mit, apache]) == {}
    assert common_licence([mit, silent]) == {}
    assert common_licence([silent, silent]) == {}
    llama = SourceCard("e", "other", "llama3", "https://example.com/licence")
    assert common_licence([llama, llama]) == {
        "license": "other", "license_name": "llama3", "license_link": "https://example.com/licence"
    }  # fmt: skip
    assert common_licence([SourceCard("f", "other"), SourceCard("g", "other")]) == {}  # other what?


@pytest.mark.parametrize(
    ("readme", "licence"),
    [
        (None, None),
        ("# no metadata", None),
        ("---\nlicense: mit\n---\ntext", "mit"),
        ("---\nlicense: [mit]\n---\n", None),
        ("---\n{broken\n---\n", None),
        ("---\n- a list\n---\n", None),
    ],
)
def test_a_source_card_that_cannot_be_read_says_nothing(readme: str | None, licence: str | None) -> None:
    assert read_source_card("m", readme).license == licence


def test_datasets_and_languages_that_all_sources_share(llama: Path, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    one = read_source_card("a", "---\nlanguage: [en, no, de]\ndatasets: [org/x, org/y]\n---\n")
    two = read_source_card("b", "---\nlanguage: no\ndatasets: org/y\n---\n")
    assert (one.languages, two.languages) == (("en", "no", "de"), ("no",))  # Norwegian is no boolean
    assert (one.datasets, two.datasets) == (("org/x", "org/y"), ("org/y",))
    result = dopkit.run(make_recipe(llama, ["e0", "e1"]), tmp_path / "out")

    def front(*sources: SourceCard) -> dict[str, object]:
        text = card.render(result.plan, result.receipt, sources, None, "models: []")
        return dict(yaml.safe_load(text.split("---\n")[1]))

    assert (front(one, two)["language"], front(one, two)["datasets"]) == (["no"], ["org/y"])
    assert front(one)["language"] == ["en", "no", "de"]
    assert not {"language", "datasets"} & front(one, two, SourceCard("c")).keys()
    assert not {"language", "datasets"} & front().keys()


def test_the_snippet_gets_the_address_of_the_repository() -> None:
    mine = 'I load it with AutoModel.from_pretrained("mine").\n'
    text = mine + 'model = AutoModel.from_pretrained("x y")  # or the folder or repository it is in\n'
    assert card.addressed(text, "ann/m") == mine + 'model = AutoModel.from_pretrained("ann/m")\n'


def test_the_card_of_a_local_merge(llama: Path, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    result = dopkit.run(make_recipe(llama, ["e0", "e1"], order="shuffle", seed=1), tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    front = yaml.safe_load(text.split("---\n")[1])
    assert front == {
        "library_name": "transformers",
        "tags": ["merge", "dopkit"],
        "dopkit": {"merge_method": "dop"},
        "pipeline_tag": "text-generation",
        "license": "apache-2.0",
    }
    assert "AutoModelForCausalLM.from_pretrained(" in text
    assert (tmp_path / "out" / "dopkit_recipe.yaml").read_text().strip() in text
    assert "The order was drawn with seed 1." in text
    assert "only who has them can make it again" in text
    for clause in result.receipt["verified"].values():
        assert clause in text


def test_hub_sources_are_linked_at_their_commits(llama: Path, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    import dataclasses

    result = dopkit.run(make_recipe(llama, ["e0", "e1"]), tmp_path / "out")

    def on_the_hub(source: object, repo: str) -> object:
        commit = repo[-1] * 40
        ref = dopkit.refs.parse(f"{repo}@{commit}", tmp_path)
        return dataclasses.replace(source, ref=ref, identity=commit)  # type: ignore[type-var]

    plan = dataclasses.replace(
        result.plan,
        donor=on_the_hub(result.plan.donor, "org/base"),
        models=(on_the_hub(result.plan.models[0], "org/a"), on_the_hub(result.plan.models[1], "org/base")),
    )
    text = card.render(plan, result.receipt, [], None, "models: []")
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["base_model"] == ["org/base", "org/a"]  # base first, no repeats
    assert front["base_model_relation"] == "merge"
    assert "[org/a](https://huggingface.co/org/a) | `aaaaaaaaaaaa`" in text


def test_a_headless_merge_says_so(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    base = tiny.make_vit(tmp_path / "base", labels=3)
    tiny.make_expert(base, tmp_path / "e0", 1)
    dopkit.run(make_recipe(tmp_path, ["e0"], heads="drop"), tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "This is the backbone alone" in text
    assert "pipeline_tag: image-feature-extraction" in text
