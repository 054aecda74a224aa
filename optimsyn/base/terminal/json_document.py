"""The JSON document that a command prints with `--json`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny

from optimsyn.base.secrets.redaction import redact_tree, secret_values
from optimsyn.base.version import __version__


class Part(BaseModel):
    """A part of a document."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class Result(Part):
    """The result of a command.

    Attributes:
        format: The version of its fields; a field may be added within one, never renamed, removed or changed.
    """

    format: Literal[1] = Field(1, alias="schema", description="Version of the fields below.")


class Failed(Part):
    """Why a command did not do what was asked."""

    kind: str = Field(description="Name of the error, as in the message; `NotDone` where only the exit code says it.")
    message: str = Field(description="What is wrong, where, and what to do.")


class Document(Part):
    """Everything that a command prints with `--json`."""

    optimsyn: str = Field(__version__, description="The version of optimsyn.")
    command: str = Field(description="The command, such as `validate`.")
    ok: bool = Field(description="Whether the exit code is 0.")
    result: SerializeAsAny[Result] | None = Field(description="What the command has to say; null if it has nothing.")
    error: Failed | None = Field(description="What went wrong; null if `ok`.")

    def text(self, secret_names: Sequence[str] = ()) -> str:
        """The document on one line, without secrets; a number that is not finite is null."""
        # pydantic writes NaN and infinities as null, which JSON requires.
        plain = json.loads(self.model_dump_json(by_alias=True))
        return json.dumps(redact_tree(plain, secret_values(secret_names)), ensure_ascii=False)
