"""Objects that the stages of a run share: passages, questions, models, scorer and reward.

Each is built on first use and cached, so that a stage loads only what it needs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from optimsyn.base.errors import StageError
from optimsyn.base.files import read_jsonl
from optimsyn.base.meter import Meter
from optimsyn.base.seeds import derive_seed, shuffled
from optimsyn.data.records import Document, Pair, Passage, Question
from optimsyn.data.splits import PARTS, Part, passage_parts
from optimsyn.recipe.sections.reward import WITHOUT_GRADIENTS
from optimsyn.runs.folder import Run

if TYPE_CHECKING:
    from optimsyn.influence.conditional import DirectedScorer, MovedScorer
    from optimsyn.influence.factory import MeasuredScorer
    from optimsyn.influence.simulated.scorer import BatchTraining
    from optimsyn.llm.language_model import LanguageModel
    from optimsyn.llm.replies import Budget
    from optimsyn.programs.checker import Checker
    from optimsyn.programs.pair import PairWriter
    from optimsyn.programs.rubric import RubricWriter
    from optimsyn.programs.task_shape import TaskShape
    from optimsyn.recipe.recipe import ModelSpec
    from optimsyn.reward.drafting import Drafter
    from optimsyn.reward.reward import InfluenceReward
    from optimsyn.runs.stage_handle import StageHandle
    from optimsyn.target.target import Target

# Stages that know all their requests; in the others each request depends on earlier replies.
BATCH_STAGES = ("warm_up", "synthesize")

GUIDING_TEXT = "guiding_text.txt"
"""The text that a search has chosen, in the folder of its stage."""
# Requests scored together on a GPU, which takes as long for a few.
GPU_WINDOW = 32


class Tools:
    """The shared objects of a run, each built on first use.

    Args:
        run: The run to read from and cache in.
        stage: Handle that reports the progress of long preparations.
    """

    def __init__(self, run: Run, stage: StageHandle | None = None) -> None:
        self.run = run
        self.stage = stage
        self.recipe = run.recipe
        self.meter = Meter() if stage is None else stage.meter

    @cached_property
    def documents(self) -> list[Document]:
        """The documents that `prepare` read."""
        return read_jsonl(self.run.path("prepare", "documents.jsonl"), Document)

    @cached_property
    def passages(self) -> list[Passage]:
        """The passages that `prepare` cut."""
        return read_jsonl(self.run.path("prepare", "passages.jsonl"), Passage)

    @cached_property
    def validation(self) -> list[Question]:
        """The validation questions, which give influence its direction."""
        return read_jsonl(self.run.path("prepare", "validation.jsonl"), Question)

    @cached_property
    def reward_questions(self) -> list[Question]:
        """The questions that the reward is about: those of validation, or what `reward.source` puts in their place."""
        if self.recipe.reward.source not in ("permuted", "other"):
            return self.validation
        return read_jsonl(self.run.path("prepare", "reward_questions.jsonl"), Question)

    @cached_property
    def test(self) -> list[Question]:
        """The test questions: only `evaluate` and the selection of pairs may look at them."""
        return read_jsonl(self.run.path("prepare", "test.jsonl"), Question)

    @cached_property
    def passage_order(self) -> list[Passage]:
        """The passages in the seeded order that every variant uses; those of a stage are `passages_for`."""
        by_id = {passage.id: passage for passage in self.passages}
        return [by_id[key] for key in shuffled(list(by_id), self.recipe.seed_of("data"), "passages")]

    def passages_for(self, part: Part) -> list[Passage]:
        """The passages that one part of the run uses, in the seeded order: all, or its own (`synthesis.passages`)."""
        return self._passage_parts[part]

    @cached_property
    def _passage_parts(self) -> dict[Part, list[Passage]]:
        order = self.passage_order
        parts = passage_parts(self.recipe, len(order))
        return {part: order if parts is None else [order[place] for place in parts[part]] for part in PARTS}

    def candidate(self, index: int, variant: str = "") -> tuple[Passage, int]:
        """Passage and seed of the `index`-th candidate, the same in every variant.

        Equal seeds make the variants comparable, and candidates with the same rubric share one cached reply.

        Args:
            index: From 0.
            variant: "first_draft" for the passages of the warm-up, "" for all, else those of the synthesis.
        """
        passages = self.passage_order
        if variant:
            passages = self.passages_for("warm_up" if variant == "first_draft" else "synthesize")
        return passages[index % len(passages)], derive_seed(self.recipe.seed_of("generator"), "candidate", index)

    @cached_property
    def budget(self) -> Budget:
        """The recipe's caps on everything that the run buys, and those of its batch, if it is in one."""
        from optimsyn.llm.replies import Budget
        from optimsyn.llm.shared_budget import Purse

        return Budget.of(self.recipe.limits, self.run.replies, purse=Purse.from_environment())

    @cached_property
    def generator(self) -> LanguageModel:
        """The model that writes pairs."""
        return self._language_model("generator", self.recipe.models.generator)

    @cached_property
    def rubric_model(self) -> LanguageModel:
        """The untrained model that writes rubrics."""
        return self._language_model("rubric", self.recipe.models.rubric)

    @cached_property
    def author_model(self) -> LanguageModel:
        """The model that calls the author's tools: `models.author`, or the rubric model."""
        spec = self.recipe.models.author
        return self.rubric_model if spec is None else self._language_model("author", spec)

    def _language_model(self, role: str, spec: ModelSpec) -> LanguageModel:
        from optimsyn.llm.factory import load_language_model

        batches = None
        if spec.batch and self.stage is not None and self.stage.name in BATCH_STAGES:
            from optimsyn.llm.hosted.batches import Batches

            stage = self.stage
            batches = Batches(
                self.run.folder / "batches" / role,
                hours=spec.batch_hours,
                report=lambda done, total: stage.progress(done, total, f"replies of {role} batches", last=False),
            )
        field = f"models.{role}"
        model = load_language_model(spec, self.run.replies, budget=self.budget, batches=batches, field=field)
        return self._measured(model, role)

    def _measured(self, model: LanguageModel, role: str) -> LanguageModel:
        model.at_work = partial(self.meter.at_work, role)
        return model

    @property
    def ahead(self) -> int:
        """Candidates under way at once: enough that neither the rubric model nor the generator waits for requests."""
        from optimsyn.llm.local.loading import at_once

        models = self.recipe.models
        return 2 * (at_once(models.generator) + at_once(models.rubric))

    @property
    def asks_at_once(self) -> bool:
        """Whether this stage should send all requests before it reads a reply, since a model works in batches."""
        models = self.recipe.models
        in_batches = self.stage is not None and self.stage.name in BATCH_STAGES
        return in_batches and (models.generator.batch or models.rubric.batch)

    @cached_property
    def policy(self) -> LanguageModel:
        """The rubric model with the adapter that `train_policy` trained.

        Raises:
            StageError: `train_policy` has left no adapter.
        """
        from optimsyn.llm.factory import load_language_model

        adapter = self.policy_adapter
        if not (adapter / "adapter_config.json").is_file():
            raise StageError(f"{adapter}: no trained policy; run the stage train_policy first")
        spec = self.recipe.models.rubric
        policy = load_language_model(spec, self.run.replies, adapter=adapter, budget=self.budget)
        return self._measured(policy, "rubric")

    @cached_property
    def untrained_policy(self) -> LanguageModel:
        """The rubric model as the policy's training starts from it, sampled as the policy is."""
        from optimsyn.llm.embedded.writer import adapter_dir
        from optimsyn.llm.factory import load_language_model

        spec = self.recipe.models.rubric
        start = adapter_dir() if spec.provider == "embedded" else None
        model = load_language_model(spec, self.run.replies, adapter=start, budget=self.budget)
        return self._measured(model, "rubric")

    @property
    def policy_adapter(self) -> Path:
        """Folder of the trained policy's adapter."""
        return self.run.path("train_policy", "adapter")

    @cached_property
    def shape(self) -> TaskShape:
        """The form of the validation questions, which the pairs imitate."""
        from optimsyn.programs.task_shape import TaskShape

        return TaskShape.of(self.validation, show_form=self.recipe.questions.show_form)

    def rubric_writer(self, guiding_text: str) -> RubricWriter:
        """A rubric writer with a guiding text and the untrained rubric model."""
        from optimsyn.programs.rubric import RubricWriter

        return RubricWriter(self.rubric_model, guiding_text, self.shape)

    @cached_property
    def pair_writer(self) -> PairWriter:
        """Writes pairs in the form of the validation questions."""
        from optimsyn.programs.pair import PairWriter

        return PairWriter(self.generator, self.shape)

    @cached_property
    def checker(self) -> Checker:
        """The validity checks of the recipe."""
        from optimsyn.programs.checker import Checker

        spec = self.recipe.models.judge
        if spec is None:
            return Checker(self.recipe.checks, self.validation)
        from optimsyn.programs.judge import PairJudge

        judge = PairJudge(self._language_model("judge", spec), self.recipe.checks.judge)
        return Checker(self.recipe.checks, self.validation, judge)

    def is_near_test(self, pair: Pair) -> bool:
        """Whether a pair is nearly a test question: it may earn a reward, but never enter a dataset."""
        from optimsyn.programs.checks import NEAR_QUESTION

        if NEAR_QUESTION in self.recipe.checks.disabled:
            return False
        return self._test_checker.repeats_a_question(pair, self._passages_by_id[pair.passage_id])

    @cached_property
    def _test_checker(self) -> Checker:
        from optimsyn.programs.checker import Checker
        from optimsyn.recipe.sections.synthesis import Checks

        return Checker(Checks(), self.test)

    @cached_property
    def _passages_by_id(self) -> dict[str, Passage]:
        return {passage.id: passage for passage in self.passages}

    @cached_property
    def drafter(self) -> Drafter:
        """Writes pairs under rubrics and checks them."""
        from optimsyn.reward.drafting import Drafter

        return Drafter(self.pair_writer, self.checker)

    @cached_property
    def target(self) -> Target:
        """The target model, with its warm-up checkpoints once `warm_up` has finished.

        Until then it is untrained: a killed warm-up starts its training again.
        """
        from optimsyn.target.target import Target

        target = Target.load(self.recipe.models.target, seed=self.recipe.seed_of("data"))
        if self.recipe.further_warm_ups:
            target.remember_start()
        if self.run.done("warm_up"):
            target.add_checkpoints_from(self.run.path("warm_up", "checkpoints"))
        return target

    @cached_property
    def scorer(self) -> MeasuredScorer:
        """The scorer that gives the reward; its directions are cached in the run."""
        if not self.target.checkpoints:
            raise StageError(f"{self.run.folder}: no warm-up checkpoint; run the stage warm_up first")
        folder = self.run.path("warm_up", "directions")
        count = None
        if self.stage is not None:
            total = len(self.reward_questions) * len(self.target.checkpoints)
            if self.batch_training is not None:
                total = len(self.reward_questions) + len(self.batch_training.used)
            if self.recipe.reward.source not in WITHOUT_GRADIENTS:
                count = self.stage.count(total, "validation gradients", last=False)
        report = count.add if count is not None else None
        return self.scorer_over(self.reward_questions, folder, training=self.batch_training, report=report)

    def scorer_over(
        self,
        questions: list[Question],
        folder: Path | None = None,
        *,
        training: BatchTraining | None = None,
        report: Callable[[int], None] | None = None,
    ) -> MeasuredScorer:
        """The scorer that `reward.source` names, over some of the `reward_questions`; see `build_scorer`."""
        from optimsyn.influence.factory import build_scorer
        from optimsyn.reward.controls import NegatedScorer, PlainScorer

        source, config = self.recipe.reward.source, self.recipe.influence
        if source in ("random", "length"):
            return PlainScorer(source, self.target, config.tokens, self.recipe.seed_of("data"))
        scorer = build_scorer(self.target, questions, config, folder, training=training, report=report)
        return NegatedScorer(scorer) if source == "negated" else scorer

    @cached_property
    def batch_training(self) -> BatchTraining | None:
        """The training that the estimator `simulated` simulates, with the run's first drafts as companions.

        Drafts that the warm-up has not trained on come first: they are as new to the target as later pairs.
        None for the other estimators.

        Raises:
            StageError: There is no first draft.
        """
        if self.recipe.influence.estimator != "simulated" or not self.recipe.influence.is_influence:
            return None
        path = self.run.path("warm_up", "pairs.jsonl")
        if not path.is_file():
            raise StageError(f"{path}: missing; influence.estimator: simulated needs the first drafts of warm_up")
        return self.training_with(read_jsonl(path, Pair))

    def training_with(self, pairs: list[Pair]) -> BatchTraining:
        """The simulated training, with these valid first drafts as companions."""
        from optimsyn.influence.simulated.scorer import BatchTraining
        from optimsyn.target.warm_up.parts import parts_of
        from optimsyn.training.fine_tuning import MAX_GRAD_NORM

        trained = {pair.id for pair in parts_of(self.recipe, pairs)[0]}
        companions = sorted(pairs, key=lambda pair: pair.id in trained)
        return BatchTraining(companions, self.recipe.fine_tune, MAX_GRAD_NORM)

    def moved_scorer(self) -> MovedScorer:
        """A scorer that treats pairs judged earlier as learnt; it starts with none."""
        from optimsyn.influence.conditional import MovedScorer
        from optimsyn.training.fine_tuning import MAX_GRAD_NORM

        return MovedScorer(
            cast("DirectedScorer", self.scorer),
            self.target,
            self.reward_questions,
            self.recipe.influence,
            self.recipe.fine_tune,
            max_grad_norm=MAX_GRAD_NORM,
        )

    def reward(
        self,
        source: str,
        report: Callable[[int, int], None] | None = None,
        *,
        given: Literal["nothing", "judged"] = "nothing",
    ) -> InfluenceReward:
        """The one reward of the run.

        Args:
            source: Name of the stage, written to every row of `rewards.jsonl`.
            report: Called with the number of requests judged now and of distinct ones so far.
            given: As the recipe's `reward.given`.

        Raises:
            StageError: A finished stage used other checks or another scorer.
        """
        from optimsyn.stages.judged_by import NOTE, facts_of, refuse_another

        facts = facts_of(self.scorer, self.checker)
        refuse_another(self.run, facts)
        reward = self.reward_by(
            self.scorer if given == "nothing" else self.moved_scorer(),
            source,
            self.run.path("rewards.jsonl"),
            self._first_draft,
            report,
        )
        if self.stage is not None:
            self.stage.note(**{NOTE: facts}, passed_over=reward.passed_over)
        return reward

    @property
    def invalid_penalty(self) -> float:
        """What an invalid pair loses; see `penalty_of`."""
        from optimsyn.reward.controls import penalty_of

        return penalty_of(self.recipe.reward, self._first_draft)

    def reward_by(
        self,
        scorer: MeasuredScorer | MovedScorer,
        source: str,
        ledger: Path,
        first_draft: Sequence[float],
        report: Callable[[int, int], None] | None = None,
    ) -> InfluenceReward:
        """A reward by this scorer, with a ledger of its own; the run's one reward is `reward`.

        Args:
            scorer: Gives the influence.
            source: Written to every row of the ledger.
            ledger: Keeps the judgements.
            first_draft: Influence of first drafts by this scorer. Their mean is a neutral reward, known before any
                optimiser starts; the penalty may be in units of their spread.
            report: As of `reward`.
        """
        from optimsyn.reward.controls import penalty_of
        from optimsyn.reward.reward import WINDOW, InfluenceReward, RewardOptions

        return InfluenceReward(
            scorer,
            self.pair_writer,
            self.checker,
            invalid_penalty=penalty_of(self.recipe.reward, first_draft),
            ledger=ledger,
            options=RewardOptions(
                source=source,
                rewards=self.recipe.reward.source,
                report=report,
                neutral=sum(first_draft) / len(first_draft) if first_draft else 0.0,
                outcomes=self.run.replies.outcomes,
                window=WINDOW if self.target.device.type == "cpu" else GPU_WINDOW,
                ahead=self.ahead,
                meter=self.meter,
            ),
        )

    @property
    def _first_draft(self) -> list[float]:
        """The influence of the first draft."""
        path = self.run.path("warm_up", "influence.json")
        values: list[float] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
        return values

    @property
    def best_guiding_text(self) -> str:
        """The guiding text that `optimize_prompt` chose, or the recipe's own when it is disabled."""
        if not self.recipe.optimizers.prompt.enabled:
            return self.recipe.guiding_text
        return self._text_of("optimize_prompt")

    @property
    def second_guiding_text(self) -> str:
        """The guiding text after its second turn, in which the trained policy wrote the rubrics."""
        return self._text_of("train_policy")

    def _text_of(self, stage: str) -> str:
        path = self.run.path(stage, GUIDING_TEXT)
        if not path.is_file():
            raise StageError(f"{path}: missing; run the stage {stage} first")
        return path.read_text(encoding="utf-8").strip()
