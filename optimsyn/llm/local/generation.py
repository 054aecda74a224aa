"""Prompts as tokens, and what the parts of batched sampling are called outside."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optimsyn.base.errors import ModelError
from optimsyn.llm.control_tokens import controls_of, data_ids, rendered
from optimsyn.llm.local.batches import SeededSampling, generate
from optimsyn.llm.local.rows import Generated, Row
from optimsyn.llm.local.sampling import MIN_P, TOP_K, TOP_P, truncated
from optimsyn.recipe.sections.models import NO_THINKING

__all__ = ["MIN_P", "TOP_K", "TOP_P", "Generated", "Row", "SeededSampling", "generate", "prompt_ids", "truncated"]


def prompt_ids(
    tokenizer: Any, messages: Sequence[dict[str, str]], arguments: Mapping[str, Any] = NO_THINKING
) -> list[int]:
    """Token ids of a prompt: with the chat template if there is one, else the joined contents.

    Control strings in messages are text; only the template's own become control tokens.

    Args:
        tokenizer: The model's tokenizer.
        messages: The prompt.
        arguments: For the chat template; see `ModelSpec.template_arguments`.

    Raises:
        ModelError: The chat template refuses the messages.
    """
    if tokenizer.chat_template is None:
        return data_ids(tokenizer, "".join(message["content"] for message in messages))
    from jinja2 import TemplateError

    try:
        return _templated(tokenizer, messages, arguments)
    except TemplateError as error:
        # For templates without a system role, the instructions go into the first user message.
        if messages[0]["role"] != "system" or len(messages) < 2:
            raise ModelError(f"{tokenizer.name_or_path}: its chat template refuses the messages: {error}") from error
    first = {"role": messages[1]["role"], "content": f"{messages[0]['content']}\n\n{messages[1]['content']}"}
    return _templated(tokenizer, [first, *messages[2:]], arguments)


def _templated(tokenizer: Any, messages: Sequence[dict[str, str]], arguments: Mapping[str, Any]) -> list[int]:
    text = rendered(tokenizer, messages, add_generation_prompt=True, **arguments)
    return controls_of(tokenizer).encode(text, add_special_tokens=False).ids
