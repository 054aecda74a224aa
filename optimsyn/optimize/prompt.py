"""Prompt optimisation: the recipe's method searches for a better guiding text, driven by the reward.

Resuming is replaying. Rubric replies come from the run's reply cache and judgements from its ledger, so a killed search
restarts from the first candidate, quickly gets all earlier answers from the caches, and continues exactly where it was.
An optimiser's own saved state loses its random generators and takes another path than an undisturbed run.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from optimsyn.base.errors import ModelError
from optimsyn.base.extensions import PROMPT_OPTIMIZERS
from optimsyn.base.files import write_json, write_jsonl
from optimsyn.base.identity import Identity
from optimsyn.base.secrets.redaction import CleanWriter
from optimsyn.optimize.confirmation import Confirmation, confirm, said_of
from optimsyn.optimize.methods import method_identity, prompt_method
from optimsyn.optimize.prompt_task import PromptTask
from optimsyn.reward.judgements import digest

TRAJECTORIES = "author.jsonl"
"""What the author did, by guiding text, passage and seed."""


class PromptResult(BaseModel):
    """The result of a search.

    Attributes:
        method: The name of the method in the recipe.
        guiding_text: The best text; the start text if none is better.
        start_score: Mean reward of the start text over the compared passages.
        score: Mean reward of the chosen text over the same passages. It is the best of several noisy means, so expect
            somewhat less on other passages, as in `confirmation`.
        candidates: Number of texts tried, including the start text.
        judged: Number of distinct pairs judged.
        history: The rows of `history.jsonl`.
        ended: Why it ended, a key of `ENDINGS`; None: its method did not say.
        confirmation: The winner on passages that chose nothing; None: there was no winner, or no such passages.
        notes: Sentences on both.
    """

    model_config = ConfigDict(frozen=True)

    method: str
    guiding_text: str
    start_score: float
    score: float
    candidates: int
    judged: int
    history: list[dict[str, Any]]
    ended: str | None = None
    confirmation: Confirmation | None = None
    notes: tuple[str, ...] = ()


def optimize_guiding_text(task: PromptTask) -> PromptResult:
    """Searches for a guiding text whose rubrics lead to pairs of higher reward, by the recipe's method.

    Every candidate is compared on the same passages with the same sampling seeds. The start text is judged first; the
    method's text replaces it only if its mean is strictly better, also on passages that chose nothing where the run and
    the budget have some (`optimsyn.optimize.confirmation`).

    Args:
        task: Its folder receives `history.jsonl` (a row for each candidate), `search.log` (the method's output),
            `result.json`, and `author.jsonl` (what the author did) where the author's text is improved.

    Raises:
        RecipeError: There is no such method.
        ServiceError: A service failed for good, also inside a thread of DSPy.
        OptimsynError: Another error of a request (a reached budget, a pair that cannot be scored), or the method asked
            for more than its budget.
    """
    name = task.config.method
    method = prompt_method(name)
    own = method_identity(PROMPT_OPTIMIZERS, name)
    inputs = {
        "the guiding text": task.start,
        "optimizers.prompt": task.config.model_dump(mode="json"),
        "the passages": [(passage.id, passage.text) for passage in task.comparison],
        "the seed": task.seed,
    }
    if task.held:
        inputs["the held passages"] = [(each.id, each.text) for each in task.held]
        inputs["the passages to learn from"] = [(each.id, each.text) for each in task.learning]
    if task.author is not None:
        inputs["the author"] = [task.author.config.model_dump(mode="json"), task.author.model.name]
    if task.policy is not None:
        inputs["the policy"] = task.policy.identity
    if own:
        inputs["the source of optimizers.prompt.method"] = own
        inputs["the passages to train on"] = [(each.id, each.text) for each in task.training]
    identity = Identity.of(inputs, digest)
    finished = _finished(task.folder, identity)
    if finished is not None:
        return finished
    with _quiet(task.folder / "search.log"):
        try:
            start = best = task.compare(task.start)
            text = method(task)
            if not isinstance(text, str) or not text.strip():
                raise ModelError(f"optimizers.prompt.method {name!r} returned {text!r}; it must return a guiding text")
            if task.program.under(text).guiding_text != start.guiding_text:
                chosen = task.compare(text)
                best = chosen if chosen.score > start.score else start
            task.close()
            winner = best.guiding_text
            confirmation = None if best is start else confirm(task, winner)
            if confirmation is not None and not confirmation.confirmed:
                best = start
        except Exception as error:  # noqa: BLE001 - raised below, unless an earlier error caused it
            task.watch.remember(error)
    task.watch.raise_first()
    if task.author is not None:
        done = task.author.trajectories
        write_jsonl(task.folder / TRAJECTORIES, [done[place] for place in sorted(done)])
    result = PromptResult(
        method=name,
        guiding_text=best.guiding_text,
        start_score=start.score,
        score=best.score,
        candidates=len(task.candidates),
        judged=task.judged,
        history=task.history.rows,
        ended=task.ended,
        confirmation=confirmation,
        notes=said_of(task, winner, confirmation),
    )
    write_json(task.folder / "result.json", {**identity.saved(), **result.model_dump(mode="json")})
    return result


def _finished(folder: Path, identity: Identity) -> PromptResult | None:
    path = folder / "result.json"
    if not path.is_file():
        return None
    before, result = Identity.parted(json.loads(path.read_text(encoding="utf-8")))
    return PromptResult.model_validate(result) if identity.same_as(before) else None


@contextlib.contextmanager
def _quiet(path: Path) -> Iterator[None]:
    """Sends the progress bars and log lines of a method and of DSPy to a file instead of the notebook."""
    path.parent.mkdir(parents=True, exist_ok=True)
    loggers = [logging.getLogger(name) for name in ("dspy", "optuna")]
    with path.open("w", encoding="utf-8") as log:
        file = CleanWriter(log)
        handler = logging.StreamHandler(file)
        before = [(logger, logger.handlers, logger.propagate) for logger in loggers]
        for logger in loggers:
            logger.handlers, logger.propagate = [handler], False
        try:
            with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
                yield
        finally:
            for logger, handlers, propagates in before:
                logger.handlers, logger.propagate = handlers, propagates
