"""Transfers whose runs write what a real run would have written, for tests of what reads and conducts them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml
from runs_helpers import tiny_recipe

# Stands for `python -m optimsyn run FOLDER --stage STAGE`: every stage buys something once, and the losses follow from
# generator, targets and seed. A file `hang` beside the run folders lets runs wait in `evaluate`; `fail-GENERATOR` lets
# them fail.
FAKE_CELL = """
import json, os, random, sys, time
from optimsyn.base.files import write_jsonl
from optimsyn.batch.lifeline import end_with_parent
from optimsyn.runs.folder import Run
from optimsyn.runs.manifest import STAGES
from optimsyn.runs.results.built_in import FineTuned, FineTuneResult

end_with_parent()
run = Run.load(sys.argv[2])
recipe, name = run.recipe, run.recipe.name
generator, seed = name.split("-")[0], recipe.seed

def buy(what):
    kept = run.path("bought.txt")
    if what not in (kept.read_text().split() if kept.is_file() else ()):
        with kept.open("a") as file, (run.folder.parent / "sold.txt").open("a") as sold:
            sold.write(f"{name}/{what}\\n")
            file.write(f"{what}\\n")

with run.lock():
    for stage in STAGES:
        with run.stage(stage) as handle:
            if handle.finished:
                continue
            buy(stage)
            if stage == "warm_up":
                if (run.folder.parent / f"fail-{generator}").is_file():
                    raise ValueError("no luck")
                run.path("warm_up", "checkpoints", "weights.safetensors").write_text("heavy")
            if stage == "prepare":
                rows = [{"id": f"q{i}", "group": f"g{i // 3}", "question": "?", "answer": "!"} for i in range(24)]
                write_jsonl(run.path("prepare", "test.jsonl"), rows)
            if stage == "synthesize":
                run.path("synthesize", "static.selected.jsonl").write_text("")
                run.path("dataset", "train.jsonl").write_text("")
            if stage == "fine_tune":
                tuned = {"static": FineTuned(pairs=5 + seed, steps=2, loss_first=2.0, loss_last=1.0, same_as=None)}
                FineTuneResult(variants=tuned).save(run)
            if stage == "evaluate":
                if (run.folder.parent / "hang").is_file():
                    run.path("pid.txt").write_text(str(os.getpid()))
                    time.sleep(600)
                own = recipe.fine_tune.target is None
                gain = {"plain": 0.3, "warm": 0.6}[generator] * (1 if own else 0.5)
                for variant in ("target", "static"):
                    luck = random.Random(f"{variant} {name}")
                    rows = []
                    for i in range(24):
                        loss = 2 - (gain if variant == "static" else 0) + luck.gauss(0, 0.2)
                        row = {"id": f"q{i}", "kind": "free", "subtask": "all", "loss": loss, "correct": loss < 1.8}
                        row |= {"exact_match": None, "token_f1": max(0.0, 1 - loss / 4), "prediction": ""}
                        rows.append(row | {"choice_scores": None})
                    write_jsonl(run.path("evaluate", f"{variant}.jsonl"), rows)
"""


def run_here(folder: Path) -> None:
    """A fake run in this process."""
    cell = FAKE_CELL.replace("end_with_parent()\n", "", 1).replace("sys.argv[2]", repr(str(folder)))
    exec(compile(cell, "fake cell", "exec"), {})


def fake_command(arguments: list[str]) -> list[str]:
    """The command line of a fake run."""
    return [sys.executable, "-c", FAKE_CELL, *arguments]


def write_transfer(folder: Path, **changes: Any) -> Path:
    """Two generators and two targets, which are the embedded model with other fields; None removes a field."""
    recipe = tiny_recipe(name="law", description="a toy", questions={"validation": "embedded:quickstart"})
    (folder / "law.yaml").write_text(recipe.to_yaml())
    raw: dict[str, Any] = {
        "name": "toy",
        "question": "Is one dataset good for both?",
        "recipe": "law.yaml",
        "set": {"optimizers.prompt.enabled": False, "optimizers.policy.enabled": False},
        "transfer": {
            "targets": {"small": None, "wide": {"max_length": 500}},
            "generators": {"plain": None, "warm": {"temperature": 0.9}},
        },
        "arm": "static",
        "seeds": [0, 1],
    }
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in {**raw, **changes}.items() if v is not None}, sort_keys=False))
    return path
