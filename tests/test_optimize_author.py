"""The author's own text is improved: its steps are shown, its caps hold, and a text that makes it work better wins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from optimize_helpers import BASE_TEXT, WORTH, PairWriter, RubricModel, Shape, make_reward, passages, rubric

from optimsyn.base.errors import ReplyError, ServiceError
from optimsyn.base.files import read_jsonl
from optimsyn.data.records import Rubric
from optimsyn.llm.language_model import Call, LanguageModel
from optimsyn.llm.replies import Reply, ReplyCache
from optimsyn.optimize.prompt import PromptResult, optimize_guiding_text
from optimsyn.optimize.prompt_task import PromptTask
from optimsyn.programs.rubric import RubricWriter, rubric_text
from optimsyn.recipe.recipe import ModelSpec
from optimsyn.recipe.sections.author import Author
from optimsyn.recipe.sections.optimizers import PromptOptimizer
from optimsyn.reward.author.agent import RubricAuthor
from optimsyn.reward.author.desk import Workplace
from optimsyn.reward.author.library import Library
from optimsyn.reward.author.trajectory import Ending, Trajectory
from optimsyn.reward.drafting import RubricRequest

BETTER = f"{BASE_TEXT} Try two drafts before you finish."
LONG = "A note of the surveyor. " * 30 + "The last word is zircon."


class AuthorModel(LanguageModel):
    """Tries one poor draft; two under a guidance that says so, and then finishes with the better one.

    `fails_under` is what the guidance says where it only talks; "" is in every one.
    """

    chat = True
    structured = False

    def __init__(self, cache: ReplyCache | None, fails_under: str | None = None) -> None:
        super().__init__(ModelSpec(name="test/author"), cache, None, identity="test/author")
        self.fails_under = fails_under
        self.requests = 0

    async def _request(self, call: Call) -> Reply:
        self.requests += 1
        prompt = call.messages[-1]["content"]
        guidance = prompt.split("Guidance: ", 1)[1].splitlines()[0]
        drafts = [rubric("definition"), *([rubric("mechanism")] if "two drafts" in guidance else [])]
        steps = ["Do: read 9", *(f"Do: draft\n{rubric_text(each)}" for each in drafts)]
        steps += [f"Do: score {' '.join(map(str, range(1, len(drafts) + 1)))}", f"Do: finish {len(drafts)}"]
        text = steps[min(prompt.count("\nResult: "), len(steps) - 1)]
        if self.fails_under is not None and self.fails_under in guidance:
            text = "I would rather talk."
        return Reply(text=text, input_tokens=7, output_tokens=3, cost_usd=0.01)


class Reflection(RubricModel):
    """Proposes `BETTER` to each method in the way that it asks for a text."""

    chat = True

    def __init__(self) -> None:
        super().__init__()
        self.name = "test/reflection"
        self.seen: list[str] = []

    def text_for(self, call: Call, kind: str) -> str:
        asked = "\n".join(message["content"] for message in call.messages)
        self.seen.append(asked)
        if "new_instruction" in asked:
            return json.dumps({"new_instruction": BETTER})
        field = next(name for name in ("proposed_instruction", "summary", "observations") if f"## {name} ##" in asked)
        text = BETTER if field == "proposed_instruction" else "They tell the length of rivers."
        return f"[[ ## {field} ## ]]\n{text}\n\n[[ ## completed ## ]]"


def search(
    folder: Path, model: LanguageModel, *, reward: Any = None, reflection: Any = None, author: Any = None, **config: Any
) -> PromptResult:
    settings = {"program": "author", "metric_calls": 16, "minibatch": 2, "passages": 4, "confirm_passages": 0}
    texts = passages(9)
    texts[8] = texts[8].model_copy(update={"text": LONG})
    reward = reward or make_reward(source="optimize_prompt")
    writer = RubricWriter(RubricModel(), BASE_TEXT)

    async def write(request: RubricRequest) -> Rubric:
        raise ReplyError("the author drafts by itself")

    place = Workplace(reward, Library(texts), "", Shape())
    who = RubricAuthor(Author(**{"steps": 6, "drafts": 2, **(author or {})}), model, write, place)
    task = PromptTask(
        PromptOptimizer(**{**settings, **config}), writer, reward, texts[:8], Shape(), 5, folder, reflection, who
    )
    return optimize_guiding_text(task)


@pytest.mark.parametrize("method", ["gepa", "halving", "miprov2"])
def test_the_method_sees_the_steps_and_the_text_that_makes_it_try_a_better_draft_wins(
    tmp_path: Path, method: str
) -> None:
    if method == "miprov2":
        pytest.importorskip("optuna", reason="an extra: pip install 'optimsyn[mipro]'")

    def run(model: AuthorModel, reflection: Reflection) -> tuple[PromptResult, Any]:
        pairs = PairWriter(tmp_path / "written.log", kept=(tmp_path / "written.log").exists())
        reward = make_reward(tmp_path / "rewards.jsonl", writer=pairs, source="optimize_prompt")
        return search(tmp_path / "s", model, reward=reward, reflection=reflection, method=method), reward

    reflection = Reflection()
    found, reward = run(AuthorModel(ReplyCache(tmp_path / "replies.sqlite")), reflection)
    assert found.guiding_text == BETTER
    assert found.start_score == pytest.approx(WORTH["definition"], abs=0.02)
    assert found.score == pytest.approx(WORTH["mechanism"], abs=0.02)
    # What it was shown: every step, long results cut, rewards, and why the work ended.
    asked = next(text for text in reflection.seen if "because it finished by itself" in text)
    for shown in ("Do: read 9", "A note of the surveyor", "Question type: definition", "Do: score 1", "Do: finish 1"):
        assert shown in asked
    assert "zircon" not in asked and "The work ended with draft 1" in asked
    if method != "miprov2":
        assert "on how to work" in asked and "would teach" in asked
    # A rubric is one of metric_calls and has the author's caps; all drafts are judged for the search.
    done = read_jsonl(tmp_path / "s" / "author.jsonl", Trajectory)
    assert len(done) <= 16 and len(reward.answered) == found.judged == sum(len(each.drafts) for each in done)
    assert {each.guiding_text for each in done} == {BASE_TEXT, BETTER}
    assert {(len(each.steps), len(each.drafts)) for each in done} == {(4, 1), (5, 2)}
    # The path of a killed search is taken again, and nothing is bought twice.
    (tmp_path / "s" / "result.json").unlink()
    before = (tmp_path / "written.log").read_text()
    again, _ = run(replayed := AuthorModel(ReplyCache(tmp_path / "replies.sqlite")), Reflection())
    assert again == found and replayed.requests == 0
    assert (tmp_path / "written.log").read_text() == before


@pytest.mark.parametrize("method", ["gepa", "halving"])
def test_a_text_under_which_it_misuses_its_tools_loses_at_a_bounded_cost(tmp_path: Path, method: str) -> None:
    model = AuthorModel(None, fails_under="two drafts")
    found = search(tmp_path, model, reflection=Reflection(), method=method, patience=1)
    assert found.guiding_text == BASE_TEXT
    done = read_jsonl(tmp_path / "author.jsonl", Trajectory)
    lost = [each for each in done if each.guiding_text == BETTER]
    assert lost and {(each.ended, len(each.steps), each.chosen) for each in lost} == {(Ending.MISUSE, 3, None)}
    assert found.history[-1]["score"] == pytest.approx(-0.1)
    assert model.requests == sum(len(each.steps) for each in done)


def test_a_model_that_never_writes_a_rubric_ends_the_search(tmp_path: Path) -> None:
    model = AuthorModel(None, fails_under="")
    with pytest.raises(
        ServiceError, match=r"The author, 'test/author', has not written a rubric for any of 8 requests"
    ):
        search(tmp_path, model, reflection=Reflection())
    assert model.requests == 4 * 3


def test_its_caps_of_tokens_hold_for_every_rubric(tmp_path: Path) -> None:
    model = AuthorModel(None)
    search(tmp_path, model, reflection=Reflection(), author={"tokens": 25}, metric_calls=8)
    done = read_jsonl(tmp_path / "author.jsonl", Trajectory)
    assert {each.ended for each in done} == {Ending.TOKENS}
    assert max(each.usage.tokens for each in done) <= 30
