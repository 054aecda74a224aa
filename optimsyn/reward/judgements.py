"""Judgements, and the ledger of all judgements of a run.

A ledger (`rewards.jsonl`, one JSON object a line) grows by whole batches: the rows of pairs that were scored together
are written by one call and are valid only when all of them are there. So a run that was killed within a batch judges
the whole batch again and ends with bit-identical numbers.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from pydantic import Field

from optimsyn.base.disk import cannot_write
from optimsyn.base.errors import DataError, Outcome
from optimsyn.base.files import iter_json
from optimsyn.base.identity import digest_of
from optimsyn.data.records import Pair, Record, Rubric
from optimsyn.recipe.sections.influence import OWN_SCORER
from optimsyn.reward.drafting import RubricRequest
from optimsyn.reward.ledger_index import LedgerIndex, Row


class Judgement(Record):
    """The verdict on one request.

    Attributes:
        key: Identity of the request under `identity`.
        source: Who asked first (a stage's name).
        kind: Name of the pair's form.
        pair: None when no pair could be read from the replies.
        failed: Names of the failed checks; `rubric_format` and `pair_format` for replies that could not be read.
        unjudged: The outcome of a reply that cannot be judged: cut, refused, a tool call, empty. Such a row has no
            verdict and no reward, and is in no ledger.
        reasons: What was wrong, for each failed check.
        influence: IF of the pair, un-normalised; None for an invalid pair, which is never scored.
        by_subtask: The influence on each validation subtask.
        gradient_norm: L2 norm of the pair's gradient; watch its correlation with the influence.
        loss: Loss of the target over the pair's tokens that count (`influence.tokens`), in nats.
        scorer: Fingerprint of the scorer that gave the influence.
        checks: Fingerprint of the checks that decided validity.
        identity: Digest of generator, scorer, checks and penalty; only rewards with the same one are comparable.
        reward_source: The recipe's `reward.source`. Not influence: a control, whose number `influence` then holds.
        judge: The judge's score of each criterion; empty where nobody was asked or no score could be read.
        judge_problem: Why no score could be read.
        redrafts: How often the request was written again (`checks.redrafts`).
        reward: Valid * IF - penalty * (1 - Valid); always finite. 0, without meaning, in an unjudged row.
        feedback: The verdict as a sentence.
    """

    key: str
    source: str = ""
    passage_id: str
    kind: str
    seed: int = 0
    variant: str = ""
    guiding_text: str = ""
    rubric_model: str = ""
    rubric: Rubric | None = None
    pair: Pair | None = None
    valid: bool
    failed: tuple[str, ...] = ()
    unjudged: Outcome | None = None
    reasons: dict[str, str] = Field(default_factory=dict)
    influence: float | None = None
    by_subtask: dict[str, float] = Field(default_factory=dict)
    gradient_norm: float | None = None
    loss: float | None = None
    scorer: str = ""
    checks: str = ""
    identity: str = ""
    label_tokens: int | None = None
    judge: dict[str, int] = Field(default_factory=dict)
    judge_problem: str = ""
    redrafts: int = 0
    reward: float
    reward_source: str = "influence"
    feedback: str = ""


class LedgerRow(Judgement):
    """A line of a ledger: a judgement with its position in the batch.

    Attributes:
        batch_row: Its index in the batch, from 0.
        batch_rows: The size of the batch.
    """

    batch_row: int
    batch_rows: int

    @classmethod
    def of(cls, judgement: Judgement, batch_row: int, batch_rows: int) -> LedgerRow:
        """The line of a judgement."""
        return cls.model_construct(**dict(judgement), batch_row=batch_row, batch_rows=batch_rows)

    @property
    def judgement(self) -> Judgement:
        """The judgement alone."""
        return Judgement.model_construct(**{name: getattr(self, name) for name in Judgement.model_fields})


def digest(parts: Any) -> str:
    """Thirty-two hex digits of a JSON value."""
    return digest_of(parts, 32, ensure_ascii=False)


def stated_fingerprint(part: object, role: str) -> str:
    """The fingerprint of a scorer, a checker or a pair writer.

    Args:
        part: Has an attribute `fingerprint`.
        role: Its role, for the message.

    Raises:
        TypeError: The fingerprint is missing or empty.
    """
    try:
        value: object = part.fingerprint  # type: ignore[attr-defined]
    except AttributeError:
        value = None
    if not isinstance(value, str) or not value:
        raise TypeError(
            f"{role}: {type(part).__name__} has no text `fingerprint`, which changes with everything that changes its "
            "results; without one, the rewards that it gave could not be told from those of another"
        )
    return value


@runtime_checkable
class Moving(Protocol):
    """A scorer whose scores depend on earlier judgements (see `optimsyn.influence.conditional`).

    Attributes:
        origin: Its fingerprint before the first judgement.
    """

    origin: str

    def judged(self, pairs: Sequence[Pair]) -> None:
        """Takes note of pairs that were judged valid."""


def windows(requests: Sequence[RubricRequest], size: int, *, whole_passages: bool) -> Iterator[Sequence[RubricRequest]]:
    """Requests that are judged together, in order.

    Args:
        requests: All of them.
        size: Most in a window.
        whole_passages: Never split neighbouring requests for one passage.
    """
    start = 0
    while start < len(requests):
        stop = min(start + size, len(requests))
        if whole_passages:
            ends = [
                end
                for end in range(start + 1, len(requests) + 1)
                if end == len(requests) or requests[end].passage.id != requests[end - 1].passage.id
            ]
            stop = max((end for end in ends if end <= stop), default=ends[0])
        yield requests[start:stop]
        start = stop


def content_key(pair: Pair) -> str:
    """Identity of what the target sees of a pair, without its lineage: equal content has equal influence."""
    return _content_digest(pair.model_dump(mode="json"))


def _content_digest(pair: Mapping[str, Any]) -> str:
    parts = [pair["question"], pair["answer"], pair.get("choices"), pair.get("answer_index"), pair.get("context")]
    further = [pair[name] for name in ("form", "details") if pair.get(name)]
    return digest(parts + further)


def verdict(row: Judgement) -> str:
    """The judgement as a sentence."""
    if row.unjudged is not None:
        return f"Not judged ({'; '.join(row.reasons.values())})."
    if not row.valid:
        named = "; ".join(f"{name}: {reason}" if reason else name for name, reason in row.reasons.items())
        return f"Invalid ({named}), reward {row.reward:+.4f}."
    text = f"Valid, influence {row.influence:+.4f} on the validation questions."
    # The words of a control are those of any score: an optimiser that knew which it is would not be compared fairly.
    if row.scorer.startswith(OWN_SCORER) or row.reward_source != "influence":
        text = f"Valid, score {row.influence:+.4f}."
    if len(row.by_subtask) > 1:
        weakest = min(row.by_subtask, key=lambda name: (row.by_subtask[name], name))
        strongest = max(row.by_subtask, key=lambda name: (row.by_subtask[name], name))
        text += f" It helps {strongest!r} most ({row.by_subtask[strongest]:+.4f})"
        text += f" and {weakest!r} least ({row.by_subtask[weakest]:+.4f})."
    return text


def describe(row: Judgement) -> str:
    """Reward, rubric and pair of a judgement, for the feedback on another one."""
    text = f"reward {row.reward:+.4f}"
    if row.rubric is not None:
        text += f", question type '{row.rubric.question_type}', question quality '{row.rubric.question_quality}'"
    if row.pair is not None:
        text += f", question '{row.pair.question}', answer '{row.pair.answer}'"
    return text + "."


def latest_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a ledger with the identity of its last row: only they are comparable.

    Reads the file twice, line by line, also while it grows; yields nothing without a ledger.
    """
    if not path.is_file():
        return
    latest = object()
    for row in iter_json(path, tolerate_torn=True):
        latest = row.get("identity")
    yield from (row for row in iter_json(path, tolerate_torn=True) if row.get("identity") == latest)


class Ledger:
    """The judgements of a run on disk. Not thread-safe; its owner holds a lock.

    Rows are looked up in an index beside the file and read on demand, so memory does not grow with it.

    Args:
        path: `rewards.jsonl`; None keeps all in memory.

    Raises:
        DataError: A line is no judgement.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._held: dict[str, Judgement] = {}
        self._contents: dict[tuple[str, str], Judgement] = {}
        self._index: LedgerIndex | None = None
        if path is not None and path.is_file():
            self._index = LedgerIndex(path, LedgerRow.model_validate, _scored_content)

    def get(self, key: str, identity: str) -> Judgement | None:
        """The judgement with a key and an identity, or None."""
        if self.path is None:
            return self._held.get(key)
        return None if self._index is None else self._row(self._index.place_of(key, identity))

    def scored(self, content: str, scorer: str) -> Judgement | None:
        """The last valid judgement of equal content (see `content_key`) by the same scorer, or None."""
        if self.path is None:
            return self._contents.get((scorer, content))
        return None if self._index is None else self._row(self._index.place_of_content(content, scorer))

    def count(self, identity: str | None = None) -> int:
        """The number of judgements, of all or of one identity."""
        if self._index is None:
            return sum(identity in (None, row.identity) for row in self._held.values())
        return self._index.count(identity)

    def valid_pairs(self, identity: str, scorer: str, last: int | None = None) -> list[Pair]:
        """The valid pairs of an identity and a scorer, in order of judging; all, or the last ones."""
        pairs: list[Pair] = []
        for place in () if self._index is None else self._index.places(identity):
            if last is not None and len(pairs) >= last:
                break
            row = self._row(place)
            if row is not None and row.valid and row.pair is not None and row.scorer == scorer:
                pairs.append(row.pair)
        return pairs[::-1]

    def append(self, judgements: Sequence[Judgement]) -> None:
        """Writes a batch of judgements durably, all or none.

        Raises:
            DataError: The file cannot be written (a full disk, for example); then it has no row of the batch.
        """
        if not judgements:
            return
        contents = [_scored_content(row.model_dump(mode="json")) for row in judgements]
        if self.path is None:
            self._held |= {row.key: row for row in judgements}
            self._contents |= {key: row for key, row in zip(contents, judgements, strict=True) if key is not None}
            return
        try:
            self._write(self.path, judgements, contents)
        except (OSError, sqlite3.Error) as error:
            raise cannot_write(self.path, "judgements", error) from error

    def _write(self, path: Path, judgements: Sequence[Judgement], contents: list[tuple[str, str] | None]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if self._index is None:
            self._index = LedgerIndex(path, LedgerRow.model_validate, _scored_content)
        self._index.catch_up()
        place = self._index.state.size
        lines, rows = [], []
        for index, row in enumerate(judgements):
            raw = LedgerRow.of(row, index, len(judgements)).model_dump(mode="json")
            line = json.dumps(raw, ensure_ascii=False).encode() + b"\n"
            rows.append(Row(place, len(line), row.key, row.identity, index, len(judgements)))
            lines.append(line)
            place += len(line)
        written = b"".join(lines)
        with path.open("ab") as file:
            # Remove the incomplete batch of a killed writer.
            file.truncate(self._index.state.size)
            try:
                file.write(written)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                os.truncate(path, self._index.state.size)
                raise
        self._index.added(rows, written, contents)

    def _row(self, place: tuple[int, int] | None) -> Judgement | None:
        if place is None or self.path is None:
            return None
        with self.path.open("rb") as file:
            file.seek(place[0])
            line = file.read(place[1])
        try:
            return LedgerRow.model_validate(json.loads(line)).judgement
        except (ValueError, TypeError) as error:
            raise DataError(
                f"{self.path}: the line at byte {place[0]} is not a judgement ({type(error).__name__}); remove the "
                "line, its pair is then judged again"
            ) from error


def _scored_content(row: Mapping[str, Any]) -> tuple[str, str] | None:
    """Scorer and content of a row whose score can be reused for equal content, else None."""
    pair = row.get("pair")
    if not row["valid"] or pair is None:
        return None
    return row.get("scorer", ""), _content_digest(pair)
