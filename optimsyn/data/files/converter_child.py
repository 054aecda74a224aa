"""The converter's child process: converts one file after another, so that none of them can hang or end a run.

A request is a line of JSON on the standard input, an answer one on the standard output.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import IO, Any

_MB = 1_000_000


def main(memory_mb: int) -> None:
    """Answers requests until the input ends; `memory_mb` is what a conversion may take beyond the libraries."""
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    # What a library prints is no answer.
    os.dup2(2, 1)
    _warm_up()
    _limit_memory(memory_mb * _MB)
    _answer(answers, {"ready": True})
    for line in sys.stdin:
        request = json.loads(line)
        _answer(answers, _loaded(request, memory_mb) if "load" in request else _converted(request, memory_mb))


def memory_spent(memory_mb: int) -> str:
    """What to say of a file that takes too much memory."""
    return f"takes more than documents.limits.memory_mb = {memory_mb} to convert; split it or raise that"


def _warm_up() -> None:
    """Imports what most files need, so that this is in no file's time."""
    import logging

    import markitdown.converters  # noqa: F401

    import optimsyn.data.files.formats  # noqa: F401

    # pdfminer warns about every odd font of every page.
    logging.disable(logging.ERROR)


def _loaded(request: dict[str, Any], memory_mb: int) -> dict[str, Any]:
    """Imports a reader of the user's own; what it imports is not in the memory of a file."""
    from optimsyn.base.errors import DataError
    from optimsyn.data.files.readers import load

    _limit_time(request["seconds"])
    _limit_memory(None)
    # Last, so that nothing that lies beside the reader stands in for a library.
    sys.path += [folder for folder in request["folders"] if folder not in sys.path]
    try:
        load(request["load"])
    except DataError as error:
        return {"error": str(error)}
    finally:
        _limit_memory(memory_mb * _MB)
    return {"loaded": True}


def _read(path: Path, request: dict[str, Any]) -> dict[str, Any]:
    from optimsyn.data.files.readers import load, read_with

    content = read_with(load(request["reader"]), request["called"], path, request["inflated_mb"])
    if isinstance(content, str):
        return {"text": content, "passed": []}
    return {"documents": [document.model_dump(mode="json") for document in content]}


def _converted(request: dict[str, Any], memory_mb: int) -> dict[str, Any]:
    from optimsyn.base.errors import DataError
    from optimsyn.data.files.formats import Limits, convert

    _limit_time(request.pop("seconds"))
    path = Path(request.pop("path"))
    try:
        if "reader" in request:
            return _read(path, request)
        text, passed = convert(path, Limits(**request))
        return {"text": text, "passed": passed}
    except DataError as error:
        return {"error": str(error)}
    except MemoryError:
        return {"error": memory_spent(memory_mb), "spent": True}
    except RecursionError:
        return {"error": "is nested too deeply to be converted; save it again, more simply, or remove it"}
    except Exception as error:  # noqa: BLE001 - a library may raise anything about a broken file; it is that file's fault
        problem = " ".join(f"{type(error).__name__}: {error}".split())
        problem = "".join(c for c in problem if c.isprintable())[-200:]
        return {"error": f"cannot be converted ({problem}); it is cut off or damaged; save it again or remove it"}


def _limit_memory(room: int | None) -> None:
    """Lets this process take so many bytes more than it has now; None: as many as the system gives."""
    try:
        import resource
    except ImportError:  # Windows
        return
    import psutil

    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    wanted = hard if room is None else psutil.Process().memory_info().vms + room
    try:
        resource.setrlimit(resource.RLIMIT_AS, (wanted if hard < 0 else min(wanted, hard), hard))
    except (ValueError, OSError):  # macOS knows the limit but takes none
        return


def _limit_time(seconds: float) -> None:
    """For a child whose parent was killed amid a conversion; a living parent ends it sooner."""
    try:
        import resource
    except ImportError:  # Windows
        return
    used = resource.getrusage(resource.RUSAGE_SELF)
    wanted = int(used.ru_utime + used.ru_stime + 2 * seconds) + 10
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    resource.setrlimit(resource.RLIMIT_CPU, (wanted if hard < 0 else min(wanted, hard), hard))


def _answer(answers: IO[str], value: dict[str, Any]) -> None:
    answers.write(json.dumps(value) + "\n")
    answers.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]))
