"""MIPROv2 on the guiding text: it improves, keeps its budget exactly, resumes by replay, and never hides a failure."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from optimize_helpers import BASE_TEXT, WORTH, PairWriter, RubricModel, Scorer, Shape, make_reward, passages

from optimsyn.base.errors import ModelError, ServiceError
from optimsyn.base.seeds import derive_seed
from optimsyn.llm.language_model import Call
from optimsyn.llm.replies import Reply, ReplyCache
from optimsyn.optimize.methods import method_problems
from optimsyn.optimize.prompt import PromptResult, optimize_guiding_text
from optimsyn.optimize.prompt_task import PromptTask
from optimsyn.programs.rubric import RubricWriter
from optimsyn.recipe.changes import changed
from optimsyn.recipe.recipe import Recipe
from optimsyn.recipe.sections.optimizers import PromptOptimizer
from optimsyn.report.page.report import write_report
from optimsyn.runs.folder import Run
from tests.llm_helpers import Answer, Service, said
from tests.stages_helpers import answer, asked_twice, run_stage

pytest.importorskip("optuna", reason="an extra: pip install 'optimsyn[mipro]'")


class Proposer(RubricModel):
    """Describes the passages, then proposes to ask for one type of question, which one the seed says."""

    chat = True

    def __init__(self, cache: ReplyCache | None = None, fails: Exception | None = None, junk: bool = False) -> None:
        super().__init__(cache, fails=fails)
        self.name = "test/proposer"
        self.junk = junk
        self.proposals: list[tuple[int | None, str]] = []

    async def _request(self, call: Call) -> Reply:
        reply = await super()._request(call)
        asked = str(call.messages)
        if self.junk and "proposed_instruction" in asked:
            return reply.model_copy(update={"text": "certainly!"})
        field, text = "observations", "They tell the length of rivers."
        if "proposed_instruction" in asked:
            self.proposals.append((call.seed, asked))
            # The last two types are worth less than chance.
            kind = ["mechanism", "comparison", "definition"][derive_seed(call.seed, "proposal") % 3]
            field, text = "proposed_instruction", f"{BASE_TEXT} Question types that taught most: {kind}."
        elif re.search(r"\[\[ ## summary ## \]\]", asked):
            field = "summary"
        return reply.model_copy(update={"text": f"[[ ## {field} ## ]]\n{text}\n\n[[ ## completed ## ]]"})


def search(folder: Path, reflection: Any, *, calls: int = 32, reward: Any = None, model: Any = None) -> PromptResult:
    config = PromptOptimizer(method="miprov2", metric_calls=calls, passages=4, confirm_passages=0)
    writer = RubricWriter(model or RubricModel(ReplyCache(folder / "rubrics.sqlite")), BASE_TEXT)
    reward = reward or make_reward(source="optimize_prompt")
    return optimize_guiding_text(PromptTask(config, writer, reward, passages(8), Shape(), 5, folder / "s", reflection))


def test_it_improves_within_its_budget_and_writes_a_history(tmp_path: Path) -> None:
    reward, reflection = make_reward(source="optimize_prompt"), Proposer()
    found = search(tmp_path, reflection, reward=reward)
    assert found.method == "miprov2"
    assert found.guiding_text == f"{BASE_TEXT} Question types that taught most: mechanism."
    assert found.score == pytest.approx(WORTH["mechanism"], abs=0.02)
    assert found.score > found.start_score + 0.05
    # Every text on every passage once, whatever Optuna tried again; and no other pair.
    assert found.judged == len(reward.answered) == 4 * found.candidates <= 32
    assert len({row.passage_id for row in reward.answered}) == 4
    assert [row["status"] for row in found.history] == ["start"] + ["compared"] * (found.candidates - 1)
    # What it was shown: passages and good rubrics, no code; a seed for each proposal.
    seeds = [seed for seed, _ in reflection.proposals]
    assert len(set(seeds)) == len(seeds) == 7
    assert any("question_type" in asked and "long" in asked for _, asked in reflection.proposals)
    assert not any("RubricProgram" in asked for _, asked in reflection.proposals)


def test_the_start_text_stays_when_nothing_gains(tmp_path: Path) -> None:
    found = search(tmp_path, Proposer(), reward=make_reward(scorer=Scorer(0.1)))
    assert (found.guiding_text, found.score) == (BASE_TEXT, pytest.approx(0.1))
    assert found.candidates > 1


def test_means_that_differ_by_less_than_dspys_rounding_are_told_apart(tmp_path: Path) -> None:
    class Small(Scorer):
        def worth(self, pair: Any) -> float:
            return super().worth(pair) * 1e-6

    found = search(tmp_path, Proposer(), reward=make_reward(scorer=Small()))
    assert "taught most: mechanism" in found.guiding_text


def test_the_smallest_budget_tries_one_proposal(tmp_path: Path) -> None:
    reflection = Proposer()
    found = search(tmp_path, reflection, calls=4)
    assert found.judged <= 4
    assert len(reflection.proposals) == 1


def test_a_search_that_was_stopped_goes_on_without_buying_twice(tmp_path: Path) -> None:
    whole = search(tmp_path / "whole", Proposer(ReplyCache(tmp_path / "whole.sqlite")))
    writer = PairWriter(tmp_path / "log", fail_at=10)
    writer.fails = ServiceError("connection refused")
    ledger, replies = tmp_path / "rewards.jsonl", ReplyCache(tmp_path / "replies.sqlite")
    with pytest.raises(ServiceError, match="connection refused"):
        search(tmp_path, Proposer(replies), reward=make_reward(ledger, writer=writer))
    assert not (tmp_path / "s" / "result.json").exists()
    again = Proposer(replies)
    found = search(tmp_path, again, reward=make_reward(ledger, writer=PairWriter(tmp_path / "log", kept=True)))
    assert found == whole
    assert again.requests == 0
    bought = (tmp_path / "log").read_text().split()
    assert len(bought) == len(set(bought)) == whole.judged


def test_a_failing_reflection_service_surfaces(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match=r"models.reflection: timed out"):
        search(tmp_path, Proposer(fails=ServiceError("models.reflection: timed out")))


def test_a_junk_reflection_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ServiceError, match=r"test/proposer.*proposals in a row were unusable"):
        search(tmp_path, Proposer(junk=True))


def test_without_optuna_or_a_reflection_model_it_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ModelError, match=r"models.reflection"):
        search(tmp_path, None)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ModelError, match=r"optimsyn\[mipro\]"):
        search(tmp_path, Proposer())


@pytest.mark.slow
def test_a_run_whose_recipe_names_it_buys_each_reply_once(recipe: Recipe, served: Service, tmp_path: Path) -> None:
    def replies(number: int, request: dict[str, Any]) -> Answer:
        asked = json.dumps(request["messages"])
        for field in ("proposed_instruction", "summary", "observations"):
            if f"[[ ## {field} ## ]]" in asked:
                text = (
                    f"Ask which metal a city mined, in words of kind {request['seed'] % 9}." if "pro" in field else "x"
                )
                return said(f"[[ ## {field} ## ]]\n{text}\n\n[[ ## completed ## ]]")
        return answer(number, request)

    served.answer = replies
    reflection = recipe.models.generator.model_dump(mode="json")
    changes = {"optimizers.prompt.method": "miprov2", "models.reflection": reflection}
    recipe = changed(recipe, changes)
    assert method_problems(recipe) == []
    run = Run.open(recipe, tmp_path / "runs")
    for stage in ("prepare", "warm_up", "optimize_prompt"):
        result = run_stage(run, stage)
    assert result.judged == 2 * result.candidates <= 8
    assert result.candidates > 1
    assert result.title == "Guiding text, before and after MIPROv2"
    assert run.manifest.stage("optimize_prompt").notes["optimizer"] == {"method": "miprov2"}
    assert run.manifest.versions["optuna"] != "not installed"
    assert asked_twice(served) == []
    assert "MIPROv2 on the guiding text" in write_report(run).read_text("utf-8")
