"""How a run stands, and what each stage found, in a few words."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from optimsyn.base.labels import LOWER_IS_BETTER, variant_label
from optimsyn.base.table import number
from optimsyn.runs.manifest import STAGES, Manifest, StageRecord
from optimsyn.training.intervals import differs

if TYPE_CHECKING:
    from optimsyn.training.intervals import MetricRow

StateKind = Literal["finished", "failed", "interrupted", "running", "unfinished", "new"]
STAGE_LABELS = {
    "prepare": "Prepare",
    "warm_up": "Warm up",
    "optimize_prompt": "Optimise the guiding text",
    "train_policy": "Train the policy",
    "synthesize": "Synthesize",
    "fine_tune": "Fine-tune",
    "evaluate": "Evaluate",
}


@dataclass(frozen=True)
class RunState:
    """How a run stands.

    Attributes:
        kind: finished; failed or interrupted in a stage; running; unfinished: stopped between two stages; new.
        record: The stage that failed, was interrupted or runs; else None.
        waiting: Stages that have not finished.
    """

    kind: StateKind
    record: StageRecord | None
    waiting: tuple[str, ...]

    @property
    def place(self) -> str:
        """The stage that it stands in, such as `stage 5 of 7, synthesize`."""
        if self.record is None:
            return ""
        return f"stage {STAGES.index(self.record.name) + 1} of {len(STAGES)}, {self.record.name}"


def run_state(manifest: Manifest) -> RunState:
    """How a run stands, by its manifest."""
    waiting = tuple(record.name for record in manifest.stages if record.status != "finished")
    for kind in ("failed", "interrupted", "running"):
        for record in manifest.stages:
            if record.status == kind:
                return RunState(record.status, record, waiting)
    if not waiting:
        return RunState("finished", None, ())
    return RunState("new" if len(waiting) == len(STAGES) else "unfinished", None, waiting)


def commands(folder: Path) -> dict[str, str]:
    """What to type to go on with a run, `continue` and `open`, from where the folder of the runs is.

    Short and without the path of this machine: a report may be read elsewhere.
    """
    run = shlex.quote(f"{folder.parent.name}/{folder.name}")
    return {"continue": f"optimsyn run {run}", "open": f"optimsyn open {run}"}


def judgement(row: MetricRow) -> str:
    """`better`, `worse`, or `not told apart` when the difference's interval includes 0; "" without a difference."""
    if row["difference"] is None:
        return ""
    if not differs(row):
        return "not told apart"
    return "better" if (row["difference"] < 0) == (row["metric"] in LOWER_IS_BETTER) else "worse"


def stage_outcome(stage: str, numbers: Mapping[str, Any]) -> str:
    """What a finished stage found, in a line; "" when its numbers say nothing.

    Args:
        stage: Its name.
        numbers: `numbers` of its `result.json`.
    """
    if not numbers:
        return ""
    if numbers.get("enabled") is False:
        return "disabled in the recipe"
    return _OUTCOMES[stage](numbers) if stage in _OUTCOMES else ""


def _prepare(numbers: Mapping[str, Any]) -> str:
    lost = f", {numbers['lost']:,} rows lost" if numbers.get("lost") else ""
    skipped = f" ({numbers['skipped']:,} skipped)" if numbers.get("skipped") else ""
    talking = numbers.get("talking")
    flagged = f", {_count(talking, 'passage')} that may talk to a language model" if talking else ""
    return (
        f"{_count(numbers['documents'], 'document')}{skipped}, {_count(numbers['passages'], 'passage')}, "
        f"{numbers['validation']:,} validation and {numbers['test']:,} test questions{lost}{flagged}"
    )


def _warm_up(numbers: Mapping[str, Any]) -> str:
    # A run of an older version does not say why its warm-up ended.
    ended = f"{_count(numbers['steps'][-1], 'step')} ({numbers['stopped']}), " if numbers.get("stopped") else ""
    return (
        f"{numbers['valid']:,} of {numbers['first_draft']:,} first-draft pairs valid, {ended}"
        f"mean influence {number(numbers['influence_mean'])}{_reward(numbers)}"
    )


def _reward(numbers: Mapping[str, Any]) -> str:
    """What a run found of its reward, when it has looked."""
    look = numbers.get("reward_look")
    return f"; the reward is {look['verdict']}" if look else ""


def _optimize_prompt(numbers: Mapping[str, Any]) -> str:
    tried = f"{_count(numbers['candidates'], 'text')} tried on {numbers['judged']:,} pairs"
    if not numbers["changed"]:
        return f"{tried}; none beat the recipe's own ({number(numbers['start_score'])})"
    return f"reward {number(numbers['start_score'])} → {number(numbers['score'])}, {tried}"


def _train_policy(numbers: Mapping[str, Any]) -> str:
    steps = _count(numbers["steps"], "step")
    if numbers.get("reward_first") is None:
        return steps
    return f"reward {number(numbers['reward_first'])} → {number(numbers['reward_last'])} in {steps}"


def _synthesize(numbers: Mapping[str, Any]) -> str:
    written = sum(counts.get("candidates", 0) for counts in numbers["losses"].values())
    return (
        f"{_count(numbers['pairs'], 'pair')} a variant from {written:,} candidates; the dataset is that of the "
        f"{variant_label(numbers['dataset'])}"
    )


def _fine_tune(numbers: Mapping[str, Any]) -> str:
    losses = [(facts["loss_first"], facts["loss_last"]) for facts in numbers.values()]
    first = sum(pair[0] for pair in losses) / len(losses)
    last = sum(pair[1] for pair in losses) / len(losses)
    return f"{_count(len(losses), 'variant')}, mean training loss {number(first)} → {number(last)}"


_OUTCOMES = {
    "prepare": _prepare,
    "warm_up": _warm_up,
    "optimize_prompt": _optimize_prompt,
    "train_policy": _train_policy,
    "synthesize": _synthesize,
    "fine_tune": _fine_tune,
}


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def run_notes(services: Mapping[str, Mapping[str, Any]], outcomes: Mapping[str, Mapping[str, int]]) -> list[str]:
    """What a person should know about the services of a run and about the replies that it has kept.

    Args:
        services: As in a manifest.
        outcomes: As in a manifest.
    """
    from optimsyn.llm.hosted.service_memory import sentences_of

    notes = sentences_of(services)
    if damaged := sum(counts.get("damaged", 0) for counts in outcomes.values()):
        notes.append(
            f"{damaged} kept {'reply was' if damaged == 1 else 'replies were'} damaged in replies.sqlite and bought "
            "again; what was paid for the first time is counted, too. Check the disk"
        )
    if estimated := sum(counts.get("estimated", 0) for counts in outcomes.values()):
        notes.append(
            f"the tokens of {estimated} replies are not reported, or not as they can be, so they are estimated from "
            "the texts"
        )
    return notes
