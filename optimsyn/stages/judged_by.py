"""Records which scorer and checks a stage judged by: all stages of a run use the same.

The ledger never answers with judgements of other checks or another scorer. But the results of a finished stage
(a guiding text, a trained policy) stay, and must not be mixed with judgements by others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from optimsyn.base.errors import StageError
from optimsyn.base.identity import differing

if TYPE_CHECKING:
    from optimsyn.influence.factory import Scorer
    from optimsyn.programs.checker import Checker
    from optimsyn.reward.reward import InfluenceReward
    from optimsyn.runs.folder import Run

NOTE = "judged_by"
"""Key in the manifest's stage notes."""


def facts_of(scorer: Scorer, checker: Checker | None = None) -> dict[str, Any]:
    """The scorer's fingerprint, and the checks' digests if the stage gave rewards."""
    facts: dict[str, Any] = {"scorer": scorer.fingerprint}
    return facts if checker is None else {**facts, "checks": dict(checker.parts)}


def refuse_another(run: Run, now: dict[str, Any]) -> None:
    """Stops a run whose scorer or checks differ from those of its finished stages.

    Args:
        run: The run.
        now: `facts_of` the stage that begins.

    Raises:
        StageError: The scorer or checks changed; names the stage, the change and the cure.
    """
    for record in run.manifest.stages:
        before = record.notes.get(NOTE)
        if record.status != "finished" or before is None:
            continue
        changed = _changed(before, now)
        if changed:
            raise StageError(
                f"{run.name}: stage {record.name} judged its pairs by something else: {' and '.join(changed)} changed "
                "since it finished. Undo the change and run again; or start over under another --root (or "
                f"after removing {run.folder}), so that all stages judge by the same"
            )


def passed_over(reward: InfluenceReward) -> list[str]:
    """A note for the stage's result if the ledger holds judgements of another reward."""
    if not reward.passed_over:
        return []
    return [
        f"{reward.passed_over} earlier judgements in rewards.jsonl were made by other checks or another scorer; they "
        "were skipped, and their pairs judged again when needed."
    ]


def _changed(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The differences between facts that both have, in words."""
    changed = []
    if before["scorer"] != now["scorer"]:
        changed.append(
            "the scorer (the target or its number format, the warm-up, the validation questions or `influence`)"
        )
    if "checks" in before and "checks" in now:
        changed += differing(before["checks"], now["checks"])
    return changed
