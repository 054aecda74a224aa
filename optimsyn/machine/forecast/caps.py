"""Compares a forecast with the recipe's caps: warns if there is none or one is too low, and says what to lower."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from optimsyn.machine.forecast.requests import forecast, paid_models
from optimsyn.recipe.changes import changed
from optimsyn.runs.forecast import Forecast, Range, StageForecast, counted, money

if TYPE_CHECKING:
    from optimsyn.machine.forecast.lengths import Lengths
    from optimsyn.recipe.recipe import Recipe

# The field to lower for each stage.
_FIELDS = {
    "warm_up": "warm_up.pairs",
    "optimize_prompt": "optimizers.prompt.metric_calls",
    "train_policy": "optimizers.policy.steps",
    "synthesize": "synthesis.pairs",
}
_FEWEST_PAIRS = 2


def cap_warnings(recipe: Recipe, forecast: Forecast, lengths: Lengths, passages: int) -> list[str]:
    """Warnings about cost and caps before the run."""
    limits = recipe.limits
    capped = (limits.cost_usd, limits.requests, limits.tokens) != (None, None, None)
    if forecast.paid and not capped:
        roles = ", ".join(f"models.{role}" for role in paid_models(recipe))
        return [
            f"limits: no cap is set, and {roles} may cost money: {forecast.sentence}. Nothing would stop the run "
            "at more than that; set limits.cost_usd, limits.requests or limits.tokens"
        ]
    warnings = []
    amount: Callable[[StageForecast], Range | None]
    for name, cap, amount, words in (
        ("cost_usd", limits.cost_usd, lambda total: total.cost_usd, money),
        ("requests", limits.requests, lambda total: total.requests, counted),
        ("tokens", limits.tokens, lambda total: total.input_tokens + total.output_tokens, counted),
    ):
        if cap is None or (predicted := amount(forecast.total)) is None or predicted.high <= cap:
            continue
        text = words(predicted) + ("" if name == "cost_usd" else f" {name}")
        if predicted.expected <= cap:
            warnings.append(f"limits.{name}: {text} are expected, so the cap of {cap:,g} may end the run early")
            continue
        cure = _cure(recipe, forecast, lengths, passages, cap, amount)
        warnings.append(f"limits.{name}: {text} are expected, more than the cap of {cap:,g}; raise it, or {cure}")
    return warnings


def _cure(
    recipe: Recipe,
    now: Forecast,
    lengths: Lengths,
    passages: int,
    cap: float,
    amount: Callable[[StageForecast], Range | None],
) -> str:
    """What to lower, and how far, so that the expected amount fits."""

    def fits(pairs: int) -> bool:
        smaller = changed(recipe, {"synthesis.pairs": pairs})
        predicted = amount(forecast(smaller, lengths, passages).total)
        return predicted is not None and predicted.expected <= cap

    low, high = _FEWEST_PAIRS, recipe.synthesis.pairs
    if fits(low):
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return f"lower synthesis.pairs to {low:,}, which fits"
    parts = {stage.stage: amount(stage) for stage in now.stages}
    largest = sorted(parts, key=lambda stage: -(part.expected if (part := parts[stage]) is not None else 0.0))
    named = _FIELDS
    if recipe.optimizers.searched_again:
        named = {**_FIELDS, "train_policy": f"{_FIELDS['train_policy']} or optimizers.turns"}
    fields = " and ".join(named[stage] for stage in largest[:2] if stage in named)
    return f"lower {fields}, which need most of it (lowering synthesis.pairs alone is not enough)"
