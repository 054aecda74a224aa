"""The forecast of a run, held against what runs really send."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from data_helpers import recipe_of

from optimsyn.llm.token_counts import counter_of
from optimsyn.machine.forecast.lengths import measure
from optimsyn.machine.forecast.requests import Known, forecast, foresee
from optimsyn.machine.preflight import validate
from optimsyn.recipe.changes import changed
from optimsyn.recipe.recipe import Recipe
from optimsyn.recipe.sizes import resized
from optimsyn.report.page.report import forecast_rows, write_report
from optimsyn.runs.folder import Run
from optimsyn.runs.forecast import Forecast, Range, StageForecast, counted, money
from tests.good_model import answer
from tests.llm_helpers import save_tiny_model, service
from tests.stages_helpers import run_stage

RECIPES = Path(__file__).parents[1] / "recipes"
# What done-when asks of a forecast.
FACTOR = 1.5
WRITING = ("prepare", "warm_up", "optimize_prompt", "train_policy", "synthesize")


def near(foreseen: Range, real: float) -> bool:
    return foreseen.expected / FACTOR <= real <= foreseen.expected * FACTOR and foreseen.low <= real <= foreseen.high


@pytest.mark.parametrize("domain", ["finance", pytest.param("medicine", marks=pytest.mark.slow)])
def test_a_domain_sends_what_was_foreseen(domain: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_SERVICE_KEY", "none-at-all")
    recipe = resized(Recipe.load(RECIPES / f"{domain}.yaml"), "tiny")
    with service() as served:
        served.answer = answer
        # A name whose price is known: 0.4 and 1.6 dollars a million tokens.
        spec = {"name": "openai/gpt-4.1-mini", "api_base": served.base, "api_key_env": "LOCAL_SERVICE_KEY"}
        models = {"models.generator": spec, "models.rubric": spec, "optimizers.policy.enabled": False}
        target = {"name": str(save_tiny_model(tmp_path / "tiny")), "max_length": 2048}
        run = Run.open(changed(recipe, {**models, "models.target": target}), tmp_path / "runs")
        found = validate(run.recipe, ask=False).forecast
        assert found is not None
        assert found.paid
        run.foresee(found)
        for stage in WRITING:
            run_stage(run, stage)
            now = foresee(run)
            # What has ended counts as it was.
            for record in run.manifest.stages:
                if record.status == "finished" and record.cost.replies:
                    assert now.of(record.name).requests == Range.exactly(record.cost.replies)
        real, total = run.manifest.cost, found.total
        assert real.replies == len(served.requests)
        assert total.cost_usd is not None
        assert real.cost_usd == pytest.approx(0.4e-6 * real.input_tokens + 1.6e-6 * real.output_tokens)
        assert near(total.requests, real.replies)
        assert near(total.input_tokens, real.input_tokens)
        assert near(total.output_tokens, real.output_tokens)
        assert near(total.cost_usd, real.cost_usd)
        assert now.total.requests == Range.exactly(real.replies)
        assert run.manifest.forecast == found
        assert run.manifest.forecast_now == now
    rows = forecast_rows(run.manifest)
    assert [row[0] for row in rows] == ["warm_up", "optimize_prompt", "synthesize", "in all"]
    assert rows[-1][1:3] == (counted(total.requests), f"{real.replies:,}")
    page = write_report(run).read_text(encoding="utf-8")
    assert "Forecast and actual usage" in page
    assert counted(total.requests) in page


def a_recipe(tmp_path: Path, **changes: Any) -> Recipe:
    return changed(recipe_of(tmp_path), {"models.generator": "openai/gpt-4.1-mini", **changes})


def foreseen(recipe: Recipe, known: Known | None = None) -> Forecast:
    return forecast(recipe, measure(recipe, [], None), 0, known or Known())


def test_tokens_are_those_of_the_model_whatever_stands_before_its_name() -> None:
    text = "Ünïcödé, 日本語のテキスト"
    (count,) = {counter_of(name)(text) for name in ("gpt-4o", "openai/gpt-4o", "openrouter/openai/gpt-4o")}
    assert count != counter_of("openai/gpt-4")(text)


def test_each_stage_is_counted_as_it_asks(tmp_path: Path) -> None:
    sizes = {
        "warm_up.pairs": 100,
        "optimizers.prompt": {"metric_calls": 80, "passages": 10, "minibatch": 4},
        "optimizers.policy": {"steps": 5, "passages_per_step": 3, "group_size": 4},
        "synthesis": {"pairs": 300, "oversample": 2.0},
    }
    found = foreseen(a_recipe(tmp_path, **sizes), Known(valid=1.0, changed=True))
    assert found.of("warm_up").requests.expected == 200
    # A rubric and a pair for each judged pair; the search ends when its budget has no room for ten more.
    assert 2 * 70 < found.of("optimize_prompt").requests.expected <= 2 * 80
    # Rubrics are sampled while training; nearly each gets a pair.
    assert found.of("train_policy").requests.high == 60
    # Without a rubric; static beyond the first draft; under the new text; by the policy.
    expected = 600 + 2 * 500 + 2 * 600 + 2 * 600
    assert found.of("synthesize").requests.expected == pytest.approx(expected)
    assert found.of("fine_tune").requests.high == 0
    unchanged = foreseen(a_recipe(tmp_path, **sizes), Known(valid=1.0, changed=False))
    assert unchanged.of("synthesize").requests.expected == pytest.approx(expected - 1200)
    fewer = foreseen(a_recipe(tmp_path, **sizes), Known(valid=0.25, changed=True))
    assert fewer.of("synthesize").requests.expected > 1.9 * expected
    assert fewer.of("synthesize").requests.high <= 4 * (600 * (1 + 2 + 2 + 1 + 3))


def test_a_pair_that_may_be_written_again_is_asked_for_more_often_and_more_of_them_are_valid(tmp_path: Path) -> None:
    once, thrice = (a_recipe(tmp_path, **{"checks.redrafts": redrafts}) for redrafts in (0, 2))
    # Half of all drafts are valid: a half of the pairs is written twice, a quarter three times.
    before, after = foreseen(once, Known(valid=0.5)), foreseen(thrice, Known(valid=0.875, drafts=1.75))
    # The policy's training asks for pairs alone, and judges as many in either case.
    first, second = (each.of("train_policy").requests for each in (before, after))
    assert second.expected == pytest.approx(1.75 * first.expected) and second.high == 3 * first.high
    never = foreseen(thrice, Known(valid=0.9, drafts=1.0))
    assert never.of("train_policy").requests.expected == pytest.approx(first.expected)
    # Fewer candidates are written where more of them are valid.
    assert never.of("synthesize").requests.expected < 0.7 * before.of("synthesize").requests.expected
    greedy = {"checks.redrafts": 2, "models.generator": {"name": "embedded", "temperature": 0.0}}
    told = {"checks.redrafts": 0, "models.generator": {"name": "embedded", "temperature": 0.0}}
    assert foreseen(a_recipe(tmp_path, **greedy)) == foreseen(a_recipe(tmp_path, **told))


@pytest.mark.parametrize("method", ["gepa", "halving"])
def test_a_search_has_room_for_its_confirmation(tmp_path: Path, method: str) -> None:
    def pairs(**prompt: Any) -> Range:
        sizes = {"metric_calls": 80, "passages": 10, "minibatch": 4, "method": method, **prompt}
        return foreseen(a_recipe(tmp_path, **{"optimizers.prompt": sizes})).of("optimize_prompt").requests

    # Of 80 judged pairs 20 are for it, and a search of 60 ends with room for less than one proposal.
    assert 2 * (60 - 14) < pairs(metric_calls=60, confirm_passages=0).expected <= 2 * 60
    added = pairs().expected - pairs(metric_calls=60, confirm_passages=0).expected
    assert added == pytest.approx(2 * 20, rel=0.1)
    assert pairs().high == pairs(confirm_passages=0).high == 2 * 80


def test_a_large_budget_of_the_search_needs_no_deep_stack(tmp_path: Path) -> None:
    sizes = {"optimizers.prompt": {"metric_calls": 20_000, "passages": 40, "minibatch": 1}}
    assert foreseen(a_recipe(tmp_path, **sizes)).of("optimize_prompt").requests.expected > 2 * 19_900


def test_batches_are_half_the_price_where_they_are_sent(tmp_path: Path) -> None:
    ordinary, batched = (foreseen(a_recipe(tmp_path, **{"models.generator.batch": on})) for on in (False, True))
    for stage, share in {"warm_up": 0.5, "optimize_prompt": 1.0, "train_policy": 1.0, "synthesize": 0.5}.items():
        full, paid = ordinary.of(stage).cost_usd, batched.of(stage).cost_usd
        assert full is not None and paid is not None
        assert paid.expected == pytest.approx(share * full.expected)


def test_what_was_sent_corrects_what_is_to_come(tmp_path: Path) -> None:
    recipe = a_recipe(tmp_path)
    lengths = measure(recipe, [], None)
    before, after = forecast(recipe, lengths), forecast(recipe, lengths, 0, Known(read=2.0, written=3.0))
    for stage in ("warm_up", "synthesize"):
        assert after.of(stage).input_tokens.expected == pytest.approx(2 * before.of(stage).input_tokens.expected)
        assert after.of(stage).output_tokens.expected == pytest.approx(3 * before.of(stage).output_tokens.expected)
        spread = [found.of(stage).output_tokens for found in (before, after)]
        assert spread[1].high / spread[1].low < spread[0].high / spread[0].low


def warnings(recipe: Recipe) -> str:
    return "\n".join(text for text in validate(recipe, ask=False, offline=True).warnings if "limits" in text)


def test_caps_are_held_against_the_forecast(tmp_path: Path) -> None:
    many = {"synthesis.pairs": 5000}
    text = warnings(a_recipe(tmp_path, **many))
    assert "no cap is set, and models.generator may cost money" in text
    assert "US dollars" in text
    assert "limits" not in warnings(changed(recipe_of(tmp_path), many))
    text = warnings(a_recipe(tmp_path, **many, **{"limits.cost_usd": 1.0}))
    assert "more than the cap of 1; raise it, or lower synthesis.pairs to " in text
    fits = int(text.partition("synthesis.pairs to ")[2].partition(", which fits")[0].replace(",", ""))
    assert "more than the cap" not in warnings(a_recipe(tmp_path, **{"synthesis.pairs": fits, "limits.cost_usd": 1.0}))
    above = {"synthesis.pairs": fits + 5, "limits.cost_usd": 1.0}
    assert "more than the cap" in warnings(a_recipe(tmp_path, **above))
    assert "may end the run early" in warnings(a_recipe(tmp_path, **many, **{"limits.requests": 60_000}))
    assert "limits" not in warnings(a_recipe(tmp_path, **many, **{"limits.cost_usd": 1000.0}))
    text = warnings(a_recipe(tmp_path, **{"limits.tokens": 3000}))
    assert "lowering synthesis.pairs alone is not enough" in text


def test_an_unknown_price_is_no_price_of_nothing(tmp_path: Path) -> None:
    spec = {"name": "openai/a-model-that-nobody-lists", "api_base": "http://127.0.0.1:9/v1"}
    found = validate(changed(recipe_of(tmp_path), {"models.generator": spec}), ask=False, offline=True)
    assert found.forecast is not None
    assert found.forecast.paid
    assert found.forecast.total.cost_usd is None
    assert "an unknown number of US dollars" in "\n".join(found.warnings)


def test_figures_are_short() -> None:
    assert counted(Range(low=901, expected=1234, high=123456)) == "1,230 (901 to 123,000)"
    assert counted(Range.exactly(47)) == "47"
    assert money(Range(low=0.0123, expected=0.5, high=12.345)) == "0.50 (0.012 to 12.35) US dollars"
    stage = StageForecast(stage="warm_up", requests=Range.exactly(3), cost_usd=None)
    assert Forecast(stages=(stage,), paid=True).sentence.endswith("an unknown number of US dollars")
