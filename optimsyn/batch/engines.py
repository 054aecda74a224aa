"""Where the runs of a batch work: the engine protocol, and the engine that uses processes on this machine."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from optimsyn.base.environment import EMBEDDED_KEY, EMBEDDED_URL
from optimsyn.base.errors import ModelError
from optimsyn.batch.child_process import ChildProcess, run_command, watch
from optimsyn.batch.plan import Job

if TYPE_CHECKING:
    from optimsyn.llm.embedded.server import EmbeddedServer

_log = logging.getLogger(__name__)


class Started(Protocol):
    """A run that an engine has started."""

    def ended(self) -> int | None:
        """Its exit code (negative: the signal that killed it), or None while it runs."""

    def stop(self) -> None:
        """Asks it to end like an interrupted run."""

    def kill(self) -> None:
        """Ends it at once."""


class Engine(Protocol):
    """Starts runs and waits for them, on this machine (`here`) or elsewhere."""

    name: str
    here: bool

    def start(self, job: Job, log: Path, variables: Mapping[str, str]) -> Started:
        """Starts a run with these environment variables; its output is appended to the log."""

    def wait(self, seconds: float) -> None:
        """Waits; returns early when a run may have ended."""

    def close(self) -> None:
        """Releases what the runs shared; none of them may be running."""


def arguments(job: Job) -> list[str]:
    """The arguments of `optimsyn` for a run: its folder, so that later changes to the recipe file have no effect."""
    return ["run", str(job.opened.folder), "--stage", job.stages[-1]]


class ProcessEngine:
    """Runs in processes on this machine, so many at once, which share one server of the embedded model."""

    name = "processes"
    here = True

    def __init__(self, most: int) -> None:
        self._most = most
        self._children: list[ChildProcess] = []
        self._server: EmbeddedServer | None = None

    def start(self, job: Job, log: Path, variables: Mapping[str, str]) -> Started:
        """Starts a run, and the embedded model's server with the first run that needs it."""
        everything = {**variables, **(self._embedded() if job.embedded else {})}
        secret_names = job.opened.secret_names
        child = ChildProcess(run_command(arguments(job)), log, variables=everything, secret_names=secret_names)
        self._children.append(child)
        return child

    def wait(self, seconds: float) -> None:
        """Copies the runs' output into their logs."""
        self._children = [child for child in self._children if child.ended() is None]
        watch(self._children, seconds)

    def close(self) -> None:
        """Closes the shared server."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def _embedded(self) -> dict[str, str]:
        """Environment variables with the shared server's address and key."""
        from optimsyn.llm.embedded.server import EmbeddedServer

        if self._server is None or not self._server.alive:
            self.close()
            # Four slots for each run, but no more than there are cores.
            server = EmbeddedServer(slots=max(4, min(4 * self._most, os.cpu_count() or 1)), publish=False)
            try:
                self._server = server.start()
            except ModelError as error:
                # The run then starts its own server; if that fails too, it reports why.
                _log.warning("no shared server of the embedded model: %s", error)
                return {}
        return {EMBEDDED_URL: self._server.url, EMBEDDED_KEY: self._server.key}
