"""Providers of hosted models and the models that LiteLLM lists, without importing it (that takes seconds)."""

from __future__ import annotations

from collections.abc import Mapping

from optimsyn.recipe.known_models import litellm_table
from optimsyn.recipe.model_names import LITELLM_PREFIXES

# Providers whose batch API is known here; a server of one's own may speak the first one's.
BATCH_PROVIDERS = ("openai", "anthropic")
# Any one of the variables will do. Providers that are not here need no key, or more than a variable can tell.
KEYS: Mapping[str, tuple[str, ...]] = {
    "openai": ("OPENAI_API_KEY",),
    "text-completion-openai": ("OPENAI_API_KEY",),
    "azure": ("AZURE_API_KEY", "AZURE_AD_TOKEN"),
    "azure_ai": ("AZURE_AI_API_KEY",),
    "anthropic": ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"),
    "gemini": ("GEMINI_API_KEY", "GOOGLE_API_KEY"),
    "mistral": ("MISTRAL_API_KEY",),
    "codestral": ("CODESTRAL_API_KEY",),
    "cohere": ("COHERE_API_KEY", "CO_API_KEY"),
    "cohere_chat": ("COHERE_API_KEY", "CO_API_KEY"),
    "groq": ("GROQ_API_KEY",),
    "together_ai": ("TOGETHERAI_API_KEY", "TOGETHER_API_KEY", "TOGETHER_AI_API_KEY"),
    "fireworks_ai": ("FIREWORKS_AI_API_KEY", "FIREWORKS_API_KEY", "FIREWORKSAI_API_KEY"),
    "deepinfra": ("DEEPINFRA_API_KEY",),
    "deepseek": ("DEEPSEEK_API_KEY",),
    "openrouter": ("OPENROUTER_API_KEY", "OR_API_KEY"),
    "perplexity": ("PERPLEXITYAI_API_KEY", "PERPLEXITY_API_KEY"),
    "xai": ("XAI_API_KEY",),
    "replicate": ("REPLICATE_API_KEY", "REPLICATE_API_TOKEN"),
    "cerebras": ("CEREBRAS_API_KEY",),
    "sambanova": ("SAMBANOVA_API_KEY",),
    "nvidia_nim": ("NVIDIA_NIM_API_KEY",),
    "databricks": ("DATABRICKS_API_KEY", "DATABRICKS_TOKEN"),
    "huggingface": ("HUGGINGFACE_API_KEY", "HF_TOKEN"),
    "ai21": ("AI21_API_KEY",),
    "novita": ("NOVITA_API_KEY",),
    "nebius": ("NEBIUS_API_KEY",),
    "moonshot": ("MOONSHOT_API_KEY",),
    "dashscope": ("DASHSCOPE_API_KEY",),
    "meta_llama": ("LLAMA_API_KEY",),
    "featherless_ai": ("FEATHERLESS_AI_API_KEY",),
    "baseten": ("BASETEN_API_KEY",),
}


def service_provider(name: str) -> str | None:
    """The LiteLLM provider of a model name; None when neither its prefix nor LiteLLM's own list tells."""
    prefix = name.split("/", 1)[0]
    if "/" in name and prefix in LITELLM_PREFIXES:
        return prefix
    entry = litellm_table().get(name)
    return str(entry["litellm_provider"]) if entry and "litellm_provider" in entry else None
