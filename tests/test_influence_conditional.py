"""Scores that know what was judged before: against autograd, the hundredth equal answer, resuming, refusals."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from influence_helpers import flat, samples, tiny_target
from programs_helpers import RUBRIC, Scripted, passage

from optimsyn.base.errors import ModelError, RecipeError
from optimsyn.data.records import Sample
from optimsyn.influence import conditional as moved
from optimsyn.influence.conditional import MOST, MovedScorer
from optimsyn.influence.derivative.twin import TwinScorer
from optimsyn.influence.scorer import InfluenceScorer
from optimsyn.influence.simulated.training import SimulatedTraining, WarmGradients
from optimsyn.llm.language_model import Call
from optimsyn.programs.checker import Checker
from optimsyn.programs.pair import PairWriter, TaskShape
from optimsyn.recipe.changes import changed
from optimsyn.recipe.recipe import Recipe
from optimsyn.recipe.sections.evaluation import FineTune
from optimsyn.recipe.sections.influence import Influence
from optimsyn.recipe.sections.models import CountedTokens
from optimsyn.recipe.sections.synthesis import Checks
from optimsyn.reward.judgements import Moving, windows
from optimsyn.reward.reward import InfluenceReward, Judgement, RubricRequest
from optimsyn.target.encoding import Encoded, counted
from optimsyn.target.target import Target

QUESTIONS = samples(6, seed=5, subtasks=("a", "b", "b"))
EXACT = Influence(method="exact")
TRAINING = FineTune(steps=12, batch_size=4, lr=0.3)


def answering(letter: str, count: int) -> list[Sample]:
    """Questions of their own, all with one answer."""
    made = []
    for item in samples(count, seed=ord(letter)):
        messages = (item.messages[0], {"role": "assistant", "content": letter})
        made.append(
            item.model_copy(update={"id": f"{letter}-{item.id}", "completion": f" {letter}", "messages": messages})
        )
    return made


def scorer_of(
    target: Target,
    questions: Sequence[Sample] = QUESTIONS,
    config: Influence = EXACT,
    training: FineTune = TRAINING,
    base: Any = None,
) -> MovedScorer:
    base = base or InfluenceScorer(
        target,
        questions,
        estimator=config.estimator,
        normalization=config.normalization,
        across_subtasks=config.across_subtasks,
        question_gradients=config.question_gradients,
        tokens=config.tokens,
    )
    return MovedScorer(base, target, questions, config, training)


@pytest.fixture(scope="module")
def target() -> Target:
    return tiny_target("gemma")


def test_without_a_history_it_is_the_scorer(target: Target) -> None:
    pairs = samples(5, seed=4)
    expected = InfluenceScorer(target, QUESTIONS).score(pairs)
    scorer = scorer_of(target)
    found = scorer.score(pairs)
    torch.testing.assert_close(found.total, expected.total, rtol=1e-6, atol=0)
    torch.testing.assert_close(found.by_subtask, expected.by_subtask, rtol=1e-6, atol=0)
    assert scorer.question_shares().tolist() == [1.0] * 6
    assert scorer.subtasks == ("a", "b")
    assert scorer.zero_gradient_baseline()["total"] == 0
    assert isinstance(scorer, Moving)
    assert not isinstance(InfluenceScorer(target, QUESTIONS), Moving)


def gradient(target: Target, encoded: Encoded) -> dict[str, torch.Tensor]:
    """Of Σ w_t ℓ_t with all logits, by autograd."""
    logits = target.model(input_ids=torch.tensor([encoded.input_ids])).logits[0, :-1].to(target.dtype)
    labels = torch.tensor(encoded.labels[1:])
    kept = labels != -100
    losses = torch.nn.functional.cross_entropy(logits[kept], labels[kept], reduction="none")
    loss = (losses * torch.tensor(encoded.token_weights, dtype=losses.dtype)).sum()
    found = torch.autograd.grad(loss, list(target.parameters.values()))
    return {name: part.detach() for name, part in zip(target.parameters, found, strict=True)}


@pytest.mark.parametrize("estimator", ["adam_linear", "sgd"])
@pytest.mark.parametrize("method", ["exact", "twin"])
@pytest.mark.parametrize("kind", ["plain", "unit"])
def test_with_a_history_it_is_the_formula(target: Target, estimator: str, method: str, kind: str) -> None:
    config = Influence.model_validate({"method": method, "estimator": estimator, "question_gradients": kind})
    options: dict[str, Any] = {"estimator": estimator, "tokens": config.tokens, "question_gradients": kind}
    make: Any = InfluenceScorer if method == "exact" else TwinScorer
    extra = {} if method == "exact" else {"by_subtask": False}
    base = make(target, QUESTIONS, **options, **extra)
    scorer = scorer_of(target, config=config, base=base)
    pairs, history = samples(4, seed=4), samples(9, seed=9)
    # A pair that was judged twice counts twice.
    scorer.judged([*history, history[0]])
    found = scorer.score(pairs)

    checkpoint = target.checkpoints[-1]
    asked = [counted(target.encode(item), CountedTokens(), "question") for item in QUESTIONS]
    gradients = WarmGradients.of(target, checkpoint, [target.encode(item) for item in history], asked)
    simulated = SimulatedTraining.of(gradients, lr=TRAINING.lr, steps=3)
    weights = torch.full((1, 9), 0.1, dtype=torch.float64)
    weights[0, 0] = 0.2
    shares = (1 - torch.exp(-simulated.losses(weights)[0])) / (1 - torch.exp(-simulated.start()))
    assert float((shares - 1).abs().max()) > 0.01, "nothing has moved"
    torch.testing.assert_close(scorer.question_shares(), shares, rtol=1e-9, atol=0)
    target.load_checkpoint(checkpoint)
    scale = {
        name: 1 / ((checkpoint.exp_avg_sq[name].double() / (1 - 0.999**checkpoint.step)).sqrt() + 1e-8)
        for name in target.parameters
    }
    questions = torch.stack([flat(gradient(target, item)) for item in asked])
    gammas = []
    for items in (QUESTIONS, pairs):
        role: Any = "question" if items is QUESTIONS else "pair"
        rows = [gradient(target, counted(target.encode(item), CountedTokens(), role)) for item in items]
        gammas.append(
            torch.stack(
                [flat({n: g * scale[n] for n, g in row.items()} if estimator == "adam_linear" else row) for row in rows]
            )
        )
    reference = gammas[0].square().sum(1).mean().sqrt()
    lengths = questions.norm(dim=1)
    if kind == "plain":
        lengths = lengths.square().mean().sqrt()
    products = shares * (gammas[1] @ questions.t()) / lengths / reference
    a, b = [0, 3], [1, 2, 4, 5]
    expected = torch.stack([products[:, a].mean(1), products[:, b].mean(1)], dim=1)
    largest = float(expected.abs().max())
    if method == "exact":
        torch.testing.assert_close(found.by_subtask, expected, rtol=1e-7, atol=1e-9 * largest)
    # Twins are finite differences.
    torch.testing.assert_close(found.total, expected.mean(1), rtol=0, atol=1e-3 * largest)


@pytest.mark.parametrize("end", [0, 1])
def test_the_hundredth_equal_answer_earns_little(end: float) -> None:
    target = tiny_target("gemma", warm=False)
    target.warm_up([*answering("n", 4), *answering("y", 4)], steps=6, batch_size=4, lr=2e-2)
    no, yes = answering("n", 118), answering("y", 18)
    config = EXACT.model_copy(update={"tokens": CountedTokens(end_of_pairs=end)})
    scorer = scorer_of(target, [*no[112:], *yes[12:]], config, TRAINING.model_copy(update={"lr": 0.1}))
    probes = [*no[104:112], *yes[4:12]]

    def earned() -> tuple[float, float]:
        total = scorer.score(probes).total
        return float(total[:8].mean()), float(total[8:].mean())

    found = [earned()]
    for start in range(8, 104, 32):
        scorer.judged(no[start : start + 32])
        found.append(earned())
    assert found[0][0] > 4 * abs(found[0][1]), "the commonest answer looks best"
    assert found[-1][0] < 0.25 * found[0][0]
    assert found[-1][1] > 2 * abs(found[-1][0]), "and is overtaken"
    if not end:
        # What all answers share, that they end, is learnt from any of them.
        assert found[-1][1] > found[0][1]
    shares = scorer.question_shares()
    assert float(shares[:6].mean()) < 0.5 < 0.6 < float(shares[6:].mean()) < MOST


def test_only_the_latest_are_remembered(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(moved, "HISTORY", 4)
    one, other = scorer_of(target), scorer_of(target)
    pairs = samples(9, seed=3)
    one.judged(pairs)
    one.score(pairs)
    other.judged(pairs[5:])
    assert one.history == tuple(pairs[5:])
    assert torch.equal(one.score(pairs).total, other.score(pairs).total)


def test_what_it_depends_on_is_its_fingerprint(target: Target) -> None:
    base = InfluenceScorer(target, QUESTIONS)
    found = [
        base.fingerprint,
        scorer_of(target).fingerprint,
        scorer_of(target, QUESTIONS[:5]).fingerprint,
        scorer_of(target, training=TRAINING.model_copy(update={"lr": 1e-4})).fingerprint,
        scorer_of(target, training=TRAINING.model_copy(update={"batch_size": 2})).fingerprint,
    ]
    assert len(set(found)) == len(found)
    assert scorer_of(target).fingerprint == found[1]
    judged = scorer_of(target)
    judged.judged(samples(2))
    assert judged.fingerprint == found[1], "a history is no other scorer"


class _Passing(Checker):
    """Lets everything pass."""

    def check(self, pair: Any, context: Any) -> Any:
        found = super().check(pair, context)
        return type(found)(valid=True, failed=(), reasons={})


class _Run:
    """Judges windows of a made-up run, each time by new objects where that is asked for."""

    def __init__(self, target: Target, ledger: Path) -> None:
        self.target, self.ledger = target, ledger
        self.reward = self.start()

    def start(self) -> InfluenceReward:
        def written(call: Call) -> str:
            seed = call.seed or 0
            return json.dumps({"quote": "", "question": f"What is number {seed // 2}?", "answer": f"it is {seed % 3}"})

        self.reward = InfluenceReward(
            scorer_of(self.target),
            PairWriter(Scripted(written), TaskShape()),
            _Passing(Checks(), []),
            ledger=self.ledger,
        )
        return self.reward

    def judge(self, seeds: Sequence[int]) -> list[Judgement]:
        where = passage()
        requests = [
            RubricRequest(passage=where, kind="free", rubric=RUBRIC, guiding_text="g", seed=seed) for seed in seeds
        ]
        return asyncio.run(self.reward.judge(requests))


def test_a_resumed_run_gives_the_same_rewards_to_the_last_bit(target: Target, tmp_path: Path) -> None:
    steps = [range(5), range(5, 9), range(9, 14)]
    undisturbed, disturbed = _Run(target, tmp_path / "a.jsonl"), _Run(target, tmp_path / "b.jsonl")
    expected = [undisturbed.judge(step) for step in steps]
    assert all(row.valid for rows in expected for row in rows)
    found = [disturbed.judge(step) for step in steps[:2]]
    disturbed.start()
    # What was judged is answered as it was, and what comes is judged as if nothing had happened.
    found = [disturbed.judge(step) for step in steps]
    assert [[row.reward for row in rows] for rows in found] == [[row.reward for row in rows] for rows in expected]
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    # The history counts: without it the last step would have other rewards.
    fresh = _Run(target, tmp_path / "c.jsonl").judge(steps[2])
    assert [row.reward for row in fresh] != [row.reward for row in expected[2]]
    plain = InfluenceScorer(target, QUESTIONS).score([row.pair for row in fresh if row.pair]).total.tolist()
    assert [row.reward for row in fresh] == pytest.approx(plain, rel=1e-6)


def test_a_group_is_judged_under_one_history(target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("optimsyn.reward.reward.MOVING_WINDOW", 2)
    rows = _Run(target, tmp_path / "a.jsonl").judge(range(5))
    plain = InfluenceScorer(target, QUESTIONS).score([row.pair for row in rows if row.pair]).total.tolist()
    assert [row.reward for row in rows] == pytest.approx(plain, rel=1e-6)


def test_windows_keep_passages_whole() -> None:
    def cut(passages: str, *, whole: bool) -> list[str]:
        requests = [RubricRequest(passage=passage(id=name), kind="free") for name in passages]
        found = list(windows(requests, 4, whole_passages=whole))
        assert [request for window in found for request in window] == requests
        return ["".join(request.passage.id for request in window) for window in found]

    assert cut("aaabbbcd", whole=False) == ["aaab", "bbcd"]
    assert cut("aaabbbcd", whole=True) == ["aaa", "bbbc", "d"]
    assert cut("aaaaaabb", whole=True) == ["aaaaaa", "bb"]
    assert cut("aabb", whole=True) == ["aabb"]
    assert cut("", whole=True) == []


def test_a_judgement_of_another_scorer_is_no_history(target: Target, tmp_path: Path) -> None:
    ledger = tmp_path / "a.jsonl"
    first = _Run(target, ledger)
    first.judge(range(3))
    other = InfluenceReward(
        scorer_of(target, training=TRAINING.model_copy(update={"lr": 1e-4})),
        first.reward.pair_writer,
        first.reward.drafter.checks,
        ledger=ledger,
    )
    assert isinstance(other.scorer, MovedScorer)
    assert other.scorer.history == ()
    assert other.identity == first.reward.identity, "both begin at the same scorer"
    again = first.start()
    assert isinstance(again.scorer, MovedScorer)
    assert len(again.scorer.history) == 3


def test_what_cannot_move_is_refused(target: Target) -> None:
    for fields in ({"estimator": "adam"}, {"normalization": "cosine"}):
        with pytest.raises(RecipeError, match=r"reward\.given: judged needs .* reward\.given to nothing"):
            scorer_of(target, config=EXACT.model_copy(update=fields))
    with pytest.raises(RecipeError, match=r"reward\.given: judged predicts .*question_gradients to plain"):
        scorer_of(target, config=EXACT.model_copy(update={"question_gradients": "probability"}))
    scorer = scorer_of(target)
    with pytest.raises(ModelError, match="without a history"):
        scorer.score(samples(1), token_shares=True)


def test_a_recipe_says_what_its_influence_aims_at() -> None:
    recipe = Recipe.load("recipes/quickstart.yaml")
    assert (recipe.selection, recipe.influence.aim) == ("set", "lower the loss on the validation questions")
    other = changed(recipe, {"influence.question_gradients": "probability"})
    assert (other.selection, other.influence.aim) == ("set", "raise the mean probability of the experts' answers")


def test_a_recipe_says_what_cannot_move() -> None:
    recipe = Recipe.load("recipes/quickstart.yaml")
    assert recipe.reward.given == "nothing"
    assert changed(recipe, {"reward.given": "judged"}).reward.given == "judged"
    for changes in (
        {"influence.estimator": "adam", "influence.method": "exact"},
        {"influence.normalization": "cosine", "influence.method": "exact"},
        {"warm_up.checkpoints": 2},
    ):
        with pytest.raises(RecipeError, match=r"reward\.given: judged needs .* warm_up\.checkpoints to 1"):
            changed(recipe, {"reward.given": "judged", **changes})
    with pytest.raises(RecipeError, match=r"reward\.given: judged predicts .*question_gradients to plain"):
        changed(recipe, {"reward.given": "judged", "influence.question_gradients": "probability"})
    with pytest.raises(RecipeError, match=r"a part of it has no probability; set .*end_of_questions to 0 or 1"):
        changed(recipe, {"influence.tokens.end_of_questions": 0.3, "influence.question_gradients": "probability"})
