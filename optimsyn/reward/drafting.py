"""Drafting: writes a rubric and a pair under it, catches unreadable replies and checks the pair.

All stages that need candidates use it, so that requests and the names of failures are the same everywhere.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol

from optimsyn.base.errors import Outcome, ReplyError
from optimsyn.base.secrets.redaction import redact
from optimsyn.data.records import Pair, Passage, Record, Rubric

if TYPE_CHECKING:
    import dspy

    from optimsyn.programs.checker import Checker
    from optimsyn.programs.judge import Opinion
    from optimsyn.programs.pair import PairWriter, Refused
    from optimsyn.programs.rubric import RubricWriter


class RubricRequest(Record):
    """One pair to be written under a rubric and judged.

    Attributes:
        kind: Name of the pair's form.
        rubric: None when the pair is written without one, or when `error` says why there is none.
        error: What was wrong with the rubric reply; such a request is judged invalid and no pair is bought.
        unjudged: The outcome of the rubric reply if it is no fault of the rubric; such a request is not judged.
        guiding_text: The text that the rubric was written under ("" without one).
        seed: Sampling seed of the pair.
        variant: Written into the pair's lineage.
    """

    passage: Passage
    kind: str
    rubric: Rubric | None = None
    error: str | None = None
    unjudged: Outcome | None = None
    guiding_text: str = ""
    rubric_model: str = ""
    seed: int = 0
    variant: str = ""

    def under(self, rubric: Rubric | ReplyError | None) -> RubricRequest:
        """A copy with a rubric, without one, or with the reason why none could be read."""
        if not isinstance(rubric, ReplyError):
            return self.model_copy(update={"rubric": rubric})
        unjudged = rubric.outcome if rubric.outcome.unjudged else None
        return self.model_copy(update={"rubric": None, "error": str(rubric), "unjudged": unjudged})

    @property
    def prediction(self) -> dspy.Prediction:
        """The request as a DSPy prediction: its rubric and where that comes from."""
        import dspy

        return dspy.Prediction(**{name: getattr(self, name) for name in _PREDICTED})

    @classmethod
    def predicted(cls, gold: dspy.Example, prediction: dspy.Prediction, variant: str) -> RubricRequest:
        """The request that a prediction belongs to.

        Args:
            gold: `passage`, `kind` and `seed`.
            prediction: `rubric`, or `error` and `unjudged` where the reply held none; `guiding_text`, `rubric_model`.
            variant: Who asks.
        """
        fields = {name: value for name in _PREDICTED if (value := prediction.get(name)) is not None}
        return cls(passage=gold.passage, kind=gold.kind, seed=gold.seed, variant=variant, **fields)


_PREDICTED = ("rubric", "error", "unjudged", "guiding_text", "rubric_model")


WriteRubric = Callable[[RubricRequest], Awaitable[Rubric]]
"""Writes the rubric of a request; raises ReplyError where the reply holds none."""


Ask = Callable[[RubricRequest], Awaitable[RubricRequest]]
"""Adds the rubric to a request, or the reason why none could be read."""


def failure(part: Literal["rubric", "pair", "judge"], outcome: Outcome | None) -> str:
    """The failure name of an unreadable reply, such as `pair_format` or `rubric_refusal`."""
    return f"{part}_format" if outcome in (None, Outcome.INVALID) else f"{part}_{outcome}"


class Checked(Protocol):
    """A draft, or the judgement on one."""

    @property
    def failed(self) -> tuple[str, ...]:
        """The checks that it failed."""

    @property
    def reasons(self) -> Mapping[str, str]:
        """Why, for each of these."""


def failures(drafts: Iterable[Checked], most: int = 3) -> str:
    """The failures of drafts or judgements, the most frequent first: how often, and the first one's reason."""
    counts: Counter[str] = Counter()
    reasons: dict[str, str] = {}
    for draft in drafts:
        counts.update(draft.failed)
        reasons = {**draft.reasons, **reasons}
    return "; ".join(f"{name} {n}x, such as: {_short(reasons.get(name, ''))}" for name, n in counts.most_common(most))


def _short(reason: str) -> str:
    """A reason without its middle, if it is long: the cure is at its end."""
    return reason if len(reason) <= 300 else f"{reason[:180]} … {reason[-120:]}"


UNREADABLE = frozenset(failure(part, outcome) for part in ("rubric", "pair") for outcome in Outcome)
"""Failures of drafts without a pair: unreadable replies of the rubric model or the generator."""


@dataclass(frozen=True)
class Draft:
    """The pair written for a request, and what is wrong with it.

    Attributes:
        request: Passage, rubric, seed and lineage.
        pair: None if no rubric or no pair could be read.
        failed: The checks that the pair failed; without a pair one of `UNREADABLE`.
        reasons: What was wrong, for each of these, without secrets.
        unjudged: The outcome of a reply without rubric or pair if it is no fault of the models.
        unread: The generator's reply that contains no pair.
        checked: Whether the checks have run.
        opinion: What the judge says about the pair; None where it was not asked.
        redrafts: How often the request was written again (`checks.redrafts`).
        wasted: How many replies without a pair were requested for it.
    """

    request: RubricRequest
    pair: Pair | None = None
    failed: tuple[str, ...] = ()
    reasons: Mapping[str, str] = field(default_factory=dict)
    unjudged: Outcome | None = None
    unread: ReplyError | None = None
    checked: bool = False
    opinion: Opinion | None = None
    redrafts: int = 0
    wasted: int = 0

    @property
    def passage(self) -> Passage:
        """The passage of the request."""
        return self.request.passage

    @property
    def rubric(self) -> Rubric | None:
        """The rubric of the request; None without one."""
        return self.request.rubric

    @property
    def valid(self) -> bool:
        """Whether there is a pair that passed every check."""
        return self.pair is not None and self.checked and not self.failed

    def facts(self) -> dict[str, Any]:
        """What was written and what is wrong with it, as JSON values."""
        return {
            "failed": self.failed,
            "reasons": dict(self.reasons),
            "redrafts": self.redrafts,
            "passage_id": self.passage.id,
            "seed": self.request.seed,
            "rubric": None if self.rubric is None else self.rubric.model_dump(mode="json"),
            "pair": None if self.pair is None else self.pair.model_dump(mode="json"),
        }

    @property
    def remarks(self) -> tuple[str, ...]:
        """What is wrong, one sentence each."""
        if self.pair is None:
            return tuple(self.reasons.values())
        return tuple(f"{name}: {why}" for name, why in self.reasons.items())


class Drafter:
    """Writes pairs under rubrics and checks them.

    Args:
        pair_writer: Writes a pair under a rubric; raises ReplyError for a reply that holds none.
        checks: Decides validity; its judge, if it has one, is asked about pairs that pass. A pair that is not valid is
            written again as often as its `redrafts` say.
    """

    def __init__(self, pair_writer: PairWriter, checks: Checker) -> None:
        self.pair_writer = pair_writer
        self.checks = checks

    async def draft(self, request: RubricRequest) -> Draft:
        """Writes the pair of a request and checks it.

        Raises:
            ServiceError: The service failed for good.
        """
        return self.check(await self.write(request))

    async def write(self, request: RubricRequest) -> Draft:
        """Writes the pair of a request, unless its rubric could not be read; again while it is not valid.

        Returns:
            The first valid draft; if none is, the last one with a pair. A reply that cannot be judged is the last.

        Raises:
            ServiceError: The service failed for good.
        """
        if request.error is not None:
            return _unreadable(request, "rubric", request.error, request.unjudged)
        draft = await self._write(request)
        if getattr(self.checks, "redrafts", 0) and self.pair_writer.redrafts_differ:
            draft = await self._written_again(self.check(draft))
        return draft

    async def _written_again(self, draft: Draft) -> Draft:
        """The draft, or the one that replaces it."""
        greedy = self.pair_writer.model.spec.temperature == 0
        for number in range(1, self.checks.redrafts + 1):
            if draft.valid or draft.unjudged is not None:
                break
            told = _refused(draft, number)
            again = self.check(await self._write(draft.request, refused=told))
            wasted = draft.wasted + again.wasted
            if again.unjudged is None and (again.pair is not None or draft.pair is None):
                draft = again
            draft = replace(draft, redrafts=number, wasted=wasted)
            if again.unjudged is not None or (greedy and _refused(again, number) == told):
                break
        return draft

    async def _write(self, request: RubricRequest, **more: Refused) -> Draft:
        try:
            pair = await self.pair_writer.awrite(
                request.passage,
                request.rubric,
                seed=request.seed,
                variant=request.variant,
                guiding_text=request.guiding_text,
                rubric_model=request.rubric_model,
                **more,
            )
        except ReplyError as error:
            unread = _unreadable(request, "pair", str(error), error.outcome)
            return replace(unread, unread=error, wasted=error.replies)
        draft = Draft(request, pair)
        judge = getattr(self.checks, "judge", None)
        if judge is None or not self.checks.check(pair, request.passage).valid:
            return draft
        return replace(draft, opinion=await judge.ajudge(pair, request.passage))

    def check(self, draft: Draft) -> Draft:
        """The draft with the checks' verdict; unchanged without a pair, and where it has one."""
        if draft.pair is None or draft.checked:
            return draft
        validity = self.checks.check(draft.pair, draft.passage)
        reasons = {name: validity.reasons.get(name, "") for name in validity.failed}
        checked = replace(draft, failed=tuple(validity.failed), reasons=reasons, checked=True)
        return checked if checked.failed or checked.opinion is None else self._judged(checked, checked.opinion)

    def _judged(self, draft: Draft, opinion: Opinion) -> Draft:
        """The draft with the judge's verdict; without one it is not judged, neither valid nor invalid."""
        judge = self.checks.judge
        if judge is None or not judge.decides:
            return draft
        if opinion.outcome is not None:
            name = failure("judge", opinion.outcome)
            return replace(draft, failed=(name,), reasons={name: opinion.problem}, unjudged=opinion.outcome)
        low = judge.refuses(opinion)
        return draft if low is None else replace(draft, failed=("judge",), reasons={"judge": low})


async def requested(blank: RubricRequest, write: WriteRubric | None) -> RubricRequest:
    """Adds the rubric to a request, or the reason why none could be read.

    Args:
        blank: The request without a rubric.
        write: Writes the rubric; None for a pair without one.

    Raises:
        ServiceError: The rubric model's service failed for good.
    """
    if write is None:
        return blank
    try:
        return blank.under(await write(blank))
    except ReplyError as error:
        return blank.under(error)


def with_writer(writer: RubricWriter) -> WriteRubric:
    """Adapts a rubric writer to `WriteRubric`."""

    async def write(blank: RubricRequest) -> Rubric:
        rubric: Rubric = (await writer.aforward(passage=blank.passage, kind=blank.kind, seed=blank.seed)).rubric
        return rubric

    return write


def _refused(draft: Draft, redraft: int) -> Refused:
    """What its writer is told of a draft that was not valid: nothing of what it may not see."""
    from optimsyn.programs.checks import BUILT_IN, NEAR_QUESTION
    from optimsyn.programs.pair import Refused

    if draft.pair is None:
        return Refused(redraft, ("it holds no pair in the form that was asked for",))
    why = []
    for name in draft.failed:
        if name == NEAR_QUESTION:
            why.append("ask for something else")
        elif name in BUILT_IN or name == "judge":
            why.append(redact(draft.reasons[name]))
        else:
            # The reason of a check of one's own may quote a validation question.
            why.append(f"it fails the check {name}")
    return Refused(redraft, tuple(why), draft.pair)


def _unreadable(request: RubricRequest, part: Literal["rubric", "pair"], why: str, outcome: Outcome | None) -> Draft:
    name = failure(part, outcome)
    unjudged = outcome if outcome is not None and outcome.unjudged else None
    return Draft(request, failed=(name,), reasons={name: redact(why)}, unjudged=unjudged)
