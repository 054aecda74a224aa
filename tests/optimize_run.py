"""Runs one optimiser in a process of its own, so that a test can kill it: `optimize_run.py WHAT FOLDER [KILL_AT]`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from optimize_helpers import BASE_TEXT, PairWriter, RubricModel, Shape, make_reward, passages, tiny_policy


def run_prompt(folder: Path, kill_at: int | None) -> Any:
    from optimsyn.llm.replies import ReplyCache
    from optimsyn.optimize.prompt import optimize_guiding_text
    from optimsyn.optimize.prompt_task import PromptTask
    from optimsyn.programs.rubric import RubricWriter
    from optimsyn.recipe.sections.optimizers import PromptOptimizer

    writer = PairWriter(folder / "written.log", kill_at=kill_at)
    reward = make_reward(folder / "rewards.jsonl", writer=writer, source="optimize_prompt")
    model = RubricModel(ReplyCache(folder / "replies.sqlite"))
    config = PromptOptimizer(metric_calls=60, minibatch=3, passages=6)
    task = PromptTask(config, RubricWriter(model, BASE_TEXT), reward, passages(6), Shape(), 5, folder / "prompt")
    found = optimize_guiding_text(task)
    return {"requests": model.requests, **found.model_dump(mode="json")}


def run_policy(folder: Path, kill_at: int | None, method: str = "grpo") -> Any:
    from optimsyn.optimize.policy import train_policy
    from optimsyn.optimize.policy_task import PolicyTask
    from optimsyn.recipe.recipe import Lora, ModelSpec
    from optimsyn.recipe.sections.optimizers import PolicyOptimizer

    model = folder / "model"
    if not model.is_dir():
        tiny_policy(model)
    writer = PairWriter(folder / "written.log", kill_at=kill_at)
    reward = make_reward(folder / "rewards.jsonl", writer=writer, source="train_policy")
    config = PolicyOptimizer(
        method=method, steps=5 if method == "grpo" else 2, group_size=4, passages_per_step=2, temperature=1.0, lr=1e-2,
        kl=0.02, max_tokens=16, held_passages=3, lora=Lora(r=4),
    )  # fmt: skip
    spec, texts = ModelSpec(name=str(model), device="cpu"), passages(3 if method == "grpo" else 8)
    found = train_policy(PolicyTask(spec, config, reward, texts, BASE_TEXT, Shape(), folder / "policy", 11))
    return found.history


if __name__ == "__main__":
    what, folder = sys.argv[1], Path(sys.argv[2])
    folder.mkdir(exist_ok=True)
    limit = int(sys.argv[3]) if len(sys.argv) > 3 else None
    if what == "prompt":
        outcome = run_prompt(folder, limit)
    else:
        outcome = run_policy(folder, limit, "grpo" if what == "policy" else what)
    (folder / "outcome.json").write_text(json.dumps(outcome))
