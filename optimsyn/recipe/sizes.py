"""The size of a run: `full`, as the recipe says, or `tiny`, the same loop in minutes on any machine.

A tiny run goes through every stage of the recipe with the model that comes with optimsyn and a handful of texts. It
shows that a recipe, its checks and its plumbing work before a day of GPU time is spent; its numbers mean nothing.
"""

from __future__ import annotations

from typing import Any

from optimsyn.base.errors import RecipeError
from optimsyn.base.suggestions import did_you_mean
from optimsyn.recipe.bundled import EMBEDDED_PREFIX, bundled_domains
from optimsyn.recipe.sections.optimizers import ROUND_METHODS
from optimsyn.recipe.whole import WholeT

SIZES = ("full", "tiny")
_SUFFIX = "_tiny"

TINY_LESSONS = 1
"""The most `author.lessons` at size `tiny`."""

_DOCUMENTS = 8
_QUESTIONS = 6
# Upper bounds of a tiny run. On a CPU tokens cost time, and most tokens are in the passages of open-book pairs, so
# passages are short.
_AT_MOST: dict[str, dict[str, int | float]] = {
    "documents": {"passage_words": 80, "min_words": 20},
    "warm_up": {"pairs": 6, "steps": 3, "max_steps": 4, "every": 2, "batch_size": 2, "checkpoints": 1},
    "influence": {"batch_tokens": 1024},
    "reward.look": {"pairs": 6, "subsets": 2, "steps": 4},
    "optimizers.prompt": {"metric_calls": 4, "minibatch": 2, "passages": 2, "confirm_passages": 0},
    # The temperature of the rubric model below.
    "optimizers.policy": {
        "steps": 1,
        "group_size": 4,
        "passages_per_step": 1,
        "temperature": 0.7,
        "max_tokens": 120,
        "save_every": 1,
    },
    "author": {"steps": 8, "drafts": 2, "lessons": TINY_LESSONS},
    "synthesis": {"pairs": 3, "oversample": 1.4, "pool": 8},
    "fine_tune": {"steps": 2, "batch_size": 3},
    "evaluation": {"max_new_tokens": 12, "batch_size": 16},
}
_CANDIDATES_OF_ARMS = {"oversample": 4, "pool": 16}
_ROUNDS_AT_MOST = {"rounds": 1, "held_passages": 1}
_MODELS: dict[str, Any] = {
    "generator": {"name": "embedded", "temperature": 0.4, "max_tokens": 240},
    "rubric": {"name": "embedded", "temperature": 0.7, "max_tokens": 160},
    "target": {"name": "embedded", "max_length": 384},
    "reflection": None,
}


def resized(recipe: WholeT, size: str) -> WholeT:
    """The recipe at a size.

    At size `tiny` its name ends in `_tiny`, all models are the embedded one, and every count is small. Guiding text,
    seed, choice of influence, reward, checks, learning rates and limits stay. The data:

    - documents and questions on this machine stay, and a seeded handful of them is used;
    - if any of them is on the hub, both become the bundled texts of the recipe's name (`law`: `embedded:law`).

    Args:
        recipe: From `Recipe.load`.
        size: `full` returns the recipe itself, `tiny` the small one.

    Raises:
        RecipeError: There is no such size, or the recipe reads from the hub and no bundled domain has its name.

    Example:
        >>> from optimsyn import Recipe
        >>> raw = {"documents": {"source": {"hub": "org/laws"}}, "questions": {"validation": {"hub": "org/exams"}}}
        >>> law = Recipe.parse({**raw, "name": "law", "guiding_text": "Ask about a duty that the clause sets."})
        >>> tiny = resized(law, "tiny")
        >>> tiny.name, tiny.documents.source.path, tiny.models.target.name
        ('law_tiny', 'embedded:law', 'embedded')
    """
    if size not in SIZES:
        hint = did_you_mean(size, SIZES, f"choose one of {', '.join(SIZES)}")
        raise RecipeError(f"size: there is no size {size!r}; {hint}")
    if size == "full":
        return recipe
    raw = recipe.model_dump(mode="json")
    name = raw["name"].removesuffix(_SUFFIX)
    raw["name"] = name + _SUFFIX
    # The embedded model's verdicts mean nothing.
    judge = {"name": "embedded", "temperature": 0.0, "max_tokens": 80} if raw["models"]["judge"] else None
    raw["models"] = {**_MODELS, "judge": judge}
    raw["checks"]["judge"]["mode"] = "column" if judge else "check"
    # A share of so few pairs is too few.
    raw["warm_up"]["fraction"] = 1.0
    for path, sizes in _AT_MOST.items():
        section = raw
        for part in path.split("."):
            section = section[part]
        # Null stays null.
        section |= {field: min(section[field], most) for field, most in sizes.items() if section[field] is not None}
    # The embedded model follows no instructions.
    raw["author"]["decides"] = "auto" if raw["author"]["decides"] == "model" else raw["author"]["decides"]
    if raw["synthesis"]["arms"] is not None:
        # Arms have one round of candidates, of which the embedded model's are valid every second time.
        raw["synthesis"] |= _CANDIDATES_OF_ARMS
    policy = raw["optimizers"]["policy"]
    if policy["method"] in ROUND_METHODS:
        # The target is warmed up again between rounds.
        most = {**_ROUNDS_AT_MOST, **({"rounds": 2} if policy["warm_up_again"] else {})}
        policy |= {field: min(policy[field], value) for field, value in most.items()}
    if raw["influence"]["method"] == "auto":
        # Finding the step of twins takes longer than the backward passes of so few pairs.
        raw["influence"]["method"] = "exact"
    if raw["fine_tune"].get("target"):
        raw["fine_tune"]["target"] = _MODELS["target"]
    # Layers of another model's adapter are not those of the embedded one.
    del raw["optimizers"]["policy"]["lora"]
    _shrink_data(name, raw)
    return type(recipe).parse(raw, f"{name} at size tiny")


def _shrink_data(name: str, raw: dict[str, Any]) -> None:
    """Replaces hub datasets by the bundled texts of the domain, and limits the number of rows."""
    documents, questions = raw["documents"], raw["questions"]
    sources = [documents["source"], questions["validation"], questions["test"]]
    remote = next((source["hub"] for source in sources if source is not None and source["hub"] is not None), None)
    if remote is not None:
        domain = _domain_of(name, remote)
        documents["source"] = {"path": domain}
        questions["validation"] = {"path": domain, "where": {"split": "validation"}}
        questions["test"] = {"path": domain, "where": {"split": "test"}}
        # It may name a column of the replaced dataset.
        questions["subtask"] = None
    documents["source"]["limit"] = _at_most(documents["source"].get("limit"), _DOCUMENTS)
    for field in ("validation_limit", "test_limit"):
        questions[field] = _at_most(questions[field], _QUESTIONS)


def _domain_of(name: str, remote: str) -> str:
    domains = bundled_domains()
    if name in domains:
        return EMBEDDED_PREFIX + name
    raise RecipeError(
        f"size tiny: {name} reads {remote} from the hub, and no texts come with optimsyn under its name. Name "
        "some documents and questions on this machine (`path`) under documents.source, questions.validation and "
        f"questions.test, or the bundled ones of a domain: {', '.join(EMBEDDED_PREFIX + domain for domain in domains)}"
    )


def _at_most(value: int | None, most: int) -> int:
    return most if value is None else min(value, most)
