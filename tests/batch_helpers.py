"""Runs that behave as their recipe's description says, for tests of what watches them."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from runs_helpers import tiny_recipe

from optimsyn.batch import engines as batch_engines
from optimsyn.recipe.recipe import Recipe

# Stands for `python -m optimsyn run FOLDER --stage STAGE`. Descriptions are not part of the fingerprint, so a test can
# let the same run behave in another way when it is started again.
FAKE_RUN = """
import os, signal, sys, time
from pathlib import Path
from optimsyn.runs.folder import Run
from optimsyn.batch.lifeline import end_with_parent
from optimsyn.runs.manifest import Failure, ManifestFile, STAGES

def interrupt(number, frame):
    raise KeyboardInterrupt

signal.signal(signal.SIGTERM, interrupt)
end_with_parent()
run = Run.load(sys.argv[2])
how = run.recipe.description
until = STAGES.index(sys.argv[4]) + 1
with run.path("starts.txt").open("a") as file:
    file.write("start\\n")
if how == "refuses":
    sys.stderr.write("RecipeError: models.generator: no key\\n")
    sys.exit(2)
if how == "crashes":
    raise SystemExit("what a strange day")
print("my key is", os.environ.get("BATCH_TEST_API_KEY"), flush=True)
try:
    with run.lock():
        for stage in STAGES[:until]:
            with run.stage(stage) as handle:
                if handle.finished:
                    continue
                if stage == "warm_up" and how == "fails":
                    raise ValueError("no luck")
                if stage == "warm_up" and how in ("dies", "dies in a mess"):
                    if how == "dies in a mess":
                        run.path("report.html").mkdir()
                    os.kill(os.getpid(), signal.SIGKILL)
                if stage == "warm_up" and how == "hangs":
                    run.path("pid.txt").write_text(str(os.getpid()))
                    time.sleep(600)
                if stage == "warm_up" and how == "slow":
                    time.sleep(1.0)
except ValueError as error:
    failure = Failure(kind="ValueError", cell=3, source="# a comment\\nstage.run(run)\\n", reason=str(error))
    with ManifestFile(run.folder / "manifest.json").change() as manifest:
        manifest.stage("warm_up").failure = failure
    sys.stderr.write(f"StageError: stage warm_up failed: ValueError: {error}\\n")
    sys.exit(1)
except KeyboardInterrupt:
    sys.exit(130)
"""


def write_recipe(folder: Path, name: str, how: str, **changes: Any) -> str:
    """A recipe file whose run will behave in a way of `FAKE_RUN`."""
    served = {"name": "openai/tiny", "api_base": "http://127.0.0.1:9", "api_key_env": "BATCH_TEST_API_KEY"}
    recipe = tiny_recipe(
        name=name,
        description=how,
        models={"generator": served, "rubric": served},
        optimizers={"policy": {"enabled": False}},
        **changes,
    )
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.yaml"
    path.write_text(recipe.to_yaml())
    return str(path)


def write_served(recipe: Recipe, folder: Path, name: str, seed: int) -> Path:
    """The recipe of `stages_helpers` under another name, which the service is asked by."""
    raw = recipe.model_dump(mode="json")
    raw |= {"name": name, "seed": seed}
    for role in ("generator", "rubric"):
        raw["models"][role]["name"] = f"openai/{name}"
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


def fake_command(arguments: list[str]) -> list[str]:
    """The command line of a fake run."""
    return [sys.executable, "-c", FAKE_RUN, *arguments]


@pytest.fixture
def fake_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCH_TEST_API_KEY", "sk-batch-0123456789abcdef")
    monkeypatch.setattr(batch_engines, "run_command", fake_command)


def wait_for(path: Path, seconds: float = 600) -> str:
    """The content of a file, as soon as there is some."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if path.is_file() and (text := path.read_text()):
            return text
        time.sleep(0.05)
    raise AssertionError(f"{path} did not appear")


def starts(root: Path, name: str) -> int:
    """How often the fake run of a recipe was started."""
    (folder,) = root.glob(f"{name}-*")
    file = folder / "starts.txt"
    return len(file.read_text().splitlines()) if file.is_file() else 0
