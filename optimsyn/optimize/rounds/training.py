"""The training of one round with TRL: fine-tuning on the best rubrics, or preferences between rubrics."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from optimsyn.base.errors import ModelError
from optimsyn.base.seeds import derive_seed
from optimsyn.optimize.rounds.judged import Rubric, best, preferences
from optimsyn.target.adapter import in_own_dtype

if TYPE_CHECKING:
    from optimsyn.optimize.policy_task import PolicyTask

# Rubrics, or pairs of them, in one optimizer step.
_BATCH = 4
_NO_LOSS = -100


@dataclass(frozen=True)
class Trained:
    """A round's training.

    Attributes:
        examples: Rubrics, or pairs of them, that were trained on; 0: there was nothing to learn, and nothing was done.
        loss: Its mean loss.
    """

    examples: int
    loss: float | None = None


Learn = Callable[["PolicyTask", Any, Any, Sequence[Sequence[Rubric]]], Trained]
"""Trains a peft model in place, given the task, the model, its tokenizer, and the rubrics of each passage."""


def on_the_best(task: PolicyTask, model: Any, tokenizer: Any, passages: Sequence[Sequence[Rubric]]) -> Trained:
    """Expert iteration: cross-entropy of the rubrics above their passage's mean, without that of the prompt."""
    from datasets import Dataset
    from trl import SFTConfig

    rows = [
        {
            "input_ids": rubric.prompt + rubric.completion,
            "labels": [_NO_LOSS] * len(rubric.prompt) + rubric.completion,
        }
        for rubric in best(passages)
    ]
    if not rows:
        return Trained(0)
    arguments = _arguments(SFTConfig, task, model, dataset_kwargs={"skip_prepare_dataset": True})
    with in_own_dtype(model):
        trainer = sft_trainer(on_cpu=arguments.use_cpu)(
            model=model, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
        )
    return _train(trainer, len(rows))


def sft_trainer(*, on_cpu: bool) -> Any:
    """TRL's class; on a CPU, where it puts every token through the output layer, one that puts only labels there."""
    from trl import SFTTrainer

    from optimsyn.target.label_loss import LabelLoss

    class OnLabels(SFTTrainer):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._label_loss = LabelLoss(self.model.get_base_model())

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            losses = self._label_loss.tokens(inputs["input_ids"], inputs["labels"])[0]
            return losses.sum() / (len(losses) if num_items_in_batch is None else num_items_in_batch)

    return OnLabels if on_cpu else SFTTrainer


def on_preferences(task: PolicyTask, model: Any, tokenizer: Any, passages: Sequence[Sequence[Rubric]]) -> Trained:
    """DPO on pairs of rubrics of a passage; the reference is the policy as it is now."""
    from datasets import Dataset
    from trl import DPOConfig

    rows = [
        {"prompt_ids": better.prompt, "chosen_ids": better.completion, "rejected_ids": worse.completion}
        for better, worse in preferences(passages)
    ]
    if not rows:
        return Trained(0)
    arguments = _arguments(DPOConfig, task, model, beta=task.config.kl, disable_dropout=task.config.lora.dropout == 0)
    with in_own_dtype(model):
        trainer = dpo_trainer(on_cpu=arguments.use_cpu)(
            model=model, args=arguments, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
        )
    try:
        return _train(trainer, len(rows))
    finally:
        model.delete_adapter("ref")  # TRL's copy of the start


def dpo_trainer(*, on_cpu: bool) -> Any:
    """TRL's class, for rubrics as tokens; on a CPU one that puts only labels through the output layer."""
    import torch
    from trl import DPOTrainer
    from trl.trainer.utils import use_adapter

    from optimsyn.target.label_loss import LabelLoss

    class TokensAsSampled(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *others: Any) -> Any:
            # TRL would write the rubrics as text again, and lose which token ended them.
            return dataset

    class OnLabels(TokensAsSampled):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._label_loss = LabelLoss(self.model.get_base_model())

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            """Equation 7 of Rafailov et al. 2023 (arXiv 2305.18290)."""
            with torch.no_grad(), use_adapter(self.model, "ref"):
                reference = self._log_likelihoods(inputs)
            better, worse = (self._log_likelihoods(inputs) - reference).chunk(2)
            return -torch.nn.functional.logsigmoid(self.beta * (better - worse)).mean()

        def _log_likelihoods(self, inputs: Any) -> Any:
            """Of each rubric given its prompt, [2 B]: first the better ones of all pairs, then the worse ones."""
            ids = inputs["input_ids"]
            losses, rows, _ = self._label_loss.tokens(ids, ids.masked_fill(inputs["completion_mask"] == 0, _NO_LOSS))
            return -losses.new_zeros(len(ids)).index_add(0, rows, losses)

    return OnLabels if on_cpu else TokensAsSampled


def _train(trainer: Any, examples: int) -> Trained:
    from transformers.trainer_callback import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    loss = float(trainer.train().training_loss)
    if not math.isfinite(loss):
        raise ModelError(f"policy training diverged (its loss is {loss}); lower optimizers.policy.lr")
    return Trained(examples, loss)


def _arguments(kind: Any, task: PolicyTask, model: Any, **own: Any) -> Any:
    import torch

    on_cpu = next(model.parameters()).device.type == "cpu"
    arguments = kind(
        output_dir=str(task.checkpoints / "trainer"),
        num_train_epochs=task.config.epochs,
        per_device_train_batch_size=_BATCH,
        max_length=None,
        learning_rate=task.config.lr,
        lr_scheduler_type="constant",
        seed=derive_seed(task.seed, "rounds"),
        use_cpu=on_cpu,
        bf16=not on_cpu and model.dtype == torch.bfloat16,
        router_aux_loss_coef=0.0,
        gradient_checkpointing=not on_cpu,
        dataloader_pin_memory=not on_cpu,
        # A round's training is repeated after a kill: it is short beside the sampling and judging, which are kept.
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        log_level="error",
        disable_tqdm=True,
        **own,
    )
    if arguments.n_gpu > 1:
        # One process drives one GPU; otherwise Trainer wraps the model in DataParallel, which TRL refuses.
        arguments._n_gpu = 1
    return arguments
