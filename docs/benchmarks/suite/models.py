"""Synthetic models to merge, made once and kept: Llamas in bfloat16, and a CLIP vision tower of ViT-B/32's size.

    python models.py FOLDER NAME

Weights are normal with a deviation of 0.02; each expert's task vector is normal with 2% of that and touches two thirds
of a tensor's rows: fine-tuning leaves much of a bfloat16 model as it was. Written by huggingface_hub, in shards. A
folder that is there and complete is left as it is.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

EXPERTS = ("e0", "e1", "e2")
MODELS = ("base", *EXPERTS)
DONE = "made.json"  # written last

LLAMAS: Mapping[str, Mapping[str, int]] = {
    "llama-340m": {"vocabulary": 32000, "width": 1024, "inner": 2816, "layers": 22, "heads": 16, "kv": 16},
    "llama-1.1b": {"vocabulary": 32000, "width": 2048, "inner": 5632, "layers": 22, "heads": 32, "kv": 4},
    # The same number of tensors and next to no bytes: what a command takes besides the merge.
    "llama-start-up": {"vocabulary": 64, "width": 32, "inner": 64, "layers": 22, "heads": 2, "kv": 2},
    "llama-tiny": {"vocabulary": 64, "width": 32, "inner": 64, "layers": 2, "heads": 2, "kv": 2},
}
VISION: Mapping[str, Mapping[str, int]] = {
    "vit-b-32": {"width": 768, "inner": 3072, "layers": 12, "heads": 12, "image": 224, "patch": 32},
    "vit-tiny": {"width": 32, "inner": 64, "layers": 1, "heads": 2, "image": 32, "patch": 16},
}
SHARD = 1_000_000_000

Shapes = dict[str, tuple[int, ...]]


def llama_shapes(vocabulary: int, width: int, inner: int, layers: int, heads: int, kv: int) -> Shapes:
    narrow = width * kv // heads
    layer = {
        "self_attn.q_proj": (width, width), "self_attn.k_proj": (narrow, width), "self_attn.v_proj": (narrow, width),
        "self_attn.o_proj": (width, width), "mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width),
        "mlp.down_proj": (width, inner), "input_layernorm": (width,), "post_attention_layernorm": (width,),
    }  # fmt: skip
    shapes: Shapes = {"model.embed_tokens.weight": (vocabulary, width), "model.norm.weight": (width,)}
    shapes |= {f"model.layers.{n}.{name}.weight": shape for n in range(layers) for name, shape in layer.items()}
    return shapes | {"lm_head.weight": (vocabulary, width)}


def make(folder: Path, name: str) -> Path:
    """The folder of the base and three experts, made when it is not there."""
    place = folder / name
    if not (place / DONE).exists():
        config, shapes, dtype = _what(name)
        for index, model in enumerate(MODELS):
            _make_one(place / model, config, shapes, dtype, index)
        (place / DONE).write_text(json.dumps({"parameters": sum(_count(shape) for shape in shapes.values())}))
    return place


def weight_files(model: Path) -> list[Path]:
    return sorted(model.glob("*.safetensors"))


def weight_bytes(model: Path) -> int:
    return sum(path.stat().st_size for path in weight_files(model))


def _what(name: str) -> tuple[Any, Shapes, str]:
    """The config, the shapes and the dtype of a model by its name."""
    from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig

    if name in LLAMAS:
        size = LLAMAS[name]
        config = LlamaConfig(
            vocab_size=size["vocabulary"], hidden_size=size["width"], intermediate_size=size["inner"],
            num_hidden_layers=size["layers"], num_attention_heads=size["heads"], num_key_value_heads=size["kv"],
            architectures=["LlamaForCausalLM"], dtype="bfloat16", tie_word_embeddings=False,
        )  # fmt: skip
        return config, llama_shapes(**size), "bfloat16"
    size = VISION[name]
    config = CLIPVisionConfig(
        hidden_size=size["width"], intermediate_size=size["inner"], num_hidden_layers=size["layers"],
        num_attention_heads=size["heads"], image_size=size["image"], patch_size=size["patch"],
        architectures=["CLIPVisionModel"], dtype="float32",
    )  # fmt: skip
    import torch

    with torch.device("meta"):
        model = CLIPVisionModel(config)
    return config, {key: tuple(value.shape) for key, value in model.named_parameters()}, "float32"


def _make_one(folder: Path, config: Any, shapes: Shapes, dtype: str, index: int) -> None:
    import torch
    from huggingface_hub import save_torch_state_dict

    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    tensors = {}
    for number, (name, shape) in enumerate(shapes.items()):
        weights = 0.02 * torch.randn(shape, generator=torch.Generator().manual_seed(number))
        if index:
            own = torch.Generator().manual_seed(len(shapes) * index + number)
            rows = torch.rand(shape[0], generator=own) < 2 / 3
            weights[rows] += 4e-4 * torch.randn(weights[rows].shape, generator=own)
        tensors[name] = weights.to(getattr(torch, dtype))
    save_torch_state_dict(tensors, folder, max_shard_size=SHARD)


def _count(shape: tuple[int, ...]) -> int:
    product = 1
    for side in shape:
        product *= side
    return product


if __name__ == "__main__":
    make(Path(sys.argv[1]), sys.argv[2])
