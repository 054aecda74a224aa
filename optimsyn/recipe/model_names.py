"""Which way a model is reached, told by its name alone (no import of LiteLLM, no network)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from optimsyn.base.suggestions import nearest

Provider = Literal["embedded", "litellm", "local", "own"]

# The prefixes of LiteLLM that people use for text generation. A hub organisation of the same name is reached by
# writing `hub:org/name`.
LITELLM_PREFIXES = frozenset(
    "openai azure azure_ai anthropic bedrock vertex_ai gemini mistral cohere cohere_chat groq together_ai "
    "fireworks_ai deepinfra deepseek openrouter perplexity xai replicate sagemaker sambanova cerebras nvidia_nim "
    "databricks huggingface ollama ollama_chat vllm hosted_vllm lm_studio llamafile litellm_proxy nebius novita "
    "watsonx text-completion-openai custom_openai oobabooga ai21 cloudflare github moonshot dashscope nscale "
    "volcengine hyperbolic lambda_ai meta_llama featherless_ai friendliai baseten codestral xinference".split()
)

# Names as near as this are thought to be misspelled ones.
TYPO = 0.82
# Servers that people run themselves: nobody sends a bill.
SELF_HOSTED = frozenset("hosted_vllm vllm ollama ollama_chat lm_studio llamafile oobabooga xinference".split())


def provider_of(name: str, *, has_api_base: bool = False) -> Provider:
    """How the model called `name` is reached.

    Args:
        name: `embedded`, a LiteLLM name (`openai/gpt-6-luna`), a local folder, a hub id (`Qwen/Qwen3-0.6B`) or
            `hub:org/name` for a hub id whose organisation is also a LiteLLM provider.
        has_api_base: An address was given, so a server is meant whatever the name is.
    """
    if name == "embedded":
        return "embedded"
    if name.startswith(("hub:", ".", "/", "~")) or Path(name).is_dir():
        return "local"
    if has_api_base or name.split("/", 1)[0] in LITELLM_PREFIXES or "/" not in name:
        return "litellm"
    return "local"


def hub_id(name: str) -> str:
    """`name` without the `hub:` prefix; a local folder stays a path."""
    return name.removeprefix("hub:")


def nearest_provider(name: str) -> str | None:
    """The provider that the misspelled prefix of a name was meant to be, or None.

    Organisations of the hub are called after their products (mistralai, deepseek-ai, meta-llama), so a prefix that
    only goes on where a provider's name ends is none of these.
    """
    prefix, slash, _ = name.partition("/")
    if not slash or provider_of(name) != "local" or name.startswith(("hub:", ".", "/", "~")) or Path(name).is_dir():
        return None
    plain = prefix.lower().replace("-", "_")
    near = nearest(plain, LITELLM_PREFIXES, cutoff=TYPO)
    return None if near is None or plain.startswith(near) or near.startswith(plain) else near


def no_provider(name: str, meant: str) -> str:
    """That the provider of a name is none, for a person, with the name that was probably meant."""
    return (
        f"{name!r}: {name.partition('/')[0]} is not a provider; did you mean `{meant}`? (a hub model of that "
        f"organisation is `hub:{name}`)"
    )
