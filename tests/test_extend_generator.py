"""A generator from outside of optimsyn: the example of its page writes the pairs of a run, a rule its rubrics."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

import optimsyn
from optimsyn.base.errors import BudgetError, RecipeError, ServiceError
from optimsyn.base.extensions import GENERATORS
from optimsyn.base.terminal.labels import BESIDES_LABELS
from optimsyn.llm.factory import load_language_model
from optimsyn.llm.language_model import Call
from optimsyn.llm.replies import Budget, ReplyCache
from optimsyn.llm.reply import Reply
from optimsyn.machine.preflight import validate
from optimsyn.recipe.changes import changed
from optimsyn.recipe.recipe import ModelSpec, Recipe
from optimsyn.runs.folder import Run
from optimsyn.runs.manifest import ManifestFile
from optimsyn.runs.outcomes import run_notes
from tests.llm_helpers import Answer, Service
from tests.stages_helpers import answer, run_stage

PAGE = Path(__file__).parents[1] / "docs" / "extend" / "generator.md"
RULE = '''
import json

class Rule:
    """Writes the same rubric for every passage."""

    async def complete(self, call):
        names = ("question_type", "question_quality", "answer_quality", "alignment", "trainability")
        return json.dumps(dict.fromkeys(names, "names one thing"))
'''


@pytest.fixture
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the page's example and a rule, on the path of Python."""
    example = next(
        block for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if "urlopen" in block
    )
    assert len(example.splitlines()) <= 30
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "colleague.py").write_text(example)
    (folder / "rule.py").write_text(RULE)
    monkeypatch.syspath_prepend(str(folder))
    for name in ("colleague", "rule"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return folder


def colleague(number: int, request: dict[str, Any]) -> Answer:
    """The colleague's service, which knows neither roles nor schemas."""
    usual = {"messages": [{"content": request["prompt"]}], "seed": request["seed"]}
    said = json.loads(answer(number, usual).body)["choices"][0]["message"]["content"]
    return Answer(200, json.dumps({"text": said}))


def own(recipe: Recipe, state: Service, **more: Any) -> Recipe:
    """The recipe with both writing models from outside."""
    generator = {"plugin": "colleague:Generator", "settings": {"url": state.base}, **more}
    models = {"models.generator": generator, "models.rubric": {"plugin": "rule:Rule", "prices": FREE}}
    return changed(recipe, {**models, "optimizers.prompt.enabled": False})


FREE = {"input": 0, "output": 0}


@pytest.mark.slow
def test_a_run_is_written_by_them_and_goes_on_without_asking_again(
    recipe: Recipe,
    served: Service,
    outside: Path,
    tmp_path: Path,
) -> None:
    served.answer = colleague
    mine = own(recipe, served)
    found = validate(mine, ask=False)
    assert found.ok and found.forecast is not None
    assert found.forecast.total.cost_usd is None
    assert any("What models.generator costs is not known" in note for note in found.forecast.notes)
    run = Run.open(mine, tmp_path / "runs")
    for stage in ("prepare", "warm_up", "optimize_prompt", "train_policy", "synthesize"):
        run_stage(run, stage)
    asked = len(served.requests)
    assert asked and all(set(request) == {"prompt", "seed", "longest"} for request in served.requests)
    cost, outcomes = run.manifest.cost, run.manifest.outcomes
    assert cost.replies == asked + outcomes["rubric"]["read"] and cost.tokens > 0
    assert cost.usd() == "unknown"
    assert outcomes["generator"]["estimated"] == asked and "not reported" in BESIDES_LABELS["estimated"]
    assert any("estimated from the texts" in note for note in run_notes(run.manifest.services, outcomes))
    written = [json.loads(line) for line in run.path("warm_up", "pairs.jsonl").read_text().splitlines()]
    assert {row["generator"] for row in written} == {"colleague:Generator"}
    assert {row["rubric_model"] for row in written} == {"rule:Rule"}
    with ManifestFile(run.folder / "manifest.json").change() as manifest:
        manifest.stage("synthesize").status = "failed"
    for path in (run.folder / "synthesize").glob("*.candidates.jsonl"):
        path.unlink()
    (run.folder / "rewards.jsonl").unlink()
    run_stage(Run.load(run.folder), "synthesize")
    assert len(served.requests) == asked


CALL = Call.of("Write.", seed=1, max_tokens=20)


def test_source_and_settings_are_part_of_what_a_reply_is_kept_under(outside: Path) -> None:
    def key(**settings: Any) -> str:
        return load_language_model(ModelSpec(name="mine", plugin="colleague:Generator", settings=settings)).key(CALL)

    first = key(url="http://a")
    assert key(url="http://a") == first != key(url="http://a", length=7)
    source = outside / "colleague.py"
    source.write_text(source.read_text() + "\n# edited\n")
    del sys.modules["colleague"]
    assert key(url="http://a") != first
    one = load_language_model(ModelSpec(name="mine", plugin="rule:Rule"))
    assert one.identity.startswith("own:rule:Rule:")


class Clerk:
    """Reports what it used; says what a test has it say."""

    def __init__(self, says: object = "yes") -> None:
        self.says = says
        self.settings = {"says": str(says)}
        self.asked = 0

    def complete(self, call: Call) -> Any:
        self.asked += 1
        if isinstance(self.says, Exception):
            raise self.says
        return self.says


def clerk(says: object, cache: ReplyCache | None = None, **spec: Any) -> Any:
    optimsyn.register("generator", Clerk(says), name="clerk")
    budget = None if cache is None else Budget(cache, requests=1)
    fields = {"name": "clerk", "plugin": "clerk", "retries": 0, **spec}
    return load_language_model(ModelSpec(**fields), cache, budget=budget, field="models.generator")


@pytest.fixture(autouse=True)
def forgotten() -> Any:
    yield
    GENERATORS.forget("clerk")


def test_what_it_reports_is_taken_and_what_it_does_not_is_unknown(tmp_path: Path) -> None:
    said = Reply(text="yes", input_tokens=3, output_tokens=1, cost_usd=0.25)
    reply = clerk(said).complete_sync(CALL)
    assert (reply.input_tokens, reply.output_tokens, reply.cost_usd, reply.estimated) == (3, 1, 0.25, False)
    counted = clerk("yes", prices={"input": 1_000_000, "output": 0}).complete_sync(CALL)
    assert counted.estimated and counted.cost_usd == counted.input_tokens > 0
    assert clerk("yes").complete_sync(CALL).cost_usd is None
    assert clerk("yes").key(CALL) != clerk("no").key(CALL)


def test_caps_keys_and_failures_are_those_of_any_other_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLERK_TOKEN", "xk-4Vq9Tz7LmB2p")
    cache = ReplyCache(tmp_path / "replies.sqlite")
    model = clerk("My key is xk-4Vq9Tz7LmB2p.", cache, api_key_env="CLERK_TOKEN")
    assert "xk-4Vq9" not in model.complete_sync(CALL).text
    assert model.complete_sync(CALL) and cache.totals().replies == 1
    with pytest.raises(BudgetError, match=r"limits\.requests"):
        model.complete_sync(Call.of("Another."))
    for says, message in (
        (RuntimeError("xk-4Vq9Tz7LmB2p is wrong"), "RuntimeError"),
        (KeyError("text"), "models.generator: clerk failed: KeyError"),
        (7, "gave int, which is neither a text nor a Reply"),
        (Reply(text="", input_tokens=-1, output_tokens=0), "gave -1 tokens read"),
        (Reply(text="", cost_usd=float("nan")), "a cost of nan"),
    ):
        with pytest.raises(ServiceError, match=message) as failed:
            clerk(says).complete_sync(CALL)
        assert "xk-4Vq9" not in str(failed.value)
    flaky = clerk(OSError("busy"), retries=1)
    monkeypatch.setattr("optimsyn.llm.own.model.backoff_s", lambda failures: 0.0)
    with pytest.raises(ServiceError, match="2 tries"):
        flaky.complete_sync(CALL)
    assert GENERATORS.get("clerk").asked == 2


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"plugin": "nowhere:Generator"}, r"models\.generator\.plugin: 'nowhere:Generator' cannot be imported"),
        ({"plugin": "colleague:Generater"}, r"models\.generator\.plugin: .*has no Generater"),
        (
            {"plugin": "json:dumps"},
            r"models\.generator\.plugin: 'json:dumps' is no generator: .* no method complete",
        ),
        ({"plugin": "colleague"}, r"models\.generator\.plugin: there is no generator 'colleague'"),
        ({"plugin": "colleague:Generator"}, r"models\.generator\.settings: Generator cannot be made.*'url'"),
        (
            {"plugin": "colleague:Generator", "settings": {"address": "x"}},
            r"models\.generator\.settings: .*(address|url)",
        ),
    ],
)
def test_a_wrong_reference_is_refused_before_anything_is_bought(
    spec: dict[str, Any],
    message: str,
    recipe: Recipe,
    outside: Path,
) -> None:
    found = validate(changed(recipe, {"models.generator": spec}), deep=False, offline=True)
    assert any(re.search(message, problem) for problem in found.problems), found.problems
    with pytest.raises(RecipeError, match=message):
        load_language_model(ModelSpec(**{"name": "x", **spec}), field="models.generator")


def test_a_recipe_says_where_a_plugin_does_not_belong(recipe: Recipe, outside: Path) -> None:
    for changes, message in (
        ({"models.target": {"plugin": "rule:Rule"}}, "influence needs the target's gradients"),
        ({"models.generator": {"plugin": "rule:Rule", "api_base": "http://x"}}, "api_base is not for a generator"),
        ({"models.generator": {"plugin": "rule:Rule", "name": "openai/x"}}, "'openai/x', which is another model"),
        ({"models.generator": {"name": "openai/x", "settings": {"url": "x"}}}, "name its plugin"),
        ({"models.rubric": {"plugin": "rule:Rule"}, "optimizers.policy.enabled": True}, "cannot be trained"),
    ):
        with pytest.raises(RecipeError, match=message):
            changed(recipe, changes)
    free = changed(recipe, {"models.generator": "embedded"})
    mine = changed(free, {"models.generator.settings": {"url": "x"}, "models.generator.plugin": "colleague:Generator"})
    assert mine.models.generator.name == "colleague:Generator"
    named = changed(free, {"models.generator.name": "mine", "models.generator.plugin": Clerk})
    assert named.models.generator.name == "mine"
    assert ModelSpec.model_validate({"plugin": Clerk}).plugin == f"{Clerk.__module__}:Clerk"
    assert changed(free, {"models.generator": Clerk}).models.generator.plugin == f"{Clerk.__module__}:Clerk"
    with pytest.raises(RecipeError, match="models.generator: .*Clerk object at .* has no name to import it by"):
        changed(free, {"models.generator": Clerk()})
    # A name with a colon stays LiteLLM's.
    assert ModelSpec(name="ollama/qwen3:0.6b").provider == "litellm"
    assert changed(recipe, {"seed": 5}).fingerprint == recipe.fingerprint
    priced = changed(recipe, {"models.generator": {"plugin": "rule:Rule"}, "limits.cost_usd": 1.0})
    problems = validate(priced, deep=False, offline=True).problems
    assert any("price of 'rule:Rule' is not known" in problem for problem in problems)
