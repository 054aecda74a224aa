"""`dspy.GEPA` as a method of prompt optimisation: proposals from feedback, each tried on a few passages first."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import dspy

from optimsyn.base.errors import OptimsynError, ReplyError, ServiceError
from optimsyn.base.secrets.redaction import redact
from optimsyn.llm.dspy_bridge import make_lm
from optimsyn.optimize.prompt_task import THREADS, PromptTask
from optimsyn.optimize.proposer import EvidenceProposer

if TYPE_CHECKING:
    from optimsyn.data.records import Passage
    from optimsyn.llm.language_model import LanguageModel

# Below every possible reward. DSPy gives it to an example that raised, which ends the search anyway.
FAILURE_SCORE = -1e6
# Number of consecutive unusable proposals of a reflection model that ends the search.
PROPOSAL_FAILURES = 3
# Maximum characters of a text from a reflection model.
LONGEST_PROPOSAL = 1500
# GEPA counts every evaluation, even cached ones; the real budget is counted in judged pairs.
_GEPA_CALLS_PER_PAIR = 10

_REFLECTION_TASK = (
    "Below is the guiding text of a writer of rubrics: for each passage it writes the criteria that one exam question "
    "and its answer have to meet, and a second model writes the question under them. The feedback says how much each "
    "resulting pair would teach the model that is trained on it (its influence; higher is better), or which check it "
    "failed. Write a better guiding text: a few plain sentences, general to the domain, keeping the intent of the "
    "current one and building on what the pairs of high influence have in common. Do not mention single passages."
)
_AUTHOR_REFLECTION_TASK = (
    "Below is the guidance of an author of rubrics, who works in steps with tools: it searches and reads passages, "
    "asks what kinds of questions experts ask, drafts rubrics (the criteria that one exam question and its answer have "
    "to meet), has pairs written under its drafts and scored, and finishes with one draft. What the tools are, and how "
    "many steps and drafts it has, is explained to it elsewhere and stays. Each example has its steps with their "
    "results, and the rubric; the feedback says how much the resulting pair would teach the model that is trained on "
    "it (its influence; higher is better), or which check it failed. Write better guidance: a few plain sentences, "
    "general to the domain, that keep the intent of the current ones, on what to ask for and on how to work (what to "
    "look up, how drafts should differ, when to finish), building on what led to high influence. Do not mention single "
    "passages."
)


def search(task: PromptTask) -> str:
    """The best text that GEPA compared on all passages; so the start text unless another is better.

    GEPA tries a proposal on `task.config.minibatch` passages and, when it is better there, on all that texts are
    compared on.
    """
    return _Search(task).run()


def reflector(task: PromptTask) -> Callable[..., dict[str, str]]:
    """DSPy's proposer, which asks the reflection model for a text with the feedback before it."""
    from dspy.teleprompt.gepa import InstructionProposer

    proposer: Callable[..., dict[str, str]] = InstructionProposer(
        base_instructions=_REFLECTION_TASK if task.author is None else _AUTHOR_REFLECTION_TASK,
        max_chars=LONGEST_PROPOSAL,
    )
    return proposer


class Proposer:
    """Calls the proposer so that its errors surface, and keeps the proposed text for the history."""

    def __init__(self, inner: Callable[..., dict[str, str]], task: PromptTask) -> None:
        self.inner = inner
        self._task = task
        self._failures = 0

    def __call__(
        self,
        candidate: Mapping[str, str],
        reflective_dataset: Mapping[str, Sequence[Mapping[str, Any]]],
        components_to_update: Sequence[str],
    ) -> dict[str, str]:
        """The proposed text by component; empty where the reply was unusable."""
        try:
            proposed = self.inner(candidate, reflective_dataset, list(components_to_update))
        except Exception as error:  # noqa: BLE001 - GEPA would skip the proposal silently, whatever it is
            self._failed(error)
            return {}
        self._failures = 0
        return {name: text.strip() for name, text in proposed.items()}

    def _failed(self, error: Exception) -> None:
        """Records an unusable reply of the reflection model; any other error, or a third in a row, ends the search."""
        reflection = self._task.reflection
        service = getattr(reflection, "failure", None)
        ended = isinstance(error, OptimsynError) and not isinstance(error, ReplyError)
        if reflection is None or ended or service is not None:
            self._task.watch.remember(service or error)
            return
        self._failures += 1
        reason = redact(f"{type(error).__name__}: {error}")[:300]
        self._task.history.add({"status": "proposal failed", "reason": reason})
        if self._failures >= PROPOSAL_FAILURES:
            self._task.watch.remember(junk(reflection, self._failures, reason))


def junk(reflection: LanguageModel, failures: int, reason: str) -> ServiceError:
    """The error of a reflection model that proposes nothing usable."""
    return ServiceError(
        f"models.reflection {reflection.name!r}: {failures} proposals in a row were unusable "
        f"({reason}). Name a stronger model, or remove models.reflection to have gepa build proposals from evidence."
    )


class _Search:
    """One search: GEPA's proposer, stopper and callbacks around the task."""

    def __init__(self, task: PromptTask) -> None:
        self.task = task
        self.evidence = EvidenceProposer(task.start, lambda: task.judgements)
        self.proposal = ""
        self._parent = ""
        self._size = min(task.config.minibatch, len(task.learning))
        self._tried = ""
        self._minibatch: set[str] = set()
        self._lock = threading.Lock()

    def run(self) -> str:
        task = self.task
        examples = task.examples()
        task.program.before = self._compare_at_once
        gepa = dspy.GEPA(
            metric=task.metric,
            max_metric_calls=_GEPA_CALLS_PER_PAIR * task.config.metric_calls,
            reflection_minibatch_size=self._size,
            reflection_lm=None if task.reflection is None else make_lm(task.reflection, temperature=1.0),
            instruction_proposer=Proposer(self._inner_proposer(), task),
            skip_perfect_score=False,
            use_merge=False,
            num_threads=min(len(examples), THREADS),
            failure_score=FAILURE_SCORE,
            track_stats=True,
            seed=task.seed,
            gepa_kwargs={"callbacks": [self], "stop_callbacks": [self.stop]},
        )
        result = gepa.compile(task.program, trainset=task.examples(task.learning), valset=examples).detailed_results
        scores = [float(score) for score in result.val_aggregate_scores]
        winner = max(range(len(scores)), key=lambda index: (scores[index], -index))
        return str(result.candidates[winner].guiding_text)

    def _inner_proposer(self) -> Callable[..., dict[str, str]]:
        return self.evidence if self.task.reflection is None else reflector(self.task)

    def stop(self, state: Any) -> bool:
        """Ends the search after an error, without a new text, or where `PromptTask.over` says so."""
        task = self.task
        # On passages of their own, a proposal and its parent are judged first.
        first = 0 if task.learning is task.comparison else 2 * self._size
        if task.watch.error is None and task.reflection is None and self.evidence.exhausted:
            task.ended = "proposals"
        return task.watch.error is not None or task.ended is not None or task.over(first + len(task.comparison))

    def _compare_at_once(self, text: str, passage: Passage) -> None:
        """Judges a text that GEPA begins to compare on all passages, whose examples DSPy evaluates one by one.

        Pairs that are judged together are written while others are scored, and always scored in the same batches.
        """
        with self._lock:
            if text == self._tried and passage.id not in self._minibatch:
                self._tried = ""
                self.task.judge(text)

    # GEPA calls these by name and only logs their exceptions, so each is watched.

    def on_proposal_end(self, event: Mapping[str, Any]) -> None:
        """A text was proposed."""
        with self.task.watch():
            self.proposal = next(iter(event["new_instructions"].values()))

    def on_candidate_selected(self, event: Mapping[str, Any]) -> None:
        """A text was chosen to propose another one from."""
        with self.task.watch():
            self._parent = next(iter(event["candidate"].values()))

    def on_evaluation_start(self, event: Mapping[str, Any]) -> None:
        """A text is about to be tried on a minibatch; only a new one has no index."""
        passages = [example.passage for example in event["inputs"]]
        if event["candidate_idx"] is not None:
            if self.task.learning is not self.task.comparison and self._parent:
                with self.task.watch():
                    self.task.judge(self._parent, passages)
        else:
            with self.task.watch():
                self.task.judge(self.proposal, passages)
                with self._lock:
                    self._tried = self.task.program.under(self.proposal).guiding_text
                    self._minibatch = {passage.id for passage in passages}

    def on_candidate_rejected(self, event: Mapping[str, Any]) -> None:
        """A proposal was no better than its parent on the minibatch."""
        with self.task.watch():
            size = self._size
            before = event["old_score"] / size
            self.task.reject(self.proposal, event["new_score"] / size, passages=size, parent_score=before)
