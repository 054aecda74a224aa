"""Refusals in the words of the services that send them: what each says is not taken, and what it does not say."""

from __future__ import annotations

import json

import pytest

from optimsyn.llm.hosted.refusals import field_that_helps, is_about_schema, refused_parameters

# As they were published in reports of users, the model's name and the request's number apart.
NAMED = [
    ("Unsupported parameter: 'temperature' is not supported with this model.", {"temperature"}),
    (
        '{"error": {"message": "Unsupported value: \'temperature\' does not support 0.1 with this model. Only the '
        'default (1) value is supported.", "type": "invalid_request_error", "param": "temperature", "code": '
        '"unsupported_value"}}',
        {"temperature"},
    ),
    (
        "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
        {"max_tokens"},
    ),
    ("Unrecognized request argument supplied: reasoning_effort", {"reasoning_effort"}),
    ("Unknown parameter: 'reasoning_effort'.", {"reasoning_effort"}),
    ("Model incompatible request argument supplied: temperature", {"temperature"}),
    ("`temperature` is deprecated for this model.", {"temperature"}),
    ("`temperature` and `top_p` cannot both be specified for this model. Please use only one.", {"top_p"}),
    ("`temperature` may only be set to 1 when thinking is enabled or in adaptive mode.", {"temperature"}),
    ("This model doesn't support the temperature field", {"temperature"}),
    (
        "[{'type': 'extra_forbidden', 'loc': ('body', 'max_completion_tokens'), 'msg': 'Extra inputs are not "
        "permitted', 'input': 64}]",
        {"max_completion_tokens"},
    ),
    (
        '{"detail":[{"type":"extra_forbidden","loc":["body","seed"],"msg":"Extra inputs are not permitted",'
        '"input":123}]}',
        {"seed"},
    ),
    (
        'Invalid JSON payload received. Unknown name "frequency_penalty": Cannot find field.\\nInvalid JSON payload '
        'received. Unknown name "seed": Cannot find field.',
        {"seed"},
    ),
    ("Argument not supported on this model: stop", {"stop"}),
    ("Model grok-4-1-fast-reasoning does not support parameter reasoningEffort.", {"reasoning_effort"}),
    ("property 'seed' is unsupported, did you mean 'stop'?", {"seed"}),
    ("Malformed input request: #: extraneous key [stop_sequences] is not permitted", {"stop"}),
    ("anthropic does not support parameters: ['seed'], for model=claude-haiku-5-5.", {"seed"}),
    (
        "Parameters ['seed', 'top_p'] are not supported for model x. Supported parameters are ['temperature', 'stop'].",
        {"seed", "top_p"},
    ),
]
# Nothing here says that a parameter is not taken.
NOT_NAMED = [
    "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens. Lower max_tokens.",
    "max_tokens is too large: 100000. This model supports at most 32768 completion tokens.",
    "temperature: Input should be less than or equal to 1",
    "Unsupported value: 'reasoning_effort' does not support 'minimal' with this model. Supported values are: 'low'.",
    "Invalid value for 'top_p': must be between 0 and 1.",
    "The content was filtered. Its temperature of 300 K was fine.",
    "Invalid schema for response_format 'pair'",
    "no such model",
]


@pytest.mark.parametrize(("said", "named"), NAMED)
def test_a_refusal_names_what_is_not_taken(said: str, named: set[str]) -> None:
    assert refused_parameters(said) == named
    # As a proxy passes it on, a layer of JSON around it.
    assert refused_parameters(json.dumps({"error": {"message": said, "code": 400}})) == named


@pytest.mark.parametrize("said", NOT_NAMED)
def test_a_refusal_of_something_else_names_nothing(said: str) -> None:
    assert refused_parameters(said) == set()


@pytest.mark.parametrize(
    "said",
    [
        "Invalid schema for response_format 'pair': In context=(), 'additionalProperties' is required to be supplied",
        "output_config.format.schema: Invalid schema: The compiled grammar is too large",
        "The specified schema produces a constraint that has too many states for serving.",
        "Request contains an invalid argument.",
        "Failed to initialize samplers: failed to parse grammar",
        "'response_format' of type 'json_schema' is not supported with this model",
        "The provided JSON schema contains features not supported by xgrammar.",
    ],
)
def test_refusals_of_schemas(said: str) -> None:
    assert is_about_schema(400, said)
    assert not is_about_schema(429, said)


def test_a_server_that_fails_on_a_grammar_means_the_schema() -> None:
    assert is_about_schema(500, "failed to parse grammar")
    assert not is_about_schema(500, "out of memory")


@pytest.mark.parametrize(
    ("said", "field"),
    [
        ("This model's maximum context length is 4096 tokens", "documents.passage_words"),
        ("max_tokens is too large: 100000", "`max_tokens`"),
        ("temperature: Input should be less than or equal to 1", "`temperature`"),
        ("'reasoning_effort' does not support 'minimal'", "`reasoning_effort`"),
        ("Unknown field chat_template_kwargs", "`chat_template_kwargs`"),
        ("Invalid schema for response_format 'pair'", "structured_output: false"),
    ],
)
def test_the_field_that_helps_is_named(said: str, field: str) -> None:
    assert field in (field_that_helps(said) or "")


def test_nothing_of_ours_has_no_field() -> None:
    assert field_that_helps("the moon is in the wrong house") is None
