"""Converts files in a child process that can be ended: a bomb, a hang or a crash is one file's fault, not the run's."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from optimsyn.base.environment import CONVERTER, OMP_NUM_THREADS, PYTHONUTF8, variables
from optimsyn.base.errors import DataError
from optimsyn.data.files.converter_child import memory_spent
from optimsyn.data.files.readers import NamedReader, read_with
from optimsyn.data.records import Document
from optimsyn.recipe.sections.data import FileLimits

_PACKAGE_ROOT = str(Path(__file__).parents[3])
# On a busy machine the libraries take a while to import.
_START_SECONDS = 300
# Not `python -m`: the parent's own path is used, wherever its packages lie, and never the working directory.
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from optimsyn.data.files.converter_child import main; main(int(sys.argv[2]))"
)


@dataclass(frozen=True)
class Converted:
    """What a file holds.

    Attributes:
        text: As Markdown.
        passed: Names of what lies in it and is not read (attachments).
        documents: What a reader of the user's own gave instead of a text.
    """

    text: str
    passed: tuple[str, ...] = ()
    documents: tuple[Document, ...] | None = None


class Converter:
    """One child for many files, started with the first and again after one that ended it."""

    def __init__(self, limits: FileLimits, encoding: str | None = None) -> None:
        self.limits = limits
        self.encoding = encoding
        self._child: _Child | None = None
        self._loaded: set[str] = set()

    def convert(self, path: Path, reader: NamedReader | None = None) -> Converted:
        """The text of a file.

        Args:
            path: The file.
            reader: Of the user's own, in place of the built-in ones.

        Raises:
            DataError: The file cannot be converted within the limits; says why and the cure, without its path.
        """
        limits = self.limits
        if reader is not None and reader.importable is None:
            content = read_with(reader.part, reader.reference, path, limits.inflated_mb)
            return Converted(content) if isinstance(content, str) else Converted("", (), tuple(content))
        if reader is not None and reader.importable not in self._loaded:
            # Importing what a reader needs is in no file's time.
            self._answer({"load": reader.importable, "folders": reader.folders, "seconds": _START_SECONDS})
            self._loaded.add(str(reader.importable))
        request = {
            "path": str(path),
            "seconds": limits.seconds,
            "inflated_mb": limits.inflated_mb,
            "inflated_ratio": limits.inflated_ratio,
            "nesting": limits.nesting,
            "pages": limits.pages,
            "encoding": self.encoding,
        }
        if reader is not None:
            request |= {"reader": reader.importable, "called": reader.reference}
        answer = self._answer(request)
        if "documents" in answer:
            return Converted("", (), tuple(Document.model_validate(row) for row in answer["documents"]))
        return Converted(answer["text"], tuple(answer["passed"]))

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """What the child answers; it is started where there is none, and ended where it fails."""
        limits = self.limits
        if self._child is None:
            self._child = _Child(limits.memory_mb)
        try:
            answer = self._child.ask(request, request["seconds"])
        except TimeoutError:
            self.close()
            if "load" in request:
                slow = f"cannot be read: importing the reader {request['load']} takes longer than {_START_SECONDS} s"
                raise DataError(slow) from None
            raise DataError(
                f"takes longer to convert than documents.limits.seconds = {limits.seconds:g}; split it or raise that"
            ) from None
        except EOFError as error:
            last_words = self._child.last_words()
            self.close()
            if "MemoryError" in last_words or "bad_alloc" in last_words:
                raise DataError(memory_spent(limits.memory_mb)) from None
            raise DataError(f"ended the program that converts it ({error}); save it again or remove it") from None
        if answer.get("spent"):
            self.close()
        if "error" in answer:
            raise DataError(answer["error"])
        return answer

    @property
    def process_id(self) -> int | None:
        """Of the child, while there is one."""
        return self._child.process_id if self._child is not None else None

    def close(self) -> None:
        """Ends the child."""
        if self._child is not None:
            self._child.end()
            self._child = None
            self._loaded.clear()


@contextmanager
def converting(limits: FileLimits, encoding: str | None = None) -> Iterator[Converter]:
    """A converter whose child is ended with the block, however it is left."""
    converter = Converter(limits, encoding)
    try:
        yield converter
    finally:
        converter.close()


class _Child:
    def __init__(self, memory_mb: int) -> None:
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed in end()
        where = json.dumps([_PACKAGE_ROOT, *(folder for folder in sys.path if folder)])
        environment = {name: value for name, value in variables().items() if name.upper() in CONVERTER}
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, where, str(memory_mb)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            env=environment | {OMP_NUM_THREADS: "1", PYTHONUTF8: "1"},
            # An interrupt at the keyboard is the parent's to handle.
            start_new_session=True,
        )
        self._answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        assert self._process.stdout is not None
        threading.Thread(target=_pass_on, args=(self._process.stdout, self._answers), daemon=True).start()
        try:
            self._next(_START_SECONDS)
        except (TimeoutError, EOFError):
            last_words = self.last_words()
            self.end()
            raise DataError(
                f"cannot be converted: the program for it does not start; {last_words or 'it says nothing'}"
            ) from None

    @property
    def process_id(self) -> int:
        """Of this process."""
        return self._process.pid

    def ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        """The answer to a request.

        Raises:
            TimeoutError: There is none in time.
            EOFError: The child has ended; says how.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            pass  # it has ended, which the next line tells
        return self._next(seconds)

    def _next(self, seconds: float) -> dict[str, Any]:
        try:
            line = self._answers.get(timeout=seconds)
        except queue.Empty:
            raise TimeoutError from None
        if not line.endswith(b"\n"):
            try:
                code = self._process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                code = self._process.wait()
            raise EOFError(f"signal {-code}" if code < 0 else f"exit status {code}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def last_words(self) -> str:
        """The last line that it or a library wrote as an error."""
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else ""

    def end(self) -> None:
        """Kills it, which is safe at any moment: it writes nothing."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._said):
            assert pipe is not None
            with suppress(OSError):
                pipe.close()


def _pass_on(pipe: IO[bytes], answers: queue.SimpleQueue[bytes]) -> None:
    with pipe:
        for line in pipe:
            answers.put(line)
    answers.put(b"")
