"""What a recipe would meet on this machine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from optimsyn.base.errors import RecipeError
from optimsyn.base.table import Shown, Table

if TYPE_CHECKING:
    from optimsyn.machine.disk_need import DiskNeed
    from optimsyn.runs.forecast import Forecast


@dataclass
class Preflight(Shown):
    """What a recipe would meet on this machine.

    Attributes:
        problems: Each would stop the run; with file, row or field, and the cure.
        warnings: The run would go on, but not as well as it could.
        unchecked: What can only be checked with the network or a key, when these were not to be used (`offline`).
        counts: Documents, passages, validation and test questions, as far as they were read.
        gpu_bytes: GPU memory that the run's models are estimated to need.
        main_bytes: The same in main memory.
        forecast: What the run is going to send; None where the recipe's files were not read.
        disk: Room that the run will take, where it was asked for (`checked`).
    """

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    gpu_bytes: int = 0
    main_bytes: int = 0
    forecast: Forecast | None = None
    disk: DiskNeed | None = None

    @property
    def ok(self) -> bool:
        """True when nothing would stop the run."""
        return not self.problems

    def _table(self) -> Table:

        return preflight_table(self)

    def raise_if_refused(self) -> None:
        """Raises all problems at once.

        Raises:
            RecipeError: There is at least one problem.
        """
        if self.problems:
            raise RecipeError("\n".join(self.problems))


_QUESTIONS = {"validation": "validation questions", "test": "test questions"}


def preflight_table(preflight: Preflight) -> Table:
    """What would stop a run, what to know, and what it would read."""
    rows = [("✗ problem", text) for text in preflight.problems] + [("! note", text) for text in preflight.warnings]
    rows += [("? not checked", text) for text in preflight.unchecked]
    rows += [("read", f"{count:,} {_QUESTIONS.get(what, what)}") for what, count in preflight.counts.items()]
    if preflight.forecast is not None:
        rows.append(("will send", preflight.forecast.sentence))
    rows += [] if preflight.disk is None else [("disk", preflight.disk.text())]
    title = "Nothing would stop this run" if preflight.ok else f"{len(preflight.problems)} things would stop this run"
    return Table(title if len(preflight.problems) != 1 else "One thing would stop this run", ("what", ""), tuple(rows))
