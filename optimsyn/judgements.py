"""What is judged and what came out of it, and the ledger that keeps every judgement of a run.

A ledger (`rewards.jsonl`) is appended to in whole batches: the rows of pairs that were scored together are written by
one call and read back only when all of them are there. So a run that was killed in the middle of a batch judges that
batch again as one, with the same neighbours, and ends with bit-identical numbers.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from pydantic import Field, ValidationError

from optimsyn.data.jsonl import append_jsonl
from optimsyn.data.records import Pair, PairKind, Passage, Record, Rubric
from optimsyn.errors import DataError, Outcome

if TYPE_CHECKING:
    from optimsyn.programs.pair import PairWriter


class RubricRequest(Record):
    """One pair to be written under a rubric and judged.

    Attributes:
        rubric: None when the pair is written without one, or when `error` says why there is none.
        error: What was wrong with the rubric reply; such a request is judged invalid and no pair is bought.
        unjudged: What came in place of a rubric, where that is nobody's fault; such a request is not judged.
        guiding_text: The text that the rubric was written under ("" without one).
        seed: Sampling seed of the pair.
        variant: Written into the pair's lineage.
    """

    passage: Passage
    kind: PairKind
    rubric: Rubric | None = None
    error: str | None = None
    unjudged: Outcome | None = None
    guiding_text: str = ""
    rubric_model: str = ""
    seed: int = 0
    variant: str = ""

    async def written_by(self, writer: PairWriter) -> Pair:
        """The pair that a writer makes of this request.

        Raises:
            ReplyError: The reply holds no usable pair.
            ServiceError: The service failed for good.
        """
        return await writer.awrite(
            self.passage,
            self.rubric,
            seed=self.seed,
            variant=self.variant,
            guiding_text=self.guiding_text,
            rubric_model=self.rubric_model,
        )


def failure(part: Literal["rubric", "pair"], outcome: Outcome | None) -> str:
    """The name under which a reply counts that could not be read, such as `pair_format` or `rubric_refusal`."""
    return f"{part}_format" if outcome in (None, Outcome.INVALID) else f"{part}_{outcome}"


class Judgement(Record):
    """The verdict on one request.

    Attributes:
        key: Identity of the request under `identity`.
        source: Who asked first (a stage's name).
        pair: None when no pair could be read from the replies.
        failed: Names of the failed checks; `rubric_format` and `pair_format` for replies that could not be read.
        unjudged: What came in place of a pair or a rubric where that is nobody's fault: a cut reply, a refusal, a tool
            call, nothing. Such a row has no verdict: it is in no ledger, and its reward counts nowhere.
        reasons: For each failed check what was wrong.
        influence: IF of the pair, un-normalised; None for an invalid pair, which is never scored.
        by_subtask: The influence on each validation subtask.
        gradient_norm: L2 norm of the pair's gradient; watch its correlation with the influence.
        loss: Loss of the target over the pair's tokens that count (`influence.tokens`), in nats.
        scorer: Fingerprint of the scorer that gave the influence.
        checks: Fingerprint of the checks that decided validity.
        identity: Digest of generator, scorer, checks and penalty; rewards of another one are not compared with this.
        reward: Valid * IF - penalty * (1 - Valid); always finite. 0, and without meaning, in a row that is unjudged.
        feedback: The verdict as a sentence.
    """

    key: str
    source: str = ""
    passage_id: str
    kind: PairKind
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
    reward: float
    feedback: str = ""


def digest(parts: Any) -> str:
    """Thirty-two hex digits of a JSON value."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:32]


def stated_fingerprint(part: object, role: str) -> str:
    """What a scorer, a checker or a pair writer says that its results depend on.

    Args:
        part: Has an attribute `fingerprint`.
        role: What it is to the reward, for the message.

    Raises:
        TypeError: It has none, or one that says nothing.
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
    """A scorer whose scores depend on what was judged before (see `optimsyn.influence.moved`).

    Attributes:
        origin: Fingerprint of what it is while nothing has been judged.
    """

    origin: str

    def judged(self, pairs: Sequence[Pair]) -> None:
        """These have been judged and found valid."""


def windows(requests: Sequence[RubricRequest], size: int, *, whole_passages: bool) -> Iterator[Sequence[RubricRequest]]:
    """Requests that are judged together, in order.

    Args:
        requests: All of them.
        size: Most in a window.
        whole_passages: Requests for one passage that stand together are not parted, however many they are.
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
    """Identity of what the target would see of a pair, whatever its lineage: equal content has equal influence."""
    return digest([pair.question, pair.answer, pair.choices, pair.answer_index, pair.context])


def verdict(row: Judgement) -> str:
    """The judgement as a sentence."""
    if row.unjudged is not None:
        return f"Not judged ({'; '.join(row.reasons.values())})."
    if not row.valid:
        named = "; ".join(f"{name}: {reason}" if reason else name for name, reason in row.reasons.items())
        return f"Invalid ({named}), reward {row.reward:+.4f}."
    text = f"Valid, influence {row.influence:+.4f} on the validation questions."
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


def of_the_latest(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of a ledger that were judged as its last one was: others cannot be compared with them."""
    return [row for row in rows if row.get("identity") == rows[-1].get("identity")]


class Ledger:
    """The judgements of a run on disk.

    Args:
        path: `rewards.jsonl`; None keeps nothing on disk.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._tail: int | None = None
        self.rows: list[Judgement] = [] if path is None or not path.is_file() else self._read(path)

    def append(self, judgements: Sequence[Judgement]) -> None:
        """Writes a batch of judgements durably, all or none."""
        self.rows.extend(judgements)
        if self.path is None or not judgements:
            return
        if self._tail is not None:
            os.truncate(self.path, self._tail)
            self._tail = None
        append_jsonl(
            self.path,
            [
                {**row.model_dump(mode="json"), "batch_row": index, "batch_rows": len(judgements)}
                for index, row in enumerate(judgements)
            ],
        )

    def _read(self, path: Path) -> list[Judgement]:
        """The judgements of all complete batches; remembers where a torn tail begins."""
        rows: list[Judgement] = []
        batch: list[Judgement] = []
        complete_to = position = 0
        for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
            position += len(line)
            try:
                raw = json.loads(line)
                index, count = raw.pop("batch_row"), raw.pop("batch_rows")
                judgement = Judgement.model_validate(raw)
            except (ValueError, KeyError, AttributeError, ValidationError) as error:
                if not line.endswith(b"\n"):
                    break
                raise DataError(
                    f"{path}:{number}: not a judgement ({type(error).__name__}); remove the line, "
                    "its pair is then judged again"
                ) from error
            if index == 0:
                # Only the last batch of a file can be torn, because a torn one is cut off before the next append;
                # rows that a person removed by hand do not make the rest of their batch wrong.
                rows.extend(batch)
                batch = []
            batch.append(judgement)
            if index + 1 == count and line.endswith(b"\n"):
                rows.extend(batch)
                batch = []
                complete_to = position
        size = path.stat().st_size
        self._tail = complete_to if complete_to < size else None
        return rows
