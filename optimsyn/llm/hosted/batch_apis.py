"""The batch APIs of OpenAI (and servers that speak its protocol) and of Anthropic: send, look, fetch, find again.

LiteLLM makes every request and reads every reply, in a batch as elsewhere; here is only what carries them. LiteLLM
itself cannot send a batch to Anthropic (1.106), so the few calls are made here, for both alike.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import httpx

# Headers of a request that say who asks and in which version of the API; a batch is sent with the same.
_CARRIED = (
    "authorization",
    "x-api-key",
    "api-key",
    "anthropic-version",
    "anthropic-beta",
    "openai-organization",
    "openai-project",
)
# HTTP status of an error that a line of Anthropic's results names.
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
# The clocks of two machines differ, and a batch may be made a little after it was asked for.
_CLOCKS_S = 120.0
_CALL_S = 120.0
_LISTED = 100


@dataclass(frozen=True)
class Target:
    """Where requests of one kind go: the address that a single one would be posted to, and who asks.

    Attributes:
        url: Address of a single request.
        headers: Keys and versions; never written anywhere.
    """

    url: str
    headers: tuple[tuple[str, str], ...] = field(repr=False)

    @classmethod
    def of(cls, request: httpx.Request) -> Target:
        """The target of a request that was about to be sent."""
        headers = tuple((name, request.headers[name]) for name in _CARRIED if name in request.headers)
        return cls(str(request.url), headers)

    @property
    def service(self) -> BatchService:
        """The batch API behind it."""
        path = httpx.URL(self.url).path
        return AnthropicBatches(self) if path.endswith("/messages") else OpenAIBatches(self)


@dataclass(frozen=True)
class Answer:
    """What became of one request of a batch.

    Attributes:
        status: HTTP status that it would have had alone; 0 when it was never answered.
        body: The body that it would have had alone.
    """

    status: int = 0
    body: str = ""

    @property
    def unanswered(self) -> bool:
        """The batch expired, was cancelled, or its results do not have the request; nothing was paid for it."""
        return self.status == 0


@dataclass(frozen=True)
class State:
    """How far a batch is.

    Attributes:
        ended: Nothing more will come of it.
        done: Requests that have been answered.
        total: Requests in it; 0 while the service has not counted them.
        failure: Why the whole batch was refused, as a body of an error; "" when it was not.
        too_much: It was refused because too much is waiting at the service already.
        files: What holds the results.
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

    Every method raises `RefusedError` for an HTTP error and `httpx.TransportError` when nobody answers.
    """

    # The most requests, and bytes of them, in one batch.
    most_lines: int
    most_bytes: int

    def __init__(self, target: Target) -> None:
        """An API that nothing is sent to yet."""
        self.target = target

    @abstractmethod
    async def submit(self, name: str, lines: Mapping[str, dict[str, Any]]) -> str:
        """Sends a batch; returns the service's id of it.

        Args:
            name: Our own name of the batch, by which `find` knows it again.
            lines: Body of each request by its id.
        """

    @abstractmethod
    async def find(self, name: str, lines: int, since: float, known: Sequence[str]) -> str | None:
        """The id of a batch that may have been sent without that we heard of it, or None.

        Args:
            name: The name that it was sent with.
            lines: Its number of requests.
            since: When it was sent, in seconds since 1970.
            known: Ids of batches that are others.
        """

    @abstractmethod
    async def look(self, batch: str) -> State:
        """How far a batch is."""

    @abstractmethod
    async def results(self, batch: str, state: State) -> dict[str, Answer]:
        """What became of the requests of an ended batch, by id, in any order and perhaps not all."""

    @abstractmethod
    async def check(self) -> None:
        """Makes the cheapest call there is, to see whether there is such an API and the key opens it."""

    async def _call(self, method: str, url: str, **more: Any) -> httpx.Response:
        async with httpx.AsyncClient(timeout=_CALL_S, headers=dict(self.target.headers)) as client:
            response = await client.request(method, url, **more)
        if response.status_code >= 400:
            raise RefusedError(response)
        return response


class OpenAIBatches(BatchService):
    """OpenAI's batches: a file of requests goes up, files of replies and of errors come down."""

    most_lines = 50_000
    most_bytes = 190_000_000

    def __init__(self, target: Target) -> None:
        """An API that nothing is sent to yet."""
        super().__init__(target)
        kinds = ("chat/completions", "responses", "completions")
        self._kind = next((kind for kind in kinds if target.url.endswith(f"/{kind}")), kinds[0])
        self._base = target.url.removesuffix(f"/{self._kind}")

    async def submit(self, name: str, lines: Mapping[str, dict[str, Any]]) -> str:
        """Uploads the file and makes a batch of it."""
        url = f"/v1/{self._kind}"
        rows = ({"custom_id": key, "method": "POST", "url": url, "body": body} for key, body in lines.items())
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
        file = await self._call(
            "POST",
            f"{self._base}/files",
            files={"file": (f"{name}.jsonl", content, "application/jsonl")},
            data={"purpose": "batch"},
        )
        made = await self._call(
            "POST",
            f"{self._base}/batches",
            json={
                "input_file_id": file.json()["id"],
                "endpoint": url,
                "completion_window": "24h",
                "metadata": {"optimsyn": name},
            },
        )
        return str(made.json()["id"])

    async def find(self, name: str, lines: int, since: float, known: Sequence[str]) -> str | None:
        """The batch whose metadata hold our name."""
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
                    # An error of the service's own, without any response.
                    answer = Answer(500, json.dumps({"error": row.get("error") or {"message": "no response"}}))
                answers[str(row["custom_id"])] = answer
        return answers

    async def check(self) -> None:
        """Lists one batch."""
        await self._call("GET", f"{self._base}/batches", params={"limit": 1})


class AnthropicBatches(BatchService):
    """Anthropic's message batches: the requests go up in one body, a stream of lines comes down."""

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
        """The oldest unknown batch of this size from then on; a stranger's would have none of our results."""
        listed = (await self._call("GET", self._base, params={"limit": _LISTED})).json()
        fitting = [
            batch
            for batch in listed.get("data") or []
            if sum((batch.get("request_counts") or {}).values()) == lines
            and batch["id"] not in known
            and datetime.fromisoformat(batch["created_at"]).timestamp() >= since - _CLOCKS_S
        ]
        return str(min(fitting, key=lambda batch: str(batch["created_at"]))["id"]) if fitting else None

    async def look(self, batch: str) -> State:
        """Reads the batch's status and counts."""
        answer = (await self._call("GET", f"{self._base}/{batch}")).json()
        counts = answer.get("request_counts") or {}
        total = sum(int(count) for count in counts.values())
        done = total - int(counts.get("processing") or 0)
        return State(ended=answer["processing_status"] == "ended", done=done, total=total)

    async def results(self, batch: str, state: State) -> dict[str, Answer]:
        """Reads the lines of results."""
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
    """The JSON lines of a file of results; one that is torn is as good as missing."""
    rows = []
    for line in content.split("\n"):
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and "custom_id" in row:
            rows.append(row)
    return rows
