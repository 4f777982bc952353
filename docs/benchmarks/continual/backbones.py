"""Turn the backbones that two packages ship into plain transformers checkpoints. Knows nothing of tasks."""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

MEAN, DEVIATION = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]  # ImageNet's, as DINOv2 was trained


def write_dinov2(onnx_file: Path, folder: Path, size: int) -> None:
    """DINOv2 ViT-S/14 (22.1 M parameters) as a `Dinov2Model`, with an image processor for squares of `size` pixels."""
    from transformers import Dinov2Config, Dinov2Model

    if folder.is_dir():
        return
    config = Dinov2Config(
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=6,
        patch_size=14,
        image_size=518,
        use_mask_token=False,
    )
    weights = {name: torch.from_numpy(value.copy()) for name, value in read_dinov2(onnx_file).items()}
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    config.architectures = ["Dinov2Model"]
    config.save_pretrained(partial)
    save_file(weights, partial / "model.safetensors", metadata={"format": "pt"})
    _, loading = Dinov2Model.from_pretrained(partial, output_loading_info=True)
    if loading["missing_keys"] or loading["unexpected_keys"]:
        raise SystemExit(f"{onnx_file} is not the expected export: {loading}")
    processor = {
        "image_processor_type": "BitImageProcessor",
        "do_resize": True,
        "size": {"height": size, "width": size},
        "resample": 3,  # bicubic
        "do_center_crop": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": MEAN,
        "image_std": DEVIATION,
        "do_convert_rgb": True,
    }
    (partial / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n")
    partial.rename(folder)


def read_dinov2(onnx_file: Path) -> dict[str, np.ndarray]:
    """The backbone's tensors under transformers' names.

    The export kept the names of vectors and convolutions. It folded each linear layer into MatMul(x, W^T) and
    Add(bias), so a matrix is found by the bias that its product meets; the two position tensors by their shape.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(onnx_file)).graph
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    products = {node.output[0]: node.input[1] for node in graph.node if node.op_type == "MatMul"}
    prefix = "backbone."
    found = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    for node in graph.node:
        if node.op_type != "Add":
            continue
        bias = [name for name in node.input if name.startswith(prefix) and name.endswith(".bias")]
        matrix = [products[name] for name in node.input if products.get(name) in tensors]
        if bias and matrix:
            found[bias[0].removeprefix(prefix).removesuffix("bias") + "weight"] = tensors[matrix[0]].T
    (class_position,) = (
        tensors[name] for name in tensors if name.startswith("onnx::Concat") and tensors[name].ndim == 3
    )
    (grid,) = (value for value in tensors.values() if value.shape == (1, 37 * 37, 384))
    found["embeddings.position_embeddings"] = np.concatenate([class_position, grid], axis=1)
    return found


def write_minilm(source: Path, folder: Path, max_length: int) -> None:
    """MiniLM (BERT, 6 layers of width 384) as a `BertModel`, with its tokenizer."""
    from transformers import AutoTokenizer, BertModel

    if folder.is_dir():
        return
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    BertModel.from_pretrained(source).save_pretrained(partial)
    AutoTokenizer.from_pretrained(source, model_max_length=max_length).save_pretrained(partial)
    partial.rename(folder)
