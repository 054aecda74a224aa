"""Influence calibrated on a few dozen real trainings from a run's own warm checkpoint.

A score predicts the order of truths; a calibrated one predicts their values. A ridge regression on influence, loss and
length can also remove a bias of the score; an isotonic fit only bends its scale. Both are judged on held-out samples, a
group (passage) at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[np.float64]

FEATURES = ("adam_linear dot", "loss", "answer length", "1 / answer length")
"""The features of the ridge regression."""


def ridge(features: Array, truths: Array, penalty: float = 1.0) -> tuple[Array, float]:
    """Coefficients and intercept of a ridge regression on standardised features.

    Args:
        features: [n, F].
        truths: [n].
        penalty: Added to the diagonal of the standardised features' Gram matrix.

    Returns:
        Coefficients [F] and the intercept, both for unstandardised features.
    """
    mean, scale = features.mean(0), features.std(0)
    scale = np.where(scale > 0, scale, 1.0)
    standard = (features - mean) / scale
    gram = standard.T @ standard + penalty * np.eye(features.shape[1])
    slope = np.linalg.solve(gram, standard.T @ (truths - truths.mean())) / scale
    return slope, float(truths.mean() - slope @ mean)


def calibrated_scores(
    scores: Mapping[str, torch.Tensor], truths: Mapping[str, torch.Tensor], groups: Sequence[str]
) -> dict[str, torch.Tensor]:
    """Predictions for each sample from fits to the other groups' in-batch truths.

    Args:
        scores: With the features.
        truths: With the in-batch truth; the last of several horizons is fitted.
        groups: The passage of each of the n samples; samples of one passage are never on both sides.

    Returns:
        "calibrated (ridge)" and "calibrated (isotonic)" -> [n] float64; nothing where there is no such truth or fewer
        than two groups.
    """
    from scipy.optimize import isotonic_regression

    in_batch = [name for name in truths if name.startswith("in batch")]
    names = sorted(set(groups))
    if not in_batch or len(names) < 2:
        return {}
    truth = truths[in_batch[-1]].numpy()
    table = np.stack([scores[name].double().numpy() for name in FEATURES], axis=1)
    bent, fitted = np.zeros(len(truth)), np.zeros(len(truth))
    for name in names:
        held_out = np.array([group == name for group in groups])
        slope, intercept = ridge(table[~held_out], truth[~held_out])
        fitted[held_out] = table[held_out] @ slope + intercept
        order = np.argsort(table[~held_out, 0], kind="stable")
        rising = isotonic_regression(truth[~held_out][order]).x
        bent[held_out] = np.interp(table[held_out, 0], table[~held_out, 0][order], rising)
    return {"calibrated (ridge)": torch.from_numpy(fitted), "calibrated (isotonic)": torch.from_numpy(bent)}
