"""A digest of everything that a scorer's numbers depend on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from optimsyn.base.identity import digest_of
from optimsyn.data.records import Question
from optimsyn.influence.estimators import estimator_of
from optimsyn.influence.options import ScoringOptions
from optimsyn.target.encoding import Encoded, as_sample, encode
from optimsyn.target.target import Target

# Increased when the same facts give other scores, so that cached ones are not reused.
_RULE = 1
# Tokeniser and chat template are no part of the target's fingerprint. Their encoding of these three forms of a pair
# represents them.
_PROBES = (
    Question(id="probe", question="Which 1?", answer="naïve 2"),
    Question(id="probe", question="Which 1?", answer="2", choices=("1", "2"), answer_index=1),
    Question(id="probe", question="Which 1?", answer="2", context="Say: 1, 2."),
)
_NO_LIMIT = 2**31


def scorer_fingerprint(
    method: str,
    target: Target,
    questions: Sequence[Encoded],
    subtasks: Sequence[str],
    options: ScoringOptions,
    **more: Any,
) -> str:
    """The identity of a scorer: equal in every process for equal facts, different when any of them differs.

    It begins with the method. The target counts with its weights, adapter, precision, tokeniser, chat template and
    checkpoints; questions with the labels that count, not their ids; an estimator of your own with its source; `more`
    are further settings (JSON values).
    """
    facts = {
        "rule": _RULE,
        "method": method,
        "target": target.fingerprint(),
        "precision": str(target.dtype),
        "encoding": encoding_digest(target.tokenizer),
        "checkpoints": [checkpoint.fingerprint for checkpoint in target.checkpoints],
        "questions": [
            [item.input_ids, item.labels, item.weights, subtask]
            for item, subtask in zip(questions, subtasks, strict=True)
        ],
        "tokens": options.tokens.model_dump(mode="json"),
        "estimator": "simulated" if method == "simulated" else estimator_of(options.estimator).identity,
        "normalization": options.normalization,
        "across_subtasks": options.across_subtasks,
        "options": more,
    }
    return f"{method}-{digest_of(facts)}"


def encoding_digest(tokenizer: Any) -> str:
    """Sixteen hex digits that change with the tokeniser, its chat template and the format of pairs."""
    probes = [encode(tokenizer, as_sample(probe), _NO_LIMIT) for probe in _PROBES]
    return digest_of([[item.input_ids, item.labels, item.end_tokens] for item in probes])
