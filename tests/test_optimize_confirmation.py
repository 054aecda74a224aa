"""A winner replaces the recipe's text only where it wins on passages that chose nothing, within the same budget."""

from __future__ import annotations

import html
import statistics
from pathlib import Path
from typing import Any

import pytest
from optimize_helpers import BASE_TEXT, WORTH, PairWriter, RubricModel, Scorer, Shape, make_reward, noise, passages
from scipy import stats
from scipy.special import ndtri

from optimsyn.base.errors import RecipeError, ServiceError
from optimsyn.base.seeds import derive_seed
from optimsyn.data.records import Pair, Passage, Rubric
from optimsyn.optimize.confirmation import CONFIDENCE, said_of
from optimsyn.optimize.history import read_history
from optimsyn.optimize.prompt import PromptResult, optimize_guiding_text
from optimsyn.optimize.prompt_task import PromptTask
from optimsyn.programs.rubric import RubricWriter
from optimsyn.recipe.recipe import Recipe
from optimsyn.recipe.sections.optimizers import FEWEST_CONFIRMED, PromptOptimizer
from tests.report_helpers import make_recipe, write_run

METHODS = ("gepa", "halving")


class Different(PairWriter):
    """Writes another answer under each guiding text, as a model does."""

    async def awrite(self, passage: Passage, rubric: Rubric | None, **about: Any) -> Pair:
        pair = await super().awrite(passage, rubric, **about)
        return pair.model_copy(update={"answer": f"{pair.answer} {derive_seed(about['guiding_text'])}"})


class Noise(Scorer):
    """Normal worth that has nothing to do with what the guiding text says."""

    def worth(self, pair: Pair) -> float:
        return float(ndtri((noise(pair.passage_id, pair.seed, pair.answer) + 1) / 2 + 1e-9))


def of_noise() -> Any:
    return make_reward(source="optimize_prompt", scorer=Noise(), writer=Different())


def task_of(folder: Path, *, seed: int = 5, count: int = 40, reward: Any = None, **config: Any) -> PromptTask:
    settings = PromptOptimizer(**{"metric_calls": 64, "minibatch": 3, "passages": 6, **config})
    writer = RubricWriter(RubricModel(), BASE_TEXT)
    reward = reward or make_reward(source="optimize_prompt")
    return PromptTask(settings, writer, reward, passages(count), Shape(), seed, folder / "search")


def search(folder: Path, **options: Any) -> PromptResult:
    return optimize_guiding_text(task_of(folder, **options))


@pytest.mark.parametrize("method", METHODS)
def test_a_real_improvement_is_confirmed_and_kept_within_the_budget(tmp_path: Path, method: str) -> None:
    reward = make_reward(source="optimize_prompt")
    task = task_of(tmp_path, method=method, reward=reward, metric_calls=120, passages=10)
    found = optimize_guiding_text(task)
    assert "Question types that taught most: mechanism" in found.guiding_text
    seen = found.confirmation
    assert seen is not None and seen.confirmed and seen.passages == len(task.held) == 10
    assert seen.score == pytest.approx(WORTH["mechanism"], abs=0.02)
    assert 0 < seen.low <= seen.difference <= seen.high
    assert seen.difference == pytest.approx(seen.score - seen.start_score)
    assert found.judged == len(reward.answered) <= 120
    # Held passages were seen under two texts only, after everything else.
    texts = {row.guiding_text for row in reward.answered if row.passage_id in {each.id for each in task.held}}
    assert texts == {BASE_TEXT, found.guiding_text}
    groups = [{each.id for each in part} for part in (task.comparison, task.held, task.training)]
    assert sum(map(len, groups)) == len(set.union(*groups))
    row = read_history(tmp_path / "search" / "history.jsonl")[-1]
    assert (row["status"], row["held_passages"]) == ("confirmed", 10) and "score" not in row
    assert any("is confirmed: on 10 passages that chose nothing" in note for note in found.notes)


def test_of_searches_in_pure_noise_few_keep_another_text(tmp_path: Path) -> None:
    kept = won = 0
    for seed in range(40):
        found = search(tmp_path / str(seed), seed=seed, method="halving", metric_calls=48, reward=of_noise())
        won += found.confirmation is not None
        kept += found.guiding_text == BASE_TEXT
        assert found.judged <= 48
    assert won > 20, "without a confirmation most of these searches would have kept noise"
    assert kept >= 0.85 * 40


def test_figures_are_those_of_a_bootstrap_of_the_paired_differences(tmp_path: Path) -> None:
    reward = of_noise()
    task = task_of(tmp_path, method="halving", reward=reward)
    seen = optimize_guiding_text(task).confirmation
    assert seen is not None
    of = {(row.guiding_text, row.passage_id): row.reward for row in reward.answered}
    differences = [of[seen.text, each.id] - of[BASE_TEXT, each.id] for each in task.held]
    assert seen.difference == pytest.approx(statistics.fmean(differences))
    again = stats.bootstrap((differences,), statistics.fmean, vectorized=False, n_resamples=3000,
                            confidence_level=CONFIDENCE, method="percentile", rng=1).confidence_interval  # fmt: skip
    spread = statistics.pstdev(differences)
    assert seen.low == pytest.approx(again.low, abs=0.1 * spread)
    assert seen.high == pytest.approx(again.high, abs=0.1 * spread)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"count": 9}, "the run has 9 passages, 6 of which compare texts, and the at least 4 others are not there"),
        ({"metric_calls": 24}, "4 passages would be the least, and passages: 6 with metric_calls: 24 of optimizers"),
        ({"confirm_passages": 0}, "optimizers.prompt.confirm_passages is 0"),
    ],
)
def test_where_nothing_can_confirm_the_result_says_so(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    found = search(tmp_path, method="halving", **options)
    assert found.guiding_text != BASE_TEXT
    assert found.confirmation is None
    assert f"The new guiding text is not confirmed: {said}" in found.notes[-1]


def test_the_split_keeps_to_the_budget_and_to_the_passages() -> None:
    for calls in (4, 14, 32, 40, 64, 100, 400):
        for compared, minibatch in ((2, 1), (5, 3), (8, 4), (32, 8)):
            for count in (2, 6, 13, 30, 500):
                config = PromptOptimizer(metric_calls=calls, passages=compared, minibatch=minibatch)
                split = config.split(count)
                assert split.compared + split.learned + split.held <= count
                assert split.searched + 2 * split.held == calls
                assert split.held == 0 or FEWEST_CONFIRMED <= split.held <= calls // 8
                assert 2 * split.compared <= split.searched
    assert PromptOptimizer(metric_calls=400, minibatch=8, passages=32).split(500) == (32, 16, 32, 336)
    assert PromptOptimizer().split(500) == (8, 0, 5, 30)
    # The quickstart's: as before there was a confirmation.
    assert PromptOptimizer(metric_calls=14, passages=5, minibatch=3).split(17) == (5, 0, 0, 14)


def test_a_search_of_generous_budget_learns_on_passages_of_its_own(tmp_path: Path) -> None:
    for method in METHODS:
        reward = make_reward(source="optimize_prompt")
        task = task_of(tmp_path / method, method=method, metric_calls=120, reward=reward)
        found = optimize_guiding_text(task)
        learned = {each.id for each in task.learning}
        assert len(learned) == 6 and not learned & {each.id for each in (*task.comparison, *task.held)}
        assert {row.passage_id for row in reward.answered if row.guiding_text == BASE_TEXT} & learned
        assert found.confirmation is not None
        assert found.judged <= 120


@pytest.mark.parametrize("method", METHODS)
def test_a_search_without_gain_ends_by_itself_and_says_why(tmp_path: Path, method: str) -> None:
    patient = search(
        tmp_path / "a", method=method, metric_calls=400, patience=3, reward=make_reward(scorer=Scorer(0.1))
    )
    assert patient.ended == "patience"
    assert "as many proposals in a row as optimizers.prompt.patience allows brought no gain" in patient.notes[0]
    assert patient.judged < 200
    assert "No text had a higher mean" in patient.notes[-1]
    spent = search(tmp_path / "b", method=method, metric_calls=40, reward=make_reward(scorer=Scorer(0.1)))
    assert spent.ended in ("budget", "proposals")


def test_a_custom_method_may_say_nothing(tmp_path: Path) -> None:
    task = task_of(tmp_path)
    assert said_of(task, task.start, None) == (
        "No text had a higher mean than the recipe's, so there was none to confirm.",
    )


@pytest.mark.parametrize("method", METHODS)
def test_a_confirmation_that_was_stopped_goes_on_without_buying_twice(tmp_path: Path, method: str) -> None:
    whole = search(tmp_path / "whole", method=method)
    log, ledger = tmp_path / "log", tmp_path / "rewards.jsonl"
    # In the search, then in the confirmation.
    for at in (10, whole.judged - 14):
        writer = PairWriter(log, fail_at=at, kept=log.exists())
        writer.fails = ServiceError("connection refused")
        with pytest.raises(ServiceError, match="connection refused"):
            search(
                tmp_path / "again", method=method, reward=make_reward(ledger, writer=writer, source="optimize_prompt")
            )
        assert not (tmp_path / "again" / "search" / "result.json").exists()
    reward = make_reward(ledger, writer=PairWriter(log, kept=True), source="optimize_prompt")
    assert search(tmp_path / "again", method=method, reward=reward) == whole
    bought = log.read_text().split()
    assert len(bought) == len(set(bought)) == whole.judged


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"confirm_passages": 2}, "too few for an interval; give 4 or more"),
        ({"confirm_passages": 12}, "cost 24 judged"),
    ],
)
def test_a_confirmation_that_cannot_be_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        make_recipe(optimizers={"prompt": change})


def test_recipes_of_before_keep_their_fingerprint() -> None:
    def recipe(**prompt: Any) -> Recipe:
        return make_recipe(optimizers={"prompt": prompt})

    assert recipe(confirm_passages=None, patience=10).fingerprint == recipe().fingerprint
    prints = {recipe(**change).fingerprint for change in ({}, {"confirm_passages": 0}, {"patience": 3})}
    assert len(prints) == 3


def test_the_report_shows_once_what_the_search_says_of_itself(tmp_path: Path) -> None:
    from optimsyn.report.page.report import write_report
    from optimsyn.runs.outcomes import stage_outcome
    from optimsyn.runs.results.built_in import OptimizePromptResult

    found = search(tmp_path / "noise", method="halving", reward=of_noise())
    assert found.confirmation is not None and not found.confirmation.confirmed
    run = write_run(tmp_path / "runs")
    shown = OptimizePromptResult.load(run).model_copy(
        update={"notes": found.notes, "confirmation": found.confirmation, "ended": found.ended, "changed": False}
    )
    shown.save(run)
    assert OptimizePromptResult.load(run) == shown
    assert "the best was not confirmed" in stage_outcome(shown)
    gain = ("gain on passages that chose nothing", found.confirmation.difference)
    assert gain in [row[:2] for row in shown.cells().rows]
    page = html.unescape(write_report(run).read_text("utf-8"))
    assert [page.count(note) for note in found.notes] == [1, 1]
