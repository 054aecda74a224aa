"""The reward's interface to TRL: completions become requests, judgements become columns of its log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from optimsyn.base.errors import Outcome, ReplyError
from optimsyn.data.records import Passage
from optimsyn.reward.drafting import RubricRequest
from optimsyn.reward.judgements import Judgement, digest

if TYPE_CHECKING:
    from optimsyn.llm.outcome_log import OutcomeLog


def requests_of(
    completions: Sequence[Any], columns: dict[str, Any], source: str, outcomes: OutcomeLog | None
) -> list[RubricRequest]:
    """One request a completion.

    A completion without a rubric is always invalid: its length and content are what the policy is trained for.

    Args:
        completions: Plain or conversational.
        columns: The other columns of the rows, as lists.
        source: The caller's name.
        outcomes: Log for the outcomes; None: no log.
    """
    from optimsyn.programs.rubric import complete_rubric

    requests = []
    for index, completion in enumerate(completions):
        passage = Passage.model_validate_json(columns["passage"][index])
        named = {name: columns[name][index] for name in ("kind", "guiding_text", "rubric_model", "seed")}
        blank = RubricRequest(passage=passage, variant=source, **named)
        text, outcome = _text(completion), Outcome.READ
        try:
            request = blank.under(complete_rubric(text))
        except ReplyError as problem:
            request, outcome = blank.under(problem).model_copy(update={"unjudged": None}), problem.outcome
        requests.append(request)
        if outcomes is not None:
            # A training that resumes after a kill samples its last step again; count it once.
            key = digest(["policy", passage.id, blank.guiding_text, blank.seed, text, index])
            outcomes.note(key, "policy", outcome)
    return requests


def log_judgements(judgements: Sequence[Judgement], columns: dict[str, Any]) -> None:
    """Adds judgements to TRL's log."""
    judged = [row for row in judgements if row.unjudged is None]
    if (log_metric := columns.get("log_metric")) is not None and judged:
        log_metric("valid", sum(row.valid for row in judged) / len(judged))
        scored = [row.influence for row in judged if row.influence is not None]
        if scored:
            log_metric("influence", sum(scored) / len(scored))
    if (log_extra := columns.get("log_extra")) is not None:
        log_extra("question", [row.pair.question if row.pair else "" for row in judgements])
        log_extra("answer", [row.pair.answer if row.pair else "" for row in judgements])
        log_extra("failed", [", ".join(row.failed) for row in judgements])


def _text(completion: Any) -> str:
    """The text of a completion, plain or conversational."""
    if isinstance(completion, str):
        return completion
    return "".join(str(message.get("content") or "") for message in completion)
