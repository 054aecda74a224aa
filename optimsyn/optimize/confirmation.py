"""Whether a search's winner beats the start text on passages that chose nothing, and why the search ended.

The mean that chose the winner is the best of several noisy ones: even among texts of equal worth one of them comes out
above the start text. So both texts are judged once more, on held passages with equal seeds, and the winner replaces the
start text only if the interval of the mean difference lies above 0.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from optimsyn.base.counting import plural
from optimsyn.base.seeds import derive_seed
from optimsyn.recipe.sections.optimizers import FEWEST_CONFIRMED

if TYPE_CHECKING:
    from optimsyn.optimize.prompt_task import PromptTask

CONFIDENCE = 0.9
"""Coverage of the interval. Its lower end alone decides. With 4 to 8 passages a percentile bootstrap is too narrow: of
differences that are noise, this one lies above 0 in 9 to 13 of 100, one of 80 % in 14 to 19."""
_RESAMPLES = 4000

ENDINGS = {
    "budget": "the judged pairs that were left (optimizers.prompt.metric_calls) had no room for another proposal",
    "patience": "as many proposals in a row as optimizers.prompt.patience allows brought no gain",
    "proposals": "nothing that was measured suggests another text",
    "plan": "every text of its plan was tried",
}


class Confirmation(BaseModel):
    """The winner of a search beside its start text, on passages that chose nothing."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    text: str = Field(description="The winner.")
    passages: int = Field(description="Held passages, each with a pair under both texts.")
    start_score: float = Field(description="Mean reward under the start text.")
    score: float = Field(description="Mean reward under the winner.")
    difference: float = Field(description="Mean paired difference.")
    low: float = Field(description=f"Lower end of its bootstrap interval ({CONFIDENCE:.0%}).")
    high: float = Field(description="Upper end.")
    confirmed: bool = Field(description="Whether the lower end is above 0, so that the winner replaces the text.")


def confirm(task: PromptTask, text: str) -> Confirmation | None:
    """Judges the start text and the winner on the held passages; None where none are held.

    Raises:
        ServiceError: A service failed for good.
    """
    import numpy as np
    from scipy import stats

    if not task.held:
        return None
    task.spendable = task.config.metric_calls
    start, winner = ([row.score for row in task.judge(each, task.held)] for each in (task.start, text))
    differences = [after - before for before, after in zip(start, winner, strict=True)]
    interval = stats.bootstrap(
        (np.asarray(differences),),
        np.mean,
        n_resamples=_RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(derive_seed(task.seed, "confirm")),
    ).confidence_interval
    count = len(task.held)
    found = Confirmation(
        text=text,
        passages=count,
        start_score=math.fsum(start) / count,
        score=math.fsum(winner) / count,
        difference=math.fsum(differences) / count,
        low=float(interval.low),
        high=float(interval.high),
        confirmed=bool(interval.low > 0),
    )
    # Without a score, since it is not one of the texts that were compared.
    row = {f"held_{name}": value for name, value in found.model_dump(exclude={"text"}).items()}
    task.history.add({"judged": task.judged, "status": "confirmed" if found.confirmed else "not confirmed", **row})
    return found


def said_of(task: PromptTask, winner: str, confirmation: Confirmation | None) -> tuple[str, ...]:
    """Sentences about the end of a search: why it ended, and whether its winner was confirmed."""
    ended = [] if task.ended is None else [f"The search ended because {ENDINGS[task.ended]}."]
    if winner == task.start:
        return (*ended, f"No text had a higher mean than {task.whose}, so there was none to confirm.")
    if confirmation is not None:
        figures = (
            f"on {plural(confirmation.passages, 'passage')} that chose nothing its reward is "
            f"{confirmation.difference:+.4f} "
            f"beside {task.whose} text ({CONFIDENCE:.0%} interval {confirmation.low:+.4f} to {confirmation.high:+.4f})"
        )
        if confirmation.confirmed:
            return (*ended, f"The new guiding text is confirmed: {figures}.")
        return (*ended, f"The best text of the search is not confirmed, and {task.whose} stays: {figures}.")
    return (*ended, f"The new guiding text is not confirmed: {_why_not(task)}. Its gain may be chance.")


def _why_not(task: PromptTask) -> str:
    config, passages = task.config, len(task.passages)
    if config.confirm_passages == 0:
        return "optimizers.prompt.confirm_passages is 0"
    if config.split(passages + config.metric_calls).held:
        return (
            f"the run has {passages} passages, {len(task.comparison)} of which compare texts, and the at least "
            f"{FEWEST_CONFIRMED} others are not there"
        )
    return (
        f"{FEWEST_CONFIRMED} passages would be the least, and passages: {config.passages} with metric_calls: "
        f"{config.metric_calls} of optimizers.prompt leaves fewer"
    )
