"""Builds the language model that a recipe names."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from optimsyn.base.errors import ModelError
from optimsyn.llm.language_model import LanguageModel
from optimsyn.llm.local.loading import on_gpu
from optimsyn.llm.replies import Budget, ReplyCache
from optimsyn.recipe.recipe import ModelSpec

if TYPE_CHECKING:
    from optimsyn.llm.hosted.batches import Batches


def load_language_model(
    spec: ModelSpec,
    cache: ReplyCache | None = None,
    *,
    adapter: Path | None = None,
    budget: Budget | None = None,
    batches: Batches | None = None,
    field: str = "",
) -> LanguageModel:
    """The language model that a recipe names; nothing is loaded or sent before the first call.

    Args:
        spec: The model.
        cache: The reply cache; None: replies are not kept.
        adapter: A peft adapter on top of the weights. The embedded model then runs in this process instead of its
            server, as it does on a GPU, there by default with the writer's adapter.
        budget: The run's cap.
        batches: The batches of a model with `batch: true`; None: requests are sent one by one.
        field: The model's field in the recipe (`models.generator`), for messages.

    Raises:
        RecipeError: A custom generator does not exist or cannot be created.
        ModelError: An adapter was given for a model without local weights.
        ServiceError: The environment variable that the recipe names for the key is not set.
    """
    if spec.provider == "own":
        from optimsyn.llm.own.model import OwnModel

        model: LanguageModel = OwnModel(spec, cache, budget, field)
    elif spec.provider == "litellm":
        model = _hosted(spec, cache, budget, adapter, batches)
    elif spec.provider == "embedded" and adapter is None and not on_gpu(spec):
        from optimsyn.llm.embedded.model import EmbeddedModel

        model = EmbeddedModel(spec, cache, budget)
    else:
        from optimsyn.llm.embedded.writer import adapter_dir
        from optimsyn.llm.local.model import LocalModel

        if spec.provider == "embedded" and adapter is None:
            adapter = adapter_dir()
        model = LocalModel(spec, cache, budget, adapter=adapter)
    model.field = field
    return model


def _hosted(
    spec: ModelSpec, cache: ReplyCache | None, budget: Budget | None, adapter: Path | None, batches: Batches | None
) -> LanguageModel:
    if adapter is not None:
        raise ModelError(f"{spec.name}: an adapter needs the weights; name a hub id, a local folder or `embedded`")
    if spec.batch and batches is not None:
        from optimsyn.llm.hosted.batched_model import BatchedModel

        return BatchedModel(spec, cache, budget, batches=batches)
    from optimsyn.llm.hosted.litellm_model import LiteLLMModel

    return LiteLLMModel(spec, cache, budget)
