"""The converter's child process: converts files, so that none of them can hang or end a run.

Requests are lines of JSON on standard input, answers on standard output.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

_MB = 1_000_000


def main(memory_mb: int) -> None:
    """Answers requests until the input ends; `memory_mb` is the limit of a conversion beyond the libraries."""
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    # Keep what libraries print out of the answers.
    os.dup2(2, 1)
    _warm_up()
    _limit_memory(memory_mb * _MB)
    _answer(answers, {"ready": True})
    for line in sys.stdin:
        request = json.loads(line)
        _answer(answers, _loaded(request, memory_mb) if "load" in request else _converted(request, memory_mb))


def memory_spent(memory_mb: int) -> str:
    """The message for a file that takes too much memory."""
    return f"takes more than documents.limits.memory_mb = {memory_mb} to convert; split it or raise that"


def _warm_up() -> None:
    """Imports the usual libraries, so that this does not count as a file's time."""
    import logging

    import markitdown.converters  # noqa: F401

    import optimsyn.data.files.formats  # noqa: F401

    # pdfminer warns about every odd font of every page.
    logging.disable(logging.ERROR)


def _loaded(request: dict[str, Any], memory_mb: int) -> dict[str, Any]:
    """Imports a custom reader; its imports do not count as a file's memory."""
    from optimsyn.base.errors import DataError
    from optimsyn.data.files.readers import load

    _limit_time(request["seconds"])
    _limit_memory(None)
    # Last, so that no file beside the reader shadows a library.
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

    content = read_with(load(request["reader"]), request["called"], path, request["limits"]["inflated_mb"])
    if isinstance(content, str):
        return {"text": content}
    return {"documents": [document.model_dump(mode="json") for document in content]}


def _converted(request: dict[str, Any], memory_mb: int) -> dict[str, Any]:
    from optimsyn.base.errors import DataError
    from optimsyn.data.files.formats import convert
    from optimsyn.data.files.page_pictures import draw
    from optimsyn.recipe.sections.data import FileLimits

    _limit_time(request["seconds"])
    path = Path(request["path"])
    try:
        if "reader" in request:
            return _read(path, request)
        if "draw" in request:
            draw(path, request["draw"], Path(request["into"]))
            return {"drawn": True}
        return asdict(convert(path, FileLimits(**request["limits"]), request["encoding"], ocr=request["ocr"]))
    except DataError as error:
        return {"error": str(error)}
    except MemoryError:
        return {"error": memory_spent(memory_mb), "spent": True}
    except RecursionError:
        return {"error": "is nested too deeply to be converted; save it again, more simply, or remove it"}
    except Exception as error:  # noqa: BLE001 - libraries raise anything for a broken file
        problem = " ".join(f"{type(error).__name__}: {error}".split())
        problem = "".join(c for c in problem if c.isprintable())[-200:]
        return {"error": f"cannot be converted ({problem}); it is cut off or damaged; save it again or remove it"}


def _limit_memory(room: int | None) -> None:
    """Limits this process to so many bytes more than it uses now; None: no limit."""
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
    """For a child whose parent was killed; a running parent ends it sooner."""
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
