"""Services are asked one tiny question before anything else, and what they refuse is told by the recipe's field."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from data_helpers import recipe_of
from typer.testing import CliRunner

from optimsyn.base.errors import RecipeError
from optimsyn.cli import app
from optimsyn.llm.hosted import failures
from optimsyn.machine.availability import availability
from optimsyn.machine.preflight import validate
from optimsyn.machine.preflight_services import open_asked
from optimsyn.recipe.changes import changed
from optimsyn.recipe.recipe import ModelSpec, Recipe
from tests.batch_api_helpers import batch_apis
from tests.llm_helpers import KEY, Answer, Service, refused, said, service


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    monkeypatch.setattr(failures, "FIRST_WAIT_S", 0.01)
    monkeypatch.setenv("LOCAL_SERVICE_KEY", KEY)
    with service() as running:
        running.answers(said('{"word": "yes"}'))
        yield running


def recipe_at(tmp_path: Path, base: str, **spec: Any) -> Recipe:
    served = {"name": "openai/some-model", "api_base": base, "api_key_env": "LOCAL_SERVICE_KEY", **spec}
    changes = {"models.generator": served, "models.rubric": served, "optimizers.policy.enabled": False}
    return changed(recipe_of(tmp_path), changes)


REFUSALS = [
    (refused(404, "not found"), "unknown model or address", "check the model's name and api_base"),
    (refused(404, "The model `some-model` does not exist"), "does not exist", "check the model's name"),
    (Answer(404, "<html>nothing here</html>", {"Content-Type": "text/html"}), "HTTP 404", "api_base"),
    (refused(401, f"Incorrect API key provided: {KEY}"), "the key was refused", "api_key_env"),
    (refused(402, "pay first"), "cannot pay", "billing"),
    (Answer(200, "<html>Log in</html>", {"Content-Type": "text/html"}), "not what the API promises", "api_base"),
]


@pytest.mark.parametrize(("answer", "what", "cure"), REFUSALS)
def test_what_a_service_refuses_is_found_before_the_run(
    served: Service, tmp_path: Path, answer: Answer, what: str, cure: str
) -> None:
    served.answers(answer)
    recipe = recipe_at(tmp_path, served.base)
    (problem,) = validate(recipe).problems
    assert problem.startswith("models.generator, models.rubric: a first tiny request failed")
    assert what in problem
    assert cure in problem
    assert KEY not in problem
    assert len(served.requests) <= 2
    with pytest.raises(RecipeError, match="models.generator, models.rubric: a first tiny request failed"):
        open_asked(recipe, tmp_path / "runs")
    assert list((tmp_path / "runs").iterdir()) == []


REFUSAL = json.loads(said(None).body)
REFUSAL["choices"][0]["message"]["refusal"] = "I will not talk about that."
TOOL = json.loads(said(None, finish="tool_calls").body)
TOOL["choices"][0]["message"]["tool_calls"] = [
    {"id": "1", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}
]
THOUGHT = json.loads(said("").body)
THOUGHT["choices"][0]["message"]["reasoning_content"] = "The user wants me to say it."
ODD = [
    (said("I'm sorry, but I can't help with that."), "with a refusal: \"I'm sorry, but", "name another model"),
    (said("Lorem ipsum dolor sit amet"), "with something else: 'Lorem ipsum dolor sit amet'", "follows instructions"),
    (said('{"word": "banana"}'), "with something else", "follows instructions"),
    (said("yesterday"), "with something else: 'yesterday'", "api_base"),
    (said(""), "with an empty text", "turn thinking off"),
    (said("   "), "with an empty text", "turn thinking off"),
    (Answer(200, json.dumps(THOUGHT)), "with an empty text: the reply is empty, but its reasoning is not", "thinking"),
    (Answer(200, json.dumps(TOOL)), "with a tool call", "Turn tools off"),
    (said("asdf " * 5, finish="length"), "with a reply that was cut before it answered", "max_tokens"),
    (said("", finish="length"), "with a reply that was cut before it answered", "reasoning_effort"),
    (said("yes"), "in plain text: it seems to ignore schemas", "structured_output: false"),
]


@pytest.mark.parametrize(("answer", "what", "cure"), ODD)
def test_an_odd_answer_to_a_harmless_request_is_told_and_stops_nothing(
    served: Service, tmp_path: Path, answer: Answer, what: str, cure: str
) -> None:
    served.answers(answer)
    recipe = recipe_at(tmp_path, served.base, prices={"input": 0, "output": 0}, retries=0)
    found = validate(recipe)
    assert found.problems == []
    (note,) = (text for text in found.warnings if what in text)
    assert note.startswith("models.generator, models.rubric: ")
    assert cure in note
    run = open_asked(recipe, tmp_path / "runs")
    assert [what in text for text in run.warnings] == [True]
    # Once the service has been fixed nothing is said any more, and nothing is asked either.
    served.answers(said('{"word": "yes"}'))
    open_asked(recipe, tmp_path / "runs")
    mended = len(served.requests)
    assert open_asked(recipe, tmp_path / "runs").warnings == ((note,) if "schema" in what else ())
    assert len(served.requests) == mended


@pytest.mark.parametrize(
    "answer", [Answer(200, json.dumps(REFUSAL)), said("", finish="content_filter")], ids=["refusal", "filter"]
)
def test_a_service_that_refuses_harmless_requests_by_its_api_stops_the_run(
    served: Service, tmp_path: Path, answer: Answer
) -> None:
    served.answers(answer)
    recipe = recipe_at(tmp_path, served.base, retries=0)
    (problem,) = validate(recipe).problems
    assert problem.startswith("models.generator, models.rubric: it answered 'Reply with the word yes.' with a refusal")
    assert "another harmless request was refused, too" in problem
    with pytest.raises(RecipeError, match="with a refusal"):
        open_asked(recipe, tmp_path / "runs")
    # One that refuses this one alone may be of use.
    served.answer = lambda number, request: said("Paris") if "capital" in json.dumps(request) else answer
    found = validate(recipe)
    assert found.problems == []
    assert "with a refusal" in "\n".join(found.warnings)


def test_a_service_that_takes_no_schema_is_told_at_once(served: Service, tmp_path: Path) -> None:
    served.answer = lambda number, request: (
        refused(400, "response_format is not supported") if "response_format" in request else said("Yes.")
    )
    recipe = recipe_at(tmp_path, served.base)
    for found in (validate(recipe).warnings, open_asked(recipe, tmp_path / "runs").warnings):
        (note,) = (text for text in found if "schema" in text)
        assert note.startswith("models.generator, models.rubric: it took no JSON schema (HTTP 400: ")
        assert "`structured_output: false`" in note
    plain = recipe_at(tmp_path, served.base, structured_output=False)
    assert not any("schema" in text for text in validate(plain).warnings)


def test_what_a_service_takes_and_says_of_its_tokens_is_told_with_the_field(
    served: Service, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = said('{"word": "yes"}', prompt_tokens=10**12)
    served.answer = lambda number, request: (
        refused(400, "Unsupported parameter: 'temperature'") if "temperature" in request else good
    )
    found = validate(recipe_at(tmp_path, served.base))
    told = "\n".join(found.warnings)
    assert "models.generator, models.rubric: openai/some-model takes no temperature" in told
    assert "models.generator, models.rubric: openai/some-model reports numbers of tokens" in told
    assert found.problems == []
    assert not any("temperature" in record.getMessage() for record in caplog.records)


def test_a_model_that_thinks_is_given_the_room_that_a_run_gives(served: Service, tmp_path: Path) -> None:
    served.answer = lambda number, request: (
        said("", finish="length") if request["max_tokens"] == 16 else said('{"word": "yes"}')
    )
    recipe = recipe_at(tmp_path, served.base, max_tokens=300, prices={"input": 0, "output": 0}, retries=0)
    assert not [text for text in validate(recipe).warnings if text.startswith("models.")]
    assert [request["max_tokens"] for request in served.requests] == [16, 300]
    open_asked(recipe, tmp_path / "runs")
    asked = len(served.requests)
    open_asked(recipe, tmp_path / "runs")
    assert len(served.requests) == asked


def test_a_refusal_that_names_nothing_says_what_to_leave_out_and_where(served: Service, tmp_path: Path) -> None:
    served.answers(refused(400, "Bad Request"))
    (problem,) = validate(recipe_at(tmp_path, served.base, temperature=None)).problems
    assert "under models.generator, models.rubric `structured_output: false`, `send_seed: false`" in problem
    assert "temperature" not in problem


@pytest.mark.parametrize("spec", [{"prices": {"input": 1, "output": 2}}, {"batch": True}, {"top_p": 0.5}, {}])
def test_a_misspelled_provider_is_the_first_thing_to_be_told(tmp_path: Path, spec: dict[str, Any]) -> None:
    given = {"models.generator": {"name": "opnai/gpt-6-luna", **spec}}
    try:
        told = validate(changed(recipe_of(tmp_path), given), offline=True).problems
    except RecipeError as error:
        told = str(error).splitlines()
    text = "\n".join(told)
    assert "opnai is not a provider; did you mean `openai/gpt-6-luna`?" in text
    assert "runs on this machine" not in text


@pytest.mark.parametrize("command", ["preview", "run"])
def test_the_first_lines_of_a_command_say_what_it_does(served: Service, tmp_path: Path, command: str) -> None:
    served.answers(refused(404, "not found"))
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe_at(tmp_path, served.base).to_yaml(), encoding="utf-8")
    done = CliRunner().invoke(app, [command, str(file), "--root", str(tmp_path / "runs")])
    lines = done.stderr.splitlines()
    assert any("… Checking files, questions and models" in line for line in lines)
    assert any("✗ Sending each service one tiny request" in line for line in lines)
    assert "Checking" not in done.stdout


@pytest.mark.parametrize("command", ["preview", "run"])
def test_preview_and_run_ask_before_anything_is_made(served: Service, tmp_path: Path, command: str) -> None:
    served.answers(refused(404, "not found"))
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe_at(tmp_path, served.base).to_yaml(), encoding="utf-8")
    done = CliRunner().invoke(app, [command, str(file), "--root", str(tmp_path / "runs")])
    assert isinstance(done.exception, RecipeError)
    assert "models.generator" in str(done.exception)
    assert len(served.requests) == 1
    assert list((tmp_path / "runs").iterdir()) == []


@pytest.mark.slow
def test_asking_loads_no_model_library(served: Service, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe_at(tmp_path, served.base).to_yaml(), encoding="utf-8")
    code = (
        "import sys; from optimsyn.recipe.recipe import Recipe; from optimsyn.machine.preflight import validate; "
        f"found = validate(Recipe.load({str(file)!r})); assert found.ok, found; "
        "heavy = {'torch', 'transformers', 'trl', 'dspy'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=600)
    assert len(served.requests) == 1


def test_offline_nothing_is_sent_and_that_is_said(served: Service, tmp_path: Path) -> None:
    found = validate(recipe_at(tmp_path, served.base), offline=True)
    assert served.requests == []
    assert any("models.generator: whether the service answers" in text for text in found.unchecked)
    validate(recipe_at(tmp_path, served.base), ask=False)
    assert served.requests == []


def test_one_question_a_service_and_once_a_run(served: Service, tmp_path: Path) -> None:
    recipe = recipe_at(tmp_path, served.base)
    assert validate(recipe).ok
    assert len(served.requests) == 1
    assert served.requests[0]["max_tokens"] == 16
    run = open_asked(recipe, tmp_path / "runs")
    assert run.bought().replies == 1
    assert run.bought().input_tokens == 7
    assert len(served.requests) == 2
    open_asked(recipe, tmp_path / "runs")
    assert len(served.requests) == 2
    # A run that went well so far stays, also when its service does not answer any more.
    served.answers(refused(401, "no"))
    other = changed(recipe, {"models.generator.concurrency": 9})
    assert open_asked(other, tmp_path / "runs").folder == run.folder
    assert len(served.requests) == 2


def test_the_cap_of_the_recipe_holds_for_the_question_too(served: Service, tmp_path: Path) -> None:
    recipe = changed(recipe_at(tmp_path, served.base), {"limits.tokens": 10})
    with pytest.raises(RecipeError, match=r"models.generator, models.rubric: limits.tokens"):
        open_asked(recipe, tmp_path / "runs")
    assert served.requests == []


def test_a_server_that_is_not_there_may_start_later_but_not_after_the_run(tmp_path: Path, served: Service) -> None:
    recipe = recipe_at(tmp_path, "http://127.0.0.1:9/v1")
    found = validate(recipe)
    assert found.problems == []
    assert "nothing answers at 127.0.0.1:9" in "\n".join(found.warnings)
    with pytest.raises(RecipeError, match="the connection failed"):
        open_asked(recipe, tmp_path / "runs")


def test_a_recipe_without_services_asks_nobody(tmp_path: Path) -> None:
    run = open_asked(recipe_of(tmp_path), tmp_path / "runs")
    assert not (run.folder / "replies.sqlite").exists()


def test_a_service_without_batches_is_told_apart(served: Service, tmp_path: Path) -> None:
    (problem,) = validate(recipe_at(tmp_path, served.base, batch=True)).problems
    assert problem.startswith("models.generator.batch, models.rubric.batch: the service has no batch API")
    with batch_apis() as apis:
        assert validate(recipe_at(tmp_path, apis.base, batch=True)).problems == []
        assert len(apis.alone) == 1
        one = changed(recipe_at(tmp_path, apis.base), {"models.generator.batch": True})
        assert validate(one).problems == []
        assert len(apis.alone) == 2
    one = changed(recipe_at(tmp_path, served.base), {"models.rubric.batch": True})
    assert validate(one).problems[0].startswith("models.rubric.batch: the service has no batch API")


@pytest.mark.parametrize(
    ("role", "spec", "words"),
    [
        ("generator", {"name": "gemini/gemini-2.5-pro"}, "models.generator.batch: no batch API of 'gemini' is known"),
        ("generator", {"name": "hosted_vllm/x", "api_base": "http://h/v1"}, "models.generator.batch: no batch API"),
        ("rubric", {"name": "embedded"}, "models.rubric.batch: embedded runs on this machine"),
        ("reflection", {"name": "openai/gpt-4.1-mini"}, "models.reflection.batch: each of its replies is needed"),
    ],
)
def test_batches_are_refused_where_there_are_none(role: str, spec: dict[str, Any], words: str) -> None:
    found = availability(role, ModelSpec(**spec, batch=True), network=False, keys=False)
    assert words in "\n".join(found.problems)


@pytest.mark.parametrize(
    "name", ["openai/gpt-4.1-mini", "gpt-4.1-mini", "anthropic/claude-haiku-4-5", "claude-haiku-4-5"]
)
def test_batches_are_taken_where_there_are_some(name: str) -> None:
    assert availability("generator", ModelSpec(name=name, batch=True), network=False, keys=False).problems == []
