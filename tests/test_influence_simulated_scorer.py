"""The scorer of simulated trainings: against autograd, the study's own and real trainings; laws, refusals, a reward."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from influence_helpers import flat, plain_gradient, samples, tiny_target
from programs_helpers import RUBRIC, Scripted, passage
from reward_look_helpers import made_pairs, made_questions
from scipy.stats import spearmanr

from optimsyn.base.errors import DataError, ModelError, RecipeError
from optimsyn.data.records import Sample
from optimsyn.influence.attribution.pairs import pair_shares
from optimsyn.influence.derivative.twin_export import export_twins
from optimsyn.influence.factory import build_scorer
from optimsyn.influence.gradients.rows import layout_for
from optimsyn.influence.reference.simulated import plain_gains, plain_total
from optimsyn.influence.scorer import InfluenceScorer
from optimsyn.influence.simulated import scorer as module
from optimsyn.influence.simulated.scorer import BatchTraining, SimulatedScorer
from optimsyn.influence.simulated.training import SimulatedTraining, WarmGradients
from optimsyn.influence.store.store import GradientStore
from optimsyn.influence.trainings import Trainings, TrainingSettings, schedule
from optimsyn.llm.language_model import Call
from optimsyn.programs.checker import Checker
from optimsyn.programs.pair import PairWriter, TaskShape
from optimsyn.recipe.changes import changed
from optimsyn.recipe.recipe import Recipe
from optimsyn.recipe.sections.evaluation import FineTune
from optimsyn.recipe.sections.influence import Influence
from optimsyn.recipe.sections.models import CountedTokens
from optimsyn.recipe.sections.synthesis import Checks
from optimsyn.reward.judgements import Judgement
from optimsyn.reward.look.measure import ScorerSetup, look_at_reward
from optimsyn.reward.look.options import LookOptions
from optimsyn.reward.look.record import RewardLook, reward_look_rows
from optimsyn.reward.reward import InfluenceReward, RubricRequest
from optimsyn.study.fidelity.fidelity import FidelityData, Plan, measure
from optimsyn.study.similarity import compare_similarity
from optimsyn.target.encoding import counted
from optimsyn.target.target import Target

QUESTIONS = samples(6, seed=5, subtasks=("a", "b", "b"))
PAIRS = samples(5, seed=4)
DRAFTS = samples(7, seed=9)
TUNING = FineTune(steps=3, batch_size=4, lr=5e-3)
SIMULATED = Influence(estimator="simulated")


def training(drafts: Sequence[Sample] = DRAFTS, clip: float | None = 1.0, **fields: Any) -> BatchTraining:
    return BatchTraining(drafts, TUNING.model_copy(update=fields), clip)


@pytest.fixture(scope="module")
def target() -> Target:
    return tiny_target("gemma")


@pytest.fixture(scope="module")
def scorer(target: Target) -> SimulatedScorer:
    return SimulatedScorer(target, QUESTIONS, training())


def test_a_tiny_rate_gives_the_derivative(target: Target) -> None:
    """One step, so small that nothing bends: lr (1-β1)/(1-β1^{t+1}) ⟨g_q, D g_z⟩ / batch size, from autograd."""
    lr, checkpoint = 1e-7, target.checkpoints[-1]
    found = SimulatedScorer(target, QUESTIONS, training(clip=None, steps=1, lr=lr)).score(PAIRS)
    target.load_checkpoint(checkpoint)
    second = flat({name: checkpoint.exp_avg_sq[name] for name in target.parameters})
    scale = 1 / ((second / (1 - 0.999**checkpoint.step)).sqrt() + 1e-8)
    asked = torch.stack(
        [flat(plain_gradient(target, counted(target.encode(item), CountedTokens(), "question"))) for item in QUESTIONS]
    )
    mine = torch.stack([flat(plain_gradient(target, target.encode(pair))) for pair in PAIRS])
    dots = (mine * scale) @ asked.t() * lr * 0.1 / (1 - 0.9 ** (checkpoint.step + 1)) / 4
    expected = torch.stack([dots[:, [0, 3]].mean(1), dots[:, [1, 2, 4, 5]].mean(1)], dim=1)
    torch.testing.assert_close(found.by_subtask, expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(found.total, expected.mean(1), rtol=1e-4, atol=0)
    torch.testing.assert_close(found.gradient_norm, mine.norm(dim=1))
    assert found.label_tokens.tolist() == [target.encode(pair).label_tokens - 1 for pair in PAIRS]


def test_it_is_the_simulation_of_the_study(target: Target, scorer: SimulatedScorer) -> None:
    """All pairs in one simulation, as the fidelity study has them: other weights, the same losses."""
    found = scorer.score(PAIRS)
    encoded = [target.encode(item) for item in [*PAIRS, *DRAFTS]]
    asked = [counted(target.encode(item), CountedTokens(), "question") for item in QUESTIONS]
    simulated = SimulatedTraining.of(
        WarmGradients.of(target, target.checkpoints[-1], encoded, asked), lr=TUNING.lr, steps=3
    )
    weights = torch.zeros(6, 12, dtype=torch.float64)
    weights[:, 5:] = 3 / 4 / 7
    weights[:5, :5] = torch.eye(5, dtype=torch.float64) / 4
    losses = simulated.losses(weights)
    gains = losses[5] - losses[:5]
    expected = torch.stack([gains[:, [0, 3]].mean(1), gains[:, [1, 2, 4, 5]].mean(1)], dim=1)
    torch.testing.assert_close(found.by_subtask, expected, rtol=1e-7, atol=1e-12)
    most = SimulatedScorer(target, QUESTIONS, training(), across_subtasks="max").score(PAIRS)
    torch.testing.assert_close(most.total, expected.max(1).values, rtol=1e-7, atol=1e-12)
    gains = plain_gains(target, PAIRS, asked, training())
    total = plain_total(gains, QUESTIONS, "mean")
    apart = plain_total(gains, QUESTIONS, "mean", held_back=[3, 4])
    torch.testing.assert_close(total, expected.mean(1), rtol=1e-7, atol=1e-12)
    kept = SimulatedScorer(target, [QUESTIONS[i] for i in (0, 1, 2, 5)], training()).score(PAIRS)
    torch.testing.assert_close(apart, kept.total, rtol=1e-7, atol=1e-12)


def test_it_ranks_as_real_training_does(target: Target) -> None:
    pairs, drafts = samples(12, seed=14), samples(9, seed=15)
    tuning = {"steps": 6, "batch_size": 2, "lr": 3e-3}
    found = SimulatedScorer(target, QUESTIONS, training(drafts, **tuning)).score(pairs).by_subtask
    asked = [counted(target.encode(item), CountedTokens(), "question") for item in QUESTIONS]
    real = Trainings(
        target,
        target.checkpoints[-1],
        [target.encode(item) for item in [*pairs, *drafts]],
        asked,
        TrainingSettings(lr=3e-3),
    )
    fixed = schedule(range(12, 21), 6, 2, 0)
    after = real.run([[[i, *step[1:]] for step in fixed] for i in range(12)], looks=[6])[:, 0]
    # What stands in the place of z does not change the ranking.
    truth = -torch.stack([after[:, [0, 3]].mean(1), after[:, [1, 2, 4, 5]].mean(1)], dim=1).mean(1)
    assert spearmanr(found.mean(1), truth).statistic > 0.6


def test_what_teaches_nothing_scores_zero(scorer: SimulatedScorer) -> None:
    width = scorer.layout.width
    nothing = torch.zeros(2, width, dtype=torch.float64)
    assert scorer.predicted(nothing, nothing, torch.tensor([2.0, 0.5]).double()).abs().max() == 0
    assert scorer.zero_gradient_baseline() == {"total": 0.0, "by_subtask": {"a": 0.0, "b": 0.0}}
    # And what teaches next to nothing next to nothing: no jump there.
    generator = torch.Generator().manual_seed(0)
    little = 1e-9 * torch.randn(1, width, generator=generator, dtype=torch.float64)
    assert scorer.predicted(little, little, torch.tensor([2.0]).double()).abs().max() < 1e-6


def test_other_pairs_of_a_call_do_not_count(scorer: SimulatedScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = scorer.score(PAIRS).by_subtask
    for order in ([0], [3], [4, 2, 0, 1, 3], [1, 1, 3]):
        found = scorer.score([PAIRS[i] for i in order])
        torch.testing.assert_close(found.by_subtask, whole[order], rtol=1e-9, atol=1e-13)
        assert found.ids == tuple(PAIRS[i].id for i in order)
    monkeypatch.setattr(module, "CHUNK", 2)
    torch.testing.assert_close(scorer.score(PAIRS).by_subtask, whole, rtol=1e-9, atol=1e-13)
    assert len(scorer.score([])) == 0 and scorer.score([]).total.shape == (0,)


def test_its_identity_covers_what_it_depends_on(target: Target, scorer: SimulatedScorer) -> None:
    def made(questions: Sequence[Sample] = QUESTIONS, **options: Any) -> str:
        options = {"training": training(), **options}
        return SimulatedScorer(target, questions, **options).fingerprint

    other_id = [DRAFTS[0].model_copy(update={"id": "other"}), *DRAFTS[1:]]
    found = [
        scorer.fingerprint,
        InfluenceScorer(target, QUESTIONS).fingerprint,
        made(QUESTIONS[:5]),
        made(tokens=CountedTokens(end_of_questions=0.5)),
        made(across_subtasks="max"),
        made(training=training(DRAFTS[:6])),
        made(training=training(other_id)),
        made(training=training([DRAFTS[0].model_copy(update={"completion": " no"}), *DRAFTS[1:]])),
        made(training=training(lr=1e-4)),
        made(training=training(steps=2)),
        made(training=training(batch_size=2)),
        made(training=training(clip=None)),
    ]
    assert len(set(found)) == len(found)
    assert made() == scorer.fingerprint and scorer.fingerprint.startswith("simulated-")
    assert made(training=training(warmup_ratio=0.5)) == scorer.fingerprint, "has no part in it"


def test_companions_are_those_that_have_a_place(target: Target) -> None:
    assert training(steps=2, batch_size=3).used == DRAFTS[:4]
    assert training(steps=100, batch_size=2, lr=1e-3).steps == 12
    alone = training((), batch_size=1)
    found = SimulatedScorer(target, QUESTIONS, alone).score(PAIRS)
    encoded = [target.encode(item) for item in PAIRS]
    asked = [counted(target.encode(item), CountedTokens(), "question") for item in QUESTIONS]
    simulated = SimulatedTraining.of(
        WarmGradients.of(target, target.checkpoints[-1], encoded, asked), lr=TUNING.lr, steps=3
    )
    empty = simulated.losses(torch.zeros(1, 5, dtype=torch.float64))
    gains = empty - simulated.losses(torch.eye(5, dtype=torch.float64))
    expected = torch.stack([gains[:, [0, 3]].mean(1), gains[:, [1, 2, 4, 5]].mean(1)], dim=1).mean(1)
    torch.testing.assert_close(found.total, expected, rtol=1e-7, atol=1e-12)
    with pytest.raises(DataError, match=r"influence\.estimator: simulated .*warm_up\.pairs"):
        SimulatedScorer(target, QUESTIONS, training(()))


def test_gradients_that_do_not_fit_are_projected(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = SimulatedScorer(target, QUESTIONS, training())
    monkeypatch.setattr(module, "layout_for", lambda target, rows: layout_for(target, rows, limit=1))
    narrow = SimulatedScorer(target, QUESTIONS, training())
    assert narrow.layout.projection is not None and narrow.fingerprint != whole.fingerprint
    assert torch.isfinite(narrow.score(PAIRS).total).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits(dtype: torch.dtype, tmp_path: Path) -> None:
    narrow, wide = tiny_target(dtype=dtype), tiny_target(dtype=torch.float32)
    for name, parameter in wide.model.named_parameters():
        parameter.data.copy_(dict(narrow.model.named_parameters())[name].data)
    wide.checkpoints = narrow.checkpoints
    pairs, drafts, questions = made_pairs(8), made_pairs(20)[8:], made_questions(6)
    given = BatchTraining(drafts, TUNING)
    scorer = build_scorer(narrow, questions, SIMULATED, tmp_path, training=given)
    assert isinstance(scorer, SimulatedScorer) and scorer.numerical_error < 0.05
    assert scorer.choice is not None and scorer.choice.errors
    reference = SimulatedScorer(wide, questions, given).score(pairs).total
    full = SimulatedScorer(narrow, questions, given, precision="float32")
    torch.testing.assert_close(full.score(pairs).total, reference, rtol=2e-3, atol=2e-3 * float(reference.abs().max()))
    off = (scorer.score(pairs).total - reference).norm() / reference.norm()
    assert float(off) < 0.1
    own = SimulatedScorer(narrow, questions, given)
    assert own.fingerprint != full.fingerprint and own.at("float32").fingerprint == full.fingerprint
    assert torch.equal(own.at("float32").score(pairs).total, full.score(pairs).total)
    look = look_at_reward(
        ScorerSetup(scorer, narrow, questions, SIMULATED, given), pairs, LookOptions(random_subsets=0)
    )
    assert look.verdict in ("sound", "doubtful"), look.reasons


def test_build_scorer_gives_it(target: Target) -> None:
    scorer = build_scorer(target, QUESTIONS, SIMULATED, training=training())
    assert isinstance(scorer, SimulatedScorer) and scorer.method == "exact"
    assert scorer.choice is not None and scorer.choice.method == "exact"
    other = build_scorer(target, QUESTIONS, Influence(method="exact"), training=training(()))
    assert type(other) is InfluenceScorer, "which has no use for it"
    with pytest.raises(RecipeError, match="`training`"):
        build_scorer(target, QUESTIONS, SIMULATED)


def test_a_recipe_says_what_does_not_go_with_it() -> None:
    recipe = Recipe.load("recipes/quickstart.yaml")
    assert changed(recipe, {"influence.estimator": "simulated"}).influence.estimator == "simulated"
    for changes, message in (
        ({"influence.method": "twin"}, "method twin .* estimator to adam_linear"),
        ({"influence.method": "forward"}, "method forward .* estimator to adam_linear"),
        ({"influence.normalization": "cosine"}, "no direction to normalise; set normalization to dot"),
        ({"influence.question_gradients": "unit"}, "no mean of their gradients; set question_gradients to plain"),
        ({"reward.given": "judged"}, r"reward\.given: judged needs .* influence\.estimator to adam_linear"),
    ):
        with pytest.raises(RecipeError, match=message):
            changed(recipe, {"influence.estimator": "simulated", **changes})


def test_what_needs_a_linear_score_refuses(target: Target, scorer: SimulatedScorer, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"scorer\.linear"):
        scorer.score(PAIRS, token_shares=True)
    with pytest.raises(RecipeError, match="set it to adam_linear"):
        GradientStore.open_or_create(tmp_path / "store", target, estimator="simulated")
    with pytest.raises(RecipeError, match="set it to adam_linear"):
        InfluenceScorer(target, QUESTIONS, estimator="simulated")
    with pytest.raises(ModelError, match=r"influence\.estimator to adam_linear"):
        export_twins(scorer, tmp_path / "twins")  # type: ignore[arg-type]


def test_token_shares_are_those_of_the_linear_score() -> None:
    target, pairs, questions = tiny_target(), made_pairs(3), made_questions(6)
    scorer = SimulatedScorer(target, questions, BatchTraining(made_pairs(9)[3:], TUNING))
    linear = InfluenceScorer(target, questions).score(pairs)
    assert [found.influence for found in pair_shares(scorer, target, pairs)] == pytest.approx(linear.total.tolist())


def test_a_look_at_it(tmp_path: Path) -> None:
    target, pairs, questions = tiny_target(dtype=torch.float32), made_pairs(14), made_questions(18)
    given = BatchTraining(made_pairs(20)[14:], TUNING)
    scorer = build_scorer(target, questions, SIMULATED, training=given)
    told: list[tuple[int, int]] = []
    look = look_at_reward(
        ScorerSetup(scorer, target, questions, SIMULATED, given),
        pairs,
        LookOptions(random_subsets=2, steps=2),
        report=lambda *counts: told.append(counts),
    )
    assert look.verdict in ("sound", "doubtful"), look.reasons
    assert look.numerical_error is not None and look.numerical_error < 1e-3
    assert look.agreement == pytest.approx(1) and look.empty == 0
    assert look.end_of == "adam_linear, dot" and look.end_share == 0
    assert any("by adam_linear, dot" in note for _, _, note in reward_look_rows(look))
    look.save(tmp_path / "look.json")
    assert RewardLook.load(tmp_path / "look.json") == look
    assert look.training is not None and look.training.held_out
    assert told[-1][0] == told[-1][1]
    with pytest.raises(RecipeError, match="`training`"):
        look_at_reward(ScorerSetup(scorer, target, questions, SIMULATED), pairs)
    other = look_at_reward(
        ScorerSetup(InfluenceScorer(target, questions), target, questions, SIMULATED, given),
        pairs,
        LookOptions(random_subsets=0),
    )
    assert other.verdict == "noise", "the score of another estimator is not this one"


def test_similarity_is_compared_with_it() -> None:
    target, pairs, questions = tiny_target(), made_pairs(5), made_questions(8)
    given = BatchTraining(made_pairs(9)[5:], TUNING)
    found = compare_similarity(target, SIMULATED, questions, pairs, training=given, resamples=20)
    assert len(found.samples) == 9


def test_the_study_has_it_with_a_runs_own_drafts(target: Target) -> None:
    plan = Plan(horizons=(1, 3), batch_size=4, subsets=0, random=0, ends=(), sets=False, alone=False, lr=5e-3)
    pool, truth, others = samples(5, seed=1), samples(2, seed=6), samples(4, seed=3)
    cells = [
        measure(target, FidelityData(pool, QUESTIONS, truth, others, drafts=drafts), plan) for drafts in ((), others)
    ]
    name = "simulated, in batch (drafts)"
    assert name not in cells[0].scores
    both = [torch.tensor(cells[1].scores[key]).double() for key in (name, "simulated, in batch")]
    # The drafts are the companions here: the same score but for what an empty pair comes to, a constant.
    difference = both[0] - both[1]
    torch.testing.assert_close(difference, difference[:1].expand(5), rtol=1e-7, atol=1e-10)


class _Passing(Checker):
    """Lets everything pass."""

    def check(self, pair: Any, context: Any) -> Any:
        found = super().check(pair, context)
        return type(found)(valid=True, failed=(), reasons={})


def test_it_is_a_reward(target: Target, tmp_path: Path) -> None:
    def written(call: Call) -> str:
        seed = call.seed or 0
        return json.dumps({"quote": "", "question": f"What is number {seed // 2}?", "answer": f"it is {seed % 3}"})

    def judged(given: BatchTraining) -> tuple[InfluenceReward, list[Judgement]]:
        scorer = build_scorer(target, QUESTIONS, SIMULATED, training=given)
        writer = PairWriter(Scripted(written), TaskShape())
        reward = InfluenceReward(scorer, writer, _Passing(Checks(), []), ledger=tmp_path / "rewards.jsonl")
        where = passage()
        requests = [
            RubricRequest(passage=where, kind="free", rubric=RUBRIC, guiding_text="g", seed=i) for i in range(6)
        ]
        return reward, asyncio.run(reward.judge(requests))

    reward, rows = judged(training())
    pairs = [row.pair for row in rows if row.pair is not None]
    expected = SimulatedScorer(target, QUESTIONS, training()).score(pairs).total.tolist()
    assert [row.reward for row in rows] == pytest.approx(expected, rel=1e-6)
    assert all(row.by_subtask is not None and set(row.by_subtask) == {"a", "b"} for row in rows)
    again, same = judged(training())
    assert again.passed_over == 0 and [row.reward for row in same] == [row.reward for row in rows]
    other, anew = judged(training(DRAFTS[:3]))
    assert other.passed_over == 6 and other.identity != reward.identity
    assert [row.reward for row in anew] != [row.reward for row in rows]
