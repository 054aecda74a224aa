"""The command `optimsyn agent`: its options, its questions on a terminal, and how it shows the steps."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from optimsyn.agents.analyst.analyse import Allowed, analyse, go_on
from optimsyn.agents.analyst.defaults import BUDGET, STEPS
from optimsyn.agents.analyst.work import Analysis, Ask
from optimsyn.base.errors import ParameterError
from optimsyn.base.secrets.redaction import redact
from optimsyn.recipe.changes import parse_change

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Asked:
    """What the command line asks for; see `optimsyn agent --help`."""

    goal: str = ""
    recipe: str = ""
    root: Path = Path()
    notebook: Path | None = None
    resumed: Path | None = None
    budget: float | None = None
    model: str | None = None
    model_options: Sequence[str] = ()
    steps: int = STEPS
    allowed: Allowed = field(default_factory=Allowed)


def work(asked: Asked, console: Console, *, may_ask: bool) -> Analysis:
    """Begins or continues the work.

    Args:
        asked: The options.
        console: Shows the steps.
        may_ask: Whether a person can be asked, if standard input is a terminal.

    Raises:
        ParameterError: Options contradict each other.
    """

    def say(text: str) -> None:
        console.print(redact(text), highlight=False, markup=False, soft_wrap=True)

    ask = asks_on_terminal() if may_ask else None
    model = _model(asked.model, asked.model_options)
    if asked.resumed is not None:
        elsewhere = {"--recipe": asked.recipe, "--notebook": asked.notebook, "--root": asked.root != Path()}
        elsewhere |= {"--allow-…": asked.allowed.hosted or asked.allowed.plugins or bool(asked.allowed.addresses)}
        given = [name for name, value in elsewhere.items() if value]
        if given:
            raise ParameterError(
                f"{', '.join(given)}: with --continue they are those of the notebook; change its first code cell"
            )
        return go_on(
            asked.resumed, goal=asked.goal, budget=asked.budget, model=model, steps=asked.steps, ask=ask, say=say
        )
    if not asked.goal.strip():
        raise ParameterError("GOAL: say in a sentence what you want, or name a notebook with --continue")
    return analyse(
        asked.goal,
        recipe=asked.recipe or "quickstart",
        root=asked.root,
        budget=BUDGET if asked.budget is None else asked.budget,
        model=model,
        steps=asked.steps,
        allow_hosted=asked.allowed.hosted,
        allow_plugins=asked.allowed.plugins,
        addresses=asked.allowed.addresses,
        notebook=asked.notebook,
        ask=ask,
        say=say,
    )


def asks_on_terminal() -> Ask | None:
    """Asks on the terminal; None without one."""
    if not sys.stdin.isatty():
        return None
    return lambda question: typer.confirm(question, default=False, err=True)


def _model(name: str | None, options: Sequence[str]) -> Mapping[str, Any] | str | None:
    """The model with its fields.

    Raises:
        ParameterError: Fields are given without a model.
    """
    if not options:
        return name
    if name is None:
        raise ParameterError("--model-option: says more about a model; name that with --model")
    fields: dict[str, Any] = {"name": name}
    for text in options:
        name_of_field, value = parse_change(text)
        place = fields
        *sections, last = name_of_field.split(".")
        for section in sections:
            place = place.setdefault(section, {})
        place[last] = value
    return fields
