"""Adapters for the tests: made, filled with noise and saved by PEFT itself, and merged by it."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tiny
import torch

import dopkit
from dopkit import refs
from dopkit.checkpoints import open_checkpoint

LORA = {"r": 4, "lora_alpha": 12, "target_modules": ["q_proj", "v_proj", "down_proj"]}


@contextmanager
def peft_warnings() -> Iterator[None]:
    """PEFT warns of what it is asked to do, and torch of what PEFT does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def make_adapter(
    base: Path,
    folder: Path,
    model_class: type | None = None,
    seed: int = 0,
    scale: float = 0.05,
    stored_embeddings: bool = True,
    **config: Any,
) -> tiny.Tensors:
    """A LoRA adapter on the model in ``base``, saved in ``folder``; the tensors of what PEFT merges it to, in float32.

    The trained tensors are filled with noise. PEFT stores an embedding with factors whole as well, unless told not to.
    """
    import peft
    import transformers

    with peft_warnings():
        loader = model_class or transformers.AutoModelForCausalLM
        model = loader.from_pretrained(base, dtype=torch.float32)
        torch.manual_seed(seed)
        adapted = peft.get_peft_model(model, peft.LoraConfig(**{**LORA, **config}))
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad:
                noise = scale * torch.randn(parameter.shape, generator=generator)
                magnitude = "magnitude" in name
                parameter.data = parameter.data * (1 + noise) if magnitude else parameter.data + noise
        adapted.save_pretrained(folder, save_embedding_layers="auto" if stored_embeddings else False)
        merged = adapted.merge_and_unload()
        whole = folder.with_name(f"{folder.name}-merged")
        merged.save_pretrained(whole)
    tensors = tiny.read(whole)
    shutil.rmtree(whole)
    return tensors


ADAPTERS: tuple[dict[str, Any], ...] = (
    {"target_modules": ["q_proj", "v_proj", "embed_tokens"]},
    {"target_modules": ["q_proj", "down_proj"], "r": 3, "use_rslora": True},
    {"target_modules": ["q_proj", "embed_tokens"], "r": 2, "rank_pattern": {"layers.1.self_attn.q_proj": 5}},
    {"target_modules": ["q_proj", "k_proj", "down_proj", "lm_head"], "r": 2, "lora_alpha": 5},
)


def make_adapted(root: Path) -> Path:
    """In ``root`` a Llama ``base`` in float32 and adapters ``a0`` to ``a3`` of several ranks, modules and scales."""
    base = tiny.make_llama(root / "base", dtype=torch.float32)
    for number, config in enumerate(ADAPTERS):
        make_adapter(base, root / f"a{number}", seed=number, stored_embeddings=False, **config)
    return root


def recipe(root: Path, method: str = "average", models: str = "[./a0, ./a1, ./a2]", **keys: object) -> dopkit.Recipe:
    """Of the adapters in ``root``."""
    lines = [f"{key}: {json.dumps(value)}" for key, value in keys.items()]
    text = "\n".join([f"merge_method: {method}", "base_model: ./base", f"models: {models}", *lines])
    return dopkit.parse_recipe(text, folder=root)


def applied(root: Path, adapter: Path) -> tiny.Tensors:
    """The base with an adapter, as dopkit reads it."""
    model = open_checkpoint(refs.parse("./base", root).with_adapter(refs.parse(str(adapter), root)))
    return {name: model.read(name) for name in model.specs}


def assert_the_full_merge(root: Path, out: Path, made: dopkit.Recipe) -> None:
    """The adapter in ``out`` against what ``made`` gives as a whole model, which is put beside it."""
    whole = made.model_copy(update={"output": "model", "rank": None})
    dopkit.run(whole, out.with_name("whole"))
    base, ours, full = tiny.read(root / "base"), applied(root, out), tiny.read(out.with_name("whole"))
    for name, tensor in full.items():
        distance = float((ours[name] - tensor).norm())
        # beside the task vector, what rounding to float32 does to the merged weights themselves
        assert distance <= 1e-5 * float((tensor - base[name]).norm()) + 1e-7 * float(tensor.norm()), name
