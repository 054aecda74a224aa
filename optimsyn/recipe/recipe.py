"""The typed recipe: the one contract of the command line, the notebooks and the library.

A recipe is one YAML file. Unknown keys are refused with "did you mean" and every field is checked for type and range
here; `optimsyn.machine.preflight` checks what depends on the machine (files, keys, models, memory).
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, field_validator, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from optimsyn.base.counting import plural
from optimsyn.base.errors import RecipeError
from optimsyn.base.identity import digest_of
from optimsyn.base.secrets.redaction import KEY_CURE, find_secret
from optimsyn.base.terminal.labels import SELECTION_LABELS, SOURCE_LABELS, method_label, variant_label
from optimsyn.base.terminal.table import Shown, Table
from optimsyn.recipe.bundled import find_recipe
from optimsyn.recipe.changes import changed
from optimsyn.recipe.problems import explain, faults
from optimsyn.recipe.sections.arms import ARMS, CEILINGS, arm_problems
from optimsyn.recipe.sections.author import AUTHOR_OFF, Author, author_model, author_problems, works
from optimsyn.recipe.sections.data import QUESTION_FIELDS, Documents, Questions, Source, unknown_column
from optimsyn.recipe.sections.evaluation import Evaluation, FineTune
from optimsyn.recipe.sections.influence import MOVED_PROBABILITY, Influence, twin_problem
from optimsyn.recipe.sections.limits import Limits
from optimsyn.recipe.sections.models import (
    OWN_ONLY,
    SERVICE_ONLY,
    CountedTokens,
    Lora,
    Models,
    ModelSpec,
    Section,
    TargetSpec,
)
from optimsyn.recipe.sections.optimizers import (
    LATER_OPTIMIZERS_FIELDS,
    LATER_POLICY_FIELDS,
    LATER_PROMPT_FIELDS,
    Optimizers,
    turn_problems,
)
from optimsyn.recipe.sections.reward import LATER_REWARD_FIELDS, WITHOUT_DIRECTION, WITHOUT_GRADIENTS, Reward
from optimsyn.recipe.sections.seeds import Purpose, Seeds
from optimsyn.recipe.sections.stages import OwnStage, order_problems, ordered
from optimsyn.recipe.sections.synthesis import LATER_SYNTHESIS_FIELDS, Checks, Synthesis, Variant
from optimsyn.recipe.sections.warm_up import WarmUp
from optimsyn.recipe.sizes import resized
from optimsyn.recipe.whole import Whole

__all__ = [
    "VARIANTS",
    "CountedTokens",
    "Documents",
    "FineTune",
    "Lora",
    "ModelSpec",
    "OwnStage",
    "Questions",
    "Recipe",
    "Source",
    "TargetSpec",
]

VARIANTS: tuple[Variant, ...] = ("no_rubric", "static", "author", "optimized", "policy")


def _without_what_says_nothing(section: Section, raw: dict[str, Any], later: tuple[str, ...]) -> None:
    """Removes newer fields with default values from a dump, so that old fingerprints stay valid."""
    for field in later:
        if getattr(section, field) == type(section).model_fields[field].default:
            raw.pop(field)


class Recipe(Shown, Whole):
    """Everything that one run is made of."""

    name: str = Field(..., pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", description="Run folders begin with it.")
    description: str = Field("", description="For people; changes nothing.")
    seed: int = Field(0, ge=0, description="Every random choice of the run derives from it.")
    seeds: Seeds = Seeds()
    documents: Documents
    questions: Questions
    models: Models = Models()
    guiding_text: str = Field(..., min_length=10, description="The few sentences that a person writes.")
    warm_up: WarmUp = WarmUp()
    influence: Influence = Influence()
    reward: Reward = Reward()
    optimizers: Optimizers = Optimizers()
    author: Author = Author()
    synthesis: Synthesis = Synthesis()
    checks: Checks = Checks()
    fine_tune: FineTune = FineTune()
    evaluation: Evaluation = Evaluation()
    stages: tuple[OwnStage, ...] = Field((), description="Stages of your own between the built-in ones.")
    limits: Limits = Limits()

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        size: str = "full",
        changes: Mapping[str, Any] | Iterable[str] = (),
        of_run: bool = False,
    ) -> Recipe:
        """Reads a recipe as the command line does; relative data paths are resolved against the file's folder.

        Args:
            path: A recipe file, the name of a recipe that comes with optimsyn, or a run folder.
            size: `full`, or `tiny` for the embedded model and a handful of documents.
            changes: Further fields, as for `changed`: `{"synthesis.pairs": 20}` or `["synthesis.pairs=20"]`.
            of_run: The file is a run's own recipe, with every field of its version. A missing field is newer and gets
                the behaviour from before it existed.

        Raises:
            RecipeError: The file is missing, is not YAML, or a field is unknown, of a wrong type or out of range.

        Example:
            >>> Recipe.load("quickstart", size="tiny", changes={"synthesis.pairs": 4}).synthesis.pairs
            4
        """
        file = find_recipe(str(path))
        if (file / "manifest.json").is_file():
            file, of_run = file / "recipe.yaml", True
        return changed(resized(cls._read(file, of_run), size), changes)

    def changed(self, changes: Mapping[str, Any] | Iterable[str]) -> Recipe:
        """The recipe with some fields overridden; see `optimsyn.recipe.changes.changed`."""
        return changed(self, changes)

    def resized(self, size: str) -> Recipe:
        """The recipe at size `full` or `tiny`; see `optimsyn.recipe.sizes.resized`."""
        return resized(self, size)

    @classmethod
    def _read(cls, file: Path, of_run: bool) -> Recipe:
        from optimsyn.recipe.yaml_text import described_by, invisible, read_mapping

        raw, text = read_mapping(file)
        if described_by(raw) == "study":
            cure = f"use `optimsyn study {shlex.quote(str(file))}`, with --status to check it"
            raise RecipeError(f"{file}: is a study, not a recipe; {cure}")
        influence = raw.get("influence")
        # A simulated training takes no mean of gradients.
        if of_run and isinstance(influence, dict) and influence.get("estimator") != "simulated":
            raw["influence"] = {"question_gradients": "unit", **influence}
        if of_run and isinstance(raw.get("synthesis"), dict):
            raw["synthesis"] = {"passages": "all", **raw["synthesis"]}
        try:
            recipe = cls.parse(raw, str(file), of_run=of_run)
        except RecipeError as error:
            raise RecipeError("\n  ".join([str(error), *invisible(text)])) from None
        return recipe.with_paths_from(file.resolve().parent, of_run=of_run)

    @classmethod
    def parse(cls, raw: dict[str, Any], name: str = "recipe", *, of_run: bool = False) -> Self:
        """Builds a recipe from a plain mapping.

        Args:
            raw: Field to value.
            name: Its name in messages.
            of_run: It is a run's own recipe, and may name custom parts that are not available now.

        Raises:
            RecipeError: With one line per wrong field.
        """
        try:
            return cls.model_validate(raw, context={"of_run": of_run})
        except ValidationError as error:
            lines = [explain(item, cls) for item in faults(error)]
            raise RecipeError(f"{name}:\n  " + "\n  ".join(lines)) from None

    def with_paths_from(self, folder: Path, *, of_run: bool = False) -> Self:
        """The recipe with all relative paths of data and models resolved against `folder`."""
        raw = self.model_dump(mode="json")
        asked = raw["questions"]
        sources = (raw["documents"]["source"], asked["validation"], asked["test"], raw["reward"]["other_questions"])
        for source in sources:
            if source and source["path"] and not source["path"].startswith("embedded:"):
                source["path"] = str((folder / Path(source["path"]).expanduser()).resolve())
        for spec in (*raw["models"].values(), raw["fine_tune"].get("target")):
            # A model folder beside the recipe; a hub id that only looks like a path stays as it is.
            if spec and spec["name"].startswith((".", "~")):
                spec["name"] = str((folder / Path(spec["name"]).expanduser()).resolve())
        return type(self).model_validate(raw, context={"of_run": of_run})

    def to_yaml(self) -> str:
        """The resolved recipe as YAML; loading it gives an equal recipe."""
        import yaml

        return str(yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100))

    def _table(self) -> Table:
        # For keys it shows the variable's name only.
        models, questions, steps = self.models, self.questions, self.warm_up.steps
        held_back = f"{questions.test_fraction:.0%} of the validation questions' groups, held back"
        warm_up = (
            plural(steps, "step") if steps else f"up to {plural(self.warm_up.max_steps, 'step')}, as many as it takes"
        )
        prompt, policy = self.optimizers.prompt, self.optimizers.policy
        rows = [
            ("documents", _source(self.documents.source)),
            ("validation questions", _source(self.questions.validation)),
            ("test questions", held_back if questions.test is None else _source(questions.test)),
            ("generator", _model(models.generator)),
            ("rubric model", _model(models.rubric)),
            ("target", f"{_model(models.target)}, up to {models.target.max_length} tokens"),
        ]
        if models.reflection is not None:
            rows.append(("reflection", _model(models.reflection)))
        if models.judge is not None:
            rows.append(("judge", f"{_model(models.judge)}, as a {self.checks.judge.mode}"))
        if works(self.author, self.synthesis):
            most = f"up to {plural(self.author.steps, 'step')} and {self.author.drafts:,} judged drafts a rubric"
            rows.append(("author", f"{_model(author_model(models))}, {most}"))
        rounds = f"{plural(policy.rounds, 'round')} of " if policy.in_rounds else ""
        trained = "" if self.fine_tune.target is None else f", of {_model(self.fine_tune.target)}"
        learned = [
            f"guiding text by {method_label(prompt.method)}, {plural(prompt.metric_calls, 'judged pair')}"
            if prompt.for_writer
            else "",
            f"text of the author by {method_label(prompt.method)}, {plural(prompt.metric_calls, 'rubric')}"
            if prompt.for_author
            else "",
            f"rubric model by {method_label(policy.method)}, {rounds}{plural(policy.steps, 'step')} of "
            f"{policy.passages_per_step} × {policy.group_size}"
            if policy.enabled
            else "",
            f"guiding text once more, written by the trained policy, {plural(prompt.metric_calls, 'judged pair')}"
            if self.optimizers.searched_again
            else "",
        ]
        rows += [
            ("warm-up", f"{self.warm_up.pairs:,} first-draft pairs, {warm_up}"),
            ("influence", f"{self.influence.label}, {self.influence.method}"),
            *([("reward", SOURCE_LABELS[self.reward.source])] if self.reward.is_control else []),
            ("learned", "; ".join(filter(None, learned)) or "nothing: both optimisers are disabled"),
            ("variants", ", ".join(variant_label(name) for name in self.fine_tuned)),
            (
                "pairs",
                f"{self.synthesis.pairs:,} a variant, selected by {self.selection_label}; "
                f"the dataset is that of the {variant_label(self.dataset_variant)}",
            ),
            ("fine-tuning", f"{plural(self.fine_tune.steps, 'step')} of {self.fine_tune.batch_size}{trained}"),
            *([("stages", " → ".join(self.stage_names))] if self.stages else []),
            ("limits", _limits(self)),
            ("seed", self.seed_label),
            ("guiding text", " ".join(self.guiding_text.split())),
        ]
        title = f"Recipe {self.name}, fingerprint {self.fingerprint}"
        return Table(title, ("what", "value"), tuple(rows), note=self.description)

    def __repr__(self) -> str:
        return f"Recipe({self.name!r}, fingerprint {self.fingerprint})"

    @property
    def fingerprint(self) -> str:
        """Ten hex digits that change with every field that changes results.

        Limits, concurrency, batches and the look at the reward do not count.
        """
        looks = {"look", "on_noise"}
        raw = self.model_dump(mode="json", exclude={"description": True, "limits": True, "reward": looks})
        documents, questions = raw["documents"], raw["questions"]
        _without_what_says_nothing(self.documents, documents, ("on_error", "limits", "on_injection", "readers", "ocr"))
        _without_what_says_nothing(self.questions, questions, ("form", "show_form"))
        for place, source in (
            (documents["source"], self.documents.source),
            (questions["validation"], self.questions.validation),
            (questions["test"], self.questions.test),
            (raw["reward"]["other_questions"], self.reward.other_questions),
        ):
            if source is not None:
                _without_what_says_nothing(source, place, ("encoding", "file_mb", "follow_links", "text_suffixes"))
        for spec in (*raw["models"].values(), raw["fine_tune"].get("target")):
            if spec:
                for field in ("concurrency", "timeout_s", "retries", "api_key_env", "prices", "batch", "batch_hours"):
                    spec.pop(field)
                # Newer fields with neutral values: a recipe without them keeps its fingerprint.
                later = {**SERVICE_ONLY, **OWN_ONLY, "chat_template_kwargs": None, "max_tokens_again": None}
                for field, neutral in later.items():
                    if field in spec and spec[field] == neutral:
                        spec.pop(field)
        _without_what_says_nothing(self.optimizers, raw["optimizers"], LATER_OPTIMIZERS_FIELDS)
        _without_what_says_nothing(self.optimizers.prompt, raw["optimizers"]["prompt"], LATER_PROMPT_FIELDS)
        # Before methods had rates of their own, this was a number.
        raw["optimizers"]["policy"]["lr"] = self.optimizers.policy.learning_rate
        _without_what_says_nothing(self.optimizers.policy, raw["optimizers"]["policy"], LATER_POLICY_FIELDS)
        _without_what_says_nothing(self.reward, raw["reward"], LATER_REWARD_FIELDS)
        _without_what_says_nothing(self.synthesis, raw["synthesis"], LATER_SYNTHESIS_FIELDS)
        if self.models.judge is None:
            raw["models"].pop("judge")
            raw["checks"].pop("judge")
        if self.models.author is None:
            raw["models"].pop("author")
        if self.author == AUTHOR_OFF:
            raw.pop("author")
        if not self.seeds.given:
            raw.pop("seeds")
        if not self.stages:
            raw.pop("stages")
        _without_what_says_nothing(self.evaluation, raw["evaluation"], ("tolerance",))
        # Before the field existed, gradients of questions had length 1.
        _without_what_says_nothing(self.influence, raw["influence"], ("scorer",))
        if raw["influence"]["question_gradients"] == "unit":
            raw["influence"].pop("question_gradients")
        return digest_of(raw, 10)

    @property
    def stage_names(self) -> tuple[str, ...]:
        """The stages of a run in order: the built-in ones and those of `stages`."""
        return ordered(self.stages)

    @property
    def variants(self) -> tuple[Variant, ...]:
        """The variants that this recipe synthesizes, in order: its arms, or all but those of disabled optimisers."""
        if self.synthesis.arms is not None:
            return tuple(v for v in ARMS if v in self.synthesis.arms and v != "validation")
        on = {
            "author": self.author.enabled,
            "optimized": self.optimizers.prompt.for_writer,
            "policy": self.optimizers.policy.enabled,
        }
        return tuple(v for v in VARIANTS if on.get(v, True))

    @property
    def further_warm_ups(self) -> int:
        """How often the target is warmed up again between the policy's rounds, at most; a reward may not ask it."""
        policy = self.optimizers.policy
        return policy.warm_ups if policy.enabled and self.reward.source not in WITHOUT_GRADIENTS else 0

    @property
    def fine_tuned(self) -> tuple[Variant, ...]:
        """What the target is fine-tuned on: `variants`, and the ceiling `validation`, which has no pairs."""
        return (*self.variants, *(arm for arm in self.synthesis.arms or () if arm == "validation"))

    @property
    def dataset_variant(self) -> Variant:
        """The variant that becomes the final dataset."""
        if self.synthesis.dataset != "auto":
            return self.synthesis.dataset
        return next(variant for variant in reversed(self.variants) if variant not in CEILINGS)

    def seed_of(self, purpose: Purpose) -> int:
        """The seed of a part of the run; `seed` where the recipe sets none."""
        own: int | None = getattr(self.seeds, purpose)
        return self.seed if own is None else own

    @property
    def trained_target(self) -> TargetSpec:
        """The model that is fine-tuned and evaluated: `fine_tune.target`, or the target that scores the pairs."""
        return self.models.target if self.fine_tune.target is None else self.fine_tune.target

    @property
    def seed_label(self) -> str:
        """The seeds for people."""
        return ", ".join([str(self.seed), *(f"{name} {value}" for name, value in self.seeds.given.items())])

    @property
    def selection(self) -> Literal["set", "influence", "first"]:
        """How pairs are chosen: as `synthesis.select` says, or by the reward where that gives no set."""
        way = self.synthesis.select
        return "influence" if way == "set" and self.reward.source in WITHOUT_DIRECTION else way

    @property
    def selection_label(self) -> str:
        """The same for people."""
        if self.reward.is_control and self.selection == "influence":
            return f"the reward, {SOURCE_LABELS[self.reward.source]}"
        return SELECTION_LABELS[self.selection]

    @property
    def key_variables(self) -> tuple[str, ...]:
        """The environment variables for keys that the recipe names."""
        return tuple(s.api_key_env for s in self.models.writers.values() if s.api_key_env is not None)

    @model_validator(mode="before")
    @classmethod
    def _no_keys(cls, raw: Any) -> Any:
        # Before the fields are validated, since those messages quote values.
        secret = find_secret(raw)
        if secret is not None:
            raise ValueError(f"{secret}, and a recipe is written into its run; {KEY_CURE}")
        return raw

    @field_validator("stages", mode="wrap")
    @classmethod
    def _in_order(cls, raw: Any, parse: ValidatorFunctionWrapHandler) -> Any:
        problems: list[InitErrorDetails] = []
        try:
            stages = parse(raw)
        except ValidationError as error:
            # A stage with another fault is in the order too.
            rows = raw if isinstance(raw, list | tuple) else []
            stages = [OwnStage.model_construct(**row) for row in rows if _has_place(row)]
            problems += [
                InitErrorDetails(type=each["type"], loc=each["loc"], input=each["input"], ctx=each.get("ctx", {}))
                for each in error.errors()
            ]
        for problem in order_problems(stages):
            kind = PydanticCustomError("value_error", "{problem}", {"problem": problem})
            problems.append(InitErrorDetails(type=kind, input=None))
        if problems:
            raise ValidationError.from_exception_data("stages", problems)
        return stages

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        wrong = []
        if self.synthesis.dataset != "auto" and self.synthesis.dataset not in self.variants:
            why = "but its optimiser is disabled; enable it"
            if self.synthesis.dataset == "author":
                why = "but its author is disabled; enable it"
            if self.synthesis.dataset == "optimized" and self.optimizers.prompt.for_author:
                why = "but optimizers.prompt.program: author finds a text for the author alone; set program: rubric"
            if self.synthesis.arms is not None:
                why = "but synthesis.arms does not name it; add it"
            wrong.append(
                f"synthesis.dataset is {self.synthesis.dataset!r}, {why} or choose one of {', '.join(self.variants)}"
            )
        wrong += arm_problems(self.synthesis, self.optimizers, self.models.rubric)
        wrong += turn_problems(self.optimizers)
        wrong += author_problems(self.author, self.synthesis, self.optimizers, self.models)
        if self.models.target.api_base is not None:
            wrong.append(
                "models.target: influence needs gradients, so the target must be `embedded`, a hub id or a local "
                "folder; remove its api_base"
            )
        if self.trained_target.api_base is not None and self.fine_tune.target is not None:
            wrong.append(
                "fine_tune.target: it is fine-tuned on this machine, so it must be `embedded`, a hub id or a local "
                "folder; remove its api_base"
            )
        if self.influence.method == "twin" and self.models.target.dtype in ("bfloat16", "float16"):
            wrong.append(twin_problem(self.models.target.dtype))
        quantization, method = self.models.target.quantization, self.influence.method
        if (method, quantization) in (("twin", "4bit"), ("twin", "8bit"), ("forward", "8bit")):
            why = "rounds small differences of losses away" if method == "twin" else "has no forward-mode derivative"
            wrong.append(
                f"influence.method: {method} does not work on a target in {quantization}, which {why}; set it to auto "
                "or exact"
            )
        if self.optimizers.policy.enabled and self.models.rubric.provider in ("litellm", "own"):
            wrong.append(
                f"models.rubric is {self.models.rubric.name!r}, whose weights cannot be trained: name a local or "
                "hub model or `embedded`, or set optimizers.policy.enabled: false"
            )
        if self.models.judge is None and self.checks.judge != type(self.checks.judge)():
            wrong.append("checks.judge says how pairs are judged, and models.judge, who judges, is null; name a model")
        # Whether a custom estimator is linear is known after its import.
        linear = self.influence.has_own_estimator or self.influence.is_derivative
        if self.reward.given == "judged" and not self.influence.is_influence:
            wrong.append(
                f"reward.given: judged moves the direction that influence is taken along, and scorer "
                f"{self.influence.scorer} has none; set reward.given to nothing, or influence.scorer to influence"
            )
        elif self.reward.given == "judged" and (not linear or self.warm_up.checkpoints > 1):
            wrong.append(
                f"reward.given: judged needs a score that is linear in a pair's gradient, at one checkpoint, which "
                f"{self.influence.estimator} with {self.influence.normalization} at {self.warm_up.checkpoints} is not; "
                "set influence.estimator to adam_linear (or sgd), influence.normalization to dot and "
                "warm_up.checkpoints to 1, or reward.given to nothing"
            )
        if self.reward.given == "judged" and self.influence.question_gradients == "probability":
            wrong.append(MOVED_PROBABILITY)
        if self.optimizers.policy.warm_up_again and self.reward.given == "judged":
            wrong.append(
                "optimizers.policy.warm_up_again has all rubrics judged again by another target, and with "
                "reward.given: judged a reward depends on what was judged before; remove one of the two"
            )
        if self.reward.is_control and not self.influence.is_influence:
            wrong.append(
                f"reward.source: {self.reward.source} and influence.scorer: {self.influence.scorer} both take the "
                "place of influence; set one of them to influence"
            )
        if self.reward.other_questions is not None and self.questions.form is None:
            fields = QUESTION_FIELDS if self.questions.subtask is None else (*QUESTION_FIELDS, self.questions.subtask)
            problem = unknown_column("reward.other_questions", self.reward.other_questions, fields)
            wrong += [] if problem is None else [problem]
        if self.warm_up.checkpoints > self.warm_up.most_checkpoints:
            looks = "warm_up.steps"
            if self.warm_up.steps is None:
                looks = f"the {self.warm_up.most_checkpoints} looks of the shortest warm-up; lower warm_up.every"
            wrong.append(f"warm_up.checkpoints is larger than {looks}")
        if wrong:
            raise ValueError("\n  ".join(wrong))
        return self


def _has_place(stage: Any) -> bool:
    """Whether a stage as it is written says its name and what it follows."""
    return isinstance(stage, dict) and all(isinstance(stage.get(field), str) for field in ("name", "after"))


def _source(source: Source) -> str:
    name = source.path if source.path is not None else f"hub:{source.hub}"
    parts = [str(name)]
    if source.hub is not None:
        parts += [part for part in (source.config, source.split, source.revision) if part]
    parts += [f"{column} = {value}" for column, value in source.where.items()]
    if source.limit is not None:
        parts.append(f"at most {source.limit:,}")
    return ", ".join(parts)


def _model(spec: ModelSpec) -> str:
    parts: list[str] = [f"{spec.name}@{spec.revision}" if spec.revision else spec.name]
    if spec.api_base is not None:
        parts.append(f"at {spec.api_base}")
    if spec.api_key_env is not None:
        parts.append(f"key from ${spec.api_key_env}")
    return ", ".join(parts)


def _limits(recipe: Recipe) -> str:
    limits = recipe.limits
    caps: list[tuple[Any, str]] = [
        (limits.cost_usd, "{:g} USD"),
        (limits.requests, "{:,} requests"),
        (limits.tokens, "{:,} tokens"),
        (limits.stage_minutes, "{:g} minutes a stage"),
    ]
    return ", ".join(text.format(value) for value, text in caps if value is not None) or "none"
