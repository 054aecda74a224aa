"""The manifest of a run: which stages ran when and how they ended, under which versions and seeds, at what cost.

The runner and the notebook kernels write it from different processes, so every change is made under a lock and the
file is replaced atomically: a reader, or a run that was killed, always finds a whole manifest.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from optimsyn.base.errors import StageError
from optimsyn.base.files import write_text
from optimsyn.base.suggestions import did_you_mean
from optimsyn.base.version import __version__
from optimsyn.llm.control_tokens import RENDERED_DAY
from optimsyn.llm.reply import Usage
from optimsyn.recipe.problems import in_a_line
from optimsyn.recipe.recipe import Recipe
from optimsyn.recipe.sections.stages import STAGES as STAGES
from optimsyn.runs.forecast import Forecast

Status = Literal["pending", "running", "finished", "failed", "interrupted"]

# The packages whose version can change a result.
_RECORDED_PACKAGES = ("torch transformers peft trl dspy gepa optuna litellm xllamacpp datasets semchunk numpy").split()


def now() -> str:
    """The present time, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def installed_versions() -> dict[str, str]:
    """Versions of Python, the platform and every package that can change a result; and the date for chat templates."""
    versions = {"python": platform.python_version(), "platform": platform.platform(), "optimsyn": __version__}
    versions["day in chat templates"] = RENDERED_DAY.isoformat()
    for name in _RECORDED_PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return versions


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_assignment=True)


class Failure(_Part):
    """Why and where the last attempt of a stage ended.

    Attributes:
        kind: Name of the exception, or `KernelDied`, `TimeLimit`, `Interrupted`, `Killed`.
        cell: Number of the code cell that was running (1 is the first); None if unknown.
        source: That cell's code.
        reason: What went wrong, without secrets.
    """

    kind: str
    cell: int | None = None
    source: str = ""
    reason: str = ""


class StageRecord(_Part):
    """One stage in the manifest.

    Attributes:
        attempts: How often it was started; more than one after a failure or a kill.
        seconds: Time of the last attempt, in seconds; None while its end is not recorded.
        peak_memory_bytes: Largest resident size of the process that ran the last attempt, while it did; None if
            that process was killed. The embedded model's server is a separate process and not included.
        bought_before: Usage of the run when the stage first started.
        cost: Usage of the stage over all attempts.
        error: Why the last attempt did not finish, without secrets.
        failure: The same in structured form.
        notes: Facts that the stage recorded.
    """

    name: str
    status: Status = "pending"
    attempts: int = 0
    started: str | None = None
    finished: str | None = None
    seconds: float | None = None
    peak_memory_bytes: int | None = None
    bought_before: Usage | None = None
    cost: Usage = Usage()
    pid: int | None = None
    error: str | None = None
    failure: Failure | None = None
    notes: dict[str, Any] = Field(default_factory=dict)


class Manifest(_Part):
    """The content of `manifest.json`.

    Attributes:
        cost: What the run has bought.
        outcomes: Outcomes of the requests by model role: `read`, `invalid`, `cut`, `refusal`, `tool_call`, `empty`, and
            `asked_again` with a higher token limit. Each request counts once, however often its reply is read. Also:
            cached replies that were `damaged` and bought again, and replies whose tokens are `estimated`; under `other`
            if the role is unknown.
        forecast: Forecast at the start of the run.
        forecast_now: Latest forecast, with what was sent in place of the estimate.
        services: What the services have reported about themselves (`optimsyn.llm.hosted.service_memory`): unsupported
            parameters, schemas, unknown prices, implausible usage.
    """

    format: int = 1
    recipe: str
    fingerprint: str
    created: str
    seeds: dict[str, int]
    versions: dict[str, str]
    stages: list[StageRecord]
    cost: Usage = Usage()
    outcomes: dict[str, dict[str, int]] = Field(default_factory=dict)
    forecast: Forecast | None = None
    forecast_now: Forecast | None = None
    services: dict[str, dict[str, Any]] = Field(default_factory=dict)

    @classmethod
    def new(cls, recipe: Recipe) -> Manifest:
        """The manifest of a run that has not started."""
        return cls(
            recipe=recipe.name,
            fingerprint=recipe.fingerprint,
            created=now(),
            seeds={"recipe": recipe.seed, **recipe.seeds.given},
            versions=installed_versions(),
            stages=[StageRecord(name=name) for name in recipe.stage_names],
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The stages of this run, in order."""
        return tuple(record.name for record in self.stages)

    def stage(self, name: str) -> StageRecord:
        """The record of one stage.

        Raises:
            StageError: There is no stage of this name.
        """
        for record in self.stages:
            if record.name == name:
                return record
        hint = did_you_mean(name, self.names, f"the stages are {', '.join(self.names)}")
        raise StageError(f"there is no stage {name!r}; {hint}")


class ManifestFile:
    """Reads and changes `manifest.json`.

    Args:
        path: The file; a lock file `.manifest.lock` is kept beside it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FileLock(str(path.with_name(".manifest.lock")), timeout=60)

    def read(self) -> Manifest:
        """The manifest as it is now.

        Raises:
            StageError: The file is missing or is no manifest of this version.
        """
        try:
            return Manifest.model_validate_json(self.path.read_bytes())
        except FileNotFoundError:
            raise StageError(f"{self.path.parent}: not a run folder (no manifest.json in it)") from None
        except ValidationError as error:
            problem = in_a_line(error)
            raise StageError(f"{self.path}: {problem}; the file was written by another version or edited") from error

    def create(self, manifest: Manifest) -> None:
        """Writes the first manifest, unless there is one."""
        with self._lock:
            if not self.path.is_file():
                self._write(manifest)

    @contextmanager
    def change(self) -> Iterator[Manifest]:
        """Yields the manifest to change, and writes it when the block ends without an exception."""
        with self._lock:
            manifest = self.read()
            yield manifest
            self._write(manifest)

    def _write(self, manifest: Manifest) -> None:
        write_text(self.path, manifest.model_dump_json(indent=2) + "\n")


RUN_LOCK, HOLDER = ".run.lock", ".run.holder.json"
STAGE_LOCK, KERNEL_LOCK = ".stage.lock", ".kernel.lock"


def at_work(folder: Path) -> bool:
    """Whether a process works on a run now, by the locks that `optimsyn run` asks; they end with their process.

    A runner that writes the report of its own run has ended its stages and does not count.
    """
    if _held(folder / STAGE_LOCK) or _held(folder / KERNEL_LOCK):
        return True
    return _held(folder / RUN_LOCK) and holder_of(folder).get("pid") != os.getpid()


def holder_of(folder: Path) -> dict[str, Any]:
    """The process that holds a run, or held it when it was killed: `pid` and `since`; empty if unknown."""
    try:
        value = json.loads((folder / HOLDER).read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return value if isinstance(value, dict) else {}


def _held(lock: Path) -> bool:
    if not lock.is_file():
        return False
    try:
        with FileLock(str(lock), timeout=0):
            return False
    except Timeout:
        return True
    except PermissionError:  # a run of another user, whose locks cannot be asked
        return process_lives(holder_of(lock.parent).get("pid"))


def process_lives(pid: int | None) -> bool:
    """Whether a process with this id runs on this machine (the id may have been reused)."""
    if pid is None:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
