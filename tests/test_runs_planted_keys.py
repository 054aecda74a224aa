"""Planted keys: ten shapes, in six places, in four encodings, and in no file of a run."""

from __future__ import annotations

import base64
import html
import json
import os
import random
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, quote_plus

import pytest

from optimsyn.base.errors import OptimsynError, ParameterError, RecipeError, ServiceError
from optimsyn.execution.engine import NotebookError, execute
from optimsyn.execution.parameters import chosen_recipe
from optimsyn.recipe.recipe import Recipe
from optimsyn.runs.folder import Run
from tests.llm_helpers import Answer, Service, refused
from tests.runs_helpers import write_notebook
from tests.stages_helpers import answer, run_stage

VARIABLE = "TEAM_PASS"


def _drawn(letters: str, count: int, seed: int) -> str:
    return "".join(random.Random(seed).choice(letters) for _ in range(count))


WORD = string.ascii_letters + string.digits
KEYS = {
    "openai": "s" + "k-proj-" + _drawn(WORD + "-_", 40, 1),
    "github": "gh" + "p_" + _drawn(WORD, 36, 2),
    "amazon": _drawn(WORD + "/+", 38, 3) + "/+",
    "uuid": "3f2b8c1e-9a4d-4e6f-8b7a-1c2d3e4f5a6b",
    "hex": _drawn("0123456789abcdef", 32, 4),
    "token": "ey" + "JhbGciOiJIUzI1NiJ9.ey" + _drawn(WORD, 30, 5) + "." + _drawn(WORD, 30, 6),
    "azure": _drawn(WORD, 43, 7) + "=",
    "signs": 'p/a"s\\s+w%r&d=<7>' + "'?",
    "passphrase": "wrong mule accumulator clip",
    "letters": "keyring-for-all-the-doors",
}


def encoded(key: str) -> dict[str, str]:
    """A key as it is, and as an address, base64, JSON, HTML and hex write it."""
    data = key.encode()
    forms = {
        "plain": key,
        "address": quote(key),
        "query": quote_plus(key),
        "whole": quote(key, safe=""),
        "base64": base64.b64encode(data).decode(),
        "urlsafe": base64.urlsafe_b64encode(data).decode().rstrip("="),
        "json": json.dumps(key)[1:-1],
        "html": html.escape(key),
        "hex": data.hex(),
    }
    for user in ("u", "me", "team"):
        forms[f"basic {user}"] = base64.b64encode(f"{user}:{key}".encode()).decode()
    return forms


def needles(key: str) -> list[bytes]:
    """What may stand in no file: every form, and what the three alignments of base64 leave of it."""
    found = {form for name, form in encoded(key).items() if not name.startswith("basic")}
    found |= {json.dumps(form)[1:-1] for form in found}
    for before in range(3):
        text = base64.b64encode(b"x" * before + key.encode()).decode().rstrip("=")
        found |= {text[4:-4], text[4:-4].replace("+", "-").replace("/", "_")}
    return [form.encode() for form in found]


def holding(folder: Path, key: str, *, but: Path | None = None) -> list[str]:
    """Files in which a form of the key stands, with it."""
    wanted = needles(key)
    return [
        f"{path.relative_to(folder)}: {needle!r}"
        for path in folder.rglob("*")
        if path.is_file() and path != but
        for data in [path.read_bytes()]
        for needle in wanted
        if needle in data
    ]


def _echoing(key: str, good_replies: int) -> Callable[[int, dict[str, Any]], Answer]:
    """A service that repeats its key in every field of good replies, and then in an error."""
    echo = " ".join(encoded(key).values())

    def reply(number: int, request: dict[str, Any]) -> Answer:
        if number >= good_replies:
            return refused(400, f"Your request with {echo} was refused", x_key=quote(key))
        good = json.loads(answer(number, request).body)
        message = good["choices"][0]["message"]
        fields = json.loads(message["content"])
        message["content"] = json.dumps({**fields, "note": echo})
        message["reasoning_content"] = f"I was called with {echo}"
        good["model"] = f"served for {echo}"
        good["id"] = good["system_fingerprint"] = echo
        good["choices"][0]["finish_reason"] = "stop"
        return Answer(200, json.dumps(good), {"x-api-key": quote(key), "x-request": encoded(key)["base64"]})

    return reply


# Each is a run of some seconds; three of them tell most.
@pytest.mark.parametrize(
    "shape",
    [pytest.param(name, marks=[] if name in ("openai", "amazon", "signs") else pytest.mark.slow) for name in KEYS],
)
def test_no_file_of_a_run_holds_a_planted_key(
    shape: str, recipe: Recipe, served: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = KEYS[shape]
    monkeypatch.setenv(VARIABLE, key)
    raw = recipe.model_dump(mode="json")
    for role in ("generator", "rubric"):
        raw["models"][role]["api_key_env"] = VARIABLE
    source = tmp_path / "documents.jsonl"
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    for number, form in enumerate(encoded(key).values()):
        rows[number % len(rows)]["text"] += f" Somebody left {form} here."
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))

    # In the recipe: refused by field and variable, before there is a folder.
    for form in encoded(key).values():
        with pytest.raises(RecipeError, match=rf"description holds the value of the environment variable {VARIABLE}"):
            Recipe.parse({**raw, "description": f"with {form} in it"})

    # In documents, in replies, in an error.
    run = Run.open(Recipe.parse(raw), tmp_path / "runs")
    run_stage(run, "prepare")
    further = shape == "signs"
    served.answer = _echoing(key, 15 if further else 9)
    with pytest.raises(ServiceError) as caught:
        run_stage(run, "warm_up")
        run_stage(run, "optimize_prompt")
    stage = "optimize_prompt" if further else "warm_up"
    assert run.manifest.stage(stage).status == "failed"
    assert f"Bearer {key}" in served.keys, "the service was to get the key"
    assert all(needle.decode() not in str(caught.value) for needle in needles(key))
    asked = json.dumps(served.requests)
    assert all(needle.decode() not in asked for needle in needles(key)), "a document's key would go to the service"

    # In an exception that shows the environment.
    with pytest.raises(OptimsynError), run.stage(stage):
        raise ServiceError(f"{dict(os.environ)} {list(encoded(key).values())}")
    assert run.replies.totals().replies >= 6
    run.replies.close()
    assert {"manifest.json", "recipe.yaml", "replies.sqlite"} <= {path.name for path in run.folder.iterdir()}
    assert holding(run.folder, key) == []


def test_no_executed_notebook_holds_a_planted_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = []
    for number, key in enumerate(KEYS.values()):
        monkeypatch.setenv(f"TEAM_PASS_{number}", key)
        names.append(f"TEAM_PASS_{number}")
    printing = "\n".join(
        [
            "import os, sys, base64, json, urllib.parse",
            f"keys = [os.environ[name] for name in {names}]",
            "for key in keys:",
            "    forms = [key, urllib.parse.quote(key, safe=''), json.dumps(key)]",
            "    forms += [base64.b64encode(key.encode()).decode()]",
            "    print(forms, *forms)",
            "    print(*forms, file=sys.stderr)",
            "    os.write(2, ' '.join(forms).encode() + b'\\n')",
            "dict(zip(keys, keys))",
        ]
    )
    raising = "raise RuntimeError(f'{keys} {dict(os.environ)}')"
    notebook = write_notebook(tmp_path / "planted.ipynb", printing, raising, parameters="pairs: int = 3")
    output = tmp_path / "out" / "planted.ipynb"
    with pytest.raises(NotebookError) as caught:
        execute(notebook, output, {"pairs": 4}, secret_names=names)
    assert "[redacted]" in output.read_text(encoding="utf-8")
    assert (tmp_path / "out" / "planted.log").is_file()
    for key in KEYS.values():
        assert holding(tmp_path / "out", key) == []
        assert all(needle.decode() not in str(caught.value) for needle in needles(key))


@pytest.mark.parametrize("value", [*KEYS.values(), "hunter2", "123456789012", "2026-11-26"])
def test_a_value_of_the_recipes_own_variable_is_refused_wherever_it_is_given(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import yaml

    from optimsyn.batch.plan import RunOptions, plan
    from optimsyn.recipe.changes import parse_change

    monkeypatch.setenv(VARIABLE, value)
    spec = {"name": "openai/some-model", "api_base": "http://127.0.0.1:9/v1", "api_key_env": VARIABLE}
    raw: dict[str, Any] = {
        "name": "mine",
        "documents": {"source": "embedded:quickstart"},
        "questions": {"validation": "embedded:quickstart"},
        "guiding_text": "Ask for one certain fact.",
        "models": {"generator": spec},
    }
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(raw, allow_unicode=True), encoding="utf-8")
    given = f"description={json.dumps(value) if not value.isalnum() else value}"
    field, read = parse_change(given)
    refusals = [
        lambda: chosen_recipe(str(file), changes={field: read}),
        lambda: chosen_recipe(str(file), changes={"guiding_text": f"Ask for {value} or another certain fact."}),
    ]
    for refusal in refusals:
        with pytest.raises(RecipeError) as caught:
            refusal()
        assert VARIABLE in str(caught.value)
        assert value not in str(caught.value)
    jobs = plan([str(file)], tmp_path / "runs", RunOptions(changes={field: read}))
    assert jobs[0].state.state == "refused"
    assert value not in jobs[0].state.model_dump_json()
    notebook = write_notebook(tmp_path / "note.ipynb", "1", parameters=f'recipe: str = "{file}"\nnote: str = ""')
    with pytest.raises(ParameterError, match=VARIABLE) as refused_parameter:
        execute(notebook, tmp_path / "out" / "note.ipynb", {"note": value})
    assert value not in str(refused_parameter.value)
    in_file = {**raw, "guiding_text": f"Ask for {value} and nothing else."}
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump(in_file, allow_unicode=True), encoding="utf-8")
    with pytest.raises(RecipeError, match="guiding_text holds the value"):
        Recipe.load(other)
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "out").exists()
