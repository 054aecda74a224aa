"""By what a stage judged, on record in the manifest: all stages of a run judge by the same.

The ledger never answers with judgements of other checks or of another scorer. But what a finished stage made of its
judgements (a guiding text, a trained policy) stays, and must not be mixed with what others are judged by now.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from optimsyn.base.errors import StageError
from optimsyn.base.identity import differing

if TYPE_CHECKING:
    from optimsyn.influence.factory import Scorer
    from optimsyn.programs.checks import Checker
    from optimsyn.reward.reward import InfluenceReward
    from optimsyn.runs.folder import Run

NOTE = "judged_by"
"""Name of the fact in the manifest's stage record."""


def facts_of(scorer: Scorer, checker: Checker | None = None) -> dict[str, Any]:
    """What goes on record: the scorer's fingerprint, and the checks' digests where the stage gave rewards."""
    facts: dict[str, Any] = {"scorer": scorer.fingerprint}
    return facts if checker is None else {**facts, "checks": dict(checker.parts)}


def refuse_another(run: Run, now: dict[str, Any]) -> None:
    """Stops a run that would judge by something else than its finished stages did.

    Args:
        run: The run.
        now: What the stage that begins would judge by, as `facts_of` gives it.

    Raises:
        StageError: Names the stage, what changed since and the cure.
    """
    for record in run.manifest.stages:
        before = record.notes.get(NOTE)
        if record.status != "finished" or before is None:
            continue
        changed = _changed(before, now)
        if changed:
            raise StageError(
                f"{run.name}: stage {record.name} judged its pairs by something else: {' and '.join(changed)} changed "
                "since it finished. Put that back as it was and run again; or start again under another --root (or "
                f"after removing {run.folder}), so that all stages judge by the same"
            )


def passed_over(reward: InfluenceReward) -> list[str]:
    """A sentence for the stage's result where the ledger held judgements that are none of this reward's."""
    if not reward.passed_over:
        return []
    return [
        f"{reward.passed_over} earlier judgements in rewards.jsonl were made by other checks or another scorer; they "
        "were passed over, and what was asked for again was judged again."
    ]


def _changed(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs of the facts that both tell, in words."""
    changed = []
    if before["scorer"] != now["scorer"]:
        changed.append(
            "the scorer (the target or its number format, the warm-up, the validation questions or `influence`)"
        )
    if "checks" in before and "checks" in now:
        changed += differing(before["checks"], now["checks"])
    return changed
