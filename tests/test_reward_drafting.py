"""Every way to a candidate asks for it alike: no caller of the drafter buys a reply that another one has bought."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

from optimize_helpers import Scorer, passages
from programs_helpers import Scripted

from optimsyn.base.errors import Outcome, ReplyError
from optimsyn.llm.language_model import Call
from optimsyn.programs.checker import Checker
from optimsyn.programs.pair import PairWriter
from optimsyn.programs.rubric import RubricWriter
from optimsyn.programs.task_shape import TaskShape
from optimsyn.recipe.recipe import Recipe
from optimsyn.recipe.sections.synthesis import Synthesis
from optimsyn.reward.drafting import UNREADABLE, Drafter, RubricRequest, requested, with_writer
from optimsyn.reward.reward import InfluenceReward
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
