"""The study file: domains × arms × controls × seeds, and the contrasts that are named before anything runs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import Field, field_validator, model_validator

from optimsyn.base.errors import OptimsynError, RecipeError
from optimsyn.base.identity import digest_of
from optimsyn.base.suggestions import did_you_mean, nearest
from optimsyn.execution.parameters import chosen_recipe
from optimsyn.recipe.changes import changed
from optimsyn.recipe.problems import explain
from optimsyn.recipe.recipe import Recipe
from optimsyn.recipe.sections.models import Section
from optimsyn.recipe.sections.synthesis import Synthesis, Variant
from optimsyn.study.study_yaml import as_far_as_read, built, in_folder, merged, read_study, refuse

INFLUENCE = "influence"
"""The control whose reward is that of the recipe: none is changed."""

Metric = Literal["loss", "answer_loss", "choice_loss", "accuracy", "token_f1"]
METRICS: tuple[Metric, ...] = ("loss", "answer_loss", "choice_loss", "accuracy", "token_f1")
METRIC_WORDS: dict[str, str] = {
    "loss": "loss: −log softmax over the options of a choice, answer loss of a free question, in nats",
    "answer_loss": "answer loss, in nats a token",
    "choice_loss": "choice loss: −log softmax over the options, in nats; questions with options only",
    "accuracy": "accuracy",
    "token_f1": "token F1; free questions only",
}
HIGHER_IS_BETTER = frozenset({"accuracy", "token_f1"})
_UNCHANGED: dict[str, dict[str, Any]] = {INFLUENCE: {}}
_NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"


class Domain(Section):
    """One domain of a study."""

    recipe: str = Field(..., description="A recipe file, or the name of one that comes with optimsyn.")
    set: dict[str, Any] = Field(default_factory=dict, description="Recipe fields that only this domain changes.")


@dataclass(frozen=True, order=True)
class Side:
    """One side of a contrast: an arm under a control."""

    arm: str
    control: str

    def __str__(self) -> str:
        return self.arm if self.control == INFLUENCE else f"{self.arm}@{self.control}"


@dataclass(frozen=True)
class Contrast:
    """The difference of two sides, left minus right, paired by domain, seed and question."""

    left: Side
    right: Side

    def __str__(self) -> str:
        return f"{self.left} − {self.right}"


class StudyFile(Section):
    """Everything that a study is made of."""

    name: str = Field(..., pattern=_NAME, description="The study's folder is called so.")
    question: str = Field("", description="What it asks, in a sentence, for the page.")
    recipes: dict[str, Domain] = Field(..., min_length=1, description="Domain to its recipe.")
    size: Literal["full", "tiny"] = Field("full", description="Size of all runs.")
    set: dict[str, Any] = Field(default_factory=dict, description="Recipe fields that every run changes.")
    arms: tuple[str, ...] = Field(..., min_length=2, description="Variants of the recipes to compare.")
    controls: dict[str, dict[str, Any]] = Field(
        default_factory=lambda: _UNCHANGED,
        description="Sources of the reward: a list of names for reward.source, or each with its recipe fields.",
    )
    seeds: tuple[int, ...] = Field((0, 1, 2), min_length=1, description="A run a domain, control and seed.")
    contrasts: tuple[tuple[str, str], ...] = Field(
        ..., min_length=1, description="Pairs [arm, arm] or [arm@control, arm] named before the study starts."
    )
    metric: Metric = Field("loss", description="What the contrasts are tested on; the others stand beside.")
    alpha: float = Field(0.05, gt=0, lt=0.5, description="Level of the tests and 1 − coverage of the intervals.")
    smallest: float | None = Field(None, gt=0, description="The smallest difference that matters, for the power.")
    pilot: str | None = Field(None, description="A finished study (its folder) to take the spread from.")

    @classmethod
    def load(cls, path: str | Path) -> StudyFile:
        """Reads a study file; recipes and pilot are relative to its folder.

        Raises:
            RecipeError: The file is missing, is not YAML, or fields are wrong; a line each.
        """
        study, problems = read_study_file(path)
        refuse(path, problems)
        return study

    @classmethod
    def parse(cls, raw: dict[str, Any], name: str = "study") -> StudyFile:
        """Builds a study from a plain mapping.

        Raises:
            RecipeError: With one line per wrong field.
        """
        return built(cls, raw, name, _explained)

    def with_paths_from(self, folder: Path) -> StudyFile:
        """The study with relative paths of recipes and pilot resolved against a folder."""
        recipes = {
            domain: each.model_copy(update={"recipe": in_folder(each.recipe, folder)})
            for domain, each in self.recipes.items()
        }
        pilot = None if self.pilot is None else str((folder / Path(self.pilot).expanduser()).resolve())
        return self.model_copy(update={"recipes": recipes, "pilot": pilot})

    @field_validator("recipes", mode="before")
    @classmethod
    def _short_recipes(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            return raw
        wrong = [repr(str(name)) for name in raw if not _is_name(name)]
        if wrong:
            raise ValueError(f"{', '.join(wrong)}: no name of a domain; use letters, digits, _ and -")
        return {name: {"recipe": each} if isinstance(each, str) else each for name, each in raw.items()}

    @field_validator("controls", mode="before")
    @classmethod
    def _short_controls(cls, raw: Any) -> Any:
        if isinstance(raw, list | tuple):
            if len({str(name) for name in raw}) < len(raw):
                raise ValueError("a control is named twice")
            raw = dict.fromkeys(raw)
        if not isinstance(raw, dict) or not raw:
            raise ValueError("must be a list of sources of the reward, or a mapping of names to recipe fields")
        wrong = [repr(str(name)) for name in raw if not _is_name(name)]
        if wrong:
            raise ValueError(f"{', '.join(wrong)}: no name of a control; use letters, digits, _ and -")
        return {
            name: fields if fields is not None else {} if name == INFLUENCE else {"reward.source": name}
            for name, fields in raw.items()
        }

    @model_validator(mode="after")
    def _consistent(self) -> StudyFile:
        wrong = self.design_problems()
        if wrong:
            raise ValueError("\n  ".join(wrong))
        return self

    def design_problems(self, unknown: frozenset[str] = frozenset()) -> list[str]:
        """How fields do not fit together, a sentence each; fields that cannot be read are `unknown`."""
        wrong = []
        for field in ("arms", "seeds", "contrasts"):
            values = getattr(self, field)
            if len(set(values)) < len(values):
                wrong.append(f"{field}: {next(str(v) for v in values if values.count(v) > 1)} is named twice")
        if any(seed < 0 for seed in self.seeds):
            wrong.append("seeds: a seed is 0 or more")
        variants = get_args(Variant)
        # A contrast may name rightly what `arms` misspells.
        arms = {*self.arms, *(nearest(name, variants) for name in self.arms)}
        for name in [name for name in self.arms if name not in variants]:
            hint = did_you_mean(name, variants, f"the variants are {', '.join(variants)}")
            wrong.append(f"arms: there is no variant {name!r}; {hint}")
        for place, pair in enumerate(self.contrasts):
            for text in pair:
                arm, _, control = text.partition("@")
                if arm not in arms and "arms" not in unknown:
                    hint = did_you_mean(arm, self.arms, f"arms has {', '.join(self.arms)}")
                    wrong.append(f"contrasts.{place}: there is no arm {arm!r}; {hint}")
                named = bool(control) or "@" in text or INFLUENCE not in self.controls
                if named and control not in self.controls and "controls" not in unknown:
                    hint = did_you_mean(control, self.controls, f"controls has {', '.join(self.controls)}")
                    shown = control or ("(none named)" if "@" in text else INFLUENCE)
                    wrong.append(f"contrasts.{place}: there is no control {shown!r}; {hint}")
            if pair[0] == pair[1]:
                wrong.append(f"contrasts.{place}: both sides are {pair[0]!r}")
        return wrong

    @property
    def named_contrasts(self) -> list[Contrast]:
        """The contrasts of the file."""
        return contrasts_of(self.contrasts)

    @property
    def registered(self) -> dict[str, Any]:
        """What is fixed when the study starts: a change of it later is shown on the page."""
        fields = {"arms", "controls", "seeds", "contrasts", "metric", "alpha", "size", "set", "recipes"}
        design = self.model_dump(mode="json", include=fields)
        # A study may be moved with its recipes.
        for spec in design["recipes"].values():
            spec["recipe"] = Path(spec["recipe"]).name
        return design

    @property
    def fingerprint(self) -> str:
        """Ten hex digits of `registered`."""
        return digest_of(self.registered, 10)


class _Readable(StudyFile):
    """What can be read of a study file with faults."""

    name: str = "study"
    recipes: dict[str, Domain] = Field(default_factory=dict)
    arms: tuple[str, ...] = ()
    contrasts: tuple[tuple[str, str], ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> _Readable:
        return self


def read_study_file(path: str | Path) -> tuple[StudyFile, list[str]]:
    """A study file as far as it can be read, and its faults; recipes and pilot are relative to its folder.

    Raises:
        RecipeError: It is missing, is not YAML, or holds a key.
    """
    file = Path(path)
    rest: type[StudyFile] = _Readable
    study, problems, unknown = as_far_as_read(StudyFile, rest, read_study(file), str(file), _explained)
    if unknown:
        problems += study.design_problems(unknown)
    if problems:
        study = study.model_copy(update={"arms": tuple(arm for arm in study.arms if arm in get_args(Variant))})
    return study.with_paths_from(file.resolve().parent), problems


@dataclass(frozen=True)
class StudyCell:
    """One run of a study, with all its arms: they share documents, warm-up and test questions."""

    domain: str
    control: str
    seed: int
    recipe: Recipe

    @property
    def name(self) -> str:
        """The name of its recipe."""
        return self.recipe.name


def contrasts_of(pairs: Sequence[Sequence[str]]) -> list[Contrast]:
    """Contrasts from their text form."""
    return [
        Contrast(*(Side(arm, control or INFLUENCE) for arm, _, control in (t.partition("@") for t in p))) for p in pairs
    ]


def cells_of(study: StudyFile) -> list[StudyCell]:
    """All runs of a study: by seed, then domain and control, so that an early end leaves whole replicates.

    Raises:
        RecipeError: Recipes cannot be read or changed, or lack an arm; a line for each problem.
    """
    cells, problems = read_cells(study)
    if problems:
        raise RecipeError("\n".join(problems))
    return cells


def read_cells(study: StudyFile) -> tuple[list[StudyCell], list[str]]:
    """The runs of all recipes that can be read, as `cells_of`, and what is wrong with the others, a line each."""
    problems: list[tuple[str, str]] = []
    plain: dict[str, Recipe] = {}
    for domain, spec in study.recipes.items():
        with _noted(f"recipes.{domain}", problems):
            recipe = chosen_recipe(spec.recipe, size=study.size)
            plain[domain] = changed(recipe, {**_named_arms(study), **study.set, **spec.set}, "set")
    recipes: dict[tuple[str, str], Recipe] = {}
    for (domain, recipe), (control, fields) in product(plain.items(), study.controls.items()):
        where = f"recipes.{domain}"
        with _noted(where, problems):
            fields = {**fields, **_others(fields, domain, plain)}
            recipes[domain, control] = changed(recipe, fields, f"controls.{control}")
            where += "" if control == INFLUENCE else f" with controls.{control}"
            made = _made(recipes[domain, control])
            for arm in [arm for arm in study.arms if arm not in made]:
                hint = did_you_mean(arm, made, f"it makes {', '.join(made)}")
                cure = "(a disabled optimiser makes none; enable it in `set`)"
                problems.append((where, f"does not make the arm {arm!r}; {hint} {cure}"))
    cells = [
        StudyCell(domain, control, seed, _of_cell(recipe, domain, control, seed))
        for seed in study.seeds
        for (domain, control), recipe in recipes.items()
    ]
    return cells, merged(problems)


@contextmanager
def _noted(where: str, problems: list[tuple[str, str]]) -> Iterator[None]:
    try:
        yield
    except (OptimsynError, OSError) as error:
        problems.append((where, str(error)))


def _named_arms(study: StudyFile) -> dict[str, Any]:
    """The arms as a recipe names them, if it can, so that they differ in one thing only."""
    return {"synthesis.arms": list(study.arms)} if study.arms and "arms" in Synthesis.model_fields else {}


def _made(recipe: Recipe) -> tuple[str, ...]:
    """What the target of a run is fine-tuned on."""
    made: tuple[str, ...] = getattr(recipe, "fine_tuned", recipe.variants)
    return made


def _others(fields: dict[str, Any], domain: str, recipes: dict[str, Recipe]) -> dict[str, Any]:
    """For the control `other` without questions of its own: those of the study's next domain."""
    names = list(recipes)
    if fields.get("reward.source") != "other" or "reward.other_questions" in fields or len(names) < 2:
        return {}
    following = recipes[names[(names.index(domain) + 1) % len(names)]]
    return {"reward.other_questions": following.questions.validation.model_dump(mode="json")}


def _of_cell(recipe: Recipe, domain: str, control: str, seed: int) -> Recipe:
    return changed(recipe, {"name": f"{domain}-{control}-s{seed}", "seed": seed}, "seeds")


def _is_name(name: object) -> bool:
    return isinstance(name, str) and re.match(_NAME, name) is not None


def _explained(item: Any) -> str:
    """A problem as a sentence; one inside a domain names the fields of a domain."""
    place = item["loc"]
    if len(place) > 2 and place[0] == "recipes":
        return f"recipes.{place[1]}.{explain({**item, 'loc': place[2:]}, Domain)}"
    return explain(item, StudyFile)
