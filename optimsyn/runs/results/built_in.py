"""What each built-in stage found. A fact that a run of an older version has not recorded is None."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from optimsyn.base.labels import method_label
from optimsyn.reward.look.record import RewardLook
from optimsyn.runs.results.losses import Losses
from optimsyn.runs.results.stage_result import NOT_RECORDED, Cells, StageResult, listed, named

REWARD_NOT_LOOKED_AT = "switched off in the recipe (reward.look.pairs: 0)"
# Files, passages and subtasks that a table names; the run folder has all of them.
NAMED = 8
_SUBTASKS = 6
Rows = tuple[tuple[Any, ...], ...]


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class Skipped(_Part):
    """A document that could not be read."""

    id: str = Field(description="Its file.")
    reason: str = Field(description="What was wrong with it.")


class PrepareResult(StageResult):
    """What came in."""

    stage: str = "prepare"
    documents: int | None = Field(description="Documents that were read.")
    groups: int | None = Field(description="Groups of documents that belong together.")
    passages: int | None = Field(description="Passages that they were cut into.")
    passage_words: tuple[int, int, int] | None = Field(description="Least, median and most words of a passage.")
    validation: int | None = Field(description="Validation questions.")
    test: int | None = Field(description="Test questions.")
    validation_subtasks: dict[str, int] | None = Field(description="Validation questions by subtask, most first.")
    test_subtasks: dict[str, int] | None = Field(description="Test questions by subtask, most first.")
    lost: int | None = Field(description="Rows of documents, passages and questions that were lost on the way.")
    lost_by_reason: dict[str, int] | None = Field(description="The same by reason.")
    skipped: int | None = Field(description="Documents that could not be read, with `documents.on_error: skip`.")
    skipped_documents: tuple[Skipped, ...] | None = Field(description="The first of them.")
    passed_over: int | None = Field(description="Files of the folder that are no documents.")
    talking: int | None = Field(description="Passages that talk to a language model.")
    talking_passages: tuple[str, ...] | None = Field(description="The first of them, by id.")
    talking_dropped: bool | None = Field(description="They were left out, as `documents.on_injection: drop` says.")

    def cells(self) -> Cells:
        """What came in, a row each."""
        words = NOT_RECORDED
        if self.passage_words is not None:
            least, median, most = self.passage_words
            words = f"{least} to {most} words, median {median}"
        talking = named(self.talking_passages or (), self.talking, NAMED)
        if self.talking_dropped and talking:
            talking = f"dropped: {talking}"
        rows: Rows = (
            ("documents", self.documents, f"{self.groups} groups" if self.groups is not None else NOT_RECORDED),
            ("passages", self.passages, words),
            ("passages that talk to a language model", self.talking, talking),
            ("validation questions", self.validation, _subtasks(self.validation_subtasks)),
            ("test questions", self.test, _subtasks(self.test_subtasks)),
            *self._skipped(),
            ("rows lost", self.lost, "; ".join(f"{n} {why}" for why, n in (self.lost_by_reason or {}).items())),
        )
        return Cells("What came in", ("what", "count", "note"), rows)

    def _skipped(self) -> Rows:
        """A row for what `documents.on_error: skip` left out; none where nothing was."""
        if not self.skipped:
            return ()
        lines = (f"{document.id} ({document.reason})" for document in self.skipped_documents or ())
        documents = named(lines, self.skipped, NAMED)
        return (("documents skipped", self.skipped, f"{documents}; prepare/lost.jsonl says more of each"),)


def _subtasks(counts: Mapping[str, int] | None) -> str:
    return NOT_RECORDED if counts is None else listed(counts, most=_SUBTASKS, more="more subtasks")


class Scoring(_Part):
    """Which way of computing influence a run took."""

    method: str = Field("", description="The way, in the scorer's own words.")
    errors: dict[str, float] = Field(default_factory=dict, description="How far off each way is that was tried.")
    reason: str = Field("", description="Why this one.")


def _look(raw: Any) -> Any:
    """A look at a reward as a file holds it; None for one of a version that recorded other measures."""
    if not isinstance(raw, dict):
        return raw
    try:
        return RewardLook.from_json(raw)
    except (KeyError, TypeError):
        return None


class WarmUpResult(StageResult):
    """How the warm-up of the target went, and what its first draft is worth."""

    stage: str = "warm_up"
    first_draft: int | None = Field(description="First-draft candidates that were written.")
    valid: int | None = Field(description="Those that passed every check.")
    trained_on: int | None = Field(description="Those that the target was trained on.")
    steps: tuple[int, ...] | None = Field(description="Step of each checkpoint; the last is the warm-up's end.")
    lr: float | None = Field(description="Learning rate of the warm-up.")
    lr_reason: str | None = Field(description="Why this one.")
    stopped: str | None = Field(description="By which rule it ended.")
    stopped_reason: str | None = Field(description="What that rule saw.")
    held_out: int | None = Field(description="Valid pairs that were held back to look at.")
    end_loss: tuple[float, float] | None = Field(description="Loss of what ends an answer, before and after, in nats.")
    unseen_loss: tuple[float, float] | None = Field(description="Content loss of the held-back pairs, likewise.")
    question_loss: tuple[float, float] | None = Field(description="Content loss of the questions, likewise.")
    subtasks: tuple[str, ...] | None = Field(description="Subtasks that have a validation direction.")
    scoring: Scoring | None = Field(description="How influence is computed.")
    zero_gradient_baseline: float | None = Field(description="Influence that a sample without gradient would get.")
    influence_mean: float | None = Field(description="Mean influence of the valid first-draft pairs.")
    influence_range: tuple[float, float] | None = Field(description="Lowest and highest influence of them.")
    lost: dict[str, int] | None = Field(description="Invalid candidates by the first check that each failed.")
    reward: str | None = Field(description="What the run found its reward to be, or why it has not looked.")
    reward_look: Annotated[RewardLook | None, BeforeValidator(_look)] = Field(description="The measures behind it.")

    def cells(self) -> Cells:
        """Drafts, training, scoring, and the reward."""
        lost = ", ".join(f"{name} {count}x" for name, count in (self.lost or {}).items())
        ends = NOT_RECORDED
        if self.influence_range is not None:
            ends = f"from {self.influence_range[0]:.4g} to {self.influence_range[1]:.4g}"
        scoring = self.scoring or Scoring(method=NOT_RECORDED)
        subtasks = self.subtasks or ()
        rows: Rows = (
            ("first-draft pairs", self.first_draft, lost or "none lost"),
            ("valid", self.valid, f"the target was trained on {self.trained_on} of them"),
            *self._training(),
            ("validation directions", len(subtasks), ", ".join(subtasks)),
            ("influence is computed by", scoring.method, scoring.reason),
            ("mean influence of the first draft", self.influence_mean, ends),
            ("influence of a zero gradient", self.zero_gradient_baseline, "what momentum alone would earn"),
            self._reward(),
        )
        return Cells("The target is warm", ("what", "value", "note"), rows)

    def _training(self) -> Rows:
        if self.stopped is None:
            return ()
        rows: list[tuple[Any, ...]] = [
            ("steps", self.steps[-1] if self.steps else None, f"{self.stopped}: {self.stopped_reason}"),
            ("learning rate", self.lr, self.lr_reason),
        ]
        for label, losses in (
            ("loss of what ends an answer", self.end_loss),
            (f"content loss of {self.held_out} unseen pairs", self.unseen_loss),
            ("content loss of the questions", self.question_loss),
        ):
            if losses is not None:
                rows.append((label, losses[1], f"nats a token, {losses[0]:.4g} before the warm-up"))
        return tuple(rows)

    def _reward(self) -> tuple[str, str, str]:
        if self.reward_look is None:
            return ("a look at the reward", "none", self.reward or NOT_RECORDED)
        return ("a look at the reward", self.reward_look.verdict, "; ".join(self.reward_look.reasons))


class OptimizePromptResult(StageResult):
    """What the search for a better guiding text found; all but `enabled` is None where there was no search."""

    stage: str = "optimize_prompt"
    enabled: bool | None = Field(description="The recipe wants a search.")
    method: str = Field("gepa", description="The prompt optimiser; a run of an older version had one.")
    start_score: float | None = Field(None, description="Mean reward of the recipe's guiding text.")
    score: float | None = Field(None, description="Mean reward of the chosen guiding text.")
    start_text: str | None = Field(None, description="The recipe's guiding text.")
    text: str | None = Field(None, description="The chosen guiding text.")
    candidates: int | None = Field(None, description="Texts that were tried.")
    judged: int | None = Field(None, description="Pairs that were judged.")
    changed: bool | None = Field(None, description="Another text than the recipe's was chosen.")

    def search(self) -> dict[str, Any]:
        """The search in numbers, for a summary."""
        if not self.enabled:
            return {"enabled": self.enabled}
        return self.model_dump(mode="json", exclude={"stage", "notes", "start_text", "text"})

    def cells(self) -> Cells:
        """The texts before and after."""
        if not self.enabled:
            return _disabled("optimizers.prompt.enabled")
        rows: Rows = (
            ("reward of the recipe's guiding text", self.start_score, self.start_text),
            ("reward of the chosen guiding text", self.score, self.text),
            ("candidates tried", self.candidates, f"{self.judged} pairs judged"),
        )
        return Cells(f"Guiding text, before and after {method_label(self.method)}", ("what", "value", "text"), rows)


class PolicyStep(_Part):
    """One step of the policy's training. A step of which no pair could be judged has no reward."""

    step: int = Field(description="Its number.")
    reward: float | None = Field(None, description="Mean reward of its pairs.")
    reward_std: float | None = Field(None, description="Their standard deviation.")
    valid: float | None = Field(None, description="Share of valid pairs.")
    kl: float | None = Field(None, description="Divergence from the untrained model, in nats.")
    completion_length: float | None = Field(None, description="Mean tokens of a rubric.")


class TrainPolicyResult(StageResult):
    """How the rubric model's training went; all but `enabled` is None where it was not trained."""

    stage: str = "train_policy"
    enabled: bool | None = Field(description="The recipe wants a trained policy.")
    method: str = Field("grpo", description="The policy optimiser; a run of an older version had one.")
    steps: int | None = Field(None, description="Training steps.")
    group_size: int | None = Field(None, description="Rubrics that were compared for a passage.")
    reward_first: float | None = Field(None, description="Mean reward of the first step that has one.")
    reward_last: float | None = Field(None, description="Mean reward of the last one.")
    history: tuple[PolicyStep, ...] | None = Field(None, description="Every step.")

    def training(self) -> dict[str, Any]:
        """The training in numbers, for a summary."""
        if not self.enabled:
            return {"enabled": self.enabled}
        return self.model_dump(mode="json", exclude={"stage", "notes", "history"})

    def cells(self) -> Cells:
        """A row a step."""
        if not self.enabled:
            return _disabled("optimizers.policy.enabled")
        columns = ("step", "reward", "std within step", "valid share", "KL", "rubric tokens")
        rows = tuple(tuple(step.model_dump().values()) for step in self.history or ())
        return Cells(f"{method_label(self.method)} on the rubric model", columns, rows)


def _disabled(field: str) -> Cells:
    return Cells("Disabled in the recipe", ("what", "value"), ((field, "false"),))


class Predicted(_Part):
    """The validation questions' mean loss, as a simulated training predicts it, in nats."""

    now: float = Field(description="At the warm-up's last checkpoint.")
    kept: float = Field(description="After training on the pairs that are kept.")
    random: float = Field(description="After training on as many random candidates, the mean of some such sets.")
    steps: int = Field(description="Steps of that training.")


class MeanInfluence(_Part):
    """Mean influence of one variant's pairs."""

    valid: float = Field(description="Over its valid candidates.")
    kept: float = Field(description="Over those that were kept.")


class SynthesizeResult(StageResult):
    """The pairs of every variant."""

    stage: str = "synthesize"
    pairs: int | None = Field(description="Pairs of each variant.")
    dataset: str | None = Field(description="Variant that became the dataset.")
    losses: dict[str, Losses] | None = Field(description="What became of each variant's candidates.")
    influence: dict[str, MeanInfluence] | None = Field(description="Mean influence of each variant.")
    predicted: dict[str, Predicted] | None = Field(description="What training on each variant would bring.")

    def cells(self) -> Cells:
        """A row a variant."""
        columns: tuple[str, ...] = ("variant", "candidates", "invalid", "duplicates", "not selected", "pairs")
        columns += ("mean influence", "of those kept")
        if self.predicted:
            columns += ("predicted loss", "of random pairs")
        rows = []
        for variant, lost in (self.losses or {}).items():
            mean = (self.influence or {}).get(variant)
            row: tuple[Any, ...] = (
                variant,
                lost.candidates,
                lost.invalid,
                lost.duplicate,
                lost.not_selected,
                lost.kept,
            )
            row += (None, None) if mean is None else (mean.valid, mean.kept)
            if self.predicted:
                predicted = self.predicted.get(variant)
                row += (None, None) if predicted is None else (predicted.kept, predicted.random)
            rows.append(row)
        return Cells("Pairs of every variant", columns, tuple(rows))

    @classmethod
    def recorded(cls, raw: Mapping[str, Any]) -> dict[str, Any]:
        """The facts; an older version had another name for one of them."""
        facts = super().recorded(raw)
        return {"predicted": facts["foretold"], **facts} if "foretold" in facts else facts


class FineTuned(_Part):
    """The target's training on one variant's pairs."""

    pairs: int | None = Field(None, description="Pairs that it was trained on.")
    steps: int | None = Field(None, description="Training steps.")
    loss_first: float | None = Field(None, description="Training loss of the first step, in nats a token.")
    loss_last: float | None = Field(None, description="Training loss of the last step, likewise.")


class FineTuneResult(StageResult):
    """The target's training on each variant's pairs."""

    stage: str = "fine_tune"
    variants: dict[str, FineTuned] | None = Field(description="By variant.")

    def cells(self) -> Cells:
        """A row a variant."""
        columns = ("variant", "pairs", "steps", "first training loss", "last training loss")
        rows = tuple((name, *each.model_dump().values()) for name, each in (self.variants or {}).items())
        return Cells("Fine-tuning", columns, rows)

    @classmethod
    def recorded(cls, raw: Mapping[str, Any]) -> dict[str, Any]:
        """The facts; older versions had the variants themselves in this place."""
        facts = super().recorded(raw)
        return facts if "variants" in facts or not facts else {"variants": facts}


class MetricValue(_Part):
    """One metric of one variant on the test questions.

    Lower and upper ends are those of a bootstrap interval over questions; differences are paired with the baseline.
    """

    variant: str = Field(description="What the target was fine-tuned on; `target`: not at all.")
    metric: str = Field(description="Name of the metric; `answer_loss` is in nats a token, the others are shares.")
    value: float = Field(description="Mean over the questions.")
    low: float | None = Field(None, description="Lower end of its interval.")
    high: float | None = Field(None, description="Upper end.")
    n: int = Field(description="Questions.")
    difference: float | None = Field(None, description="To the target as it came; None for that itself.")
    difference_low: float | None = Field(None, description="Lower end of its interval.")
    difference_high: float | None = Field(None, description="Upper end.")


class EvaluateResult(StageResult):
    """Every metric of every variant on the held-back test questions."""

    stage: str = "evaluate"
    metrics: tuple[MetricValue, ...] | None = Field(description="A row for each metric and variant.")

    @property
    def targets(self) -> int:
        """How many targets were evaluated."""
        return len({row.variant for row in self.metrics or ()})

    @property
    def questions(self) -> int:
        """On how many questions."""
        return max((row.n for row in self.metrics or ()), default=0)

    def cells(self) -> Cells:
        """A row for each metric and variant."""
        columns = ("variant", "metric", "value", "low", "high", "n", "difference", "from", "to")
        rows = tuple(tuple(row.model_dump().values()) for row in self.metrics or ())
        return Cells("On the held-back test questions", columns, rows)

    @classmethod
    def recorded(cls, raw: Mapping[str, Any]) -> dict[str, Any]:
        """The facts; older versions had them in the table alone."""
        facts = super().recorded(raw)
        if "metrics" in facts or not raw.get("rows"):
            return facts
        names = list(MetricValue.model_fields)
        return {"metrics": [dict(zip(names, row, strict=False)) for row in raw["rows"]]}
