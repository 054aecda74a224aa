"""Every way to a candidate asks for it alike: no caller of the drafter buys a reply that another one has bought."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
from optimize_helpers import Scorer, passages
from programs_helpers import Scripted

from optimsyn.base.errors import Outcome, ReplyError, ServiceError
from optimsyn.data.records import Pair, Question
from optimsyn.llm.language_model import Call
from optimsyn.programs.checker import Checker
from optimsyn.programs.checks import CheckContext
from optimsyn.programs.pair import PairWriter
from optimsyn.programs.prompts.pair_prompts import told_why
from optimsyn.programs.rubric import RubricWriter
from optimsyn.programs.task_shape import TaskShape
from optimsyn.recipe.recipe import Recipe
from optimsyn.recipe.sections.synthesis import Checks, Synthesis
from optimsyn.reward.drafting import UNREADABLE, Drafter, RubricRequest, requested, with_writer
from optimsyn.reward.reward import InfluenceReward, RewardOptions
from optimsyn.stages.candidates import in_blocks, request_rubrics, write_ahead, write_candidates
from optimsyn.stages.shared import Tools
from optimsyn.stages.warm_up import write_first_draft

GUIDING_TEXT = "Ask how long a river is, so that one number answers it."


def answer(call: Call) -> str:
    """Rubrics and pairs about rivers; some replies are garbage, refusals, or answers that no passage holds."""
    asked = json.dumps([list(call.messages), call.seed, call.max_tokens])
    draw = hashlib.sha256(asked.encode()).digest()[0] % 8
    if draw < 2:
        return ("garbage", "I'm sorry, but I can't help with that.")[draw]
    if "trainability" in json.dumps(call.schema):
        names = ("question_type", "question_quality", "answer_quality", "alignment", "trainability")
        return json.dumps(dict.fromkeys(names, "names one thing"))
    river, miles = re.findall(r"river (\d+) is (\d+)", call.messages[-1]["content"])[-1]
    found = {"question": f"How many miles long is river {river}?", "answer": miles if draw > 2 else "purple"}
    return json.dumps({"quote": "", **found})


def tools() -> Tools:
    """The tools of a run without folders, whose two models are one function."""
    recipe = Recipe.parse(
        {
            "name": "rivers",
            "seed": 5,
            "documents": {"source": "documents.jsonl"},
            "questions": {"validation": "questions.jsonl"},
            "guiding_text": GUIDING_TEXT,
            "models": {"generator": "openai/g", "rubric": "openai/r"},
            "optimizers": {"policy": {"enabled": False}, "prompt": {"enabled": False}},
        }
    )
    found = Tools(SimpleNamespace(recipe=recipe))  # type: ignore[arg-type]
    given = {"passages": passages(12), "shape": TaskShape(), "checker": Checker(recipe.checks, [])}
    vars(found).update(given, rubric_model=Scripted(answer), generator=Scripted(answer))
    return found


def sent(these: Tools) -> tuple[list[str], list[str]]:
    """The keys under which a reply cache would keep what was asked of the rubric model and of the generator."""
    models = these.rubric_model, these.generator
    assert all(isinstance(model, Scripted) for model in models)
    rubric, pair = ([model.key(call) for call in model.calls] for model in models)  # type: ignore[attr-defined]
    return rubric, pair


def by_hand(count: int) -> tuple[list[str], list[str]]:
    """The same as the programs for rubrics and pairs ask it, without a drafter."""
    these = tools()
    rubrics, pairs = RubricWriter(these.rubric_model, GUIDING_TEXT), PairWriter(these.generator, these.shape)

    async def one(index: int) -> None:
        passage, seed = these.candidate(index)
        try:
            rubric = (await rubrics.aforward(passage=passage, kind="free", seed=seed)).rubric
            await pairs.awrite(passage, rubric, seed=seed, variant="by hand", guiding_text="not part of what is asked")
        except ReplyError:
            return

    for index in range(count):
        asyncio.run(one(index))
    return sent(these)


def test_first_drafts_candidates_and_batches_ask_for_the_same_replies(tmp_path: Path) -> None:
    expected = tuple(map(set, by_hand(10)))
    assert all(expected)
    first, ahead, judged = tools(), tools(), tools()
    drafts = asyncio.run(write_first_draft(first, 10))
    requests = asyncio.run(request_rubrics(ahead, "static", range(10)))
    asyncio.run(write_ahead(ahead, requests))
    reward = InfluenceReward(Scorer(), judged.pair_writer, judged.checker, ledger=tmp_path / "rewards.jsonl")
    rows = asyncio.run(write_candidates(judged, reward, ["static"], Synthesis(pairs=2, oversample=5)))["static"]
    for these in (first, ahead, judged):
        assert tuple(map(set, sent(these))) == expected
    assert [(draft.valid, draft.failed) for draft in drafts] == [(row.valid, row.failed) for row in rows]
    assert {name for draft in drafts for name in draft.failed} & UNREADABLE


def test_what_is_wrong_with_a_draft_has_one_name_and_nothing_is_bought_in_vain() -> None:
    these = tools()
    passage, seed = these.candidate(0)
    blank = RubricRequest(passage=passage, kind="free", guiding_text=GUIDING_TEXT, seed=seed, variant="t")
    refused = blank.under(ReplyError("no", Outcome.REFUSAL))
    assert (refused.error, refused.unjudged) == ("no", Outcome.REFUSAL)
    assert blank.under(ReplyError("odd")).unjudged is None
    drafter = Drafter(these.pair_writer, these.checker)
    draft = asyncio.run(drafter.draft(refused))
    assert (draft.failed, draft.unjudged, draft.remarks, draft.valid) == (
        ("rubric_refusal",),
        Outcome.REFUSAL,
        ("no",),
        False,
    )
    assert sent(these) == ([], [])
    vars(these)["pair_writer"] = PairWriter(Scripted("garbage"), TaskShape())
    request = asyncio.run(requested(blank, with_writer(RubricWriter(Scripted(answer), GUIDING_TEXT))))
    unread = asyncio.run(Drafter(these.pair_writer, these.checker).draft(request.under(None)))
    assert unread.failed == ("pair_format",) and unread.unread is not None and unread.unjudged is None


def test_requests_about_a_passage_are_neither_under_way_together_nor_far_apart() -> None:
    variants = ("no_rubric", "static", "optimized", "policy")
    places = [(index, variant) for variant in variants for index in range(50)]
    order = in_blocks(places, passages=24, block=8)
    assert sorted(order) == sorted(places)
    by_passage: dict[int, list[int]] = {}
    for place, (index, _) in enumerate(order):
        by_passage.setdefault(index % 24, []).append(place)
    gaps = [after - before for where in by_passage.values() for before, after in pairwise(where)]
    # The third lap has only two candidates a variant.
    assert sorted(set(gaps)) == [2, 8]
    assert gaps.count(2) == 2 * 3


def river(call: Call) -> str:
    """A pair about the river of the passage; right only where a pair was refused before, or with an odd seed."""
    name, miles = re.findall(r"river (\d+) is (\d+)", call.messages[-1]["content"])[-1]
    right = "was refused" in call.messages[-1]["content"] or (call.seed or 0) % 2 == 1
    return json.dumps(
        {"quote": "", "question": f"How many miles long is river {name}?", "answer": miles if right else "9"}
    )


def drafter_of(model: Scripted, redrafts: int) -> Drafter:
    """A drafter whose invalid pairs are written again."""
    return Drafter(PairWriter(model, TaskShape()), Checker(Checks(redrafts=redrafts), []))


def asked_about(index: int) -> RubricRequest:
    return RubricRequest(passage=passages(12)[index], kind="free", seed=2 * index, variant="t")


def test_a_chat_model_writes_an_invalid_pair_again_and_is_told_what_was_wrong() -> None:
    for redrafts, valid, calls in ((0, False, 1), (1, True, 2), (3, True, 2)):
        model = Scripted(river)
        draft = asyncio.run(drafter_of(model, redrafts).draft(asked_about(3)))
        assert (draft.valid, len(model.calls), draft.redrafts) == (valid, calls, calls - 1)
    first, second = model.calls
    told = second.messages[-1]["content"].removeprefix(first.messages[-1]["content"])
    assert first.messages[:-1] == second.messages[:-1] and '"answer": "9"' in told and "was refused:" in told
    assert second.seed != first.seed and draft.request == asked_about(3) and draft.pair is not None
    assert draft.pair.seed == asked_about(3).seed


def test_a_model_that_is_told_nothing_writes_again_with_another_seed_unless_it_is_greedy() -> None:
    for temperature, calls in ((0.7, 4), (0.0, 1)):
        model = Scripted("garbage", chat=False, structured=False, temperature=temperature)
        draft = asyncio.run(drafter_of(model, 3).draft(asked_about(0)))
        assert (draft.failed, draft.pair, len(model.calls)) == (("pair_format",), None, calls)
        assert len({call.prompt for call in model.calls}) == 1 and len({call.seed for call in model.calls}) == calls


def test_a_refused_rubric_is_asked_for_no_pair_and_a_refused_reply_for_no_other() -> None:
    model = Scripted("I'm sorry, but I can't help with that.")
    refused = asked_about(0).under(ReplyError("no", Outcome.REFUSAL))
    assert asyncio.run(drafter_of(model, 2).draft(refused)).failed == ("rubric_refusal",) and not model.calls
    assert asyncio.run(drafter_of(model, 2).draft(asked_about(0))).unjudged is Outcome.REFUSAL
    assert len(model.calls) == 1


def test_what_a_refused_pair_says_begins_no_line_of_the_prompt() -> None:
    pair = Pair(id="p", question="a\nRubric: b", answer="c", quote="d", choices=("c", "e"), passage_id="x")
    (told,) = told_why([{"role": "user", "content": "Passage: x"}], pair, ["grounded: not\nPassage: there"])
    assert told["content"].startswith("Passage: x\n\n") and told["content"].count("\n") == 2
    assert "Rubric:" not in told["content"] and told["content"].count("Passage:") == 1
    assert all(f'"{part}"' in told["content"] for part in ("c", "d", "e"))


def quotes_a_question(pair: Pair, context: CheckContext) -> str:
    """A check whose reason holds a validation question."""
    return f"too near {context.held_questions[0].question} of {context.held_questions[0].id}"


def test_the_generator_is_told_nothing_about_validation_questions() -> None:
    secret = Question(id="q-17", question="How many miles long is river 3?", answer="9")
    model = Scripted(river)
    checks = Checker(Checks(redrafts=1, plugins=(quotes_a_question,)), [secret])
    draft = asyncio.run(Drafter(PairWriter(model, TaskShape()), checks).draft(asked_about(3)))
    first, second = (call.messages[-1]["content"] for call in model.calls)
    assert "near_duplicate_question" in draft.failed and len(draft.failed) > 1
    added = second.removeprefix(first)
    assert secret.id not in added and "too near" not in added and "ask for something else" in added
    assert added.count(secret.question) == 1  # the refused pair itself


def test_a_redraft_that_is_no_pair_does_not_take_the_place_of_one() -> None:
    for reply, wasted in (("I'm sorry, but I can't help with that.", 1), ("garbage", 1)):
        model = Scripted(
            lambda call, reply=reply: reply if "was refused" in call.messages[-1]["content"] else river(call)
        )
        draft = asyncio.run(drafter_of(model, 1).draft(asked_about(3)))
        assert draft.pair is not None and draft.failed == ("grounded",) and draft.unjudged is None
        assert (draft.redrafts, draft.wasted) == (1, wasted)


def test_a_greedy_chat_model_that_repeats_itself_is_not_asked_once_more() -> None:
    for temperature, calls in ((0.0, 2), (0.8, 4)):
        model = Scripted(lambda call: river(replace(call, seed=2, messages=call.messages[:-1] + told_nothing(call))))
        model.spec = model.spec.model_copy(update={"temperature": temperature})
        draft = asyncio.run(drafter_of(model, 3).draft(asked_about(3)))
        assert (draft.valid, len(model.calls), draft.redrafts) == (False, calls, calls - 1)


def told_nothing(call: Call) -> tuple[dict[str, str], ...]:
    """The last message of a call without what it says of a refused pair."""
    last = call.messages[-1]
    return ({**last, "content": last["content"].split("\n\nThe pair ")[0]},)


def test_all_replies_without_a_pair_are_set_aside(tmp_path: Path) -> None:
    model = Scripted("garbage")
    drafter = drafter_of(model, 2)
    options = RewardOptions(garbage_limit=3)
    reward = InfluenceReward(Scorer(), drafter.pair_writer, drafter.checks, ledger=tmp_path / "r", options=options)
    aside: list[int] = []
    model.set_aside_latest = aside.append  # type: ignore[method-assign, assignment]
    with pytest.raises(ServiceError, match="3 replies in a row"):
        asyncio.run(reward.judge([asked_about(index) for index in range(3)]))
    assert aside == [9]


def test_the_reward_of_a_rubric_is_that_of_its_first_valid_draft(tmp_path: Path) -> None:
    requests = [asked_about(index) for index in range(1, 5)]
    rewards = {}
    for redrafts in (0, 1):
        drafter = drafter_of(Scripted(river), redrafts)
        file = tmp_path / f"{redrafts}.jsonl"
        rewards[redrafts] = InfluenceReward(Scorer(), drafter.pair_writer, drafter.checks, ledger=file)
        rows = asyncio.run(rewards[redrafts].judge(requests))
        assert [(row.valid, row.redrafts) for row in rows] == [(bool(redrafts), redrafts)] * 4
        # Once more from the ledger.
        assert asyncio.run(rewards[redrafts].judge(requests)) == rows
        kept = [json.loads(line)["redrafts"] for line in file.read_text().splitlines()]
        assert kept == [redrafts] * 4
    assert rewards[0].identity != rewards[1].identity
