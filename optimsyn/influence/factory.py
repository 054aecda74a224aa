"""Builds the scorer of a recipe."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from optimsyn.base.errors import ModelError, RecipeError
from optimsyn.base.extensions import SCORERS, call_problem
from optimsyn.data.records import Pair, Question, Sample
from optimsyn.influence.accuracy import MOST_ERROR, WANTED_ERROR, Choice, percent, refuse_error
from optimsyn.influence.derivative.forward import ForwardScorer
from optimsyn.influence.derivative.scorer import linear_estimator
from optimsyn.influence.derivative.smoothness import choice_of
from optimsyn.influence.derivative.twin import TwinScorer
from optimsyn.influence.gradients.slopes import NoForwardDerivativeError
from optimsyn.influence.options import ScoringOptions
from optimsyn.influence.own_scorer import OwnScorer, ScorerContext
from optimsyn.influence.scorer import InfluenceScorer
from optimsyn.influence.scores import Scores
from optimsyn.influence.simulated.scorer import BatchTraining, SimulatedScorer
from optimsyn.recipe.sections.influence import BUILT_IN_SCORER, Influence
from optimsyn.target.adapter import is_quantised
from optimsyn.target.target import Target
from optimsyn.target.upcast import Precision, is_narrow


class Scorer(Protocol):
    """The interface of every scorer.

    Attributes:
        subtasks: Names of the columns of `Scores.by_subtask`.
        fingerprint: Changes with everything that its scores depend on: target, warm-up, questions, which tokens count,
            estimator, normalization, method. Equal in every process for equal facts (see
            `optimsyn.influence.fingerprint.scorer_fingerprint`). Rewards are cached under it.
    """

    subtasks: tuple[str, ...]
    fingerprint: str

    def score(self, pairs: Sequence[Pair | Question | Sample], *, token_shares: bool = False) -> Scores:
        """Scores of pairs, in the caller's order."""

    def zero_gradient_baseline(self) -> dict[str, float | dict[str, float]]:
        """The score of a sample that teaches nothing."""


class MeasuredScorer(Scorer, Protocol):
    """A scorer with a measured numerical error."""

    choice: Choice | None

    @property
    def method(self) -> str:
        """How scores are computed: exact, twin or forward; for a custom scorer its name in the recipe."""

    @property
    def numerical_error(self) -> float:
        """The numerical error as a share of the scores' size (see `optimsyn.influence.accuracy`)."""


def build_scorer(
    target: Target,
    questions: Sequence[Question | Sample],
    config: Influence,
    folder: Path | None = None,
    *,
    training: BatchTraining | None = None,
    report: Callable[[int], None] | None = None,
) -> MeasuredScorer:
    """The scorer of a recipe's section `influence`; `scorer.choice` says which method it uses and why.

    Args:
        target: A warmed-up target.
        questions: The validation questions.
        config: The section.
        folder: Cache validation directions, steps and measured errors here; None does not cache.
        training: The training that the estimator `simulated` places pairs in; others ignore it.
        report: Called with the number of questions of each batch whose directions have been computed.

    Raises:
        DataError: There are no questions, or no companions for `simulated`.
        ModelError: The target has not been warmed up, its trained parameters cannot be scored, or the method that the
            recipe names has an error of 5 per cent or more.
        RecipeError: An option has no such value, or a custom part cannot be used.
    """
    context = ScorerContext(questions, target, config, folder, training, report)
    make = SCORERS.get(config.scorer)
    return influence_scorer(context) if config.is_influence else OwnScorer(context, make)


def influence_scorer(context: ScorerContext) -> MeasuredScorer:
    """The built-in scorer.

    With `method: auto` the possible methods are tried from the cheapest to the most expensive, and the first with a
    measured error below half a per cent is used; if there is none, the best one if its error is below 5 per cent. For a
    16-bit target the same methods are then tried with float32 between its products, and last gradients with every
    operation in float32. A method that the recipe names is tried likewise, but its error may be up to 5 per cent.
    """
    target, questions, config = context.target, context.questions, context.config
    options = ScoringOptions(
        estimator=config.estimator,
        normalization=config.normalization,
        across_subtasks=config.across_subtasks,
        question_gradients=config.question_gradients,
        tokens=config.tokens,
        batch_tokens=config.batch_tokens,
        folder=context.folder,
    )
    exact: InfluenceScorer | SimulatedScorer
    if config.estimator == "simulated":
        exact = _simulated(context)
    else:
        # Under torchrun every process of GRPO rewards its own completions.
        exact = InfluenceScorer(
            target, questions, **replace(options, report=context.report).keywords(), processes="own"
        )
    errors: dict[str, float] = {}
    passed: list[str] = []
    best: tuple[str, MeasuredScorer] | None = None
    wanted = WANTED_ERROR if config.method == "auto" else MOST_ERROR
    for method, precision in _methods(exact, questions, config, passed):
        name = method if precision == "model" else f"{method}, {precision}"
        try:
            scorer = _scorer_of(method, precision, exact, questions, options)
        except NoForwardDerivativeError as error:
            if config.method == "forward":
                raise
            passed.append(str(error))
            continue
        errors[name] = scorer.numerical_error
        if best is None or errors[name] < errors[best[0]]:
            best = name, scorer
        if errors[name] < wanted:
            break
        passed.append(f"{name} is off by {percent(errors[name])}")
    if best is None or not errors[best[0]] < MOST_ERROR:
        if config.method != "auto":
            refuse_error(config.method, min(errors.values()), MOST_ERROR)
        raise ModelError(
            f"no method computes influence accurately on this model ({'; '.join(passed)}); set models.target.dtype to "
            "float32, or name another target"
        )
    name, scorer = best
    taken = f"{name} is the cheapest way that is off by less than {percent(wanted)}"
    if not errors[name] < wanted:
        taken = f"no way is off by less than {percent(wanted)}, and {name} comes nearest"
    if config.method != "auto":
        taken = f"influence.method is {config.method}, and {taken}"
    scorer.choice = Choice(scorer.method, errors, "; ".join([taken, *passed]))
    return scorer


def _simulated(context: ScorerContext) -> SimulatedScorer:
    if context.training is None:
        raise RecipeError(
            "influence.estimator: simulated needs the training that it simulates; pass build_scorer its `training` "
            "(companions and fine_tune), or set influence.estimator to adam_linear"
        )
    config = context.config
    return SimulatedScorer(
        context.target,
        context.questions,
        context.training,
        across_subtasks=config.across_subtasks,
        tokens=config.tokens,
        batch_tokens=config.batch_tokens,
        folder=context.folder,
        report=context.report,
    )


def _scorer_of(
    method: str,
    precision: Precision,
    exact: InfluenceScorer | SimulatedScorer,
    questions: Sequence[Question | Sample],
    options: ScoringOptions,
) -> MeasuredScorer:
    """A scorer of one method; the caller checks its error."""
    if isinstance(exact, SimulatedScorer):
        return exact if precision == "model" else exact.at(precision)
    common = options.keywords()
    if method == "exact":
        if precision == "model":
            return exact
        return InfluenceScorer(exact.target, questions, **common, processes="own", precision=precision, like=exact)
    if method == "twin":
        return TwinScorer(exact.target, questions, **common, exact=exact, most_error=math.inf)
    return ForwardScorer(exact.target, questions, **common, exact=exact, precision=precision, most_error=math.inf)


def _methods(
    exact: InfluenceScorer | SimulatedScorer,
    questions: Sequence[Question | Sample],
    config: Influence,
    passed: list[str],
) -> Iterator[tuple[str, Precision]]:
    """The possible methods, from the cheapest to the most expensive; adds reasons for skipped ones to `passed`."""
    # Whether a custom estimator is linear is known only now.
    if config.method in ("twin", "forward"):
        linear_estimator(config.estimator, config.method)
    narrow, single = is_narrow(exact.target.model), len(exact.subtasks) == 1
    # Gradients cost two to three forward passes whatever the number of subtasks; twins cost two a subtask. Forward mode
    # takes half as long again as gradients of a LoRA (benchmarks/influence_speed.py), and keeps no activations.
    if config.method != "auto":
        methods = [config.method]
    else:
        methods = ["twin", "exact", "forward"] if config.is_derivative and single else ["exact"]
        if "twin" in methods and narrow:
            methods.remove("twin")
            passed.append("twin is not tried in 16 bits, which round small differences of losses away")
        elif "twin" in methods and is_quantised(exact.target.model):
            methods.remove("twin")
            passed.append("twin is not tried on quantised weights, which round small differences of losses away")
        elif "twin" in methods and (choice := choice_of(exact.target, questions)) is not None:
            methods.remove("twin")
            passed.append(f"twin does not work with a model that chooses among its layers ({choice})")
    precisions: tuple[Precision, ...] = ("model", "mixed") if narrow else ("model",)
    for precision in precisions:
        for method in methods:
            if method != "twin" or precision == "model":
                yield method, precision
    if narrow and "exact" in methods:
        yield "exact", "float32"


def _no_scorer(part: object) -> str | None:
    if not callable(part):
        return "it is neither a class nor a function that makes a scorer from a ScorerContext"
    if isinstance(part, type) and not callable(getattr(part, "score", None)):
        return "its objects have no method score(pairs)"
    return call_problem(part, "a ScorerContext")


SCORERS.provide({BUILT_IN_SCORER: influence_scorer}, _no_scorer)
