"""The models that LiteLLM lists, without importing it (that takes seconds), and suggestions from them."""

from __future__ import annotations

import importlib.util
import json
from functools import cache
from pathlib import Path
from typing import Any

from optimsyn.base.suggestions import alike, nearest
from optimsyn.recipe.model_names import LITELLM_PREFIXES, TYPO, nearest_provider, no_provider, provider_of


@cache
def litellm_table() -> dict[str, dict[str, Any]]:
    """The list of models that comes with LiteLLM."""
    spec = importlib.util.find_spec("litellm")
    if spec is None or spec.origin is None:
        return {}
    file = Path(spec.origin).parent / "model_prices_and_context_window_backup.json"
    models: dict[str, dict[str, Any]] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return models


def nearest_model(name: str) -> str | None:
    """The LiteLLM name closest to a bare name, with its provider; None when none is close."""
    near = nearest(name, litellm_table(), cutoff=TYPO)
    if near is None or "/" in near:
        return near
    return f"{litellm_table()[near].get('litellm_provider', '')}/{near}".removeprefix("/")


def meant_service(name: str) -> str | None:
    """The hosted model that was probably meant by a name that reads like a hub id, or None.

    A prefix that is nearly a provider's name counts as one; a prefix that is also an organisation on the hub (`OpenAI`,
    `mistralai`) only if LiteLLM lists such a model of the provider.
    """
    prefix, slash, model = name.partition("/")
    if not slash or provider_of(name) != "local" or name.startswith(("hub:", ".", "/", "~")):
        return None
    plain = prefix.lower().replace("-", "_")
    sure = nearest_provider(name)
    for near in [sure] if sure else alike(plain, LITELLM_PREFIXES, most=2, cutoff=TYPO):
        of_it = [
            known.rpartition("/")[2]
            for known, entry in litellm_table().items()
            if str(entry.get("litellm_provider", "")).startswith(near)
        ]
        listed = nearest(model, of_it, cutoff=TYPO if sure else 1.0)
        if listed or sure:
            return f"{near}/{listed or model}"
    return None


def misspelled(name: str) -> str | None:
    """A message if a name's provider is misspelled, else None."""
    meant = None if Path(name).is_dir() else meant_service(name)
    return None if meant is None else no_provider(name, meant)
