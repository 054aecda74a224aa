"""What the finished runs of a study came to, read from their folders."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optimsyn.base.errors import DataError, OptimsynError
from optimsyn.base.files import iter_json
from optimsyn.base.secrets.redaction import redact, redact_tree, secret_values
from optimsyn.reward.look.record import REWARD_LOOK_FILE, RewardLook
from optimsyn.runs.folder import Run
from optimsyn.runs.manifest import Manifest
from optimsyn.runs.results.stage_result import RESULT_FILE
from optimsyn.study.arms.effects import Differences
from optimsyn.study.arms.study_file import Contrast, Side, StudyCell

_RUBRICS = 400
"""Candidates of an arm that are read for its rubrics."""

Values = dict[str, dict[str, float]]
"""Metric to question to value."""


@dataclass(frozen=True)
class Outcome:
    """A finished run of a study.

    Attributes:
        values: By arm.
        groups: Group of each test question.
        policy: Rows of the policy's training.
        prompt: Rows of the prompt search.
        rubrics: By arm: passage to the first rubric that was written for it.
        look: Verdict of the reward's own look; None without one.
        trained: Result of the policy's training.
    """

    domain: str
    control: str
    seed: int
    values: dict[str, Values]
    groups: dict[str, str]
    policy: tuple[dict[str, Any], ...] = ()
    prompt: tuple[dict[str, Any], ...] = ()
    rubrics: dict[str, dict[str, dict[str, str]]] = field(default_factory=dict)
    look: str | None = None
    trained: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CellState:
    """How far a run of a study is.

    Attributes:
        state: `waiting`, `finished`, `unfinished` (it has begun) or `unreadable`.
        reason: Why it is not finished, if it stopped.
        seconds: Time of its finished stages.
    """

    cell: StudyCell
    folder: Path
    state: str
    reason: str = ""
    seconds: float = 0.0
    outcome: Outcome | None = None


def state_of(cell: StudyCell, root: Path, arms: Sequence[str], further: Sequence[str] = ()) -> CellState:
    """The state of a run under a root, with its outcome if it has finished; arguments as for `read_outcome`."""
    folder = Run.folder_of(cell.recipe, root)
    if not (folder / "manifest.json").is_file():
        return CellState(cell, folder, "waiting")
    try:
        run = Run.load(folder)
        manifest = run.manifest
        seconds = sum(record.seconds or 0.0 for record in manifest.stages if record.status == "finished")
        if not all(map(run.done, cell.recipe.stage_names)):
            return CellState(cell, folder, "unfinished", _stopped(manifest), seconds)
        return CellState(cell, folder, "finished", "", seconds, read_outcome(cell, run, arms, further))
    except OptimsynError as error:
        return CellState(cell, folder, "unreadable", redact(str(error)))


def read_outcome(cell: StudyCell, run: Run, arms: Sequence[str], further: Sequence[str] = ()) -> Outcome:
    """The outcome of a finished run with its arms, and with further ones if it has them.

    Raises:
        DataError: A file is missing or damaged; names it.
    """
    secrets = secret_values(run.secret_names)
    folder = run.folder
    questions = {str(row["id"]): row for row in _rows(folder / "prepare" / "test.jsonl")}
    values = {}
    for arm in dict.fromkeys([*arms, *further]):
        path = folder / "evaluate" / f"{arm}.jsonl"
        if not path.is_file() and arm not in arms:
            continue
        if not path.is_file():
            raise DataError(f"{path}: missing; the run has finished without the arm {arm}")
        values[arm] = values_of(iter_json(path), questions)
    look = folder / "warm_up" / REWARD_LOOK_FILE
    return Outcome(
        cell.domain,
        cell.control,
        cell.seed,
        values,
        {name: group_of(row) for name, row in questions.items()},
        tuple(_rows(folder / "train_policy" / "history.jsonl")),
        tuple(
            {"judged": row.get("judged", place), "score": row.get("score")}
            for place, row in enumerate(_rows(folder / "optimize_prompt" / "history.jsonl"))
        ),
        redact_tree({arm: _rubrics(folder / "synthesize" / f"{arm}.candidates.jsonl") for arm in arms}, secrets),
        RewardLook.load(look).verdict if look.is_file() else None,
        read_json(folder / "train_policy" / RESULT_FILE),
    )


def values_of(rows: Iterable[Mapping[str, Any]], questions: Mapping[str, Mapping[str, Any]]) -> Values:
    """The metrics of a variant's rows of `evaluate`, by question."""
    values: Values = {"loss": {}, "answer_loss": {}, "choice_loss": {}, "accuracy": {}, "token_f1": {}}
    for row in rows:
        name, choice = str(row["id"]), choice_loss(row, questions.get(str(row["id"]), {}))
        values["answer_loss"][name] = float(row["loss"])
        if row["correct"] is not None:
            values["accuracy"][name] = float(row["correct"])
        values["loss"][name] = float(row["loss"]) if choice is None else choice
        if choice is not None:
            values["choice_loss"][name] = choice
        if row.get("token_f1") is not None:
            values["token_f1"][name] = float(row["token_f1"])
    return values


def choice_loss(row: Mapping[str, Any], question: Mapping[str, Any]) -> float | None:
    """−log softmax of the gold option's score (mean log-likelihood a token) over the options; None without options."""
    scores = row.get("choice_scores")
    if not scores or len(scores) < 2:
        return None
    gold = question.get("answer_index")
    if gold is None:
        # A form with two fixed verdicts: if its likelier one is wrong, the other is right.
        if len(scores) != 2:
            return None
        best = max((0, 1), key=scores.__getitem__)
        gold = best if row["correct"] else 1 - best
    top = float(max(scores))
    return top + math.log(math.fsum(math.exp(score - top) for score in scores)) - float(scores[gold])


def group_of(question: Mapping[str, Any]) -> str:
    """The group of a test question: of its documents, else its document, its context, or itself."""
    return str(
        question.get("group") or question.get("document_id") or question.get("context") or f"alone: {question['id']}"
    )


def differences(outcomes: Sequence[Outcome], contrast: Contrast, metric: str) -> dict[str, Differences]:
    """Paired differences of a contrast by domain, over the seeds in which both sides have finished."""
    cells = {(each.domain, each.control, each.seed): each for each in outcomes}
    found: dict[str, tuple[list[float], list[int], list[str]]] = {}
    for (domain, control, seed), left in cells.items():
        right = cells.get((domain, contrast.right.control, seed))
        if control != contrast.left.control or right is None:
            continue
        one, other = (_of_side(each, side, metric) for each, side in ((left, contrast.left), (right, contrast.right)))
        values, seeds, groups = found.setdefault(domain, ([], [], []))
        for name in one:
            if name in other:
                values.append(one[name] - other[name])
                seeds.append(seed)
                groups.append(left.groups.get(name, f"alone: {name}"))
    return {domain: Differences(*map(tuple, parts)) for domain, parts in found.items() if parts[0]}  # type: ignore[arg-type]


def _of_side(outcome: Outcome, side: Side, metric: str) -> dict[str, float]:
    return outcome.values.get(side.arm, {}).get(metric, {})


def _rubrics(path: Path) -> dict[str, dict[str, str]]:
    rubrics: dict[str, dict[str, str]] = {}
    for place, row in enumerate(_rows(path)):
        if place >= _RUBRICS:
            break
        if isinstance(row.get("rubric"), dict):
            rubrics.setdefault(str(row.get("passage_id")), {str(k): str(v) for k, v in row["rubric"].items()})
    return rubrics


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object of a file; empty if there is none.

    Raises:
        DataError: The file is damaged.
    """
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not valid JSON ({error}); run its stage again") from error
    return value if isinstance(value, dict) else {}


def _rows(path: Path) -> Iterable[dict[str, Any]]:
    return iter_json(path, tolerate_torn=True) if path.is_file() else ()


def _stopped(manifest: Manifest) -> str:
    record = next((each for each in manifest.stages if each.failure is not None and each.status != "finished"), None)
    if record is None or record.failure is None:
        return ""
    return f"{record.name}: {record.failure.kind}: {record.failure.reason}"
