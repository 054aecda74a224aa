"""Supervised fine-tuning of the target on pairs, with TRL.

The samples are tokenised by `Target.encode` and their loss is `Target.losses`, the same loss that influence
differentiates (the mean over samples of the mean over answer tokens). TRL's own loss weights long answers more and, on
a CPU, computes logits at every position.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimsyn.base.errors import ModelError
from optimsyn.base.files import write_json, write_jsonl
from optimsyn.base.identity import Identity
from optimsyn.data.chat import sample_of
from optimsyn.training.trainer import history_rows

if TYPE_CHECKING:
    from optimsyn.data.records import Pair, Question
    from optimsyn.recipe.recipe import TargetSpec
    from optimsyn.recipe.sections.evaluation import FineTune
    from optimsyn.target.encoding import Encoded
    from optimsyn.target.target import Target

ADAPTER = "adapter"
HISTORY = "history.jsonl"
MAX_GRAD_NORM = 1.0
"""Gradients of a batch are clipped to this norm."""
_DONE = "fine_tune.json"
_CHECKPOINTS = "checkpoints"
# Resumable checkpoints over one fine-tuning; each holds the adapter and its two Adam moments.
_SAVES = 8
# Rows of the history; longer trainings log every few steps.
_LOGS = 400
# Padded tokens in one forward pass; larger batches are accumulated.
TOKENS_AT_ONCE = 4096


def fine_tune(  # noqa: PLR0913 - the last two are keyword-only options, each with a default
    spec: TargetSpec,
    pairs: Sequence[Pair | Question],
    config: FineTune,
    folder: Path,
    seed: int,
    *,
    target: Target | None = None,
    report: Callable[[int, int], None] | None = None,
) -> Path:
    """Trains a fresh LoRA adapter of the target on pairs: AdamW without weight decay, linear warm-up and decay.

    A killed call continues at its last checkpoint and ends with the same adapter; a finished one with the same pairs,
    settings and seed returns at once.

    Args:
        spec: The target model.
        pairs: The pairs of one variant, or questions; at least one.
        config: Steps, batch size, learning rate and warm-up.
        folder: Receives `adapter/`, `history.jsonl` (step, loss, learning rate, gradient norm) and, while it runs,
            `checkpoints/`.
        seed: Seed of the adapter's start and of the order of the pairs.
        target: A freshly loaded target with an untrained adapter; None loads one.
        report: Called after each step with the step and the number of steps.

    Returns:
        The folder of the adapter, as peft saves it.

    Raises:
        ModelError: There are no pairs, a named pair cannot be trained on, or the loss is not finite.
    """
    if not pairs:
        raise ModelError(f"{folder}: there are no pairs to fine-tune on")
    folder.mkdir(parents=True, exist_ok=True)
    inputs, state = _inputs(spec, pairs, config, seed), _state(folder)
    begun = inputs.same_as(state, "inputs")
    if begun and state.get("finished") is True and (folder / ADAPTER).is_dir():
        return folder / ADAPTER
    if target is None:
        from optimsyn.target.target import Target as Loader

        target = Loader.load(spec, seed=seed)
    encoded = [target.encode(sample_of(pair)) for pair in pairs]
    if not begun:  # else the checkpoints of an interrupted training are kept
        for leftover in (ADAPTER, _CHECKPOINTS):
            shutil.rmtree(folder / leftover, ignore_errors=True)
        write_json(folder / _DONE, {**inputs.saved("inputs"), "finished": False})
    from optimsyn.training.trainer import quiet

    with quiet():
        _train(target, encoded, config, folder, seed, report)
    save_adapter(target, folder)
    write_json(folder / _DONE, {**inputs.saved("inputs"), "finished": True})
    shutil.rmtree(folder / _CHECKPOINTS, ignore_errors=True)
    # The trainer and its model refer to each other; a second model may not fit beside an uncollected one.
    del target
    gc.collect()
    return folder / ADAPTER


def training_set(pairs: Sequence[Pair | Question]) -> list[dict[str, Any]]:
    """All that the target sees of pairs, in order; equal ones give equal adapters."""
    return [sample_of(pair).model_dump(mode="json", exclude={"id"}) for pair in pairs]


def adopt(
    spec: TargetSpec, pairs: Sequence[Pair | Question], config: FineTune, folder: Path, seed: int, twin: Path
) -> Path:
    """Takes over the finished fine-tuning in another folder, of an equal `training_set`, settings and seed.

    Args:
        spec: The target model.
        pairs: The pairs of this folder's variant.
        config: As in `fine_tune`.
        folder: Receives copies of the adapter and its history.
        seed: As in `fine_tune`.
        twin: The folder of the finished fine-tuning.

    Returns:
        The folder of the adapter.
    """
    inputs, state = _inputs(spec, pairs, config, seed), _state(folder)
    if inputs.same_as(state, "inputs") and state.get("finished") is True and (folder / ADAPTER).is_dir():
        return folder / ADAPTER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copytree(twin / ADAPTER, folder / ADAPTER)
    shutil.copyfile(twin / HISTORY, folder / HISTORY)
    # Last, so that a torn copy is not taken for a whole one.
    write_json(folder / _DONE, {**inputs.saved("inputs"), "finished": True})
    return folder / ADAPTER


def _inputs(spec: TargetSpec, pairs: Sequence[Pair | Question], config: FineTune, seed: int) -> Identity:
    """Everything that determines the result."""
    return Identity.of(
        {
            "models.target": spec.model_dump(
                mode="json", include={"name", "revision", "dtype", "quantization", "lora", "max_length"}
            ),
            "the pairs": [sample_of(pair).model_dump(mode="json") for pair in pairs],
            "fine_tune": config.model_dump(mode="json", exclude={"target"}),
            "the seed": seed,
        }
    )


def _state(folder: Path) -> dict[str, Any]:
    path = folder / _DONE
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _train(
    target: Target,
    encoded: Sequence[Encoded],
    config: FineTune,
    folder: Path,
    seed: int,
    report: Callable[[int, int], None] | None,
) -> None:
    from datasets import Dataset
    from transformers.trainer_callback import PrinterCallback
    from trl import SFTConfig

    from optimsyn.training.trainer import HistoryCallback, TargetTrainer

    longest = max(len(sample.input_ids) for sample in encoded)
    per_pass = rows_per_pass(config.batch_size, longest)
    checkpoints = folder / _CHECKPOINTS
    args = SFTConfig(
        output_dir=str(checkpoints),
        max_steps=config.steps,
        per_device_train_batch_size=per_pass,
        gradient_accumulation_steps=config.batch_size // per_pass,
        learning_rate=config.lr,
        # A share of the steps, in [0, 1).
        warmup_steps=config.warmup_ratio,
        optim="adamw_torch",
        weight_decay=0.0,
        max_grad_norm=MAX_GRAD_NORM,
        # The target's own dtype decides; LoRA weights and losses are always float32.
        bf16=False,
        fp16=False,
        gradient_checkpointing=False,
        use_cpu=target.device.type == "cpu",
        dataloader_pin_memory=False,
        max_length=None,
        seed=seed,
        data_seed=seed,
        logging_steps=max(1, config.steps // _LOGS),
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=max(1, -(-config.steps // _SAVES)),
        save_total_limit=2,
        report_to="none",
        disable_tqdm=True,
    )
    trainer = TargetTrainer(
        target=target,
        args=args,
        train_dataset=Dataset.from_dict(
            {"input_ids": [sample.input_ids for sample in encoded], "labels": [sample.labels for sample in encoded]}
        ),
        callbacks=[HistoryCallback(folder / HISTORY, report)],
    )
    trainer.remove_callback(PrinterCallback)
    last = latest_checkpoint(checkpoints)
    trainer.train(resume_from_checkpoint=str(last) if last else None)
    write_jsonl(folder / HISTORY, history_rows(trainer.state.log_history))
    target.model.eval()


def rows_per_pass(batch_size: int, longest: int) -> int:
    """The largest divisor of the batch size that keeps a padded batch within `TOKENS_AT_ONCE`."""
    fits = [size for size in range(1, batch_size + 1) if batch_size % size == 0 and size * longest <= TOKENS_AT_ONCE]
    return max(fits, default=1)


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint; a torn one of a killed process is skipped.

    `Trainer` writes its state last, so a checkpoint with a readable state is complete.
    """
    steps = {int(path.name.removeprefix("checkpoint-")): path for path in folder.glob("checkpoint-*") if path.is_dir()}
    for step in sorted(steps, reverse=True):
        try:
            state = json.loads((steps[step] / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if state.get("global_step") == step:
            return steps[step]
    return None


def save_adapter(target: Target, folder: Path) -> None:
    """Saves the adapter atomically: writes it beside its final place and renames it."""
    partial = folder / f".{ADAPTER}.{os.getpid()}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    target.model.save_pretrained(str(partial), save_embedding_layers=False)
    shutil.rmtree(folder / ADAPTER, ignore_errors=True)
    partial.replace(folder / ADAPTER)
