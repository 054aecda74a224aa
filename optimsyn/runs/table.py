"""The table that shows a run in a notebook or terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optimsyn.base.terminal.table import Table
from optimsyn.runs.outcomes import manifest_now, stage_label, stage_outcome
from optimsyn.runs.results.reading import result_of

if TYPE_CHECKING:
    from optimsyn.runs.protocol import RunLike

_MARKS = {"finished": "✓", "failed": "✗", "interrupted": "■", "running": "…", "pending": "·"}
_LONGEST_ERROR = 300


def run_table(run: RunLike) -> Table:
    """Stages of a run with state and outcome; the same each time a finished run is opened."""
    rows = []
    for number_, record in enumerate(manifest_now(run)[0].stages, 1):
        mark = f"{_MARKS[record.status]} {record.status}"
        rows.append((f"{number_}. {stage_label(record.name)}", mark, _outcome(run, record.name, record.error)))
    return Table(f"Run {run.name}", ("stage", "state", "outcome"), tuple(rows))


def _outcome(run: RunLike, stage: str, error: str | None) -> str:
    if error is not None:
        return error if len(error) <= _LONGEST_ERROR else error[: _LONGEST_ERROR - 1] + "…"
    return stage_outcome(result_of(run.folder, stage))
