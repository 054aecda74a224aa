"""The task of a method of prompt optimisation: it judges texts by the reward, within a budget, and records them.

DSPy evaluates in threads and turns every exception of a program or metric into a failed example, and its optimisers
skip a proposal that raised. Neither may hide a dead service: the first error is remembered, stops all further requests,
and is raised when the method has ended.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import dspy

from optimsyn.base.errors import StageError
from optimsyn.base.event_loops import run_sync
from optimsyn.base.seeds import search_seed
from optimsyn.data.records import Passage
from optimsyn.optimize.history import History
from optimsyn.optimize.programs import AuthorProgram, PolicyProgram, PolicyWriter, RubricProgram, Watch
from optimsyn.recipe.sections.optimizers import PromptOptimizer

if TYPE_CHECKING:
    from optimsyn.llm.language_model import LanguageModel
    from optimsyn.programs.rubric import RubricWriter
    from optimsyn.programs.task_shape import TaskShape
    from optimsyn.reward.author.agent import RubricAuthor
    from optimsyn.reward.judgements import Judgement
    from optimsyn.reward.reward import InfluenceReward

# Consecutive unreadable rubrics that stop the search; fewer when the search has fewer passages.
GARBAGE_LIMIT = 20
# Passages judged at once.
THREADS = 16


@dataclass(frozen=True)
class Judged:
    """The result of one text on one passage.

    Attributes:
        passage: The passage.
        score: The reward of the pair: its influence, or minus a penalty if it failed a check.
        feedback: A sentence or two about the judgement.
    """

    passage: Passage
    score: float
    feedback: str


@dataclass(frozen=True)
class Candidate:
    """A judged guiding text.

    Attributes:
        guiding_text: The text.
        score: Mean reward over its judged passages.
        passages: Number of these passages.
    """

    guiding_text: str
    score: float
    passages: int


@dataclass(eq=False)
class PromptTask:
    """The task of a method of prompt optimisation.

    Attributes:
        config: The recipe's section `optimizers.prompt`; `metric_calls` is the budget of judged pairs, or of rubrics
            where the author writes them.
        writer: The rubric writer with the start text; it is not changed.
        reward: The reward of the run. Use `judge`, `compare` or `metric`, which enforce the budget.
        passages: The passages of the run, in the order of use.
        shape: Decides which kind of question each passage gets.
        seed: Draw only from this seed, so that a restarted search takes the same path.
        folder: Receives `history.jsonl`; a method may keep other files there.
        reflection: The recipe's `models.reflection`, if it names one; for DSPy, `make_lm(task.reflection)`.
        author: Writes the rubrics, so that its text is improved; None: the writer does.
        policy: Writes the rubrics in the writer's place, in the second turn of the text; None: the writer does.
        start: The guiding text to start from.
        comparison: The passages that every text is compared on.
        held: Passages to confirm the winner on; a method leaves them alone.
        training: Passages to learn from: those outside `comparison` and `held`, if the run has others.
        learning: Those that proposals are made and first tried on: `training` where the budget has room for that.
        ended: Why the search ended, a key of `ENDINGS`; None: its method says nothing.
        program: A DSPy program that writes rubrics; its one instruction is the guiding text.
        watch: Remembers the first error of any thread.
    """

    config: PromptOptimizer
    writer: RubricWriter
    reward: InfluenceReward
    passages: Sequence[Passage]
    shape: TaskShape
    seed: int
    folder: Path
    reflection: LanguageModel | None = None
    author: RubricAuthor | None = None
    policy: PolicyWriter | None = None
    start: str = field(init=False)
    comparison: tuple[Passage, ...] = field(init=False)
    held: tuple[Passage, ...] = field(init=False)
    training: tuple[Passage, ...] = field(init=False)
    learning: tuple[Passage, ...] = field(init=False)
    ended: str | None = field(init=False, default=None)
    watch: Watch = field(init=False, default_factory=Watch)
    _asked: set[tuple[str, str, int]] = field(init=False, default_factory=set)
    _scores: dict[str, dict[str, float]] = field(init=False, default_factory=dict)
    _closed: set[str] = field(init=False, default_factory=set)
    _best: float = field(init=False, default=float("-inf"))
    _in_vain: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.start = self.writer.guiding_text.strip()
        split = self.config.split(len(self.passages))
        self.spendable = split.searched
        self.comparison = tuple(self.passages[: split.compared])
        rest = self.passages[split.compared :]
        self.held, rest = tuple(rest[: split.held]), rest[split.held :]
        self.training = tuple(rest[: split.learned or split.compared]) or self.comparison
        self.learning = self.training if split.learned else self.comparison
        self._before = self.reward.different
        self._lock = threading.RLock()

    @cached_property
    def program(self) -> RubricProgram:
        """The rubric writer, the policy or the author, as a DSPy program under the start text."""
        limit = min(GARBAGE_LIMIT, 2 * len(self.comparison))
        if self.author is not None:
            return AuthorProgram(self.author, self.writer, self.watch, limit, self._ask).under(self.start)
        if self.policy is not None:
            return PolicyProgram(self.policy, self.writer, self.watch, limit, self._ask).under(self.start)
        return RubricProgram(self.writer, self.watch, limit, self._ask).under(self.start)

    @property
    def whose(self) -> str:
        """Whose text the start text is, for people."""
        return "the recipe's" if self.policy is None else "the first turn's"

    @cached_property
    def history(self) -> History:
        """Rows of `history.jsonl`; the task writes one for every compared text."""
        return History(self.folder / "history.jsonl")

    @property
    def judged(self) -> int:
        """Distinct pairs judged so far, including those from the ledger, so that a replay counts the same."""
        return self.reward.different - self._before

    @property
    def left(self) -> int:
        """How much of the budget is left; what was asked for before is free."""
        return self.spendable - len(self._asked)

    def over(self, costs: int) -> bool:
        """Whether to end, since the budget has no room for `costs` more pairs or proposals gain nothing any more."""
        if self.left < costs:
            self.ended = "budget"
        elif self._in_vain >= self.config.patience:
            self.ended = "patience"
        return self.ended is not None

    @property
    def judgements(self) -> list[Judgement]:
        """All judgements so far with checks and influence, in an order that does not depend on timing."""
        return self.reward.answered

    @property
    def candidates(self) -> list[Candidate]:
        """Every judged text with its mean so far, the start text first."""
        with self._lock:
            return [Candidate(text, fmean(scores.values()), len(scores)) for text, scores in self._scores.items()]

    def examples(self, passages: Sequence[Passage] | None = None) -> list[dspy.Example]:
        """Inputs of the program, with the seeds that make texts comparable; by default the comparison's."""
        examples = []
        for passage in self.comparison if passages is None else passages:
            seed = search_seed(self.seed, passage.id)
            example = dspy.Example(passage=passage, kind=self.shape.kind_for(seed), seed=seed)
            examples.append(example.with_inputs("passage", "kind", "seed"))
        return examples

    def judge(self, text: str, passages: Sequence[Passage] | None = None) -> list[Judged]:
        """Generates a pair under the text for each passage, and judges it.

        Args:
            text: A guiding text.
            passages: By default those of `comparison`.

        Raises:
            ServiceError: A service failed for good.
            StageError: The budget is exceeded.
        """
        program, examples = self.program.under(text), self.examples(passages)
        with self.watch():
            for example in examples:
                self._ask(program.guiding_text, example.passage.id, example.seed)
            blanks = [program.blank(each.passage, each.kind, each.seed, self.reward.source) for each in examples]
            rows = run_sync(self.reward.judge(blanks, program.ask))
        judged = []
        for example, row in zip(examples, rows, strict=True):
            score = self.reward.worth(row)
            self._record(program.guiding_text, example.passage.id, score)
            judged.append(Judged(example.passage, score, self.reward.feedback(row)))
        return judged

    def compare(self, text: str) -> Candidate:
        """Judges a text on all passages of `comparison`; this mean decides in the end."""
        rows = self.judge(text)
        return Candidate(self.program.under(text).guiding_text, fmean(row.score for row in rows), len(rows))

    def metric(
        self, gold: Any, pred: Any, trace: Any = None, pred_name: str | None = None, pred_trace: Any = None
    ) -> dspy.Prediction:
        """A DSPy metric with feedback: the reward, within the budget and recorded."""
        with self.watch():
            text = str(pred.guiding_text)
            self._ask(text, gold.passage.id, gold.seed)
            scored = self.reward.metric(gold, pred, trace, pred_name, pred_trace)
            self._record(text, gold.passage.id, float(scored.score))
            return scored

    def reject(self, text: str, score: float, **more: Any) -> None:
        """Records a text that was dropped before it was compared on all passages.

        Args:
            text: The text.
            score: Its mean on the passages it was tried on.
            more: Further fields of the row.
        """
        with self._lock:
            if text not in self._closed:
                self._in_vain += 1
                self._close(text, "rejected", score, **more)

    def close(self) -> None:
        """Records the texts that the method tried on only some of the passages."""
        for candidate in self.candidates:
            self.reject(candidate.guiding_text, candidate.score, passages=candidate.passages)

    def _ask(self, text: str, passage: str, seed: int) -> None:
        """Counts a requested pair; refuses one beyond the budget."""
        with self._lock:
            if (text, passage, seed) in self._asked:
                return
            if self.left < 1:
                most, unit = self.spendable, "judged pairs" if self.author is None else "rubrics of the author"
                kept = f" ({2 * len(self.held)} more are for the confirmation)" if self.held else ""
                raise StageError(
                    f"optimizers.prompt.method {self.config.method!r} asked for more than the {most} {unit} that "
                    f"optimizers.prompt.metric_calls allows{kept}; nothing more was bought, all judgements are kept. "
                    f"A text is compared on {len(self.comparison)} passages: let the method look at what is left "
                    "(task.left), or raise optimizers.prompt.metric_calls"
                )
            self._asked.add((text, passage, seed))

    def _record(self, text: str, passage: str, score: float) -> None:
        with self._lock:
            scores = self._scores.setdefault(text, {})
            scores[passage] = score
            if text in self._closed or any(other.id not in scores for other in self.comparison):
                return
            mean = fmean(scores[other.id] for other in self.comparison)
            gained, self._best = mean > self._best, max(self._best, mean)
            self._in_vain = 0 if gained else self._in_vain + 1
            status = "start" if text == self.start else "compared"
            self._close(text, status, mean, passages=len(self.comparison))

    def _close(self, text: str, status: str, score: float, **more: Any) -> None:
        self._closed.add(text)
        row = {"judged": self.judged, "status": status, "score": score, "best": self._best, "guiding_text": text}
        self.history.add(row | more)
