"""Preview: a few pairs with their rubrics and influence, and a look at the reward, before anything expensive.

The replies are those that the run's first draft begins with, so a later run does not ask for them again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from optimsyn.data.reward_look import REWARD_LOOK_FILE, RewardLook
from optimsyn.errors import StageError
from optimsyn.programs.rubric import rubric_text
from optimsyn.stages.prepare import run as prepare
from optimsyn.stages.result import StageResult
from optimsyn.stages.tools import Tools

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

    from optimsyn.data.records import Pair, Question
    from optimsyn.influence.scorer import Scores
    from optimsyn.influence.scoring import Scorer
    from optimsyn.influence.simulated_scorer import BatchTraining
    from optimsyn.runs.folder import Run

# Enough questions for a direction that is not one question's own, few enough to stay within a minute on a CPU.
PREVIEW_QUESTIONS = 12
PREVIEW_STEPS = 3
MOST_TRIES = 5


@dataclass(frozen=True)
class Preview(StageResult):
    """The pairs, and below them a look at the reward.

    Attributes:
        look: What the reward was found to be; None when the recipe wants no look.
    """

    look: RewardLook | None = None

    def _repr_html_(self) -> str:
        return super()._repr_html_() + (self.look._repr_html_() if self.look is not None else "")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield from super().__rich_console__(console, options)
        if self.look is not None:
            yield self.look


def preview(run: Run, pairs: int = 3) -> Preview:
    """Writes and scores a few pairs of the first draft.

    Args:
        run: The run of the recipe; its replies are cached there.
        pairs: How many pairs to show; invalid ones are shown too, with the check that they failed.

    Raises:
        StageError: No valid pair came out of five times as many tries.
        ServiceError: A language-model service failed for good.
    """
    from optimsyn.influence.scoring import build_scorer
    from optimsyn.models.language_model import run_sync
    from optimsyn.stages.warm_up import write_first_draft

    prepared = prepare(run)
    tools = Tools(run)
    wanted = pairs
    while True:
        drafts = run_sync(write_first_draft(tools, wanted))
        valid = [draft.pair for draft in drafts if draft.pair is not None and not draft.failed]
        if len(valid) >= pairs or wanted >= MOST_TRIES * pairs:
            break
        wanted += pairs
    if not valid:
        failed = sorted({name for draft in drafts for name in draft.failed})
        raise StageError(f"preview: none of {wanted} pairs is valid (failed: {', '.join(failed)})")
    note = "Influence by the run's own warmed-up target."
    if not run.done("warm_up"):
        lr = run.recipe.warm_up.lr or run.recipe.fine_tune.lr
        tools.target.warm_up(valid, steps=PREVIEW_STEPS, batch_size=2, lr=lr, seed=run.recipe.seed)
        note = (
            f"A first impression: the target was warmed up on these pairs alone for {PREVIEW_STEPS} steps, and the "
            f"direction comes from {min(PREVIEW_QUESTIONS, len(tools.validation))} validation questions."
        )
        questions = _spread(tools.validation, PREVIEW_QUESTIONS)
        training = tools.training_with(valid) if run.recipe.influence.estimator == "simulated" else None
        scorer = build_scorer(tools.target, questions, run.recipe.influence, training=training)
    else:
        questions, scorer, training = tools.validation, tools.scorer, tools.batch_training
    scores = scorer.score(valid)
    look = _look(run, tools, scorer, valid, questions, scores, training)
    totals = iter(float(value) for value in scores.total)
    rows = []
    for draft in drafts:
        good = draft.pair is not None and not draft.failed
        rows.append(
            (
                draft.passage.title or draft.passage.id,
                rubric_text(draft.rubric) if draft.rubric is not None else None,
                f"Q: {draft.pair.question}\nA: {draft.pair.answer}" if draft.pair is not None else None,
                "valid" if good else "; ".join(draft.reasons),
                next(totals) if good else None,
            )
        )
    columns = ("passage", "rubric", "pair", "checks", "influence")
    return Preview("preview", f"Preview of {run.recipe.name}", columns, rows, {}, [note, *prepared.notes], look)


def _look(
    run: Run,
    tools: Tools,
    scorer: Scorer,
    pairs: list[Pair],
    questions: list[Question],
    scores: Scores,
    training: BatchTraining | None,
) -> RewardLook | None:
    """The run's own look where it has one, else a cheap one at these pairs: nothing is trained."""
    from optimsyn.influence.reward_look import look_at_reward

    kept = run.folder / "warm_up" / REWARD_LOOK_FILE
    if run.done("warm_up") and kept.is_file():
        return RewardLook.load(kept)
    wanted = run.recipe.reward.look.pairs
    if wanted == 0:
        return None
    return look_at_reward(
        scorer,
        tools.target,
        pairs,
        questions,
        run.recipe.influence,
        training=training,
        scores=scores,
        trained_on=() if run.done("warm_up") else {pair.id for pair in pairs},
        most=wanted,
        random_subsets=0,
        seed=run.recipe.seed,
    )


def _spread(questions: list[Question], count: int) -> list[Question]:
    """Up to `count` questions, evenly from the whole list, so that every subtask has a say."""
    if len(questions) <= count:
        return questions
    return [questions[index * len(questions) // count] for index in range(count)]
