"""Studies whose runs write what a real run would have written, for tests of what reads and conducts them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml
from runs_helpers import tiny_recipe

# Stands for `python -m optimsyn run FOLDER --stage STAGE`: every stage buys something once, and the losses follow from
# the names. A file `hang` beside the run folders lets runs wait in `synthesize`, `fail-DOMAIN` lets them fail.
FAKE_CELL = """
import hashlib, json, math, os, random, sys, time
from pathlib import Path
from optimsyn.base.files import write_jsonl
from optimsyn.batch.lifeline import end_with_parent
from optimsyn.runs.folder import Run
from optimsyn.runs.manifest import STAGES

end_with_parent()
run = Run.load(sys.argv[2])
name, seed = run.recipe.name, run.recipe.seed
domain = name.split("-")[0]

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
            if stage == "synthesize" and (run.folder.parent / "hang").is_file():
                run.path("pid.txt").write_text(str(os.getpid()))
                time.sleep(600)
            if stage == "warm_up" and (run.folder.parent / f"fail-{domain}").is_file():
                raise ValueError("no luck")
            if stage == "prepare":
                rows = [{"id": f"q{i}", "group": f"g{i // 3}", "question": "?", "answer": "!"} for i in range(24)]
                rows[0] |= {"choices": ["a", "b", "c"], "answer_index": 2}
                write_jsonl(run.path("prepare", "test.jsonl"), rows)
            if stage == "train_policy":
                rows = [{"step": i, "reward": 0.01 * i + 0.001 * seed, "kl": 0.004 * i} for i in range(1, 7)]
                write_jsonl(run.path("train_policy", "history.jsonl"), rows)
                held = {"held_difference": 0.02, "held_low": 0.005, "held_high": 0.035}
                run.path("train_policy", "result.json").write_text(json.dumps({"kl_per_token": 0.03, **held}))
            if stage == "synthesize":
                for arm in ("static", "policy"):
                    rubric = {"question_type": f"{arm} asks for a fact", "trainability": "a number"}
                    row = {"rubric": rubric, "influence": 0.1}
                    rows = [{"passage_id": f"p{i}", "key": str(i), **row} for i in range(3)]
                    write_jsonl(run.path("synthesize", f"{arm}.candidates.jsonl"), rows)
            if stage == "evaluate":
                for arm, gain in (("no_rubric", 0.0), ("static", 0.1), ("optimized", 0.1), ("policy", 0.4)):
                    luck = random.Random(f"{domain} {arm} {seed}")
                    shift = luck.gauss(0, 0.05)
                    rows = []
                    for i in range(24):
                        loss = 2 - gain + shift + luck.gauss(0, 0.3)
                        row = {"id": f"q{i}", "kind": "free", "subtask": "all", "loss": loss, "correct": loss < 1.8}
                        row |= {"exact_match": None, "token_f1": max(0.0, 1 - loss / 4), "prediction": ""}
                        scores = [-2.0, -1.5, -loss] if i == 0 else None
                        rows.append(row | {"choice_scores": scores})
                    write_jsonl(run.path("evaluate", f"{arm}.jsonl"), rows)
"""


def fake_command(arguments: list[str]) -> list[str]:
    """The command line of a fake run."""
    return [sys.executable, "-c", FAKE_CELL, *arguments]


def write_study(folder: Path, **changes: Any) -> Path:
    """Two domains, two seeds and two arms; a change of None removes a field."""
    for domain in ("law", "music"):
        recipe = tiny_recipe(name=domain, description="a toy", questions={"validation": "embedded:quickstart"})
        (folder / f"{domain}.yaml").write_text(recipe.to_yaml())
    raw: dict[str, Any] = {
        "name": "toy",
        "question": "Does the trained policy beat the static text?",
        "recipes": {"law": "law.yaml", "music": {"recipe": "music.yaml", "set": {"synthesis.pairs": 9}}},
        "set": {"fine_tune.steps": 3},
        "arms": ["static", "policy"],
        "seeds": [0, 1],
        "contrasts": [["policy", "static"]],
    }
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in {**raw, **changes}.items() if v is not None}, sort_keys=False))
    return path
