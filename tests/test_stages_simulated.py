"""A run that judges by simulated trainings: every stage by the same scorer, with the run's own first drafts."""

from __future__ import annotations

from pathlib import Path

import pytest

from optimsyn.base.errors import StageError
from optimsyn.base.files import iter_json
from optimsyn.data.records import Pair
from optimsyn.influence.attribution.records import SHARES_FILE, TokenShares
from optimsyn.influence.simulated.scorer import SimulatedScorer
from optimsyn.recipe.recipe import Recipe
from optimsyn.reward.judgements import Judgement
from optimsyn.reward.look.record import RewardLook
from optimsyn.runs.folder import Run
from optimsyn.stages.preview import preview
from optimsyn.stages.shared import Tools
from optimsyn.target.warm_up.parts import parts_of
from tests.llm_helpers import Service
from tests.stages_helpers import asked_twice, run_stage


@pytest.mark.slow
def test_a_run_by_predicted_trainings(recipe: Recipe, served: Service, tmp_path: Path) -> None:
    raw = recipe.model_dump(mode="json")
    raw["influence"]["estimator"] = "simulated"
    raw["optimizers"]["prompt"]["enabled"] = False
    raw["warm_up"] |= {"pairs": 8, "held_out": 0.25}
    run = Run.open(Recipe.parse(raw), tmp_path / "runs")
    shown = preview(run, 3)
    assert shown.look is not None and shown.look.end_of == "adam_linear, dot"
    with pytest.raises(StageError, match="first drafts of warm_up"):
        assert Tools(run).batch_training

    run_stage(run, "prepare")
    result = run_stage(run, "warm_up")
    assert result.zero_gradient_baseline == 0
    look = RewardLook.load(run.path("warm_up", "reward_look.json"))
    assert look.numerical_error is not None and look.numerical_error < 1e-2 and look.training is not None
    tools = Tools(run)
    pairs = [Pair.model_validate_json(line) for line in run.path("warm_up", "pairs.jsonl").read_text().splitlines()]
    trained = parts_of(run.recipe, pairs)[0]
    assert 0 < len(trained) < len(pairs)
    assert tools.batch_training is not None
    first = tools.batch_training.companions[: len(pairs) - len(trained)]
    assert not {pair.id for pair in first} & {pair.id for pair in trained}, "those that the warm-up has not seen"
    # A stage that begins again builds the same scorer.
    scorer = tools.scorer
    assert isinstance(scorer, SimulatedScorer)
    assert scorer.fingerprint == run.manifest.stage("warm_up").notes["judged_by"]["scorer"]
    assert preview(run).look == look

    for stage in ("optimize_prompt", "train_policy", "synthesize"):
        run_stage(run, stage)
    lines = iter_json(run.path("rewards.jsonl"))
    rows = [Judgement.model_validate({k: v for k, v in line.items() if k in Judgement.model_fields}) for line in lines]
    valid = [row for row in rows if row.valid and row.pair is not None]
    total = scorer.score([row.pair for row in valid if row.pair is not None]).total.tolist()
    assert [row.influence for row in valid] == pytest.approx(total, rel=1e-3, abs=1e-9)
    shares = TokenShares.read(run.path("synthesize", SHARES_FILE))
    assert shares.estimator.startswith("adam_linear, dot (simulated") and not shares.reason and shares.pairs
    assert asked_twice(served) == []
