"""CLIP without a head: images are compared with the class names, put into prompts and read by the base.

After Radford et al., arXiv:2103.00020, section 3.1.4: the embeddings of a class's prompts are normalised, averaged, and
normalised again; the class whose embedding is nearest to the image's by angle is the answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from dopkit import loading
from dopkit.evaluation.tasks import ZeroShot

TEXT_TOWERS = ("CLIPModel",)
VISION_TOWERS = ("CLIPModel", "CLIPVisionModelWithProjection", "CLIPVisionModel")
_MOST_PROMPTS = 256  # read at once


@dataclass(frozen=True)
class Prompted:
    """What a text tower made of a task's classes."""

    classes: Tensor  # float32 [classes, d], each of length 1
    projection: Tensor  # float32 [d, hidden]: from what a bare vision tower gives to the same space


@torch.inference_mode()
def read_prompts(base: Path, zero_shot: ZeroShot, device: torch.device) -> Prompted:
    """Put every class into every template and read it. Raises CheckpointError."""
    model, tokenizer = loading.load(base).float().to(device), loading.tokenizer(base)
    prompts = [template.replace("{}", name) for name in zero_shot.classes for template in zero_shot.templates]
    parts = []
    for start in range(0, len(prompts), _MOST_PROMPTS):
        tokens = tokenizer(prompts[start : start + _MOST_PROMPTS], padding=True, truncation=True, return_tensors="pt")
        found = model.get_text_features(**tokens.to(device)).pooler_output  # [prompts, d]
        parts.append(normalize(found, dim=-1))
    by_class = torch.cat(parts).view(len(zero_shot.classes), len(zero_shot.templates), -1)
    classes = normalize(by_class.mean(dim=1), dim=-1)
    return Prompted(classes.cpu(), model.visual_projection.weight.detach().cpu())


def nearness(model: Any, prompted: Prompted) -> Callable[[Tensor], Tensor]:
    """From pixel values [n, 3, h, w] to the cosine with each class [n, classes], as ``model`` sees the images."""
    classes, projection = (part.to(model.device) for part in (prompted.classes, prompted.projection))

    def of(pixel_values: Tensor) -> Tensor:
        if hasattr(model, "get_image_features"):
            found = model.get_image_features(pixel_values=pixel_values).pooler_output.float()
        else:
            out = model(pixel_values=pixel_values)
            embedded = getattr(out, "image_embeds", None)
            found = embedded.float() if embedded is not None else out.pooler_output.float() @ projection.T
        return normalize(found, dim=-1) @ classes.T

    return of
