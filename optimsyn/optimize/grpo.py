"""GRPO as a method of policy optimisation: TRL's GRPOTrainer trains a LoRA of the rubric model.

A killed training ends like an undisturbed one because the rows are fixed in the order of use (one epoch, no sampler
state), the random generator is reseeded from the recipe's seed and the step before every generation, a checkpoint
counts only after its last file was written, and the reward answers repeated requests from its ledger.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

from optimsyn.base.errors import ModelError
from optimsyn.base.files import write_text
from optimsyn.base.seeds import derive_seed
from optimsyn.optimize.history import History
from optimsyn.optimize.policy_task import LORA, PolicyTask
from optimsyn.optimize.quiet import quiet
from optimsyn.optimize.rounds.weights import kl_on_fresh_rubrics, saved_weights
from optimsyn.recipe.sections.optimizers import PolicyOptimizer

# Rubrics per forward and backward pass; a step with more rubrics accumulates gradients.
_MICRO_BATCH = 16
# A kill may tear the newest checkpoint, so the previous one is kept.
_CHECKPOINTS_KEPT = 2
_COMPLETE = "complete"
# Name in TRL's log -> name in the history.
_LOGGED = {
    "reward": "reward",
    "reward_std": "reward_std",
    "valid": "valid",
    "influence": "influence",
    "kl": "kl",
    "entropy": "entropy",
    "completions/mean_length": "completion_length",
    "completions/clipped_ratio": "unfinished",
    "frac_reward_zero_std": "groups_without_signal",
    "loss": "loss",
    "grad_norm": "gradient_norm",
    "step_time": "seconds",
}


def train(task: PolicyTask) -> Path:
    """Trains, or resumes from the last complete checkpoint, and returns the adapter's folder.

    The history has one row per step, with `steps_ahead` with a reward only where rubrics were sampled: step, reward
    (mean), reward_std, valid (share), influence (mean of the valid), kl
    and entropy (nats per token), completion_length (tokens), unfinished (share cut at max_tokens),
    groups_without_signal (share of groups whose rewards were all equal), loss, gradient_norm, seconds.
    """
    checkpoint = _last_complete(task.checkpoints)
    done = 0 if checkpoint is None else int(checkpoint.name.rsplit("-", 1)[1])
    history = task.history(keep=lambda row: row.get("step", 0) <= done)
    with quiet():
        trainer = _build_trainer(task, _make_callback(task, history))
        start = None if task.start is None else saved_weights(task.start)
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        task.conclude(kl_per_token=kl_on_fresh_rubrics(task, trainer.model, trainer.processing_class, start))
        return task.save(trainer.model)


def _last_complete(folder: Path) -> Path | None:
    """The newest complete checkpoint; torn ones are removed."""
    complete = []
    for checkpoint in folder.glob("checkpoint-*"):
        if (checkpoint / _COMPLETE).is_file():
            complete.append(checkpoint)
        else:
            shutil.rmtree(checkpoint)
    return max(complete, key=lambda path: int(path.name.rsplit("-", 1)[1]), default=None)


def _build_trainer(task: PolicyTask, callback: Any) -> Any:
    from datasets import Dataset
    from transformers.trainer_callback import PrinterCallback

    from optimsyn.optimize.shared_prompt import SharedPromptTrainer
    from optimsyn.target.adapter import explained, in_own_dtype, lora_config, refuse_misplaced

    model, tokenizer = task.load_model()
    lora = None
    if task.start is not None:
        model = task.with_lora(model)
    else:
        refuse_misplaced(model, task.config.lora, field=LORA)
        lora = lora_config(task.config.lora, model)
    with explained(LORA, model), in_own_dtype(model):
        trainer = SharedPromptTrainer(
            model=model,
            reward_funcs=task.trl_reward,
            args=_arguments(task, model),
            train_dataset=Dataset.from_list(task.rows(tokenizer)),
            processing_class=tokenizer,
            peft_config=lora,
            callbacks=[callback],
        )
    trainer.meter = task.reward.options.meter
    trainer.write_ahead = task.trl_reward.write_ahead
    trainer.remove_callback(PrinterCallback)
    return trainer


def _arguments(task: PolicyTask, model: Any) -> Any:
    """The GRPOConfig: one generation for `steps_ahead` optimizer steps, one of these for all rubrics of a step."""
    import torch
    from trl import GRPOConfig

    from optimsyn.llm.local.sampling import MIN_P, TOP_K, TOP_P

    config = task.config
    device = next(model.parameters()).device
    on_cpu = device.type == "cpu"
    rubrics = task.passages_per_step * config.group_size
    micro = max(size for size in range(1, min(rubrics, _MICRO_BATCH) + 1) if rubrics % size == 0)
    arguments = GRPOConfig(
        output_dir=str(task.checkpoints),
        max_steps=config.steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=rubrics // micro,
        steps_per_generation=config.steps_ahead * rubrics // micro,
        num_generations=config.group_size,
        max_completion_length=config.max_tokens,
        temperature=config.temperature,
        # The candidates that the policy is sampled from when it is used, so that it is trained on what it will do.
        top_k=TOP_K,
        top_p=TOP_P,
        min_p=MIN_P,
        # And prompted as it will be: a template that lets it think in one of the two only would train another model.
        chat_template_kwargs=task.spec.template_arguments,
        beta=config.kl,
        learning_rate=config.lr,
        lr_scheduler_type="constant",
        seed=task.seed,
        # A model's own dropout would only add noise between what was sampled and what is trained on.
        disable_dropout=config.lora.dropout == 0,
        # The routers of a mixture of experts are frozen; the adapter is trained for the reward alone.
        router_aux_loss_coef=0.0,
        shuffle_dataset=False,
        # TRL turns bf16 and gradient checkpointing on by default; on a CPU the first is slow and the second needless.
        use_cpu=on_cpu,
        bf16=not on_cpu and model.dtype == torch.bfloat16,
        gradient_checkpointing=not on_cpu,
        dataloader_pin_memory=not on_cpu,
        logging_steps=1,
        save_strategy="steps",
        # Only where the next step samples: a resumed training could not train on rubrics sampled before the kill.
        save_steps=config.steps_ahead * math.ceil(config.save_every / config.steps_ahead),
        save_total_limit=_CHECKPOINTS_KEPT,
        report_to="none",
        log_level="error",
        disable_tqdm=True,
        **_sampler(config),
    )
    if arguments.n_gpu > 1:
        # One process drives one GPU; otherwise Trainer wraps the model in DataParallel, which TRL refuses.
        arguments._n_gpu = 1
    return arguments


def _sampler(config: PolicyOptimizer) -> dict[str, Any]:
    """TRL's options for what samples the rubrics."""
    if config.sampler == "continuous":
        return {"use_transformers_continuous_batching": True}
    if config.sampler == "vllm":
        return {
            "use_vllm": True,
            "vllm_mode": "colocate",
            "vllm_gpu_memory_utilization": config.vllm_memory,
            # Between two samplings the memory is the training's and the target's.
            "vllm_enable_sleep_mode": True,
        }
    if config.sampler == "vllm_server":
        return {"use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": config.vllm_url}
    return {}


def _make_callback(task: PolicyTask, history: History) -> Any:
    import torch
    from transformers import TrainerCallback

    class Progress(TrainerCallback):
        """Seeds every step, writes the history and marks finished checkpoints."""

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            # Sampling depends on the step alone, not on what ran earlier in this process.
            torch.manual_seed(derive_seed(task.seed, "grpo", state.global_step))
            task.progress(state.global_step)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            task.progress(state.global_step)

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            logs = kwargs.get("logs") or {}
            # A step without new rubrics, with `steps_ahead`, has no reward; the last call of all has no loss.
            if "loss" not in logs:
                return
            row = {ours: logs[theirs] for theirs, ours in _LOGGED.items() if logs.get(theirs) is not None}
            for name in ("reward", "reward_std"):
                if not math.isfinite(float(row.get(name, 0.0))):
                    del row[name]  # not one pair of this step could be judged
            for name in ("loss", "gradient_norm"):
                if not math.isfinite(float(row.get(name, 0.0))):
                    raise ModelError(
                        f"policy training diverged at step {state.global_step} ({name} is {row[name]}); lower "
                        "optimizers.policy.lr or raise optimizers.policy.kl"
                    )
            history.add({"step": state.global_step, **row})

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            write_text(Path(args.output_dir) / f"checkpoint-{state.global_step}" / _COMPLETE, "")

    return Progress()
