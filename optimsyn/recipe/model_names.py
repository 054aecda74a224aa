"""A model's provider from its name alone (no import of LiteLLM, no network)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from optimsyn.base.suggestions import nearest

Provider = Literal["embedded", "litellm", "local", "own"]

# LiteLLM's prefixes for text generation. A hub organisation of the same name is written `hub:org/name`.
LITELLM_PREFIXES = frozenset(
    "openai azure azure_ai anthropic bedrock vertex_ai gemini mistral cohere cohere_chat groq together_ai "
    "fireworks_ai deepinfra deepseek openrouter perplexity xai replicate sagemaker sambanova cerebras nvidia_nim "
    "databricks huggingface ollama ollama_chat vllm hosted_vllm lm_studio llamafile litellm_proxy nebius novita "
    "watsonx text-completion-openai custom_openai oobabooga ai21 cloudflare github moonshot dashscope nscale "
    "volcengine hyperbolic lambda_ai meta_llama featherless_ai friendliai baseten codestral xinference".split()
)

# Names at least this similar count as misspelled.
TYPO = 0.82
# Self-hosted servers: free.
SELF_HOSTED = frozenset("hosted_vllm vllm ollama ollama_chat lm_studio llamafile oobabooga xinference".split())


def meant_embedded(name: str) -> str | None:
    """The message for a misspelled `embedded`, or None; such a name is neither a service's nor a hub id."""
    plain = name.strip().lower()
    if name == "embedded" or not nearest(plain, ["embedded"], cutoff=TYPO) or Path(name).is_dir():
        return None
    return f"there is no model {name!r}; did you mean `embedded`?"


def provider_of(name: str, *, has_api_base: bool = False) -> Provider:
    """The provider of the model called `name`.

    A name is `embedded`, a LiteLLM name (`openai/gpt-6-luna`), a local folder, a hub id (`Qwen/Qwen3-0.6B`), or
    `hub:org/name` for a hub id whose organisation is also a LiteLLM provider. With an address it is a server, whatever
    its name.
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
    """The provider that a misspelled prefix was probably meant to be, or None.

    Hub organisations are named after their products (mistralai, deepseek-ai, meta-llama), so a prefix that continues a
    provider's name is not misspelled.
    """
    prefix, slash, _ = name.partition("/")
    if not slash or provider_of(name) != "local" or name.startswith(("hub:", ".", "/", "~")) or Path(name).is_dir():
        return None
    plain = prefix.lower().replace("-", "_")
    near = nearest(plain, LITELLM_PREFIXES, cutoff=TYPO)
    return None if near is None or plain.startswith(near) or near.startswith(plain) else near


def no_provider(name: str, meant: str) -> str:
    """The message for an unknown provider, with a suggestion."""
    return (
        f"{name!r}: {name.partition('/')[0]} is not a provider; did you mean `{meant}`? (a hub model of that "
        f"organisation is `hub:{name}`)"
    )
