"""What a run has learned about its services, stored beside the replies for every process of the run."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from optimsyn.base.disk import cannot_write
from optimsyn.base.errors import DataError
from optimsyn.base.files import write_text
from optimsyn.base.text_files import decode

SERVICES_FILE = "services.json"
LimitName = Literal["max_tokens", "max_completion_tokens", "none"]
LIMIT_NAMES = ("max_tokens", "max_completion_tokens")
# Used where the service itself was not asked.
BY_THE_LIST = "LiteLLM lists it as not taken"
_LOCK_S = 60.0
# Consecutive refusals after which a schema is dropped, if it was never accepted, and if it was.
_UNTAKEN = 3
_TAKEN = 20


@dataclass(frozen=True)
class Learned:
    """What was learned about one model of one service.

    Attributes:
        left_out: Parameters that it refused, with its message; they are no longer sent.
        limit_name: Its name for the limit on a reply; `none`: it takes neither name. None: as LiteLLM lists it.
        schemas_off: It refused every schema, so none is sent any more.
        schemas_left_out: Digests of schemas that it always refused while it accepted others.
        rows: A local model's prompts in a batch after its GPU ran out of memory; None: it did not.
    """

    left_out: Mapping[str, str] = field(default_factory=dict)
    limit_name: LimitName | None = None
    schemas_taken: frozenset[str] = frozenset()
    schemas_off: bool = False
    schemas_left_out: frozenset[str] = frozenset()
    price_unknown: bool = False
    usage: str = ""
    rows: int | None = None

    def as_json(self) -> dict[str, Any]:
        """All fields that differ from their defaults."""
        given = {name: value for name, value in vars(self).items() if value}
        return {name: sorted(value) if isinstance(value, frozenset) else value for name, value in given.items()}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Learned:
        """The inverse of `as_json`; ignores fields of other versions."""
        name = raw.get("limit_name")
        return cls(
            left_out={str(key): str(value) for key, value in (raw.get("left_out") or {}).items()},
            limit_name=name if name in (*LIMIT_NAMES, "none") else None,
            schemas_taken=frozenset(map(str, raw.get("schemas_taken") or ())),
            schemas_off=bool(raw.get("schemas_off")),
            schemas_left_out=frozenset(map(str, raw.get("schemas_left_out") or ())),
            price_unknown=bool(raw.get("price_unknown")),
            usage=str(raw.get("usage") or ""),
            rows=rows if isinstance(rows := raw.get("rows"), int) and rows > 0 else None,
        )

    def sentences(self, name: str) -> list[str]:
        """The same as sentences for a report, without what only follows LiteLLM's list."""
        lines = [
            f"{name} takes no {parameter}; it is not sent"
            for parameter, answer in self.left_out.items()
            if answer != BY_THE_LIST
        ]
        if self.limit_name == "none":
            lines.append(f"{name} takes neither max_tokens nor max_completion_tokens; no limit is sent for its replies")
        elif self.limit_name is not None:
            lines.append(f"{name} takes the longest reply as {self.limit_name}")
        if self.schemas_off:
            lines.append(f"{name} takes no JSON schema; its replies are read without one")
        elif self.schemas_left_out:
            lines.append(f"{name} refuses some JSON schemas, which are not sent")
        if self.price_unknown:
            lines.append(f"the price of {name} is not known, so its cost is not counted")
        if self.usage:
            lines.append(usage_sentence(name, self.usage))
        if self.rows is not None:
            lines.append(f"the GPU had too little memory for larger batches of {name}; they have {self.rows} prompts")
        return lines


def usage_sentence(name: str, counts: str) -> str:
    """That a service's token counts are not used."""
    return (
        f"{name} reports numbers of tokens that cannot be true ({counts}); the tokens are counted from the texts "
        "instead, so tokens and cost are estimates"
    )


def sentences_of(services: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What was learned about the services of a run, as sentences."""
    return [text for name, raw in services.items() for text in Learned.from_json(raw).sentences(name)]


class ServiceMemory:
    """What was learned about all services of a run, in a small file that its processes share (None: in memory)."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._services: dict[str, Learned] = {}
        self._file_version: tuple[int, int, int] | None = None

    @classmethod
    def beside(cls, replies: Path) -> ServiceMemory:
        """The memory of the run with this reply cache."""
        return cls(None if str(replies) == ":memory:" else replies.with_name(SERVICES_FILE))

    def of(self, service: str) -> Learned:
        """What any process has learned about a service."""
        with self._lock:
            self._refresh()
            return self._services.get(service, Learned())

    def change(self, service: str, changed: Callable[[Learned], Learned]) -> bool:
        """Records something about a service; whether it was new to every process of the run.

        Raises:
            DataError: The file cannot be read or written.
        """
        if changed(before := self.of(service)) == before:
            return False
        with self._lock:
            if self.path is None:
                self._services[service] = changed(self._services.get(service, Learned()))
                return True
            try:
                with FileLock(str(self.path.with_name(f".{self.path.name}.lock")), timeout=_LOCK_S):
                    self._refresh()
                    before = self._services.get(service, Learned())
                    after = changed(before)
                    if after == before:
                        return False
                    self._write({**self._services, service: after})
            except (OSError, Timeout) as error:
                raise cannot_write(self.path, "what services answered", error) from error
            return True

    def _refresh(self) -> None:
        if self.path is None:
            return
        try:
            status = self.path.stat()
        except FileNotFoundError:
            return
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read ({error})") from error
        version = (status.st_ino, status.st_mtime_ns, status.st_size)
        if version != self._file_version:
            self._services = {name: Learned.from_json(raw) for name, raw in read_services(self.path).items()}
            self._file_version = version

    def _write(self, services: Mapping[str, Learned]) -> None:
        assert self.path is not None
        raw = {name: services[name].as_json() for name in sorted(services)}
        write_text(self.path, json.dumps(raw, indent=2, ensure_ascii=False) + "\n")
        self._services = dict(services)
        status = self.path.stat()
        self._file_version = (status.st_ino, status.st_mtime_ns, status.st_size)


def read_services(path: Path) -> dict[str, dict[str, Any]]:
    """The content of the file; empty if there is none."""
    try:
        raw = json.loads(decode(path.read_bytes(), str(path)))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); delete it, and the services are asked again") from error
    if not isinstance(raw, dict) or not all(isinstance(value, dict) for value in raw.values()):
        raise DataError(f"{path}: holds no answers of services; delete it, and they are asked again")
    return raw


class SchemaCounts:
    """Counts which schemas a service accepts: it may reject one of them, or all."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._in_a_row: dict[str, int] = {}
        self._all_in_a_row = 0

    def taken(self, digest: str) -> None:
        """A request with this schema was answered."""
        with self._lock:
            self._in_a_row[digest] = self._all_in_a_row = 0

    def refused(self, digest: str, known: Learned) -> Learned:
        """What is known after a request with this schema was refused, and answered without it."""
        with self._lock:
            self._all_in_a_row += 1
            self._in_a_row[digest] = self._in_a_row.get(digest, 0) + 1
            if self._all_in_a_row >= (_TAKEN if known.schemas_taken else _UNTAKEN):
                return replace(known, schemas_off=True)
            if self._in_a_row[digest] >= (_TAKEN if digest in known.schemas_taken else _UNTAKEN):
                return replace(known, schemas_left_out=known.schemas_left_out | {digest})
            return known
