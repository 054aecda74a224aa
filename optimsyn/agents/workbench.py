"""The tools in Python, for the cells of a notebook: the same guard and budget as those of the MCP server."""

from __future__ import annotations

import atexit
import functools
import json
from collections.abc import Callable, Sequence
from contextlib import chdir
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from optimsyn.agents import results
from optimsyn.agents.guard import Guard
from optimsyn.agents.jobs import Jobs
from optimsyn.agents.ledger import Ledger
from optimsyn.agents.tools import READING, WRITING, Changes, RecipeName, Size, Toolbox
from optimsyn.base.environment import QUIET, set_variables
from optimsyn.base.errors import OptimsynError, ParameterError
from optimsyn.base.secrets.redaction import redact
from optimsyn.base.terminal.live_line import in_notebook
from optimsyn.base.terminal.table import Shown, Table
from optimsyn.execution.notebook import show_messages
from optimsyn.runs.folder import Run

T = TypeVar("T", bound=BaseModel)
_LOOK_S = 600.0


def _in_notebook(tool: Callable[..., T]) -> Callable[..., T]:
    """A tool that works from the root, removes secrets, and whose errors are one line in a cell."""

    @functools.wraps(tool)
    def call(self: Workbench, *arguments: Any, **named: Any) -> T:
        self._jobs.refused = None
        try:
            with chdir(self.root):
                return results.cleaned(tool(self, *arguments, **named))
        except OptimsynError as error:
            text = redact(f"{type(error).__name__}: {error}")
            # IPython asks an error how to show itself.
            error._render_traceback_ = lambda: text.splitlines()  # type: ignore[attr-defined]
            raise

    return call


class Workbench(Toolbox, Shown):
    """What an analyst's notebook works with: each tool is a method, and every result shows itself.

    Args:
        root: The only folder that tools may read and write.
        budget: US dollars that all runs and previews may cost together, with the analyst's own replies.
        allow_hosted: Recipes may name services.
        allow_plugins: Recipes may name code, which then runs with your rights.
        addresses: Hosts that `api_base` may name beside this machine.
        kept: A folder that keeps what was spent, so that a fresh kernel goes on with what is left of the budget;
            without one it begins anew.

    Raises:
        ParameterError: There is no such folder, or the budget is below 0.

    Example:
        >>> bench = Workbench(root=".", budget=2.0)                                      # doctest: +SKIP
        >>> bench.preview("mine.yaml", pairs=2)                                          # doctest: +SKIP
    """

    def __init__(
        self,
        root: Path | str = ".",
        *,
        budget: float = 0.0,
        allow_hosted: bool = False,
        allow_plugins: bool = False,
        addresses: Sequence[str] = (),
        kept: Path | str | None = None,
    ) -> None:
        if not Path(root).is_dir():
            raise ParameterError(f"root: there is no folder {root}; create it, or name another one")
        if budget < 0:
            raise ParameterError(f"budget: {budget:g} is below 0; give US dollars")
        guard = Guard(Path(root), allow_hosted=allow_hosted, allow_plugins=allow_plugins, addresses=addresses)
        super().__init__(guard, Jobs(budget, Ledger(Path(kept).resolve() if kept is not None else None)))
        self.root = guard.root
        self.budget = budget
        self._allowed = [
            *(["services"] if allow_hosted else []),
            *(["code of recipes"] if allow_plugins else []),
            *addresses,
        ]
        if in_notebook():
            set_variables(QUIET)
            show_messages()
        # Runs end with the kernel, in order.
        atexit.register(self._jobs.end)

    def run(
        self, recipe: RecipeName, size: Size = "full", changes: Changes = None, wait_s: float | None = None
    ) -> results.RunStatus:
        """Starts or continues the run of a recipe and waits for its end; an interrupt stops it, and all is kept.

        Args:
            recipe: A recipe file inside the root, a run folder, or the name of a bundled recipe.
            size: full, or tiny for the embedded model and a handful of documents.
            changes: Dotted field to value.
            wait_s: Wait so long at most; None: until it has ended.
        """
        status = super().run(recipe, size, changes, 0)
        left = wait_s
        try:
            while status.working and (left is None or left > 0):
                wait = _LOOK_S if left is None else min(left, _LOOK_S)
                status = super().status(status.run, wait)
                left = None if left is None else left - wait
        except KeyboardInterrupt:
            super().stop(status.run)
            raise
        return status

    def figures(self) -> results.Figures:
        """What the runs of this notebook have measured, and what the work has cost."""
        from optimsyn.execution.json_results import RunFigures

        runs, rows = {}, []
        for folder in self._jobs.ledger.runs:
            if not (folder / "manifest.json").is_file():
                continue
            read = RunFigures.read(Run.load(folder))
            runs[read.name] = read.headline
            rows += [results.Figure(run=read.name, state=read.state, **row.model_dump()) for row in read.evaluation]
        return results.Figures(runs=runs, figures=rows, money=self._money())

    def facts(self) -> str:
        """Permissions, money and the last refusal for its price, as JSON; for the analyst."""
        refused = self._jobs.refused
        return json.dumps(
            {
                "root": str(self.root),
                "budget": self.budget,
                "money": self._money().model_dump(),
                "refused": None
                if refused is None
                else {"what": refused.what, "needs": refused.needs, "left": refused.left},
            }
        )

    def model_problems(self, spec: dict[str, Any]) -> str:
        """Why a model may not be used by the analyst, as JSON; for the analyst."""
        from optimsyn.recipe.sections.models import ModelSpec

        return json.dumps(list(self._guard.model_problems("the analyst's model", ModelSpec.model_validate(spec))))

    def _table(self) -> Table:
        money = self._money()
        rows = (
            ("root", str(self.root)),
            ("budget", f"{self.budget:g} US dollars: {money.spent_usd:.4f} spent, {money.left_usd:.4f} left"),
            ("allowed beyond that", ", ".join(self._allowed) or "nothing"),
        )
        return Table("Workbench", ("what", "value"), rows)

    def __repr__(self) -> str:
        return f"Workbench(root={str(self.root)!r}, budget={self.budget:g})"


for _name in (*READING, *WRITING, "figures"):
    setattr(Workbench, _name, _in_notebook(getattr(Workbench, _name)))
