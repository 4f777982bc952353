"""Tiny random checkpoints of many architectures, each in several spellings and formats.

``write`` makes a base and two experts. ``base`` is spelled as the published repositories are, with whatever old files
hold beside the weights, in one safetensors file; ``e0`` as the installed transformers saves it, in shards; ``e1`` by
the names inside the class, as a pickle.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tiny
import torch
from safetensors.torch import save_file

Inputs = dict[str, torch.Tensor]
Beside = Callable[[tiny.Tensors], tiny.Tensors]  # from the tensors so far


def nothing(tensors: tiny.Tensors) -> tiny.Tensors:
    return {}


@dataclass(frozen=True)
class Architecture:
    """One model class at a size of a few kilobytes."""

    model: str  # class
    kind: str  # model_type
    settings: dict[str, Any]
    inputs: Callable[[], Inputs]
    # From the names that save_pretrained writes to those of the published files: patterns and replacements, in order.
    published: tuple[tuple[str, str], ...] = ()
    beside: Beside = nothing  # what published files hold beside those
    converts: bool = False  # whether files and class differ in more than names: experts one by one, or fused

    def build(self) -> Any:
        """The model, every weight far enough from zero to matter."""
        import transformers

        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(self.kind, **self.settings)
        model = getattr(transformers, self.model)(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        return model

    def load(self, folder: Path) -> Any:
        import transformers

        return getattr(transformers, self.model).from_pretrained(folder, dtype=torch.float32).eval()

    def spell(self, tensors: tiny.Tensors) -> tiny.Tensors:
        """As published."""
        spelled = dict(tensors)
        for pattern, replacement in self.published:
            spelled = {re.sub(pattern, replacement, name): tensor for name, tensor in spelled.items()}
        assert len(spelled) == len(tensors)
        return spelled | self.beside(spelled)


def write(architecture: Architecture, root: Path) -> Path:
    """``base``, ``e0`` and ``e1`` in ``root``; the experts have noise on every floating tensor."""
    plain, own = root / "plain", root / "own"
    model = architecture.build()
    model.save_pretrained(plain)
    model.save_pretrained(own, save_original_format=architecture.converts)
    _files(plain, root / "base", architecture.spell(tiny.read(plain)))
    _shards(plain, root / "e0", noisy(tiny.read(plain), 1))
    _pickle(own, root / "e1", noisy(tiny.read(own), 2))
    return root


def noisy(tensors: tiny.Tensors, seed: int) -> tiny.Tensors:
    """The tensors with small noise on every floating one."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: tensor + 0.05 * torch.randn(tensor.shape, generator=generator) if tensor.is_floating_point() else tensor
        for name, tensor in tensors.items()
    }


def _files(like: Path, folder: Path, tensors: tiny.Tensors) -> None:
    _config(like, folder)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _pickle(like: Path, folder: Path, tensors: tiny.Tensors) -> None:
    _config(like, folder)
    torch.save(tensors, folder / "pytorch_model.bin")


def _shards(like: Path, folder: Path, tensors: tiny.Tensors, number: int = 3) -> None:
    """Tensors dealt out to shards, so that neighbours lie in different files."""
    _config(like, folder)
    files = [f"model-{index + 1:05}-of-{number:05}.safetensors" for index in range(number)]
    weight_map = {name: files[index % number] for index, name in enumerate(tensors)}
    for file in files:
        part = {name: tensors[name] for name in tensors if weight_map[name] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def _config(like: Path, folder: Path) -> None:
    folder.mkdir()
    shutil.copyfile(like / "config.json", folder / "config.json")


# --- what goes in -------------------------------------------------------------------------------------------


def words() -> Inputs:
    return {"input_ids": torch.tensor([[3, 5, 6, 7, 9], [9, 8, 22, 3, 2]])}


def words_to_words() -> Inputs:
    return words() | {"decoder_input_ids": torch.tensor([[1, 4, 8], [1, 40, 3]])}


def pixels(size: int = 8) -> Callable[[], Inputs]:
    return lambda: {"pixel_values": _noise(2, 3, size, size)}


def words_and_pixels() -> Inputs:
    return words() | pixels()()


def picture_in_words() -> Inputs:
    """Token 60 stands for a patch of the picture."""
    return {"input_ids": torch.tensor([[3, 60, 60, 60, 60, 7, 9]]), "pixel_values": _noise(1, 3, 8, 8)}


def pictures_in_words() -> Inputs:
    """One token for the whole picture, the only one of several that there may be."""
    return {"input_ids": torch.tensor([[3, 5, 60, 7, 9]]), "pixel_values": _noise(1, 1, 3, 8, 8)}


def grid_in_words() -> Inputs:
    """The same for models that take the patches, of two frames, in a row."""
    row = {"pixel_values": _noise(16, 3 * 2 * 4 * 4), "image_grid_thw": torch.tensor([[1, 4, 4]])}
    kinds = torch.tensor([[0, 1, 1, 1, 1, 0, 0]])
    return {"input_ids": torch.tensor([[3, 60, 60, 60, 60, 7, 9]]), "mm_token_type_ids": kinds, **row}


def sound_to_words() -> Inputs:
    return {"input_features": _noise(2, 4, 16), "decoder_input_ids": torch.tensor([[1, 4, 8], [1, 40, 3]])}


def wave() -> Inputs:
    return {"input_values": _noise(2, 200)}


def _noise(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(9))


# --- what old files hold beside the weights -----------------------------------------------------------------


def for_each(pattern: str, make: Beside) -> Beside:
    """``make``'s tensors under every prefix that ``pattern`` matches in a name; from all tensors, as ``beside`` is."""

    def beside(tensors: tiny.Tensors) -> tiny.Tensors:
        prefixes = sorted({found[0] for name in tensors if (found := re.match(pattern, name))})
        assert prefixes, pattern
        return {prefix + name: tensor for prefix in prefixes for name, tensor in make(tensors).items()}

    return beside


def several(*parts: Beside) -> Beside:
    return lambda tensors: {name: tensor for part in parts for name, tensor in part(tensors).items()}


def copies(of: str, names: Iterable[str]) -> Beside:
    """Tied tensors that are stored several times."""
    return lambda tensors: {name: tensors[of].clone() for name in names}


def position_ids(length: int) -> Beside:
    return lambda tensors: {"position_ids": torch.arange(length)[None]}


def lower_mask(tensors: tiny.Tensors) -> tiny.Tensors:
    return {"bias": torch.ones(1, 1, 32, 32).tril()}


def mask_and_frequencies(tensors: tiny.Tensors) -> tiny.Tensors:
    lower = torch.ones(1, 1, 32, 32, dtype=torch.bool).tril()
    return {"bias": lower, "masked_bias": torch.tensor(-1e9), "rotary_emb.inv_freq": torch.tensor([1.0])}


def frequencies(tensors: tiny.Tensors) -> tiny.Tensors:
    return {"rotary_emb.inv_freq": torch.tensor([1.0, 0.1, 0.01, 0.001])}


def window_index(tensors: tiny.Tensors) -> tiny.Tensors:
    return {"relative_position_index": torch.arange(16).reshape(4, 4)}


def relative_bias(tensors: tiny.Tensors) -> tiny.Tensors:
    return {"relative_attention_bias.weight": torch.ones(32, 2)}


def prediction_layer(tensors: tiny.Tensors) -> tiny.Tensors:
    """Of DeepSeek-V3, for the token after the next: behind the last layer of the published size."""
    return {"model.layers.61.eh_proj.weight": torch.ones(16, 32)}
