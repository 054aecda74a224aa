"""The programs whose text a method of prompt optimisation improves: rubric writer, trained policy, author with tools.

All have one predictor, whose instruction is the guiding text, and write a rubric for a passage. What the author may
do with its tools, its caps and the reading of its steps are no text, so no candidate can change them.
"""

from __future__ import annotations

import contextlib
import copy
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import dspy

from optimsyn.base.errors import ServiceError
from optimsyn.base.event_loops import run_sync
from optimsyn.base.secrets.redaction import redact
from optimsyn.data.records import Passage, Rubric
from optimsyn.reward.drafting import RubricRequest, WriteRubric, requested, with_writer

if TYPE_CHECKING:
    from optimsyn.programs.rubric import RubricWriter
    from optimsyn.reward.author.agent import RubricAuthor
    from optimsyn.reward.judgements import Judgement


class Watch:
    """Remembers the first error of any thread.

    Attributes:
        error: That error, if there was one.
    """

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self._lock = threading.Lock()

    def remember(self, error: BaseException) -> None:
        """Keeps the first error."""
        with self._lock:
            self.error = self.error or error

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Refuses to continue after an error, and remembers an error from inside."""
        if self.error is not None:
            raise ServiceError("stopped after an earlier error") from self.error
        try:
            yield
        except Exception as error:
            self.remember(error)
            raise

    def raise_first(self) -> None:
        """Raises the remembered error, if there is one."""
        if self.error is not None:
            raise self.error


class RubricProgram(dspy.Module):
    """The rubric writer as the student of a DSPy optimiser: an unreadable rubric is an outcome, not an exception.

    The guiding text is the instruction of its one predictor. `deepcopy` copies the predictor; models, caches and the
    error memory are shared.

    Attributes:
        before: Called with the guiding text and the passage before a rubric is asked for.
    """

    # Whether one rubric that could be read shows that the model can write them. A text may keep it from that, and the
    # reward of the text says so.
    _one_is_enough = False

    def __init__(
        self, writer: RubricWriter, watch: Watch, garbage_limit: int, count: Callable[[str, str, int], None]
    ) -> None:
        super().__init__()
        self._garbage_limit = garbage_limit
        self.writer = writer
        self._watch = watch
        self._count = count
        self._rubric_model = writer.model.name
        self._garbage: list[str] = []
        self._written: dict[tuple[str, str, int], RubricRequest] = {}
        self.before: Callable[[str, Passage], None] | None = None

    def forward(self, passage: Passage, kind: str, seed: int) -> dspy.Prediction:
        """`rubric`, or `error` and `unjudged` where the reply has none; `guiding_text` and `rubric_model`."""
        with self._watch():
            if self.before is not None:
                self.before(self.guiding_text, passage)
            trace = dspy.settings.trace
            before = 0 if trace is None else len(trace)
            # A method shows this to a reflection model; the reward reads it back.
            prediction = self.predicted(run_sync(self.ask(self.blank(passage, kind, seed))))
            # The writer runs on the event loop of the models, where DSPy's thread-local trace does not reach; DSPy's
            # optimisers skip examples without one.
            if trace is not None and len(trace) == before:
                trace.append((self.writer.write, {"passage": passage.text, "kind": kind}, prediction))
            return prediction

    def blank(self, passage: Passage, kind: str, seed: int, variant: str = "") -> RubricRequest:
        """The request for a rubric under the current guiding text."""
        return RubricRequest(
            passage=passage,
            kind=kind,
            guiding_text=self.guiding_text,
            rubric_model=self._rubric_model,
            seed=seed,
            variant=variant,
        )

    async def ask(self, blank: RubricRequest) -> RubricRequest:
        """Adds the rubric to a request, or the reason why none could be read; asks the model once for equal requests.

        Raises:
            ServiceError: The service failed for good, or too many rubrics in a row could not be read.
            StageError: The budget is exceeded.
        """
        key = (self.guiding_text, blank.passage.id, blank.seed)
        self._count(*key)
        request = self._written.get(key)
        if request is None:
            request = self._written[key] = await self._ask(blank)
        if request.error is None:
            self._garbage.clear()
        else:
            self._note_garbage(request.error)
        return request.model_copy(update={"variant": blank.variant})

    async def _ask(self, blank: RubricRequest) -> RubricRequest:
        return await requested(blank, with_writer(self.writer))

    def predicted(self, request: RubricRequest) -> dspy.Prediction:
        """A written request as a method sees it."""
        return request.prediction

    def outputs(self, row: Judgement) -> dict[str, str] | None:
        """What the program wrote for a judged pair, for a reflection model; None: the pair is not its answer."""
        return {"rubric": "none" if row.rubric is None else row.rubric.model_dump_json()}

    @property
    def guiding_text(self) -> str:
        """Its current guiding text."""
        return self.writer.guiding_text

    def under(self, text: str) -> Self:
        """A copy with another guiding text."""
        twin = self.deepcopy()
        twin.writer.guiding_text = text
        return twin

    def _note_garbage(self, sample: str) -> None:
        if self._one_is_enough and any(request.error is None for request in self._written.values()):
            return
        self._garbage.append(sample)
        if len(self._garbage) >= self._garbage_limit:
            raise ServiceError(f"{self._useless(redact(sample)[:300])} Everything judged so far is kept.")

    def _useless(self, sample: str) -> str:
        """What is wrong with a model of which so many rubrics in a row could not be read."""
        return (
            f"models.rubric {self._rubric_model!r} has returned {len(self._garbage)} replies in a row that hold no "
            f"rubric, for example: {sample}. Is it the model that you meant, and is models.rubric.max_tokens large "
            "enough?"
        )

    def deepcopy(self) -> Self:
        """Copies the predictor; models, caches and the error memory are shared on purpose."""
        twin = copy.copy(self)
        twin.writer = copy.copy(self.writer)
        twin.writer.write = copy.copy(self.writer.write)
        return twin


@dataclass(frozen=True)
class PolicyWriter:
    """The trained policy as the writer of rubrics.

    Attributes:
        write: Samples the rubric of a request as synthesis does; raises ReplyError where the reply holds none.
        identity: Of its weights and adapter; another policy is another search.
    """

    write: WriteRubric
    identity: str


class PolicyProgram(RubricProgram):
    """The trained policy as the student of a DSPy optimiser.

    Args:
        policy: Samples the rubrics.
        writer: Holds the start text; it is not asked.
        watch: Remembers the first error.
        garbage_limit: So many rubrics in a row that cannot be read end the search, if there never was another one.
        count: Called with text, passage and seed of each requested rubric.
    """

    _one_is_enough = True

    def __init__(
        self,
        policy: PolicyWriter,
        writer: RubricWriter,
        watch: Watch,
        garbage_limit: int,
        count: Callable[[str, str, int], None],
    ) -> None:
        super().__init__(writer, watch, garbage_limit, count)
        self.policy = policy

    async def _ask(self, blank: RubricRequest) -> RubricRequest:
        return await requested(blank, self.policy.write)

    def _useless(self, sample: str) -> str:
        return (
            f"The trained policy has written no rubric that can be read for any of {len(self._garbage)} requests, for "
            f"example: {sample}. Look at its rewards in train_policy/history.jsonl; are optimizers.policy.max_tokens "
            "large enough, and lr and temperature low enough?"
        )


class WorkOutRubric(dspy.Signature):
    """Write the criteria for one question and its answer, with tools."""

    passage: str = dspy.InputField(desc="the text that the question is made from")
    kind: str = dspy.InputField(desc="the form of the question")
    steps: str = dspy.OutputField(desc="what was done, and what came of it")
    rubric: Rubric = dspy.OutputField(desc="the criteria of the draft that was taken")


class AuthorProgram(RubricProgram):
    """The author as the student of a DSPy optimiser, under the guiding text as its guidance.

    A method sees the steps beside the rubric. A candidate costs what the author's caps allow for each passage.

    Args:
        author: Writes the rubrics; its reward is that of the search.
        writer: Holds the start text.
        watch: Remembers the first error.
        garbage_limit: So many rubrics in a row without a draft end the search, if there never was one.
        count: Called with text, passage and seed of each requested rubric.
    """

    _one_is_enough = True

    def __init__(
        self,
        author: RubricAuthor,
        writer: RubricWriter,
        watch: Watch,
        garbage_limit: int,
        count: Callable[[str, str, int], None],
    ) -> None:
        super().__init__(copy.copy(writer), watch, garbage_limit, count)
        self.writer.write = dspy.Predict(WorkOutRubric.with_instructions(writer.guiding_text))
        self.author = author

    async def _ask(self, blank: RubricRequest) -> RubricRequest:
        # The author has its drafts judged for the search, and the search then finds that of its rubric in the ledger.
        return await self.author.ask(blank.model_copy(update={"variant": self.author.place.reward.source}))

    def predicted(self, request: RubricRequest) -> dspy.Prediction:
        """A written request with the steps that led to it."""
        prediction = super().predicted(request)
        prediction["steps"] = self.author.trajectories[request.guiding_text, request.passage.id, request.seed].told
        return prediction

    def outputs(self, row: Judgement) -> dict[str, str] | None:
        """Steps and rubric of the draft that was taken; None for the other drafts."""
        (trajectory,) = self.author.of([row])
        shown = super().outputs(row)
        return None if shown is None or trajectory.rubric != row.rubric else {"steps": trajectory.told, **shown}

    def _useless(self, sample: str) -> str:
        return (
            f"The author, {self.author.model.name!r}, has not written a rubric for any of {len(self._garbage)} "
            f"requests, for example: {sample}. Is it the model that you meant (models.author, or else models.rubric), "
            "and are author.steps and its max_tokens large enough?"
        )
