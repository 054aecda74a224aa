"""What a study is going to send and to take, before it starts and while it goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

from pydantic import BaseModel, ConfigDict, ValidationError

from optimsyn.base.counting import plural
from optimsyn.base.errors import RecipeError
from optimsyn.base.terminal.table import duration
from optimsyn.runs.forecast import Forecast, Range, counted, money
from optimsyn.study.arms import power
from optimsyn.study.arms.outcomes import CellState
from optimsyn.study.arms.result import Power, StudyResult, power_from
from optimsyn.study.arms.study_file import INFLUENCE, StudyCell, StudyFile
from optimsyn.study.study_yaml import merged

STUDY_JSON = "study.json"


class StudyForecast(BaseModel):
    """What is left of a study.

    Attributes:
        runs: All runs.
        finished: Those that have finished.
        requests: Of the runs to come; None if not forecast.
        cost_usd: Of the runs to come; None if a price is unknown.
        paid: Whether a model costs money.
        seconds: Time of the runs to come, one after another, by those that have finished; None before the first has.
        jobs: How many run at once.
    """

    model_config = ConfigDict(extra="forbid")

    runs: int
    finished: int
    requests: Range | None = None
    tokens: Range | None = None
    cost_usd: Range | None = None
    paid: bool = False
    seconds: float | None = None
    jobs: int = 1

    @property
    def sentences(self) -> list[str]:
        """It in sentences."""
        left = self.runs - self.finished
        texts = [f"{plural(self.runs, 'run')}, {self.finished} of them finished."]
        if not left:
            return texts
        if self.requests is not None and self.tokens is not None:
            text = (
                f"The {left} runs to come send about {counted(self.requests)} requests, {counted(self.tokens)} tokens"
            )
            texts.append(f"{text}, {money(self.cost_usd)}." if self.paid else f"{text}; none costs money.")
        if self.seconds is None:
            texts.append("How long they take is unknown until one run has finished.")
        else:
            at_once = min(self.jobs, left)
            beside = f", {at_once} at once" if at_once > 1 else ""
            texts.append(
                f"They take about {duration(self.seconds / at_once)}{beside}, as long as those that have finished."
            )
        return texts


def check_recipes(
    cells: Sequence[StudyCell], root: Path, report: Callable[[str], None] | None = None
) -> tuple[dict[tuple[str, str], Forecast | None], list[str]]:
    """Checks the recipe of every domain and control on this machine, with its first seed.

    Args:
        cells: The runs.
        root: Folder of the run folders.
        report: Called with a line of text before each check, which can take seconds.

    Returns:
        The forecast of a run of each domain and control, and what would stop one, a line each.
    """
    from optimsyn.machine.preflight import checked

    forecasts: dict[tuple[str, str], Forecast | None] = {}
    problems: list[tuple[str, str]] = []
    for cell in cells:
        place = cell.domain, cell.control
        if place in forecasts:
            continue
        if report is not None:
            report(f"Checking {cell.domain} under {cell.control} …")
        preflight = checked(cell.recipe, root, ask=False)
        forecasts[place] = preflight.forecast
        where = f"recipes.{cell.domain}" + ("" if cell.control == INFLUENCE else f" with controls.{cell.control}")
        problems += [(where, problem) for problem in preflight.problems]
    return forecasts, merged(problems)


def forecast_of(
    states: Sequence[CellState], forecasts: dict[tuple[str, str], Forecast | None] | None, jobs: int
) -> StudyForecast:
    """The forecast of all runs that have not finished; without forecasts of single runs only the time."""
    left = [each for each in states if each.state != "finished"]
    result = StudyForecast(runs=len(states), finished=len(states) - len(left), jobs=jobs, seconds=_time(states, left))
    every = [] if forecasts is None else [forecasts.get((each.cell.domain, each.cell.control)) for each in left]
    known = [each for each in every if each is not None]
    if forecasts is None or len(known) < len(every):
        return result
    totals = [each.total for each in known]
    costs = [each.cost_usd for each in totals]
    result.requests = Range.sum(each.requests for each in totals)
    result.tokens = Range.sum(each.input_tokens + each.output_tokens for each in totals)
    result.cost_usd = None if any(cost is None for cost in costs) else Range.sum(cost for cost in costs if cost)
    result.paid = any(each.paid for each in known)
    return result


def _time(states: Sequence[CellState], left: Sequence[CellState]) -> float | None:
    """Seconds of what is left: the median of finished runs of the same domain, else of any."""
    done: dict[str, list[float]] = {}
    for each in states:
        if each.state == "finished":
            done.setdefault(each.cell.domain, []).append(each.seconds)
    if not done:
        return None
    usual = median(seconds for times in done.values() for seconds in times)
    whole = ((median(done[each.cell.domain]) if each.cell.domain in done else usual, each.seconds) for each in left)
    return sum(max(0.0, usually - spent) for usually, spent in whole)


def pilot_power(study: StudyFile) -> list[Power]:
    """The power of this study's contrasts by the spread in its pilot; nothing without one.

    Raises:
        RecipeError: There is no such study, or it has no spread yet.
    """
    if study.pilot is None:
        return []
    path = Path(study.pilot)
    path = path / STUDY_JSON if path.is_dir() else path
    try:
        found = StudyResult.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, ValidationError) as error:
        raise RecipeError(f"pilot: {path}: no readable study.json of a study ({type(error).__name__})") from None
    wanted = {str(each) for each in study.named_contrasts}
    powers = [_again(each, study) for each in found.power if each.contrast in wanted]
    if not powers:
        raise RecipeError(
            f"pilot: {path}: has no spread of a contrast of this study ({', '.join(sorted(wanted))}); a pilot needs "
            "two seeds or more of one domain"
        )
    return powers


def _again(each: Power, study: StudyFile) -> Power:
    """The pilot's spread for this study's seeds, domains and level; a new domain gets that of another."""
    parts = {
        domain: power.Components(each.sd_seed[domain], each.sd_group[domain], each.sd_rest[domain], each.groups[domain])
        for domain in each.sd_seed
    }
    known = list(parts.values())
    planned = {domain: parts.get(domain, known[place % len(known)]) for place, domain in enumerate(study.recipes)}
    return power_from(each.contrast, planned, study)


def power_sentence(each: Power, seeds: int, unit: str) -> str:
    """A power in a sentence."""
    text = (
        f"{each.contrast}: {plural(seeds, 'seed')} a domain find a difference of {each.detectable[max(2, seeds)]:.3g} "
        f"{unit} "
    )
    text += f"with a chance of 80 % (test at {each.alpha:g}, before Holm)"
    if each.smallest is None:
        return f"{text}."
    needed = "more than 200" if each.seeds_needed is None else str(each.seeds_needed)
    return f"{text}; {each.smallest:g} needs {needed} {'seed' if needed == '1' else 'seeds'}."
