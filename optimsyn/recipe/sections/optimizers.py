"""The section `optimizers` of a recipe."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from optimsyn.base.extensions import POLICY_OPTIMIZERS, PROMPT_OPTIMIZERS, reference_to
from optimsyn.recipe.sections.models import Lora, Section

# The most texts that miprov2 tries: dspy's heaviest setting.
MIPRO_TEXTS = 18


def _named(field: str) -> BeforeValidator:
    """Lets a field that names a function take the function itself."""

    def name(value: Any) -> Any:
        return reference_to(value, field) if callable(value) else value

    return BeforeValidator(name)


class PromptOptimizer(Section):
    """The optimiser of the guiding text."""

    enabled: bool = Field(True, description="False: the recipe's guiding text stays as it is.")
    method: Annotated[str, _named(PROMPT_OPTIMIZERS.field)] = Field(
        "gepa",
        description="gepa, miprov2 (needs models.reflection), or one of your own: package.module:name, or the name "
        "that it is registered under.",
    )
    metric_calls: int = Field(40, ge=4, description="Judged pairs that the search may spend.")
    minibatch: int = Field(4, ge=1, description="Passages that gepa first tries a candidate on.")
    passages: int = Field(8, ge=2, description="Passages that candidates are compared on.")


class PolicyOptimizer(Section):
    """The optimiser of the rubric model's weights."""

    enabled: bool = Field(True, description="False: the rubric model is not trained.")
    method: Annotated[str, _named(POLICY_OPTIMIZERS.field)] = Field(
        "grpo",
        description="grpo, or one of your own: package.module:name, or the name that it is registered under.",
    )
    steps: int = Field(4, ge=1, description="Steps of the training.")
    group_size: int = Field(4, ge=2, description="Rubrics per passage that are compared with each other (G).")
    passages_per_step: int = Field(2, ge=1, description="Groups in one step.")
    temperature: float = Field(0.9, gt=0, le=2, description="Sampling temperature of the rubrics.")
    lr: float = Field(1e-5, gt=0, description="Learning rate.")
    kl: float = Field(0.02, ge=0, description="Weight of the KL term against the untrained policy (beta).")
    max_tokens: int = Field(110, ge=16, description="Longest sampled rubric, in tokens.")
    save_every: int = Field(1, ge=1, description="Steps between resumable checkpoints.")
    lora: Lora = Field(
        Lora(r=8, alpha=16),
        description="The adapter that is trained. The embedded model's own, of rank 16, is trained further instead.",
    )


class Optimizers(Section):
    """Which optimisers run, with which method and budget."""

    prompt: PromptOptimizer = PromptOptimizer()
    policy: PolicyOptimizer = PolicyOptimizer()
