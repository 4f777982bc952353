"""The point of least norm on the segment between two vectors, from their inner products alone."""

from __future__ import annotations

# What the published code answers when one end of the segment is itself the shortest point: not quite all or
# nothing.
NEARLY_ALL, NEARLY_NOTHING = 0.999, 0.001


def min_norm_weight(first_squared: float, product: float, second_squared: float) -> float:
    """The weight g of v1 for which |g v1 + (1 - g) v2| is least, given <v1,v1>, <v1,v2> and <v2,v2>.

    Closed form for two vectors, with the published code's limits: 0.999 when v1 is the shortest point of the
    segment, 0.001 when v2 is. Between these cases g is free and may come nearer to 0 or 1 than that.
    Source: Sener and Koltun, Multi-Task Learning as Multi-Objective Optimization, NeurIPS 2018, Algorithm 2
    (https://arxiv.org/abs/1810.04650).
    """
    if product >= first_squared:
        return NEARLY_ALL
    if product >= second_squared:
        return NEARLY_NOTHING
    return (second_squared - product) / (first_squared + second_squared - 2 * product)
