"""How fast DOP's solvers are, against automatic differentiation of the same loss, on the CPU.

    python docs/benchmarks/solver_speed.py [--threads 1] [--reference-steps 20] [--json FILE]

For one attention matrix and one MLP matrix of ViT-B/32, in one run and with the same number of threads:

* reference: the published procedure written plainly, with full singular value decompositions and
  torch.autograd. Its steps all cost the same, so only some are run and scaled to 200; the decompositions are
  timed in full.
* adam: the same 200 steps (also run in part and scaled) with the gradients written out, spectra included.
* exact: the closed form, whole.

Times are CPU seconds, the sum over threads: on a busy machine the wall clock measures the neighbours. With
more than one thread, waiting threads spin and count as busy.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dopkit.linalg.minnorm import min_norm_weight
from dopkit.methods.dop import Dop
from dopkit.methods.fold import Context
from dopkit.methods.parameters import DopParameters
from dopkit.roles import Role

SHAPES = {"attention 768x768": (768, 768), "MLP 768x3072": (768, 3072)}
STEPS = 200
ALPHA, BETA, EPSILON, LR = 0.8, 0.999, 0.99999, 1e-4


def models(shape: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """A base and two models about 3% of its norm away from it, with decaying spectra as task vectors have."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(shape, generator=generator) * 0.02
    experts = []
    for _ in range(2):
        scales = torch.linspace(1, 0.05, shape[0]).square()
        directions = torch.randn(shape[0], shape[0], generator=generator) * scales
        tau = directions @ torch.randn(shape, generator=generator)
        experts.append(base + tau * (0.03 * base.norm() / tau.norm()))
    return base, experts[0], experts[1]


class Reference:
    """The published procedure, written plainly: autograd on the projected losses."""

    def __init__(self, base: Tensor, merged: Tensor, incoming: Tensor) -> None:
        self.targets = (merged, incoming)
        self.base = base
        self.point = ((merged + incoming) / 2).requires_grad_()
        self.projections: list[tuple[Tensor, Tensor, Tensor]] = []

    def decompose(self) -> None:
        for target in self.targets:
            u, s, vh = torch.linalg.svd(target - self.base, full_matrices=True)
            rank = int(torch.searchsorted(s.cumsum(0) / s.sum(), EPSILON))
            self.projections.append((u[:, :rank], s[:rank], vh.T[:, :rank]))

    def loss(self, task: int) -> Tensor:
        u, s, v = self.projections[task]
        difference = self.point - self.targets[task]
        on_rows = torch.diag(s) @ u.T @ difference
        on_columns = difference @ v @ torch.diag(s)
        return torch.linalg.matrix_norm(on_rows) ** 2 + torch.linalg.matrix_norm(on_columns) ** 2

    def optimise(self, steps: int) -> None:
        optimiser = torch.optim.Adam([self.point], lr=LR)
        weight = ALPHA
        for _ in range(steps):
            gradients = []
            for task in (0, 1):
                loss = self.loss(task)
                optimiser.zero_grad()
                loss.backward()
                assert self.point.grad is not None
                gradients.append(self.point.grad.clone() / float(loss.detach()))
            first, second = gradients
            products = [float((a * b).sum()) for a, b in ((first, first), (first, second), (second, second))]
            weight = BETA * weight + (1 - BETA) * min_norm_weight(*products)
            total = weight * self.loss(0) + (1 - weight) * self.loss(1)
            optimiser.zero_grad()
            total.backward()
            optimiser.step()


def fold(base: Tensor, merged: Tensor, incoming: Tensor, **given: Any) -> tuple[Tensor, dict[str, Any]]:
    """One step of dopkit's DOP, and what it recorded."""
    parameters = DopParameters(alpha=ALPHA, svd_epsilon=EPSILON, rank_rule="below", **given)
    records: list[dict[str, Any]] = []
    dop = Dop()
    state = dop.start(base, merged.clone(), Context(parameters, Role.LINEAR, 1))
    context = Context(parameters, Role.LINEAR, 2, records.append)
    state = dop.step(state, incoming.clone(), context)
    return dop.finish(state, context), records[0]


def seconds(work: Callable[[], Any]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def median_seconds(work: Callable[[], Any], rounds: int) -> float:
    return statistics.median(seconds(work) for _ in range(rounds))


def measure(shape: tuple[int, int], reference_steps: int, rounds: int) -> dict[str, Any]:
    """All times for one shape, in CPU seconds for 200 steps where there are steps."""
    base, merged, incoming = models(shape)
    reference = Reference(base, merged, incoming)
    decomposing = seconds(reference.decompose)
    reference.optimise(1)  # the first step imports and allocates
    stepping = min(seconds(lambda: reference.optimise(reference_steps)) for _ in range(rounds))

    def adam(steps: int) -> tuple[Tensor, dict[str, Any]]:
        return fold(base, merged, incoming, solver="adam", num_steps=steps, ema_beta=BETA)

    adam(1)
    spectra = median_seconds(lambda: adam(0), rounds)
    adam_steps = min(seconds(lambda: adam(reference_steps)) for _ in range(rounds)) - spectra
    exact = median_seconds(lambda: fold(base, merged, incoming, solver="exact"), rounds)

    agreement = Reference(base, merged, incoming)
    agreement.decompose()
    agreement.optimise(reference_steps)
    ours = adam(reference_steps)[0]
    scale = STEPS / reference_steps
    times = {
        "reference_svd": decomposing,
        "reference_steps": stepping * scale,
        "adam_spectra": spectra,
        "adam_steps": adam_steps * scale,
        "exact": exact,
    }
    total_reference = times["reference_svd"] + times["reference_steps"]
    return {
        "shape": shape,
        "seconds": times,
        "adam_times_faster": total_reference / (times["adam_spectra"] + times["adam_steps"]),
        "adam_steps_times_faster": times["reference_steps"] / times["adam_steps"],
        "exact_times_faster": total_reference / exact,
        "adam_difference": float((ours - agreement.point.detach()).norm() / (ours - base).norm()),
    }


def table(results: dict[str, Any]) -> str:
    head = f"{'matrix':<20}{'SVD':>9}{'200 steps':>11}{'adam':>9}{'exact':>9}{'adam x':>9}{'exact x':>9}"
    lines = [head]
    for name, result in results.items():
        times = result["seconds"]
        adam = times["adam_spectra"] + times["adam_steps"]
        lines.append(
            f"{name:<20}{times['reference_svd']:>9.2f}{times['reference_steps']:>11.1f}{adam:>9.2f}"
            f"{times['exact']:>9.2f}{result['adam_times_faster']:>9.1f}{result['exact_times_faster']:>9.1f}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1, help="for all solvers alike (default: 1)")
    parser.add_argument("--reference-steps", type=int, default=20, help="steps run and scaled to 200 (default: 20)")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each time (default: 3)")
    parser.add_argument("--json", type=Path, help="write the numbers here as well")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    results = {name: measure(shape, given.reference_steps, given.rounds) for name, shape in SHAPES.items()}
    print(f"CPU seconds, {given.threads} thread(s), torch {torch.__version__};", end=" ")
    print(f"{given.reference_steps} steps run, scaled to {STEPS}")
    print(table(results))
    if given.json:
        given.json.write_text(json.dumps({"threads": given.threads, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
