"""Each form with lines goes through a whole run, with a service that writes good pairs and a tiny target."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from optimsyn.recipe.recipe import Recipe
from tests.llm_helpers import Answer, Service, said
from tests.stages_helpers import METALS, NAMES, answer
from tests.test_extend_form import asked_by, rows_of, run_through

FACT = "The city of {0} mined {1} since {2}."
SOLD = "It sold {1} in the harbour."
PAIRS: dict[str, dict[str, Any]] = {
    "long_answer": {"question": "How did the city of {0} live on {1}?", "answer": f"{FACT}\n\n- {SOLD}"},
    "list": {"question": "What did the city of {0} mine and where did it sell it?", "answer": ["{1}", "the harbour"]},
    "code": {
        "question": "Write a Python constant for the year since which the city of {0} mined {1}.",
        "answer": "MINED_SINCE = {2}",
    },
    "reasoning": {
        "question": "Which metal did the city of {0} sell in the harbour?",
        "reasoning": f"{FACT} What it mined, it sold.",
        "answer": "{1}",
    },
    "dialogue": {
        "question": "Which metal did the city of {0} mine?",
        "answer": FACT,
        "question_2": "And where was it sold?",
        "answer_2": SOLD,
    },
}


def filled(value: Any, facts: tuple[str, ...]) -> Any:
    return [filled(item, facts) for item in value] if isinstance(value, list) else value.format(*facts)


def rows(form: str) -> list[dict[str, Any]]:
    """Questions of the form, in other words than the pairs'."""
    made = []
    for i, (name, metal) in enumerate(zip(NAMES, METALS, strict=True)):
        row = {key: filled(value, (name, metal, "1200")) for key, value in PAIRS[form].items()}
        row["question"] = f"By its chronicle, what about {metal} and the old market of {name}?"
        if form == "dialogue":
            texts = (row["question"], row.pop("answer"), row.pop("question_2"), row.pop("answer_2"))
            row["messages"] = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]
            del row["question"]
        made.append({"id": f"q{i}", "group": name, **row})
    return made


@pytest.mark.slow
@pytest.mark.parametrize("form", PAIRS)
def test_a_form_goes_through_a_whole_run(form: str, recipe: Recipe, served: Service, tmp_path: Path) -> None:
    def write(number: int, request: dict[str, Any]) -> Answer:
        schema = json.dumps(request.get("response_format", {}))
        if "trainability" in schema or "word yes" in request["messages"][-1]["content"]:
            return answer(number, request)
        found = re.findall(r"The city of (\w+) mined (\w+) since (\d+)", request["messages"][-1]["content"])[-1]
        return said(json.dumps({"quote": "", **{key: filled(value, found) for key, value in PAIRS[form].items()}}))

    served.answer = write
    run = run_through(asked_by(tmp_path, recipe, form, rows(form)), tmp_path)
    judged = rows_of(run, "synthesize", "static.candidates.jsonl")
    assert all(row["valid"] and row["influence"] is not None for row in judged)
    (pair, *_) = run.dataset
    assert pair.kind == form
    (exported, *_) = rows_of(run, "dataset", "train.jsonl")
    roles = [message["role"] for message in exported["messages"]]
    assert roles == ["user", "assistant"] * (2 if form == "dialogue" else 1)
    assert not any(
        label in message["content"] for message in exported["messages"] for label in ("Passage:", "Question:")
    )
    if form == "long_answer":
        assert "\n\n- " in exported["messages"][-1]["content"]
    evaluated = rows_of(run, "evaluate", "static.jsonl")
    assert {row["kind"] for row in evaluated} == {form}
    assert all(row["token_f1"] is not None for row in evaluated)
    metrics = {row["metric"] for row in json.loads(run.path("evaluation.json").read_text(encoding="utf-8"))}
    further = {"long_answer": {"rouge_l"}, "list": {"accuracy", "item_f1"}}.get(form, {"accuracy"})
    assert metrics == {"answer_loss", "token_f1"} | further
    assert pair.question in run.path("report.html").read_text(encoding="utf-8")
