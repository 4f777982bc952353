"""Adapters for the tests: made, filled with noise and saved by PEFT itself, and merged by it."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tiny
import torch

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
