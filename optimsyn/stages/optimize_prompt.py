"""Stage 3, prompt optimisation: a method rewrites the guiding text, driven by the influence reward."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from optimsyn.base.extensions import PROMPT_OPTIMIZERS
from optimsyn.base.files import write_text
from optimsyn.runs.results.built_in import OptimizePromptResult
from optimsyn.runs.results.measured import loads_of
from optimsyn.stages.candidates import author_of, forget_untrained
from optimsyn.stages.judged_by import passed_over
from optimsyn.stages.shared import GUIDING_TEXT, Tools

if TYPE_CHECKING:
    from optimsyn.llm.language_model import LanguageModel
    from optimsyn.optimize.prompt import PromptResult
    from optimsyn.runs.folder import Run
    from optimsyn.runs.stage_handle import StageHandle


def run(run: Run) -> OptimizePromptResult:
    """Searches for a better guiding text; the recipe's own stays when nothing beats it.

    Raises:
        ServiceError: A language-model service failed for good; everything judged is kept and running again continues.
    """
    with run.stage("optimize_prompt") as stage:
        if stage.finished:
            return OptimizePromptResult.load(run)
        if not run.recipe.optimizers.prompt.enabled:
            return OptimizePromptResult(enabled=False).save(run)
        return _optimize(run, Tools(run, stage), stage)


def _optimize(run: Run, tools: Tools, stage: StageHandle) -> OptimizePromptResult:
    from optimsyn.base.event_loops import run_sync
    from optimsyn.optimize.methods import method_facts
    from optimsyn.optimize.prompt import optimize_guiding_text
    from optimsyn.optimize.prompt_task import PromptTask

    recipe = run.recipe
    config = recipe.optimizers.prompt
    # The search ends before it could pass its budget, often a little earlier; an author seldom uses all its drafts.
    most = config.metric_calls * (recipe.author.drafts if config.for_author else 1)
    reward = tools.reward("optimize_prompt", lambda now, judged: stage.progress(judged, most, "judged pairs"))
    stage.progress(0, most, "judged pairs")
    stage.note(optimizer=method_facts(PROMPT_OPTIMIZERS, config.method))
    search = optimize_guiding_text(
        PromptTask(
            config,
            tools.rubric_writer(recipe.guiding_text),
            reward,
            tools.passages_for("optimize"),
            tools.shape,
            recipe.seed_of("policy"),
            run.path("optimize_prompt"),
            reflection_of(tools),
            author_of(tools, reward) if config.for_author else None,
        )
    )
    # What comes next needs the memory.
    run_sync(forget_untrained(tools))
    write_text(run.path("optimize_prompt", GUIDING_TEXT), search.guiding_text + "\n")
    return OptimizePromptResult(
        enabled=True,
        method=config.method,
        busy=loads_of(tools.meter),
        notes=(*search.notes, *passed_over(reward)),
        **found_by(search, recipe.guiding_text),
    ).save(run)


def reflection_of(tools: Tools) -> LanguageModel | None:
    """The recipe's `models.reflection`, which proposes texts; None where it names none."""
    from optimsyn.llm.factory import load_language_model

    spec = tools.recipe.models.reflection
    if spec is None:
        return None
    return load_language_model(spec, tools.run.replies, budget=tools.budget, field="models.reflection")


def found_by(search: PromptResult, start_text: str) -> dict[str, Any]:
    """The fields of a `TextSearch` after a search from a text."""
    return {
        "start_score": search.start_score,
        "score": search.score,
        "start_text": start_text,
        "text": search.guiding_text,
        "candidates": search.candidates,
        "judged": search.judged,
        "changed": search.guiding_text != start_text.strip(),
        "ended": search.ended,
        "confirmation": search.confirmation,
    }
