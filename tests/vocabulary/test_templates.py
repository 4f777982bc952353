"""The chat template of the result: which one, and that there is one alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import wordy

import dopkit
from dopkit.errors import PlanError
from dopkit.recipe.tokenizer import TEMPLATES
from dopkit.vocabulary.named_templates import NAMED
from dopkit.vocabulary.templates import most_common

MakeRecipe = Callable[..., dopkit.Recipe]


def written(recipe: dopkit.Recipe, out: Path) -> str | None:
    """What transformers takes for the template of the result."""
    from transformers import AutoTokenizer

    dopkit.run(recipe, out)
    found: str | None = AutoTokenizer.from_pretrained(out).chat_template
    return found


def test_the_most_common_one(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    wordy.make_three(tmp_path)
    recipe = make_recipe(tmp_path, ["e0", "e1"], tokenizer="base", chat_template="auto")
    assert "chat template: that of ./e0, which 2 of 3 models have" in dopkit.plan(recipe).notes
    assert written(recipe, tmp_path / "out") == "E {{ messages }}"


def test_of_as_many_the_first() -> None:
    assert most_common([None, "b", "a", "a", "b"]) == "b"
    assert most_common([None, None]) is None


def test_none_to_choose_from(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    for number, name in enumerate(("base", "e0")):
        wordy.make(tmp_path / name, number)
    with pytest.raises(PlanError, match="takes that of the models, and none of them has one"):
        dopkit.plan(make_recipe(tmp_path, ["e0"], chat_template="auto"))


def test_a_text(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    wordy.make(tmp_path / "base", 0)
    wordy.make(tmp_path / "e0", 1)
    text = "{% for one in messages %}{{ one.content }}\n{% endfor %}"
    assert written(make_recipe(tmp_path, ["e0"], chat_template=text), tmp_path / "out") == text


def test_one_in_the_config_gives_way(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    for number, name in enumerate(("base", "e0")):
        wordy.make(tmp_path / name, number)
        path = tmp_path / name / "tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": f"{name} {{{{ messages }}}}"}))
        (tmp_path / name / "chat_template.json").write_text("{}")
    assert written(make_recipe(tmp_path, ["e0"], chat_template="auto"), tmp_path / "auto") == "base {{ messages }}"
    assert written(make_recipe(tmp_path, ["e0"], chat_template="{{ 1 }}"), tmp_path / "out") == "{{ 1 }}"
    assert "chat_template" not in wordy.config(tmp_path / "out", "tokenizer_config.json")
    assert not (tmp_path / "out" / "chat_template.json").exists()
    assert wordy.config(tmp_path / "out", "tokenizer_config.json")["bos_token"] == "<s>"


CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi "},
    {"role": "assistant", "content": "Yes"},
    {"role": "user", "content": "Why?"},
]
# With the system message and a prompt, and without either.
NAMES = {
    "chatml": (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi <|im_end|>\n<|im_start|>assistant\n"
        "Yes<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>user\nHi <|im_end|>\n<|im_start|>assistant\nYes<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n",
    ),
    "llama3": (
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_header_id|>"
        "\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nYes<|eot_id|><|start_header_id|>user"
        "<|end_header_id|>\n\nWhy?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "<s><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
        "Yes<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|>",
    ),
    "alpaca": (
        "Be brief.\n\n### Instruction:\nHi\n\n### Response:\nYes\n\n### Instruction:\nWhy?\n\n### Response:\n",
        "### Instruction:\nHi\n\n### Response:\nYes\n\n### Instruction:\nWhy?\n\n",
    ),
    "mistral": (
        "<s>[INST] Be brief.\n\nHi [/INST] Yes</s>[INST] Why? [/INST]",
        "<s>[INST] Hi [/INST] Yes</s>[INST] Why? [/INST]",
    ),
    "exaone": (
        "[|system|]Be brief.[|endofturn|]\n[|user|]Hi \n[|assistant|]Yes[|endofturn|]\n[|user|]Why?\n[|assistant|]",
        "[|system|][|endofturn|]\n[|user|]Hi \n[|assistant|]Yes[|endofturn|]\n[|user|]Why?\n",
    ),
}


def test_templates_by_name(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    """As their makers lay a chat out. mergekit's have line ends and spaces too many in all but ChatML."""
    from transformers import AutoTokenizer

    assert NAMES.keys() == NAMED.keys() == {*TEMPLATES} - {"auto"}
    wordy.make(tmp_path / "base", 0)
    wordy.make(tmp_path / "e0", 1)
    for name, (whole, part) in NAMES.items():
        dopkit.run(make_recipe(tmp_path, ["e0"], chat_template=name), tmp_path / name)
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / name)
        assert tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True) == whole
        assert tokenizer.apply_chat_template(CHAT[1:], tokenize=False) == part
