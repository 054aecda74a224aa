"""Text and weights in turns: the text is searched again with the trained policy, and what is written under it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from optimize_helpers import BASE_TEXT, PairWriter, RubricModel, Shape, make_reward, passages, rubric, tiny_policy
from report_helpers import check_page

import optimsyn
from optimsyn.base.errors import RecipeError, ReplyError, ServiceError
from optimsyn.base.extensions import POLICY_OPTIMIZERS, PROMPT_OPTIMIZERS
from optimsyn.base.files import iter_json
from optimsyn.data.records import Rubric
from optimsyn.llm.local import generation
from optimsyn.machine.disk_need import disk_need
from optimsyn.machine.forecast.lengths import measure
from optimsyn.machine.forecast.requests import Known, forecast
from optimsyn.machine.preflight import validate
from optimsyn.optimize.policy_task import PolicyTask
from optimsyn.optimize.programs import PolicyWriter
from optimsyn.optimize.prompt import PromptResult, optimize_guiding_text
from optimsyn.optimize.prompt_task import PromptTask
from optimsyn.programs.rubric import RubricWriter
from optimsyn.recipe.changes import changed
from optimsyn.recipe.recipe import Recipe
from optimsyn.recipe.sections.optimizers import PromptOptimizer
from optimsyn.report import look
from optimsyn.report.facts import RunFacts
from optimsyn.report.page.report import write_report
from optimsyn.reward.drafting import RubricRequest
from optimsyn.reward.reward import InfluenceReward
from optimsyn.runs.folder import Run
from optimsyn.runs.results.built_in import TrainPolicyResult
from optimsyn.stages.policy.second_turn import second_turn
from optimsyn.stages.shared import Tools
from tests.data_helpers import recipe_of
from tests.llm_helpers import Service
from tests.stages_helpers import asked_twice, run_stage

OWN = "Ask which metal a city mined, so that one word answers it."
FIRST, SECOND = f"{OWN} First.", f"{OWN} First. Second."
STOPPED = "the machine went away"


@pytest.fixture
def methods() -> Iterator[SimpleNamespace]:
    """A search that adds a word a turn, and a training that only turns the policy into another one."""
    state = SimpleNamespace(stops=False)

    def adds_a_word(task: PromptTask) -> str:
        text = f"{task.start} {'First' if task.policy is None else 'Second'}."
        task.compare(text)
        if state.stops and task.policy is not None:
            raise ServiceError(STOPPED)
        return text

    def nudge(task: PolicyTask) -> Path:
        model = task.with_lora(task.load_model()[0])
        torch.manual_seed(task.seed)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_B" in name:
                    weight.normal_(std=0.5)
        task.history().add({"step": 1, "reward": 0.1})
        return task.save(model)

    optimsyn.register("prompt_optimizer", adds_a_word)
    optimsyn.register("policy_optimizer", nudge)
    yield state
    PROMPT_OPTIMIZERS.forget("adds_a_word")
    POLICY_OPTIMIZERS.forget("nudge")


def in_turns(recipe: Recipe, policy: Path) -> Recipe:
    return changed(
        recipe,
        {
            "models.rubric": {"name": str(policy), "device": "cpu", "max_tokens": 40, "temperature": 0.7},
            "optimizers.turns": 2,
            "optimizers.prompt.method": "adds_a_word",
            "optimizers.policy": {
                "enabled": True, "method": "nudge", "max_tokens": 16, "temperature": 1.1, "lora": {"r": 4},
            },
            "synthesis.arms": ["static", "optimized", "both"],
            "synthesis.pairs": 3,
        },
    )  # fmt: skip


@pytest.mark.slow
def test_the_trained_policy_writes_the_second_search_and_the_dataset_follows_its_text(
    recipe: Recipe, served: Service, methods: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A longer text is a better one.
    monkeypatch.setattr(InfluenceReward, "worth", lambda self, row: float(len(row.guiding_text)))
    asked: list[tuple[float, Any]] = []
    sample = generation.generate

    def recording(model: Any, tokenizer: Any, rows: Any, *given_up: Any) -> Any:
        # Which weights write: an adapter is merged into them.
        with torch.inference_mode():
            weights = float(model(torch.arange(1, 9)[None]).logits.double().abs().sum())
        asked.extend((weights, row) for row in rows)
        return sample(model, tokenizer, rows, *given_up)

    monkeypatch.setattr(generation, "generate", recording)
    run = Run.open(in_turns(recipe, tiny_policy(tmp_path / "policy")), tmp_path / "runs")
    for stage in ("prepare", "warm_up", "optimize_prompt"):
        run_stage(run, stage)
    untrained = {weights for weights, _ in asked}
    asked.clear()

    methods.stops = True
    with pytest.raises(ServiceError, match=STOPPED):
        run_stage(run, "train_policy")
    # All that asked was the trained policy, as it is sampled in training.
    (trained,) = {weights for weights, _ in asked}
    assert trained not in untrained
    assert {(row.temperature, row.max_tokens) for _, row in asked} == {(1.1, 16)}
    bought = len(served.requests)
    judged = list(iter_json(run.path("rewards.jsonl")))
    asked.clear()
    methods.stops = False
    result = run_stage(run, "train_policy")
    assert (asked, len(served.requests)) == ([], bought), "the search is replayed"
    assert list(iter_json(run.path("rewards.jsonl"))) == judged
    again = result.second_turn
    assert (again.start_text, again.text, again.changed, again.candidates) == (FIRST, SECOND, True, 2)
    assert (again.start_score, again.score) == (len(FIRST), len(SECOND))
    assert TrainPolicyResult.load(run) == result
    assert run.path("train_policy", "guiding_text.txt").read_text().strip() == SECOND
    assert run.path("optimize_prompt", "guiding_text.txt").read_text().strip() == FIRST

    # Other passages compare than in the first turn, and the ledger tells the stages apart.
    places: dict[str, set[str]] = {}
    for row in judged:
        places.setdefault(row["source"], set()).add(row["passage_id"])
    assert not places["train_policy"] <= places["optimize_prompt"]
    assert look.policy_groups(run).rows == (), "the search's pairs are no groups of the training"
    assert [row[-1] for row in look.guiding_texts(run, turn=2).rows] == [FIRST, SECOND]

    run_stage(run, "synthesize")
    under = {
        arm: {row["guiding_text"] for row in iter_json(run.path("synthesize", f"{arm}.candidates.jsonl"))}
        for arm in run.recipe.variants
    }
    assert under == {"static": {OWN}, "optimized": {FIRST}, "both": {SECOND}}
    assert asked_twice(served) == []
    facts = RunFacts.read(run)
    assert (facts.searched_text, facts.guiding_text) == (SECOND, FIRST)
    words = check_page(write_report(run).read_text(encoding="utf-8")).words
    assert "Second turn, with the trained policy as the writer" in words
    assert "The dataset is that of the trained policy, optimised text, which is written under this text." in words
    assert SECOND in run.path("dataset", "README.md").read_text(encoding="utf-8")

    # Where the untrained policy is kept, there is nothing to search for.
    found, (said,) = second_turn(Tools(run), SimpleNamespace(), 0)  # type: ignore[arg-type]
    assert found is None and "kept the untrained policy" in said
    assert run.path("train_policy", "guiding_text.txt").read_text().strip() == FIRST


def search(folder: Path, write: Any, identity: str = "a", reward: Any = None) -> PromptResult:
    writer = RubricWriter(RubricModel(fails=AssertionError("the writer was asked")), BASE_TEXT)
    config = PromptOptimizer(metric_calls=60, minibatch=3, passages=6)
    reward = reward or make_reward(source="train_policy")
    policy = PolicyWriter(write, identity)
    return optimize_guiding_text(PromptTask(config, writer, reward, passages(30), Shape(), 5, folder, policy=policy))


def test_a_search_with_a_policy_asks_it_alone_and_another_policy_is_another_search(tmp_path: Path) -> None:
    async def write(request: RubricRequest) -> Rubric:
        # Follows only what the search has measured.
        advised = "taught most: mechanism" in request.guiding_text
        return rubric("mechanism" if advised or request.seed % 2 else "definition")

    found = search(tmp_path, write)
    assert found.score > found.start_score + 0.1
    assert found.confirmation is not None
    assert "beside the first turn's text" in found.notes[-1]
    pairs = PairWriter()
    assert search(tmp_path, write, reward=make_reward(writer=pairs)) == found
    assert pairs.written == []
    search(tmp_path, write, "b", make_reward(writer=pairs, source="train_policy"))
    assert pairs.written


def test_a_text_may_keep_a_policy_from_writing_but_one_that_never_writes_ends_the_search(tmp_path: Path) -> None:
    async def follows_nothing_new(request: RubricRequest) -> Rubric:
        if request.guiding_text != BASE_TEXT:
            raise ReplyError("junk")
        return rubric("mechanism" if request.seed % 2 else "definition")

    async def junk(request: RubricRequest) -> Rubric:
        raise ReplyError("junk")

    assert search(tmp_path / "a", follows_nothing_new).guiding_text == BASE_TEXT
    with pytest.raises(ServiceError, match=r"The trained policy has written no rubric.*optimizers\.policy\.max_tokens"):
        search(tmp_path / "b", junk)


def test_a_recipe_says_its_turns_and_what_they_need(tmp_path: Path) -> None:
    once = recipe_of(tmp_path)
    twice = changed(once, {"optimizers.turns": 2})
    assert changed(twice, {"optimizers.turns": 1}).fingerprint == once.fingerprint != twice.fingerprint
    assert "guiding text once more, written by the trained policy, 40 judged pairs" in twice._repr_html_()
    assert "once more" not in once._repr_html_()
    for change, says in (
        ({"optimizers.prompt.enabled": False}, "but optimizers.prompt is disabled; enable it, or set optimizers.turns"),
        ({"optimizers.policy.enabled": False}, "but optimizers.policy is disabled; enable it, or set optimizers.turns"),
        ({"optimizers.prompt.program": "author", "author.enabled": True}, "but optimizers.prompt.program is author"),
        ({"optimizers.turns": 3}, "optimizers.turns: "),
    ):
        with pytest.raises(RecipeError, match=re.escape(says)):
            changed(twice, change)

    def idle(*arms: str) -> bool:
        named = changed(twice, {"synthesis.arms": list(arms)})
        return "optimizers.turns is 2, but no arm" in "\n".join(
            validate(named, deep=False, here=False, offline=True).warnings
        )

    assert idle("static", "optimized", "policy")
    assert not idle("policy", "both")


def test_forecast_and_disk_count_the_second_search(tmp_path: Path) -> None:
    once = changed(
        recipe_of(tmp_path), {"models.generator": "openai/gpt-4.1-mini", "optimizers.policy.method": "expert"}
    )
    twice = changed(once, {"optimizers.turns": 2})

    def sent(recipe: Recipe, stage: str = "train_policy", known: Known | None = None) -> Any:
        return forecast(recipe, measure(recipe, [], None), 0, known or Known()).of(stage).requests

    first = sent(once, "optimize_prompt")
    # Not every sampled rubric can be read and gets a pair.
    assert sent(twice).expected - sent(once).expected == pytest.approx(1.9 / 2 * first.expected)
    assert sent(twice).high - sent(once).high == first.high
    assert sent(twice).low == sent(once).low, "the training may keep the untrained policy"
    assert sent(twice, "synthesize") == sent(once, "synthesize")

    # The arm both differs from the arm policy by either turn.
    arms = {"synthesis.arms": ["policy", "both"]}
    one, two = (sent(changed(each, arms), "synthesize", Known(changed=False)) for each in (once, twice))
    assert two.low == one.low and two.expected > one.expected
    assert sent(changed(twice, arms), "synthesize", Known(changed=False, changed_again=False)) == one
    pool = {"synthesis.arms": ["static_pool", "both"]}
    assert sent(changed(twice, pool), "synthesize").expected > sent(changed(once, pool), "synthesize").expected + 30
    need = [disk_need(each, tmp_path).parts["judgements"] for each in (once, twice)]
    assert need[1] > need[0]


def test_an_older_result_has_no_second_turn() -> None:
    old = TrainPolicyResult.model_validate({"enabled": True, "method": "dpo", "steps": 2})
    assert old.second_turn is None
    assert old.title == "DPO on the rubric model"
    assert "second_turn" not in old.training()
