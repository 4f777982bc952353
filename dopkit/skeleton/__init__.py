"""What each tensor of a checkpoint is, asked of its model class on the meta device.

The only package of dopkit that imports transformers. It reads no file, fetches nothing, holds no weights and
runs no code but transformers' own: a configuration and the tensors' names and shapes are all it sees.
It does not know where they come from, nor what is done with the answer.

Names are transformers' own. Since version 5 it renames checkpoint keys on loading, so one parameter may lie
on disk as ``vit.encoder.layer.0.attention.attention.query.weight`` or ``layers.0.attention.q_proj.weight``.
Both get one canonical name: the name inside the model class, less the prefix of the base model (``model.``,
``vit.``), so that a bare backbone and a model with a head agree as well. A tensor that transformers converts
on loading (an expert that is stacked, a fused projection that is split) is named as before the conversion.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from typing import Any

from dopkit.skeleton import asking, loading
from dopkit.skeleton.answers import LoadCheck, Skeleton
from dopkit.skeleton.kept import recall
from dopkit.skeleton.resizing import resized
from dopkit.skeleton.trained import trained_names
from dopkit.skeleton.vocabulary import vocabulary_axes

__all__ = [
    "LoadCheck", "Skeleton", "backbone_class", "build", "build_tower", "bytes_to_come", "check_loads", "class_config",
    "resized", "trained_names", "vocabulary_axes",
]  # fmt: skip

Config = Mapping[str, Any] | None  # a parsed config.json; None where there is none
Shapes = Mapping[str, tuple[int, ...]]  # checkpoint name -> shape

_LIBRARY_BYTES = 130_000_000  # of transformers and a model on the meta device: 113 to 125 MB were measured
# Keys of a config that say where it comes from, and nothing about the class.
_ORIGIN = ("_name_or_path", "transformers_version")


def build(config: Config, tensors: Shapes, headless: bool = False) -> Skeleton:
    """Find out what ``tensors`` are to the model that ``config`` describes.

    The config need not be the checkpoint's own: the tensors of a fine-tuned model can be held against the class of its
    base model. With ``headless`` what the class has no place for is held against the same model without a head as well.
    """
    question = ["build", class_config(config), list(tensors.items()), headless]
    return recall(question, Skeleton, lambda: asking.build(config, tensors, headless), _has_class)


def build_tower(whole: Config, tower: Mapping[str, Any], tensors: Shapes, headless: bool = False) -> Skeleton:
    """As ``build`` for the config of a ``tower`` that the ``tensors`` of a ``whole`` model hold among others.

    Most towers load from the names of the whole. A language model is found by the place that it has in the whole.
    """
    question = ["tower", class_config(whole), class_config(tower), list(tensors.items()), headless]
    return recall(question, Skeleton, lambda: asking.build_tower(whole, tower, tensors, headless), _has_class)


def check_loads(config: Config, tensors: Shapes) -> LoadCheck:
    """Load ``tensors`` into the class of ``config``, with nothing in them."""
    question = ["loads", class_config(config), list(tensors.items())]
    return recall(question, LoadCheck, lambda: loading.check_loads(config, tensors), lambda found: not found.unchecked)


def backbone_class(config: Config) -> str | None:
    """The class of the same model without a head ("ViTModel"); None where that is not known."""
    question = ["backbone", class_config(config)]
    return recall(question, str, lambda: asking.backbone_class(config) or "", bool) or None


def bytes_to_come(found: Iterable[Skeleton]) -> int:
    """Memory that the process will take when a class must be asked, after ``found`` were all known; upper estimate."""
    asked = "transformers.modeling_utils" in sys.modules
    return 0 if asked or not any(map(_has_class, found)) else _LIBRARY_BYTES


def class_config(config: Config) -> dict[str, Any] | None:
    """What a config says about the class: two that differ in nothing else are one to it."""
    return None if config is None else {name: value for name, value in config.items() if name not in _ORIGIN}


def _has_class(found: Skeleton) -> bool:
    return found.fallback is None
