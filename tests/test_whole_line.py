"""The whole line as a user walks it, through the command line and the real client, against a Hub on loopback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import tiny
from click.testing import CliRunner, Result
from hubserver import CLIENT_WARNING, TestHub, connect

from dopkit.cli import main

pytestmark = pytest.mark.filterwarnings(CLIENT_WARNING)

RECIPE = "base_model: org/base\nmerge_method: dop\nmodels: [org/e0, org/e1, org/e2]\n"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, llama: Path) -> Iterator[TestHub]:
    with TestHub() as hub:
        connect(monkeypatch, hub, tmp_path / "cache", hub.token("user"))
        for name in ("base", "e0", "e1", "e2"):
            hub.create_repo(f"org/{name}", {})
            hub.add_folder(f"org/{name}", llama / name)
        yield hub
        assert hub.crashes == []


def dopkit(*arguments: str) -> Result:
    result = CliRunner().invoke(main, list(arguments))
    assert result.exit_code == 0, result.output
    return result


def test_from_a_recipe_to_a_published_model_and_back(
    hub: TestHub, tmp_path: Path, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    monkeypatch.chdir(tmp_path)
    Path("trio.yaml").write_text(RECIPE)
    dopkit("run", "trio.yaml", "--stream", "--push-to-hub", "--repo-id", "user/trio", "--max-shard-size", "6KB")

    # Nothing of the sources was stored, and the repository holds the whole model, made visible at once.
    assert not [path for path in (tmp_path / "cache").rglob("*.safetensors")]
    published = hub.files("user/trio", "main")
    assert {"README.md", "config.json", "dopkit_recipe.yaml", "dopkit_receipt.json", "tokenizer.json"} <= set(published)
    receipt = json.loads(published["dopkit_receipt.json"])
    for shard in receipt["shards"]:
        assert len(published[shard["file"]]) == shard["bytes"]

    model = transformers.AutoModelForCausalLM.from_pretrained("user/trio")
    assert type(model).__name__ == "LlamaForCausalLM"

    # The same from local folders, and again from what was published: the same bytes.
    Path("local.yaml").write_text(RECIPE.replace("org/", f"{llama}/"))
    dopkit("run", "local.yaml", "--max-shard-size", "6KB")
    dopkit("run", "user/trio", "-o", "again", "--max-shard-size", "6KB")
    weights = tiny.weights(tmp_path / "local")
    assert tiny.weights(tmp_path / "again") == weights
    assert {name: published[name] for name in weights} == weights

    shown = dopkit("show", "user/trio").stdout
    assert f"base_model: org/base@{hub.commit('org/base', 'main').sha}" in shown
    assert "user/trio" in dopkit("recipes", "search").stdout
    dopkit("recipes", "get", "user/trio", "-o", "copy.yaml")
    assert dopkit("check", "copy.yaml").stdout.startswith("copy.yaml is well-formed: dop over 3 models")

    # No token went to the storage host, into a file, or into what was published.
    assert not [entry for entry in hub.log if entry.host == "storage" and entry.auth]
    token = hub.token("user").encode()
    assert not [name for name, data in published.items() if token in data]
