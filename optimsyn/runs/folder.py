"""A run: a folder with everything that a recipe produced, resumable after any interruption."""

from __future__ import annotations

import gc
import json
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from optimsyn.base.errors import OptimsynError, StageError
from optimsyn.base.files import write_json, write_text
from optimsyn.base.secrets.redaction import forget_secrets, redact
from optimsyn.base.terminal.table import Shown
from optimsyn.llm.reply import Usage
from optimsyn.recipe.recipe import Recipe
from optimsyn.runs.manifest import (
    HOLDER,
    RUN_LOCK,
    STAGE_LOCK,
    Failure,
    Manifest,
    ManifestFile,
    StageRecord,
    holder_of,
    now,
)
from optimsyn.runs.peak_memory import peak_bytes, reset_peak
from optimsyn.runs.stage_end import disk_error_of, let_arrive
from optimsyn.runs.stage_functions import refuse_edited
from optimsyn.runs.stage_handle import PROGRESS_FILE, StageHandle, shown_in_notebook

if TYPE_CHECKING:
    from optimsyn.base.terminal.table import Table
    from optimsyn.data.records import Pair
    from optimsyn.llm.replies import ReplyCache
    from optimsyn.reward.judgements import Judgement
    from optimsyn.runs.datasets.dataset import Dataset
    from optimsyn.runs.forecast import Forecast

# Longest exception text in a manifest; some hold a service's traceback or a whole reply.
_LONGEST_ERROR = 2000
_LONGEST_SOURCE = 1000
_STAGE_LOCK_SECONDS = 5
INTERRUPTED = "interrupted by a person or by a signal"
# Kinds of failure whose reason is a full sentence.
_FULL_SENTENCES = frozenset({"Interrupted", "Killed"})


class Run(Shown):
    """A run folder and its manifest.

    Args:
        folder: An existing run folder; use `Run.start`, `Run.open` or `Run.load`.
        recipe: The recipe that it belongs to.

    Attributes:
        warnings: Warnings of `Run.start` that do not stop the run.
    """

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self.folder = folder
        self.recipe = recipe
        self.warnings: tuple[str, ...] = ()
        self._manifest = ManifestFile(folder / "manifest.json")

    @staticmethod
    def folder_of(recipe: Recipe, root: Path | str = "runs") -> Path:
        """The folder of a recipe's run under `root`, whether it exists or not."""
        return Path(root).resolve() / f"{recipe.name}-{recipe.fingerprint}"

    @classmethod
    def open(cls, recipe: Recipe, root: Path | str = "runs") -> Run:
        """Opens the run of a recipe under `root`, and creates it if there is none.

        Its folder is `<recipe>-<fingerprint>`: a recipe that gives other results gets another folder. Limits and
        concurrency may change between two starts of a run.
        """
        folder = cls.folder_of(recipe, root)
        folder.mkdir(parents=True, exist_ok=True)
        text = recipe.to_yaml()
        file = folder / "recipe.yaml"
        if not file.is_file() or file.read_text(encoding="utf-8") != text:
            write_text(file, text)
        run = cls(folder, recipe)
        run._manifest.create(Manifest.new(recipe))
        return run

    @classmethod
    def load(cls, folder: Path | str) -> Run:
        """An existing run.

        Raises:
            StageError: The folder is not a run folder.
            RecipeError: Its recipe.yaml does not fit this version.
        """
        path = Path(folder).expanduser().resolve()
        if not (path / "manifest.json").is_file():
            raise StageError(f"{path}: not a run folder (no manifest.json in it); `optimsyn run RECIPE` makes one")
        return cls(path, Recipe.load(path / "recipe.yaml", of_run=True))

    @property
    def name(self) -> str:
        """Name of the folder: recipe and fingerprint."""
        return self.folder.name

    @property
    def manifest(self) -> Manifest:
        """The manifest as it is on disk now."""
        return self._manifest.read()

    def path(self, *parts: str) -> Path:
        """A path inside the run; creates its folder, not the file."""
        path = self.folder.joinpath(*parts)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    @cached_property
    def replies(self) -> ReplyCache:
        """Every reply that this run has bought, kept in `replies.sqlite`."""
        from optimsyn.llm.replies import ReplyCache

        return ReplyCache(self.path("replies.sqlite"))

    def done(self, stage: str) -> bool:
        """Whether a stage has finished.

        Raises:
            StageError: There is no stage of this name.
        """
        return self.manifest.stage(stage).status == "finished"

    def changed_manifest(self) -> AbstractContextManager[Manifest]:
        """Yields the manifest to change, and writes it at the end of the block, unless that raises."""
        return self._manifest.change()

    def reopen(self, name: str) -> None:
        """Marks a finished stage as pending, so that it runs again with changed inputs."""
        with self._manifest.change() as manifest:
            manifest.stage(name).status = "pending"

    @contextmanager
    def stage(self, name: str) -> Iterator[StageHandle]:
        """Marks a stage as running, then as finished, failed or interrupted, and times it.

        A finished stage stays as it is: check `.finished` of the handle and return early.

        Raises:
            StageError: There is no such stage, an earlier one has not finished, or another process works on the run.
        """
        manifest = self.manifest
        handle = StageHandle(self, name, finished=manifest.stage(name).status == "finished")
        if handle.finished:
            yield handle
            return
        names = manifest.names
        missing = [stage for stage in names[: names.index(name)] if manifest.stage(stage).status != "finished"]
        if missing:
            raise StageError(f"{self.name}: stage {name} needs {', '.join(missing)} to finish first")
        refuse_edited(self)
        with self._only_here(name), shown_in_notebook(self, name):
            yield from self._timed(name, handle)

    @contextmanager
    def _only_here(self, name: str) -> Iterator[None]:
        """Keeps two processes, such as a runner's kernel and a notebook, from working on one run at once."""
        lock = FileLock(str(self.folder / STAGE_LOCK), timeout=_STAGE_LOCK_SECONDS)
        try:
            lock.acquire()
        except Timeout:
            busy = next((record for record in self.manifest.stages if record.status == "running"), None)
            who = "" if busy is None else f" (stage {busy.name}, process {busy.pid})"
            raise StageError(f"{self.name}: stage {name} cannot start while another process works on it{who}") from None
        try:
            yield
        finally:
            lock.release()

    def _timed(self, name: str, handle: StageHandle) -> Iterator[StageHandle]:
        if "replies" in self.__dict__:
            self.replies.mended()
        with self._manifest.change() as manifest:
            record = manifest.stage(name)
            record.status, record.attempts, record.pid = "running", record.attempts + 1, os.getpid()
            record.started, record.finished, record.seconds, record.peak_memory_bytes = now(), None, None, None
            record.error = record.failure = None
            if record.bought_before is None:
                record.bought_before = self.bought()
        self._forget_progress()
        started = time.monotonic()
        # Models of an earlier stage in this kernel refer to each other and would stay in memory.
        gc.collect()
        reset_peak()
        try:
            yield handle
        except (KeyboardInterrupt, SystemExit, GeneratorExit):
            self._end(name, "interrupted", started, Failure(kind="Interrupted", reason=INTERRUPTED))
            raise
        except BaseException as error:
            if "replies" in self.__dict__:
                let_arrive(self, name)
            # Jupyter or papermill shows the error next, with all its causes.
            forget_secrets(error, self.secret_names)
            disk_error = disk_error_of(self, name, error)
            reported = disk_error or error
            try:
                failure = Failure(kind=type(reported).__name__, reason=str(reported))
                self._end(name, "failed", started, failure, handle.notes)
            except (OSError, OptimsynError) as problem:
                # The stage's own error matters more; a dead process marked `running` is recognised later.
                reported.add_note(f"  The manifest could not be written either: {redact(str(problem))}")
            if disk_error is not None:
                raise disk_error from error
            raise
        if "replies" in self.__dict__:
            self.replies.release()
        try:
            self._end(name, "finished", started, None, handle.notes)
        except OSError as error:
            raise disk_error_of(self, name, error) or error from error

    def _end(
        self, name: str, status: Any, started: float, failure: Failure | None, notes: dict[str, Any] | None = None
    ) -> None:
        with self._manifest.change() as manifest:
            record = manifest.stage(name)
            record.seconds = round(time.monotonic() - started, 2)
            record.peak_memory_bytes = peak_bytes()
            record.notes = {**record.notes, **(notes or {})}
            self._close(manifest, record, status, failure)
        self._forget_progress()

    def mark_stopped(self, name: str, status: Any, failure: Failure, *, seconds: float | None = None) -> None:
        """Records the end of a stage whose kernel was killed or ran out of time.

        Args:
            name: The stage.
            status: `failed` or `interrupted`.
            failure: Reason, and the notebook's cell.
            seconds: How long it ran; None keeps the recorded time.
        """
        with self._manifest.change() as manifest:
            record = manifest.stage(name)
            if record.status != "finished":
                record.seconds = record.seconds if seconds is None else round(seconds, 2)
                self._close(manifest, record, status, failure)
        self._forget_progress()

    def _close(self, manifest: Manifest, record: StageRecord, status: Any, failure: Failure | None) -> None:
        """Records how an attempt ended and what was bought until then."""
        record.status, record.finished, record.pid = status, now(), None
        record.error = record.failure = None
        if failure is not None:
            reason = redact(failure.reason, self.secret_names)[:_LONGEST_ERROR]
            source = redact(failure.source, self.secret_names)[:_LONGEST_SOURCE]
            record.failure = failure.model_copy(update={"reason": reason, "source": source})
            record.error = reason if failure.kind in _FULL_SENTENCES else f"{failure.kind}: {reason}"
        manifest.cost = self.bought()
        manifest.outcomes = self.outcomes()
        manifest.services = self.services
        record.cost = manifest.cost.since(record.bought_before or manifest.cost)

    @property
    def secret_names(self) -> tuple[str, ...]:
        """Environment variables with the keys of the recipe's models."""
        return self.recipe.key_variables

    @property
    def services(self) -> dict[str, dict[str, Any]]:
        """What the services have reported about themselves so far."""
        from optimsyn.llm.hosted.service_memory import SERVICES_FILE, read_services

        return read_services(self.folder / SERVICES_FILE)

    def bought(self) -> Usage:
        """What the run has bought so far."""
        if not (self.folder / "replies.sqlite").is_file():
            return Usage()
        unpriced = any(answers.get("price_unknown") for answers in self.services.values())
        return self.replies.totals().model_copy(update={"unpriced": unpriced})

    def outcomes(self) -> dict[str, dict[str, int]]:
        """Outcomes of the run's requests so far, by role; see `Manifest.outcomes`."""
        if not (self.folder / "replies.sqlite").is_file():
            return {}
        return self.replies.outcomes.counts()

    def foresee(self, forecast: Forecast | None) -> None:
        """Records the forecast of the run: the first one, and the latest."""
        if forecast is None:
            return
        with self._manifest.change() as manifest:
            manifest.forecast_now = forecast
            if manifest.forecast is None and not any(record.attempts for record in manifest.stages):
                manifest.forecast = forecast

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Holds the run for this process, so that two `optimsyn run` never work on one folder.

        The lock ends with the process, even after kill -9.

        Raises:
            StageError: Another process holds it; names the process.
        """
        holder = self.folder / HOLDER
        lock = FileLock(str(self.folder / RUN_LOCK), timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise StageError(f"{_running(self.folder)}; wait for it or stop it") from None
        try:
            write_json(holder, {"pid": os.getpid(), "since": now()})
            yield
        finally:
            holder.unlink(missing_ok=True)
            lock.release()

    def busy(self) -> str | None:
        """A sentence about the process that holds the run; None if there is none."""
        try:
            with FileLock(str(self.folder / RUN_LOCK), timeout=0):
                return None
        except Timeout:
            return _running(self.folder)

    def progress(self) -> dict[str, Any] | None:
        """Progress of the running stage (`stage`, `done`, `total`, `what`, `seconds`), if it reports any."""
        try:
            value = json.loads((self.folder / PROGRESS_FILE).read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        return value if isinstance(value, dict) else None

    def _forget_progress(self) -> None:
        (self.folder / PROGRESS_FILE).unlink(missing_ok=True)

    @property
    def stages(self) -> tuple[str, ...]:
        """All stages of the run, in order."""
        return self.manifest.names

    def pairs(self, variant: str) -> list[Pair]:
        """The pairs of a variant after the last finished stage; the target is fine-tuned on them.

        Raises:
            StageError: `synthesize` has not written any.
        """
        from optimsyn.runs.datasets.pairs import pairs_of

        return pairs_of(self.folder, self.manifest, variant)

    def judged(self, variant: str) -> list[Judgement]:
        """The same pairs, each with its verdict.

        A pair that a custom stage changed has no influence, and its reward means nothing.

        Raises:
            StageError: `synthesize` has not written any.
        """
        from optimsyn.runs.datasets.pairs import judged_of

        return judged_of(self.folder, variant, self.pairs(variant))

    def candidates(self, variant: str) -> list[Judgement]:
        """Every judged candidate of a variant, whether valid, invalid or not selected.

        Raises:
            StageError: `synthesize` has not written any.
        """
        from optimsyn.runs.datasets.pairs import candidates_of

        return candidates_of(self.folder, variant)

    @property
    def dataset(self) -> Dataset:
        """The dataset, written by `synthesize` or a custom stage after it.

        Raises:
            DataError: `synthesize` has not finished.
        """
        from optimsyn.runs.datasets.dataset import Dataset

        return Dataset(self.folder / "dataset")

    def _table(self) -> Table:
        from optimsyn.runs.table import run_table

        return run_table(self)

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r})"


def _running(folder: Path) -> str:
    process = holder_of(folder)
    by = f" by process {process['pid']} since {process['since']}" if {"pid", "since"} <= process.keys() else ""
    return f"{folder.name} is already running{by}"
