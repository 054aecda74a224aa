"""Counts tokens with a hosted model's vocabulary if it is available, else with a similar one."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache
from pathlib import Path

from optimsyn.base.environment import TIKTOKEN_CACHE_DIR, set_default

# English text in current vocabularies; other languages have fewer characters a token.
CHARACTERS_A_TOKEN = 4.2
# Tokens of Anthropic's unpublished vocabulary for one of OpenAI's.
_CLAUDE = 1.15
# Longer texts are counted in chunks: tiktoken is far slower on one very long word.
_CHUNK = 4000

CountTokens = Callable[[str], int]


@cache
def counter_of(name: str) -> CountTokens:
    """A counter with OpenAI's vocabulary for a model, else with a common one; the files come with LiteLLM.

    Args:
        name: The model's name, with or without its provider (`openrouter/openai/gpt-6-luna`).
    """
    name = name.rpartition("/")[2]
    spec = importlib.util.find_spec("litellm")
    folder = Path(spec.origin).parent / "litellm_core_utils" / "tokenizers" if spec and spec.origin else None
    if folder is None or not folder.is_dir():
        return by_characters
    set_default(TIKTOKEN_CACHE_DIR, str(folder))  # as LiteLLM itself does; else they are downloaded
    import tiktoken

    try:
        encoding = tiktoken.encoding_for_model(name)
    except KeyError:
        encoding = tiktoken.get_encoding("cl100k_base")
    wider = _CLAUDE if name.startswith("claude") else 1.0

    def count(text: str) -> int:
        chunks = (text[start : start + _CHUNK] for start in range(0, len(text), _CHUNK))
        return round(wider * sum(len(encoding.encode(chunk, disallowed_special=())) for chunk in chunks))

    return count


def by_characters(text: str) -> int:
    """Tokens of a text with an unknown vocabulary."""
    return round(len(text) / CHARACTERS_A_TOKEN)
