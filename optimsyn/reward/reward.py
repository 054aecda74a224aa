"""The reward: one object with two interfaces, a TRL reward function and a DSPy metric with feedback.

    R = Valid * IF - penalty * (1 - Valid)

IF is un-normalised: GRPO normalises within its group. An invalid pair is never scored. A pair that could not be judged
because a service failed is not invalid: the error is raised, nothing is written, and running again continues. A pair
whose reply was cut, refused, a tool call or empty is not judged, and is in no group, no mean and no ledger.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimsyn.base.errors import DataError, OptimsynError
from optimsyn.base.event_loops import start
from optimsyn.base.meter import Meter
from optimsyn.data.records import Pair
from optimsyn.reward.comparisons import GivenOut
from optimsyn.reward.drafting import Ask, Draft, Drafter, RubricRequest
from optimsyn.reward.garbage import Garbage
from optimsyn.reward.judgements import (
    Judgement,
    Ledger,
    Moving,
    content_key,
    digest,
    stated_fingerprint,
    verdict,
    windows,
)
from optimsyn.reward.pipeline import Once, in_order
from optimsyn.reward.scores import SCORE_FIELDS, score_fields
from optimsyn.reward.trl import log_judgements, requests_of

if TYPE_CHECKING:
    import dspy

    from optimsyn.influence.factory import Scorer
    from optimsyn.llm.outcome_log import OutcomeLog
    from optimsyn.programs.checker import Checker
    from optimsyn.programs.pair import PairWriter

_log = logging.getLogger(__name__)

__all__ = ["GARBAGE_LIMIT", "InfluenceReward", "Judgement", "RewardOptions", "RubricRequest"]

TARGET = "target"  # in the meter of a stage
# So many unreadable pair replies in a row mean a broken generator.
GARBAGE_LIMIT = 20
# Requests scored and written to the ledger together: few, so that the generator has others to write meanwhile, and
# enough for one batch. Split before looking into the ledger, so that a resumed run scores the same pairs in one batch
# as an uninterrupted one.
WINDOW = 8
# The same for a moving scorer, which learns from each window what the next one no longer needs.
MOVING_WINDOW = 32

_OF_REQUEST = ("kind", "seed", "variant", "guiding_text", "rubric_model", "rubric")


@dataclass(frozen=True)
class RewardOptions:
    """Options of a reward that depend on the caller.

    Attributes:
        source: The caller's name, for the ledger.
        rewards: The recipe's `reward.source`, for the ledger.
        garbage_limit: So many unreadable replies in a row stop the run; 0: no limit.
        report: Callback after each window with its requests, and the different ones judged so far.
        neutral: Score of an unjudged request for callers that need a number (DSPy's optimisers).
        outcomes: Log for the outcomes of the policy's completions.
        window: Requests that are scored together.
        ahead: Requests under way at once, at least; twice the window in any case.
        meter: Counts when the target scores.
    """

    source: str = ""
    rewards: str = "influence"
    garbage_limit: int = GARBAGE_LIMIT
    report: Callable[[int, int], None] | None = None
    neutral: float = 0.0
    outcomes: OutcomeLog | None = None
    window: int = WINDOW
    ahead: int = 0
    meter: Meter = field(default_factory=Meter)


DEFAULTS = RewardOptions()


class InfluenceReward:
    """Writes pairs under rubrics, checks them and scores their influence on the validation questions.

    Args:
        scorer: Computes the influence; called with all new valid pairs of a window at once.
        pair_writer: Writes a pair under a rubric; raises ReplyError for a reply without one.
        checks: Decides validity. Each of these three has a `fingerprint` of what its results depend on.
        invalid_penalty: The reward of an invalid pair is minus this.
        ledger: File that every judgement is appended to and that answers repeated requests, also after a restart. Rows
            of another `identity` stay in it and are ignored.
        options: Options that depend on the caller.

    Attributes:
        drafter: Writes and checks the pairs.
        identity: Digest of scorer, checks, pair writer and penalty; for a moving scorer, of its origin.
        passed_over: Rows of the ledger with another identity. They are not used, except the influence of equal content
            by the same scorer.

    Raises:
        TypeError: A scorer, pair writer or checker has no fingerprint.

    Example:
        >>> reward = InfluenceReward(scorer, pair_writer, checks)                    # doctest: +SKIP
        >>> GRPOTrainer(model, reward_funcs=reward, ...)                             # doctest: +SKIP
        >>> dspy.GEPA(metric=reward.metric, ...)                                     # doctest: +SKIP
    """

    # TRL names its columns and metrics after the reward function.
    __name__ = "influence"

    def __init__(
        self,
        scorer: Scorer,
        pair_writer: PairWriter,
        checks: Checker,
        *,
        invalid_penalty: float = 0.1,
        ledger: Path | None = None,
        options: RewardOptions = DEFAULTS,
    ) -> None:
        self.scorer = scorer
        self.pair_writer = pair_writer
        self.drafter = Drafter(pair_writer, checks)
        self.invalid_penalty = invalid_penalty
        self.options = options
        self.source = options.source
        self.generator = pair_writer.model.name
        self._scorer_id = stated_fingerprint(scorer, "scorer")
        self._checks_id = stated_fingerprint(checks, "checks")
        writer_id = stated_fingerprint(pair_writer, "pair_writer")
        self._moving = scorer if isinstance(scorer, Moving) else None
        origin = self._scorer_id if self._moving is None else self._moving.origin
        self.identity = digest([writer_id, origin, self._checks_id, repr(invalid_penalty)])
        self._ledger = Ledger(ledger)
        self._given = GivenOut()
        self._broken: DataError | None = None
        self._failed_ahead: OptimsynError | None = None
        self._unjudged: dict[str, Judgement] = {}
        self._garbage = Garbage(pair_writer.model, options.garbage_limit)
        self._lock = threading.Lock()
        self._writing: Once[Draft] = Once(self._lock, lambda key: self._judged(key) is not None)
        self._scorer_lock = threading.Lock()
        if self._moving is not None:
            remembered = getattr(scorer, "remembers", None)
            self._moving.judged(self._ledger.valid_pairs(self.identity, self._scorer_id, remembered))
        judged = self._ledger.count()
        self.passed_over = judged - self._ledger.count(self.identity)
        if self.passed_over:
            _log.warning(
                "%s: %d of %d judgements were made by another scorer, other checks, another generator or under another "
                "penalty; they stay in the file and are not used",
                ledger,
                self.passed_over,
                judged,
            )

    @property
    def answered(self) -> list[Judgement]:
        """All different judgements of this object, without unjudged ones, in an order independent of timing."""
        with self._lock:
            return [self._known(key) for key in self._given.in_order()]

    @property
    def different(self) -> int:
        """The number of different judgements."""
        return len(self._given)

    async def judge(self, requests: Sequence[RubricRequest], ask: Ask | None = None) -> list[Judgement]:
        """Judges requests, in order, as `stream` does."""
        return [row async for row in self.stream(requests, ask)]

    async def stream(self, requests: Sequence[RubricRequest], ask: Ask | None = None) -> AsyncIterator[Judgement]:
        """Judges requests, in order; repeated ones are answered from the ledger.

        While a window of pairs is scored, the next ones are written. Windows are cut by the order of the requests and
        scored one after the other: scores and ledger do not depend on which reply comes first.

        Args:
            requests: With their rubrics, or without one.
            ask: Adds the rubric to requests that have none, also no error; None: these are pairs without a rubric.

        Raises:
            ServiceError: A service failed for good, or the generator returns nothing but unreadable replies.
            BudgetError: The recipe's cap was reached.
            ModelError: A pair cannot be scored, or its influence is not a finite number.
            DataError: A reply or a judgement cannot be saved (a full disk, for example).
        """
        failures: list[BaseException] = []
        asked: set[str] = set()
        failed, self._failed_ahead = self._failed_ahead, None
        if failed is not None:
            raise failed

        async def prepare(request: RubricRequest) -> tuple[str, Draft | None]:
            # What has begun is paid for and ends; nothing else is begun after an error.
            try:
                if ask is not None and request.rubric is None and request.error is None and not failures:
                    request = await ask(request)
                if failures:
                    raise failures[0]
                key = self._key(request)
                asked.add(key)
                return key, await self._draft(key, request)
            except BaseException as error:
                failures.append(error)
                raise

        moving = self._moving is not None
        size = MOVING_WINDOW if moving else self.options.window
        try:
            async with aclosing(in_order(requests, prepare, max(self.options.ahead, 2 * size))) as drafts:
                for window in windows(requests, size, whole_passages=moving):
                    ready = [await anext(drafts) for _ in window]
                    rows = await asyncio.to_thread(self._commit, ready)
                    if self.options.report is not None:
                        self.options.report(len(rows), len(self._given))
                    for row in rows:
                        yield row
        finally:
            with self._lock:
                self._writing.forget(asked)

    def write_ahead(self, requests: Sequence[RubricRequest]) -> None:
        """Begins to write the pairs of requests that will be judged soon, and returns at once.

        Judging then waits for these pairs instead of writing them, and raises what went wrong here.
        """

        async def draft(request: RubricRequest) -> None:
            try:
                await self._draft(self._key(request), request)
            except OptimsynError as error:
                self._failed_ahead = self._failed_ahead or error

        for request in requests:
            start(draft(request))

    async def _draft(self, key: str, request: RubricRequest) -> Draft | None:
        """The pair of a request, written once for all that ask for it at the same time; None if it is judged."""

        async def write() -> Draft:
            if request.error is None and self._broken is not None:
                raise self._broken
            draft = await self.drafter.write(request)
            self._garbage.note(draft)
            return draft

        return await self._writing.do(key, write)

    def _commit(self, window: Sequence[tuple[str, Draft | None]]) -> list[Judgement]:
        """Checks, scores and keeps a window, and returns its judgements; one window at a time."""
        with self._scorer_lock:
            with self._lock:
                new = {key: draft for key, draft in window if draft is not None and self._judged(key) is None}
            fresh = self._check_and_score(new)
            with self._lock:
                self._keep(fresh)
                answers = [self._known(key) for key, _ in window]
                self._writing.forget(row.key for row in answers)
                for row in answers:
                    if row.unjudged is None:
                        self._given.add(row)
        return answers

    def _check_and_score(self, new: Mapping[str, Draft]) -> list[Judgement]:
        drafts = {key: self.drafter.check(draft) for key, draft in new.items()}
        scores = self._score([draft.pair for draft in drafts.values() if draft.pair is not None and draft.valid])
        rows = []
        for key, draft in drafts.items():
            fields: dict[str, Any] = {"valid": draft.valid, "redrafts": draft.redrafts}
            if draft.pair is not None and draft.valid:
                score = scores[content_key(draft.pair)]
                fields |= {**score, "reward": score["influence"]}
            else:
                reward = 0.0 if draft.unjudged is not None else -self.invalid_penalty
                fields |= {"failed": draft.failed, "reasons": dict(draft.reasons), "reward": reward}
                fields["unjudged"] = draft.unjudged
            if draft.opinion is not None:
                fields |= {"judge": draft.opinion.scores, "judge_problem": draft.opinion.problem}
            row = Judgement(
                key=key,
                source=self.source,
                scorer=self._scorer_id,
                checks=self._checks_id,
                identity=self.identity,
                reward_source=self.options.rewards,
                passage_id=draft.passage.id,
                pair=draft.pair,
                **{name: getattr(draft.request, name) for name in _OF_REQUEST},
                **fields,
            )
            rows.append(row.model_copy(update={"feedback": verdict(row)}))
        return rows

    def _score(self, pairs: Sequence[Pair]) -> dict[str, dict[str, Any]]:
        """Score fields by content; equal content is scored once."""
        scores: dict[str, dict[str, Any]] = {}
        # A score depends only on the scorer and the content, for a moving scorer also on the time.
        if self._moving is None:
            with self._lock:
                for key in map(content_key, pairs):
                    if (judged := self._ledger.scored(key, self._scorer_id)) is not None:
                        scores[key] = {name: getattr(judged, name) for name in SCORE_FIELDS}
        new = {key: pair for pair in pairs if (key := content_key(pair)) not in scores}
        if not new:
            return scores
        with self.options.meter.at_work(TARGET):
            fresh = score_fields(self.scorer, list(new.values()))
        scores.update(zip(new, fresh, strict=True))
        return scores

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float | None]:
        """The reward function for TRL's GRPOTrainer.

        The columns `passage` (a Passage as JSON), `kind`, `guiding_text`, `rubric_model` and `seed` are those of
        `optimsyn.optimize.policy`, which gives all rubrics of a group one seed.

        Returns:
            The rewards; None for an unjudged completion, which TRL leaves out of the group.

        Raises:
            ServiceError: TRL passes it on; training stops and resumes from its last step.
        """
        from optimsyn.llm.language_model import run_sync

        judgements = run_sync(self.judge(requests_of(completions, columns, self.source, self.options.outcomes)))
        log_judgements(judgements, columns)
        return [None if judgement.unjudged is not None else judgement.reward for judgement in judgements]

    def metric(
        self,
        gold: dspy.Example,
        pred: dspy.Prediction,
        trace: Any = None,
        pred_name: str | None = None,
        pred_trace: Any = None,
    ) -> dspy.Prediction:
        """The metric for DSPy: a score and a sentence of feedback, always the same for the same rubric.

        Args:
            gold: `passage`, `kind` and `seed`.
            pred: `rubric`, or `error` and `unjudged` for a reply without one; `guiding_text` and `rubric_model`.
            trace: Not used; DSPy passes it.
            pred_name: Not used; DSPy passes it.
            pred_trace: Not used; DSPy passes it.
        """
        import dspy

        from optimsyn.llm.language_model import run_sync

        request = RubricRequest.predicted(gold, pred, self.source)
        judgement = run_sync(self.judge([request]))[0]
        return dspy.Prediction(score=self.worth(judgement), feedback=self.feedback(judgement))

    def worth(self, judgement: Judgement) -> float:
        """The reward as a number; `options.neutral` without a verdict."""
        return judgement.reward if judgement.unjudged is None else self.options.neutral

    def feedback(self, judgement: Judgement) -> str:
        """The verdict, with the best and the worst other pair of the passage and their rubrics."""
        if judgement.unjudged is not None:
            return judgement.feedback
        with self._lock:
            return self._given.compared(judgement)

    def _key(self, request: RubricRequest) -> str:
        asked = request.model_dump(mode="json", exclude={"unjudged"})
        return digest([asked, self.identity, self._scorer_id])

    def _judged(self, key: str) -> Judgement | None:
        return self._unjudged.get(key) or self._ledger.get(key, self.identity)

    def _known(self, key: str) -> Judgement:
        row = self._judged(key)
        assert row is not None
        return row

    def _keep(self, fresh: Sequence[Judgement]) -> None:
        """Saves new judgements; if that fails, this reward buys no more pairs."""
        self._unjudged |= {row.key: row for row in fresh if row.unjudged is not None}
        fresh = [row for row in fresh if row.unjudged is None]
        try:
            self._ledger.append(fresh)
        except DataError as error:
            self._broken = error
            raise
        if self._moving is not None:
            self._moving.judged([row.pair for row in fresh if row.pair is not None and row.valid])
