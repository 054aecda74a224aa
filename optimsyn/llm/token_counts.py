"""Counts tokens of a text as a hosted model does, where its vocabulary is here, else as one that is near."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import cache
from pathlib import Path

from optimsyn.base.environment import TIKTOKEN_CACHE_DIR, set_default

# English text in the vocabularies of the day; others have fewer characters a token.
CHARACTERS_A_TOKEN = 4.2
# Tokens of Anthropic's vocabulary, of which nothing is published, for one of OpenAI's.
_CLAUDE = 1.15
# Longer texts are counted in pieces: a vocabulary takes far longer for one endless word than for many.
_PIECE = 4000

CountTokens = Callable[[str], int]


@cache
def counter_of(name: str) -> CountTokens:
    """OpenAI's vocabulary for a model, else the one that is nearest to most: the files come with LiteLLM.

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
        parts = (text[start : start + _PIECE] for start in range(0, len(text), _PIECE))
        return round(wider * sum(len(encoding.encode(piece, disallowed_special=())) for piece in parts))

    return count


def by_characters(text: str) -> int:
    """Tokens of a text whose vocabulary is not known."""
    return round(len(text) / CHARACTERS_A_TOKEN)
