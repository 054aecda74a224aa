"""A stub of two batch APIs, OpenAI's and Anthropic's, that answers as late and as badly as it is told to."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# What becomes of one line: HTTP status and body, or None when it expires.
Outcome = tuple[int, dict[str, Any]] | None


@dataclass
class Sent:
    """One batch as the stub got it."""

    id: str
    lines: dict[str, dict[str, Any]]
    metadata: dict[str, str] = field(default_factory=dict)
    created: datetime = field(default_factory=lambda: datetime.now(UTC))
    looks: int = 0
    failure: dict[str, str] | None = None


class BatchApis:
    """The stub's state, which tests set and read.

    Attributes:
        batches: All that came, in order.
        alone: Bodies of requests that came one by one.
        outcome: What becomes of a line, from its body and the number of its batch.
        looks: So many looks see a batch at work before it has ended.
        refuse: Status of every request of a kind (`files`, `batches`, `list`), where it is refused.
        forget_reply: The next batch is made, but its sender gets a server error.
        single: The reply to a request that comes alone; None: one that repeats what was asked.
        most_lines: A batch of more fails, as one does that would exceed what may wait at OpenAI.
    """

    def __init__(self, base: str) -> None:
        self.base = base
        self.batches: list[Sent] = []
        self.alone: list[dict[str, Any]] = []
        self.keys: set[str] = set()
        self.outcome: Callable[[dict[str, Any], int], Outcome] = lambda body, batch: (200, chat(body, f"in {batch}"))
        self.single: Callable[[dict[str, Any]], dict[str, Any]] | None = None
        self.looks = 1
        self.refuse: dict[str, int] = {}
        self.forget_reply = False
        self.most_lines = 1_000_000
        self.files: dict[str, str] = {}
        self.lock = threading.Lock()

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The bodies of all lines of all batches."""
        return [body for batch in self.batches for body in batch.lines.values()]

    def of(self, name: str) -> Sent:
        """A batch by its id."""
        return next(batch for batch in self.batches if batch.id == name)


def text_of(body: dict[str, Any]) -> str:
    """What the last message of a request says, in either API."""
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else content[0]["text"]


def chat(body: dict[str, Any], said: str) -> dict[str, Any]:
    """An OpenAI completion that repeats what was asked."""
    reply = {"role": "assistant", "content": f"{text_of(body)} {said}"}
    return {
        "id": "c",
        "object": "chat.completion",
        "created": 1,
        "model": body["model"],
        "choices": [{"index": 0, "finish_reason": "stop", "message": reply}],
        "usage": {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100},
    }


def message(body: dict[str, Any], said: str) -> dict[str, Any]:
    """The same from Anthropic."""
    return {
        "id": "m",
        "type": "message",
        "role": "assistant",
        "model": body["model"],
        "content": [{"type": "text", "text": f"{text_of(body)} {said}"}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 1000, "output_tokens": 100},
    }


@contextmanager
def batch_apis() -> Iterator[BatchApis]:
    """Starts the stub on loopback; OpenAI's API is at `base`, Anthropic's at `base` without `/v1`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            return

        def send(self, status: int, body: str) -> None:
            content = body.encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def refused(self, kind: str) -> bool:
            if kind not in state.refuse:
                return False
            self.send(state.refuse[kind], json.dumps({"error": {"message": f"no {kind}"}}))
            return True

        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"]))
            path = self.path.partition("?")[0]
            with state.lock:
                state.keys.add(self.headers.get("Authorization") or self.headers.get("x-api-key") or "")
                if path == "/v1/files":
                    if not self.refused("files"):
                        state.files[name := f"file-{len(state.files)}"] = _uploaded(self.headers, content)
                        self.send(200, json.dumps({"id": name, "object": "file"}))
                    return
                body = json.loads(content)
                if path in ("/v1/batches", "/v1/messages/batches"):
                    if not self.refused("batches"):
                        batch = _made(state, body)
                        state.batches.append(batch)
                        lost, state.forget_reply = state.forget_reply, False
                        self.send(500, "{}") if lost else self.send(200, json.dumps({"id": batch.id}))
                    return
                state.alone.append(body)
            said = message if path == "/v1/messages" else chat
            self.send(200, json.dumps(said(body, "alone") if state.single is None else state.single(body)))

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            with state.lock:
                for pattern, answer in (
                    (r"/v1/batches", lambda _: _listed(state, _openai_state)),
                    (r"/v1/messages/batches", lambda _: _listed(state, _anthropic_state)),
                    (r"/v1/batches/(\S+)", lambda name: json.dumps(_openai_state(state, state.of(name)))),
                    (r"/v1/messages/batches/([^/]+)", lambda name: json.dumps(_anthropic_state(state, state.of(name)))),
                    (r"/v1/messages/batches/([^/]+)/results", lambda name: _results(state, state.of(name))),
                    (r"/v1/files/(\S+)/content", lambda name: _content(state, name)),
                ):
                    if found := re.fullmatch(pattern, path):
                        if not self.refused("list" if not found.groups() else "look"):
                            self.send(200, answer(found.group(1) if found.groups() else ""))
                        return
            self.send(404, '{"error": {"message": "not here"}}')

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state = BatchApis(f"http://127.0.0.1:{server.server_port}/v1")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _uploaded(headers: Any, content: bytes) -> str:
    form = BytesParser().parsebytes(b"Content-Type: " + headers["Content-Type"].encode() + b"\r\n\r\n" + content)
    parts = {part.get_param("name", header="content-disposition"): part for part in form.get_payload()}
    assert parts["purpose"].get_payload() == "batch"
    return parts["file"].get_payload(decode=True).decode()


def _made(state: BatchApis, body: dict[str, Any]) -> Sent:
    name = f"batch-{len(state.batches)}"
    if "requests" in body:
        return Sent(name, {row["custom_id"]: row["params"] for row in body["requests"]})
    assert (body["endpoint"], body["completion_window"]) == ("/v1/chat/completions", "24h")
    rows = [json.loads(line) for line in state.files[body["input_file_id"]].splitlines()]
    assert all((row["method"], row["url"]) == ("POST", body["endpoint"]) for row in rows)
    made = Sent(name, {row["custom_id"]: row["body"] for row in rows}, body.get("metadata") or {})
    assert len(made.lines) == len(rows)
    if len(rows) > state.most_lines:
        made.failure = {"code": "token_limit_exceeded", "message": "Enqueued token limit reached"}
    return made


def _ended(state: BatchApis, batch: Sent) -> bool:
    return batch.looks > state.looks


def _outcomes(state: BatchApis, batch: Sent) -> list[tuple[str, Outcome]]:
    """The outcomes of a batch, in another order than they came."""
    number = state.batches.index(batch)
    return [(name, state.outcome(body, number)) for name, body in reversed(batch.lines.items())]


def _openai_state(state: BatchApis, batch: Sent) -> dict[str, Any]:
    batch.looks += 1
    ended = _ended(state, batch)
    if batch.failure is not None:
        return {"id": batch.id, "status": "failed", "errors": {"data": [batch.failure]}, "metadata": batch.metadata}
    expired = ended and any(outcome is None for _, outcome in _outcomes(state, batch))
    return {
        "id": batch.id,
        "status": "in_progress" if not ended else "expired" if expired else "completed",
        "metadata": batch.metadata,
        "output_file_id": f"{batch.id}.out" if ended else None,
        "error_file_id": f"{batch.id}.err" if ended else None,
        "request_counts": {"total": len(batch.lines), "completed": len(batch.lines) if ended else 0, "failed": 0},
    }


def _anthropic_state(state: BatchApis, batch: Sent) -> dict[str, Any]:
    batch.looks += 1
    ended = _ended(state, batch)
    return {
        "id": batch.id,
        "processing_status": "ended" if ended else "in_progress",
        "created_at": batch.created.isoformat().replace("+00:00", "Z"),
        "request_counts": {"succeeded" if ended else "processing": len(batch.lines), "errored": 0},
    }


def _listed(state: BatchApis, of: Callable[[BatchApis, Sent], dict[str, Any]]) -> str:
    return json.dumps({"data": [of(state, batch) for batch in reversed(state.batches)]})


def _content(state: BatchApis, name: str) -> str:
    batch, _, kind = name.rpartition(".")
    rows = []
    for line, outcome in _outcomes(state, state.of(batch)):
        row: dict[str, Any] = {"id": "r", "custom_id": line, "response": None, "error": None}
        if outcome is None:
            row["error"] = {"code": "batch_expired", "message": "This request could not be executed in time"}
        else:
            row["response"] = {"status_code": outcome[0], "request_id": "x", "body": outcome[1]}
        if (outcome is not None and outcome[0] == 200) == (kind == "out"):
            rows.append(json.dumps(row))
    return "".join(row + "\n" for row in rows)


def _results(state: BatchApis, batch: Sent) -> str:
    rows = []
    for line, outcome in _outcomes(state, batch):
        if outcome is None:
            result: dict[str, Any] = {"type": "expired"}
        elif outcome[0] == 200:
            result = {"type": "succeeded", "message": outcome[1]}
        else:
            result = {"type": "errored", "error": {"type": "error", "error": outcome[1]}}
        rows.append(json.dumps({"custom_id": line, "result": result}) + "\n")
    return "".join(rows)
