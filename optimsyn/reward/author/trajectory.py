"""What an author did for one passage, step by step."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Literal

from pydantic import Field

from optimsyn.data.records import Record, Rubric
from optimsyn.llm.reply import Usage
from optimsyn.programs.prompts.author_prompts import Action, transcribed

# Characters of a step's argument and of its result that an optimiser of the author's text is shown.
_SHOWN = 400


class Ending(StrEnum):
    """Why an author's work on a passage ended."""

    FINISHED = "finished"
    STEPS = "steps"
    TOKENS = "tokens"
    COST = "cost"
    MISUSE = "misuse"
    UNREADABLE = "unreadable"


ENDINGS = {
    Ending.FINISHED: "it finished by itself",
    Ending.STEPS: "all author.steps were used",
    Ending.TOKENS: "author.tokens were used",
    Ending.COST: "author.cost_usd was used",
    Ending.MISUSE: "it misused its tools too often in a row",
    Ending.UNREADABLE: "no draft could be read",
}


class Step(Record):
    """One step: what was called, what came of it, what it cost.

    Attributes:
        number: From 1.
        thought: What the model said before it.
        tool: The tool; empty where the step named none.
        argument: What it was called with.
        result: What the model was shown.
        misuse: Why the step was no use of a tool; such a step has done nothing.
        drafts: Numbers of the drafts that it made, had written or scored, from 1.
        judged: Their keys in `rewards.jsonl`, if it scored them.
        rewards: Their rewards; None where a pair could not be judged.
        usage: What the step asked for: the model's reply, and pairs that it had written.
    """

    number: int
    thought: str = ""
    tool: str = ""
    argument: str = ""
    result: str = ""
    misuse: str = ""
    drafts: tuple[int, ...] = ()
    judged: tuple[str, ...] = ()
    rewards: tuple[float | None, ...] = ()
    usage: Usage = Usage()


class AuthorDraft(Record):
    """A rubric that the author has tried.

    Attributes:
        rubric: Its criteria.
        key: Of its judgement in `rewards.jsonl`; None: it was not scored.
        valid: Whether its pair passed the checks; None: no pair was written.
        reward: What the pair earned; None: not scored, or not judged.
    """

    rubric: Rubric
    key: str | None = None
    valid: bool | None = None
    reward: float | None = None

    @property
    def verdict(self) -> str:
        """What came of it, in words."""
        if self.reward is None:
            return "not scored"
        return f"reward {self.reward:+.3g}, {'valid' if self.valid else 'invalid'}"


class Trajectory(Record):
    """All steps for one passage and seed; a line of the run's file of trajectories.

    Attributes:
        passage_id: The passage.
        kind: Name of the form of its pair.
        seed: Of the pairs: all drafts of a passage have the same.
        guiding_text: What the rubrics were to follow.
        model: Who called the tools.
        decided: By the model, or by the plan that tries all drafts.
        steps: In order.
        drafts: In order; draft 1 is the first.
        chosen: Number of the draft that became the rubric; None: there was none.
        ended: Why it ended.
        usage: Of all steps. Kept replies count as when they were bought.
    """

    passage_id: str
    kind: str
    seed: int
    guiding_text: str
    model: str
    decided: Literal["model", "plan"]
    steps: tuple[Step, ...] = ()
    drafts: tuple[AuthorDraft, ...] = ()
    chosen: int | None = None
    ended: Ending = Ending.FINISHED
    usage: Usage = Field(default_factory=Usage)

    @property
    def rubric(self) -> Rubric | None:
        """The rubric that came of it."""
        return None if self.chosen is None else self.drafts[self.chosen - 1].rubric

    @property
    def reward(self) -> float | None:
        """What the pair of the chosen draft earned."""
        return None if self.chosen is None else self.drafts[self.chosen - 1].reward

    @property
    def misused(self) -> int:
        """Steps that were no use of a tool."""
        return sum(bool(step.misuse) for step in self.steps)

    @property
    def told(self) -> str:
        """All steps with shortened results, the drafts with their rewards, and why it ended."""
        drafts = [f"Draft {number}: {draft.verdict}." for number, draft in enumerate(self.drafts, 1)]
        chosen = "without a rubric" if self.chosen is None else f"with draft {self.chosen}"
        end = f"The work ended {chosen}, because {ENDINGS[self.ended]}."
        return "\n\n".join(filter(None, (transcript(self.steps, longest=_SHOWN), "\n".join([*drafts, end]))))


def transcript(steps: Sequence[Step], *, chat: bool = True, longest: int | None = None) -> str:
    """Steps as a prompt shows them.

    Args:
        steps: In order.
        chat: Whether the model that reads it follows instructions.
        longest: Most characters of an argument and of a result; None: all.
    """

    def cut(text: str) -> str:
        return text if longest is None or len(text) <= longest else f"{text[:longest]}…"

    return transcribed(
        [(step.thought, Action(step.tool, cut(step.argument)).line, cut(step.result)) for step in steps], chat=chat
    )
