"""Short names are as short as they can be, and never the same twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from dopkit import refs
from dopkit.short_names import short_names


@pytest.mark.parametrize(
    ("texts", "names"),
    [
        (["user/vit-mnist", "./models/digits"], ["vit-mnist", "digits"]),
        (["user/vit", "other/vit", "user/bert"], ["user--vit", "other--vit", "bert"]),
        (["./run-1/model", "./run-2/model", "me/model"], ["run-1--model", "run-2--model", "me--model"]),
        (["user/vit@v1", "user/vit@v2"], ["user--vit", "user--vit-2"]),
        (["gpt2", "org/base+me/adapter", "org/base+./lora"], ["gpt2", "adapter", "lora"]),
    ],
)
def test_short_names(texts: list[str], names: list[str]) -> None:
    assert list(short_names([refs.parse(text, Path("/home/me")) for text in texts])) == names
