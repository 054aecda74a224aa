"""optimsyn: synthetic question-answer data guided by its influence on a target model.

The names below are loaded when they are first used, so `import optimsyn` costs milliseconds:

    recipe = Recipe.load("recipes/quickstart.yaml")
    target = Target.load(recipe.models.target)
    target.warm_up(pairs, questions=questions)
    scorer = InfluenceScorer(target, questions)
    scores = scorer.score(pairs)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from optimsyn.base.environment import OMP_WAIT_POLICY, set_default
from optimsyn.base.version import __version__

# PyTorch and llama.cpp each start OpenMP threads; when idle ones spin, two libraries on few cores slow each other down
# thirtyfold. It must be set before either is imported, which is why it stands here.
set_default(OMP_WAIT_POLICY, "PASSIVE")

_EXPORTS = {
    "BudgetError": "optimsyn.base.errors",
    "DataError": "optimsyn.base.errors",
    "Dataset": "optimsyn.runs.datasets.dataset",
    "Document": "optimsyn.data.records",
    "InfluenceReward": "optimsyn.reward.reward",
    "InfluenceScorer": "optimsyn.influence.scorer",
    "ModelError": "optimsyn.base.errors",
    "OptimsynError": "optimsyn.base.errors",
    "Pair": "optimsyn.data.records",
    "Passage": "optimsyn.data.records",
    "Question": "optimsyn.data.records",
    "Recipe": "optimsyn.recipe.recipe",
    "RecipeError": "optimsyn.base.errors",
    "ReplyError": "optimsyn.base.errors",
    "Rubric": "optimsyn.data.records",
    "Run": "optimsyn.execution.start",
    "Scores": "optimsyn.influence.scores",
    "ServiceError": "optimsyn.base.errors",
    "StageError": "optimsyn.base.errors",
    "Target": "optimsyn.target.target",
    "changed": "optimsyn.recipe.changes",
    "register": "optimsyn.base.extensions",
    "run_stages": "optimsyn.execution.runner",
}

if TYPE_CHECKING:
    from optimsyn.base.errors import (
        BudgetError,
        DataError,
        ModelError,
        OptimsynError,
        RecipeError,
        ReplyError,
        ServiceError,
        StageError,
    )
    from optimsyn.base.extensions import register
    from optimsyn.data.records import Document, Pair, Passage, Question, Rubric
    from optimsyn.execution.runner import run_stages
    from optimsyn.execution.start import Run
    from optimsyn.influence.scorer import InfluenceScorer
    from optimsyn.influence.scores import Scores
    from optimsyn.recipe.changes import changed
    from optimsyn.recipe.recipe import Recipe
    from optimsyn.reward.reward import InfluenceReward
    from optimsyn.runs.datasets.dataset import Dataset
    from optimsyn.target.target import Target

__all__ = [
    "BudgetError",
    "DataError",
    "Dataset",
    "Document",
    "InfluenceReward",
    "InfluenceScorer",
    "ModelError",
    "OptimsynError",
    "Pair",
    "Passage",
    "Question",
    "Recipe",
    "RecipeError",
    "ReplyError",
    "Rubric",
    "Run",
    "Scores",
    "ServiceError",
    "StageError",
    "Target",
    "__version__",
    "changed",
    "register",
    "run_stages",
]


def __getattr__(name: str) -> Any:
    """Loads an exported name from its module when it is first used (PEP 562)."""
    module = _EXPORTS.get(name)
    if module is None:
        raise AttributeError(f"module 'optimsyn' has no attribute {name!r}")
    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
