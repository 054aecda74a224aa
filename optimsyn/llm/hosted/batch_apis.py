"""The batch APIs of OpenAI (and servers with its protocol) and Anthropic: submit, poll, fetch results, find again.

LiteLLM builds every request and reads every reply, in a batch as elsewhere; this module only transports them. LiteLLM
(1.106) cannot send batches to Anthropic, so the few calls are made here for both providers.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import httpx

# Headers with keys and API versions, copied from a request to its batch.
_CARRIED = (
    "authorization x-api-key api-key anthropic-version anthropic-beta openai-organization openai-project"
).split()
# HTTP status of the error types in Anthropic's results.
_ANTHROPIC_STATUS = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}
_LIMIT_CODES = ("token_limit_exceeded", "request_limit_exceeded")
# Clocks differ between machines, and a batch may be created a little after the request.
_CLOCKS_S = 120.0
_CALL_S = 120.0
_LISTED = 100


@dataclass(frozen=True)
class Target:
    """Where requests of one kind go: the address of a single request, and its headers.

    Attributes:
        headers: Keys and versions; never written anywhere.
    """

    url: str
    headers: tuple[tuple[str, str], ...] = field(repr=False)

    @classmethod
    def of(cls, request: httpx.Request) -> Target:
        """The target of an intercepted request."""
        headers = tuple((name, request.headers[name]) for name in _CARRIED if name in request.headers)
        return cls(str(request.url), headers)

    @property
    def service(self) -> BatchService:
        """The batch API behind it."""
        path = httpx.URL(self.url).path
        return AnthropicBatches(self) if path.endswith("/messages") else OpenAIBatches(self)


@dataclass(frozen=True)
class Answer:
    """The result of one request of a batch.

    Attributes:
        status: HTTP status of a single request; 0 when it was never answered.
        body: Body of a single request's response.
    """

    status: int = 0
    body: str = ""

    @property
    def unanswered(self) -> bool:
        """The batch expired, was cancelled, or its results lack the request, which then cost nothing."""
        return self.status == 0


@dataclass(frozen=True)
class State:
    """The state of a batch.

    Attributes:
        total: Its requests; 0 while the service has not counted them.
        failure: Why the whole batch was refused, as an error body; "" when it was not.
        too_much: It was refused because too many requests are queued at the service.
    """

    ended: bool
    done: int = 0
    total: int = 0
    failure: str = ""
    too_much: bool = False
    files: tuple[str, ...] = ()


class RefusedError(Exception):
    """The service answered a call with an HTTP status of 400 or more."""

    def __init__(self, response: httpx.Response) -> None:
        super().__init__(f"HTTP {response.status_code} for {response.request.method} {response.request.url.path}")
        self.status = response.status_code
        self.body = response.text


class BatchService(ABC):
    """One batch API.

    Every method raises `RefusedError` for an HTTP error and `httpx.TransportError` when the service does not answer.
    """

    # The most requests, and their total bytes, in one batch.
    most_lines: int
    most_bytes: int

    def __init__(self, target: Target) -> None:
        self.target = target

    @abstractmethod
    async def submit(self, name: str, lines: Mapping[str, dict[str, Any]]) -> str:
        """Sends a batch and returns the service's id."""

    @abstractmethod
    async def find(self, name: str, lines: int, since: float, known: Sequence[str]) -> str | None:
        """The id of a batch that may have been sent although we received no id, or None.

        Args:
            name: Our name of the batch.
            lines: Its number of requests.
            since: When it was sent, in seconds since 1970.
            known: Ids of our other batches.
        """

    @abstractmethod
    async def look(self, batch: str) -> State:
        """The state of a batch."""

    @abstractmethod
    async def results(self, batch: str, state: State) -> dict[str, Answer]:
        """The results of an ended batch by request id, in any order and perhaps incomplete."""

    @abstractmethod
    async def check(self) -> None:
        """Checks with the cheapest call that the API exists and accepts the key."""

    async def _call(self, method: str, url: str, **more: Any) -> httpx.Response:
        async with httpx.AsyncClient(timeout=_CALL_S, headers=dict(self.target.headers)) as client:
            response = await client.request(method, url, **more)
        if response.status_code >= 400:
            raise RefusedError(response)
        return response


class OpenAIBatches(BatchService):
    """OpenAI's batches: upload a file of requests, download files of replies and errors."""

    most_lines = 50_000
    most_bytes = 190_000_000

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        kinds = ("chat/completions", "responses", "completions")
        self._kind = next((kind for kind in kinds if target.url.endswith(f"/{kind}")), kinds[0])
        self._base = target.url.removesuffix(f"/{self._kind}")

    async def submit(self, name: str, lines: Mapping[str, dict[str, Any]]) -> str:
        """Uploads the file and creates a batch from it."""
        url = f"/v1/{self._kind}"
        rows = ({"custom_id": key, "method": "POST", "url": url, "body": body} for key, body in lines.items())
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
        file = await self._call(
            "POST",
            f"{self._base}/files",
            files={"file": (f"{name}.jsonl", content, "application/jsonl")},
            data={"purpose": "batch"},
        )
        created = await self._call(
            "POST",
            f"{self._base}/batches",
            json={
                "input_file_id": file.json()["id"],
                "endpoint": url,
                "completion_window": "24h",
                "metadata": {"optimsyn": name},
            },
        )
        return str(created.json()["id"])

    async def find(self, name: str, lines: int, since: float, known: Sequence[str]) -> str | None:
        """The batch with our name in its metadata."""
        listed = (await self._call("GET", f"{self._base}/batches", params={"limit": _LISTED})).json()
        for batch in listed.get("data") or []:
            if (batch.get("metadata") or {}).get("optimsyn") == name:
                return str(batch["id"])
        return None

    async def look(self, batch: str) -> State:
        """Reads the batch's status, counts, errors and files."""
        answer = (await self._call("GET", f"{self._base}/batches/{batch}")).json()
        counts = answer.get("request_counts") or {}
        errors = (answer.get("errors") or {}).get("data") or []
        failed = answer["status"] == "failed"
        first = {"message": (errors[0].get("message") if errors else None) or "the service refused the batch"}
        return State(
            ended=failed or answer["status"] in ("completed", "expired", "cancelled"),
            done=int(counts.get("completed") or 0) + int(counts.get("failed") or 0),
            total=int(counts.get("total") or 0),
            failure=json.dumps({"error": first}) if failed else "",
            too_much=failed and any(error.get("code") in _LIMIT_CODES for error in errors),
            files=tuple(file for name in ("output_file_id", "error_file_id") if (file := answer.get(name))),
        )

    async def results(self, batch: str, state: State) -> dict[str, Answer]:
        """Reads both files."""
        answers: dict[str, Answer] = {}
        for file in state.files:
            content = (await self._call("GET", f"{self._base}/files/{file}/content")).text
            for row in _rows(content):
                response = row.get("response")
                if isinstance(response, dict) and response.get("status_code"):
                    answer = Answer(int(response["status_code"]), json.dumps(response.get("body")))
                elif (row.get("error") or {}).get("code") in ("batch_expired", "batch_cancelled"):
                    answer = Answer()
                else:
                    # The service's own error, without a response.
                    answer = Answer(500, json.dumps({"error": row.get("error") or {"message": "no response"}}))
                answers[str(row["custom_id"])] = answer
        return answers

    async def check(self) -> None:
        """Lists one batch."""
        await self._call("GET", f"{self._base}/batches", params={"limit": 1})


class AnthropicBatches(BatchService):
    """Anthropic's message batches: send all requests in one body, receive a stream of lines."""

    most_lines = 100_000
    most_bytes = 240_000_000

    @property
    def _base(self) -> str:
        return f"{self.target.url}/batches"

    async def submit(self, name: str, lines: Mapping[str, dict[str, Any]]) -> str:
        """Sends the requests; these batches have no name."""
        requests = [{"custom_id": key, "params": body} for key, body in lines.items()]
        return str((await self._call("POST", self._base, json={"requests": requests})).json()["id"])

    async def find(self, name: str, lines: int, since: float, known: Sequence[str]) -> str | None:
        """The oldest unknown batch of this size since then; somebody else's batch would lack our request ids."""
        listed = (await self._call("GET", self._base, params={"limit": _LISTED})).json()
        candidates = [
            batch
            for batch in listed.get("data") or []
            if sum((batch.get("request_counts") or {}).values()) == lines
            and batch["id"] not in known
            and datetime.fromisoformat(batch["created_at"]).timestamp() >= since - _CLOCKS_S
        ]
        return str(min(candidates, key=lambda batch: str(batch["created_at"]))["id"]) if candidates else None

    async def look(self, batch: str) -> State:
        """Reads the batch's status and counts."""
        answer = (await self._call("GET", f"{self._base}/{batch}")).json()
        counts = answer.get("request_counts") or {}
        total = sum(int(count) for count in counts.values())
        done = total - int(counts.get("processing") or 0)
        return State(ended=answer["processing_status"] == "ended", done=done, total=total)

    async def results(self, batch: str, state: State) -> dict[str, Answer]:
        """Reads the lines with results."""
        answers: dict[str, Answer] = {}
        for row in _rows((await self._call("GET", f"{self._base}/{batch}/results")).text):
            result = row.get("result") or {}
            if result.get("type") == "succeeded":
                answers[str(row["custom_id"])] = Answer(200, json.dumps(result["message"]))
            elif result.get("type") == "errored":
                error = result.get("error") or {}
                kind = str((error.get("error") or {}).get("type"))
                answers[str(row["custom_id"])] = Answer(_ANTHROPIC_STATUS.get(kind, 500), json.dumps(error))
        return answers

    async def check(self) -> None:
        """Lists one batch."""
        await self._call("GET", self._base, params={"limit": 1})


def _rows(content: str) -> list[dict[str, Any]]:
    """The JSON lines of a file of results; damaged lines are skipped."""
    rows = []
    for line in content.split("\n"):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and "custom_id" in row:
            rows.append(row)
    return rows
