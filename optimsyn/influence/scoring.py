"""The scorer that a recipe asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from optimsyn.data.records import Pair, Question, Sample
from optimsyn.errors import ModelError
from optimsyn.influence.accuracy import MOST_ERROR, Choice, Method, percent, refuse_error
from optimsyn.influence.forward import ForwardScorer
from optimsyn.influence.forward_mode import NoForwardDerivativeError
from optimsyn.influence.scorer import InfluenceScorer, Scores
from optimsyn.influence.twin import TwinScorer
from optimsyn.influence.twin_smooth import choice_of
from optimsyn.models.target import Target
from optimsyn.models.wide import is_narrow
from optimsyn.recipe import Influence

WIDE = "exact, float32"
"""Name in `Choice.errors` of the backward pass of a 16-bit model with every operation in float32."""


class Scorer(Protocol):
    """What every scorer does, however it comes by its numbers.

    Attributes:
        subtasks: Names of the columns of `Scores.by_subtask`.
        fingerprint: Names everything that its scores depend on, and changes with any of it: target, warm-up, questions,
            which tokens count, estimator, normalization, method. Equal in every process for equal facts (see
            `optimsyn.influence.identity.scorer_fingerprint`). Rewards are kept under it.
    """

    subtasks: tuple[str, ...]
    fingerprint: str

    def score(self, pairs: Sequence[Pair | Question | Sample], *, token_shares: bool = False) -> Scores:
        """Scores of pairs, in the caller's order."""

    def zero_gradient_baseline(self) -> dict[str, float | dict[str, float]]:
        """The score of a sample that teaches nothing."""


class MeasuredScorer(Scorer, Protocol):
    """A scorer that knows how far off it is.

    Attributes:
        choice: How it came to be the one, with the measured error of each way that was tried.
    """

    choice: Choice | None

    @property
    def method(self) -> Method:
        """How scores are computed: exact, twin or forward."""

    @property
    def numerical_error(self) -> float:
        """The share of the scores' size that they are off by (see `optimsyn.influence.accuracy`)."""


def build_scorer(
    target: Target,
    questions: Sequence[Question | Sample],
    config: Influence,
    folder: Path | None = None,
    *,
    report: Callable[[int], None] | None = None,
) -> MeasuredScorer:
    """The scorer of a recipe's section `influence`; `scorer.choice` says which way was taken and why.

    With `method: auto` the ways that are possible are tried from the cheapest to the dearest, and the first whose
    measured error is below 5 per cent is taken. The dearest one always is: gradients with every operation in float32.

    Args:
        target: A warmed-up target.
        questions: The validation questions.
        config: The section.
        folder: Where validation directions, steps and measured errors are kept; None: nowhere.
        report: Called with the number of questions of each batch whose directions have been computed.

    Raises:
        DataError: There are no questions.
        ModelError: The target has not been warmed up, its trained parameters cannot be scored, or the way that the
            recipe names is off by 5 per cent or more.
        RecipeError: An option has no such value.
    """
    common: dict[str, Any] = {
        "estimator": config.estimator,
        "normalization": config.normalization,
        "across_subtasks": config.across_subtasks,
        "tokens": config.tokens,
        "batch_tokens": config.batch_tokens,
        "folder": folder,
    }
    # Under torchrun every process of GRPO rewards completions of its own.
    exact = InfluenceScorer(target, questions, **common, processes="own", report=report)
    made: MeasuredScorer
    if config.method != "auto":
        made = _made(config.method, exact, questions, common, MOST_ERROR)
        refuse_error(made.method, made.numerical_error, MOST_ERROR)
        made.choice = Choice(
            made.method, {made.method: made.numerical_error}, f"influence.method: {made.method} in the recipe"
        )
        return made
    errors: dict[str, float] = {}
    passed: list[str] = []
    for name in _ways(exact, questions, config, passed):
        if name == WIDE:
            made = InfluenceScorer(target, questions, **common, processes="own", precision="float32")
        else:
            try:
                # What is too far off is passed over here, and not refused.
                made = _made(name, exact, questions, common, float("inf"))
            except NoForwardDerivativeError as error:
                passed.append(str(error))
                continue
        errors[name] = made.numerical_error
        if errors[name] < MOST_ERROR:
            break
        passed.append(f"{name} is off by {percent(errors[name])}")
    else:
        raise ModelError(
            f"no way of computing influence is right on this model ({'; '.join(passed)}); set models.target.dtype to "
            "float32, or another target"
        )
    taken = f"{name} is the cheapest way that is off by less than {percent(MOST_ERROR)}"
    made.choice = Choice(made.method, errors, "; ".join([taken, *passed]))
    return made


def _made(
    method: str, exact: InfluenceScorer, questions: Sequence[Question | Sample], common: dict[str, Any], most: float
) -> MeasuredScorer:
    if method == "exact":
        return exact
    kind: type[TwinScorer] | type[ForwardScorer] = TwinScorer if method == "twin" else ForwardScorer
    return kind(exact.target, questions, **common, exact=exact, most_error=most)


def _ways(
    exact: InfluenceScorer, questions: Sequence[Question | Sample], config: Influence, passed: list[str]
) -> Iterator[str]:
    """What is possible, from the cheapest to the dearest; why something is not is added to `passed`."""
    narrow, single = is_narrow(exact.target.model), len(exact.subtasks) == 1
    # Gradients cost two to three forward passes whatever the number of subtasks; the others at least as many as there
    # are. Where that is the same, forward mode keeps no activations.
    if config.is_derivative and single:
        if narrow:
            passed.append("twin is not tried in 16 bits, which round small differences of losses away")
        elif (choice := choice_of(exact.target, questions)) is not None:
            passed.append(f"twin cannot do with a model that chooses among its layers ({choice})")
        else:
            yield "twin"
        yield "forward"
    yield "exact"
    if narrow:
        yield WIDE
