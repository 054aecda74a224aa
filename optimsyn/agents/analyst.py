"""The analyst: an agent whose whole work is a notebook of tool calls, within a budget.

from optimsyn.agents import analyse

analyse("Which guiding text helps most?", recipe="mine.yaml", budget=2.0, model="openai/gpt-6-luna")
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from optimsyn.agents.guard import Guard
from optimsyn.agents.notebook import AnalystNotebook, call_source, literal, plain
from optimsyn.base.environment import ANALYST_MODEL, variable
from optimsyn.base.errors import ModelError, OptimsynError, ParameterError
from optimsyn.base.secrets.redaction import redact
from optimsyn.base.terminal.json_document import Result
from optimsyn.base.terminal.table import Table
from optimsyn.base.version import __version__
from optimsyn.recipe.recipe import Recipe
from optimsyn.recipe.sections.models import ModelSpec

if TYPE_CHECKING:
    from optimsyn.agents.planner import Action, Planner
    from optimsyn.agents.session import Session

Ask = Callable[[str], bool]
"""Asks a person a question that is answered by yes or no."""
Say = Callable[[str], None]
"""Shows a person a line."""

STEPS = 25
_KEPT = ".kept"
_BUDGET = re.compile(r"\bbudget=[^,)\n]+")
# Steps that could not be done, in a row and in all, before the work stops.
_WRONG_IN_A_ROW, _WRONG = 4, 10
_SAME = 2
_LONGEST_GOAL = 4000
_LEAST_TOKENS = 4000


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


@dataclass(frozen=True)
class Allowed:
    """What a person allows an analyst; see `Workbench`."""

    budget: float = 0.0
    hosted: bool = False
    plugins: bool = False
    addresses: Sequence[str] = ()


def analyse(  # noqa: PLR0913 - keyword-only options, each with a default
    goal: str,
    *,
    recipe: str = "quickstart",
    root: Path | str = ".",
    budget: float = 0.0,
    model: str | Mapping[str, Any] | None = None,
    steps: int = STEPS,
    allow_hosted: bool = False,
    allow_plugins: bool = False,
    addresses: Sequence[str] = (),
    notebook: Path | str | None = None,
    ask: Ask | None = None,
    say: Say | None = None,
) -> Analysis:
    """Lets an agent work towards a goal, in a notebook of its own.

    Args:
        goal: What you want, in words.
        recipe: The recipe to begin with: a file inside the root, or the name of a bundled one.
        root: The only folder that it may read and write.
        budget: US dollars that all it does may cost, its own replies included.
        model: The model that chooses the steps: a name, or fields of a recipe's model; None: the environment variable
            `OPTIMSYN_ANALYST_MODEL`, else the recipe's generator.
        steps: The most steps.
        allow_hosted: It and its recipes may use services, which get texts of your documents.
        allow_plugins: Recipes may name code, which then runs with your rights.
        addresses: Hosts that `api_base` may name beside this machine.
        notebook: The notebook to write; it must not exist. None: named after the goal, in the root.
        ask: Asks you whether the budget may be raised; without it, the work stops there.
        say: Shows you each step as it is done.

    Raises:
        ParameterError: An argument is wrong.
        RecipeError: There is no such recipe.
        ModelError: The model cannot do it, or may not be used.
        StageError: The notebook's kernel does not start or died; `go_on` continues.

    Example:
        >>> analyse("Is the reward sound?", recipe="mine.yaml", model="openai/gpt-6-luna")   # doctest: +SKIP
    """
    place = Path(root)
    if not place.is_dir():
        raise ParameterError(f"root: there is no folder {root}; create it, or name another one")
    if not goal.strip():
        raise ParameterError("goal: is empty; say in a sentence what you want to know or have")
    if budget < 0:
        raise ParameterError(f"budget: {budget:g} is below 0; give US dollars")
    goal = " ".join(goal.split())[:_LONGEST_GOAL]
    file = Guard(place).file_of(recipe)
    spec = _model_spec(model, Recipe.load(file))
    path = Path(notebook) if notebook is not None else _free(place, goal)
    if path.suffix != ".ipynb":
        raise ParameterError(f"notebook: {path} is no .ipynb file; name one")
    if path.exists():
        raise ParameterError(f"notebook: {path} exists already; continue it, or give another file name")
    allowed = Allowed(budget, allow_hosted, allow_plugins, addresses)
    title = (
        f"# {plain(goal)}\n\nWritten by the analyst of optimsyn {__version__}, with the model {plain(spec.name)}, from "
        f"the recipe {plain(recipe)}. Each step is a cell that can be run again; change one, and "
        f"`optimsyn agent --continue {path.name}` goes on from it."
    )
    made = AnalystNotebook.create(path, title, _setup(path, place, allowed))
    made.facts().update({"goal": redact(goal), "recipe": recipe, "model": spec.model_dump(exclude_defaults=True)})
    made.save()
    return _Work(made, spec, steps, ask, say).to_its_end()


def go_on(  # noqa: PLR0913 - keyword-only options, each with a default
    notebook: Path | str,
    *,
    goal: str = "",
    budget: float | None = None,
    model: str | Mapping[str, Any] | None = None,
    steps: int = STEPS,
    ask: Ask | None = None,
    say: Say | None = None,
) -> Analysis:
    """Continues the work of a notebook: what a person has changed runs again, then the agent goes on.

    Args:
        notebook: A notebook of `analyse`; permissions and budget are those of its first code cell.
        goal: A further wish; it is written into the notebook.
        budget: Another budget, written into the first code cell; None: as it stands there.
        model: Another model; None: the same.
        steps: The most further steps.
        ask: As for `analyse`.
        say: As for `analyse`.

    Raises:
        DataError: It is no notebook of an analyst.
        ModelError, StageError: As `analyse`.
    """
    made = AnalystNotebook.load(Path(notebook))
    facts = made.facts()
    kept = facts.get("model") if model is None else model
    spec = _model_spec(kept, None)
    facts.update({"model": spec.model_dump(exclude_defaults=True)})
    made.drop_end()
    if budget is not None:
        _set_budget(made, budget, "A person has set the budget")
    if goal.strip():
        facts["goal"] = redact(f"{facts.get('goal', '')} Then: {' '.join(goal.split())[:_LONGEST_GOAL]}".strip())
        made.say(f"The person adds: {plain(goal)}")
    made.save()
    return _Work(made, spec, steps, ask, say).to_its_end()


class _Work:
    """One sitting of an analyst with its notebook."""

    def __init__(
        self, notebook: AnalystNotebook, spec: ModelSpec, steps: int, ask: Ask | None, say: Say | None
    ) -> None:
        from optimsyn.agents.planner import refuse_weak

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
        from optimsyn.agents.ledger import REPLIES
        from optimsyn.agents.planner import Planner
        from optimsyn.agents.session import opened
        from optimsyn.llm.replies import ReplyCache

        with opened(self._notebook) as session:
            self._catch_up(session)
            problems = session.ask(f"bench.model_problems({literal(self._spec.model_dump(mode='json'))})")
            if problems:
                raise ModelError("\n".join(problems))
            cache = ReplyCache(_kept(self._notebook.path) / REPLIES)
            planner = Planner(self._spec, cache)
            try:
                return self._steps(session, planner)
            except KeyboardInterrupt:
                self._say(f"Interrupted: `optimsyn agent --continue {self._notebook.path}` goes on.")
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
        from optimsyn.agents.planner import Step, steps_text, tools_text

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
        if price is None:
            raise ModelError(
                f"the analyst's model: the price of {self._spec.name} is unknown, so it cannot be kept within a "
                "budget; give it, such as --model-option 'prices={input: 0.1, output: 0.5}'"
            )
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
            _set_budget(self._notebook, more, "A person has raised the budget")
            self._notebook.save()
            setup = self._notebook.setup
            assert setup is not None
            session.run(setup)
            return ""
        return f"{sentence}; `optimsyn agent --continue {self._notebook.path} --budget {more:g}` goes on"

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
        from optimsyn.agents.ending import last_words

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


def _model_spec(model: str | Mapping[str, Any] | None, recipe: Recipe | None) -> ModelSpec:
    """The model that chooses the steps.

    Raises:
        ModelError: None is named that could.
        RecipeError: Its fields are wrong.
    """
    from optimsyn.agents.planner import refuse_weak

    if model is None and (named := variable(ANALYST_MODEL)):
        model = named
    if model is None and recipe is not None:
        generator = recipe.models.generator
        if generator.provider in ("embedded", "own"):
            raise ModelError(
                f"the analyst's model: none is named, and the recipe's generator, {generator.name}, cannot plan; name "
                f"a chat model with --model (such as openai/gpt-6-luna) or in the variable {ANALYST_MODEL}"
            )
        # As the recipe describes the service, without what is for writing pairs.
        kept = generator.model_dump(exclude_defaults=True, exclude={"batch", "batch_hours", "structured_output"})
        model = {**kept, "max_tokens": max(generator.max_tokens, _LEAST_TOKENS), "max_tokens_again": None}
    if model is None:
        raise ModelError("the analyst's model: none is named; name a chat model with --model")
    raw = {"name": model} if isinstance(model, str) else dict(model)
    spec = ModelSpec.model_validate({"temperature": 0.0, "max_tokens": _LEAST_TOKENS, **raw})
    refuse_weak(spec)
    return spec


def _setup(path: Path, root: Path, allowed: Allowed) -> str:
    """The first code cell of a notebook."""
    # From the notebook's folder, where its kernel works.
    place = os.path.relpath(root.resolve(), path.resolve().parent)
    options = [f"root={literal(place)}", f"budget={literal(float(allowed.budget))}"]
    options += ["allow_hosted=True"] if allowed.hosted else []
    options += ["allow_plugins=True"] if allowed.plugins else []
    options += [f"addresses={literal(list(allowed.addresses))}"] if allowed.addresses else []
    options.append(f"kept={literal(_kept(path).name)}")
    arguments = "".join(f"    {option},\n" for option in options)
    return (
        "from optimsyn.agents import Workbench\n\n"
        "# All that this notebook may do. The analyst works with what stands here.\n"
        f"bench = Workbench(\n{arguments})\nbench"
    )


def _set_budget(notebook: AnalystNotebook, budget: float, why: str) -> None:
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


def _kept(path: Path) -> Path:
    """The folder of what a notebook has spent and of the analyst's replies."""
    return path.with_suffix(_KEPT)


def _free(root: Path, goal: str) -> Path:
    """A notebook in the root that does not exist yet, named after the goal."""
    words = re.findall(r"[a-z0-9]+", goal.lower())[:6]
    name = "-".join(words) or "analyst"
    number = 1
    while (path := root / f"{name}{'' if number == 1 else f'-{number}'}.ipynb").exists() or _kept(path).exists():
        number += 1
    return path


def _cents(value: float) -> float:
    """US dollars, rounded up to whole cents."""
    return -(-value * 100 // 1) / 100
