"""A recipe at size tiny: the same loop on the embedded model, on bundled texts or a handful of the user's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from data_helpers import recipe_of

from optimsyn.base.environment import SERVICE_KEYS
from optimsyn.base.errors import RecipeError
from optimsyn.machine.preflight import validate
from optimsyn.recipe.recipe import Recipe
from optimsyn.recipe.sizes import SIZES, resized

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))
# These name the embedded model at full size too.
OFFLINE = ("german", "korean", "quickstart")


@pytest.fixture(autouse=True)
def nothing_but_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for names in SERVICE_KEYS.values():
        for name in names:
            monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))


def hub_recipe(**changes: Any) -> Recipe:
    raw: dict[str, Any] = {
        "name": "law",
        "documents": {"source": {"hub": "org/laws"}},
        "questions": {"validation": {"hub": "org/exams"}, "subtask": "their_column"},
        "guiding_text": "Ask about a duty that the clause sets.",
    }
    return Recipe.parse({**raw, **changes})


@pytest.mark.parametrize("name", NAMES)
def test_every_recipe_that_comes_with_optimsyn_is_valid_at_tiny_size_on_any_machine(name: str) -> None:
    recipe = Recipe.load(RECIPES / f"{name}.yaml")
    tiny = resized(recipe, "tiny")
    assert tiny.name == f"{name}_tiny"
    assert tiny.guiding_text == recipe.guiding_text
    assert tiny.influence.estimator == recipe.influence.estimator
    assert tiny.reward.look.pairs <= 6
    assert (tiny.seed, tiny.reward.model_copy(update={"look": recipe.reward.look}), tiny.checks, tiny.limits) == (
        recipe.seed,
        recipe.reward,
        recipe.checks,
        recipe.limits,
    )
    assert tiny.variants == ("no_rubric", "static", "optimized", "policy")
    assert {spec.provider for spec in (tiny.models.generator, tiny.models.rubric, tiny.models.target)} == {"embedded"}
    found = validate(tiny)
    assert found.problems == []
    assert found.counts["documents"] == 8
    assert found.counts["validation"] == found.counts["test"] == 6
    # Not one context is cut.
    assert not any("max_length" in warning for warning in found.warnings)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in OFFLINE])
def test_every_domain_recipe_says_offline_what_it_lacks(name: str) -> None:
    recipe = Recipe.load(RECIPES / f"{name}.yaml")
    text = "\n".join(validate(recipe).problems)
    for role in ("rubric", "target"):
        assert f"models.{role}: the hub cannot be reached" in text
    for field in ("documents.source", "questions.validation"):
        assert f"{field}: the hub cannot be reached" in text
    if recipe.models.generator.api_base is None:
        assert "models.generator" in text
        assert "set the environment variable" in text


@pytest.mark.parametrize("name", [name for name in NAMES if name not in OFFLINE])
def test_offline_every_domain_recipe_is_valid_and_tells_what_was_not_checked(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asked(*_: object, **__: object) -> None:
        raise AssertionError("a service or the hub was asked")

    monkeypatch.setattr("socket.create_connection", asked)
    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", asked)
    recipe = Recipe.load(RECIPES / f"{name}.yaml")
    found = validate(recipe, offline=True)
    assert found.problems == []
    text = "\n".join(found.unchecked)
    for what in ("documents.source", "questions.validation", "models.rubric", "models.target"):
        assert f"{what}: whether the hub has " in text
    assert "models.generator: " in text
    assert "? not checked" in found._repr_html_()


def test_offline_still_refuses_what_this_machine_can_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = hub_recipe(
        documents={"source": "nowhere.jsonl"},
        models={
            "generator": {
                "name": "openai/mine",
                "api_base": "http://127.0.0.1:9/v1",
                "api_key_env": "OFFLINE_TEST_KEY",
            },
            "target": {"name": "./no-such-folder"},
        },
    )
    found = validate(recipe, offline=True)
    assert any(text.startswith("documents.source: ") for text in found.problems)
    assert "models.target: there is no folder ./no-such-folder" in found.problems
    assert len(found.problems) == 2
    assert "models.generator: whether a server answers at 127.0.0.1:9" in found.unchecked
    assert any("OFFLINE_TEST_KEY" in text for text in found.unchecked)
    monkeypatch.setenv("OFFLINE_TEST_KEY", "k" * 20)
    assert not any("OFFLINE_TEST_KEY" in text for text in validate(recipe, offline=True).unchecked)
    # Without the word, nothing is left unchecked, also in the quick look that a second start takes.
    assert validate(recipe, deep=False).unchecked == []


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_fits_on_a_screen_and_explains_itself(name: str) -> None:
    lines = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 50
    assert max(map(len, lines)) <= 120
    for word in ("# Try it", "# Change", "--size tiny"):
        assert any(word in line for line in lines), word


def test_full_is_the_recipe_itself() -> None:
    recipe = hub_recipe()
    assert resized(recipe, "full") is recipe


@pytest.mark.parametrize(("size", "hint"), [("tinny", "did you mean `tiny`"), ("huge", "choose one of full, tiny")])
def test_another_size_is_refused(size: str, hint: str) -> None:
    assert size not in SIZES
    with pytest.raises(RecipeError, match=hint):
        resized(hub_recipe(), size)


def test_hub_data_become_the_bundled_texts_of_the_domain() -> None:
    tiny = resized(hub_recipe(), "tiny")
    assert tiny.documents.source.path == tiny.questions.validation.path == "embedded:law"
    assert tiny.questions.validation.where == {"split": "validation"}
    assert tiny.questions.test is not None
    assert tiny.questions.test.where == {"split": "test"}
    assert tiny.questions.subtask is None
    # Twins are measured before they are used, which a handful of pairs does not pay back.
    assert tiny.influence.method == "exact"
    assert resized(hub_recipe(influence={"method": "twin"}), "tiny").influence.method == "twin"


def test_hub_data_of_an_unknown_domain_are_refused_with_the_cure() -> None:
    with pytest.raises(RecipeError) as caught:
        resized(hub_recipe(name="botany"), "tiny")
    text = str(caught.value)
    assert "botany reads org/laws from the hub" in text
    assert "`path`" in text
    assert "embedded:law" in text


def test_own_documents_with_hub_questions_become_the_bundled_ones_together(tmp_path: Path) -> None:
    mixed = hub_recipe(documents={"source": {"path": str(tmp_path)}})
    assert resized(mixed, "tiny").documents.source.path == "embedded:law"
    with pytest.raises(RecipeError, match="mine reads org/exams from the hub"):
        resized(mixed.model_copy(update={"name": "mine"}), "tiny")


def test_own_files_stay_and_a_handful_is_used(tmp_path: Path) -> None:
    # Also under a name that a bundled domain has: they are there, so they are what the person wants to see.
    recipe = recipe_of(tmp_path, name="law")
    tiny = resized(recipe, "tiny")
    assert tiny.documents.source.path == recipe.documents.source.path
    assert tiny.questions.validation.path == recipe.questions.validation.path
    assert tiny.documents.source.limit == 8
    found = validate(tiny)
    assert found.problems == []
    assert found.counts == {"documents": 8, "passages": 16, "validation": 6, "test": 6}


def test_what_is_small_already_stays_and_so_do_choices_and_caps() -> None:
    recipe = hub_recipe(
        seed=9,
        influence={"estimator": "adam", "normalization": "cosine", "batch_tokens": 256},
        warm_up={"pairs": 5, "steps": 900, "checkpoints": 3, "lr": 3e-4},
        optimizers={"policy": {"enabled": False, "lora": {"target_modules": ["c_attn"]}}},
        models={"target": {"name": "gpt2", "lora": {"target_modules": ["c_attn"]}}},
        synthesis={"pairs": 3, "select": "first"},
        limits={"cost_usd": 3, "stage_minutes": 10},
    )
    tiny = resized(recipe, "tiny")
    assert (tiny.seed, tiny.limits) == (9, recipe.limits)
    assert (tiny.influence.estimator, tiny.influence.normalization, tiny.influence.batch_tokens) == (
        "adam",
        "cosine",
        256,
    )
    assert (tiny.warm_up.pairs, tiny.warm_up.checkpoints, tiny.warm_up.lr) == (5, 1, 3e-4)
    assert tiny.warm_up.steps < 900
    assert not tiny.optimizers.policy.enabled
    assert "q_proj" in tiny.models.target.lora.target_modules
    assert "q_proj" in tiny.optimizers.policy.lora.target_modules
    assert (tiny.synthesis.pairs, tiny.synthesis.select) == (3, "first")


def test_what_happens_between_rounds_happens_at_tiny_size_too() -> None:
    policy = {"method": "dpo", "rounds": 3, "warm_up_again": True}
    tiny = resized(hub_recipe(optimizers={"policy": policy, "turns": 2}), "tiny")
    assert (tiny.optimizers.policy.rounds, tiny.optimizers.policy.warm_ups, tiny.optimizers.turns) == (2, 1, 2)
    once = resized(hub_recipe(optimizers={"policy": {**policy, "warm_up_again": False}}), "tiny")
    assert once.optimizers.policy.rounds == 1


def test_tiny_twice_is_tiny_once_and_survives_a_file(tmp_path: Path) -> None:
    tiny = resized(hub_recipe(), "tiny")
    assert resized(tiny, "tiny") == tiny
    (tmp_path / "recipe.yaml").write_text(tiny.to_yaml(), encoding="utf-8")
    assert Recipe.load(tmp_path / "recipe.yaml") == tiny
