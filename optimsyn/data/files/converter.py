"""Converts files in a child process that can be killed: a zip bomb, a hang or a crash affects one file only."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from optimsyn.base.environment import CONVERTER, OMP_NUM_THREADS, PYTHONUTF8, variables
from optimsyn.base.errors import DataError
from optimsyn.data.files.converter_child import memory_spent
from optimsyn.data.files.formats import tidy
from optimsyn.data.files.ocr import Ocr
from optimsyn.data.files.readers import NamedReader, read_with
from optimsyn.data.records import Document
from optimsyn.recipe.sections.data import FileLimits

_PACKAGE_ROOT = str(Path(__file__).parents[3])
# On a busy machine the libraries take a while to import.
_START_SECONDS = 300
# Not `python -m`: use the parent's sys.path, and never the working directory.
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from optimsyn.data.files.converter_child import main; main(int(sys.argv[2]))"
)


@dataclass(frozen=True)
class Converted:
    """The content of a file.

    Attributes:
        passed: Names of ignored parts (attachments).
        documents: Documents from a custom reader, instead of a text.
        unread: The numbers of the pages that are pictures of text and were not read.
    """

    text: str
    passed: tuple[str, ...] = ()
    documents: tuple[Document, ...] | None = None
    unread: tuple[int, ...] = ()


class Converter:
    """One child process for many files, started with the first and restarted when a file ends it."""

    def __init__(self, limits: FileLimits, encoding: str | None = None, ocr: Ocr | None = None) -> None:
        self.limits = limits
        self.encoding = encoding
        self.ocr = ocr
        self._child: _Child | None = None
        self._loaded: set[str] = set()

    def convert(self, path: Path, reader: NamedReader | None = None) -> Converted:
        """The text of a file.

        Raises:
            DataError: The file cannot be converted within the limits; the message lacks its path.
        """
        limits = self.limits
        if reader is not None and reader.importable is None:
            content = read_with(reader.part, reader.reference, path, limits.inflated_mb)
            return Converted(content) if isinstance(content, str) else Converted("", (), tuple(content))
        if reader is not None and reader.importable not in self._loaded:
            # The time of imports does not count for a file.
            self._answer({"load": reader.importable, "folders": reader.folders, "seconds": _START_SECONDS})
            self._loaded.add(str(reader.importable))
        request: dict[str, Any] = {"path": str(path), "seconds": limits.seconds, "encoding": self.encoding}
        request |= {"limits": limits.model_dump(), "ocr": self.ocr is not None}
        if reader is not None:
            request |= {"reader": reader.importable, "called": reader.reference}
        answer = self._answer(request)
        if "documents" in answer:
            return Converted("", (), tuple(Document.model_validate(row) for row in answer["documents"]))
        pictures = answer.get("pictures", ())
        if self.ocr is None or not pictures:
            return Converted(answer["text"], tuple(answer.get("passed", ())), unread=tuple(pictures))
        read = self.ocr.read(
            path, pictures, lambda page, into: self._answer(request | {"draw": page, "into": str(into)})
        )
        pages = [read.get(number, text) for number, text in enumerate(answer["pages"], 1)]
        return Converted(tidy("\f".join(pages), limits))

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """The child's answer; starts a missing child, and ends one that fails."""
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
        """The child's process id, if there is one."""
        return self._child.process_id if self._child is not None else None

    def close(self) -> None:
        """Ends the child."""
        if self._child is not None:
            self._child.end()
            self._child = None
            self._loaded.clear()


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
            # The parent handles Ctrl-C.
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
        """The process id."""
        return self._process.pid

    def ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any]:
        """The answer to a request.

        Raises:
            TimeoutError: No answer in time.
            EOFError: The child has ended; with the exit status or signal.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            pass  # it has ended, which `_next` reports
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
        """The last line of its standard error."""
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
