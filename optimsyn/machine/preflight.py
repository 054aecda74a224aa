"""Refuses in a second what would fail in an hour: all of a recipe that can only be checked on this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from optimsyn.base.errors import DataError, ModelError, RecipeError
from optimsyn.base.extensions import SCORERS
from optimsyn.data.documents import DocumentSet, files_of, read_documents
from optimsyn.data.files.rows import is_own_file, resolve, shortened
from optimsyn.data.questions import QuestionSets, check_questions, read_questions
from optimsyn.data.records import Document
from optimsyn.llm.hosted.capabilities import price_problem
from optimsyn.machine.availability import Availability, availability, device_problems, memory_needed, memory_problems
from optimsyn.machine.preflight_data import check_documents, check_lengths, check_sets
from optimsyn.machine.preflight_result import Preflight
from optimsyn.machine.preflight_services import service_findings
from optimsyn.optimize.methods import method_problems
from optimsyn.recipe.recipe import Recipe, Source
from optimsyn.recipe.sections.influence import twin_problem

if TYPE_CHECKING:
    from optimsyn.data.records import Passage
    from optimsyn.programs.checks import Check

T = TypeVar("T")

# Converting PDF, office and mail files takes a second or so a megabyte.
_CONVERT_AT_ONCE = 2_000_000


def validate(
    recipe: Recipe, *, deep: bool = True, here: bool = True, offline: bool = False, ask: bool = True
) -> Preflight:
    """Checks files, questions, keys, models, memory, checks and sizes of a recipe, and collects everything found.

    Args:
        recipe: From `Recipe.load`.
        deep: Read every row of the user's own files and ask the hub; False checks only that files and folders exist,
            that keys are set and that checks can be imported.
        here: The models will be loaded on this machine; False leaves its memory and devices out of account.
        offline: Ask neither the hub nor a service and want no key; what would have been asked is in `unchecked`.
        ask: Send each service one tiny request, as `check_services` does; it is not sent where its address or key is
            wrong already, nor with `offline`, nor without `deep`.
    """
    found = Preflight()
    roles = {"generator": recipe.models.generator, "rubric": recipe.models.rubric, "target": recipe.models.target}
    if recipe.models.reflection is not None:
        roles["reflection"] = recipe.models.reflection
    # Looking at the hub and at addresses is waiting; the files are read meanwhile.
    with ThreadPoolExecutor(max_workers=8) as pool:
        network = deep and not offline
        models = [
            pool.submit(availability, role, spec, network=network, keys=not offline) for role, spec in roles.items()
        ]
        hubs = [pool.submit(_hub_problem, name, source) for name, source in _sources(recipe)] if network else []
        _check_guiding_text(recipe, found)
        if here:
            _check_influence(recipe, found)
        _check_own_parts(recipe, found)
        found.problems += method_problems(recipe)
        _check_stages(recipe, found)
        readable = _check_readers(recipe, found)
        if recipe.limits.cost_usd is not None:
            found.problems += price_problems(recipe)
        if deep:
            _check_data(recipe, found, readable)
        else:
            _check_files(recipe, found)
        for waiting in hubs:
            problem = waiting.result()
            found.problems += [problem] if problem else []
        looked_at = [waiting.result() for waiting in models]
        if offline:
            found.unchecked = _on_hub_only(recipe) + [text for model in looked_at for text in model.unchecked]
        _add_models(looked_at, found, here)
    if network and ask:
        problems, notes = service_findings(recipe, looked_at)
        found.problems += problems
        found.warnings += notes
    found.problems = list(dict.fromkeys(found.problems))
    found.warnings = list(dict.fromkeys(found.warnings))
    return found


def checked(
    recipe: Recipe, root: Path, *, deep: bool = True, here: bool = True, offline: bool = False, ask: bool = True
) -> Preflight:
    """As `validate`, and whether the disk has room for a run under `root`."""
    from optimsyn.machine.disk_need import disk_need
    from optimsyn.runs.folder import Run

    found = validate(recipe, deep=deep, here=here, offline=offline, ask=ask)
    found.disk = disk_need(recipe, Run.folder_of(recipe, root), weight_bytes=max(found.gpu_bytes, found.main_bytes))
    found.problems += [found.disk.problem] if found.disk.problem is not None else []
    found.warnings += [found.disk.warning] if found.disk.warning is not None else []
    return found


def price_problems(recipe: Recipe, cap: str = "limits.cost_usd") -> list[str]:
    """Models whose price nobody says, so that a cap on money would count nothing for them.

    Args:
        recipe: From `Recipe.load`.
        cap: What the cap is called, for messages.
    """
    models = recipe.models
    roles = {"generator": models.generator, "rubric": models.rubric, "reflection": models.reflection}
    found = [price_problem(f"models.{role}", spec, cap) for role, spec in roles.items() if spec is not None]
    return [problem for problem in found if problem is not None]


def _sources(recipe: Recipe) -> list[tuple[str, Source]]:
    questions = recipe.questions
    named = [("documents.source", recipe.documents.source), ("questions.validation", questions.validation)]
    return named + ([("questions.test", questions.test)] if questions.test is not None else [])


def _hub_problem(name: str, source: Source) -> str | None:
    if source.hub is None:
        return None
    from optimsyn.machine.hub_lookup import look_up

    entry = look_up("dataset", source.hub, source.revision)
    return f"{name}: {entry.problem}" if entry.problem is not None else None


def _on_hub_only(recipe: Recipe) -> list[str]:
    from optimsyn.machine.hub_lookup import cached_folder

    return [
        f"{name}: whether the hub has {source.hub}, and its rows"
        for name, source in _sources(recipe)
        if source.hub is not None and cached_folder("dataset", source.hub, source.revision) is None
    ]


def _check_files(recipe: Recipe, found: Preflight) -> None:
    for name, source in _sources(recipe):
        if source.path is not None:
            try:
                resolve(source.path)
            except DataError as error:
                found.problems.append(f"{name}: {error}")


def _check_data(recipe: Recipe, found: Preflight, readable: bool) -> None:
    documents = _read_documents(recipe, found) if readable else None
    sets = _read_questions(recipe, documents.library if documents is not None else None, found)
    passages: list[Passage] = []
    if documents is not None and not documents.problems:
        passages = check_documents(recipe, documents.documents, found)
    if sets is not None:
        check_lengths(recipe, sets, found)
        if not sets.problems:
            check_sets(recipe, sets, found)
    _foresee(recipe, passages, sets, found)


def _foresee(recipe: Recipe, passages: Sequence[Passage], sets: QuestionSets | None, found: Preflight) -> None:
    """What the run is going to send, and what that means for its caps."""
    from optimsyn.machine.forecast.caps import cap_warnings
    from optimsyn.machine.forecast.lengths import measure
    from optimsyn.machine.forecast.requests import forecast
    from optimsyn.programs.task_shape import TaskShape

    shape = TaskShape.of(sets.validation) if sets is not None and sets.validation else None
    lengths = measure(recipe, passages, shape)
    found.forecast = forecast(recipe, lengths, len(passages))
    found.warnings += cap_warnings(recipe, found.forecast, lengths, len(passages))


def _read_documents(recipe: Recipe, found: Preflight) -> DocumentSet | None:
    """The documents, or None where reading them takes longer than a preflight may."""
    source = recipe.documents.source
    if source.path is None:
        return None
    try:
        convert = True
        place = files_of(recipe.documents)
        if place is not None:
            from optimsyn.data.files.folder import document_files, is_converted
            from optimsyn.data.files.readers import named_readers, reader_for

            readers = named_readers(recipe.documents.readers)
            files = document_files(place, recipe.documents)[0]
            slow = [file for file in files if is_converted(file, readers)]
            # What reads with your keys may ask a service; a run's start is soon enough.
            outside = [file for file in slow if getattr(reader_for(file, readers), "importable", "") is None]
            convert = sum(file.stat().st_size for file in slow) <= _CONVERT_AT_ONCE and not outside
            if not convert:
                found.warnings.append(
                    f"{place}: {len(slow)} files are converted from PDF and the like, or by a reader of your own, when "
                    "the run starts"
                )
        documents = read_documents(recipe.documents, convert=convert)
    except DataError as error:
        found.problems.append(f"documents.source: {error}")
        return None
    found.problems += shortened(documents.problems, "documents")
    found.warnings += [f"documents: {documents.hint}"] if documents.hint else []
    found.warnings += documents.remarks
    return documents if convert else None


def _read_questions(recipe: Recipe, documents: list[Document] | None, found: Preflight) -> QuestionSets | None:
    """Both sets; or, where one is on the hub, None after checking the rows of the other."""
    config = recipe.questions
    sources = [(name, source) for name, source in _sources(recipe) if name.startswith("questions.")]
    complete = documents is not None
    if all(is_own_file(source) for _, source in sources):
        try:
            sets = read_questions(config, documents, recipe.seed, complete=complete)
        except DataError as error:
            found.problems.append(f"questions: {error}")
            return None
        except RecipeError as error:  # of the form, whose field the message names
            found.problems.append(str(error))
            return None
        found.problems += shortened(sets.problems, "questions")
        found.warnings += shortened(sets.warnings, "questions")
        return sets
    for name, source in sources:
        if is_own_file(source):
            try:
                problems, notes = check_questions(config, source, name, documents, complete=complete)
                found.problems += shortened(problems, name)
                found.warnings += notes
            except DataError as error:
                found.problems.append(f"{name}: {error}")
            except RecipeError as error:
                found.problems.append(str(error))
    return None


def _check_guiding_text(recipe: Recipe, found: Preflight) -> None:
    words = recipe.guiding_text.split()
    if len(words) < 5:
        found.problems.append(
            f"guiding_text: {recipe.guiding_text.strip()!r} says too little; describe in a sentence or two what a good "
            "question of your field is"
        )
    elif len(words) > 400:
        found.warnings.append(
            f"guiding_text: {len(words)} words are sent with every request; a few sentences are enough"
        )


def _check_influence(recipe: Recipe, found: Preflight) -> None:
    """Of an explicit dtype the recipe itself knows; `auto` is known here."""
    spec = recipe.models.target
    if recipe.influence.method != "twin" or spec.dtype != "auto":
        return
    from optimsyn.llm.local.loading import resolve_device, resolve_dtype

    try:
        dtype = str(resolve_dtype(spec.dtype, resolve_device(spec.device))).removeprefix("torch.")
    except ModelError:
        return  # the device is not here, which is reported elsewhere
    if dtype != "float32":
        found.problems.append(f"{twin_problem(dtype)} (models.target.dtype: auto is {dtype} on this machine)")


def _check_stages(recipe: Recipe, found: Preflight) -> None:
    """Whether the functions of the recipe's own stages are there, and can be told from edited ones."""
    from optimsyn.runs.stage_functions import digests

    for stage in recipe.stages:
        try:
            digests(recipe, stage)
        except RecipeError as error:
            found.problems.append(str(error))


def _check_readers(recipe: Recipe, found: Preflight) -> bool:
    """Whether all readers of the user's own can be used."""
    if not recipe.documents.readers:
        return True
    from optimsyn.data.files.readers import named_readers

    before = len(found.problems)
    for pattern, reference in recipe.documents.readers.items():
        try:
            named_readers({pattern: reference})
        except RecipeError as error:
            found.problems.append(str(error))
    return len(found.problems) == before


def _check_form(recipe: Recipe, found: Preflight) -> dict[str, Check]:
    """Looks at the form of the questions, where the recipe names one, and returns its own checks."""
    from optimsyn.data.forms import form_named, identity_of
    from optimsyn.data.questions import check_columns
    from optimsyn.programs.checks import form_checks

    name = recipe.questions.form
    if name is None:
        return {}
    try:
        check_columns(recipe.questions)
        identity_of(name, form_named(name))
        return form_checks([name])
    except RecipeError as error:
        found.problems.append(str(error))
        return {}


def _check_own_parts(recipe: Recipe, found: Preflight) -> None:
    """What a recipe names of one's own, in so far as only this process can tell; the light parts need no torch."""
    from optimsyn.programs.checks import check_problems

    found.problems += check_problems(recipe.checks, _check_form(recipe, found))
    influence = recipe.influence
    if not influence.is_influence:
        import optimsyn.influence.factory  # noqa: F401 - knows what a scorer is

        _note(found, lambda: SCORERS.get(influence.scorer))
    if influence.has_own_estimator:
        from optimsyn.influence.estimators import estimator_of

        estimator = _note(found, lambda: estimator_of(influence.estimator))
        needs = [f"method {influence.method}"] if influence.method in ("twin", "forward") else []
        needs += ["reward.given: judged"] if recipe.reward.given == "judged" else []
        if estimator is not None and not estimator.linear and needs:
            found.problems.append(
                f"influence.estimator: {influence.estimator} does not say that it is linear in a pair's gradient "
                f"(`linear = True`), which {needs[0]} needs; set influence.method to auto or exact, and reward.given "
                "to nothing"
            )


def _note(found: Preflight, load: Callable[[], T]) -> T | None:
    try:
        return load()
    except RecipeError as error:
        found.problems.append(str(error))
        return None


def _add_models(models: Sequence[Availability], found: Preflight, here: bool) -> None:
    for model in models:
        found.problems += model.problems
        found.warnings += model.warnings
    if not here:
        return
    found.gpu_bytes, found.main_bytes = (memory_needed(models, gpu=gpu) for gpu in (True, False))
    found.problems += device_problems(models)
    problems, warnings = memory_problems(models)
    found.problems += problems
    found.warnings += warnings
