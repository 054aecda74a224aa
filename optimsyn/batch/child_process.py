"""One `optimsyn run` in its own process group, with its output logged without secrets."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from optimsyn.base.environment import PARENT, PYTHONUNBUFFERED
from optimsyn.base.environment import variables as all_variables
from optimsyn.base.secrets.redaction import redact
from optimsyn.runs.manifest import now

_READ_BYTES = 1 << 16
# How often to check whether a child that prints nothing has ended.
_LOOK_S = 0.1
# A line is written when it ends; longer ones are split, to bound memory.
_LONGEST_LINE = 1 << 20


def run_command(arguments: Sequence[str]) -> list[str]:
    """The command line of `optimsyn` with this interpreter."""
    return [sys.executable, "-m", "optimsyn", *arguments]


class ChildProcess:
    """A child that this process started and watches.

    Its output comes through a pipe and is redacted before it is appended to the log, so that no secret reaches the
    disk. The child ends when this process does (`optimsyn.batch.lifeline`).

    Attributes:
        reading: The child still has its end of the pipe open.
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
        self._partial = b""
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log.open("a", encoding="utf-8")
        self._write(f"== {now()}  {' '.join(command)}\n")
        required = {PYTHONUNBUFFERED: "1", PARENT: str(os.getpid())}
        self._process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**all_variables(), **required, **(variables or {})},
            cwd=folder,
            # Ctrl-C in the terminal goes to the batch, which ends its runs in order.
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self.output = self._process.stdout
        self.reading = True
        os.set_blocking(self.output.fileno(), False)

    def pump(self) -> None:
        """Writes what the child has printed since the last call."""
        while self.reading:
            try:
                chunk = os.read(self.output.fileno(), _READ_BYTES)
            except BlockingIOError:
                return
            if not chunk:
                self.reading = False
                return
            lines = (self._partial + chunk).splitlines(keepends=True)
            self._partial = b""
            if not lines[-1].endswith(b"\n"):
                self._partial = lines.pop()
                if len(self._partial) >= _LONGEST_LINE:
                    # Cut between words: half a key would not be recognised.
                    cut = self._partial.rfind(b" ") + 1 or len(self._partial)
                    lines.append(self._partial[:cut])
                    self._partial = self._partial[cut:]
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
            self._write(self._partial.decode("utf-8", "replace"))
            self.output.close()
            self._log.close()
        return code

    def stop(self) -> None:
        """Asks the child to end like an interrupted run: it closes kernel and server and updates the manifest."""
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


def watch(children: Sequence[ChildProcess], seconds: float) -> None:
    """Copies the output of children into their logs for a while; returns early when one of them has ended."""
    end = time.monotonic() + seconds
    while (remaining := end - time.monotonic()) > 0:
        reading = [child for child in children if child.reading]
        # On a pipe, or on the end of a child that has closed its output.
        select.select([child.output for child in reading], [], [], min(remaining, _LOOK_S))
        for child in reading:
            child.pump()
        if any(child.ended() is not None for child in children):
            return
