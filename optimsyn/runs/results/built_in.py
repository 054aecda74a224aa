"""Results of the built-in stages. Facts that an older version has not recorded are None."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from optimsyn.base.counting import plural
from optimsyn.base.terminal.labels import method_label
from optimsyn.reward.look.record import RewardLook
from optimsyn.runs.results.losses import Losses
from optimsyn.runs.results.measured import MeasuredResult
from optimsyn.runs.results.stage_result import NOT_RECORDED, Cells, StageResult, listed, named, show
from optimsyn.runs.results.text_search import SecondTurn, TextSearch

REWARD_NOT_LOOKED_AT = "switched off in the recipe (reward.look.pairs: 0)"
# Most files, passages and subtasks in a table; the run folder lists all.
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
    """Documents, passages and questions of a run."""

    stage: str = "prepare"
    documents: int | None = Field(description="Documents that were read.")
    groups: int | None = Field(description="Groups of documents that belong together.")
    passages: int | None = Field(description="Passages that they were cut into.")
    passage_words: tuple[int, int, int] | None = Field(description="Least, median and most words of a passage.")
    validation: int | None = Field(description="Validation questions.")
    test: int | None = Field(description="Test questions.")
    validation_subtasks: dict[str, int] | None = Field(description="Validation questions by subtask, most first.")
    test_subtasks: dict[str, int] | None = Field(description="Test questions by subtask, most first.")
    lost: int | None = Field(description="Rows of documents, passages and questions that were dropped.")
    lost_by_reason: dict[str, int] | None = Field(description="Dropped rows by reason.")
    skipped: int | None = Field(description="Documents that could not be read, with `documents.on_error: skip`.")
    skipped_documents: tuple[Skipped, ...] | None = Field(description="The first of them.")
    passed_over: int | None = Field(description="Files in the folder that are not documents.")
    talking: int | None = Field(description="Passages that talk to a language model.")
    talking_passages: tuple[str, ...] | None = Field(description="The first of them, by id.")
    talking_dropped: bool | None = Field(description="Whether they were dropped (`documents.on_injection: drop`).")

    def cells(self) -> Cells:
        """A row for each kind of input."""
        words = NOT_RECORDED
        if self.passage_words is not None:
            least, median, most = self.passage_words
            words = f"{least} to {most} words, median {median}"
        talking = named(self.talking_passages or (), self.talking, NAMED)
        if self.talking_dropped and talking:
            talking = f"dropped: {talking}"
        rows: Rows = (
            (
                "documents",
                self.documents,
                plural(self.groups, "group") if self.groups is not None else NOT_RECORDED,
            ),
            ("passages", self.passages, words),
            ("passages that talk to a language model", self.talking, talking),
            ("validation questions", self.validation, _subtasks(self.validation_subtasks)),
            ("test questions", self.test, _subtasks(self.test_subtasks)),
            *self._skipped(),
            ("rows lost", self.lost, "; ".join(f"{n}: {why}" for why, n in (self.lost_by_reason or {}).items())),
        )
        return Cells("What came in", ("what", "count", "note"), rows)

    def _skipped(self) -> Rows:
        """A row for the documents that `documents.on_error: skip` skipped, if any."""
        if not self.skipped:
            return ()
        lines = (f"{document.id} ({document.reason})" for document in self.skipped_documents or ())
        documents = named(lines, self.skipped, NAMED)
        return (("documents skipped", self.skipped, f"{documents}; prepare/lost.jsonl says more of each"),)


def _subtasks(counts: Mapping[str, int] | None) -> str:
    return NOT_RECORDED if counts is None else listed(counts, most=_SUBTASKS, more="more subtasks")


class Scoring(_Part):
    """How a run computes influence."""

    method: str = Field("", description="The method, as the scorer describes it.")
    errors: dict[str, float] = Field(default_factory=dict, description="Error of each method that was tried.")
    reason: str = Field("", description="Why this method.")


def _look(raw: Any) -> Any:
    """A reward look from a file; None if another version recorded other measures."""
    if not isinstance(raw, dict):
        return raw
    try:
        return RewardLook.from_json(raw)
    except (KeyError, TypeError):
        return None


class WarmUpResult(MeasuredResult):
    """Result of the warm-up, and quality of the first draft."""

    stage: str = "warm_up"
    first_draft: int | None = Field(description="First-draft candidates that were written.")
    redrafts: int | None = Field(description="How often an invalid candidate was written again, in all.")
    valid: int | None = Field(description="First-draft pairs that passed every check.")
    trained_on: int | None = Field(description="Pairs that the target was trained on.")
    steps: tuple[int, ...] | None = Field(description="Step of each checkpoint; the last is the warm-up's end.")
    lr: float | None = Field(description="Learning rate of the warm-up.")
    lr_reason: str | None = Field(description="Why this learning rate.")
    stopped: str | None = Field(description="Rule that ended it.")
    stopped_reason: str | None = Field(description="Reason that the rule gives.")
    held_out: int | None = Field(description="Valid pairs that were held out.")
    end_loss: tuple[float, float] | None = Field(
        description="Loss of the tokens that end an answer, before and after, in nats."
    )
    unseen_loss: tuple[float, float] | None = Field(description="Content loss of the held-out pairs, before and after.")
    question_loss: tuple[float, float] | None = Field(description="Content loss of the questions, before and after.")
    subtasks: tuple[str, ...] | None = Field(description="Subtasks that have a validation direction.")
    scoring: Scoring | None = Field(description="How influence is computed.")
    zero_gradient_baseline: float | None = Field(description="Influence of a sample without any gradient.")
    influence_mean: float | None = Field(description="Mean influence of the valid first-draft pairs.")
    influence_range: tuple[float, float] | None = Field(description="Their lowest and highest influence.")
    lost: dict[str, int] | None = Field(description="Invalid candidates by the first check that each failed.")
    reward: str | None = Field(description="Verdict on the reward, or why there is none.")
    reward_look: Annotated[RewardLook | None, BeforeValidator(_look)] = Field(
        description="The measures behind the verdict."
    )

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
            *((("written again", self.redrafts, "candidates that failed a check"),) if self.redrafts else ()),
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


class OptimizePromptResult(TextSearch, MeasuredResult):
    """Result of the search for a guiding text; without a search all but `enabled` is None."""

    stage: str = "optimize_prompt"
    enabled: bool | None = Field(description="Whether the recipe has it enabled.")
    method: str | None = Field(None, description="The prompt optimiser; None in runs of a version that had only gepa.")

    def search(self) -> dict[str, Any]:
        """The search in numbers, for a summary."""
        if not self.enabled:
            return {"enabled": self.enabled}
        return self.model_dump(mode="json", exclude={"stage", "notes", "start_text", "text", "busy"})

    def cells(self) -> Cells:
        """The texts before and after."""
        if not self.enabled:
            return _disabled("optimizers.prompt.enabled")
        title = f"Guiding text, before and after {method_label(self.method or 'gepa')}"
        return Cells(title, ("what", "value", "text"), self.rows_from("the recipe's"))


HELD_COLUMNS = ("round", "held passages", "untrained", "difference", "95% interval", "KL a token", "trained on")


class PolicyStep(_Part):
    """One step of the policy's training. A step without a judged pair has no reward."""

    step: int = Field(description="Its number.")
    reward: float | None = Field(None, description="Mean reward of its pairs.")
    reward_std: float | None = Field(None, description="Their standard deviation.")
    valid: float | None = Field(None, description="Share of valid pairs.")
    kl: float | None = Field(None, description="Divergence from the untrained model, in nats a token.")
    completion_length: float | None = Field(None, description="Mean tokens of a rubric.")
    unfinished: float | None = Field(None, description="Share of rubrics that were cut.")
    redrawn: int | None = Field(None, description="Groups without signal that were drawn again; of rounds.")
    groups_without_signal: float | None = Field(None, description="Share of groups whose rewards were all equal.")
    trained_on: int | None = Field(None, description="Rubrics, or pairs of them, trained on; of rounds.")
    held_reward: float | None = Field(None, description="Mean reward on the held passages after the round.")
    held_untrained: float | None = Field(None, description="That of the untrained policy.")
    held_difference: float | None = Field(None, description="Mean difference of the two over passages.")
    held_low: float | None = Field(None, description="Lower end of its 95% interval (paired bootstrap).")
    held_high: float | None = Field(None, description="Upper end.")


class TrainPolicyResult(MeasuredResult):
    """Result of the rubric model's training; without training all but `enabled` is None."""

    stage: str = "train_policy"
    enabled: bool | None = Field(description="Whether the recipe has it enabled.")
    method: str | None = Field(None, description="The policy optimiser; None in runs of a version that had only grpo.")
    steps: int | None = Field(None, description="Training steps.")
    group_size: int | None = Field(None, description="Rubrics that are compared for a passage.")
    reward_first: float | None = Field(None, description="Mean reward of the first step that has one.")
    reward_last: float | None = Field(None, description="Mean reward of the last such step.")
    history: tuple[PolicyStep, ...] | None = Field(None, description="All steps, or rounds.")
    kl_per_token: float | None = Field(None, description="KL of the kept policy from the untrained one, nats a token.")
    kept_round: int | None = Field(None, description="Round of the kept adapter; 0: the untrained policy.")
    stopped: str | None = Field(None, description="Why it stopped before its last round.")
    held_passages: int | None = Field(None, description="Passages that were never trained on.")
    held_difference: float | None = Field(None, description="What the kept policy gained on them.")
    held_low: float | None = Field(None, description="Lower end of its 95% interval (paired bootstrap).")
    held_high: float | None = Field(None, description="Upper end.")
    second_turn: SecondTurn | None = Field(
        None,
        description="The guiding text searched again, with the trained policy as the writer; None: it was not.",
    )

    @property
    def held_rows(self) -> Rows:
        """A row for each round that was measured on held passages."""
        return tuple(
            (
                step.step,
                step.held_reward,
                step.held_untrained,
                step.held_difference,
                None if step.held_low is None else f"{step.held_low:+.4f} to {step.held_high:+.4f}",
                step.kl,
                step.trained_on,
            )
            for step in self.history or ()
            if step.held_reward is not None
        )

    @property
    def conclusion(self) -> str | None:
        """How a training in rounds ended."""
        if self.kept_round is None:
            return None
        end = f"It stopped by itself: {self.stopped}." if self.stopped else "All rounds were made."
        kept = (
            f"The adapter of round {self.kept_round} is used." if self.kept_round else "The untrained policy is used."
        )
        return f"{end} {kept}"

    def training(self) -> dict[str, Any]:
        """The training in numbers, for a summary."""
        if not self.enabled:
            return {"enabled": self.enabled}
        texts = {"start_text", "text", "notes"}
        apart = dict.fromkeys(("stage", "notes", "history", "busy"), True)
        return self.model_dump(mode="json", exclude={**apart, "second_turn": texts if self.second_turn else True})

    def cells(self) -> Cells:
        """A row for each step; the title tells of a second search of the guiding text."""
        if not self.enabled:
            return _disabled("optimizers.policy.enabled")
        title = f"{method_label(self.method or 'grpo')} on the rubric model"
        if (again := self.second_turn) is not None:
            title += f", then the guiding text again: reward {show(again.start_score)} → {show(again.score)}"
        if rows := self.held_rows:
            return Cells(title, HELD_COLUMNS, rows)
        columns = ("step", "reward", "std within step", "valid share", "KL", "rubric tokens")
        rows = tuple(tuple(step.model_dump().values())[: len(columns)] for step in self.history or ())
        return Cells(title, columns, rows)


def _disabled(field: str) -> Cells:
    return Cells("Disabled in the recipe", ("what", "value"), ((field, "false"),))


class Predicted(_Part):
    """Mean loss on the validation questions, predicted by a simulated training, in nats."""

    now: float = Field(description="At the warm-up's last checkpoint.")
    kept: float = Field(description="After training on the selected pairs.")
    random: float = Field(description="After training on as many random candidates, mean over several sets.")
    steps: int = Field(description="Steps of that training.")


class MeanInfluence(_Part):
    """Mean influence of one variant's pairs."""

    valid: float = Field(description="Over its valid candidates.")
    kept: float = Field(description="Over the selected ones.")


class SynthesizeResult(MeasuredResult):
    """The pairs of every variant."""

    stage: str = "synthesize"
    pairs: int | None = Field(description="Pairs of each variant.")
    dataset: str | None = Field(description="Variant that became the dataset.")
    losses: dict[str, Losses] | None = Field(description="What became of each variant's candidates.")
    influence: dict[str, MeanInfluence] | None = Field(description="Mean influence of each variant.")
    predicted: dict[str, Predicted] | None = Field(description="Predicted loss after training on each variant.")

    def cells(self) -> Cells:
        """A row for each variant."""
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
        """The facts; an older version had another name for `predicted`."""
        facts = super().recorded(raw)
        return {"predicted": facts["foretold"], **facts} if "foretold" in facts else facts


class FineTuned(_Part):
    """The target's training on one variant's pairs."""

    pairs: int | None = Field(None, description="Pairs that it was trained on.")
    steps: int | None = Field(None, description="Training steps.")
    loss_first: float | None = Field(None, description="Training loss of the first step, in nats a token.")
    loss_last: float | None = Field(None, description="Training loss of the last step, in nats a token.")
    same_as: str | None = Field(None, description="An earlier variant with the same pairs, whose training is this one.")


class FineTuneResult(StageResult):
    """The target's training on each variant's pairs."""

    stage: str = "fine_tune"
    variants: dict[str, FineTuned] | None = Field(description="By variant.")

    def cells(self) -> Cells:
        """A row for each variant."""
        columns = ("variant", "pairs", "steps", "first training loss", "last training loss")
        rows = tuple((name, *list(each.model_dump().values())[:4]) for name, each in (self.variants or {}).items())
        return Cells("Fine-tuning", columns, rows)

    @classmethod
    def recorded(cls, raw: Mapping[str, Any]) -> dict[str, Any]:
        """The facts; older versions had the variants at this level."""
        facts = super().recorded(raw)
        return facts if "variants" in facts or not facts else {"variants": facts}


class MetricValue(_Part):
    """One metric of one variant on the test questions.

    Lower and upper ends are those of a bootstrap interval over questions; differences are paired with the baseline.
    """

    variant: str = Field(description="Variant that the target was fine-tuned on; `target`: not fine-tuned.")
    metric: str = Field(description="Name of the metric; `answer_loss` is in nats a token, the others are shares.")
    value: float = Field(description="Mean over the questions.")
    low: float | None = Field(None, description="Lower end of its interval.")
    high: float | None = Field(None, description="Upper end.")
    n: int = Field(description="Questions.")
    difference: float | None = Field(None, description="Paired difference to the untuned target; None for that target.")
    difference_low: float | None = Field(None, description="Lower end of its interval.")
    difference_high: float | None = Field(None, description="Upper end.")


class EvaluateResult(StageResult):
    """Every metric of every variant on the held-back test questions."""

    stage: str = "evaluate"
    metrics: tuple[MetricValue, ...] | None = Field(description="A row for each metric and variant.")

    @property
    def targets(self) -> int:
        """Number of evaluated targets."""
        return len({row.variant for row in self.metrics or ()})

    @property
    def questions(self) -> int:
        """Number of questions."""
        return max((row.n for row in self.metrics or ()), default=0)

    def cells(self) -> Cells:
        """A row for each metric and variant."""
        columns = ("variant", "metric", "value", "low", "high", "n", "difference", "from", "to")
        rows = tuple(tuple(row.model_dump().values()) for row in self.metrics or ())
        return Cells("On the held-back test questions", columns, rows)

    @classmethod
    def recorded(cls, raw: Mapping[str, Any]) -> dict[str, Any]:
        """The facts; older versions had them only in the table."""
        facts = super().recorded(raw)
        if "metrics" in facts or not raw.get("rows"):
            return facts
        names = list(MetricValue.model_fields)
        return {"metrics": [dict(zip(names, row, strict=False)) for row in raw["rows"]]}
