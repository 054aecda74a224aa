"""One sitting of an analyst with its notebook: step after step, within steps and budget."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from optimsyn.agents.analyst.notebook import AnalystNotebook, call_source, literal, plain
from optimsyn.agents.analyst.readiness import refuse_weak
from optimsyn.base.errors import ModelError, OptimsynError, ParameterError
from optimsyn.base.secrets.redaction import redact
from optimsyn.base.terminal.json_document import Result
from optimsyn.base.terminal.table import Table
from optimsyn.recipe.sections.models import ModelSpec

if TYPE_CHECKING:
    from optimsyn.agents.analyst.planner import Action, Planner
    from optimsyn.agents.analyst.session import Session

Ask = Callable[[str], bool]
"""Asks a person a question that is answered by yes or no."""
Say = Callable[[str], None]
"""Shows a person a line."""

_KEPT = ".kept"
_BUDGET = re.compile(r"\bbudget=[^,)\n]+")
# Steps that could not be done, in a row and in all, before the work stops.
_WRONG_IN_A_ROW, _WRONG = 4, 10
_SAME = 2


class Analysis(Result):
    """How the work of an analyst ended."""

    notebook: str = Field(description="Every step as an executed cell; the last cell has the recommendation.")
    ended: Literal["recommendation", "budget", "steps", "wrong", "failed"] = Field(
        description="`recommendation`: it is done; else what stopped it."
    )
    reason: str = Field(description="Why it stopped, and how to go on; empty with a recommendation.")
    recommendation: str
    steps: int = Field(description="Steps in the notebook.")
    spent_usd: float = Field(description="By all runs and the analyst's own replies.")
    left_usd: float

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()

    def table(self) -> Table:
        """How it ended."""
        rows = (
            ("notebook", self.notebook),
            ("recommendation" if self.recommendation else "stopped", self.recommendation or self.reason),
            ("steps", str(self.steps)),
            ("money", f"{self.spent_usd:.4f} US dollars spent, {self.left_usd:.4f} left"),
        )
        return Table("Analyst", ("what", "value"), rows)


class Work:
    """One sitting of an analyst with its notebook.

    Args:
        notebook: The notebook.
        spec: The model that chooses the steps.
        steps: The most steps.
        ask: Asks a person for a larger budget; None: nobody is there.
        say: Shows each step; None: it is silent.
    """

    def __init__(
        self, notebook: AnalystNotebook, spec: ModelSpec, steps: int, ask: Ask | None, say: Say | None
    ) -> None:
        refuse_weak(spec)
        self._notebook = notebook
        self._spec = spec
        self._most = steps
        self._ask = ask
        self._shown = say

    def _say(self, text: str) -> None:
        if self._shown is not None:
            self._shown(redact(text))

    def to_its_end(self) -> Analysis:
        """Works until there is a recommendation, or something stops it.

        Raises:
            ModelError: The model may not be used, or its price is unknown.
            ParameterError: The first code cell fails.
            StageError: The kernel does not start, or died.
        """
        from optimsyn.agents.analyst.planner import Planner
        from optimsyn.agents.analyst.session import opened
        from optimsyn.agents.ledger import REPLIES
        from optimsyn.llm.replies import ReplyCache

        with opened(self._notebook) as session:
            self._catch_up(session)
            problems = session.ask(f"bench.model_problems({literal(self._spec.model_dump(mode='json'))})")
            if problems:
                raise ModelError("\n".join(problems))
            cache = ReplyCache(kept_of(self._notebook.path) / REPLIES)
            planner = Planner(self._spec, cache)
            try:
                return self._steps(session, planner)
            except KeyboardInterrupt:
                self._say(f"Interrupted: `optimsyn agent --continue {shlex.quote(str(self._notebook.path))}` goes on.")
                raise
            finally:
                planner.close()
                cache.release()
                cache.close()

    def _catch_up(self, session: Session) -> None:
        """Opens the workbench and runs what a person has written or changed, and what has not run to its end."""
        notebook = self._notebook
        setup = notebook.setup
        assert setup is not None
        session.run(setup)
        if notebook.error(setup) is not None:
            raise ParameterError(f"{notebook.path}: its first code cell failed: {notebook.output(setup)[:600]}")
        for index, cell in enumerate(notebook.nb.cells):
            if cell.cell_type != "code" or index == setup:
                continue
            hand = notebook.by_hand(index)
            if hand and notebook.news(index):
                self._say(f"A person has changed a cell: {cell.source.splitlines()[0] if cell.source else ''}")
            if hand or not notebook.done(index):
                session.run(index)

    def _steps(self, session: Session, planner: Planner) -> Analysis:
        notebook = self._notebook
        in_a_row = wrong = 0
        for number in range(1, self._most + 1):
            inputs = self._inputs(session, number)
            stop = self._pays(session, planner.price(inputs))
            if stop:
                return self._end(session, "budget", stop)
            try:
                action = planner.next(inputs)
            except OptimsynError as error:
                return self._end(session, "failed", redact(f"{type(error).__name__}: {error}"))
            problem = action.problem or self._again(action)
            if problem:
                in_a_row, wrong = in_a_row + 1, wrong + 1
                notebook.refuse(action.asked or "a step", problem)
                notebook.save()
                self._say(f"{number}. not done: {problem}")
                if in_a_row >= _WRONG_IN_A_ROW or wrong >= _WRONG:
                    reason = f"{in_a_row} steps in a row" if in_a_row >= _WRONG_IN_A_ROW else f"{wrong} steps"
                    return self._end(session, "wrong", f"{reason} could not be done, the last one because {problem}")
                continue
            in_a_row = 0
            if action.tool == "finish":
                return self._end(session, "recommendation", recommendation=str(action.arguments["recommendation"]))
            stop = self._do(session, action, number)
            if stop:
                return self._end(session, "budget", stop)
        return self._end(session, "steps", f"{self._most} steps are used up (--steps)")

    def _inputs(self, session: Session, number: int) -> dict[str, str]:
        from optimsyn.agents.analyst.planner import Step, steps_text, tools_text

        money = session.ask("bench.facts()")["money"]
        left = self._most - number
        steps = f"{left} steps are left after this one" if left else "this is the last step: choose finish"
        return {
            "goal": str(self._notebook.facts().get("goal", "")),
            "recipe": str(self._notebook.facts().get("recipe", "")),
            "tools": tools_text(),
            "left": f"{steps}; {money['left_usd']:.4f} of {money['budget_usd']:g} US dollars are left",
            "steps": steps_text([Step(*step) for step in self._notebook.steps()]),
        }

    def _pays(self, session: Session, price: float | None) -> str:
        """Why the model's next reply cannot be paid; "" where it can."""
        from optimsyn.agents.analyst.readiness import unknown_price

        if price is None:
            raise ModelError(unknown_price(self._spec))
        left = session.ask("bench.facts()")["money"]["left_usd"]
        if price <= left:
            return ""
        return self._may_raise(session, "the analyst's next step", price, left)

    def _may_raise(self, session: Session, what: str, needs: float, left: float) -> str:
        """Asks for a larger budget, and sets it; why it was not, or "" where it was."""
        budget = session.ask("bench.facts()")["budget"]
        more = _cents(budget + needs - left)
        sentence = f"{what} may cost up to {needs:.4f} US dollars, and {left:.4f} are left of the budget of {budget:g}"
        if self._ask is not None and self._ask(f"{sentence}. Raise the budget to {more:g}?"):
            set_budget(self._notebook, more, "A person has raised the budget")
            self._notebook.save()
            setup = self._notebook.setup
            assert setup is not None
            session.run(setup)
            return ""
        again = f"optimsyn agent --continue {shlex.quote(str(self._notebook.path))} --budget {more:g}"
        return f"{sentence}; `{again}` goes on"

    def _again(self, action: Action) -> str:
        """Why a call is not made once more; "" where it is."""
        if action.tool in ("finish", "status"):
            return ""
        source = call_source(action.tool, action.arguments)
        times = sum(1 for done, _, note, _ in self._notebook.steps() if done == source and not note)
        return f"it was done {times} times, with the result above; choose another step" if times >= _SAME else ""

    def _do(self, session: Session, action: Action, number: int) -> str:
        """Does a step; why the work has to stop, or ""."""
        notebook = self._notebook
        source = call_source(action.tool, action.arguments)
        index = notebook.call(source, plain(action.why, 600) or "The analyst gives no reason\\.")
        self._say(f"{number}. {' '.join(action.why.split())[:300]}\n   {source}")
        session.run(index)
        error = notebook.error(index)
        stop = ""
        if error == "BudgetError":
            refused = session.ask("bench.facts()")["refused"]
            if refused is not None and refused["needs"] is not None:
                stop = self._may_raise(session, refused["what"], refused["needs"], refused["left"])
                if not stop:
                    session.run(index)
                    error = notebook.error(index)
                elif self._ask is not None:
                    # A person has said no: the analyst may find something smaller.
                    stop = ""
        if error is not None:
            notebook.expect_error(index)
            notebook.save()
            self._say(f"   {notebook.output(index).splitlines()[-1][:300]}")
        return stop

    def _end(
        self,
        session: Session,
        ended: Literal["recommendation", "budget", "steps", "wrong", "failed"],
        reason: str = "",
        *,
        recommendation: str = "",
    ) -> Analysis:
        from optimsyn.agents.analyst.ending import last_words

        notebook = self._notebook
        outputs = [said for _, said, _, _ in notebook.steps()]
        index = notebook.end_call("bench.figures()")
        session.run(index)
        figures = session.ask("bench.figures().model_dump_json()") if notebook.error(index) is None else None
        notebook.end(
            last_words(notebook.path.name, reason, recommendation, figures, [*outputs, notebook.output(index)])
        )
        notebook.save()
        money = session.ask("bench.facts()")["money"]
        return Analysis(
            notebook=str(notebook.path),
            ended=ended,
            reason=redact(reason),
            recommendation=redact(recommendation),
            steps=len(notebook.steps()),
            spent_usd=money["spent_usd"],
            left_usd=money["left_usd"],
        )


def set_budget(notebook: AnalystNotebook, budget: float, why: str) -> None:
    """Writes another budget into the first code cell, and says so.

    Raises:
        ParameterError: That cell has no budget to set.
    """
    index = notebook.setup
    assert index is not None
    source, found = _BUDGET.subn(f"budget={literal(float(budget))}", notebook.nb.cells[index].source, count=1)
    if not found:
        raise ParameterError(f"{notebook.path}: its first code cell names no budget; write budget={budget:g} into it")
    notebook.set_setup(source)
    notebook.say(f"{why}: {budget:g} US dollars\\.")


def kept_of(path: Path) -> Path:
    """The folder of what a notebook has spent and of the analyst's replies."""
    return path.with_suffix(_KEPT)


def _cents(value: float) -> float:
    """US dollars, rounded up to whole cents."""
    return -(-value * 100 // 1) / 100
