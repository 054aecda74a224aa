"""The end of the warm-up: a run looks at its own reward, and stops when it is noise.

The findings are kept in `warm_up/reward_look.json`, even when they stop the run.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from optimsyn.base.errors import StageError
from optimsyn.reward.look.record import REWARD_LOOK_FILE, RewardLook
from optimsyn.runs.results.built_in import REWARD_NOT_LOOKED_AT

if TYPE_CHECKING:
    from optimsyn.data.records import Pair
    from optimsyn.influence.scores import Scores
    from optimsyn.runs.stage_handle import StageHandle
    from optimsyn.stages.shared import Tools

_log = logging.getLogger(__name__)


def look_after_warm_up(
    tools: Tools,
    stage: StageHandle,
    pairs: Sequence[Pair],
    scores: Scores,
    trained_on: Collection[str],
) -> RewardLook | None:
    """Looks at the run's reward on its own first draft.

    Args:
        tools: The run's target, scorer and questions.
        stage: Handle that notes the verdict and reports progress.
        pairs: The valid pairs of the first draft.
        scores: Their scores.
        trained_on: Ids of the pairs that the warm-up trained on.

    Returns:
        The findings; None when the recipe has the look off.

    Raises:
        StageError: The reward is noise, and the recipe does not say to go on.
    """
    from optimsyn.reward.look.measure import ScorerSetup, look_at_reward
    from optimsyn.reward.look.options import LookOptions

    recipe, path = tools.recipe, tools.run.path("warm_up", REWARD_LOOK_FILE)
    if recipe.reward.look.pairs == 0:
        # From an earlier attempt with other settings.
        path.unlink(missing_ok=True)
        stage.note(reward=REWARD_NOT_LOOKED_AT)
        return None
    look = look_at_reward(
        ScorerSetup(tools.scorer, tools.target, tools.reward_questions, recipe.influence, tools.batch_training),
        pairs,
        LookOptions.of(recipe),
        scores=scores,
        trained_on=trained_on,
        report=lambda done, total: stage.progress(done, total, "passes of a look at the reward"),
    )
    look.save(path)
    stage.note(reward=look.verdict, reward_look=look.to_json())
    if look.verdict == "noise" and recipe.reward.on_noise == "stop":
        raise StageError(
            f"the reward is noise, so nothing built on it means anything: {'; '.join(look.reasons)}. "
            f"{_cure(look)} Everything bought is kept, and the numbers are in warm_up/{REWARD_LOOK_FILE} and in the "
            "report. To go on regardless set reward.on_noise: warn; the same command then continues this run."
        )
    if look.verdict in ("noise", "doubtful"):
        _log.warning("%s", look.sentence)
    return look


def _cure(look: RewardLook) -> str:
    """How to fix noise: usually by another number format or method."""
    if look.spread == 0 and look.numerical_error is not None and look.numerical_error < 1e-2:
        return "Look at the first-draft pairs: are they all alike? More warm_up.steps or a larger warm_up.lr may help."
    return (
        "Set influence.method: exact or models.target.dtype: float32; where neither helps, warm up with another "
        "warm_up.lr."
    )
