"""Small real checkpoints for the tests: a transformers model saved to disk, and experts made from it.

An expert is its base plus seeded noise on every floating tensor: a task vector of known size, in the base's files.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

Tensors = dict[str, torch.Tensor]


def make_llama(
    folder: Path, tied: bool = False, dtype: torch.dtype = torch.bfloat16, shards: bool = True, layers: int = 2
) -> Path:
    """A Llama of some ``layers``, 16 wide, vocabulary 64; by default bfloat16 in two or three shards."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=layers, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=32, tie_word_embeddings=tied, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).to(dtype)
    model.save_pretrained(folder, max_shard_size="8KB" if shards else "1GB")
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    (folder / "tokenizer_config.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# base\n")
    return folder


def make_vit(folder: Path, labels: int | None = None) -> Path:
    """A ViT of 2 layers, 16 wide, float32: the bare backbone, or with a classifier of so many ``labels``."""
    from transformers import ViTConfig, ViTForImageClassification, ViTModel

    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=8, patch_size=4,
        num_labels=labels or 2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = ViTModel(config, add_pooling_layer=False) if labels is None else ViTForImageClassification(config)
    model.save_pretrained(folder)
    return folder


def make_bert(folder: Path, labels: int | None = None, pooler: bool = True) -> Path:
    """A BERT of 2 layers, 16 wide, float32: the bare backbone, or with a classifier of so many ``labels``."""
    from transformers import BertConfig, BertForSequenceClassification, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=48, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=16, num_labels=labels or 2,
    )  # fmt: skip
    backbone = labels is None
    model = BertModel(config, add_pooling_layer=pooler) if backbone else BertForSequenceClassification(config)
    model.save_pretrained(folder)
    return folder


def make_gpt2(folder: Path) -> Path:
    """A GPT-2 of 2 layers, 16 wide, float32: its linear layers are stored transposed."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=48, n_positions=16, n_embd=16, n_layer=2, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def make_expert(base: Path, folder: Path, seed: int, scale: float = 0.02, only: Callable[[str], bool] = bool) -> Path:
    """A copy of ``base`` with noise of ``scale`` on the floating tensors whose name ``only`` accepts."""
    generator = torch.Generator().manual_seed(seed)

    def add_noise(tensors: Tensors) -> Tensors:
        return {
            name: (tensor.float() + scale * torch.randn(tensor.shape, generator=generator)).to(tensor.dtype)
            if tensor.is_floating_point() and only(name)
            else tensor
            for name, tensor in tensors.items()
        }

    return edit(base, folder, add_noise)


def edit(source: Path, folder: Path, change: Callable[[Tensors], Tensors]) -> Path:
    """A copy of a model whose tensors went, file by file, through ``change``."""
    shutil.copytree(source, folder)
    for file in sorted(folder.glob("*.safetensors")):
        save_file(change(load_file(file)), file, metadata={"format": "pt"})
    return folder


def set_config(folder: Path, **values: object) -> None:
    """Change keys of a model's config.json; None removes one."""
    config = json.loads((folder / "config.json").read_text())
    config.update(values)
    kept = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(kept))


def read(folder: Path) -> Tensors:
    """All tensors of a folder."""
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def weights(folder: Path) -> Mapping[str, bytes]:
    """The bytes of every weight file and of the index."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if "safetensors" in path.name}


def same(one: Tensors, other: Tensors) -> bool:
    """Whether two models hold the same names, dtypes, shapes and bits."""
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )
