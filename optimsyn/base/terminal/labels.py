"""Names and colours of variants and metrics in tables and pictures."""

from __future__ import annotations

from collections.abc import Mapping

VARIANT_LABELS = {
    "target": "target as it came",
    "first_draft": "first draft",
    "no_rubric": "no rubric",
    "static": "static guiding text",
    "optimized": "optimised guiding text",
    "policy": "trained policy",
    "static_pool": "larger static pool",
    "untrained_policy": "untrained policy",
    "author": "author with tools",
    "both": "trained policy, optimised text",
    "insider": "insider's guiding text",
    "validation": "validation questions",
}

# Okabe and Ito's palette, distinct in print and with every common colour blindness.
VARIANT_COLORS = {
    "target": "#555555",
    "first_draft": "#999999",
    "no_rubric": "#E69F00",
    "static": "#56B4E9",
    "optimized": "#009E73",
    "policy": "#CC5C9E",
    "static_pool": "#0072B2",
    "untrained_policy": "#8C6D1F",
    "author": "#882255",
    "both": "#D55E00",
    "insider": "#4B4B9B",
    "validation": "#222222",
}
_OTHER_COLORS = ("#0072B2", "#D55E00", "#8C6D1F", "#4B4B9B")

SELECTION_LABELS = {"set": "what they teach together", "influence": "influence", "first": "order of writing"}

# What a valid pair earns, by `reward.source`.
SOURCE_LABELS = {
    "influence": "influence on the validation questions",
    "random": "a random number (a control)",
    "length": "the length of the answer, longer is better (a control)",
    "negated": "minus the influence on the validation questions (a control)",
    "permuted": "influence on the validation questions with swapped answers (a control)",
    "other": "influence on another domain's questions (a control)",
}

METHOD_LABELS = {
    "gepa": "GEPA",
    "halving": "successive halving",
    "miprov2": "MIPROv2",
    "grpo": "GRPO",
    "expert": "expert iteration",
    "dpo": "DPO",
}

METRIC_LABELS = {"answer_loss": "answer loss", "accuracy": "accuracy", "token_f1": "token F1"}
METRIC_LABELS |= {"rouge_l": "ROUGE-L", "item_f1": "item F1"}
LOWER_IS_BETTER = frozenset({"answer_loss"})


def control_sentence(source: str) -> str:
    """What a control earned its pairs, for a report that speaks of influence."""
    earned = SOURCE_LABELS[source].removesuffix(" (a control)")
    return (
        f"This run is a control (reward.source: {source}): its pairs earned {earned}. Where influence is shown, it is "
        "that number."
    )


def variant_label(variant: str) -> str:
    """A variant's name for people."""
    return VARIANT_LABELS.get(variant, variant.replace("_", " "))


def variant_color(variant: str) -> str:
    """A variant's colour, the same in every picture."""
    if variant in VARIANT_COLORS:
        return VARIANT_COLORS[variant]
    return _OTHER_COLORS[sum(variant.encode()) % len(_OTHER_COLORS)]


def method_label(method: str) -> str:
    """An optimiser's name for people; a custom one keeps its name from the recipe."""
    return METHOD_LABELS.get(method, method)


def metric_label(metric: str) -> str:
    """A metric's name for people, with an arrow towards the better end."""
    name = METRIC_LABELS.get(metric, metric.replace("_", " "))
    return f"{name} {'↓' if metric in LOWER_IS_BETTER else '↑'}"


# The outcomes of a request (`optimsyn.base.errors.Outcome`) for people.
OUTCOME_LABELS = {
    "read": "read",
    "invalid": "of a wrong form",
    "cut": "cut",
    "refusal": "refused",
    "tool_call": "tool calls",
    "empty": "empty",
    "asked_again": "asked again with more room",
}
UNREAD = ("invalid", "cut", "refusal", "tool_call", "empty")
# Further counts, shown only where they are not 0.
BESIDES_LABELS = {"damaged": "damaged when kept, bought again", "estimated": "tokens not reported, estimated"}
ROLE_LABELS = {
    "generator": "Generator",
    "rubric": "Rubric model",
    "policy": "Policy",
    "reflection": "Reflection",
    "judge": "Judge",
    "author": "Author",
    "other": "Others",
}


def role_label(role: str) -> str:
    """A model's role for people."""
    return ROLE_LABELS.get(role, role)


def outcome_table(outcomes: Mapping[str, Mapping[str, int]]) -> tuple[list[str], list[tuple[str, list[int]]]]:
    """Columns, and for each role its number of requests in each; `outcomes` as in a manifest.

    The columns of `BESIDES_LABELS` are left out where all counts are 0.
    """
    besides = [name for name in BESIDES_LABELS if any(counts.get(name) for counts in outcomes.values())]
    labels = {**OUTCOME_LABELS, **{name: BESIDES_LABELS[name] for name in besides}}
    rows = [(role_label(role), [counts.get(name, 0) for name in labels]) for role, counts in outcomes.items()]
    return list(labels.values()), rows
