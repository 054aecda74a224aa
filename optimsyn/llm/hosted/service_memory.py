"""What the services of a run have answered about themselves, kept beside the replies for every process of the run."""

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
from optimsyn.base.text_files import decode

SERVICES_FILE = "services.json"
# In place of a service's own answer.
BY_THE_LIST = "LiteLLM lists it as not taken"
_LOCK_S = 60.0
# Refusals in a row that settle a schema which was never taken, and one that was.
_UNTAKEN = 3
_TAKEN = 20


@dataclass(frozen=True)
class Learned:
    """What one service has answered about one model.

    Attributes:
        left_out: Parameters that it refused, and what it said to each; they are not sent any more.
        limit_name: What it calls the longest reply; `none`: it takes neither name. None: as LiteLLM lists it.
        schemas_taken: Digests of JSON schemas that it took.
        schemas_off: It refused every schema, so none is sent any more.
        schemas_left_out: Digests of schemas that it refused each time while it took others.
        price_unknown: It sent replies whose price nobody knows.
        usage: What it said about the tokens of a request that cannot be true; empty where it never did.
    """

    left_out: Mapping[str, str] = field(default_factory=dict)
    limit_name: LimitName | None = None
    schemas_taken: frozenset[str] = frozenset()
    schemas_off: bool = False
    schemas_left_out: frozenset[str] = frozenset()
    price_unknown: bool = False
    usage: str = ""

    def as_json(self) -> dict[str, Any]:
        """What is worth writing: everything that is not as it was at the start."""
        known: dict[str, Any] = {}
        if self.left_out:
            known["left_out"] = dict(self.left_out)
        if self.limit_name is not None:
            known["limit_name"] = self.limit_name
        if self.schemas_off:
            known["schemas_off"] = True
        for name in ("schemas_taken", "schemas_left_out"):
            if digests := getattr(self, name):
                known[name] = sorted(digests)
        if self.price_unknown:
            known["price_unknown"] = True
        if self.usage:
            known["usage"] = self.usage
        return known

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Learned:
        """The same read back; what another version wrote beside it is passed over."""
        name = raw.get("limit_name")
        return cls(
            left_out={str(key): str(value) for key, value in (raw.get("left_out") or {}).items()},
            limit_name=name if name in (*LIMIT_NAMES, "none") else None,
            schemas_taken=frozenset(map(str, raw.get("schemas_taken") or ())),
            schemas_off=bool(raw.get("schemas_off")),
            schemas_left_out=frozenset(map(str, raw.get("schemas_left_out") or ())),
            price_unknown=bool(raw.get("price_unknown")),
            usage=str(raw.get("usage") or ""),
        )

    def sentences(self, name: str) -> list[str]:
        """The same for a person who reads about the run; what only follows LiteLLM's list is left out.

        Args:
            name: The service.
        """
        said = [
            f"{name} takes no {parameter}; it is not sent"
            for parameter, answer in self.left_out.items()
            if answer != BY_THE_LIST
        ]
        if self.limit_name == "none":
            said.append(f"{name} takes neither max_tokens nor max_completion_tokens; no limit is sent for its replies")
        elif self.limit_name is not None:
            said.append(f"{name} takes the longest reply as {self.limit_name}")
        if self.schemas_off:
            said.append(f"{name} takes no JSON schema; its replies are read without one")
        elif self.schemas_left_out:
            said.append(f"{name} refuses some JSON schemas, which are not sent")
        if self.price_unknown:
            said.append(f"the price of {name} is not known, so its cost is not counted")
        if self.usage:
            said.append(usage_sentence(name, self.usage))
        return said


def usage_sentence(name: str, said: str) -> str:
    """That a service's usage is not believed.

    Args:
        name: The service.
        said: What it says.
    """
    return (
        f"{name} reports numbers of tokens that cannot be true ({said}); in their place the tokens are counted "
        "from the texts, so tokens and cost are estimates"
    )


def sentences_of(services: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What the services of a run have answered about themselves, for a person.

    Args:
        services: As in a manifest, or from `read_services`.
    """
    return [text for name, raw in services.items() for text in Learned.from_json(raw).sentences(name)]


class ServiceMemory:
    """What all services of a run have answered, in one small file that its processes share.

    Args:
        path: The file; None keeps it in this process.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._known: dict[str, Learned] = {}
        self._seen: tuple[int, int, int] | None = None

    @classmethod
    def beside(cls, replies: Path) -> ServiceMemory:
        """The memory of the run whose replies lie in this file."""
        return cls(None if str(replies) == ":memory:" else replies.with_name(SERVICES_FILE))

    def of(self, service: str) -> Learned:
        """What a service has answered so far, in any process.

        Raises:
            DataError: The file is there and cannot be read.
        """
        with self._lock:
            self._refresh()
            return self._known.get(service, Learned())

    def change(self, service: str, changed: Callable[[Learned], Learned]) -> bool:
        """Records something new; what is known already is not written again.

        Args:
            service: Whose answer it is.
            changed: From what is known to what is known now.

        Returns:
            Whether it was new to every process of the run.

        Raises:
            DataError: The file cannot be read or written.
        """
        if changed(before := self.of(service)) == before:
            return False
        with self._lock:
            if self.path is None:
                self._known[service] = changed(self._known.get(service, Learned()))
                return True
            try:
                with FileLock(str(self.path.with_name(f".{self.path.name}.lock")), timeout=_LOCK_S):
                    self._refresh()
                    before = self._known.get(service, Learned())
                    after = changed(before)
                    if after == before:
                        return False
                    self._write({**self._known, service: after})
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
        seen = (status.st_ino, status.st_mtime_ns, status.st_size)
        if seen != self._seen:
            self._known = {name: Learned.from_json(raw) for name, raw in read_services(self.path).items()}
            self._seen = seen

    def _write(self, known: Mapping[str, Learned]) -> None:
        from optimsyn.base.files import write_text

        assert self.path is not None
        raw = {name: known[name].as_json() for name in sorted(known)}
        write_text(self.path, json.dumps(raw, indent=2, ensure_ascii=False) + "\n")
        self._known = dict(known)
        status = self.path.stat()
        self._seen = (status.st_ino, status.st_mtime_ns, status.st_size)


def read_services(path: Path) -> dict[str, dict[str, Any]]:
    """The file as it stands, or nothing where there is none.

    Raises:
        DataError: It is not what optimsyn writes.
    """
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
    """Counts which schemas a service accepts: it may fail to read one of them, or read none at all."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._in_a_row: dict[str, int] = {}
        self._all_in_a_row = 0

    def taken(self, digest: str) -> None:
        """A request with this schema was answered."""
        with self._lock:
            self._in_a_row[digest] = self._all_in_a_row = 0

    def refused(self, digest: str, known: Learned) -> Learned:
        """A request with this schema was refused, and answered without it.

        Returns:
            What is known of the service now.
        """
        with self._lock:
            self._all_in_a_row += 1
            self._in_a_row[digest] = self._in_a_row.get(digest, 0) + 1
            if self._all_in_a_row >= (_TAKEN if known.schemas_taken else _UNTAKEN):
                return replace(known, schemas_off=True)
            if self._in_a_row[digest] >= (_TAKEN if digest in known.schemas_taken else _UNTAKEN):
                return replace(known, schemas_left_out=known.schemas_left_out | {digest})
            return known


LimitName = Literal["max_tokens", "max_completion_tokens", "none"]


LIMIT_NAMES = ("max_tokens", "max_completion_tokens")
