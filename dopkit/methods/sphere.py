"""Interpolation along great circles: tensors as directions with lengths.

Shoemake, Animating Rotation with Quaternion Curves, SIGGRAPH 1985 (slerp); Karcher, Riemannian center of mass and
mollifier smoothing, 1977; Buss and Fillmore, Spherical Averages, 2001 (the iteration). Angles come from products that
are added up in float64; the result is in the tensors' own precision. Nothing here needs to know roles or shapes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dopkit.linalg.products import inner
from dopkit.methods.fold import Context
from dopkit.methods.interpolation_parameters import (
    KarcherParameters,
    MultislerpParameters,
    NuslerpParameters,
    SlerpParameters,
)

PARALLEL = 0.9995  # cosine from which a straight line will do (slerp)
THIN = 1e-8  # sine below which there is no plane to turn in


def arc(one: Tensor, other: Tensor, t: float, dim: int | None = None, straight: float = 1.0) -> Tensor:
    """The point at the share ``t`` of the arc from ``one`` to ``other``, in the dtype of both.

    (sin((1 - t) a) one + sin(t a) other) / sin a, where a is the angle between them; a straight line where that is no
    angle to turn by: a cosine beyond ``straight``, a zero vector, or opposite ones.
    """
    lengths = inner(one, one, dim).sqrt() * inner(other, other, dim).sqrt()
    cosine = (inner(one, other, dim) / lengths.masked_fill(lengths == 0, 1)).clamp(-1, 1)
    angle = cosine.acos()
    sine = angle.sin()
    line = (sine.abs() < THIN) | (cosine.abs() > straight) | (lengths == 0)
    safe = sine.masked_fill(line, 1)
    left = torch.where(line, 1 - t, ((1 - t) * angle).sin() / safe).to(one.dtype)
    right = torch.where(line, t, (t * angle).sin() / safe).to(one.dtype)
    return one * left + other * right


class Slerp:
    """Between the base (t = 0) and one model (t = 1)."""

    def merge(self, base: Tensor | None, tensors: Sequence[Tensor], contexts: Sequence[Context]) -> Tensor:
        parameters = contexts[0].parameters
        assert isinstance(parameters, SlerpParameters) and base is not None
        # From the base: where they are equal, a straight line must not round.
        return base.clone() if torch.equal(base, tensors[0]) else arc(base, tensors[0], parameters.t, None, PARALLEL)


class Nuslerp:
    """Between two models, or between their task vectors when there is a base."""

    def merge(self, base: Tensor | None, tensors: Sequence[Tensor], contexts: Sequence[Context]) -> Tensor:
        parameters = contexts[-1].parameters
        assert isinstance(parameters, NuslerpParameters)
        if len(tensors) == 1 or torch.equal(tensors[0], tensors[1]):
            return tensors[0].clone()
        weights = [own.weight or 0.0 for own in contexts[-1].so_far if isinstance(own, NuslerpParameters)]
        t = weights[1] / sum(weights) if abs(sum(weights)) > 1e-6 else 0.5
        one, other = tensors if base is None else [tensor - base for tensor in tensors]
        dim = None
        if not parameters.nuslerp_flatten and one.dim() > 1:
            dim = 0 if parameters.nuslerp_row_wise else -1
        merged = arc(one, other, t, dim)
        return merged if base is None else merged.add_(base)


class Karcher:
    """The point on the sphere from which the directions of all models lie around evenly, at their mean length."""

    def merge(self, base: Tensor | None, tensors: Sequence[Tensor], contexts: Sequence[Context]) -> Tensor:
        """Records iterations."""
        parameters = contexts[-1].parameters
        assert isinstance(parameters, KarcherParameters)
        if all(torch.equal(tensor, tensors[0]) for tensor in tensors[1:]):
            return tensors[0].clone()
        lengths = [float(inner(tensor, tensor).sqrt()) for tensor in tensors]
        known = [(tensor, length) for tensor, length in zip(tensors, lengths, strict=True) if length > 0]
        mean = torch.zeros_like(tensors[0])
        for tensor, length in known:
            mean += tensor / length
        if not _to_length(mean, 1.0):
            return mean  # they cancel out: there is no direction in the middle
        iterations = 0
        while iterations < parameters.max_iter:
            iterations += 1
            step = torch.zeros_like(mean)
            for tensor, length in known:
                cosine = float((inner(tensor, mean) / length).clamp(-1, 1))
                angle = torch.acos(torch.tensor(cosine, dtype=torch.float64))
                turn = float(angle / angle.sin()) if float(angle.sin()) > THIN else 1.0
                step += (tensor / length - cosine * mean).mul_(turn / len(known))
            size = float(inner(step, step).sqrt())
            if size < parameters.tol:
                break
            turned = torch.tensor(size, dtype=torch.float64)
            mean = mean.mul_(float(turned.cos())).add_(step.mul_(float(turned.sin()) / size))
            _to_length(mean, 1.0)
        contexts[-1].record({"step": contexts[-1].step, "iterations": iterations})
        return mean.mul_(sum(lengths) / len(tensors))


def _to_length(tensor: Tensor, length: float, eps: float = THIN) -> bool:
    """Scale in place; False, and left as it is, where there is no direction."""
    own = float(inner(tensor, tensor).sqrt())
    if own < eps:
        return False
    tensor.mul_(length / own)
    return True


@dataclass
class Directions:
    """What a barycentre needs of the models so far."""

    base: Tensor | None  # never written to
    directions: Tensor  # sum of the weighted unit vectors
    length: Tensor  # (1,) float64: sum of the weighted lengths


class Multislerp:
    """The weighted mean direction of all models, or of their task vectors, at the weighted mean of their lengths.

    mergekit projects the unit vectors on the tangent space at their normalised mean, and goes from there along the
    mean of the projections. That mean is zero, whatever the vectors: so this is the normalised mean, and a sum.
    """

    def start(self, base: Tensor | None, first: Tensor, ctx: Context) -> Directions:
        return self.step(Directions(base, torch.zeros_like(first), first.new_zeros(1, dtype=torch.float64)), first, ctx)

    def step(self, state: Directions, incoming: Tensor, ctx: Context) -> Directions:
        parameters = ctx.parameters
        assert isinstance(parameters, MultislerpParameters) and parameters.weight is not None
        return self._add(state, incoming, parameters.weight, parameters.eps)

    def _add(self, state: Directions, model: Tensor, weight: float, eps: float) -> Directions:
        vector = model if state.base is None else model.sub_(state.base)
        length = float(inner(vector, vector).sqrt())
        state.directions += vector.mul_(weight / max(length, eps))
        state.length += weight * length
        return state

    def finish(self, state: Directions, ctx: Context) -> Tensor:
        """A new tensor."""
        parameters = ctx.parameters
        assert isinstance(parameters, MultislerpParameters)
        weights = self._weights(ctx) if parameters.normalize_weights else 1.0
        merged = state.directions.clone()
        _to_length(merged, float(state.length) / (weights or 1.0), parameters.eps)
        return merged if state.base is None else merged.add_(state.base)

    def pack(self, state: Directions) -> dict[str, Tensor]:
        return {"directions": state.directions, "length": state.length}

    def unpack(self, base: Tensor | None, packed: Mapping[str, Tensor], ctx: Context) -> Directions:
        """Of the sums; or of what was merged, as one model with the weight of all that are in it."""
        if "merged" not in packed:
            return Directions(base, packed["directions"], packed["length"])
        merged = packed["merged"]
        empty = Directions(base, torch.zeros_like(merged), merged.new_zeros(1, dtype=torch.float64))
        assert isinstance(ctx.parameters, MultislerpParameters)
        return self._add(empty, merged, self._weights(ctx), ctx.parameters.eps)

    def _weights(self, ctx: Context) -> float:
        return sum(own.weight or 0.0 for own in ctx.so_far if isinstance(own, MultislerpParameters))
