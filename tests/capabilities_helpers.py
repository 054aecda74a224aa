"""A service of one's own and a model that asks it, for tests of what services take, refuse and cost."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from optimsyn.llm.factory import load_language_model
from optimsyn.llm.language_model import Call, LanguageModel
from optimsyn.llm.replies import ReplyCache
from optimsyn.recipe.recipe import ModelSpec

HELLO = Call.of("Hello")


def schema(number: int = 0) -> dict[str, Any]:
    return {"type": "object", "properties": {f"a{number}": {"type": "string"}}, "required": [f"a{number}"]}


def model(base: str, cache: ReplyCache | None = None, **spec: Any) -> LanguageModel:
    values = {"name": "openai/some-model", "api_base": base, "api_key_env": "LOCAL_SERVICE_KEY", "retries": 1, **spec}
    return load_language_model(ModelSpec.model_validate(values), cache)


def told(caplog: pytest.LogCaptureFixture, words: str) -> int:
    return sum(words in record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING)
