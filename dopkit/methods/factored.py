"""Merges of task vectors that are products of two factors: the result as factors, in time and memory of the ranks.

A weighted sum is the factors side by side. For DOP in closed form, let Q_l and Q_r be orthonormal bases of what the
columns and the rows of all task vectors tau_t = B_t A_t span: tau_t = Q_l M_t Q_r^T. Then

* tau_t and M_t have the same singular values, but for zeros, so the projections keep the same triplets, and with M_t =
  u s v^T those of tau_t are Q_l u and Q_r v. The losses of any Q_l X Q_r^T are those of X.
* In A X + X B = R all of A = Q_l a Q_l^T, B = Q_r b Q_r^T and R = Q_l r Q_r^T come from the small ones. Outside of the
  joint space R is zero, and the solution that is taken is zero where R is: the minimum is Q_l x Q_r^T with
  a x + x b = r. What is flat is flat there too, since the largest curvature is the same.

So the fold of the small matrices, with a base of zero, is the fold. This holds for every fold that does not change when
the coordinates are turned and that stays in the span; not for one that goes by single entries, as Adam's steps do.

Knows no modules, adapters or files. Products are (outputs, inputs): in the coordinates there is no other layout.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dopkit.linalg.factors import Factors, shortened, span, split
from dopkit.methods.coefficients import Turns
from dopkit.methods.fold import Context
from dopkit.methods.rule import Rule


def weighted(products: Sequence[Factors], turns: Turns) -> Factors:
    """The weighted sum: all factors side by side, each step rounded as it would be if the one before was written."""
    b = [products[0].scaled(turns[0][1]).b]
    for product, (before, own) in zip(products[1:], turns[1:], strict=True):
        b = [*(b if before == 1 else [one * before for one in b]), product.scaled(own).b]
    return Factors(torch.cat(b, dim=1), torch.cat([product.a for product in products]))


def folded_in_turn(rule: Rule, products: Sequence[Factors], contexts: Sequence[Context]) -> Factors:
    """A fold that carries nothing but the merged task vector, one product after another.

    What is carried is float32 factors, as they would be written: going on from those later gives the same bits.
    """
    merged = _within_the_matrix(products[0])
    for step in range(1, len(products)):
        merged = _folded(rule, (merged, products[step]), contexts[step - 1 : step + 1])
    return merged


def folded_at_once(rule: Rule, products: Sequence[Factors], contexts: Sequence[Context]) -> Factors:
    """A fold with a state of its own, in the joint space of all products."""
    return _folded(rule, products, contexts)


def _folded(rule: Rule, products: Sequence[Factors], contexts: Sequence[Context]) -> Factors:
    if not any(product.rank for product in products):
        return products[0]
    space = span(products)
    fold, base = rule.load(), torch.zeros_like(space.matrices[0])
    state = fold.start(base, space.matrices[0], contexts[0])
    for matrix, context in zip(space.matrices[1:], contexts[1:], strict=True):
        state = fold.step(state, matrix, context)
    return split(space, fold.finish(state, contexts[-1]))[0]


def _within_the_matrix(product: Factors) -> Factors:
    """The product with factors no longer than its sides."""
    sides = min(product.b.shape[0], product.a.shape[1])
    return shortened(product, sides)[0] if product.rank > sides else product
