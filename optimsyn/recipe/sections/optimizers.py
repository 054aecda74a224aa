"""The section `optimizers` of a recipe."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, Field, model_validator

from optimsyn.base.extensions import POLICY_OPTIMIZERS, PROMPT_OPTIMIZERS
from optimsyn.recipe.sections.models import Lora, Section
from optimsyn.recipe.sections.parts import named

# The most texts that miprov2 tries: dspy's heaviest setting.
MIPRO_TEXTS = 18
# Newer fields of the policy: a recipe without them keeps its fingerprint, and its trainings resume.
LATER_PROMPT_FIELDS = ("method", "program", "confirm_passages", "patience")
# A mean of fewer differences has no interval worth the name.
FEWEST_CONFIRMED = 4
# The share of the judged pairs that a confirmation takes by itself is two of these: the recipe's text and the new one.
_CONFIRMED_SHARE = 8
# Proposals to compare in full that the budget has room for, where they are made on passages of their own.
_ROOM_TO_LEARN = 4
LATER_OPTIMIZERS_FIELDS = ("turns",)
LATER_POLICY_FIELDS = (
    *("method", "steps_ahead", "sampler", "vllm_url", "vllm_memory"),
    *("rounds", "epochs", "held_passages"),
    *("learn_from", "warm_up_again"),
)
# Methods that train in rounds on rubrics judged before, and their learning rates; see docs/concepts/rubrics.md.
ROUND_METHODS = {"expert": 2e-4, "dpo": 5e-5}
_LR = 1e-5


def _several(value: Any) -> Any:
    """Lets a list of one be written without brackets."""
    return [value] if isinstance(value, str) else value


class PromptSplit(NamedTuple):
    """How many passages a prompt search uses for what.

    Attributes:
        compared: Those that every text is compared on.
        learned: Others, on which proposals are made and first tried; 0: on those for comparing.
        held: Others, on which the winner is confirmed; 0: it is not.
        searched: Judged pairs that the search may spend before that.
    """

    compared: int
    learned: int
    held: int
    searched: int


class PromptOptimizer(Section):
    """The optimiser of the guiding text."""

    enabled: bool = Field(True, description="False: the recipe's guiding text stays as it is.")
    method: Annotated[str, named(PROMPT_OPTIMIZERS)] = Field(
        "gepa",
        description="gepa, halving, miprov2 (needs models.reflection), or one of your own: package.module:name, or the "
        "name that it is registered under.",
    )
    program: Literal["rubric", "author"] = Field(
        "rubric",
        description="Whose text is improved. rubric: that of the rubric writer, for the variant optimized and the "
        "policy. author: that of the author, for the variant author (with author.text: optimized).",
    )
    metric_calls: int = Field(
        40,
        ge=4,
        description="Judged pairs that the search may spend; of program: author, rubrics, each of which may take "
        "author.steps replies and author.drafts judged pairs.",
    )
    minibatch: int = Field(4, ge=1, description="Passages that gepa and halving first try a candidate on.")
    passages: int = Field(8, ge=2, description="Passages that candidates are compared on.")
    confirm_passages: int | None = Field(
        None,
        ge=0,
        description="Further passages, which chose nothing, on which the winner has to beat the recipe's text before "
        "it replaces it. They cost two pairs each of metric_calls. null: as many as `passages`, but at most "
        f"metric_calls / {_CONFIRMED_SHARE}, and none where that is below {FEWEST_CONFIRMED}. 0: none.",
    )
    patience: int = Field(10, ge=1, description="gepa, halving: proposals in a row without a gain that end the search.")

    @model_validator(mode="after")
    def _confirmable(self) -> PromptOptimizer:
        if self.confirm_passages and self.confirm_passages < FEWEST_CONFIRMED:
            raise ValueError(
                f"confirm_passages: {self.confirm_passages} are too few for an interval; give {FEWEST_CONFIRMED} or "
                "more, 0 for none, or null"
            )
        if 4 * (self.confirm_passages or 0) > self.metric_calls:
            raise ValueError(
                f"confirm_passages: {self.confirm_passages} cost {2 * (self.confirm_passages or 0)} judged pairs, more "
                f"than half of metric_calls: {self.metric_calls}; raise metric_calls, or give fewer"
            )
        return self

    @property
    def for_writer(self) -> bool:
        """Whether a search improves the text of the rubric writer."""
        return self.enabled and self.program == "rubric"

    @property
    def for_author(self) -> bool:
        """Whether a search improves the text of the author."""
        return self.enabled and self.program == "author"

    def split(self, passages: int) -> PromptSplit:
        """How a run's passages are used."""

        def compared(searched: int) -> int:
            return max(1, min(self.passages, searched // 2, passages))

        wanted = self.confirm_passages
        if wanted is None:
            wanted = min(self.passages, self.metric_calls // _CONFIRMED_SHARE)
        size = compared(self.metric_calls - 2 * wanted)
        held = min(wanted, passages - size)
        if held < FEWEST_CONFIRMED:
            return PromptSplit(compared(self.metric_calls), 0, 0, self.metric_calls)
        searched = self.metric_calls - 2 * held
        tried = min(self.minibatch, size)
        enough = searched - size - 2 * tried >= _ROOM_TO_LEARN * (tried + size)
        learned = 2 * tried if enough and passages - size - held >= 2 * tried else 0
        return PromptSplit(size, learned, held, searched)


class PolicyOptimizer(Section):
    """The optimiser of the rubric model's weights.

    grpo has `steps` of `passages_per_step` groups. expert and dpo have `rounds` of `steps` times `passages_per_step`
    groups, and train after each round.
    """

    enabled: bool = Field(True, description="False: the rubric model is not trained.")
    method: Annotated[str, named(POLICY_OPTIMIZERS)] = Field(
        "grpo",
        description="grpo; expert (fine-tuning on the best rubrics of each passage); dpo (preferences: the "
        "best rubric of a passage before its worst); or one of your own: package.module:name, or the name that it is "
        "registered under.",
    )
    rounds: int = Field(2, ge=1, description="expert, dpo: rounds of sampling, judging and training, at most.")
    epochs: int = Field(3, ge=1, description="expert, dpo: passes over the judged rubrics in each round's training.")
    held_passages: int = Field(
        8,
        ge=0,
        description="expert, dpo: passages that are never trained on; the reward on them after each round decides "
        "whether to go on and which adapter is kept. At most half of the passages; 0: all rounds are made.",
    )
    learn_from: Annotated[tuple[Literal["author"], ...], BeforeValidator(_several)] = Field(
        (),
        description="expert, dpo: whose judged rubrics enter the pool beside the policy's own. author: those that the "
        "author drafts for author.lessons passages, before the first round.",
    )
    warm_up_again: bool = Field(
        False,
        description="expert, dpo: between rounds the target is warmed up anew, on first drafts under rubrics of the "
        "policy so far, and all rubrics so far are scored again by it. Costs warm_up.pairs drafts and a warm-up for "
        "each round after the first.",
    )
    steps: int = Field(4, ge=1, description="Steps of the training; of expert and dpo, of the sampling of one round.")
    group_size: int = Field(4, ge=2, description="Rubrics per passage that are compared with each other (G).")
    passages_per_step: int = Field(2, ge=1, description="Groups in one step.")
    temperature: float = Field(0.9, gt=0, le=2, description="Sampling temperature of the rubrics.")
    lr: float | None = Field(
        None, gt=0, description="Learning rate; null: the method's own, 1e-5 for grpo, 2e-4 for expert, 5e-5 for dpo."
    )
    kl: float = Field(
        0.02, ge=0, description="Weight of the KL term against the untrained policy (beta); of grpo and dpo."
    )
    max_tokens: int = Field(110, ge=16, description="Longest sampled rubric, in tokens.")
    save_every: int = Field(1, ge=1, description="Steps between resumable checkpoints.")
    steps_ahead: int = Field(
        1,
        ge=1,
        description="grpo: steps whose rubrics are sampled at once, in one larger batch; the later ones are then "
        "trained on rubrics of an earlier policy, with importance weights. `steps` is a multiple of it.",
    )
    sampler: Literal["transformers", "continuous", "vllm", "vllm_server"] = Field(
        "transformers",
        description="grpo: what samples the rubrics. continuous: transformers' continuous batching, on a GPU. vllm: "
        "vLLM on the GPU of the training; vllm_server: `trl vllm-serve` on another one. Both need the package vllm, "
        "and a training that was killed does not resume with the same rubrics.",
    )
    vllm_url: str | None = Field(None, description="Address of vllm_server, such as http://localhost:8000.")
    vllm_memory: float = Field(0.3, gt=0, lt=1, description="Share of the GPU's memory for the sampler vllm.")
    lora: Lora = Field(
        Lora(r=8, alpha=16),
        description="The adapter that is trained. The embedded model's own, of rank 16, is trained further instead.",
    )

    @property
    def learning_rate(self) -> float:
        """`lr`, or the method's own."""
        return self.lr if self.lr is not None else ROUND_METHODS.get(self.method, _LR)

    @property
    def in_rounds(self) -> bool:
        """Whether the method is one of `ROUND_METHODS`."""
        return self.method in ROUND_METHODS

    def held(self, passages: int) -> int:
        """How many of so many passages are never trained on."""
        return min(self.held_passages, passages // 2) if self.in_rounds else 0

    def judged(self, passages: int | None, *, drawn_again: float) -> int:
        """Rubrics that a training has judged.

        Args:
            passages: How many there are; None: as many as it wants.
            drawn_again: Share of the groups that are drawn twice, for methods in rounds.
        """
        many = 2 * self.held_passages + self.passages_per_step if passages is None else passages
        held = self.held(many)
        groups = self.steps * min(self.passages_per_step, many - held)
        if self.in_rounds:
            groups = round(groups * self.rounds * (1 + drawn_again)) + held * (self.rounds + 1)
        return groups * self.group_size

    @property
    def warm_ups(self) -> int:
        """How often the target is warmed up again, at most."""
        return self.rounds - 1 if self.warm_up_again else 0

    @model_validator(mode="after")
    def _consistent(self) -> PolicyOptimizer:
        if self.steps % self.steps_ahead:
            raise ValueError(f"steps: {self.steps} is no multiple of steps_ahead: {self.steps_ahead}")
        if self.warm_up_again and not (self.in_rounds and self.rounds > 1):
            raise ValueError(
                f"warm_up_again: the target is warmed up between rounds, and with method: {self.method}, rounds: "
                f"{self.rounds} there are none; choose expert or dpo with two rounds or more, or remove warm_up_again"
            )
        if (self.sampler == "vllm_server") != (self.vllm_url is not None):
            raise ValueError("sampler: vllm_server needs vllm_url, and only that; `trl vllm-serve` prints its address")
        return self


class Optimizers(Section):
    """Which optimisers run, with which method and budget."""

    prompt: PromptOptimizer = PromptOptimizer()
    policy: PolicyOptimizer = PolicyOptimizer()
    turns: int = Field(
        1,
        ge=1,
        le=2,
        description="1: the guiding text is searched, then the rubric model is trained under it. 2: then the text is "
        "searched once more, with the trained policy as the writer of rubrics, for another prompt.metric_calls.",
    )

    @property
    def searched_again(self) -> bool:
        """Whether the guiding text is searched once more after the training."""
        return self.turns > 1


def turn_problems(optimizers: Optimizers) -> list[str]:
    """What a second search of the guiding text lacks, a sentence each."""
    prompt, lacking = optimizers.prompt, []
    if not optimizers.searched_again:
        return []
    if not prompt.enabled:
        lacking.append("optimizers.prompt is disabled; enable it")
    elif prompt.for_author:
        lacking.append("optimizers.prompt.program is author, whose text is not the policy's; set program: rubric")
    if not optimizers.policy.enabled:
        lacking.append("optimizers.policy is disabled; enable it")
    return [
        f"optimizers.turns is 2, a search of the guiding text before and one after the policy's training, but {why}, "
        "or set optimizers.turns: 1"
        for why in lacking
    ]
