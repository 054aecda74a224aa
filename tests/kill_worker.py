"""Runs all stages of a recipe in children of one process that has imported everything: `kill_worker.py RECIPE`.

Each line of standard input is the root of a run. It is answered by a line with the child's process number and, when the
child has ended, by one with its exit status; what it says goes to the file `said` of the recipe's folder.
"""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from pathlib import Path

import datasets  # noqa: F401
import dspy  # noqa: F401
import litellm  # noqa: F401
import peft  # noqa: F401
import torch  # noqa: F401
import trl

from optimsyn.recipe.recipe import Recipe
from optimsyn.runs.folder import Run
from optimsyn.runs.manifest import STAGES

_ = trl.GRPOTrainer, trl.SFTTrainer
MODULES = [importlib.import_module(f"optimsyn.stages.{stage}") for stage in STAGES]


def run_all(recipe: Recipe, root: Path) -> int:
    """Runs the stages in this process; returns its exit status."""
    said = os.open(Path(sys.argv[1]).with_name("said"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(said, 2)
    os.dup2(said, 1)
    try:
        run = Run.open(recipe, root)
        for module in MODULES:
            module.run(run)
    except Exception:  # noqa: BLE001 (it is what the caller wants to read)
        traceback.print_exc()
        sys.stderr.flush()
        return 1
    return 0


def main() -> None:
    recipe = Recipe.load(Path(sys.argv[1]))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            os._exit(run_all(recipe, Path(line.strip())))
        sys.stdout.write(f"{child}\n")
        sys.stdout.flush()
        _, status = os.waitpid(child, 0)
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
