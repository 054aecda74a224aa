"""Policy optimisation: TRL's GRPOTrainer trains a LoRA of the rubric model with the influence reward.

What makes a killed training end like an undisturbed one: the rows are laid out once in the order in which they are
used (one epoch, no sampler state), the random generator is seeded again from the recipe's seed and the step before
every generation, a checkpoint counts only after its last file was written, and the reward answers what it judged from
its ledger.
"""

from __future__ import annotations

import json
import logging
import math
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from optimsyn.base.errors import DataError, ModelError
from optimsyn.base.files import write_json, write_text
from optimsyn.base.identity import Identity
from optimsyn.base.seeds import derive_seed
from optimsyn.data.records import Passage
from optimsyn.optimize.history import History, read_history
from optimsyn.recipe.recipe import ModelSpec
from optimsyn.recipe.sections.optimizers import PolicyOptimizer
from optimsyn.reward.judgements import digest

if TYPE_CHECKING:
    from optimsyn.programs.task_shape import TaskShape
    from optimsyn.reward.reward import InfluenceReward

LoadModel = Callable[[ModelSpec], tuple[Any, Any]]

# Rubrics in one forward and backward pass; a step with more of them accumulates gradients.
_MICRO_BATCH = 16
# The newest checkpoint may be torn by a kill, so the one before it is kept.
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


@dataclass(frozen=True)
class PolicyResult:
    """A trained rubric policy.

    Attributes:
        adapter: Folder of the peft adapter.
        history: One row a step: step, reward (mean), reward_std, valid (share), influence (mean of the valid), kl and
            entropy (nats per token), completion_length (tokens), unfinished (share cut at max_tokens),
            groups_without_signal (share of groups whose rewards were all equal), loss, gradient_norm, seconds.
    """

    adapter: Path
    history: list[dict[str, Any]]


def train_policy(
    spec: ModelSpec,
    config: PolicyOptimizer,
    reward: InfluenceReward,
    passages: Sequence[Passage],
    guiding_text: str,
    shape: TaskShape,
    folder: Path,
    seed: int,
    *,
    load: LoadModel | None = None,
    report: Callable[[int, int], None] | None = None,
) -> PolicyResult:
    """Trains the rubric model to write rubrics that lead to pairs of higher reward.

    Args:
        spec: The rubric model; local, a hub model or `embedded`.
        config: Group size, steps, temperature, learning rate, KL weight and LoRA.
        reward: Judges the rubrics of a step at once.
        passages: Used in this order, again from the start when there are fewer than the steps need.
        guiding_text: Stands in every prompt.
        shape: Says which kind of question each passage gets.
        folder: Receives `adapter/`, `history.jsonl` and, while training, `checkpoints/`.
        seed: Of the adapter's start, of the sampling and of the pairs.
        load: Another way to load model and tokenizer, for models that are already in memory.
        report: Called before and after each step with the steps done and their number.

    Raises:
        ServiceError: A service failed for good; the next call goes on after the last saved step.
        ModelError: The model has none of the modules that LoRA is to train, or training diverged.
        DataError: There are no passages.
    """
    if not passages:
        raise DataError("policy training needs at least one passage; see documents.source and documents.passage_words")
    chat = (
        {} if spec.chat_template_kwargs is None else {"models.rubric.chat_template_kwargs": spec.chat_template_kwargs}
    )
    identity = Identity.of(
        {
            "models.rubric": spec.model_dump(mode="json", include={"name", "revision", "dtype"}),
            **chat,
            "optimizers.policy": config.model_dump(mode="json", exclude={"save_every"}),
            "the passages": [(passage.id, passage.text) for passage in passages],
            "the guiding text": guiding_text,
            "the seed": seed,
            # A policy that was rewarded by other checks or another scorer is not trained further.
            "the checks or the reward": reward.identity,
            "the scorer": reward.scorer.fingerprint,
        },
        digest,
    )
    adapter = folder / "adapter"
    _forget_other_training(folder, identity)
    if not adapter.is_dir():
        checkpoint = _last_complete(folder / "checkpoints")
        done = 0 if checkpoint is None else int(checkpoint.name.rsplit("-", 1)[1])
        history = History(folder / "history.jsonl", keep=lambda row: row.get("step", 0) <= done)
        with _quiet():
            callback = _make_callback(history, seed, report)
            trainer = _build_trainer(spec, config, reward, passages, guiding_text, shape, folder, seed, callback, load)
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
            _save_adapter(trainer.model, adapter)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return PolicyResult(adapter, read_history(folder / "history.jsonl"))


def _forget_other_training(folder: Path, identity: Identity) -> None:
    """Removes what a training with other settings left in the folder."""
    marker = folder / "training.json"
    known = json.loads(marker.read_text(encoding="utf-8")) if marker.is_file() else {}
    if identity.same_as(known):
        return
    for name in ("adapter", "checkpoints"):
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / "history.jsonl").unlink(missing_ok=True)
    write_json(marker, identity.saved())


def _last_complete(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end; torn ones are removed."""
    complete = []
    for checkpoint in folder.glob("checkpoint-*"):
        if (checkpoint / _COMPLETE).is_file():
            complete.append(checkpoint)
        else:
            shutil.rmtree(checkpoint)
    return max(complete, key=lambda path: int(path.name.rsplit("-", 1)[1]), default=None)


def _save_adapter(model: Any, adapter: Path) -> None:
    """Writes the adapter so that the folder is either whole or absent."""
    partial = adapter.with_name("adapter.partial")
    shutil.rmtree(partial, ignore_errors=True)
    # The embeddings are not trained; peft's "auto" would ask the hub about them.
    model.save_pretrained(str(partial), save_embedding_layers=False)
    partial.rename(adapter)


def _build_trainer(
    spec: ModelSpec,
    config: PolicyOptimizer,
    reward: InfluenceReward,
    passages: Sequence[Passage],
    guiding_text: str,
    shape: TaskShape,
    folder: Path,
    seed: int,
    callback: Any,
    load: LoadModel | None,
) -> Any:
    from datasets import Dataset
    from peft import LoraConfig
    from transformers.trainer_callback import PrinterCallback

    from optimsyn.llm.local.loading import load_causal_lm
    from optimsyn.optimize.shared_prompt import SharedPromptTrainer

    model, tokenizer = (load or load_causal_lm)(spec)
    tokenizer.padding_side = "left"
    if tokenizer.chat_template is None:
        _end_at_blank_line(model, tokenizer)
    rows = _rows(spec, config, passages, guiding_text, shape, seed, tokenizer)
    lora = LoraConfig(
        r=config.lora.r,
        lora_alpha=config.lora.alpha,
        lora_dropout=config.lora.dropout,
        target_modules=list(config.lora.target_modules),
        task_type="CAUSAL_LM",
    )
    try:
        trainer = SharedPromptTrainer(
            model=model,
            reward_funcs=reward,
            args=_arguments(spec, config, folder, seed, model, len(rows) // config.steps),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            peft_config=lora,
            callbacks=[callback],
        )
    except ValueError as error:
        if "arget modules" not in str(error):
            raise
        raise ModelError(
            f"models.rubric {spec.name!r}: it has none of the modules {', '.join(config.lora.target_modules)}; set "
            "optimizers.policy.lora.target_modules to names of its linear layers"
        ) from error
    trainer.remove_callback(PrinterCallback)
    return trainer


def _arguments(spec: ModelSpec, config: PolicyOptimizer, folder: Path, seed: int, model: Any, prompts: int) -> Any:
    """The GRPOConfig: one generation and one optimizer step for all rubrics of a step."""
    import torch
    from trl import GRPOConfig

    from optimsyn.llm.local.generation import MIN_P, TOP_K, TOP_P

    device = next(model.parameters()).device
    on_cpu = device.type == "cpu"
    rubrics = prompts * config.group_size
    micro = max(size for size in range(1, min(rubrics, _MICRO_BATCH) + 1) if rubrics % size == 0)
    arguments = GRPOConfig(
        output_dir=str(folder / "checkpoints"),
        max_steps=config.steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=rubrics // micro,
        num_generations=config.group_size,
        max_completion_length=config.max_tokens,
        temperature=config.temperature,
        # The candidates that the policy is sampled from when it is used, so that it is trained on what it will do.
        top_k=TOP_K,
        top_p=TOP_P,
        min_p=MIN_P,
        # And prompted as it will be: a template that lets it think in one of the two only would train another model.
        chat_template_kwargs=spec.template_arguments,
        beta=config.kl,
        learning_rate=config.lr,
        lr_scheduler_type="constant",
        seed=seed,
        # A model's own dropout would only add noise between what was sampled and what is trained on.
        disable_dropout=config.lora.dropout == 0,
        shuffle_dataset=False,
        # TRL turns bf16 and gradient checkpointing on by default; on a CPU the first is slow and the second needless.
        use_cpu=on_cpu,
        bf16=not on_cpu and model.dtype == torch.bfloat16,
        gradient_checkpointing=not on_cpu,
        dataloader_pin_memory=not on_cpu,
        logging_steps=1,
        save_strategy="steps",
        save_steps=config.save_every,
        save_total_limit=_CHECKPOINTS_KEPT,
        report_to="none",
        log_level="error",
        disable_tqdm=True,
    )
    if arguments.n_gpu > 1:
        # One process drives one GPU; Trainer would wrap the model in DataParallel, which TRL refuses.
        arguments._n_gpu = 1
    return arguments


def _rows(
    spec: ModelSpec,
    config: PolicyOptimizer,
    passages: Sequence[Passage],
    guiding_text: str,
    shape: TaskShape,
    seed: int,
    tokenizer: Any,
) -> list[dict[str, Any]]:
    """One row for each group of rubrics, in the order of use; a step never holds one passage twice."""
    from optimsyn.programs.rubric import rubric_prompt

    rows = []
    per_step = min(config.passages_per_step, len(passages))
    for index in range(config.steps * per_step):
        passage = passages[index % len(passages)]
        # One seed for a whole group: its rubrics are compared under the same sampling noise, and equal ones earn equal
        # rewards. Another one in each step, so that a passage that comes again gets new pairs.
        row_seed = derive_seed(seed, "train_policy", index // per_step, passage.id)
        kind = shape.kind_for(row_seed)
        rows.append(
            {
                "prompt": rubric_prompt(guiding_text, passage, kind, tokenizer=tokenizer),
                "passage": passage.model_dump_json(),
                "kind": kind,
                "guiding_text": guiding_text,
                "rubric_model": spec.name,
                "seed": row_seed,
            }
        )
    return rows


def _end_at_blank_line(model: Any, tokenizer: Any) -> None:
    """Ends a base model's rubric at a blank line, where the next demonstration would begin.

    TRL ends a completion at every end token that the model's generation config declares.
    """
    declared = model.generation_config.eos_token_id
    ends = [] if declared is None else [declared] if isinstance(declared, int) else list(declared)
    model.generation_config.eos_token_id = [*ends, *sorted(set(blank_line_tokens(tokenizer)) - set(ends))]


def blank_line_tokens(tokenizer: Any) -> list[int]:
    """Ids of all tokens that contain a blank line, sorted; none where line breaks are single tokens."""
    # In byte-level vocabularies a line break is written as the letter C with a dot.
    likely = [token for text, token in tokenizer.get_vocab().items() if "\n\n" in text or "\u010a\u010a" in text]
    return sorted(token for token in likely if "\n\n" in tokenizer.decode([token]))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what TRL and transformers say to each other (deprecated names, file systems) out of the notebook."""
    loggers = [logging.getLogger(name) for name in ("accelerate", "transformers", "trl")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _make_callback(history: History, seed: int, report: Callable[[int, int], None] | None) -> Any:
    import torch
    from transformers import TrainerCallback

    class Progress(TrainerCallback):
        """Seeds every step, writes the history and marks finished checkpoints."""

        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            # The step alone decides what is sampled, not what ran before it in this process.
            torch.manual_seed(derive_seed(seed, "grpo", state.global_step))
            self._tell(state)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self._tell(state)

        def _tell(self, state: Any) -> None:
            if report is not None:
                report(state.global_step, state.max_steps)

        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            logs = kwargs.get("logs") or {}
            if "reward" not in logs:
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
