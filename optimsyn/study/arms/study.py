"""Runs a study: checks all of it, registers its design, runs its cells as a batch, and writes its page.

What a study has done stands in its folder alone, so one that was stopped, even with kill -9, goes on with the same
call: finished runs are skipped, and the others continue where they stopped.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import Field
from rich.console import Console
from rich.status import Status

from optimsyn.base.counting import plural
from optimsyn.base.errors import RecipeError, StageError
from optimsyn.base.files import write_json, write_text
from optimsyn.base.secrets.redaction import redact
from optimsyn.base.terminal.json_document import Result
from optimsyn.batch.batch import exit_code, run_batch
from optimsyn.batch.engines import Engine
from optimsyn.batch.plan import BatchLimits
from optimsyn.batch.state import BatchState
from optimsyn.batch.supervisor import BATCH_JSON
from optimsyn.runs.forecast import Forecast
from optimsyn.runs.manifest import installed_versions, now
from optimsyn.study.arms import result as results
from optimsyn.study.arms.forecast import (
    STUDY_JSON,
    StudyForecast,
    check_recipes,
    forecast_of,
    pilot_power,
    power_sentence,
)
from optimsyn.study.arms.outcomes import CellState, state_of
from optimsyn.study.arms.page import STUDY_HTML, page_of
from optimsyn.study.arms.start import Registered, changes_since, contrasts_by_origin, register, registered
from optimsyn.study.arms.study_file import StudyCell, StudyFile, read_cells, read_study_file
from optimsyn.study.study_yaml import refuse

RECIPES = "recipes"
UNITS = {"accuracy": "(a share of 1)", "token_f1": "(of 1)"}


@dataclass(frozen=True)
class Study:
    """A study with its runs and its folder."""

    file: StudyFile
    cells: tuple[StudyCell, ...]
    folder: Path
    path: Path

    @classmethod
    def open(cls, path: str | Path, root: Path | str = "runs", report: Callable[[str], None] | None = None) -> Study:
        """Reads a study file and all recipes that it names; writes nothing.

        Args:
            path: The file.
            root: Folder of the studies.
            report: Called with a line of text before each recipe of a wrong study is checked on this machine too; None:
                that is not done.

        Raises:
            RecipeError: The file or a recipe is wrong; names all problems.
        """
        file, problems = read_study_file(path)
        cells, unreadable = read_cells(file)
        problems += unreadable
        study = cls(file, tuple(cells), Path(root).resolve() / file.name, Path(path))
        if problems and report is not None:
            problems += study.look(cells, report)[2]
        refuse(path, problems)
        return study

    @property
    def start(self) -> Registered | None:
        """The design as registered; None before the first start."""
        return registered(self.folder)

    def states(self) -> list[CellState]:
        """How far each run is; of those that do not run, why, as the last batch recorded it."""
        start = self.start
        sides = [] if start is None else [side for each in start.contrasts for side in (each.left, each.right)]
        further = [side.arm for side in sides]
        states = [state_of(cell, self.folder, self.file.arms, further) for cell in self.cells]
        path = self.folder / BATCH_JSON
        if not path.is_file():
            return states
        recorded = {}
        for run in BatchState.read(path).runs:
            recorded[Path(run.folder).name if run.folder is not None else Path(run.recipe).stem] = run
        return [_with_reason(each, recorded.get(each.folder.name) or recorded.get(each.cell.name)) for each in states]

    def result(self) -> results.StudyResult:
        """What the finished runs show.

        Raises:
            StageError: The study has not started.
        """
        start = self.start
        if start is None:
            raise StageError(f"{self.folder}: this study has not started; `optimsyn study` without an option starts it")
        states = self.states()
        outcomes = [each.outcome for each in states if each.outcome is not None]
        contrasts = contrasts_by_origin(start, self.file)
        return results.StudyResult(
            name=self.file.name,
            question=self.file.question,
            fingerprint=start.fingerprint,
            started=start.started,
            written=now(),
            versions=installed_versions(),
            design=start.study,
            changed=changes_since(start, self.file, self.cells),
            metric=start.metric,
            alpha=start.alpha,
            cells=results.cell_results(states),
            contrasts=results.contrast_results(outcomes, contrasts, start.metric, start.alpha),
            means=results.means_of(outcomes, self.file.arms),
            power=results.power_results(outcomes, list(contrasts), self.file),
            curves=results.curves_of(outcomes),
            checks=results.checks_of(outcomes),
            rubrics=results.rubric_examples(outcomes),
            notes=_notes(states, start),
        )

    def write(self) -> results.StudyResult:
        """Writes `study.json` and `study.html`; arguments and errors as for `result`."""
        found = self.result()
        write_json(self.folder / STUDY_JSON, json.loads(redact(found.model_dump_json())))
        write_text(self.folder / STUDY_HTML, page_of(found))
        return found

    def foresee(
        self, root_states: list[CellState], jobs: int, status: Status | None = None
    ) -> tuple[StudyForecast, list[results.Power]]:
        """Checks pilot and recipes of the runs to come on this machine, and forecasts them; the power by the pilot.

        Raises:
            RecipeError: Something would stop a run, or the pilot cannot be used; names all of it.
        """
        left = [each.cell for each in root_states if each.state != "finished"]
        forecasts, powers, problems = self.look(left, None if status is None else status.update)
        refuse(self.path, problems)
        return forecast_of(root_states, forecasts, jobs), powers

    def look(
        self, cells: Sequence[StudyCell], report: Callable[[str], None] | None = None
    ) -> tuple[dict[tuple[str, str], Forecast | None], list[results.Power], list[str]]:
        """Forecasts by domain and control, powers by the pilot, and all that is wrong with recipes and pilot."""
        powers, wrong = [], []
        try:
            powers = pilot_power(self.file) if self.file.contrasts else []
        except RecipeError as error:
            wrong = [str(error)]
        forecasts, problems = check_recipes(cells, self.folder, report)
        return forecasts, powers, [*wrong, *problems]

    def write_recipes(self) -> list[str]:
        """Writes the recipe of every run into the study's folder, with every field."""
        paths = []
        for cell in self.cells:
            path = self.folder / RECIPES / f"{cell.name}.yaml"
            write_text(path, cell.recipe.to_yaml())
            paths.append(str(path))
        return paths


def conduct(study: Study, limits: BatchLimits, *, engine: Engine | None = None, console: Console | None = None) -> int:
    """Starts a study or continues it, and writes its page.

    Args:
        study: The study.
        limits: How many runs at once, and what they may use together.
        engine: Where they work; None: processes on this machine.
        console: Where to show progress; None: the terminal.

    Returns:
        The exit code, as for a batch.

    Raises:
        RecipeError: Something in it would stop a run; nothing has started then.
    """
    console = console or Console()
    with console.status("Checking the study …") as status:
        states = study.states()
        forecast, powers = study.foresee(states, limits.jobs, status)
    start = register(study.file, study.cells, study.folder)
    tell(study, forecast, console)
    for each in powers:
        say(console, f"From the pilot: {power_sentence(each, len(study.file.seeds), unit(study.file.metric))}")
    for change in changes_since(start, study.file, study.cells):
        say(console, f"note: {change}; the page says so")
    state = run_batch(study.write_recipes(), study.folder, limits=limits, engine=engine, console=console)
    study.write()
    return exit_code(state)


class StudyPage(Result):
    """What `optimsyn study` wrote."""

    page: str
    study: results.StudyResult = Field(description="The content of study.json.")


class StudyStatus(Result):
    """How far a study is."""

    name: str
    forecast: StudyForecast
    cells: list[results.CellResult]
    power: list[results.Power] = Field(description="From the pilot.")


def show_page(study: Study) -> StudyPage:
    """Writes the page, and prints its path on standard output.

    Raises:
        StageError: The study has not started.
    """
    written = study.write()
    sys.stdout.write(f"{study.folder / STUDY_HTML}\n")
    return StudyPage(page=str(study.folder / STUDY_HTML), study=written)


def show_status(study: Study, jobs: int, console: Console) -> StudyStatus:
    """Shows how far the runs are and forecasts the rest; starts and writes nothing.

    Raises:
        RecipeError: Something would stop a run to come.
    """
    states = study.states()
    with console.status("Checking the study …") as status:
        forecast, powers = study.foresee(states, jobs, status)
    tell(study, forecast, console)
    for each in powers:
        say(console, f"From the pilot: {power_sentence(each, len(study.file.seeds), unit(study.file.metric))}")
    cells = list(results.cell_results(states))
    for cell in cells:
        say(console, f"{cell.domain:<20} {cell.control:<12} seed {cell.seed:<4} {cell.state}  {cell.reason[:120]}")
    return StudyStatus(name=study.file.name, forecast=forecast, cells=cells, power=list(powers))


def tell(study: Study, forecast: StudyForecast, console: Console) -> None:
    """Shows design and forecast."""
    file = study.file
    say(
        console,
        f"Study {file.name}: {plural(len(file.recipes), 'domain')} × {plural(len(file.controls), 'control')} × "
        f"{plural(len(file.seeds), 'seed')}, "
        f"{plural(len(file.arms), 'arm')} in each run; contrasts: {'; '.join(map(str, file.named_contrasts))}.",
    )
    for sentence in forecast.sentences:
        say(console, sentence)


def say(console: Console, text: str) -> None:
    """Prints a line as it is."""
    console.print(redact(text), highlight=False, markup=False, soft_wrap=True)


def unit(metric: str) -> str:
    """The unit of a metric's differences."""
    return UNITS.get(metric, "nats")


def _with_reason(state: CellState, run: object) -> CellState:
    from optimsyn.batch.state import RunState

    if not isinstance(run, RunState) or state.state == "finished" or run.state in ("finished", "waiting", "running"):
        return state
    if state.state == "unreadable":
        return state
    where = f"{run.stage}: " if run.stage is not None else ""
    return replace(state, state=run.state, reason=f"{where}{run.kind}: {run.reason}")


def _notes(states: list[CellState], start: Registered) -> list[str]:
    notes = []
    left = sum(each.state != "finished" for each in states)
    if left:
        notes.append(f"{left} of {plural(len(states), 'run')} have not finished; what stands here is of the others.")
    seeds = {each.cell.seed for each in states if each.outcome is not None}
    if len(seeds) == 1:
        notes.append("One seed has finished: without a second one there is neither interval nor test.")
    if len(start.contrasts) > 1:
        notes.append(f"Holm's adjustment is over the {len(start.contrasts)} registered contrasts.")
    return notes
