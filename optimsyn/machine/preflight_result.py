"""The result of checking a recipe on this machine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from optimsyn.base.counting import plural
from optimsyn.base.errors import RecipeError
from optimsyn.base.terminal.table import Shown, Table

if TYPE_CHECKING:
    from optimsyn.machine.disk_need import DiskNeed
    from optimsyn.runs.forecast import Forecast

_NOUNS = {
    "documents": "document",
    "passages": "passage",
    "validation": "validation question",
    "test": "test question",
}


@dataclass
class Preflight(Shown):
    """The result of checking a recipe on this machine.

    Attributes:
        problems: Each stops the run; with file, row or field, and the cure.
        warnings: The run works, but not as well as it could.
        unchecked: Checks that were skipped because they need the network or a key (`offline`).
        counts: Documents, passages, validation and test questions, as far as they were read.
        gpu_bytes: Estimated GPU memory of the run's models.
        main_bytes: Their estimated main memory.
        forecast: What the run will send; None where the recipe's files were not read.
        disk: Disk space that the run will take, if it was estimated (`checked`).
        time: How long the run will take, or why that is not foreseen, in a sentence; "" unless `checked`.
    """

    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    gpu_bytes: int = 0
    main_bytes: int = 0
    forecast: Forecast | None = None
    disk: DiskNeed | None = None
    time: str = ""

    @property
    def ok(self) -> bool:
        """True when nothing would stop the run."""
        return not self.problems

    @property
    def counted(self) -> list[str]:
        """What was read, with its nouns."""
        return [plural(count, _NOUNS[name]) for name, count in self.counts.items()]

    def _table(self) -> Table:
        rows = [("✗ problem", text) for text in self.problems] + [("! note", text) for text in self.warnings]
        rows += [("? not checked", text) for text in self.unchecked]
        rows += [("read", counted) for counted in self.counted]
        if self.forecast is not None:
            rows.append(("will send", self.forecast.sentence))
        rows += [] if self.disk is None else [("disk", self.disk.text())]
        rows += [("time", self.time)] if self.time else []
        title = "Nothing would stop this run" if self.ok else f"{len(self.problems)} things would stop this run"
        return Table(title if len(self.problems) != 1 else "One thing would stop this run", ("what", ""), tuple(rows))

    def raise_if_refused(self) -> None:
        """Raises all problems at once.

        Raises:
            RecipeError: There is at least one problem.
        """
        if self.problems:
            raise RecipeError("\n".join(self.problems))
