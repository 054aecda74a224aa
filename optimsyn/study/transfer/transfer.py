"""Runs a transfer: first the runs that synthesize, then those that train another target on their pairs.

Both are batches, the second in the folder `transferred`. What a transfer has done stands in its folder alone, so one
that was stopped, even with kill -9, goes on with the same call: finished runs are skipped, and a run whose pairs were
taken over has only its fine-tuning and evaluation to do.
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
from optimsyn.base.files import write_json, write_text
from optimsyn.base.secrets.redaction import redact
from optimsyn.base.terminal.json_document import Result
from optimsyn.batch.batch import FAILED, INTERRUPTED, REFUSED, exit_code, run_batch
from optimsyn.batch.engines import Engine
from optimsyn.batch.plan import BatchLimits
from optimsyn.batch.state import BatchState
from optimsyn.batch.supervisor import BATCH_JSON
from optimsyn.runs.folder import Run
from optimsyn.runs.forecast import Forecast, Range
from optimsyn.runs.manifest import installed_versions, now
from optimsyn.runs.taking_over import has_pairs, take_over
from optimsyn.study.arms.forecast import StudyForecast
from optimsyn.study.study_yaml import refuse
from optimsyn.study.transfer.outcomes import TRANSFERRED, CellState, folder_of, seconds_to_come, state_of
from optimsyn.study.transfer.page import TRANSFER_HTML, lines_of, page_of
from optimsyn.study.transfer.result import TransferResult, TransferRun
from optimsyn.study.transfer.table import runs_of, table_of
from optimsyn.study.transfer.transfer_file import (
    TransferCell,
    TransferFile,
    in_words_of,
    labels_of,
    read_cells,
    read_transfer_file,
)

TRANSFER_JSON = "transfer.json"
RECIPES = "recipes"


@dataclass(frozen=True)
class Transfer:
    """A transfer with its runs and its folder."""

    file: TransferFile
    cells: tuple[TransferCell, ...]
    folder: Path
    path: Path

    @classmethod
    def open(cls, path: str | Path, root: Path | str = "runs", report: Callable[[str], None] | None = None) -> Transfer:
        """Reads the file and its recipe; writes nothing.

        Args:
            path: The file.
            root: Folder of the transfers.
            report: Called with a line of text before each run of a wrong transfer is checked on this machine too; None:
                that is not done.

        Raises:
            RecipeError: The file, the recipe or a model is wrong; names all problems.
        """
        file, problems = read_transfer_file(path)
        cells, unreadable = read_cells(file)
        problems += unreadable
        transfer = cls(file, tuple(cells), Path(root).resolve() / file.name, Path(path))
        if problems and report is not None:
            problems += transfer.look(cells, report)[1]
        refuse(path, problems)
        return transfer

    @property
    def arm(self) -> str:
        """The variant of the table."""
        return self.file.arm or self.cells[0].recipe.dataset_variant

    def states(self) -> list[CellState]:
        """How far each run is; of those that do not run, why, as the last batch recorded it."""
        recorded = {}
        for root in (self.folder, self.folder / TRANSFERRED):
            if (root / BATCH_JSON).is_file():
                for run in BatchState.read(root / BATCH_JSON).runs:
                    recorded[Path(run.folder).name if run.folder is not None else Path(run.recipe).stem] = run
        states = [state_of(cell, self.folder, self.arm) for cell in self.cells]
        reasons = ((each, recorded.get(each.folder.name) or recorded.get(each.cell.name)) for each in states)
        return [
            each
            if run is None or each.state in ("finished", "unreadable") or run.state not in _ENDED
            else replace(each, state=run.state, reason=f"{run.stage or run.kind}: {run.reason}")
            for each, run in reasons
        ]

    def result(self) -> TransferResult:
        """What the finished runs show.

        Raises:
            DataError: Runs that are compared answered different questions.
        """
        states = self.states()
        targets, generators = labels_of(self.file, self.cells)
        return TransferResult(
            name=self.file.name,
            question=self.file.question,
            fingerprint=self.file.fingerprint,
            written=now(),
            versions=installed_versions(),
            design=self.file.design,
            arm=self.arm,
            confidence=self.cells[0].recipe.evaluation.confidence,
            targets=targets,
            generators=generators,
            scorers=list(self.file.transfer.scorers),
            table=table_of(states),
            runs=runs_of(states),
            notes=_notes(states, self.file),
        )

    def write(self) -> TransferResult:
        """Writes `transfer.json` and `transfer.html`; arguments and errors as for `result`."""
        found = self.result()
        write_json(self.folder / TRANSFER_JSON, json.loads(redact(found.model_dump_json())))
        write_text(self.folder / TRANSFER_HTML, page_of(found))
        return found

    def foresee(self, states: Sequence[CellState], jobs: int, status: Status | None = None) -> StudyForecast:
        """Checks the runs to come on this machine and forecasts them; those that take pairs over send nothing.

        Raises:
            RecipeError: Something would stop a run; names all of it.
        """
        left = [each for each in states if each.state != "finished"]
        forecasts, problems = self.look([each.cell for each in left], None if status is None else status.update)
        refuse(self.path, problems)
        found = StudyForecast(
            runs=len(states), finished=len(states) - len(left), jobs=jobs, seconds=seconds_to_come(states)
        )
        every = [forecasts.get((each.cell.generator, each.cell.scored_by)) for each in left if each.cell.own]
        known = [each for each in every if each is not None]
        if len(known) == len(every):
            totals = [each.total for each in known]
            costs = [each.cost_usd for each in totals]
            found.requests = Range.sum(each.requests for each in totals)
            found.tokens = Range.sum(each.input_tokens + each.output_tokens for each in totals)
            found.cost_usd = None if any(cost is None for cost in costs) else Range.sum(cost for cost in costs if cost)
            found.paid = any(each.paid for each in known)
        return found

    def look(
        self, cells: Sequence[TransferCell], report: Callable[[str], None] | None = None
    ) -> tuple[dict[tuple[str, str], Forecast | None], list[str]]:
        """Forecasts by generator and scoring target, and all that would stop a run on this machine."""
        from optimsyn.machine.preflight import checked

        forecasts: dict[tuple[str, str], Forecast | None] = {}
        seen: set[tuple[str, ...]] = set()
        problems: list[str] = []
        for cell in cells:
            # A transferred run differs from its source in the trained target alone, whatever the generator.
            place = (cell.generator, cell.scored_by) if cell.own else ("", cell.scored_by, cell.target)
            if place in seen:
                continue
            seen.add(place)
            if report is not None:
                report(f"Checking {cell.name} …")
            preflight = checked(cell.recipe, folder_of(cell, self.folder).parent, ask=False)
            problems += [in_words_of(self.file, cell, problem) for problem in preflight.problems]
            if cell.own:
                forecasts[cell.generator, cell.scored_by] = preflight.forecast
        return forecasts, list(dict.fromkeys(problems))

    def write_recipes(self, cells: Sequence[TransferCell]) -> list[str]:
        """Writes the recipes of these runs into the transfer's folder, with every field."""
        paths = []
        for cell in cells:
            path = self.folder / RECIPES / f"{cell.name}.yaml"
            write_text(path, cell.recipe.to_yaml())
            paths.append(str(path))
        return paths

    def take_over(self) -> list[TransferCell]:
        """Gives each transferred run the pairs of its source, where that has them; returns those runs."""
        ready = []
        for cell in self.cells:
            if cell.source is None:
                continue
            folder = Run.folder_of(cell.source, self.folder)
            if not (folder / "manifest.json").is_file() or not has_pairs(source := Run.load(folder)):
                continue
            run = Run.open(cell.recipe, self.folder / TRANSFERRED)
            # A run of a killed batch may hold the folder a moment longer, and has its pairs then.
            if not has_pairs(run):
                with run.lock():
                    take_over(run, source)
            ready.append(cell)
        return ready


_ENDED = ("failed", "refused", "interrupted")


def conduct(
    transfer: Transfer, limits: BatchLimits, *, engine: Engine | None = None, console: Console | None = None
) -> int:
    """Starts a transfer or continues it, and writes its page.

    Args:
        transfer: The transfer.
        limits: How many runs at once, and what they may use together.
        engine: Where they work; None: processes on this machine.
        console: Where to show progress; None: the terminal.

    Returns:
        The exit code, as for a batch.

    Raises:
        RecipeError: Something in it would stop a run; nothing has started then.
    """
    console = console or Console()
    with console.status("Checking the transfer …") as status:
        forecast = transfer.foresee(transfer.states(), limits.jobs, status)
    tell(transfer, forecast, console)
    synthesizing = [cell for cell in transfer.cells if cell.own]
    say(console, f"Pairs: {len(synthesizing)} runs synthesize, and their own target is trained.")
    state = run_batch(
        transfer.write_recipes(synthesizing), transfer.folder, limits=limits, engine=engine, console=console
    )
    codes = [exit_code(state)]
    if codes == [INTERRUPTED]:
        transfer.write()
        return INTERRUPTED
    ready = transfer.take_over()
    if ready:
        say(console, f"Transfer: {len(ready)} runs train another target on these pairs.")
        root = transfer.folder / TRANSFERRED
        state = run_batch(transfer.write_recipes(ready), root, limits=limits, engine=engine, console=console)
        codes.append(exit_code(state))
    for line in lines_of(transfer.write()):
        say(console, line)
    if not any(codes) and len(ready) == sum(not cell.own for cell in transfer.cells):
        return 0
    return codes[-1] if codes in ([REFUSED], [*codes[:-1], INTERRUPTED]) else FAILED


class TransferPage(Result):
    """What `optimsyn study` wrote for a study file with `transfer`."""

    page: str
    transfer: TransferResult = Field(description="The content of transfer.json.")


class TransferStatus(Result):
    """How far a transfer is."""

    name: str
    forecast: StudyForecast
    runs: list[TransferRun]


def show_page(transfer: Transfer) -> TransferPage:
    """Writes the page, and prints its path on standard output."""
    written = transfer.write()
    page = str(transfer.folder / TRANSFER_HTML)
    sys.stdout.write(f"{page}\n")
    return TransferPage(page=page, transfer=written)


def show_status(transfer: Transfer, jobs: int, console: Console) -> TransferStatus:
    """Shows how far the runs are and forecasts the rest; starts and writes nothing.

    Raises:
        RecipeError: Something would stop a run to come.
    """
    states = transfer.states()
    with console.status("Checking the transfer …") as status:
        forecast = transfer.foresee(states, jobs, status)
    tell(transfer, forecast, console)
    runs = runs_of(states)
    for run in runs:
        way = run.target if run.target == run.scored_by else f"{run.scored_by} → {run.target}"
        say(console, f"{run.generator:<20} {way:<24} seed {run.seed:<4} {run.state}  {run.reason[:120]}")
    return TransferStatus(name=transfer.file.name, forecast=forecast, runs=runs)


def tell(transfer: Transfer, forecast: StudyForecast, console: Console) -> None:
    """Shows design and forecast."""
    models = transfer.file.transfer
    say(
        console,
        f"Transfer {transfer.file.name}: {plural(len(models.generators), 'generator')} × "
        f"{plural(len(models.targets), 'target')} × "
        f"{plural(len(transfer.file.seeds), 'seed')}, pairs scored by {', '.join(models.scorers)}.",
    )
    for sentence in forecast.sentences:
        say(console, sentence)


def say(console: Console, text: str) -> None:
    """Prints a line as it is."""
    console.print(redact(text), highlight=False, markup=False, soft_wrap=True)


def _notes(states: Sequence[CellState], file: TransferFile) -> list[str]:
    notes = []
    left = sum(each.state != "finished" for each in states)
    if left:
        notes.append(f"{left} of {len(states)} runs have not finished; their cells are empty or of fewer seeds.")
    if len(file.seeds) == 1:
        notes.append(
            "One seed: the intervals are over test questions only, and another seed may move every number by more."
        )
    cells = len({(each.cell.generator, each.cell.scored_by, each.cell.target) for each in states})
    notes.append(f"The intervals of the {cells} cells are not adjusted for being {cells}.")
    return notes
