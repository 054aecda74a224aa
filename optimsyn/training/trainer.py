"""TRL's SFTTrainer with the target's own loss, quiet, and resumable without a network."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import Trainer, TrainerCallback
from trl import SFTTrainer

from optimsyn.base.errors import ModelError
from optimsyn.base.files import write_jsonl
from optimsyn.target.adapter import in_own_dtype
from optimsyn.target.encoding import Batch

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor
    from transformers import TrainerControl, TrainerState, TrainingArguments
    from trl import SFTConfig

    from optimsyn.target.target import Target


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps the libraries' developer warnings and progress bars out of notebooks."""
    import datasets
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), datasets.is_progress_bar_enabled()
    logging.set_verbosity_error()
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|trl|peft|accelerate)\b")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            datasets.enable_progress_bars()


class TargetTrainer(SFTTrainer):
    """Fine-tunes a target's adapter on tokenised samples."""

    def __init__(
        self, *, target: Target, args: SFTConfig, train_dataset: Dataset, callbacks: list[TrainerCallback]
    ) -> None:
        # With several visible GPUs, Trainer copies the model to all of them (DataParallel), which TRL refuses.
        # Reading `device` first makes the arguments count the GPUs, so that the count can be set.
        if args.device.type == "cuda":
            args._n_gpu = 1
        with in_own_dtype(target.model):
            super().__init__(
                model=target.model,
                args=args,
                train_dataset=train_dataset,
                processing_class=target.tokenizer,
                callbacks=callbacks,
            )
        self.target = target
        # SFTTrainer replaces the model's forward; the target's loss needs the original.
        target.model.get_base_model().__dict__.pop("forward", None)
        # Losses are means over samples: accumulated passes are averaged rather than weighted by their tokens.
        self.model_accepts_loss_kwargs = False

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Mean over samples of the mean over their answer tokens, from `Target.losses`.

        Raises:
            ModelError: The loss is not finite; names the step.
        """
        rows = list(range(len(inputs["input_ids"])))
        batch = Batch(rows, [f"row {row}" for row in rows], inputs["input_ids"], inputs["labels"])
        loss = self.target.losses(batch).mean()
        if not math.isfinite(float(loss.detach())):
            raise ModelError(
                f"fine-tuning: the loss of step {self.state.global_step + 1} is {float(loss.detach())}; lower "
                "fine_tune.lr or load the target in float32 or bfloat16"
            )
        return loss

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Linear warm-up, then linear decay, without a step of rate 0.

        The usual schedule starts at a learning rate of 0, which wastes one step of a short training.
        """
        scheduler: torch.optim.lr_scheduler.LRScheduler | None = getattr(self, "lr_scheduler", None)
        if scheduler is None:
            warm_up = int(self.args.get_warmup_steps(num_training_steps))

            def share(step: int) -> float:
                if step < warm_up:
                    return (step + 1) / (warm_up + 1)
                return max(0.0, (num_training_steps - step) / max(1, num_training_steps - warm_up))

            scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer or self.optimizer, share)
            self.lr_scheduler = scheduler
            self._created_lr_scheduler = True
        return scheduler

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs without SFTTrainer's token metrics, which only its own loss collects."""
        Trainer.log(self, logs, start_time)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        # Only the adapter: no tokenizer, and no request to the hub whether the vocabulary was resized.
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self.model.save_pretrained(str(folder), state_dict=state_dict, save_embedding_layers=False)
        torch.save(self.args, folder / "training_args.bin")

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # Skips SFTTrainer's method, which writes a model card beside every checkpoint.
        Trainer._save_checkpoint(self, model, trial)


class HistoryCallback(TrainerCallback):
    """Keeps `history.jsonl` up to date during training, and reports progress.

    The file is rewritten whole, so that a resumed training never repeats a row.
    """

    def __init__(self, path: Path, report: Callable[[int, int], None] | None = None) -> None:
        self.path = path
        self.report = report

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Writes the history."""
        write_jsonl(self.path, history_rows(state.log_history))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Reports progress."""
        if self.report is not None:
            self.report(state.global_step, state.max_steps)


def history_rows(log_history: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The trainer's log as rows of `history.jsonl`: step, loss, learning rate, gradient norm."""
    return [
        {"step": row["step"], "loss": row["loss"], "lr": row["learning_rate"], "grad_norm": row.get("grad_norm")}
        for row in log_history
        if "loss" in row
    ]
