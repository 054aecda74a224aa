"""What a run keeps of its candidates: together, by influence, or the first; and what it predicts of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from influence_helpers import samples, tiny_target

from optimsyn.data.records import Pair, Question
from optimsyn.influence.conditional import MovedScorer
from optimsyn.influence.simulated.training import HORIZON, SimulatedTraining, WarmGradients
from optimsyn.recipe.changes import changed
from optimsyn.recipe.recipe import Recipe
from optimsyn.reward.judgements import Judgement
from optimsyn.runs.folder import Run
from optimsyn.stages.selection import select
from optimsyn.stages.shared import Tools
from optimsyn.target.encoding import as_sample, counted
from optimsyn.target.target import Target
from tests.stages_helpers import run_stage

VALIDATION = [Question(id=item.id, question=item.prompt, answer=item.completion.strip()) for item in samples(4, seed=7)]


class Shared:
    """What selection asks of a run's tools."""

    stage = None
    validation = reward_questions = VALIDATION

    def __init__(self, target: Target, **changes: Any) -> None:
        self.target = target
        self.recipe = changed(Recipe.load("recipes/quickstart.yaml"), {"fine_tune.lr": 3e-3, **changes})


@pytest.fixture(scope="module")
def target() -> Target:
    return tiny_target("gemma")


def judged(numbers: Sequence[int]) -> list[Judgement]:
    made = samples(20, seed=4)
    return [
        Judgement(
            key=str(number),
            passage_id="p",
            kind="free",
            valid=True,
            influence=(number * 7 % 11) / 10,
            reward=0.0,
            pair=Pair(
                id=f"pair-{number}",
                question=made[number].prompt,
                answer=made[number].completion.strip(),
                passage_id="p",
                document_id="d",
            ),
        )
        for number in numbers
    ]


def simulated_of(shared: Shared, rows: Sequence[Judgement]) -> SimulatedTraining:
    target = shared.target
    gradients = WarmGradients.of(
        target,
        target.checkpoints[-1],
        [target.encode(as_sample(row.pair)) for row in rows if row.pair],
        [counted(target.encode(as_sample(item)), shared.recipe.influence.tokens, "question") for item in VALIDATION],
    )
    return SimulatedTraining.of(gradients, lr=3e-3, steps=min(shared.recipe.fine_tune.steps, HORIZON))


def test_a_set_is_chosen_for_what_it_teaches_together(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    shared: Any = Shared(target)
    assert shared.recipe.synthesis.select == "set", "the default"
    seen: list[str] = []
    encode = Target.encode

    def noting(self: Target, item: Any) -> Any:
        seen.append(item.id)
        return encode(self, item)

    monkeypatch.setattr(Target, "encode", noting)
    candidates = {"static": judged(range(10)), "optimized": judged(range(5, 12))}
    found = select(shared, candidates, 3)
    assert sum(name.startswith("pair-") for name in seen) == 12, "a pair of two variants is looked at once"
    monkeypatch.undo()
    for variant, rows in candidates.items():
        simulated = simulated_of(shared, rows)
        expected = sorted(simulated.select(3))
        assert [row.key for row in found[variant].rows] == [rows[place].key for place in expected]
        told = found[variant].predicted
        assert told is not None
        assert told.now == pytest.approx(float(simulated.start().mean()), rel=1e-9)
        assert told.kept == pytest.approx(told.now - float(simulated.decrease([expected])), rel=1e-9)
        assert told.kept < told.random
        assert told.steps == min(shared.recipe.fine_tune.steps, HORIZON)
    assert select(shared, candidates, 3) == found


def test_the_horizon_is_what_was_tried(target: Target) -> None:
    shared: Any = Shared(target, **{"fine_tune.steps": 500})
    told = select(shared, {"static": judged(range(4))}, 4)["static"]
    assert [row.key for row in told.rows] == ["0", "1", "2", "3"], "all of them, as they were written"
    assert told.predicted is not None
    assert told.predicted.steps == HORIZON == 12
    assert told.predicted.kept == pytest.approx(told.predicted.random)


def test_by_influence_and_the_first(target: Target) -> None:
    rows = judged(range(8))
    by_influence: Any = Shared(target, **{"synthesis.select": "influence"})
    best = sorted(sorted(rows, key=lambda row: -(row.influence or 0))[:3], key=rows.index)
    found = select(by_influence, {"static": rows}, 3)["static"]
    assert (found.rows, found.predicted) == (best, None)
    first: Any = Shared(target, **{"synthesis.select": "first"})
    assert select(first, {"static": rows}, 3)["static"].rows == rows[:3]


@pytest.mark.slow
def test_a_stage_keeps_a_set_and_tells_what_it_brings(recipe: Recipe, tmp_path: Path) -> None:
    run = Run.open(changed(recipe, {"optimizers.prompt.enabled": False}), tmp_path / "runs")
    for stage in ("prepare", "warm_up", "optimize_prompt", "train_policy"):
        run_stage(run, stage)
    tools = Tools(run)
    plain, moving = tools.reward("train_policy"), tools.reward("train_policy", given="judged")
    assert isinstance(moving.scorer, MovedScorer)
    assert (moving.identity, moving.passed_over) == (plain.identity, 0), "a stage's views take in the rows of both"
    assert moving.scorer.fingerprint != tools.scorer.fingerprint == moving.scorer.origin
    result = run_stage(run, "synthesize")
    assert result.columns[-2:] == ("predicted loss", "of random pairs")
    assert any("predicted after 2 steps" in note for note in result.notes)
    for row in result.rows:
        told = result.predicted[row[0]]
        assert row[-2:] == (told.kept, told.random)
        candidates = [json.loads(line)["key"] for line in run.path("synthesize", f"{row[0]}.candidates.jsonl").open()]
        kept = [json.loads(line)["key"] for line in run.path("synthesize", f"{row[0]}.judged.jsonl").open()]
        assert len(kept) == 4
        assert kept == sorted(kept, key=candidates.index), "the order of writing stays"
