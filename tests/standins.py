"""Tiny models that stand in for the repositories a recipe names: of the same architecture, related in the same way.

Each repository ``user/name`` becomes the folder ``user/name`` below one root. All weights are random, in float32, and
every model differs from what it was fine-tuned from in every floating tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import adapters
import scored
import tiny
import torch

import dopkit
from dopkit import refs

Maker = Callable[[Path], Path]
LAYERS = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {**LAYERS, "vocab_size": 64, "max_position_embeddings": 32}


def local(recipe: dopkit.Recipe, root: Path) -> dopkit.Recipe:
    """The recipe with every repository replaced by its folder below ``root``."""
    return recipe.with_refs({ref: refs.parse(f"./{ref.repo}", root) for ref in recipe.refs})


def saved(name: str, **config: Any) -> Maker:
    """A maker of models of the class ``name`` of transformers."""

    def make(folder: Path) -> Path:
        import transformers

        model_class = getattr(transformers, name)
        torch.manual_seed(0)
        model = model_class(model_class.config_class(**config))
        scored.stir(model)  # norms and biases are no ones and zeros any more
        model.save_pretrained(folder)
        return folder

    return make


def language_model(family: str, layers: int = 3) -> Maker:
    """A decoder of the family ``Llama``, ``Mistral`` or ``Qwen2``."""
    sizes = {**TEXT, "num_hidden_layers": layers, "num_key_value_heads": 1}
    return saved(f"{family}ForCausalLM", **sizes, pad_token_id=0, bos_token_id=1, eos_token_id=2)


def of_one_base(make: Maker, base: str = "the/base") -> Callable[[Path, Sequence[str]], None]:
    """Models that differ from ``base``, which is one of the recipe's or stays unseen, by noise."""

    def write(root: Path, names: Sequence[str]) -> None:
        made = make(root / base)
        for seed, name in enumerate(names, 1):
            if name != base:
                tiny.make_expert(made, root / name, seed)

    return write


def towers(root: Path, names: Sequence[str]) -> None:
    """A whole CLIP, and vision towers fine-tuned from its own."""
    import transformers

    whole = scored.make_clip(root / names[0])
    transformers.CLIPVisionModel.from_pretrained(whole).save_pretrained(root / "tower")
    for seed, name in enumerate(names[1:], 1):
        tiny.make_expert(root / "tower", root / name, seed)


def classifiers(base: Maker, model: str, **config: Any) -> Callable[[Path, Sequence[str]], None]:
    """A base, and classifiers of 2, 3, 4 ... classes on it."""

    def write(root: Path, names: Sequence[str]) -> None:
        base(root / names[0])
        for number, name in enumerate(names[1:], 2):
            head = saved(model, **config, num_labels=number)(root / f"plain-{number}")
            tiny.make_expert(head, root / name, number)

    return write


def lora(make: Maker) -> Callable[[Path, Sequence[str]], None]:
    """A base, and LoRA adapters of rank 8 on the attention of it."""

    def write(root: Path, names: Sequence[str]) -> None:
        base = make(root / names[0])
        for seed, name in enumerate(names[1:], 1):
            adapters.make_adapter(base, root / name, seed=seed, r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"])

    return write


def of_other_tokens(make: Maker) -> Callable[[Path, Sequence[str]], None]:
    """A base and models of it; the first of those has other tokens with the ids 2 and 3."""

    def write(root: Path, names: Sequence[str]) -> None:
        of_one_base(make, names[0])(root, names)
        for name in names:
            scored.make_tokenizer(root / name, *(("<|user|>", "<|end|>") if name == names[1] else ("[BEGIN]", "[END]")))

    return write
