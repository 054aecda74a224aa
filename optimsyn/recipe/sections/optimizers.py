"""The section `optimizers` of a recipe."""

from __future__ import annotations

from pydantic import Field

from optimsyn.recipe.sections.models import Lora, Section


class PromptOptimizer(Section):
    """GEPA on the guiding text."""

    enabled: bool = Field(True, description="False: the recipe's guiding text stays as it is.")
    metric_calls: int = Field(40, ge=4, description="Judged pairs that the search may spend.")
    minibatch: int = Field(4, ge=1, description="Passages a candidate is first tried on.")
    passages: int = Field(8, ge=2, description="Passages that candidates are compared on.")


class PolicyOptimizer(Section):
    """GRPO on the rubric model."""

    enabled: bool = Field(True, description="False: the rubric model is not trained.")
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
