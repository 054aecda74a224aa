"""Controls in the place of influence: what they give, and that test questions play no part in any reward."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from influence_helpers import samples, tiny_target
from report_helpers import check_page, make_recipe, write_run

from optimsyn.base.errors import DataError, RecipeError
from optimsyn.data.records import Pair, Question
from optimsyn.influence.factory import build_scorer
from optimsyn.influence.gradients.taps import GradientTaps
from optimsyn.machine.preflight import validate
from optimsyn.recipe.changes import changed
from optimsyn.recipe.recipe import Recipe
from optimsyn.recipe.sections.influence import Influence
from optimsyn.recipe.sections.models import CountedTokens
from optimsyn.recipe.sections.reward import Reward
from optimsyn.report.page.report import write_report
from optimsyn.report.write_summary import write_summary
from optimsyn.reward.controls import NegatedScorer, PlainScorer, penalty_of
from optimsyn.reward.judgements import Judgement
from optimsyn.reward.look.record import RewardLook
from optimsyn.reward.permuted import permuted
from optimsyn.runs.folder import Run
from optimsyn.stages.shared import Tools
from optimsyn.target.target import Target
from tests.stages_helpers import METALS, NAMES, run_stage


@pytest.fixture(scope="module")
def target() -> Target:
    return tiny_target("gemma")


def closed(
    number: int, right: int, options: tuple[str, ...] = ("yes", "no", "maybe"), subtask: str = "all"
) -> Question:
    return Question(
        id=f"c{number}",
        question=f"Does claim {number} hold?",
        answer=options[right],
        answers=(options[right],),
        choices=options,
        answer_index=right,
        subtask=subtask,
    )


def free(number: int, subtask: str = "all") -> Question:
    return Question(id=f"f{number}", question=f"Who is {number}?", answer=f"n{number}", subtask=subtask)


def test_free_answers_are_deranged_within_their_subtask() -> None:
    questions = [free(number, "a" if number < 5 else "b") for number in range(12)]
    found = permuted(questions, 3)
    assert [q.id for q in found] == [q.id for q in questions]
    assert all(mine.answer != theirs.answer for mine, theirs in zip(questions, found, strict=True))
    for subtask in "ab":
        before = Counter(q.answer for q in questions if q.subtask == subtask)
        assert Counter(q.answer for q in found if q.subtask == subtask) == before
    assert permuted(questions, 3) == found
    assert permuted(questions, 4) != found


def test_which_option_is_right_is_swapped_and_shares_stay() -> None:
    rights = [0] * 9 + [1] * 6 + [2] * 3
    questions = [closed(number, right) for number, right in enumerate(rights)]
    # The same options in another order, and four options of their own.
    questions += [closed(18 + number, 1, ("no", "yes", "maybe")) for number in range(4)]
    own = [closed(30 + number, number % 4, tuple(f"{number}{letter}" for letter in "abcd")) for number in range(8)]
    found = permuted([*questions, *own], 1)
    verdicts, others = found[: len(questions)], found[len(questions) :]
    assert Counter(q.answer for q in verdicts) == Counter(q.answer for q in questions)
    assert Counter(q.answer_index for q in others) == Counter(q.answer_index for q in own)
    for before, after in zip([*questions, *own], found, strict=True):
        assert after.choices == before.choices
        assert after.choices is not None
        assert after.answer_index is not None
        assert after.choices[after.answer_index] == after.answer == after.answers[0]
    assert [q.answer for q in found] != [q.answer for q in [*questions, *own]]


def test_a_question_without_a_like_is_left_out() -> None:
    assert [q.id for q in permuted([free(1), free(2), closed(1, 0)], 0)] == ["f1", "f2"]
    # A subtask of its own is no form of its own.
    assert len(permuted([free(1, "a"), free(2, "b")], 0)) == 2
    with pytest.raises(DataError, match="no two are of one"):
        permuted([free(1), closed(1, 0)], 0)


def test_random_numbers_are_normal_and_hang_on_content_and_seed(target: Target) -> None:
    asked = samples(300, seed=1)
    different = len({(item.prompt, item.completion) for item in asked})
    scorer = PlainScorer("random", target, CountedTokens(), 7)
    numbers = scorer.score(asked).total
    assert torch.equal(scorer.score(asked[::-1]).total, numbers.flip(0))
    assert len(set(numbers.tolist())) == different
    assert abs(float(numbers.mean())) < 0.25
    assert float(numbers.std()) == pytest.approx(1, abs=0.15)
    again = [item.model_copy(update={"id": "other"}) for item in asked]
    assert torch.equal(PlainScorer("random", target, CountedTokens(), 7).score(again).total, numbers)
    other = PlainScorer("random", target, CountedTokens(), 8)
    assert other.fingerprint != scorer.fingerprint
    assert abs(statistics.correlation(other.score(asked).total.tolist(), numbers.tolist())) < 0.25


def test_length_counts_the_answers_tokens(target: Target) -> None:
    asked = samples(20, seed=2)
    scores = PlainScorer("length", target, CountedTokens(), 7).score(asked)
    expected = [len(target.tokenizer(item.completion, add_special_tokens=False)["input_ids"]) for item in asked]
    assert scores.total.tolist() == expected
    assert len(set(expected)) > 1
    assert scores.gradient_norm is None


def test_negated_is_minus_the_influence(target: Target) -> None:
    questions, asked = samples(4, seed=7), samples(6, seed=3)
    scorer = build_scorer(target, questions, Influence())
    negated = NegatedScorer(scorer)
    assert torch.equal(negated.score(asked).total, -scorer.score(asked).total)
    assert torch.equal(negated.score(asked).by_subtask, -scorer.score(asked).by_subtask)
    assert negated.fingerprint != scorer.fingerprint
    # The same pairs under permuted questions are another scorer's.
    swapped = [
        item.model_copy(update={"completion": other.completion})
        for item, other in zip(questions, questions[::-1], strict=True)
    ]
    assert build_scorer(target, swapped, Influence()).fingerprint != scorer.fingerprint


def test_an_invalid_pair_is_worse_than_a_common_one() -> None:
    assert penalty_of(Reward(), [0.5]) == 0.1
    assert penalty_of(Reward(source="length"), [0.5]) == 0.1
    assert penalty_of(Reward(source="random"), [0.0]) == 3.1
    # As far below the mean of minus the influence as it would be below the influence.
    mean = 0.06
    assert -mean + penalty_of(Reward(source="negated"), [-mean]) == pytest.approx(mean + 0.1)


def test_a_recipe_says_it_in_one_word_and_keeps_its_fingerprint(recipe: Recipe) -> None:
    assert changed(recipe, {"reward.source": "influence"}).fingerprint == recipe.fingerprint
    fingerprints = {recipe.fingerprint}
    for source in ("random", "length", "negated", "permuted"):
        fingerprints.add(changed(recipe, {"reward.source": source}).fingerprint)
    assert len(fingerprints) == 5
    for changes, said in (
        ({"reward.source": "other"}, "needs other_questions"),
        ({"reward.other_questions": "x.jsonl"}, "for source: other alone"),
        ({"reward.source": "rnadom"}, "random"),
        ({"reward.source": "length", "reward.given": "judged"}, "has none"),
        ({"reward.source": "random", "influence.scorer": "a.module:part"}, "both take the place of influence"),
    ):
        with pytest.raises(RecipeError, match=said):
            changed(recipe, changes)


def test_validate_reads_the_other_questions_before_money(recipe: Recipe, tmp_path: Path) -> None:
    def problems(path: Path) -> list[str]:
        other = changed(recipe, {"reward.source": "other", "reward.other_questions": str(path)})
        return [problem for problem in validate(other, offline=True).problems if "other_questions" in problem]

    assert "missing.jsonl" in problems(tmp_path / "missing.jsonl")[0]
    file = tmp_path / "other.jsonl"
    file.write_text('{"id": "o1", "question": "What for?"}\n{"id": "o2", "question": "Why?", "answer": "so"}\n')
    assert any(
        "has no answer" in problem
        for problem in validate(
            changed(recipe, {"reward.source": "other", "reward.other_questions": str(file)}), offline=True
        ).problems
    )


def rows_of(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.path("rewards.jsonl").open()]


@pytest.mark.slow
def test_a_run_without_gradients_of_pairs(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.open(changed(recipe, {"reward.source": "length", "optimizers.prompt.enabled": False}), tmp_path / "runs")

    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("a gradient is taken")

    monkeypatch.setattr(GradientTaps, "__init__", refused)
    for stage in ("prepare", "warm_up", "optimize_prompt", "train_policy", "synthesize"):
        run_stage(run, stage)
    rows = rows_of(run)
    assert {row["reward_source"] for row in rows} == {"length"}
    encode = Tools(run).target.tokenizer.encode
    for row in rows:
        if row["valid"]:
            assert (
                row["reward"] == row["influence"] == len(encode(f" {row['pair']['answer']}", add_special_tokens=False))
            )
            assert row["feedback"].startswith("Valid, score")
    look = RewardLook.load(run.path("warm_up", "reward_look.json"))
    assert (look.source, look.training) == ("length", None)
    assert "the length of the answer" in look.sentence
    # The set cannot be chosen by gradients, so the best by the reward are kept.
    kept = [Judgement.model_validate_json(line) for line in run.path("synthesize", "static.judged.jsonl").open()]
    left = [row["reward"] for row in rows if row["valid"] and row["variant"] == "static"]
    assert sorted((row.reward for row in kept), reverse=True) == sorted(left, reverse=True)[: len(kept)]


@pytest.mark.slow
@pytest.mark.parametrize("source", ["permuted", "other"])
def test_a_run_by_other_questions(recipe: Recipe, tmp_path: Path, source: str) -> None:
    changes: dict[str, Any] = {"reward.source": source, "optimizers.prompt.enabled": False}
    if source == "other":
        file = tmp_path / "other.jsonl"
        rows = [
            {"id": f"o{i}", "question": f"Who ate {name}?", "answer": METALS[i], "open_book": True, "document_id": "x"}
            for i, name in enumerate(NAMES)
        ]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        changes["reward.other_questions"] = str(file)
    run = Run.open(changed(recipe, changes), tmp_path / "runs")
    plain = Run.open(changed(recipe, {"optimizers.prompt.enabled": False}), tmp_path / "runs")
    for each in (run, plain):
        for stage in ("prepare", "warm_up"):
            run_stage(each, stage)
    tools = Tools(run)
    assert any(f"reward.source: {source}" in note for note in run_stage(run, "prepare").notes)
    assert tools.validation == Tools(plain).validation, "warm-up, checks and form stay those of the domain"
    assert tools.reward_questions != tools.validation
    assert tools.scorer.fingerprint != Tools(plain).scorer.fingerprint
    pairs = [Pair.model_validate_json(line) for line in run.path("warm_up", "pairs.jsonl").open()]
    expected = build_scorer(tools.target, tools.reward_questions, run.recipe.influence).score(pairs).total
    assert json.loads(run.path("warm_up", "influence.json").read_text()) == pytest.approx(expected.tolist())
    assert json.loads(run.path("warm_up", "influence.json").read_text()) != json.loads(
        plain.path("warm_up", "influence.json").read_text()
    )


@pytest.mark.slow
def test_other_test_questions_change_no_reward(recipe: Recipe, tmp_path: Path) -> None:
    """With the test questions exchanged, every reward stays, to the last bit, and what is near one is not exported."""

    def with_test(name: str, rows: list[dict[str, str]]) -> Run:
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        run = Run.open(changed(recipe, {"questions.test": str(file), "synthesis.oversample": 2}), tmp_path / "runs")
        for stage in ("prepare", "warm_up", "optimize_prompt", "train_policy", "synthesize"):
            run_stage(run, stage)
        return run

    strange = with_test("strange", [{"id": f"t{i}", "question": f"Who ruled {i}?", "answer": "x"} for i in range(4)])
    asked = [row["pair"]["question"] for row in rows_of(strange) if row["valid"] and row["source"] == "synthesize"]
    near = asked[0]
    repeated = with_test(
        "repeated", [{"id": "t0", "question": near, "answer": "x"}, {"id": "t1", "question": "Who?", "answer": "y"}]
    )
    before, after = rows_of(strange), rows_of(repeated)
    assert [row["reward"] for row in before] == [row["reward"] for row in after]
    assert [row["key"] for row in before] == [row["key"] for row in after], "so a ledger answers for both"
    exported = [json.loads(line)["messages"] for line in (repeated.folder / "dataset" / "train.jsonl").open()]
    assert near not in json.dumps(exported)
    losses = json.loads(repeated.path("synthesize", "losses.json").read_text())
    assert any(counts.get("near a test question") for counts in losses.values())
    for counts in losses.values():
        gone = counts["invalid"] + counts.get("near a test question", 0) + counts["duplicate"] + counts["not selected"]
        assert gone + counts["kept"] == counts["candidates"]
    assert any("nearly test questions" in note for note in run_stage(repeated, "synthesize").notes)


def test_report_and_summary_say_which_control_it_was(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs", recipe=make_recipe(reward={"source": "length"}))
    words = check_page(write_report(run).read_text(encoding="utf-8")).words
    assert "This run is a control (reward.source: length)" in words
    assert "the reward, the length of the answer, longer is better" in words, "what the pairs were selected by"
    summary = write_summary(run)
    assert summary.reward_source == "length"
    assert any("is a control" in note for note in summary.notes)
    plain = write_run(tmp_path / "runs", recipe=make_recipe())
    assert "control" not in check_page(write_report(plain).read_text(encoding="utf-8")).words
    assert write_summary(plain).reward_source == "influence"
