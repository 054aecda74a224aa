"""The checks of a recipe on this machine, which find in seconds what would fail hours later."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from optimsyn.base.counting import plural
from optimsyn.base.errors import DataError, ModelError, RecipeError
from optimsyn.base.extensions import SCORERS, shadowed
from optimsyn.data.documents import DocumentSet, files_of, read_documents
from optimsyn.data.files.rows import is_own_file, resolve, shortened, under
from optimsyn.data.questions import OTHER, QuestionSets, check_other_questions, check_questions, read_questions
from optimsyn.data.records import Document
from optimsyn.llm.hosted.capabilities import price_problem
from optimsyn.machine.availability import Availability, availability, device_problems, memory_needed, memory_problems
from optimsyn.machine.preflight_author import check_author
from optimsyn.machine.preflight_data import check_documents, check_lengths, check_sets, check_trained
from optimsyn.machine.preflight_result import Preflight
from optimsyn.machine.preflight_services import service_findings
from optimsyn.machine.shapes import is_looked_at
from optimsyn.optimize.methods import method_problems
from optimsyn.recipe.recipe import Recipe, Source, TargetSpec
from optimsyn.recipe.sections.arms import idle_optimizers
from optimsyn.recipe.sections.influence import twin_problem

if TYPE_CHECKING:
    from optimsyn.data.records import Passage
    from optimsyn.programs.checks import Check

TRAINED = "fine_tune.target"
# Converting PDF, office and mail files takes about a second a megabyte.
_CONVERT_AT_ONCE = 2_000_000


def validate(
    recipe: Recipe, *, deep: bool = True, here: bool = True, offline: bool = False, ask: bool = True
) -> Preflight:
    """Checks files, questions, keys, models, memory, checks and sizes of a recipe, and collects all problems.

    Args:
        recipe: From `Recipe.load`.
        deep: Read every row of the user's files and ask the hub; False checks only that files and folders exist, that
            keys are set and that checks can be imported.
        here: The models will be loaded on this machine; False skips its memory and devices.
        offline: Contact neither the hub nor a service and require no key; skipped checks are in `unchecked`.
        ask: Send each service one tiny request; skipped where its address or key is already wrong, with `offline`, and
            without `deep`.
    """
    preflight = Preflight()
    named = recipe.models
    roles = {"generator": named.generator, "rubric": named.rubric, "target": named.target, **named.writers}
    roles |= _trained(recipe)
    # The files are read while the hub and the services respond.
    with ThreadPoolExecutor(max_workers=8) as pool:
        network = deep and not offline
        models = [
            pool.submit(availability, role, spec, network=network, keys=not offline) for role, spec in roles.items()
        ]
        hubs = [pool.submit(_hub_problem, name, source) for name, source in _sources(recipe)] if network else []
        _check_guiding_text(recipe, preflight)
        if here:
            _check_influence(recipe, preflight)
        _check_custom_parts(recipe, preflight)
        preflight.problems += method_problems(recipe)
        preflight.warnings += idle_optimizers(recipe.synthesis, recipe.optimizers)
        check_author(recipe, preflight)
        preflight.warnings += _same_judge(recipe)
        _check_stages(recipe, preflight)
        readable = _check_readers(recipe, preflight)
        if recipe.limits.cost_usd is not None:
            preflight.problems += price_problems(recipe)
        if deep:
            _check_data(recipe, preflight, readable)
        else:
            for name, source in _sources(recipe):
                if source.path is not None:
                    with _reported(preflight, name):
                        resolve(source.path)
        for future in hubs:
            problem = future.result()
            preflight.problems += [problem] if problem else []
        availabilities = [future.result() for future in models]
        if offline:
            preflight.unchecked = _on_hub_only(recipe) + [text for model in availabilities for text in model.unchecked]
        _add_models(availabilities, preflight, here)
        if deep:
            _check_shapes(recipe, availabilities, preflight, network)
    if network and ask:
        problems, notes = service_findings(recipe, availabilities)
        preflight.problems += problems
        preflight.warnings += notes
    preflight.problems = list(dict.fromkeys(preflight.problems))
    preflight.warnings = list(dict.fromkeys(preflight.warnings))
    return preflight


def checked(
    recipe: Recipe, root: Path, *, deep: bool = True, here: bool = True, offline: bool = False, ask: bool = True
) -> Preflight:
    """`validate`, and whether the disk has space for a run under `root`."""
    from optimsyn.machine.disk_need import disk_need
    from optimsyn.machine.forecast.wall_clock import expected_time
    from optimsyn.runs.folder import Run

    preflight = validate(recipe, deep=deep, here=here, offline=offline, ask=ask)
    blocked = next((place for place in (root, *root.parents) if place.exists() and not place.is_dir()), None)
    if blocked is not None:
        preflight.problems.append(f"{blocked}: is a file, so no run folder can be made in it; give another --root")
        return preflight
    folder = Run.folder_of(recipe, root)
    if folder.exists() and not folder.is_dir():
        preflight.problems.append(
            f"{folder}: is a file where the run's folder would be; move it or give another --root"
        )
        return preflight
    place = next((each for each in (folder, *folder.parents) if each.exists()), folder)
    if not os.access(place, os.W_OK | os.X_OK):
        preflight.problems.append(
            f"{place}: cannot be written to, so a run cannot keep its files in {folder}; fix the permissions of the "
            "folder or give another --root"
        )
    preflight.time = expected_time(recipe, root)
    preflight.disk = disk_need(recipe, folder, weight_bytes=max(preflight.gpu_bytes, preflight.main_bytes))
    preflight.problems += [preflight.disk.problem] if preflight.disk.problem is not None else []
    preflight.warnings += [preflight.disk.warning] if preflight.disk.warning is not None else []
    return preflight


def price_problems(recipe: Recipe, cap: str = "limits.cost_usd") -> list[str]:
    """Models with an unknown price, which a cap on money could not count."""
    problems = [price_problem(f"models.{role}", spec, cap) for role, spec in recipe.models.writers.items()]
    return [problem for problem in problems if problem is not None]


def _same_judge(recipe: Recipe) -> list[str]:
    judge, generator = recipe.models.judge, recipe.models.generator
    if judge is None or (judge.name, judge.plugin, judge.api_base) != (
        generator.name,
        generator.plugin,
        generator.api_base,
    ):
        return []
    return [
        f"models.judge is the generator itself, {judge.name}: a model finds few faults in its own pairs; name another "
        "one, or take its scores as hints"
    ]


def _sources(recipe: Recipe) -> list[tuple[str, Source]]:
    questions = recipe.questions
    sources = [("documents.source", recipe.documents.source), ("questions.validation", questions.validation)]
    sources += [("questions.test", questions.test)] if questions.test is not None else []
    return sources + ([(OTHER, recipe.reward.other_questions)] if recipe.reward.other_questions is not None else [])


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


def _check_data(recipe: Recipe, preflight: Preflight, readable: bool) -> None:
    from optimsyn.data.forms.trial import form_problems

    documents = _read_documents(recipe, preflight) if readable else None
    sets = _read_questions(recipe, documents.library if documents is not None else None, preflight)
    _check_reward_questions(recipe, sets, preflight)
    passages: list[Passage] = []
    if documents is not None and not documents.problems:
        passages = check_documents(recipe, documents.documents, preflight)
    with _reported(preflight):  # a custom form may fail on a question
        if sets is not None:
            if recipe.questions.form is not None:
                failing = form_problems(recipe.questions.form, sets.validation)
                preflight.problems += failing
                if failing:
                    return  # what follows would fail on the same
            check_lengths(recipe, sets, preflight)
            check_trained(recipe, sets, preflight)
            if not sets.problems:
                check_sets(recipe, sets, preflight)
        _add_forecast(recipe, passages, sets, preflight)


def _add_forecast(recipe: Recipe, passages: Sequence[Passage], sets: QuestionSets | None, preflight: Preflight) -> None:
    """Forecasts what the run will send, and warns where a cap is too low for it."""
    from optimsyn.machine.forecast.caps import cap_warnings
    from optimsyn.machine.forecast.lengths import measure
    from optimsyn.machine.forecast.requests import forecast
    from optimsyn.programs.task_shape import TaskShape

    shape = None
    if sets is not None and sets.validation:
        shape = TaskShape.of(sets.validation, show_form=recipe.questions.show_form)
    lengths = measure(recipe, passages, shape)
    preflight.forecast = forecast(recipe, lengths, len(passages))
    preflight.warnings += cap_warnings(recipe, preflight.forecast, lengths, len(passages))


def _read_documents(recipe: Recipe, preflight: Preflight) -> DocumentSet | None:
    """The documents, or None where reading them takes too long for a preflight."""
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
            # A custom reader may call a service with the user's keys, so it only runs when the run starts.
            custom = [file for file in slow if getattr(reader_for(file, readers), "importable", "") is None]
            convert = sum(file.stat().st_size for file in slow) <= _CONVERT_AT_ONCE and not custom
            if not convert:
                preflight.warnings.append(
                    f"{place}: {plural(len(slow), 'file')} {'needs' if len(slow) == 1 else 'need'} conversion (PDF and "
                    "the like, or a reader of your own), which is done when the run starts"
                )
        documents = read_documents(recipe.documents, convert=convert)
    except DataError as error:
        preflight.problems.append(str(under("documents.source", error)))
        return None
    preflight.problems += shortened(documents.problems, "documents")
    preflight.warnings += [f"documents: {documents.hint}"] if documents.hint else []
    preflight.warnings += documents.remarks
    return documents if convert else None


def _read_questions(recipe: Recipe, documents: list[Document] | None, preflight: Preflight) -> QuestionSets | None:
    """Both sets; where one is on the hub, checks the rows of the other and returns None."""
    config = recipe.questions
    sources = [(name, source) for name, source in _sources(recipe) if name.startswith("questions.")]
    complete = documents is not None
    if all(is_own_file(source) for _, source in sources):
        sets: QuestionSets | None = None
        with _reported(preflight, "questions"):
            sets = read_questions(config, documents, recipe.seed_of("data"), complete=complete)
            preflight.problems += shortened(sets.problems, "questions")
            preflight.warnings += shortened(sets.warnings, "questions")
        return sets
    for name, source in sources:
        if is_own_file(source):
            with _reported(preflight, name):
                problems, notes = check_questions(config, source, name, documents, complete=complete)
                preflight.problems += shortened(problems, name)
                preflight.warnings += notes
    return None


def _check_reward_questions(recipe: Recipe, sets: QuestionSets | None, preflight: Preflight) -> None:
    """Checks the questions that a control puts in the place of the validation questions."""
    from optimsyn.reward.permuted import permuted

    other = recipe.reward.other_questions
    if other is not None and is_own_file(other):
        with _reported(preflight, OTHER):
            preflight.problems += shortened(
                check_other_questions(recipe.questions, other, recipe.seed_of("data")), OTHER
            )
    if recipe.reward.source == "permuted" and sets is not None and sets.validation:
        with _reported(preflight, "questions.validation"):
            permuted(sets.validation, recipe.seed_of("data"))


def _check_guiding_text(recipe: Recipe, preflight: Preflight) -> None:
    words = recipe.guiding_text.split()
    if len(words) < 5:
        preflight.problems.append(
            f"guiding_text: {recipe.guiding_text.strip()!r} says too little; describe in a sentence or two what a good "
            "question of your field is"
        )
    elif len(words) > 400:
        preflight.warnings.append(
            f"guiding_text: {len(words)} words are sent with every request; a few sentences are enough"
        )


def _check_influence(recipe: Recipe, preflight: Preflight) -> None:
    """Checks `dtype: auto` for twins; the recipe itself checks an explicit dtype."""
    spec = recipe.models.target
    if recipe.influence.method != "twin" or spec.dtype != "auto":
        return
    from optimsyn.llm.local.loading import resolve_device, resolve_dtype

    try:
        dtype = str(resolve_dtype(spec.dtype, resolve_device(spec.device))).removeprefix("torch.")
    except ModelError:
        return  # a missing device is reported elsewhere
    if dtype != "float32":
        preflight.problems.append(f"{twin_problem(dtype)} (models.target.dtype: auto is {dtype} on this machine)")


def _check_stages(recipe: Recipe, preflight: Preflight) -> None:
    """Checks that the functions of custom stages exist and have a digest."""
    from optimsyn.runs.stage_functions import digests

    for stage in recipe.stages:
        with _reported(preflight):
            digests(recipe, stage)


def _check_readers(recipe: Recipe, preflight: Preflight) -> bool:
    """Whether all custom readers can be used."""
    if not recipe.documents.readers:
        return True
    from optimsyn.data.files.readers import named_readers

    before = len(preflight.problems)
    for pattern, reference in recipe.documents.readers.items():
        with _reported(preflight):
            named_readers({pattern: reference})
    return len(preflight.problems) == before


def _check_form(recipe: Recipe, preflight: Preflight) -> dict[str, Check]:
    """Checks the recipe's form of question, if it names one, and returns the form's checks."""
    from optimsyn.data.forms import form_named, identity_of
    from optimsyn.data.questions import check_columns
    from optimsyn.programs.checker import form_checks

    name, checks = recipe.questions.form, {}
    with _reported(preflight):
        if name is not None:
            check_columns(recipe.questions)
            identity_of(name, form_named(name))
            checks = form_checks([name])
    return checks


def _check_custom_parts(recipe: Recipe, preflight: Preflight) -> None:
    """Checks the custom parts that a recipe names, without importing torch for the light ones."""
    from optimsyn.programs.checker import check_problems

    preflight.warnings += shadowed()
    preflight.problems += check_problems(recipe.checks, _check_form(recipe, preflight))
    influence = recipe.influence
    if not influence.is_influence:
        import optimsyn.influence.factory  # noqa: F401 - registers what a scorer is

        with _reported(preflight):
            SCORERS.get(influence.scorer)
    if influence.has_own_estimator:
        from optimsyn.influence.estimators import estimator_of

        estimator = None
        with _reported(preflight):
            estimator = estimator_of(influence.estimator)
        needs = [f"method {influence.method}"] if influence.method in ("twin", "forward") else []
        needs += ["reward.given: judged"] if recipe.reward.given == "judged" else []
        if estimator is not None and not estimator.linear and needs:
            preflight.problems.append(
                f"influence.estimator: {influence.estimator} does not say that it is linear in a pair's gradient "
                f"(`linear = True`), which {needs[0]} needs; set influence.method to auto or exact, and reward.given "
                "to nothing"
            )


def _check_shapes(recipe: Recipe, models: Sequence[Availability], preflight: Preflight, network: bool) -> None:
    """Checks that local models take the adapters of the recipe; PyTorch is imported only where there is one."""
    named = {"target": recipe.models.target, **recipe.models.writers, **_trained(recipe)}
    for model in models:
        spec = named[model.role]
        if model.problems or not is_looked_at(recipe, model.role, spec, network=network):
            continue
        from optimsyn.machine.shapes import shape_problems

        preflight.problems += shape_problems(recipe, model.role, spec)


def _trained(recipe: Recipe) -> dict[str, TargetSpec]:
    """The role of the model that is fine-tuned, where that is another one than the target that scores."""
    return {} if recipe.fine_tune.target is None else {TRAINED: recipe.fine_tune.target}


def _at_once(models: Sequence[Availability]) -> list[Availability]:
    """The models of a run without the lighter one of the two targets, which are never loaded together."""
    targets = [model for model in models if model.role in ("target", TRAINED)]
    lighter = sorted(targets, key=lambda model: model.weight_bytes or 0)[:-1]
    return [model for model in models if model not in lighter]


@contextmanager
def _reported(preflight: Preflight, field: str = "") -> Iterator[None]:
    """Turns an error into a problem; recipe errors name their field themselves."""
    try:
        yield
    except RecipeError as error:
        preflight.problems.append(str(error))
    except DataError as error:
        preflight.problems.append(str(under(field, error) if field else error))


def _add_models(models: Sequence[Availability], preflight: Preflight, here: bool) -> None:
    for model in models:
        preflight.problems += model.problems
        preflight.warnings += model.warnings
    if not here:
        return
    models = _at_once(models)
    preflight.gpu_bytes, preflight.main_bytes = (memory_needed(models, gpu=gpu) for gpu in (True, False))
    preflight.problems += device_problems(models)
    problems, warnings = memory_problems(models)
    preflight.problems += problems
    preflight.warnings += warnings
