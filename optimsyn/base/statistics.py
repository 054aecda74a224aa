"""Rank correlation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

Array = NDArray[np.float64]


def ranks(values: Array) -> Array:
    """Ranks along the last axis, ties averaged, with mean 0."""
    ranked: Array = np.asarray(rankdata(values, axis=-1), dtype=np.float64)
    ranked -= ranked.mean(-1, keepdims=True)
    return ranked


def correlation(x: Array, y: Array) -> Array:
    """Cosine of centred x and y [..., n] along the last axis; NaN where one of them is constant."""
    xx, yy = (x * x).sum(-1), (y * y).sum(-1)
    sizes = np.sqrt(xx * yy)
    # Ranks are of the order of n; below this is rounding.
    ok = (xx > 1e-9) & (yy > 1e-9)
    cosines: Array = np.where(ok, (x * y).sum(-1) / np.where(ok, sizes, 1.0), np.nan)
    return cosines


def without(x: Array, controls: Sequence[Array]) -> Array:
    """The residual of a linear fit of centred x on centred controls; all [..., n] along the last axis."""
    basis: list[Array] = []
    for control in controls:
        rest = control
        for other in basis:
            rest = rest - other * (rest * other).sum(-1, keepdims=True)
        size = np.sqrt((rest * rest).sum(-1, keepdims=True))
        basis.append(np.where(size > 1e-6, rest / np.where(size > 1e-6, size, 1.0), 0.0))
    for other in basis:
        x = x - other * (x * other).sum(-1, keepdims=True)
    return x


def spearman(x: Array, y: Array, controls: Sequence[Array] = ()) -> Array:
    """Rank correlation along the last axis, partial to the ranks of controls; NaN where undefined.

    Args:
        x: [..., n].
        y: [..., n].
        controls: Each [..., n].
    """
    taken = [ranks(control) for control in controls]
    return correlation(without(ranks(x), taken), without(ranks(y), taken))
