"""The target's warm-up between rounds of the policy's training, on first drafts under the policy's own rubrics.

The reward says what a pair teaches a target that knows what first drafts teach. Once the policy writes other rubrics,
the target that the data is for will know other things: what every pair of this policy teaches. Drafts, checkpoints and
judgements are in `train_policy/warm_up-N`, N being the round; the run's own warm-up judges everything else.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import aclosing
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from optimsyn.base.counting import plural
from optimsyn.base.errors import ModelError
from optimsyn.base.files import read_jsonl, write_json, write_jsonl
from optimsyn.data.records import Pair
from optimsyn.optimize.policy_task import WARM_UP
from optimsyn.stages.candidates import blank_request
from optimsyn.stages.warm_up import warm_up_target
from optimsyn.target.warm_up.parts import FEWEST_DRAFTS

if TYPE_CHECKING:
    from optimsyn.reward.drafting import Draft, RubricRequest
    from optimsyn.reward.reward import InfluenceReward
    from optimsyn.runs.stage_handle import StageHandle
    from optimsyn.stages.shared import Tools

PAIRS = "pairs.jsonl"
INFLUENCE = "influence.json"
JUDGEMENTS = "rewards.jsonl"


class WarmUpAgain:
    """Warms the target up again between rounds (`optimsyn.optimize.policy_task.Renewal`).

    Args:
        tools: Of the stage; its target is warmed up again in place, and its scorer keeps scoring by the first warm-up.
        stage: Handle that reports the progress.
        guiding_text: The text that the policy is trained under.
        first: The run's reward, whose source the judgements name.
    """

    def __init__(self, tools: Tools, stage: StageHandle, guiding_text: str, first: InfluenceReward) -> None:
        self.tools = tools
        self.stage = stage
        self.guiding_text = guiding_text
        self.first = first
        self._config = tools.recipe.warm_up

    @cached_property
    def blanks(self) -> list[RubricRequest]:
        """The first drafts' requests, under the policy's text and without rubrics."""
        return [
            blank_request(self.tools, "first_draft", index).model_copy(update={"guiding_text": self.guiding_text})
            for index in range(self._config.pairs)
        ]

    def has(self, number: int) -> bool:
        """Whether the first drafts after a round are written."""
        return (self._folder(number) / PAIRS).is_file()

    def reward(self, number: int, requests: Sequence[RubricRequest] | None) -> InfluenceReward | None:
        """The reward of the target as warmed up after a round; None: too few first drafts were valid.

        Args:
            number: The round.
            requests: `blanks` with rubrics of the policy after that round; None where they are written.

        Raises:
            ServiceError: A service failed for good.
        """
        from optimsyn.llm.language_model import run_sync

        if requests is not None:
            drafts = run_sync(self._drafts(requests))
            pairs = [draft.pair for draft in drafts if draft.pair is not None and draft.valid]
            write_jsonl(self._folder(number) / PAIRS, pairs)
        return self._reward(number) if len(self._pairs(number)) >= self._fewest else None

    @property
    def notes(self) -> list[str]:
        """A sentence for each round after which the target was, or could not be, warmed up again."""
        said = []
        for number in self._numbers:
            valid, asked = len(self._pairs(number)), plural(self._config.pairs, "first draft")
            if valid < self._fewest:
                said.append(
                    f"The target was not warmed up again after round {number}: only {valid} of {asked} under the "
                    "policy's rubrics were valid."
                )
            else:
                said.append(
                    f"After round {number} the target was warmed up again, on {valid} valid ones of {asked} under the "
                    "policy's rubrics, and all rubrics so far were judged again; the rewards shown are by "
                    "that target."
                )
        return said

    def end(self) -> None:
        """Puts the run's own warm-up back into the target, by which everything else is judged."""
        if self._numbers:
            self.tools.target.restart()
            self.tools.target.add_checkpoints_from(self.tools.run.path("warm_up", "checkpoints"))

    async def _drafts(self, requests: Sequence[RubricRequest]) -> list[Draft]:
        from optimsyn.reward.pipeline import in_order

        async with aclosing(in_order(requests, self.tools.drafter.draft, self.tools.ahead)) as drafts:
            return [draft async for draft in drafts]

    def _reward(self, number: int) -> InfluenceReward:
        """Warms up, or takes the checkpoints of an earlier process."""
        from optimsyn.reward.reward import TARGET

        tools, folder, pairs = self.tools, self._folder(number), self._pairs(number)
        tools.target.restart()
        training = None if tools.batch_training is None else tools.training_with(pairs)
        try:
            warm_up_target(tools, self.stage, pairs, folder / "checkpoints")
            scorer = tools.scorer_over(tools.reward_questions, folder / "directions", training=training)
        except ModelError as error:
            raise ModelError(
                f"after round {number} the target could not be warmed up again: {error}. Or train without: "
                "optimizers.policy.warm_up_again: false"
            ) from error
        known = folder / INFLUENCE
        if not known.is_file():
            with tools.meter.at_work(TARGET):
                write_json(known, [float(value) for value in scorer.score(pairs).total])
        # Kept, since the penalty may follow from it, and what is judged depends on the penalty to the last digit.
        drafts = json.loads(known.read_text(encoding="utf-8"))
        return tools.reward_by(scorer, self.first.source, folder / JUDGEMENTS, drafts)

    def _pairs(self, number: int) -> list[Pair]:
        return read_jsonl(self._folder(number) / PAIRS, Pair)

    @property
    def _fewest(self) -> int:
        return min(FEWEST_DRAFTS, self._config.pairs)

    @property
    def _numbers(self) -> list[int]:
        """The rounds after which drafts were written."""
        found = self.tools.run.path("train_policy").glob(f"{WARM_UP}*/{PAIRS}")
        return sorted(int(path.parent.name.removeprefix(WARM_UP)) for path in found)

    def _folder(self, number: int) -> Path:
        return self.tools.run.path("train_policy", f"{WARM_UP}{number}")
