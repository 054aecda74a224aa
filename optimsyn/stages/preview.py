"""Preview: a few pairs with their rubrics and influence, and a look at the reward, before anything expensive.

The replies are those that the run's first draft begins with, so a later run does not ask for them again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from html import escape
from typing import TYPE_CHECKING, Any

from pydantic import Field

from optimsyn.base.counting import plural
from optimsyn.base.errors import StageError
from optimsyn.base.terminal.table import number
from optimsyn.data.forms import as_text, shown
from optimsyn.llm.reply import Usage, heard_replies
from optimsyn.programs.rubric import rubric_text
from optimsyn.report.cards import PairCard
from optimsyn.report.rendering import cut
from optimsyn.reward.look.record import REWARD_LOOK_FILE, RewardLook
from optimsyn.runs.results.stage_result import TableResult
from optimsyn.stages.prepare import run as prepare
from optimsyn.stages.shared import Tools

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

    from optimsyn.data.records import Pair, Question
    from optimsyn.influence.factory import Scorer
    from optimsyn.influence.scores import Scores
    from optimsyn.influence.simulated.scorer import BatchTraining
    from optimsyn.recipe.recipe import Recipe
    from optimsyn.reward.drafting import Draft
    from optimsyn.runs.folder import Run

# Enough questions that none dominates the direction, few enough to stay within a minute on a CPU.
PREVIEW_QUESTIONS = 12
PREVIEW_STEPS = 3
MOST_TRIES = 5

# Reports the begin and end of a step; takes its label and a function that describes its progress.
Step = Callable[..., AbstractContextManager[Any]]


def _silent(label: str, progress: Callable[[], str] = lambda: "") -> AbstractContextManager[Any]:
    return nullcontext()


class Preview(TableResult):
    """The pairs, a card each, and a look at the reward."""

    stage: str = "preview"
    cards: tuple[PairCard, ...] = Field((), description="The rows as cards.")
    usages: tuple[Usage, ...] = Field((), description="What each row cost when it was bought.")
    look: RewardLook | None = Field(description="Findings on the reward; None when the recipe has the look off.")

    def _repr_html_(self) -> str:
        cards = "".join(card._repr_html_() for card in self.cards)
        return f"<p><b>{escape(self.title)}</b></p>{cards}<p>{'<br>'.join(map(escape, self._sentences()))}</p>"

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        yield Text(self.title, style="bold")
        yield from self.cards
        yield from map(Text, self._sentences())

    def _sentences(self) -> list[str]:
        looked = [] if self.look is None else [f"A look at the reward: {self.look.sentence}"]
        return [*self.notes, *looked]


def preview(run: Run, pairs: int = 3, *, step: Step = _silent) -> Preview:
    """Writes and scores a few pairs of the first draft.

    Args:
        run: The run of the recipe; its replies are cached there.
        pairs: How many pairs to show; invalid ones are shown too, with the check that they failed.
        step: Called as each step begins (`optimsyn.execution.status_line.Steps.step`).

    Raises:
        StageError: No valid pair came out of five times as many tries.
        ServiceError: A language-model service failed for good.
    """
    with step("Reading documents and questions"):
        prepared = prepare(run)
        tools = Tools(run)
        validation = tools.reward_questions
    written = _write_drafts(tools, pairs, step)
    drafts = [draft for draft, _ in written]
    valid = [draft.pair for draft in drafts if draft.pair is not None and draft.valid]
    if not valid:
        failed = sorted({name for draft in drafts for name in draft.failed})
        raise StageError(f"preview: none of {plural(len(drafts), 'pair')} is valid (failed: {', '.join(failed)})")
    note = "Influence by the run's own warmed-up target."
    with step(f"Loading the target {run.recipe.models.target.name}"):
        target = tools.target
    if not run.done("warm_up"):
        with step(f"Warming the target up on {plural(len(valid), 'pair')}, {plural(PREVIEW_STEPS, 'step')}"):
            lr = run.recipe.warm_up.lr or run.recipe.fine_tune.lr
            target.warm_up(valid, steps=PREVIEW_STEPS, batch_size=2, lr=lr, seed=run.recipe.seed_of("data"))
        note = (
            f"A first impression: the target was warmed up on these pairs alone for {PREVIEW_STEPS} steps, and the "
            f"direction comes from {min(PREVIEW_QUESTIONS, len(validation))} validation questions."
        )
        questions = _spread(validation, PREVIEW_QUESTIONS)
        training = tools.training_with(valid) if run.recipe.influence.estimator == "simulated" else None
        with step(f"Taking the gradients of {plural(len(questions), 'validation question')}"):
            scorer = tools.scorer_over(questions, training=training)
    else:
        with step(f"Taking the gradients of {plural(len(validation), 'validation question')}, where they are not kept"):
            questions, scorer, training = validation, tools.scorer, tools.batch_training
    with step(f"Scoring {plural(len(valid), 'pair')}, and a look at the reward"):
        scores = scorer.score(valid)
        look = _look(tools, scorer, valid, questions, _Scored(scores, training))
    totals = iter(float(value) for value in scores.total)
    influences = [next(totals) if draft.valid else None for draft in drafts]
    rows = [
        (
            draft.passage.title or draft.passage.id,
            rubric_text(draft.rubric) if draft.rubric is not None else None,
            as_text(draft.pair) if draft.pair is not None else None,
            "valid" if draft.valid else "; ".join(draft.remarks),
            influence,
        )
        for draft, influence in zip(drafts, influences, strict=True)
    ]
    columns = ("passage", "rubric", "pair", "checks", "influence")
    bought = f"In all: {_spent(sum((usage for _, usage in written), Usage()))}, by the prices when it was bought."
    return Preview(
        heading=f"Preview of {run.recipe.name}",
        head=columns,
        body=tuple(rows),
        cards=tuple(
            _card(f"{place + 1} of {len(written)}: {rows[place][0]}", draft, influences[place], usage)
            for place, (draft, usage) in enumerate(written)
        ),
        usages=tuple(usage for _, usage in written),
        notes=(note, _read_so(run.recipe), *_how_far(run.recipe), bought, *prepared.notes),
        look=look,
    )


_EXCERPT = 420


def _read_so(recipe: Recipe) -> str:
    return (
        f"Influence above 0: a training step on the pair would {recipe.influence.aim}. Below 0: it does the opposite."
    )


def _how_far(recipe: Recipe) -> list[str]:
    """What the pairs do not show, and who wrote them where that is the embedded model."""
    judge = recipe.models.judge
    unjudged = "" if judge is None else f" beyond what {judge.name} judged"
    said = [f"The checks do not test whether an answer is true{unjudged}: read the pairs yourself."]
    if recipe.models.generator.provider == "embedded":
        said.insert(
            0,
            "The embedded model of 270 million parameters wrote these pairs, which shows how a run works, not how good "
            "pairs can be; name a larger model in models.generator.",
        )
    return said


def _card(title: str, draft: Draft, influence: float | None, usage: Usage) -> PairCard:
    """A draft as a card; what could not be read is left out, and its checks say why."""
    parts = [("Passage", cut(draft.passage.text, _EXCERPT))]
    if draft.rubric is not None:
        parts.append(("Rubric", rubric_text(draft.rubric)))
    if draft.pair is not None:
        (question, *below), answer = shown(draft.pair)
        parts += [("Question", "\n- ".join((question, *below))), ("Answer", answer)]
        if draft.pair.quote:
            parts.append(("Rests on", draft.pair.quote))
    remarks = "\n".join(f"failed {remark.replace('_', ' ', 1)}" for remark in draft.remarks)
    parts += [("Checks", "passed every check" if draft.valid else remarks), ("Cost", _spent(usage))]
    outcome = "not valid" if influence is None else f"valid, influence {number(influence, sign=True)}"
    return PairCard(title, outcome, tuple(parts))


def _spent(usage: Usage) -> str:
    replies = f"{plural(usage.replies, 'reply', 'replies')}, {plural(usage.tokens, 'token')}"
    free = usage.cost_usd == 0 and not usage.unpriced
    return f"{replies}, {'nothing to pay' if free else usage.usd(4)}"


def _write_drafts(tools: Tools, pairs: int, step: Step) -> list[tuple[Draft, Usage]]:
    """First drafts, each with its usage, until `pairs` of them are valid, or too many have been tried."""
    from optimsyn.llm.language_model import run_sync

    models = tools.recipe.models
    by = " and ".join(dict.fromkeys((models.rubric.name, models.generator.name)))
    tries = pairs
    while True:
        label = f"Writing {plural(tries, 'rubric')} and pairs with {by}"
        count = _Count(2 * tries)
        with step(label, count.text):
            drafts = run_sync(_written(tools, tries, count.add))
        valid = sum(draft.valid for draft, _ in drafts)
        if valid >= pairs or tries >= MOST_TRIES * pairs:
            return drafts
        tries += pairs


async def _written(tools: Tools, tries: int, report: Callable[[], None]) -> list[tuple[Draft, Usage]]:
    from optimsyn.stages.warm_up import write_first_draft

    async def write(place: int) -> tuple[Draft, Usage]:
        with heard_replies() as own:
            (draft,) = await write_first_draft(tools, 1, report, start=place)
        return draft, Usage.of(own)

    return list(await asyncio.gather(*map(write, range(tries))))


class _Count:
    """Requests that were answered."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0

    def add(self) -> None:
        self._done += 1

    def text(self) -> str:
        return f"{self._done} of {self._total} requests"


@dataclass(frozen=True)
class _Scored:
    """Influence of the pairs, and the training that the estimator `simulated` simulated."""

    scores: Scores
    training: BatchTraining | None


def _look(
    tools: Tools, scorer: Scorer, pairs: list[Pair], questions: list[Question], scored: _Scored
) -> RewardLook | None:
    """The look of the run's warm-up if it has one, else a cheap one at these pairs, without any training."""
    from optimsyn.reward.look.measure import ScorerSetup, look_at_reward
    from optimsyn.reward.look.options import LookOptions

    run = tools.run
    path = run.folder / "warm_up" / REWARD_LOOK_FILE
    if run.done("warm_up") and path.is_file():
        return RewardLook.load(path)
    if run.recipe.reward.look.pairs == 0:
        return None
    return look_at_reward(
        ScorerSetup(scorer, tools.target, questions, run.recipe.influence, scored.training),
        pairs,
        replace(LookOptions.of(run.recipe), random_subsets=0),
        scores=scored.scores,
        trained_on=() if run.done("warm_up") else {pair.id for pair in pairs},
    )


def _spread(questions: list[Question], count: int) -> list[Question]:
    """Up to `count` questions, spread evenly over the list, so that every subtask counts."""
    if len(questions) <= count:
        return questions
    return [questions[index * len(questions) // count] for index in range(count)]
