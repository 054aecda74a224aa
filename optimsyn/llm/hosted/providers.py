"""Providers of hosted models and the models that LiteLLM lists, without importing it (that takes seconds)."""

from __future__ import annotations

from optimsyn.recipe.known_models import litellm_table
from optimsyn.recipe.model_names import LITELLM_PREFIXES

# Providers with a supported batch API; your own server may speak the first one's.
BATCH_PROVIDERS = ("openai", "anthropic")


def service_provider(name: str) -> str | None:
    """The LiteLLM provider of a model name; None when neither its prefix nor LiteLLM's own list says."""
    prefix = name.split("/", 1)[0]
    if "/" in name and prefix in LITELLM_PREFIXES:
        return prefix
    entry = litellm_table().get(name)
    return str(entry["litellm_provider"]) if entry and "litellm_provider" in entry else None
