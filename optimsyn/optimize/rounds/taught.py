"""Rubrics of somebody else, with what their pairs earned, as the policy would have written them."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from optimsyn.llm.control_tokens import template_end
from optimsyn.optimize.rounds.judged import JudgedRubric
from optimsyn.programs.prompts.rubric_prompts import CUE
from optimsyn.programs.prompts.writer_prompts import rubric_reply
from optimsyn.programs.rubric import rubric_text

if TYPE_CHECKING:
    from optimsyn.data.records import Rubric
    from optimsyn.optimize.policy_task import PolicyTask


def taught_rubrics(task: PolicyTask, tokenizer: Any, held: Collection[str]) -> list[JudgedRubric]:
    """The rubrics of `task.taught` in the policy's tokens; none for a held passage, which is never trained on.

    They count as those of round 0.
    """
    passages = {passage.id: passage for passage in task.passages}
    rows: list[JudgedRubric] = []
    for number, lesson in enumerate(task.taught):
        if lesson.passage_id in held or lesson.rubric is None or lesson.passage_id not in passages:
            continue
        row = task.row(tokenizer, passages[lesson.passage_id], lesson.seed, lesson.kind)
        rows.append(
            JudgedRubric(
                round=0,
                held=False,
                group=number,
                draw=0,
                passage_id=lesson.passage_id,
                seed=lesson.seed,
                text=rubric_text(lesson.rubric),
                prompt=task.prompt_ids(tokenizer, row),
                completion=_as_written(task, tokenizer, lesson.rubric),
                finished=True,
                valid=lesson.valid,
                reward=None if lesson.unjudged is not None else lesson.reward,
            )
        )
    return rows


def _as_written(task: PolicyTask, tokenizer: Any, rubric: Rubric) -> list[int]:
    """The tokens of a rubric that the policy has sampled whole, with what ends it."""
    manner = task.manner(tokenizer)
    if manner == "plain":
        # The prompt ends in the first label, and a blank line ends the rubric.
        text = rubric_text(rubric).removeprefix(CUE) + "\n\n"
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    text = rubric_reply(rubric) if manner == "writer" else rubric_text(rubric)
    end = template_end(tokenizer) if manner == "chat" else None
    return [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id if end is None else end]
