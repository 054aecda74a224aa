"""The MCP server: a client drives a run by its tools, and what it must not do is refused."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from report_helpers import write_run

from optimsyn.agents.guard import Guard
from optimsyn.agents.jobs import Jobs
from optimsyn.agents.server import make_server
from optimsyn.agents.tools import Toolbox
from optimsyn.base.errors import BudgetError, RecipeError, StageError
from optimsyn.recipe.recipe import Recipe
from tests.docs_helpers import ROOT
from tests.llm_helpers import KEY, Service
from tests.stages_helpers import recipe, served

mcp = pytest.importorskip("mcp")
__all__ = ["recipe", "served"]

PAID = {"input": 1000.0, "output": 1000.0}


def toolbox(root: Path, budget: float = 0.0, **allowed: Any) -> Toolbox:
    return Toolbox(Guard(root, **allowed), Jobs(budget))


def written(recipe: Recipe, root: Path, **changes: Any) -> str:
    """The name of a recipe file in the root."""
    (root / "mine.yaml").write_text(recipe.changed(changes).to_yaml(), encoding="utf-8")
    return "mine.yaml"


def parameters(root: Path, *options: str, **variables: str) -> Any:
    from mcp.client.stdio import StdioServerParameters

    arguments = ["-m", "optimsyn", "mcp", "--root", str(root), *options]
    variables = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **variables}
    return StdioServerParameters(command=sys.executable, args=arguments, env=variables)


async def called(client: Any, tool: str, **arguments: Any) -> dict[str, Any]:
    result = await client.call_tool(tool, arguments)
    assert not result.is_error, result.content[0].text
    found: dict[str, Any] = result.structured_content
    return found


async def until(client: Any, run: str, wanted: Any, seconds: float = 1200) -> dict[str, Any]:
    end = time.monotonic() + seconds
    while not wanted(status := await called(client, "status", run=run)):
        assert time.monotonic() < end, status
        await asyncio.sleep(0.3)
    return status


@pytest.mark.slow
async def test_a_client_drives_a_recipe_to_its_report(recipe: Recipe, tmp_path: Path) -> None:
    name = written(recipe, tmp_path, **{"models.generator.prices": PAID, "models.rubric.prices": PAID})
    # The values of these variables must be in no answer.
    variables = {"STAGES_TEST_KEY": KEY, "OPENAI_API_KEY": "sk-proj-9f8e7d6c5b4a39281706f5e4d3c2b1a0"}
    async with mcp.Client(parameters(tmp_path, "--allow-hosted", "--budget", "1000", **variables)) as client:
        said = [await called(client, "validate", recipe=name)]
        assert said[0]["ok"], said
        said.append(await called(client, "forecast", recipe=name))
        assert said[-1]["cost_usd"]["high"] > 0 and said[-1]["money"]["left_usd"] == 1000
        said.append(await called(client, "preview", recipe=name, pairs=1))
        assert said[-1]["state"] == "finished" and "Question" in said[-1]["cards"][0]["parts"]
        said.append(await called(client, "run", recipe=name))
        run = said[-1]["run"]
        assert said[-1]["working"] and said[-1]["money"]["reserved_usd"] > 0
        said.append(await until(client, run, lambda status: not status["working"]))
        assert (said[-1]["state"], said[-1]["exit_code"]) == ("finished", 0), said[-1]
        spent = said[-1]["money"]
        assert spent["reserved_usd"] == 0 and spent["spent_usd"] == pytest.approx(said[-1]["cost_usd"]) != 0
        said.append(await called(client, "report", run=run))
        assert (tmp_path / said[-1]["html"]).is_file() and said[-1]["headline"] and said[-1]["figures"]["evaluation"]
        said.append(await called(client, "tables", run=run))
        assert said[-1]["tables"]
    text = json.dumps(said)
    assert not [value for value in variables.values() if value in text]


@pytest.mark.slow
async def test_a_run_is_stopped_and_ends_with_the_server(recipe: Recipe, served: Service, tmp_path: Path) -> None:
    name = written(recipe, tmp_path, **{"models.generator.prices.input": 0, "models.generator.prices.output": 0})
    free = {"models.rubric.prices": {"input": 0, "output": 0}}
    async with mcp.Client(parameters(tmp_path, "--allow-hosted", STAGES_TEST_KEY=KEY)) as client:
        run = (await called(client, "run", recipe=name, changes=free))["run"]
        again = await client.call_tool("run", {"recipe": name, "changes": free})
        assert again.is_error and "already" in again.content[0].text
        # A run is running from its start; what can be interrupted is a stage.
        await until(client, run, lambda status: any(each["status"] == "running" for each in status["stages"]))
        await called(client, "stop", run=run)
        stopped = await until(client, run, lambda status: not status["working"])
        assert stopped["exit_code"] not in (0, None) and stopped["state"] == "interrupted"
        nothing = await client.call_tool("stop", {"run": run})
        assert nothing.is_error and "nothing to stop" in nothing.content[0].text


async def test_every_tool_has_typed_arguments_and_results(tmp_path: Path) -> None:
    async with mcp.Client(make_server(toolbox(tmp_path))) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert {"validate", "forecast", "preview", "run", "status", "stop", "report", "compare", "doctor"} <= set(tools)
        for tool in tools.values():
            assert tool.description and tool.output_schema and tool.annotations is not None
        wrong = await client.call_tool("validate", {"recipe": "quickstart", "size": "huge"})
        assert wrong.is_error and "tiny" in wrong.content[0].text
        outside = await client.call_tool("read_recipe", {"recipe": "/etc/passwd"})
        assert outside.is_error and "is outside of" in outside.content[0].text
        listed = await called(client, "list_recipes")
        assert "quickstart" in listed["bundled"]


@pytest.mark.parametrize("where", ["../out.yaml", "/etc/passwd", "link/out.yaml", "a/../../out.yaml", "out\0.yaml"])
def test_a_path_outside_is_refused(where: str, tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    for place in (outside, tmp_path):
        (place / "out.yaml").write_text(Recipe.load("quickstart").to_yaml(), encoding="utf-8")
        write_run(place / "runs", stages=1)
    (root / "link").symlink_to(outside)
    tools = toolbox(root)
    for call in (tools.read_recipe, tools.validate, tools.run, tools.status, tools.report, tools.documents):
        with pytest.raises((RecipeError, StageError), match="outside of|null character|no such run"):
            call(where)
    with pytest.raises(RecipeError, match="outside of|null character"):
        tools.change_recipe("quickstart", {"seed": 1}, where)
    for changes in ({"documents.source": where}, {"questions.validation": where}, {"questions.test": where}):
        if "\0" not in where:
            with pytest.raises(RecipeError, match="is outside of"):
                tools.read_recipe("quickstart", changes={k: str((root / v).absolute()) for k, v in changes.items()})


def test_a_run_whose_recipe_lies_elsewhere_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "root"
    elsewhere = write_run(tmp_path / "elsewhere", stages=1)
    (root / "runs").mkdir(parents=True)
    (root / "runs" / "linked").symlink_to(elsewhere.folder)
    with pytest.raises(RecipeError, match="is outside of"):
        toolbox(root).status("runs/linked")
    with pytest.raises(RecipeError, match="is outside of"):
        toolbox(root).status("linked")


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"models.generator": "openai/gpt-6-luna"}, "without --allow-hosted"),
        ({"models.generator": {"plugin": "subprocess:Popen"}}, "models.generator.plugin: .* is code"),
        ({"checks.plugins": ["os:system"]}, "checks.plugins: .* is code"),
        ({"documents.readers": {".txt": "os:system"}}, "documents.readers: .* is code"),
        ({"questions.form": "os:system"}, "questions.form: .* is code"),
        ({"stages": [{"name": "own", "after": "prepare", "run": "os:system"}]}, "stages: .* is code"),
        ({"documents.source": {"hub": "../elsewhere"}}, "is no name of a dataset"),
        ({"models.target": "/etc"}, "models.target: /etc: is outside of"),
    ],
)
def test_a_recipe_that_reaches_too_far_is_refused(changes: dict[str, Any], problem: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=problem):
        toolbox(tmp_path).read_recipe("quickstart", changes=changes)


def test_keys_go_to_known_addresses_only(tmp_path: Path) -> None:
    model = {"name": "openai/mine", "api_base": "https://collects.example/v1", "api_key_env": "AWS_SECRET_ACCESS_KEY"}
    changes = {"models.generator": model}
    with pytest.raises(RecipeError, match="--allow-address HOST"):
        toolbox(tmp_path, allow_hosted=True).read_recipe("quickstart", changes=changes)
    allowed = toolbox(tmp_path, allow_hosted=True, addresses=["collects.example"])
    assert "collects.example" in allowed.read_recipe("quickstart", changes=changes).yaml


TEST = {"path": "embedded:quickstart", "where": {"split": "test"}}


@pytest.mark.parametrize(
    "changes",
    [
        {"questions.validation": TEST},
        {"questions.validation": TEST, "questions.test": None},
        {"questions.validation": {"path": "embedded:quickstart"}, "questions.test": None},
        {"reward.source": "other", "reward.other_questions": TEST},
    ],
)
def test_test_questions_are_not_shown_as_others(changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="holds the test questions"):
        toolbox(tmp_path).read_recipe("quickstart", changes=changes)


def test_own_test_questions_are_read_by_the_evaluation_only(tmp_path: Path) -> None:
    rows = {"validation": "Which metal is liquid at room temperature?", "test": "Which gas did Ramsay name first?"}
    (tmp_path / "data").mkdir()
    for name, question in rows.items():
        line = json.dumps({"id": name, "question": question, "answer": f"answer of {name}"})
        (tmp_path / "data" / f"{name}.jsonl").write_text(line + "\n", encoding="utf-8")
    files = {f"questions.{name}": str(tmp_path / "data" / f"{name}.jsonl") for name in rows}
    (tmp_path / "own.yaml").write_text(Recipe.load("quickstart").changed(files).to_yaml(), encoding="utf-8")
    tools = toolbox(tmp_path)
    shown = tools.questions("own.yaml").model_dump_json()
    assert rows["validation"] in shown
    assert rows["test"] not in shown and "answer of" not in shown
    test = files["questions.test"]
    for field, value in (("documents.source", test), ("documents.source", str(tmp_path / "data"))):
        with pytest.raises(RecipeError, match="holds the test questions"):
            tools.read_recipe("quickstart", changes={field: value})
    run = write_run(tmp_path / "runs", stages=1)
    for place in ("prepare", "prepare/test.jsonl", "."):
        with pytest.raises(RecipeError, match="holds the test questions"):
            tools.read_recipe("quickstart", changes={"documents.source": str(run.folder / place)})


def test_a_run_beyond_the_budget_is_refused_with_both_figures(recipe: Recipe, served: Service, tmp_path: Path) -> None:
    name = written(recipe, tmp_path, **{"models.generator.prices": PAID, "models.rubric.prices": PAID})
    tools = toolbox(tmp_path, 0.5, allow_hosted=True)
    high = tools.forecast(name).cost_usd
    assert high is not None and high.high > 0.5
    for call in (tools.run, tools.preview):
        with pytest.raises(BudgetError, match=r"may cost up to \d+\.\d{4} US dollars, and 0\.5000 are left"):
            call(name)
    assert served.requests == [] and not list((tmp_path / "runs").glob("*/replies.sqlite"))
    unknown = written(recipe, tmp_path)
    with pytest.raises(BudgetError, match="its price is unknown"):
        tools.run(unknown)


async def test_no_key_is_in_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "q7Xw2-mavelle-93-Kd8"
    monkeypatch.setenv("SOME_SERVICE_API_KEY", secret)
    run = write_run(tmp_path / "runs", stages=1)
    (run.folder / "mcp.log").write_text(f"the service said {secret}\n", encoding="utf-8")
    made = Recipe.load("quickstart").to_yaml().replace("description: ", "description: sentence ", 1)
    (tmp_path / "mine.yaml").write_text(made, encoding="utf-8")
    async with mcp.Client(make_server(toolbox(tmp_path))) as client:
        answers = [
            await client.call_tool("status", {"run": run.name}),
            await client.call_tool("read_recipe", {"recipe": f"{secret}.yaml"}),
            await client.call_tool("read_recipe", {"recipe": "mine.yaml", "changes": {"description": secret}}),
        ]
    assert "[redacted]" in answers[0].content[0].text
    assert secret not in "".join(answer.model_dump_json() for answer in answers)


def test_a_changed_recipe_is_a_new_file(tmp_path: Path) -> None:
    tools = toolbox(tmp_path)
    made = tools.change_recipe("quickstart", {"synthesis.pairs": 7}, "own/mine.yaml")
    assert made.recipe == "own/mine.yaml" and Recipe.load(tmp_path / "own/mine.yaml").synthesis.pairs == 7
    for output in ("own/mine.yaml", "mine.txt", "runs/x/recipe.yaml"):
        with pytest.raises(RecipeError, match="exists already|is a .yaml file|is among the runs"):
            tools.change_recipe("quickstart", {"synthesis.pairs": 8}, output)
