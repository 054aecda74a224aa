"""Policy optimisation: the recipe's method trains the rubric model with the influence reward."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from optimsyn.base.errors import DataError, ModelError
from optimsyn.base.extensions import POLICY_OPTIMIZERS
from optimsyn.base.files import write_json
from optimsyn.base.identity import Identity
from optimsyn.llm.local.model import folder_fingerprint
from optimsyn.optimize.history import read_history
from optimsyn.optimize.methods import method_identity, policy_method
from optimsyn.optimize.policy_task import OUTCOME, RUBRICS, WARM_UP, PolicyTask
from optimsyn.recipe.sections.optimizers import LATER_POLICY_FIELDS
from optimsyn.reward.judgements import digest


@dataclass(frozen=True)
class PolicyResult:
    """A trained rubric policy.

    Attributes:
        method: The name of the method in the recipe.
        adapter: Folder of the peft adapter.
        history: The rows of `history.jsonl`, one per step: step, reward (mean), and further fields of the method;
            `optimsyn.optimize.grpo.train` and `optimsyn.optimize.rounds.loop.train` list those of the built-in ones.
        outcome: What the method says of its training as a whole.
    """

    method: str
    adapter: Path
    history: list[dict[str, Any]]
    outcome: dict[str, Any]


def train_policy(task: PolicyTask) -> PolicyResult:
    """Trains the rubric model to write rubrics that lead to pairs of higher reward, by the recipe's method.

    Args:
        task: Its folder receives `adapter/`, `history.jsonl` and, while training, `checkpoints/`.

    Raises:
        RecipeError: There is no such method.
        ServiceError: A service failed for good; the next call resumes if the method can.
        ModelError: The model has none of LoRA's target modules, training diverged, or the method saved no adapter.
        DataError: There are no passages.
    """
    if not task.passages:
        raise DataError("policy training needs at least one passage; see documents.source and documents.passage_words")
    name = task.config.method
    method = policy_method(name)
    adapter = task.folder / "adapter"
    _forget_other_training(task.folder, _identity(task))
    if not adapter.is_dir():
        returned = method(task)
        if not isinstance(returned, str | Path) or not (Path(returned) / "adapter_config.json").is_file():
            raise ModelError(
                f"optimizers.policy.method {name!r} returned {returned!r}, which is no folder of a peft adapter; "
                "end it with `return task.save(model)`"
            )
        if Path(returned).resolve() != adapter.resolve():
            partial = adapter.with_name("adapter.partial")
            shutil.copytree(returned, partial, dirs_exist_ok=True)
            partial.rename(adapter)
        shutil.rmtree(task.checkpoints, ignore_errors=True)
    concluded = task.folder / OUTCOME
    outcome = json.loads(concluded.read_text(encoding="utf-8")) if concluded.is_file() else {}
    return PolicyResult(name, adapter, read_history(task.folder / "history.jsonl"), outcome)


def _identity(task: PolicyTask) -> Identity:
    """Everything that a training depends on."""
    config = task.config.model_dump(mode="json", exclude={"save_every"})
    for name in LATER_POLICY_FIELDS:  # so that trainings from before there was a choice can resume
        if config[name] == type(task.config).model_fields[name].default:
            del config[name]
    own = method_identity(POLICY_OPTIMIZERS, task.config.method)
    template = task.spec.chat_template_kwargs
    return Identity.of(
        {
            "models.rubric": task.spec.model_dump(mode="json", include={"name", "revision", "dtype", "quantization"}),
            **({} if template is None else {"models.rubric.chat_template_kwargs": template}),
            **({} if task.start is None else {"the adapter that it begins from": folder_fingerprint(task.start)}),
            "optimizers.policy": config,
            **({"the source of optimizers.policy.method": own} if own else {}),
            **({"what it is taught": [(row.key, row.reward) for row in task.taught]} if task.taught else {}),
            "the passages": [(passage.id, passage.text) for passage in task.passages],
            "the guiding text": task.guiding_text,
            "the seed": task.seed,
            # A policy trained with other checks or another scorer is not trained further.
            "the checks or the reward": task.reward.identity,
            "the scorer": task.reward.scorer.fingerprint,
        },
        digest,
    )


def _forget_other_training(folder: Path, identity: Identity) -> None:
    """Removes the files of a training with other settings from the folder."""
    marker = folder / "training.json"
    recorded = json.loads(marker.read_text(encoding="utf-8")) if marker.is_file() else {}
    if identity.same_as(recorded):
        return
    for path in (folder / "adapter", folder / "checkpoints", *folder.glob(f"{WARM_UP}*")):
        shutil.rmtree(path, ignore_errors=True)
    for name in ("history.jsonl", RUBRICS, OUTCOME):
        (folder / name).unlink(missing_ok=True)
    write_json(marker, identity.saved())
