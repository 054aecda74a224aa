"""The report of a run: one small page that says what came in, what came out and what it is worth.

It is made from the files of the run alone, for finished, failed and interrupted runs alike, and needs nothing beside
it: no script, no picture file, no request to anywhere. The same files give the same bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from optimsyn.base.files import write_text
from optimsyn.report.facts import RunFacts
from optimsyn.report.rendering import render

if TYPE_CHECKING:
    from optimsyn.runs.folder import Run

REPORT = "report.html"


def write_report(run: Run) -> Path:
    """Writes `report.html` into the run folder, whatever state the run is in.

    Args:
        run: The run; nothing of it is executed, and no model library is loaded.

    Returns:
        The page.

    Raises:
        DataError: A file of the run is damaged; names it.
    """
    from optimsyn.report.page.sections import context_of

    path, facts = run.folder / REPORT, RunFacts.read(run)
    write_text(path, render("report.html.j2", facts.secrets, **context_of(facts)))
    return path
