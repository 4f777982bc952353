"""Fixtures that many tests share: tiny models made once a session, and recipes over them."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

# Before anything imports huggingface_hub: no test reaches out, and none finds somebody's token.
if "PYTEST_XDIST_WORKER" in os.environ:  # the cores are taken by the workers; children and reruns do the same
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as dopkit does, which is imported after torch here
os.environ.update(HF_HUB_DISABLE_TELEMETRY="1", HF_HUB_DISABLE_XET="1", HF_HUB_DISABLE_IMPLICIT_TOKEN="1")
os.environ["DOPKIT_CACHE"] = ""  # every test asks the model classes themselves

import tiny  # noqa: E402

import dopkit  # noqa: E402


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``base`` and experts ``e0`` to ``e3``: sharded bfloat16 Llamas with tokenizer files."""
    root = tmp_path_factory.mktemp("llama")
    base = tiny.make_llama(root / "base")
    for index in range(4):
        tiny.make_expert(base, root / f"e{index}", seed=index + 1)
    return root


@pytest.fixture(scope="session")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``base`` and experts ``e0`` to ``e2``: single-file float32 ViT backbones."""
    root = tmp_path_factory.mktemp("vit")
    base = tiny.make_vit(root / "base")
    for index in range(3):
        tiny.make_expert(base, root / f"e{index}", seed=index + 1)
    return root


@pytest.fixture(scope="session")
def make_recipe() -> Callable[..., dopkit.Recipe]:
    """``make_recipe(folder, ["e0", "e1"], method="dop", parameters=..., **keys)`` over models in one folder."""

    def make(
        root: Path, models: list[str], method: str = "dop", base: str | None = "base", **keys: object
    ) -> dopkit.Recipe:
        import yaml

        data: dict[str, object] = {"merge_method": method, "models": [f"./{model}" for model in models], **keys}
        if base is not None:
            data["base_model"] = f"./{base}"
        return dopkit.parse_recipe(yaml.safe_dump(data), name="merged", folder=root)

    return make
