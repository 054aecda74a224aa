"""One `optimsyn run` in a process group of its own, whose output goes to a log without secrets."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from optimsyn.base.environment import PARENT, PYTHONUNBUFFERED
from optimsyn.base.environment import variables as all_variables
from optimsyn.base.secrets.redaction import redact
from optimsyn.runs.manifest import now

_READ_BYTES = 1 << 16
# A line is written when it ends; one that never ends is cut into parts, so that memory stays small.
_LONGEST_LINE = 1 << 20


def run_command(arguments: Sequence[str]) -> list[str]:
    """The command line of `optimsyn` with this very interpreter."""
    return [sys.executable, "-m", "optimsyn", *arguments]


class ChildProcess:
    """A child that this process started and watches.

    What it prints arrives through a pipe and is written to the log without secrets, so that none ever lies on the
    disk. The child ends when this process does (`optimsyn.batch.lifeline`).

    Attributes:
        output: The pipe that the child prints into.
        reading: The child still has its end of the pipe.

    Args:
        command: Program and arguments.
        log: The file that its output is appended to.
        variables: Environment variables beside those of this process.
        secret_names: Variables that hold secrets beside those whose name says so.
        folder: Working directory; None is this process's own.
    """

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        *,
        variables: Mapping[str, str] | None = None,
        secret_names: Iterable[str] = (),
        folder: str | None = None,
    ) -> None:
        self._secret_names = tuple(secret_names)
        self._rest = b""
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log.open("a", encoding="utf-8")
        self._write(f"== {now()}  {' '.join(command)}\n")
        ours = {PYTHONUNBUFFERED: "1", PARENT: str(os.getpid())}
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**all_variables(), **ours, **(variables or {})},
            cwd=folder,
            # A Ctrl-C in the terminal is for the batch, which ends its runs in order.
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self.output = self._process.stdout
        self.reading = True
        os.set_blocking(self.output.fileno(), False)

    @property
    def pid(self) -> int:
        """Its process number, and that of its process group."""
        return self._process.pid

    def pump(self) -> None:
        """Writes what the child has printed since the last call."""
        while self.reading:
            try:
                piece = os.read(self.output.fileno(), _READ_BYTES)
            except BlockingIOError:
                return
            if not piece:
                self.reading = False
                return
            lines = (self._rest + piece).splitlines(keepends=True)
            self._rest = b""
            if not lines[-1].endswith(b"\n"):
                self._rest = lines.pop()
                if len(self._rest) >= _LONGEST_LINE:
                    # Between words: a key that is cut in two would not be known in either half.
                    cut = self._rest.rfind(b" ") + 1 or len(self._rest)
                    lines.append(self._rest[:cut])
                    self._rest = self._rest[cut:]
            if lines:
                self._write(b"".join(lines).decode("utf-8", "replace"))

    def ended(self) -> int | None:
        """Its exit code (negative: the signal that killed it), or None while it runs."""
        if self.output.closed:
            return self._process.returncode
        code = self._process.poll()
        if code is not None:
            self.pump()
            self.reading = False
            self._write(self._rest.decode("utf-8", "replace"))
            self.output.close()
            self._log.close()
        return code

    def stop(self) -> None:
        """Asks the child to end like an interrupted run: kernel and server are closed, the manifest says why."""
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kills the child's whole group; its kernel dies with it."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _write(self, text: str) -> None:
        if text:
            self._log.write(redact(text, self._secret_names))
            self._log.flush()
