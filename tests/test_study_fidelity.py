"""The fidelity study: scores against a second computation, truths against real AdamW, statistics against scipy."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from influence_helpers import by_hand, plain_loss, samples, tiny_target
from scipy import stats

from optimsyn.base.errors import DataError, ModelError
from optimsyn.base.statistics import spearman
from optimsyn.influence.factory import build_scorer
from optimsyn.influence.gradients.parts import GradientParts
from optimsyn.influence.scorer import InfluenceScorer
from optimsyn.influence.trainings import schedule
from optimsyn.recipe.recipe import CountedTokens
from optimsyn.recipe.sections.influence import Influence
from optimsyn.study import baselines
from optimsyn.study.fidelity.calibration import calibrated_scores, ridge
from optimsyn.study.fidelity.fidelity import Extra, FidelityData, Plan, Work, fidelity, measure
from optimsyn.study.fidelity.report import DEFAULT, PAPER, FidelityReport
from optimsyn.study.fidelity.scores import COUNTED, influence_scores
from optimsyn.study.fidelity.statistics import LDS, CellStatistics, FidelityCell, Subsets, estimate
from optimsyn.study.fidelity.training_ledger import LEDGER
from optimsyn.target.encoding import Role, counted
from optimsyn.target.target import Target

POOL, QUESTIONS, TRUTH = samples(12, seed=1), samples(4, seed=2), samples(3, seed=6)
COMPANIONS = samples(6, seed=3)
GROUPS = [f"p{i // 3}" for i in range(12)]
SMALL = Plan(horizons=(1, 3), batch_size=2, subsets=4, random=2, ends=("adam_linear dot", "loss"), lr=5e-3)


@pytest.fixture(scope="module")
def target() -> Target:
    return tiny_target()


def real_steps(target: Target, batches: list[list[object]], lr: float, steps: int = 3) -> float:
    """Loss of the truth questions' answers after torch's own AdamW on batches, one sample at a time.

    The rate falls as in a training of so many steps.
    """
    checkpoint = target.checkpoints[-1]
    target.load_checkpoint(checkpoint)
    optimizer = torch.optim.AdamW(target.parameters.values(), lr=lr, weight_decay=0.0)
    for name, parameter in target.parameters.items():
        optimizer.state[parameter] = {
            "step": torch.tensor(float(checkpoint.step)),
            "exp_avg": checkpoint.exp_avg[name].clone(),
            "exp_avg_sq": checkpoint.exp_avg_sq[name].clone(),
        }
    for number, batch in enumerate(batches):
        optimizer.param_groups[0]["lr"] = lr * (steps - number) / steps
        optimizer.zero_grad()
        for item in batch:
            (plain_loss(target, target.encode(item)) / len(batch)).backward()
        torch.nn.utils.clip_grad_norm_(list(target.parameters.values()), 1.0)
        optimizer.step()
    optimizer.zero_grad()
    with torch.no_grad():
        encoded = [counted(target.encode(item), CountedTokens(), "question") for item in TRUTH]
        loss = sum(float(plain_loss(target, item)) for item in encoded) / len(TRUTH)
    target.load_checkpoint(checkpoint)
    return loss


def test_truths_are_those_of_real_training(target: Target) -> None:
    cell = measure(target, FidelityData(POOL, QUESTIONS, TRUTH, COMPANIONS, groups=GROUPS), SMALL)
    start = real_steps(target, [], 5e-3)
    assert cell.start_loss == pytest.approx(start, rel=1e-9)
    after = real_steps(target, [[POOL[4]]] * 3, 5e-3)
    assert cell.truths["alone, 3 steps"][4] == pytest.approx(start - after, rel=1e-6, abs=1e-9)
    fixed = [[COMPANIONS[i] for i in step] for step in schedule(range(6), 3, 2, 0)]
    for steps in (1, 3):
        without = real_steps(target, fixed[:steps], 5e-3)
        with_it = real_steps(target, [[POOL[7], *step[1:]] for step in fixed[:steps]], 5e-3)
        key = f"in batch, {steps} step{'s' if steps > 1 else ''}"
        assert cell.truths[key][7] == pytest.approx(without - with_it, rel=1e-6, abs=1e-9)
    assert cell.subsets is not None
    members = cell.subsets.members[1]
    batches = [[POOL[i] for i in step] for step in schedule(members, 3, 2, 0)]
    assert cell.subsets.decreases[1] == pytest.approx(start - real_steps(target, batches, 5e-3), rel=1e-6, abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["adam", "adam_momentum_free", "adam_linear", "sgd", "less"])
def test_scores_are_those_of_the_scorer(target: Target, estimator: str) -> None:
    checkpoint = target.checkpoints[-1]
    parts = [GradientParts.of(target, checkpoint, [target.encode(x) for x in items]) for items in (POOL, QUESTIONS)]
    found = influence_scores(target, checkpoint, parts[0], parts[1])
    for label, tokens in COUNTED.items():
        if label and estimator not in ("adam", "adam_linear"):
            continue
        for normalization in ("cosine", "dot"):
            kinds: tuple[Any, ...] = ("unit", "plain") if normalization == "dot" else ("unit",)
            for kind in kinds:
                scorer = InfluenceScorer(
                    target,
                    QUESTIONS,
                    estimator=estimator,
                    normalization=normalization,
                    question_gradients=kind,
                    tokens=tokens,
                )
                expected = scorer.score(POOL).total
                name = f"{estimator} {normalization}" + (", plain mean" if kind == "plain" else "")
                mine = found[name + (f", {label}" if label else "")]
                scale = float(expected.norm() / mine.norm()) if normalization == "dot" else 1.0
                # The model's norms round to float32 on the way, and a score may be a small rest of large parts.
                bound = 1e-6 * float(expected.abs().max())
                torch.testing.assert_close(mine * scale, expected, rtol=1e-6, atol=bound)


def test_labels_mean_what_they_always_did(target: Target) -> None:
    """What counts is written out here, so that no default of a recipe changes what a name in a study stands for."""
    ends = {"": 0.0, "end of pairs": 1.0, "end of pairs .3": 0.3, "end of both": 1.0, "root": 0.0, "sum": 0.0}
    ends |= {"root, end of pairs": 1.0, "sum, end of pairs": 1.0}
    assert list(COUNTED) == list(ends)
    checkpoint = target.checkpoints[-1]
    parts = GradientParts.of(target, checkpoint, [target.encode(item) for item in POOL])
    for label, tokens in COUNTED.items():
        reduction = next((name for name in ("root", "sum") if label.startswith(name)), "mean")
        asked = 1.0 if label == "end of both" else 0.0
        counts: tuple[tuple[Role, float], ...] = (("pair", ends[label]), ("question", asked))
        for role, end in counts:
            expected = [
                float(plain_loss(target, by_hand(target, item, role, end=end, reduction=reduction))) for item in POOL
            ]
            assert parts.losses(tokens, role).tolist() == pytest.approx(expected, rel=1e-9)
    assert Plan().measured == COUNTED[""]


def test_the_table_names_the_default_of_a_recipe(target: Target) -> None:
    checkpoint = target.checkpoints[-1]
    parts = [GradientParts.of(target, checkpoint, [target.encode(x) for x in items]) for items in (POOL, QUESTIONS)]
    mine = influence_scores(target, checkpoint, parts[0], parts[1])[DEFAULT]
    expected = build_scorer(target, QUESTIONS, Influence(method="exact")).score(POOL).total
    torch.testing.assert_close(mine * float(expected.norm() / mine.norm()), expected, rtol=1e-5, atol=1e-8)


def test_parts_make_the_losses_of_every_definition(target: Target) -> None:
    checkpoint = target.checkpoints[-1]
    encoded = [target.encode(item) for item in POOL]
    parts = GradientParts.of(target, checkpoint, encoded)
    for tokens in COUNTED.values():
        expected = [float(plain_loss(target, counted(item, tokens, "pair"))) for item in encoded]
        assert parts.losses(tokens, "pair").tolist() == pytest.approx(expected, rel=1e-9)


def test_small_steps_do_what_the_exact_dot_says(target: Target) -> None:
    """With so small a learning rate that only first order counts, the dot of Adam is the truth of a step alone."""
    plan = replace(SMALL, horizons=(1,), lr=1e-6, in_batch=False, subsets=0, ends=(), sets=False, random=0)
    cell = measure(target, FidelityData(POOL, QUESTIONS, TRUTH, []), replace(plan, max_grad_norm=None))
    checkpoint = target.checkpoints[-1]
    parts = [GradientParts.of(target, checkpoint, [target.encode(x) for x in items]) for items in (POOL, TRUTH)]
    found = influence_scores(target, checkpoint, parts[0], parts[1])["adam dot, plain mean, end of pairs"]
    assert COUNTED[""] == CountedTokens(), "the default of a recipe"
    np.testing.assert_allclose(np.array(cell.truths["alone, 1 step"]) / 1e-6, found, rtol=5e-3, atol=2e-3)


def test_a_killed_study_continues(target: Target, tmp_path: Path) -> None:
    def run(told: list[int]) -> FidelityCell:
        return measure(
            target,
            FidelityData(POOL, QUESTIONS, TRUTH, COMPANIONS, groups=GROUPS),
            SMALL,
            work=Work(rows=4, folder=tmp_path, report=lambda count, _: told.append(count)),
        )

    first: list[int] = []
    whole = run(first)
    ledger = tmp_path / LEDGER
    lines = ledger.read_text().splitlines()
    ledger.write_text("\n".join(lines[: len(lines) // 2]) + "\n" + lines[len(lines) // 2][:40])
    again: list[int] = []
    assert run(again) == whole
    assert 0 < sum(again) < sum(first)
    none: list[int] = []
    assert run(none) == whole and not none


def test_a_folder_of_something_else_is_refused(target: Target, tmp_path: Path) -> None:
    plan = replace(SMALL, in_batch=False, alone=False, subsets=1, ends=(), sets=False, random=0)
    measure(target, FidelityData(POOL, QUESTIONS, TRUTH, []), plan, work=Work(folder=tmp_path))
    with pytest.raises(DataError, match="belongs to another target"):
        measure(target, FidelityData(POOL[:5], QUESTIONS, TRUTH, []), plan, work=Work(folder=tmp_path))


def test_what_cannot_be_measured_is_refused(target: Target) -> None:
    with pytest.raises(DataError, match="no question may stand on both sides"):
        measure(target, FidelityData(POOL, QUESTIONS, [*TRUTH, QUESTIONS[0]], COMPANIONS), SMALL)
    with pytest.raises(DataError, match="need as many companions, there are 1"):
        measure(target, FidelityData(POOL, QUESTIONS, TRUTH, COMPANIONS[:1]), SMALL)
    with pytest.raises(DataError, match="other questions for the truth"):
        measure(target, FidelityData(POOL, QUESTIONS, [], COMPANIONS), SMALL)
    with pytest.raises(DataError, match="2 groups for 12 samples"):
        measure(target, FidelityData(POOL, QUESTIONS, TRUTH, COMPANIONS, groups=["a", "b"]), SMALL)
    with pytest.raises(DataError, match="extra score 'mine' has 2 values"):
        measure(target, FidelityData(POOL, QUESTIONS, TRUTH, COMPANIONS), SMALL, extra=Extra({"mine": [1, 2]}))
    with pytest.raises(ModelError, match="no warm-up checkpoint"):
        measure(tiny_target(warm=False), FidelityData(POOL, QUESTIONS, TRUTH, COMPANIONS), SMALL)


def test_ridge_is_the_textbooks() -> None:
    generator = np.random.default_rng(1)
    features, noise = generator.normal(size=(40, 3)) * [1, 5, 0.1] + 2, 0.1 * generator.normal(size=40)
    truths = features @ [1.0, -0.5, 3.0] + 4 + noise
    slope, intercept = ridge(features, truths, penalty=1e-9)
    design = np.concatenate([features, np.ones((40, 1))], axis=1)
    expected = np.linalg.lstsq(design, truths, rcond=None)[0]
    np.testing.assert_allclose([*slope, intercept], expected, rtol=1e-6)
    flat, mean = ridge(features, truths, penalty=1e12)
    np.testing.assert_allclose(flat, 0, atol=1e-8)
    assert mean == pytest.approx(truths.mean())


def test_calibration_never_sees_its_own_passage() -> None:
    generator = np.random.default_rng(2)
    groups = [f"p{i // 4}" for i in range(24)]
    scores = {
        name: torch.from_numpy(generator.normal(size=24))
        for name in ("adam_linear dot", "loss", "answer length", "1 / answer length")
    }
    truth = 2 * scores["adam_linear dot"] + 1
    found = calibrated_scores(scores, {"in batch, 12 steps": truth}, groups)
    assert float(stats.spearmanr(found["calibrated (ridge)"], truth).statistic) > 0.95
    changed = truth.clone()
    changed[:4] += 100
    again = calibrated_scores(scores, {"in batch, 12 steps": changed}, groups)
    for name in found:
        torch.testing.assert_close(again[name][:4], found[name][:4])
    assert not calibrated_scores(scores, {"alone, 1 step": truth}, groups)


def test_bm25_by_hand() -> None:
    pool = samples(5, seed=7)
    query = pool[2]
    found = baselines.bm25_scores(pool, [query])
    documents = [baselines.WORD.findall(baselines.text_of(item).lower()) for item in pool]
    mean_length = sum(map(len, documents)) / len(documents)
    expected = []
    for words in documents:
        total = 0.0
        for word in documents[2]:
            holding = sum(word in other for other in documents)
            idf = math.log(1 + (len(documents) - holding + 0.5) / (holding + 0.5))
            count = words.count(word)
            total += idf * count / (count + 1.5 * (0.25 + 0.75 * len(words) / mean_length))
        expected.append(total)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5)
    assert int(found.argmax()) == 2
    # Words that the pool has not are no match.
    assert not baselines.bm25_scores(
        [pool[0]], [samples(1, seed=99)[0].model_copy(update={"prompt": "", "completion": "zz"})]
    ).any()


def test_embeddings_by_hand(target: Target) -> None:
    table = {
        baselines.text_of(item): torch.randn(3, generator=torch.Generator().manual_seed(i))
        for i, item in enumerate(POOL)
    }
    found = baselines.embedding_scores(POOL, POOL[:2], lambda texts: torch.stack([table[text] for text in texts]))
    one, two = (table[baselines.text_of(item)].double() for item in POOL[:2])
    mean = (one / one.norm() + two / two.norm()) / 2
    expected = [
        float(
            table[baselines.text_of(item)].double()
            @ mean
            / table[baselines.text_of(item)].double().norm()
            / mean.norm()
        )
        for item in POOL
    ]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)
    embedded = baselines.BaseModelEmbedder(target)(["one text", "another"])
    with target.model.disable_adapter(), torch.no_grad():
        ids = target.tokenizer("another", return_tensors="pt")["input_ids"]
        hidden = target.model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0].mean(0)
    torch.testing.assert_close(embedded[1], hidden)


VALUES = st.lists(st.integers(-4, 4).map(float), min_size=6, max_size=20)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_spearman_is_scipys(data: st.DataObject) -> None:
    x = data.draw(VALUES)
    y = data.draw(st.lists(st.integers(-4, 4).map(float), min_size=len(x), max_size=len(x)))
    found = float(spearman(np.array(x), np.array(y)))
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(float(stats.spearmanr(x, y).statistic), abs=1e-9)


def test_partial_spearman_is_the_one_of_residuals() -> None:
    generator = np.random.default_rng(0)
    x, y, a, b = generator.normal(size=(4, 30))
    x, y = x + a, y + 2 * a - b
    ranked = [stats.rankdata(values) for values in (x, y, a, b)]
    design = np.stack([np.ones(30), ranked[2], ranked[3]], axis=1)
    rest = [values - design @ np.linalg.lstsq(design, values, rcond=None)[0] for values in ranked[:2]]
    assert float(spearman(x, y, [a, b])) == pytest.approx(np.corrcoef(*rest)[0, 1], abs=1e-9)
    # A control that is the score itself leaves nothing; one that repeats another changes nothing.
    assert math.isnan(float(spearman(a, y, [a, b])))
    assert float(spearman(x, y, [a, b, a])) == pytest.approx(float(spearman(x, y, [a, b])))


def cell_of(seed: int, name: str = "", domain: str = "") -> FidelityCell:
    generator = np.random.default_rng(seed)
    truth = generator.normal(size=40)
    good, bad = truth + 0.2 * generator.normal(size=40), generator.normal(size=40)
    members = tuple(tuple(sorted(generator.choice(40, 20, replace=False).tolist())) for _ in range(10))
    return FidelityCell(
        name=name,
        domain=domain,
        ids=tuple(map(str, range(40))),
        groups=tuple(f"p{i // 4}" for i in range(40)),
        scores={PAPER: tuple(bad), "good": tuple(good), "same": (1.0,) * 40},
        truths={"in batch, 12 steps": tuple(truth)},
        length=tuple(generator.integers(1, 9, 40).astype(float)),
        gradient_norm=tuple(generator.random(40)),
        subsets=Subsets(members, tuple(float(truth[list(m)].sum()) for m in members)),
        chosen={"random": [0.1, 0.3], "set": [0.5]},
        start_loss=2.0,
        questions=4,
        truth_questions=3,
        steps=24,
    )


HEADLINE = "in batch, 12 steps"


def test_the_report_by_hand() -> None:
    cells = [cell_of(1, "law, human, seed 0", "law"), cell_of(2, "law, human, seed 1", "law")]
    cells.append(cell_of(3, "art, human, seed 0", "art"))
    report = FidelityReport.of(cells, resamples=200)
    row = {row.score: row for row in report.rows}
    assert report.rows[0].score == "good" and report.rows[-1].score == "same"
    each = [stats.spearmanr(cell.scores["good"], cell.truths[HEADLINE]).statistic for cell in cells]
    found = row["good"].spearman[HEADLINE]
    assert found.value == pytest.approx(np.mean(each)) and found.cells == 3
    assert found.low is not None and found.high is not None and found.low < found.value < found.high < 1
    assert row["same"].spearman[HEADLINE].value is None and row["same"].spearman[LDS].value is None
    law = {row.score: row for row in report.domains["law"]}
    assert law["good"].spearman[HEADLINE].value == pytest.approx(np.mean(each[:2]))
    lds = []
    for cell in cells:
        assert cell.subsets is not None
        sums = [sum(cell.scores["good"][i] for i in m) for m in cell.subsets.members]
        lds.append(stats.spearmanr(sums, cell.subsets.decreases).statistic)
    assert row["good"].spearman[LDS].value == pytest.approx(np.mean(lds))
    chosen = {(choice.cells, choice.how): choice for choice in report.choices}
    assert chosen["law, human", "set"].decrease == pytest.approx(0.5)
    assert chosen["law, human", "set"].by_cell == pytest.approx((0.3, 0.3))
    assert chosen["art, human", "random"].by_cell == pytest.approx((0.2,))
    table = report.markdown()
    assert "Within passages" in table and "+0.30 [+0.30, +0.30]" in table


def test_ranking_within_passages_by_hand() -> None:
    cell = cell_of(1)
    found = CellStatistics(cell, 20, 0).within("good", HEADLINE)
    x, y = (np.asarray(values).reshape(10, 4) for values in (cell.scores["good"], cell.truths[HEADLINE]))
    ranked = [stats.rankdata(values, axis=1) - 2.5 for values in (x, y)]
    expected = (ranked[0] * ranked[1]).sum() / math.sqrt((ranked[0] ** 2).sum() * (ranked[1] ** 2).sum())
    assert found[0] == pytest.approx(expected)
    # Of what differs between passages only, nothing is seen.
    between = replace(cell, scores={"between": tuple(float(i // 4) for i in range(40))})
    assert math.isnan(CellStatistics(between, 20, 0).within("between", HEADLINE)[0])
    shifted = replace(cell, scores={"good": tuple(v + 100 * (i // 4) for i, v in enumerate(cell.scores["good"]))})
    assert CellStatistics(shifted, 20, 0).within("good", HEADLINE)[0] == pytest.approx(expected)


def test_resamples_are_shared_and_seeded() -> None:
    one, two = CellStatistics(cell_of(1), 50, 3), CellStatistics(cell_of(1), 50, 3)
    assert np.array_equal(one.spearman("good", HEADLINE), two.spearman("good", HEADLINE), equal_nan=True)
    drawn = one.samples[7]
    cell = cell_of(1)
    again = stats.spearmanr(np.array(cell.scores["good"])[drawn], np.array(cell.truths[HEADLINE])[drawn]).statistic
    assert one.spearman("good", HEADLINE)[7] == pytest.approx(again)


def test_an_estimate_averages_what_is_defined() -> None:
    nan = math.nan
    found = estimate([np.array([0.5, 0.4, nan]), np.array([nan, 1.0, 1.0])])
    assert found.value == pytest.approx(0.5) and found.cells == 1 and found.low == found.high == pytest.approx(0.4)
    assert estimate([np.array([nan, 1.0])]).text() == "–"
    assert estimate([np.array([-0.25, -0.25])]).text() == "-.25 [-.25, -.25]"
    assert estimate([np.array([1.0, 1.0])]).text(interval=False) == "1.00"


def test_cells_are_drawn_anew() -> None:
    cells = [np.full(401, 0.0), np.full(401, 1.0)]
    found = estimate(cells)
    assert found.value == pytest.approx(0.5) and (found.low, found.high) == (0.0, 1.0)


def test_everything_in_one_go(target: Target, tmp_path: Path) -> None:
    report = fidelity(
        target,
        FidelityData(POOL, QUESTIONS, TRUTH, COMPANIONS, groups=GROUPS),
        SMALL,
        extra=Extra({"mine": list(range(12))}),
        work=Work(folder=tmp_path / "work"),
        resamples=50,
    )
    assert report.truths == (
        "alone, 1 step",
        "alone, 3 steps",
        "in batch, 1 step",
        "in batch, 3 steps",
        LDS,
    )
    names = {row.score for row in report.rows}
    assert {"adam cosine", "less dot", "sgd dot, plain mean", "adam_linear dot, end of both", "BM25", "mine"} <= names
    assert {"random", "answer length", "1 / answer length", "calibrated (ridge)", "simulated, in batch"} <= names
    row = {row.score: row for row in report.rows}
    assert row["answer length"].partial["alone, 1 step"].value is None
    assert row["answer length"].with_length.value == pytest.approx(1)
    report.save(tmp_path)
    kept = json.loads((tmp_path / "fidelity.json").read_text())
    assert len(kept["rows"]) == len(report.rows)
    table = (tmp_path / "fidelity.md").read_text()
    assert "| BM25 |" in table and "within, in batch, 3 steps" in table and "| set |" in table
    assert (tmp_path / "fidelity.png").read_bytes().startswith(b"\x89PNG")


def test_a_cell_comes_back_from_its_file(tmp_path: Path) -> None:
    cell = cell_of(4, "four")
    cell.save(tmp_path / "cell.json")
    back = FidelityCell.load(tmp_path / "cell.json")
    assert FidelityReport.of([back], resamples=20).rows[0] == FidelityReport.of([cell], resamples=20).rows[0]
    (tmp_path / "cell.json").write_text("{")
    with pytest.raises(DataError, match=r"cell\.json"):
        FidelityCell.load(tmp_path / "cell.json")
