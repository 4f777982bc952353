"""Small real models that can be scored: with heads, tokenizers and image processors; and data to score them on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import tiny
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

PROCESSOR = {
    "image_processor_type": "ViTImageProcessor", "do_resize": True, "do_rescale": True, "do_normalize": True,
    "rescale_factor": 1 / 255, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "size": {"height": 8, "width": 8},
    "resample": 2,
}  # fmt: skip
WORDS = [
    "the", "a", "photo", "of", "number", "zero", "one", "two", "three", "sad", "happy", "day", "is", "good", "bad",
    "cat", "dog",
]  # fmt: skip


def pixel_values(images: NDArray[np.uint8]) -> torch.Tensor:
    """What the processor makes of grey [n, 8, 8]: float [n, 3, 8, 8] from -1 to 1."""
    return (torch.from_numpy(images).float() / 255 - 0.5).div(0.5)[:, None].repeat(1, 3, 1, 1)


def grey(count: int, seed: int = 0) -> NDArray[np.uint8]:
    """Random uint8 [count, 8, 8]."""
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8), dtype=np.uint8)


def make_classifier(folder: Path, labels: list[str], seed: int = 0) -> Path:
    """A ViT with a classifier of its own, and the image processor's file."""
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=8, patch_size=4,
        id2label=dict(enumerate(labels)), label2id={label: index for index, label in enumerate(labels)},
    )  # fmt: skip
    torch.manual_seed(seed)
    model = ViTForImageClassification(config)
    stir(model)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(PROCESSOR))
    return folder


def stir(model: torch.nn.Module, amount: float = 0.3) -> None:
    """Move every weight far from the tiny values of a fresh model, which answers everything alike."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=amount)


def keep_head(expert: Path, merged: Path, name: str) -> Path:
    """Write the classifier of ``expert`` to ``heads/NAME.safetensors`` of ``merged``, as a merge keeps it."""
    config = json.loads((expert / "config.json").read_text())
    own = {key: config[key] for key in ("id2label", "label2id", "num_labels", "problem_type") if key in config}
    facts = {"format": "pt", "architecture": config["architectures"][0], "model": name, "config": json.dumps(own)}
    tensors = {key: value for key, value in tiny.read(expert).items() if key.startswith("classifier.")}
    path = merged / "heads" / f"{name}.safetensors"
    path.parent.mkdir(exist_ok=True)
    save_file(tensors, path, metadata=facts)
    return path


def make_merge(root: Path) -> Path:
    """Two ViT classifiers of 3 and 5 classes and ``merged``, made by dopkit: steps kept, heads kept."""
    import dopkit

    base = tiny.make_vit(root / "base")
    shutil.copyfile(make_classifier(root / "three", ["zero", "one", "two"], 1) / "preprocessor_config.json",
                    base / "preprocessor_config.json")  # fmt: skip
    make_classifier(root / "five", ["a", "b", "c", "d", "e"], 2)
    (root / "r.yaml").write_text(
        "base_model: ./base\nmerge_method: dop\nmodels: [./three, ./five]\nheads: per-task\nout_dtype: float32\n"
    )
    dopkit.run(dopkit.load_recipe(root / "r.yaml"), root / "merged", dopkit.Options(save_steps=True))
    images = grey(20)
    labels = {"three": np.arange(20) % 3, "five": np.arange(20) % 5}
    np.savez(root / "data.npz", images=images, **labels)
    (root / "tasks.yaml").write_text(TASKS)
    return root


TASKS = """\
tasks:
  - {name: three, kind: image-classification, data: data.npz, label: three}
  - {name: five, kind: image-classification, data: data.npz, label: five, batch_size: 7}
"""


def make_tokenizer(folder: Path, begin: str | None = None, end: str | None = None, pad: str | None = "[PAD]") -> None:
    """A tokenizer of whole words: unknown 0, then the special tokens, then WORDS."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = [token for token in (pad, begin, end) if token]
    vocabulary = {token: index for index, token in enumerate(["[UNK]", *special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if begin and end:
        tokens = [(token, vocabulary[token]) for token in (begin, end)]
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{begin} $A {end}", special_tokens=tokens)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token=pad, bos_token=begin, eos_token=end
    ).save_pretrained(folder)


def make_clip(folder: Path, seed: int = 0) -> Path:
    """A CLIP of 2 layers, 16 wide, with tokenizer and image processor."""
    from transformers import CLIPConfig, CLIPModel

    layers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**layers, "vocab_size": 32, "max_position_embeddings": 16, "bos_token_id": 3, "eos_token_id": 3,
                     "pad_token_id": 1, "projection_dim": 8},
        vision_config={**layers, "image_size": 8, "patch_size": 4, "projection_dim": 8}, projection_dim=8,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = CLIPModel(config)
    stir(model)
    model.save_pretrained(folder)
    make_tokenizer(folder, "[BEGIN]", "[END]")
    (folder / "preprocessor_config.json").write_text(
        json.dumps({**PROCESSOR, "image_processor_type": "CLIPImageProcessor", "do_center_crop": False})
    )
    return folder


def make_bert(folder: Path, labels: list[str], seed: int = 0) -> Path:
    """A BERT classifier of 2 layers, 16 wide, and its WordPiece vocabulary."""
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "##s", "##er"]
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=16, id2label=dict(enumerate(labels)),
        label2id={label: index for index, label in enumerate(labels)},
    )  # fmt: skip
    torch.manual_seed(seed)
    model = BertForSequenceClassification(config)
    stir(model, 1.0)
    with torch.no_grad():
        model.classifier.bias.zero_()
    model.save_pretrained(folder)
    BertTokenizer(vocab={token: index for index, token in enumerate(vocabulary)}).save_pretrained(folder)
    return folder


def make_language_model(folder: Path) -> Path:
    """``tiny.make_gpt2`` (16 positions) with a tokenizer of whole words."""
    tiny.make_gpt2(folder)
    make_tokenizer(folder, pad=None)
    return folder


def head_weights(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of a kept head."""
    tensors = load_file(path)
    return tensors["classifier.weight"], tensors["classifier.bias"]
