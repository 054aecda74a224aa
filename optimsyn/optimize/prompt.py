"""Prompt optimisation: `dspy.GEPA` searches for a better guiding text, driven by the influence reward.

Resuming is replaying. Rubric replies come from the run's reply cache and judgements from its ledger, so a killed search
starts again from the first candidate, answers everything that it knows from memory in a moment, and goes on exactly
where it was: GEPA's own pickled state would lose its random generators and take another path than an undisturbed run.

DSPy evaluates in threads and turns every exception of a program or metric into a failed example, and GEPA skips a
proposal that raised. Neither may hide a dead service: the first error is remembered, nothing is bought after it, the
search stops and the error is raised.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dspy
from pydantic import BaseModel, ConfigDict

from optimsyn.base.errors import OptimsynError, ReplyError, ServiceError
from optimsyn.base.files import write_json
from optimsyn.base.identity import Identity
from optimsyn.base.secrets.redaction import CleanWriter, redact
from optimsyn.base.seeds import derive_seed
from optimsyn.data.records import Passage
from optimsyn.llm.dspy_bridge import make_lm
from optimsyn.optimize.history import History
from optimsyn.optimize.proposer import EvidenceProposer
from optimsyn.recipe.sections.optimizers import PromptOptimizer
from optimsyn.reward.judgements import digest

if TYPE_CHECKING:
    from optimsyn.llm.language_model import LanguageModel
    from optimsyn.programs.rubric import RubricWriter
    from optimsyn.programs.task_shape import TaskShape
    from optimsyn.reward.reward import InfluenceReward

# Below every reward that a pair can earn. DSPy gives it to an example that raised, which here ends the search anyway.
FAILURE_SCORE = -1e6
# So many unreadable rubrics in a row stop the search; fewer when it has so few passages that it would end first.
GARBAGE_LIMIT = 20
# So many unusable proposals of a reflection model in a row do too.
PROPOSAL_FAILURES = 3
# Characters of a text that a reflection model may propose.
_LONGEST_PROPOSAL = 1500
_THREADS = 16
# GEPA counts every evaluation, also those answered from memory; the real budget is counted in judged pairs.
_GEPA_CALLS_PER_PAIR = 10

_REFLECTION_TASK = (
    "Below is the guiding text of a writer of rubrics: for each passage it writes the criteria that one exam question "
    "and its answer have to meet, and a second model writes the question under them. The feedback says how much each "
    "resulting pair would teach the model that is trained on it (its influence; higher is better), or which check it "
    "failed. Write a better guiding text: a few plain sentences, general to the domain, keeping the intent of the "
    "current one and building on what the pairs of high influence have in common. Do not mention single passages."
)


class PromptResult(BaseModel):
    """What the search found.

    Attributes:
        guiding_text: The best text; the start text when nothing beat it.
        start_score: Mean reward of the start text over the compared passages.
        score: Mean reward of the best text over the same passages. It is the best of several noisy means, so expect
            somewhat less on other passages.
        candidates: Texts that were tried, the start text included.
        judged: Different pairs judged.
        history: The rows of `history.jsonl`.
    """

    model_config = ConfigDict(frozen=True)

    guiding_text: str
    start_score: float
    score: float
    candidates: int
    judged: int
    history: list[dict[str, Any]]


def optimize_guiding_text(
    folder: Path,
    config: PromptOptimizer,
    rubric_writer: RubricWriter,
    reward: InfluenceReward,
    passages: Sequence[Passage],
    shape: TaskShape,
    *,
    seed: int,
    reflection: LanguageModel | None = None,
) -> PromptResult:
    """Searches for a guiding text whose rubrics lead to pairs of higher reward.

    Every candidate is compared on the same passages with the same sampling seeds. GEPA tries a proposal on
    `config.minibatch` of them and, when it is better there, on the rest.

    Args:
        folder: Receives `history.jsonl` (a row for each candidate), `gepa.log` and `result.json`.
        config: `metric_calls` caps the different pairs that are judged; too many passages for it are cut so that at
            least one proposal can be compared in full.
        rubric_writer: Holds the start text and the rubric model; it is not changed.
        reward: Judges the pairs.
        passages: Passages to compare on; the first `config.passages` are used.
        shape: Says which kind of question each passage gets.
        seed: Of the search and of all requests.
        reflection: Rewrites the text out of the feedback; None: `EvidenceProposer`, which needs no model.

    Raises:
        ServiceError: A service failed for good, also inside a thread of DSPy.
        OptimsynError: Another error of a request (a reached budget, a pair that cannot be scored).
    """
    start = rubric_writer.guiding_text.strip()
    used = list(passages)[: max(1, min(config.passages, config.metric_calls // 2))]
    identity = Identity.of(
        {
            "the guiding text": start,
            "optimizers.prompt": config.model_dump(mode="json"),
            "the passages": [(passage.id, passage.text) for passage in used],
            "the seed": seed,
        },
        digest,
    )
    finished = _finished(folder, identity)
    if finished is not None:
        return finished
    search = _Search(folder, config, rubric_writer, reward, used, seed, reflection)
    result = search.run(shape)
    write_json(folder / "result.json", {**identity.saved(), **result.model_dump(mode="json")})
    return result


def _finished(folder: Path, identity: Identity) -> PromptResult | None:
    path = folder / "result.json"
    if not path.is_file():
        return None
    import json

    before, result = Identity.parted(json.loads(path.read_text(encoding="utf-8")))
    return PromptResult.model_validate(result) if identity.same_as(before) else None


class _Watch:
    """Remembers the first error of any thread."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self._lock = threading.Lock()

    def remember(self, error: BaseException) -> None:
        with self._lock:
            self.error = self.error or error

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Refuses to go on after an error, and remembers one that is raised inside."""
        if self.error is not None:
            raise ServiceError("stopped after an earlier error") from self.error
        try:
            yield
        except Exception as error:
            self.remember(error)
            raise

    def raise_first(self) -> None:
        if self.error is not None:
            raise self.error


class _Program(dspy.Module):
    """The rubric writer as GEPA's student: an unreadable rubric is an outcome, not an exception."""

    def __init__(self, writer: RubricWriter, watch: _Watch, rubric_model: str, garbage_limit: int) -> None:
        super().__init__()
        self._garbage_limit = garbage_limit
        self.writer = writer
        self._watch = watch
        self._rubric_model = rubric_model
        self._garbage: list[str] = []

    def forward(self, passage: Passage, kind: str, seed: int) -> dspy.Prediction:
        with self._watch():
            trace = dspy.settings.trace
            before = 0 if trace is None else len(trace)
            rubric, error, unjudged = None, None, None
            try:
                rubric = self.writer(passage=passage, kind=kind, seed=seed).rubric
                self._garbage.clear()
            except ReplyError as problem:
                error = str(problem)
                unjudged = problem.outcome if problem.outcome.unjudged else None
                self._count_garbage(error)
            prediction = dspy.Prediction(
                rubric=rubric,
                error=error,
                unjudged=unjudged,
                guiding_text=self.writer.guiding_text,
                rubric_model=self._rubric_model,
            )
            # The writer runs on the event loop of the models, where DSPy's thread-local trace does not reach; GEPA
            # skips examples without one.
            if trace is not None and len(trace) == before:
                trace.append((self.writer.write, {"passage": passage.text, "kind": kind}, prediction))
            return prediction

    def _count_garbage(self, sample: str) -> None:
        self._garbage.append(sample)
        if len(self._garbage) >= self._garbage_limit:
            raise ServiceError(
                f"models.rubric {self._rubric_model!r} has returned {len(self._garbage)} replies in a row that hold no "
                f"rubric, for example: {redact(sample)[:300]}. Is it the model that you meant, and is "
                "models.rubric.max_tokens large enough? Everything judged so far is kept."
            )

    def deepcopy(self) -> _Program:
        """A copy with a predictor of its own; models, caches and the error memory are shared on purpose."""
        twin = copy.copy(self)
        twin.writer = copy.copy(self.writer)
        twin.writer.write = copy.copy(self.writer.write)
        return twin


class _Proposer:
    """Calls the proposer so that its errors surface, and keeps the proposed text for the history."""

    def __init__(
        self, inner: Callable[..., dict[str, str]], watch: _Watch, reflection: LanguageModel | None, history: History
    ) -> None:
        self.inner = inner
        self._watch = watch
        self._reflection = reflection
        self._history = history
        self._failures = 0

    def __call__(
        self,
        candidate: Mapping[str, str],
        reflective_dataset: Mapping[str, Sequence[Mapping[str, Any]]],
        components_to_update: Sequence[str],
    ) -> dict[str, str]:
        try:
            proposed = self.inner(candidate, reflective_dataset, list(components_to_update))
        except Exception as error:  # noqa: BLE001 - GEPA would skip the proposal silently, whatever it is
            self._failed(error)
            return {}
        self._failures = 0
        return {name: text.strip() for name, text in proposed.items()}

    def _failed(self, error: Exception) -> None:
        """Notes an unusable reply of the reflection model; anything else, and a third one in a row, ends the search."""
        service = getattr(self._reflection, "failure", None)
        ended = isinstance(error, OptimsynError) and not isinstance(error, ReplyError)
        if self._reflection is None or ended or service is not None:
            self._watch.remember(service or error)
            return
        self._failures += 1
        reason = redact(f"{type(error).__name__}: {error}")[:300]
        self._history.add({"status": "proposal failed", "reason": reason})
        if self._failures >= PROPOSAL_FAILURES:
            self._watch.remember(
                ServiceError(
                    f"models.reflection {self._reflection.name!r}: {self._failures} proposals in a row were unusable "
                    f"({reason}). Name a stronger model, or remove models.reflection to build proposals from evidence."
                )
            )


class _Search:
    """One search: GEPA's student, metric, proposer, stopper and callbacks around shared state."""

    def __init__(
        self,
        folder: Path,
        config: PromptOptimizer,
        writer: RubricWriter,
        reward: InfluenceReward,
        passages: Sequence[Passage],
        seed: int,
        reflection: LanguageModel | None,
    ) -> None:
        self.folder = folder
        self.config = config
        self.reward = reward
        self.passages = passages
        self.seed = seed
        self.reflection = reflection
        self.watch = _Watch()
        self.history = History(folder / "history.jsonl")
        self.program = _Program(writer, self.watch, writer.model.name, min(GARBAGE_LIMIT, 2 * len(passages)))
        self.start = writer.guiding_text.strip()
        self.before = reward.different
        self.evidence = EvidenceProposer(self.start, lambda: reward.answered)
        self.best = float("-inf")
        self.tried = 1
        self.proposal = ""

    def run(self, shape: TaskShape) -> PromptResult:
        examples = []
        for passage in self.passages:
            pair_seed = derive_seed(self.seed, "optimize_prompt", passage.id)
            example = dspy.Example(passage=passage, kind=shape.kind_for(pair_seed), seed=pair_seed)
            examples.append(example.with_inputs("passage", "kind", "seed"))
        gepa = dspy.GEPA(
            metric=self.metric,
            max_metric_calls=_GEPA_CALLS_PER_PAIR * self.config.metric_calls,
            reflection_minibatch_size=min(self.config.minibatch, len(examples)),
            reflection_lm=None if self.reflection is None else make_lm(self.reflection, temperature=1.0),
            instruction_proposer=_Proposer(self._inner_proposer(), self.watch, self.reflection, self.history),
            skip_perfect_score=False,
            use_merge=False,
            num_threads=min(len(examples), _THREADS),
            failure_score=FAILURE_SCORE,
            track_stats=True,
            seed=self.seed,
            gepa_kwargs={"callbacks": [self], "stop_callbacks": [self.stop]},
        )
        with _quiet(self.folder / "gepa.log"):
            try:
                found = gepa.compile(self.program, trainset=examples, valset=examples).detailed_results
            except Exception as error:  # noqa: BLE001 - raised below, unless it only follows from an earlier one
                self.watch.remember(error)
        self.watch.raise_first()
        scores = [float(score) for score in found.val_aggregate_scores]
        # The first of equals, so the start text stays unless something is strictly better.
        winner = max(range(len(scores)), key=lambda index: (scores[index], -index))
        text = self.start if winner == 0 else found.candidates[winner].writer.guiding_text
        return PromptResult(
            guiding_text=text,
            start_score=scores[0],
            score=scores[winner],
            candidates=self.tried,
            judged=self.judged,
            history=self.history.rows,
        )

    def _inner_proposer(self) -> Callable[..., dict[str, str]]:
        if self.reflection is None:
            return self.evidence
        from dspy.teleprompt.gepa import InstructionProposer

        proposer: Callable[..., dict[str, str]] = InstructionProposer(
            base_instructions=_REFLECTION_TASK, max_chars=_LONGEST_PROPOSAL
        )
        return proposer

    @property
    def judged(self) -> int:
        """Different pairs judged so far, also those answered from the ledger: a replay counts as the first time did."""
        return self.reward.different - self.before

    def metric(
        self, gold: Any, pred: Any, trace: Any = None, pred_name: str | None = None, pred_trace: Any = None
    ) -> dspy.Prediction:
        with self.watch():
            return self.reward.metric(gold, pred, trace, pred_name, pred_trace)

    def stop(self, state: Any) -> bool:
        """Ends the search after an error, or when the next proposal could exceed the budget of judged pairs."""
        spent = self.judged + len(self.passages) > self.config.metric_calls
        return self.watch.error is not None or spent or (self.reflection is None and self.evidence.exhausted)

    # GEPA calls these by name and only logs what they raise, so each is watched.

    def on_proposal_end(self, event: Mapping[str, Any]) -> None:
        """A text was proposed."""
        with self.watch():
            self.tried += 1
            self.proposal = next(iter(event["new_instructions"].values()))

    def on_candidate_rejected(self, event: Mapping[str, Any]) -> None:
        """A proposal was no better than its parent on the minibatch."""
        with self.watch():
            size = min(self.config.minibatch, len(self.passages))
            self._row("rejected", event["new_score"] / size, self.proposal, parent_score=event["old_score"] / size)

    def on_valset_evaluated(self, event: Mapping[str, Any]) -> None:
        """A candidate was compared on all passages."""
        with self.watch():
            score = float(event["average_score"])
            self.best = max(self.best, score)
            status = "start" if event["candidate_idx"] == 0 else "accepted"
            self._row(
                status,
                score,
                next(iter(event["candidate"].values())),
                candidate=event["candidate_idx"],
                parents=list(event["parent_ids"]),
            )

    def _row(self, status: str, score: float, text: str, **more: Any) -> None:
        row = {"judged": self.judged, "status": status, "score": score, "best": self.best, "guiding_text": text, **more}
        self.history.add(row)


@contextlib.contextmanager
def _quiet(path: Path) -> Iterator[None]:
    """Sends the progress bars and log lines of GEPA and DSPy to a file instead of the notebook."""
    path.parent.mkdir(parents=True, exist_ok=True)
    logger = logging.getLogger("dspy")
    with path.open("w", encoding="utf-8") as log:
        file = CleanWriter(log)
        handler = logging.StreamHandler(file)
        handlers, logger.handlers = logger.handlers, [handler]
        try:
            with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
                yield
        finally:
            logger.handlers = handlers
