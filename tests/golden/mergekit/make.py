"""How these files were made, once, with mergekit 0.1.5 from PyPI on the CPU (torch 2.13.0). No test runs this.

    python -m venv v && v/bin/pip install torch==2.13.0 mergekit==0.1.5
    PYTHONPATH=tests v/bin/python tests/golden/mergekit/make.py

``inputs`` holds a base and three experts: tests/tiny.py's Llama in float32 and three copies with noise, a part of which
is common to all; ``deep`` and d0 to d2 are such models of five layers. cases.yaml and dialect.yaml
name recipes; NAME.safetensors is what mergekit's `run_merge` wrote for the recipe NAME, all tensors in one file.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

import tiny
import torch
import yaml
from mergekit.config import MergeConfiguration
from mergekit.merge import run_merge
from mergekit.options import MergeOptions
from safetensors.torch import save_file

HERE = Path(__file__).parent
INPUTS = HERE / "inputs"


def make_inputs() -> None:
    base = tiny.make_llama(INPUTS / "base", dtype=torch.float32, shards=False)
    drifted = tiny.make_expert(base, INPUTS / "drifted", seed=9, scale=0.01)
    for index in range(3):
        tiny.make_expert(drifted, INPUTS / f"e{index}", seed=index + 1, scale=0.01 * (index + 1))
    shutil.rmtree(drifted)
    _only_the_weights()


def make_deep_inputs() -> None:
    deep = tiny.make_llama(INPUTS / "deep", dtype=torch.float32, shards=False, layers=5)
    for index in range(3):
        tiny.make_expert(deep, INPUTS / f"d{index}", seed=index + 11, scale=0.02)
    _only_the_weights()


def _only_the_weights() -> None:
    for file in INPUTS.rglob("*"):
        if file.is_file() and file.name not in ("config.json", "model.safetensors"):
            file.unlink()


def merged(recipe: dict) -> tiny.Tensors:
    text = yaml.safe_dump(recipe).replace("./", f"{INPUTS}/")
    options = MergeOptions(copy_tokenizer=False, write_model_card=False, random_seed=0, quiet=True)
    with tempfile.TemporaryDirectory() as folder:
        run_merge(MergeConfiguration.model_validate(yaml.safe_load(text)), folder, options)
        return tiny.read(Path(folder))


if __name__ == "__main__":
    if not INPUTS.exists():
        make_inputs()
    if not (INPUTS / "deep").exists():
        make_deep_inputs()
    cases = {**yaml.safe_load((HERE / "cases.yaml").read_text()), **yaml.safe_load((HERE / "dialect.yaml").read_text())}
    for name in sys.argv[1:] or cases:
        save_file(merged(cases[name]), HERE / f"{name}.safetensors", metadata={"format": "pt"})
