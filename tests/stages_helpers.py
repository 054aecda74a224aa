"""A whole run in small: a service that writes rubrics and pairs, and a recipe with a tiny random target."""

from __future__ import annotations

import importlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from optimsyn.recipe.recipe import Recipe
from optimsyn.runs.folder import Run
from tests.llm_helpers import KEY, Answer, Service, said, save_tiny_model, service

NAMES = [
    "Arvo",
    "Belin",
    "Corma",
    "Dastik",
    "Elgar",
    "Fennic",
    "Goral",
    "Hastur",
    "Ilmen",
    "Jorvik",
    "Kelmet",
    "Lorcan",
]
METALS = "copper silver cobalt nickel zinc iron tin lead gold chrome titan mangan".split()


def sentence(index: int) -> str:
    """One made-up fact."""
    return f"The city of {NAMES[index]} mined {METALS[index]} since {1200 + 37 * index} and sold it in the harbour"


def answer(number: int, request: dict[str, Any]) -> Answer:
    """A good model: the rubric when a rubric is asked for, else a pair about the first fact of the passage."""
    text = request["messages"][-1]["content"]
    schema = json.dumps(request.get("response_format", {}))
    if text == "Reply with the word yes.":  # the first tiny question to a service
        return said(json.dumps({"word": "yes"}))
    if "trainability" in schema:
        rubric = dict.fromkeys(("question_quality", "answer_quality", "alignment", "trainability"), "names one thing")
        return said(json.dumps({"question_type": "fact", **rubric}))
    name = re.findall(r"The city of (\w+) mined (\w+)", text)[-1]
    asked = ["Which metal came from the mines of {}?", "What did the miners of {} dig for?"][request.get("seed", 0) % 2]
    return said(json.dumps({"quote": "", "question": asked.format(name[0]), "answer": name[1]}))


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setenv("STAGES_TEST_KEY", KEY)
    with service() as state:
        state.answer = answer
        yield state


@pytest.fixture
def recipe(tmp_path: Path, served: Service) -> Recipe:
    documents = [
        {"id": name, "title": name, "text": f"{sentence(i)}. Nobody knows why the miners of {name} left the hills."}
        for i, name in enumerate(NAMES)
    ]
    questions = [
        {
            "id": f"q{i}",
            "question": f"In which year, according to its chronicle, did {name} open its first shaft?",
            "answer": str(1200 + 37 * i),
            "group": name,
            "subtask": "dates" if i % 2 else "years",
        }
        for i, name in enumerate(NAMES)
    ]
    (tmp_path / "documents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in documents))
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    target = save_tiny_model(tmp_path / "tiny")
    spec = {"name": "openai/served-model", "api_base": served.base, "api_key_env": "STAGES_TEST_KEY", "retries": 0}
    return Recipe.parse(
        {
            "name": "mines",
            "seed": 5,
            "documents": {"source": str(tmp_path / "documents.jsonl"), "min_words": 5},
            "questions": {"validation": str(tmp_path / "questions.jsonl")},
            "guiding_text": "Ask which metal a city mined, so that one word answers it.",
            "models": {
                "generator": spec,
                "rubric": spec,
                "target": {"name": str(target), "max_length": 256},
            },
            "warm_up": {"pairs": 6, "steps": 2, "batch_size": 2},
            "reward": {"look": {"subsets": 2, "steps": 2}},
            "optimizers": {
                "prompt": {"metric_calls": 8, "passages": 2, "minibatch": 2},
                "policy": {"enabled": False},
            },
            "synthesis": {"pairs": 4, "oversample": 1.25},
            "fine_tune": {"steps": 2, "batch_size": 2},
            "evaluation": {"max_new_tokens": 4, "bootstrap": 100},
        }
    )


def asked_twice(state: Service) -> list[str]:
    counts = Counter(json.dumps(request, sort_keys=True) for request in state.requests)
    return [request for request, n in counts.items() if n > 1]


def run_stage(run: Run, stage: str) -> Any:
    """Runs one stage in this process."""
    return importlib.import_module(f"optimsyn.stages.{stage}").run(run)
