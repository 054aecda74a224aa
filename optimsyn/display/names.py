"""What the variants and metrics are called and coloured in every table and picture."""

from __future__ import annotations

VARIANT_LABELS = {
    "target": "target as it came",
    "first_draft": "first draft",
    "no_rubric": "no rubric",
    "static": "static guiding text",
    "optimized": "optimised guiding text",
    "policy": "trained policy",
}

# Okabe and Ito's palette, told apart with every common colour blindness and in print.
VARIANT_COLORS = {
    "target": "#555555",
    "first_draft": "#999999",
    "no_rubric": "#E69F00",
    "static": "#56B4E9",
    "optimized": "#009E73",
    "policy": "#CC5C9E",
}
_OTHER_COLORS = ("#0072B2", "#D55E00", "#8C6D1F", "#4B4B9B")

SELECTION_LABELS = {"set": "what they teach together", "influence": "influence", "first": "order of writing"}

METRIC_LABELS = {"answer_loss": "answer loss", "accuracy": "accuracy", "token_f1": "token F1"}
LOWER_IS_BETTER = frozenset({"answer_loss"})


def variant_label(variant: str) -> str:
    """A variant's name for people."""
    return VARIANT_LABELS.get(variant, variant.replace("_", " "))


def variant_color(variant: str) -> str:
    """A variant's colour, the same in every picture."""
    if variant in VARIANT_COLORS:
        return VARIANT_COLORS[variant]
    return _OTHER_COLORS[sum(variant.encode()) % len(_OTHER_COLORS)]


def metric_label(metric: str) -> str:
    """A metric's name for people, with an arrow towards the better end."""
    name = METRIC_LABELS.get(metric, metric.replace("_", " "))
    return f"{name} {'↓' if metric in LOWER_IS_BETTER else '↑'}"
