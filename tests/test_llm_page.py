"""docs/llm.md from top to bottom: every recipe, command and Python block, against a Hub on loopback."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import adapters
import pytest
import scored
import standins
import tiny
from click.testing import CliRunner
from hubserver import CLIENT_WARNING, TestHub, connect

from dopkit.cli import main

pytestmark = pytest.mark.filterwarnings(CLIENT_WARNING)

PAGE = (Path(__file__).parent.parent / "docs" / "llm.md").read_text()
TEMPLATE = "{% for message in messages %}[BEGIN] {{ message.content }} [END]{% endfor %}"
EXPERTS = ("chat", "code", "math", "roles")
ADAPTERS = ("lora-one", "lora-two", "lora-three")
PIECES = re.compile(r"^```(\w+)\n(.*?)^```|^    dopkit ([^\n]*)", re.MULTILINE | re.DOTALL)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[TestHub]:
    """A Hub with a base, four experts of it (one with a token of its own), and three adapters."""
    from transformers import PreTrainedTokenizerFast

    base = standins.language_model("Llama", layers=4)(tmp_path / "base")
    scored.make_tokenizer(base, "[BEGIN]", "[END]")
    for seed, name in enumerate(EXPERTS, 1):
        tiny.make_expert(base, tmp_path / name, seed)
    (tmp_path / "chat" / "chat_template.jinja").write_text(TEMPLATE)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path / "roles")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>"]})
    tokenizer.save_pretrained(tmp_path / "roles")
    for seed, name in enumerate(ADAPTERS, 1):
        adapters.make_adapter(base, tmp_path / name, seed=seed)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    with TestHub() as hub:
        connect(monkeypatch, hub, tmp_path / "cache", hub.token("user"))
        for name in ("base", *EXPERTS, *ADAPTERS):
            hub.add_folder(f"org/{name}", tmp_path / name)
        yield hub
        assert hub.crashes == []


def test_it_runs_from_top_to_bottom(hub: TestHub) -> None:
    from transformers import PreTrainedTokenizerFast

    commands = 0
    for language, text, command in PIECES.findall(PAGE):
        if language == "yaml":
            name = text.split("\n")[0].removeprefix("# ")
            Path(name).write_text(text)
        elif language == "python":
            exec(compile(text, "docs/llm.md", "exec"), {})
        elif command:
            commands += 1
            result = CliRunner().invoke(main, command.split())
            assert result.exit_code == 0, f"{command}: {result.output}"
    assert commands >= 13
    for folder in ("chat", "small", "from-mergekit", "skills", "adapters", "tokens"):
        assert (Path(folder) / "dopkit_receipt.json").exists(), folder
    assert "<|user|>" in PreTrainedTokenizerFast.from_pretrained("tokens").get_vocab()
    for repo in ("user/chat", "user/skills"):
        assert {"README.md", "dopkit_recipe.yaml", "tokenizer.json"} < hub.files(repo).keys()
