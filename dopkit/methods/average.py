"""Averages, element by element: the running mean, and the reference's half and half.

Neither knows shapes or roles, and neither needs the base model.
"""

from __future__ import annotations

from torch import Tensor

from dopkit.methods.fold import Context, RunningFold

# The engine may hand a tensor over in blocks, and the bytes must not depend on where it cuts. So each step
# here is one rounding per element per operation (subtract, divide, add). Fused operations (lerp, addcmul, add
# with alpha=) are out: their vectorised loops multiply and add with one rounding, their loops for the last
# few elements of a block may use two.


class Mean(RunningFold):
    """Running mean m += (x - m) / t: after t models each has the same say (float32, any shape).

    Equal models give exactly that model, since their difference is exactly zero.
    """

    def step(self, state: Tensor, incoming: Tensor, ctx: Context) -> Tensor:
        incoming -= state
        incoming /= ctx.step
        state += incoming
        return state


class Half(RunningFold):
    """m = (m + x) / 2 at every step: what the reference implementation of DOP does with all but linear
    weights.

    After T models the first two weigh 2^-(T-1) each and the last one half. Equal models give exactly that
    model: doubling and halving are exact. (Values above half the float32 range would overflow; weights never
    are.)
    """

    def step(self, state: Tensor, incoming: Tensor, ctx: Context) -> Tensor:
        state += incoming
        state /= 2
        return state
