"""The typed recipe: the one contract of the command line, the notebooks and the library.

A recipe is one YAML file. Unknown keys are refused with "did you mean", every field is checked for type and range
here, and `optimsyn.machine.preflight` checks what only the machine can tell (files, keys, models, memory).
"""

from __future__ import annotations

import difflib
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationError, model_validator

from optimsyn.base.errors import DataError, RecipeError
from optimsyn.base.secrets.redaction import KEY_CURE, find_secret, redact, remember_variables_of
from optimsyn.base.shown import Shown
from optimsyn.base.text_files import decode
from optimsyn.recipe.problems import explain
from optimsyn.recipe.sections.data import Documents, Questions, Source
from optimsyn.recipe.sections.models import (
    SERVICE_ONLY,
    CountedTokens,
    Lora,
    Models,
    ModelSpec,
    Prices,
    QuestionGradients,
    Section,
    TargetSpec,
)

if TYPE_CHECKING:
    from optimsyn.base.table import Table

__all__ = [
    "VARIANTS",
    "Checks",
    "CountedTokens",
    "Documents",
    "Estimator",
    "Evaluation",
    "FineTune",
    "Influence",
    "Limits",
    "Look",
    "Lora",
    "ModelSpec",
    "Models",
    "Optimizers",
    "PolicyOptimizer",
    "Prices",
    "PromptOptimizer",
    "Questions",
    "Recipe",
    "Reward",
    "Source",
    "Synthesis",
    "TargetSpec",
    "Variant",
    "WarmUp",
]

Variant = Literal["no_rubric", "static", "optimized", "policy"]
VARIANTS: tuple[Variant, ...] = ("no_rubric", "static", "optimized", "policy")
Estimator = Literal["adam", "adam_momentum_free", "adam_linear", "sgd", "less", "simulated"]


class WarmUp(Section):
    """Warm-up of the LoRA target on first-draft pairs, which gives the influence its Adam moments."""

    pairs: int = Field(24, ge=2, description="First-draft pairs to write.")
    fraction: float = Field(
        1.0, gt=0, le=1, description="Share of them to train on (the paper: 0.1 of a large first draft)."
    )
    steps: int | None = Field(
        None,
        ge=1,
        description="AdamW steps. null: until the form of an answer is learned, which the loss of its end on the "
        "validation questions tells, and no longer than pairs that are not trained on get better.",
    )
    max_steps: int = Field(24, ge=1, description="Most steps where their number is found.")
    every: int = Field(
        4, ge=1, description="Steps between two looks at held-out losses, and steps that a learning rate is tried for."
    )
    held_out: float = Field(
        0.2,
        ge=0,
        le=0.5,
        description="Share of the first-draft pairs that is looked at and not trained on, where steps or lr are found.",
    )
    batch_size: int = Field(4, ge=1, description="Pairs a step.")
    lr: float | None = Field(
        None, gt=0, description="Learning rate. null: the best of half, once and twice `fine_tune.lr`, each tried."
    )
    checkpoints: int = Field(1, ge=1, description="Checkpoints spread over the steps, the last one always.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are clipped to this norm.")

    @property
    def fewest_steps(self) -> int:
        """The steps of the shortest warm-up that these settings allow."""
        return self.steps if self.steps is not None else least_warm_up_steps(self.max_steps, self.every)

    @property
    def most_checkpoints(self) -> int:
        """How many checkpoints that one can leave: one a step, or one a look."""
        return self.steps if self.steps is not None else -(-self.fewest_steps // self.every)


def least_warm_up_steps(max_steps: int, every: int) -> int:
    """Fewest steps of a warm-up that ends by evidence: the first look after ten steps.

    Adam's first moment remembers 1 / (1 - 0.9) = 10 steps. Before, both moments are means of fewer batches than they
    would be in training.
    """
    return min(max_steps, every * -(-10 // every))


class Influence(Section):
    """How a pair's influence on the validation loss is computed.

    The paper's own choice is `adam` with `cosine` and `unit` gradients. `adam_linear` with `dot` goes to 0 with a
    pair's gradient, which the paper's does not, and is linear in it, so that it costs least and can be computed in
    several ways; with `plain` gradients it foretells the questions' mean loss. So these are the defaults;
    docs/influence.md says what has been measured of them and what has not.
    """

    method: Literal["auto", "exact", "twin", "forward"] = Field(
        "auto",
        description="exact: from each pair's gradient. For linear estimators (adam_linear, sgd) with dot also twin: "
        "from two forward passes at slightly moved weights, in float32 only; and forward: from one pass that carries "
        "the derivative along, in 16 bits too. auto: the cheapest whose error, measured on validation questions, is "
        "below half a per cent; where there is none, the best one if it is below 5, as a named one may be.",
    )
    estimator: Estimator = Field(
        "adam_linear",
        description="Which direction of a step counts; see docs/influence.md. simulated: what a foretold training with "
        "the pair in its batches does, by `fine_tune` and at most twelve steps long, from the last checkpoint.",
    )
    normalization: Literal["cosine", "dot"] = Field(
        "dot", description="cosine: only the direction counts. dot: a longer direction counts for more."
    )
    across_subtasks: Literal["mean", "max"] = Field("mean", description="How subtasks become one score (LESS: max).")
    question_gradients: QuestionGradients = Field(
        "plain",
        description="plain: a direction is the gradient of the questions' mean loss. unit: each question's gradient is "
        "scaled to length 1 before the mean is taken, so that each has one vote (the paper).",
    )
    tokens: CountedTokens = CountedTokens()
    batch_tokens: int = Field(1024, ge=64, description="Tokens scored in one batch; samples of like length together.")

    @property
    def is_derivative(self) -> bool:
        """Whether the score is a directional derivative of the pair's loss, which twin and forward can read off."""
        return self.estimator in ("adam_linear", "sgd") and self.normalization == "dot"

    @property
    def linear(self) -> Influence:
        """The same with the linear score beside a foretold training, which shares of tokens are taken of."""
        return self.model_copy(update={"estimator": "adam_linear", "normalization": "dot"})

    @model_validator(mode="after")
    def _nothing_to_normalise(self) -> Influence:
        if self.estimator == "simulated" and self.normalization != "dot":
            raise ValueError(
                "estimator simulated foretells a training, in nats, and has no direction to normalise; set "
                "normalization to dot, or estimator to adam or adam_linear"
            )
        if self.estimator == "simulated" and self.question_gradients != "plain":
            raise ValueError(
                "estimator simulated foretells losses of questions, and takes no mean of their gradients; set "
                "question_gradients to plain, or estimator to adam or adam_linear"
            )
        return self

    @model_validator(mode="after")
    def _derivative_is_linear(self) -> Influence:
        if self.method in ("twin", "forward") and not self.is_derivative:
            raise ValueError(
                f"method {self.method} reads off a derivative of the loss, which {self.estimator} with "
                f"{self.normalization} is not; set estimator to adam_linear (or sgd) and normalization to dot, or "
                "method to exact"
            )
        return self


class Look(Section):
    """How closely a run looks at its own reward after the warm-up; changes nothing that comes of it."""

    pairs: int = Field(12, ge=0, description="First-draft pairs to look at; 0: no look.")
    subsets: int = Field(
        6, ge=0, description="Random subsets to train on, beside the best and the worst; 0: no training."
    )
    steps: int = Field(8, ge=1, description="Steps on each subset, at fine_tune.lr.")
    batch_size: int = Field(2, ge=1, description="Pairs in one such step.")


def twin_problem(dtype: str) -> str:
    """Why twins are refused on a 16-bit target, and the cure."""
    return (
        f"influence.method: twin is a small difference of losses, which {dtype} rounds away; set influence.method to "
        "auto, forward or exact, or models.target.dtype to float32"
    )


class Reward(Section):
    """R = Valid * IF - invalid_penalty * (1 - Valid)."""

    invalid_penalty: float = Field(0.1, ge=0, description="What an invalid pair loses (λ).")
    given: Literal["nothing", "judged"] = Field(
        "nothing",
        description="What a pair of GRPO is measured on top of. nothing: the questions as the warm-up left them. "
        "judged: as training on the pairs that GRPO has judged so far would leave them, so that the hundredth pair "
        "with the same answer earns little; for linear estimators with dot.",
    )
    look: Look = Look()
    on_noise: Literal["stop", "warn"] = Field(
        "stop",
        description="What a run does that finds its reward to be noise: stop after the warm-up, or go on and say so.",
    )


class PromptOptimizer(Section):
    """GEPA on the guiding text."""

    enabled: bool = Field(True, description="False: the recipe's guiding text stays as it is.")
    metric_calls: int = Field(40, ge=4, description="Judged pairs that the search may spend.")
    minibatch: int = Field(4, ge=1, description="Passages a candidate is first tried on.")
    passages: int = Field(8, ge=2, description="Passages that candidates are compared on.")


class PolicyOptimizer(Section):
    """GRPO on the rubric model."""

    enabled: bool = Field(True, description="False: the rubric model stays as it came.")
    steps: int = Field(4, ge=1, description="GRPO steps.")
    group_size: int = Field(4, ge=2, description="Rubrics per passage that are compared with each other (G).")
    passages_per_step: int = Field(2, ge=1, description="Groups in one step.")
    temperature: float = Field(0.9, gt=0, le=2, description="Of the sampled rubrics.")
    lr: float = Field(1e-5, gt=0, description="Learning rate.")
    kl: float = Field(0.02, ge=0, description="Weight of the KL term against the untrained policy (beta).")
    max_tokens: int = Field(110, ge=16, description="Longest sampled rubric, in tokens.")
    save_every: int = Field(1, ge=1, description="Steps between resumable checkpoints.")
    lora: Lora = Lora(r=8, alpha=16)


class Optimizers(Section):
    """Which optimisers run, with which budget."""

    prompt: PromptOptimizer = PromptOptimizer()
    policy: PolicyOptimizer = PolicyOptimizer()


class Synthesis(Section):
    """The final pairs of every variant."""

    pairs: int = Field(24, ge=2, description="Valid pairs a variant; the same number for each.")
    oversample: float = Field(1.5, ge=1, le=1000, description="Candidates written per pair kept.")
    select: Literal["set", "influence", "first"] = Field(
        "set",
        description="Which valid candidates are kept. set: those that help the questions most together, by a training "
        "foretold from gradients. influence: those of highest single influence. first: the first ones.",
    )
    dataset: Literal["auto", "no_rubric", "static", "optimized", "policy"] = Field(
        "auto", description="Variant that becomes the final dataset; auto: the last one that was learned."
    )


class Checks(Section):
    """Validity checks; a pair that fails one is invalid and the check is named."""

    disabled: tuple[str, ...] = Field((), description="Names of checks that are not run.")
    unsafe_words: tuple[str, ...] = Field((), description="Words and phrases that no pair may hold.")
    plugins: tuple[str, ...] = Field((), description="Further checks as `package.module:function`.")


class FineTune(Section):
    """Supervised fine-tuning of the target on each variant's pairs."""

    steps: int = Field(12, ge=1, description="AdamW steps, the same for each variant.")
    batch_size: int = Field(4, ge=1, description="Pairs a step.")
    lr: float = Field(2e-4, gt=0, description="Highest learning rate.")
    warmup_ratio: float = Field(0.1, ge=0, lt=1, description="Share of the steps over which the rate rises.")


class Evaluation(Section):
    """Evaluation on the held-back test questions."""

    max_new_tokens: int = Field(16, ge=1, description="Longest decoded answer, in tokens.")
    batch_size: int = Field(16, ge=1, description="Questions asked at once.")
    bootstrap: int = Field(2000, ge=100, description="Resamples behind each interval.")
    confidence: float = Field(0.95, gt=0.5, lt=1, description="Coverage of the intervals.")


class Limits(Section):
    """Caps that stop a run loudly, with everything paid for kept."""

    cost_usd: float | None = Field(None, gt=0, description="Most that all replies of the run may cost, in US dollars.")
    requests: int | None = Field(None, ge=1, description="Most requests that the run may send.")
    tokens: int | None = Field(None, ge=1, description="Most tokens, read and written together.")
    stage_minutes: float | None = Field(None, gt=0, description="Longest time for one stage, in minutes.")


def _without_what_says_nothing(section: Section, raw: dict[str, Any], later: tuple[str, ...]) -> None:
    """Takes fields that came later out of a dump where they have their defaults: old fingerprints stay."""
    for field in later:
        if getattr(section, field) == type(section).model_fields[field].default:
            raw.pop(field)


class Recipe(Shown, Section):
    """Everything that one run is made of."""

    name: str = Field(..., pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", description="Run folders begin with it.")
    description: str = Field("", description="For people; changes nothing.")
    seed: int = Field(0, ge=0, description="Every random choice of the run derives from it.")
    documents: Documents
    questions: Questions
    models: Models = Models()
    guiding_text: str = Field(..., min_length=10, description="The few sentences that a person writes.")
    warm_up: WarmUp = WarmUp()
    influence: Influence = Influence()
    reward: Reward = Reward()
    optimizers: Optimizers = Optimizers()
    synthesis: Synthesis = Synthesis()
    checks: Checks = Checks()
    fine_tune: FineTune = FineTune()
    evaluation: Evaluation = Evaluation()
    limits: Limits = Limits()

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Reads a recipe file; relative data paths are resolved against its folder.

        Raises:
            RecipeError: The file is missing, is not YAML, or a field is unknown, of a wrong type or out of range.
        """
        import yaml

        from optimsyn.recipe.yaml_text import LARGEST_FILE, invisible, no_mapping, parse_yaml, said_of_yaml

        file = Path(path)
        if file.is_dir():
            raise RecipeError(f"{file}: is a folder; name the recipe file in it")
        if not file.is_file():
            near = difflib.get_close_matches(file.name, [p.name for p in file.parent.glob("*.y*ml")], n=1)
            hint = f" Did you mean {file.parent / near[0]}?" if near else ""
            raise RecipeError(f"{file}: there is no such recipe file.{hint}")
        if file.stat().st_size > LARGEST_FILE:
            raise RecipeError(f"{file}: has {file.stat().st_size:,} bytes and is no recipe; name the recipe file")
        try:
            text = decode(file.read_bytes(), str(file))
            # A text that cannot be parsed is shown in part, and may hold what it names as secret.
            remember_variables_of(text)
            raw = parse_yaml(text)
        except yaml.YAMLError as error:
            raise RecipeError(f"{file}: not valid YAML: {redact(said_of_yaml(error, text))}") from None
        except DataError as error:
            raise RecipeError(str(error)) from None
        if not isinstance(raw, dict):
            raise RecipeError(f"{file}: a recipe is a mapping of fields (`name: mine` ...), {no_mapping(raw, text)}")
        try:
            recipe = cls.parse(raw, str(file))
        except RecipeError as error:
            raise RecipeError("\n  ".join([str(error), *invisible(text)])) from None
        return recipe.with_paths_from(file.resolve().parent)

    @classmethod
    def parse(cls, raw: dict[str, Any], name: str = "recipe") -> Recipe:
        """Builds a recipe from a plain mapping.

        Raises:
            RecipeError: With one line per wrong field.
        """
        try:
            return cls.model_validate(raw)
        except ValidationError as error:
            lines = [explain(item, cls) for item in error.errors()]
            raise RecipeError(f"{name}:\n  " + "\n  ".join(lines)) from None

    def with_paths_from(self, folder: Path) -> Recipe:
        """The recipe with every relative path of data and models made absolute, as seen from `folder`."""
        raw = self.model_dump(mode="json")
        for source in (raw["documents"]["source"], raw["questions"]["validation"], raw["questions"]["test"]):
            if source and source["path"] and not source["path"].startswith("embedded:"):
                source["path"] = str((folder / Path(source["path"]).expanduser()).resolve())
        for spec in raw["models"].values():
            # A model folder beside the recipe; a hub id that only looks like a path stays as it is.
            if spec and spec["name"].startswith((".", "~")):
                spec["name"] = str((folder / Path(spec["name"]).expanduser()).resolve())
        return Recipe.model_validate(raw)

    def to_yaml(self) -> str:
        """The resolved recipe as YAML; loading it gives an equal recipe."""
        import yaml

        return str(yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=100))

    def _table(self) -> Table:
        from optimsyn.report.reprs import recipe_table

        return recipe_table(self)

    def __repr__(self) -> str:
        return f"Recipe({self.name!r}, fingerprint {self.fingerprint})"

    @property
    def fingerprint(self) -> str:
        """Ten hex digits that change when anything that changes results changes.

        Limits, concurrency, batches and a look at the reward do not.
        """
        looks = {"look", "on_noise"}
        raw = self.model_dump(mode="json", exclude={"description": True, "limits": True, "reward": looks})
        documents, questions = raw["documents"], raw["questions"]
        _without_what_says_nothing(self.documents, documents, ("on_error", "limits", "on_injection"))
        for place, source in (
            (documents["source"], self.documents.source),
            (questions["validation"], self.questions.validation),
            (questions["test"], self.questions.test),
        ):
            if source is not None:
                _without_what_says_nothing(source, place, ("encoding", "file_mb", "follow_links", "text_suffixes"))
        for spec in raw["models"].values():
            if spec:
                for field in ("concurrency", "timeout_s", "retries", "api_key_env", "prices", "batch", "batch_hours"):
                    spec.pop(field)
                # Fields that came later, where they say nothing: a recipe without them keeps its fingerprint.
                later = {**SERVICE_ONLY, "chat_template_kwargs": None, "max_tokens_again": None}
                for field, neutral in later.items():
                    if field in spec and spec[field] == neutral:
                        spec.pop(field)
        # Before there was a choice, gradients of questions were of length 1.
        if raw["influence"]["question_gradients"] == "unit":
            raw["influence"].pop("question_gradients")
        return hashlib.sha256(json.dumps(raw, sort_keys=True).encode()).hexdigest()[:10]

    @property
    def variants(self) -> tuple[Variant, ...]:
        """The variants that this recipe synthesizes, in order; a disabled optimiser has none."""
        on = {"optimized": self.optimizers.prompt.enabled, "policy": self.optimizers.policy.enabled}
        return tuple(v for v in VARIANTS if on.get(v, True))

    @property
    def dataset_variant(self) -> Variant:
        """The variant that becomes the final dataset."""
        return self.variants[-1] if self.synthesis.dataset == "auto" else self.synthesis.dataset

    @property
    def key_variables(self) -> tuple[str, ...]:
        """The environment variables that the models take their keys from, as far as the recipe names them."""
        specs = (self.models.generator, self.models.rubric, self.models.reflection)
        return tuple(spec.api_key_env for spec in specs if spec is not None and spec.api_key_env is not None)

    @model_validator(mode="before")
    @classmethod
    def _no_keys(cls, raw: Any) -> Any:
        # Before the fields are looked at: what is wrong with one is told together with its value.
        secret = find_secret(raw)
        if secret is not None:
            raise ValueError(f"{secret}, and a recipe is written into its run; {KEY_CURE}")
        return raw

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.synthesis.dataset != "auto" and self.synthesis.dataset not in self.variants:
            raise ValueError(
                f"synthesis.dataset is {self.synthesis.dataset!r}, but its optimiser is disabled; "
                f"enable it or choose one of {', '.join(self.variants)}"
            )
        if self.models.target.api_base is not None:
            raise ValueError(
                "models.target: influence needs gradients, so the target must be `embedded`, a hub id or a local "
                "folder; remove its api_base"
            )
        if self.influence.method == "twin" and self.models.target.dtype in ("bfloat16", "float16"):
            raise ValueError(twin_problem(self.models.target.dtype))
        if self.optimizers.policy.enabled and self.models.rubric.provider == "litellm":
            raise ValueError(
                f"models.rubric is {self.models.rubric.name!r}, whose weights cannot be trained: name a local or "
                "hub model or `embedded`, or set optimizers.policy.enabled: false"
            )
        if self.reward.given == "judged" and (not self.influence.is_derivative or self.warm_up.checkpoints > 1):
            raise ValueError(
                f"reward.given: judged needs a score that is linear in a pair's gradient, at one checkpoint, which "
                f"{self.influence.estimator} with {self.influence.normalization} at {self.warm_up.checkpoints} is not; "
                "set influence.estimator to adam_linear (or sgd), influence.normalization to dot and "
                "warm_up.checkpoints to 1, or reward.given to nothing"
            )
        if self.warm_up.checkpoints > self.warm_up.most_checkpoints:
            looks = "warm_up.steps"
            if self.warm_up.steps is None:
                looks = f"the {self.warm_up.most_checkpoints} looks of the shortest warm-up; lower warm_up.every"
            raise ValueError(f"warm_up.checkpoints is larger than {looks}")
        return self
