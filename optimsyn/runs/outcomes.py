"""State of a run and outcome of each stage, in a few words."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from optimsyn.base.counting import plural
from optimsyn.base.terminal.labels import LOWER_IS_BETTER, variant_label
from optimsyn.base.terminal.table import number
from optimsyn.runs.manifest import Failure, Manifest, StageRecord, at_work
from optimsyn.runs.results.built_in import (
    EvaluateResult,
    FineTuneResult,
    OptimizePromptResult,
    PrepareResult,
    SynthesizeResult,
    TrainPolicyResult,
    WarmUpResult,
)
from optimsyn.runs.results.stage_result import NOT_RECORDED, StageResult, TableResult, show
from optimsyn.runs.results.text_search import TextSearch
from optimsyn.training.intervals import differs

if TYPE_CHECKING:
    from optimsyn.runs.protocol import RunLike
    from optimsyn.training.intervals import MetricRow

StateKind = Literal["finished", "failed", "interrupted", "running", "unfinished", "new"]
# Most facts of a custom stage in one line.
_FACTS = 4
_KILLED = "killed while it was running"
_STAGE_LABELS = {
    "prepare": "Prepare",
    "warm_up": "Warm up",
    "optimize_prompt": "Optimise the guiding text",
    "train_policy": "Train the policy",
    "synthesize": "Synthesize",
    "fine_tune": "Fine-tune",
    "evaluate": "Evaluate",
}


def stage_label(stage: str) -> str:
    """A stage as a heading; a custom one by its name."""
    return _STAGE_LABELS.get(stage, stage.replace("_", " ").capitalize())


@dataclass(frozen=True)
class RunState:
    """State of a run.

    Attributes:
        kind: finished; failed or interrupted in a stage; running; unfinished: stopped between two stages; new.
        record: The stage that failed, was interrupted, is running, or is the next of a run at work; else None.
    """

    kind: StateKind
    record: StageRecord | None
    waiting: tuple[str, ...]
    stages: tuple[str, ...]

    @property
    def place(self) -> str:
        """The current stage, such as `stage 5 of 7, synthesize`."""
        if self.record is None:
            return ""
        before = "before " if self.kind == "running" and self.record.status != "running" else ""
        return f"{before}stage {self.stages.index(self.record.name) + 1} of {len(self.stages)}, {self.record.name}"


def manifest_now(run: RunLike) -> tuple[Manifest, bool]:
    """The manifest as it is true now, and whether a process works on the run.

    A stage that is marked as running though no process works on the run was killed, which it could not record.
    """
    before = at_work(run.folder)
    manifest = run.manifest
    # Asked twice, since a stage may begin or end in between.
    if before or at_work(run.folder):
        return manifest, True
    for record in manifest.stages:
        if record.status == "running":
            record.status, record.pid, record.error = "interrupted", None, _KILLED
            record.failure = Failure(kind="Killed", reason=_KILLED)
    return manifest, False


def run_state(manifest: Manifest, working: bool) -> RunState:
    """State of a run; its arguments are those of `manifest_now`."""
    waiting = tuple(record.name for record in manifest.stages if record.status != "finished")
    if working and waiting and all(record.status != "running" for record in manifest.stages):
        return RunState("running", manifest.stage(waiting[0]), waiting, manifest.names)
    for status in ("failed", "interrupted", "running"):
        for record in manifest.stages:
            if record.status == status:
                return RunState(record.status, record, waiting, manifest.names)
    if not waiting:
        return RunState("finished", None, (), manifest.names)
    kind: StateKind = "new" if len(waiting) == len(manifest.names) else "unfinished"
    return RunState(kind, None, waiting, manifest.names)


def commands(folder: Path) -> dict[str, str]:
    """Commands that `continue` and `open` a run, to type in the parent of the runs folder.

    They hold no absolute path: a report may be read on another machine.
    """
    run = shlex.quote(f"{folder.parent.name}/{folder.name}")
    return {"continue": f"optimsyn run {run}", "open": f"optimsyn open {run}"}


def judgement(row: MetricRow) -> str:
    """`higher`, `lower`, or `not told apart` when the difference's interval includes 0; "" without a difference.

    It says where a number moved on these questions, with one seed, and not that one is better than the other.
    """
    if row["difference"] is None:
        return ""
    if not differs(row):
        return "not told apart"
    return "higher" if row["difference"] > 0 else "lower"


def favourable(row: MetricRow) -> bool | None:
    """Whether a difference that excludes 0 is towards the metric's better end; None if it includes 0."""
    if not differs(row) or row["difference"] is None:
        return None
    return (row["difference"] < 0) == (row["metric"] in LOWER_IS_BETTER)


def stage_outcome(result: StageResult | None) -> str:
    """Outcome of a finished stage in a line; "" if it left no result."""
    if isinstance(result, OptimizePromptResult | TrainPolicyResult) and result.enabled is False:
        return "disabled in the recipe"
    outcome = next((describe(result) for kind, describe in _OUTCOMES if isinstance(result, kind)), None)
    if outcome is not None:
        return outcome
    return _own_stage(result) if isinstance(result, TableResult) else ""


def _own_stage(result: TableResult) -> str:
    """Outcome of a custom stage: its heading, if it has one, and its first facts."""
    numbers = list(result.numbers.items())[:_FACTS]
    facts = ", ".join(f"{name.replace('_', ' ')}: {show(value)}" for name, value in numbers)
    return facts if result.title == result.stage else "; ".join(filter(None, (result.title, facts)))


def _prepare(result: PrepareResult) -> str:
    lost = f", {plural(result.lost, 'row')} lost" if result.lost else ""
    skipped = f" ({result.skipped:,} skipped)" if result.skipped else ""
    flagged = f", {_count(result.talking, 'passage')} that may talk to a language model" if result.talking else ""
    return (
        f"{_count(result.documents, 'document')}{skipped}, {_count(result.passages, 'passage')}, "
        f"{_number(result.validation)} validation and {_number(result.test)} test questions{lost}{flagged}"
    )


def _warm_up(result: WarmUpResult) -> str:
    # Older versions did not record why the warm-up ended.
    ended = f"{_count(result.steps[-1], 'step')} ({result.stopped}), " if result.steps and result.stopped else ""
    look = f"; the reward is {result.reward_look.verdict}" if result.reward_look is not None else ""
    return (
        f"{_number(result.valid)} of {_number(result.first_draft)} first-draft pairs valid, {ended}"
        f"mean influence {_number(result.influence_mean)}{look}"
    )


def _optimize_prompt(result: OptimizePromptResult) -> str:
    return _search(result, "the recipe's own")


def _search(result: TextSearch, whose: str) -> str:
    tried = f"{_count(result.candidates, 'text')} tried on {_number(result.judged)} pairs"
    seen = result.confirmation
    if result.changed is False and seen is not None:
        return f"{tried}; the best was not confirmed ({seen.difference:+.3f} on {_count(seen.passages, 'passage')})"
    if result.changed is False:
        return f"{tried}; none beat {whose} ({_number(result.start_score)})"
    return f"reward {_number(result.start_score)} → {_number(result.score)}, {tried}"


def _train_policy(result: TrainPolicyResult) -> str:
    again = result.second_turn
    searched = "" if again is None else f"; guiding text again: {_search(again, 'that of the first turn')}"
    return f"{_training(result)}{searched}"


def _training(result: TrainPolicyResult) -> str:
    steps = _count(result.steps, "step" if result.kept_round is None else "round")
    if result.held_passages and result.kept_round is not None:
        kept = f"round {result.kept_round} kept" if result.kept_round else "none better than the untrained policy"
        difference = _number(result.held_difference)
        return f"reward on held passages {difference} against the untrained policy, {steps}, {kept}"
    if result.reward_first is None:
        return steps
    return f"reward {_number(result.reward_first)} → {_number(result.reward_last)} in {steps}"


def _synthesize(result: SynthesizeResult) -> str:
    candidates = [lost.candidates for lost in (result.losses or {}).values()]
    total = None if not candidates or None in candidates else sum(filter(None, candidates))
    dataset = NOT_RECORDED if result.dataset is None else f"that of the {variant_label(result.dataset)}"
    return f"{_count(result.pairs, 'pair')} a variant from {_number(total)} candidates; the dataset is {dataset}"


def _fine_tune(result: FineTuneResult) -> str:
    tuned = list((result.variants or {}).values())
    first, last = (_mean([each.loss_first for each in tuned]), _mean([each.loss_last for each in tuned]))
    return f"{_count(len(tuned), 'variant')}, mean training loss {_number(first)} → {_number(last)}"


def _evaluate(result: EvaluateResult) -> str:
    return (
        f"{plural(result.targets, 'target')} on {plural(result.questions, 'test question')}" if result.metrics else ""
    )


_OUTCOMES: tuple[tuple[type[StageResult], Callable[[Any], str]], ...] = (
    (PrepareResult, _prepare),
    (WarmUpResult, _warm_up),
    (OptimizePromptResult, _optimize_prompt),
    (TrainPolicyResult, _train_policy),
    (SynthesizeResult, _synthesize),
    (FineTuneResult, _fine_tune),
    (EvaluateResult, _evaluate),
)


def _mean(values: Sequence[float | None]) -> float | None:
    """The mean; None if a value is not recorded."""
    recorded = [value for value in values if value is not None]
    return sum(recorded) / len(recorded) if recorded and len(recorded) == len(values) else None


def _number(value: float | None) -> str:
    """A number as text, or that an older version has not recorded it."""
    if value is None:
        return NOT_RECORDED
    return f"{value:,}" if isinstance(value, int) else number(value)


def _count(count: int | None, noun: str) -> str:
    return f"{NOT_RECORDED} {noun}s" if count is None else plural(count, noun)


def run_notes(services: Mapping[str, Mapping[str, Any]], outcomes: Mapping[str, Mapping[str, int]]) -> list[str]:
    """Notes about the services of a run and its cached replies."""
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
