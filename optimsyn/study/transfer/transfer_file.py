"""The file of a transfer: generators × scoring targets × trained targets × seeds of one recipe."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from optimsyn.base.errors import OptimsynError, RecipeError
from optimsyn.base.identity import digest_of
from optimsyn.base.suggestions import did_you_mean
from optimsyn.execution.parameters import chosen_recipe
from optimsyn.recipe.changes import changed
from optimsyn.recipe.problems import explain
from optimsyn.recipe.recipe import Recipe
from optimsyn.recipe.sections.models import Section
from optimsyn.study.study_yaml import as_far_as_read, built, in_folder, read_study, refuse

_NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"
Models = dict[str, str | dict[str, Any] | None]


class TransferModels(Section):
    """The models of a transfer, each under a name of its own."""

    targets: Models = Field(
        ...,
        min_length=1,
        description="Name to a model that is fine-tuned and evaluated, written as `models.target`; fields without a "
        "name change the recipe's own target, and null is that target.",
    )
    generators: Models = Field(
        ...,
        min_length=1,
        description="Name to a model that writes the pairs, written as `models.generator`; fields without a name "
        "change the recipe's own generator, and null is that generator.",
    )
    scored_by: tuple[str, ...] | Literal["all"] = Field(
        (),
        description="Targets whose influence chooses the pairs, each for a dataset of its own; omitted: the first. "
        "`all` puts the run of each target's own beside what is transferred to it.",
    )

    @field_validator("targets", "generators")
    @classmethod
    def _named(cls, models: Models) -> Models:
        wrong = [name for name in models if not re.match(_NAME, name)]
        if wrong:
            raise ValueError(f"{wrong[0]!r} is no name of a model here; use letters, digits, _ and -")
        return models

    @field_validator("scored_by", mode="before")
    @classmethod
    def _one_scorer(cls, raw: Any) -> Any:
        return [raw] if isinstance(raw, str) and raw != "all" else raw

    @model_validator(mode="after")
    def _known_scorers(self) -> TransferModels:
        names = [] if self.scored_by == "all" else list(self.scored_by)
        wrong = []
        for name in dict.fromkeys(names):
            if name not in self.targets:
                hint = did_you_mean(name, (*self.targets, "all"), f"targets has {', '.join(self.targets)}")
                wrong.append(f"scored_by: there is no target {name!r}; {hint}")
            if names.count(name) > 1:
                wrong.append(f"scored_by: {name} is named twice")
        if len(self.targets) == 1 and len(self.generators) == 1:
            wrong.append("one target and one generator make a table of one cell; name a second of either")
        if wrong:
            raise ValueError("\n  ".join(wrong))
        return self

    @property
    def scorers(self) -> tuple[str, ...]:
        """Targets whose influence chooses the pairs."""
        if self.scored_by == "all":
            return tuple(self.targets)
        return self.scored_by or (next(iter(self.targets)),)


class TransferFile(Section):
    """Everything that a transfer is made of."""

    name: str = Field(..., pattern=_NAME, description="The folder of the transfer is called so.")
    question: str = Field("", description="What it asks, in a sentence, for the page.")
    recipe: str = Field(..., description="A recipe file, or the name of one that comes with optimsyn.")
    size: Literal["full", "tiny"] = Field("full", description="Size of the recipe; the models below stay as named.")
    set: dict[str, Any] = Field(default_factory=dict, description="Recipe fields that every run changes.")
    transfer: TransferModels
    arm: str | None = Field(None, description="The variant in the table; null: that of the recipe's dataset.")
    seeds: tuple[int, ...] = Field((0,), min_length=1, description="Each repeats everything.")

    @classmethod
    def load(cls, path: str | Path) -> TransferFile:
        """Reads the file; recipe and model folders are relative to its folder.

        Raises:
            RecipeError: The file is missing, is not YAML, or fields are wrong; a line each.
        """
        transfer, problems = read_transfer_file(path)
        refuse(path, problems)
        return transfer

    @classmethod
    def parse(cls, raw: dict[str, Any], name: str = "transfer") -> TransferFile:
        """Builds a transfer from a plain mapping.

        Raises:
            RecipeError: With one line per wrong field.
        """
        return built(cls, raw, name, lambda item: explain(item, cls))

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds) or min(seeds) < 0:
            raise ValueError("a seed is 0 or more, and is named once")
        return seeds

    def with_paths_from(self, folder: Path) -> TransferFile:
        """The transfer with relative paths of the recipe and of models resolved against a folder."""
        models = self.transfer
        update = {
            "targets": {name: _resolved(each, folder) for name, each in models.targets.items()},
            "generators": {name: _resolved(each, folder) for name, each in models.generators.items()},
        }
        return self.model_copy(
            update={"recipe": in_folder(self.recipe, folder), "transfer": models.model_copy(update=update)}
        )

    @property
    def fingerprint(self) -> str:
        """Ten hex digits of the design."""
        return digest_of(self.design, 10)

    @property
    def design(self) -> dict[str, Any]:
        """The file's content, without the folder of the recipe."""
        return {**self.model_dump(mode="json", exclude={"question"}), "recipe": Path(self.recipe).name}


class _ReadableModels(TransferModels):
    """What can be read of its models."""

    targets: Models = Field(default_factory=dict)
    generators: Models = Field(default_factory=dict)

    @model_validator(mode="after")
    def _known_scorers(self) -> _ReadableModels:
        return self


class _Readable(TransferFile):
    """What can be read of the file of a transfer with faults."""

    name: str = "transfer"
    recipe: str = ""
    transfer: _ReadableModels = _ReadableModels()


def read_transfer_file(path: str | Path) -> tuple[TransferFile, list[str]]:
    """The file as far as it can be read, and its faults; recipe and model folders are relative to its folder.

    Raises:
        RecipeError: It is missing, is not YAML, or holds a key.
    """
    file = Path(path)
    rest: type[TransferFile] = _Readable

    def said(item: Any) -> str:
        return explain(item, TransferFile)

    transfer, problems, _ = as_far_as_read(TransferFile, rest, read_study(file), str(file), said)
    return transfer.with_paths_from(file.resolve().parent), problems


@dataclass(frozen=True)
class TransferCell:
    """One run: a generator's pairs, scored by one target, on which a target is trained.

    Attributes:
        target: The target that is fine-tuned and evaluated.
        source: Recipe of the run whose pairs are taken over; None if this run synthesizes them itself.
    """

    generator: str
    scored_by: str
    target: str
    seed: int
    recipe: Recipe
    source: Recipe | None

    @property
    def own(self) -> bool:
        """Whether the trained target is the one that scored the pairs."""
        return self.source is None

    @property
    def name(self) -> str:
        """The name of its recipe."""
        return self.recipe.name


def cells_of(file: TransferFile) -> list[TransferCell]:
    """All runs, by seed: first those that synthesize, then those that take their pairs over.

    Raises:
        RecipeError: The recipe or a model is wrong, or two models are the same; a line for each problem.
    """
    cells, problems = read_cells(file)
    if problems:
        raise RecipeError("\n".join(problems))
    return cells


def read_cells(file: TransferFile) -> tuple[list[TransferCell], list[str]]:
    """The runs of all models that can be read, as `cells_of`, and what is wrong with recipe and models, a line each."""
    models, problems = file.transfer, []
    if not file.recipe:
        return [], []
    try:
        plain = changed(chosen_recipe(file.recipe, size=file.size), file.set, "set")
    except (OptimsynError, OSError) as error:
        return [], [str(error)]
    if plain.fine_tune.target is not None:
        problems.append("recipe: it names fine_tune.target itself; name that model under transfer.targets instead")
    made = plain.fine_tuned
    if file.arm is not None and file.arm not in made:
        hint = did_you_mean(file.arm, made, f"it makes {', '.join(made)}")
        problems.append(f"arm: the recipe does not make {file.arm!r}; {hint}")
    found: dict[str, dict[str, dict[str, Any]]] = {"target": {}, "generator": {}}
    for role, named in (("target", models.targets), ("generator", models.generators)):
        for name, value in named.items():
            field = f"transfer.{role}s.{name}"
            try:
                recipe = plain if value is None else changed(plain, {f"models.{role}": value}, field)
                found[role][name] = getattr(recipe.models, role).model_dump(mode="json")
            except (OptimsynError, OSError) as error:
                own = str(error).replace(f"models.{role}", field)
                problems.append(re.sub(rf"^{re.escape(field)}:\s+(?={re.escape(field)})", "", own))
        problems += _same(f"transfer.{role}s", found[role])
    scorers = [name for name in models.scorers if name in found["target"]] if found["target"] else []
    cells: list[TransferCell] = []
    for seed in file.seeds if plain.fine_tune.target is None else ():
        sources = {
            (generator, scorer): changed(
                plain,
                {
                    "name": f"{generator}-for-{scorer}-s{seed}",
                    "seed": seed,
                    "models.generator": found["generator"][generator],
                    "models.target": found["target"][scorer],
                },
                "transfer",
            )
            for generator in found["generator"]
            for scorer in scorers
        }
        cells += [TransferCell(g, scorer, scorer, seed, recipe, None) for (g, scorer), recipe in sources.items()]
        for (generator, scorer), source in sources.items():
            for target in [name for name in found["target"] if name != scorer]:
                change = {"name": f"{source.name}-to-{target}", "fine_tune.target": found["target"][target]}
                recipe = changed(source, change, f"transfer.targets.{target}")
                cells.append(TransferCell(generator, scorer, target, seed, recipe, source))
    return cells, problems


def in_words_of(file: TransferFile, cell: TransferCell, problem: str) -> str:
    """A problem of a run as one of the file: the field of its model, else its recipe."""
    models = file.transfer
    for field, role, name, named in (
        ("models.generator", "generators", cell.generator, models.generators),
        ("models.target", "targets", cell.scored_by, models.targets),
        ("fine_tune.target", "targets", cell.target, models.targets),
    ):
        if re.match(rf"{re.escape(field)}\b", problem) and named[name] is not None:
            return f"transfer.{role}.{name}{problem.removeprefix(field)}"
    return f"recipe: {problem}"


def labels_of(file: TransferFile, cells: Sequence[TransferCell]) -> tuple[dict[str, str], dict[str, str]]:
    """The models behind the names of targets and of generators, with the fields that the file gives them."""
    targets = {each.target: each.recipe.trained_target.name for each in cells}
    generators = {each.generator: each.recipe.models.generator.name for each in cells}
    models = file.transfer
    return (
        {name: _with_fields(targets[name], models.targets[name]) for name in models.targets},
        {name: _with_fields(generators[name], models.generators[name]) for name in models.generators},
    )


def _with_fields(label: str, model: str | dict[str, Any] | None) -> str:
    fields = {} if not isinstance(model, dict) else {name: value for name, value in model.items() if name != "name"}
    return ", ".join([label, *(f"{name} {value}" for name, value in fields.items())])


def _same(field: str, specs: dict[str, dict[str, Any]]) -> list[str]:
    """A sentence for each model that is named twice, under two names."""
    names = list(specs)
    return [
        f"{field}: {one} and {other} are the same model with the same fields; remove one of them"
        for place, one in enumerate(names)
        for other in names[place + 1 :]
        if specs[one] == specs[other]
    ]


def _resolved(model: str | dict[str, Any] | None, folder: Path) -> str | dict[str, Any] | None:
    """A model with a path that starts with `.` or `~` resolved against a folder."""
    name = model.get("name") if isinstance(model, dict) else model
    if not isinstance(name, str) or not name.startswith((".", "~")):
        return model
    path = str((folder / Path(name).expanduser()).resolve())
    return {**model, "name": path} if isinstance(model, dict) else path
