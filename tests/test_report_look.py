"""Looks at a run's files: what is shown comes from the disk, also where a stage had nothing to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from runs_helpers import tiny_recipe

from optimsyn.base.errors import StageError
from optimsyn.base.files import append_jsonl, write_json, write_jsonl
from optimsyn.data.records import Pair, Passage, Question, Rubric
from optimsyn.influence.attribution.records import SHARES_FILE, TokenShares
from optimsyn.report import look
from optimsyn.reward.judgements import Judgement, Ledger
from optimsyn.runs import Run
from optimsyn.target.warm_up.curve import WarmUpCurve

RUBRIC = Rubric(question_type="a fact", question_quality="b", answer_quality="c", alignment="d", trainability="e")


def passage(number: int) -> Passage:
    text = f"Iron number {number} is kept in ferritin. " * 5
    return Passage(
        id=f"p{number}", document_id=f"d{number}", title=f"Iron {number}", text=text, char_start=0, char_end=len(text)
    )


def pair(number: int, variant: str = "first_draft") -> Pair:
    return Pair(
        id=f"pair{number}",
        question=f"What keeps iron {number}?",
        answer="ferritin",
        passage_id=f"p{number % 3}",
        variant=variant,
        rubric=RUBRIC,
    )


def judgement(number: int, variant: str, *, source: str = "synthesize", valid: bool = True) -> Judgement:
    return Judgement(
        key=f"{variant}{number}",
        source=source,
        passage_id=f"p{number % 3}",
        kind="free",
        seed=number % 3,
        variant=variant,
        rubric=RUBRIC,
        pair=pair(number, variant),
        valid=valid,
        failed=() if valid else ("grounded",),
        influence=0.01 * number if valid else None,
        reward=0.01 * number if valid else -0.1,
    )


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run with what its stages leave, written by hand."""
    off = {"prompt": {"enabled": False}, "policy": {"enabled": False}}
    run = Run.open(tiny_recipe(optimizers=off), tmp_path)
    write_jsonl(run.path("prepare", "passages.jsonl"), [passage(i) for i in range(3)])
    questions = [Question(id=f"q{i}", question=f"Why {i}?", answer="x", subtask="ab"[i > 2]) for i in range(5)]
    write_jsonl(run.path("prepare", "validation.jsonl"), questions)
    append_jsonl(run.path("prepare", "lost.jsonl"), [{"id": "x", "stage": "documents", "reason": "too short"}])
    write_jsonl(run.path("warm_up", "pairs.jsonl"), [pair(i) for i in range(4)])
    write_json(run.path("warm_up", "influence.json"), [0.03, -0.02, 0.05, 0.0])
    write_json(run.path("warm_up", "checkpoints", "step-000002", "checkpoint.json"), {"losses": [4.0, 3.0]})
    # As versions wrote it that recorded less.
    kept = {"stage": "warm_up", "title": "", "columns": ["a"], "rows": [], "notes": []}
    write_json(run.path("warm_up", "result.json"), {**kept, "numbers": {"zero_gradient_baseline": 0.0}})
    for variant in ("no_rubric", "static"):
        rows = [judgement(i, variant, valid=i != 2) for i in range(4)]
        write_jsonl(run.path("synthesize", f"{variant}.candidates.jsonl"), rows)
        write_jsonl(run.path("synthesize", f"{variant}.selected.jsonl"), [row.pair for row in rows[:2] if row.pair])
    return run


def test_examples_are_counted_and_traced(run: Run) -> None:
    assert look.passages(run).title == "1 of 3 passages"
    assert look.passages(run, 9).title == "3 of 3 passages"
    assert [row[0] for row in look.questions(run, 2).rows] == ["a", "b"]
    assert "1 too short" in look.prepare_picture(run).alt


def test_the_first_draft_shows_the_best_and_the_worst(run: Run) -> None:
    assert [row[3] for row in look.first_draft(run).rows] == ["0.05", "−0.02"]
    assert len(look.first_draft(run, 9).rows) == 4
    assert "4.00 at the first step" in look.warm_up_picture(run).alt
    assert "2 steps at 0, as given" in look.warm_up_curve(run).alt, "a run of an older version"
    curve = WarmUpCurve(1e-3, 3, "given", "", "", (5.0, 4.0, 3.0))
    curve.save(run.path("warm_up", "checkpoints", "curve.json"))
    assert "5.00 at the first step" in look.warm_up_picture(run).alt
    assert "3 steps at 0.001, as given" in look.warm_up_curve(run).alt


def test_disabled_optimisers_have_nothing_to_show_and_stop_nobody(run: Run) -> None:
    assert look.guiding_texts(run).rows == ()
    assert look.policy_groups(run).rows == ()
    assert look.prompt_picture(run).alt == "No guiding text was tried."
    assert look.policy_picture(run).alt == "No step of GRPO was made."


def test_groups_are_those_of_one_passage_and_seed(run: Run) -> None:
    rows = [judgement(i, "policy", source="train_policy", valid=i != 3) for i in (0, 3, 6, 1)]
    Ledger(run.path("rewards.jsonl")).append([*rows, judgement(5, "static")])
    table = look.policy_groups(run)
    assert [row[3] for row in table.rows] == ["0.06", "0", "−0.1"]
    assert "invalid: grounded" in table.rows[-1][2]
    assert {row[0] for row in look.policy_groups(run, 2).rows} == {"Iron 0", "Iron 1"}


def test_the_ledger_is_read_although_its_last_line_is_torn(run: Run) -> None:
    Ledger(run.path("rewards.jsonl")).append([judgement(8, "static")])
    with run.path("rewards.jsonl").open("a") as file:
        file.write('{"key": "torn')
    assert {pair.question for pair in look.judged_pairs(run)} == {f"What keeps iron {i}?" for i in (0, 1, 2, 3, 8)}


def test_best_and_worst_are_of_different_valid_pairs_over_all_variants(run: Run) -> None:
    table = look.best_and_worst(run)
    assert table.title == "Highest and lowest influence of 3 different valid pairs"
    assert [row[0] for row in table.rows] == ["0.03", "0"]
    assert "static guiding text 0.01" in look.variants_picture(run).alt


def test_the_dataset_is_shown_with_its_lineage(run: Run) -> None:
    table = look.dataset(run, 1)
    assert table.title == "1 of 2 rows of the dataset"
    assert "Iron 0" in table.rows[0][2]


def test_words_say_why_there_are_none(run: Run) -> None:
    with pytest.raises(StageError, match="missing"):
        look.words(run)
    TokenShares(variant="static", estimator="adam", reason="no forward mode").write(run.path("synthesize", SHARES_FILE))
    assert "no forward mode" in look.words(run).title


def test_against_no_rubric_tells_only_what_the_questions_tell_apart(run: Run) -> None:
    row = {"metric": "accuracy", "value": 0.5, "low": 0.4, "high": 0.6, "n": 9}
    rows = [
        {**row, "variant": "no_rubric", "difference": None, "difference_low": None, "difference_high": None},
        {**row, "variant": "static", "difference": 0.1, "difference_low": 0.05, "difference_high": 0.2},
        {**row, "variant": "policy", "difference": 0.1, "difference_low": -0.05, "difference_high": 0.2},
    ]
    write_json(run.path("evaluate", "against_no_rubric.json"), rows)
    assert [row[-1] for row in look.against_no_rubric(run).rows] == ["apart", "not told apart"]
