"""What each of the processes of tests/test_influence_processes.py does; writes what it found as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from influence_helpers import samples, tiny_target

from optimsyn.base.errors import ModelError
from optimsyn.data.records import Pair
from optimsyn.influence.scorer import InfluenceScorer
from optimsyn.influence.scores import Scores


def facts(scores: Scores) -> dict[str, Any]:
    assert scores.gradient_norm is not None
    return {
        "ids": scores.ids,
        "total": scores.total.tolist(),
        "by_subtask": scores.by_subtask.tolist(),
        "gradient_norm": scores.gradient_norm.tolist(),
        "loss": scores.loss.tolist(),
        "label_tokens": scores.label_tokens.tolist(),
        "token_shares": None if scores.token_shares is None else [s.tolist() for s in scores.token_shares],
    }


def refusal(scorer: InfluenceScorer, pairs: list[Any]) -> str:
    try:
        scorer.score(pairs)
    except ModelError as error:
        return str(error)
    return "none"


def main() -> None:
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    target, questions = tiny_target(), samples(3, seed=1, subtasks=("b", "a"))
    share = InfluenceScorer(target, questions, estimator="adam")
    own = InfluenceScorer(target, questions, estimator="adam", processes="own")
    calls = []
    encode = target.encode
    target.encode = lambda item: (calls.append(item), encode(item))[1]  # type: ignore[method-assign]
    five = samples(5, seed=2)
    found: dict[str, Any] = {"five": facts(share.score(five, token_shares=True)), "worked_on": len(calls)}
    found["five_alone"] = facts(own.score(five, token_shares=True))
    found["one"], found["one_alone"] = facts(share.score(five[:1])), facts(own.score(five[:1]))
    found["none"] = facts(share.score([]))
    # The shortest of two is the second process's.
    hollow = Pair(id="hollow", question="?", answer=" ", passage_id="x")
    found["hollow"] = refusal(share, [five[0], hollow])
    found["unlike"] = refusal(share, five[rank : rank + 2])
    found["afterwards"] = facts(share.score(five))["total"]
    Path(sys.argv[1], f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
