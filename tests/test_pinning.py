"""Unit tests for the commits that an unfinished merge remembers."""

from __future__ import annotations

from pathlib import Path

import pytest

import dopkit
from dopkit import pinning
from dopkit.errors import OutputError
from dopkit.recipe import Recipe
from dopkit.writer import Journal, OutputFolder, read_journal

OLD, NEW = "1" * 40, "2" * 40
RECIPE = f"base_model: org/base@{NEW}\nmerge_method: dop\nmodels: [org/e0, org/e1@v1, ./e2]\n"


def parse(text: str = RECIPE, folder: Path = Path("/models")) -> Recipe:
    return dopkit.parse_recipe(text, folder=folder)


def begin(folder: Path, facts: dict[str, object], fingerprint: str = "f") -> OutputFolder:
    output = OutputFolder(folder / "out")
    Journal(output.prepare(), fingerprint, False, facts).close()
    return output


@pytest.fixture
def facts() -> dict[str, object]:
    recipe = parse()
    pinned = recipe.with_refs({ref: ref.at(OLD) for ref in recipe.refs if ref.repo and not ref.pinned})
    return pinning.to_remember(recipe, pinned)


def test_what_was_not_pinned_is_remembered(tmp_path: Path, facts: dict[str, object]) -> None:
    assert facts["pins"] == {"org/e0": OLD, "org/e1@v1": OLD}
    output = begin(tmp_path, facts)
    found = pinning.remembered(parse(), output)
    assert {str(ref): str(pin) for ref, pin in found.items()} == {
        "org/e0": f"org/e0@{OLD}",
        "org/e1@v1": f"org/e1@{OLD}",
    }
    assert pinning.remembered(parse(), OutputFolder(output.path, overwrite=True)) == {}


def test_a_recipe_is_the_same_wherever_it_is_read(tmp_path: Path, facts: dict[str, object]) -> None:
    output = begin(tmp_path, facts)
    assert pinning.remembered(parse(RECIPE.replace("./e2", "/models/e2"), tmp_path), output)
    assert not pinning.remembered(parse(folder=tmp_path), output)  # another folder e2
    assert not pinning.remembered(parse(RECIPE + "dtype: float32\n"), output)
    assert not pinning.remembered(parse(), OutputFolder(tmp_path / "elsewhere"))


@pytest.mark.parametrize("pins", [None, [], {"org/e0": "main"}, {"org/e0": 3}, {"other/model": OLD}])
def test_a_journal_that_says_nonsense_is_not_believed(tmp_path: Path, facts: dict[str, object], pins: object) -> None:
    assert pinning.remembered(parse(), begin(tmp_path, {**facts, "pins": pins})) == {}


def test_the_journal_keeps_the_first_line(tmp_path: Path, facts: dict[str, object]) -> None:
    output = begin(tmp_path, facts)
    begin(tmp_path, {"recipe": "later"})
    first, second = read_journal(output.partial)
    assert first == {"fingerprint": "f", **facts, "at": first["at"]}
    assert second["recipe"] == "later"
    assert read_journal(tmp_path) == []


def test_only_finished_tensors_are_in_the_way_of_another_merge(tmp_path: Path) -> None:
    output = begin(tmp_path, {})
    journal = Journal(output.partial, "other", False)
    assert [line["fingerprint"] for line in read_journal(output.partial)] == ["other"]
    journal.append({"name": "a"})
    journal.close()
    with pytest.raises(OutputError, match="unfinished merge of another recipe"):
        Journal(output.partial, "f", False)


def test_what_holds_more_than_a_journal_is_not_discarded(tmp_path: Path) -> None:
    output = begin(tmp_path, {})
    output.discard_untouched()
    assert not output.partial.exists()
    output.discard_untouched()
    begin(tmp_path, {})
    journal = Journal(output.partial, "f", False)
    journal.append({"name": "a"})  # its shard may be on the Hub by now
    journal.close()
    output.discard_untouched()
    assert output.partial.is_dir()
    (output.partial / "journal.jsonl").write_text("")
    (output.partial / "model.safetensors").touch()
    output.discard_untouched()
    assert output.partial.is_dir()


def test_a_tokenizer_is_remembered_as_well(tmp_path: Path) -> None:
    recipe = parse(RECIPE + "tokenizer: org/words\n")
    pinned = recipe.with_refs({ref: ref.at(OLD) for ref in recipe.all_refs if ref.repo and not ref.pinned})
    facts = pinning.to_remember(recipe, pinned)
    assert facts["pins"] == {"org/e0": OLD, "org/e1@v1": OLD, "org/words": OLD}
    found = pinning.remembered(recipe, begin(tmp_path, facts))
    assert recipe.tokenizer_ref is not None and str(found[recipe.tokenizer_ref]) == f"org/words@{OLD}"


def test_what_is_read_beside_a_model_keeps_its_commit(tmp_path: Path) -> None:
    text = "merge_method: fisher\nmodels:\n- {model: org/e0, parameters: {fisher: org/e0}}\n"
    text += "- {model: org/e1, parameters: {fisher: org/f1@v1}}\n"
    recipe = parse(text)
    pinned = recipe.with_refs({ref: ref.at(OLD) for ref in recipe.all_refs})
    facts = pinning.to_remember(recipe, pinned)
    assert facts["pins"] == {"org/e0": OLD, "org/e1": OLD, "org/f1@v1": OLD}
    found = pinning.remembered(parse(text), begin(tmp_path, facts))
    assert recipe.with_refs(found) == pinned
    assert [str(ref) for ref in pinned.companions] == [f"org/e0@{OLD}", f"org/f1@{OLD}"]
