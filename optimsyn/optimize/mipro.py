"""`dspy.MIPROv2` as a method of prompt optimisation: a model proposes texts, and Optuna chooses among them.

The reflection model sees a summary of the passages, the start text, a tip, and rubrics that earned at least the mean
under the start text. Every text is compared on all passages, so that n texts cost n times as many judged pairs;
repeated trials of a text are cached. Demonstrations only serve the proposals: the result is a guiding text.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import dspy
from dspy.propose import GroundedProposer
from dspy.utils.callback import BaseCallback
from dspy.utils.exceptions import AdapterParseError

from optimsyn.base.errors import ModelError, ReplyError
from optimsyn.base.secrets.redaction import redact
from optimsyn.llm.dspy_bridge import make_lm
from optimsyn.optimize.gepa import LONGEST_PROPOSAL, junk
from optimsyn.optimize.prompt_task import THREADS, PromptTask
from optimsyn.recipe.sections.optimizers import MIPRO_TEXTS

if TYPE_CHECKING:
    from optimsyn.data.records import Passage
    from optimsyn.llm.language_model import LanguageModel

# Passages that the summarising model sees at once; dspy's default.
_VIEWED = 10
# DSPy rounds a mean to four decimals, and influence can be smaller.
_SCALE = 1e6


def search(task: PromptTask) -> str:
    """The text of the highest mean; the start text where none is better.

    Raises:
        ModelError: There is no reflection model, or Optuna is not installed.
        ServiceError: Not one proposal of the reflection model was usable.
    """
    if task.reflection is None:
        raise ModelError("optimizers.prompt.method: miprov2 needs models.reflection; name a model, or use gepa")
    try:
        import optuna  # noqa: F401
    except ModuleNotFoundError:
        raise ModelError(
            "optimizers.prompt.method: miprov2 needs the package optuna; pip install 'optimsyn[mipro]'"
        ) from None
    shared = task.learning is task.comparison
    texts = min(MIPRO_TEXTS, (task.spendable - (0 if shared else len(task.learning))) // len(task.comparison))
    examples = task.examples()
    lm = _reflection_lm(task.reflection, task)
    optimizer = _Search(
        task,
        metric=lambda gold, pred, trace=None: float(task.metric(gold, pred, trace).score) * _SCALE,
        prompt_model=lm,
        # Never called: the program brings its own model.
        task_model=lm,
        auto=None,
        num_candidates=texts,
        max_bootstrapped_demos=0,
        max_labeled_demos=0,
        num_threads=min(len(examples), THREADS),
        # The first error ends the search; until DSPy stops, each further call raises at once.
        max_errors=10**9,
        metric_threshold=task.compare(task.start).score * _SCALE,
        track_stats=False,
    )
    task.program.before = _compares_at_once(task)
    if not shared:
        task.judge(task.start, task.learning)
    best = optimizer.compile(
        task.program,
        trainset=task.examples(task.learning),
        valset=examples,
        # DSPy's own rule for this number of texts of one predictor.
        num_trials=int(max(2 * math.log2(texts), 1.5 * texts)),
        # To dspy, 0 is no seed.
        seed=task.seed + 1,
        minibatch=False,
        view_data_batch_size=_VIEWED,
    )
    task.ended = "plan"
    return str(best.guiding_text)


def _compares_at_once(task: PromptTask) -> Callable[[str, Passage], None]:
    """Judges each text on all passages when the first is asked for, since DSPy evaluates examples one by one."""
    lock = threading.Lock()
    compared: set[str] = set()

    def before(text: str, passage: Passage) -> None:
        with lock:
            if text not in compared:
                task.judge(text)
                compared.add(text)

    return before


class _Search(dspy.MIPROv2):
    """MIPROv2 in which single proposals may fail."""

    def __init__(self, task: PromptTask, **settings: Any) -> None:
        super().__init__(**settings)
        self._search = task

    def _propose_instructions(
        self, program: Any, trainset: list[Any], demo_candidates: Any, *others: Any, num_instruct_candidates: int
    ) -> dict[int, list[str]]:
        """The start text and up to `num_instruct_candidates - 1` others, some of which may equal it."""
        proposer = _Proposer(
            self._search,
            program=program,
            trainset=trainset,
            prompt_model=self.prompt_model,
            view_data_batch_size=_VIEWED,
            # The code of a program says nothing about the domain.
            program_aware=False,
            use_instruct_history=False,
            set_history_randomly=False,
            rng=self.rng,
        )
        proposals: dict[int, list[str]] = proposer.propose_instructions_for_program(
            trainset=trainset,
            program=program,
            demo_candidates=demo_candidates,
            trial_logs={},
            N=num_instruct_candidates,
        )
        proposer.raise_if_useless()
        proposals[0][0] = self._search.start
        return proposals


class _Proposer(GroundedProposer):
    """The proposer of dspy; the start text, which costs nothing, replaces a reply without a usable text."""

    def __init__(self, task: PromptTask, **settings: Any) -> None:
        self._search = task
        self._made = 0
        self._reasons: list[str] = []
        super().__init__(**settings)
        task.watch.raise_first()

    def propose_instruction_for_predictor(self, **about: Any) -> str:
        """One proposal."""
        if about["demo_set_i"] == 0:
            return self._search.start  # dspy's first text is always the start text
        self._made += 1
        reason = ""
        try:
            text = str(super().propose_instruction_for_predictor(**about)).strip()
            if len(text) > LONGEST_PROPOSAL:
                reason = f"{len(text)} characters; a guiding text has at most {LONGEST_PROPOSAL}"
        except (ReplyError, AdapterParseError) as error:
            text, reason = "", f"{type(error).__name__}: {error}"
        self._search.watch.raise_first()
        if text and not reason:
            return text
        reason = redact(reason or "an empty text")[:300]
        self._reasons.append(reason)
        self._search.history.add({"status": "proposal failed", "reason": reason})
        return self._search.start

    def raise_if_useless(self) -> None:
        """Ends a search without any proposal to try."""
        if self._reasons and len(self._reasons) == self._made and self._search.reflection is not None:
            raise junk(self._search.reflection, len(self._reasons), self._reasons[0])


class _Listener(BaseCallback):
    """Remembers a failed service, which dspy ignores where it can continue without the reply."""

    def __init__(self, task: PromptTask) -> None:
        self._search = task

    def on_lm_end(self, call_id: str, outputs: Any, exception: Exception | None = None) -> None:
        """A request has ended."""
        if exception is not None and not isinstance(exception, ReplyError):
            self._search.watch.remember(exception)


class _SeededLM(dspy.LM):
    """Gives each proposal a seed; dspy only numbers them for its own cache."""

    def copy(self, **changes: Any) -> Any:
        """A copy with changes."""
        rollout = changes.pop("rollout_id", None)
        return super().copy(**changes, **({} if rollout is None else {"seed": rollout}))


def _reflection_lm(model: LanguageModel, task: PromptTask) -> Any:
    lm = make_lm(model, temperature=1.0, kind=_SeededLM)
    lm.callbacks = [*lm.callbacks, _Listener(task)]
    return lm
