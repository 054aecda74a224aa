"""The scores that a fidelity study compares: every estimator, and every definition of which tokens count."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from optimsyn.influence.estimators import BUILT_IN, estimator_of, normalised
from optimsyn.influence.gradients.parts import GradientParts
from optimsyn.influence.moments import flat_moments
from optimsyn.recipe.sections.models import CountedTokens
from optimsyn.target.target import Target
from optimsyn.target.warm_up.checkpoints import Checkpoint

COUNTED: dict[str, CountedTokens] = {
    "": CountedTokens(end_of_pairs=0),
    "end of pairs": CountedTokens(end_of_pairs=1),
    "end of pairs .3": CountedTokens(end_of_pairs=0.3),
    "end of both": CountedTokens(end_of_pairs=1, end_of_questions=1),
    "root": CountedTokens(reduction="root", end_of_pairs=0),
    "sum": CountedTokens(reduction="sum", end_of_pairs=0),
    "root, end of pairs": CountedTokens(reduction="root", end_of_pairs=1),
    "sum, end of pairs": CountedTokens(reduction="sum", end_of_pairs=1),
}
"""Definitions of what counts, tried with the default estimator; other estimators use the first of these.

A label's meaning does not depend on the recipe's default; `end of pairs` is the default one.
"""

_ROWS = 8
_DEFAULT = ("adam_linear", "adam")


def influence_scores(
    target: Target,
    checkpoint: Checkpoint,
    pool: GradientParts,
    questions: GradientParts,
    estimators: Sequence[str] = tuple(BUILT_IN),
) -> dict[str, torch.Tensor]:
    """Every estimator's scores from one set of gradients.

    The direction is the mean of the questions' normalised gradients, that of a scorer with one subtask and
    `question_gradients: unit`; `plain mean` takes gradients as long as they are, as `plain` does. A dot is divided by
    no constant that is the same for all.

    Args:
        target: Defines the parameters' order.
        checkpoint: With the moments of Γ.
        pool: Gradients of n samples.
        questions: Gradients of the questions.
        estimators: Names as in a recipe.

    Returns:
        Name, such as "adam cosine" or "adam_linear dot, end of both", -> [n] float64.

    Raises:
        RecipeError: An estimator has no such name.
    """
    moments = flat_moments(target, checkpoint)
    scores: dict[str, torch.Tensor] = {}
    for label, tokens in COUNTED.items():
        gradients, asked = pool.under(tokens, "pair"), questions.under(tokens, "question")
        unit = torch.nn.functional.normalize(asked, dim=1, eps=1e-30).mean(0)
        vectors = torch.stack([unit, asked.mean(0)], dim=1).double()
        for name in estimators if not label else [key for key in _DEFAULT if key in estimators]:
            dots, norms = _products(estimator_of(name).bind(moments), gradients, vectors)
            ending = f", {label}" if label else ""
            scores[f"{name} cosine{ending}"] = normalised(dots[:, 0], norms)
            scores[f"{name} dot{ending}"] = dots[:, 0]
            scores[f"{name} dot, plain mean{ending}"] = dots[:, 1]
    return scores


def _products(gamma: object, gradients: torch.Tensor, vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """⟨V, Γ⟩ [n, 2] and ‖Γ‖ [n]; a few samples at a time, since Γ in float64 takes several times the gradients."""
    assert callable(gamma)
    dots, norms = [], []
    for start in range(0, len(gradients), _ROWS):
        part = gamma(gradients[start : start + _ROWS]).double()
        dots.append(part @ vectors)
        norms.append(part.norm(dim=1))
    return torch.cat(dots), torch.cat(norms)
