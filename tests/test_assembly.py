"""The files beside the weights: from the base, with the config corrected."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import tiny

import dopkit
from dopkit.assembly import corrected_config

MakeRecipe = Callable[..., dopkit.Recipe]


def config(folder: Path) -> dict[str, object]:
    data: dict[str, object] = json.loads((folder / "config.json").read_text())
    return data


def test_side_files_come_from_the_base(llama: Path, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    base = tiny.edit(llama / "base", tmp_path / "base", dict)
    expert = tiny.edit(llama / "e0", tmp_path / "e0", dict)
    (base / "modeling_own.py").write_text("raise SystemExit('never run')")
    (base / "notes.txt").write_text("not a side file")
    (base / "additional_chat_templates").mkdir()
    (base / "additional_chat_templates" / "tool.jinja").write_text("{{ tools }}")
    (expert / "chat_template.jinja").write_text("another one")
    dopkit.run(make_recipe(tmp_path, ["e0"]), tmp_path / "out")
    out = tmp_path / "out"
    for name in ("tokenizer.json", "generation_config.json", "chat_template.jinja", "modeling_own.py",
                 "additional_chat_templates/tool.jinja"):  # fmt: skip
        assert (out / name).read_bytes() == (base / name).read_bytes(), name
    assert not (out / "notes.txt").exists()


def test_the_config_states_the_dtype_that_was_written(llama: Path, tmp_path: Path, make_recipe: MakeRecipe) -> None:
    plan = dopkit.run(make_recipe(llama, ["e0"], dtype="float16"), tmp_path / "out").plan
    assert config(tmp_path / "out")["dtype"] == "float16"
    for key in ("dtype", "torch_dtype"):  # the key that is there, in the parts of a model too
        before = {key: "bfloat16", "text_config": {key: "bfloat16", "layers": 2}, "vision_config": {"layers": 3}}
        assert corrected_config(before, plan, None) == {
            key: "float16", "text_config": {key: "float16", "layers": 2}, "vision_config": {"layers": 3}
        }  # fmt: skip
    assert corrected_config({"layers": 2}, plan, None) == {"layers": 2, "dtype": "float16"}


def test_without_heads_the_config_forgets_them(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    base = tiny.make_vit(tmp_path / "base", labels=3)
    tiny.make_expert(base, tmp_path / "e0", 1)
    dopkit.run(make_recipe(tmp_path, ["e0"], heads="drop"), tmp_path / "out")
    found = config(tmp_path / "out")
    assert found["architectures"] == ["ViTModel"]
    assert not {"id2label", "label2id", "num_labels"} & found.keys()
