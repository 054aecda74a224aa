"""The section `models` of a recipe: names, services, adapters."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
    model_validator,
)

from optimsyn.base.errors import OptimsynError, RecipeError
from optimsyn.base.extensions import GENERATORS
from optimsyn.base.secrets.redaction import KEY_CURE, find_secret, remember_variables
from optimsyn.base.suggestions import nearest_value
from optimsyn.recipe.checked import Checked
from optimsyn.recipe.model_names import LITELLM_PREFIXES, Provider, meant_embedded, provider_of
from optimsyn.recipe.sections.parts import name_of

# Chat templates know one of these names and ignore the other.
NO_THINKING: dict[str, Any] = {"enable_thinking": False, "thinking": False}


class Section(Checked):
    """Base of every section: unknown keys and infinite numbers refused, frozen after loading."""

    refused_as: ClassVar[type[OptimsynError]] = RecipeError
    changed_by: ClassVar[str] = 'make another recipe with changed(recipe, {"field": value})'

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, hide_input_in_errors=True, allow_inf_nan=False
    )


class Extended(Section):
    """A section with fields of a later version, which are written only where they are set.

    So recipes and runs from before keep their fingerprint and everything that is kept under it.
    """

    later: ClassVar[tuple[str, ...]]

    @model_serializer(mode="wrap")
    def _without_later(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written: dict[str, Any] = write(self)
        for name in self.later:
            if getattr(self, name) == type(self).model_fields[name].default:
                written.pop(name, None)
        return written


def as_name(value: Any) -> Any:
    """A model from its bare name or object."""
    if isinstance(value, str):
        return {"name": value}
    return {"plugin": value} if callable(value) or hasattr(value, "complete") else value


def _as_judge(value: Any) -> Any:
    value = as_name(value)
    return {"temperature": 0.0, **value} if isinstance(value, dict) else value


class Prices(Section):
    """A service's prices for a million tokens, in US dollars."""

    input: float = Field(..., ge=0, description="Price of the prompt.")
    output: float = Field(..., ge=0, description="Price of the reply, reasoning included.")
    cached_input: float | None = Field(
        None, ge=0, description="Price of the part of a prompt that the service has cached; null: as `input`."
    )


# Keys of a request that `extra` may not set, and the recipe field that sets them.
_SET_ELSEWHERE = {
    "model": "name",
    "messages": "guiding_text",
    "temperature": "temperature",
    "top_p": "top_p",
    "max_tokens": "max_tokens",
    "max_completion_tokens": "max_tokens",
    "reasoning_effort": "reasoning_effort",
    "chat_template_kwargs": "chat_template_kwargs",
    "seed": "send_seed",
    "response_format": "structured_output",
    "api_key": "api_key_env",
    "api_base": "api_base",
    "base_url": "api_base",
    "timeout": "timeout_s",
    "num_retries": "retries",
    "max_retries": "retries",
    "drop_params": None,
    "extra_body": None,
    "stop": None,
    "stream": None,
    "n": None,
    "tools": None,
    "functions": None,
}
# Fields for services only, with the neutral value.
SERVICE_ONLY: dict[str, Any] = {
    "top_p": None,
    "send_seed": True,
    "limit_name": None,
    "reasoning_effort": None,
    "base_model": None,
    "prices": None,
    "extra": {},
}
# Newer fields of models on this machine.
LATER_MODEL_FIELDS = ("quantization", "device_map")
# Fields for custom generators only, with the neutral value; and those that custom generators do not get.
OWN_ONLY: dict[str, Any] = {"plugin": None, "settings": {}}
_NOT_OWN: dict[str, Any] = {
    **{name: value for name, value in SERVICE_ONLY.items() if name not in ("send_seed", "prices")},
    "api_base": None,
    "batch": False,
    "chat_template_kwargs": None,
    "revision": None,
}


class ModelSpec(Extended):
    """A language model: `embedded`, any LiteLLM name (`openai/gpt-6-luna`), a hub id or a local folder."""

    later: ClassVar[tuple[str, ...]] = LATER_MODEL_FIELDS

    name: str = Field(
        ...,
        min_length=1,
        description="`embedded`, a LiteLLM name, a hub id or a folder. With a `plugin`: its display name; by default "
        "the plugin's reference.",
    )
    plugin: str | None = Field(
        None,
        description="A generator of your own in place of a named model: `package.module:name`, or a registered name.",
    )
    settings: dict[str, Any] = Field(
        default_factory=dict, description="Keyword arguments for the class that `plugin` names."
    )
    api_base: str | None = Field(None, description="Address of an OpenAI-compatible server.")
    api_key_env: str | None = Field(
        None, description="Environment variable that holds the key; null: the provider's usual one."
    )
    temperature: float | None = Field(
        0.8, ge=0, le=2, description="Sampling temperature; 0 is greedy. null: not sent, the service's default."
    )
    top_p: float | None = Field(
        None, gt=0, le=1, description="Sample from the likeliest tokens of this total probability; null: not sent."
    )
    max_tokens: int = Field(400, ge=16, description="Longest reply in tokens, reasoning included.")
    max_tokens_again: int | None = Field(
        None,
        ge=16,
        description="Longest reply, in tokens, for the one retry of a reply that was cut; null: twice max_tokens; "
        "equal to max_tokens: no retry.",
    )
    limit_name: Literal["max_tokens", "max_completion_tokens", "none"] | None = Field(
        None,
        description="The service's name for max_tokens; none: it is not sent. null: the one known for the model, and "
        "the other one when that is refused.",
    )
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = Field(
        None, description="How much a reasoning model may reason; null: not sent, the model's default."
    )
    chat_template_kwargs: dict[str, Any] | None = Field(
        None,
        description="Passed to the model's chat template, such as `{enable_thinking: true}`; null: thinking is off for "
        "a local model.",
    )
    send_seed: bool = Field(True, description="Send a sampling seed with each request, where the service takes one.")
    concurrency: int = Field(4, ge=1, le=512, description="Concurrent requests.")
    timeout_s: float = Field(120, gt=0, description="Seconds to wait for one reply.")
    retries: int = Field(4, ge=0, description="Retries after a rate limit, a time-out or a server error.")
    batch: bool = Field(
        False,
        description="Send first drafts and synthesis through the provider's batch API, at half the price and within a "
        "day; OpenAI and Anthropic.",
    )
    batch_hours: float = Field(
        25, gt=0, description="Longest wait for one batch, in hours; running again continues waiting."
    )
    structured_output: bool | None = Field(
        None, description="Send a JSON schema with each request; null: yes where the model is known to honour it."
    )
    base_model: str | None = Field(
        None, description="LiteLLM's name of the model behind a server or an alias, for its abilities and prices."
    )
    prices: Prices | None = Field(
        None, description="USD for a million tokens, `{input: 0.1, output: 0.5}`; null: as LiteLLM lists them."
    )
    extra: dict[str, Any] = Field(
        default_factory=dict, description="Further fields of each request, passed on unchanged (extra_body)."
    )
    revision: str | None = Field(None, description="Commit or tag of a hub model.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Number format of a local model's weights."
    )
    quantization: Literal["4bit", "8bit"] | None = Field(
        None,
        description="Load a local model's weights in 4 bits (NF4, as in QLoRA) or 8 bits (LLM.int8) with bitsandbytes, "
        "the extra `quantized`; an adapter on them is trained as usual.",
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps (local models only).")
    device_map: Literal["auto"] | None = Field(
        None,
        description="auto: the layers of a local model are spread over all GPUs of this machine (accelerate); on a "
        "machine without, they are on the CPU.",
    )

    @model_validator(mode="before")
    @classmethod
    def _named_by_its_plugin(cls, raw: Any) -> Any:
        if not isinstance(raw, dict) or raw.get("plugin") is None:
            return raw
        plugin = name_of(raw["plugin"], GENERATORS)
        return {"name": plugin, **raw, "plugin": plugin}

    @model_validator(mode="after")
    def _spelled(self) -> ModelSpec:
        if self.plugin is None and self.api_base is None and (problem := meant_embedded(self.name)) is not None:
            raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _own_fields(self) -> ModelSpec:
        if self.plugin is None:
            if self.settings:
                raise ValueError(
                    f"settings are for a generator of your own, and {self.name!r} is none; name its plugin"
                )
            return self
        if self.name == "embedded" or ("/" in self.name and self.name.split("/")[0] in LITELLM_PREFIXES):
            raise ValueError(
                f"name is {self.name!r}, which is another model, and {self.plugin} a generator of your own; remove one "
                "of them, or give yours a name of its own"
            )
        for field, neutral in _NOT_OWN.items():
            if getattr(self, field) != neutral:
                raise ValueError(f"{field} is not for a generator of your own ({self.plugin}); use its settings")
        return self

    @model_validator(mode="after")
    def _no_secret(self) -> ModelSpec:
        if self.api_key_env is not None and not self.api_key_env.replace("_", "").isalnum():
            raise ValueError("`api_key_env` names an environment variable; keys themselves never go in a recipe")
        if self.api_key_env is not None:
            remember_variables([self.api_key_env])
        for key in self.extra:
            if key in _SET_ELSEWHERE:
                field = _SET_ELSEWHERE[key]
                cure = f"set the field `{field}`" if field else "optimsyn sets it itself"
                raise ValueError(f"extra.{key} cannot be passed on; {cure}")
        for field, passed in (
            ("extra", self.extra),
            ("chat_template_kwargs", self.chat_template_kwargs),
            ("settings", self.settings),
        ):
            secret = find_secret(passed, field) if passed else None
            if secret is not None:
                raise ValueError(f"{secret}, and a recipe is written into its run; {KEY_CURE}")
        return self

    @model_validator(mode="after")
    def _service_fields(self) -> ModelSpec:
        if self.provider in ("litellm", "own"):
            return self
        for field, neutral in SERVICE_ONLY.items():
            if getattr(self, field) != neutral:
                self._refuse_misspelled()
                raise ValueError(f"{field} is for services, and {self.name!r} runs on this machine; remove it")
        if self.temperature is None:
            self._refuse_misspelled()
            raise ValueError(f"temperature: null leaves it to a service, and {self.name!r} is none; give a number")
        return self

    def _refuse_misspelled(self) -> None:
        """Raises a ValueError if a misspelled provider made a service look like a local model."""
        if self.provider != "local":
            return
        from optimsyn.recipe.known_models import misspelled

        if (problem := misspelled(self.name)) is not None:
            raise ValueError(problem)

    @model_validator(mode="after")
    def _loaded_here(self) -> ModelSpec:
        for field in LATER_MODEL_FIELDS:
            value = getattr(self, field)
            if value is not None and self.provider != "local":
                self._refuse_misspelled()
                raise ValueError(
                    f"{field} is for local models (hub id or folder), and {self.name!r} is none; remove it"
                )
        if self.device_map is not None and self.device != "auto":
            raise ValueError(
                f"device_map spreads the model over all devices, and device names one ({self.device}); remove one"
            )
        return self

    @model_validator(mode="after")
    def _known_device(self) -> ModelSpec:
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", self.device):
            hint = nearest_value(self.device, ("auto", "cpu", "mps", "cuda"))
            raise ValueError(
                f"device is {self.device!r}; it must be auto, cpu, mps, cuda or cuda:1 (the second GPU){hint}"
            )
        return self

    @property
    def template_arguments(self) -> dict[str, Any]:
        """Arguments for a local model's chat template; thinking is off unless the recipe turns it on."""
        return {**NO_THINKING, **(self.chat_template_kwargs or {})}

    @property
    def provider(self) -> Provider:
        """The model's provider: `own` with a plugin, else decided by the name."""
        if self.plugin is not None:
            return "own"
        return provider_of(self.name, has_api_base=self.api_base is not None)


class Lora(Extended):
    """The low-rank adapter (peft) of the target or the policy."""

    later: ClassVar[tuple[str, ...]] = ("exclude_modules", "rslora", "dora")

    r: int = Field(8, ge=1, description="Rank.")
    alpha: int = Field(16, ge=1, description="The adapter is scaled by alpha / r.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout in training; off in scoring.")
    target_modules: str | tuple[str, ...] = Field(
        ("q_proj", "k_proj", "v_proj", "o_proj"),
        description="Names of the linear layers with an adapter: a list of last parts of their names; or a string, "
        "which is a regular expression for whole names, or `all-linear`. In a multimodal model only those that text "
        "passes.",
    )
    exclude_modules: str | tuple[str, ...] = Field(
        (), description="Linear layers without one after all, written like `target_modules`."
    )
    rslora: bool = Field(False, description="Scale by alpha / √r instead (rank-stabilised LoRA).")
    dora: bool = Field(
        False, description="DoRA, with a trained length of each weight's rows; for the rubric model only."
    )

    @field_validator("target_modules", "exclude_modules")
    @classmethod
    def _a_pattern(cls, value: str | tuple[str, ...], info: ValidationInfo) -> str | tuple[str, ...]:
        if isinstance(value, str):
            try:
                re.compile(value)
            except re.error as error:
                raise ValueError(
                    f"{value!r} is not a regular expression ({error}); write a list of names for names of layers"
                ) from None
        if info.field_name == "target_modules" and not value:
            raise ValueError("no layer is named, so nothing would be trained; name some, such as [q_proj, v_proj]")
        return value


QuestionGradients = Literal["plain", "unit", "probability"]


class CountedTokens(Section):
    """Which tokens of an answer count in its loss, and how they are reduced.

    Training learns every token, also the one that ends the text. The target learns that one within a few steps, from
    any pair, and it says nothing about what the target knows (see docs/influence.md).
    """

    end_of_questions: float = Field(
        0.0, ge=0, le=1, description="Weight of the token that ends an expert's answer; the others have 1."
    )
    end_of_pairs: float = Field(
        0.0,
        ge=0,
        le=1,
        description="The same for judged pairs. 1: as in training, which ranks a little better if the warm-up has "
        "learned the form well; if not, the reward is mostly about that token.",
    )
    reduction: Literal["mean", "root", "sum"] = Field(
        "mean",
        description="mean: a long answer counts as much as a short one. sum: every token counts the same. root: the "
        "sum divided by the root of their number, between the two.",
    )


class TargetSpec(ModelSpec):
    """The model that the data is for; always local, because its gradients are the reward."""

    @property
    def provider(self) -> Provider:
        """`embedded` or `local`: influence needs the target's gradients."""
        return "embedded" if self.name == "embedded" else "local"

    @model_validator(mode="after")
    def _has_weights(self) -> TargetSpec:
        if self.plugin is not None:
            raise ValueError("plugin is for models that write; influence needs the target's gradients: give its `name`")
        return self

    @model_validator(mode="after")
    def _can_be_scored(self) -> TargetSpec:
        if self.lora.dora and not self.full_weights:
            raise ValueError(
                "lora.dora: the length of DoRA's rows is no linear layer, and influence is exact for linear layers "
                "only; set it to false (lora.rslora works), and use DoRA when you train on the finished dataset"
            )
        if self.quantization is not None and self.full_weights:
            raise ValueError(
                f"full_weights: the weights are quantised ({self.quantization}), so they cannot be trained; remove "
                "quantization, or train a LoRA"
            )
        return self

    lora: Lora = Lora()
    full_weights: tuple[str, ...] = Field(
        (),
        description="Train the full weights of these linear layers instead of a LoRA: regular expressions for the "
        "whole module name or its end after a dot (`down_proj`).",
    )
    max_length: int = Field(640, ge=32, description="Longest prompt plus answer, in tokens; contexts are cut to fit.")


ModelField = Annotated[ModelSpec, BeforeValidator(as_name)]


class Models(Section):
    """The three roles. A bare string is the model's name with defaults."""

    generator: ModelField = ModelSpec(name="embedded")
    rubric: ModelField = ModelSpec(name="embedded", max_tokens=160)
    target: Annotated[TargetSpec, BeforeValidator(as_name)] = TargetSpec(name="embedded")
    reflection: Annotated[ModelSpec | None, BeforeValidator(as_name)] = Field(
        None,
        description="Writes guiding texts for gepa and miprov2; null: gepa builds them from evidence.",
    )
    judge: Annotated[ModelSpec | None, BeforeValidator(_as_judge)] = Field(
        None,
        description="Judges pairs as `checks.judge` says, at temperature 0 if none is given; null: nobody does.",
    )
    author: Annotated[ModelSpec | None, BeforeValidator(as_name)] = Field(
        None,
        description="Calls the tools of the author, as `author` says; null: the rubric model does.",
    )

    @property
    def writers(self) -> dict[str, ModelSpec]:
        """The models that write text, by role."""
        roles = {
            "generator": self.generator,
            "rubric": self.rubric,
            "reflection": self.reflection,
            "judge": self.judge,
            "author": self.author,
        }
        return {role: spec for role, spec in roles.items() if spec is not None}
