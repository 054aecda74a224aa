"""The section `warm_up` of a recipe."""

from __future__ import annotations

from pydantic import Field

from optimsyn.recipe.sections.models import Section

# What writes a handful of pairs may try so many candidates: of a small model most may be invalid.
CANDIDATES_OF_A_HANDFUL = 48
# Further candidates of a first draft with too few valid ones.
_MORE_DRAFTS = 12


class WarmUp(Section):
    """Warm-up of the LoRA target on first-draft pairs, which gives the influence its Adam moments."""

    pairs: int = Field(24, ge=2, description="First-draft pairs to write.")
    fraction: float = Field(
        1.0, gt=0, le=1, description="Share of them to train on (the paper: 0.1 of a large first draft)."
    )
    steps: int | None = Field(
        None,
        ge=1,
        description="AdamW steps. null: until the form of an answer is learned, by the loss of its end on the "
        "validation questions, and only while held-out pairs improve.",
    )
    max_steps: int = Field(24, ge=1, description="Most steps if `steps` is null.")
    every: int = Field(
        4, ge=1, description="Steps between two looks at held-out losses, and steps to try a learning rate for."
    )
    held_out: float = Field(
        0.2,
        ge=0,
        le=0.5,
        description="Share of the first-draft pairs that is held out of training, if steps or lr is null.",
    )
    batch_size: int = Field(4, ge=1, description="Pairs a step.")
    lr: float | None = Field(
        None, gt=0, description="Learning rate. null: the best of half, once and twice `fine_tune.lr`, each tried."
    )
    checkpoints: int = Field(1, ge=1, description="Checkpoints spread over the steps, the last one always.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradients are clipped to this norm.")

    @property
    def most_drafts(self) -> int:
        """The most candidates that are written while too few are valid to train on."""
        return max(self.pairs + _MORE_DRAFTS, CANDIDATES_OF_A_HANDFUL)

    @property
    def fewest_steps(self) -> int:
        """The steps of the shortest warm-up that these settings allow."""
        return self.steps if self.steps is not None else least_warm_up_steps(self.max_steps, self.every)

    @property
    def most_checkpoints(self) -> int:
        """The most checkpoints of that warm-up: one a step, or one a look."""
        return self.steps if self.steps is not None else -(-self.fewest_steps // self.every)


def least_warm_up_steps(max_steps: int, every: int) -> int:
    """Fewest steps of a warm-up that stops by itself: the first look after ten steps.

    Adam's first moment averages over 1 / (1 - 0.9) = 10 steps; earlier, both moments average over too few batches.
    """
    return min(max_steps, every * -(-10 // every))
