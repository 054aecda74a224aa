"""The command line: doctor, validate, preview, run, batch, study, execute, open, report, compare, new, mcp, agent.

With `--json`, a command prints one JSON document, whose result it hands to `JSON_OUTPUT`.
Exit codes: 0 done, 1 something failed, 2 the recipe (or the command line) is wrong, 130 interrupted.
"""

from __future__ import annotations

import shlex
import signal
import sys
from pathlib import Path
from types import ModuleType
from typing import Annotated, Literal

import typer

import optimsyn
from optimsyn.agents.analyst.defaults import BUDGET, BUYS, STEPS
from optimsyn.base.counting import plural
from optimsyn.base.environment import PARENT, variable
from optimsyn.base.errors import OptimsynError
from optimsyn.base.terminal.json_output import FAILED, JSON_OUTPUT, JsonCommand, PairsCommand, called, command_of
from optimsyn.execution.opening import load_recipe, make_console, open_checked, refuse_unknown_stage, show_preflight

app = typer.Typer(
    name="optimsyn",
    help="Synthetic question-answer data, guided by its influence on a target model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A recipe file, or the name of one that comes with optimsyn.")
]
RunArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A recipe file, the name of one that comes with optimsyn, or a run.")
]
RootOption = Annotated[Path, typer.Option("--root", help="Folder of the run folders.")]
AllCostOption = Annotated[float | None, typer.Option(min=0, help="Cap on what all runs cost together.")]
AllTokensOption = Annotated[int | None, typer.Option(min=1, help="Cap on tokens, read and written, of all runs.")]
AllRequestsOption = Annotated[int | None, typer.Option(min=1, help="Cap on requests of all runs.")]
GpuMemoryOption = Annotated[
    float | None, typer.Option(min=0, help="GPU memory for runs at the same time; without it, all there is.")
]
EngineOption = Annotated[
    Literal["processes", "ray"], typer.Option(help="Where runs work: this machine, or a Ray cluster.")
]
RayOption = Annotated[str | None, typer.Option(help="The Ray cluster; without it, RAY_ADDRESS, else a local one.")]
SizeOption = Annotated[str, typer.Option("--size", help="full, or tiny: embedded model, a handful of documents.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD=VALUE", help="Set a recipe field to this value; can be repeated."),
]
UntilOption = Annotated[str | None, typer.Option("--stage", help="Stop after this stage; without it, all stages run.")]
FolderArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run folder.")]


def _results() -> ModuleType:
    """The results for `--json`, imported late, because their data takes time to load."""
    from optimsyn.execution import json_results

    return json_results


def _version(requested: bool) -> None:
    if requested:
        typer.echo(f"optimsyn {optimsyn.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show it.")] = False,
) -> None:
    pass


@app.command(cls=JsonCommand)
def doctor() -> None:
    """Check this machine, and say what it lacks."""
    from optimsyn.execution.status_line import Steps
    from optimsyn.machine.doctor import diagnose, report

    console = make_console()
    findings = list(diagnose(Steps().step))
    JSON_OUTPUT.deliver(lambda: _results().DoctorResult.of(findings))
    console.print(report(findings))
    if any(finding.status == "fail" for finding in findings):
        raise typer.Exit(FAILED)


@app.command(cls=JsonCommand)
def validate(
    recipe: RecipeArgument,
    root: RootOption = Path("runs"),
    size: SizeOption = "full",
    changes: SetOption = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Contact no hub or service, require no key; list what was not checked.")
    ] = False,
) -> None:
    """Check files, questions, keys, models, memory and disk."""
    from optimsyn.execution.status_line import Steps
    from optimsyn.machine.preflight import checked

    console = make_console()
    loaded = load_recipe(recipe, size, changes)
    with Steps().step("Checking files, questions, models" + ("" if offline else " and services")):
        preflight = checked(loaded, root, offline=offline)
    JSON_OUTPUT.deliver(lambda: _results().ValidateResult.of(loaded, root, preflight), loaded.key_variables)
    show_preflight(preflight, console)
    preflight.raise_if_refused()
    console.print(preflight.forecast)
    if preflight.disk is not None:
        console.print(f"It will take {preflight.disk.text()}", highlight=False, soft_wrap=True)
    console.print(f"{preflight.time}.", highlight=False, soft_wrap=True)
    counts = ", ".join(preflight.counted)
    verdict = "nothing that was checked would stop it" if offline and preflight.unchecked else "nothing would stop it"
    noted = f", see the {plural(len(preflight.warnings), 'note')} above" if preflight.warnings else ""
    console.print(f"{loaded.name}: {verdict}" + (f" ({counts})" if counts else "") + noted, highlight=False)


@app.command(cls=JsonCommand)
def preview(
    recipe: RecipeArgument,
    pairs: Annotated[int, typer.Option("--pairs", min=1, max=20, help="How many pairs to show.")] = 3,
    root: RootOption = Path("runs"),
    size: SizeOption = "full",
    changes: SetOption = None,
) -> None:
    """Write a few pairs and show them with their rubrics and influence."""
    from contextlib import ExitStack

    from optimsyn.execution.runner import embedded_server
    from optimsyn.execution.status_line import Steps

    console, steps = make_console(), Steps()
    steps.say(
        f"A preview checks everything, writes {plural(pairs, 'pair')} and scores them by gradients of the target, "
        "which take "
        "longest: seconds on a GPU, up to some minutes on a CPU."
    )
    run_ = open_checked(recipe, root, size, changes, console, steps)
    with run_.lock(), ExitStack() as stack:
        with steps.step("Loading the models"):
            from optimsyn.stages.preview import preview as make

            stack.enter_context(embedded_server(run_))
        result = make(run_, pairs, step=steps.step)
    JSON_OUTPUT.deliver(lambda: _results().PreviewResult.of(run_, result), run_.secret_names)
    console.print(result)
    console.print("The replies are kept: `optimsyn run` with the same recipe and options uses them.")


@app.command(cls=JsonCommand)
def run(
    recipe: RunArgument,
    root: RootOption = Path("runs"),
    stage: UntilOption = None,
    size: SizeOption = "full",
    changes: SetOption = None,
) -> None:
    """Run a recipe, or continue it where it stopped.

    Finished stages are skipped and no reply is bought twice. The last line of the output is the run folder.
    """
    from optimsyn.execution.runner import run_stages
    from optimsyn.execution.status_line import Steps
    from optimsyn.report.closing import show_end

    console = make_console()
    if stage is not None:
        refuse_unknown_stage(recipe, size, changes, stage)
    run_ = open_checked(recipe, root, size, changes, console, Steps())
    JSON_OUTPUT.deliver(lambda: _results().RunResult.of(run_), run_.secret_names)
    console.print(f"Run [bold]{run_.name}[/]", highlight=False)
    run_stages(run_, console, until=stage)
    if run_.done(run_.stages[-1]):
        show_end(run_, console)
    typer.echo(run_.folder)


@app.command(cls=JsonCommand)
def batch(  # noqa: PLR0913 - options of a command
    recipes: Annotated[list[str], typer.Argument(metavar="RECIPE...", help="Recipe files, or names of bundled ones.")],
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="How many run at once.")] = 1,
    root: RootOption = Path("runs"),
    size: SizeOption = "full",
    changes: SetOption = None,
    stage: UntilOption = None,
    cost_usd: AllCostOption = None,
    tokens: AllTokensOption = None,
    requests: AllRequestsOption = None,
    gpu_memory_gb: GpuMemoryOption = None,
    engine: EngineOption = "processes",
    ray_address: RayOption = None,
) -> None:
    """Run many recipes, several at a time; one failure never stops the others.

    The same command continues: finished runs are not started again. The last line of the output is batch.json. Exit
    code 0: all have finished; 1: some have not; 2: none could be started; 130: interrupted.
    """
    from optimsyn.batch.batch import exit_code, make_engine, run_batch
    from optimsyn.batch.plan import BatchLimits, RunOptions, known_stages
    from optimsyn.batch.state import BatchResult
    from optimsyn.llm.shared_budget import Caps
    from optimsyn.recipe.changes import SetOptions
    from optimsyn.runs.manifest import STAGES

    changed = SetOptions(changes or ())
    if stage is not None and stage not in STAGES and stage not in (names := known_stages(recipes, size, changed)):
        raise typer.BadParameter(f"there is no stage {stage!r}; the stages are {', '.join(names)}")
    if engine == "ray" and gpu_memory_gb is not None:
        raise typer.BadParameter("--gpu-memory-gb is for one machine; with Ray, each run that needs a GPU gets one")
    state = run_batch(
        recipes,
        root,
        RunOptions(size, changed, stage),
        BatchLimits(jobs, Caps(cost_usd=cost_usd, requests=requests, tokens=tokens), gpu_memory_gb),
        engine=make_engine(engine, jobs, ray_address),
        console=make_console(),
    )
    JSON_OUTPUT.deliver(lambda: BatchResult(batch=state))
    raise typer.Exit(exit_code(state))


@app.command(cls=JsonCommand)
def study(  # noqa: PLR0913 - options of a command
    study_file: Annotated[str, typer.Argument(metavar="STUDY", help="A study file.")],
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="How many run at once.")] = 1,
    root: Annotated[Path, typer.Option("--root", help="Folder of the studies.")] = Path("runs"),
    status: Annotated[bool, typer.Option("--status", help="Show what is done and forecast the rest.")] = False,
    page_only: Annotated[bool, typer.Option("--page-only", help="Write the page of what is there.")] = False,
    cost_usd: AllCostOption = None,
    tokens: AllTokensOption = None,
    requests: AllRequestsOption = None,
    gpu_memory_gb: GpuMemoryOption = None,
    engine: EngineOption = "processes",
    ray_address: RayOption = None,
) -> None:
    """Compare arms over domains, sources of the reward and seeds, on one page; or generators and targets (`transfer`).

    Forecasts, then runs; the same command continues. The last line of the output is study.html (transfer.html). Exit
    codes are those of a batch.
    """
    from optimsyn.batch.batch import make_engine
    from optimsyn.batch.plan import BatchLimits
    from optimsyn.llm.shared_budget import Caps
    from optimsyn.study.opening import open_study

    if status and page_only:
        raise typer.BadParameter("--status and --page-only exclude each other")
    if engine == "ray" and gpu_memory_gb is not None:
        raise typer.BadParameter("--gpu-memory-gb is for one machine; with Ray, each run that needs a GPU gets one")
    console, code = make_console(), 0
    with console.status("Reading the study …") as reading:
        opened = open_study(study_file, root, None if page_only else reading.update)
    if status:
        shown = opened.status(jobs, console)
        JSON_OUTPUT.deliver(lambda: shown)
        return
    if not page_only:
        limits = BatchLimits(jobs, Caps(cost_usd=cost_usd, requests=requests, tokens=tokens), gpu_memory_gb)
        code = opened.conduct(limits, make_engine(engine, jobs, ray_address), console)
    page = opened.page()
    JSON_OUTPUT.deliver(lambda: page)
    raise typer.Exit(code)


@app.command(cls=PairsCommand)
def execute(
    notebook: Annotated[Path, typer.Argument(metavar="NOTEBOOK", help="The notebook to execute; it is not changed.")],
    output: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Where the executed notebook goes.")],
    parameters: Annotated[
        list[str] | None,
        typer.Option("-p", "--parameters", metavar="NAME VALUE", help="One parameter; can be repeated."),
    ] = None,
    files: Annotated[
        list[Path] | None, typer.Option("-f", "--parameters-file", metavar="FILE", help="Parameters in a YAML file.")
    ] = None,
) -> None:
    """Execute one notebook after checking its parameters."""
    from optimsyn.execution.parameters import given_parameters, load_notebook, pair_of

    pairs = [pair_of(text) for text in parameters or ()]
    values = given_parameters(load_notebook(notebook), pairs, files or (), notebook.name)
    # Imported late, because it takes seconds to load.
    from optimsyn.execution.engine import execute as run_notebook

    run_notebook(notebook, output, values, progress=True)
    JSON_OUTPUT.deliver(lambda: _results().ExecuteResult(notebook=str(output)))
    typer.echo(output)


@app.command("open", cls=JsonCommand)
def open_(
    run_folder: FolderArgument,
    stage: Annotated[
        str | None, typer.Option("--stage", help="Stage to open; without it, the one that failed.")
    ] = None,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open a browser window.")] = True,
    port: Annotated[int | None, typer.Option("--port", min=1, max=65535, help="Port of JupyterLab.")] = None,
) -> None:
    """Open a stage of a run in JupyterLab, to finish it by hand."""
    from optimsyn.execution.reopen import open_run, prepare
    from optimsyn.runs.lookup import find_run

    run_ = find_run(run_folder)
    chosen, notebook = prepare(run_, stage)
    JSON_OUTPUT.deliver(
        lambda: _results().OpenResult(folder=str(run_.folder), stage=chosen, notebook=str(notebook)), run_.secret_names
    )
    typer.echo(f"Stage {chosen}: run its cells; then `optimsyn run {shlex.quote(str(run_.folder))}` continues.")
    if open_run(run_, notebook, browser=browser, port=port):
        raise typer.Exit(FAILED)


@app.command(cls=JsonCommand)
def report(run_folder: FolderArgument) -> None:
    """Write report.html of a run, finished or not."""
    from optimsyn.report.page.report import write_report
    from optimsyn.runs.lookup import find_run

    run_ = find_run(run_folder)
    page = write_report(run_)
    JSON_OUTPUT.deliver(lambda: _results().ReportResult(page=str(page), run=_results().RunFigures.read(run_)))
    typer.echo(page)


@app.command(cls=JsonCommand)
def compare(
    run_folders: Annotated[
        list[str], typer.Argument(metavar="RUN RUN...", help="Run folders, finished or not; or a folder of runs.")
    ],
    output: Annotated[Path, typer.Option("--output", help="The page to write.")] = Path("compare.html"),
) -> None:
    """Put several runs on one page."""
    from optimsyn.report.comparison import write_comparison
    from optimsyn.runs.lookup import find_runs

    runs = find_runs(run_folders)
    page = write_comparison(runs, output)
    JSON_OUTPUT.deliver(
        lambda: _results().CompareResult(page=str(page), runs=tuple(map(_results().RunFigures.read, runs)))
    )
    typer.echo(page)


@app.command(cls=JsonCommand)
def new(
    recipe: Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe that comes with optimsyn.")],
    path: Annotated[Path | None, typer.Argument(help="The file to write; without it, RECIPE.yaml here.")] = None,
) -> None:
    """Copy a recipe that comes with optimsyn, to change it.

    Name your own documents, questions and models in the copy.
    """
    from optimsyn.recipe.bundled import find_recipe, no_recipe_to_copy

    source = find_recipe(recipe)
    if not source.is_file():
        raise no_recipe_to_copy(recipe)
    target = path if path is not None else Path(f"{source.stem}.yaml")
    if target.exists():
        raise OptimsynError(f"{target}: exists already; give another file name")
    missing = not target.parent.is_dir()
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    JSON_OUTPUT.deliver(lambda: _results().NewResult(path=str(target)))
    made = f" (in the new folder {target.parent})" if missing else ""
    then = f"optimsyn validate {shlex.quote(str(target))}"
    typer.echo(f"{target}{made}: change documents, questions and models, then `{then}`")


@app.command()
def mcp(
    root: Annotated[Path, typer.Option("--root", help="The only folder that tools may read and write.")] = Path(),
    budget: Annotated[float, typer.Option(min=0, help="US dollars that all its runs may cost together.")] = 0.0,
    allow_hosted: Annotated[bool, typer.Option(help="Recipes may name services.")] = False,
    allow_plugins: Annotated[bool, typer.Option(help="Recipes may name code, which then runs.")] = False,
    allow_address: Annotated[
        list[str] | None, typer.Option(metavar="HOST", help="A host that `api_base` may name; can be repeated.")
    ] = None,
) -> None:
    """Serve these commands as tools to a coding agent, by MCP on standard input and output.

    Runs go on in child processes and end with the server.
    """
    from optimsyn.agents.server import Permissions, serve

    serve(root, Permissions(budget, allow_hosted, allow_plugins, allow_address or ()))


@app.command(cls=JsonCommand)
def agent(  # noqa: PLR0913 - options of a command
    goal: Annotated[str, typer.Argument(metavar="GOAL", help="What you want to know or have, in words.")] = "",
    recipe: Annotated[str, typer.Option(help="Recipe to begin with: a file in the root, or a bundled name.")] = "",
    budget: Annotated[
        float | None,
        typer.Option(
            min=0,
            help=f"US dollars that all it does may cost, its own replies too. [default: {BUDGET:g}, {BUYS}; with "
            "--continue, that of the notebook]",
            show_default=False,
        ),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Model that chooses the steps; else the generator.")] = None,
    model_options: Annotated[
        list[str] | None,
        typer.Option("--model-option", metavar="FIELD=VALUE", help="A field of that model; can be repeated."),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, max=200, help="The most steps.")] = STEPS,
    root: Annotated[Path, typer.Option("--root", help="The only folder that it may read and write.")] = Path(),
    notebook: Annotated[Path | None, typer.Option(help="The notebook to write; else named after the goal.")] = None,
    resumed: Annotated[
        Path | None, typer.Option("--continue", metavar="NOTEBOOK", help="Go on from this notebook.")
    ] = None,
    allow_hosted: Annotated[bool, typer.Option(help="It and its recipes may use services.")] = False,
    allow_plugins: Annotated[bool, typer.Option(help="Recipes may name code, which then runs.")] = False,
    allow_address: Annotated[
        list[str] | None, typer.Option(metavar="HOST", help="A host that `api_base` may name; can be repeated.")
    ] = None,
) -> None:
    """Let an agent work towards a goal, in a notebook of cells that you can change and run again.

    It has the tools of `optimsyn mcp`, asks before it spends more than the budget, and stops with a recommendation. The
    last line of the output is the notebook. Exit code 1: it stopped without a recommendation.
    """
    from optimsyn.agents.analyst.analyse import Allowed
    from optimsyn.agents.analyst.command import Asked, work

    allowed = Allowed(BUDGET if budget is None else budget, allow_hosted, allow_plugins, allow_address or ())
    asked = Asked(goal, recipe, root, notebook, resumed, budget, model, model_options or (), steps, allowed)
    console = make_console()
    done = work(asked, console, may_ask=not JSON_OUTPUT.asked)
    JSON_OUTPUT.deliver(lambda: done)
    console.print(done.table())
    typer.echo(done.notebook)
    if done.ended != "recommendation":
        raise typer.Exit(FAILED)


def main() -> None:
    """Runs the command line and turns errors into messages and exit codes."""
    for name in ("SIGTERM", "SIGHUP"):
        # A terminated run ends like an interrupted one; a signal that `nohup` ignores stays ignored.
        if hasattr(signal, name) and signal.getsignal(getattr(signal, name)) is not signal.SIG_IGN:
            signal.signal(getattr(signal, name), signal.default_int_handler)
    if variable(PARENT) is not None:
        from optimsyn.batch.lifeline import end_with_parent

        end_with_parent()
    arguments = sys.argv[1:]
    with JSON_OUTPUT.on(arguments) as stream:
        ended = called(lambda: app(standalone_mode=not JSON_OUTPUT.asked))
        if stream is not None:
            ended = JSON_OUTPUT.write(stream, command_of(arguments), ended)
    sys.exit(ended.code)
