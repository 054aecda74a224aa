"""The second turn of the guiding text, in stage 4: it is searched once more, with the trained policy as the writer.

The first search asked the untrained rubric model, and the policy was then trained under the text that it found. Which
text suits the trained policy best is another question, with the same reward, budget and confirmation.
"""

from __future__ import annotations

import gc
import shutil
from typing import TYPE_CHECKING

from optimsyn.base.event_loops import run_sync
from optimsyn.base.files import write_text
from optimsyn.base.seeds import shuffled, turn_seed
from optimsyn.runs.results.text_search import SecondTurn
from optimsyn.stages.candidates import sampled_from
from optimsyn.stages.optimize_prompt import found_by, reflection_of
from optimsyn.stages.shared import GUIDING_TEXT, Tools

if TYPE_CHECKING:
    from optimsyn.data.records import Passage
    from optimsyn.runs.stage_handle import StageHandle

FOLDER = "text"
"""In the folder of the stage: history, log and result of the search."""
_UNTRAINED = (
    "The guiding text was not searched again (optimizers.turns: 2), since the training kept the untrained policy, and "
    "the text of the first search stays."
)


def second_turn(tools: Tools, stage: StageHandle, kept_round: int | None) -> tuple[SecondTurn | None, tuple[str, ...]]:
    """Searches the guiding text again where the recipe asks for it; a killed search is replayed from what is kept.

    It begins from the text of the first search. The chosen text is in `guiding_text.txt`.

    Args:
        tools: The run's models and passages; the policy's training has ended.
        stage: Gets the progress.
        kept_round: Round of the kept adapter; 0: the untrained policy was kept, so nothing is searched. None: the
            method has no rounds.

    Returns:
        What was found, None without a search; and sentences on it.

    Raises:
        ServiceError: A service failed for good; everything judged is kept.
    """
    recipe = tools.recipe
    if not recipe.optimizers.searched_again:
        return None, ()
    start = tools.best_guiding_text
    if kept_round == 0:
        # Of a training with other settings.
        shutil.rmtree(tools.run.path("train_policy", FOLDER), ignore_errors=True)
    found = None if kept_round == 0 else _searched(tools, stage, start)
    chosen = start if found is None or found.text is None else found.text
    write_text(tools.run.path("train_policy", GUIDING_TEXT), chosen + "\n")
    if found is None:
        return None, (_UNTRAINED,)
    return found, tuple(f"Second turn of the guiding text: {note}" for note in found.notes)


def _searched(tools: Tools, stage: StageHandle, start: str) -> SecondTurn:
    from optimsyn.optimize.programs import PolicyWriter
    from optimsyn.optimize.prompt import optimize_guiding_text
    from optimsyn.optimize.prompt_task import PromptTask

    recipe = tools.recipe
    config, seed = recipe.optimizers.prompt, turn_seed(recipe.seed_of("policy"), 2)
    # The trainer and its model refer to each other, and the policy may not fit beside an uncollected one.
    gc.collect()
    stage.progress(0, config.metric_calls, "judged pairs")
    # Of its own: what a search has judged and compared is the same after a kill, which repeats no training, and no
    # score moves with what the policy was given before.
    reward = tools.reward(
        "train_policy", lambda now, judged: stage.progress(judged, config.metric_calls, "judged pairs")
    )
    search = optimize_guiding_text(
        PromptTask(
            config,
            tools.rubric_writer(start),
            reward,
            _in_another_order(tools.passages_for("optimize"), seed),
            tools.shape,
            seed,
            tools.run.path("train_policy", FOLDER),
            reflection_of(tools),
            policy=PolicyWriter(sampled_from(tools, tools.policy), tools.policy.identity),
        )
    )
    # What comes next needs the memory.
    run_sync(tools.policy.aclose())
    return SecondTurn(notes=search.notes, **found_by(search, start))


def _in_another_order(passages: list[Passage], seed: int) -> list[Passage]:
    """So that other passages compare texts than in the first turn."""
    by_id = {passage.id: passage for passage in passages}
    return [by_id[key] for key in shuffled(list(by_id), seed, "passages")]
