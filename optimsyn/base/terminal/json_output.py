"""`--json`: one JSON document on standard output in place of text; all else goes to standard error.

This module stays light, as every command loads it; `optimsyn.base.terminal.json_document` has the document's models.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from typer.core import TyperCommand

from optimsyn.base.errors import OptimsynError, ParameterError, RecipeError, disk_trouble
from optimsyn.base.secrets.redaction import redact

if TYPE_CHECKING:
    from optimsyn.base.terminal.json_document import Result

FLAG = "--json"
FAILED, WRONG_RECIPE, INTERRUPTED = 1, 2, 130
# Typer may bring its own copy of click, whose error this is.
_UsageError: Any = typer.BadParameter.__base__


class JsonCommand(TyperCommand):
    """A command with the option `--json`."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.params.append(_json_option())


def _json_option() -> Any:
    """The option as typer makes it, whose own constructor differs between versions."""
    one = typer.Typer(add_completion=False)

    @one.command()
    def _command(
        as_json: Annotated[
            bool,
            typer.Option(FLAG, expose_value=False, help="Print one JSON document; all else goes to standard error."),
        ] = False,
    ) -> None:
        pass

    return typer.main.get_command(one).params[0]


class PairsCommand(JsonCommand):
    """A command whose option `-p` takes a name and a value as two words, as papermill's does."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Joins the two words to `NAME=VALUE`, which may also be written as one."""
        words = list(args)
        joined: list[str] = []
        while words:
            joined.append(words.pop(0))
            if joined[-1] in ("-p", "--parameters") and words:
                name = words.pop(0)
                joined.append(name if "=" in name or not words else f"{name}={words.pop(0)}")
        return super().parse_args(ctx, joined)


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, and of an error its kind and message."""

    code: int
    kind: str = ""
    message: str = ""


class JsonOutput:
    """What the document of this process is going to hold.

    Attributes:
        asked: Whether the command line has `--json`.
    """

    def __init__(self) -> None:
        self.asked = False
        self._result: Callable[[], Result] | None = None
        self._secret_names: tuple[str, ...] = ()

    def deliver(self, result: Callable[[], Result], secret_names: Sequence[str] = ()) -> None:
        """Sets the result; it is made when the command ends, also by an error, and only for `--json`.

        Args:
            result: Makes the result, of the state at the end.
            secret_names: Further environment variables that hold secrets.
        """
        self._result, self._secret_names = result, tuple(secret_names)

    @contextmanager
    def on(self, arguments: Sequence[str]) -> Iterator[TextIO | None]:
        """Sends everything that the block prints to standard error if `--json` was asked for.

        Yields:
            Where the document goes; None without `--json`.
        """
        before_dashes = arguments[: arguments.index("--")] if "--" in arguments else arguments
        self.asked = FLAG in before_dashes
        self._result, self._secret_names = None, ()
        if not self.asked:
            yield None
            return
        with _standard_output_apart() as stream, redirect_stdout(sys.stderr):
            yield stream

    def write(self, stream: TextIO, command: str, ended: Ended) -> Ended:
        """Writes the document, without secrets.

        Args:
            stream: Where to.
            command: The command, as it was typed.
            ended: How it ended.

        Returns:
            How it ended: also failed if its result cannot be made.
        """
        from optimsyn.base.terminal.json_document import Document, Failed

        result = None
        if self._result is not None:
            try:
                result = self._result()
            except OptimsynError as error:
                # An error that ended the command matters more than a result that cannot be read.
                ended = ended if ended.kind else Ended(ended.code or 1, type(error).__name__, str(error))
        failed = None
        if ended.kind:
            failed = Failed(kind=ended.kind, message=ended.message)
        elif ended.code:
            failed = Failed(kind="NotDone", message=f"exit code {ended.code}; the result says what is not done")
        document = Document(command=command, ok=failed is None, result=result, error=failed)
        stream.write(document.text(self._secret_names) + "\n")
        return ended


JSON_OUTPUT = JsonOutput()


def command_of(arguments: Sequence[str]) -> str:
    """The command of a command line; "" without one."""
    return next((word for word in arguments if not word.startswith("-")), "")


def called(command: Callable[[], Any]) -> Ended:
    """Calls the command line and turns errors into messages on standard error, and an exit code."""
    try:
        ended = Ended(command() or 0)
    except SystemExit as leave:
        ended = Ended(leave.code if isinstance(leave.code, int) else int(leave.code is not None))
    except _UsageError as error:
        error.show()
        return Ended(WRONG_RECIPE, "UsageError", error.format_message())
    except (RecipeError, ParameterError) as error:
        return _failed(error, WRONG_RECIPE)
    except OptimsynError as error:
        return _failed(error, FAILED)
    except Exception as error:  # noqa: BLE001 (printed without secrets: even a bug must not print a key)
        text = redact(disk_trouble(error) or traceback.format_exc())
        sys.stderr.write(text)
        return Ended(FAILED, type(error).__name__, text)
    if ended.code == INTERRUPTED:
        text = "Interrupted; everything so far is kept, the same command continues."
        sys.stderr.write(f"\n{text}\n")
        return Ended(INTERRUPTED, "Interrupted", text)
    return ended


def _failed(error: OptimsynError, code: int) -> Ended:
    text = redact("\n".join([str(error), *getattr(error, "__notes__", ())]))
    sys.stderr.write(f"{type(error).__name__}: {text}\n")
    return Ended(code, type(error).__name__, text)


@contextmanager
def _standard_output_apart() -> Iterator[TextIO]:
    """Standard output of before the block; in the block, child processes and C libraries write to standard error."""
    sys.stdout.flush()
    try:
        shared = sys.stdout.fileno() == 1
    except (OSError, ValueError):
        shared = False
    if not shared:
        yield sys.stdout
        return
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with os.fdopen(kept, "w", encoding="utf-8", closefd=False) as stream:
            yield stream
    finally:
        with suppress(OSError):
            sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
