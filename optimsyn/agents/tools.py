"""The tools: each is one call of the public API behind the guard, with a typed result."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from optimsyn.agents import results
from optimsyn.agents.caps import capped
from optimsyn.agents.guard import Guard
from optimsyn.agents.jobs import LOG, Jobs
from optimsyn.agents.known_recipes import recipe_files
from optimsyn.agents.ledger import bought_in
from optimsyn.base.errors import DataError, RecipeError, StageError
from optimsyn.base.files import write_text
from optimsyn.batch.child_process import run_command
from optimsyn.recipe.recipe import Recipe
from optimsyn.runs.folder import Run
from optimsyn.runs.lookup import run_folder
from optimsyn.runs.outcomes import manifest_now, run_state

if TYPE_CHECKING:
    from optimsyn.data.records import Question
    from optimsyn.machine.preflight_result import Preflight
    from optimsyn.runs.forecast import Forecast, Range

RecipeName = Annotated[str, Field(description="A recipe file inside the root, or the name of a bundled recipe.")]
Size = Annotated[Literal["full", "tiny"], Field(description="tiny: the embedded model and a handful of documents.")]
Changes = Annotated[dict[str, Any] | None, Field(description='Dotted field to value, such as {"synthesis.pairs": 20}.')]
RunName = Annotated[str, Field(description="A run's folder or name, as `run` returns it.")]
Count = Annotated[int, Field(ge=1, le=20, description="How many.")]
Seconds = Annotated[float, Field(ge=0, le=600, description="Wait so long at most.")]

READING = (
    "list_recipes",
    "read_recipe",
    "validate",
    "forecast",
    "documents",
    "questions",
    "status",
    "tables",
    "doctor",
)
WRITING = ("change_recipe", "preview", "run", "stop", "report", "compare")

_LOG_LINES = 20
_BEGINNING = 160
_TRIES = 5
# A run that has used up its forecast gets this share of it to finish.
_MORE = 0.05


class Toolbox:
    """The tools of one server.

    Args:
        guard: What recipes may touch.
        jobs: The work in progress and its budget.
    """

    def __init__(self, guard: Guard, jobs: Jobs) -> None:
        self._guard = guard
        self._jobs = jobs
        self._runs = guard.root / "runs"
        # Ids of test questions by source, of all recipes that were looked at: another seed draws another split.
        self._held_back: dict[str, set[str]] = {}

    def list_recipes(self) -> results.RecipeNames:
        """Lists the recipes that come with optimsyn, and the YAML files in the root."""
        from optimsyn.recipe.bundled import recipes_folder

        bundled = sorted(file.stem for file in recipes_folder().glob("*.yaml"))
        files = [self._guard.shown(file) for file in recipe_files(self._guard.root)]
        return results.RecipeNames(bundled=bundled, files=files)

    def read_recipe(self, recipe: RecipeName, size: Size = "full", changes: Changes = None) -> results.RecipeText:
        """Shows a recipe with every field."""
        return _text(self._guard.recipe(recipe, size, changes), recipe)

    def change_recipe(
        self,
        recipe: RecipeName,
        changes: Annotated[dict[str, Any], Field(description="Dotted field to value.")],
        output: Annotated[str, Field(description="The new file inside the root, .yaml; it must not exist.")],
        size: Size = "full",
    ) -> results.RecipeText:
        """Writes a changed copy of a recipe into a new file; nothing is overwritten."""
        path = self._guard.path(output)
        if path.suffix not in (".yaml", ".yml"):
            raise RecipeError(f"{output}: a recipe is a .yaml file; name one")
        if path.is_relative_to(self._runs):
            raise RecipeError(f"{output}: is among the runs, whose recipes stay as they are; name a file elsewhere")
        made = self._guard.recipe(recipe, size, changes)
        path.parent.mkdir(parents=True, exist_ok=True)
        ledger, text = self._jobs.ledger, made.to_yaml()
        try:
            with path.open("x", encoding="utf-8") as file:
                file.write(text)
        except FileExistsError:
            if not path.is_file() or not ledger.may_replace(path):
                raise RecipeError(f"{output}: exists already; give another file name") from None
            write_text(path, text)
        ledger.wrote(path)
        return _text(made, self._guard.shown(path))

    def validate(self, recipe: RecipeName, size: Size = "full", changes: Changes = None) -> results.Validation:
        """Checks files, questions, keys, models, memory and disk; services are not asked, so it costs nothing."""
        checked = self._preflight(self._guard.recipe(recipe, size, changes))
        return results.Validation(
            ok=checked.ok,
            problems=checked.problems,
            warnings=checked.warnings,
            unchecked=checked.unchecked,
            counts=checked.counts,
            forecast=checked.forecast.sentence if checked.forecast is not None else None,
        )

    def forecast(self, recipe: RecipeName, size: Size = "full", changes: Changes = None) -> results.ForecastResult:
        """Forecasts requests, tokens and money of a run, and says what is left of the budget."""
        checked = self._preflight(self._guard.recipe(recipe, size, changes))
        predicted = _forecast_of(checked)
        total = predicted.total
        return results.ForecastResult(
            sentence=predicted.sentence,
            requests=_amount(total.requests),
            input_tokens=_amount(total.input_tokens),
            output_tokens=_amount(total.output_tokens),
            cost_usd=_amount(total.cost_usd) if total.cost_usd is not None else None,
            notes=list(predicted.notes),
            money=self._money(),
        )

    def documents(self, recipe: RecipeName, size: Size = "full", count: Count = 5) -> results.DocumentsSummary:
        """Summarises the documents of a recipe, with the beginning of some."""
        from optimsyn.data.documents import read_documents
        from optimsyn.data.splits import evenly

        read = read_documents(self._guard.recipe(recipe, size).documents)
        rows = [
            results.DocumentRow(
                id=document.id,
                title=document.title,
                words=len(document.text.split()),
                begins=" ".join(document.text.split())[:_BEGINNING],
            )
            for document in evenly(read.documents, count)
        ]
        words = sum(len(document.text.split()) for document in read.documents)
        return results.DocumentsSummary(count=len(read.documents), words=words, problems=read.problems, some=rows)

    def questions(self, recipe: RecipeName, size: Size = "full", count: Count = 5) -> results.QuestionsSummary:
        """Summarises the validation questions of a recipe, with the words of some; never test questions or answers."""
        from optimsyn.data.documents import read_documents
        from optimsyn.data.questions import read_questions
        from optimsyn.data.splits import evenly

        loaded = self._guard.recipe(recipe, size)
        library = read_documents(loaded.documents).library
        sets = read_questions(loaded.questions, library, loaded.seed_of("data"), complete=True)
        source = loaded.questions.validation
        held_back = self._held_back.setdefault(str(source.path or source.hub), set())
        held_back.update(question.id for question in sets.test)
        asked = [question for question in sets.validation if question.id not in held_back]
        return results.QuestionsSummary(
            validation=len(sets.validation),
            subtasks=dict(Counter(question.subtask for question in sets.validation)),
            forms=dict(Counter(_form(question) for question in sets.validation)),
            # A problem may quote a row of the test questions.
            problems=[text for text in sets.problems if not text.startswith("questions.test")],
            some=[
                results.QuestionRow(
                    id=question.id, subtask=question.subtask, form=_form(question), question=question.question
                )
                for question in evenly(asked, count)
            ],
        )

    def preview(
        self, recipe: RecipeName, pairs: Count = 3, size: Size = "full", changes: Changes = None, wait_s: Seconds = 300
    ) -> results.PreviewResult:
        """Writes a few pairs and scores them, in a process of its own; a later run uses the replies again."""
        import sys

        loaded = self._guard.recipe(recipe, size, changes)
        opened = Run(Run.folder_of(loaded, self._runs), loaded)
        job = self._jobs.of(opened) if opened.folder.is_dir() else None
        output = self._guard.path(opened.folder / f"preview-{pairs}.json")
        if not output.is_file() and (job is None or job.code is not None):
            checked = self._preflight(loaded)
            checked.raise_if_refused()
            needs = _preview_cost(loaded, _forecast_of(checked), pairs)
            self._jobs.refuse_too_dear(needs, f"a preview of {loaded.name}")
            opened = self._open(loaded, needs)
            command = [
                sys.executable,
                "-m",
                "optimsyn.agents.preview_child",
                str(opened.folder),
                str(pairs),
                str(output),
            ]
            job = self._jobs.start(command, opened, needs, f"a preview of {loaded.name}")
        if job is not None and not output.is_file():
            job.wait(wait_s)
        name = self._guard.shown(opened.folder)
        if output.is_file():
            return _preview(output, name)
        if job is not None and job.code is not None:
            raise StageError(f"preview: ended with code {job.code}: " + " ".join(_log(opened)[-3:]))
        return results.PreviewResult(state="running", run=name)

    def run(
        self, recipe: RecipeName, size: Size = "full", changes: Changes = None, wait_s: Seconds = 0
    ) -> results.RunStatus:
        """Starts or continues the run of a recipe (or run folder) in a child process, and returns after `wait_s`.

        `status` says how it goes, `stop` interrupts it. It is refused when its forecast exceeds what is left of the
        budget. It ends with this server; what is finished is kept, and running again continues.
        """
        loaded = self._guard.recipe(recipe, size, changes)
        folder = self._guard.path(Run.folder_of(loaded, self._runs))
        run = Run(folder, loaded)
        if (folder / "manifest.json").is_file() and run_state(*manifest_now(run)).kind == "finished":
            # What is finished costs nothing, whatever its forecast was.
            self._jobs.ledger.begin(folder)
            return self._status(run)
        checked = self._preflight(loaded)
        checked.raise_if_refused()
        so_far = bought_in(folder)
        cost = _forecast_of(checked).total.cost_usd
        needs = max(_MORE * cost.high, cost.high - so_far) if cost is not None else None
        what = f"the run of {loaded.name}"
        self._jobs.refuse_too_dear(needs, what)
        opened = self._open(loaded, needs)
        opened.foresee(checked.forecast)
        job = self._jobs.start(run_command(["run", str(opened.folder)]), opened, needs, what)
        job.wait(wait_s)
        return self._status(opened)

    def status(self, run: RunName, wait_s: Seconds = 0) -> results.RunStatus:
        """Says how a run goes: stages, progress, cost, the last lines of its output."""
        found = self._find(run)
        job = self._jobs.of(found)
        if job is not None:
            job.wait(wait_s)
        return self._status(found)

    def stop(self, run: RunName) -> results.RunStatus:
        """Interrupts a run that this server started; what is done is kept, and `run` continues it."""
        found = self._find(run)
        job = self._jobs.of(found)
        if job is None or job.code is not None:
            raise StageError(f"{found.name}: is not at work in a process of this server; nothing to stop")
        job.stop()
        return self._status(found)

    def report(self, run: RunName) -> results.Report:
        """Writes report.html of a run, finished or not, and returns its verdict and figures."""
        return self._report(self._find(run))

    def tables(self, run: RunName) -> results.Tables:
        """The tables of a finished run: evaluation, what became of the candidates, time and cost."""
        from optimsyn.report.summary import Summary

        found = self._find(run)
        if not (found.folder / "summary.json").is_file():
            raise StageError(f"{found.name}: has not finished, so it has no tables yet; see its status")
        made = [
            results.FoundTable(
                title=table.title,
                columns=list(table.columns),
                rows=[[str(cell) for cell in row] for row in table.rows],
                note=table.note,
            )
            for table in Summary.read(found.folder).tables()
        ]
        return results.Tables(run=self._guard.shown(found.folder), tables=made)

    def compare(
        self,
        runs: Annotated[list[str], Field(min_length=2, description="Folders or names of runs.")],
        output: Annotated[str, Field(description="The page to write, .html, inside the root.")] = "compare.html",
    ) -> results.Comparison:
        """Puts several runs on one page, and returns the verdict on each."""
        from optimsyn.report.comparison import write_comparison

        page = self._guard.path(output)
        if page.suffix != ".html" or page.is_relative_to(self._runs):
            raise StageError(f"{output}: is no page outside of the runs; name a .html file")
        found = [self._find(name) for name in runs]
        return results.Comparison(
            html=self._guard.shown(write_comparison(found, page)), runs=[self._report(each) for each in found]
        )

    def doctor(self) -> results.Doctor:
        """Checks this machine, and says what it lacks."""
        from optimsyn.machine.doctor import diagnose

        found = [results.DoctorFinding(what=each.what, status=each.status, detail=each.detail) for each in diagnose()]
        return results.Doctor(ok=all(each.status != "fail" for each in found), findings=found)

    def _preflight(self, recipe: Recipe) -> Preflight:
        from optimsyn.machine.preflight import checked

        return checked(recipe, self._guard.path(self._runs), ask=False)

    def _open(self, recipe: Recipe, needs: float | None) -> Run:
        """The run of a recipe, whose own cap keeps it within what was reserved."""
        folder = self._guard.path(Run.folder_of(recipe, self._runs))
        return Run.open(capped(recipe, folder, needs), self._runs)

    def _find(self, name: str) -> Run:
        """A run inside the root.

        Raises:
            StageError: There is none.
            RecipeError: It is outside.
        """
        folder = self._guard.path(name)
        if not (folder / "manifest.json").is_file():
            folder = self._guard.path(run_folder(str(self._guard.path(Path("runs") / Path(name).name)), self._runs))
        self._guard.path(folder / "recipe.yaml")
        return Run.load(folder)

    def _status(self, run: Run) -> results.RunStatus:
        (manifest, alive), job = manifest_now(run), self._jobs.of(run)
        state = run_state(manifest, alive)
        working = job is not None and job.code is None
        return results.RunStatus(
            run=self._guard.shown(run.folder),
            state=state.kind,
            working=working or run.busy() is not None,
            place=state.place,
            exit_code=job.code if job is not None else None,
            stages=[
                results.StageStatus(name=each.name, status=each.status, seconds=each.seconds, error=each.error)
                for each in manifest.stages
            ],
            progress=run.progress(),
            cost_usd=bought_in(run.folder),
            log=_log(run),
            money=self._money(),
        )

    def _report(self, run: Run) -> results.Report:
        from optimsyn.report.facts import RunFacts
        from optimsyn.report.page.report import write_report
        from optimsyn.report.page.verdict import verdict
        from optimsyn.report.summary import Summary

        self._guard.path(run.folder / "report.html")
        page, facts = write_report(run), RunFacts.read(run)
        said, look = verdict(facts), facts.reward_look
        finished = (run.folder / "summary.json").is_file()
        return results.Report(
            run=self._guard.shown(run.folder),
            html=self._guard.shown(page.resolve()),
            state=facts.state.kind,
            headline=said.headline,
            ends=said.ends,
            sentences=list(said.sentences),
            comparisons=[
                {"what": each.what, "shown": list(each.shown), "limit": each.limit} for each in said.comparisons
            ],
            cannot=list(said.cannot),
            failure=f"{said.failure.place}: {said.failure.reason}" if said.failure is not None else None,
            reward=look.sentence if look is not None else None,
            reward_verdict=look.verdict if look is not None else None,
            figures=Summary.read(run.folder).model_dump(mode="json") if finished else None,
        )

    def _money(self) -> results.Budget:
        money = self._jobs.money()
        return results.Budget(
            budget_usd=money.budget, spent_usd=money.spent, reserved_usd=money.reserved, left_usd=money.left
        )


def _text(recipe: Recipe, name: str) -> results.RecipeText:
    return results.RecipeText(recipe=name, fingerprint=recipe.fingerprint, yaml=recipe.to_yaml())


def _amount(range_: Range) -> results.Amount:
    return results.Amount(low=range_.low, expected=range_.expected, high=range_.high)


def _forecast_of(checked: Preflight) -> Forecast:
    if checked.forecast is None:
        raise DataError("\n".join(["its data cannot be read, so nothing can be forecast", *checked.problems]))
    return checked.forecast


def _preview_cost(recipe: Recipe, predicted: Forecast, pairs: int) -> float | None:
    """The most that a preview costs: its tries, at the price of a pair of the first draft."""
    cost = predicted.of("warm_up").cost_usd
    return None if cost is None else cost.high * _TRIES * pairs / max(1, recipe.warm_up.pairs)


def _preview(output: Path, run: str) -> results.PreviewResult:
    from optimsyn.stages.preview import Preview

    made = Preview.model_validate_json(output.read_text(encoding="utf-8"))
    return results.PreviewResult(
        state="finished",
        run=run,
        cards=[
            results.PreviewCard(title=card.title, outcome=card.outcome, parts=dict(card.parts)) for card in made.cards
        ],
        notes=list(made.notes),
        reward=made.look.sentence if made.look is not None else None,
    )


def _form(question: Question) -> str:
    return question.form or question.kind


def _log(run: Run) -> list[str]:
    log = run.folder / LOG
    if not log.is_file() or log.is_symlink():
        return []
    return log.read_text(encoding="utf-8", errors="replace")[-20_000:].splitlines()[-_LOG_LINES:]
