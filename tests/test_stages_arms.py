"""Arms differ in one thing only: what was asked of the rubric model and the generator is recorded and compared."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from optimize_helpers import tiny_policy

from optimsyn.base.errors import RecipeError
from optimsyn.base.files import iter_json
from optimsyn.llm.local import generation
from optimsyn.machine.disk_need import disk_need
from optimsyn.machine.forecast.lengths import measure
from optimsyn.machine.forecast.requests import forecast
from optimsyn.machine.preflight import validate
from optimsyn.recipe.changes import changed
from optimsyn.recipe.recipe import Recipe
from optimsyn.recipe.sections.arms import ARMS
from optimsyn.recipe.sections.seeds import Seeds
from optimsyn.report import look
from optimsyn.report.page.report import write_report
from optimsyn.runs.folder import Run
from optimsyn.stages.candidates import blank_request
from optimsyn.stages.shared import Tools
from tests.data_helpers import recipe_of
from tests.llm_helpers import Service
from tests.stages_helpers import run_stage

OWN = "Ask which metal a city mined, so that one word answers it."
SEARCHED = "Ask about the metal of a single city, and name the city in full."
INSIDER = "Ask in which year a city opened its first shaft, as its chronicle has it."
EVERY = {
    "optimizers.prompt": {"enabled": True},
    "optimizers.policy": {"enabled": True},
    "synthesis.arms": list(ARMS),
    "synthesis.insider_text": INSIDER,
}


def compared(recipe: Recipe, rubric: Path, **changes: Any) -> Recipe:
    return changed(
        recipe,
        {
            "models.rubric": {"name": str(rubric), "device": "cpu", "max_tokens": 40, "temperature": 1.1},
            **EVERY,
            "optimizers.policy": {
                "enabled": True, "steps": 1, "group_size": 3, "passages_per_step": 2, "max_tokens": 16,
                "temperature": 1.1, "lora": {"r": 4},
            },
            "synthesis.pairs": 3,
            "synthesis.oversample": 2,
            **changes,
        },
    )  # fmt: skip


@pytest.mark.slow
def test_all_arms_are_asked_alike_and_the_pool_costs_what_the_policy_cost(
    recipe: Recipe, served: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run.open(compared(recipe, tiny_policy(tmp_path / "policy")), tmp_path / "runs")
    for stage in ("prepare", "warm_up", "optimize_prompt", "train_policy"):
        run_stage(run, stage)
    run.path("optimize_prompt", "guiding_text.txt").write_text(SEARCHED)
    ledger = list(iter_json(run.path("rewards.jsonl")))
    assert {row["guiding_text"] for row in ledger if row["source"] == "train_policy"} == {OWN}
    asked: list[tuple[float, Any]] = []
    sample = generation.generate

    def recording(model: Any, tokenizer: Any, rows: Any, *given_up: Any) -> Any:
        # Which weights write: an adapter may be merged into them.
        with torch.inference_mode():
            weights = float(model(torch.arange(1, 9)[None]).logits.double().abs().sum())
        asked.extend((weights, row) for row in rows)
        return sample(model, tokenizer, rows, *given_up)

    monkeypatch.setattr(generation, "generate", recording)
    before = len(served.requests)
    run_stage(run, "synthesize")
    bought = served.requests[before:]

    # What the sampler was asked; arms that share a text and the weights share the replies.
    arms = {name: list(iter_json(run.path("synthesize", f"{name}.candidates.jsonl"))) for name in ARMS[:-1]}
    sent = {name: [(row["passage_id"], row["seed"]) for row in rows] for name, rows in arms.items()}
    assert {(row.temperature, row.max_tokens, row.stop) for _, row in asked} == {(1.1, 16, asked[0][1].stop)}
    of_first = [seed for _, seed in sent["static"]]
    assert len(of_first) == 6
    texts = []
    for weights in {weights for weights, _ in asked}:
        written = Counter(row.seed for by, row in asked if by == weights)
        texts.append({written[seed] for seed in of_first})
    assert sorted(texts, key=min) == [{2}, {3}], "untrained: own, searched, insider's; trained: two"
    # Candidates: the same passages in the same order with the same seeds, so many of each.
    for name in set(arms) - {"static_pool"}:
        assert sent[name] == sent["static"]
    judged = sum(row["source"] == "train_policy" for row in iter_json(run.path("rewards.jsonl")))
    assert 0 < judged <= 6
    assert len(arms["static_pool"]) == judged + len(arms["policy"])
    assert sent["static_pool"][:6] == sent["static"]
    assert {row.get("temperature") for row in bought} == {0.8}
    guided = {name: {row["guiding_text"] for row in rows} for name, rows in arms.items()}
    assert guided == {
        **{name: {OWN} for name in ("static", "static_pool", "untrained_policy", "author", "policy")},
        **{name: {SEARCHED} for name in ("optimized", "both")},
        "insider": {INSIDER},
        "no_rubric": {""},
    }
    # The pairs are as many, out of equally many valid ones.
    kept = {name: len(run.pairs(name)) for name in arms}
    assert len(set(kept.values())) == 1
    note = " ".join(run_stage(run, "synthesize").notes)
    fewest = int(re.findall(r"first (\d+) valid", note)[0])
    for name, rows in arms.items():
        distinct = list(dict.fromkeys(row["pair"]["question"] for row in rows if row["valid"]))
        chosen = {row["pair"]["question"] for row in iter_json(run.path("synthesize", f"{name}.judged.jsonl"))}
        assert chosen <= set(distinct if name == "static_pool" else distinct[:fewest])
    assert f"wrote {judged + 6} and" in note

    # Ceilings are trained and evaluated, and never the dataset.
    assert run.recipe.dataset_variant == "both"
    assert len(list(iter_json(run.path("dataset", "train.jsonl")))) == kept["both"]
    for stage in ("fine_tune", "evaluate"):
        run_stage(run, stage)
    tuned = run_stage(run, "fine_tune").variants
    assert tuned["validation"].pairs == len(run.path("prepare", "validation.jsonl").read_text().splitlines())
    evaluated = {row["variant"] for row in json.loads(run.path("evaluation.json").read_text())}
    assert evaluated == {"target", *ARMS}
    assert "validation questions" in look.training_picture(run).alt
    page = write_report(run).read_text(encoding="utf-8")
    assert "trained policy, optimised text" in page and "larger static pool" in page and "insider" in page


@pytest.mark.slow
def test_a_hosted_rubric_model_has_arms_too_and_a_pool_of_a_number(
    recipe: Recipe, served: Service, tmp_path: Path
) -> None:
    arms = ["static", "static_pool"]
    run = Run.open(
        changed(recipe, {"synthesis.arms": arms, "synthesis.pool": 9, "optimizers.prompt.enabled": False}),
        tmp_path / "runs",
    )
    for stage in ("prepare", "warm_up", "optimize_prompt", "train_policy", "synthesize", "fine_tune", "evaluate"):
        run_stage(run, stage)
    counts = {arm: len(run.path("synthesize", f"{arm}.candidates.jsonl").read_text().splitlines()) for arm in arms}
    assert counts == {"static": 5, "static_pool": 9}
    rubrics = [row for row in served.requests if "trainability" in json.dumps(row.get("response_format", {}))]
    assert {row["temperature"] for row in rubrics} == {0.8}
    assert not run.path("evaluate", "against_no_rubric.json").exists(), "there is no such arm"
    write_report(run)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"synthesis.arms": ["static", "policy"]},
            "synthesis.arms names policy: models.rubric is 'openai/served-model'",
        ),
        ({"synthesis.arms": ["static", "untrained_policy"]}, "names untrained_policy: models.rubric is"),
        ({"synthesis.arms": ["both"]}, "synthesis.arms names both: models.rubric is"),
        (
            {"synthesis.arms": ["optimized"], "optimizers.prompt.enabled": False},
            "names optimized: optimizers.prompt is",
        ),
        (
            {"synthesis.arms": ["static_pool"], "optimizers.prompt.enabled": False},
            "give its number of candidates in synthesis.pool",
        ),
        ({"synthesis.arms": ["static_pool"], "synthesis.pool": 3}, "synthesis.pool is 3, less than the 5 candidates"),
        ({"synthesis.pool": 30}, "synthesis.pool is the size of the arm static_pool"),
        ({"synthesis.arms": ["static", "insider"]}, "give synthesis.insider_text"),
        ({"synthesis.insider_text": INSIDER}, "synthesis.insider_text is for the arm insider"),
        ({"synthesis.arms": ["static", "static"]}, "static is named twice"),
        ({"synthesis.arms": ["validation"]}, "make no dataset"),
        ({"synthesis.arms": ["no_rubric"], "synthesis.dataset": "static"}, "synthesis.arms does not name it"),
        ({"synthesis.arms": ["static"], "synthesis.dataset": "validation"}, "synthesis.dataset"),
    ],
)
def test_an_arm_that_a_recipe_cannot_make_is_named(recipe: Recipe, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(says)):
        changed(recipe, changes)


def test_an_optimiser_that_no_arm_uses_is_idle(tmp_path: Path) -> None:
    def idle(*arms: str, **more: Any) -> list[str]:
        recipe = changed(recipe_of(tmp_path), {"synthesis.arms": list(arms), **more})
        text = "\n".join(validate(recipe, deep=False, here=False, offline=True).warnings)
        return re.findall(r"optimizers\.(\w+) is enabled, but no arm", text)

    assert idle("static", "no_rubric") == ["policy", "prompt"]
    assert idle("static", "policy") == idle("static", "static_pool") == ["prompt"]
    assert idle("optimized") == ["policy"]
    assert idle("static", "static_pool", **{"synthesis.pool": 99}) == ["policy", "prompt"]
    assert idle("both") == idle("static_pool", "optimized") == []


def test_a_recipe_without_arms_and_seeds_is_what_it_was(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    assert recipe.variants == recipe.fine_tuned == ("no_rubric", "static", "optimized", "policy")
    assert recipe.dataset_variant == "policy"
    # Of the version before arms, for a recipe without any path.
    raw = {"documents": {"source": "embedded:law"}, "questions": {"validation": "embedded:law"}}
    before = Recipe.parse({**raw, "name": "same", "guiding_text": "Ask about a duty that the clause sets."})
    assert before.fingerprint == "78df06ab7c"
    for change in (
        {"synthesis.arms": ["static"]},
        {"synthesis.same_decoder": True},
        {"seeds.fine_tune": 0},
        {"seeds.data": 1},
    ):
        assert changed(before, change).fingerprint != before.fingerprint
    assert changed(before, {"seeds.data": None, "synthesis.arms": None}).fingerprint == before.fingerprint


def test_each_seed_moves_its_part_alone(recipe: Recipe, tmp_path: Path) -> None:
    def drawn(recipe: Recipe) -> tuple[list[str], list[int]]:
        run = Run.open(recipe, tmp_path / "runs")
        run_stage(run, "prepare")
        tools = Tools(run)
        requests = [blank_request(tools, "static", index) for index in range(6)]
        return [request.passage.id for request in requests], [request.seed for request in requests]

    passages, seeds = drawn(recipe)
    assert drawn(changed(recipe, {"seeds.fine_tune": 9, "seeds.policy": 9})) == (passages, seeds)
    by_data, by_generator = drawn(changed(recipe, {"seeds.data": 9})), drawn(changed(recipe, {"seeds.generator": 9}))
    assert by_data[0] != passages and by_data[1] == seeds
    assert by_generator[0] == passages and by_generator[1] != seeds
    all_set = changed(recipe, {f"seeds.{name}": recipe.seed for name in Seeds.model_fields})
    assert drawn(all_set) == (passages, seeds)
    assert Run.open(all_set, tmp_path / "runs").manifest.seeds == {"recipe": 5, **dict.fromkeys(Seeds.model_fields, 5)}
    assert all_set.seed_label == "5, data 5, generator 5, policy 5, fine_tune 5"


def test_forecast_and_disk_count_the_candidates_of_arms(tmp_path: Path) -> None:
    base = changed(recipe_of(tmp_path), {"synthesis.pairs": 10, "synthesis.oversample": 2})

    def sent(*arms: str, **more: Any) -> float:
        recipe = changed(base, {"synthesis.arms": list(arms), **more})
        return forecast(recipe, measure(recipe, [], None)).of("synthesize").requests.expected

    assert sent("no_rubric") == 20
    assert sent("static") == sent("untrained_policy") == sent("static", "untrained_policy") == pytest.approx(38)
    assert sent("static", "static_pool", **{"synthesis.pool": 100}) == pytest.approx(190)
    policy = base.optimizers.policy
    trained = 0.9 * policy.steps * policy.passages_per_step * policy.group_size
    assert sent("policy", "static_pool") == pytest.approx(38 + 1.9 * (trained + 20))
    assert sent("insider", "static", **{"synthesis.insider_text": INSIDER}) == pytest.approx(76)
    assert sent("static", "validation") == sent("static")

    def room(**changes: Any) -> dict[str, int]:
        return disk_need(changed(base, changes), tmp_path).parts

    one = room(**{"synthesis.arms": ["static"]})
    assert room(**{"synthesis.arms": ["static", "validation"]})["fine-tuning"] > one["fine-tuning"]
    pool = room(**{"synthesis.arms": ["static", "static_pool"], "synthesis.pool": 5000})
    assert pool["judgements"] > 20 * one["judgements"]
