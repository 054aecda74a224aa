"""The hosted models that recipes, docs and notebooks name: known to the pinned LiteLLM, priced, and there to stay.

Checked on 26 November 2026 against the providers' own pages of what ends (developers.openai.com/api/docs/deprecations,
platform.claude.com/docs/en/about-claude/model-deprecations, ai.google.dev/gemini-api/docs/deprecations). Whoever checks
again changes the day and the list below.
"""

from __future__ import annotations

import json
import re
from datetime import date, timedelta
from pathlib import Path

import pytest

from optimsyn.llm.hosted.capabilities import abilities_of, entry_of
from optimsyn.recipe.model_names import SELF_HOSTED
from optimsyn.recipe.recipe import ModelSpec, Recipe

CHECKED = date(2026, 11, 26)
# Whoever starts from a recipe should have this long before its model ends.
LEAST = timedelta(days=90)
# Announced ends, and what a provider calls legacy; LiteLLM's list learns of them late.
ENDING = {
    "gpt-5": "11 December 2026",
    "gpt-5-mini": "11 December 2026",
    "gpt-5-nano": "11 December 2026",
    "o3": "11 December 2026",
    "gpt-4o": "14 January 2027",
    "gpt-4o-mini": "14 January 2027",
    "gpt-4.1": "14 January 2027",
    "gpt-4.1-mini": "14 January 2027",
    "gpt-5.1": "1 April 2027",
    "gemini-2.5-pro": "1 December 2026",
    "gemini-2.5-flash": "1 December 2026",
    "claude-sonnet-4-5": "30 November 2026",
    "claude-haiku-4-5": "legacy",
}
ROOT = Path(__file__).parent.parent
HOSTED = re.compile(
    r"\b(?:openai|anthropic|gemini|mistral|groq|xai|deepseek|openrouter)/[A-Za-z0-9][\w.-]*(?:/[\w.-]+)*"
)
# Names that stand for one's own: a server's model, a name to fill in.
OWN = re.compile(r"openai/(?:NAME|mine|our-\w+|Qwen/.*)$")


def named() -> dict[str, list[str]]:
    """Every hosted model that is named where people copy from, and where."""
    files = [ROOT / "README.md", *ROOT.glob("recipes/*.yaml"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("notebooks/*.py")]
    found: dict[str, list[str]] = {}
    for file in sorted(files):
        for name in HOSTED.findall(file.read_text(encoding="utf-8")):
            if not OWN.fullmatch(name.rstrip(".")):
                found.setdefault(name.rstrip("."), []).append(str(file.relative_to(ROOT)))
    return found


def test_there_are_names_to_check() -> None:
    assert {"openai/gpt-6-luna", "anthropic/claude-haiku-5-5", "gemini/gemini-3.5-flash-lite"} <= named().keys()


@pytest.mark.parametrize("name", sorted(named()))
def test_a_named_model_is_known_priced_able_and_stays(name: str) -> None:
    where = ", ".join(sorted(set(named()[name])))
    can = abilities_of(ModelSpec(name=name))
    assert can.known, f"{name} ({where}): the pinned LiteLLM does not list it"
    assert can.price is not None and can.price.input > 0, f"{name} ({where}) has no price"
    assert can.schema and can.context and can.longest_reply and can.reasoning is not None, f"{name} ({where})"
    assert name.partition("/")[2] not in ENDING, f"{name} ({where}) ends: {ENDING[name.partition('/')[2]]}"
    if can.ends is not None:
        assert can.ends >= CHECKED + LEAST, f"{name} ({where}) ends on {can.ends}"


def test_notebooks_show_no_model_that_ends() -> None:
    for file in ROOT.glob("notebooks/*.ipynb"):
        text = json.dumps(json.loads(file.read_text(encoding="utf-8")))
        for name in HOSTED.findall(text):
            assert name.partition("/")[2] not in ENDING, f"{file.name}: {name}"


def test_what_ends_is_spelled_as_litellm_spells_it() -> None:
    for name in ENDING:
        prefix = "gemini" if name.startswith("gemini") else "anthropic" if name.startswith("claude") else "openai"
        assert entry_of(f"{prefix}/{name}") is not None, name


@pytest.mark.parametrize("file", sorted(ROOT.glob("recipes/*.yaml")), ids=lambda file: file.stem)
def test_recipes_pin_what_they_read_and_cap_only_what_has_a_price(file: Path) -> None:
    recipe = Recipe.load(file)
    questions = recipe.questions
    for source in (recipe.documents.source, questions.validation, questions.test):
        if source is not None and source.hub is not None:
            assert source.revision is not None, f"{file.name}: {source.hub} has no revision"
            assert re.fullmatch(r"[0-9a-f]{40}", source.revision), f"{file.name}: {source.hub} is pinned to no commit"
    generator = recipe.models.generator
    can = abilities_of(generator)
    if recipe.limits.cost_usd is not None:
        assert can.price is not None and can.price.output > 0
    # What a recipe says is what is sent: nothing is left out behind its back.
    if can.known:
        assert generator.temperature is None or can.temperature
    else:
        assert generator.provider != "litellm" or generator.name.partition("/")[0] in SELF_HOSTED
