"""Chat messages and JSON schemas of prompts. Without heavy imports, so that prompts can be measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Message = dict[str, str]
Schema = dict[str, Any]


def chat_turns(task: str, turns: Sequence[tuple[str, str]], request: str) -> list[Message]:
    """Chat messages of a task, worked examples and a request.

    The task begins the first user message: not every chat template knows a system role.

    Args:
        task: What to do.
        turns: Request and reply of each worked example.
        request: The current request.
    """
    messages: list[Message] = []
    for user, assistant in turns:
        messages += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    messages.append({"role": "user", "content": request})
    messages[0]["content"] = f"{task}\n\n{messages[0]['content']}"
    return messages


def object_schema(properties: dict[str, Schema]) -> Schema:
    """A closed JSON object whose properties are all required, in this order."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
