"""Finds out from a refusal (HTTP 400, 422) which parameter of the request a service does not take.

Every service has its own wording. Common to all is a sentence, or an entry of a list, that names the parameter and says
that it is not supported; a sentence about its allowed values does not refuse the parameter itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optimsyn.recipe.recipe import ModelSpec

CHANGE_WHAT_IS_NAMED = "change what the message names; a prompt that is too long needs shorter passages"
# Our names of parameters, and those of services. The limit on a reply has two names, see `Abilities.limit_name`.
_NAMES: dict[str, tuple[str, ...]] = {
    "temperature": ("temperature",),
    "top_p": ("top_p", "topP", "top-p", "nucleus"),
    "seed": ("seed", "random_seed"),
    "stop": ("stop", "stop_sequences", "stopSequences", "stop sequences"),
    "max_tokens": ("max_tokens", "max_output_tokens", "maxOutputTokens", "max_new_tokens"),
    "max_completion_tokens": ("max_completion_tokens",),
    "reasoning_effort": ("reasoning_effort", "reasoningEffort", "reasoning.effort", "output_config.effort"),
    "chat_template_kwargs": ("chat_template_kwargs",),
}
_UNWANTED = re.compile(
    r"unsupported|not[ _]supported|not currently supported|(?:does|do)(?: not|n't) (?:\w+ )?support"
    r"|unrecogni[sz]ed|unknown|unexpected (?:keyword|parameter|field|argument)"
    r"|extra inputs? (?:are|is) not permitted|extra_forbidden|extraneous key|additional propert\w+ \W?.*not allowed"
    r"|not permitted|(?:is|are) not allowed|not a valid (?:field|parameter|argument)|(?:is|are) deprecated"
    r"|incompatible request argument|cannot both be|cannot be (?:used|specified|set)|is not enabled"
    r"|not available|only the default|may only be set to 1|must be (?:omitted|removed|unset)|not implemented",
    re.IGNORECASE,
)
# The parameter is supported, but not its value.
_ONLY_A_VALUE = re.compile(
    r"(?:less|greater|smaller|larger) than|must be (?:between|at most|at least|in)\b|at most|maximum"
    r"|too (?:large|long|high)|out of range|<=|>=|supported values? (?:are|is)|valid values|allowed values"
    r"|expected one of|invalid_enum",
    re.IGNORECASE,
)
_CLAUSE = re.compile(r"(?<=[.;!])\s+|[}\n]|\\n")
_SCHEMA = re.compile(
    r"response_?format|json_?schema|response_?schema|\bschema\b|\bgrammar\b|structured[ _]outputs?"
    # Gemini names no field when it rejects a schema.
    r"|output_config\.format|request contains an invalid argument|guided_json|guided decoding|xgrammar|outlines",
    re.IGNORECASE,
)
# "property 'store' is unsupported, did you mean 'stop'?"; "use max_completion_tokens instead"
_ADVICE = re.compile(r"did you mean\W+\w+|use\W+\w+\W+instead", re.IGNORECASE)
_BOTH = re.compile(r"cannot both be", re.IGNORECASE)


def refused_parameters(message: str) -> frozenset[str]:
    """Our names of the parameters that a refusal calls unsupported, sent or not.

    Example:
        >>> sorted(refused_parameters("Unsupported parameter: 'max_tokens' is not supported with this model. "
        ...                           "Use 'max_completion_tokens' instead."))
        ['max_tokens']
    """
    refused: set[str] = set()
    for sentence in _CLAUSE.split(message):
        clause = _ADVICE.sub("", sentence)
        if not _UNWANTED.search(clause):
            continue
        named = {name for name, words in _NAMES.items() if any(_says(clause, word) for word in words)}
        if _BOTH.search(clause) and {"temperature", "top_p"} <= named:
            named = {"top_p"}
        # "'temperature' does not support 0.1 with this model. Only the default (1) value is supported."
        if _ONLY_A_VALUE.search(clause) and not re.search(r"only the default", clause, re.IGNORECASE):
            continue
        refused |= named
    if "reasoning_effort" in refused and _ONLY_A_VALUE.search(message):
        # An unsupported amount of thinking must be an error, not silently replaced by another amount.
        refused.discard("reasoning_effort")
    return frozenset(refused)


def is_about_schema(status: int, message: str) -> bool:
    """Whether a refusal may be about the JSON schema: it names a schema, or something that only schemas have."""
    if status in (400, 422):
        return bool(_SCHEMA.search(message))
    # Servers that fail to compile a schema may report a server error.
    return status in (500, 501) and bool(re.search(r"grammar|json_?schema|guided_json|response_format", message, re.I))


def field_that_helps(message: str) -> str | None:
    """The recipe field to change, if a refusal names what it sets; None if it names none."""
    text = message.lower()
    if any(words in text for words in ("context length", "context window", "prompt is too long", "too many tokens")):
        return "lower documents.passage_words or the model's max_tokens: prompt and reply have to fit its context"
    named = [name for name, words in _NAMES.items() if any(_says(message, word) for word in words)]
    cures = {
        "temperature": "change the model's `temperature` in the recipe; null leaves it to the service",
        "top_p": "change or remove the model's `top_p` in the recipe",
        "seed": "set the model's `send_seed: false` in the recipe",
        "max_tokens": "change the model's `max_tokens` (or `limit_name`, what it is called) in the recipe",
        "max_completion_tokens": "change the model's `max_tokens` (or `limit_name`, what it is called) in the recipe",
        "reasoning_effort": "change or remove the model's `reasoning_effort` in the recipe",
        "chat_template_kwargs": "change or remove the model's `chat_template_kwargs` in the recipe",
        "response_format": "set the model's `structured_output: false` in the recipe",
    }
    if _SCHEMA.search(message):
        return cures["response_format"]
    return next((cures[name] for name in named if name in cures), None)


def what_to_leave_out(sent: Mapping[str, Any], spec: ModelSpec, field: str = "") -> str:
    """What to try when a refusal names no recipe field: each optional part of the request."""
    other = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}
    tries = [
        ("response_format", "structured_output: false"),
        ("temperature", "temperature: null"),
        ("top_p", "top_p: null"),
        ("seed", "send_seed: false"),
        ("reasoning_effort", "reasoning_effort: null"),
        *((name, f"limit_name: {other[name]}`, or `limit_name: none") for name in other),
    ]
    options = [f"`{cure}`" for name, cure in tries if name in sent]
    extras = [f"extra.{key}" for key in spec.extra] + (["chat_template_kwargs"] if spec.chat_template_kwargs else [])
    if extras:
        options.append(f"without {', '.join(extras)}")
    where = field or "the model in the recipe"
    return (
        f"change what the message names; where it names nothing, leave out of the request, one at a time, what this "
        f"service may not take: under {where} {', '.join(options)}; or the prompt is too long for it: lower "
        "documents.passage_words"
    )


def _says(text: str, word: str) -> bool:
    return re.search(rf"(?<![A-Za-z0-9_]){re.escape(word)}(?![A-Za-z0-9_])", text) is not None
