"""A model of an analyst that says what a script says, and notebooks that run again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nbformat

from tests.llm_helpers import KEY, Answer, Service, said

FREE = {"input": 0.0, "output": 0.0}


def step(tool: str, why: str = "It is the next thing to know.", **arguments: Any) -> str:
    """A reply that chooses a tool."""
    return reply(why, tool, json.dumps(arguments))


def reply(why: str, tool: str, arguments: str) -> str:
    """A reply in the fields that an analyst is asked for."""
    return (
        f"[[ ## why ## ]]\n{why}\n\n[[ ## tool ## ]]\n{tool}\n\n[[ ## arguments ## ]]\n{arguments}\n\n"
        "[[ ## completed ## ]]"
    )


def follows(service: Service, *replies: str, others: Callable[[int, dict[str, Any]], Answer] | None = None) -> None:
    """The service gives these replies to an analyst in turn, the last for ever; `others` answers all else."""
    left = list(replies)

    def answer(number: int, request: dict[str, Any]) -> Answer:
        if "analyst of optimsyn" not in json.dumps(request["messages"]) and others is not None:
            return others(number, request)
        return said(left.pop(0) if len(left) > 1 else left[0], prompt_tokens=1000, completion_tokens=100)

    service.answer = answer


def asked(service: Service) -> list[str]:
    """The prompts that the analyst's model got."""
    prompts = (request["messages"][-1]["content"] for request in service.requests)
    return [prompt for prompt in prompts if "[[ ## steps ## ]]" in prompt]


def model(service: Service, **fields: Any) -> dict[str, Any]:
    """A model behind the service, free unless `prices` say otherwise."""
    place = {"name": "openai/planner", "api_base": service.base, "api_key_env": "STAGES_TEST_KEY", "retries": 0}
    return {**place, "prices": FREE, **fields}


def cells(path: Path | str, kind: str = "code") -> list[Any]:
    """The cells of a notebook of a kind."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return [cell for cell in notebook.cells if cell.cell_type == kind]


def texts(path: Path | str) -> Iterator[str]:
    """Everything that a notebook says, sources and outputs."""
    yield Path(path).read_text(encoding="utf-8")


__all__ = ["KEY", "asked", "cells", "follows", "model", "reply", "step", "texts"]
